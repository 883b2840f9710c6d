"""Chapter 12, other layers: normalization, `batch_norm` and `BatchNorm2d`, `layer_norm` and `LayerNorm`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from spec.support.assertions import Tolerance, assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.run import current
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds, spread, whole
from spec.support.versions import batch_norm_2d

Function = Callable[..., Tensor]
Layer = Callable[..., Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Moments:
    """The mean and the variance of each row, and the size of the numbers.

    Attributes:
        mean: `[rows, 1]`, as `var`, the mean of the squared deviations, and `unbiased`, their sum over n - 1.
        size: Of |x|, the mean; what rounding of the mean is relative to.
        square: Of (|x| + size)², the mean; what rounding of the variance is relative to.
    """

    mean: Tensor
    var: Tensor
    unbiased: Tensor
    size: Tensor
    square: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Compute one number after the other, in Python numbers."""
        moments = []
        for row in rows.double().tolist():
            n = len(row)
            mean, size = math.fsum(row) / n, math.fsum(map(abs, row)) / n
            squares = math.fsum((x - mean) ** 2 for x in row)
            square = math.fsum((abs(x) + size) ** 2 for x in row) / n
            moments.append([mean, squares / n, squares / (n - 1) if n > 1 else math.nan, size, square])
        columns = torch.tensor(moments, dtype=torch.float64).reshape(-1, 5)
        return cls(*columns.split(1, dim=1))


