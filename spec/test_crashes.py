"""A crash of native code is a failure of one test: the failure shows the calls, and all other tests run."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spec.support import crashes
from spec.support.crashes import Known

ROOT = Path(__file__).parents[1]

CRASHES = """
import ctypes, os, torch
from torch.nn import functional

right = functional.conv2d

def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if stride == 2 or (isinstance(dilation, tuple) and dilation[-1] == 2):
        {crash}
    return right(input, weight, bias, stride, padding, dilation, groups)

functional.conv2d = conv2d
"""

CHOSEN = "stride_is_the_step or documented or sum_of_the_definition"


def judged(folder: Path, crash: str, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run some tests of chapter 08 on PyTorch with a `conv2d` that crashes, and read the report."""
    (folder / "crashing.py").write_text(CRASHES.format(crash=crash), encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    options = ("-p", "crashing", "-p", "no:cacheprovider", "--impl", "torch,reference", "-k", CHOSEN)
    command = [sys.executable, "-m", "pytest", "spec/test_08_convolution.py", *options, "--report", str(folder), *words]
    environment = os.environ | {"PYTHONPATH": path}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return result, json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crash", "says", "words"),
    [
        ("ctypes.string_at(0)", "by signal 11 (SIGSEGV)", ()),
        ("os._exit(0)", "with status 0", ()),
        ("os.abort()", "by signal 6 (SIGABRT)", ("-n", "2")),
    ],
    ids=["a segmentation fault", "an exit", "an abort in a worker"],
)
def test_a_crash_is_a_failure_of_one_test_with_the_call_that_crashed(
    tmp_path: Path, crash: str, says: str, words: tuple[str, ...]
) -> None:
    result, report = judged(tmp_path, crash, *words)
    assert result.returncode == 1, result.stdout + result.stderr
    outcomes = {test["id"].partition("::")[2]: test for test in report["tests"]}
    crashed = {name for name, test in outcomes.items() if test["outcome"] != "passed"}
    step = "test_stride_is_the_step[torch]"
    assert crashed == {step, "test_conv2d_equals_the_sum_of_the_definition[torch]"}
    assert len(outcomes) == 8
    assert outcomes[step]["outcome"] == "failed"
    assert f"the process that ran the test ended {says}" in outcomes[step]["message"]
    assert outcomes[step]["clauses"] == ["08.conv2d.parameters"]
    assert outcomes[step]["components"] == ["conv2d"]
    assert outcomes[step]["reproduction"].rstrip().endswith("print(conv2d(input, weight, stride=2))")
    # the examples of a property derive from the seed of the run, so that the crashed example is repeated
    drawn = outcomes["test_conv2d_equals_the_sum_of_the_definition[torch]"]
    assert f"the process that ran the test ended {says}" in drawn["message"]
    assert re.search(r"dilation=\(\d, 2\)", drawn["reproduction"].splitlines()[-1]), drawn["reproduction"]
    assert report["runs"][0]["complete"]
    assert report["runs"][0]["finished"] == report["runs"][0]["collected"]


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends(tmp_path: Path) -> None:
    """Ctrl-C within a test is not a crash."""
    result, report = judged(tmp_path, "raise KeyboardInterrupt")
    assert result.returncode == pytest.ExitCode.INTERRUPTED
    assert result.stdout.count("test session starts") == 1
    assert report["runs"][0]["interrupted"]


# Crashes that are known


def known(probe: Any) -> tuple[Known, Any]:
    home = SimpleNamespace(half=lambda x: x / 2)
    return Known("it ends the process for 0", "some_flag", probe, [(home, "half")], lambda x: x == 0), home


def test_a_known_crash_is_a_known_failure_of_the_test_that_makes_the_call() -> None:
    crash, home = known(os.abort)
    crashes.avoid([crash], lambda: {"some_flag"})
    assert home.half(3) == 1.5
    with pytest.raises(pytest.xfail.Exception, match="it ends the process for 0"):
        home.half(0)


@pytest.mark.parametrize(
    ("probe", "flags"), [(lambda: None, {"some_flag"}), (os.abort, {"other"})], ids=["repaired", "another processor"]
)
def test_calls_outside_the_crash_condition_are_judged(probe: Any, flags: set[str]) -> None:
    crash, home = known(probe)
    crashes.avoid([crash], lambda: flags)
    assert home.half(0) == 0


