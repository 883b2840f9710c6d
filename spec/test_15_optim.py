"""Chapter 15: optimizers, `SGD`, `Adam` and `AdamW`."""

import math
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spec.support.assertions import Tolerance, assert_close, assert_equal, rejects, rounding, without_device
from spec.support.clauses import clause
from spec.support.optimizer_rules import PlainAdam, PlainSGD, parameter, step
from spec.support.strategies import dtypes, given, laid_out, normal, seeds, whole

Optimizer = Callable[..., Any]


def ocean() -> nn.Module:
    """The network of the chapter, lines 1117 to 1127."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, 10),
    )


# The values


@clause("15.sgd.twenty_lines")
def test_a_test_set_in_batches_of_64_is_157_steps_an_epoch() -> None:
    assert len(DataLoader(range(10000), batch_size=64)) == 157  # chapter 15, line 1112  # pyright: ignore[reportArgumentType]


@clause("15.sgd.twenty_lines", "15.sgd.running_loss")
def test_twenty_epochs_print_twenty_losses_with_grad_fn(SGD: Optimizer, capsys: pytest.CaptureFixture[str]) -> None:
    # chapter 15, lines 1117 to 1146: its network and its loop, on two batches of two images instead of 157 of 64
    images_and_labels = [(normal(3, 32, 32, seed=i, dtype=torch.float32), i) for i in range(4)]
    network, loss = ocean(), nn.CrossEntropyLoss()
    optim = SGD(network.parameters(), lr=0.01)
    for _ in range(20):
        running_loss = 0.0
        for images, labels in DataLoader(images_and_labels, batch_size=2):  # pyright: ignore[reportArgumentType]
            result = loss(network(images), labels)
            optim.zero_grad()
            result.backward()
            optim.step()
            running_loss = running_loss + result
        print(running_loss)
    lines = without_device(capsys.readouterr().out).splitlines()
    assert len(lines) == 20
    assert [line for line in lines if not re.fullmatch(r"tensor\(\d+\.\d{4}, grad_fn=<AddBackward0>\)", line)] == []
    losses = [float(line[7:].split(",")[0]) for line in lines]
    # an untrained network of ten classes: ln 10 a batch, so 157 · ln 10 = 361.5 in the tutorial's first line
    assert abs(losses[0] - 2 * math.log(10)) < 0.3
    assert losses[-1] < losses[0]


# The claims


@clause("15.sgd.descent")
def test_sgd_steps_against_the_gradient(SGD: Optimizer) -> None:
    x = parameter(1, 2)
    optimizer = SGD([x], lr=0.01)
    x.square().sum().backward()
    optimizer.step()
    assert_close(x, [1 - 0.01 * 2, 2 - 0.01 * 4], rounding(torch.float64, 2, 2.0), "the parameter")


@clause("15.optimizer.backward")
def test_backward_fills_the_gradient_of_every_parameter_that_the_loss_depends_on() -> None:
    network, bystander = ocean(), parameter(1)
    nn.CrossEntropyLoss()(network(normal(2, 3, 32, 32, seed=0, dtype=torch.float32)), torch.tensor([0, 1])).backward()
    parameters = list(network.parameters())
    assert len(parameters) == 10
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.any() for p in parameters)
    assert bystander.grad is None


@clause("15.sgd.every_parameter")
def test_step_moves_every_parameter_against_the_gradient(SGD: Optimizer) -> None:
    network = ocean()
    optimizer = SGD(network.parameters(), lr=0.01)
    nn.CrossEntropyLoss()(network(normal(2, 3, 32, 32, seed=0, dtype=torch.float32)), torch.tensor([0, 1])).backward()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer.step()
    for old, new in zip(before, network.parameters(), strict=True):
        assert new.grad is not None
        assert not torch.equal(new, old)
        tolerance = rounding(torch.float32, 2, old.abs() + 0.01 * new.grad.abs())
        assert_close(new, old - 0.01 * new.grad, tolerance, "the parameter")


@clause("15.sgd.running_loss")
def test_summing_losses_keeps_the_graph_and_summing_items_does_not() -> None:
    x = parameter(2)
    running_loss, running_number = 0.0, 0.0
    for _ in range(3):
        loss = x.square().sum()
        running_loss, running_number = running_loss + loss, running_number + loss.item()
    assert (without_device(str(running_loss)), str(running_number)) == (
        "tensor(12., dtype=torch.float64, grad_fn=<AddBackward0>)",
        "12.0",
    )
    assert_equal(torch.autograd.grad(running_loss, x)[0], [12.0], "the gradient through all three losses")  # pyright: ignore[reportArgumentType, reportCallIssue]


# The properties: SGD


# powers of 1/2, so that nothing is rounded
SGD_SETTINGS = [
    {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay, "nesterov": nesterov}
    for lr, momentum, dampening, decay, nesterov in product(
        (0.5, 0.25), (0, 0.5, 1), (0, 0.5), (0, 0.5, 1), (False, True)
    )
    if not (nesterov and (momentum == 0 or dampening != 0))
]


@clause("15.sgd.definition", "15.optimizer.no_gradient")
@given(
    settings=st.sampled_from(SGD_SETTINGS),
    maximize=st.booleans(),
    seed=seeds,
    without=st.sampled_from([None, 0, 1, 2]),
)
def test_sgd_equals_the_update_rule_elementwise(
    SGD: Optimizer, settings: dict[str, Any], maximize: bool, seed: int, without: int | None
) -> None:
    x = nn.Parameter(whole(3, seed=seed))
    optimizer = SGD([x], maximize=maximize, **settings)
    rules = [PlainSGD(**settings, maximize=maximize) for _ in range(3)]
    expected = x.tolist()
    for number in range(4):
        gradient = None if number == without else whole(3, seed=seed + 1 + number)
        step(optimizer, x, gradient)
        if gradient is not None:
            expected = [r.step(v, g) for r, v, g in zip(rules, expected, gradient.tolist(), strict=True)]
        assert_equal(x, expected, f"the parameter after step {number}")


COUNTS = [1, 397, 4999]
"""Numbers of elements: primes, so that no vector length of 2, 4, 8, … divides them."""


@clause("15.sgd.definition")
@pytest.mark.parametrize("count", COUNTS)
def test_sgd_changes_every_number_of_a_large_parameter(SGD: Optimizer, count: int) -> None:
    settings: dict[str, Any] = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.5}
    x = nn.Parameter(whole(count, seed=count))
    optimizer = SGD([x], **settings)
    rules, expected = [PlainSGD(**settings) for _ in range(count)], x.tolist()
    for number in range(3):
        gradient = whole(count, seed=count + 1 + number)
        step(optimizer, x, gradient)
        expected = [r.step(v, g) for r, v, g in zip(rules, expected, gradient.tolist(), strict=True)]
        assert_equal(x, expected, f"the parameter after step {number}")


@clause("15.optimizer.dtypes")
@given(seed=seeds, dtype=dtypes())
def test_sgd_keeps_the_dtype(SGD: Optimizer, seed: int, dtype: torch.dtype) -> None:
    # quarters below 8, which even bfloat16 represents exactly
    x, gradients = nn.Parameter(whole(3, seed=seed, dtype=dtype)), [whole(3, seed=seed + i) for i in (1, 2)]
    start, (first, second) = x.detach().clone().double(), gradients
    optimizer = SGD([x], lr=0.5, momentum=0.5)
    for gradient in gradients:
        step(optimizer, x, gradient)
    assert_equal(x, (start - 0.5 * first - 0.5 * (0.5 * first + second)).to(dtype), "the parameter")


@clause("15.sgd.quadratic")
@given(
    curvature=st.sampled_from([0.5, 1, 2]), start=st.integers(-4, 4), least=st.integers(-4, 4), steps=st.integers(1, 6)
)
def test_sgd_converges_linearly_on_a_quadratic(
    SGD: Optimizer, curvature: float, start: int, least: int, steps: int
) -> None:
    x = parameter(start)
    optimizer = SGD([x], lr=0.25)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * curvature * (x - least).square()).sum().backward()
        optimizer.step()
    assert_equal(x, [least + (1 - 0.25 * curvature) ** steps * (start - least)], "the parameter")


@clause("15.sgd.quadratic")
@given(momentum=st.sampled_from([0.25, 0.5, 1]), curvature=st.sampled_from([0.5, 1, 2]), start=st.integers(1, 4))
def test_sgd_with_momentum_equals_the_heavy_ball_method(
    SGD: Optimizer, momentum: float, curvature: float, start: int
) -> None:
    """On a quadratic x(t + 1) = (1 + momentum - lr · curvature) · x(t) - momentum · x(t - 1), starting at rest."""
    x = parameter(start)
    optimizer = SGD([x], lr=0.5, momentum=momentum)
    before, now = float(start), float(start)
    for _ in range(5):
        step(optimizer, x, curvature * x.detach())
        before, now = now, (1 + momentum - 0.5 * curvature) * now - momentum * before
        assert_equal(x, [now], "the parameter")


@clause("15.sgd.velocity")
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_momentum_buffer_converges_under_a_constant_gradient(SGD: Optimizer, steps: int) -> None:
    x = parameter(0)
    optimizer = SGD([x], lr=1, momentum=0.5)
    before = x.detach().clone()
    for _ in range(steps):
        before = x.detach().clone()
        step(optimizer, x, [1.0])
    assert_equal(before - x.detach(), [(1 - 0.5**steps) / (1 - 0.5)], "the last step")


@clause("15.sgd.weight_decay")
@given(seed=seeds, momentum=st.sampled_from([0, 0.5]))
def test_sgd_weight_decay_equals_the_gradient_of_an_l2_penalty(SGD: Optimizer, seed: int, momentum: float) -> None:
    x, y = nn.Parameter(whole(3, seed=seed)), nn.Parameter(whole(3, seed=seed))
    decayed, penalized = SGD([x], lr=0.5, momentum=momentum, weight_decay=0.5), SGD([y], lr=0.5, momentum=momentum)
    for number in range(3):
        gradient = whole(3, seed=seed + number)
        step(decayed, x, gradient)
        step(penalized, y, gradient + 0.5 * y.detach())
        assert_equal(x, y.detach(), "the parameter")


@clause("15.sgd.velocity")
def test_momentum_buffer_does_not_change_the_gradient(SGD: Optimizer) -> None:
    # gradients that are filled with zeros in place must not empty the velocity of the first step
    x = parameter(0)
    optimizer = SGD([x], lr=1, momentum=0.5)
    x.grad = torch.tensor([1.0], dtype=torch.float64)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert_equal(x, [-1.5], "the parameter")


# The properties: Adam and AdamW


ADAM_SETTINGS = [
    {"betas": betas, "eps": eps, "weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize, "lr": lr}
    for betas, eps, decay, amsgrad, maximize, lr in product(
        ((0.9, 0.999), (0.5, 0.75), (0.0, 0.5)), (1e-8, 0.25), (0, 0.25, 1), (False, True), (False, True), (0.125, 0.01)
    )
]


def check_adam(
    make: Optimizer, settings: dict[str, Any], decoupled: bool, seed: int, without: int | None, count: int = 3
) -> None:
    """Each step of the oracle starts at the actual parameter, so that the roundings of one step do not grow in the
    next.

    A dozen operations a step make m, v and the step; 1 - β2ᵗ enlarges the rounding of β2ᵗ by up to 1 / (1 - β2).
    """
    x = nn.Parameter(whole(count, seed=seed))
    optimizer = make([x], **settings)
    rules = [PlainAdam(**settings, decoupled=decoupled) for _ in range(count)]
    for number in range(4):
        before, gradient = x.tolist(), None if number == without else whole(count, seed=seed + 1 + number)
        step(optimizer, x, gradient)
        if gradient is None:
            assert_equal(x, before, "the parameter without a gradient")
            continue
        after = [r.step(v, g) for r, v, g in zip(rules, before, gradient.tolist(), strict=True)]
        magnitude = torch.tensor([abs(v) + size for v, (_, size) in zip(before, after, strict=True)])
        operations = 12 * (number + 1) + round(1 / (1 - settings["betas"][1]))
        tolerance = rounding(torch.float64, operations, magnitude)
        assert_close(x, [new for new, _ in after], tolerance, f"the parameter after step {number}")


ADAM_CASES = {
    "settings": st.sampled_from(ADAM_SETTINGS),
    "seed": seeds,
    "without": st.sampled_from([None, 0, 1, 2]),
}


@clause("15.adam.definition", "15.optimizer.no_gradient")
@given(**ADAM_CASES)
def test_adam_equals_the_update_rule_elementwise(
    Adam: Optimizer, settings: dict[str, Any], seed: int, without: int | None
) -> None:
    check_adam(Adam, settings, False, seed, without)


@clause("15.adamw.definition", "15.optimizer.no_gradient")
@given(**ADAM_CASES)
def test_adamw_equals_the_update_rule_elementwise(
    AdamW: Optimizer, settings: dict[str, Any], seed: int, without: int | None
) -> None:
    check_adam(AdamW, settings, True, seed, without)


ADAM_OF_MANY: dict[str, Any] = {
    "betas": (0.5, 0.75), "eps": 1e-8, "weight_decay": 0.25, "amsgrad": True, "maximize": False, "lr": 0.125
}  # fmt: skip


@clause("15.adam.definition")
@pytest.mark.parametrize("count", COUNTS)
def test_adam_changes_every_number_of_a_large_parameter(Adam: Optimizer, count: int) -> None:
    check_adam(Adam, ADAM_OF_MANY, False, count, 2, count)


@clause("15.adamw.definition")
@pytest.mark.parametrize("count", COUNTS)
def test_adamw_changes_every_number_of_a_large_parameter(AdamW: Optimizer, count: int) -> None:
    check_adam(AdamW, ADAM_OF_MANY, True, count, 2, count)


def nonzero(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Nonzero integers."""
    drawn = whole(*shape, seed=seed, dtype=dtype)
    return torch.where(drawn == 0, torch.ones_like(drawn), drawn)


