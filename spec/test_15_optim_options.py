"""Chapter 15: further options of PyTorch's optimizers: names, modes, tensors as settings, hooks and schedulers."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook

import reference
from spec.support.assertions import assert_close, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.optimizer_rules import parameter, step

Optimizer = Callable[..., Any]

GRADIENTS = ([3.0, -1.0], [-1.0, 2.0], [2.0, 0.5])

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch),
    "MultiplicativeLR": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.5),
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5),
    "ConstantLR": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=2),
    "LinearLR": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.25, total_iters=4),
    "ExponentialLR": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5),
    "PolynomialLR": lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=4, power=2.0),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 4),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.125, 0.5, step_size_up=2),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer, 0.5), lr_scheduler.ExponentialLR(optimizer, 0.5)], [3]
    ),
    "ChainedScheduler": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    ),
    "SWALR": lambda optimizer: swa_utils.SWALR(optimizer, swa_lr=0.0625, anneal_epochs=3),
}
"""Each scheduler of PyTorch, with short phases, so that six steps include several of them."""


def course(optimizer: Any, x: Tensor) -> list[list[float]]:
    """The parameter after each step with the gradients above."""
    seen = []
    for gradient in GRADIENTS:
        step(optimizer, x, gradient)
        seen.append(x.tolist())
    return seen


class Options:
    """The tests of every optimizer; a subclass selects the optimizer.

    Attributes:
        theirs: PyTorch's optimizer, with which the schedulers run as well.
        settings: Settings that all have an effect.
    """

    theirs: Any
    settings: ClassVar[dict[str, Any]]

    @clause("15.optimizer.names")
    def test_named_parameters_are_accepted_and_names_are_kept(self, optimizer: Optimizer) -> None:
        network = nn.Linear(2, 2, dtype=torch.float64)
        made = optimizer(network.named_parameters(), lr=0.5)
        assert made.param_groups[0]["params"] == [network.weight, network.bias]
        assert made.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
        made.add_param_group({"params": [("extra", parameter(1))]})
        assert made.param_groups[1]["param_names"] == ["extra"]
        alone = nn.Parameter(network.bias.detach().clone())
        step(made, network.bias, [3.0, -1.0])
        step(optimizer([alone], lr=0.5), alone, [3.0, -1.0])
        assert_equal(network.bias, alone.detach(), "the parameter with a name")

    @clause("15.optimizer.names")
    def test_partially_named_parameters_are_rejected(self, optimizer: Optimizer) -> None:
        with rejects("names", "params", "param_group"):
            optimizer([("a", parameter(1)), parameter(2)], lr=0.5)

    @clause("15.optimizer.modes")
    @pytest.mark.parametrize("mode", ["foreach", "fused"])
    @pytest.mark.parametrize("value", [True, False])
    def test_foreach_and_fused_do_not_change_the_step(self, optimizer: Optimizer, mode: str, value: bool) -> None:
        x, y = parameter(1, -2), parameter(1, -2)
        plain, other = optimizer([x], **self.settings), optimizer([y], **self.settings, **{mode: value})
        assert other.param_groups[0][mode] is value
        for number, (expected, found) in enumerate(zip(course(plain, x), course(other, y), strict=True)):
            # a dozen operations per step, on numbers below 8
            assert_close(
                torch.tensor(found, dtype=torch.float64), expected, rounding(torch.float64, 12 * (number + 1), 8.0)
            )

    @clause("15.optimizer.modes")
    @pytest.mark.parametrize("other", ["foreach", "differentiable"])
    def test_fused_rejects_incompatible_options(self, optimizer: Optimizer, other: str) -> None:
        with rejects(naming=f"fused.*{other}"):
            optimizer([parameter(1)], lr=0.5, fused=True, **{other: True})

    @clause("15.optimizer.differentiable")
    def test_autograd_differentiates_through_a_step(self, optimizer: Optimizer) -> None:
        """A step from 2 with the gradient g²: the derivatives are those of the rule, in finite differences."""

        def moved(start: Tensor, g: Tensor) -> Tensor:
            x = start.clone()
            x.retain_grad()
            made = optimizer([x], lr=0.25, differentiable=True)
            x.grad = g.square()
            made.step()
            return x

        start = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
        g = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(moved, (start, g))
        derivative = torch.autograd.grad(moved(start, g).sum(), start)[0]
        assert_close(derivative, [self.kept] * 2, rounding(torch.float64, 2), "the derivative after the start")  # pyright: ignore[reportAttributeAccessIssue]

    @clause("15.optimizer.tensors")
    def test_a_tensor_learning_rate_changed_in_place_applies_from_the_next_step(self, optimizer: Optimizer) -> None:
        lr = torch.tensor(0.5, dtype=torch.float64)
        x, y = parameter(1, -2), parameter(1, -2)
        made, plain = optimizer([x], lr=lr), optimizer([y], lr=0.5)
        step(made, x, [3.0, -1.0])
        step(plain, y, [3.0, -1.0])
        lr.mul_(0.5)
        plain.param_groups[0]["lr"] = 0.25
        step(made, x, [-1.0, 2.0])
        step(plain, y, [-1.0, 2.0])
        assert_close(x, y.detach(), rounding(torch.float64, 24, 8.0), "the parameter")

    @clause("15.optimizer.hooks")
    def test_hooks_are_called_before_and_after_a_step_until_they_are_removed(self, optimizer: Optimizer) -> None:
        x, seen = parameter(1), []
        made = optimizer([x], lr=0.5)
        handles = [
            made.register_step_pre_hook(lambda _, args, kwargs: seen.append(("before", x.item()))),
            made.register_step_post_hook(lambda _, args, kwargs: seen.append(("after", x.item()))),
        ]
        step(made, x, [1.0])
        assert seen == [("before", 1.0), ("after", x.item())]
        assert x < 1
        for handle in handles:
            handle.remove()
        step(made, x, [1.0])
        assert len(seen) == 2

    @clause("15.optimizer.hooks")
    def test_hooks_of_all_optimizers_are_called(self, optimizer: Optimizer) -> None:
        x, seen = parameter(1), []
        handle = register_optimizer_step_post_hook(lambda *_: seen.append(x.item()))
        try:
            step(optimizer([x], lr=0.5), x, [1.0])
        finally:
            handle.remove()
        assert seen == [x.item()]

    @clause("15.optimizer.hooks")
    def test_hooks_change_a_state_dict_that_is_taken_or_loaded(self, optimizer: Optimizer) -> None:
        made = optimizer([parameter(1)], lr=0.5)
        made.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
        made.register_load_state_dict_pre_hook(
            lambda _, state: {**state, "param_groups": [{**group, "lr": 0.25} for group in state["param_groups"]]}
        )
        saved = made.state_dict()
        assert saved["note"] == 1
        made.load_state_dict(saved)
        assert made.param_groups[0]["lr"] == 0.25

    @clause("15.optimizer.schedulers")
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_schedulers_set_the_same_learning_rates_as_with_pytorchs_optimizer(
        self, optimizer: Optimizer, name: str
    ) -> None:
        x, y = parameter(1, -2), parameter(1, -2)
        optimizers = optimizer([x], **self.settings), self.theirs([y], **self.settings)
        schedulers = [SCHEDULERS[name](made) for made in optimizers]
        rates: list[list[Any]] = [[], []]
        for number in range(6):
            for made, p in zip(optimizers, (x, y), strict=True):
                step(made, p, GRADIENTS[number % 3])
            assert_close(
                x, y.detach(), rounding(torch.float64, 24 * (number + 1), 16.0), f"the parameter, step {number}"
            )
            for scheduler, made, rate in zip(schedulers, optimizers, rates, strict=True):
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
                group = made.param_groups[0]
                rate.append((group["lr"], group.get("momentum"), group.get("betas")))
        assert rates[0] == rates[1]
        assert len(set(rates[0])) > 1, "the scheduler changed nothing"

    @clause("15.optimizer.schedulers")
    def test_scheduler_learning_rate_applies_to_the_next_step(self, optimizer: Optimizer) -> None:
        x = parameter(1)
        made = optimizer([x], **{**self.settings, "lr": 0.5})
        scheduler = lr_scheduler.LambdaLR(made, lambda epoch: float(epoch == 0))  # 0.5, then 0
        step(made, x, [1.0])
        before = x.item()
        assert before != 1
        scheduler.step()
        step(made, x, [1.0])
        assert_equal(x, [before], "the parameter after a step with lr = 0")

    @clause("15.optimizer.schedulers")
    def test_every_scheduler_of_pytorch_is_among_these(self) -> None:
        assert {name for name in lr_scheduler.__all__ if name != "LRScheduler"} <= SCHEDULERS.keys()

    @clause("15.optimizer.copies")
    def test_a_state_without_a_newer_setting_gets_the_default(self, optimizer: Optimizer) -> None:
        made = optimizer([parameter(1, -2)], lr=0.5)
        state = made.__getstate__()
        state["param_groups"] = [
            {name: value for name, value in group.items() if name != "maximize"} for group in state["param_groups"]
        ]
        made.__setstate__(state)
        assert made.param_groups[0]["maximize"] is False

    @clause("15.optimizer.copies")
    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
    def test_deepcopy_of_optimizer_and_parameters_continues_identically(self, optimizer: Optimizer, way: str) -> None:
        x = parameter(1, -2)
        made = optimizer([x], **self.settings)
        step(made, x, [3.0, -1.0])
        if way == "deepcopy":
            copied = copy.deepcopy(made)
        elif way == "pickle":
            copied = pickle.loads(pickle.dumps(made))
        else:
            file = io.BytesIO()
            torch.save(made.state_dict(), file)
            file.seek(0)
            copied = optimizer([nn.Parameter(x.detach().clone())])
            copied.load_state_dict(torch.load(file, weights_only=True))
        (y,) = copied.param_groups[0]["params"]
        assert y is not x
        for gradient in GRADIENTS:
            step(made, x, gradient)
            step(copied, y, gradient)
            assert_equal(y, x.detach(), "the copy's parameter")

    @clause("15.optimizer.complex")
    def test_complex_parameters_are_updated_as_real_and_imaginary_parts(self, optimizer: Optimizer) -> None:
        x = nn.Parameter(torch.tensor([1 - 2j, 0.5 + 1j], dtype=torch.complex128))
        parts = nn.Parameter(torch.view_as_real(x.detach().clone()))
        whole, apart = optimizer([x], **self.settings), optimizer([parts], **self.settings)
        for gradient in ([3 - 1j, 1j], [-1 + 2j, 2 - 1j]):
            step(whole, x, gradient)
            step(apart, parts, torch.view_as_real(torch.tensor(gradient, dtype=torch.complex128)))
            assert_close(torch.view_as_real(x.detach()), parts.detach(), rounding(torch.float64, 24, 8.0), "the parts")


class TestSGD(Options):
    theirs = torch.optim.SGD
    settings: ClassVar[dict[str, Any]] = {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.25, "nesterov": True}
    kept = 1.0  # of the start

    @pytest.fixture
    def optimizer(self, SGD: Optimizer) -> Optimizer:
        return SGD

    @clause("15.sgd.sparse")
    def test_sgd_moves_only_the_rows_of_a_sparse_gradient(self, SGD: Optimizer) -> None:
        x = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        made = SGD([x], lr=0.5, momentum=0.5)
        for _ in range(2):
            with torch.sparse.check_sparse_tensor_invariants():
                x.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2, dtype=torch.float64), (3, 2))  # pyright: ignore[reportArgumentType]
            made.step()
        # 1 - 0.5 · 1 - 0.5 · (0.5 · 1 + 1)
        assert_equal(x, [[1.0, 1.0], [-0.25, -0.25], [1.0, 1.0]], "the parameter")


class OptionsOfAdam(Options):
    """Adam and AdamW."""

    settings: ClassVar[dict[str, Any]] = {"lr": 0.25, "betas": (0.5, 0.75), "weight_decay": 0.25, "amsgrad": True}

    @clause("15.optimizer.tensors")
    @pytest.mark.parametrize("shape", [(), (1,)], ids=["without dimensions", "with one"])
    def test_betas_may_be_two_tensors_of_one_number(self, optimizer: Optimizer, shape: tuple[int, ...]) -> None:
        x, y = parameter(1, -2), parameter(1, -2)
        betas = tuple(torch.full(shape, beta, dtype=torch.float64) for beta in (0.5, 0.75))
        with_numbers, with_tensors = (
            optimizer([x], **self.settings),
            optimizer([y], **{**self.settings, "betas": betas}),
        )
        for number, (expected, found) in enumerate(zip(course(with_numbers, x), course(with_tensors, y), strict=True)):
            tolerance = rounding(torch.float64, 12 * (number + 1), 8.0)
            assert_close(torch.tensor(found, dtype=torch.float64), expected, tolerance, "the parameter")

    @clause("15.optimizer.tensors")
    def test_betas_of_the_reference_stay_tensors_if_the_steps_are_recorded(self, optimizer: Optimizer) -> None:
        x, y = parameter(1, -2), parameter(1, -2)
        own = getattr(reference, optimizer.name)  # pyright: ignore[reportFunctionMemberAccess]
        betas = tuple(torch.tensor(beta, dtype=torch.float64) for beta in (0.5, 0.75))
        plain, recorded = own([x], **self.settings), own([y], **{**self.settings, "betas": betas}, capturable=True)
        for number, (expected, found) in enumerate(zip(course(plain, x), course(recorded, y), strict=True)):
            tolerance = rounding(torch.float64, 12 * (number + 1), 8.0)
            assert_close(torch.tensor(found, dtype=torch.float64), expected, tolerance, "the parameter")

    @clause("15.optimizer.tensors")
    @pytest.mark.parametrize(
        ("settings", "naming"),
        [
            pytest.param({"betas": (torch.tensor(0.5), 0.75)}, "betas", id="one beta as a tensor and one as a float"),
            pytest.param({"betas": (torch.tensor(1.0), torch.tensor(0.5))}, "beta", id="a beta of 1 as a tensor"),
            pytest.param(
                {"lr": torch.tensor(0.5), "foreach": True}, r"\blr\b.*foreach", id="lr as a tensor with foreach"
            ),
            pytest.param(
                {"betas": (torch.tensor(0.5), torch.tensor(0.75)), "foreach": True},
                "betas.*foreach",
                id="betas as tensors with foreach",
            ),
        ],
    )
    def test_adam_and_adamw_reject_tensors(self, optimizer: Optimizer, settings: dict[str, Any], naming: str) -> None:
        with rejects(naming, *settings):
            optimizer([parameter(1)], **settings)

    @clause("15.adam.dense")
    def test_adam_and_adamw_reject_sparse_gradients(self, optimizer: Optimizer) -> None:
        x = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        with torch.sparse.check_sparse_tensor_invariants():
            x.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2, dtype=torch.float64), (3, 2))  # pyright: ignore[reportArgumentType]
        with rejects("sparse", "grad", "gradient", "params"):
            optimizer([x]).step()

    @clause("15.adam.count")
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_steps_are_counted_exactly_for_every_default_dtype(self, optimizer: Optimizer, dtype: torch.dtype) -> None:
        # bfloat16 counts to 256, float16 to 2048
        x, before = parameter(1), torch.get_default_dtype()
        made = optimizer([x])
        try:
            torch.set_default_dtype(dtype)
            step(made, x, [1.0])
        finally:
            torch.set_default_dtype(before)
        made.state[x]["step"] += 2999
        step(made, x, [1.0])
        assert made.state[x]["step"].item() == 3001


class TestAdam(OptionsOfAdam):
    theirs = torch.optim.Adam
    kept = 1.0

    @pytest.fixture
    def optimizer(self, Adam: Optimizer) -> Optimizer:
        return Adam


class TestAdamW(OptionsOfAdam):
    theirs = torch.optim.AdamW
    kept = 1 - 0.25 * 0.01  # lr · weight_decay is taken away

    @pytest.fixture
    def optimizer(self, AdamW: Optimizer) -> Optimizer:
        return AdamW


# The reference alone


@clause("15.optimizer.differentiable")
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        pytest.param(reference.SGD, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.25}, id="SGD"),
        pytest.param(reference.Adam, {"amsgrad": True, "weight_decay": 0.25}, id="Adam"),
        pytest.param(reference.AdamW, {"amsgrad": True}, id="AdamW"),
    ],
)
def test_the_reference_s_optimizers_are_differentiable_through_several_steps(
    make: Optimizer, settings: dict[str, Any]
) -> None:
    """Differentiate in start, gradients and learning rate. PyTorch's raise an error in the second step."""

    def moved(start: Tensor, g: Tensor, lr: Tensor) -> Tensor:
        x = start.clone()
        x.retain_grad()
        made = make([x], lr=lr, differentiable=True, **settings)
        for factor in (1.0, -0.5, 2.0):
            x.grad = factor * g.square()
            made.step()
        return x

    numbers = (torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in ([2.0, -1.0], [0.5, 1.5], 0.25))
    assert torch.autograd.gradcheck(moved, tuple(numbers))


