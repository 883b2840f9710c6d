"""Whether the tests detect a mutant: they run on a copy of the project, in a process forked from a prepared one.

The first run, on unchanged sources, records the lines that each test executes, with coverage.py. For a mutant only the
tests that execute the changed statement run, ordered by the share of them in each test file.
"""

import dataclasses
import gc
import importlib
import json
import os
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
from importlib.metadata import entry_points
from pathlib import Path

import coverage
import pytest

from spec.mutation.mutants import HELPERS, ROOT, Mutant

COPIED = (
    "reference",
    "spec",
    "scripts",
    "benchmarks",
    "docs",
    "notebooks",
    ".ci",
    ".github",
    ".vscode",
    ".devcontainer",
)
"""The folders of the project that tests read; and the files beside them."""
WARM = (
    *("torch", "torch.testing", "torch.utils.tensorboard", "torchvision", "torchvision.transforms", "scipy.stats"),
    *("hypothesis.strategies", "numpy", "PIL.Image", "safetensors.torch", "jaxtyping", "beartype", "tyro", "tqdm"),
    *("filelock", "platformdirs", "matplotlib.pyplot", "jinja2", "packaging.version", "lazy_loader"),
)
"""Third-party packages, imported once for all mutants."""
MEMORY = 8 * 2**30  # bytes of address space above that of the prepared process: a mutant may allocate any amount
OUTPUT = "pytest.txt"
"""What pytest printed last, beside the copy of the project."""
META = (
    *("spec/test_support.py", "spec/test_clauses.py", "spec/test_trial.py", "spec/test_report.py"),
    *("spec/test_report_document.py", "spec/test_report_compare.py"),
)
"""The tests that judge the helpers of the specification."""
ARGUMENTS = (
    *(
        "--impl",
        "reference,reference.definitions",
        "--hypothesis-profile",
        "faults",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
    ),
    *("-n", "0", "-x", "-q", "--no-header"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of plugins that are imported in advance
)


@dataclass
class Coverage:
    """The lines that each test executes, and the time of each test.

    Attributes:
        tests: The ids of the tests.
        lines: For each file and line number the tests that execute the line, as indices into `tests`.
        seconds: The processor time of each test.
        failing: The tests that fail on the unchanged sources; they are left out, for they would fail on every mutant.
    """

    tests: list[str] = field(default_factory=list)
    lines: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failing: list[str] = field(default_factory=list)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that can detect a mutant.

        No test is recorded for code that runs at import or in a worker process. Then the tests of the function around
        the change are used, and if there are none, all tests in the test files with a test that executes the module.
        """
        lines = self.lines.get(mutant.file, {})
        for first, last in mutant.spans:
            found = {test for line, tests in lines.items() if first <= line <= last for test in tests}
            if found:
                return sorted({self.tests[test] for test in found} - set(self.failing))
        files = {self.tests[test].partition("::")[0] for tests in lines.values() for test in tests}
        return sorted({test for test in self.tests if test.partition("::")[0] in files} - set(self.failing))

    def add(self, other: "Coverage") -> None:
        """Add the tests of another run."""
        offset = len(self.tests)
        self.tests += other.tests
        self.failing += other.failing
        self.seconds |= other.seconds
        for file, lines in other.lines.items():
            own = self.lines.setdefault(file, {})
            for line, tests in lines.items():
                own.setdefault(line, []).extend(offset + test for test in tests)

    def dumps(self) -> str:
        """The record as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Coverage":
        """The record that `dumps` has written."""
        read = json.loads(text)
        lines = {file: {int(line): tests for line, tests in of.items()} for file, of in read["lines"].items()}
        return cls(read["tests"], lines, read["seconds"], read["failing"])


@dataclass(frozen=True)
class Verdict:
    """The result of the tests for a mutant.

    Attributes:
        mutant: The mutant.
        by: The test that detects it, `a time limit`, or nothing.
        tests: Number of tests that execute the changed code.
        seconds: The time of the tests.
    """

    mutant: Mutant
    by: str
    tests: int
    seconds: float


def warm_up() -> None:
    """Import third-party packages and pytest's plugins, so that forked processes have them."""
    for name in WARM:
        with suppress(ImportError):
            importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()  # the garbage collector of a forked process need not visit, and thereby copy, all of this


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
    """A pytest plugin that records the lines that each test executes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sources = [str(folder / "reference"), str(folder / "spec/support")]
        self.tracer = coverage.Coverage(data_file=None, config_file=False, source=sources, messages=False)
        self.tests: list[str] = []
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        self.tracer.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.process_time()
        self.tracer.switch_context(str(len(self.tests)))
        try:
            result = yield
        finally:
            self.tracer.switch_context("")
            self.tests.append(item.nodeid)
            self.seconds[item.nodeid] = time.process_time() - began
        return result

    def coverage(self) -> Coverage:
        """What was recorded."""
        self.tracer.stop()
        data = self.tracer.get_data()
        lines: dict[str, dict[int, list[int]]] = {}
        for name in data.measured_files():
            by_line = data.contexts_by_lineno(name)
            found = {line: sorted(int(test) for test in tests if test) for line, tests in by_line.items()}
            lines[Path(name).relative_to(self.folder).as_posix()] = {
                line: tests for line, tests in found.items() if tests
            }
        return Coverage(self.tests, lines, self.seconds, sorted(self.failed))


def _pytest(folder: Path, arguments: list[str], plugins: list[object]) -> int:
    """Run pytest on the copy of the project, in this process, which is a forked one."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("spec", "reference", "scripts", "benchmarks")]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    os.environ.setdefault("CI", "true")
    with open(folder.parent / OUTPUT, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
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
    """Run the everyday tests of some files and record the lines that each test executes.

    Raises:
        RuntimeError: pytest ended without running the tests.
    """

    def task() -> str:
        recorder = _Recorder(folder)
        code = _pytest(folder, [*files, *(a for a in ARGUMENTS if a != "-x")], [recorder])
        ran = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        return recorder.coverage().dumps() if code in ran else ""

    if not (answer := _forked(task, limit)):
        printed = (folder.parent / OUTPUT).read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"pytest did not run {', '.join(files)} to the end:\n{printed[-4000:]}")
    return Coverage.loads(answer)


def judge(folder: Path, mutant: Mutant, recorded: Coverage) -> Verdict:
    """Run the tests that execute the changed code until one of them fails."""
    began = time.monotonic()
    tests = recorded.of(mutant)
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
            chosen = sorted((t for f in files for t in by_file[f]), key=lambda t: recorded.seconds.get(t, 0.0))
            normal = sum(recorded.seconds.get(test, 0.0) for test in chosen)
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
    nothing = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)  # the ids of some tests are drawn anew
    return selection.failed or ("nothing" if nothing else f"pytest, which ends with status {code}")
