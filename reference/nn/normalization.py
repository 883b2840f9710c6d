"""Chapter 12, "other layers": normalization, which keeps the numbers inside a network at mean 0 and variance 1.

Both layers here compute (x - mean) / sqrt(variance + eps) · weight + bias. They differ in what the mean is taken over:
`BatchNorm2d` takes it for each channel over the batch and all positions, and remembers it for evaluation; `LayerNorm`
takes it for each sample over its last dimensions, in training and evaluation alike.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def batch_norm(
    input: Shaped[Tensor, "*shape"],
    running_mean: Shaped[Tensor, "..."] | None,
    running_var: Shaped[Tensor, "..."] | None,
    weight: Shaped[Tensor, "..."] | None = None,
    bias: Shaped[Tensor, "..."] | None = None,
    training: bool = False,
    momentum: float | int | Float[Tensor, ""] = 0.1,
    eps: float | int = 1e-5,
) -> Float[Tensor, "*shape"]:
    """output = (input - mean) / sqrt(var + eps) · weight + bias, for each channel.

    In training, mean and var = mean((input - mean)²) are taken over all dimensions but the channels, n numbers for each
    channel, and the running statistics take them in: running = (1 - momentum) · running + momentum · new, where the new
    variance is the unbiased one, var · n / (n - 1). In evaluation, mean and var are the running statistics.

    float16 and bfloat16 are computed in float32 and rounded once, at the end.

    Args:
        input: `[batch, channels, *positions]`.
        running_mean: `[channels]`, updated in place in training, needed in evaluation.
        running_var: `[channels]`, likewise.
        weight: `[channels]`; None is 1.
        bias: `[channels]`; None is 0.
        training: normalize by the statistics of `input`.
        momentum: how much of the new statistics the running ones take.
        eps: added to the variance, so that a constant channel does not divide by 0.

    Returns:
        The shape and dtype of `input`.

    Raises:
        ValueError: a shape does not fit, one running statistic is given without the other, neither is given in
            evaluation, a channel has a single value in training, or `eps` is negative, or in training 0.
        TypeError: `input` is not floating point, or the other tensors are not all of its dtype, or, if that is float16
            or bfloat16, all float32.
    """
    if input.dim() < 2:
        raise ValueError(f"batch_norm: input has shape {tuple(input.shape)}, but needs [batch, channels, *positions]")
    channels, n = input.shape[1], input[:, :1].numel()
    per_channel = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    _check_parameters("batch_norm", input, (channels,), per_channel)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var are needed both or neither, got only one of them")
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch_norm: eps is {eps}, but needs to be {'positive' if training else 'at least 0'}")
    if training and n == 1:
        raise ValueError(
            f"batch_norm: input {tuple(input.shape)} has 1 value per channel, but training needs at least 2"
        )

    x = input.to(_accumulation_dtype(input)).movedim(1, -1)
    if training:
        over = tuple(range(x.dim() - 1))
        mean = x.mean(over)
        deviation = x - mean
        var = deviation.square().mean(over)
        if running_mean is not None and running_var is not None and n > 0:
            _blend(running_mean, mean, momentum)
            _blend(running_var, var * (n / (n - 1)), momentum)
    elif running_mean is not None and running_var is not None:
        deviation, var = x - running_mean, running_var
    else:
        raise ValueError("batch_norm: running_mean and running_var are None, but evaluation needs them")
    y = _affine(deviation * (var.to(x.dtype) + eps).rsqrt(), weight, bias)
    return y.movedim(-1, 1).to(input.dtype)


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
        eps: added to the variance, so that a constant sample does not divide by 0.

    Returns:
        The shape and dtype of `input`.

    Raises:
        ValueError: `normalized_shape` is empty, or a shape does not fit.
        TypeError: `input` is not floating point, or the other tensors are not all of its dtype, or, if that is float16
            or bfloat16, all float32.
    """
    normalized_shape = tuple(normalized_shape)
    if not normalized_shape:
        raise ValueError("layer_norm: normalized_shape is empty, but needs at least one size")
    if input.shape[-len(normalized_shape) :] != normalized_shape:
        raise ValueError(
            f"layer_norm: input has shape {tuple(input.shape)}, but needs to end in normalized_shape {normalized_shape}"
        )
    _check_parameters("layer_norm", input, normalized_shape, {"weight": weight, "bias": bias})

    x = input.to(_accumulation_dtype(input))
    over = tuple(range(-len(normalized_shape), 0))
    deviation = x - x.mean(over, keepdim=True)
    var = deviation.square().mean(over, keepdim=True)
    return _affine(deviation * (var + eps).rsqrt(), weight, bias).to(input.dtype)


