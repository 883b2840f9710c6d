"""The result of a check: lines in English or Chinese, JSON with a schema, and a page that works offline."""

import json
import locale
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reference.files import atomic_write
from reference.messages import counted
from reference.text import COLUMNS, printable, wrapped
from spec.documents.causes import Cause
from spec.documents.check import WRONG, Document, Result

SCHEMA = Path(__file__).with_name("check.schema.json")
TEMPLATE = "check.html.jinja"
TEMPLATES = Path(__file__).parents[1] / "report" / "templates"
"""The style of the specification's report."""

WORDS: dict[str, tuple[str, str]] = {
    "runs": ("runs", "可运行"),
    "warns": ("runs with deprecation warnings", "可运行，有弃用警告"),
    "differs": ("prints something else", "输出与文档不符"),
    "fails": ("fails", "失败"),
    "needs": ("missing requirement", "缺少运行条件"),
    "fragment": ("fragment", "片段"),
    "not run": ("not run", "未运行"),
    "line": ("line", "第 {} 行"),
    "cell": ("cell", "单元 {}"),
    "reason": ("reason", "原因"),
    "fix": ("fix", "修正"),
    "source": ("source", "来源"),
    "announced": ("fails as the document announces", "如文档所述出错"),
    "continues": ("continues the listing at line {}", "接续第 {} 行的代码"),
    "alone": ("alone: NameError at line {}: {}", "单独运行：第 {} 行 NameError：{}"),
    "cut": ("the loop at line {} was cut after {} passes", "第 {} 行的循环在 {} 次后截断"),
    "cut of": ("the loop at line {} was cut after {} of {} passes", "第 {} 行的循环在 {} 次后截断（共 {} 次）"),
    "cut while": ("the loop at line {} was cut when its time was over", "第 {} 行的循环超时后截断"),
    "cut time": (
        "it was cut at line {} when its time was over; the rest did not run",
        "超时，在第 {} 行中断，其余未运行",
    ),
    "said": ("the document says", "文档"),
    "printed": ("it prints", "实际输出"),
    "stand-ins": ("stand-ins for", "使用替代品"),
    "implied": ("with imports that the document does not show", "补充了文档未写出的导入"),
    "note": ("note", "提示"),
    "fixed": ("with the fix", "修正之后"),
    "data": ("the data set", "数据集"),
    "weights": ("pretrained weights", "预训练权重"),
    "images": ("images", "图像"),
    "folders": ("folders", "文件夹"),
    "input": ("input from the keyboard", "键盘输入"),
    "gpu": ("a GPU", "GPU"),
    "package": (
        "the package {0} is not installed: python -m pip install {0}",
        "没有安装包 {0}：python -m pip install {0}",
    ),
    "file": (
        "no listing of the document writes the file {}: add one that does, or a path that exists",
        "文档中没有代码写出文件 {}：请补上写出它的代码，或改用存在的路径",
    ),
    "needs images": (
        "images with the content that the document means: put them at the path and run the listing yourself",
        "需要文档所指内容的图像：请放到该路径，并自行运行这段代码",
    ),
    "needs input": (
        "other input from the keyboard than 1: run the listing yourself",
        "需要键盘输入，且不是 1：请自行运行这段代码",
    ),
    "network": (
        "a connection to the network, which listings do not have here: run the listing outside of the check",
        "需要网络连接，检查时没有网络：请在检查之外运行这段代码",
    ),
    "files": (
        "files outside of its folder, which the check refuses: {}",
        "检查不允许使用工作文件夹之外的文件：{}",
    ),
    "programs": ("another program, which the check does not start: {}", "检查不启动其他程序：{}"),
    "processes": ("more processes than the check allows: {}", "进程多于检查所允许的数量：{}"),
    "signals": ("signals to other processes, which the check refuses: {}", "检查不允许向其他进程发送信号：{}"),
    "memory": ("more memory: allow it with --memory GIB", "内存不足：用 --memory GIB 增加"),
    "time": ("more time: allow it with --seconds X", "时间不足：用 --seconds X 增加"),
    "ended": ("its process ended: {}", "进程已结束：{}"),
    "device": ("a device that this machine does not have: {}", "这台机器没有的设备：{}"),
    "arguments": (
        "arguments on the command line ({}): save the listing as a file and run it with them",
        "需要命令行参数（{}）：请把代码存为文件并带参数运行",
    ),
    "listing": ("names that the listing at {} defines, which does not run", "{} 处代码定义的名称，而它不能运行"),
    "listing on a GPU": ("its tensors on the GPU too, as the listing at {}", "与 {} 处代码一样把张量移到 GPU"),
    "name": ("it uses {}, which no listing before it defines", "使用了此前从未定义的 {}"),
    "module": ("{} stands for a module of the reader", "{} 代表读者自己的模块"),
    "excerpt": ("an excerpt", "节选"),
    "pseudo-code": ("parts are left out", "有省略"),
    "signature": ("a signature", "函数签名"),
    "comments": ("comments only", "只有注释"),
    "output": ("an output", "输出"),
    "shell": ("a command for the shell", "命令行"),
    "other": ("another language", "其他语言"),
    "empty": ("empty", "空"),
    "similar": ("a similar name is {}", "相近的名称是 {}"),
    "saved": ("it was saved as {}", "保存时的名称是 {}"),
}
"""The texts of the report in English and Chinese; `{}` is a variable part."""


