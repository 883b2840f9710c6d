"""Chapter 00: the check of documents: extraction, isolation, verdicts and report."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reference.text import width
from spec.documents import causes, compare, report
from spec.documents.check import Document, Options, Result, check, keeper, write_fixed
from spec.documents.extract import Listing, read
from spec.documents.names import modules_of, names_of, sessions
from spec.support import document_examples as examples
from spec.support.clauses import CLAUSES, clause
from spec.support.listings import LISTINGS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/check_document.py"


def listings(folder: Path, text: str, name: str = "document.md") -> list[Listing]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read(path)


def checked(folder: Path, text: str, name: str = "document.md", **options: Any) -> Document:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    with keeper() as processes:
        chosen: dict[str, Any] = {"seconds": 3.0} | options
        return check(path, Options(**chosen), processes)


# Extraction


KINDS = {
    "a program": ("```python\nimport torch\n```", "python"),
    "a program without a language": ("```\nimport torch\nx = torch.ones(2)\nprint(x)\n```", "python"),
    "a program as an indented block": ("    import torch\n    x = torch.ones(2)", "python"),
    "the fence of a book": ("```{.python .input  n=2}\nx = 1\n```", "python"),
    "a prompt": ("```pycon\n>>> 1 + 1\n2\n```", "python"),
    "a program with a line for the shell": ("```python\n!pip install torch\nimport torch\n```", "python"),
    "a program with a fault": ("```python\ndef f(x)\n    return x\n```", "python"),
    "Python 2": ('```python\nprint "a"\n```', "python"),
    "a listing in a list": ("* one\n\n  ```python\n  x = 1\n  ```", "python"),
    "a command": ("```bash\npip install torch\n```", "shell"),
    "a command in a fence of Python": ("```python\npip install torch\n```", "shell"),
    "a cell for the shell": ("```python\n!nvidia-smi\n```", "shell"),
    "an output": ("```\ntensor([1., 2.])\n```", "output"),
    "an output in a fence of Python": ("```python\ntorch.Size([2, 3])\n```", "output"),
    "a printed network": (
        "```python\nNet(\n  (fc): Linear(in_features=2, out_features=1, bias=True)\n)\n```",
        "output",
    ),
    "an error message": ("```python\nRuntimeError: mat1 and mat2 shapes cannot be multiplied\n```", "output"),
    "a traceback": ('```\nTraceback (most recent call last):\n  File "a.py", line 1\n```', "output"),
    "a table of losses": ("```\nEpoch 1, loss 0.5\nEpoch 2, loss 0.4\n```", "output"),
    "a tree of files": ("```\ndata\n├── train\n└── test\n```", "output"),
    "another framework": ("```{.python .input}\n#@tab mxnet\nfrom mxnet import np\n```", "other"),
    "another language": ("```cpp\nint main() {}\n```", "other"),
    "a configuration": ("```yaml\na: 1\n```", "other"),
    "pseudo-code": ("```python\nmodel = <your model here>\n```", "fragment"),
    "a signature": ("```python\ntorch.cat(tensors, dim=0, out=None) → Tensor\n```", "fragment"),
    "a body that is left out": ("```python\ndef f(x):\n    # your code here\n```", "fragment"),
}


@clause("00.check.extraction")
@pytest.mark.parametrize(("text", "kind"), KINDS.values(), ids=KINDS)
def test_listing_verdict_is(text: str, kind: str, tmp_path: Path) -> None:
    (found,) = listings(tmp_path, f"# Title\n\n{text}\n")
    assert found.kind == kind
    assert found.line == (3 if "a list" not in text and "* one" not in text else 5)


@clause("00.check.extraction")
def test_lines_of_listings_are_lines_of_the_document(tmp_path: Path) -> None:
    text = (
        "text\n\n> quoted\n>\n> ```python\n> x = 1\n> y = 2\n> ```\n\n    z = 3\n\n```python\n%time a = 1\nb = 2\n```\n"
    )
    found = listings(tmp_path, text)
    lines = text.splitlines()
    for listing, first in zip(found, ("x = 1", "z = 3", "%time a = 1"), strict=True):
        assert first in lines[listing.first - 1]
        assert listing.place(1) == listing.first
    assert found[2].code.splitlines() == ["pass", "b = 2"]


@clause("00.check.extraction")
def test_listing_file_names_come_from_heading_sentence_or_comment(tmp_path: Path) -> None:
    text = "## 网络（model.py）\n\n```python\nx = 1\n```\n\nIn `data/sets.py`:\n\n```python\nx = 2\n```\n\n"
    text += "```python\n# train.py\nx = 3\n```\n"
    assert [each.file for each in listings(tmp_path, text)] == ["model.py", "data/sets.py", "train.py"]


# Continuation


@clause("00.check.continuation")
def test_a_listing_continues_earlier_listings_with_the_same_names(tmp_path: Path) -> None:
    found = listings(tmp_path, examples.CONTINUED)
    groups = sessions(found, modules_of(found))
    lines = [[found[number].line for number in group] for group in groups]
    place = {first_line(each): each.line for each in found}
    together = next(group for group in lines if found[0].line in group)
    continued = (
        "x = torch.arange(6.).reshape(2, 3)",
        "x.sum()",
        "net = nn.Linear(3, 1)",
        "print(y.shape)  # torch.Size([1, 2])",
    )
    assert {place[text] for text in continued} <= set(together)
    complete = next(each.line for each in found if "torch.zeros(1)" in each.code)
    assert complete not in together
    assert [place["while True:"]] in lines


def first_line(listing: Listing) -> str:
    return listing.printed.strip().splitlines()[0]


NEEDS = {
    "import torch\nx = torch.ones(2)": {},
    "x = torch.ones(2)": {"torch": 1},
    "def f():\n    return y\n": {"y": 0},
    "y = 1\ndef f():\n    return y": {},
    "x = x + 1": {"x": 1},
    "x += 1": {"x": 1},
    "z = [a for a in b]": {"b": 1},
    "class A(nn.Module):\n    size = 3\n    def f(self):\n        return self.g(size2)": {"nn": 1, "size2": 0},
    "for i in range(3):\n    print(i, j)": {"j": 2},
    "from torch.nn import *\nl = Linear(1, 2)": {},
    "with open('a') as f:\n    g = f.read()": {},
    "try:\n    pass\nexcept E as e:\n    print(e)": {"E": 3},
    "lambda a: a + b": {"b": 0},
    "def f(a=c): ...": {"c": 1},
}


@clause("00.check.continuation")
@pytest.mark.parametrize("code", NEEDS)
def test_missing_dependencies_of_a_program(code: str) -> None:
    assert names_of(code).needs == NEEDS[code]


@clause("00.check.continuation")
def test_a_local_module_is_the_listing_with_that_file_name(tmp_path: Path) -> None:
    text = (
        "### model.py\n\n```python\nclass Net: ...\n```\n\n```python\nfrom model import *\nNet()\n```\n\n"
        "```python\ndef helper(): ...\n```\n\n```python\nfrom utils_of_mine import helper\nhelper()\n```\n"
    )
    found = listings(tmp_path, text)
    assert modules_of(found) == {"model": 0, "utils_of_mine": 2}
    assert sessions(found, modules_of(found)) == [[0], [1], [2], [3]]


# Outputs


SAME = {
    "rounded": ("tensor(0.6667)", "tensor(0.66667)"),
    "spaces": ("tensor([[1, 2],\n        [3, 4]])", "tensor([[1,2],[3,4]])"),
    "grad_fn": ("tensor(4., grad_fn=<MeanBackward0>)", "tensor(4., grad_fn=<MeanBackward1>)"),
    "NumPy 2": ("0.5", "np.float64(0.5)"),
    "left out": ("tensor([1, 2, ...])", "tensor([1, 2, 3, 4])"),
    "words": ("the shape is 3", "shape: 4"),
    "no numbers": ("Net()", "Other()"),
    "scientific": ("tensor([1.0000e-03])", "tensor([0.0010])"),
}
OTHER = {
    "number": ("tensor(0.6667)", "tensor(0.5)"),
    "shape": ("torch.Size([2, 3])", "torch.Size([3, 2])"),
    "length": ("torch.Size([2, 3])", "torch.Size([6])"),
    "truth": ("True", "False"),
    "row": ("tensor([1, 2])", "tensor([1, 2, 3])"),
}


@clause("00.check.outputs")
@pytest.mark.parametrize(("said", "printed"), SAME.values(), ids=SAME)
def test_outputs_are_equal_up_to(said: str, printed: str) -> None:
    assert not compare.differs(said, printed)


@clause("00.check.outputs")
@pytest.mark.parametrize(("said", "printed"), OTHER.values(), ids=OTHER)
def test_outputs_differ_in(said: str, printed: str) -> None:
    assert compare.differs(said, printed)


# Whole documents


@clause("00.check.verdicts", "00.check.continuation", "00.check.outputs")
@pytest.mark.slow
def test_continued_listings_get_verdicts(tmp_path: Path) -> None:
    found = checked(tmp_path, examples.CONTINUED).results
    verdicts = {first_line(result.listing): result for result in found}
    wrong = [result.listing.printed for result in found if result.verdict in ("fails", "differs")]
    assert wrong == ["print(y.shape)  # torch.Size([1, 2])"]
    assert verdicts["print(y.shape)  # torch.Size([1, 2])"].differences[0]["printed"] == "torch.Size([2, 1])"
    for first in ("torch.nn.Linear(in_features, out_features, bias=True)", "for batch in my_batches:"):
        assert verdicts[first].verdict == "fragment"
    assert verdicts["while True:"].cuts[0]["kind"] == "while"
    assert verdicts["torch.manual_seed(0)"].verdict == "runs"


@clause("00.check.verdicts", "00.check.outputs")
@pytest.mark.slow
def test_a_notebook_gets_verdicts(tmp_path: Path) -> None:
    found = checked(tmp_path, examples.notebook(), "book.ipynb").results
    verdicts = [result.verdict for result in found]
    assert verdicts == [*("runs", "runs", "differs", "runs", "runs", "not run", "runs", "runs", "fragment", "fails")]
    assert found[2].differences == [{"line": 1, "said": "tensor(7)", "printed": "tensor(6)"}]
    assert found[4].announced
    assert found[9].listing.cell == 11
    assert found[9].cause is not None


@clause("00.check.isolation")
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux binds foreign code that is not Python")
def test_a_hostile_document_cannot_write_outside_the_sandbox(tmp_path: Path) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    target = folder / "file"
    target.write_text("unchanged")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.1)
        values = {"TARGET": target, "FOLDER": folder, "PORT": server.getsockname()[1], "PARENT": os.getpid()}
        text = examples.HOSTILE
        for name, value in values.items():
            text = text.replace(name, str(value))
        document = checked(tmp_path, text, seconds=1.0, memory=3 << 30)
        with pytest.raises(TimeoutError):
            server.accept()
    assert target.read_text() == "unchanged"
    verdicts = [(result.verdict, result.reason[0]) for result in document.results]
    assert verdicts[0] == ("needs", "files")
    assert verdicts[1] == ("needs", "files")
    assert verdicts[2] == ("needs", "processes")
    assert verdicts[4] == ("needs", "network")
    assert verdicts[5] == ("needs", "signals")
    assert verdicts[6] == ("needs", "programs")
    assert verdicts[8] == ("needs", "files")
    assert verdicts[10] == ("needs", "memory")
    assert verdicts[11] == ("needs", "ended")
    assert verdicts[-1][0] == "runs"
    assert _strays(document.path) == []


def _strays(path: Path) -> list[str]:
    """Processes that listings left behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except OSError:
                continue
            if "spec.documents.keeper" in words and parent == os.getpid():
                found.append(entry.name)
    return found


