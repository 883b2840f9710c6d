"""Chapters 14 and 15: typical mistakes in the first version of a learner's losses and optimizers."""

import math
from typing import Any

import torch
from torch import Tensor, optim
from torch.nn import functional as F

from spec.faults import Fault

# chapter 14: losses


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


class AccuracyIsTheLoss(Fault):
    """The share of right answers, which rises as the network gets better and has no gradient."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return _reduced((input.argmax(1) == target).to(input.dtype), reduction)


class CrossEntropyLosesItsMinus(Fault):
    """The logarithm of the probability, which is negative."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"got        -1\.1019"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return -F.cross_entropy(input, target, *args, **options)


class CrossEntropyHasNoLogarithm(Fault):
    """Minus the probability of the right class."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.nll_loss(F.softmax(input, 1), target, reduction=reduction)


class CrossEntropyOfASoftmax(Fault):
    """The softmax is applied twice: once before the loss and once within it."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.cross_entropy(F.softmax(input, 1), target, *args, **options)


class LogitsAreTakenForProbabilities(Fault):
    """Minus the logarithm of the score of the right class: the softmax is missing."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.nll_loss(input.log(), target, reduction=reduction)


class CrossEntropyToTheBaseOf2(Fault):
    """log2 instead of the natural logarithm."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(input, target, reduction=reduction) / math.log(2)


class CrossEntropyToTheBaseOf10(Fault):
    """log10 instead of the natural logarithm."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(input, target, reduction=reduction) / math.log(10)


class CrossEntropySumsByDefault(Fault):
    """The losses of a batch are added up and not averaged."""

    caught_by = "test_14_cross_entropy.py::test_cross_entropy_of_class_numbers_equals_the_definition"
    says = r"differs"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *given: Any, reduction: str = "sum", **options: Any) -> Tensor:
        return F.cross_entropy(input, target, *given, reduction="sum" if reduction == "mean" else reduction, **options)


class CrossEntropyIsOverTheBatch(Fault):
    """The softmax is taken over the images of the batch instead of over the classes."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.nll_loss(F.log_softmax(input, 0), target, reduction=reduction)


class CrossEntropyDividesByTheClasses(Fault):
    """The mean is over all scores instead of over the images."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        loss = F.cross_entropy(input, target, reduction=reduction)
        return loss / input.shape[-1] if reduction == "mean" else loss


class TheErrorRateIsTheLoss(Fault):
    """The share of wrong answers, which has no gradient."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return _reduced((input.argmax(-1) != target).to(input.dtype), reduction)


class LogitsAreTakenForLogarithms(Fault):
    """Minus the logit of the right class: the softmax is missing."""

    caught_by = "test_14_cross_entropy.py::test_the_cross_entropy_is_printed_as_1_1019"
    says = r"expected   1\.1018999"

    @staticmethod
    def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return F.nll_loss(input, target, reduction=reduction)


class SquaredErrorsAreAddedUp(Fault):
    """The sum by default, not the mean."""

    caught_by = "test_14_loss.py::test_mse_loss_reduction"
    says = r"expected   1\.3333"

    @staticmethod
    def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "sum") -> Tensor:
        return _reduced((input - target).square(), reduction)


class ErrorsAreNotSquared(Fault):
    """The absolute difference instead of its square."""

    caught_by = "test_14_loss.py::test_mse_loss_reduction"
    says = r"expected   1\.3333"

    @staticmethod
    def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return _reduced((input - target).abs(), reduction)


class PositiveAndNegativeErrorsCancel(Fault):
    """The absolute value is missing."""

    caught_by = "test_14_loss.py::test_l1_loss_of_one_element_is_the_absolute_difference"
    says = r"differs|assert"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return _reduced(input - target, reduction)


class ErrorsAreSquared(Fault):
    """The square of the difference instead of its absolute value."""

    caught_by = "test_14_loss.py::test_l1_loss_of_one_element_is_the_absolute_difference"
    says = r"differs|assert"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return _reduced((input - target).square(), reduction)


class L1LossIsHalved(Fault):
    """Half of the mean."""

    caught_by = "test_14_loss.py::test_the_l1_loss_is_printed_as_0_6667"
    says = r"differs"

    @staticmethod
    def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return _reduced((input - target).abs() / 2, reduction)


# chapter 15: optimizers


