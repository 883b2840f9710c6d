"""Chapter 11: `relu`, `leaky_relu`, `sigmoid`, `tanh`, `softmax`, `log_softmax`, and their layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from spec.support.assertions import (
    EXACT,
    Tolerance,
    assert_close,
    assert_differentiable,
    assert_equal,
    rejects,
    rounding,
    without_device,
)
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds, spread, whole

Activation = Callable[..., Tensor]
Layer = Callable[..., nn.Module]


def numbers() -> Tensor:
    # chapter 11, lines 645 to 648
    return torch.tensor([[1, -0.5], [-1, 3]]).reshape(-1, 1, 2, 2)


# The values


@clause("11.relu.values")
def test_relu_gives_the_documented_matrix(relu: Activation) -> None:
    output = relu(numbers())
    assert output.shape == (1, 1, 2, 2)  # chapter 11, line 665
    # chapter 11, line 666
    assert_equal(output, [[[[1, 0], [0, 3]]]])


@clause("11.relu.printed", "11.relu.listing")
def test_the_listing_prints_the_result_and_writes_no_events(
    ReLU: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    input = torch.tensor([[1, -0.5], [-1, 3]])
    input = torch.reshape(input, (-1, 1, 2, 2))
    print(input.shape)

    class Ocean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu1 = ReLU()

        def forward(self, input: Tensor) -> Tensor:
            return self.relu1(input)

    print(Ocean()(input))
    # chapter 11, lines 665 to 667
    expected = ["torch.Size([1, 1, 2, 2])", "tensor([[[[1., 0.],", "          [0., 3.]]]])"]
    assert without_device(capsys.readouterr().out).splitlines() == expected
    assert list(tmp_path.iterdir()) == []


@clause("11.sigmoid.images", "11.sigmoid.listing")
@given(seed=seeds)
def test_sigmoid_reduces_image_contrast(Sigmoid: Layer, seed: int) -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0], device="cpu")
    output = Sigmoid()(images.to(torch.get_default_device()))
    assert output.shape == images.shape
    # chapter 11, line 701: black becomes 0.5, white 1 / (1 + 1/e)
    assert_close(output.min(), 0.5, relative(0.5))
    assert_close(output.max(), 0.7310585786300049, relative(0.7310585786300049))


def relative(expected: Any, dtype: torch.dtype = torch.float32, operations: int = 4) -> Tolerance:
    """Roundings relative to the result itself; subnormal numbers may become 0."""
    magnitude = torch.as_tensor(expected, dtype=torch.float64).abs()
    roundings = rounding(dtype, operations, magnitude)
    smallest = torch.finfo(dtype).tiny
    return Tolerance(roundings.absolute + smallest, f"{roundings.because}, and {smallest:.3g} that may be lost")


# The claims


@clause("11.activation.nested")
@given(seed=seeds)
def test_linear_maps_nested_are_one_linear_map(relu: Activation, seed: int) -> None:
    # integers: no rounding
    inner, outer, x = whole(5, 4, seed=seed), whole(3, 5, seed=seed + 1), whole(4, 9, seed=seed + 2)
    inner_bias, outer_bias = whole(5, 1, seed=seed + 3), whole(3, 1, seed=seed + 4)
    hidden = inner @ x + inner_bias
    one = (outer @ inner) @ x + (outer @ inner_bias + outer_bias)
    assert_equal(outer @ hidden + outer_bias, one, "one map after the other")
    # with ReLU between them the results agree only if ReLU changes no number
    cut = outer @ hidden.clamp(max=0)
    assert_equal(outer @ relu(hidden) + outer_bias, one - cut, "with ReLU between them")


@clause("11.activation.nested")
def test_an_activation_makes_the_network_nonlinear(
    relu: Activation, leaky_relu: Activation, sigmoid: Activation, tanh: Activation
) -> None:
    """An affine function of one number satisfies f(−1) − 2 f(1) + f(3) = 0."""
    for activation, bend in (
        # σ(−1) − 2 σ(1) + σ(3) and tanh(−1) − 2 tanh(1) + tanh(3)
        (relu, 1.0), (leaky_relu, 0.99), (sigmoid, -0.2406016), (tanh, -1.2897277)
    ):  # fmt: skip
        low, middle, high = activation(torch.tensor([-1.0, 1.0, 3.0], dtype=torch.float64))
        assert_close(low - 2 * middle + high, bend, Tolerance(5e-8, "half a unit of the last of 7 decimals"))


@clause("11.activation.features")
def test_two_layers_with_relu_compute_xor(relu: Activation) -> None:
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    hidden = bits @ torch.ones(2, 2, dtype=torch.float64) + torch.tensor([0, -1], dtype=torch.float64)
    output = relu(hidden) @ torch.tensor([1, -2], dtype=torch.float64)
    assert_equal(output, [0, 1, 1, 0])
    # an affine function f satisfies f(0, 0) + f(1, 1) = f(0, 1) + f(1, 0)
    assert output[0] + output[3] != output[1] + output[2]


@clause("11.activation.common")
def test_the_four_common_activations(Sigmoid: Layer, Tanh: Layer, ReLU: Layer, LeakyReLU: Layer) -> None:
    # chapter 11, line 620 names them; 1 / (1 + e), 1 / (1 + e⁻²), tanh 1 and tanh 2 to 16 digits
    x = torch.tensor([-1.0, 0.0, 2.0])
    for layer, expected in (
        (Sigmoid(), [0.2689414213699951, 0.5, 0.8807970779778823]),
        (Tanh(), [-0.7615941559557649, 0.0, 0.9640275800758169]),
        (ReLU(), [0.0, 0.0, 2.0]),
        (LeakyReLU(), [-0.01, 0.0, 2.0]),
    ):
        assert_close(layer(x), expected, relative(expected))


@clause("11.sigmoid.not_better")
@given(seed=seeds, layers=st.integers(1, 12))
def test_sigmoid_layers_shrink_the_gradient_fourfold_and_relu_layers_do_not(
    sigmoid: Activation, relu: Activation, seed: int, layers: int
) -> None:
    x = normal(8, seed=seed).requires_grad_()
    through_sigmoids, through_relus = x, x
    for _ in range(layers):
        through_sigmoids, through_relus = sigmoid(through_sigmoids), relu(through_relus)
    (of_sigmoids,) = torch.autograd.grad(through_sigmoids.sum(), x)
    (of_relus,) = torch.autograd.grad(through_relus.sum(), x)
    assert (of_sigmoids > 0).all()
    roundings = 1 + 4 * layers * torch.finfo(x.dtype).eps
    assert (of_sigmoids <= 0.25**layers * roundings).all()
    assert_equal(of_relus, (x > 0).to(x.dtype), "the gradient through the ReLUs")


@clause("11.sigmoid.not_better")
def test_on_images_of_bars_a_network_learns_with_relu_and_not_with_sigmoid(ReLU: Layer, Sigmoid: Layer) -> None:
    """A small counterexample, not a statement about all images: 16 images of 8×8 with horizontal and vertical bars."""
    bars = torch.zeros(16, 8, 8)
    for i in range(8):
        bars[i, i], bars[8 + i, :, i] = 1, 1
    lying = torch.tensor([1.0] * 8 + [0.0] * 8)

    def loss_after_training(activation: Layer) -> float:
        torch.manual_seed(0)
        layers = [part for i in (64, 32) for part in (nn.Linear(i, 32), activation())]
        network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, 1), nn.Flatten(0))
        parameters, loss = list(network.parameters()), torch.zeros(())
        for _ in range(40):
            loss = nn.functional.binary_cross_entropy_with_logits(network(bars), lying)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data -= gradient
        return loss.item()

    assert loss_after_training(ReLU) < 0.1
    assert loss_after_training(Sigmoid) > 0.6  # log 2 ≈ 0.69 is the loss of guessing


@clause("11.sigmoid.own_page")
def test_sigmoid_is_no_linear_layer(Sigmoid: Layer) -> None:
    assert not list(Sigmoid().parameters())
    assert not isinstance(Sigmoid(), nn.Linear)
    with rejects(naming=None):
        Sigmoid(20, 30)  # as the page says that the tutorial links


@clause("11.relu.inplace")
def test_relu_changes_the_input_only_in_place(ReLU: Layer) -> None:
    x = torch.tensor([-1.0, 2.0])
    assert ReLU().inplace is False
    assert_equal(ReLU()(x), [0, 2])
    assert_equal(x, [-1, 2], "the data after ReLU()")
    ReLU(inplace=True)(x)
    assert_equal(x, [0, 2], "the data after ReLU(inplace=True)")


# The properties


@dataclass(frozen=True)
class Case:
    """Inputs of an activation: shape, memory layout, size, dtype, and a seed."""

    shape: tuple[int, ...]
    layout: int
    scale: float
    dtype: torch.dtype
    seed: int

    def tensor(self) -> Tensor:
        return laid_out((self.scale * normal(*self.shape, seed=self.seed)).to(self.dtype), self.layout)


cases = st.builds(
    Case,
    shape=st.sampled_from([(7,), (2, 3), (2, 3, 4), (2, 2, 2, 3), (), (0,), (3, 0, 2)]),
    layout=layouts,
    scale=st.sampled_from([1.0, 10.0, 1e-3, 1e4]),  # float16 ends at 6.5e4
    dtype=dtypes(),
    seed=seeds,
)


def assert_pointwise(
    activation: Activation, case: Case, of_number: Callable[[float], float], tolerance: Callable[[Tensor], Tolerance]
) -> None:
    """Assert that shape and dtype are those of the unchanged input, and that each number equals Python's result."""
    __tracebackhide__ = True
    x = case.tensor()
    before = x.clone()
    expected = torch.tensor([of_number(number) for number in x.flatten().tolist()], dtype=torch.float64)
    expected = expected.reshape(x.shape)
    assert_close(activation(x), expected.to(case.dtype), tolerance(expected))
    assert_equal(x, before, "the input afterwards")


