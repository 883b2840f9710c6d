"""Chapter 05: shared by the tests of CIFAR-10 in files: expected images, and the errors of refused files."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.data.cifar10 import CIFAR10
from reference.errors import InputError
from spec.support.cifar_archives import SmallCifar10

MIB = 1 << 20


def images_of(small: SmallCifar10, *names: str) -> torch.Tensor:
    """The images of the batches according to the format: 1024 red, 1024 green, 1024 blue bytes, row by row."""
    rows = [row for name in names for row in small.images[name]]
    return torch.tensor([[[[int(row[1024 * c + 32 * y + x]) for x in range(32)] for y in range(32)] for c in range(3)]
                         for row in rows], dtype=torch.uint8)  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(root: Path, **settings: Any) -> str:
    """The one-line error for the test set under `root`."""
    settings = {"train": False, "archive_md5": None, "progress": False} | settings
    with pytest.raises(InputError) as caught:
        CIFAR10(root, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def measured_refusal(root: Path) -> tuple[str, int]:
    """`refusal`, and the peak of its memory in bytes."""
    tracemalloc.start()
    try:
        return refusal(root), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
