"""Chapters 03 and 04 at sizes beyond the usual: images wider than 2,048, empty ones, a fill of one number."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from spec.support.assertions import assert_close, assert_equal, rounding
from spec.support.clauses import clause

WIDTH = 2051


def wide() -> Image.Image:
    """Random pixels; the last column differs from all others."""
    pixels = np.random.default_rng(0).integers(0, 200, (5, WIDTH, 3), dtype=np.uint8)
    pixels[:, -1] = 255
    return Image.fromarray(pixels)


@clause("04.sizes.wide")
def test_every_pixel_of_a_wide_image_is_converted(ToTensor: Any) -> None:
    exact = torch.from_numpy(np.asarray(wide()).astype(np.float64)).permute(2, 0, 1) / 255
    assert_close(ToTensor()(wide()).double(), exact, rounding(torch.float32, 1), "the tensor of a wide image")


@clause("04.sizes.wide")
def test_every_number_of_a_wide_image_is_normalized(Normalize: Any) -> None:
    x = torch.from_numpy(np.asarray(wide()).astype(np.float32)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.5, 0.25, 2.0])
    exact = (x.double() - mean[:, None, None]) / std[:, None, None]
    found = Normalize(mean.tolist(), std.tolist())(x)
    assert_close(found.double(), exact, rounding(torch.float32, 2, 4.0), "the normalized wide image")


@clause("04.sizes.wide")
def test_a_wide_image_is_flipped_including_the_last_column(RandomHorizontalFlip: Any) -> None:
    found = np.asarray(RandomHorizontalFlip(1.0)(wide()))
    assert np.array_equal(found, np.asarray(wide())[:, ::-1])


@clause("04.sizes.wide")
def test_crops_of_a_wide_image_reach_the_last_column(RandomCrop: Any) -> None:
    crop = RandomCrop((5, WIDTH - 1))
    starts = set()
    for _ in range(40):  # each of two windows is drawn, but for a probability of 2e-12
        found = np.asarray(crop(wide()))
        starts.add(next(i for i in range(2) if np.array_equal(found, np.asarray(wide())[:, i : i + WIDTH - 1])))
    assert starts == {0, 1}


@clause("04.sizes.wide")
def test_a_wide_image_is_resized_including_the_last_column(Resize: Any) -> None:
    """Halving a row of plateaus leaves the inner part of each plateau unchanged."""
    values = np.repeat(np.arange(64, dtype=np.uint8) * 4, 34)[None].repeat(6, 0)  # 64 plateaus of 34: 2,176 pixels
    found = np.asarray(Resize((3, 1088))(Image.fromarray(values)))
    assert found.shape == (3, 1088)
    assert np.array_equal(found[:, 8::17], (np.arange(64, dtype=np.uint8) * 4)[None].repeat(3, 0))


@clause("04.sizes.empty")
def test_normalize_accepts_an_empty_batch(Normalize: Any) -> None:
    found = Normalize([0.5] * 3, [0.5] * 3)(torch.empty(0, 3, 4, 5))
    assert_equal(found, torch.empty(0, 3, 4, 5))


@clause("04.sizes.fill")
def test_a_fill_of_one_number_in_a_tuple_fills_a_grey_image(RandomCrop: Any) -> None:
    image = Image.fromarray(np.full((2, 2), 100, dtype=np.uint8))
    found = np.asarray(RandomCrop(4, padding=1, fill=(7,))(image))
    expected = np.full((4, 4), 7, dtype=np.uint8)
    expected[1:3, 1:3] = 100
    assert np.array_equal(found, expected), found
