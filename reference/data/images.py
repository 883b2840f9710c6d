"""Chapter 01: opening an image file of any kind as the RGB image that a viewer would show.

`Image.open` alone returns sixteen kinds of pixels, ignores the camera's orientation, rejects large images and raises
a dozen kinds of errors. `open_image` returns 8-bit RGB or raises one `InputError` that names the file.
"""

import ctypes
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps

from reference.errors import InputError
from reference.files import open_regular
from reference.text import printable

StrPath = str | os.PathLike[str]

LARGEST_IMAGE = 20_000 * 20_000  # pixels; decoded they take 1.6 GB
# pixels of an image for a decoder with several copies in memory, up to 16 bytes per pixel
LARGEST_WHOLE = 10_000 * 10_000
HUGE = 2**24  # pixels; above this (64 MB decoded) little memory is more important than bitwise equality
LARGEST_FILE = 2**30  # bytes

BY_ROWS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "PCX", "PSD", "SGI", "TGA")
"""Formats that are decoded a few rows at a time, into at most 4 bytes per pixel: up to `LARGEST_IMAGE` pixels."""

AS_A_WHOLE = ("TIFF", "WEBP", "AVIF", "JPEG2000")
"""Formats of photographs that are decoded as a whole: up to `LARGEST_WHOLE` pixels."""

RARE = (
    *("BLP", "CUR", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT", "MCIDAS", "MSP", "PCD"),
    *("PIXAR", "QOI", "SPIDER", "SUN", "XBM", "XPM", "XVTHUMB"),
)
"""Other formats, some of which Pillow decodes in Python pixel by pixel: up to `HUGE` pixels."""

HEADER = 2**16
"""Largest size of the header of a PPM file in bytes: Pillow reads it in Python byte by byte."""

CONTAINERS = {b"\0\0\1\0": "ICO", b"icns": "ICNS", b"BLP1": "BLP", b"BLP2": "BLP"}
"""Formats, by their first bytes, that contain an image of another format with a separate size."""

_opening = threading.RLock()


def _forked() -> None:
    global _decoding
    _opening.release()
    _decoding = 0  # no other thread of the parent decodes here


if hasattr(os, "register_at_fork"):  # a child process must not inherit a locked lock or the lifted limit
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_forked)


def open_image(path: StrPath, size: tuple[int, int] | None = None) -> Image.Image:
    """Open the image file `path` as an upright RGB image without metadata.

    Transparent pixels become white. 16-bit greys are scaled by 255/65535; 32-bit greys (modes I and F) from the
    smallest of the ranges 0-1, 0-255 and 0-65535 that holds them all, otherwise from their own minimum to their own
    maximum; NaN is black. For an animation, the first frame is used.

    Args:
        path: a regular file of up to `LARGEST_FILE` bytes, in a format that Pillow decodes by itself (`BY_ROWS`,
            `AS_A_WHOLE`, `RARE`); it may have `LARGEST_IMAGE`, `LARGEST_WHOLE` or `HUGE` pixels.
        size: (height, width) to resize to: bilinear with antialiasing, as torchvision's `Resize((height, width))`.
            Only an image above `HUGE` pixels may differ slightly: it is first averaged down by an integer factor, to at
            least four times the longer side of `size`. `None` keeps the size.

    Raises:
        InputError: the file is missing, damaged, not regular, not an image, or too large.
    """
    try:
        with open_regular(path, LARGEST_FILE) as file:
            return decode_image(file, path, size)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise not_readable(path, error) from error


def image_header(path: StrPath) -> tuple[int, int, str]:
    """The width, the height and Pillow's mode of an image file, from its header; nothing is decoded.

    Raises:
        InputError: as `open_image`, for the faults that the header shows.
    """
    try:
        with open_regular(path, LARGEST_FILE) as file, _without_warnings(), _pillow_limit(None):
            image = Image.open(file, formats=_formats())
            return image.width, image.height, image.mode
    except Exception as error:  # Pillow's decoders raise nearly every type of exception
        raise not_readable(path, error) from error


