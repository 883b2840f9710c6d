"""The learner's command: stubs, the recorded walk, and a score that a submission cannot change."""

import json
import re
from pathlib import Path

import pytest

from reference.errors import InputError
from spec.support import learn, walk
from spec.support.command import run
from spec.support.exercises import exercises, files_of, of_chapter, written_in

SLOW = pytest.mark.slow


def start(folder: Path, chapter: str, monkeypatch: pytest.MonkeyPatch, language: str = "en") -> Path:
    """The file with the stubs of a chapter."""
    file = folder / "mine.py"
    monkeypatch.setattr("sys.argv", ["learn.py", "start", chapter, "--file", str(file), "--lang", language])
    assert learn.main() == 0
    return file


@pytest.mark.parametrize("chapter", sorted({exercise.chapter for exercise in exercises().values()}))
@pytest.mark.parametrize("language", ["en", "zh"])
def test_exercise_stubs_define_the_components_without_a_solution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chapter: str, language: str
) -> None:
    file = start(tmp_path, chapter, monkeypatch, language)
    text = file.read_text(encoding="utf-8")
    compile(text, str(file), "exec")
    assert written_in(file) == of_chapter(chapter)
    assert text.count("NotImplementedError") >= len(of_chapter(chapter))
    assert not re.search(r"^    return ", text, re.MULTILINE)
    assert start(tmp_path, chapter, monkeypatch).read_text(encoding="utf-8") == text  # a second time changes nothing


def test_each_exercise_has_three_hints_two_languages_and_tests() -> None:
    for exercise in exercises().values():
        assert len(exercise.hints) == 3, exercise.name
        texts = [exercise.text, exercise.why, *exercise.hints]
        assert all(re.search(r"[\u3002\u4e00-\u9fff]", chinese) for _, chinese in texts), exercise.name
        assert not any(re.search(r"[\u4e00-\u9fff]", english) for english, _ in texts), exercise.name
        assert files_of([exercise]), exercise.name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["start", "02"], "chapter 02 has no exercise; there are exercises for 01, 04"),
        (["nowhere.py"], "there is no file nowhere.py; create it with"),
    ],
)
def test_learner_errors_are_one_line(words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["learn.py", *words, "--lang", "en"])
    with pytest.raises(InputError, match=re.escape(says)):
        learn.main()


@SLOW
@pytest.mark.parametrize("language", walk.DOCUMENTS)
def test_documents_show_the_terminal_output(language: str, tmp_path: Path) -> None:
    result = run(walk.main, language, tmp_path / "again.md", folder=tmp_path)
    assert result.status == 0, result.err
    assert (tmp_path / "again.md").read_text(encoding="utf-8") == walk.DOCUMENTS[language].read_text(encoding="utf-8")


# Untrusted submissions

RELU = """
import torch

def relu(input, inplace=False):
    {line}
    output = torch.where(input > 0, input, torch.zeros_like(input))
    return input.copy_(output) if inplace else output
"""


def scored(folder: Path, code: str) -> dict[str, object]:
    """The results of a submission."""
    (folder / "mine.py").write_text(code, encoding="utf-8")
    result = run("learn.py", "score", "mine.py", "--json", "results.json", folder=folder)
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert found["version"] == 3
    assert result.status == (0 if found["status"] == "pass" else 1), result.err
    return found


@SLOW
def test_a_right_submission_passes(tmp_path: Path) -> None:
    found = scored(tmp_path, RELU.format(line="pass"))
    assert found["status"] == "pass", found


CHEATS = {
    "another comparison": "import spec.support.assertions as a; a.assert_equal = lambda *_: None; input = -input",
    "another pytest": "import pytest; pytest.fail = print; torch.equal = lambda *_: True; input = -input",
    "the end of the process": "import os; os._exit(0)",
    "a loop": "[None for _ in iter(int, 1)]",
    "results written early": "open('results.json', 'w').write('{\"status\": \"pass\"}'); input = -input",
}  # fmt: skip


@SLOW
@pytest.mark.parametrize("line", CHEATS.values(), ids=CHEATS)
def test_a_hostile_submission_cannot_change_the_score_or_hang_the_run(line: str, tmp_path: Path) -> None:
    assert scored(tmp_path, RELU.format(line=line))["status"] != "pass"
