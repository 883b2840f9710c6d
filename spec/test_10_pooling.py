"""Chapter 10: pooling, `max_pool2d`, `avg_pool2d`, `adaptive_avg_pool2d`, their layers and `pool2d_output_size`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from spec.support.assertions import assert_close, assert_differentiable, assert_equal, rejects, rounding
from spec.support.clauses import clause
from spec.support.strategies import dtypes, given, laid_out, layouts, normal, seeds, spread, whole

Pool = Callable[..., Any]
Layer = Callable[..., nn.Module]
Pair = tuple[int, int]

# chapter 08, lines 428 to 432: the image that chapter 10 pools
INPUT = [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(INPUT, dtype=dtype).reshape(1, 1, 5, 5)


# The values


@clause("10.max_pool2d.image")
@pytest.mark.parametrize(("ceil_mode", "expected"), [(True, [[[[2, 3], [5, 1]]]]), (False, [[[[2]]]])])
def test_ceil_mode_keeps_incomplete_windows(max_pool2d: Pool, ceil_mode: bool, expected: list[Any]) -> None:
    # chapter 10, line 566: the image shows the maxima with and without ceil_mode
    assert_equal(max_pool2d(image(), 3, ceil_mode=ceil_mode), expected)


@clause("10.MaxPool2d.batch")
@pytest.mark.parametrize(("ceil_mode", "size"), [(False, 10), (True, 11)])
def test_a_batch_of_32_by_32_becomes_10_by_10_or_11_by_11(MaxPool2d: Layer, ceil_mode: bool, size: int) -> None:
    # chapter 10, line 591: MaxPool2d(kernel_size=3, ceil_mode=False)
    layer = MaxPool2d(kernel_size=3, ceil_mode=ceil_mode)
    assert layer(torch.rand(64, 3, 32, 32)).shape == (64, 3, size, size)


@clause("10.MaxPool2d.listing")
def test_the_network_of_the_chapter_pools_every_batch(MaxPool2d: Layer) -> None:
    class Ocean(nn.Module):  # chapter 10, lines 588 to 595
        def __init__(self) -> None:
            super().__init__()
            self.maxpool1 = MaxPool2d(kernel_size=3, ceil_mode=False)

        def forward(self, input: Tensor) -> Tensor:
            return self.maxpool1(input)

    # 10,000 images in batches of 64 leave 16 for the last
    for count in (64, 16):
        images = torch.rand(count, 3, 32, 32)
        tiles = images[..., :30, :30].unflatten(-1, (10, 3)).unflatten(-3, (10, 3))
        assert_equal(Ocean()(images), tiles.amax((-3, -1)))


# The claims


@clause("10.MaxPool2d.no_parameters")
def test_pooling_adds_no_parameters_to_a_network(MaxPool2d: Layer) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 6, 3), MaxPool2d(3), nn.Conv2d(6, 6, 3))
    assert pooled(torch.rand(1, 3, 32, 32)).shape == (1, 6, 8, 8)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3))
    assert parameters(pooled) == parameters(plain) == 168 + 330


@clause("10.MaxPool2d.no_parameters")
def test_only_a_linear_layer_after_pooling_has_fewer_parameters(MaxPool2d: Layer) -> None:
    image = torch.rand(1, 3, 32, 32)
    features = MaxPool2d(3)(image).numel()
    assert (image.numel(), features) == (3072, 300)
    assert parameters(nn.Linear(3072, 10)) == 30730
    assert parameters(nn.Linear(features, 10)) == 3010


def parameters(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


@clause("10.MaxPool2d.ceil_mode")
def test_default_ceil_mode_drops_incomplete_windows(MaxPool2d: Layer) -> None:
    # chapter 10, line 570
    numbers = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert MaxPool2d(3).ceil_mode is False
    assert_equal(MaxPool2d(3)(numbers), [[[[12]]]])
    assert_equal(MaxPool2d(3, ceil_mode=True)(numbers), [[[[12, 14], [22, 24]]]])


@clause("10.max_pool2d.integers")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8], ids=str)
def test_max_pool2d_accepts_integers(max_pool2d: Pool, dtype: torch.dtype) -> None:
    output = max_pool2d(image(dtype), 3, ceil_mode=True)
    assert_equal(output, torch.tensor([[[[2, 3], [5, 1]]]], dtype=dtype))


@clause("10.max_pool2d.unbatched")
@pytest.mark.level("definition")
def test_max_pool2d_accepts_unbatched_input(max_pool2d: Pool) -> None:
    assert_equal(max_pool2d(image()[0], 3), [[[2]]])


@clause("10.max_pool2d.unbatched")
@pytest.mark.parametrize("shape", [(5, 5), (1, 1, 1, 5, 5)], ids=["2 dimensions", "5 dimensions"])
def test_other_numbers_of_dimensions_are_rejected(max_pool2d: Pool, shape: tuple[int, ...]) -> None:
    with rejects("3D or 4D|got the shape", "input"):
        max_pool2d(torch.ones(shape), 3)


@clause("10.max_pool2d.not_blurred")
def test_max_pool2d_outputs_are_input_values(max_pool2d: Pool) -> None:
    x = normal(1, 1, 6, 6, seed=0)
    output = max_pool2d(x, 3)
    assert set(output.flatten().tolist()) <= set(x.flatten().tolist())
    assert output.numel() * 9 == x.numel()
    under = x.unfold(2, 3, 3).unfold(3, 3, 3)  # the pixels under each window
    assert (output[..., None, None] >= under).all()


@clause("10.max_pool2d.not_blurred")
@pytest.mark.level("definition")
def test_red_beside_green_gives_yellow(max_pool2d: Pool) -> None:
    """The maximum is taken per channel, so the colour of an output may not occur in the image."""
    red, green, yellow = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]
    image = torch.tensor([red, green]).T.reshape(1, 3, 1, 2)
    output = max_pool2d(image, (1, 2))
    assert_equal(output, torch.tensor(yellow).reshape(1, 3, 1, 1))


@clause("10.max_pool2d.not_blurred")
def test_max_pooling_keeps_edges_that_avg_pooling_blurs(max_pool2d: Pool, avg_pool2d: Pool) -> None:
    black_and_white = torch.zeros(1, 1, 6, 6)
    black_and_white[..., 4:] = 1
    assert_equal(max_pool2d(black_and_white, 3), [[[[0, 1], [0, 1]]]])
    grey = avg_pool2d(black_and_white, 3)[..., 1]
    assert ((grey > 0) & (grey < 1)).all()


# The properties


@dataclass(frozen=True)
class Case:
    """A valid pooling: the image's shape, the windows, and a seed for the numbers."""

    batch: int
    channels: int
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool
    layout: int
    seed: int

    def tensor(self, draw: Callable[..., Tensor], **options: Any) -> Tensor:
        return laid_out(draw(self.batch, self.channels, *self.size, seed=self.seed, **options), self.layout)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments common to all poolings."""
        return {
            "kernel_size": self.kernel, "stride": self.stride, "padding": self.padding, "ceil_mode": self.ceil_mode
        }  # fmt: skip

    @property
    def max_options(self) -> dict[str, Any]:
        return self.options | {"dilation": self.dilation}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.channels, *self.size)

    def windows(self, axis: int) -> list[list[int]]:
        """The rows (axis 0) or columns (axis 1) of each window; indices below 0 or from `size` on are outside.

        Windows begin at the border's first pixel and every stride from there. Without `ceil_mode` one that reaches
        beyond the border is left out; with it, one is kept if it begins inside the image (or the border before it)
        and if the window before it leaves something over.
        """
        size, padding, gap = self.size[axis], self.padding[axis], self.dilation[axis]
        found: list[list[int]] = []
        for start in range(-padding, size, self.stride[axis]):
            window = [start + gap * i for i in range(self.kernel[axis])]
            last = size + padding - 1  # of the border
            over = not found or found[-1][-1] < last
            if window[-1] <= last or (self.ceil_mode and over):
                found.append(window)
        return found

    @property
    def out_size(self) -> Pair:
        return len(self.windows(0)), len(self.windows(1))


def pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    """Two numbers from one draw."""
    return st.sampled_from(list(product(range(low, high + 1), repeat=2)))  # pyright: ignore[reportReturnType]


@st.composite
def cases(draw: st.DrawFn, *, dilated: bool = False) -> Case:
    kernel, stride, more = draw(pairs(1, 4)), draw(pairs(1, 4)), draw(pairs(0, 4))
    padding = draw(st.sampled_from(list(product(range(kernel[0] // 2 + 1), range(kernel[1] // 2 + 1)))))
    dilation = draw(pairs(1, 3)) if dilated else (1, 1)
    ceil_mode = draw(st.booleans())
    batch, channels = draw(pairs(1, 2))
    # the least size has one window; with ceil_mode that may itself reach out, by less than a step
    height, width = (
        max(1, gap * (k - 1) + 1 - 2 * p - (s - 1 if ceil_mode else 0)) + m
        for gap, k, p, s, m in zip(dilation, kernel, padding, stride, more, strict=True)
    )
    size = (height, width)
    case = Case(batch, channels, size, kernel, stride, padding, dilation, ceil_mode, draw(layouts), draw(seeds))
    # A dilated window may have all its pixels in the border: PyTorch then returns a place outside the image.
    hypothesis.assume(
        all(any(0 <= i < case.size[axis] for i in window) for axis in (0, 1) for window in case.windows(axis))
    )
    return case


Plane = list[list[float]]


def each_window(case: Case, x: Tensor, of_window: Callable[[Plane, list[int], list[int]], Any]) -> Any:
    """The nested list of `of_window(channel, rows, columns)` for each window of each channel."""
    down, right = case.windows(0), case.windows(1)
    return [
        [[[of_window(plane, rows, columns) for columns in right] for rows in down] for plane in planes]
        for planes in x.tolist()
    ]


def inside(plane: Plane, rows: list[int], columns: list[int]) -> list[Pair]:
    """The positions of a window inside the image, in reading order."""
    return [(y, x) for y, x in product(rows, columns) if 0 <= y < len(plane) and 0 <= x < len(plane[0])]


def maximum(plane: Plane, rows: list[int], columns: list[int]) -> float:
    return max(plane[y][x] for y, x in inside(plane, rows, columns))


def first_maximum(plane: Plane, rows: list[int], columns: list[int]) -> int:
    """The position of the first maximum of a window."""
    # Python's max returns the first of equal numbers
    row, column = max(inside(plane, rows, columns), key=lambda place: plane[place[0]][place[1]])
    return row * len(plane[0]) + column


def total(plane: Plane, rows: list[int], columns: list[int]) -> float:
    return sum(plane[y][x] for y, x in inside(plane, rows, columns))


@clause("10.max_pool2d.definition", "10.max_pool2d.dtypes", "10.pooling.layouts")
@given(case=cases(dilated=True), dtype=dtypes())
def test_max_pool2d_is_the_maximum_of_each_window(max_pool2d: Pool, case: Case, dtype: torch.dtype) -> None:
    x = case.tensor(normal, dtype=dtype)
    output = max_pool2d(x, **case.max_options)
    assert output.dtype == dtype
    assert_equal(output, each_window(case, x, maximum))
    assert_equal(x, case.tensor(normal, dtype=dtype), "the input afterwards")


@clause("10.max_pool2d.indices", "10.pooling.layouts")
@given(case=cases(dilated=True), dtype=dtypes())
def test_max_pool2d_indices_point_at_the_first_maximum(max_pool2d: Pool, case: Case, dtype: torch.dtype) -> None:
    x = case.tensor(whole, dtype=dtype, largest=1)  # many are equal
    output, indices = max_pool2d(x, **case.max_options, return_indices=True)
    expected = each_window(case, x, first_maximum)
    assert_equal(indices, torch.tensor(expected), "the indices")
    assert_equal(output, x.flatten(-2).gather(-1, indices.flatten(-2)).view_as(indices), "the maxima")
    assert_equal(max_pool2d(x, **case.max_options), output, "the maxima without indices")


@clause("10.max_pool2d.padding")
@given(case=cases(dilated=True))
def test_max_pool2d_padding_is_never_the_maximum(max_pool2d: Pool, case: Case) -> None:
    below_zero = -1 - case.tensor(whole).abs()
    assert max_pool2d(below_zero, **case.max_options).max() < 0, "a pixel of the border is the maximum"
    nothing = torch.full(case.shape, -torch.inf)
    output, indices = max_pool2d(nothing, **case.max_options, return_indices=True)
    assert output.max() == -torch.inf, "a pixel of the border is the maximum"
    assert 0 <= indices.min() <= indices.max() < case.size[0] * case.size[1], "a place is outside the image"


@clause("10.max_pool2d.monotone")
@given(case=cases(dilated=True), up=st.integers(-3, 3))
def test_brighter_images_give_brighter_maxima(max_pool2d: Pool, case: Case, up: int) -> None:
    x = case.tensor(whole)
    brighter = x + whole(*case.shape, seed=case.seed + 1).abs()
    output = max_pool2d(x, **case.max_options)
    assert (max_pool2d(brighter, **case.max_options) >= output).all(), "a maximum of the brighter image is darker"
    assert_equal(max_pool2d(x + up, **case.max_options), output + up, f"the maxima of an image that is {up} brighter")


@clause("10.max_pool2d.output_size", "10.pool2d_output_size.formula")
@given(case=cases(dilated=True))
def test_output_size_equals_the_formula(max_pool2d: Pool, case: Case) -> None:
    expected = tuple(formula(case, axis) for axis in (0, 1))
    assert max_pool2d(torch.ones(case.shape), **case.max_options).shape[-2:] == expected == case.out_size


def formula(case: Case, axis: int) -> int:
    """The formula of PyTorch's documentation (chapter 10, line 562), and its rule for `ceil_mode`."""
    size, kernel, stride = case.size[axis], case.kernel[axis], case.stride[axis]
    exact = (size + 2 * case.padding[axis] - case.dilation[axis] * (kernel - 1) - 1) / stride + 1
    if not case.ceil_mode:
        return math.floor(exact)
    count = math.ceil(exact)
    starts_inside = (count - 1) * stride < size + case.padding[axis]
    return count if starts_inside else count - 1


