"""Chapter 00: the check of a machine, `scripts/doctor.py`, and the settings for editors on a remote machine."""

import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reference import doctor
from reference.doctor import Finding, examine
from spec.support import versions
from spec.support.clauses import clause
from spec.support.command import run

ROOT = Path(__file__).parents[1]


def found(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


@clause("00.doctor.says")
def test_doctor_gives_a_remedy_for_each_problem(tmp_path: Path) -> None:
    findings = found(iter(examine(tmp_path)))
    looked_at = {
        "Python",
        "torch",
        "tensorboard",
        "threads",
        "memory",
        "instructions",
        "build",
        "TensorBoard",
        "disk",
        "CIFAR-10",
    }
    assert looked_at <= {*findings}
    assert {*findings} & {"gpu", "cuda:0", "mps"}
    assert findings["torch"].found == torch.__version__
    assert findings["instructions"].found.startswith(torch.backends.cpu.get_cpu_capability())
    assert f"of {os.cpu_count()} cores" in findings["threads"].found
    for finding in findings.values():
        assert (finding.remedy == "") == (finding.state == "good"), finding


@clause("00.doctor.versions")
def test_doctor_requires_the_versions_of_the_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", entry).groups() for entry in project["dependencies"])  # pyright: ignore[reportArgumentType, reportCallIssue, reportOptionalMemberAccess]
    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    remedies = [finding.remedy for finding in doctor.software() if finding.what != "Python"]
    assert remedies == [f'python -m pip install "{name}>={least}"' for name, least in asked.items()]
    script = (ROOT / "scripts/doctor.py").read_text(encoding="utf-8")
    oldest = project["requires-python"].removeprefix(">=")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in script
    assert f"install Python {oldest} or newer" in script


def missing(name: str) -> str:
    """A replacement of `importlib.metadata.version` on a machine without packages."""
    raise PackageNotFoundError(name)


@clause("00.doctor.versions")
@pytest.mark.parametrize(
    ("version", "state", "remedy"),
    [
        (None, "wrong", 'python -m pip install "torch>=2.11"'),
        ("2.2.1+cu121", "wrong", 'python -m pip install --upgrade "torch>=2.11"'),
        ("2.9.0", "wrong", 'python -m pip install --upgrade "torch>=2.11"'),
        ("2.14.1+cu130", "good", ""),
        ("3.0.0a0", "good", ""),
    ],
)
def test_doctor_classifies_package_versions(
    version: str | None, state: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: ["torch>=2.11"])
    monkeypatch.setattr(doctor.importlib.metadata, "version", missing if version is None else lambda _: version)
    monkeypatch.setattr(torch, "__version__", version)
    finding = found(doctor.software())["torch"]
    assert (finding.state, finding.remedy) == (state, remedy)


def gpus(
    monkeypatch: pytest.MonkeyPatch,
    free: float = 14.5,
    *,
    built: str = "sm_75 sm_80",
    driver: str = "550.54.15",
    cuda: str = "12.8",
) -> None:
    """Two GPUs, each with `free` GiB free; the architectures and the CUDA that PyTorch was built for; the driver."""
    about = SimpleNamespace(name="Tesla T4", major=7, minor=5)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda _: about,
        "get_arch_list": built.split,
        "mem_get_info": lambda _: (int(free * 2**30), 15 * 2**30),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor, "nvidia_smi", lambda: f"Tesla T4, {driver}; Tesla T4, {driver}")


@clause("00.doctor.gpus", "00.machine.provider")
def test_doctor_lists_gpus_with_memory_and_a_remedy_for_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, free=14.5)
    findings = found(doctor.accelerators())
    assert [*findings] == ["cuda:0", "cuda:1", "driver"]
    assert findings["cuda:1"] == Finding("cuda:1", "Tesla T4, 14.5 of 15.0 GiB free, capability 7.5")
    assert findings["driver"] == Finding("driver", "Tesla T4, 550.54.15; Tesla T4, 550.54.15")
    gpus(monkeypatch, free=0.5)
    taken = found(doctor.accelerators())["cuda:0"]
    assert taken.state == "note"
    assert "nvidia-smi" in taken.remedy


@clause("00.doctor.kernels")
@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_75 sm_80 sm_86 sm_90", "7.5", True),
        ("sm_80 sm_86 sm_90", "7.5", False),
        ("sm_80 sm_90", "8.9", True),  # the same major capability, compiled for a smaller minor one
        ("sm_86 sm_90", "8.0", False),
        ("sm_80 sm_90", "12.0", False),  # another major capability
        ("sm_80 sm_90 compute_90", "12.0", True),  # compiled by the driver
        ("sm_90a", "9.0", True),
        ("sm_90a compute_90a", "10.0", False),
        ("sm_100f", "10.3", True),
        ("sm_100 sm_120", "12.1", True),
        ("gfx90a gfx942", "9.4", True),  # another maker's
    ],
)
def test_doctor_reports_a_gpu_without_kernels_in_pytorch(built: str, capability: str, runs: bool) -> None:
    assert doctor.has_kernels(built.split(), *map(int, capability.split("."))) == runs