def chosen_language(option: str | None) -> str:
    """The language of the report, from the option or the environment: "en" or "zh"."""
    if option:
        return option
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        if value := os.environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    name = locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


class Speaker:
    """Formats results in one language."""

    def __init__(self, language: str) -> None:
        self.number = 1 if language == "zh" else 0

    def word(self, key: str, *values: object) -> str:
        """A text of `WORDS`."""
        text = WORDS.get(key, (key, key))[self.number]
        return text.format(*values) if "{" in text else text

    def both(self, english: str, chinese: str) -> str:
        """The text in the language of the report."""
        return chinese if self.number else english

    def place(self, result: Result, line: int | None = None, cell: int = 0) -> str:
        """A position in the document."""
        number = result.listing.line if line is None else line
        lines = self.both(f"line {number}", f"第 {number} 行")
        if not result.listing.cell:
            return lines
        where = self.both(f"cell {cell or result.listing.cell}", f"单元 {cell or result.listing.cell}")
        return where if line is None else f"{where}, {lines}"

    def reason(self, result: Result) -> str:
        """The missing requirement of a result, or the reason why it is a fragment."""
        key, value = result.reason
        if not key:
            return ""
        return self.word(f"needs {key}" if f"needs {key}" in WORDS else key, value)

    def details(self, result: Result) -> Iterator[str]:
        """The lines under a result."""
        error = result.error
        if error is not None and result.verdict in ("fails", "needs", "fragment", "runs", "warns"):
            first = error["message"].strip().splitlines()[0] if error["message"].strip() else ""
            kind = error["type"].rpartition(".")[2]
            place = f"{self.place(result, error['line'], error['cell'])}: " if error["line"] else ""
            yield f"{place}{kind}: {first}"
        if result.reason[0] and (result.verdict in ("fails", "needs", "fragment")):
            yield self.reason(result)
        if result.announced:
            yield self.word("announced")
        if result.cause is not None and result.verdict == "fails":
            yield from self.cause(result.cause)
        for warning in result.warned:
            yield f"{self.place(result, warning['line'])}: {warning['text'].strip().splitlines()[0][:160]}"
            if warning["cause"] is not None:
                yield from self.cause(warning["cause"])
        for each in result.differences:
            yield f"{self.place(result, each['line'])}: {self.word('said')}: {_short(each['said'])}"
            yield f"{self.word('printed')}: {_short(each['printed'])}"
        for cut in result.cuts:
            key = {"while": "cut while", "time": "cut time"}.get(cut["kind"], "cut of" if cut["of"] else "cut")
            values = [cut["line"], cut["passes"], cut["of"]]
            yield self.word(key, *values)
        if result.implied:
            yield f"{self.word('implied')}: {'; '.join(result.implied)}"
        for note in result.notes:
            yield f"{self.word('note')}: {self.both(note.en, note.zh)} {self.both(note.fix_en, note.fix_zh)}"
        if result.continues and result.verdict not in ("not run",):
            yield self.word("continues", result.continues[-1])
        if result.alone and result.continues:
            yield self.word("alone", result.alone[1], result.alone[0])
        if result.stand_ins:
            yield f"{self.word('stand-ins')}: {', '.join(self.word(each) for each in result.stand_ins)}"
        if result.fixed is not None:
            after = result.fixed["error"]
            more = (
                f" ({after['type'].rpartition('.')[2]}: {after['message'].strip().splitlines()[0][:100]})"
                if after
                else ""
            )
            yield f"{self.word('fixed')}: {self.word(result.fixed['verdict'])}{more}"

    def cause(self, cause: Cause) -> Iterator[str]:
        """The reason, the remedy and the source of a known cause."""
        since = f" [{cause.since}]" if cause.since else ""
        yield f"{self.word('reason')}: {self.both(cause.en, cause.zh)}{since}"
        yield f"{self.word('fix')}: {self.both(cause.fix_en, cause.fix_zh)}"
        yield f"{self.word('source')}: {cause.source}"

    def summary(self, found: Sequence[Result]) -> str:
        """The counts of the verdicts."""
        counts = Counter(result.verdict for result in found)
        parts = [f"{self.word(verdict)} {count}" for verdict in WORDS if (count := counts.get(verdict))]
        return f"{self.both(counted(len(found), 'listing'), f'共 {len(found)} 段代码')}: {', '.join(parts)}"


