"""The faults that the specification found: every reproduction in `docs/found.md` prints the documented output."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from spec.support.clauses import clause
from spec.support.crashes import flags

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/found.md"
CHINESE = DOCUMENT.with_suffix(".zh-CN.md")
KNOWN = sorted((ROOT / "spec/known_failures").glob("*.toml"))
MEASURED = "2.14"
"""The PyTorch release with which the document was measured."""
ENDS_ANYHOW = (10, 18)
"""The sections with reproductions that crash some processors."""
READS_MEMORY = 18
"""The section with a reproduction that prints numbers of other data on processors with AMX."""
REPRODUCTION = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def sections(path: Path) -> dict[int, str]:
    """The text of each numbered section of the document."""
    parts = re.split(r"^## (\d+)\. ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


CASES = [
    pytest.param(number, code, printed, id=f"{number}-{part}")
    for number, text in sections(DOCUMENT).items()
    for part, (code, printed) in enumerate(REPRODUCTION.findall(text), 1)
]


@clause("00.found.reproduced")
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "printed"), CASES)
def test_reproductions_print_the_documented_output(number: int, code: str, printed: str) -> None:
    if not torch.__version__.startswith(MEASURED):
        pytest.skip(f"the document was measured with PyTorch {MEASURED}, here is {torch.__version__}")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    if number in ENDS_ANYHOW and done.returncode < 0:
        return  # the crash itself
    if number == READS_MEMORY and "amx_bf16" in flags():
        return
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


@clause("00.found.reproduced")
def test_every_section_has_a_reproduction_an_authority_an_upstream_and_a_test() -> None:
    for number, text in sections(DOCUMENT).items():
        assert REPRODUCTION.search(text), number
        for part in ("Authority", "Upstream", "Tests?"):
            assert re.search(rf"^- {part}: ", text, re.MULTILINE), (number, part)
        for file in re.findall(r"`(test_\w+\.py)", text):
            assert (ROOT / "spec" / file).is_file(), file
        for file, test in re.findall(r"`(test_\w+\.py)::(?:\w+::)?(test_\w+)`", text):
            assert f"def {test}(" in (ROOT / "spec" / file).read_text(encoding="utf-8"), test


@clause("00.found.reproduced")
def test_the_chinese_document_has_the_same_reproductions() -> None:
    english, chinese = (REPRODUCTION.findall(path.read_text(encoding="utf-8")) for path in (DOCUMENT, CHINESE))
    assert chinese == english
    assert list(sections(CHINESE)) == list(sections(DOCUMENT)) == list(range(1, len(sections(DOCUMENT)) + 1))


@clause("00.found.known_failures")
def test_every_known_failure_names_a_section_or_a_deviation() -> None:
    reasons: list[str] = []
    for path in KNOWN:
        for devices in tomllib.loads(path.read_text(encoding="utf-8")).values():
            for tests in devices.values():
                reasons += tests.values()
    assert reasons
    numbers = set(sections(DOCUMENT))
    for reason in reasons:
        found = re.search(r"docs/found\.md, (\d+)$", reason)
        assert reason.startswith("deviation: ") or (found and int(found[1]) in numbers), reason


@clause("00.found.known_failures")
@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_gives_the_number_of_faults(name: str) -> None:
    assert re.findall(r"(\d+)[^\n\d]*\]\(docs/found", (ROOT / name).read_text(encoding="utf-8")) == [
        str(len(sections(DOCUMENT)))
    ]
