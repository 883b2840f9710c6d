"""The specification follows its own rules: every clause has a test, and every test of a component a clause."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from spec.support.assertions import rejects
from spec.support.clauses import ASPECTS, CLAUSES, KINDS, LEVELS, RULES, VERDICTS, Clause, clause, read
from spec.support.implementations import COMPONENTS, load
from spec.support.levels import aspect_of, level_of
from spec.support.strategies import given

SPEC = Path(__file__).parent
CHAPTERS = tuple(f"{number:02}" for number in range(22))
"""The chapters in which every test has a clause."""


@cache
def functions() -> dict[str, list[ast.FunctionDef]]:
    """The functions of each file of the specification, by `file`, and of each class in it, by `file::class`.

    They have no statements: half a million objects would slow down every garbage collection until the end.
    """
    found = {}
    for path in sorted(SPEC.glob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        classes = {f"{path.name}::{node.name}": node for node in module.body if isinstance(node, ast.ClassDef)}
        for home, node in ({path.name: module} | classes).items():
            found[home] = [function for function in node.body if isinstance(function, ast.FunctionDef)]
            for function in found[home]:
                function.body = []
    return found


@cache
def specified() -> dict[str, tuple[ast.FunctionDef, list[str]]]:
    """Every test of the specification by `file::name` or `file::class::name`, with the ids of its clauses."""
    found = {}
    for home, nodes in functions().items():
        for node in nodes:
            if node.name.startswith("test_"):
                calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
                ids = [
                    argument.value
                    for call in calls
                    if isinstance(call.func, ast.Name) and call.func.id == "clause"
                    for argument in call.args
                    if isinstance(argument, ast.Constant)
                ]
                found[f"{home}::{node.name}"] = (node, ids)
    return found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_clause_has_a_test(chapter: str) -> None:
    tested = {name for _, ids in specified().values() for name in ids}
    assert sorted(name for name, entry in CLAUSES.items() if entry.chapter == chapter and name not in tested) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_test_has_a_clause(chapter: str) -> None:
    own = {name: ids for name, (_, ids) in specified().items() if name.startswith(f"test_{chapter}_")}
    assert own
    assert [name for name, ids in own.items() if not ids] == []


def test_every_test_of_a_component_has_a_clause() -> None:
    on_trial = {
        name: ids for name, (node, ids) in specified().items() if {a.arg for a in node.args.args} & {*COMPONENTS}
    }
    assert len(on_trial) > 100
    assert [name for name, ids in on_trial.items() if not ids] == []


def test_every_component_has_a_test() -> None:
    asked_for = {argument.arg for node, _ in specified().values() for argument in node.args.args}
    assert [name for name in COMPONENTS if name not in asked_for] == []


def test_no_two_tests_of_a_file_have_the_same_name() -> None:
    for home, nodes in functions().items():
        names = [node.name for node in nodes]
        assert len(names) == len(set(names)), home


UNCLEAR = re.compile(
    r"^test_(it|they|them|their|this|that|these|those)_"
    r"|_(its|what|whatever|who(ever|m|se)?|wherever|likewise)(_|$)"
    r"|_(travels?|comes?_back|nothing_else|no_trouble|harms?|will_do|says_so|might_as_well)(_|$)"
)
"""Words in the name of a test that refer to something outside of the name, and idioms."""


def test_names_of_tests_can_be_understood_without_the_file() -> None:
    assert [f"{home}::{node.name}" for home, nodes in functions().items() for node in nodes if unclear(node)] == []


def unclear(function: ast.FunctionDef) -> bool:
    """Whether the name of a test does not name the component and the behaviour."""
    return function.name.startswith("test_") and bool(UNCLEAR.search(function.name))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("test_its_state_travels_both_ways", True),
        ("test_it_is_differentiable_twice", True),
        ("test_who_is_left_does_not_wait_for_who_is_gone", True),
        ("test_tensors_of_every_kind_come_back", True),
        ("test_state_dict_loads_to_and_from_pytorch", False),
        ("test_conv2d_is_differentiable_twice", False),
        ("itself", False),
    ],
    ids=str,
)
def test_unclear_names_of_tests_are_found(name: str, found: bool) -> None:
    function = ast.parse(f"def {name}(): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert unclear(function) == found


@pytest.mark.parametrize("chapter", sorted({entry.chapter for entry in CLAUSES.values()}))
def test_every_clause_is_complete(chapter: str) -> None:
    entries = [entry for entry in CLAUSES.values() if entry.chapter == chapter]
    assert {entry.id: problems for entry in entries if (problems := list(problems_of(entry)))} == {}


def problems_of(entry: Clause) -> Iterator[str]:
    """A description of the fault of a clause."""
    if not re.fullmatch(r"\d\d\.\w+\.\w+", entry.id):
        yield "the id must be chapter.component.name"
    if entry.kind not in KINDS:
        yield f"the kind must be one of {KINDS}"
    if entry.kind in RULES and (entry.verdict or entry.lines):
        yield "the tutorial does not say a rule, so it has neither verdict nor lines"
    if entry.kind not in RULES and entry.verdict not in VERDICTS:
        yield f"the verdict must be one of {VERDICTS}"
    if entry.kind not in RULES and (not entry.lines or list(entry.lines) != sorted(set(entry.lines))):
        yield "the lines must be given, in order"
    if entry.own_level not in ("", *LEVELS) or entry.own_aspect not in ("", *ASPECTS):
        yield f"the level must be one of {LEVELS}, the aspect one of {ASPECTS}"
    if entry.own_level and entry.own_level == replace(entry, own_level="").level:
        yield "the level follows from the kind and the aspect and must not be repeated"
    if entry.own_aspect and entry.own_aspect == replace(entry, own_aspect="").aspect:
        yield "the aspect follows from the id and must not be repeated"
    if not entry.statement.endswith(".") or not entry.statement_zh.endswith("。"):
        yield "the statements must be sentences"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (Clause("8.x", "rule", "A.", "甲。"), "the id"),
        (Clause("08.x.y", "law", "A.", "甲。"), "the kind"),
        (Clause("08.x.y", "rule", "A.", "甲。", "holds"), "neither verdict"),
        (Clause("08.x.y", "project", "A.", "甲。", lines=(1,)), "neither verdict"),
        (Clause("08.x.y", "claim", "A.", "甲。", "true", (1,)), "the verdict"),
        (Clause("08.x.y", "claim", "A.", "甲。", "holds"), "the lines"),
        (Clause("08.x.y", "claim", "A.", "甲。", "holds", (2, 1)), "the lines"),
        (Clause("08.x.y", "rule", "A.", "甲。", own_level="hard"), "the level must be"),
        (Clause("08.x.y", "rule", "A.", "甲。", own_aspect="beauty"), "the aspect one of"),
        (Clause("08.x.y", "rule", "A.", "甲。", own_level="definition"), "must not be repeated"),
        (Clause("08.x.rejects", "rule", "A.", "甲。", own_aspect="errors"), "must not be repeated"),
        (Clause("08.x.y", "rule", "A", "甲。"), "the statements"),
        (Clause("08.x.y", "rule", "A.", "甲"), "the statements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_clauses_are_found(entry: Clause, problem: str) -> None:
    assert any(problem in said for said in problems_of(entry))


@pytest.mark.parametrize(
    ("name", "kind", "level", "aspect"),
    [
        ("08.x.y", "value", "tutorial", "values"),
        ("08.x.y", "rule", "definition", "values"),
        ("08.x.y", "project", "pytorch", "values"),
        ("08.x.gradients", "claim", "definition", "gradients"),
        ("08.x.rejects", "claim", "pytorch", "errors"),
        ("08.x.seed", "claim", "tutorial", "randomness"),
    ],
)
def test_kind_and_name_of_a_clause_give_level_and_aspect(name: str, kind: str, level: str, aspect: str) -> None:
    entry = Clause(name, kind, "A.", "甲。")
    assert (entry.level, entry.aspect) == (level, aspect)


def test_every_test_has_a_level_and_an_aspect(request: pytest.FixtureRequest) -> None:
    """Count the tests of this run; `python -m spec.support.levels` counts all."""
    for item in request.session.items:
        properties = dict(item.user_properties)
        assert properties["level"] in LEVELS, item.nodeid
        assert properties["aspect"] in ASPECTS, item.nodeid


class Written:
    """A collected test with its level and aspect."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function, self.nodeid = function, "test"

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next((mark for mark in getattr(self.function, "pytestmark", []) if mark.name == name), None)


