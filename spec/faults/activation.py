"""Chapter 11: activations that are wrong."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault


class AbsoluteValue(Fault):
    """Negative numbers are negated instead of set to 0."""

    caught_by = "test_11_activation.py::test_relu_gives_the_documented_matrix"
    says = r"differs at index \[0, 0, 0, 1\](.|\n)*got        0\.5"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return input.abs()


class ReluByMultiplication(Fault):
    """`x * (x > 0)`, which gives NaN for −∞."""

    caught_by = "test_11_activation.py::test_relu_of_nan_and_inf"
    says = r"got        nan(.|\n)*expected   0\.0"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return input * (input > 0)


class ReluHasASlopeAt0(Fault):
    """`x >= 0` instead of `x > 0`: the derivative at 0 is 1."""

    caught_by = "test_11_activation.py::test_relu_gradient_is_0_for_inputs_up_to_0"
    says = r"the gradient differs at index \[2\]"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return torch.where(input >= 0, input, 0)


class ReluSharesTheSlopeAt0(Fault):
    """`torch.maximum` gives each of two equal numbers half of the gradient."""

    caught_by = "test_11_activation.py::test_relu_gradient_is_0_for_inputs_up_to_0"
    says = r"the gradient differs at index \[2\](.|\n)*got        2\.5"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return torch.maximum(input, torch.zeros_like(input))


class InPlaceOnACopy(Fault):
    """`inplace` is accepted and ignored."""

    caught_by = "test_11_activation.py::test_relu_in_place_writes_into_the_input"
    says = "the input afterwards differs"

    @staticmethod
    def relu(input: Tensor, inplace: bool = False) -> Tensor:
        return F.relu(input)


class AlwaysInPlace(Fault):
    """The layer writes into its input even without `inplace`."""

    caught_by = "test_11_activation.py::test_relu_changes_the_input_only_in_place"
    says = r"the data after ReLU\(\) differs"

    class ReLU(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return F.relu(input, inplace=True)


class InPlaceIsNotPassedOn(Fault):
    """The layer stores `inplace` and does not use it."""

    caught_by = "test_11_activation.py::test_relu_changes_the_input_only_in_place"
    says = r"the data after ReLU\(inplace=True\) differs"

    class ReLU(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return F.relu(input)


class ReluIsCappedAt1(Fault):
    """The layer clamps its output to the range of images."""

    caught_by = "test_11_activation.py::test_the_listing_prints_the_result_and_writes_no_events"
    says = r"\[0\., 1\.\]"

    class ReLU(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input.clamp(0, 1)


class SlopeOfATenth(Fault):
    """The default slope is wrong."""

    caught_by = "test_11_activation.py::test_leaky_relu_default_slope_is_0_01"
    says = r"got        -10\.0(.|\n)*expected   -1\.0"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.1, inplace: bool = False) -> Tensor:
        return F.leaky_relu(input, negative_slope, inplace)


class LeakyReluAsAMaximum(Fault):
    """`max(x, slope · x)`, which is right only for slopes from 0 to 1."""

    caught_by = "test_11_activation.py::test_leaky_relu_multiplies_numbers_up_to_0_by_the_slope"
    says = "the result differs"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return torch.maximum(input, negative_slope * input)


class LeakyReluHasASlopeOf1At0(Fault):
    """`x >= 0` instead of `x > 0`."""

    caught_by = "test_11_activation.py::test_the_gradient_of_leaky_relu_is_the_slope_up_to_0"
    says = r"the gradient differs at index \[2\]"

    @staticmethod
    def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return torch.where(input >= 0, input, negative_slope * input)


class SlopeIsNotPassedOn(Fault):
    """The layer stores its slope and does not use it."""

    caught_by = "test_11_activation.py::test_leaky_relu_as_a_layer"
    says = "the result in training differs"
    leaky_relu = staticmethod(F.leaky_relu)

    class LeakyReLU(nn.LeakyReLU):
        def forward(self, input: Tensor) -> Tensor:
            return F.leaky_relu(input)


class SlopeIsLearned(Fault):
    """The slope is a parameter, as in PReLU."""

    caught_by = "test_11_activation.py::test_leaky_relu_as_a_layer"
    says = r"assert not .*\{?.*negative_slope|assert not OrderedDict"
    leaky_relu = staticmethod(F.leaky_relu)

    class LeakyReLU(nn.LeakyReLU):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.weight = nn.Parameter(torch.tensor(self.negative_slope, dtype=torch.float64))

        def forward(self, input: Tensor) -> Tensor:
            return torch.where(input > 0, input, self.weight * input)


class LeakyReluWritesAlways(Fault):
    """The layer writes into its input even without `inplace`."""

    caught_by = "test_11_activation.py::test_leaky_relu_as_a_layer_in_place"
    says = r"the data after LeakyReLU\(0\.25\) differs"

    class LeakyReLU(nn.LeakyReLU):
        def forward(self, input: Tensor) -> Tensor:
            return F.leaky_relu(input, self.negative_slope, inplace=True)


class SigmoidByTheOtherFormula(Fault):
    """exp(x) / (1 + exp(x)) is ∞ / ∞ for large x."""

    caught_by = "test_11_activation.py::test_sigmoid_equals_1_over_1_plus_exp"
    says = r"got        nan(.|\n)*expected   1\.0"

    @staticmethod
    def sigmoid(input: Tensor) -> Tensor:
        return input.exp() / (1 + input.exp())


class SigmoidIsPiecewiseLinear(Fault):
    """The function is approximated by straight lines."""

    caught_by = "test_11_activation.py::test_sigmoid_equals_1_over_1_plus_exp"
    says = "tolerance  .*roundings to"

    @staticmethod
    def sigmoid(input: Tensor) -> Tensor:
        return F.hardsigmoid(input)


class SigmoidThroughItsInfiniteExponential(Fault):
    """The value is right, but the gradient 0 · ∞ of 1 / (1 + exp(−x)) is not a number."""

    caught_by = "test_11_activation.py::test_the_gradient_of_sigmoid_is_a_quarter_at_0_and_0_far_away"
    says = r"the gradient differs at index \[0\](.|\n)*got        nan"

    @staticmethod
    def sigmoid(input: Tensor) -> Tensor:
        return 1 / (1 + (-input).exp())


class TanhForSigmoid(Fault):
    """Tanh, which has values between −1 and 1, instead of Sigmoid."""

    caught_by = "test_11_activation.py::test_sigmoid_reduces_image_contrast"
    says = r"got        0\.0(.|\n)*expected   0\.5"

    class Sigmoid(nn.Sigmoid):
        def forward(self, input: Tensor) -> Tensor:
            return input.tanh()


class SigmoidTakesSizes(Fault):
    """A linear layer is applied first, as on the page that the tutorial links."""

    caught_by = "test_11_activation.py::test_sigmoid_is_no_linear_layer"
    says = "was accepted, but must be rejected"

    class Sigmoid(nn.Sigmoid):
        def __init__(self, in_features: int = 0, out_features: int = 0) -> None:
            super().__init__()


class SigmoidOfTheLogarithm(Fault):
    """The layer returns the logarithm, as an input for a loss."""

    caught_by = "test_11_activation.py::test_sigmoid_as_a_layer"
    says = "the result in training differs"
    sigmoid = staticmethod(torch.sigmoid)

    class Sigmoid(nn.Sigmoid):
        def forward(self, input: Tensor) -> Tensor:
            return F.logsigmoid(input)


class TanhOverflows(Fault):
    """(exp(x) − exp(−x)) / (exp(x) + exp(−x)) is ∞ / ∞ for large x."""

    caught_by = "test_11_activation.py::test_tanh_is_the_hyperbolic_tangent"
    says = r"got        nan"

    @staticmethod
    def tanh(input: Tensor) -> Tensor:
        return (input.exp() - (-input).exp()) / (input.exp() + (-input).exp())


class TanhLosesSmallNumbers(Fault):
    """2 · sigmoid(2x) − 1 subtracts two nearly equal numbers."""

    caught_by = "test_11_activation.py::test_tanh_of_small_inputs_is_accurate"
    says = "tolerance  .*roundings to"

    @staticmethod
    def tanh(input: Tensor) -> Tensor:
        return 2 * torch.sigmoid(2 * input) - 1


class TanhIsPiecewiseLinear(Fault):
    """The function is approximated by straight lines."""

    caught_by = "test_11_activation.py::test_tanh_is_the_hyperbolic_tangent"
    says = "tolerance  .*roundings to"

    @staticmethod
    def tanh(input: Tensor) -> Tensor:
        return input.clamp(-1, 1)


class TanhLayerIsTangent(Fault):
    """tan instead of tanh."""

    caught_by = "test_11_activation.py::test_the_four_common_activations"
    says = r"got        -1\.557"
    Sigmoid, ReLU, LeakyReLU = nn.Sigmoid, nn.ReLU, nn.LeakyReLU

    class Tanh(nn.Tanh):
        def forward(self, input: Tensor) -> Tensor:
            return input.tan()


class TanhLayerIsScaled(Fault):
    """LeCun's 1.7159 · tanh(2x / 3)."""

    caught_by = "test_11_activation.py::test_tanh_as_a_layer"
    says = "the result in training differs"
    tanh = staticmethod(torch.tanh)

    class Tanh(nn.Tanh):
        def forward(self, input: Tensor) -> Tensor:
            return 1.7159 * (input * 2 / 3).tanh()


