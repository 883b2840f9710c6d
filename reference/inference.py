"""Chapter 20: what is on an image? A trained network's answer, with probabilities.

The recipe is the tutorial's: convert to RGB, resize to 32×32, scale to 0…1, add the batch axis, evaluation mode, no
gradients. The softmax of the scores sums to one and orders the classes; that 80 % of the answers given with 0.8 are
right is not promised.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference.data.images import open_image, printable
from reference.data.labeled_folder import list_images
from reference.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        image: the file; or the folder, if no image could be found in it.
        classes: (name, probability) from the most to the least probable, as many as were asked for; empty after an
            error.
        error: why there is no answer, or None.
    """

    image: Path
    classes: list[tuple[str, float]]
    error: str | None = None


def predict(
    network: nn.Module,
    class_names: Sequence[str],
    images: Path | str | Iterable[Path | str],
    *,
    top_k: int = 3,
    batch_size: int = 64,
    size: tuple[int, int] = (32, 32),
) -> Iterator[Prediction]:
    """Say what is on each image, in their order, `batch_size` at a time; only one batch is in memory.

    Args:
        network: gives `len(class_names)` scores an image. It answers in evaluation mode, and between two answers every
            layer is in the mode in which it was given.
        class_names: in the order of the scores, as a checkpoint holds them.
        images: regular files that `open_image` reads, of up to 20,000×20,000 pixels; a folder stands for the
            images in it and in its sub-folders (`images_in`). They are asked for batch by batch.
        top_k: how many classes to name; all of them if there are fewer.
        batch_size: images computed together; it does not change the answers beyond rounding.
        size: height and width the network was trained on.

    Yields:
        One `Prediction` an image; an image that cannot be read, a folder without images, and an image for which
        the network has no finite scores have an `error` instead of classes and do not end the rest.

    Raises:
        InputError: at once: `top_k` or `batch_size` is not positive.
        ValueError: with the first answer: the network gives another number of scores than there are class names.
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
        answers = {}
        if pixels:
            probabilities = _probabilities(network, torch.stack(pixels), len(class_names))
            best = probabilities.topk(min(top_k, len(class_names)), dim=1)
            for place, numbers, shares in zip(readable, best.indices.tolist(), best.values.tolist(), strict=True):
                answers[place] = [(class_names[number], share) for number, share in zip(numbers, shares, strict=True)]
                if shares[0] != shares[0]:  # the softmax of infinite or missing scores is not a number
                    answers[place] = []
                    errors[place] = f"{printable(group[place][0])}: the network's scores for it are not finite"
        for place, (path, _) in enumerate(group):
            yield Prediction(path, answers.get(place, []), errors.get(place))


def _probabilities(network: nn.Module, pixels: Tensor, classes: int) -> Float[Tensor, "images classes"]:
    """The softmax of the scores for `pixels` [images, height, width, 3] of 0 to 255, in float64 on the CPU."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    images = pixels.permute(0, 3, 1, 2).to(like.device).to(like.dtype) / 255
    with torch.no_grad(), evaluating(network):
        scores = network(images)
    if scores.shape != (len(pixels), classes):
        raise ValueError(
            f"predict: the network gives scores of shape {list(scores.shape)} for {len(pixels)} images; "
            f"{classes} class names need {[len(pixels), classes]}"
        )
    return scores.cpu().double().softmax(dim=1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every layer is in the mode in which it was before."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def images_in(paths: Iterable[Path | str]) -> Iterator[tuple[Path, str | None]]:
    """The files that `paths` stand for, one by one: each with None, or with why there is none.

    What is not a folder stands for itself, whatever its name. A folder stands for the images in it, then for those in
    its sub-folders, each time in the order of the names, code point by code point; hidden ones (`.…`), files that are
    no images by their extension, and links to folders, which could lead in a circle, are left out. A folder that
    cannot be read, and one of `paths` without a single image, is an error of its own.
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
    waiting = [folder]  # a stack: the names of the folders that are still to be read, not those of their files
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
