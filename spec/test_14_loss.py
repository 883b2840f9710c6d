"""Chapter 14: losses, `l1_loss` and `mse_loss`, the layers that compute them, and the training loop around a loss."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spec.support.assertions import assert_close, assert_differentiable, assert_equal, assert_printed, rejects, rounding
from spec.support.clauses import clause
from spec.support.losses import HALF, MANY, Layer, Loss, Shape, check_many, pairs_of_layouts
from spec.support.strategies import dtypes, given, laid_out, normal, seeds, spread, whole


def outputs() -> Tensor:
    return torch.tensor([1, 2, 3], dtype=torch.float32)  # chapter 14, lines 971 and 1002


def targets() -> Tensor:
    return torch.tensor([1, 2, 5], dtype=torch.float32)  # chapter 14, lines 972 and 1003


def in_four_dimensions(x: Tensor) -> Tensor:
    return torch.reshape(x, (1, 1, 1, 3))  # chapter 14, lines 975 and 1006


# The values

# chapter 14, lines 955, 957 and 983; the second and the third are derived
L1 = pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 2 / 3), ({"reduction": "mean"}, 2 / 3), ({"reduction": "sum"}, 2), ({"reduction": "none"}, [0, 0, 2])],
    ids=["by default 0.6667", "mean 0.6667", "sum 2", "none [0, 0, 2]"],
)
# chapter 14, line 1015; all but the sum are derived
MSE = pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 4 / 3), ({"reduction": "mean"}, 4 / 3), ({"reduction": "sum"}, 4), ({"reduction": "none"}, [0, 0, 4])],
    ids=["by default 1.3333", "mean 1.3333", "sum 4", "none [0, 0, 4]"],
)

ONE_DIVISION = rounding(torch.float32, 1, 4 / 3)


@clause("14.l1_loss.printed")
def test_the_l1_loss_is_printed_as_0_6667(l1_loss: Loss) -> None:
    # chapter 14, line 983
    assert_printed(l1_loss(in_four_dimensions(outputs()), in_four_dimensions(targets())), "0.6667")


@clause("14.l1_loss.printed", "14.loss.sum", "14.loss.mean")
@L1
def test_l1_loss_reduction(l1_loss: Loss, options: dict[str, str], expected: Any) -> None:
    assert_close(l1_loss(outputs(), targets(), **options), expected, ONE_DIVISION)


@clause("14.l1_loss.printed", "14.loss.sum", "14.loss.mean")
@L1
def test_l1_layer_reduction(L1Loss: Layer, options: dict[str, str], expected: Any) -> None:
    assert_close(L1Loss(**options)(outputs(), targets()), expected, ONE_DIVISION)


@clause("14.mse_loss.printed")
def test_the_sum_of_squared_errors_is_printed_as_4(mse_loss: Loss) -> None:
    # chapter 14, line 1015
    assert_equal(mse_loss(in_four_dimensions(outputs()), in_four_dimensions(targets()), reduction="sum"), 4.0)


@clause("14.mse_loss.printed", "14.mse_loss.reduction", "14.loss.sum", "14.loss.mean")
@MSE
def test_mse_loss_reduction(mse_loss: Loss, options: dict[str, str], expected: Any) -> None:
    assert_close(mse_loss(outputs(), targets(), **options), expected, ONE_DIVISION)


@clause("14.mse_loss.printed", "14.mse_loss.reduction", "14.loss.sum", "14.loss.mean")
@MSE
def test_mse_layer_reduction(MSELoss: Layer, options: dict[str, str], expected: Any) -> None:
    assert_close(MSELoss(**options)(outputs(), targets()), expected, ONE_DIVISION)


# The claims


@clause("14.loss.gap")
@pytest.mark.parametrize("gap", [0, 1, -2])
def test_l1_loss_of_one_element_is_the_absolute_difference(l1_loss: Loss, gap: int) -> None:
    assert_equal(l1_loss(outputs() + gap, outputs()), float(abs(gap)))


@clause("14.loss.gap")
@pytest.mark.parametrize("gap", [0, 1, -2])
def test_mse_loss_of_one_element_is_the_squared_difference(mse_loss: Loss, gap: int) -> None:
    assert_equal(mse_loss(outputs() + gap, outputs()), float(gap**2))


@clause("14.loss.basis")
def test_backward_gives_gradients_that_reduce_the_loss(cross_entropy: Loss) -> None:
    network, images, labels = nn.Linear(3, 2), normal(4, 3, seed=0, dtype=torch.float32), torch.tensor([0, 1, 0, 1])
    assert network.weight.grad is None
    before = cross_entropy(network(images), labels)
    before.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.shape == parameter.shape
            parameter -= 0.1 * parameter.grad
    assert cross_entropy(network(images), labels) < before


@clause("14.loss.documentation")
def test_there_is_no_torch_nn_lossfunction() -> None:
    assert not hasattr(torch.nn, "LossFunction")
    assert torch.nn.modules.loss.L1Loss is torch.nn.L1Loss


@clause("14.loss.sum")
@pytest.mark.parametrize("line", ["reduction = “sum”", "L1Loss(reduction = “sum”)"])
def test_full_width_quotes_are_a_syntax_error(line: str) -> None:
    with pytest.raises(SyntaxError):
        compile(line, "chapter 14, line 955", "exec")


@clause("14.loss.one_dimensional")
def test_reshape_changes_the_tensors_from_1_to_4_dimensions() -> None:
    assert outputs().dim() == targets().dim() == 1
    assert in_four_dimensions(outputs()).dim() == 4


@clause("14.loss.one_dimensional")
def test_l1_loss_is_unchanged_by_reshape(l1_loss: Loss) -> None:
    reshaped = l1_loss(in_four_dimensions(outputs()), in_four_dimensions(targets()))
    assert_equal(l1_loss(outputs(), targets()), reshaped)


@clause("14.loss.one_dimensional")
def test_mse_loss_is_unchanged_by_reshape(mse_loss: Loss) -> None:
    reshaped = mse_loss(in_four_dimensions(outputs()), in_four_dimensions(targets()), reduction="sum")
    assert_equal(mse_loss(outputs(), targets(), reduction="sum"), reshaped)


@clause("14.mse_loss.no_mean")
def test_mse_loss_sum_is_4_and_the_mean_is_a_third(mse_loss: Loss) -> None:
    # chapter 14, line 1014 calls the 4 of line 1015 a mean
    mean, total = mse_loss(outputs(), targets()), mse_loss(outputs(), targets(), reduction="sum")
    assert_printed(mean, "1.3333")
    assert mean != 4
    assert_equal(total, 4.0)


@clause("14.cross_entropy.listing")
def test_test_set_with_batch_size_1_prints_ok_10000_times() -> None:
    assert len(DataLoader(range(10000), batch_size=1)) == 10000  # chapter 14, line 1060  # pyright: ignore[reportArgumentType]


@clause("14.cross_entropy.listing")
def test_the_loop_of_the_chapter_prints_ok_for_each_image(
    CrossEntropyLoss: Layer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = [(normal(3, 4, 4, seed=label, dtype=torch.float32), label) for label in range(10)]
    ocean, loss = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.Linear(64, 64)), CrossEntropyLoss()
    for images, labels in DataLoader(items, batch_size=1):  # pyright: ignore[reportArgumentType]
        loss(ocean(images), labels).backward()
        print("ok")
    assert capsys.readouterr().out.split() == ["ok"] * 10


@clause("14.cross_entropy.listing")
def test_without_zero_grad_the_gradients_add_up(cross_entropy: Loss) -> None:
    logits, label = torch.zeros(1, 2, requires_grad=True), torch.tensor([1])
    for times in (1, 2, 3):
        cross_entropy(logits, label).backward()
        assert_equal(logits.grad, [[0.5 * times, -0.5 * times]])


# The properties: l1_loss and mse_loss

shapes = st.sampled_from([(), (3,), (1,), (0,), (2, 3), (3, 3), (1, 2), (2, 0)])


def check_definition(
    loss: Loss, definition: Callable[[float], float], shape: Shape, seed: int, dtype: torch.dtype
) -> None:
    """Integers: at most 9 losses of at most 16, and even bfloat16 represents their sum exactly."""
    x, y = whole(*shape, seed=seed, dtype=dtype, largest=2), whole(*shape, seed=seed + 1, dtype=dtype, largest=2)
    values = [definition(a - b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]
    losses = torch.tensor(values, dtype=dtype).reshape(shape)
    mean = sum(values) / len(values) if values else math.nan
    assert_equal(loss(x, y, reduction="none"), losses, "each loss")
    assert_equal(loss(x, y, reduction="sum"), torch.tensor(sum(values), dtype=dtype), "their sum")
    assert_close(loss(x, y), torch.tensor(mean, dtype=dtype), rounding(dtype, 1, mean), "their mean")


def check_distance(loss: Loss, shape: Shape, seed: int, dtype: torch.dtype) -> None:
    x, y = whole(*shape, seed=seed, dtype=dtype), whole(*shape, seed=seed + 1, dtype=dtype)
    there, back = loss(x, y, reduction="none"), loss(y, x, reduction="none")
    assert_equal(there, back, "the losses with input and target exchanged")
    assert_equal(there > 0, x != y, "whether the losses are above 0")


def check_element_weights(loss: Loss, definition: Callable[[float], float], seed: int) -> None:
    x, y, weight = (whole(2, 3, seed=seed + i) for i in range(3))
    weight = weight.abs() + 1
    losses = torch.tensor([[definition(d) for d in row] for row in (x - y).tolist()], dtype=torch.float64) * weight
    mean = losses.sum() / weight.sum()
    assert_equal(loss(x, y, reduction="none", weight=weight), losses, "each loss")
    assert_equal(loss(x, y, reduction="sum", weight=weight), losses.sum(), "their sum")
    assert_close(loss(x, y, weight=weight), mean, rounding(torch.float64, 1, mean), "their mean")


def check_gradient(loss: Loss, slope: Callable[[float], float], shape: Shape, seed: int) -> None:
    """The gradient of the sum is the slope at each difference, that of the mean is divided by their number."""
    x, y = whole(*shape, seed=seed).requires_grad_(), whole(*shape, seed=seed + 1).requires_grad_()
    values = [slope(d) for d in (x - y).flatten().tolist()]
    slopes = torch.tensor(values, dtype=torch.float64).reshape(shape)
    of_x, of_y = torch.autograd.grad(loss(x, y, reduction="sum"), (x, y))
    assert_equal(of_x, slopes, "the sum's gradient of the input")
    assert_equal(of_y, -slopes, "the sum's gradient of the target")
    (of_x,) = torch.autograd.grad(loss(x, y), x)
    mean = slopes / max(1, slopes.numel())
    assert_close(of_x, mean, rounding(torch.float64, 2, mean.abs()), "the mean's gradient of the input")


def check_layouts(loss: Loss, seed: int, layout: tuple[int, int]) -> None:
    x, y = normal(2, 3, 2, 2, seed=seed), normal(2, 3, 2, 2, seed=seed + 1)
    x_again, y_again = laid_out(x, layout[0]), laid_out(y, layout[1])
    assert_equal(loss(x_again, y_again, reduction="none"), loss(x, y, reduction="none"))
    assert_equal(x_again, x, "the input afterwards")
    assert_equal(y_again, y, "the target afterwards")


def check_broadcast(loss: Loss, expected: list[list[float]]) -> None:
    with pytest.warns(UserWarning, match="size|shape"):
        losses = loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 2.0]), reduction="none")
    assert_equal(losses, expected)


@clause("14.l1_loss.definition", "14.loss.reductions", "14.loss.dtypes", "14.loss.empty")
@given(shape=shapes, seed=seeds, dtype=dtypes())
def test_the_l1_loss_is_the_absolute_difference(l1_loss: Loss, shape: Shape, seed: int, dtype: torch.dtype) -> None:
    check_definition(l1_loss, abs, shape, seed, dtype)


@clause("14.mse_loss.definition", "14.loss.reductions", "14.loss.dtypes", "14.loss.empty")
@given(shape=shapes, seed=seeds, dtype=dtypes())
def test_the_mse_loss_is_the_squared_difference(mse_loss: Loss, shape: Shape, seed: int, dtype: torch.dtype) -> None:
    check_definition(mse_loss, lambda d: d * d, shape, seed, dtype)


@clause("14.loss.distance")
@given(shape=shapes, seed=seeds, dtype=dtypes())
def test_the_l1_loss_is_symmetric_and_0_only_at_the_target(
    l1_loss: Loss, shape: Shape, seed: int, dtype: torch.dtype
) -> None:
    check_distance(l1_loss, shape, seed, dtype)


@clause("14.loss.distance")
@given(shape=shapes, seed=seeds, dtype=dtypes())
def test_the_mse_loss_is_symmetric_and_0_only_at_the_target(
    mse_loss: Loss, shape: Shape, seed: int, dtype: torch.dtype
) -> None:
    check_distance(mse_loss, shape, seed, dtype)


@clause("14.loss.element_weights")
@given(seed=seeds)
def test_the_l1_loss_takes_a_weight_for_each_element(l1_loss: Loss, seed: int) -> None:
    check_element_weights(l1_loss, abs, seed)


@clause("14.loss.element_weights")
@given(seed=seeds)
def test_the_mse_loss_takes_a_weight_for_each_element(mse_loss: Loss, seed: int) -> None:
    check_element_weights(mse_loss, lambda d: d * d, seed)


@clause("14.loss.layouts")
@given(seed=seeds, layout=pairs_of_layouts)
def test_the_memory_layout_does_not_matter_to_the_l1_loss(l1_loss: Loss, seed: int, layout: tuple[int, int]) -> None:
    check_layouts(l1_loss, seed, layout)


@clause("14.loss.layouts")
@given(seed=seeds, layout=pairs_of_layouts)
def test_the_memory_layout_does_not_matter_to_the_mse_loss(mse_loss: Loss, seed: int, layout: tuple[int, int]) -> None:
    check_layouts(mse_loss, seed, layout)


@clause("14.loss.broadcast")
def test_the_l1_loss_broadcasts_with_a_warning(l1_loss: Loss) -> None:
    check_broadcast(l1_loss, [[0, 1], [2, 1]])


@clause("14.loss.broadcast")
def test_the_mse_loss_broadcasts_with_a_warning(mse_loss: Loss) -> None:
    check_broadcast(mse_loss, [[0, 1], [4, 1]])


NOT_FINITE = pytest.mark.parametrize(
    ("value", "loss"), [(math.nan, math.nan), (math.inf, math.inf), (-math.inf, math.inf)], ids=["nan", "inf", "-inf"]
)


@clause("14.loss.nonfinite")
@NOT_FINITE
def test_l1_loss_keeps_nan_and_inf_in_place(l1_loss: Loss, value: float, loss: float) -> None:
    assert_equal(l1_loss(torch.tensor([1.0, value]), torch.ones(2), reduction="none"), [0.0, loss])
    assert_equal(l1_loss(torch.ones(2), torch.tensor([value, 1.0])), loss)


@clause("14.loss.nonfinite")
@NOT_FINITE
def test_mse_loss_keeps_nan_and_inf_in_place(mse_loss: Loss, value: float, loss: float) -> None:
    assert_equal(mse_loss(torch.tensor([1.0, value]), torch.ones(2), reduction="none"), [0.0, loss])
    assert_equal(mse_loss(torch.ones(2), torch.tensor([value, 1.0])), loss)


# The mean of many losses in half precision


@clause("14.loss.half_mean")
@HALF
def test_mean_of_many_l1_losses_is_finite(l1_loss: Loss, dtype: torch.dtype) -> None:
    check_many(l1_loss(torch.full((MANY,), 3.0, dtype=dtype), torch.zeros(MANY, dtype=dtype)), 3.0, dtype)


@clause("14.loss.half_mean")
@HALF
def test_mean_of_many_mse_losses_is_finite(mse_loss: Loss, dtype: torch.dtype) -> None:
    check_many(mse_loss(torch.full((MANY,), 3.0, dtype=dtype), torch.zeros(MANY, dtype=dtype)), 9.0, dtype)


# The gradients


def sign(d: float) -> float:
    return (d > 0) - (d < 0)


@clause("14.loss.gradients")
@given(shape=shapes, seed=seeds)
def test_the_gradient_of_the_l1_loss_is_the_sign_of_the_difference(l1_loss: Loss, shape: Shape, seed: int) -> None:
    check_gradient(l1_loss, sign, shape, seed)


@clause("14.loss.gradients")
@given(shape=shapes, seed=seeds)
def test_the_gradient_of_the_mse_loss_is_twice_the_difference(mse_loss: Loss, shape: Shape, seed: int) -> None:
    check_gradient(mse_loss, lambda d: 2 * d, shape, seed)


@clause("14.loss.gradients")
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}], ids=str)
def test_the_l1_loss_is_differentiable_twice(l1_loss: Loss, options: dict[str, str]) -> None:
    x, y = spread(2, 2, seed=0).requires_grad_(), (spread(2, 2, seed=1) + 0.03).requires_grad_()
    assert_differentiable(lambda x, y: l1_loss(x, y, **options), x, y)


@clause("14.loss.gradients")
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}], ids=str)
def test_the_mse_loss_is_differentiable_twice(mse_loss: Loss, options: dict[str, str]) -> None:
    x, y = spread(2, 2, seed=0).requires_grad_(), spread(2, 2, seed=1).requires_grad_()
    assert_differentiable(lambda x, y: mse_loss(x, y, **options), x, y)


# The layers


@clause("14.layer.state")
def test_l1_layer_name_and_empty_state_dict(L1Loss: Layer) -> None:
    layer = L1Loss()
    assert repr(layer) == "L1Loss()"
    assert (layer.reduction, layer.state_dict()) == ("mean", {})


@clause("14.layer.state")
def test_mse_layer_name_and_empty_state_dict(MSELoss: Layer) -> None:
    layer = MSELoss()
    assert repr(layer) == "MSELoss()"
    assert (layer.reduction, layer.state_dict()) == ("mean", {})


# Rejected arguments

# PyTorch warns of different shapes before it finds that they do not broadcast
UNFIT = pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
ELEMENTWISE_REJECTS = pytest.mark.parametrize(
    ("target", "options", "naming"),
    [
        pytest.param(torch.ones(2), {}, "target|match the size", id="a target that does not broadcast"),
        pytest.param(torch.ones(3).long(), {}, "input|target|Long|int64", id="whole numbers, which have no mean"),
        pytest.param(torch.ones(3), {"reduction": "average"}, "reduction", id="an unknown reduction"),
        pytest.param(torch.ones(3), {"reduction": "Mean"}, "reduction", id="a reduction in capitals"),
        pytest.param(torch.ones(3), {"weight": torch.ones(2)}, "weight", id="weights for other elements"),
    ],
)


@clause("14.loss.rejects")
@UNFIT
@ELEMENTWISE_REJECTS
def test_the_l1_loss_rejects(l1_loss: Loss, target: Tensor, options: dict[str, Any], naming: str) -> None:
    with rejects(naming=naming):
        l1_loss(torch.ones(3, dtype=target.dtype), target, **options)


@clause("14.loss.rejects")
@UNFIT
@ELEMENTWISE_REJECTS
def test_the_mse_loss_rejects(mse_loss: Loss, target: Tensor, options: dict[str, Any], naming: str) -> None:
    with rejects(naming=naming):
        mse_loss(torch.ones(3, dtype=target.dtype), target, **options)
