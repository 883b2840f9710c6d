"""Isolation of a listing: the process can write only to its own folder, cannot reach a network, start a program or
signal a process outside, and has limits for memory, file sizes and processes.

There are two layers. Python's audit hook refuses with an error message, on every system; it cannot be removed, but it
does not see code that is not Python. Below it, Landlock of Linux (from kernel 5.13; signals and sockets from 6.12)
restricts the process and its children, for code in any language.
"""

import ctypes
import errno
import mmap
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PROCESSES = 400
"""The total number of processes that a group of listings may start, mostly workers of DataLoader."""
FORKS = 8
"""The number of these that may be started directly by `os.fork`."""
FILE_SIZE = 2 << 30
MEMORY = 8 << 30
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/tty")
SHARED = "/dev/shm"


class RefusedError(PermissionError):
    """The listing requested an operation that the check always refuses."""


refusals: list[tuple[str, str]] = []
"""The refused requests: a kind ("files", "network", "programs", "processes", "signals") and the object."""


def limit(memory: int = MEMORY) -> None:
    """Limit the memory, file size and core dumps of this process and its children."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# Landlock: https://docs.kernel.org/userspace-api/landlock.html

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FILE_ONLY = (1 << 1) | _TRUNCATE
_TCP, _SCOPED = 0b11, 0b11
_NO_NEW_PRIVILEGES = 38


def landlock(*writable: Path) -> int:
    """Allow this process to write only below these folders, and forbid TCP and signals to other processes.

    Returns:
        Landlock's version, or 0 if the system has none.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, 0, 1)
    if version < 1:
        return 0
    files = _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = struct.pack("QQQ", files, _TCP if version >= 4 else 0, _SCOPED if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    handle = libc.syscall(_CREATE, ruleset[:size], size, 0)
    if handle < 0:
        return 0
    for path, access in (
        *((folder, files) for folder in writable),
        *((Path(name), _FILE_ONLY & files) for name in DEVICES),
    ):
        if not path.exists():
            continue
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(_ADD, handle, 1, struct.pack("=Qi", access, beneath), 0)
        os.close(beneath)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = libc.syscall(_RESTRICT, handle, 0)
    os.close(handle)
    return version if done == 0 else 0


# Python's audit hook: https://docs.python.org/3/library/audit_events.html

_PATHS = {
    "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1, "shutil.rmtree": 1, "shutil.move": 2,
}  # fmt: skip
"""Events that change files, with the number of paths among their first arguments."""
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile"}
_SOCKETS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}
_NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(folder: Path, *, store: Path) -> None:
    """Refuse forbidden operations for the rest of this process.

    Args:
        folder: The folder into which the process may write.
        store: The folder with the files of substitutes; the process may write there too.
    """
    homes = tuple(os.path.realpath(path) for path in (folder, store))
    count = mmap.mmap(-1, 8)  # shared with every process that is started

    def inside(path: Any) -> bool:
        if path is None or isinstance(path, int):
            return True
        name = os.path.realpath(os.fsdecode(path))
        shared = name.startswith((f"{SHARED}/torch_", f"{SHARED}/sem.", f"{SHARED}/pymp-", f"{SHARED}/sem_"))
        return name in homes or name.startswith(tuple(home + os.sep for home in homes)) or name in DEVICES or shared

    def refuse(kind: str, what: object) -> None:
        refusals.append((kind, str(what)[:200]))
        raise RefusedError(errno.EACCES, f"refused by the check: {kind}", str(what)[:200])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writing = bool(flags & _WRITING) if isinstance(flags, int) else "r" not in str(mode or "r")
            if writing and not inside(path):
                refuse("files", path)
        elif event in _PATHS:
            for path in arguments[: _PATHS[event]]:
                if not inside(path):
                    refuse("files", path)
        elif event in _PROGRAMS:
            what = arguments[0] if arguments else event
            refuse("programs", os.fsdecode(what) if isinstance(what, bytes) else what)
        elif event in _SOCKETS:
            address = arguments[1] if len(arguments) > 1 else None
            local = address is None or isinstance(address, str | bytes)  # of a connected socket, or of a Unix socket
            if not local:
                refusals.append(("network", str(address)))
                raise OSError(errno.ENETUNREACH, "Network is unreachable")
        elif event in _NAMES:
            if arguments and arguments[0] not in (None, "", "localhost", "127.0.0.1"):
                import socket

                refusals.append(("network", str(arguments[0])))
                raise socket.gaierror(-3, "Temporary failure in name resolution")
        elif event in ("os.kill", "os.killpg"):
            number, signal = arguments
            if event == "os.killpg" or number <= 0 or (signal and not _own(number)):
                refuse("signals", f"{event}({number}, {signal})")
        elif event in ("os.fork", "os.forkpty"):
            many = _from_multiprocessing()
            place = 0 if many else 4
            started = int.from_bytes(count[place : place + 4], "little") + 1
            count[place : place + 4] = started.to_bytes(4, "little")
            if started > (PROCESSES if many else FORKS):
                refuse("processes", f"more than {PROCESSES if many else FORKS}")

    sys.addaudithook(hook)


def _own(number: int) -> bool:
    """Whether a process belongs to this group of listings."""
    try:
        return os.getsid(number) == os.getsid(0)
    except (OSError, AttributeError):
        return number == os.getpid()


def _from_multiprocessing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if "multiprocessing" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
