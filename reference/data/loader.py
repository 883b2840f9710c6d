"""Chapter 06: `DataLoader`: from a data set of single items to batches."""

import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference.data.workers import WorkerPool
from reference.releases import available_accelerator


class DataLoader:
    """Batches of any map-style data set: take `batch_size` items and collate them.

    Each iteration is one epoch. Every item is used exactly once, except that `drop_last` leaves out a last batch that
    is smaller than `batch_size`. With `shuffle`, each epoch draws a new order; the same `generator` state gives the
    same orders as `torch.utils.data.DataLoader`, with samplers, workers and after an early `break` too.

    Args:
        dataset: anything with `len(dataset)` and `dataset[index]`; if it has `__getitems__`, that method is called with
            the list of indices of a batch and returns its items.
        batch_size: items in a batch, at least 1; None: no batches, single items.
        shuffle: a new order each epoch; else 0, 1, 2, ….
        sampler: the indices of an epoch, instead of `shuffle`.
        batch_sampler: lists of indices, instead of `batch_size`, `shuffle`, `sampler` and `drop_last`.
        num_workers: processes that load the items; with 0 this process does. They end with the epoch, for any reason
            that ends it.
        collate_fn: makes a batch of the list of its items; None: `collate` (`convert` for single items).
        pin_memory: copy the tensors of each batch into pinned memory, from which copies to an accelerator are faster;
            without an accelerator a warning says that it has no effect.
        drop_last: leave out an incomplete last batch.
        timeout: seconds to wait for a batch of a worker; 0: no limit.
        worker_init_fn: called in each worker with its number, after seeding and before the first item.
        multiprocessing_context: how workers start: "fork", "spawn", "forkserver"; None: the system's default.
        generator: draws the orders, and the seed of the workers; None uses torch's global generator.
        prefetch_factor: batches that each worker makes ahead, at least 1; None: 2.
        persistent_workers: keep the workers for the next epoch; they end with the loader.

    Raises:
        ValueError: `batch_size` or `prefetch_factor` is not a positive integer, `num_workers` or `timeout` is negative,
            there is no such `multiprocessing_context`, or options exclude each other.
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
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float | int = 0,
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: BaseContext | str | None = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
    ) -> None:
        _check_workers(num_workers, timeout, multiprocessing_context, prefetch_factor, persistent_workers)
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
        self.in_batches = batch_size is not None or batch_sampler is not None
        self.collate_fn = collate_fn or (collate if self.in_batches else convert)
        self.pin_memory = pin_memory
        self.drop_last = drop_last
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.generator = generator
        self.prefetch_factor = prefetch_factor or (2 if num_workers else None)
        self.persistent_workers = persistent_workers
        self._workers: WorkerPool | None = None  # the persistent ones

    def __len__(self) -> int:
        if self.batch_sampler is not None:
            return len(self.batch_sampler)  # pyright: ignore[reportArgumentType]
        n = len(self.dataset if self.sampler is None else self.sampler)  # pyright: ignore[reportArgumentType]
        return n if self.batch_size is None else count_batches(n, self.batch_size, self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches())
        fetch = Fetch(self.dataset, self.collate_fn, self.in_batches)
        if self.num_workers == 0:
            draw_seed(self.generator)  # the same draw as with workers
            made = map(fetch, batches)
        else:
            made = self._pool(fetch).epoch(batches, stop=not self.persistent_workers)
        return map(pin, made) if self.pin_memory and _can_pin() else made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None}  # a copy, in this or another process, starts its own workers

    def _pool(self, fetch: Callable[[Any], Any]) -> WorkerPool:
        """The workers of an epoch: new ones, or those of the previous epoch if they are persistent."""
        if self._workers is None or not self._workers.usable:
            pool = WorkerPool(
                fetch,
                self.dataset,
                self.num_workers,
                draw_seed(self.generator),
                self.multiprocessing_context,
                ahead=self.prefetch_factor or 2,
                timeout=self.timeout,
                init=self.worker_init_fn,
            )
            if not self.persistent_workers:
                return pool
            self._workers = pool
        return self._workers

    def _batches(self) -> Iterable[Any]:
        """The indices of each batch of an epoch, or single indices if `batch_size` is None."""
        if self.batch_sampler is not None:
            return self.batch_sampler
        order = self.sampler
        if order is None:
            order = self._shuffled() if self.shuffle else range(len(self.dataset))
        return order if self.batch_size is None else cut(order, self.batch_size, self.drop_last)

    def _shuffled(self) -> Iterator[int]:
        """A random order of 0 … n-1, drawn exactly as `torch.utils.data.DataLoader` does."""
        n, generator = len(self.dataset), self.generator
        if generator is None:
            generator = torch.Generator().manual_seed(draw_seed(None))
        yield from torch.randperm(n, generator=generator).tolist()
        torch.randperm(n, generator=generator)  # torch draws one more order, for the (empty) remainder of n / n


@dataclass(frozen=True)
class Fetch:
    """Makes a batch from its indices, or an item from its index; a class, because it can be sent to the workers."""

    dataset: Any
    collate_fn: Callable[[Any], Any]
    in_batches: bool

    def __call__(self, indices: Any) -> Any:
        try:
            return self.collate_fn((take_items if self.in_batches else take_item)(self.dataset, indices))
        except StopIteration as error:  # otherwise it would end the iteration of the epoch
            raise RuntimeError(
                f"DataLoader: StopIteration was raised while the batch of {type(self.dataset).__name__} with the "
                f"indices {indices} was made; it does not end an epoch"
            ) from error


def take_items(dataset: Any, indices: Sequence[Any]) -> Sequence[Any]:
    """The items of a batch."""
    if getattr(dataset, "__getitems__", None) is None:
        return [take_item(dataset, index) for index in indices]
    with _noting(dataset, f"indices {indices}"):
        return dataset.__getitems__(indices)


def take_item(dataset: Any, index: Any) -> Any:
    """`dataset[index]`; a note with the index is added to an exception."""
    with _noting(dataset, f"index {index}"):
        return dataset[index]


@contextmanager
def _noting(dataset: Any, which: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"DataLoader: raised by {type(dataset).__name__}, {which}")
        raise


def collate(items: Sequence[Any]) -> Any:
    """Collate the items of a batch.

    Tensors and arrays are stacked, numbers become a tensor, strings stay unchanged. Containers are collated element by
    element: a mapping, a sequence or a named tuple becomes one of the same type if possible; a tuple becomes a list.

    Raises:
        ValueError: tensors of different shapes, or containers of different lengths; the message gives them.
        TypeError: items of another kind, such as PIL images, or of different kinds.
    """
    first = items[0]
    if isinstance(first, Tensor):
        return _stack(items)
    if isinstance(first, np.ndarray) and first.dtype.kind not in "SUO":
        return _stack([torch.as_tensor(item) for item in items])
    if isinstance(first, str | bytes):  # NumPy strings too
        return items
    if isinstance(first, float | int | np.bool_ | np.number):
        try:
            plain = not isinstance(first, np.generic)
            items = [bool(item) if isinstance(item, np.bool_) else item for item in items]  # for PyTorch 2.6
            return torch.tensor(items, dtype=torch.float64 if plain and isinstance(first, float) else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _different_kinds(items) from error
    if isinstance(first, Mapping):
        if not all(isinstance(item, Mapping) and first.keys() <= item.keys() for item in items):
            raise _different_kinds(items)
        return _like(first, {key: collate([item[key] for item in items]) for key in first})
    if isinstance(first, Sequence):
        if not all(isinstance(item, Sequence) for item in items):
            raise _different_kinds(items)
        lengths = {len(item) for item in items}
        if len(lengths) > 1:
            raise ValueError(f"DataLoader: items must be of equal size to make a batch, got {sorted(lengths)} parts")
        return _like(first, [collate(column) for column in zip(*items, strict=True)])
    raise TypeError(
        f"DataLoader: items found of type {_kind(first)} make no batch; tensors, arrays, numbers, texts and "
        "containers of them do: give the data set a transform (ToTensor for images), or the loader a collate_fn"
    )


def _stack(items: Sequence[Any]) -> Tensor:
    if not all(isinstance(item, Tensor) for item in items):
        raise _different_kinds(items)
    if any(item.layout != torch.strided for item in items):
        raise TypeError("DataLoader: sparse and nested tensors make no batch; give the loader a collate_fn")
    shapes = {tuple(item.shape) for item in items}
    if len(shapes) > 1:
        raise ValueError(
            f"DataLoader: items of the shapes {sorted(shapes)} make no batch; bring them to one size first"
        )
    return torch.stack(list(items))


def _different_kinds(items: Sequence[Any]) -> TypeError:
    first = items[0]
    if isinstance(first, Mapping) and all(isinstance(item, Mapping) for item in items):
        missing = sorted({str(key) for item in items for key in first.keys() - item.keys()})
        return TypeError(
            f"DataLoader: items make no batch, because some lack the keys {', '.join(missing)} of the first"
        )
    kinds = ", ".join(sorted({_kind(item) for item in items}))
    return TypeError(f"DataLoader: items of different types make no batch, got {kinds}; all need to be of one type")


def _kind(item: Any) -> str:
    return f"array of {item.dtype}" if isinstance(item, np.ndarray) else type(item).__name__


def _like(container: Any, parts: Any) -> Any:
    """A container of the type of `container` with `parts`; a dict or a list if this type cannot be constructed."""
    if hasattr(container, "_fields"):
        return type(container)(*parts)
    if isinstance(container, tuple):
        return parts
    try:
        if isinstance(container, MutableMapping | MutableSequence):  # a copy keeps its other attributes
            made: Any = copy(container)
            for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
                made[key] = part
            return made
        return type(container)(parts)
    except TypeError:  # such as range, which cannot be constructed from its parts
        return parts


def convert(item: Any) -> Any:
    """A single item outside a batch: arrays in it become tensors, a tuple becomes a list."""

    def to_tensor(part: Any) -> Any:
        numbers = isinstance(part, np.bool_ | np.number) or (
            isinstance(part, np.ndarray) and part.dtype.kind not in "SUO"
        )
        return torch.as_tensor(np.asarray(part)) if numbers else part  # PyTorch 2.6 takes no np.bool_

    return _walk(item, to_tensor)


def pin(batch: Any) -> Any:
    """The batch with its tensors, and other objects with a method `pin_memory`, in pinned memory."""
    return _walk(batch, lambda part: part.pin_memory() if hasattr(part, "pin_memory") else part)


def _can_pin() -> bool:
    kind = available_accelerator()
    if kind is None or kind.type == "mps":
        where = "there is no accelerator" if kind is None else "MPS has no pinned memory"
        warnings.warn(f"DataLoader: pin_memory has no effect, because {where}", stacklevel=3)
    return kind is not None and kind.type != "mps"


def _walk(item: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to all elements of `item`, in nested containers too."""
    if isinstance(item, Tensor | np.ndarray | str | bytes) or hasattr(item, "pin_memory"):
        return change(item)
    if isinstance(item, Mapping):
        return _like(item, {key: _walk(part, change) for key, part in item.items()})
    if isinstance(item, Sequence):
        return _like(item, [_walk(part, change) for part in item])
    return change(item)


