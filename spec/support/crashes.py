"""A crash of native code (a signal, `os._exit`, no memory) becomes a failure of one test, with the calls that caused
it.

With `-n` pytest-xdist replaces the worker that crashed. Without `-n` the tests run in a fork of this process: if the
fork ends within a test, another fork continues after that test and takes over the existing reports. Either way the test
then runs once more, alone, in a fork that writes each call of a component to a file before it is made. The cost for
each other test is one small record, and with `-n` there is no cost. Forks are used on Linux only; on other systems a
crash without `-n` ends the run.
"""

import faulthandler
import json
import multiprocessing
import os
import pickle
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import Tensor

from spec.support.clauses import CLAUSES
from spec.support.run import current

AGAIN = 100.0
"""The time limit for the second run of a crashed test in seconds; the calls recorded until then are shown."""
RESTARTS = "100"
"""The number of crashed workers that are replaced; pytest-xdist's own limit is four for each worker."""
CALLS = "the last calls, to paste into Python"
"""The section of a failure with its reproduction."""
_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Crash:
    """How a test ended its process.

    Attributes:
        ended: The signal or the exit status as text; empty if the test does not crash when it runs alone.
        calls: The last calls of components, as Python; the last one is the one that crashed.
        properties: The user properties of the test for the report.
    """

    ended: str = ""
    calls: str = ""
    properties: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The message of the failure."""
        if not self.ended:
            return "the process that ran the test ended; the test does not crash when it runs alone"
        return f"the process that ran the test ended {self.ended}: the code under test exits or crashes Python"

    def fill(self, report: pytest.TestReport) -> None:
        """Convert a report into the report of this crash."""
        report.outcome, report.when = "failed", "call"
        report.longrepr = self.message
        report.user_properties = [
            *self.properties,
            *(("message", self.message), ("cause", "the process ended"), ("paste", self.calls)),
        ]
        names = dict(self.properties).get("clauses", ())
        if names:
            text = "\n".join(str(CLAUSES[name]) for name in names)
            report.sections.append(("what the specification says", text))
        if self.calls:
            report.sections.append((CALLS, self.calls))


def can_fork(config: pytest.Config) -> bool:
    """Whether this process is a program that runs pytest, and may be forked before the run begins."""
    program = Path(sys.argv[0])
    option = config.option
    return (
        sys.platform == "linux"
        and not hasattr(config, "workerinput")
        and (program.name in ("pytest", "py.test") or program.parts[-2:] == ("pytest", "__main__.py"))
        and multiprocessing.parent_process() is None
        and threading.active_count() == 1
        and not (option.collectonly or option.usepdb or option.trace)
    )


def watch(config: pytest.Config) -> int | None:
    """Prepare a run for crashes before the configuration.

    Returns:
        The exit status of a run in a fork; None in the process that runs the tests.
    """
    if not can_fork(config):
        return None
    if getattr(config.option, "numprocesses", 0) is None:
        return _in_forks(config)
    if getattr(config.option, "numprocesses", 0) or getattr(config.option, "tx", None):
        if config.option.maxworkerrestart is None:
            config.option.maxworkerrestart = RESTARTS
        return _beside_workers(config)
    return None  # -n 0: in this process


def _fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # a warning about threads, which numerical libraries start when imported
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# crashes that are known


@dataclass(frozen=True)
class Known:
    """A crash of PyTorch on some processors, or a result that depends on other data in memory.

    Attributes:
        reason: Why it is a known failure.
        flag: The flag in /proc/cpuinfo of the affected processors.
        probe: A call that crashes, which is tried in another process; it ends that process if the result is wrong.
        homes: The modules and names of the function.
        applies: Whether a call of the function crashes.
        traced: The same function for torch.compile, which finds functions by their names in torch, where the one that
            refuses takes the place of the original; None: the function itself.
    """

    reason: str
    flag: str
    probe: Callable[[], Any]
    homes: Sequence[tuple[Any, str]]
    applies: Callable[..., bool]
    traced: Callable[..., Any] | None = None


def _narrow_kernel_with_gaps(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *_: Any,
    **__: Any,
) -> bool:  # fmt: skip
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.dtype != torch.float16:
        return False
    gaps = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    return any(side == 1 and gap > 1 for side, gap in zip(weight.shape[2:], gaps, strict=False))


def _conv2d_by_operator(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """`torch.conv2d` by its operator, which takes no integer for a pair."""
    pairs = [(size, size) if isinstance(size, int) else size for size in (stride, padding, dilation)]
    return torch.ops.aten.conv2d(input, weight, bias, *pairs, groups)


def _probe_narrow_kernel() -> None:
    input, weight = torch.ones(1, 2, 2, 1).half(), torch.ones(1, 2, 1, 1).half()
    torch.conv2d(input, weight, None, (1, 2), (1, 1), (1, 2))


def _window_above_the_image(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *_: Any,
    **__: Any,
) -> bool:  # fmt: skip
    """Whether no row of a window lies in the image, because one is above it and the next below it."""
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.dtype != torch.bfloat16 or padding == "valid":
        return False
    height, rows = input.shape[-2], weight.shape[-2]
    step, gap = (size[0] if isinstance(size, tuple | list) else size for size in (stride, dilation))
    above = gap * (rows - 1) // 2 if padding == "same" else padding if isinstance(padding, int) else padding[0]
    if weight.device.type != "cpu" or rows == 1 or gap == 1 or above == 0:
        return False
    starts = range(-above, height + above - gap * (rows - 1), step)
    return any(all(not 0 <= start + gap * row < height for row in range(rows)) for start in starts)


def _probe_window_above_the_image() -> None:
    images, kernel = torch.ones(2, 4, 1, 4).bfloat16(), torch.ones(1, 4, 2, 2).bfloat16()
    torch.conv2d(images, kernel, None, (2, 1), (1, 2), (2, 3))


def _single_column(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *_: Any,
    **__: Any,
) -> bool:  # fmt: skip
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.dtype != torch.bfloat16:
        return False
    step, border, gap = (
        size[-1] if isinstance(size, tuple | list) else size
        for size in (stride, 0 if isinstance(padding, str) else padding, dilation)
    )
    width = input.shape[-1] + 2 * border - gap * (weight.shape[-1] - 1)
    # padding="same" allows no stride
    return weight.device.type == "cpu" and step > 1 and weight.shape[-1] > 1 and 0 < width <= step


def single_column() -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Image, kernel and stride of a convolution with an output of one column."""
    numbers = torch.arange(4 * 16 * 3, device="cpu")
    return (numbers % 7 - 3).reshape(4, 1, 16, 3), (numbers[:6] - 3).reshape(1, 1, 2, 3), (1, 2)


