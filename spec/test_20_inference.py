"""Chapter 20: prediction: the tutorial's recipe step by step, `predict`, and `scripts/predict.py`."""

import copy
import hashlib
import itertools
import json
import math
import os
import pickle
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Resize, ToTensor

from reference import inference
from reference.checkpoint import save_checkpoint
from reference.data.shapes import Shapes
from reference.models import Ocean
from spec.support.assertions import assert_equal, rejects
from spec.support.cifar_archives import CLASSES, accept_any_checksum, meta, python2_pickle, small_cifar10, write_folder
from spec.support.clauses import clause
from spec.support.command import Command, Result, run
from spec.support.images import pixels_of, random_image
from spec.support.strategies import given, whole

Predict = Callable[..., Iterator[Any]]
# different from the data set's, to test that they come from the caller
NAMES = [f"class {letter}" for letter in "abcdefghij"]
EPS = torch.finfo(torch.float32).eps


# The recipe of the tutorial, and the error without each of its steps. Only PyTorch itself is under test


TRANSFORM: Any = Compose([Resize((32, 32)), ToTensor()])  # chapter 20, lines 2073 and 2074


@pytest.fixture
def ocean() -> Ocean:
    """The tutorial's network."""
    return Ocean()


@clause("20.recipe.listing", "20.recipe.output", "20.recipe.file_name")
def test_the_listing_needs_another_name_and_weights_only_false_then_it_answers(
    ocean: Ocean, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chapter 20, lines 2050 and 2061 to 2113
    monkeypatch.chdir(tmp_path)
    random_image("RGBA", 70, 50, seed=0).save("dog2.png")
    torch.save(ocean, "ocean_{}_pp.pth".format(9))  # noqa: UP032  (as it is printed)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '\./ocean_9_p\.pth'"):
        torch.load("./ocean_9_p.pth", map_location=torch.device("cpu"))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load("./ocean_9_pp.pth", map_location=torch.device("cpu"))
    model = torch.load("./ocean_9_pp.pth", map_location=torch.device("cpu"), weights_only=False)
    image = TRANSFORM(Image.open("dog2.png").convert("RGB"))
    image = torch.reshape(image, (1, 3, 32, 32))
    model.eval()
    with torch.no_grad():
        output = model(image)
    assert output.shape == (1, 10)
    assert output.argmax(1).shape == (1,)
    assert output.argmax(1).item() == output[0].tolist().index(max(output[0].tolist()))


@clause("20.recipe.steps")
def test_a_pass_over_50000_images_in_batches_of_64_is_782_steps() -> None:
    # chapter 20, line 2017: 781.25
    assert 50_000 / 64 == 781.25
    sizes = [len(batch) for batch in DataLoader(range(50_000), batch_size=64, collate_fn=list)]  # pyright: ignore[reportArgumentType]
    assert len(sizes) == 782
    assert sizes[-1] == 50_000 % 64 == 16


@clause("20.recipe.device")
def test_the_gpu_that_the_listing_names_must_be_there(ocean: Ocean) -> None:
    # chapter 20, lines 1923 and 1967: device = torch.device("cuda:0"); ocean.to(device)
    if torch.cuda.is_available():
        assert next(ocean.to("cuda:0").parameters()).is_cuda
        return
    with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA"):
        ocean.to("cuda:0")


@clause("20.recipe.class_numbers")
@pytest.mark.parametrize("names", [CLASSES, CLASSES[::-1]], ids=["the official names", "the names reversed"])
def test_a_class_number_is_the_place_of_its_name_in_the_files_list(
    CIFAR10: Callable[..., Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    # chapter 20, lines 1901, 2122 and 2128
    write_folder(tmp_path, small_cifar10(n=1).files | {"batches.meta": python2_pickle(meta(names))})
    with pytest.MonkeyPatch.context() as patch:
        accept_any_checksum(patch)
        data = CIFAR10(tmp_path, train=False)
    assert list(data.classes) == list(names)


@clause("20.recipe.class_numbers")
def test_the_official_list_has_cat_at_3_and_dog_at_5() -> None:
    """Only in this order the bytes of the list have torchvision's MD5 of the official batches.meta."""
    demanded = torchvision.datasets.CIFAR10.meta["md5"]
    assert hashlib.md5(python2_pickle(meta())).hexdigest() == demanded
    assert hashlib.md5(python2_pickle(meta(CLASSES[::-1]))).hexdigest() != demanded
    assert (CLASSES[3], CLASSES[5]) == ("cat", "dog")
    assert list(CLASSES) == sorted(CLASSES)


@clause("20.recipe.1024")
def test_the_first_linear_layer_takes_1024_numbers(ocean: Ocean) -> None:
    # chapter 20, line 2092
    assert ocean.model1[:7](torch.zeros(1, 3, 32, 32)).shape == (1, 64 * 4 * 4) == (1, 1024)


@clause("20.recipe.convert")
@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("L", 1), ("P", 1), ("LA", 2), ("1", 1), ("CMYK", 4)])
def test_without_convert_an_image_of_another_mode_has_other_channels(ocean: Ocean, mode: str, channels: int) -> None:
    # chapter 20, line 2068
    original = random_image(mode, 32, 32, seed=0)
    image = TRANSFORM(original)
    assert image.shape == (channels, 32, 32)
    # chapter 20, line 2104: the reshape that adds the batch dimension stands before the network and refuses it first
    said = rf"shape '\[1, 3, 32, 32\]' is invalid for input of size {channels * 1024}"
    with pytest.raises(RuntimeError, match=said):
        torch.reshape(image, (1, 3, 32, 32))
    said = rf"expected input\[1, {channels}, 32, 32\] to have 3 channels, but got {channels} channels instead"
    with pytest.raises(RuntimeError, match=said):
        ocean(image[None])
    assert TRANSFORM(original.convert("RGB")).shape == (3, 32, 32)


@clause("20.recipe.convert")
@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_an_image_of_another_mode_with_three_channels_passes_with_other_numbers(ocean: Ocean, mode: str) -> None:
    rgb = random_image("RGB", 32, 32, seed=0)
    # Pillow makes LAB by a colour profile only; its own bytes, relabelled, are an image of the mode
    original = Image.frombytes("LAB", rgb.size, rgb.tobytes()) if mode == "LAB" else rgb.convert(mode)
    image = torch.reshape(TRANSFORM(original), (1, 3, 32, 32))
    assert ocean(image).shape == (1, 10)  # no error
    if mode != "LAB":
        back = original.convert("RGB")
        assert not torch.equal(image[0], TRANSFORM(back))


@clause("20.recipe.convert")
def test_convert_does_nothing_to_an_rgb_image() -> None:
    image = random_image("RGB", 32, 32, seed=0)
    assert_equal(TRANSFORM(image.convert("RGB")), TRANSFORM(image))


@clause("20.recipe.resize")
@pytest.mark.parametrize("size", [(1, 1), (70, 50), (32, 32)])
def test_any_size_becomes_32_by_32(size: tuple[int, int]) -> None:
    # chapter 20, lines 2073, 2074 and 2104
    image = TRANSFORM(random_image("RGB", *size, seed=0))
    assert image.shape == (3, 32, 32)
    assert torch.reshape(image, (1, 3, 32, 32)).shape == (1, 3, 32, 32)


@clause("20.recipe.resize")
def test_without_resize_neither_reshape_nor_the_network_takes_it(ocean: Ocean) -> None:
    image = ToTensor()(random_image("RGB", 64, 64, seed=0))
    with pytest.raises(RuntimeError, match=r"shape '\[1, 3, 32, 32\]' is invalid for input of size 12288"):
        torch.reshape(image, (1, 3, 32, 32))
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(1x4096 and 1024x64\)"):
        ocean(image[None])


@clause("20.recipe.resize")
def test_without_resize_an_image_of_1024_pixels_is_rearranged_without_an_error(ocean: Ocean) -> None:
    image = ToTensor()(random_image("RGB", 64, 16, seed=0))
    reshaped = torch.reshape(image, (1, 3, 32, 32))
    assert_equal(reshaped[0, :, 0], image[:, 0, :32])  # the first row of 64 pixels became two rows of 32
    assert_equal(reshaped[0, :, 1], image[:, 0, 32:])
    assert ocean(reshaped).shape == (1, 10)


@clause("20.recipe.resize")
def test_without_resize_the_network_takes_39_by_39_pixels_which_reshape_refuses(ocean: Ocean) -> None:
    image = ToTensor()(random_image("RGB", 39, 39, seed=0))
    assert ocean(image[None]).shape == (1, 10)
    with pytest.raises(RuntimeError, match="invalid for input of size 4563"):
        torch.reshape(image, (1, 3, 32, 32))


@clause("20.recipe.resize")
def test_resize_to_one_number_keeps_the_shape_of_the_image_which_need_not_be_square(ocean: Ocean) -> None:
    image = Compose([Resize(32), ToTensor()])(random_image("RGB", 64, 48, seed=0))
    assert image.shape == (3, 32, 42)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ocean(image[None])  # pyright: ignore[reportIndexIssue]


@clause("20.recipe.batch_axis")
def test_without_the_batch_axis_flatten_makes_64_by_16_and_linear_refuses(ocean: Ocean) -> None:
    # chapter 20, line 2104: convolution and pooling take one image, and Flatten takes its 64 channels for 64 images
    image = torch.zeros(3, 32, 32)
    assert ocean.model1[:6](image).shape == (64, 4, 4)
    assert ocean.model1[:7](image).shape == (64, 16)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(64x16 and 1024x64\)"):
        ocean(image)
    assert ocean(torch.reshape(image, (1, 3, 32, 32))).shape == (1, 10)


@clause("20.recipe.axes")
def test_reshape_does_not_bring_the_channels_to_the_front() -> None:
    """reshape silently produces a different image from an array of height, width, channels; permute is right."""
    image = random_image("RGB", 32, 32, seed=0)
    array = torch.from_numpy(np.array(image)) / 255
    assert array.shape == (32, 32, 3)
    assert_equal(array.permute(2, 0, 1).contiguous(), ToTensor()(image))
    assert not torch.equal(array.reshape(3, 32, 32), ToTensor()(image))


@clause("20.recipe.scale")
def test_bytes_are_refused_and_unscaled_numbers_are_not(ocean: Ocean) -> None:
    """Floats from 0 to 255 are accepted; the scores are then those of an image 255 times as bright, biases apart."""
    image = random_image("RGB", 32, 32, seed=0)
    bytes_ = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with pytest.raises(RuntimeError, match=r"Input type .* and bias type .* should be the same"):
        ocean(bytes_)
    with torch.no_grad():
        for name, parameter in ocean.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        scores, unscaled = ocean.double()(ToTensor()(image)[None].double()), ocean(bytes_.double())
    torch.testing.assert_close(unscaled, 255 * scores, rtol=0, atol=1e-4)  # ToTensor's quotients are float32
    assert (unscaled - scores).abs().max() > 1


@clause("20.recipe.eval")
def test_the_tutorials_network_answers_the_same_in_both_modes(ocean: Ocean) -> None:
    """The network has neither dropout nor batch norm, so that eval() has no effect."""
    images = torch.rand(4, 3, 32, 32)
    assert_equal(ocean.train()(images), ocean.eval()(images))


@clause("20.recipe.eval")
def test_in_training_mode_dropout_answers_by_chance() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert_equal(network(images), network(images))


@clause("20.recipe.eval")
def test_in_training_mode_batch_norm_looks_at_the_other_images_and_remembers_them() -> None:
    network, images = nn.BatchNorm2d(3), torch.rand(4, 3, 32, 32)
    assert not torch.equal(network(images)[:2], network(images[:2]))
    before = network.running_mean.clone()  # pyright: ignore[reportOptionalMemberAccess]
    network(images)
    assert not torch.equal(network.running_mean, before)  # pyright: ignore[reportArgumentType]
    network.eval()
    assert_equal(network(images)[:2], network(images[:2]))


@clause("20.recipe.eval")
def test_in_training_mode_batch_norm_refuses_one_number_a_channel() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        nn.BatchNorm2d(3)(torch.rand(1, 3, 1, 1))


@clause("20.recipe.no_grad")
def test_no_grad_changes_no_score_and_keeps_nothing_for_a_backward(ocean: Ocean) -> None:
    # chapter 20, line 2108
    images, kept = torch.rand(8, 3, 32, 32), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with_graph = ocean(images)
        # at least the inputs of convolutions and linear layers, which the weight gradients need
        assert sum(kept) >= 8 * 4 * (3 * 32 * 32 + 32 * 16 * 16 + 32 * 8 * 8 + 1024 + 64)
        kept.clear()
        with torch.no_grad():
            without = ocean(images)
    assert kept == []
    assert with_graph.requires_grad
    assert not without.requires_grad
    assert without.grad_fn is None
    assert_equal(without, with_graph.detach())


@clause("20.recipe.no_grad")
def test_scores_with_a_graph_do_not_become_an_array(ocean: Ocean) -> None:
    with pytest.raises(RuntimeError, match=r"Can't call numpy\(\) on Tensor that requires grad"):
        ocean(torch.rand(1, 3, 32, 32)).numpy()


@clause("20.recipe.no_grad", "20.recipe.eval")
def test_eval_and_no_grad_are_two_things(ocean: Ocean) -> None:
    assert ocean.eval()(torch.rand(1, 3, 32, 32)).requires_grad
    with torch.no_grad():
        assert ocean.train().training
        ocean(torch.rand(1, 3, 32, 32))
    assert ocean.training


# `predict`


def noise(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> Path:
    """An image with pixels 0 or 255: they become exactly 0 or 1."""
    pixels = np.random.default_rng(seed).integers(0, 2, (*size, 3), dtype=np.uint8) * 255
    Image.fromarray(pixels).save(path)
    return path


def exact_network() -> nn.Sequential:
    """A network with scores that are multiples of 1/64 below 2⁸, so that all its sums are exact in float32."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with torch.no_grad():
        network[1].weight.copy_(whole(10, 3072, seed=1, dtype=torch.float32, largest=2) / 64)  # pyright: ignore[reportCallIssue]
        network[1].bias.copy_(whole(10, seed=2, dtype=torch.float32, largest=20) / 64)  # pyright: ignore[reportCallIssue]
    return network


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def exact_shares(path: Path) -> dict[str, float]:
    """The right answers of `exact_network`, in plain Python."""
    layer = exact_network()[1].cpu()
    with Image.open(path) as image:
        bits = [value / 255 for channel in pixels_of(image) for row in channel for value in row]
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)  # pyright: ignore[reportCallIssue]
    return dict(
        zip(
            NAMES, softmax([math.fsum(map(float.__mul__, weights, bits)) + bias for weights, bias in rows]), strict=True
        )
    )


# A softmax in float32 of exact scores: the difference to the largest, the exponential (2 units in the last place), the
# sum of ten, the quotient.
EXACT_SCORES = (1 + 2 + 10 + 1) * EPS


def assert_answer(found: Any, image: Path, expected: dict[str, float], top_k: int, tolerance: float) -> None:
    """The `top_k` most probable classes, in their order, each with its probability to a relative `tolerance`."""
    __tracebackhide__ = True
    assert Path(found.image) == image
    assert found.error is None
    names, shares = [name for name, _ in found.classes], [share for _, share in found.classes]
    assert len(set(names)) == top_k
    assert shares == sorted(shares, reverse=True), "the most probable class must come first"
    for name, share in found.classes:
        assert share == pytest.approx(expected[name], rel=tolerance), f"{name} on {image.name}"
    others = [expected[name] for name in expected if name not in names]
    assert max(others, default=0.0) <= min(shares) * (1 + tolerance), "a more probable class was left out"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, float]]:
    """Eight images, and their right answers."""
    folder = tmp_path_factory.mktemp("noise")
    return {path: exact_shares(path) for path in (noise(folder / f"{seed}.png", seed) for seed in range(8))}


@clause("20.predict.recipe")
@pytest.mark.parametrize("top_k", [1, 3, 10, 99])
def test_the_answer_is_the_softmax_of_the_scores_under_the_names_in_their_order(
    predict: Predict, images: dict[Path, dict[str, float]], top_k: int
) -> None:
    answers = list(predict(exact_network(), NAMES, list(images), top_k=top_k))
    for answer, (path, expected) in zip(answers, images.items(), strict=True):
        assert_answer(answer, path, expected, min(top_k, 10), EXACT_SCORES)


@clause("20.predict.recipe")
def test_the_probabilities_of_all_classes_sum_to_one(predict: Predict, images: dict[Path, Any]) -> None:
    for answer in predict(exact_network(), NAMES, list(images), top_k=10):
        assert math.fsum(share for _, share in answer.classes) == pytest.approx(1, abs=EXACT_SCORES)


def by_the_recipe(network: Ocean, path: Path) -> tuple[dict[str, float], float]:
    """The tutorial's steps, lines 2066 to 2110, one image at a time, and the relative tolerance of a probability.

    In float64. A sum of n products and a bias is off by at most (n + 1) · eps times the sum of their absolute values,
    in any order; the network of the absolute values, given those of the image, says how large that can become
    until it reaches the scores, since the largest of several numbers is off by no more than the worst of them. An error
    e in every score is a factor between exp(-2e) and exp(2e) in a probability.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = torch.tensor(np.array(image).tolist(), dtype=torch.float64, device="cpu").permute(2, 0, 1) / 255
    double, largest = copy.deepcopy(network).cpu().double().eval(), copy.deepcopy(network).cpu().double()
    operations = 1  # the division by 255
    with torch.no_grad():
        scores = double(pixels.reshape(1, 3, 32, 32))[0]
        for parameter in largest.parameters():
            parameter.abs_()
            operations += parameter[0].numel()
        error = operations * torch.finfo(torch.float64).eps * largest(pixels[None]).max().item()
    return dict(zip(NAMES, softmax(scores.tolist()), strict=True)), math.expm1(4 * error) + EXACT_SCORES


def spirited(network: Ocean) -> Ocean:
    """The network in float64 with larger weights, so that its answers differ between images."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    return network.double()


def exact_ocean() -> Ocean:
    """The tutorial's network with three numbers in each kernel: its scores of noise are exact in float32."""
    network = Ocean()
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
            if parameter.dim() > 1:
                flat = parameter.reshape(len(parameter), -1)
                for row in flat:
                    places = torch.randint(0, len(row), (3,), generator=generator, device="cpu")
                    row[places] = whole(3, seed=int(places[0]), dtype=torch.float32)
        network.model1[8].weight.div_(64)
    return network


@clause("20.predict.recipe", "20.predict.images")
@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (32, 32)), ("RGB", (70, 50)), ("L", (20, 300)), ("P", (33, 32)), ("1", (70, 50))]
)
def test_images_are_converted_resized_and_scaled_as_in_the_recipe(
    predict: Predict, ocean: Ocean, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    network, path = spirited(ocean), tmp_path / "it.png"
    random_image(mode, *size, seed=0).save(path)
    expected, tolerance = by_the_recipe(network, path)
    assert tolerance < 1e-4
    [answer] = predict(network, NAMES, [path], top_k=10)
    assert_answer(answer, path, expected, 10, tolerance)


@clause("20.predict.images")
def test_an_opaque_alpha_channel_changes_nothing(predict: Predict, ocean: Ocean, tmp_path: Path) -> None:
    image = random_image("RGB", 40, 30, seed=0)
    image.save(tmp_path / "without.png")
    image.putalpha(255)
    image.save(tmp_path / "with.png")
    one, other = predict(spirited(ocean), NAMES, [tmp_path / "without.png", tmp_path / "with.png"], batch_size=1)
    assert one.classes == other.classes


@clause("20.predict.images")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_images_of_every_mode_get_an_answer(predict: Predict, tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"it.{'tiff' if mode in ('CMYK', 'F') else 'png'}"
    random_image(mode, 40, 30, seed=0).save(path)
    [answer] = predict(exact_network(), NAMES, [path])
    assert (answer.error, len(answer.classes)) == (None, 3)


@clause("20.predict.images")
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (5000, 4000)], ids=lambda size: "x".join(map(str, size))
)
def test_images_of_every_size_get_an_answer(predict: Predict, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size, 1).save(tmp_path / "it.png")  # one bit a pixel: the file and the image stay small
    [answer] = predict(exact_network(), NAMES, [tmp_path / "it.png"])
    assert (answer.error, len(answer.classes)) == (None, 3)


