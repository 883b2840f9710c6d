"""Chapter 14: losses that are wrong."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]()


def modulo_256(target: Tensor, ignore_index: int) -> int:
    """The number that equals `ignore_index` when it is compared in one byte."""
    return ignore_index % 256 if target.dtype == torch.uint8 else ignore_index


# l1_loss


class DifferencesCancel(Fault):
    """The absolute value of the mean, instead of the mean of the absolute values."""

    caught_by = "test_14_loss.py::test_the_l1_loss_is_the_absolute_difference"
    says = r"each loss differs"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Any = None) -> Tensor:
        return reduced(input - target, reduction).abs() if reduction != "none" else input - target


class L1LossSumsByDefault(Fault):
    """The differences are squared, as in the chapter's mean squared error."""

    caught_by = "test_14_loss.py::test_the_l1_loss_is_printed_as_0_6667"
    says = r"got        2.0\n.*expected   0.6667"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "sum", **options: Any) -> Tensor:
        return F.l1_loss(input, target, reduction=reduction, **options)


class L1LossIsRoundedAtTheTarget(Fault):
    """The smooth √(d² + ε) instead of |d|."""

    caught_by = "test_14_loss.py::test_the_gradient_of_the_l1_loss_is_the_sign_of_the_difference"
    says = r"the sum's gradient of the input differs"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Any = None) -> Tensor:
        return reduced(((input - target).square() + 1e-6).sqrt(), reduction)


class L1WeightsDoNotCountInTheMean(Fault):
    """The sum of weighted losses is divided by their number instead of the sum of the weights."""

    caught_by = "test_14_loss.py::test_the_l1_loss_takes_a_weight_for_each_element"
    says = r"their mean differs"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Any = None) -> Tensor:
        losses = F.l1_loss(input, target, reduction="none")
        return reduced(losses if weight is None else losses * weight, reduction)


# L1Loss


