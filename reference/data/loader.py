"""Chapter 06: `DataLoader`: from a data set of single items to batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class DataLoader:
    """Batches of any map-style data set: take `batch_size` items, stack them, hand them out.

    Each iteration is one epoch. Every item comes exactly once, except that `drop_last` leaves out a last batch that is
    smaller than `batch_size`. With `shuffle`, each epoch draws a new order; the same `generator` state gives the same
    order as `torch.utils.data.DataLoader`.

    Args:
        dataset: anything with `len(dataset)` and `dataset[index]`.
        batch_size: items in a batch, at least 1.
        shuffle: a new order each epoch; else 0, 1, 2, ….
        drop_last: leave out an incomplete last batch.
        generator: draws the orders; None uses torch's global generator.

    Raises:
        ValueError: `batch_size` is not a positive integer.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = check_batch_size(batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator

    def __len__(self) -> int:
        return count_batches(len(self.dataset), self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        n = len(self.dataset)
        order = shuffled_order(n, self.generator).tolist() if self.shuffle else range(n)
        for number in range(len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield collate([self.dataset[index] for index in batch])


def collate(items: Sequence[Any]) -> Any:
    """The items of a batch as one: tensors are stacked, numbers become a tensor, containers are gone into.

    What is none of these (strings, pictures) stays a list of items.

    Raises:
        ValueError: tensors of different shapes cannot be stacked; the text says which shapes met.
    """
    first = items[0]
    if isinstance(first, torch.Tensor):
        shapes = {tuple(item.shape) for item in items}
        if len(shapes) > 1:
            raise ValueError(
                f"DataLoader: items of the shapes {sorted(shapes)} make no batch; bring them to one size first"
            )
        return torch.stack(list(items))
    if isinstance(first, bool | int):
        return torch.tensor(items)
    if isinstance(first, float):
        return torch.tensor(items, dtype=torch.float64)
    if isinstance(first, dict):
        return {key: collate([item[key] for item in items]) for key in first}
    if isinstance(first, tuple | list):
        parts = [collate(column) for column in zip(*items, strict=True)]
        return parts if not hasattr(first, "_fields") else type(first)(*parts)
    return list(items)


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