@clause("10.pool2d_output_size.formula")
@given(case=cases(dilated=True))
def test_output_size_function_equals_the_output_shape(pool2d_output_size: Callable[..., Pair], case: Case) -> None:
    assert pool2d_output_size(case.size, **case.max_options) == case.out_size


@clause("10.pool2d_output_size.defaults")
def test_the_documented_sizes_are_known_beforehand(pool2d_output_size: Callable[..., Pair]) -> None:
    # chapter 10, line 591
    assert pool2d_output_size(32, 3) == (10, 10)
    assert pool2d_output_size(32, 3, ceil_mode=True) == (11, 11)
    assert pool2d_output_size((32, 5), (3, 2), stride=None, padding=(1, 0)) == (11, 2)


@clause("10.avg_pool2d.definition", "10.avg_pool2d.dtypes", "10.pooling.layouts")
@given(
    case=cases(),
    dtype=dtypes(),
    count_include_pad=st.booleans(),
    divisor_override=st.sampled_from([None, None, 1, 3, -2]),
)
def test_avg_pool2d_is_the_mean_of_each_window(
    avg_pool2d: Pool, case: Case, dtype: torch.dtype, count_include_pad: bool, divisor_override: int | None
) -> None:
    def mean(plane: Plane, rows: list[int], columns: list[int]) -> float:
        (height, width), (top, left) = case.size, case.padding if count_include_pad else (0, 0)
        counted = sum(-top <= y < height + top and -left <= x < width + left for y, x in product(rows, columns))
        return total(plane, rows, columns) / (divisor_override or counted)

    options = case.options | {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    x = case.tensor(normal, dtype=dtype)
    output = avg_pool2d(x, **options)
    assert output.dtype == dtype
    of_absolutes = torch.tensor(each_window(case, x.abs(), mean), dtype=torch.float64).abs()
    tolerance = rounding(dtype, case.kernel[0] * case.kernel[1] + 1, of_absolutes)  # additions, and the division
    assert_close(output, each_window(case, x, mean), tolerance)
    assert_equal(x, case.tensor(normal, dtype=dtype), "the input afterwards")


@clause("10.avg_pool2d.sum")
@given(case=cases(), dtype=dtypes())
def test_divisor_override_1_gives_the_sum_of_each_window(avg_pool2d: Pool, case: Case, dtype: torch.dtype) -> None:
    # whole numbers: at most 4 · 4 · 3, which every dtype holds
    x = case.tensor(whole, dtype=dtype)
    assert_equal(avg_pool2d(x, **case.options, divisor_override=1), each_window(case, x, total))


# the sum is exact; the divisor may become its reciprocal before it is applied
DIVISION = rounding(torch.float32, 2)


@clause("10.avg_pool2d.count_include_pad")
@given(case=cases())
def test_count_include_pad_false_keeps_a_constant_image(avg_pool2d: Pool, case: Case) -> None:
    grey = torch.full(case.shape, 0.5)
    output = avg_pool2d(grey, **case.options, count_include_pad=False)
    assert_close(output, torch.full((case.batch, case.channels, *case.out_size), 0.5), DIVISION)


@clause("10.avg_pool2d.count_include_pad")
def test_avg_pool2d_divisor_counts_padding_but_not_cells_beyond(avg_pool2d: Pool) -> None:
    white = torch.ones(1, 1, 2, 4)
    # of the 3 · 3 pixels at the corners of the image with its border 4 are white, in the middle 6
    ninths = torch.tensor([[[[4.0, 6.0, 6.0, 4.0], [4.0, 6.0, 6.0, 4.0]]]]) / 9
    assert_close(avg_pool2d(white, 3, stride=1, padding=1), ninths, DIVISION)
    # the second window of ceil_mode begins in column 2 and reaches beyond the border: 2 rows and 2 columns, all white
    assert_close(avg_pool2d(white, (2, 3), stride=2, ceil_mode=True), [[[[1, 1]]]], DIVISION)


@clause("10.avg_pool2d.integers")
def test_avg_pool2d_of_integers_truncates(avg_pool2d: Pool) -> None:
    # 8 / 4 and 7 / 4, and below zero -7 / 4
    numbers = torch.tensor([[[1, 2, 1, 2, -1, -2], [3, 2, 2, 2, -2, -2]]])
    assert_equal(avg_pool2d(numbers, 2), torch.tensor([[[2, 1, -1]]]))


@dataclass(frozen=True)
class AdaptiveCase:
    """An adaptive pooling: the image's shape and the number of windows."""

    shape: tuple[int, int, int, int]
    output_size: tuple[int | None, int | None]
    layout: int
    seed: int

    def tensor(self, draw: Callable[..., Tensor], **options: Any) -> Tensor:
        return laid_out(draw(*self.shape, seed=self.seed, **options), self.layout)

    @property
    def wanted(self) -> list[int]:
        return [size if n is None else n for n, size in zip(self.output_size, self.shape[-2:], strict=True)]


adaptive_cases = st.builds(
    AdaptiveCase,
    shape=st.builds(lambda outer, size: (*outer, *size), pairs(1, 2), pairs(1, 7)),
    output_size=st.sampled_from(list(product([None, *range(1, 10)], repeat=2))),
    layout=layouts,
    seed=seeds,
)


def window_means(case: AdaptiveCase, x: Tensor) -> Any:
    """Window y of n begins at y/n of the image, rounded down, and ends at (y + 1)/n, rounded up."""

    def spans(length: int, n: int) -> list[range]:
        return [range(math.floor(i * length / n), math.ceil((i + 1) * length / n)) for i in range(n)]

    def mean(plane: Plane, rows: range, columns: range) -> float:
        return sum(plane[y][x] for y in rows for x in columns) / (len(rows) * len(columns))

    down, right = (spans(length, n) for length, n in zip(case.shape[-2:], case.wanted, strict=True))
    return [
        [[[mean(plane, rows, columns) for columns in right] for rows in down] for plane in planes]
        for planes in x.tolist()
    ]


@clause("10.adaptive_avg_pool2d.definition", "10.adaptive_avg_pool2d.dtypes", "10.pooling.layouts")
@given(case=adaptive_cases, dtype=dtypes())
def test_adaptive_pooling_is_the_mean_of_output_size_windows(
    adaptive_avg_pool2d: Pool, case: AdaptiveCase, dtype: torch.dtype
) -> None:
    x = case.tensor(normal, dtype=dtype)
    output = adaptive_avg_pool2d(x, case.output_size)
    assert output.dtype == dtype
    of_absolutes = torch.tensor(window_means(case, x.abs()), dtype=torch.float64)
    tolerance = rounding(dtype, case.shape[-2] * case.shape[-1] + 2, of_absolutes)  # additions, at most two divisions
    assert_close(output, window_means(case, x), tolerance)
    assert_equal(x, case.tensor(normal, dtype=dtype), "the input afterwards")


@clause("10.adaptive_avg_pool2d.identity")
@given(case=adaptive_cases, times=st.integers(1, 3))
def test_adaptive_avg_pool2d_to_the_input_size_is_the_identity(
    adaptive_avg_pool2d: Pool, case: AdaptiveCase, times: int
) -> None:
    x = case.tensor(whole)
    height, width = case.shape[-2:]
    assert_equal(adaptive_avg_pool2d(x, (height, width)), x)
    assert_equal(adaptive_avg_pool2d(x, (None, None)), x)
    enlarged = x.repeat_interleave(times, -2).repeat_interleave(times, -1)
    assert_equal(adaptive_avg_pool2d(x, (times * height, times * width)), enlarged, "more windows than pixels")


@clause("10.adaptive_avg_pool2d.any_size")
@given(seed=seeds, size=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_adaptive_avg_pool2d_output_has_the_requested_size(adaptive_avg_pool2d: Pool, seed: int, size: Pair) -> None:
    assert adaptive_avg_pool2d(whole(1, 2, *size, seed=seed), 3).shape == (1, 2, 3, 3)
    grey = torch.full((1, 1, *size), 0.5)
    assert_close(adaptive_avg_pool2d(grey, (2, 3)), torch.full((1, 1, 2, 3), 0.5), DIVISION)


def covered(case: Case, row: int, column: int) -> Tensor:
    """The windows that cover the pixel."""
    rows, columns = ([at in window for window in case.windows(axis)] for axis, at in enumerate((row, column)))
    return torch.tensor(rows)[:, None] & torch.tensor(columns)


@clause("10.pooling.nonfinite")
@given(case=cases(dilated=True), value=st.sampled_from([torch.nan, torch.inf]))
def test_max_pool2d_spreads_nan_and_inf_to_every_covering_window(max_pool2d: Pool, case: Case, value: float) -> None:
    x = case.tensor(whole)
    row, column = case.size[0] // 2, case.size[1] // 2
    x[..., row, column] = value
    output, indices = max_pool2d(x, **case.max_options, return_indices=True)
    reached = covered(case, row, column).expand_as(output)
    assert_equal(~output.isfinite(), reached, "whether the maximum is not finite")
    assert_equal(output[reached], torch.full_like(output[reached], value), "the maxima of windows that cover it")
    assert (indices[reached] == row * case.size[1] + column).all()


@clause("10.pooling.nonfinite")
@given(case=cases(), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_avg_pool2d_spreads_nan_and_inf_to_every_covering_window(avg_pool2d: Pool, case: Case, value: float) -> None:
    x = case.tensor(whole)
    row, column = case.size[0] // 2, case.size[1] // 2
    x[..., row, column] = value
    output = avg_pool2d(x, **case.options)
    reached = covered(case, row, column).expand_as(output)
    assert_equal(~output.isfinite(), reached, "whether the mean is not finite")
    assert_equal(output[reached], torch.full_like(output[reached], value), "the means of windows that cover it")


@clause("10.pooling.nonfinite")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_adaptive_avg_pool2d_spreads_nan_and_inf_to_every_covering_window(
    adaptive_avg_pool2d: Pool, value: float
) -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 0] = value  # rows 0 to 2 and 2 to 4 overlap there
    assert_equal(adaptive_avg_pool2d(x, 2), [[[[value, 0.0], [value, 0.0]]]])


@clause("10.adaptive_avg_pool2d.definition")
@pytest.mark.parametrize(
    ("size", "expected"), [((1, 2), [[2.0, 3.0]]), ((2, 1), [[1.0], [4.0]]), ((1, 1), [[2.5]])], ids=str
)
def test_adaptive_avg_pool2d_with_one_row_or_one_column(
    adaptive_avg_pool2d: Pool, size: tuple[int, int], expected: list[list[float]]
) -> None:
    x = torch.tensor([[[[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 4.0, 4.0]]]])
    assert_equal(adaptive_avg_pool2d(x, size), [[expected]])


@clause("10.pooling.empty")
def test_max_pool2d_accepts_empty_and_unbatched_inputs(max_pool2d: Pool) -> None:
    for part in max_pool2d(torch.ones(0, 3, 5, 4), 2, return_indices=True):
        assert part.shape == (0, 3, 2, 2)
    of_one, of_batch = (max_pool2d(x, 3, 1, 1, return_indices=True) for x in (image()[0], image()))
    for one, batch in zip(of_one, of_batch, strict=True):
        assert_equal(one, batch[0])


@clause("10.pooling.empty")
def test_avg_pool2d_accepts_empty_and_unbatched_inputs(avg_pool2d: Pool) -> None:
    assert avg_pool2d(torch.ones(0, 3, 5, 4), 2).shape == (0, 3, 2, 2)
    assert_equal(avg_pool2d(image()[0], 3, 1, 1), avg_pool2d(image(), 3, 1, 1)[0])


@clause("10.pooling.empty")
def test_adaptive_avg_pool2d_accepts_empty_and_unbatched_inputs(adaptive_avg_pool2d: Pool) -> None:
    assert adaptive_avg_pool2d(torch.ones(0, 3, 5, 4), 2).shape == (0, 3, 2, 2)
    assert adaptive_avg_pool2d(torch.ones(1, 0, 5, 4), 2).shape == (1, 0, 2, 2)
    assert adaptive_avg_pool2d(torch.ones(1, 3, 5, 4), (0, 2)).shape == (1, 3, 0, 2)
    assert_equal(adaptive_avg_pool2d(image()[0], (2, 3)), adaptive_avg_pool2d(image(), (2, 3))[0])


# The gradients


@clause("10.max_pool2d.gradients")
@given(case=cases(dilated=True), dtype=dtypes())
def test_max_pool2d_gradient_goes_to_the_first_maximum(max_pool2d: Pool, case: Case, dtype: torch.dtype) -> None:
    # whole numbers: a pixel is the largest of at most 16 windows, each of which passes it at most 3
    x = case.tensor(whole, dtype=dtype, largest=1).requires_grad_()
    output = max_pool2d(x, **case.max_options)
    upstream = whole(*output.shape, seed=case.seed + 1, dtype=dtype)
    places = torch.tensor(each_window(case, x, first_maximum)).flatten(-2)
    expected = torch.zeros_like(x).flatten(-2).scatter_add(-1, places, upstream.flatten(-2)).view_as(x)
    assert_equal(torch.autograd.grad(output, x, upstream)[0], expected, "the gradient of the input")


@clause("10.avg_pool2d.gradients")
@given(case=cases(), dtype=dtypes())
def test_avg_pool2d_gradient_equals_the_adjoint_map(avg_pool2d: Pool, case: Case, dtype: torch.dtype) -> None:
    """By linearity ⟨upstream, avg_pool2d(x)⟩ = ⟨x's gradient, x⟩; quarters of integers are not rounded."""
    x = case.tensor(whole, dtype=dtype).requires_grad_()
    output = avg_pool2d(x, **case.options, divisor_override=4)
    upstream = whole(*output.shape, seed=case.seed + 1, dtype=dtype)
    (of_x,) = torch.autograd.grad(output, x, upstream)
    expected = (upstream.double() * output.double()).sum()
    assert_equal((of_x.double() * x.double()).sum(), expected, "⟨gradient of the input, input⟩")


@clause("10.max_pool2d.gradients")
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 1}, {"padding": (1, 0)}, {"stride": 1, "dilation": (1, 2)}, {"stride": 3, "ceil_mode": True}],
    ids=str,
)
def test_max_pool2d_is_differentiable_twice(max_pool2d: Pool, options: dict[str, Any]) -> None:
    # the square makes the second derivative nonzero
    x = spread(1, 2, 4, 4, seed=0).requires_grad_()
    assert_differentiable(lambda x: max_pool2d(x * x * x.sign(), 2, **options), x)


