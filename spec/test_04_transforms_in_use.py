"""Chapter 04: `Normalize`, `Resize`, `RandomCrop`, `RandomHorizontalFlip`, and `Compose`, which chains them."""

import importlib.util
import io
import math
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import reference
from spec.support.assertions import (
    Tolerance,
    assert_close,
    assert_differentiable,
    assert_equal,
    assert_printed,
    rejects,
    rounding,
)
from spec.support.clauses import clause
from spec.support.images import MODES, pixels_of, random_image
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seed_all, seeds, whole

Transform = Callable[..., Any]
Pair = tuple[int, int]

sides = st.integers(1, 6)
Resampling = Image.Resampling


@cache
def photograph() -> Image.Image:
    """An image with the size and the first byte of the tutorial's photograph, 768×512: slopes in three directions."""
    y, x = np.mgrid[:512, :768]
    image = np.stack([(80 + x) % 256, (x + y) % 256, (3 * y) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(image)


def seed_everything(seed: int) -> None:
    """The documentation does not say from which generator a transform draws."""
    random.seed(seed)
    np.random.seed(seed)
    seed_all(seed)


def numbered(height: int, width: int) -> Tensor:
    """An image of one channel in which all pixels are different."""
    return torch.arange(height * width).reshape(1, height, width)


# The values


@clause("04.image.printed")
def test_the_photograph_prints_class_mode_and_size(tmp_path: Path) -> None:
    photograph().save(tmp_path / "0013035.jpg")
    with Image.open(tmp_path / "0013035.jpg") as image:
        # chapter 04, line 231; the size is (width, height)
        assert repr(image).startswith("<PIL.JpegImagePlugin.JpegImageFile image mode=RGB size=768x512 at 0x")


@clause("04.normalize.pixel")
def test_first_pixel_has_the_documented_value_before_and_after_normalize(
    ToTensor: Transform, Normalize: Transform
) -> None:
    tensor = ToTensor()(photograph())
    # chapter 04, lines 210 to 212
    normalized = Normalize([1, 3, 5], [0.5, 0.5, 0.5])(tensor)
    assert_printed(tensor[0][0][0], "0.3137")
    assert_printed(normalized[0][0][0], "-1.3725")
    # 2x − 2, 2x − 6 and 2x − 10 for x from 0 to 1
    assert_equal(normalized.amin((1, 2)), torch.tensor([-2.0, -6, -10], device="cpu"))
    assert_equal(normalized.amax((1, 2)), torch.tensor([0.0, -4, -8], device="cpu"))


@clause("04.resize.pair_of_512")
def test_resize_to_a_pair_of_512_makes_the_photograph_square(ToTensor: Transform, Resize: Transform) -> None:
    resized = Resize((512, 512))(photograph())
    # chapter 04, lines 244 to 249
    assert resized.size == (512, 512)
    assert ToTensor()(resized).shape == (3, 512, 512)


@clause("04.resize.one_512")
def test_resize_to_512_returns_the_photograph_unchanged(
    ToTensor: Transform, Resize: Transform, Compose: Transform
) -> None:
    tensor = Compose([Resize(512), ToTensor()])(photograph())
    # chapter 04, lines 252 to 254
    assert tensor.shape == (3, 512, 768)
    assert_equal(tensor, ToTensor()(photograph()))


@clause("04.crop.ten", "04.crop.random")
def test_ten_crops_of_512_differ_only_in_the_column(
    ToTensor: Transform, RandomCrop: Transform, Compose: Transform
) -> None:
    crop = Compose([RandomCrop(512), ToTensor()])
    # chapter 04, lines 259 to 263
    crops = [crop(photograph()) for _ in range(10)]
    assert {tuple(tensor.shape) for tensor in crops} == {(3, 512, 512)}
    # red grows by one from column to column: where each begins, modulo 256
    assert len({float(tensor[0, 0, 0]) for tensor in crops}) > 1
    assert {float(tensor[2, 0, 0]) for tensor in crops} == {0.0}  # blue is 0 in the first row only


@clause("04.crop.largest")
def test_largest_crop_of_the_photograph_is_512(RandomCrop: Transform) -> None:
    assert RandomCrop((512, 768))(photograph()).size == (768, 512)
    with rejects(naming=r"\bsize\b"):
        RandomCrop(513)(photograph())


# The claims


@clause("04.transforms.machine")
@pytest.mark.level("definition")
def test_a_transform_of_an_image_needs_no_accelerator(ToTensor: Transform, Normalize: Transform) -> None:
    assert str(Normalize([0.5], [0.5])(ToTensor()(photograph())).device) == "cpu"


@clause("04.board.distutils")
def test_tensorboard_needs_no_distutils() -> None:
    spec = importlib.util.find_spec("torch.utils.tensorboard")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or ()  # pyright: ignore[reportAssignmentType]
    texts = [path.read_text(encoding="utf-8") for path in Path(folder).glob("*.py")]
    assert any("SummaryWriter" in text for text in texts)
    assert [text for text in texts if "distutils" in text] == []


@clause("04.transforms.kinds")
def test_an_image_comes_as_a_pil_image_a_tensor_or_an_array(
    ToTensor: Transform, Resize: Transform, RandomCrop: Transform, RandomHorizontalFlip: Transform
) -> None:
    image = random_image("RGB", 4, 3, seed=0)
    array = np.array(image)
    assert_equal(ToTensor()(array), ToTensor()(image))
    for transform in (Resize((2, 2)), RandomCrop(2), RandomHorizontalFlip(1)):
        assert isinstance(transform(image), Image.Image)
        assert isinstance(transform(ToTensor()(image)), Tensor)
        with rejects("ndarray", "image", "img"):  # an array goes through ToTensor first
            transform(array)


@clause("04.normalize.formula", "04.normalize.no_variance")
def test_normalize_divides_by_the_standard_deviation_not_by_the_variance(Normalize: Transform) -> None:
    result = Normalize([1.0], [0.5])(torch.full((1, 1, 1), 3.0))
    # chapter 04, line 206, is right: (3 − 1) / 0.5; lines 207 and 218 are not: (3 − 1) / 0.5²
    assert_equal(result, [[[4.0]]])
    assert result.item() != (3 - 1) / 0.5**2


@clause("04.normalize.formula")
def test_normalize_by_own_mean_and_std_gives_mean_0_and_std_1(
    Normalize: Transform,
) -> None:
    pixels = normal(2, 8, 8, seed=1) * 3 + 7
    mean, deviation = pixels.mean((1, 2)), pixels.std((1, 2))
    result = Normalize(mean.tolist(), deviation.tolist())(pixels)
    assert_close(result.mean((1, 2)), [0.0, 0.0], rounding(torch.float64, 64 + 2, 20.0))
    assert_close(result.std((1, 2)), [1.0, 1.0], rounding(torch.float64, 64 + 2, 20.0))


@clause("04.normalize.board")
def test_normalized_image_is_black_in_tensorboard(ToTensor: Transform, Normalize: Transform, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    image = random_image("RGB", 5, 3, seed=0)
    with SummaryWriter(tmp_path) as writer:
        # chapter 04, line 213
        writer.add_image("Normalize", Normalize([1, 3, 5], [0.5, 0.5, 0.5])(ToTensor()(image)), 1)
    (shown,) = EventAccumulator(str(tmp_path)).Reload().Images("Normalize")
    assert set(Image.open(io.BytesIO(shown.encoded_image_string)).tobytes()) == {0}


@clause("04.crop.name")
def test_the_class_is_called_random_crop(RandomCrop: Transform) -> None:
    # chapter 04, lines 221, 224 and 258 write RanodmCrop
    assert RandomCrop.__name__ == "RandomCrop"
    assert not hasattr(importlib.import_module("torchvision.transforms"), "RanodmCrop")


@clause("04.resize.stretches")
def test_resize_pair_does_not_keep_the_aspect_ratio(Resize: Transform) -> None:
    disc = Image.new("L", (40, 20))
    disc.paste(255, (10, 0, 30, 20))  # a square of 20×20
    left, top, right, bottom = Resize((20, 20), Resampling.NEAREST)(disc).getbbox()
    assert (right - left, bottom - top) == (10, 20)


@clause("04.resize.pair")
def test_resize_pair_is_height_and_width(Resize: Transform) -> None:
    assert Resize((4, 7))(random_image("RGB", 5, 4, seed=0)).size == (7, 4)  # PIL: width first


@clause("04.resize.pair")
@pytest.mark.parametrize(("height", "width"), [(4, 5), (1, 7), (9, 2)])
@pytest.mark.level("definition")
def test_random_crop_pair_is_height_and_width(Resize: Transform, height: int, width: int) -> None:
    resize = Resize((height, width))
    assert resize(random_image("RGB", 5, 4, seed=0)).size == (width, height)  # PIL: width first
    assert resize(torch.zeros(3, 4, 5)).shape == (3, height, width)


@clause("04.resize.shorter_side")
def test_resize_to_one_number_makes_no_square(Resize: Transform) -> None:
    # chapter 04, line 241, states the opposite; line 251 is right
    assert Resize(256)(photograph()).size == (384, 256)


@clause("04.resize.shorter_side", "04.resize.proportions")
@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 12))
def test_resize_to_one_number_sets_the_shorter_side_and_keeps_the_aspect_ratio(
    Resize: Transform, height: int, width: int, size: int
) -> None:
    longer = size * max(height, width) // min(height, width)
    expected = (size, longer) if height <= width else (longer, size)
    assert Resize(size)(torch.zeros(1, height, width)).shape == (1, *expected)
    assert Resize([size])(Image.new("L", (width, height))).size == expected[::-1]


@clause("04.resize.proportions")
def test_resize_to_one_number_keeps_the_aspect_ratio_of_the_photograph(Resize: Transform) -> None:
    assert Resize(100)(photograph()).size == (150, 100)  # 768 / 512 = 150 / 100


@clause("04.resize.type")
@pytest.mark.parametrize("mode", MODES)
def test_resize_keeps_the_mode_of_an_image(Resize: Transform, mode: str) -> None:
    resized = Resize((2, 3))(random_image(mode, 5, 4, seed=0))
    assert isinstance(resized, Image.Image)
    assert (resized.mode, resized.size) == (mode, (3, 2))


@clause("04.resize.type")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "not"])
def test_resize_keeps_the_dtype_of_a_tensor(Resize: Transform, dtype: torch.dtype, antialias: bool) -> None:
    # an image of one value keeps it
    expected = torch.full((3, 2, 3), 9, dtype=dtype)
    resized = Resize((2, 3), antialias=antialias)(torch.full((3, 4, 6), 9, dtype=dtype))
    assert_close(resized, expected, rounding(torch.float32, 16, 9.0))


