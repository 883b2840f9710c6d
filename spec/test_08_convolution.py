"""Chapter 08: the convolution function, `conv2d`."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import reference
from spec.support.assertions import assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.crashes import single_column
from spec.support.implementations import Implementation
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds, spread, whole
from spec.support.watching import Allocations, affordable

Conv2d = Callable[..., Tensor]
Pair = tuple[int, int]

# chapter 08, lines 428 to 437
INPUT = [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]
KERNEL = [[1, 2, 1], [0, 1, 0], [2, 1, 0]]


def image() -> Tensor:
    return torch.tensor(INPUT).reshape(1, 1, 5, 5)


def kernel() -> Tensor:
    return torch.tensor(KERNEL).reshape(1, 1, 3, 3)


# The values


@clause("08.conv2d.stride1")
def test_stride_1_gives_the_documented_matrix(conv2d: Conv2d) -> None:
    # chapter 08, line 445
    expected = [[[[10, 12, 12], [18, 16, 16], [13, 9, 3]]]]
    assert_equal(conv2d(image(), kernel(), stride=1), expected)


@clause("08.conv2d.padding1")
def test_padding_1_gives_the_documented_matrix(conv2d: Conv2d) -> None:
    # chapter 08, line 451
    expected = [
        [[[1, 3, 4, 10, 8], [5, 10, 12, 12, 6], [7, 18, 16, 16, 8], [11, 13, 9, 3, 4], [14, 13, 9, 7, 4]]]
    ]  # fmt: skip
    assert_equal(conv2d(image(), kernel(), stride=1, padding=1), expected)


# The claims


@clause("08.conv2d.unbatched")
@pytest.mark.level("definition")
def test_unbatched_input_equals_a_batch_of_one(conv2d: Conv2d) -> None:
    assert_equal(conv2d(image()[0], kernel()), conv2d(image(), kernel())[0])


@clause("08.conv2d.unbatched")
@pytest.mark.parametrize(
    ("input_shape", "kernel_shape"),
    [((5, 5), (1, 1, 3, 3)), ((1, 1, 1, 5, 5), (1, 1, 3, 3)), ((1, 1, 5, 5), (1, 3, 3)), ((1, 1, 5, 5), (3, 3))],
    ids=["an image of 2 dimensions", "an image of 5", "a kernel of 3", "a kernel of 2"],
)
def test_other_numbers_of_dimensions_are_rejected(
    conv2d: Conv2d, input_shape: tuple[int, ...], kernel_shape: tuple[int, ...]
) -> None:
    with rejects(r"4-?D|got the shape|match the convolution dimensions|three dimensions", "input", "weight"):
        conv2d(torch.ones(input_shape), torch.ones(kernel_shape))


@clause("08.conv2d.parameters")
@pytest.mark.level("pytorch")
@pytest.mark.aspect("dtypes")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_kernel_of_width_1_with_gaps_reads_the_border(conv2d: Conv2d, dtype: torch.dtype) -> None:
    """On some processors this call ends the process in float16 (spec/support/crashes.py)."""
    input, weight = torch.ones(1, 2, 2, 1, dtype=dtype), torch.ones(1, 2, 1, 1, dtype=dtype)
    # the columns -1 and 1 of an image of one column: both are the border
    assert_equal(conv2d(input, weight, None, (1, 2), (1, 1), (1, 2)), torch.zeros(1, 1, 4, 2, dtype=dtype))


@clause("08.conv2d.definition")
@pytest.mark.level("pytorch")
@pytest.mark.aspect("dtypes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_output_of_one_column_is_the_sum_of_products(conv2d: Conv2d, dtype: torch.dtype) -> None:
    """On some processors PyTorch reads other memory in bfloat16 (spec/support/crashes.py)."""
    image, kernel, stride = single_column()
    expected = [[[[int((picture[0, row : row + 2] * kernel[0, 0]).sum())] for row in range(15)]] for picture in image]
    assert_equal(conv2d(image.to(dtype), kernel.to(dtype), stride=stride), torch.tensor(expected, dtype=dtype))


@clause("08.conv2d.parameters")
@pytest.mark.level("pytorch")
@pytest.mark.aspect("dtypes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_window_with_rows_above_and_below_the_image_gives_0(conv2d: Conv2d, dtype: torch.dtype) -> None:
    """On some processors this call ends the process in bfloat16 (spec/support/crashes.py)."""
    input, weight = torch.ones(2, 4, 1, 4, dtype=dtype), torch.ones(1, 4, 2, 2, dtype=dtype)
    assert_equal(conv2d(input, weight, None, (2, 1), (1, 2), (2, 3)), torch.zeros(2, 1, 1, 5, dtype=dtype))


@clause("08.conv2d.padding_keeps_size")
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_padding_of_half_the_kernel_minus_one_preserves_size(conv2d: Conv2d, size: int) -> None:
    output = conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, size, size), padding=(size - 1) // 2)
    assert output.shape == (1, 1, 5, 5)


@clause("08.conv2d.padding_keeps_size")
@pytest.mark.parametrize(("size", "becomes"), [(1, 7), (2, 6), (5, 3), (7, 1)])
def test_padding_1_preserves_size_only_for_3x3(conv2d: Conv2d, size: int, becomes: int) -> None:
    output = conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, size, size), padding=1)
    assert output.shape == (1, 1, becomes, becomes)


@clause("08.conv2d.parameters")
def test_bias_is_added_to_each_output_channel(conv2d: Conv2d) -> None:
    weight = torch.cat([kernel(), kernel()])
    output = conv2d(image(), weight, bias=torch.tensor([7, -1]))
    plain = conv2d(image(), kernel())
    assert_equal(output, torch.cat([plain + 7, plain - 1], dim=1))


@clause("08.conv2d.parameters")
def test_stride_is_the_step(conv2d: Conv2d) -> None:
    # every second row and column of the documented matrix of line 445
    assert_equal(conv2d(image(), kernel(), stride=2), [[[[10, 12], [13, 3]]]])


@clause("08.conv2d.parameters")
@pytest.mark.level("definition")
def test_two_strides_are_the_vertical_and_the_horizontal_step(conv2d: Conv2d) -> None:
    # every second row of the documented matrix of line 445
    assert_equal(conv2d(image(), kernel(), stride=(2, 1)), [[[[10, 12, 12], [13, 9, 3]]]])


@clause("08.conv2d.parameters")
def test_padding_2_is_a_border_of_two_zeros_on_every_side(conv2d: Conv2d) -> None:
    bordered = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    bordered[:, :, 2:7, 2:7] = image()
    assert_equal(conv2d(image(), kernel(), padding=2), conv2d(bordered, kernel()))


@clause("08.conv2d.parameters")
@pytest.mark.level("definition")
def test_padding_equals_a_border_of_zeros(conv2d: Conv2d) -> None:
    bordered = torch.zeros(1, 1, 7, 9, dtype=torch.int64)
    bordered[:, :, 1:6, 2:7] = image()
    assert_equal(conv2d(image(), kernel(), padding=(1, 2)), conv2d(bordered, kernel()))


# The properties


@dataclass(frozen=True)
class Case:
    """A valid convolution: the arguments of `conv2d`, the sizes, and a seed for the numbers."""

    batch: int
    in_channels: int
    out_channels: int
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: bool
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups
        }  # fmt: skip

    @property
    def products(self) -> int:
        """The number of products in the sum for one output."""
        return self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    def tensors(self, draw: Callable[..., Tensor], **options: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias."""
        x = draw(self.batch, self.in_channels, *self.size, seed=self.seed, **options)
        weight_shape = (self.out_channels, self.in_channels // self.groups, *self.kernel)
        w = draw(*weight_shape, seed=self.seed + 1, **options)
        return x, w, draw(self.out_channels, seed=self.seed + 2, **options) if self.bias else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pair = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    groups = draw(st.integers(1, 3))
    kernel, dilation, padding = pair(1, 3), pair(1, 3), pair(0, 2)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return Case(
        batch=draw(st.integers(1, 2)),
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 2)),
        size=(least[0] + draw(st.integers(0, 4)), least[1] + draw(st.integers(0, 4))),
        kernel=kernel,
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        seed=draw(seeds),
    )


