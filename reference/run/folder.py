"""The folder of a run: its lock, its files, what `fit` reports to it, and how a training is restored from it."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.data.resident import Resident
from reference.device import random_states, set_random_states
from reference.distributed import Group
from reference.errors import InputError
from reference.files import atomic_write
from reference.run.parts import Plan
from reference.run.settings import Settings
from reference.tracking import Tracker, draw_confusion, draw_predictions, forget_after
from reference.training import Evaluation, Observer, Progress

SAMPLE_PICTURES = 64


@contextmanager
def locked(folder: Path, *, new: bool) -> Iterator[None]:
    """Hold the run folder against every other run; a new one is made.

    Raises:
        InputError: another run holds it, or a new run's folder is not empty.
    """

    def check_empty() -> None:
        if new and any(entry.name != "run.lock" for entry in folder.iterdir()):
            raise InputError(
                f"--output {folder} is not empty; choose another, or go on with the run in it: --resume {folder}"
            )

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"--output {folder} is a file; name a folder") from error
    lock = FileLock(folder / "run.lock")
    if not (folder / "run.lock").exists():  # a folder that is no run's is left as it was found
        check_empty()
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another run is using this folder; choose another --output") from error
    try:
        check_empty()
        yield
    finally:
        lock.release()


def restore(
    path: Path,
    plan: Plan,
    data: dict[str, Any],
    classes: tuple[str, ...],
) -> Progress:
    """Put a checkpoint's state into network, optimizer and random generators; return where the training stands.

    Raises:
        InputError: the checkpoint cannot be read, is of other data, or holds no training state.
    """
    content = load_checkpoint(path)
    state = content["training"]
    if content["class_names"] != list(classes) or state.get("data", {}).get("fingerprint") != data["fingerprint"]:
        raise InputError(f"{path} was trained on other data than what is here now; going on would mix them up")
    try:
        plan.network.load_state_dict(content["state_dict"])
        plan.optimizer.load_state_dict(state["optimizer"])
        if plan.scaled is not None:
            plan.scaled.load_state_dict(state["scale"])
        set_random_states(state["rng"], next(plan.network.parameters()).device)
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} holds no state to go on from ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, whole or not at all; paths become strings."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n").encode())


@dataclass
class RunFolder(Observer):
    """What `fit` reports, written to the run's folder and shown on the terminal; and the signals that stop it."""

    folder: Path
    settings: Settings
    plan: Plan
    train_set: Resident
    test_set: Resident
    data: dict[str, Any]
    progress: Progress
    group: Group = field(default_factory=Group)
    signal: int = 0
    handlers: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> "RunFolder":
        forget_after(self.folder, step=self.progress.step, epoch=self.progress.epoch)
        self.tracker = Tracker(self.folder)
        self.bar = tqdm(disable=True)
        self.write_metrics()
        if not (self.folder / "last.pt").exists():
            example = self.train_set.images[: self.settings.batch_size].to(next(self.plan.network.parameters()).device)
            self.tracker.graph(self.plan.network, example / 255)
            self.save()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.tracker.close()

    def on_signal(self, number: int, _: object) -> None:
        """The first signal asks for an end after this step; the second one is obeyed by the system at once."""
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        print("\nfinishing this step and saving; once more to stop at once", file=sys.stderr)

    def should_stop(self) -> bool:
        self.signal = self.group.largest(self.signal)
        return self.signal != 0

    def on_epoch_start(self, progress: Progress) -> None:
        self.bar = tqdm(
            desc=f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            total=len(self.train_set),
            initial=progress.seen,
            unit=" images",
            leave=False,
            disable=True if self.settings.quiet else None,
        )

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        for step, loss in losses.items():
            if step % self.settings.log_every == 0:
                self.tracker.scalars(step, train_loss=loss)
                if not self.settings.quiet:
                    self.bar.write(f"step {step:,}: train_loss {loss:.4f}")
        self.bar.set_postfix(loss=f"{losses[max(losses)]:.4f}", refresh=False)
        self.bar.update(progress.seen - self.bar.n)

    def on_epoch(self, progress: Progress, evaluation: Evaluation) -> None:
        self.bar.close()
        metrics = progress.history[-1]
        sample = slice(0, SAMPLE_PICTURES)
        pictures = (self.test_set.images[sample], self.test_set.targets[sample], evaluation.predictions[sample])
        step = progress.epoch - 1  # the tutorial counts its tests from 0
        self.tracker.scalars(
            step,
            test_loss=metrics["test_loss_sum"],
            test_loss_mean=metrics["test_loss"],
            test_accuracy=metrics["test_accuracy"],
        )
        self.tracker.picture("predictions", draw_predictions(*pictures, self.test_set.classes), step)
        self.tracker.picture("confusion", draw_confusion(evaluation.confusion, self.test_set.classes), step)
        if best_epoch(progress) is metrics:
            self.save("best.pt")
        if self.settings.keep_every and progress.epoch % self.settings.keep_every == 0:
            self.save(f"epoch-{progress.epoch:04d}.pt")
        self.save()
        self.write_metrics()
        if not self.settings.quiet:
            print(
                f"epoch {progress.epoch}/{self.settings.epochs}: train loss {metrics['train_loss']:.4f}, test loss "
                f"{metrics['test_loss']:.4f} (sum of batch means {metrics['test_loss_sum']:.2f}), test accuracy "
                f"{metrics['test_accuracy']:.2%}, {metrics['images_per_second']:,.0f} images/s"
            )

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint that the training can go on from; everything logged so far reaches the disk before it."""
        self.tracker.flush()
        save_checkpoint(
            self.folder / name,
            self.plan.network,
            self.train_set.classes,
            metrics=self.progress.history[-1] if self.progress.history else {},
            training={
                "optimizer": self.plan.optimizer.state_dict(),
                "progress": asdict(self.progress),
                "scale": self.plan.scaled and self.plan.scaled.state_dict(),
                "rng": random_states(next(self.plan.network.parameters()).device),
                "data": self.data,
            },
        )

    def write_metrics(self) -> None:
        """metrics.jsonl as the checkpoint has it: one line an epoch."""
        with atomic_write(self.folder / "metrics.jsonl") as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.progress.history).encode())

    def finish(self) -> dict[str, Any]:
        """Write and return the summary of a run whose last epoch is done."""
        confusion = self.progress.confusion
        assert confusion is not None, "a finished epoch leaves its confusion matrix"
        correct = confusion.diag() / confusion.sum(dim=1)
        summary = self.progress.history[-1] | {
            "epochs": self.progress.epoch,
            "best": best_epoch(self.progress),
            "class_accuracy": dict(zip(self.train_set.classes, correct.tolist(), strict=True)),
            "confusion": confusion.tolist(),
        }
        write_json(self.folder / "summary.json", summary)
        return summary


def best_epoch(progress: Progress) -> dict[str, Any]:
    """The metrics of the first epoch with the highest test accuracy."""
    return max(progress.history, key=lambda metrics: metrics["test_accuracy"])
