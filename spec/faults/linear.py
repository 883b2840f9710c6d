"""Chapter 12: linear layers and flattenings that are wrong."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault


class BiasIsForgotten(Fault):
    """`bias` is accepted and not used."""

    caught_by = "test_12_linear.py::test_linear_is_the_sum_of_products"
    says = r"the result differs at index"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(input, weight)


class LeadingDimensionsAreMerged(Fault):
    """All leading dimensions are merged into one batch dimension and not restored."""

    caught_by = "test_12_linear.py::test_linear_is_the_sum_of_products"
    says = r"has shape \[\d+, \d+\], expected \[.*\]"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
        return F.linear(rows, weight, bias)


class HalfPrecisionBecomesFloat(Fault):
    """The sum is computed in float32 and not converted back."""

    caught_by = "test_12_linear.py::test_linear_rounds_no_more_than_a_sum"
    says = r"has dtype torch\.float32, expected torch\.(b?float16|float64)"

    @staticmethod
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(input.float(), weight.float(), None if bias is None else bias.float())


class WeightIsInputsByOutputs(Fault):
    """The weight is stored transposed."""

    caught_by = "test_12_linear.py::test_flattening_64_images_gives_196608_numbers"
    says = r"torch\.Size\(\[196608, 10\]\)"

    class Linear(nn.Linear):
        def __init__(self, in_features: int, out_features: int, *args: Any, **options: Any) -> None:
            super().__init__(in_features, out_features, *args, **options)
            self.weight = nn.Parameter(self.weight.detach().T.contiguous())

        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight.T, self.bias)


class EverythingIsFlattenedFirst(Fault):
    """The layer flattens its input, which the tutorial claims is needed."""

    caught_by = "test_12_linear.py::test_only_the_last_dimension_must_have_the_features"
    says = r"shapes cannot be multiplied"

    class Linear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.flatten())


class StartsFromTheNormalDistribution(Fault):
    """The weight has the right standard deviation but the wrong distribution."""

    caught_by = "test_12_linear.py::test_a_new_layer_is_uniform_within_1_over_sqrt_in_features"
    says = r"assert .* <= "

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=1 / math.sqrt(3 * self.in_features))


class NoBiasIsABiasOfZeros(Fault):
    """`bias=False` creates a bias of zeros, which is then trained."""

    caught_by = "test_12_linear.py::test_linear_state_dict_loads_to_and_from_pytorch"
    says = r"'bias': \(2,\)"

    class Linear(nn.Linear):
        def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
            super().__init__(in_features, out_features, **options)
            if not bias:
                nn.init.zeros_(self.bias)


class TheBatchStays(Fault):
    """`flatten` starts at dimension 1 by default, as the layer does."""

    caught_by = "test_12_linear.py::test_the_flattened_batches_print_the_documented_lines"
    says = r"torch\.Size\(\[64, 3072\]\)"

    @staticmethod
    def flatten(input: Tensor, start_dim: int = 1, end_dim: int = -1) -> Tensor:
        return torch.flatten(input, start_dim, end_dim)


class EndIsNotIncluded(Fault):
    """`end_dim` is excluded, as in a Python slice."""

    caught_by = "test_12_linear.py::test_flatten_preserves_order_and_count"
    says = r"has shape \[.*\], expected \[.*\]"

    @staticmethod
    def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        first, last = start_dim % max(1, input.dim()), end_dim % max(1, input.dim())
        return torch.flatten(input, first, max(first, last - 1))


class InOrderOfTheMemory(Fault):
    """The numbers are returned in memory order, without regard to the strides."""

    caught_by = "test_12_linear.py::test_flatten_preserves_order_and_count"
    says = r"the result differs at index"

    @staticmethod
    def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        shape = torch.flatten(input, start_dim, end_dim).shape
        # a channels-last tensor is read in memory order
        order = sorted(range(input.dim()), key=lambda dim: -input.stride(dim))
        return input.permute(order).reshape(shape)


class ScalarsStayScalars(Fault):
    """A 0-dimensional tensor is returned unchanged."""

    caught_by = "test_12_linear.py::test_flatten_of_a_scalar_has_one_dimension"
    says = r"has shape \[\], expected \[1\]"

    @staticmethod
    def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return torch.flatten(input, start_dim, end_dim) if input.dim() else input


class FlattenMergesTheBatch(Fault):
    """The layer flattens all dimensions by default, as the function does."""

    caught_by = "test_12_linear.py::test_flatten_layer_keeps_the_batch_dimension"
    says = r"has shape \[65536\], expected \[64, 1024\]"

    class Flatten(nn.Flatten):
        def __init__(self, start_dim: int = 0, end_dim: int = -1) -> None:
            super().__init__(start_dim, end_dim)


class FlattenForgetsTheEnd(Fault):
    """`end_dim` is printed, but not used."""

    caught_by = "test_12_linear.py::test_flatten_layer_flattens_start_dim_to_end_dim"
    says = r"has shape \[.*\], expected \[.*\]"

    class Flatten(nn.Flatten):
        def forward(self, input: Tensor) -> Tensor:
            return torch.flatten(input, self.start_dim)


class FlattenMakesABatchOfOne(Fault):
    """A sample without a batch dimension becomes a batch of one instead of raising an error."""

    caught_by = "test_12_linear.py::test_flatten_layer_needs_a_batch_dimension"
    says = r"was accepted, but must be rejected"

    class Flatten(nn.Flatten):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input if input.dim() > 1 else input[None])
