"""Running the project's scripts as a user does, in separate processes, without an `import torch` each time.

Python's fork server imports once and forks a fresh interpreter for each command; the command has the environment of a
new process: its arguments, working folder, signals and exit status. It has as many threads as this process: more
threads than cores wait for each other at every operation.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"

WAY = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
FORKS: Any = multiprocessing.get_context(WAY)
if WAY == "forkserver":
    FORKS.set_forkserver_preload(
        [
            *("reference.run", "reference.inference", "torch.utils.tensorboard", "tyro", "typeguard", "torch._dynamo"),
            *("matplotlib.figure", "matplotlib.backends.backend_agg"),
            *("pytest", "hypothesis.strategies", "spec.support.implementations", "spec.support.strategies"),
        ]
    )


@dataclass(frozen=True)
class Result:
    """The result of a command: its exit status (minus the signal that killed it) and its output."""

    status: int
    out: str
    err: str


class Command:
    """A running script.

    Args:
        script: its file name under scripts/, the name of a module that `python -m` runs, or an importable function.
        arguments: the arguments after it.
        folder: the working folder; stdout and stderr are stored there too.
        prepare: called in the new process before the script (for example to lower a limit); must be importable.
    """

    def __init__(
        self,
        script: str | Callable[..., None],
        *arguments: object,
        folder: Path,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.output = folder / f".{time.monotonic_ns()}"
        words = [str(argument) for argument in arguments]
        threads = torch.get_num_threads()
        self.process = FORKS.Process(target=_run, args=(script, words, folder, self.output, prepare, threads))
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; it has no effect on a command that has ended."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait_for(self, text: str, *, seconds: float = 60) -> None:
        """Wait until the command has printed `text`."""
        end = time.monotonic() + seconds
        while text not in self._read(".out") + self._read(".err"):
            if not self.process.is_alive() or time.monotonic() > end:
                raise AssertionError(f"{text!r} was never printed; what was:\n{self._read('.out')}{self._read('.err')}")
            time.sleep(0.005)

    def wait(self, seconds: float = 120) -> Result:
        """Wait for its end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s:\n{self._read('.out')}{self._read('.err')}")
        return Result(self.process.exitcode, self._read(".out"), self._read(".err"))

    def _read(self, suffix: str) -> str:
        path = self.output.with_name(self.output.name + suffix)
        return path.read_text(encoding="utf-8") if path.exists() else ""


def run(
    script: str | Callable[..., None], *arguments: object, folder: Path, prepare: Callable[[], None] | None = None
) -> Result:
    """Run a script, module or function to its end."""
    return Command(script, *arguments, folder=folder, prepare=prepare).wait()


def _run(
    script: str | Callable[..., None],
    words: list[str],
    folder: Path,
    output: Path,
    prepare: Callable[[], None] | None,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    gc.freeze()  # a garbage collection would copy every page that is shared with the fork server
    os.chdir(folder)
    os.environ.pop("LC_ALL", None)
    os.environ["LC_MESSAGES"] = "C"  # the tests read English, for any language of the developer's machine
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        handle = os.open(output.with_name(output.name + suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, descriptor)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    # as at a terminal; a background job starts with the signal ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(script), *words]
    if prepare is not None:
        prepare()
    if callable(script):
        script(*words)
    elif script.endswith(".py"):
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
