"""The report for users about their implementation: the first failure in full, and one line for each other cause.

The data is in the `user_properties` of the reports: `title`, `message`, `cause`, `examined`, `faults`,
`mistakes`, `ruled_out`, `paste`.
"""

import ast
import locale
import os
import re
import textwrap
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.messages import counted
from reference.text import wrapped
from spec.support.clauses import CLAUSES, LEVELS
from spec.support.reproduction import Call, literal
from spec.support.run import Run

WIDTH = 80
LONGEST = 30  # lines of the first failure
LEVELS_ZH = {"tutorial": "教程", "definition": "定义", "pytorch": "PyTorch"}


def chinese() -> bool:
    """Whether the reader's language is Chinese."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return (next((name for name in names if name), None) or locale.getlocale()[0] or "").lower().startswith("zh")


LINES = (
    (r"^(the result) differs at index (\[.*\])", r"结果在下标 \2 处不同"),
    (r"^the result differs in value", "结果的值不同"),
    (r"^the result has shape (\[.*\]), expected (\[.*\])", r"结果的形状为 \1，应为 \2"),
    (r"^the result has dtype (\S+), expected (\S+)", r"结果的 dtype 为 \1，应为 \2"),
    (r"^(\s*)got {2,}", r"\1得到      "),
    (r"^(\s*)expected {2,}", r"\1应为      "),
    (r"^(\s*)tolerance  none: no step of this computation rounds", r"\1容差      无：这个计算的每一步都没有舍入"),
    (r"^(\s*)tolerance  ", r"\1容差      "),
    (r"^(\s*)(\d+) of (\d+) numbers differs?, most at index (\[.*\])", r"\1\3 个数中有 \2 个不同，相差最大的下标是 \4"),
    (r"^not true: ", "不成立："),
    (r"^a call did not return within (\d+) s", r"一次调用未在 \1 秒内返回"),
)
"""The lines of a failure that learners see, in Chinese."""


def line_in_chinese(line: str) -> str:
    """A line of a failure in Chinese; a text that is not in the table is unchanged."""
    for english, translation in LINES:
        line = re.sub(english, translation, line)
    return line


def said(english: str, translation: str) -> str:
    """The text in the reader's language."""
    return translation if chinese() else english


def title(name: str) -> str:
    """The name of a test as words."""
    head, bracket, parameters = name.removeprefix("test_").partition("[")
    shown = "-".join(parameters.removesuffix("]").split("-")[1:]) if bracket else ""
    return head.replace("_", " ") + (f" [{shown}]" if shown else "")


# The data of a failure in its report


def message(error: BaseException, file: str | None) -> str:
    """The text of a failed assertion, or an error with the line of the implementation that raised it."""
    text = str(error).strip()
    if type(error).__name__ == "Failed":
        return text
    if isinstance(error, AssertionError):
        return f"not true: {text}"
    last = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file][-1:]
    place = "".join(f"\nat {os.path.basename(frame.filename)}:{frame.lineno}: {frame.line}" for frame in last)
    return f"{type(error).__name__}: {text.partition(chr(10) * 2)[0]}{place}"


def cause(error: BaseException, aspect: str, run: Run) -> str:
    """The cause by which failures are grouped, as text."""
    call = run.trace.calls[-1] if run.trace.calls else None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == run.file]
    text = str(error)
    if aspect == "errors":
        return "wrong arguments are accepted, or the error does not name them"
    if type(error).__name__ != "Failed" and not isinstance(error, AssertionError):
        unusual = _unusual(call)
        place = f" ({os.path.basename(run.file or '')}:{frames[-1].lineno})" if frames else ""
        return unusual[0] if unusual and frames else f"{type(error).__name__}: {text.splitlines()[0][:60]}{place}"
    if "has dtype" in text:
        return "the dtype of the result"
    unusual = _unusual(call)
    about = "" if aspect == "values" else f"{aspect}: "
    return about + (unusual[0] if unusual else "other numbers" if "has shape" not in text else "another shape")


def _unusual(call: Call | None) -> list[str]:
    """The features of a call that exceed the simplest use."""
    if call is None:
        return []
    names = list(call.signature.parameters) if call.signature else []
    arguments = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    found = []
    for name, value in arguments.items():
        default = call.signature.parameters[name].default if call.signature and name in names else None
        if isinstance(value, tuple) and all(isinstance(one, int) for one in value):
            found.append(f"{name} as a {'pair' if len(value) == 2 else 'tuple'}")
        elif isinstance(value, str):
            found.append(f"{name}={value!r}")
        elif isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16, torch.complex64):
            found.append(str(value.dtype).removeprefix("torch."))
        elif isinstance(value, bool | int | float) and value != default:
            found.append(name)
    return found


