"""Chapter 12, other layers: dropout, `dropout` and `Dropout`.

Random results are tested by their frequency, with a bound by Hoeffding's inequality: the mean of n independent numbers
between 0 and b differs from its expectation by more than b · sqrt(ln(2 / α) / 2n) with a probability of at most α. Each
of the 30 comparisons uses α = 1e-9, so that a correct implementation fails less than one run in ten million; every test
starts with the same seed, so the result is the same in every run.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from spec.support.assertions import (
    Tolerance,
    assert_close,
    assert_differentiable,
    assert_equal,
    rejects,
    rounding,
)
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, seed_all, seeds, spread, whole

Function = Callable[..., Tensor]
Layer = Callable[..., Any]
Shape = tuple[int, ...]

ALPHA = 1e-9
"""The probability that one statistical comparison fails a correct implementation."""

PROBABILITIES = [0.5, 0.1, 0.25, 0.9]

probabilities = st.sampled_from(PROBABILITIES)
shapes = st.sampled_from([(4,), (), (1,), (0,), (3, 2), (2, 1, 3), (2, 3, 2, 2)])


def hoeffding(n: int, largest: float = 1.0) -> Tolerance:
    """The allowed distance of the mean of n independent numbers from 0 to `largest` from its expectation."""
    distance = largest * math.sqrt(math.log(2 / ALPHA) / (2 * n))
    return Tolerance(distance, f"a correct implementation is further off once in {1 / ALPHA:.0e} times ({n} draws)")


def positive(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Integers from 1 to 7: none is 0, so that dropped numbers can be recognized."""
    return whole(*shape, seed=seed, dtype=dtype) + 4


# The statistics


@clause("12.dropout.zero_fraction")
@pytest.mark.parametrize("p", PROBABILITIES, ids="p = {}".format)
@pytest.mark.parametrize("shape", [(40_000,), (200, 2, 10, 10)], ids=["a row", "images"])
def test_the_fraction_p_of_the_numbers_becomes_0(dropout: Function, p: float, shape: Shape) -> None:
    dropped = (dropout(torch.ones(shape), p) == 0).double()
    assert_close(dropped.mean(), p, hoeffding(40_000), "the fraction of zeros")


@clause("12.dropout.expectation")
@pytest.mark.parametrize("p", PROBABILITIES, ids="p = {}".format)
def test_the_expectation_of_the_output_is_the_input(dropout: Function, p: float) -> None:
    x = torch.tensor([1.0, -2.0, 0.5]).double()
    outputs = dropout(x.expand(40_000, 3), p)
    tolerance = hoeffding(40_000, 1 / (1 - p))
    # a mean of x / (1 - p) or 0, for each number of x; the tolerance is relative to it
    assert_close(outputs.mean(0) / x, [1.0, 1.0, 1.0], tolerance, "the mean over 40,000 outputs, over the input")


@clause("12.dropout.independent")
@pytest.mark.parametrize("step", [1, 10, 100], ids=["in a row", "in a channel", "in an image"])
def test_elements_are_dropped_independently(dropout: Function, step: int) -> None:
    # 200 images of 2 channels of 10 rows of 10
    dropped = dropout(torch.ones(200, 2, 10, 10), 0.25).reshape(-1) == 0
    pairs = dropped.reshape(-1, 2, step)
    both = (pairs[:, 0] & pairs[:, 1]).double()
    assert_close(both.mean(), 0.25 * 0.25, hoeffding(20_000), "the fraction of neighbours that are both dropped")


@clause("12.dropout.independent")
def test_two_calls_drop_independently(dropout: Function) -> None:
    first, second = (dropout(torch.ones(40_000), 0.25) == 0 for _ in range(2))
    assert_close((first & second).double().mean(), 0.25 * 0.25, hoeffding(40_000), "the fraction dropped twice")


