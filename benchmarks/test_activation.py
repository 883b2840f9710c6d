"""Chapter 11: activations after the first convolution, and the softmax of many scores."""

from typing import Any

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal
from benchmarks.conftest import Measure

MAPS, SCORES = (BATCH, 32, 32, 32), (BATCH, 1000)


def activation(component: str, shape: tuple[int, ...], **options: Any) -> Pass:
    """For numbers up to 6: exp, a sum over the scores and a quotient; in the backward pass the same number."""
    operations = 2 * (3 + (shape[-1] if "dim" in options else 1))
    label = "x".join(map(str, shape))
    return Pass(
        "activation", component, label, lambda: (normal(*shape),), options=options, operations=operations, magnitude=6.0
    )


CASES = [
    *(activation(name, MAPS) for name in ("relu", "leaky_relu", "sigmoid", "tanh")),
    *(activation(name, SCORES, dim=1) for name in ("softmax", "log_softmax")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_activation(measure: Measure, case: Case) -> None:
    measure(case)
