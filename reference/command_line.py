"""The command lines of the scripts: their settings as a dataclass, with help in groups, in Chinese or English.

A setting is a field of the dataclass, and the string below it is its explanation. `GROUPS` of the class, if it has any,
sorts the settings into groups of the help text: {title: names}.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from reference.messages import choose_language, translated
from reference.text import styled

K = TypeVar("K")


def parse_arguments(
    kind: type[K], defaults: Mapping[str, Any] | None = None, arguments: Sequence[str] | None = None
) -> K:
    """Parse the command line into an instance of the dataclass `kind`.

    Args:
        kind: the dataclass; its docstring describes the command.
        defaults: values of settings that are not given, in place of the class's own.
        arguments: the words of the command line; by default `sys.argv[1:]`.
    """
    choose_language("auto", arguments)
    defaults = defaults or {}
    hints, texts = get_type_hints(kind, include_extras=True), explanations(kind)
    grouped: dict[str, tuple[str, ...]] = getattr(kind, "GROUPS", {})
    known = {name for names in grouped.values() for name in names}
    own = tuple(entry.name for entry in fields(kind) if entry.name not in known)  # pyright: ignore[reportArgumentType]
    groups = ({"options": own} if own else {}) | grouped
    entries = {entry.name: entry for entry in fields(kind)}  # pyright: ignore[reportArgumentType]

    def described(name: str) -> tuple[str, Any, Any]:
        hint = Annotated[hints[name], tyro.conf.arg(help=translated(texts[name]))]
        return name, hint, field_with(entries[name], defaults)

    parts = []
    for number, (title, names) in enumerate(groups.items()):
        part = make_dataclass(f"Part{number}", [described(name) for name in names], kw_only=True)
        part.__doc__ = " "
        parts.append(
            (f"part{number}", Annotated[part, tyro.conf.arg(name=translated(title)), tyro.conf.OmitArgPrefixes])
        )
    whole = make_dataclass("Command", parts, kw_only=True)
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    described_as = "\n\n".join(translated(" ".join(paragraph.split())) for paragraph in paragraphs)
    with styled():
        found = tyro.cli(whole, description=described_as, args=arguments)
    values = {name: value for part in vars(found).values() for name, value in vars(part).items()}
    return kind(**values)


def field_with(entry: Field[Any], defaults: Mapping[str, Any]) -> Any:
    """The field of a group of settings, with its default."""
    if entry.name in defaults:
        return field(default=defaults[entry.name])
    return field() if entry.default is MISSING else field(default=entry.default)


@cache
def explanations(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of its bases, in one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for entry, below in zip(body.body, body.body[1:], strict=False):
            match entry, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
