"""Whether the tests detect a mutant: they run on a copy of the project, in a process forked from a prepared one.

The first run, on unchanged sources, records the functions that each test enters. For a mutant only the tests that enter
its function run, ordered by the share of them in each test file.
"""

import importlib
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from spec.mutation.mutants import HELPERS, ROOT, Mutant

COPIED = ("reference", "spec", "scripts", "benchmarks", "docs", "notebooks", ".ci", ".github")
"""The folders of the project that tests read; and the files beside them."""
WARM = (
    *("torch", "torch.testing", "torch.utils.tensorboard", "torchvision", "torchvision.transforms", "scipy.stats"),
    *("hypothesis.strategies", "numpy", "PIL.Image", "safetensors.torch", "jaxtyping", "beartype", "tyro", "tqdm"),
    *("filelock", "platformdirs", "matplotlib.pyplot", "jinja2", "packaging.version", "lazy_loader"),
)
"""Third-party packages, imported once for all mutants."""
MEMORY = 8 * 2**30  # bytes of address space above that of the prepared process: a mutant may allocate any amount
META = (
    *("spec/test_support.py", "spec/test_clauses.py", "spec/test_trial.py", "spec/test_report.py"),
    *("spec/test_report_document.py", "spec/test_report_compare.py"),
)
"""The tests that judge the helpers of the specification."""
ARGUMENTS = (
    *("--impl", "reference", "--hypothesis-profile", "faults", "-p", "no:randomly", "-p", "no:cacheprovider"),
    *("-p", "no:xdist", "-x", "-q", "--no-header", "--no-summary"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of plugins that are imported in advance
)


@dataclass
class Coverage:
    """The functions that each test enters, and the time of each test.

    Attributes:
        tests: For each `file::function` the tests that enter it.
        seconds: The processor time of each test.
    """

    tests: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that can detect a mutant.

        Code that runs at import, or in a worker process, is not recorded; then all tests that enter the file are used.
        """
        name = mutant.function
        while name:
            if found := self.tests.get(f"{mutant.file}::{name}"):
                return found
            name = name.rpartition(".")[0]
        prefix = f"{mutant.file}::"
        return sorted({test for key, tests in self.tests.items() if key.startswith(prefix) for test in tests})


@dataclass(frozen=True)
class Verdict:
    """The result of the tests for a mutant.

    Attributes:
        mutant: The mutant.
        by: The test that detects it, `a time limit`, or nothing.
        tests: How many tests enter the changed code.
        seconds: The time of the tests.
    """

    mutant: Mutant
    by: str
    tests: int
    seconds: float


def warm_up() -> None:
    """Import third-party packages, so that forked processes have them."""
    for name in WARM:
        with suppress(ImportError):
            importlib.import_module(name)


@contextmanager
def project() -> Iterator[Path]:
    """A copy of the project, in which sources may be changed."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder, "project")
        copy.mkdir()
        for path in ROOT.iterdir():
            if path.name in COPIED:
                shutil.copytree(path, copy / path.name)
            elif path.is_file():
                shutil.copy2(path, copy)
        yield copy


class _Selection:
    """A pytest plugin that runs the tests of a list, and records the first that fails."""

    def __init__(self, wanted: Counter[str]) -> None:
        self.wanted, self.failed = wanted, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.wanted), key=lambda item: self.wanted[item.nodeid]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"the collection of {report.nodeid}"


class _Recorder:
    """A pytest plugin that records the functions that each test enters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders = (f"{folder}/reference/", f"{folder}/spec/support/")
        self.entered: set[Any] = set()
        self.coverage = Coverage()
        self.names: dict[Any, str] = {}

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.startswith(self.folders):
            self.entered.add(frame.f_code)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.entered.clear()
        began = time.process_time()
        sys.settrace(self._note)
        try:
            result = yield
        finally:
            sys.settrace(None)
        self.coverage.seconds[item.nodeid] = time.process_time() - began
        for code in self.entered:
            name = re.sub(r"\.<\w+>", "", code.co_qualname)
            file = Path(code.co_filename).relative_to(self.folder).as_posix()
            tests = self.coverage.tests[f"{file}::{name}"]
            if not tests or tests[-1] != item.nodeid:
                tests.append(item.nodeid)
        return result


def _pytest(folder: Path, arguments: list[str], plugins: list[object]) -> int:
    """Run pytest on the copy of the project, in this process, which is a forked one."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("spec", "reference", "scripts", "benchmarks")]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    os.environ.setdefault("CI", "true")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    return int(pytest.main(arguments, plugins=plugins))


