"""Chapter 15: optimizers, which update the parameters of a network to reduce its loss.

`loss.backward()` stores in each parameter's `grad` the direction in which the loss rises; `step()` then moves the
parameter against it. `SGD` uses the gradient, or the gradient accumulated over time (momentum); `Adam` also divides it
by its typical size, for each number separately; `AdamW` shrinks the weights separately.

`torch.optim.Optimizer` is the base class, as `torch.nn.Module` is that of the layers: it keeps the groups, the state,
the names of the parameters and the hooks, and computes nothing. So the schedulers of `torch.optim.lr_scheduler` work
with these optimizers, and state dicts can be exchanged with PyTorch's.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from inspect import unwrap
from itertools import chain
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

ParameterGroup = dict[str, Any]
"""Parameters, `group["params"]`, and the settings for their optimization."""

Scalar = float | int | Float[Tensor, "..."]
"""A number, or a tensor of one number, which may change between steps."""

Parameters = Iterable[Tensor] | Iterable[ParameterGroup] | Iterable[tuple[str, Tensor]]
"""Parameters, groups of parameters, or parameters with names, as `named_parameters()` gives them."""

Loss = TypeVar("Loss")


class Optimizer(torch.optim.Optimizer):
    """Parameters in groups, the settings of each group, and the state of each parameter between steps.

    A subclass defines `_update`, the change of one parameter.

    Args:
        params: the parameters, with or without names, or groups of them: dicts with the parameters under "params" and
            the settings that differ from `defaults`.
        defaults: the settings for groups that do not set them.

    Attributes:
        param_groups: the groups; their settings may be changed between steps.
        state: the state of each parameter, from its first step on.
        defaults: as given.

    Raises:
        ValueError: there are no parameters, one of them is in two groups, one is computed from others (not a leaf), or
            only some have names.
        TypeError: `params` is a tensor or a set, or one of its elements is not a tensor.
    """

    param_groups: list[ParameterGroup]

    def add_param_group(self, param_group: ParameterGroup) -> None:
        """Add a parameter group.

        Args:
            param_group: one parameter or several under "params", and the settings that differ from `defaults`.

        Raises:
            ValueError: as the constructor.
            TypeError: as the constructor; or `param_group` is not a dict.
        """
        given = param_group.get("params") if isinstance(param_group, dict) else None
        if isinstance(given, Iterable) and not isinstance(given, set | Tensor):
            given = list(given)
            for number, entry in enumerate(given):
                self._check_parameter(number, entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry)
        group = param_group if given is None else {**param_group, "params": given}
        _without_compiler(torch.optim.Optimizer.add_param_group)(self, group)

    def _check_parameter(self, number: int, parameter: Any) -> None:
        name = type(self).__name__
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{name}: params[{number}] is a {type(parameter).__name__}, but needs to be a tensor")
        if not (parameter.is_leaf or parameter.retains_grad or self.defaults.get("differentiable")):
            raise ValueError(f"{name}: params[{number}] is computed from other tensors, but needs to be a leaf")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, to which `backward` would add; with `set_to_none=False` fill them with zeros."""
        for parameter in self._parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.detach_().zero_()

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change each parameter that has a gradient.

        Args:
            closure: called first; it recomputes the loss and the gradients.

        Returns:
            The return value of `closure`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            differentiable = bool(group.get("differentiable"))
            with torch.set_grad_enabled(differentiable):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        gradient = -parameter.grad if group["maximize"] else parameter.grad
                        # the graph of the previous step keeps the previous value
                        if differentiable and parameter in self.state:
                            state = self.state[parameter]
                            state.update({key: value.clone() for key, value in state.items()})
                        self._update(parameter, gradient, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of each parameter, by its number, and the settings of each group."""
        return _without_compiler(torch.optim.Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of another optimizer, of this class or PyTorch's, with parameters in the same order.

        Settings and state become copies of those in `state_dict`, in the dtype and on the device of each parameter.

        Args:
            state_dict: the return value of `state_dict`.

        Raises:
            ValueError: its groups differ from those here in number or length.
        """
        _without_compiler(torch.optim.Optimizer.load_state_dict)(self, deepcopy(state_dict))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or loaded state; missing settings get their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, group: ParameterGroup) -> None:
        """Change `parameter` in place, against `gradient`, with the settings of its `group`."""

    def _parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)


