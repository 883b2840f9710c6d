"""Attention by its formula in float64, and random layers with several heads."""

import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from spec.support.assertions import Tolerance, rounding
from spec.support.strategies import normal, seeds

Attention = Callable[..., Tensor]
Layer = Callable[..., Any]
State = Mapping[str, Tensor]
Tensors = tuple[Tensor, Tensor, Tensor]

# The definitions, in float64


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, factor: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """The mean of the values, weighted with exp(scale · q · k) · factor, and the weights; zeros without any weight.

    Adding a mask to the logits before the softmax is multiplying by its exponential: 0 for -inf.
    """
    products = (q[..., :, None, :] * k[..., None, :, :]).sum(-1)
    shares = (scale * products).exp() * factor
    total = shares.sum(-1, keepdim=True)
    weights = torch.where(total > 0, shares / total, 0)
    return (weights[..., None] * v[..., None, :, :]).sum(-2), weights


def as_factor(mask: Tensor, *, true: float) -> Tensor:
    """The factor of a mask for the weights: `true` where a bool mask is True; for a float mask its exponential."""
    return torch.where(mask, true, 1.0 - true).double() if mask.dtype == torch.bool else mask.double().exp()


def of_softmax(dtype: torch.dtype, roundings: int, largest: float, keys: int, magnitude: Tensor | float) -> Tolerance:
    """The tolerance of a weighted mean: an error of a logit is a relative error of its weight and of the sum.

    Args:
        dtype: In which the implementation computes.
        roundings: On the way to a logit.
        largest: The largest absolute value on that way.
        keys: How many weights are added up, for the softmax and for the mean.
        magnitude: The weighted mean of the absolute values.
    """
    return rounding(dtype, math.ceil(2 * roundings * largest) + 2 * keys + 6, magnitude)


def wide(tensors: Tensors) -> Tensors:
    q, k, v = (t.double() for t in tensors)
    return q, k, v


# MultiheadAttention


def projected(state: State, q: Tensor, k: Tensor, v: Tensor, zero: bool) -> Tensors:
    """Queries, keys and values after the projections, with the keys and values that are appended."""
    biases = state["in_proj_bias"].chunk(3) if "in_proj_bias" in state else (0, 0, 0)
    weights = (
        state["in_proj_weight"].chunk(3)
        if "in_proj_weight" in state
        else [state[f"{name}_proj_weight"] for name in "qkv"]
    )
    q, k, v = (x @ w.T + b for x, w, b in zip((q, k, v), weights, biases, strict=True))
    if "bias_k" in state:
        k, v = (torch.cat([x, state[b].expand(len(x), 1, -1)], 1) for x, b in ((k, "bias_k"), (v, "bias_v")))
    if zero:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))
    return q, k, v