def _forked(task: Callable[[], str], limit: float) -> str | None:
    """The answer of a task that runs in a forked process; None if it does not end in time.

    A process that ends without an answer has crashed; the answer is then empty.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        answer = ""
        with suppress(BaseException):
            answer = task()
        with os.fdopen(writing, "w") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(writing)
    parts: list[bytes] = []
    end, late = time.monotonic() + limit, False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            late = True
            break
        if not (part := os.read(reading, 1 << 20)):
            break
        parts.append(part)
    os.close(reading)
    if late:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # its child processes
    late = late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
    return None if late else b"".join(parts).decode()


def record(folder: Path, files: list[str], limit: float = 3600.0) -> Coverage:
    """Run the everyday tests of some files and record the functions that each test enters."""

    def task() -> str:
        recorder = _Recorder(folder)
        _pytest(folder, [*files, *(a for a in ARGUMENTS if a != "-x")], [recorder])
        return json.dumps([recorder.coverage.tests, recorder.coverage.seconds])

    answer = _forked(task, limit)
    coverage = Coverage()
    tests, coverage.seconds = json.loads(answer or "[{}, {}]")
    if not coverage.seconds:
        raise RuntimeError(f"no test of {', '.join(files)} ran to its end: nothing can be judged by them")
    coverage.tests.update(tests)
    return coverage


def judge(folder: Path, mutant: Mutant, coverage: Coverage) -> Verdict:
    """Run the tests that enter the changed code until one of them fails."""
    began = time.monotonic()
    tests = coverage.of(mutant)
    if mutant.file in HELPERS:  # no test of a right implementation detects a helper that accepts too much
        tests = [test for test in tests if test.partition("::")[0] in META]
    by_file: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        by_file[test.partition("::")[0]].append(test)
    order = sorted(by_file, key=lambda file: -len(by_file[file]))
    path = folder / mutant.file
    original = path.read_bytes()
    stat = path.stat()
    try:
        path.write_bytes(mutant.source())
        os.utime(path, (0, zlib.crc32(mutant.id.encode()) % 2**30))  # cached bytecode must not be used for this file
        for files in (order[:1], order[1:4], order[4:]):
            if not files:
                continue
            chosen = sorted((t for f in files for t in by_file[f]), key=lambda t: coverage.seconds.get(t, 0.0))
            normal = sum(coverage.seconds.get(test, 0.0) for test in chosen)
            seconds = int(30 + 6 * normal)  # processor time: a busy machine must not look like an endless loop
            by = _forked(lambda f=files, c=chosen, s=seconds: _noticed(folder, f, c, s), 20 * seconds)
            if by is None or by != "nothing":
                name = "a time limit" if by is None else by or "a crash"
                return Verdict(mutant, name, len(tests), time.monotonic() - began)
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return Verdict(mutant, "", len(tests), time.monotonic() - began)


def _noticed(folder: Path, files: list[str], tests: list[str], seconds: int) -> str:
    """The first of the tests that fails, or `nothing`; the process is ended after `seconds` of processor time."""
    import resource  # Windows lacks it, and has no forks either

    used_before = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used_before + seconds, used_before + seconds + 5))
    sys.dont_write_bytecode = True
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    selection = _Selection(Counter({test: number for number, test in enumerate(tests)}))
    code = _pytest(folder, [*files, *ARGUMENTS], [selection])
    return selection.failed or ("nothing" if code == 0 else f"pytest, which ends with status {code}")
