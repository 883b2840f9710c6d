"""The pytest plugin of the specification: options, implementations under test, fixtures, outcomes, report."""

import gc
import os
import pickle
import platform
import random
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from reference.messages import counted
from reference.text import width
from spec.support import crashes, isolation, lessons, simulated_device, versions
from spec.support import report as trial_report
from spec.support.clauses import ASPECTS, CLAUSES, LEVELS
from spec.support.diagnosis import Diagnosis, Example, example_of, runs_again, sentence
from spec.support.implementations import COMPONENTS, Component, Implementation, ImplementationError, load
from spec.support.levels import LOW_PRECISION, OBSERVATIONS, aspect_of, level_of
from spec.support.outcomes import NotClaimed, NotJudged, judged_nothing
from spec.support.own_work import handed_over
from spec.support.patience import GaveUp, Patience
from spec.support.run import DTYPES, RUN, Run, current
from spec.support.strategies import seed_all

ABSENT = pytest.StashKey[list[str]]()
"""The components that a test needs and its implementation does not define."""

OUTLINED = pytest.StashKey[bool]()
"""Whether another process imports the file under test."""

KNOWN_FAILURES = tuple(Path(__file__).parents[1] / "known_failures" / name for name in ("torch.toml", "outside.toml"))
"""The known failures of third-party implementations, by implementation and type of device."""

ON_ANY_DEVICE = re.compile(r"test_(0[789]|1[0-5])_")
"""The chapters with components that compute on the device of their tensors. Files and scripts use the CPU."""

PACKED = "packed report"
"""The key of a report that a worker of pytest-xdist sends to the controller."""

LONGEST_ID = 60
"""A parameter with a longer `repr` is numbered in the id of its test."""

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}