class TanhLayerOnlyTrains(Fault):
    """The layer is the identity in evaluation."""

    caught_by = "test_11_activation.py::test_tanh_as_a_layer"
    says = "the result in evaluation differs"
    tanh = staticmethod(torch.tanh)

    class Tanh(nn.Tanh):
        def forward(self, input: Tensor) -> Tensor:
            return input.tanh() if self.training else input


class SoftmaxOverflows(Fault):
    """The largest number is not subtracted first."""

    caught_by = "test_11_activation.py::test_softmax_does_not_overflow"
    says = r"got        nan(.|\n)*expected   1\.0"

    @staticmethod
    def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input.exp() / input.exp().sum(dim, keepdim=True)


class SoftmaxOverEverything(Fault):
    """The sum is over all dimensions."""

    caught_by = "test_11_activation.py::test_softmax_sums_to_1"
    says = r"expected   1\.0"

    @staticmethod
    def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input.flatten().softmax(0).view_as(input)


class SoftmaxOfTheLastDimension(Fault):
    """`dim` is ignored."""

    caught_by = "test_11_activation.py::test_softmax_equals_exp_over_sum_of_exp"
    says = "tolerance  .*roundings to"

    @staticmethod
    def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input.softmax(-1)


class SoftmaxSubtractsTheLargestOfAll(Fault):
    """One maximum is used for all rows: rows far below it give 0 / 0."""

    caught_by = "test_11_activation.py::test_softmax_does_not_overflow"
    says = r"differs at index \[1, 0\](.|\n)*got        nan"

    @staticmethod
    def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        exponentials = (input - input.max()).exp()
        return exponentials / exponentials.sum(dim, keepdim=True)


