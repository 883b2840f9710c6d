"""Chapter 05: trees of images that are wrong."""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from spec.faults import Fault

FILE, CACHE = "test_05_image_tree.py", "test_05_image_tree_cache.py"


class _Tree:
    """A right image tree without a cache; each fault changes one thing."""

    def __init__(
        self,
        root: Any,
        train: bool = True,
        transform: Any = None,
        target_transform: Any = None,
        *,
        size: Any = (32, 32),
        skip_broken: bool = False,
    ) -> None:
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"size must be (height, width), got {size!r}")
        self.transform, self.target_transform, self.size = transform, target_transform, size
        self.folder = Path(root) / ("train" if train else "test")
        self.classes = self.folders(Path(root) / "train")
        found = {name: self.images(name) for name in self.folders(self.folder)}
        for name, paths in found.items():
            if name not in self.classes or not paths:
                raise ValueError(f"{self.folder / name}: no images, or no such class in train")
        if not found:
            raise ValueError(f"{self.folder}: no class folders")
        paths = self.order(found)
        pixels = {}
        self.skipped = []
        for path in paths:
            try:
                pixels[path] = self.decode(self.folder / path)
            except Exception as error:
                if not self.leave_out(skip_broken):
                    raise ValueError(f"{self.folder / path}: {error}") from error
                self.skipped.append(path)
        self.skipped.sort()
        self.paths = [path for path in paths if path in pixels]
        for name in found:
            if not any(path.startswith(f"{name}/") for path in self.paths):
                raise ValueError(f"every image of class {name} is broken")
        self.targets = torch.tensor([self.number(path) for path in self.paths])
        self.images = torch.from_numpy(np.stack([pixels[path] for path in self.paths]))  # pyright: ignore[reportAttributeAccessIssue]

    def folders(self, folder: Path) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))

    def images(self, name: str) -> list[str]:
        found = []
        for folder, inner, files in os.walk(self.folder / name, followlinks=True):
            inner[:] = [folder for folder in inner if folder[0] != "."]
            where = Path(folder).relative_to(self.folder).as_posix()
            found += [f"{where}/{file}" for file in files if file[0] != "."]
        return [path for path in found if path.lower().endswith((".png", ".bmp", ".jpg"))]

    def order(self, found: dict[str, list[str]]) -> list[str]:
        places = []
        for paths in found.values():
            digests = {path: blake2b(os.fsencode(path)).digest() for path in paths}
            for rank, path in enumerate(sorted(paths, key=digests.__getitem__)):
                places.append(((2 * rank + 1) / len(paths), digests[path][32:], path))
        return [path for *_, path in sorted(places)]

    def decode(self, path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(self.resize(image.convert("RGB"))).transpose(2, 0, 1)

    def resize(self, image: Image.Image) -> Image.Image:
        return image.resize(self.size[::-1], Image.Resampling.BILINEAR)

    def leave_out(self, skip_broken: bool) -> bool:
        return skip_broken

    def number(self, path: str) -> int:
        return self.classes.index(path.partition("/")[0])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image: Any = Image.fromarray(self.images[index].permute(1, 2, 0).numpy())  # pyright: ignore[reportIndexIssue]
        target: Any = int(self.targets[index])
        return (
            image if self.transform is None else self.transform(image),
            target if self.target_transform is None else self.target_transform(target),
        )


class ClassAfterClass(Fault):
    """The images are in the order of the files on the disk: a training without shuffling learns only the last class."""

    caught_by = f"{FILE}::test_every_consecutive_range_has_the_class_proportions"
    says = r"\(\d+, 'ant'\)"

    class ImageTree(_Tree):
        def order(self, found: dict[str, list[str]]) -> list[str]:
            return [path for name in sorted(found) for path in sorted(found[name])]


class ClassesTakeTurns(Fault):
    """The classes alternate (ant, bee, cat, ant, bee, cat): every batch repeats the same pattern."""

    caught_by = f"{FILE}::test_class_order_is_not_periodic"
    says = r"assert 1 == 6"

    class ImageTree(_Tree):
        def order(self, found: dict[str, list[str]]) -> list[str]:
            return [path for block in zip(*map(sorted, found.values()), strict=True) for path in block]


class OrderIsThatOfTheWholePath(Fault):
    """The digest depends on the absolute path: the same tree in another folder has another order."""

    caught_by = f"{FILE}::test_the_order_depends_neither_on_place_nor_on_other_classes"
    says = r"The order of the items depends only on the names"

    class ImageTree(_Tree):
        def order(self, found: dict[str, list[str]]) -> list[str]:
            paths = [path for inside in found.values() for path in inside]
            return sorted(paths, key=lambda path: blake2b(os.fsencode(self.folder / path)).digest())


class WidthFirst(Fault):
    """`size` is read as (width, height), as in Pillow."""

    caught_by = f"{FILE}::test_items_pass_through_the_transforms"
    says = r"\(4, 6\)"

    class ImageTree(_Tree):
        def resize(self, image: Image.Image) -> Image.Image:
            return image.resize(self.size, Image.Resampling.BILINEAR)


class NearestPixel(Fault):
    """Images are reduced by leaving out pixels."""

    caught_by = f"{FILE}::test_images_are_resized_to_one_size_with_bilinear_interpolation"
    says = r"assert False"

    class ImageTree(_Tree):
        def resize(self, image: Image.Image) -> Image.Image:
            return image.resize(self.size[::-1], Image.Resampling.NEAREST)


class NumbersOfWhatIsThere(Fault):
    """The test part numbers its own folders: a missing class shifts the numbers of all others."""

    caught_by = f"{FILE}::test_test_split_may_lack_a_class_and_keeps_class_numbers"
    says = r"\[0, 0, 1, 1\] == \[1, 1, 2, 2\]"

    class ImageTree(_Tree):
        def number(self, path: str) -> int:
            return self.folders(self.folder).index(path.partition("/")[0])


class StaysAtTheTop(Fault):
    """Images in sub-folders of the class folders are left out silently."""

    caught_by = f"{FILE}::test_images_in_sub_folders_belong_to_the_class_as_in_torchvision"
    says = r"ant/a/b/c/0\.png|no images"

    class ImageTree(_Tree):
        def images(self, name: str) -> list[str]:
            return [path for path in super().images(name) if path.count("/") == 1]


class LosesTheSubFolder(Fault):
    """The path of an image in a sub-folder lacks the sub-folder."""

    caught_by = f"{FILE}::test_images_in_sub_folders_belong_to_the_class_as_in_torchvision"
    says = r"ant/a/b/c/0\.png"

    class ImageTree(_Tree):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.paths = [f"{path.partition('/')[0]}/{path.rpartition('/')[2]}" for path in self.paths]


class TakesHiddenFolders(Fault):
    """Images in a hidden folder, such as thumbnails, are included."""

    caught_by = f"{FILE}::test_hidden_files_and_files_that_are_no_images_are_left_out"
    says = r"\(13, "

    class ImageTree(_Tree):
        def images(self, name: str) -> list[str]:
            inside = (path for path in (self.folder / name).rglob("[!.]*.png") if path.is_file())
            return [str(path.relative_to(self.folder)) for path in inside]


class CapitalsAreNoImages(Fault):
    """Only .png is recognized, not .PNG."""

    caught_by = f"{FILE}::test_unusual_file_names_are_accepted"
    says = r"'ant/UPPER\.PNG' is not in list"

    class ImageTree(_Tree):
        def images(self, name: str) -> list[str]:
            return [path for path in super().images(name) if path.endswith((".png", ".bmp"))]


class BrokenImagesAreLeftOutSilently(Fault):
    """A broken image is left out without a message."""

    caught_by = f"{FILE}::test_a_broken_image_is_named"
    says = r"DID NOT RAISE"

    class ImageTree(_Tree):
        def leave_out(self, skip_broken: bool) -> bool:
            return True


class RemembersByNameAndTime(Fault):
    """The cache relies on the modification time of a file, which any user can set."""

    caught_by = f"{CACHE}::test_a_stale_cache_entry_is_never_used"
    says = r"assert False"

    class ImageTree(_Tree):
        known: ClassVar[dict[Any, np.ndarray]] = {}

        def decode(self, path: Path) -> np.ndarray:
            key = path, path.stat().st_size, path.stat().st_mtime_ns, self.size
            if key not in self.known:
                self.known[key] = super().decode(path)
            return self.known[key]


class TensorIsThatOfEverybody(Fault):
    """All data sets share one tensor: changing it in one changes the others."""

    caught_by = f"{CACHE}::test_changing_the_tensor_does_not_change_the_cache"
    says = r"assert False"

    class ImageTree(_Tree):
        shared: ClassVar[dict[Any, torch.Tensor]] = {}

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.images = self.shared.setdefault(self.folder, self.images)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
