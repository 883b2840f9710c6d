"""Reports for tests: made by hand, or by a small run of pytest."""

import base64
import io
import json
import re
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from spec.report import document
from spec.report.__main__ import main
from spec.support.clauses import CLAUSES

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(document.SCHEMA.read_text(encoding="utf-8"))

# A learner's file: right except for the stride, and with an error text that is HTML.
MINE = """
import torch
from torch.nn import functional

def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return functional.conv2d(input, weight, bias, 1, padding, dilation, groups)

def relu(input, inplace=False):
    raise ValueError("</script><img src=x onerror=alert(1)><b>no</b>")
"""
SPECIFICATION = document.specification()
FEW = [name for name in CLAUSES if name.startswith("08.conv2d.")]
FILES = ("08_convolution", "10_pooling", "11_activation")


def words(report: Path, *arguments: str, files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """The arguments of `pytest` for a run with a report."""
    chosen = [str(ROOT / f"spec/test_{name}.py") for name in files]
    options = (
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    )
    options += ("--hypothesis-profile", "faults", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return (*chosen, *options, "--report", str(report), *arguments)


def made(outcomes: dict[str, str], *, torch: str = "2.14.0", day: int = 1, digest: str = "0", **run: Any) -> Any:
    """A report of a run on 2026-01-<day>, by hand: the outcome of each test of chapter 08."""
    tests = [
        {"id": f"spec/test_08_convolution.py::{name}", "line": 1, "environment": 0, "implementation": "mine"}
        | {"clauses": ["08.conv2d.stride1"], "components": ["conv2d"], "level": None, "aspect": None}
        | {"outcome": outcome, "message": None, "reproduction": None, "diagnosis": None, "own_work": None}
        | {"measured": [], "duration": 0.25}
        for name, outcome in outcomes.items()
    ]  # fmt: skip
    environment = {"python": "3.11.7", "platform": "Linux", "versions": {"torch": torch}, "device": "cpu"}
    environment |= {"device_name": None, "processor": "x", "threads": 1, "workers": 0, "dtypes": ["float32"]}
    about = {"environment": 0, "arguments": "", "started": f"2026-01-{day:02}T00:00:00Z", "seconds": 1.0}
    about |= {"exit_status": 0, "complete": True, "interrupted": None, "collected": len(tests), "finished": len(tests)}
    implementation = {"id": "mine", "name": "mine.py", "version": None, "digest": f"sha256:{digest * 64}"}
    return {
        "format": 1,
        "specification": SPECIFICATION | {"clauses": {name: SPECIFICATION["clauses"][name] for name in FEW}},
        "environments": [environment | {"seed": None, "profile": "dev"}],
        "runs": [about | run],
        "implementations": [implementation | {"environment": 0}],
        "comparisons": {},
        "drawings": {},
        "tests": tests,
    }


def command(*arguments: object) -> tuple[int, str]:
    """`python -m spec.report …`: its exit status and output."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = main(list(map(str, arguments)))
    return status, out.getvalue()


def unpacked(html: str) -> Any:
    """The data of a page, as its script unpacks them."""
    (text,) = re.findall(r'id="data">([A-Za-z0-9+/=]*)</script>', html)
    return json.loads(zlib.decompress(base64.b64decode(text)))
