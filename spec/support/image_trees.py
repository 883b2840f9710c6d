"""Trees of small images for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

Make = Callable[..., Any]

CLASSES = ("ant", "bee", "cat")


def draw(path: Path, shade: int, height: int = 8, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:height, 0:width]
    Image.fromarray(np.stack([rows * 9, columns * 9, rows * 0 + shade], -1).astype(np.uint8)).save(path)


def shade_of(dataset: Any) -> list[int]:
    """The blue of each image, which `draw` sets."""
    return dataset.images[:, 2, 0, 0].tolist()


def same(a: Any, b: Any) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and a.paths == b.paths