# The properties: Normalize


@clause("04.normalize.definition")
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)),
    batch=st.booleans(),
    one_for_all=st.booleans(),
    inplace=st.booleans(),
    dtype=dtypes(),
    layout=layouts,
    seed=seeds,
)
def test_normalize_is_the_formula_channel_by_channel(
    Normalize: Transform, shape: tuple[int, ...], batch: bool, one_for_all: bool, inplace: bool,
    dtype: torch.dtype, layout: int, seed: int,
) -> None:  # fmt: skip
    # integers divided by a power of 2: no step rounds
    pixels = whole(*shape[not batch :], seed=seed, dtype=dtype)
    channels = pixels.shape[-3]
    mean = whole(1 if one_for_all else channels, seed=seed + 1).tolist()
    std = [2.0 ** ((seed + c) % 3 - 1) * (-1) ** c for c in range(1 if one_for_all else channels)]
    expected = torch.stack(
        [(band - mean[c % len(mean)]) / std[c % len(std)] for c, band in enumerate(pixels.unbind(-3))], dim=-3
    )
    given_pixels = laid_out(pixels.clone(), layout)
    result = Normalize(mean, std, inplace)(given_pixels)
    assert_equal(result, expected)
    assert_equal(given_pixels, expected if inplace else pixels, "the input afterwards")
    assert (result is given_pixels) == inplace


