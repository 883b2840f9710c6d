"""What the benchmarks share: the devices, the tables, and what a saved run remembers of the machine."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

from benchmarks.cases import Case, timed
from spec.support.implementations import Implementation

Measure = Callable[[Case], None]

REMARKS = pytest.StashKey[list[str]]()
"""What is to be said about the comparison with a saved run."""

ROUNDS = 50
"""How often a component is timed on a GPU."""

COLUMNS = ["min", "median", "iqr", "rounds"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Short tables; and what pytest-benchmark warns about is said in one line, it is no error."""
    config.stash[REMARKS] = []
    config.option.benchmark_columns = config.option.benchmark_columns or COLUMNS

    def remark(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if not issubclass(category, PytestBenchmarkWarning):
            show(message, category, *rest, **options)
        elif (text := str(message)).startswith("Can't compare"):
            place = text.removeprefix("Can't compare. No benchmark files ").partition(". Can't load")[0]
            config.stash[REMARKS].append(
                f"nothing to compare with: no run is saved {place} (--benchmark-autosave saves one)"
            )
        elif text.startswith("Benchmark machine_info is different"):
            config.stash[REMARKS].append("the saved run is of another machine or system: compare ratios, not times")
        else:
            config.stash[REMARKS].append(text)

    show = warnings.showwarning
    warnings.showwarning = remark  # as long as pytest configures, which saves and restores it
    warnings.simplefilter("always", PytestBenchmarkWarning)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The remarks, if there are any."""
    for text in config.stash[REMARKS]:
        terminalreporter.write_line(f"benchmarks: {text}")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Forget the clock's speed of the moment, by which a machine would differ from itself."""
    cpu = machine_info["cpu"]
    for name in [name for name in cpu if name.startswith("hz_")]:
        del cpu[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each benchmark runs on the CPU and, where there is one, on the GPU; or only on the device that is asked for.

    With `-m gpu` the CPU's belong to it: they are what the GPU is compared with. In the rehearsal it stands for both.
    """
    if "device" in metafunc.fixturenames:
        chosen = str(metafunc.config.getoption("--device"))
        if chosen != "cpu":
            places = [(chosen, chosen, True)]
        elif metafunc.config.getoption("--gpu-rehearsal"):
            places = [("gpu", "cpu", True)]
        else:
            places = [("cpu", "cpu", metafunc.config.getoption("markexpr") == "gpu")]
            places += [("cuda", "cuda", True)] if torch.cuda.is_available() else []
        metafunc.parametrize(
            "device",
            [
                pytest.param(torch.device(place), id=name, marks=[pytest.mark.gpu] if marked else [])
                for name, place, marked in places
            ],
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A third of a second each, at least seven rounds; what an implementation lacks cannot be timed."""
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(min_rounds=7, max_time=0.3))
        params = getattr(getattr(item, "callspec", None), "params", {})
        case, implementation = params.get("case"), params.get("implementation")
        if case and implementation and case.component not in implementation.components:
            item.add_marker(pytest.mark.skip(f"absent: {implementation.name} does not define {case.component}"))


def clear_cache(device: torch.device) -> Callable[[], None]:
    """What is done before each round on a GPU: its second-level cache is overwritten, and it becomes idle.

    Otherwise a small input stays in the cache from round to round, which it never does in a training.
    """
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    room = torch.empty(size, dtype=torch.uint8, device=device)

    def clear() -> None:
        room.zero_()
        torch.cuda.synchronize(device)

    return clear


@pytest.fixture(autouse=True)
def idle_device() -> None:
    """Before each benchmark the GPU has done its work and given back the memory that the last one left."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@pytest.fixture
def measure(benchmark: Any, implementation: Implementation, device: torch.device) -> Measure:
    """Time one step of a case and assert its result; what can be compared stands in one table."""

    def run(case: Case) -> None:
        benchmark.group = f"{case.topic}: {case}"
        benchmark.extra_info.update(torch=torch.__version__, threads=torch.get_num_threads())
        step = timed(case, implementation, device)
        case.check(step())  # compiles, too
        if device.type == "cuda":
            case.check(benchmark.pedantic(step, setup=clear_cache(device), rounds=ROUNDS, warmup_rounds=3))
        else:
            case.check(benchmark(step))

    return run
