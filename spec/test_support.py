"""Tests of the assertion helpers: the results that they accept and reject, and their messages."""

import importlib
import inspect
import math
import random
import re
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import reference
from reference import definitions
from spec.report import recording
from spec.support import harness, oracles, own_work, patience, strategies
from spec.support.assertions import (
    EXACT,
    Tolerance,
    assert_close,
    assert_differentiable,
    assert_equal,
    assert_printed,
    rejects,
    rounding,
)
from spec.support.clauses import clause
from spec.support.diagnosis import Example
from spec.support.implementations import Component, load
from spec.support.optimizer_rules import PlainAdam
from spec.support.outcomes import NotOffered
from spec.support.reproduction import Trace, literal
from spec.support.run import current
from spec.support.samples import samples
from spec.support.strategies import given, laid_out, normal, spread, whole


def said(check: Callable[..., Any], *arguments: Any) -> str:
    """The message of a failed check."""
    with pytest.raises(pytest.fail.Exception) as failure:
        check(*arguments)
    return str(failure.value)


# assert_equal, assert_close, assert_printed


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([1.0, nan, inf, -inf, 0.0]), torch.tensor([1.0, nan, inf, -inf, -0.0])),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor(True), True),
        (torch.tensor(1 + 2j), 1 + 2j),
        (torch.ones(0, 3), torch.ones(0, 3)),
    ],
    ids=["what is not finite", "integers", "truth", "complex numbers", "nothing"],
)
def test_assert_close_accepts_equal_results(actual: Tensor, expected: Any) -> None:
    assert_equal(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected", "says"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "has dtype torch.float32, expected torch.float64"),
        (torch.ones(2), torch.ones(1, 2), "has shape [2], expected [1, 2]"),
        (torch.ones(2), [[1.0, 1.0]], "has shape [2], expected [1, 2]"),
        (1.0, 1.0, "must be a tensor, got float: 1.0"),
        (torch.tensor([1.0, nan]), [1.0, 2.0], "differs at index [1]"),
        (torch.tensor([1.0, 2.0]), [1.0, nan], "differs at index [1]"),
        (torch.tensor([inf]), [-inf], "differs at index [0]"),
        (torch.tensor([inf]), [1e30], "differs at index [0]"),
        (torch.tensor(2**53 + 1), torch.tensor(2**53), "differs in value"),
        (torch.tensor([1.0, 1 + 2**-23]), [1.0, 1.0], "tolerance  none: no step of this computation rounds"),
    ],
    ids=[
        *("dtype", "shape", "shape of a list", "a number", "NaN for 2", "2 for NaN", "the other infinity"),
        *("infinity for 1e30", "an integer that float64 rounds away", "the last bit"),
    ],
)
def test_assert_close_reports_differences(actual: Any, expected: Any, says: str) -> None:
    assert says in said(assert_equal, actual, expected)


def test_the_first_and_the_farthest_difference_are_named() -> None:
    actual = torch.tensor([[1.0, 2.5], [3.0, 9.0]])
    text = said(assert_close, actual, [[1.0, 2.0], [3.0, 4.0]], Tolerance(0.25, "a quarter"), "the sum")
    assert text.startswith("the sum differs at index [0, 1]\n  got        2.5\n  expected   2.0\n")
    assert "  tolerance  0.25: a quarter\n  2 of 4 numbers differ, most at index [1, 1]\n" in text


def test_the_farthest_difference_is_never_at_a_right_number() -> None:
    text = said(assert_close, torch.tensor([1.0, 2.5]), [1.0, 2.0], Tolerance(0.25, "a quarter"))
    assert "\n  1 of 2 numbers differs, most at index [1]\n" in text


@pytest.mark.parametrize(
    ("shape", "counts", "shows"), [((), False, False), ((1,), False, True), ((64,), True, True), ((65,), True, False)]
)
def test_a_message_shows_all_numbers_of_a_small_tensor(shape: tuple[int, ...], counts: bool, shows: bool) -> None:
    text = said(assert_equal, torch.ones(shape), torch.zeros(shape))
    assert ("numbers differ" in text) == counts
    assert ("got all of" in text) == ("expected all of" in text) == shows


class _Elsewhere(Tensor):
    """A tensor of a second device, which PyTorch does not compare with one of the CPU."""

    device = torch.device("meta")  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.equal:
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs)


