"""Chapter 09: the convolution layer, `Conv2d`, and the arithmetic of sizes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler
from torch.utils.tensorboard import SummaryWriter

import reference
from spec.support.assertions import assert_close, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.strategies import given, normal, seeds, whole

Layer = Callable[..., Any]
Pair = tuple[int, int]


class Ocean(nn.Module):
    """The chapter's network, with the convolution under test."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv1 = layer(in_channels=3, out_channels=6, kernel_size=3, stride=1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)


# The values


@clause("09.conv2d.printed")
def test_the_network_prints_as_documented(Conv2d: Layer) -> None:
    # chapter 09, line 537
    printed = "Ocean(\n  (conv1): Conv2d(3, 6, kernel_size=(3, 3), stride=(1, 1))\n)"
    assert str(Ocean(Conv2d)) == printed


@clause("09.conv2d.shapes")
def test_a_full_batch_becomes_64_by_6_by_30_by_30(Conv2d: Layer) -> None:
    # chapter 09, lines 522 and 524
    imgs = torch.ones(64, 3, 32, 32)
    assert imgs.shape == torch.Size([64, 3, 32, 32])
    with torch.no_grad():
        assert Ocean(Conv2d)(imgs).shape == torch.Size([64, 6, 30, 30])


@clause("09.conv2d.last_batch")
def test_the_157th_and_last_batch_has_16_images(Conv2d: Layer) -> None:
    # chapter 09, line 543; the test set has 10,000 images, and 10000 = 156 · 64 + 16
    batches = [len(batch) for batch in BatchSampler(SequentialSampler(range(10_000)), 64, drop_last=False)]
    assert batches == [64] * 156 + [16]
    with torch.no_grad():
        assert Ocean(Conv2d)(torch.ones(batches[-1], 3, 32, 32)).shape == torch.Size([16, 6, 30, 30])


@clause("09.conv2d.kernels")
def test_one_channel_in_and_two_out_need_two_kernels(Conv2d: Layer) -> None:
    # chapter 09, line 476
    assert Conv2d(1, 2, 3).weight.shape == (2, 1, 3, 3)


# The claims


@clause("09.conv2d.reshape")
def test_tensorboard_rejects_6_channels_and_reshape_doubles_the_batch(Conv2d: Layer, tmp_path: Path) -> None:
    output = Ocean(Conv2d)(torch.rand(64, 3, 32, 32)).detach()
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(AssertionError, match=r"3 channels|^$"):
            writer.add_images("after conv2d", output, 0)
        # chapter 09, line 526
        images = torch.reshape(output, (-1, 3, 30, 30))
        assert images.shape == torch.Size([128, 3, 30, 30])
        writer.add_images("after conv2d", images, 0)
    # not 64 images: each was split into two, with channels that are not red, green and blue
    assert_equal(images[1], output[0, 3:], "the second image on the board")
    # chapter 09, line 526, of the last batch of 16
    assert torch.reshape(output[:16], (-1, 3, 30, 30)).shape == torch.Size([32, 3, 30, 30])


@clause("09.conv2d.multiply_and_add")
@given(seed=seeds)
def test_each_pixel_is_the_sum_of_products_position_by_position(Conv2d: Layer, seed: int) -> None:
    layer = Conv2d(2, 1, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(whole(1, 2, 3, 3, seed=seed))
    x = whole(1, 2, 5, 5, seed=seed + 1)
    by_hand = [[(x[0, :, i : i + 3, j : j + 3] * layer.weight[0]).sum().item() for j in range(3)] for i in range(3)]
    assert_equal(layer(x), [[by_hand]])


@clause("09.conv2d.multiply_and_add")
def test_the_kernel_is_not_flipped(Conv2d: Layer) -> None:
    layer = Conv2d(1, 1, (1, 2), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2))
    # 1 · 3 + 2 · 5; flipped it would be 2 · 3 + 1 · 5 = 11
    assert_equal(layer(torch.tensor([3.0, 5.0]).reshape(1, 1, 1, 2)), [[[[13.0]]]])


@clause("09.conv2d.first_five")
@pytest.mark.level("definition")  # the layer's attributes
def test_first_five_parameters_are_in_the_documented_order(Conv2d: Layer) -> None:
    layer = Conv2d(1, 2, 3, 4, 5)
    found = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    assert found == (1, 2, (3, 3), (4, 4), (5, 5))


