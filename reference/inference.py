"""Chapter 20: what is on a picture? A trained network's answer, with probabilities.

The recipe is the tutorial's: convert to RGB, resize to 32×32, scale to 0…1, add the batch axis, evaluation mode, no
gradients. The softmax of the scores sums to one and orders the classes; that 80 % of the answers given with 0.8 are
right is not promised.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reference.data.pictures import open_picture
from reference.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        picture: the file.
        classes: (name, probability) from the most to the least probable, as many as were asked for; empty after an
            error.
        error: why the picture could not be read, or None.
    """

    picture: Path
    classes: list[tuple[str, float]]
    error: str | None = None


def predict(
    network: nn.Module,
    class_names: list[str],
    pictures: Iterable[Path | str],
    *,
    top_k: int = 3,
    batch_size: int = 64,
    size: tuple[int, int] = (32, 32),
) -> Iterator[Prediction]:
    """Say what is on each picture, in their order, `batch_size` at a time; only one batch is in memory.

    Args:
        network: gives `len(class_names)` scores a picture; it is put into evaluation mode.
        class_names: in the order of the scores, as a checkpoint holds them.
        pictures: files of any kind that Pillow reads, of any size up to 20,000×20,000 pixels.
        top_k: how many classes to name; all of them if there are fewer.
        batch_size: pictures computed together; it does not change the answers beyond rounding.
        size: height and width the network was trained on.

    Yields:
        One `Prediction` a picture; a picture that cannot be read has an `error` instead of classes and does not end the
        rest.

    Raises:
        InputError: `top_k` or `batch_size` is not positive.
    """
    if top_k < 1 or batch_size < 1:
        raise InputError(f"top_k and batch_size must be at least 1, got {top_k} and {batch_size}")
    device = next(network.parameters()).device
    network.eval()
    waiting = (Path(picture) for picture in pictures)
    while group := list(islice(waiting, batch_size)):
        pixels, errors = [], {}
        for path in group:
            try:
                pixels.append(torch.from_numpy(np.array(open_picture(path, size))))
            except InputError as error:
                errors[path] = str(error)
        answers: Iterator[list[tuple[str, float]]] = iter(())
        if pixels:
            images = torch.stack(pixels).permute(0, 3, 1, 2).to(device).to(torch.float32) / 255
            with torch.no_grad():
                probabilities = network(images).softmax(dim=1).cpu()
            best = probabilities.topk(min(top_k, len(class_names)), dim=1)
            answers = (
                [(class_names[number], share) for number, share in zip(numbers, shares, strict=True)]
                for numbers, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            )
        for path in group:
            yield Prediction(path, [], errors[path]) if path in errors else Prediction(path, next(answers))
