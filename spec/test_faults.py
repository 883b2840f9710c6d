"""The specification catches each fault at the intended test, with the reason in the message."""

import multiprocessing
import os
import re
import sys
from collections import defaultdict
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from spec.faults import Fault, all_faults

ROOT = Path(__file__).parents[1]

FAULTS: dict[str, list[type[Fault]]] = defaultdict(list)
for _fault in all_faults():
    FAULTS[_fault.caught_by.partition("::")[0]].append(_fault)

_context = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)


class Judge:
    """A pytest plugin that selects the tests of the faults and records their failures."""

    def __init__(self, wanted: dict[str, str]) -> None:
        self.wanted = wanted  # the name of the test, by implementation
        self.failures: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if self._of(item) is not None]

    def _of(self, item: Any) -> str | None:
        trial = dict(item.user_properties).get("implementation")
        return trial if trial is not None and self.wanted.get(trial) == item.originalname else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            name = str(dict(report.user_properties)["implementation"])
            sections = "\n".join(text for _, text in report.sections)
            self.failures[name] = f"{self.failures.get(name, '')}{report.longreprtext}\n{sections}\n"


def judge(file: str, faults: list[tuple[str, str]], threads: int, answer: Any) -> None:
    """In a separate process: test the faults and return the texts of their failures."""
    torch.set_num_threads(threads)  # those of the worker of -n, which shares the cores with others
    os.chdir(ROOT)
    plugin = Judge(dict(faults))
    names = ",".join(name for name, _ in faults)
    # a fault may leave files open, which pytest reports at its very end by an exception group
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), suppress(SystemExit, ExceptionGroup):
        sys.stderr = nowhere
        arguments = [f"spec/{file}", "--impl", names, "--hypothesis-profile", "faults", "-p", "no:randomly"]
        # ignore plugins that the fork server has imported for another test file
        arguments += ["-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        pytest.main(arguments, plugins=[plugin])
    answer.send(plugin.failures)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(FAULTS))
def test_every_fault_is_caught_by_the_named_test(file: str, subtests: pytest.Subtests) -> None:
    faults = FAULTS[file]
    receiver, sender = _context.Pipe(duplex=False)
    wanted = [(fault.implementation(), fault.caught_by.partition("::")[2]) for fault in faults]
    process = _context.Process(target=judge, args=(file, wanted, torch.get_num_threads(), sender))  # pyright: ignore[reportAttributeAccessIssue]
    process.start()
    sender.close()
    failures = receiver.recv()
    process.join()
    for fault in faults:
        with subtests.test(fault.__name__):
            text = failures.get(fault.implementation())
            assert text is not None, f"{fault.caught_by} does not catch {fault.implementation()}"
            assert re.search(fault.says, text), f"the failure does not say /{fault.says}/ but\n{text}"