def _short(text: str) -> str:
    lines = text.strip().splitlines()
    return " ⏎ ".join(line.strip() for line in lines[:4])[:200]


def lines(document: Document, language: str) -> Iterator[str]:
    """The report of a document for the terminal."""
    speaker = Speaker(language)
    yield printable(document.path)
    signs = {
        "runs": "ok",
        "warns": "~~",
        "differs": "!!",
        "fails": "!!",
        "needs": "--",
        "fragment": "..",
        "not run": "  ",
    }
    for result in document.results:
        yield printable(f"{signs[result.verdict]} {speaker.place(result)}: {speaker.word(result.verdict)}")
        if result.verdict != "not run":
            for line in speaker.details(result):
                first, *more = wrapped(printable(line), COLUMNS - 7)
                yield f"     {first}"
                yield from (f"       {part}" for part in more)
    yield printable(speaker.summary(document.results))


def as_json(documents: Sequence[Document]) -> dict[str, Any]:
    """The results as the schema `check.schema.json` describes them."""
    return {
        "version": 1,
        "python": platform.python_version(),
        "torch": version("torch"),
        "documents": [
            {
                "path": str(document.path),
                "wrong": document.wrong,
                "listings": [_listing(result) for result in document.results],
            }
            for document in documents
        ],
    }


def _listing(result: Result) -> dict[str, Any]:
    listing = result.listing
    return {
        "line": listing.line,
        "cell": listing.cell or None,
        "language": listing.language,
        "verdict": result.verdict,
        "error": result.error,
        "cause": _cause(result.cause),
        "reason": {"kind": result.reason[0], "value": result.reason[1]} if result.reason[0] else None,
        "warnings": [{**each, "cause": _cause(each["cause"])} for each in result.warned],
        "differences": result.differences,
        "notes": [_cause(cause) for cause in result.notes],
        "cuts": result.cuts,
        "stand_ins": result.stand_ins,
        "continues": result.continues,
        "alone": {"name": result.alone[0], "line": result.alone[1]} if result.alone else None,
        "announced": result.announced,
        "implied": result.implied,
        "seconds": result.seconds,
        "fixed": {**result.fixed, "code": result.fixed["code"]} if result.fixed else None,
        "code": listing.printed,
    }


def _cause(cause: Cause | None) -> dict[str, str] | None:
    if cause is None:
        return None
    names = ("id", "kind", "since", "en", "zh", "fix_en", "fix_zh", "source")
    return {name: getattr(cause, name) for name in names}


def write_json(documents: Sequence[Document], path: Path) -> None:
    """Write the results as JSON."""
    with atomic_write(path) as file:
        file.write((json.dumps(as_json(documents), ensure_ascii=False, indent=1) + "\n").encode())


def write_page(documents: Sequence[Document], path: Path, language: str) -> None:
    """Write the results as one self-contained page, in the style of the specification's report."""
    import jinja2
    from markupsafe import Markup

    folders = [str(Path(__file__).parent), str(TEMPLATES)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    pages = [
        {
            "path": str(document.path),
            "summary": [Speaker(each).summary(document.results) for each in ("en", "zh")],
            "results": [
                {
                    "verdict": result.verdict,
                    "words": WORDS[result.verdict],
                    "place": [Speaker(each).place(result) for each in ("en", "zh")],
                    "details": [list(Speaker(each).details(result)) for each in ("en", "zh")],
                    "code": result.listing.printed,
                    "wrong": result.verdict in WRONG,
                    "fixed": result.fixed["code"] if result.fixed else "",
                }
                for result in document.results
            ],
        }
        for document in documents
    ]
    page = environment.get_template(TEMPLATE)
    with atomic_write(path) as file:
        file.write(
            page.render(pages=pages, style=Markup(style), language="zh-CN" if language == "zh" else "en").encode()
        )