# The tutorial


ALLOWED = {
    "holds": ("runs", "warns", "not run"),
    "refuted": ("fails", "fragment", "not run", "runs"),
    "imprecise": ("runs", "warns"),
    "version-dependent": ("fails",),
}
"""The allowed results for a listing by its recorded verdict; a refuted listing that runs must fail alone."""
ERRORS = {
    37: ("SyntaxError", 62), 146: ("NameError", 147), 738: ("RuntimeError", 760), 847: ("TypeError", 854),
    1301: ("UnpicklingError", 1310), 1318: ("UnpicklingError", 1328), 1368: ("FileNotFoundError", 1369),
    1384: ("ModuleNotFoundError", 1385), 1726: ("IndentationError", 1727), 2060: ("FileNotFoundError", 2102),
}  # fmt: skip
"""By the line of a listing, the recorded error and the tutorial's line at which it is raised."""
ALONE = {1339: 1342, 1368: 1369, 1388: 1389, 1732: 1733, 1739: 1740, 2158: 2159, 2163: 2164, 146: 147}
"""By the line of a listing that lacks an import, the line at which it fails alone with a NameError."""
NO_PROGRAMS = {100: "shell", 535: "output", 1193: "output", 1374: "output"}


def recorded_line(first: int, line: int) -> int:
    """The tutorial's line number in the comment at the end of a line of a rebuilt listing; 0 without a comment."""
    code = LISTINGS[first][1].splitlines()
    shown = examples.tutorial().splitlines()[first : LISTINGS[first][0]]
    text = shown[line - first - 1]
    for each in code:
        if each.partition("  # ")[0].strip() == text.strip() and each.rpartition("# ")[2].isdigit():
            return int(each.rpartition("# ")[2])
    return 0


