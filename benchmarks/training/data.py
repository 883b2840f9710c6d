"""The time of the input: batches for an epoch, the cache, and decoding."""

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.pairs import compare
from benchmarks.training.loops import Converted, Images, endless, row
from reference.data.image_tree import read_tree, scan_tree
from reference.data.resident import ResidentLoader


def input_epoch() -> None:
    images = Images(train=True)
    tutorial = endless(DataLoader(Converted(images), batch_size=64))
    ours = endless(ResidentLoader(images, 64))

    def take(batches: Iterator[Any]) -> Callable[[], int]:
        return lambda: sum(len(targets) for _, targets in islice(batches, 40))

    row("input, against DataLoader + ToTensor", compare(take(tutorial), take(ours), seconds=0.1))


def cache() -> None:
    start = time.perf_counter()
    for train in (True, False):
        Images(train)
    print(f"| loading both halves, cached if they were | {time.perf_counter() - start:.2f} s | |")


def decode() -> None:
    """Reading and decoding the files of the training and test parts, without the cache."""
    if root := os.environ.get("OCEAN_DATA"):
        begun = time.perf_counter()
        for split in ("train", "test"):
            read_tree(scan_tree(Path(root), split), (32, 32), progress=False, decode=True)
        print(f"| decoding both halves | {time.perf_counter() - begun:.2f} s | |", flush=True)
