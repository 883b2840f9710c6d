"""Right implementations that are written differently pass: `spec/outside` names them and the level that each claims."""

import multiprocessing
import os
import sys
from collections import Counter
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from spec.outside import REGISTRY, Outside
from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]

_context = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)


class Recorder:
    """A pytest plugin that records the outcomes of the tests of components."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures[report.nodeid] = report.longreprtext[-1500:]
        elif report.when == "call":
            self.counts["known failure" if hasattr(report, "wasxfail") else report.outcome] += 1


def judge(outside: Outside, threads: int, answer: Any) -> None:
    """In a separate process: run the tests and return their outcomes."""
    torch.set_num_threads(threads)  # those of the worker of -n, which shares the cores with others
    os.chdir(ROOT)
    recorder = Recorder()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), suppress(SystemExit, ExceptionGroup):
        sys.stderr = nowhere
        arguments = [*(f"spec/{file}" for file in outside.tests), "--impl", outside.name, *outside.options]
        arguments += ["--hypothesis-profile", "dev", "-p", "no:randomly", "-p", "no:xdist", "-p", "no:cacheprovider"]
        pytest.main([*arguments, "-W", "ignore::pytest.PytestAssertRewriteWarning"], plugins=[recorder])
    answer.send((dict(recorder.counts), recorder.failures))


@clause("00.outside.passes")
@pytest.mark.slow
@pytest.mark.parametrize("outside", REGISTRY, ids=lambda outside: outside.name)
def test_a_right_implementation_passes_the_claimed_level(outside: Outside) -> None:
    if missing := outside.missing():
        pytest.skip(f'needs {", ".join(missing)}: python -m pip install -e ".[outside]"')
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=judge, args=(outside, torch.get_num_threads(), sender))  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    sender.close()
    counts, failures = receiver.recv()
    process.join()
    assert failures == {}
    assert counts["passed"] >= outside.least, counts


@clause("00.outside.passes")
def test_the_registry_names_test_files_and_claims_that_exist() -> None:
    assert len({outside.name for outside in REGISTRY}) == len(REGISTRY)
    for outside in REGISTRY:
        for file in outside.tests:
            assert (ROOT / "spec" / file).is_file(), file
        if outside.name.startswith("outside."):
            assert (ROOT / "spec" / f"{outside.name.replace('.', '/')}.py").is_file(), outside.name