def normalized(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The formula, in float64."""
    y = (x.double() - mean) / (var + eps).sqrt()
    y = y if weight is None else y * weight.double()
    return y if bias is None else y + bias.double()


def off_by(
    x: Tensor, n: int, moments: Moments, eps: float, weight: Tensor | None, bias: Tensor | None, parameters: torch.dtype
) -> Tolerance:
    """The rounding error of `normalized` with the moments of n numbers.

    Half precision is computed in float32 and rounded once. The error of the mean is n roundings of `size`, so that the
    error of a deviation is n + 1 roundings of |x| + size, and that of the variance n + 3 roundings of `square`, which
    changes 1 / sqrt(var + eps) by half of its relative size. Parameters and running statistics may themselves be in
    half precision: the mean, the factor and the offset are then rounded to it.
    """
    scale = 1 / (moments.var + eps).sqrt() * (1.0 if weight is None else weight.double().abs())
    offset = 0.0 if bias is None else bias.double().abs()
    largest = scale * (x.double().abs() + moments.size) + offset
    inside = rounding(
        torch.promote_types(x.dtype, torch.float32), n + 8, largest * (1 + moments.square / (2 * (moments.var + eps)))
    )
    kept, last = rounding(parameters, 4, largest), rounding(x.dtype, 0, largest)
    total = torch.as_tensor(inside.absolute) + torch.as_tensor(kept.absolute) + torch.as_tensor(last.absolute)
    return Tolerance(total, f"{inside.because}; {kept.because} for the parameters; {last.because} for the result")


def by_channel(x: Tensor) -> Tensor:
    """`[batch, channels, ...]` as `[channels, all other dimensions]`."""
    return x.movedim(1, 0).reshape(x.shape[1], -1)


def from_channels(rows: Tensor, x: Tensor) -> Tensor:
    """The inverse of `by_channel`, in the shape of `x`."""
    return rows.reshape(x.shape[1], x.shape[0], *x.shape[2:]).movedim(0, 1)


def spread_over(tolerance: Tolerance, x: Tensor) -> Tolerance:
    """The tolerance of each number of `by_channel(x)`, in the shape of `x`."""
    assert isinstance(tolerance.absolute, Tensor)
    return Tolerance(from_channels(tolerance.absolute, x), tolerance.because)


learned = st.sampled_from([(True, True), (True, False), (False, True), (False, False)])
"""Whether there is a weight, and whether there is a bias."""


def parameters_of(dtype: torch.dtype) -> st.SearchStrategy[torch.dtype]:
    """The type of an input's parameters: its own, or for half precision float32 too."""
    return st.sampled_from([dtype, torch.float32]) if dtype.itemsize == 2 else st.just(dtype)


# Numbers far from 0


@dataclass(frozen=True)
class FarRow:
    """n normal numbers around an offset, normalized exactly, and the allowed error of an implementation.

    Attributes:
        x: `[n]`, as they are after rounding to the dtype.
        expected: `[n]`, (x - mean) / sqrt(var + 1e-5) in float64.
        linear: An error of the mean's and the deviations' digits, in proportion to the offset.
        centred: An error of the deviations' own digits, independent of the offset.
    """

    x: Tensor
    expected: Tensor
    linear: Tolerance
    centred: Tolerance


@cache
def far_row(offset: float, n: int, dtype: torch.dtype, in_order: bool) -> FarRow:
    """Compute one number after the other, in Python numbers.

    Half precision is computed in float32 and rounded once. With L roundings in a sum of n numbers, the mean is off by
    L of |x|, and so is each deviation. A variance that is taken from deviations, in one pass or two, is then off by
    L · σ · sqrt(σ² + mean²), and by the square of the mean's error (Chan, Golub and LeVeque, 1983); the difference
    E[x²] - E[x]² would be off by L · (σ² + mean²). If the mean has the precision of the deviations, the errors of both
    are only L roundings of the deviations.

    Args:
        offset: The approximate mean.
        n: The number of elements.
        dtype: Their dtype.
        in_order: Whether sums may be formed one number after the other, with L = n roundings, and not by halves, with L
            = log2 n, as PyTorch's sums are.
    """
    x = (normal(n, seed=n) + offset).to(dtype)
    numbers = x.double().tolist()
    rounded = math.fsum(numbers) / n
    rest = math.fsum(number - rounded for number in numbers) / n
    deviations = torch.tensor([number - rounded - rest for number in numbers], dtype=torch.float64)
    var, mean = math.fsum(deviations.square().tolist()) / n, rounded + rest
    scale = 1 / math.sqrt(var + 1e-5)
    expected = deviations * scale
    wide = torch.promote_types(dtype, torch.float32)
    roundings = (n if in_order else math.ceil(math.log2(n))) + 4
    eps, last = roundings * torch.finfo(wide).eps, torch.finfo(dtype).eps * expected.abs()
    size = math.fsum(map(abs, numbers)) / n
    of_var = eps * math.sqrt(var * (var + mean**2)) + (eps * size) ** 2
    linear = eps * (x.double().abs() + size) * scale + expected.abs() * of_var / (2 * (var + 1e-5)) + last
    because = f"{roundings} roundings to {wide} of the sums over {n} numbers"
    return FarRow(
        x,
        expected,
        Tolerance(linear, f"{because}, in proportion to the offset {offset:g}"),
        Tolerance(eps * (expected.abs() + 1) + last, f"{because}, relative to the deviations"),
    )


FAR = pytest.mark.parametrize(
    ("offset", "n"),
    [(offset, n) for n in (2, 32, 1000) for offset in (0.0, 1.0, 100.0, 1e4, 1e6)] + [(100.0, 100_000), (1e6, 100_000)],
    ids="{:g}".format,
)


def check_far_from_zero(normalize: Callable[[Tensor], Tensor], offset: float, n: int, batch: bool) -> None:
    """`normalize` takes `[n]` to `[n]`; each dtype that holds the offset."""
    __tracebackhide__ = True
    for dtype in current().dtypes:
        if offset < torch.finfo(dtype).max:
            # PyTorch's batch norm adds up float32 in float64, and float64 one number after the other
            row = far_row(offset, n, dtype, in_order=batch and dtype == torch.float64)
            assert_close(normalize(row.x), row.expected.to(dtype), row.linear, f"{dtype} around {offset:g}")


# The properties of batch norm


@dataclass(frozen=True)
class BatchCase:
    """A valid batch: its shape, eps, the parameters and their dtype, and a seed."""

    shape: Shape
    eps: float
    weighted: bool
    biased: bool
    dtype: torch.dtype
    parameters: torch.dtype
    layout: int
    seed: int

    @property
    def n(self) -> int:
        """The number of elements of a channel."""
        return math.prod(self.shape) // self.shape[1]

    def input(self) -> Tensor:
        return laid_out(normal(*self.shape, seed=self.seed, dtype=self.dtype), self.layout)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias."""
        weight = normal(self.shape[1], seed=self.seed + 1, dtype=self.parameters) if self.weighted else None
        bias = normal(self.shape[1], seed=self.seed + 2, dtype=self.parameters) if self.biased else None
        return weight, bias

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance."""
        mean = normal(self.shape[1], seed=self.seed + 3, dtype=self.parameters)
        return mean, normal(self.shape[1], seed=self.seed + 4, dtype=self.parameters).abs() + 0.5


@st.composite
def batch_cases(draw: st.DrawFn) -> BatchCase:
    positions = draw(st.sampled_from([(2,), (), (1,), (2, 2), (1, 3), (1, 2, 3)]))
    weighted, biased = draw(learned)
    dtype = draw(dtypes())
    return BatchCase(
        shape=(draw(st.integers(1 if math.prod(positions) > 1 else 2, 4)), draw(st.integers(1, 3)), *positions),
        eps=draw(st.sampled_from([1e-5, 1e-3, 1.0])),
        weighted=weighted,
        biased=biased,
        dtype=dtype,
        parameters=draw(parameters_of(dtype)),
        layout=draw(layouts),
        seed=draw(seeds),
    )


def column(parameter: Tensor | None) -> Tensor | None:
    """One number per channel, in a shape that broadcasts with `by_channel`."""
    return None if parameter is None else parameter[:, None]


@clause("12.batch_norm.training", "12.batch_norm.dtypes", "12.batch_norm.layouts")
@given(case=batch_cases(), remembers=st.booleans())
def test_batch_norm_uses_mean_and_biased_variance_of_each_channel(
    batch_norm: Function, case: BatchCase, remembers: bool
) -> None:
    x, (weight, bias) = case.input(), case.affine()
    before = x.clone()
    running = case.running() if remembers else (None, None)
    output = batch_norm(x, *running, weight, bias, training=True, eps=case.eps)
    assert output.dtype == case.dtype
    rows, moments = by_channel(x), Moments.of(by_channel(x))
    expected = normalized(rows, moments.mean, moments.var, case.eps, column(weight), column(bias))
    tolerance = off_by(rows, case.n, moments, case.eps, column(weight), column(bias), case.parameters)
    assert_close(output, from_channels(expected, x).to(case.dtype), spread_over(tolerance, x))
    assert_equal(x, before, "the input afterwards")


@clause("12.batch_norm.running")
@given(case=batch_cases(), momentum=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_running_statistics_use_mean_and_unbiased_variance(
    batch_norm: Function, case: BatchCase, momentum: float
) -> None:
    x, (mean, var) = case.input(), case.running()
    old_mean, old_var = mean.double().clone(), var.double().clone()
    batch_norm(x, mean, var, training=True, momentum=momentum)
    new = Moments.of(by_channel(x))
    for what, running, old, taken, size in [
        ("the running mean", mean, old_mean, new.mean[:, 0], new.size[:, 0]),
        ("the running variance", var, old_var, new.unbiased[:, 0], (new.square * case.n / (case.n - 1))[:, 0]),
    ]:
        expected = (1 - momentum) * old + momentum * taken
        largest = (1 - momentum) * old.abs() + momentum * size
        inside = rounding(torch.promote_types(case.dtype, torch.float32), case.n + 6, largest)
        last = rounding(case.parameters, 1, largest)  # PyTorch rounds the new statistic too
        tolerance = Tolerance(inside.absolute + last.absolute, f"{inside.because}; {last.because} to keep it")
        assert_close(running, expected.to(case.parameters), tolerance, what)


@clause("12.batch_norm.evaluation", "12.batch_norm.dtypes", "12.batch_norm.layouts")
@given(case=batch_cases(), eps=st.sampled_from([0.0, 1e-5, 1.0]))
def test_evaluation_uses_running_statistics_without_updating(batch_norm: Function, case: BatchCase, eps: float) -> None:
    x, (weight, bias), (mean, var) = case.input(), case.affine(), case.running()
    old_mean, old_var = mean.clone(), var.clone()
    output = batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    m, v = old_mean.double()[:, None], old_var.double()[:, None]
    given_moments = Moments(mean=m, var=v, unbiased=v, size=m.abs(), square=torch.zeros_like(v))
    rows = by_channel(x)
    expected = normalized(rows, m, v, eps, column(weight), column(bias))
    tolerance = off_by(rows, 0, given_moments, eps, column(weight), column(bias), case.parameters)
    assert output.dtype == case.dtype
    assert_close(output, from_channels(expected, x).to(case.dtype), spread_over(tolerance, x))
    assert_equal(mean, old_mean, "the running mean afterwards")
    assert_equal(var, old_var, "the running variance afterwards")


@clause("12.batch_norm.training")
def test_batch_norm_of_two_values_is_plus_and_minus_one_half(batch_norm: Function) -> None:
    # mean 6 and 20, variance ((-1)² + 1²) / 2 = 1, and (1 + 3)^(-1/2) = 1/2; the unbiased variance would be 2
    x = torch.tensor([[[5.0], [21.0]], [[7.0], [19.0]]])
    assert_equal(batch_norm(x, None, None, training=True, eps=3.0), [[[-0.5], [0.5]], [[0.5], [-0.5]]])


@clause("12.batch_norm.running")
def test_batch_norm_default_momentum_is_0_1(batch_norm: Function) -> None:
    mean, var = torch.tensor([10.0]), torch.tensor([1.0])
    # mean 6, unbiased variance ((-1)² + 1²) / 1 = 2
    batch_norm(torch.tensor([[5.0], [7.0]]), mean, var, training=True)
    tolerance = rounding(torch.float32, 3, 10.0)
    assert_close(mean, [0.9 * 10 + 0.1 * 6], tolerance, "the running mean")
    assert_close(var, [0.9 * 1 + 0.1 * 2], tolerance, "the running variance")


@clause("12.batch_norm.statistics")
@given(case=batch_cases())
def test_batch_norm_output_has_mean_0_and_variance_reduced_by_eps(batch_norm: Function, case: BatchCase) -> None:
    x = case.input().double()
    output = by_channel(batch_norm(x, None, None, training=True, eps=case.eps))
    before, after = Moments.of(by_channel(x)), Moments.of(output)
    one = off_by(by_channel(x), case.n, before, case.eps, None, None, torch.float64)
    assert isinstance(one.absolute, Tensor)
    furthest = one.absolute.amax(1, keepdim=True)
    assert_close(after.mean, torch.zeros_like(after.mean), Tolerance(furthest, one.because), "the mean")
    # (y + e)² - y² = 2ye + e², and |y| is at most √n
    tolerance = Tolerance(3 * math.sqrt(case.n) * furthest, f"3 √{case.n} times {one.because}")
    assert_close(after.var, before.var / (before.var + case.eps), tolerance, "the variance")


@clause("12.batch_norm.scale")
@given(case=batch_cases(), exponent=st.integers(-3, 3))
def test_batch_norm_is_invariant_to_scale(batch_norm: Function, case: BatchCase, exponent: int) -> None:
    x, factor = normal(*case.shape, seed=case.seed), 2.0**exponent
    # (factor · deviation)² = factor² · deviation², and powers of two do not round
    output = batch_norm(factor * x, None, None, training=True, eps=factor**2 * case.eps)
    assert_equal(output, batch_norm(x, None, None, training=True, eps=case.eps))


@clause("12.batch_norm.stability")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_batch_norm_keeps_small_differences_of_large_values(batch_norm: Function, dtype: torch.dtype) -> None:
    # their squares differ by less than float32 can tell; 16 values, of which each is 1 away from the mean of 10,000
    x = 10_000 + torch.tensor([1.0, -1.0], dtype=dtype).repeat(8).reshape(4, 1, 2, 2)
    output = batch_norm(x, None, None, training=True, eps=3.0)
    # 1 / sqrt(1 + 3); some multiply first and then subtract the mean's share
    assert_close(output, (x - 10_000) / 2, rounding(dtype, 4, 10_001))


@clause("12.batch_norm.stability")
def test_batch_norm_of_values_with_squares_beyond_float16(batch_norm: Function) -> None:
    x = torch.tensor([1000.0, -1000.0], dtype=torch.float16).reshape(2, 1)
    assert_equal(batch_norm(x, None, None, training=True), [[1.0], [-1.0]])


@clause("12.batch_norm.stability")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_batch_norm_of_a_constant_channel_is_the_bias(batch_norm: Function, dtype: torch.dtype) -> None:
    output = batch_norm(
        torch.full((3, 1, 2), 2.0, dtype=dtype), None, None, None, torch.tensor([7.0], dtype=dtype), True
    )
    assert_close(output, torch.full((3, 1, 2), 7.0, dtype=dtype), rounding(dtype, 4, 2 * 2 / math.sqrt(1e-5) + 7))


@clause("12.batch_norm.offset")
@FAR
def test_batch_norm_error_is_at_most_proportional_to_the_offset(batch_norm: Function, offset: float, n: int) -> None:
    def normalize(x: Tensor) -> Tensor:
        one = torch.ones(1, dtype=torch.promote_types(x.dtype, torch.float32))  # else PyTorch rounds the mean to half
        return batch_norm(x.reshape(1, 1, n), None, None, one, training=True).reshape(n)

    check_far_from_zero(normalize, offset, n, batch=True)


@clause("12.batch_norm.offset", "12.layer_norm.offset")
@FAR
def test_norms_are_as_accurate_far_from_zero_as_near_zero(offset: float, n: int) -> None:
    for dtype in current().dtypes:
        if offset < torch.finfo(dtype).max:
            row = far_row(offset, n, dtype, in_order=False)
            expected = row.expected.to(dtype)
            batch = reference.batch_norm(row.x.reshape(1, 1, n), None, None, training=True).reshape(n)
            assert_close(batch, expected, row.centred, f"batch_norm, {dtype}")
            assert_close(reference.layer_norm(row.x, (n,)), expected, row.centred, f"layer_norm, {dtype}")


@clause("12.batch_norm.nonfinite")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_batch_norm_in_training_makes_a_channel_with_nan_or_inf_nan(batch_norm: Function, value: float) -> None:
    x = normal(3, 2, 2, 2, seed=0)
    others = batch_norm(x, None, None, training=True)[:, 1]
    x[1, 0, 0, 1] = value
    output = batch_norm(x, None, None, training=True)
    assert output[:, 0].isnan().all()
    assert_equal(output[:, 1], others, "the other channel")


@clause("12.batch_norm.nonfinite")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_batch_norm_in_evaluation_keeps_nan_and_inf_in_place(batch_norm: Function, value: float) -> None:
    x, mean, var = normal(3, 2, 2, 2, seed=0), torch.zeros(2).double(), torch.ones(2).double()
    expected = batch_norm(x, mean, var)
    x[1, 0, 0, 1], expected[1, 0, 0, 1] = value, value
    assert_equal(batch_norm(x, mean, var), expected)


@clause("12.batch_norm.empty")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_of_an_empty_batch_updates_no_statistics(batch_norm: Function, training: bool) -> None:
    mean, var = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert batch_norm(torch.ones(0, 2, 3, 3), mean, var, training=training).shape == (0, 2, 3, 3)
    assert_equal(mean, [1.0, 2.0], "the running mean")
    assert_equal(var, [3.0, 4.0], "the running variance")


@clause("12.batch_norm.empty")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_empty_input_of_one_dimension_has_no_channels(batch_norm: Function, training: bool) -> None:
    # among PyTorch's own samples of batch_norm
    x, none = torch.ones(0, requires_grad=True), torch.ones(0)
    output = batch_norm(x, none, none, training=training)
    assert_equal(output.detach(), none)
    assert_equal(torch.autograd.grad(output.sum(), x)[0], none, "the gradient")


# The gradients of batch norm


@clause("12.batch_norm.gradients")
@pytest.mark.parametrize("shape", [(3, 2), (2, 1, 3), (2, 2, 1, 2)], ids=["a table", "sequences", "images"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_is_differentiable_twice(batch_norm: Function, shape: Shape, training: bool) -> None:
    channels = shape[1]
    mean, var = normal(channels, seed=3), normal(channels, seed=4).abs() + 0.5

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x, mean.clone(), var.clone(), weight, bias, training=training, eps=0.1)

    inputs = [spread(*shape, seed=0), spread(channels, seed=1), spread(channels, seed=2)]
    assert_differentiable(function, *(t.requires_grad_() for t in inputs))


@clause("12.batch_norm.gradients")
def test_running_statistics_are_outside_of_autograd(batch_norm: Function) -> None:
    mean, var = torch.zeros(2), torch.ones(2)
    output = batch_norm(normal(3, 2, seed=0, dtype=torch.float32).requires_grad_(), mean, var, training=True)
    assert output.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad


# The layer BatchNorm2d


@clause("12.batch_norm.layer")
@given(
    passes=st.lists(st.booleans(), min_size=1, max_size=3),
    momentum=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3]),
    seed=seeds,
)
def test_batch_norm_layer_updates_statistics_in_training_and_applies_them_in_evaluation(
    BatchNorm2d: Layer, passes: list[bool], momentum: float | None, affine: bool, eps: float, seed: int
) -> None:
    layer = BatchNorm2d(2, eps, momentum, affine=affine, dtype=torch.float64)
    weight, bias = (whole(2, seed=seed + i) for i in (1, 2)) if affine else (None, None)
    if affine:
        layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    mean, var, seen = torch.zeros(2, 1).double(), torch.ones(2, 1).double(), 0
    for number, training in enumerate(passes):
        x = normal(2, 2, 2, 3, seed=seed + 3 + number)
        rows, batch = by_channel(x), Moments.of(by_channel(x))
        output = layer.train(training)(x)
        if training:
            seen += 1
            share = 1 / seen if momentum is None else momentum
            mean = (1 - share) * mean + share * batch.mean
            var = (1 - share) * var + share * batch.unbiased
            used = batch
        else:
            # the running statistics are rounded 6 + 6 times per pass, and no number here is larger than 6 or its square
            # 36
            bounds = torch.full_like(mean, 6.0), torch.full_like(mean, 36.0)
            used = Moments(mean, var, var, *bounds)
        expected = normalized(rows, used.mean, used.var, eps, column(weight), column(bias))
        tolerance = off_by(rows, 12 * len(passes), used, eps, column(weight), column(bias), torch.float64)
        assert_close(output, from_channels(expected, x), spread_over(tolerance, x), f"the result of pass {number}")
        kept = rounding(torch.float64, 12 * len(passes), 72.0)
        assert_close(layer.running_mean, mean[:, 0], kept, f"the running mean after pass {number}")
        assert_close(layer.running_var, var[:, 0], kept, f"the running variance after pass {number}")
        assert_equal(layer.num_batches_tracked, seen, "the number of batches")


@clause("12.batch_norm.momentum_none")
def test_momentum_none_averages_all_batches_equally(BatchNorm2d: Layer) -> None:
    layer = BatchNorm2d(1, momentum=None, dtype=torch.float64)
    for values in [(1.0, 3.0), (5.0, 7.0), (9.0, 17.0)]:
        layer(torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, 2))
    tolerance = rounding(torch.float64, 9, 32.0)
    assert_close(layer.running_mean, [(2.0 + 6.0 + 13.0) / 3], tolerance, "the running mean")
    assert_close(layer.running_var, [(2.0 + 2.0 + 32.0) / 3], tolerance, "the running variance")


