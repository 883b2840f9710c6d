"""Chapter 18: the complete training: `fit` trains all epochs, `train_epoch` is the loop, `evaluate` is the test."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference.distributed import Group
from reference.errors import TrainingError


@dataclass
class Curve:
    """The training loss by step, for drawings: the mean loss of each `every` steps, in order.

    Beyond `MOST` points, neighbouring points are merged and `every` is doubled, so that the curve of any training is
    short.

    Attributes:
        losses: the points; point `i` is the mean of the steps `every * i + 1` to `every * (i + 1)`.
        every: number of steps of a point.
        total: the sum of the losses after the last point.
        count: their number.
    """

    MOST: ClassVar[int] = 512

    losses: list[float] = field(default_factory=list)
    every: int = 1
    total: float = 0.0
    count: int = 0

    def add(self, loss: float) -> float | None:
        """Add the loss of one more step; if it completes a point, return the mean loss of this point."""
        self.total, self.count = self.total + loss, self.count + 1
        if self.count < self.every:
            return None
        mean = self.total / self.count
        self.losses.append(mean)
        self.total, self.count = 0.0, 0
        if len(self.losses) == self.MOST:
            pairs = zip(self.losses[::2], self.losses[1::2], strict=True)
            self.losses, self.every = [(first + second) / 2 for first, second in pairs], 2 * self.every
        return mean


@dataclass
class Progress:
    """The progress of a training; with weights, optimizer and random generators it is the state to resume from.

    Attributes:
        epoch: number of completed epochs: trained and evaluated.
        batch: batches trained in the current epoch; all of them while it is being evaluated.
        step: total number of optimizer steps.
        loss_sum: the sum over the current epoch of each batch's loss times its number of images.
        seen: images in `loss_sum`.
        right: images in `seen` that the network classified correctly in the step that trained on them.
        order: the train loader's generator at the start of the current epoch: it draws the epoch's order again.
        history: one dictionary of metrics for each completed epoch.
        confusion: the confusion matrix after the last of them.
        curve: the training loss by step; empty unless an observer keeps it.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seen: int = 0
    right: int = 0
    order: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    confusion: Tensor | None = None
    curve: Curve = field(default_factory=Curve)


@dataclass(frozen=True)
class Evaluation:
    """The results of a network on a test set.

    Attributes:
        loss: the mean loss per image.
        loss_sum: the sum of the batches' mean losses, which the tutorial prints as the loss on the whole test set.
        accuracy: the share of images with the highest score for the right class.
        confusion: `confusion[i, j]` images of class `i` were predicted as `j`; sparse (COO) above `DENSE` classes.
        predictions: the class with the highest score, image by image.
        confidences: its softmax probability, image by image.
    """

    loss: float
    loss_sum: float
    accuracy: float
    confusion: Int[Tensor, "classes classes"]
    predictions: Int[Tensor, "n"]
    confidences: Float[Tensor, "n"]


@runtime_checkable
class TakesSteps(Protocol):
    """The interface of an optimizer that `fit` uses, common to `torch.optim` and `reference.optim`."""

    def zero_grad(self) -> None: ...
    def step(self) -> Any: ...


class Observer:
    """Base class of observers of a training, such as a progress bar, a log or a run folder. It ignores all events."""

    def on_epoch_start(self, progress: Progress) -> None:
        """Called when an epoch begins, or is resumed after an interruption."""

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        """Called after steps, with the loss of each by its number; on an accelerator, for several steps together."""

    def on_epoch(self, progress: Progress, evaluation: Evaluation) -> None:
        """Called after an epoch was trained and evaluated; its metrics are `progress.history[-1]`."""

    def should_stop(self) -> bool:
        """Called after every step and every evaluated batch; True stops the training, which can be resumed."""
        return False


DENSE = 1000
"""Largest number of classes with a dense confusion matrix; for more it would take gigabytes of zeros."""

Batches = Iterable[tuple[Tensor, Tensor]]