@clause("11.relu.definition")
@given(case=cases)
def test_relu_is_the_larger_of_0_and_the_number(relu: Activation, case: Case) -> None:
    assert_pointwise(relu, case, lambda number: max(0.0, number), lambda _: EXACT)


@clause("11.leaky_relu.definition")
@given(case=cases, slope=st.sampled_from([0.01, 0.2, 0.0, 1.0, 2, -0.5]))
def test_leaky_relu_multiplies_numbers_up_to_0_by_the_slope(leaky_relu: Activation, case: Case, slope: float) -> None:
    assert_pointwise(
        lambda x: leaky_relu(x, negative_slope=slope),
        case,
        lambda number: number if number > 0 else slope * number,
        lambda expected: relative(expected, case.dtype, 2),  # the slope is rounded, and the product
    )


@clause("11.leaky_relu.definition")
def test_leaky_relu_default_slope_is_0_01(leaky_relu: Activation) -> None:
    assert_close(leaky_relu(torch.tensor([-100.0, 100.0])), [-1.0, 100.0], relative([-1.0, 100.0], operations=2))


@clause("11.sigmoid.definition", "11.sigmoid.stable")
@given(case=cases)
def test_sigmoid_equals_1_over_1_plus_exp(sigmoid: Activation, case: Case) -> None:
    def by_definition(number: float) -> float:
        small = math.exp(-abs(number))  # cannot overflow
        return 1 / (1 + small) if number >= 0 else small / (1 + small)

    # exponential, addition, division, and one additional rounding
    assert_pointwise(sigmoid, case, by_definition, lambda expected: relative(expected, case.dtype, 4))


