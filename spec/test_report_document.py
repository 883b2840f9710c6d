"""The report: `report.json`, its schema, and the parts of a report that describe an implementation."""

import ast
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from spec.report import document, drawings, page, recording
from spec.support.clauses import CLAUSES, clause
from spec.support.implementations import load
from spec.support.sample_reports import SCHEMA, command, made


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
def test_an_implementation_is_identified_by_the_digest_of_the_code(tmp_path: Path) -> None:
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
def test_conditions_of_a_documented_value_come_from_the_test_source() -> None:
    files = {
        "10_pooling": "test_the_documented_sizes_are_known_beforehand",
        "report_document": "TestX::test_that_is_not_there",
    }
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
        {"id": f"spec/test_report_document.py::{name}", "clauses": [VALUE]}
        for name in re.findall(r"def (test_\w+)", source)
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
def test_drawings_are_computed_by_the_implementation(name: str) -> None:
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
