"""The folder of a run: its lock, its files, the progress that `fit` reports, and restoring a training."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.data.resident import Resident
from reference.device import describe_device, random_states, set_random_states
from reference.distributed import Group
from reference.errors import STOPPING, InputError, TrainingError, is_ignored
from reference.files import atomic_write, is_temporary
from reference.messages import translated
from reference.run.description import description
from reference.run.parts import Plan
from reference.run.plots import save_image, save_results
from reference.run.screen import Screen
from reference.run.settings import LOCK, Settings
from reference.text import json_text
from reference.tracking import (
    Tracker,
    draw_confusion,
    draw_examples,
    draw_kernels,
    draw_mistakes,
    draw_predictions,
    forget_after,
)
from reference.training import (
    Curve,
    Evaluation,
    Observer,
    Progress,
    class_accuracies,
    confusion_entries,
    most_confused,
    sparse_confusion,
)

SAMPLE_IMAGES = 16
DRAWING = 0.02
"""The largest share of the time of a run in which its curves are drawn again before its end."""
MATRIX = 256
"""The largest number of classes for which summary.json holds the whole confusion matrix."""
CONFUSED = 100
"""Pairs of classes that summary.json lists as the most confused ones."""


def new_folder(wanted: Path) -> Path:
    """Make the folder `wanted`, or `wanted-2`, `wanted-3`, … if it exists; return its name."""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):  # if two runs start in the same second, only one creates the folder
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


@contextmanager
def locked(folder: Path, *, new: bool) -> Iterator[None]:
    """Lock the run folder against every other run; a new one is created.

    Raises:
        InputError: another run holds it, or a new run's folder is not empty.
    """

    def check_empty() -> None:
        # a run that is killed before it writes config.json leaves its lock and an incomplete file
        if new and any(entry.name != LOCK and not is_temporary(entry) for entry in folder.iterdir()):
            raise InputError(
                f"--output {folder} is not empty; choose another, or resume the run in it: --resume {folder}"
            )

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"--output {folder} is a file; name a folder") from error
    lock = FileLock(folder / LOCK)
    if not (folder / LOCK).exists():  # a folder that does not belong to a run is left unchanged
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
    """Load a checkpoint's state into network, optimizer and random generators; return the progress of the training.

    Raises:
        InputError: the checkpoint cannot be read, is of other data, or holds no training state.
    """
    content = load_checkpoint(path)
    state = content["training"]
    if content["class_names"] != list(classes) or state.get("data", {}).get("fingerprint") != data["fingerprint"]:
        raise InputError(f"{path} was trained on other data than the data set here; resuming would mix them")
    try:
        plan.network.load_state_dict(content["state_dict"])
        plan.optimizer.load_state_dict(state["optimizer"])
        if plan.scaled is not None:
            plan.scaled.load_state_dict(state["scale"])
        set_random_states(state["rng"], next(plan.network.parameters()).device)
        progress = Progress(**state["progress"])
        progress.confusion = unpacked(progress.confusion, len(classes))
        if isinstance(progress.curve, dict):
            progress.curve = Curve(**progress.curve)
        return progress
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} holds no state to resume from ({error})") from error


def packed(confusion: Tensor | None) -> Any:
    """A confusion matrix as plain data for a checkpoint: a sparse one as its entries."""
    if confusion is None or not confusion.is_sparse:
        return confusion
    return {"entries": confusion_entries(confusion)}


def unpacked(stored: Any, classes: int) -> Tensor | None:
    """The confusion matrix that `packed` stored."""
    if not isinstance(stored, dict):
        return stored
    entries = stored["entries"]
    indices, counts = entries[:, :2].T, entries[:, 2]
    return sparse_confusion(indices, counts, classes, check_invariants=True).coalesce()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, completely or not at all; paths become strings, infinities and NaN `null`."""
    with atomic_write(path) as file:
        file.write((json_text(content, indent=2, default=str) + "\n").encode())


