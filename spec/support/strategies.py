"""Hypothesis strategies for all chapters: shapes, dtypes, tensors of any layout."""

import inspect
import math
import time
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import DataObject
from torch import Tensor

from spec.support.outcomes import NotOffered
from spec.support.run import current

BUDGET = 1.0
"""The time limit, in seconds, for the examples of a property with a user's implementation, which may be slow."""

NO_EXAMPLE = (NotOffered, pytest.xfail.Exception)
"""The exceptions for an example without a verdict: a parameter is not offered, or a call is known to crash."""


def given(*strategies: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis's `given`, with two additions.

    All implementations are tested with the same examples: those of the first implementation that passes are stored for
    the others, which halves the cost. For an implementation that fails one of them a separate search finds the simplest
    failing example. Nearly all examples pass, so calls are not recorded; a failed example is run again to record them.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        rightmost = list(inspect.signature(test).parameters)[-len(strategies) :]
        drawn_by_name = dict(zip(rightmost, strategies, strict=False)) | named
        found: list[dict[str, Any]] = []  # by the current search
        examples: list[dict[str, Any]] = []  # of a search that found no failure
        not_offered: list[NotOffered] = []  # why the current search could not use an example
        failing: set[str] = set()  # the examples that failed in the current search
        started = 0.0

        @wraps(test)
        def example(*fixtures: Any, **arguments: Any) -> None:
            __tracebackhide__ = True
            # the test draws more values while it runs
            if any(isinstance(value, DataObject) for value in arguments.values()):
                current().trace.clear()
                test(*fixtures, **arguments)
                return
            drawn = {name: deepcopy(arguments[name]) for name in drawn_by_name}
            over = (found or failing) and current().file and time.monotonic() - started > BUDGET
            if over and repr(drawn) not in failing:  # a failed example must fail again, so that Hypothesis can show it
                return
            random_state = torch.get_rng_state()
            failure = _failure_of(test, *fixtures, **arguments)
            if isinstance(failure, NotOffered):  # no example for this implementation
                not_offered.append(failure)
            if isinstance(failure, NO_EXAMPLE):
                hypothesis.reject()
            if failure is not None:
                failing.add(repr(drawn))
                torch.set_rng_state(random_state)
                current().trace.clear()
                current().example = (test, arguments | deepcopy(drawn))
                test(*fixtures, **arguments | drawn)
                raise failure
            found.append(drawn)

        search = hypothesis.given(**drawn_by_name)(example)

        @wraps(search)
        def judged(*fixtures: Any, **arguments: Any) -> None:
            nonlocal started
            __tracebackhide__ = True
            started = time.monotonic()
            failing.clear()
            failures = (_failure_of(test, *fixtures, **arguments, **deepcopy(drawn)) for drawn in examples)
            failure = next((f for f in failures if f is not None and not isinstance(f, NO_EXAMPLE)), None)
            if failure is None and examples and not current().file:
                return
            found.clear()
            not_offered.clear()
            # the examples must not depend on the name of the test item, which contains the implementation
            seed = 0 if hypothesis.settings().derandomize else current().seed
            try:
                hypothesis.seed(f"{test.__module__}.{test.__qualname__} {seed}")(search)(*fixtures, **arguments)
            except Unsatisfiable:
                if not_offered:
                    raise not_offered[-1] from None
                raise
            if failure is not None:
                raise failure
            if not not_offered:
                examples[:] = found

        judged.__signature__ = inspect.signature(search)  # pyright: ignore[reportAttributeAccessIssue]
        judged.__wrapped__ = test  # the location for editors
        return judged

    return decorate


def _failure_of(test: Callable[..., None], *fixtures: Any, **arguments: Any) -> BaseException | None:
    """Run a test without recording its calls; return its error, or None."""
    current().trace.clear()
    with current().trace.off():
        try:
            test(*fixtures, **arguments)
        except (Exception, pytest.fail.Exception, NotOffered) as error:
            return error
    return None


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """A floating-point type of the run."""
    return st.deferred(lambda: st.sampled_from(current().dtypes))


seeds = st.integers(0, 2**16)
"""A seed for numbers that a test needs but does not depend on; shrinks to 0."""


def seed_all(seed: int) -> None:
    """A cheaper `torch.manual_seed`, which stores no stack trace for an accelerator that is not initialized."""
    torch.default_generator.manual_seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(dtype).to(torch.get_default_device())


def whole(*shape: int, seed: int, dtype: torch.dtype = torch.float64, largest: int = 3) -> Tensor:
    """Integers from -largest to largest.

    Sums of their products are integers too and far below 2¹¹, so that every floating-point type except bfloat16
    represents them exactly and computations need no tolerance.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randint(-largest, largest + 1, shape, generator=generator, device="cpu")
    return numbers.to(dtype).to(torch.get_default_device())


def laid_out(x: Tensor, layout: int) -> Tensor:
    """The same numbers in another memory layout: unchanged, transposed, with gaps, or channels last."""
    if layout == 1 and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == 2 and x.dim() >= 1:
        gaps = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        gaps[..., ::2] = x
        return gaps[..., ::2]
    if layout == 3 and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


layouts = st.integers(0, 3)
"""The layouts of `laid_out`."""


def spread(*shape: int, seed: int, gap: float = 0.1) -> Tensor:
    """Float64 numbers with distances of at least `gap`, and of at least half of it from 0, away from kinks."""
    count = math.prod(shape)
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(count, generator=generator, device="cpu").to(torch.float64)
    numbers = ((order - count // 2) + 0.5) * gap
    return numbers.reshape(shape).to(torch.get_default_device())
