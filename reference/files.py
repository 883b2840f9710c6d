"""Writing a file completely or not at all, even after a crash or on a full disk, and reading only regular files."""

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

TEMPORARY_SUFFIX = ".tmp"


SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str], largest: int) -> BinaryIO:
    """Open a regular file for reading, without blocking and without side effects.

    Opening a FIFO waits for its writer, and opening a device may act on it, so the file type is checked before opening,
    and once more afterwards, because the name may then refer to another file.

    Args:
        path: a file, or a link to one.
        largest: the largest size allowed, in bytes; holes of a sparse file count too.

    Raises:
        OSError: there is no such file, it is a folder, or it cannot be read.
        ValueError: it is not a regular file, or it is larger than `largest`; the message says which.
    """
    _check_regular(os.stat(path), largest)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()), largest)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: str | os.PathLike[str], largest: int) -> bytes:
    """The content of a regular file, opened by `open_regular`, up to its size at the time of opening."""
    with open_regular(path, largest) as file:
        return file.read(os.fstat(file.fileno()).st_size)


LARGEST_JSON = 2**26
"""The largest JSON file of a run that is read, in bytes; the names of a hundred thousand classes fit in it."""


def read_json(path: str | os.PathLike[str], largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file in UTF-8 that others may have replaced: regular, bounded, and strict JSON.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not a regular file, too large, or not JSON; `NaN` and infinities are not JSON.
    """
    try:
        return json.loads(read_regular(path, largest).decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_regular(status: os.stat_result, largest: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is {SPECIAL.get(stat.S_IFMT(status.st_mode), 'special')}, not a regular file")
    if status.st_size > largest:
        raise ValueError(f"it has {status.st_size:,} bytes, at most {largest:,} are allowed")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets the name `path` only when it is complete and on the disk.

    It is written under a temporary name in the same folder, flushed to the disk, then renamed; if an error occurs
    before that, `path` keeps its old content, or remains absent.

    Raises:
        OSError: the disk is full or the folder is not writable; the temporary file is removed and the message names
            `path`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error
        while isinstance(reason, RuntimeError) and reason.__context__ is not None:
            reason = reason.__context__  # torch.save reports a full disk as a RuntimeError
        if isinstance(reason, OSError):
            raise OSError(f"{path} could not be written: {explained(reason)}") from error
        raise


def explained(error: OSError) -> str:
    """The reason of an error of the system, and the remedy if it is a full disk or a place that cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"{reason}; make room on that disk"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
        return f"{reason}; choose a folder that can be written"
    return reason


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; a system that cannot open folders (Windows) does so by itself."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether `path` has a name that `atomic_write` gives to an unfinished file."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}", path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files of killed writers in `folder`; the caller must hold the folder's lock."""
    for leftover in filter(is_temporary, folder.glob(f".*{TEMPORARY_SUFFIX}")):
        leftover.unlink(missing_ok=True)
