"""Chapter 12: the linear layer, `linear` and `Linear`, and `flatten` and `Flatten` before it."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler

from spec.support.assertions import assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds, spread, whole

Function = Callable[..., Tensor]
Layer = Callable[..., Any]
Shape = tuple[int, ...]


def batches(drop_last: bool = False) -> Iterator[Tensor]:
    """The shapes of the chapter's loader: the test set has 10,000 images, and 10000 = 156 · 64 + 16."""
    images = torch.zeros(64, 3, 32, 32)
    for numbers in BatchSampler(SequentialSampler(range(10_000)), 64, drop_last):
        yield images[: len(numbers)]


# The values


@clause("12.linear.features")
def test_flattening_64_images_gives_196608_numbers(Linear: Layer) -> None:
    # chapter 12, line 757: Linear(196608, 10)
    layer = Linear(64 * 3 * 32 * 32, 10)
    assert layer.weight.shape == torch.Size([10, 196608])
    # chapter 12, line 768
    row = torch.reshape(next(batches()), (1, 1, 1, -1))
    assert row.shape == torch.Size([1, 1, 1, 196608])
    assert layer(row).shape == torch.Size([1, 1, 1, 10])


@clause("12.linear.definition")
@pytest.mark.level("tutorial")
def test_a_linear_layer_is_a_weighted_sum(Linear: Layer) -> None:
    layer = Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
    assert_equal(layer(torch.tensor([[1.0, 1.0, 2.0], [0.0, 3.0, 0.0]])), [[19.0, 21.0], [16.0, 17.0]])


@clause("12.linear.definition")
@pytest.mark.level("tutorial")
def test_a_linear_layer_has_a_row_of_weights_for_each_output(Linear: Layer) -> None:
    layer = Linear(3, 2)
    assert layer.weight.shape == (2, 3)
    assert layer.bias.shape == (2,)


@clause("12.linear.last_batch")
def test_the_last_batch_of_16_images_does_not_fit(Linear: Layer) -> None:
    layer = Linear(196608, 10)
    *_, last = batches()
    assert last.shape == torch.Size([16, 3, 32, 32])
    row = torch.reshape(last, (1, 1, 1, -1))
    assert row.shape == torch.Size([1, 1, 1, 49152])
    # chapter 12, line 763: the listing ends in an error, which names both numbers
    with rejects("49152.*196608|196608.*49152", "input", "in_features"):
        layer(row)


@clause("12.linear.last_batch")
def test_the_error_of_the_listing_is_a_runtime_error_of_pytorch() -> None:
    # chapter 12, line 763, in the words of PyTorch
    text = "mat1 and mat2 shapes cannot be multiplied (1x49152 and 196608x10)"
    with pytest.raises(RuntimeError, match=re.escape(text)):
        nn.Linear(196608, 10)(torch.zeros(1, 1, 1, 49152))


@clause("12.flatten.printed")
def test_the_flattened_batches_print_the_documented_lines(
    flatten: Function, capsys: pytest.CaptureFixture[str]
) -> None:
    for imgs in batches():
        print(imgs.shape)
        print(flatten(imgs).shape)
    lines = capsys.readouterr().out.splitlines()
    # chapter 12, lines 814 to 819
    assert lines[:6] == ["torch.Size([64, 3, 32, 32])", "torch.Size([196608])"] * 3
    # chapter 12, lines 821 to 823
    assert lines[-3:] == ["torch.Size([196608])", "torch.Size([16, 3, 32, 32])", "torch.Size([49152])"]
    assert len(lines) == 2 * 157


# The claims


@clause("12.linear.last_batch")
def test_every_batch_before_the_last_fits_and_drop_last_leaves_only_those() -> None:
    sizes = [batch.numel() for batch in batches()]
    assert sizes == [196608] * 156 + [49152]
    assert [batch.numel() for batch in batches(drop_last=True)] == [196608] * 156


@clause("12.linear.last_dimension")
def test_only_the_last_dimension_must_have_the_features(Linear: Layer) -> None:
    layer = Linear(32, 10)
    for shape in [(32,), (64, 32), (64, 3, 32, 32)]:
        assert layer(torch.zeros(shape)).shape == (*shape[:-1], 10)


@clause("12.linear.last_dimension", "12.flatten.batch")
def test_a_batch_need_not_be_made_one_dimensional(Linear: Layer, Flatten: Layer) -> None:
    # chapter 12, lines 746 and 789, say that it must
    rows = Flatten()(next(batches()))
    assert rows.shape == (64, 3072)
    assert Linear(3072, 10)(rows).shape == (64, 10)


