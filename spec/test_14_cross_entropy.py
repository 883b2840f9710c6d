"""Chapter 14: `nll_loss` and `cross_entropy`, and the layers that compute them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from spec.support.assertions import (
    Tolerance,
    assert_close,
    assert_differentiable,
    assert_equal,
    assert_printed,
    rejects,
    rounding,
)
from spec.support.clauses import clause
from spec.support.losses import HALF, MANY, Layer, Loss, Shape, check_many, pairs_of_layouts
from spec.support.strategies import dtypes, given, laid_out, normal, seeds, spread, whole

LN2 = math.log(2)


# The values


@clause("14.cross_entropy.printed")
def test_the_cross_entropy_is_printed_as_1_1019(cross_entropy: Loss) -> None:
    # chapter 14, line 1048
    assert_printed(cross_entropy(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([1])), "1.1019")


@clause("14.cross_entropy.printed")
def test_the_cross_entropy_layer_prints_1_1019(CrossEntropyLoss: Layer) -> None:
    # chapter 14, line 1048
    assert_printed(CrossEntropyLoss()(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([1])), "1.1019")


@clause("14.cross_entropy.printed")
def test_1_1019_is_log_sum_exp_minus_the_logit(cross_entropy: Loss) -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    expected = math.log(math.exp(0.1) + math.exp(0.2) + math.exp(0.3)) - 0.2
    assert_close(cross_entropy(logits, torch.tensor([1])), expected, rounding(torch.float64, 2 * 3 + 2, 1.2))


# The claims


@clause("14.loss.gap")
def test_the_cross_entropy_falls_as_the_right_logit_rises(cross_entropy: Loss) -> None:
    losses = [cross_entropy(torch.tensor([[0.0, x, 0.0]]), torch.tensor([1])).item() for x in (-1, 0, 1, 2)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


@clause("14.cross_entropy.sixty_four")
def test_64_logits_accept_labels_below_64(cross_entropy: Loss) -> None:
    # chapter 14, line 1076: Linear(64, 64) where there are ten classes
    tolerance = rounding(torch.float32, 2 * 64 + 2, math.log(64))
    for label in (0, 9):
        assert_close(cross_entropy(torch.zeros(1, 64), torch.tensor([label])), math.log(64), tolerance)
    with rejects(naming="target"):
        cross_entropy(torch.zeros(1, 64), torch.tensor([64]))


# The properties: nll_loss and cross_entropy


@dataclass(frozen=True)
class Case:
    """Matching scores and class numbers, and the options of the loss; `batch` None means no batch dimension."""

    batch: int | None
    classes: int
    positions: Shape
    weighted: bool
    ignore_index: int
    reduction: str
    seed: int

    @property
    def places(self) -> Shape:
        """The shape of the losses."""
        return self.positions if self.batch is None else (self.batch, *self.positions)

    def scores(self, draw: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        """`[classes]`, `[batch, classes]` or `[batch, classes, *positions]`."""
        batch = () if self.batch is None else (self.batch,)
        return draw(*batch, self.classes, *self.positions, seed=self.seed, dtype=dtype)

    def target(self) -> Tensor:
        """Class numbers, about a third of which are ignored."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        drawn = torch.randint(0, self.classes, self.places, generator=generator, device="cpu")
        ignored = torch.randint(0, 3, self.places, generator=generator, device="cpu") == 0
        return drawn.masked_fill(ignored, self.ignore_index).to(torch.get_default_device())

    def weight(self, draw: Callable[..., Tensor], dtype: torch.dtype) -> Tensor | None:
        """A factor for each class, none of them 0."""
        return draw(self.classes, seed=self.seed + 1, dtype=dtype).abs() + 0.5 if self.weighted else None


# a case needs few draws, because each draw takes longer than the loss
SIZES = [(n, c, positions) for n in (2, 1, 3, 0) for c in (3, 1, 2, 4) for positions in ((), (2,), (1, 2))]
SIZES += [(None, c, ()) for c in (3, 1, 2, 4)]
OPTIONS = list(product((False, True), (-100, -1, 0, 255), ("mean", "sum", "none")))


def cases() -> st.SearchStrategy[Case]:
    sizes, options = st.sampled_from(SIZES), st.sampled_from(OPTIONS)
    return st.builds(lambda size, chosen, seed: Case(*size, *chosen, seed), sizes, options, seeds)  # pyright: ignore[reportCallIssue]


def rows(scores: Tensor) -> list[list[float]]:
    """The scores of all classes, position by position."""
    classes = 0 if scores.dim() == 1 else 1
    return scores.detach().movedim(classes, -1).reshape(-1, scores.shape[classes]).tolist()


def costs(scores: Sequence[float]) -> list[float]:
    """-log softmax."""
    top = max(scores)
    total = top + math.log(sum(math.exp(s - top) for s in scores))
    return [total - s for s in scores]


