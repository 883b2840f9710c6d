"""Chapter 18: the output of a training: a progress bar, some lines, and a summary of the result at the end."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from reference.messages import counted, translated
from reference.run.settings import Settings
from reference.text import print_line, print_wrapped, printable
from reference.training import Progress, class_accuracies, confusion_entries, most_confused

LISTED = 10
"""The number of classes that are listed at the end of a training."""
PAIRS = 3
"""The number of pairs of confused classes that are listed."""
BAR = "{desc} {percentage:3.0f}%|{bar}| "
"""The progress bar, before the text that changes with each step."""


class Screen:
    """Prints the progress of a training.

    Args:
        settings: of the run; `quiet` prints only the result, `style` selects the lines.
        images: number of training images in an epoch.
        progress: where the training starts.
        dataset: the name of the data set.
    """

    def __init__(self, settings: Settings, images: int, progress: Progress, dataset: str) -> None:
        self.settings, self.images, self.dataset = settings, images, dataset
        self.bar = tqdm(disable=True)
        self.begun, self.first = time.monotonic(), self.done(progress)
        if self.tutorial and not settings.quiet:
            print_line(f"训练数据集的长度为：{images}")

    @property
    def tutorial(self) -> bool:
        """Whether the tutorial's own lines are printed."""
        return self.settings.style == "tutorial"

    def done(self, progress: Progress) -> int:
        """The number of images that the training has processed."""
        return progress.epoch * self.images + progress.seen

    def write(self, text: str, *, error: bool = False) -> None:
        """Print a line above the progress bar in one write, which no other output can split, and redraw the bar."""
        self.bar.write(f"{text}\n", file=sys.stderr if error else None, end="")

    def epoch(self, progress: Progress) -> None:
        """An epoch begins."""
        if self.tutorial and not self.settings.quiet:
            print_line(f"-------第 {progress.epoch + 1} 轮训练开始-------")
        self.bar = tqdm(
            desc=translated(f"epoch {progress.epoch + 1}/{self.settings.epochs}"),
            total=self.images,
            initial=progress.seen,
            leave=False,
            dynamic_ncols=True,
            bar_format=BAR,
            disable=True if self.settings.quiet else None,
        )

    def steps(self, progress: Progress, losses: dict[int, float]) -> None:
        """Some steps were completed."""
        accuracy = progress.right / max(1, progress.seen)
        for step, loss in losses.items():
            if step % self.settings.log_every == 0 and not self.settings.quiet:
                if self.tutorial:  # chapter 21, lines 2281 and 2282
                    self.write(f"{time.monotonic() - self.begun}")
                    self.write(f"训练次数：{step}, Loss: {loss}")
                else:
                    self.write(
                        translated(f"step {step:,}: train_loss {loss:.4f}, train accuracy {accuracy:.1%} in this epoch")
                    )
        if not self.bar.disable:
            epoch, run = self.left(progress)
            loss = f"{losses[max(losses)]:.3f}"
            self.bar.bar_format = BAR + translated(f"{epoch} left, run {run}, loss {loss}, accuracy {accuracy:.0%}")
        self.bar.update(progress.seen - self.bar.n)

    def left(self, progress: Progress) -> tuple[str, str]:
        """The time that the rest of this epoch and of the whole training takes at the pace so far, tests included."""
        done = self.done(progress)
        pace = (time.monotonic() - self.begun) / max(1, done - self.first)
        rests = self.images - progress.seen, self.settings.epochs * self.images - done
        epoch, run = (tqdm.format_interval(pace * rest) for rest in rests)
        return epoch, run

    def tested(self, progress: Progress) -> None:
        """An epoch was trained, tested and saved."""
        if self.settings.quiet:
            return
        metrics, confusion = progress.history[-1], progress.confusion
        if self.tutorial and confusion is not None:  # chapter 18, lines 1533 to 1540
            entries = confusion_entries(confusion)
            right, count = entries[entries[:, 0] == entries[:, 1], 2].sum(), int(entries[:, 2].sum())
            lines = (
                f"整体测试集上的Loss: {metrics['test_loss_sum']}",
                f"整体测试集上的正确率: {torch.true_divide(right, count).item()}",
                "模型已保存",
            )
        else:
            lines = (
                translated(
                    f"epoch {progress.epoch}/{self.settings.epochs}: loss {metrics['train_loss']:.4f}, test loss "
                    f"{metrics['test_loss']:.4f}, accuracy {metrics['test_accuracy']:.2%}, "
                    f"{metrics['images_per_second']:,.0f} images/s"
                ),
            )
        print("\n".join(lines) + "\n", end="", flush=True)  # one write, so that the message of a signal cannot split it

    def learned(self, confusion: Tensor, classes: tuple[str, ...]) -> None:
        """Print the least accurate classes and the most confused pairs at the end of the training."""
        if self.settings.quiet or self.tutorial:
            return
        shares = class_accuracies(confusion).tolist()
        order = sorted((share, number) for number, share in enumerate(shares) if share == share)
        print_line("accuracy per class, the least accurate first:")
        for share, number in order[:LISTED]:
            print(f"  {share:6.1%} {'█' * round(20 * share):20} {printable(classes[number])}")
        if len(order) > LISTED:
            print_line(f"  and {len(order) - LISTED:,} more classes: summary.json")
        for true, guess, count in most_confused(confusion, PAIRS):
            print_wrapped(f"most confused: {classes[true]} taken for {classes[guess]}, {counted(count, 'image')}")

    def next_commands(self, folder: Path) -> None:
        """Print three commands that the user can copy."""
        if self.settings.quiet or self.tutorial:
            return
        print_line("next:")
        for command, meaning in self.commands(folder):
            print(f"  {command}\n      {translated(meaning)}", flush=True)

    def commands(self, folder: Path) -> list[tuple[str, str]]:
        """The commands, and their meanings."""
        place, settings = quoted(folder), self.settings
        found = [
            (f"tensorboard --logdir {place}", "the curves, images and settings of this run"),
            (f"python scripts/predict.py IMAGE --checkpoint {place}", "the class of an image"),
        ]
        if settings.recipe == "fast":
            return [*found, (f"python scripts/export.py {place} --to onnx", "the network for other programs")]
        shapes = self.dataset == "shapes"
        meaning = "the same network to 99 % in one epoch" if shapes else "usually a higher accuracy in one epoch"
        data = f" --dataset {settings.dataset}" if settings.dataset != "auto" else ""
        if not shapes and settings.data_root != Path("data"):
            data += f" --data-root {quoted(settings.data_root)}"
        return [*found, (f"python scripts/train_full.py --recipe fast --epochs 1{data}", meaning)]


def quoted(path: Path) -> str:
    """A path quoted for a command line."""
    return shlex.quote(printable(path))


def outcome(summary: dict[str, Any], folder: Path) -> str:
    """The result of a finished training, in one line."""
    return (
        f"test accuracy {summary['test_accuracy']:.2%} after epoch {summary['epochs']} "
        f"(best {summary['best']['test_accuracy']:.2%}): {folder}"
    )
