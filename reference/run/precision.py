"""The choice of `--precision auto`: measure some training steps and select the faster precision.

Processors and GPUs report whether they compute in bfloat16, but not whether it is faster: with AVX-512 BF16 and without
AMX the conversions can take more time than the arithmetic saves. Therefore a few real steps are run in both precisions,
before the training is seeded, and the result is stored for this machine.
"""

import platform
import time
from contextlib import suppress
from math import inf
from pathlib import Path
from statistics import median

import torch
from platformdirs import user_cache_path

from reference.data.resident import Resident
from reference.device import PRECISIONS, choose_precision, describe_device, installed_version
from reference.files import atomic_write, read_json
from reference.run.parts import Plan, prepare
from reference.run.settings import Settings
from reference.text import json_text
from reference.training import compute

SECONDS = 0.7
"""The time limit of a measurement, in seconds."""
MOST_IMAGES = 64
"""Images in a measured step on a CPU, where a step of a large batch takes seconds and gives the same result."""
MOST_ENTRIES = 100
"""The number of results that are remembered."""
LARGEST_CACHE = 2**20
"""The largest file of results that is read, in bytes."""


def resolve_precision(settings: Settings, train_set: Resident, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision for these settings, and the line that reports a measurement.

    `auto` is float32 for `--impl reference` and for devices that do not compute in bfloat16; otherwise it is the
    precision with the faster steps. Compiled steps are not measured, since compiling takes longer than the limit.
    """
    if settings.precision != "auto":
        return choose_precision(settings.precision, device), ""
    able = choose_precision("auto", device)
    if settings.impl == "reference" or able == torch.float32:
        return torch.float32, ""
    if settings.compile != "off":
        return able, ""
    choose_precision("float32", device)  # a run that is resumed in float32 does not use TF32 either
    path, key = user_cache_path("ocean-spec") / "precision.json", machine(settings, device)
    answers = remembered(path)
    times, how = answers.get(key), "remembered from an earlier run"
    if times is None:
        times, how = measure(settings, train_set, device), "measured now"
        answers = dict(list(answers.items())[1 - MOST_ENTRIES :]) | {key: times}
        with suppress(OSError):  # an unwritable cache folder only costs the next run its measurement
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json_text(answers, indent=2).encode())
    name = min(times, key=lambda name: times[name])
    listed = ", ".join(f"{seconds * 1e3:.1f} ms a step in {name}" for name, seconds in times.items())
    return PRECISIONS["bfloat16" if name == "bfloat16" else "float32"], f"--precision auto: {name} ({listed}, {how})"


def machine(settings: Settings, device: torch.device) -> str:
    """Everything that the time of a step depends on."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    parts = (processor, describe_device(device), f"torch {installed_version('torch')}", f"batch {settings.batch_size}")
    return " | ".join((*parts, settings.optimizer, "whitened" if settings.whiten else "all layers"))


def remembered(path: Path) -> dict[str, dict[str, float]]:
    """The stored results; none if the file is missing or damaged."""
    try:
        content = read_json(path, LARGEST_CACHE)
        answers = {
            str(key): {name: float(times[name]) for name in ("float32", "bfloat16")} for key, times in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {}
    return {key: times for key, times in answers.items() if all(0 < seconds < inf for seconds in times.values())}


def measure(settings: Settings, train_set: Resident, device: torch.device) -> dict[str, float]:
    """The median seconds of a training step in float32 and in bfloat16, taken in turns; in about `SECONDS`."""
    begun = time.perf_counter()
    plan = prepare(settings, train_set, train_set, device)
    size = settings.batch_size if device.type != "cpu" else min(settings.batch_size, MOST_IMAGES)
    images = train_set.images[:size].to(device).float().div_(255)
    targets = train_set.targets[:size].to(device)
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for turn in range(1000):
        if turn > 1 and time.perf_counter() - begun > SECONDS:
            break
        for name, seconds in times.items():
            taken = step_seconds(plan, images, targets, torch.float32 if name == "float32" else torch.bfloat16)
            if turn > 0:  # the first step in each precision prepares its kernels
                seconds.append(taken)
    return {name: median(seconds) for name, seconds in times.items()}


def step_seconds(plan: Plan, images: torch.Tensor, targets: torch.Tensor, precision: torch.dtype) -> float:
    """Run one training step, and return the seconds until the device has completed it."""
    begun = time.perf_counter()
    plan.optimizer.zero_grad()
    loss = plan.loss_function(compute(plan.network, images, precision), targets)
    loss.backward()
    plan.optimizer.step()
    loss.item()
    return time.perf_counter() - begun