@clause("10.avg_pool2d.gradients")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": 1},
        {"padding": (1, 0), "count_include_pad": False},
        {"stride": (3, 1), "ceil_mode": True},
        {"divisor_override": 3},
    ],
    ids=str,
)
def test_avg_pool2d_is_differentiable_twice(avg_pool2d: Pool, options: dict[str, Any]) -> None:
    assert_differentiable(lambda x: avg_pool2d(x * x, 2, **options), spread(1, 2, 3, 4, seed=0).requires_grad_())


@clause("10.adaptive_avg_pool2d.gradients")
@pytest.mark.parametrize("output_size", [1, (2, 3), (5, None)], ids=str)
def test_adaptive_avg_pool2d_is_differentiable_twice(adaptive_avg_pool2d: Pool, output_size: Any) -> None:
    x = spread(1, 2, 3, 4, seed=0).requires_grad_()
    assert_differentiable(lambda x: adaptive_avg_pool2d(x * x, output_size), x)


# The layers


@clause("10.MaxPool2d.layer")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": (1, 0)},
        {"stride": (1, 2), "dilation": (1, 2), "ceil_mode": True},
        {"return_indices": True},
    ],
    ids=str,
)
@pytest.mark.level("definition")
def test_max_pool2d_as_a_layer(MaxPool2d: Layer, max_pool2d: Pool, options: dict[str, Any]) -> None:
    x = normal(2, 3, 5, 6, seed=0)
    layer, expected = MaxPool2d(2, **options), max_pool2d(x, 2, **options)
    for output in (layer(x), layer.eval()(x)):
        for part, wanted in zip(parts(output), parts(expected), strict=True):
            assert_equal(part, wanted)


