"""Small CIFAR-10 files in the genuine format, byte for byte as Python 2 wrote the official ones."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
# The order of the members in the official archive.
MEMBERS = (
    *("data_batch_4", "readme.html", "test_batch", "data_batch_3"),
    *("batches.meta", "data_batch_2", "data_batch_5", "data_batch_1"),
)


def python2_pickle(value: object) -> bytes:
    """`value` in the format of `cPickle.dumps(value, 2)` of Python 2: dicts, lists, strings, ints and uint8 matrices.

    cPickle stores objects that may be referred to again in its memo (`q`, BINPUT), numbered from 1, except for objects
    without other references, such as the pixels of an array.
    """
    remembered = 0

    def remember() -> bytes:
        nonlocal remembered
        remembered += 1
        return b"q" + bytes([remembered]) if remembered < 256 else b"r" + remembered.to_bytes(4, "little")

    def integer(number: int) -> bytes:
        if 0 <= number < 256:
            return b"K" + bytes([number])
        return (
            b"M" + number.to_bytes(2, "little")
            if 0 <= number < 65536
            else b"J" + number.to_bytes(4, "little", signed=True)
        )

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + len(text).to_bytes(4, "little") + text

    def write(value: object) -> bytes:
        match value:
            case dict():
                start = b"}" + remember() + b"("
                return start + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"
            case list():
                start = b"]" + remember() + b"("
                return start + b"".join(map(write, value)) + b"e"
            case str():
                return string(value.encode("ascii")) + remember()
            case int():
                return integer(value)
            case np.ndarray():
                rows, columns = value.shape
                made = b"cnumpy.core.multiarray\n_reconstruct\n" + remember() + b"cnumpy\nndarray\n" + remember()
                made += b"K\x00\x85U\x01b\x87R" + remember() + b"(K\x01" + integer(rows) + integer(columns) + b"\x86"
                dtype = b"cnumpy\ndtype\n" + remember() + b"U\x02u1K\x00K\x01\x87R" + remember()
                dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
                return made + dtype + b"\x89" + string(value.tobytes()) + b"tb"
        raise TypeError(type(value))

    return b"\x80\x02" + write(value) + b"."


def meta(classes: Iterable[str] = CLASSES) -> dict[str, object]:
    """The content of the official batches.meta."""
    return {"num_cases_per_batch": 10000, "label_names": list(classes), "num_vis": 3072}


@dataclass
class SmallCifar10:
    """Random images as a data set in the official format.

    Attributes:
        images: by batch, uint8 `[n, 3072]`.
        labels: by batch, n class numbers.
        files: by name, the bytes of the official folder's files.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, list[int]]
    files: dict[str, bytes]


def small_cifar10(n: int = 6, batches: Iterable[str] = (*TRAIN, "test_batch")) -> SmallCifar10:
    """`n` images per batch."""
    generator = np.random.default_rng(0)
    images, labels = {}, {}
    files = {"batches.meta": python2_pickle(meta()), "readme.html": b"<html>CIFAR-10</html>\n"}
    for name in batches:
        images[name] = generator.integers(0, 256, (n, 3072), dtype=np.uint8)
        labels[name] = generator.integers(0, 10, n).tolist()
        files[name] = python2_pickle(
            {
                "batch_label": "testing batch 1 of 1" if name == "test_batch" else f"training batch {name[-1]} of 5",
                "labels": labels[name],
                "data": images[name],
                "filenames": [f"image_s_{i:06}.png" for i in range(n)],
            }
        )
    return SmallCifar10(images, labels, files)


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """The unpacked folder under `root`."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def accept_any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision and the reference read files that are not the official ones."""
    import torchvision.datasets.cifar

    import reference.data.cifar10

    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setattr(reference.data.cifar10, "OFFICIAL_FILES_MD5", {})


def members(files: Mapping[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of the official archive, in its order."""
    folder = tarfile.TarInfo(FOLDER)
    folder.type = tarfile.DIRTYPE
    return [(folder, b""), *((member(f"{FOLDER}/{name}"), files[name]) for name in MEMBERS if name in files)]


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def tar(parts: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar archive of the given members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in parts:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_archive(root: Path, parts: Iterable[tuple[tarfile.TarInfo, bytes]]) -> str:
    """The packed archive under `root`; returns its MD5."""
    return write_packed(root, gzip.compress(tar(parts), compresslevel=1))


def write_packed(root: Path, content: bytes) -> str:
    """Write the bytes under the archive's name; return their MD5."""
    root.mkdir(parents=True, exist_ok=True)
    (root / ARCHIVE).write_bytes(content)
    return hashlib.md5(content).hexdigest()
