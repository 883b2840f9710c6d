"""Shared by the benchmarks: the devices, the tables, and the description of the machine in a saved run."""

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
"""Remarks about the comparison with a saved run."""

ROUNDS = 50
"""Number of timings of a component on a GPU."""

COLUMNS = ["min", "median", "iqr", "rounds"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set up short tables; print a warning of pytest-benchmark in one line, because it is not an error."""
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
    warnings.showwarning = remark  # while pytest configures, which saves and restores it
    warnings.simplefilter("always", PytestBenchmarkWarning)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the remarks, if there are any."""
    for text in config.stash[REMARKS]:
        terminalreporter.write_line(f"benchmarks: {text}")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Drop the current clock rate, which varies on the same machine."""
    cpu = machine_info["cpu"]
    for name in [name for name in cpu if name.startswith("hz_")]:
        del cpu[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each benchmark on the CPU and, if there is one, on the GPU; or only on the device of the command line.

    With `-m gpu` the benchmarks on the CPU run too, for comparison. In the rehearsal the CPU replaces the GPU.
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
    """Time each for a third of a second, at least seven rounds; skip components that an implementation lacks."""
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(min_rounds=7, max_time=0.3))
        params = getattr(getattr(item, "callspec", None), "params", {})
        case, implementation = params.get("case"), params.get("implementation")
        if case and implementation and case.component not in implementation.components:
            item.add_marker(pytest.mark.skip(f"absent: {implementation.name} does not define {case.component}"))


def clear_cache(device: torch.device) -> Callable[[], None]:
    """The function to call before each round on a GPU: it overwrites the second-level cache and waits for the GPU.

    Otherwise a small input would stay in the cache from round to round, unlike in a training.
    """
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    room = torch.empty(size, dtype=torch.uint8, device=device)

    def clear() -> None:
        room.zero_()
        torch.cuda.synchronize(device)

    return clear


@pytest.fixture(autouse=True)
def idle_device() -> None:
    """Before each benchmark, wait for the GPU and release the memory of the previous one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@pytest.fixture
def measure(benchmark: Any, implementation: Implementation, device: torch.device) -> Measure:
    """Time one step of a case and assert its result; comparable cases are in the same table."""

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