def paste(run: Run) -> str:
    """The last call as Python code that shows the difference, with the expected result if it is known."""
    text = run.trace.text(last=1)
    if text and run.difference is not None and run.difference[0] is run.trace.result:
        expected = run.difference[1]
        if isinstance(expected, Tensor) and expected.numel() <= 64:
            text = re.sub(r"print\((.*)\)$", r'print("got", \1)', text, flags=re.DOTALL | re.MULTILINE)
            text += f'\nprint("expected", {literal(expected.detach())})'
    try:
        ast.parse(text)
    except SyntaxError:  # an argument that cannot be written as Python, such as a data set of the test
        return ""
    return text


SMALL = 8  # the largest number of rows and columns of a matrix in the output


def drawing(run: Run) -> dict[str, Any]:
    """The last call as small matrices: `call` (in words), `arguments`, `got`, `expected` and the `wrong` cells."""
    call = run.trace.calls[-1] if run.trace.calls else None
    found: dict[str, Any] = {"arguments": {}}
    if call is not None:
        names = list(call.signature.parameters) if call.signature else []
        named = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
        tensors = {name: _matrix(value) for name, value in named.items() if isinstance(value, Tensor)}
        if any(value is None for value in tensors.values()):
            tensors = {}
        found["arguments"] = tensors
        found["call"] = f"{call.name}({', '.join(_argument(name, value) for name, value in named.items())})"
    if run.difference is not None and all(isinstance(part, Tensor) for part in run.difference):
        got, expected = (part.detach().cpu() for part in run.difference)
        drawn = _matrix(got), _matrix(expected)
        if None not in drawn:
            found |= {"got": drawn[0], "expected": drawn[1]}
    return found


def _matrix(value: Tensor) -> list[list[Any]] | None:
    """A tensor as rows of numbers, if it is small and has at most two dimensions of more than one."""
    sizes = [size for size in value.shape if size != 1]
    if len(sizes) > 2 or any(size > SMALL or not size for size in sizes) or value.is_complex():
        return None
    rows = value.detach().cpu().reshape([1] * (2 - len(sizes)) + sizes).tolist()
    return [[round(one, 4) if isinstance(one, float) else one for one in row] for row in rows]


def _argument(name: str, value: Any) -> str:
    return name if isinstance(value, Tensor) else f"{name}={value!r}"[:40]


# The report


def order(report: Any) -> tuple[int, str, int]:
    """The sort key of a report in teaching order: tests of level tutorial first, then definition, then pytorch."""
    properties = dict(report.user_properties)
    level = LEVELS.index(properties.get("level", LEVELS[0]))
    return level, report.nodeid.partition("::")[0], properties.get("order", 0)


SHARE = 3
"""A mistake is named if it explains at least one in this number of failures, or all numbers of one failure."""
_OF_BEGINNERS = "spec.faults.beginner_"


@dataclass(frozen=True)
class Mistake:
    """A known mistake that gives the numbers of an implementation.

    Attributes:
        name: The name of the fault.
        words: A description of the mistake.
        general: Whether it explains a good part of the failures.
        exact: Whether it explains several numbers of one failure.
        rank: How likely it is.
    """

    name: str
    words: str
    general: bool
    exact: bool
    rank: tuple[int, int, bool]

    def in_language(self, language: int) -> str:
        """The mistake in words, in English (0) or, where the table has it, in Chinese (1)."""
        return (translations().get(self.name.rpartition(":")[2]) if language else None) or self.words


@cache
def translations() -> dict[str, str]:
    """The mistakes of beginners in Chinese, by the name of the fault."""
    return tomllib.loads(Path(__file__).with_name("mistakes.zh.toml").read_text(encoding="utf-8"))


def mistakes(failures: Sequence[Any], passed: Sequence[Any]) -> dict[str, list[Mistake]]:
    """For each component the known mistakes that explain a failure of it, the likeliest first.

    Failures of level tutorial have the largest weight. Passed tests rule mistakes out.
    """
    gone = {name for report in (*failures, *passed) for name in dict(report.user_properties).get("ruled_out", ())}
    examined: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in (dict(report.user_properties) for report in failures):
        for component in one["components"] if one.get("examined") else ():
            examined[component].append(one)
    found = {}
    for component, ones in examined.items():
        at_first, at_all, words = Counter[str](), Counter[str](), dict[str, str]()
        exact = set[str]()
        for one in ones:
            names = [name for name in one["faults"] if name not in gone]
            at_all.update(names)
            at_first.update(names if one["level"] == LEVELS[0] else ())
            words.update(one["mistakes"])
            exact.update(names if one.get("exact") else ())
        tutorial = sum(one["level"] == LEVELS[0] for one in ones)
        rank = {name: (at_first[name], at_all[name], name.startswith(_OF_BEGINNERS)) for name in at_all}
        found[component] = [
            Mistake(name, words[name], at_all[name] * SHARE >= len(ones) or at_first[name] * 2 >= tutorial > 0,
                    name in exact, rank[name])
            for name in sorted(rank, key=lambda name: rank[name], reverse=True)
        ]  # fmt: skip
    return found