@clause("09.conv2d.test_set")
def test_the_test_set_is_a_fifth_of_the_training_set() -> None:
    cifar10 = torchvision.datasets.CIFAR10
    # a file holds 10,000 images, which the tests of chapter 05 verify for real files
    assert (len(cifar10.train_list), len(cifar10.test_list)) == (5, 1)


# The sizes


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Input, kernel, stride, padding and dilation that fit, each a pair."""
    pair = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    kernel, dilation, padding = pair(1, 5), pair(1, 3), pair(0, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    more = pair(0, 9)
    return {
        "input_size": (least[0] + more[0], least[1] + more[1]),
        "kernel_size": kernel, "stride": pair(1, 4), "padding": padding, "dilation": dilation,
    }  # fmt: skip


def windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The number of windows, by counting: a window starts every `stride` pixels and must end inside."""
    starts = range(-padding, size + padding, stride)
    return sum(start + dilation * (kernel - 1) < size + padding for start in starts)


@clause("09.sizes.formula")
@given(case=sizes())
def test_the_output_has_one_pixel_for_each_window_that_fits(Conv2d: Layer, case: dict[str, Any]) -> None:
    options = dict(case)
    x = torch.ones(1, 1, *options.pop("input_size"))
    expected = [windows(*values) for values in zip(*case.values(), strict=True)]
    assert list(Conv2d(1, 1, **options)(x).shape[2:]) == expected


@clause("09.sizes.formula")
@given(case=sizes())
def test_the_formula_counts_the_windows(conv2d_output_size: Callable[..., Pair], case: dict[str, Any]) -> None:
    counted = tuple(windows(*values) for values in zip(*case.values(), strict=True))
    assert conv2d_output_size(**case) == counted


@clause("09.sizes.documented")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param((32, 3), (30, 30), id="32 pixels under a 3×3 kernel become 30"),  # chapter 09, line 524
        pytest.param((5, 3), (3, 3), id="5 pixels under a 3×3 kernel become 3"),  # chapter 08, line 445
        pytest.param((5, 3, 1, 1), (5, 5), id="with padding 1 they stay 5"),  # chapter 08, line 451
        pytest.param((32, 5, 1, 2), (32, 32), id="32 pixels under 5×5 with padding 2 stay 32"),  # chapter 13, line 842
        pytest.param(
            (32, 5, 1, "same"), (32, 32), id="and under padding same too", marks=pytest.mark.level("definition")
        ),
    ],
)
def test_the_documented_sizes(
    conv2d_output_size: Callable[..., Pair], arguments: tuple[Any, ...], expected: Pair
) -> None:
    assert conv2d_output_size(*arguments) == expected


@clause("09.sizes.same_padding")
@given(kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)), dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_same_padding_is_the_inverse_of_the_formula(
    same_padding: Callable[..., tuple[Pair, Pair]], kernel: Pair, dilation: Pair
) -> None:
    for sides, k, d in zip(same_padding(kernel, dilation), kernel, dilation, strict=True):
        before, after = sides
        assert before <= after <= before + 1
        assert 9 + before + after - d * (k - 1) == 9  # an image of size 9 keeps its size


@clause("09.sizes.rejects")
@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        pytest.param({"input_size": -1}, "input_size", id="a negative image"),
        pytest.param({"kernel_size": 0}, "kernel_size", id="no kernel"),
        pytest.param({"kernel_size": 9}, "kernel", id="a kernel larger than the image"),
        pytest.param({"stride": 0}, "stride", id="no step"),
        pytest.param({"padding": -1}, "padding", id="a negative border"),
        pytest.param({"padding": "some"}, "padding", id="an unknown padding"),
        pytest.param({"padding": "same", "stride": 2}, "same", id="same with a stride"),
        pytest.param({"dilation": 0}, "dilation", id="no dilation"),
        pytest.param({"kernel_size": (1, 2, 3)}, "kernel_size", id="three sides"),
        pytest.param({"kernel_size": 1.5}, "kernel_size", id="half a pixel"),
    ],
)
def test_impossible_sizes_are_rejected(
    conv2d_output_size: Callable[..., Pair], arguments: dict[str, Any], naming: str
) -> None:
    with rejects(naming, *arguments):
        conv2d_output_size(**{"input_size": 5, "kernel_size": 3} | arguments)