def wanted(case: Case, weights: Sequence[float], smoothing: float = 0.0) -> tuple[list[list[float]], list[float]]:
    """The one-hot probabilities of class numbers and the weight of each position, which is 0 for ignored ones."""
    probabilities, counted = [], []
    for label in case.target().flatten().tolist():
        kept = label != case.ignore_index
        hot = [(1 - smoothing) * (c == label) + smoothing / case.classes for c in range(case.classes)]
        probabilities.append(hot if kept else [0.0] * case.classes)
        counted.append(weights[label] if kept else 0.0)
    return probabilities, counted


def reduced(case: Case, losses: Sequence[float], counted: Sequence[float]) -> Tensor:
    """The losses, their sum, or their sum divided by the sum of the weights (NaN if this is 0)."""
    if case.reduction == "none":
        return torch.tensor(losses, dtype=torch.float64).reshape(case.places)
    divisor = sum(counted) if case.reduction == "mean" else 1.0
    return torch.tensor(sum(losses) / divisor if divisor else math.nan, dtype=torch.float64)


def check_cross_entropy(
    case: Case,
    actual: Tensor,
    scores: Tensor,
    probabilities: Sequence[Sequence[float]],
    weights: Sequence[float],
    counted: Sequence[float],
) -> None:
    """The loss of a position is the sum over the classes of weight · probability · -log softmax."""

    def weighted(of_classes: Sequence[float], q: Sequence[float]) -> float:
        return sum(w * p * c for w, p, c in zip(weights, q, of_classes, strict=True))

    places = rows(scores)
    losses = [weighted(costs(row), q) for row, q in zip(places, probabilities, strict=True)]
    # the largest distance of a logit from the maximum, and the largest logarithm of the sum
    reach = [[1 + max(row) - min(row) + math.log(case.classes)] * case.classes for row in places]
    magnitudes = [weighted(row, q) for row, q in zip(reach, probabilities, strict=True)]
    operations = 2 * case.classes + len(places) + 8  # the sums over classes and places; exp, log and the factors
    tolerance = rounding(actual.dtype, operations, reduced(case, magnitudes, counted))
    assert_close(actual, reduced(case, losses, counted).to(scores.dtype), tolerance)


def as_list(case: Case, weight: Tensor | None) -> list[float]:
    return [1.0] * case.classes if weight is None else weight.tolist()


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


@clause("14.nll_loss.definition", "14.loss.reductions", "14.loss.ignore_index", "14.loss.dtypes", "14.loss.empty")
@given(case=cases(), dtype=dtypes())
def test_nll_loss_is_the_negated_weighted_score_of_the_target(nll_loss: Loss, case: Case, dtype: torch.dtype) -> None:
    # halves, at most 6 of at most 3 · 3.5: only the mean's division rounds
    scores, weight = case.scores(whole, dtype), case.weight(whole, dtype)
    probabilities, counted = wanted(case, as_list(case, weight))
    losses = [
        -w * sum(p * s for p, s in zip(q, row, strict=True))
        for w, q, row in zip(counted, probabilities, rows(scores), strict=True)
    ]
    output = nll_loss(scores, case.target(), weight, ignore_index=case.ignore_index, reduction=case.reduction)
    expected = reduced(case, losses, counted)
    assert_close(output, expected.to(dtype), rounding(dtype, 1 if case.reduction == "mean" else 0, expected.abs()))


@clause(
    "14.cross_entropy.definition",
    "14.cross_entropy.label_smoothing",
    "14.loss.reductions",
    "14.loss.ignore_index",
    "14.loss.dtypes",
    "14.loss.empty",
)
@given(case=cases(), dtype=dtypes(), smoothing=st.sampled_from([0.0, 0.25, 1.0]))
def test_cross_entropy_of_class_numbers_equals_the_definition(
    cross_entropy: Loss, case: Case, dtype: torch.dtype, smoothing: float
) -> None:
    scores, weight = case.scores(normal, dtype), case.weight(normal, dtype)
    weights = as_list(case, weight)
    options = {"ignore_index": case.ignore_index, "reduction": case.reduction, "label_smoothing": smoothing}
    output = cross_entropy(scores, case.target(), weight, **options)
    probabilities, counted = wanted(case, weights, smoothing)
    check_cross_entropy(case, output, scores, probabilities, weights, counted)


@clause("14.cross_entropy.probabilities", "14.cross_entropy.label_smoothing", "14.loss.dtypes", "14.loss.empty")
@given(case=cases(), dtype=dtypes(), smoothing=st.sampled_from([0.0, 0.25, 1.0]))
def test_cross_entropy_of_probabilities_equals_the_definition(
    cross_entropy: Loss, case: Case, dtype: torch.dtype, smoothing: float
) -> None:
    scores, weight = case.scores(normal, dtype), case.weight(normal, dtype)
    target = scores.flip(0).exp()
    output = cross_entropy(scores, target, weight, reduction=case.reduction, label_smoothing=smoothing)
    smoothed = [[(1 - smoothing) * q + smoothing / case.classes for q in row] for row in rows(target)]
    check_cross_entropy(case, output, scores, smoothed, as_list(case, weight), [1.0] * len(smoothed))