def test_assert_close_accepts_equal_tensors_of_two_devices() -> None:
    assert_equal(torch.ones(2).as_subclass(_Elsewhere), [1.0, 1.0])


def test_assert_close_records_documented_values_for_the_report() -> None:
    recording.start(wanted=True)
    assert_equal(torch.tensor([1.5]), [1.5], "the sum")
    assert recording.finish() == [{"name": "the sum", "documented": "[1.5]", "measured": "[1.5]"}]


def test_the_tolerance_that_all_tests_share_cannot_change() -> None:
    with pytest.raises(FrozenInstanceError):
        EXACT.absolute = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_tolerance_may_differ_from_number_to_number() -> None:
    tolerance = Tolerance(torch.tensor([0.0, 1.0]), "as wide as it is")
    assert_close(torch.tensor([1.0, 3.0]), [1.0, 2.0], tolerance)
    assert "index [0]" in said(assert_close, torch.tensor([2.0, 3.0]), [1.0, 2.0], tolerance)


def test_a_tolerance_never_lets_an_infinity_or_a_nan_pass() -> None:
    wide = Tolerance(inf, "anything")
    assert "index [0]" in said(assert_close, torch.tensor([nan]), [1.0], wide)
    assert "index [0]" in said(assert_close, torch.tensor([inf]), [nan], wide)


@pytest.mark.parametrize(("number", "right"), [(0.66665, True), (0.66674, True), (0.6668, False), (0.6666, False)])
def test_assert_printed_accepts_half_a_unit_of_the_last_digit(number: float, right: bool) -> None:
    if right:
        assert_printed(torch.tensor(number, dtype=torch.float64), "0.6667")
    else:
        text = said(assert_printed, torch.tensor(number, dtype=torch.float64), "0.6667")
        assert "half a unit of the last of the 4 printed decimals" in text


@hypothesis.given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_no_order_of_adding_up_exceeds_the_tolerance_of_rounding(numbers: list[float], order: random.Random) -> None:
    order.shuffle(numbers)
    total = np.float32(0)
    for number in numbers:
        total += np.float32(number)
    tolerance = rounding(torch.float32, len(numbers), sum(map(abs, numbers)))
    assert_close(torch.tensor(total), torch.tensor(math.fsum(numbers), dtype=torch.float32), tolerance)


def test_rounding_tolerance_equals_the_formula() -> None:
    tolerance = rounding(torch.float16, 3, 8.0)
    assert tolerance.absolute == (3 + 1) * 2**-10 * 8.0
    assert tolerance.because == "4 roundings to float16 (eps 0.000977) of numbers of up to 8"
    assert EXACT.absolute == 0
    assert rounding(torch.float16, 3).absolute == (3 + 1) * 2**-10


def test_rounding_tolerance_of_a_tensor_of_magnitudes_has_a_number_for_each_element() -> None:
    tolerance = rounding(torch.float16, 3, torch.tensor([2.0, 8.0]))
    assert_equal(tolerance.absolute, torch.tensor([2.0, 8.0], dtype=torch.float64) * (3 + 1) * 2**-10)
    assert tolerance.because.endswith(" of numbers of up to 8")
    assert rounding(torch.float16, 3, torch.ones(0)).because.endswith(" of numbers of none")


# rejects


def test_rejects_accepts_an_error_that_names_the_argument() -> None:
    with rejects(naming="stride"):
        raise ValueError("Stride must be positive")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ValueError("it is wrong"),
            "must name /stride/, so that one knows what to fix\n  got ValueError: it is wrong",
        ),
        (
            TypeError("conv2d() got an unexpected keyword argument 'stride'"),
            "the call itself failed, so nothing was rejected: the signature does not take these arguments\n"
            "  got TypeError: conv2d() got an unexpected keyword argument 'stride'",
        ),
        (
            TypeError("Conv2d.__init__() takes from 2 to 3 positional arguments but 4 (stride) were given"),
            "the signature does not take these arguments",
        ),
        (TypeError("conv2d() missing 1 required positional argument: 'stride'"), "the signature does not take"),
        (TypeError("conv2d() got multiple values for argument 'stride'"), "the signature does not take"),
        (AttributeError("stride"), "must be rejected by one of ValueError, TypeError, RuntimeError"),
        (None, "was accepted, but must be rejected with an error that names /stride/"),
    ],
    ids=["another name", "no such parameter", "too many", "too few", "twice", "an accident", "no error"],
)
def test_a_missing_rejection_is_reported(error: Exception | None, says: str) -> None:
    def happens() -> None:
        with rejects(naming="stride"):
            if error is not None:
                raise error

    assert says in said(happens)


