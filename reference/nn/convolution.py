"""Chapters 08 and 09: two-dimensional convolution.

A small kernel slides over the picture; each output pixel is the sum of the products of the kernel and the pixels
under it:

    output[n, o, y, x] = bias[o] + Σ_{c, i, j} weight[o, c, i, j] · input[n, c, y · stride + i · dilation − padding, …]

(pixels outside the picture are 0; deep-learning libraries do not flip the kernel, so this is a cross-correlation). It
is computed as matrix products: `_Windows` lays the pixels under one row of the kernel next to each other, so that the
sum over j and c is a matrix product and the sum over i adds up `kernel height` of them. (Where a row has few products,
as over the three colours of a picture, it lays out all rows, and there is one product.) It does so for a few pictures
at a time: beside what it returns, the convolution of any number of pictures needs room for a few times `WORKSPACE`
numbers (or for one picture, if that needs more), and for the kernels' matrices of those few pictures.

With G the upstream gradient, Σ G · output is linear in G, in input and in weight. The output, the input's gradient
and the weight's gradient are what is left of that one sum when one of the three is taken out; so each of the three
functions below has the other two as its derivatives, and all derivatives of any order exist.
"""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from reference.nn.autograd import Function
from reference.nn.initialization import fan_in, kaiming_uniform_, uniform_

Pair = tuple[int, int]
"""(vertical, horizontal)"""

WORKSPACE = 2**19
"""How many numbers the laid-out windows or outputs of the pictures computed at a time may have (2 MiB in float32)."""

WIDE = 256
"""From how many pixels on pictures are multiplied one by one: then nothing needs to be put side by side, or back."""

DEEP = 16
"""From how many products on a single row of the kernel makes a matrix product."""