@clause("11.tanh.definition", "11.tanh.stable")
@given(case=cases)
def test_tanh_is_the_hyperbolic_tangent(tanh: Activation, case: Case) -> None:
    # two exponentials, difference, sum and quotient, none above 1 once both are divided by the larger
    assert_pointwise(tanh, case, math.tanh, lambda _: rounding(case.dtype, 5))


@clause("11.tanh.small")
@given(seed=seeds, dtype=dtypes(), exponent=st.integers(-9, 0))
def test_tanh_of_small_inputs_is_accurate(tanh: Activation, seed: int, dtype: torch.dtype, exponent: int) -> None:
    x = (normal(5, seed=seed) * 2.0**exponent).to(dtype)
    expected = torch.tensor([math.tanh(number) for number in x.tolist()], dtype=torch.float64)
    assert_close(tanh(x), expected.to(dtype), relative(expected, dtype, 4))


@clause("11.sigmoid.symmetric")
@given(case=cases)
def test_sigmoid_of_negated_input_is_1_minus_sigmoid(sigmoid: Activation, case: Case) -> None:
    x = case.tensor()
    assert_close(sigmoid(-x), 1 - sigmoid(x), rounding(case.dtype, 5))


@clause("11.tanh.symmetric")
@given(case=cases)
def test_tanh_is_odd(tanh: Activation, case: Case) -> None:
    x = case.tensor()
    assert_close(tanh(-x), -tanh(x), relative(tanh(x), case.dtype, 2))


@clause("11.sigmoid.range")
@given(case=cases)
def test_sigmoid_stays_between_0_and_1(sigmoid: Activation, case: Case) -> None:
    output = sigmoid(case.tensor())
    assert ((output >= 0) & (output <= 1)).all()
    moderate = sigmoid(case.tensor().double().clamp(-30, 30))
    assert ((moderate > 0) & (moderate < 1)).all()


@clause("11.tanh.range")
@given(case=cases)
def test_tanh_stays_between_minus_1_and_1(tanh: Activation, case: Case) -> None:
    assert (tanh(case.tensor()).abs() <= 1).all()
    assert (tanh(case.tensor().double().clamp(-15, 15)).abs() < 1).all()


def steps(activation: Activation) -> Tensor:
    """The increments of the result in steps of 1/20 from -10 to 10."""
    return activation(torch.arange(-200, 201, dtype=torch.float64) / 20).diff()


@clause("11.activation.monotone")
def test_relu_is_0_for_negative_inputs_and_increasing_above(relu: Activation) -> None:
    grows = steps(relu)
    assert_equal(grows[:200], torch.zeros(200, dtype=torch.float64))
    assert (grows[200:] > 0).all()


@clause("11.activation.monotone")
def test_leaky_relu_is_strictly_increasing(leaky_relu: Activation) -> None:
    assert (steps(leaky_relu) > 0).all()


@clause("11.activation.monotone")
def test_sigmoid_is_increasing(sigmoid: Activation) -> None:
    assert (steps(sigmoid) > 0).all()


@clause("11.activation.monotone")
def test_tanh_is_increasing(tanh: Activation) -> None:
    assert (steps(tanh) > 0).all()


@clause("11.relu.integers")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8], ids=str)
def test_relu_of_integers_keeps_the_dtype(relu: Activation, dtype: torch.dtype) -> None:
    x = torch.tensor([2, -1, 0, 7]).to(dtype)  # of uint8, -1 is 255
    assert_equal(relu(x), torch.tensor([max(0, number) for number in x.tolist()], dtype=dtype))


@clause("11.sigmoid.integers")
def test_sigmoid_of_integers_has_the_default_dtype(sigmoid: Activation) -> None:
    expected = [0.2689414213699951, 0.5, 0.8807970779778823]
    output = sigmoid(torch.tensor([-1, 0, 2]))
    assert output.dtype == torch.get_default_dtype()
    assert_close(output, expected, relative(expected))


