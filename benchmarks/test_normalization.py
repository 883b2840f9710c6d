"""Chapter 12: normalization of the outputs of the network's convolutions."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, normal
from benchmarks.conftest import Measure


def normalization(component: str, features: int, *rest: int) -> Pass:
    """A mean and a variance over a channel or a sample; the weight gradients sum over the other dimensions."""
    shape = (BATCH, features, *rest)
    operations = 2 * BATCH * (rest[0] * rest[1] if rest else features)
    label = "x".join(map(str, shape))
    return Pass(
        "normalization",
        component,
        label,
        lambda: (normal(*shape),),
        layer=(features,),
        operations=operations,
        magnitude=6.0,
    )


CASES = [
    *(normalization("BatchNorm2d", channels, size, size) for channels, size in ((32, 32), (32, 16), (64, 8))),
    normalization("LayerNorm", 1024),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_normalization(measure: Measure, case: Case) -> None:
    measure(case)
