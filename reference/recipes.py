"""Beyond chapter 18: the tutorial's accuracy with the tutorial's network in a fraction of the time.

A recipe is a name for settings of `reference.run`: `tutorial` is the tutorial's training, `fast` changes the training
method and keeps the network and the data. The ingredients are here: a first layer that is computed from the images
instead of being trained (`whiten`), the optimizer `Muon`, a learning rate that falls (`FallingRate`), and images that
are mirrored and shifted (`Vary`). `scripts/accuracy.py --ablation` measures the effect of each.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from reference.optim import Optimizer, ParameterGroup

RECIPES: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "fast": {
        "optimizer": "muon",
        "learning_rate": 0.04,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "schedule": "falling",
        "whiten": True,
        "shuffle": True,
        "mirror": True,
        "shift": 2,
    },
}
"""The settings of each recipe that differ from the tutorial's."""

ABLATION: dict[str, dict[str, Any]] = {
    "SGD with momentum instead of Muon": {
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "weight_decay": 0.0005,
    },
    "a random, trained first layer instead of a whitening one": {"whiten": False},
    "a constant rate instead of a falling one": {"schedule": "constant", "learning_rate": 0.02},
    "no momentum instead of 0.9": {"momentum": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "the stored order instead of a new one every epoch": {"shuffle": False},
    "no mirrored images": {"mirror": False},
    "no shifted images": {"shift": 0},
}
"""Each change of `fast` that removes one ingredient, and its settings."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of the polynomial p(s) = a·s + b·s³ + c·s⁵ that drives the singular values towards 1 (Jordan, 2024): steep at
0, so that five rounds lift even a small one, but the results are between 0.68 and 1.14 instead of exactly 1."""


def orthogonalize(matrix: Float[Tensor, "rows columns"], rounds: int = 5) -> Float[Tensor, "rows columns"]:
    """The matrix with the singular vectors of `matrix` and singular values near 1.

    With matrix / ‖matrix‖ = U·diag(s)·Vᵀ it is U·diag(p(p(…p(s))))·Vᵀ, with `rounds` times the p of `NEWTON_SCHULZ`;
    no decomposition is needed, since a·X + b·(XXᵀ)X + c·(XXᵀ)²X applies p to the singular values of X. All rounds work
    on XXᵀ, which is smaller than X if X has more columns than rows: X ← QX with Q a polynomial of XXᵀ.

    A zero matrix stays zero.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T, rounds).T
    a, b, c = NEWTON_SCHULZ
    tiny = torch.finfo(matrix.dtype).tiny
    unit = matrix / matrix.norm().clamp(min=tiny)
    gram = unit @ unit.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(rounds):
        factor = torch.addmm(torch.add(a * identity, gram, alpha=b), gram, gram, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ unit


class Muon(Optimizer):
    """Momentum, orthogonalized (Jordan, 2024). At each step, with gradient g and parameter θ, seen as a matrix of one
    row for each output:

        b ← momentum · b + g
        u ← orthogonalize(g + momentum · b)
        θ ← (1 - lr · weight_decay) · θ - lr · sqrt(max(1, rows / columns)) · u

    So a step moves the outputs by about the same in every direction, however unequal the gradient's singular values.
    A vector, such as a bias, is a matrix of one row: only its direction matters. `torch.optim.Muon` is not used: it
    takes only matrices, no convolution kernels and no biases, and orthogonalizes in bfloat16.

    Args:
        params: the parameters, or groups of them.
        lr: the learning rate, not negative.
        momentum: the share of the running sum b that each step keeps, at least 0 and below 1.
        weight_decay: the share of θ that each step subtracts, before the learning rate, not negative.

    Raises:
        ValueError: a number is out of its range, or as `Optimizer`.
        TypeError: as `Optimizer`.
    """

    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"Muon: {name} needs to be a finite number of at least 0, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: momentum needs to be at least 0 and below 1, got {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": False})

    def _update(self, parameter: Tensor, gradient: Tensor, group: ParameterGroup) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        total = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(total, alpha=group["momentum"])
        matrix = direction.reshape(len(direction) if direction.dim() > 1 else 1, -1)
        rows, columns = matrix.shape
        update = orthogonalize(matrix)
        if group["weight_decay"] != 0:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update.view(direction.shape), alpha=group["lr"] * max(1, rows / columns) ** 0.5)


class FallingRate:
    """A learning rate that rises over the first steps and then falls linearly to 0 at the last one.

    Step n (from 0) of N uses the share min((n + 1) / (0.1·N), (N - n) / (0.9·N), 1) of the highest rate. That is the
    optimizer's initial rate times (100 / N)^(1/3): the longer a training, the smaller its best rate (here it was 0.04
    for 100 steps and 0.02 for 782, an epoch).

    Args:
        optimizer: its groups' `lr` is set; the initial rate is stored in the group as `initial_lr`, as PyTorch does.
        steps: N, the number of steps of the training.
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        self.optimizer, self.steps = optimizer, steps
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def __call__(self, step: int) -> None:
        """Set the rate for step number `step`, from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(group["initial_lr"], step)

    def rate(self, initial: float, step: int) -> float:
        """The rate of step number `step`, from 0, where `initial` is the initial one."""
        share = min((step + 1) / (0.1 * self.steps), (self.steps - step) / (0.9 * self.steps), 1.0)
        return initial * (100 / self.steps) ** (1 / 3) * share


def patches(images: UInt8[Tensor, "n channels height width"], size: int) -> Float[Tensor, "m columns"]:
    """The input patches of a convolution: every third square of `size` pixels, as a row of numbers 0 to 1."""
    squares = images.unfold(2, size, 3).unfold(3, size, 3)  # n, channels, down, across, size, size
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).float().div_(255)


def whiten(
    weight: Float[Tensor, "filters ..."], bias: Float[Tensor, "filters"], seen: Float[Tensor, "m columns"]
) -> None:
    """Set the weights of a layer so that its outputs for `seen` are uncorrelated, with mean 0 and variance below 1, and
    freeze it.

    Its filters become the eigenvectors of the covariance of `seen` with the largest eigenvalues λ, the directions in
    which patches differ most, each divided by sqrt(λ + 0.01), which limits the amplification of small differences. The
    layer needs no training, and no gradient of it and of its outputs is computed.

    Args:
        weight: its filters, changed in place; they require no gradient afterwards.
        bias: likewise.
        seen: the inputs of the filters as rows, in the order of a filter's numbers; at least one per filter.
    """
    values, vectors = torch.linalg.eigh(seen.T.cov())  # the largest comes last
    filters = (vectors / (values.clamp(min=0) + 0.01).sqrt()).flip(1)[:, : len(weight)].T
    for parameter, value in ((weight, filters), (bias, -(filters @ seen.mean(dim=0)))):
        parameter.requires_grad_(False).copy_(value.view(parameter.shape))


@dataclass(frozen=True)
class Vary:
    """A random variation of each image of a batch: mirrored or not, and shifted.

    Attributes:
        mirror: half of the images, drawn anew, are mirrored left to right.
        shift: each image is shifted by a random whole number of pixels, from -shift to shift, in both directions; its
        border is repeated at the uncovered edges.
    """

    mirror: bool = False
    shift: int = 0

    def __call__(
        self, images: UInt8[Tensor, "b channels height width"], generator: torch.Generator | None
    ) -> UInt8[Tensor, "b channels height width"]:
        """The varied batch; `generator`, on the CPU, draws the same numbers for every device."""
        b, channels, height, width = images.shape
        draw = torch.randint(0, 2 * self.shift + 1, (2, b, 1), generator=generator) - self.shift
        flips = torch.randint(0, 2, (b, 1), generator=generator).bool() & self.mirror
        rows = (torch.arange(height) + draw[0]).clamp(0, height - 1)
        columns = (torch.arange(width) + draw[1]).clamp(0, width - 1)
        columns = torch.where(flips, width - 1 - columns, columns)
        places = (rows[:, :, None] * width + columns[:, None, :]).reshape(b, 1, -1).to(images.device)
        return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(images.shape)
