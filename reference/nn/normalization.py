"""Chapter 12, "other layers": normalization of the numbers inside a network to mean 0 and variance 1.

Both layers here compute (x - mean) / sqrt(variance + eps) · weight + bias. They differ in the dimensions of the mean:
`BatchNorm2d` computes it for each channel over the batch and all positions, and keeps running statistics for
evaluation; `LayerNorm` computes it for each sample over its last dimensions, in training and evaluation.

Each definition (`batch_norm_definition`, …) is the formula; the public function of the same name checks its arguments
and computes the definition: half precision in float32, rounded once.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from reference.arguments import accumulation_dtype, check_floating, check_layout, check_shape

Momentum = float | int | Float[Tensor, ""]

# The definitions


def batch_norm_definition(
    input: Float[Tensor, "batch channels *positions"],
    running_mean: Float[Tensor, "channels"] | None,
    running_var: Float[Tensor, "channels"] | None,
    weight: Float[Tensor, "channels"] | None,
    bias: Float[Tensor, "channels"] | None,
    training: bool,
    momentum: Momentum,
    eps: float | int,
) -> Float[Tensor, "batch channels *positions"]:
    """(x - mean) / sqrt(var + eps) · weight + bias, with the mean and var of each channel, or the running ones."""
    x = input.movedim(1, -1)
    if training:
        over = tuple(range(x.dim() - 1))
        mean, deviation = centred(x, over)
        var = deviation.square().mean(over)
        n = math.prod(x.shape[:-1])
        if running_mean is not None and running_var is not None and n > 0:
            blend(running_mean, mean.reshape(-1), momentum)
            blend(running_var, var * (n / (n - 1)), momentum)
    else:
        deviation = x - running_mean  # pyright: ignore[reportOperatorIssue]  evaluation has both
        var = running_var.to(x.dtype)  # pyright: ignore[reportOptionalMemberAccess]
    return affine(deviation * (var + eps).rsqrt(), weight, bias).movedim(-1, 1)


def layer_norm_definition(
    input: Float[Tensor, "*shape"],
    normalized_shape: Sequence[int],
    weight: Float[Tensor, "..."] | None,
    bias: Float[Tensor, "..."] | None,
    eps: float | int,
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(var + eps) · weight + bias, with mean and var over the last dimensions of each sample."""
    over = tuple(range(-len(normalized_shape), 0))
    _, deviation = centred(input, over)
    var = deviation.square().mean(over, keepdim=True)
    return affine(deviation * (var + eps).rsqrt(), weight, bias)


def centred(x: Float[Tensor, "*shape"], over: tuple[int, ...]) -> tuple[Float[Tensor, "..."], Float[Tensor, "*shape"]]:
    """The mean of x over some dimensions, which are kept, and x - mean.

    The mean is rounded to the precision of x: if x is far from 0 or constant, the rounding error exceeds the
    differences between the elements. Therefore the mean of the deviations, which has a finer precision, is subtracted
    as well. An infinite mean stays infinite.
    """
    rounded = x.mean(over, keepdim=True)
    deviation = x - rounded
    rest = deviation.mean(over, keepdim=True)
    return torch.where(rounded.isinf(), rounded, rounded + rest), deviation - rest


@torch.no_grad()
def blend(running: Float[Tensor, "channels"], new: Float[Tensor, "channels"], momentum: Momentum) -> None:
    """running = (1 - momentum) · running + momentum · new; `new` is the mean, or the unbiased variance."""
    running.copy_((1 - momentum) * running + momentum * new)


def affine(
    x: Float[Tensor, "*shape"], weight: Float[Tensor, "..."] | None, bias: Float[Tensor, "..."] | None
) -> Float[Tensor, "*shape"]:
    """x · weight + bias, over the last dimensions."""
    y = x if weight is None else x * weight
    return y if bias is None else y + bias


# The public functions