@clause("00.check.tutorial")
@pytest.mark.slow
def test_the_tutorial_check_equals_the_recorded_one(tmp_path: Path) -> None:
    found = {result.listing.line: result for result in checked(tmp_path, examples.tutorial(), seconds=1.0).results}
    assert set(found) == set(LISTINGS)
    for first, result in found.items():
        (verdict,) = (each.verdict for each in CLAUSES.values() if each.id.endswith(f".listing.at_{first}"))
        assert result.verdict in ALLOWED[verdict], (first, verdict, result.verdict, result.error)
        if first in NO_PROGRAMS:
            assert (result.verdict, result.listing.kind) == ("not run", NO_PROGRAMS[first])
        if first in ERRORS:
            assert result.error is not None, first
            kind = result.error["type"].rpartition(".")[2]
            assert (kind, recorded_line(first, result.error["line"])) == ERRORS[first]
        else:
            assert result.error is None, (first, result.error)
        if first in ALONE:
            assert result.alone is not None
            assert recorded_line(first, result.alone[1]) == ALONE[first]
        if verdict == "refuted" and result.verdict == "runs":
            assert first in ALONE
    assert found[738].announced
    assert found[1744].stand_ins == ["data", "gpu"]
    named = {first: cause.id if (cause := found[first].cause) else None for first in ERRORS}
    assert named == {
        37: "missing_colon", 146: None, 738: "matrix_shapes", 847: "nn_modules", 1301: "weights_only",
        1318: "state_dict_not_called", 1368: "file_name_differs", 1384: None, 1726: "indentation",
        2060: "file_name_differs",
    }  # fmt: skip