def check_first_step(make: Optimizer, lr: float, seed: int, dtype: torch.dtype) -> None:
    """The first step, except for eps, 1e-8; a dozen operations with results of at most lr, and a rounded parameter."""
    x, gradient = nn.Parameter(whole(3, seed=seed, dtype=dtype)), nonzero(3, seed=seed + 1, dtype=dtype)
    expected = x.detach().double() - lr * gradient.double() / (gradient.double().abs() + 1e-8)
    step(make([x], lr=lr, weight_decay=0), x, gradient)
    of_step, of_sum = rounding(dtype, 12, lr), rounding(dtype, 1, expected.abs())
    tolerance = Tolerance(of_step.absolute + of_sum.absolute, f"{of_step.because}, and {of_sum.because}")
    assert_close(x, expected.to(dtype), tolerance, "the parameter")


@clause("15.adam.first_step", "15.optimizer.dtypes")
@given(lr=st.sampled_from([0.5, 0.125, 2.0]), seed=seeds, dtype=dtypes())
def test_adam_first_step_is_lr_for_any_gradient_size(Adam: Optimizer, lr: float, seed: int, dtype: torch.dtype) -> None:
    check_first_step(Adam, lr, seed, dtype)


@clause("15.adam.first_step", "15.optimizer.dtypes")
@given(lr=st.sampled_from([0.5, 0.125, 2.0]), seed=seeds, dtype=dtypes())
def test_adamw_first_step_is_lr_for_any_gradient_size(
    AdamW: Optimizer, lr: float, seed: int, dtype: torch.dtype
) -> None:
    check_first_step(AdamW, lr, seed, dtype)


