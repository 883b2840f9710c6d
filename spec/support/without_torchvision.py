"""Run the specification where torchvision is not installed: what needs it is skipped, with the reason.

The extra `test` demands torchvision, so this happens only if PyTorch was installed without it, such as a build of
PyTorch for which no torchvision exists. Where torchvision is installed, an error of its import remains an error.
"""

import importlib.util
import re
from collections.abc import Generator
from typing import Any

import pytest

REASON = "torchvision is not installed"
IS_MISSING = importlib.util.find_spec("torchvision") is None


def names_torchvision(error: object) -> bool:
    """Whether the text of an error says that torchvision, or a part of it, cannot be imported."""
    return re.search(r"ModuleNotFoundError: No module named 'torchvision['.]", str(error)) is not None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
    """Skip a file of tests that imports torchvision."""
    report = yield
    if IS_MISSING and report.outcome == "failed" and names_torchvision(report.longrepr):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {REASON}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip a test that imports torchvision itself."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if IS_MISSING and (error.name or "").partition(".")[0] == "torchvision":
            pytest.skip(REASON)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip a test with a fixture that imports torchvision."""
    return (yield from pytest_runtest_call(item))
