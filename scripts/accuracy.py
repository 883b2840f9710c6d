"""Measure the accuracy of a recipe: `python scripts/accuracy.py --seeds 5 --output DIR`, and train_full.py's flags."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, ClassVar

import tyro

from reference.errors import InputError, exit_with
from reference.files import read_json
from reference.messages import counted, translated
from reference.recipes import ABLATION
from reference.run import Settings, parse, train_seeds
from reference.run.settings import shortened
from reference.text import print_line, print_wrapped


@dataclass(frozen=True)
class Measurement(Settings):
    """Train with the seeds 0, 1, 2, …; print the accuracy: mean ± standard deviation."""

    GROUPS: ClassVar = {"measurement": ("seeds", "ablation", "against")} | Settings.GROUPS

    seeds: int = 5
    """Number of trainings; at least 2."""
    ablation: bool = False
    """Also without each part of --recipe fast."""
    against: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Welch's test against the measurement in this folder."""


def main() -> None:
    measurement = parse(Measurement)
    if measurement.seeds < 2:
        raise InputError(f"--seeds must be at least 2, got {measurement.seeds}")
    if measurement.resume is not None:
        raise InputError(
            f"--resume {measurement.resume}: a measurement has several runs; give its --output again to resume it"
        )
    others: list[float] = []
    if measurement.against is not None:  # before hours of training
        others = measured(measurement.against)
        welch(others, others)
    settings = Settings(**{field.name: getattr(measurement, field.name) for field in fields(Settings)})
    if measurement.ablation:
        ablate(settings, measurement.seeds)
        return
    summaries = train_seeds(settings, measurement.seeds)
    print_line("seed  test accuracy  test loss  sum of batch means")
    for seed, row in enumerate(summaries):
        print(f"{seed:4}  {row['test_accuracy']:13.4f}  {row['test_loss']:9.4f}  {row['test_loss_sum']:18.2f}")
    print_wrapped(
        f"{len(summaries)} seeds, {counted(summaries[0]['epochs'], 'epoch')} each: {spread(accuracies(summaries))}"
    )
    if others:
        print_wrapped(f"against {measurement.against}: {compared(accuracies(summaries), others)}")


def measured(folder: Path) -> list[float]:
    """The test accuracies of the trainings in `folder`.

    Raises:
        InputError: there are fewer than two trainings, or a summary.json is damaged.
    """
    paths = sorted(folder.glob("seed-*/summary.json"))
    if len(paths) < 2:
        raise InputError(f"--against {folder}: needs two finished trainings, seed-*/summary.json, has {len(paths)}")
    found = []
    for path in paths:
        try:
            accuracy = read_json(path)["test_accuracy"]
            if type(accuracy) not in (int, float) or not 0 <= accuracy <= 1:
                raise ValueError(f"its test_accuracy is {shortened(accuracy)}, which is not a number from 0 to 1")
            found.append(accuracy)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"--against {folder}: {path} is damaged ({error})") from error
    return found


def compared(here: Sequence[float], there: Sequence[float]) -> str:
    """The result of Welch's test for two samples; if neither varies, only their means are compared."""
    if len(set(here)) == len(set(there)) == 1:
        return f"{spread(there)}; neither varies, so there is no test: {here[0]:.4f} here, {there[0]:.4f} there"
    t, freedom, p = welch(here, there)
    return f"{spread(there)}; Welch's t {t:.2f}, {freedom:.1f} degrees, p {p:.2f}"


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Test whether the means of two samples differ; variances are unknown and may be unequal (Welch, 1947).

    Returns:
        t: the difference of the means over its standard error.
        freedom: the degrees of freedom of that error (Welch and Satterthwaite).
        p: the probability of a |t| at least this large if the means were equal.

    Raises:
        InputError: SciPy is not installed.
    """
    try:
        from scipy.stats import ttest_ind
    except ImportError as error:
        raise InputError("--against needs SciPy: python -m pip install scipy") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a warning about a sample that does not vary
        result: Any = ttest_ind(first, second, equal_var=False)
    return float(result.statistic), float(result.df), float(result.pvalue)


def ablate(settings: Settings, seeds: int) -> None:
    """Measure the recipe, and the recipe without each of its ingredients; print a Markdown table."""
    if settings.recipe != "fast":
        raise InputError(f"--ablation is for --recipe fast, got --recipe {settings.recipe}")
    if settings.output is None:
        raise InputError("--output is needed: the folder for the runs")
    rows = {"all of it": train_seeds(replace(settings, output=settings.output / "all"), seeds)}
    for number, (name, change) in enumerate(ABLATION.items()):
        changed = replace(settings, output=settings.output / f"without-{number}", **change)
        rows[name] = train_seeds(changed, seeds)
    print_line(f"| recipe fast, {counted(settings.epochs, 'epoch')}, {seeds} seeds | test accuracy |")
    print("|---|---|")
    for name, summaries in rows.items():
        print(f"| {translated(name)} | {spread(accuracies(summaries))} |")


def accuracies(summaries: list[dict[str, Any]]) -> list[float]:
    """The test accuracy of each training."""
    return [summary["test_accuracy"] for summary in summaries]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.4f} ± {stdev(values):.4f}"


if __name__ == "__main__":
    exit_with(main)
