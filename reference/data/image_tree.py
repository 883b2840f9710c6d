"""Chapter 05: a user's own images, sorted into one folder per class, as a data set that is decoded only once.

Decoding thousands of images takes far longer than reading their pixels back from a cache. An entry of the cache is
named by everything that determines the pixels: every file's name and bytes, the size, and the decoders' versions.
"""

import hashlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image, features
from platformdirs import user_cache_path
from tqdm import tqdm

from reference.data.images import LARGEST_FILE, decode_image, not_readable, printable
from reference.data.labeled_folder import list_images
from reference.data.resident import Resident
from reference.errors import InputError
from reference.files import atomic_write, open_regular, read_regular, remove_temporaries
from reference.messages import translated

CACHE_FORMAT = 4  # raised when the decoding or the layout of an entry changes
ENTRIES_KEPT = 6  # the most recently used ones in each cache folder: train and test of a tree in three sizes
HEADER = 2**16  # bytes of an entry's header, and the same again for each broken image
LARGE_FILE = 2**26  # bytes; from this size on, one file at a time is in memory
SMALL_FILE = 2**14  # bytes; up to this size, decoding an image takes about as long as opening it in Python
DECODERS = ("libjpeg_turbo", "jpg", "jpg_2000", "zlib", "libtiff", "webp", "avif", "littlecms2")

Decoded = tuple[UInt8[np.ndarray, "n 3 height width"], dict[str, str]]
"""The pixels of the readable images in order, and the fault of each unreadable image by its path."""


