"""Comparison of the output of a listing with the output in the document.

Only reproducible outputs are compared. A difference counts if both texts have the same words and different numbers. It
never counts if the output depends on chance (`check` runs the listings again with other seeds), on the time, on this
machine, on a version, or on substitute data.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spec.documents.extract import Listing

_NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?j?(?![A-Za-z_])|\b(?:nan|inf|True|False)\b"
)
_HERE = re.compile(
    r"__version__|\bcuda\b|\bmps\b|device|\btime\b|perf_counter|timeit|getcwd|listdir|platform|sys\.path|sys\.version|"
    r"num_threads|cpu_count|\bid\(|hash\(|getsizeof|psutil|data_ptr|tqdm|get_model|list_models|\bhelp\(|\bdir\(|"
    r"__file__|datetime|\bempty\(|empty_like|Tensor\(\d|FloatTensor\(\d|IntTensor\(\d|LongTensor\(\d|new\(|environ|glob|walk\("
)
"""Code with an output that depends on machine, version or time; `torch.empty` shows uninitialized memory."""
_LEAVE_OUT = re.compile(
    r"^\s*#?\s*(?:\.\.\.+|…+|余下.{0,4}|省略.{0,8}|略|以下.{0,6}略.*|and so on|omitted|etc\.?)\s*$|\.\.\.|…|省略|下略"
)
_PREFIX = re.compile(
    r"^\s*(?:(?:打印|输出|运行|返回)?(?:输出|结果|打印|返回|值)(?:结果|如下|内容|为|是)*|outputs?|out|prints?|result|returns?|gives?|shows?|\[?out(?:put)?\]?)\s*"
    r"(?:\[\d*\])?\s*(?:[:：=>]+|如下)?\s*|^\s*(?:=+>|-+>|>+)\s*",
    re.IGNORECASE,
)
_AWAY = (
    (re.compile(r",?\s*grad_fn=<\w+>"), ""),
    (re.compile(r",?\s*device='(?:cuda|simulated)(?::\d)?'"), ""),
    (re.compile(r",?\s*requires_grad=True"), ""),
    (re.compile(r"\bnp\.(?:float|int|bool|str|complex)_?\d*\(([^()]*)\)"), r"\1"),
    (re.compile(r"(?:,\s*)?dtype=torch\.(?:int64|float32)"), ""),
    (re.compile(r"0x[0-9a-fA-F]+"), "0x"),
)


@dataclass(frozen=True)
class Difference:
    """An output that differs from the document.

    Attributes:
        line: The line of the code that printed.
        said: The output in the document.
        printed: The actual output.
    """

    line: int
    said: str
    printed: str


def plain(text: str) -> str:
    """A text without the parts that differ between versions and devices, with single spaces."""
    for pattern, instead in _AWAY:
        text = pattern.sub(instead, text)
    return re.sub(r"\s+", " ", text).strip()


def skeleton(text: str) -> str:
    """A text without its numbers; a row of numbers of any length counts as one."""
    text = re.sub(r"\s+", "", _NUMBER.sub("#", plain(text)))
    previous = ""
    while previous != text:
        previous = text
        text = re.sub(r"#\.?(?:,?#\.?)+", "#", text).replace("#.", "#")
        text = text.replace("[#],[#]", "[#]").replace("[[#]]", "[#]")
    return text


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(plain(text))


def same_numbers(said: str, printed: str) -> bool:
    """Whether two texts have equal numbers, up to the digits of the less precise one."""
    left, right = _numbers(said), _numbers(printed)
    return len(left) == len(right) and all(_equal(a, b) for a, b in zip(left, right, strict=True))


def _equal(said: str, printed: str) -> bool:
    if said == printed:
        return True
    try:
        a, b = complex(said), complex(printed)
    except ValueError:
        return False
    if a == b:
        return True
    if a != a and b != b:
        return True
    digits = min(_digits(said), _digits(printed))
    return digits > 0 and abs(a - b) <= 1.01 * 10.0**-digits * max(1.0, 10 ** _exponent(said))


def _digits(number: str) -> int:
    mantissa = re.split("[eE]", number)[0].rstrip("j")
    return len(mantissa.partition(".")[2])


def _exponent(number: str) -> int:
    found = re.search(r"[eE]([-+]?\d+)", number)
    return int(found[1]) if found else 0


def differs(said: str, printed: str) -> bool:
    """Whether an output contradicts the document: the same words with different numbers."""
    if not _numbers(said) or _LEAVE_OUT.search(said):
        return False
    if skeleton(said) != skeleton(printed) or (re.fullmatch(r"#*", skeleton(said)) and not _bare(said, printed)):
        return False
    return not same_numbers(said, printed)


def _bare(said: str, printed: str) -> bool:
    """Compare texts of numbers only: a single number each, or the same count of numbers."""
    return len(_numbers(said)) == len(_numbers(printed))


def comments(listing: Listing) -> list[tuple[int, str]]:
    """The comments that may document the output of a line: at its end, or in the comment lines below it."""
    lines = listing.code.splitlines()
    found: list[tuple[int, str]] = []
    number = 0
    while number < len(lines):
        code, comment = _split(lines[number])
        number += 1
        if not code.strip() or not re.search(r"print\s*\(|\)\s*$|\]\s*$|^\s*[\w.]+\s*$", code.rstrip()):
            continue
        if comment.strip():
            found.append((number, _without_prefix(comment)))
        below: list[str] = []
        while number < len(lines) and lines[number].lstrip().startswith("#"):
            below.append(lines[number].lstrip()[1:])
            number += 1
        if below:
            text = "\n".join(below).lstrip("# \n") if below else ""
            found.append((number - len(below), _without_prefix(text)))
    return [(line, text) for line, text in found if _numbers(text) and not _numbering(text)]


def _split(line: str) -> tuple[str, str]:
    """A line's code and its comment."""
    quote = ""
    for place, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#":
            return line[:place], line[place + 1 :]
    return line, ""