def _without_compiler(method: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's `method` without the wrapper that imports `torch._dynamo` at the first call: 900 modules, seconds.

    The wrapper keeps the compiler from tracing the method, so it is needed only if the compiler is there.
    """
    return method if "torch._dynamo" in sys.modules else unwrap(method)


class SGD(Optimizer):
    """Stochastic gradient descent with optional momentum. At each step, with gradient g and parameter θ:

        g ← g + weight_decay · θ
        b ← momentum · b + (1 - dampening) · g      (at the first step b ← g)
        g ← g + momentum · b  if nesterov, else b   (only with momentum)
        θ ← θ - lr · g

    Without dampening b is a weighted sum of the gradients, not their average: under a constant gradient it grows to
    g / (1 - momentum).

    Args:
        params: the parameters, with or without names, or groups of them.
        lr: the learning rate, not negative.
        momentum: the share of the accumulated gradient b that each step keeps, not negative.
        dampening: the share of a gradient that is not added to b.
        weight_decay: the share of θ that is added to the gradient, not negative.
        nesterov: use g + momentum · b, which approximates the gradient one step ahead; needs momentum, and no
            dampening.
        maximize: ascend instead of descend: g ← -g first.
        foreach, fused: accepted for compatibility; in PyTorch they choose a faster way to the same result.
        differentiable: let autograd differentiate through the step.

    Raises:
        ValueError: a number is out of its range, `nesterov` without momentum or with dampening, or as `Optimizer`.
        TypeError: as `Optimizer`.
        RuntimeError: `fused` is combined with `foreach` or `differentiable`.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning (2013).
    """

    def __init__(
        self,
        params: Parameters,
        lr: Scalar = 1e-3,
        momentum: float | int = 0,
        dampening: float | int = 0,
        weight_decay: Scalar = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _check_not_negative("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        _check_modes("SGD", foreach=foreach, differentiable=differentiable, fused=fused)
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(
                f"SGD: nesterov needs momentum > 0 and dampening = 0, got momentum={momentum}, dampening={dampening}"
            )
        settings = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, settings)

    def _update(self, parameter: Tensor, gradient: Tensor, group: ParameterGroup) -> None:
        lr, momentum, decay = _plain(group["lr"], group), group["momentum"], _plain(group["weight_decay"], group)
        if isinstance(decay, Tensor):
            gradient = gradient + decay * parameter
        elif decay != 0:
            gradient = gradient.add(parameter, alpha=decay)
        if momentum != 0:
            state = self.state[parameter]
            velocity = state.get("momentum_buffer")
            if velocity is None:
                velocity = state["momentum_buffer"] = gradient.clone()
            else:
                velocity.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
            gradient = gradient.add(velocity, alpha=momentum) if group["nesterov"] else velocity
        if isinstance(lr, Tensor):
            parameter.sub_(lr * gradient)
        else:
            parameter.add_(gradient, alpha=-lr)


class Adam(Optimizer):
    """Adaptive moment estimation (Kingma and Ba, 2015). At step t, with gradient g and parameter θ, for each number:

        g ← g + weight_decay · θ
        m ← β1 · m + (1 - β1) · g
        v ← β2 · v + (1 - β2) · g²
        θ ← θ - lr · m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + eps)

    m and v start at 0, and the divisions by 1 - β^t correct for that. With `amsgrad` the largest v so far replaces v
    in the root. With `decoupled_weight_decay` the first line is θ ← θ - lr · weight_decay · θ, as in `AdamW`. A complex
    parameter counts as its real and imaginary parts.

    Args:
        params: the parameters, with or without names, or groups of them.
        lr: the learning rate, not negative.
        betas: β1 and β2, in [0, 1): two floats, or two tensors of one number.
        eps: keeps the division finite, not negative.
        weight_decay: the share of θ that is added to the gradient, not negative.
        amsgrad: never let v decrease (Reddi et al., 2018).
        foreach, fused: accepted for compatibility; in PyTorch they choose a faster way to the same result.
        maximize: ascend instead of descend: g ← -g first.
        capturable: keep t on the parameter's device and never synchronize, so that a CUDA graph can record the step.
        differentiable: let autograd differentiate through the step.
        decoupled_weight_decay: shrink θ itself rather than change its gradient.

    Raises:
        ValueError: a number is out of its range, `lr` or `betas` are tensors with `foreach` and without `capturable`
            (as in PyTorch), or as `Optimizer`.
        TypeError: as `Optimizer`.
        RuntimeError: `fused` is combined with `foreach` or `differentiable`; in a step, a gradient is sparse.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Scalar = 1e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: float | int = 1e-8,
        weight_decay: float | int = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        name = type(self).__name__
        _check_not_negative(name, lr=lr, eps=eps, weight_decay=weight_decay)
        _check_modes(name, foreach=foreach, differentiable=differentiable, fused=fused)
        _check_betas(name, betas)
        if foreach and not capturable and any(isinstance(value, Tensor) for value in (lr, *betas)):
            raise ValueError(f"{name}: lr and betas as tensors need capturable=True or foreach other than True")
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, settings)

    def _update(self, parameter: Tensor, gradient: Tensor, group: ParameterGroup) -> None:
        state = self.state[parameter] or self._begin(parameter, gradient, group)
        state["step"] += 1
        t, beta1, beta2 = (_plain(value, group) for value in (state["step"], *group["betas"]))
        lr = group["lr"]
        lr = lr.reshape(()) if isinstance(lr, Tensor) else lr  # divided in its own precision, as in PyTorch
        parameter, gradient, m, v = map(_real, (parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
        if group["weight_decay"] != 0:
            if group["decoupled_weight_decay"]:
                parameter.mul_(1 - lr * group["weight_decay"])
            else:
                gradient = gradient.add(parameter, alpha=group["weight_decay"])
        m.lerp_(gradient, _weight(1 - beta1, m))
        _add_product(v.mul_(beta2), gradient, gradient, 1 - beta2)
        if group["amsgrad"]:
            largest = _real(state["max_exp_avg_sq"])
            v = largest.copy_(torch.maximum(largest.clone(), v))
        root = (v.sqrt() / (1 - beta2**t) ** 0.5).add_(group["eps"])
        step_size = _plain(lr / (1 - beta1**t), group)
        if isinstance(step_size, Tensor):
            parameter.sub_(step_size * m / root)
        else:
            parameter.addcdiv_(m, root, value=-step_size)

    def _begin(self, parameter: Tensor, gradient: Tensor, group: ParameterGroup) -> dict[str, Tensor]:
        """The state before the first step: t = 0, and zeros."""
        if gradient.layout != torch.strided:
            raise RuntimeError(f"{type(self).__name__}: a gradient is sparse, but needs to be dense")
        state = self.state[parameter]
        on_device = group["capturable"] or group["fused"]
        state["step"] = _counter(0).to(parameter.device if on_device else "cpu")
        for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ())):
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As `Optimizer`; a step count saved before PyTorch 1.12 is not a tensor and becomes one."""
        super().__setstate__(state)
        for remembered in self.state.values():
            if not isinstance(remembered.get("step", None), Tensor | None):
                remembered["step"] = _counter(remembered["step"])


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019): the first line of `Adam` is

        θ ← θ - lr · weight_decay · θ

    so that the decay of a weight does not depend on its gradients. Arguments and errors are those of `Adam`.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Scalar = 1e-3,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: float | int = 1e-8,
        weight_decay: float | int = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As `Adam`; the decay remains decoupled, even if the state is that of an Adam optimizer."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _counter(steps: float | int) -> Tensor:
    """A step count as a tensor that counts exactly up to at least 2²⁴, for any default dtype."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(steps), dtype=dtype)


