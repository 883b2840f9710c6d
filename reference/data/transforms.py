"""Chapters 03 and 04: from an image to the tensor that a network takes as input.

A transform is created once and then called with one image after the other. An image is a PIL image or a tensor
`[…, channels, height, width]`; the output is of the same kind, except for `ToTensor`.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn

from reference.data.resampling import resize_tensor

ImageOrTensor: TypeAlias = Image.Image | Tensor
"""A PIL image, or a tensor `[…, height, width]`."""

Size: TypeAlias = int | Sequence[int]
"""One number, or a pair (height, width)."""

_BYTES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_SHORTS = "I;16" if sys.byteorder == "little" else "I;16B"
_MODES: dict[str, Any] = dict.fromkeys(_BYTES, np.uint8) | {_SHORTS: np.int16, "I": np.int32, "F": np.float32}
"""The numpy dtype of each PIL mode's pixels."""

PADDING_MODES = ("constant", "edge", "reflect", "symmetric")
"""The padding modes of `RandomCrop`."""


class Compose:
    """Apply transforms one after the other: `Compose([f, g])(x) = g(f(x))`.

    Args:
        transforms: callables of one argument, in the order of their calls; an empty list is the identity.

    Raises:
        TypeError: `transforms` is not a sequence, or one of them is not callable.
    """

    def __init__(self, transforms: Iterable[Any]) -> None:
        if not isinstance(transforms, Iterable) or isinstance(transforms, Iterator):
            raise TypeError(f"Compose: transforms must be a list of transforms, got {type(transforms).__name__}")
        for number, transform in enumerate(transforms):
            if not callable(transform):
                raise TypeError(f"Compose: transforms[{number}] is not callable: {transform!r}")
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        return "\n".join(["Compose(", *(f"    {transform}" for transform in self.transforms), ")"])


