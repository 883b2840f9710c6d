"""Assertions with explanatory messages: the index, both values, the tolerance and its derivation.

The checks are in the order dtype, shape, values: the message reports the first wrong one. The report of every failure
adds the clause of the test and a way to repeat its calls.
"""

import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor

from spec.report.recording import observe
from spec.support.outcomes import NotOffered, judged_nothing
from spec.support.run import current

# The exceptions of a library for a wrong argument. Internal errors (AttributeError, AssertionError …) do not count.
REJECTIONS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)

CALL_ERROR = re.compile(
    r"\(\) (got an unexpected keyword argument|got multiple values for argument|takes .*argument|takes no parameters"
    r"|missing \d+ required)"
)
"""Python's error messages for a call that does not match the signature, for any values."""


@dataclass(frozen=True)
class Tolerance:
    """The allowed distance of a number from the expected one, and its derivation.

    Attributes:
        absolute: One number, or a tensor with the tolerance of each element.
        because: The derivation as text.
    """

    absolute: Tensor | float
    because: str


EXACT = Tolerance(0.0, "none: no step of this computation rounds")


def rounding(dtype: torch.dtype, operations: int, magnitude: Tensor | float = 1.0) -> Tolerance:
    """A bound of the rounding error of a chain of operations.

    Each operation is off by at most half of eps, relative to its own result, and no result is larger than `magnitude`;
    so after n operations, in any order, the error is at most n · eps · magnitude. (The expected value is computed
    in float64, or exactly, and rounded to the dtype once; the other half of each eps covers that.)

    Args:
        dtype: The dtype in which the implementation computes, or to which it rounds its result.
        operations: The number of roundings from the inputs to one number of the result: for a sum of n
            products, n multiplications and n additions count as n, because products are rounded relative to themselves.
        magnitude: The largest possible intermediate number: for a sum, the sum of the absolute values. One number, or
            a tensor of the result's shape.
    """
    eps = torch.finfo(dtype).eps
    if isinstance(magnitude, Tensor):
        magnitude = magnitude.detach().to(torch.float64)
        largest = f"up to {magnitude.max().item():.3g}" if magnitude.numel() else "none"
    else:
        largest = f"up to {magnitude:.3g}"
    count = operations + 1  # the last rounding, to the result's dtype
    because = f"{count} roundings to {str(dtype).removeprefix('torch.')} (eps {eps:.3g}) of numbers of {largest}"
    return Tolerance(count * eps * magnitude, because)


def assert_equal(actual: Any, expected: Any, what: str = "the result") -> None:
    """Assert the same dtype, shape and numbers; NaN equals NaN."""
    __tracebackhide__ = True
    assert_close(actual, expected, EXACT, what)