@clause("00.doctor.kernels")
def test_a_gpu_without_kernels_is_reported_with_the_architectures_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, built="sm_80 sm_90")
    finding = found(doctor.accelerators())["cuda:0"]
    assert finding.state == "wrong"
    assert "capability 7.5, but this PyTorch was built for sm_80, sm_90" in finding.found
    assert "install a PyTorch" in finding.remedy


@clause("00.doctor.build")
def test_the_build_of_pytorch_names_the_gpus_it_serves_and_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)  # a machine without a GPU
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_75 sm_80 sm_90", raising=False)
    text = doctor.build().found
    assert text.startswith("for CUDA 13.0, driver 580 or newer, for sm_75, sm_80, sm_90: GPUs such as T4")
    assert text.endswith("T4, RTX 20, A100, RTX 30, A10, RTX 40, L4, H100, H200")
    monkeypatch.setattr(torch.cuda, "get_arch_list", "sm_50 compute_50".split)
    assert doctor.build().found.endswith(
        "GTX 900, P100, GTX 10, V100, T4, RTX 20, A100, RTX 30, A10, RTX 40, L4, H100, H200, B200, RTX 50"
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor.build().found == "for the CPU: it contains no CUDA"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_arch_list", "gfx90a gfx942".split)
    assert doctor.build().found == "for ROCm 6.4, for gfx90a, gfx942"


@clause("00.doctor.pkg_resources")
def test_a_tensorboard_that_needs_pkg_resources_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        if name == "tensorboard.default":
            raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    (finding,) = doctor.tensorboard()
    assert finding.state == "wrong"
    assert finding.found.startswith("this TensorBoard imports pkg_resources, which setuptools 82 removed")
    assert finding.remedy.startswith('python -m pip install --upgrade "tensorboard>=2.21"')


@clause("00.doctor.differences")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_doctor_lists_the_differences_of_an_older_pytorch(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "scripts/doctor.py"))
    monkeypatch.setattr(versions, "missing", lambda: versions.DIFFERENCES)
    (finding,) = script["differences"](chinese=language == "zh")
    reasons = {d.reason_zh if language == "zh" else d.reason for d in versions.DIFFERENCES if not d.of_processor}
    assert finding.state == "note"
    assert f"differs from the newest release in {len(reasons)} behaviours: " in finding.found
    assert all(reason in finding.found for reason in reasons)
    monkeypatch.setattr(versions, "missing", tuple)
    assert script["differences"](chinese=False) == []


@clause("00.doctor.driver")
@pytest.mark.parametrize(
    ("driver", "cuda", "state"),
    [
        ("550.54.15", "12.8", "good"),
        ("550.54.15", "13.0", "wrong"),
        ("580.65.06", "13.0", "good"),
        ("525.60.13", "12.1", "good"),
        ("470.82.01", "12.1", "wrong"),
        ("470.82.01", "11.8", "good"),
        ("418.67", "11.8", "wrong"),
    ],
)
@pytest.mark.parametrize("available", [True, False])
def test_doctor_reports_a_driver_too_old_for_the_cuda_of_pytorch(
    driver: str, cuda: str, state: str, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, driver=driver, cuda=cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    findings = found(doctor.accelerators())
    if state == "good":
        assert available == ("driver" in findings)
        return
    assert findings["driver"].state == "wrong"
    assert f"too old for CUDA {cuda}" in findings["driver"].found
    assert "update the driver" in findings["driver"].remedy


@clause("00.doctor.bare")
@pytest.mark.slow
@pytest.mark.parametrize("absent", ["torch tyro packaging", "tyro", "jaxtyping numpy", "torch"])
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "JSON"])
def test_the_doctor_works_where_packages_are_missing(absent: str, words: tuple[str, ...], tmp_path: Path) -> None:
    result = run("doctor.py", *words, folder=tmp_path, prepare=partial(without, absent))
    assert result.status == 1
    assert result.err == ""
    for name in absent.split():
        assert f'python -m pip install "{name}>=' in (result.out if not words else str(json.loads(result.out)))


