"""What pytest needs to know about this project before it collects: the options of a trial, its fixtures, its report."""

import gc
import os
import platform
import random
import re
import tomllib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from spec.support import report as trial_report
from spec.support import simulated_device
from spec.support.clauses import CLAUSES
from spec.support.implementations import COMPONENTS, Component, Implementation, ImplementationError, load
from spec.support.strategies import DTYPES, TRACE, seed_all

pytest_plugins = ["spec.support.versions", "spec.support.gpu"]

IMPLEMENTATIONS = pytest.StashKey[list[Implementation]]()
ABSENT = pytest.StashKey[list[str]]()

ON_ANY_DEVICE = re.compile(r"test_(0[789]|1[0-5])_")
"""The chapters whose components compute where their tensors are; files, data sets and scripts begin on the host."""

_common = hypothesis.settings(
    deadline=None,  # time says nothing on a busy machine; a hang is pytest-timeout's business
    # a class of tests that others inherit runs the same test on several objects, none of which keeps anything
    suppress_health_check=[hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.register_profile("dev", _common, max_examples=25)
hypothesis.settings.register_profile("ci", _common, max_examples=100, derandomize=True, database=None)
hypothesis.settings.register_profile("thorough", _common, max_examples=2000)
hypothesis.settings.register_profile("gpu", _common, max_examples=25, derandomize=True, database=None)
hypothesis.settings.register_profile(  # only whether a wrong implementation is caught, not how simply
    "faults",
    parent=hypothesis.settings.get_profile("ci"),
    phases=[hypothesis.Phase.generate],
    report_multiple_bugs=False,
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of a trial."""
    group = parser.getgroup("trial")
    group.addoption(
        "--impl",
        metavar="NAME[,NAME]",
        help="on trial: reference, torch, torch-compile, a dotted module, a .py file (default: reference,torch)",
    )
    group.addoption("--impl-complete", action="store_true", help="a component that is absent fails")
    group.addoption("--device", default="cpu", help="where the tensors of chapters 07 to 15 are; others are left out")
    group.addoption("--gpu-rehearsal", action="store_true", help="the tests marked gpu, on the CPU, at reduced size")
    group.addoption("--dtype", metavar="NAME[,NAME]", help="floating-point types of the properties (default: all four)")
    group.addoption(
        "--known-failures", metavar="FILE", help='TOML: "test id" = "reason"; each must match a test, and it must fail'
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load what is on trial; what cannot be loaded ends the run at once, in one line."""
    gc.disable()  # until all is collected: importing leaves little behind
    if (worker := getattr(config, "workerinput", None)) is not None:  # the workers of -n share the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // worker["workercount"]))
    config.addinivalue_line("markers", "clause(*ids): the clauses of clauses.toml that the test holds to")
    names = [name for name in (config.getoption("--impl") or "reference,torch").split(",") if name]
    try:
        config.stash[IMPLEMENTATIONS] = [load(name) for name in names]
    except ImplementationError as error:
        raise pytest.UsageError(str(error)) from None
    ids = [implementation.id for implementation in config.stash[IMPLEMENTATIONS]]
    if not ids or len(set(ids)) < len(ids):
        raise pytest.UsageError(f"--impl needs different names, got {config.getoption('--impl')!r}")
    if (chosen := config.getoption("--dtype")) is not None:
        known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
        if unknown := [name for name in chosen.split(",") if name not in known]:
            raise pytest.UsageError(f"--dtype must be among {', '.join(known)}, got {', '.join(unknown)}")
        DTYPES[:] = [known[name] for name in chosen.split(",")]
    if config.getoption("--device") == simulated_device.NAME:
        simulated_device.register()
    try:
        device = torch.device(str(config.getoption("--device")))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise pytest.UsageError(f"--device {config.getoption('--device')}: {str(error).splitlines()[0]}") from None
    if device.type != "cpu":  # the mode costs a little on every call
        torch.set_default_device(device)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What the outcome depends on."""
    shown = [f"{i.name} {i.version}".strip() for i in config.stash[IMPLEMENTATIONS]]
    return [
        f"on trial: {', '.join(shown)}",
        f"torch {torch.__version__}, Python {platform.python_version()}, device {config.getoption('--device')}, "
        f"{torch.get_num_threads()} threads, {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}, "
        f"seed {config.getoption('randomly_seed', 'not set')}",
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for a component is run for each implementation."""
    if "implementation" in metafunc.fixturenames:
        implementations = metafunc.config.stash[IMPLEMENTATIONS]
        if "benchmark" in metafunc.fixturenames and not metafunc.config.getoption("--impl"):
            implementations = [*implementations, load("torch-compile")]  # what is timed is timed compiled as well
        metafunc.parametrize(
            "implementation", implementations, ids=[i.id for i in implementations], scope="session", indirect=True
        )


@pytest.fixture(scope="session")
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """The implementation on trial."""
    return request.param


def accelerator() -> torch.device | None:
    """The card of this machine, if it has one."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps") if torch.backends.mps.is_available() else None


@pytest.fixture(scope="session")
def rehearsal(request: pytest.FixtureRequest) -> bool:
    """Whether the CPU plays the card: then everything is smaller."""
    return bool(request.config.getoption("--gpu-rehearsal"))


@pytest.fixture(scope="session")
def card(rehearsal: bool) -> torch.device:
    """Where a test marked gpu computes; without a card it is skipped before it asks."""
    return torch.device("cpu") if rehearsal else accelerator() or torch.device("cpu")


def _component_fixture(name: str) -> Callable[..., Any]:
    @pytest.fixture(scope="session", name=name)
    def component(implementation: Implementation) -> Component:
        return implementation.component(name, TRACE)

    return component


for _name in COMPONENTS:
    globals()[f"component_{_name}"] = _component_fixture(_name)


@pytest.fixture(autouse=True)
def _randomness() -> Iterator[None]:
    """Every test begins with the same random numbers, and leaves those of the others alone."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(0)
    TRACE.clear()
    yield
    TRACE.clear()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _trial_of(item: pytest.Item) -> Implementation | None:
    return getattr(item, "callspec", None) and item.callspec.params.get("implementation")  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note what each test judges and lacks; apply the known failures; leave out what judges nobody that was named."""
    named, elsewhere = config.getoption("--impl"), config.getoption("--device") != "cpu"
    chosen, left_out = [], []
    for item in _in_order(items):
        if elsewhere and item.path.parent.name == "spec" and not ON_ANY_DEVICE.match(item.path.name):
            left_out.append(item)
            continue
        if (implementation := _trial_of(item)) is None:
            (chosen if not named or "reference" in named.split(",") else left_out).append(item)
            continue
        components = [name for name in getattr(item, "fixturenames", ()) if name in COMPONENTS]
        absent = [name for name in components if name not in implementation.components]
        item.stash[ABSENT] = absent
        item.user_properties += [
            ("implementation", implementation.id), ("components", components), ("absent", absent)
        ]  # fmt: skip
        chosen.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    items[:] = chosen
    if (path := config.getoption("--known-failures")) is not None:
        _apply_known_failures(Path(path), items, whole=not any("::" in str(argument) for argument in config.args))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported and collected stays: the garbage collector need not look through it again and again."""
    gc.freeze()
    gc.enable()


def _in_order(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The trial's own tests first: they say what a verdict is worth, and each starts a pytest and waits for it.

    The runs of a property follow each other, whoever is judged: they share their examples.
    """
    items = sorted(items, key=lambda item: bool(re.match(r"test_\d", item.path.name)))
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        function = getattr(item, "function", None)
        groups.setdefault(function if hasattr(function, "hypothesis") else item, []).append(item)
    return [item for group in groups.values() for item in group]


def _apply_known_failures(path: Path, items: list[pytest.Item], *, whole: bool) -> None:
    """Expect the tests that the file names to fail.

    An entry must match a test exactly, unless its file is not part of this run.
    """
    try:
        reasons = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise pytest.UsageError(f"--known-failures {path}: {error}") from None
    by_id = {item.nodeid: item for item in items}
    files = {name.partition("::")[0] for name in by_id}
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise pytest.UsageError(f"--known-failures {path}: {name!r} needs a reason in words, got {reason!r}")
        item = by_id.get(name)
        if item is None:
            file = name.partition("::")[0]
            if (file in files and whole) or not Path(file).is_file():
                raise pytest.UsageError(f"--known-failures {path}: {name!r} matches no test")
            continue
        if item.stash.get(ABSENT, []):
            raise pytest.UsageError(f"--known-failures {path}: {name!r} is absent, it cannot fail")
        item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of what the implementation lacks is not run, nor one that needs a card where there is none."""
    if item.get_closest_marker("gpu") and not item.config.getoption("--gpu-rehearsal") and accelerator() is None:
        pytest.skip("there is no accelerator here; --gpu-rehearsal runs the same on the CPU, at reduced size")
    if absent := item.stash.get(ABSENT, []):
        implementation = _trial_of(item)
        assert implementation is not None  # only tests on trial lack anything
        text = f"absent: {implementation.name} does not define {', '.join(absent)}"
        if item.config.getoption("--impl-complete"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say with every failure what it is about and how to repeat it."""
    report = yield
    if report.failed and call.when == "call":
        ids = [name for mark in item.iter_markers("clause") for name in mark.args]
        if ids:
            report.sections.append(("what the specification says", "\n".join(str(CLAUSES[name]) for name in ids)))
        if text := TRACE.text():
            report.sections.append(("the last calls, to paste into Python", text))
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Absent is an outcome of its own."""
    if report.when == "setup" and report.skipped and dict(report.user_properties).get("absent"):
        return "absent", "a", "ABSENT"
    return None


def _trials(config: pytest.Config) -> dict[str, trial_report.Trial]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return trial_report.collect(reporter.stats, [i.id for i in config.stash[IMPLEMENTATIONS]]) if reporter else {}


def _empty(config: pytest.Config) -> list[str]:
    """The implementations that ought to have been judged and were not.

    Of those that nobody named it is enough that one was: PyTorch lacks all components of some chapters.
    """
    trials = _trials(config)
    if config.getoption("--impl") is not None:
        return [name for name, trial in trials.items() if not trial.judged]
    if any(trial.judged for trial in trials.values()):
        return []
    return [name for name, trial in trials.items() if trial.outcomes["absent"]]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """An implementation of which nothing was judged has not passed."""
    if hasattr(session.config, "workerinput") or exitstatus != 0 or session.config.getoption("collectonly"):
        return
    if _empty(session.config):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The report of the trial."""
    trials = _trials(config)
    named = config.getoption("--impl") is not None
    if not named and not any(trial.outcomes for trial in trials.values()):
        return
    terminalreporter.section("trial")
    for line in trial_report.lines(trials, every_component=named or (config.getoption("verbose") or 0) > 0):
        terminalreporter.write_line(line)
    for name in _empty(config):
        terminalreporter.write_line(f"empty run: nothing of {name} was judged", red=True)
