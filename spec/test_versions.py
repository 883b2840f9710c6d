"""PyTorch's releases: the excused differences of older releases are detected by trying, and nothing else is excused."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from spec.support import versions, without_torchvision
from spec.support.clauses import CLAUSES, RELEASES, clause

ROOT = Path(__file__).parents[1]


@clause("00.versions.older")
@pytest.mark.slow
def test_every_difference_names_tests_of_pytorch_only() -> None:
    import torchvision  # noqa: F401  -- without it some of the files are skipped, and so is this test

    files = sorted({re.sub(r"\\", "", d.tests).split("::")[0] for d in versions.DIFFERENCES if "(" not in d.tests[:24]})
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "spec/test_12_attention_encoder.py",
        "--collect-only",
        "-q",
        "-n",
        "0",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ids = [line for line in found.stdout.splitlines() if "::" in line]
    for difference in versions.DIFFERENCES:
        named = [name for name in ids if re.match(difference.tests, name)]
        assert named, f"{difference.tests} names no test: it is gone, or has another name now"
        # a test without an implementation tests PyTorch itself, and one of agreement compares with it
        of_pytorch = r"\[torch[-\]]|^[^\[]*$|^spec/test_agreement"
        assert all(re.search(of_pytorch, name) for name in named), named


@clause("00.versions.older")
def test_a_release_with_the_behaviour_has_no_exceptions() -> None:
    for difference in versions.missing():
        assert not difference.newer()
    if re.match(r"2\.1[4-9]|2\.[2-9]\d|[3-9]", torch.__version__):
        assert [difference.reason for difference in versions.missing() if not difference.of_processor] == []


@clause("00.versions.older")
def test_a_batch_norm_without_bias_can_be_made_in_every_release() -> None:
    layer = versions.batch_norm_2d(3, bias=False)
    assert isinstance(layer, nn.BatchNorm2d)
    assert list(layer.state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]
    assert "bias" in versions.batch_norm_2d(3).state_dict()
    assert layer(torch.ones(2, 3, 1, 1)).shape == (2, 3, 1, 1)


@clause("00.versions.older")
def test_text_that_an_older_release_does_not_print_is_not_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = "LayerNorm((3,), eps=1e-05, elementwise_affine=True, bias=True)"
    batch = "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=False, bias=False, track_running_stats=True)"
    monkeypatch.setattr(versions, "batch_norm_has_bias", lambda: False)
    assert versions.printed_here(batch) == batch.replace(", bias=False", "")
    monkeypatch.setattr(nn.LayerNorm, "extra_repr", lambda self: "(1,)")
    assert versions.printed_here(f"({norm})") == f"({norm})".replace(", bias=True", "")
    assert versions.printed_here("Linear(in_features=1, out_features=1, bias=True)").endswith("bias=True)")


COLLECT = """
import re, sys
import pytest

class Listing:
    def pytest_collection_finish(self, session):
        for item in session.items:
            print("test", item.nodeid, *(name for mark in item.iter_markers("clause") for name in mark.args), sep="\\t")

sys.exit(pytest.main(["--collect-only", "-q", "-n", "0", *sys.argv[1:]], plugins=[Listing()]))
"""


@clause("00.versions.recorded")
@pytest.mark.slow
def test_the_recorded_releases_of_a_clause_agree_with_the_installed_release() -> None:
    """The clauses with a test that the installed release fails are those that the record says, and no others."""
    import torchvision  # noqa: F401  -- without it some of the files are skipped, and so is this test

    files = sorted({f"spec/{name}.py" for name in FILES})
    found = subprocess.run(
        [sys.executable, "-c", COLLECT, *files], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tests = [line.split("\t")[1:] for line in found.stdout.splitlines() if line.startswith("test\t")]
    passes: dict[str, bool] = {}
    for name, *clauses in tests:
        for difference in versions.DIFFERENCES:
            if not difference.of_processor and re.match(difference.tests, name):
                passes |= {each: passes.get(each, True) and difference.newer() for each in clauses}
        for pattern, is_free in versions.WITHOUT_FAULT:
            if re.match(pattern, name):
                passes |= {each: passes.get(each, True) and is_free() for each in clauses}
    known = tomllib.loads((ROOT / "spec/known_failures/torch.toml").read_text(encoding="utf-8"))["torch"]["cpu"]
    free = [pattern for pattern, _ in versions.WITHOUT_FAULT]
    for name, *clauses in tests:  # a clause that every release fails for another reason does not depend on the release
        if name in known and not any(re.match(pattern, name) for pattern in free):
            passes = {each: passed for each, passed in passes.items() if each not in clauses}
    recorded = {name: entry for name, entry in CLAUSES.items() if entry.span}
    assert {*recorded} <= {*passes}
    release = torch.__version__.partition("+")[0]
    if release in RELEASES:
        failing = {name for name, passed in passes.items() if not passed}
        assert failing == {name for name, entry in recorded.items() if not entry.holds_for(release)}


FILES = {found for d in versions.DIFFERENCES for found in re.findall(r"test_\d\d_\w+(?=\\.py)", d.tests)} | {
    "test_12_normalization", "test_12_attention_encoder", "test_13_func_and_export"
}  # fmt: skip
"""The files with tests that some release fails."""


@clause("00.versions.recorded")
def test_a_difference_is_recorded_for_some_releases() -> None:
    entry = CLAUSES["12.batch_norm.evaluation"]
    assert entry.span == "in 2.6.0, 2.9.1, 2.13.0, 2.14.1"
    assert [entry.holds_for(release) for release in RELEASES] == [True, True, False, True, True]
    since = CLAUSES["12.batch_norm.rejects"]
    assert since.span == "since 2.11.0"
    assert [since.holds_for(release) for release in RELEASES] == [False, False, True, True, True]
    assert {CLAUSES["08.conv2d.stride1"].span} == {""}
    assert all(CLAUSES["08.conv2d.stride1"].holds_for(release) for release in RELEASES)


BLOCKED = """
import sys
import pytest
from spec.support import without_torchvision as plugin

class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
plugin.IS_MISSING = {}
options = ["-q", "-rs", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "--import-mode=importlib"]
sys.exit(pytest.main(options, plugins=[plugin]))
"""


@clause("00.versions.torchvision")
@pytest.mark.slow
def test_without_torchvision_dependent_tests_are_skipped_and_the_rest_runs(tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text("import torchvision\n\ndef test_of_a_file():\n    pass\n")
    (tmp_path / "test_mixed.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef needs_it():\n    import torchvision.models\n\n"
        "def test_inside():\n    import torchvision\n\ndef test_fixture(needs_it):\n    pass\n\n"
        "def test_other():\n    pass\n\ndef test_fault():\n    import torchvision_extra\n"
    )
    counts = []
    for missing in (True, False):
        command = [sys.executable, "-c", BLOCKED.format(missing)]
        found = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        counts.append(found.stdout.splitlines()[-1])
        assert (without_torchvision.REASON in found.stdout) == missing, found.stdout
    assert counts[0].startswith("1 failed, 1 passed, 3 skipped"), counts
    assert counts[1].startswith("1 error"), counts
