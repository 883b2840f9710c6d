"""Chapter 00: text that leaves the program, to a console or into JSON.

Names of files and classes, texts inside checkpoints and responses of servers come from outside. Printed unchanged,
they can move the cursor, change colours, reverse the reading order, or forge a second answer by a line break; and not
every console can encode them. `printable` makes one line of such a text, and `print_line` prints it. `Console` replaces
standard output and standard error in every script (`reference.errors.exit_with`): it escapes all text that did not go
through `printable`, and never raises an error, for any encoding of the console and even if nobody reads the output.
`json_text` writes strict JSON.
"""

import codecs
import errno
import io
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from reference.messages import translated

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are escaped: controls, format characters, lone surrogates, line and paragraph separators."""
JOINERS = "\u200c\u200d"
"""Format characters in words of some scripts and in emoji; they are kept between characters outside of ASCII."""

COLOUR = re.compile("(\x1b\\[[0-9;]*m)")


def printable(text: object) -> str:
    r"""`text` as one line without control characters: each of them becomes its Python escape, such as `\n` or `\x1b`.

    Escaped are the Unicode categories in `HIDDEN`. Lone surrogates are among them: a byte of a file name that is not
    UTF-8, 0xC3 say, becomes `\udcc3`. Letters of every script, emoji and spaces are kept.

    Args:
        text: a string, a path, or any other object, which is converted by `str`.
    """
    return _escaped(os.fsdecode(text) if isinstance(text, bytes | os.PathLike) else str(text))


def is_printable(text: str) -> bool:
    """Whether `printable` leaves `text` unchanged."""
    return printable(text) == text


def print_line(text: object, *, error: bool = False) -> None:
    """Print `text` as one line, `printable`, in the chosen language, and flush; with `error` to standard error."""
    shown = printable(text)
    print(translated(shown) if isinstance(text, str) else shown, file=sys.stderr if error else sys.stdout, flush=True)


COLUMNS = 80
"""The width of a terminal by default, in columns."""


def print_wrapped(text: str, *, error: bool = False) -> None:
    """Print `text` as `print_line` does, but wrapped to lines of 80 columns; the following lines are indented.

    A word that is longer than a line, such as a path, is not broken, so that it can be copied.
    """
    first, *more = wrapped(translated(printable(text)), COLUMNS - 2)
    print("\n  ".join([first, *more]), file=sys.stderr if error else sys.stdout, flush=True)


def wrapped(text: str, columns: int) -> Iterator[str]:
    """`text` wrapped to lines of at most `columns`, at spaces and between Chinese characters."""
    line = ""
    for piece in pieces(text):
        if line and width(line + piece.rstrip()) > columns:
            yield line.rstrip()
            line = ""
        line += piece
    yield line.rstrip()


def pieces(text: str) -> Iterator[str]:
    """The unbreakable parts of `text`: words with the space after them, quoted words, and single Chinese characters."""
    part = ""
    quoted = {place for match in QUOTED.finditer(text) for place in range(*match.span())}
    for place, char in enumerate(text):
        part += char
        following = text[place + 1 : place + 2]
        wide = width(char) == 2 or (following and width(following) == 2)
        if place not in quoted and (char == " " or (wide and following not in CLOSING and char not in OPENING)):
            yield part
            part = ""
    if part:
        yield part


QUOTED = re.compile(r"(?<!\S)'[^']+'(?=\s|$)")
"""An argument as the shell quotes it: broken over two lines it could not be pasted."""

CLOSING, OPENING = (*"，。；：、）”’！？…,.;:)]}", " "), (*"（“‘([{",)
"""Characters that must not begin a line, and characters that must not end a line."""


def width(text: str) -> int:
    """The width of a text on a terminal, in columns: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _escaped(text: str, keep: str = "") -> str:
    """`text` with every character of the categories in `HIDDEN` escaped, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char if char in keep or not _hidden(text, place) else ascii(char)[1:-1] for place, char in enumerate(text)
    )


def _hidden(text: str, place: int) -> bool:
    char = text[place]
    if char in JOINERS:
        around = (text[place - 1 : place], text[place + 1 : place + 2])
        return not all(other > "\x7f" and unicodedata.category(other) not in HIDDEN for other in around)
    return unicodedata.category(char) in HIDDEN


def json_text(
    content: Any, *, indent: int | None = None, encoding: str = "utf-8", default: Callable[[Any], Any] | None = None
) -> str:
    """`content` as JSON that every parser accepts: numbers that are not finite become `null`.

    Characters that `printable` would escape are written as JSON's own escapes, and so are all characters outside of
    ASCII unless `encoding` is UTF-8: JSON between programs is UTF-8 (RFC 8259), of which ASCII is a part.

    Args:
        content: dictionaries, lists, tuples, strings, numbers, truth values and None.
        indent: spaces per level; None writes one line.
        encoding: of the file or console that the text is for.
        default: called for any other object, as by `json.dumps`.

    Raises:
        TypeError: `content` holds another object, and there is no `default`.
    """

    def dumped(value: Any, ascii_only: bool) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=default)

    try:
        text = dumped(content, False)
    except ValueError:
        content = _finite(content)
        text = dumped(content, False)
    if not text.isprintable():
        text = "".join(
            char if char == "\n" or not _hidden(text, place) else json.dumps(char)[1:-1]
            for place, char in enumerate(text)
        )
    return text if codecs.lookup(encoding).name == "utf-8" else dumped(content, True)


def _finite(value: Any) -> Any:
    """`value` with None in place of each number that is not finite."""
    if isinstance(value, dict):
        return {_finite(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Console(io.TextIOBase):
    """A wrapper of standard output or standard error: printing never raises an error and never controls the terminal.

    Control characters are escaped, except line breaks, tabs, and a carriage return at the start of a write, which
    begins a progress bar. Characters that the encoding lacks are escaped. When the stream fails (the pipe is closed,
    the terminal is gone, the disk is full), the error is kept in `lost` and all later output is dropped: a training
    does not end because its output does.

    Args:
        stream: the stream to write to; None if the process was started without it (`2>&-`).
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.lost: Exception | None = None
        self.styled = False

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.stream.encoding or "utf-8"

    @property
    def buffer(self) -> Any:
        return self.stream.buffer

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.lost is None and self.stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        start = "\r" * text.startswith("\r")
        parts = COLOUR.split(text[len(start) :]) if self.styled else [text[len(start) :]]
        shown = start + "".join(part if place % 2 else _escaped(part, "\n\t") for place, part in enumerate(parts))
        content = shown.encode(self.encoding, "backslashreplace")
        try:
            self._attempt(self.stream.write, content.decode(self.encoding))
        except RuntimeError:  # a signal's handler prints while the same stream is being written
            self._attempt(os.write, self.fileno(), content)
        return len(text)

    def flush(self) -> None:
        with suppress(RuntimeError):
            self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[..., object], *arguments: object) -> None:
        if self.lost is not None:
            return
        try:
            action(*arguments)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.lost = error
            with suppress(OSError, ValueError):  # its buffered output must not raise an error at the end of the process
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)

    @property
    def failed(self) -> bool:
        """Whether output was lost for another reason than a closed reader, for instance a full disk."""
        gone = (errno.EPIPE, errno.EBADF, errno.EIO, errno.EINVAL)  # EINVAL: a broken pipe on Windows
        return isinstance(self.lost, OSError) and self.lost.errno not in gone


def open_console() -> None:
    """Make `sys.stdout` and `sys.stderr` of this process `Console`s.

    Descriptors 0 to 2 that are closed are opened first: otherwise a data file could get one of these numbers and
    receive the output of libraries to standard error.
    """
    while (taken := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(taken)
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Console):
            setattr(sys, name, Console(stream))


def output_lost() -> bool:
    """Whether printed text no longer reaches a reader, as after `| head -1`."""
    return isinstance(sys.stdout, Console) and sys.stdout.lost is not None


@contextmanager
def styled() -> Iterator[None]:
    """Allow colour codes temporarily, for the program's own help text."""
    consoles = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Console)]
    for console in consoles:
        console.styled = True
    try:
        yield
    finally:
        for console in consoles:
            console.styled = False
