"""Chapter 05: CIFAR-10 from its official files, and the download of them."""

import contextlib
import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from reference.data import cifar10
from reference.data import download as downloading
from reference.data.cifar10 import CIFAR10, OFFICIAL_FILES_MD5, OFFICIAL_MD5, OFFICIAL_URL, cifar10_pair
from reference.data.download import download
from reference.errors import InputError
from spec.support import cifar_archives
from spec.support.cifar_archives import (
    ARCHIVE,
    CLASSES,
    FOLDER,
    TRAIN,
    SmallCifar10,
    member,
    members,
    meta,
    python2_pickle,
    small_cifar10,
    write_archive,
    write_folder,
    write_packed,
)
from spec.support.clauses import clause


@pytest.fixture(scope="module")
def small() -> SmallCifar10:
    return small_cifar10()


def images_of(small: SmallCifar10, *names: str) -> torch.Tensor:
    """The images of those batches by the format's own words: 1024 red, 1024 green, 1024 blue bytes, row by row."""
    rows = [row for name in names for row in small.images[name]]
    return torch.tensor([[[[int(row[1024 * c + 32 * y + x]) for x in range(32)] for y in range(32)] for c in range(3)]
                         for row in rows], dtype=torch.uint8)  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The format


@clause("05.cifar10.format")
def test_the_maker_of_small_files_writes_the_official_names_file_byte_for_byte() -> None:
    # 158 bytes, and the MD5 that torchvision/datasets/cifar.py gives for batches.meta.
    content = python2_pickle(meta())
    assert len(content) == 158
    assert hashlib.md5(content).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888" == OFFICIAL_FILES_MD5["batches.meta"]


@clause("05.cifar10.checksum")
def test_the_official_sums_are_those_that_torchvision_knows() -> None:
    official = torchvision.datasets.CIFAR10
    batches = dict(official.train_list + official.test_list)
    assert {official.meta["filename"]: official.meta["md5"], **batches} == OFFICIAL_FILES_MD5
    assert (official.tgz_md5, official.url) == (OFFICIAL_MD5, OFFICIAL_URL)
    assert (official.filename, official.base_folder) == (ARCHIVE, FOLDER)


@clause("05.cifar10.format")
@pytest.mark.parametrize("where", ["unpacked folder", "packed archive", "the folder itself", "the archive itself"])
def test_images_labels_and_names_come_in_the_order_of_the_official_files(
    where: str, small: SmallCifar10, tmp_path: Path
) -> None:
    md5 = None
    root = tmp_path
    if "folder" in where:
        folder = write_folder(tmp_path, small.files)
        root = folder if where == "the folder itself" else root
    else:
        md5 = write_archive(tmp_path, members(small.files))
        root = tmp_path / ARCHIVE if where == "the archive itself" else root
    before = snapshot(tmp_path)
    for train, names in ((True, TRAIN), (False, ("test_batch",))):
        dataset = CIFAR10(root, train=train, archive_md5=md5)
        assert dataset.images.dtype == torch.uint8
        assert dataset.images.shape == (6 * len(names), 3, 32, 32)
        assert torch.equal(dataset.images, images_of(small, *names))
        assert dataset.targets.dtype == torch.int64
        assert dataset.targets.tolist() == [label for name in names for label in small.labels[name]]
        assert dataset.classes == CLASSES
        assert len(dataset) == 6 * len(names)
    assert snapshot(tmp_path) == before, "reading writes nothing"


@clause("05.cifar10.pair")
def test_a_pair_is_the_two_sets_from_one_pass(
    small: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5 = write_archive(tmp_path, members(small.files))
    alone = CIFAR10(tmp_path, archive_md5=md5), CIFAR10(tmp_path, train=False, archive_md5=md5)
    opened: list[str] = []
    genuine = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **keywords: opened.append("") or genuine(*args, **keywords))
    pair = cifar10_pair(tmp_path, archive_md5=md5)
    assert len(opened) == 1
    for one, other in zip(pair, alone, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.classes == other.classes
        assert one[0][1] == other[0][1]


@clause("05.cifar10.transform")
def test_an_item_is_an_image_and_a_number_through_their_transforms(small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, small.files)
    image, label = CIFAR10(tmp_path, archive_md5=None)[0]
    assert isinstance(image, Image.Image)
    assert image.size == (32, 32)
    assert image.getpixel((1, 0)) == tuple(int(small.images["data_batch_1"][0, 1024 * c + 1]) for c in range(3))
    assert label == small.labels["data_batch_1"][0]
    dataset = CIFAR10(tmp_path, False, lambda image: image.size, lambda label: CLASSES[label], archive_md5=None)
    assert dataset[-1] == ((32, 32), CLASSES[small.labels["test_batch"][-1]])


@clause("05.cifar10.format")
# NumPy 2 warns that Python 2's pickles write align=0 where it wants False, and use the old name numpy.core.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.VisibleDeprecationWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("train", [True, False])
def test_torchvision_reads_the_same_from_the_same_folder(
    train: bool, small: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, small.files)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    theirs = torchvision.datasets.CIFAR10(tmp_path, train=train)
    ours = CIFAR10(tmp_path, train=train, archive_md5=None)
    assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.targets.tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes
    assert [ours[i][1] for i in range(len(ours))] == [theirs[i][1] for i in range(len(theirs))]
    assert all(ours[i][0].tobytes() == theirs[i][0].tobytes() for i in range(len(ours)))


@clause("05.cifar10.format")
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [str, str.encode], ids=["string keys", "bytes keys"])
@pytest.mark.parametrize("memory", ["writable", "read-only"])
def test_batches_that_python_3_wrote_are_read_too(
    protocol: int, keys: Any, memory: str, small: SmallCifar10, tmp_path: Path
) -> None:
    if protocol == 2 and keys is not str:
        keys = str  # Python 3 writes bytes in protocol 2 as calls; genuine protocol 2 comes from Python 2
    images = small.images["test_batch"].copy()
    images.flags.writeable = memory == "writable"
    batch = {keys("data"): images, keys("labels"): small.labels["test_batch"]}
    names = {keys("label_names"): [keys(name) for name in CLASSES]}
    files = {"test_batch": pickle.dumps(batch, protocol), "batches.meta": pickle.dumps(names, protocol)}
    write_folder(tmp_path, files)
    dataset = CIFAR10(tmp_path, train=False, archive_md5=None)
    assert torch.equal(dataset.images, images_of(small, "test_batch"))
    assert dataset.targets.tolist() == small.labels["test_batch"]
    assert dataset.classes == CLASSES


