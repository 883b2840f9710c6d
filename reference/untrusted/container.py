"""The file as bytes: an archive or a row of pickles, held against its own length."""

import io
import os
import stat
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from reference.errors import InputError
from reference.untrusted.calls import Kind, TorchMachine

PICKLE_LIMIT = 64 << 20  # bytes of what is not tensors; a whole VGG16 has 20,000
MEMBERS = 100_000  # of an archive

ZIP_START = b"PK\x03\x04"
OLD_START = b"\x80"  # as every pickle
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

# What damaged and hostile files make of Python's and PyTorch's own checks.
NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, struct.error, EOFError)


@dataclass(frozen=True)
class TorchFile:
    """What a file of `torch.save` holds.

    Attributes:
        container: "zip" (PyTorch 1.6 and later) or "old".
        content: tensors, containers, numbers, texts, and a `Record` or `Name` for whatever has a class of its own.
        sources: the source code of classes, by name, which the old format keeps beside a whole network; a text only.
    """

    container: str
    content: Any = field(repr=False)
    sources: dict[str, str] = field(repr=False)


def read_torch_file(path: Path | str) -> TorchFile:
    """Read a file that `torch.save` wrote, on whatever device its tensors were; here they are on the CPU.

    Raises:
        InputError: there is no such file, it is damaged, it is none of `torch.save`, or it wants more than data to be
            made; the text says which. Nothing in it was run.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=open_at_once) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of kinds of numbers that are new
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a file of torch.save: it is no regular file")
            start = file.read(512)
            file.seek(0)
            if start.startswith(ZIP_START):
                return read_zip(file, status.st_size)
            if start.startswith(OLD_START):
                return read_old(file, status.st_size)
            if start[257:262] == b"ustar":
                raise ValueError("it is a tar archive, as PyTorch before 0.1.10 wrote; let a PyTorch 1 save it anew")
            raise InputError(f"{path} is not a file of torch.save: it does not begin as one does")
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} cannot be read: there is not enough memory for it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except NONSENSE as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: Exception) -> InputError:
    """The error that says in one line that a file was refused; only our own checks have reasons for people."""
    reason = one_line(str(error)) if type(error) is ValueError else "what it says makes no sense"
    return InputError(f"{path} was refused: {reason}; nothing in it was run")


def open_at_once(path: str, flags: int) -> int:
    """Open as `os.open` does, but a pipe without waiting for its other end; it is refused afterwards."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def one_line(text: str) -> str:
    """The beginning of a text, on one line, without what a terminal would act upon."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])


# The archive of PyTorch 1.6 and later: NAME/data.pkl, and NAME/data/KEY for each storage


def read_zip(file: BinaryIO, size: int) -> TorchFile:
    archive = Archive(file, size)
    if "constants.pkl" in archive.members:
        raise ValueError("it is a TorchScript archive: a program, not data")
    if "data.pkl" not in archive.members:
        raise ValueError("it is a zip archive, but has no data.pkl as those of torch.save do")
    order = archive.read("byteorder", 16) if "byteorder" in archive.members else b"little"
    if order not in (b"little", b"big"):
        raise ValueError("its byte order is neither little nor big")

    def numbers(key: str, kind: Kind, length: int) -> Tensor:
        member = archive.members.get(f"data/{key}")
        if member is None or member.size != length:
            has = "is not there" if member is None else f"has {member.size:,}"
            raise ValueError(f"storage {key!r} is to have {length:,} bytes, but {has}")
        buffer = empty(length)
        archive.read_into(f"data/{key}", buffer.numpy().data)
        return in_order(buffer, kind, order.decode())

    machine = TorchMachine(numbers, size, foreign=order.decode() != sys.byteorder)
    content = machine.read(io.BytesIO(archive.read("data.pkl", PICKLE_LIMIT)))
    machine.check_truth_values()
    return TorchFile("zip", content, machine.sources)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: where it begins (its header, then its bytes), its length and its checksum."""

    start: int
    size: int
    crc: int


