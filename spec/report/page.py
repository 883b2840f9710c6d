"""index.html: one self-contained page, rendered from report.json alone."""

import base64
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from reference.files import atomic_write
from spec.report import compare, figures
from spec.report.document import OUTCOMES, Report, function_of

TEMPLATES = Path(__file__).with_name("templates")

PROJECT = ("project", "项目")
"""The column of the tests without an implementation: listings of the tutorial, scripts, files."""

SHOWN = 5
"""The number of failures per test function and implementation that the page shows in full; report.json has all."""

SPAN_ZH = {"since": "自 {} 起成立", "until": "到 {} 为止成立", "in": "在 {} 中成立"}
"""Chinese for the words with which `compare.span` begins."""

NOT_HOLDING = ("refuted", "imprecise", "version-dependent")

CHAPTERS = {
    "00": ("Machine and project", "机器与项目"),
    "01": ("Dataset", "Dataset 类"),
    "02": ("TensorBoard", "TensorBoard"),
    "03": ("Transforms", "Transforms 结构"),
    "04": ("Transforms in use", "常用 Transforms"),
    "05": ("Data sets of torchvision", "torchvision 数据集"),
    "06": ("DataLoader", "DataLoader"),
    "07": ("nn.Module", "nn.Module"),
    "08": ("Convolution", "卷积操作"),
    "09": ("Convolution layer", "卷积层"),
    "10": ("Pooling", "池化层"),
    "11": ("Activation", "非线性激活"),
    "12": ("Linear and further layers", "线性层与其他层"),
    "13": ("Sequential and networks", "Sequential 与网络"),
    "14": ("Loss and backward", "损失函数与反向传播"),
    "15": ("Optimizers", "优化器"),
    "16": ("Pretrained networks", "预训练网络"),
    "17": ("Saving and loading", "模型的保存与读取"),
    "18": ("Training", "完整的训练"),
    "19": ("Training on a GPU", "GPU 训练"),
    "20": ("Prediction", "模型验证"),
    "21": ("Colab", "Colab"),
    "–": ("The specification itself", "规范自身"),
}
"""Subject of each chapter, in English and Chinese; "–" stands for tests without a clause."""