def _probe_single_column() -> None:
    image, kernel, stride = single_column()
    found = torch.conv2d(image.bfloat16(), kernel.bfloat16(), None, stride)
    if not torch.equal(found.double(), torch.conv2d(image.double(), kernel.double(), None, stride)):
        os._exit(1)


KNOWN = (
    Known(
        "PyTorch's bfloat16 conv2d is wrong where the output has one column and the stride is above 1 (amx_bf16)",
        "amx_bf16",
        _probe_single_column,
        ((torch, "conv2d"), (torch.nn.functional, "conv2d")),
        _single_column,
        _conv2d_by_operator,
    ),
    Known(
        "PyTorch's bfloat16 conv2d ends the process where no row of a window lies in the image (amx_bf16)",
        "amx_bf16",
        _probe_window_above_the_image,
        ((torch, "conv2d"), (torch.nn.functional, "conv2d")),
        _window_above_the_image,
        _conv2d_by_operator,
    ),
    Known(
        "PyTorch's float16 conv2d ends the process where a kernel of width 1 has a dilation above 1 (avx512_fp16)",
        "avx512_fp16",
        _probe_narrow_kernel,
        ((torch, "conv2d"), (torch.nn.functional, "conv2d")),
        _narrow_kernel_with_gaps,
        _conv2d_by_operator,
    ),
)