def _plain() -> None: ...


@given(x=st.integers())
def _property(x: int) -> None: ...


@hypothesis.given(x=st.integers())
def _hypothesis_property(x: int) -> None: ...


@pytest.mark.level("definition")
@pytest.mark.aspect("text")
def _marked() -> None: ...


@pytest.mark.level("easy")
def _marked_wrongly() -> None: ...


def _expects_an_error() -> None:
    with rejects(naming="stride"):
        raise ValueError("stride")


@pytest.mark.parametrize(
    ("test", "level", "aspect"),
    [
        (_plain, "tutorial", "values"),
        (_property, "definition", "values"),
        (_hypothesis_property, "definition", "values"),
        (_expects_an_error, "pytorch", "errors"),
        (_marked, "definition", "text"),
    ],
    ids=["a test", "a property", "a property of Hypothesis", "an error", "markers"],
)
def test_test_markers_override_level_and_aspect_of_the_clause(
    test: Callable[..., None], level: str, aspect: str
) -> None:
    item: Any = Written(clause("08.conv2d.stride1")(test))
    assert (level_of(item), aspect_of(item)) == (level, aspect)


def test_a_marker_of_no_level_is_refused() -> None:
    item: Any = Written(_marked_wrongly)
    with pytest.raises(ValueError, match="the marker level needs one of tutorial, definition, pytorch, got"):
        level_of(item)


