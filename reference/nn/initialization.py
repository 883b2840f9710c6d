"""Chapters 08 and 12: the initial random numbers of a new layer.

To keep the scale of the outputs constant from layer to layer, the standard deviation of the weights must fall with the
number of inputs of each sum. Each function here fills a tensor in place with such numbers, outside autograd, drawn from
torch's global generator: the same seed and the same order of layers give the initial numbers of PyTorch's layers.
"""

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from reference.arguments import check_number


@torch.no_grad()
def uniform_(tensor: Float[Tensor, "..."], bound: float | int) -> Float[Tensor, "..."]:
    """Fill `tensor` with U(-bound, bound).

    Args:
        tensor: filled in place.
        bound: half the width of the interval, not negative.

    Returns:
        `tensor` itself.

    Raises:
        ValueError: `bound` is negative.
    """
    check_number("uniform_: bound", bound, at_least=0)
    return tensor.uniform_(-bound, bound)


@torch.no_grad()
def normal_(tensor: Float[Tensor, "..."], mean: float | int = 0.0, std: float | int = 1.0) -> Float[Tensor, "..."]:
    """Fill `tensor` with N(mean, std²).

    Args:
        tensor: filled in place.
        mean: the centre.
        std: the standard deviation, not negative.

    Returns:
        `tensor` itself.

    Raises:
        ValueError: `std` is negative.
    """
    check_number("normal_: std", std, at_least=0)
    return tensor.normal_(mean, std)


def kaiming_uniform_(tensor: Float[Tensor, "..."], a: float | int = 0.0) -> Float[Tensor, "..."]:
    """Fill `tensor` with U(-b, b), b = gain · sqrt(3 / fan_in), gain = sqrt(2 / (1 + a²)) (He et al., 2015).

    U(-b, b) has the variance b² / 3 = gain² / fan_in, which keeps the variance through a leaky ReLU of slope `a`.
    Linear and convolution layers use a = sqrt(5), which gives b = 1 / sqrt(fan_in).

    Args:
        tensor: a weight, `[outputs, inputs, ...]`, filled in place.
        a: the slope of the leaky ReLU that follows.

    Returns:
        `tensor` itself.

    Raises:
        ValueError: `tensor` has fewer than two dimensions.
    """
    if tensor.numel() == 0:
        warnings.warn(f"kaiming_uniform_: a tensor of shape {tuple(tensor.shape)} has nothing to fill", stacklevel=2)
        return tensor
    gain = math.sqrt(2.0 / (1 + a**2))
    std = gain / math.sqrt(fan_in(tensor))
    return uniform_(tensor, math.sqrt(3.0) * std)


def xavier_uniform_(tensor: Float[Tensor, "..."], gain: float | int = 1.0) -> Float[Tensor, "..."]:
    """Fill `tensor` with U(-b, b), b = gain · sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Args:
        tensor: a weight, `[outputs, inputs, ...]`, filled in place.
        gain: a factor for the activation that follows.

    Returns:
        `tensor` itself.

    Raises:
        ValueError: `tensor` has fewer than two dimensions.
    """
    std = gain * math.sqrt(2.0 / (fan_in(tensor) + fan_out(tensor)))
    return uniform_(tensor, math.sqrt(3.0) * std)


def xavier_normal_(tensor: Float[Tensor, "..."], gain: float | int = 1.0) -> Float[Tensor, "..."]:
    """Fill `tensor` with N(0, gain² · 2 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Args:
        tensor: a weight, `[outputs, inputs, ...]`, filled in place.
        gain: a factor for the activation that follows.

    Returns:
        `tensor` itself.

    Raises:
        ValueError: `tensor` has fewer than two dimensions.
    """
    return normal_(tensor, std=gain * math.sqrt(2.0 / (fan_in(tensor) + fan_out(tensor))))


def fan_in(tensor: Float[Tensor, "..."]) -> int:
    """The number of terms in the sum for one output of the weight `[outputs, inputs, ...]`: inputs × kernel size.

    Raises:
        ValueError: `tensor` has fewer than two dimensions.
    """
    _check_weight(tensor)
    return math.prod(tensor.shape[1:])


def fan_out(tensor: Float[Tensor, "..."]) -> int:
    """The number of outputs that depend on one input of the weight `[outputs, inputs, ...]`: outputs × kernel size.

    Raises:
        ValueError: `tensor` has fewer than two dimensions.
    """
    _check_weight(tensor)
    return tensor.shape[0] * math.prod(tensor.shape[2:])


def _check_weight(tensor: Tensor) -> None:
    if tensor.dim() < 2:
        shape = tuple(tensor.shape)
        raise ValueError(f"initialization: tensor must be [outputs, inputs, *kernel size], got the shape {shape}")