def flags() -> set[str]:
    """The flags of this processor under Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def avoid(known: Sequence[Known] = KNOWN, have: Callable[[], set[str]] = flags) -> None:
    """Convert the calls that crash on this processor into known failures of their tests."""
    if not hasattr(os, "fork"):
        return
    present = have()
    for crash in known:
        if crash.flag in present and _crashes(crash.probe):
            for home, name in crash.homes:
                setattr(home, name, _refusing(getattr(home, name), crash))


def _crashes(probe: Callable[[], Any]) -> bool:
    child = _fork()
    if child == 0:
        with suppress(BaseException):
            faulthandler.disable()
            torch.set_num_threads(1)  # the other threads are not in the fork
            probe()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def _refusing(function: Callable[..., Any], crash: Known) -> Callable[..., Any]:
    traced = crash.traced or function

    @wraps(function)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        if crash.applies(*args, **kwargs):
            pytest.xfail(crash.reason)
        return (traced if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return refusing


# without -n


def _in_forks(config: pytest.Config) -> int | None:
    """Run the tests in a fork, and after a crash the remaining tests in another fork."""
    asked: list[int] = []
    child = 0

    def pass_on(number: int, _: Any) -> None:
        asked.append(number)
        with suppress(ProcessLookupError):
            os.kill(child, number)

    past: dict[str, list[Any]] = {}
    crashed: dict[str, Crash] = {}
    with tempfile.TemporaryFile() as file:
        while True:
            handlers = {number: signal.getsignal(number) for number in _ASKED_TO_END}
            child = _fork()
            if child == 0:
                config.pluginmanager.register(Continued(config, file, past, crashed), "ocean-continued")
                return None
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the fork as well
            signal.signal(signal.SIGTERM, pass_on)
            status = os.waitpid(child, 0)[1]
            for number, handler in handlers.items():
                signal.signal(number, handler)
            running = _read(file, past)
            if running is None or asked or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in _ASKED_TO_END):
                return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            found = _again(config, running)
            if found is None:
                return None
            crashed[running] = found
            sys.stderr.write(f"\n{running}: {found.message}. The run continues after this test.\n")


END = ""
"""The name in the last record of a run that ends normally: after its last test, by Ctrl-C, or by an error of pytest."""


def _read(file: IO[bytes], past: dict[str, list[Any]]) -> str | None:
    """Take over the finished tests; return the unfinished one, if there is one."""
    running = None
    file.seek(0)
    with suppress(EOFError, pickle.UnpicklingError):  # the last record may be incomplete
        while True:
            name, reports = pickle.load(file)
            running = name if reports is None else None
            if reports is not None and name != END:
                past[name] = reports
    file.seek(0)
    file.truncate()
    return running


class Continued:
    """In the fork that runs the tests: records finished tests, and repeats the reports of an earlier fork."""

    def __init__(
        self, config: pytest.Config, file: IO[bytes], past: dict[str, list[Any]], crashed: dict[str, Crash]
    ) -> None:
        self.config, self.past, self.crashed = config, past, crashed
        self.descriptor = os.dup(file.fileno())  # the file itself is closed on the way back to pytest
        self.reports: list[Any] = []
        self.repeating = False

    def _write(self, name: str, reports: list[Any] | None) -> None:
        os.write(self.descriptor, pickle.dumps((name, reports)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Repeat the reports of a test that has already run, or record that a test begins."""
        name, hook = item.nodeid, item.ihook
        if name not in self.past and name not in self.crashed:
            self.reports = []
            self._write(name, None)
            return None
        self.repeating = True
        hook.pytest_runtest_logstart(nodeid=name, location=item.location)
        for report in self._reports(item):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=name, location=item.location)
        self.repeating = False
        return True

    def _reports(self, item: pytest.Item) -> list[Any]:
        if (crash := self.crashed.get(item.nodeid)) is None:
            read = self.config.hook.pytest_report_from_serializable
            return [read(config=self.config, data=data) for data in self.past[item.nodeid]]
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", None, "call")
        properties = [(name, value) for name, value in item.user_properties]
        Crash(crash.ended, crash.calls, properties).fill(report)
        return [report]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store a report."""
        if not self.repeating:
            write = self.config.hook.pytest_report_to_serializable
            self.reports.append(write(config=self.config, report=report))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Record that the run ends normally."""
        self._write(END, [])

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Record that a test has ended."""
        if not self.repeating:
            self._write(nodeid, self.reports)


# with -n


ASKS = pytest.StashKey[socket.socket]()
"""In the controller of workers: the connection for running a test again."""


def _beside_workers(config: pytest.Config) -> None:
    """Fork a process before the run, without threads and workers, which can be forked again for a test."""
    ours, theirs = socket.socketpair()
    if _fork():
        theirs.close()
        config.stash[ASKS] = ours
        config.add_cleanup(ours.close)
        return
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with theirs.makefile("rw", encoding="utf-8") as lines:
        for line in lines:
            found = _again(config, json.loads(line))
            if found is None:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return
            lines.write(json.dumps([found.ended, found.calls, found.properties]) + "\n")
            lines.flush()
    os._exit(0)


def of_worker(config: pytest.Config, name: str) -> Crash:
    """The crash of a test that ended its worker."""
    if (asks := config.stash.get(ASKS, None)) is None:
        return Crash()
    asks.sendall(f"{json.dumps(name)}\n".encode())
    answer = b""
    while not answer.endswith(b"\n") and (more := asks.recv(1 << 16)):
        answer += more
    if not answer:
        return Crash()
    ended, calls, properties = json.loads(answer)
    return Crash(ended, calls, [(key, value) for key, value in properties])


def scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's own distribution of tests, with one addition.

    A worker waits before its last test until it knows that no other test follows. A worker that replaces a crashed one
    and gets a single test, the last one of the run, would wait forever.
    """
    from xdist.scheduler import LoadScheduling

    class Scheduling(LoadScheduling):
        def schedule(self) -> None:
            super().schedule()
            if self.collection is not None and not self.pending:
                for node in self.nodes:
                    if not node.shutting_down:
                        node.shutdown()

    return Scheduling(config, log)