def wanted(home: str, node: ast.FunctionDef) -> set[str]:
    """The components that a test uses, directly or through the fixtures of its file."""
    fixtures = {function.name: function for function in functions()[home.partition("::")[0]]}
    found: set[str] = set()
    todo, seen = [node], set()
    while todo:
        for argument in (argument.arg for argument in todo.pop().args.args):
            if argument in COMPONENTS:
                found.add(argument)
            elif argument in fixtures and argument not in seen:
                seen.add(argument)
                todo.append(fixtures[argument])
    return found


@cache
def asked_of_pytorch() -> dict[str, tuple[int, int]]:
    """For each clause the number of its tests with components, and the number of these components that PyTorch has."""
    offered = set(load("torch").components)
    found: dict[str, tuple[int, int]] = {}
    for name, (node, ids) in specified().items():
        components = wanted(name.rpartition("::")[0], node)
        for clause_id in ids if components else []:
            tests, judged = found.get(clause_id, (0, 0))
            found[clause_id] = tests + 1, judged + (components <= offered)
    return found


def test_a_rule_of_pytorch_is_tested_with_pytorch() -> None:
    """A clause that is tested only on this project's components has the kind "project"."""
    import torchvision  # noqa: F401  -- without it PyTorch has no transforms, and this test is skipped

    tests = asked_of_pytorch()
    assert [
        entry.id for entry in CLAUSES.values() if entry.kind == "rule" and tests.get(entry.id, (0, 1))[1] == 0
    ] == []


def test_a_rule_of_the_project_is_not_tested_with_pytorch() -> None:
    tests = asked_of_pytorch()
    asked = [entry.id for entry in CLAUSES.values() if entry.kind == "project" and tests.get(entry.id, (0, 0))[1]]
    assert asked == []


def test_a_verdict_that_needs_other_hardware_is_not_testable() -> None:
    """A verdict needs a test without a GPU; clauses that only tests marked gpu can verify are "not testable"."""
    seen = {
        name
        for node, ids in specified().values()
        if not any("mark.gpu" in ast.unparse(decorator) for decorator in node.decorator_list)
        for name in ids
    }
    unseen = [entry for entry in CLAUSES.values() if entry.kind not in RULES and entry.id not in seen]
    assert [entry.id for entry in unseen if entry.verdict != "not testable"] == []


def test_a_sentence_that_the_tutorial_repeats_has_one_verdict() -> None:
    # lines of the tutorial with the same wording: the steps of an epoch, cuda:0 as the device, the time at a hundredth
    # step
    repeated = ((1515, 1673, 1850, 2017, 2277), (1756, 1923), (1852, 2019, 2279))
    for lines in repeated:
        verdicts = {
            entry.id: entry.verdict
            for entry in CLAUSES.values()
            if entry.kind not in RULES and set(entry.lines) & set(lines)
        }
        assert len(verdicts) > 1, lines
        assert len(set(verdicts.values())) == 1, verdicts


def test_clauses_are_in_chapter_order() -> None:
    ids = list(CLAUSES)
    assert [later for earlier, later in pairwise(ids) if later[:2] < earlier[:2]] == []


def test_no_two_clauses_of_a_component_say_the_same() -> None:
    said = [
        (entry.id.rpartition(".")[0], text)
        for entry in CLAUSES.values()
        for text in (entry.statement, entry.statement_zh)
    ]
    assert [text for text, times in Counter(said).items() if times > 1] == []


def test_an_unknown_clause_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'08.conv2d.strid1' is not in clauses.toml; near are \['08.conv2d.stride1'"):
        clause("08.conv2d.strid1")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('kind = "rule"\nen = "a"', "has no zh"),
        ('kind = "rule"\nen = "a"\nzh = "b"\nverdikt = "holds"', r"unknown keys \['verdikt'\]"),
        ('kind = "claim"\nen = "a"\nzh = "b"\nsame_as = "08.x.z"', "same_as = '08.x.z', which must be the id"),
        ('kind = "claim"\nen = "a"\nzh = "b"\nsame_as = "08.x.y"', "same_as = '08.x.y', which must be the id"),
        ('kind = "rule"\nen = "a"\nzh = "b"\nsince = "2.12"', "since = '2.12'; it must be among"),
        (
            'kind = "rule"\nen = "a"\nzh = "b"\nsince = "2.11.0"\nuntil = "2.13.0"',
            "since and until; it must have at most",
        ),
    ],
    ids=[
        *("a missing part", "an unknown part", "an unknown clause", "a clause without a verdict"),
        *("a release that was not run", "two spans"),
    ],
)
def test_a_clause_with_unknown_fields_is_rejected(tmp_path: Path, entry: str, says: str) -> None:
    path = tmp_path / "clauses.toml"
    path.write_text(f'["08.x.y"]\n{entry}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read(path)
