"""Fast convolution for training: the sums of `conv2d_definition` as matrix products, in bounded memory.

`_Windows` lays the pixels under one row of the kernel next to each other, so that the sum over j and c is a matrix
product and the sum over i adds up `kernel height` of them. (If a row has few products, as over the three colours of
an image, it lays out all rows, and there is one product.) It does so for a few images at a time: the extra memory is
bounded by a few buffers of `WORKSPACE` numbers (or one image's buffers, where these are larger), whatever the batch
size.

With G the upstream gradient, Σ G · output is linear in G, in input and in weight. The output, the gradient of the
input and the gradient of the weight are the derivatives of this one sum with respect to the three. So each of the
three functions below has the other two as its derivatives, and all derivatives of any order exist. Each is linear in
its two tensors, which gives its `jvp`; and its `vmap` lets the new dimension join the batch, or the groups where both
tensors have it.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd import Function

from reference.arguments import Pair, accumulation_dtype

WORKSPACE = 2**19
"""The size of the buffers for windows or outputs, in numbers (2 MiB in float32)."""

WIDE = 256
"""From this number of output pixels on, images are multiplied one by one instead of concatenated."""

DEEP = 16
"""From this number of products on, a single kernel row is computed as a matrix product."""


def conv2d(
    input: Shaped[Tensor, "batch in_channels height width"],
    weight: Shaped[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Shaped[Tensor, "out_channels"] | None,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
) -> Shaped[Tensor, "batch out_channels out_height out_width"]:
    """The fast form of `reference.nn.convolution.conv2d_definition`, with its arguments."""
    # converted to int, also in a trace
    height, width, kernel_height, kernel_width = map(int, (*input.shape[2:], *weight.shape[2:]))
    kernel_size = (kernel_height, kernel_width)
    sizes = zip((height, width), kernel_size, stride, padding, dilation, strict=True)
    out_height, out_width = ((size + sum(sides) - gap * (k - 1) - 1) // step + 1 for size, k, step, sides, gap in sizes)
    windows = _Windows(
        in_channels=int(input.shape[1]),
        in_size=(height, width),
        out_channels=int(weight.shape[0]),
        out_size=(out_height, out_width),
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        rows=kernel_height if input.shape[1] // groups * kernel_width < DEEP else 1,
    )
    return _Output.apply(input, weight, bias, windows)  # pyright: ignore[reportReturnType]


class _Windows(NamedTuple):
    """The positions of a convolution's windows, and the layouts of images, windows, outputs and kernels as matrices.

    The layouts, for n images and c input or o output channels in each of the groups. Large images have matrices of
    their own: they are n lanes of m = 1 image; small images are concatenated in one lane of m = n images.
        columns: `[lanes · groups, c · rows · kernel_width, stride, height / stride, m, out_width]`, for each row y of
            the padded images the pixels that lie under `rows` rows of the kernel, at `[…, y % stride, y // stride]`:
            so the pixels under the kernel's block i of `rows` rows, for all windows together, are one block.
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
    """The number of kernel rows that are laid out together: 1 or all. With one row the columns hold each pixel once for
    each element of the row, but a matrix product over few channels of one row would be too short to be fast."""

    @property
    def channels(self) -> Pair:
        """c and o: input and output channels of one group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    @property
    def depth(self) -> int:
        """The number of products in each sum of a matrix product."""
        return self.channels[0] * self.rows * self.kernel_size[1]

    @property
    def steps(self) -> Pair:
        """The stride of the columns' rows, in rows of the padded image, and the number of their phases."""
        return (1, self.stride[0]) if self.rows == 1 else (self.stride[0], 1)

    def repeated(self, times: int) -> "_Windows":
        """The same windows with the number of groups multiplied by `times`."""
        return self._replace(
            in_channels=times * self.in_channels, out_channels=times * self.out_channels, groups=times * self.groups
        )

    def lanes(self, n: int) -> int:
        """The number of lanes of `n` images."""
        return n if math.prod(self.out_size) >= WIDE else 1

    def padded_shape(self, n: int) -> tuple[int, ...]:
        """The shape of `n` padded images, `[lanes · groups, c, m, height, width]`, the height whole phases."""
        (top, bottom), (left, right) = self.padding
        lanes, phases = self.lanes(n), self.steps[1]
        height = -(-(top + self.in_size[0] + bottom) // phases) * phases
        return lanes * self.groups, self.channels[0], n // lanes, height, left + self.in_size[1] + right

    def columns_shape(self, n: int) -> tuple[int, ...]:
        """The shape of the columns of `n` images."""
        blocks, _, m, height, _ = self.padded_shape(n)
        phases = self.steps[1]
        heights = height // phases if self.rows == 1 else self.out_size[0]
        return blocks, self.depth, phases, heights, m, self.out_size[1]

    def batches(self, n: int) -> Iterator[slice]:
        """Cut `n` images into batches with columns and pixels that fit into the workspace."""
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
        """The transpose of `columns` with single rows: for each pixel, add the values of all its columns."""
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
        """The matrices for each lane of `n` images, `[kernel_height / rows, lanes · groups, o, depth]`."""
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
        """The part of padded images without the padding."""
        (top, _), (left, _) = self.padding
        return padded[..., top : top + self.in_size[0], left : left + self.in_size[1]]


class _Output(Function):
    """The output from input, weight and bias: Σ_i matrix_i · block_i + bias."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, windows: _Windows) -> Tensor:
        output = input.new_empty(len(input), windows.out_channels, *windows.out_size)
        dtype = accumulation_dtype(input.dtype)
        kernels = windows.matrices(weight, dtype)
        offsets = None if bias is None else bias.to(dtype)[:, None, None]
        for batch in windows.batches(len(input)):
            columns = windows.columns(input[batch], dtype)
            matrices = windows.in_lanes(kernels, len(input[batch]))
            pixels = matrices[0] @ windows.block(columns, 0)
            for i in range(1, len(matrices)):
                pixels.baddbmm_(matrices[i], windows.block(columns, i))
            images = windows.output(pixels)
            output[batch] = images if offsets is None else images + offsets
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.windows = inputs
        _save(ctx, input, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(*grads, weight.conj(), ctx.windows) if wants_input else None,
            _WeightGradient.apply(input.conj(), *grads, ctx.windows) if wants_weight else None,
            grads[0].sum((0, 2, 3)) if wants_bias else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias, _ = tangents
        change = _sum_of(
            None if of_input is None else _Output.apply(of_input, weight, None, ctx.windows),
            None if of_weight is None else _Output.apply(input, of_weight, None, ctx.windows),
        )
        if of_bias is None:
            return change
        offsets = of_bias[:, None, None]
        return offsets.expand(len(input), -1, *ctx.windows.out_size) if change is None else change + offsets

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, int]:
        (input, weight, bias, windows), times = args, info.batch_size
        if in_dims[1] is None and in_dims[2] is None:
            images = input.movedim(in_dims[0], 0)
            output = _Output.apply(images.flatten(0, 1), weight, bias, windows)
            return output.unflatten(0, images.shape[:2]), 0
        output = _Output.apply(
            _joined(input, in_dims[0], times, 1),
            _joined(weight, in_dims[1], times, 0),
            None if bias is None else _joined(bias, in_dims[2], times, 0),
            windows.repeated(times),
        )
        return output.unflatten(1, (times, windows.out_channels)), 1


class _InputGradient(Function):
    """The gradient of the input from the gradient of the output and weight: block_i += matrix_iᵀ · pixels."""

    @staticmethod
    def forward(output_grad: Tensor, weight: Tensor, windows: _Windows) -> Tensor:
        windows = windows._replace(rows=1)
        input_grad = output_grad.new_empty(len(output_grad), windows.in_channels, *windows.in_size)
        dtype = accumulation_dtype(output_grad.dtype)
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
        output_grad, weight, ctx.windows = inputs
        _save(ctx, output_grad, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        output_grad, weight = ctx.saved_tensors
        wants_output_grad, wants_weight, _ = ctx.needs_input_grad
        return (
            _Output.apply(*grads, weight.conj(), None, ctx.windows) if wants_output_grad else None,
            _WeightGradient.apply(*grads, output_grad.conj(), ctx.windows) if wants_weight else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        output_grad, weight = ctx.saved_tensors
        of_output_grad, of_weight, _ = tangents
        return _sum_of(
            None if of_output_grad is None else _InputGradient.apply(of_output_grad, weight, ctx.windows),
            None if of_weight is None else _InputGradient.apply(output_grad, of_weight, ctx.windows),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, int]:
        (output_grad, weight, windows), times = args, info.batch_size
        if in_dims[1] is None:
            grads = output_grad.movedim(in_dims[0], 0)
            return _InputGradient.apply(grads.flatten(0, 1), weight, windows).unflatten(0, grads.shape[:2]), 0
        output_grad, weight = _joined(output_grad, in_dims[0], times, 1), _joined(weight, in_dims[1], times, 0)
        input_grad = _InputGradient.apply(output_grad, weight, windows.repeated(times))
        return input_grad.unflatten(1, (times, windows.in_channels)), 1


class _WeightGradient(Function):
    """The gradient of the weight from input and the gradient of the output: matrix_i += pixels · block_iᵀ."""

    @staticmethod
    def forward(input: Tensor, output_grad: Tensor, windows: _Windows) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        blocks, groups, (_, out_channels) = windows.kernel_size[0] // windows.rows, windows.groups, windows.channels
        first = next(windows.batches(len(input)), slice(0, 1))  # the largest number of lanes of a batch
        lanes = windows.lanes(first.stop)
        matrices = input.new_zeros(blocks, lanes * groups, out_channels, windows.depth, dtype=dtype)
        for batch in windows.batches(len(input)):
            columns, pixels = windows.columns(input[batch], dtype), windows.pixels(output_grad[batch], dtype)
            for i in range(blocks):
                matrices[i, : len(pixels)].baddbmm_(pixels, windows.block(columns, i).mT)
        return windows.weight(matrices.unflatten(1, (lanes, groups)).sum(1, dtype=dtype)).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, output_grad, ctx.windows = inputs
        _save(ctx, input, output_grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        input, output_grad = ctx.saved_tensors
        wants_input, wants_output_grad, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(output_grad.conj(), *grads, ctx.windows) if wants_input else None,
            _Output.apply(input.conj(), *grads, None, ctx.windows) if wants_output_grad else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        input, output_grad = ctx.saved_tensors
        of_input, of_output_grad, _ = tangents
        return _sum_of(
            None if of_input is None else _WeightGradient.apply(of_input, output_grad, ctx.windows),
            None if of_output_grad is None else _WeightGradient.apply(input, of_output_grad, ctx.windows),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, int]:
        (input, output_grad, windows), times = args, info.batch_size
        input, output_grad = _joined(input, in_dims[0], times, 1), _joined(output_grad, in_dims[1], times, 1)
        weight_grad = _WeightGradient.apply(input, output_grad, windows.repeated(times))
        return weight_grad.unflatten(0, (times, windows.out_channels)), 0


def _save(ctx: Any, *tensors: Tensor) -> None:
    """Save the tensors that the gradient and the tangent need."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _sum_of(first: Any, second: Any) -> Any:
    """The sum of two terms; `None` is an omitted term."""
    return second if first is None else first if second is None else first + second


def _joined(tensor: Tensor, vmapped: int | None, times: int, dim: int) -> Tensor:
    """`tensor` with the dimension that `torch.vmap` adds, or copies if it adds none, joined to dimension `dim`."""
    copies = tensor.unsqueeze(dim) if vmapped is None else tensor.movedim(vmapped, dim)
    return copies.expand(*copies.shape[:dim], times, *copies.shape[dim + 1 :]).flatten(dim, dim + 1)
