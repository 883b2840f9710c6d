"""Components that differ from PyTorch in undocumented behaviour: draws, orders, identity, the implicit dimension.

The transforms draw from Python's `random`, the column before the row; a loader shuffles by another rule; an image of
the right size is copied; softmax needs a dimension; `step` does not enable gradients for its closure; a query without
visible keys gets NaN, as in the code that the documentation of `scaled_dot_product_attention` shows.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import reference


class RandomCrop(reference.RandomCrop):
    """Draws the column first, in every call, from Python's generator."""

    def forward(self, image: Any) -> Any:
        rows, columns = self.size
        image = self._pad(image, self.borders)
        height, width = _sides(image)
        if self.pad_if_needed and (rows > height or columns > width):
            both = max(columns - width, 0), max(rows - height, 0)
            self_borders = type(self.borders)(*both, *both)
            image = self._pad(image, self_borders)
            height, width = _sides(image)
        if rows > height or columns > width:
            raise ValueError(f"size {self.size}: the image has only {height} rows and {width} columns")
        left, top = random.randint(0, width - columns), random.randint(0, height - rows)
        if isinstance(image, Tensor):
            return image[..., top : top + rows, left : left + columns]
        return image.crop((left, top, left + columns, top + rows))


def _sides(image: Any) -> tuple[int, int]:
    if isinstance(image, Tensor):
        if image.dim() < 2:
            raise TypeError("image: a tensor needs rows and columns")
        return image.shape[-2], image.shape[-1]
    if not hasattr(image, "size"):
        raise TypeError(f"image: {type(image).__name__} is no image")
    return image.size[1], image.size[0]


class RandomHorizontalFlip(reference.RandomHorizontalFlip):
    """Draws from Python's generator."""

    def forward(self, image: Any) -> Any:
        _sides(image)
        always = reference.RandomHorizontalFlip(p=1.0)
        return always(image) if random.random() < self.p else image


class Resize(reference.Resize):
    """Copies an image of the right size."""

    def forward(self, image: Any) -> Any:
        result = super().forward(image)
        if result is not image:
            return result
        return image.clone() if isinstance(image, Tensor) else image.copy()


class _Order:
    def __init__(self, dataset: Any, generator: torch.Generator | None) -> None:
        self.n, self.generator = len(dataset), generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        numbers = torch.rand(self.n, dtype=torch.float64, generator=self.generator)
        return iter(numbers.argsort(descending=True).tolist())


class DataLoader(reference.DataLoader):
    """Shuffles by sorting random numbers."""

    def _batches(self) -> Any:
        if not self.shuffle:
            return super()._batches()
        self.sampler, sampler = _Order(self.dataset, self.generator), self.sampler
        try:
            return super()._batches()
        finally:
            self.sampler = sampler


def softmax(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Needs `dim`."""
    return reference.softmax(input, dim, dtype=dtype)


def log_softmax(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Needs `dim`."""
    return reference.log_softmax(input, dim, dtype=dtype)


def _as_it_finds_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    def with_closure(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        step(self)
        return loss

    return with_closure


class SGD(reference.SGD):
    """Does not enable gradients for the closure."""

    step = _as_it_finds_gradients(reference.SGD.step)  # pyright: ignore[reportAssignmentType]


class Adam(reference.Adam):
    """Does not enable gradients for the closure."""

    step = _as_it_finds_gradients(reference.Adam.step)  # pyright: ignore[reportAssignmentType]


class AdamW(reference.AdamW):
    """Does not enable gradients for the closure."""

    step = _as_it_finds_gradients(reference.AdamW.step)  # pyright: ignore[reportAssignmentType]


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    """Gives NaN if the mask leaves no key."""
    mask = args[0] if args else options.get("attn_mask")
    output = reference.scaled_dot_product_attention(query, key, value, *args, **options)
    if not isinstance(mask, Tensor):
        return output
    hidden = ~mask if mask.dtype == torch.bool else mask == -torch.inf
    return torch.where(hidden.all(-1, keepdim=True), torch.nan, output)
