"""Chapter 12: attention among 32 positions of 64 numbers, alone and in its layers."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal
from benchmarks.conftest import Measure

POSITIONS, WIDTH = 32, 64
HEADS, HIDDEN = 4, 128

CASES = [
    Pass(
        "attention",
        "scaled_dot_product_attention",
        f"{BATCH}x{POSITIONS}x{WIDTH}",
        lambda: tuple(normal(BATCH, POSITIONS, WIDTH) for _ in range(3)),
        operations=4 * (WIDTH + POSITIONS),  # two sums over the width and two over the positions, forward and backward
        magnitude=6.0,
    ),
    Pass(
        "attention",
        "MultiheadAttention",
        f"{POSITIONS}x{BATCH}x{WIDTH}, {HEADS} heads",
        lambda: tuple(normal(POSITIONS, BATCH, WIDTH) for _ in range(3)),
        layer=(WIDTH, HEADS),
        options={"need_weights": False},
        # attention and a projection before and after it, forward and backward; the weight gradients sum over batch and
        # positions
        operations=4 * (WIDTH + POSITIONS) + 4 * WIDTH + POSITIONS * BATCH,
        magnitude=6.0,
    ),
    Pass(
        "attention",
        "TransformerEncoderLayer",
        f"{POSITIONS}x{BATCH}x{WIDTH}, {HEADS} heads",
        lambda: (normal(POSITIONS, BATCH, WIDTH),),
        layer=(WIDTH, HEADS, HIDDEN, 0.0),  # no dropout
        # multi-head attention, two normalizations and two linear layers
        operations=4 * (WIDTH + POSITIONS) + 4 * WIDTH + POSITIONS * BATCH + 8 * WIDTH + 2 * (WIDTH + HIDDEN),
        magnitude=6.0,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(measure: Measure, case: Case) -> None:
    measure(case)