class ToTensor:
    """Convert an image to a tensor `[channels, height, width]`; bytes become floats from 0 to 1.

        output[c, y, x] = image[y, x, c] / 255

    Only bytes are scaled: the PIL modes 1 (black is 0, white 1), L, LA, P (its palette's indices), PA, RGB, RGBA, RGBX,
    CMYK, YCbCr, HSV and LAB, and arrays of uint8. They become PyTorch's default dtype, float32 unless it was changed.
    Other numbers are unchanged: I becomes int32, F becomes float32, and I;16 becomes int16, in which values from 32768
    on are negative. An array is `[height, width, channels]` or `[height, width]` and keeps its dtype unless it is
    uint8.

    The result is a copy: changing it does not change the image.

    Raises:
        TypeError: the argument is neither a PIL image nor a numpy array, or its dtype has no counterpart in PyTorch.
        ValueError: an array of other than 2 or 3 dimensions, or a mode that is not listed above.
    """

    def __call__(self, image: Image.Image | np.ndarray) -> Shaped[Tensor, "channels height width"]:
        if isinstance(image, Image.Image):
            if image.mode not in _MODES:
                raise ValueError(f"ToTensor: image has mode {image.mode}; convert it to RGB or L first")
            array = np.array(image, _MODES[image.mode])
            if image.mode == "1":
                array *= 255
        elif isinstance(image, np.ndarray):
            if image.ndim not in (2, 3):
                raise ValueError(f"ToTensor: an array must have 2 or 3 dimensions, got the shape {image.shape}")
            # the copy also removes negative strides of a mirrored array, which a tensor cannot have
            array = image.copy()
        else:
            raise TypeError(f"ToTensor: image must be a PIL image or a numpy array, got {type(image).__name__}")
        pixels = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()
        return pixels.to(torch.get_default_dtype()).div(255) if pixels.dtype == torch.uint8 else pixels

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize(nn.Module):
    """Shift and scale each channel:

        output[c] = (input[c] − mean[c]) / std[c]

    With the mean and the standard deviation (not the variance, its square) of the channel's values, the result has
    mean 0 and standard deviation 1.

    Args:
        mean: a number for each channel, or one for all.
        std: a number for each channel, or one for all; not 0.
        inplace: write into the input instead of a new tensor.

    Raises:
        TypeError: the input is not a float tensor.
        ValueError: the input has fewer than 3 dimensions, or another number of channels than `mean` and `std` have
            values; or `std` is 0 in the input's dtype.
    """

    def __init__(self, mean: Any, std: Any, inplace: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
        self.inplace = inplace

    def forward(self, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch channels height width"]:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Normalize: the input must be a tensor, got {type(tensor).__name__}; ToTensor makes one")
        if not tensor.is_floating_point():
            raise TypeError(f"Normalize: the input must be a float tensor, got {tensor.dtype}; ToTensor scales bytes")
        if tensor.dim() < 3:
            raise ValueError(f"Normalize: the input must be [..., C, H, W], got the shape {tuple(tensor.shape)}")
        mean, std = self._for_each_channel("mean", tensor), self._for_each_channel("std", tensor)
        if (std == 0).any():
            raise ValueError(f"Normalize: std must not be zero, got {self.std} in {tensor.dtype}")
        return tensor.sub_(mean).div_(std) if self.inplace else (tensor - mean) / std

    def _for_each_channel(self, name: str, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`mean` or `std`, to be broadcast over the pixels."""
        numbers = torch.as_tensor(getattr(self, name), dtype=tensor.dtype, device=tensor.device)
        if numbers.dim() == 1:
            numbers = numbers.reshape(-1, 1, 1)
        channels = tensor.shape[-3]
        if numbers.numel() not in (1, channels):
            raise ValueError(f"Normalize: {name} has {numbers.numel()} values, but the image has {channels} channels")
        return numbers

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class Resize(nn.Module):
    """Resize an image; its aspect ratio may change.

    A size of one number sets the shorter side and keeps the aspect ratio; the result is in general not a square.

        (height, width) → (size, ⌊size · width / height⌋)        if height ≤ width

    PIL images are resized by Pillow, tensors by `resize_tensor`; the dtype or mode stays the same. An image that has
    the requested size already is returned itself.

    Args:
        size: of the shorter side, or a pair (height, width), in pixels.
        interpolation: `PIL.Image.Resampling.BILINEAR`, `BICUBIC` or `NEAREST`, or torchvision's `InterpolationMode`;
            for PIL images Pillow's others too. Nearest differs between the two: a tensor takes the pixel
            ⌊o · old / new⌋, Pillow the pixel under the new pixel's centre.
        max_size: upper limit of the longer side; a longer one becomes `max_size`, and the shorter side shrinks in
            proportion. Only for a single `size`.
        antialias: whether shrinking tensors average over all their pixels. PIL images always do.

    Raises:
        TypeError: `size` is not an integer or a sequence of integers, or the argument is not an image.
        ValueError: `size`, `interpolation` or `max_size` is none of the above, or leaves no pixel.
    """

    def __init__(
        self,
        size: Size,
        interpolation: Any = Image.Resampling.BILINEAR,
        max_size: int | None = None,
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        sides = _as_sizes("Resize", size)
        if max_size is not None and len(sides) == 2:
            raise ValueError(f"Resize: max_size is for one number as size only, got size={size}, max_size={max_size}")
        if max_size is not None and max_size <= sides[0]:
            raise ValueError(f"Resize: max_size must be larger than size, got max_size={max_size}, size={size}")
        self.size = size
        self.max_size = max_size
        self.interpolation = _as_resampling(interpolation)
        self.antialias = antialias

    def forward(self, image: ImageOrTensor) -> ImageOrTensor:
        old = _height_and_width("Resize", image)
        new = self._new_size(*old)
        if new == old:
            return image
        if not isinstance(image, Image.Image):
            return resize_tensor(image, new, self.interpolation, bool(self.antialias))
        if self.antialias is False:
            warnings.warn("Resize: antialias=False is ignored, Pillow always antialiases", stacklevel=2)
        return image.resize((new[1], new[0]), self.interpolation)

    def _new_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result."""
        sides = _as_sizes("Resize", self.size)
        if len(sides) == 2:
            return sides[0], sides[1]
        if 0 in (height, width):
            raise ValueError(f"Resize: an image of {height}×{width} pixels has no shorter side; sizes start at 1")
        short, long = sides[0], int(sides[0] * max(height, width) / min(height, width))
        if self.max_size is not None and long > self.max_size:
            short, long = int(self.max_size * short / long), self.max_size
        if short < 1:
            raise ValueError(f"Resize: max_size={self.max_size} leaves no pixel of the size {height}×{width}")
        return (short, long) if height < width else (long, short)

    def __repr__(self) -> str:
        name = self.interpolation.name.lower()
        return f"Resize(size={self.size}, interpolation={name}, max_size={self.max_size}, antialias={self.antialias})"


class RandomCrop(nn.Module):
    """Crop a window of the image at a random position, drawn anew in each call.

    All (height − size[0] + 1) · (width − size[1] + 1) positions are equally likely. The row is drawn first, then the
    column, each with `torch.randint`; nothing is drawn if the window is the whole image.

    Args:
        size: of the window: (height, width), or one number for a square.
        padding: a border to add first: one number of pixels for all sides, two (left and right, top and bottom), or
            four (left, top, right, bottom).
        pad_if_needed: pad an image that is still too small on both sides.
        fill: the border's value: a number, or for PIL images one for each channel.
        padding_mode: values of the border: "constant" is `fill`; "edge" repeats the last pixel, "reflect" mirrors the
            image without its last pixel (`c b | a b c | b a`), "symmetric" with it (`b a | a b c | c b`).

    Raises:
        TypeError: `size` or `padding` is not an integer or a sequence of integers, `fill` is not a number, or the
            argument is not an image.
        ValueError: `size`, `padding` or `padding_mode` is none of the above; the window is larger than the image.
    """

    def __init__(
        self,
        size: Size,
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: Any = 0,
        padding_mode: str = "constant",
    ) -> None:
        super().__init__()
        sides = _as_sizes("RandomCrop", size)
        self.size = (sides[0], sides[-1])
        self.padding = padding
        self.borders = _as_borders(padding)
        self.pad_if_needed = pad_if_needed
        self.fill = fill
        if padding_mode not in PADDING_MODES:
            known = ", ".join(PADDING_MODES)
            raise ValueError(f"RandomCrop: padding_mode must be one of {known}, got {padding_mode!r}")
        self.padding_mode = padding_mode

    def forward(self, image: ImageOrTensor) -> ImageOrTensor:
        _height_and_width("RandomCrop", image)
        image = self._pad(image, self.borders)
        height, width = _height_and_width("RandomCrop", image)
        if self.pad_if_needed:
            missing = max(self.size[1] - width, 0), max(self.size[0] - height, 0)
            image = self._pad(image, _Borders(*missing, *missing))
            height, width = _height_and_width("RandomCrop", image)
        rows, columns = self.size
        if rows > height or columns > width:
            raise ValueError(f"RandomCrop: crop size {self.size} is larger than the image, {height}×{width}")
        top = left = 0
        if (rows, columns) != (height, width):
            top = int(torch.randint(height - rows + 1, (1,)))
            left = int(torch.randint(width - columns + 1, (1,)))
        if isinstance(image, Image.Image):
            return image.crop((left, top, left + columns, top + rows))
        return image[..., top : top + rows, left : left + columns]

    def _pad(self, image: ImageOrTensor, borders: "_Borders") -> ImageOrTensor:
        if not any(borders):
            return image
        if self.padding_mode == "constant":
            return _framed(image, borders, self.fill)
        return _continued(image, borders, self.padding_mode)

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, padding={self.padding})"


class RandomHorizontalFlip(nn.Module):
    """Flip the image horizontally with probability `p`, drawn anew in each call.

        output[…, y, x] = input[…, y, width − 1 − x]        if u < p, with u uniform in [0, 1)

    Args:
        p: the probability of a flip.

    Raises:
        TypeError: the argument is not an image.
        ValueError: `p` is outside [0, 1].
    """

    def __init__(self, p: float | int = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be a probability from 0 to 1, got {p}")
        self.p = p

    def forward(self, image: ImageOrTensor) -> ImageOrTensor:
        _height_and_width("RandomHorizontalFlip", image)
        if torch.rand(1) >= self.p:
            return image
        if isinstance(image, Image.Image):
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.flip(-1)

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p})"


