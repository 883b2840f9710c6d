"""Chapter 12, other layers: attention, as a function and with several heads."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import reference
from spec.support.assertions import assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.attention import (
    Attention,
    Layer,
    Multihead,
    Tensors,
    as_factor,
    asserting,
    attention,
    multiheads,
    of_softmax,
    outside,
    wide,
    with_numbers,
)
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds

# scaled_dot_product_attention


@clause("12.attention.definition", "12.attention.scale")
def test_the_scores_are_divided_by_the_root_of_the_number_of_features(scaled_dot_product_attention: Attention) -> None:
    q, k, v = torch.ones(1, 1, 4), torch.tensor([[[1.0] * 4, [0.0] * 4]]), torch.tensor([[[1.0], [0.0]]])
    # the scores are 4 and 0, divided by √4 they are 2 and 0
    expected = torch.tensor([[[1 / (1 + math.exp(-2))]]])
    assert_close(scaled_dot_product_attention(q, k, v), expected, rounding(torch.float32, 8, 3))


@dataclass(frozen=True)
class Exchange:
    """A valid attention.

    Attributes:
        leading: The dimensions before the last two, of key and value.
        groups: How many heads of the query share one of key and value.
        mask: "none", "causal", "bool" (True: may attend), "float" (added to the logits), "full" (bool, all dimensions).
    """

    leading: tuple[int, ...]
    groups: int
    queries: int
    keys: int
    features: int
    value_features: int
    mask: str
    scale: float | None
    seed: int

    def tensors(self, dtype: torch.dtype = torch.float64) -> Tensors:
        """Query, key and value."""
        heads = (*self.leading[:-1], self.leading[-1] * self.groups) if self.leading else ()
        shapes = [
            (*heads, self.queries, self.features),
            (*self.leading, self.keys, self.features),
            (*self.leading, self.keys, self.value_features),
        ]
        q, k, v = (normal(*shape, seed=self.seed + i, dtype=dtype) for i, shape in enumerate(shapes))
        return q, k, v

    def options(self, q: Tensor) -> dict[str, Any]:
        """The arguments by name, including the mask, which keeps the first key visible for every query."""
        shape = (*q.shape[:-2], self.queries, self.keys) if self.mask == "full" else (self.queries, self.keys)
        numbers = normal(*shape, seed=self.seed + 3).clamp(-2, 2)
        numbers[..., 0] = numbers[..., 0].abs()
        masks = {
            "bool": {"attn_mask": numbers > -0.3}, "full": {"attn_mask": numbers > -0.3},
            "float": {"attn_mask": numbers.masked_fill(numbers < -1, -torch.inf).to(q.dtype)},
            "causal": {"is_causal": True}, "none": {},
        }  # fmt: skip
        return masks[self.mask] | {"scale": self.scale, "enable_gqa": self.groups > 1}

    def factor(self, options: Mapping[str, Any]) -> Tensor | float:
        """The mask as `attention` needs it."""
        if self.mask == "causal":
            return torch.tensor([[float(j <= i) for j in range(self.keys)] for i in range(self.queries)]).double()
        return as_factor(options["attn_mask"], true=1.0) if "attn_mask" in options else 1.0


@st.composite
def exchanges(draw: st.DrawFn, **fixed: Any) -> Exchange:
    size = st.integers(1, 3)
    leading = draw(st.sampled_from([(), (2,), (1, 2), (2, 1)]))
    drawn = {
        "leading": leading, "groups": draw(st.integers(1, 2)) if leading else 1, "queries": draw(size),
        "keys": draw(size), "features": draw(size), "value_features": draw(size),
        "mask": draw(st.sampled_from(["none", "causal", "bool", "float", "full"])),
        "scale": draw(st.sampled_from([None, 0.3, 1, 2.0])),  # PyTorch's fused kernel gives NaN for 0 and less
        "seed": draw(seeds),
    }  # fmt: skip
    return Exchange(**drawn | fixed)


@clause("12.attention.definition", "12.attention.masks", "12.attention.groups", "12.attention.layouts")
@given(case=exchanges(), dtype=dtypes(), layout=st.tuples(layouts, layouts, layouts))
def test_scaled_dot_product_attention_equals_the_weighted_mean(
    scaled_dot_product_attention: Attention, case: Exchange, dtype: torch.dtype, layout: tuple[int, int, int]
) -> None:
    q, k, v = case.tensors(dtype)
    options = case.options(q)
    again = [laid_out(t, number) for t, number in zip((q, k, v), layout, strict=True)]
    output = scaled_dot_product_attention(*again, **options)

    wide_q, wide_k, wide_v = wide((q, k, v))
    if case.groups > 1:  # head h of the query looks at head h // groups
        wide_k, wide_v = (
            torch.stack([t[..., h // case.groups, :, :] for h in range(q.shape[-3])], -3) for t in (wide_k, wide_v)
        )
    scale = case.scale if case.scale is not None else 1 / math.sqrt(case.features)
    expected, weights = attention(wide_q, wide_k, wide_v, scale, case.factor(options))
    largest = scale * wide_q.abs().max() * wide_k.abs().max() * case.features + 2
    magnitude = weights @ wide_v.abs()
    assert output.dtype == dtype
    tolerance = of_softmax(dtype, case.features + 4, largest.item(), case.keys, magnitude)
    assert_close(output.double(), expected, tolerance)
    for name, t, before in zip(("query", "key", "value"), again, (q, k, v), strict=True):
        assert_equal(t, before, f"the {name} afterwards")


# One exchange of float64 at the sizes above: logits of at most 2 · 6 · 6 · 3, values of at most 6.
SMALL = of_softmax(torch.float64, 7, 220, 3, 6)


@clause("12.attention.permutation")
@given(case=exchanges(), data=st.data())
def test_attention_is_invariant_to_key_order_and_keeps_query_order(
    scaled_dot_product_attention: Attention, case: Exchange, data: st.DataObject
) -> None:
    case = replace(case, mask="full" if case.mask == "causal" else case.mask)  # the causal mask knows an order
    q, k, v = case.tensors()
    options = case.options(q)
    rows, columns = (data.draw(st.permutations(range(size))) for size in (case.queries, case.keys))
    shuffled = dict(options)
    if "attn_mask" in options:
        shuffled["attn_mask"] = options["attn_mask"][..., rows, :][..., columns]
    output = scaled_dot_product_attention(q[..., rows, :], k[..., columns, :], v[..., columns, :], **shuffled)
    assert_close(output, scaled_dot_product_attention(q, k, v, **options)[..., rows, :], SMALL)


@clause("12.attention.masks")
@given(case=exchanges(mask="none"), hidden=st.integers(1, 2))
def test_masked_keys_have_no_effect(scaled_dot_product_attention: Attention, case: Exchange, hidden: int) -> None:
    q, k, v = (replace(case, keys=case.keys + hidden)).tensors()
    options = case.options(q)
    expected = scaled_dot_product_attention(q, k[..., : case.keys, :], v[..., : case.keys, :], **options)
    seen = torch.arange(case.keys + hidden) < case.keys
    added = torch.zeros(len(seen), dtype=q.dtype).masked_fill(~seen, -torch.inf)
    for kind, mask in (("bool", seen), ("float", added)):
        mask = mask.expand(case.queries, -1)
        assert_close(scaled_dot_product_attention(q, k, v, mask, **options), expected, SMALL, f"with a {kind} mask")


@clause("12.attention.causal")
@pytest.mark.parametrize(("queries", "keys"), [(3, 3), (4, 2), (2, 4)], ids=["square", "more queries", "more keys"])
def test_is_causal_lets_query_i_attend_to_keys_0_to_i(
    scaled_dot_product_attention: Attention, queries: int, keys: int
) -> None:
    # with zero queries all visible keys have the same weight: the mean of the first values
    q, k, v = torch.zeros(queries, 1), torch.zeros(keys, 1), torch.arange(keys).unsqueeze(1) + 1.0
    expected = [[(min(i + 1, keys) + 1) / 2] for i in range(queries)]
    assert_close(scaled_dot_product_attention(q, k, v, is_causal=True), expected, rounding(torch.float32, 8, keys))


@clause("12.attention.fully_masked")
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_fully_masked_query_gets_zeros(scaled_dot_product_attention: Attention, kind: str) -> None:
    mask = torch.tensor([[True, True], [False, False]])
    if kind == "float":
        mask = torch.zeros(2, 2).masked_fill(~mask, -torch.inf)
    output = scaled_dot_product_attention(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 4), mask)
    assert_close(output[0], torch.ones(4), rounding(torch.float32, 4), "the output of the first query")
    assert_equal(output[1], torch.zeros(4), "the output of the second query")


@clause("12.attention.scale")
def test_attention_default_scale_is_1_over_sqrt_of_features(scaled_dot_product_attention: Attention) -> None:
    # the logits are 4 · 1 / √4 = 2 and 0, or with scale 0.25 they are 1 and 0
    q, k, v = torch.ones(1, 4), torch.tensor([[1.0] * 4, [0.0] * 4]), torch.tensor([[1.0], [0.0]])
    tolerance = rounding(torch.float32, 20)
    assert_close(scaled_dot_product_attention(q, k, v), [[1 / (1 + math.exp(-2))]], tolerance)
    assert_close(scaled_dot_product_attention(q, k, v, scale=0.25), [[1 / (1 + math.exp(-1))]], tolerance)


@clause("12.attention.dropout")
def test_attention_dropout_drops_weights_and_scales_the_others(scaled_dot_product_attention: Attention) -> None:
    # ten keys with equal weights; the values are different unit vectors, so that the output shows the weights
    q, k, v = torch.zeros(2000, 1), torch.zeros(10, 1), torch.eye(10)
    output = scaled_dot_product_attention(q, k, v, dropout_p=0.2)
    kept = output != 0
    assert_close(output[kept], torch.full_like(output[kept], 0.1 / 0.8), rounding(torch.float32, 20), "kept weights")
    # the number of zeros among n has the standard deviation √(n p (1 - p)); six of them
    zeros, n = int((~kept).sum()), kept.numel()
    assert abs(zeros - 0.2 * n) <= 6 * math.sqrt(n * 0.2 * 0.8), f"{zeros} of {n} weights were dropped"
    assert (output.sum(1) != 1).any(), "each weight is dropped on its own"


@clause("12.attention.dropout")
def test_attention_dropout_1_gives_zeros(scaled_dot_product_attention: Attention) -> None:
    q = torch.ones(3, 2)
    assert_equal(scaled_dot_product_attention(q, q, q, dropout_p=1.0), torch.zeros(3, 2))


@clause("12.attention.groups")
def test_attention_broadcasts_leading_dimensions(scaled_dot_product_attention: Attention) -> None:
    q, k, v = normal(2, 3, 4, 2, seed=0), normal(1, 3, 5, 2, seed=1), normal(5, 6, seed=2)
    expected = scaled_dot_product_attention(q, k.expand(2, 3, 5, 2), v.expand(2, 3, 5, 6))
    assert expected.shape == (2, 3, 4, 6)
    assert_close(scaled_dot_product_attention(q, k, v), expected, SMALL)


@clause("12.attention.empty")
def test_attention_accepts_zero_queries_and_zero_keys(scaled_dot_product_attention: Attention) -> None:
    some, none = torch.ones(2, 3, 4), torch.ones(2, 0, 4)
    assert scaled_dot_product_attention(none, some, some).shape == (2, 0, 4)
    assert_equal(scaled_dot_product_attention(some, none, none), torch.zeros(2, 3, 4), "the output without keys")
    assert scaled_dot_product_attention(some[:0], some[:0], some[:0]).shape == (0, 3, 4)


@clause("12.attention.stability")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_attention_with_large_logits_selects_the_value_of_the_largest(
    scaled_dot_product_attention: Attention, dtype: torch.dtype
) -> None:
    q = torch.tensor([[1e4], [-1e4]], dtype=dtype)
    k, v = torch.tensor([[1.0], [0.0], [-1.0]], dtype=dtype), torch.tensor([[5.0], [7.0], [-3.0]], dtype=dtype)
    assert_equal(scaled_dot_product_attention(q, k, v), [[5.0], [-3.0]])


@clause("12.attention.nonfinite")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_in_a_query_reach_only_the_output_of_that_query(
    scaled_dot_product_attention: Attention, value: float
) -> None:
    q, k, v = torch.ones(3, 2), torch.ones(4, 2), torch.ones(4, 5)
    q[1, 0] = value  # an infinity less the largest of the infinite logits is NaN
    output = scaled_dot_product_attention(q, k, v)
    assert output[1].isnan().all()
    assert_close(output[::2], torch.ones(2, 5), rounding(torch.float32, 12))


@clause("12.attention.gradients")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.5},
        {"attn_mask": torch.tensor([[True, False, True], [False, False, True]])},
    ],
    ids=["plain", "causal", "scale", "a mask"],
)
def test_scaled_dot_product_attention_is_differentiable_twice(
    scaled_dot_product_attention: Attention, options: dict[str, Any]
) -> None:
    inputs = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(1, 2, 2), (1, 3, 2), (1, 3, 1)]))
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused kernel has no second derivative
        assert_differentiable(lambda q, k, v: scaled_dot_product_attention(q, k, v, **options), *inputs)


@clause("12.attention.fully_masked")
@pytest.mark.aspect("gradients")
def test_a_fully_masked_query_has_zero_gradient(scaled_dot_product_attention: Attention) -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    inputs = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(1, 2, 2), (1, 3, 2), (1, 3, 1)]))
    with sdpa_kernel(SDPBackend.MATH):
        assert_differentiable(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), *inputs)


@clause("12.attention.gradients")
def test_float_attn_mask_has_a_gradient(scaled_dot_product_attention: Attention) -> None:
    q, k, v, mask = (normal(2, 2, seed=i).requires_grad_() for i in range(4))
    with sdpa_kernel(SDPBackend.MATH):
        assert_differentiable(scaled_dot_product_attention, q, k, v, mask)


LARGE = [pytest.param(-1e9, id="-1e9"), pytest.param(torch.finfo(torch.float32).min, id="finfo.min")]
"""The values in the masks of many models instead of -inf."""


@clause("12.attention.large_masks")
@pytest.mark.parametrize("fill", LARGE)
def test_a_row_of_large_negative_numbers_has_the_gradient_of_the_formula(
    scaled_dot_product_attention: Attention, fill: float
) -> None:
    # q · k = 0, so softmax(0 + fill) gives each of the 4 keys the weight 1/4, as it gives it without a mask
    q, k, mask = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 4, 4), torch.zeros(2, 4)
    mask[1] = fill
    v = normal(1, 1, 4, 4, seed=0, dtype=torch.float32).requires_grad_()
    upstream = torch.tensor([[0.0] * 4, [8.0] * 4])[None, None]  # of the masked query only
    (found,) = torch.autograd.grad(scaled_dot_product_attention(q, k, v, mask), v, upstream)
    assert_close(found, torch.full((1, 1, 4, 4), 2.0), rounding(torch.float32, 2 * 4 + 6, 8.0), "the gradient of value")


@clause("12.attention.rejects")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"query": torch.ones(3)}, "query", id="a query of one dimension"),
        pytest.param({"query": [1.0]}, "query", id="a query that is no tensor"),
        pytest.param({"key": torch.ones(2, 5, 4)}, "key|batch2 tensor", id="a key of other features"),
        pytest.param({"value": torch.ones(2, 4, 6)}, "value|batch2 tensor", id="fewer values than keys"),
        pytest.param({"key": torch.ones(3, 5, 3)}, r"leading|tensor b \(3\)", id="another batch of keys"),
        pytest.param({"key": torch.ones(2, 5, 3).double()}, "key.*double|key.*float64", id="keys of another type"),
        pytest.param({"dropout_p": 1.5}, "dropout.*1.5", id="a dropout above 1"),
        pytest.param({"attn_mask": torch.ones(4, 5) > 0, "is_causal": True}, "mask.*is_causal", id="two masks"),
        pytest.param({"attn_mask": torch.ones(4, 6) > 0}, r"attn_mask|tensor b \(6\)", id="a mask for other keys"),
        pytest.param({"attn_mask": torch.ones(4, 5).long()}, "attn_mask.*(int64|long)", id="a mask of whole numbers"),
        pytest.param(
            {"attn_mask": torch.ones(4, 5).double()}, "attn_mask.*(float64|double)", id="another type of mask"
        ),
    ],
)
def test_scaled_dot_product_attention_rejects(
    scaled_dot_product_attention: Attention, change: dict[str, Any], naming: str
) -> None:
    arguments = {"query": torch.ones(2, 4, 3), "key": torch.ones(2, 5, 3), "value": torch.ones(2, 5, 6)} | change
    # the code in the documentation asserts that there is one mask only
    asserts = asserting() if "is_causal" in change else nullcontext()
    with rejects(naming, *change, *(["query"] if "key" in change else [])), asserts:
        scaled_dot_product_attention(**arguments)


@clause("12.attention.groups", "12.attention.rejects")
def test_the_reference_rejects_keys_without_heads() -> None:
    with rejects("key has 0 heads"):
        reference.scaled_dot_product_attention(
            torch.ones(1, 4, 2, 3), torch.ones(1, 0, 2, 3), torch.ones(1, 0, 2, 3), enable_gqa=True
        )


@clause("12.attention.rejects")
def test_enable_gqa_rejects_head_counts_that_do_not_divide(scaled_dot_product_attention: Attention) -> None:
    with rejects(naming="heads|enable_gqa"):
        scaled_dot_product_attention(torch.ones(1, 5, 4, 3), *2 * [torch.ones(1, 3, 4, 3)], enable_gqa=True)


# MultiheadAttention


def outsides(inputs: Tensors, batch_first: bool) -> list[Tensor]:
    """The same for query, key and value: if they are one tensor, the result is one tensor."""
    query = outside(inputs[0], batch_first)
    return [query if x is inputs[0] else outside(x, batch_first) for x in inputs]


# A layer of float64 with `with_numbers`, at the sizes below: logits below 100, outputs below 20.
SMALL_LAYER = of_softmax(torch.float64, 20, 100, 10, 20)


@clause("12.multihead.definition", "12.multihead.weights", "12.multihead.masks", "12.multihead.appended")
@clause("12.multihead.evaluation")
@given(case=multiheads(), dtype=dtypes(), need_weights=st.booleans(), average=st.booleans())
def test_multihead_attention_equals_the_definition(
    MultiheadAttention: Layer, case: Multihead, dtype: torch.dtype, need_weights: bool, average: bool
) -> None:
    layer, inputs, masks = case.layer(MultiheadAttention, dtype), case.inputs(dtype), case.masks(dtype)
    options = {"need_weights": need_weights, "average_attn_weights": average}
    with torch.set_grad_enabled(case.recording):
        output, weights = layer(*outsides(inputs, case.batch_first), **masks, **options)
    state = {name: value.double() for name, value in layer.state_dict().items()}
    wide_inputs = wide(inputs)
    expected, expected_weights = case.by_definition(state, wide_inputs, case.factor(masks))
    of_output, of_weights = case.tolerances(dtype, state, wide_inputs)
    assert output.dtype == dtype
    assert_close(outside(output, case.batch_first).double(), expected, of_output)
    if need_weights:
        wanted = expected_weights.mean(1) if average else expected_weights
        assert_close(weights.double(), wanted, of_weights, "the weights")
    else:
        assert weights is None


@clause("12.multihead.unbatched")
@pytest.mark.parametrize("options", [{}, {"average_attn_weights": False}, {"need_weights": False}], ids=str)
@pytest.mark.parametrize("batch_first", [False, True], ids=["length first", "batch first"])
def test_multihead_attention_unbatched_equals_a_batch_of_one(
    MultiheadAttention: Layer, options: dict[str, Any], batch_first: bool
) -> None:
    layer = with_numbers(MultiheadAttention(4, 2, batch_first=batch_first, dtype=torch.float64), seed=0)
    q, k, batch = normal(3, 4, seed=1), normal(2, 4, seed=2), 0 if batch_first else 1
    options = options | {"attn_mask": torch.tensor([[False, True], [False, False], [False, True]])}
    padding = torch.tensor([False, True])
    output, weights = layer(q, k, k, padding, **options)
    batched = (q.unsqueeze(batch), k.unsqueeze(batch), k.unsqueeze(batch))
    expected, expected_weights = layer(*batched, padding[None], **options)
    assert_close(output, expected.squeeze(batch), SMALL_LAYER)
    if weights is not None:
        assert_close(weights, expected_weights[0], SMALL_LAYER, "the weights")


@clause("12.multihead.masks")
@pytest.mark.parametrize("need_weights", [True, False], ids=["with weights", "without weights"])
def test_multihead_attention_is_causal_applies_the_causal_mask(MultiheadAttention: Layer, need_weights: bool) -> None:
    layer, x = with_numbers(MultiheadAttention(4, 2, dtype=torch.float64), seed=0), normal(3, 2, 4, seed=0)
    mask = torch.tensor([[j > i for j in range(3)] for i in range(3)])
    output, weights = layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)
    expected, _ = layer(x, x, x, attn_mask=mask)
    assert_close(output, expected, SMALL_LAYER)
    if need_weights:
        assert_equal(weights[:, mask], torch.zeros(2, 3, dtype=torch.float64), "the weights of later keys")


@clause("12.multihead.fully_masked")
def test_multihead_attention_of_a_fully_masked_query_is_nan_or_the_bias(MultiheadAttention: Layer) -> None:
    layer, x = with_numbers(MultiheadAttention(4, 2), seed=0), torch.randn(3, 1, 4)
    mask = torch.tensor([[True] * 3, [False] * 3, [False] * 3])
    output, weights = layer(x, x, x, attn_mask=mask)
    assert output[0].isnan().all()
    assert weights[0, 0].isnan().all()
    assert output[1:].isfinite().all()
    output, _ = layer(x, x, x, attn_mask=mask, need_weights=False)
    assert_equal(output[0, 0], layer.out_proj.bias.detach(), "the output without the weights")  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


@clause("12.multihead.empty")
def test_multihead_attention_accepts_an_empty_batch(MultiheadAttention: Layer) -> None:
    x = torch.ones(3, 0, 4)
    output, weights = MultiheadAttention(4, 2)(x, x, x)
    assert output.shape == (3, 0, 4)
    assert weights.shape == (0, 3, 3)


@clause("12.multihead.dropout")
def test_multihead_attention_dropout_applies_in_training_only(MultiheadAttention: Layer) -> None:
    layer = MultiheadAttention(4, 2, dropout=0.25, dtype=torch.float64)
    q, k = torch.zeros(200, 1, 4, dtype=torch.float64), torch.zeros(10, 1, 4, dtype=torch.float64)
    _, weights = layer(q, k, k, average_attn_weights=False)
    kept = weights != 0
    wanted = torch.full_like(weights[kept], 0.1 / 0.75)
    assert_close(weights[kept], wanted, rounding(torch.float64, 20), "the weights that are left")
    # the number of zeros among n has the standard deviation √(n p (1 - p)); six of them
    zeros, n = int((~kept).sum()), kept.numel()
    assert abs(zeros - 0.25 * n) <= 6 * math.sqrt(n * 0.25 * 0.75), f"{zeros} of {n} weights were dropped"
    _, weights = layer.eval()(q, k, k)
    assert_close(weights, torch.full_like(weights, 0.1), rounding(torch.float64, 20), "the weights in evaluation")


@clause("12.multihead.dropout")
@pytest.mark.parametrize("need_weights", [True, False], ids=["with weights", "without weights"])
def test_multihead_attention_dropout_1_leaves_only_the_bias(MultiheadAttention: Layer, need_weights: bool) -> None:
    layer, x = with_numbers(MultiheadAttention(4, 2, dropout=1.0), seed=0), torch.randn(3, 2, 4)
    output, _ = layer(x, x, x, need_weights=need_weights)
    assert_equal(output, layer.out_proj.bias.detach().expand(3, 2, 4))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


MULTIHEAD_SHAPES = {
    "one width": ({}, {"in_proj_weight": (12, 4), "in_proj_bias": (12,)}),
    "without bias": ({"bias": False}, {"in_proj_weight": (12, 4)}),
    "keys of another width": (
        {"kdim": 3, "vdim": 5},
        {"q_proj_weight": (4, 4), "k_proj_weight": (4, 3), "v_proj_weight": (4, 5), "in_proj_bias": (12,)},
    ),
    "an appended key": (
        {"add_bias_kv": True},
        {"in_proj_weight": (12, 4), "in_proj_bias": (12,), "bias_k": (1, 1, 4), "bias_v": (1, 1, 4)},
    ),
}


@clause("12.multihead.parameters")
@pytest.mark.parametrize(("options", "shapes"), MULTIHEAD_SHAPES.values(), ids=MULTIHEAD_SHAPES)
def test_multihead_attention_state_dict_equals_pytorchs(
    MultiheadAttention: Layer, options: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    options = options | {"dtype": torch.float64}
    ours, theirs = MultiheadAttention(4, 2, **options), nn.MultiheadAttention(4, 2, **options)
    expected = shapes | {"out_proj.weight": (4, 4)} | ({} if "bias" in options else {"out_proj.bias": (4,)})
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(expected)
    inputs = [normal(3, 2, options.get(width, 4), seed=i) for i, width in enumerate(("embed_dim", "kdim", "vdim"))]
    theirs.load_state_dict(ours.state_dict())
    assert_close(theirs(*inputs)[0], ours(*inputs)[0], SMALL_LAYER, "the output of PyTorch's layer")
    ours.load_state_dict(with_numbers(theirs, seed=0).state_dict())
    assert_close(ours(*inputs)[0], theirs(*inputs)[0], SMALL_LAYER, "the output with numbers of PyTorch's layer")


@clause("12.multihead.initialization")
@pytest.mark.parametrize("options", [{}, {"kdim": 3, "add_bias_kv": True}], ids=["one width", "other widths"])
def test_multihead_attention_initialization_equals_pytorchs(MultiheadAttention: Layer, options: dict[str, Any]) -> None:
    torch.manual_seed(5)
    theirs = nn.MultiheadAttention(4, 2, **options).state_dict()
    torch.manual_seed(5)
    for name, value in MultiheadAttention(4, 2, **options).state_dict().items():
        assert_equal(value, theirs[name], name)


@clause("12.multihead.initialization")
def test_multihead_attention_projections_start_xavier_uniform_and_biases_zero(MultiheadAttention: Layer) -> None:
    layer = MultiheadAttention(40, 2, kdim=60, add_bias_kv=True)
    bounds = {"q_proj_weight": math.sqrt(6 / 80), "k_proj_weight": math.sqrt(6 / 100), "out_proj.weight": 40**-0.5}
    state = layer.state_dict()
    for name, bound in bounds.items():
        largest = state[name].abs().max()  # of 1600 numbers or more, all below 0.98 of it with a chance of 1e-14
        assert 0.98 * bound < largest <= bound, f"{name} is not spread over ±{bound:.3f}"
    assert_equal(state["in_proj_bias"], torch.zeros(120), "in_proj_bias")
    assert_equal(state["out_proj.bias"], torch.zeros(40), "out_proj.bias")
    packed = MultiheadAttention(40, 2).state_dict()["in_proj_weight"].abs().max()
    assert 0.98 * math.sqrt(6 / 160) < packed <= math.sqrt(6 / 160), "in_proj_weight is drawn as one, 120 by 40"
    for name in ("bias_k", "bias_v"):  # normal, of the standard deviation √(2 / (40 + 40)): six errors of 40 numbers
        std = math.sqrt(1 / 40)
        assert abs(state[name].std() / std - 1) < 6 / math.sqrt(80), f"{name} has another spread"


@clause("12.multihead.repr")
def test_multihead_attention_prints_out_proj(MultiheadAttention: Layer) -> None:
    printed = """\
