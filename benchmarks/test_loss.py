"""Chapter 14: losses of a batch's scores for ten classes."""

import pytest
import torch
from torch import Tensor

from benchmarks.cases import BATCH, Case, Pass, normal
from benchmarks.conftest import Measure

CLASSES = 10


def labels() -> Tensor:
    return torch.arange(BATCH) % CLASSES


def loss(component: str, target: str) -> Pass:
    """A mean over at most 640 terms of numbers up to 6 and their squares."""

    def inputs() -> tuple[Tensor, Tensor]:
        scores = normal(BATCH, CLASSES)
        return scores, labels() if target == "labels" else normal(BATCH, CLASSES, needs_gradient=False)

    return Pass(
        "loss", component, f"{BATCH}x{CLASSES}", inputs, operations=BATCH * CLASSES + 2 * CLASSES + 6, magnitude=64.0
    )


CASES = [
    loss("cross_entropy", "labels"), loss("nll_loss", "labels"), loss("l1_loss", "numbers"), loss("mse_loss", "numbers")
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss(measure: Measure, case: Case) -> None:
    measure(case)
