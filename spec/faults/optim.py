"""Chapter 15: optimizers that are wrong."""

from typing import Any

import torch
from torch import Tensor, optim

from spec.faults import Fault

# SGD


class VelocityIsAnAverage(Fault):
    """The velocity accumulates (1 - momentum) · gradient, as in Adam."""

    caught_by = "test_15_optim.py::test_momentum_buffer_converges_under_a_constant_gradient"
    says = r"the last step differs(.|\n)*expected   1.5"

    class SGD(optim.SGD):
        def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0, **options: Any) -> None:
            super().__init__(params, lr, momentum, dampening=momentum, **options)


class VelocitySharesTheFirstGradient(Fault):
    """The velocity is the gradient tensor itself instead of a copy."""

    caught_by = "test_15_optim.py::test_momentum_buffer_does_not_change_the_gradient"
    says = r"got        -1.0\n.*expected   -1.5"

    class SGD(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            first = [p for group in self.param_groups for p in group["params"] if p not in self.state]
            result = super().step(closure)
            for parameter in first:
                if parameter.grad is not None and "momentum_buffer" in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = parameter.grad
            return result


class SGDAscends(Fault):
    """The step adds the gradient instead of subtracting it."""

    caught_by = "test_15_optim.py::test_sgd_steps_against_the_gradient"
    says = r"got        1.02\n.*expected   0.98"

    class SGD(optim.SGD):
        def __init__(self, params: Any, *args: Any, maximize: bool = False, **options: Any) -> None:
            super().__init__(params, *args, maximize=not maximize, **options)


class WeightDecayIsDecoupledInSGD(Fault):
    """The weight decay is applied to the weights directly, not through the momentum."""

    caught_by = "test_15_optim.py::test_sgd_weight_decay_equals_the_gradient_of_an_l2_penalty"
    says = r"the parameter differs"

    class SGD(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            decays = [group["weight_decay"] for group in self.param_groups]
            for group in self.param_groups:
                group["weight_decay"] = 0
            result = super().step(closure)
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
            return result


class WeightDecayIsWrittenIntoTheGradient(Fault):
    """The weight decay is added to the gradient in place, so that the gradient grows in each step."""

    caught_by = "test_15_optim.py::test_step_leaves_the_gradients_unchanged"
    says = r"the gradient after the step differs"

    class SGD(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter, alpha=group["weight_decay"])
            return super().step(closure)


class GradientsBecomeZeros(Fault):
    """zero_grad sets gradients to zero instead of None, as before PyTorch 2."""

    caught_by = "test_15_optim.py::test_zero_grad_sets_gradients_to_none_by_default"
    says = r"the gradient must be None, not zeros"

    class SGD(optim.SGD):
        def zero_grad(self, set_to_none: bool = False) -> None:
            super().zero_grad(set_to_none)


class NesterovIsPlainMomentum(Fault):
    """The setting is accepted and not used."""

    caught_by = "test_15_optim.py::test_sgd_equals_the_update_rule_elementwise"
    says = r"the parameter after step 0 differs"

    class SGD(optim.SGD):
        def __init__(self, params: Any, *args: Any, nesterov: bool = False, **options: Any) -> None:
            super().__init__(params, *args, **options)


class MissingGradientsAreZero(Fault):
    """A parameter without a gradient is decayed and keeps moving by its momentum."""

    caught_by = "test_15_optim.py::test_a_parameter_without_a_gradient_is_left_alone"
    says = r"got        0.\d+\n.*expected   1.0"

    class SGD(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
            return super().step(closure)


class OnlyTheRateIsPrinted(Fault):
    """The repr shows only the learning rate."""

    caught_by = "test_15_optim.py::test_repr_lists_every_setting_in_alphabetical_order"
    says = r"'momentum': None"

    class SGD(optim.SGD):
        def __repr__(self) -> str:
            groups = [f"Parameter Group {n}\n    lr: {group['lr']}\n" for n, group in enumerate(self.param_groups)]
            return "SGD (\n" + "\n".join(groups) + ")"


class RateIsReadOnce(Fault):
    """The learning rate is read when the optimizer is created, so that schedulers have no effect."""

    caught_by = "test_15_optim_options.py::test_scheduler_learning_rate_applies_to_the_next_step"
    says = r"the parameter after a step with lr = 0 differs"

    class SGD(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] = self.defaults["lr"]
            result = super().step(closure)
            for group, lr in zip(self.param_groups, seen, strict=True):
                group["lr"] = lr
            return result


class NamesAreForgotten(Fault):
    """named_parameters() is accepted, but the names are not stored."""

    caught_by = "test_15_optim_options.py::test_named_parameters_are_accepted_and_names_are_kept"
    says = r"KeyError: 'param_names'"

    class SGD(optim.SGD):
        def add_param_group(self, param_group: Any) -> None:
            super().add_param_group(param_group)
            self.param_groups[-1].pop("param_names", None)


class FusedAddsTheDecayTwice(Fault):
    """`fused` applies the weight decay twice."""

    caught_by = "test_15_optim_options.py::test_foreach_and_fused_do_not_change_the_step"
    says = r"the result differs"

    class SGD(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                if group["fused"]:
                    group["weight_decay"] *= 2
            return super().step(closure)


class SchedulersAreRefused(Fault):
    """The class is not a torch.optim.Optimizer, so that PyTorch's schedulers reject it."""

    caught_by = "test_15_optim_options.py::test_schedulers_set_the_same_learning_rates_as_with_pytorchs_optimizer"
    says = r"TypeError: SGD is not an Optimizer|is not an Optimizer"

    class SGD:
        def __init__(self, params: Any, lr: float = 1e-3, **options: Any) -> None:
            self.own = optim.SGD(params, lr, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.own, name)


# Adam


class BiasIsNotCorrected(Fault):
    """The bias correction of m and v is missing."""

    caught_by = "test_15_optim.py::test_adam_first_step_is_lr_for_any_gradient_size"
    says = r"the parameter differs"

    class Adam(optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                beta1, beta2 = group["betas"]
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        m, v = self._averages(parameter)
                        m.lerp_(parameter.grad, 1 - beta1)
                        v.lerp_(parameter.grad.square(), 1 - beta2)
                        parameter -= group["lr"] * m / (v.sqrt() + group["eps"])

        def _averages(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
            state = self.state[parameter]
            if not state:
                state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            return state["m"], state["v"]


class EpsIsUnderTheRoot(Fault):
    """The divisor is √(v + eps) instead of √v + eps."""

    caught_by = "test_15_optim.py::test_adam_steps_are_equal_under_a_constant_gradient"
    says = r"the parameter differs"

    class Adam(optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                beta1, beta2 = group["betas"]
                for parameter in group["params"]:
                    state = self.state[parameter]
                    if not state:
                        state |= {"t": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
                    state["t"] += 1
                    state["m"].lerp_(parameter.grad, 1 - beta1)
                    state["v"].lerp_(parameter.grad.square(), 1 - beta2)
                    m, v = state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"])
                    parameter -= group["lr"] * m / (v + group["eps"]).sqrt()


class AdamDecaysDecoupled(Fault):
    """Adam computes AdamW."""

    caught_by = "test_15_optim.py::test_with_a_gradient_of_0_adam_steps_by_lr_for_every_weight_decay"
    says = r"expected   2.5"

    class Adam(optim.Adam):
        def __init__(self, params: Any, *args: Any, **options: Any) -> None:
            super().__init__(params, *args, **options, decoupled_weight_decay=True)

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["eps"] = max(group["eps"], 1e-30)  # 0 / 0 without a gradient
            return super().step(closure)


class AmsgradIsIgnored(Fault):
    """amsgrad has no effect: v may decrease."""

    caught_by = "test_15_optim.py::test_amsgrad_divides_by_the_maximum_of_exp_avg_sq"
    says = r"the parameter after a gradient of 1 differs"

    class Adam(optim.Adam):
        def __init__(self, params: Any, *args: Any, amsgrad: bool = False, **options: Any) -> None:
            super().__init__(params, *args, **options)


class StepsAreCountedTogether(Fault):
    """All parameters share one step count, also a parameter that had no gradient in some steps."""

    caught_by = "test_15_optim.py::test_adam_equals_the_update_rule_elementwise"
    says = r"the parameter after step \d differs"

    class Adam(optim.Adam):
        count = 0

        def step(self, closure: Any = None) -> Any:
            self.count += 1
            for state in self.state.values():
                state["step"].fill_(self.count - 1)
            return super().step(closure)


class StepsAreCountedInBfloat16(Fault):
    """The step count stays at 256, because bfloat16 cannot represent 257."""

    caught_by = "test_15_optim_options.py::test_steps_are_counted_exactly_for_every_default_dtype"
    says = r"== 3001"

    class Adam(optim.Adam):
        def step(self, closure: Any = None) -> Any:
            for state in self.state.values():
                state["step"] = state["step"].to(torch.bfloat16)
            result = super().step(closure)
            for state in self.state.values():
                state["step"] = state["step"].to(torch.bfloat16)
            return result


# AdamW


class AdamWIsAdam(Fault):
    """The weight decay is added to the gradient."""

    caught_by = "test_15_optim.py::test_with_a_gradient_of_0_adamw_only_shrinks_the_weights"
    says = r"the parameter differs"

    class AdamW(optim.Adam):
        pass


class DecayIsNotTimesTheLearningRate(Fault):
    """The weights are multiplied by 1 - weight_decay, without the learning rate."""

    caught_by = "test_15_optim.py::test_with_a_gradient_of_0_adamw_only_shrinks_the_weights"
    says = r"the parameter differs"

    class AdamW(optim.AdamW):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        decay = group["weight_decay"]
                        parameter.mul_((1 - decay) / (1 - group["lr"] * decay))
            return super().step(closure)


class AdamWDoesNotDecayByDefault(Fault):
    """The default of weight_decay is that of Adam."""

    caught_by = "test_15_optim.py::test_optimizer_defaults"
    says = r"'weight_decay': 0[^.]"

    class AdamW(optim.AdamW):
        def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0, **options: Any) -> None:
            super().__init__(params, lr, weight_decay=weight_decay, **options)


class StateForgetsTheSteps(Fault):
    """A loaded optimizer restarts its step count at 0."""

    caught_by = "test_15_optim.py::test_a_state_dict_resumes_the_optimization"
    says = r"the parameter differs"

    class AdamW(optim.AdamW):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)
            for state in self.state.values():
                state["step"].zero_()


class LeavesOutTheTail(Fault):
    """Numbers are processed in vectors of 16; the remaining numbers are skipped."""

    caught_by = "test_15_optim.py::test_sgd_changes_every_number_of_a_large_parameter"
    says = r"the parameter after step 0 differs"

    class SGD(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            before = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}
            result = super().step(closure)
            for parameter, old in before.items():
                if parameter.numel() >= 16 and (rest := parameter.numel() % 16):
                    parameter.flatten()[-rest:] = old.flatten()[-rest:]
            return result
