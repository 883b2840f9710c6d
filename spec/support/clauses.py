"""The clauses of the specification: the statement that each test verifies, with its lines in the tutorial."""

import difflib
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "clauses.toml"
KINDS = ("value", "claim", "listing", "rule", "observation", "project")
RULES = ("rule", "observation", "project")
"""The kinds that do not come from the tutorial: they have neither verdict nor lines."""
VERDICTS = ("holds", "imprecise", "refuted", "version-dependent", "not testable")
LEVELS = ("tutorial", "definition", "pytorch")
"""The levels: the content of the chapter, the properties of the definition, or everything that PyTorch does."""
ASPECTS = ("values", "gradients", "dtypes", "layouts", "errors", "state", "randomness", "resources", "text")
"""The aspects of a clause."""

RELEASES = ("2.6.0", "2.9.1", "2.11.0", "2.13.0", "2.14.1")
"""The compared releases of PyTorch, in ascending order; docs/versions.md lists the tests that ran on each."""

_LEVEL_OF_KIND = {
    "value": "tutorial", "claim": "tutorial", "listing": "tutorial", "rule": "definition",
    "observation": "pytorch", "project": "pytorch",
}  # fmt: skip
_LEVEL_OF_ASPECT = {"values": "tutorial", "randomness": "tutorial", "gradients": "definition"}
"""The lowest level at which an aspect is required; other aspects belong to level pytorch."""
_ASPECT_OF_NAME = {
    name: aspect
    for aspect, names in {
        "gradients": "gradients differentiable backward",
        "dtypes": "dtypes dtype integers half half_mean precision autocast complex sparse",
        "layouts": "layouts views strides",
        "errors": "rejects refused errors unknown broken damage impossible",
        "state": "state state_dict resume buffers prefixes hooks closure groups copies schedulers settings",
        "randomness": "seed seeds randomness draws streams start init initialization",
        "resources": "workspace memory bounded scale workers speed time processes",
        "text": "repr names text warnings",
    }.items()
    for name in names.split()
}
"""The default aspect of a clause by the last part of its id; the aspect of any other clause is values."""


@dataclass(frozen=True)
class Clause:
    """An entry of clauses.toml.

    Attributes:
        id: `chapter.component.name`.
        kind: "value" (the tutorial prints it), "claim" (the tutorial says it), "listing" (the tutorial shows the code),
            "rule" (PyTorch, torchvision or TensorBoard promises it and the tutorial leaves it out),
            "observation" (this version of PyTorch does it, and its documentation does not promise it), or "project"
            (this project promises it of its own components, scripts and files).
        statement: The true statement.
        statement_zh: The same in Chinese.
        verdict: The verdict on the tutorial's value, claim or listing; the kinds in `RULES` have none.
        lines: The lines of the tutorial; the kinds in `RULES` have none.
        same_as: The clause of the sentence that the tutorial repeats here; its verdict is the verdict of both.
        own_level: The level in its entry, if the kind and the aspect give another one.
        own_aspect: The aspect in its entry, if the last part of the id gives another one.
        since: The first of `RELEASES` in which PyTorch itself passes the tests of the clause; empty if all do.
        until: The last of `RELEASES` in which PyTorch itself passes them; empty if the newest does.
        holds_in: Those of `RELEASES` in which PyTorch itself passes them, where neither `since` nor `until` fits.
    """

    id: str
    kind: str
    statement: str
    statement_zh: str
    verdict: str = ""
    lines: tuple[int, ...] = ()
    same_as: str = ""
    own_level: str = ""
    own_aspect: str = ""
    since: str = ""
    until: str = ""
    holds_in: tuple[str, ...] = ()

    @property
    def span(self) -> str:
        """The recorded range of releases in the words of a merged report, such as "since 2.13.0"; empty if all."""
        if self.holds_in:
            return "in " + ", ".join(self.holds_in)
        return f"since {self.since}" if self.since else f"until {self.until}" if self.until else ""

    def holds_for(self, release: str) -> bool:
        """Whether PyTorch itself passes the tests of the clause in one of `RELEASES`."""
        place = RELEASES.index
        if self.holds_in:
            return release in self.holds_in
        return not (self.since and place(release) < place(self.since)) and not (
            self.until and place(release) > place(self.until)
        )

    @property
    def aspect(self) -> str:
        """The aspect, one of `ASPECTS`."""
        return self.own_aspect or _ASPECT_OF_NAME.get(self.id.rpartition(".")[2], "values")

    @property
    def level(self) -> str:
        """The lowest level of a trial that requires it, one of `LEVELS`."""
        by_aspect = _LEVEL_OF_ASPECT.get(self.aspect, "pytorch")
        return self.own_level or max(_LEVEL_OF_KIND[self.kind], by_aspect, key=LEVELS.index)

    @property
    def chapter(self) -> str:
        """Its chapter, "00" to "21"."""
        return self.id.partition(".")[0]

    def __str__(self) -> str:
        place = f", tutorial line {', '.join(map(str, self.lines))}" if self.lines else ""
        verdict = f" (the tutorial's wording: {self.verdict})" if self.verdict not in ("", "holds") else ""
        of_whom = {"project": ", a rule of this project", "observation": ", observed of this version of PyTorch"}
        project = of_whom.get(self.kind, "")
        head = f"chapter {self.chapter}, clause {self.id}{place}{project}{verdict}"
        return f"{head}\n  {self.statement}\n  {self.statement_zh}"


