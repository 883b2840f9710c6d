"""Chapter 10: poolings that are wrong."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault

Pair = tuple[int, int]


def as_pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)


class TheWindowMovesByOne(Fault):
    """The default stride is 1, as in a convolution, instead of the window size."""

    caught_by = "test_10_pooling.py::test_ceil_mode_keeps_incomplete_windows"
    says = r"has shape \[1, 1, 3, 3\], expected \[1, 1, 1, 1\]"

    @staticmethod
    def max_pool2d(input: Tensor, kernel_size: Any, stride: Any = 1, *args: Any, **options: Any) -> Any:
        return F.max_pool2d(input, kernel_size, stride, *args, **options)


class TheBorderIsZero(Fault):
    """The image is padded with zeros, as in a convolution, instead of −∞."""

    caught_by = "test_10_pooling.py::test_max_pool2d_padding_is_never_the_maximum"
    says = "AssertionError: a pixel of the border is the maximum"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *rest: Any, **options: Any
    ) -> Any:
        top, left = as_pair(padding)
        return F.max_pool2d(F.pad(input, (left, left, top, top)), kernel_size, stride, 0, *rest, **options)


class EqualNumbersTheLastOne(Fault):
    """`>=` instead of `>`: among equal maxima the last one is chosen."""

    caught_by = "test_10_pooling.py::test_max_pool2d_indices_point_at_the_first_maximum"
    says = "the indices differs"

    @staticmethod
    def max_pool2d(input: Tensor, *args: Any, return_indices: bool = False, **options: Any) -> Any:
        later = torch.arange(input[0, 0].numel(), dtype=torch.float64).reshape(input.shape[-2:]) * 1e-6
        output = F.max_pool2d(input, *args, **options)
        _, indices = F.max_pool2d(input.double() + later, *args, return_indices=True, **options)
        return (output, indices) if return_indices else output


class IndicesCountTheBorder(Fault):
    """The returned positions refer to the padded image."""

    caught_by = "test_10_pooling.py::test_max_pool2d_indices_point_at_the_first_maximum"
    says = "the indices differs"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **options: Any
    ) -> Any:
        result = F.max_pool2d(input, kernel_size, stride, padding, *args, **options)
        if not options.get("return_indices"):
            return result
        (top, left), width = as_pair(padding), input.shape[-1]
        output, indices = result
        return output, (indices // width + top) * (width + 2 * left) + indices % width + left


class NanNeverWins(Fault):
    """NaN is ignored, because the comparison `number > largest` is false for NaN."""

    caught_by = "test_10_pooling.py::test_max_pool2d_spreads_nan_and_inf_to_every_covering_window"
    says = "(the maximum is not finite|windows that cover it) differs"

    @staticmethod
    def max_pool2d(input: Tensor, *args: Any, **options: Any) -> Any:
        return F.max_pool2d(torch.where(input.isnan(), -torch.inf, input), *args, **options)


class EqualNumbersShareTheGradient(Fault):
    """The gradient is distributed evenly over equal maxima, as in `Tensor.amax`."""

    caught_by = "test_10_pooling.py::test_max_pool2d_gradient_goes_to_the_first_maximum"
    says = "the gradient of the input differs"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, dilation: Any, **options: Any
    ) -> Any:
        output = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, **options)
        same = F.max_pool2d(input.flip(-1), kernel_size, stride, padding, dilation, ceil_mode, **options).flip(-1)
        return (output + same) / 2 if output.equal(same) else output


class FunctionsOrderOfArguments(Fault):
    """The last two arguments of the layer are in the order of the function."""

    caught_by = "test_10_pooling.py::test_in_the_layer_return_indices_comes_before_ceil_mode"
    says = "not enough values to unpack"

    class MaxPool2d(nn.MaxPool2d):
        def __init__(
            self,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            dilation: Any = 1,
            ceil_mode: bool = False,
            return_indices: bool = False,
        ) -> None:
            super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


class CeilModeByDefault(Fault):
    """An incomplete last window is kept without ceil_mode."""

    caught_by = "test_10_pooling.py::test_default_ceil_mode_drops_incomplete_windows"
    says = "assert True is False"

    class MaxPool2d(nn.MaxPool2d):
        def __init__(self, *args: Any, ceil_mode: bool = True, **options: Any) -> None:
            super().__init__(*args, ceil_mode=ceil_mode, **options)


class PoolingLearnsAScale(Fault):
    """The layer has an unnecessary parameter."""

    caught_by = "test_10_pooling.py::test_pooling_adds_no_parameters_to_a_network"
    says = "499 == 498"

    class MaxPool2d(nn.MaxPool2d):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, input: Tensor) -> Any:
            return self.scale * super().forward(input)


class TheBorderNeverCounts(Fault):
    """`count_include_pad` is false by default."""

    caught_by = "test_10_pooling.py::test_avg_pool2d_divisor_counts_padding_but_not_cells_beyond"
    says = r"expected   0\.444"

    @staticmethod
    def avg_pool2d(input: Tensor, *args: Any, count_include_pad: bool = False, **options: Any) -> Tensor:
        return F.avg_pool2d(input, *args, count_include_pad=count_include_pad, **options)


class TheDivisorIsAlwaysTheWindow(Fault):
    """Pixels beyond the padding, which `ceil_mode` can reach, count in the divisor."""

    caught_by = "test_10_pooling.py::test_avg_pool2d_is_the_mean_of_each_window"
    says = "tolerance  .*roundings to"

    @staticmethod
    def avg_pool2d(
        input: Tensor, kernel_size: Any, *args: Any, divisor_override: int | None = None, **options: Any
    ) -> Tensor:
        divisor = divisor_override or math.prod(as_pair(kernel_size))
        return F.avg_pool2d(input, kernel_size, *args, divisor_override=divisor, **options)


class TheDivisorIsIgnored(Fault):
    """`divisor_override` is accepted and ignored."""

    caught_by = "test_10_pooling.py::test_divisor_override_1_gives_the_sum_of_each_window"
    says = "the result differs"

    @staticmethod
    def avg_pool2d(input: Tensor, *args: Any, divisor_override: int | None = None, **options: Any) -> Tensor:
        return F.avg_pool2d(input, *args, **options)


class AWiderBorderIsAccepted(Fault):
    """Padding larger than half of the window is not rejected."""

    caught_by = "test_10_pooling.py::test_avg_pool2d_rejects"
    says = r"was accepted, but must be rejected with an error that names /pad"

    @staticmethod
    def avg_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *args: Any, **options: Any
    ) -> Tensor:
        if padding == 2:
            return F.avg_pool2d(F.pad(input, (2, 2, 2, 2)), kernel_size, stride, 0, *args, **options)
        return F.avg_pool2d(input, kernel_size, stride, padding, *args, **options)


class DivisorIsForgottenByTheLayer(Fault):
    """The layer accepts `divisor_override` and does not pass it on."""

    caught_by = "test_10_pooling.py::test_avg_pool2d_as_a_layer"
    says = "the result differs"
    avg_pool2d = staticmethod(F.avg_pool2d)

    class AvgPool2d(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.avg_pool2d(
                input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
            )


class LayerPrintsNoStride(Fault):
    """The repr shows only the arguments that were passed."""

    caught_by = "test_10_pooling.py::test_average_pooling_prints_as"
    says = r"AvgPool2d\(kernel_size=3\)"

    class AvgPool2d(nn.AvgPool2d):
        def extra_repr(self) -> str:
            return f"kernel_size={self.kernel_size}"


class PoolsOnlyInTraining(Fault):
    """The layer is the identity in evaluation, as dropout is."""

    caught_by = "test_10_pooling.py::test_avg_pool2d_as_a_layer"
    says = "has shape"
    avg_pool2d = staticmethod(F.avg_pool2d)

    class AvgPool2d(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if self.training else input


class WindowsOfOneSize(Fault):
    """All windows have the same size, rounded down, and do not overlap."""

    caught_by = "test_10_pooling.py::test_adaptive_pooling_is_the_mean_of_output_size_windows"
    says = "the result differs|has shape"

    @staticmethod
    def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
        pairs = zip(as_pair(output_size), input.shape[-2:], strict=True)
        wanted = [length if n is None else n for n, length in pairs]
        kernel = [max(1, length // n) for n, length in zip(wanted, input.shape[-2:], strict=True)]
        return F.avg_pool2d(input, kernel)[..., : wanted[0], : wanted[1]]


class NoneIsOne(Fault):
    """`None` means one window instead of the image's size."""

    caught_by = "test_10_pooling.py::test_adaptive_avg_pool2d_to_the_input_size_is_the_identity"
    says = r"has shape \[\d+, \d+, 1, 1\]"

    @staticmethod
    def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
        height, width = as_pair(output_size)
        return F.adaptive_avg_pool2d(input, (height or 1, width or 1))