def by_definition(case: Case, x: Tensor, w: Tensor, bias: Tensor | None) -> list[Any]:
    """The convolution, one product after the other, in Python numbers."""
    height, width = case.size
    rows, columns = (
        (case.size[i] + 2 * case.padding[i] - case.dilation[i] * (case.kernel[i] - 1) - 1) // case.stride[i] + 1
        for i in (0, 1)
    )
    per_group_in, per_group_out = case.in_channels // case.groups, case.out_channels // case.groups
    pixels, weights = x.tolist(), w.tolist()
    offsets = bias.tolist() if bias is not None else [0.0] * case.out_channels

    def output(n: int, o: int, y: int, z: int) -> float:
        first_channel = o // per_group_out * per_group_in
        total = offsets[o]
        for c, i, j in product(range(per_group_in), range(case.kernel[0]), range(case.kernel[1])):
            row = y * case.stride[0] + i * case.dilation[0] - case.padding[0]
            column = z * case.stride[1] + j * case.dilation[1] - case.padding[1]
            if 0 <= row < height and 0 <= column < width:
                total += weights[o][c][i][j] * pixels[n][first_channel + c][row][column]
        return total

    return [
        [[[output(n, o, y, z) for z in range(columns)] for y in range(rows)] for o in range(case.out_channels)]
        for n in range(case.batch)
    ]


