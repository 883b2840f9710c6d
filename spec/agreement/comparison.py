"""One call, made in the reference and in PyTorch, and the allowed differences between the results.

A component draws a `Call` from a `random.Random`: a function that takes a namespace, makes the call there and returns
everything observable. Data, masks and seeds are drawn beforehand, so that both sides use the same ones. Both sides must
return or both must raise an error. The results must have the same structure, dtypes, shapes and text; numbers that are
only moved, drawn or stored must be equal bit for bit, computed numbers up to rounding, with NaN and infinities in the
same positions.
"""

import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import reference
from spec.support.versions import printed_here

Namespace = Any

REFERENCE: Namespace = reference
TORCH: Namespace = SimpleNamespace(
    **{
        name: next(
            getattr(home, name) for home in (torch.nn, torch.nn.functional, torch.optim, torch) if hasattr(home, name)
        )
        for name in (
            *("conv2d", "Conv2d", "max_pool2d", "MaxPool2d", "avg_pool2d", "AvgPool2d"),
            *("adaptive_avg_pool2d", "AdaptiveAvgPool2d", "relu", "ReLU", "leaky_relu", "LeakyReLU"),
            *("sigmoid", "Sigmoid", "tanh", "Tanh", "softmax", "Softmax", "log_softmax", "LogSoftmax"),
            *("linear", "Linear", "flatten", "Flatten", "Sequential", "dropout", "Dropout", "embedding", "Embedding"),
            *("batch_norm", "BatchNorm2d", "layer_norm", "LayerNorm", "RNN", "LSTM", "GRU"),
            *("scaled_dot_product_attention", "MultiheadAttention", "TransformerEncoderLayer"),
            *("l1_loss", "L1Loss", "mse_loss", "MSELoss", "nll_loss", "NLLLoss", "cross_entropy", "CrossEntropyLoss"),
            *("SGD", "Adam", "AdamW"),
        )
    }
)

# A random walk does not exceed 8 standard deviations by chance.
DEVIATIONS = 8
OWN_ERRORS = (ValueError, TypeError, IndexError)
# The reference names the function in its errors; Python and the run-time check of annotations may raise earlier errors.
OWN_MESSAGE = re.compile(r"\w+(\.\w+)?: |\w+\.__init__\(\) got an unexpected keyword argument|Type-check error")


@dataclass
class Observed:
    """The observable result of one call.

    Attributes:
        exact: Equal to the last bit: text, names, drawn numbers, buffers that are only moved.
        close: Computed numbers, possibly nested in lists, tuples and dicts; equal up to rounding.
        derivatives: The result of `differentiate`, or its error.
    """

    exact: dict[str, Any] = field(default_factory=dict)
    close: dict[str, Any] = field(default_factory=dict)
    derivatives: dict[str, Tensor] | RuntimeError = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A call that can be made in either namespace.

    Attributes:
        text: The call as readable text.
        make: Makes the call in a namespace.
        roundings: The number of roundings on the longest path from the inputs to a result, at least 1. They add up as a
            random walk.
        scale: A bound of the summed numbers, if it is larger than the largest number of the result.
        eps: The machine epsilon of the coarsest intermediate dtype, if it differs from the dtype of the result.
        gains: For the results with names that begin with the key: the factor by which a rounding error grows on its way
            there, such as 1/√ε behind a normalization.
        overflows: The beginnings of the names of results in which an infinity may stand for NaN and the reverse: a sum
            with one part beyond the range of the dtype depends on the order of its terms.
        warns: Whether both must give warnings of the same categories. False if PyTorch's kernels warn about themselves,
            or only once per process.
    """

    text: str
    make: Callable[[Namespace], Observed]
    roundings: float = 1
    scale: float = 1.0
    eps: float = 0.0
    gains: Mapping[str, float] = field(default_factory=dict)
    overflows: tuple[str, ...] = ()
    warns: bool = False

    def allowed(self, name: str, expected: Tensor) -> float:
        """The allowed distance of the result called `name` from `expected`."""
        finite = expected.detach()[expected.isfinite()].abs()
        largest = max(self.scale, finite.max().item() if finite.numel() else 0.0)
        gain = max((factor for start, factor in self.gains.items() if name.startswith(start)), default=1.0)
        eps = max(self.eps, torch.finfo(expected.dtype).eps)
        return DEVIATIONS * eps * math.sqrt(self.roundings) * largest * gain


Draw = Callable[[random.Random], Call]


class Verdict(NamedTuple):
    """The outcome of one call: agreed, both raised or differ; the difference, and the way to repeat the call."""

    outcome: str
    problem: str = ""
    repeat: str = ""


def leaf(value: Any) -> Any:
    """A new leaf tensor with the same numbers and strides; a value without a derivative is returned unchanged."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    fresh = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return fresh.copy_(value.detach()).requires_grad_()


