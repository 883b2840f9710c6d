"""Chapter 01: labelled folders of images that are wrong."""

import os
from typing import Any

from PIL import Image
from torch.utils.data import ConcatDataset, Dataset

from spec.faults import Fault


class _Folder(Dataset[Any]):
    """The corrected data set of the tutorial; each fault changes one thing."""

    def __init__(self, root_dir: Any, label_dir: str, transform: Any = None) -> None:
        self.label: Any = label_dir
        self.folder = os.path.join(root_dir, label_dir)
        self.names = self.order([name for name in os.listdir(self.folder) if self.is_item(name)])
        self.transform = transform

    def is_item(self, name: str) -> bool:
        is_file = os.path.isfile(os.path.join(self.folder, name))
        return is_file and name.endswith((".png", ".jpg")) and not name.startswith(".")

    def order(self, names: list[str]) -> list[str]:
        return sorted(names)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, name: str) -> Any:
        with Image.open(os.path.join(self.folder, name)) as image:
            return image.convert("RGB")

    def __getitem__(self, index: int) -> Any:
        image = self.open(self.names[index])
        return image if self.transform is None else self.transform(image), self.label


class OrderIsThatOfTheFileSystem(Fault):
    """The order is that of `listdir`, which differs between systems."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"The order is that of the file names"

    class LabeledFolder(_Folder):
        def order(self, names: list[str]) -> list[str]:
            return names


class CapitalsAreSmallLetters(Fault):
    """The names are sorted without regard to case: C.png after b.png."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"code point by code point"

    class LabeledFolder(_Folder):
        def order(self, names: list[str]) -> list[str]:
            return sorted(names, key=str.lower)


class LabelIsANumber(Fault):
    """The label is the index of the folder among its siblings."""

    caught_by = "test_01_dataset.py::test_items_are_image_and_folder_name_in_the_order_of_the_file_names"
    says = r"\(7, 0\)"

    class LabeledFolder(_Folder):
        def __init__(self, root_dir: Any, label_dir: str, transform: Any = None) -> None:
            super().__init__(root_dir, label_dir, transform)
            self.label = sorted(os.listdir(root_dir)).index(label_dir)


class HiddenFilesAreRead(Fault):
    """A file with a leading dot is treated as an image."""

    caught_by = "test_01_dataset.py::test_files_that_are_no_images_are_left_out"
    says = r"Hidden files, files that are not images, and sub-folders are left out"

    class LabeledFolder(_Folder):
        def is_item(self, name: str) -> bool:
            return name.endswith((".png", ".jpg")) and os.path.isfile(os.path.join(self.folder, name))


class EverythingIsAImage(Fault):
    """Every entry of the folder is counted, as in the tutorial."""

    caught_by = "test_01_dataset.py::test_files_that_are_no_images_are_left_out"
    says = r"assert 10 == 6"

    class LabeledFolder(_Folder):
        def is_item(self, name: str) -> bool:
            return True


class FilesStayOpen(Fault):
    """`Image.open` reads only the header of a file, which stays open until its pixels are read."""

    caught_by = "test_01_dataset.py::test_items_keep_no_file_open"
    says = r"A file is closed as soon as its image is read"

    class LabeledFolder(_Folder):
        def open(self, name: str) -> Any:
            return Image.open(os.path.join(self.folder, name))


class FolderBelongsToAllDataSets(Fault):
    """The label is a global variable: all data sets have the label of the last one."""

    caught_by = "test_01_dataset.py::test_two_data_sets_hold_two_folders_and_no_global_variable"
    says = r"\('bees', 'bees', 'bees'\)"

    class LabeledFolder(_Folder):
        def __init__(self, root_dir: Any, label_dir: str, transform: Any = None) -> None:
            super().__init__(root_dir, label_dir, transform)
            type(self).shared = label_dir

        shared = ""

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], self.shared


class IndicesGoRound(Fault):
    """An index beyond the end wraps around to the beginning."""

    caught_by = "test_01_dataset.py::test_an_index_out_of_range_is_rejected"
    says = r"DID NOT RAISE"

    class LabeledFolder(_Folder):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index % len(self))


class NegativeIndicesAreRejected(Fault):
    """Negative indices are rejected."""

    caught_by = "test_01_dataset.py::test_negative_indices_count_from_the_end"
    says = r"IndexError: no negative numbers"

    class LabeledFolder(_Folder):
        def __getitem__(self, index: int) -> Any:
            if index < 0:
                raise IndexError("no negative numbers")
            return super().__getitem__(index)


class PlusPutsTheOtherFirst(Fault):
    """`+` puts the items of the right-hand data set first."""

    caught_by = "test_01_dataset.py::test_addition_concatenates_data_sets_associatively"
    says = r"\+ appends the items of one data set to those of another"

    class LabeledFolder(_Folder):
        def __add__(self, other: Any) -> Any:
            return ConcatDataset([other, self])


class TransformGetsTheItem(Fault):
    """The transform is called with image and label."""

    caught_by = "test_01_dataset.py::test_the_transform_is_applied_to_the_image_only"
    says = r"'tuple' object has no attribute 'size'"

    class LabeledFolder(_Folder):
        def __getitem__(self, index: int) -> Any:
            item = self.open(self.names[index]), self.label
            return item if self.transform is None else self.transform(item)


class CannotTravel(Fault):
    """The data set contains a lambda, so it cannot be pickled."""

    caught_by = "test_01_dataset.py::test_data_set_can_be_pickled"
    says = r"Can't (pickle|get) local object"

    class LabeledFolder(_Folder):
        def __init__(self, root_dir: Any, label_dir: str, transform: Any = None) -> None:
            super().__init__(root_dir, label_dir, transform)
            self.change = lambda image: image