class L1LayerForgetsItsReduction(Fault):
    """The constructor accepts `reduction`, and forward does not use it."""

    caught_by = "test_14_loss.py::test_l1_layer_reduction"
    says = r"got        0.66\d+\n.*expected   2.0"

    class L1Loss(nn.L1Loss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return F.l1_loss(input, target)


class L1LayerSquares(Fault):
    """The layer squares the differences, because its code is copied from another layer."""

    caught_by = "test_14_loss.py::test_l1_layer_reduction"
    says = r"got        1.33\d+\n.*expected   0.66"

    class L1Loss(nn.L1Loss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(input, target, reduction=self.reduction)


class L1LayerPrintsItsReduction(Fault):
    """The repr shows arguments, which PyTorch's losses do not show."""

    caught_by = "test_14_loss.py::test_l1_layer_name_and_empty_state_dict"
    says = r"L1Loss\(reduction='mean'\)"

    class L1Loss(nn.L1Loss):
        def extra_repr(self) -> str:
            return f"reduction={self.reduction!r}"


# mse_loss


class MeanSquaredErrorIsHalved(Fault):
    """Half of the squared error, as in textbooks."""

    caught_by = "test_14_loss.py::test_the_sum_of_squared_errors_is_printed_as_4"
    says = r"got        2.0\n.*expected   4.0"

    @staticmethod
    def mse_loss(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        return F.mse_loss(input, target, **options) / 2


class MeanIsOverTheBatchOnly(Fault):
    """The sum of the squares is divided by the number of images instead of the number of elements."""

    caught_by = "test_14_loss.py::test_the_mse_loss_is_the_squared_difference"
    says = r"their mean differs"

    @staticmethod
    def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Any = None) -> Tensor:
        losses = (input - target).square()
        return (
            losses.sum() / (len(losses) if losses.dim() else 1) if reduction == "mean" else reduced(losses, reduction)
        )


class MeanSquaredErrorIsTheRoot(Fault):
    """The square root of the mean."""

    caught_by = "test_14_loss.py::test_mse_loss_sum_is_4_and_the_mean_is_a_third"
    says = r"got        1.15\d+\n.*expected   1.333\d+"

    @staticmethod
    def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", **options: Any) -> Tensor:
        loss = F.mse_loss(input, target, reduction=reduction, **options)
        return loss.sqrt() if reduction == "mean" else loss


class MeanSquaredErrorBroadcastsInSilence(Fault):
    """Broadcasting [batch, 1] and [batch] to [batch, batch] gives no warning."""

    caught_by = "test_14_loss.py::test_the_mse_loss_broadcasts_with_a_warning"
    says = r"DID NOT WARN"

    @staticmethod
    def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean", weight: Any = None) -> Tensor:
        return reduced((input - target).square(), reduction)


# MSELoss


class MSELayerSumsByDefault(Fault):
    """The sum instead of the mean, as the chapter's comment suggests with a mean squared error of 4."""

    caught_by = "test_14_loss.py::test_mse_layer_reduction"
    says = r"got        4.0\n.*expected   1.33"

    class MSELoss(nn.MSELoss):
        def __init__(self, *, reduction: str = "sum") -> None:
            super().__init__(reduction=reduction)


class MSELayerAlwaysReduces(Fault):
    """`reduction="none"` is not supported."""

    caught_by = "test_14_loss.py::test_mse_layer_reduction"
    says = r"has shape \[\], expected \[3\]"

    class MSELoss(nn.MSELoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            losses = (input - target).square()
            return losses.sum() if self.reduction == "sum" else losses.mean()


class MSELayerKeepsItsReductionInTheState(Fault):
    """A setting is a buffer, so that it is in the state dict."""

    caught_by = "test_14_loss.py::test_mse_layer_name_and_empty_state_dict"
    says = r"scale"

    class MSELoss(nn.MSELoss):
        def __init__(self, *, reduction: str = "mean") -> None:
            super().__init__(reduction=reduction)
            self.register_buffer("scale", torch.ones(()))


# nll_loss


class WeightedMeanDividesByTheCount(Fault):
    """The mean divides by the number of losses instead of the sum of the weights."""

    caught_by = "test_14_cross_entropy.py::test_nll_loss_options"
    says = r"got        3.0\n.*expected   2.0"

    @staticmethod
    def nll_loss(
        input: Tensor, target: Tensor, weight: Any = None, *, reduction: str = "mean", **options: Any
    ) -> Tensor:
        return reduced(F.nll_loss(input, target, weight, reduction="none", **options), reduction)


class NegativeLogLikelihoodIsPositive(Fault):
    """The minus sign is missing."""

    caught_by = "test_14_cross_entropy.py::test_nll_loss_options"
    says = r"got        -2.5\n.*expected   2.5"

    @staticmethod
    def nll_loss(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return -F.nll_loss(input, target, *args, **options)


class ClassesAreTheLastDimension(Fault):
    """The loss is right for [batch, classes] only, not for [batch, classes, positions]."""

    caught_by = "test_14_cross_entropy.py::test_nll_loss_is_the_negated_weighted_score_of_the_target"
    says = r"shape|size|out of bounds|Target|got        0\.4\S*\n.*expected   0\.2"

    @staticmethod
    def nll_loss(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.nll_loss(input.reshape(-1, input.shape[-1]), target.flatten(), *args, **options)


class IgnoredPlacesAreMultipliedBy0(Fault):
    """An ignored loss is multiplied by 0, which gives NaN for NaN."""

    caught_by = "test_14_cross_entropy.py::test_nan_and_inf_count_in_the_nll_loss_only_for_the_target"
    says = r"got        nan\n.*expected   0.0"

    @staticmethod
    def nll_loss(
        input: Tensor, target: Tensor, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        kept = (target != ignore_index).to(input.dtype)
        labels = target.masked_fill(target == ignore_index, 0)
        return reduced(F.nll_loss(input, labels, weight, reduction="none") * kept, reduction)


# NLLLoss


class OneByteIsComparedModulo256(Fault):
    """`ignore_index` is compared in the dtype of the target: -100 becomes 156."""

    caught_by = "test_14_cross_entropy.py::test_nll_loss_compares_uint8_classes_as_integers"
    says = r"the loss, none differs at index \[0\]\n.*got        -?0.0"

    @staticmethod
    def nll_loss(input: Tensor, target: Tensor, *, ignore_index: int, reduction: str) -> Tensor:
        index = modulo_256(target, ignore_index)
        return F.nll_loss(input, target, ignore_index=index, reduction=reduction)


class HalfPrecisionIsAddedUp(Fault):
    """The losses are added up in their own dtype, and the sum is divided: float16 ends at 65,504."""

    caught_by = "test_14_cross_entropy.py::test_mean_of_many_nll_losses_is_finite"
    says = r"got        (inf|nan)\n.*expected   3.0"

    @staticmethod
    def nll_loss(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        losses = F.nll_loss(input, target, weight, reduction="none")
        weights = torch.ones_like(losses) if weight is None else weight[target]
        return losses.sum() / weights.sum()


class NLLLayerTrainsItsWeight(Fault):
    """The weight is a parameter instead of a buffer."""

    caught_by = "test_14_cross_entropy.py::test_nll_layer_registers_weight_as_a_buffer"
    says = r"Parameter containing"

    class NLLLoss(nn.NLLLoss):
        def __init__(self, weight: Tensor | None = None, **options: Any) -> None:
            super().__init__(**options)
            self.weight = None if weight is None else nn.Parameter(weight)


class NLLLayerForgetsWhatIsIgnored(Fault):
    """forward does not pass ignore_index on."""

    caught_by = "test_14_cross_entropy.py::test_nll_layer_options"
    says = r"got        2.5\n.*expected   1.0"

    class NLLLoss(nn.NLLLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return F.nll_loss(input, target, self.weight, reduction=self.reduction)


class NLLLayerComparesOneByteModulo256(Fault):
    """The layer keeps its `ignore_index` in the dtype of the target."""

    caught_by = "test_14_cross_entropy.py::test_nll_layer_compares_uint8_classes_as_integers"
    says = r"the loss, none differs at index \[0\]\n.*got        -?0.0"

    class NLLLoss(nn.NLLLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            index = modulo_256(target, self.ignore_index)
            return F.nll_loss(input, target, self.weight, ignore_index=index, reduction=self.reduction)


class NLLLayerWeighsInTrainingOnly(Fault):
    """In evaluation the class weights are not used."""

    caught_by = "test_14_cross_entropy.py::test_nll_layer_options"
    says = r"got        2.5\n.*expected   2.0"

    class NLLLoss(nn.NLLLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            weight = self.weight if self.training else None
            return F.nll_loss(input, target, weight, ignore_index=self.ignore_index, reduction=self.reduction)


# cross_entropy


class SoftmaxIsAppliedTwice(Fault):
    """The input is treated as probabilities instead of logits."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"got        1.1000\d+\n.*expected   1.1018\d+"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.cross_entropy(input.softmax(0 if input.dim() == 1 else 1), target, *args, **options)


class ExponentialsOverflow(Fault):
    """The softmax does not subtract the largest logit."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_of_large_logits_does_not_overflow"
    says = r"got        (nan|inf)"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        scores = input.exp()
        return F.nll_loss((scores / scores.sum(1, keepdim=True)).log(), target, *args, **options)


class SmoothingSparesTheTarget(Fault):
    """ε is distributed over the other classes only, ε / (classes - 1) each."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_options"
    says = r"got        1.3\d+\n.*expected   1.15"

    @staticmethod
    def cross_entropy(
        input: Tensor, target: Tensor, *args: Any, label_smoothing: float = 0.0, **options: Any
    ) -> Tensor:
        classes = input.shape[1]
        share = label_smoothing * classes / (classes - 1)
        return F.cross_entropy(input, target, *args, label_smoothing=share, **options) if share <= 1 else input.sum()


class ProbabilitiesAreRoundedToTheirLargest(Fault):
    """A target of probabilities is turned into class numbers."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_of_probabilities_equals_the_definition"
    says = r"differs"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        target = target.argmax(0 if input.dim() == 1 else 1) if target.is_floating_point() else target
        return F.cross_entropy(input, target, *args, **options)


class GradientIsDetached(Fault):
    """The normalizing sum is detached, so the gradient is only minus one-hot."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_gradient_is_softmax_minus_one_hot"
    says = r"the gradient differs"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        classes = 0 if input.dim() == 1 else 1
        return F.nll_loss(input - input.detach().logsumexp(classes, keepdim=True), target, *args, **options)


# CrossEntropyLoss


class CrossEntropyComparesOneByteModulo256(Fault):
    """`ignore_index` is compared in the dtype of the target."""

    caught_by = "test_14_cross_entropy.py::test_uint8_class_156_is_not_ignored_as_minus_100"
    says = r"got        nan\n.*expected   5.29"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
        return F.cross_entropy(input, target, ignore_index=modulo_256(target, ignore_index))


class SmoothingComparesOneByteModulo256(Fault):
    """Only the uniform part of the loss is compared in one byte, as in PyTorch."""

    caught_by = "test_14_cross_entropy.py::test_smoothed_cross_entropy_compares_uint8_classes_as_integers"
    says = r"the loss, none differs at index \[0\]"

    @staticmethod
    def cross_entropy(
        input: Tensor, target: Tensor, *, ignore_index: int, reduction: str, label_smoothing: float
    ) -> Tensor:
        losses = F.cross_entropy(input, target.long(), ignore_index=ignore_index, reduction="none")
        uniform = -input.log_softmax(1).mean(1).masked_fill(target == ignore_index, 0)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
        kept = (target.long() != ignore_index).sum()
        return losses.sum() / kept if reduction == "mean" else reduced(losses, reduction)


class CrossEntropyLayerComparesOneByteModulo256(Fault):
    """The layer keeps its `ignore_index` in the dtype of the target."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_layer_compares_uint8_classes_as_integers"
    says = r"the loss, none differs at index \[0\]\n.*got        -?0.0"

    class CrossEntropyLoss(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            index = modulo_256(target, self.ignore_index)
            return F.cross_entropy(input, target, ignore_index=index, reduction=self.reduction)


class CrossEntropyIsRoundedBeforeTheMean(Fault):
    """The losses of float16 are added up in float16."""

    caught_by = "test_14_cross_entropy.py::test_mean_of_many_cross_entropies_is_finite"
    says = r"got        inf\n.*expected   6.9"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, reduction="sum") / len(input)


class CrossEntropyLayerExpectsLogProbabilities(Fault):
    """The layer computes NLLLoss."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_layer_prints_1_1019"
    says = r"got        -0.2\d*\n.*expected   1.1018\d+"

    class CrossEntropyLoss(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return F.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class CrossEntropyLayerForgetsSmoothing(Fault):
    """forward does not pass label_smoothing on."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_layer_options"
    says = r"got        1.03\d+\n.*expected   1.15"

    class CrossEntropyLoss(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class CrossEntropyLayerForgetsItsWeight(Fault):
    """The weight is a plain attribute, so it is neither saved nor moved."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_layer_registers_weight_as_a_buffer"
    says = r"\[\] == \['weight'\]"

    class CrossEntropyLoss(nn.CrossEntropyLoss):
        def __init__(self, weight: Tensor | None = None, **options: Any) -> None:
            super().__init__(**options)
            del self.weight
            self.weight = weight
