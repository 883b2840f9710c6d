"""Chapter 05: readers of CIFAR-10 that are wrong."""

from pathlib import Path
from typing import Any

from PIL import Image

import reference
from spec.faults import Fault

FILE = "test_05_torchvision_datasets.py"


class AlwaysTheTrainingSet(Fault):
    """`train` is ignored, as in the chapter's first listing."""

    caught_by = f"{FILE}::test_only_train_false_gives_the_test_set"
    says = r"assert \(30, 30\) == \(30, 6\)"

    class CIFAR10(reference.CIFAR10):
        def __init__(self, root: str | Path, train: bool = True, *arguments: Any, **options: Any) -> None:
            super().__init__(root, True, *arguments, **options)


class PixelsAreInterleaved(Fault):
    """The bytes are read as interleaved red, green and blue, although they are three planes."""

    caught_by = f"{FILE}::test_the_listing_shows_the_training_set_with_another_first_image_than_the_test_set"
    says = r"assert \[\d+, .*\] == \[\d+, "

    class CIFAR10(reference.CIFAR10):
        def __getitem__(self, index: int) -> Any:
            _, label = super().__getitem__(index)
            pixels = self.images[index].contiguous().reshape(32, 32, 3)
            return Image.fromarray(pixels.numpy()), label


class TransformsInAdvance(Fault):
    """All images are transformed when the data set is created."""

    caught_by = f"{FILE}::test_a_transform_is_applied_once_to_each_image_that_is_taken"
    says = r"assert \[.*\] == \[\]"

    class CIFAR10(reference.CIFAR10):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            for index in range(len(self)):
                self[index]


class ForgetsTheTargetTransform(Fault):
    """target_transform is not applied: labels stay numbers."""

    caught_by = f"{FILE}::test_without_transform_items_are_pil_images_and_target_transform_is_separate"
    says = r"assert \d == '\w+'"

    class CIFAR10(reference.CIFAR10):
        def __init__(self, *arguments: Any, target_transform: Any = None, **options: Any) -> None:
            super().__init__(*arguments, **options)


class TrustsEveryFile(Fault):
    """No checksum is verified."""

    caught_by = f"{FILE}::test_a_changed_file_is_not_taken_for_the_data_set"
    says = r"DID NOT RAISE"

    class CIFAR10(reference.CIFAR10):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, archive_md5=None)
