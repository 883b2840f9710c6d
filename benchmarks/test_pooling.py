"""Chapter 10: the three poolings of the network, with the maximum or the mean of each window."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal, whole
from benchmarks.conftest import Measure


def pooling(component: str, channels: int, size: int, **options: int) -> Pass:
    """Means of 4 or 64 integers are exact; normal numbers are all different, so that the maximum is unique."""
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