@clause("14.cross_entropy.label_smoothing")
@given(case=cases(), smoothing=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_label_smoothing_of_class_numbers_equals_smoothed_probabilities(
    cross_entropy: Loss, case: Case, smoothing: float
) -> None:
    """The means differ: for class numbers it divides by the weights, for probabilities by the number."""
    scores, weight = case.scores(normal, torch.float64), case.weight(normal, torch.float64)
    probabilities, _ = wanted(case, as_list(case, weight), smoothing)
    rows_last = (*case.places, case.classes)
    target = torch.tensor(probabilities, dtype=torch.float64).reshape(rows_last)
    options: dict[str, Any] = {"weight": weight, "reduction": "none"}
    actual = cross_entropy(scores, case.target(), ignore_index=case.ignore_index, label_smoothing=smoothing, **options)
    expected = cross_entropy(scores, target if case.batch is None else target.movedim(-1, 1), **options)
    assert_close(actual, expected, rounding(torch.float64, 4 * case.classes + 16, 4 * expected + 40))


@clause("14.cross_entropy.composition")
@given(case=cases())
def test_the_cross_entropy_is_the_nll_loss_of_the_log_softmax(
    cross_entropy: Loss, nll_loss: Loss, log_softmax: Loss, case: Case
) -> None:
    scores, weight, target = case.scores(normal, torch.float64), case.weight(normal, torch.float64), case.target()
    options: dict[str, Any] = {"ignore_index": case.ignore_index, "reduction": case.reduction}
    expected = nll_loss(log_softmax(scores, 0 if case.batch is None else 1), target, weight, **options)
    tolerance = rounding(torch.float64, 2 * (2 * case.classes + target.numel() + 8), 4 * expected + 40)
    assert_close(cross_entropy(scores, target, weight, **options), expected, tolerance)


@clause("14.cross_entropy.shift")
@given(case=cases(), shift=st.integers(-1000, 1000))
def test_cross_entropy_is_invariant_to_a_shift_of_logits(cross_entropy: Loss, case: Case, shift: int) -> None:
    scores, target = case.scores(whole, torch.float64), case.target()
    options: dict[str, Any] = {"ignore_index": case.ignore_index, "reduction": "none"}
    # the distances between integers are exact; the logarithm is at most 6 + log 4
    tolerance = Tolerance(
        rounding(torch.float64, 2 * case.classes + 8, abs(shift) + 8.0).absolute, "of numbers shifted"
    )
    assert_close(cross_entropy(scores + shift, target, **options), cross_entropy(scores, target, **options), tolerance)


@clause("14.cross_entropy.stable")
@given(dtype=dtypes())
def test_cross_entropy_of_large_logits_does_not_overflow(cross_entropy: Loss, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype)
    size = logits[0, 0].item()  # bfloat16 cannot represent 10000
    for label, expected in enumerate([0.0, size, 2 * size]):
        target = torch.tensor([label])
        assert_equal(cross_entropy(logits, target), torch.tensor(expected, dtype=dtype), f"the loss of class {label}")
        one_hot = torch.eye(3, dtype=dtype)[label]
        slopes = gradient(lambda x, target=target: cross_entropy(x, target), logits)
        assert_equal(slopes, torch.eye(3, dtype=dtype)[:1] - one_hot, f"the gradient for class {label}")


@clause("14.loss.layouts")
@given(case=cases(), layout=pairs_of_layouts)
def test_the_memory_layout_does_not_matter_to_the_nll_loss(nll_loss: Loss, case: Case, layout: tuple[int, int]) -> None:
    scores, target, weight = case.scores(whole, torch.float64), case.target(), case.weight(whole, torch.float64)
    scores_again, target_again = laid_out(scores, layout[0]), laid_out(target, layout[1])
    options: dict[str, Any] = {"weight": weight, "ignore_index": case.ignore_index, "reduction": case.reduction}
    assert_equal(nll_loss(scores_again, target_again, **options), nll_loss(scores, target, **options))
    assert_equal(scores_again, scores, "the input afterwards")
    assert_equal(target_again, target, "the target afterwards")


@clause("14.loss.layouts")
@given(case=cases(), layout=pairs_of_layouts)
def test_the_memory_layout_does_not_matter_to_the_cross_entropy(
    cross_entropy: Loss, case: Case, layout: tuple[int, int]
) -> None:
    scores, target, weight = case.scores(normal, torch.float64), case.target(), case.weight(normal, torch.float64)
    scores_again, target_again = laid_out(scores, layout[0]), laid_out(target, layout[1])
    options: dict[str, Any] = {"weight": weight, "ignore_index": case.ignore_index, "reduction": "none"}
    expected = cross_entropy(scores, target, **options)
    tolerance = rounding(torch.float64, 4 * case.classes + 16, 4 * expected + 40)
    assert_close(cross_entropy(scores_again, target_again, **options), expected, tolerance)
    assert_equal(scores_again, scores, "the input afterwards")
    assert_equal(target_again, target, "the target afterwards")


@clause("14.nll_loss.definition")
def test_nll_loss_accepts_uint8_classes(nll_loss: Loss) -> None:
    scores = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    assert_equal(nll_loss(scores, torch.tensor([0, 1], dtype=torch.uint8)), 2.5)


@clause("14.cross_entropy.definition")
def test_cross_entropy_accepts_uint8_classes(cross_entropy: Loss) -> None:
    output = cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1], dtype=torch.uint8))
    assert_close(output, LN2, rounding(torch.float32, 2 * 2 + 2))


