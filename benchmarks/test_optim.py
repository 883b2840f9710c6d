"""Chapter 15: a step of the optimizers over the network's 145,578 parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Step
from benchmarks.conftest import Measure
from reference.models import Ocean
from spec.support.assertions import assert_close, rounding


@dataclass(frozen=True, repr=False)
class Update(Case):
    """One step with constant gradients; the result is the change of the parameters in the last step."""

    settings: dict[str, Any] = field(default_factory=dict)

    def step(self, component: Any, device: torch.device) -> Step:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Ocean(layers=nn).to(device)
            for parameter in network.parameters():
                parameter.data.zero_()
                parameter.grad = torch.randn(parameter.shape).sign().to(device)
        optimizer = component(network.parameters(), lr=2.0**-10, **self.settings)

        def step() -> Sequence[Tensor]:
            optimizer.step()
            return list(network.parameters())

        return step

    def check(self, result: Sequence[Tensor]) -> None:
        """The gradients are 1 or -1, so all parameters change by the same amount, opposite to their gradients."""
        far = result[0].detach().abs().max()
        for parameter in result:
            assert parameter.grad is not None
            expected = -parameter.grad * far
            assert_close(parameter.detach(), expected, rounding(torch.float32, 10, 1.0), "the parameters")
        assert far > 0


CASES = [
    Update("optim", "SGD", "145,578 parameters"),
    Update("optim", "SGD", "145,578 parameters, momentum", {"momentum": 0.5}),
    Update("optim", "Adam", "145,578 parameters"),
    Update("optim", "AdamW", "145,578 parameters", {"weight_decay": 0.0}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optim(measure: Measure, case: Case) -> None:
    measure(case)
