"""Measure what a recipe reaches: `python scripts/accuracy.py --seeds 5 --output DIR`, and train_full.py's flags."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Annotated, Any

import tyro

from reference.errors import InputError, exit_with
from reference.recipes import ABLATION
from reference.run import Settings, parse, train_seeds
from reference.text import print_line


@dataclass(frozen=True)
class Measurement(Settings):
    """Train with the seeds 0, 1, 2, … and say how accurate the networks are: mean ± standard deviation."""

    seeds: int = 5
    """How many trainings; at least 2."""
    ablation: bool = False
    """Also without each ingredient of --recipe fast; print what each is worth as a table."""
    against: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Compare with what an earlier measurement left in its --output DIR, by Welch's test."""


def main() -> None:
    measurement = parse(Measurement)
    if measurement.seeds < 2:
        raise InputError(f"--seeds must be at least 2, got {measurement.seeds}")
    others = [] if measurement.against is None else measured(measurement.against)
    settings = Settings(**{field.name: getattr(measurement, field.name) for field in fields(Settings)})
    if measurement.ablation:
        ablate(settings, measurement.seeds)
        return
    summaries = train_seeds(settings, measurement.seeds)
    print("seed  test accuracy  test loss  sum of batch means")
    for seed, row in enumerate(summaries):
        print(f"{seed:4}  {row['test_accuracy']:13.4f}  {row['test_loss']:9.4f}  {row['test_loss_sum']:18.2f}")
    print(f"{len(summaries)} seeds, {summaries[0]['epochs']} epochs: {spread(summaries)}")
    if others:
        here, there = ([row["test_accuracy"] for row in rows] for rows in (summaries, others))
        t, freedom, p = welch(here, there)
        print_line(
            f"against {measurement.against}: {spread(others)}; Welch's t {t:.2f}, {freedom:.1f} degrees, p {p:.2f}"
        )


def measured(folder: Path) -> list[dict[str, Any]]:
    """The summaries of the trainings in `folder`; InputError if there are not two."""
    paths = sorted(folder.glob("seed-*/summary.json"))
    if len(paths) < 2:
        raise InputError(f"--against {folder}: needs two finished trainings, seed-*/summary.json, has {len(paths)}")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Whether the means of two samples differ, their variances unknown and perhaps unequal (Welch, 1947).

    Returns:
        t: the difference of the means over its standard error.
        freedom: how many degrees of freedom that error has (Welch and Satterthwaite).
        p: the chance of a |t| at least as large if the means were equal.

    Raises:
        ValueError: a sample has fewer than two values, or neither varies.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"welch: each sample needs two values, got {len(first)} and {len(second)}")
    errors = [variance(sample) / len(sample) for sample in (first, second)]
    if sum(errors) == 0:
        raise ValueError("welch: one of the samples needs to vary")
    t = (mean(first) - mean(second)) / sum(errors) ** 0.5
    parts = (error**2 / (len(sample) - 1) for error, sample in zip(errors, (first, second), strict=True))
    freedom = sum(errors) ** 2 / sum(parts)
    # Student's density is that of x = sqrt(freedom) · tan(angle) with cos(angle)^(freedom - 1); midpoints of the tail
    steps, start = 10_000, math.atan(abs(t) / freedom**0.5)
    width = (math.pi / 2 - start) / steps
    tail = sum(math.cos(start + (step + 0.5) * width) ** (freedom - 1) for step in range(steps)) * width
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.pi**0.5
    return t, freedom, 2 * scale * tail


def ablate(settings: Settings, seeds: int) -> None:
    """Measure the recipe, and the recipe without each of its ingredients; print a Markdown table."""
    if settings.recipe != "fast":
        raise InputError(f"--ablation is for --recipe fast, got --recipe {settings.recipe}")
    if settings.output is None:
        raise InputError("--output is needed: the folder for the runs")
    rows = {"all of it": train_seeds(replace(settings, output=settings.output / "all"), seeds)}
    for number, (ingredient, change) in enumerate(ABLATION.items()):
        without = replace(settings, output=settings.output / f"without-{number}", **change)
        rows[f"without {ingredient}"] = train_seeds(without, seeds)
    print(f"| recipe fast, {settings.epochs} epochs, {seeds} seeds | test accuracy |\n|---|---|")
    for name, summaries in rows.items():
        print(f"| {name} | {spread(summaries)} |")


def spread(summaries: list[dict[str, Any]]) -> str:
    accuracies = [summary["test_accuracy"] for summary in summaries]
    return f"{mean(accuracies):.4f} ± {stdev(accuracies):.4f}"


if __name__ == "__main__":
    exit_with(main)