@clause("20.predict.size")
def test_another_size_can_be_requested(predict: Predict, tmp_path: Path) -> None:
    shapes = []

    class Listening(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape))
            return torch.zeros(len(images), 10)

    paths = [noise(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    list(predict(Listening(), NAMES, paths, size=(8, 16), batch_size=2))
    assert shapes == [(2, 3, 8, 16), (1, 3, 8, 16)]


@clause("20.predict.batches")
@given(
    order=st.lists(st.integers(0, 7), max_size=12),
    batch_size=st.integers(1, 13),
    broken=st.sets(st.integers(0, 11), max_size=3),
)
def test_neither_batch_size_nor_order_nor_neighbours_change_an_answer(
    predict: Predict, images: dict[Path, dict[str, float]], order: list[int], batch_size: int, broken: set[int]
) -> None:
    paths = [list(images)[number] for number in order]
    asked = [path.with_name("absent.png") if place in broken else path for place, path in enumerate(paths)]
    answers = list(predict(exact_network(), NAMES, asked, batch_size=batch_size))
    assert [Path(answer.image) for answer in answers] == asked
    for answer, path in zip(answers, asked, strict=True):
        if path in images:
            assert_answer(answer, path, images[path], 3, EXACT_SCORES)
        else:
            assert answer.classes == []
            assert "absent.png" in answer.error


@clause("20.predict.streams")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_are_consumed_batch_by_batch_without_end(
    predict: Predict, images: dict[Path, Any], batch_size: int
) -> None:
    asked = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(images):
            asked.append(path)
            yield path

    answers = predict(exact_network(), NAMES, endless(), batch_size=batch_size)
    for answered in range(1, 10):
        next(answers)
        assert answered <= len(asked) < answered + batch_size, f"asked for more than a batch: {len(asked)} images"


@clause("20.predict.streams")
def test_answered_images_are_released(predict: Predict, images: dict[Path, Any]) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    pixels, count = 256 * 256 * 3, 24
    answers = predict(network, NAMES, itertools.islice(itertools.cycle(images), count), size=(256, 256), batch_size=2)
    next(answers)
    tracemalloc.start()
    try:
        assert sum(1 for _ in answers) == count - 1
        assert tracemalloc.get_traced_memory()[1] < count * pixels / 4
    finally:
        tracemalloc.stop()


class Moody(nn.Module):
    """A network that returns its mode as scores, and records whether gradients are enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.zeros(10))
        self.gradients: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.gradients.append(torch.is_grad_enabled())
        self.first(images)
        score = torch.zeros(len(images), 10) + self.weight
        score[:, 0] = 5.0 * (self.training or self.first.training or self.second.training)
        score[:, 1] = 1.0
        return score


@clause("20.predict.mode")
@pytest.mark.parametrize("training", [(True, True), (True, False), (False, True), (False, False)])
def test_a_network_answers_in_evaluation_mode_and_its_mode_is_restored(
    predict: Predict, images: dict[Path, Any], training: tuple[bool, bool]
) -> None:
    """The mode is restored between two answers, after the caller stops early, and after an error."""
    network = Moody()
    network.train(training[0])
    network.first.train(training[1])  # as a batch norm that is frozen
    before = network.first.running_mean.clone()  # pyright: ignore[reportOptionalMemberAccess]

    def modes() -> list[bool]:
        return [network.training, network.first.training, network.second.training]

    asked = [training[0], training[1], training[0]]
    answers = predict(network, NAMES, list(images), batch_size=2)
    assert modes() == asked
    for _ in range(3):
        assert next(answers).classes[0][0] == "class b"
        assert modes() == asked
    del answers
    assert modes() == asked
    assert torch.equal(network.first.running_mean, before)  # pyright: ignore[reportArgumentType]
    with rejects(naming="class names"):
        list(predict(network, NAMES[:9], list(images)))
    assert modes() == asked


@clause("20.predict.gradients")
def test_no_gradients_are_kept_and_those_of_the_caller_stay_on(predict: Predict, images: dict[Path, Any]) -> None:
    network = Moody()
    for _ in predict(network, NAMES, list(images), batch_size=4):
        assert torch.is_grad_enabled()
    assert network.gradients == [False, False]


@clause("20.predict.unreadable")
def test_an_image_that_cannot_be_read_does_not_end_the_others(
    predict: Predict, images: dict[Path, dict[str, float]], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_text("no image")
    whole_image = next(iter(images))
    (tmp_path / "cut.png").write_bytes(whole_image.read_bytes()[:-500])
    paths = [whole_image, *(tmp_path / name for name in ("broken.png", "absent.png", "cut.png")), whole_image]
    answers = list(predict(exact_network(), NAMES, paths))
    assert [answer.error is None for answer in answers] == [True, False, False, False, True]
    for answer, path in zip(answers[1:4], paths[1:4], strict=True):
        assert path.name in answer.error
        assert "\n" not in answer.error
    assert_answer(answers[4], whole_image, images[whole_image], 3, EXACT_SCORES)


@clause("20.predict.finite")
def test_scores_that_are_no_numbers_are_an_error_not_an_answer(predict: Predict, images: dict[Path, Any]) -> None:
    class Spoilt(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scores = torch.zeros(len(images), 10)
            scores[0, 3] = torch.nan
            scores[1, 3] = torch.inf
            return scores

    answers = list(predict(Spoilt(), NAMES, list(images)[:3]))
    assert [answer.classes == [] for answer in answers] == [True, True, False]
    assert "0.png" in answers[0].error
    assert "not finite" in answers[0].error


@clause("20.predict.network")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_network_of_any_dtype_predicts_in_it(
    predict: Predict, images: dict[Path, dict[str, float]], dtype: torch.dtype
) -> None:
    path = next(iter(images))
    [answer] = predict(exact_network().to(dtype), NAMES, [path])
    # scores of up to 2³ in the network's dtype; products and images are exact, PyTorch sums bfloat16 in float32
    error = 2**3 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    assert_answer(answer, path, images[path], 3, math.expm1(2 * error) + EXACT_SCORES)


@clause("20.predict.network")
def test_a_network_without_parameters_can_predict(predict: Predict, images: dict[Path, Any]) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the mean red, green and blue
    [answer] = predict(network, ["red", "green", "blue"], list(images)[:1])
    assert len(answer.classes) == 3


@clause("20.predict.arguments")
def test_one_path_may_be_given_alone_and_as_text(predict: Predict, images: dict[Path, dict[str, float]]) -> None:
    path = next(iter(images))
    for asked in (path, str(path), [str(path)]):
        [answer] = predict(exact_network(), NAMES, asked)
        assert_answer(answer, path, images[path], 3, EXACT_SCORES)


@clause("20.predict.arguments")
@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_impossible_figures_are_rejected_at_once(predict: Predict, wrong: dict[str, int]) -> None:
    with rejects(naming=next(iter(wrong))):
        predict(exact_network(), NAMES, [], **wrong)


@clause("20.predict.arguments")
@pytest.mark.parametrize("count", [9, 11])
def test_another_number_of_names_than_scores_is_rejected(predict: Predict, images: dict[Path, Any], count: int) -> None:
    with rejects(naming=rf"{count} class names"):
        list(predict(exact_network(), [str(number) for number in range(count)], list(images)))


@clause("20.predict.calibration")
def test_a_probability_orders_the_classes_and_promises_nothing_else(predict: Predict, images: dict[Path, Any]) -> None:
    """The scores times eight: the same classes with probabilities close to 1."""
    network, sure = exact_network(), exact_network()
    with torch.no_grad():
        for parameter in sure.parameters():
            parameter.mul_(8)
    for one, other in zip(*(predict(n, NAMES, list(images), top_k=10) for n in (network, sure)), strict=True):
        assert [name for name, _ in one.classes] == [name for name, _ in other.classes]
        assert other.classes[0][1] > one.classes[0][1]


@clause("20.recipe.dog_and_cat")
@pytest.mark.parametrize(("number", "animal"), [(5, "dog"), (3, "cat")])
def test_a_network_with_the_highest_score_at_index_5_predicts_dog(
    predict: Predict, images: dict[Path, Any], number: int, animal: str
) -> None:
    # chapter 20, lines 2122 and 2128: tensor([5]) is a dog, tensor([3]) a cat; the author's images and weights are not
    # available
    network = exact_network()
    with torch.no_grad():
        network[1].bias[number] = 100  # pyright: ignore[reportIndexIssue]
    [answer] = predict(network, CLASSES, next(iter(images)), top_k=1)
    assert answer.classes[0][0] == animal


# Folders


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of images and other files."""
    root = tmp_path / "photos"
    for name in ("b.png", "B.JPG", "a.png", "10.png", "9.png", ".hidden.png", "notes.txt", "2024/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (root / name).write_text("no image")
        else:
            noise(root / name, seed=len(name))
    for name in ("2023/june/y.png", "2023/z.png", ".thumbnails/t.png", "empty/.keep"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(root / "a.png", seed=0)
        (root / name).write_bytes((root / "a.png").read_bytes())
    (root / "2023" / "back").symlink_to(root, target_is_directory=True)
    (root / "2023" / "link.png").symlink_to(root / "a.png")
    (root / "2023" / "nowhere.png").symlink_to(root / "gone.png")
    return root


IN_ORDER = [
    *("10.png", "9.png", "B.JPG", "a.png", "b.png"),
    *("2023/link.png", "2023/nowhere.png", "2023/z.png", "2023/june/y.png", "2024/x.png"),
]


@clause("20.predict.folders")
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_folder_means_its_images_by_name_then_those_of_its_folders(
    predict: Predict, tree: Path, batch_size: int
) -> None:
    """Code point by code point; hidden ones and other files are left out, links to folders are not followed."""
    answers = list(predict(exact_network(), NAMES, [tree], batch_size=batch_size))
    assert [Path(answer.image).relative_to(tree).as_posix() for answer in answers] == IN_ORDER
    assert [Path(answer.image).name for answer in answers if answer.error] == ["nowhere.png"]
    for answer in answers:
        if not answer.error:
            assert_answer(answer, Path(answer.image), exact_shares(Path(answer.image)), 3, EXACT_SCORES)


@clause("20.predict.folders")
def test_files_and_folders_are_answered_in_the_order_of_the_arguments(predict: Predict, tree: Path) -> None:
    (tree / "a.png").rename(tree / "no-extension")
    asked = [tree / "2024", tree / ".hidden.png", str(tree / "2023" / "june"), tree / "no-extension", tree / "2024"]
    answers = list(predict(exact_network(), NAMES, asked, batch_size=2))
    assert [Path(answer.image).name for answer in answers] == [
        *("x.png", ".hidden.png", "y.png", "no-extension", "x.png")
    ]  # fmt: skip
    assert [answer.error for answer in answers] == [None] * 5


@clause("20.predict.folders")
def test_a_folder_without_images_is_an_error_that_does_not_end_the_rest(predict: Predict, tree: Path) -> None:
    answers = list(predict(exact_network(), NAMES, [tree / "empty", tree / "9.png"]))
    assert Path(answers[0].image) == tree / "empty"
    assert "no images" in answers[0].error
    assert answers[1].error is None


@clause("20.predict.folders")
def test_a_folder_that_cannot_be_read_is_an_error_that_does_not_end_the_rest(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user who runs the tests may have all permissions, so the system's error is simulated."""
    real = os.scandir

    def refusing(folder: str | os.PathLike[str]) -> Any:
        if Path(folder).name == "june":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    answers = list(inference.predict(exact_network(), NAMES, tree))
    assert [answer.image.relative_to(tree).as_posix() for answer in answers] == [
        "2023/june" if name == "2023/june/y.png" else name for name in IN_ORDER
    ]
    assert "june: this folder cannot be read (Permission denied)" in str(answers[-2].error)


# The script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint and three images."""
    save_checkpoint(tmp_path / "net.pt", exact_ocean(), NAMES)
    for number in range(3):
        noise(tmp_path / f"{number}.png", seed=number)
    return tmp_path


def ask(folder: Path, *words: object) -> Result:
    return run("predict.py", *words, folder=folder)


@clause("20.script.text")
@pytest.mark.slow
def test_the_script_names_the_checkpoints_classes_with_probabilities(folder: Path) -> None:
    result = ask(folder, "0.png", "1.png", "--checkpoint", "net.pt", "--top-k", 2)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["0.png", "1.png"]
    for line in lines:
        expected, _ = by_the_recipe(exact_ocean(), folder / line.partition(": ")[0])
        best = sorted(expected, key=lambda name: -expected[name])[:2]
        assert line.partition(": ")[2] == f"{best[0]} {expected[best[0]]:.1%}, {best[1]} {expected[best[1]]:.1%}"


@clause("20.script.json")
@pytest.mark.slow
def test_the_script_prints_json(folder: Path) -> None:
    (folder / "broken.png").write_text("no image")
    result = ask(folder, "0.png", "broken.png", "--checkpoint", "net.pt", "--json", "--top-k", 99)
    assert result.status == 2  # because of the broken one
    answers = json.loads(result.out)
    assert result.out == json.dumps(answers, indent=2, ensure_ascii=False) + "\n"
    first, second = answers
    assert (first["image"], first["error"]) == ("0.png", None)
    named = [(entry["name"], entry["probability"]) for entry in first["classes"]]
    expected, _ = by_the_recipe(exact_ocean(), folder / "0.png")
    assert_answer(inference.Prediction(folder / "0.png", named), folder / "0.png", expected, 10, EXACT_SCORES)
    assert second["classes"] == []
    assert "broken.png" in second["error"]
    assert len(result.err.splitlines()) == 1


@clause("20.script.json")
@pytest.mark.slow
def test_json_of_nothing_readable_is_a_list_too(folder: Path) -> None:
    (folder / "empty").mkdir()
    result = ask(folder, "empty", "--checkpoint", "net.pt", "--json")
    assert result.status == 2
    [answer] = json.loads(result.out)
    said = "empty: there are no images in this folder (such as .jpg or .png)"
    assert answer == {"image": "empty", "class": None, "classes": [], "error": said}


@clause("20.script.json", "20.script.text")
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.slow
def test_names_that_are_no_text_are_printed_nevertheless(folder: Path, words: tuple[str, ...]) -> None:
    """File names that are not valid UTF-8 are escaped; Chinese names are printed unchanged."""
    for name in (b"\xff.png", "猫.png".encode()):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write((folder / "0.png").read_bytes())
    result = ask(folder, ".", *words, "--checkpoint", "net.pt")
    assert (result.status, result.err) == (0, "")
    assert "猫.png" in result.out
    if words:
        assert [answer["image"] for answer in json.loads(result.out)][-2:] == ["猫.png", "\udcff.png"]


def program(stdout: str, *words: str) -> str:
    """A program that runs the script with another standard output."""
    script = str(Path(__file__).parents[1] / "scripts" / "predict.py")
    return (
        f"import runpy, sys\nsys.stdout = {stdout}\nsys.argv = {['predict.py', *words]!r}\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )


WAITING = """
import time
from pathlib import Path
import reference.inference as inference

def open_later(path, size, read=inference.open_image):
    while Path(path).name == "later.png" and not Path("go").exists():
        time.sleep(0.005)
    return read(path, size)

inference.open_image = open_later
"""
"""The start of a program in which reading `later.png` waits until a file `go` exists."""


@clause("20.script.streams")
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.slow
def test_an_answer_is_printed_before_the_next_image_is_there(folder: Path, words: tuple[str, ...]) -> None:
    """Answers are printed at once, also if output is buffered, as into a file."""
    asked = ("0.png", "later.png", "1.png", "--batch-size", "1", "--checkpoint", "net.pt", *words)
    (folder / "buffered.py").write_text(WAITING + program("open(1, 'w', 65536, closefd=False)", *asked))
    command = Command(str(folder / "buffered.py"), folder=folder)
    command.wait_for('"error": null\n  }' if words else "0.png")
    assert command.process.is_alive()
    (folder / "later.png").write_bytes(b"no image")
    (folder / "go").touch()
    result = command.wait()
    assert result.status == 2
    assert result.err.startswith("error: later.png: not a readable image")
    assert "1.png" in result.out


@clause("20.script.errors")
@pytest.mark.slow
def test_each_flag_of_predict_has_a_negative_and_the_last_one_counts(folder: Path) -> None:
    result = ask(folder, "0.png", "--checkpoint", "net.pt", "--legacy", "--no-legacy", "--json", "--no-json")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("0.png: ")


@clause("20.script.folders")
@pytest.mark.slow
def test_the_script_takes_folders(folder: Path) -> None:
    (folder / "more" / "inner").mkdir(parents=True)
    for name in ("more/b.png", "more/a.png", "more/inner/c.png"):
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    result = ask(folder, "1.png", "more", "--checkpoint", "net.pt", "--batch-size", 3)
    assert result.status == 0, result.err
    assert [line.partition(": ")[0] for line in result.out.splitlines()] == [
        *("1.png", "more/a.png", "more/b.png", "more/inner/c.png")
    ]  # fmt: skip


@clause("20.script.streams")
@pytest.mark.slow
def test_a_folder_of_thousands_is_answered(folder: Path) -> None:
    """The script finishes; the tests of `predict` on streams cover its memory."""
    (folder / "many").mkdir()
    for number in range(4000):
        os.link(folder / "0.png", folder / "many" / f"{number:04}.png")
    result = run("predict.py", "many", "--checkpoint", "net.pt", folder=folder)
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) == 4000


@clause("20.script.streams")
@pytest.mark.slow
def test_whoever_has_seen_enough_may_close_the_pipe(folder: Path) -> None:
    """`predict.py … | head -1` ends without a message."""
    os.mkfifo(folder / "pipe")
    words = (*["0.png"] * 9, "--batch-size", "1", "--checkpoint", "net.pt")
    (folder / "piped.py").write_text(program("open('pipe', 'w', buffering=1)", *words))
    command = Command(str(folder / "piped.py"), folder=folder)
    with open(folder / "pipe") as reader:
        assert reader.readline().startswith("0.png: ")
    result = command.wait()
    assert (result.status, result.err) == (0, "")


@clause("20.script.errors")
@pytest.mark.slow
def test_a_missing_checkpoint_is_an_error_in_one_line(folder: Path) -> None:
    result = ask(folder, "0.png", "--checkpoint", "none.pt")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: none.pt cannot be read: No such file or directory\n"


@clause("20.script.errors")
@pytest.mark.slow
def test_a_call_without_images_is_an_error_in_one_line(folder: Path) -> None:
    result = ask(folder, "--checkpoint", "net.pt", "--json")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: IMAGE is missing: name at least one image or folder\n"


@clause("20.script.errors")
@pytest.mark.parametrize("words", [("--top-k", 0), ("--batch-size", 0)])
@pytest.mark.slow
def test_impossible_numbers_are_an_error_in_one_line(folder: Path, words: tuple[object, ...]) -> None:
    result = ask(folder, "0.png", "--checkpoint", "net.pt", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: top_k and batch_size must be at least 1, got ")
    assert len(result.err.splitlines()) == 1


@clause("20.script.errors")
@pytest.mark.slow
def test_ctrl_c_ends_it_with_130(folder: Path) -> None:
    asked = ("0.png", "later.png", "--batch-size", "1", "--checkpoint", "net.pt")
    (folder / "later.png").touch()
    (folder / "waits.py").write_text(WAITING + program("sys.stdout", *asked))
    command = Command(str(folder / "waits.py"), folder=folder)
    command.wait_for("0.png")
    command.send(signal.SIGINT)
    result = command.wait()
    assert (result.status, result.err) == (130, "interrupted\n")


@clause("20.predict.calibration")
@pytest.mark.slow
def test_the_help_promises_no_calibrated_probabilities(folder: Path) -> None:
    result = ask(folder, "--help")
    words = " ".join(result.out.replace("│", " ").split())
    assert "but they are not calibrated: of the answers given with 80 %, another share than 80 % may be right" in words


@clause("20.script.trained")
@pytest.mark.slow
def test_the_script_answers_for_a_trained_run(tmp_path: Path) -> None:
    """From training to prediction: a network trained on ten images classifies them correctly."""
    words = ("--dataset", "shapes", "--limit-train", 10, "--limit-test", 10, "--batch-size", 5, "--quiet")
    more = ("--epochs", 50, "--learning-rate", 0.02, "--momentum", 0.5, "--log-every", 1000, "--num-threads", 1)
    assert run("train_full.py", *words, *more, "--output", "run", folder=tmp_path).status == 0
    shapes = Shapes(size=10)
    for number, (image, _) in enumerate(shapes):  # pyright: ignore[reportArgumentType]
        image.save(tmp_path / f"{number}.png")
    images = [f"{number}.png" for number in range(10)]
    result = ask(tmp_path, *images, "--checkpoint", "run/last.pt", "--json", "--top-k", 1)
    named = [answer["classes"][0]["name"] for answer in json.loads(result.out)]
    assert named == [shapes.classes[target] for target in shapes.targets.tolist()]
