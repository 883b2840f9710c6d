"""Chapter 12, other layers: a table of vectors, `embedding` and `Embedding`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from spec.support.assertions import (
    REJECTIONS,
    Tolerance,
    assert_close,
    assert_differentiable,
    assert_equal,
    rejects,
    rounding,
)
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, seeds, spread, whole

Function = Callable[..., Tensor]
Layer = Callable[..., Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A valid look-up: the table's size, the indices, their dtype, and a seed for the numbers."""

    rows: int
    dim: int
    shape: Shape
    words: torch.dtype
    seed: int

    def input(self) -> Tensor:
        """The indices to look up, with repetitions."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        numbers = torch.randint(0, self.rows, self.shape, generator=generator, dtype=self.words, device="cpu")
        return numbers.to(torch.get_default_device())

    def table(self, **options: Any) -> Tensor:
        return whole(self.rows, self.dim, seed=self.seed + 1, **options)

    def upstream(self) -> Tensor:
        return whole(*self.shape, self.dim, seed=self.seed + 2)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        rows=draw(st.integers(1, 5)),
        dim=draw(st.integers(1, 4)),
        shape=draw(st.sampled_from([(6,), (), (0,), (1,), (2, 3), (1, 2, 2)])),
        words=draw(st.sampled_from([torch.int64, torch.int32])),
        seed=draw(seeds),
    )


def looked_up(words: Any, table: list[list[float]]) -> Any:
    """The indices, as nested lists, with each index replaced by its row of the table."""
    return [looked_up(word, table) for word in words] if isinstance(words, list) else table[words]


def gradient_of_the_table(words: Tensor, upstream: Tensor, rows: int) -> list[list[float]]:
    """The sum of the upstream gradients for each row, one index after the other."""
    dim = upstream.shape[-1]
    gradient = [[0.0] * dim for _ in range(rows)]
    for word, vector in zip(words.reshape(-1).tolist(), upstream.reshape(-1, dim).tolist(), strict=True):
        gradient[word] = [a + b for a, b in zip(gradient[word], vector, strict=True)]
    return gradient


def norm_of(row: list[float], p: float) -> float:
    """The p-norm in Python numbers."""
    return max(map(abs, row)) if p == math.inf else sum(abs(x) ** p for x in row) ** (1 / p)


# The properties


@clause("12.embedding.definition")
def test_each_number_becomes_the_row_of_that_number(embedding: Function) -> None:
    table = torch.tensor([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]])
    assert_equal(embedding(torch.tensor([2, 0, 2]), table), [[20.0, 21.0], [0.0, 1.0], [20.0, 21.0]])
    assert_equal(embedding(torch.tensor([[1], [2]]), table), [[[10.0, 11.0]], [[20.0, 21.0]]])
    assert_equal(embedding(torch.tensor(1), table), [10.0, 11.0])


@clause("12.embedding.definition", "12.embedding.dtypes", "12.embedding.layouts")
@given(case=cases(), dtype=dtypes(), layout=st.tuples(layouts, layouts))
def test_embedding_looks_up_rows_of_the_table(
    embedding: Function, case: Case, dtype: torch.dtype, layout: tuple[int, int]
) -> None:
    words, table = laid_out(case.input(), layout[0]), laid_out(case.table(dtype=dtype), layout[1])
    output = embedding(words, table)
    expected = torch.tensor(looked_up(words.tolist(), table.tolist()), dtype=dtype).reshape(*case.shape, case.dim)
    assert_equal(output, expected)
    assert_equal(words, case.input(), "the input afterwards")
    assert_equal(table, case.table(dtype=dtype), "the table afterwards")


@clause("12.embedding.one_hot")
@given(case=cases())
def test_embedding_equals_one_hot_times_table(embedding: Function, case: Case) -> None:
    words, table = case.input(), case.table()
    one_hot = (words[..., None] == torch.arange(case.rows)).double()
    assert_equal(embedding(words, table), one_hot @ table)


@clause("12.embedding.nonfinite")
def test_embedding_keeps_nan_and_inf(embedding: Function) -> None:
    table = torch.tensor([[1.0, torch.nan], [torch.inf, -torch.inf]])
    assert_equal(embedding(torch.tensor([1, 0]), table), [[torch.inf, -torch.inf], [1.0, torch.nan]])


# The gradients


@clause("12.embedding.gradients")
@given(case=cases())
def test_gradient_of_a_row_is_the_sum_over_all_occurrences(embedding: Function, case: Case) -> None:
    words, table = case.input(), case.table().requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(words, table), table, case.upstream())
    assert_equal(gradient, gradient_of_the_table(words, case.upstream(), case.rows), "the gradient")


@clause("12.embedding.padding")
@given(case=cases(), data=st.data())
def test_padding_idx_row_is_looked_up_but_gets_no_gradient(
    embedding: Function, case: Case, data: st.DataObject
) -> None:
    padding = data.draw(st.integers(-case.rows, case.rows - 1))
    words, table = case.input(), case.table().requires_grad_()
    output = embedding(words, table, padding_idx=padding)
    assert_equal(output, embedding(words, table))
    (gradient,) = torch.autograd.grad(output, table, case.upstream())
    expected = gradient_of_the_table(words, case.upstream(), case.rows)
    expected[padding] = [0.0] * case.dim
    assert_equal(gradient, expected, "the gradient")


@clause("12.embedding.frequency")
@given(case=cases())
def test_scale_grad_by_freq_divides_by_the_number_of_occurrences(embedding: Function, case: Case) -> None:
    words, table, upstream = case.input(), case.table().requires_grad_(), case.upstream()
    output = embedding(words, table, scale_grad_by_freq=True)
    assert_equal(output, embedding(words, table))
    (gradient,) = torch.autograd.grad(output, table, upstream)
    counts = torch.tensor([max(1, words.reshape(-1).tolist().count(row)) for row in range(case.rows)])[:, None]
    expected = torch.tensor(gradient_of_the_table(words, upstream, case.rows)).double() / counts
    absolute = torch.tensor(gradient_of_the_table(words, upstream.abs(), case.rows)).double() / counts
    # each occurrence is divided, or multiplied by a quotient, before it is added
    assert_close(gradient, expected, rounding(torch.float64, words.numel() + 2, absolute), "the gradient")


@clause("12.embedding.gradients")
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}], ids=["plain", "with padding"])
def test_embedding_is_differentiable_twice(embedding: Function, options: dict[str, Any]) -> None:
    # row 0 has no gradient with padding_idx=0, so it is not among the words; the square has a second derivative
    words = torch.tensor([[1, 2], [2, 2]])
    table = spread(3, 2, seed=0).requires_grad_()
    assert_differentiable(lambda table: embedding(words, table, **options).square(), table)


# max_norm


@clause("12.embedding.max_norm")
def test_a_row_of_exactly_the_largest_norm_is_unchanged(embedding: Function) -> None:
    table = torch.tensor([[3.0, 4.0], [6.0, 8.0]], dtype=torch.float64)
    assert_equal(embedding(torch.tensor([0]), table, max_norm=5.0), [[3.0, 4.0]], "the row")


@clause("12.embedding.max_norm")
@given(
    case=cases(), p=st.sampled_from([2.0, 1.0, 3.0, math.inf]), dtype=st.sampled_from([torch.float64, torch.float32])
)
def test_max_norm_shortens_the_rows_that_are_looked_up_in_place(
    embedding: Function, case: Case, p: float, dtype: torch.dtype
) -> None:
    # no vector of integers has the norm 2.5, so that none is on the boundary
    max_norm, words, table = 2.5, case.input(), case.table(dtype=dtype)
    expected, furthest = table.double().clone(), torch.zeros_like(table).double()
    for word in set(words.reshape(-1).tolist()):
        row = table[word].tolist()
        if (norm := norm_of(row, p)) > max_norm:
            expected[word] *= max_norm / norm
            # PyTorch divides by norm + 1e-7, so that the result is not above max_norm
            furthest[word] = 1e-7 / norm * expected[word].abs()
    because = rounding(dtype, case.dim + 8, expected.abs())
    tolerance = Tolerance(because.absolute + furthest, f"{because.because}, and 1e-7 that may be added to the norm")
    output = embedding(words, table, max_norm=max_norm, norm_type=p)
    assert_close(table, expected.to(dtype), tolerance, "the table afterwards")
    assert_equal(output, embedding(words, table), "the result, of the table afterwards")


@clause("12.embedding.max_norm")
def test_max_norm_keeps_other_rows_bit_equal(embedding: Function) -> None:
    table = torch.tensor([[3.0, 4.0], [0.1, 0.2], [30.0, 40.0]])
    embedding(torch.tensor([0, 1, 0]), table, max_norm=1.0)
    assert_equal(table[1:], [[0.1, 0.2], [30.0, 40.0]], "the rows that are short, or not looked up")
    tolerance = Tolerance(rounding(torch.float32, 5, 1.0).absolute + 1e-7, "5 roundings, and 1e-7 added to the norm")
    assert_close(table[0], [0.6, 0.8], tolerance, "the row of length 5")


@clause("12.embedding.max_norm")
def test_max_norm_renormalization_is_outside_of_autograd(embedding: Function) -> None:
    table = torch.tensor([[3.0, 4.0], [30.0, 40.0]], requires_grad=True)
    embedding(torch.tensor([0, 0]), table, max_norm=1.0).sum().backward()
    assert_equal(table.grad, [[2.0, 2.0], [0.0, 0.0]], "the gradient")


# The layer


@clause("12.embedding.layer")
@given(case=cases(), dtype=dtypes())
def test_embedding_layer_looks_up_rows_of_own_weight(Embedding: Layer, case: Case, dtype: torch.dtype) -> None:
    layer, words, table = Embedding(case.rows, case.dim, dtype=dtype), case.input(), case.table(dtype=dtype)
    layer.load_state_dict({"weight": table})
    expected = torch.tensor(looked_up(words.tolist(), table.tolist()), dtype=dtype).reshape(*case.shape, case.dim)
    assert_equal(layer(words), expected)
    assert_equal(layer.eval()(words), expected, "the result in evaluation")


@clause("12.embedding.layer")
@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 1},
        {"padding_idx": -1},
        {"max_norm": 2.5},
        {"max_norm": 2.5, "norm_type": 1.0},
        {"scale_grad_by_freq": True},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_embedding_layer_equals_embedding_with_own_options(
    Embedding: Layer, embedding: Function, options: dict[str, Any]
) -> None:
    layer, table = Embedding(4, 3, **options, dtype=torch.float64), whole(4, 3, seed=0)
    layer.load_state_dict({"weight": table})
    table.requires_grad_()
    words, upstream = torch.tensor([[1, 3, 3], [3, 0, 1]]), whole(2, 3, 3, seed=1)
    expected, output = embedding(words, table, **options), layer(words)
    assert_equal(output, expected)
    output.backward(upstream)
    assert_equal(layer.weight.grad, torch.autograd.grad(expected, table, upstream)[0], "the gradient")
    assert_equal(layer.weight, table, "the table afterwards")


@clause("12.embedding.start")
def test_a_new_table_is_standard_normal(Embedding: Layer) -> None:
    weight = Embedding(400, 100).weight
    assert weight.requires_grad
    # By Hoeffding's inequality a fraction of 40,000 is further off than this once in 1e9 times.
    off = Tolerance(math.sqrt(math.log(2e9) / 80_000), "a correct table is further off once in 1e9 times")
    for bound, fraction in [(-0.674490, 0.25), (0.0, 0.5), (0.674490, 0.75), (1.644854, 0.95)]:
        assert_close((weight < bound).double().mean(), fraction, off, f"the fraction of numbers below {bound}")


@clause("12.embedding.start")
@pytest.mark.parametrize("padding", [None, 2, -1], ids="padding_idx={}".format)
def test_the_same_seed_gives_the_numbers_of_pytorchs_layer(Embedding: Layer, padding: int | None) -> None:
    torch.manual_seed(1)
    ours = Embedding(4, 3, padding_idx=padding)
    torch.manual_seed(1)
    pytorchs = nn.Embedding(4, 3, padding_idx=padding)
    assert_equal(ours.weight, pytorchs.weight, "the table")


@clause("12.embedding.padding")
@pytest.mark.parametrize(("padding", "row"), [(1, 1), (-1, 3)], ids=["the second row", "the last row"])
def test_padding_idx_row_starts_as_zeros(Embedding: Layer, padding: int, row: int) -> None:
    layer = Embedding(4, 3, padding_idx=padding)
    assert layer.padding_idx == row
    zeros = (layer.weight == 0).all(1)
    assert_equal(zeros, [i == row for i in range(4)], "whether a row is zero")


@clause("12.embedding.pretrained")
@pytest.mark.parametrize("freeze", [True, False], ids=["frozen, the default", "trained further"])
def test_a_pretrained_table_is_used_unchanged(Embedding: Any, freeze: bool) -> None:
    table = whole(4, 3, seed=0, dtype=torch.float32)
    layer = Embedding.from_pretrained(table, padding_idx=1, **({} if freeze else {"freeze": False}))
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (4, 3, 1)
    assert_equal(layer.weight, whole(4, 3, seed=0, dtype=torch.float32), "the table, its padding too")
    assert layer.weight.requires_grad is not freeze


@clause("12.embedding.printed")
@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({}, "Embedding(5, 2)"),
        ({"padding_idx": -1}, "Embedding(5, 2, padding_idx=4)"),
        (
            {"padding_idx": 0, "max_norm": 1.0, "norm_type": 3.0, "scale_grad_by_freq": True},
            "Embedding(5, 2, padding_idx=0, max_norm=1.0, norm_type=3.0, scale_grad_by_freq=True)",
        ),
    ],
    ids=["the defaults", "padding from the end", "every option"],
)
def test_repr_shows_size_and_non_default_arguments(Embedding: Layer, options: dict[str, Any], printed: str) -> None:
    assert str(Embedding(5, 2, **options)) == printed


@clause("12.embedding.state")
def test_state_dict_loads_to_and_from_pytorch(Embedding: Layer) -> None:
    ours, pytorchs, again = Embedding(5, 2, padding_idx=1), nn.Embedding(5, 2, padding_idx=1), Embedding(5, 2)
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == {"weight": (5, 2)}
    pytorchs.load_state_dict(ours.state_dict())
    again.load_state_dict(pytorchs.state_dict())
    words = torch.tensor([4, 1, 0])
    assert_equal(again(words), ours(words), "the result with the state that came back")


# Rejected arguments


@clause("12.embedding.rejects")
@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["without max_norm", "with max_norm"])
@pytest.mark.parametrize("word", [5, -1, -6], ids=["after the last", "before the first", "far before the first"])
def test_an_index_out_of_range_is_rejected(embedding: Function, word: int, max_norm: float | None) -> None:
    # on the CPU only: an accelerator would have to wait for the check
    with rejects(naming="input|index"):
        embedding(torch.tensor([0, word], device="cpu"), torch.ones(5, 2, device="cpu"), max_norm=max_norm)


@clause("12.embedding.rejects")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16], ids=str)
def test_index_dtypes_other_than_int64_and_int32_are_rejected(embedding: Function, dtype: torch.dtype) -> None:
    with rejects(naming="input|indices"):
        embedding(torch.ones(3, dtype=dtype), torch.ones(5, 2))


@clause("12.embedding.rejects")
@pytest.mark.parametrize("shape", [(5,), (5, 2, 2)], ids=["one dimension", "three dimensions"])
def test_a_table_that_is_not_of_two_dimensions_is_rejected(embedding: Function, shape: Shape) -> None:
    with rejects(naming="weight"):
        embedding(torch.tensor([1]), torch.ones(shape))


@clause("12.embedding.dense")
def test_the_reference_rejects_sparse_gradients() -> None:
    with pytest.raises(ValueError, match=r"^embedding: sparse must be False.*True"):
        reference.embedding(torch.tensor([1]), torch.ones(5, 2), sparse=True)
    with pytest.raises(ValueError, match=r"^Embedding: sparse must be False.*True"):
        reference.Embedding(5, 2, sparse=True)


# PyTorch raises an AssertionError for these
REFUSED = (*REJECTIONS, AssertionError)


@clause("12.embedding.rejects")
@pytest.mark.parametrize("padding", [5, -6], ids="padding_idx={}".format)
def test_padding_idx_out_of_range_is_rejected(embedding: Function, Embedding: Layer, padding: int) -> None:
    with pytest.raises(REFUSED, match=r"(?i)padding_idx"):
        embedding(torch.tensor([1]), torch.ones(5, 2), padding_idx=padding)
    with pytest.raises(REFUSED, match=r"(?i)padding_idx"):
        Embedding(5, 2, padding_idx=padding)


@clause("12.embedding.rejects")
@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)], ids=["one dimension", "three dimensions"])
def test_a_pretrained_table_that_is_not_of_two_dimensions_is_rejected(Embedding: Any, shape: Shape) -> None:
    with pytest.raises(REFUSED, match=r"(?i)embeddings"):
        Embedding.from_pretrained(torch.ones(shape))