@clause("12.batch_norm.no_memory")
def test_without_running_statistics_evaluation_equals_training(BatchNorm2d: Layer) -> None:
    layer = BatchNorm2d(2, track_running_stats=False)
    assert (layer.running_mean, layer.running_var, layer.num_batches_tracked) == (None, None, None)
    x = normal(3, 2, 2, 2, seed=0, dtype=torch.float32)
    assert_equal(layer.eval()(x), layer.train()(x))
    with rejects("input|value"):
        layer.eval()(torch.ones(1, 2, 1, 1))


@clause("12.batch_norm.single_value")
def test_a_single_value_per_channel_is_refused_in_training_only(BatchNorm2d: Layer) -> None:
    layer = BatchNorm2d(3)
    with rejects("input|value"):
        layer(torch.ones(1, 3, 1, 1))
    # the running statistics are mean 0 and variance 1
    expected = torch.full((1, 3, 1, 1), 1 / math.sqrt(1 + 1e-5))
    assert_close(layer.eval()(torch.ones(1, 3, 1, 1)), expected, rounding(torch.float32, 3))


@clause("12.batch_norm.reset")
def test_resetting_restores_the_running_statistics_and_the_parameters(BatchNorm2d: Layer) -> None:
    layer = BatchNorm2d(2)
    with torch.no_grad():
        layer.weight.fill_(3)
    layer(normal(4, 2, 2, 2, seed=0, dtype=torch.float32) + 5)
    assert (layer.running_mean != 0).all()
    layer.reset_running_stats()
    assert_equal(layer.running_mean, [0.0, 0.0], "the running mean")
    assert_equal(layer.running_var, [1.0, 1.0], "the running variance")
    assert_equal(layer.num_batches_tracked, 0, "the number of batches")
    assert_equal(layer.weight, [3.0, 3.0], "the weight")
    layer.reset_parameters()
    assert_equal(layer.weight, [1.0, 1.0], "the weight")


