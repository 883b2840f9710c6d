"""Chapters 08 and 09: two-dimensional convolution.

A small kernel slides over the image; each output pixel is the sum of the products of the kernel and the pixels
under it:

    output[n, o, y, x] = bias[o] + Σ_{c, i, j} weight[o, c, i, j] · input[n, c, y · stride + i · dilation − padding, …]

Pixels outside the image are 0. Deep-learning libraries do not flip the kernel, so this is a cross-correlation.
With groups the channels are split into blocks; block g of the outputs depends only on block g of the inputs.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from reference.arguments import (
    Pair,
    accumulation_dtype,
    check_integer,
    check_layout,
    check_pair,
    check_shape,
    check_together,
    under_autocast,
)
from reference.fast.convolution import conv2d as fast_conv2d
from reference.nn.initialization import fan_in, kaiming_uniform_, uniform_
from reference.releases import is_exporting

IMAGES = ("[batch, channels, height, width]", "[channels, height, width]")
"""The layouts of an input of convolution and pooling."""


def conv2d_definition(
    input: Shaped[Tensor, "batch in_channels height width"],
    weight: Shaped[Tensor, "out_channels group_channels kernel_height kernel_width"],
    bias: Shaped[Tensor, "out_channels"] | None,
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
) -> Shaped[Tensor, "batch out_channels out_height out_width"]:
    """The formula above; `padding` is ((top, bottom), (left, right)), the other pairs are (vertical, horizontal)."""
    (top, bottom), (left, right) = padding
    height, width, kernel_height, kernel_width = map(int, (*input.shape[2:], *weight.shape[2:]))
    dtype = accumulation_dtype(input.dtype)
    padded = input.new_zeros(*input.shape[:2], top + height + bottom, left + width + right, dtype=dtype)
    padded[..., top : top + height, left : left + width] = input

    blocks = padded.unflatten(1, (groups, weight.shape[1]))  # [n, groups, c, row, column]
    kernels = weight.to(dtype).unflatten(0, (groups, -1))  # [groups, o, c, i, j]
    total = padded.new_zeros(()) if bias is None else bias.to(dtype).unflatten(0, (groups, -1))[..., None, None]
    for i, j in product(range(kernel_height), range(kernel_width)):
        down = slice(i * dilation[0], top + height + bottom - (kernel_height - 1 - i) * dilation[0], stride[0])
        across = slice(j * dilation[1], left + width + right - (kernel_width - 1 - j) * dilation[1], stride[1])
        total = total + torch.einsum("ngcyx,goc->ngoyx", blocks[..., down, across], kernels[..., i, j])
    return total.flatten(1, 2).to(input.dtype)


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
        input: images `[batch, in_channels, height, width]`, or one without the batch dimension.
        weight: kernels `[out_channels, in_channels / groups, kernel height, kernel width]`, of the dtype of `input`.
        bias: the offset of each output channel, `[out_channels]`.
        stride: the step of the kernel, in pixels; like the next two an integer or a pair (vertical, horizontal).
        padding: the number of zeros around the image on each side, or "valid" (none), or "same" (the number that keeps
            the image's size, one more at the bottom and right if it is odd; only with stride 1).
        dilation: the distance between neighbouring kernel elements, in pixels.
        groups: the number of blocks the channels are split into.

    Returns:
        `[batch, out_channels, out_height, out_width]` (contiguous; for the size see `conv2d_output_size`), without the
        batch dimension if `input` has none. Half precision is accumulated in float32 and rounded once.

    Raises:
        ValueError: sizes that do not fit each other, or an argument outside its range.
        TypeError: an argument of the wrong type, or tensors of different dtypes.
    """
    # An exported program uses the definition: the fast form splits the batch, but its size is then unknown.
    form = conv2d_definition if is_exporting() else fast_conv2d
    return conv2d_by(form, input, weight, bias, stride, padding, dilation, groups)


