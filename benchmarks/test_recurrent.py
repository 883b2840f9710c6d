"""Chapter 12: recurrent networks over 32 steps of 64 numbers."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal
from benchmarks.conftest import Measure

STEPS, WIDTH = 32, 64

CASES = [
    Pass(
        "recurrent",
        component,
        f"{STEPS}x{BATCH}x{WIDTH}",
        lambda: (normal(STEPS, BATCH, WIDTH),),
        layer=(WIDTH, WIDTH),
        # forward and backward through every step, a sum over the input and one over the state, and a few roundings of
        # the gates; then the weight gradients sum over steps and batch
        operations=2 * STEPS * (2 * WIDTH + 10) + STEPS * BATCH,
        magnitude=6.0,
    )
    for component in ("RNN", "LSTM", "GRU")
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recurrent(measure: Measure, case: Case) -> None:
    measure(case)