def batch_norm(
    input: Shaped[Tensor, "*shape"],
    running_mean: Shaped[Tensor, "..."] | None,
    running_var: Shaped[Tensor, "..."] | None,
    weight: Shaped[Tensor, "..."] | None = None,
    bias: Shaped[Tensor, "..."] | None = None,
    training: bool = False,
    momentum: Momentum = 0.1,
    eps: float | int = 1e-5,
) -> Float[Tensor, "*shape"]:
    """output = (input - mean) / sqrt(var + eps) · weight + bias, for each channel.

    In training, mean and var = mean((input - mean)²) are taken over all dimensions but the channels, n numbers for
    each channel, and the running statistics are updated: running = (1 - momentum) · running + momentum · new, with the
    unbiased variance, var · n / (n - 1), as the new one. In evaluation, mean and var are the running statistics.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.

    Args:
        input: `[batch, channels, *positions]`; or `[0]`, without values and without channels.
        running_mean: `[channels]`, updated in place in training, needed in evaluation.
        running_var: `[channels]`, likewise.
        weight: `[channels]`; None is 1.
        bias: `[channels]`; None is 0.
        training: normalize by the statistics of `input`.
        momentum: the share of the new statistics in the running ones.
        eps: added to the variance, so that a constant channel is not divided by 0.

    Returns:
        The shape and dtype of `input`.

    Raises:
        ValueError: a shape does not fit, one running statistic is given without the other, neither is given in
            evaluation, a channel has a single value in training, or `eps` is negative, or in training 0.
        TypeError: `input` is not floating point, or the other tensors have neither all the dtype of `input` nor, with
        float16 or bfloat16 input, all float32.
    """
    empty = check_floating("batch_norm: input", input).dim() == 1 and input.numel() == 0  # neither values nor channels
    if not empty:
        check_layout("batch_norm: input", input, "[batch, channels, *positions]")
    channels = 0 if empty else input.shape[1]
    statistics = {"running_mean": running_mean, "running_var": running_var}
    _check_parameters("batch_norm", input, (channels,), {**statistics, "weight": weight, "bias": bias})
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var must both be given or both None, got only one")
    if running_mean is None and not training:
        raise ValueError("batch_norm: running_mean and running_var must be given in evaluation, got None")
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch_norm: eps must be {'positive in training' if training else 'at least 0'}, got {eps}")
    if empty:
        return input.clone()
    if training and input[:, :1].numel() == 1:
        shape = tuple(input.shape)
        raise ValueError(
            f"batch_norm: input must have at least 2 values per channel in training, got the shape {shape}"
        )
    x = input.to(accumulation_dtype(input.dtype))
    output = batch_norm_definition(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return output.to(input.dtype)


def layer_norm(
    input: Shaped[Tensor, "*shape"],
    normalized_shape: Sequence[int],
    weight: Shaped[Tensor, "..."] | None = None,
    bias: Shaped[Tensor, "..."] | None = None,
    eps: float | int = 1e-5,
) -> Float[Tensor, "*shape"]:
    """output = (input - mean) / sqrt(var + eps) · weight + bias, for each sample.

    mean and var = mean((input - mean)²) are taken over the last dimensions, those of `normalized_shape`. float16 and
    bfloat16 are computed in float32 and rounded once, at the end.

    Args:
        input: `[*batch, *normalized_shape]`.
        normalized_shape: the sizes of the last dimensions, at least one.
        weight: `[*normalized_shape]`; None is 1.
        bias: `[*normalized_shape]`; None is 0.
        eps: added to the variance, so that a constant sample is not divided by 0.

    Returns:
        The shape and dtype of `input`.

    Raises:
        ValueError: `normalized_shape` is empty, or a shape does not fit.
        TypeError: `input` is not floating point, or the other tensors have neither all the dtype of `input` nor, with
        float16 or bfloat16 input, all float32.
    """
    normalized_shape = tuple(normalized_shape)
    check_floating("layer_norm: input", input)
    if not normalized_shape:
        raise ValueError("layer_norm: normalized_shape must have at least one size, got ()")
    if input.shape[-len(normalized_shape) :] != normalized_shape:
        sizes = f"the last sizes of input of shape {tuple(input.shape)}"
        raise ValueError(f"layer_norm: normalized_shape must be {sizes}, got {normalized_shape}")
    _check_parameters("layer_norm", input, normalized_shape, {"weight": weight, "bias": bias})
    x = input.to(accumulation_dtype(input.dtype))
    return layer_norm_definition(x, normalized_shape, weight, bias, eps).to(input.dtype)


def _check_parameters(
    function: str, input: Tensor, shape: tuple[int, ...], parameters: dict[str, Tensor | None]
) -> None:
    """Check the given tensors: all need the shape `shape` and one dtype, that of `input` or its accumulation dtype."""
    given = {parameter: tensor for parameter, tensor in parameters.items() if tensor is not None}
    for parameter, tensor in given.items():
        check_shape(f"{function}: {parameter}", tensor, shape, of=f"input of shape {tuple(input.shape)}")
    wide = accumulation_dtype(input.dtype)
    dtypes = {tensor.dtype for tensor in given.values()}
    if len(dtypes) > 1 or not dtypes <= {input.dtype, wide}:
        found = ", ".join(f"{tensor.dtype} for {parameter}" for parameter, tensor in given.items())
        allowed = f"{input.dtype}" if wide == input.dtype else f"{input.dtype}, or all {wide}"
        raise TypeError(f"{function}: {', '.join(given)} must all have the dtype {allowed}, as input, got {found}")


# The layers


class BatchNorm2d(torch.nn.Module):
    """`batch_norm` as a layer over `[batch, channels, height, width]`.

    Args:
        num_features: the number of channels.
        eps: added to the variance, so that a constant channel is not divided by 0.
        momentum: the share of a batch's statistics in the running ones; None averages all batches equally.
        affine: have a learnable `weight` and `bias`, initially 1 and 0.
        track_running_stats: keep running statistics for evaluation; otherwise evaluation uses the batch's own.
        device: the device of the tensors.
        dtype: their floating-point dtype.
        bias: False leaves out the `bias` of an affine layer.

    Attributes:
        weight: `[num_features]`, or None.
        bias: `[num_features]`, or None.
        running_mean: `[num_features]`, initially 0, or None.
        running_var: `[num_features]`, initially 1, or None.
        num_batches_tracked: number of batches in the running statistics, or None.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float | int = 1e-5,
        momentum: float | int | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        ones = torch.ones(num_features, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(ones) if affine else None
        self.bias = torch.nn.Parameter(torch.zeros_like(ones)) if affine and bias else None
        self.register_buffer("running_mean", torch.zeros_like(ones) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones_like(ones) if track_running_stats else None)
        count = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("num_batches_tracked", count if track_running_stats else None)

    def reset_running_stats(self) -> None:
        """Reset the running statistics."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Reset the running statistics and the parameters."""
        self.reset_running_stats()
        _reset(self.weight, self.bias)

    def forward(self, input: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        check_layout("BatchNorm2d: input", input, "[batch, channels, height, width]")
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                dtype = torch.promote_types(input.dtype, torch.float32)  # MPS has no float64
                momentum = 1 / self.num_batches_tracked.to(dtype)
        return batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            0.0 if momentum is None else momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class LayerNorm(torch.nn.Module):
    """`layer_norm` as a layer.

    Args:
        normalized_shape: the sizes of the last dimensions; a number n means (n,).
        eps: added to the variance, so that a constant sample is not divided by 0.
        elementwise_affine: have a learnable `weight` and `bias`, initially 1 and 0.
        bias: False leaves out the `bias` of an affine layer.
        device: the device of the tensors.
        dtype: their floating-point dtype.

    Attributes:
        weight: `[*normalized_shape]`, or None.
        bias: `[*normalized_shape]`, or None.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | int = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        ones = torch.ones(self.normalized_shape, device=device, dtype=dtype)
        self.weight = torch.nn.Parameter(ones) if elementwise_affine else None
        self.bias = torch.nn.Parameter(torch.zeros_like(ones)) if elementwise_affine and bias else None

    def reset_parameters(self) -> None:
        """Reset the parameters."""
        _reset(self.weight, self.bias)

    def forward(self, input: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


@torch.no_grad()
def _reset(weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None:
        weight.fill_(1)
    if bias is not None:
        bias.zero_()
