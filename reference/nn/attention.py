"""Chapter 12, "other layers": attention, in which every position of a sequence asks all others what they know.

Each position sends out a query, and offers a key and a value. Where a query meets keys like itself, their values come back,
mixed in proportion. `scaled_dot_product_attention` is that exchange; `MultiheadAttention` holds several at once, each in a
learned projection; `TransformerEncoderLayer` adds a small network for each position (Vaswani et al., 2017).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from reference.nn.activation import relu, softmax
from reference.nn.dropout import Dropout, dropout
from reference.nn.initialization import xavier_normal_, xavier_uniform_
from reference.nn.linear import Linear, linear
from reference.nn.normalization import LayerNorm

# What a caller hands in is annotated loosely: a wrong shape or dtype shall meet the error that names it.
Given = Shaped[Tensor, "..."]
Mask = Shaped[Tensor, "..."] | None


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

    A query to which the mask leaves no key gets zeros. float16 and bfloat16 are computed in float32 and rounded once, at the
    end.

    Args:
        query: `[*leading, queries, features]`; the leading dimensions of all three broadcast.
        key: `[*leading, keys, features]`.
        value: `[*leading, keys, value_features]`.
        attn_mask: broadcasts to `[*leading, queries, keys]`; bool, True where a query may see a key, or floating point,
            added before the softmax.
        dropout_p: the probability with which each weight is dropped, in training and evaluation alike.
        is_causal: query i sees the keys 0 to i, instead of an `attn_mask`.
        scale: 1/√features if None.
        enable_gqa: each head of `key` and `value`, both `[*leading, heads, keys, ...]`, serves a group of heads of `query`.

    Returns:
        `[*leading, queries, value_features]`, of the dtype of `query`.

    Raises:
        TypeError: an argument is not a tensor, or a dtype does not fit.
        ValueError: a shape does not fit, both `attn_mask` and `is_causal` are given, or `dropout_p` is outside [0, 1].
    """
    _check_query_key_value(query, key, value)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"scaled_dot_product_attention: dropout_p is a probability from 0 to 1, got {dropout_p}")
    if is_causal and attn_mask is not None:
        raise ValueError("scaled_dot_product_attention: attn_mask is given and is_causal=True, but only one can be used")
    if enable_gqa:
        key, value = _repeat_heads("key", key, query), _repeat_heads("value", value, query)
    _check_leading(query, key, value)

    wide = torch.promote_types(query.dtype, torch.float32)
    logits = _scaled_products(query.to(wide), key.to(wide), scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        _check_attn_mask(attn_mask, query, logits)
        logits = logits + (_additive(~attn_mask, wide) if attn_mask.dtype == torch.bool else attn_mask)

    unseen = (logits == -torch.inf).all(dim=-1, keepdim=True)  # their softmax would be 0 / 0
    weights = softmax(logits.masked_fill(unseen, 0), dim=-1).masked_fill(unseen, 0)
    return (dropout(weights, dropout_p) @ value.to(wide)).to(query.dtype)


class MultiheadAttention(torch.nn.Module):
    """Several attentions side by side, each over its own projection of query, key and value.

        head_i = softmax(Q_i K_iᵀ / √head_dim + mask) V_i,    Q = query W_qᵀ + b_q,  K = key W_kᵀ + b_k,  V = value W_vᵀ + b_v
        output = [head_1 … head_h] W_oᵀ + b_o

    where Q_i are the features i · head_dim to (i + 1) · head_dim of Q, and head_dim = embed_dim / num_heads.

    Args:
        embed_dim: features of query and output, divided among the heads.
        num_heads: the number of heads.
        dropout: the probability with which training drops each attention weight.
        bias: with b_q, b_k, b_v and b_o.
        add_bias_kv: append a learned key and value that every query may see.
        add_zero_attn: append a key and value of zeros that every query may see.
        kdim: features of key; `embed_dim` if None.
        vdim: features of value; `embed_dim` if None.
        batch_first: sequences are `[batch, length, features]` instead of `[length, batch, features]`.
        device: where the parameters live.
        dtype: their dtype.

    Attributes:
        in_proj_weight: W_q, W_k, W_v on top of each other, `[3 · embed_dim, embed_dim]`; None if `kdim` or `vdim` differs.
        q_proj_weight, k_proj_weight, v_proj_weight: W_q, W_k, W_v in that case; None otherwise.
        in_proj_bias: b_q, b_k, b_v, `[3 · embed_dim]`, or None.
        out_proj: the layer of W_o and b_o.
        bias_k, bias_v: the appended key and value, `[1, 1, embed_dim]`, or None.

    Raises:
        ValueError: `embed_dim` or `num_heads` is not positive, or `embed_dim` not a multiple of `num_heads`.
    """

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("embed_dim", embed_dim), ("num_heads", num_heads)):
            if size <= 0:
                raise ValueError(f"MultiheadAttention: {name} must be at least 1, got {size}")
        if embed_dim % num_heads:
            raise ValueError(f"MultiheadAttention: embed_dim={embed_dim} must be a multiple of num_heads={num_heads}")
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
        """Projections of the input from Xavier's uniform distribution, the appended pair from his normal one, biases 0."""
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
    ) -> tuple[Float[Tensor, "*sequence embed_dim"], Float[Tensor, "*heads queries keys"] | None]:
        """What each query learns from the values, and how it weighed them.

        In both masks True means *not* to look there, the opposite of `scaled_dot_product_attention`. A query that may look
        nowhere gets NaN with `need_weights`, and 0 from each head without.

        Args:
            query: `[queries, batch, embed_dim]`, with `batch_first` `[batch, queries, embed_dim]`, without a batch
                `[queries, embed_dim]`.
            key: likewise, with `keys` and `kdim`.
            value: likewise, with `keys` and `vdim`.
            key_padding_mask: `[batch, keys]`, without a batch `[keys]`; bool, or floating point to be added.
            need_weights: return the attention weights too.
            attn_mask: `[queries, keys]` or `[batch · num_heads, queries, keys]`; bool, or floating point to be added.
            average_attn_weights: return their mean over the heads instead of each head's own.
            is_causal: a promise that `attn_mask` is the causal mask, which is used in its place where neither
                `key_padding_mask` nor `need_weights` is given.

        Returns:
            output: shaped as `query`.
            weights: after dropout, `[batch, queries, keys]`, or `[batch, num_heads, queries, keys]` without averaging; None
                without `need_weights`.

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

        q, k, v = (self._split_heads(part) for part in self._project(query, key, value))
        dropout_p = self.dropout if self.training else 0.0
        if need_weights:
            logits = _scaled_products(q, k)
            weights = dropout(softmax(logits if mask is None else logits + mask, dim=-1), dropout_p)
            heads = weights @ v
        else:
            weights = None
            causal = is_causal and key_padding_mask is None
            heads = scaled_dot_product_attention(q, k, v, None if causal else mask, dropout_p, causal)
        output = self.out_proj(heads.permute(2, 0, 1, 3).flatten(-2))  # [queries, batch, embed_dim]

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
        """Q, K and V, with the keys and values that are appended."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (linear(*part) for part in zip((query, key, value), weights, biases, strict=True))

        rows = (len(query), 1, self.embed_dim)
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
        """The sum of both masks, which leaves what is appended to be seen."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, query.dtype)
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.ndim == 3 else mask[None, None]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query.dtype).reshape(len(query), 1, 1, key.shape[1])
            mask = padding if mask is None else mask + padding
        if mask is not None:
            fitting = (query.dtype,) if need_weights else (query.dtype, torch.float32)
            if mask.dtype not in fitting:
                raise TypeError(
                    f"MultiheadAttention: attn_mask and key_padding_mask come to {mask.dtype}, but need torch.bool or "
                    f"{' or '.join(map(str, fitting))}"
                )
            appended = (self.bias_k is not None) + self.add_zero_attn
            mask = torch.cat([mask, mask.new_zeros(*mask.shape[:-1], appended)], dim=-1)
        return mask

    def _check_inputs(self, query: Given, key: Given, value: Given) -> None:
        weight = self.out_proj.weight
        widths = {"embed_dim": self.embed_dim, "kdim": self.kdim, "vdim": self.vdim}
        for (name, part), (width_name, width) in zip({"query": query, "key": key, "value": value}.items(), widths.items(), strict=True):
            _check_sequence("MultiheadAttention", name, part, width_name, width, weight.dtype)
            if part.ndim != query.ndim:
                raise ValueError(
                    f"MultiheadAttention: {name} {tuple(part.shape)} and query {tuple(query.shape)} need a batch both or neither"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"MultiheadAttention: value has the shape {tuple(value.shape)}, but key {tuple(key.shape)} needs a value per key"
            )
        batch_dim = 0 if self.batch_first else 1
        if query.ndim == 3 and query.shape[batch_dim] != key.shape[batch_dim]:
            raise ValueError(
                f"MultiheadAttention: key has a batch of {key.shape[batch_dim]}, but query one of {query.shape[batch_dim]}"
            )


class NonDynamicallyQuantizableLinear(Linear):
    """`Linear` under the name by which a printed `MultiheadAttention` calls it."""


class TransformerEncoderLayer(torch.nn.Module):
    """Attention among positions, then a network at each position; around either a residual connection and a `LayerNorm`.

        norm_first=False:  x = norm1(src + attention(src));       output = norm2(x + feed_forward(x))
        norm_first=True:   x = src + attention(norm1(src));       output = x + feed_forward(norm2(x))

        attention(x) = dropout1(self_attn(x, x, x));    feed_forward(x) = dropout2(linear2(dropout(activation(linear1(x)))))

    Args:
        d_model: features of each position.
        nhead: attention heads.
        dim_feedforward: features between `linear1` and `linear2`.
        dropout: the probability with which training drops, also among the attention weights.
        activation: "relu", "gelu", or a function of a tensor.
        layer_norm_eps: `eps` of both norms.
        batch_first: sequences are `[batch, length, d_model]` instead of `[length, batch, d_model]`.
        norm_first: normalize what goes into attention and feed-forward, rather than what comes out.
        bias: with biases in all layers.
        device: where the parameters live.
        dtype: their dtype.

    Raises:
        TypeError: `activation` is neither a string nor callable.
        ValueError: `activation` is an unknown name, `dropout` is outside [0, 1], or `d_model` not a multiple of `nhead`.
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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
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
        self.activation = _activation(activation)

    def forward(
        self, src: Given, src_mask: Mask = None, src_key_padding_mask: Mask = None, is_causal: bool = False
    ) -> Float[Tensor, "*sequence d_model"]:
        """`src`, after each position has looked at the others and thought about what it saw.

        Args:
            src: `[length, batch, d_model]`, with `batch_first` `[batch, length, d_model]`, without a batch
                `[length, d_model]`.
            src_mask: the `attn_mask` of `MultiheadAttention`.
            src_key_padding_mask: its `key_padding_mask`.
            is_causal: a promise that `src_mask` is the causal mask.

        Returns:
            The shape of `src`.

        Raises:
            TypeError: an argument is not a tensor, or a dtype does not fit.
            ValueError: a shape does not fit, or `is_causal` is given without `src_mask`.
        """
        attn = self.self_attn
        _check_sequence("TransformerEncoderLayer", "src", src, "d_model", attn.embed_dim, attn.out_proj.weight.dtype)
        masks = {"src_mask": src_mask, "src_key_padding_mask": src_key_padding_mask}
        _check_masks("TransformerEncoderLayer", masks, is_causal, src, src, attn.num_heads, attn.batch_first)
        if self.norm_first:
            x = src + self._attend(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(src + self._attend(src, src_mask, src_key_padding_mask, is_causal))
        return self.norm2(x + self._feed_forward(x))

    def _attend(
        self, x: Float[Tensor, "*sequence d_model"], mask: Mask, padding: Mask, is_causal: bool
    ) -> Float[Tensor, "*sequence d_model"]:
        return self.dropout1(self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)[0])

    def _feed_forward(self, x: Float[Tensor, "*sequence d_model"]) -> Float[Tensor, "*sequence d_model"]:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


