"""Writing a file so that a reader, a crash or a full disk never meets half of it."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that takes the name `path` only when it is complete and on the disk.

    It is written under a temporary name in the same folder, flushed to the disk, then renamed; whatever happens before
    that, `path` keeps its old content, or stays absent.

    Raises:
        OSError: the disk is full or the folder is not writable; the temporary file is removed and the text names
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
            reason = reason.__context__  # torch.save answers a full disk with a RuntimeError of its own
        if isinstance(reason, OSError):
            raise OSError(f"{path} could not be written: {reason.strerror or reason}") from error
        raise


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
    """Delete what killed writers left in `folder`; only for a caller that holds the folder's lock."""
    for leftover in filter(is_temporary, folder.glob(f".*{TEMPORARY_SUFFIX}")):
        leftover.unlink(missing_ok=True)
