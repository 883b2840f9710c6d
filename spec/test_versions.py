"""PyTorch's releases: the excused differences of older releases are detected by trying, and nothing else is excused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spec.support import versions
from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]


@clause("00.versions.older")
@pytest.mark.slow
def test_every_difference_names_tests_of_pytorch_only() -> None:
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
        # a test without an implementation tests PyTorch itself
        assert all(re.search(r"\[torch[-\]]", name) or "[" not in name for name in named), named


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