class ImageTree(Resident):
    """The images in `root/train/<class>/` or `root/test/<class>/`: in RGB, of one size, decoded once and cached.

    The classes are the folders in `train/`, sorted by name; `test/` may lack some of them. Characters of their names
    that cannot be printed, and bytes that are not UTF-8, are escaped (`reference.text.printable`). Images in
    sub-folders of a class folder, at any depth, belong to the class, as in torchvision's `ImageFolder`; links to
    folders are followed, but no folder is read twice for one class. Hidden files and folders, and files without an
    image extension, are left out.

    The items have one fixed mixed order: a training that does not shuffle would learn nothing from images sorted by
    class. Each class is sorted by the BLAKE2b digests of its `paths` and spread evenly over the data set, so that every
    part of the data, also a small last batch, contains the classes in their proportions. The order depends on these
    names alone, not on the system or on the location of the tree.

    The decoded images are kept in `root/.ocean-cache`, or in the user's cache folder if that folder cannot be written.
    Any file that was changed, added, removed or renamed since then is detected.

    Attributes:
        paths: `<class>/<name>` of each item, or `<class>/<sub-folder>/<name>`.
        skipped: the paths of the broken images that were left out, sorted.

    Args:
        root: the folder that holds `train/` and `test/`.
        train: take the images in `train/`, otherwise those in `test/`.
        transform: called with the PIL image when an item is taken; `None` leaves it a PIL image.
        target_transform: called with the class number when an item is taken.
        size: (height, width) that all images are resized to, as `open_image` does it.
        skip_broken: leave broken images out instead of raising.
        progress: show a bar on standard error while decoding, if that is a terminal.

    Raises:
        InputError: a folder is missing, a class folder is empty or unknown, or an image is broken.
        ValueError: `size` is not two positive integers.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        *,
        size: tuple[int, int] = (32, 32),
        skip_broken: bool = False,
        progress: bool = True,
    ) -> None:
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"size must be (height, width), two positive integers, got {size!r}")
        self.transform, self.target_transform = transform, target_transform
        tree = scan_tree(Path(root), "train" if train else "test")
        pixels, broken = decoded_pixels(tree, size, progress)
        self.classes = tuple(map(printable, tree.classes))
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise InputError(f"{tree.folder}: two class folders are both printed as {twice}; rename one")
        self.paths = [path for path in tree.paths if path not in broken]
        self.skipped = sorted(broken)
        class_names = [path.partition("/")[0] for path in self.paths]
        for path in self.skipped:
            name = path.partition("/")[0]
            where = f"{printable(tree.folder)}{os.sep}{broken[path]}"
            if not skip_broken:
                count = f"broken images: {len(broken):,} of {len(tree.paths):,}"
                raise InputError(f"{where}; {count}: fix or remove them, or leave them out with --skip-broken")
            if name not in class_names:
                raise InputError(f"{where}, and so is every image of class {printable(name)}: fix or remove it")
        numbers = {name: number for number, name in enumerate(tree.classes)}
        self.targets = torch.tensor([numbers[name] for name in class_names])
        self.images = torch.from_numpy(pixels)


class Tree(NamedTuple):
    """The folders and file names of the train or test part of a tree, before any file is read."""

    folder: Path  # root/train or root/test
    classes: tuple[str, ...]
    paths: list[str]  # <class>/<name>, or <class>/<sub-folder>/<name>, in the mixed order
    stats: list[tuple[int, ...]]  # of each image: its size and other fields that show whether the file has changed
    settled: bool  # True if no file changed so recently that a second change could leave its stats the same


def scan_tree(root: Path, split: str) -> Tree:
    """The classes and images in `root/<split>`, "train" or "test"; raises InputError as `ImageTree` says."""
    began, layout = time.time_ns(), "a tree of images is laid out as train/<class>/… and test/<class>/…"
    for folder in (root, root / "train", root / split):
        if not folder.is_dir():
            raise InputError(f"{printable(folder)}: there is no such folder; {layout}")
    classes, present = class_folders(root / "train"), class_folders(root / split)
    known = set(classes)
    if not present:
        raise InputError(f"{printable(root / split)}: there are no class folders in it; {layout}")
    found: list[tuple[float, bytes, str, tuple[int, ...]]] = []
    for name in present:
        folder = printable(root / split / name)
        if name not in known:
            raise InputError(f"{folder}: {printable(root / 'train')} has no such class; add it there or remove it here")
        images = list(images_under(root / split / name, name))
        if not images:
            raise InputError(f"{folder}: the class folder holds no images; add some or remove it")
        paths = [path for path, _ in images]
        digests = [hashlib.blake2b(os.fsencode(path)).digest() for path in paths]
        # One half of the digest sorts each class, the other half sorts the images of all classes with the same rank.
        stats = (_stat(entry) for _, entry in images)
        mixed = sorted(zip(digests, paths, stats, strict=True))  # no two paths are the same
        found += [((2 * rank + 1) / len(mixed), key[32:], path, stat) for rank, (key, path, stat) in enumerate(mixed)]
    found.sort()
    stats = [stat for *_, stat in found]
    # As in git: two changes within one tick of the file system's clock leave the same time, so recent times are not
    # reliable. Windows keeps no time of the last change at all.
    settled = os.name != "nt" and max(stat[-1] for stat in stats) < began - 2_000_000_000
    return Tree(root / split, tuple(classes), [path for _, _, path, _ in found], stats, settled)


def images_under(folder: Path, path: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Each image in `folder` and its sub-folders, with its path relative to `path`, the name of `folder`.

    Every folder is read once, even if several links point to it, because links may form cycles.
    """
    waiting, seen = [(folder, path)], set()
    while waiting:
        folder, path = waiting.pop()
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
        if identity in seen:
            continue
        seen.add(identity)
        yield from ((f"{path}/{entry.name}", entry) for entry in list_images(folder))
        waiting += [(folder / name, f"{path}/{name}") for name in reversed(class_folders(folder))]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _stat(entry: os.DirEntry[str]) -> tuple[int, ...]:
    dangling = entry.is_symlink() and not os.path.exists(entry.path)
    stat = entry.stat(follow_symlinks=not dangling)
    return stat.st_size, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns  # ctime cannot be set by a user


