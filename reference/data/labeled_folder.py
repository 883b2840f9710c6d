"""Chapter 01: a folder of images with the folder's name as label, and the concatenation of data sets with `+`."""

import os
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from operator import index as as_integer
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from reference.data.images import is_image_name, open_image, printable
from reference.errors import InputError


@runtime_checkable
class MapDataset(Protocol):
    """A data set that `+` accepts: an object with a length and items by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class LabeledFolder:
    """The images in `root_dir/label_dir`, each with the folder's name as its label: the tutorial's `MyData`.

    Item `i` is `(image, label_dir)`. A file is opened when its item is taken and closed immediately. Items are sorted
    by name, code point by code point, on every system. Hidden files, other files and sub-folders are left out.

    Args:
        root_dir: the folder with the class folders, such as `"dataset/train"`.
        label_dir: the class folder and label, such as `"ants"`.
        transform: called with each image; `None` leaves it a PIL image in mode RGB.

    Raises:
        InputError: the folder is missing or holds no image; on taking an item, its file is not readable.
    """

    def __init__(
        self, root_dir: str | os.PathLike[str], label_dir: str, transform: Callable[[Image.Image], Any] | None = None
    ) -> None:
        self.root_dir = Path(root_dir)
        self.label_dir = label_dir
        self.transform = transform
        folder = self.root_dir / label_dir
        if not folder.is_dir():
            raise InputError(f"LabeledFolder: there is no folder {printable(folder)}")
        self.paths = [Path(entry.path) for entry in list_images(folder)]
        if not self.paths:
            raise InputError(f"LabeledFolder: {printable(folder)} holds no images (such as .jpg or .png)")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        image = open_image(self.paths[check_index(self, index)])
        return image if self.transform is None else self.transform(image), self.label_dir

    def __add__(self, other: MapDataset) -> "ConcatenatedDataset":
        return ConcatenatedDataset(self, other)


class ConcatenatedDataset:
    """The items of `first`, then those of `second`; `(a + b) + c` and `a + (b + c)` are the same.

    Raises:
        TypeError: one of them has no length or no items by index.
    """

    def __init__(self, first: MapDataset, second: MapDataset) -> None:
        for part in (first, second):
            if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
                raise TypeError(f"+ joins data sets with len() and items by number, got {type(part).__name__}")
        self.parts = (*_parts(first), *_parts(second))
        self.starts = list(accumulate((len(part) for part in self.parts), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Any:
        index = check_index(self, index)
        number = bisect_right(self.starts, index) - 1
        return self.parts[number][index - self.starts[number]]

    def __add__(self, other: MapDataset) -> "ConcatenatedDataset":
        return ConcatenatedDataset(self, other)


def _parts(dataset: MapDataset) -> tuple[MapDataset, ...]:
    return dataset.parts if isinstance(dataset, ConcatenatedDataset) else (dataset,)


def check_index(dataset: MapDataset, index: int) -> int:
    """`index` counted from the start; IndexError if `dataset` has no such item, TypeError if it is not an integer."""
    name, length = type(dataset).__name__, len(dataset)
    if not hasattr(index, "__index__"):
        raise TypeError(f"{name}: an item is taken by one integer, got {index!r}")
    if not -length <= as_integer(index) < length:
        raise IndexError(f"{name}: index {index} is out of range for {length} items")
    return as_integer(index) % length


def list_images(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """The image files directly in `folder`, sorted by name, links included.

    Broken links, FIFOs, sockets and devices are included, so that reading them raises an error with their name instead
    of hiding them.
    """
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if is_image_name(entry.name) and not entry.is_dir()]
    return sorted(files, key=lambda entry: entry.name)