def coarsest(*tensors: Tensor | None) -> float:
    """The largest machine epsilon among the floating-point tensors, 0 without any."""
    dtypes = [t.dtype for t in tensors if t is not None and (t.is_floating_point() or t.is_complex())]
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def differentiate(
    outputs: Mapping[str, Any], inputs: Mapping[str, Any], seed: int, *, twice: bool
) -> dict[str, Tensor] | RuntimeError:
    """The gradients of a random weighting of the outputs, and those of a random weighting of these gradients.

    Args:
        outputs: The results by name; values that are not differentiable tensors are left out.
        inputs: The inputs to differentiate in, by name; those that require no gradient are left out.
        seed: Draws the weights.
        twice: Whether to differentiate a second time, in the inputs and in the first weights.

    Returns:
        "gradient of NAME" and "second gradient of NAME", or the error that autograd raised. A missing gradient and a
        zero gradient count as the same derivative.
    """
    generator = torch.Generator().manual_seed(seed)

    def weights(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    results = [y for y in outputs.values() if isinstance(y, Tensor) and y.requires_grad]
    wanted = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}
    if not results or not wanted:
        return {}
    upstream = [weights(y).requires_grad_(twice) for y in results]
    try:
        first = torch.autograd.grad(results, list(wanted.values()), upstream, create_graph=twice, allow_unused=True)
        found = _named("gradient", wanted, first)
        again = [g for g in first if g is not None and g.requires_grad]
        if twice and again:
            wanted |= {f"weights {i}": weight for i, weight in enumerate(upstream)}
            second = torch.autograd.grad(again, list(wanted.values()), [weights(g) for g in again], allow_unused=True)
            found |= _named("second gradient", wanted, second)
    except RuntimeError as error:
        return error
    return found


def _named(what: str, inputs: Mapping[str, Tensor], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    return {
        f"{what} of {name}": torch.zeros_like(x) if gradient is None else gradient.detach()
        for (name, x), gradient in zip(inputs.items(), gradients, strict=True)
    }


def attempt(call: Call, namespace: Namespace) -> Observed | Exception:
    """Make the call and record its result, including its warnings. PyTorch's random state stays unchanged."""
    with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng(devices=[]):
        warnings.simplefilter("always")
        try:
            observed = call.make(namespace)
        except Exception as error:
            return error
    if call.warns:
        observed.exact["warnings"] = sorted({warning.category.__name__ for warning in caught})
    return observed


def judge(call: Call) -> Verdict:
    """Make the call on both sides and compare the results."""
    ours, theirs = attempt(call, REFERENCE), attempt(call, TORCH)
    if isinstance(ours, Exception) and isinstance(theirs, Exception):
        if isinstance(ours, OWN_ERRORS) and OWN_MESSAGE.match(str(ours)):
            return Verdict("both raised")
        return Verdict("differ", f"the reference's {_said(ours)} is an accident (PyTorch: {_said(theirs)})")
    if isinstance(ours, Exception):
        return Verdict("differ", f"only the reference raised {_said(ours)}")
    if isinstance(theirs, Exception):
        return Verdict("differ", f"only PyTorch raised {_said(theirs)}")
    problem = (
        _difference("", ours.exact, theirs.exact, None)
        or _difference("", ours.close, theirs.close, call)
        or _derivatives_difference(call, ours.derivatives, theirs.derivatives)
    )
    return Verdict("differ", problem) if problem else Verdict("agreed")


def verdicts(component: str, draw: Draw, calls: int, seed: int, first: int = 0) -> Iterator[Verdict]:
    """Compare the random calls `first` to `first + calls - 1` of a component; each can be drawn again by its number."""
    for number in range(first, first + calls):
        call = draw(random.Random(f"{seed} {component} {number}"))
        repeat = f"python -m spec.agreement --seed {seed} --first {number} --calls 1 {component}"
        verdict = judge(call)
        problem = f"{call.text}\n    {verdict.problem}" if verdict.problem else ""
        yield verdict._replace(problem=problem, repeat=repeat)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _derivatives_difference(call: Call, ours: Any, theirs: Any) -> str | None:
    if isinstance(theirs, RuntimeError):
        return None  # results that PyTorch cannot differentiate cannot be compared
    if isinstance(ours, RuntimeError):
        return f"only PyTorch differentiates it: {_said(ours)}"
    return _difference("", ours, theirs, call)


def _difference(name: str, ours: Any, theirs: Any, call: Call | None) -> str | None:
    """A description of the first difference of two structures, or None; without a `call`, bit for bit."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return _tensor_difference(name, ours, theirs, call)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if list(ours) != list(theirs):
            return f"{name}: keys {list(ours)}, not {list(theirs)}"
        pairs = [(f"{name}.{key}" if name else str(key), ours[key], theirs[key]) for key in theirs]
    elif isinstance(ours, list | tuple) and type(ours) is type(theirs):
        if len(ours) != len(theirs):
            return f"{name}: {len(ours)} parts, not {len(theirs)}"
        pairs = [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        if isinstance(ours, str):
            ours = printed_here(ours)
        return None if type(ours) is type(theirs) and ours == theirs else f"{name}: {ours!r}, not {theirs!r}"
    return next((found for pair in pairs if (found := _difference(*pair, call))), None)


def _tensor_difference(name: str, ours: Tensor, theirs: Tensor, call: Call | None) -> str | None:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return f"{name}: {ours.dtype} {tuple(ours.shape)}, not {theirs.dtype} {tuple(theirs.shape)}"
    if not (theirs.is_floating_point() or theirs.is_complex()):
        return None if torch.equal(ours, theirs) else f"{name}: {ours.tolist()}, not {theirs.tolist()}"
    allowed = 0.0 if call is None else call.allowed(name, theirs)
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    a, b = ours.detach().to(wide), theirs.detach().to(wide)
    if call is not None and any(name.startswith(start) for start in call.overflows):
        a, b = (torch.where(part.isfinite(), part, math.nan) for part in (a, b))
    if torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True):
        return None
    worst = (a - b).abs().nan_to_num(math.inf, math.inf).max().item()
    return f"{name}: differs by up to {worst:.3g}, {allowed:.3g} are allowed\n    {a.tolist()}\n    {b.tolist()}"
