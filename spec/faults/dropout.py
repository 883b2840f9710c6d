"""Chapter 12, other layers: dropouts that are wrong."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault


class PIsWhatStays(Fault):
    """p is used as the probability of keeping a number."""

    caught_by = "test_12_dropout.py::test_the_fraction_p_of_the_numbers_becomes_0"
    says = r"the fraction of zeros differs in value(.|\n)*once in 1e\+09 times"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, 1 - p, training, inplace)


class NothingIsRescaled(Fault):
    """The kept numbers are not divided by 1 - p."""

    caught_by = "test_12_dropout.py::test_the_expectation_of_the_output_is_the_input"
    says = r"the mean over 40,000 outputs, over the input differs(.|\n)*expected   1\.0"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p, training, inplace) * (1 - p)


class EvaluationIsRescaled(Fault):
    """In evaluation all numbers are multiplied by 1 - p, as in the original paper."""

    caught_by = "test_12_dropout.py::test_dropout_is_the_identity_in_evaluation"
    says = r"the result differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p) if training else input * (1 - p)


class WholeChannelsAreDropped(Fault):
    """Whole channels are dropped, as in `dropout2d`."""

    caught_by = "test_12_dropout.py::test_elements_are_dropped_independently"
    says = r"the fraction of neighbours that are both dropped differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout2d(input, p, training, inplace)


class TheMaskIsAlwaysTheSame(Fault):
    """Each call creates a new generator with the same seed."""

    caught_by = "test_12_dropout.py::test_two_calls_drop_independently"
    says = r"the fraction dropped twice differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        mask = torch.rand(input.shape, generator=torch.Generator().manual_seed(0)) >= p
        return input * mask / (1 - p)


class TheGradientIsNotMasked(Fault):
    """Dropped numbers get a gradient."""

    caught_by = "test_12_dropout.py::test_dropout_gradient_uses_the_mask_of_the_forward_pass"
    says = r"the gradient differs"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return input + (F.dropout(input, p, training) - input).detach()


class EverythingDroppedIsNan(Fault):
    """The result is 0 / 0 if p is 1."""

    caught_by = "test_12_dropout.py::test_p_0_drops_nothing_and_p_1_drops_everything"
    says = r"got        nan(.|\n)*expected   0\.0"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return input * (torch.rand(input.shape) >= p).to(input.dtype) / (torch.tensor(1 - p, dtype=input.dtype))


class InplaceIsIgnored(Fault):
    """In evaluation the output is a copy of the input."""

    caught_by = "test_12_dropout.py::test_inplace_writes_the_output_into_the_input"
    says = r"assert .*any"

    @staticmethod
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return F.dropout(input, p, training)


class LayerAlwaysDrops(Fault):
    """The layer ignores `training`."""

    caught_by = "test_12_dropout.py::test_dropout_layer_drops_in_training_only"
    says = r"the result in evaluation differs"

    class Dropout(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return F.dropout(input, self.p)


class LayerForgetsP(Fault):
    """The layer always drops half of the numbers and ignores its p."""

    caught_by = "test_12_dropout.py::test_the_layer_drops_the_fraction_p_after_train_again"
    says = r"the fraction of zeros differs in value"

    class Dropout(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return F.dropout(input, training=self.training)


class LayerNeverWritesInPlace(Fault):
    """`inplace` is printed, but not used."""

    caught_by = "test_12_dropout.py::test_dropout_layer_writes_into_the_input_only_with_inplace"
    says = r"the input afterwards differs"

    class Dropout(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return F.dropout(input, self.p, self.training)


class LayerTakesAPercentage(Fault):
    """p is not checked; a value above 1 is read as a percentage."""

    caught_by = "test_12_dropout.py::test_dropout_layer_rejects_p_outside_0_and_1"
    says = r"was accepted, but must be rejected"

    class Dropout(nn.Dropout):
        def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
            super().__init__(abs(p) if abs(p) <= 1 else p / 100, inplace)