def _without_prefix(text: str) -> str:
    lines = [re.sub(r"^\s?#?\s?", "", line) for line in text.splitlines()]
    while lines and not _numbers(lines[0]) and (_PREFIX.match(lines[0]) or not lines[0].strip()):
        lines.pop(0)
    text = "\n".join(lines)
    found = _PREFIX.match(text)
    return text[found.end() :] if found and found.end() else text


def _numbering(text: str) -> bool:
    """A comment that only counts: `# 1`, `# 2.`."""
    return re.fullmatch(r"\s*\(?\d{1,2}\s*[.、)）]?\s*", text) is not None


def differences(listing: Listing, report: dict) -> list[Difference]:
    """All outputs of a listing that contradict the document.

    Args:
        listing: The listing.
        report: The report of `child`.
    """
    if report["cuts"] or _HERE.search(listing.code):
        return []
    printed: dict[int, list[str]] = {}
    for line, text in report["out"]:
        printed.setdefault(line, []).append(text)
    for line, text in report["shown"]:
        printed.setdefault(line, []).append(text)
    found: list[Difference] = []
    for line, said in (*comments(listing), *((n, t) for n, t in listing.outputs if n)):
        texts = printed.get(line) or printed.get(_statement(listing, line), [])
        elsewhere = any(_agrees(said, text) for others in printed.values() for text in others)
        if len(texts) == 1 and differs(said, texts[0]) and not elsewhere:
            found.append(Difference(line, said.strip(), texts[0].strip()))
    whole = "".join(text for _, text in report["out"])
    last = report["shown"][-1][1] if report["shown"] else ""
    for line, said in listing.outputs:
        if line:
            continue
        candidates = [text for text in (whole, f"{whole}{last}\n", last) if text.strip()]
        if candidates and not _LEAVE_OUT.search(said) and all(differs(said, text) for text in candidates):
            where = report["out"][-1][0] if report["out"] else report["shown"][-1][0]
            found.append(Difference(where, said.strip(), candidates[0].strip()))
        elif len(candidates) > 1 and not _LEAVE_OUT.search(said):
            same = [text for text in candidates if skeleton(text) == skeleton(said)]
            if same and all(differs(said, text) for text in same):
                found.append(Difference(report["shown"][-1][0], said.strip(), same[0].strip()))
    return found


def _agrees(said: str, printed: str) -> bool:
    """Whether a comment belongs to another output than the line above it."""
    return skeleton(said) == skeleton(printed) and same_numbers(said, printed)


def _statement(listing: Listing, line: int) -> int:
    """The first line of the statement that ends at a line."""
    tree = listing.tree
    if tree is None:
        return line
    return next((node.lineno for node in tree.body if node.lineno <= line <= (node.end_lineno or 0)), line)


def unstable(before: Sequence[Difference], report: dict) -> list[Difference]:
    """The differences that remain after a second run with other seeds, because the output did not change."""
    texts: dict[int, list[str]] = {}
    for line, text in (*report["out"], *report["shown"]):
        texts.setdefault(line, []).append(plain(text))
    whole = plain("".join(text for _, text in report["out"]))
    return [
        each
        for each in before
        if plain(each.printed) in (texts.get(each.line, []))
        or plain(each.printed) in whole
        or any(plain(each.printed) == text for found in texts.values() for text in found)
    ]