def conv2d(
    input: Shaped[Tensor, "..."],
    weight: Shaped[Tensor, "..."],
    bias: Shaped[Tensor, "..."] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Shaped[Tensor, "*batch out_channels out_height out_width"]:
    """Slide the kernels `weight` over `input` (module docstring: the formula).

    Args:
        input: pictures `[batch, in_channels, height, width]`, or one without the batch dimension.
        weight: kernels `[out_channels, in_channels / groups, kernel height, kernel width]`, of the dtype of `input`.
        bias: what is added to each output channel, `[out_channels]`.
        stride: by how many pixels the kernel moves; like the next two an integer or a pair (vertical, horizontal).
        padding: how many zeros surround the picture on each side, or "valid" (none), or "same" (as many as keep the
            picture's size, one more at the bottom and right where the number is odd; only with stride 1).
        dilation: the distance between neighbouring kernel elements, in pixels.
        groups: into how many blocks the channels are split; block g of the outputs sees only block g of the inputs.

    Returns:
        `[batch, out_channels, out_height, out_width]` (contiguous; `conv2d_output_size` says the size), without the
        batch dimension if `input` has none. Half precision is added up in float32 and rounded once.

    Raises:
        ValueError: sizes that do not fit each other, or an argument outside its range.
        TypeError: an argument of the wrong type, or tensors of different dtypes.
    """
    _check_tensors(input, weight, bias, groups)
    height, width, *kernel_size = map(int, (*input.shape[-2:], *weight.shape[2:]))  # a tracer's sizes are tensors
    output_size = conv2d_output_size((height, width), kernel_size, stride, padding, dilation)
    if 0 in (height, width) and 0 not in input.shape[:-2]:
        raise ValueError(f"conv2d: input of shape {tuple(input.shape)} has no pixels, but pictures and channels")
    images = input if input.dim() == 4 else input[None]
    windows = _Windows(
        in_channels=int(images.shape[1]),
        in_size=(height, width),
        out_channels=int(weight.shape[0]),
        out_size=output_size,
        kernel_size=(kernel_size[0], kernel_size[1]),
        stride=as_pair("conv2d: stride", stride),
        padding=_sides(padding, kernel_size, dilation),
        dilation=as_pair("conv2d: dilation", dilation),
        groups=groups,
        rows=kernel_size[0] if images.shape[1] // groups * kernel_size[1] < DEEP else 1,
    )
    output: Tensor = _Output.apply(images, weight, windows)  # pyright: ignore[reportAssignmentType]
    if bias is not None:
        output += bias[:, None, None]
    return output if input.dim() == 4 else output[0]


class Conv2d(nn.Module):
    """A convolution layer with its own kernels: `conv2d(input, self.weight, self.bias, …)`.

    Weight and bias start from U(-1/sqrt(n), 1/sqrt(n)), n = in_channels / groups · kernel height · kernel width.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: an integer or a pair (vertical, horizontal), as are the next three.
        stride: see `conv2d`.
        padding: see `conv2d`.
        dilation: see `conv2d`.
        groups: see `conv2d`; both numbers of channels must be divisible by it.
        bias: whether the layer has a bias.
        padding_mode: what surrounds the picture: "zeros"; "reflect" (mirrored at the border pixel); "replicate" (the
            border pixel again and again); "circular" (the opposite side).
        device: where the parameters are.
        dtype: their type.

    Raises:
        ValueError: an argument outside its range.
        TypeError: an argument of the wrong type.
    """

    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"]
    bias: Float[Tensor, "out_channels"] | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups <= 0:
            raise ValueError(f"Conv2d: groups must be positive, got {groups}")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 0 or channels % groups:
                raise ValueError(f"Conv2d: {name} must be a multiple of groups={groups}, not negative, got {channels}")
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(
                f'Conv2d: padding_mode must be "zeros", "reflect", "replicate" or "circular", got {padding_mode!r}'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _repeat(kernel_size)
        self.stride = _repeat(stride)
        self.padding = padding if isinstance(padding, str) else _repeat(padding)
        self.dilation = _repeat(dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        if isinstance(padding, str):
            _check_named_padding("Conv2d", padding, self.stride)
        for size in self.kernel_size:
            _check_integer("Conv2d: kernel_size", size, at_least=0)
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size, device=device, dtype=dtype)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters, the weight first."""
        # The numbers fall into their places in the same order however the weight lies in memory.
        drawn = kaiming_uniform_(torch.empty_like(self.weight, memory_format=torch.contiguous_format), a=math.sqrt(5))
        with torch.no_grad():
            self.weight.copy_(drawn)
        if self.bias is not None:
            inputs = fan_in(self.weight)
            uniform_(self.bias, 1 / math.sqrt(inputs) if inputs else 0.0)

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "*batch out_channels out_height out_width"]:
        """The convolution of `input`, `[batch, in_channels, height, width]` with or without the batch dimension."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = _pad(input, _sides(padding, self.kernel_size, self.dilation), self.padding_mode)
            padding = 0
        return conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer: what differs from the default."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding != (0,) * len(self.padding):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * len(self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


def conv2d_output_size(
    input_size: int | Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
) -> Pair:
    """The height and width of a convolution's output, each

        floor((size + 2 · padding − dilation · (kernel_size − 1) − 1) / stride) + 1

    Args:
        input_size: the picture's size; like all that follow an integer or a pair (vertical, horizontal), in pixels.
        kernel_size: the kernel's size.
        stride: see `conv2d`.
        padding: see `conv2d`.
        dilation: see `conv2d`.

    Returns:
        (out_height, out_width).

    Raises:
        ValueError: an argument outside its range, or a kernel that is larger than the padded picture.
        TypeError: an argument of the wrong type.
    """
    sizes = as_pair("conv2d: input_size", input_size, at_least=0)
    kernels = as_pair("conv2d: kernel_size", kernel_size, at_least=1)
    strides = as_pair("conv2d: stride", stride, at_least=1)
    dilations = as_pair("conv2d: dilation", dilation, at_least=1)
    if isinstance(padding, str):
        _check_named_padding("conv2d", padding, strides)
    else:
        as_pair("conv2d: padding", padding, at_least=0)
    padded = [size + sum(sides) for size, sides in zip(sizes, _sides(padding, kernels, dilations), strict=True)]
    extents = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(kernels, dilations, strict=True)]
    if any(extent > size for extent, size in zip(extents, padded, strict=True)):
        raise ValueError(
            f"conv2d: the kernel covers {extents[0]} × {extents[1]} pixels, but the padded input has only "
            f"{padded[0]} × {padded[1]}"
        )
    height, width = ((size - extent) // step + 1 for size, extent, step in zip(padded, extents, strides, strict=True))
    return height, width


def same_padding(kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1) -> tuple[Pair, Pair]:
    """The padding that keeps a picture's size at stride 1: dilation · (kernel_size − 1) zeros in all, halved.

    An odd kernel gets the same number on both sides, (kernel_size − 1) / 2 (2 for a 5 × 5 kernel); where the number of
    zeros is odd, the bottom and the right get one more.

    Args:
        kernel_size: an integer or a pair (vertical, horizontal).
        dilation: the same.

    Returns:
        ((top, bottom), (left, right)).

    Raises:
        ValueError: an argument is smaller than 1.
        TypeError: an argument is not an integer.
    """
    kernels = as_pair("same_padding: kernel_size", kernel_size, at_least=1)
    dilations = as_pair("same_padding: dilation", dilation, at_least=1)
    vertical, horizontal = (step * (kernel - 1) for kernel, step in zip(kernels, dilations, strict=True))
    return (vertical // 2, vertical - vertical // 2), (horizontal // 2, horizontal - horizontal // 2)


class _Windows(NamedTuple):
    """Where a convolution's windows lie, and how pictures, windows, outputs and kernels become matrices.

    The layouts, for n pictures and c input or o output channels in each of the groups. Large pictures have matrices of
    their own: they are n lanes of m = 1 picture; small ones stand side by side in one lane of m = n pictures.
        columns: `[lanes · groups, c · rows · kernel_width, stride, height / stride, m, out_width]`, for each row y of
            the padded pictures the pixels that lie under `rows` rows of the kernel, at `[…, y % stride, y // stride]`:
            so what lies under the kernel's block i of `rows` rows, for all windows at once, is one block.
        block: `[lanes · groups, c · rows · kernel_width, out_height · m · out_width]`, a view of the columns.
        matrices: `[kernel_height / rows, groups, o, c · rows · kernel_width]`, the kernels, block by block.
        pixels: `[lanes · groups, o, out_height · m · out_width]`, the output.
    """

    in_channels: int
    in_size: Pair
    out_channels: int
    out_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    rows: int
    """How many rows of the kernel are laid out together: 1 or all. Only then do the columns hold each pixel once for
    each of its rows, but a matrix product over few channels of one row would be too short to be fast."""

    @property
    def channels(self) -> Pair:
        """c and o: input and output channels of one group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    @property
    def depth(self) -> int:
        """How many products a matrix product adds up."""
        return self.channels[0] * self.rows * self.kernel_size[1]

    @property
    def steps(self) -> Pair:
        """By how many rows of the padded picture the columns' rows are apart, and in how many phases they stand."""
        return (1, self.stride[0]) if self.rows == 1 else (self.stride[0], 1)

    def lanes(self, n: int) -> int:
        """How many lanes `n` pictures have."""
        return n if math.prod(self.out_size) >= WIDE else 1

    def padded_shape(self, n: int) -> tuple[int, ...]:
        """The shape of `n` padded pictures, `[lanes · groups, c, m, height, width]`, the height whole phases."""
        (top, bottom), (left, right) = self.padding
        lanes, phases = self.lanes(n), self.steps[1]
        height = -(-(top + self.in_size[0] + bottom) // phases) * phases
        return lanes * self.groups, self.channels[0], n // lanes, height, left + self.in_size[1] + right

    def columns_shape(self, n: int) -> tuple[int, ...]:
        """The shape of the columns of `n` pictures."""
        blocks, _, m, height, _ = self.padded_shape(n)
        phases = self.steps[1]
        heights = height // phases if self.rows == 1 else self.out_size[0]
        return blocks, self.depth, phases, heights, m, self.out_size[1]

    def batches(self, n: int) -> Iterator[slice]:
        """Cut `n` pictures into batches whose columns and pixels fit into the workspace."""
        numbers = max(math.prod(self.columns_shape(1)), self.out_channels * math.prod(self.out_size))
        size = max(1, WORKSPACE // max(1, numbers))
        return (slice(start, min(start + size, n)) for start in range(0, n, size))

    def columns(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Lay out the windows of `images`, `[n, in_channels, height, width]`, as columns."""
        padded = images.new_zeros(self.padded_shape(len(images)), dtype=dtype)
        self._inside(padded).copy_(self._split(images))
        (step, phases), gaps = self.steps, self.dilation
        windows = padded.unfold(4, gaps[1] * (self.kernel_size[1] - 1) + 1, self.stride[1])[..., :: gaps[1]]
        windows = windows.unfold(3, gaps[0] * (self.rows - 1) + 1, step)[..., :: gaps[0]]
        windows = windows.unflatten(3, (windows.shape[3] // phases, phases))
        return windows.permute(0, 1, 7, 6, 4, 3, 2, 5).flatten(1, 3)

    def images(self, columns: Tensor) -> Tensor:
        """The transpose of `columns` with single rows: add up, for each pixel, what stands at its places."""
        channels, (_, width), (_, gap) = self.channels[0], self.kernel_size, self.dilation
        windows = columns.unflatten(1, (channels, width)).permute(0, 1, 2, 5, 4, 3, 6)
        n = len(columns) // self.groups * columns.shape[4]
        padded = columns.new_zeros(self.padded_shape(n))
        rows = padded.unflatten(3, windows.shape[4:6])
        for j in range(width):
            start, step = j * gap, self.stride[1]
            rows[..., start : start + step * (self.out_size[1] - 1) + 1 : step] += windows[:, :, j]
        return self._merge(self._inside(padded))

    def block(self, columns: Tensor, i: int) -> Tensor:
        """The pixels under the kernel's block `i` of rows."""
        first, phase = divmod(i * self.dilation[0], self.stride[0])
        return columns[:, :, phase, first : first + self.out_size[0]].flatten(2)

    def pixels(self, output: Tensor, dtype: torch.dtype) -> Tensor:
        """Lay out `output`, `[n, out_channels, out_height, out_width]`, as pixels."""
        return self._split(output).transpose(2, 3).to(dtype).flatten(2)

    def output(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`."""
        height, width = self.out_size
        return self._merge(pixels.unflatten(2, (height, -1, width)).transpose(2, 3))

    def matrices(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Lay out the kernels as matrices."""
        blocks = weight.to(dtype).unflatten(2, (-1, self.rows)).unflatten(0, (self.groups, -1))
        return blocks.permute(3, 0, 1, 2, 4, 5).flatten(3)

    def weight(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        blocks = matrices.unflatten(3, (self.channels[0], self.rows, self.kernel_size[1]))
        return blocks.permute(1, 2, 3, 0, 4, 5).flatten(3, 4).flatten(0, 1)

    def in_lanes(self, matrices: Tensor, n: int) -> Tensor:
        """The matrices for each lane of `n` pictures, `[kernel_height / rows, lanes · groups, o, depth]`."""
        return matrices[:, None].expand(-1, self.lanes(n), -1, -1, -1).flatten(1, 2)

    def _split(self, images: Tensor) -> Tensor:
        """`[n, channels, height, width]` as `[lanes · groups, channels / groups, m, height, width]`, a view."""
        lanes = self.lanes(len(images))
        split = images.unflatten(1, (self.groups, -1)).unflatten(0, (lanes, len(images) // lanes))
        return split.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)

    def _merge(self, images: Tensor) -> Tensor:
        """The inverse of `_split`."""
        return images.unflatten(0, (-1, self.groups)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 2)

    def _inside(self, padded: Tensor) -> Tensor:
        """The part of padded pictures that is the pictures themselves."""
        (top, _), (left, _) = self.padding
        return padded[..., top : top + self.in_size[0], left : left + self.in_size[1]]


class _Output(Function):
    """The output from input and weight: Σ_i matrix_i · block_i."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, windows: _Windows) -> Tensor:
        output = input.new_empty(len(input), windows.out_channels, *windows.out_size)
        dtype = _accumulator(input.dtype)
        kernels = windows.matrices(weight, dtype)
        for batch in windows.batches(len(input)):
            columns = windows.columns(input[batch], dtype)
            matrices = windows.in_lanes(kernels, len(input[batch]))
            pixels = matrices[0] @ windows.block(columns, 0)
            for i in range(1, len(matrices)):
                pixels.baddbmm_(matrices[i], windows.block(columns, i))
            output[batch] = windows.output(pixels)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.windows = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(*grads, weight.conj(), ctx.windows) if wants_input else None,
            _WeightGradient.apply(input.conj(), *grads, ctx.windows) if wants_weight else None,
            None,
        )


class _InputGradient(Function):
    """The input's gradient from the output's gradient and weight: block_i += matrix_iᵀ · pixels."""

    @staticmethod
    def forward(output_grad: Tensor, weight: Tensor, windows: _Windows) -> Tensor:
        windows = windows._replace(rows=1)
        input_grad = output_grad.new_empty(len(output_grad), windows.in_channels, *windows.in_size)
        dtype = _accumulator(output_grad.dtype)
        kernels = windows.matrices(weight, dtype)
        for batch in windows.batches(len(output_grad)):
            pixels = windows.pixels(output_grad[batch], dtype)
            columns = pixels.new_zeros(windows.columns_shape(len(output_grad[batch])))
            for i, matrices in enumerate(windows.in_lanes(kernels, len(output_grad[batch]))):
                windows.block(columns, i).baddbmm_(matrices.mT, pixels)
            input_grad[batch] = windows.images(columns)
        return input_grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.windows = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        output_grad, weight = ctx.saved_tensors
        wants_output_grad, wants_weight, _ = ctx.needs_input_grad
        return (
            _Output.apply(*grads, weight.conj(), ctx.windows) if wants_output_grad else None,
            _WeightGradient.apply(*grads, output_grad.conj(), ctx.windows) if wants_weight else None,
            None,
        )


class _WeightGradient(Function):
    """The weight's gradient from input and the output's gradient: matrix_i += pixels · block_iᵀ."""

    @staticmethod
    def forward(input: Tensor, output_grad: Tensor, windows: _Windows) -> Tensor:
        dtype = _accumulator(input.dtype)
        blocks, groups, (_, out_channels) = windows.kernel_size[0] // windows.rows, windows.groups, windows.channels
        first = next(windows.batches(len(input)), slice(0, 1))  # no batch has more lanes
        lanes = windows.lanes(first.stop)
        matrices = input.new_zeros(blocks, lanes * groups, out_channels, windows.depth, dtype=dtype)
        for batch in windows.batches(len(input)):
            columns, pixels = windows.columns(input[batch], dtype), windows.pixels(output_grad[batch], dtype)
            for i in range(blocks):
                matrices[i, : len(pixels)].baddbmm_(pixels, windows.block(columns, i).mT)
        return windows.weight(matrices.unflatten(1, (lanes, groups)).sum(1, dtype=dtype)).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.windows = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, output_grad = ctx.saved_tensors
        wants_input, wants_output_grad, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(output_grad.conj(), *grads, ctx.windows) if wants_input else None,
            _Output.apply(input.conj(), *grads, ctx.windows) if wants_output_grad else None,
            None,
        )


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which long sums of `dtype` are formed."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _pad(input: Tensor, sides: tuple[Pair, Pair], mode: str) -> Tensor:
    """Surround the pictures with pixels of their own, `input[..., rows, columns]`; negative padding cuts pixels off."""
    _check_rank(input)
    if 0 in input.shape[-3:]:
        raise ValueError(f"Conv2d: padding_mode={mode!r} needs pixels, but input has the shape {tuple(input.shape)}")
    for dim, (before, after) in zip((-2, -1), sides, strict=True):
        size = input.shape[dim]
        most = size - 1 if mode == "reflect" else size
        if (max(before, after) > most and mode != "replicate") or size + before + after < 1:
            raise ValueError(
                f"Conv2d: padding_mode={mode!r} cannot add ({before}, {after}) pixels to the sides of {size} pixels"
            )
        positions = torch.arange(-before, size + after, device=input.device)
        if mode == "reflect":
            positions = size - 1 - (size - 1 - positions.abs()).abs()
        elif mode == "replicate":
            positions = positions.clamp(0, size - 1)
        else:
            positions = positions % size
        input = input.index_select(dim, positions)
    return input


def _sides(padding: int | Sequence[int] | str, kernel_size: Sequence[int], dilation: Any) -> tuple[Pair, Pair]:
    """`padding` as ((top, bottom), (left, right))."""
    if padding == "same":
        return same_padding(kernel_size, dilation)
    vertical, horizontal = (0, 0) if isinstance(padding, str) else as_pair("conv2d: padding", padding)
    return (vertical, vertical), (horizontal, horizontal)


def as_pair(name: str, value: Any, at_least: int | None = None) -> Pair:
    """`value`, an integer or one or two of them, as (vertical, horizontal).

    Args:
        name: the function and the argument, for the messages.
        value: what was passed.
        at_least: the smallest number that is allowed.

    Raises:
        ValueError: a number is too small, or there are not one or two.
        TypeError: something is not an integer.
    """
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(numbers) not in (1, 2):
        raise ValueError(f"{name} must be an integer or a pair (vertical, horizontal), got {value!r}")
    checked = tuple(_check_integer(name, number, at_least) for number in numbers)
    return checked[0], checked[-1]


def _check_integer(name: str, value: Any, at_least: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return operator.index(value)


def _repeat(value: int | Sequence[int]) -> tuple[int, ...]:
    """An integer twice, a sequence as it is: how a layer keeps its arguments."""
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def _check_named_padding(function: str, padding: str, stride: Sequence[int]) -> None:
    if padding not in ("same", "valid"):
        raise ValueError(f'{function}: padding must be an integer, a pair, "same" or "valid", got {padding!r}')
    if padding == "same" and any(step != 1 for step in stride):
        raise ValueError(f'{function}: padding="same" needs stride 1, got {tuple(stride)}')


def _check_rank(input: Tensor) -> None:
    if input.dim() not in (3, 4):
        raise ValueError(
            "conv2d: input must be [batch, channels, height, width] or [channels, height, width], "
            f"got the shape {tuple(input.shape)}"
        )


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """Raise if the tensors do not fit each other."""
    given = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"conv2d: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != input.dtype or tensor.dtype == torch.bool:
            raise TypeError(
                f"conv2d: {name} is {tensor.dtype} and input is {input.dtype}; all tensors need one dtype, of numbers"
            )
        if tensor.device != input.device:
            raise ValueError(f"conv2d: {name} is on {tensor.device}, but input is on {input.device}")
    _check_rank(input)
    shape = tuple(weight.shape)
    if weight.dim() != 4:
        raise ValueError(
            f"conv2d: weight must be [out_channels, in_channels / groups, height, width], got the shape {shape}"
        )
    if _check_integer("conv2d: groups", groups, at_least=1) and (shape[0] == 0 or shape[0] % groups):
        raise ValueError(f"conv2d: weight {shape} must have a positive multiple of groups={groups} output channels")
    if input.shape[-3] != shape[1] * groups:
        raise ValueError(
            f"conv2d: input has {input.shape[-3]} channels, but weight {shape} with groups={groups} "
            f"needs {shape[1] * groups}"
        )
    if bias is not None and bias.shape != shape[:1]:
        raise ValueError(f"conv2d: bias must have the shape ({shape[0]},), got {tuple(bias.shape)}")
