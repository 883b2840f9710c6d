"""Chapter 05: the embedded data set `Shapes`, drawn here in integers, so that every machine draws the same images.

**Numbers.** `mix` is the output function of SplitMix64 (Steele, Lea and Flood 2014), on 64-bit words that wrap around:

    mix(z):  z = (z ^ z >> 30) · 0xBF58476D1CE4E5B9;  z = (z ^ z >> 27) · 0x94D049BB133111EB;  mix = z ^ z >> 31

Number `j` (from 0) of the generator with state `s` is `mix(s + (j + 1) · 0x9E3779B97F4A7C15)`. The state of a data set
is number 0 of state `2 · seed` (training) or `2 · seed + 1` (test). Image `i` uses the 398 numbers from `398 · i` on,
called `w[0]` to `w[397]`. It depends on no other numbers, so that a smaller data set is a prefix of a larger one.

**Class.** Images `10b` to `10b + 9` are block `b`, one image of each class: the class of an image is the rank of
its `w[0]` in the block, 0 for the smallest.

**Shape.** A class is a region of a grid of cells (column `u` to the right, row `v` downwards), given in `REGIONS`; its
middle is cell (0, 0), and it ends before ±57. All ten have the same area, within 1 %, and sharp edges: neither the mean
brightness nor the proportions of the colours distinguish one class from another.

**Place.** Lengths in the image are half pixels, `x` to the right and `y` downwards, 0 in the middle: the columns and
rows are at -31, -29 … 31. With `÷` and `>>` rounding down:

    size  = 20 + w[1] mod 9         the length of 64 cells
    left  = w[2] mod 19 - 9         the position of cell (0, 0)
    top   = w[3] mod 19 - 9
    k     = w[4] mod 9 - 4          the tilt: the tangent of half the angle is k/32, so at most 14.3°
    turns = w[5] mod 4              additional quarter turns
    a     = (1024 - k²) · 16384 ÷ ((1024 + k²) · size)
    b     =       64k   · 16384 ÷ ((1024 + k²) · size)
    (a, b) = (-b, a), `turns` times over
    u     = (a · (x - left) + b · (y - top)) >> 8
    v     = (a · (y - top) - b · (x - left)) >> 8

The pixel belongs to the figure if cell `(u, v)` is in the region of the class, and to the background otherwise.

**Colour.** With red, green and blue as channel `c` = 0, 1, 2:

    ground = w[6 + c] mod 64
    figure = 192 + w[9 + c] mod 64
    light  = ((w[12] mod 25 - 12) · x + (w[13] mod 25 - 12) · y) >> 5
    grain  = (byte 1024 · c + 32 · row + column of w[14] to w[397], each number's lowest byte first) >> 3, minus 16
    value  = (figure or ground) + light + grain, clamped to 0 … 255
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8, UInt64
from PIL import Image

from reference.data.resident import Resident

TRAIN_SIZE = 9600
"""Images in the training part: 150 batches of 64."""

TEST_SIZE = 2000
"""Images in the test part."""

REGIONS: dict[str, Callable[[Any, Any], Any]] = {
    "circle": lambda u, v: u * u + v * v <= 39 * 39,
    "ring": lambda u, v: (u * u + v * v >= 36 * 36) & (u * u + v * v <= 53 * 53),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 34,
    "triangle": lambda u, v: (2 * abs(u) <= v + 56) & (v <= 41),
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) <= 12) & (np.maximum(abs(u), abs(v)) <= 54),
    "cross": lambda u, v: (abs(abs(u) - abs(v)) <= 15) & (np.maximum(abs(u), abs(v)) <= 46),
    "bars": lambda u, v: (abs(v) >= 14) & (abs(v) <= 40) & (abs(u) <= 44),
    "hourglass": lambda u, v: (abs(u) <= abs(v)) & (abs(v) <= 48),
    "crescent": lambda u, v: (u * u + v * v <= 53 * 53) & ((u - 26) ** 2 + v * v > 39 * 39),
    "corner": lambda u, v: (np.maximum(abs(u), abs(v)) <= 44) & (np.minimum(u, v) <= -12),
}
"""The classes in order of their numbers; a region tells for each cell (column u, row v) whether it is inside."""

_STEP = 0x9E3779B97F4A7C15  # SplitMix64's increment
_WORDS = 14 + 3 * 32 * 32 // 8  # numbers per image: 14 parameters, and eight bytes of grain in each of the others
_CHUNK = 200  # images drawn at once: few enough to stay in the processor's cache


class Shapes(Resident):
    """Ten geometric shapes in 32×32 colour images, drawn from a seed: no file, no network (chapter 05).

    Each image shows one shape near the middle, larger or smaller, turned and tilted, bright on a dark background, both
    of any hue, with uneven lighting and grain. The tutorial's network learns it in the tutorial's ten epochs; a linear
    model does not. The images are the same on every machine: the module's docstring is the complete drawing rule.

    Args:
        train: the training part, 9,600 images, or the test part, 2,000 others.
        transform: called with the PIL image when an item is taken.
        target_transform: called with the class number when an item is taken.
        size: the number of images, if it differs from the default; the images are the first ones of an endless
            sequence.
        seed: the number of the sequence, from 0 to 2**63 - 1.

    Attributes:
        images: the images, `[n, 3, 32, 32]`, uint8.
        targets: their class numbers, `[n]`, int64, from 0 to 9, each once in every ten.
        classes: the names of the ten shapes.

    Raises:
        ValueError: `size` is not a positive integer, or `seed` is not an integer of that range.
    """

    classes = tuple(REGIONS)

    def __init__(
        self,
        train: bool = True,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        *,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if size is None:
            size = TRAIN_SIZE if train else TEST_SIZE
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"size must be a positive integer, got {size!r}")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
        self.transform = transform
        self.target_transform = target_transform
        state = _mix(np.array([2 * seed + (not train)], dtype=np.uint64) + _STEP)
        targets, stencils = _classes(state, size), _stencils()
        self.targets = torch.from_numpy(targets)
        self.images = torch.empty(size, 3, 32, 32, dtype=torch.uint8)
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            numbers = _numbers(state, start, stop, _WORDS)
            self.images[start:stop] = torch.from_numpy(_draw(numbers, targets[start:stop], stencils))


def _mix(z: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """SplitMix64's output function."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


