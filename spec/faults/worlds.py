"""Components that are right in an ordinary call and wrong in another mode, after copying or in a second call."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec.faults import Fault

FILE = "test_13_worlds.py::"


class InferenceTakesAShortcut(Fault):
    """Without autograd the slope for negative numbers is ignored."""

    caught_by = FILE + "test_results_under_no_grad_are_equal_and_need_no_gradient"
    says = r"the result under no_grad differs"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return F.leaky_relu(input, negative_slope if torch.is_grad_enabled() else 0.0)


class LinearTurnsAutogradOn(Fault):
    """The result requires a gradient under no_grad too."""

    caught_by = FILE + "test_results_under_no_grad_are_equal_and_need_no_gradient"
    says = r"the result of linear needs a gradient"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if torch.is_inference_mode_enabled():
            return F.linear(input, weight, bias)
        with torch.enable_grad():
            return F.linear(input, weight, bias)


class NoGradLasts(Fault):
    """A call under no_grad permanently detaches the parameters."""

    caught_by = FILE + "test_results_under_no_grad_are_equal_and_need_no_gradient"
    says = r"after no_grad the result of Linear needs no gradient any more"

    class Linear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                self.requires_grad_(False)
                input.requires_grad_(False)
            return super().forward(input)


class FrozenLayersStopTheGradient(Fault):
    """If the weight requires no gradient, the input gets none."""

    caught_by = FILE + "test_gradient_of_each_argument_alone_equals_the_joint_gradient"
    says = r"Linear: input alone needs a gradient, and the result does not"

    class Linear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input if self.weight.requires_grad else input.detach())


class TheBiasAloneLearnsNothing(Fault):
    """Autograd is disabled unless input or weight requires a gradient, so the bias gets none."""

    caught_by = FILE + "test_gradient_of_each_argument_alone_equals_the_joint_gradient"
    says = r"conv2d: bias alone needs a gradient, and the result does not"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)):
            return F.conv2d(input, weight, bias, *args, **options)


class TheWeightNeedsItsInput(Fault):
    """The weight of a normalization has a gradient only if the input has."""

    caught_by = FILE + "test_gradient_of_each_argument_alone_equals_the_joint_gradient"
    says = r"layer_norm: weight alone needs a gradient, and the result does not"

    @staticmethod
    def layer_norm(
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        if weight is not None and not input.requires_grad:
            weight = weight.detach()
        return F.layer_norm(input, normalized_shape, weight, bias, eps)


class SoftmaxShiftsItsInput(Fault):
    """The largest number is subtracted in place."""

    caught_by = FILE + "test_a_call_changes_no_argument_and_no_parameter"
    says = r"input after the call differs|was written to"

    @staticmethod
    def softmax(input: Tensor, dim: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        with torch.no_grad():
            input.sub_(input.amax(-1, keepdim=True))
        return F.softmax(input, dim, dtype=dtype)


class LossWritesTheIgnoredTargets(Fault):
    """Ignored targets are set to class 0 in place."""

    caught_by = FILE + "test_a_call_changes_no_argument_and_no_parameter"
    says = r"modified by an inplace operation|target was written to"

    @staticmethod
    def nll_loss(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        loss = F.nll_loss(input, target, *args, **options)
        target.masked_fill_(target == options.get("ignore_index", -100), 0)
        return loss


class ReluOfPositiveNumbersIsTheInput(Fault):
    """If the result equals the input, the input itself is returned."""

    caught_by = FILE + "test_identity_operations_return_a_copy"
    says = r"relu gives a view of its input"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return input if bool((input > 0).all()) else F.relu(input, inplace)

    max_pool2d = staticmethod(F.max_pool2d)
    avg_pool2d = staticmethod(F.avg_pool2d)
    adaptive_avg_pool2d = staticmethod(F.adaptive_avg_pool2d)
    leaky_relu = staticmethod(F.leaky_relu)


class FlattenCopies(Fault):
    """The result is a copy instead of a view."""

    caught_by = FILE + "test_results_own_memory_unless_views"
    says = r"flatten: the result is a copy, not a view of input"

    @staticmethod
    def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return torch.flatten(input, start_dim, end_dim).clone()


class DropoutInEvaluationCopies(Fault):
    """The identity returns a copy instead of the input."""

    caught_by = FILE + "test_results_own_memory_unless_views"
    says = r"Dropout: the result is a copy, not a view of input"

    class Dropout(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).clone()


class TheHiddenStateOfTheLastCallGoesOn(Fault):
    """A call starts from the final state of the previous call."""

    caught_by = FILE + "test_a_second_call_with_another_size_uses_no_cached_result"
    says = r"GRU: (a call|the first call, repeated,).* differs"

    class GRU(nn.GRU):
        last: Any = None

        def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            if hx is None and self.last is not None and self.last.shape[1] == input.shape[1]:
                hx = self.last
            found = super().forward(input, hx)
            self.last = found[1].detach()
            return found


class ThePaddingOfTheFirstCallIsKept(Fault):
    """The first result is reused for all inputs of the same size."""

    caught_by = FILE + "test_a_second_call_with_another_size_uses_no_cached_result"
    says = r"a call with other numbers differs"

    class AvgPool2d(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            kept = self.__dict__.setdefault("kept", {})
            return kept.setdefault(input.shape, super().forward(input))


class DropoutDrawsInEvaluation(Fault):
    """A random mask is drawn but not used."""

    caught_by = FILE + "test_a_call_without_dropout_draws_no_random_numbers"
    says = r"Dropout draws random numbers"

    class Dropout(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            torch.rand_like(input)
            return super().forward(input)


class ANewLayerDrawsTwice(Fault):
    """The parameters are drawn a second time."""

    caught_by = FILE + "test_initialization_draws_equal_those_of_pytorch"
    says = r"what is drawn after a new Linear differs"

    class Linear(nn.Linear):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.reset_parameters()


class LayersShareTheirBias(Fault):
    """All layers of the same size share one bias."""

    caught_by = FILE + "test_two_layers_share_no_memory"
    says = r"parameters or buffers of two layers have the same memory"

    class Linear(nn.Linear):
        biases: ClassVar[dict[int, nn.Parameter]] = {}

        def __init__(self, in_features: int, out_features: int, *args: Any, **options: Any) -> None:
            super().__init__(in_features, out_features, *args, **options)
            self.bias = self.biases.setdefault(out_features, self.bias)

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            for parameter in self.parameters():
                parameter.data = fn(parameter.data)
            return self


class ACopySharesTheWeight(Fault):
    """deepcopy shares the weight with the original."""

    caught_by = FILE + "test_deepcopy_of_a_layer_is_equal_and_shares_no_memory"
    says = r"isdisjoint|after the copy was changed"

    class Embedding(nn.Embedding):
        def __deepcopy__(self, memo: Any) -> Any:
            twin = type(self)(self.num_embeddings, self.embedding_dim)
            twin.weight = self.weight
            return twin.train(self.training)


class ACopyIsInTraining(Fault):
    """A copy of a layer in evaluation mode is in training mode."""

    caught_by = FILE + "test_deepcopy_of_a_layer_is_equal_and_shares_no_memory"
    says = r"training"

    class Dropout(nn.Dropout):
        def __deepcopy__(self, memo: Any) -> Any:
            return type(self)(self.p, self.inplace)


class TheDtypeIsForgotten(Fault):
    """The argument is accepted and not used."""

    caught_by = FILE + "test_layers_have_the_requested_dtype"
    says = r"dtype=: not in torch.float64"

    class LayerNorm(nn.LayerNorm):
        def __init__(self, *args: Any, dtype: Any = None, **options: Any) -> None:
            super().__init__(*args, **options)


class TheDeviceIsForgotten(Fault):
    """The running statistics are always on the CPU."""

    caught_by = FILE + "test_a_layer_on_the_meta_device_has_shapes_and_no_numbers"
    says = r"not on the meta device: \['running_mean'"

    class BatchNorm2d(nn.BatchNorm2d):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.running_mean = torch.zeros(self.num_features)


class ResetForgetsTheStatistics(Fault):
    """Weight and bias are reset, the running statistics are not."""

    caught_by = FILE + "test_reset_parameters_gives_the_state_of_a_new_layer"
    says = r"running_mean after reset_parameters differs"

    class BatchNorm2d(nn.BatchNorm2d):
        def reset_running_stats(self) -> None:
            if self.num_batches_tracked is None or self.num_batches_tracked == 0:
                super().reset_running_stats()


class ResetForgetsTheBias(Fault):
    """The weight is drawn anew, the bias is not."""

    caught_by = FILE + "test_reset_parameters_gives_the_state_of_a_new_layer"
    says = r"bias after reset_parameters differs"

    class Conv2d(nn.Conv2d):
        done = False

        def reset_parameters(self) -> None:
            old = self.bias.detach().clone() if self.done and self.bias is not None else None
            super().reset_parameters()
            self.done = True
            if old is not None:
                self.bias.data.copy_(old)  # pyright: ignore[reportOptionalMemberAccess]


class TheLastInputIsKept(Fault):
    """A layer keeps a reference to its last input."""

    caught_by = FILE + "test_memory_of_a_call_is_released_with_the_result"
    says = r"Tanh: of the inputs and results \[0\] of 2 are still in memory"

    class Tanh(nn.Tanh):
        def forward(self, input: Tensor) -> Tensor:
            self.seen = input.detach()
            return super().forward(input)


class EvaluationRounds(Fault):
    """In evaluation a layer computes in half precision."""

    caught_by = FILE + "test_a_layer_without_dropout_gives_the_same_in_training_and_evaluation"
    says = r"the result in evaluation differs"

    class Sigmoid(nn.Sigmoid):
        def forward(self, input: Tensor) -> Tensor:
            if self.training:
                return super().forward(input)
            return super().forward(input.bfloat16()).to(input.dtype)


class AutocastIsLeftOut(Fault):
    """The product is computed without an operation that autocast handles."""

    caught_by = FILE + "test_autocast_computes_convolutions_and_matrix_products_in_bfloat16"
    says = r"linear under autocast is in torch.float32"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = (input[..., None, :] * weight).sum(-1)
        return found if bias is None else found + bias
