"""A whole run: its memory, its start, and the work besides training."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import reference.training as training_module
from benchmarks.training.loops import FLOPS, FORWARD, Images, our_steps
from reference.run import RunFolder, Settings, parts

train_module = import_module("reference.run.train")  # the package offers the function under this name
TRAIN_FULL = (sys.executable, "scripts/train_full.py")


def memory() -> None:
    """Peak memory of a process that holds the images and trains 100 steps in each precision."""
    import resource  # POSIX only

    images = Images(train=True)
    for dtype in (torch.float32, torch.bfloat16):
        our_steps(images, 100, dtype)()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| peak memory of a process that trains | {peak:.2f} GiB | |")


def start() -> None:
    """From the command to the end of the first step: imports, data, the run's folder, the network's graph."""
    for attempt in ("at first", "again"):
        words = [*TRAIN_FULL, *("--log-every", "1")]
        if root := os.environ.get("OCEAN_DATA"):
            words += ["--dataset", "images", "--data-root", root]
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            with subprocess.Popen(
                [*words, "--output", f"{folder}/run"],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
            ) as run:
                assert run.stdout is not None
                while not (line := run.stdout.readline()).startswith(b"step 1:"):
                    assert line, "the training ended before its first step"
                print(f"| start to first step, {attempt} | {time.perf_counter() - begun:.2f} s | |", flush=True)
                run.kill()


def besides() -> None:
    """The work of a run besides training: the ten epochs of the tutorial's recipe in a run folder."""
    train_set, test_set = Images(train=True), Images(train=False)
    spent: dict[str, float] = {"fit": 0.0, "evaluate": 0.0, "on_epoch": 0.0, "on_steps": 0.0}

    def timed(owner: Any, name: str) -> Any:
        function = getattr(owner, name)

        def run(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - begun

        return patch.object(owner, name, run)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        data = {"dataset": "images", "fingerprint": ""}
        patches.enter_context(patch.object(train_module, "load_data", lambda *_, **__: (train_set, test_set, data)))
        for owner, name in ((parts, "fit"), (training_module, "evaluate")):
            patches.enter_context(timed(owner, name))
        for name in ("on_epoch", "on_steps"):
            patches.enter_context(timed(RunFolder, name))
        train_module.train(Settings(quiet=True, output=Path(folder) / "run"))
    forward = FORWARD * len(test_set) / 64
    arithmetic = forward / (forward + FLOPS * len(train_set) / 64)
    for what, names, more in (
        ("evaluation once an epoch", ("evaluate",), f"{arithmetic:.1%} of the arithmetic"),
        ("logs, images and checkpoints", ("on_epoch", "on_steps"), ""),
    ):
        share = sum(spent[name] for name in names) / spent["fit"]
        print(f"| share of a run: {what} | {share:.1%} | {more} |", flush=True)
