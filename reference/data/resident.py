"""Chapters 05 and 06: data sets that are decoded once and stay in memory, and the loader that slices them.

A picture file is decoded in about 0.1 ms and used ten times or more. `Resident` therefore keeps all pictures of a data
set as one uint8 tensor, and `ResidentLoader` cuts batches out of it: the very batches that `DataLoader` yields with
`ToTensor`, bit for bit, without touching Pillow again.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor


class Resident:
    """A map-style data set whose pictures are already decoded.

    Attributes:
        images: all pictures, `[n, channels, height, width]`, values 0 to 255.
        targets: the class number of each picture, `[n]`, int64, from 0 to `len(classes) - 1`.
        classes: the class names; `classes[targets[i]]` is the name of picture `i`.
        transform: called with the PIL picture when an item is taken; `None` leaves it a PIL picture.
        target_transform: called with the class number when an item is taken.
    """

    images: UInt8[Tensor, "n channels height width"]
    targets: Int[Tensor, "n"]
    classes: tuple[str, ...]
    transform: Callable[[Image.Image], Any] | None = None
    target_transform: Callable[[int], Any] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Item `index` as (picture, class number), both transformed; negative indices count from the end.

        Raises:
            IndexError: `index` is outside `[-len(self), len(self))`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index {index} is out of range for {len(self)} pictures")
        picture: Any = Image.fromarray(self.images[index].permute(1, 2, 0).numpy())
        target: Any = int(self.targets[index])
        if self.transform is not None:
            picture = self.transform(picture)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return picture, target


class ResidentLoader:
    """Batches of a `Resident` data set, cut out of its tensor and scaled to floats from 0 to 1.

    Iterating yields `(images, targets)`: `images` float32 `[b, channels, height, width]` = uint8 / 255, and `targets`
    int64 `[b]`. Every batch holds `batch_size` pictures; the last one holds what is left, or is left out with
    `drop_last`. Each iteration is one epoch; with `shuffle` it draws a new order from `generator`, the same order that
    `torch.utils.data`'s loader draws from it. The data set's `transform` is not applied.

    Args:
        dataset: what to cut; an empty one gives no batches.
        batch_size: pictures per batch, at least 1.
        shuffle: a new order each epoch instead of the stored one.
        drop_last: leave out a last batch that is smaller than `batch_size`.
        generator: where the orders come from; `None` uses torch's global generator.
        device: where the batches are wanted; they travel as uint8 and are scaled there.

    Raises:
        ValueError: `batch_size` is not a positive integer.
    """

    def __init__(
        self,
        dataset: Resident,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset = dataset
        self.batch_size = check_batch_size(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        self.device = torch.device(device)

    def __len__(self) -> int:
        return count_batches(len(self.dataset), self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b channels height width"], Int[Tensor, "b"]]]:
        images, targets = self.dataset.images, self.dataset.targets
        order = shuffled_order(len(targets), self.generator) if self.shuffle else None
        for number in range(len(self)):
            rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
            batch = (images[rows], targets[rows]) if order is None else (images[order[rows]], targets[order[rows]])
            pictures, labels = (part.to(self.device, non_blocking=True) for part in batch)
            yield pictures.to(torch.float32).div_(255), labels


def count_batches(n: int, batch_size: int, drop_last: bool) -> int:
    """How many batches an epoch over `n` items has: n / batch_size, rounded down with `drop_last` and up without.

    50,000 pictures in batches of 64 are 782 steps, not the tutorial's 781.25 (chapter 18).
    """
    return n // batch_size if drop_last else -(-n // batch_size)


def check_batch_size(batch_size: int) -> int:
    """`batch_size` itself, if it is a positive integer; ValueError otherwise."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    return batch_size


def shuffled_order(n: int, generator: torch.Generator | None) -> Int[Tensor, "n"]:
    """A random order of 0 … n-1, drawn as `torch.utils.data.DataLoader` draws it: the same seed gives the same order.

    That loader draws a seed for its workers first, then the order, and when the order is used up a second one of which
    it takes nothing (the remainder of n / n). All three are drawn here, so that the generator stands where it would
    there.
    """
    if n == 0:
        return torch.empty(0, dtype=torch.int64)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    if generator is None:  # the loader then takes one number from the global generator to seed one of its own
        seed = int(torch.empty((), dtype=torch.int64).random_())
        generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    torch.randperm(n, generator=generator)
    return order
