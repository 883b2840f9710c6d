"""Chapters 08 and 09: convolutions that are wrong."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault

Pair = tuple[int, int]


class KernelIsFlipped(Fault):
    """Convolution as defined in mathematics."""

    caught_by = "test_08_convolution.py::test_stride_1_gives_the_documented_matrix"
    says = r"differs at index \[0, 0, 0, 0\](.|\n)*expected   10"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.conv2d(input, weight.flip(-2, -1), *args, **options)


class PairsAreHorizontalFirst(Fault):
    """Pairs are read as (horizontal, vertical) instead of (vertical, horizontal)."""

    caught_by = "test_08_convolution.py::test_padding_equals_a_border_of_zeros"
    says = r"has shape \[1, 1, 7, 5\], expected \[1, 1, 5, 7\]"

    @staticmethod
    def conv2d(
        input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *rest: Any, **options: Any
    ) -> Tensor:
        stride = stride[::-1] if isinstance(stride, tuple) else stride
        padding = padding[::-1] if isinstance(padding, tuple) else padding
        return F.conv2d(input, weight, bias, stride, padding, *rest, **options)


class HalfPrecisionAddsUpInHalfPrecision(Fault):
    """Every partial sum is rounded to 4 bits fewer than the dtype has."""

    caught_by = "test_08_convolution.py::test_conv2d_rounds_no_more_than_a_sum"
    says = r"tolerance  .*roundings to"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        output = F.conv2d(input, weight, *args, **options)
        scale = 2.0 ** (torch.frexp(output.double())[1] + 3) * torch.finfo(output.dtype).eps
        return ((output.double() / scale).round() * scale).to(output.dtype) if output.is_floating_point() else output


class LaysOutAllWindowsAtOnce(Fault):
    """One matrix product for the whole batch, with a copy of each pixel for each kernel element."""

    caught_by = "test_08_convolution.py::test_four_times_the_images_need_no_more_workspace"
    says = r"the output's workspace grows with the batch"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        windows = F.unfold(input, weight.shape[2:], padding=padding, stride=stride)
        return (weight.flatten(1) @ windows).unflatten(2, input.shape[2:])


class StartsFromNormalNumbers(Fault):
    """Weights are drawn from an unbounded distribution."""

    caught_by = "test_09_convolution_layer.py::test_initial_weights_are_within_one_over_root_fan_in"
    says = r"assert .*max.* <= "

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            nn.init.normal_(self.weight)
            assert self.bias is not None
            nn.init.normal_(self.bias)


class BorderIsAlwaysZero(Fault):
    """`padding_mode` is stored and not used."""

    caught_by = "test_09_convolution_layer.py::test_conv2d_layer_equals_conv2d_with_own_weight_and_padding"
    says = r"differs at index(.|\n)*its border can be zeros, reflect, replicate or circular"
    conv2d = staticmethod(F.conv2d)

    class Conv2d(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OneKernelForAllOutputs(Fault):
    """The number of kernels equals the input channels instead of the output channels."""

    caught_by = "test_09_convolution_layer.py::test_one_channel_in_and_two_out_need_two_kernels"
    says = r"There is one kernel for each output channel"

    class Conv2d(nn.Conv2d):
        def __init__(self, in_channels: int, out_channels: int, *args: Any, **options: Any) -> None:
            super().__init__(in_channels, in_channels, *args, **options)


class PrintsItsPaddingAlways(Fault):
    """The repr of the layer differs from the documented text."""

    caught_by = "test_09_convolution_layer.py::test_the_network_prints_as_documented"
    says = r"padding=\(0, 0\)"

    class Conv2d(nn.Conv2d):
        def extra_repr(self) -> str:
            text = super().extra_repr()
            return text if "padding" in text else f"{text}, padding=(0, 0)"


def _size(
    input_size: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, side: Callable[..., int]
) -> Pair:
    """Apply `side` to the arguments of each side."""
    pairs = [
        value if isinstance(value, tuple) else (value,) * 2 for value in (input_size, kernel_size, stride, dilation)
    ]
    borders = (0, 0) if isinstance(padding, str) else padding if isinstance(padding, tuple) else (padding, padding)
    height, width = (
        side(size, kernel, step, border, gap)
        for (size, kernel, step, gap), border in zip(zip(*pairs, strict=True), borders, strict=True)
    )
    return height, width


class SizeIsRoundedUp(Fault):
    """A window that does not fit is counted."""

    caught_by = "test_09_convolution_layer.py::test_the_formula_counts_the_windows"
    says = r"assert \(.*\) == \("

    @staticmethod
    def conv2d_output_size(
        input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
    ) -> Pair:
        def side(size: int, kernel: int, step: int, border: int, gap: int) -> int:
            return -(-(size + 2 * border - gap * (kernel - 1) - 1) // step) + 1

        return _size(input_size, kernel_size, stride, padding, dilation, side)


class DilationIsForgotten(Fault):
    """The formula ignores the dilation."""

    caught_by = "test_09_convolution_layer.py::test_the_formula_counts_the_windows"
    says = r"the number of windows that fit"

    @staticmethod
    def conv2d_output_size(
        input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
    ) -> Pair:
        def side(size: int, kernel: int, step: int, border: int, gap: int) -> int:
            return (size + 2 * border - kernel) // step + 1

        return _size(input_size, kernel_size, stride, padding, dilation, side)


class PaddingIsOnOneSide(Fault):
    """The border is added once, not on both sides."""

    caught_by = "test_09_convolution_layer.py::test_the_documented_sizes"
    says = r"assert \(4, 4\) == \(5, 5\)"

    @staticmethod
    def conv2d_output_size(
        input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
    ) -> Pair:
        def side(size: int, kernel: int, step: int, border: int, gap: int) -> int:
            return (size + border - gap * (kernel - 1) - 1) // step + 1

        return _size(input_size, kernel_size, stride, padding, dilation, side)


class ImpossibleSizesAreComputed(Fault):
    """A kernel that does not fit gives a size of zero or less."""

    caught_by = "test_09_convolution_layer.py::test_impossible_sizes_are_rejected"
    says = r"was accepted, but must be rejected with an error that names /kernel"

    @staticmethod
    def conv2d_output_size(
        input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
    ) -> Pair:
        def side(size: int, kernel: int, step: int, border: int, gap: int) -> int:
            return (size + 2 * border - gap * (kernel - 1) - 1) // step + 1

        return _size(input_size, kernel_size, stride, padding, dilation, side)


def _sides(kernel_size: Any, dilation: Any, halves: Callable[[int, int], Pair]) -> tuple[Pair, ...]:
    """Apply `halves` to the kernel size and dilation of each side."""
    kernels = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    dilations = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    return tuple(halves(kernel, gap) for kernel, gap in zip(kernels, dilations, strict=True))


class OddZeroComesFirst(Fault):
    """For an even kernel, the additional zero is on top and on the left."""

    caught_by = "test_09_convolution_layer.py::test_same_padding_is_the_inverse_of_the_formula"
    says = r"an odd one goes to the end"

    @staticmethod
    def same_padding(kernel_size: Any, dilation: Any = 1) -> tuple[Pair, ...]:
        return _sides(kernel_size, dilation, lambda k, d: (d * (k - 1) - d * (k - 1) // 2, d * (k - 1) // 2))


class EveryKernelIsOdd(Fault):
    """Both sides get the same number of zeros, even if the total number is odd."""

    caught_by = "test_09_convolution_layer.py::test_same_padding_is_the_inverse_of_the_formula"
    says = r"assert .* == 9"

    @staticmethod
    def same_padding(kernel_size: Any, dilation: Any = 1) -> tuple[Pair, ...]:
        return _sides(kernel_size, dilation, lambda k, d: (d * (k - 1) // 2, d * (k - 1) // 2))


class PaddingIsAlwaysOne(Fault):
    """Padding 1 for every kernel, as chapter 08 states."""

    caught_by = "test_09_convolution_layer.py::test_same_padding_is_the_inverse_of_the_formula"
    says = r"assert .* == 9"

    @staticmethod
    def same_padding(kernel_size: Any, dilation: Any = 1) -> tuple[Pair, ...]:
        return (1, 1), (1, 1)


class NoKernelHasAPadding(Fault):
    """A kernel of size 0 is not rejected."""

    caught_by = "test_09_convolution_layer.py::test_same_padding_of_kernel_size_0_is_rejected"
    says = r"was accepted, but must be rejected with an error that names /kernel_size/"

    @staticmethod
    def same_padding(kernel_size: Any, dilation: Any = 1) -> tuple[Pair, ...]:
        return _sides(kernel_size, dilation, lambda k, d: (d * (k - 1) // 2, -(-d * (k - 1) // 2)))
