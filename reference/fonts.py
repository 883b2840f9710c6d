"""Chapter 02: names in drawings: a font with the necessary characters, and labels that fit and remain distinct.

Pillow's built-in font contains little more than ASCII; it draws the same box for every other character. Names with
other characters are drawn with a system font that has all of them, if there is one. A name that no font can draw
becomes its number, `#7`, and a legend below the drawing gives the name in ASCII.
"""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

from reference.messages import translated
from reference.text import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MISSING = "\U0010fffe"  # a noncharacter: every font draws its replacement box for it
GOOD = ("sans", "gothic", "heiti", "hei", "yahei", "msyh", "pingfang", "arial")
BAD = ("serif", "math", "mono", "bold", "italic", "oblique", "light", "thin", "black", "condensed")


def font_folders() -> list[Path]:
    """The font folders of the system."""
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


@cache
def system_fonts() -> tuple[Path, ...]:
    """The font files of the system, plain sans-serif ones first."""

    def rank(path: Path) -> tuple[int, str]:
        name = path.name.lower()
        return sum(word in name for word in BAD) - any(word in name for word in GOOD), name

    files = [
        Path(folder, name)
        for start in font_folders()
        for folder, _, names in os.walk(start)
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf"))
    ]
    return tuple(sorted(files, key=rank))


def has(font: Font, text: str) -> bool:
    """Whether `font` has a glyph for every character of `text`."""
    return all(unicodedata.category(char) in ("Zs", "Mn", "Me", "Cf") or _has(font, char) for char in set(text))


@cache
def _has(font: Font, char: str) -> bool:
    return _drawn(font, char) not in (_drawn(font, MISSING), _drawn(font, " "))


def _drawn(font: Font, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)  # pyright: ignore[reportArgumentType]  (its stubs lack the buffer protocol)


@cache
def _opened(path: Path, size: int) -> Font | None:
    try:
        return ImageFont.truetype(str(path), size)
    except (OSError, ValueError):  # damaged, or a bitmap font of one size, such as an emoji font
        return None


@cache
def _plain(size: int) -> Font:
    return ImageFont.load_default(size)


def font_for(text: str, size: int) -> Font:
    """The first font with every character of `text`: Pillow's or a system font; if there is none, Pillow's."""
    if has(_plain(size), text):
        return _plain(size)
    fonts = (_opened(path, size) for path in system_fonts())
    return next((font for font in fonts if font is not None and has(font, text)), _plain(size))


def legible(text: str, size: int) -> str:
    """`text` in the chosen language, or in English if no font has the characters of the translation."""
    chosen = translated(text)
    line = chosen.replace("\n", " ")
    return chosen if has(font_for(line, size), line) else text


def font_file(text: str) -> Path | None:
    """The system font file that `font_for` chooses for `text`; None if it chooses Pillow's font.

    Matplotlib loads the font by the name of this file.
    """
    if has(_plain(12), text):
        return None
    fonts = ((path, _opened(path, 12)) for path in system_fonts())
    return next((path for path, font in fonts if font is not None and has(font, text)), None)


class Label(NamedTuple):
    """A text and its font."""

    text: str
    font: Font


class Labels(Mapping[int, Label]):
    """The label of each class in a drawing, by class number.

    All texts are different. The middle of a name that is too long is left out; if shortened names would be equal, the
    label is the number and the start of the name. A name that cannot be drawn becomes its number.

    Args:
        names: the names of the classes that the drawing shows, by class number.
        size: height of the letters in pixels.
        width: the largest width of a text in pixels.

    Attributes:
        legend: `#number = name in ASCII` of each name that cannot be drawn.
    """

    def __init__(self, names: Mapping[int, str], size: int, width: int) -> None:
        shown = {number: printable(name) for number, name in names.items()}
        fonts = {number: font_for(name, size) for number, name in shown.items()}
        undrawable = [number for number, name in shown.items() if not has(fonts[number], name)]
        self.legend = [f"#{number} = {ascii(shown[number])[1:-1]}" for number in undrawable]
        texts = {number: shortened(name, fonts[number], width) for number, name in shown.items()}
        texts |= {number: f"#{number}" for number in undrawable}
        count = Counter(texts.values())
        for number, text in texts.items():
            if count[text] > 1 and number not in undrawable:
                texts[number] = _cut(f"#{number} {shown[number]}", fonts[number], width)
        if len(set(texts.values())) < len(texts):
            texts = {number: f"#{number}" for number in texts}
        self.texts, self.fonts = texts, fonts

    def __getitem__(self, number: int) -> Label:
        return Label(self.texts[number], self.fonts[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def shortened(text: str, font: Font, width: int) -> str:
    """`text` without its middle, so that it is at most `width` pixels wide; at least one letter is kept."""
    kept = len(text)
    shown = text
    while font.getlength(shown) > width and kept > 1:
        kept -= 1
        dots = "…" if has(font, "…") else "..."
        shown = text[: kept - kept // 2] + dots + text[len(text) - kept // 2 :]
    return shown


def _cut(text: str, font: Font, width: int) -> str:
    """`text` without its end, so that it is at most `width` pixels wide; its first word is kept."""
    least = len(text.partition(" ")[0])
    while len(text) > least and font.getlength(text) > width:
        text = text[:-1]
    return text.rstrip()