def diagnosis(properties: Mapping[str, Any], found: Mapping[str, list[Mistake]]) -> list[Mistake]:
    """The mistakes that a failure indicates: one, two that cannot be distinguished, or none.

    Mistakes that explain this failure come before a mistake that explains many others of the component.
    """
    of_its = [mistake for component in properties["components"] for mistake in found.get(component, ())]
    here = [m for m in of_its if m.name in properties.get("faults", ()) and (m.general or m.exact)]
    chosen = here or [mistake for mistake in of_its if mistake.general]
    return list({m.name: m for m in chosen if m.rank[:2] == chosen[0].rank[:2]}.values())[:2]


def first_failure(report: Any, found: Mapping[str, list[Mistake]]) -> list[str]:
    """One failure in full, in at most `LONGEST` lines."""
    properties = dict(report.user_properties)
    lines = [": ".join(filter(None, [", ".join(properties["components"]), properties["title"]]))[:WIDTH]]
    lines.append(f"  {report.nodeid}"[:WIDTH])
    text = str(properties.get("message", report.longreprtext))
    if 'print("expected"' in str(properties.get("paste", "")):  # because it prints both in full
        text = text.partition("\n  got all of")[0]
    for line in [line for line in text.splitlines() if line.strip()][:12]:
        lines += _wrapped(line_in_chinese(line) if chinese() else line, "  ")[:2]
    if fitting := diagnosis(properties, found):
        names = said(" or ", " 或 ").join(mistake.in_language(chinese()) for mistake in fitting)
        lines += _wrapped(said(f"diagnosis: {names}", f"诊断：{names}"), "  ")
    for name in properties["clauses"][:1]:
        entry = CLAUSES[name]
        text = entry.statement_zh if chinese() else entry.statement
        lines += _wrapped(said(f"why: {text} ({name})", f"规范：{text}（{name}）"), "  ")
    code = [part for line in str(properties.get("paste", "")).splitlines() for part in _code(line)]
    if code and len(lines) + len(code) + 1 <= LONGEST:
        lines += [said("paste into Python:", "在 Python 中粘贴运行："), *code]
    return lines[:LONGEST]


def _wrapped(text: str, indent: str) -> list[str]:
    head = indent + " " * (len(text) - len(text.lstrip()))
    if not chinese():
        return textwrap.wrap(text.strip(), WIDTH - 1, initial_indent=head, subsequent_indent=head + "  ") or [""]
    first, *more = wrapped(text.strip(), WIDTH - len(head) - 3)
    return [head + first, *(f"{head}  {line}" for line in more)]


def _code(line: str) -> list[str]:
    """A line of Python, broken where brackets allow it."""
    if len(line) <= WIDTH or "#" in line or "'" in line:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def others(failures: Sequence[Any], found: Mapping[str, list[Mistake]]) -> list[str]:
    """One line for each other cause."""
    groups: dict[str, int] = defaultdict(int)
    for report in failures:
        properties = dict(report.user_properties)
        fitting = [m for m in diagnosis(properties, found) if m.name in properties.get("faults", ())]
        reason = properties.get("cause", said("other reasons", "其他原因"))
        groups[fitting[0].in_language(chinese()) if fitting else reason] += 1
    return [
        "  " + said(f"{name[: WIDTH - 14]}: {counted(n, 'test')}", f"{name[: WIDTH - 14]}：{n} 个测试")
        for name, n in sorted(groups.items(), key=lambda g: -g[1])
    ]


def progress(reports: Sequence[tuple[str, Any]], absent: set[str]) -> Iterator[str]:
    """A line per component: the number of passed tests per level, the next test, and the functions that compute it."""
    passed: dict[str, Counter[str]] = defaultdict(Counter)
    judged: dict[str, Counter[str]] = defaultdict(Counter)
    following: dict[str, Any] = {}
    handed: dict[str, set[str]] = defaultdict(set)
    for outcome, report in sorted(reports, key=lambda pair: order(pair[1])):
        properties: Mapping[str, Any] = dict(report.user_properties)
        for component in properties["components"]:
            if component in absent:
                continue
            handed[component].update(dict(properties.get("handed_over", ())).get(component, ()))
            judged[component][properties["level"]] += 1
            if outcome in ("passed", "xfailed"):
                passed[component][properties["level"]] += 1
            else:
                following.setdefault(component, properties)
    for component, numbers in judged.items():
        levels = (
            f"{said(level, LEVELS_ZH[level])} {passed[component][level]}/{numbers[level]}"
            for level in LEVELS
            if numbers[level]
        )
        parts = [f"    {component:<18}", *levels]
        if component in following:
            ids = following[component]["clauses"]
            test = f"{following[component].get('title', '')}{f' ({ids[0]})' if ids else ''}"
            parts.append(said(f"next: {test}", f"下一个：{test}"))
        if handed[component]:
            names = ", ".join(sorted(handed[component]))
            parts.append(said(f"computed by {names}", f"由 {names} 计算"))
        yield "   ".join(parts)
