"""Chapter 12, other layers: embeddings that are wrong."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault


class WordsAreCounted(Fault):
    """Words are numbered from 1."""

    caught_by = "test_12_embedding.py::test_each_number_becomes_the_row_of_that_number"
    says = r"the result differs at index \[0, 0\](.|\n)*expected   20\.0"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.embedding((input - 1) % weight.shape[0], weight, *args, **options)


class NegativeWordsCountFromTheEnd(Fault):
    """Negative indices count from the end, as in Python."""

    caught_by = "test_12_embedding.py::test_an_index_out_of_range_is_rejected"
    says = r"was accepted, but must be rejected"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, max_norm: float | None = None) -> Tensor:
        return weight[input]


class PaddingIsZero(Fault):
    """The padding row is always looked up as zeros, for any content of the table."""

    caught_by = "test_12_embedding.py::test_padding_idx_row_is_looked_up_but_gets_no_gradient"
    says = r"the result differs"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
        output = F.embedding(input, weight)
        if padding_idx is None:
            return output
        return output.masked_fill((input == padding_idx % weight.shape[0])[..., None], 0)


class PaddingLearns(Fault):
    """The padding row gets a gradient like other rows."""

    caught_by = "test_12_embedding.py::test_padding_idx_row_is_looked_up_but_gets_no_gradient"
    says = r"the gradient differs"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
        return F.embedding(input, weight)


class RepeatedWordsOverwriteTheirGradient(Fault):
    """Among several occurrences of a word only the last contributes to the gradient: `gradient[words] = upstream`."""

    caught_by = "test_12_embedding.py::test_gradient_of_a_row_is_the_sum_over_all_occurrences"
    says = r"the gradient differs"

    class _LookUp(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, words: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(words)
            ctx.shape = weight.shape
            return weight[words]

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
            (words,) = ctx.saved_tensors
            gradient = upstream.new_zeros(ctx.shape)
            gradient[words] = upstream
            return None, gradient

    @staticmethod
    def embedding(input: Tensor, weight: Tensor) -> Tensor:
        return RepeatedWordsOverwriteTheirGradient._LookUp.apply(input, weight)


class AllRowsAreShortened(Fault):
    """max_norm is applied to the whole table."""

    caught_by = "test_12_embedding.py::test_max_norm_keeps_other_rows_bit_equal"
    says = r"the rows that are short, or not looked up differs"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, max_norm: float) -> Tensor:
        weight.copy_(torch.renorm(weight, 2, 0, max_norm))
        return F.embedding(input, weight)


class TheTableIsNotShortened(Fault):
    """max_norm rescales the result and not the table."""

    caught_by = "test_12_embedding.py::test_max_norm_shortens_the_rows_that_are_looked_up_in_place"
    says = r"the table afterwards differs"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return F.embedding(input, weight.clone(), **options)


class FrequencyIsThatOfTheTable(Fault):
    """The gradient is divided by the number of rows instead of the number of occurrences."""

    caught_by = "test_12_embedding.py::test_scale_grad_by_freq_divides_by_the_number_of_occurrences"
    says = r"the gradient differs"

    @staticmethod
    def embedding(input: Tensor, weight: Tensor, scale_grad_by_freq: bool = False) -> Tensor:
        output = F.embedding(input, weight)
        if scale_grad_by_freq and output.requires_grad:
            output.register_hook(lambda gradient: gradient / weight.shape[0])
        return output


class PaddingStartsAtRandom(Fault):
    """The padding row is drawn at random like other rows."""

    caught_by = "test_12_embedding.py::test_padding_idx_row_starts_as_zeros"
    says = r"whether a row is zero differs"

    class Embedding(nn.Embedding):
        def _fill_padding_idx_with_zero(self) -> None:
            pass


class StartsUniform(Fault):
    """A new table is drawn from a uniform distribution, as the weight of a linear layer."""

    caught_by = "test_12_embedding.py::test_a_new_table_is_standard_normal"
    says = r"the fraction of numbers below -0\.67449 differs"

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            nn.init.uniform_(self.weight, -1, 1)


class PretrainedIsNotFrozen(Fault):
    """`from_pretrained` does not freeze the table by default."""

    caught_by = "test_12_embedding.py::test_a_pretrained_table_is_used_unchanged"
    says = r"requires_grad"

    class Embedding(nn.Embedding):
        @classmethod
        def from_pretrained(cls, embeddings: Tensor, freeze: bool = False, **options: Any) -> nn.Embedding:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().from_pretrained(embeddings, freeze, **options)


class LayerForgetsItsOptions(Fault):
    """The layer ignores its options and only looks up."""

    caught_by = "test_12_embedding.py::test_embedding_layer_equals_embedding_with_own_options"
    says = r"differs at index"

    embedding = staticmethod(F.embedding)

    class Embedding(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return F.embedding(input, self.weight)
