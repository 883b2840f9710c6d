"""Chapters 08 to 14: components that are wrong for 64 and more numbers, after the last block of a kernel.

The faults are generated: for every component one with a wrong last number, and for every function one that loses the
last number of a gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec.faults import Fault
from spec.support.harness import SUBJECTS

SIZES = "test_13_sizes.py::test_every_element_of_a_large_result_equals_the_formula"
MANY = 64


def original(name: str) -> Any:
    """Return PyTorch's component."""
    return next(getattr(home, name) for home in (nn, F, torch) if hasattr(home, name))


def last_is_wrong(result: Any) -> Any:
    """The result with its last number increased by one, if it has at least 64 numbers."""
    if isinstance(result, tuple):
        return (last_is_wrong(result[0]), *result[1:])
    if result.numel() < MANY:
        return result
    more = torch.zeros(result.numel(), dtype=result.dtype)
    more[-1] = 1
    return result + more.reshape(result.shape)


def last_is_lost(*tensors: Any) -> list[Any]:
    """The arguments of a loss without the last number of each, if they have at least 64."""
    if tensors[0].numel() < MANY or tensors[0].dim() == 0:
        return list(tensors)
    return [tensor[:-1] for tensor in tensors[:2]] + list(tensors[2:])


class _LosesTheLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        flat = gradients[0].reshape(-1).clone()
        flat[-1] = 0
        return flat.reshape(gradients[0].shape)


def loses_the_last_gradient(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point() and x.numel() >= MANY:
        return _LosesTheLast.apply(x)
    return x


def wrong_value(name: str) -> Callable[..., Any]:
    whole = original(name)
    loss = "oss" in name or name == "cross_entropy"

    def call(*args: Any, **options: Any) -> Any:
        if loss:
            return whole(*last_is_lost(*args), **options)
        return last_is_wrong(whole(*args, **options))

    return call


def wrong_gradient(name: str) -> Callable[..., Any]:
    whole = original(name)
    return lambda *args, **options: whole(*map(loses_the_last_gradient, args), **options)


def wrong_layer(name: str) -> type:
    whole = original(name)

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        if name.endswith("Loss"):
            return whole.forward(self, *last_is_lost(*args), **options)
        return last_is_wrong(whole.forward(self, *args, **options))

    return type(name, (whole,), {"forward": forward})


def fault(kind: str, name: str, component: Any, summary: str, says: str) -> None:
    """Define a fault in this module under a unique name."""
    label = f"{kind}Of{name if name[0].isupper() else name.title().replace('_', '') + 'Function'}"
    body = {"__doc__": summary, "__module__": __name__, "caught_by": SIZES, "says": says, name: component}
    globals()[label] = type(label, (Fault,), body)


for _name in SUBJECTS:
    _where = rf"{_name} of several hundred numbers in float\d+: the output differs"
    if _name[0].isupper():
        fault("LastNumber", _name, wrong_layer(_name), f"The last of many numbers of {_name} is wrong.", _where)
    else:
        fault("LastNumber", _name, wrong_value(_name), f"The last of many numbers of {_name} is wrong.", _where)
        fault(
            "LastGradient",
            _name,
            wrong_gradient(_name),
            f"The last of many numbers of a gradient of {_name} is zero.",
            rf"{_name} of (several \w+ numbers|a batch of 257) in float\d+: the gradient of \w+ differs",
        )


# Sums of many numbers in half precision


def added_up_in_half(products: Tensor) -> Tensor:
    """A sum over the last dimension in which every partial sum is rounded to the dtype."""
    total = torch.zeros_like(products[..., 0])
    for part in products.unbind(-1):
        total = total + part
    return total


class LinearAddsUpInHalfPrecision(Fault):
    """The sum is rounded after every product."""

    caught_by = "test_13_sizes.py::test_linear"
    says = r"the sum of 4,001 products differs(.|\n)*got        256.0"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.dtype not in (torch.float16, torch.bfloat16):
            return F.linear(input, weight, bias)
        found = added_up_in_half(input[..., None, :] * weight)
        return found if bias is None else found + bias


class TheMeanOfAbsoluteErrorsAddsUpInHalfPrecision(Fault):
    """The losses are added one after the other."""

    caught_by = "test_13_sizes.py::test_l1_loss"
    says = r"the mean of 4,001 losses differs"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        losses = (input - target).abs().flatten()
        if reduction == "none":
            return losses.reshape(input.shape)
        total = added_up_in_half(losses)
        return total if reduction == "sum" else total / len(losses)


class SoftmaxAddsUpInHalfPrecision(Fault):
    """The powers are added in the dtype of the input."""

    caught_by = "test_13_sizes.py::test_softmax"
    says = r"one of 4,001 parts differs"

    @staticmethod
    def softmax(input: Tensor, dim: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        x = input if dtype is None else input.to(dtype)
        powers = (x - x.amax(-1, keepdim=True)).exp()
        return powers / added_up_in_half(powers)[..., None]


class DropoutNeverDropsTheLastNumbers(Fault):
    """Numbers after the last block of 16 are only doubled."""

    caught_by = "test_13_sizes.py::test_dropout_drops_and_keeps_every_position_of_a_large_input"
    says = r"of 48 calls none dropped the number at"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        found = F.dropout(input, p, training)
        if not training or not 0 < p < 1 or input.numel() < MANY:
            return found
        rest = torch.zeros(input.numel(), dtype=torch.bool)
        rest[input.numel() // 16 * 16 :] = True
        return torch.where(rest.reshape(input.shape), input / (1 - p), found)


class ClassNumbersAreBytes(Fault):
    """Class numbers are taken modulo 256."""

    caught_by = "test_13_sizes.py::test_a_class_number_may_be_larger_than_a_byte"
    says = r"the result differs"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.cross_entropy(input, target if target.is_floating_point() else target % 256, *args, **options)

    nll_loss = staticmethod(F.nll_loss)
    embedding = staticmethod(F.embedding)


class LayersAreSortedAsTexts(Fault):
    """The layers are sorted as text: layer 10 follows layer 1."""

    caught_by = "test_13_sizes.py::test_sequential_of_eleven_layers_keeps_the_order_in_the_state_dict"
    says = r"(At index 2 diff|'10\.weight')"

    class Sequential(nn.Sequential):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._modules = dict(sorted(self._modules.items()))