@clause("12.dropout.seed")
def test_the_same_seed_drops_the_same_numbers(dropout: Function) -> None:
    torch.manual_seed(1)
    first, second = dropout(torch.ones(100)), dropout(torch.ones(100))
    torch.manual_seed(1)
    assert_equal(dropout(torch.ones(100)), first)
    assert not torch.equal(first, second)  # alike once in 2^100 times


# The properties


@clause("12.dropout.scale", "12.dropout.dtypes", "12.dropout.layouts")
@given(shape=shapes, p=probabilities, dtype=dtypes(), layout=layouts, seed=seeds)
def test_kept_elements_are_divided_by_1_minus_p(
    dropout: Function, shape: Shape, p: float, dtype: torch.dtype, layout: int, seed: int
) -> None:
    x = laid_out(positive(*shape, seed=seed, dtype=dtype), layout)
    before = x.clone()
    output = dropout(x, p)
    scaled = x.double() / (1 - p)
    expected = torch.where(output == 0, torch.zeros_like(scaled), scaled).to(dtype)
    # 1 - p, the factor, and the product are rounded
    assert_close(output, expected, rounding(dtype, 3, scaled))
    assert_equal(x, before, "the input afterwards")


@clause("12.dropout.identity")
@given(shape=shapes, p=st.sampled_from([0.0, 0.5, 1.0]), dtype=dtypes(), layout=layouts, seed=seeds)
def test_dropout_is_the_identity_in_evaluation(
    dropout: Function, shape: Shape, p: float, dtype: torch.dtype, layout: int, seed: int
) -> None:
    x = laid_out(positive(*shape, seed=seed, dtype=dtype), layout)
    assert_equal(dropout(x, p, training=False), x)


@clause("12.dropout.extremes")
@given(shape=shapes, dtype=dtypes(), inplace=st.booleans(), seed=seeds)
def test_p_0_drops_nothing_and_p_1_drops_everything(
    dropout: Function, shape: Shape, dtype: torch.dtype, inplace: bool, seed: int
) -> None:
    x = positive(*shape, seed=seed, dtype=dtype)
    assert_equal(dropout(x.clone(), 0.0, inplace=inplace), x)
    assert_equal(dropout(x.clone(), 1.0, inplace=inplace), torch.zeros_like(x))


@clause("12.dropout.default")
def test_p_is_a_half_by_default(dropout: Function) -> None:
    output = dropout(torch.ones(100))
    assert set(output.tolist()) == {0.0, 2.0}  # all alike once in 2^99 times


@clause("12.dropout.inplace")
@pytest.mark.parametrize("p", [*PROBABILITIES, 1.0], ids="p = {}".format)
def test_inplace_writes_the_output_into_the_input(dropout: Function, p: float) -> None:
    x = positive(50, seed=0)
    before = x.clone()
    output = dropout(x, p, inplace=True)
    assert (x != before).any()
    assert_equal(x, output, "the input afterwards")
    assert output.data_ptr() == x.data_ptr()


@clause("12.dropout.nonfinite")
@pytest.mark.parametrize("p", [0.5, 1.0], ids="p = {}".format)
def test_dropped_nan_and_inf_become_nan(dropout: Function, p: float) -> None:
    assert dropout(torch.full((50,), torch.nan), p).isnan().all()
    output = dropout(torch.full((50,), torch.inf), p)
    # dropped is multiplied by 0, and 0 · ∞ is NaN
    assert (output.isnan() | (output == torch.inf)).all()
    assert output.isnan().any()


# The gradients


@clause("12.dropout.gradients")
@given(shape=shapes, p=st.sampled_from([*PROBABILITIES, 0.0, 1.0]), inplace=st.booleans(), seed=seeds)
def test_dropout_gradient_uses_the_mask_of_the_forward_pass(
    dropout: Function, shape: Shape, p: float, inplace: bool, seed: int
) -> None:
    x = positive(*shape, seed=seed).requires_grad_()
    upstream = positive(*shape, seed=seed + 1)
    output = dropout(x * 1, p, inplace=inplace)
    (gradient,) = torch.autograd.grad(output, x, upstream)
    scaled = upstream / (1 - p) if p < 1 else torch.zeros_like(upstream)
    expected = torch.where(output == 0, torch.zeros_like(scaled), scaled)
    assert_close(gradient, expected, rounding(torch.float64, 3, scaled), "the gradient")


