"""A foreign file as bytes: an archive, a sequence of pickles or a safetensors file, checked against its length."""

import io
import os
import stat
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from reference.errors import InputError
from reference.untrusted import kinds
from reference.untrusted.archive import LOCAL, Archive
from reference.untrusted.bounds import PICKLE_LIMIT, SAFETENSORS_HEADER
from reference.untrusted.calls import Kind, TorchMachine
from reference.untrusted.pickle_machine import ForeignError

OLD_START = b"\x80"  # as every pickle
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

# The exceptions of Python's and PyTorch's own checks on damaged and hostile files.
NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, struct.error, EOFError)


@dataclass(frozen=True)
class TorchFile:
    """The content of a file of `torch.save`, or of a safetensors file.

    Attributes:
        container: "zip" (PyTorch 1.6 and later), "old" or "safetensors".
        content: tensors, containers, numbers, strings, and a `Record` or `Name` for anything of another class.
        sources: the source code of classes, by name, which the old format stores with a whole network; only text.
    """

    container: str
    content: Any = field(repr=False)
    sources: dict[str, str] = field(repr=False)


def read_torch_file(path: Path | str) -> TorchFile:
    """Read a file that `torch.save` or safetensors wrote; its tensors are on the CPU, for any device that they were
    saved from.

    Raises:
        InputError: the file is missing, damaged, of another kind, or requests more than data; the message says which.
            Nothing in it was run.
    """
    path = Path(path)
    try:
        with opened(path) as (file, size, start):
            if start.startswith(LOCAL):
                return read_zip(file, size)
            if kinds.is_safetensors(start):  # before the old format: the length of its header may begin with any byte
                return read_safetensors(file, size)
            if start.startswith(OLD_START):
                return read_old(file, size)
            kind = kinds.of_start(start) or "its beginning is unknown"
            raise InputError(f"{path} is not a file of torch.save: {kind}")
    except NONSENSE as error:
        if isinstance(error, InputError):
            raise
        raise refusal(path, error) from error


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int, bytes]]:
    """A regular file with its length and its first 512 bytes; PyTorch's warnings are suppressed while it is read.

    Raises:
        InputError: the file is missing or not a regular file, or reading it failed or took too much memory.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about new dtypes
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} cannot be read: it is no regular file")
            start = file.read(512)
            file.seek(0)
            yield file, status.st_size, start
    except MemoryError as error:
        raise InputError(f"{path} cannot be read: there is not enough memory for it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def refusal(path: Path, error: Exception) -> InputError:
    """The one-line error for a refused file; it quotes only messages of this project's checks."""
    reason = one_line(str(error)) if type(error) in (ValueError, ForeignError) else "its instructions make no sense"
    return InputError(f"{path} was refused: {reason}; nothing in it was run")


def open_at_once(path: str, flags: int) -> int:
    """Open like `os.open`, but do not wait for the other end of a pipe; pipes are refused afterwards."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def one_line(text: str) -> str:
    """The beginning of a text as one line without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])


# The archive of PyTorch 1.6 and later: NAME/data.pkl, and NAME/data/KEY for each storage


def read_zip(file: BinaryIO, size: int, machine_of: type[TorchMachine] = TorchMachine) -> TorchFile:
    """The content of an archive; ValueError if `torch.save` did not write it.

    Args:
        file: the archive.
        size: its length in bytes.
        machine_of: the class of the machine that reads its pickle.
    """
    archive = Archive(file, size)
    order = archive.read("byteorder", 16) if "byteorder" in archive.members else b"little"
    if order not in (b"little", b"big"):
        raise ValueError("its byte order is neither little nor big")

    def numbers(key: str, kind: Kind, length: int) -> Tensor:
        member = archive.members.get(f"data/{key}")
        if member is None or member.size != length:
            has = "is not there" if member is None else f"has {member.size:,}"
            raise ValueError(f"storage {key[:50]!r} is to have {length:,} bytes, but {has}")
        buffer = empty(length)
        archive.read_into(f"data/{key}", buffer.numpy().data)
        return in_order(buffer, kind, order.decode())

    machine = machine_of(numbers, size, foreign=order.decode() != sys.byteorder)
    content = machine.read(io.BytesIO(archive.read("data.pkl", PICKLE_LIMIT)))
    machine.check()
    return TorchFile("zip", content, machine.sources)


# The format before PyTorch 1.6: five pickles, the fourth with the content, then the numbers of each storage


class Bounded:
    """A view of the next `left` bytes of a file; a longer read returns fewer bytes and allocates only their memory."""

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


def read_old(file: BinaryIO, size: int, machine_of: type[TorchMachine] = TorchMachine) -> TorchFile:
    """The content of a file before PyTorch 1.6; the arguments and errors are those of `read_zip`."""
    left = size

    def promised(key: str, kind: Kind, length: int) -> Tensor:
        nonlocal left
        left -= length
        if left < 0:
            raise ValueError(f"its storages are to have more bytes than the {size:,} of the whole file")
        return empty(length)

    machine = machine_of(promised, size)
    stream = Bounded(file, min(size, PICKLE_LIMIT))
    if machine.read(stream) != MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    if (protocol := machine.read(stream)) != PROTOCOL:
        raise ValueError(f"it has protocol {protocol!r:.50}, but only {PROTOCOL} is known")
    machine.read(stream)  # a description of the machine that wrote it; the numbers are always little-endian
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
    machine.check()
    return TorchFile("old", content, machine.sources)


# safetensors: the length of a header, the header in JSON, the numbers; read by the library of that name


def read_safetensors(file: BinaryIO, size: int) -> TorchFile:
    """The tensors by their names. While they are read, the numbers take twice their size in the file."""
    from safetensors.torch import load

    header = int.from_bytes(file.read(8), "little")
    if header > min(SAFETENSORS_HEADER, size - 8):
        raise ValueError(f"the header of a safetensors file is to have {header:,} bytes")
    file.seek(0)
    try:
        content = load(file.read(size))
    except Exception as error:  # SafetensorError; KeyError for dtypes that PyTorch lacks
        raise ValueError(f"it is a safetensors file, but damaged ({one_line(str(error))})") from error
    for name, tensor in content.items():
        if tensor.dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
            raise ValueError(f"{name[:50]!r} has a truth value that is neither true nor false")
    return TorchFile("safetensors", content, {})


# Bytes


def empty(length: int) -> Tensor:
    try:
        return torch.empty(length, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise MemoryError from error


def fill(file: BinaryIO, buffer: memoryview) -> int:
    """Read into a buffer; return the number of bytes."""
    return file.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]


def in_order(buffer: Tensor, kind: Kind, order: str) -> Tensor:
    """The numbers in this machine's byte order; in place."""
    width = kind.width // 2 if kind.dtype is not None and kind.dtype.is_complex else kind.width
    if order != sys.byteorder and width > 1:
        buffer.numpy().view(f"u{width}").byteswap(inplace=True)
    return buffer
