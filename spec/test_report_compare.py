"""The report: `python -m spec.report`, which merges and compares reports, and draws badges and histories."""

import json
from pathlib import Path

import jsonschema
import pytest

from spec.report import compare, document, page
from spec.support.clauses import clause
from spec.support.sample_reports import SCHEMA, SPECIFICATION, command, made, unpacked


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
def test_merge_drops_an_interrupted_run_that_was_repeated_completely() -> None:
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
def test_merging_a_report_with_itself_gives_one_run() -> None:
    report = made({"a": "passed"})
    assert compare.merge([report, report, compare.merge([report])]) == report


@clause("00.report.merge")
def test_merge_keeps_nothing_of_code_that_has_changed() -> None:
    merged = compare.merge([made({"a": "passed", "b": "passed"}, day=1), made({"a": "passed"}, day=2, digest="1")])
    assert [test["id"][-1] for test in merged["tests"]] == ["a"]
    assert [entry["digest"][7] for entry in merged["implementations"]] == ["1"]


@clause("00.report.merge")
def test_merge_compares_versions_and_names_the_first_where_a_clause_holds() -> None:
    reports = [made({"a": outcome}, torch=version) for version, outcome in (("2.14.0", "passed"), ("2.9.1", "failed"))]
    merged = compare.merge(reports)
    jsonschema.validate(merged, SCHEMA)
    assert [entry["versions"]["torch"] for entry in merged["environments"]] == ["2.9.1", "2.14.0"]
    view = page.View(merged)
    assert [column["en"] for column in view.columns] == ["mine (torch 2.9.1, cpu)", "mine (torch 2.14.0, cpu)"]
    assert view.span("08.conv2d.stride1") == [("mine: since 2.14.0", "mine：自 2.14.0 起成立")]
    articles = unpacked(page.render(merged))["articles"]
    assert "mine: since 2.14.0" in articles
    assert "mine：自 2.14.0 起成立" in articles


@clause("00.versions.recorded")
def test_the_page_shows_the_recorded_releases_beside_the_measured_ones() -> None:
    name = "12.batch_norm.rejects"
    reports = [made({"a": outcome}, torch=version) for version, outcome in (("2.9.1", "failed"), ("2.14.1", "passed"))]
    for report in reports:
        report["specification"] = SPECIFICATION | {"clauses": {name: SPECIFICATION["clauses"][name]}}
        report["tests"][0]["clauses"] = [name]
    merged = compare.merge(reports)
    jsonschema.validate(merged, SCHEMA)
    articles = unpacked(page.render(merged))["articles"]
    for shown in ("mine: since 2.14.1", "PyTorch, recorded: since 2.11.0", "PyTorch，记录：自 2.11.0 起成立"):
        assert shown in articles
    assert "recorded" not in unpacked(page.render(made({"a": "passed"})))["articles"]


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
def test_diff_lists_added_and_removed_tests(tmp_path: Path) -> None:
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
        "error: the reports have no test in common: the first has 2 tests of mine, the second 1 test of mine\n"
    )


@clause("00.report.badge")
def test_a_badge_is_red_grey_or_green(tmp_path: Path) -> None:
    for outcomes, about, message, color in (
        ({"a": "passed"}, {}, "1 of 1 test passed", "brightgreen"),
        ({"a": "passed", "b": "absent"}, {}, "1 of 2 tests passed, 1 absent", "green"),
        ({"a": "passed", "b": "error"}, {}, "1 of 2 tests passed, 1 failed", "red"),
        ({"a": "passed"}, {"complete": False}, "incomplete: 1 of 1 test passed", "lightgrey"),
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
def test_history_skips_a_damaged_report_with_a_note(tmp_path: Path) -> None:
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