def _plain(value: Scalar, group: ParameterGroup) -> Any:
    """A tensor of one number as a Python number.

    It stays a tensor, without dimensions, if reading it would break a recording (`capturable`) or a graph
    (`differentiable`).
    """
    if not isinstance(value, Tensor):
        return value
    if group["differentiable"] or group.get("capturable"):
        return value.reshape(()).clone()
    return value.item()


def _weight(value: Any, like: Tensor) -> Any:
    """The weight for `lerp_`: a number, or a tensor of the dtype and device of `like`."""
    return value.to(like) if isinstance(value, Tensor) else value


def _add_product(total: Tensor, first: Tensor, second: Tensor, scale: Any) -> None:
    """total ← total + scale · first · second."""
    if isinstance(scale, Tensor):
        total.add_(scale * first * second)
    else:
        total.addcmul_(first, second, value=scale)


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as its real and imaginary parts, in the same memory; a real one unchanged."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _check_not_negative(name: str, **settings: Scalar) -> None:
    for setting, value in settings.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name}: {setting} is a tensor of {value.numel()} numbers, but needs to be one number")
        if not value >= 0:
            raise ValueError(f"{name}: {setting} needs to be a number of at least 0, got {value}")


def _check_betas(name: str, betas: Any) -> None:
    """Check for two floats or two tensors of one number; like PyTorch, reject a mixture of both, and integers."""
    kinds = {kind for beta in betas for kind in (float, Tensor) if isinstance(beta, kind)}
    valid = len(betas) == 2 and len(kinds) == 1 and all(isinstance(beta, float | Tensor) for beta in betas)
    if not valid or any(isinstance(beta, Tensor) and beta.numel() != 1 for beta in betas):
        raise ValueError(f"{name}: betas need to be two floats or two tensors of one number, got {betas}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{name}: betas need to be at least 0 and below 1, got {betas}")


def _check_modes(name: str, *, foreach: bool | None, differentiable: bool, fused: bool | None) -> None:
    if fused and foreach:
        raise RuntimeError(f"{name}: fused and foreach exclude each other")
    if fused and differentiable:
        raise RuntimeError(f"{name}: fused and differentiable exclude each other")