@clause("11.tanh.integers")
def test_tanh_of_integers_has_the_default_dtype(tanh: Activation) -> None:
    expected = [-0.7615941559557649, 0.0, 0.9640275800758169]
    output = tanh(torch.tensor([-1, 0, 2]))
    assert output.dtype == torch.get_default_dtype()
    assert_close(output, expected, relative(expected))


NOT_FINITE = [-torch.inf, torch.inf, torch.nan]


@clause("11.activation.nonfinite")
@given(dtype=dtypes())
def test_relu_of_nan_and_inf(relu: Activation, dtype: torch.dtype) -> None:
    assert_equal(relu(torch.tensor(NOT_FINITE, dtype=dtype)), [0, torch.inf, torch.nan])


@clause("11.activation.nonfinite")
@given(dtype=dtypes())
def test_leaky_relu_of_nan_and_inf(leaky_relu: Activation, dtype: torch.dtype) -> None:
    assert_equal(leaky_relu(torch.tensor(NOT_FINITE, dtype=dtype)), NOT_FINITE)


@clause("11.activation.nonfinite")
@given(dtype=dtypes())
def test_sigmoid_of_nan_and_inf(sigmoid: Activation, dtype: torch.dtype) -> None:
    assert_equal(sigmoid(torch.tensor(NOT_FINITE, dtype=dtype)), [0, 1, torch.nan])


@clause("11.activation.nonfinite")
@given(dtype=dtypes())
def test_tanh_of_nan_and_inf(tanh: Activation, dtype: torch.dtype) -> None:
    assert_equal(tanh(torch.tensor(NOT_FINITE, dtype=dtype)), [-1, 1, torch.nan])


@clause("11.relu.inplace")
@given(case=cases)
def test_relu_in_place_writes_into_the_input(relu: Activation, case: Case) -> None:
    assert_written(lambda x: relu(x, inplace=True), relu, case)


@clause("11.leaky_relu.inplace")
@given(case=cases)
def test_leaky_relu_in_place_writes_into_the_input(leaky_relu: Activation, case: Case) -> None:
    assert_written(lambda x: leaky_relu(x, 0.25, inplace=True), lambda x: leaky_relu(x, 0.25), case)


def assert_written(in_place: Activation, activation: Activation, case: Case) -> None:
    """Assert that the result equals that of the other function, in the memory of the input, with the same gradient."""
    __tracebackhide__ = True
    x, expected = case.tensor(), activation(case.tensor())
    output = in_place(x)
    assert_equal(output, expected)
    assert_equal(x, expected, "the input afterwards")
    assert output.data_ptr() == x.data_ptr()
    of = [case.tensor().requires_grad_() for _ in range(2)]
    gradients = [torch.autograd.grad(f(1 * x).sum(), x)[0] for f, x in zip((in_place, activation), of, strict=True)]
    assert_equal(*gradients, "the gradient of the input")  # pyright: ignore[reportCallIssue]


# The properties of softmax


@dataclass(frozen=True)
class SoftmaxCase:
    """Integer logits with exact differences, and a dimension."""

    shape: tuple[int, ...]
    dim: int
    layout: int
    dtype: torch.dtype
    seed: int

    @property
    def count(self) -> int:
        """The number of elements of a distribution."""
        return self.shape[self.dim] if self.shape else 1

    def tensor(self) -> Tensor:
        return laid_out(whole(*self.shape, seed=self.seed, dtype=self.dtype, largest=10), self.layout)


@st.composite
def softmax_cases(draw: st.DrawFn) -> SoftmaxCase:
    shape = draw(st.sampled_from([(5,), (2, 3), (4, 1, 3), (2, 3, 2, 3), (), (1,), (0, 3), (40,)]))
    dims = max(1, len(shape))
    return SoftmaxCase(shape, draw(st.integers(-dims, dims - 1)), draw(layouts), draw(dtypes()), draw(seeds))