@clause("04.normalize.definition")
@given(dtype=dtypes(), seed=seeds)
def test_normalize_rounds_twice_and_no_more(Normalize: Transform, dtype: torch.dtype, seed: int) -> None:
    pixels = normal(3, 2, 2, seed=seed, dtype=dtype)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    rounded = [torch.tensor(numbers, dtype=dtype).double().reshape(3, 1, 1) for numbers in (mean, std)]
    exact = (pixels.double() - rounded[0]) / rounded[1]
    assert_close(Normalize(mean, std)(pixels), exact.to(dtype), rounding(dtype, 2, exact.abs()))


@clause("04.normalize.inverse")
@given(mean=st.floats(-2, 2), std=st.floats(0.25, 4), seed=seeds)
def test_normalize_can_be_undone_by_normalize(Normalize: Transform, mean: float, std: float, seed: int) -> None:
    pixels = normal(2, 3, 3, seed=seed)
    there = Normalize([mean] * 2, [std] * 2)(pixels)
    back = Normalize([-mean / std] * 2, [1 / std] * 2)(there)
    # two roundings in each direction, of the numbers and of −mean / std and 1 / std, scaled back by std
    largest = pixels.abs() + 2 * abs(mean)
    assert_close(back, pixels, rounding(torch.float64, 6, largest))


@clause("04.normalize.non_finite")
def test_normalize_keeps_nan_and_inf_in_place(Normalize: Transform) -> None:
    pixels = torch.tensor([[[math.nan, math.inf, -math.inf, 1.0]]])
    assert_equal(Normalize([3], [2])(pixels), [[[math.nan, math.inf, -math.inf, -1.0]]])


@clause("04.normalize.gradients")
def test_normalize_is_differentiable(Normalize: Transform) -> None:
    assert_differentiable(Normalize([1, 2], [0.5, 4]), normal(2, 2, 2, seed=0).requires_grad_())


# The properties: Resize


Kernel = Callable[[Fraction], Fraction]


def triangle(t: Fraction) -> Fraction:
    return max(Fraction(0), 1 - t)


def cubic(a: Fraction) -> Kernel:
    """Keys' piecewise cubic (1981), with the slope `a` at the distance 1."""
    near = lambda t: (a + 2) * t**3 - (a + 3) * t**2 + 1  # noqa: E731
    far = lambda t: a * (t**3 - 5 * t**2 + 8 * t - 4)  # noqa: E731
    return lambda t: near(t) if t <= 1 else far(t) if t < 2 else Fraction(0)


def resize_weights(old: int, new: int, antialias: bool, kernel: Kernel = triangle) -> list[list[Fraction]]:
    """The exact weight of each old pixel in each new one, from the definition: the kernel around the centre."""
    half = Fraction(1, 2)
    rows = []
    for o in range(new):
        centre = (o + half) * old / new
        reach = max(Fraction(old, new), Fraction(1)) if antialias else Fraction(1)
        row = [Fraction(0)] * old
        for i in range(-old, 2 * old):
            if antialias and not 0 <= i < old:
                continue
            row[min(max(i, 0), old - 1)] += kernel(abs(i + half - centre) / reach)
        rows.append([weight / sum(row) for weight in row])
    return rows


def bilinear(pixels: list[list[list[float]]], size: Pair, antialias: bool) -> Tensor:
    """Every new pixel as a weighted mean of the old ones; the weights are exact, one rounding to float64 for each."""
    vertical = resize_weights(len(pixels[0]), size[0], antialias)
    horizontal = resize_weights(len(pixels[0][0]), size[1], antialias)
    numbers = [
        [
            [
                float(sum(w * sum(v * int(p) for v, p in zip(across, line, strict=True) if v)
                          for w, line in zip(down, band, strict=True) if w))
                for across in horizontal
            ]
            for down in vertical
        ]
        for band in pixels
    ]  # fmt: skip
    return torch.tensor(numbers, dtype=torch.float64)


def resize_rounding(dtype: torch.dtype, size: Pair, antialias: bool) -> Tolerance:
    """Two sums over a window, with weights from centres that are rounded at the size of the side."""
    window = 2 * max(size) if antialias else 2
    return rounding(dtype, 2 * (window + 4 * max(size)), 255.0)


# PyTorch 2.14.1 on the CPU: with antialias, a tensor resized to a width of 1 repeats its first row in all rows.
resized_sides = st.tuples(st.integers(1, 6), st.integers(2, 6))