class GradientsAreNeverCleared(Fault):
    """zero_grad does nothing, so that the gradients of all steps add up."""

    caught_by = "test_15_optim.py::test_zero_grad_sets_gradients_to_none_by_default"
    says = r"None"

    class SGD(optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            pass


class MomentumHasTheWrongSign(Fault):
    """velocity = gradient - momentum · velocity."""

    caught_by = "test_15_optim.py::test_sgd_with_momentum_equals_the_heavy_ball_method"
    says = r"differs|assert"

    class SGD(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    velocity = parameter.grad.clone()
                    if "velocity" in state:
                        velocity -= group["momentum"] * state["velocity"]
                    state["velocity"] = velocity
                    parameter.add_(velocity, alpha=-group["lr"])


class StepsGoUphill(Fault):
    """parameter + lr · gradient: gradient ascent."""

    caught_by = "test_15_optim.py::test_sgd_steps_against_the_gradient"
    says = r"differs|assert"

    class SGD(optim.SGD):
        def __init__(self, params: Any, lr: Any = 1e-3, momentum: float = 0, **options: Any) -> None:
            super().__init__(params, lr, momentum, maximize=True)


class MomentumIsForgotten(Fault):
    """The setting is taken and not used."""

    caught_by = "test_15_optim.py::test_sgd_with_momentum_equals_the_heavy_ball_method"
    says = r"differs|assert"

    class SGD(optim.SGD):
        def __init__(self, params: Any, lr: Any = 1e-3, momentum: float = 0, **options: Any) -> None:
            super().__init__(params, lr)


class WeightDecayIsSubtracted(Fault):
    """gradient - weight_decay · parameter: the weights grow."""

    caught_by = "test_15_optim.py::test_sgd_weight_decay_equals_the_gradient_of_an_l2_penalty"
    says = r"differs|assert"

    class SGD(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["weight_decay"] *= -1
            loss = super().step(closure)
            for group in self.param_groups:
                group["weight_decay"] *= -1
            return loss


class WeightDecayIsForgotten(Fault):
    """The setting is taken and not used."""

    caught_by = "test_15_optim.py::test_sgd_weight_decay_equals_the_gradient_of_an_l2_penalty"
    says = r"differs|assert"

    class SGD(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            kept = [group["weight_decay"] for group in self.param_groups]
            for group in self.param_groups:
                group["weight_decay"] = 0
            loss = super().step(closure)
            for group, decay in zip(self.param_groups, kept, strict=True):
                group["weight_decay"] = decay
            return loss


class TheLastVelocityIsUsed(Fault):
    """The parameter moves by the velocity before the new gradient is added to it."""

    caught_by = "test_15_optim.py::test_sgd_with_momentum_equals_the_heavy_ball_method"
    says = r"differs|assert"

    class SGD(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    if not group["momentum"]:
                        parameter.add_(parameter.grad, alpha=-group["lr"])
                        continue
                    state = self.state[parameter]
                    velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                    parameter.add_(velocity, alpha=-group["lr"])
                    velocity.mul_(group["momentum"]).add_(parameter.grad)


class TheGradientCountsOneMinusMomentum(Fault):
    """velocity = momentum · velocity + (1 - momentum) · gradient, from a velocity of 0."""

    caught_by = "test_15_optim.py::test_sgd_with_momentum_equals_the_heavy_ball_method"
    says = r"differs|assert"

    class SGD(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                    velocity.mul_(group["momentum"]).add_(parameter.grad, alpha=1 - group["momentum"])
                    parameter.add_(velocity, alpha=-group["lr"])


class TheSecondMomentHasNoRoot(Fault):
    """lr · m / (v + eps): the square root is missing."""

    caught_by = "test_15_optim.py::test_adam_equals_the_update_rule_elementwise"
    says = r"differs|assert"

    class Adam(optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            _adam(self, root=False)


class TheBetasAreExchanged(Fault):
    """The first moment keeps beta2 of itself and the second beta1."""

    caught_by = "test_15_optim.py::test_adam_equals_the_update_rule_elementwise"
    says = r"differs|assert"

    class Adam(optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            _adam(self, exchanged=True)


class StepsAreCountedFromZero(Fault):
    """The correction divides by 1 - beta ** 0 = 0 in the first step."""

    caught_by = "test_15_optim.py::test_adam_equals_the_update_rule_elementwise"
    says = r"differs|assert"

    class Adam(optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            _adam(self, first=0)


class OnlyTheFirstMomentIsCorrected(Fault):
    """v is not divided by 1 - beta2 ** t."""

    caught_by = "test_15_optim.py::test_adam_equals_the_update_rule_elementwise"
    says = r"differs|assert"

    class Adam(optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            _adam(self, second=False)


def _adam(optimizer: Any, *, root: bool = True, exchanged: bool = False, first: int = 1, second: bool = True) -> None:
    """Adam with the mistakes that the options name."""
    for group in optimizer.param_groups:
        beta1, beta2 = reversed(group["betas"]) if exchanged else group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            if not state:
                state.update(step=first - 1, m=torch.zeros_like(parameter), v=torch.zeros_like(parameter))
            state["step"] += 1
            gradient = parameter.grad + group["weight_decay"] * parameter
            m = state["m"].mul_(beta1).add_(gradient, alpha=1 - beta1) / _or_nan(1 - beta1 ** state["step"])
            v = state["v"].mul_(beta2).add_(gradient.square(), alpha=1 - beta2)
            v = v / _or_nan(1 - beta2 ** state["step"]) if second else v
            parameter.sub_(group["lr"] * m / ((v.sqrt() if root else v) + group["eps"]))


def _or_nan(number: float) -> float:
    return number or math.nan


class TheLearningRateIsForgotten(Fault):
    """parameter - gradient."""

    caught_by = "test_15_optim.py::test_sgd_steps_against_the_gradient"
    says = r"differs|assert"

    class SGD(optim.SGD):
        def __init__(self, params: Any, lr: Any = 1e-3, momentum: float = 0, **options: Any) -> None:
            super().__init__(params, 1.0, momentum)