@clause("15.adam.constant_gradient")
@given(gradient=st.sampled_from([-3, -0.5, 1, 1000]), eps=st.sampled_from([0.0, 1e-8, 1.0]), steps=st.integers(1, 8))
def test_adam_steps_are_equal_under_a_constant_gradient(
    Adam: Optimizer, gradient: float, eps: float, steps: int
) -> None:
    x = parameter(0)
    optimizer = Adam([x], lr=0.125, eps=eps)
    for _ in range(steps):
        step(optimizer, x, [gradient])
    expected = -steps * 0.125 * gradient / (abs(gradient) + eps)
    # a dozen operations a step, and 1 - 0.999ᵗ enlarges the rounding of 0.999ᵗ up to 1000 times
    assert_close(x, [expected], rounding(torch.float64, 12 * steps + 1000, steps * 0.125), "the parameter")


@clause("15.adam.scale")
@given(seed=seeds, scale=st.sampled_from([0.25, 2, 1024]), amsgrad=st.booleans())
def test_adam_without_eps_is_invariant_to_the_scale_of_the_loss(
    Adam: Optimizer, seed: int, scale: float, amsgrad: bool
) -> None:
    x, y = nn.Parameter(whole(3, seed=seed)), nn.Parameter(whole(3, seed=seed))
    plain, scaled = (Adam([p], lr=0.125, eps=0.0, amsgrad=amsgrad) for p in (x, y))
    for number in range(3):
        gradient = nonzero(3, seed=seed + number)
        step(plain, x, gradient)
        step(scaled, y, scale * gradient)  # a power of 2 is exact
        assert_equal(y, x.detach(), "the parameter")


