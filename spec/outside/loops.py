"""Plain loops: each number of a result is computed separately."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _two(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """The sums of the products of a window and a kernel, one window after the other."""
    if input.dim() == 3:
        return conv2d(input[None], weight, bias, stride, padding)[0]
    (down, right), (top, left) = _two(stride), _two(padding)
    images, channels, height, width = input.shape
    padded = input.new_zeros(images, channels, height + 2 * top, width + 2 * left)
    padded[:, :, top : top + height, left : left + width] = input
    kernels, _, rows, columns = weight.shape
    numbers = []
    for image in range(images):
        for kernel in range(kernels):
            for y in range(0, height + 2 * top - rows + 1, down):
                for x in range(0, width + 2 * left - columns + 1, right):
                    window = padded[image, :, y : y + rows, x : x + columns]
                    number = (window * weight[kernel]).sum()
                    numbers.append(number if bias is None else number + bias[kernel])
    shape = (images, kernels, (height + 2 * top - rows) // down + 1, (width + 2 * left - columns) // right + 1)
    return torch.stack(numbers).reshape(shape)


def max_pool2d(
    input: Tensor, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None
) -> Tensor:
    """The largest number of each window."""
    return _windows(input, kernel_size, stride, lambda window: window.max(-1).values)


def avg_pool2d(
    input: Tensor, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None
) -> Tensor:
    """The mean of each window."""
    return _windows(input, kernel_size, stride, lambda window: window.mean(-1))


def _windows(input: Tensor, kernel_size: Any, stride: Any, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    (rows, columns), (down, right) = _two(kernel_size), _two(kernel_size if stride is None else stride)
    lines = []
    for y in range(0, input.shape[-2] - rows + 1, down):
        line = [
            reduce(input[..., y : y + rows, x : x + columns].flatten(-2))
            for x in range(0, input.shape[-1] - columns + 1, right)
        ]
        lines.append(torch.stack(line, dim=-1))
    return torch.stack(lines, dim=-2)


def relu(input: Tensor) -> Tensor:
    """Each negative number becomes 0; NaN is kept."""
    numbers = [torch.zeros_like(number) if number <= 0 else number for number in input.flatten()]
    return torch.stack(numbers).reshape(input.shape) if numbers else input.clone()


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(−x)), without an overflow."""
    numbers = []
    for number in input.flatten():
        small = torch.exp(-number.abs())
        numbers.append(1 / (1 + small) if number >= 0 else small / (1 + small))
    return torch.stack(numbers).reshape(input.shape) if numbers else input.clone()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each output is a sum of products."""
    outputs = []
    for feature in range(weight.shape[0]):
        output = (input * weight[feature]).sum(-1)
        outputs.append(output if bias is None else output + bias[feature])
    return torch.stack(outputs, dim=-1) if outputs else input.new_zeros(*input.shape[:-1], 0)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The squared differences, added up one after the other."""
    if input.shape != target.shape:
        input, target = torch.broadcast_tensors(input, target)
    squares = (input - target) * (input - target)
    if reduction == "none":
        return squares
    total = torch.zeros((), dtype=squares.dtype, device=squares.device)
    for square in squares.flatten():
        total = total + square
    return total / squares.numel() if reduction == "mean" else total


def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """The mean of log Σ exp(x) − x[class] over the samples, with class numbers as targets."""
    losses = []
    for scores, wanted in zip(input, target, strict=True):
        largest = scores.max().detach()
        losses.append(largest + (scores - largest).exp().sum().log() - scores[int(wanted)])
    return torch.stack(losses).mean()
