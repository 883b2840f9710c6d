"""Chapter 12: the network's two linear layers."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, whole
from benchmarks.conftest import Measure

CASES = [
    Pass("linear", "linear", f"{i}->{o}", lambda i=i, o=o: (whole(BATCH, i), whole(o, i), whole(o)))
    for i, o in ((1024, 64), (64, 10))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear(measure: Measure, case: Case) -> None:
    measure(case)