def parts(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The maxima, and their positions if they are returned."""
    return output if isinstance(output, tuple) else (output,)


@clause("10.AvgPool2d.layer")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": (1, 0)},
        {"padding": 1, "count_include_pad": False},
        {"stride": (3, 1), "ceil_mode": True},
        {"divisor_override": 3},
    ],
    ids=str,
)
def test_avg_pool2d_as_a_layer(AvgPool2d: Layer, avg_pool2d: Pool, options: dict[str, Any]) -> None:
    x = normal(2, 3, 5, 6, seed=0)
    layer, expected = AvgPool2d(2, **options), avg_pool2d(x, 2, **options)
    assert_equal(layer(x), expected)
    assert_equal(layer.eval()(x), expected)


@clause("10.AdaptiveAvgPool2d.layer")
@pytest.mark.parametrize("output_size", [1, 3, (2, None), [7, 2]], ids=str)
def test_adaptive_avg_pool2d_as_a_layer(
    AdaptiveAvgPool2d: Layer,
    adaptive_avg_pool2d: Pool,
    output_size: Any,
) -> None:
    x = normal(2, 3, 5, 6, seed=0)
    layer, expected = AdaptiveAvgPool2d(output_size), adaptive_avg_pool2d(x, output_size)
    assert_equal(layer(x), expected)
    assert_equal(layer.eval()(x), expected)


@clause("10.MaxPool2d.layer")
@pytest.mark.aspect("state")
def test_the_defaults_of_max_pooling(MaxPool2d: Layer) -> None:
    # chapter 10, line 558: the image of the parameters
    layer = MaxPool2d(3)
    assert (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (3, 3, 0, 1)
    assert (layer.return_indices, layer.ceil_mode) == (False, False)


@clause("10.MaxPool2d.layer")
@pytest.mark.level("pytorch")
def test_in_the_layer_return_indices_comes_before_ceil_mode(MaxPool2d: Layer) -> None:
    output, indices = MaxPool2d(3, None, 0, 1, True)(image())
    assert_equal(output, [[[[2]]]])
    assert_equal(indices, torch.tensor([[[[1]]]]))  # the first 2 of the window


@clause("10.MaxPool2d.layer")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3,), "MaxPool2d(kernel_size=3, stride=3, padding=0, dilation=1, ceil_mode=False)"),
        (
            ((2, 3), (1, 2), 1, 2, True, True),
            "MaxPool2d(kernel_size=(2, 3), stride=(1, 2), padding=1, dilation=2, ceil_mode=True)",
        ),
    ],
    ids=["of defaults", "of everything"],
)
@pytest.mark.aspect("text")
def test_max_pooling_prints_as(MaxPool2d: Layer, arguments: tuple[Any, ...], text: str) -> None:
    assert repr(MaxPool2d(*arguments)) == text


@clause("10.AvgPool2d.layer")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3,), "AvgPool2d(kernel_size=3, stride=3, padding=0)"),
        (((2, 3), 1, (1, 0), True, False, 5), "AvgPool2d(kernel_size=(2, 3), stride=1, padding=(1, 0))"),
    ],
    ids=["of defaults", "of everything"],
)
def test_average_pooling_prints_as(AvgPool2d: Layer, arguments: tuple[Any, ...], text: str) -> None:
    assert repr(AvgPool2d(*arguments)) == text


@clause("10.AdaptiveAvgPool2d.layer")
@pytest.mark.parametrize("output_size", [2, (2, None)], ids=str)
def test_adaptive_pooling_prints_as(AdaptiveAvgPool2d: Layer, output_size: Any) -> None:
    assert repr(AdaptiveAvgPool2d(output_size)) == f"AdaptiveAvgPool2d(output_size={output_size})"


@clause("10.MaxPool2d.no_parameters")
def test_max_pool2d_layer_has_no_state(MaxPool2d: Layer) -> None:
    assert_no_state(MaxPool2d(3), nn.MaxPool2d(3))


@clause("10.AvgPool2d.layer")
def test_avg_pool2d_layer_has_no_state(AvgPool2d: Layer) -> None:
    assert_no_state(AvgPool2d(3), nn.AvgPool2d(3))


@clause("10.AdaptiveAvgPool2d.layer")
def test_adaptive_avg_pool2d_layer_has_no_state(AdaptiveAvgPool2d: Layer) -> None:
    assert_no_state(AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(3))


def assert_no_state(layer: nn.Module, of_torch: nn.Module) -> None:
    """Assert that there are no parameters and that the state dict can be exchanged with PyTorch's layer."""
    __tracebackhide__ = True
    assert parameters(layer) == 0
    of_torch.load_state_dict(layer.state_dict())
    layer.load_state_dict(of_torch.state_dict())


# Rejected arguments

WINDOWS = [
    pytest.param({"kernel_size": -1}, r"kernel", id="a negative window"),
    pytest.param({"kernel_size": 0}, r"kernel", id="a window of nothing"),
    pytest.param({"kernel_size": (2, 2, 2)}, r"kernel_size", id="a window of three dimensions"),
    pytest.param({"kernel_size": 2.5}, r"kernel_size", id="a window of two and a half"),
    pytest.param({"kernel_size": 6}, r"kernel_size=6|output size is too small", id="a window larger than the image"),
    pytest.param({"kernel_size": (2, 6)}, r"kernel_size=.*6|output size is too small", id="a window wider than it"),
    pytest.param({"kernel_size": 6, "ceil_mode": True}, r"kernel_size=6|output size", id="one larger by a step"),
    pytest.param({"stride": 0}, r"stride", id="no step"),
    pytest.param({"stride": -1}, r"stride", id="a step backwards"),
    pytest.param({"stride": (1, 1, 1)}, r"stride", id="three steps"),
    pytest.param({"stride": 1.5}, r"stride", id="half a step"),
    pytest.param({"padding": -1}, r"pad", id="a negative border"),
    pytest.param({"padding": 2}, r"pad", id="a border of more than half the window"),
    pytest.param({"padding": (2, 1)}, r"pad", id="an upper border of more than half the window"),
    pytest.param({"padding": 0.5}, r"padding", id="half a pixel of border"),
    pytest.param({"ceil_mode": "yes"}, r"ceil_mode", id="a ceil_mode that is no bool"),
]

SHAPES = [
    pytest.param((5, 5), r"3D or 4D|dimension out of range|got the shape", id="2 dimensions"),
    pytest.param((1, 1, 3, 5, 5), r"3D or 4D|got the shape", id="5 dimensions"),
    pytest.param((1, 0, 5, 5), r"batch.*\b1, 0, 5, 5", id="no channels"),
    pytest.param((1, 3, 0, 5), r"batch.*\b1, 3, 0, 5", id="no rows"),
    pytest.param((3, 5, 0), r"batch.*\b3, 5, 0", id="no columns"),
]


@clause("10.max_pool2d.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        *WINDOWS,
        pytest.param({"dilation": 0}, "dilation", id="no dilation"),
        pytest.param({"dilation": (1, 1, 1)}, "dilation", id="three dilations"),
        pytest.param({"dilation": 3}, "dilation=3|output size is too small", id="holes larger than the image"),
    ],
)
def test_max_pool2d_rejects(max_pool2d: Pool, options: dict[str, Any], naming: str) -> None:
    with rejects(naming, *options):
        max_pool2d(torch.ones(1, 3, 5, 5), **({"kernel_size": 3, "stride": 1} | options))