def along(x: Tensor, dim: int, of_row: Callable[[list[float]], list[float]]) -> Tensor:
    """`of_row` applied to each row of numbers along a dimension, in float64."""
    if x.dim() == 0 or x.numel() == 0:
        return torch.tensor(of_row([x.item()])[0] if x.dim() == 0 else [], dtype=torch.float64).reshape(x.shape)
    rows = x.movedim(dim, -1)
    made = [of_row(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
    return torch.tensor(made, dtype=torch.float64).reshape(rows.shape).movedim(-1, dim)


def shares(row: Sequence[float]) -> list[float]:
    exponentials = [math.exp(number - max(row)) for number in row]
    return [exponential / math.fsum(exponentials) for exponential in exponentials]


def logarithms_of_shares(row: Sequence[float]) -> list[float]:
    log_of_sum = math.log(math.fsum(math.exp(number - max(row)) for number in row))
    return [number - max(row) - log_of_sum for number in row]


@clause("11.sigmoid.definition")
@pytest.mark.level("tutorial")
def test_sigmoid_of_0_is_a_half(sigmoid: Activation) -> None:
    assert_equal(sigmoid(torch.zeros(2, 2)), [[0.5, 0.5], [0.5, 0.5]])


@clause("11.softmax.definition")
@pytest.mark.level("tutorial")
def test_softmax_of_equal_logits_is_uniform(softmax: Activation) -> None:
    assert_equal(softmax(torch.zeros(2, 4), dim=1), [[0.25] * 4] * 2)


@clause("11.softmax.definition")
@pytest.mark.level("tutorial")
def test_softmax_is_proportional_to_exp(softmax: Activation) -> None:
    scores = torch.tensor([[0.0, math.log(3)]])
    # the logarithm is rounded once, each exponential, their sum and the quotient once
    assert_close(softmax(scores, dim=1), [[0.25, 0.75]], rounding(torch.float32, 5, 1.1))


@clause("11.softmax.definition", "11.softmax.dtypes")
@given(case=softmax_cases())
def test_softmax_equals_exp_over_sum_of_exp(softmax: Activation, case: SoftmaxCase) -> None:
    x = case.tensor()
    expected = along(x, case.dim, shares)
    # the exponentials, their sum, and the quotient
    assert_close(softmax(x, case.dim), expected.to(case.dtype), relative(expected, case.dtype, case.count + 3))
    assert_equal(x, case.tensor(), "the input afterwards")


@clause("11.log_softmax.definition", "11.softmax.dtypes")
@given(case=softmax_cases())
def test_log_softmax_equals_logit_minus_log_sum_exp(log_softmax: Activation, case: SoftmaxCase) -> None:
    x = case.tensor()
    expected = along(x, case.dim, logarithms_of_shares)
    # the sum of exponentials is off by count + 1 roundings, so its logarithm by as many of 1; and the difference
    tolerance = rounding(case.dtype, case.count + 3, expected.abs().clamp(min=1))
    assert_close(log_softmax(x, case.dim), expected.to(case.dtype), tolerance)
    assert_equal(x, case.tensor(), "the input afterwards")


@clause("11.softmax.sums_to_1")
@given(seed=seeds, dtype=dtypes(), scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_softmax_sums_to_1(softmax: Activation, seed: int, dtype: torch.dtype, scale: float) -> None:
    output = softmax((scale * normal(3, 10, seed=seed)).to(dtype), 1)
    assert ((output >= 0) & (output <= 1)).all()
    ones = torch.ones(3, dtype=torch.float64)
    assert_close(output.double().sum(1), ones, rounding(dtype, 11))  # the sum of 10, and the quotients


@clause("11.log_softmax.logarithm")
@given(case=softmax_cases())
def test_log_softmax_is_the_logarithm_of_softmax(
    log_softmax: Activation, softmax: Activation, case: SoftmaxCase
) -> None:
    x = case.tensor().double()
    expected = softmax(x, case.dim).log()
    tolerance = rounding(torch.float64, 2 * case.count + 6, expected.abs().clamp(min=1))
    assert_close(log_softmax(x, case.dim), expected, tolerance)


@clause("11.softmax.shift")
@given(case=softmax_cases(), shift=st.sampled_from([-10000, -7, 1, 10000]))
def test_softmax_is_invariant_to_a_shift(softmax: Activation, case: SoftmaxCase, shift: int) -> None:
    x = case.tensor().float()
    expected = softmax(x, case.dim)
    tolerance = relative(expected, torch.float32, 2 * case.count + 6)
    assert_close(softmax(x + shift, case.dim), expected, tolerance, f"softmax of numbers larger by {shift}")


@clause("11.log_softmax.shift")
@given(case=softmax_cases(), shift=st.sampled_from([-10000, -7, 1, 10000]))
def test_log_softmax_is_invariant_to_a_shift(log_softmax: Activation, case: SoftmaxCase, shift: int) -> None:
    x = case.tensor().float()
    expected = log_softmax(x, case.dim)
    tolerance = rounding(torch.float32, 2 * case.count + 6, expected.abs().clamp(min=1))
    assert_close(log_softmax(x + shift, case.dim), expected, tolerance, f"log_softmax of numbers larger by {shift}")


@clause("11.softmax.monotone")
@given(seed=seeds, at=st.integers(0, 4), up=st.integers(1, 5))
def test_softmax_share_of_a_larger_logit_reduces_the_others(softmax: Activation, seed: int, at: int, up: int) -> None:
    x = whole(5, seed=seed)
    larger = x.clone()
    larger[at] += up
    gain = softmax(larger, 0) - softmax(x, 0)
    assert gain[at] > 0
    assert (gain[torch.arange(5) != at] < 0).all()


@clause("11.softmax.stable")
@given(dtype=dtypes())
def test_softmax_does_not_overflow(softmax: Activation, dtype: torch.dtype) -> None:
    x = torch.tensor([[1e4, 0, -1e4, 0], [-1e4, -1e4, -1e4, -1e4]], dtype=dtype).requires_grad_()
    output = softmax(x, 1)
    assert_equal(output, [[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    (of_x,) = torch.autograd.grad(output[0, 1], x)
    assert_equal(of_x, torch.zeros_like(x), "the gradient of a share that is 0")


@clause("11.log_softmax.stable")
@given(dtype=dtypes())
def test_log_softmax_neither_overflows_nor_loses_small_probabilities(
    log_softmax: Activation, dtype: torch.dtype
) -> None:
    x = torch.tensor([[1e4, 0, -1e4], [-1e4, -2e4, -2e4]], dtype=dtype).requires_grad_()
    output = log_softmax(x, 1)
    assert_equal(output, (x - x[:, :1]).detach())
    (of_x,) = torch.autograd.grad(output[0, 1], x)
    assert_equal(of_x, [[-1, 1, 0], [0, 0, 0]], "the gradient")


@clause("11.softmax.nonfinite")
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, -torch.inf, 0.0], [0.5, 0.0, 0.5]),
        ([-torch.inf, -torch.inf, -torch.inf], [torch.nan] * 3),
        ([torch.inf, 0.0, 0.0], [torch.nan] * 3),
        ([torch.nan, 0.0, 0.0], [torch.nan] * 3),
    ],
    ids=["minus infinity has no share", "nothing is shared out", "infinity", "not a number"],
)
def test_softmax_of_nan_and_inf(softmax: Activation, row: list[float], expected: list[float]) -> None:
    assert_equal(softmax(torch.tensor([row, [3.0, -torch.inf, -torch.inf]]), 1), [expected, [1.0, 0.0, 0.0]])


@clause("11.softmax.nonfinite")
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, -torch.inf, -torch.inf], [0.0, -torch.inf, -torch.inf]),
        ([-torch.inf, -torch.inf, -torch.inf], [torch.nan] * 3),
        ([torch.nan, 0.0, 0.0], [torch.nan] * 3),
    ],
    ids=["minus infinity stays it", "nothing is shared out", "not a number"],
)
def test_log_softmax_of_nan_and_inf(log_softmax: Activation, row: list[float], expected: list[float]) -> None:
    other = [3.0, -torch.inf, -torch.inf]
    assert_equal(log_softmax(torch.tensor([row, other]), 1), [expected, [0.0, -torch.inf, -torch.inf]])


