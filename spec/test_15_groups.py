"""Chapter 15: optimizers with several groups of several parameters, with many numbers, and over many steps.

The oracle is the rule of each optimizer in float64, for one parameter with its own settings: no property of another
parameter or group may change its updates.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spec.support.assertions import assert_close, assert_equal, rounding
from spec.support.clauses import clause
from spec.support.harness import numbers
from spec.support.run import current

Optimizer = Callable[..., Any]

OPTIMIZERS = ("SGD", "Adam", "AdamW")
every_optimizer = pytest.mark.parametrize("component", OPTIMIZERS, indirect=True)

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SGD": (
        {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.125, "dampening": 0.25},
        {"lr": 0.0625, "momentum": 0.75, "nesterov": True},
    ),
    "Adam": (
        {"lr": 0.25, "betas": (0.5, 0.75), "weight_decay": 0.125, "amsgrad": True},
        {"lr": 0.0625, "betas": (0.75, 0.875), "eps": 0.25},
    ),
    "AdamW": (
        {"lr": 0.25, "betas": (0.5, 0.75), "weight_decay": 0.125, "amsgrad": True},
        {"lr": 0.0625, "betas": (0.75, 0.875), "eps": 0.25, "weight_decay": 0.5},
    ),
}
"""For each optimizer the settings of two groups, which differ in all settings."""


class Rule:
    """One parameter updated by the rule of an optimizer, in float64."""

    def __init__(self, name: str, x: Tensor, settings: dict[str, Any]) -> None:
        self.name, self.settings = name, settings
        self.x = x.detach().cpu().double().clone()
        self.t = 0
        self.m = self.v = self.largest = torch.zeros_like(self.x)

    def step(self, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        s, g = self.settings, gradient.cpu().double()
        self.t += 1
        decay = s.get("weight_decay", 0.01 if self.name == "AdamW" else 0)
        if self.name == "AdamW":
            self.x = self.x - s["lr"] * decay * self.x
        else:
            g = g + decay * self.x
        if self.name == "SGD":
            momentum = s.get("momentum", 0)
            self.m = g if self.t == 1 else momentum * self.m + (1 - s.get("dampening", 0)) * g
            self.x = self.x - s["lr"] * (g + momentum * self.m if s.get("nesterov") else self.m)
            return
        first, second = s.get("betas", (0.9, 0.999))
        self.m = first * self.m + (1 - first) * g
        self.v = second * self.v + (1 - second) * g * g
        self.largest = torch.maximum(self.largest, self.v)
        v = (self.largest if s.get("amsgrad") else self.v) / (1 - second**self.t)
        self.x = self.x - s["lr"] * self.m / (1 - first**self.t) / (v.sqrt() + s.get("eps", 1e-8))


def gradient(like: Tensor, seed: int) -> Tensor:
    """Numbers of either sign from 1/2 to 1, in the dtype, so that their squares are not subnormal."""
    drawn = numbers(*like.shape, seed=seed)
    return ((drawn.tanh().abs() / 2 + 0.5) * drawn.sign()).to(like)


def same(parameter: Tensor, rule: Rule, steps: int, what: str) -> None:
    """Compare a parameter with its rule: a step rounds the parameter twice, and the update about ten times."""
    __tracebackhide__ = True
    tolerance = rounding(parameter.dtype, 2 * steps, rule.x.abs() + 10 * rule.settings["lr"] / 2)
    assert_close(parameter.detach().cpu().double(), rule.x, tolerance, what)


SHAPES = ((7, 47), (3, 7, 149))


@clause("15.optimizer.sizes")
@every_optimizer
@pytest.mark.parametrize("which", [0, 1], ids=["first settings", "second settings"])
def test_every_number_of_a_large_parameter_moves_by_the_rule(component: Any, which: int) -> None:
    settings = SETTINGS[component.name][which]
    for dtype in current().dtypes:
        for shape in SHAPES:
            x = nn.Parameter(numbers(*shape).to(torch.get_default_device(), dtype))
            optimizer, rule = component([x], **settings), Rule(component.name, x, settings)
            for number in range(3):
                x.grad = gradient(x, number)
                rule.step(x.grad)
                optimizer.step()
            same(x, rule, 3, f"the parameter of {x.numel()} numbers in {str(dtype).removeprefix('torch.')}")


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@clause("15.optimizer.sizes")
@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["transposed gradient", "transposed parameter", "columns of a table", "expanded"])
def test_update_rule_holds_for_all_memory_layouts(component: Any, layout: str, dtype: torch.dtype) -> None:
    settings = SETTINGS[component.name][0]
    base = numbers(37, 23).to(torch.get_default_device(), dtype)
    whole = base.clone()
    if layout == "columns of a table":
        x = nn.Parameter(base[:, 3:14])
    else:
        x = nn.Parameter(transposed(base) if layout == "transposed parameter" else base)
    optimizer, rule = component([x], **settings), Rule(component.name, x, settings)
    for number in range(3):
        drawn = gradient(x, number)
        if layout == "transposed gradient":
            drawn = transposed(drawn)
        if layout == "expanded":
            drawn = drawn[:1].expand(37, -1)
        x.grad = drawn
        rule.step(drawn)
        optimizer.step()
    same(x, rule, 3, f"the parameter ({layout})")
    if layout == "columns of a table":
        assert_equal(base[:, :3], whole[:, :3], "the memory beside the parameter")
        assert_equal(base[:, 14:], whole[:, 14:], "the memory beside the parameter")


class Course:
    """Two groups of two parameters each under an optimizer, and each parameter under its rule."""

    def __init__(self, component: Any) -> None:
        self.component, (first, second) = component, SETTINGS[component.name]
        # two of the same shape, so that an exchanged state has a matching shape
        self.parameters = [
            nn.Parameter(numbers(*shape, seed=i).to(torch.get_default_device()))
            for i, shape in enumerate([(5, 3), (5, 3), (7,), (7,)])
        ]
        self.rules = [
            Rule(component.name, p, settings)
            for p, settings in zip(self.parameters, (first, first, second, second), strict=True)
        ]
        self.time = 0

    def groups(self, *order: int) -> list[dict[str, Any]]:
        """The groups with the parameters in the order of the given numbers; those of a group must be adjacent."""
        settings = SETTINGS[self.component.name]
        by_group: dict[int, list[nn.Parameter]] = {}
        for i in order:
            by_group.setdefault(i // 2, []).append(self.parameters[i])
        return [{"params": params, **settings[group]} for group, params in by_group.items()]

    def made(self, *order: int) -> Any:
        return self.component(self.groups(*(order or (0, 1, 2, 3))))

    def steps(self, optimizer: Any, count: int, without: tuple[int, ...] = ()) -> None:
        for _ in range(count):
            for i, (parameter, rule) in enumerate(zip(self.parameters, self.rules, strict=True)):
                parameter.grad = None if i in without else gradient(parameter, 10 * self.time + i)
                rule.step(parameter.grad)
            optimizer.step()
            self.time += 1
            self.check()

    def check(self) -> None:
        __tracebackhide__ = True
        for i, (parameter, rule) in enumerate(zip(self.parameters, self.rules, strict=True)):
            same(parameter, rule, self.time, f"parameter {i} after step {self.time}")


@pytest.fixture
def course(component: Any) -> Course:
    return Course(component)


@clause("15.optimizer.two_groups")
@every_optimizer
def test_groups_have_separate_settings_and_state(course: Course) -> None:
    course.steps(course.made(), 5)


@clause("15.optimizer.two_groups")
@every_optimizer
@pytest.mark.parametrize("order", [(2, 3, 0, 1), (1, 0, 2, 3), (3, 2, 1, 0)], ids=str)
def test_group_and_parameter_order_does_not_change_the_updates(course: Course, order: tuple[int, ...]) -> None:
    course.steps(course.made(*order), 5)


@clause("15.optimizer.two_groups")
@every_optimizer
@pytest.mark.parametrize("missing", [(0,), (1,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_a_step_without_gradient_leaves_parameter_and_state_unchanged(course: Course, missing: tuple[int, ...]) -> None:
    optimizer = course.made()
    course.steps(optimizer, 2)
    course.steps(optimizer, 2, without=missing)
    course.steps(optimizer, 2)


@clause("15.optimizer.two_groups")
@every_optimizer
def test_state_starts_at_the_first_step_with_a_gradient(course: Course) -> None:
    optimizer = course.made()
    course.steps(optimizer, 2, without=(0, 3))
    course.steps(optimizer, 3)


@clause("15.optimizer.two_groups")
@every_optimizer
def test_a_group_added_later_starts_with_empty_state(course: Course) -> None:
    optimizer = course.component(course.groups(0, 1))
    course.steps(optimizer, 2, without=(2, 3))
    optimizer.add_param_group(course.groups(2, 3)[0])
    assert len(optimizer.param_groups) == 2
    course.steps(optimizer, 3)


@clause("15.optimizer.two_groups")
@every_optimizer
def test_an_added_group_takes_missing_settings_from_the_defaults(component: Any) -> None:
    first, _ = SETTINGS[component.name]
    x, y, z = (nn.Parameter(numbers(5, seed=i).to(torch.get_default_device())) for i in range(3))
    optimizer = component([x], **first)
    optimizer.param_groups[0]["lr"] = 0.5  # of this group, not of the defaults
    optimizer.add_param_group({"params": [y]})
    optimizer.add_param_group({"params": z, "lr": 0.03125})
    rules = [
        Rule(component.name, p, {**first, "lr": lr})
        for p, lr in zip((x, y, z), (0.5, first["lr"], 0.03125), strict=True)
    ]
    for number in range(3):
        for i, (p, rule) in enumerate(zip((x, y, z), rules, strict=True)):
            p.grad = gradient(p, 10 * number + i)
            rule.step(p.grad)
        optimizer.step()
    for i, (p, rule) in enumerate(zip((x, y, z), rules, strict=True)):
        same(p, rule, 3, f"the parameter of group {i}")


@clause("15.optimizer.two_groups")
@every_optimizer
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 0, 1), (1, 0, 3, 2)], ids=str)
@pytest.mark.parametrize("without", [(), (1,)], ids=["all have a state", "one has none"])
def test_saved_and_loaded_groups_continue_identically(
    course: Course, order: tuple[int, ...], without: tuple[int, ...]
) -> None:
    optimizer = course.made(*order)
    course.steps(optimizer, 3, without=without)
    saved = deepcopy(optimizer.state_dict())
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    other = course.component([{"params": group["params"]} for group in course.groups(*order)], lr=1.0)
    other.load_state_dict(saved)
    course.steps(other, 3)
    for loaded, own in zip(other.state_dict()["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        assert loaded == own


@clause("15.optimizer.two_groups")
@every_optimizer
def test_a_step_after_loading_an_earlier_state_repeats_the_earlier_step(course: Course) -> None:
    optimizer = course.made()
    course.steps(optimizer, 2)
    saved, rules, time = deepcopy(optimizer.state_dict()), deepcopy(course.rules), course.time
    starts = [p.detach().clone() for p in course.parameters]
    course.steps(optimizer, 2)
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for parameter, start in zip(course.parameters, starts, strict=True):
            parameter.copy_(start)
    course.rules, course.time = rules, time
    course.steps(optimizer, 3)


@clause("15.optimizer.two_groups")
@every_optimizer
def test_two_optimizers_share_no_state(course: Course, component: Any) -> None:
    first = course.made()
    other = Course(component)
    second = other.made()
    course.steps(first, 2)
    other.steps(second, 1)
    second.param_groups[0]["lr"] = 0.0
    second.zero_grad()
    course.steps(first, 2)


STEPS = 2000


@clause("15.optimizer.long_course")
@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
def test_two_thousand_steps_equal_the_closed_form(component: Any, dtype: torch.dtype) -> None:
    """With a constant gradient, SGD's velocity is a geometric series, and Adam's step is lr · g / (|g| + eps)."""
    name, rate, decay = component.name, 2**-10, 2**-4
    start = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    g = torch.tensor([0.5, -0.25, 1.0, 2.0], dtype=torch.float64)
    x = nn.Parameter(start.to(torch.get_default_device(), dtype))
    if name == "SGD":
        mu = 0.875
        optimizer = component([x], lr=rate, momentum=mu)
        travelled = (STEPS - mu * (1 - mu**STEPS) / (1 - mu)) / (1 - mu)  # the sum of (1 - mu**t) / (1 - mu)
        exact = start - rate * g * travelled
    else:
        options = {"weight_decay": decay} if name == "AdamW" else {}
        optimizer = component([x], lr=rate, eps=1e-8, **options)
        move = rate * g / (g.abs() + 1e-8)
        if name == "Adam":
            exact = start - STEPS * move
        else:
            kept = 1 - rate * decay
            exact = kept**STEPS * start - move * (1 - kept**STEPS) / (1 - kept)
    x.grad = g.to(x)
    for _ in range(STEPS):
        optimizer.step()
    # each step rounds the parameter, and about ten times the update, which is a thousandth of its size
    largest = torch.maximum(start.abs(), exact.abs()).max().item()
    # the corrections 1 - beta**t amplify a rounding of beta**t up to 1000 times, in the first steps only
    assert_close(x.detach().cpu().double(), exact, rounding(dtype, 2 * STEPS, largest), "the parameter at the end")
    state = optimizer.state_dict()["state"][0]
    if name != "SGD":
        assert float(state["step"]) == STEPS
        v = state["exp_avg_sq"].cpu().double()
        reached = g.square() * (1 - math.pow(0.999, STEPS))
        assert_close(v, reached, rounding(dtype, 2 * STEPS, reached), "the mean of the squares")