def decoded_pixels(tree: Tree, size: tuple[int, int], progress: bool) -> Decoded:
    """The images of `tree`: from the cache if it has them, otherwise decoded and stored there.

    `<key>.pixels` is an entry, named by the digest of all contents. `<key>.seen` is the digest of the files' stats when
    the entry was last used: while the stats are the same, 60,000 files need not be read to identify the entry.
    """
    recipe = json.dumps([CACHE_FORMAT, tree.folder.name, *size, PIL.__version__, *map(features.version, DECODERS)])
    stats = digest(recipe, *tree.paths, *map(str, tree.stats))
    folders = [tree.folder.parent / ".ocean-cache", user_cache_path("ocean-spec") / "image-trees"]
    if entry := _recall(folders, stats, tree, size):
        return entry
    with _build_lock(folders):
        if entry := _recall(folders, stats, tree, size):  # another run has just written it
            return entry
        contents, fresh = [""], None
        if any(True for folder in folders for _ in folder.glob("*.pixels")):
            contents = read_tree(tree, size, progress, decode=False)[1]
            entry = _read_entry(folders, digest(recipe, *tree.paths, *contents), tree, size)
        if entry is None:
            fresh, contents = read_tree(tree, size, progress, decode=True)
            entry = fresh
        if all(contents):  # a file that cannot be read now may be readable next time
            _keep(folders, digest(recipe, *tree.paths, *contents), fresh, stats if tree.settled else None)
        return entry


