"""Chapter 12: attention that is wrong."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spec.faults import Fault

# scaled_dot_product_attention


class TheScaleIsForgotten(Fault):
    """softmax(q kᵀ) v, without the scale."""

    caught_by = "test_12_attention.py::test_attention_default_scale_is_1_over_sqrt_of_features"
    says = r"the result differs at index \[0, 0\]\nE? *got        0\.98"

    @staticmethod
    def scaled_dot_product_attention(*args: Any, scale: float | None = None, **options: Any) -> Tensor:
        return F.scaled_dot_product_attention(*args, scale=1.0 if scale is None else scale, **options)


class TrueIsHidden(Fault):
    """The bool mask has the inverse meaning, as in MultiheadAttention."""

    caught_by = "test_12_attention.py::test_masked_keys_have_no_effect"
    says = "with a bool mask differs"

    @staticmethod
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **options)


class TheLastQuerySeesTheLastKey(Fault):
    """The causal mask is aligned at the last key, as in generation with a cache."""

    caught_by = "test_12_attention.py::test_is_causal_lets_query_i_attend_to_keys_0_to_i"
    says = r"the result differs at index \[0, 0\]"

    @staticmethod
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, *args: Any, is_causal: bool = False, **options: Any
    ) -> Tensor:
        if is_causal:
            shape = query.shape[-2], key.shape[-2]
            seen = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
            return F.scaled_dot_product_attention(query, key, value, seen, **options)
        return F.scaled_dot_product_attention(query, key, value, *args, **options)


class NothingSeenIsEverythingSeen(Fault):
    """-1e9 instead of -inf: a fully masked query gets the mean of all values."""

    caught_by = "test_12_attention.py::test_a_fully_masked_query_gets_zeros"
    says = "the output of the second query differs"

    @staticmethod
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -1e9)
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **options)


class LargeLogitsOverflow(Fault):
    """The softmax does not subtract the largest logit."""

    caught_by = "test_12_attention.py::test_attention_with_large_logits_selects_the_value_of_the_largest"
    says = "the result differs(.|\n)*got        nan"

    @staticmethod
    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        shares = (query @ key.mT / math.sqrt(query.shape[-1])).exp()
        return shares / shares.sum(-1, keepdim=True) @ value


class HeadsOfAGroupAreNotNeighbours(Fault):
    """Head h of the query uses key head h modulo the number of key heads."""

    caught_by = "test_12_attention.py::test_scaled_dot_product_attention_equals_the_weighted_mean"
    says = "the result differs"

    @staticmethod
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **options: Any
    ) -> Tensor:
        if enable_gqa:
            key, value = (torch.cat([x] * (query.shape[-3] // x.shape[-3]), -3) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, *args, **options)


# MultiheadAttention


def with_other_parameters(layer: nn.Module, state: dict[str, Tensor], forward: Any, *args: Any, **options: Any) -> Any:
    """The output of the layer with these parameters."""
    own = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)
    result = forward(*args, **options)
    layer.load_state_dict(own)
    return result


class HeadsAreInterleaved(Fault):
    """The features of a head are interleaved instead of consecutive."""

    caught_by = "test_12_attention.py::test_multihead_attention_equals_the_definition"
    says = "the (result|weights) differs"

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(self, *args: Any, **options: Any) -> Any:
            order = torch.arange(self.embed_dim).reshape(self.head_dim, self.num_heads).T.flatten()
            three = torch.cat([order, order + self.embed_dim, order + 2 * self.embed_dim])
            state = dict(self.state_dict())
            for name, value in state.items():
                if name.startswith("in_proj"):
                    state[name] = value[three]
                elif name[2:] == "proj_weight":
                    state[name] = value[order]
            state["out_proj.weight"] = state["out_proj.weight"][:, order]
            return with_other_parameters(self, state, super().forward, *args, **options)


class EachHeadIsScaledByAllFeatures(Fault):
    """The scale is 1/√embed_dim instead of 1/√head_dim."""

    caught_by = "test_12_attention.py::test_multihead_attention_equals_the_definition"
    says = "the (result|weights) differs"

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(self, *args: Any, **options: Any) -> Any:
            state = {name: value.clone() for name, value in self.state_dict().items()}
            for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight"):
                if name in state:
                    state[name][: self.embed_dim] /= math.sqrt(self.num_heads)
            return with_other_parameters(self, state, super().forward, *args, **options)


class PaddingIsWhatIsThere(Fault):
    """key_padding_mask is True where a key exists, the inverse of its meaning."""

    caught_by = "test_12_attention.py::test_multihead_attention_equals_the_definition"
    says = "the (result|weights) differs"

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
            mask = options.get("key_padding_mask")
            if mask is not None and mask.dtype == torch.bool:
                options["key_padding_mask"] = ~mask
            return super().forward(query, key, value, *args, **options)


class WeightsAreSummedOverTheHeads(Fault):
    """The returned weights add up to the number of heads instead of 1."""

    caught_by = "test_12_attention.py::test_multihead_attention_dropout_applies_in_training_only"
    says = r"the weights in evaluation differs(.|\n)*got        0\.2"

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(self, *args: Any, average_attn_weights: bool = True, **options: Any) -> Any:
            output, weights = super().forward(*args, average_attn_weights=False, **options)
            if weights is not None and average_attn_weights:
                weights = weights.sum(-3)
            return output, weights


class ProjectionsStartApart(Fault):
    """Xavier's bound is computed for each projection separately instead of for the stacked weight."""

    caught_by = "test_12_attention.py::test_multihead_attention_projections_start_xavier_uniform_and_biases_zero"
    says = "in_proj_weight is drawn as one"

    class MultiheadAttention(nn.MultiheadAttention):
        def _reset_parameters(self) -> None:
            super()._reset_parameters()
            if self.in_proj_weight is not None:
                for part in self.in_proj_weight.chunk(3):
                    nn.init.xavier_uniform_(part)


