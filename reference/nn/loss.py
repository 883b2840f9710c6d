"""Chapter 14: losses, which measure in one number the distance of an output from its target.

`l1_loss` and `mse_loss` compare numbers, `nll_loss` and `cross_entropy` probabilities of classes. Each computes a loss
per element first; `reduction` then selects their mean, their sum, or no reduction. The tutorial's
numbers: the L1 loss of [1, 2, 3] and [1, 2, 5] is 0.6667, the sum of their squared errors 4, and the cross entropy of
the logits [0.1, 0.2, 0.3] for class 1 is 1.1019.

Each definition (`l1_loss_definition`, …) is the formula; the public function of the same name checks its arguments and
computes the definition. Half precision is computed in float32 and rounded once, after the reduction: the mean of 60,000
float16 losses is finite although their sum is not.

PyTorch's deprecated arguments `size_average` and `reduce` are left out. Since they precede other arguments in PyTorch's
signatures, the arguments after them are keyword-only here, so that a call that works here has the same meaning in
PyTorch.
"""

import warnings
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from reference.arguments import (
    accumulation_dtype,
    check_device,
    check_dtype,
    check_floating,
    check_layout,
    check_number,
    check_reduction,
    check_shape,
    check_tensor,
)
from reference.nn.activation import log_softmax_definition

# The definitions


