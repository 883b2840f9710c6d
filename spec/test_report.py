"""The report: the files of `pytest --report`, the page in a browser, and `python -m spec.report`."""

import ast
import io
import json
import re
import shutil
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest

from spec.faults import Fault, convolution
from spec.report import compare, document, drawings, page, plugin, recording
from spec.report.__main__ import main
from spec.support.clauses import CLAUSES, clause
from spec.support.command import Command, run
from spec.support.implementations import load

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads(document.SCHEMA.read_text(encoding="utf-8"))

# A learner's file: right except for the stride, and with an error text that is HTML.
MINE = """
import torch
from torch.nn import functional

def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return functional.conv2d(input, weight, bias, 1, padding, dilation, groups)

def relu(input, inplace=False):
    raise ValueError("</script><img src=x onerror=alert(1)><b>no</b>")
"""
SPECIFICATION = document.specification()
FEW = [name for name in CLAUSES if name.startswith("08.conv2d.")]
FILES = ("08_convolution", "10_pooling", "11_activation")
KEYWORDS = "documented or step or documented_sizes or relu_of or ReLU"


def words(report: Path, *arguments: str, files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """The arguments of `pytest` for a run with a report."""
    chosen = [str(ROOT / f"spec/test_{name}.py") for name in files]
    options = (
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    )
    options += ("--hypothesis-profile", "faults", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return (*chosen, *options, "--report", str(report), *arguments)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run of three implementations, one of which is wrong."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    arguments = ("--impl", "reference,torch,mine.py", "-k", KEYWORDS, "-n", "0", "--report-run", str(training(folder)))
    result = run(
        "pytest", *words(folder / "report", *arguments, "--junitxml", str(folder / "junit.xml")), folder=folder
    )
    assert result.status == 1, result.out + result.err
    assert f"report: {folder / 'report/index.html'}" in result.out
    return folder / "report"


def training(folder: Path) -> Path:
    """A run folder with two epochs and three classes."""
    home = folder / "run"
    home.mkdir()
    lines = [
        json.dumps({"epoch": n, "train_loss": 1 / n, "test_loss": 1.5 / n, "test_accuracy": 0.4 * n}) for n in (1, 2)
    ]  # fmt: skip
    (home / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"dataset": "images", "recipe": "tutorial", "epochs": 2}
    config = {"settings": settings, "device": "cpu", "data": {"classes": ["cat", "dog", "<b>bird"]}}
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    summary = {"confusion": [[3, 1, 0], [0, 4, 0], [2, 0, 2]], "test_accuracy": 0.75}
    (home / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return home


def made(outcomes: dict[str, str], *, torch: str = "2.14.0", day: int = 1, digest: str = "0", **run: Any) -> Any:
    """A report of a run on 2026-01-<day>, by hand: the outcome of each test of chapter 08."""
    tests = [
        {"id": f"spec/test_08_convolution.py::{name}", "line": 1, "environment": 0, "implementation": "mine"}
        | {"clauses": ["08.conv2d.stride1"], "components": ["conv2d"], "level": None, "aspect": None}
        | {"outcome": outcome, "message": None, "reproduction": None, "diagnosis": None, "own_work": None}
        | {"measured": [], "duration": 0.25}
        for name, outcome in outcomes.items()
    ]  # fmt: skip
    environment = {"python": "3.11.7", "platform": "Linux", "versions": {"torch": torch}, "device": "cpu"}
    environment |= {"device_name": None, "processor": "x", "threads": 1, "workers": 0, "dtypes": ["float32"]}
    about = {"environment": 0, "arguments": "", "started": f"2026-01-{day:02}T00:00:00Z", "seconds": 1.0}
    about |= {"exit_status": 0, "complete": True, "interrupted": None, "collected": len(tests), "finished": len(tests)}
    implementation = {"id": "mine", "name": "mine.py", "version": None, "digest": f"sha256:{digest * 64}"}
    return {
        "format": 1,
        "specification": SPECIFICATION | {"clauses": {name: SPECIFICATION["clauses"][name] for name in FEW}},
        "environments": [environment | {"seed": None, "profile": "dev"}],
        "runs": [about | run],
        "implementations": [implementation | {"environment": 0}],
        "comparisons": {},
        "drawings": {},
        "tests": tests,
    }


def command(*arguments: object) -> tuple[int, str]:
    """`python -m spec.report …`: its exit status and output."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = main(list(map(str, arguments)))
    return status, out.getvalue()


# report.json


@clause("00.report.schema")
def test_a_report_is_valid_and_an_entry_too_many_or_too_few_is_not() -> None:
    report = made({"a": "passed", "b": "known failure"})
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)
    report["tests"][0]["outcome"] = "fine"
    with pytest.raises(jsonschema.ValidationError, match="'fine' is not one of"):
        jsonschema.validate(report, SCHEMA)
    report["tests"][0] |= {"outcome": "passed", "mood": "good"}
    with pytest.raises(jsonschema.ValidationError, match="mood"):
        jsonschema.validate(report, SCHEMA)
    del report["tests"][0]["mood"], report["runs"][0]["complete"]
    with pytest.raises(jsonschema.ValidationError, match="complete"):
        jsonschema.validate(report, SCHEMA)


@clause("00.report.schema")
def test_the_schema_names_every_outcome_kind_and_verdict() -> None:
    definitions = SCHEMA["$defs"]
    assert set(definitions["test"]["properties"]["outcome"]["enum"]) == set(document.OUTCOMES)
    assert set(definitions["clause"]["properties"]["kind"]["enum"]) == {entry.kind for entry in CLAUSES.values()}
    verdicts = {entry.verdict or None for entry in CLAUSES.values()}
    assert set(definitions["clause"]["properties"]["verdict"]["enum"]) == verdicts


@clause("00.report.schema")
def test_the_text_of_a_report_is_the_report_with_one_line_for_each_duration() -> None:
    report = made({"b": "passed", "a": "failed"})
    report["tests"][0]["message"] = "line 1\nline 2 \u202e \x1b[31m"
    report["tests"][1]["duration"] = float("inf")
    text = document.text(report)
    report["tests"][1]["duration"] = None  # strict JSON has no infinity
    assert json.loads(text) == report
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert re.findall(r'^  "duration": (.*)}', text, re.MULTILINE) == ["0.25", "null"]
    assert len([line for line in text.splitlines() if '"duration"' in line]) == 2


@clause("00.report.schema")
def test_another_format_is_refused(tmp_path: Path) -> None:
    for content, says in (
        ('{"format": 2}', "format 2, but this program reads format 1"),
        ("[]", "not a report: it has no version of the format"),
        ("{}", "not a report: it has no version of the format"),
        ("{", "not JSON, the file is damaged or incomplete"),
        ('{"format": 1}', "damaged: the report lacks 'specification'"),
    ):
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
        with pytest.raises(document.ReportError, match=says):
            document.read(tmp_path)
    with pytest.raises(document.ReportError, match="No such file"):
        document.read(tmp_path / "nowhere")


@clause("00.report.damaged")
@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("tests", "outcome", "fine", r"tests\[0\]: the outcome 'fine' is unknown"),
        ("tests", "environment", 1, r"tests\[0\]: there is no environment 1"),
        ("tests", "clauses", None, r"tests\[0\]: 'clauses' must be of type array"),
        ("runs", "started", ..., r"runs\[0\] lacks 'started'"),
        ("environments", "versions", ..., r"environments\[0\] lacks 'versions'"),
        ("implementations", "id", 3, r"implementations\[0\]: 'id' must be of type string"),
    ],
    ids=["an unknown outcome", "no such environment", "no list", "a run without its time", "no versions", "no name"],
)
def test_a_damaged_report_is_an_error_in_one_line(tmp_path: Path, part: str, key: str, value: Any, says: str) -> None:
    report = made({"a": "passed"})
    report[part][0][key] = value
    if value is ...:
        del report[part][0][key]
    document.write(report, tmp_path)
    for words in (["merge", tmp_path, "-o", tmp_path / "new"], ["diff", tmp_path, tmp_path], ["badge", tmp_path]):
        status, out = command(*words)
        assert status == 2
        assert len(out.splitlines()) == 1
        assert re.search(says, out)


@clause("00.report.written")
def test_an_implementation_is_identified_by_its_code(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def relu(input): return input\n", encoding="utf-8")
    first = document.implementation_digest(str(file))
    file.write_text("def relu(input): return -input\n", encoding="utf-8")
    assert document.implementation_digest(str(file)) != first
    assert document.implementation_digest("reference") == document.implementation_digest("reference.definitions")
    assert re.fullmatch("git:[0-9a-f]{40}", str(document.implementation_digest("torch")))
    assert document.implementation_digest("spec.faults.loss:Anything") is not None


@clause("00.report.values")
def test_values_are_kept_between_start_and_finish_if_they_are_documented() -> None:
    import torch

    recording.observe("before", torch.ones(1), [1.0])
    recording.start(wanted=True)
    recording.observe("the sum", torch.tensor([2 / 3]), [0.6667])
    recording.observe("two results", torch.ones(1), torch.ones(1))
    recording.observe("large", torch.ones(9, 9), 1.0)
    assert recording.finish() == [
        {"name": "the sum", "documented": "[0.6667]", "measured": "[0.6666667]"},
        {"name": "large", "documented": "1.0", "measured": "float32[9, 9]"},
    ]
    recording.start(wanted=False)
    recording.observe("the sum", torch.ones(1), [1.0])
    assert recording.finish() == []


@clause("00.report.values")
def test_the_conditions_of_a_documented_value_are_those_of_its_source() -> None:
    files = {"10_pooling": "test_the_documented_sizes_are_known_beforehand", "report": "TestX::test_that_is_not_there"}
    tests = [{"id": f"spec/test_{file}.py::{name}[torch]", "clauses": [VALUE]} for file, name in files.items()]
    found = document.comparisons([*tests, {"id": "spec/test_none.py::test_a", "clauses": [VALUE]}])
    assert list(found) == ["spec/test_10_pooling.py::test_the_documented_sizes_are_known_beforehand"]
    assert "pool2d_output_size(32, 3) == (10, 10)" in next(iter(found.values()))
    # methods included, and functions with texts that begin at the margin
    source = Path(__file__).read_text(encoding="utf-8")
    asserted = {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if any(isinstance(inner, ast.Assert) and len(ast.unparse(inner.test)) <= 200 for inner in ast.walk(node))
    }
    tests = [
        {"id": f"spec/test_report.py::{name}", "clauses": [VALUE]} for name in re.findall(r"def (test_\w+)", source)
    ]
    assert {name.partition("::")[2] for name in document.comparisons(tests)} == asserted


VALUE = next(name for name, entry in CLAUSES.items() if entry.kind == "value")
"""A clause of a documented value."""


@clause("00.report.drawings")
def test_an_implementation_that_raises_or_hangs_gets_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "SECONDS", 0.2)

    def raises(*_: Any) -> None:
        raise KeyboardInterrupt("stop")

    def hangs(*_: Any) -> None:
        time.sleep(1)

    def fake(function: Any) -> Any:
        return SimpleNamespace(id="mine", components={"conv2d"}, component=lambda name, trace: function)

    assert drawings.limited(drawings.convolution, fake(raises)) == {"problem": "KeyboardInterrupt: stop"}
    assert drawings.limited(drawings.convolution, fake(hangs)) == {"problem": "did not return within 0.2 s"}
    assert drawings.limited(drawings.pooling, fake(raises)) is None  # it defines no max_pool2d


@clause("00.report.drawings")
@pytest.mark.parametrize("name", ["reference", pytest.param("torch", marks=pytest.mark.slow)])  # imports torchvision
def test_the_drawings_are_the_implementations_own(name: str) -> None:
    tests = [{"clauses": ["04.x.y", "08.x.y"]}, {"clauses": ["10.x.y", "11.x.y"]}]
    drawn = {key: value[name] for key, value in drawings.drawings([load(name)], tests).items()}
    # chapter 08, line 445; chapter 10, lines 603 and 604
    assert drawn["convolution"]["output"] == [[10, 12, 12], [18, 16, 16], [13, 9, 3]]
    assert drawn["pooling"] | {"input": 0} == {"input": 0, "window": 3, "floor": [[2]], "ceil": [[2, 3], [5, 1]]}
    relu = drawn["activations"]["relu"]
    assert [relu["values"][i] for i in (0, 24, 48)] == [0, 0, 4]
    assert [relu["slopes"][i] for i in (0, 48)] == [0, 1]
    assert {image: value["size"] for image, value in drawn["transforms"].items()} == {
        "PIL image": [72, 48], "Resize(24)": [36, 24], "Resize((48, 48))": [48, 48], "RandomCrop(32)": [32, 32],
        "RandomHorizontalFlip(p=1)": [72, 48], "ToTensor()": [72, 48], "Normalize(0.5, 0.5)": [72, 48],
    }  # fmt: skip
    assert page.figures.convolution_result(drawings.INPUT, drawings.KERNEL) == drawn["convolution"]["output"]
    for ceil in (False, True):
        _, expected = page.figures.pooling_windows(drawings.INPUT, 3, ceil=ceil)
        assert expected == drawn["pooling"]["ceil" if ceil else "floor"]


@clause("00.report.drawings")
def test_a_wrong_cell_of_a_result_is_marked() -> None:
    assert page.figures.table([[1, 2]], expected=[[1, 2]]).count("wrong") == 0
    assert page.figures.table([[1, 3]], expected=[[1, 2]]).count("wrong") == 1
    assert page.figures.table([[1, 2], [3, 4]], expected=[[1, 2]]).count("wrong") == 2


# The run


@clause("00.report.written", "00.report.schema")
@pytest.mark.slow
def test_a_run_writes_a_valid_report(reported: Path) -> None:
    text = (reported / "report.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    jsonschema.validate(report, SCHEMA)
    assert document.text(report) == text
    assert report["specification"]["clauses"].keys() == CLAUSES.keys()
    assert [entry["id"] for entry in report["implementations"]] == ["reference", "torch", "mine"]
    assert all(entry["digest"] for entry in report["implementations"])
    (environment,), (about,) = report["environments"], report["runs"]
    assert environment["profile"] == "faults"
    assert environment["device"] == "cpu"
    assert environment["workers"] == 0
    assert "--impl reference,torch,mine.py" in about["arguments"]
    assert about["complete"]
    assert about["collected"] == about["finished"] == len(report["tests"])
    assert [document.order(test) for test in report["tests"]] == sorted(map(document.order, report["tests"]))
    assert all(test["clauses"] and test["line"] for test in report["tests"])


def entries(folder: Path) -> dict[str, Any]:
    """The tests of a report, by the part of the id after the file."""
    return {test["id"].rpartition("::")[2]: test for test in document.read(folder)["tests"]}


@clause("00.report.outcomes")
@pytest.mark.slow
def test_each_test_has_its_outcome_with_the_reason(reported: Path) -> None:
    tests = entries(reported)
    assert tests["test_stride_1_gives_the_documented_matrix[reference]"]["outcome"] == "passed"
    assert tests["test_stride_is_the_step[mine]"]["outcome"] == "failed"
    absent = [test for test in tests.values() if test["outcome"] == "absent"]
    assert {test["implementation"] for test in absent} == {"mine", "torch"}
    assert any("mine.py does not define max_pool2d" in test["message"] for test in absent)


@clause("00.report.failure")
@pytest.mark.slow
def test_a_failure_has_its_message_and_its_reproduction(reported: Path) -> None:
    test = entries(reported)["test_stride_is_the_step[mine]"]
    assert test["message"].startswith("the result has shape [1, 1, 3, 3], expected [1, 1, 2, 2]")
    assert "conv2d(input, weight, stride=2)" in test["reproduction"]
    assert test["components"] == ["conv2d"]
    assert test["clauses"] == ["08.conv2d.parameters"]


@clause("00.report.values")
@pytest.mark.slow
def test_a_documented_value_stands_beside_the_measured_one(reported: Path) -> None:
    tests = entries(reported)
    measured = tests["test_stride_1_gives_the_documented_matrix[mine]"]["measured"]
    assert measured == [
        {"name": "the result"}
        | dict.fromkeys(("documented", "measured"), "[[[[10, 12, 12], [18, 16, 16], [13, 9, 3]]]]")
    ]
    assert tests["test_stride_is_the_step[mine]"]["measured"] == []  # a claim, not a value
    comparisons = document.read(reported)["comparisons"]
    (name,) = (name for name in comparisons if name.endswith("::test_the_documented_sizes_are_known_beforehand"))
    assert "pool2d_output_size(32, 3) == (10, 10)" in comparisons[name]


@clause("00.report.junit")
@pytest.mark.slow
def test_junit_xml_names_clauses_and_no_statistics(reported: Path) -> None:
    text = (reported.parent / "junit.xml").read_text(encoding="utf-8")
    assert "hypothesis-statistics" not in text
    cases = {case.get("name"): case for case in ElementTree.fromstring(text).iter("testcase")}
    case = cases["test_stride_is_the_step[mine]"]
    properties = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    assert properties["clauses"] == "08.conv2d.parameters"
    assert properties["components"] == "conv2d"


@clause("00.report.workers")
@pytest.mark.slow
def test_two_processes_give_the_same_report(reported: Path, tmp_path: Path) -> None:
    shutil.copy(reported.parent / "mine.py", tmp_path)
    arguments = ("--impl", "reference,torch,mine.py", "-k", KEYWORDS, "-n", "2")
    result = run("pytest", *words(tmp_path / "report", *arguments), folder=tmp_path)
    assert result.status == 1, result.out + result.err
    one, two = document.read(reported), document.read(tmp_path / "report")
    assert two["environments"][0]["workers"] == 2
    assert two["runs"][0]["complete"]
    for test in (*one["tests"], *two["tests"]):
        del test["duration"]
    # the code to paste names the folder of mine.py
    there = json.dumps(two["tests"]).replace(str(tmp_path), str(reported.parent))
    assert json.loads(there) == one["tests"]
    assert two["implementations"] == one["implementations"]


@clause("00.report.interrupted")
@pytest.mark.slow
def test_a_run_that_stops_at_the_first_failure_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    arguments = ("--impl", "mine.py", "-x", "-n", "0")
    result = run("pytest", *words(tmp_path / "report", *arguments, files=("08_convolution",)), folder=tmp_path)
    assert result.status == 1, result.out
    (about,) = document.read(tmp_path / "report")["runs"]
    assert not about["complete"]
    assert about["interrupted"] == "stopping after 1 failures"
    assert 0 < about["finished"] < about["collected"]
    assert "This run is not complete" in (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert command("diff", tmp_path / "report", tmp_path / "report")[0] == 1


@clause("00.report.interrupted")
@pytest.mark.slow
def test_a_run_that_is_interrupted_writes_the_report_of_the_tests_that_ran(tmp_path: Path) -> None:
    waits = "import time\ndef conv2d(*a, **k):\n    print('here', flush=True)\n    time.sleep(60)\n"
    (tmp_path / "mine.py").write_text(waits, encoding="utf-8")
    arguments = ("--impl", "mine.py", "-s", "-n", "0", "-k", "documented_matrix")
    process = Command("pytest", *words(tmp_path / "report", *arguments, files=("08_convolution",)), folder=tmp_path)
    process.wait_for("here")
    process.send(signal.SIGINT)
    result = process.wait()
    assert result.status == 2, result.out
    report = document.read(tmp_path / "report")
    jsonschema.validate(report, SCHEMA)
    (about,) = report["runs"]
    assert (about["complete"], about["interrupted"]) == (False, "KeyboardInterrupt")
    assert about["collected"] == 2
    assert [test["outcome"] for test in report["tests"] if test["outcome"] == "passed"] == []


@clause("00.report.interrupted")
def test_the_reason_is_given_in_words() -> None:
    assert plugin.why("xdist.dsession.Interrupted: stopping after 1 failures\n") == "stopping after 1 failures"
    assert plugin.why("_pytest.outcomes.Exit: no GPU") == "_pytest.outcomes.Exit: no GPU"
    assert plugin.why("KeyboardInterrupt") == "KeyboardInterrupt"


@clause("00.report.options")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--report", "a-file"), "--report a-file: File exists"),
        (("--report", "report", "--report-run", "nowhere"), "--report-run nowhere: [Errno 2] No such file"),
        (("--report-run", "nowhere"), "--report-run needs --report DIR"),
    ],
    ids=["a file", "no training", "no report"],
)
def test_an_option_that_cannot_be_met_is_an_error_before_any_test(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "a-file").touch()
    chosen = words(Path("unused"), "-n", "0", files=("08_convolution",))
    chosen = chosen[: chosen.index("--report")]
    result = run("pytest", *chosen, *arguments, folder=tmp_path)
    assert result.status == 4, result.out
    assert f"ERROR: {says}" in result.err


@clause("00.report.kept")
@pytest.mark.slow
def test_a_wrong_file_name_leaves_the_earlier_report_alone(tmp_path: Path) -> None:
    document.write(made({"a": "passed"}), tmp_path / "report")
    before = (tmp_path / "report/report.json").read_bytes()
    result = run("pytest", *words(tmp_path / "report", "-n", "0", files=("08_misspelt",)), folder=tmp_path)
    assert result.status == 4, result.out
    assert "report: " not in result.out
    assert (tmp_path / "report/report.json").read_bytes() == before


@clause("00.report.diagnosis")
def test_a_diagnosis_names_the_mistake_that_explains_most_failures() -> None:
    stride, padding, bias = (f"spec.faults.convolution:{name}" for name in FAULTS)
    fitting = {"a": [stride, padding], "b": [stride], "c": [bias], "d": []}
    found = plugin.diagnoses(fitting, ruled_out={bias})
    assert list(found) == ["a", "b"]
    assert found["a"] == found["b"] == plugin.in_words(stride)
    assert plugin.in_words(stride).startswith(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", FAULTS[0]).lower())
    both = plugin.diagnoses({"a": [stride, padding]}, ruled_out=())["a"]
    assert both == f"{plugin.in_words(stride)} or {plugin.in_words(padding)}"


FAULTS = [name for name, kind in vars(convolution).items() if isinstance(kind, type) and issubclass(kind, Fault)][1:4]
"""Three mistakes with convolutions."""


@clause("00.report.diagnosis")
def test_the_summary_says_who_computes_a_component() -> None:
    report = made({"a": "passed", "b": "passed"})
    report["tests"][0]["own_work"] = {"conv2d": [], "relu": ["aten.relu"]}
    report["tests"][1]["own_work"] = {"conv2d": ["torch.conv2d"]}
    jsonschema.validate(report, SCHEMA)
    assert page.View(report).own_work() == {0: {"conv2d": ["torch.conv2d"], "relu": ["aten.relu"]}}
    html = page.render(report)
    assert "<code>conv2d</code> (torch.conv2d)" in html


# The page as text


@clause("00.report.escaped")
def test_no_text_of_an_implementation_becomes_part_of_the_page() -> None:
    report = made({"test_a[mine]": "failed"})
    evil = "</script><img src=x onerror=alert(1)>\u2028"
    report["tests"][0] |= {"message": evil, "reproduction": evil, "diagnosis": evil}
    report["implementations"][0]["name"] = evil
    report["runs"][0]["arguments"] = evil
    html = page.render(report)
    assert "<img src=x" not in html
    assert html.count("</script>") == 2
    assert json.loads(re.findall(r'id="data">(.*)</script>\n<script>', html)[0])["functions"][0][6][0][4] == evil


@clause("00.report.errata")
def test_the_errata_hold_every_clause_that_does_not_hold_in_order() -> None:
    report = made({"a": "passed"}) | {"specification": SPECIFICATION}
    view = page.View(report)
    listed = [name for _, entries in view.errata() for name, _ in entries]
    assert sorted(listed) == sorted(
        name for name, entry in CLAUSES.items() if entry.verdict in ("refuted", "imprecise", "version-dependent")
    )
    for _, entries in view.errata():
        firsts = [entry["lines"][0] for _, entry in entries]
        assert firsts == sorted(firsts)
    html = page.render(report)
    text = html[html.index('<section id="errata"') : html.index('<section id="clauses"')]
    assert [name for name in listed if name not in text] == []


@clause("00.report.scores")
def test_the_scores_count_each_outcome_once() -> None:
    report = made({"a[1]": "passed", "a[2]": "absent", "b": "failed", "c": "known failure"})
    view = page.View(report)
    assert view.totals() == {0: {"passed": 1, "absent": 1, "failed": 1, "known failure": 1}}
    assert sum(entry[-1] for entry in view.data()["cube"]) == 4
    assert view.outcomes("08.conv2d.stride1")[0].total() == 4
    assert page.verdict({"passed": 3, "known failure": 1}) == "known failure"
    assert page.verdict({"passed": 1, "absent": 5}) == "passed"
    assert page.verdict({"absent": 5, "skipped": 1}) == "absent"


@clause("00.report.language")
def test_every_word_of_the_page_has_a_translation() -> None:
    chinese = json.loads(page.part("words.zh.json"))
    templates = "".join(path.read_text(encoding="utf-8") for path in page.TEMPLATES.glob("*.jinja"))
    used = set(re.findall(r'\bw\("([^"]+)"', templates)) | set(re.findall(r'class="w">([^<{]+)<', templates))
    used |= set(re.findall(r'\bsay\("([^"]+)"\)', page.part("page.js") + page.part("history.js")))
    used |= {*document.OUTCOMES, *(entry.kind for entry in CLAUSES.values())}
    used |= {entry.verdict for entry in CLAUSES.values() if entry.verdict}
    assert len(used) > 60
    assert sorted(used - chinese.keys()) == []
    assert sorted(page.CHAPTERS)[:22] == [f"{n:02}" for n in range(22)]


@clause("00.report.size")
def test_the_size_of_the_page_grows_with_clauses_and_functions_and_hardly_with_tests() -> None:
    few, many = ({f"a[{n}]": "passed" for n in range(count)} for count in (1, 1000))
    one, thousand = (len(page.render(made(outcomes)).encode()) for outcomes in (few, many))
    assert thousand - one < 100
    # every clause of the specification, with a test function of its own
    report = made({f"test_that_has_a_name_of_usual_length_{n}": "passed" for n in range(len(CLAUSES))})
    report["specification"] = SPECIFICATION
    for test, name in zip(report["tests"], CLAUSES, strict=True):
        test["clauses"] = [name]
    assert len(page.render(report).encode()) < 600 * len(CLAUSES) + 100_000


@clause("00.report.drawings")
def test_the_labels_of_a_chart_have_room() -> None:
    drawing = page.figures.curve([("value", [1, 2, 3], [0.0596812, -12345.678, 2.298])])
    labels = re.findall(r'class="tick" x="([0-9.]+)" y="[^"]*">([^<]+)<', drawing)
    assert [label for _, label in labels] == ["−1.235e+04", "2.298"]
    for end, label in labels:
        assert float(end) >= 6.7 * len(label)  # 11 pixels high, 0.6 of it wide


@clause("00.report.drawings")
def test_a_chart_of_one_point_has_no_label_of_another() -> None:
    drawing = page.figures.curve([("value", [1.0], [100.0])], bottom=99.0, top=100.0)
    assert re.findall(r'class="below"[^>]*>([^<]+)<', drawing) == ["1"]


# merge, diff, badge, history


@clause("00.report.merge")
def test_merge_lets_the_later_run_win_and_keeps_the_rest(tmp_path: Path) -> None:
    document.write(made({"a": "failed", "b": "passed"}, day=1), tmp_path / "first")
    document.write(made({"a": "passed"}, day=2), tmp_path / "second")
    assert command("merge", tmp_path / "second", tmp_path / "first", "-o", tmp_path / "both")[0] == 0
    merged = document.read(tmp_path / "both")
    jsonschema.validate(merged, SCHEMA)
    assert {test["id"][-1]: test["outcome"] for test in merged["tests"]} == {"a": "passed", "b": "passed"}
    assert len(merged["runs"]) == 2
    assert len(merged["environments"]) == 1
    assert (tmp_path / "both/index.html").is_file()
    status, out = command("merge", tmp_path / "first", "-o", tmp_path / "both/report.json")
    assert (status, out) == (2, f"error: {tmp_path / 'both/report.json'}: File exists\n")


@clause("00.report.merge")
def test_merge_forgets_an_interrupted_run_that_was_repeated_to_its_end() -> None:
    interrupted = made({"a": "passed"}, complete=False, collected=2, interrupted="KeyboardInterrupt", day=1)
    other = made({"b": "passed", "c": "passed"}, day=2)
    assert len(compare.incomplete(compare.merge([interrupted, other]))) == 1
    repeated = made({"a": "failed", "b": "passed"}, day=3)
    merged = compare.merge([interrupted, other, repeated])
    assert compare.incomplete(merged) == []
    assert {test["id"][-1]: test["outcome"] for test in merged["tests"]} == {
        "a": "failed",
        "b": "passed",
        "c": "passed",
    }
    elsewhere = made({"a": "passed", "b": "passed"}, day=3, torch="2.13.0")
    assert len(compare.incomplete(compare.merge([interrupted, elsewhere]))) == 1


@clause("00.report.merge")
def test_the_same_report_twice_is_one_run() -> None:
    report = made({"a": "passed"})
    assert compare.merge([report, report, compare.merge([report])]) == report


@clause("00.report.merge")
def test_merge_keeps_nothing_of_code_that_has_changed() -> None:
    merged = compare.merge([made({"a": "passed", "b": "passed"}, day=1), made({"a": "passed"}, day=2, digest="1")])
    assert [test["id"][-1] for test in merged["tests"]] == ["a"]
    assert [entry["digest"][7] for entry in merged["implementations"]] == ["1"]


@clause("00.report.merge")
def test_merge_puts_versions_side_by_side_and_says_since_when_a_clause_holds() -> None:
    reports = [made({"a": outcome}, torch=version) for version, outcome in (("2.14.0", "passed"), ("2.9.1", "failed"))]
    merged = compare.merge(reports)
    jsonschema.validate(merged, SCHEMA)
    assert [entry["versions"]["torch"] for entry in merged["environments"]] == ["2.9.1", "2.14.0"]
    view = page.View(merged)
    assert [column["en"] for column in view.columns] == ["mine (torch 2.9.1, cpu)", "mine (torch 2.14.0, cpu)"]
    assert view.span("08.conv2d.stride1") == [("mine: since 2.14.0", "mine：自 2.14.0 起成立")]
    html = page.render(merged)
    assert "mine: since 2.14.0" in html
    assert "mine：自 2.14.0 起成立" in html


@clause("00.versions.recorded")
def test_the_page_shows_the_recorded_releases_beside_the_measured_ones() -> None:
    name = "12.batch_norm.rejects"
    reports = [made({"a": outcome}, torch=version) for version, outcome in (("2.9.1", "failed"), ("2.14.1", "passed"))]
    for report in reports:
        report["specification"] = SPECIFICATION | {"clauses": {name: SPECIFICATION["clauses"][name]}}
        report["tests"][0]["clauses"] = [name]
    merged = compare.merge(reports)
    jsonschema.validate(merged, SCHEMA)
    html = page.render(merged)
    for text in ("mine: since 2.14.1", "PyTorch, recorded: since 2.11.0", "PyTorch，记录：自 2.11.0 起成立"):
        assert text in html
    assert "recorded" not in page.render(made({"a": "passed"})).partition('id="clauses"')[2].partition("<script")[0]


@clause("00.report.merge")
@pytest.mark.parametrize(
    ("values", "text"),
    [((0, 1, 1), "since 2"), ((1, 1, 0), "until 2"), ((1, 0, 1), "in 1, 3"), ((1, 1, 1), None), ((0,), None)],
)
def test_the_span_of_versions_in_words(values: tuple[int, ...], text: str | None) -> None:
    assert compare.span([(str(n), bool(value)) for n, value in enumerate(values, start=1)]) == text


@clause("00.report.diff")
@pytest.mark.parametrize(
    ("before", "after", "status", "says"),
    [
        ("passed", "failed", 1, "broken: spec/test_08_convolution.py::a: passed -> failed"),
        ("passed", "error", 1, "broken"),
        ("passed", "absent", 1, "broken"),
        ("passed", "known failure", 1, "broken"),
        ("absent", "failed", 1, "broken"),
        ("failed", "passed", 0, "fixed"),
        ("known failure", "passed", 0, "fixed"),
        ("failed", "error", 0, "changed"),
        ("skipped", "passed", 0, "changed"),
        ("passed", "skipped", 0, "no longer judged"),
        ("passed", "passed", 0, None),
    ],
)
def test_diff_gives_the_outcome_of_a_test(
    tmp_path: Path, before: str, after: str, status: int, says: str | None
) -> None:
    document.write(made({"a": before}, torch="2.13.0"), tmp_path / "before")
    document.write(made({"a": after}, torch="2.14.0", day=2), tmp_path / "after")
    found, out = command("diff", tmp_path / "before", tmp_path / "after")
    assert found == status, out
    assert (says is None) == (len(out.splitlines()) == 1)
    assert out.startswith(says or "0 broken, 0 fixed")


@clause("00.report.diff")
def test_diff_says_what_was_added_and_removed(tmp_path: Path) -> None:
    document.write(made({"a": "passed", "b": "passed"}), tmp_path / "before")
    document.write(made({"a": "passed", "c": "failed"}), tmp_path / "after")
    status, out = command("diff", tmp_path / "before", tmp_path / "after")
    assert status == 0
    assert "added: spec/test_08_convolution.py::c: failed\n" in out
    assert "removed: spec/test_08_convolution.py::b: passed\n" in out


@clause("00.report.diff")
def test_diff_gives_the_reason_of_a_broken_test(tmp_path: Path) -> None:
    document.write(made({"a": "passed"}), tmp_path / "before")
    after = made({"a": "failed"})
    after["tests"][0]["message"] = "the result has shape [1], expected [2]\nmore"
    document.write(after, tmp_path / "after")
    out = command("diff", tmp_path / "before", tmp_path / "after")[1]
    assert "passed -> failed\n    the result has shape [1], expected [2]\n1 broken" in out


@clause("00.report.diff")
def test_diff_of_reports_without_a_common_test_is_an_error(tmp_path: Path) -> None:
    document.write(made({"a": "passed", "b": "passed"}), tmp_path / "before")
    document.write(made({"c": "passed"}), tmp_path / "after")
    status, out = command("diff", tmp_path / "before", tmp_path / "after")
    assert status == 2
    assert out == (
        "error: the reports have no test in common: the first has 2 tests of mine, the second 1 tests of mine\n"
    )


@clause("00.report.badge")
def test_a_badge_is_red_grey_or_green(tmp_path: Path) -> None:
    for outcomes, about, message, color in (
        ({"a": "passed"}, {}, "1 of 1 tests passed", "brightgreen"),
        ({"a": "passed", "b": "absent"}, {}, "1 of 2 tests passed, 1 absent", "green"),
        ({"a": "passed", "b": "error"}, {}, "1 of 2 tests passed, 1 failed", "red"),
        ({"a": "passed"}, {"complete": False}, "incomplete: 1 of 1 tests passed", "lightgrey"),
    ):
        document.write(made(outcomes, **about), tmp_path)  # pyright: ignore[reportArgumentType]
        status, out = command("badge", tmp_path)
        assert status == 0
        assert json.loads(out) == {"schemaVersion": 1, "label": "Ocean Spec", "message": message, "color": color}
    assert command("badge", tmp_path, "--impl", "mine", "-o", tmp_path / "badge.json")[0] == 0
    assert json.loads((tmp_path / "badge.json").read_text(encoding="utf-8"))["label"] == "mine"
    assert command("badge", tmp_path, "--impl", "yours") == (
        2, "error: the report has no test of yours; it has tests of mine\n"
    )  # fmt: skip


@clause("00.report.history")
def test_history_draws_every_report_below_the_folder(tmp_path: Path) -> None:
    document.write(made({"a": "passed", "b": "passed"}, day=2), tmp_path / "x/later")
    document.write(made({"a": "passed", "b": "failed"}, day=1), tmp_path / "earlier")
    status, out = command("history", tmp_path)
    assert (status, out) == (0, f"2 reports: {tmp_path / 'history.html'}\n")
    html = (tmp_path / "history.html").read_text(encoding="utf-8")
    assert html.index("2026-01-01") < html.index("2026-01-02")
    assert html.count("<polyline") == 2
    assert command("history", tmp_path / "none") == (2, f"error: {tmp_path / 'none'}: there is no such folder\n")
    status, out = command("history", tmp_path / "earlier")
    assert (status, out) == (0, f"1 report: {tmp_path / 'earlier/history.html'}\n")


@clause("00.report.history")
def test_history_leaves_a_damaged_report_out_and_says_so(tmp_path: Path) -> None:
    document.write(made({"a": "passed"}), tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/report.json").write_text("{", encoding="utf-8")
    status, out = command("history", tmp_path)
    assert status == 0
    assert out.startswith(f"left out: {tmp_path / 'bad/report.json'}: not JSON")
    assert out.endswith(f"1 report: {tmp_path / 'history.html'}\n")
    (tmp_path / "good/report.json").unlink()
    status, out = command("history", tmp_path)
    assert status == 2
    assert out.startswith(f"error: {tmp_path / 'bad/report.json'}: not JSON")


# The page in a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: `apt-get install chromium` brings one"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if sys.platform == "linux" else []
        started = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, reported: Path) -> Iterator[Any]:
    """The page, with its requests and console messages."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.requests, tab.said = [], []
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.on("console", lambda message: tab.said.append(message.text))
    tab.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.address = (reported / "index.html").as_uri()
    tab.goto(tab.address)
    yield tab
    assert tab.said == []
    assert {url.partition("#")[0] for url in tab.requests if not url.startswith("data:")} == {tab.address}
    context.close()


def until(tab: Any, condition: Callable[[], bool]) -> None:
    """Wait; the page's security policy forbids Playwright's own `wait_for_function`, which evaluates text."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        tab.wait_for_timeout(20)


def visible(tab: Any) -> list[str]:
    """The visible clauses."""
    return tab.eval_on_selector_all("article:not([hidden])", "found => found.map(article => article.id)")


def shown(tab: Any, selector: str) -> str:
    """The text of an element without its hidden parts, whether or not it is in view."""
    return tab.eval_on_selector(
        selector,
        """root => [root, ...root.querySelectorAll("*")].filter(e => e.checkVisibility()).map(
            e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join("")).join(" ")""",
    )


class TestInABrowser:
    """Each test ends with the check that the page made no request and logged nothing (`opened`)."""

    pytestmark = IN_A_BROWSER

    @clause("00.report.offline")
    def test_the_page_loads_nothing(self, opened: Any, reported: Path) -> None:
        assert len(visible(opened)) > 5
        opened.locator("#theme").click()
        for summary in opened.locator("article:not([hidden]) summary").all():
            summary.click()
        until(opened, lambda: opened.locator(".test").count() > 5)
        assert "alert" in opened.content()  # the error text that is HTML is there as text
        html = (reported / "index.html").read_text(encoding="utf-8")
        assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html) == []

    @clause("00.report.language")
    def test_the_button_switches_everything_to_chinese_and_back(self, opened: Any) -> None:
        entry, name = CLAUSES["08.conv2d.stride1"], "[id='08.conv2d.stride1']"
        assert entry.statement in shown(opened, name)
        opened.locator("#language").click()
        assert entry.statement_zh in shown(opened, name)
        assert entry.statement not in shown(opened, name)
        assert opened.evaluate("document.documentElement.lang") == "zh-CN"
        assert "lang=zh" in opened.url
        everything = shown(opened, "main")
        assert "通过的测试" in everything
        assert not any(text in everything for text in ("Passed tests", "Listings, values", "Environment and versions"))
        opened.locator(f"{name} summary").click()
        until(opened, lambda: opened.locator(f"{name} .test").count() == 1)  # the event of opening comes later
        assert "通过" in shown(opened, f"{name} .test")
        opened.locator("#language").click()
        assert entry.statement in shown(opened, name)
        assert "通过" not in shown(opened, name)

    @clause("00.report.filters")
    def test_search_and_filters_restrict_and_are_kept_in_the_address(self, opened: Any) -> None:
        everything = visible(opened)
        opened.locator("#q").fill("ceil_mode")
        until(opened, lambda: "q=ceil_mode" in opened.url)
        found = visible(opened)
        assert found
        assert all(name.startswith("10.") for name in found)
        assert opened.locator("#count").inner_text().startswith(f"{len(found)} of {len(everything)}")
        opened.locator("#q").fill("")
        until(opened, lambda: "q=" not in opened.url)
        opened.locator("#f-impl").select_option("mine")
        opened.locator("#f-outcome").select_option("failed")
        assert "08.conv2d.parameters" in visible(opened)
        assert "08.conv2d.stride1" not in visible(opened)
        assert opened.locator("#table thead th").all_inner_texts() == ["chapter", "mine"]
        address, shown = opened.url, visible(opened)
        opened.goto("about:blank")
        opened.requests.clear()
        opened.goto(address)
        assert visible(opened) == shown
        assert opened.locator("#f-outcome").input_value() == "failed"
        opened.locator("#filters button").click()
        assert visible(opened) == everything

    @clause("00.report.links")
    def test_a_clause_has_an_address_that_opens_its_tests(self, opened: Any) -> None:
        opened.goto(opened.address + "#08.conv2d.padding1&f=1&verdict=refuted")
        article = opened.locator("[id='08.conv2d.padding1']")
        assert article.is_visible()
        assert article.evaluate("a => a.getBoundingClientRect().top < innerHeight")
        assert "[[[[1, 3, 4, 10, 8]" in article.inner_text()
        opened.goto(opened.address)
        opened.locator("[id='08.conv2d.stride1'] h3 a").click()
        assert unquote(opened.url).endswith("#08.conv2d.stride1")
        until(opened, lambda: opened.locator("[id='08.conv2d.stride1'] .test").count() == 1)
        opened.go_back()
        assert "08.conv2d" not in opened.url

    @clause("00.report.copy")
    def test_the_reproduction_of_a_failure_is_copied(self, opened: Any, reported: Path) -> None:
        opened.goto(opened.address + "#08.conv2d.parameters")
        opened.locator("[id='08.conv2d.parameters'] button").first.click()
        until(opened, lambda: opened.get_by_text("Copied", exact=True).count() == 1)
        copied = opened.evaluate("navigator.clipboard.readText()")
        assert copied in [test["reproduction"] for test in document.read(reported)["tests"]]
        assert copied.startswith("import torch\n")

    @clause("00.report.scores")
    def test_the_table_of_scores_adds_up(self, opened: Any, reported: Path) -> None:
        tests = [test for test in document.read(reported)["tests"] if test["implementation"] == "mine"]
        passed = sum(test["outcome"] == "passed" for test in tests)
        total = opened.locator("#table tbody tr").last.inner_text()
        assert f"{passed} / {len(tests)}" in total
        for outcome in {test["outcome"] for test in tests} - {"passed"}:
            assert f"{outcome} {sum(test['outcome'] == outcome for test in tests)}" in total
        opened.locator("#rows").select_option("level")
        assert f"{passed} / {len(tests)}" in opened.locator("#table tbody tr").last.inner_text()
        assert "rows=level" in opened.url

    @clause("00.report.drawings")
    def test_the_drawings_are_there(self, opened: Any) -> None:
        opened.evaluate("document.querySelectorAll('article').forEach(a => a.remove())")
        assert opened.locator("#chapter-08 .step svg").count() == 9  # all three implementations agree
        assert "reference, torch, mine" in opened.locator("#chapter-08 figcaption").inner_text()
        assert opened.locator("#chapter-11 figure").count() == 2  # the learner's relu raises
        assert "ValueError: </script>" in opened.locator("#chapter-11").inner_text()
        assert opened.locator("#run polyline").count() == 3
        assert opened.locator("#run rect.share").count() == 9
        assert "<b>bird" in opened.locator("#run").text_content()

    @clause("00.report.access")
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_text_has_contrast_and_controls_have_names(self, opened: Any, theme: str) -> None:
        opened.goto(opened.address + f"#08.conv2d.parameters&theme={theme}")
        assert opened.evaluate(CONTRAST) == []
        assert opened.evaluate(NAMES) == []
        assert opened.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)") == sorted(
            set(ids := opened.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")), key=ids.index
        )
        levels = opened.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
        assert all(after - before <= 1 for before, after in pairwise(levels))

    @clause("00.report.access")
    def test_the_keyboard_reaches_every_control(self, opened: Any) -> None:
        opened.keyboard.press("Tab")
        assert opened.evaluate("document.activeElement.className") == "skip"
        seen: list[str] = []
        for _ in range(80):
            opened.keyboard.press("Tab")
            seen.append(opened.evaluate("document.activeElement.id"))
        assert {"language", "theme", "rows", "q", "f-chapter", "f-outcome"} <= {*seen}
        opened.locator("#language").focus()
        opened.keyboard.press("Enter")
        assert opened.evaluate("document.documentElement.lang") == "zh-CN"
        opened.locator("#rows").evaluate("element => element.blur()")
        opened.keyboard.press("/")
        assert opened.evaluate("document.activeElement.id") == "q"

    @clause("00.report.access")
    @pytest.mark.parametrize("width", [320, 390, 820, 1280])
    def test_no_width_needs_sideways_scrolling(self, opened: Any, width: int) -> None:
        opened.set_viewport_size({"width": width, "height": 800})
        opened.goto(opened.address + "#errata")
        opened.locator("#h-clauses").scroll_into_view_if_needed()
        for summary in opened.locator("article:not([hidden]) summary").all()[:12]:
            summary.click()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width

    @clause("00.report.access")
    def test_printing_shows_statements_and_no_controls(self, opened: Any) -> None:
        opened.emulate_media(media="print")
        assert not opened.locator("#filters").is_visible()
        assert not opened.locator("#language").is_visible()
        assert opened.locator("[id='08.conv2d.stride1']").is_visible()
        assert len(opened.pdf()) > 10_000
        opened.goto(opened.address + "#08.conv2d.parameters&theme=dark")  # paper is white
        assert opened.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
        assert opened.locator("[id='08.conv2d.parameters'] .test").first.is_visible()
        assert not opened.locator("[id='08.conv2d.parameters'] button").first.is_visible()

    @clause("00.report.language", "00.report.offline")
    def test_the_history_has_both_languages_and_loads_nothing(self, opened: Any, tmp_path: Path) -> None:
        for day, outcome in ((1, "failed"), (2, "passed")):
            document.write(made({"a": outcome}, day=day), tmp_path / str(day))
        assert command("history", tmp_path)[0] == 0
        opened.address = (tmp_path / "history.html").as_uri()
        opened.requests.clear()
        opened.goto(opened.address)
        assert "Failed tests and errors by report" in shown(opened, "main")
        opened.locator("#language").click()
        everything = shown(opened, "body")
        assert "失败和出错的测试数" in everything
        assert [text for text in ("Passed", "passed", "failed", "run ", "Light") if text in everything] == []
        assert opened.title() == "Ocean Spec: 历史"
        opened.goto("about:blank")
        opened.requests.clear()
        opened.goto(opened.address + "#lang=zh&theme=dark")
        assert opened.evaluate("document.documentElement.lang") == "zh-CN"
        assert opened.evaluate(CONTRAST) == []
        assert opened.evaluate(NAMES) == []
        opened.set_viewport_size({"width": 320, "height": 800})
        assert opened.evaluate("document.documentElement.scrollWidth") <= 320


CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(svg):not(svg *):not(script)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(channels(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(element.textContent.slice(0, 40));
  }
  return found;
}"""
"""The texts with a contrast below 4.5, as WCAG 2 defines it."""

NAMES = """() => {
  const found = [];
  for (const element of document.querySelectorAll("button, input, select, a, summary, [role=group]")) {
    const label = element.labels?.[0] ?? document.getElementById(element.getAttribute("aria-labelledby"));
    const name = element.getAttribute("aria-label") || label?.textContent || element.textContent;
    if (!name?.trim()) found.push(element.outerHTML.slice(0, 80));
  }
  for (const element of document.querySelectorAll("svg")) {
    if (element.getAttribute("aria-hidden") !== "true") found.push(element.outerHTML.slice(0, 80));
  }
  return found;
}"""
"""The controls and regions without a name, and the drawings that a screen reader would read aloud."""