@pytest.mark.slow
@clause("05.cifar10.format")
def test_a_batch_of_the_official_size_is_within_the_limits(tmp_path: Path) -> None:
    large = small_cifar10(n=10_000, batches=("test_batch",))
    size = len(large.files["test_batch"])
    assert 30_720_000 < size < cifar10.FILE_LIMIT
    assert 6 * (size + cifar10.HEADER_LIMIT) < cifar10.ARCHIVE_LIMIT
    write_folder(tmp_path, large.files)
    dataset = CIFAR10(tmp_path, train=False, archive_md5=None)
    assert np.array_equal(dataset.images.numpy().reshape(10_000, 3072), large.images["test_batch"])
    assert dataset.targets.tolist() == large.labels["test_batch"]


# Missing, damaged and hostile files


def refusal(root: Path, **settings: Any) -> str:
    """The one line with which the test set under `root` is refused."""
    settings = {"train": False, "archive_md5": None, "progress": False} | settings
    with pytest.raises(InputError) as caught:
        CIFAR10(root, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def measured_refusal(root: Path) -> tuple[str, int]:
    """`refusal`, and the most memory in bytes that it took."""
    tracemalloc.start()
    try:
        return refusal(root), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@clause("05.cifar10.missing")
def test_missing_data_is_an_error_with_the_folder_the_names_and_the_remedy(tmp_path: Path) -> None:
    assert refusal(tmp_path, archive_md5=OFFICIAL_MD5) == (
        f"no CIFAR-10 in {tmp_path}: neither the folder {FOLDER} nor the archive {ARCHIVE} is there; "
        "put one of them there or use --download"
    )
    assert list(tmp_path.iterdir()) == []


@clause("05.cifar10.checksum")
def test_an_archive_of_another_checksum_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    got = write_packed(tmp_path, b"no archive at all")
    assert refusal(tmp_path, archive_md5=OFFICIAL_MD5) == (
        f"{tmp_path / ARCHIVE}: wrong checksum, MD5 {got} instead of {OFFICIAL_MD5}: delete it and use --download"
    )
    assert "truncated or damaged" in refusal(tmp_path, archive_md5=got)


@clause("05.cifar10.checksum")
def test_an_unpacked_file_of_another_checksum_is_refused_with_the_official_sums(
    small: SmallCifar10, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, small.files)
    got = hashlib.md5(small.files["test_batch"]).hexdigest()
    expected = OFFICIAL_FILES_MD5["test_batch"]
    assert refusal(tmp_path, archive_md5=OFFICIAL_MD5) == (
        f"{folder / 'test_batch'}: wrong checksum, MD5 {got} instead of {expected}: "
        f"unpack {ARCHIVE} again, or delete {folder} and use --download"
    )
    assert len(CIFAR10(tmp_path, archive_md5="0" * 32)) == 30, "another archive's sum says nothing about unpacked files"


@clause("05.cifar10.missing")
def test_a_missing_or_oversized_unpacked_file_is_named(small: SmallCifar10, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, small.files)
    with (folder / "test_batch").open("ab") as file:
        file.truncate((64 << 20) + 1)  # a hole: takes no space
    assert refusal(tmp_path) == f"{folder / 'test_batch'}: larger than 64 MiB, which no file of CIFAR-10 is"
    (folder / "test_batch").unlink()
    assert refusal(tmp_path) == (
        f"{folder / 'test_batch'}: no such file: unpack {ARCHIVE} again, or delete {folder} and use --download"
    )


@clause("05.archive.damage")
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999, -1, -8])
def test_an_archive_that_is_cut_off_anywhere_is_refused(kept: float, small: SmallCifar10, tmp_path: Path) -> None:
    whole = gzip.compress(cifar_archives.tar(members(small.files)), compresslevel=1)
    write_packed(tmp_path, whole[: int(kept)] if kept < 0 else whole[: int(kept * len(whole))])
    text = refusal(tmp_path)
    assert text.startswith(f"{tmp_path / ARCHIVE}: truncated or damaged (")
    assert text.endswith("): delete it and use --download")