@clause("12.flatten.batch")
def test_flattening_all_dimensions_gives_one_output_for_64_images(Linear: Layer, flatten: Function) -> None:
    assert Linear(196608, 10)(flatten(next(batches()))).shape == (10,)


@clause("12.flatten.batch")
def test_flattening_from_dimension_1_keeps_the_images_apart(flatten: Function) -> None:
    images = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    assert_equal(flatten(images, 1), [list(range(12)), list(range(12, 24))])
    assert_equal(flatten(images), list(range(24)))


@clause("12.flatten.order")
def test_flatten_uses_row_major_order(flatten: Function) -> None:
    assert_equal(flatten(torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])), [1, 2, 3, 4, 5, 6, 7, 8])


@clause("12.linear.not_visualised")
def test_the_listing_shows_no_image_and_writes_no_file(
    Linear: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # chapter 12, lines 745 and 788, say that the result is visualised
    monkeypatch.chdir(tmp_path)
    output = Linear(196608, 10)(torch.reshape(next(batches()), (1, 1, 1, -1)))
    print(output.shape)
    assert capsys.readouterr().out == "torch.Size([1, 1, 1, 10])\n"
    assert list(tmp_path.iterdir()) == []


@clause("12.linear.models")
def test_torchvision_has_image_networks() -> None:
    assert "vgg16" in torchvision.models.list_models()
    with torch.device("meta"):  # shapes without numbers: VGG16 has 138 million of them
        assert torchvision.models.vgg16()(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


# The properties of linear

leading = st.sampled_from([(2,), (), (0,), (1,), (3, 2), (2, 0), (2, 1, 3)])
features = st.integers(0, 5)


def linear_by_definition(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Each output, one product after the other, in Python numbers."""
    rows, weights = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).tolist(), w.tolist()
    offsets = [0.0] * len(weights) if bias is None else bias.tolist()
    outputs = [
        [sum((a * b for a, b in zip(row, ws, strict=True)), start) for ws, start in zip(weights, offsets, strict=True)]
        for row in rows
    ]
    return torch.tensor(outputs, dtype=torch.float64).reshape(*x.shape[:-1], len(weights))


@clause("12.linear.definition", "12.linear.dtypes")
@given(leading=leading, n=features, m=features, biased=st.booleans(), seed=seeds, dtype=dtypes())
def test_linear_is_the_sum_of_products(
    linear: Function, leading: Shape, n: int, m: int, biased: bool, seed: int, dtype: torch.dtype
) -> None:
    # integers: at most 5 products of at most 9, and 3, which even bfloat16 represents exactly
    x, w = whole(*leading, n, seed=seed, dtype=dtype), whole(m, n, seed=seed + 1, dtype=dtype)
    bias = whole(m, seed=seed + 2, dtype=dtype) if biased else None
    assert_equal(linear(x, w, bias), linear_by_definition(x, w, bias).to(dtype))


@clause("12.linear.dtypes")
@given(leading=leading, n=st.integers(1, 40), m=features, biased=st.booleans(), seed=seeds, dtype=dtypes())
def test_linear_rounds_no_more_than_a_sum(
    linear: Function, leading: Shape, n: int, m: int, biased: bool, seed: int, dtype: torch.dtype
) -> None:
    x, w = normal(*leading, n, seed=seed, dtype=dtype), normal(m, n, seed=seed + 1, dtype=dtype)
    bias = normal(m, seed=seed + 2, dtype=dtype) if biased else None
    absolute = linear_by_definition(x.abs(), w.abs(), None if bias is None else bias.abs())
    expected = linear_by_definition(x, w, bias).to(dtype)
    assert_close(linear(x, w, bias), expected, rounding(dtype, n + 1, absolute))


@clause("12.linear.single_output")
@given(leading=leading, n=features, seed=seeds)
def test_linear_with_1d_weight_drops_the_output_dimension(linear: Function, leading: Shape, n: int, seed: int) -> None:
    x, w = whole(*leading, n, seed=seed), whole(n, seed=seed + 1)
    assert_equal(linear(x, w), linear(x, w[None])[..., 0])


@clause("12.linear.layouts")
@given(leading=leading, seed=seeds, layout=st.tuples(layouts, layouts))
def test_the_memory_layout_does_not_matter_to_linear(
    linear: Function, leading: Shape, seed: int, layout: tuple[int, int]
) -> None:
    x, w, bias = whole(*leading, 4, seed=seed), whole(3, 4, seed=seed + 1), whole(3, seed=seed + 2)
    x_again, w_again = laid_out(x, layout[0]), laid_out(w, layout[1])
    assert_equal(linear(x_again, w_again, bias), linear(x, w, bias))
    assert_equal(x_again, x, "the input afterwards")
    assert_equal(w_again, w, "the weight afterwards")


@clause("12.linear.nonfinite")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_linear_spreads_nan_and_inf_within_the_row_only(linear: Function, value: float) -> None:
    x, w = whole(2, 3, 4, seed=0), whole(5, 4, seed=1).abs() + 1  # no zeros, because 0 · ∞ is NaN
    expected = linear(x, w)
    x[1, 2, 0], expected[1, 2] = value, value
    assert_equal(linear(x, w), expected)


@clause("12.linear.gradients")
@given(leading=leading, n=features, m=features, seed=seeds)
def test_linear_gradients_equal_the_adjoint_maps(linear: Function, leading: Shape, n: int, m: int, seed: int) -> None:
    """⟨upstream, linear(x, w)⟩ = ⟨x's gradient, x⟩ = ⟨w's gradient, w⟩, and the bias's is the upstream's sum."""
    shapes = [(*leading, n), (m, n), (m,)]
    x, w, bias = (whole(*shape, seed=seed + i).requires_grad_() for i, shape in enumerate(shapes))
    upstream = whole(*leading, m, seed=seed + 3)
    of_x, of_w, of_bias = torch.autograd.grad(linear(x, w, bias), (x, w, bias), upstream)
    total = (upstream * linear(x, w)).sum()
    assert_equal((of_x * x).sum(), total, "⟨gradient of the input, input⟩")
    assert_equal((of_w * w).sum(), total, "⟨gradient of the weight, weight⟩")
    assert_equal(of_bias, upstream.sum(tuple(range(len(leading)))) if leading else upstream, "the bias's gradient")


@clause("12.linear.gradients")
@pytest.mark.parametrize("leading", [(), (2,), (2, 2)], ids=["one sample", "a batch", "two leading dimensions"])
def test_linear_is_differentiable_twice(linear: Function, leading: Shape) -> None:
    inputs = [spread(*leading, 3, seed=0), spread(2, 3, seed=1), spread(2, seed=2)]
    assert_differentiable(linear, *(t.requires_grad_() for t in inputs))


# The layer Linear


@clause("12.linear.layer")
@given(leading=leading, n=features.filter(bool), m=features.filter(bool), biased=st.booleans(), seed=seeds)
def test_linear_layer_equals_linear_with_own_weight_and_bias(
    Linear: Layer, leading: Shape, n: int, m: int, biased: bool, seed: int
) -> None:
    layer = Linear(n, m, bias=biased, dtype=torch.float64)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(whole(*parameter.shape, seed=seed + number))
    x = whole(*leading, n, seed=seed + 2)
    assert_equal(layer(x), linear_by_definition(x, layer.weight, layer.bias))
    assert_equal(layer.eval()(x), linear_by_definition(x, layer.weight, layer.bias), "the result in evaluation")


@clause("12.linear.layer")
@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({}, "Linear(in_features=3, out_features=2, bias=True)"),
        ({"bias": False}, "Linear(in_features=3, out_features=2, bias=False)"),
    ],
    ids=["with a bias, the default", "without a bias"],
)
def test_a_linear_layer_prints_the_sizes(Linear: Layer, options: dict[str, Any], printed: str) -> None:
    assert str(Linear(3, 2, **options)) == printed


@clause("12.linear.state")
@pytest.mark.parametrize("bias", [True, False], ids=["with a bias", "without"])
def test_linear_state_dict_loads_to_and_from_pytorch(Linear: Layer, bias: bool) -> None:
    ours, pytorchs = Linear(3, 2, bias=bias), nn.Linear(3, 2, bias=bias)
    shapes = {"weight": (2, 3)} | ({"bias": (2,)} if bias else {})
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == shapes
    pytorchs.load_state_dict(ours.state_dict())
    assert_equal(pytorchs.weight, ours.weight, "the weight that was carried over")
    again = Linear(3, 2, bias=bias)
    again.load_state_dict(pytorchs.state_dict())
    x = whole(4, 3, seed=0, dtype=torch.float32)
    assert_equal(again(x), ours(x), "the result with the state that came back")
    assert ours.bias is not None if bias else ours.bias is None


@clause("12.linear.start")
@pytest.mark.parametrize("in_features", [16, 100], ids=["of 16 features", "of 100 features"])
def test_a_new_layer_is_uniform_within_1_over_sqrt_in_features(Linear: Layer, in_features: int) -> None:
    layer = Linear(in_features, 500)
    bound = 1 / math.sqrt(in_features)
    for parameter in (layer.weight, layer.bias):
        # of 500 numbers none above 0.9 of the bound, or none below: 2 · 0.95^500 = 1e-11
        assert -bound <= parameter.min() < -0.9 * bound
        assert 0.9 * bound < parameter.max() <= bound
        assert parameter.requires_grad


@clause("12.linear.start")
def test_the_same_seed_gives_the_numbers_of_pytorchs_layer(Linear: Layer) -> None:
    torch.manual_seed(1)
    ours = Linear(5, 4)
    torch.manual_seed(1)
    pytorchs = nn.Linear(5, 4)
    assert_equal(ours.weight, pytorchs.weight, "the weight")
    assert_equal(ours.bias, pytorchs.bias, "the bias")


# The properties of flatten

SHAPES: list[Shape] = [(4,), (), (0,), (2, 3), (3, 0), (2, 3, 2), (1, 3, 1), (2, 3, 2, 2), (3, 1, 2, 3)]

# A shape and two of its dimensions in order, each counted from the front or from the end.
FLATTENINGS = [
    (shape, start - start_from, end - end_from)
    for shape in SHAPES
    for dims in [max(1, len(shape))]
    for start, end in combinations_with_replacement(range(dims), 2)
    for start_from, end_from in product([0, dims], repeat=2)
]

flattenings = st.sampled_from(FLATTENINGS)


def merged(case: tuple[Shape, int, int]) -> Shape:
    """The shape with those dimensions as one."""
    shape, start, end = case
    dims = max(1, len(shape))
    first, last = start % dims, end % dims
    return (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])


@clause("12.flatten.order", "12.flatten.layouts")
@given(case=flattenings, dtype=st.sampled_from([torch.int64, torch.float32, torch.bfloat16]), layout=layouts)
def test_flatten_preserves_order_and_count(
    flatten: Function, case: tuple[Shape, int, int], dtype: torch.dtype, layout: int
) -> None:
    shape, start, end = case
    # numbered in reading order, by counting through the positions
    x = torch.zeros(shape, dtype=dtype)
    for number, position in enumerate(product(*map(range, shape))):
        x[position] = number
    output = flatten(laid_out(x, layout), start, end)
    assert_equal(output, torch.arange(x.numel(), dtype=dtype).reshape(merged(case)))


@clause("12.flatten.scalar")
@pytest.mark.parametrize("dims", [(), (0,), (0, 0), (-1, 0), (-1, -1)], ids=str)
def test_flatten_of_a_scalar_has_one_dimension(flatten: Function, dims: tuple[int, ...]) -> None:
    assert_equal(flatten(torch.tensor(7), *dims), [7])


@clause("12.flatten.gradients")
def test_flatten_gradient_has_the_shape_of_the_input(flatten: Function) -> None:
    x = whole(2, 3, 4, seed=0).requires_grad_()
    upstream = whole(2, 12, seed=1)
    (gradient,) = torch.autograd.grad(flatten(x, 1), x, upstream)
    expected = [[upstream[i, 4 * j : 4 * j + 4].tolist() for j in range(3)] for i in range(2)]
    assert_equal(gradient, expected, "the gradient")


@clause("12.flatten.gradients")
@pytest.mark.parametrize("dims", [(), (1,), (0, 1)], ids=["everything", "from 1", "from 0 to 1"])
def test_flatten_is_differentiable_twice(flatten: Function, dims: tuple[int, ...]) -> None:
    # of the square, so that the second derivative is nonzero
    assert_differentiable(lambda x: flatten(x, *dims).square(), spread(2, 2, 2, seed=0).requires_grad_())


# The layer Flatten


@clause("12.flatten.layer")
def test_flatten_layer_keeps_the_batch_dimension(Flatten: Layer) -> None:
    x = torch.arange(64 * 64 * 4 * 4).reshape(64, 64, 4, 4)
    assert_equal(Flatten()(x), torch.arange(64 * 1024).reshape(64, 1024))


@clause("12.flatten.layer")
@given(case=flattenings)
def test_flatten_layer_flattens_start_dim_to_end_dim(Flatten: Layer, case: tuple[Shape, int, int]) -> None:
    shape, start, end = case
    numbers = torch.arange(math.prod(shape))
    assert_equal(Flatten(start, end)(numbers.reshape(shape)), numbers.reshape(merged(case)))


@clause("12.flatten.layer")
def test_flatten_layer_prints_dimensions_and_has_no_state(Flatten: Layer) -> None:
    assert str(Flatten()) == "Flatten(start_dim=1, end_dim=-1)"
    assert str(Flatten(0, 2)) == "Flatten(start_dim=0, end_dim=2)"
    assert dict(Flatten().state_dict()) == {}


# Rejected arguments


@clause("12.linear.rejects")
@pytest.mark.parametrize(
    ("input", "weight", "bias", "naming"),
    [
        pytest.param((2, 3), (4, 5), (4,), "input|weight|2x3", id="an input of other features"),
        pytest.param((), (4, 3), (4,), "input|at least 1D", id="a single number"),
        pytest.param((2, 3), (), None, "weight|0D", id="a single number as weight"),
        pytest.param((2, 3), (4, 3, 1), None, "weight|dimensions", id="a weight of three dimensions"),
        pytest.param((2, 3), (4, 3), (3,), "bias|size", id="a bias for other outputs"),
        pytest.param((2, 3), (4, 3), (5, 2, 4), r"bias|expand", id="a bias of more dimensions than the output"),
    ],
)
def test_shapes_that_do_not_fit_are_rejected(
    linear: Function, input: Shape, weight: Shape, bias: Shape | None, naming: str
) -> None:
    with rejects(naming=naming):
        linear(torch.ones(input), torch.ones(weight), None if bias is None else torch.ones(bias))


@clause("12.linear.rejects")
@pytest.mark.parametrize("changed", [0, 1, 2], ids=["the input", "the weight", "the bias"])
def test_tensors_of_different_dtypes_are_rejected(linear: Function, changed: int) -> None:
    tensors = [torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)]
    tensors[changed] = tensors[changed].double()
    with rejects(naming="dtype|input|weight|bias"):
        linear(*tensors)


@clause("12.linear.rejects")
@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        pytest.param(([1.0, 2.0, 3.0], torch.ones(4, 3)), "input", id="a list as input"),
        pytest.param((torch.ones(2, 3), [[1.0, 2.0, 3.0]]), "weight", id="a list as weight"),
    ],
)
def test_an_argument_that_is_no_tensor_is_rejected(linear: Function, arguments: tuple[Any, ...], naming: str) -> None:
    with rejects(naming=naming):
        linear(*arguments)


@clause("12.linear.rejects")
@pytest.mark.parametrize(
    ("sizes", "naming"),
    [
        pytest.param((-1, 3), "in_features|negative dimension", id="a negative number of inputs"),
        pytest.param((3, -1), "out_features|negative dimension", id="a negative number of outputs"),
        pytest.param((3.5, 3), "in_features|'size'", id="half an input"),
        pytest.param((3, 3.5), "out_features|'size'", id="half an output"),
    ],
)
def test_a_layer_of_impossible_sizes_is_rejected(Linear: Layer, sizes: tuple[Any, Any], naming: str) -> None:
    with rejects(naming=naming):
        Linear(*sizes)


@clause("12.flatten.rejects")
@pytest.mark.parametrize(
    ("shape", "dims", "naming"),
    [
        pytest.param((2, 3, 4), (2, 1), "start_dim|end_dim", id="the start after the end"),
        pytest.param((2, 3, 4), (3,), "dim", id="a start that is not there"),
        pytest.param((2, 3, 4), (-4,), "dim", id="a start before the first"),
        pytest.param((2, 3, 4), (0, 3), "dim", id="an end that is not there"),
        pytest.param((2, 3, 4), (0, -4), "dim", id="an end before the first"),
        pytest.param((), (1,), "dim", id="a second dimension of a single number"),
        pytest.param((2, 3), (0.5,), "start_dim", id="half a dimension as the start"),
        pytest.param((2, 3), (0, 1.0), "end_dim", id="a fraction as the end"),
    ],
)
def test_flatten_rejects_dimensions_out_of_range(
    flatten: Function, shape: Shape, dims: tuple[Any, ...], naming: str
) -> None:
    with rejects(naming=naming):
        flatten(torch.ones(shape), *dims)


@clause("12.flatten.rejects")
def test_flatten_layer_needs_a_batch_dimension(Flatten: Layer) -> None:
    with rejects(naming="dim"):
        Flatten()(torch.ones(5))