@clause("15.adam.amsgrad")
@pytest.mark.parametrize(("amsgrad", "square"), [(False, 22), (True, 128 / 3)], ids=["v falls", "v stays the largest"])
def test_amsgrad_divides_by_the_maximum_of_exp_avg_sq(Adam: Optimizer, amsgrad: bool, square: float) -> None:
    # v is 64 / 2, then 32 / 2 + 1 / 2; divided by 1 - 1/4 that is 22, and 128 / 3 with the first
    x = parameter(0)
    optimizer = Adam([x], lr=1.0, betas=(0.0, 0.5), eps=0.0, amsgrad=amsgrad)
    step(optimizer, x, [8.0])
    assert_close(x, [-1.0], rounding(torch.float64, 12), "the parameter after a gradient of 8")
    step(optimizer, x, [1.0])
    assert_close(x, [-1 - 1 / math.sqrt(square)], rounding(torch.float64, 24), "the parameter after a gradient of 1")


@clause("15.adamw.decay")
@given(start=st.integers(-4, 4), steps=st.integers(1, 5), lr=st.sampled_from([0.5, 0.25]))
def test_with_a_gradient_of_0_adamw_only_shrinks_the_weights(
    AdamW: Optimizer, start: int, steps: int, lr: float
) -> None:
    x = parameter(start)
    optimizer = AdamW([x], lr=lr, weight_decay=0.5)
    for _ in range(steps):
        step(optimizer, x, [0.0])
    assert_equal(x, [(1 - lr * 0.5) ** steps * start], "the parameter")


@clause("15.adam.decay")
@pytest.mark.parametrize("decay", [0.01, 0.5, 4.0])
def test_with_a_gradient_of_0_adam_steps_by_lr_for_every_weight_decay(Adam: Optimizer, decay: float) -> None:
    x = parameter(3, -3)
    step(Adam([x], lr=0.5, eps=0.0, weight_decay=decay), x, [0.0, 0.0])
    assert_close(x, [2.5, -2.5], rounding(torch.float64, 12, 3.0), "the parameter")


