"""The rules of SGD, Adam and AdamW for one number, in plain Python: the oracle of chapter 15, without tensors."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def parameter(*numbers: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(numbers, dtype=dtype))


def step(optimizer: Any, changed: Tensor, gradient: Any) -> None:
    """One step with the given gradient; None means no gradient."""
    changed.grad = None if gradient is None else torch.as_tensor(gradient, dtype=changed.dtype).clone()
    optimizer.step()


@dataclass
class PlainSGD:
    """SGD for one number, in Python floats."""

    lr: float
    momentum: float = 0
    dampening: float = 0
    weight_decay: float = 0
    nesterov: bool = False
    maximize: bool = False
    velocity: float | None = None

    def step(self, x: float, gradient: float) -> float:
        direction = (-gradient if self.maximize else gradient) + self.weight_decay * x
        if self.momentum:
            if self.velocity is None:
                self.velocity = direction
            else:
                self.velocity = self.momentum * self.velocity + (1 - self.dampening) * direction
            direction = direction + self.momentum * self.velocity if self.nesterov else self.velocity
        return x - self.lr * direction


@dataclass
class PlainAdam:
    """Adam for one number, in Python floats, and the size of the intermediate numbers of the step."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    decoupled: bool
    t: int = 0
    m: float = 0
    v: float = 0
    largest_v: float = 0
    largest_gradient: float = 0

    def step(self, x: float, gradient: float) -> tuple[float, float]:
        """The new number, and the step for the largest gradient so far."""
        gradient = -gradient if self.maximize else gradient
        self.largest_gradient = max(self.largest_gradient, abs(gradient) + self.weight_decay * abs(x))
        if self.decoupled:
            x = x - self.lr * self.weight_decay * x
        else:
            gradient = gradient + self.weight_decay * x
        beta1, beta2 = self.betas
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * gradient
        self.v = beta2 * self.v + (1 - beta2) * gradient**2
        self.largest_v = max(self.largest_v, self.v)
        v = self.largest_v if self.amsgrad else self.v
        root = math.sqrt(v / (1 - beta2**self.t)) + self.eps
        mean = self.m / (1 - beta1**self.t)
        return x - self.lr * mean / root, self.lr * self.largest_gradient / root
