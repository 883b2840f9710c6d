"""The tutorial's loop, the project's loop, and the images for both: shared by the figures."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.pairs import Ratio
from reference.data.image_tree import ImageTree
from reference.data.resident import Resident, ResidentLoader
from reference.data.transforms import ToTensor
from reference.models import Ocean
from reference.optim import SGD
from reference.training import compute

CPU = torch.device("cpu")
FORWARD = 2 * 64 * (32 * 32 * 32 * 75 + 16 * 16 * 32 * 800 + 8 * 8 * 64 * 800 + 1024 * 64 + 64 * 10)
FLOPS = 3 * FORWARD - 2 * 64 * 32 * 32 * 32 * 75
"""For a step of 64 images: forward, weight gradients, and input gradients except those of the images."""


class Images(Resident):
    """Images in memory, random if no folder is given."""

    classes = tuple("0123456789")

    def __init__(self, train: bool) -> None:
        root = os.environ.get("OCEAN_DATA")
        if root is not None:
            tree = ImageTree(root, train, progress=False)
            self.images, self.targets, self.classes = tree.images, tree.targets, tree.classes
        else:
            count = 50_000 if train else 10_000
            self.images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
            self.targets = torch.randint(0, 10, (count,))


class Converted(Dataset[tuple[Tensor, int]]):
    """The data set of the tutorial's loop: decoded images, each converted by Pillow and ToTensor every time."""

    def __init__(self, images: Resident) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = images.targets.tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def endless(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def tutorial_steps(data_set: Resident, steps: int) -> Callable[[], float]:
    """A function that runs `steps` steps of the tutorial's loop."""
    batches = endless(DataLoader(Converted(data_set), batch_size=64))
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, 1, 2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, 1, 2), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, 1, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10)),
    )
    loss_function, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.01)

    def run() -> float:
        loss = torch.zeros(())
        for images, targets in islice(batches, steps):
            loss = loss_function(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def answer(pipe: Any, steps: int) -> None:
    """The main function of the tutorial's process: answer each message with the seconds that `steps` steps take."""
    run = tutorial_steps(Images(train=True), steps)
    run()
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


class Tutorial:
    """The tutorial's loop in a process of its own, so that settings of this process do not affect it. Calling it makes
    `steps` steps there and returns their time in seconds."""

    def __init__(self, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=answer, args=(far_end, steps), daemon=True)
        self.process.start()
        self()

    def __call__(self) -> float:
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join()


def our_steps(
    data_set: Resident,
    steps: int,
    precision: torch.dtype,
    batch: int = 64,
    memory_format: torch.memory_format = torch.channels_last,
) -> Callable[[], float]:
    """A function that runs `steps` steps in the same way as `fit`."""
    batches = endless(ResidentLoader(data_set, batch))
    network = Ocean().to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    loss_function, optimizer = nn.CrossEntropyLoss(), SGD(network.parameters(), lr=0.01)

    def run() -> float:
        value = 0.0
        for images, targets in islice(batches, steps):
            loss = loss_function(compute(network, images, precision), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()
        return value

    return run


def row(what: str, ratio: Ratio, more: str = "") -> None:
    print(f"| {what} | {ratio} | {more} |", flush=True)