@clause("11.softmax.dtype")
@pytest.mark.parametrize("of", [torch.float16, torch.int64], ids=str)
def test_softmax_with_dtype_converts_the_input_first(softmax: Activation, of: torch.dtype) -> None:
    x = torch.tensor([1, -2, 3], dtype=of)
    assert_equal(softmax(x, 0, dtype=torch.float64), softmax(x.double(), 0))


@clause("11.softmax.dtype")
@pytest.mark.parametrize("of", [torch.float16, torch.int64], ids=str)
def test_log_softmax_with_dtype_converts_the_input_first(log_softmax: Activation, of: torch.dtype) -> None:
    x = torch.tensor([1, -2, 3], dtype=of)
    assert_equal(log_softmax(x, 0, dtype=torch.float64), log_softmax(x.double(), 0))


IMPLICIT = pytest.mark.parametrize(("dims", "dim"), [(1, 0), (2, 1), (3, 0), (4, 1)])


@clause("11.softmax.no_dim")
@IMPLICIT
def test_softmax_without_a_dimension_warns_and_chooses(softmax: Activation, dims: int, dim: int) -> None:
    x = whole(*[2, 3, 2, 3][:dims], seed=0)
    with pytest.warns(UserWarning, match="dim"):
        output = softmax(x)
    assert_equal(output, softmax(x, dim))


@clause("11.softmax.no_dim")
@IMPLICIT
def test_log_softmax_without_a_dimension_warns_and_chooses(log_softmax: Activation, dims: int, dim: int) -> None:
    x = whole(*[2, 3, 2, 3][:dims], seed=0)
    with pytest.warns(UserWarning, match="dim"):
        output = log_softmax(x)
    assert_equal(output, log_softmax(x, dim))


# The gradients


@clause("11.relu.gradients")
@given(dtype=dtypes())
def test_relu_gradient_is_0_for_inputs_up_to_0(relu: Activation, dtype: torch.dtype) -> None:
    x = torch.tensor([-1, -torch.inf, 0, 0, 2, torch.inf, 1e-6], dtype=dtype).requires_grad_()
    upstream = torch.tensor([5, torch.inf, 5, torch.nan, 5, 5, 7], dtype=dtype)
    assert_equal(torch.autograd.grad(relu(x), x, upstream)[0], [0, 0, 0, 0, 5, 5, 7], "the gradient")


@clause("11.leaky_relu.gradients")
@given(dtype=dtypes(), slope=st.sampled_from([0.25, 0.0, 1.0, 2, -0.5]))
def test_the_gradient_of_leaky_relu_is_the_slope_up_to_0(
    leaky_relu: Activation, dtype: torch.dtype, slope: float
) -> None:
    x = torch.tensor([-1, -1e4, 0, 2, 1e4], dtype=dtype).requires_grad_()
    upstream = torch.tensor([1, 2, 3, 4, 5], dtype=dtype)
    expected = [slope, 2 * slope, 3 * slope, 4, 5]
    assert_equal(torch.autograd.grad(leaky_relu(x, slope), x, upstream)[0], expected, "the gradient")


@clause("11.sigmoid.gradients", "11.sigmoid.stable")
@given(dtype=dtypes())
def test_the_gradient_of_sigmoid_is_a_quarter_at_0_and_0_far_away(sigmoid: Activation, dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, 0, 1e4], dtype=dtype).requires_grad_()
    assert_equal(torch.autograd.grad(sigmoid(x).sum(), x)[0], [0, 0.25, 0], "the gradient")