class Archive:
    """A zip archive as `torch.save` writes them: one folder, nothing packed, nothing twice, nothing in two places.

    Python's own reader would unpack, and put up with overlaps and gaps; here the directory must fit the file.

    Attributes:
        members: by their names in the folder.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        start, length, count = self.directory(size)
        if count > MEMBERS or length > PICKLE_LIMIT:
            raise ValueError(f"its archive has {count:,} members; at most {MEMBERS:,} are read")
        listed = self.listed(self.at(start, length), count)
        if len({name.partition("/")[0] for name in listed}) != 1:
            raise ValueError("its archive is not one folder")
        end = 0
        self.members: dict[str, Member] = {}
        for name, member in sorted(listed.items(), key=lambda item: item[1].start):
            if member.start < end:
                raise ValueError("members of its archive overlap")
            found = self.members[name.partition("/")[2]] = self.placed(name, member)
            end = found.start + found.size
        if end > start:
            raise ValueError("members of its archive overlap its directory")

    def directory(self, size: int) -> tuple[int, int, int]:
        """Where the directory begins, its length, and how many members it has."""
        end = size - 22
        fields = struct.unpack("<4s4H2LH", self.at(max(0, end), 22))
        if fields[0] != b"PK\x05\x06" or fields[7] != 0:
            raise ValueError("its archive is cut off or damaged: the end of the directory is not there")
        count, length, start = fields[4:7]
        locator = self.at(end - 20, 20) if end >= 20 else b""
        if locator.startswith(b"PK\x06\x07"):  # for more than 32 bits
            end = struct.unpack("<Q", locator[8:16])[0]
            fields = struct.unpack("<4sQ2H2L4Q", self.at(end, 56))
            if fields[0] != b"PK\x06\x06":
                raise ValueError("its archive is damaged: the end of the directory is not there")
            count, length, start = fields[7:10]
        if start + length != end:
            raise ValueError("its archive is damaged: the directory does not end where it says")
        return start, length, count

    def listed(self, listing: bytes, count: int) -> dict[str, Member]:
        """The members that the directory lists, each beginning with its header."""
        members: dict[str, Member] = {}
        position = 0
        for _ in range(count):
            fields = struct.unpack_from("<4s6H3L5H2L", listing, position)
            flags, method, crc = fields[3], fields[4], fields[7]
            name_end = position + 46 + fields[10]
            extra_end = name_end + fields[11]
            name = listing[position + 46 : name_end].decode()
            unpacked, packed, start = wide(listing[name_end:extra_end], fields[9], fields[8], fields[16])
            position = extra_end + fields[12]
            if fields[0] != b"PK\x01\x02" or position > len(listing):
                raise ValueError("its archive is damaged: the directory is not one")
            if flags & 1 or method != 0 or packed != unpacked:
                raise ValueError(f"member {name!r} of its archive is packed or encrypted, which torch.save never does")
            if "\\" in name or {"", ".", ".."} & {*name.split("/")}:
                raise ValueError(f"member {name!r} of its archive leads out of it")
            if name in members:
                raise ValueError(f"member {name!r} of its archive is there twice")
            members[name] = Member(start, unpacked, crc)
        if position != len(listing):
            raise ValueError("its archive is damaged: the directory is longer than its members")
        return members

    def placed(self, name: str, member: Member) -> Member:
        """The member, beginning with its bytes; the header before them must name it too."""
        fields = struct.unpack("<4s5H3L2H", self.at(member.start, 30))
        if fields[0] != ZIP_START or self.file.read(fields[9]) != name.encode():
            raise ValueError(f"its archive is damaged: member {name!r} is not where the directory says")
        return Member(member.start + 30 + fields[9] + fields[10], member.size, member.crc)

    def at(self, position: int, length: int) -> bytes:
        """Those bytes, all of them."""
        self.file.seek(position)
        found = self.file.read(length)
        if len(found) != length:
            raise ValueError("it is cut off")
        return found

    def read(self, name: str, limit: int) -> bytearray:
        """The bytes of a member."""
        size = self.members[name].size
        if size > limit:
            raise ValueError(f"member {name!r} of its archive has {size:,} bytes; at most {limit:,} are read")
        data = bytearray(size)
        self.read_into(name, memoryview(data))
        return data

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Read a member into a buffer of its length."""
        member = self.members[name]
        self.file.seek(member.start)
        if fill(self.file, buffer) != member.size or zlib.crc32(buffer) != member.crc:
            raise ValueError(f"it is cut off or damaged: member {name!r} of its archive has a wrong checksum")


def wide(extra: bytes, *values: int) -> list[int]:
    """Lengths and places; those that 32 bits do not hold stand in the extra field."""
    found = list(values)
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, position + 4))
            found = [next(numbers, value) if value == 0xFFFFFFFF else value for value in found]
        position += 4 + length
    return found


# The format before PyTorch 1.6: five pickles, of which the fourth is the content, then the numbers of each storage


class Bounded:
    """The next `left` bytes of a file; whoever asks for more gets what there is, in the memory that it takes."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self.file, self.left = file, left

    def read(self, size: int, /) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data

    def readline(self, size: int, /) -> bytes:
        data = self.file.readline(min(size, self.left))
        self.left -= len(data)
        return data


def read_old(file: BinaryIO, size: int) -> TorchFile:
    left = size

    def promised(key: str, kind: Kind, length: int) -> Tensor:
        nonlocal left
        left -= length
        if left < 0:
            raise ValueError(f"its storages are to have more bytes than the {size:,} of the whole file")
        return empty(length)

    machine = TorchMachine(promised, size)
    stream = Bounded(file, min(size, PICKLE_LIMIT))
    if machine.read(stream) != MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    if (protocol := machine.read(stream)) != PROTOCOL:
        raise ValueError(f"it has protocol {protocol!r:.50}, but only {PROTOCOL} is known")
    machine.read(stream)  # what kind of machine wrote it; the numbers are little-endian from all of them
    content = machine.read(stream)
    keys = machine.read(stream)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(machine.storages):
        raise ValueError("its list of storages does not name those that its tensors use")
    for key in keys:
        buffer, kind = machine.storages[key]
        start = file.read(8)
        count = int.from_bytes(start, "little", signed=True)
        if count * kind.width != len(buffer) or fill(file, buffer.numpy().data) != len(buffer):
            raise ValueError(f"it is cut off or damaged: storage {key[:50]!r} does not have its {len(buffer):,} bytes")
        in_order(buffer, kind, "little")
    machine.check_truth_values()
    return TorchFile("old", content, machine.sources)


# Bytes


def empty(length: int) -> Tensor:
    try:
        return torch.empty(length, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise MemoryError from error


def fill(file: BinaryIO, buffer: memoryview) -> int:
    """Read into a buffer; how many bytes came."""
    return file.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]


def in_order(buffer: Tensor, kind: Kind, order: str) -> Tensor:
    """The numbers in this machine's byte order; in place."""
    width = kind.width // 2 if kind.dtype is not None and kind.dtype.is_complex else kind.width
    if order != sys.byteorder and width > 1:
        buffer.numpy().view(f"u{width}").byteswap(inplace=True)
    return buffer
