"""Chapter 10: pooling, a window that slides over the picture and leaves of what is under it the largest, or the mean.

Pooling keeps every channel for itself and has no parameters. By default the windows do not overlap: the stride is the
window's size.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from reference.nn.convolution import Pair, as_pair

Size = int | Sequence[int]
"""An integer for both directions, or a pair (vertical, horizontal)."""


def max_pool2d(
    input: Shaped[Tensor, "..."],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> (
    Shaped[Tensor, "*batch channels out_height out_width"]
    | tuple[Shaped[Tensor, "*batch channels out_height out_width"], Int[Tensor, "*batch channels out_height out_width"]]
):
    """The largest number in each window:

        output[…, y, x] = max_{i, j} input[…, y · stride + i · dilation − padding, x · stride + j · dilation − padding]

    Where several are equally large, the first in reading order is the maximum, and receives the gradient; where there
    are NaN, the last one. What lies outside the picture counts as −∞ and never wins.

    Args:
        input: pictures `[batch, channels, height, width]`, or one without the batch dimension.
        kernel_size: the window's size, an integer or a pair (vertical, horizontal), as are the next three.
        stride: by how many pixels the window moves; `None` is `kernel_size`.
        padding: how far windows may reach out of the picture on each side, at most half of `kernel_size`.
        dilation: the distance between neighbouring pixels of a window.
        ceil_mode: keep a last window that reaches out at the bottom or right (`pool2d_output_size`).
        return_indices: whether to return also where the maxima are.

    Returns:
        The maxima, `[batch, channels, out_height, out_width]`; with `return_indices` also their places as numbers into
        the flattened picture, row · width + column, int64, of the same shape.

    Raises:
        ValueError: a shape without pixels, or an argument outside its range.
        TypeError: an argument of the wrong type.
    """
    _check_images("max_pool2d", input)
    if input.dtype == torch.bool or input.is_complex():
        raise TypeError(f"max_pool2d: input must have an order, got {input.dtype}")
    if 0 in input.shape[-3:]:
        raise ValueError(f"max_pool2d: only the batch may be empty, got input of shape {tuple(input.shape)}")
    size = (input.shape[-2], input.shape[-1])
    window = _window("max_pool2d", size, kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -math.inf if input.is_floating_point() else torch.iinfo(input.dtype).min
    padded = _pad(input, window, lowest)
    places = _places(padded.detach(), window, lowest)
    output = padded.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape)
    if not return_indices:
        return output
    (top, left), width = window.padding, padded.shape[-1]
    return output, (places // width - top) * size[1] + places % width - left


def avg_pool2d(
    input: Shaped[Tensor, "..."],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Shaped[Tensor, "*batch channels out_height out_width"]:
    """The mean of each window:

        output[…, y, x] = Σ_{i, j} input[…, y · stride + i − padding, x · stride + j − padding] / divisor

    with zeros outside the picture.

    Args:
        input: pictures `[batch, channels, height, width]`, or one without the batch dimension; int64 is divided
            towards 0.
        kernel_size: the window's size, an integer or a pair (vertical, horizontal), as are the next two.
        stride: by how many pixels the window moves; `None` is `kernel_size`.
        padding: how many zeros surround the picture on each side, at most half of `kernel_size`.
        ceil_mode: keep a last window that reaches out at the bottom or right (`pool2d_output_size`).
        count_include_pad: whether zeros of the padding count in the divisor; what reaches out beyond it never does.
        divisor_override: divide by this instead.

    Returns:
        `[batch, channels, out_height, out_width]`.

    Raises:
        ValueError: a shape without pixels, or an argument outside its range.
        TypeError: an argument of the wrong type.
    """
    _check_images("avg_pool2d", input)
    if input.is_complex() or not (input.is_floating_point() or input.dtype == torch.int64):
        raise TypeError(f"avg_pool2d: input must be floating-point or int64, got {input.dtype}")
    if 0 in input.shape[-3:]:
        raise ValueError(f"avg_pool2d: only the batch may be empty, got input of shape {tuple(input.shape)}")
    size = (input.shape[-2], input.shape[-1])
    window = _window("avg_pool2d", size, kernel_size, stride, padding, 1, ceil_mode)
    total = _sums(_pad(input, window, 0), window)
    if divisor_override is None:
        margins = window.padding if count_include_pad else (0, 0)
        counts = [
            (start + kernel).clamp(max=length + margin) - start.clamp(min=-margin)
            for start, kernel, length, margin in zip(
                window.starts(input.device), window.kernel, size, margins, strict=True
            )
        ]
        divisor = counts[0][:, None] * counts[1]
    else:
        divisor = _check_divisor(divisor_override)
    rounding = None if input.is_floating_point() else "trunc"
    return torch.div(total, divisor, rounding_mode=rounding).to(input.dtype)


def adaptive_avg_pool2d(
    input: Shaped[Tensor, "..."], output_size: int | Sequence[int | None]
) -> Shaped[Tensor, "*batch channels out_height out_width"]:
    """The means of as many windows as are wanted: window y of n covers the rows floor(y · height / n) to
    ceil((y + 1) · height / n) − 1, and the columns likewise.

    Args:
        input: pictures `[batch, channels, height, width]`, or one without the batch dimension, floating-point.
        output_size: how many windows, an integer or a pair (vertical, horizontal); in a pair `None` is the picture's
            size.

    Returns:
        `[batch, channels, *output_size]`.

    Raises:
        ValueError: a picture without pixels, or a negative number of windows.
        TypeError: an argument of the wrong type.
    """
    _check_images("adaptive_avg_pool2d", input)
    if not input.is_floating_point():
        raise TypeError(f"adaptive_avg_pool2d: input must be floating-point, got {input.dtype}")
    if 0 in input.shape[-2:]:
        raise ValueError(f"adaptive_avg_pool2d: input of shape {tuple(input.shape)} has no pixels")
    wanted = (output_size, output_size) if isinstance(output_size, int) else output_size
    if not isinstance(wanted, Sequence):
        raise TypeError(f"adaptive_avg_pool2d: output_size must be an integer or a pair, got {output_size!r}")
    if len(wanted) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be an integer or a pair, got {output_size!r}")
    size = [length if n is None else n for n, length in zip(wanted, input.shape[-2:], strict=True)]
    height, width = as_pair("adaptive_avg_pool2d: output_size", size, at_least=0)
    wide = input.to(_accumulator(input.dtype))
    if (height, width) == (1, 1):  # what follows would do, but reads the picture twice
        return wide.mean((-2, -1), keepdim=True).to(input.dtype)
    return _adaptive_mean(_adaptive_mean(wide, -2, height), -1, width).to(input.dtype)


class MaxPool2d(nn.Module):
    """`max_pool2d` as a layer; note the order of its last two arguments.

    Args:
        kernel_size: see `max_pool2d`, as for all that follow.
        stride: `None` is `kernel_size`.
        padding: at most half of `kernel_size`.
        dilation: the distance between neighbouring pixels of a window.
        return_indices: whether to return also where the maxima are.
        ceil_mode: keep a last window that reaches out at the bottom or right.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."] | tuple[Tensor, Tensor]:
        """The maxima of `input`, `[batch, channels, height, width]` with or without the batch dimension."""
        return max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(nn.Module):
    """`avg_pool2d` as a layer.

    Args:
        kernel_size: see `avg_pool2d`, as for all that follow.
        stride: `None` is `kernel_size`.
        padding: at most half of `kernel_size`.
        ceil_mode: keep a last window that reaches out at the bottom or right.
        count_include_pad: whether zeros of the padding count in the divisor.
        divisor_override: divide by this instead.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "*batch channels out_height out_width"]:
        """The means of `input`, `[batch, channels, height, width]` with or without the batch dimension."""
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(nn.Module):
    """`adaptive_avg_pool2d` as a layer.

    Args:
        output_size: how many windows, an integer or a pair (vertical, horizontal); in a pair `None` is the picture's
            size.
    """

    def __init__(self, output_size: int | Sequence[int | None]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "*batch channels out_height out_width"]:
        """The means of `input`, `[batch, channels, height, width]` with or without the batch dimension."""
        return adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return f"output_size={self.output_size}"


def pool2d_output_size(
    input_size: Size,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Pair:
    """The height and width of a pooling's output, each

        floor((size + 2 · padding − dilation · (kernel_size − 1) − 1) / stride) + 1

    or with `ceil_mode` the same rounded up, less one if the last window would start beyond the picture and its left
    padding.

    Args:
        input_size: the picture's size; like the next four an integer or a pair (vertical, horizontal), in pixels.
        kernel_size: the window's size.
        stride: `None` is `kernel_size`.
        padding: at most half of `kernel_size`.
        dilation: the distance between neighbouring pixels of a window.
        ceil_mode: keep a last window that reaches out at the bottom or right.

    Returns:
        (out_height, out_width).

    Raises:
        ValueError: an argument outside its range, or no window fits.
        TypeError: an argument of the wrong type.
    """
    return _window("pool2d", input_size, kernel_size, stride, padding, dilation, ceil_mode).out_size


class _Window(NamedTuple):
    """A pooling's arguments as pairs (vertical, horizontal), and how many windows there are."""

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


