"""Chapter 01: opening a picture file, whatever is in it, as the RGB picture that a viewer would show.

`Image.open` alone returns sixteen kinds of pixels, ignores the camera's orientation, refuses large pictures and fails
in a dozen ways. `open_picture` gives 8-bit RGB or one `InputError` that names the file.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from reference.errors import InputError
from reference.text import printable

StrPath = str | os.PathLike[str]

LARGEST = 20_000 * 20_000  # pixels; decoded they take 1.6 GB
HUGE = 2**24  # pixels; from here on (64 MB decoded) memory counts for more than the last bit

_opening = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child must inherit neither a lock that nobody opens nor the lifted limit
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)


def open_picture(path: StrPath, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in file `path`, upright and in mode RGB, without the file's metadata.

    Transparent pixels are laid over white. Greys of 16 bits are scaled by 255/65535; those of 32 bits (modes I and F)
    from the smallest of the ranges 0-1, 0-255 and 0-65535 that holds them all, otherwise from their own darkest to
    their own lightest value; what is not a number is black. Of an animation it is the first frame.

    Args:
        path: a picture of any format that Pillow decodes, of up to `LARGEST` pixels.
        size: (height, width) to resize to: bilinear with antialiasing, as torchvision's `Resize((height, width))`.
            Only a picture above `HUGE` pixels may differ from that slightly: it is first averaged down by a whole
            number, to no less than four times the longer side of `size`. `None` keeps the size.

    Raises:
        InputError: the file is missing, damaged, no picture, or larger than `LARGEST`.
    """
    try:
        with open(path, "rb") as file:
            return decode_picture(file, path, size)
    except OSError as error:
        raise not_readable(path, error) from error


def decode_picture(
    file: BinaryIO, name: StrPath, size: tuple[int, int] | None = None, huge_turn: AbstractContextManager | None = None
) -> Image.Image:
    """`open_picture` of an open file that errors call `name`; `huge_turn` is held while a huge one is decoded."""
    try:
        with _size_unlimited():
            image = Image.open(file)
        pixels = image.width * image.height
        if pixels > LARGEST:
            raise ValueError(f"{image.width}×{image.height} = {pixels:,} pixels, at most {LARGEST:,} are allowed")
        with huge_turn if huge_turn and pixels > HUGE else nullcontext():
            return _decode(image, size)
    except Exception as error:  # Pillow's decoders raise nearly every kind
        raise not_readable(name, error) from error


def not_readable(name: StrPath, error: Exception) -> InputError:
    """The error that says in one line that file `name` is not a readable picture, because of `error`."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):  # its text is the file object's
        reason = "no picture format is recognized"
    return InputError(f"{printable(name)}: not a readable picture ({' '.join(reason.split())})")


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture: not hidden (`.…`), with an extension that Pillow decodes."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _extensions()


@cache
def _extensions() -> frozenset[str]:
    formats = Image.registered_extensions().items()
    only_identified = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their headers, but decodes none
    return frozenset(extension for extension, name in formats if name in Image.OPEN and name not in only_identified)


@contextmanager
def _size_unlimited() -> Iterator[None]:
    """Pillow's own limit (179 megapixels) is lifted while a header is read; ours is checked right after."""
    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _decode(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The pixels of an opened picture in RGB, upright and resized; a huge one is reduced on the way."""
    factor = 1
    if size is not None and image.width * image.height > HUGE:
        side = 4 * max(size)
        image.draft(None, (side, side))  # a JPEG is decoded at 1/2, 1/4 or 1/8 at once
        factor = max(1, min(image.size) // side)
    image.load()
    picture = _to_rgb(image, factor)
    with suppress(Exception):  # damaged metadata do not make a picture unreadable
        picture.info = image.info
        ImageOps.exif_transpose(picture, in_place=True)
        picture.getexif().clear()  # a second turn would be one too many
    picture.info = {}
    if size is None or picture.size == (size[1], size[0]):
        return picture
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """`image` in RGB, each `factor`×`factor` pixels averaged; in bands, so that no second whole copy is made."""
    rows = max(1, 2**20 // image.width // factor) * factor
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    levels = _levels(image.crop(box) for box in boxes) if image.mode.startswith(("I", "F")) else None
    if len(boxes) == factor == 1:
        return _band_to_rgb(image, levels)
    picture = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for box in boxes:
        picture.paste(_band_to_rgb(image.crop(box), levels).reduce(factor), (0, box[1] // factor))
    return picture


def _band_to_rgb(band: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        low, high = levels
        values = np.asarray(band, np.float64)
        grey = np.rint(np.clip((values - low) / ((high - low) or 1), 0, 1) * 255)
        grey[values == band.info.get("transparency", np.nan)] = 255
        return Image.fromarray(np.nan_to_num(grey).astype(np.uint8)).convert("RGB")
    if not band.has_transparency_data:
        return band.convert("RGB")
    band = band.convert("RGBA")
    white = Image.new("RGB", band.size, "white")
    white.paste(band, mask=band.getchannel("A"))
    return white


def _levels(bands: Iterator[Image.Image]) -> tuple[float, float]:
    """The values that become black and white in a picture of numbers that comes in `bands`."""
    low, high = np.inf, -np.inf
    for band in bands:
        if band.mode.startswith("I;16"):
            return 0.0, 65535.0
        values = np.asarray(band, np.float64)
        values = values[np.isfinite(values)]
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    fitting = (top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top)
    return next(((0.0, top) for top in fitting), (float(low), float(high))) if low <= high else (0.0, 1.0)