@clause("10.avg_pool2d.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        *WINDOWS,
        pytest.param({"divisor_override": 0}, "divisor", id="a divisor of 0"),
        pytest.param({"divisor_override": 1.5}, "divisor_override", id="a divisor that is no whole number"),
    ],
)
def test_avg_pool2d_rejects(avg_pool2d: Pool, options: dict[str, Any], naming: str) -> None:
    with rejects(naming, *options):
        avg_pool2d(torch.ones(1, 3, 5, 5), **({"kernel_size": 3, "stride": 1} | options))


@clause("10.pool2d_output_size.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        *WINDOWS,
        pytest.param({"dilation": 0}, "dilation", id="no dilation"),
        pytest.param({"input_size": (5, 5, 5)}, "input_size", id="an image of three dimensions"),
        pytest.param({"input_size": -1}, "input_size", id="a negative image"),
    ],
)
def test_output_size_rejects(pool2d_output_size: Pool, options: dict[str, Any], naming: str) -> None:
    with rejects(naming, *options):
        pool2d_output_size(**({"input_size": 5, "kernel_size": 3, "stride": 1} | options))


@clause("10.max_pool2d.rejects")
@pytest.mark.parametrize(("shape", "naming"), SHAPES)
def test_max_pool2d_rejects_input(max_pool2d: Pool, shape: Sequence[int], naming: str) -> None:
    with rejects(naming, "input"):
        max_pool2d(torch.ones(shape), 1)


