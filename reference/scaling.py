"""Chapter 19: training in float16 without underflow of gradients: the loss is multiplied by a factor, the gradients are
divided by it.

The smallest positive number in float16 is 2⁻²⁴, and gradients are often smaller. `torch.amp.GradScaler` reads in each
step whether the gradients are finite, and so waits for the device; here the result of the check stays on the device:
the step is made, and undone if the gradients were not finite.
"""

from typing import Any

import torch
from torch import Tensor

from reference.optim import Optimizer

FIRST, GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0**16, 2.0, 0.5, 2000
"""As in GradScaler: the initial factor, its growth after GROWTH_INTERVAL finite steps, its change after a bad step."""


class ScaledOptimizer:
    """An optimizer for gradients multiplied by `factor`; a step with gradients that are not finite is skipped.

    Args:
        optimizer: makes the steps. Its state consists of tensors; state that is new in an undone step becomes zeros.
        device: of its parameters.

    Attributes:
        factor: the factor of the gradients, for `loss.backward(factor)`; a tensor of one number, changed in place.
        good: number of finite steps since the last change of `factor`.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.factor = torch.tensor(FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def zero_grad(self) -> None:
        """Reset the gradients."""
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Divide the gradients by `factor`, make the step if they are finite, and choose the next factor."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = torch.stack([parameter.grad.isfinite().all() for parameter in parameters]).all()
        for parameter in parameters:
            parameter.grad.div_(self.factor)
        before = {key: value.clone() for key, value in self._changing(parameters).items()}
        self.optimizer.step()
        for key, value in self._changing(parameters).items():
            value.copy_(torch.where(finite, value, before.get(key, torch.zeros_like(value))))
        self.good.copy_(torch.where(finite, self.good + 1, 0))
        grown = self.good == GROWTH_INTERVAL
        self.factor.mul_(torch.where(finite, torch.where(grown, GROWTH, 1.0), BACKOFF))
        self.good.masked_fill_(grown, 0)

    def _changing(self, parameters: list[Tensor]) -> dict[tuple[int, str], Tensor]:
        """All tensors that a step may change, by parameter and name."""
        found = {(number, ""): parameter.detach() for number, parameter in enumerate(parameters)}
        for number, parameter in enumerate(parameters):
            state = self.optimizer.state.get(parameter, {})
            found |= {(number, name): value for name, value in state.items() if isinstance(value, Tensor)}
        return found

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`, to resume from."""
        return {"factor": self.factor, "good": self.good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state of another `ScaledOptimizer`."""
        self.factor.copy_(state["factor"])
        self.good.copy_(state["good"])
