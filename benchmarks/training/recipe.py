"""The time and the accuracy of the fast recipe."""

import statistics
import time
from typing import Any

import torch

from benchmarks.pairs import Ratio
from benchmarks.training.loops import CPU, Images, Tutorial, row
from reference.data.resident import Resident
from reference.distributed import Group
from reference.recipes import RECIPES
from reference.run import Settings, prepare
from reference.run.precision import resolve_precision
from reference.training import Observer, Progress

IMAGES = 6_400
"""The training images of the fast recipe in `fast`: 100 steps of 64."""
SEEDS = 10


def learn(
    train_set: Resident, test_set: Resident, epochs: int, seed: int, device: torch.device = CPU
) -> list[dict[str, Any]]:
    """Train as `scripts/train_full.py --recipe fast` does, without its run folder; return the metrics of each epoch."""
    settings = Settings(**{"recipe": "fast", "epochs": epochs, "seed": seed} | RECIPES["fast"])
    precision, _ = resolve_precision(settings, train_set, device)
    torch.manual_seed(seed)
    plan = prepare(settings, train_set, test_set, device, precision)
    return plan.fit(Group(), Progress(), Observer()).history


def fast() -> None:
    """The shortest run of the fast recipe, including evaluation, compared with the ten epochs of the tutorial."""
    train_set, test_set = Images(train=True), Images(train=False)
    train_set.images, train_set.targets = train_set.images[:IMAGES], train_set.targets[:IMAGES]
    tutorial, ratios, seconds, accuracies = Tutorial(40), [], [], []
    for seed in range(SEEDS):
        ten_epochs = tutorial() / 40 * 782 * 10  # without its evaluations
        start = time.perf_counter()
        accuracies.append(learn(train_set, test_set, 1, seed)[-1]["test_accuracy"])
        seconds.append(time.perf_counter() - start)
        ratios.append(ten_epochs / seconds[-1])
    tutorial.close()
    row(
        f"recipe fast, {IMAGES:,} images, against the tutorial's ten epochs",
        Ratio(tuple(ratios), statistics.median(ratios) * statistics.median(seconds), statistics.median(seconds)),
        f"{statistics.median(seconds):.2f} s, accuracy {statistics.mean(accuracies):.4f} ± "
        f"{statistics.stdev(accuracies):.4f} over {SEEDS} seeds, least {min(accuracies):.4f}",
    )


def epochs() -> None:
    """The accuracy of the fast recipe on all images."""
    train_set, test_set = Images(train=True), Images(train=False)
    for count in (1, 4, 10):
        start = time.perf_counter()
        accuracy = learn(train_set, test_set, count, seed=0)[-1]["test_accuracy"]
        print(f"| recipe fast, epochs: {count} | {accuracy:.4f} | {time.perf_counter() - start:.0f} s |", flush=True)