@clause("05.archive.damage")
@pytest.mark.parametrize(
    "content",
    [b"", b"plain text", gzip.compress(b""), gzip.compress(b"text that is no tar archive " * 99), b"\x1f\x8b" * 99],
    ids=["empty", "not gzip", "empty gzip", "gzip but not tar", "only gzip's mark"],
)
def test_a_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    write_packed(tmp_path, content)
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE}: truncated or damaged (")


@clause("05.archive.damage")
def test_an_archive_cut_off_before_it_was_packed_lacks_a_member(small: SmallCifar10, tmp_path: Path) -> None:
    content = cifar_archives.tar(members({name: small.files[name] for name in ("data_batch_4", "test_batch")}))
    write_packed(tmp_path, gzip.compress(content))
    assert refusal(tmp_path) == f"{tmp_path / ARCHIVE}: holds no {FOLDER}/batches.meta: delete it and use --download"


@clause("05.archive.damage")
def test_a_flipped_bit_in_the_archive_is_noticed_by_gzips_own_sum(small: SmallCifar10, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(cifar_archives.tar(members(small.files)), compresslevel=0))
    content[len(content) // 2] ^= 1  # stored, not compressed: without the sum this would be a wrong pixel
    write_packed(tmp_path, bytes(content))
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE}: truncated or damaged (CRC check failed")


LINK = "is neither a plain file nor a folder"
OUT = "leads out of the folder"
SUSPICIOUS = {
    "symbolic link": (member(f"{FOLDER}/x", tarfile.SYMTYPE, "/etc/passwd"), LINK),
    "hard link": (member(f"{FOLDER}/x", tarfile.LNKTYPE, "../../x"), LINK),
    "link in the place of a batch": (member(f"{FOLDER}/test_batch", tarfile.SYMTYPE, "data_batch_1"), LINK),
    "character device": (member("null", tarfile.CHRTYPE), LINK),
    "block device": (member("disk", tarfile.BLKTYPE), LINK),
    "pipe": (member("pipe", tarfile.FIFOTYPE), LINK),
    "sparse file": (member("holes", tarfile.GNUTYPE_SPARSE), LINK),
    "absolute path": (member("/tmp/x"), OUT),
    "climbing path": (member("../x"), OUT),
    "path that climbs from inside": (member(f"{FOLDER}/../../x"), OUT),
    "climbing folder": (member("..", tarfile.DIRTYPE), OUT),
}


@clause("05.archive.members")
@pytest.mark.parametrize(("suspicious", "problem"), SUSPICIOUS.values(), ids=SUSPICIOUS)
@pytest.mark.parametrize("place", ["first", "last"])
def test_an_archive_with_a_suspicious_member_is_refused(
    suspicious: tarfile.TarInfo, problem: str, place: str, small: SmallCifar10, tmp_path: Path
) -> None:
    parts = members({name: content for name, content in small.files.items() if name != Path(suspicious.name).name})
    write_archive(tmp_path, [(suspicious, b""), *parts] if place == "first" else [*parts, (suspicious, b"")])
    before = snapshot(tmp_path)
    path = tmp_path / ARCHIVE
    assert refusal(tmp_path) == f"{path}: member {suspicious.name!r} {problem}: delete it and use --download"
    assert snapshot(tmp_path) == before


@clause("05.archive.members")
def test_a_member_that_is_there_twice_is_refused(small: SmallCifar10, tmp_path: Path) -> None:
    again = (member(f"./{FOLDER}/test_batch"), small.files["test_batch"])
    write_archive(tmp_path, [*members(small.files), again])
    assert refusal(tmp_path) == (f"{tmp_path / ARCHIVE}: holds {FOLDER}/test_batch twice: delete it and use --download")


@clause("05.archive.members")
def test_a_folder_in_the_place_of_a_batch_is_no_batch(small: SmallCifar10, tmp_path: Path) -> None:
    parts = members({name: content for name, content in small.files.items() if name != "test_batch"})
    write_archive(tmp_path, [*parts, (member(f"{FOLDER}/test_batch", tarfile.DIRTYPE), b"")])
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE / 'test_batch'}: not a file of CIFAR-10 (")


@clause("05.cifar10.format")
def test_an_archive_packed_again_by_others_is_read(small: SmallCifar10, tmp_path: Path) -> None:
    parts = members(small.files)
    for info, _ in parts:
        info.name = f"./{info.name}"
        info.pax_headers = {"mtime": "1.5", "comment": "an extended header before each member"}
    md5 = write_archive(tmp_path, parts)
    assert torch.equal(CIFAR10(tmp_path, archive_md5=md5).images, images_of(small, *TRAIN))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's 512-byte header alone; its content may be anything else."""
    info = member(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


MIB = 1 << 20
BOMBS: dict[str, tuple[Callable[[], bytes], int, str]] = {  # a piece, the number of its repetitions, and the error
    "a member of 10 GiB": (lambda: header("big", 10 << 30), 1, "member 'big' is larger than 64 MiB"),
    "a member of a negative size": (lambda: header("big", -512), 1, "member 'big' is larger than 64 MiB"),
    "an extended header of 30 MiB": (
        lambda: header("x", 30 * MIB, tarfile.XHDTYPE) + bytes(30 * MIB),
        1,
        "unpacks to more than its members",
    ),
    "a name of 30 MiB": (
        lambda: header("x", 30 * MIB, tarfile.GNUTYPE_LONGNAME) + b"n" * (30 * MIB),
        1,
        "unpacks to more than its members",
    ),
    "extended headers without end": (
        lambda: (header("x", 20, tarfile.XHDTYPE) + b"20 comment=abcdefgh\n".ljust(512, b"\0")) * 50,
        100,
        "unpacks to more than its members",
    ),
    "zeros without end": (lambda: bytes(MIB), 300, "unpacks to more than its members"),
}


@clause("05.archive.damage")
def test_an_extended_header_without_sense_is_damage(tmp_path: Path) -> None:
    record = b"9" * 5000 + b" a=b\n"  # a length of more digits than Python turns into a number
    content = header("x", len(record), tarfile.XHDTYPE) + record.ljust(5120, b"\0") + header("readme.html", 0)
    write_packed(tmp_path, gzip.compress(content))
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE}: truncated or damaged (")


@clause("05.archive.limits")
@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_cannot_take_more_memory_than_its_members_may(bomb: str, tmp_path: Path) -> None:
    piece, count, message = BOMBS[bomb]
    write_packed(tmp_path, gzip.compress(piece(), compresslevel=1) * count)
    text, peak = measured_refusal(tmp_path)
    assert message in text
    assert peak < 16 * MIB, "contents are skipped in small pieces, and headers end at 64 KiB"


@clause("05.archive.limits")
@pytest.mark.parametrize(
    "piece", [header("m", MIB) + bytes(MIB), header("m", 0) * 20], ids=["of 1 MiB each", "empty ones"]
)
def test_an_archive_cannot_have_members_without_end(
    piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "ARCHIVE_LIMIT", 4 * MIB)
    write_packed(tmp_path, gzip.compress(piece) * 4)
    assert refusal(tmp_path) == f"{tmp_path / ARCHIVE}: unpacks to more than 4 MiB: delete it and use --download"


# Pickles


def string(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


class Runs:
    """Pickled, it is the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def programs(victim: str) -> dict[str, bytes]:
    """Pickles that make the file `victim` when Python's own reader opens them."""
    touch = f"open({victim!r}, 'w').close()"
    as_key = b"\x80\x02}" + call("builtins", "exec", string(touch)) + b"K\x01s."
    installed = b"ibuiltins\nexec\n"
    return {
        "os.system": pickle.dumps(Runs(os.system, f"touch {victim}")),
        "builtins.eval": pickle.dumps(Runs(eval, touch)),
        "builtins.exec in protocol 0": pickle.dumps(Runs(exec, touch), 0),
        "builtins.exec of Python 2": b"\x80\x02" + call("__builtin__", "execfile", string(victim)) + b".",
        "a call as a dictionary key": as_key,
        "a call in a batch": pickle.dumps({"data": Runs(exec, touch), "labels": []}),
        "getattr of a permitted module": b"\x80\x02"
        + call("builtins", "getattr", b"cnumpy\nndarray\n", string("__class__"))
        + b".",
        "a dotted name": b"\x80\x04" + string("numpy") + string("ndarray.__class__.__base__") + b"\x93.",
        "numpy's own runner": b"\x80\x02" + call("numpy.testing", "runstring", string(touch), b"}") + b".",
        "INST": b"(" + string(touch) + installed + b".",
        "OBJ": b"(cbuiltins\nexec\n" + string(touch) + b"o.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\n)}\x92.",
        "a persistent id": b"\x80\x02Pexec\n.",
        "a binary persistent id": b"\x80\x02" + string(touch) + b"Q.",
        "an extension code": b"\x80\x02\x82\x01.",
        "an out-of-band buffer": b"\x80\x05\x97.",
    }


PROGRAMS = tuple(programs("FILE"))


@clause("05.batch.no_execution")
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_in_a_pickle_is_executed(program: str, name: str, small: SmallCifar10, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    folder = write_folder(tmp_path, {**small.files, name: programs(str(victim))[program]})
    text = refusal(tmp_path)
    assert text.startswith(f"{folder / name}: not a file of CIFAR-10 (")
    assert text.endswith("); nothing in it was run")
    assert not victim.exists()


@clause("05.batch.no_execution")
@pytest.mark.parametrize("program", ["os.system", "builtins.eval", "builtins.exec in protocol 0", "INST", "OBJ"])
def test_these_programs_do_run_in_pythons_own_reader(program: str, tmp_path: Path) -> None:
    with contextlib.suppress(Exception):
        pickle.loads(programs(str(tmp_path / "victim"))[program])
    assert (tmp_path / "victim").exists()


@clause("05.batch.no_execution")
def test_the_error_names_a_function_that_no_batch_needs(small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, {**small.files, "test_batch": pickle.dumps(Runs(eval, "1"))})
    assert "(it asks for 'builtins.eval', which no batch of images needs)" in refusal(tmp_path)


NUMBER_OF_BYTES = struct.pack("<Q", 1 << 42)
HOSTILE = {
    "4 TiB of bytes": (b"\x80\x04\x8e" + NUMBER_OF_BYTES + b"abc.", "4,398,046,511,104 bytes are to follow"),
    "4 TiB of a bytearray": (b"\x80\x05\x96" + NUMBER_OF_BYTES + b"abc.", "4,398,046,511,104 bytes are to follow"),
    "a frame of 4 TiB": (b"\x80\x04\x95" + NUMBER_OF_BYTES + b"}.", "not a dictionary with data"),
    "a number of 2 GiB": (
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        "cut off: 2,147,483,647 bytes",
    ),
    "a memo of 4,294,967,295 places": (b"\x80\x02}r\xff\xff\xff\xff.", "the place 4,294,967,295 of its memory"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "not a dictionary with data"),
    "a call of itself": (b"\x80\x02cnumpy\nndarray\nq\x00h\x00\x85Rq\x00h\x00b.", "not a dictionary with data"),
    "state for a string": (b"\x80\x02U\x01a}b.", "it sets the state of a str"),
    "a call of a string": (b"\x80\x02U\x01a)R.", "it makes an object of something that is no class"),
    "items for a class": (b"\x80\x02cnumpy\nndarray\nNa.", "make no sense"),
    "settings for a class": (b"\x80\x02cnumpy\nndarray\nU\x01aNs.", "it sets an entry of a Name"),
    "colliding numbers as keys": (b"\x80\x02}(" + b"K\x01N" * 9 + b"u.", "key is not a short printable string"),
    "an uneven dictionary": (b"\x80\x02}(U\x01au.", "zip"),
    "a long key": (b"\x80\x02}" + b"U\xff" + b"k" * 255 + b"Ns.", "key is not a short printable string"),
    "nothing from the memo": (b"\x80\x02h\x07.", "make no sense"),
    "nothing on the stack": (b"\x80\x02.", "make no sense"),
    "no end": (b"\x80\x02}", "it has no end"),
    "no bytes": (b"", "it has no end"),
    "an unknown instruction": (b"\x80\x02\xff.", "it has the instruction b'\\xff'"),
    "a JPEG image": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "it has the instruction b'\\xff'"),
    "a list": (pickle.dumps([1, 2]), "not a dictionary with data and a list of labels"),
    "no labels": (pickle.dumps({"data": None}), "not a dictionary with data and a list of labels"),
    "CIFAR-100's labels": (
        pickle.dumps({"data": None, "fine_labels": [1]}),
        "not a dictionary with data and a list of labels",
    ),
    "text as labels": (pickle.dumps({"data": None, "labels": "12"}), "not a dictionary with data and a list of labels"),
}


@clause("05.batch.content")
@pytest.mark.parametrize("content", HOSTILE)
def test_a_batch_that_is_none_is_refused_in_little_memory(content: str, small: SmallCifar10, tmp_path: Path) -> None:
    program, message = HOSTILE[content]
    folder = write_folder(tmp_path, {**small.files, "test_batch": program})
    text, peak = measured_refusal(tmp_path)
    assert text.startswith(f"{folder / 'test_batch'}: not a file of CIFAR-10 (")
    assert message in text
    assert peak < 8 * MIB, "a few hundred bytes an instruction"


NESTED = {
    "lists": (b"\x80\x02" + b"]" * 99_999 + b"a" * 99_998 + b".", "not a dictionary with data"),
    "tuples": (b"\x80\x02)" + b"\x85" * 190_000 + b".", "not a dictionary with data"),
    "tuples as a key": (b"\x80\x02})" + b"\x85" * 190_000 + b"Ns.", "key is not a short printable string"),
    "calls": (b"\x80\x02cnumpy\nndarray\nq\x00" + b"h\x00" * 60_000 + b"\x85R" * 59_999 + b".", "not a dictionary"),
    "marks": (b"\x80\x02" + b"(" * 190_000 + b".", "make no sense"),
    "more than a batch has instructions": (b"\x80\x02" + b"N" * 300_000 + b".", "more than 200,000 instructions"),
}


def probed_memory() -> bytes:
    """Places of the memory that would make a dictionary slow (`probed` in test_17_legacy_checkpoint.py says how)."""
    place, code = 1, b"\x80\x02N"
    for _ in range(90_000):
        code += b"r" + struct.pack("<I", place)
        place = (5 * place + 1) % (1 << 18)
    return code + b"."


@clause("05.batch.content")
@pytest.mark.slow
def test_the_keys_of_a_batch_cannot_be_chosen_to_make_it_slow(small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, {**small.files, "test_batch": probed_memory()})
    assert "its 4. instruction uses the place 6 of its memory" in refusal(tmp_path)
    numbers = b"".join(b"J" + struct.pack("<i", 1 << number) + b"N" for number in range(30))
    for code in (b"}(" + numbers + b"u", b"\x8f(" + numbers + b"\x90", b"(" + numbers + b"\x91", b"(" + numbers + b"d"):
        (tmp_path / FOLDER / "test_batch").write_bytes(b"\x80\x04" + code + b".")
        assert "key is not a short printable string" in refusal(tmp_path)


@pytest.mark.slow
@clause("05.batch.content")
@pytest.mark.parametrize("content", NESTED)
def test_no_depth_of_nesting_brings_the_reader_down(content: str, small: SmallCifar10, tmp_path: Path) -> None:
    program, message = NESTED[content]
    write_folder(tmp_path, {**small.files, "test_batch": program})
    assert message in refusal(tmp_path)


def array(shape: tuple[int, ...] = (2, 3072), dtype: Any = np.uint8, order: Any = "C") -> np.ndarray:
    return np.zeros(shape, dtype, order)


NO_ARRAY = "data is not a uint8 array (n, 3072) in C order"
NO_LABEL = "a label is not a whole number from 0 to 9"
CONTENTS: dict[str, tuple[Any, Any, str]] = {
    "signed bytes": (array(dtype=np.int8), [1, 2], NO_ARRAY),
    "floats": (array(dtype=np.float32), [1, 2], NO_ARRAY),
    "objects": (array(dtype=object), [1, 2], NO_ARRAY),
    "fields": (array(dtype=[("red", "u1")]), [1, 2], NO_ARRAY),
    "another width": (array((2, 3071)), [1, 2], NO_ARRAY),
    "unpacked images": (array((2, 3, 32, 32)), [1, 2], NO_ARRAY),
    "columns first": (array(order="F"), [1, 2], NO_ARRAY),
    "a list as data": ([[0] * 3072] * 2, [1, 2], NO_ARRAY),
    "bytes as data": (bytes(6144), [1, 2], NO_ARRAY),
    "no images": (array((0, 3072)), [], "data has 0 bytes"),
    "a label too few": (array(), [1], "1 labels for 2 images"),
    "a label too many": (array(), [1, 2, 3], "3 labels for 2 images"),
    "a label too large": (array(), [1, 10], NO_LABEL),
    "a negative label": (array(), [1, -1], NO_LABEL),
    "a giant label": (array(), [1, 10**5000], "a whole number has 2,077 bytes"),
    "a fraction": (array(), [1, 2.0], NO_LABEL),
    "a truth value": (array(), [1, True], NO_LABEL),
    "a string label": (array(), [1, "2"], NO_LABEL),
    "no label": (array(), [1, None], NO_LABEL),
}


@clause("05.batch.content")
@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_batch_of_other_content_is_refused(content: str, protocol: int, small: SmallCifar10, tmp_path: Path) -> None:
    data, labels, message = CONTENTS[content]
    write_folder(tmp_path, {**small.files, "test_batch": pickle.dumps({"data": data, "labels": labels}, protocol)})
    assert f"test_batch: not a file of CIFAR-10 ({message}" in refusal(tmp_path)


@clause("05.batch.content")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x06M\x00\x0c\x86", b"K\x07M\x00\x0c\x86", "data has 18,432 bytes"),
        (b"K\x06M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86", "data has 18,432 bytes"),
        (b"K\x06M\x00\x0c\x86", b"J\xff\xff\xff\xffM\x00\x0c\x86", "data has 18,432 bytes"),
        (b"K\x06M\x00\x0c\x86", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fM\x00\x0c\x86", "data has 18,432 bytes"),
        (b"U\x02u1", b"U\x02O8", NO_ARRAY),
        (b"U\x02u1", b"U\x02V1", NO_ARRAY),
        (b"\x89T", b"\x88T", NO_ARRAY),
        (b"K\x00\x85U\x01b\x87R", b"K\x00\x85U\x01b\x87", "it sets the state of a tuple"),
    ],
    ids=[
        *("more rows than bytes", "2,147,483,647 rows", "-1 rows", "2**63 - 1 rows"),
        *("object dtype", "void dtype", "Fortran order", "a tuple for an array"),
    ],
)
def test_a_genuine_batch_with_one_wrong_word_is_refused(
    old: bytes, new: bytes, message: str, small: SmallCifar10, tmp_path: Path
) -> None:
    genuine = small.files["test_batch"]
    assert genuine.count(old) == 1
    write_folder(tmp_path, {**small.files, "test_batch": genuine.replace(old, new)})
    assert message in refusal(tmp_path)


@clause("05.batch.content")
@pytest.mark.parametrize(
    "names",
    [None, "airplane", [], ["cat", 3], ["cat", "cat"], ["cat", None], ["c" * 101], ["cat\x1b[2J"], {"cat": 1}],
    ids=repr,
)
def test_class_names_that_are_none_are_refused(names: object, small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, {**small.files, "batches.meta": pickle.dumps({"label_names": names}, 2)})
    assert "batches.meta: not a file of CIFAR-10 (" in refusal(tmp_path)


@clause("05.batch.content")
def test_labels_must_have_a_name(small: SmallCifar10, tmp_path: Path) -> None:
    largest = max(small.labels["test_batch"])
    write_folder(tmp_path, {**small.files, "batches.meta": python2_pickle(meta(CLASSES[:largest]))})
    assert f"a label is not a whole number from 0 to {largest - 1}" in refusal(tmp_path)


@clause("05.archive.damage")
def test_an_error_inside_an_archive_names_archive_and_member(small: SmallCifar10, tmp_path: Path) -> None:
    md5 = write_archive(tmp_path, members({**small.files, "data_batch_3": pickle.dumps(Runs(eval, "1"))}))
    text = refusal(tmp_path, train=True, archive_md5=md5)
    assert text.startswith(
        f"{tmp_path / ARCHIVE / 'data_batch_3'}: not a file of CIFAR-10 (it asks for 'builtins.eval'"
    )


def mutate(content: bytes, generator: random.Random) -> bytes:
    """A few bytes of it changed, removed, doubled or exchanged for instructions, mostly outside the pixels."""
    mutant = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 5))):
        around = generator.choice((0, len(mutant), generator.randrange(len(mutant) + 1)))
        place = min(max(around + generator.randrange(-300, 300), 0), len(mutant) - 1)
        length = generator.randrange(1, 5)
        match generator.randrange(4):
            case 0:
                mutant[place] = generator.randrange(256)
            case 1:
                del mutant[place : place + length]
            case 2:
                mutant[place:place] = mutant[place : place + length]
            case 3:
                mutant[place] = generator.choice(
                    b"(.0123FGIJKLMNPQRSTUVXabcdeghijlopqrstu}])\x80\x85\x86\x87\x88\x8e\x93"
                )
    return bytes(mutant)


