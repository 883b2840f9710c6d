"""The cases to measure: components as in a training of the network, forward and backward, on a batch of 64.

A case prepares its tensors, runs one step, and checks the result, so that pytest and `python -m benchmarks` time the
same step and verify it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spec.support.assertions import EXACT, Tolerance, assert_close, rounding
from spec.support.implementations import Implementation

BATCH = 64
"""Images in a batch, as in the tutorial."""

Step = Callable[[], Sequence[Tensor]]
"""A function that runs one step, to be timed; it returns all results."""


@dataclass(frozen=True, repr=False)
class Case(ABC):
    """A measurement for any implementation.

    Attributes:
        topic: names the file of `benchmarks/` that it belongs to.
        component: the name that an implementation must define.
        label: the size of its input, for tables.
    """

    topic: str
    component: str
    label: str

    def __repr__(self) -> str:
        return f"{self.component} {self.label}"

    @abstractmethod
    def step(self, component: Any, device: torch.device) -> Step:
        """One step of `component`, from the implementation under test, with tensors on `device`."""

    @abstractmethod
    def check(self, result: Sequence[Tensor]) -> None:
        """Assert that the result of a step is right."""


@dataclass(frozen=True, repr=False)
class Pass(Case):
    """A component's forward and backward pass.

    Attributes:
        inputs: makes the arguments, on the CPU in float32; the result includes the gradients of those that require one.
        layer: the arguments to build the component with, if it is a layer; it gets the weights of PyTorch's layer, and
            the result includes their gradients.
        options: named arguments of the call.
        operations: the number of roundings in the computation of one number (`spec.support.assertions.rounding`); None
            if all results are exact, because the numbers are integers or are only copied.
        magnitude: the largest number in this computation.
        training: whether a layer is used in training mode.
    """

    inputs: Callable[[], tuple[Tensor, ...]]
    layer: tuple[Any, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    operations: int | None = None
    magnitude: float = 1.0

    def step(self, component: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Step:
        """Forward and backward; the result is the output and the gradients."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            given = self.inputs()
            upstream_of = _whole_numbers if self.operations is None else torch.rand
            parameters: list[Tensor] = []
            call = component
            if self.layer is not None:
                call = component(*self.layer)
                call.load_state_dict(getattr(nn, self.component)(*self.layer).state_dict())
                call.to(device, dtype)
                parameters = list(call.parameters())
            inputs = [
                t.detach().to(device, dtype if t.is_floating_point() else None).requires_grad_(t.requires_grad)
                for t in given
            ]
            wanted = [t for t in inputs if t.requires_grad] + parameters
            shape = _first(call(*inputs, **self.options)).shape
            upstream = upstream_of(shape).to(device, dtype)

        def step() -> list[Tensor]:
            output = _first(call(*inputs, **self.options))
            return [output.detach(), *torch.autograd.grad(output, wanted, upstream)]

        return step

    def check(self, result: Sequence[Tensor]) -> None:
        """Compare output and gradients with PyTorch's in float64."""
        component = getattr(nn.functional if self.layer is None else nn, self.component)
        expected = self.step(component, torch.device("cpu"), torch.float64)()
        for number, (actual, wanted) in enumerate(zip(result, expected, strict=True)):
            assert_close(actual.cpu(), wanted.float(), self._tolerance(), f"result {number} of {self.label}")

    def _tolerance(self) -> Tolerance:
        return EXACT if self.operations is None else rounding(torch.float32, self.operations, self.magnitude)


def timed(case: Case, implementation: Implementation, device: torch.device) -> Step:
    """One step of `case`, which ends when the device has completed its work."""
    target = implementation.components[case.component]
    step = case.step(target.get() if hasattr(target, "get") else target, device)
    if device.type != "cuda":
        return step

    def synchronized() -> Sequence[Tensor]:
        result = step()
        torch.cuda.synchronize(device)
        return result

    return synchronized


def whole(*shape: int, needs_gradient: bool = True) -> Tensor:
    """Integers from -3 to 3: the sums of their products are exact in float32, up to an absolute value of 2²⁴."""
    return _whole_numbers(shape).requires_grad_(needs_gradient)


def normal(*shape: int, needs_gradient: bool = True) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape).requires_grad_(needs_gradient)


def _whole_numbers(shape: Sequence[int]) -> Tensor:
    return torch.randint(-3, 4, tuple(shape)).float()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