@dataclass(frozen=True)
class Multihead:
    """A valid multi-head attention: the arguments of the layer, its inputs, a seed for the numbers.

    Attributes:
        alone: Query, key and value are one tensor.
        attn: The attention mask: "none", "bool", "float"; with "each" it has three dimensions.
        padding: Whether there is a padding mask too, of the type of the other.
        recording: Gradients are recorded, in training; otherwise PyTorch may use a different kernel.
    """

    heads: int
    head_dim: int
    kdim: int | None
    vdim: int | None
    bias: bool
    add_bias_kv: bool
    add_zero_attn: bool
    batch_first: bool
    batch: int
    queries: int
    keys: int
    alone: bool
    attn: str
    each: bool
    padding: bool
    recording: bool
    seed: int

    @property
    def embed_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def options(self) -> dict[str, Any]:
        return {
            "kdim": self.kdim, "vdim": self.vdim, "bias": self.bias, "add_bias_kv": self.add_bias_kv,
            "add_zero_attn": self.add_zero_attn, "batch_first": self.batch_first,
        }  # fmt: skip

    def layer(self, make: Layer, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A layer with other than its initial parameters, including biases."""
        layer = with_numbers(make(self.embed_dim, self.heads, dtype=dtype, **self.options), self.seed)
        return layer if self.recording else layer.eval()

    def inputs(self, dtype: torch.dtype = torch.float64) -> Tensors:
        """Query, key and value, `[batch, length, features]`."""
        kdim, vdim = self.kdim or self.embed_dim, self.vdim or self.embed_dim
        shapes = ((self.queries, self.embed_dim), (self.keys, kdim), (self.keys, vdim))
        q, k, v = (normal(self.batch, *shape, seed=self.seed + i, dtype=dtype) for i, shape in enumerate(shapes))
        return (q, q, q) if self.alone else (q, k, v)

    def masks(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The masks; the first key is visible for every query, and True means not visible."""

        def mask(*shape: int, seed: int) -> Tensor:
            numbers = normal(*shape, seed=seed).clamp(-2, 2)
            numbers[..., 0] = 0
            return numbers.masked_fill(numbers < -1, -torch.inf).to(dtype) if self.attn == "float" else numbers < -0.3

        masks = {}
        if self.attn != "none":
            leading = (self.batch * self.heads,) if self.each else ()
            masks["attn_mask"] = mask(*leading, self.queries, self.keys, seed=self.seed + 3)
        if self.padding:
            masks["key_padding_mask"] = mask(self.batch, self.keys, seed=self.seed + 4)
        return masks

    def factor(self, masks: Mapping[str, Tensor]) -> Tensor:
        """The masks as `attention` needs them, `[batch, heads, queries, all keys]`."""
        factor = torch.ones(self.batch, self.heads, self.queries, self.keys, dtype=torch.float64)
        if "attn_mask" in masks:
            mask = as_factor(masks["attn_mask"], true=0.0)
            factor = factor * (mask.reshape(factor.shape) if self.each else mask)
        if "key_padding_mask" in masks:
            factor = factor * as_factor(masks["key_padding_mask"], true=0.0)[:, None, None]
        appended = torch.ones(*factor.shape[:-1], self.add_bias_kv + self.add_zero_attn, dtype=torch.float64)
        return torch.cat([factor, appended], -1)

    def by_definition(self, state: State, inputs: Tensors, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Head after head: the output, `[batch, queries, embed_dim]`, and the weights of each head."""
        q, k, v = projected(state, *inputs, self.add_zero_attn)
        parts = zip(*(x.split(self.head_dim, -1) for x in (q, k, v)), strict=True)
        scale = 1 / math.sqrt(self.head_dim)
        heads = [attention(*part, scale, factor[:, h]) for h, part in enumerate(parts)]  # pyright: ignore[reportCallIssue]
        output = torch.cat([output for output, _ in heads], -1) @ state["out_proj.weight"].T
        return output + state.get("out_proj.bias", 0), torch.stack([weights for _, weights in heads], 1)

    def tolerances(self, dtype: torch.dtype, state: State, inputs: Tensors) -> tuple[Tolerance, Tolerance]:
        """The tolerances of output and weights, from the largest possible intermediate numbers."""
        absolute = {name: value.abs() for name, value in state.items()}
        q, k, v = (x.max().item() for x in projected(absolute, *(x.abs() for x in inputs), self.add_zero_attn))  # pyright: ignore[reportCallIssue]
        logit = q * k * math.sqrt(self.head_dim) + 4  # two masks of at most 2
        terms = max(x.shape[-1] for x in inputs) + 2
        out = absolute["out_proj.weight"].sum(1).max().item() * v + absolute.get("out_proj.bias", torch.zeros(1)).max()
        keys = self.keys + 2
        way = 2 * terms + self.head_dim + 4  # two projections and their product
        of_output = of_softmax(dtype, way, logit, keys + terms + self.embed_dim, out.item())
        return of_output, of_softmax(dtype, way, logit, keys, 1.0)


@st.composite
def multiheads(draw: st.DrawFn, **fixed: Any) -> Multihead:
    size, flag, width = st.integers(1, 3), st.booleans(), st.none() | st.integers(1, 3)
    alone = draw(flag)
    queries = draw(size)
    drawn = {
        "heads": draw(st.integers(1, 2)), "head_dim": draw(st.integers(1, 2)), "kdim": None if alone else draw(width),
        "vdim": None if alone else draw(width), "bias": draw(flag), "add_bias_kv": draw(flag),
        "add_zero_attn": draw(flag), "batch_first": draw(flag), "batch": draw(st.integers(1, 2)), "queries": queries,
        "keys": queries if alone else draw(size), "alone": alone,
        "attn": draw(st.sampled_from(["none", "bool", "float"])), "each": draw(flag), "padding": draw(flag),
        "recording": draw(flag), "seed": draw(seeds),
    }  # fmt: skip
    return Multihead(**drawn | fixed)


def with_numbers(layer: nn.Module, seed: int) -> nn.Module:
    """The layer with other numbers in all parameters, small enough that no softmax weight underflows."""
    state = layer.state_dict()
    layer.load_state_dict({name: normal(*state[name].shape, seed=seed + i) / 2 for i, name in enumerate(state)})
    return layer


def outside(x: Tensor, batch_first: bool) -> Tensor:
    """`[batch, length, features]` in the layout of the layer."""
    return x if batch_first else x.transpose(0, 1)


@contextmanager
def asserting() -> Iterator[None]:
    """PyTorch's attention rejects some arguments by `assert`; of all its layers it is the only one.

    An assertion without a text names its argument in its line of code.
    """
    try:
        yield
    except AssertionError as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(str(error) or line) from error