def assert_close(actual: Any, expected: Any, tolerance: Tolerance, what: str = "the result") -> None:
    """Assert the same dtype and shape, numbers within the tolerance, and NaN and infinities in the expected positions.

    Args:
        actual: The result of an implementation.
        expected: A tensor, or Python numbers, which are converted to the dtype of `actual`.
        tolerance: See `rounding`.
        what: The name of the compared value, for the message.
    """
    __tracebackhide__ = True
    if not isinstance(actual, Tensor):
        pytest.fail(f"{what} must be a tensor, got {type(actual).__name__}: {actual!r}")
    observe(what, actual, expected)  # the report shows documented and measured values
    if not isinstance(expected, Tensor):
        expected = torch.tensor(expected, dtype=actual.dtype)
    current().difference = (actual, expected)
    if actual.dtype != expected.dtype:
        pytest.fail(f"{what} has dtype {actual.dtype}, expected {expected.dtype}")
    if actual.shape != expected.shape:
        pytest.fail(f"{what} has shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.device == expected.device and torch.equal(actual, expected):
        current().difference = None
        return
    # a complex or integer result has no NaN; all values are compared in the widest type of their kind
    wide = torch.complex128 if actual.is_complex() else torch.float64 if actual.is_floating_point() else torch.int64
    got, wanted = actual.detach().cpu().to(wide), expected.detach().cpu().to(wide)
    absolute = tolerance.absolute
    allowed = (
        absolute.cpu() if isinstance(absolute, Tensor) else torch.tensor(absolute, dtype=torch.float64, device="cpu")
    )
    distance = (got - wanted).abs()
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    wrong = ~(same | (distance <= allowed))
    if not wrong.any():
        current().difference = None
        return
    first = tuple(int(i) for i in wrong.nonzero()[0])
    here = allowed.expand(wrong.shape)[first].item()
    lines = [
        f"{what} differs {f'at index {list(first)}' if first else 'in value'}",
        f"  got        {got[first].item()!r}",
        f"  expected   {wanted[first].item()!r}",
        f"  tolerance  {here:.3g}: {tolerance.because}" if here else f"  tolerance  {tolerance.because}",
    ]
    if wrong.numel() > 1:
        worst = distance.nan_to_num(torch.inf).masked_fill(~wrong, 0).flatten().argmax()
        at = [int(i) for i in torch.unravel_index(worst, wrong.shape)]
        lines.append(
            f"  {int(wrong.sum())} of {wrong.numel()} numbers differ{'s' * (int(wrong.sum()) == 1)}, most at index {at}"
        )
    if wrong.numel() <= 64 and wrong.dim():
        lines += ["  got all of", f"{actual.detach()}", "  expected all of", f"{expected.detach()}"]
    pytest.fail("\n".join(lines))


def assert_printed(actual: Any, printed: str, what: str = "the result") -> None:
    """Assert that a number equals a number printed in the tutorial, within half a unit of the last printed digit.

    Args:
        actual: A tensor of one number.
        printed: Its digits, as "0.6667".
        what: The name of the compared value, for the message.
    """
    __tracebackhide__ = True
    digits = len(printed.partition(".")[2])
    tolerance = Tolerance(0.5 * 10**-digits, f"half a unit of the last of the {digits} printed decimals")
    assert_close(actual, float(printed), tolerance, what)


def without_device(printed: str) -> str:
    """The printed text of tensors without their device."""
    return re.sub(r", device='[^']+'", "", printed)


@contextmanager
def rejects(naming: str | None, *arguments: str) -> Iterator[None]:
    """Assert that the code in the block raises an error with a message that names the fault.

    PyTorch promises the errors, not their words: the name of a wrong argument is enough, in any spelling (`start_dim`,
    "start dim", "start-dim") and at any position. No value and no other word is required.

    Python's own error for a call that the signature does not allow (an argument too many, a keyword that it lacks) is
    not a rejection of a value: an implementation without the parameter has not judged the value at all.

    Args:
        naming: A regular expression that must match the message, ignoring case. The name of the argument is enough,
            unless the clause requires more. With `None` the signature itself rejects the call: any message is accepted,
            and Python's own error for the call is the expected one.
        arguments: The arguments that are wrong or do not fit each other; the name of one of them is enough as well.
    """
    __tracebackhide__ = True
    try:
        yield
    except REJECTIONS as error:
        nothing = judged_nothing(error, current().file, current().namespace)
        if nothing is not None and not (naming is None and isinstance(nothing, NotOffered)):
            raise  # the implementation has not judged the value
        got = f"\n  got {type(error).__name__}: {error}"
        if naming is None:
            return
        if isinstance(error, TypeError) and CALL_ERROR.search(str(error)):
            text = "the call itself failed, so nothing was rejected: the signature does not take these arguments"
            pytest.fail(text + got)
        if not re.search(naming, str(error), re.IGNORECASE) and not _names_one(str(error), arguments):
            known = " or ".join([f"/{naming}/", *arguments])
            pytest.fail(f"the error must name {known}, so that one knows what to fix{got}")
        if (called := _called(error)) is not None and not _begins_with(str(error), called):
            pytest.fail(f"an error of the reference must begin with the name of what was called, {called}{got}")
    except Exception as error:
        wanted = ", ".join(kind.__name__ for kind in REJECTIONS)
        pytest.fail(f"must be rejected by one of {wanted}\n  got {type(error).__name__}: {error}")
    else:
        named = "" if naming is None else f" that names /{naming}/"
        pytest.fail(f"was accepted, but must be rejected with an error{named}")


def _names_one(text: str, arguments: Iterable[str]) -> bool:
    """Whether a text names an argument, also with a hyphen or a space instead of the underscore."""
    patterns = (name.replace("_", "[_ -]?") for name in arguments)
    return any(re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", text, re.IGNORECASE) for pattern in patterns)


REFERENCE = str(Path(__file__).parents[2] / "reference")
COMPONENTS = tuple(
    os.path.join(REFERENCE, *parts)
    for parts in (("nn",), ("optim.py",), ("definitions.py",), ("data", "transforms.py"))
)
"""The reference's components; the error of one of them begins with its name."""
CONTAINER = os.path.join(REFERENCE, "nn", "container.py")
"""`Sequential`: it passes the errors of its layers on."""


def _called(error: BaseException) -> str | None:
    """The component of the reference that was called, if the reference raised the error, and not a base class."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = frames[-1].f_code.co_filename
    if raised_in.startswith(REFERENCE):
        for frame in frames:
            file = frame.f_code.co_filename
            if file.startswith(COMPONENTS) and not (file == CONTAINER != raised_in):
                owner = frame.f_locals.get("self")
                return frame.f_code.co_name if owner is None else type(owner).__name__
    return None


def _begins_with(text: str, component: str) -> bool:
    """Whether an error names a component first; a layer may name its function, and `conv2d_output_size` `conv2d`."""
    if text.startswith("a leaf Variable that requires grad"):  # PyTorch's own words, for in-place operations
        return True
    name = text.partition(":")[0].replace("_", "").lower()
    return name != "" and component.replace("_", "").lower().startswith(name)


def assert_differentiable(function: Callable[..., Any], *inputs: Tensor, twice: bool = True) -> None:
    """Assert that first and second derivatives equal difference quotients.

    Quotients are taken along a random direction of each input, which sees every entry, as PyTorch's own tests do it;
    under Hypothesis's `thorough` profile for one entry after the other.

    Args:
        function: A function from float64 tensors to one tensor.
        inputs: The point of differentiation; inputs that require a gradient. A step of 1e-6 must not cross a kink.
        twice: Whether second derivatives are compared too, along one direction in all inputs and the upstream gradient;
            they belong to level pytorch.
    """
    __tracebackhide__ = True
    wanted = [x for x in inputs if x.requires_grad]
    generator = torch.Generator("cpu").manual_seed(0)

    def weights(like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5
        return drawn.to(like.device)

    upstream = weights(function(*inputs).detach()).requires_grad_()  # the call that a failure shows
    directions = [weights(x) for x in wanted]

    def slope(*values: Tensor) -> Tensor:
        """The directional derivative of the weighted output; its gradient consists of second derivatives."""
        *points, weight = values
        gradients = torch.autograd.grad(
            function(*points), [p for p in points if p.requires_grad], weight, create_graph=True
        )
        return torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()

    checks: list[tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = [("gradient", function, inputs)]
    if twice and current().level == "pytorch":
        checks.append(("second gradient", slope, (*inputs, upstream)))
    fast = hypothesis.settings.get_current_profile_name() != "thorough"
    for name, checked, points in checks:
        try:
            with current().trace.off():
                torch.autograd.gradcheck(checked, points, fast_mode=fast)
        except (RuntimeError, AssertionError) as error:
            pytest.fail(f"the {name} is not that of difference quotients (float64, steps of 1e-6)\n{error}")