@clause("04.resize.bilinear", "04.resize.antialias")
@given(
    old=st.tuples(sides, sides),
    new=resized_sides,
    antialias=st.booleans(),
    batch=st.booleans(),
    dtype=dtypes(),
    layout=layouts,
    seed=seeds,
)
def test_a_resized_tensor_is_the_weighted_means_of_the_definition(
    Resize: Transform, old: Pair, new: Pair, antialias: bool, batch: bool, dtype: torch.dtype, layout: int, seed: int
) -> None:
    pixels = whole(1, *old, seed=seed, dtype=dtype, largest=255)
    before = laid_out(pixels[None] if batch else pixels, layout)
    result = Resize(new, antialias=antialias)(before)
    expected = bilinear(pixels.tolist(), new, antialias)
    computed = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    tolerance = resize_rounding(computed, old, antialias).absolute
    if dtype != computed:  # and then rounded once
        tolerance = tolerance + torch.finfo(dtype).eps * 255.0
    assert_close(
        result, (expected[None] if batch else expected).to(dtype), Tolerance(tolerance, "sums of a window of pixels")
    )
    assert_equal(before, pixels[None] if batch else pixels, "the input afterwards")


@clause("04.resize.bytes")
@given(old=st.tuples(sides, sides), new=resized_sides, antialias=st.booleans(), seed=seeds)
def test_resized_bytes_are_the_nearest_whole_numbers(
    Resize: Transform, old: Pair, new: Pair, antialias: bool, seed: int
) -> None:
    pixels = whole(1, *old, seed=seed, largest=255).abs().to(torch.uint8)
    exact = bilinear(pixels.tolist(), new, antialias)
    result = Resize(new, antialias=antialias)(pixels)
    assert result.dtype == torch.uint8
    assert_close(result.double(), exact, Tolerance(0.501, "half a unit, and what float32 adds to 255"))


@clause("04.resize.pillow")
@given(
    mode=st.sampled_from(MODES),
    old=st.tuples(sides, sides),
    new=st.tuples(sides, sides),
    interpolation=st.sampled_from([Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC]),
    seed=seeds,
)
def test_a_resized_image_is_pillow_s_to_the_last_bit(
    Resize: Transform, mode: str, old: Pair, new: Pair, interpolation: Any, seed: int
) -> None:
    image = random_image(mode, *old, seed)
    before = image.tobytes()
    resized = Resize(new[::-1], interpolation=interpolation)(image)
    assert resized.tobytes() == image.resize(new, interpolation).tobytes()
    assert image.tobytes() == before


@clause("04.resize.pillow", "04.resize.antialias")
@given(mode=st.sampled_from(["L", "RGB"]), old=st.tuples(sides, sides), new=st.tuples(sides, sides), seed=seeds)
def test_a_resized_image_is_the_antialiased_definition_rounded_twice(
    Resize: Transform, mode: str, old: Pair, new: Pair, seed: int
) -> None:
    image = random_image(mode, *old, seed)
    result = torch.tensor(pixels_of(Resize(new)(image)), dtype=torch.float64)
    twice = Tolerance(1.001, "half a unit along the rows, half along the columns, and 22 bits of each weight")
    assert_close(result, bilinear(pixels_of(image), new, antialias=True), twice)


@clause("04.resize.antialias")
def test_without_antialias_a_tensor_that_shrinks_loses_pixels(Resize: Transform) -> None:
    stripes = torch.tensor([0.0, 0, 0, 255] * 2).expand(1, 2, 8)
    # the centres of the two new pixels lie between the old ones 1 and 2, and 5 and 6
    assert_equal(Resize((2, 2), antialias=False)(stripes), [[[0.0, 0.0]] * 2])
    # of the first six they weigh 5, 7, 7, 5, 3 and 1 of 28
    expected = bilinear(stripes.tolist(), (2, 2), antialias=True)
    assert float(expected[0, 0, 0]) == pytest.approx(255 * 5 / 28)
    assert_close(Resize((2, 2))(stripes), expected.float(), resize_rounding(torch.float32, (2, 8), True))


@clause("04.resize.antialias")
def test_pil_images_are_always_antialiased(Resize: Transform) -> None:
    image = random_image("RGB", 6, 6, seed=0)
    with pytest.warns(UserWarning, match=r"(?i)anti-?alias.*ignored"):
        resized = Resize((2, 2), antialias=False)(image)
    assert resized.tobytes() == Resize((2, 2))(image).tobytes()


@clause("04.resize.nearest")
@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), dtype=dtypes(), seed=seeds)
def test_nearest_resize_copies_the_pixel_at_the_rounded_down_index(
    Resize: Transform, old: Pair, new: Pair, dtype: torch.dtype, seed: int
) -> None:
    pixels = whole(2, *old, seed=seed, dtype=dtype)
    rows = [o * old[0] // new[0] for o in range(new[0])]
    columns = [o * old[1] // new[1] for o in range(new[1])]
    assert_equal(Resize(new, Resampling.NEAREST)(pixels), pixels[:, rows][:, :, columns])


@clause("04.resize.nearest")
def test_nearest_resize_differs_between_image_and_tensor(Resize: Transform) -> None:
    line = torch.tensor([[[10, 20, 30, 40]]], dtype=torch.uint8)
    halve = Resize((1, 2), Resampling.NEAREST)
    assert_equal(halve(line), [[[10, 30]]])
    assert halve(Image.fromarray(line[0].cpu().numpy())).tobytes() == bytes([20, 40])  # under the centres


@clause("04.resize.bicubic")
@pytest.mark.parametrize("antialias", [True, False], ids=["slope -1/2", "slope -3/4"])
def test_bicubic_resize_uses_the_piecewise_cubic_kernel(Resize: Transform, antialias: bool) -> None:
    line = torch.tensor([[[0.0, 0, 0, 16, 0, 0, 0]] * 2])
    wide = Resize((2, 21), Resampling.BICUBIC, antialias=antialias)(line)
    # a new pixel at the distance t of the bright one has 16 · kernel(t); t = 1/3, 2/3, 4/3, 5/3 …
    a = -0.5 if antialias else -0.75
    near = lambda t: (a + 2) * t**3 - (a + 3) * t**2 + 1  # noqa: E731
    far = lambda t: a * (t**3 - 5 * t**2 + 8 * t - 4)  # noqa: E731
    side = [far(5 / 3), far(4 / 3), 0, near(2 / 3), near(1 / 3)]
    expected = torch.tensor([0, 0, 0, 0, 0, *side, 1, *side[::-1], 0, 0, 0, 0, 0]) * 16
    assert_close(wide[0, 1], expected, rounding(torch.float32, 60, 16.0))


@clause("04.resize.bicubic", "04.resize.antialias")
@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "not"])
@pytest.mark.parametrize(("old", "new"), [(5, 3), (7, 2), (11, 4), (6, 5), (4, 9)])
def test_bicubic_resize_stretches_the_kernel_of_a_shrinking_side_with_antialias(
    Resize: Transform, old: int, new: int, antialias: bool
) -> None:
    kernel = cubic(Fraction(-1, 2) if antialias else Fraction(-3, 4))
    ones = torch.eye(old).reshape(old, 1, old).expand(old, 2, old)  # for each old pixel a line with 1 there
    found = Resize((2, new), Resampling.BICUBIC, antialias=antialias)(ones)[:, 0]
    expected = torch.tensor([[float(w) for w in row] for row in resize_weights(old, new, antialias, kernel)]).mT
    # the weights from centres that are rounded at the size of the side, and their sum
    assert_close(found, expected.to(found), rounding(torch.float32, 4 * old + 4 * old, 2.0))


