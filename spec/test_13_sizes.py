"""Chapters 08 to 14 at larger sizes: every component with several hundred and several thousand numbers.

Kernels compute blocks of 4 to 64 numbers, and the remaining numbers separately. The counts here are odd, so that
numbers remain for every block size. Each number of the outputs and gradients is compared with the formula in float64
(`spec/support/harness.py`).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spec.support.assertions import Tolerance, assert_close, assert_equal, rounding
from spec.support.clauses import clause
from spec.support.harness import BATCH_257, FEW, HUNDREDS, SUBJECTS, THOUSANDS, judge, numbers
from spec.support.run import current

every_component = pytest.mark.parametrize("component", SUBJECTS, indirect=True)
HALF = (torch.float16, torch.bfloat16)


@clause("13.sizes.values")
@every_component
def test_every_element_of_a_large_result_equals_the_formula(component: Any) -> None:
    with current().trace.off():
        for dtype in current().dtypes:
            for size in (HUNDREDS, THOUSANDS):
                judge(component, size, dtype)
        judge(component, HUNDREDS, current().dtypes[-1], layout=1)
        judge(component, BATCH_257, current().dtypes[0])


@clause("13.sizes.values")
@pytest.mark.slow
@every_component
@pytest.mark.parametrize("layout", range(4), ids=["contiguous", "transposed", "with gaps", "channels last"])
def test_every_element_equals_the_formula_in_all_sizes_dtypes_and_layouts(component: Any, layout: int) -> None:
    with current().trace.off():
        for dtype in current().dtypes:
            for size in (FEW, HUNDREDS, THOUSANDS, BATCH_257):
                judge(component, size, dtype, layout)


@clause("13.sizes.half_sums")
@pytest.mark.parametrize("dtype", HALF, ids=str)
class TestSumsOfManyNumbersInHalfPrecision:
    """4,001 ones: a sum in bfloat16 would stay at 256 and one in float16 at 2,048."""

    count = 4001

    def ones(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.ones(*shape, dtype=dtype)

    def check(self, found: Tensor, exact: float, dtype: torch.dtype, what: str) -> None:
        __tracebackhide__ = True
        # two roundings to the dtype: of the sum and of the result computed from it
        right = torch.full(found.shape, exact, dtype=torch.float64)
        assert_close(found.double(), right, rounding(dtype, 1, abs(exact)), what)

    @clause("13.sizes.half_sums")
    def test_linear(self, linear: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.check(
            linear(self.ones(3, self.count, dtype=dtype), self.ones(1, self.count, dtype=dtype)),
            self.count,
            dtype,
            "the sum of 4,001 products",
        )

    @clause("13.sizes.half_sums")
    def test_the_bias_gradient_of_linear(self, linear: Callable[..., Tensor], dtype: torch.dtype) -> None:
        bias = self.ones(3, dtype=dtype).requires_grad_()
        y = linear(self.ones(self.count, 1, dtype=dtype), self.ones(3, 1, dtype=dtype), bias)
        y.backward(torch.ones_like(y))
        assert bias.grad is not None
        self.check(bias.grad, self.count, dtype, "the sum over 4,001 rows")

    @clause("13.sizes.half_sums")
    def test_conv2d(self, conv2d: Callable[..., Tensor], dtype: torch.dtype) -> None:
        found = conv2d(self.ones(1, 445, 3, 5, dtype=dtype), self.ones(1, 445, 3, 3, dtype=dtype))
        self.check(found, 445 * 9, dtype, "the sum of 4,005 products")

    @clause("13.sizes.half_sums")
    def test_avg_pool2d(self, avg_pool2d: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.check(avg_pool2d(self.ones(1, 2, 63, 64, dtype=dtype), (63, 64)), 1, dtype, "the mean of 4,032 ones")

    @clause("13.sizes.half_sums")
    def test_adaptive_avg_pool2d(self, adaptive_avg_pool2d: Callable[..., Tensor], dtype: torch.dtype) -> None:
        found = adaptive_avg_pool2d(self.ones(1, 2, 63, 64, dtype=dtype), 1)
        self.check(found, 1, dtype, "the mean of 4,032 ones")

    @clause("13.sizes.half_sums")
    def test_softmax(self, softmax: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.check(softmax(self.ones(3, self.count, dtype=dtype), -1), 1 / self.count, dtype, "one of 4,001 parts")

    @clause("13.sizes.half_sums")
    def test_log_softmax(self, log_softmax: Callable[..., Tensor], dtype: torch.dtype) -> None:
        exact = -float(torch.tensor(self.count, dtype=torch.float64).log())
        self.check(log_softmax(self.ones(3, self.count, dtype=dtype), -1), exact, dtype, "-log 4,001")

    @clause("13.sizes.half_sums")
    def test_layer_norm(self, layer_norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
        x = self.ones(3, 4000, dtype=dtype)
        x[:, ::2] = 3  # mean 2, variance 1
        self.check(layer_norm(x, (4000,), eps=0.0)[:, 1::2], -1, dtype, "a number one deviation below the mean")

    @clause("13.sizes.half_sums")
    def test_batch_norm(self, batch_norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
        x = self.ones(4000, 3, dtype=dtype)
        x[::2] = 3
        found = batch_norm(x, None, None, training=True)[1::2]
        self.check(found, -1, dtype, "a number one deviation below the mean")

    @clause("13.sizes.half_sums")
    def test_attention(self, scaled_dot_product_attention: Callable[..., Tensor], dtype: torch.dtype) -> None:
        found = scaled_dot_product_attention(*(self.ones(1, 1, n, 4, dtype=dtype) for n in (3, 4001, 4001)))
        # the weights are rounded once more, and 4,001 of them add up to 1
        self.check(found, 1, dtype, "the mean of 4,001 values of 1")

    @clause("13.sizes.half_sums")
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_l1_loss(self, l1_loss: Callable[..., Tensor], reduction: str, dtype: torch.dtype) -> None:
        x = self.ones(self.count, dtype=dtype)
        found = l1_loss(x, torch.zeros_like(x), reduction=reduction)
        self.check(found, 1 if reduction == "mean" else self.count, dtype, f"the {reduction} of 4,001 losses")

    @clause("13.sizes.half_sums")
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_mse_loss(self, mse_loss: Callable[..., Tensor], reduction: str, dtype: torch.dtype) -> None:
        x = self.ones(self.count, dtype=dtype)
        found = mse_loss(x, torch.zeros_like(x), reduction=reduction)
        self.check(found, 1 if reduction == "mean" else self.count, dtype, f"the {reduction} of 4,001 losses")


@clause("13.sizes.half_gradients")
@pytest.mark.parametrize("dtype", HALF, ids=str)
class TestGradientsOfManyUsesInHalfPrecision:
    """The gradient of a number that is used many times is the sum of the gradients of its uses.

    Added up one after the other, a sum of ones in bfloat16 would stay at 256 and one in float16 at 2,048.
    """

    count = 5000
    height, window = 4999, 2500

    def check(self, found: Tensor | None, exact: float, dtype: torch.dtype) -> None:
        __tracebackhide__ = True
        assert found is not None
        right = torch.full(found.shape, exact, dtype=torch.float64)
        # the sum is rounded to the dtype once, and each partial sum may be rounded
        assert_close(found.double().cpu(), right.cpu(), rounding(dtype, 1, abs(exact)), "the gradient of many uses")

    @clause("13.sizes.half_gradients")
    def test_of_a_row_of_an_embedding(self, embedding: Callable[..., Tensor], dtype: torch.dtype) -> None:
        table = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
        y = embedding(torch.zeros(self.count, dtype=torch.int64), table)
        y.backward(torch.ones_like(y))
        self.check(table.grad[0] if table.grad is not None else None, self.count, dtype)

    @clause("13.sizes.half_gradients")
    def test_of_the_weight_of_a_linear_layer(self, linear: Callable[..., Tensor], dtype: torch.dtype) -> None:
        weight = torch.ones(1, 2, dtype=dtype, requires_grad=True)
        y = linear(torch.ones(self.count, 2, dtype=dtype), weight)
        y.backward(torch.ones_like(y))
        self.check(weight.grad, self.count, dtype)

    @clause("13.sizes.half_gradients")
    @pytest.mark.parametrize("images", [1, 5000], ids=["one image", "many images"])
    def test_of_a_kernel(self, conv2d: Callable[..., Tensor], images: int, dtype: torch.dtype) -> None:
        weight = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
        bias = torch.zeros(1, dtype=dtype, requires_grad=True)
        y = conv2d(torch.ones(images, 1, self.count // images, 1, dtype=dtype), weight, bias)
        y.backward(torch.ones_like(y))
        self.check(weight.grad, self.count, dtype)
        self.check(bias.grad, self.count, dtype)

    @clause("13.sizes.half_gradients")
    def test_of_the_weight_of_a_layer_norm(self, layer_norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
        weight, bias = (torch.ones(2, dtype=dtype, requires_grad=True) for _ in range(2))
        y = layer_norm(torch.tensor([[1.0, -1.0]], dtype=dtype).repeat(self.count, 1), (2,), weight, bias, eps=0.0)
        y.backward(torch.ones_like(y))
        self.check(bias.grad, self.count, dtype)
        self.check(weight.grad.abs() if weight.grad is not None else None, self.count, dtype)

    @clause("13.sizes.half_gradients")
    def test_of_the_bias_of_a_batch_norm(self, batch_norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
        weight, bias = (torch.ones(1, dtype=dtype, requires_grad=True) for _ in range(2))
        x = torch.ones(self.count, 1, dtype=dtype)
        x[::2] = -1
        y = batch_norm(x, None, None, weight, bias, training=True)
        y.backward(torch.ones_like(y))
        self.check(bias.grad, self.count, dtype)

    @clause("13.sizes.half_gradients")
    def test_of_the_largest_pixel_of_many_windows(self, max_pool2d: Callable[..., Tensor], dtype: torch.dtype) -> None:
        image = torch.zeros(1, 1, self.height, 1, dtype=dtype)
        image[0, 0, self.window - 1] = 1
        y = max_pool2d(image.requires_grad_(), (self.window, 1), stride=(1, 1))
        y.backward(torch.ones_like(y))
        self.check(image.grad[0, 0, self.window - 1] if image.grad is not None else None, self.window, dtype)

    @clause("13.sizes.half_gradients")
    def test_of_a_pixel_in_many_windows(self, avg_pool2d: Callable[..., Tensor], dtype: torch.dtype) -> None:
        image = torch.zeros(1, 1, self.height, 1, dtype=dtype, requires_grad=True)
        y = avg_pool2d(image, (self.window, 1), stride=(1, 1), divisor_override=1)
        y.backward(torch.ones_like(y))
        self.check(image.grad[0, 0, self.window - 1] if image.grad is not None else None, self.window, dtype)


@clause("13.sizes.dropout")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_dropout_drops_and_keeps_every_position_of_a_large_input(
    dropout: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    x = numbers(3, 7, 149).to(dtype).masked_fill(numbers(3, 7, 149) == 0, 1).to(torch.get_default_device())
    leaf, kept, gone = x.clone().requires_grad_(), torch.zeros(x.shape), torch.zeros(x.shape)
    for _ in range(48):  # one of 3,129 numbers is always kept, or always dropped, with a probability of 3e-11
        y = dropout(leaf, 0.5, training=True)
        (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        dropped = y.detach() == 0
        assert_equal(y.detach(), torch.where(dropped, 0.0, 2 * x).to(dtype), "what is kept, doubled,")
        assert_equal(gradient, torch.where(dropped, 0.0, 2.0).to(dtype), "the gradient")
        kept, gone = kept + ~dropped, gone + dropped
    for name, times in (("kept", kept), ("dropped", gone)):
        never = (times == 0).nonzero().tolist()
        assert not never, f"of 48 calls none {name} the number at {never[0]}"


@clause("13.sizes.classes")
@pytest.mark.parametrize("target", [0, 254, 255, 256, 300], ids=str)
def test_a_class_number_may_be_larger_than_a_byte(
    cross_entropy: Callable[..., Tensor], nll_loss: Callable[..., Tensor], embedding: Callable[..., Tensor], target: int
) -> None:
    scores = numbers(1, 301)
    exact = torch.logsumexp(scores, 1) - scores[:, target]
    given, number = scores.to(torch.get_default_device()), torch.tensor([target])
    found = cross_entropy(given, number, reduction="none")
    assert_close(found.cpu(), exact, rounding(torch.float64, 301, 8.0))
    assert_equal(nll_loss(given, number, reduction="none").cpu(), -scores[:, target])
    assert_equal(embedding(number, given.T).cpu(), scores.T[[target]])


@clause("13.sizes.sequential")
def test_sequential_of_eleven_layers_keeps_the_order_in_the_state_dict(Sequential: Any) -> None:
    """As text, "10" sorts before "2"."""
    layers = [nn.Linear(2, 2, bias=False) for _ in range(11)]
    for i, layer in enumerate(layers):
        nn.init.constant_(layer.weight, i)
    made = Sequential(*layers)
    assert list(made.state_dict()) == [f"{i}.weight" for i in range(11)]
    copied = Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(11)))
    copied.load_state_dict(made.state_dict())
    assert [layer.weight[0, 0].item() for layer in copied] == list(range(11))
    assert [made[i] for i in range(11)] == layers
    assert list(made[2:]) == layers[2:]


@clause("13.sizes.exact")
@pytest.mark.parametrize("name", ["sum", "tolerance"])
def test_one_wrong_number_among_thousands_is_found(name: str) -> None:
    """The comparison itself detects one wrong number, by four roundings, among 3,129."""
    exact = numbers(3, 7, 149)
    wrong = exact.clone()
    wrong[-1, -1, -1] += 1e-3 if name == "sum" else 1e-14
    with pytest.raises(pytest.fail.Exception, match=r"index \[2, 6, 148\]"):
        assert_close(wrong, exact, Tolerance(1e-15, "none"), "the result")