def decode_image(
    file: BinaryIO,
    name: StrPath,
    size: tuple[int, int] | None = None,
    huge_turn: AbstractContextManager | None = None,
) -> Image.Image:
    """`open_image` for an open file, called `name` in errors; holds `huge_turn` while it decodes a huge image."""
    try:
        with _without_warnings():
            start = file.read(HEADER)
            file.seek(0)
            image, kind = None, CONTAINERS.get(start[:4])
            _check_header(start)
            if kind is not None:
                with _pillow_limit(HUGE), suppress(Image.UnidentifiedImageError):  # TGA may begin with the same bytes
                    image = Image.open(file, formats=[kind])
                    _check_pixels(image)
                    return _decode(image, size)
                file.seek(0)
            with _pillow_limit(None):  # nothing is decoded while the header is read
                image = Image.open(file, formats=_formats())
            _check_pixels(image)
            with huge_turn if huge_turn and image.width * image.height > HUGE else nullcontext():
                return _decode(image, size)
    except Exception as error:  # Pillow's decoders raise nearly every type of exception
        raise not_readable(name, error) from error


def not_readable(name: StrPath, error: Exception) -> InputError:
    """The error with the reason, in one line, why file `name` is not a readable image."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):  # its text contains the repr of the file object
        reason = "no image format is recognized"
    return InputError(f"{printable(name)}: not a readable image ({' '.join(reason.split())})")


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: not hidden (`.…`), with an extension that Pillow decodes."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _extensions()


@cache
def _extensions() -> frozenset[str]:
    formats = Image.registered_extensions().items()
    return frozenset(extension for extension, name in formats if name in (*_formats(), "MPO"))


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are opened, in the order of the attempts.

    Left out are EPS, which starts Ghostscript; IPTC, FPX and MIC, which open an image of any format inside them; and
    BUFR, GRIB, HDF5, MPEG and WMF: Pillow knows only their headers.
    """
    Image.init()
    return tuple(name for name in (*BY_ROWS, *AS_A_WHOLE, *RARE) if name in Image.OPEN)


def _check_header(start: bytes) -> None:
    """Raise ValueError if the header of a PPM file does not end within its first `HEADER` bytes."""
    kind = re.match(rb"P[0-6fy]", start)
    if kind is not None and len(start) == HEADER:
        words = re.sub(rb"#[^\r\n]*", b"", start).split(maxsplit=4)
        if len(words) < (3 if kind[0] in (b"P1", b"P4") else 4):  # the kind, the width, the height, the largest value
            raise ValueError(f"its header does not end within {HEADER:,} bytes")


def _check_pixels(image: Image.Image) -> None:
    """Raise ValueError if an opened image has more pixels than the limit for its format."""
    pixels, limit = image.width * image.height, HUGE
    if image.format in AS_A_WHOLE or _keeps_coefficients(image):
        limit = LARGEST_IMAGE if image.format == "TIFF" and image.info.get("compression") == "raw" else LARGEST_WHOLE
        if image.format == "JPEG2000":  # 24 bytes a pixel
            limit = LARGEST_WHOLE * 2 // 3
    elif image.format in (*BY_ROWS, "MPO"):
        limit = LARGEST_IMAGE
    if pixels > limit:
        kind = "" if limit == LARGEST_IMAGE else f" in this kind of {image.format}"
        raise ValueError(f"{image.width}×{image.height} = {pixels:,} pixels, at most {limit:,} are allowed{kind}")


