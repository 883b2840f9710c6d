"""Ratios of pairs that run alternately, A B A B …, so that a temporary slowdown of the machine affects both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

PAIRS = 9
"""The number of pairs; a figure needs at least 7."""


@dataclass(frozen=True)
class Ratio:
    """The ratio of the times of A and B.

    Attributes:
        ratios: of each pair, time of A / time of B.
        first: the median time of A, in seconds.
        second: the median time of B, in seconds.
    """

    ratios: tuple[float, ...]
    first: float
    second: float

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quartile: half of the pairs are between them."""
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.spread[0]:.2f} to {self.spread[1]:.2f}, {len(self.ratios)} pairs)"


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int = PAIRS,
    seconds: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Time two functions alternately.

    Args:
        first: A.
        second: B.
        pairs: number of timings of each, at least 7.
        seconds: duration of the repetitions of each timing; its time is the shortest of the repetitions.
        clock: the clock, in seconds.

    Raises:
        ValueError: `pairs` is below 7.
    """
    if pairs < 7:
        raise ValueError(f"compare: pairs must be at least 7, got {pairs}")
    for function in (first, second):  # work that is done only once
        function()
    times = [(shortest(first, seconds, clock), shortest(second, seconds, clock)) for _ in range(pairs)]
    return Ratio(
        tuple(a / b for a, b in times), statistics.median(a for a, _ in times), statistics.median(b for _, b in times)
    )


def shortest(function: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """The shortest time of a call; the calls are repeated for `seconds`, at least three times."""
    times: list[float] = []
    end = clock() + seconds
    while clock() < end or len(times) < 3:
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


HEAD = "| what | against | ratio (half of the pairs) | wanted | ms | ms |\n|---|---|---|---|---|---|"
"""The head of a Markdown table of ratios."""


def row(what: str, against: str, ratio: Ratio, limit: float | None) -> str:
    """A row of the table; `limit` is the largest wanted median, or None."""
    wanted = "" if limit is None else f"≤ {limit:g}" + ("" if ratio.median <= limit else ", **missed**")
    times = " | ".join(f"{1e3 * seconds:.3g}" for seconds in (ratio.first, ratio.second))
    return f"| {what} | {against} | {ratio} | {wanted} | {times} |"
