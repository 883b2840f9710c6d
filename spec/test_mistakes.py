"""The diagnosis names typical mistakes: files with one mistake each, in `spec/mistakes`, and files without one."""

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from spec.faults import all_faults
from spec.support.command import run
from spec.test_beginners import FILES

ROOT = Path(__file__).parents[1]
MISTAKES: dict[str, Any] = {
    title: entry
    for file in sorted((ROOT / "spec/mistakes").glob("*.toml"))
    for title, entry in tomllib.loads(file.read_text(encoding="utf-8")).items()
}
GROUPS: dict[tuple[str, str], list[str]] = defaultdict(list)
"""The mistakes by the file of the specification that judges them, and by the level."""
for _title, _entry in MISTAKES.items():
    GROUPS[_entry["tests"], _entry.get("level", "tutorial")].append(_title)
NAMED = 0.9
"""The share of the mistakes that must be named."""


def diagnosed(folder: Path, tests: Iterable[Path], files: dict[str, str], level: str) -> dict[str, str]:
    """The diagnosis of each file, by a run of the chapter with all of them; empty if there is none."""
    found = {}
    for name, code in files.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    options = ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-n", "0")
    options += ("-W", "ignore::pytest.PytestAssertRewriteWarning", "--hypothesis-profile", "faults", "--level", level)
    names = ",".join(f"{name}.py" for name in files)
    result = run("pytest", *map(str, tests), *options, "--impl", names, folder=folder)
    for name in files:
        part = (
            (0, result.out)
            if len(files) == 1
            else re.search(rf"^== {name}\n(.*?)(?=^== |\Z)", result.out, re.DOTALL | re.MULTILINE)
        )
        said = re.search(r"^ *diagnosis: (.*(?:\n    .*)*)", part[1] if part else "", re.MULTILINE)
        found[name] = " ".join(said[1].split()) if said else ""
    assert " trial =" in result.out, result.out + result.err
    return found


def words(fault: str) -> str:
    """The name of a fault as a diagnosis shows it."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=\d)", " ", fault).lower()


@pytest.mark.slow
def test_nine_of_ten_mistakes_of_learners_are_named(tmp_path: Path, subtests: pytest.Subtests) -> None:
    known = {fault.__name__ for fault in all_faults()}
    missed = []
    for (tests, level), titles in GROUPS.items():
        files = {re.sub(r"\W+", "_", f"m{title}"): title for title in titles}
        said = diagnosed(tmp_path, [ROOT / f"spec/{tests}"], {n: MISTAKES[t]["code"] for n, t in files.items()}, level)
        for name, title in files.items():
            wanted = MISTAKES[title]["named"]
            with subtests.test(title):
                assert set(wanted) <= known
            if not any(words(fault) in said[name] for fault in wanted):
                missed.append(f"{title}: {said[name] or 'no diagnosis'}")
    share = 1 - len(missed) / len(MISTAKES)
    print(f"named: {len(MISTAKES) - len(missed)} of {len(MISTAKES)} mistakes", *missed, sep="\n  ")
    assert share >= NAMED, "\n".join(missed)


# the mistake of such a file: its tanh is 2 · sigmoid(2x) − 1
TRUE = {"chapter_11": "tanh loses small numbers"}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_correct_but_incomplete_files_get_no_diagnosis(file: Path, tmp_path: Path) -> None:
    tests = sorted((ROOT / "spec").glob(f"test_{file.stem.removeprefix('chapter_')}_*.py"))
    said = diagnosed(tmp_path, tests, {file.stem: file.read_text(encoding="utf-8")}, "definition")
    assert said[file.stem].partition(" (")[0] == TRUE.get(file.stem, "")