class SoftmaxWithoutATemperature(Fault):
    """The outputs are proportional to the numbers instead of their exponentials."""

    caught_by = "test_11_activation.py::test_softmax_as_a_layer"
    says = "the result in training differs"
    softmax = staticmethod(F.softmax)

    class Softmax(nn.Softmax):
        def forward(self, input: Tensor) -> Tensor:
            return input.abs() / input.abs().sum(self.dim, keepdim=True)


class SoftmaxLayerIgnoresItsDim(Fault):
    """The last dimension is always used, for any `dim`."""

    caught_by = "test_11_activation.py::test_softmax_as_a_layer"
    says = "the result in training differs"
    softmax = staticmethod(F.softmax)

    class Softmax(nn.Softmax):
        def forward(self, input: Tensor) -> Tensor:
            return input.softmax(-1)


class SoftmaxLayerChoosesSilently(Fault):
    """There is no warning if the dimension is omitted."""

    caught_by = "test_11_activation.py::test_a_layer_of_softmax_without_a_dimension_warns_when_it_is_called"
    says = "DID NOT WARN"

    class Softmax(nn.Softmax):
        def forward(self, input: Tensor) -> Tensor:
            return input.softmax(1 if self.dim is None else self.dim)


class LogOfSoftmax(Fault):
    """The logarithm of a softmax that has underflowed to 0 is −∞."""

    caught_by = "test_11_activation.py::test_log_softmax_neither_overflows_nor_loses_small_probabilities"
    says = r"got        -inf"

    @staticmethod
    def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input.softmax(dim).log()


class LogOfTheSumOverflows(Fault):
    """The largest number is not subtracted first."""

    caught_by = "test_11_activation.py::test_log_softmax_is_invariant_to_a_shift"
    says = r"log_softmax of numbers larger by -?\d+ differs"

    @staticmethod
    def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return input - input.exp().sum(dim, keepdim=True).log()


class LogarithmToTheBaseOf2(Fault):
    """The binary logarithm instead of the natural one."""

    caught_by = "test_11_activation.py::test_log_softmax_equals_logit_minus_log_sum_exp"
    says = "tolerance  .*roundings to"

    @staticmethod
    def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        shifted = input - input.amax(dim, keepdim=True) if input.numel() else input
        return shifted - shifted.exp().sum(dim, keepdim=True).log2()


class LogSoftmaxLayerIsSoftmax(Fault):
    """The logarithm is missing."""

    caught_by = "test_11_activation.py::test_log_softmax_as_a_layer"
    says = "the result in training differs"
    log_softmax = staticmethod(F.log_softmax)

    class LogSoftmax(nn.LogSoftmax):
        def forward(self, input: Tensor) -> Tensor:
            return input.softmax(self.dim)  # pyright: ignore[reportArgumentType]


class LogSoftmaxLayerPrintsNothing(Fault):
    """The repr of the layer does not show its dimension."""

    caught_by = "test_11_activation.py::test_log_softmax_as_a_layer"
    says = r"assert 'LogSoftmax\(\)' == 'LogSoftmax\(dim="
    log_softmax = staticmethod(F.log_softmax)

    class LogSoftmax(nn.LogSoftmax):
        def extra_repr(self) -> str:
            return ""


class LogSoftmaxLayerChoosesTheFirst(Fault):
    """Without `dim`, the first dimension is used, also for two-dimensional inputs, where it must be the second."""

    caught_by = "test_11_activation.py::test_a_layer_of_log_softmax_without_a_dimension_warns_when_it_is_called"
    says = r"expected   0\.0"

    class LogSoftmax(nn.LogSoftmax):
        def forward(self, input: Tensor) -> Tensor:
            if self.dim is None:
                warnings.warn("no dim", stacklevel=2)
            return input.log_softmax(self.dim or 0)
