"""The numbers and images for the drawings of a report, computed by the implementations under test themselves.

An implementation may raise an error or never return: each drawing is computed in a thread with a time limit, and a
drawing that cannot be computed contains the reason instead.
"""

import base64
import io
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from spec.support.implementations import Implementation
from spec.support.reproduction import Trace

SECONDS = 10.0
"""The time limit for one drawing by one implementation, in seconds."""

# chapter 08, lines 428 to 437
INPUT = [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]
KERNEL = [[1, 2, 1], [0, 1, 0], [2, 1, 0]]

ACTIVATIONS = ("relu", "sigmoid", "tanh", "leaky_relu", "gelu", "silu")
POINTS = 49
"""Points of a curve from -4 to 4."""
LARGEST_MATRIX = 32
"""The largest number of classes for which a confusion matrix is drawn cell by cell."""


def drawings(implementations: Sequence[Implementation], tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All drawings of a report; a run of single chapters has the drawings of these chapters.

    Args:
        implementations: The implementations under test.
        tests: The tests of the run; their clauses determine the chapters.
    """
    chapters = {name[:2] for test in tests for name in test["clauses"]}
    found: dict[str, Any] = {}
    for name, chapter, draw in (
        ("transforms", "04", transforms),
        ("convolution", "08", convolution),
        ("pooling", "10", pooling),
        ("activations", "11", activations),
    ):
        if chapter in chapters:
            drawn = {i.id: limited(draw, i) for i in implementations}
            if drawn := {key: value for key, value in drawn.items() if value is not None}:
                found[name] = drawn
    return found


def limited(draw: Callable[[Callable[[str], Any]], Any], implementation: Implementation) -> Any:
    """One drawing by one implementation: its numbers, an error text, or None if it lacks the component."""
    trace = Trace()
    trace.on = False
    # outside of the time limit, because a component may have to be imported
    ready = {name: implementation.component(name, trace) for name in NEEDS[draw] if name in implementation.components}

    def component(name: str) -> Any:
        if name not in ready:
            raise LookupError(name)
        return ready[name]

    result: list[Any] = []

    def work() -> None:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                result.append(draw(component))
        except LookupError:
            result.append(None)
        except BaseException as error:  # the report is written for any error of an implementation
            result.append({"problem": f"{type(error).__name__}: {error}"[:300].removesuffix(": ")})

    thread = threading.Thread(target=copy_context().run, args=(work,), daemon=True)  # a component uses the current run
    thread.start()
    thread.join(SECONDS)
    return result[0] if result else {"problem": f"did not return within {SECONDS:g} s"}


def _matrix(value: Any) -> Any:
    return torch.as_tensor(value).detach().to(torch.float64).reshape(value.shape[-2:]).tolist()


def convolution(component: Callable[[str], Any]) -> dict[str, Any]:
    """Chapter 08: the documented input and kernel."""
    image, kernel = torch.tensor(INPUT).reshape(1, 1, 5, 5), torch.tensor(KERNEL).reshape(1, 1, 3, 3)
    conv2d = component("conv2d")
    try:
        output = conv2d(image, kernel)
    except (RuntimeError, TypeError):  # torch.compile and many files convolve floating-point numbers only
        output = conv2d(image.float(), kernel.float())
    return {"input": INPUT, "kernel": KERNEL, "output": _matrix(output)}


def pooling(component: Callable[[str], Any]) -> dict[str, Any]:
    """Chapter 10: a 3×3 window on the image of chapter 08, with and without `ceil_mode`."""
    image = torch.tensor(INPUT, dtype=torch.float32).reshape(1, 1, 5, 5)
    pool = component("max_pool2d")
    return {
        "input": INPUT,
        "window": 3,
        "floor": _matrix(pool(image, 3, ceil_mode=False)),
        "ceil": _matrix(pool(image, 3, ceil_mode=True)),
    }


def activations(component: Callable[[str], Any]) -> dict[str, Any] | None:
    """Chapter 11: values and derivatives from -4 to 4."""
    found = {}
    for name in ACTIVATIONS:
        x = torch.linspace(-4, 4, POINTS, requires_grad=True)
        try:
            y = component(name)(x)
        except LookupError:
            continue
        (slope,) = torch.autograd.grad(y.sum(), x)
        found[name] = {
            "x": _rounded(x), "values": _rounded(y), "slopes": _rounded(slope)
        }  # fmt: skip
    if not found:
        raise LookupError
    return found


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.detach().tolist()]


def drawn_image() -> Image.Image:
    """A house, a tree and a sun: 72 pixels wide and 48 high, with a different colour on every side."""
    image = Image.new("RGB", (72, 48), (150, 200, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 36, 72, 48), fill=(90, 160, 80))
    draw.ellipse((56, 4, 68, 16), fill=(250, 210, 60))
    draw.rectangle((12, 22, 34, 40), fill=(200, 90, 70))
    draw.polygon([(9, 22), (23, 10), (37, 22)], fill=(110, 60, 50))
    draw.rectangle((20, 30, 26, 40), fill=(70, 50, 40))
    draw.rectangle((49, 30, 52, 40), fill=(110, 70, 40))
    draw.ellipse((43, 18, 58, 33), fill=(40, 120, 60))
    return image


def transforms(component: Callable[[str], Any]) -> dict[str, Any]:
    """Chapters 03 and 04: the output of each transform for a drawn image; a tensor is shown as an image."""
    image = drawn_image()
    to_tensor = component("ToTensor")()
    tensor = to_tensor(image)
    normalized = component("Normalize")([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])(tensor)
    resize, crop = component("Resize"), component("RandomCrop")
    results = {
        "PIL image": image,
        "Resize(24)": resize(24)(image),
        "Resize((48, 48))": resize((48, 48))(image),
        "RandomCrop(32)": crop(32)(image),
        "RandomHorizontalFlip(p=1)": component("RandomHorizontalFlip")(p=1)(image),
        "ToTensor()": tensor,
        "Normalize(0.5, 0.5)": normalized,
    }
    return {name: _picture(result) for name, result in results.items()}


def _picture(result: Any) -> dict[str, Any]:
    """An image or tensor as PNG, with its size and the range of its numbers."""
    range_ = None
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu()
        range_ = [round(float(result.min()), 4), round(float(result.max()), 4)]
        pixels = (result.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        result = Image.fromarray(pixels.numpy())
    file = io.BytesIO()
    result.save(file, "PNG", optimize=True)
    return {"size": list(result.size), "range": range_, "png": base64.b64encode(file.getvalue()).decode()}


NEEDS: Mapping[Callable[..., Any], tuple[str, ...]] = {
    transforms: ("ToTensor", "Normalize", "Resize", "RandomCrop", "RandomHorizontalFlip"),
    convolution: ("conv2d",),
    pooling: ("max_pool2d",),
    activations: ACTIVATIONS,
}
"""The components that each drawing needs."""


def training_run(folder: Path) -> dict[str, Any]:
    """The curves and the confusion matrix of a training's folder.

    Args:
        folder: Written by `scripts/train_full.py`.

    Raises:
        OSError: metrics.jsonl or config.json cannot be read.
        ValueError: a file is not in the format of a training.
    """
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    names = ("epoch", "train_loss", "test_loss", "test_accuracy")
    epochs = [{name: json.loads(line)[name] for name in names} for line in lines if line]
    if not epochs:
        raise ValueError("metrics.jsonl is empty: the training has not finished an epoch")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    summary_file = folder / "summary.json"
    summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.exists() else {}
    classes = config["data"]["classes"]
    confusion = summary.get("confusion")
    wanted = ("dataset", "recipe", "epochs", "batch_size", "optimizer", "learning_rate", "seed")
    return {
        "name": folder.resolve().name,
        "settings": {name: config["settings"].get(name) for name in wanted},
        "device": config["device"],
        "finished": bool(summary),
        "epochs": epochs,
        "classes": classes if confusion and len(classes) <= LARGEST_MATRIX else [],
        "confusion": confusion if confusion and len(classes) <= LARGEST_MATRIX else None,
        "test_accuracy": summary.get("test_accuracy"),
    }