@dataclass
class RunFolder(Observer):
    """Writes the progress of `fit` to the run's folder, shows it on the terminal, and handles the stop signals."""

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
    drawn: tuple[int, float, float] = (0, -math.inf, 0.0)
    """The curves that were drawn last: the number of their epochs, the time when they were drawn, and its duration."""

    def __enter__(self) -> "RunFolder":
        self.place = self.identity()
        self.thread_hook, threading.excepthook = threading.excepthook, self.on_thread_error
        history = self.progress.history
        evaluated = history[-1]["step"] if history else 0
        forget_after(self.folder, step=self.progress.step, epoch=self.progress.epoch, evaluated=evaluated)
        self.tracker = Tracker(self.folder)
        self.screen = Screen(self.settings, len(self.train_set), self.progress, self.data["dataset"])
        self.write_metrics()
        if self.settings.plots and not (self.folder / "data.png").exists():  # also of a run begun with --no-plots
            examples = draw_examples(self.train_set.images, self.train_set.targets, self.train_set.classes)
            save_image(self.folder / "data.png", examples)
        if not (self.folder / "last.pt").exists():
            self.tracker.hyperparameters(
                tried(self.settings) | {"precision": self.precision}, ("test_accuracy", "test_loss_mean")
            )
            example = self.train_set.images[: self.settings.batch_size].to(next(self.plan.network.parameters()).device)
            self.tracker.graph(self.plan.network, example / 255)
            self.save()
        for number in STOPPING:
            if not is_ignored(number):
                self.handlers[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.screen.bar.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        try:
            with self.writing():
                if kind in (None, TrainingError):
                    self.draw_curves(now=True)
                self.tracker.close()
        except (InputError, OSError):
            if kind is None:  # otherwise the first error is reported
                raise
        finally:
            threading.excepthook = self.thread_hook

    def on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Suppress an error of TensorBoard's writing thread here; the next flush raises it again, in one line."""
        if not isinstance(error.exc_value, OSError):
            self.thread_hook(error)

    def identity(self) -> tuple[int, int] | None:
        """The identity of the folder, other than its name; None if it does not exist."""
        try:
            found = self.folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write into the folder; an error reports a missing folder in one line, and names the folder if a disk error
        names no file.

        Raises:
            InputError: the folder was deleted or renamed.
            OSError: for instance, the disk is full.
        """
        try:
            if self.identity() != self.place:
                raise FileNotFoundError(str(self.folder))
            yield
            if self.identity() != self.place:  # the folder was deleted while the files were written
                raise FileNotFoundError(str(self.folder))
        except OSError as error:
            if self.identity() != self.place:
                for events in self.folder.rglob(f"events.out.tfevents.*.{os.getpid()}.*"):
                    events.unlink(missing_ok=True)
                raise InputError(
                    f"{self.folder} was deleted or renamed while the training ran: stopped after step "
                    f"{self.progress.step:,}. A renamed folder holds the last checkpoint: --resume its new name"
                ) from error
            if error.strerror is None or error.filename is not None:  # the message names the file
                raise
            raise OSError(
                f"{self.folder}: the events for TensorBoard could not be written: {error.strerror}"
            ) from error

    def on_signal(self, number: int, _: object) -> None:
        """The first signal requests a stop after this step; the second signal has the system's default effect."""
        if self.signal:
            self.screen.bar.close()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        self.screen.write(translated("finishing this step and saving; once more to stop at once"), error=True)

    def should_stop(self) -> bool:
        self.signal = self.group.largest(self.signal)
        return self.signal != 0

    def on_epoch_start(self, progress: Progress) -> None:
        self.screen.epoch(progress)

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        with self.writing():
            for step, loss in losses.items():
                if step % self.settings.log_every == 0:
                    self.tracker.scalars(step, train_loss=loss)
                if (mean := progress.curve.add(loss)) is not None:
                    self.tracker.scalars(step, "train", loss=mean, learning_rate=self.plan.rate(step))
        self.screen.steps(progress, losses)

    def on_epoch(self, progress: Progress, evaluation: Evaluation) -> None:
        self.screen.bar.close()
        with self.writing():
            self.keep(progress, evaluation)
        self.screen.tested(progress)

    def keep(self, progress: Progress, evaluation: Evaluation) -> None:
        """Write the results of a completed epoch: events, images, checkpoints, metrics."""
        metrics, classes = progress.history[-1], self.test_set.classes
        sample = slice(0, SAMPLE_IMAGES)
        images, targets = self.test_set.images, self.test_set.targets
        shown = (images[sample], targets[sample], evaluation.predictions[sample])
        step = progress.epoch - 1  # the tutorial counts its tests from 0
        self.tracker.scalars(
            step,
            test_loss=metrics["test_loss_sum"],
            test_loss_mean=metrics["test_loss"],
            test_accuracy=metrics["test_accuracy"],
        )
        self.tracker.scalars(progress.step, "train", accuracy=metrics["train_accuracy"])
        self.tracker.scalars(progress.step, "test", loss=metrics["test_loss"], accuracy=metrics["test_accuracy"])
        confusion = draw_confusion(evaluation.confusion, classes)
        answered = (images, targets, evaluation.predictions, evaluation.confidences)
        # TensorBoard shows images 350 pixels wide, so these have few columns
        few = draw_mistakes(*answered, classes, most=12, columns=3)
        predicted = draw_predictions(*shown, classes, columns=4, letters=12)
        drawn = {"predictions": predicted, "confusion": confusion, "mistakes": few}
        if len(classes) <= 10 and int(evaluation.confusion.max()) < 1000:  # a cell of 26 pixels has room for 3 digits
            side = min(44, 260 // len(classes))  # and 90 pixels of names: it is not scaled down either
            drawn["confusion"] = draw_confusion(evaluation.confusion, classes, cell=side, letters=12)
        drawn["kernels"] = draw_kernels(next(self.plan.network.parameters()))
        for tag, image in drawn.items():
            self.tracker.image(tag, image, step)
        self.draw_curves()
        if self.settings.plots:
            save_image(self.folder / "confusion.png", confusion)
            save_image(self.folder / "mistakes.png", draw_mistakes(*answered, classes))
        self.write_description()
        names = ["best.pt"] if best_epoch(progress) is metrics else []
        if self.settings.keep_every and progress.epoch % self.settings.keep_every == 0:
            names.append(f"epoch-{progress.epoch:04d}.pt")
        self.save(*names, "last.pt")
        self.write_metrics()

    def draw_curves(self, *, now: bool = False) -> None:
        """Draw `results.png`, at the end (`now`) or if the last drawing took less than `DRAWING` of the time since."""
        begun, (epochs, at, seconds) = time.perf_counter(), self.drawn
        if self.settings.plots and epochs < self.progress.epoch and (now or seconds < DRAWING * (begun - at)):
            save_results(self.folder / "results.png", self.progress, self.plan.rate)
            self.drawn = self.progress.epoch, time.perf_counter(), time.perf_counter() - begun

    def save(self, *names: str) -> None:
        """Write a checkpoint that the training can resume from, `last.pt` or the files `names`, which are equal.

        Everything logged so far reaches the disk before it.
        """
        first, *others = names or ("last.pt",)
        with self.writing():
            self.tracker.flush()
            save_checkpoint(
                self.folder / first,
                self.plan.network,
                self.train_set.classes,
                metrics=self.progress.history[-1] if self.progress.history else {},
                training={
                    "optimizer": self.plan.optimizer.state_dict(),
                    "progress": asdict(self.progress) | {"confusion": packed(self.progress.confusion)},
                    "scale": self.plan.scaled and self.plan.scaled.state_dict(),
                    "rng": random_states(next(self.plan.network.parameters()).device),
                    "data": self.data,
                },
            )
            content = (self.folder / first).read_bytes() if others else b""
            for name in others:
                with atomic_write(self.folder / name) as file:
                    file.write(content)

    def write_description(self) -> None:
        """Write README.md: the model description of the run after its last epoch."""
        weights = next(self.plan.network.parameters())
        parameters = sum(parameter.numel() for parameter in self.plan.network.parameters())
        where = f"{translated(describe_device(weights.device))}, {self.precision}"
        data = self.data | {"train": len(self.train_set), "test": len(self.test_set)}
        data["classes"] = list(self.train_set.classes)
        text = description(self.settings, self.progress, data, self.folder, where, parameters)
        with atomic_write(self.folder / "README.md") as file:
            file.write(text.encode(errors="backslashreplace"))

    @property
    def precision(self) -> str:
        """The name of the dtype of the layers' arithmetic."""
        return str(self.plan.precision).removeprefix("torch.")

    def write_metrics(self) -> None:
        """Write metrics.jsonl from the checkpoint's history: one line per epoch."""
        with atomic_write(self.folder / "metrics.jsonl") as file:
            file.write("".join(json_text(line) + "\n" for line in self.progress.history).encode())

    def finish(self) -> dict[str, Any]:
        """Write and return the summary of a run after its last epoch."""
        confusion = self.progress.confusion
        assert confusion is not None, "a finished epoch leaves its confusion matrix"
        classes = self.train_set.classes
        confused = most_confused(confusion, CONFUSED)
        summary = self.progress.history[-1] | {
            "epochs": self.progress.epoch,
            "best": best_epoch(self.progress),
            "class_accuracy": dict(zip(classes, class_accuracies(confusion).tolist(), strict=True)),
            "confusion": confusion.tolist() if len(classes) <= MATRIX else None,
            "most_confused": [{"is": classes[i], "taken_for": classes[j], "count": n} for i, j, n in confused],
        }
        write_json(self.folder / "summary.json", summary)
        return summary


def tried(settings: Settings) -> dict[str, Any]:
    """The settings that a user typically varies between runs."""
    names = ("dataset", "recipe", "epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay")
    names += ("schedule", "whiten", "shuffle", "mirror", "shift", "impl", "seed")
    return {name: getattr(settings, name) for name in names}


def best_epoch(progress: Progress) -> dict[str, Any]:
    """The metrics of the first epoch with the highest test accuracy."""
    return max(progress.history, key=lambda metrics: metrics["test_accuracy"])
