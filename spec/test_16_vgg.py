"""Chapter 16: VGG16, and the two edits that change its classes."""

import ast
import copy
import hashlib
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import reference
from spec.support.assertions import assert_equal, rejects
from spec.support.clauses import clause
from spec.support.strategies import whole
from spec.support.vgg_networks import APPENDED, PRINTED, PRINTED_REPLACED, Make, firsts, on_meta, tiny_state

# Simonyan and Zisserman (2014), table 1, configuration D: the channels of the convolutions; after each stage a pooling
CONFIGURATION_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def images(*shape: int) -> Tensor:
    return torch.ones(shape, device="meta")


def kinds(network: nn.Module) -> Counter[str]:
    return Counter(type(layer).__name__ for layer in network.modules())


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


# The network


@clause("16.vgg16.sixteen")
def test_vgg16_has_16_weight_layers_32_tensors_and_138357544_parameters(vgg16: Make) -> None:
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
def test_vgg16_is_configuration_d_of_the_paper(vgg16: Make) -> None:
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
def test_vgg16_rejects_images_too_small_for_the_poolings(vgg16: Make, size: tuple[int, int]) -> None:
    with rejects(naming="size|pixels"):
        on_meta(vgg16)(images(1, 3, *size))


@clause("16.vgg16.dropout")
def test_the_reference_names_itself_for_an_impossible_dropout() -> None:
    with rejects("vgg16: dropout"):
        on_meta(reference.vgg16, dropout=1.5)


@clause("16.vgg16.other_sizes")
@pytest.mark.parametrize("size", [(31, 32), (224, 31)], ids=str)
def test_the_error_for_small_images_names_the_smallest_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"^VGG: images must have at least 32×32 pixels, got {size[0]}×{size[1]}$"):
        on_meta(reference.vgg16)(images(1, 3, *size))


@clause("16.vgg16.classes")
def test_another_number_of_classes_changes_the_last_layer_only(vgg16: Make) -> None:
    ten, thousand = (shapes(on_meta(vgg16, num_classes=n).state_dict()) for n in (10, 1000))
    assert ten == thousand | {"classifier.6.weight": (10, 4096), "classifier.6.bias": (10,)}
    assert thousand == shapes(on_meta(vgg16).state_dict())


@clause("16.vgg16.classes")
@pytest.mark.parametrize("classes", [0, -1, 2.5, "ten", True])
def test_vgg16_rejects_invalid_class_counts(classes: Any) -> None:
    with rejects(naming="num_classes"):
        on_meta(reference.vgg16, num_classes=classes)


@clause("16.vgg16.dropout")
def test_vgg16_prints_dropout_p_with_default_0_5(vgg16: Make) -> None:
    assert str(on_meta(vgg16)).count("Dropout(p=0.5, inplace=False)") == 2
    assert str(on_meta(vgg16, dropout=0.25)).count("Dropout(p=0.25, inplace=False)") == 2
    with rejects(naming="dropout|probability"):
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
def test_vgg16_scores_equal_the_printed_layers_bit_for_bit(vgg16: Make) -> None:
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
def test_vgg16_features_equal_the_printed_layers_bit_for_bit(vgg16: Make) -> None:
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


@clause("16.vgg16.start")
def test_reference_vgg16_draws_weights_with_the_std_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, float]] = []
    monkeypatch.setattr("reference.models.vgg.normal_", lambda tensor, std: drawn.append((len(tensor), std)))
    on_meta(reference.vgg16)
    convolutions = [(channels, math.sqrt(2 / (9 * channels))) for stage in CONFIGURATION_D for channels in stage]
    assert drawn == [*convolutions, (4096, 0.01), (4096, 0.01), (1000, 0.01)]
    drawn.clear()
    on_meta(reference.vgg16, init_weights=False)
    assert drawn == []