def _keeps_coefficients(image: Image.Image) -> bool:
    """Whether a JPEG has several scans, so that the decoder needs 2 bytes for each pixel and component."""
    if image.format not in ("JPEG", "MPO"):
        return False
    layers, file = getattr(image, "layers", 1), getattr(image, "fp", None)
    if image.info.get("progressive") or file is None:
        return True
    place = file.tell()  # after the first scan's header: its number of components, and 3 + 2 for each further one
    file.seek(place - 4 - 2 * layers)
    whole = file.read(1) == bytes([layers])
    file.seek(place)
    return not whole


@contextmanager
def _pillow_limit(pixels: int | None) -> Iterator[None]:
    """Set Pillow's pixel limit for one thread at a time: to `pixels`, or to no limit if this module checks the size
    afterwards.

    The limit also applies to images in a container, which Pillow decodes while it opens or loads the container.
    """
    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels and pixels // 2  # Pillow warns at half the limit
        try:
            yield
        except Image.DecompressionBombError as error:
            raise ValueError(f"an image in it has more than the {pixels:,} pixels that are allowed") from error
        finally:
            Image.MAX_IMAGE_PIXELS = usual


_decoding = 0
_SILENT: Any = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings while any thread decodes: they do not name the file, and the image is readable.

    `warnings.catch_warnings` is not thread-safe: two threads that enter and leave it alternately leave the filters
    changed.
    """
    global _decoding
    with _opening:
        _decoding += 1
        if _decoding == 1:
            cast(list[Any], warnings.filters).insert(0, _SILENT)
    try:
        yield
    finally:
        with _opening:
            _decoding = max(0, _decoding - 1)
            if _decoding == 0:
                with suppress(ValueError):  # another thread has replaced the filters meanwhile
                    cast(list[Any], warnings.filters).remove(_SILENT)


@cache
def _silence_libtiff() -> None:
    """Prevent libtiff from writing errors without a file name to standard error; Pillow raises them as exceptions too.

    Pillow silences only libtiff's warnings. The library is found among the loaded files of the process, which only
    Linux lists; on other systems the lines appear.
    """
    with suppress(OSError):
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        for path in {line.split(maxsplit=5)[-1] for line in loaded if "/libtiff" in line}:
            with suppress(AttributeError):
                ctypes.CDLL(path).TIFFSetErrorHandler(None)


def _decode(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The pixels of an opened image in RGB, upright and resized; a huge image is reduced while it is read."""
    factor = 1
    if size is not None and image.width * image.height > HUGE:
        side = 4 * max(size)
        image.draft(None, (side, side))  # a JPEG is decoded directly at 1/2, 1/4 or 1/8 of its size
        factor = max(1, min(image.size) // side)
    if image.format == "TIFF":
        _silence_libtiff()
    image.load()
    decoded = _to_rgb(image, factor)
    with suppress(Exception):  # damaged metadata do not make an image unreadable
        decoded.info = image.info
        ImageOps.exif_transpose(decoded, in_place=True)
        decoded.getexif().clear()  # otherwise a viewer would rotate it a second time
    decoded.info = {}
    if size is None or decoded.size == (size[1], size[0]):
        return decoded
    return decoded.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """`image` in RGB, averaged over `factor`×`factor` pixels, in bands, to avoid a second full copy in memory."""
    rows = max(1, 2**20 // image.width // factor) * factor
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    levels = _levels(image.crop(box) for box in boxes) if image.mode.startswith(("I", "F")) else None
    if len(boxes) == factor == 1:
        return _band_to_rgb(image, levels)
    reduced = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for box in boxes:
        reduced.paste(_band_to_rgb(image.crop(box), levels).reduce(factor), (0, box[1] // factor))
    return reduced


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
    """The values that become black and white in an image of numbers, read in `bands`."""
    low, high = np.inf, -np.inf
    for band in bands:
        if band.mode.startswith("I;16"):
            return 0.0, 65535.0
        values = np.asarray(band, np.float64)
        values = values[np.isfinite(values)]
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    fitting = (top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top)
    return next(((0.0, top) for top in fitting), (float(low), float(high))) if low <= high else (0.0, 1.0)