class BatchNorm2d(torch.nn.Module):
    """`batch_norm` as a layer over `[batch, channels, height, width]`.

    Args:
        num_features: the number of channels.
        eps: added to the variance, so that a constant channel does not divide by 0.
        momentum: how much of a batch's statistics the running ones take; None averages all batches equally.
        affine: have a learnable `weight` and `bias`, 1 and 0 at first.
        track_running_stats: have running statistics for evaluation; without them the batch's own are used there too.
        device: where the tensors live.
        dtype: their floating-point type.
        bias: False leaves out the `bias` of an affine layer.

    Attributes:
        weight: `[num_features]`, or None.
        bias: `[num_features]`, or None.
        running_mean: `[num_features]`, 0 at first, or None.
        running_var: `[num_features]`, 1 at first, or None.
        num_batches_tracked: how many batches the running statistics have taken in, or None.
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
        """Forget all batches."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Forget all batches and everything learned."""
        self.reset_running_stats()
        _reset(self.weight, self.bias)

    def forward(self, input: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if input.dim() != 4:
            raise ValueError(
                f"BatchNorm2d: input has shape {tuple(input.shape)}, but needs [batch, channels, height, width]"
            )
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / self.num_batches_tracked.double()
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
        eps: added to the variance, so that a constant sample does not divide by 0.
        elementwise_affine: have a learnable `weight` and `bias`, 1 and 0 at first.
        bias: False leaves out the `bias` of an affine layer.
        device: where the tensors live.
        dtype: their floating-point type.

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
        """Forget everything learned."""
        _reset(self.weight, self.bias)

    def forward(self, input: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


def _affine(
    x: Float[Tensor, "*shape"], weight: Float[Tensor, "..."] | None, bias: Float[Tensor, "..."] | None
) -> Float[Tensor, "*shape"]:
    """x · weight + bias, over the last dimensions."""
    y = x if weight is None else x * weight
    return y if bias is None else y + bias


@torch.no_grad()
def _blend(running: Tensor, new: Tensor, momentum: float | int | Tensor) -> None:
    running.copy_((1 - momentum) * running + momentum * new)


@torch.no_grad()
def _reset(weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None:
        weight.fill_(1)
    if bias is not None:
        bias.zero_()


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_parameters(name: str, input: Tensor, shape: tuple[int, ...], parameters: dict[str, Tensor | None]) -> None:
    """All that are given need `shape`, and the same dtype: that of `input`, or the one it is computed in."""
    if not input.is_floating_point():
        raise TypeError(f"{name}: input is {input.dtype}, but needs floating point")
    given = {parameter: tensor for parameter, tensor in parameters.items() if tensor is not None}
    for parameter, tensor in given.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name}: {parameter} has shape {tuple(tensor.shape)}, but input {tuple(input.shape)} needs {shape}"
            )
    dtypes = {tensor.dtype for tensor in given.values()}
    if len(dtypes) > 1 or not dtypes <= {input.dtype, _accumulation_dtype(input)}:
        found = ", ".join(f"{parameter} is {tensor.dtype}" for parameter, tensor in given.items())
        raise TypeError(f"{name}: {found}, but input {input.dtype} needs {_accumulation_dtype(input)} for all of them")
