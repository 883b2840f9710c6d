"""The speed of the tutorial's training, as ratios of pairs run in turn: `python benchmarks/training.py [FIGURE …]`.

The baseline is the tutorial's own loop (chapter 18, lines 1499 to 1518): a DataLoader that converts image by image,
PyTorch's layers and SGD in float32, batches of 64. The images are those of OCEAN_DATA, else random ones.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reference.training as training_module
from benchmarks.growth import slope
from benchmarks.pairs import Ratio, compare, shortest
from reference.data.image_tree import ImageTree, read_tree, scan_tree
from reference.data.resident import Resident, ResidentLoader
from reference.data.transforms import ToTensor
from reference.device import keep_freed_memory
from reference.distributed import Group
from reference.models import Ocean
from reference.optim import SGD
from reference.recipes import RECIPES
from reference.run import RunFolder, Settings, parts, prepare
from reference.run.precision import resolve_precision
from reference.training import Observer, Progress, compute

train_module = import_module("reference.run.train")  # the package offers the function under this name

CPU = torch.device("cpu")
FORWARD = 2 * 64 * (32 * 32 * 32 * 75 + 16 * 16 * 32 * 800 + 8 * 8 * 64 * 800 + 1024 * 64 + 64 * 10)
FLOPS = 3 * FORWARD - 2 * 64 * 32 * 32 * 32 * 75
"""Of a step of 64: forward, gradient of weights, gradient of inputs; the images need none of the latter."""


class Images(Resident):
    """Images in memory, random if no folder is given."""

    classes = tuple("0123456789")

    def __init__(self, train: bool) -> None:
        root = os.environ.get("OCEAN_DATA")
        if root is not None:
            tree = ImageTree(root, train, progress=False)
            self.images, self.targets, self.classes = tree.images, tree.targets, tree.classes
        else:
            count = 50_000 if train else 10_000
            self.images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
            self.targets = torch.randint(0, 10, (count,))


class Converted(Dataset[tuple[Tensor, int]]):
    """The data set of the tutorial's loop: decoded images, each converted by Pillow and ToTensor every time."""

    def __init__(self, images: Resident) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = images.targets.tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.targets[index]


def endless(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def tutorial_steps(data_set: Resident, steps: int) -> Callable[[], float]:
    """A function that makes `steps` steps of the tutorial's loop."""
    batches = endless(DataLoader(Converted(data_set), batch_size=64))
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, 1, 2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, 1, 2), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, 1, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10)),
    )
    loss_function, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.01)

    def run() -> float:
        loss = torch.zeros(())
        for images, targets in islice(batches, steps):
            loss = loss_function(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def answer(pipe: Any, steps: int) -> None:
    """The tutorial's process: answer each message with the seconds that `steps` of its steps take."""
    run = tutorial_steps(Images(train=True), steps)
    run()
    while pipe.recv():
        start = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - start)


class Tutorial:
    """The tutorial's loop in a process of its own, so that settings of this process do not affect it. Calling it makes
    `steps` steps there and returns their time in seconds."""

    def __init__(self, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=answer, args=(far_end, steps), daemon=True)
        self.process.start()
        self()

    def __call__(self) -> float:
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join()