@clause("00.errors.component")
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda: definitions.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), stride=0), id="conv2d"),
        pytest.param(lambda: reference.BatchNorm2d(3)(torch.ones(1, 3, 1, 1)), id="a layer that calls a function"),
        pytest.param(lambda: reference.LSTM(2, 2)(torch.ones(1)), id="a method of a base class"),
        pytest.param(lambda: reference.SGD([torch.ones(1)], lr=-1), id="an optimizer"),
        pytest.param(lambda: reference.Resize(0)(torch.ones(1, 2, 2)), id="a transform"),
        pytest.param(lambda: reference.Sequential(3), id="PyTorch's base class"),
        pytest.param(lambda: reference.relu(torch.ones(1, requires_grad=True), inplace=True), id="autograd"),
    ],
)
def test_an_error_of_the_reference_begins_with_the_component_that_was_called(wrong: Callable[[], Any]) -> None:
    with rejects(naming="."):
        wrong()


@clause("00.errors.component")
@pytest.mark.parametrize(
    ("called", "wrong", "got"),
    [
        (
            "scaled_dot_product_attention",
            lambda: reference.scaled_dot_product_attention(*3 * [torch.ones(2, 4)], dropout_p=2),
            "dropout: p must be a probability",
        ),
        (
            "TransformerEncoderLayer",
            lambda: reference.TransformerEncoderLayer(4, 2, dropout=2),
            "Dropout: p must be a probability",
        ),
    ],
)
def test_an_error_that_begins_with_a_part_of_a_component_is_a_failure(
    called: str, wrong: Callable[[], Any], got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reference.nn.attention.check_probability", lambda name, value: value)  # the check is missing

    def happens() -> None:
        with rejects(naming="probability"):
            wrong()

    assert f"must begin with the name of what was called, {called}\n  got ValueError: {got}" in said(happens)


def test_rejects_accepts_a_type_error_of_the_signature() -> None:
    def without_parameters() -> None: ...

    with rejects(naming=None):
        without_parameters(1)  # pyright: ignore[reportCallIssue]
    assert "was accepted, but must be rejected" in said(lambda: _accepted(without_parameters))


def _accepted(function: Callable[[], None]) -> None:
    with rejects(naming=None):
        function()


@pytest.mark.parametrize("naming", ["stride", None])
def test_code_that_is_not_written_rejects_nothing(naming: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current(), "file", __file__)  # the implementation under test
    with pytest.raises(NotImplementedError, match="later"), rejects(naming):
        raise NotImplementedError("stride: later")


def test_a_signature_without_the_parameter_rejects_no_value_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current(), "namespace", SimpleNamespace(conv2d=lambda input, weight: None))
    error = TypeError("conv2d() got an unexpected keyword argument 'stride'")
    with pytest.raises(TypeError, match="unexpected keyword"), rejects(naming="stride"):
        raise error
    with rejects(naming=None):
        raise error


# assert_differentiable