@clause("12.batch_norm.printed")
@pytest.mark.parametrize(
    ("arguments", "options", "printed"),
    [
        ((3,), {}, "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)"),
        (
            (8, 1e-3, None, False, False),
            {},
            "BatchNorm2d(8, eps=0.001, momentum=None, affine=False, bias=False, track_running_stats=False)",
        ),
        (
            (2,),
            {"bias": False},
            "BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, bias=False, track_running_stats=True)",
        ),
    ],
    ids=["the defaults", "everything else", "no bias"],
)
def test_batch_norm_layer_prints_the_arguments(
    BatchNorm2d: Layer, arguments: tuple[Any, ...], options: dict[str, Any], printed: str
) -> None:
    assert str(BatchNorm2d(*arguments, **options)) == printed


@clause("12.batch_norm.state")
@pytest.mark.parametrize(
    ("options", "affine", "remembered"),
    [
        ({}, {"weight": 1.0, "bias": 0.0}, True),
        ({"bias": False}, {"weight": 1.0}, True),
        ({"affine": False}, {}, True),
        ({"track_running_stats": False}, {"weight": 1.0, "bias": 0.0}, False),
    ],
    ids=["everything", "no bias", "nothing learned", "nothing remembered"],
)
def test_batch_norm_state_dict_starts_neutral_and_loads_to_and_from_pytorch(
    BatchNorm2d: Layer, options: dict[str, Any], affine: dict[str, float], remembered: bool
) -> None:
    ours, pytorchs = BatchNorm2d(3, **options), batch_norm_2d(3, **options)
    started = {name: torch.full((3,), value) for name, value in affine.items()}
    if remembered:
        started |= {
            "running_mean": torch.zeros(3),
            "running_var": torch.ones(3),
            "num_batches_tracked": torch.tensor(0),
        }
    state = ours.state_dict()
    assert list(state) == list(started)
    for name, value in started.items():
        assert_equal(state[name].detach(), value, name)
    assert [name for name, _ in ours.named_parameters()] == list(affine)
    x = normal(4, 3, 2, 2, seed=0, dtype=torch.float32)
    ours(x)
    pytorchs.load_state_dict(ours.state_dict())
    again = BatchNorm2d(3, **options)
    again.load_state_dict(pytorchs.state_dict())
    assert_equal(again.eval()(x), ours.eval()(x), "the result with the state that came back")