# The report


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, "subprocess.CompletedProcess[str]"]:
    """A document with a fault that has a fix, checked by the script."""
    folder = tmp_path_factory.mktemp("faulty")
    path = folder / "faulty.md"
    path.write_text(
        "# 标题\n\n* item\n\n  ```python\n  import numpy as np\n  x = np.float(1)\n  ```\n\n"
        "```python\nprint 'a'\n```\n\n```python\nimport torch\nprint(torch.ones(2))  # tensor([1., 1.])\n```\n",
        encoding="utf-8",
    )
    words = [sys.executable, str(SCRIPT), str(path), "--lang", "zh", "--seconds", "3"]
    words += ["--json", str(folder / "r.json"), "--html", str(folder / "r.html"), "--fix", str(folder / "fixed")]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    return folder, path, done


@clause("00.check.report")
@pytest.mark.slow
def test_the_script_explains_in_chinese_and_exits_with_1(faulty: tuple[Path, Path, Any]) -> None:
    _, _, done = faulty
    assert done.returncode == 1, done.stderr
    assert "第 5 行: 失败" in done.stdout
    assert "NumPy 已删除该名称" in done.stdout
    assert "修正之后: 可运行" in done.stdout
    assert "共 3 段代码: 可运行 1, 失败 2" in done.stdout


@clause("00.check.report")
@pytest.mark.slow
def test_document_check_json_follows_the_schema(faulty: tuple[Path, Path, Any]) -> None:
    folder, _, _ = faulty
    schema = json.loads(report.SCHEMA.read_text(encoding="utf-8"))
    result = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(result)
    (document,) = result["documents"]
    assert [each["verdict"] for each in document["listings"]] == ["fails", "fails", "runs"]
    assert document["wrong"] == 2
    assert document["listings"][0]["cause"]["id"] == "numpy_names"


@clause("00.check.report")
@pytest.mark.slow
def test_the_page_loads_nothing(faulty: tuple[Path, Path, Any]) -> None:
    folder, _, _ = faulty
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?!data:)", page)
    assert "NumPy has removed this name" in page
    assert "NumPy 已删除该名称" in page


@clause("00.check.fixes")
@pytest.mark.slow
def test_the_copy_differs_in_the_fixed_lines_only(faulty: tuple[Path, Path, Any]) -> None:
    folder, path, _ = faulty
    before = path.read_text(encoding="utf-8").splitlines()
    after = (folder / "fixed" / "faulty.md").read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("  x = np.float(1)", "  x = float(1)"), ("print 'a'", "print('a')")]