@clause("10.avg_pool2d.rejects")
@pytest.mark.parametrize(("shape", "naming"), SHAPES)
def test_avg_pool2d_rejects_input(avg_pool2d: Pool, shape: Sequence[int], naming: str) -> None:
    with rejects(naming, "input"):
        avg_pool2d(torch.ones(shape), 1)


@clause("10.max_pool2d.rejects")
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_max_pool2d_rejects_dtypes_without_an_order(max_pool2d: Pool, dtype: torch.dtype) -> None:
    with rejects("bool|complex", "input"):
        max_pool2d(torch.ones(1, 1, 5, 5, dtype=dtype), 3)


@clause("10.avg_pool2d.rejects")
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32], ids=str)
def test_avg_pool2d_rejects_small_integer_dtypes(avg_pool2d: Pool, dtype: torch.dtype) -> None:
    with rejects("bool|byte|int", "input"):
        avg_pool2d(torch.ones(1, 1, 5, 5, dtype=dtype), 3)


@clause("10.adaptive_avg_pool2d.rejects")
@pytest.mark.parametrize(
    ("output_size", "naming"),
    [(-1, "output_size.*-1"), ((1, -1), "output_size.*-1"), ((1, 1, 1), "output_size"), ((2,), "output_size")],
    ids=str,
)
def test_adaptive_avg_pool2d_rejects_output_size(adaptive_avg_pool2d: Pool, output_size: Any, naming: str) -> None:
    with rejects(naming, "output_size"):
        adaptive_avg_pool2d(torch.ones(1, 3, 5, 5), output_size)


