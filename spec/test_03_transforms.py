"""Chapter 03: the reasons for tensors, and the conversion of an image by `ToTensor`."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from spec.support.assertions import assert_close, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.images import BYTE_MODES, MODES, pixels_of, random_image
from spec.support.strategies import given, seeds

Transform = Callable[..., Any]

sides = st.integers(1, 5)


# The claims


@clause("03.tensor.attributes")
def test_a_tensor_has_grad_and_device_attributes_and_an_array_has_not(ToTensor: Transform) -> None:
    tensor = ToTensor()(random_image("RGB", 3, 2, seed=0))
    # chapter 03, lines 141 to 144
    assert (tensor.grad, str(tensor.device), tensor.is_cuda, tensor.requires_grad) == (None, "cpu", False, False)
    assert [name for name in ("grad", "is_cuda", "requires_grad") if hasattr(np.zeros(3), name)] == []


@clause("03.tensor.is_cuda")
def test_the_attribute_is_called_is_cuda(ToTensor: Transform) -> None:
    tensor = ToTensor()(random_image("L", 1, 1, seed=0))
    assert hasattr(tensor, "is_cuda")
    assert not hasattr(tensor, "is CUDA")


@clause("03.tensor.requires_grad")
def test_requires_grad_records_operations_and_only_leaves_keep_grad() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.sum().backward()
    assert_equal(x.grad, [2, 2])
    assert y.requires_grad
    assert not y.retains_grad  # keeping the gradient is the task of another method, retain_grad()


@clause("03.tensor.grad")
def test_grad_accepts_none_and_zero_tensors_but_not_0(ToTensor: Transform) -> None:
    tensor = ToTensor()(random_image("RGB", 4, 4, seed=0))
    with rejects(naming="grad"):
        tensor.grad = 0
    tensor.grad = None
    tensor.grad = torch.zeros_like(tensor)
    assert_equal(tensor.grad, tensor * 0)


@clause("03.tensor.requires_grad_assigned")
def test_requires_grad_can_be_assigned_to_leaves_only(ToTensor: Transform) -> None:
    tensor = ToTensor()(random_image("RGB", 1, 1, seed=0))
    tensor.requires_grad = True
    with rejects(naming="leaf"):
        (tensor * 2).requires_grad = False
    tensor.requires_grad = False
    assert not tensor.requires_grad


@clause("03.transforms.package")
def test_torchvision_s_transforms_are_a_package_with_a_module_of_that_name() -> None:
    package = importlib.util.find_spec("torchvision.transforms")
    module = importlib.util.find_spec("torchvision.transforms.transforms")
    assert package is not None
    assert module is not None
    assert package.submodule_search_locations  # so it is a folder, not a file
    assert Path(str(module.origin)).name == "transforms.py"
    names = vars(importlib.import_module("torchvision.transforms"))
    # chapter 03, line 155: the tutorial writes "tosensor compose normalize"
    assert {"ToTensor", "Compose", "Normalize"} <= names.keys()
    assert {"tosensor", "compose", "normalize"} & names.keys() == set()


@clause("03.transforms.tool")
def test_to_tensor_is_constructed_then_called(ToTensor: Transform) -> None:
    image = random_image("RGB", 3, 2, seed=0)
    tool = ToTensor()
    result = tool(image)
    assert result.shape == (3, 2, 3)
    assert_equal(tool(image), result)
    with rejects(naming=None):  # the signature takes no argument
        ToTensor(image)


@clause("03.board.tensor")
def test_tensorboard_shows_a_tensor_and_the_image_alike(ToTensor: Transform, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    image = random_image("RGB", 5, 3, seed=0)
    # chapter 03, lines 171 to 174
    writer = SummaryWriter(tmp_path)
    writer.add_image("tensor img", ToTensor()(image), 1)
    writer.close()
    (shown,) = EventAccumulator(str(tmp_path)).Reload().Images("tensor img")
    assert (shown.step, shown.height, shown.width) == (1, 3, 5)
    assert Image.open(io.BytesIO(shown.encoded_image_string)).tobytes() == image.tobytes()


# The properties


@clause("03.totensor.definition", "03.totensor.modes")
@given(mode=st.sampled_from(("1", *BYTE_MODES)), width=sides, height=sides, seed=seeds)
def test_to_tensor_converts_bytes_to_chw_divided_by_255(
    ToTensor: Transform, mode: str, width: int, height: int, seed: int
) -> None:
    image = random_image(mode, width, height, seed)
    # in float64, then rounded once: equal to a correctly rounded division in float32
    expected = torch.tensor(pixels_of(image), dtype=torch.float64, device="cpu") / 255
    assert_equal(ToTensor()(image), expected.to(torch.float32))


@clause("03.totensor.other_numbers", "03.totensor.modes")
@pytest.mark.parametrize(
    ("mode", "dtype"), [("I;16", torch.int16), ("I", torch.int32), ("F", torch.float32)], ids=["I;16", "I", "F"]
)
def test_to_tensor_keeps_the_values_of_other_modes(ToTensor: Transform, mode: str, dtype: torch.dtype) -> None:
    for seed in range(20):
        image = random_image(mode, 1 + seed % 5, 1 + seed // 5, seed)
        assert_equal(ToTensor()(image), torch.tensor(pixels_of(image), dtype=dtype, device="cpu"))


@clause("03.totensor.sixteen_bits")
def test_to_tensor_reads_16_bit_images_as_signed_integers(ToTensor: Transform) -> None:
    image = Image.fromarray(np.array([[0, 32767, 32768, 65535]], np.uint16))
    assert_equal(ToTensor()(image), torch.tensor([[[0, 32767, -32768, -1]]], dtype=torch.int16, device="cpu"))


@clause("03.totensor.palette")
def test_to_tensor_takes_the_indices_of_palette_images(ToTensor: Transform) -> None:
    image = Image.fromarray(np.array([[1, 0]], np.uint8))
    image.putpalette([10, 20, 30, 255, 255, 255])
    assert image.mode == "P"
    assert_equal(ToTensor()(image), torch.tensor([[[1 / 255, 0]]], device="cpu"))
    assert_equal(ToTensor()(image.convert("RGB"))[:, 0, 0], torch.tensor([1.0, 1, 1], device="cpu"))


@clause("03.totensor.exact")
def test_each_of_the_256_bytes_is_divided_not_multiplied(ToTensor: Transform) -> None:
    every = ToTensor()(Image.fromarray(np.arange(256, dtype=np.uint8)[None])).flatten()
    assert_equal(every, torch.tensor([byte / 255 for byte in range(256)], device="cpu"))
    # multiplied by the rounded 1 / 255, 126 of them would differ
    assert int((every != torch.arange(256, device="cpu") * (1 / 255)).sum()) == 126
    assert_equal(every * 255, torch.arange(256.0, device="cpu"))


@clause("03.totensor.definition")
@pytest.mark.level("tutorial")
def test_to_tensor_of_two_pixels_has_shape_3_1_2(ToTensor: Transform) -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(255, 0, 51), (0, 102, 255)])
    # 51 / 255 = 0.2 and 102 / 255 = 0.4
    expected = torch.tensor([[[1.0, 0.0]], [[0.0, 0.4]], [[0.2, 1.0]]], device="cpu")
    assert_close(ToTensor()(image), expected, rounding(torch.float32, 1))


@clause("03.totensor.range")
@pytest.mark.parametrize(("value", "becomes"), [(0, 0.0), (255, 1.0)], ids=["black is 0", "white is 1"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_black_is_0_and_white_is_1(ToTensor: Transform, mode: str, value: int, becomes: float) -> None:
    image = Image.new(mode, (2, 1), (value,) * 3 if mode == "RGB" else value)
    channels = len(image.getbands())
    assert_equal(ToTensor()(image), torch.full((channels, 1, 2), becomes, device="cpu"))


@clause("03.totensor.arrays")
@given(
    channels=st.sampled_from([None, 1, 2, 3, 4, 5]),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64, np.bool_]),
    height=sides,
    width=sides,
    transposed=st.booleans(),
    seed=seeds,
)
def test_an_array_is_rows_columns_and_channels_and_only_bytes_are_scaled(
    ToTensor: Transform, channels: int | None, dtype: Any, height: int, width: int, transposed: bool, seed: int
) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    if transposed:
        array = np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)  # the same numbers, columns first in memory
    result = ToTensor()(array)
    numbers = [
        [[array[y, x] if channels is None else array[y, x, c] for x in range(width)] for y in range(height)]
        for c in range(channels or 1)
    ]
    expected = torch.from_numpy(np.array(numbers, dtype))
    if dtype is np.uint8:
        expected = (expected.to(torch.float64) / 255).to(torch.float32)
    assert_equal(result, expected)
    assert result.is_contiguous()


@clause("03.totensor.default_dtype")
def test_bytes_become_the_default_dtype(ToTensor: Transform) -> None:
    usual = torch.get_default_dtype()
    assert ToTensor()(Image.new("L", (1, 1))).dtype == torch.float32
    try:
        torch.set_default_dtype(torch.float64)
        assert_equal(ToTensor()(Image.new("L", (1, 1), 80)), torch.tensor([[[80 / 255]]], device="cpu"))
    finally:
        torch.set_default_dtype(usual)


@clause("03.totensor.round_trip")
@pytest.mark.parametrize("mode", BYTE_MODES)
def test_to_tensor_and_to_pil_image_round_trip_exactly(ToTensor: Transform, mode: str) -> None:
    image = random_image(mode, 40, 30, seed=0)
    tensor = ToTensor()(image)
    back = [Image.fromarray((band * 255).to(torch.uint8).numpy()) for band in tensor]
    assert [band.tobytes() for band in back] == [band.tobytes() for band in image.split()]


@clause("03.totensor.copy")
@pytest.mark.parametrize("mode", MODES)
def test_the_tensor_is_a_copy(ToTensor: Transform, mode: str) -> None:
    image = random_image(mode, 4, 3, seed=1)
    before = image.tobytes()
    ToTensor()(image).zero_()
    assert image.tobytes() == before


@clause("03.totensor.repr")
def test_to_tensor_prints_the_class_name(ToTensor: Transform) -> None:
    assert repr(ToTensor()) == "ToTensor()"


# Rejected arguments


@clause("03.totensor.rejects")
@pytest.mark.parametrize(
    "value",
    [torch.zeros(3, 2, 2), [[0, 1]], "image.png", None],
    ids=["a tensor", "a list", "a file's name", "nothing"],
)
def test_an_argument_that_is_neither_an_image_nor_an_array_is_rejected(
    ToTensor: Transform, value: Tensor | list | None
) -> None:
    with rejects(naming=r"\b(pic|image)\b"):
        ToTensor()(value)


@clause("03.totensor.rejects")
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2, 3)], ids=["1 dimension", "4 dimensions"])
def test_arrays_of_other_than_2_or_3_dimensions_are_rejected(ToTensor: Transform, shape: tuple[int, ...]) -> None:
    with rejects("dimension", "pic", "image"):
        ToTensor()(np.zeros(shape, np.uint8))
