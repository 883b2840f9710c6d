"""Chapter 20: the tutorial's recipe of a prediction, and the error without each of its steps.

Only PyTorch itself is under test.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Resize, ToTensor

from reference.models import Ocean
from spec.support.assertions import assert_equal
from spec.support.cifar_archives import CLASSES, accept_any_checksum, meta, python2_pickle, small_cifar10, write_folder
from spec.support.clauses import clause
from spec.support.images import random_image

TRANSFORM: Any = Compose([Resize((32, 32)), ToTensor()])  # chapter 20, lines 2073 and 2074


@pytest.fixture
def ocean() -> Ocean:
    """The tutorial's network."""
    return Ocean()


@clause("20.recipe.listing", "20.recipe.output", "20.recipe.file_name")
def test_the_listing_predicts_after_correcting_file_name_and_weights_only(
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
def test_class_numbers_index_the_name_list_of_the_meta_file(
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
def test_images_of_other_three_channel_modes_give_other_scores(ocean: Ocean, mode: str) -> None:
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
def test_resize_converts_all_sizes_to_32x32(size: tuple[int, int]) -> None:
    # chapter 20, lines 2073, 2074 and 2104
    image = TRANSFORM(random_image("RGB", *size, seed=0))
    assert image.shape == (3, 32, 32)
    assert torch.reshape(image, (1, 3, 32, 32)).shape == (1, 3, 32, 32)


@clause("20.recipe.resize")
def test_images_of_other_sizes_are_rejected_without_resize(ocean: Ocean) -> None:
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
def test_the_network_rejects_uint8_but_accepts_unscaled_floats(ocean: Ocean) -> None:
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
def test_the_tutorial_network_gives_equal_scores_in_both_modes(ocean: Ocean) -> None:
    """The network has neither dropout nor batch norm, so that eval() has no effect."""
    images = torch.rand(4, 3, 32, 32)
    assert_equal(ocean.train()(images), ocean.eval()(images))


@clause("20.recipe.eval")
def test_dropout_in_training_mode_gives_random_predictions() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert_equal(network(images), network(images))


@clause("20.recipe.eval")
def test_batch_norm_in_training_mode_uses_and_records_batch_statistics() -> None:
    network, images = nn.BatchNorm2d(3), torch.rand(4, 3, 32, 32)
    assert not torch.equal(network(images)[:2], network(images[:2]))
    before = network.running_mean.clone()  # pyright: ignore[reportOptionalMemberAccess]
    network(images)
    assert not torch.equal(network.running_mean, before)  # pyright: ignore[reportArgumentType]
    network.eval()
    assert_equal(network(images)[:2], network(images[:2]))


@clause("20.recipe.eval")
def test_batch_norm_in_training_mode_rejects_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        nn.BatchNorm2d(3)(torch.rand(1, 3, 1, 1))


@clause("20.recipe.no_grad")
def test_no_grad_does_not_change_scores_and_records_no_graph(ocean: Ocean) -> None:
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
def test_numpy_conversion_rejects_scores_that_require_grad(ocean: Ocean) -> None:
    with pytest.raises(RuntimeError, match=r"Can't call numpy\(\) on Tensor that requires grad"):
        ocean(torch.rand(1, 3, 32, 32)).numpy()


@clause("20.recipe.no_grad", "20.recipe.eval")
def test_eval_and_no_grad_are_independent(ocean: Ocean) -> None:
    assert ocean.eval()(torch.rand(1, 3, 32, 32)).requires_grad
    with torch.no_grad():
        assert ocean.train().training
        ocean(torch.rand(1, 3, 32, 32))
    assert ocean.training
