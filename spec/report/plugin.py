"""The pytest plugin of the report: `--report DIR`, `--report-run RUN`, and the properties of JUnit XML.

With `-n` the workers send the reports of their tests to the controller, which collects them and writes the files. Each
worker records the documented values of its tests, and the first worker computes the drawings.
"""

import datetime
import importlib
import os
import platform
import re
import shlex
import time
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from reference.messages import counted
from spec.report import recording
from spec.support.clauses import CLAUSES

CATEGORIES = {"xfailed": "known failure", "xpassed": "failed"}
"""The report's names for outcomes of pytest; a known failure that passes is a failure."""
LAST = ("error", "failed")
"""Outcomes that a later phase of the same test does not replace."""
LONGEST = 6000
"""The largest length of a stored message, in characters."""
PASTE = "the last calls, to paste into Python"
"""The section of a failure with its reproduction."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the report."""
    group = parser.getgroup("trial")
    group.addoption("--report", metavar="DIR", help="write report.json and index.html, a page that works offline")
    group.addoption(
        "--report-run", metavar="RUN", help="a training's folder: its curves and confusion matrix are drawn"
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options before any test runs; an error ends the run with one line."""
    if hasattr(config, "workerinput"):
        if config.getoption("--report"):
            config.pluginmanager.register(Values(), "report-values")
        return
    if config.getoption("xmlpath", None):
        config.pluginmanager.register(Properties(), "report-properties")
    if (folder := config.getoption("--report")) is None:
        if config.getoption("--report-run"):
            raise pytest.UsageError("--report-run needs --report DIR")
        return
    from spec.report import drawings

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"--report {folder}: {error.strerror}") from None
    run = None
    if (name := config.getoption("--report-run")) is not None:
        try:
            run = drawings.training_run(Path(name))
        except (OSError, ValueError, KeyError) as error:
            raise pytest.UsageError(f"--report-run {name}: {error}") from None
    config.pluginmanager.register(Values(), "report-values")
    config.pluginmanager.register(Recorder(config, Path(folder), run), "report-recorder")


class Words(list[str]):
    """A list that JUnit XML writes as words instead of a Python list."""

    def __str__(self) -> str:
        return " ".join(map(str, self))


class Properties:
    """JUnit XML: clauses, level, aspect and components of each test as words, and no statistics of Hypothesis."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Convert lists to words before the XML is written."""
        report.user_properties = [
            (name, Words(value) if isinstance(value, list) and name != "measured" else value)
            for name, value in report.user_properties
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Remove Hypothesis's statistics of all tests, which are base64."""
        for plugin in session.config.pluginmanager.get_plugins():
            if type(plugin).__name__ == "LogXML":
                properties = plugin.global_properties
                properties[:] = [entry for entry in properties if not entry[0].startswith("hypothesis-statistics-")]


class Values:
    """Keeps the values that the test of a documented value compares, in the process that runs the test."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Keep the comparisons of a test that has a clause of a value."""
        names = [name for mark in item.iter_markers("clause") for name in mark.args]
        wanted = any(CLAUSES[name].kind == "value" for name in names)
        recording.start(wanted=wanted)
        try:
            return (yield)
        finally:
            if kept := recording.finish():
                item.user_properties.append(("measured", kept))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the worker's number of threads to the controller; the first worker computes the drawings too.

        The workers, unlike the controller, have imported the packages for the drawings, such as torchvision.
        """
        config = session.config
        if not hasattr(config, "workeroutput"):
            return
        config.workeroutput["ocean_threads"] = torch.get_num_threads()  # pyright: ignore[reportAttributeAccessIssue]
        if config.workerinput["workerid"] == "gw0":  # pyright: ignore[reportAttributeAccessIssue]
            from spec.report.drawings import drawings

            properties = [dict(item.user_properties) for item in session.items]
            config.workeroutput["ocean_drawings"] = drawings(implementations(config), properties)  # pyright: ignore[reportAttributeAccessIssue]


class Recorder:
    """Collects the reports of all tests, and writes the report when the session ends.

    Args:
        config: The configuration of the run.
        folder: Where the report is written.
        run: The return value of `drawings.training_run` for `--report-run`.
    """

    def __init__(self, config: pytest.Config, folder: Path, run: dict[str, Any] | None) -> None:
        self.config, self.folder, self.run = config, folder, run
        self.tests: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, list[str]] = {}
        self.ruled_out: set[str] = set()
        self.collected = 0
        self.threads = torch.get_num_threads()
        self.drawings: dict[str, Any] | None = None
        self.interrupted: str | None = None
        self.started = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        self.clock = time.monotonic()
        self.spent = 0.0
        self.written = False

    # the collected tests, and the reason of an early end

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the tests of a run without workers."""
        self.collected = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Count the tests of a run with workers, all of which collect the same."""
        self.collected = len(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Record the threads and the drawings of a worker."""
        output = getattr(node, "workeroutput", None) or {}
        self.threads = output.get("ocean_threads", self.threads)
        self.drawings = output.get("ocean_drawings", self.drawings)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note what interrupted the run: Ctrl-C, or `pytest.exit` with its text."""
        self.interrupted = why(excinfo.exconly())

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Record an error of pytest itself."""
        self.interrupted = str(excrepr).strip().splitlines()[-1]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a file that cannot be collected."""
        if report.failed:
            test = self._entry(report.nodeid, 0, {})
            test |= {"outcome": "error", "message": _short(report.longreprtext)}

    # the tests

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record one phase of one test."""
        begin = time.perf_counter()
        category = self.config.hook.pytest_report_teststatus(report=report, config=self.config)[0]
        test = self.tests.get(report.nodeid)
        if test is None:
            test = self._entry(report.nodeid, (report.location[1] or 0) + 1, dict(report.user_properties))
        test["duration"] = round(test["duration"] + report.duration, 4)
        if report.when == "call":
            properties = dict(report.user_properties)
            test["measured"] = properties.get("measured", [])
            test["own_work"] = properties.get("handed_over")
            self.faults[report.nodeid] = list(properties.get("faults", ()))  # pyright: ignore[reportArgumentType]
            self.ruled_out.update(properties.get("ruled_out", ()))  # pyright: ignore[reportArgumentType]
        if category and test["outcome"] not in LAST:
            test["outcome"] = CATEGORIES.get(category, category)
            test["message"] = _message(report)
            test |= {name: found for name, found in _sections(report).items() if found}
        self.spent += time.perf_counter() - begin

    def _entry(self, name: str, line: int, properties: dict[str, Any]) -> dict[str, Any]:
        """The entry of a test that has not ended yet."""
        self.tests[name] = {
            "id": name,
            "line": line,
            "environment": 0,
            "implementation": properties.get("implementation"),
            "clauses": list(properties.get("clauses", ())),
            "components": list(properties.get("components", ())),
            "level": properties.get("level"),
            "aspect": properties.get("aspect"),
            "outcome": None,
            "message": None,
            "reproduction": None,
            "diagnosis": None,
            "own_work": None,
            "measured": [],
            "duration": 0.0,
        }
        return self.tests[name]

    # the report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write report.json and index.html; a command line that pytest cannot run leaves an earlier report alone."""
        if self.config.getoption("collectonly") or session.exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        from spec.report import document, drawings, page

        begin = time.perf_counter()
        stopped = self.interrupted or session.shouldfail or session.shouldstop
        under_test = implementations(self.config)
        for test in self.tests.values():
            if test["outcome"] is None:
                test |= {"outcome": "error", "message": "the test did not end"}
        for name, text in diagnoses(self.faults, self.ruled_out).items():
            self.tests[name]["diagnosis"] = text
        if self.drawings is None:
            self.drawings = drawings.drawings(under_test, list(self.tests.values()))
        if self.run is not None:
            self.drawings["run"] = self.run
        tests = sorted(self.tests.values(), key=document.order)
        report: document.Report = {
            "format": document.FORMAT,
            "specification": document.specification(),
            "environments": [self._environment()],
            "runs": [
                {
                    "environment": 0,
                    "arguments": _arguments(self.config),
                    "started": self.started.isoformat().replace("+00:00", "Z"),
                    "seconds": round(time.monotonic() - self.clock, 1),
                    "exit_status": int(session.exitstatus),
                    "complete": not stopped and len(tests) >= self.collected and int(session.exitstatus) in (0, 1, 5),
                    "interrupted": str(stopped) if stopped else None,
                    "collected": self.collected,
                    "finished": len(tests),
                }
            ],
            "implementations": [document.implementation_entry(implementation) for implementation in under_test],
            "comparisons": document.comparisons(tests),
            "drawings": self.drawings,
            "tests": tests,
        }
        document.write(report, self.folder)
        page.write(report, self.folder)
        self.written = True
        self.spent += time.perf_counter() - begin

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the report is."""
        if self.written:
            terminalreporter.write_line(f"report: {self.folder / 'index.html'} ({self.spent:.1f} s)")

    def _environment(self) -> dict[str, Any]:
        """Everything that an outcome can depend on, besides the implementation."""
        from spec.report.document import versions
        from spec.support.run import current

        option = self.config.getoption
        device = torch.device(str(option("--device")))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        seed = option("randomly_seed", None)
        return {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions(),
            "device": str(device),
            "device_name": name,
            "processor": processor(),
            "threads": self.threads,
            "workers": len(option("tx", None) or []),
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in current().dtypes],
            "seed": None if seed is None else str(seed),
            "profile": hypothesis.settings.get_current_profile_name(),
        }


def implementations(config: pytest.Config) -> list[Any]:
    """The implementations under test."""
    from spec.support.plugin import Specification

    (plugin,) = (p for p in config.pluginmanager.get_plugins() if isinstance(p, Specification))
    return plugin.implementations


def why(text: str) -> str:
    """What ended a run, without the classes with which pytest and pytest-xdist stop themselves."""
    return re.sub(r"^[\w.]*Interrupted: ", "", text.strip())


def processor() -> str:
    """The processor's name and the vector instructions that PyTorch uses."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {counted(os.cpu_count() or 1, 'core')}"


def _arguments(config: pytest.Config) -> str:
    """The arguments of `pytest`, quoted for a shell."""
    return shlex.join(map(str, config.invocation_params.args))


def _message(report: pytest.TestReport) -> str | None:
    """The reason why a test did not pass."""
    if (reason := getattr(report, "wasxfail", None)) is not None:
        return _short(str(reason).removeprefix("reason: ")) or None
    if report.skipped and (because := dict(report.user_properties).get("because")):
        return _short(str(because))
    if report.skipped:
        found = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return _short(re.sub(r"^Skipped: ", "", str(found)))
    if not report.failed:
        return None
    if (message := dict(report.user_properties).get("message")) is not None:
        return _short(str(message))
    crash = getattr(report.longrepr, "reprcrash", None)
    return _short(crash.message if crash is not None else report.longreprtext)


def _sections(report: pytest.TestReport) -> dict[str, str]:
    """The reproduction of a failure: code that shows the difference, or the last calls."""
    if not report.failed:
        return {}
    return {"reproduction": _short(dict(report.user_properties).get("paste") or dict(report.sections).get(PASTE, ""))}  # pyright: ignore[reportArgumentType]


def diagnoses(faults: Mapping[str, Sequence[str]], ruled_out: Collection[str]) -> dict[str, str]:
    """The known mistakes that give the same numbers, by test, as text.

    For each test, the matching mistakes that explain the most tests of the run are named: at most two that cannot be
    distinguished.

    Args:
        faults: By test the mistakes of spec/faults that fit, as "module:class".
        ruled_out: The mistakes that a test which passes excludes.
    """
    fitting = {test: [name for name in names if name not in ruled_out] for test, names in faults.items()}
    explained = Counter(name for names in fitting.values() for name in names)
    found = {}
    for test, names in fitting.items():
        most = max((explained[name] for name in names), default=0)
        best = [name for name in names if explained[name] == most][:2]
        if best:
            found[test] = " or ".join(map(in_words, best))
    return found


def in_words(fault: str) -> str:
    """A mistake of spec/faults: its name and its docstring."""
    module, _, name = fault.partition(":")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    text = " ".join((getattr(importlib.import_module(module), name).__doc__ or "").split("\n\n")[0].split())
    return f"{words} ({text.removesuffix('.')})" if text else words


def _short(text: str) -> str:
    text = text.removeprefix("Failed: ").strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n… ({len(text) - LONGEST} characters more)"