@cache
def environment() -> jinja2.Environment:
    """The templates; everything that they insert is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals |= {"figures": figures, "safe": jinja2.utils.markupsafe.Markup}
    return made


def part(name: str) -> str:
    """A style sheet or a script, which the page contains."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    """JSON for a script element: no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def packed(data: Any) -> str:
    """JSON as zlib-compressed Base64: a third of its size, and a browser unpacks it without a library."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


class View:
    """The data of the page.

    Args:
        report: The report.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.clauses: Mapping[str, Any] = report["specification"]["clauses"]
        many = len(report["environments"]) > 1
        self.columns: list[dict[str, Any]] = []
        self.number: dict[tuple[str | None, int], int] = {}
        present = {(test["implementation"], test["environment"]) for test in report["tests"]}
        listed = [(entry["id"], entry["environment"]) for entry in report["implementations"]]
        rest = sorted(present - {*listed}, key=lambda pair: (pair[1], pair[0] or ""))
        for name, place in [*(pair for pair in listed if pair in present), *rest]:
            where = f" ({compare.place_text(report['environments'][place])})" if many else ""
            self.number[name, place] = len(self.columns)
            en, zh = (name, name) if name else PROJECT
            self.columns.append({"en": en + where, "zh": zh + where, "environment": place, "implementation": name})
        self.functions: list[dict[str, Any]] = []
        self.cube: Counter[tuple[Any, ...]] = Counter()
        self.of_clause: dict[str, list[int]] = defaultdict(list)
        self._functions()

    def _functions(self) -> None:
        """Group the tests by function; count the outcomes by column, chapter, level and aspect."""
        index: dict[str, int] = {}
        for test in self.report["tests"]:
            name = function_of(test["id"])
            if name not in index:
                index[name] = len(self.functions)
                file, _, title = name.partition("::")
                entry = {"file": file, "name": title, "line": test["line"], "columns": {}, "details": []}
                entry |= {"level": test["level"], "aspect": test["aspect"], "measured": [], "clauses": test["clauses"]}
                self.functions.append(entry | {"checks": self.report["comparisons"].get(name, [])})
                for clause in test["clauses"]:
                    self.of_clause[clause].append(index[name])
            function, column = self.functions[index[name]], self.number[test["implementation"], test["environment"]]
            counts, _ = cell = function["columns"].setdefault(column, [Counter(), 0.0])
            counts[test["outcome"]] += 1
            cell[1] += test["duration"]
            chapter = test["clauses"][0][:2] if test["clauses"] else "–"
            self.cube[column, chapter, test["level"], test["aspect"], test["outcome"]] += 1
            self._detail(function, column, test)
            for value in test["measured"]:
                row = [column, parameters_of(test), value["name"], value["documented"], value["measured"]]
                if len(function["measured"]) < 24 and row not in function["measured"]:
                    function["measured"].append(row)
        for function in self.functions:
            function["measured"].sort(key=lambda row: row[0])
            function["details"].sort(key=lambda detail: detail["column"])

    def _detail(self, function: dict[str, Any], column: int, test: dict[str, Any]) -> None:
        """Store the reason why a test did not pass: each failure, and the other outcomes by reason."""
        if test["outcome"] == "passed":
            return
        failed = test["outcome"] in ("failed", "error")
        same = [d for d in function["details"] if d["column"] == column and d["outcome"] == test["outcome"]]
        reason = None if failed else test["message"]
        for detail in same:
            if (failed and len(same) >= SHOWN and detail is same[-1]) or (not failed and detail["message"] == reason):
                detail["more"] += 1
                return
        detail = {"parameters": parameters_of(test)}
        detail |= {name: test[name] for name in ("outcome", "message", "reproduction", "diagnosis")}
        function["details"].append(detail | {"column": column, "more": 0})

    # used by the templates

    def outcomes(self, clause: str) -> dict[int, Counter[str]]:
        """The outcomes of the tests of a clause, by column."""
        found: dict[int, Counter[str]] = {}
        for index in self.of_clause.get(clause, ()):
            for column, (counts, _) in self.functions[index]["columns"].items():
                found.setdefault(column, Counter()).update(counts)
        return dict(sorted(found.items()))

    def recorded(self, clause: Mapping[str, Any]) -> tuple[str, str] | None:
        """The releases in which PyTorch itself passes the tests of a clause, as clauses.toml records them."""
        word, _, rest = clause.get("releases", "").partition(" ")
        return (f"PyTorch, recorded: {word} {rest}", f"PyTorch，记录：{SPAN_ZH[word].format(rest)}") if word else None

    def span(self, clause: str) -> list[tuple[str, str]]:
        """Since and until which version of PyTorch a clause holds, where the versions disagree, in both languages."""
        holds: dict[tuple[str | None, str], dict[str, bool]] = {}
        for column, counts in self.outcomes(clause).items():
            entry = self.columns[column]
            version, device = compare.place(self.report["environments"][entry["environment"]])
            if verdict(counts) in ("passed", "failed", "error", "known failure"):
                key = entry["implementation"], device
                holds.setdefault(key, {})[version] = verdict(counts) == "passed"
        found = []
        for (name, _), versions in holds.items():
            if text := compare.span(list(versions.items())):
                word, _, rest = text.partition(" ")
                labels = (name, name) if name else PROJECT
                found.append((f"{labels[0]}: {text}", f"{labels[1]}：{SPAN_ZH[word].format(rest)}"))
        return found

    def listed(self) -> list[tuple[str, list[tuple[str, Any]]]]:
        """Clauses by chapter; for a run of single chapters only the tested clauses."""
        found: dict[str, list[tuple[str, Any]]] = {}
        for name, clause in self.clauses.items():
            if self.of_clause.get(name):
                found.setdefault(name[:2], []).append((name, clause))
        return list(found.items())

    def errata(self) -> list[tuple[str, list[tuple[str, Any]]]]:
        """The statements and listings of the tutorial that do not hold, by chapter, in the order of its lines."""
        found: dict[str, list[tuple[str, Any]]] = {}
        for name, clause in self.clauses.items():
            if clause["verdict"] in NOT_HOLDING:
                found.setdefault(name[:2], []).append((name, clause))
        for clauses in found.values():
            clauses.sort(key=lambda entry: (entry[1]["lines"][0], -entry[1]["lines"][-1]))
        return list(found.items())

    def totals(self) -> dict[int, Counter[str]]:
        """The outcomes of the tests, by column."""
        found: dict[int, Counter[str]] = {}
        for (column, _, _, _, outcome), count in self.cube.items():
            found.setdefault(column, Counter())[outcome] += count
        return dict(sorted(found.items()))

    def own_work(self) -> dict[int, dict[str, list[str]]]:
        """By column, the components that were traced, each with the library functions that compute it."""
        found: dict[int, dict[str, set[str]]] = {}
        for test in self.report["tests"]:
            for component, names in (test["own_work"] or {}).items():
                column = found.setdefault(self.number[test["implementation"], test["environment"]], {})
                column.setdefault(component, set()).update(names)
        return {
            column: {name: sorted(names) for name, names in sorted(components.items())}
            for column, components in sorted(found.items())
        }

    def reasons(self, function: Mapping[str, Any]) -> list[str]:
        """Why a function failed: the first line of each message, at most three different ones."""
        texts = [
            detail["message"].partition("\n")[0]
            for detail in function["details"]
            if detail["outcome"] in ("failed", "error") and detail["message"]
        ]
        return list(dict.fromkeys(text[:200] for text in texts))[:3]

    def failures(self) -> list[tuple[int, dict[str, Any]]]:
        """The test functions with a failure, by their number."""
        return [
            (number, function)
            for number, function in enumerate(self.functions)
            if any(detail["outcome"] in ("failed", "error") for detail in function["details"])
        ]

    def data(self) -> dict[str, Any]:
        """What the script needs; words that repeat are numbers, and empty lists at the end of an entry are left out."""
        files = sorted({function["file"] for function in self.functions})
        levels = sorted({function["level"] for function in self.functions}, key=str)
        aspects = sorted({function["aspect"] for function in self.functions}, key=str)
        return {
            "columns": [[column["en"], column["zh"]] for column in self.columns],
            "outcomes": OUTCOMES,
            "files": files,
            "levels": levels,
            "aspects": aspects,
            "functions": [
                without_empty_end(
                    [
                        files.index(function["file"]),
                        function["name"],
                        function["line"],
                        levels.index(function["level"]),
                        aspects.index(function["aspect"]),
                        [[n, *cell(counts, time)] for n, (counts, time) in sorted(function["columns"].items())],
                        [
                            [d["column"], d["outcome"], d["parameters"], d["more"]]
                            + [d[name] for name in ("message", "diagnosis", "reproduction")]
                            for d in function["details"]
                        ],
                        function["measured"],
                        function["checks"],
                    ]
                )
                for function in self.functions
            ],
            "clauses": [  # in the order of the articles
                [clause["kind"], clause["verdict"], *self.of_clause[name]]
                for _, entries in self.listed()
                for name, clause in entries
            ],
            "cube": [[*key, count] for key, count in sorted(self.cube.items(), key=str)],
            "chapters": CHAPTERS,
            "words": json.loads(part("words.zh.json")),
        }  # fmt: skip


