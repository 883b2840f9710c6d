"""Starts and ends the processes of a document's listings: `python -m spec.documents.keeper`.

It reads jobs from standard input, one JSON object per line, and answers each with one. If the system supports fork, it
imports PyTorch once and forks a process for each job; otherwise each job is a new Python process. It ends processes
that exceed their time or memory limit, with all their children, including children that left the process group.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FORKS = hasattr(os, "fork") and sys.platform != "darwin"
"""macOS supports fork too, but its system libraries do not work after it."""
_REAPER = 36  # prctl: orphans of the listings become children of this process
_WITH_PARENT = 1  # prctl: the signal that this process gets when its parent ends
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def main() -> None:
    """Answer jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(answers.fileno(), False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    if FORKS:
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(_REAPER, 1, 0, 0, 0)
            ctypes.CDLL(None).prctl(_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        _import()
    for line in sys.stdin:
        job = json.loads(line)
        started = _fork(job, answers.fileno()) if FORKS else _start(job)
        ended = _watch(started, job)
        answers.write(json.dumps(ended) + "\n")
        answers.flush()


def _import() -> None:
    """The modules that nearly every listing imports, so that forked processes need not import them."""
    import importlib

    for name in (
        *("numpy", "torch", "torch.utils.data", "torchvision", "torch.utils.tensorboard", "PIL.Image"),
        *("matplotlib.pyplot", "spec.documents.child", "spec.documents.isolation", "spec.documents.stand_ins"),
    ):
        with suppress(ImportError):
            importlib.import_module(name)


def _fork(job: dict[str, Any], answers: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(answers)
        from spec.documents import child as program

        with open(job["results"], "a", encoding="utf-8") as results:
            program.main(job, results)
            results.flush()
    except BaseException:
        import traceback

        with suppress(OSError), open(job["results"] + ".failed", "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        os._exit(70)
    os._exit(0)


def _start(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    file = Path(job["results"] + ".job")
    file.write_text(json.dumps(job), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "spec.documents.child", str(file)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _watch(started: "int | subprocess.Popen[bytes]", job: dict[str, Any]) -> dict[str, Any]:
    """Wait for a process until its time or memory limit, then end it with all its children."""
    end = time.monotonic() + job["deadline"]
    reason, status = "", None
    pid = started if isinstance(started, int) else started.pid
    pause = 0.005
    while status is None:
        status = _ended(started)
        if status is not None:
            break
        if time.monotonic() > end:
            reason = "time"
        elif pause > 0.1 and _memory(pid) > job["memory"]:
            reason = "memory"
        if reason:
            _end(pid)
            status = _wait(started)
            break
        time.sleep(pause)
        pause = min(pause * 1.3, 0.2)
    _end(pid)
    _end_orphans()
    return {"status": status, "reason": reason}


def _ended(started: "int | subprocess.Popen[bytes]") -> int | None:
    if not isinstance(started, int):
        return started.poll()
    done, status = os.waitpid(started, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _wait(started: "int | subprocess.Popen[bytes]") -> int:
    if not isinstance(started, int):
        return started.wait(10)
    return os.waitstatus_to_exitcode(os.waitpid(started, 0)[1])


def _end(pid: int) -> None:
    """End a process and its group."""
    with suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError, AttributeError):
        os.kill(pid, signal.SIGKILL)


def _end_orphans() -> None:
    """End processes of the listing that left its process group; they are now children of this process."""
    if not Path("/proc/self/stat").exists():
        return
    for _ in range(50):
        mine = [pid for pid, parent in _processes() if parent == os.getpid()]
        if not mine:
            return
        for pid in mine:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in mine:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _processes() -> list[tuple[int, int]]:
    found = []
    for folder in os.scandir("/proc"):
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                text = Path(folder.path, "stat").read_text(encoding="utf-8", errors="replace")
                found.append((int(folder.name), int(text.rpartition(")")[2].split()[1])))
    return found


def _memory(pid: int) -> int:
    """The private memory of a process and its descendants in bytes."""
    if not Path("/proc/self/statm").exists():
        return 0
    family, parents = {pid}, dict(_processes())
    for each in sorted(parents):
        if parents[each] in family:
            family.add(each)
    total = 0
    for each in family:
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{each}/statm").read_text().split()
            total += (int(fields[1]) - int(fields[2])) * _PAGE
    return total


if __name__ == "__main__":
    main()
