"""Chapter 18: a whole training with a fault differs from a right one in its accuracy, its losses or its samples.

The right training is `fit` on 2,010 drawn images of 16 × 16 pixels for 10 epochs. Accuracy and loss vary with the seed.
`python -m spec.test_18_whole_trainings` measures both over 40 seeds, and `BANDS` holds the output. Trainings pass if
they are equivalent to these: the confidence interval of their mean lies within the band. A missing proof of a
difference is not enough.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference import DataLoader, Shapes
from reference.training import Observer, Progress, fit
from spec.support.clauses import clause

TRAIN, TEST, BATCH, EPOCHS, RATE = 2010, 500, 32, 10, 0.02  # 2,010 images leave a last batch of 26
SEEDS = (100, 101, 102)
BANDS = {"accuracy": (0.9167, 0.0240), "loss": (0.3323, 0.0430)}
"""Mean and standard deviation of the right training, over 40 seeds."""
WIDTH = 3.0
"""Half the width of a band, in standard deviations of one training."""


@cache
def images(train: bool) -> tuple[Tensor, Tensor]:
    """Drawn images as numbers of 16 × 16 pixels, and their classes."""
    shapes = Shapes(train=train, size=TRAIN if train else TEST)
    return nn.functional.avg_pool2d(shapes.images.float() / 255, 2), shapes.targets


class Noted:
    """A data set that records the indices of the items that are read."""

    def __init__(self, train: bool, shift: int = 0) -> None:
        self.images, self.targets = images(train)
        self.targets = (self.targets + shift) % 10
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.taken.append(index)
        return self.images[index], self.targets[index]


class Network(nn.Sequential):
    """A small network with dropout, which evaluation switches off; it records the mode of each training step."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(16 * 6 * 6, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)),
        )
        self.modes: set[bool] = set()
        self.stays_in_evaluation = False

    def train(self, mode: bool = True) -> "Network":
        super().train(mode and not (self.stays_in_evaluation and not self.training))
        return self

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.modes.add(self.training)
        return super().forward(input)


class Losses(Observer):
    """Keeps the losses of the steps, and the accuracy after the last epoch."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.accuracy = math.nan

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        self.losses |= losses

    def on_epoch(self, progress: Progress, evaluation: Any) -> None:
        self.accuracy = evaluation.accuracy


@dataclass
class Training:
    """The observations of a training.

    Attributes:
        accuracy: The accuracy on the test images.
        loss: The mean loss of the last epoch.
        trained: The indices of the training images that were read, in order.
        tested: The indices of the test images that were read, in order.
        of_the_test: Whether the training steps read test images.
        modes: The modes of the network in the training steps.
    """

    accuracy: float
    loss: float
    trained: list[int] = field(repr=False)
    tested: list[int] = field(repr=False)
    of_the_test: bool
    modes: set[bool]


def train(seed: int, fault: str = "") -> Training:
    """A training by `fit`, right or with a fault."""
    torch.manual_seed(seed)
    network, observer, test = Network(), Losses(), Noted(train=False)
    network.stays_in_evaluation = fault == "evaluation mode is kept"
    data = Noted(train=fault != "trained on the test images", shift=int(fault == "labels are shifted by one"))
    rate = {"learning rate ten times too large": 10 * RATE, "learning rate ten times too small": RATE / 10}
    optimizer = torch.optim.SGD(network.parameters(), rate.get(fault, RATE), momentum=0.9)
    if fault == "gradients are never zeroed":
        optimizer.zero_grad = lambda set_to_none=True: None
    loader = DataLoader(
        data, BATCH, shuffle=fault != "not shuffled", drop_last=fault == "last batch is dropped",
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    fit(network, nn.CrossEntropyLoss(), optimizer, loader, DataLoader(test, BATCH), epochs=EPOCHS, observer=observer)
    steps = len(loader)
    last = [loss for number, loss in sorted(observer.losses.items())][-steps:]
    return Training(
        observer.accuracy, fmean(last), data.taken, test.taken, len(data) == TEST, network.modes
    )  # fmt: skip


def equivalent(found: list[float], band: tuple[float, float]) -> bool:
    """Whether the 90 % confidence interval of a mean lies within the band: two one-sided tests at 5 %."""
    mean, deviation = band
    half = NormalDist().inv_cdf(0.95) * deviation / math.sqrt(len(found))
    return abs(fmean(found) - mean) + half < WIDTH * deviation


def told(trainings: list[Training]) -> set[str]:
    """The observations in which trainings differ from the right one."""
    found = set()
    if not equivalent([training.accuracy for training in trainings], BANDS["accuracy"]):
        found.add("accuracy")
    if not equivalent([training.loss for training in trainings], BANDS["loss"]):
        found.add("loss")
    for training in trainings:
        size = len(training.trained) // EPOCHS
        epochs = [training.trained[epoch * size : (epoch + 1) * size] for epoch in range(EPOCHS)]
        if training.of_the_test or any(sorted(epoch) != list(range(TRAIN)) for epoch in epochs):
            found.add("samples")
        if len({tuple(epoch) for epoch in epochs}) < EPOCHS or sorted(epochs[0]) == epochs[0]:
            found.add("order")
        if training.tested != list(range(TEST)) * EPOCHS:
            found.add("test")
        if training.modes != {True}:
            found.add("mode")
    return found


FAULTS = {
    "gradients are never zeroed": "accuracy",
    "evaluation mode is kept": "mode",
    "last batch is dropped": "samples",
    "trained on the test images": "accuracy",
    "labels are shifted by one": "accuracy",
    "learning rate ten times too large": "accuracy",
    "learning rate ten times too small": "accuracy",
    "not shuffled": "order",
}
"""Each fault, and the observation that must reveal it."""


@clause("18.training.whole")
@pytest.mark.slow
def test_a_correct_training_is_equivalent_to_the_recorded_ones() -> None:
    assert told([train(seed) for seed in SEEDS]) == set()


@clause("18.training.whole")
@pytest.mark.slow
@pytest.mark.parametrize(("fault", "by"), FAULTS.items(), ids=FAULTS)
def test_a_training_with_a_fault_differs(fault: str, by: str, record_property: Callable[[str, object], None]) -> None:
    found = told([train(seed, fault) for seed in SEEDS])
    record_property("told by", sorted(found))
    assert by in found


@clause("18.training.whole")
def test_equivalence_requires_the_whole_interval_within_the_band() -> None:
    band = (0.5, 0.1)
    assert equivalent([0.5, 0.55, 0.45], band)
    assert not equivalent([0.9, 0.9, 0.9], band)
    assert not equivalent([0.75], band)  # inside, and yet its interval is not
    assert equivalent([0.75] * 100, band)


def main() -> int:
    """Print the bands."""
    trainings = [train(seed) for seed in range(40)]
    for name in BANDS:
        values = [getattr(training, name) for training in trainings]
        print(f'"{name}": ({fmean(values):.4f}, {stdev(values):.4f})', flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