@clause("10.adaptive_avg_pool2d.rejects")
def test_the_reference_rejects_an_output_size_in_words() -> None:
    with rejects("output_size must be an integer or a pair, got 'two'"):
        reference.adaptive_avg_pool2d(torch.ones(1, 3, 5, 5), "two")  # pyright: ignore[reportArgumentType]


@clause("10.adaptive_avg_pool2d.rejects")
@pytest.mark.parametrize(
    ("shape", "dtype", "naming"),
    [
        pytest.param((5, 5), torch.float32, r"3D or 4D|got the shape", id="2 dimensions"),
        pytest.param((1, 1, 3, 5, 5), torch.float32, r"3D or 4D|got the shape", id="5 dimensions"),
        pytest.param((1, 3, 0, 5), torch.float32, r"\b1, 3, 0, 5\b", id="no rows"),
        pytest.param((3, 0, 5), torch.float32, r"\b3, 0, 5\b", id="no rows and no batch"),
        pytest.param((1, 3, 5, 5), torch.int64, r"adaptive_avg_pool2d.*(int64|long)", id="whole numbers"),
    ],
)
def test_adaptive_avg_pool2d_rejects_input(
    adaptive_avg_pool2d: Pool, shape: Sequence[int], dtype: torch.dtype, naming: str
) -> None:
    with rejects(naming, "input"):
        adaptive_avg_pool2d(torch.ones(shape, dtype=dtype), 2)