# running the crashed test again


class Noted:
    """In the fork that runs one test again: writes its properties and each call to a file before the call is made."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.properties: list[tuple[str, Any]] = []
        self.ended = False

    def write(self, calls: str) -> None:
        """Replace the content of the file."""
        text = json.dumps([self.ended, self.properties, calls]).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text, 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Record the properties, and start recording the calls."""
        self.properties = list(item.user_properties)
        self.write("")
        current().trace.noted = self.write

    def pytest_runtest_logfinish(self) -> None:
        """Record that the test has ended without ending the process."""
        self.ended = True
        self.write("")


def _again(config: pytest.Config, name: str) -> Crash | None:
    """Run a test again; return None in the fork that must run it."""
    with tempfile.TemporaryFile() as file:
        child = _fork()
        if child == 0:
            _run_only(config, name)
            config.pluginmanager.register(Noted(os.dup(file.fileno())), "ocean-noted")
            return None
        end = time.monotonic() + AGAIN
        while not (status := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Crash("and does not end again when it runs alone")
            select.select([], [], [], 0.02)
        file.seek(0)
        ended, properties, calls = json.loads(file.read() or b'[false, [], ""]')
        return Crash("" if ended else _in_words(status[1]), calls, [(key, value) for key, value in properties])


def _in_words(status: int) -> str:
    """The end of a process as text."""
    if not os.WIFSIGNALED(status):
        return f"with status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    return f"by signal {number} ({signal.Signals(number).name})"


def _run_only(config: pytest.Config, name: str) -> None:
    """Configure this process to run a single test without visible output."""
    # for the output of pytest; that of the tests is captured
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(os.devnull, "w")  # noqa: SIM115
    config.args[:] = [str(config.rootpath / name)]
    options = {
        "keyword": "",
        "markexpr": "",
        "deselect": None,
        "lf": False,
        "failedfirst": False,
        "stepwise": False,
        "randomly_reorganize": False,
        "numprocesses": 0,
        "dist": "no",
        "tx": [],
        "report": None,
        "xmlpath": None,
    }
    for option, value in options.items():
        if hasattr(config.option, option):
            setattr(config.option, option, value)