@clause("08.conv2d.definition", "08.conv2d.dtypes")
@given(case=cases(), dtype=dtypes())
def test_conv2d_equals_the_sum_of_the_definition(conv2d: Conv2d, case: Case, dtype: torch.dtype) -> None:
    # integers: at most 2 · 3 · 3 products of at most 9, and 3, which even bfloat16 represents exactly
    x, w, bias = case.tensors(whole, dtype=dtype)
    output = conv2d(x, w, bias, **case.options)
    assert output.dtype == dtype
    assert_equal(output, by_definition(case, x, w, bias))


@clause("08.conv2d.dtypes")
@given(case=cases(), dtype=dtypes())
def test_conv2d_rounds_no_more_than_a_sum(conv2d: Conv2d, case: Case, dtype: torch.dtype) -> None:
    x, w, bias = case.tensors(normal, dtype=dtype)
    absolute = by_definition(case, x.abs(), w.abs(), None if bias is None else bias.abs())
    tolerance = rounding(dtype, case.products + 1, torch.tensor(absolute, dtype=torch.float64))
    assert_close(conv2d(x, w, bias, **case.options), by_definition(case, x, w, bias), tolerance)


@clause("08.conv2d.linear")
@given(case=cases(), a=st.integers(-3, 3), b=st.integers(-3, 3))
def test_conv2d_is_linear_in_input_and_weight(conv2d: Conv2d, case: Case, a: int, b: int) -> None:
    x, w, _ = case.tensors(whole)
    x2, w2 = whole(*x.shape, seed=case.seed + 3), whole(*w.shape, seed=case.seed + 4)

    def f(x: Tensor, w: Tensor) -> Tensor:
        return conv2d(x, w, **case.options)

    assert_equal(f(a * x + b * x2, w), a * f(x, w) + b * f(x2, w), "the output for a sum of inputs")
    assert_equal(f(x, a * w + b * w2), a * f(x, w) + b * f(x, w2), "the output for a sum of weights")


@clause("08.conv2d.shift")
@given(
    seed=seeds, kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), down=st.integers(0, 3), right=st.integers(0, 3)
)
def test_a_shifted_image_gives_the_shifted_output(
    conv2d: Conv2d, seed: int, kernel: Pair, down: int, right: int
) -> None:
    x, w = whole(1, 2, 4, 5, seed=seed), whole(2, 2, *kernel, seed=seed + 1)
    shifted = torch.zeros(1, 2, 4 + down, 5 + right, dtype=x.dtype)
    shifted[:, :, down:, right:] = x
    assert_equal(conv2d(shifted, w)[:, :, down:, right:], conv2d(x, w))