def _check_releases(clause: Clause, file: str) -> None:
    """Raise a ValueError unless at most one of `since`, `until` and `holds_in` is set, to some of `RELEASES`."""
    fields = {"since": (clause.since,), "until": (clause.until,), "holds_in": clause.holds_in}
    given = {name: releases for name, releases in fields.items() if any(releases)}
    if len(given) > 1:
        raise ValueError(f"{file}: [{clause.id!r}] has {' and '.join(given)}; it must have at most one of them")
    for name, releases in given.items():
        if unknown := [release for release in releases if release not in RELEASES]:
            raise ValueError(f"{file}: [{clause.id!r}] has {name} = {unknown[0]!r}; it must be among {RELEASES}")


def read(path: Path = FILE) -> dict[str, Clause]:
    """All clauses by id.

    Raises:
        ValueError: an entry without the fields of a clause, or one that repeats a clause without a verdict.
    """
    clauses: dict[str, Clause] = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        try:
            clauses[name] = Clause(
                id=name,
                kind=entry.pop("kind"),
                statement=entry.pop("en"),
                statement_zh=entry.pop("zh"),
                verdict=entry.pop("verdict", ""),
                lines=tuple(entry.pop("lines", ())),
                same_as=entry.pop("same_as", ""),
                own_level=entry.pop("level", ""),
                own_aspect=entry.pop("aspect", ""),
                since=entry.pop("since", ""),
                until=entry.pop("until", ""),
                holds_in=tuple(entry.pop("holds_in", ())),
            )
        except KeyError as missing:
            raise ValueError(f"{path.name}: [{name!r}] has no {missing.args[0]}") from None
        if entry:
            raise ValueError(f"{path.name}: [{name!r}] has unknown keys {sorted(entry)}")
        _check_releases(clauses[name], path.name)
    for name, repeated in clauses.items():
        if not repeated.same_as:
            continue
        first = clauses.get(repeated.same_as)
        if repeated.verdict or first is None or not first.verdict:
            raise ValueError(
                f"{path.name}: [{name!r}] has same_as = {repeated.same_as!r}, which must be the id of a "
                "clause with a verdict; the verdict stands there and must not be repeated"
            )
        clauses[name] = replace(repeated, verdict=first.verdict)
    return clauses


CLAUSES = read()


def clause(*ids: str) -> pytest.MarkDecorator:
    """Mark a test with the clauses that it verifies.

    Raises:
        ValueError: clauses.toml has no such clause.
    """
    for name in ids:
        if name not in CLAUSES:
            near = difflib.get_close_matches(name, CLAUSES, n=3)
            raise ValueError(f"clause: {name!r} is not in {FILE.name}; near are {near}")
    return pytest.mark.clause(*ids)