@clause("09.sizes.rejects")
@pytest.mark.parametrize("name", ["kernel_size", "dilation"])
def test_same_padding_of_kernel_size_0_is_rejected(same_padding: Callable[..., Any], name: str) -> None:
    with rejects(naming=name):
        same_padding(**{"kernel_size": 3, "dilation": 1} | {name: 0})


# The layer


def bordered(x: Tensor, padding: Pair, mode: str) -> Tensor:
    """The padded image, pixel by pixel, from the definition of the mode."""

    def source(i: int, size: int) -> int | None:
        """The index of the pixel at position `i`, or None for a zero."""
        if 0 <= i < size:
            return i
        if mode == "replicate":
            return min(max(i, 0), size - 1)
        if mode == "circular":
            return i % size
        return (-i if i < 0 else 2 * (size - 1) - i) if mode == "reflect" else None

    (down, right), (height, width) = padding, x.shape[-2:]
    rows = [source(i, height) for i in range(-down, height + down)]
    columns = [source(j, width) for j in range(-right, width + right)]
    output = x.new_zeros(*x.shape[:2], len(rows), len(columns))
    for y, i in enumerate(rows):
        for z, j in enumerate(columns):
            if i is not None and j is not None:
                output[:, :, y, z] = x[:, :, i, j]
    return output


@clause("09.conv2d.layer")
@given(
    seed=seeds,
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_conv2d_layer_equals_conv2d_with_own_weight_and_padding(
    Conv2d: Layer, conv2d: Layer, seed: int, stride: Pair, padding: Pair, mode: str, groups: int, bias: bool
) -> None:
    layer = Conv2d(2, 4, (2, 3), stride, padding, groups=groups, bias=bias, padding_mode=mode, dtype=torch.float64)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(whole(*parameter.shape, seed=seed + number))
    x = whole(2, 2, 4, 5, seed=seed + 9)
    expected = conv2d(bordered(x, padding, mode), layer.weight, layer.bias, stride, groups=groups)
    assert_equal(layer(x), expected)


@clause("09.conv2d.printed")
@pytest.mark.parametrize(
    ("arguments", "options", "printed"),
    [
        ((3, 32, 5), {"padding": 2}, "Conv2d(3, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))"),
        (
            (4, 8, (3, 1)),
            {"stride": (2, 1), "dilation": 2, "groups": 4, "bias": False},
            "Conv2d(4, 8, kernel_size=(3, 1), stride=(2, 1), dilation=(2, 2), groups=4, bias=False)",
        ),
        (
            (1, 1, 3),
            {"padding": "same", "padding_mode": "reflect"},
            "Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1), padding=same, padding_mode=reflect)",
        ),
    ],
    ids=["what differs from the defaults", "every option", "words"],
)
def test_a_layer_prints_the_arguments(
    Conv2d: Layer, arguments: tuple[Any, ...], options: dict[str, Any], printed: str
) -> None:
    assert str(Conv2d(*arguments, **options)) == printed


@clause("09.conv2d.state")
@pytest.mark.parametrize("bias", [True, False], ids=["with a bias", "without"])
def test_state_dict_loads_to_and_from_pytorch(Conv2d: Layer, bias: bool) -> None:
    ours, pytorchs = Conv2d(4, 6, (3, 2), groups=2, bias=bias), nn.Conv2d(4, 6, (3, 2), groups=2, bias=bias)
    shapes = {"weight": (6, 2, 3, 2)} | ({"bias": (6,)} if bias else {})
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == shapes
    pytorchs.load_state_dict(ours.state_dict())
    assert_equal(pytorchs.weight, ours.weight, "the weight that was carried over")
    again = Conv2d(4, 6, (3, 2), groups=2, bias=bias)
    again.load_state_dict(pytorchs.state_dict())
    x = normal(1, 4, 5, 5, seed=0, dtype=torch.float32)
    magnitude = nn.functional.conv2d(x.abs(), pytorchs.weight.abs(), groups=2) + 1
    assert_close(again(x), pytorchs(x).detach(), rounding(torch.float32, 2 * (2 * 3 * 2 + 1), magnitude))


@clause("09.conv2d.start")
@pytest.mark.parametrize("groups", [1, 4])
def test_initial_weights_are_within_one_over_root_fan_in(Conv2d: Layer, groups: int) -> None:
    layer = Conv2d(16, 32, 5, groups=groups)
    bound = 1 / math.sqrt(16 // groups * 5 * 5)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
    # a uniform distribution has the variance bound²/3; its estimate from n draws has the standard deviation bound² ·
    # sqrt(4/45/n), and five of them are exceeded once in two million draws
    n = layer.weight.numel()
    variance = layer.weight.double().pow(2).mean().item()
    assert abs(variance - bound**2 / 3) < 5 * bound**2 * math.sqrt(4 / 45 / n)


@clause("09.conv2d.start")
def test_initialization_with_a_seed_equals_pytorchs(Conv2d: Layer) -> None:
    torch.manual_seed(7)
    ours = Conv2d(3, 6, 3)
    torch.manual_seed(7)
    pytorchs = nn.Conv2d(3, 6, 3)
    assert_equal(ours.weight, pytorchs.weight, "the weight")
    assert_equal(ours.bias, pytorchs.bias, "the bias")


@clause("09.conv2d.layer_rejects")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"in_channels": 3, "groups": 2}, "in_channels", id="inputs that the groups do not divide"),
        pytest.param({"out_channels": 3, "groups": 2}, "out_channels", id="outputs that the groups do not divide"),
        pytest.param({"groups": 0}, "groups", id="no groups"),
        pytest.param({"padding": "some"}, "padding", id="an unknown padding"),
        pytest.param({"padding": "same", "stride": 2}, "same", id="same with a stride"),
        pytest.param({"padding_mode": "mirror"}, "padding_mode", id="an unknown border"),
    ],
)
def test_invalid_layer_arguments_are_rejected(Conv2d: Layer, change: dict[str, Any], naming: str) -> None:
    with rejects(naming, *change):
        Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3} | change)