@clause("04.resize.bicubic")
def test_bicubic_resize_of_bytes_stays_within_0_and_255(Resize: Transform) -> None:
    edge = torch.tensor([0, 0, 0, 255, 255, 255], dtype=torch.uint8).expand(1, 2, 6)
    shown = Resize((2, 18), Resampling.BICUBIC)(edge)
    assert shown.dtype == torch.uint8
    assert_equal(shown[0, 0], sorted(shown[0, 0].tolist()))  # an overflow would give dark pixels among the bright ones


@clause("04.resize.max_size")
@pytest.mark.parametrize(
    ("height", "width", "size", "max_size", "becomes"),
    [(100, 400, 50, 150, (37, 150)), (400, 100, 50, 150, (150, 37)), (100, 400, 50, 250, (50, 200))],
    ids=["a wide one", "a high one", "one that is small enough"],
)
def test_resize_limits_the_longer_side_to_max_size(
    Resize: Transform, height: int, width: int, size: int, max_size: int, becomes: Pair
) -> None:
    resize = Resize(size, max_size=max_size)
    assert resize(torch.zeros(1, height, width)).shape == (1, *becomes)
    assert resize(Image.new("L", (width, height))).size == becomes[::-1]


@clause("04.resize.identity")
def test_an_image_of_the_right_size_is_returned_itself(Resize: Transform) -> None:
    image, tensor = random_image("RGB", 4, 3, seed=0), torch.rand(3, 3, 4)
    for resize in (Resize(3), Resize((3, 4))):
        assert resize(image) is image
        assert resize(tensor) is tensor


@clause("04.resize.non_finite")
@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "not"])
def test_resize_spreads_nan_only_within_the_window(Resize: Transform, antialias: bool) -> None:
    pixels = torch.zeros(1, 2, 8)
    pixels[..., 7] = math.nan
    assert_equal(Resize((2, 4), antialias=antialias)(pixels).isnan()[0, 0], [False, False, False, True])


@clause("04.resize.empty_batch")
@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "not"])
def test_transforms_accept_an_empty_batch(Resize: Transform, antialias: bool) -> None:
    assert Resize((2, 3), antialias=antialias)(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 2, 3)


@clause("04.resize.gradients")
@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "not"])
@pytest.mark.parametrize("size", [(2, 2), (4, 5)], ids=["shrinking", "growing"])
def test_resize_is_differentiable(Resize: Transform, size: Pair, antialias: bool) -> None:
    assert_differentiable(Resize(size, antialias=antialias), normal(1, 3, 3, seed=0).requires_grad_())


# The properties: RandomCrop


@st.composite
def crops(draw: st.DrawFn) -> tuple[int, int, Pair, Any]:
    """Height and width of an image, a window that fits into the padded image, and the padding."""
    height, width = draw(st.integers(3, 6)), draw(st.integers(3, 6))
    padding = draw(
        st.sampled_from([None, 0, 1, 2]) | st.tuples(*[st.integers(0, 2)] * 2) | st.tuples(*[st.integers(0, 2)] * 4)
    )
    left, top, right, bottom = borders(padding)
    size = draw(st.integers(1, height + top + bottom)), draw(st.integers(1, width + left + right))
    return height, width, size, padding


def borders(padding: Any) -> tuple[int, ...]:
    """Left, top, right, bottom."""
    if padding is None or isinstance(padding, int):
        return (padding or 0,) * 4
    return padding if len(padding) == 4 else padding * 2


def padded(pixels: np.ndarray, padding: Any, padding_mode: str, fill: int) -> np.ndarray:
    """Rows and columns (and channels) with a border, by numpy."""
    left, top, right, bottom = borders(padding)
    width = [(top, bottom), (left, right), (0, 0)][: pixels.ndim]
    return np.pad(pixels, width, padding_mode, **({"constant_values": fill} if padding_mode == "constant" else {}))  # pyright: ignore[reportArgumentType, reportCallIssue]


