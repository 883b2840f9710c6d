"""Fast pooling for training: the maxima and sums of the definitions in a few passes over the whole image.

`reference.nn.pooling` lays out all windows, so it copies each pixel once for each window that contains it. Here the
maximum loops over the positions of the window, for all windows together; the sum adds the columns first, then the rows.
"""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from reference.arguments import Pair, accumulation_dtype


class _Window(NamedTuple):
    """The arguments of a pooling as pairs (vertical, horizontal), and the number of windows."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out_size: Pair

    def starts(self, device: torch.device) -> list[Int[Tensor, "windows"]]:
        """The row where each window starts and the column where each window starts, from −padding on."""
        return [
            step * torch.arange(n, dtype=torch.int32, device=device) - padding
            for step, n, padding in zip(self.stride, self.out_size, self.padding, strict=True)
        ]


def max_pool2d(
    input: Shaped[Tensor, "*batch height width"],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    output_size: Pair,
) -> tuple[Shaped[Tensor, "*batch out_height out_width"], Int[Tensor, "*batch out_height out_width"]]:
    """The fast form of `reference.nn.pooling.max_pool2d_definition`, with its arguments."""
    window = _Window(kernel_size, stride, padding, dilation, output_size)
    lowest = -math.inf if input.is_floating_point() else torch.iinfo(input.dtype).min
    padded = _pad(input, window, lowest)
    places = _places(padded.detach(), window, lowest)
    output = padded.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape)
    if padded.shape == input.shape:
        return output, places
    (top, left), width = padding, padded.shape[-1]
    return output, (places // width - top) * input.shape[-1] + places % width - left


def avg_pool2d(
    input: Shaped[Tensor, "*batch height width"],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Pair,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Shaped[Tensor, "*batch out_height out_width"]:
    """The fast form of `reference.nn.pooling.avg_pool2d_definition`, with its arguments."""
    window = _Window(kernel_size, stride, padding, (1, 1), output_size)
    total = _sums(_pad(input, window, 0), window)
    divisor = divisor_override
    if divisor is None:
        margins = padding if count_include_pad else (0, 0)
        counts = [
            (start + kernel).clamp(max=length + margin) - start.clamp(min=-margin)
            for start, kernel, length, margin in zip(
                window.starts(input.device), kernel_size, input.shape[-2:], margins, strict=True
            )
        ]
        divisor = counts[0][:, None] * counts[1]
    rounding = None if input.is_floating_point() else "trunc"
    return torch.div(total, divisor, rounding_mode=rounding).to(input.dtype)


def adaptive_avg_pool2d(
    input: Shaped[Tensor, "*batch height width"], output_size: Pair
) -> Shaped[Tensor, "*batch out_height out_width"]:
    """The fast form of `reference.nn.pooling.adaptive_avg_pool2d_definition`, with its arguments."""
    wide = input.to(accumulation_dtype(input.dtype))
    if output_size == (1, 1):  # faster than the general case, which reads the image twice
        return wide.mean((-2, -1), keepdim=True).to(input.dtype)
    return _adaptive_mean(_adaptive_mean(wide, -2, output_size[0]), -1, output_size[1]).to(input.dtype)


def _pad(input: Tensor, window: _Window, value: float | int) -> Tensor:
    """`input` surrounded by `value` up to the edges of the outermost windows."""
    (top, left), (height, width) = window.padding, input.shape[-2:]
    reach = [
        step * (n - 1) + dilation * (kernel - 1) + 1
        for step, n, dilation, kernel in zip(
            window.stride, window.out_size, window.dilation, window.kernel, strict=True
        )
    ]
    padded_size = (max(top + height, reach[0]), max(left + width, reach[1]))
    if padded_size == (height, width):
        return input
    padded = input.new_full((*input.shape[:-2], *padded_size), value)
    padded[..., top : top + height, left : left + width] = input
    return padded


def _places(
    padded: Tensor, window: _Window, lowest: float | int
) -> Int[Tensor, "*batch channels out_height out_width"]:
    """The position of each window's maximum, as row · width + column of the padded image."""
    width, (top, left) = padded.shape[-1], window.padding
    rows, columns = window.starts(padded.device)
    # A window without a value above −∞ points to its first pixel inside the image.
    first_row, first_column = (
        start + gap * ((gap - 1 - start) // gap).clamp(min=0)
        for start, gap in zip((rows, columns), window.dilation, strict=True)
    )
    places = (first_row[:, None] + top) * width + first_column + left
    places = places.expand(*padded.shape[:-2], *window.out_size)
    largest = torch.full_like(places, lowest, dtype=padded.dtype)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            down, right = i * window.dilation[0], j * window.dilation[1]
            candidate = padded[
                ...,
                down : down + window.stride[0] * (window.out_size[0] - 1) + 1 : window.stride[0],
                right : right + window.stride[1] * (window.out_size[1] - 1) + 1 : window.stride[1],
            ].contiguous()
            better = (candidate > largest) | (candidate != candidate)
            # Positions grow in reading order, so the position of a later candidate is larger.
            place = (rows[:, None] + top + down) * width + columns + left + right
            places = torch.maximum(places, better * place)
            largest = torch.maximum(largest, candidate)
    return places.long()


def _sums(padded: Tensor, window: _Window) -> Tensor:
    """The sum of each window: first down the columns, then along the rows."""
    total = padded.to(accumulation_dtype(padded.dtype))
    for dim, kernel, step, n in zip((-2, -1), window.kernel, window.stride, window.out_size, strict=True):
        if step == kernel:  # adjacent windows are a reshape; its gradient needs no sum
            total = total.narrow(dim, 0, n * kernel).unflatten(dim, (n, kernel)).sum(dim)
        else:
            reach = step * (n - 1) + 1
            rows = (total.narrow(dim, i, reach) for i in range(kernel))
            total = functools.reduce(
                torch.add, (row[..., ::step, :] if dim == -2 else row[..., ::step] for row in rows)
            )
    return total


def _adaptive_mean(input: Tensor, dim: int, n: int) -> Tensor:
    """The means of `n` windows along `dim`, -1 or -2; they are up to one pixel longer than length / n, rounded up."""
    length = input.shape[dim]
    if n > 0 and length % n == 0:  # windows of one length, next to each other
        return input.unflatten(dim, (n, length // n)).mean(dim)
    numbers = torch.arange(n, device=input.device)
    starts, ends = (numbers * length) // max(n, 1), -(-(numbers + 1) * length // max(n, 1))
    positions = starts[:, None] + torch.arange(-(-length // max(n, 1)) + 1, device=input.device)
    picked = input.index_select(dim, positions.flatten().clamp(max=length - 1)).unflatten(dim, positions.shape)
    across = [1] * (-1 - dim)  # the dimensions after `dim`
    total = picked.masked_fill((positions >= ends[:, None]).reshape(*positions.shape, *across), 0).sum(dim)
    return total / (ends - starts).reshape(n, *across)
