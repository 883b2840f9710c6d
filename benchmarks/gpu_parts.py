"""The parts of `python -m benchmarks.gpu` that measure: `python -m benchmarks.gpu_parts NAME [--rehearse]`.

Every figure is written as a JSON line into the file that the variable OCEAN_RECORD names (or to standard output) as
soon as it is known. A rehearsal runs on the CPU, with fewer images and epochs.
"""

import argparse
import importlib
import io
import json
import os
import pickle
import pkgutil
import platform
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reference.device
from benchmarks.strict import line
from reference.data.image_tree import ImageTree
from reference.data.resident import Resident
from reference.data.shapes import Shapes
from reference.releases import set_tf32

ROOT = Path(__file__).parents[1]
TUTORIAL_ACCURACY = 0.5585
"""The test accuracy that `--recipe fast` has to reach; `docs/` gives its source."""
EPOCHS = 10
"""The same for the tutorial's recipe."""
CLAIMED_SECONDS = 148.0
"""The seconds of the tutorial's ten epochs on its GPU (chapter 19, line 1714)."""


def record(**figure: Any) -> None:
    """Append a figure to the record."""
    text = line(figure)
    if path := os.environ.get("OCEAN_RECORD"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    print(text, end="", flush=True, file=sys.__stdout__)  # not mixed with the output of a measured program


@dataclass(frozen=True)
class Place:
    """The device and the size of the measurements.

    Attributes:
        device: the device of the networks.
        rehearse: whether the CPU replaces the GPU, at reduced size.
    """

    device: torch.device
    rehearse: bool

    def halves(self) -> tuple[Resident, Resident]:
        """The training and test images: those of OCEAN_DATA, otherwise Shapes."""
        root = os.environ.get("OCEAN_DATA")
        both: tuple[Resident, Resident]
        if root is None:
            both = Shapes(train=True), Shapes(train=False)
        else:
            both = ImageTree(root, True, progress=False), ImageTree(root, False, progress=False)
        if self.rehearse:
            for part, count in zip(both, (640, 160), strict=True):
                part.images, part.targets = part.images[:count], part.targets[:count]
        return both

    def words(self) -> list[str]:
        """The flags of `train_full.py` for these images on this device."""
        root = os.environ.get("OCEAN_DATA")
        words = ["--dataset", "shapes"] if root is None else ["--dataset", "images", "--data-root", root]
        words += ["--limit-train", "640", "--limit-test", "160", "--epochs", "2"] if self.rehearse else []
        return [*words, "--device", str(self.device)]

    def settings(self, **values: Any) -> Any:
        """The settings of `train_full.py` for these images on this device."""
        from reference.run import Settings

        root = os.environ.get("OCEAN_DATA")
        values |= {"dataset": "shapes"} if root is None else {"dataset": "images", "data_root": Path(root)}
        if self.rehearse:
            values |= {"limit_train": 640, "limit_test": 160, "epochs": 2}
        return Settings(**values, device=str(self.device), quiet=True)

    def wait(self) -> None:
        """Wait until the device has completed its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def fresh_memory(self) -> None:
        """Release unused memory and restart the measurement of its peak."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mib(self) -> float | None:
        """The largest amount of memory in use since `fresh_memory`, in MiB; None without a GPU."""
        if self.device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)


