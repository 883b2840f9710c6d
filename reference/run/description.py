"""Chapter 18: the model description of a run, its `README.md`: data, accuracy and commands."""

import re
import shlex
from pathlib import Path
from typing import Any

from reference.device import versions
from reference.messages import counted, translated
from reference.recipes import RECIPES
from reference.run.settings import Settings, flag
from reference.text import printable
from reference.training import Progress, class_accuracies, confusion_entries, most_confused

MOST_CLASSES = 50
"""Rows of the table of classes; if there are more classes, the least accurate ones are listed."""
Z = 1.959964
"""The quantile of the normal distribution for a two-sided interval of 95 %."""


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of `right` out of `count` images (Wilson, 1927).

    centre = (p + z²/2n) / (1 + z²/n),  half = z / (1 + z²/n) · sqrt(p(1 - p)/n + z²/4n²)
    """
    share, spread = right / count, Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def markdown(text: object) -> str:
    """`text` escaped for Markdown: one line, without links, tags or table borders."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$-])", r"\\\1", printable(text))


def description(
    settings: Settings, progress: Progress, data: dict[str, Any], folder: Path, device: str, parameters: int
) -> str:
    """The model description of a run after at least one epoch, in the chosen language."""
    metrics, confusion = progress.history[-1], progress.confusion
    assert confusion is not None, "a finished epoch leaves its confusion matrix"
    entries = confusion_entries(confusion)
    count = int(entries[:, 2].sum())
    right = int(entries[entries[:, 0] == entries[:, 1], 2].sum())
    low, high = interval(right, count)
    classes = data["classes"]
    lines = [
        f"# Ocean: {markdown(folder.name)}",
        "",
        translated(
            f"Test accuracy {metrics['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, "
            f"{counted(count, 'image')}) after epoch {progress.epoch} of {settings.epochs}."
        ),
        "",
    ]
    if settings.plots:
        titles = ("Curves of the training", "Confusion matrix", "Most confident mistakes", "Examples of the data")
        names = ("results", "confusion", "mistakes", "data")
        lines += [f"![{translated(title)}]({name}.png)" for title, name in zip(titles, names, strict=True)] + [""]
    lines += [f"## {translated('Data')}", ""]
    lines += [
        translated(
            f"Data set {data['dataset']}: {counted(data['train'], 'training image')}, "
            f"{counted(data['test'], 'test image')}, {counted(len(classes), 'class', 'classes')}."
        ),
        "",
        f"## {translated('Training')}",
        "",
        translated(f"Network Ocean, {parameters:,} parameters; recipe {settings.recipe}. The settings:"),
        "",
    ]
    shown = ("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "seed")
    shown += tuple(name for name in RECIPES["fast"] if name not in shown)
    lines += ["    " + " ".join(words(settings, name) for name in shown), ""]
    lines += [f"## {translated('Accuracy per class')}", ""]
    shares = class_accuracies(confusion).tolist()
    order = range(len(classes))
    if len(classes) > MOST_CLASSES:
        known = [number for number in order if shares[number] == shares[number]]
        order = sorted(known, key=lambda number: shares[number])[:MOST_CLASSES]
        lines += [translated(f"The {MOST_CLASSES} least accurate of {len(classes):,} classes:"), ""]
    sizes = [0] * len(classes)
    for number, _, size in entries.tolist():
        sizes[number] += size
    lines += [f"| {translated('class')} | {translated('test images')} | {translated('accuracy')} |", "|---|---|---|"]
    for number in order:
        share = f"{shares[number]:.1%}" if sizes[number] else "–"
        lines.append(f"| {markdown(classes[number])} | {sizes[number]:,} | {share} |")
    confused = most_confused(confusion, 5)
    if confused:
        lines += ["", translated("Most confused:"), ""]
        for true, guess, times in confused:
            pair = f"{markdown(classes[true])} → {markdown(classes[guess])}"
            lines.append(f"- {pair}: {times:,}")
    lines += ["", f"## {translated('Environment')}", ""]
    lines += ["- " + ", ".join(f"{name} {version}" for name, version in versions().items())]
    lines += [f"- {translated('device')}: {device}", "", f"## {translated('Use')}", ""]
    place = shlex.quote(printable(folder))
    longer = "" if settings.schedule == "falling" else f" --epochs {settings.epochs + 10}"
    lines += [
        "```bash",
        f"python scripts/predict.py IMAGE --checkpoint {shlex.quote(printable(folder / 'best.pt'))}",
        f"python scripts/train_full.py --resume {place}{longer}",
        f"python scripts/export.py {place} --to onnx",
        "```",
        "",
        translated("The probabilities order the classes; they are not calibrated."),
    ]
    return "\n".join(lines) + "\n"


def words(settings: Settings, name: str) -> str:
    """A setting as a command-line argument."""
    value = getattr(settings, name)
    return flag(name, value) if isinstance(value, bool) else f"{flag(name)} {value}"
