"""Chapters 08 to 12: typical mistakes in the first version of a learner's layers."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import reference as right
from spec.faults import Fault

STRIDE_1 = "test_08_convolution.py::test_stride_1_gives_the_documented_matrix"
PADDING_1 = "test_08_convolution.py::test_padding_1_gives_the_documented_matrix"


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


# chapters 08 and 09: convolution


class PaddingIsOnTopAndOnTheLeftOnly(Fault):
    """The border of zeros is missing below and on the right."""

    caught_by = PADDING_1
    says = r"has shape \[1, 1, 4, 4\], expected \[1, 1, 5, 5\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        border = _one(padding)
        return F.conv2d(F.pad(input, (border, 0, border, 0)), weight, bias, stride)


class PaddingIsBelowAndOnTheRightOnly(Fault):
    """The border of zeros is missing above and on the left."""

    caught_by = PADDING_1
    says = r"has shape \[1, 1, 4, 4\], expected \[1, 1, 5, 5\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        border = _one(padding)
        return F.conv2d(F.pad(input, (0, border, 0, border)), weight, bias, stride)


class ImageLiesAtTheEdgeOfItsBorder(Fault):
    """The image lies in the upper left corner: all zeros are below it and on its right."""

    caught_by = PADDING_1
    says = r"expected   1\n"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        border = 2 * _one(padding)
        return F.conv2d(F.pad(input, (0, border, 0, border)), weight, bias, stride)


class PaddingRepeatsTheEdge(Fault):
    """The border repeats the nearest pixel instead of zeros."""

    caught_by = PADDING_1
    says = r"expected   1\n"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        border = (_one(padding),) * 4
        padded = F.pad(input.double(), border, mode="replicate").to(input.dtype)
        return F.conv2d(padded, weight, bias, stride)


class PaddingIsIgnored(Fault):
    """The parameter is taken and not used."""

    caught_by = PADDING_1
    says = r"has shape \[1, 1, 3, 3\], expected \[1, 1, 5, 5\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        return F.conv2d(input, weight, bias, stride)


class PaddingIsOnes(Fault):
    """The border holds ones instead of zeros."""

    caught_by = PADDING_1
    says = r"differs at index \[0, 0, 0, 0\](.|\n)*expected   1\n"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        border = _one(padding)
        return F.conv2d(F.pad(input, (border,) * 4, value=1), weight, bias, stride)


class StrideIsIgnored(Fault):
    """The window always moves by one."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"has shape \[1, 1, 3, 3\], expected \[1, 1, 2, 2\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        return F.conv2d(input, weight, bias, 1, padding)


class StrideMovesVerticallyOnly(Fault):
    """To the right the window always moves by one."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"has shape \[1, 1, 2, 3\], expected \[1, 1, 2, 2\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        return F.conv2d(input, weight, bias, (_one(stride), 1), padding)


class StrideMovesHorizontallyOnly(Fault):
    """Downwards the window always moves by one."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"has shape \[1, 1, 3, 2\], expected \[1, 1, 2, 2\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        return F.conv2d(input, weight, bias, (1, _one(stride)), padding)


class StrideMovesVerticallyInAnOutputOfTheRightSize(Fault):
    """The size is right, but column j starts at j instead of j · stride."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"expected   3"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        step = _one(stride)
        output = F.conv2d(input, weight, bias, (step, 1), padding)
        return output[..., : (output.shape[-1] - 1) // step + 1]


class StrideMovesHorizontallyInAnOutputOfTheRightSize(Fault):
    """The size is right, but row i starts at i instead of i · stride."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"differs"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        step = _one(stride)
        output = F.conv2d(input, weight, bias, (1, step), padding)
        return output[..., : (output.shape[-2] - 1) // step + 1, :]


class StrideMovesNowhereInAnOutputOfTheRightSize(Fault):
    """The size is right, but the window moves by one both ways."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"differs"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        step = _one(stride)
        output = F.conv2d(input, weight, bias, 1, padding)
        return output[..., : (output.shape[-2] - 1) // step + 1, : (output.shape[-1] - 1) // step + 1]


class BiasIsAddedToEachProduct(Fault):
    """The bias is added within the sum, once for each element of the kernel."""

    caught_by = "test_08_convolution.py::test_bias_is_added_to_each_output_channel"
    says = r"expected   17"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        return F.conv2d(input, weight, None if bias is None else bias * weight[0].numel(), stride, padding)


class OutputHasTheSizeOfStrideOne(Fault):
    """The size formula forgets the stride, and what no window gives stays zero."""

    caught_by = "test_08_convolution.py::test_stride_is_the_step"
    says = r"has shape \[1, 1, 3, 3\], expected \[1, 1, 2, 2\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0) -> Tensor:
        output = torch.zeros_like(F.conv2d(input, weight, bias, 1, padding))
        right_one = F.conv2d(input, weight, bias, stride, padding)
        output[:, :, : right_one.shape[2], : right_one.shape[3]] = right_one
        return output


class MeanInsteadOfSum(Fault):
    """The products of a window are averaged, not added up."""

    caught_by = STRIDE_1
    says = r"differs at index \[0, 0, 0, 0\](.|\n)*expected   10"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return (F.conv2d(input, weight, *args, **options) / weight[0].numel()).to(input.dtype)


class KernelIsTransposed(Fault):
    """Rows and columns of the kernel are exchanged."""

    caught_by = STRIDE_1
    says = r"expected   10"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.conv2d(input, weight.mT, *args, **options)


class OutputIsTransposed(Fault):
    """Rows and columns of the output are exchanged."""

    caught_by = STRIDE_1
    says = r"expected   12"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.conv2d(input, weight, *args, **options).mT


class TheLastWindowIsForgotten(Fault):
    """The loop ends one window early: the size formula lacks its + 1."""

    caught_by = STRIDE_1
    says = r"has shape \[1, 1, 2, 2\], expected \[1, 1, 3, 3\]"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.conv2d(input, weight, *args, **options)[:, :, :-1, :-1]


class BiasIsForgotten(Fault):
    """The parameter is taken and not used."""

    caught_by = "test_08_convolution.py::test_bias_is_added_to_each_output_channel"
    says = r"expected   17"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **options: Any) -> Tensor:
        return F.conv2d(input, weight, None, *args, **options)


class OnlyTheFirstChannelCounts(Fault):
    """The sum is over the rows and columns of one channel."""

    caught_by = "test_08_convolution.py::test_conv2d_equals_the_definition_for_large_sizes"
    says = r"the result differs"

    @staticmethod
    def conv2d(
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        first = input.unflatten(1, (groups, -1))[:, :, 0]
        return F.conv2d(first, weight[:, :1], bias, stride, padding, dilation, groups)


class OneWindowTooFew(Fault):
    """The size formula lacks its + 1."""

    caught_by = "test_09_convolution_layer.py::test_the_documented_sizes"
    says = r"assert "

    @staticmethod
    def conv2d_output_size(input_size: Any, kernel_size: Any, *args: Any, **options: Any) -> tuple[int, int]:
        height, width = right.conv2d_output_size(input_size, kernel_size, *args, **options)
        return height - 1, width - 1


class PaddingIsCountedOnce(Fault):
    """The size formula adds the border of one side."""

    caught_by = "test_09_convolution_layer.py::test_the_documented_sizes"
    says = r"assert "

    @staticmethod
    def conv2d_output_size(input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0) -> tuple[int, int]:
        sizes = input_size if isinstance(input_size, tuple) else (input_size, input_size)
        height, width = ((s + _one(padding) - _one(kernel_size)) // _one(stride) + 1 for s in sizes)
        return height, width


# chapter 10: pooling


class MeanInsteadOfMaximum(Fault):
    """The mean of the window instead of its largest number."""

    caught_by = "test_10_pooling.py::test_ceil_mode_keeps_incomplete_windows"
    says = r"the result"

    @staticmethod
    def max_pool2d(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        return F.avg_pool2d(input.double(), kernel_size, stride, padding, ceil_mode).to(input.dtype)


class MinimumInsteadOfMaximum(Fault):
    """The smallest number of the window instead of its largest."""

    caught_by = "test_10_pooling.py::test_ceil_mode_keeps_incomplete_windows"
    says = r"the result"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
    ) -> Tensor:
        return -F.max_pool2d(-input, kernel_size, stride, padding, dilation, ceil_mode)


class SumInsteadOfMean(Fault):
    """The numbers of the window are added up and not divided."""

    caught_by = "test_10_pooling.py::test_avg_pool2d_is_the_mean_of_each_window"
    says = r"differs"

    @staticmethod
    def avg_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, *args: Any, **options: Any) -> Tensor:
        return F.avg_pool2d(input, kernel_size, stride, *args, **options | {"divisor_override": 1})


class CeilModeIsAlwaysOn(Fault):
    """A window that reaches out is always kept."""

    caught_by = "test_10_pooling.py::test_ceil_mode_keeps_incomplete_windows"
    says = r"has shape .* expected"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
    ) -> Tensor:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, True)


class CeilModeIsIgnored(Fault):
    """A window that reaches out is always left out."""

    caught_by = "test_10_pooling.py::test_ceil_mode_keeps_incomplete_windows"
    says = r"has shape .* expected"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
    ) -> Tensor:
        return F.max_pool2d(input, kernel_size, stride, padding, dilation)


class TheWindowIsNotTheStep(Fault):
    """Without a stride the window moves by one, as in a convolution."""

    caught_by = "test_10_pooling.py::test_ceil_mode_keeps_incomplete_windows"
    says = r"has shape"

    @staticmethod
    def max_pool2d(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
    ) -> Tensor:
        return F.max_pool2d(input, kernel_size, 1 if stride is None else stride, padding, dilation, ceil_mode)


# chapter 11: activations


class SigmoidOfTheOpposite(Fault):
    """1 / (1 + exp(x)): the minus sign is missing."""

    caught_by = "test_11_activation.py::test_sigmoid_equals_1_over_1_plus_exp"
    says = r"differs"

    @staticmethod
    def sigmoid(input: Tensor) -> Tensor:
        return 1 / (1 + input.exp())


class ReluKeepsTheNegative(Fault):
    """min(0, x) instead of max(0, x)."""

    caught_by = "test_11_activation.py::test_relu_gives_the_documented_matrix"
    says = r"differs"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return input.clamp(max=0)


class SigmoidIsTanh(Fault):
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x)) is tanh."""

    caught_by = "test_11_activation.py::test_sigmoid_of_0_is_a_half"
    says = r"got        0\.0"

    @staticmethod
    def sigmoid(input: Tensor) -> Tensor:
        return input.tanh()


class TanhIsSigmoid(Fault):
    """1 / (1 + exp(-x)) is sigmoid."""

    caught_by = "test_11_activation.py::test_tanh_is_the_hyperbolic_tangent"
    says = r"differs"

    @staticmethod
    def tanh(input: Tensor) -> Tensor:
        return input.sigmoid()


class TanhHasHalfTheExponent(Fault):
    """2 · sigmoid(x) - 1 is tanh(x / 2)."""

    caught_by = "test_11_activation.py::test_tanh_is_the_hyperbolic_tangent"
    says = r"differs"

    @staticmethod
    def tanh(input: Tensor) -> Tensor:
        return (input / 2).tanh()


class ReluLetsEveryGradientThrough(Fault):
    """The derivative is 1 for negative numbers too."""

    caught_by = "test_11_activation.py::test_relu_is_differentiable_twice"
    says = r"gradient"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return input + (input.clamp(min=0) - input).detach()


class ReluIsTheStep(Fault):
    """1 for a positive number, instead of the number."""

    caught_by = "test_11_activation.py::test_relu_gives_the_documented_matrix"
    says = r"differs"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return (input > 0).to(input.dtype)


class NegativeSlopeIsSubtracted(Fault):
    """max(0, x) - slope · min(0, x): negative numbers become positive."""

    caught_by = "test_11_activation.py::test_leaky_relu_default_slope_is_0_01"
    says = r"differs"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return input.clamp(min=0) - negative_slope * input.clamp(max=0)


class SlopeIsOnTheWrongSide(Fault):
    """Positive numbers are multiplied by the slope instead of negative ones."""

    caught_by = "test_11_activation.py::test_leaky_relu_default_slope_is_0_01"
    says = r"differs"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return torch.where(input > 0, negative_slope * input, input)


class SlopeOfAFifth(Fault):
    """0.2 by default, as in networks that draw images; PyTorch's default is 0.01."""

    caught_by = "test_11_activation.py::test_leaky_relu_default_slope_is_0_01"
    says = r"differs"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.2, inplace: bool = False) -> Tensor:
        return F.leaky_relu(input, negative_slope)


class LogarithmToTheBaseOf10(Fault):
    """log10 instead of the natural logarithm."""

    caught_by = "test_11_activation.py::test_log_softmax_equals_logit_minus_log_sum_exp"
    says = r"differs"

    @staticmethod
    def log_softmax(input: Tensor, dim: Any = None, dtype: Any = None) -> Tensor:
        return F.log_softmax(input, dim, dtype=dtype) / math.log(10)


class SoftmaxHasNoExponential(Fault):
    """x / sum(x)."""

    caught_by = "test_11_activation.py::test_softmax_equals_exp_over_sum_of_exp"
    says = r"differs"

    @staticmethod
    def softmax(input: Tensor, dim: Any = None, dtype: Any = None) -> Tensor:
        input = input if dtype is None else input.to(dtype)
        return input / input.sum(dim, keepdim=True)


class SoftmaxIsTakenTwice(Fault):
    """The softmax of the softmax, which is flatter."""

    caught_by = "test_11_activation.py::test_softmax_equals_exp_over_sum_of_exp"
    says = r"differs"

    @staticmethod
    def softmax(input: Tensor, dim: Any = None, dtype: Any = None) -> Tensor:
        return F.softmax(F.softmax(input, dim, dtype=dtype), dim)


class SoftmaxIsOverTheFirstDimension(Fault):
    """The shares of the images of a batch add up to 1, not those of the classes."""

    caught_by = "test_11_activation.py::test_softmax_equals_exp_over_sum_of_exp"
    says = r"differs"

    @staticmethod
    def softmax(input: Tensor, dim: Any = None, dtype: Any = None) -> Tensor:
        return F.softmax(input, 0, dtype=dtype)


class SoftmaxIsOverTheLastDimension(Fault):
    """Whatever `dim` says."""

    caught_by = "test_11_activation.py::test_softmax_equals_exp_over_sum_of_exp"
    says = r"differs"

    @staticmethod
    def softmax(input: Tensor, dim: Any = None, dtype: Any = None) -> Tensor:
        return F.softmax(input, -1, dtype=dtype)


class TheLargestIsNotSubtracted(Fault):
    """exp(x) / sum(exp(x)): a large number overflows to infinity, and infinity / infinity is NaN."""

    caught_by = "test_11_activation.py::test_softmax_does_not_overflow"
    says = r"differs"

    @staticmethod
    def softmax(input: Tensor, dim: Any = None, dtype: Any = None) -> Tensor:
        exponentials = (input if dtype is None else input.to(dtype)).exp()
        return exponentials / exponentials.sum(dim, keepdim=True)


# chapter 12: linear layers


class TheWeightIsNotTransposed(Fault):
    """input @ weight instead of input @ weight.T: the weight has a row for each output."""

    caught_by = "test_12_linear.py::test_linear_is_the_sum_of_products"
    says = r"mat1 and mat2|size|differs|shape"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return input @ weight if bias is None else input @ weight + bias


class BiasIsSubtracted(Fault):
    """The bias has the wrong sign."""

    caught_by = "test_12_linear.py::test_linear_is_the_sum_of_products"
    says = r"differs"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(input, weight, None if bias is None else -bias)


# chapter 12: dropout and normalization


class DropsInEvaluationOnly(Fault):
    """Training and evaluation are mixed up."""

    caught_by = "test_12_dropout.py::test_dropout_is_the_identity_in_evaluation"
    says = r"differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p, not training, inplace)


class DropsInEvaluationToo(Fault):
    """`training` is not looked at."""

    caught_by = "test_12_dropout.py::test_dropout_is_the_identity_in_evaluation"
    says = r"differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p, True, inplace)


class WhatStaysIsDividedByP(Fault):
    """1 / p instead of 1 / (1 - p)."""

    caught_by = "test_12_dropout.py::test_kept_elements_are_divided_by_1_minus_p"
    says = r"differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p, True) * (1 - p) / p if training and 0 < p < 1 else F.dropout(input, p, training)


class WhatStaysIsMultiplied(Fault):
    """The numbers that stay are multiplied by 1 - p instead of divided by it."""

    caught_by = "test_12_dropout.py::test_kept_elements_are_divided_by_1_minus_p"
    says = r"differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p, training) * ((1 - p) ** 2 if training else 1)


def _batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
    *,
    normalizing: int = 0,
    remembered: int = 1,
    old: bool = False,
    update: bool = True,
    squared: bool = False,
    swapped: bool = False,
    batch: bool = False,
    always: bool = False,
    share: float | None = None,
) -> Tensor:
    """Batch normalization with the mistakes that the options name."""
    over = [dim for dim in range(input.dim()) if dim != 1]
    shape = [1, -1] + [1] * (input.dim() - 2)
    mean, variance = input.mean(over), input.var(over, correction=normalizing)
    if (training or always) and update and running_mean is not None:
        part = (1 - momentum if old else momentum) if share is None else share
        with torch.no_grad():
            running_mean.mul_(1 - part).add_(mean, alpha=part)
            running_var.mul_(1 - part).add_(input.var(over, correction=remembered), alpha=part)
    if training == swapped and not batch and running_mean is not None:
        mean, variance = running_mean, running_var
    deviation = variance + eps if squared else (variance + eps).sqrt()
    output = (input - mean.reshape(shape)) / deviation.reshape(shape)
    if weight is not None:
        output = output * weight.reshape(shape)
    return output if bias is None else output + bias.reshape(shape)


class BesselsCorrectionNormalizes(Fault):
    """The variance that normalizes is divided by n - 1; it must be divided by n."""

    caught_by = "test_12_normalization.py::test_batch_norm_of_two_values_is_plus_and_minus_one_half"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, normalizing=1)


