"""Chapters 01 to 06: typical mistakes in the first version of a learner's data sets, transforms and loaders."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import data

import reference as right
from spec.faults import Fault
from spec.faults.labeled_folder import _Folder

# chapters 01, 03 and 04: data


class TheLabelComesFirst(Fault):
    """(label, image) instead of (image, label)."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"."

    class LabeledFolder(_Folder):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return label, image


class TheIndexIsOneTooLarge(Fault):
    """Item i is file i + 1, and the last item is the first file."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"."

    class LabeledFolder(_Folder):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__((index + 1) % len(self))


class TheLengthIsOneTooSmall(Fault):
    """len(data) - 1: the last image never comes."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"."

    class LabeledFolder(_Folder):
        def __len__(self) -> int:
            return super().__len__() - 1


class TheNamesAreNotSorted(Fault):
    """The order is that in which the file system lists the files, here the opposite one."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"."

    class LabeledFolder(_Folder):
        def order(self, names: list[str]) -> list[str]:
            return sorted(names, reverse=True)


class BytesAreNotDivided(Fault):
    """The pixels stay between 0 and 255."""

    caught_by = "test_03_transforms.py::test_black_is_0_and_white_is_1"
    says = r"got        255\.0\n.*expected   1\.0"

    class ToTensor(right.ToTensor):
        def __call__(self, image: Any) -> Tensor:
            tensor = super().__call__(image)
            return tensor if getattr(image, "mode", "") == "1" else tensor * 255  # which has no bytes


class TheMeanIsNotSubtracted(Fault):
    """image / std."""

    caught_by = "test_04_transforms_in_use.py::test_normalize_divides_by_the_standard_deviation_not_by_the_variance"
    says = r"differs|assert"

    class Normalize(right.Normalize):
        def __init__(self, mean: Any, std: Any, inplace: bool = False) -> None:
            super().__init__([0.0 for _ in mean], std, inplace)


class MultipliesByTheDeviation(Fault):
    """(image - mean) · std."""

    caught_by = "test_04_transforms_in_use.py::test_normalize_divides_by_the_standard_deviation_not_by_the_variance"
    says = r"differs|assert"

    class Normalize(right.Normalize):
        def __init__(self, mean: Any, std: Any, inplace: bool = False) -> None:
            super().__init__(mean, [1 / one for one in std], inplace)


class TheMeanIsAdded(Fault):
    """(image + mean) / std."""

    caught_by = "test_04_transforms_in_use.py::test_normalize_divides_by_the_standard_deviation_not_by_the_variance"
    says = r"differs|assert"

    class Normalize(right.Normalize):
        def __init__(self, mean: Any, std: Any, inplace: bool = False) -> None:
            super().__init__([-one for one in mean], std, inplace)


# chapter 06: loaders


class BatchesOverlap(Fault):
    """Each batch starts one item later instead of one batch later."""

    caught_by = "test_06_dataloader.py::test_a_batch_size_of_4_takes_4_at_a_time"
    says = r"."

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            size, items = self.batch_size or 1, list(self.sampler)
            for start in range(len(self)):
                yield self.collate_fn([self.dataset[i] for i in items[start : start + size]])


class TheOrderRepeats(Fault):
    """Each epoch starts from the same seed."""

    caught_by = "test_06_dataloader.py::test_two_epochs_have_all_items_in_different_orders"
    says = r"both epochs have the same order"

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                yield from list(super().__iter__())
