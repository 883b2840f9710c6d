"""Simple solutions pass their chapter at level tutorial: one file per chapter in `spec/beginners`."""

import re
from pathlib import Path

import pytest

from spec.support.command import run

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "spec/beginners").glob("chapter_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.slow
def test_a_beginners_file_passes_the_chapter_at_level_tutorial(file: Path, tmp_path: Path) -> None:
    tests = sorted((ROOT / "spec").glob(f"test_{file.stem.removeprefix('chapter_')}_*.py"))
    tests += [ROOT / "spec/test_03_transforms.py"] if file.stem == "chapter_04" else []
    options = ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-n", "0")
    options += ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    result = run("pytest", *map(str, tests), *options, "--impl", str(file), "--level", "tutorial", folder=tmp_path)
    assert result.status == 0, result.out
    assert re.search(rf"\n{file.stem}: \d+ components? under test, \d+ passed", result.out), result.out
    assert not re.search(r"failed|error", result.out.partition(" trial =")[2]), result.out