def our_steps(data_set: Resident, steps: int, precision: torch.dtype, batch: int = 64) -> Callable[[], float]:
    """A function that makes `steps` steps in the same way as `fit`."""
    batches = endless(ResidentLoader(data_set, batch))
    network = Ocean().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    loss_function, optimizer = nn.CrossEntropyLoss(), SGD(network.parameters(), lr=0.01)

    def run() -> float:
        value = 0.0
        for images, targets in islice(batches, steps):
            loss = loss_function(compute(network, images, precision), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()
        return value

    return run


def steps_per_second() -> None:
    images = Images(train=True)
    tutorial = Tutorial(10)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        ratio = compare(tutorial, our_steps(images, 10, dtype), seconds=0.4)
        row(f"steps/s, {name}, against the tutorial's loop", ratio, f"{1e2 * ratio.second:.1f} ms a step")
    tutorial.close()


def gemm_share() -> None:
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        step = our_steps(Images(train=True), 1, dtype)
        ratio = compare(lambda a=a, b=b: a @ b, step, seconds=0.3)
        scale = FLOPS / (2 * 2048**3)
        share = Ratio(tuple(one * scale for one in ratio.ratios), ratio.first, ratio.second)
        row(f"share of the GEMM rate, {name}", share, f"GEMM {2 * 2048**3 / ratio.first / 1e9:.0f} GFLOP/s")


def input_epoch() -> None:
    images = Images(train=True)
    tutorial = endless(DataLoader(Converted(images), batch_size=64))
    ours = endless(ResidentLoader(images, 64))

    def take(batches: Iterator[Any]) -> Callable[[], int]:
        return lambda: sum(len(targets) for _, targets in islice(batches, 40))

    row("input, against DataLoader + ToTensor", compare(take(tutorial), take(ours), seconds=0.1))


def cache() -> None:
    start = time.perf_counter()
    Images(train=True), Images(train=False)
    print(f"| loading both halves, cached if they were | {time.perf_counter() - start:.2f} s | |")


def decode() -> None:
    """Reading and decoding the files of both halves, without the cache."""
    if root := os.environ.get("OCEAN_DATA"):
        begun = time.perf_counter()
        for split in ("train", "test"):
            read_tree(scan_tree(Path(root), split), (32, 32), progress=False, decode=True)
        print(f"| decoding both halves | {time.perf_counter() - begun:.2f} s | |", flush=True)


def memory() -> None:
    """Peak memory of a process that holds the images and trains 100 steps in each precision."""
    import resource  # POSIX only

    images = Images(train=True)
    for dtype in (torch.float32, torch.bfloat16):
        our_steps(images, 100, dtype)()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| peak memory of a process that trains | {peak:.2f} GiB | |")


def learn(
    train_set: Resident, test_set: Resident, epochs: int, seed: int, device: torch.device = CPU
) -> list[dict[str, Any]]:
    """Train as `scripts/train_full.py --recipe fast` does, without its run folder; return the metrics of each epoch."""
    settings = Settings(**{"recipe": "fast", "epochs": epochs, "seed": seed} | RECIPES["fast"])
    precision, _ = resolve_precision(settings, train_set, device)
    torch.manual_seed(seed)
    plan = prepare(settings, train_set, test_set, device, precision)
    return plan.fit(Group(), Progress(), Observer()).history


def fast() -> None:
    """The fast recipe's shortest run, evaluation included, against the ten epochs of the tutorial."""
    train_set, test_set = Images(train=True), Images(train=False)
    train_set.images, train_set.targets = train_set.images[:IMAGES], train_set.targets[:IMAGES]
    tutorial, ratios, seconds, accuracies = Tutorial(40), [], [], []
    for seed in range(SEEDS):
        ten_epochs = tutorial() / 40 * 782 * 10  # without its evaluations
        start = time.perf_counter()
        accuracies.append(learn(train_set, test_set, 1, seed)[-1]["test_accuracy"])
        seconds.append(time.perf_counter() - start)
        ratios.append(ten_epochs / seconds[-1])
    tutorial.close()
    row(
        f"recipe fast, {IMAGES:,} images, against the tutorial's ten epochs",
        Ratio(tuple(ratios), statistics.median(ratios) * statistics.median(seconds), statistics.median(seconds)),
        f"{statistics.median(seconds):.2f} s, accuracy {statistics.mean(accuracies):.4f} ± "
        f"{statistics.stdev(accuracies):.4f} over {SEEDS} seeds, least {min(accuracies):.4f}",
    )


IMAGES = 6_400
"""The training images of the fast recipe in `fast`: 100 steps of 64."""
SEEDS = 10


def epochs() -> None:
    """The accuracy of the fast recipe on all images."""
    train_set, test_set = Images(train=True), Images(train=False)
    for count in (1, 4, 10):
        start = time.perf_counter()
        accuracy = learn(train_set, test_set, count, seed=0)[-1]["test_accuracy"]
        print(f"| recipe fast, epochs: {count} | {accuracy:.4f} | {time.perf_counter() - start:.0f} s |", flush=True)


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


TRAIN_FULL = (sys.executable, "scripts/train_full.py")


def besides() -> None:
    """The work of a run besides training: two epochs of the tutorial's recipe in a run folder."""
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
        patches.enter_context(patch.object(train_module, "load_data", lambda *_: (train_set, test_set, data)))
        for owner, name in ((parts, "fit"), (training_module, "evaluate")):
            patches.enter_context(timed(owner, name))
        for name in ("on_epoch", "on_steps"):
            patches.enter_context(timed(RunFolder, name))
        train_module.train(Settings(epochs=2, quiet=True, output=Path(folder) / "run"))
    forward = FORWARD * len(test_set) / 64
    arithmetic = forward / (forward + FLOPS * len(train_set) / 64)
    for what, names, more in (
        ("evaluation once an epoch", ("evaluate",), f"{arithmetic:.1%} of the arithmetic"),
        ("logs, images and checkpoints", ("on_epoch", "on_steps"), ""),
    ):
        share = sum(spent[name] for name in names) / spent["fit"]
        print(f"| share of a run: {what} | {share:.1%} | {more} |", flush=True)


KINDS = {
    "convolution, forward": ("aten::mkldnn_convolution",),
    "convolution, backward": ("aten::convolution_backward",),
    "pooling, forward": ("aten::max_pool2d_with_indices",),
    "pooling, backward": ("aten::max_pool2d_with_indices_backward", "aten::zero_", "aten::fill_"),
    "linear layers": ("aten::addmm", "aten::mm"),
    "casts and copies": ("aten::copy_",),
}


def profile() -> None:
    """The operations that take the time of a step, by PyTorch's profiler."""
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        step = our_steps(Images(train=True), 1, dtype)
        step()
        with torch.profiler.profile() as profiler:
            for _ in range(40):
                step()
        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        total = sum(times.values())
        shares = {kind: sum(times.get(key, 0) for key in keys) / total for kind, keys in KINDS.items()}
        shares["rest"] = 1 - sum(shares.values())
        for kind, share in shares.items():
            print(f"| share of a step, {name}: {kind} | {share:.1%} | {share * total / 40e3:.2f} ms |", flush=True)


def growth() -> None:
    """The time of a step against its images and of an epoch against its share of the data, and their slopes."""
    images = Images(train=True)
    sizes, shares = (16, 32, 64, 128, 256, 512, 1024), (10, 25, 50, 100)
    steps = [(batch, shortest(our_steps(images, 1, torch.bfloat16, batch), 0.5)) for batch in sizes]
    for batch, seconds in steps:
        print(f"| step of {batch} | {1e3 * seconds:.2f} ms | {1e6 * seconds / batch:.0f} µs an image |")
    print(f"| slope of a step's time on a log-log plot | {slope(steps):.2f} | wanted: ≤ 1 |")
    epochs = [
        (782 * percent // 100, elapsed(our_steps(images, 782 * percent // 100, torch.bfloat16))) for percent in shares
    ]
    for percent, (count, seconds) in zip(shares, epochs, strict=True):
        print(f"| {percent} % of an epoch | {seconds:.2f} s | {count} steps |")
    print(f"| slope of an epoch's time on a log-log plot | {slope(epochs):.2f} | wanted: ≤ 1 |")


def elapsed(function: Callable[[], object]) -> float:
    """The time of one call, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def row(what: str, ratio: Ratio, more: str = "") -> None:
    print(f"| {what} | {ratio} | {more} |", flush=True)


FIGURES: dict[str, Callable[[], None]] = {
    "steps": steps_per_second,
    "gemm": gemm_share,
    "input": input_epoch,
    "cache": cache,
    "decode": decode,
    "memory": memory,
    "fast": fast,
    "epochs": epochs,
    "start": start,
    "besides": besides,
    "profile": profile,
    "growth": growth,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(FIGURES)}; all if none is named")
    names = parser.parse_args().figures or list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error(f"FIGURE must be one of {', '.join(FIGURES)}, got {unknown[0]}")
    keep_freed_memory()  # as a training does; the tutorial's loop runs in a process of its own
    print(f"on {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| figure | ratio (half of the pairs; pairs) or value | |\n|---|---|---|", flush=True)
    for name in names:
        FIGURES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