@clause("14.loss.ignore_index")
@pytest.mark.parametrize("label", [-99, -101, 99, 100])
def test_nll_loss_default_ignore_index_is_minus_100(nll_loss: Loss, label: int) -> None:
    scores = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    assert_equal(nll_loss(scores, torch.tensor([0, -100])), 1.0)
    with rejects(naming="target"):
        nll_loss(scores, torch.tensor([0, label]))


@clause("14.loss.ignore_index")
@pytest.mark.parametrize("label", [-99, -101, 99, 100])
def test_cross_entropy_default_ignore_index_is_minus_100(cross_entropy: Loss, label: int) -> None:
    output = cross_entropy(torch.zeros(2, 2), torch.tensor([0, -100]), reduction="none")
    assert_close(output, [LN2, 0.0], rounding(torch.float32, 2 * 2 + 2))
    with rejects(naming="target"):
        cross_entropy(torch.zeros(2, 2), torch.tensor([0, label]))


# compared in one byte, each ignore_index would be the class number: they differ by a multiple of 256
ONE_BYTE = [(156, -100), (255, -1), (0, 256), (0, -256), (3, 259), (199, -57)]
BYTES = pytest.mark.parametrize(
    ("label", "ignore_index"), ONE_BYTE, ids=[f"{label} is not {index}" for label, index in ONE_BYTE]
)


def check_one_byte(loss: Callable[..., Tensor], label: int, ignore_index: int, **options: Any) -> None:
    """A target of uint8 has the same meaning as the same numbers in int64; only the named class is ignored."""
    __tracebackhide__ = True
    scores = whole(2, 256, seed=0)
    for reduction in ("none", "mean", "sum"):
        same: dict[str, Any] = {"reduction": reduction, **options}
        wide, narrow = torch.tensor([label, 1]), torch.tensor([label, 1], dtype=torch.uint8)
        expected = loss(scores, wide, ignore_index=ignore_index, **same)
        assert_equal(loss(scores, narrow, ignore_index=ignore_index, **same), expected, f"the loss, {reduction}")
        expected = loss(scores, wide, ignore_index=label, **same)
        assert_equal(loss(scores, narrow, ignore_index=label, **same), expected, f"what is ignored, {reduction}")


@clause("14.loss.ignore_index", "14.loss.one_byte")
@BYTES
def test_nll_loss_compares_uint8_classes_as_integers(nll_loss: Loss, label: int, ignore_index: int) -> None:
    check_one_byte(nll_loss, label, ignore_index)


@clause("14.loss.ignore_index", "14.loss.one_byte")
@BYTES
def test_cross_entropy_compares_uint8_classes_as_integers(cross_entropy: Loss, label: int, ignore_index: int) -> None:
    check_one_byte(cross_entropy, label, ignore_index)


@clause("14.loss.ignore_index", "14.loss.one_byte", "14.cross_entropy.label_smoothing")
def test_smoothed_cross_entropy_compares_uint8_classes_as_integers(cross_entropy: Loss) -> None:
    for label, ignore_index in ONE_BYTE:
        check_one_byte(cross_entropy, label, ignore_index, label_smoothing=0.25)


@clause("14.loss.ignore_index", "14.loss.one_byte", "14.layer.options")
@BYTES
def test_nll_layer_compares_uint8_classes_as_integers(NLLLoss: Layer, label: int, ignore_index: int) -> None:
    check_one_byte(lambda x, target, **options: NLLLoss(**options)(x, target), label, ignore_index)


@clause("14.loss.ignore_index", "14.loss.one_byte", "14.layer.options")
@BYTES
def test_cross_entropy_layer_compares_uint8_classes_as_integers(
    CrossEntropyLoss: Layer, label: int, ignore_index: int
) -> None:
    check_one_byte(lambda x, target, **options: CrossEntropyLoss(**options)(x, target), label, ignore_index)


