"""The clauses of the specification: what each test is about, in words, with its place in the tutorial."""

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "clauses.toml"
KINDS = ("value", "claim", "listing", "rule")
VERDICTS = ("holds", "imprecise", "refuted", "version-dependent", "not testable")


@dataclass(frozen=True)
class Clause:
    """An entry of clauses.toml.

    Attributes:
        id: `chapter.component.name`.
        kind: A value that the tutorial prints, a claim it makes, a listing it shows, or a rule: what PyTorch promises
            and the tutorial leaves out.
        statement: What is true.
        statement_zh: The same in Chinese.
        verdict: What became of the tutorial's value or claim; rules have none.
        lines: Where the tutorial says it; rules have none.
    """

    id: str
    kind: str
    statement: str
    statement_zh: str
    verdict: str = ""
    lines: tuple[int, ...] = ()

    @property
    def chapter(self) -> str:
        """Its chapter, "00" to "21"."""
        return self.id.partition(".")[0]

    def __str__(self) -> str:
        place = f", tutorial line {', '.join(map(str, self.lines))}" if self.lines else ""
        verdict = f" (the tutorial's wording: {self.verdict})" if self.verdict not in ("", "holds") else ""
        return f"chapter {self.chapter}, clause {self.id}{place}{verdict}\n  {self.statement}\n  {self.statement_zh}"


def read(path: Path = FILE) -> dict[str, Clause]:
    """All clauses by id.

    Raises:
        ValueError: an entry whose parts are not those of a clause.
    """
    clauses = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        try:
            clauses[name] = Clause(
                id=name,
                kind=entry.pop("kind"),
                statement=entry.pop("en"),
                statement_zh=entry.pop("zh"),
                verdict=entry.pop("verdict", ""),
                lines=tuple(entry.pop("lines", ())),
            )
        except KeyError as missing:
            raise ValueError(f"{path.name}: [{name!r}] has no {missing.args[0]}") from None
        if entry:
            raise ValueError(f"{path.name}: [{name!r}] has unknown keys {sorted(entry)}")
    return clauses


CLAUSES = read()


def clause(*ids: str) -> pytest.MarkDecorator:
    """Say which clauses a test holds an implementation to.

    Raises:
        ValueError: clauses.toml has no such clause.
    """
    for name in ids:
        if name not in CLAUSES:
            near = difflib.get_close_matches(name, CLAUSES, n=3)
            raise ValueError(f"clause: {name!r} is not in {FILE.name}; near are {near}")
    return pytest.mark.clause(*ids)
