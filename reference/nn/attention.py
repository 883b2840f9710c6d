"""Chapter 12, "other layers": attention, where the output at each position of a sequence depends on all positions.

Each position has a query, a key and a value. Its output is the mean of all values, weighted by the softmax of the
products of its query and all keys. `scaled_dot_product_attention` computes this; `MultiheadAttention` runs several in
parallel, each on a learned projection; `TransformerEncoderLayer` adds a feed-forward network at each position (Vaswani
et al., 2017).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from reference.arguments import (
    accumulation_dtype,
    check_dtype,
    check_floating,
    check_integer,
    check_layout,
    check_probability,
    check_tensor,
    under_autocast,
)
from reference.nn.activation import relu, softmax
from reference.nn.dropout import Dropout, dropout
from reference.nn.initialization import xavier_normal_, xavier_uniform_
from reference.nn.linear import Linear, linear
from reference.nn.normalization import LayerNorm

# Arguments are annotated without shapes, so that a wrong shape or dtype reaches the check with an error that names it.
Given = Shaped[Tensor, "..."]
Mask = Shaped[Tensor, "..."] | None
Layer = Callable[[Tensor], Tensor]


def scaled_dot_product_attention_definition(
    query: Float[Tensor, "*#leading queries features"],
    key: Float[Tensor, "*#leading keys features"],
    value: Float[Tensor, "*#leading keys value_features"],
    mask: Float[Tensor, "*#leading #queries #keys"] | None,
    dropout_p: float | int,
    scale: float | int,
) -> Float[Tensor, "*#leading queries value_features"]:
    """output = softmax(scale · query keyᵀ + mask) value, with the softmax over the keys."""
    dtype = accumulation_dtype(query.dtype)
    logits = (query.to(dtype) * scale) @ key.to(dtype).mT
    if mask is not None:
        logits = logits + mask
    # for fully masked queries the softmax would be 0 / 0; their output is zeros
    unseen = (logits == -torch.inf).all(dim=-1, keepdim=True)
    weights = softmax(logits.masked_fill(unseen, 0), dim=-1).masked_fill(unseen, 0)
    return (dropout(weights, dropout_p) @ value.to(dtype)).to(query.dtype)


def multihead_attention_definition(
    queries: Float[Tensor, "batch queries embed_dim"],
    keys: Float[Tensor, "batch keys embed_dim"],
    values: Float[Tensor, "batch keys embed_dim"],
    num_heads: int,
    mask: Float[Tensor, "#batch #heads #queries keys"] | None,
    dropout_p: float | int,
) -> tuple[Float[Tensor, "batch queries embed_dim"], Float[Tensor, "batch heads queries keys"]]:
    """[head_1 … head_h] of projected sequences, head_i = softmax(Q_i K_iᵀ / √head_dim + mask) V_i; and the weights."""
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    logits = (q / math.sqrt(q.shape[-1])) @ k.mT
    weights = dropout(softmax(logits if mask is None else logits + mask, dim=-1), dropout_p)
    return (weights @ v).transpose(1, 2).flatten(-2), weights


def transformer_encoder_layer_definition(
    src: Float[Tensor, "*sequence d_model"],
    attention: Layer,
    feed_forward: Layer,
    norm1: Layer,
    norm2: Layer,
    norm_first: bool,
) -> Float[Tensor, "*sequence d_model"]:
    """Attention and a feed-forward network, each with a residual connection, normalized before or after it."""
    if norm_first:
        x = src + attention(norm1(src))
        return x + feed_forward(norm2(x))
    x = norm1(src + attention(src))
    return norm2(x + feed_forward(x))


def scaled_dot_product_attention(
    query: Given,
    key: Given,
    value: Given,
    attn_mask: Mask = None,
    dropout_p: float | int = 0.0,
    is_causal: bool = False,
    *,
    scale: float | int | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*leading queries value_features"]:
    """output = softmax(scale · query keyᵀ + mask) value, with the softmax over the keys.

    A query without any visible key gets zeros. float16 and bfloat16 are computed in float32 and rounded once, at the
    end.

    Args:
        query: `[*leading, queries, features]`; the leading dimensions of all three broadcast.
        key: `[*leading, keys, features]`.
        value: `[*leading, keys, value_features]`.
        attn_mask: broadcasts to `[*leading, queries, keys]`; bool, True where a query may attend to a key, or floating
            point, added before the softmax.
        dropout_p: the probability with which each weight is dropped, in training and evaluation.
        is_causal: query i attends to the keys 0 to i, instead of an `attn_mask`.
        scale: 1/√features if None.
        enable_gqa: the third dimension from the end is heads; one head of `key` and `value` serves several of `query`.

    Returns:
        `[*leading, queries, value_features]`, of the dtype of `query`.

    Raises:
        TypeError: an argument is not a tensor, or a dtype does not fit.
        ValueError: a shape does not fit, `attn_mask` and `is_causal` are given, or `dropout_p` is outside [0, 1].
    """
    query, key, value = under_autocast(query, key, value)
    _check_query_key_value(query, key, value)
    check_probability("scaled_dot_product_attention: dropout_p", dropout_p)
    _require(
        not is_causal or attn_mask is None,
        "scaled_dot_product_attention: attn_mask and is_causal=True are given, but only one mask can be used",
    )
    if enable_gqa:
        key, value = _repeat_heads("key", key, query), _repeat_heads("value", value, query)
    _check_leading(query, key, value)
    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        _check_attn_mask(attn_mask, query, (*leading, query.shape[-2], key.shape[-2]))
        if attn_mask.dtype == torch.bool:
            attn_mask = _additive(~attn_mask, accumulation_dtype(query.dtype))
    scale = _default_scale(query) if scale is None else scale
    return scaled_dot_product_attention_definition(query, key, value, attn_mask, dropout_p, scale)


class MultiheadAttention(torch.nn.Module):
    """Several attentions in parallel, each over its own projection of query, key and value.

        Q = query W_qᵀ + b_q,  K = key W_kᵀ + b_k,  V = value W_vᵀ + b_v
        head_i = softmax(Q_i K_iᵀ / √head_dim + mask) V_i
        output = [head_1 … head_h] W_oᵀ + b_o

    where Q_i, K_i and V_i are the i-th of the h equal parts of the features of Q, K and V.

    Args:
        embed_dim: features of query and output, divided among the heads.
        num_heads: the number of heads, h.
        dropout: the probability with which training drops each attention weight.
        bias: with b_q, b_k, b_v and b_o.
        add_bias_kv: append a learned key and value that every query may attend to.
        add_zero_attn: append a key and value of zeros that every query may attend to.
        kdim: features of key; `embed_dim` if None.
        vdim: features of value; `embed_dim` if None.
        batch_first: sequences are `[batch, length, features]` instead of `[length, batch, features]`.
        device: the device of the parameters.
        dtype: their dtype.

    Attributes:
        in_proj_weight: W_q, W_k, W_v stacked, `[3 · embed_dim, embed_dim]`; None if `kdim` or `vdim` differs.
        q_proj_weight: W_q if `in_proj_weight` is None, otherwise None; likewise `k_proj_weight` and `v_proj_weight`.
        in_proj_bias: b_q, b_k, b_v, `[3 · embed_dim]`, or None.
        out_proj: the layer of W_o and b_o.
        bias_k: the appended key, `[1, 1, embed_dim]`, or None; likewise `bias_v`, the value.

    Raises:
        ValueError: `embed_dim` or `num_heads` is not positive, or `embed_dim` not a multiple of `num_heads`.
    """

    in_proj_weight: torch.nn.Parameter | None
    q_proj_weight: torch.nn.Parameter  # these three are set if in_proj_weight is None
    k_proj_weight: torch.nn.Parameter
    v_proj_weight: torch.nn.Parameter
    in_proj_bias: torch.nn.Parameter | None
    bias_k: torch.nn.Parameter | None
    bias_v: torch.nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float | int = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads)):
            check_integer(f"MultiheadAttention: {name}", size, at_least=1)
        text = f"MultiheadAttention: embed_dim must be a multiple of num_heads={num_heads}, got {embed_dim}"
        _require(embed_dim % num_heads == 0, text)
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.add_zero_attn = add_zero_attn

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        packed = self.kdim == self.vdim == embed_dim
        self.register_parameter("in_proj_weight", parameter(3 * embed_dim, embed_dim) if packed else None)
        self.register_parameter("q_proj_weight", None if packed else parameter(embed_dim, embed_dim))
        self.register_parameter("k_proj_weight", None if packed else parameter(embed_dim, self.kdim))
        self.register_parameter("v_proj_weight", None if packed else parameter(embed_dim, self.vdim))
        self.register_parameter("in_proj_bias", parameter(3 * embed_dim) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.bias_k = parameter(1, 1, embed_dim) if add_bias_kv else None
        self.bias_v = parameter(1, 1, embed_dim) if add_bias_kv else None
        self._reset_parameters()

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Projections from Xavier's uniform distribution, appended keys and values from the normal one, biases 0."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                bias.zero_()
        for appended in (self.bias_k, self.bias_v):
            if appended is not None:
                xavier_normal_(appended)

    def forward(
        self,
        query: Given,
        key: Given,
        value: Given,
        key_padding_mask: Mask = None,
        need_weights: bool = True,
        attn_mask: Mask = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "*sequence embed_dim"], Float[Tensor, "*heads queries all_keys"] | None]:
        """Return the output for each query, and the attention weights.

        In both masks True means *not* to attend, the opposite of `scaled_dot_product_attention`. A query without any
        visible key gets NaN with `need_weights`, and zeros from its heads without.

        Args:
            query: `[queries, batch, embed_dim]`, with `batch_first` `[batch, queries, embed_dim]`, without a batch
                `[queries, embed_dim]`.
            key: likewise, with `keys` and `kdim`.
            value: likewise, with `keys` and `vdim`.
            key_padding_mask: `[batch, keys]`, without a batch `[keys]`; bool, or floating point to be added.
            need_weights: return the attention weights too.
            attn_mask: `[queries, keys]` or `[batch · num_heads, queries, keys]`; bool, or floating point to be added.
            average_attn_weights: return the mean over the heads instead of the weights of each head.
            is_causal: asserts that `attn_mask` is the causal mask; without `key_padding_mask` and `need_weights` the
                causal mask is then used instead of it.

        Returns:
            output: shaped as `query`.
            weights: after dropout, `[batch, queries, keys]`, or `[batch, num_heads, queries, keys]` without averaging,
                including the appended keys; None without `need_weights`.

        Raises:
            TypeError: an argument is not a tensor, or a dtype does not fit.
            ValueError: a shape does not fit, or `is_causal` is given without `attn_mask`.
        """
        self._check_inputs(query, key, value)
        masks = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask}
        _check_masks("MultiheadAttention", masks, is_causal, query, key, self.num_heads, self.batch_first)
        batched = query.ndim == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        mask = self._merge_masks(query, key, attn_mask, key_padding_mask, need_weights)

        q, k, v = self._project(query, key, value)
        dropout_p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            heads, weights = multihead_attention_definition(q, k, v, self.num_heads, mask, dropout_p)
        else:
            causal = is_causal and key_padding_mask is None
            q, k, v = (self._split_heads(part) for part in (q, k, v))
            heads = scaled_dot_product_attention(q, k, v, None if causal else mask, dropout_p, causal)
            heads = heads.transpose(1, 2).flatten(-2)
        output = self.out_proj(heads.transpose(0, 1))  # [queries, batch, embed_dim]

        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output.squeeze(1), None if weights is None else weights.squeeze(0)
        return output.transpose(0, 1) if self.batch_first else output, weights

    def _project(
        self,
        query: Float[Tensor, "batch queries embed_dim"],
        key: Float[Tensor, "batch keys kdim"],
        value: Float[Tensor, "batch keys vdim"],
    ) -> tuple[
        Float[Tensor, "batch queries embed_dim"],
        Float[Tensor, "batch all_keys embed_dim"],
        Float[Tensor, "batch all_keys embed_dim"],
    ]:
        """Q, K and V, including the appended keys and values."""
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (linear(*part) for part in zip((query, key, value), weights, biases, strict=True))

        rows = (query.shape[0], 1, self.embed_dim)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = torch.cat([k, self.bias_k.expand(rows)], dim=1), torch.cat([v, self.bias_v.expand(rows)], dim=1)
        if self.add_zero_attn:
            k, v = torch.cat([k, k.new_zeros(rows)], dim=1), torch.cat([v, v.new_zeros(rows)], dim=1)
        return q, k, v

    def _split_heads(
        self, part: Float[Tensor, "batch length embed_dim"]
    ) -> Float[Tensor, "batch num_heads length head_dim"]:
        return part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merge_masks(
        self,
        query: Float[Tensor, "batch queries embed_dim"],
        key: Float[Tensor, "batch keys kdim"],
        attn_mask: Mask,
        key_padding_mask: Mask,
        need_weights: bool,
    ) -> Float[Tensor, "#batch #num_heads #queries all_keys"] | None:
        """The sum of both masks; the appended keys stay visible."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, query.dtype)
            mask = mask.unflatten(0, (query.shape[0], self.num_heads)) if mask.ndim == 3 else mask[None, None]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query.dtype).reshape(query.shape[0], 1, 1, key.shape[1])
            mask = padding if mask is None else mask + padding
        if mask is None:
            return None
        fitting = {query.dtype} if need_weights else {query.dtype, torch.float32}
        text = f"attn_mask and key_padding_mask come to {mask.dtype}, but query is {query.dtype}"
        _require(mask.dtype in fitting, f"MultiheadAttention: {text}", TypeError)
        appended = (self.bias_k is not None) + self.add_zero_attn
        return torch.cat([mask, mask.new_zeros(*mask.shape[:-1], appended)], dim=-1)

    def _check_inputs(self, query: Given, key: Given, value: Given) -> None:
        dtype = self.out_proj.weight.dtype
        _check_sequence("MultiheadAttention: query", query, "embed_dim", self.embed_dim, dtype)
        _check_sequence("MultiheadAttention: key", key, "kdim", self.kdim, dtype)
        _check_sequence("MultiheadAttention: value", value, "vdim", self.vdim, dtype)
        same = key.shape[:-1] == value.shape[:-1]
        text = f"value has the shape {tuple(value.shape)}, but needs one value for each key of {tuple(key.shape)}"
        _require(same, f"MultiheadAttention: {text}")
        batch_dim = 0 if self.batch_first else 1
        same = query.ndim == key.ndim and (query.ndim == 2 or query.shape[batch_dim] == key.shape[batch_dim])
        text = f"key has the shape {tuple(key.shape)}, but needs the batch of query {tuple(query.shape)}"
        _require(same, f"MultiheadAttention: {text}")


