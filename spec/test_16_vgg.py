"""Chapter 16: VGG16, its trained weights, and the two edits that change its classes."""

import ast
import copy
import hashlib
import pickle
import re
import sys
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VGG16_Weights

import reference
from reference.errors import InputError
from reference.models.pretrained import read_weights
from spec.support.assertions import assert_equal, rejects
from spec.support.clauses import clause
from spec.support.strategies import whole
from spec.support.zip_lies import LIES

Make = Callable[..., Any]

# chapter 16, lines 1194 to 1239: what print(vgg16_pretrained) shows after add_module("7", …)
PRINTED = """\
VGG(
  (features): Sequential(
    (0): Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU(inplace=True)
    (2): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (3): ReLU(inplace=True)
    (4): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (5): Conv2d(64, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (6): ReLU(inplace=True)
    (7): Conv2d(128, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (8): ReLU(inplace=True)
    (9): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (10): Conv2d(128, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (11): ReLU(inplace=True)
    (12): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (13): ReLU(inplace=True)
    (14): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (15): ReLU(inplace=True)
    (16): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (17): Conv2d(256, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (18): ReLU(inplace=True)
    (19): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (20): ReLU(inplace=True)
    (21): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (22): ReLU(inplace=True)
    (23): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (24): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (25): ReLU(inplace=True)
    (26): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (27): ReLU(inplace=True)
    (28): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (29): ReLU(inplace=True)
    (30): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (avgpool): AdaptiveAvgPool2d(output_size=(7, 7))
  (classifier): Sequential(
    (0): Linear(in_features=25088, out_features=4096, bias=True)
    (1): ReLU(inplace=True)
    (2): Dropout(p=0.5, inplace=False)
    (3): Linear(in_features=4096, out_features=4096, bias=True)
    (4): ReLU(inplace=True)
    (5): Dropout(p=0.5, inplace=False)
    (6): Linear(in_features=4096, out_features=1000, bias=True)
  )
  (7): Linear(in_features=1000, out_features=10, bias=True)
)"""
APPENDED = "\n  (7): Linear(in_features=1000, out_features=10, bias=True)"
# chapter 16, lines 1240 to 1283: the same without that layer and with 10 scores; the last line, ")", is missing there
PRINTED_REPLACED = PRINTED.replace(APPENDED, "").replace("out_features=1000", "out_features=10").removesuffix("\n)")

# Simonyan and Zisserman (2014), table 1, configuration D: the channels of the convolutions; after each stage a pooling
CONFIGURATION_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def on_meta(make: Make, *args: Any, **options: Any) -> Any:
    """A network on the meta device, with shapes but without memory for the numbers."""
    with torch.device("meta"):
        return make(*args, **options)


def images(*shape: int) -> Tensor:
    return torch.ones(shape, device="meta")


def kinds(network: nn.Module) -> Counter[str]:
    return Counter(type(layer).__name__ for layer in network.modules())


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


# The network