class _Borders(NamedTuple):
    """The number of pixels added on each side."""

    left: int
    top: int
    right: int
    bottom: int


def _as_borders(padding: int | Sequence[int] | None) -> _Borders:
    """`RandomCrop`'s padding as the number of pixels for each side."""
    if padding is None:
        return _Borders(0, 0, 0, 0)
    numbers = (padding,) if isinstance(padding, int) else padding
    if not isinstance(numbers, Sequence) or not all(isinstance(number, int) for number in numbers):
        raise TypeError(f"RandomCrop: padding must be an integer or a sequence of integers, got {padding!r}")
    if len(numbers) not in (1, 2, 4) or min(numbers) < 0:
        raise ValueError(f"RandomCrop: padding must be 1, 2 or 4 numbers of pixels, got {padding!r}")
    return _Borders(*(tuple(numbers) * 4)[:4])


def _as_sizes(transform: str, size: Size) -> tuple[int, ...]:
    """Check one or two sizes, each at least 1."""
    sides = (size,) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or not all(isinstance(side, int) for side in sides):
        raise TypeError(f"{transform}: size must be an integer or a pair (height, width), got {size!r}")
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"{transform}: size must be 1 or 2 numbers of pixels, at least 1, got {size!r}")
    return tuple(sides)


def _as_resampling(interpolation: Any) -> Image.Resampling:
    """Pillow's constant for an interpolation; the values of torchvision's enumeration are the names of Pillow's."""
    value = getattr(interpolation, "value", interpolation)
    try:
        return Image.Resampling[value.upper()] if isinstance(value, str) else Image.Resampling(value)
    except (KeyError, ValueError):
        names = ", ".join(constant.name for constant in Image.Resampling)
        raise ValueError(f"Resize: interpolation must be one of Pillow's {names}, got {interpolation!r}") from None


