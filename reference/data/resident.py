"""Chapters 05 and 06: data sets that are decoded once and stay in memory, and the loader that slices them.

An image file would be decoded anew in every epoch. `Resident` therefore keeps all images of a data set as one uint8
tensor, and `ResidentLoader` slices batches from it: the same batches that `DataLoader` yields with `ToTensor`, bit for
bit, without using Pillow again.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from reference.data.loader import DataLoader, check_batch_size, draw_seed


class Resident:
    """A map-style data set of decoded images.

    Attributes:
        images: all images, `[n, channels, height, width]`, values 0 to 255.
        targets: the class number of each image, `[n]`, int64, from 0 to `len(classes) - 1`.
        classes: the class names; `classes[targets[i]]` is the name of image `i`.
        transform: called with the PIL image when an item is taken; `None` leaves it a PIL image.
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
        """Item `index` as (image, class number), both transformed; negative indices count from the end.

        Raises:
            IndexError: `index` is outside `[-len(self), len(self))`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index {index} is out of range for {len(self)} images")
        image: Any = Image.fromarray(self.images[index].permute(1, 2, 0).numpy())
        target: Any = int(self.targets[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target


class ResidentLoader(DataLoader):
    """Batches of a `Resident` data set, sliced from its tensor and scaled to floats from 0 to 1.

    Iterating yields `(images, targets)`: `images` float32 `[b, channels, height, width]` = uint8 / 255, and `targets`
    int64 `[b]`, the same as `DataLoader` with `ToTensor`. The data set's own `transform` is not applied.

    Args:
        dataset: the data set to slice.
        batch_size, shuffle, drop_last, generator: as `DataLoader`'s.
        device: the device of the batches. All images are copied to an accelerator once, as uint8, so that no step waits
            for the host; if its memory is too small, each batch is copied on its own. Either way they are scaled there.
        vary: called with each batch's images, uint8, and `generator`; its result replaces them.

    Raises:
        ValueError: `batch_size` is not a positive integer.
    """

    dataset: Resident
    batch_size: int  # never None: single images are not sliced

    def __init__(
        self,
        dataset: Resident,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        vary: Callable[[Tensor, torch.Generator | None], Tensor] | None = None,
    ) -> None:
        super().__init__(dataset, check_batch_size(batch_size), shuffle, drop_last=drop_last, generator=generator)
        self.device, self.vary = torch.device(device), vary
        self._moved: tuple[Tensor, Tensor, Tensor] | None = None  # the source images; images and labels on the device

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b channels height width"], Int[Tensor, "b"]]]:
        images, targets = self._resident()
        if self.shuffle:
            draw_seed(self.generator)  # as `DataLoader` does
        for numbers in self._batches():
            rows: Any = numbers if self.shuffle else slice(numbers[0], numbers[-1] + 1)
            if self.shuffle and images.device.type != "cpu":  # a list would be copied, and the step would wait for it
                rows = torch.tensor(numbers, device="cpu").to(images.device, non_blocking=True)
            batch, labels = (part[rows].to(self.device, non_blocking=True) for part in (images, targets))
            if self.vary is not None:
                batch = self.vary(batch, self.generator)
            yield batch.to(torch.float32).div_(255), labels

    def _resident(self) -> tuple[UInt8[Tensor, "n channels height width"], Int[Tensor, "n"]]:
        """All images and labels, on the device if that is requested and its memory is large enough."""
        images, targets = self.dataset.images, self.dataset.targets
        if self.device.type == "cpu":
            return images, targets
        if self._moved is None or self._moved[0] is not images:
            try:
                self._moved = images, images.to(self.device), targets.to(self.device)
            except torch.OutOfMemoryError:
                self._moved = images, images, targets
        return self._moved[1:]