@clause("16.vgg16.sixteen")
def test_it_has_16_layers_with_weights_32_tensors_and_138357544_numbers(vgg16: Make) -> None:
    # chapter 16, line 1155
    network = on_meta(vgg16)
    assert kinds(network)["Conv2d"] == 13
    assert kinds(network)["Linear"] == 3
    # by hand: a kernel of 3×3 for each pair of channels and a bias each, then the three linear layers
    channels = [3, *(width for stage in CONFIGURATION_D for width in stage)]
    by_hand = sum((9 * a + 1) * b for a, b in pairwise(channels))
    by_hand += (512 * 49 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    assert by_hand == 138_357_544
    assert len(list(network.parameters())) == 32
    assert sum(parameter.numel() for parameter in network.parameters()) == 138_357_544


@clause("16.vgg16.history", "16.vgg16.structure")
def test_it_is_configuration_d_of_the_paper(vgg16: Make) -> None:
    # chapter 16, line 1160
    layers = list(on_meta(vgg16).features)
    stages, found = [[]], []
    for layer in layers:
        if type(layer).__name__ == "MaxPool2d":
            stages.append([])
        elif type(layer).__name__ == "Conv2d":
            assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
            stages[-1].append(layer.out_channels)
        found.append(type(layer).__name__)
    assert tuple(map(tuple, stages[:-1])) == CONFIGURATION_D
    assert stages[-1] == []
    assert found == [name for stage in CONFIGURATION_D for name in ["Conv2d", "ReLU"] * len(stage) + ["MaxPool2d"]]


@clause("16.vgg16.structure", "16.vgg16.images")
def test_the_shape_after_each_stage_and_each_linear_layer(vgg16: Make) -> None:
    # chapter 16, lines 1156 and 1160
    network = on_meta(vgg16)
    found = []
    watched = ("MaxPool2d", "AdaptiveAvgPool2d", "Linear")
    for layer in network.modules():
        if type(layer).__name__ in watched:
            layer.register_forward_hook(lambda _layer, _input, output: found.append(tuple(output.shape[1:])))
    assert network(images(2, 3, 224, 224)).shape == (2, 1000)
    stages = [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert found == [*stages, (512, 7, 7), (4096,), (4096,), (1000,)]


@clause("16.vgg16.other_sizes")
@pytest.mark.parametrize(
    "size",
    [(32, 32), (63, 100), *(pytest.param(size, marks=pytest.mark.slow) for size in ((32, 500), (225, 223)))],
    ids=str,
)
def test_images_of_other_sizes_get_the_same_number_of_scores(vgg16: Make, size: tuple[int, int]) -> None:
    assert on_meta(vgg16)(images(3, 3, *size)).shape == (3, 1000)


@clause("16.vgg16.other_sizes")
@pytest.mark.parametrize("size", [(31, 32), (224, 31)], ids=str)
def test_images_that_the_poolings_leave_nothing_of_are_rejected(vgg16: Make, size: tuple[int, int]) -> None:
    with rejects(naming="size|pixels"):
        on_meta(vgg16)(images(1, 3, *size))


@clause("16.vgg16.classes")
def test_another_number_of_classes_changes_the_last_layer_only(vgg16: Make) -> None:
    ten, thousand = (shapes(on_meta(vgg16, num_classes=n).state_dict()) for n in (10, 1000))
    assert ten == thousand | {"classifier.6.weight": (10, 4096), "classifier.6.bias": (10,)}
    assert thousand == shapes(on_meta(vgg16).state_dict())


@clause("16.vgg16.classes")
@pytest.mark.parametrize("classes", [0, -1, 2.5, "ten", True])
def test_the_reference_rejects_an_impossible_number_of_classes(classes: Any) -> None:
    with rejects(naming="num_classes"):
        on_meta(reference.vgg16, num_classes=classes)


@clause("16.vgg16.dropout")
def test_the_dropout_share_is_printed_and_a_half_by_default(vgg16: Make) -> None:
    assert str(on_meta(vgg16)).count("Dropout(p=0.5, inplace=False)") == 2
    assert str(on_meta(vgg16, dropout=0.25)).count("Dropout(p=0.25, inplace=False)") == 2
    with rejects(naming="probability"):
        on_meta(vgg16, dropout=1.5)


# Output and initialization


def fill(network: nn.Module) -> None:
    """Set the parameters of a network to integers, with four nonzero weights for each output.

    So every sum is an integer far below 2⁵³, which float64 represents exactly for any order of summation.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator, device="cpu")

    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.data.copy_(numbers(-1, 2, *parameter.shape))
        else:
            outputs, inputs = len(parameter), parameter[0].numel()
            columns, values = numbers(0, inputs - 1, outputs, 4), numbers(-1, 2, outputs, 4)
            flat = parameter.data.zero_().view(outputs, inputs)
            flat.scatter_(1, columns.to(flat.device), values.to(flat))


def whole_image(*shape: int) -> Tensor:
    return whole(*shape, seed=1, largest=2)


def scores(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The printed layers one after the other, as functions."""
    index = 0
    for stage in CONFIGURATION_D:
        for _ in stage:
            images = functional.conv2d(
                images, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
            ).relu()
            index += 2
        images = functional.max_pool2d(images, 2)
        index += 1
    numbers = functional.adaptive_avg_pool2d(images, (7, 7)).reshape(len(images), 512 * 7 * 7)
    for index in (0, 3, 6):
        numbers = functional.linear(
            numbers.relu() if index else numbers,
            state[f"classifier.{index}.weight"],
            state[f"classifier.{index}.bias"],
        )
    return numbers


@clause("16.vgg16.definition")
@pytest.mark.slow
def test_the_scores_are_those_of_the_printed_layers_to_the_bit(vgg16: Make) -> None:
    """Compare in float64 with integers; the average pooling has means of 1, 2 or 4 numbers, which are exact too."""
    network = vgg16(init_weights=False).eval()
    fill(network)
    network.double()
    state = network.state_dict()
    for size in [(224, 224), (32, 48), (75, 130)]:
        images = whole_image(1, 3, *size)
        with torch.no_grad():
            found, expected = network(images), scores(state, images)
        assert expected.unique().numel() > 100  # the scores depend on the image
        assert expected.abs().max() < 2**53
        assert_equal(found, expected, f"the scores of an image of {size[0]}×{size[1]}")


@clause("16.vgg16.definition")
def test_the_maps_are_those_of_the_printed_layers_to_the_bit(vgg16: Make) -> None:
    """The same for the convolutions alone, which have a tenth of the parameters."""
    features = on_meta(vgg16).features.double().to_empty(device=torch.get_default_device())
    fill(features)
    images = whole_image(2, 3, 32, 48)
    expected, state = images, features.state_dict()
    for index in range(31):
        if f"{index}.weight" in state:
            weight, bias = state[f"{index}.weight"], state[f"{index}.bias"]
            expected = functional.conv2d(expected, weight, bias, padding=1).relu()
        elif index in (4, 9, 16, 23, 30):  # chapter 16, line 1200 and on
            expected = functional.max_pool2d(expected, 2)
    with torch.no_grad():
        assert_equal(features(images), expected, "the last maps")
    assert expected.unique().numel() > 100


@clause("16.vgg16.start", "16.vgg16.dropout")
@pytest.mark.slow
def test_it_starts_from_normal_numbers_of_the_documented_spread(vgg16: Make) -> None:
    network = vgg16()
    for name, layer in network.named_modules():
        kind = type(layer).__name__
        if kind not in ("Conv2d", "Linear"):
            continue
        numbers = layer.weight.detach()
        std = (2 / (9 * layer.out_channels)) ** 0.5 if kind == "Conv2d" else 0.01
        # for n normal numbers the mean has the standard deviation std/√n, and their standard deviation std/√(2n); six
        # of these do not occur
        n = numbers.numel()
        assert abs(numbers.mean().item()) < 6 * std / n**0.5, name
        assert abs(numbers.std().item() / std - 1) < 6 / (2 * n) ** 0.5, name
        # a fifth of normal numbers lies beyond 1.2816 deviations (the tables' 90 % quantile); of uniform ones a quarter
        beyond = (numbers.abs() > 1.2816 * std).sum().item() / n
        assert abs(beyond - 0.2) < 6 * (0.16 / n) ** 0.5 + 1e-5, name
        assert_equal(layer.bias.detach(), torch.zeros_like(layer.bias), f"{name}.bias")
    # and it is dropout that makes it differ from itself, in training only
    image = torch.ones(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert_equal(network(image), network(image))


def digests(network: nn.Module) -> dict[str, str]:
    return {name: hashlib.blake2b(value.numpy()).hexdigest() for name, value in network.state_dict().items()}


@clause("16.vgg16.seed")
@pytest.mark.slow
@pytest.mark.parametrize("init_weights", [True, False])
def test_the_same_seed_gives_the_reference_torchvisions_numbers(init_weights: bool) -> None:
    found = []
    for make in (reference.vgg16, torchvision.models.vgg16):
        torch.manual_seed(5)
        found.append((digests(make(init_weights=init_weights)), torch.rand(3).tolist()))  # and the numbers after them
    assert found[0] == found[1]


# The state dict


@clause("16.vgg16.state")
def test_the_state_has_torchvisions_keys_shapes_and_types(vgg16: Make) -> None:
    ours, theirs = on_meta(vgg16).state_dict(), on_meta(torchvision.models.vgg16).state_dict()
    assert list(shapes(ours).items()) == list(shapes(theirs).items())
    assert {value.dtype for value in ours.values()} == {torch.float32}


@clause("16.vgg16.state")
@pytest.mark.slow
def test_the_state_travels_both_ways(vgg16: Make) -> None:
    ours, theirs = on_meta(vgg16), on_meta(torchvision.models.vgg16)
    numbers = tiny_state()
    theirs.load_state_dict(numbers, assign=True)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert firsts(ours.state_dict()) == firsts(numbers)
    back = on_meta(torchvision.models.vgg16)
    back.load_state_dict(ours.state_dict(), assign=True)
    assert firsts(back.state_dict()) == firsts(numbers)


# The two edits, as the chapter does them


@clause("16.vgg16.printed_appended")
def test_with_a_layer_7_beside_it_prints_as_documented(vgg16: Make) -> None:
    network = on_meta(vgg16)
    network.add_module("7", on_meta(nn.Linear, 1000, 10))  # chapter 16, line 1183
    assert str(network) == PRINTED
    assert len(PRINTED.splitlines()) == 1239 - 1194 + 1


@clause("16.vgg16.printed_replaced")
def test_with_its_last_layer_replaced_it_prints_as_documented_and_a_parenthesis(vgg16: Make) -> None:
    network = on_meta(vgg16)
    network.classifier[6] = on_meta(nn.Linear, 4096, 10)  # chapter 16, line 1187
    assert len(PRINTED_REPLACED.splitlines()) == 1283 - 1240 + 1
    assert str(network) != PRINTED_REPLACED
    assert str(network) == PRINTED_REPLACED + "\n)"


@clause("16.listing.output")
def test_the_printed_network_is_no_python() -> None:
    with pytest.raises(SyntaxError):
        ast.parse(PRINTED)
    with pytest.raises(SyntaxError):
        ast.parse(PRINTED_REPLACED)


@clause("16.edit.beside")
def test_a_layer_7_beside_is_never_run(vgg16: Make) -> None:
    # chapter 16, lines 1174, 1182 and 1183
    network, calls = on_meta(vgg16), []
    network.add_module("7", on_meta(nn.Linear, 1000, 10))
    network.get_submodule("7").register_forward_hook(lambda *_: calls.append("7"))
    assert network(images(1, 3, 32, 32)).shape == (1, 1000)
    assert calls == []
    assert list(network.state_dict())[-2:] == ["7.weight", "7.bias"]  # it is saved nevertheless


@clause("16.edit.beside")
def test_a_layer_7_inside_the_classifier_is_run(vgg16: Make) -> None:
    network, calls = on_meta(vgg16), []
    network.classifier.add_module("7", on_meta(nn.Linear, 1000, 10))
    network.classifier[7].register_forward_hook(lambda *_: calls.append("7"))
    assert network(images(1, 3, 32, 32)).shape == (1, 10)
    assert calls == ["7"]


@clause("16.edit.sixth")
def test_classifier_6_is_the_seventh_layer_and_the_third_linear_one(vgg16: Make) -> None:
    # chapter 16, lines 1186 and 1187
    network = on_meta(vgg16)
    assert [i for i, layer in enumerate(network.classifier) if type(layer).__name__ == "Linear"] == [0, 3, 6]
    assert len(network.classifier) == 7
    network.classifier[6] = on_meta(nn.Linear, 4096, 10)
    assert network(images(1, 3, 32, 32)).shape == (1, 10)


# append_classifier and replace_classifier


class Small(nn.Module):
    """A small network with the structure of VGG: 3 numbers, 5 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x)


@clause("16.edit.append")
def test_the_appended_layer_makes_classes_of_the_scores(append_classifier: Make) -> None:
    network, x = Small().eval(), torch.arange(6.0).reshape(2, 3)
    before = network(x)
    appended = append_classifier(network, 7)
    assert appended is network
    layer = network.classifier[4]
    assert str(layer) == "Linear(in_features=5, out_features=7, bias=True)"
    assert list(network.state_dict())[-2:] == ["classifier.4.weight", "classifier.4.bias"]
    assert_equal(network(x), layer(before))
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@clause("16.edit.append_beside")
def test_the_layer_beside_changes_nothing_and_learns_nothing(append_classifier: Make) -> None:
    network, x = Small().eval(), torch.arange(6.0).reshape(2, 3)
    before = network(x)
    append_classifier(network, 7, inside=False)
    assert_equal(network(x), before)
    network(x).sum().backward()
    grads = {name: parameter.grad is not None for name, parameter in network.named_parameters()}
    assert [name for name, learns in grads.items() if not learns] == ["4.weight", "4.bias"]


@clause("16.edit.append_beside", "16.vgg16.printed_appended")
def test_vgg16_with_the_layer_beside_prints_as_documented(append_classifier: Make) -> None:
    network = append_classifier(on_meta(torchvision.models.vgg16), 10, inside=False)
    assert str(network) == PRINTED
    assert network(images(1, 3, 32, 32)).shape == (1, 1000)


@clause("16.edit.append")
def test_vgg16_with_the_layer_inside_gives_ten_scores(append_classifier: Make) -> None:
    network = append_classifier(on_meta(torchvision.models.vgg16), 10)
    inside = PRINTED.replace(APPENDED, "").replace("\n  )\n)", f"{APPENDED.replace('(7)', '  (7)')}\n  )\n)")
    assert str(network) == inside
    assert network(images(1, 3, 32, 32)).shape == (1, 10)


@clause("16.edit.replace", "16.vgg16.printed_replaced")
def test_vgg16_with_its_last_layer_replaced_gives_ten_scores(replace_classifier: Make) -> None:
    network = replace_classifier(on_meta(torchvision.models.vgg16), 10)
    assert str(network) == PRINTED_REPLACED + "\n)"
    assert network(images(1, 3, 32, 32)).shape == (1, 10)


@clause("16.edit.replace")
def test_the_replaced_layer_takes_the_place_of_the_last_and_no_other_changes(replace_classifier: Make) -> None:
    network, x = Small().eval(), torch.arange(6.0).reshape(2, 3)
    before = copy.deepcopy(network)
    assert replace_classifier(network, 2) is network
    assert str(network.classifier[3]) == "Linear(in_features=4, out_features=2, bias=True)"
    assert len(network.classifier) == 4
    for name, value in before.classifier[:3].state_dict().items():
        assert_equal(network.classifier.state_dict()[name], value, name)
    assert_equal(network(x), network.classifier[3](before.classifier[:3](x)))


@clause("16.edit.like")
@pytest.mark.parametrize("edit", ["append_classifier", "replace_classifier"])
def test_the_new_layer_is_like_the_old_one(append_classifier: Make, replace_classifier: Make, edit: str) -> None:
    class Linear(nn.Linear):
        """A subclass of Linear."""

    network = Small()
    network.classifier[3] = Linear(4, 5)
    network.double().requires_grad_(False).eval()
    {"append_classifier": append_classifier, "replace_classifier": replace_classifier}[edit](network, 7)
    layer = network.classifier[-1]
    assert type(layer) is Linear
    assert layer.weight.dtype == torch.float64
    assert not layer.training
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == [
        f"classifier.{len(network.classifier) - 1}.{part}" for part in ("weight", "bias")
    ]
    assert replace_classifier(on_meta(Small), 7).classifier[3].weight.is_meta


@clause("16.edit.rejects")
@pytest.mark.parametrize("classes", [0, -1, 2.5, "ten", True])
def test_an_impossible_number_of_classes_is_rejected(
    append_classifier: Make, replace_classifier: Make, classes: Any
) -> None:
    network = Small()
    before = str(network)
    for edit in (append_classifier, replace_classifier):
        with rejects(naming="classes"):
            edit(network, classes)
    assert str(network) == before


@clause("16.edit.rejects")
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(nn.Linear(2, 2), id="no classifier"),
        pytest.param(nn.ModuleDict({"classifier": nn.Sequential()}), id="an empty classifier"),
        pytest.param(nn.ModuleDict({"classifier": nn.Sequential(nn.Linear(2, 2), nn.ReLU())}), id="an activation last"),
        pytest.param(nn.ModuleDict({"classifier": nn.Linear(2, 2)}), id="a single layer"),
    ],
)
def test_a_network_without_such_a_classifier_is_rejected(
    append_classifier: Make, replace_classifier: Make, network: nn.Module
) -> None:
    before = str(network)
    for edit in (append_classifier, replace_classifier):
        with rejects(naming="classifier"):
            edit(network, 2)
    assert str(network) == before


@clause("16.edit.rejects")
def test_a_second_layer_beside_is_rejected(append_classifier: Make) -> None:
    network = append_classifier(Small(), 7, inside=False)
    with rejects(naming="'4'"):
        append_classifier(network, 7, inside=False)


# Trained weights


def tiny_state(classes: int = 1000) -> dict[str, Tensor]:
    """A state dict of VGG16 with a small file: each tensor is one number, repeated, and no two tensors share it."""
    with torch.device("meta"):
        expected = torchvision.models.vgg16(num_classes=classes).state_dict()
    return OrderedDict(
        (name, torch.tensor(i / 8, device="cpu").expand(value.shape))
        for i, (name, value) in enumerate(expected.items())
    )


def firsts(state: dict[str, Tensor]) -> dict[str, float]:
    """The number of each tensor, which must be the same everywhere in it."""
    return {name: value.reshape(-1)[0].item() for name, value in state.items()}


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in network.state_dict().items():
        assert torch.equal(value.cpu(), state[name]), name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch.hub for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "home" / "hub" / "checkpoints"


def in_cache(cache: Path) -> list[str]:
    """The names of the files in the cache, without the empty lock file for a second process."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock" or path.stat().st_size > 0]


class Publisher:
    """A server for files of this machine that counts the requests for each."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.withheld = 0  # bytes at the end of a file that never arrive
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append(self.path)
                content = publisher.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write((content or b"")[: -publisher.withheld or None])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture
def publisher(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("reference.data.download.PAUSE", 0.0)
    publisher = Publisher()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()


@pytest.fixture
def published(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a weight file to which VGG16_Weights.IMAGENET1K_V1 refers from now on."""
    torch.save(tiny_state(), tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    name = f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    publisher.files[f"/{name}"] = content
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", publisher.address(name))
    return name


@clause("16.weights.enum")
@pytest.mark.slow
def test_trained_weights_are_fetched_once_and_loaded(
    vgg16: Make, published: str, publisher: Publisher, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in (VGG16_Weights.IMAGENET1K_V1, "IMAGENET1K_V1"):
        assert_holds(vgg16(weights=weights, progress=False), tiny_state())
    assert publisher.asked == [f"/{published}"]
    assert in_cache(cache) == [published]
    assert capsys.readouterr().err == ""


@clause("16.weights.enum", "16.vgg16.seed")
@pytest.mark.slow
def test_random_numbers_after_trained_weights_are_those_of_torchvision(published: str) -> None:
    """Set the seed, so that a new last layer starts from the same numbers."""
    found = []
    for make in (reference.vgg16, torchvision.models.vgg16):
        torch.manual_seed(5)
        make(weights=VGG16_Weights.DEFAULT, progress=False)
        found.append(torch.rand(3).tolist())
    assert found[0] == found[1]


@clause("16.weights.enum")
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(VGG16_Weights.IMAGENET1K_V1, id="a member"),
        pytest.param("DEFAULT", id="its other name"),
        pytest.param("VGG16_Weights.IMAGENET1K_V1", id="its full name"),
    ],
)
def test_the_reference_knows_the_weights_by_member_and_name(
    weights: Any, published: str, publisher: Publisher, cache: Path
) -> None:
    for _ in range(2):
        source, state = read_weights(weights, "VGG16_Weights", progress=False)
        assert firsts(state) == firsts(tiny_state())
        assert source == str(cache / published)
    assert publisher.asked == [f"/{published}"]


@clause("16.weights.enum")
def test_trained_weights_have_a_thousand_classes(vgg16: Make, published: str) -> None:
    with rejects(naming="classifier.6|num_classes"):
        on_meta(vgg16, weights="DEFAULT", num_classes=10, progress=False)


@clause("16.weights.enum")
def test_the_weights_that_torchvision_lists() -> None:
    """The attributes of the real member: its file, and the content of the file."""
    member = VGG16_Weights.DEFAULT
    assert member is VGG16_Weights.IMAGENET1K_V1
    assert re.fullmatch(r"https://download\.pytorch\.org/models/vgg16-[0-9a-f]{8}\.pth", member.url)
    assert member.meta["num_params"] == 138_357_544
    assert len(member.meta["categories"]) == 1000
    assert member.meta["min_size"] == (32, 32)
    assert (member.transforms().crop_size, member.transforms().resize_size) == ([224], [256])


@clause("16.weights.hash")
@pytest.mark.parametrize("fault", ["another byte", "cut off"])
def test_a_file_with_another_hash_is_refused_and_nothing_is_left(
    vgg16: Make, published: str, publisher: Publisher, cache: Path, fault: str
) -> None:
    if fault == "cut off":
        publisher.withheld = 100
    else:
        publisher.files[f"/{published}"] += b"!"
    with rejects(naming="hash value|IncompleteRead|wrong checksum, SHA-256|connection broke after"):
        on_meta(vgg16, weights="DEFAULT", progress=False)
    assert in_cache(cache) == []


@clause("16.weights.hash")
def test_the_reference_stops_at_the_size_that_torchvision_tells(
    published: str, publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(publisher.files[f"/{published}"])
    meta = VGG16_Weights.IMAGENET1K_V1.value.meta
    for told, fits in ((size / 2**20, True), (size / 2**20 - 0.01, False)):
        monkeypatch.setitem(meta, "_file_size", round(told, 3))
        if fits:
            assert read_weights("DEFAULT", "VGG16_Weights", progress=False)[0] == str(cache / published)
            (cache / published).unlink()
        else:
            with rejects(naming=rf"its file has {size:,} bytes, at most .* are right"):
                read_weights("DEFAULT", "VGG16_Weights", progress=False)
    assert in_cache(cache) == []


@clause("16.weights.hash")
def test_weights_are_fetched_by_the_one_downloader(
    published: str, publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    publisher.withheld = 1
    with rejects(naming="the connection broke after"):
        read_weights("DEFAULT", "VGG16_Weights", progress=False)
    publisher.withheld = 0
    assert read_weights("DEFAULT", "VGG16_Weights", progress=False)[0] == str(cache / published)


@clause("16.weights.cached")
def test_a_damaged_file_in_the_cache_is_named(published: str, publisher: Publisher, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / published).write_bytes(publisher.files[f"/{published}"][:-1])
    with rejects(naming=rf"{re.escape(str(cache / published))} is damaged.*remove it"):
        reference.vgg16(weights="DEFAULT", progress=False)
    assert publisher.asked == []


@clause("16.weights.offline")
@pytest.mark.parametrize("missing", ["no such file", "no server"])
def test_offline_the_error_names_the_file_to_download_and_its_place(
    publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    address = publisher.address("vgg16-397923af.pth")
    if missing == "no server":
        publisher.server.shutdown()
        publisher.server.server_close()
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", address)
    with pytest.raises(InputError) as caught:
        reference.vgg16(weights="DEFAULT", progress=False)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert f"fetch {address} (528 MB, its SHA-256 begins with 397923af)" in said
    assert f"put it at {cache / 'vgg16-397923af.pth'}, or give the path of the file as weights=" in said
    assert in_cache(cache) == []
    # and a file in this place is used if it is the right one
    (cache / "vgg16-397923af.pth").write_bytes(b"")
    with pytest.raises(InputError, match="SHA-256 does not begin with 397923af"):
        reference.vgg16(weights="DEFAULT", progress=False)


@clause("16.weights.unknown")
def test_an_unknown_name_is_refused(vgg16: Make) -> None:
    with pytest.raises((KeyError, ValueError), match="IMAGENET22K"):
        on_meta(vgg16, weights="IMAGENET22K")


@clause("16.weights.unknown")
def test_the_reference_says_which_names_there_are() -> None:
    with rejects(naming="'IMAGENET22K' is unknown; there is IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT"):
        reference.vgg16(weights="IMAGENET22K")
    with rejects(naming="weights must be None, a VGG16_Weights, its name or a path, got 3"):
        reference.vgg16(weights=3)
    with rejects(naming="weights must be None, a VGG16_Weights"):
        reference.vgg16(weights=torchvision.models.VGG11_Weights.DEFAULT)


@clause("16.weights.unknown")
def test_without_torchvision_a_name_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with rejects(naming="weights='DEFAULT' needs torchvision.*pip install torchvision; or give the path"):
        reference.vgg16(weights="DEFAULT")


@clause("16.weights.file")
@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False], ids=["today's format", "the format before PyTorch 1.6"])
def test_the_reference_loads_a_state_dict_from_a_file(tmp_path: Path, zipped: bool) -> None:
    torch.save(tiny_state(10), tmp_path / "mine.pth", _use_new_zipfile_serialization=zipped)
    network = reference.vgg16(weights=tmp_path / "mine.pth", dropout=0.25)
    assert_holds(network, tiny_state(10))
    assert "Dropout(p=0.25" in str(network)
    assert all(parameter.requires_grad for parameter in network.parameters())


@clause("16.weights.file")
@pytest.mark.parametrize(
    "change", [torch.Tensor.half, torch.Tensor.bfloat16, nn.Parameter], ids=["half", "bf", "Parameter"]
)
def test_weights_that_float32_holds_exactly_are_accepted(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = tiny_state() | {"features.0.bias": change(torch.ones(64))}
    torch.save(state, tmp_path / "mine.pth")
    source, found = read_weights(str(tmp_path / "mine.pth"), "VGG16_Weights", progress=False)
    expected = on_meta(reference.vgg16).state_dict()
    reference.models.pretrained.check_state(source, found, expected, "VGG16")  # pyright: ignore[reportAttributeAccessIssue]
    assert firsts(found) == firsts(state)


class Trap:
    """Opening it would leave a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tiny_state().items() if key != name}


@clause("16.weights.checked")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(without("features.28.bias"), "'features.28.bias' is missing", id="an entry missing"),
        pytest.param(
            tiny_state() | {"7.weight": torch.ones(10, 1000)}, "'7.weight' does not belong there", id="the tutorial's 7"
        ),
        pytest.param(
            tiny_state() | {"features.0.weight": torch.ones(64, 3, 5, 5)},
            r"features.0.weight has the shape \(64, 3, 5, 5\), not \(64, 3, 3, 3\)",
            id="another shape",
        ),
        pytest.param(
            tiny_state() | {"features.0.bias": torch.ones(64, dtype=torch.float64)},
            "features.0.bias is torch.float64, which torch.float32 does not hold without rounding",
            id="float64",
        ),
        pytest.param(
            tiny_state() | {"features.0.bias": torch.ones(64, dtype=torch.int64)}, "is torch.int64", id="integers"
        ),
        pytest.param(tiny_state() | {"features.0.bias": [0.0]}, "is no tensor but a list", id="a list"),
        pytest.param(tiny_state() | {3: torch.ones(1)}, "3 does not belong there", id="a number as key"),
        pytest.param({"state_dict": tiny_state()}, "'features.0.weight' is missing", id="a dictionary around it"),
        pytest.param({}, "'features.0.weight' is missing", id="nothing"),
        pytest.param(torch.ones(3), "holds a Tensor, not a state dict", id="a tensor"),
        pytest.param(nn.Linear(1, 1), "holds more than tensors", id="a whole module"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "mine.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=says) as caught:
        reference.vgg16(weights=str(path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@clause("16.weights.checked")
def test_another_number_of_classes_than_the_files_is_refused(tmp_path: Path) -> None:
    torch.save(tiny_state(), tmp_path / "mine.pth")
    says = r"mine.pth does not hold the weights of a VGG16 for 10 classes: classifier.6.weight has the shape \(1000, "
    with rejects(naming=says):
        reference.vgg16(weights=tmp_path / "mine.pth", num_classes=10)


@clause("16.weights.checked")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[: len(content) // 2], id="cut off"),
        pytest.param(lambda content: b"a letter to my mother", id="text"),
        pytest.param(lambda content: b"\0" * 100, id="zeros"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "mine.pth"
    torch.save(tiny_state(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="damaged") as caught:
        reference.vgg16(weights=path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@clause("16.weights.checked")
@pytest.mark.parametrize("lie", LIES)
def test_an_archive_of_weights_that_two_readers_could_read_differently_is_refused(tmp_path: Path, lie: str) -> None:
    """Trained weights are read by the same reader as checkpoints, not by PyTorch's."""
    torch.save({"features.0.weight": torch.arange(6.0)}, tmp_path / "mine.pth")
    (tmp_path / "mine.pth").write_bytes(LIES[lie]((tmp_path / "mine.pth").read_bytes()))
    with pytest.raises(InputError, match=r"mine\.pth (is damaged or cut off|was not read)"):
        reference.vgg16(weights=tmp_path / "mine.pth")


@clause("16.weights.checked")
def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine.pth cannot be read: No such file"):
        reference.vgg16(weights=tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        reference.vgg16(weights=f"{tmp_path}/")


@clause("16.weights.checked")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_nothing_in_a_file_is_run(tmp_path: Path, zipped: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "mine.pth"
    torch.save(tiny_state() | {"trap": Trap(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="could run code"):
        reference.vgg16(weights=path)
    path.write_bytes(pickle.dumps(Trap(victim)))
    with pytest.raises(InputError, match=r"mine\.pth"):
        reference.vgg16(weights=path)
    assert not victim.exists()


# The listing


@clause("16.listing.pretrained")
def test_pretrained_false_still_means_no_weights_and_warns_twice() -> None:
    # chapter 16, line 1179
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = on_meta(torchvision.models.vgg16, pretrained=False)
    assert [str(warning.message).partition(" 0.13")[0] for warning in caught] == [
        "The parameter 'pretrained' is deprecated since",
        "Arguments other than a weight enum or `None` for 'weights' are deprecated since",
    ]
    assert "`weights=None`" in str(caught[1].message)
    assert str(network) == str(on_meta(torchvision.models.vgg16, weights=None))


@clause("16.listing.pretrained")
def test_pretrained_true_means_the_weights_of_imagenet_and_needs_a_network(
    publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chapter 16, line 1180
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", publisher.address("vgg16-397923af.pth"))
    with (
        pytest.warns(UserWarning, match="'pretrained' is deprecated since 0.13"),
        pytest.warns(UserWarning, match="`weights=VGG16_Weights.IMAGENET1K_V1`"),
        pytest.raises(HTTPError, match="404") as caught,
    ):
        on_meta(torchvision.models.vgg16, pretrained=True)
    caught.value.close()
    assert publisher.asked == ["/vgg16-397923af.pth"]
    assert in_cache(cache) == []


@clause("16.listing.pretrained")
def test_the_reference_takes_pretrained_as_torchvision_does(publisher: Publisher, monkeypatch: Any) -> None:
    monkeypatch.setattr(VGG16_Weights.IMAGENET1K_V1.value, "url", publisher.address("vgg16-397923af.pth"))
    with pytest.warns(UserWarning, match=r"deprecated since torchvision 0\.13; use weights=None"):
        assert str(on_meta(reference.vgg16, pretrained=False)) == str(on_meta(reference.vgg16))
    with pytest.warns(UserWarning, match=r"weights='DEFAULT'"), pytest.raises(InputError, match="404"):
        reference.vgg16(pretrained=True)
    with rejects(naming="pretrained is the old name of weights"):
        reference.vgg16(pretrained=True, weights="DEFAULT")


@clause("16.listing.train_data", "16.listing.pretrained")
@pytest.mark.filterwarnings("ignore:.*deprecated since 0.13:UserWarning")
def test_the_listing_prints_both_networks_and_shows_them_no_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The listing's steps, lines 1176 to 1188, with local weights; both outputs are the documented ones."""
    shown = []
    monkeypatch.setattr(
        VGG16_Weights, "get_state_dict", lambda *_, **__: on_meta(torchvision.models.vgg16).state_dict()
    )
    monkeypatch.setattr(torchvision.models.VGG, "forward", lambda _, images: shown.append(images))
    with torch.device("meta"):
        networks = [torchvision.models.vgg16(pretrained=pretrained) for pretrained in (False, True)]
        networks[1].add_module("7", nn.Linear(1000, 10))
        print(networks[1])
        networks[0].classifier[6] = nn.Linear(4096, 10)
        print(networks[0])
    assert capsys.readouterr().out == f"{PRINTED}\n{PRINTED_REPLACED}\n)\n"
    assert shown == []


# ImageNet


@clause("16.imagenet.archives")
def test_imagenet_asks_for_archives_and_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # chapter 16, lines 1162 and 1164
    scipy = ModuleType("scipy")
    scipy.io = ModuleType("scipy.io")  # it imports SciPy before it looks for the archive  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    monkeypatch.setitem(sys.modules, "scipy.io", scipy.io)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something is fetched"))
    for split in ("train", "val"):
        with pytest.raises(RuntimeError, match=r"ILSVRC2012_devkit_t12.tar.gz.*download it externally and place it in"):
            torchvision.datasets.ImageNet(tmp_path, split=split)
    assert list(tmp_path.iterdir()) == []


@clause("16.imagenet.archives")
def test_imagenet_reads_unpacked_images_and_takes_no_download(tmp_path: Path) -> None:
    torch.save(({"n01440764": ("tench",), "n01443537": ("goldfish",)}, []), tmp_path / "meta.bin")
    for name in ("n01443537", "n01440764"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(tmp_path / "val" / name / "1.png")
    images = torchvision.datasets.ImageNet(tmp_path, split="val")
    assert images.classes == [("tench",), ("goldfish",)]
    assert [target for _, target in images] == [0, 1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'download'"):
        torchvision.datasets.ImageNet(tmp_path, split="val", download=True)