@pytest.mark.slow
@clause("05.batch.content")
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_damaged_batch_is_read_or_refused_and_nothing_else(name: str, tmp_path: Path) -> None:
    generator = random.Random(5)
    files = small_cifar10(n=1).files
    folder = write_folder(tmp_path, files)
    outcomes = {True: 0, False: 0}
    for _ in range(500):
        (folder / name).write_bytes(mutate(files[name], generator))
        try:
            dataset = CIFAR10(tmp_path, train=False, archive_md5=None)
        except InputError:
            outcomes[False] += 1
        else:
            assert dataset.images.shape == (1, 3, 32, 32)
            assert 0 <= dataset.targets[0] < len(dataset.classes)
            assert all(isinstance(text, str) for text in dataset.classes)
            outcomes[True] += 1
    assert min(outcomes.values()) > 50, "both happen: some bytes are pixels or letters, others are instructions"


@pytest.mark.slow
@clause("05.archive.damage")
def test_a_damaged_archive_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(5)
    content = cifar_archives.tar(members(small_cifar10(n=1).files))
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    refused = 0
    for _ in range(300):
        mutant = bytearray(content)
        at = generator.choice(headers)
        for _ in range(3):
            mutant[at + generator.randrange(512)] = generator.choice(b"\0/.0179x\xff\x80SKgLV")
        mutant[at + 148 : at + 156] = b" " * 8  # the header's own sum is right again
        mutant[at + 148 : at + 156] = b"%06o\0 " % sum(mutant[at : at + 512])
        write_packed(tmp_path, gzip.compress(bytes(mutant), compresslevel=1))
        try:
            assert len(CIFAR10(tmp_path, train=False, archive_md5=None)) == 1
        except InputError:
            refused += 1
    assert 30 < refused < 300


