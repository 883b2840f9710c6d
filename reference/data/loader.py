"""Chapter 06: `DataLoader`: from a data set of single items to batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference.data.workers import fetch_in_workers


class DataLoader:
    """Batches of any map-style data set: take `batch_size` items, put them together, hand them out.

    Each iteration is one epoch. Every item comes exactly once, except that `drop_last` leaves out a last batch that is
    smaller than `batch_size`. With `shuffle`, each epoch draws a new order; the same `generator` state gives the same
    orders as `torch.utils.data.DataLoader`, with samplers and after an early `break` too.

    Args:
        dataset: anything with `len(dataset)` and `dataset[index]`.
        batch_size: items in a batch, at least 1; None: no batches, single items.
        shuffle: a new order each epoch; else 0, 1, 2, ….
        sampler: the indices of an epoch, instead of `shuffle`.
        batch_sampler: lists of indices, instead of `batch_size`, `shuffle`, `sampler` and `drop_last`.
        num_workers: processes that take the items; 0: this process does. However an epoch ends, they end with it.
        collate_fn: makes a batch of the list of its items; None: `collate` (`convert` for single items).
        drop_last: leave out an incomplete last batch.
        multiprocessing_context: how workers start: "fork", "spawn", "forkserver"; None: the system's way.
        generator: draws the orders, and the seed of the workers; None uses torch's global generator.

    Raises:
        ValueError: `batch_size` is not a positive integer, `num_workers` is negative, or options exclude each other.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        *,
        drop_last: bool = False,
        multiprocessing_context: BaseContext | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        if sampler is not None and shuffle:
            raise ValueError("sampler and shuffle exclude each other: the sampler decides the order")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError("batch_sampler excludes batch_size, shuffle, sampler and drop_last: it decides all")
            batch_size = None
        elif batch_size is not None:
            check_batch_size(batch_size)
        elif drop_last:
            raise ValueError("batch_size=None and drop_last exclude each other: without batches none is incomplete")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = bool(shuffle)
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        in_batches = batch_size is not None or batch_sampler is not None
        self.collate_fn = collate_fn or (collate if in_batches else convert)
        self.drop_last = drop_last
        self.multiprocessing_context = multiprocessing_context
        self.generator = generator

    def __len__(self) -> int:
        if self.batch_sampler is not None:
            return len(self.batch_sampler)  # type: ignore[arg-type]
        n = len(self.dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]
        return n if self.batch_size is None else count_batches(n, self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches())
        seed = draw_seed(self.generator)
        take = take_item if self.batch_size is None and self.batch_sampler is None else take_items
        fetch = partial(_fetch, take, self.dataset, self.collate_fn)
        if self.num_workers == 0:
            return map(fetch, batches)
        return fetch_in_workers(fetch, batches, self.num_workers, seed, self.multiprocessing_context)

    def _batches(self) -> Iterable[Any]:
        """The indices of each batch of an epoch; single ones where there are no batches."""
        if self.batch_sampler is not None:
            return self.batch_sampler
        order = self.sampler
        if order is None:
            order = self._shuffled() if self.shuffle else range(len(self.dataset))
        return order if self.batch_size is None else cut(order, self.batch_size, self.drop_last)

    def _shuffled(self) -> Iterator[int]:
        """A random order of 0 … n-1, drawn as `torch.utils.data.DataLoader` draws it."""
        n, generator = len(self.dataset), self.generator
        if generator is None:
            generator = torch.Generator().manual_seed(draw_seed(None))
        yield from torch.randperm(n, generator=generator).tolist()
        torch.randperm(n, generator=generator)  # of this one it takes nothing: the remainder of n / n


def _fetch(take: Callable[[Any, Any], Any], dataset: Any, collate_fn: Callable[[Any], Any], indices: Any) -> Any:
    """A batch of its indices; a function of its own, because that is what travels to the workers."""
    return collate_fn(take(dataset, indices))


def take_items(dataset: Any, indices: Iterable[Any]) -> list[Any]:
    """The items of a batch."""
    return [take_item(dataset, index) for index in indices]


def take_item(dataset: Any, index: Any) -> Any:
    """`dataset[index]`; an exception from there says which index it was."""
    try:
        return dataset[index]
    except Exception as error:
        error.add_note(f"DataLoader: raised by {type(dataset).__name__}, index {index}")
        raise


def collate(items: Sequence[Any]) -> Any:
    """The items of a batch as one.

    Tensors and arrays are stacked, numbers become a tensor, texts stay a list, and containers are gone into (a tuple
    becomes a list).

    Raises:
        ValueError: tensors of different shapes, or containers of different lengths; the text says which met.
        TypeError: items of another kind, such as PIL pictures.
    """
    first = items[0]
    if isinstance(first, Tensor):
        shapes = {tuple(item.shape) for item in items}
        if len(shapes) > 1:
            raise ValueError(
                f"DataLoader: items of the shapes {sorted(shapes)} make no batch; bring them to one size first"
            )
        return torch.stack(list(items))
    if isinstance(first, np.ndarray | np.generic):
        return collate([torch.as_tensor(item) for item in items])
    if isinstance(first, float):
        return torch.tensor(items, dtype=torch.float64)
    if isinstance(first, int):
        return torch.tensor(items)
    if isinstance(first, str | bytes):
        return list(items)
    if isinstance(first, dict):
        return {key: collate([item[key] for item in items]) for key in first}
    if isinstance(first, tuple | list):
        lengths = {len(item) for item in items}
        if len(lengths) > 1:
            raise ValueError(f"DataLoader: items must be of equal size to make a batch, got {sorted(lengths)} parts")
        parts = [collate(column) for column in zip(*items, strict=True)]
        return parts if not hasattr(first, "_fields") else type(first)(*parts)
    raise TypeError(
        f"DataLoader: items found of type {type(first).__name__} make no batch; tensors, arrays, numbers, texts and "
        "containers of them do: give the data set a transform (ToTensor for pictures), or the loader a collate_fn"
    )


def convert(item: Any) -> Any:
    """A single item that is no part of a batch: arrays in it become tensors, a tuple a list."""
    if isinstance(item, np.ndarray | np.generic):
        return torch.as_tensor(item)
    if isinstance(item, dict):
        return {key: convert(part) for key, part in item.items()}
    if isinstance(item, tuple | list):
        parts = [convert(part) for part in item]
        return parts if not hasattr(item, "_fields") else type(item)(*parts)
    return item


def cut(order: Iterable[Any], batch_size: int, drop_last: bool) -> Iterator[list[Any]]:
    """`order` in lists of `batch_size`; the last one may be shorter, unless `drop_last` leaves it out."""
    numbers = iter(order)
    while batch := list(islice(numbers, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


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


def draw_seed(generator: torch.Generator | None) -> int:
    """A random seed; `torch.utils.data.DataLoader` draws one at the start of each epoch, used or not."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))