# The properties of layer norm


@dataclass(frozen=True)
class LayerCase:
    """Valid samples: the leading dimensions, the dimensions of each sample, and the other fields as in `BatchCase`."""

    before: Shape
    each: Shape
    eps: float
    weighted: bool
    biased: bool
    dtype: torch.dtype
    parameters: torch.dtype
    layout: int
    seed: int

    @property
    def n(self) -> int:
        """The number of elements of a sample."""
        return math.prod(self.each)

    def input(self) -> Tensor:
        return laid_out(normal(*self.before, *self.each, seed=self.seed, dtype=self.dtype), self.layout)

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias."""
        weight = normal(*self.each, seed=self.seed + 1, dtype=self.parameters) if self.weighted else None
        bias = normal(*self.each, seed=self.seed + 2, dtype=self.parameters) if self.biased else None
        return weight, bias


@st.composite
def layer_cases(draw: st.DrawFn) -> LayerCase:
    weighted, biased = draw(learned)
    dtype = draw(dtypes())
    return LayerCase(
        before=draw(st.sampled_from([(), (2,), (0,), (1,), (3, 2)])),
        each=draw(st.sampled_from([(4,), (1,), (3,), (2, 3), (1, 5), (2, 1, 2), (17,)])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 1.0])),
        weighted=weighted,
        biased=biased,
        dtype=dtype,
        parameters=draw(parameters_of(dtype)),
        layout=draw(layouts),
        seed=draw(seeds),
    )


def row(parameter: Tensor | None) -> Tensor | None:
    """One number per position of the sample, in a shape that broadcasts with samples in rows."""
    return None if parameter is None else parameter.reshape(1, -1)


def assert_normalized(
    output: Tensor, x: Tensor, case: LayerCase, weight: Tensor | None, bias: Tensor | None, parameters: torch.dtype
) -> None:
    """Assert that each sample is normalized by its mean and variance, up to rounding."""
    __tracebackhide__ = True
    rows = x.reshape(math.prod(case.before), case.n)
    moments = Moments.of(rows)
    expected = normalized(rows, moments.mean, moments.var, case.eps, row(weight), row(bias)).to(case.dtype)
    tolerance = off_by(rows, case.n, moments, case.eps, row(weight), row(bias), parameters)
    assert isinstance(tolerance.absolute, Tensor)
    each = Tolerance(tolerance.absolute.reshape(x.shape), tolerance.because)
    assert_close(output, expected.reshape(x.shape), each)


@clause("12.layer_norm.definition", "12.layer_norm.dtypes", "12.layer_norm.layouts")
@given(case=layer_cases())
def test_layer_norm_uses_mean_and_biased_variance_of_each_sample(layer_norm: Function, case: LayerCase) -> None:
    x, (weight, bias) = case.input(), case.affine()
    before = x.clone()
    assert_normalized(layer_norm(x, case.each, weight, bias, case.eps), x, case, weight, bias, case.parameters)
    assert_equal(x, before, "the input afterwards")


@clause("12.layer_norm.definition")
def test_layer_norm_of_two_values_is_plus_and_minus_one_half(layer_norm: Function) -> None:
    # means 6 and 20, variance ((-1)² + 1²) / 2 = 1, and (1 + 3)^(-1/2) = 1/2; the unbiased variance would be 2
    assert_equal(layer_norm(torch.tensor([[5.0, 7.0], [21.0, 19.0]]), (2,), eps=3.0), [[-0.5, 0.5], [0.5, -0.5]])


@clause("12.layer_norm.definition")
def test_default_eps_is_1e_5(layer_norm: Function) -> None:
    x = torch.tensor([-0.001, 0.001], dtype=torch.float64)
    # the variance is 1e-6, and 0.001 / sqrt(1e-6 + 1e-5) = 1 / sqrt(11)
    assert_close(layer_norm(x, (2,)), [-1 / math.sqrt(11), 1 / math.sqrt(11)], rounding(torch.float64, 9))


@clause("12.layer_norm.single_value")
def test_layer_norm_of_a_single_value_is_the_bias(layer_norm: Function) -> None:
    output = layer_norm(torch.tensor([[4.0], [-8.0]]), (1,), torch.tensor([3.0]), torch.tensor([7.0]))
    tolerance = rounding(torch.float32, 4, 2 * 3 * 8 / math.sqrt(1e-5) + 7)  # 8 / sqrt(0 + eps), and back
    assert_close(output, [[7.0], [7.0]], tolerance)


@clause("12.layer_norm.scale")
@given(case=layer_cases(), exponent=st.integers(-3, 3))
def test_layer_norm_is_invariant_to_scale(layer_norm: Function, case: LayerCase, exponent: int) -> None:
    x, factor = normal(*case.before, *case.each, seed=case.seed), 2.0**exponent
    # (factor · deviation)² = factor² · deviation², and powers of two do not round
    assert_equal(layer_norm(factor * x, case.each, eps=factor**2 * case.eps), layer_norm(x, case.each, eps=case.eps))


@clause("12.layer_norm.stability")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_layer_norm_keeps_small_differences_of_large_values(layer_norm: Function, dtype: torch.dtype) -> None:
    # their squares differ by less than float32 can tell; each is 1 away from the mean of 10,000
    x = 10_000 + torch.tensor([1.0, -1.0], dtype=dtype).repeat(8)
    # 1 / sqrt(1 + 3); some multiply first and then subtract the mean's share
    assert_close(layer_norm(x, (16,), eps=3.0), (x - 10_000) / 2, rounding(dtype, 16 + 4, 10_001))


@clause("12.layer_norm.stability")
def test_layer_norm_of_values_with_squares_beyond_float16(layer_norm: Function) -> None:
    x = torch.tensor([1000.0, -1000.0], dtype=torch.float16)
    assert_equal(layer_norm(x, (2,)), [1.0, -1.0])


@clause("12.layer_norm.offset")
@FAR
def test_layer_norm_error_is_at_most_proportional_to_the_offset(layer_norm: Function, offset: float, n: int) -> None:
    check_far_from_zero(lambda x: layer_norm(x, (n,)), offset, n, batch=False)


@clause("12.layer_norm.constant")
@pytest.mark.parametrize("n", [2, 3, 17, 1000, 6272])
@pytest.mark.parametrize("value", [1 / 3, 100.1, 1e4 / 7, 1e6 / 7], ids="{:.7g}".format)
def test_layer_norm_of_a_constant_sample_is_exactly_the_bias(layer_norm: Function, value: float, n: int) -> None:
    for dtype in {torch.float32, torch.float64}.intersection(current().dtypes):
        bias = torch.arange(n).remainder(5).to(dtype)
        # the mean of equal numbers is that number, and every deviation 0
        output = layer_norm(torch.full((2, n), value, dtype=dtype), (n,), torch.ones(n, dtype=dtype), bias)
        assert_equal(output, bias.expand(2, n))


@clause("12.batch_norm.offset", "12.layer_norm.constant")
@pytest.mark.parametrize("n", [2, 3, 17, 1000, 6272])
def test_norms_of_equal_values_are_exactly_0(n: int) -> None:
    for value, dtype in product((1 / 3, 100.1, 1e4 / 7, 1e6 / 7), current().dtypes):
        if value < torch.finfo(dtype).max:
            x = torch.full((1, n, 2), value, dtype=dtype)  # as samples of n numbers, and as channels of n
            batch = reference.batch_norm(x.movedim(1, 0).reshape(n, 2), None, None, training=True)
            assert_equal(batch, torch.zeros(n, 2, dtype=dtype), f"batch_norm, {dtype}, of {value:g}")
            layer = reference.layer_norm(x.reshape(2, n), (n,))
            assert_equal(layer, torch.zeros(2, n, dtype=dtype), f"layer_norm, {dtype}, of {value:g}")


@clause("12.layer_norm.nonfinite")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_layer_norm_makes_a_sample_with_nan_or_inf_nan(layer_norm: Function, value: float) -> None:
    x = normal(2, 3, 4, seed=0)
    expected = layer_norm(x, (4,))
    x[1, 2, 0], expected[1, 2] = value, torch.nan
    assert_equal(layer_norm(x, (4,)), expected)


# The gradients of layer norm


@clause("12.layer_norm.gradients")
@pytest.mark.parametrize(
    ("before", "each"), [((), (3,)), ((2,), (3,)), ((1, 2), (1, 2))], ids=["a sample", "a batch", "two dimensions each"]
)
def test_layer_norm_is_differentiable_twice(layer_norm: Function, before: Shape, each: Shape) -> None:
    inputs = [spread(*before, *each, seed=0), spread(*each, seed=1), spread(*each, seed=2)]
    assert_differentiable(
        lambda x, weight, bias: layer_norm(x, each, weight, bias, eps=0.1), *(t.requires_grad_() for t in inputs)
    )


# The layer LayerNorm


@clause("12.layer_norm.layer")
@given(case=layer_cases(), affine=st.booleans(), bias=st.booleans())
def test_layer_norm_layer_equals_layer_norm_with_own_weight_and_bias(
    LayerNorm: Layer, case: LayerCase, affine: bool, bias: bool
) -> None:
    layer = LayerNorm(case.each, case.eps, elementwise_affine=affine, bias=bias, dtype=case.dtype)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*case.each, seed=case.seed + 1 + number))
    assert [name for name, _ in layer.named_parameters()] == (["weight", "bias"] if bias else ["weight"]) * affine
    x = case.input()
    output = layer(x)
    assert_normalized(output, x, case, layer.weight, layer.bias, case.dtype)
    assert_equal(layer.eval()(x), output, "the result in evaluation")


@clause("12.layer_norm.layer")
def test_a_number_as_normalized_shape_is_the_last_dimension(LayerNorm: Layer) -> None:
    x = normal(2, 4, seed=0, dtype=torch.float32)
    assert_equal(LayerNorm(4)(x), LayerNorm((4,))(x))


@clause("12.layer_norm.printed")
@pytest.mark.parametrize(
    ("arguments", "options", "printed"),
    [
        ((3,), {}, "LayerNorm((3,), eps=1e-05, elementwise_affine=True, bias=True)"),
        (([2, 3], 1e-3), {"bias": False}, "LayerNorm((2, 3), eps=0.001, elementwise_affine=True, bias=False)"),
        (((3,),), {"elementwise_affine": False}, "LayerNorm((3,), eps=1e-05, elementwise_affine=False, bias=False)"),
    ],
    ids=["the defaults", "no bias", "nothing learned"],
)
def test_layer_norm_layer_prints_the_arguments(
    LayerNorm: Layer, arguments: tuple[Any, ...], options: dict[str, Any], printed: str
) -> None:
    assert str(LayerNorm(*arguments, **options)) == printed


@clause("12.layer_norm.state")
@pytest.mark.parametrize(
    ("options", "started"),
    [({}, {"weight": 1.0, "bias": 0.0}), ({"bias": False}, {"weight": 1.0}), ({"elementwise_affine": False}, {})],
    ids=["everything", "no bias", "nothing learned"],
)
def test_layer_norm_state_dict_starts_neutral_and_loads_to_and_from_pytorch(
    LayerNorm: Layer, options: dict[str, Any], started: dict[str, float]
) -> None:
    ours, pytorchs = LayerNorm((2, 3), **options), nn.LayerNorm((2, 3), **options)  # pyright: ignore[reportArgumentType]
    assert list(ours.state_dict()) == list(started)
    for number, (name, value) in enumerate(started.items()):
        assert_equal(ours.state_dict()[name], torch.full((2, 3), value), name)
        ours.state_dict()[name].copy_(normal(2, 3, seed=number))
    pytorchs.load_state_dict(ours.state_dict())
    again = LayerNorm((2, 3), **options)
    again.load_state_dict(pytorchs.state_dict())
    x = normal(4, 2, 3, seed=9, dtype=torch.float32)
    assert_equal(again(x), ours(x), "the result with the state that came back")


# Rejected arguments


@clause("12.batch_norm.rejects", "12.batch_norm.single_value")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"input": torch.ones(1, 3)}, "input|value", id="a single sample"),
        pytest.param({"input": torch.ones(1, 3, 1, 1)}, "input|value", id="a single image of one pixel"),
        pytest.param({"input": torch.ones(2, 3, dtype=torch.int64)}, "input|Long|int64", id="whole numbers"),
        pytest.param({"running_mean": torch.zeros(4)}, "running_mean", id="a running mean of other channels"),
        pytest.param({"running_var": torch.ones(2)}, "running_var", id="a running variance of other channels"),
        pytest.param({"running_var": None}, "running_var", id="a running mean without a variance"),
        pytest.param({"running_mean": None}, "running_mean", id="a running variance without a mean"),
        pytest.param(
            {"running_mean": None, "running_var": None, "training": False},
            "running_mean",
            id="evaluation with nothing remembered",
        ),
        pytest.param({"weight": torch.ones(4)}, "weight", id="a weight of other channels"),
        pytest.param({"bias": torch.ones(4)}, "bias", id="a bias of other channels"),
        pytest.param(
            {"weight": torch.ones(3).double(), "bias": torch.ones(3).double()},
            "dtype|weight",
            id="parameters of another type",
        ),
        pytest.param(
            {"input": torch.ones(2, 3).half(), "weight": torch.ones(3), "bias": torch.zeros(3).half()},
            "dtype|weight",
            id="a weight and a bias of two dtypes",
        ),
        pytest.param({"eps": -1.0}, "eps", id="a negative eps"),
        pytest.param({"eps": 0.0}, "eps", id="no eps in training"),
        pytest.param({"eps": -1.0, "training": False}, "eps", id="a negative eps in evaluation"),
    ],
)
def test_batch_norm_rejects(batch_norm: Function, change: dict[str, Any], naming: str) -> None:
    arguments = {
        "input": torch.ones(2, 3, 2, 2), "running_mean": torch.zeros(3), "running_var": torch.ones(3), "training": True
    }  # fmt: skip
    with rejects(naming=naming):
        batch_norm(**arguments | change)


@clause("12.batch_norm.rejects")
def test_the_reference_names_the_layout_of_an_input_of_one_dimension() -> None:
    with pytest.raises(ValueError, match=r"^batch_norm: input must be \[batch, channels, \*positions\], got .*\(3,\)"):
        reference.batch_norm(torch.ones(3), None, None, training=True)


@clause("12.batch_norm.rejects")
@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 2), (2, 3, 2, 2, 2)], ids=["2 dimensions", "3", "5"])
def test_batch_norm_layer_rejects_inputs_without_4_dimensions(BatchNorm2d: Layer, shape: Shape) -> None:
    with rejects(naming="input"):
        BatchNorm2d(3)(torch.ones(shape))


@clause("12.batch_norm.rejects")
def test_batch_norm_layer_rejects_other_channel_counts(BatchNorm2d: Layer) -> None:
    with rejects(naming="running_mean|input|channels"):
        BatchNorm2d(3)(torch.ones(2, 4, 2, 2))


@clause("12.layer_norm.rejects")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"normalized_shape": (3,)}, "normalized_shape", id="not the last dimension"),
        pytest.param({"normalized_shape": (2, 2)}, "normalized_shape", id="a first of two that does not fit"),
        pytest.param({"normalized_shape": (5, 2, 3, 4)}, "normalized_shape", id="more dimensions than there are"),
        pytest.param({"normalized_shape": ()}, "normalized_shape", id="no dimension"),
        pytest.param({"weight": torch.ones(3)}, "weight", id="a weight of another size"),
        pytest.param({"bias": torch.ones(3, 4)}, "bias", id="a bias of more dimensions"),
        pytest.param({"input": torch.ones(2, 3, 4, dtype=torch.int64)}, "input|Long|int64", id="whole numbers"),
        pytest.param(
            {"weight": torch.ones(4).double(), "bias": torch.ones(4).double()},
            "dtype|weight",
            id="parameters of another type",
        ),
        pytest.param(
            {"input": torch.ones(2, 3, 4).half(), "weight": torch.ones(4), "bias": torch.zeros(4).half()},
            "dtype|weight",
            id="a weight and a bias of two dtypes",
        ),
    ],
)
def test_layer_norm_rejects(layer_norm: Function, change: dict[str, Any], naming: str) -> None:
    arguments = {"input": torch.ones(2, 3, 4), "normalized_shape": (4,)}
    with rejects(naming=naming):
        layer_norm(**arguments | change)


# Input of 16 bits, parameters and statistics of float32


HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)


def once_rounded(found: Tensor, exact: Tensor, half: torch.dtype, operations: int) -> None:
    """The tolerance for numbers below 64 in float32, rounded once."""
    assert found.dtype == half
    inside = rounding(torch.float32, operations, 64.0).absolute
    allowed = rounding(half, 0, exact).absolute.abs() + inside  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]
    assert_close(found.double(), exact, Tolerance(allowed, "one rounding of a result in float32"))


@clause("12.norms.mixed_dtypes")
@HALVES
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_of_16_bits_with_float32_parameters_rounds_once(
    batch_norm: Function, half: torch.dtype, training: bool
) -> None:
    x = normal(65, 3, 5, seed=0, dtype=half)
    weight, bias = (normal(3, seed=seed, dtype=torch.float32) for seed in (1, 2))
    mean, var = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.5, 0.25, 4.0])
    before = mean.double(), var.double()
    found = batch_norm(x, mean, var, weight, bias, training=training)
    wide = x.double()
    used = (wide.mean((0, 2)), wide.var((0, 2), correction=0)) if training else before
    scale = weight.double() / (used[1] + 1e-5).sqrt()
    once_rounded(found, (wide - used[0][:, None]) * scale[:, None] + bias.double()[:, None], half, 65 * 5 + 8)
    assert mean.dtype == var.dtype == torch.float32
    if training:
        small = rounding(torch.float32, 65 * 5 + 4, 8.0)
        assert_close(mean.double(), 0.9 * before[0] + 0.1 * used[0], small, "running_mean")
        expected = 0.9 * before[1] + 0.1 * wide.var((0, 2), correction=1)
        assert_close(var.double(), expected, small, "running_var")


@clause("12.norms.mixed_dtypes")
@HALVES
def test_layer_norm_of_16_bits_with_float32_parameters_rounds_once(layer_norm: Function, half: torch.dtype) -> None:
    x = normal(7, 33, seed=0, dtype=half)
    weight, bias = (normal(33, seed=seed, dtype=torch.float32) for seed in (1, 2))
    wide = x.double()
    shares = (wide - wide.mean(1, keepdim=True)) / (wide.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    once_rounded(layer_norm(x, (33,), weight, bias), shares * weight.double() + bias.double(), half, 33 + 8)
