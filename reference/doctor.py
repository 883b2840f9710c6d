"""Chapters 00, 19 and 21: is this machine ready? The checks of `scripts/doctor.py`.

The chapters check one thing after the other: `torch.__version__`, `torch.cuda.is_available()`, `nvidia-smi`. Here each
check is a `Finding`: its subject, its result, its state, and the remedy if there is a problem. Only Python's own
library is needed, because people run this after a failed installation.
"""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest driver for each CUDA: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html."""
GENERATIONS = (
    (5, 0, "GTX 900"),
    (6, 0, "P100"),
    (6, 1, "GTX 10"),
    (7, 0, "V100"),
    (7, 5, "T4, RTX 20"),
    (8, 0, "A100"),
    (8, 6, "RTX 30, A10"),
    (8, 9, "RTX 40, L4"),
    (9, 0, "H100, H200"),
    (10, 0, "B200"),
    (12, 0, "RTX 50"),
)
"""Compute capabilities with examples of GPUs; full lists: developer.nvidia.com/cuda-gpus and cuda-legacy-gpus."""
ROOM = 2 * 2**30
"""Disk space for the unpacked CIFAR-10 and some runs, in bytes."""

State = Literal["good", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: The subject of the check.
        found: The result, in words.
        state: `good`; `note`: the training runs, but slower or without a feature; `wrong`: it cannot run.
        remedy: How to solve the problem; empty if there is none.
    """

    what: str
    found: str
    state: State = "good"
    remedy: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """Check everything that a training from `folder` depends on. The function changes and downloads nothing.

    Without PyTorch only the checks that do not need it are run.
    """
    try:
        importlib.import_module("torch")
    except Exception as error:  # a missing library of the system is an OSError
        found = [*software(), *storage(folder)]
        remedy = "reinstall PyTorch: https://pytorch.org/get-started/locally"
        known = any(finding.what == "torch" and finding.state == "wrong" for finding in found)
        broken = [] if known else [Finding("import torch", f"{type(error).__name__}: {error}", "wrong", remedy)]
        driver = [Finding("driver", text)] if (text := nvidia_smi()) else []
        return [*found, *broken, *driver]
    return [*software(), *processor(), build(), *accelerators(), *tensorboard(), *storage(folder), *data(folder)]


def requirements() -> list[str]:
    """The requirements of this project as `name>=version`: from the checkout's pyproject.toml, else as installed."""
    if PROJECT.is_file():
        return tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [entry for entry in importlib.metadata.requires("ocean-spec") or () if "extra ==" not in entry]


def software() -> Iterator[Finding]:
    """Python and the packages. Without the package `packaging`, versions are not compared."""
    yield Finding("Python", ".".join(map(str, sys.version_info[:3])))
    try:
        from packaging.requirements import Requirement
    except ImportError:
        Requirement = None  # noqa: N806  (a class or nothing)
    for entry in requirements():
        name = re.split(r"[^\w-]", entry)[0]
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "wrong", f'python -m pip install "{entry}"')
            continue
        if name == "torch":  # the version of PyTorch contains the CUDA version that it was built for
            version = getattr(sys.modules.get("torch"), "__version__", version)
        if Requirement is not None and not Requirement(entry).specifier.contains(version, prereleases=True):
            yield Finding(name, version, "wrong", f'python -m pip install --upgrade "{entry}"')
        else:
            yield Finding(name, version)