class BesselsCorrectionIsMissing(Fault):
    """The variance that is remembered is divided by n; it must be divided by n - 1."""

    caught_by = "test_12_normalization.py::test_batch_norm_default_momentum_is_0_1"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, remembered=0)


class MomentumIsThePartOfTheOld(Fault):
    """running = momentum · running + (1 - momentum) · new, as optimizers have it."""

    caught_by = "test_12_normalization.py::test_batch_norm_default_momentum_is_0_1"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, old=True)


class RunningStatisticsStandStill(Fault):
    """Training does not update running_mean and running_var."""

    caught_by = "test_12_normalization.py::test_batch_norm_default_momentum_is_0_1"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, update=False)


class TheVarianceDivides(Fault):
    """The variance divides instead of its root, the standard deviation."""

    caught_by = "test_12_normalization.py::test_batch_norm_of_two_values_is_plus_and_minus_one_half"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, squared=True)


class EvaluationUsesTheBatch(Fault):
    """Evaluation computes the statistics of the batch instead of using the running ones."""

    caught_by = "test_12_normalization.py::test_evaluation_uses_running_statistics_without_updating"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, batch=True)


class RunningStatisticsChangeInEvaluation(Fault):
    """Evaluation updates running_mean and running_var too."""

    caught_by = "test_12_normalization.py::test_evaluation_uses_running_statistics_without_updating"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, always=True)


class TheRunningStatisticsAreReplaced(Fault):
    """running = new: nothing of the old is kept."""

    caught_by = "test_12_normalization.py::test_batch_norm_default_momentum_is_0_1"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, share=1.0)


class TrainingAndEvaluationAreMixedUp(Fault):
    """Training uses the running statistics, evaluation those of the batch."""

    caught_by = "test_12_normalization.py::test_evaluation_uses_running_statistics_without_updating"
    says = r"differs"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Any, running_var: Any, *args: Any, **options: Any) -> Tensor:
        return _batch_norm(input, running_mean, running_var, *args, **options, swapped=True)