@clause("14.loss.ignore_index", "14.loss.one_byte")
def test_uint8_class_156_is_not_ignored_as_minus_100(cross_entropy: Loss) -> None:
    logits = torch.zeros(3, 200, dtype=torch.float64)
    output = cross_entropy(logits, torch.full((3,), 156, dtype=torch.uint8))
    assert_close(output, math.log(200), rounding(torch.float64, 2 * 200 + 3 + 8, 1 + math.log(200)))


EMPTY = pytest.mark.parametrize(("reduction", "expected"), [("mean", math.nan), ("sum", 0.0)])


@clause("14.loss.empty")
@EMPTY
def test_nll_loss_with_all_targets_ignored(nll_loss: Loss, reduction: str, expected: float) -> None:
    output = nll_loss(torch.ones(2, 3), torch.tensor([1, 1]), ignore_index=1, reduction=reduction)
    assert_equal(output, expected)


@clause("14.loss.empty")
@EMPTY
def test_cross_entropy_with_all_targets_ignored(cross_entropy: Loss, reduction: str, expected: float) -> None:
    output = cross_entropy(torch.ones(2, 3), torch.tensor([1, 1]), ignore_index=1, reduction=reduction)
    assert_equal(output, expected)


@clause("14.loss.nonfinite", "14.loss.ignore_index")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_count_in_the_nll_loss_only_for_the_target(nll_loss: Loss, value: float) -> None:
    scores = torch.tensor([[value, -1.0], [value, -2.0], [-3.0, -4.0]])
    losses = nll_loss(scores, torch.tensor([0, 1, 1]), reduction="none")
    assert_equal(losses, [-value, 2.0, 4.0])
    assert_equal(nll_loss(scores, torch.tensor([0, 1, 1]), ignore_index=0, reduction="none"), [0.0, 2.0, 4.0])


@clause("14.loss.nonfinite", "14.loss.ignore_index")
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_nan_logits_reach_only_the_loss_of_the_same_position(cross_entropy: Loss, smoothing: float) -> None:
    scores, target = torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), torch.tensor([1, 0])
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": "none"}
    tolerance = rounding(torch.float32, 2 * 2 + 4)
    assert_close(cross_entropy(scores, target, **options), [math.nan, LN2], tolerance)
    assert_close(cross_entropy(scores, target, ignore_index=1, **options), [0.0, LN2], tolerance)


@clause("14.loss.nonfinite")
@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([-math.inf, 0.0, 0.0], LN2),
        ([0.0, -math.inf, 0.0], math.inf),
        ([math.inf, 0.0, 0.0], math.nan),
        ([0.0, math.inf, 0.0], math.nan),
    ],
    ids=["another class that is impossible", "the target is impossible", "another is infinite", "the target is"],
)
def test_cross_entropy_with_an_infinite_logit(cross_entropy: Loss, logits: list[float], expected: float) -> None:
    output = cross_entropy(torch.tensor([logits]), torch.tensor([1]))
    assert_close(output, expected, rounding(torch.float32, 2 * 3 + 2))


# The mean of many losses in half precision


@clause("14.loss.half_mean")
@HALF
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_mean_of_many_nll_losses_is_finite(nll_loss: Loss, weighted: bool, dtype: torch.dtype) -> None:
    scores = torch.tensor([-3.0, -1.0], dtype=dtype).expand(MANY, 2)
    weight = torch.tensor([2.0, 1.0], dtype=dtype) if weighted else None
    check_many(nll_loss(scores, torch.zeros(MANY, dtype=torch.int64), weight), 3.0, dtype)