@clause("12.dropout.gradients")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dropout_is_differentiable_twice(dropout: Function, training: bool) -> None:
    def function(x: Tensor) -> Tensor:
        seed_all(0)  # the same mask for all difference quotients
        return dropout(x, 0.25, training).square()

    assert_differentiable(function, spread(2, 4, seed=0).requires_grad_())


# The layer


@clause("12.dropout.layer")
@given(p=st.sampled_from([*PROBABILITIES, 0.0, 1.0]), shape=shapes, seed=seeds)
def test_dropout_layer_drops_in_training_only(Dropout: Layer, p: float, shape: Shape, seed: int) -> None:
    layer = Dropout(p)
    x = positive(*shape, seed=seed)
    output = layer(x)
    scaled = x / (1 - p) if p < 1 else torch.zeros_like(x)
    expected = torch.where(output == 0, torch.zeros_like(x), scaled)
    assert_close(output, expected, rounding(torch.float64, 3, scaled))
    assert_equal(layer.eval()(x), x, "the result in evaluation")


@clause("12.dropout.layer")
@pytest.mark.parametrize("p", PROBABILITIES, ids="p = {}".format)
def test_the_layer_drops_the_fraction_p_after_train_again(Dropout: Layer, p: float) -> None:
    layer = Dropout(p).eval().train()
    assert_close((layer(torch.ones(40_000)) == 0).double().mean(), p, hoeffding(40_000), "the fraction of zeros")


@clause("12.dropout.layer")
@pytest.mark.parametrize("inplace", [False, True], ids=["not in place, the default", "in place"])
def test_dropout_layer_writes_into_the_input_only_with_inplace(Dropout: Layer, inplace: bool) -> None:
    x = torch.ones(100)
    output = Dropout(inplace=True)(x) if inplace else Dropout()(x)
    assert_equal(x, output if inplace else torch.ones(100), "the input afterwards")
    assert set(output.tolist()) == {0.0, 2.0}  # all alike once in 2^99 times


@clause("12.dropout.layer")
def test_dropout_layer_prints_p_and_has_no_state(Dropout: Layer) -> None:
    assert str(Dropout()) == "Dropout(p=0.5, inplace=False)"
    assert str(Dropout(0.1, inplace=True)) == "Dropout(p=0.1, inplace=True)"
    assert dict(Dropout().state_dict()) == {}


# Rejected arguments


@clause("12.dropout.rejects")
@pytest.mark.parametrize("training", [True, False], ids=["in training", "in evaluation"])
@pytest.mark.parametrize("p", [-0.1, 1.1], ids="p = {}".format)
def test_dropout_rejects_p_outside_0_and_1(dropout: Function, p: float, training: bool) -> None:
    with rejects(naming=r"\bp\b|probability"):
        dropout(torch.ones(3), p, training)


@clause("12.dropout.rejects")
@pytest.mark.parametrize("p", [-0.1, 1.1], ids="p = {}".format)
def test_dropout_layer_rejects_p_outside_0_and_1(Dropout: Layer, p: float) -> None:
    with rejects(naming=r"\bp\b|probability"):
        Dropout(p)


@clause("12.dropout.rejects")
def test_dropout_rejects_integers(dropout: Function) -> None:
    with rejects(naming="input|Long|int64"):
        dropout(torch.ones(3, dtype=torch.int64))


@clause("12.dropout.extremes")
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_dropout_of_everything_gives_zeros_of_any_dtype(dropout: Function, dtype: torch.dtype) -> None:
    assert_equal(dropout(torch.ones(3, dtype=dtype), 1.0), torch.zeros(3, dtype=dtype))
