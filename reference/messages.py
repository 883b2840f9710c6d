"""The program's messages in Chinese: one table from each English message to its translation.

Messages are written in English where they are needed. `print_line` and the drawings pass them through `translated`,
which finds the English message in `TABLE` (`reference/chinese.py`) and inserts its variable parts, `{}`, into the
Chinese one, as `{0}`, `{1}`, …. A variable part that is a message of its own, of more than one word, is translated as
well. In English, and for a text that is not in the table, nothing changes. Only Python's own library is needed, because
`scripts/doctor.py` runs without packages.
"""

import locale
import os
import re
import sys
from collections.abc import Sequence
from typing import Literal

from reference.chinese import NOUNS, TABLE

Language = Literal["auto", "en", "zh"]

LONGEST = 4000
"""The length of the longest text that is looked up, in characters."""

_chinese = False


def choose_language(language: str = "auto", arguments: Sequence[str] | None = None) -> None:
    """Set the language of all messages that follow.

    Args:
        language: `en`, `zh`, or `auto`: the language of `--lang` among the arguments, otherwise that of the system.
        arguments: the words of the command line; by default `sys.argv[1:]`.
    """
    global _chinese
    words = list(sys.argv[1:] if arguments is None else arguments)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--lang":
            given = value if equals else "".join(words[place + 1 : place + 2])
            language = given if given in ("en", "zh") and language == "auto" else language
    _chinese = language == "zh" or (language not in ("en", "zh") and system_is_chinese())


def is_chinese() -> bool:
    """Whether messages are printed in Chinese."""
    return _chinese


def system_is_chinese() -> bool:
    """Whether the locale of the system is Chinese: by the environment, otherwise by the settings of the system."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return value.lower().startswith("zh")
    try:
        return (locale.getlocale()[0] or "").lower().startswith(("zh", "chinese"))
    except ValueError:  # a locale that Python does not know
        return False


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun in the chosen language: `1 image`, `2,000 images`.

    Args:
        number: the number.
        noun: the noun in the singular.
        plural: its plural, if it is not the singular with an s.
    """
    if _chinese and noun in NOUNS:
        return f"{number:,} {NOUNS[noun]}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def translated(text: str) -> str:
    """The message `text` in the chosen language."""
    if not _chinese or len(text) > LONGEST:
        return text
    return in_chinese(text)


def in_chinese(text: str, depth: int = 4) -> str:
    """The Chinese message for an English one; a text that is not in the table is unchanged."""
    if text in TABLE:
        return TABLE[text]
    if depth == 0:
        return text
    for template in _TEMPLATES:
        values = parts_of(text, template)
        if values is not None:
            return filled(TABLE[template.text], [part_in_chinese(value, depth - 1) for value in values])
    return text


def part_in_chinese(text: str, depth: int) -> str:
    """A variable part: a message of its own is translated; a single word is a name, such as a class called `test`."""
    return in_chinese(text, depth) if " " in text.strip() else text


def filled(chinese: str, values: list[str]) -> str:
    """A Chinese message with its variable parts; `{1}` is the second one of the English message."""
    return re.sub(r"\{(\d)\}", lambda place: values[int(place[1])], chinese)


class Template:
    """An English message with variable parts `{}`; `pieces` are the fixed parts around them."""

    def __init__(self, text: str) -> None:
        self.text, self.pieces = text, text.split("{}")


def parts_of(text: str, template: Template) -> list[str] | None:
    """The variable parts of `text`, if it is `template` filled in; each fixed part is found where it comes first.

    Linear in the length of the text, for any content, because names of files and classes come from outside.
    """
    first, *middle, last = template.pieces
    end = len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last) or len(first) > end:
        return None
    start, values = len(first), []
    for piece in middle:
        place = text.find(piece, start, end)
        if place < 0:
            return None
        values.append(text[start:place])
        start = place + len(piece)
    return [*values, text[start:end]]


# the message with the longest fixed text decides, so that a general one hides no special one; first those that begin
# with "error: " or "note: ", before which no other message has text
_TEMPLATES = sorted(
    (Template(text) for text in TABLE if "{}" in text),
    key=lambda template: (not template.text.startswith(("error: ", "note: ")), -sum(map(len, template.pieces))),
)