@clause("04.crop.window", "04.crop.padding")
@given(
    case=crops(),
    padding_mode=st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
    kind=st.sampled_from(["tensor", "batch", "grey image", "colours"]),
    seed=seeds,
)
def test_every_crop_is_a_window_of_the_padded_image(
    RandomCrop: Transform, case: tuple[int, int, Pair, Any], padding_mode: str, kind: str, seed: int
) -> None:
    height, width, size, padding = case
    array = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    array = np.stack([array, array + 1, array + 2], -1) if kind == "colours" else array
    whole_image = padded(array, padding, padding_mode, 200)
    seed_all(seed)
    crop = RandomCrop(size, padding, fill=200, padding_mode=padding_mode)
    if kind in ("tensor", "batch"):
        pixels = torch.tensor(array).expand(*([2] if kind == "batch" else []), 3, height, width)
        cropped = crop(pixels)
        found = cropped.flatten(0, -3)[0].numpy()
        assert_equal(cropped, torch.tensor(found).expand(*pixels.shape[:-2], *size))
    else:
        found = np.array(crop(Image.fromarray(array)))
    windows = np.lib.stride_tricks.sliding_window_view(whole_image, size, axis=(0, 1))
    windows = windows.reshape(-1, *whole_image.shape[2:], *size)
    wanted = found if found.ndim == 2 else np.moveaxis(found, -1, 0)
    assert (windows == wanted).reshape(len(windows), -1).all(1).any(), "no window of the padded image looks like this"


@clause("04.crop.draws")
@given(
    height=st.integers(1, 5), width=st.integers(1, 5), size=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=seeds
)
def test_random_crop_row_is_drawn_first_and_only_if_needed(
    RandomCrop: Transform, height: int, width: int, size: Pair, seed: int
) -> None:
    size = min(size[0], height), min(size[1], width)
    pixels = numbered(height, width)
    seed_all(seed)
    top = left = 0
    if (height, width) != size:
        top = int(torch.randint(0, height - size[0] + 1, (1,)))
        left = int(torch.randint(0, width - size[1] + 1, (1,)))
    next_number = torch.rand(1)
    seed_all(seed)
    assert_equal(RandomCrop(size)(pixels), pixels[:, top : top + size[0], left : left + size[1]])
    assert_equal(torch.rand(1), next_number, "the next random number")


@clause("04.crop.random", "04.crop.uniform")
@pytest.mark.level("definition")
def test_random_crop_positions_are_equally_likely(RandomCrop: Transform) -> None:
    pixels, crop, draws = numbered(3, 4), RandomCrop(2), 2000
    counts = Counter(int(crop(pixels)[0, 0, 0]) for _ in range(draws))
    corners = [0, 1, 2, 4, 5, 6]  # the first pixel of each of the 2 · 3 windows
    assert sorted(counts) == corners
    # Hoeffding: one of the 6 frequencies has a larger error with a probability below 12 · exp(−2 n t²) = 10⁻⁹
    t = math.sqrt(math.log(12 / 1e-9) / (2 * draws))
    assert [corner for corner in corners if abs(counts[corner] / draws - 1 / 6) > t] == []


@clause("04.crop.pad_if_needed")
@pytest.mark.parametrize("size", [(2, 5), (5, 2), (5, 6)], ids=["too narrow", "too low", "too narrow and too low"])
def test_pad_if_needed_pads_both_sides(RandomCrop: Transform, size: Pair) -> None:
    pixels = numbered(3, 3) + 1
    high, wide = (max(side - 3, 0) for side in size)
    by_hand = torch.zeros(1, 3 + 2 * high, 3 + 2 * wide, dtype=torch.int64)
    by_hand[:, high : high + 3, wide : wide + 3] = pixels
    for seed in range(10):
        seed_everything(seed)
        expected = RandomCrop(size)(by_hand)
        seed_everything(seed)
        assert_equal(RandomCrop(size, pad_if_needed=True)(pixels), expected)


@clause("04.crop.padding")
def test_the_fill_is_one_number_or_one_for_each_channel_of_an_image(RandomCrop: Transform) -> None:
    image = random_image("RGB", 2, 2, seed=0)
    assert RandomCrop(4, 1, fill=7)(image).getpixel((0, 0)) == (7, 7, 7)
    assert RandomCrop(4, 1, fill=(7,))(image).getpixel((0, 0)) == (7, 7, 7)
    assert RandomCrop(4, 1, fill=(7, 8, 9))(image).getpixel((0, 3)) == (7, 8, 9)
    assert RandomCrop(4, 1, fill=(7, 8))(random_image("LA", 2, 2, seed=0)).getpixel((0, 0)) == (7, 8)
    assert RandomCrop(4, 1, fill=0.5)(Image.new("F", (2, 2))).getpixel((0, 0)) == 0.5


@clause("04.crop.modes")
@pytest.mark.parametrize("mode", MODES)
def test_a_crop_keeps_the_mode_and_the_colours(RandomCrop: Transform, mode: str) -> None:
    image = random_image(mode, 4, 3, seed=0)
    cropped = RandomCrop((5, 6), padding=1)(image)
    assert cropped.mode == mode
    inner = cropped.crop((1, 1, 5, 4))
    assert inner.tobytes() == image.tobytes()
    assert inner.getpalette() == image.getpalette()


@clause("04.crop.gradients")
def test_a_crop_is_differentiable(RandomCrop: Transform) -> None:
    crop = RandomCrop(3, padding=1)

    def first_crop(pixels: Tensor) -> Tensor:
        seed_everything(0)
        return crop(pixels)

    assert_differentiable(first_crop, normal(1, 3, 3, seed=0).requires_grad_())


# The properties: RandomHorizontalFlip