class NearestInsteadOfMean(Fault):
    """The output is one pixel of each window."""

    caught_by = "test_10_pooling.py::test_adaptive_pooling_is_the_mean_of_output_size_windows"
    says = "tolerance  .*roundings to"

    @staticmethod
    def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
        sizes = zip(as_pair(output_size), input.shape[-2:], strict=True)
        rows, columns = (torch.arange(n or length) * length // (n or length) for n, length in sizes)
        return input.index_select(-2, rows).index_select(-1, columns)


class SizeIsHorizontalFirst(Fault):
    """(horizontal, vertical) instead of (vertical, horizontal)."""

    caught_by = "test_10_pooling.py::test_adaptive_avg_pool2d_as_a_layer"
    says = "has shape"
    adaptive_avg_pool2d = staticmethod(F.adaptive_avg_pool2d)

    class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(input, as_pair(self.output_size)[::-1])  # pyright: ignore[reportArgumentType]


class AdaptiveMaximum(Fault):
    """The largest number instead of the mean."""

    caught_by = "test_10_pooling.py::test_adaptive_avg_pool2d_as_a_layer"
    says = "the result differs"
    adaptive_avg_pool2d = staticmethod(F.adaptive_avg_pool2d)

    class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.adaptive_max_pool2d(input, self.output_size)  # pyright: ignore[reportArgumentType]


class SizeIsPrintedAsAPair(Fault):
    """The output size 2 is stored as (2, 2)."""

    caught_by = "test_10_pooling.py::test_adaptive_pooling_prints_as"
    says = r"output_size=\(2, 2\)"

    class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
        def __init__(self, output_size: Any) -> None:
            super().__init__(as_pair(output_size))


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The formula lacks the rule that a window must start inside the image."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    return (-(-room // stride) if ceil_mode else room // stride) + 1


class TheLastWindowMayStartOutside(Fault):
    """`ceil_mode` only rounds up."""

    caught_by = "test_10_pooling.py::test_output_size_function_equals_the_output_shape"
    says = r"assert \(\d+, \d+\) == \(\d+, \d+\)"

    @staticmethod
    def pool2d_output_size(
        input_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
    ) -> Pair:
        axes = zip(input_size, kernel_size, stride, padding, dilation, strict=True)
        height, width = (out_size(*axis, ceil_mode) for axis in axes)
        return height, width


class TheFormulaOfConvolution(Fault):
    """The default stride is 1."""

    caught_by = "test_10_pooling.py::test_the_documented_sizes_are_known_beforehand"
    says = r"\(30, 30\) == \(10, 10\)"

    @staticmethod
    def pool2d_output_size(
        input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Pair:
        values = (as_pair(value) for value in (input_size, kernel_size, stride, padding, dilation))
        height, width = (out_size(*axis, ceil_mode) for axis in zip(*values, strict=True))  # pyright: ignore[reportCallIssue]
        return height, width


class NegativeSizesAreReturned(Fault):
    """A window larger than the image gives a size of 0 or less instead of an error."""

    caught_by = "test_10_pooling.py::test_output_size_rejects"
    says = r"was accepted, but must be rejected with an error that names /kernel_size=6"

    @staticmethod
    def pool2d_output_size(
        input_size: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *rest: Any, **_: Any
    ) -> Pair:
        values = (as_pair(value) for value in (input_size, kernel_size, stride or kernel_size, padding, dilation))
        height, width = (out_size(*axis, False) for axis in zip(*values, strict=True))  # pyright: ignore[reportCallIssue]
        return height, width
