"""Chapter 12: attention among 32 positions of 64 numbers."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal
from benchmarks.conftest import Measure

POSITIONS, WIDTH = 32, 64

CASES = [
    Pass(
        "attention",
        "scaled_dot_product_attention",
        f"{BATCH}x{POSITIONS}x{WIDTH}",
        lambda: tuple(normal(BATCH, POSITIONS, WIDTH) for _ in range(3)),
        operations=4 * (WIDTH + POSITIONS),  # two sums over the width and two over the positions, there and back
        magnitude=6.0,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(measure: Measure, case: Case) -> None:
    measure(case)
