"""The time and the accuracy of the fast recipe."""

import statistics
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.pairs import Ratio
from benchmarks.training.loops import CPU, FLOPS, FORWARD, Images, Tutorial, row
from reference.data.resident import Resident, ResidentLoader
from reference.distributed import Group
from reference.recipes import RECIPES
from reference.run import Settings, prepare
from reference.run.parts import Plan
from reference.run.precision import resolve_precision
from reference.training import Observer, Progress, compute

IMAGES = 4_416
"""The training images of the fast recipe in `fast`."""
SHORT: dict[str, Any] = {"shift": 0, "momentum": 0.85, "batch_size": 48}
"""The settings of a training of less than an epoch that differ from those of the recipe."""
SEEDS = 10

TARGETS: dict[float, tuple[int, int, dict[str, Any]]] = {
    0.60: (9_600, 1, SHORT),
    0.65: (25_000, 1, SHORT),
    0.70: (50_000, 2, {"shift": 1}),
    0.75: (50_000, 10, {}),
}
"""For each test accuracy a training that reaches it: images, epochs and changed settings."""
TARGET_SEEDS = 3

EPOCHS: dict[int, dict[str, Any]] = {1: SHORT, 4: {"shift": 1}, 10: {}}
"""For each number of epochs on all images the changed settings."""
EPOCH_SEEDS = 5

WHITENED = FLOPS - 2 * 64 * 32 * 32 * 32 * 75
"""The arithmetic of the network in a step of 64 images with a first layer that is not trained."""


def learn(
    train_set: Resident,
    test_set: Resident,
    epochs: int,
    seed: int,
    device: torch.device = CPU,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Train as `scripts/train_full.py --recipe fast` does, without its run folder; return the metrics of each epoch."""
    return trained(train_set, test_set, epochs, seed, device, changes)[1]


def trained(
    train_set: Resident,
    test_set: Resident,
    epochs: int,
    seed: int,
    device: torch.device = CPU,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Plan, list[dict[str, Any]]]:
    """Train as `learn` does; return the parts of the training and the metrics of each epoch."""
    settings = Settings(**{"recipe": "fast", "epochs": epochs, "seed": seed} | RECIPES["fast"] | dict(changes))
    precision, _ = resolve_precision(settings, train_set, device)
    torch.manual_seed(seed)
    plan = prepare(settings, train_set, test_set, device, precision)
    return plan, plan.fit(Group(), Progress(), Observer()).history


def first(data_set: Resident, count: int) -> Resident:
    """The first `count` images of a data set."""
    part = Resident()
    part.images, part.targets, part.classes = data_set.images[:count], data_set.targets[:count], data_set.classes
    return part


def fast() -> None:
    """The shortest run of the fast recipe, including evaluation, compared with the ten epochs of the tutorial."""
    train_set, test_set = first(Images(train=True), IMAGES), Images(train=False)
    tutorial = Tutorial(40)
    for precision in ("auto", "float32"):
        ratios, seconds, accuracies = [], [], []
        for seed in range(SEEDS):
            ten_epochs = tutorial() / 40 * 782 * 10  # without its evaluations
            start = time.perf_counter()
            history = learn(train_set, test_set, 1, seed, changes={"precision": precision} | SHORT)
            seconds.append(time.perf_counter() - start)
            accuracies.append(history[-1]["test_accuracy"])
            ratios.append(ten_epochs / seconds[-1])
        row(
            f"recipe fast, {IMAGES:,} images, precision {precision}, against the tutorial's ten epochs",
            Ratio(tuple(ratios), statistics.median(ratios) * statistics.median(seconds), statistics.median(seconds)),
            f"{statistics.median(seconds):.2f} s, accuracy {statistics.mean(accuracies):.4f} ± "
            f"{statistics.stdev(accuracies):.4f} over {SEEDS} seeds, least {min(accuracies):.4f}",
        )
    tutorial.close()


def epochs() -> None:
    """The accuracy of the fast recipe on all images, also with the mean scores of each test image and its mirror image.

    The settings of `EPOCHS` are the best ones that were tried for each number of epochs.
    """
    train_set, test_set = Images(train=True), Images(train=False)
    for count, changes in EPOCHS.items():
        once, twice, seconds = [], [], []
        for seed in range(EPOCH_SEEDS):
            start = time.perf_counter()
            plan, history = trained(train_set, test_set, count, seed, changes=changes)
            seconds.append(time.perf_counter() - start)
            once.append(history[-1]["test_accuracy"])
            twice.append(mirrored_accuracy(plan, test_set))
        taken = f"{statistics.median(seconds):.1f} s"
        for name, found in (("", once), (", test images mirrored too", twice)):
            mean, deviation = statistics.mean(found), statistics.stdev(found)
            print(
                f"| recipe fast, epochs: {count}{name} | {mean:.4f} ± {deviation:.4f} over {EPOCH_SEEDS} seeds | "
                f"{'' if name else taken} |",
                flush=True,
            )


def mirrored_accuracy(plan: Plan, test_set: Resident) -> float:
    """The test accuracy of the mean scores of each image and its mirror image."""
    plan.network.eval()
    right = 0
    with torch.no_grad():
        for images, targets in ResidentLoader(test_set, 500):
            scores = sum(compute(plan.network, shown, plan.precision) for shown in (images, images.flip(3)))
            right += int((scores.argmax(dim=1) == targets).sum())  # pyright: ignore[reportAttributeAccessIssue]
    return right / len(test_set)


def targets() -> None:
    """The time to each test accuracy, with the evaluation after every epoch; choosing the precision is not counted.

    The images are in memory at the start. Operations are those of the network in training and evaluation.
    """
    train_set, test_set = Images(train=True), Images(train=False)
    for target, (count, number, changes) in TARGETS.items():
        part, seconds, accuracies = first(train_set, count), [], []
        learn(first(train_set, 64), first(test_set, 64), 1, 0, changes=changes)  # the precision is chosen here
        for seed in range(TARGET_SEEDS):
            start = time.perf_counter()
            accuracies.append(learn(part, test_set, number, seed, changes=changes)[-1]["test_accuracy"])
            seconds.append(time.perf_counter() - start)
        operations = number * (WHITENED * count + FORWARD * len(test_set)) / 64
        mean = statistics.mean(accuracies)
        print(
            f"| {target:.0%}: {count:,} images, epochs: {number} | {statistics.median(seconds):.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f}, {TARGET_SEEDS} seeds) | accuracy {mean:.4f} ± "
            f"{statistics.stdev(accuracies):.4f}{'' if mean >= target else ', **missed**'}, "
            f"{operations:.2g} operations |",
            flush=True,
        )