class _Wrong(torch.autograd.Function):
    """x³, with a derivative that is right once, twice, or not at all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, orders: int) -> Tensor:
        ctx.orders = orders
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.orders == 0:
            return grads[0] * 2 * x, None
        return grads[0] * 3 * (x**2 if ctx.orders == 2 else (x.detach() * x)), None


@pytest.mark.parametrize(("orders", "says"), [(0, "the gradient is not"), (1, "the second gradient is not"), (2, None)])
def test_assert_differentiable_detects_wrong_derivatives(orders: int, says: str | None) -> None:
    def cube(x: Tensor) -> Tensor:
        return _Wrong.apply(x, orders)

    x = spread(3, seed=0).requires_grad_()
    if says is None:
        assert_differentiable(cube, x)
    else:
        assert says in said(assert_differentiable, cube, x)
    if orders == 1:
        assert_differentiable(cube, x, twice=False)


@pytest.mark.parametrize(("profile", "fast"), [("default", True), ("thorough", False)])
def test_the_thorough_profile_compares_every_derivative(
    profile: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    settings = SimpleNamespace(get_current_profile_name=lambda: profile)
    monkeypatch.setattr("spec.support.assertions.hypothesis", SimpleNamespace(settings=settings))
    monkeypatch.setattr(torch.autograd, "gradcheck", lambda *_, fast_mode: modes.append(fast_mode))
    assert_differentiable(torch.sin, spread(2, seed=0).requires_grad_())
    assert set(modes) == {fast}


# Code to paste


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 1, 2)], ids=str)
def test_a_tensor_as_text_is_the_tensor_to_the_last_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape).mul(3).to(dtype)
    again = eval(literal(value), {"torch": torch})
    assert_equal(again, value)


def test_tensor_text_keeps_infinities_layout_and_requires_grad() -> None:
    value = torch.tensor([[nan, inf], [-inf, 0.1]]).requires_grad_()
    again = eval(literal(value), {"torch": torch, "inf": inf, "nan": nan})
    assert_equal(again, value.detach())
    assert again.requires_grad
    image = torch.randn(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    assert eval(literal(image), {"torch": torch}).is_contiguous(memory_format=torch.channels_last)


def on_trial(name: str, trace: Trace) -> Component:
    return load("reference").component(name, trace)


def test_reproductions_show_layers_with_arguments_and_parameters() -> None:
    trace = Trace()
    layer = on_trial("Linear", trace)(2, 1)
    output = layer(torch.tensor([1.0, 2.0])).detach()
    shown: dict[str, Any] = {}
    exec(trace.text().replace("print(", "result = ("), shown)
    assert "from reference import Linear" in trace.text()
    assert_equal(shown["result"].detach(), output)


def test_reproductions_show_argument_values_before_the_call() -> None:
    trace = Trace()
    on_trial("relu", trace)(torch.tensor([-1.0]), inplace=True)
    assert "input = torch.tensor([-1.0], dtype=torch.float32)\nprint(relu(input, inplace=True))" in trace.text()


def test_calls_inside_a_layer_are_not_shown() -> None:
    trace = Trace()
    sequential, linear = on_trial("Sequential", trace), on_trial("Linear", trace)
    network = sequential(linear(2, 3), linear(3, 1))
    network(torch.ones(2))
    assert "layer_2 = Linear(2, 3)\n" in trace.text()
    assert "layer = Sequential(layer_2, layer_3)\n" in trace.text()
    assert trace.text().count("print(") == 1


def test_only_the_last_calls_are_shown() -> None:
    trace = Trace()
    relu = on_trial("relu", trace)
    for number in range(9):
        relu(torch.tensor([float(number)]))
    assert trace.text().count("print(") == 4
    assert "8.0" in trace.text()
    trace.clear()
    assert trace.text() == ""


# Strategies


def test_random_helpers_are_reproducible_and_within_range() -> None:
    assert torch.equal(normal(5, seed=3), normal(5, seed=3))
    assert not torch.equal(normal(5, seed=3), normal(5, seed=4))
    integers = whole(500, seed=0, largest=2)
    assert set(integers.tolist()) == {-2, -1, 0, 1, 2}
    assert set(whole(500, seed=0).tolist()) == {-3, -2, -1, 0, 1, 2, 3}
    numbers = spread(4, 5, seed=0).flatten().sort().values
    assert_close(numbers, torch.arange(-9.5, 10).double() / 10, rounding(torch.float64, 3))
    assert spread(5, seed=0, gap=0.5).sort().values.tolist() == [-0.75, -0.25, 0.25, 0.75, 1.25]


@pytest.mark.parametrize("layout", range(4))
def test_laid_out_tensors_hold_the_same_values(layout: int) -> None:
    x = torch.randn(2, 3, 4, 5)
    assert_equal(laid_out(x, layout), x)
    assert laid_out(x, layout).is_contiguous() == (layout == 0)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((), [(), (), (), ()]),
        ((5,), [(1,), (1,), (2,), (1,)]),
        ((3, 4), [(4, 1), (1, 3), (8, 2), (4, 1)]),
        ((2, 3, 4, 5), [(60, 20, 5, 1), (60, 20, 1, 4), (120, 40, 10, 2), (60, 1, 15, 3)]),
    ],
    ids=str,
)
def test_the_strides_of_each_layout(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> None:
    assert [laid_out(torch.randn(shape), layout).stride() for layout in range(4)] == strides


def test_seed_all_seeds_an_accelerator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    strategies.seed_all(7)
    assert seeded == [torch.initial_seed()] == [7]


# Properties


FEW = hypothesis.settings(max_examples=20, phases=[hypothesis.Phase.generate])
"""The settings of properties that only show what `given` does with their examples."""


def outcome(of: Callable[..., None], *arguments: Any) -> str:
    """The name of the error of a property; pytest would count a test that is not offered as one without a verdict."""
    try:
        of(*arguments)
    except (Exception, NotOffered) as error:
        return type(error).__name__
    return "passed"


def test_the_layouts_of_a_property_are_those_of_laid_out() -> None:
    found: set[int] = set()

    @given(layout=strategies.layouts)
    @FEW
    def judge(layout: int) -> None:
        found.add(layout)

    judge()
    assert found == {0, 1, 2, 3}


def test_a_property_that_no_example_can_judge_does_not_pass() -> None:
    @given(x=st.just(0))
    @FEW
    def judge(offered: bool, x: int) -> None:
        if not offered:
            raise NotOffered("no parameter x")
        hypothesis.reject()

    assert outcome(judge, False) == "NotOffered"
    assert outcome(judge, True) == "Unsatisfiable"


def test_examples_that_one_implementation_does_not_offer_judge_the_next_one() -> None:
    @given(x=st.integers(0, 9))
    @FEW
    def judge(largest: int, wrong: int, x: int) -> None:
        if x > largest:
            raise NotOffered("no parameter x")
        assert x < wrong

    assert outcome(judge, 9, 4) == "AssertionError"
    assert outcome(judge, 4, 9) == "passed"
    assert outcome(judge, 9, 7) == "AssertionError"
    assert outcome(judge, 5, 3) == "AssertionError"  # in spite of the examples that are not offered


def test_stored_examples_judge_the_next_implementation() -> None:
    calls: list[int] = []

    @given(x=st.integers(0, 1000))
    @FEW
    def judge(wrong: int, x: int) -> None:
        calls.append(x)
        assert len(calls) != wrong, "only once"

    judge(0)
    first = len(calls)
    judge(0)
    assert calls[first:] == calls[:first]
    assert outcome(judge, len(calls) + 5) == "AssertionError"  # and no example of the search fails again
    del calls[:]
    judge(0)
    assert len(calls) == first


def test_a_failure_that_does_not_occur_again_is_a_failure() -> None:
    calls: list[float] = []

    @given(x=st.integers(0, 1000))
    @FEW
    def judge(who: str, x: int) -> None:
        calls.append(torch.rand(1).item())
        assert len(calls) % 2 == 0

    assert outcome(judge, "mine") != "passed"
    assert calls[0] == calls[1]  # the example that is shown has the random numbers of the example that failed


def test_the_examples_of_a_file_are_drawn_anew_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    @given(x=st.integers(0, 1000))
    @FEW
    def judge(who: str, x: int) -> None:
        calls.append(x)

    judge("reference")
    reference_calls = len(calls)
    monkeypatch.setattr(current(), "file", "mine.py")
    judge("mine")
    assert len(calls) == 3 * reference_calls
    monkeypatch.setattr(strategies, "BUDGET", -1.0)
    judge("slow")
    assert len(calls) == 4 * reference_calls + 1


def test_a_failure_that_takes_all_the_time_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    @given(x=st.integers(0, 1000))
    @FEW
    def judge(wrong: bool, x: int) -> None:
        calls.append(x)
        if wrong and x > 0:
            monkeypatch.setattr(strategies, "BUDGET", -1.0)
            pytest.fail(f"wrong at {x}")

    monkeypatch.setattr(current(), "file", "mine.py")
    assert said(judge, True).startswith("wrong at ")
    del calls[:]
    judge(False)
    assert calls == [0]  # the first example is judged, though no time is left


def test_only_examples_that_are_drawn_at_random_depend_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int) -> list[int]:
        calls: list[int] = []

        @given(x=st.integers(0, 10**6))
        @FEW
        def judge(who: str, x: int) -> None:
            calls.append(x)

        monkeypatch.setattr(current(), "seed", seed)
        judge("reference")
        return calls

    assert drawn(1) == drawn(1)
    assert (drawn(1) == drawn(2)) == hypothesis.settings().derandomize


def test_the_calls_of_the_failed_example_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current(), "trace", trace := Trace())
    relu = on_trial("relu", trace)

    @given(x=st.integers(0, 1000))
    @FEW
    def judge(relu: Any, x: int) -> None:
        relu(torch.tensor(float(x)))
        raise ValueError

    assert outcome(judge, relu) == "ValueError"
    assert trace.text().count("print(") == 1


def test_only_the_calls_of_the_last_drawn_example_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current(), "trace", trace := Trace())
    relu = on_trial("relu", trace)

    @given(data=st.data())
    @FEW
    def judge(relu: Any, data: st.DataObject) -> None:
        relu(torch.tensor(data.draw(st.floats(0, 1))))

    judge(relu)
    assert trace.text().count("print(") == 1


def test_the_calls_that_are_recorded_for_a_crash_are_those_of_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace()
    noted: list[str] = []
    monkeypatch.setattr(current(), "trace", trace)
    monkeypatch.setattr(trace, "noted", noted.append)
    relu = on_trial("relu", trace)

    @given(x=st.integers(0, 1000))
    @FEW
    def judge(relu: Any, wrong: bool, x: int) -> None:
        relu(torch.tensor(float(x)))
        assert not wrong

    assert outcome(judge, relu, False) == "passed"
    assert outcome(judge, relu, True) == "AssertionError"
    assert {text.count("print(") for text in noted} == {1}


def test_positional_strategies_are_those_of_the_last_parameters() -> None:
    found: list[tuple[str, int, int]] = []

    @given(st.just(1), st.just(2))
    @FEW
    def judge(who: str, x: int, y: int) -> None:
        found.append((who, x, y))

    judge("first")
    judge("second")
    assert set(found) == {("first", 1, 2), ("second", 1, 2)}


@pytest.mark.slow
def test_every_implementation_gets_the_same_examples() -> None:
    seen: dict[str, list[Any]] = {"first": [], "second": []}

    @given(x=st.integers(), items=st.lists(st.integers(), max_size=3))
    def judge(who: str, x: int, items: list[int]) -> None:
        seen[who].append((x, tuple(items)))
        items.clear()  # changing an example must not affect the other test

    judge("first")
    judge("second")
    assert seen["first"] == seen["second"]
    assert len(seen["first"]) == hypothesis.settings.default.max_examples  # pyright: ignore[reportOptionalMemberAccess]
    assert len(set(seen["first"])) > 4  # Hypothesis repeats some of 25 examples
    assert any(items for _, items in seen["first"])


def test_hypothesis_tests_keep_fixtures_and_location() -> None:
    def judge(conv2d: Any, x: int) -> None: ...

    collected = given(x=st.integers())(judge)
    assert [*inspect.signature(collected).parameters] == ["conv2d"]
    assert inspect.unwrap(collected) is judge


@pytest.mark.parametrize("before", ["nobody", "right"])
@pytest.mark.slow
def test_the_simplest_failure_is_shown_with_the_calls_of_that_example(before: str) -> None:
    @given(x=st.integers(0, 1000))
    def judge(conv2d: Callable[[int], int], x: int) -> None:
        assert conv2d(x) == x, f"wrong at {x}"

    def component(function: Callable[[int], int]) -> Component:
        return Component("conv2d", function, "from mine import conv2d", current().trace)

    if before == "right":
        judge(component(lambda x: x))
    with pytest.raises(AssertionError, match="wrong at 7"):
        judge(component(lambda x: x if x < 7 else -x))
    assert current().trace.text().endswith("from mine import conv2d\nprint(conv2d(7))")


@pytest.mark.slow
def test_a_flaky_failure_is_a_failure() -> None:
    calls = []

    @given(x=st.integers(0, 1000))
    def judge(who: str, x: int) -> None:
        calls.append(x)
        assert who == "first" or len(calls) != hypothesis.settings.default.max_examples + 5, "only once"  # pyright: ignore[reportOptionalMemberAccess]

    judge(who="first")
    with pytest.raises(AssertionError, match="only once"):
        judge(who="second")


@pytest.mark.slow
def test_hypothesis_tests_with_data_draws_are_searched_again() -> None:
    drawn: list[tuple[str, int]] = []

    @given(data=st.data())
    def judge(who: str, data: st.DataObject) -> None:
        drawn.append((who, data.draw(st.integers(0, 9))))

    judge("first")
    judge("second")
    assert {number for who, number in drawn if who == "second"} == set(range(10))


# The formulas


LAYERS = {
    oracles.recurrent: (reference.LSTM, reference.RNN),
    oracles.multihead_attention: (reference.MultiheadAttention, reference.MultiheadAttention.forward),
    oracles.encoder_layer: (reference.TransformerEncoderLayer,),
}
"""The formulas of layers with the layers that have their options."""


def test_an_option_of_a_formula_has_the_default_of_the_component() -> None:
    formulas = [value for value in vars(oracles).values() if getattr(value, "__module__", None) == oracles.__name__]
    checked: set[tuple[str, str]] = set()
    for formula in formulas:
        own = {n: p.default for n, p in inspect.signature(formula).parameters.items() if p.default is not p.empty}
        for component in LAYERS.get(formula, (getattr(reference, formula.__name__, print),)):
            parameters = inspect.signature(component).parameters
            for name in own.keys() & parameters.keys():
                default = parameters[name].default
                assert own[name] == ("relu" if default is reference.relu else default), f"{formula.__name__}: {name}"
                checked.add((formula.__name__, name))
    assert {("recurrent", "proj_size"), ("encoder_layer", "norm_first"), ("nll_loss", "ignore_index")} < checked
    assert len(checked) > 45


@pytest.mark.parametrize(("formula", "derivative"), [(oracles.relu, 0.0), (oracles.leaky_relu, 0.01)])
def test_a_formula_with_a_kink_has_the_derivative_of_pytorch_at_0(
    formula: Callable[[Tensor], Tensor], derivative: float
) -> None:
    x = torch.zeros(1, requires_grad=True)
    formula(x).backward()
    assert_equal(x.grad, [derivative])


def test_the_formula_of_flatten_joins_the_dimensions_from_the_first_to_the_last_one() -> None:
    assert oracles.flatten(torch.ones(2, 3, 4, 5), 1, 2).shape == (2, 12, 5)
    assert oracles.flatten(torch.ones(2, 3, 4, 5), -4, -3).shape == (6, 4, 5)
    assert oracles.flatten(torch.ones(())).shape == (1,)


def test_the_formula_of_causal_attention_takes_any_number_of_dimensions() -> None:
    for leading in ((), (3,), (3, 2), (1, 3, 2)):
        ones, value = torch.ones(*leading, 2, 4), torch.tensor([[2.0], [4.0]]).expand(*leading, 2, 1)
        found = oracles.scaled_dot_product_attention(ones, ones, value, is_causal=True)
        assert_equal(found, torch.tensor([[2.0], [3.0]]).expand(*leading, 2, 1))


def test_the_tolerance_of_adam_contains_the_weight_decay() -> None:
    adam = PlainAdam(1.0, (0.0, 0.0), 0.0, weight_decay=0.5, amsgrad=False, maximize=False, decoupled=True)
    assert adam.step(-2.0, 1.0) == (-2.0 + 0.5 * 2 - 1, 1 + 0.5 * 2)


# The comparison with the formulas


def judged(name: str, target: Callable[..., Any], dtype: torch.dtype) -> None:
    harness.judge(Component(name, target, "", Trace()), harness.FEW, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("sigmoid", torch.sigmoid, None),
        ("sigmoid", lambda x: torch.sigmoid(x.detach()), "a few numbers in .*: there is no the gradient of input"),
        ("sigmoid", lambda x: torch.sigmoid(x).to(torch.complex64), "the output has dtype torch.complex64"),
        ("sigmoid", lambda x: torch.sigmoid(x)[None], r"the output has shape \[1, 3, 5\], expected \[3, 5\]"),
        ("sigmoid", lambda x: torch.sigmoid(x) * 1.02, "the output differs"),
        ("sigmoid", lambda x: 2 * torch.sigmoid(x) - torch.sigmoid(x).detach(), "the gradient of input differs"),
        ("linear", lambda x, w, b: torch.nn.functional.linear(x, w, b.detach()), "the gradient of bias differs"),
        ("nll_loss", lambda x, t: torch.nn.functional.nll_loss(x, t.clamp(max=3)), "the output differs"),
    ],
    ids=["right", "no gradient", "dtype", "shape", "number", "gradient", "gradient of a parameter", "last class"],
)
def test_a_component_that_differs_from_the_formula_is_a_failure(
    name: str, target: Callable[..., Any], says: str | None, dtype: torch.dtype
) -> None:
    if says is None:
        judged(name, target, dtype)
    else:
        assert re.search(says, said(judged, name, target, dtype))


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_activation_with_two_roundings_to_half_precision_is_a_failure(name: str, dtype: torch.dtype) -> None:
    def twice(x: Tensor) -> Tensor:
        return getattr(torch, name)(x) * (1 + 2 * torch.finfo(dtype).eps)

    assert "the output differs" in said(judged, name, twice, dtype)


ONE = harness.Subject(
    given=lambda size: {"input": torch.tensor([2.0], device="cpu")},
    oracle=lambda tensors, size: tensors["input"].clone(),
    call=lambda f, tensors, size: f(tensors["input"]),
    roundings=(1, 4),
)
"""A subject with the output 2 and the gradient 2."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_the_rounding_error_of_a_subject_follows_from_the_length_of_the_sums(dtype: torch.dtype) -> None:
    output, gradient = harness.expected(ONE, 0, dtype, {})
    sums = 8 * torch.finfo(dtype).eps if dtype != torch.float16 else 8 * torch.finfo(torch.float32).eps
    successive = sums if dtype != torch.float16 else 4 * torch.finfo(dtype).eps
    assert (output.name, output.exact.tolist()) == ("the output", [2.0])
    assert (gradient.name, gradient.exact.tolist()) == ("the gradient of input", [2.0])
    assert output.moved == pytest.approx(2 * sums, rel=1e-6)
    assert gradient.moved == pytest.approx(2 * successive, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype", "exact", "moved", "most"),
    [
        ("the output", torch.float32, 1.0, 0.0, 4 * 2**-23),
        ("the output", torch.float32, 1.0, 1.0, 4.0),
        ("the output", torch.float32, 0.0, 0.0, 2**-149),
        ("the output", torch.float16, 1.0, 0.0, 0.5 * 2**-10),
        ("the gradient of input", torch.float16, 1.0, 0.0, 4 * 2**-10),
    ],
    ids=["four roundings", "four errors of the sums", "the smallest number", "one rounding", "roundings of a gradient"],
)
def test_a_result_may_differ_from_the_formula_by_the_tolerance_and_no_more(
    name: str, dtype: torch.dtype, exact: float, moved: float, most: float
) -> None:
    def compared(distance: float) -> None:
        wanted = harness.Expected(name, torch.tensor(exact - distance, dtype=torch.float64, device="cpu"), moved)
        harness.compare(torch.tensor(exact, dtype=dtype), wanted, ONE, dtype, "it")

    compared(0.99 * most)
    compared(-0.99 * most)
    assert "it differs" in said(compared, 1.1 * most)
    assert "it differs" in said(compared, -1.1 * most)