@clause("09.conv2d.layer_rejects")
@pytest.mark.filterwarnings("ignore::UserWarning")  # there is nothing to draw
def test_a_layer_may_have_no_channels(Conv2d: Layer) -> None:
    assert Conv2d(4, 0, 3).weight.shape == (0, 4, 3, 3)
    assert Conv2d(0, 2, 3).weight.shape == (2, 0, 3, 3)


@clause("09.conv2d.start")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_reference_starts_a_bias_without_inputs_at_0() -> None:
    assert_equal(reference.Conv2d(0, 2, 3).bias, [0.0, 0.0])


@clause("09.conv2d.layer_rejects")
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_the_reference_rejects_an_input_of_two_dimensions_before_it_is_padded(mode: str) -> None:
    with rejects(r"Conv2d: input must be .*got the shape \(5, 5\)"):
        reference.Conv2d(1, 1, 3, padding=1, padding_mode=mode)(torch.ones(5, 5))


@clause("09.conv2d.layer_rejects")
@pytest.mark.parametrize(("mode", "most"), [("reflect", 3), ("circular", 4)])
def test_a_border_is_at_most_as_wide_as_the_image_allows(Conv2d: Layer, mode: str, most: int) -> None:
    images = torch.ones(1, 1, 4, 4)
    assert Conv2d(1, 1, 1, padding=most, padding_mode=mode)(images).shape == (1, 1, 4 + 2 * most, 4 + 2 * most)
    with rejects("padding|Padding"):
        Conv2d(1, 1, 1, padding=most + 1, padding_mode=mode)(images)


@clause("09.conv2d.kernel_0")
@pytest.mark.filterwarnings("ignore::UserWarning")  # there is nothing to draw
@pytest.mark.parametrize("size", [0, (0, 2)], ids=str)
def test_a_layer_may_have_kernels_without_numbers(Conv2d: Layer, size: Any) -> None:
    layer = Conv2d(2, 3, size)
    assert tuple(layer.weight.shape) == (3, 2, *((0, 0) if size == 0 else size))


@clause("09.conv2d.layer_rejects")
def test_an_image_of_other_channels_is_rejected(Conv2d: Layer) -> None:
    with rejects("3 channels|needs 3", "input", "in_channels"):
        Ocean(Conv2d)(torch.ones(64, 1, 32, 32))