def processor() -> Iterator[Finding]:
    """Cores, threads, memory, and the instructions that make float32 and bfloat16 fast."""
    import torch

    from reference.releases import processor_features

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads == 1 < cores:
        yield Finding(
            "threads", f"1 of {cores} cores", "note", "unset OMP_NUM_THREADS, or say --num-threads to train_full.py"
        )
    else:
        yield Finding("threads", f"{threads} of {cores} cores" if cores > 1 else "1 of 1 core")
    memory = host_memory()
    if memory is not None:
        enough = memory >= 2 * 2**30
        remedy = "" if enough else "close other programs, or train on fewer images: --limit-train 10000"
        yield Finding("memory", f"{memory / 2**30:.1f} GiB", "good" if enough else "note", remedy)
    capability = torch.backends.cpu.get_cpu_capability()
    supported = processor_features()
    names = sorted(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16") if supported.get(name))
    yield Finding("instructions", f"{capability}{' (' + ', '.join(names) + ')' if names else ''}")


def host_memory() -> int | None:
    """The machine's memory in bytes, if the system reports it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def architectures() -> list[str]:
    """The architectures that PyTorch was built for; `get_arch_list` names none on a machine without a GPU."""
    import torch

    named: list[str] = list(torch.cuda.get_arch_list())
    flags = getattr(torch._C, "_cuda_getArchFlags", str)
    return named or str(flags() or "").split()


def build() -> Finding:
    """The GPUs that the installed PyTorch was built for, and the driver that it needs, on any machine."""
    import torch

    cuda, built = torch.version.cuda, architectures()
    if torch.version.hip:
        return Finding("build", f"for ROCm {torch.version.hip}, for {', '.join(built)}")
    if cuda is None:
        return Finding("build", "for the CPU: it contains no CUDA")
    served = [text for major, minor, text in GENERATIONS if has_kernels(built, major, minor)]
    least = DRIVERS.get(int(cuda.split(".")[0]), "?")
    return Finding(
        "build", f"for CUDA {cuda}, driver {least} or newer, for {', '.join(built)}: GPUs such as {', '.join(served)}"
    )


def accelerators() -> Iterator[Finding]:
    """The GPUs that PyTorch can use, and the driver; or the reason why there is none."""
    import torch

    driver = nvidia_smi()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield gpu(f"cuda:{number}", torch.cuda.get_device_properties(number), *torch.cuda.mem_get_info(number))
        yield driver_finding(driver, torch.version.cuda)
    elif torch.backends.mps.is_available():
        yield Finding("mps", "Apple's GPU")
    elif driver:
        finding = driver_finding(driver, torch.version.cuda)
        if finding.state == "wrong":
            yield finding
            return
        built = torch.version.cuda or "none"
        remedy = "install the PyTorch that fits the driver: https://pytorch.org/get-started/locally"
        yield Finding("gpu", f"{driver}, but PyTorch (built for CUDA {built}) cannot use it", "wrong", remedy)
    else:
        remedy = (
            "fine for this course; on Colab: Runtime, Change runtime type, GPU; on a machine with a GPU: its driver"
        )
        yield Finding("gpu", "none: torch.cuda.is_available() is False, and nvidia-smi finds nothing", "note", remedy)


def gpu(name: str, about: Any, free: int, whole: int) -> Finding:
    """One GPU: its memory, in bytes, and whether this PyTorch has kernels for its capability."""
    import torch

    memory = f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB free"
    text = f"{about.name}, {memory}, capability {about.major}.{about.minor}"
    kernels = torch.cuda.get_arch_list()
    if not has_kernels(kernels, about.major, about.minor):
        remedy = "install a PyTorch that was built for this GPU: https://pytorch.org/get-started/locally"
        return Finding(name, f"{text}, but this PyTorch was built for {', '.join(kernels)}", "wrong", remedy)
    if free <= 2**30:
        return Finding(name, text, "note", "end the programs that hold its memory: nvidia-smi names them")
    return Finding(name, text)


def has_kernels(built: list[str], major: int, minor: int) -> bool:
    """Whether one of the architectures that PyTorch was `built` for runs on a GPU of this capability.

    `sm_XY` runs on capability X.Y and on those above with the same X; `sm_XYa` on X.Y alone, `sm_XYf` as `sm_XY`;
    `compute_XY` is compiled by the driver for every capability from X.Y on (CUDA C++ Programming Guide, 5.1.1, 5.1.2).
    Architectures of other vendors (`gfx90a`) are not checked.
    """
    judged = False
    for name in built:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if parts is None:
            continue
        judged = True
        kind, has_major, has_minor, only = parts[1], int(parts[2]), int(parts[3]), parts[4] == "a"
        if only:
            fits = (has_major, has_minor) == (major, minor)
        elif kind == "sm":
            fits = has_major == major and has_minor <= minor
        else:
            fits = (has_major, has_minor) <= (major, minor)
        if fits:
            return True
    return not judged


def driver_finding(driver: str, cuda: str | None) -> Finding:
    """Whether the driver reported by `nvidia-smi` is new enough for the CUDA that PyTorch was built for."""
    versions = [int(found) for found in re.findall(r", (\d+)\.[\d.]+(?=;|$)", driver)]
    least = DRIVERS.get(int(cuda.split(".")[0]), 0) if cuda else 0
    if versions and min(versions) < least:
        text = f"{driver}: too old for CUDA {cuda}, for which this PyTorch was built; it needs {least} or newer"
        remedy = "update the driver, or install a PyTorch for an older CUDA: https://pytorch.org/get-started/locally"
        return Finding("driver", text, "wrong", remedy)
    return Finding("driver", driver or "unknown")


def nvidia_smi() -> str:
    """The output of `nvidia-smi` about GPUs and driver; empty if the program is missing or finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in found.stdout.splitlines() if line.strip())