# Tests of every optimizer


class Rules:
    """The tests of every optimizer; a subclass selects the optimizer and its PyTorch counterpart.

    Attributes:
        theirs: PyTorch's optimizer, for the exchange of state dicts.
        remembers: Settings with the largest state.
        defaults: The default settings.
        state: The state of a parameter.
    """

    theirs: Any
    remembers: ClassVar[dict[str, Any]]
    defaults: ClassVar[dict[str, Any]]
    state: ClassVar[set[str]]

    @clause("15.optimizer.zero_grad")
    def test_zero_grad_sets_gradients_to_none_by_default(self, optimizer: Optimizer) -> None:
        x, untouched = parameter(1, 2), parameter(3)
        made = optimizer([x, untouched], lr=0.5)
        x.sum().backward()
        made.zero_grad()
        assert x.grad is None, f"the gradient must be None, not zeros, got {x.grad}"
        assert untouched.grad is None

    @clause("15.optimizer.zero_grad")
    @pytest.mark.level("pytorch")
    def test_zero_grad_sets_zeros_only_without_set_to_none(self, optimizer: Optimizer) -> None:
        x, untouched = parameter(1, 2), parameter(3)
        made = optimizer([{"params": [untouched]}, {"params": [x]}], lr=0.5)
        x.sum().backward()
        made.zero_grad(set_to_none=False)
        assert_equal(x.grad, [0.0, 0.0], "the gradient")
        assert untouched.grad is None

    @clause("15.optimizer.zero_grad")
    def test_without_zero_grad_the_gradients_of_two_losses_add_up(self, optimizer: Optimizer) -> None:
        x = parameter(1)
        made = optimizer([x], lr=0.5)
        for _ in range(2):
            (2 * x).sum().backward()
        assert_equal(x.grad, [4.0], "the gradient")
        made.zero_grad()
        (2 * x).sum().backward()
        assert_equal(x.grad, [2.0], "the gradient")

    @clause("15.optimizer.no_gradient")
    def test_a_parameter_without_a_gradient_is_left_alone(self, optimizer: Optimizer) -> None:
        x, y = parameter(1), parameter(1)
        made = optimizer([x, y], lr=0.5, weight_decay=0.5, **self.remembers)
        for _ in range(2):
            step(made, x, [1.0])
        assert_equal(y, [1.0], "the parameter")
        assert y not in made.state

    @clause("15.optimizer.no_gradient")
    def test_a_zero_gradient_still_updates_the_state(self, optimizer: Optimizer) -> None:
        x = parameter(1)
        step(optimizer([x], lr=0.5, weight_decay=0.5), x, [0.0])
        assert x < 1

    @clause("15.optimizer.arguments")
    @pytest.mark.parametrize("maximize", [False, True])
    def test_step_leaves_the_gradients_unchanged(self, optimizer: Optimizer, maximize: bool) -> None:
        x, gradient = parameter(1, 2, 3), torch.tensor([3.0, -1.0, 0.0], dtype=torch.float64)
        made = optimizer([x], lr=0.5, weight_decay=0.5, maximize=maximize, **self.remembers)
        for _ in range(3):
            step(made, x, gradient)
            assert_equal(x.grad, gradient, "the gradient after the step")

    @clause("15.optimizer.arguments")
    def test_step_changes_the_parameter_itself_and_leaves_no_graph(self, optimizer: Optimizer) -> None:
        x = parameter(1, 2)
        view = x.detach()
        (3 * x).sum().backward()
        optimizer([x], lr=0.5).step()
        assert_equal(view, x.detach(), "the memory of the parameter")
        assert x.is_leaf
        assert x.requires_grad

    @clause("15.optimizer.closure")
    def test_step_calls_the_closure_once_before_the_update_and_returns_the_loss(self, optimizer: Optimizer) -> None:
        x, seen = parameter(2), []
        made = optimizer([x], lr=0.5)

        def closure() -> Tensor:
            made.zero_grad()
            loss = x.square().sum()
            loss.backward()
            seen.append(x.item())
            return loss

        returned = made.step(closure)
        assert seen == [2.0]
        assert_equal(returned, torch.tensor(4.0, dtype=torch.float64), "what step returns")
        assert x < 2

    @clause("15.optimizer.closure_gradients")
    def test_step_without_gradients_calls_the_closure_with_gradients(self, optimizer: Optimizer) -> None:
        x = parameter(2)
        made = optimizer([x], lr=0.5)

        def closure() -> Tensor:
            loss = x.square().sum()
            loss.backward()
            return loss

        with torch.no_grad():
            made.step(closure)
        assert x < 2

    @clause("15.optimizer.closure")
    def test_step_without_a_closure_returns_nothing(self, optimizer: Optimizer) -> None:
        x = parameter(1)
        x.sum().backward()
        assert optimizer([x], lr=0.5).step() is None

    @clause("15.optimizer.groups")
    def test_groups_have_separate_settings(self, optimizer: Optimizer) -> None:
        x, y, z = (parameter(1, -2) for _ in range(3))
        groups = [{"params": [x]}, {"params": [y], "lr": 0.25, "weight_decay": 0.5}]
        made = optimizer(groups, lr=0.5, weight_decay=0)
        made.add_param_group({"params": z, "maximize": True})
        for p in (x, y, z):
            p.grad = torch.tensor([1.0, -3.0], dtype=torch.float64)
        made.step()
        settings = [{"lr": 0.5}, {"lr": 0.25, "weight_decay": 0.5}, {"lr": 0.5, "maximize": True}]
        for p, chosen in zip((x, y, z), settings, strict=True):
            alone = parameter(1, -2)
            step(optimizer([alone], **({"weight_decay": 0} | chosen)), alone, [1.0, -3.0])
            assert_equal(p, alone.detach(), f"the parameter of the group with {chosen}")
        assert not torch.equal(x, y)
        assert not torch.equal(x, z)

    @clause("15.optimizer.groups")
    def test_a_changed_learning_rate_applies_from_the_next_step(self, optimizer: Optimizer) -> None:
        x = parameter(1)
        made = optimizer([x], lr=0.5, weight_decay=0.5)
        step(made, x, [1.0])
        before = x.item()
        assert before < 1
        made.param_groups[0]["lr"] = 0.0
        step(made, x, [1.0])
        assert_equal(x, [before], "the parameter after a step with lr = 0")

    @clause("15.optimizer.settings")
    @pytest.mark.parametrize("shape", [(), (1,)], ids=["without dimensions", "with one"])
    def test_a_learning_rate_may_be_a_tensor_of_one_number(self, optimizer: Optimizer, shape: tuple[int, ...]) -> None:
        x, y = parameter(1, 2), parameter(1, 2)
        for p, lr in ((x, 0.5), (y, torch.full(shape, 0.5, dtype=torch.float64))):
            step(optimizer([p], lr=lr), p, [3.0, -1.0])
        assert_close(x, y.detach(), rounding(torch.float64, 24, 4.0), "the parameter")

    @clause("15.optimizer.settings")
    def test_maximize_is_a_step_with_the_gradient_negated(self, optimizer: Optimizer) -> None:
        x, y = parameter(1, 2), parameter(1, 2)
        climbing = optimizer([x], lr=0.5, weight_decay=0.5, maximize=True, **self.remembers)
        falling = optimizer([y], lr=0.5, weight_decay=0.5, **self.remembers)
        for _ in range(3):
            step(climbing, x, [3.0, -1.0])
            step(falling, y, [-3.0, 1.0])
            assert_equal(x, y.detach(), "the parameter")

    @clause("15.optimizer.settings")
    def test_optimizer_defaults(self, optimizer: Optimizer) -> None:
        (group,) = optimizer(iter([parameter(1)])).param_groups
        assert {name: group[name] for name in self.defaults} == self.defaults

    @clause("15.optimizer.settings")
    def test_repr_shows_the_settings_of_each_group(self, optimizer: Optimizer) -> None:
        text = repr(optimizer([{"params": [parameter(1)]}, {"params": [parameter(2)], "lr": 0.25}], lr=0.5))
        name = self.theirs.__name__
        assert re.fullmatch(rf"{name} \(\nParameter Group 0\n(    .*\n)+\nParameter Group 1\n(    .*\n)+\)", text)
        assert re.findall(r"^    lr: (.*)$", text, re.MULTILINE) == ["0.5", "0.25"]

    @clause("15.optimizer.settings")
    def test_repr_lists_every_setting_in_alphabetical_order(self, optimizer: Optimizer) -> None:
        chosen = {**self.defaults, **self.remembers, "lr": 0.125, "weight_decay": 0.375, "maximize": True}
        made = optimizer([parameter(1)], **chosen)
        lines = repr(made).splitlines()
        assert lines[:2] == [f"{self.theirs.__name__} (", "Parameter Group 0"]
        assert lines[-1] == ")"
        printed = dict(line.strip().split(": ", 1) for line in lines[2:-1])
        assert {name: printed.get(name) for name in chosen} == {name: str(value) for name, value in chosen.items()}
        assert list(printed) == sorted(made.param_groups[0].keys() - {"params"})

    @clause("15.optimizer.state")
    def test_optimizer_state_entries(self, optimizer: Optimizer) -> None:
        x = parameter(1, 2)
        made = optimizer([x], **self.remembers)
        assert made.state_dict()["state"] == {}
        step(made, x, [1.0, 1.0])
        saved = made.state_dict()
        assert saved.keys() == {"state", "param_groups"}
        assert saved["state"].keys() == {0}
        assert saved["state"][0].keys() == self.state
        assert saved["param_groups"][0]["params"] == [0]

    @clause("15.optimizer.state")
    def test_a_state_dict_resumes_the_optimization(self, optimizer: Optimizer) -> None:
        x = parameter(1, -2)
        first = optimizer([x], lr=0.5, weight_decay=0.25, **self.remembers)
        for gradient in self.gradients():
            step(first, x, gradient)
        y = nn.Parameter(x.detach().clone())
        second = optimizer([y])
        second.load_state_dict(deepcopy(first.state_dict()))
        for gradient in self.gradients():
            step(first, x, gradient)
            step(second, y, gradient)
            assert_equal(y, x.detach(), "the parameter")

    @clause("15.optimizer.state")
    def test_a_loaded_state_has_the_dtype_of_the_parameter_but_the_steps_are_counted_exactly(
        self, optimizer: Optimizer
    ) -> None:
        x, y = parameter(1, -2), parameter(1, -2, dtype=torch.bfloat16)
        first, second = optimizer([x], lr=0.5, **self.remembers), optimizer([y], lr=0.5)
        step(first, x, [1.0, 2.0])
        second.load_state_dict(deepcopy(first.state_dict()))
        step(second, y, [1.0, 2.0])
        expected = {name: torch.float32 if name == "step" else torch.bfloat16 for name in self.state}
        assert {name: value.dtype for name, value in second.state[y].items()} == expected

    @clause("15.optimizer.state")
    @pytest.mark.parametrize("there", [True, False], ids=["to PyTorch's optimizer", "from PyTorch's optimizer"])
    def test_state_dict_loads_to_and_from_pytorch(self, optimizer: Optimizer, there: bool) -> None:
        """The only test with PyTorch's optimizer as its oracle: a saved state has the same meaning for both."""
        x = parameter(1, -2)
        first = (optimizer if there else self.theirs)([x], lr=0.5, weight_decay=0.25, **self.remembers)
        for gradient in self.gradients():
            step(first, x, gradient)
        y = nn.Parameter(x.detach().clone())
        second = (self.theirs if there else optimizer)([y])
        second.load_state_dict(deepcopy(first.state_dict()))
        for number, gradient in enumerate(self.gradients()):
            step(first, x, gradient)
            step(second, y, gradient)
            # a dozen operations per step, on numbers below 4 + 6 · lr
            assert_close(y, x.detach(), rounding(torch.float64, 24 * (number + 1), 8.0), "the parameter")

    def gradients(self) -> Iterator[Tensor]:
        return (torch.tensor(numbers, dtype=torch.float64) for numbers in ([3.0, 1.0], [-1.0, 2.0], [2.0, 0.5]))

    @clause("15.optimizer.nonfinite")
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_non_finite_gradient_affects_only_one_element(self, optimizer: Optimizer, value: float) -> None:
        x, y = parameter(1, 2, 3), parameter(1, 2, 3)
        spoilt, sound = optimizer([x], lr=0.5, **self.remembers), optimizer([y], lr=0.5, **self.remembers)
        for first in (value, 1.0):
            step(spoilt, x, [2.0, first, -1.0])
            step(sound, y, [2.0, 1.0, -1.0])
        assert not x[1].isfinite()
        assert_equal(x[::2], y[::2].detach(), "the other numbers")

    @clause("15.optimizer.layouts")
    @pytest.mark.parametrize("layout", [1, 2, 3], ids=["transposed", "with gaps", "channels last"])
    def test_the_memory_layout_does_not_matter(self, optimizer: Optimizer, layout: int) -> None:
        start, gradient = whole(2, 3, 2, 2, seed=0), whole(2, 3, 2, 2, seed=1)
        x, y = nn.Parameter(start), nn.Parameter(laid_out(start.clone(), layout))
        plain, other = (optimizer([p], lr=0.5, weight_decay=0.5, **self.remembers) for p in (x, y))
        for _ in range(2):
            step(plain, x, gradient)
            step(other, y, gradient)
            assert_close(y, x.detach(), rounding(torch.float64, 24, 8.0), "the parameter")

    @clause("15.optimizer.empty")
    def test_an_empty_parameter_is_accepted(self, optimizer: Optimizer) -> None:
        x, y = parameter(), parameter(1)
        made = optimizer([x, y], lr=0.5)
        x.grad = torch.empty(0, dtype=torch.float64)
        step(made, y, [1.0])
        assert x.shape == (0,)
        assert y < 1

    @clause("15.optimizer.rejects")
    @pytest.mark.parametrize(
        ("settings", "naming"),
        [
            pytest.param({"lr": -0.1}, r"\blr\b|learning rate", id="a negative learning rate"),
            pytest.param({"lr": torch.tensor([0.1, 0.2])}, r"\blr\b", id="two learning rates"),
            pytest.param({"weight_decay": -0.1}, "weight_decay", id="a negative weight decay"),
            pytest.param({"speed": 0.1}, None, id="a setting that is not there"),
        ],
    )
    def test_optimizer_rejects_settings(
        self, optimizer: Optimizer, settings: dict[str, Any], naming: str | None
    ) -> None:
        with rejects(naming=naming):
            optimizer([parameter(1)], **settings)

    @clause("15.optimizer.rejects")
    @pytest.mark.parametrize(
        ("make", "naming"),
        [
            pytest.param(list, "param.*empty|empty param", id="no parameters"),
            pytest.param(lambda: parameter(1), "iterable|list", id="a parameter that is in no list"),
            pytest.param(lambda: [1.0], "param.*float", id="a number"),
            pytest.param(lambda: [parameter(1) * 2], "leaf", id="what is computed from parameters"),
            pytest.param(lambda: [{"params": parameter(1)}, [parameter(2)]], "dict", id="a group that is no dict"),
            pytest.param(lambda: [{"params": {parameter(1), parameter(2)}}], r"\bsets?\b", id="a set"),
            pytest.param(
                lambda: [{"params": [x]} for x in [parameter(1)] * 2], "more than one|before", id="the same one twice"
            ),
        ],
    )
    def test_optimizer_rejects_params(self, optimizer: Optimizer, make: Callable[[], Any], naming: str) -> None:
        with rejects(naming, "params", "param_group", "parameters"):
            optimizer(make(), lr=0.5)

    @clause("15.optimizer.rejects")
    @pytest.mark.parametrize("groups", [[1, 1], [2]], ids=["one group more", "one parameter more"])
    def test_optimizer_rejects_a_state_dict(self, optimizer: Optimizer, groups: list[int]) -> None:
        other = optimizer([{"params": [parameter(1) for _ in range(count)]} for count in groups], lr=0.5)
        with rejects("state.dict.*group", "state_dict"):
            optimizer([parameter(1)], lr=0.5).load_state_dict(other.state_dict())