def read_tree(tree: Tree, size: tuple[int, int], progress: bool, decode: bool) -> tuple[Decoded, list[str]]:
    """Read all files, and decode their pixels if `decode` is true; also return the digest of each file, "" if it was
    not read.

    Threads decode the large images, outside Python's lock, so that all cores are busy. A small image is mostly Python
    code; threads that pass the lock to each other take twice as long as a single one. The digests are of the very bytes
    that were decoded, so a file that changes meanwhile causes no error.
    """
    count = len(tree.paths)
    pixels = np.empty((count if decode else 0, 3, *size), np.uint8)
    broken: dict[str, str] = {}
    contents = [""] * count
    huge_turn = threading.RLock()  # memory is large enough for one huge image, but not for one per core

    def read(place: int) -> None:
        path, refused = tree.paths[place], ""
        with huge_turn if tree.stats[place][0] > LARGE_FILE else nullcontext():
            try:
                try:
                    content = read_regular(tree.folder / path, LARGEST_FILE)
                # too large or not a regular file, and this cannot change without a change of its stats
                except ValueError as error:
                    refused = str(error)
                    raise
                contents[place] = digest(content)
                if decode:
                    image = decode_image(io.BytesIO(content), path, size, huge_turn)
                    pixels[place] = np.asarray(image).transpose(2, 0, 1)
            except InputError as error:
                broken[path] = str(error)
                if isinstance(error.__cause__, MemoryError):
                    contents[place] = ""  # the file may be intact
            except (OSError, ValueError, MemoryError) as error:
                broken[path] = str(not_readable(path, error))
                contents[place] = refused and digest(refused)

    half, off = tree.folder.name, None if progress else True
    bar = translated(f"decoding {half}" if decode else f"comparing {half}")
    small: list[int] = []
    large: list[int] = []
    for place in sorted(range(count), key=tree.paths.__getitem__):  # in the order on the disk
        (small if tree.stats[place][0] <= SMALL_FILE else large).append(place)
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        done = pool.imap_unordered(read, large, chunksize=1 + min(len(large) // 500, 15))
        for _ in tqdm(chain(map(read, small), done), bar, count, unit=translated(" images"), disable=off):
            pass
    if decode and broken:
        pixels = pixels[[path not in broken for path in tree.paths]]
    return (pixels, broken), contents


def digest(*parts: str | bytes | memoryview) -> str:
    """The BLAKE2b digest of `parts`; strings are file names and other text without NUL characters."""
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        state.update(os.fsencode(part) + b"\0" if isinstance(part, str) else part)
    return state.hexdigest()


def checksum_of(header: bytes, pixels: memoryview) -> bytes:
    """The checksum of an entry: the digest of its header and of the digests of its parts, computed on all cores."""
    parts = [pixels[start : start + 2**22] for start in range(0, len(pixels), 2**22)]
    with ThreadPool(os.cpu_count() or 1) as pool:
        return digest(header, *pool.map(digest, parts)).encode()


@contextmanager
def _build_lock(folders: Sequence[Path]) -> Iterator[None]:
    """Lock the decoding, so that other runs wait for its result; without a writable folder there is no lock."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
            if not lock.is_locked:
                print("waiting for another run that is decoding these images", file=sys.stderr)
                lock.acquire()
        except (OSError, NotImplementedError):  # read-only, or a file system without locks
            continue
        try:
            yield
        finally:
            lock.release()
        return
    yield


def _recall(folders: Sequence[Path], stats: str, tree: Tree, size: tuple[int, int]) -> Decoded | None:
    """The entry that was used last for files with these stats."""
    for seen in [seen for folder in folders for seen in folder.glob("*.seen")]:
        with suppress(OSError, ValueError):  # ValueError: longer than a digest, or not a regular file
            if read_regular(seen, len(stats)) == stats.encode():
                entry = _read_entry(folders, seen.stem, tree, size)
                if entry:
                    return entry
    return None


def _read_entry(folders: Sequence[Path], key: str, tree: Tree, size: tuple[int, int]) -> Decoded | None:
    """The entry with this key, if it exists, is undamaged and belongs to `tree` in `size`.

    It contains JSON and plain numbers, and nothing in it is executed. Another program may have written it, so its file
    type, size, header and shape are checked before use.
    """
    count, image = len(tree.paths), 3 * size[0] * size[1]
    for path in (folder / f"{key}.pixels" for folder in folders):
        with suppress(OSError, ValueError), open_regular(path, HEADER * (1 + count) + count * image) as file:
            checksum, header = file.readline(HEADER), file.readline(HEADER * (1 + count))
            pixels = np.fromfile(file, np.uint8, count * image + 1)
            if checksum == checksum_of(header, pixels.data) + b"\n":
                shape, broken = _checked_header(header, set(tree.paths), size)
                found = pixels.reshape(shape)
                for used in (path, path.with_suffix(".seen")):
                    with suppress(OSError):
                        os.utime(used)
                return found, broken
    return None


def _checked_header(header: bytes, paths: set[str], size: tuple[int, int]) -> tuple[list[int], dict[str, str]]:
    """The shape of the pixels and the broken images in an entry's header; ValueError if these are impossible."""
    try:
        content = json.loads(header)
    except RecursionError as error:
        raise ValueError("brackets inside each other") from error
    match content:
        case [[*shape], dict(broken)] if set(broken) <= paths and all(isinstance(v, str) for v in broken.values()):
            if shape == [len(paths) - len(broken), 3, *size]:
                return shape, broken
    raise ValueError("it does not describe this tree")


def _keep(folders: Sequence[Path], key: str, fresh: Decoded | None, stats: str | None) -> None:
    """Write an entry, and the stats that it belongs to, into the first writable folder, and delete older entries."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                remove_temporaries(folder)  # left by a run that was killed
                header, pixels = json.dumps([fresh[0].shape, fresh[1]]).encode() + b"\n", fresh[0].reshape(-1).data
                with atomic_write(folder / f"{key}.pixels") as file:
                    for part in (checksum_of(header, pixels) + b"\n", header, pixels):
                        file.write(part)
            if stats:
                with atomic_write(folder / f"{key}.seen") as file:
                    file.write(stats.encode())
            for kind in ("*.pixels", "*.seen"):
                for unused in sorted(folder.glob(kind), key=os.path.getmtime)[:-ENTRIES_KEPT]:
                    unused.unlink(missing_ok=True)
            return
        except OSError:  # read-only or full
            continue
    if fresh:
        print(f"{' and '.join(map(printable, folders))} cannot be written: decoding again next time", file=sys.stderr)