_common = hypothesis.settings(
    deadline=None,  # timings on a shared machine are unreliable; pytest-timeout detects a hang
    # a test inherited by several classes runs on several stateless objects; examples that an implementation does not
    # offer are discarded, even if there are many
    suppress_health_check=[
        hypothesis.HealthCheck.differing_executors,
        hypothesis.HealthCheck.filter_too_much,
    ],
)
hypothesis.settings.register_profile("dev", _common, max_examples=25)
hypothesis.settings.register_profile("ci", _common, max_examples=100, derandomize=True, database=None)
hypothesis.settings.register_profile("thorough", _common, max_examples=2000)
hypothesis.settings.register_profile("gpu", _common, max_examples=25, derandomize=True, database=None)
# only the rejection of a wrong implementation matters, not the simplicity of the example
hypothesis.settings.register_profile(
    "faults",
    parent=hypothesis.settings.get_profile("ci"),
    phases=[hypothesis.Phase.generate],
    report_multiple_bugs=False,
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a trial."""
    group = parser.getgroup("trial")
    group.addoption(
        "--impl",
        metavar="NAME[,NAME]",
        help="implementations under test: reference, reference.definitions, torch, torch-compile, a dotted module, "
        "a .py file "
        "(default: reference,torch)",
    )
    group.addoption(
        "--level", choices=LEVELS, default="pytorch",
        help="judge up to this level: tutorial (what the chapter shows), definition (the properties), pytorch (all)",
    )  # fmt: skip
    group.addoption("--aspect", metavar="NAME[,NAME]", help=f"judge only these aspects: {', '.join(ASPECTS)}")
    group.addoption(
        "--without",
        metavar="NAME[,NAME]",
        help=f"leave out these aspects, {LOW_PRECISION} (float16 and bfloat16), or {OBSERVATIONS} (what PyTorch does "
        "and its documentation does not promise)",
    )
    group.addoption(
        "--all-failures", action="store_true",
        help="print every failure of an implementation in full; by default only the first, and the others by cause",
    )  # fmt: skip
    group.addoption("--own-work", action="store_true", help="a component that PyTorch, NumPy or SciPy computes fails")
    group.addoption("--impl-complete", action="store_true", help="an absent component fails")
    group.addoption(
        "--device", default="cpu", help="the device of the tensors in chapters 07 to 15; other chapters are left out"
    )
    group.addoption("--gpu-rehearsal", action="store_true", help="run the tests marked gpu on the CPU, at reduced size")
    group.addoption("--dtype", metavar="NAME[,NAME]", help="floating-point types of the properties (default: all four)")
    group.addoption(
        "--known-failures", metavar="FILE", help='TOML: "test id" = "reason"; each must match a test, and it must fail'
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the implementations under test and start the run. An error ends the run with one line."""
    if (worker := getattr(config, "workerinput", None)) is not None:  # the workers of -n share the cores
        share = max(1, (os.cpu_count() or 1) // worker["workercount"])
        torch.set_num_threads(min(torch.get_num_threads(), share))  # OMP_NUM_THREADS may request fewer
    crashes.avoid()
    config.addinivalue_line("markers", "clause(*ids): the clauses of clauses.toml that the test verifies")
    config.addinivalue_line("markers", f"level(name): another level than that of the first clause: {LEVELS}")
    config.addinivalue_line("markers", f"aspect(name): another aspect than that of the first clause: {ASPECTS}")
    implementations = _implementations(config)
    RUN.set(Run(_dtypes(config), seed=_seed(config), level=str(config.getoption("--level"))))
    for option in ("--aspect", "--without"):
        _names(config, option)  # so that a wrong name ends the run here
    _choose_device(config)
    if not all(implementation.known for implementation in implementations):
        _teach(config)
    config.pluginmanager.register(Components())
    config.pluginmanager.register(Specification(config, implementations))


def _teach(config: pytest.Config) -> None:
    """Configure pytest for a user's implementation: teaching order, and only the output of `lessons`."""
    config.option.randomly_reorganize = False
    # a warning about a file that is never closed
    for kind in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{kind}")
    if not config.getoption("--all-failures"):
        config.option.tbstyle = "no"
        config.option.reportchars = ""
        config.option.disable_warnings = True


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Prepare for crashes, and start a separate process for a user's file, before pytest-xdist starts its workers."""
    if config.getoption("randomly_seed", None) == "default":  # every process of the run needs the same
        config.option.randomly_seed = random.Random().getrandbits(32)
    isolated = isolation.wanted(config, (config.getoption("--impl") or "").split(","))  # pyright: ignore[reportArgumentType]
    if isolated:
        config.option.numprocesses = 1
    status = crashes.watch(config)
    config.stash[OUTLINED] = isolated and config.option.numprocesses == 1
    return status


def _seed(config: pytest.Config) -> int | str:
    """The seed of the examples of all properties: the seed in the header, or that of `--hypothesis-seed`."""
    if (asked := config.getoption("hypothesis_seed", None)) is not None:
        return asked
    given = getattr(config, "workerinput", {}).get("randomly_seed", config.getoption("randomly_seed", None))
    return given if isinstance(given, int) else random.getrandbits(32)


def _implementations(config: pytest.Config) -> list[Implementation]:
    names = [name for name in (config.getoption("--impl") or "reference,torch").split(",") if name]
    try:
        read = isolation.outline if config.stash.get(OUTLINED, False) else load
        implementations = [read(name) for name in names]
    except ImplementationError as error:
        raise pytest.UsageError(str(error)) from None
    ids = [implementation.id for implementation in implementations]
    if not ids or len(set(ids)) < len(ids):
        raise pytest.UsageError(f"--impl needs different names, got {config.getoption('--impl')!r}")
    return implementations


def _dtypes(config: pytest.Config) -> tuple[torch.dtype, ...]:
    if (chosen := config.getoption("--dtype")) is None:
        precise = config.getoption("--level") != "pytorch" or LOW_PRECISION in _names(config, "--without")
        return tuple(dtype for dtype in DTYPES if not (precise and dtype in LOW))
    if unknown := [name for name in chosen.split(",") if name not in DTYPE_NAMES]:
        raise pytest.UsageError(f"--dtype must be among {', '.join(DTYPE_NAMES)}, got {', '.join(unknown)}")
    return tuple(DTYPE_NAMES[name] for name in chosen.split(","))


WATCHED = 3
"""The number of tests of a component that run once more to find the functions that compute it."""
LOW = (torch.float16, torch.bfloat16)


def _names(config: pytest.Config, option: str) -> list[str]:
    """The aspects in an option."""
    names = [name for name in (config.getoption(option) or "").split(",") if name]
    known = ASPECTS if option == "--aspect" else (*ASPECTS, LOW_PRECISION, OBSERVATIONS)
    if unknown := [name for name in names if name not in known]:
        raise pytest.UsageError(f"{option} must be among {', '.join(known)}, got {', '.join(unknown)}")
    return names


def _not_claimed(item: pytest.Item, config: pytest.Config) -> str | None:
    """The reason why the user's options exclude a test, or None."""
    properties = dict(item.user_properties)
    level, aspect = properties["level"], properties["aspect"]
    if LEVELS.index(level) > LEVELS.index(config.getoption("--level")):
        return f"level {level}"
    aspects, without = _names(config, "--aspect"), _names(config, "--without")
    if (aspects and aspect not in aspects) or aspect in without:
        return f"aspect {aspect}"
    if OBSERVATIONS in without and any(CLAUSES[name].kind == "observation" for name in properties["clauses"]):  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        return OBSERVATIONS
    callspec = getattr(item, "callspec", None)
    dtypes = [] if callspec is None else [v for v in callspec.params.values() if isinstance(v, torch.dtype)]
    precise = not any(dtype in current().dtypes for dtype in LOW)
    return LOW_PRECISION if precise and any(dtype in LOW for dtype in dtypes) else None


def _choose_device(config: pytest.Config) -> None:
    name = str(config.getoption("--device"))
    if name == simulated_device.NAME:
        simulated_device.register()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise pytest.UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type != "cpu":  # because the mode adds a little time to every call
        torch.set_default_device(device)


def accelerator() -> torch.device | None:
    """The GPU of this machine, or None."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps") if torch.backends.mps.is_available() else None


@pytest.fixture(scope="session")
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """The implementation under test."""
    return request.param


@pytest.fixture(scope="session")
def rehearsal(request: pytest.FixtureRequest) -> bool:
    """Whether the CPU replaces the GPU; tests then use smaller sizes."""
    return bool(request.config.getoption("--gpu-rehearsal"))


@pytest.fixture(scope="session")
def gpu(rehearsal: bool) -> torch.device:
    """The device of a test marked gpu. Without a GPU such a test is skipped before it asks for the device."""
    return torch.device("cpu") if rehearsal else accelerator() or torch.device("cpu")


@pytest.fixture(autouse=True)
def _randomness() -> Iterator[None]:
    """Start every test with the same random state; pytest-randomly does it for `random` and NumPy."""
    trace = current().trace
    seed_all(0)
    trace.clear()
    yield
    trace.clear()


def _component_fixture(name: str) -> Callable[..., Any]:
    @pytest.fixture(scope="session", name=name)
    @staticmethod
    def component(implementation: Implementation) -> Component:
        return implementation.component(name, current().trace)

    return component


@pytest.fixture
def component(request: pytest.FixtureRequest, implementation: Implementation) -> Component:
    """The component that a test is parametrized with, by its name."""
    return implementation.component(request.param, current().trace)


Components = type("Components", (), {name: _component_fixture(name) for name in COMPONENTS})
"""A plugin with one fixture per component: a test asks for `conv2d` by its name."""


def _implementation_of(item: pytest.Item) -> Implementation | None:
    return getattr(item, "callspec", None) and item.callspec.params.get("implementation")  # pyright: ignore[reportAttributeAccessIssue]


def is_own(name: str) -> bool:
    """Whether an implementation belongs to this project; then its warnings are errors.

    The warnings of other implementations, such as the DeprecationWarning of a library that they use, are shown in the
    summary and fail no test: a test judges values.
    """
    return name.partition(".")[0] == "reference"


def _is_plain(value: object) -> bool:
    """Whether a parameter consists of numbers, texts and None, so that every process prints it alike."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or type(value) in (bool, int, float, str)


class Specification:
    """The hooks of one run.

    Args:
        config: The configuration of the run.
        implementations: The implementations under test.
    """

    def __init__(self, config: pytest.Config, implementations: list[Implementation]) -> None:
        self.config = config
        self.implementations = implementations
        self.named: str | None = config.getoption("--impl")
        self.diagnoses = {i.id: Diagnosis() for i in implementations if not i.known}
        self.patience = Patience()
        self.guard = isolation.Guard()
        self.watched: Counter[str] = Counter()
        self.handed_over: dict[str, set[str]] = defaultdict(set)
        self.teaches = bool(self.diagnoses) and not config.getoption("--all-failures")

    def pytest_report_header(self) -> list[str]:
        """The environment that the outcome depends on."""
        shown = ", ".join(f"{i.name} {i.version}".strip() for i in self.implementations)
        option = self.config.getoption
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in current().dtypes)
        return [
            f"under test: {shown}",
            *(
                f"not tested: {i.name} imports {', '.join(i.left_out)} from PyTorch"
                for i in self.implementations
                if i.left_out
            ),
            f"torch {torch.__version__}, Python {platform.python_version()}, device {option('--device')}, "
            f"{counted(torch.get_num_threads(), 'thread')}, {dtypes}, seed {option('randomly_seed', 'not set')}",
        ]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test that asks for a component once per implementation."""
        if "implementation" in metafunc.fixturenames:
            implementations = self.implementations
            if "benchmark" in metafunc.fixturenames and not self.named:
                implementations = [*implementations, load("torch-compile")]  # benchmarks time compiled code as well
            metafunc.parametrize(
                "implementation", implementations, ids=[i.id for i in implementations], scope="session", indirect=True
            )

    def pytest_make_parametrize_id(self, val: object, argname: str) -> str | None:
        """`padding=0.5` instead of `0.5`, and `size=(3, 4)` instead of `size0`: the id of a value that has none."""
        if isinstance(val, torch.dtype):
            return str(val)
        shown = repr(val) if not isinstance(val, str) and _is_plain(val) else None
        return f"{argname}={shown}" if shown and len(shown) <= LONGEST_ID and shown.isprintable() else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Record the components of each test, apply the known failures, and drop tests without implementation."""
        elsewhere = self.config.getoption("--device") != "cpu"
        chosen, left_out = [], []
        for item in _in_order(items):
            if elsewhere and item.path.parent.name == "spec" and not ON_ANY_DEVICE.match(item.path.name):
                left_out.append(item)
                continue
            item.user_properties += [
                ("clauses", [name for mark in item.iter_markers("clause") for name in mark.args]),
                ("level", level_of(item)),
                ("aspect", aspect_of(item)),
                ("title", lessons.title(item.name)),
            ]
            if (implementation := _implementation_of(item)) is None:
                (chosen if not self.named or "reference" in self.named.split(",") else left_out).append(item)
                continue
            parameter = item.callspec.params.get("component")  # pyright: ignore[reportAttributeAccessIssue]
            components = [name for name in (*getattr(item, "fixturenames", ()), parameter) if name in COMPONENTS]
            absent = [name for name in components if name not in implementation.components]
            item.stash[ABSENT] = absent
            item.user_properties += [
                ("implementation", implementation.id), ("components", components), ("absent", absent)
            ]  # fmt: skip
            if not is_own(implementation.name):
                # before the marks of the test, so that its own warning filters have precedence
                item.add_marker(pytest.mark.filterwarnings("default"), append=False)
            chosen.append(item)
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
        items[:] = chosen
        for number, item in enumerate(items):
            item.user_properties.append(("order", number))
        whole = not any("::" in str(argument) for argument in self.config.args)
        for path in KNOWN_FAILURES:
            for name, devices in tomllib.loads(path.read_text(encoding="utf-8")).items():
                if name in [implementation.name for implementation in self.implementations]:
                    reasons = devices.get(torch.device(str(self.config.getoption("--device"))).type, {})
                    here = {test: reason for test, reason in reasons.items() if not versions.is_free_of(test)}
                    _expect_failures(path.name, here, items, whole=whole)
        if (path := self.config.getoption("--known-failures")) is not None:
            _apply_known_failures(Path(path), items, whole=whole)

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Collect the tests without garbage collections, and exclude them and the imported modules from later ones.

        They live until the end. Each full collection would visit them again, also those at the end of pytest: a fifth
        of the CPU time of 2,456 tests with -n 2.
        """
        gc.disable()
        try:
            return (yield)
        finally:
            gc.enable()
            gc.collect()
            gc.freeze()

    @pytest.hookimpl(wrapper=True, optionalhook=True)
    def pytest_report_to_serializable(self) -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
        """Pack a report into one value, because pytest-xdist encodes and decodes each value in Python."""
        data = yield
        return data and {PACKED: pickle.dumps(data)}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_from_serializable(self, data: dict[str, Any]) -> Generator[None, Any, Any]:
        """Unpack a report of a worker of this run."""
        if PACKED in data:
            data.update(pickle.loads(data.pop(PACKED)))
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a test of an absent component, and a test that needs a GPU on a machine without one."""
        if item.get_closest_marker("gpu") and not self.config.getoption("--gpu-rehearsal") and accelerator() is None:
            pytest.skip("there is no accelerator here; --gpu-rehearsal runs the same on the CPU, at reduced size")
        implementation = _implementation_of(item)
        run = current()
        run.file = run.namespace = None
        # the project's own implementations and PyTorch offer everything
        if implementation is not None and not implementation.known:
            run.file, run.namespace = implementation.file, implementation.namespace
        if absent := item.stash.get(ABSENT, []):
            assert implementation is not None  # only tests of an implementation have absent components
            text = f"absent: {implementation.name} does not define {', '.join(absent)}"
            if self.config.getoption("--impl-complete"):
                pytest.fail(text, pytrace=False)
            pytest.skip(text)
        if implementation is not None and (because := _not_claimed(item, self.config)) is not None:
            raise NotClaimed(because)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Convert an error that means that the test cannot be judged into its outcome."""
        run = current()
        run.example = run.difference = None
        try:
            if run.file is None:
                yield
            else:
                with self.patience.watch():
                    yield from self._guarded(item)
        except GaveUp as error:
            failure = pytest.fail.Exception(str(error), pytrace=False)
            self._explain(item, failure, again=False)
            raise failure from None
        except NotJudged as error:
            if "implementation" not in item.fixturenames:  # pyright: ignore[reportAttributeAccessIssue]
                raise pytest.fail.Exception(f"{error.msg}, but the test is about no implementation") from error
            raise
        except (Exception, pytest.fail.Exception) as error:
            nothing = judged_nothing(error, run.file, run.namespace)
            if nothing is not None:
                raise nothing from None
            self._explain(item, error)
            raise
        diagnosis = self._diagnosis(item)
        if diagnosis is not None and (example := example_of(item, failing=False)) is not None:
            item.user_properties.append(("ruled_out", [name for _, name in diagnosis.passed(example)]))
            self._watch_the_work(item, example)

    def _guarded(self, item: pytest.Item) -> Generator[None, None, None]:
        """Run a test; fail it if the implementation changed protected process state.

        Raises:
            pytest.fail.Exception: the state was changed; the change is undone.
        """
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
        patches = "monkeypatch" in item.funcargs  # pyright: ignore[reportAttributeAccessIssue]
        if changed := [] if patches else list(self.guard.changes()):
            failure = pytest.fail.Exception(f"the code under test changed {', '.join(changed[:3])}", pytrace=False)
            raise failure from raised
        if raised is not None:
            raise raised

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Distribute the tests so that a run ends after a crash as well."""
        return crashes.scheduler(config, log) if config.getoption("dist") == "load" else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Report a test with a worker that ended; pytest-xdist knows only its name."""
        crash = crashes.of_worker(self.config, crashitem)
        if not crash.properties:  # without a fork nothing runs the test again
            name = crashitem.rpartition("::")[2]
            ids = [i.id for i in self.implementations]
            found = next((i for i in ids if re.search(rf"\[{re.escape(i)}\b", name)), ids[0])
            properties = [
                *(("implementation", found), ("components", []), ("clauses", []), ("level", "tutorial")),
                *(("aspect", "values"), ("title", lessons.title(name)), ("order", 0)),
            ]
            crash = crashes.Crash("", crash.calls, properties)
        crash.fill(report)

    def _watch_the_work(self, item: pytest.Item, example: Example) -> None:
        """Record the functions that compute a component, from the first passed tests of it.

        Raises:
            pytest.fail.Exception: `--own-work` is set, and a library computes the component.
        """
        run = current()
        if len(example.components) != 1 or run.file is None or not runs_again(example):
            return
        component = example.components[0]
        if self.watched[component.name] < WATCHED:
            self.watched[component.name] += 1
            self.handed_over[component.name] |= handed_over(example, run.file)
        names = sorted(self.handed_over[component.name])
        item.user_properties.append(("handed_over", {component.name: names}))
        if names and self.config.getoption("--own-work"):
            failure = pytest.fail.Exception(f"{component.name} is computed by {', '.join(names)}", pytrace=False)
            self._explain(item, failure, again=False)
            raise failure

    def _diagnosis(self, item: pytest.Item) -> Diagnosis | None:
        implementation = _implementation_of(item)
        return self.diagnoses.get(implementation.id) if implementation is not None else None

    def _explain(self, item: pytest.Item, error: BaseException, *, again: bool = True) -> None:
        """Record on a test the explanation of its failure for users.

        Args:
            item: The test.
            error: Its error.
            again: Whether the test may run again, for the diagnosis.
        """
        run, diagnosis = current(), self._diagnosis(item)
        if diagnosis is None:
            return
        item.user_properties += [
            ("message", lessons.message(error, run.file)),
            ("cause", lessons.cause(error, dict(item.user_properties)["aspect"], run)),  # pyright: ignore[reportArgumentType]
            ("paste", lessons.paste(run)),
            ("drawing", lessons.drawing(run)),
        ]
        example = example_of(item, failing=True) if again else None
        drawn = run.example is not None  # then the random state of the failure is not known
        found = None if example is None else diagnosis.failed(example, None if drawn else error)
        names = list(dict.fromkeys(name for _, name in found or ()))
        item.user_properties += [
            ("examined", found is not None),
            ("faults", names),
            ("exact", diagnosis.exact),
            ("mistakes", {name: sentence(name) for name in names}),
        ]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the clauses and the last calls to a failure."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, NotJudged):
            nothing = call.excinfo.value
            report.user_properties = [*report.user_properties, ("outcome", nothing.outcome), ("because", nothing.msg)]
        if report.failed and call.when == "call":
            ids = [name for mark in item.iter_markers("clause") for name in mark.args]
            if ids:
                report.sections.append(("what the specification says", "\n".join(str(CLAUSES[name]) for name in ids)))
            if text := current().trace.text():
                report.sections.append(("the last calls, to paste into Python", text))
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Count tests without a verdict as separate outcomes."""
        if report.when == "collect":  # a file that was skipped as a whole
            return None
        if report.skipped and (outcome := dict(report.user_properties).get("outcome")):
            word = str(outcome)
            return word, word.removeprefix("not ")[0], word.upper()
        if report.when == "setup" and report.skipped and dict(report.user_properties).get("absent"):
            return "absent", "a", "ABSENT"
        return None

    def _trials(self) -> dict[str, trial_report.Trial]:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        return trial_report.collect(reporter.stats, [i.id for i in self.implementations]) if reporter else {}

    def _empty(self) -> list[str]:
        """The requested implementations without any test.

        For the default implementations one is enough, because PyTorch lacks all components of some chapters.
        """
        trials = self._trials()
        if self.named is not None:
            return [name for name, trial in trials.items() if not trial.judged]
        if any(trial.judged for trial in trials.values()):
            return []
        return [name for name, trial in trials.items() if trial.outcomes["absent"]]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail a run that tested nothing of an implementation."""
        if hasattr(self.config, "workerinput") or exitstatus != 0 or self.config.getoption("collectonly"):
            return
        if self._empty():
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the report of the trial."""
        covered = trial_report.clauses(terminalreporter.stats)
        terminalreporter.write_line(
            lessons.said(
                f"clauses: {len(covered)} of {len(CLAUSES)} covered by the tests of this run",
                f"条款：本次运行的测试涉及 {len(CLAUSES)} 条中的 {len(covered)} 条",
            )
        )
        trials = self._trials()
        if self.named is None and not any(trial.outcomes for trial in trials.values()):
            return
        every_component = self.named is not None or (self.config.getoption("verbose") or 0) > 0
        title = lessons.said("trial", "试用")
        wide = width(title) - len(title)  # pytest counts a Chinese character as one column
        terminalreporter._tw.sep("=", title, terminalreporter._tw.fullwidth - wide)
        lessons_of = {name: self._lessons(terminalreporter, name, trials[name]) for name in self.diagnoses}
        for line in trial_report.lines(trials, every_component=every_component, lessons=lessons_of):
            terminalreporter.write_line(line)
        for name in self._empty():
            terminalreporter.write_line(f"empty run: nothing of {name} was judged", red=True)

    def _lessons(self, terminalreporter: pytest.TerminalReporter, name: str, trial: trial_report.Trial) -> list[str]:
        """The lines about the components of a user's implementation; its failures are printed before."""
        reports = [
            (outcome, report)
            for outcome in ("passed", "failed", "error", "xfailed", "xpassed")
            for report in terminalreporter.stats.get(outcome, ())
            if dict(report.user_properties).get("implementation") == name
        ]
        failures = sorted((r for outcome, r in reports if outcome in ("failed", "error")), key=lessons.order)
        mistakes = lessons.mistakes(failures, [r for outcome, r in reports if outcome == "passed"])
        if len(self.implementations) > 1:
            terminalreporter.write_line(f"== {name}")
        if failures and self.teaches:
            for line in lessons.first_failure(failures[0], mistakes):
                terminalreporter.write_line(line)
            if failures[1:]:
                terminalreporter.write_line("")
                other = "other failures by cause (--all-failures prints them):"
                terminalreporter.write_line(lessons.said(other, "按原因列出其他失败（--all-failures 逐一打印）："))
                for line in lessons.others(failures[1:], mistakes):
                    terminalreporter.write_line(line)
            terminalreporter.write_line("")
        return list(lessons.progress(reports, trial.absent))


def _in_order(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Put the trial's own tests first, because the other verdicts depend on them and each of them waits for a pytest
    process.

    The runs of a property follow each other, one per implementation, because they share their examples.
    """
    items = sorted(items, key=lambda item: bool(re.match(r"test_\d", item.path.name)))
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        function = getattr(item, "function", None)
        groups.setdefault(function if hasattr(function, "hypothesis") else item, []).append(item)
    return [item for group in groups.values() for item in group]


def _apply_known_failures(path: Path, items: list[pytest.Item], *, whole: bool) -> None:
    """Expect the tests in the file of `--known-failures` to fail."""
    source = f"--known-failures {path}"
    try:
        reasons = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise pytest.UsageError(f"{source}: {error}") from None
    files = {item.nodeid.partition("::")[0] for item in items}
    for name in reasons:
        if (file := name.partition("::")[0]) not in files and not Path(file).is_file():
            raise pytest.UsageError(f"{source}: {name!r} matches no test")
    _expect_failures(source, reasons, items, whole=whole)


def _expect_failures(source: str, reasons: dict[str, Any], items: list[pytest.Item], *, whole: bool) -> None:
    """Expect tests to fail, by id, with their reasons.

    An entry must match a test exactly, unless its file is not part of this run.
    """
    by_id = {item.nodeid: item for item in items}
    files = {name.partition("::")[0] for name in by_id}
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise pytest.UsageError(f"{source}: {name!r} needs a reason in words, got {reason!r}")
        item = by_id.get(name)
        if item is None:
            if name.partition("::")[0] in files and whole:
                raise pytest.UsageError(f"{source}: {name!r} matches no test")
            continue
        if item.stash.get(ABSENT, []):
            raise pytest.UsageError(f"{source}: {name!r} is absent, it cannot fail")
        item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