def environment(place: Place) -> None:
    """Device, driver, versions, processor, revision of the sources."""
    found: dict[str, Any] = reference.device.versions()
    found |= {name: reference.device.installed_version(name) for name in ("torchvision", "triton", "pytest")}
    found |= {"torch": torch.__version__, "built for CUDA": torch.version.cuda, "cores": os.cpu_count()}
    found |= {"machine": platform.machine(), "device": str(place.device), "threads": torch.get_num_threads()}
    found["cuDNN"] = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    found["images"] = "none: Shapes" if "OCEAN_DATA" not in os.environ else "images of OCEAN_DATA"
    if place.device.type == "cuda":
        about = torch.cuda.get_device_properties(place.device)
        found |= {
            "GPU": about.name,
            "GPU memory in GiB": round(about.total_memory / 2**30, 1),
            "GPU capability": f"{about.major}.{about.minor}",
            "GPU multiprocessors": about.multi_processor_count,
            "architectures of this build": torch.cuda.get_arch_list(),
            "driver": printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    found["revision"] = printed("git", "-C", str(ROOT), "rev-parse", "HEAD")
    found["changed since"] = printed("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    record(**found)


def printed(*command: str) -> str | None:
    """The output of a program, or None if it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def images(place: Place) -> None:
    """Decode the images once, so that no later part spends time on decoding."""
    began = time.perf_counter()
    train_set, test_set = place.halves()
    record(images=len(train_set) + len(test_set), seconds=round(time.perf_counter() - began, 2))


TF32 = "TF32"
"""A precision of this module: float32 with matrix products in TF32."""
PRECISIONS = ("float32", TF32, "bfloat16")


@contextmanager
def tf32(on: bool, device: torch.device) -> Iterator[None]:
    """Allow or forbid TF32, even if a training sets it meanwhile; `train_full.py` itself has no flag for it."""
    if not on or device.type != "cuda":
        yield
        return
    importing = [sys.modules[name] for name in ("reference.run", *_submodules("reference.run"))]
    users = [module for module in importing if "choose_precision" in vars(module)]
    choose = reference.device.choose_precision

    def allowing(*arguments: Any, **named: Any) -> Any:
        chosen = choose(*arguments, **named)
        set_tf32(allowed=True)
        return chosen

    for module in users:
        vars(module)["choose_precision"] = allowing
    try:
        yield
    finally:
        for module in users:
            vars(module)["choose_precision"] = choose


def _submodules(package: str) -> list[str]:
    """The names of a package's modules, all imported."""
    names = [f"{package}.{found.name}" for found in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    for name in names:
        importlib.import_module(name)
    return names


def trainings(place: Place, how: str) -> None:
    """The tutorial's recipe with `--compile how`, in each precision: seconds, accuracy, images per second, memory."""
    from reference.run import train

    with tempfile.TemporaryDirectory() as name:
        warm = place.settings(epochs=1, limit_train=640, limit_test=160) if not place.rehearse else None
        if warm is not None:  # the start of the device is not part of the first training
            train(replace(warm, output=Path(name) / "warm"))
        for precision in PRECISIONS:
            if how != "off":
                torch._dynamo.reset()
            place.fresh_memory()
            output = Path(name) / precision
            chosen = "float32" if precision == TF32 else precision
            settings = place.settings(epochs=EPOCHS, precision=chosen, compile=how, output=output)
            began = time.perf_counter()
            with tf32(precision == TF32, place.device):
                status = train(settings)
            seconds = time.perf_counter() - began
            record(training="tutorial", compile=how, precision=precision, status=status, **outcome(output, seconds))
            record(training="tutorial", compile=how, precision=precision, peak_mib=place.peak_mib())


def outcome(folder: Path, seconds: float) -> dict[str, Any]:
    """The results in a run folder: accuracy and losses, and the images per second of each epoch."""
    lines = [json.loads(one) for one in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = lines[-1]
    return {
        "epochs": len(lines),
        "seconds": round(seconds, 2),
        "images_per_second": [round(one["images_per_second"]) for one in lines],
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "test_loss_sum": last["test_loss_sum"],
        "train_losses": [round(one["train_loss"], 5) for one in lines],
    }


def command(place: Place) -> None:
    """`train_full.py` as a user starts it, in a separate process: seconds from the command to its end."""
    with tempfile.TemporaryDirectory() as name:
        for precision in ("float32", "auto"):
            output = Path(name) / precision
            words = [sys.executable, "scripts/train_full.py", *place.words(), "--precision", precision, "--quiet"]
            began = time.perf_counter()
            done = subprocess.run([*words, "--output", str(output)], cwd=ROOT, check=False)
            seconds = time.perf_counter() - began
            if done.returncode == 0:
                record(command="train_full.py", precision=precision, **outcome(output, seconds))
            else:
                record(command="train_full.py", precision=precision, status=done.returncode, seconds=seconds)


class _EnoughError(Exception):
    """Ends the tutorial's program when enough steps have been measured."""


class _Clock(io.TextIOBase):
    """Standard output of the tutorial's program: notes the start of each epoch and the end of each hundred steps."""

    def __init__(self, on_epoch: Callable[[int, float], None], steps: int | None) -> None:
        self.on_epoch, self.last_step = on_epoch, steps
        self.epochs: list[float] = []
        self.steps: dict[int, float] = {}
        self.text: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self.text.append(text)
        now = time.perf_counter()
        if text.startswith("-------第"):
            self.epochs.append(now)
            if len(self.epochs) > 1:
                self.on_epoch(len(self.epochs) - 1, now - self.epochs[-2])
        if text.startswith("训练次数："):
            step = int(text.partition("：")[2].partition(",")[0])
            self.steps[step] = now
            if step == self.last_step:
                raise _EnoughError
        return len(text)


def tutorial(place: Place) -> None:
    """The tutorial's own program, chapter 19 method 2, on the device and, for some steps, on the CPU."""
    from spec.support.cifar_archives import TRAIN, meta, write_folder
    from spec.test_19_listing import LISTINGS

    train_set, test_set = place.halves()
    with tempfile.TemporaryDirectory() as name:
        rows = {key: batch(part) for key, part in zip(TRAIN, pieces(train_set, len(TRAIN)), strict=True)}
        rows |= {"test_batch": batch(next(pieces(test_set, 1))), "batches.meta": pickle.dumps(meta())}
        write_folder(Path(name) / "test/data", rows)
        text = LISTINGS["ch19-5"]
        for device, steps in ((place.device, None), (torch.device("cpu"), 100 if place.rehearse else 300)):
            program = text.replace('"cuda:0"', f'"{device}"')
            if place.rehearse:
                program = program.replace("range(10)", "range(11)" if steps else "range(2)")

            def on_epoch(number: int, seconds: float, device: torch.device = device) -> None:
                record(program="chapter 19, method 2", device=str(device), epoch=number, seconds=round(seconds, 3))

            began = time.perf_counter()
            clock, ended = follow(program, Path(name), on_epoch, steps)
            seconds = time.perf_counter() - began
            found: dict[str, Any] = {"program": "chapter 19, method 2", "device": str(device)}
            if ended:
                found |= {"epochs": len(clock.epochs), "seconds": round(seconds, 2)}
                found["printed"] = "".join(clock.text)[-300:]
                if not place.rehearse:
                    found["claimed_seconds"] = CLAIMED_SECONDS
            marks = sorted(clock.steps.items())
            if len(marks) > 1:
                (first, start), (last, end) = marks[0], marks[min(2, len(marks) - 1)]
                found |= {"milliseconds_a_step": round(1e3 * (end - start) / (last - first), 3), "steps": last - first}
            record(**found)


def follow(
    program: str, folder: Path, on_epoch: Callable[[int, float], None], steps: int | None
) -> tuple[_Clock, bool]:
    """Run a program in `folder`; return its clock, and whether it reached its end."""
    import torchvision.datasets.cifar as cifar

    clock, accepted = _Clock(on_epoch, steps), cifar.check_integrity
    (folder / "program.py").write_text(program, encoding="utf-8")
    cifar.check_integrity = lambda *_: True  # the archive was written here, from the same images
    try:
        with chdir(folder), redirect_stdout(clock), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            runpy.run_path("program.py", run_name="__main__")
    except _EnoughError:
        return clock, False
    finally:
        cifar.check_integrity = accepted
    return clock, True


def pieces(part: Resident, count: int) -> Iterator[tuple[np.ndarray[Any, Any], list[int]]]:
    """The images as rows and their class numbers, in `count` pieces."""
    size = -(-len(part) // count)
    for start in range(0, len(part), size):
        piece = slice(start, start + size)
        yield part.images[piece].flatten(1).numpy(), part.targets[piece].tolist()


def batch(piece: tuple[np.ndarray[Any, Any], list[int]]) -> bytes:
    """A file of CIFAR-10's archive."""
    rows, numbers = piece
    return pickle.dumps({"data": rows, "labels": numbers})


def fast(place: Place) -> None:
    """`--recipe fast`: 6,400 images until the tutorial's accuracy, then 1, 4 and 10 epochs, each over 3 seeds."""
    from benchmarks.training.recipe import first, learn

    train_set, test_set = place.halves()
    few = Shapes(train=True, size=64) if place.rehearse else first(train_set, 6_400)
    few.classes = train_set.classes
    learn(few, test_set, 1, 0, place.device)  # the start of the device is not part of the first training
    seeds = range(2 if place.rehearse else 3)
    for data, epochs in ((few, 1), *((train_set, count) for count in ((1,) if place.rehearse else (1, 4, 10)))):
        for seed in seeds:
            place.fresh_memory()
            began = time.perf_counter()
            history = learn(data, test_set, epochs, seed, place.device)
            place.wait()
            seconds, accuracy = time.perf_counter() - began, history[-1]["test_accuracy"]
            record(
                recipe="fast",
                images=len(data),
                epochs=epochs,
                seed=seed,
                seconds=round(seconds, 3),
                test_accuracy=accuracy,
                reaches=accuracy >= TUTORIAL_ACCURACY,
                peak_mib=place.peak_mib(),
            )


def profile(place: Place) -> None:
    """The share of a training step in which the GPU computes, from the profiler's record of kernels and copies."""
    from benchmarks.test_device import BATCHES, training_step

    steps, activities = 5 if place.rehearse else 50, [torch.profiler.ProfilerActivity.CPU]
    if place.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for how in ("off", "graphs", "full"):
        for size in BATCHES[:1] if place.rehearse else (BATCHES[0], BATCHES[-1]):
            for dtype in (None, torch.bfloat16):
                if place.rehearse and (how == "full" or dtype is not None):
                    continue
                torch._dynamo.reset()
                step = training_step(place.device, size, resident=True, dtype=dtype, compiled=how, wait=False)
                for _ in range(5):
                    step()
                place.wait()
                began = time.perf_counter()
                for _ in range(steps):
                    step()
                place.wait()
                plain = (time.perf_counter() - began) / steps
                with torch.profiler.profile(activities=activities) as profiler:
                    for _ in range(steps):
                        step()
                    place.wait()
                with tempfile.TemporaryDirectory() as name:
                    trace = Path(name) / "trace.json"
                    profiler.export_chrome_trace(str(trace))
                    busy, kernels, top = on_the_device(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
                record(
                    profile="training step",
                    compile=how,
                    batch=size,
                    dtype=str(dtype or torch.float32).removeprefix("torch."),
                    milliseconds=round(1e3 * plain, 4),
                    gpu_milliseconds=round(1e3 * busy / steps, 4),
                    # the profiler slows the host down, so the share refers to the time of a step without it
                    gpu_share=round(busy / steps / plain, 4) if kernels else None,
                    kernels_a_step=kernels / steps,
                    longest=top,
                )


def on_the_device(events: list[dict[str, Any]]) -> tuple[float, int, list[dict[str, Any]]]:
    """From a profiler's trace: seconds with at least one kernel or copy running, their number, and the longest."""
    ran = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e]
    busy, reached = 0.0, float("-inf")
    for event in sorted(ran, key=lambda e: float(e["ts"])):
        start, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    totals: dict[str, float] = {}
    for event in ran:
        totals[event["name"]] = totals.get(event["name"], 0.0) + float(event["dur"])
    longest = sorted(totals.items(), key=lambda item: item[1], reverse=True)[:5]
    whole = sum(totals.values())
    top = [{"name": name[:100], "share": round(time / whole, 3)} for name, time in longest]
    return 1e-6 * busy, len(ran), top


PARTS: dict[str, Callable[[Place], None]] = {
    "environment": environment,
    "images": images,
    "command": command,
    "tutorial": tutorial,
    "trainings-off": lambda place: trainings(place, "off"),
    "trainings-graphs": lambda place: trainings(place, "graphs"),
    "trainings-full": lambda place: trainings(place, "full"),
    "fast": fast,
    "profile": profile,
}


def main() -> int:
    """Measure one part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at reduced size")
    chosen = parser.parse_args()
    if not chosen.rehearse and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; --rehearse runs the part on the CPU, at reduced size")
    device = torch.device("cpu") if chosen.rehearse else torch.device("cuda", 0)
    PARTS[chosen.part](Place(device, chosen.rehearse))
    return 0


if __name__ == "__main__":
    sys.exit(main())