class NonDynamicallyQuantizableLinear(Linear):
    """`Linear` with the class name that the repr of `MultiheadAttention` shows."""


class TransformerEncoderLayer(torch.nn.Module):
    """Attention between positions, then a feed-forward network at each position, each with a residual connection and a
    norm.

        norm_first=False:   x = norm1(src + attention(src));     output = norm2(x + feed_forward(x))
        norm_first=True:    x = src + attention(norm1(src));     output = x + feed_forward(norm2(x))

        attention(x) = dropout1(self_attn(x, x, x))
        feed_forward(x) = dropout2(linear2(dropout(activation(linear1(x)))))

    Args:
        d_model: features of each position.
        nhead: attention heads.
        dim_feedforward: features between `linear1` and `linear2`.
        dropout: the probability of dropout in training, also of the attention weights.
        activation: "relu", "gelu", or a function of a tensor.
        layer_norm_eps: `eps` of both norms.
        batch_first: sequences are `[batch, length, d_model]` instead of `[length, batch, d_model]`.
        norm_first: normalize the inputs of attention and feed-forward network instead of the sums after them.
        bias: with biases in all layers.
        device: the device of the parameters.
        dtype: their dtype.

    Raises:
        TypeError: `activation` is neither a string nor callable.
        ValueError: `activation` is an unknown name, `dropout` outside [0, 1], or `d_model` not a multiple of `nhead`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float | int = 0.1,
        activation: str | Callable[[Tensor], Tensor] = relu,
        layer_norm_eps: float | int = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("d_model", d_model), ("nhead", nhead)):
            check_integer(f"TransformerEncoderLayer: {name}", size, at_least=1)
        check_probability("TransformerEncoderLayer: dropout", dropout)
        text = f"TransformerEncoderLayer: d_model must be a multiple of nhead={nhead}, got {d_model}"
        _require(d_model % nhead == 0, text)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, device=device, dtype=dtype
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, device=device, dtype=dtype)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, device=device, dtype=dtype)
        self.norm2 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, device=device, dtype=dtype)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        if isinstance(activation, str):
            text = f"TransformerEncoderLayer: activation must be 'relu', 'gelu' or a function, got {activation!r}"
            _require(activation in ("relu", "gelu"), text)
            activation = relu if activation == "relu" else _gelu
        text = f"TransformerEncoderLayer: activation must be a name or a function, got {activation!r}"
        _require(callable(activation), text, TypeError)
        self.activation = activation

    def forward(
        self, src: Given, src_mask: Mask = None, src_key_padding_mask: Mask = None, is_causal: bool = False
    ) -> Float[Tensor, "*sequence d_model"]:
        """The output of the layer for `src`: attention between the positions, then the feed-forward network at each.

        Args:
            src: `[length, batch, d_model]`, with `batch_first` `[batch, length, d_model]`, without a batch
                `[length, d_model]`.
            src_mask: the `attn_mask` of `MultiheadAttention`.
            src_key_padding_mask: its `key_padding_mask`.
            is_causal: asserts that `src_mask` is the causal mask.

        Returns:
            The shape of `src`.

        Raises:
            TypeError: an argument is not a tensor, or a dtype does not fit.
            ValueError: a shape does not fit, or `is_causal` is given without `src_mask`.
        """
        attn = self.self_attn
        _check_sequence("TransformerEncoderLayer: src", src, "d_model", attn.embed_dim, attn.out_proj.weight.dtype)
        masks = {"src_mask": src_mask, "src_key_padding_mask": src_key_padding_mask}
        _check_masks("TransformerEncoderLayer", masks, is_causal, src, src, attn.num_heads, attn.batch_first)
        attention = partial(self._attend, mask=src_mask, padding=src_key_padding_mask, is_causal=is_causal)
        return transformer_encoder_layer_definition(
            src, attention, self._feed_forward, self.norm1, self.norm2, self.norm_first
        )

    def _attend(
        self, x: Float[Tensor, "*sequence d_model"], mask: Mask, padding: Mask, is_causal: bool
    ) -> Float[Tensor, "*sequence d_model"]:
        output, _ = self.self_attn(x, x, x, padding, need_weights=False, attn_mask=mask, is_causal=is_causal)
        return self.dropout1(output)

    def _feed_forward(self, x: Float[Tensor, "*sequence d_model"]) -> Float[Tensor, "*sequence d_model"]:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


def _default_scale(query: Given) -> float:
    """1/√features: products of random features have a spread of √features. Without features every product is 0."""
    return 1 / math.sqrt(max(query.shape[-1], 1))


def _additive(mask: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A bool mask as the number added to the logits: -inf where it is True, 0 elsewhere; any other mask unchanged."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · Φ(x), where Φ is the distribution function of N(0, 1): a smooth ReLU."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _repeat_heads(name: str, part: Given, query: Given) -> Shaped[Tensor, "..."]:
    """Each head of `part` repeated once for each head of `query` that it serves."""
    text = f"scaled_dot_product_attention: enable_gqa=True needs heads, but {name} and query have the shapes "
    _require(min(query.ndim, part.ndim) >= 3, f"{text}{tuple(part.shape)} and {tuple(query.shape)}")
    heads, groups = query.shape[-3], part.shape[-3]
    fits = heads == groups or (groups > 0 and heads % groups == 0)
    _require(fits, f"scaled_dot_product_attention: {name} has {groups} heads, which do not divide query's {heads}")
    return part if heads == groups else part.repeat_interleave(heads // groups, dim=-3)


def _check_query_key_value(query: Given, key: Given, value: Given) -> None:
    for name, part in (("query", query), ("key", key), ("value", value)):
        role = f"scaled_dot_product_attention: {name}"
        check_dtype(role, check_floating(role, part), query.dtype, of="query")
        check_layout(role, part, "[*leading, length, features]")
    (features, needed), (values, keys) = (key.shape[-1], query.shape[-1]), (value.shape[-2], key.shape[-2])
    _require(features == needed, f"scaled_dot_product_attention: key has {features} features, but query has {needed}")
    _require(values == keys, f"scaled_dot_product_attention: value has the length {values}, but key has {keys}")


def _check_leading(query: Given, key: Given, value: Given) -> None:
    try:
        torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
        raise ValueError(f"scaled_dot_product_attention: {shapes} need leading dimensions that broadcast") from None


def _check_attn_mask(attn_mask: Given, query: Given, needed: tuple[int, ...]) -> None:
    role = "scaled_dot_product_attention: attn_mask"
    check_dtype(role, attn_mask, torch.bool, torch.float32, query.dtype)
    sizes = zip(reversed(attn_mask.shape), reversed(needed), strict=False)
    fits = attn_mask.ndim <= len(needed) and all(size in (1, full) for size, full in sizes)
    _require(fits, f"{role} has the shape {tuple(attn_mask.shape)}, but must broadcast to {needed}")


def _check_sequence(role: str, part: Given, width_name: str, width: int, dtype: torch.dtype) -> None:
    check_layout(role, part, "[length, batch, features]", "[batch, length, features]", "[length, features]")
    _require(part.shape[-1] == width, f"{role} has {part.shape[-1]} features, but {width_name}={width}")
    check_dtype(role, part, dtype, of="the weights")


def _check_masks(
    owner: str, masks: dict[str, Mask], is_causal: bool, query: Given, key: Given, num_heads: int, batch_first: bool
) -> None:
    """Check the attention mask and the padding mask, in this order and under these names, against the sequences."""
    if query.ndim == 2:
        batch, queries, keys = 1, query.shape[0], key.shape[0]
    else:
        batch_dim, length_dim = (0, 1) if batch_first else (1, 0)
        batch, queries, keys = query.shape[batch_dim], query.shape[length_dim], key.shape[length_dim]
    attention = [(queries, keys), (batch * num_heads, queries, keys)]
    padding = [(batch, keys) if query.ndim == 3 else (keys,)]
    for (name, mask), shapes in zip(masks.items(), (attention, padding), strict=True):
        if mask is not None:
            role = f"{owner}: {name}"
            fits = check_tensor(role, mask).dtype == torch.bool or mask.is_floating_point()
            _require(fits, f"{role} is {mask.dtype}, but must be bool or floating point", TypeError)
            text = f"{role} has the shape {tuple(mask.shape)}, but needs {' or '.join(map(str, shapes))}"
            _require(tuple(mask.shape) in shapes, text)
    name, attn_mask = next(iter(masks.items()))
    _require(not is_causal or attn_mask is not None, f"{owner}: is_causal=True needs {name}, got None")


def _require(valid: bool, text: str, error: type[Exception] = ValueError) -> None:
    if not valid:
        raise error(text)