@clause("04.flip.definition")
@given(mode=st.sampled_from(MODES), height=sides, width=sides, batch=st.booleans(), layout=layouts, seed=seeds)
def test_flip_reverses_columns_and_is_an_involution(
    RandomHorizontalFlip: Transform, mode: str, height: int, width: int, batch: bool, layout: int, seed: int
) -> None:
    flip = RandomHorizontalFlip(p=1)
    image = random_image(mode, width, height, seed)
    flipped = flip(image)
    assert (flipped.mode, flipped.size) == (mode, image.size)
    assert pixels_of(flipped) == [[line[::-1] for line in band] for band in pixels_of(image)]
    assert flip(flipped).tobytes() == image.tobytes()
    tensor = whole(*([2] if batch else []), 3, height, width, seed=seed)
    given_tensor = laid_out(tensor, layout)
    result = flip(given_tensor)
    assert_equal(result, tensor[..., list(range(width))[::-1]])
    assert_equal(flip(result), tensor)
    assert_equal(given_tensor, tensor, "the input afterwards")


@clause("04.flip.draws")
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_random_flip_happens_if_the_next_uniform_number_is_below_p(RandomHorizontalFlip: Transform, p: float) -> None:
    flip, pixels = RandomHorizontalFlip(p), torch.tensor([[[0, 1]]])
    seed_all(7)
    expected = [bool(torch.rand(1) < p) for _ in range(40)]
    seed_all(7)
    assert [bool(flip(pixels)[0, 0, 0]) for _ in range(40)] == expected
    assert len(set(expected)) == 2


@clause("04.flip.probability")
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_random_flip_frequency_is_p(RandomHorizontalFlip: Transform, p: float) -> None:
    pixels, draws = torch.tensor([[[0, 1]]]), 400 if 0 < p < 1 else 50
    flip = RandomHorizontalFlip() if p == 0.5 else RandomHorizontalFlip(p)
    share = sum(bool(flip(pixels)[0, 0, 0]) for _ in range(draws)) / draws
    # Hoeffding: the error is larger with a probability below 2 · exp(−2 n t²) = 10⁻⁹
    t = math.sqrt(math.log(2 / 1e-9) / (2 * draws)) if 0 < p < 1 else 0.0
    assert abs(share - p) <= t


@clause("04.flip.gradients")
def test_a_flip_is_differentiable(RandomHorizontalFlip: Transform) -> None:
    assert_differentiable(RandomHorizontalFlip(1), normal(1, 2, 3, seed=0).requires_grad_())


# Compose


@clause("04.compose.order")
@pytest.mark.level("tutorial")
def test_compose_applies_transforms_in_order(Compose: Transform) -> None:
    assert Compose([lambda x: x + 1, lambda x: x * 10])(3) == 40
    assert Compose([str, len, lambda n: [n]])(12345) == [5]


@clause("04.compose.empty")
def test_compose_of_nothing_changes_nothing(Compose: Transform) -> None:
    image = random_image("RGB", 2, 2, seed=0)
    assert Compose([])(image) is image
    assert Compose([Compose([]), lambda x: x + 2])(3) == 5


@clause("04.compose.order")
@pytest.mark.parametrize("cut", [1, 2])
def test_compose_of_composes_is_one_compose(Compose: Transform, cut: int) -> None:
    steps = [lambda x: x + 2, lambda x: 10 * x, lambda x: -x]
    assert Compose(steps)(3) == -50
    assert Compose([Compose(steps[:cut]), Compose(steps[cut:])])(3) == -50


# Their repr


@clause("04.transforms.repr")
def test_compose_prints_one_transform_a_line(Compose: Transform) -> None:
    class Step:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, x: Any) -> Any:
            return x

        def __repr__(self) -> str:
            return self.name

    assert repr(Compose([Step("resize"), Step("crop")])) == "Compose(\n    resize\n    crop\n)"
    assert repr(Compose([])) == "Compose(\n)"


@clause("04.transforms.repr")
def test_normalize_prints_the_parameters(Normalize: Transform) -> None:
    assert repr(Normalize([1, 3, 5], [0.5, 0.5, 0.5])) == "Normalize(mean=[1, 3, 5], std=[0.5, 0.5, 0.5])"


@clause("04.transforms.repr")
def test_resize_prints_the_parameters(Resize: Transform) -> None:
    assert repr(Resize(512)) == "Resize(size=512, interpolation=bilinear, max_size=None, antialias=True)"
    printed = "Resize(size=(2, 3), interpolation=bicubic, max_size=None, antialias=False)"
    assert repr(Resize((2, 3), Resampling.BICUBIC, antialias=False)) == printed


@clause("04.transforms.repr")
def test_random_crop_prints_the_size_as_a_pair(RandomCrop: Transform) -> None:
    assert repr(RandomCrop(512)) == "RandomCrop(size=(512, 512), padding=None)"
    assert repr(RandomCrop((2, 3), 4)) == "RandomCrop(size=(2, 3), padding=4)"


@clause("04.transforms.repr")
def test_random_horizontal_flip_prints_the_probability(RandomHorizontalFlip: Transform) -> None:
    assert repr(RandomHorizontalFlip()) == "RandomHorizontalFlip(p=0.5)"


# Rejected arguments


@clause("04.normalize.rejects")
@pytest.mark.parametrize(
    ("mean", "std", "pixels", "naming"),
    [
        ([0.5], [0.5], torch.zeros(1, 2, 2, dtype=torch.uint8), r"float|dtype|\btensor\b|\binput\b|\bimage\b"),
        ([0.5], [0.5], torch.zeros(2, 2), r"C, H, W|channel|dimension|\btensor\b|\binput\b|\bimage\b"),
        ([0.5], [0.0], torch.zeros(1, 2, 2), r"\bstd\b"),
        ([0.5], [1e-9], torch.zeros(1, 2, 2, dtype=torch.float16), r"\bstd\b"),
        ([0.5] * 2, [1] * 2, torch.zeros(3, 2, 2), r"\bmean\b|must match the size of tensor b"),
        ([0.5], [1] * 2, torch.zeros(3, 2, 2), r"\bstd\b|must match the size of tensor b"),
        ([0.5] * 3, [1] * 3, torch.zeros(1, 2, 2), r"\bmean\b|doesn't match the broadcast shape"),
        ([0.5], [0.5], Image.new("L", (2, 2)), r"tensor|PIL image|\binput\b|\bimage\b"),
    ],
    ids=[
        "bytes", "no channels", "no deviation", "none in half precision", "too few means", "too few deviations",
        "too many of both", "an image",
    ],
)  # fmt: skip
def test_normalize_rejects(Normalize: Transform, mean: Any, std: Any, pixels: Any, naming: str) -> None:
    with rejects(naming=naming):
        Normalize(mean, std)(pixels)