def _height_and_width(transform: str, image: Any) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, Tensor) and image.dim() >= 2:
        return image.shape[-2], image.shape[-1]
    got = f"the shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
    raise TypeError(f"{transform}: needs a PIL image or a tensor image [..., height, width], got {got}")


def _framed(image: ImageOrTensor, borders: _Borders, fill: Any) -> ImageOrTensor:
    """The image with a border of `fill`."""
    left, top, right, bottom = borders
    height, width = _height_and_width("RandomCrop", image)
    if isinstance(image, Tensor):
        if not isinstance(fill, int | float):
            raise TypeError(f"RandomCrop: fill must be one number for a tensor, got {fill!r}")
        framed = image.new_full((*image.shape[:-2], height + top + bottom, width + left + right), fill)
        framed[..., top : top + height, left : left + width] = image
        return framed
    bands = len(image.getbands())
    values = [fill] * bands if isinstance(fill, int | float) else list(fill) * (bands if len(fill) == 1 else 1)
    if len(values) != bands:
        raise ValueError(f"RandomCrop: fill must be one number or {bands}, as the image's channels, got {fill!r}")
    colour = tuple(value if image.mode == "F" else int(value) for value in values)
    size = (width + left + right, height + top + bottom)
    framed = Image.new(image.mode, size, colour if bands > 1 else colour[0])
    framed.paste(image, (left, top))
    return _with_palette_of(image, framed)


def _continued(image: ImageOrTensor, borders: _Borders, padding_mode: str) -> ImageOrTensor:
    """The image with a border of its own pixels (`edge`, `reflect`, `symmetric`)."""
    height, width = _height_and_width("RandomCrop", image)
    rows = _continued_places(height, borders.top, borders.bottom, padding_mode)
    columns = _continued_places(width, borders.left, borders.right, padding_mode)
    if isinstance(image, Tensor):
        rows, columns = rows.to(image.device), columns.to(image.device)
        return image[..., rows[:, None], columns]
    places = np.ix_(rows.numpy(), columns.numpy())
    bands = [Image.fromarray(np.asarray(band)[places]) for band in image.split()]
    continued = Image.merge(image.mode, bands) if len(bands) > 1 else bands[0]
    return _with_palette_of(image, continued)


def _continued_places(size: int, before: int, after: int, padding_mode: str) -> Tensor:
    """The index of the old pixel for each position of the padded side."""
    places = torch.arange(-before, size + after, device="cpu")
    if padding_mode == "edge":
        return places.clamp(0, size - 1)
    # a b c b | a b c b … without the last pixel twice, a b c c b a | … with it
    way = torch.arange(size, device="cpu")
    back = way.flip(0) if padding_mode == "symmetric" else way[1:-1].flip(0)
    period = torch.cat([way, back])
    return period[places % len(period)]


def _with_palette_of(source: Image.Image, target: Image.Image) -> Image.Image:
    if (palette := source.getpalette()) is not None:
        target.putpalette(palette)
    return target
