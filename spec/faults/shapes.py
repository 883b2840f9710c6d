"""Chapter 05: wrong implementations of the data set `Shapes`."""

from typing import Any

import torch

import reference
from spec.faults import Fault

FILE = "test_05_shapes.py"


class GrainComesFromTorch(Fault):
    """The grain is drawn by torch's global generator: every run has different images."""

    caught_by = f"{FILE}::test_drawing_leaves_torch_s_generator_alone"
    says = r"assert False"

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.images ^= torch.randint(8, self.images.shape, dtype=torch.uint8)


class OnePixelIsOff(Fault):
    """A region ends one cell too early in one image."""

    caught_by = f"{FILE}::test_the_default_images_are_the_recorded_ones"
    says = r"== 'ae7e18adb121"

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.images[-1, 0, 16, 16] ^= 1


class WidthFirst(Fault):
    """Rows and columns are exchanged."""

    caught_by = f"{FILE}::test_an_image_follows_the_drawing_rule"
    says = r"assert \[\d+, .*\] == \[\d+, "

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.images = self.images.transpose(2, 3).contiguous()


class ASeedThatTrainsOnTheTestPart(Fault):
    """The training part of seed 3 is the test part of seed 0."""

    caught_by = f"{FILE}::test_images_of_different_seeds_and_splits_do_not_overlap"
    says = r"assert \(\d+, (True|False)\) == \(\d+, (True|False)\)"

    class Shapes(reference.Shapes):
        def __init__(self, train: bool = True, *arguments: Any, seed: int = 0, **options: Any) -> None:
            super().__init__(train and seed != 3, *arguments, seed=0 if train and seed == 3 else seed, **options)


class AlwaysTheTrainingSet(Fault):
    """`train` is ignored."""

    caught_by = f"{FILE}::test_no_image_occurs_twice_within_or_between_train_and_test"
    says = r"assert 9600 == \(9600 \+ 2000\)"

    class Shapes(reference.Shapes):
        def __init__(self, train: bool = True, *arguments: Any, **options: Any) -> None:
            size = options.pop("size", None) or (9600 if train else 2000)
            super().__init__(True, *arguments, size=size, **options)


class TestSetIsTheNextSeed(Fault):
    """The test set uses the seed plus one, so that it is the training set of another seed."""

    caught_by = f"{FILE}::test_images_of_different_seeds_and_splits_do_not_overlap"
    says = r"assert \(\d+, (True|False)\) == \(\d+, (True|False)\)"

    class Shapes(reference.Shapes):
        def __init__(self, train: bool = True, *arguments: Any, **options: Any) -> None:
            size, seed = options.pop("size", None) or (9600 if train else 2000), options.pop("seed", 0)
            super().__init__(True, *arguments, size=size, seed=seed if train else seed + 1, **options)


class ClassesAreDrawnOneByOne(Fault):
    """Each image draws its class; the classes are equally frequent only on average."""

    caught_by = f"{FILE}::test_every_block_of_ten_has_every_class_once"
    says = r"assert False"

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            generator = torch.Generator().manual_seed(0)
            self.targets = torch.randint(10, (len(self.targets),), generator=generator)


class ClassAfterClass(Fault):
    """The classes alternate in a fixed order: a training without shuffling sees a pattern."""

    caught_by = f"{FILE}::test_the_order_of_the_classes_is_mixed"
    says = r"assert 1 >= \(960 - 4\)"

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            order = (torch.arange(len(self.targets)) // 10 * 10 + self.targets).argsort()
            self.images, self.targets = self.images[order], self.targets[order]


class SizeIsPartOfTheSeed(Fault):
    """A smaller data set is not a prefix of a larger one."""

    caught_by = f"{FILE}::test_a_smaller_data_set_is_the_beginning_of_a_larger_one"
    says = r"assert False"

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if (size := options.get("size")) is not None:
                options["seed"] = options.get("seed", 0) + size
            super().__init__(*arguments, **options)


class ColourTellsTheClass(Fault):
    """Each class has a different brightness, so that the shape is not needed to classify."""

    caught_by = f"{FILE}::test_class_is_not_predictable_from_colour"
    says = r"assert [\d.]+ < 0\.15"

    class Shapes(reference.Shapes):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            light = 10 * self.targets[:, None, None, None]
            self.images = (self.images + light).clamp(max=255).to(torch.uint8)


class IndicesGoRound(Fault):
    """An index beyond the end wraps around: a `for` loop over the items never ends."""

    caught_by = f"{FILE}::test_an_item_beyond_the_end_is_an_index_error"
    says = r"DID NOT RAISE"

    class Shapes(reference.Shapes):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index % len(self))


class ForgetsTheTargetTransform(Fault):
    """Only the image is transformed."""

    caught_by = f"{FILE}::test_transforms_are_applied_when_an_item_is_taken"
    says = r"\(\(32, 32\), \d\)"

    class Shapes(reference.Shapes):
        def __init__(self, train: bool = True, transform: Any = None, target_transform: Any = None, **options: Any):
            super().__init__(train, transform, **options)
