"""Chapter 00: the documents: correct commands, links and figures, and plain wording."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]

ENGLISH = sorted(path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if ".zh-CN" not in path.name)
DOCUMENTS = [*ENGLISH, *(path.with_suffix(".zh-CN.md") for path in ENGLISH)]
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "spec/README.md")]


def names(paths: list[Path]) -> list[str]:
    """Paths in the form of test ids."""
    return [str(path.relative_to(ROOT)) for path in paths]


def commands(path: Path) -> list[str]:
    """The commands of a document, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [line.split("  #")[0].rstrip() for block in blocks for line in block.splitlines()]


@clause("00.package.readme")
def test_readme_starts_with_the_two_commands() -> None:
    assert commands(ROOT / "README.md")[:2] == [
        "python -m pip install -e . && python scripts/train_full.py",
        'python -m pip install -e ".[test]" && python -m pytest -n 2',
    ]


@clause("00.package.readme")
def test_readme_has_at_most_700_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


@clause("00.package.readme")
@pytest.mark.parametrize("path", ENGLISH, ids=names(ENGLISH))
def test_chinese_document_has_the_same_commands_headings_and_figures(path: Path) -> None:
    chinese = path.with_suffix(".zh-CN.md")
    assert commands(chinese) == commands(path)
    for pattern in (r"^#+ ", r"\d\.\d{2,}", r"^\|[-|]+\|$"):
        found = [re.findall(pattern, p.read_text(encoding="utf-8"), re.MULTILINE) for p in (path, chinese)]
        assert found[0] == found[1], f"{path.name} and {chinese.name} differ in {pattern}"


def defined_flags() -> set[str]:
    """The long options of the project's commands, read from their sources."""
    sources = [*(ROOT / "reference").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "conftest.py"]
    sources += [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "spec/support").glob("*.py")]
    for folder in ("report", "mutation", "documents"):
        sources += (ROOT / "spec" / folder).glob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    fields = re.findall(r"^    ([a-z]\w*): ", text, re.MULTILINE)  # settings become flags
    return {name.replace("_", "-") for name in fields} | set(re.findall(r'"--([a-z][a-z0-9-]+)"', text))


@clause("00.package.readme")
@pytest.mark.parametrize("path", [*DOCUMENTS, *OTHERS], ids=names([*DOCUMENTS, *OTHERS]))
def test_every_script_flag_and_link_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for script in re.findall(r"(?:scripts|benchmarks)/[a-z]\w*\.py", text):
        assert (ROOT / script).is_file(), script
    # options of TensorBoard, of all commands, of pip, of pytest's plugins and of torchrun
    others = {
        "logdir",
        "help",
        "hypothesis-profile",
        "randomly-seed",
        "benchmark-autosave",
        "benchmark-compare",
        "nproc-per-node",
        "check",
        "junitxml",
    }
    flags = set(re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z0-9-]+)", text))
    assert sorted(flags - others - defined_flags()) == []
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target


@clause("00.package.readme")
def test_documented_hypothesis_profiles_exist() -> None:
    named = set(re.findall(r"`(dev|ci|thorough)`", (ROOT / "docs/trial.md").read_text(encoding="utf-8")))
    assert named == {"dev", "ci", "thorough"}
    assert hypothesis.settings.get_profile("ci").max_examples == 100
    assert hypothesis.settings.get_profile("ci").derandomize
    assert hypothesis.settings.get_profile("thorough").max_examples == 2000


@clause("00.package.readme")
def test_images_of_readme_exist_and_are_small() -> None:
    total = 0
    for name, language in (("README.md", "en"), ("README.zh-CN.md", "zh")):
        images = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8")))
        assert images == {f"docs/images/{kind}.{language}.png" for kind in ("results", "failure", "report")}
        total += sum((ROOT / image).stat().st_size for image in images)
    assert total < 300_000  # python -m spec.report.readme_images writes all of them


