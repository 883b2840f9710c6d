"""Chapter 00: every entry of the table of known causes, with the fault and with the fix."""

import pytest

from spec.documents import causes, fixes
from spec.documents.causes import Cause
from spec.documents.check import Options, Result, check, keeper
from spec.support.clauses import clause

TABLE = causes.table()
AUTOMATIC = {name: cause for name, cause in TABLE.items() if cause.automatic}


def fixed(cause: Cause) -> str:
    """The faulty program after `--fix`."""
    code = cause.before.strip("\n")
    line = code.count("\n") + 1 if cause.id == "indentation" else 1
    return fixes.apply(cause, code, line)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Result]:
    """Every program of the table, run alone: by cause and side ("before", "after", "fixed")."""
    programs = {(name, side): getattr(cause, side) for name, cause in TABLE.items() for side in ("before", "after")}
    programs |= {(name, "fixed"): fixed(cause) for name, cause in AUTOMATIC.items()}
    programs = {key: code.strip("\n") for key, code in programs.items()}
    different = list(dict.fromkeys(programs.values()))  # many fixes give exactly the program in the table
    text = "\n\n".join(f"```python\n{code}\n```" for code in different)
    path = tmp_path_factory.mktemp("causes") / "causes.md"
    path.write_text(text, encoding="utf-8")
    with keeper() as processes:
        found = check(path, Options(seconds=5, alone=True), processes)
    by_code = dict(zip(different, found.results, strict=True))
    return {key: by_code[code] for key, code in programs.items()}


def named(result: Result) -> set[str]:
    """The causes that a result names."""
    ids = {result.cause.id} if result.cause and result.verdict == "fails" else set()
    ids |= {warning["cause"].id for warning in result.warned if warning["cause"]}
    return ids | {note.id for note in result.notes}


@clause("00.check.causes")
@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_each_fault_is_explained_by_the_matching_cause(name: str, outcomes: dict[tuple[str, str], Result]) -> None:
    result = outcomes[name, "before"]
    assert name in named(result), (result.verdict, result.error, named(result))
    expected = {"note": {"runs", "warns"}}.get(TABLE[name].kind, {"fails", "warns"})
    assert result.verdict in expected, (result.verdict, result.error)


@clause("00.check.causes")
@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_the_remedy_removes_the_cause(name: str, outcomes: dict[tuple[str, str], Result]) -> None:
    result = outcomes[name, "after"]
    assert name not in named(result)
    assert result.verdict == "runs", (result.verdict, result.error, result.warned)


@clause("00.check.fixes")
@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOMATIC)
def test_the_automatic_fix_removes_the_cause(name: str, outcomes: dict[tuple[str, str], Result]) -> None:
    result = outcomes[name, "fixed"]
    assert name not in named(result), fixed(TABLE[name])
    assert result.verdict == "runs", (result.verdict, result.error, result.warned, fixed(TABLE[name]))


@clause("00.check.fixes")
@pytest.mark.parametrize("name", AUTOMATIC)
def test_the_automatic_fix_changes_the_faulty_program_only(name: str) -> None:
    cause = TABLE[name]
    assert fixed(cause) != cause.before.strip("\n")
    assert fixes.apply(cause, cause.after.strip("\n")) == cause.after.strip("\n") or cause.fix in ("colon", "detach")


@clause("00.check.causes")
def test_every_cause_has_reason_remedy_and_source_in_both_languages() -> None:
    for cause in TABLE.values():
        for text in (cause.en, cause.fix_en):
            assert text.endswith((".", ":."))
            assert text.isascii() or "…" in text
        for text in (cause.zh, cause.fix_zh):
            assert text.endswith("。")
        assert cause.source.startswith("https://")
        assert cause.kind in ("change", "mistake", "note")
        assert (cause.kind == "change") <= bool(cause.since)
