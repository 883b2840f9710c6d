"""Several reports together: `merge` puts them side by side, `diff` compares two, `badge` and `history` summarize."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from reference.messages import counted
from spec.report.document import OUTCOMES, Report, ReportError, order, read

BAD = ("failed", "error", "known failure", "not written", "not offered", "absent")
"""Outcomes that count as broken if the test passed before; a component that no longer exists is broken too."""
JUDGED_NOT = ("skipped", "not claimed")
"""Outcomes without a result for the implementation: the machine or the user left the test out."""


def place(environment: Mapping[str, Any]) -> tuple[str, str]:
    """The fields that distinguish two environments in a merged report: the PyTorch version and the device."""
    return environment["versions"].get("torch", "?"), environment["device_name"] or environment["device"]


def place_text(environment: Mapping[str, Any]) -> str:
    """A short text for an environment."""
    torch_version, device = place(environment)
    return f"torch {torch_version}, {device}"


def merge(reports: Sequence[Report]) -> Report:
    """Put reports side by side; where two judged the same test of the same code at the same place, the later one wins.

    An implementation that changed between two runs keeps nothing of the earlier one: its file is another file. A run
    that was interrupted and then repeated to its end counts as complete.

    Args:
        reports: At least one; the order of their runs in time decides which one is later, not their order here.
    """
    reports = sorted(reports, key=lambda report: max(run["started"] for run in report["runs"]))
    reports = [
        report for i, report in enumerate(reports) if not any(repeats(report, later) for later in reports[i + 1 :])
    ]
    environments: dict[tuple[str, str], dict[str, Any]] = {}
    implementations: dict[tuple[str, tuple[str, str]], dict[str, Any]] = {}
    tests: dict[tuple[str, tuple[str, str]], dict[str, Any]] = {}
    runs: list[tuple[tuple[str, str], dict[str, Any]]] = []
    comparisons: dict[str, list[str]] = {}
    drawings: dict[str, Any] = {}
    for report in reports:
        here = [place(environment) for environment in report["environments"]]
        environments.update(zip(here, report["environments"], strict=True))
        for entry in report["implementations"]:
            key = entry["id"], here[entry["environment"]]
            if key in implementations and implementations[key]["digest"] != entry["digest"]:
                tests = {
                    name: test
                    for name, test in tests.items()
                    if (test["implementation"], name[1]) != key
                }  # fmt: skip
            implementations[key] = entry
        for test in report["tests"]:
            tests[test["id"], here[test["environment"]]] = test
        for run in report["runs"]:
            if not any(where == here[run["environment"]] and earlier == run for where, earlier in runs):
                runs.append((here[run["environment"]], run))  # the same report twice is one run
        comparisons |= report["comparisons"]
        for name, drawn in report["drawings"].items():
            drawings[name] = drawn if name == "run" else drawings.get(name, {}) | drawn
    places = sorted(environments, key=_age)
    number = {where: index for index, where in enumerate(places)}
    return {
        "format": reports[-1]["format"],
        "specification": reports[-1]["specification"],
        "environments": [environments[where] for where in places],
        "runs": [run | {"environment": number[where]} for where, run in runs],
        "implementations": [
            entry | {"environment": number[where]}
            for (_, where), entry in sorted(implementations.items(), key=lambda item: (number[item[0][1]], item[0][0]))
        ],
        "comparisons": comparisons,
        "drawings": drawings,
        "tests": sorted(
            (test | {"environment": number[where]} for (_, where), test in tests.items()), key=order
        ),
    }  # fmt: skip


def repeats(report: Report, later: Report) -> bool:
    """Whether a later run is complete and has all tests of a run that is not: nothing of the earlier run is needed."""
    if len(report["runs"]) != 1 or len(later["runs"]) != 1:
        return False
    (run,), (again,) = report["runs"], later["runs"]
    same = place(report["environments"][0]) == place(later["environments"][0])
    if run["complete"] or not again["complete"] or again["collected"] < run["collected"] or not same:
        return False
    return {test["id"] for test in report["tests"]} <= {test["id"] for test in later["tests"]}


def _age(where: tuple[str, str]) -> tuple[Any, ...]:
    """Environments in the order of their PyTorch versions."""
    try:
        return 1, Version(where[0]), where[1]
    except InvalidVersion:
        return 0, where[0], where[1]


def span(holds: Sequence[tuple[str, bool]]) -> str | None:
    """The range of versions in which something holds, if the versions differ.

    Args:
        holds: Versions in ascending order, each with whether it holds there.

    Returns:
        A text such as "since 2.12.0", "until 2.12.0" or "in 2.11.0, 2.13.0"; None if all versions agree.
    """
    values = [value for _, value in holds]
    if len(set(values)) < 2:
        return None
    changes = [index for index in range(1, len(values)) if values[index] != values[index - 1]]
    if len(changes) == 1:
        return f"since {holds[changes[0]][0]}" if values[-1] else f"until {holds[changes[0] - 1][0]}"
    return "in " + ", ".join(version for version, value in holds if value)


def by_key(report: Report, *, alone: bool) -> dict[tuple[str, ...], dict[str, Any]]:
    """The tests of a report by id, and by environment unless the report has only one."""
    names = [place_text(environment) for environment in report["environments"]]
    return {(test["id"],) if alone else (test["id"], names[test["environment"]]): test for test in report["tests"]}


def diff(before: Report, after: Report) -> dict[str, list[str]]:
    """What changed from one report to a later one, as lines by category: broken, fixed, added, removed and left out.

    Raises:
        ReportError: the two have no test in common, so that there is nothing to compare.
    """
    alone = len(before["environments"]) == len(after["environments"]) == 1
    old, new = by_key(before, alone=alone), by_key(after, alone=alone)
    if not old.keys() & new.keys():
        names = [
            ", ".join(sorted({test["implementation"] or "project" for test in tests}))
            for tests in (before["tests"], after["tests"])
        ]
        raise ReportError(
            f"the reports have no test in common: the first has {counted(len(old), 'test')} of "
            f"{names[0] or 'nothing'}, the second {counted(len(new), 'test')} of {names[1] or 'nothing'}"
        )
    found: dict[str, list[str]] = {
        name: [] for name in ("broken", "fixed", "changed", "added", "removed", "no longer judged")
    }

    def line(key: tuple[str, ...], *outcomes: str) -> str:
        return f"{'  '.join(key)}: {' -> '.join(outcomes)}"

    for key, test in new.items():
        outcome = test["outcome"]
        if key not in old:
            found["added"].append(line(key, outcome))
            continue
        earlier = old[key]["outcome"]
        if earlier == outcome:
            continue
        if outcome == "passed":
            found["fixed" if earlier in BAD else "changed"].append(line(key, earlier, outcome))
        elif outcome in ("failed", "error") or (earlier == "passed" and outcome in BAD):
            kind = "changed" if earlier in ("failed", "error") else "broken"
            reason = (test["message"] or "").partition("\n")[0][:200]
            found[kind].append(line(key, earlier, outcome) + (f"\n    {reason}" if reason else ""))
        elif earlier == "passed" and outcome in JUDGED_NOT:
            found["no longer judged"].append(line(key, earlier, outcome))
        else:
            found["changed"].append(line(key, earlier, outcome))
    found["removed"] = [line(key, test["outcome"]) for key, test in old.items() if key not in new]
    return found


def counts(report: Report, implementation: str | None) -> Counter[str]:
    """The number of tests of an implementation by outcome, over all environments."""
    return Counter(test["outcome"] for test in report["tests"] if test["implementation"] == implementation)


def incomplete(report: Report) -> list[str]:
    """The reasons why a report is not complete, one text per incomplete run."""
    return [
        f"{run['finished']} of {counted(run['collected'], 'test')}: {run['interrupted'] or 'the run did not end'}"
        for run in report["runs"]
        if not run["complete"]
    ]


def badge(report: Report, implementation: str | None = None) -> dict[str, Any]:
    """The endpoint of a badge of shields.io.

    Args:
        report: The report.
        implementation: The implementation that is counted; by default all tests are.

    Raises:
        ReportError: the report has no test of that implementation.
    """
    tests = [test for test in report["tests"] if implementation in (None, test["implementation"])]
    if not tests:
        names = ", ".join(sorted({test["implementation"] for test in report["tests"] if test["implementation"]}))
        raise ReportError(
            "the report has no test"
            + (f" of {implementation}; it has tests of {names or 'the project only'}" if implementation else "")
        )
    found = Counter(test["outcome"] for test in tests)
    bad, all_ = found["failed"] + found["error"], found.total()
    message = f"{found['passed']:,} of {counted(all_, 'test')} passed"
    if bad:
        message += f", {bad:,} failed"
    for outcome in OUTCOMES[3:]:  # "20 of 190" alone would read as 170 failures
        if found[outcome]:
            message += f", {found[outcome]:,} {outcome}"
    color = "red" if bad else "brightgreen" if found["passed"] == all_ else "green"
    if incomplete(report):
        message, color = f"incomplete: {message}", "lightgrey"
    return {"schemaVersion": 1, "label": implementation or "Ocean Spec", "message": message, "color": color}


def history(folder: Path) -> tuple[list[Report], list[str]]:
    """All reports below a folder, in the order of their runs, and why those are left out that cannot be read.

    Raises:
        ReportError: there is none that can be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: there is no such folder")
    found, left_out = [], []
    for file in sorted(folder.rglob("report.json")):
        try:
            found.append(read(file))
        except ReportError as error:
            left_out.append(str(error))
    if not found:
        raise ReportError("; ".join(left_out) or f"{folder}: there is no report.json below this folder")
    return sorted(found, key=lambda report: max(run["started"] for run in report["runs"])), left_out


def course(reports: Iterable[Report]) -> dict[str, list[tuple[str, str, Counter[str]]]]:
    """For each implementation the date, the environment and the counts of each report that has tests of it."""
    found: dict[str, list[tuple[str, str, Counter[str]]]] = {}
    for report in reports:
        date = max(run["started"] for run in report["runs"])
        where = ", ".join(place_text(environment) for environment in report["environments"])
        for name in sorted({test["implementation"] or "" for test in report["tests"]}):
            found.setdefault(name, []).append((date, where, counts(report, name or None)))
    return dict(sorted(found.items(), key=lambda item: (item[0] == "", item[0])))  # tests of the project come last


def summary(report: Report) -> list[str]:
    """One line for each implementation with the number of tests by outcome."""
    lines = []
    for name in dict.fromkeys(test["implementation"] for test in report["tests"]):
        found = counts(report, name)
        parts = ", ".join(f"{found[outcome]} {outcome}" for outcome in OUTCOMES if found[outcome])
        lines.append(f"{name or 'project'}: {parts}")
    return lines