def fit(
    network: nn.Module,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    optimizer: TakesSteps,
    train_loader: Batches,
    test_loader: Batches,
    *,
    epochs: int,
    progress: Progress | None = None,
    observer: Observer | None = None,
    precision: torch.dtype = torch.float32,
    before_step: Callable[[int], None] | None = None,
    loss_scale: Tensor | None = None,
    group: Group | None = None,
) -> Progress:
    """Train `network` for `epochs` epochs, evaluating it after each; resume from `progress`.

    Args:
        network: trained in place, on the device of its parameters.
        loss_function: of the scores `[b, classes]` and the targets `[b]`; the mean over the batch.
        optimizer: optimizes the network's parameters.
        train_loader: an epoch of batches `(images, targets)`; its `generator`, if it has one, draws the epoch's order.
        test_loader: the batches to evaluate on.
        epochs: total number of epochs, including completed ones.
        progress: the progress of an interrupted training; it is updated in place. None starts from the beginning.
        observer: notified of steps and epochs, and asked whether to stop.
        precision: dtype of the network's arithmetic; its parameters, the loss and the optimizer stay in float32.
        before_step: called with the number of each step, from 0, before the optimizer makes it; such as a schedule.
        loss_scale: factor of the gradients, for an optimizer that divides them again (`scaling.py`).
        group: the processes that train together, each with the whole data; None means a single process.

    Returns:
        `progress`; unfinished (`progress.epoch < epochs`) if the observer stopped it.

    Raises:
        TrainingError: a loss is infinite or NaN; the message names the step.
    """
    progress, observer, group = progress or Progress(), observer or Observer(), group or Group()
    parallel = group.parallel(network)
    generator = getattr(train_loader, "generator", None)
    while progress.epoch < epochs:
        if generator is not None:
            if progress.order is None:
                progress.order = generator.get_state()
            generator.set_state(progress.order)
        observer.on_epoch_start(progress)
        begun, seen_before = time.perf_counter(), progress.seen
        steps = train_epoch(
            parallel, loss_function, optimizer, train_loader, progress, precision, before_step, loss_scale, group
        )
        if not watched(steps, progress, observer, waits=next(network.parameters()).device.type != "cpu"):
            return progress
        seconds = time.perf_counter() - begun
        if progress.seen == 0:
            raise ValueError("fit: train_loader has no batches, there is nothing to learn from")

        evaluation = evaluate(
            network, loss_function, test_loader, should_stop=observer.should_stop, precision=precision, group=group
        )
        if evaluation is None:
            return progress
        end_epoch(progress, evaluation, (progress.seen - seen_before) / seconds)
        if generator is not None:
            progress.order = generator.get_state()
        observer.on_epoch(progress, evaluation)
    return progress


def train_epoch(
    network: nn.Module,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    optimizer: TakesSteps,
    loader: Batches,
    progress: Progress,
    precision: torch.dtype,
    before_step: Callable[[int], None] | None,
    loss_scale: Tensor | None,
    group: Group,
) -> Iterator[tuple[int, Tensor, int]]:
    """The tutorial's loop: make the remaining steps of an epoch; arguments as of `fit`.

    Yields:
        After each step its number; its loss and the number of images that it classified correctly, as one tensor on
            the device; and the images of its batch.
    """
    device = next(network.parameters()).device
    network.train()
    for images, targets in islice(loader, progress.batch, None):
        # before the forward pass: a compiled network may reuse the memory of the previous gradients
        optimizer.zero_grad()
        scores = compute(network, group.part(images).to(device), precision)
        loss = group.weighted_loss(loss_function, scores, targets.to(device))
        loss.backward(loss_scale)
        if before_step is not None:
            before_step(progress.step)
        optimizer.step()
        progress.batch += 1
        progress.step += 1
        with torch.no_grad():
            right = (scores.argmax(dim=1) == group.part(targets).to(device)).sum() * group.size
            dtype = torch.promote_types(loss.dtype, torch.float32)  # counts of images remain exact
            outcome = group.mean(torch.stack([loss.detach().to(dtype), right.to(dtype)]))
        yield progress.step, outcome, len(targets)


def watched(steps: Iterable[tuple[int, Tensor, int]], progress: Progress, observer: Observer, *, waits: bool) -> bool:
    """Run the steps, report their losses, and check after each whether to stop; return False if it stopped.

    Reading a loss waits for the device: nothing on the CPU; on an accelerator, where it `waits`, a stall in every step,
    so that the losses of a hundred steps are read together.
    """
    pending: list[tuple[int, Tensor, int]] = []
    for step in steps:
        pending.append(step)
        stop = observer.should_stop()
        if not waits or stop or progress.step % 100 == 0:
            report_losses(progress, pending, observer)
        if stop:
            return False
    report_losses(progress, pending, observer)
    return True


def end_epoch(progress: Progress, evaluation: Evaluation, images_per_second: float) -> None:
    """Count an epoch that is trained and evaluated, and append its metrics to the history.

    Raises:
        TrainingError: the test loss is infinite or NaN.
    """
    if not math.isfinite(evaluation.loss):
        raise TrainingError(f"the test loss after step {progress.step} is {evaluation.loss}")
    progress.epoch += 1
    progress.history.append(
        {
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.right / progress.seen,
            "test_loss": evaluation.loss,
            "test_loss_sum": evaluation.loss_sum,
            "test_accuracy": evaluation.accuracy,
            "images_per_second": images_per_second,
        }
    )
    progress.batch, progress.loss_sum, progress.seen, progress.right = 0, 0.0, 0, 0
    progress.confusion = evaluation.confusion


