"""Chapter 04: the transforms agree with those of torchvision on random images."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spec.support.assertions import assert_close, assert_equal, rounding
from spec.support.clauses import clause
from spec.support.images import random_image
from spec.support.strategies import seed_all
from spec.test_04_transforms_in_use import resize_rounding

Transform = Callable[..., Any]


def assert_agreement(home: str, own: dict[str, Transform], count: int) -> None:
    """Assert the same results as torchvision, from the same random numbers, on `count` random images.

    Only a resized tensor may differ, by rounding; and in v2 a byte is multiplied by 1 / 255 instead of being divided by
    255.
    """
    theirs = vars(importlib.import_module(home))
    v2 = home.endswith("v2")
    steps = [theirs["ToImage"](), theirs["ToDtype"](torch.float32, scale=True)] if v2 else [theirs["ToTensor"]()]
    to_tensor = theirs["Compose"](steps)
    for seed in range(count):
        numbers = np.random.default_rng(seed)
        height, width, new_height, new_width = (int(n) for n in numbers.integers(3, 12, 4))
        # smaller than both sides, because v2 draws no number for a side with a single position
        window = (int(numbers.integers(1, height)), int(numbers.integers(1, width)))
        padding = [None, 1, (2, 1), (0, 1, 2, 2)][seed % 4]
        padding_mode = ["constant", "edge", "reflect", "symmetric"][seed // 4 % 4]
        image = random_image(["L", "RGB", "RGBA", "LA"][seed // 16 % 4], width, height, seed)
        tensor = own["ToTensor"]()(image)
        assert_close(tensor, to_tensor(image).as_subclass(Tensor), rounding(torch.float32, int(v2)))
        results = []
        for make in (own, theirs):
            seed_all(seed)
            crop = make["RandomCrop"](window, padding, padding_mode=padding_mode)
            chain = make["Compose"]([crop, make["RandomHorizontalFlip"](0.4)])
            resize = make["Resize"]((new_height, new_width), antialias=None if seed % 3 else True)
            normalize = make["Normalize"]([0.4] * len(tensor), [0.3] * len(tensor))
            exact = torch.cat([part.flatten() for part in (chain(tensor), normalize(tensor), torch.rand(1))])
            results.append((exact, chain(image).tobytes() + resize(image).tobytes(), resize(tensor)))
        assert_equal(results[0][0], results[1][0], "crop, flip, normalized image and next random number")
        assert results[0][1] == results[1][1]
        assert_close(results[0][2], results[1][2], resize_rounding(torch.float32, (height, width), True))


HOMES = pytest.mark.parametrize("home", ["torchvision.transforms", "torchvision.transforms.v2"], ids=["v1", "v2"])


@clause("04.transforms.torchvision")
@HOMES
def test_transforms_agree_with_torchvision_on_30_images(
    home: str, Compose: Transform, ToTensor: Transform, Normalize: Transform, Resize: Transform,
    RandomCrop: Transform, RandomHorizontalFlip: Transform,
) -> None:  # fmt: skip
    own = {"Compose": Compose, "ToTensor": ToTensor, "Normalize": Normalize, "Resize": Resize}
    assert_agreement(home, own | {"RandomCrop": RandomCrop, "RandomHorizontalFlip": RandomHorizontalFlip}, 30)


@pytest.mark.slow
@clause("04.transforms.torchvision")
@HOMES
def test_transforms_agree_with_torchvision_on_3000_images(
    home: str, Compose: Transform, ToTensor: Transform, Normalize: Transform, Resize: Transform,
    RandomCrop: Transform, RandomHorizontalFlip: Transform,
) -> None:  # fmt: skip
    own = {"Compose": Compose, "ToTensor": ToTensor, "Normalize": Normalize, "Resize": Resize}
    assert_agreement(home, own | {"RandomCrop": RandomCrop, "RandomHorizontalFlip": RandomHorizontalFlip}, 3000)