@clause("14.loss.half_mean")
@HALF
@pytest.mark.parametrize("probabilities", [False, True], ids=["class numbers", "probabilities"])
def test_mean_of_many_cross_entropies_is_finite(cross_entropy: Loss, probabilities: bool, dtype: torch.dtype) -> None:
    # log 1024 = 6.93 each, 75,705 together
    logits = torch.zeros(1, 1024, dtype=dtype).expand(MANY // 6, 1024)
    target = torch.zeros(MANY // 6, dtype=torch.int64)
    of_classes = torch.full((MANY // 6, 1024), 2.0**-10, dtype=dtype) if probabilities else target
    check_many(cross_entropy(logits, of_classes), math.log(1024), dtype, operations=10 + 10 + 8)


# The gradients


def assert_gradient(case: Case, actual: Tensor, of_places: list[list[float]], tolerance: Tolerance) -> None:
    """Compare with the gradient of each position, in the shape of the scores."""
    expected = torch.tensor(of_places, dtype=torch.float64).reshape(*case.places, case.classes)
    assert_close(actual, expected if case.batch is None else expected.movedim(-1, 1), tolerance, "the gradient")


@clause("14.loss.gradients")
@given(case=cases())
def test_nll_loss_gradient_is_the_negated_weight_of_the_target(nll_loss: Loss, case: Case) -> None:
    scores, weight = case.scores(whole, torch.float64), case.weight(whole, torch.float64)
    options: dict[str, Any] = {"ignore_index": case.ignore_index, "reduction": case.reduction}
    probabilities, counted = wanted(case, as_list(case, weight))
    divisor = sum(counted) if case.reduction == "mean" and sum(counted) else 1.0
    of_places = [[-w / divisor * p for p in q] for w, q in zip(counted, probabilities, strict=True)]
    actual = gradient(lambda x: nll_loss(x, case.target(), weight, **options), scores)
    if sum(counted):  # 0 / 0 has no gradient
        assert_gradient(case, actual, of_places, rounding(torch.float64, 2, 4.0))


@clause("14.cross_entropy.gradients")
@given(case=cases())
def test_cross_entropy_gradient_is_softmax_minus_one_hot(cross_entropy: Loss, case: Case) -> None:
    """The gradient is multiplied by the target's weight; for the mean, divided by the sum of the weights."""
    scores, weight = case.scores(normal, torch.float64), case.weight(normal, torch.float64)
    options: dict[str, Any] = {"ignore_index": case.ignore_index, "reduction": case.reduction}
    hot, counted = wanted(case, as_list(case, weight))
    divisor = sum(counted) if case.reduction == "mean" and sum(counted) else 1.0
    of_places = [
        [w / divisor * (math.exp(-cost) - h) for cost, h in zip(costs(row), q, strict=True)]
        for w, q, row in zip(counted, hot, rows(scores), strict=True)
    ]
    actual = gradient(lambda x: cross_entropy(x, case.target(), weight, **options), scores)
    reach = 1 + 2 * float(scores.abs().max()) + math.log(case.classes) if scores.numel() else 1.0
    tolerance = rounding(torch.float64, 2 * case.classes + 12, max(counted, default=1.0) / divisor * reach)
    if sum(counted):  # 0 / 0 has no gradient
        assert_gradient(case, actual, of_places, tolerance)


WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
CLASS_OPTIONS: list[dict[str, Any]] = [{}, {"weight": WEIGHT, "ignore_index": 1}, {"reduction": "none"}]


@clause("14.loss.gradients")
@pytest.mark.parametrize("options", CLASS_OPTIONS, ids=["mean", "weights", "none"])
def test_the_nll_loss_is_differentiable_twice(nll_loss: Loss, options: dict[str, Any]) -> None:
    assert_differentiable(lambda x: nll_loss(x, torch.tensor([0, 1]), **options), spread(2, 3, seed=0).requires_grad_())


@clause("14.cross_entropy.gradients")
@pytest.mark.parametrize(
    "options", [*CLASS_OPTIONS, {"label_smoothing": 0.5}], ids=["mean", "weights", "none", "smoothed"]
)
def test_the_cross_entropy_of_class_numbers_is_differentiable_twice(
    cross_entropy: Loss, options: dict[str, Any]
) -> None:
    assert_differentiable(
        lambda x: cross_entropy(x, torch.tensor([0, 1]), **options), spread(2, 3, seed=0).requires_grad_()
    )


@clause("14.cross_entropy.gradients")
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT, "label_smoothing": 0.5}], ids=["plain", "all"])
def test_cross_entropy_of_probabilities_is_differentiable_twice(cross_entropy: Loss, options: dict[str, Any]) -> None:
    logits, probabilities = spread(2, 3, seed=0).requires_grad_(), (spread(2, 3, seed=1) + 1).requires_grad_()
    assert_differentiable(lambda x, q: cross_entropy(x, q, **options), logits, probabilities)


# The layers

WEIGHTS = [2.0, 1.0, 1.0]
# losses of 1 and 4
SCORES, LABELS = [[-1.0, -2.0, -3.0], [-3.0, -4.0, -5.0]], [0, 1]
NLL_OPTIONS = pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2.5),
        ({"reduction": "sum"}, 5.0),
        ({"reduction": "none"}, [1.0, 4.0]),
        ({"weight": WEIGHTS}, 2.0),
        ({"ignore_index": 1}, 1.0),
        ({"weight": WEIGHTS, "ignore_index": 1, "reduction": "sum"}, 2.0),
    ],
    ids=["the mean by default", "the sum", "none", "a weighted mean", "an ignored class", "all options"],
)
# probabilities of 1/2, 1/4, 1/4, so losses of 1 and 2 in units of log 2, and 5/3 on average over the classes
LOGITS = [[LN2, 0.0, 0.0], [LN2, 0.0, 0.0]]
CROSS_ENTROPY_OPTIONS = pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3 / 2),
        ({"reduction": "sum"}, 3),
        ({"reduction": "none"}, [1, 2]),
        ({"weight": WEIGHTS}, 4 / 3),
        ({"ignore_index": 1}, 1),
        ({"label_smoothing": 1.0}, 5 / 3),
        ({"label_smoothing": 0.5, "reduction": "none"}, [4 / 3, 11 / 6]),
    ],
    ids=[
        "the mean by default",
        "the sum",
        "none",
        "a weighted mean",
        "an ignored class",
        "only smoothing",
        "smoothing",
    ],
)


