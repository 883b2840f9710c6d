"""Chapter 00: the gate, `.ci/run`: a step without its requirements fails and is not skipped."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]
README = "# Title\n\n```bash\necho scripts/train_full.py\necho pytest ran\n```\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the gate, a README, and programs that do nothing."""
    folder = tmp_path / "checkout"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    (folder / "README.md").write_text(README)
    programs = folder / "programs"
    programs.mkdir()
    for name in ("bash", "awk", "sed", "mktemp", "rm", "dirname", "cat", "tail", "tar", "mkdir", "env"):
        (programs / name).symlink_to(shutil.which(name) or pytest.fail(f"there is no {name}"))
    return folder


def gate(checkout: Path, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": str(checkout / "programs"), "TMPDIR": str(checkout), "HOME": os.environ.get("HOME", "/")}
    words = [str(checkout / ".ci/run"), *steps]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=kept | environment)


@clause("00.gate.readme")
def test_the_gate_runs_the_second_command_of_the_readme(checkout: Path) -> None:
    done = gate(checkout, "test")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pytest ran" in done.stdout.splitlines()


@clause("00.gate.readme")
@pytest.mark.parametrize(
    "block",
    ["echo scripts/train_full.py", "echo scripts/train_full.py\n", "echo scripts/train_full.py\n# echo pytest", ""],
)
def test_the_gate_fails_without_a_second_command(checkout: Path, block: str) -> None:
    (checkout / "README.md").write_text(f"```bash\n{block}\n```\n")
    done = gate(checkout, "test")
    assert done.returncode == 1
    assert done.stderr == "error: README.md: line 2 of the first code block is no command\n"


@clause("00.gate.readme")
@pytest.mark.parametrize(("step", "needed"), [("train", "scripts/train_full.py"), ("test", "pytest")])
def test_the_gate_fails_if_a_command_of_the_readme_is_another_one(checkout: Path, step: str, needed: str) -> None:
    (checkout / "README.md").write_text("```bash\necho one\necho two\n```\n")
    done = gate(checkout, step)
    assert done.returncode == 1
    assert f"does not call {needed}" in done.stderr


@clause("00.gate.needs")
def test_the_gate_fails_if_the_images_ought_to_be_there_and_are_not(checkout: Path) -> None:
    done = gate(checkout, "images", OCEAN_DATA=str(checkout / "nowhere"))
    assert done.returncode == 1
    assert "nowhere: there must be a folder train and a folder test in it" in done.stderr


@clause("00.gate.needs")
def test_the_gate_needs_nothing_beside_the_checkout(checkout: Path) -> None:
    assert ".." not in (ROOT / ".ci/run").read_text().replace('cd "$(dirname "$0")/.."', "")
    (checkout / "programs/python").write_text('#!/bin/sh\necho "python $*"; [ "$1" = - ]\n')
    (checkout / "programs/python").chmod(0o755)
    done = gate(checkout, "real")
    assert (done.returncode, done.stderr) == (1, "")
    assert "OCEAN_DATA names no real images: 6,000 drawn images" in done.stdout
    trained = done.stdout.splitlines()[-1].split()
    assert trained[:5] == ["python", "scripts/train_full.py", "--dataset", "images", "--data-root"]
    assert trained[5].endswith("/drawn")


@clause("00.gate.needs")
def test_the_gate_unpacks_an_archive_of_images(checkout: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "tree" / part).mkdir(parents=True)
    (checkout / "programs/gzip").symlink_to(shutil.which("gzip") or pytest.fail("there is no gzip"))
    subprocess.run(["tar", "-czf", "images.tar.gz", "-C", "tree", "train", "test"], cwd=tmp_path, check=True)
    done = gate(checkout, "images", OCEAN_DATA=str(tmp_path / "images.tar.gz"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "unpacking" in done.stdout


@clause("00.gate.needs")
def test_the_gate_fails_without_a_browser_unless_the_variable_allows_it(checkout: Path) -> None:
    done = gate(checkout, "browser")
    assert done.returncode == 1
    assert "there is no browser" in done.stderr
    assert gate(checkout, "browser", OCEAN_WITHOUT="browser").returncode == 0
    (checkout / "programs/chromium").write_text("#!/bin/sh\n")
    (checkout / "programs/chromium").chmod(0o755)
    assert gate(checkout, "browser").returncode == 0


@clause("00.gate.steps")
def test_the_gate_runs_single_steps_and_refuses_others(checkout: Path) -> None:
    assert "test" in gate(checkout, "--list").stdout.split()
    done = gate(checkout, "test", "nonsense")
    assert (done.returncode, "there is no step nonsense" in done.stderr, done.stdout) == (1, True, "")


@clause("00.gate.older")
def test_the_gate_runs_the_everyday_tests_on_an_older_pytorch_without_torchvision(checkout: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "programs/python").symlink_to(sys.executable)
    python = checkout / "programs/python3"
    prints = '#!/bin/sh\\necho "$*"\\n[ "$2" != pip ] || cat "$6"\\n'  # its arguments, and the requirements of pip
    python.write_text(f"#!/bin/sh\nmkdir -p $3/bin\nprintf '{prints}' > $3/bin/python\nchmod +x $3/bin/python\n")
    python.chmod(0o755)
    (checkout / "programs/chmod").symlink_to(shutil.which("chmod") or pytest.fail("there is no chmod"))
    done = gate(checkout, "older")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "torch==2.13.0" in lines
    assert not [line for line in lines if line.startswith("torchvision")]
    assert {"numpy>=2", "pytest>=9"} <= {*lines}
    (tests,) = (line for line in lines if line.startswith("-m pytest -n 2"))
    assert "spec/" not in tests  # all of them
