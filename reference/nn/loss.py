"""Chapter 14: losses, which say in one number how far an output is from its target.

`l1_loss` and `mse_loss` compare numbers, `nll_loss` and `cross_entropy` probabilities of classes. Each computes a loss
per element first; `reduction` then says what becomes of these: their mean, their sum, or nothing. The tutorial's
numbers: the L1 loss of [1, 2, 3] and [1, 2, 5] is 0.6667, the sum of their squared errors 4, and the cross entropy of
the logits [0.1, 0.2, 0.3] for class 1 is 1.1019.

PyTorch's deprecated arguments `size_average` and `reduce` are left out. They stand between the others, so what comes
after them is given by name: a call that works here means the same there.
"""

import warnings
from typing import NoReturn

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from reference.nn.activation import log_softmax


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
        target: the shape of `input`; another one that broadcasts with it is warned about.
        reduction: "mean", "sum" or "none".
        weight: a factor for each element, the shape of `input`.

    Returns:
        A scalar, or with "none" the losses, in the shape that `input` and `target` broadcast to.

    Raises:
        ValueError: the shapes do not broadcast, `weight` does not have the shape of `input`, or `reduction` is unknown.
        TypeError: neither `input` nor `target` is floating point.
    """
    _check_elementwise("l1_loss", input, target, weight, reduction)
    x, y = _pair("l1_loss", input, target)
    losses = (x - y).abs()
    return _reduce(losses if weight is None else losses * weight, reduction, weight)


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
    _check_elementwise("mse_loss", input, target, weight, reduction)
    x, y = _pair("mse_loss", input, target)
    losses = (x - y).square()
    return _reduce(losses if weight is None else losses * weight, reduction, weight)


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
        ignore_index: a class number, real or not, that is left out of the losses and of the mean.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or with "none" the losses, in the shape of `target`. The mean of no losses is NaN.

    Raises:
        ValueError: a shape does not fit, or `reduction` is unknown.
        TypeError: a dtype does not fit.
        IndexError: a class number is outside 0 to classes - 1 (on the CPU).
    """
    _check_classes("nll_loss", input, target, weight, reduction)
    losses, weights = _negative_log_likelihood("nll_loss", input, target, weight, ignore_index)
    return _reduce(losses, reduction, weights)


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

    q are the wanted probabilities: `target` itself, if it has the shape of `input`; otherwise `target` is class
    numbers, q[target] = 1, and the loss is `nll_loss` of log p. With `label_smoothing` ε, q becomes
    (1 - ε) · q + ε / classes. The mean is Σ loss / Σ weight[target] for class numbers, and the plain mean over batch
    and positions for probabilities.

    Args:
        input: logits, `[classes]`, `[batch, classes]` or `[batch, classes, *positions]`.
        target: class numbers, `[]`, `[batch]` or `[batch, *positions]`, int64 or uint8; or probabilities, floating
            point, in the shape of `input`.
        weight: a factor for each class, `[classes]`; None is 1.
        ignore_index: a class number, real or not, that is left out of the losses and of the mean.
        reduction: "mean", "sum" or "none".
        label_smoothing: ε, at most 1; 0 and less is none.

    Returns:
        A scalar, or with "none" the losses, `[]`, `[batch]` or `[batch, *positions]`. The mean of no losses is NaN.

    Raises:
        ValueError: a shape does not fit, `reduction` is unknown, `label_smoothing` is above 1, or `ignore_index` is a
            class number although `target` is probabilities.
        TypeError: a dtype does not fit.
        IndexError: a class number is outside 0 to classes - 1 (on the CPU).
    """
    if label_smoothing > 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, but needs to be from 0 to 1")
    if input.shape == target.shape:
        _check_probabilities("cross_entropy", input, target, weight, reduction, ignore_index)
    else:
        _check_classes("cross_entropy", input, target, weight, reduction)
    classes = _class_dim(input)
    smoothing = max(0, label_smoothing)
    log_p = log_softmax(input, classes)
    weighted = log_p if weight is None else log_p * weight.reshape(-1, *[1] * (input.dim() - 1 - classes))
    if input.shape == target.shape:
        q = target * (1 - smoothing) + smoothing / input.shape[classes] if smoothing else target
        return _reduce(-(weighted * q).sum(classes), reduction)
    losses, weights = _negative_log_likelihood("cross_entropy", log_p, target, weight, ignore_index)
    loss = _reduce(losses, reduction, weights)
    if smoothing:
        uniform = -weighted.mean(classes).masked_fill(target == ignore_index, 0)
        loss = (1 - smoothing) * loss + smoothing * _reduce(uniform, reduction, weights)
    return loss


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


def _negative_log_likelihood(
    name: str, log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Float[Tensor, "*target"], Shaped[Tensor, "*target"]]:
    """-weight[target] · log_p[target] and weight[target] of each element, both 0 where target = ignore_index."""
    if target.device != log_p.device:
        raise ValueError(f"{name}: target is on {target.device}, but input is on {log_p.device}")
    kept = target != ignore_index
    index = target.to(torch.int64) * kept  # class 0 stands in for what is ignored, which may not be a class
    classes = _class_dim(log_p)
    try:
        picked = log_p.gather(classes, index.unsqueeze(classes)).squeeze(classes)
    except RuntimeError:  # raised on the CPU only: an accelerator would have to wait for the answer
        _raise_class_error(name, log_p, target[kept])
    if weight is None:
        return torch.where(kept, -picked, 0), kept
    weights = torch.where(kept, weight[index], 0)
    return torch.where(kept, -weights * picked, 0), weights


def _reduce(
    losses: Float[Tensor, "*losses"], reduction: str, weights: Shaped[Tensor, "..."] | None = None
) -> Float[Tensor, "*reduced"]:
    """The losses, their sum, or their mean; with `weights`, which are in the losses already, the weighted mean."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if weights is None else losses.sum() / weights.sum()


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _pair(name: str, input: Tensor, target: Tensor) -> tuple[Shaped[Tensor, "*losses"], Shaped[Tensor, "*losses"]]:
    """Both, broadcast to one shape."""
    if target.shape == input.shape:
        return input, target
    shapes = f"{name}: target has shape {tuple(target.shape)} and input {tuple(input.shape)}"
    try:
        pair = torch.broadcast_tensors(input, target)
    except RuntimeError:
        raise ValueError(f"{shapes}, but they need to be the same, or at least broadcast") from None
    warnings.warn(f"{shapes}; they are broadcast, which is rarely what is meant", stacklevel=3)
    return pair