def conv2d_by(
    form: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> Tensor:
    """Check the arguments of `conv2d` and compute it by `form`, the definition or the fast one."""
    input, weight, bias = under_autocast(input, weight, bias)
    _check_tensors(input, weight, bias, groups)
    height, width, *kernel_size = map(int, (*input.shape[-2:], *weight.shape[2:]))  # in a trace, sizes are tensors
    conv2d_output_size((height, width), kernel_size, stride, padding, dilation)
    if 0 in (height, width) and 0 not in input.shape[:-2]:
        raise ValueError(f"conv2d: input must have pixels, got the shape {tuple(input.shape)}")
    sides = _sides(padding, kernel_size, dilation)
    pairs = check_pair("conv2d: stride", stride), sides, check_pair("conv2d: dilation", dilation)
    batch = form(input if input.dim() == 4 else input[None], weight, bias, *pairs, groups)
    return batch if input.dim() == 4 else batch[0]


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
        padding_mode: the values around the image: "zeros"; "reflect" (mirrored at the border pixel);
            "replicate" (the border pixel repeated); "circular" (the opposite side).
        device: the device of the parameters.
        dtype: their dtype.

    Raises:
        ValueError: an argument outside its range.
        TypeError: an argument of the wrong type.
    """

    _conv2d = staticmethod(conv2d)
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
        check_integer("Conv2d: groups", groups, at_least=1)
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
            check_integer("Conv2d: kernel_size", size, at_least=0)
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
        # The numbers are drawn in the same order for every memory format of the weight.
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
        return self._conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`: those that differ from their defaults."""
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
        input_size: the image's size; like the other arguments an integer or a pair (vertical, horizontal), in pixels.
        kernel_size: the kernel's size.
        stride: see `conv2d`.
        padding: see `conv2d`.
        dilation: see `conv2d`.

    Returns:
        (out_height, out_width).

    Raises:
        ValueError: an argument outside its range, or a kernel that is larger than the padded image.
        TypeError: an argument of the wrong type.
    """
    sizes = check_pair("conv2d: input_size", input_size, at_least=0)
    kernels = check_pair("conv2d: kernel_size", kernel_size, at_least=1)
    strides = check_pair("conv2d: stride", stride, at_least=1)
    dilations = check_pair("conv2d: dilation", dilation, at_least=1)
    if isinstance(padding, str):
        _check_named_padding("conv2d", padding, strides)
    else:
        check_pair("conv2d: padding", padding, at_least=0)
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
    """The padding that keeps an image's size at stride 1: dilation · (kernel_size − 1) zeros in total, half of them on
    each side.

    An odd kernel gets the same number on both sides, (kernel_size − 1) / 2 (2 for a 5 × 5 kernel); where the number of
    zeros is odd, the bottom and the right get one more.

    Args:
        kernel_size: an integer or a pair (vertical, horizontal).
        dilation: an integer or a pair (vertical, horizontal).

    Returns:
        ((top, bottom), (left, right)).

    Raises:
        ValueError: an argument is smaller than 1.
        TypeError: an argument is not an integer.
    """
    kernels = check_pair("same_padding: kernel_size", kernel_size, at_least=1)
    dilations = check_pair("same_padding: dilation", dilation, at_least=1)
    vertical, horizontal = (step * (kernel - 1) for kernel, step in zip(kernels, dilations, strict=True))
    return (vertical // 2, vertical - vertical // 2), (horizontal // 2, horizontal - horizontal // 2)


def _pad(input: Tensor, sides: tuple[Pair, Pair], mode: str) -> Tensor:
    """Surround the images with their own pixels, `input[..., rows, columns]`; negative padding removes pixels."""
    check_layout("Conv2d: input", input, *IMAGES)
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
    vertical, horizontal = (0, 0) if isinstance(padding, str) else check_pair("conv2d: padding", padding)
    return (vertical, vertical), (horizontal, horizontal)


def _repeat(value: int | Sequence[int]) -> tuple[int, ...]:
    """An integer twice, a sequence unchanged: the form in which a layer stores its arguments."""
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def _check_named_padding(function: str, padding: str, stride: Sequence[int]) -> None:
    if padding not in ("same", "valid"):
        raise ValueError(f'{function}: padding must be an integer, a pair, "same" or "valid", got {padding!r}')
    if padding == "same" and any(step != 1 for step in stride):
        raise ValueError(f'{function}: padding="same" needs stride 1, got {tuple(stride)}')


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """Raise if the tensors do not fit each other."""
    check_together("conv2d", input=input, weight=weight, bias=bias)
    check_layout("conv2d: input", input, *IMAGES)
    check_layout("conv2d: weight", weight, "[out_channels, in_channels / groups, height, width]")
    check_integer("conv2d: groups", groups, at_least=1)
    shape = tuple(weight.shape)
    if shape[0] == 0 or shape[0] % groups:
        raise ValueError(f"conv2d: weight {shape} must have a positive multiple of groups={groups} output channels")
    if input.shape[-3] != shape[1] * groups:
        raise ValueError(
            f"conv2d: input has {input.shape[-3]} channels, but weight {shape} with groups={groups} "
            f"needs {shape[1] * groups}"
        )
    if bias is not None:
        check_shape("conv2d: bias", bias, shape[:1], of="the output channels")
