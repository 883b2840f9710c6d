"""Chapters 08 and 09: the three convolutions of the network, and one from a large network."""

import pytest

from benchmarks.cases import BATCH, Case, Pass, whole
from benchmarks.conftest import Measure


def convolution(in_channels: int, out_channels: int, size: int, kernel: int = 5, *, first: bool = False) -> Pass:
    """A convolution that keeps the image's size; `first`: its input is the images, which need no gradient."""
    return Pass(
        "convolution",
        "conv2d",
        f"{in_channels}->{out_channels} channels, {kernel}x{kernel}, {size}x{size} pixels",
        lambda: (
            whole(BATCH, in_channels, size, size, needs_gradient=not first),
            whole(out_channels, in_channels, kernel, kernel),
            whole(out_channels),
        ),
        options={"padding": kernel // 2},
    )


CASES = [
    convolution(3, 32, 32, first=True),
    convolution(32, 32, 16),
    convolution(32, 64, 8),
    convolution(64, 64, 16, kernel=3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution(measure: Measure, case: Case) -> None:
    measure(case)