@clause("11.tanh.gradients", "11.tanh.stable")
@given(dtype=dtypes())
def test_the_gradient_of_tanh_is_1_at_0_and_0_far_away(tanh: Activation, dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, 0, 1e4], dtype=dtype).requires_grad_()
    assert_equal(torch.autograd.grad(tanh(x).sum(), x)[0], [0, 1, 0], "the gradient")


@clause("11.relu.gradients")
def test_relu_is_differentiable_twice(relu: Activation) -> None:
    # the square makes the second derivative nonzero
    assert_differentiable(lambda x: relu(x * x * x.sign()), spread(6, seed=0, gap=0.4).requires_grad_())


@clause("11.leaky_relu.gradients")
def test_leaky_relu_is_differentiable_twice(leaky_relu: Activation) -> None:
    assert_differentiable(lambda x: leaky_relu(x * x * x.sign(), 0.2), spread(6, seed=0, gap=0.4).requires_grad_())


@clause("11.sigmoid.gradients")
def test_sigmoid_is_differentiable_twice(sigmoid: Activation) -> None:
    assert_differentiable(sigmoid, spread(6, seed=0, gap=0.7).requires_grad_())


@clause("11.tanh.gradients")
def test_tanh_is_differentiable_twice(tanh: Activation) -> None:
    assert_differentiable(tanh, spread(6, seed=0, gap=0.4).requires_grad_())


@clause("11.softmax.gradients")
@pytest.mark.parametrize("dim", [0, 1])
def test_softmax_is_differentiable_twice(softmax: Activation, dim: int) -> None:
    assert_differentiable(lambda x: softmax(x, dim), spread(2, 3, seed=0, gap=0.4).requires_grad_())


@clause("11.log_softmax.gradients")
@pytest.mark.parametrize("dim", [0, 1])
def test_log_softmax_is_differentiable_twice(log_softmax: Activation, dim: int) -> None:
    assert_differentiable(lambda x: log_softmax(x, dim), spread(2, 3, seed=0, gap=0.4).requires_grad_())


@clause("11.relu.gradients", "11.leaky_relu.gradients", "11.sigmoid.gradients", "11.tanh.gradients")
@clause("11.softmax.gradients", "11.log_softmax.gradients")
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh", "softmax", "log_softmax"])
def test_torch_func_grad_equals_autograd(name: str) -> None:
    def curved(x: Tensor) -> Tensor:
        return getattr(reference, name)(x, *[0] * name.endswith("softmax")).square().sum()

    x = normal(5, 3, seed=0)
    found = torch.func.grad(curved)(x)
    assert_equal(found, torch.autograd.grad(curved(x.requires_grad_()), x)[0])


# The layers


def assert_layer(layer: nn.Module, function: Activation, printed: str, of_torch: nn.Module) -> None:
    """Assert that the layer computes the function in both modes, has no state, and has the documented repr."""
    __tracebackhide__ = True
    x = normal(2, 3, 4, seed=0)
    expected = function(x.clone())
    assert_equal(layer.train()(x.clone()), expected, "the result in training")
    assert_equal(layer.eval()(x.clone()), expected, "the result in evaluation")
    assert repr(layer) == printed
    assert not layer.state_dict()
    of_torch.load_state_dict(layer.state_dict())
    layer.load_state_dict(of_torch.state_dict())


@clause("11.relu.layer")
@pytest.mark.parametrize(("inplace", "printed"), [(False, "ReLU()"), (True, "ReLU(inplace=True)")])
def test_relu_as_a_layer(ReLU: Layer, relu: Activation, inplace: bool, printed: str) -> None:
    assert_layer(ReLU(inplace), relu, printed, nn.ReLU())


@clause("11.leaky_relu.layer")
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ((), "LeakyReLU(negative_slope=0.01)"),
        ((0.2, True), "LeakyReLU(negative_slope=0.2, inplace=True)"),
    ],
    ids=["of defaults", "of everything"],
)
def test_leaky_relu_as_a_layer(
    LeakyReLU: Layer, leaky_relu: Activation, arguments: tuple[Any, ...], printed: str
) -> None:
    assert_layer(LeakyReLU(*arguments), lambda x: leaky_relu(x, *arguments[:1]), printed, nn.LeakyReLU())


@clause("11.leaky_relu.layer", "11.leaky_relu.inplace")
def test_leaky_relu_as_a_layer_in_place(LeakyReLU: Layer) -> None:
    x = torch.tensor([-4.0, 2.0])
    assert_equal(LeakyReLU(0.25)(x), [-1, 2])
    assert_equal(x, [-4, 2], "the data after LeakyReLU(0.25)")
    LeakyReLU(0.25, inplace=True)(x)
    assert_equal(x, [-1, 2], "the data after LeakyReLU(0.25, inplace=True)")


@clause("11.sigmoid.layer")
def test_sigmoid_as_a_layer(Sigmoid: Layer, sigmoid: Activation) -> None:
    assert_layer(Sigmoid(), sigmoid, "Sigmoid()", nn.Sigmoid())