def _scaled_products(
    query: Float[Tensor, "*#leading queries features"],
    key: Float[Tensor, "*#leading keys features"],
    scale: float | int | None = None,
) -> Float[Tensor, "*_ queries keys"]:
    """scale · query keyᵀ, by default with 1/√features: what the products of random features spread like √features."""
    features = query.shape[-1]
    if scale is None:
        scale = 1 / math.sqrt(max(features, 1))  # without features every product is 0
    return (query * scale) @ key.mT


def _additive(mask: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A bool mask as what is to be added to the logits: -inf where it is True, 0 elsewhere; any other mask as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x · Φ(x), Φ being the normal distribution function: x where it is likely to exceed a random number, else near 0."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _activation(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    named = {"relu": relu, "gelu": _gelu}
    if isinstance(activation, str) and activation not in named:
        raise ValueError(f"TransformerEncoderLayer: activation must be 'relu', 'gelu' or a function, got {activation!r}")
    if not isinstance(activation, str) and not callable(activation):
        raise TypeError(f"TransformerEncoderLayer: activation must be 'relu', 'gelu' or a function, got {activation!r}")
    return named[activation] if isinstance(activation, str) else activation


def _repeat_heads(name: str, part: Given, query: Given) -> Shaped[Tensor, "..."]:
    """Each head of `part` as often in succession as there are heads of `query` to one of them."""
    if query.ndim < 3 or part.ndim < 3:
        raise ValueError(
            f"scaled_dot_product_attention: {name} {tuple(part.shape)} and query {tuple(query.shape)} need heads, "
            "[*leading, heads, length, features], with enable_gqa=True"
        )
    heads, groups = query.shape[-3], part.shape[-3]
    if heads == groups:
        return part
    if groups == 0 or heads % groups:
        raise ValueError(
            f"scaled_dot_product_attention: {name} has {groups} heads, which does not divide query's {heads} (enable_gqa=True)"
        )
    return part.repeat_interleave(heads // groups, dim=-3)


def _check_query_key_value(query: Given, key: Given, value: Given) -> None:
    for name, part in {"query": query, "key": key, "value": value}.items():
        if not isinstance(part, Tensor) or not part.is_floating_point():
            got = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"scaled_dot_product_attention: {name} must be a tensor of floating point, got {got}")
        if part.dtype != query.dtype:
            raise TypeError(f"scaled_dot_product_attention: {name} is {part.dtype}, but query is {query.dtype}")
        if part.ndim < 2:
            raise ValueError(
                f"scaled_dot_product_attention: {name} has the shape {tuple(part.shape)}, but needs [*leading, length, features]"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"scaled_dot_product_attention: key has {key.shape[-1]} features, but query has {query.shape[-1]}"
        )
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"scaled_dot_product_attention: there are {value.shape[-2]} values, but {key.shape[-2]} keys")


