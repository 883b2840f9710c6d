"""Chapters 00, 19 and 21: is this machine ready? What `scripts/doctor.py` looks at.

The chapters ask one thing after the other: `torch.__version__`, `torch.cuda.is_available()`, `nvidia-smi`. Here each is
a `Finding`: what was looked at, what was found, whether it is good, and what to do if it is not.
"""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from reference.data.cifar10 import ARCHIVE, FOLDER
from reference.device import installed_version

PYTHON = (3, 11)
"""The oldest Python that runs this project."""
LEAST = {
    "torch": "2.11",
    "numpy": "2",
    "pillow": "12",
    "tensorboard": "2.21",
    "tqdm": "4.67",
    "tyro": "1.0",
    "jaxtyping": "0.3.11",
    "filelock": "3.20",
    "platformdirs": "4",
}
"""The oldest versions that this project asks for, as pyproject.toml has them."""
ROOM = 2 * 2**30
"""Bytes that CIFAR-10, unpacked, and some runs take."""

State = Literal["good", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing about the machine.

    Attributes:
        what: What was looked at.
        found: What there is, in words.
        state: `good`; `note`: the training runs, but slower or without something; `wrong`: it cannot run.
        remedy: What to do about it; empty if it is good.
    """

    what: str
    found: str
    state: State = "good"
    remedy: str = ""


def examine(folder: Path = Path()) -> list[Finding]:
    """Everything that a training from `folder` depends on. Nothing is changed, nothing is fetched."""
    return [*software(), *processor(), *accelerators(), *tensorboard(), *storage(folder), *data(folder)]


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: of "2.14.1+cu130", (2, 14, 1)."""
    found = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def software() -> Iterator[Finding]:
    """Python and the packages."""
    running = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON:
        yield Finding("Python", running)
    else:
        yield Finding("Python", running, "wrong", f"install Python {'.'.join(map(str, PYTHON))} or newer")
    for name, least in LEAST.items():
        version = installed_version(name)
        if version is None:
            yield Finding(name, "not installed", "wrong", f'python -m pip install "{name}>={least}"')
        elif numbers(version) < numbers(least):
            yield Finding(name, version, "wrong", f'python -m pip install --upgrade "{name}>={least}"')
        else:  # PyTorch's own version says for which CUDA it was built
            yield Finding(name, torch.__version__ if name == "torch" else version)


def processor() -> Iterator[Finding]:
    """Cores, threads, memory, and the instructions that make float32 and bfloat16 fast."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads == 1 < cores:
        yield Finding(
            "threads", f"1 of {cores} cores", "note", "unset OMP_NUM_THREADS, or say --num-threads to train_full.py"
        )
    else:
        yield Finding("threads", f"{threads} of {cores} cores")
    memory = host_memory()
    if memory is not None:
        enough = memory >= 2 * 2**30
        remedy = "" if enough else "close other programs, or train on fewer pictures: --limit-train 10000"
        yield Finding("memory", f"{memory / 2**30:.1f} GiB", "good" if enough else "note", remedy)
    capability = torch.backends.cpu.get_cpu_capability()
    supported = torch.cpu.get_capabilities()
    names = sorted(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16") if supported.get(name))
    yield Finding("instructions", f"{capability}{' (' + ', '.join(names) + ')' if names else ''}")


def host_memory() -> int | None:
    """The machine's memory in bytes, if the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def accelerators() -> Iterator[Finding]:
    """The cards that PyTorch can use, and the driver; why there is none."""
    driver = nvidia_smi()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            free, whole = torch.cuda.mem_get_info(number)
            memory = f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB free"
            text = f"{about.name}, {memory}, capability {about.major}.{about.minor}"
            remedy = "" if free > 2**30 else "end the programs that hold its memory: nvidia-smi names them"
            yield Finding(f"cuda:{number}", text, "note" if remedy else "good", remedy)
        yield Finding("driver", driver or "unknown", "good", "")
    elif torch.backends.mps.is_available():
        yield Finding("mps", "Apple's GPU")
    elif driver:
        built = torch.version.cuda or "none"
        remedy = "install the PyTorch that fits the driver: https://pytorch.org/get-started/locally"
        yield Finding("card", f"{driver}, but PyTorch (built for CUDA {built}) cannot use it", "wrong", remedy)
    else:
        remedy = (
            "fine for this course; on Colab: Runtime, Change runtime type, GPU; on a machine with a card: its driver"
        )
        yield Finding("card", "none: torch.cuda.is_available() is False, and nvidia-smi finds nothing", "note", remedy)


def nvidia_smi() -> str:
    """What `nvidia-smi` says of the cards and the driver, empty if there is no such program or it finds none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in found.stdout.splitlines() if line.strip())


def tensorboard() -> Iterator[Finding]:
    """Whether events can be written. The tutorial's remedy for a missing distutils, setuptools 58.0.4, is obsolete."""
    try:
        importlib.import_module("torch.utils.tensorboard")
    except Exception as error:
        remedy = 'python -m pip install --upgrade "tensorboard>=2.21"; an older setuptools is not needed any more'
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
    """The data sets that are there."""
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
