"""Chapter 10: pooling, which replaces each window of the image by its maximum or mean.

Pooling keeps the channels apart and has no parameters. By default the windows do not overlap: the stride is the size
of the window. Window (y, x) covers the pixels

    (y · stride + i · dilation − padding, x · stride + j · dilation − padding),  0 ≤ i, j < kernel size

    max_pool2d:           output[…, y, x] = max_{i, j} input[…, pixel]
    avg_pool2d:           output[…, y, x] = Σ_{i, j} input[…, pixel] / divisor      (dilation 1; 0 outside the image)
    adaptive_avg_pool2d:  output[…, y, x] = the mean over rows ⌊y · height / n⌋ to ⌈(y + 1) · height / n⌉ − 1, columns
                          likewise, for n rows of windows
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from reference.arguments import (
    Pair,
    accumulation_dtype,
    check_flag,
    check_floating,
    check_integer,
    check_layout,
    check_pair,
    check_real,
    check_tensor,
)
from reference.fast.pooling import adaptive_avg_pool2d as fast_adaptive_avg_pool2d
from reference.fast.pooling import avg_pool2d as fast_avg_pool2d
from reference.fast.pooling import max_pool2d as fast_max_pool2d
from reference.nn.convolution import IMAGES

Size = int | Sequence[int]
"""An integer for both directions, or a pair (vertical, horizontal)."""


def max_pool2d_definition(
    input: Shaped[Tensor, "*batch height width"],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    output_size: Pair,
) -> tuple[Shaped[Tensor, "*batch out_height out_width"], Int[Tensor, "*batch out_height out_width"]]:
    """The maxima and their positions, row · width + column.

    Among equal maxima the position is that of the first in reading order; among several NaN, that of the last.
    """
    wide = input.to(accumulation_dtype(input.dtype)) if input.is_floating_point() else input  # for the gradient
    windows, rows, columns = _windows(wide, kernel_size, stride, padding, dilation, output_size)
    inside = _inside(rows, columns, input.shape[-2:])
    lowest = -math.inf if input.is_floating_point() else torch.iinfo(input.dtype).min
    windows = windows.masked_fill(~inside, lowest).flatten(-2)

    largest = windows.amax(-1, keepdim=True)
    wins = inside.flatten(-2) & ((windows == largest) | (windows != windows))  # only NaN differs from itself
    first = wins.int().argmax(-1, keepdim=True)
    last = windows.shape[-1] - 1 - wins.int().flip(-1).argmax(-1, keepdim=True)
    winner = torch.where(largest == largest, first, last)
    places = (rows * input.shape[-1] + columns).flatten(-2).expand(windows.shape)
    return windows.gather(-1, winner).squeeze(-1).to(input.dtype), places.gather(-1, winner).squeeze(-1)


def avg_pool2d_definition(
    input: Shaped[Tensor, "*batch height width"],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Pair,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Shaped[Tensor, "*batch out_height out_width"]:
    """The means. The divisor is the number of pixels of the window, including padding if `count_include_pad`."""
    wide = input.to(accumulation_dtype(input.dtype))
    windows, rows, columns = _windows(wide, kernel_size, stride, padding, (1, 1), output_size)
    inside = _inside(rows, columns, input.shape[-2:])
    counted = _inside(rows, columns, input.shape[-2:], padding if count_include_pad else (0, 0))
    total = windows.masked_fill(~inside, 0).sum((-2, -1))
    divisor = counted.sum((-2, -1)) if divisor_override is None else divisor_override
    return torch.div(total, divisor, rounding_mode=None if input.is_floating_point() else "trunc").to(input.dtype)


def adaptive_avg_pool2d_definition(
    input: Shaped[Tensor, "*batch height width"], output_size: Pair
) -> Shaped[Tensor, "*batch out_height out_width"]:
    """The means of `output_size` windows, which divide the image evenly."""
    inside = []
    for n, length in zip(output_size, input.shape[-2:], strict=True):
        window, pixel = torch.arange(n, device=input.device)[:, None], torch.arange(length, device=input.device)
        inside.append((pixel >= window * length // max(n, 1)) & (pixel < -(-(window + 1) * length // max(n, 1))))
    covered = inside[0][:, None, :, None] & inside[1][:, None, :]  # [y, x, row, column]
    pixels = input.to(accumulation_dtype(input.dtype))[..., None, None, :, :].masked_fill(~covered, 0)
    return (pixels.sum((-2, -1)) / covered.sum((-2, -1))).to(input.dtype)


def _windows(
    input: Shaped[Tensor, "*batch height width"],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    output_size: Pair,
) -> tuple[Shaped[Tensor, "*batch y x i j"], Int[Tensor, "y 1 i 1"], Int[Tensor, "x 1 j"]]:
    """The pixels of the windows, their rows and their columns; a pixel outside the image has an arbitrary value."""

    def positions(dim: int) -> Int[Tensor, "windows kernel"]:
        window = torch.arange(output_size[dim], device=input.device)[:, None]
        return window * stride[dim] + torch.arange(kernel_size[dim], device=input.device) * dilation[dim] - padding[dim]

    rows, columns = positions(0)[:, None, :, None], positions(1)[:, None, :]
    return input[..., rows.clamp(0, input.shape[-2] - 1), columns.clamp(0, input.shape[-1] - 1)], rows, columns


def _inside(
    rows: Int[Tensor, "y 1 i 1"], columns: Int[Tensor, "x 1 j"], size: Sequence[int], margin: Pair = (0, 0)
) -> Bool[Tensor, "y x i j"]:
    """Whether the positions are in an image of `size`, or in a margin around it."""
    (height, width), (vertical, horizontal) = size, margin
    in_rows = (rows >= -vertical) & (rows < height + vertical)
    return in_rows & (columns >= -horizontal) & (columns < width + horizontal)


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

    Among equal maxima, the first in reading order is chosen and receives the gradient; among several NaN, the last one.
    Positions outside the image count as −∞ and are never chosen.

    Args:
        input: images `[batch, channels, height, width]`, or one without the batch dimension.
        kernel_size: the window's size, an integer or a pair (vertical, horizontal), as are the next three.
        stride: the step of the window, in pixels; `None` is `kernel_size`.
        padding: the padding on each side, in pixels, at most half of `kernel_size`.
        dilation: the distance between neighbouring pixels of a window.
        ceil_mode: keep a last window that exceeds the image at the bottom or right (`pool2d_output_size`).
        return_indices: whether to return also the positions of the maxima.

    Returns:
        The maxima, `[batch, channels, out_height, out_width]`; with `return_indices` also their positions as indices
        into the flattened image, row · width + column, int64, of the same shape.

    Raises:
        ValueError: a shape without pixels, or an argument outside its range.
        TypeError: an argument of the wrong type.
    """
    return max_pool2d_by(fast_max_pool2d, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


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

    with zeros outside the image.

    Args:
        input: images `[batch, channels, height, width]`, or one without the batch dimension; for int64 the quotient is
            rounded towards 0.
        kernel_size: the window's size, an integer or a pair (vertical, horizontal), as are the next two.
        stride: the step of the window, in pixels; `None` is `kernel_size`.
        padding: the number of zeros around the image on each side, at most half of `kernel_size`.
        ceil_mode: keep a last window that exceeds the image at the bottom or right (`pool2d_output_size`).
        count_include_pad: whether zeros of the padding count in the divisor; positions beyond the padding never do.
        divisor_override: divide by this instead.

    Returns:
        `[batch, channels, out_height, out_width]`.

    Raises:
        ValueError: a shape without pixels, or an argument outside its range.
        TypeError: an argument of the wrong type.
    """
    return avg_pool2d_by(
        fast_avg_pool2d, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_avg_pool2d(
    input: Shaped[Tensor, "..."], output_size: int | Sequence[int | None]
) -> Shaped[Tensor, "*batch channels out_height out_width"]:
    """The means of `output_size` windows: window y of n covers the rows floor(y · height / n) to
    ceil((y + 1) · height / n) − 1, and the columns likewise.

    Args:
        input: images `[batch, channels, height, width]`, or one without the batch dimension, floating-point.
        output_size: the number of windows, an integer or a pair (vertical, horizontal); in a pair `None` is the image's
            size.

    Returns:
        `[batch, channels, *output_size]`.

    Raises:
        ValueError: an image without pixels, or a negative number of windows.
        TypeError: an argument of the wrong type.
    """
    return adaptive_avg_pool2d_by(fast_adaptive_avg_pool2d, input, output_size)


def max_pool2d_by(
    form: Callable[..., tuple[Tensor, Tensor]],
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    return_indices: bool,
) -> Any:
    """Check the arguments of `max_pool2d` and compute it by `form`, the definition or the fast one."""
    _check_images("max_pool2d", check_real("max_pool2d: input", input))
    window = _window("max_pool2d", input.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    maxima, places = form(input, *window)
    return (maxima, places) if return_indices else maxima


def avg_pool2d_by(
    form: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: bool,
    divisor_override: Any,
) -> Tensor:
    """Check the arguments of `avg_pool2d` and compute it by `form`, the definition or the fast one."""
    check_tensor("avg_pool2d: input", input)
    if not (input.is_floating_point() or input.dtype == torch.int64):
        raise TypeError(f"avg_pool2d: input must be floating-point or int64, got {input.dtype}")
    _check_images("avg_pool2d", input)
    sizes = _window("avg_pool2d", input.shape[-2:], kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None and check_integer("avg_pool2d: divisor_override", divisor_override) == 0:
        raise ValueError("avg_pool2d: divisor_override must not be 0")
    kernel, step, margin, _, output_size = sizes
    return form(input, kernel, step, margin, output_size, count_include_pad, divisor_override)


def adaptive_avg_pool2d_by(form: Callable[..., Tensor], input: Tensor, output_size: Any) -> Tensor:
    """Check the arguments of `adaptive_avg_pool2d` and compute it by `form`, the definition or the fast one."""
    check_layout("adaptive_avg_pool2d: input", check_floating("adaptive_avg_pool2d: input", input), *IMAGES)
    if 0 in input.shape[-2:]:
        raise ValueError(f"adaptive_avg_pool2d: input must have pixels, got the shape {tuple(input.shape)}")
    wanted = (output_size, output_size) if isinstance(output_size, int) else output_size
    if not isinstance(wanted, Sequence):
        raise TypeError(f"adaptive_avg_pool2d: output_size must be an integer or a pair, got {output_size!r}")
    if len(wanted) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be an integer or a pair, got {output_size!r}")
    size = [length if n is None else n for n, length in zip(wanted, input.shape[-2:], strict=True)]
    return form(input, check_pair("adaptive_avg_pool2d: output_size", size, at_least=0))


class MaxPool2d(nn.Module):
    """`max_pool2d` as a layer; note the order of its last two arguments.

    Args:
        kernel_size: see `max_pool2d`, as for all arguments that follow.
        stride: `None` is `kernel_size`.
        padding: at most half of `kernel_size`.
        dilation: the distance between neighbouring pixels of a window.
        return_indices: whether to return also the positions of the maxima.
        ceil_mode: keep a last window that exceeds the image at the bottom or right.
    """

    _max_pool2d = staticmethod(max_pool2d)

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
        return self._max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(nn.Module):
    """`avg_pool2d` as a layer.

    Args:
        kernel_size: see `avg_pool2d`, as for all arguments that follow.
        stride: `None` is `kernel_size`.
        padding: at most half of `kernel_size`.
        ceil_mode: keep a last window that exceeds the image at the bottom or right.
        count_include_pad: whether zeros of the padding count in the divisor.
        divisor_override: divide by this instead.
    """

    _avg_pool2d = staticmethod(avg_pool2d)

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
        return self._avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(nn.Module):
    """`adaptive_avg_pool2d` as a layer.

    Args:
        output_size: the number of windows, an integer or a pair (vertical, horizontal); in a pair `None` is the image's
            size.
    """

    _adaptive_avg_pool2d = staticmethod(adaptive_avg_pool2d)

    def __init__(self, output_size: int | Sequence[int | None]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "*batch channels out_height out_width"]:
        """The means of `input`, `[batch, channels, height, width]` with or without the batch dimension."""
        return self._adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
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

    or with `ceil_mode` the same rounded up, minus one if the last window would start beyond the image and its left
    padding.

    Args:
        input_size: the image's size; like the next four an integer or a pair (vertical, horizontal), in pixels.
        kernel_size: the window's size.
        stride: `None` is `kernel_size`.
        padding: at most half of `kernel_size`.
        dilation: the distance between neighbouring pixels of a window.
        ceil_mode: keep a last window that exceeds the image at the bottom or right.

    Returns:
        (out_height, out_width).

    Raises:
        ValueError: an argument outside its range, or no window fits.
        TypeError: an argument of the wrong type.
    """
    return _window("pool2d", input_size, kernel_size, stride, padding, dilation, ceil_mode)[-1]


def _window(
    name: str, input_size: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> tuple[Pair, Pair, Pair, Pair, Pair]:
    """The arguments of the function `name`, checked: kernel size, stride, padding, dilation, and the output size."""
    sizes = check_pair(f"{name}: input_size", input_size, at_least=0)
    kernels = check_pair(f"{name}: kernel_size", kernel_size, at_least=1)
    no_stride = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    strides = kernels if no_stride else check_pair(f"{name}: stride", stride, at_least=1)
    paddings = check_pair(f"{name}: padding", padding, at_least=0)
    if any(margin > kernel // 2 for margin, kernel in zip(paddings, kernels, strict=True)):
        raise ValueError(f"{name}: padding must be at most half of kernel_size={kernel_size}, got {padding}")
    dilations = check_pair(f"{name}: dilation", dilation, at_least=1)
    check_flag(f"{name}: ceil_mode", ceil_mode)
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
    return kernels, strides, paddings, dilations, (counts[0], counts[1])


def _check_images(name: str, input: Tensor) -> None:
    check_layout(f"{name}: input", input, *IMAGES)
    if 0 in input.shape[-3:]:
        raise ValueError(f"{name}: only the batch may be empty, got input of shape {tuple(input.shape)}")