BANNED = {
    r"\bpictures?\b": "image",
    r"\b(?:graphics )?cards?\b": "GPU",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:go|goes|going|gone|went) on\b": "resume, continue",
    r"\bon trial\b": "under test",
    r"\bwhose\b": "with, of which",
    r"\b(?:so|that) many\b": "the number",
    r"\bhow far\b": "the distance, the step, the tolerance",
    r"\bwhat (?:comes|came)\b": "output, input",
    r"\bwhat (?:is|was) left\b": "the rest",
    r"\bwhat it is\b": "its kind, its arguments",
    r"\bwhat stands\b": "the text",
    r"\bbeside what\b": "besides",
    r"\bfor want of\b": "without",
    r"\b(?:is|are) (?:said|told)\b": "is reported, is printed",
    r"\bas (?:it|they) (?:was|were)\b": "unchanged",
    r"\b(?:lie|lies) in memory\b": "the memory layout",
    r"\bas though\b": "as if",
    r"\bshall\b": "must, will",
    r"\bunless told\b": "by default",
    r"\bunasked\b": "without the option",
    r"\bput right\b": "corrected",
    r"\ba person\b": "a user",
    r"\bwhat (?:becomes|became) of\b": "the outcome of, the verdict on",
    r"\bin (?:its|their|our) own words\b": "rewritten",
    "有哪些算哪些": "只包括具有的项",
    "指名拒绝|指明参数名地": "报错并指出参数名",
    "一类一类": "按类别依次",
    "借来的机器": "云端机器",
    "图片": "图像",
    "显卡": "GPU",
    "规格": "规范",
}
"""Words to avoid, each with the standard term or the plain wording to use instead (CONTRIBUTING.md)."""
ANY_BANNED = re.compile("|".join(BANNED), re.IGNORECASE)


FOLDERS = ("reference", "scripts", "benchmarks", "spec", "notebooks", ".")
SOURCES = (".py", ".pyi", ".toml", ".ipynb")


def sources(folder: str) -> list[Path]:
    """The sources below a folder, or directly in the root; without this file, which contains the banned words."""
    found = (ROOT / folder).rglob("*") if folder != "." else ROOT.iterdir()
    return sorted(path for path in found if path.suffix in SOURCES and path != Path(__file__).resolve())


def spaced(text: str) -> str:
    """The text with names of tests as words: `test_images_are_equal` becomes `test images are equal`."""
    return re.sub(r"\btest_\w+", lambda name: name[0].replace("_", " "), text)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a document; of a Python file the comments, the strings and the names of tests."""
    if path.suffix not in (".py", ".pyi"):
        yield from enumerate(spaced(path.read_text(encoding="utf-8")).splitlines(), start=1)
        return
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            name_of_test = token.type == tokenize.NAME and token.string.startswith("test_")
            if name_of_test or tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                yield from enumerate(spaced(token.string).splitlines(), start=token.start[0])


def banned_words(path: Path) -> list[str]:
    """Every banned word of a file with its line and the replacement."""
    if not ANY_BANNED.search(spaced(path.read_text(encoding="utf-8"))):  # tokenizing every file takes seconds
        return []
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return [
        f"{shown}:{number}: {match[0]!r}: write {instead!r}"
        for number, line in prose(path)
        for pattern, instead in BANNED.items()
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]


@clause("00.package.language")
@pytest.mark.parametrize("path", [*DOCUMENTS, *OTHERS], ids=names([*DOCUMENTS, *OTHERS]))
def test_prose_uses_the_standard_terms(path: Path) -> None:
    assert banned_words(path) == []


@clause("00.package.language")
@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_prose_of_sources_uses_the_standard_terms(folder: str) -> None:
    paths = sources(folder)
    assert paths
    assert [found for path in paths for found in banned_words(path)] == []


def hidden_entries(source: str) -> list[str]:
    """The arguments and attributes that a docstring describes in the middle of another entry."""
    hidden = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or (text := ast.get_docstring(node)) is None:
            continue
        init = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        functions = [node] if isinstance(node, ast.FunctionDef) else init
        names = {argument.arg for f in functions for argument in (*f.args.args, *f.args.kwonlyargs)}
        if isinstance(node, ast.ClassDef):
            names |= {a.target.id for a in node.body if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)}
        for section in re.findall(r"^(?:Args|Attributes):\n((?: .*\n?|\n(?= ))+)", text, re.MULTILINE):
            inside = re.findall(r"[.;]\s+(\w+)(?:, \w+)*:\s", " ".join(section.split()))
            own = re.findall(r"^    (\w+)(?:, \w+)*:", section, re.MULTILINE)
            hidden += [f"{node.name}: {name}" for name in inside if name in names and name not in own]
    return hidden


@clause("00.package.language")
@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_each_argument_has_a_separate_line_in_a_docstring(folder: str) -> None:
    found = {
        path.name: hidden_entries(path.read_text(encoding="utf-8")) for path in sources(folder) if path.suffix == ".py"
    }
    assert {name: hidden for name, hidden in found.items() if hidden} == {}


@clause("00.package.language")
def test_a_banned_word_is_found(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    lines = (
        '"""Mend the picture."""',
        "picture_count = 1  # Pictures",
        'name = f"{picture_count} cards"',
        "def test_a_picture_is_rejected(): ...",
        'caught_by = "example.py::test_a_picture_is_rejected"',
    )
    file.write_text("\n".join(lines) + "\n")
    assert [line.partition(": ")[0] for line in banned_words(file)] == [
        *("example.py:1", "example.py:1", "example.py:2", "example.py:3", "example.py:4", "example.py:5")
    ]