@clause("11.tanh.layer")
def test_tanh_as_a_layer(Tanh: Layer, tanh: Activation) -> None:
    assert_layer(Tanh(), tanh, "Tanh()", nn.Tanh())


@clause("11.softmax.layer")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_as_a_layer(Softmax: Layer, softmax: Activation, dim: int) -> None:
    assert_layer(Softmax(dim), lambda x: softmax(x, dim), f"Softmax(dim={dim})", nn.Softmax())


@clause("11.log_softmax.layer")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax_as_a_layer(LogSoftmax: Layer, log_softmax: Activation, dim: int) -> None:
    assert_layer(LogSoftmax(dim), lambda x: log_softmax(x, dim), f"LogSoftmax(dim={dim})", nn.LogSoftmax())


@clause("11.softmax.no_dim", "11.softmax.layer")
def test_a_layer_of_softmax_without_a_dimension_warns_when_it_is_called(Softmax: Layer) -> None:
    layer = Softmax()
    with pytest.warns(UserWarning, match="dim"):
        assert_equal(layer(torch.zeros(4, 2)), torch.full((4, 2), 0.5))


@clause("11.softmax.no_dim", "11.log_softmax.layer")
def test_a_layer_of_log_softmax_without_a_dimension_warns_when_it_is_called(LogSoftmax: Layer) -> None:
    layer = LogSoftmax()
    with pytest.warns(UserWarning, match="dim"):
        assert_equal(layer(torch.zeros(4, 1)), torch.zeros(4, 1))


# Rejected arguments


@clause("11.relu.rejects")
@pytest.mark.parametrize(
    ("input", "naming"),
    [
        pytest.param([1.0], "input|tensor", id="a list"),
        pytest.param(torch.tensor([True]), "input|bool", id="truth values"),
        pytest.param(torch.tensor([1j]), "input|complex", id="complex numbers"),
    ],
)
def test_relu_rejects(relu: Activation, input: Any, naming: str) -> None:
    with rejects(naming=naming):
        relu(input)


@clause("11.leaky_relu.rejects")
@pytest.mark.parametrize(
    ("input", "slope", "naming"),
    [
        pytest.param([1.0], 0.1, "input|tensor", id="a list"),
        pytest.param(torch.tensor([True]), 0.1, "input|bool", id="truth values"),
        pytest.param(torch.tensor([1]), 0.1, "input|int64|long", id="whole numbers"),
        pytest.param(torch.tensor([1j]), 0.1, "input|complex", id="complex numbers"),
        pytest.param(torch.tensor([1.0]), "small", "negative_slope", id="a slope in words"),
        pytest.param(torch.tensor([1.0]), None, "negative_slope", id="no slope"),
    ],
)
def test_leaky_relu_rejects(leaky_relu: Activation, input: Any, slope: Any, naming: str) -> None:
    with rejects(naming=naming):
        leaky_relu(input, slope)


@clause("11.relu.rejects")
def test_relu_rejects_inplace_on_a_parameter(relu: Activation) -> None:
    with rejects(naming="in-?place|leaf|requires.grad"):
        relu(torch.ones(3, requires_grad=True), inplace=True)


@clause("11.leaky_relu.rejects")
def test_leaky_relu_rejects_inplace_on_a_parameter(leaky_relu: Activation) -> None:
    with rejects(naming="in-?place|leaf|requires.grad"):
        leaky_relu(torch.ones(3, requires_grad=True), inplace=True)


DISTRIBUTIONS = pytest.mark.parametrize(
    ("shape", "dtype", "options", "naming"),
    [
        pytest.param((2, 3), torch.float32, {"dim": 2}, "dim", id="a dimension too many"),
        pytest.param((2, 3), torch.float32, {"dim": -3}, "dim", id="a dimension too few"),
        pytest.param((), torch.float32, {"dim": 1}, "dim", id="a second dimension of a number"),
        pytest.param((2, 3), torch.float32, {"dim": 1.0}, "dim", id="a dimension that is no integer"),
        pytest.param((2, 3), torch.float32, {"dim": "1"}, "dim", id="a dimension in words"),
        pytest.param((2, 3), torch.int64, {"dim": 1}, "input|int64|long", id="whole numbers"),
        pytest.param((2, 3), torch.bool, {"dim": 1}, "input|bool", id="truth values"),
        pytest.param(
            (2, 3), torch.float32, {"dim": 1, "dtype": torch.int64}, "dtype|int64|long", id="a result of integers"
        ),
        pytest.param((2, 3), torch.float32, {"dim": 1, "dtype": "float"}, "dtype", id="a dtype in words"),
    ],
)


@clause("11.softmax.rejects")
@DISTRIBUTIONS
def test_softmax_rejects(
    softmax: Activation, shape: Sequence[int], dtype: torch.dtype, options: dict[str, Any], naming: str
) -> None:
    with rejects(naming=naming):
        softmax(torch.ones(shape, dtype=dtype), **options)


@clause("11.log_softmax.rejects")
@DISTRIBUTIONS
def test_log_softmax_rejects(
    log_softmax: Activation, shape: Sequence[int], dtype: torch.dtype, options: dict[str, Any], naming: str
) -> None:
    with rejects(naming=naming):
        log_softmax(torch.ones(shape, dtype=dtype), **options)
