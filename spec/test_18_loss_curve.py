"""Chapter 18: a training with the components under test has the same losses as PyTorch's, step by step."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference.data.shapes import Shapes
from spec.support.assertions import Tolerance, assert_close
from spec.support.clauses import clause

Make = Callable[..., Any]
BATCH, LEARNING_RATE = 64, 0.01  # chapter 18
STEPS = 200
# The longest sum of the network's forward and backward: a kernel's gradient over all images and pixels of a batch.
LONGEST_SUM = BATCH * 32 * 32


def network(Sequential: Make, Conv2d: Make, MaxPool2d: Make, Flatten: Make, Linear: Make) -> nn.Module:
    """The tutorial's network with fixed initial weights."""
    torch.manual_seed(0)
    return Sequential(
        *(Conv2d(3, 32, 5, padding=2), MaxPool2d(2), Conv2d(32, 32, 5, padding=2), MaxPool2d(2)),
        *(Conv2d(32, 64, 5, padding=2), MaxPool2d(2), Flatten(), Linear(1024, 64), Linear(64, 10)),
    )


@cache
def batches(steps: int, size: int = BATCH) -> list[tuple[Tensor, Tensor]]:
    shapes = Shapes(train=True, size=steps * size)
    return [
        (shapes.images[i : i + size].float() / 255, shapes.targets[i : i + size]) for i in range(0, steps * size, size)
    ]


def losses(
    layers: nn.Module,
    loss: Make,
    SGD: Make,
    steps: int,
    dtype: torch.dtype,
    wobble: float = 0.0,
    batch: int = BATCH,
) -> Tensor:
    """The loss before each step; with `wobble` every weight is off by up to that share of itself, anew in each step."""
    layers = layers.to(dtype)
    optimizer = SGD(layers.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(1)
    found = []
    for images, targets in batches(steps, batch):
        exact = [parameter.detach().clone() for parameter in layers.parameters()] if wobble else []
        with torch.no_grad():
            for parameter in layers.parameters() if wobble else ():
                noise = torch.rand(parameter.shape, generator=generator, dtype=dtype) * 2 - 1
                parameter.mul_(1 + wobble * noise)
        value = loss(layers(images.to(dtype)), targets)
        optimizer.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter, was in zip(layers.parameters(), exact, strict=bool(exact)):
                parameter.copy_(was)
        optimizer.step()
        found.append(value.detach())
    return torch.stack(found)


@cache
def pytorchs_losses(steps: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """PyTorch's losses in float64, and those of the same training with weight errors of the size of roundings."""
    start = network(nn.Sequential, nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear)
    run = lambda wobble: losses(  # noqa: E731
        copy.deepcopy(start), nn.CrossEntropyLoss(), torch.optim.SGD, steps, torch.float64, wobble, batch
    )
    return run(0.0), run(LONGEST_SUM * torch.finfo(torch.float32).eps)


@clause("18.curve.agrees")
@pytest.mark.slow
@pytest.mark.timeout(1200)  # four trainings of 200 steps, two of them in float64
def test_the_losses_are_pytorchs_up_to_rounding(
    Sequential: Make,
    Conv2d: Make,
    MaxPool2d: Make,
    Flatten: Make,
    Linear: Make,
    CrossEntropyLoss: Make,
    SGD: Make,
) -> None:
    """A sum of n products, in any order, is the exact sum of products with relative errors of at most n · eps.

    So a step in float32 is an exact step with weights that have relative errors of this size. The deviation of
    trainings in float64 with such weights bounds the effect of rounding: no step may deviate by more than the largest
    of these deviations up to that step.
    """
    layers = network(Sequential, Conv2d, MaxPool2d, Flatten, Linear)
    found = losses(layers, CrossEntropyLoss(), SGD, STEPS, torch.float32)
    exact, wobbling = pytorchs_losses(STEPS)
    farthest = (wobbling - exact).abs().cummax(0).values
    because = f"the deviation of a float64 training with weights that are off by {LONGEST_SUM} · eps, up to that step"
    assert_close(found.double(), exact, Tolerance(farthest, because), "the loss of each step")
