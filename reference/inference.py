"""Chapter 20: predicting the class of an image with a trained network, with probabilities.

The steps are the tutorial's: convert to RGB, resize to 32×32, scale to 0…1, add the batch dimension, evaluation mode,
no gradients. The softmax of the scores sums to one and orders the classes; it is not calibrated: among the answers with
probability 0.8, the share of right ones may differ from 80 %.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from reference.data.images import open_image, printable
from reference.data.labeled_folder import list_images
from reference.errors import InputError
from reference.messages import counted
from reference.tracking import draw_predictions


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        image: the file; or the folder, if it contains no image.
        classes: (name, probability) from the most to the least probable, `top_k` of them; empty after an error.
        error: the reason why there is no answer, or None.
        scores: the network's scores of all classes (logits), `[classes]`, float64; None after an error.
    """

    image: Path
    classes: list[tuple[str, float]]
    error: str | None = None
    scores: Tensor | None = field(default=None, compare=False)  # comparing tensors gives no single truth value


def predict(
    network: nn.Module,
    class_names: Sequence[str],
    images: Path | str | Iterable[Path | str],
    *,
    top_k: int = 3,
    batch_size: int = 64,
    size: tuple[int, int] = (32, 32),
) -> Iterator[Prediction]:
    """Predict the class of each image, in order, `batch_size` at a time; only one batch is in memory.

    Args:
        network: gives `len(class_names)` scores per image. It predicts in evaluation mode; whenever control returns to
            the caller, every layer is in its original mode.
        class_names: in the order of the scores, as in a checkpoint.
        images: regular files that `open_image` reads, of up to 20,000×20,000 pixels; a folder means the images in it
            and in its sub-folders (`images_in`). The paths are consumed batch by batch.
        top_k: number of classes to name; all of them if there are fewer.
        batch_size: images computed together; it does not change the answers beyond rounding.
        size: height and width the network was trained on.

    Yields:
        One `Prediction` per image; an image that cannot be read, a folder without images, and an image for which
            the network has no finite scores have an `error` instead of classes and do not stop the iteration.

    Raises:
        InputError: raised immediately: `top_k` or `batch_size` is not positive.
        ValueError: raised with the first answer: the number of scores differs from the number of class names.
    """
    if top_k < 1 or batch_size < 1:
        raise InputError(f"top_k and batch_size must be at least 1, got {top_k} and {batch_size}")
    if isinstance(images, str | os.PathLike):
        images = [images]
    return _answers(network, list(class_names), images_in(images), top_k, batch_size, size)


def _answers(
    network: nn.Module,
    class_names: list[str],
    found: Iterator[tuple[Path, str | None]],
    top_k: int,
    batch_size: int,
    size: tuple[int, int],
) -> Iterator[Prediction]:
    while group := list(islice(found, batch_size)):
        readable, pixels, errors = [], [], {}
        for place, (path, error) in enumerate(group):
            try:
                if error is not None:
                    raise InputError(error)
                pixels.append(torch.from_numpy(np.array(open_image(path, size))))
                readable.append(place)
            except InputError as reason:
                errors[place] = str(reason)
        answers, scored = {}, {}
        if pixels:
            scores = _scores(network, torch.stack(pixels), len(class_names))
            best = scores.softmax(dim=1).topk(min(top_k, len(class_names)), dim=1)
            rows = zip(readable, best.indices.tolist(), best.values.tolist(), scores, strict=True)
            for place, numbers, shares, logits in rows:
                scored[place] = logits
                answers[place] = [(class_names[number], share) for number, share in zip(numbers, shares, strict=True)]
                if shares[0] != shares[0]:  # the softmax of infinite or NaN scores is NaN
                    answers[place] = []
                    errors[place] = f"{printable(group[place][0])}: the network's scores for it are not finite"
        for place, (path, _) in enumerate(group):
            known = scored.get(place) if place not in errors else None
            yield Prediction(path, answers.get(place, []), errors.get(place), known)


def _scores(network: nn.Module, pixels: Tensor, classes: int) -> Float[Tensor, "images classes"]:
    """The scores for `pixels` [images, height, width, 3] of 0 to 255, in float64 on the CPU."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    images = pixels.permute(0, 3, 1, 2).to(like.device).to(like.dtype) / 255
    with torch.no_grad(), evaluating(network):
        scores = network(images)
    if scores.shape != (len(pixels), classes):
        raise ValueError(
            f"predict: the network gives scores of shape {list(scores.shape)} for {counted(len(pixels), 'image')}; "
            f"{counted(classes, 'class name')} must have the shape {[len(pixels), classes]}"
        )
    return scores.cpu().double()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode temporarily; afterwards restore the previous mode of every layer."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def images_in(paths: Iterable[Path | str]) -> Iterator[tuple[Path, str | None]]:
    """The files that `paths` refer to, one by one, each with None or with the reason why it cannot be read.

    A path that is not a folder refers to itself, with any name. A folder refers to its images, followed by those in its
    sub-folders, sorted by name, code point by code point; hidden files (`.…`), files without an image extension, and
    links to folders, which could form a cycle, are left out. A folder that cannot be read, and a folder in `paths`
    without any image, is reported as an error.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path, None
            continue
        empty = True
        for found in _walk(path):
            empty = False
            yield found
        if empty:
            yield path, f"{printable(path)}: there are no images in this folder (such as .jpg or .png)"


def _walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    waiting = [folder]  # a stack of the folders still to be read, without their files
    while waiting:
        folder = waiting.pop()
        try:
            images = [entry.name for entry in list_images(folder)]
            with os.scandir(folder) as entries:
                inner = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        except OSError as error:
            yield folder, f"{printable(folder)}: this folder cannot be read ({error.strerror or error})"
            continue
        yield from ((folder / name, None) for name in images)
        waiting += [folder / name for name in sorted(inner, reverse=True)]


def newest_checkpoint(runs: Path = Path("runs")) -> Path:
    """The most recently written `best.pt` of the runs in `runs`.

    Raises:
        InputError: there is no such file.
    """
    found = [path for path in runs.glob("**/best.pt") if path.is_file()]
    if not found:
        raise InputError(f"no finished epoch of a run is in {runs}/: train first, or name a file with --checkpoint")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path))


def checkpoint_of(path: Path) -> Path:
    """The checkpoint `path` itself, or `best.pt` if `path` is the folder of a run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    if not path.is_dir():
        return path
    if not (path / "best.pt").exists():
        raise InputError(f"{path} holds no best.pt: its training has not finished an epoch")
    return path / "best.pt"


def draw_answers(answers: Sequence[tuple[Path, str, float]], class_names: Sequence[str]) -> Image.Image:
    """The images as a grid, 128×128 pixels each, with the name and the probability of the most probable class.

    Args:
        answers: (image, class name, probability) of each image; an image that has been deleted since is grey.
        class_names: the names of all classes.
    """
    tiles = torch.full((len(answers), 3, 128, 128), 128, dtype=torch.uint8, device="cpu")
    for tile, (path, _, _) in zip(tiles, answers, strict=True):
        with suppress(InputError):
            tile.copy_(torch.from_numpy(np.array(open_image(path, (128, 128)))).permute(2, 0, 1))
    numbers = {name: number for number, name in enumerate(class_names)}
    guesses = torch.tensor([numbers[name] for _, name, _ in answers], device="cpu")
    shares = torch.tensor([share for *_, share in answers], dtype=torch.float64, device="cpu")
    columns = min(6, len(answers))
    return draw_predictions(
        tiles, guesses, guesses, tuple(class_names), confidences=shares, columns=columns, scale=1, letters=14
    )