# Download


@dataclass
class Answer:
    """How the server answers one request: like a good server, with these differences."""

    content: bytes | None = None  # instead of the server's
    status: int | None = None  # this error
    cut: int | None = None  # the connection ends after this number of bytes
    stall: bool = False  # ... or says nothing more from there on
    ranges: bool = True  # a request for a part gets that part
    marks: dict[str, str] | None = None  # instead of the server's ETag
    headers: dict[str, str] = field(default_factory=dict)  # in place of those that would be true


class Server(http.server.ThreadingHTTPServer):
    """A server of one file on this machine. `answers` are used up one a request; then it is a good server.

    `requests` records (path, Range, If-Range) of each, `sent` the bytes of each answer's body.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.marks = {"ETag": '"version 1"'}
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.sent: list[int] = []
        self.closing = threading.Event()
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{ARCHIVE}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        answer = server.answers.pop(0) if server.answers else Answer()
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        server.requests.append((self.path, wanted, condition))
        if answer.status is not None:
            self.send_error(answer.status)
            return
        content = server.content if answer.content is None else answer.content
        marks = server.marks if answer.marks is None else answer.marks
        start = 0
        if wanted and answer.ranges and condition in marks.values():
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                self.send_error(416)
                return
        headers = {"Content-Length": str(len(content) - start), **marks}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:][: answer.cut]
        server.sent.append(len(body))  # before the client can know, so that the order is that of the requests
        self.send_response(206 if start else 200)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if answer.stall:
            self.wfile.flush()
            server.stalled.set()
            server.closing.wait(30)

    def log_message(self, *_: object) -> None:
        """Quiet."""


CONTENT = random.Random(1).randbytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    with serving(CONTENT) as server:
        yield server


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def failure(urls: list[str], destination: Path, md5: str | None = MD5) -> str:
    with pytest.raises(InputError) as caught:
        download(urls, destination, md5, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@clause("05.download.whole")
def test_a_download_is_whole_and_leaves_only_an_empty_lock_beside_it(server: Server, tmp_path: Path) -> None:
    destination = tmp_path / "new" / "folder" / "file"
    assert download([server.url], destination, MD5, progress=False) == destination
    assert destination.read_bytes() == CONTENT
    assert left_behind(destination.parent) == {"file", "file.lock"}
    assert (destination.parent / "file.lock").read_bytes() == b""
    assert server.requests == [(f"/{ARCHIVE}", None, None)]


@clause("05.download.bar")
def test_the_bar_counts_bytes_and_can_be_silenced(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download([server.url], tmp_path / "one", MD5)
    shown = capsys.readouterr()
    assert "one: 100%" in shown.err
    assert "1.00M/1.00M" in shown.err
    assert shown.out == ""
    server.answers = [Answer(cut=400_000)]
    download([server.url], tmp_path / "resumed", MD5)
    assert capsys.readouterr().err.count("1.00M/1.00M") == 1, "the bar of the second part begins where the first ended"
    download([server.url], tmp_path / "two", MD5, progress=False)
    assert capsys.readouterr() == ("", "")


@clause("05.download.whole")
@pytest.mark.parametrize("md5", [MD5, None], ids=["the right file", "any file where none is asked for"])
def test_a_file_that_is_there_is_not_downloaded_again(md5: str | None, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    download([server.url], tmp_path / "file", md5, progress=False)
    assert server.requests == []
    assert left_behind(tmp_path) == {"file"}


@clause("05.download.whole")
def test_a_wrong_file_stays_until_the_right_one_has_arrived(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"something else")
    server.answers = [Answer(status=404)]
    failure([server.url], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"something else"
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.resumed")
@pytest.mark.parametrize(
    "marks", [{"ETag": '"v1"'}, {"Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"}], ids=["ETag", "Last-Modified"]
)
def test_a_broken_connection_is_taken_up_where_it_broke(marks: dict[str, str], server: Server, tmp_path: Path) -> None:
    server.marks = marks
    server.answers = [Answer(cut=400_000), Answer(cut=500_000)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    (mark,) = marks.values()
    assert [request[1:] for request in server.requests] == [
        (None, None),
        ("bytes=400000-", mark),
        ("bytes=900000-", mark),
    ]
    assert server.sent == [400_000, 500_000, 100_000]


@clause("05.download.resumed")
def test_a_later_call_resumes_an_abandoned_download(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=1000)] * downloading.ATTEMPTS
    text = failure([server.url], tmp_path / "file")
    assert text == (
        f"cannot download file: {server.url}: the connection broke after 4,000 of 1,000,000 bytes; "
        f"run again to continue {tmp_path / 'file.part'}"
    )
    assert left_behind(tmp_path) == {"file.part", "file.part.json", "file.lock"}
    server.sent.clear()
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert server.sent == [996_000]
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.resumed")
def test_a_server_that_falls_silent_is_a_broken_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "TIMEOUT", 0.2)
    server.answers = [Answer(cut=300_000, stall=True)]
    with monkeypatch.context() as once:
        once.setattr(downloading, "ATTEMPTS", 1)
        assert "the connection broke (timed out)" in failure([server.url], tmp_path / "file")
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == [300_000, 700_000]


OTHER = random.Random(2).randbytes(1_000_000)
NOT_CONTINUED = {
    "the server ignores ranges": [Answer(cut=400_000), Answer(ranges=False)],
    "the file has changed": [Answer(OTHER, cut=400_000, marks={"ETag": '"old"'})],
    "the server sends a part of a changed file": [
        Answer(OTHER, cut=400_000, marks={"ETag": '"old"'}),
        Answer(marks={"X-Old": '"old"', "ETag": '"new"'}),
    ],
    "the server does not say which file the part is of": [Answer(cut=400_000), Answer(headers={"ETag": ""})],
    "the server sends another part": [
        Answer(cut=400_000),
        Answer(headers={"Content-Range": "bytes 399999-999999/1000000"}),
    ],
    "the whole has another size": [
        Answer(cut=400_000),
        Answer(headers={"Content-Range": "bytes 400000-999998/999999"}),
    ],
    "the file has become shorter": [
        Answer(CONTENT + OTHER, cut=1_500_000),
        Answer(),
    ],
    "the mark is weak": [Answer(cut=400_000, marks={"ETag": 'W/"v"'})],
    "there is no mark": [Answer(cut=400_000, marks={})],
    "there is no length": [Answer(OTHER, cut=400_000, headers={"Transfer-Encoding": "chunked"})],
}


@clause("05.download.same_file")
@pytest.mark.parametrize("case", NOT_CONTINUED)
def test_parts_that_may_differ_in_version_are_not_joined(case: str, server: Server, tmp_path: Path) -> None:
    server.answers = list(NOT_CONTINUED[case])
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent[-1] == len(CONTENT), "from the beginning"
    assert left_behind(tmp_path) == {"file", "file.lock"}


@clause("05.download.resumed")
def test_a_whole_file_sent_for_a_part_is_taken_as_it_comes(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=400_000), Answer(ranges=False)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert server.sent == [400_000, 1_000_000]


@clause("05.download.same_file")
def test_no_part_is_continued_without_a_mark(server: Server, tmp_path: Path) -> None:
    server.marks = {"ETag": 'W/"weak"'}
    server.answers = [Answer(cut=400_000)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert [request[1:] for request in server.requests] == [(None, None), (None, None)]


@clause("05.download.same_file")
def test_a_part_from_one_mirror_is_not_continued_from_another(server: Server, tmp_path: Path) -> None:
    with serving(OTHER) as first:
        first.answers = [Answer(cut=400_000), *[Answer(status=503)] * downloading.ATTEMPTS]
        download([first.url, server.url], tmp_path / "file", MD5, progress=False)
    assert server.requests == [(f"/{ARCHIVE}", None, None)]
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.same_file")
@pytest.mark.parametrize("sidecar", ["", '["http://', "[1, 2]", "7", '{"a": 1}', '["x", "y", "z"]', "\udcff"])
def test_a_part_with_a_broken_memory_starts_again(sidecar: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(OTHER[:1000])
    (tmp_path / "file.part.json").write_bytes(sidecar.encode(errors="surrogateescape"))
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [(f"/{ARCHIVE}", None, None)]


@clause("05.download.whole")
def test_a_whole_part_that_was_never_verified_costs_no_byte(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    (tmp_path / "file.part.json").write_text(json.dumps([server.url, '"version 1"', len(CONTENT)]))
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == []


@clause("05.download.mirrors")
def test_a_mirror_without_the_file_is_followed_by_the_next(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=404)]
    download([server.url, server.url + "?second"], tmp_path / "file", MD5, progress=False)
    assert [request[0] for request in server.requests] == [f"/{ARCHIVE}", f"/{ARCHIVE}?second"]


@clause("05.download.mirrors")
def test_a_mirror_with_a_temporary_error_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=500), Answer(status=503)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert len(server.requests) == 3


@clause("05.download.mirrors")
def test_a_mirror_with_another_file_is_followed_by_the_next(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(OTHER)]
    download([server.url, server.url + "?second"], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.mirrors")
def test_when_all_mirrors_fail_the_error_gives_each_reason(server: Server, tmp_path: Path) -> None:
    wrong = hashlib.md5(OTHER).hexdigest()
    server.answers = [Answer(OTHER), Answer(status=404), *[Answer(status=503)] * downloading.ATTEMPTS]
    with serving(b"") as gone:
        nowhere = gone.url
    a, b, c = (f"{server.url}?{name}" for name in "abc")
    text = failure([a, b, c, nowhere], tmp_path / "file")
    assert text == (
        f"cannot download file: {a}: wrong checksum, MD5 {wrong} instead of {MD5}; "
        f"{b}: the server answered 404 Not Found; "
        f"{c}: the server answered 503 Service Unavailable; {nowhere}: no connection ([Errno {errno.ECONNREFUSED}] "
        f"{os.strerror(errno.ECONNREFUSED)})"
    )
    assert left_behind(tmp_path) == {"file.lock"}, "what has the wrong checksum is of no use"
    assert failure([], tmp_path / "file") == "cannot download file: no address given"


@clause("05.download.mirrors")
@pytest.mark.parametrize(
    ("length", "reason"),
    [
        ("1000001", "the connection broke after 1,000,000 of 1,000,001 bytes"),
        ("999999", f"wrong checksum, MD5 {hashlib.md5(CONTENT[:999_999]).hexdigest()} instead of {MD5}"),
    ],
    ids=["too long", "too short"],
)
def test_a_server_that_lies_about_the_length_fails(length: str, reason: str, server: Server, tmp_path: Path) -> None:
    server.marks = {}
    server.answers = [Answer(headers={"Content-Length": length})] * downloading.ATTEMPTS
    assert failure([server.url], tmp_path / "file") == f"cannot download file: {server.url}: {reason}"
    assert not (tmp_path / "file").exists()


@clause("05.download.addresses")
@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "data:,x", "/etc/passwd", "http:/x", ""])
def test_only_http_and_https_addresses_are_requested(url: str, server: Server, tmp_path: Path) -> None:
    assert failure([server.url, url], tmp_path / "file") == (
        f"cannot download from {url!r}: the address must start with http:// or https://"
    )
    assert server.requests == []
    assert left_behind(tmp_path) == set()


@clause("05.download.addresses")
@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://127.0.0.1:port/", "http://127.0.0.1/a b", "http://\u0100/\u0100"]
)
def test_an_address_that_cannot_be_one_is_a_reason_like_others(url: str, server: Server, tmp_path: Path) -> None:
    assert failure([url], tmp_path / "file").startswith(f"cannot download file: {url}: no connection (")


@clause("05.download.addresses")
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/file"])
def test_a_redirection_leads_only_to_http_and_https(target: str, tmp_path: Path, server: Server) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", server.url if self.path == "/good" else target)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as redirecting:
        thread = threading.Thread(target=redirecting.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{redirecting.server_address[1]}"
        try:
            text = failure([f"{url}/bad"], tmp_path / "file")
            download([f"{url}/good"], tmp_path / "file", MD5, progress=False)
        finally:
            redirecting.shutdown()
            thread.join()
    assert f"cannot download file: {url}/bad: " in text
    assert "not allowed" in text or "unknown url type: ftp" in text
    assert (tmp_path / "file").read_bytes() == CONTENT


@clause("05.download.whole")
def test_a_full_disk_is_an_error_with_the_files_name_and_keeps_the_received_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 600_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def opened(path: Path, mode: str = "r", **settings: Any) -> Any:
        return Full(path, "ab") if mode == "ab" else genuine(path, mode, **settings)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", opened)
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "file.part"))) as caught:
            download([server.url], tmp_path / "file", MD5, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, InputError)
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").read_bytes()
    assert kept == CONTENT[: len(kept)] != b""
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent[-1] == len(CONTENT) - len(kept)


@clause("05.download.resumed")
def test_an_interrupt_leaves_a_part_that_can_be_continued(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Answer(cut=400_000)]
    genuine = downloading.receive

    def interrupted(response: Any) -> bytes:
        if chunk := genuine(response):
            return chunk
        raise KeyboardInterrupt

    with monkeypatch.context() as keyboard:
        keyboard.setattr(downloading, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:400_000]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == [400_000, 600_000]


PROCESS = """
import sys
from reference.data.download import download
print("ready", flush=True)
sys.stdin.readline()
download([sys.argv[1]], sys.argv[2], sys.argv[3], progress=False)
print("done")
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