def _check_elementwise(name: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    _check_reduction(name, reduction)
    if weight is not None and weight.shape != input.shape:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, but input needs {tuple(input.shape)}")
    if not torch.promote_types(input.dtype, target.dtype).is_floating_point:
        raise TypeError(f"{name}: input is {input.dtype} and target {target.dtype}, but one needs floating point")


def _check_classes(name: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    _check_reduction(name, reduction)
    _check_input(name, input, weight)
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"{name}: target is {target.dtype}, but class numbers need int64 or uint8")
    needed = input.shape[: _class_dim(input)] + input.shape[_class_dim(input) + 1 :]
    if target.shape != needed:
        raise ValueError(
            f"{name}: target has shape {tuple(target.shape)}, but input {tuple(input.shape)} needs {tuple(needed)}"
        )
    if weight is not None and weight.dtype != input.dtype:
        raise TypeError(f"{name}: weight is {weight.dtype}, but needs the dtype of input, {input.dtype}")


def _check_probabilities(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int
) -> None:
    _check_reduction(name, reduction)
    _check_input(name, input, weight)
    if not target.is_floating_point():
        raise TypeError(
            f"{name}: target is {target.dtype} and has the shape of input {tuple(input.shape)}, so it needs to be "
            "probabilities, which are floating point"
        )
    if ignore_index >= 0:
        raise ValueError(f"{name}: ignore_index is {ignore_index}, but target is probabilities, which need none")


def _check_input(name: str, input: Tensor, weight: Tensor | None) -> None:
    if input.dim() == 0:
        raise ValueError(f"{name}: input has no dimensions, but needs [classes] or [batch, classes, *positions]")
    if not input.is_floating_point():
        raise TypeError(f"{name}: input is {input.dtype}, but needs floating point")
    classes = input.shape[_class_dim(input)]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, but {classes} classes need {(classes,)}")


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction is {reduction!r}, but needs to be 'mean', 'sum' or 'none'")


def _raise_class_error(name: str, input: Tensor, target: Tensor) -> NoReturn:
    classes = input.shape[_class_dim(input)]
    wrong = target[(target < 0) | (target >= classes)]
    raise IndexError(
        f"{name}: target holds the class {wrong[0]}, but input {tuple(input.shape)} has the classes 0 to {classes - 1}"
    ) from None