MultiheadAttention(
  (out_proj): NonDynamicallyQuantizableLinear(in_features=4, out_features=4, bias=True)
)"""
    assert repr(MultiheadAttention(4, 2, dropout=0.5)) == printed


@clause("12.multihead.gradients")
@pytest.mark.parametrize(
    "options", [{}, {"kdim": 1, "vdim": 1, "bias": False}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str
)
@pytest.mark.parametrize("need_weights", [True, False], ids=["with weights", "without weights"])
def test_multihead_attention_is_differentiable_twice(
    MultiheadAttention: Layer, options: dict[str, Any], need_weights: bool
) -> None:
    layer = with_numbers(MultiheadAttention(2, 2, dtype=torch.float64, **options), seed=0)
    widths = (2, options.get("kdim", 2), options.get("vdim", 2))
    inputs = (normal(2, 1, width, seed=i).requires_grad_() for i, width in enumerate(widths))
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused kernel has no second derivative
        assert_differentiable(lambda q, k, v: layer(q, k, v, need_weights=need_weights)[0], *inputs)


@clause("12.multihead.gradients")
def test_multihead_attention_parameters_have_gradients(MultiheadAttention: Layer) -> None:
    layer = with_numbers(MultiheadAttention(2, 1, add_bias_kv=True, dtype=torch.float64), seed=0)
    x = normal(2, 1, 2, seed=3)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, x, x))[0]

    assert_differentiable(run, *(value.detach().clone().requires_grad_() for value in values), twice=False)


@clause("12.multihead.large_masks")
@pytest.mark.parametrize("fill", LARGE)
@pytest.mark.parametrize("kind", ["attn_mask", "key_padding_mask"])
def test_a_mask_of_large_negative_numbers_has_the_same_gradient_with_and_without_weights(
    MultiheadAttention: Layer, kind: str, fill: float
) -> None:
    layer = MultiheadAttention(4, 2, batch_first=True)
    x = normal(1, 3, 4, seed=0, dtype=torch.float32)
    mask = torch.full((3, 3) if kind == "attn_mask" else (1, 3), fill)

    def gradient(need_weights: bool) -> Tensor:
        value = x.clone().requires_grad_()
        output, _ = layer(x, x, value, need_weights=need_weights, **{kind: mask})
        return torch.autograd.grad(output.sum(), value)[0]

    expected = gradient(need_weights=True)
    # the projections add up 4 products each, forward and backward; the weights are means of 3
    bound = rounding(torch.float32, 64, 16 * expected.abs().max().item() + 1)
    assert_close(gradient(need_weights=False), expected, bound, "the gradient of value without need_weights")


@clause("12.multihead.rejects")
@pytest.mark.parametrize(
    ("sizes", "naming"),
    [((4, 3), "embed_dim.*num_heads"), ((4, 0), "num_heads.*0"), ((0, 1), "embed_dim.*0")],
    ids=["heads that do not divide the features", "no heads", "no features"],
)
def test_multihead_attention_rejects_sizes(MultiheadAttention: Layer, sizes: tuple[int, int], naming: str) -> None:
    with rejects(naming, "embed_dim", "num_heads"), asserting():
        MultiheadAttention(*sizes)


@clause("12.multihead.rejects")
def test_a_float32_mask_for_float64_queries_is_only_for_attention_without_weights(MultiheadAttention: Layer) -> None:
    layer, x = with_numbers(MultiheadAttention(4, 2, dtype=torch.float64), seed=0), normal(3, 2, 4, seed=0)
    mask = torch.tensor([[0.0, -1.0, -2.0]]).expand(3, 3)
    output, _ = layer(x, x, x, attn_mask=mask, need_weights=False)
    expected, _ = layer(x, x, x, attn_mask=mask.double(), need_weights=False)
    assert_close(output, expected, SMALL_LAYER)
    with rejects("mask|dtype|scalar type", "attn_mask"):
        layer(x, x, x, attn_mask=mask)


@clause("12.multihead.rejects")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"query": torch.ones(5, 2, 3)}, "embed|query", id="queries of other features"),
        pytest.param({"key": torch.ones(5, 2, 3)}, "key", id="keys of other features"),
        pytest.param({"value": torch.ones(5, 2, 3)}, "value", id="values of other features"),
        pytest.param({"value": torch.ones(4, 2, 4)}, "value", id="fewer values than keys"),
        pytest.param({"query": torch.ones(1, 5, 2, 4)}, "query", id="a query of four dimensions"),
        pytest.param({"key": torch.ones(2, 4), "value": torch.ones(2, 4)}, "key", id="keys without a batch"),
        pytest.param({"query": torch.ones(5, 2, 4).double()}, "double|float64", id="queries of another type"),
        pytest.param({"attn_mask": torch.ones(5, 6) > 0}, r"attn_mask.*5, 6", id="a mask for other keys"),
        pytest.param({"attn_mask": torch.ones(3, 5, 5) > 0}, r"attn_mask.*3, 5, 5", id="a mask for other heads"),
        pytest.param({"attn_mask": torch.ones(5) > 0}, "attn_mask", id="a mask of one dimension"),
        pytest.param({"attn_mask": torch.ones(5, 5).long()}, "attn_mask", id="a mask of whole numbers"),
        pytest.param({"key_padding_mask": torch.ones(2, 6) > 0}, "key_padd.*6", id="a padding mask for other keys"),
        pytest.param({"key_padding_mask": torch.ones(3, 5) > 0}, "key_padd.*3", id="a padding mask of another batch"),
        pytest.param({"key_padding_mask": torch.ones(2, 5).long()}, "key_padding_mask", id="whole numbers for padding"),
        pytest.param({"is_causal": True}, "attn_mask.*is_causal|is_causal.*attn_mask", id="causal without the mask"),
    ],
)
def test_multihead_attention_rejects_input(MultiheadAttention: Layer, change: dict[str, Any], naming: str) -> None:
    with (
        rejects(naming, *change, *(["key"] if "value" in change else ["query"] if "key" in change else [])),
        asserting(),
    ):
        MultiheadAttention(4, 2)(**{name: torch.ones(5, 2, 4) for name in ("query", "key", "value")} | change)
