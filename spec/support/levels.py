"""The levels of a trial: each test has one level and one aspect.

The first clause of a test determines both, unless a marker does: `@pytest.mark.level("tutorial")`,
`@pytest.mark.aspect("text")`. Two rules have precedence over the clause: a test that expects an error has the aspect
errors, and a property, which draws its examples, never has the level tutorial.

`python -m spec.support.levels` prints how many tests each chapter has of each level and aspect.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from types import CodeType
from typing import Any

import pytest

from spec.support.clauses import ASPECTS, CLAUSES, LEVELS, Clause

LOW_PRECISION = "low-precision"
"""A value of `--without` besides the aspects: float16 and bfloat16."""

OBSERVATIONS = "observations"
"""A value of `--without`: the tests of behaviour that PyTorch's documentation does not promise."""

_EXPECTS_AN_ERROR = {"rejects", "raises"}


def level_of(item: pytest.Item) -> str:
    """The level of a test.

    Raises:
        ValueError: a marker has an unknown level.
    """
    if (marked := _marked(item, "level", LEVELS)) is not None:
        return marked
    main, aspect = _main_clause(item), aspect_of(item)
    if main is None:
        return "tutorial"
    level = (main if aspect == main.aspect else replace(main, own_aspect=aspect)).level
    return max(level, "definition" if _is_property(item) else level, key=LEVELS.index)


def aspect_of(item: pytest.Item) -> str:
    """The aspect of a test.

    Raises:
        ValueError: a marker has an unknown aspect.
    """
    if (marked := _marked(item, "aspect", ASPECTS)) is not None:
        return marked
    if _expects_an_error(_function(item).__code__):
        return "errors"
    main = _main_clause(item)
    return "values" if main is None else main.aspect


def _marked(item: pytest.Item, name: str, known: tuple[str, ...]) -> str | None:
    marker = item.get_closest_marker(name)
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.args[0] not in known:
        raise ValueError(f"{item.nodeid}: the marker {name} needs one of {', '.join(known)}, got {marker.args!r}")
    return str(marker.args[0])


def _main_clause(item: pytest.Item) -> Clause | None:
    marker = item.get_closest_marker("clause")
    return CLAUSES[marker.args[0]] if marker is not None else None


def _function(item: pytest.Item) -> Callable[..., Any]:
    """The original test function, without the wrappers of decorators."""
    function = item.function  # pyright: ignore[reportAttributeAccessIssue]
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _is_property(item: pytest.Item) -> bool:
    function = item.function  # pyright: ignore[reportAttributeAccessIssue]
    return hasattr(function, "hypothesis") or hasattr(_function(item), "hypothesis")


@cache
def _expects_an_error(code: CodeType) -> bool:
    return not _EXPECTS_AN_ERROR.isdisjoint(_names(code))


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that a function uses, also in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class Table:
    """A pytest plugin that counts the tests of implementations.

    Attributes:
        counts: The number of tests by chapter, level and aspect.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count each test once."""
        for item in session.items:
            properties = dict(item.user_properties)
            if "implementation" in properties:
                self.counts[item.path.name[5:7], properties["level"], properties["aspect"]] += 1  # pyright: ignore[reportArgumentType]

    def lines(self) -> Iterator[str]:
        """The table: a line per chapter, and one for all."""
        columns = (*LEVELS, *ASPECTS)
        yield "chapter  " + "  ".join(columns)
        chapters = sorted({chapter for chapter, _, _ in self.counts})
        for name, chosen in [*((chapter, [chapter]) for chapter in chapters), ("all", chapters)]:
            numbers = [
                sum(n for (chapter, *kinds), n in self.counts.items() if chapter in chosen and column in kinds)
                for column in columns
            ]
            yield f"{name:<7}  " + "  ".join(
                f"{number:>{len(column)}}" for number, column in zip(numbers, columns, strict=True)
            )


def count(*where: str) -> Table:
    """The tests of the whole specification, or of some of its files, counted."""
    table = Table()
    options = (
        "--impl",
        "reference",
        "--collect-only",
        "-q",
        "-q",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    )
    with redirect_stdout(StringIO()):
        pytest.main([*(where or ("spec",)), *options, "-n", "0"], plugins=[table])
    return table


if __name__ == "__main__":
    print(*count().lines(), sep="\n")
