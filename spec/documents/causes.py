"""The table of known causes, `causes.toml`, and the search for the cause of an error or a warning."""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("causes.toml")


@dataclass(frozen=True)
class Cause:
    """An entry of the table; `causes.toml` describes its fields."""

    id: str
    kind: str
    en: str
    zh: str
    fix_en: str
    fix_zh: str
    source: str
    before: str
    after: str
    since: str = ""
    error: str = ""
    warning: str = ""
    code: str = ""
    unless: str = ""
    fix: str = ""
    outside_text: bool = False
    special: bool = False
    rename: dict[str, str] = field(default_factory=dict)
    rename_method: dict[str, str] = field(default_factory=dict)
    rename_attribute: dict[str, str] = field(default_factory=dict)
    rename_keyword: dict[str, str] = field(default_factory=dict)
    rename_module: dict[str, str] = field(default_factory=dict)
    drop: tuple[tuple[str, str], ...] = ()

    @property
    def automatic(self) -> bool:
        """Whether `--fix` can apply the remedy."""
        renames = (self.rename, self.rename_method, self.rename_attribute, self.rename_keyword, self.rename_module)
        return bool(self.fix or self.drop or any(renames))

    def fits(self, code: str) -> bool:
        """Whether a listing fulfils the conditions of the cause."""
        if self.unless and re.search(self.unless, code):
            return False
        return not self.code or re.search(self.code, without_text(code) if self.outside_text else code) is not None


@cache
def table() -> dict[str, Cause]:
    """All causes by id, in the order of the file: the first that matches explains an error."""
    entries: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        name: Cause(id=name, **{**entry, "drop": tuple(map(tuple, entry.get("drop", ())))})
        for name, entry in entries.items()
    }


def without_text(code: str) -> str:
    """A program without the content of its strings and without its comments."""
    code = re.sub(r'"""[\s\S]*?"""|' + r"'''[\s\S]*?'''", '""', code)
    return re.sub(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#.*", '""', code)


def of_error(kind: str, message: str, code: str) -> Cause | None:
    """The cause of an error.

    Args:
        kind: Its type.
        message: Its text.
        code: The program.
    """
    text = f"{kind.rpartition('.')[2]}: {message}"
    for cause in table().values():
        if cause.kind == "note" or cause.special or not cause.error:
            continue
        if re.search(cause.error, text) and cause.fits(code):
            return cause
    return None


def of_warning(text: str, code: str) -> Cause | None:
    """The cause of a warning."""
    for cause in table().values():
        if cause.warning and re.search(cause.warning, text) and cause.fits(code):
            return cause
    return None


def notes(code: str) -> list[Cause]:
    """Known causes that apply to a running listing: obsolete code, or code that depends on the system."""
    return [cause for cause in table().values() if cause.kind == "note" and cause.fits(code)]
