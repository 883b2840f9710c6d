"""Chapters 00, 19 and 21: choosing the device, and recording the data that is needed to repeat a run."""

import ctypes
import os
import platform
import random
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from torch import nn

from reference.errors import InputError
from reference.messages import counted
from reference.releases import processor_features, set_tf32


def choose_device(name: str) -> torch.device:
    """Return the device called `name`: `auto` (CUDA, else MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        InputError: this machine has no such device; the message lists the available ones.
    """
    available = ["cpu"]
    available += [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device(next((kind for kind in ("cuda:0", "mps") if kind in available), "cpu"))
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in available:
        raise InputError(
            f"--device {name}: there is no such device here; there is {', '.join(available)} (or say auto)"
        )
    return torch.device(wanted)


Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes for convolutions and matrix products, by name."""


def choose_precision(name: Precision | Literal["auto"], device: torch.device) -> torch.dtype:
    """Return the precision called `name`; `auto` is bfloat16 if `device` has instructions for it, else float32.

    A processor with AVX-512 BF16 or AMX has such instructions, which double its arithmetic speed. Without them bfloat16
    works slowly. `float32` means float32 on GPUs too: TF32 is turned off for the whole process.
    """
    if name != "auto":
        if name == "float32" and device.type == "cuda":  # otherwise cuDNN computes convolutions in TF32
            set_tf32(allowed=False)
        return PRECISIONS[name]
    if device.type == "cpu":
        able = processor_features()
        native = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed every random number generator of PyTorch, Python and this project.

    With `deterministic`, operations that have no reproducible implementation on the device raise instead of running.
    """
    random.seed(seed)
    torch.manual_seed(seed)  # every device's generator as well
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)  # called only if needed: it imports the compiler, which takes seconds


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the random number generators of a training on `device`: the CPU's, and the device's own."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = [device.type, torch.get_device_module(device).get_rng_state(*_numbered(device))]
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore the states from `random_states`; the state of a device of another kind is left out."""
    torch.set_rng_state(states["cpu"])
    kind, state = states.get("device", (None, None))
    if kind == device.type:
        torch.get_device_module(device).set_rng_state(state, *_numbered(device))


def _numbered(device: torch.device) -> tuple[torch.device, ...]:
    """The device argument for the functions of the device's module; those of MPS, a single device, take none."""
    return () if device.type == "mps" else (device,)


def compile_network(network: nn.Module, how: str, device: torch.device) -> None:
    """Compile `network` in place for `device`: the module object stays the same, only its call changes.

    Args:
        how: off: do not compile. graphs: a GPU replays the operations of a step as CUDA graphs, recorded in the first
            steps, instead of receiving them one by one; other devices trace them as well and run them unchanged.
            full: operations are also fused into new kernels, which takes long; it needs a C++ compiler for the CPU,
            Triton for a GPU. Each batch shape is compiled on its own, including a smaller last batch of an epoch.
    """
    if how == "graphs":
        network.compile(dynamic=False, backend="cudagraphs" if device.type == "cuda" else "aot_eager")
    elif how == "full":
        network.compile(dynamic=False, mode="reduce-overhead")


def keep_freed_memory() -> None:
    """Make this process keep freed memory for its next step, instead of returning it to the system.

    Without it the system clears every page of the large tensors of every step anew; with it a step has no page faults
    (the test of clause 18.precision.memory counts them).
    This works with glibc only; with other C libraries this function does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # glibc's malloc.h
    if platform.libc_ver()[0] == "glibc":
        for option in (trim_threshold, mmap_threshold):
            ctypes.CDLL(None).mallopt(option, 2**30)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch reports that the memory of a device, or of the host, is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def describe_device(device: torch.device) -> str:
    """A short description of the device: its kind, its name, and for the CPU the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({counted(torch.get_num_threads(), 'thread')})"
    return str(device)


def versions() -> dict[str, Any]:
    """Everything besides the settings that the results of a run depend on: software versions, processor, threads."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    } | {name: installed_version(name) for name in ("torch", "pillow", "numpy", "tensorboard", "ocean-spec")}


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
