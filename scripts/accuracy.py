"""Measure what a recipe reaches: `python scripts/accuracy.py --seeds 5 --output DIR`, and train_full.py's flags."""

from dataclasses import dataclass, fields, replace
from statistics import mean, stdev
from typing import Any

from reference.errors import InputError, exit_with
from reference.recipes import ABLATION
from reference.run import Settings, parse, train_seeds


@dataclass(frozen=True)
class Measurement(Settings):
    """Train with the seeds 0, 1, 2, … and say how accurate the networks are: mean ± standard deviation."""

    seeds: int = 5
    """How many trainings; at least 2."""
    ablation: bool = False
    """Also without each ingredient of --recipe fast; print what each is worth as a table."""


def main() -> None:
    measurement = parse(Measurement)
    if measurement.seeds < 2:
        raise InputError(f"--seeds must be at least 2, got {measurement.seeds}")
    settings = Settings(**{field.name: getattr(measurement, field.name) for field in fields(Settings)})
    if measurement.ablation:
        ablate(settings, measurement.seeds)
        return
    summaries = train_seeds(settings, measurement.seeds)
    print("seed  test accuracy  test loss  sum of batch means")
    for seed, row in enumerate(summaries):
        print(f"{seed:4}  {row['test_accuracy']:13.4f}  {row['test_loss']:9.4f}  {row['test_loss_sum']:18.2f}")
    print(f"{len(summaries)} seeds, {summaries[0]['epochs']} epochs: {spread(summaries)}")


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