class TestSGD(Rules):
    theirs = torch.optim.SGD
    remembers: ClassVar[dict[str, Any]] = {"momentum": 0.5}
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False
    }  # fmt: skip
    state: ClassVar[set[str]] = {"momentum_buffer"}

    @pytest.fixture
    def optimizer(self, SGD: Optimizer) -> Optimizer:
        return SGD

    @clause("15.optimizer.rejects")
    @pytest.mark.parametrize(
        ("settings", "naming"),
        [
            pytest.param({"momentum": -0.5}, "momentum", id="negative momentum"),
            pytest.param({"nesterov": True}, "nesterov", id="Nesterov's without momentum"),
            pytest.param(
                {"nesterov": True, "momentum": 0.5, "dampening": 0.5}, "nesterov", id="Nesterov's with dampening"
            ),
        ],
    )
    def test_sgd_rejects(self, SGD: Optimizer, settings: dict[str, Any], naming: str) -> None:
        with rejects(naming=naming):
            SGD([parameter(1)], lr=0.5, **settings)


class AdamRules(Rules):
    """Adam and AdamW."""

    remembers: ClassVar[dict[str, Any]] = {"amsgrad": True, "betas": (0.5, 0.75)}
    state: ClassVar[set[str]] = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}

    @clause("15.optimizer.rejects")
    @pytest.mark.parametrize(
        ("settings", "naming"),
        [
            pytest.param({"betas": (1.0, 0.9)}, "beta", id="a first beta of 1"),
            pytest.param({"betas": (0.9, 1.0)}, "beta", id="a second beta of 1"),
            pytest.param({"betas": (-0.1, 0.9)}, "beta", id="a negative first beta"),
            pytest.param({"betas": (0.9, -0.1)}, "beta", id="a negative second beta"),
            pytest.param({"eps": -1e-8}, r"\beps", id="a negative eps"),
        ],
    )
    def test_adam_and_adamw_reject(self, optimizer: Optimizer, settings: dict[str, Any], naming: str) -> None:
        with rejects(naming=naming):
            optimizer([parameter(1)], lr=0.5, **settings)

    @clause("15.optimizer.state")
    def test_without_amsgrad_max_exp_avg_sq_is_not_stored(self, optimizer: Optimizer) -> None:
        x = parameter(1)
        made = optimizer([x])
        step(made, x, [1.0])
        assert made.state_dict()["state"][0].keys() == self.state - {"max_exp_avg_sq"}


class TestAdam(AdamRules):
    theirs = torch.optim.Adam
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False
    }  # fmt: skip

    @pytest.fixture
    def optimizer(self, Adam: Optimizer) -> Optimizer:
        return Adam


class TestAdamW(AdamRules):
    theirs = torch.optim.AdamW
    defaults: ClassVar[dict[str, Any]] = TestAdam.defaults | {"weight_decay": 1e-2}

    @pytest.fixture
    def optimizer(self, AdamW: Optimizer) -> Optimizer:
        return AdamW