def without(names: str) -> None:
    """Simulate a machine on which these packages are not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        return missing(name) if name in names.split() else real(name)

    importlib.metadata.version = version
    for name in names.split():
        for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            del sys.modules[module]
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    for module in [module for module in sys.modules if module.partition(".")[0] == "reference"]:
        del sys.modules[module]


@clause("00.doctor.bare")
@pytest.mark.slow
def test_doctor_runs_with_the_standard_library_only(tmp_path: Path) -> None:
    # -I: without PYTHONPATH and the user's packages; -S: without those that are installed
    command = [sys.executable, "-I", "-S", ROOT / "scripts/doctor.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == ""
    assert "!! torch         not installed" in result.stdout


@clause("00.doctor.gpus", "21.gpu.available")
def test_doctor_reports_a_driver_without_matching_pytorch_but_not_a_missing_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    monkeypatch.setattr(doctor, "nvidia_smi", lambda: "Tesla T4, 450.80.02")
    (finding,) = doctor.accelerators()
    assert finding.state == "wrong"
    assert "cannot use it" in finding.found
    monkeypatch.setattr(doctor, "nvidia_smi", lambda: "")
    (finding,) = doctor.accelerators()
    assert finding.state == "note"
    assert finding.found.startswith("none: torch.cuda.is_available() is False")


@clause("21.gpu.nvidia_smi")
def test_doctor_treats_a_failure_of_nvidia_smi_as_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.nvidia_smi() == ""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "Tesla T4, 550.54.15"\n')
    program.chmod(0o755)
    assert doctor.nvidia_smi() == "Tesla T4, 550.54.15"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert doctor.nvidia_smi() == ""


@clause("00.doctor.data")
def test_doctor_finds_data_in_the_folders_that_training_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCEAN_DATA", raising=False)
    (finding,) = doctor.data(tmp_path)
    assert (finding.state, "--download" in finding.remedy) == ("note", True)
    (tmp_path / "data/cifar-10-batches-py").mkdir(parents=True)
    (finding,) = doctor.data(tmp_path)
    assert (finding.state, finding.found) == ("good", "data/cifar-10-batches-py")
    monkeypatch.setenv("OCEAN_DATA", str(tmp_path))
    assert found(doctor.data(tmp_path))["OCEAN_DATA"].found.endswith("has no train and no test folder")
    for half in ("train", "test"):
        (tmp_path / half).mkdir()
    assert found(doctor.data(tmp_path))["OCEAN_DATA"].state == "good"


@clause("00.doctor.data")
def test_doctor_notes_little_disk_space_and_few_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    (finding,) = doctor.storage(tmp_path)
    assert (finding.state, finding.what) == ("note", "disk")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    assert found(doctor.processor())["threads"].found == "1 of 8 cores"
    assert "OMP_NUM_THREADS" in found(doctor.processor())["threads"].remedy


@clause("00.doctor.status")
@pytest.mark.slow
def test_doctor_script_prints_text_or_json_and_exits_with_a_status(tmp_path: Path) -> None:
    text, listed = (run("doctor.py", *words, folder=tmp_path) for words in ((), ("--json",)))
    findings = json.loads(listed.out)
    wrong = [finding for finding in findings if finding["state"] == "wrong"]
    assert (text.status, listed.status) == (bool(wrong), bool(wrong))
    assert [*findings[0]] == ["what", "found", "state", "remedy"]
    for finding in findings:
        assert any(finding["what"] in line and finding["found"][:20] in line for line in text.out.splitlines()), finding
    broken = run("doctor.py", folder=tmp_path, prepare=without_tensorboard)
    assert broken.status == 1
    assert "!! TensorBoard   ModuleNotFoundError" in broken.out
    assert "an older setuptools is not needed any more" in " ".join(broken.out.split())


def without_tensorboard() -> None:
    """Simulate a machine on which TensorBoard is not installed."""
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        del sys.modules[name]
    sys.modules["tensorboard"] = None  # pyright: ignore[reportArgumentType]


@clause("00.remote.ssh")
def test_editor_settings_are_part_of_the_dev_container() -> None:
    settings = json.loads((ROOT / ".vscode/settings.json").read_text())
    assert settings["python.testing.pytestEnabled"]
    assert settings["python.testing.pytestArgs"][0] == "spec"
    assert not [value for value in map(str, settings.values()) if value.startswith("/")], "no path of one machine"
    assert (
        "ms-vscode-remote.remote-ssh" in json.loads((ROOT / ".vscode/extensions.json").read_text())["recommendations"]
    )


@clause("00.remote.container")
def test_dev_container_installs_the_package_and_runs_the_doctor() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["postCreateCommand"] == "python -m pip install -e '.[test]' && python scripts/doctor.py"
    assert container["hostRequirements"]["gpu"] == "optional"
    assert 6006 in container["forwardPorts"]  # TensorBoard's
    version = tuple(map(int, container["image"].partition(":")[2].partition("-")[0].split(".")))
    assert version >= (3, 11)


@clause("00.remote.collected")
@pytest.mark.slow
def test_editor_test_command_collects_the_specification() -> None:
    words = json.loads((ROOT / ".vscode/settings.json").read_text())["python.testing.pytestArgs"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *words]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout[-2000:]
    assert "spec/test_08_convolution.py" in outcome.stdout