# TransformerEncoderLayer


class NormsComeLast(Fault):
    """norm_first is accepted and ignored."""

    caught_by = "test_12_attention_encoder.py::test_encoder_dropout_1_leaves_the_residual"
    says = r"the result differs(.|\n)*norm_first=True"

    class TransformerEncoderLayer(nn.TransformerEncoderLayer):
        def __init__(self, *args: Any, norm_first: bool = False, **options: Any) -> None:
            super().__init__(*args, **options)


class TheNetworkHasNoResidual(Fault):
    """The residual connection is missing: norm2(network(x)) instead of norm2(x + network(x))."""

    caught_by = "test_12_attention_encoder.py::test_encoder_calls_the_registered_submodules"
    says = "the result differs"

    class TransformerEncoderLayer(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return super()._ff_block(x) - x


class GeluIsApproximate(Fault):
    """The tanh approximation of gelu, with an error of about 1e-4."""

    caught_by = "test_12_attention_encoder.py::test_encoder_equals_attention_and_feedforward_with_residuals_and_norms"
    says = r"the result differs(.|\n)*activation='gelu'"

    class TransformerEncoderLayer(nn.TransformerEncoderLayer):
        def __init__(self, *args: Any, activation: Any = "relu", **options: Any) -> None:
            super().__init__(*args, activation=nn.GELU("tanh") if activation == "gelu" else activation, **options)


class TheMaskIsForgotten(Fault):
    """src_mask is not passed to the attention."""

    caught_by = "test_12_attention_encoder.py::test_is_causal_applies_the_causal_mask_to_the_source"
    says = "the first output, which sees nothing else differs"

    class TransformerEncoderLayer(nn.TransformerEncoderLayer):
        def _sa_block(self, x: Tensor, attn_mask: Any, *args: Any, **options: Any) -> Tensor:
            return super()._sa_block(x, None, *args, **options | {"is_causal": False})


class LogSumExpSwallowsTheNumberOfKeys(Fault):
    """exp(logit - logsumexp): at -1e9, float32 rounds away the logarithm of the number of keys."""

    caught_by = "test_12_attention.py::test_a_row_of_large_negative_numbers_has_the_gradient_of_the_formula"
    says = r"the gradient of value differs at index \[0, 0, 0, 0\]\nE? *got        8.0\nE? *expected   2.0"

    @staticmethod
    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        logits = logits if attn_mask is None else logits + attn_mask
        return (logits - logits.logsumexp(-1, keepdim=True)).exp() @ value


class LargeMasksMultiplyTheGradient(Fault):
    """Without need_weights the gradient is too large by a factor of the number of keys."""

    caught_by = (
        "test_12_attention.py::test_a_mask_of_large_negative_numbers_has_the_same_gradient_with_and_without_weights"
    )
    says = r"the gradient of value without need_weights differs"

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(self, *args: Any, need_weights: bool = True, **options: Any) -> Any:
            output, weights = super().forward(*args, need_weights=True, **options)
            if need_weights:
                return output, weights
            keys = args[1].shape[1]
            return keys * output - (keys - 1) * output.detach(), None