def test_positions_of_a_result_must_be_equal() -> None:
    wanted = harness.Expected("output 1", torch.tensor([3, 4], device="cpu"), 9.0)
    harness.compare(torch.tensor([3, 4]), wanted, ONE, torch.float16, "it")
    assert "it differs at index [1]" in said(harness.compare, torch.tensor([3, 5]), wanted, ONE, torch.float16, "it")


# The random state


def test_every_test_starts_with_the_same_random_state() -> None:
    assert torch.initial_seed() == 0
    torch.manual_seed(99)


def test_examples_of_another_test_are_forgotten() -> None:
    assert torch.initial_seed() == 0
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(0)).item()


def test_the_reference_has_a_version() -> None:
    assert load("reference").version == reference.__version__


def slow_module(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> str:
    """The name of a module, which can be imported in a few seconds."""
    Path(folder, "slow_to_import.py").write_text(f"import time\ntime.sleep({seconds})\nVALUE = 7\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "slow_to_import", raising=False)
    for name, value in (("LIMIT", 0.2), ("IMPORT", 1.0), ("TICK", 0.05)):
        monkeypatch.setattr(patience, name, value)
    return "slow_to_import"


def test_an_import_that_takes_longer_than_a_call_may_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = slow_module(tmp_path, monkeypatch, 0.6)
    with patience.Patience().watch():
        assert importlib.import_module(name).VALUE == 7


def test_an_import_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = slow_module(tmp_path, monkeypatch, 5)
    with pytest.raises(patience.GaveUp, match="a call did not return within"), patience.Patience().watch():
        importlib.import_module(name)


def test_a_test_of_endless_calls_is_watched_only_for_a_while() -> None:
    calls = 0

    def endless(relu: Component) -> None:
        nonlocal calls
        while True:
            calls += 1
            relu(torch.zeros(1))

    relu = load("reference").component("relu", Trace())
    assert own_work.handed_over(Example(endless, {"relu": relu}, (relu,)), __file__) == set()
    assert 0 < calls < own_work.WATCHED_CALLS


@pytest.mark.slow
def test_importing_pytorch_samples_does_not_change_torch_settings() -> None:
    samples("optim")
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not before
    torch.backends.cudnn.benchmark = before