def _window(
    name: str, input_size: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> _Window:
    """The arguments of the function `name`, checked; `pool2d_output_size` says the formula of the last field."""
    sizes = as_pair(f"{name}: input_size", input_size, at_least=0)
    kernels = as_pair(f"{name}: kernel_size", kernel_size, at_least=1)
    no_stride = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    strides = kernels if no_stride else as_pair(f"{name}: stride", stride, at_least=1)
    paddings = as_pair(f"{name}: padding", padding, at_least=0)
    if any(margin > kernel // 2 for margin, kernel in zip(paddings, kernels, strict=True)):
        raise ValueError(f"{name}: padding must be at most half of kernel_size={kernel_size}, got {padding}")
    dilations = as_pair(f"{name}: dilation", dilation, at_least=1)
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{name}: ceil_mode must be a bool, got {ceil_mode!r}")
    counts = []
    for size, kernel, step, margin, gap in zip(sizes, kernels, strides, paddings, dilations, strict=True):
        room = size + 2 * margin - gap * (kernel - 1) - 1
        count = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and (count - 1) * step >= size + margin:
            count -= 1
        if count < 1:
            raise ValueError(
                f"{name}: kernel_size={kernel_size} with dilation={dilation} covers more than the input of "
                f"{sizes[0]} × {sizes[1]} pixels with padding={padding}"
            )
        counts.append(count)
    return _Window(kernels, strides, paddings, dilations, (counts[0], counts[1]))


def _pad(input: Tensor, window: _Window, value: float | int) -> Tensor:
    """`input` surrounded by `value` as far as the windows reach."""
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
    """Where each window's maximum is, as row · width + column of the padded picture."""
    width, (top, left) = padded.shape[-1], window.padding
    rows, columns = window.starts(padded.device)
    # A window that holds nothing above −∞ points to its first pixel inside the picture.
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
            # Places grow in reading order, so the better candidate's place is also the larger one.
            place = (rows[:, None] + top + down) * width + columns + left + right
            places = torch.maximum(places, better * place)
            largest = torch.maximum(largest, candidate)
    return places.long()


def _sums(padded: Tensor, window: _Window) -> Tensor:
    """The sum of each window: first down the columns, then along the rows."""
    total = padded.to(_accumulator(padded.dtype))
    for dim, kernel, step, n in zip((-2, -1), window.kernel, window.stride, window.out_size, strict=True):
        if step == kernel:  # windows side by side are a reshape, whose gradient has nothing to add up
            total = total.narrow(dim, 0, n * kernel).unflatten(dim, (n, kernel)).sum(dim)
        else:
            total = total.unfold(dim, kernel, step).sum(-1)
    return total


def _adaptive_mean(input: Tensor, dim: int, n: int) -> Tensor:
    """The means of `n` windows along `dim`, -1 or -2; they are up to one pixel longer than length / n, rounded up."""
    length = input.shape[dim]
    if n > 0 and length % n == 0:  # windows of one length, side by side
        return input.unflatten(dim, (n, length // n)).mean(dim)
    numbers = torch.arange(n, device=input.device)
    starts, ends = (numbers * length) // max(n, 1), -(-(numbers + 1) * length // max(n, 1))
    positions = starts[:, None] + torch.arange(-(-length // max(n, 1)) + 1, device=input.device)
    picked = input.index_select(dim, positions.flatten().clamp(max=length - 1)).unflatten(dim, positions.shape)
    across = [1] * (-1 - dim)  # the dimensions after `dim`
    total = picked.masked_fill((positions >= ends[:, None]).reshape(*positions.shape, *across), 0).sum(dim)
    return total / (ends - starts).reshape(n, *across)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums of `dtype` are formed."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _check_divisor(divisor: Any) -> int:
    if not isinstance(divisor, int) or isinstance(divisor, bool):
        raise TypeError(f"avg_pool2d: divisor_override must be an integer, got {divisor!r}")
    if divisor == 0:
        raise ValueError("avg_pool2d: divisor_override must not be 0")
    return divisor


def _check_images(name: str, input: Tensor) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a tensor, got {type(input).__name__}")
    if input.dim() not in (3, 4):
        raise ValueError(
            f"{name}: input must be [batch, channels, height, width] or [channels, height, width], "
            f"got the shape {tuple(input.shape)}"
        )