def l1_loss_definition(
    input: Shaped[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    reduction: str,
    weight: Shaped[Tensor, "..."] | None,
) -> Shaped[Tensor, "..."]:
    """loss = |input - target|; the mean with weights is Σ weight · loss / Σ weight."""
    losses = (input - target).abs()
    return reduced(losses if weight is None else weight * losses, reduction, weight)


def mse_loss_definition(
    input: Shaped[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    reduction: str,
    weight: Shaped[Tensor, "..."] | None,
) -> Shaped[Tensor, "..."]:
    """loss = (input - target)²; the mean with weights is Σ weight · loss / Σ weight."""
    losses = (input - target).square()
    return reduced(losses if weight is None else weight * losses, reduction, weight)


def nll_loss_definition(
    input: Float[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    weight: Float[Tensor, "classes"] | None,
    ignore_index: int,
    reduction: str,
) -> Float[Tensor, "..."]:
    """loss = -weight[target] · input[target], 0 where target = ignore_index; the mean is Σ loss / Σ weight[target]."""
    classes, ignored = class_dim(input), target == ignore_index
    index = target.masked_fill(ignored, 0)  # class 0 replaces ignored labels, which may be no valid class
    picked = input.gather(classes, index.unsqueeze(classes)).squeeze(classes)
    weights = weight_of_target(target, weight, ignore_index)
    return reduced((weights * -picked).masked_fill(ignored, 0), reduction, weights)


def cross_entropy_definition(
    input: Float[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    weight: Float[Tensor, "classes"] | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float | int,
) -> Float[Tensor, "..."]:
    """loss = -Σ_c weight[c] · ((1 - ε) · q[c] + ε / classes) · log p[c], p = softmax(input), ε = label_smoothing.

    q are the target's probabilities; for class numbers q[target] = 1, so the sum with q is
    -weight[target] · log p[target], 0 where target = ignore_index, and the mean is Σ loss / Σ weight[target].
    """
    classes = class_dim(input)
    log_p = log_softmax_definition(input, classes)
    weighted = log_p if weight is None else weight.reshape(-1, *[1] * (input.dim() - 1 - classes)) * log_p
    if target.is_floating_point():
        q = (1 - label_smoothing) * target + label_smoothing / input.shape[classes]
        return reduced(-(q * weighted).sum(classes), reduction)
    losses = nll_loss_definition(log_p, target, weight, ignore_index, "none")
    if label_smoothing:
        uniform = -weighted.mean(classes).masked_fill(target == ignore_index, 0)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return reduced(losses, reduction, weight_of_target(target, weight, ignore_index))


def weight_of_target(
    target: Shaped[Tensor, "*places"], weight: Float[Tensor, "classes"] | None, ignore_index: int
) -> Float[Tensor, "*places"] | Bool[Tensor, "*places"]:
    """weight[target], 1 if there is no weight; 0 where target = ignore_index."""
    ignored = target == ignore_index
    return ~ignored if weight is None else weight[target.masked_fill(ignored, 0)].masked_fill(ignored, 0)


def reduced(
    losses: Shaped[Tensor, "..."], reduction: str, weights: Shaped[Tensor, "..."] | None = None
) -> Shaped[Tensor, "..."]:
    """The losses, their sum, or their mean; with `weights`, which the losses already contain, the weighted mean."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if weights is None else losses.sum() / weights.sum()


def class_dim(input: Shaped[Tensor, "..."]) -> int:
    """The dimension of the classes in `[classes]`, `[batch, classes]` or `[batch, classes, *positions]`."""
    return 0 if input.dim() == 1 else 1


# The public functions


def l1_loss(
    input: Shaped[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    *,
    reduction: str = "mean",
    weight: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "*losses"]:
    """loss = |input - target|; the mean with weights is Σ weight · loss / Σ weight.

    Args:
        input: any shape.
        target: the shape of `input`; another shape that broadcasts with it gives a warning.
        reduction: "mean", "sum" or "none".
        weight: a factor for each element, the shape of `input`.

    Returns:
        A scalar, or with "none" the losses, in the shape that `input` and `target` broadcast to.

    Raises:
        ValueError: the shapes do not broadcast, `weight` does not have the shape of `input`, or `reduction` is unknown.
        TypeError: neither `input` nor `target` is floating point, or an argument is not a tensor.
    """
    dtype = _check_elementwise("l1_loss", input, target, weight, reduction)
    return l1_loss_definition(_wide(input), _wide(target), reduction, _wide(weight)).to(dtype)


def mse_loss(
    input: Shaped[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    *,
    reduction: str = "mean",
    weight: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "*losses"]:
    """loss = (input - target)²; the mean with weights is Σ weight · loss / Σ weight.

    Arguments, result and errors are those of `l1_loss`.
    """
    dtype = _check_elementwise("mse_loss", input, target, weight, reduction)
    return mse_loss_definition(_wide(input), _wide(target), reduction, _wide(weight)).to(dtype)


def nll_loss(
    input: Shaped[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    weight: Shaped[Tensor, "..."] | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Tensor, "*losses"]:
    """loss = -weight[target] · input[target], 0 where target = ignore_index; the mean is Σ loss / Σ weight[target].

    Args:
        input: log-probabilities, `[classes]`, `[batch, classes]` or `[batch, classes, *positions]`.
        target: class numbers, `[]`, `[batch]` or `[batch, *positions]`, int64 or uint8.
        weight: a factor for each class, `[classes]`, the dtype of `input`; None is 1.
        ignore_index: a target with this number, which need not be a class, is left out of the losses and of the mean.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or with "none" the losses, in the shape of `target`. The mean of no losses is NaN.

    Raises:
        ValueError: a shape does not fit, or `reduction` is unknown.
        TypeError: a dtype does not fit.
        IndexError: a class number is outside 0 to classes - 1 (on the CPU).
    """
    numbers = _check_classes("nll_loss", input, target, weight, reduction)
    try:
        loss = nll_loss_definition(_wide(input), numbers, _wide(weight), ignore_index, reduction)
    except RuntimeError as error:  # on the CPU only: an accelerator would have to wait for the check
        raise _class_error("nll_loss", input, numbers, ignore_index, error) from None
    return loss.to(input.dtype)


def cross_entropy(
    input: Shaped[Tensor, "..."],
    target: Shaped[Tensor, "..."],
    weight: Shaped[Tensor, "..."] | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float | int = 0.0,
) -> Float[Tensor, "*losses"]:
    """loss = -Σ_c weight[c] · q[c] · log p[c], with p = softmax(input) over the classes.

    q are the target's probabilities: `target` itself, if it has the shape of `input`; otherwise `target` is class
    numbers, q[target] = 1, and the loss is `nll_loss` of log p. With `label_smoothing` ε, q becomes
    (1 - ε) · q + ε / classes. The mean is Σ loss / Σ weight[target] for class numbers, and the plain mean over batch
    and positions for probabilities.

    Args:
        input: logits, `[classes]`, `[batch, classes]` or `[batch, classes, *positions]`.
        target: class numbers, `[]`, `[batch]` or `[batch, *positions]`, int64 or uint8; or probabilities, floating
            point, in the shape of `input`.
        weight: a factor for each class, `[classes]`; None is 1.
        ignore_index: a target with this number, which need not be a class, is left out of the losses and of the mean.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε, at most 1; 0 and less turn it off.

    Returns:
        A scalar, or with "none" the losses, `[]`, `[batch]` or `[batch, *positions]`. The mean of no losses is NaN.

    Raises:
        ValueError: a shape does not fit, `reduction` is unknown, `label_smoothing` is above 1, or `ignore_index` is a
            class number although `target` is probabilities.
        TypeError: a dtype does not fit.
        IndexError: a class number is outside 0 to classes - 1 (on the CPU).
    """
    smoothing = max(0, check_number("cross_entropy: label_smoothing", label_smoothing, at_most=1))
    if check_tensor("cross_entropy: target", target).shape == check_tensor("cross_entropy: input", input).shape:
        dtype = _check_probabilities("cross_entropy", input, target, weight, reduction, ignore_index)
        wanted = _wide(target)
    else:
        dtype = input.dtype
        wanted = _check_classes("cross_entropy", input, target, weight, reduction)
    try:
        loss = cross_entropy_definition(_wide(input), wanted, _wide(weight), ignore_index, reduction, smoothing)
    except RuntimeError as error:  # on the CPU only: an accelerator would have to wait for the check
        raise _class_error("cross_entropy", input, wanted, ignore_index, error) from None
    return loss.to(dtype)


def _wide(tensor: Any) -> Any:
    """Half precision as float32, anything else unchanged."""
    return tensor if tensor is None else tensor.to(accumulation_dtype(tensor.dtype))


def _check_elementwise(
    function: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str
) -> torch.dtype:
    """The dtype of the loss."""
    check_reduction(f"{function}: reduction", reduction)
    check_tensor(f"{function}: input", input)
    check_tensor(f"{function}: target", target)
    if weight is not None:
        check_shape(f"{function}: weight", weight, input.shape, of="input")
    dtype = torch.promote_types(input.dtype, target.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"{function}: input or target must be floating-point, got {input.dtype} and {target.dtype}")
    if target.shape != input.shape:
        shapes = f"target must have the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}"
        try:
            torch.broadcast_shapes(input.shape, target.shape)
        except RuntimeError:
            raise ValueError(f"{function}: {shapes}, which does not broadcast with it") from None
        warnings.warn(f"{function}: {shapes}; broadcasting them is rarely intended", stacklevel=3)
    return dtype if weight is None else torch.promote_types(dtype, weight.dtype)


def _check_classes(function: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """The class numbers as int64, because in uint8 the number 156 equals an `ignore_index` of -100."""
    _check_scores(function, input, weight, reduction)
    check_dtype(f"{function}: target", target, torch.int64, torch.uint8, of="class numbers")
    places = input.shape[: class_dim(input)] + input.shape[class_dim(input) + 1 :]
    check_shape(f"{function}: target", target, places, of=f"input of shape {tuple(input.shape)}")
    check_device(f"{function}: target", target, input, of="input")
    if weight is not None:
        check_dtype(f"{function}: weight", weight, input.dtype, of="input")
    return target.to(torch.int64)


def _check_probabilities(
    function: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int
) -> torch.dtype:
    """The dtype of the loss."""
    _check_scores(function, input, weight, reduction)
    if not target.is_floating_point():
        raise TypeError(
            f"{function}: target must be probabilities, which are floating-point, if it has the shape of input, "
            f"{tuple(input.shape)}, got {target.dtype}"
        )
    if ignore_index >= 0:
        raise ValueError(f"{function}: ignore_index must be negative if target is probabilities, got {ignore_index}")
    return reduce(torch.promote_types, [t.dtype for t in (input, target, weight) if t is not None])


def _check_scores(function: str, input: Tensor, weight: Tensor | None, reduction: str) -> None:
    check_reduction(f"{function}: reduction", reduction)
    check_floating(f"{function}: input", input)
    check_layout(f"{function}: input", input, "[classes]", "[batch, classes, *positions]")
    if weight is not None:
        check_shape(f"{function}: weight", weight, input.shape[class_dim(input) :][:1], of="the classes of input")


def _class_error(function: str, input: Tensor, target: Tensor, ignore_index: int, error: RuntimeError) -> Exception:
    """The error for a class number that does not exist; the original error if all class numbers exist."""
    classes = input.shape[class_dim(input)]
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if target.is_floating_point() or len(wrong) == 0:
        return error
    shape = tuple(input.shape)
    return IndexError(f"{function}: target must be from 0 to {classes - 1} for input of shape {shape}, got {wrong[0]}")


# The layers


class L1Loss(torch.nn.Module):
    """`l1_loss` as a layer; `reduction` is "mean", "sum" or "none"."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."]) -> Float[Tensor, "*losses"]:
        return l1_loss(input, target, reduction=self.reduction)


class MSELoss(torch.nn.Module):
    """`mse_loss` as a layer; `reduction` is "mean", "sum" or "none"."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."]) -> Float[Tensor, "*losses"]:
        return mse_loss(input, target, reduction=self.reduction)


class NLLLoss(torch.nn.Module):
    """`nll_loss` as a layer; its arguments are the function's, and `weight` becomes part of the state dict."""

    weight: Tensor | None

    def __init__(
        self, weight: Shaped[Tensor, "..."] | None = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, input: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."]) -> Float[Tensor, "*losses"]:
        return nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class CrossEntropyLoss(torch.nn.Module):
    """`cross_entropy` as a layer; its arguments are the function's, and `weight` becomes part of the state dict."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Shaped[Tensor, "..."] | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float | int = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Shaped[Tensor, "..."], target: Shaped[Tensor, "..."]) -> Float[Tensor, "*losses"]:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
