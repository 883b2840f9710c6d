"""Prediction for tests: images and networks with exact scores, and the tutorial's recipe in float64."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reference.models import Ocean
from spec.support.strategies import whole

# different from the data set's, to test that they come from the caller
NAMES = [f"class {letter}" for letter in "abcdefghij"]
EPS = torch.finfo(torch.float32).eps


def noise(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> Path:
    """An image with pixels 0 or 255: they become exactly 0 or 1."""
    pixels = np.random.default_rng(seed).integers(0, 2, (*size, 3), dtype=np.uint8) * 255
    Image.fromarray(pixels).save(path)
    return path


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / math.fsum(powers) for power in powers]


# A softmax in float32 of exact scores: the difference to the largest, the exponential (2 units in the last place), the
# sum of ten, the quotient.
EXACT_SCORES = (1 + 2 + 10 + 1) * EPS


def assert_answer(found: Any, image: Path, expected: dict[str, float], top_k: int, tolerance: float) -> None:
    """The `top_k` most probable classes, in their order, each with its probability to a relative `tolerance`."""
    __tracebackhide__ = True
    assert Path(found.image) == image
    assert found.error is None
    names, shares = [name for name, _ in found.classes], [share for _, share in found.classes]
    assert len(set(names)) == top_k
    assert shares == sorted(shares, reverse=True), "the most probable class must come first"
    for name, share in found.classes:
        assert share == pytest.approx(expected[name], rel=tolerance), f"{name} on {image.name}"
    others = [expected[name] for name in expected if name not in names]
    assert max(others, default=0.0) <= min(shares) * (1 + tolerance), "a more probable class was left out"


def by_the_recipe(network: Ocean, path: Path) -> tuple[dict[str, float], float]:
    """The tutorial's steps, lines 2066 to 2110, one image at a time, and the relative tolerance of a probability.

    In float64. A sum of n products and a bias is off by at most (n + 1) · eps times the sum of their absolute values,
    in any order; the network of the absolute values, given those of the image, says how large that can become
    until it reaches the scores, since the largest of several numbers is off by no more than the worst of them. An error
    e in every score is a factor between exp(-2e) and exp(2e) in a probability.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = torch.tensor(np.array(image).tolist(), dtype=torch.float64, device="cpu").permute(2, 0, 1) / 255
    double, largest = copy.deepcopy(network).cpu().double().eval(), copy.deepcopy(network).cpu().double()
    operations = 1  # the division by 255
    with torch.no_grad():
        scores = double(pixels.reshape(1, 3, 32, 32))[0]
        for parameter in largest.parameters():
            parameter.abs_()
            operations += parameter[0].numel()
        error = operations * torch.finfo(torch.float64).eps * largest(pixels[None]).max().item()
    return dict(zip(NAMES, softmax(scores.tolist()), strict=True)), math.expm1(4 * error) + EXACT_SCORES


def exact_ocean() -> Ocean:
    """The tutorial's network with three numbers in each kernel: its scores of noise are exact in float32."""
    network = Ocean()
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
            if parameter.dim() > 1:
                flat = parameter.reshape(len(parameter), -1)
                for row in flat:
                    places = torch.randint(0, len(row), (3,), generator=generator, device="cpu")
                    row[places] = whole(3, seed=int(places[0]), dtype=torch.float32)
        network.model1[8].weight.div_(64)
    return network
