"""The report of a trial: the judged and the absent components of each implementation."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reference.messages import counted
from spec.support.lessons import said
from spec.support.outcomes import NOT_JUDGED

OUTCOMES = ("passed", "failed", "error", "skipped", *NOT_JUDGED, "xfailed", "xpassed")
OUTCOMES_ZH = {
    "passed": "通过", "failed": "失败", "error": "出错", "skipped": "跳过", "absent": "缺席", "not offered": "不提供",
    "not claimed": "未声明", "not written": "未编写", "xfailed": "已知失败", "xpassed": "意外通过",
}  # fmt: skip


@dataclass
class Trial:
    """The results of a run for one implementation.

    Attributes:
        outcomes: The number of tests by outcome, over all components.
        components: The same for each component that a test names.
        absent: The components that tests name and the implementation lacks.
        known: The known failures, by the test's id, with their reasons.
        left: For each outcome without a verdict, except absent, the number of tests by reason.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    components: dict[str, Counter[str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    left: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def judged(self) -> int:
        """Tests that ran."""
        return self.outcomes.total() - sum(self.outcomes[outcome] for outcome in ("skipped", *NOT_JUDGED))


def collect(stats: Mapping[str, Sequence[Any]], implementations: Iterable[str]) -> dict[str, Trial]:
    """Sort the reports of a run by implementation; one that no test named has an empty trial."""
    trials = {name: Trial() for name in implementations}
    for outcome in OUTCOMES:
        for report in stats.get(outcome, ()):
            properties = dict(getattr(report, "user_properties", ()))
            if (name := properties.get("implementation")) not in trials:
                continue
            trial = trials[name]
            trial.outcomes[outcome] += 1
            if outcome == "xfailed":
                trial.known[report.nodeid] = report.wasxfail.removeprefix("reason: ")
            if outcome in NOT_JUDGED and "because" in properties:
                trial.left.setdefault(outcome, Counter())[properties["because"]] += 1
            absent = properties.get("absent", [])
            trial.absent.update(absent)
            for component in absent or properties["components"]:
                trial.components.setdefault(component, Counter())[outcome] += 1
    return trials


def clauses(stats: Mapping[str, Sequence[Any]]) -> set[str]:
    """The clauses of the tests with a verdict."""
    judged = [report for outcome in ("passed", "failed", "xfailed", "xpassed") for report in stats.get(outcome, ())]
    return {name for report in judged for name in dict(getattr(report, "user_properties", ())).get("clauses", ())}


def lines(
    trials: Mapping[str, Trial], *, every_component: bool, lessons: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The report as text: a line for each implementation, one for each component that failed (or for every one).

    Args:
        trials: The trials by implementation.
        every_component: Whether components without failures have a line too.
        lessons: The lines about components, for the implementations that have separate lines.
    """
    found = []
    for name, trial in trials.items():
        judged = {c: counts for c, counts in trial.components.items() if c not in trial.absent}
        under_test = said(f"{counted(len(judged), 'component')} under test, ", f"{len(judged)} 个被测组件，")
        if trial.outcomes and not trial.components:  # tests of benchmarks name no component
            under_test = ""
        numbers = _counts(trial.outcomes) or said("no test", "没有测试")
        found.append(said(f"{name}: {under_test}{numbers}", f"{name}：{under_test}{numbers}"))
        found += (lessons or {}).get(name, ())
        for component, counts in sorted(judged.items() if name not in (lessons or {}) else ()):
            if every_component or counts["failed"] or counts["error"]:
                found.append(f"    {component:<30} {_counts(counts)}")
        known = said("known failure: ", "已知失败：")
        found += [f"    {known}{name}: {reason}" for name, reason in trial.known.items()]
        for outcome, reasons in trial.left.items():
            found += [
                said(
                    f"    {outcome}: {reason}: {counted(number, 'test')}",
                    f"    {OUTCOMES_ZH[outcome]}：{reason}：{number} 个测试",
                )
                for reason, number in sorted(reasons.items())
            ]
        if trial.absent:
            found.append(f"    {said('absent: ', '缺席：')}{', '.join(sorted(trial.absent))}")
    return found


def _counts(outcomes: Counter[str]) -> str:
    listed = [(outcome, outcomes[outcome]) for outcome in OUTCOMES if outcomes[outcome]]
    return said(
        ", ".join(f"{count} {outcome}" for outcome, count in listed),
        "，".join(f"{OUTCOMES_ZH[outcome]} {count}" for outcome, count in listed),
    )