def _check_leading(query: Given, key: Given, value: Given) -> None:
    try:
        torch.broadcast_shapes(*(part.shape[:-2] for part in (query, key, value)))
    except RuntimeError:
        raise ValueError(
            f"scaled_dot_product_attention: query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} "
            "need leading dimensions that broadcast"
        ) from None


def _check_attn_mask(attn_mask: Given, query: Given, logits: Float[Tensor, "*leading queries keys"]) -> None:
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise TypeError(
            f"scaled_dot_product_attention: attn_mask is {attn_mask.dtype}, but needs torch.bool, torch.float32 or {query.dtype}"
        )
    pairs = list(zip(reversed(attn_mask.shape), reversed(logits.shape), strict=False))
    if attn_mask.ndim > logits.ndim or any(size not in (1, needed) for size, needed in pairs):
        raise ValueError(
            f"scaled_dot_product_attention: attn_mask has the shape {tuple(attn_mask.shape)}, but must broadcast to "
            f"{tuple(logits.shape)}, [*leading, queries, keys]"
        )


def _check_sequence(owner: str, name: str, part: Given, width_name: str, width: int, dtype: torch.dtype) -> None:
    if not isinstance(part, Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor, got {type(part).__name__}")
    if part.ndim not in (2, 3):
        raise ValueError(f"{owner}: {name} has the shape {tuple(part.shape)}, but needs 3 dimensions, or 2 without a batch")
    if part.shape[-1] != width:
        raise ValueError(f"{owner}: {name} has {part.shape[-1]} features, but {width_name}={width}")
    if part.dtype != dtype:
        raise TypeError(f"{owner}: {name} is {part.dtype}, but the weights are {dtype}")


def _check_masks(
    owner: str, masks: dict[str, Mask], is_causal: bool, query: Given, key: Given, num_heads: int, batch_first: bool
) -> None:
    """Check an attention mask and a padding mask, in this order and under these names, against the sequences."""
    batch_dim, length_dim = (0, 1) if batch_first else (1, 0)
    if query.ndim == 2:
        batch, queries, keys = 1, len(query), len(key)
    else:
        batch, queries, keys = query.shape[batch_dim], query.shape[length_dim], key.shape[length_dim]
    needed = [
        [(queries, keys), (batch * num_heads, queries, keys)],
        [(batch, keys) if query.ndim == 3 else (keys,)],
    ]
    for (name, mask), shapes in zip(masks.items(), needed, strict=True):
        if mask is None:
            continue
        if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{owner}: {name} must be a tensor of bool or floating point, got {got}")
        if mask.shape not in shapes:
            raise ValueError(
                f"{owner}: {name} has the shape {tuple(mask.shape)}, but needs {' or '.join(map(str, shapes))}"
            )
    name, attn_mask = next(iter(masks.items()))
    if is_causal and attn_mask is None:
        raise ValueError(f"{owner}: is_causal=True is a promise about {name}, but {name} is None")
