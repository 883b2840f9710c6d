"""Chapter 15: optimizers that are wrong with many numbers, with several groups, or after many steps.

Most faults are generated, one for each optimizer.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, optim

from spec.faults import Fault

FILE = "test_15_groups.py::"
BLOCK = 16


def parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def skips_the_rest(original: Any, dtypes: tuple[torch.dtype, ...]) -> type:
    """The last `numel % 16` numbers are never updated."""

    class Optimizer(original):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            before = [p.detach().clone() for p in parameters(self)]
            result = super().step(closure)
            for p, old in zip(parameters(self), before, strict=True):
                if p.dtype in dtypes and p.numel() >= BLOCK and p.is_contiguous():
                    done = p.numel() // BLOCK * BLOCK
                    p.view(-1)[done:] = old.view(-1)[done:]
            return result

    return Optimizer


def reads_memory(original: Any) -> type:
    """A gradient is read in memory order, without its strides."""

    class Optimizer(original):
        def step(self, closure: Any = None) -> Any:
            kept = [p.grad for p in parameters(self)]
            for p in parameters(self):
                if p.grad is not None and not p.grad.is_contiguous() and p.grad.numel() > 64:
                    p.grad = torch.as_strided(p.grad, p.shape, p.new_empty(p.shape).stride()).clone() if 0 not in (
                        p.grad.stride()
                    ) else p.grad  # fmt: skip
            result = super().step(closure)
            for p, gradient in zip(parameters(self), kept, strict=True):
                p.grad = gradient
            return result

    return Optimizer


def writes_beside(original: Any) -> type:
    """A parameter that is a view is written as if it were contiguous."""

    class Optimizer(original):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            for p in parameters(self):
                if p.dim() == 2 and p.stride(0) > p.shape[1]:
                    torch.as_strided(p, (1,), (1,), p.storage_offset() + p.shape[1]).add_(1)
            return result

    return Optimizer


def first_group_for_all(original: Any) -> type:
    """Every group uses the settings of the first group."""

    class Optimizer(original):
        def step(self, closure: Any = None) -> Any:
            own = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
            for group in self.param_groups[1:]:
                group.update(own[0])
            result = super().step(closure)
            for group, settings in zip(self.param_groups, own, strict=True):
                group.update(settings)
            return result

    return Optimizer


def state_by_position(original: Any) -> type:
    """The state is assigned to the n-th parameter with a gradient instead of the n-th parameter."""

    class Optimizer(original):
        def step(self, closure: Any = None) -> Any:
            every = parameters(self)
            held = [self.state.pop(p) for p in every if p in self.state]
            for p, state in zip([p for p in every if p.grad is not None], held, strict=False):
                if all(not isinstance(v, Tensor) or v.dim() == 0 or v.shape == p.shape for v in state.values()):
                    self.state[p] = state
            return super().step(closure)

    return Optimizer


def loads_backwards(original: Any) -> type:
    """Within a group the states are given to the parameters in the wrong order."""

    class Optimizer(original):
        def load_state_dict(self, state_dict: Any) -> None:
            saved = deepcopy(state_dict)
            for group in saved["param_groups"]:
                group["params"] = group["params"][::-1]
            super().load_state_dict(saved)

    return Optimizer


def keeps_settings(original: Any) -> type:
    """Only the state is loaded; the second group keeps its settings."""

    class Optimizer(original):
        def load_state_dict(self, state_dict: Any) -> None:
            own = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
            super().load_state_dict(state_dict)
            for group, settings in list(zip(self.param_groups, own, strict=True))[1:]:
                group.update(settings)

    return Optimizer


def forgets_state(original: Any) -> type:
    """The settings are loaded and the state is not."""

    class Optimizer(original):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict({**state_dict, "state": {}})

    return Optimizer


def never_steps_added(original: Any) -> type:
    """A group that is added later is listed but not updated by a step."""

    class Optimizer(original):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.first = len(self.param_groups)

        def step(self, closure: Any = None) -> Any:
            every = self.param_groups
            self.param_groups = every[: self.first]
            result = super().step(closure)
            self.param_groups = every
            return result

    return Optimizer


def starts_again_when_added(original: Any) -> type:
    """Adding a group clears the state of the others."""

    class Optimizer(original):
        def add_param_group(self, param_group: Any) -> None:
            super().add_param_group(param_group)
            self.state.clear()

    return Optimizer


def defaults_are_the_last_group(original: Any) -> type:
    """A new group uses the learning rate of the first group instead of the default."""

    class Optimizer(original):
        def add_param_group(self, param_group: Any) -> None:
            if self.param_groups and "lr" not in param_group:
                param_group = {**param_group, "lr": self.param_groups[0]["lr"]}
            super().add_param_group(param_group)

    return Optimizer


def one_counter(original: Any) -> type:
    """All parameters share one step count."""

    class Optimizer(original):
        def step(self, closure: Any = None) -> Any:
            self.count = getattr(self, "count", -1) + 1
            for p in parameters(self):
                if "step" in self.state.get(p, {}):
                    self.state[p]["step"].fill_(self.count)
            return super().step(closure)

    return Optimizer


def counts_to(original: Any, limit: int) -> type:
    """The step count stops at a limit."""

    class Optimizer(original):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            for state in self.state.values():
                if "step" in state:
                    state["step"].clamp_(max=limit)
            return result

    return Optimizer


def tires(original: Any) -> type:
    """After a thousand steps the learning rate is halved."""

    class Optimizer(original):
        def step(self, closure: Any = None) -> Any:
            self.done = getattr(self, "done", 0) + 1
            if self.done == 1001:
                for group in self.param_groups:
                    group["lr"] /= 2
            return super().step(closure)

    return Optimizer


def fault(
    label: str, name: str, make: Callable[..., type], test: str, says: str, *args: Any, summary: str | None = None
) -> None:
    """Define a fault of one optimizer in this module."""
    component = make(getattr(optim, name), *args)
    body = {"__doc__": summary or make.__doc__, "__module__": __name__, "caught_by": FILE + test, "says": says}
    globals()[f"{label}In{name}"] = type(f"{label}In{name}", (Fault,), {**body, name: component})


SIZES = "test_every_number_of_a_large_parameter_moves_by_the_rule"
LAYOUTS = "test_update_rule_holds_for_all_memory_layouts"
GROUPS = "test_groups_have_separate_settings_and_state"
WAITS = "test_a_step_without_gradient_leaves_parameter_and_state_unchanged"
ADDED = "test_a_group_added_later_starts_with_empty_state"
DEFAULTS = "test_an_added_group_takes_missing_settings_from_the_defaults"
LOADED = "test_saved_and_loaded_groups_continue_identically"
LONG = "test_two_thousand_steps_equal_the_closed_form"
HALF = (torch.float16, torch.bfloat16)
WIDE = (torch.float32, torch.float64)

for _name in ("SGD", "Adam", "AdamW"):
    fault("TheRestStands", _name, skips_the_rest, SIZES, r"of 329 numbers in float(32|64) differs", WIDE)
    fault("TheRestStandsInHalfPrecision", _name, skips_the_rest, SIZES, r"of 329 numbers in b?float16 differs", HALF)
    fault("GradientsAreReadInMemoryOrder", _name, reads_memory, LAYOUTS, r"\(transposed gradient\) differs")
    fault("WritesBesideAView", _name, writes_beside, LAYOUTS, r"the memory beside the parameter differs")
    fault("TheFirstGroupCountsForAll", _name, first_group_for_all, GROUPS, r"parameter 2 after step \d differs")
    fault("TheStateBelongsToAPosition", _name, state_by_position, WAITS, r"parameter \d after step \d differs")
    fault("LoadsBackwards", _name, loads_backwards, LOADED, r"parameter \d after step 4 differs")
    fault("KeepsTheSettingsOfTheSecondGroup", _name, keeps_settings, LOADED, r"parameter \d after step 4 differs")
    fault("LoadsNoState", _name, forgets_state, LOADED, r"parameter 0 after step \d differs")
    fault("NeverStepsAnAddedGroup", _name, never_steps_added, ADDED, r"parameter 2 after step 3 differs")
    fault("StartsAgainWithAnAddedGroup", _name, starts_again_when_added, ADDED, r"parameter 0 after step \d differs")
    fault(
        "TheFirstGroupIsTheDefault", _name, defaults_are_the_last_group, DEFAULTS, r"the parameter of group 1 differs"
    )
    fault("Tires", _name, tires, LONG, r"the parameter at the end differs")
for _name in ("Adam", "AdamW"):
    fault("OneCounterForAll", _name, one_counter, ADDED, r"parameter 2 after step \d differs")
    fault("CountsTo256", _name, counts_to, LONG, r"the parameter at the end differs", 256)
    fault("CountsTo1024", _name, counts_to, LONG, r"the parameter at the end differs", 1024)
