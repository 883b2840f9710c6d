"""Chapter 12, other layers: normalizations that are wrong."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault


class VarianceIsUnbiased(Fault):
    """The variance is divided by n - 1 instead of n, as in `torch.var` by default."""

    caught_by = "test_12_normalization.py::test_batch_norm_of_two_values_is_plus_and_minus_one_half"
    says = r"differs at index \[0, 0, 0\](.|\n)*expected   -0\.5"

    @staticmethod
    def batch_norm(
        input: Tensor, running_mean: Any, running_var: Any, *rest: Any, training: bool = False, eps: float = 1e-5
    ) -> Tensor:
        over = [dim for dim in range(input.dim()) if dim != 1]
        return (input - input.mean(over, keepdim=True)) / (input.var(over, keepdim=True) + eps).sqrt()


class RunningVarianceIsBiased(Fault):
    """The running variance is updated with the biased variance."""

    caught_by = (
        "test_12_normalization.py::test_running_statistics_use_mean_and_unbiased_variance"
    )  # fmt: skip
    says = r"the running variance differs"

    @staticmethod
    def batch_norm(
        input: Tensor, running_mean: Tensor, running_var: Tensor, training: bool = False, momentum: float = 0.1
    ) -> Tensor:
        over = [dim for dim in range(input.dim()) if dim != 1]
        biased = input.double().var(over, correction=0)
        updated = ((1 - momentum) * running_var + momentum * biased).to(running_var.dtype)
        output = F.batch_norm(input, running_mean, running_var, training=training, momentum=momentum)
        running_var.copy_(updated)
        return output


class MomentumIsTheShareOfTheOld(Fault):
    """Momentum is the share of the old value, as in optimizers."""

    caught_by = "test_12_normalization.py::test_batch_norm_default_momentum_is_0_1"
    says = r"the running mean differs(.|\n)*expected   9\.6"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: Tensor, running_var: Tensor, *, training: bool) -> Tensor:
        return F.batch_norm(input, running_mean, running_var, training=training, momentum=0.9)


class StatisticsAreTakenPerSample(Fault):
    """Each image is normalized separately, as in instance normalization."""

    caught_by = "test_12_normalization.py::test_batch_norm_uses_mean_and_biased_variance_of_each_channel"
    says = r"the result differs at index"

    @staticmethod
    def batch_norm(
        input: Tensor, mean: Any, var: Any, weight: Tensor | None, bias: Tensor | None, training: bool, eps: float
    ) -> Tensor:
        return F.group_norm(input, input.shape[1], weight, bias, eps)


class EvaluationUsesTheBatch(Fault):
    """The running statistics are updated but never used."""

    caught_by = "test_12_normalization.py::test_evaluation_uses_running_statistics_without_updating"
    says = r"the result differs at index"

    @staticmethod
    def batch_norm(
        input: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, training: bool, eps: float
    ) -> Tensor:
        return F.batch_norm(input, None, None, weight, bias, training=True, eps=eps or 1e-5)


class VarianceIsADifferenceOfMeans(Fault):
    """The variance is E[x²] - E[x]², which loses all digits for large x."""

    caught_by = "test_12_normalization.py::test_batch_norm_keeps_small_differences_of_large_values"
    says = r"the result differs at index"

    @staticmethod
    def batch_norm(input: Tensor, running_mean: None, running_var: None, *, training: bool, eps: float) -> Tensor:
        over = [dim for dim in range(input.dim()) if dim != 1]
        mean = input.mean(over, keepdim=True)
        var = input.square().mean(over, keepdim=True) - mean.square()
        return (input - mean) / (var + eps).sqrt()


class BatchVarianceIsADifferenceOfMeans(Fault):
    """The variance is E[x²] - E[x]², clamped to 0: its error grows with the square of the mean."""

    caught_by = "test_12_normalization.py::test_batch_norm_error_is_at_most_proportional_to_the_offset"
    says = r"around \S+ differs at index(.|\n)*in proportion to the offset"

    @staticmethod
    def batch_norm(
        input: Tensor, running_mean: None, running_var: None, weight: Tensor, *, training: bool, eps: float = 1e-5
    ) -> Tensor:
        x, over = input.to(weight.dtype), [dim for dim in range(input.dim()) if dim != 1]
        mean = x.mean(over, keepdim=True)
        var = (x.square().mean(over, keepdim=True) - mean.square()).clamp(min=0)
        return ((x - mean) / (var + eps).sqrt()).to(input.dtype)


class SampleVarianceIsADifferenceOfMeans(Fault):
    """The variance over a sample is E[x²] - E[x]²."""

    caught_by = "test_12_normalization.py::test_layer_norm_error_is_at_most_proportional_to_the_offset"
    says = r"around \S+ differs at index(.|\n)*in proportion to the offset"

    @staticmethod
    def layer_norm(input: Tensor, normalized_shape: Any, eps: float = 1e-5) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = x.mean(-1, keepdim=True)
        var = (x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
        return ((x - mean) / (var + eps).sqrt()).to(input.dtype)


class MeanIsRoundedOnce(Fault):
    """The mean is rounded before it is subtracted: 6272 equal numbers become 0.98 instead of 0."""

    caught_by = "test_12_normalization.py::test_layer_norm_of_a_constant_sample_is_exactly_the_bias"
    says = r"got        0\.98(.|\n)*expected   0\.0"

    @staticmethod
    def layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        deviation = input - input.mean(-1, keepdim=True)
        return deviation * (deviation.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


class LayerNeverEvaluates(Fault):
    """The layer always passes `training=True`."""

    caught_by = (
        "test_12_normalization.py::test_batch_norm_layer_updates_statistics_in_training_and_applies_them_in_evaluation"
    )
    says = r"the result of pass \d differs"

    class BatchNorm2d(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            mean, var = (None, None) if not self.training else (self.running_mean, self.running_var)
            if self.training:
                return super().forward(input)
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, eps=self.eps)


class NoMomentumIsATenth(Fault):
    """`momentum=None` means the default momentum."""

    caught_by = "test_12_normalization.py::test_momentum_none_averages_all_batches_equally"
    says = r"the running mean differs(.|\n)*expected   7\.0"

    class BatchNorm2d(nn.BatchNorm2d):
        def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, **options: Any) -> None:
            super().__init__(num_features, eps, 0.1 if momentum is None else momentum, **options)


class StatisticsAreLearned(Fault):
    """The running statistics are parameters, which an optimizer would change."""

    caught_by = "test_12_normalization.py::test_batch_norm_state_dict_starts_neutral_and_loads_to_and_from_pytorch"
    says = r"running_mean"

    class BatchNorm2d(nn.BatchNorm2d):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if self.running_mean is not None:
                mean = self.running_mean
                del self.running_mean
                self.running_mean = nn.Parameter(mean, requires_grad=False)


class ASingleValueIsNormalizedToZero(Fault):
    """The variance of a single value is taken as 0 instead of raising an error."""

    caught_by = "test_12_normalization.py::test_a_single_value_per_channel_is_refused_in_training_only"
    says = r"was accepted, but must be rejected"

    class BatchNorm2d(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            single = self.training and input[:, 0].numel() == 1
            return torch.zeros_like(input) if single else super().forward(input)


class SamplesAreNormalizedOverTheBatch(Fault):
    """The mean is also taken over the first dimension."""

    caught_by = "test_12_normalization.py::test_layer_norm_of_two_values_is_plus_and_minus_one_half"
    says = r"the result differs at index \[0, 0\](.|\n)*expected   -0\.5"

    @staticmethod
    def layer_norm(input: Tensor, normalized_shape: Any, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(input, input.shape, eps=eps)


class EpsIsAddedToTheDeviation(Fault):
    """eps is added after the square root."""

    caught_by = "test_12_normalization.py::test_default_eps_is_1e_5"
    says = r"expected   -0\.3015"

    @staticmethod
    def layer_norm(input: Tensor, normalized_shape: Any, eps: float = 1e-5) -> Tensor:
        mean = input.mean(-1, keepdim=True)
        return (input - mean) / (input.std(-1, correction=0, keepdim=True) + eps)


class HalfPrecisionSquaresOverflow(Fault):
    """Half precision is not computed in float32."""

    caught_by = "test_12_normalization.py::test_layer_norm_of_values_with_squares_beyond_float16"
    says = r"got        0\.0(.|\n)*expected   1\.0"

    @staticmethod
    def layer_norm(input: Tensor, normalized_shape: Any, eps: float = 1e-5) -> Tensor:
        deviation = input - input.mean(-1, keepdim=True)
        return deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt()


class OnlyTheLastDimensionIsNormalized(Fault):
    """Only the last dimension of `normalized_shape` is normalized."""

    caught_by = "test_12_normalization.py::test_layer_norm_uses_mean_and_biased_variance_of_each_sample"
    says = r"the result differs at index"

    @staticmethod
    def layer_norm(input: Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        output = F.layer_norm(input, normalized_shape[-1:], eps=eps)
        output = output if weight is None else (output * weight).to(input.dtype)
        return output if bias is None else (output + bias).to(input.dtype)


class LayerForgetsItsBias(Fault):
    """The bias exists, but is not added."""

    caught_by = "test_12_normalization.py::test_layer_norm_layer_equals_layer_norm_with_own_weight_and_bias"
    says = r"the result differs at index"

    class LayerNorm(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return F.layer_norm(input, self.normalized_shape, self.weight, None, self.eps)


class LayerHasOneWeight(Fault):
    """There is one weight for all positions instead of one for each."""

    caught_by = "test_12_normalization.py::test_layer_norm_state_dict_starts_neutral_and_loads_to_and_from_pytorch"
    says = r"weight has shape \[1\], expected \[2, 3\]"

    class LayerNorm(nn.LayerNorm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if self.weight is not None:
                self.weight = nn.Parameter(torch.ones(1))


class NothingLearnedIsStillWritten(Fault):
    """`elementwise_affine=False` freezes the parameters instead of leaving them out."""

    caught_by = "test_12_normalization.py::test_layer_norm_layer_prints_the_arguments"
    says = r"elementwise_affine=(True|False)"

    class LayerNorm(nn.LayerNorm):
        def __init__(self, shape: Any, eps: float = 1e-5, elementwise_affine: bool = True, **options: Any) -> None:
            super().__init__(shape, eps, **options)
            self.requires_grad_(elementwise_affine)


def _as(like: Tensor, part: Tensor | None) -> Tensor | None:
    return None if part is None else part.to(like.dtype)


class MixedTypesAreComputedInSixteenBits(Fault):
    """The parameters and statistics are rounded to the dtype of the input first."""

    caught_by = "test_12_normalization.py::test_batch_norm_of_16_bits_with_float32_parameters_rounds_once"
    says = r"running_(mean|var) differs"

    @staticmethod
    def batch_norm(input: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, **options: Any) -> Any:
        kept = _as(input, mean), _as(input, var)
        output = F.batch_norm(input, *kept, weight=_as(input, weight), bias=_as(input, bias), **options)
        for part, changed in zip((mean, var), kept, strict=True):
            if part is not None:
                part.copy_(changed)
        return output


class MixedLayerNormIsComputedInSixteenBits(Fault):
    """The parameters are rounded to the dtype of the input first."""

    caught_by = "test_12_normalization.py::test_layer_norm_of_16_bits_with_float32_parameters_rounds_once"
    says = r"differs(.|\n)*one rounding of a result in float32"

    @staticmethod
    def layer_norm(input: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
        return F.layer_norm(input, shape, _as(input, weight), _as(input, bias), eps)
