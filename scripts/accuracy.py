"""Measure what a recipe reaches: `python scripts/accuracy.py --seeds 5 --output DIR`, and train_full.py's flags."""

from dataclasses import dataclass, fields
from statistics import mean, stdev

import tyro

from reference.errors import InputError, exit_with
from reference.run import Settings, train_seeds


@dataclass(frozen=True)
class Measurement(Settings):
    """Train with the seeds 0, 1, 2, … and say how accurate the networks are: mean ± standard deviation."""

    seeds: int = 5
    """How many trainings; at least 2."""


def main() -> None:
    measurement = tyro.cli(tyro.conf.FlagCreatePairsOff[Measurement])
    if measurement.seeds < 2:
        raise InputError(f"--seeds must be at least 2, got {measurement.seeds}")
    settings = Settings(**{field.name: getattr(measurement, field.name) for field in fields(Settings)})
    summaries = train_seeds(settings, measurement.seeds)
    accuracies = [summary["test_accuracy"] for summary in summaries]
    print("seed  test accuracy  test loss  sum of batch means")
    for seed, row in enumerate(summaries):
        print(f"{seed:4}  {row['test_accuracy']:13.4f}  {row['test_loss']:9.4f}  {row['test_loss_sum']:18.2f}")
    print(f"{len(accuracies)} seeds, {summaries[0]['epochs']} epochs: {mean(accuracies):.4f} ± {stdev(accuracies):.4f}")


if __name__ == "__main__":
    exit_with(main)
