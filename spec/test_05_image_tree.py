"""Chapter 05: a tree of images as a data set."""

import hashlib
import os
import pickle
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reference.data import image_tree
from reference.data.image_tree import ImageTree as ReferenceTree
from reference.errors import InputError
from spec.support.assertions import rejects
from spec.support.clauses import clause
from spec.support.image_trees import CLASSES, Make, draw, same, shade_of


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary cache folder instead of the user's."""
    folder = tmp_path / "user-cache"
    monkeypatch.setattr(image_tree, "user_cache_path", lambda name: folder / name)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four training and two test images in each of three classes; their times are an hour old."""
    root, shade = tmp_path / "tree", 10
    for split, count in (("train", 4), ("test", 2)):
        for name in CLASSES:
            for i in range(count):
                draw(root / split / name / f"{i}.png", shade)
                shade += 10
    return root


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock for the age of files one hour ahead, because ctimes cannot be set back."""
    real = time.time_ns
    monkeypatch.setattr(image_tree.time, "time_ns", lambda: real() + 3600 * 10**9)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of the passes over all files of the tree, in order: "decode" or "compare"."""
    passes: list[str] = []
    real = image_tree.read_tree

    def counted(tree: Any, size: Any, progress: bool, decode: bool) -> Any:
        passes.append("decode" if decode else "compare")
        return real(tree, size, progress, decode)

    monkeypatch.setattr(image_tree, "read_tree", counted)
    return passes


# ---------------------------------------------------------------------------------------------------------- items


@clause("05.tree.classes")
def test_each_image_has_the_label_of_the_class_folder(ImageTree: Make, root: Path) -> None:
    train, test = ImageTree(root, size=(8, 8)), ImageTree(root, train=False, size=(8, 8))
    assert train.classes == test.classes == CLASSES
    assert (len(train), len(test)) == (12, 6)
    assert train.images.dtype == torch.uint8
    assert train.images.shape == (12, 3, 8, 8)
    assert train.targets.dtype == torch.int64
    for dataset, first in ((train, 10), (test, 130)):
        for path, target, image in zip(dataset.paths, dataset.targets, dataset.images, strict=True):
            name, number = path.split("/")
            assert dataset.classes[target] == name
            count = len(dataset) // 3
            assert image[2, 0, 0] == first + 10 * (CLASSES.index(name) * count + int(number[0]))
            folder = "train" if dataset is train else "test"
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(root / folder / path)))


@clause("05.tree.size")
def test_images_have_the_size_of_cifar10_by_default(ImageTree: Make, root: Path) -> None:
    assert ImageTree(root).images.shape == (12, 3, 32, 32)


@clause("05.tree.size")
def test_images_are_resized_to_one_size_with_bilinear_interpolation(ImageTree: Make, root: Path) -> None:
    draw(root / "train" / "ant" / "wide.png", 5, 20, 50)
    dataset = ImageTree(root, size=(12, 10))
    expected = Image.open(root / "train" / "ant" / "wide.png").resize((10, 12), Image.Resampling.BILINEAR)
    place = dataset.paths.index("ant/wide.png")
    assert np.array_equal(dataset.images[place].permute(1, 2, 0), np.asarray(expected))


def by_digest(paths: Iterable[str], half: slice) -> list[str]:
    return sorted(paths, key=lambda path: hashlib.blake2b(path.encode()).hexdigest()[half])


@clause("05.tree.order")
def test_the_kth_images_of_equal_classes_by_digest_are_adjacent(ImageTree: Make, root: Path) -> None:
    first, second = slice(0, 64), slice(64, 128)  # hexadecimal digits
    classes = [by_digest((f"{name}/{i}.png" for i in range(4)), first) for name in CLASSES]
    expected = [path for block in zip(*classes, strict=True) for path in by_digest(block, second)]
    assert ImageTree(root).paths == expected
    assert expected != sorted(expected)


@clause("05.tree.proportions")
def test_every_consecutive_range_has_the_class_proportions(ImageTree: Make, tmp_path: Path) -> None:
    sizes = {"ant": 7, "bee": 60, "cat": 23}
    for name, size in sizes.items():
        for i in range(size):
            draw(tmp_path / "tree" / "train" / name / f"{i}.png", i, 1, 1)
    paths = ImageTree(tmp_path / "tree", size=(1, 1)).paths
    for length in range(1, 91):
        for name, size in sizes.items():
            count = sum(path.startswith(name) for path in paths[:length])
            # up to a share x of the whole stand round(size · x) of each class: half an image off for each of the three
            assert abs(count - length * size / 90) <= 0.5 + 3 * 0.5, (length, name)


@clause("05.tree.order")
def test_class_order_is_not_periodic(ImageTree: Make, tmp_path: Path) -> None:
    for name in CLASSES:
        for i in range(60):
            draw(tmp_path / "tree" / "train" / name / f"{i}.png", i, 1, 1)
    blocks = ImageTree(tmp_path / "tree", size=(1, 1)).targets.reshape(60, 3)
    assert len(blocks.unique(dim=0)) == 6  # all orders of three; that 60 random ones miss one is a chance of 1e-4


@clause("05.tree.order")
def test_the_order_depends_neither_on_place_nor_on_other_classes(ImageTree: Make, root: Path, tmp_path: Path) -> None:
    before = ImageTree(root).paths
    shutil.copytree(root, tmp_path / "else" / "where", ignore=shutil.ignore_patterns(".*"))
    assert ImageTree(tmp_path / "else" / "where").paths == before
    draw(root / "train" / "ant" / "new.png", 1)
    (root / "train" / "cat" / "0.png").unlink()
    after = ImageTree(root).paths
    for name in CLASSES:
        old, new = ([path for path in paths if path.startswith(name)] for paths in (before, after))
        assert [path for path in new if path != "ant/new.png"] == [path for path in old if path != "cat/0.png"]


@clause("05.tree.order")
@pytest.mark.parametrize("limit", [0, 10**9], ids=["all by threads", "all one by one"])
def test_large_files_and_small_ones_give_the_same_data_set(
    root: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    draw(root / "train" / "ant" / "wide.png", 5, 20, 50)
    break_two(root)
    sizes = sorted(path.stat().st_size for path in (root / "train").rglob("*.png"))
    monkeypatch.setattr(image_tree, "SMALL_FILE", sizes[len(sizes) // 2])
    mixed = ReferenceTree(root, size=(8, 8), skip_broken=True)
    shutil.rmtree(root / ".ocean-cache")
    monkeypatch.setattr(image_tree, "SMALL_FILE", limit)
    assert same(ReferenceTree(root, size=(8, 8), skip_broken=True), mixed)
    assert mixed.skipped == ["bee/1.png", "cat/3.png"]


@clause("05.tree.memory")
@pytest.mark.parametrize("limit", [0, 10**9], ids=["larger than the limit", "smaller"])
def test_one_file_above_the_limit_is_in_memory_at_a_time(
    limit: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    now: list[str] = []
    real = image_tree.read_regular

    def slowly(path: Any, *rest: Any) -> bytes:
        now.append(path)
        together.append(len(now))
        time.sleep(0.01)
        now.remove(path)
        return real(path, *rest)

    monkeypatch.setattr(image_tree, "read_regular", slowly)
    monkeypatch.setattr(image_tree, "SMALL_FILE", 0)  # all by threads
    monkeypatch.setattr(image_tree, "LARGE_FILE", limit)
    monkeypatch.setattr(image_tree.os, "cpu_count", lambda: 4)
    ReferenceTree(root)
    assert max(together) == 1 if limit == 0 else max(together) > 1


@clause("05.tree.transforms")
def test_items_pass_through_the_transforms(ImageTree: Make, root: Path) -> None:
    plain = ImageTree(root, size=(8, 8))
    assert plain[0][0].getpixel((0, 0))[2] == shade_of(plain)[0]
    changed = ImageTree(root, True, lambda image: image.size, lambda target: CLASSES[target], size=(4, 6))
    assert changed[0] == ((6, 4), plain.paths[0].split("/")[0])


@clause("05.tree.travels")
def test_data_set_can_be_sent_to_another_process(ImageTree: Make, root: Path) -> None:
    dataset = ImageTree(root)
    assert same(pickle.loads(pickle.dumps(dataset)), dataset)


@clause("05.tree.images_only")
def test_hidden_files_and_files_that_are_no_images_are_left_out(ImageTree: Make, root: Path) -> None:
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "readme.txt").write_text("a tree")
    (root / "train" / "ant" / "notes.txt").write_text("ant")
    (root / "train" / "ant" / ".4.png").write_bytes(b"")
    draw(root / "train" / "ant" / ".thumbnails" / "0.png", 1)
    draw(root / "train" / "ant" / "more" / ".0.png", 1)
    dataset = ImageTree(root)
    assert (len(dataset), dataset.classes) == (12, CLASSES)


@clause("05.tree.sub_folders")
def test_images_in_sub_folders_belong_to_the_class_as_in_torchvision(ImageTree: Make, root: Path) -> None:
    from torchvision.datasets import ImageFolder

    for shade, path in enumerate(("more/5.png", "folder.png/6.png", "a/b/c/0.png", "a/b/d/0.png"), 201):
        draw(root / "train" / "ant" / path, shade)
    shutil.rmtree(root / "train" / "bee")
    draw(root / "train" / "bee" / "only" / "deeper.png", 210)
    for _ in range(2):  # decoded, then from a cache, if there is one
        dataset = ImageTree(root)
        theirs = ImageFolder(root / "train")
        expected = {Path(path).relative_to(root / "train").as_posix(): target for path, target in theirs.samples}
        assert dict(zip(dataset.paths, dataset.targets.tolist(), strict=True)) == expected
        shades = dict(zip(dataset.paths, shade_of(dataset), strict=True))
        assert shades["ant/a/b/c/0.png"] == 203
        assert shades["ant/a/b/d/0.png"] == 204
        assert shades["bee/only/deeper.png"] == 210
    draw(root / "train" / "ant" / "a" / "b" / "c" / "0.png", 220)
    assert 220 in shade_of(ImageTree(root))


@clause("05.tree.sub_folders")
@pytest.mark.timeout(60)
def test_cyclic_links_terminate_and_no_folder_is_read_twice(root: Path) -> None:
    folders = [root / "train" / "ant" / f"{i}" for i in range(12)]
    for i, folder in enumerate(folders):
        draw(folder / "0.png", 100 + i)
    for folder in folders:  # 12! ways
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
        (folder / "up").symlink_to(root / "train")
    dataset = ReferenceTree(root)
    shades = [shade for shade, target in zip(shade_of(dataset), dataset.targets, strict=True) if target == 0]
    assert sorted(set(shades)) == sorted({*(100 + i for i in range(12)), *range(10, 130, 10)})
    assert len(shades) == 12 + 12  # its own 4 and those of the two other classes, to which "up" leads


@clause("05.tree.sub_folders")
@pytest.mark.slow
def test_a_tree_deeper_than_pythons_recursion_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 1200
    monkeypatch.chdir(root / "train" / "ant")
    for _ in range(depth):  # the whole path is close to the system's limit of 4096 bytes
        os.mkdir("d")
        os.chdir("d")
    draw(Path("0.png"), 250)
    dataset = ReferenceTree(root)
    os.remove("0.png")
    for _ in range(depth):  # pytest's own removal is recursive
        os.chdir("..")
        os.rmdir("d")
    assert dataset.paths[shade_of(dataset).index(250)] == "ant/" + "d/" * depth + "0.png"


@clause("05.tree.regular")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("link", [False, True], ids=["itself", "a link to it"])
@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a sparse file"])
@pytest.mark.slow
def test_an_irregular_or_oversized_file_is_named_and_can_be_skipped(
    kind: str, link: bool, root: Path, tmp_path: Path, later: None, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ReferenceTree(root)
    path = target = root / "train" / "ant" / "x.png"
    if link:
        target = tmp_path / "target"
        path.symlink_to(target)
    if kind == "a device":
        if not link:
            path.symlink_to("/dev/zero")  # only root can create devices
        else:
            target.symlink_to("/dev/zero")
    elif kind == "a socket":
        monkeypatch.chdir(target.parent)  # an address has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(target.name)  # the file stays
    elif kind == "a FIFO":
        os.mkfifo(target)
    else:
        with open(target, "wb") as file:
            file.write((root / "train" / "ant" / "0.png").read_bytes())
            file.truncate(5 * 2**30)
    said = "it has 5,368,709,120 bytes, at most 1,073,741,824 are allowed"
    if kind != "a sparse file":
        said = f"it is {kind}, not a regular file"
    with pytest.raises(
        InputError, match=re.escape(f"ant/x.png: not a readable image ({said}); broken images: 1 of 13")
    ):
        ReferenceTree(root)
    for _ in range(2):
        dataset = ReferenceTree(root, skip_broken=True)
        assert dataset.skipped == ["ant/x.png"]
        assert sorted(dataset.paths) == sorted(whole.paths)
    assert reads.count("decode") == 2, "what was refused is remembered until it changes"


@clause("05.tree.names")
@pytest.mark.parametrize("name", ["two words.png", "grün 图.png", "line\nend.png", "UPPER.PNG", "%s{}'\".png"])
def test_unusual_file_names_are_accepted(ImageTree: Make, name: str, root: Path) -> None:
    draw(root / "train" / "ant" / name, 7)
    for _ in range(2):
        dataset = ImageTree(root)
        assert shade_of(dataset)[dataset.paths.index(f"ant/{name}")] == 7


@clause("05.tree.names")
def test_file_names_that_are_not_unicode_are_accepted(ImageTree: Make, root: Path) -> None:
    draw(root / "train" / "ant" / os.fsdecode(b"\xff\xfe.png"), 7)
    assert 7 in shade_of(ImageTree(root))
    assert 7 in shade_of(ImageTree(root))


@clause("05.tree.links")
def test_linked_classes_and_images_are_followed(ImageTree: Make, root: Path, tmp_path: Path, later: None) -> None:
    draw(tmp_path / "elsewhere" / "0.png", 7)
    (root / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "ant" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert shade_of(ImageTree(root)).count(7) == 2
    draw(tmp_path / "elsewhere" / "0.png", 8)
    assert shade_of(ImageTree(root)).count(8) == 2


@clause("05.tree.classes")
def test_test_split_may_lack_a_class_and_keeps_class_numbers(ImageTree: Make, root: Path) -> None:
    shutil.rmtree(root / "test" / "ant")
    dataset = ImageTree(root, train=False)
    assert dataset.classes == CLASSES
    assert sorted(dataset.targets.tolist()) == [1, 1, 2, 2]


# ---------------------------------------------------------------------------------------------------------- bad input


def spoil_root(root: Path) -> None:
    shutil.rmtree(root)


def spoil_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def spoil_test(root: Path) -> None:
    shutil.rmtree(root / "test")


def no_classes(root: Path) -> None:
    spoil_test(root)
    (root / "test").mkdir()


def empty_class(root: Path) -> None:
    shutil.rmtree(root / "test" / "bee")
    (root / "test" / "bee").mkdir()
    (root / "test" / "bee" / "notes.txt").write_text("bee")


def unknown_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "bee")


@clause("05.tree.rejects")
@pytest.mark.parametrize(
    ("spoil", "folder"),
    [
        (spoil_root, "tree"),
        (spoil_train, "train"),
        (spoil_test, "test"),
        (no_classes, "test"),
        (empty_class, "bee"),
        (unknown_class, "bee"),
    ],
)
def test_a_wrong_layout_is_rejected(ImageTree: Make, spoil: Callable[[Path], None], folder: str, root: Path) -> None:
    spoil(root)
    with pytest.raises((ValueError, OSError), match=folder):
        ImageTree(root, train=False)


@clause("05.tree.rejects")
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (spoil_root, r"tree: there is no such folder; a tree of images is laid out as train/<class>/… and test/"),
        (spoil_train, r"tree/train: there is no such folder; .* train/<class>/…"),
        (spoil_test, r"tree/test: there is no such folder; .* test/<class>/…"),
        (no_classes, r"tree/test: there are no class folders in it; .* laid out as"),
        (empty_class, r"tree/test/bee: the class folder holds no images; add some or remove it"),
        (unknown_class, r"tree/test/bee: .*tree/train has no such class; add it there or remove it here"),
    ],
)
def test_a_wrong_layout_is_named_with_the_remedy(spoil: Callable[[Path], None], text: str, root: Path) -> None:
    ReferenceTree(root, train=False)  # a cache of better times does not hide it
    spoil(root)
    with pytest.raises(InputError, match=text) as caught:
        ReferenceTree(root, train=False)
    assert "\n" not in str(caught.value)


@clause("05.tree.rejects")
def test_two_classes_that_are_printed_alike_are_rejected(root: Path) -> None:
    for name in ("x\x01", "x\\x01"):  # the first is printed with an escape
        draw(root / "train" / name / "0.png", 10)
    with pytest.raises(InputError, match=r"train: two class folders are both printed as x\\x01; rename one$"):
        ReferenceTree(root)


@clause("05.tree.rejects")
@pytest.mark.parametrize("size", [(0, 3), (3,), (3, 3, 3), (2.0, 2), (-1, 1), ("a", "b")], ids=repr)
def test_an_impossible_size_is_named(ImageTree: Make, size: Any, root: Path) -> None:
    with rejects(naming=r"size.*height.*width"):
        ImageTree(root, size=size)


def break_two(root: Path) -> None:
    whole = (root / "train" / "bee" / "1.png").read_bytes()
    (root / "train" / "bee" / "1.png").write_bytes(whole[:-30])
    (root / "train" / "cat" / "3.png").write_text("meow")


@clause("05.tree.broken")
@pytest.mark.parametrize("content", ["cut off", "no image", "empty"])
def test_a_broken_image_is_named(ImageTree: Make, content: str, root: Path) -> None:
    path = root / "train" / "bee" / "1.png"
    path.write_bytes({"cut off": path.read_bytes()[:-30], "no image": b"meow", "empty": b""}[content])
    for _ in range(2):  # decoded, then from a cache, if there is one
        with pytest.raises((ValueError, OSError), match=r"bee.1\.png"):
            ImageTree(root)


@clause("05.tree.broken")
def test_the_first_broken_image_is_named_and_all_are_counted(root: Path, reads: list[str]) -> None:
    break_two(root)
    text = r"tree/train/bee/1\.png: not a readable image \(.+\); broken images: 2 of 12: .* --skip-broken"
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(InputError, match=text) as caught:
            ReferenceTree(root)
        assert "\n" not in str(caught.value)
    assert reads.count("decode") == 1


@clause("05.tree.broken")
@pytest.mark.parametrize("first_without", [False, True], ids=["at once", "after the error"])
def test_broken_images_can_be_skipped_and_are_listed(ImageTree: Make, first_without: bool, root: Path) -> None:
    whole = ImageTree(root)
    break_two(root)
    if first_without:
        with pytest.raises((ValueError, OSError)):
            ImageTree(root)
    for _ in range(2):
        dataset = ImageTree(root, skip_broken=True)
        assert dataset.skipped == ["bee/1.png", "cat/3.png"]
        keep = [i for i, path in enumerate(whole.paths) if path not in dataset.skipped]
        assert torch.equal(dataset.images, whole.images[keep])
        assert torch.equal(dataset.targets, whole.targets[keep])
        assert dataset.paths == [whole.paths[i] for i in keep]
    assert whole.skipped == []


@clause("05.tree.broken")
def test_a_class_of_broken_images_only_is_an_error_even_when_skipping(ImageTree: Make, root: Path) -> None:
    for path in (root / "train" / "bee").iterdir():
        path.write_text("buzz")
    with pytest.raises((ValueError, OSError), match="class bee"):
        ImageTree(root, skip_broken=True)
    for path in (root / "train").rglob("*.png"):
        path.write_text("buzz")
    for _ in range(2):  # decoded, then from a cache, if there is one
        with pytest.raises((ValueError, OSError), match="class ant"):
            ImageTree(root, skip_broken=True)


@clause("05.tree.fixed")
def test_a_repaired_image_is_included_again(ImageTree: Make, root: Path, later: None) -> None:
    whole = ImageTree(root)
    good = (root / "train" / "ant" / "0.png").read_bytes()
    (root / "train" / "ant" / "0.png").write_bytes(b"")
    assert len(ImageTree(root, skip_broken=True)) == 11
    (root / "train" / "ant" / "0.png").write_bytes(good)
    assert same(ImageTree(root), whole)


@clause("05.tree.fixed")
def test_unreadable_files_are_retried_in_the_next_run(root: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_tree.read_regular

    def denied(path: Path, largest: int) -> bytes:
        if path.name == "0.png" and path.parent.name == "ant":
            raise PermissionError(13, "Permission denied")
        return real(path, largest)

    with monkeypatch.context() as patch:
        patch.setattr(image_tree, "read_regular", denied)
        with pytest.raises(
            InputError, match=r"ant/0\.png: not a readable image \(Permission denied\); broken images: 1 of 12"
        ):
            ReferenceTree(root)
    assert len(ReferenceTree(root)) == 12


@clause("05.tree.fixed")
def test_an_out_of_memory_error_is_not_cached_as_a_broken_image(
    root: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("PIL.PngImagePlugin.PngImageFile.load_end", fail)
        with pytest.raises(InputError, match=r"not a readable image \(MemoryError\); broken images: 12 of 12"):
            ReferenceTree(root)
    assert len(ReferenceTree(root)) == 12


@clause("05.tree.broken")
def test_a_dangling_link_is_named(root: Path) -> None:
    (root / "train" / "ant" / "9.png").symlink_to(root / "nowhere.png")
    with pytest.raises(
        InputError, match=r"ant/9\.png: not a readable image \(No such file or directory\); broken images: 1 of 13"
    ):
        ReferenceTree(root)
    draw(root / "nowhere.png", 7)
    assert 7 in shade_of(ReferenceTree(root))


# ---------------------------------------------------------------------------------------------------- real images


@pytest.mark.slow
@clause("05.tree.classes")
@pytest.mark.skipif("OCEAN_DATA" not in os.environ, reason="OCEAN_DATA names no tree of real images")
def test_ten_thousand_real_images(ImageTree: Make) -> None:
    root = Path(os.environ["OCEAN_DATA"])
    dataset = ImageTree(root, train=False)
    assert len(dataset) == 10_000
    assert dataset.targets.bincount().tolist() == [1000] * 10
    assert dataset.classes == tuple(sorted(path.name for path in (root / "train").iterdir()))
    for i in range(0, 10_000, 97):
        with Image.open(root / "test" / dataset.paths[i]) as stored:
            assert np.array_equal(dataset.images[i].permute(1, 2, 0), np.asarray(stored.convert("RGB")))
    assert same(ImageTree(root, train=False), dataset)
    # in the mixed order every ten images are one of each class
    assert (dataset.targets.reshape(-1, 10).sort().values == torch.arange(10)).all()