@pytest.mark.slow
@clause("05.download.whole")
def test_two_processes_download_once(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=400_000, stall=True)]  # the first holds the lock while the second starts
    processes = [start(server.url, tmp_path / "file", MD5) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
    assert server.stalled.wait(30)
    server.closing.set()
    for process in processes:
        assert process.communicate(timeout=60)[0] == "done\n"
        assert process.returncode == 0
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sum(server.sent) == len(CONTENT)


@pytest.mark.slow
@clause("05.download.resumed")
def test_a_killed_process_leaves_a_part_that_can_be_continued(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(cut=400_000, stall=True)]
    process = start(server.url, tmp_path / "file", MD5)
    process.stdin.write("\n")
    process.stdin.flush()
    assert server.stalled.wait(30)
    process.kill()
    process.communicate()
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / "file.part").read_bytes() if (tmp_path / "file.part").exists() else b""
    assert kept == CONTENT[: len(kept)]
    download([server.url], tmp_path / "file", MD5, progress=False)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.sent == [400_000, len(CONTENT) - len(kept)]


# Both


@clause("05.cifar10.download")
def test_download_fetches_the_archive_and_reads_it(small: SmallCifar10, server: Server, tmp_path: Path) -> None:
    md5 = write_archive(tmp_path / "there", members(small.files))
    server.content = (tmp_path / "there" / ARCHIVE).read_bytes()
    settings: dict[str, Any] = {"mirrors": [server.url], "archive_md5": md5, "progress": False}
    for train, names in ((True, TRAIN), (False, ("test_batch",))):
        dataset = CIFAR10(tmp_path / "here", train=train, download=True, **settings)
        assert torch.equal(dataset.images, images_of(small, *names))
    assert [len(part) for part in cifar10_pair(tmp_path / "here", download=True, **settings)] == [30, 6]
    assert len(server.requests) == 1
    (tmp_path / "here" / ARCHIVE).write_bytes(b"damaged")
    assert "wrong checksum" in refusal(tmp_path / "here", archive_md5=md5)
    assert len(CIFAR10(tmp_path / "here", download=True, **settings)) == 30
    assert len(server.requests) == 2


@clause("05.cifar10.download")
def test_download_leaves_an_unpacked_folder_alone(small: SmallCifar10, server: Server, tmp_path: Path) -> None:
    write_folder(tmp_path, small.files)
    assert len(CIFAR10(tmp_path, download=True, mirrors=[server.url], archive_md5=None)) == 30
    assert server.requests == []


@clause("05.cifar10.download")
def test_download_never_replaces_a_file_that_was_named_as_the_archive(server: Server, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(b"years of work")
    assert "wrong checksum" in refusal(tmp_path / "thesis", download=True, mirrors=[server.url], archive_md5=MD5)
    assert (tmp_path / "thesis").read_bytes() == b"years of work"


@clause("05.cifar10.download")
def test_a_failed_download_says_why(server: Server, tmp_path: Path) -> None:
    server.answers = [Answer(status=404)]
    text = refusal(tmp_path, download=True, mirrors=[server.url], archive_md5=MD5)
    assert text == f"cannot download {ARCHIVE}: {server.url}: the server answered 404 Not Found"
