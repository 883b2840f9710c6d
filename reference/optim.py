"""Chapter 15: optimizers, which change the parameters of a network so that its loss falls.

`loss.backward()` leaves in each parameter's `grad` in which direction the loss rises; `step()` then moves the parameter
against it. `SGD` takes the gradient as it is, or averaged over time; `Adam` also divides it by its typical size, for
every number on its own; `AdamW` shrinks the weights apart from that.

State dicts travel to PyTorch's optimizers and back. The schedulers of `torch.optim.lr_scheduler` do not accept these
optimizers: they insist on PyTorch's base class, which one from first principles does not have. To change a learning
rate, set `group["lr"]` for each `group` of `param_groups`.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import chain
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Group = dict[str, Any]
"""Parameters, `group["params"]`, and the settings that they are optimized with."""

Scalar = float | int | Float[Tensor, "..."]
"""A number, or a tensor of one number, which may change between steps."""


Loss = TypeVar("Loss")


class Optimizer(ABC):
    """Parameters in groups, the settings of each group, and what is remembered of each parameter between steps.

    Args:
        params: the parameters, or groups of them: dicts with the parameters under "params" and such settings as differ
            from `defaults`.
        defaults: the settings of all groups that do not name their own.

    Attributes:
        param_groups: the groups; their settings may be changed between steps.
        state: what is remembered of each parameter, from its first step on.
        defaults: as given.

    Raises:
        ValueError: there are no parameters, one of them is given twice, or one is computed from others (not a leaf).
        TypeError: `params` is a tensor, or something in it is not one.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params is a tensor, but needs to be tensors or groups in a list")
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[Group] = []
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"{type(self).__name__}: params is empty, but needs at least one parameter")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: Group) -> None:
        """Optimize the parameters of one more group from now on.

        Args:
            param_group: one parameter or several under "params", and such settings as differ from `defaults`.

        Raises:
            ValueError: as the constructor.
            TypeError: as the constructor; or the parameters are a set, which has no order to save them in.
        """
        name = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(f"{name}: a parameter group is a {type(param_group).__name__}, but needs to be a dict")
        given = param_group["params"]
        if isinstance(given, set):
            raise TypeError(f"{name}: params is a set, which has no order; it needs to be a list")
        params = [given] if isinstance(given, Tensor) else list(given)
        known = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        for number, parameter in enumerate(params):
            if not isinstance(parameter, Tensor):
                raise TypeError(f"{name}: params[{number}] is a {type(parameter).__name__}, but needs to be a tensor")
            if not (parameter.is_leaf or parameter.retains_grad):
                raise ValueError(f"{name}: params[{number}] is computed from other tensors, but needs to be a leaf")
            if id(parameter) in known:
                raise ValueError(f"{name}: params[{number}] was given before, but each parameter needs one place")
            known.add(id(parameter))
        self.param_groups.append({**self.defaults, **param_group, "params": params})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, to which `backward` would add; with `set_to_none=False` fill them with zeros."""
        for parameter in self._parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.detach_().zero_()

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Change each parameter that has a gradient.

        Args:
            closure: called first; it computes the loss and the gradients anew.

        Returns:
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        gradient = -parameter.grad if group["maximize"] else parameter.grad
                        self._update(parameter, gradient, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here, with numbers instead of the parameters.

        Returns:
            `{"state": {number: what is remembered of the parameter}, "param_groups": [settings and numbers]}`. The
            tensors are those that the next step changes; saving or a deep copy keeps them as they are.
        """
        numbers = {id(parameter): number for number, parameter in enumerate(self._parameters())}
        return {
            "state": {numbers[id(parameter)]: state for parameter, state in self.state.items()},
            "param_groups": [
                {**group, "params": [numbers[id(parameter)] for parameter in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where another optimizer stood, this one's kind or PyTorch's, with parameters in the same order.

        Settings and state become those of `state_dict`, copied to the dtype and device of each parameter.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: its groups are not as many, or not as long, as those here.
        """
        saved_groups = state_dict["param_groups"]
        sizes, saved_sizes = (
            [len(group["params"]) for group in groups] for groups in (self.param_groups, saved_groups)
        )
        if sizes != saved_sizes:
            raise ValueError(
                f"{type(self).__name__}: state_dict has groups of {saved_sizes} parameters, but needs {sizes}"
            )
        numbers = chain.from_iterable(group["params"] for group in saved_groups)
        parameters = dict(zip(numbers, self._parameters(), strict=True))
        self.state = defaultdict(dict)
        for number, saved in state_dict["state"].items():
            parameter = parameters[number]
            self.state[parameter] = {key: _fit(value, key, parameter) for key, value in saved.items()}
        self.param_groups = [
            {**self.defaults, **deepcopy(saved), "params": group["params"]}
            for group, saved in zip(self.param_groups, saved_groups, strict=True)
        ]

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines += ["", f"Parameter Group {number}"] if number else [f"Parameter Group {number}"]
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        """Change `parameter` in place, against `gradient`, with the settings of its `group`."""

    def _parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted. At each step, with gradient g and parameter θ:

        g ← g + weight_decay · θ
        b ← momentum · b + (1 - dampening) · g      (at the first step b ← g)
        g ← g + momentum · b  if nesterov, else b   (only with momentum)
        θ ← θ - lr · g

    Args:
        params: the parameters, or groups of them.
        lr: the learning rate, not negative.
        momentum: how much of the running average b stays, not negative.
        dampening: how much of a gradient is kept out of b.
        weight_decay: how much of θ is added to the gradient, not negative.
        nesterov: look ahead; needs momentum, and no dampening.
        maximize: climb instead of descend: g ← -g first.

    Raises:
        ValueError: a number is out of its range, `nesterov` misses what it needs, or as `Optimizer` says.
        TypeError: as `Optimizer` says.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: Scalar = 1e-3,
        momentum: float | int = 0,
        dampening: float | int = 0,
        weight_decay: Scalar = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        _check_not_negative("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
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
        }
        super().__init__(params, {**settings, "foreach": None, "differentiable": False, "fused": None})

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        momentum = group["momentum"]
        if group["weight_decay"] != 0:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if momentum != 0:
            state = self.state[parameter]
            average = state.get("momentum_buffer")
            if average is None:
                average = state["momentum_buffer"] = gradient.detach().clone()
            else:
                average.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
            gradient = gradient.add(average, alpha=momentum) if group["nesterov"] else average
        parameter.add_(gradient, alpha=-_number(group["lr"]))


class Adam(Optimizer):
    """Adaptive moment estimation (Kingma and Ba, 2015). At step t, with gradient g and parameter θ, for each number:

        g ← g + weight_decay · θ
        m ← β1 · m + (1 - β1) · g
        v ← β2 · v + (1 - β2) · g²
        θ ← θ - lr · m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + eps)

    m and v start at 0, and the divisions by 1 - β^t make up for that. With `amsgrad` the largest v so far stands under
    the root. With `decoupled_weight_decay` the first line is θ ← θ - lr · weight_decay · θ, as in `AdamW`.

    Args:
        params: the parameters, or groups of them.
        lr: the learning rate, not negative.
        betas: β1 and β2, two floats in [0, 1).
        eps: keeps the division finite, not negative.
        weight_decay: how much of θ is added to the gradient, not negative.
        amsgrad: never let v fall (Reddi et al., 2018).
        maximize: climb instead of descend: g ← -g first.
        decoupled_weight_decay: shrink θ itself rather than change its gradient.

    Raises:
        ValueError: a number is out of its range, or as `Optimizer` says.
        TypeError: as `Optimizer` says.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: Scalar = 1e-3,
        betas: tuple[float | int, float | int] = (0.9, 0.999),
        eps: float | int = 1e-8,
        weight_decay: float | int = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ) -> None:
        _check_not_negative(type(self).__name__, lr=lr, eps=eps, weight_decay=weight_decay)
        if len(betas) != 2 or not all(isinstance(beta, float) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"{type(self).__name__}: betas are two floats, at least 0 and below 1, got {betas}")
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        unused = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
        super().__init__(params, {**settings, **unused})

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state = self.state[parameter] or self._begin(parameter, group)
        lr, (beta1, beta2) = _number(group["lr"]), group["betas"]
        if group["weight_decay"] != 0:
            if group["decoupled_weight_decay"]:
                parameter.mul_(1 - lr * group["weight_decay"])
            else:
                gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state["step"] += 1
        t = float(state["step"])
        m = state["exp_avg"].lerp_(gradient, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if group["amsgrad"]:
            v = torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
        root = (v.sqrt() / (1 - beta2**t) ** 0.5).add_(group["eps"])
        parameter.addcdiv_(m, root, value=-(lr / (1 - beta1**t)))

    def _begin(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """The state before the first step: t = 0, and zeros."""
        if parameter.is_complex():
            raise TypeError(f"{type(self).__name__}: a parameter is {parameter.dtype}, but needs to be real")
        state = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.get_default_dtype())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019): the first line of `Adam` is

        θ ← θ - lr · weight_decay · θ

    so that how fast a weight shrinks does not depend on its gradients. Arguments and errors are those of `Adam`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: Scalar = 1e-3,
        betas: tuple[float | int, float | int] = (0.9, 0.999),
        eps: float | int = 1e-8,
        weight_decay: float | int = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Adam`; the decay stays decoupled, even if the state is Adam's."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _number(value: Scalar) -> Any:
    """A tensor of one number, however many dimensions it has, as one without any."""
    return value.squeeze() if isinstance(value, Tensor) else value


def _fit(value: Any, key: str, parameter: Tensor) -> Any:
    """A copy of `value` that fits `parameter`; "step" is counted on the CPU, where reading it costs nothing."""
    if key == "step":
        return torch.as_tensor(value).to("cpu", copy=True)
    if isinstance(value, Tensor):
        return value.to(parameter.device, parameter.dtype, copy=True)
    return deepcopy(value)


def _check_not_negative(name: str, **settings: Scalar) -> None:
    for setting, value in settings.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name}: {setting} is a tensor of {value.numel()} numbers, but needs to be one number")
        if not value >= 0:
            raise ValueError(f"{name}: {setting} needs to be a number of at least 0, got {value}")