@clause("04.resize.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        ({"size": 2.5}, r"\bsize\b"),
        ({"size": (1, 2, 3)}, r"\bsize\b"),
        ({"size": ()}, r"\bsize\b"),
        ({"size": 0}, r"\bsizes?\b|height and width"),
        ({"size": (2, 0)}, r"\bsizes?\b|height and width"),
        ({"size": -3}, r"\bsizes?\b|height and width"),
        ({"size": (2, 2), "max_size": 5}, "max_size"),
        ({"size": 3, "max_size": 3}, "max_size"),
        ({"size": 3, "interpolation": 0.5}, "interpolation"),
    ],
    ids=[
        "a fraction", "three numbers", "no number", "zero", "a zero width", "a negative size",
        "a largest size with a pair", "a largest size that is none", "an unknown interpolation",
    ],
)  # fmt: skip
@pytest.mark.parametrize("image", [Image.new("L", (4, 4)), torch.zeros(1, 4, 4)], ids=["of an image", "of a tensor"])
def test_resize_rejects(Resize: Transform, options: dict[str, Any], naming: str, image: Any) -> None:
    with rejects(naming=naming):
        Resize(**options)(image)


@clause("04.resize.rejects", "04.resize.max_size")
@pytest.mark.parametrize("image", [Image.new("L", (99, 1)), torch.zeros(1, 1, 99)], ids=["of an image", "of a tensor"])
def test_resize_rejects_a_max_size_that_leaves_no_pixel(Resize: Transform, image: Any) -> None:
    with rejects(r"max_size|height and width|output sizes?"):
        Resize(3, max_size=4)(image)


@clause("04.resize.rejects")
def test_resize_of_a_tensor_rejects_pillow_s_other_interpolations(Resize: Transform) -> None:
    with rejects("lanczos", "interpolation"):
        Resize(3, Resampling.LANCZOS)(torch.zeros(1, 4, 4))


@clause("04.transforms.rejects")
@pytest.mark.parametrize("value", [torch.zeros(3), "image.png"], ids=["a tensor of 1 dimension", "a file's name"])
def test_an_argument_that_is_no_image_is_rejected(
    Resize: Transform, RandomCrop: Transform, RandomHorizontalFlip: Transform, value: Any
) -> None:
    for transform in (Resize(2), RandomCrop(2), RandomHorizontalFlip(1)):
        with rejects("not a torch image|tensor image|'str'", "image", "img"):
            transform(value)


@clause("04.transforms.rejects")
@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_the_reference_rejects_a_flip_with_an_impossible_probability(p: float) -> None:
    with rejects(rf"\bp must be a probability from 0 to 1, got {p}"):
        reference.RandomHorizontalFlip(p)


@clause("04.crop.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        ({"size": 5}, r"\bsize\b"),
        ({"size": (4, 5)}, r"\bsize\b"),
        ({"size": (5, 4)}, r"\bsize\b"),
        ({"size": (6, 7), "padding": 1}, r"\bsize\b"),
        ({"size": (1, 2, 3)}, r"\bsize\b"),
        ({"size": 2, "padding": (1, 2, 3)}, r"\bpadding\b"),
        ({"size": 2, "padding": 1, "padding_mode": "mirror"}, "padding.mode"),
        ({"size": 2, "padding": "1"}, r"\bpadding\b"),
    ],
    ids=[
        "a larger square", "a wider one", "a higher one", "one that is larger than the padded image", "three numbers",
        "three paddings", "an unknown border", "a padding in words",
    ],
)  # fmt: skip
@pytest.mark.parametrize("image", [Image.new("L", (4, 4)), torch.zeros(1, 4, 4)], ids=["of an image", "of a tensor"])
def test_random_crop_rejects(RandomCrop: Transform, options: dict[str, Any], naming: str, image: Any) -> None:
    with rejects(naming=naming):
        RandomCrop(**options)(image)


@clause("04.crop.rejects")
def test_a_fill_of_several_numbers_is_for_images_only(RandomCrop: Transform) -> None:
    with rejects(naming=r"\bfill\b"):
        RandomCrop(2, 1, fill=(1, 2, 3))(torch.zeros(3, 4, 4))


@clause("04.crop.rejects")
def test_a_fill_has_one_number_for_each_channel_of_an_image(RandomCrop: Transform) -> None:
    with rejects(naming=r"\bfill\b"):
        RandomCrop(2, 1, fill=(1, 2))(Image.new("RGB", (4, 4)))


@clause("04.resize.rejects")
def test_the_reference_rejects_a_tensor_without_pixels_to_resize() -> None:
    with rejects(r"Resize: an image of shape \(1, 0, 4\) has no pixels"):
        reference.Resize((2, 2))(torch.zeros(1, 0, 4))


@clause("04.compose.rejects")
def test_compose_rejects_arguments_that_are_no_list_of_transforms(Compose: Transform, ToTensor: Transform) -> None:
    with rejects(naming=r"not iterable|\btransforms\b"):
        Compose(ToTensor())(Image.new("L", (1, 1)))
    with rejects(naming=r"not callable|\btransforms?\b"):
        Compose([3])(Image.new("L", (1, 1)))