def cell(counts: Mapping[str, int], seconds: float) -> list[float]:
    """Seconds, then the number of each outcome that occurred and how often it did."""
    return [round(seconds, 2), *(n for i, name in enumerate(OUTCOMES) if counts[name] for n in (i, counts[name]))]


def without_empty_end(values: list[Any]) -> list[Any]:
    """A list without the empty lists at its end."""
    while values and values[-1] == []:
        values.pop()
    return values


def verdict(counts: Mapping[str, int]) -> str:
    """The combined outcome of several tests: the worst one; passed if at least one passed and none failed."""
    for outcome in ("failed", "error", "known failure", "passed"):
        if counts.get(outcome):
            return outcome
    return max(counts, key=lambda outcome: (counts[outcome], outcome))


def lines_text(lines: list[int], name: str) -> str:
    """The tutorial's lines of a clause; those of a whole listing are its first and its last one."""
    return f"{lines[0]}–{lines[1]}" if ".listing.at_" in name else ", ".join(map(str, lines))


def parameters_of(test: Mapping[str, Any]) -> str:
    """The parameters in the id of a test, without the implementation."""
    words = test["id"].partition("[")[2].rstrip("]")
    name = test["implementation"] or ""
    return "" if words == name else words.removeprefix(f"{name}-") if name else words


def render(report: Report) -> str:
    """Render the page."""
    view = View(report)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            view=view,
            chapters=CHAPTERS,
            outcomes=OUTCOMES,
            lines_text=lines_text,
            packed=lambda articles: packed(view.data() | {"articles": str(articles)}),
            style=part("page.css"),
            script=part("page.js"),
        )
    )


def write(report: Report, folder: Path) -> None:
    """Write index.html."""
    with atomic_write(folder / "index.html") as file:
        file.write(render(report).encode("utf-8"))


def history(course: Mapping[str, list[tuple[str, str, Counter[str]]]]) -> str:
    """A page with the history of each implementation over several reports."""
    charts = []
    for name, points in course.items():
        places = [float(index + 1) for index in range(len(points))]
        shares = [counts["passed"] / counts.total() * 100 for _, _, counts in points]
        lowest = min(*shares, 99.0)  # a chart of nothing but 100 % needs a height
        failed = [float(counts["failed"] + counts["error"]) for _, _, counts in points]
        charts.append(
            {
                "name": name,
                "points": points,
                "outcomes": [outcome for outcome in OUTCOMES if any(counts[outcome] for _, _, counts in points)],
                "passed": figures.curve([("value", places, shares)], width=420, bottom=lowest, top=100.0),
                "failed": figures.curve([("wrong", places, failed)], width=420, bottom=0.0),
            }
        )
    return (
        environment()
        .get_template("history.html.jinja")
        .render(
            charts=charts,
            project=PROJECT,
            data=embedded(json.loads(part("words.zh.json"))),
            style=part("page.css"),
            script=part("history.js"),
        )
    )
