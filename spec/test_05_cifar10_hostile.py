"""Chapter 05: CIFAR-10 from its official files: missing, damaged and hostile archives."""

import gzip
import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reference.data import cifar10
from reference.data.cifar10 import CIFAR10, OFFICIAL_FILES_MD5, OFFICIAL_MD5
from spec.support import cifar_archives
from spec.support.cifar_archives import (
    ARCHIVE,
    FOLDER,
    TRAIN,
    SmallCifar10,
    member,
    members,
    small_cifar10,
    write_archive,
    write_folder,
    write_packed,
)
from spec.support.cifar_checks import MIB, images_of, measured_refusal, refusal, snapshot
from spec.support.clauses import clause


@pytest.fixture(scope="module")
def small() -> SmallCifar10:
    return small_cifar10()


# Missing, damaged and hostile files


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
def test_an_archive_of_any_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    archive = tmp_path / ARCHIVE
    with archive.open("wb") as file:
        file.truncate(2**42)  # a hole: takes no space, but hours to read
    limit = f"{cifar10.ARCHIVE_LIMIT >> 20} MiB"
    assert refusal(tmp_path) == f"{archive}: larger than {limit}, which no archive of CIFAR-10 is"


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
def test_an_archive_packed_from_a_truncated_tar_lacks_a_member(small: SmallCifar10, tmp_path: Path) -> None:
    content = cifar_archives.tar(members({name: small.files[name] for name in ("data_batch_4", "test_batch")}))
    write_packed(tmp_path, gzip.compress(content))
    assert refusal(tmp_path) == f"{tmp_path / ARCHIVE}: holds no {FOLDER}/batches.meta: delete it and use --download"


@clause("05.archive.damage")
def test_a_flipped_bit_in_the_archive_fails_the_gzip_checksum(small: SmallCifar10, tmp_path: Path) -> None:
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
def test_a_folder_named_like_a_batch_is_refused(small: SmallCifar10, tmp_path: Path) -> None:
    parts = members({name: content for name, content in small.files.items() if name != "test_batch"})
    write_archive(tmp_path, [*parts, (member(f"{FOLDER}/test_batch", tarfile.DIRTYPE), b"")])
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE / 'test_batch'}: not a file of CIFAR-10 (")


@clause("05.cifar10.format")
def test_a_repacked_archive_is_read(small: SmallCifar10, tmp_path: Path) -> None:
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
def test_an_invalid_extended_header_is_reported_as_damage(tmp_path: Path) -> None:
    record = b"9" * 5000 + b" a=b\n"  # a length of more digits than Python turns into a number
    content = header("x", len(record), tarfile.XHDTYPE) + record.ljust(5120, b"\0") + header("readme.html", 0)
    write_packed(tmp_path, gzip.compress(content))
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE}: truncated or damaged (")


@clause("05.archive.limits")
@pytest.mark.parametrize("bomb", BOMBS)
def test_reading_an_archive_takes_bounded_memory(bomb: str, tmp_path: Path) -> None:
    piece, count, message = BOMBS[bomb]
    write_packed(tmp_path, gzip.compress(piece(), compresslevel=1) * count)
    text, peak = measured_refusal(tmp_path)
    assert message in text
    assert peak < 16 * MIB, "contents are skipped in small pieces, and headers end at 64 KiB"


@clause("05.archive.limits")
def test_an_archive_is_refused_from_one_byte_above_the_limit_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_packed(tmp_path, bytes(1000))
    monkeypatch.setattr(cifar10, "ARCHIVE_LIMIT", 1000)
    assert "truncated or damaged" in refusal(tmp_path)
    monkeypatch.setattr(cifar10, "ARCHIVE_LIMIT", 999)
    assert refusal(tmp_path).startswith(f"{tmp_path / ARCHIVE}: larger than 0 MiB")


@clause("05.archive.limits")
def test_an_archive_that_the_disk_does_not_give_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(tmp_path, bytes(1000))

    def failing(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cifar10, "is_right", failing)
    assert refusal(tmp_path) == f"{tmp_path / ARCHIVE} cannot be read: Input/output error"


@clause("05.archive.limits")
@pytest.mark.parametrize(
    "piece", [header("m", MIB) + bytes(MIB), header("m", 0) * 20], ids=["of 1 MiB each", "empty ones"]
)
def test_an_archive_with_too_many_members_is_refused(
    piece: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "ARCHIVE_LIMIT", 4 * MIB)
    write_packed(tmp_path, gzip.compress(piece) * 4)
    assert refusal(tmp_path) == f"{tmp_path / ARCHIVE}: unpacks to more than 4 MiB: delete it and use --download"
