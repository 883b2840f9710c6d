"""The command lines of the scripts: their settings as a dataclass, with help in groups, in Chinese or English.

A setting is a field of the dataclass, and the string below it is its explanation. `GROUPS` of the class, if it has any,
sorts the settings into groups of the help text: {title: names}. tyro parses the arguments; the help text is written
here, because tyro counts a Chinese character as one column, which breaks the borders of its boxes.
"""

import ast
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from reference.errors import InputError
from reference.messages import choose_language, is_chinese, translated
from reference.text import width, wrapped

K = TypeVar("K")

INDENT = 24
"""Indentation of an explanation, in columns."""


def parse_arguments(
    kind: type[K], defaults: Mapping[str, Any] | None = None, arguments: Sequence[str] | None = None
) -> K:
    """Parse the command line into an instance of the dataclass `kind`; with `--help`, print the help text and exit.

    Args:
        kind: the dataclass; its docstring describes the command.
        defaults: values of settings that are not given, in place of the class's own.
        arguments: the words of the command line; by default `sys.argv[1:]`.

    Raises:
        InputError: a word cannot be used.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    choose_language("auto", words)
    if "--help" in words or "-h" in words:
        print(help_text(kind, defaults or {}, shutil.get_terminal_size().columns))
        sys.exit(0)
    with explained_by(kind, words):
        if defaults:
            return tyro.cli(kind, default=kind(**defaults), args=words)
        return tyro.cli(kind, args=words)


@contextmanager
def explained_by(kind: type, words: Sequence[str]) -> Iterator[None]:
    """Raise InputError, in one line, if tyro ends the program because of `words`."""
    try:
        with redirect_stderr(StringIO()):  # tyro's own message, a box in English
            yield
    except SystemExit as end:
        if end.code:
            raise InputError(fault(kind, words) or "the options cannot be used; see --help") from None
        raise


def fault(kind: type, words: Sequence[str]) -> str:
    """The message about the first word that is no option of `kind` or no value of one; empty if there is none."""
    hints = get_type_hints(kind, include_extras=True)
    known = {"--" + entry.name.replace("_", "-"): hints[entry.name] for entry in fields(kind)}
    positional = any(tyro.conf.Positional in marks(hint) for hint in known.values())
    switches = {f"--{no}{name[2:]}" for name, hint in known.items() if plain(hint) is bool for no in ("", "no-")}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if not word.startswith("-"):
            if not positional:
                return f"{word!r} is not expected here: options begin with --; see --help"
        elif name in switches:
            if equals:
                return f"{name} takes no value, got {value!r}"
        elif name not in known:
            similar = get_close_matches(name, [*known, *switches], 1, cutoff=0.75)
            return f"{name} is not an option; " + (f"similar: {similar[0]}" if similar else "see --help")
        else:
            if not equals and (not rest or rest[0].startswith("--")):
                return f"{name} needs a value: {metavar(known[name])}"
            value = value if equals else rest.pop(0)
            if wrong := required(known[name], value):
                return f"{name} must be {wrong}, got {value!r}"
            while get_origin(plain(known[name])) is tuple and rest and not rest[0].startswith("--"):
                rest.pop(0)
    return ""


def required(hint: Any, value: str) -> str:
    """What a setting requires, if `value` is not a value of it; otherwise empty."""
    kind = plain(hint)
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else "one of " + ", ".join(get_args(kind))
    for number, text in ((int, "a whole number"), (float, "a number")):
        if number in (kind, *get_args(kind)):
            try:
                number(value)
            except ValueError:
                return text
    return ""


def help_text(kind: type, defaults: Mapping[str, Any], columns: int) -> str:
    """The help text of a command, wrapped to a number of columns."""
    hints, texts = get_type_hints(kind, include_extras=True), explanations(kind)
    entries: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}
    grouped: dict[str, tuple[str, ...]] = getattr(kind, "GROUPS", {})
    known = {name for names in grouped.values() for name in names}
    groups = {"options": tuple(name for name in entries if name not in known)} | grouped
    script = Path(sys.argv[0]).name
    positional = [name for name in entries if tyro.conf.Positional in marks(hints[name])]
    usage = " ".join(
        [script, "[--help]", translated("[OPTIONS]"), *(f"[{metavar(hints[name])} ...]" for name in positional)]
    )
    paragraphs = [translated(" ".join(text.split())) for text in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    lines = [f"{translated('usage:')} {usage}"]
    for paragraph in paragraphs:
        lines += ["", *wrapped(paragraph, columns)]
    for title, names in groups.items():
        lines += ["", translated(title) + ("：" if is_chinese() else ":")] if names else []
        for name in names:
            default = defaults.get(name, entries[name].default)
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            if isinstance(default, bool):
                shown = translated("yes" if default else "no")
            ending = translated(" (default: {})").replace("{}", shown)
            if default is MISSING or default is None or default == ():
                ending = ""
            explained = list(wrapped(translated(texts[name]) + ending, columns - INDENT - 1))
            words = metavar(hints[name]) if name in positional else spelled(name, hints[name])
            if width(words) + 3 > INDENT:
                lines.append(f"  {words}")
                words = ""
            lines.append(f"  {words}{' ' * (INDENT - 2 - width(words))}{explained[0]}")
            lines += [" " * INDENT + line for line in explained[1:]]
    return "\n".join(lines)


def spelled(name: str, hint: Any) -> str:
    """A setting in the syntax of the command line: `--[no-]plots`, `--epochs N`, `--impl {torch,reference}`."""
    name = name.replace("_", "-")
    return f"--[no-]{name}" if plain(hint) is bool else f"--{name} {metavar(hint)}"


def metavar(hint: Any) -> str:
    """The placeholder for the value of a setting in the help text."""
    for mark in marks(hint):
        if found := getattr(mark, "metavar", None):
            return found
    kind = plain(hint)
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    names = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
    kinds = [part for part in (kind, *get_args(kind)) if part in names]
    return names[kinds[0]] if kinds else "TEXT"


def marks(hint: Any) -> tuple[Any, ...]:
    """The annotations of a type."""
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def plain(hint: Any) -> Any:
    """A type without its annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


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
