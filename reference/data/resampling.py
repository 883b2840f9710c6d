"""Chapter 04: how `Resize` computes the pixels of a tensor: weighted means of neighbours, one dimension at a time."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from PIL.Image import Resampling
from torch import Tensor


class Kernel(NamedTuple):
    """The weight of a pixel by its distance.

    Attributes:
        weight: a function of the distance in pixels, and of whether it antialiases.
        reach: the distance from which on the weight is 0.
    """

    weight: Callable[[Float[Tensor, "..."], bool], Float[Tensor, "..."]]
    reach: int


def _triangle(distance: Float[Tensor, "..."], antialias: bool) -> Float[Tensor, "..."]:
    """1 at the pixel itself, falling linearly to 0 at its neighbours."""
    return (1 - distance).clamp(min=0)


def _cubic(distance: Float[Tensor, "..."], antialias: bool) -> Float[Tensor, "..."]:
    """Keys' piecewise cubic: negative between the distances 1 and 2, with the slope `a` at 1.

    Pillow and antialiasing use a = −1/2; PyTorch without antialiasing uses −3/4.
    """
    a = -0.5 if antialias else -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


KERNELS = {Resampling.BILINEAR: Kernel(_triangle, 1), Resampling.BICUBIC: Kernel(_cubic, 2)}
"""The interpolations that compute weighted means; `NEAREST` copies pixels."""


def resize_tensor(
    pixels: Shaped[Tensor, "*batch height width"], size: tuple[int, int], interpolation: Resampling, antialias: bool
) -> Shaped[Tensor, "*batch new_height new_width"]:
    """Resize the image; its dtype does not change.

    A pixel is a square of side 1, and both images cover the same area: the centre of new pixel o lies at

        centre(o) = (o + ½) · size / new_size − ½

    in the old image, where pixel i is at i. The new pixel is the mean of the old pixels around it with the weights
    kernel(|i − centre(o)|), along the rows and then along the columns. Outside the image the edge pixels are repeated.
    With `antialias`, the kernel of a shrinking side is stretched by size / new_size, so that every old pixel
    contributes, and pixels outside the image do not. `NEAREST` takes the pixel floor(o · size / new_size) and has no
    weights.

    Args:
        pixels: any numbers; all but float32 and float64 are computed in float32, and integers are rounded
            (a half to the even neighbour) and, if they are bytes, clamped to 0 to 255.
        size: (height, width) of the result, in pixels, at least 1.
        interpolation: `BILINEAR`, `BICUBIC` or `NEAREST`.
        antialias: see above; without it a shrinking image loses most of its pixels.

    Raises:
        ValueError: another interpolation, or an image without pixels.
    """
    if 0 in pixels.shape[-2:]:
        raise ValueError(f"Resize: an image of shape {tuple(pixels.shape)} has no pixels; sizes must be at least 1")
    if interpolation == Resampling.NEAREST:
        rows, columns = (
            torch.arange(new, device=pixels.device) * old // new
            for old, new in zip(pixels.shape[-2:], size, strict=True)
        )
        return pixels[..., rows[:, None], columns]
    if interpolation not in KERNELS:
        raise ValueError(
            f"Resize: interpolation of a tensor must be bilinear, bicubic or nearest, got {interpolation.name.lower()}"
        )
    kernel = KERNELS[interpolation]
    numbers = pixels if pixels.dtype in (torch.float32, torch.float64) else pixels.to(torch.float32)
    numbers = _resize_last(numbers, size[1], kernel, antialias)
    numbers = _resize_last(numbers.mT, size[0], kernel, antialias).mT
    if not pixels.is_floating_point():
        numbers = numbers.round()
    if pixels.dtype == torch.uint8:
        numbers = numbers.clamp(0, 255)
    return numbers.to(pixels.dtype, memory_format=torch.contiguous_format)


def _resize_last(
    numbers: Float[Tensor, "*batch old"], new: int, kernel: Kernel, antialias: bool
) -> Float[Tensor, "*batch new"]:
    """Resize the last dimension: accumulate the old pixels of each window one after the other."""
    if numbers.shape[-1] == new:
        return numbers
    places, weights = window_weights(numbers.shape[-1], new, kernel, antialias)
    places = places.to(numbers.device)
    weights = weights.to(numbers)
    output = numbers.new_zeros(())
    for place, weight in zip(places, weights, strict=True):
        output = output + numbers.index_select(-1, place) * weight
    return output


def window_weights(
    size: int, new: int, kernel: Kernel, antialias: bool
) -> tuple[Int[Tensor, "window new"], Float[Tensor, "window new"]]:
    """The old pixels that each new pixel is made from, and their weights: the formula of `resize_tensor`, in float64.

    Args:
        size: size of the old side.
        new: size of the new side.
        kernel: the weights.
        antialias: whether a shrinking side stretches the kernel.

    Returns:
        Indices of old pixels and their weights. All new pixels have the same number of old pixels; each column of
        weights adds up to 1.
    """
    centres = (torch.arange(new, dtype=torch.float64, device="cpu") + 0.5) * size / new - 0.5
    stretch = max(size / new, 1.0) if antialias else 1.0
    reach = kernel.reach * stretch
    first = torch.floor(centres - reach) + 1
    places = first + torch.arange(math.ceil(2 * reach), device="cpu")[:, None]
    weights = kernel.weight((places - centres).abs() / stretch, antialias)
    if antialias:
        weights = torch.where((places >= 0) & (places < size), weights, 0.0)
    return places.clamp(0, size - 1).to(torch.int64), weights / weights.sum(0)