def with_tensors(options: dict[str, Any]) -> dict[str, Any]:
    return options | ({"weight": torch.tensor(options["weight"])} if "weight" in options else {})


def assert_in_log2(actual: Tensor, expected: Any) -> None:
    tolerance = rounding(torch.float32, 2 * 3 + 2 + 8, 3.0)
    assert_close(actual, torch.tensor(expected, dtype=torch.float64).mul(LN2).to(actual.dtype), tolerance)


@clause("14.nll_loss.definition")
@NLL_OPTIONS
def test_nll_loss_options(nll_loss: Loss, options: dict[str, Any], expected: Any) -> None:
    assert_equal(nll_loss(torch.tensor(SCORES), torch.tensor(LABELS), **with_tensors(options)), expected)


@clause("14.layer.options")
@NLL_OPTIONS
def test_nll_layer_options(NLLLoss: Layer, options: dict[str, Any], expected: Any) -> None:
    layer = NLLLoss(**with_tensors(options))
    for mode in (layer.train(), layer.eval()):
        assert_equal(mode(torch.tensor(SCORES), torch.tensor(LABELS)), expected)


@clause("14.cross_entropy.definition")
@CROSS_ENTROPY_OPTIONS
def test_cross_entropy_options(cross_entropy: Loss, options: dict[str, Any], expected: Any) -> None:
    assert_in_log2(cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS), **with_tensors(options)), expected)


@clause("14.layer.options")
@CROSS_ENTROPY_OPTIONS
def test_cross_entropy_layer_options(
    CrossEntropyLoss: Layer,
    options: dict[str, Any],
    expected: Any,
) -> None:
    layer = CrossEntropyLoss(**with_tensors(options))
    for mode in (layer.train(), layer.eval()):
        assert_in_log2(mode(torch.tensor(LOGITS), torch.tensor(LABELS)), expected)


@clause("14.layer.options")
def test_the_cross_entropy_layer_takes_probabilities(CrossEntropyLoss: Layer) -> None:
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert_in_log2(CrossEntropyLoss()(torch.tensor(LOGITS), probabilities), 3 / 2)


@clause("14.layer.state")
def test_nll_layer_name_and_default_attributes(NLLLoss: Layer) -> None:
    layer = NLLLoss()
    assert repr(layer) == "NLLLoss()"
    assert (layer.weight, layer.ignore_index, layer.reduction) == (None, -100, "mean")
    assert layer.state_dict() == {}


@clause("14.layer.state")
def test_cross_entropy_layer_name_and_default_attributes(
    CrossEntropyLoss: Layer,
) -> None:
    layer = CrossEntropyLoss()
    assert repr(layer) == "CrossEntropyLoss()"
    assert (layer.weight, layer.ignore_index, layer.reduction) == (None, -100, "mean")
    assert layer.label_smoothing == 0
    assert layer.state_dict() == {}


def check_weight_is_kept(make: Layer, torch_make: Layer) -> None:
    """The weight is a buffer: it is saved and moved with the layer, and not trained."""
    layer, theirs = make(torch.tensor(WEIGHTS)), torch_make(torch.zeros(3))
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == ["weight"]
    theirs.load_state_dict(layer.state_dict())
    assert_equal(theirs.weight, WEIGHTS, "the weight in PyTorch's layer")
    ours = make(torch.zeros(3))
    ours.load_state_dict(theirs.state_dict())
    assert_equal(ours.weight, WEIGHTS, "the weight that came back")
    scores = torch.tensor(SCORES, dtype=torch.float64)
    assert ours.double()(scores, torch.tensor(LABELS)).dtype == torch.float64


@clause("14.layer.state")
def test_nll_layer_registers_weight_as_a_buffer(NLLLoss: Layer) -> None:
    check_weight_is_kept(NLLLoss, nn.NLLLoss)


@clause("14.layer.state")
def test_cross_entropy_layer_registers_weight_as_a_buffer(CrossEntropyLoss: Layer) -> None:
    check_weight_is_kept(CrossEntropyLoss, nn.CrossEntropyLoss)


# Rejected arguments