class Zeroed(TorchFunctionMode):
    """Counts the tensors that are set to 0 in place."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") == "zero_"
        return func(*args, **(kwargs or {}))


@clause("16.vgg16.start")
def test_reference_vgg16_sets_all_16_biases_to_0() -> None:
    with Zeroed() as zeroed:
        on_meta(reference.vgg16)
    assert zeroed.count == 16


@clause("16.vgg16.start", "16.vgg16.dropout")
@pytest.mark.slow
def test_vgg16_initial_weights_are_normal_with_the_documented_std(vgg16: Make) -> None:
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
def test_vgg16_initialization_with_a_seed_equals_torchvisions(init_weights: bool) -> None:
    found = []
    for make in (reference.vgg16, torchvision.models.vgg16):
        torch.manual_seed(5)
        found.append((digests(make(init_weights=init_weights)), torch.rand(3).tolist()))  # and the numbers after them
    assert found[0] == found[1]


# The state dict


@clause("16.vgg16.state")
def test_vgg16_state_dict_has_keys_shapes_and_dtypes_of_torchvision(vgg16: Make) -> None:
    ours, theirs = on_meta(vgg16).state_dict(), on_meta(torchvision.models.vgg16).state_dict()
    assert list(shapes(ours).items()) == list(shapes(theirs).items())
    assert {value.dtype for value in ours.values()} == {torch.float32}


@clause("16.vgg16.state")
@pytest.mark.slow
def test_vgg16_state_dict_loads_to_and_from_torchvision(vgg16: Make) -> None:
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
def test_vgg16_with_a_layer_added_beside_prints_as_documented(vgg16: Make) -> None:
    network = on_meta(vgg16)
    network.add_module("7", on_meta(nn.Linear, 1000, 10))  # chapter 16, line 1183
    assert str(network) == PRINTED
    assert len(PRINTED.splitlines()) == 1239 - 1194 + 1


@clause("16.vgg16.printed_replaced")
def test_vgg16_with_replaced_last_layer_prints_as_documented_with_closing_parenthesis(vgg16: Make) -> None:
    network = on_meta(vgg16)
    network.classifier[6] = on_meta(nn.Linear, 4096, 10)  # chapter 16, line 1187
    assert len(PRINTED_REPLACED.splitlines()) == 1283 - 1240 + 1
    assert str(network) != PRINTED_REPLACED
    assert str(network) == PRINTED_REPLACED + "\n)"


@clause("16.listing.output")
def test_the_printed_network_is_not_valid_python() -> None:
    with pytest.raises(SyntaxError):
        ast.parse(PRINTED)
    with pytest.raises(SyntaxError):
        ast.parse(PRINTED_REPLACED)


@clause("16.edit.beside")
def test_a_layer_added_beside_the_classifier_is_never_run(vgg16: Make) -> None:
    # chapter 16, lines 1174, 1182 and 1183
    network, calls = on_meta(vgg16), []
    network.add_module("7", on_meta(nn.Linear, 1000, 10))
    network.get_submodule("7").register_forward_hook(lambda *_: calls.append("7"))
    assert network(images(1, 3, 32, 32)).shape == (1, 1000)
    assert calls == []
    assert list(network.state_dict())[-2:] == ["7.weight", "7.bias"]  # it is saved nevertheless


@clause("16.edit.beside")
def test_a_layer_added_inside_the_classifier_is_run(vgg16: Make) -> None:
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
def test_append_classifier_inside_maps_scores_to_classes(append_classifier: Make) -> None:
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
def test_append_classifier_beside_leaves_output_unchanged_and_gets_no_gradient(append_classifier: Make) -> None:
    network, x = Small().eval(), torch.arange(6.0).reshape(2, 3)
    before = network(x)
    append_classifier(network, 7, inside=False)
    assert_equal(network(x), before)
    network(x).sum().backward()
    grads = {name: parameter.grad is not None for name, parameter in network.named_parameters()}
    assert [name for name, learns in grads.items() if not learns] == ["4.weight", "4.bias"]


@clause("16.edit.append_beside", "16.vgg16.printed_appended")
def test_append_classifier_beside_vgg16_prints_as_documented(append_classifier: Make) -> None:
    network = append_classifier(on_meta(torchvision.models.vgg16), 10, inside=False)
    assert str(network) == PRINTED
    assert network(images(1, 3, 32, 32)).shape == (1, 1000)


@clause("16.edit.append")
def test_append_classifier_inside_vgg16_gives_ten_scores(append_classifier: Make) -> None:
    network = append_classifier(on_meta(torchvision.models.vgg16), 10)
    inside = PRINTED.replace(APPENDED, "").replace("\n  )\n)", f"{APPENDED.replace('(7)', '  (7)')}\n  )\n)")
    assert str(network) == inside
    assert network(images(1, 3, 32, 32)).shape == (1, 10)


@clause("16.edit.replace", "16.vgg16.printed_replaced")
def test_replace_classifier_of_vgg16_gives_ten_scores(replace_classifier: Make) -> None:
    network = replace_classifier(on_meta(torchvision.models.vgg16), 10)
    assert str(network) == PRINTED_REPLACED + "\n)"
    assert network(images(1, 3, 32, 32)).shape == (1, 10)


@clause("16.edit.replace")
def test_replace_classifier_replaces_only_the_last_layer(replace_classifier: Make) -> None:
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
def test_new_classifier_layer_has_device_dtype_and_mode_of_the_old_one(
    append_classifier: Make, replace_classifier: Make, edit: str
) -> None:
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
def test_classifier_edits_reject_invalid_class_counts(
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
def test_classifier_edits_reject_networks_without_a_classifier(
    append_classifier: Make, replace_classifier: Make, network: nn.Module
) -> None:
    before = str(network)
    for edit in (append_classifier, replace_classifier):
        with rejects(naming="classifier"):
            edit(network, 2)
    assert str(network) == before


@clause("16.edit.rejects")
def test_append_classifier_rejects_a_second_layer_beside(append_classifier: Make) -> None:
    network = append_classifier(Small(), 7, inside=False)
    with rejects(naming="'4'"):
        append_classifier(network, 7, inside=False)
