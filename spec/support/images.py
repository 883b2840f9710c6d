"""Images of random pixels in every Pillow mode of the specification."""

from typing import Any

import numpy as np
from PIL import Image

BYTE_MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK")
"""Modes with one byte for each channel of a pixel."""

MODES = ("1", *BYTE_MODES, "I;16", "I", "F")
"""All modes: bits, bytes, 16-bit and 32-bit integers, and floats."""


def random_image(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """An image with pixels uniform over the range of the mode; in I;16 up to 32767."""
    generator = np.random.default_rng(seed)
    shape = (height, width)
    if mode in ("1", "L", "P"):
        grey = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        if mode == "P":
            grey.putpalette(generator.integers(0, 256, 768, np.uint8).tobytes())
        return grey.convert("1") if mode == "1" else grey
    if mode in ("I;16", "I", "F"):
        dtype, largest = {"I;16": (np.uint16, 2**15), "I": (np.int32, 2**31), "F": (np.int32, 2**24)}[mode]
        return Image.fromarray(
            generator.integers(0, largest, shape, dtype).astype(np.float32 if mode == "F" else dtype)
        )
    bands = [Image.fromarray(generator.integers(0, 256, shape, np.uint8)) for _ in mode]
    return Image.merge(mode, bands)


def pixels_of(image: Image.Image) -> list[list[list[float]]]:
    """The numbers of an image, `[channel][row][column]`, from Pillow's `getpixel`."""
    rows: list[list[Any]] = [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]
    channels = len(image.getbands())
    return [
        [[pixel[c] if isinstance(pixel, tuple) else pixel for pixel in row] for row in rows] for c in range(channels)
    ]