@clause("00.check.report")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.md"], "there is no such file or folder"),
        ([str(ROOT / "README.md"), "--seconds", "0"], "--seconds 0.0: must be positive"),
        ([str(ROOT / "README.md"), "--memory", "0"], "--memory 0.0: must be at least 1"),
    ],
    ids=["no file", "no time", "no memory"],
)
def test_an_error_in_the_arguments_is_one_line(words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@clause("00.check.report")
@pytest.mark.parametrize(
    ("kind", "value", "english", "chinese"),
    [
        ("package", "timm", "python -m pip install timm", "python -m pip install timm"),
        ("file", "net.pt", "no listing of the document writes the file net.pt: add one", "请补上写出它的代码"),
        ("network", "", "run the listing outside of the check", "请在检查之外运行"),
        ("memory", "", "--memory GIB", "--memory GIB"),
        ("time", "", "--seconds X", "--seconds X"),
        ("arguments", "sys.argv", "save the listing as a file and run it", "请把代码存为文件"),
        ("images", "", "put them at the path", "请放到该路径"),
        ("input", "", "run the listing yourself", "请自行运行"),
        (
            "files",
            "/etc/passwd",
            "which the check refuses: /etc/passwd",
            "检查不允许使用工作文件夹之外的文件：/etc/passwd",
        ),
        ("programs", "ls", "which the check does not start: ls", "检查不启动其他程序：ls"),
    ],
)
def test_a_missing_requirement_is_named_with_the_way_to_meet_it(
    kind: str, value: str, english: str, chinese: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.md"
    path.write_text("```python\nx = 1\n```\n", encoding="utf-8")
    result = Result(read(path)[0])
    result.verdict, result.reason = "needs", (kind, value)
    for language, words, verdict in (("en", english, "missing requirement"), ("zh", chinese, "缺少运行条件")):
        lines = list(report.lines(Document(path, [result]), language))
        assert verdict in lines[1]
        joined = "".join(line.strip() + " " * (language == "en") for line in lines[2:])
        assert words in joined
        assert max(map(width, lines[2:])) <= 80


@clause("00.check.fixes")
def test_a_notebook_copy_contains_the_fixes(tmp_path: Path) -> None:
    path = tmp_path / "book.ipynb"
    path.write_text(examples.notebook(), encoding="utf-8")
    document = Document(path, [])
    for listing in read(path):
        document.results.append(Result(listing))
    document.results[-1].fixed = {"code": "z = next(y.float())", "verdict": "runs", "error": None}
    write_fixed(document, tmp_path / "copy.ipynb")
    cells = read(tmp_path / "copy.ipynb")
    assert cells[-1].code == "z = next(y.float())"
    assert [each.printed for each in cells[:-1]] == [each.printed for each in read(path)[:-1]]


@clause("00.check.report")
def test_a_document_that_did_not_run_gets_a_report(tmp_path: Path) -> None:
    """The report needs no PyTorch: its texts, the page and the data come from the results alone."""
    path = tmp_path / "document.md"
    path.write_text(examples.CONTINUED, encoding="utf-8")
    document = Document(path, [Result(listing) for listing in read(path)])
    first = document.results[0]
    first.verdict, first.cause = "fails", causes.table()["numpy_names"]
    first.error = {"type": "AttributeError", "message": "\x07<b>", "line": 6, "cell": 0}
    for language, word in (("en", "NumPy has removed"), ("zh", "NumPy 已删除")):
        text = "\n".join(report.lines(document, language))
        assert word in text
        assert "\x07" not in text
    report.write_json([document], tmp_path / "r.json")
    report.write_page([document], tmp_path / "r.html", "en")
    schema = json.loads(report.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads((tmp_path / "r.json").read_text(encoding="utf-8")))
    assert "&lt;b&gt;" in (tmp_path / "r.html").read_text(encoding="utf-8")


@clause("00.check.report")
@pytest.mark.parametrize(
    ("values", "language"),
    [({"LANG": "zh_CN.UTF-8"}, "zh"), ({"LANG": "en_US.UTF-8"}, "en"), ({"LC_ALL": "C", "LANG": "zh_CN"}, "en")],
    ids=["Chinese", "English", "LC_ALL first"],
)
def test_the_language_is_that_of_the_environment(
    values: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert report.chosen_language(None) == language
    assert report.chosen_language("zh") == "zh"
