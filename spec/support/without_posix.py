"""Import every module of the project as on Windows: without POSIX modules and without POSIX names of `os` and `signal`.

Run by itself (`python -m spec.support.without_posix`): it prints the number of modules, then those that failed.
"""

import builtins
import importlib
import multiprocessing
import os
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec.outside import REGISTRY

ROOT = Path(__file__).parents[2]

POSIX = (
    *("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "curses", "crypt"),
    *("spwd", "nis", "_posixsubprocess", "_posixshmem"),
)
"""Modules that Windows lacks; not `posix`, by which pickle names the functions of `os` here, and `nt` there."""

SIGNALS = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN")
"""The constants of `signal` on Windows."""

MISSING = frozenset(
    """
fork forkpty killpg getuid geteuid getgid getegid getgroups getpgid getpgrp getsid setuid setgid setsid uname nice
getloadavg sched_getaffinity sched_setaffinity mkfifo mknod chown lchown fchown chroot getpriority pread pwrite preadv
pwritev readv writev sendfile statvfs fstatvfs sysconf sysconf_names confstr wait wait3 wait4 waitid WNOHANG WIFEXITED
WIFSIGNALED WEXITSTATUS WTERMSIG O_NONBLOCK O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_SYNC O_DSYNC openpty ttyname pipe2
getxattr setxattr major minor makedev ctermid register_at_fork memfd_create eventfd pidfd_open lockf splice
copy_file_range environb getenvb posix_fadvise posix_fallocate posix_spawn setpgid tcgetpgrp tcsetpgrp
""".split()  # noqa: SIM905  -- a list of 80 words
)
"""The names of `os` that Windows lacks."""

OUTSIDE = frozenset(package for outside in REGISTRY for package in outside.needs)
"""Packages of the extra `outside`, which need not be installed."""


def without(module: types.ModuleType, missing: Callable[[str], bool]) -> Any:
    """A copy of `module` without the missing names."""
    made = types.ModuleType(module.__name__)
    made.__dict__.update({name: value for name, value in vars(module).items() if not missing(name)})
    return made


def get_context(method: str | None = None) -> Any:
    """Windows starts processes in one way only."""
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return multiprocessing.get_context("spawn")


def main() -> None:
    """Import the modules; only imports in the project's own files behave as on Windows."""
    windows = {
        "os": without(os, lambda name: name in MISSING),
        "signal": without(signal, lambda name: name.startswith("SIG") and name not in SIGNALS),
        "multiprocessing": without(multiprocessing, lambda _: False),
    }
    windows["multiprocessing"].get_context = get_context
    windows["multiprocessing"].get_all_start_methods = lambda: ["spawn"]
    real = builtins.__import__

    def import_(name: str, names: Any = None, local: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        own = str((names or {}).get("__file__") or "").startswith(str(ROOT))
        if own and level == 0 and name.partition(".")[0] in POSIX:
            raise ModuleNotFoundError(f"No module named {name!r}, as on Windows", name=name)
        return windows[name] if own and level == 0 and name in windows else real(name, names, local, fromlist, level)

    builtins.__import__ = import_
    folders = ("reference", "spec", "benchmarks", "scripts")
    paths = [ROOT / "conftest.py", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]
    failed = []
    for path in paths:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        try:
            importlib.import_module(name)
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError) and error.name in OUTSIDE:
                continue
            failed.append(f"{name}: {type(error).__name__}: {error}")
    print(len(paths), *failed, sep="\n")


if __name__ == "__main__":
    main()