def _check_workers(
    num_workers: int, timeout: float | int, context: BaseContext | str | None, ahead: int | None, persistent: bool
) -> None:
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, got {timeout}")
    if isinstance(context, str) and context not in (methods := multiprocessing.get_all_start_methods()):
        raise ValueError(f"multiprocessing_context must be among {', '.join(methods)}, got {context!r}")
    if ahead is not None and (not isinstance(ahead, int) or ahead < 1):
        raise ValueError(f"prefetch_factor must be a positive integer, got {ahead!r}")
    given = {
        "timeout": timeout != 0,
        "multiprocessing_context": context is not None,
        "prefetch_factor": ahead is not None,
        "persistent_workers": persistent,
    }
    if num_workers == 0 and any(given.values()):
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ValueError(f"{names} needs num_workers > 0, got num_workers=0")


def cut(order: Iterable[Any], batch_size: int, drop_last: bool) -> Iterator[list[Any]]:
    """Split `order` into lists of `batch_size`; the last one may be shorter, or is left out with `drop_last`."""
    numbers = iter(order)
    while batch := list(islice(numbers, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


def count_batches(n: int, batch_size: int, drop_last: bool) -> int:
    """The number of batches of an epoch over `n` items: n / batch_size, rounded down with `drop_last`, otherwise up.

    50,000 images in batches of 64 are 782 steps, not the tutorial's 781.25 (chapter 18).
    """
    return n // batch_size if drop_last else -(-n // batch_size)


def check_batch_size(batch_size: int) -> int:
    """Return `batch_size` if it is a positive integer; raise ValueError otherwise."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    return batch_size


def draw_seed(generator: torch.Generator | None) -> int:
    """A random seed; `torch.utils.data.DataLoader` draws one at the start of each epoch, used or not."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))
