"""Chapter 10: the three poolings of the network, with the largest number or the mean of each window."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal, whole
from benchmarks.conftest import Measure


def pooling(component: str, channels: int, size: int, **options: int) -> Pass:
    """Whole numbers make means of 4 or 64 exact; normal ones are all different, so that one is the largest."""
    make = normal if component == "max_pool2d" else whole
    shape = (BATCH, channels, size, size)
    return Pass(
        "pooling", component, f"{channels} channels, {size}x{size} pixels", lambda: (make(*shape),), options=options
    )


CASES = [
    *(
        pooling(name, c, s, kernel_size=2)
        for name in ("max_pool2d", "avg_pool2d")
        for c, s in ((32, 32), (32, 16), (64, 8))
    ),
    pooling("adaptive_avg_pool2d", 64, 8, output_size=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pooling(measure: Measure, case: Case) -> None:
    measure(case)