def compute(network: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    """The scores of `images`; a `precision` below float32 applies to convolutions and matrix products, by autocast."""
    if precision == torch.float32:
        return network(images)
    with torch.autocast(images.device.type, dtype=precision):
        return network(images).float()


def report_losses(progress: Progress, pending: list[tuple[int, Tensor, int]], observer: Observer) -> None:
    """Copy the outcomes of the pending steps `(step, (loss, right), images)` to the host in one transfer; report them.

    Raises:
        TrainingError: one of them is not finite.
    """
    if not pending:
        return
    outcomes = torch.stack([outcome for _, outcome, _ in pending]).tolist()
    for (step, _, images), (loss, right) in zip(pending, outcomes, strict=True):
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of step {step} is {loss}")
        progress.loss_sum += loss * images
        progress.seen += images
        progress.right += round(right)
    observer.on_steps(progress, {step: loss for (step, _, _), (loss, _) in zip(pending, outcomes, strict=True)})
    pending.clear()


def evaluate(
    network: nn.Module,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    loader: Batches,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    precision: torch.dtype = torch.float32,
    group: Group | None = None,
) -> Evaluation | None:
    """Evaluate `network`, computing in `precision`, on every batch of `loader`, without gradients.

    The processes of a `group` compute the batches alternately; every process returns the same result.

    Returns:
        The evaluation, or None if `should_stop` ended it early.

    Raises:
        ValueError: `loader` has no batch.
    """
    group = group or Group()
    device = next(network.parameters()).device
    network.eval()
    losses, predictions, confidences, labels, classes = [], [], [], [], 0
    with torch.no_grad():
        for number, (images, targets) in enumerate(loader):
            turn = number % group.size
            if turn == 0 and should_stop():
                return None
            targets = targets.to(device)
            labels.append(targets)
            if turn != group.rank:
                continue
            scores = compute(network, images.to(device), precision)
            losses.append(loss_function(scores, targets))
            predictions.append(scores.argmax(dim=1))
            confidences.append(scores.float().softmax(dim=1).amax(dim=1))
            classes = scores.shape[1]
    if not labels:
        raise ValueError("evaluate: the loader has no batches, and a mean over nothing means nothing")
    sizes = torch.tensor([len(batch) for batch in labels], dtype=torch.float64, device="cpu")
    batch_losses = torch.zeros_like(sizes)
    all_predictions = [torch.zeros_like(batch) for batch in labels]
    all_confidences = [torch.zeros(len(batch), device=device) for batch in labels]
    if losses:
        batch_losses[group.rank :: group.size] = torch.stack(losses).cpu().double()
        all_predictions[group.rank :: group.size] = predictions
        all_confidences[group.rank :: group.size] = confidences
    taken_for, truth = torch.cat(all_predictions).cpu(), torch.cat(labels).cpu()
    sure = torch.cat(all_confidences).cpu()
    group.add_up(batch_losses)  # the other processes have zeros in these positions, so no sum is rounded
    group.add_up(taken_for)
    group.add_up(sure)
    return Evaluation(
        loss=float((batch_losses * sizes).sum() / sizes.sum()),
        loss_sum=float(batch_losses.sum()),
        accuracy=float((taken_for == truth).double().mean()),
        confusion=confusion_matrix(truth, taken_for, group.largest(classes)),
        predictions=taken_for,
        confidences=sure,
    )


def confusion_matrix(
    targets: Int[Tensor, "n"], predictions: Int[Tensor, "n"], classes: int
) -> Int[Tensor, "classes classes"]:
    """The number of images of each class (row) with each prediction (column): dense up to `DENSE` classes, else sparse.

    Args:
        targets: The class of each image.
        predictions: The predicted class of each image.
        classes: The number of classes.
    """
    places = targets * classes + predictions
    if classes <= DENSE:
        return torch.bincount(places, minlength=classes**2).reshape(classes, classes)
    different, counts = places.unique(return_counts=True)
    indices = torch.stack([different // classes, different % classes])
    return sparse_confusion(indices, counts, classes, check_invariants=False, is_coalesced=True)


def sparse_confusion(indices: Int[Tensor, "2 n"], counts: Int[Tensor, "n"], classes: int, **options: Any) -> Tensor:
    """A sparse confusion matrix, on the device of `counts`.

    PyTorch 2.11 warns that nobody chose whether it checks the indices, even if `check_invariants` is given.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
        return torch.sparse_coo_tensor(indices, counts, (classes, classes), device=counts.device, **options)


def confusion_entries(confusion: Int[Tensor, "classes classes"]) -> Int[Tensor, "entries 3"]:
    """The nonzero entries of a confusion matrix as rows (class, predicted class, count), in their order."""
    sparse = (confusion if confusion.is_sparse else confusion.to_sparse()).coalesce()
    return torch.cat([sparse.indices(), sparse.values()[None]]).T


def most_confused(confusion: Int[Tensor, "classes classes"], limit: int) -> list[tuple[int, int, int]]:
    """The `limit` pairs of different classes with the highest counts, as (class, predicted class, count).

    The highest count comes first; equal counts are in the order of the classes.
    """
    entries = confusion_entries(confusion)
    wrong = entries[entries[:, 0] != entries[:, 1]]
    best = wrong[:, 2].sort(descending=True, stable=True).indices[:limit]
    return [(row, column, count) for row, column, count in wrong[best].tolist()]


def class_accuracies(confusion: Int[Tensor, "classes classes"]) -> Float[Tensor, "classes"]:
    """The share of each class's images that were classified correctly, in float64; NaN for a class without images."""
    rows, columns, counts = confusion_entries(confusion).unbind(dim=1)
    right = torch.zeros(len(confusion), dtype=torch.float64, device="cpu")
    totals = right.clone().index_add_(0, rows, counts.double())
    right.index_add_(0, rows[rows == columns], counts[rows == columns].double())
    return right / totals
