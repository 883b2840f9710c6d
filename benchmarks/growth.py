"""The time of the project's work as a function of its size: `python -m benchmarks.growth [CURVE …]`.

Each curve is drawn on logarithmic axes, with a line of linear growth through its last point. Its slope is the exponent
p of the best-fitting power law, time ~ size^p; nothing may grow faster than its size.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import nn

from benchmarks.pairs import shortest
from benchmarks.training.loops import CPU, Images, our_steps
from benchmarks.training.run import train_module
from reference.data.image_tree import ImageTree
from reference.data.resident import Resident, ResidentLoader
from reference.device import choose_precision, keep_freed_memory
from reference.models import Ocean
from reference.nn.convolution import conv2d
from reference.run import RunFolder, Settings
from reference.training import evaluate
from spec.report import document, page

ROOT = Path(__file__).parents[1]
STEEPEST = 1.1
"""The largest wanted slope: linear, and a tenth for caches that a small size fits into and a large one does not."""

Points = list[tuple[float, float]]
"""(size, seconds) for each size."""


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent p of the best-fitting power law time ~ size^p, by least squares on logarithms."""
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)


def elapsed(function: Callable[[], object]) -> float:
    """The time of one call, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def batch() -> Points:
    """A training step of the tutorial's recipe against the images in it."""
    images, precision = Images(train=True), choose_precision("auto", CPU)
    return [(size, shortest(our_steps(images, 1, precision, size), 0.5)) for size in (16, 32, 64, 128, 256, 512, 1024)]


def data() -> Points:
    """An epoch of the tutorial's recipe, without evaluation, against its training images."""
    images, precision = Images(train=True), choose_precision("auto", CPU)
    return [
        (size, elapsed(our_steps(images, size // 64, precision))) for size in (3_200, 6_400, 12_800, 25_600, 49_984)
    ]


def convolution(channels: int, size: int) -> float:
    """Forward and backward of the reference's 5×5 convolution of 16 images of `size` × `size` pixels, in seconds."""
    x = torch.randn(16, channels, size, size, requires_grad=True)
    w = torch.randn(channels, channels, 5, 5, requires_grad=True)
    upstream = torch.randn(16, channels, size, size)
    return shortest(lambda: torch.autograd.grad(conv2d(x, w, padding=2), (x, w), upstream), 0.3)


def pixels() -> Points:
    """The reference's convolution, forward and backward, against the pixels of an image."""
    return [(size**2, convolution(32, size)) for size in (8, 16, 32, 64, 128)]


def channels() -> Points:
    """The reference's convolution, forward and backward, against input channels × output channels."""
    return [(count**2, convolution(count, 16)) for count in (16, 32, 64, 128, 256)]


class Classes(Resident):
    """Random images of `count` classes."""

    def __init__(self, count: int, images: int = 2_000) -> None:
        self.images = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
        self.targets = torch.arange(images) % count
        self.classes = tuple(f"class {number}" for number in range(count))


def evaluation() -> Points:
    """The evaluation of 2,000 images, with its confusion matrix, against the classes."""

    def seconds(count: int) -> float:
        network, loader = Ocean(count), ResidentLoader(Classes(count), 64)
        return shortest(lambda: evaluate(network, nn.CrossEntropyLoss(), loader), 0.5)

    return [(count, seconds(count)) for count in (10, 100, 1_000, 10_000)]


def folder() -> Points:
    """What a run writes after an epoch (events, images, checkpoints, summary) against the classes."""

    def seconds(count: int) -> float:
        spent = []
        written = RunFolder.on_epoch

        def on_epoch(*arguments: Any) -> None:
            spent.append(elapsed(lambda: written(*arguments)))

        images = Classes(count)
        loaded = (images, images, {"dataset": "images", "fingerprint": ""})
        with (
            tempfile.TemporaryDirectory() as place,
            patch.object(train_module, "load_data", lambda *_, **__: loaded),
            patch.object(RunFolder, "on_epoch", on_epoch),
        ):
            train_module.train(Settings(epochs=3, quiet=True, output=Path(place) / "run"))
        return min(spent)

    return [(count, seconds(count)) for count in (10, 100, 1_000, 10_000)]


def tree() -> Points:
    """`ImageTree`, which lists, reads and decodes files, against the files: a class is a link to the same 1,000 files.

    A million entries need 1,000 files on the disk; each image is decoded to one pixel, so that memory suffices.
    """

    def seconds(classes: int) -> float:
        with tempfile.TemporaryDirectory() as place:
            root, files = Path(place, "tree"), Path(place, "files")
            files.mkdir()
            (root / "train").mkdir(parents=True)
            for number in range(1_000):
                Image.new("RGB", (1, 1), (number % 256, number // 256, 0)).save(files / f"{number}.png")
            for number in range(classes):
                (root / "train" / f"{number}").symlink_to(files, target_is_directory=True)
            return elapsed(lambda: ImageTree(root, progress=False, size=(1, 1)))

    return [(1_000 * classes, seconds(classes)) for classes in (1, 10, 100, 1_000)]


def report() -> Points:
    """`report.json` and the page of a report against its tests: those of chapter 12's linear layers, repeated."""
    with tempfile.TemporaryDirectory() as place:
        words = ["-m", "pytest", "spec/test_12_linear.py", "--impl", "torch", "-q", "--report", place]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        content = json.loads(Path(place, "report.json").read_text(encoding="utf-8"))
    tests = content["tests"]

    def seconds(count: int) -> float:
        repeated = [
            test | {"id": f"{document.function_of(test['id'])}[{number}-{turn}]"}
            for turn in range(-(-count // len(tests)))
            for number, test in enumerate(tests)
        ]
        larger = content | {"tests": repeated[:count]}
        return elapsed(lambda: (document.text(larger), page.render(larger)))

    return [(count, seconds(count)) for count in (1_000, 4_000, 16_000, 64_000)]


CURVES: dict[str, Callable[[], Points]] = {
    made.__name__: made for made in (batch, data, pixels, channels, evaluation, folder, tree, report)
}


def draw(path: Path, title: str, points: Points) -> None:
    """Draw a curve into an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="size", ylabel="seconds")
    axes.set_title(title, fontsize=10)
    (size, seconds), (smallest, _) = points[-1], points[0]
    axes.plot((smallest, size), (seconds * smallest / size, seconds), "--", color="gray", label="linear growth")
    axes.plot(*zip(*points, strict=True), "o", label=f"measured, slope {slope(points):.2f}")
    axes.legend()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=f"{', '.join(CURVES)}; all if none is named")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw each curve into DIR as SVG")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.curves if name not in CURVES]:
        parser.error(f"CURVE must be one of {', '.join(CURVES)}, got {unknown[0]}")
    if chosen.plots is not None:
        chosen.plots.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()  # as in a training
    os.chdir(ROOT)
    print(f"on {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| time of | slope | wanted | from | to |\n|---|---|---|---|---|", flush=True)
    steep = []
    for name in chosen.curves or CURVES:
        points, title = CURVES[name](), str(CURVES[name].__doc__).partition("\n")[0]
        steep += [name] if slope(points) > STEEPEST else []
        ends = " | ".join(f"{size:,}: {seconds:.3g} s" for size, seconds in (points[0], points[-1]))
        missed = ", **missed**" if name in steep else ""
        print(f"| {title} | {slope(points):.2f} | ≤ {STEEPEST}{missed} | {ends} |", flush=True)
        if chosen.plots is not None:
            draw(chosen.plots / f"{name}.svg", title, points)
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
