"""Tests of the mutation testing: the mutants are real changes, and only faulty ones are detected."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec.mutation import __main__ as command
from spec.mutation.judge import Coverage, Verdict, judge, project, record
from spec.mutation.mutants import HELPERS, ORACLES, PROGRAM, ROOT, Mutant, mutants, sources
from spec.support.clauses import clause

DROPOUT = ROOT / "reference/nn/dropout.py"


@clause("00.mutation.judged")
def test_a_mutant_changes_one_place_and_can_be_parsed() -> None:
    found = mutants(DROPOUT)
    original = ast.dump(ast.parse(DROPOUT.read_bytes()))
    assert len(found) > 20
    assert len({mutant.id for mutant in found}) == len(found)
    for mutant in found:
        assert ast.dump(ast.parse(mutant.source())) != original, mutant.id
        assert mutant.diff().count("\n-") == 1 + mutant.diff().count("\n--"), mutant.id


@clause("00.mutation.judged")
def test_each_kind_of_change_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "def f(x: int = 3) -> int:\n"
        "    'text 1'\n"
        "    __tracebackhide__ = True\n"
        "    assert x < 2\n"
        "    x += 1\n"
        "    if not x or x <= 2.5:\n"
        "        raise ValueError(f'{x + 1}')\n"
        "    g(x)\n"
        "    return True if x else -x\n"
        "Pair = list[int] | dict[str, int]\n"
        "list(zip((), (), strict=True))\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("spec.mutation.mutants.ROOT", tmp_path)
    found = [(mutant.function, mutant.before, mutant.after) for mutant in mutants(path)]
    assert found == [
        ("", "3", "4"),
        ("f", "x += 1", "x -= 1"),
        ("f", "x += 1", "pass"),
        ("f", "1", "2"),
        ("f", "not x or x <= 2.5", "(not x and x <= 2.5)"),
        ("f", "not x", "(x)"),
        ("f", "x <= 2.5", "(x < 2.5)"),
        ("f", "x <= 2.5", "(x > 2.5)"),
        ("f", "2.5", "5.0"),
        ("f", "raise ValueError(f'{x + 1}')", "pass"),
        ("f", "g(x)", "pass"),
        ("f", "True if x else -x", "(True if not x else -x)"),
        ("f", "True", "False"),
        ("f", "-x", "(x)"),
        ("", "list(zip((), (), strict=True))", "pass"),
    ]


@clause("00.mutation.judged")
def test_a_mutant_is_judged_by_tests_that_execute_the_statement_or_else_the_function() -> None:
    recorded = Coverage(["t0"], {"a.py": {3: [0]}})
    recorded.add(Coverage(["t1", "t2", "t2::of a table", "t3"], {"a.py": {4: [0], 9: [1]}, "b.py": {3: [0]}}))
    recorded = Coverage.loads(recorded.dumps())

    def of(*spans: tuple[int, int]) -> list[str]:
        return recorded.of(Mutant("a.py", "f", 3, "1", "2", 1, 0, 1, spans))

    assert of((4, 4), (1, 9)) == ["t1"]
    assert of((3, 4), (1, 9)) == ["t0", "t1"]
    assert of((5, 6), (7, 9), (1, 9)) == ["t2"]
    assert of() == of((5, 6), (6, 8)) == ["t0", "t1", "t2", "t2::of a table"]
    recorded.failing.append("t1")
    assert of() == ["t0", "t2", "t2::of a table"]
    assert recorded.of(Mutant("c.py", "f", 3, "1", "2", 1, 0, 1, ((3, 3),))) == []


@clause("00.mutation.judged")
def test_mutant_spans_are_the_statement_and_the_enclosing_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "class C:\n"
        "    def f(self, x=1):\n"
        "        if (x ==\n"
        "                2):\n"
        "            return g(\n"
        "                3)\n"
        "        return x\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("spec.mutation.mutants.ROOT", tmp_path)
    spans = {mutant.before: mutant.spans for mutant in mutants(path)}
    assert spans["1"] == ((2, 2), (2, 7), (1, 7))
    assert spans["2"] == ((3, 4), (2, 7), (1, 7))
    assert spans["3"] == ((5, 6), (2, 7), (1, 7))


@clause("00.mutation.judged")
def test_an_equivalent_mutant_exists_and_has_a_reason() -> None:
    every = {mutant.id for path in sources([*PROGRAM, *HELPERS, *ORACLES]) for mutant in mutants(path)}
    for name, reason in command.equivalents().items():
        assert name in every, f"{name} is no mutant of these sources"
        assert len(reason.split()) > 3, name


def verdicts() -> Iterator[Verdict]:
    for mutant, by in zip(mutants(DROPOUT), ("a test", "", "", "a test"), strict=False):
        yield Verdict(mutant, by, 3, 1.0)


@clause("00.mutation.judged")
def test_the_report_names_survivors_and_equivalents_that_were_noticed() -> None:
    found = list(verdicts())
    known = {found[2].mutant.id: "a reason", found[3].mutant.id: "a reason"}
    text = "\n".join(command.summary(found, known))
    assert f"survived 3 tests: {found[1].mutant.id}\n--- " in text
    assert f"listed as equivalent, but a test notices it: {found[3].mutant.id}" in text
    assert "killed: 2 of 3 mutants that are not equivalent" in text
    assert Counter(text.split())["survived"] == 2


@clause("00.mutation.judged")
@pytest.mark.slow
def test_the_judge_notices_a_wrong_program_and_lets_a_right_one_pass() -> None:
    with project() as folder:
        coverage = record(folder, ["spec/test_12_dropout.py"])
        (wrong, *_) = [mutant for mutant in mutants(DROPOUT) if mutant.before == "1 - p"]
        original = (folder / wrong.file).read_bytes()
        noticed = judge(folder, wrong, coverage)
        right = Mutant(
            wrong.file, wrong.function, wrong.line, wrong.before, "(1 - p)", 1, wrong.start, wrong.stop, wrong.spans
        )
        assert judge(folder, right, coverage).by == ""
        assert noticed.by.startswith("spec/test_12_dropout.py::")
        assert noticed.tests == len(coverage.of(wrong)) > 10
        assert (folder / wrong.file).read_bytes() == original
