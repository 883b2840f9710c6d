"""The components as exercises: the entries of `exercises.toml`, the stubs, and the tests."""

import ast
import re
import textwrap
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SPEC = Path(__file__).parents[1]


@dataclass(frozen=True)
class Exercise:
    """A component to write. Each text is a pair: English and Chinese.

    Attributes:
        name: The name of the component.
        chapter: The chapter of the tutorial.
        text: Its arguments with their shapes.
        formula: Its formula.
        example: A call from the tutorial.
        code: The stub, with `{doc}` for the docstring.
        hints: Three, from vague to precise.
        why: Two sentences that explain the solution.
    """

    name: str
    chapter: str
    text: tuple[str, str]
    formula: str
    example: str
    code: str
    hints: tuple[tuple[str, str], ...]
    why: tuple[str, str]

    def stub(self, language: int) -> str:
        """The stub of the component in a language, 0 for English and 1 for Chinese."""
        parts = [*textwrap.wrap(self.text[language], 116), "", *self.formula.strip().splitlines(), ""]
        parts += [f"    {line}" for line in self.example.strip().splitlines()]
        doc = "\n".join(f"    {line}".rstrip() for line in parts).strip() + "\n    "
        return self.code.strip().replace("{doc}", doc) + "\n"


@cache
def exercises() -> dict[str, Exercise]:
    """All exercises in teaching order."""
    table = tomllib.loads(Path(__file__).with_name("exercises.toml").read_text(encoding="utf-8"))
    return {
        name: Exercise(
            name=name,
            chapter=entry["chapter"],
            text=tuple(entry["text"]),
            formula=entry["formula"],
            example=entry["example"],
            code=entry["code"],
            hints=tuple(map(tuple, entry["hints"])),
            why=tuple(entry["why"]),
        )
        for name, entry in table.items()
    }


def of_chapter(chapter: str) -> list[Exercise]:
    """The exercises of a chapter, in teaching order."""
    return [exercise for exercise in exercises().values() if exercise.chapter == chapter]


def written_in(file: Path) -> list[Exercise]:
    """The exercises that a file defines at its top level, in teaching order; none if the file is not valid Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return [exercise for exercise in exercises().values() if exercise.name in names]


def files_of(wanted: Iterable[Exercise]) -> Sequence[Path]:
    """The files of the specification that test exercises."""
    wanted = list(wanted)
    chapters = "|".join({exercise.chapter for exercise in wanted} | {"03" for e in wanted if e.name == "ToTensor"})
    asks = re.compile(rf"[(,]\s*(?:{'|'.join(re.escape(exercise.name) for exercise in wanted)})\s*:")
    files = sorted(file for file in SPEC.glob("test_*.py") if re.match(f"test_({chapters})_", file.name))
    return [file for file in files if asks.search(file.read_text(encoding="utf-8"))]