def tensorboard() -> Iterator[Finding]:
    """Whether events can be written, and whether the program `tensorboard` can start.

    TensorBoard before 2.21 imports `pkg_resources` when it starts; setuptools 82 removed that module. The tutorial's
    remedy for a missing `distutils`, setuptools 58.0.4, is obsolete.
    """
    try:
        importlib.import_module("torch.utils.tensorboard")
        importlib.import_module("tensorboard.default")
    except Exception as error:
        remedy = 'python -m pip install --upgrade "tensorboard>=2.21"; an older setuptools is not needed any more'
        if isinstance(error, ModuleNotFoundError) and error.name == "pkg_resources":
            text = (
                "this TensorBoard imports pkg_resources, which setuptools 82 removed; TensorBoard 2.21 does without it"
            )
            yield Finding("TensorBoard", text, "wrong", remedy)
        else:
            yield Finding("TensorBoard", f"{type(error).__name__}: {error}", "wrong", remedy)
    else:
        yield Finding("TensorBoard", "writes events; look at them with: tensorboard --logdir runs")


def storage(folder: Path) -> Iterator[Finding]:
    """Whether runs can be written here."""
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        yield Finding("folder", f"{folder.resolve()} cannot be written", "wrong", "work in a folder of your own")
    elif free < ROOM:
        text = f"{free / 2**30:.1f} GiB free in {folder.resolve()}"
        yield Finding("disk", text, "note", f"make room: CIFAR-10 and some runs take {ROOM / 2**30:.0f} GiB")
    else:
        yield Finding("disk", f"{free / 2**30:.1f} GiB free")


def data(folder: Path) -> Iterator[Finding]:
    """The available data sets."""
    try:
        from reference.data.cifar10 import ARCHIVE, FOLDER
    except ImportError:  # a package that `software` reports
        return
    present = [name for name in (ARCHIVE, FOLDER) if (folder / "data" / name).exists()]
    if present:
        yield Finding("CIFAR-10", f"data/{present[0]}")
    else:
        remedy = "python scripts/train_full.py --dataset cifar10 --download; without it the embedded Shapes are learned"
        yield Finding("CIFAR-10", "not under data/", "note", remedy)
    if named := os.environ.get("OCEAN_DATA"):
        missing = [half for half in ("train", "test") if not (Path(named) / half).is_dir()]
        if missing:
            text = f"{named} has no {' and no '.join(missing)} folder"
            yield Finding("OCEAN_DATA", text, "wrong", "let it name a folder with train/<class>/ and test/<class>/")
        else:
            yield Finding("OCEAN_DATA", named)
