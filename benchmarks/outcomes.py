"""A pytest plugin that records outcomes while the tests run: `-p benchmarks.outcomes`, into the file `OCEAN_RECORD`.

One JSON line for each test that failed or recorded a property, and one for each hundred that passed or were skipped,
so that the counts of a run that was ended at its time limit are known, too.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.strict import line

STEP = 100
"""The number of tests with the same outcome that are counted together."""

TRIAL = ("implementation", "components", "absent")
"""Properties that every test of an implementation records."""


class Outcomes:
    """Writes outcomes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[tuple[str, str]] = Counter()
        self.slowest: list[tuple[float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: at its call, or in an earlier phase that ended it."""
        if report.failed:
            text = getattr(report.longrepr, "reprcrash", None)
            message = text.message if text is not None else str(report.longrepr)
            self.write({"outcome": f"failed ({report.when})", "test": report.nodeid, "message": message[:600]})
        elif hasattr(report, "wasxfail"):
            self.count("failed as expected", report.wasxfail[:200])
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.count("skipped", reason.removeprefix("Skipped: ")[:200])
        elif report.when == "call":
            self.count("passed", "")
            if recorded := {key: value for key, value in report.user_properties if key not in TRIAL}:
                self.write({"test": report.nodeid, "recorded": recorded})
        if report.when == "call":
            self.slowest = sorted([*self.slowest, (round(report.duration, 2), report.nodeid)], reverse=True)[:10]

    def count(self, outcome: str, reason: str) -> None:
        """Add one, and write each full hundred."""
        self.counts[outcome, reason] += 1
        if self.counts[outcome, reason] == STEP:
            self.flush((outcome, reason))

    def flush(self, key: tuple[str, str]) -> None:
        """Write a count and reset it."""
        count = self.counts.pop(key, 0)
        if count:
            self.write({"outcome": key[0], "count": count} | ({"reason": key[1]} if key[1] else {}))

    def pytest_sessionfinish(self) -> None:
        """Write the remaining counts."""
        for key in list(self.counts):
            self.flush(key)
        self.write({"slowest": self.slowest})

    def write(self, content: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line(content | {"at": round(time.time(), 1)}))


def pytest_configure(config: pytest.Config) -> None:
    """Record in the controlling process; the workers of xdist send their reports to it."""
    if "OCEAN_RECORD" in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ["OCEAN_RECORD"])))