@clause("08.conv2d.identity")
@given(seed=seeds, kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])), dtype=dtypes())
def test_centred_delta_kernel_is_the_identity(conv2d: Conv2d, seed: int, kernel: Pair, dtype: torch.dtype) -> None:
    x = normal(2, 1, 4, 6, seed=seed, dtype=dtype)
    w = torch.zeros(1, 1, *kernel, dtype=dtype)
    w[0, 0, kernel[0] // 2, kernel[1] // 2] = 1
    assert_equal(conv2d(x, w, padding="same"), x)


@clause("08.conv2d.dilation")
@given(case=cases())
def test_dilation_equals_a_kernel_with_zeros_between_taps(conv2d: Conv2d, case: Case) -> None:
    x, w, bias = case.tensors(whole)
    down, right = case.dilation
    holes = w.new_zeros(*w.shape[:2], down * (case.kernel[0] - 1) + 1, right * (case.kernel[1] - 1) + 1)
    holes[:, :, ::down, ::right] = w
    options = case.options | {"dilation": 1}
    assert_equal(conv2d(x, w, bias, **case.options), conv2d(x, holes, bias, **options))


@clause("08.conv2d.groups")
@given(case=cases())
def test_groups_equal_a_block_diagonal_kernel(conv2d: Conv2d, case: Case) -> None:
    x, w, bias = case.tensors(whole)
    full = w.new_zeros(case.out_channels, case.in_channels, *case.kernel)
    for o in range(case.out_channels):
        first = o // (case.out_channels // case.groups) * w.shape[1]
        full[o, first : first + w.shape[1]] = w[o]
    options = case.options | {"groups": 1}
    assert_equal(conv2d(x, w, bias, **case.options), conv2d(x, full, bias, **options))


@clause("08.conv2d.same")
@given(seed=seeds, kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), dilation=st.integers(1, 2))
def test_padding_same_puts_the_odd_zero_at_the_end(conv2d: Conv2d, seed: int, kernel: Pair, dilation: int) -> None:
    x, w = whole(1, 2, 4, 5, seed=seed), whole(3, 2, *kernel, seed=seed + 1)
    total = [dilation * (k - 1) for k in kernel]
    bordered = torch.zeros(1, 2, 4 + total[0], 5 + total[1], dtype=x.dtype)
    bordered[:, :, total[0] // 2 : total[0] // 2 + 4, total[1] // 2 : total[1] // 2 + 5] = x
    output = conv2d(x, w, padding="same", dilation=dilation)
    assert_equal(output, conv2d(bordered, w, dilation=dilation))
    assert output.shape[-2:] == (4, 5)


@clause("08.conv2d.same")
def test_padding_valid_equals_padding_0(conv2d: Conv2d) -> None:
    assert_equal(conv2d(image(), kernel(), padding="valid"), conv2d(image(), kernel()))


@clause("08.conv2d.layouts")
@given(case=cases(), layout=st.tuples(layouts, layouts))
def test_the_memory_layout_does_not_matter(conv2d: Conv2d, case: Case, layout: Pair) -> None:
    x, w, bias = case.tensors(whole)
    x_again, w_again = laid_out(x, layout[0]), laid_out(w, layout[1])
    assert_equal(conv2d(x_again, w_again, bias, **case.options), conv2d(x, w, bias, **case.options))
    assert_equal(x_again, x, "the input afterwards")
    assert_equal(w_again, w, "the weight afterwards")


@clause("08.conv2d.nonfinite")
@given(case=cases(), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_nan_and_inf_reach_every_covering_window(conv2d: Conv2d, case: Case, value: float) -> None:
    x, w, bias = case.tensors(whole)
    w = w.abs() + 1  # no zeros, because 0 · ∞ is NaN
    x[0, 0, case.size[0] // 2, case.size[1] // 2] = value
    covered = conv2d((~x.isfinite()).to(x.dtype), w, **case.options) > 0
    output = conv2d(x, w, bias, **case.options)
    assert_equal(~output.isfinite(), covered, "whether the output is not finite")
    assert_equal(output[covered], torch.full_like(output[covered], value), "the outputs with windows that cover it")


@clause("08.conv2d.empty")
def test_empty_batch_gives_an_empty_output(conv2d: Conv2d) -> None:
    assert conv2d(torch.ones(0, 3, 5, 5), torch.ones(4, 3, 3, 3), torch.ones(4)).shape == (0, 4, 3, 3)


# Sizes of real networks, for which an implementation may use other algorithms than for few pixels

SIZES = [
    pytest.param(channels, size, id=f"{channels} channels, {size[0]}x{size[1]} pixels")
    for channels, size in product((2, 8), ((5, 6), (32, 33)))
]
OPTIONS = [
    {"padding": (1, 2)}, {"padding": (0, 2), "stride": (2, 1)}, {"padding": 4, "stride": (1, 2), "dilation": (2, 1)}
]  # fmt: skip


def by_shifts(x: Tensor, w: Tensor, padding: Any, stride: Any = 1, dilation: Any = 1) -> Tensor:
    """The sum over the kernel elements of the shifted image times the element, in two groups."""
    pairs = (option if isinstance(option, tuple) else (option, option) for option in (padding, stride, dilation))
    (top, left), (down, right), (far, wide) = pairs
    padded = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * top, x.shape[3] + 2 * left)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    height, width = padded.shape[2] - far * (w.shape[2] - 1), padded.shape[3] - wide * (w.shape[3] - 1)
    kernels, images = w.unflatten(0, (2, -1)), padded.unflatten(1, (2, -1))
    shifted = (
        torch.einsum(
            "ngcyx,goc->ngoyx",
            images[..., i * far : i * far + height : down, j * wide : j * wide + width : right],
            kernels[..., i, j],
        )
        for i, j in product(range(w.shape[2]), range(w.shape[3]))
    )
    return sum(shifted, torch.zeros(())).flatten(1, 2)


@clause("08.conv2d.definition", "08.conv2d.groups", "08.conv2d.gradients")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_conv2d_equals_the_definition_for_large_sizes(
    conv2d: Conv2d, channels: int, size: Pair, options: dict[str, Any]
) -> None:
    w = whole(6, channels // 2, 3, 5, seed=1).requires_grad_()
    strip = (5, size[1])  # a user's plain loops may be too slow for all rows
    strips = affordable(size[0] // 5, lambda: conv2d(whole(1, channels, *strip, seed=0), w, groups=2, **options))
    size = (min(size[0], 5 * strips + size[0] % 5), size[1])
    images = affordable(20, lambda: conv2d(whole(1, channels, *size, seed=0), w, groups=2, **options))
    x = whole(images, channels, *size, seed=0).requires_grad_()
    output, expected = conv2d(x, w, groups=2, **options), by_shifts(x, w, **options)
    assert_equal(output, expected)
    upstream = whole(*output.shape, seed=2)
    of_x, of_w = torch.autograd.grad(output, (x, w), upstream)
    expected_of_x, expected_of_w = torch.autograd.grad(expected, (x, w), upstream)
    assert_equal(of_x, expected_of_x, "the input's gradient")
    assert_equal(of_w, expected_of_w, "the weight's gradient")


@clause("08.conv2d.workspace")
@pytest.mark.parametrize(
    ("channels", "size", "outputs", "kernel"),
    [
        pytest.param(3, 32, 8, 5, marks=pytest.mark.slow),
        pytest.param(32, 16, 8, 5, marks=pytest.mark.slow),
        (32, 8, 8, 5),
        pytest.param(1, 12, 64, 1, id="more outputs than inputs", marks=pytest.mark.slow),
    ],
)
def test_four_times_the_images_need_no_more_workspace(
    conv2d: Conv2d, implementation: Implementation, channels: int, size: int, outputs: int, kernel: int
) -> None:
    """The peak memory beyond the output, and then beyond the gradients."""
    if implementation.name == "reference.definitions":
        pytest.skip("the definition computes all images at once; bounded memory is what the fast form is for")

    image, kernels = torch.ones(1, channels, size, size), torch.ones(outputs, channels, kernel, kernel)
    # a user's plain loops may be too slow; the project's code and PyTorch are always tested
    known = implementation.known
    images_in_time = 512 if known else affordable(512, lambda: conv2d(image, kernels, padding=kernel // 2), seconds=2)
    if images_in_time < 128:
        pytest.skip("it computes one output after the other, too slowly for as many images as this needs")

    def workspace(images: int) -> tuple[int, int]:
        x, w, upstream = (  # on the CPU, where allocations can be counted
            torch.ones(shape, requires_grad=True, device="cpu")
            for shape in ((images, channels, size, size), kernels.shape, (images, outputs, size, size))
        )
        with Allocations([x, w, upstream]) as forward:
            output = conv2d(x, w, padding=kernel // 2)
        with Allocations([x, w, upstream, output]) as backward:
            gradients = torch.autograd.grad(output, (x, w), upstream)
        return forward.peak - output.nbytes, backward.peak - sum(gradient.nbytes for gradient in gradients)

    few, many = workspace(128), workspace(512)
    assert many[0] <= few[0], "the output's workspace grows with the batch"
    assert many[1] <= few[1], "the gradients' workspace grows with the batch"


# The gradients


@clause("08.conv2d.gradients")
@given(case=cases())
def test_conv2d_gradients_equal_the_adjoint_maps(conv2d: Conv2d, case: Case) -> None:
    """conv2d(x, w) is linear in both, so ⟨upstream, conv2d(x, w)⟩ = ⟨x's gradient, x⟩ = ⟨w's gradient, w⟩."""
    x, w, _ = (None if t is None else t.requires_grad_() for t in case.tensors(whole))
    assert x is not None
    assert w is not None
    output = conv2d(x, w, **case.options)
    upstream = whole(*output.shape, seed=case.seed + 3)
    of_x, of_w = torch.autograd.grad(output, (x, w), upstream)
    total = (upstream * output).sum()
    assert_equal((of_x * x).sum(), total, "⟨gradient of the input, input⟩")
    assert_equal((of_w * w).sum(), total, "⟨gradient of the weight, weight⟩")


@clause("08.conv2d.gradients")
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": (2, 1)}, {"padding": (1, 2)}, {"dilation": (1, 2)}, {"groups": 2}, {"padding": "same"}],
    ids=str,
)
def test_conv2d_is_differentiable_twice(conv2d: Conv2d, options: dict[str, Any]) -> None:
    inputs = [spread(1, 2, 3, 4, seed=0), spread(2, 2 // options.get("groups", 1), 2, 2, seed=1), spread(2, seed=2)]
    assert_differentiable(lambda x, w, b: conv2d(x, w, b, **options), *(t.requires_grad_() for t in inputs))


@clause("08.conv2d.gradients")
def test_torch_func_grad_equals_autograd() -> None:
    x, w = whole(2, 3, 5, 6, seed=0), whole(4, 3, 3, 2, seed=1)
    found = torch.func.grad(lambda x, w: reference.conv2d(x, w, stride=2).square().sum(), argnums=(0, 1))(x, w)
    x.requires_grad_()
    w.requires_grad_()
    expected = torch.autograd.grad(reference.conv2d(x, w, stride=2).square().sum(), (x, w))
    assert_equal(found[0], expected[0], "the input's gradient")
    assert_equal(found[1], expected[1], "the weight's gradient")


# Rejected arguments


@clause("08.conv2d.rejects")
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        pytest.param({"weight": (4, 2, 3, 3)}, "channels", id="a kernel for other channels"),
        pytest.param({"weight": (4, 3, 6, 3)}, "kernel", id="a kernel larger than the image"),
        pytest.param({"bias": (3,)}, "bias", id="a bias for other channels"),
        pytest.param({"bias": (4, 1)}, "bias", id="a bias of two dimensions"),
        pytest.param({"stride": 0}, "stride", id="no step"),
        pytest.param({"stride": -1}, "stride", id="a step backwards"),
        pytest.param({"stride": (1, 2, 3)}, "stride", id="three steps"),
        pytest.param({"stride": 1.5}, "stride", id="half a step"),
        pytest.param({"padding": -1}, "padding", id="a negative border"),
        pytest.param({"padding": "some"}, "padding", id="an unknown padding"),
        pytest.param({"padding": "same", "stride": 2}, "same", id="same with a stride"),
        pytest.param({"dilation": 0}, "dilat", id="no dilation"),
        pytest.param({"groups": 0}, "groups", id="no groups"),
        pytest.param({"groups": 2}, "groups", id="channels that the groups do not divide"),
        pytest.param({"dtype": torch.float64}, "type|dtype", id="a kernel of another type"),
    ],
)
def test_an_impossible_argument_is_rejected(conv2d: Conv2d, change: dict[str, Any], naming: str) -> None:
    arguments: dict[str, Any] = {"weight": (4, 3, 3, 3), "bias": (4,)} | change
    dtype = arguments.pop("dtype", torch.float32)
    weight, bias = torch.ones(arguments.pop("weight"), dtype=dtype), torch.ones(arguments.pop("bias"), dtype=dtype)
    with rejects(naming, *change, *(["input", "weight"] if {"weight", "dtype"} & set(change) else [])):
        conv2d(torch.ones(1, 3, 5, 5), weight, bias, **arguments)