def _numbers(state: UInt64[np.ndarray, "1"], start: int, stop: int, words: int) -> UInt64[np.ndarray, "n words"]:
    """The first `words` numbers of each of the images `start` to `stop - 1`."""
    first = np.arange(start, stop, dtype=np.uint64)[:, None] * _WORDS
    return _mix(state + (first + np.arange(1, words + 1, dtype=np.uint64)) * _STEP)


def _classes(state: UInt64[np.ndarray, "1"], size: int) -> Int64[np.ndarray, "size"]:
    """The class number of each image: the rank of its first number in its block of ten."""
    blocks = -(-size // 10)
    numbers = _numbers(state, 0, 10 * blocks, words=1).reshape(blocks, 10)
    return numbers.argsort(axis=1).argsort(axis=1).reshape(-1)[:size].astype(np.int64)


def _stencils() -> Bool[np.ndarray, "10 128 128"]:
    """The regions as tables: `[class, v + 64, u + 64]` is true if cell (u, v) is inside the region of the class."""
    v, u = np.mgrid[-64:64, -64:64]
    return np.stack([region(u, v) for region in REGIONS.values()])


def _draw(
    w: UInt64[np.ndarray, "n words"], targets: Int64[np.ndarray, "n"], stencils: Bool[np.ndarray, "10 128 128"]
) -> UInt8[np.ndarray, "n 3 32 32"]:
    """Draw one image for each row of numbers; the variables are named as in the module's docstring."""

    def draw_int(word: int, count: int, lowest: int) -> Int64[np.ndarray, "n 1 1"]:
        return lowest + (w[:, word] % count).astype(np.int64)[:, None, None]

    column = np.arange(-31, 32, 2, dtype=np.int32)
    row = column[:, None]

    size, left, top, k = draw_int(1, 9, 20), draw_int(2, 19, -9), draw_int(3, 19, -9), draw_int(4, 9, -4)
    a = (1024 - k * k) * 16384 // ((1024 + k * k) * size)
    b = 64 * k * 16384 // ((1024 + k * k) * size)
    turns = draw_int(5, 4, 0)
    a, b = np.choose(turns, [a, -b, -a, b]).astype(np.int32), np.choose(turns, [b, a, -b, -a]).astype(np.int32)
    x, y = column - left.astype(np.int32), row - top.astype(np.int32)
    u, v = (a * x + b * y) >> 8, (a * y - b * x) >> 8
    cell = (np.clip(v, -64, 63) + 64) * 128 + np.clip(u, -64, 63) + 64  # cells beyond the border are empty
    inside = stencils.reshape(-1)[cell + 128 * 128 * targets.astype(np.int32)[:, None, None]]

    ground = np.stack([draw_int(6 + c, 64, 0) for c in range(3)], axis=1).astype(np.int16)
    figure = np.stack([draw_int(9 + c, 64, 192) for c in range(3)], axis=1).astype(np.int16)
    light = ((draw_int(12, 25, -12) * column + draw_int(13, 25, -12) * row) >> 5).astype(np.int16)
    grain = np.ascontiguousarray(w[:, 14:]).astype("<u8").view(np.uint8).reshape(-1, 3, 32, 32)
    value = np.where(inside[:, None], figure, ground) + light[:, None] + ((grain >> 3).astype(np.int16) - 16)
    return np.clip(value, 0, 255).astype(np.uint8)