DOUBLE = torch.ones(4, dtype=torch.float64)
CLASSES_REJECTS = pytest.mark.parametrize(
    ("input", "target", "options", "naming"),
    [
        pytest.param((3, 4), [0, 1], {}, "target", id="a target for another batch"),
        pytest.param((3, 4), [[0], [1], [2]], {}, "target", id="a target of two dimensions"),
        pytest.param((3, 4, 2), [0, 1, 2], {}, "target", id="a target without the positions"),
        pytest.param((1, 4, 2), [[0, 1, 2]], {}, "target", id="a target for other positions"),
        pytest.param((3, 4), [0, 1, 4], {}, "target", id="a class that is not there"),
        pytest.param((3, 4), [0, 1, -1], {}, "target", id="a negative class"),
        pytest.param((3, 4), [0.0, 1.0, 2.0], {}, "target", id="class numbers that are no whole numbers"),
        pytest.param((3, 4), [0, 1, 2], {"weight": torch.ones(3)}, "weight", id="weights for three of four classes"),
        pytest.param((3, 4), [0, 1, 2], {"weight": torch.ones(4, 1)}, "weight", id="weights of two dimensions"),
        pytest.param(
            (3, 4),
            [0, 1, 2],
            {"weight": torch.ones(4).double()},
            "weight|found Double",
            id="weights of another dtype",
        ),
        pytest.param((3, 4), [0, 1, 2], {"reduction": "average"}, "reduction", id="an unknown reduction"),
    ],
)


@clause("14.loss.rejects")
@CLASSES_REJECTS
def test_the_nll_loss_rejects(nll_loss: Loss, input: Shape, target: Any, options: dict[str, Any], naming: str) -> None:
    with rejects(naming=naming):
        nll_loss(torch.ones(input), torch.tensor(target), **options)


@clause("14.loss.class_number")
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
@pytest.mark.parametrize(("target", "wrong"), [([1, -100, 4], 4), ([0, -1, 3], -1)])
def test_the_reference_names_the_first_class_number_that_does_not_exist(
    name: str, target: list[int], wrong: int
) -> None:
    says = rf"^{name}: target must be from 0 to 3 for input of shape \(3, 4\), got {wrong}$"
    with pytest.raises(IndexError, match=says):
        getattr(reference, name)(torch.ones(3, 4, device="cpu"), torch.tensor(target, device="cpu"))


@clause("14.loss.device")
@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy"])
def test_the_reference_names_the_target_on_another_device(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: target must be on the device of input, cpu, got meta$"):
        getattr(reference, name)(torch.ones(3, 4, device="cpu"), torch.zeros(3, dtype=torch.int64, device="meta"))


@clause("14.loss.rejects")
def test_the_nll_loss_rejects_a_single_score(nll_loss: Loss) -> None:
    with rejects(naming="input|dimension"):
        nll_loss(torch.tensor(-1.0), torch.tensor(0))


@clause("14.loss.rejects")
def test_the_nll_loss_rejects_scores_that_are_whole_numbers(nll_loss: Loss) -> None:
    with rejects(naming="input|target|Long|int64"):
        nll_loss(torch.ones(2, 3).long(), torch.tensor([0, 1]))


@clause("14.loss.rejects")
def test_the_cross_entropy_rejects_logits_that_are_whole_numbers(cross_entropy: Loss) -> None:
    with rejects(naming="input|target|Long|int64"):
        cross_entropy(torch.ones(2, 3).long(), torch.tensor([0, 1]))


@clause("14.loss.rejects")
@CLASSES_REJECTS
def test_the_cross_entropy_rejects(
    cross_entropy: Loss, input: Shape, target: Any, options: dict[str, Any], naming: str
) -> None:
    with rejects(naming=naming):
        cross_entropy(torch.ones(input), torch.tensor(target), **options)


@clause("14.loss.rejects", "14.cross_entropy.probabilities")
@pytest.mark.parametrize(
    ("target", "options", "naming"),
    [
        pytest.param(torch.ones(3, 5), {}, "target", id="probabilities of other classes"),
        pytest.param(torch.ones(3, 4).long(), {}, "target|probabilities", id="probabilities that are whole numbers"),
        pytest.param(torch.ones(3, 4), {"ignore_index": 0}, "ignore_index", id="an ignored class among probabilities"),
        pytest.param(torch.ones(3, 4), {"weight": torch.ones(3)}, "weight", id="weights for three of four classes"),
        pytest.param(torch.ones(3, 4), {"reduction": "average"}, "reduction", id="an unknown reduction"),
        pytest.param(torch.ones(3, 4), {"label_smoothing": 1.5}, "label_smoothing", id="more smoothing than all"),
    ],
)
def test_the_cross_entropy_rejects_with_probabilities(
    cross_entropy: Loss, target: Tensor, options: dict[str, Any], naming: str
) -> None:
    with rejects(naming=naming):
        cross_entropy(torch.ones(3, 4), target, **options)