@clause("15.optimizer.modes")
@pytest.mark.parametrize("make", [reference.Adam, reference.AdamW])
def test_the_reference_s_capturable_steps_are_the_same_on_the_cpu(make: Optimizer) -> None:
    x, y = parameter(1, -2), parameter(1, -2)
    plain, other = make([x], lr=0.25, amsgrad=True), make([y], lr=0.25, amsgrad=True, capturable=True)
    for expected, found in zip(course(plain, x), course(other, y), strict=True):
        # t is a tensor of float32, and with it 1 - 0.999ᵗ, which enlarges the rounding of 0.999ᵗ up to 1000 times
        assert_close(torch.tensor(found, dtype=torch.float64), expected, rounding(torch.float32, 1000, 0.25))


@clause("15.optimizer.tensors")
@pytest.mark.parametrize("make", [reference.Adam, reference.AdamW])
def test_betas_error_names_the_argument(make: Optimizer) -> None:
    with rejects(naming="betas.*one number"):
        make([parameter(1)], betas=(torch.tensor([0.5, 0.5]), torch.tensor(0.5)))


@clause("15.optimizer.copies")
@pytest.mark.parametrize("make", [reference.SGD, reference.Adam, reference.AdamW])
def test_load_state_dict_copies_the_state(make: Optimizer) -> None:
    """PyTorch's optimizers share the tensors of the state dict, so that each changes the state of the other."""
    settings = {"momentum": 0.5} if make is reference.SGD else {}
    x, y = parameter(1, -2), parameter(1, -2)
    first, second = make([x], **settings), make([y], **settings)
    step(first, x, [3.0, -1.0])
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(second.state_dict())
    step(first, x, [3.0, -1.0])
    assert str(second.state_dict()) == str(before)
