"""Chapter 18: the images in the folder of a run: `results.png`, `confusion.png`, `mistakes.png` and `data.png`.

Matplotlib draws the curves. It is imported when the first curves are drawn, with a canvas that needs no display.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from PIL import Image

from reference.errors import InputError
from reference.files import atomic_write
from reference.fonts import font_file, legible
from reference.training import Progress

BLUE, VERMILION, GREY = "#0072b2", "#d55e00", "#5a5a5a"
"""Colours that people of every kind of colour vision tell apart (Okabe and Ito, 2008)."""


def check_plots() -> None:
    """Raise InputError before a training if its curves cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise InputError("results.png needs Matplotlib: python -m pip install matplotlib; or leave it out: --no-plots")


def save_image(path: Path, image: Image.Image) -> None:
    """Write `image` as a PNG file, completely or not at all."""
    with atomic_write(path) as file:
        image.save(file, "png")


def save_results(path: Path, progress: Progress, rate: Callable[[int], float]) -> None:
    """Write the curves of a training, by step: losses, accuracies and learning rate, side by side.

    Args:
        path: the PNG file: written completely or not at all.
        progress: the progress of a training of at least one epoch.
        rate: the learning rate of a step, counted from 1.
    """
    with atomic_write(path) as file:
        draw_results(file, progress, rate)


def draw_results(file: IO[bytes], progress: Progress, rate: Callable[[int], float]) -> None:
    """Draw the curves of `save_results` into an open file."""
    log = logging.getLogger("matplotlib")  # Matplotlib logs messages about its font cache, which users do not need
    log.setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    history, curve = progress.history, progress.curve
    steps = [line["step"] for line in history]
    words = {text: legible(text, 12) for text in ("loss", "accuracy", "learning rate", "train", "test", "step")}
    named = font_file("".join(words.values()))
    fonts = {"fontproperties": FontProperties(fname=str(named))} if named else {}
    figure = Figure(figsize=(11, 3.3), dpi=100)
    # a layout engine would draw twice
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.14, top=0.91, wspace=0.18)
    FigureCanvasAgg(figure)
    loss, accuracy, learning = figure.subplots(1, 3)

    def lines(axes: Any, part: str, x: Sequence[float], y: Sequence[float]) -> None:
        style: dict[str, Any] = {"color": BLUE, "linewidth": 1.4} if part == "train" else {"color": VERMILION}
        if len(x) <= 40:
            style |= {"marker": "o" if part == "train" else "s", "markersize": 4}
        axes.plot(x, y, label=words[part], linestyle="-" if part == "train" else "--", **style)

    ends = [curve.every * (number + 1) for number in range(len(curve.losses))]
    lines(loss, "train", ends or steps, curve.losses if ends else [line["train_loss"] for line in history])
    lines(loss, "test", steps, [line["test_loss"] for line in history])
    if all("train_accuracy" in line for line in history):  # a run of an earlier version has no curve
        lines(accuracy, "train", steps, [line["train_accuracy"] for line in history])
    lines(accuracy, "test", steps, [line["test_accuracy"] for line in history])
    accuracy.set_ylim(0, 1.02)
    accuracy.yaxis.set_major_formatter("{x:.0%}")
    shown = sorted({max(1, round(steps[-1] * part / 200)) for part in range(201)})
    learning.plot(shown, [rate(step) for step in shown], color=GREY)
    learning.set_ylim(bottom=0)
    for axes, title in ((loss, "loss"), (accuracy, "accuracy"), (learning, "learning rate")):
        axes.set_title(words[title], **fonts)
        axes.set_xlabel(words["step"], **fonts)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    for axes in (loss, accuracy):
        axes.legend(prop=fonts.get("fontproperties"))
    figure.savefig(file, format="png")