@pytest.mark.slow
def test_a_function_with_a_known_crash_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, crash = crashes.KNOWN
    torch._dynamo.utils.counters.clear()
    for home, name in crash.homes:
        monkeypatch.setattr(home, name, getattr(home, name))  # restored after the test
    crashes.avoid([replace(crash, flag="some_flag", probe=os.abort)], lambda: {"some_flag"})
    images, kernel = torch.rand(1, 1, 5, 5), torch.rand(2, 1, 3, 3)
    options: dict[str, Any]
    for options in ({}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": (1, 2)}):
        compiled: Any = torch.compile(lambda how=options: torch.conv2d(images, kernel, **how), backend="eager")
        torch.testing.assert_close(compiled(), torch.conv2d(images, kernel, **options))
    assert torch._dynamo.utils.counters["graph_break"] == {}


@pytest.mark.parametrize(
    ("shape", "dtype", "dilation", "crashing"),
    [((1, 2, 1, 1), torch.float16, (1, 2), True), ((1, 2, 3, 1), torch.float16, 2, True),
     ((1, 2, 3, 1), torch.float16, (2, 1), False), ((1, 2, 1, 1), torch.float32, 2, False),
     ((1, 2, 3, 3), torch.float16, 2, False)],
)  # fmt: skip
def test_the_known_crash_of_conv2d_is_recognized_by_dtype_width_and_dilation(
    shape: tuple[int, ...], dtype: torch.dtype, dilation: Any, crashing: bool
) -> None:
    *_, crash = crashes.KNOWN
    assert crash.applies(torch.ones(1, 2, 2, 1), torch.ones(shape, dtype=dtype), dilation=dilation) == crashing


@pytest.mark.parametrize(
    ("width", "kernel", "options", "wrong"),
    [(3, 3, {"stride": 2}, True), (4, 3, {"stride": (1, 2)}, True), (5, 3, {"stride": 2}, False),
     (3, 3, {}, False), (1, 1, {"stride": 2}, False), (1, 3, {"stride": 2, "padding": (0, 1)}, True),
     (3, 3, {"stride": 2, "padding": 1}, False), (5, 3, {"stride": 2, "dilation": 2}, True),
     (3, 3, {"stride": 2, "padding": "valid"}, True), (3, 4, {"stride": 2}, False)],
)  # fmt: skip
def test_the_known_fault_of_conv2d_is_recognized_by_an_output_of_one_column(
    width: int, kernel: int, options: dict[str, Any], wrong: bool
) -> None:
    fault, *_ = crashes.KNOWN
    images, weight = torch.ones(1, 1, 5, width).bfloat16(), torch.ones(1, 1, 2, kernel).bfloat16()
    assert fault.applies(images, weight, **options) == wrong
    assert not fault.applies(images.float(), weight.float(), **options)
    assert not fault.applies(images.to("meta"), weight.to("meta"), **options)


@pytest.mark.parametrize(
    ("height", "rows", "options", "crashing"),
    [(1, 2, {"padding": 1, "dilation": 2}, True), (1, 2, {"padding": 1}, False), (2, 2, {"padding": 1}, False),
     (2, 2, {"padding": (1, 0), "dilation": (3, 1)}, True), (2, 2, {"padding": 1, "dilation": 2}, False),
     (1, 1, {"padding": 1, "dilation": 2}, False), (1, 2, {"dilation": 2}, False),
     (1, 2, {"padding": 3, "dilation": 4, "stride": 2}, True),
     (2, 2, {"padding": 2, "dilation": 3, "stride": 2}, False),
     (1, 3, {"padding": "same", "dilation": 2}, False), (1, 4, {"padding": "same", "dilation": 2}, True),
     (3, 2, {"padding": "valid", "dilation": 2}, False)],
)  # fmt: skip
def test_the_known_crash_of_conv2d_is_recognized_by_a_window_without_a_row_of_the_image(
    height: int, rows: int, options: dict[str, Any], crashing: bool
) -> None:
    _, crash, _ = crashes.KNOWN
    images, weight = torch.ones(1, 1, height, 5).bfloat16(), torch.ones(1, 1, rows, 1).bfloat16()
    assert crash.applies(images, weight, **options) == crashing
    assert not crash.applies(images.float(), weight.float(), **options)
    assert not crash.applies(images.to("meta"), weight.to("meta"), **options)
