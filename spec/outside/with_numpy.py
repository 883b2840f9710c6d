"""NumPy: the numbers are converted to arrays, and each function has a custom gradient."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.biased = bias is not None
        output = _array(input) @ _array(weight).T
        return torch.from_numpy(np.asarray(output if bias is None else output + _array(bias)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        upstream = _array(gradients[0])
        count = upstream[..., 0].size if upstream.shape[-1] else _array(input)[..., 0].size
        rows, inputs = upstream.reshape(count, upstream.shape[-1]), _array(input).reshape(count, input.shape[-1])
        return (
            torch.from_numpy(np.asarray(upstream @ _array(weight))),
            torch.from_numpy(rows.T @ inputs),
            torch.from_numpy(rows.sum(0)) if ctx.biased else None,
        )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product of matrices."""
    return _Linear.apply(input, weight, bias)  # pyright: ignore[reportReturnType]


class _Sigmoid(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        numbers = _array(input)
        small = np.exp(-np.abs(numbers))
        result = np.where(numbers >= 0, 1 / (1 + small), small / (1 + small)).astype(numbers.dtype)
        result = np.where(np.isnan(numbers), numbers, result)
        output = torch.from_numpy(np.asarray(result))
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (output,) = ctx.saved_tensors
        return gradients[0] * output * (1 - output)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(−x)), without an overflow."""
    return _Sigmoid.apply(input)  # pyright: ignore[reportReturnType]


class _Relu(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        numbers = _array(input)
        ctx.positive = torch.from_numpy(np.asarray(~(numbers <= 0)))
        return torch.from_numpy(np.asarray(np.maximum(numbers, numbers.dtype.type(0))))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.positive


def relu(input: Tensor) -> Tensor:
    """The larger of the number and 0."""
    return _Relu.apply(input)  # pyright: ignore[reportReturnType]


class _Squares(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        difference = _array(input) - _array(target)
        ctx.slope = torch.from_numpy(np.asarray(2 * difference))
        return torch.from_numpy(np.asarray(np.square(difference)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        slope = gradients[0] * ctx.slope
        return slope, -slope


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The squared differences."""
    squares: Any = _Squares.apply(*torch.broadcast_tensors(input, target))
    if reduction == "none":
        return squares
    return squares.mean() if reduction == "mean" else squares.sum()
