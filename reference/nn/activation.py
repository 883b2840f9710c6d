"""Chapter 11: activations, the non-linear functions between the layers, without which a network would be one linear
map.

Half precision is computed in float32 and rounded once.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from reference.nn.autograd import Function


def relu(input: Shaped[Tensor, "..."], inplace: bool = False) -> Shaped[Tensor, "..."]:
    """max(0, x), with the derivative 1 for x > 0 and 0 for x ≤ 0.

    Args:
        input: numbers of any shape; NaN stays NaN.
        inplace: write the result into `input` and return that.

    Returns:
        The shape and dtype of `input`.

    Raises:
        TypeError: `input` is not a tensor of real numbers.
    """
    _check_tensor("relu", input)
    if input.dtype == torch.bool or input.is_complex():
        raise TypeError(f"relu: input must be real numbers, got {input.dtype}")
    return _result(_Positive.apply(input), input, inplace)


def leaky_relu(
    input: Shaped[Tensor, "..."], negative_slope: float | int = 0.01, inplace: bool = False
) -> Shaped[Tensor, "..."]:
    """x for x > 0, negative_slope · x for x ≤ 0.

    Args:
        input: floating-point numbers of any shape.
        negative_slope: the derivative for x ≤ 0.
        inplace: write the result into `input` and return that.

    Returns:
        The shape and dtype of `input`.

    Raises:
        TypeError: `input` is not a floating-point tensor, or `negative_slope` not a number.
    """
    _check_floating("leaky_relu", input)
    if not isinstance(negative_slope, (int, float)):
        raise TypeError(f"leaky_relu: negative_slope must be a number, got {negative_slope!r}")
    positive = torch.gt(input.detach(), 0, out=torch.empty_like(input))  # 1 or 0
    return _result(input * (1 - positive).mul_(negative_slope).add_(positive), input, inplace)


def sigmoid(input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """1 / (1 + exp(−x)), between 0 and 1; with y the result, the derivative is y · (1 − y).

    Args:
        input: real numbers of any shape; integers are taken as floats of the default dtype.

    Returns:
        The shape of `input`.

    Raises:
        TypeError: `input` is not a tensor of real numbers.
    """
    return _Sigmoid.apply(_as_floating("sigmoid", input))  # pyright: ignore[reportReturnType]


def tanh(input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """(exp(x) − exp(−x)) / (exp(x) + exp(−x)), between −1 and 1; with y the result, the derivative is 1 − y².

    Args:
        input: real numbers of any shape; integers are taken as floats of the default dtype.

    Returns:
        The shape of `input`.

    Raises:
        TypeError: `input` is not a tensor of real numbers.
    """
    return _Tanh.apply(_as_floating("tanh", input))  # pyright: ignore[reportReturnType]


def softmax(
    input: Shaped[Tensor, "..."], dim: int | None = None, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "..."]:
    """exp(x_i) / Σ_j exp(x_j) along `dim`: positive numbers that add up to 1.

    The largest x is subtracted from all first, which changes nothing but keeps exp from overflowing.

    Args:
        input: floating-point numbers of any shape.
        dim: the dimension along which the results add up to 1. `None` is deprecated: 0 for inputs of 0, 1 or 3
            dimensions, else 1.
        dtype: what `input` is converted to first, and the result's dtype.

    Returns:
        The shape of `input`.

    Raises:
        ValueError: `input` does not have the dimension.
        TypeError: `input` or `dtype` is not floating-point, or `dim` not an integer.
    """
    return _Softmax.apply(*_along("softmax", input, dim, dtype))  # pyright: ignore[reportReturnType]


def log_softmax(
    input: Shaped[Tensor, "..."], dim: int | None = None, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "..."]:
    """x_i − log Σ_j exp(x_j) along `dim`: the logarithm of `softmax`, exact also where that is 0.

    The largest x is subtracted from all first, which changes nothing but keeps exp from overflowing.

    Args:
        input: floating-point numbers of any shape.
        dim: see `softmax`.
        dtype: what `input` is converted to first, and the result's dtype.

    Returns:
        The shape of `input`.

    Raises:
        ValueError: `input` does not have the dimension.
        TypeError: `input` or `dtype` is not floating-point, or `dim` not an integer.
    """
    return _LogSoftmax.apply(*_along("log_softmax", input, dim, dtype))  # pyright: ignore[reportReturnType]


class ReLU(nn.Module):
    """`relu` as a layer.

    Args:
        inplace: write the result into the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """max(0, input)."""
        return relu(input, self.inplace)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return "inplace=True" if self.inplace else ""


class LeakyReLU(nn.Module):
    """`leaky_relu` as a layer.

    Args:
        negative_slope: the derivative for x ≤ 0.
        inplace: write the result into the input.
    """

    def __init__(self, negative_slope: float | int = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """`input`, where it is positive; else `negative_slope` · `input`."""
        return leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return f"negative_slope={self.negative_slope}" + (", inplace=True" if self.inplace else "")


class Sigmoid(nn.Module):
    """`sigmoid` as a layer."""

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """1 / (1 + exp(−input))."""
        return sigmoid(input)


class Tanh(nn.Module):
    """`tanh` as a layer."""

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The hyperbolic tangent of `input`."""
        return tanh(input)


class Softmax(nn.Module):
    """`softmax` as a layer.

    Args:
        dim: the dimension along which the results add up to 1; `None` is deprecated (see `softmax`).

    Raises:
        TypeError: `dim` is not an integer.
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = _check_dim("Softmax", dim)

    def forward(self, input: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The softmax of `input` along `dim`."""
        return softmax(input, self.dim)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return f"dim={self.dim}"


class LogSoftmax(nn.Module):
    """`log_softmax` as a layer.

    Args:
        dim: the dimension along which the probabilities add up to 1; `None` is deprecated (see `softmax`).

    Raises:
        TypeError: `dim` is not an integer.
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = _check_dim("LogSoftmax", dim)

    def forward(self, input: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The log-softmax of `input` along `dim`."""
        return log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return f"dim={self.dim}"


class _Positive(Function):
    """max(0, x); the derivative at 0 is 0, where that of `clamp` would be 1."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return _Kept.apply(*grads, output)  # pyright: ignore[reportReturnType]


class _Kept(Function):
    """`grad` where `output` is not 0, else 0, whatever `grad` is there; so it is its own derivative.

    It is `grad.masked_fill(output <= 0, 0)`, ten times as fast: the bits of a number, taken for an integer, are
    multiplied by 1 or 0. (NaN times 0 would be NaN; any integer times 0 is 0.)
    """

    @staticmethod
    def forward(grad: Tensor, output: Tensor) -> Tensor:
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[grad.element_size()]
        kept = torch.ne(output, 0, out=torch.empty_like(output, dtype=bits))  # 1 or 0
        return kept.mul_(grad.view(bits)).view(grad.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _Kept.apply(*grads, *ctx.saved_tensors), None


class _Sigmoid(Function):
    """y = 1 / (1 + exp(−x)); its derivative in terms of y stays finite where exp(−x) does not."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return ((-_wide(input)).exp_().add_(1)).reciprocal_().to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,), (y,) = grads, ctx.saved_tensors
        return torch.addcmul(y, y, y, value=-1).mul_(grad)  # y − y · y


class _Tanh(Function):
    """y = tanh x. With t = exp(u) − 1, u = −2|x|, it is −t / (t + 2) with x's sign.

    t is computed as u · (exp(u) − 1) / log(exp(u)): the rounding of exp(u), of which the difference from 1 is lost
    where x is small, is in both and cancels. (W. Kahan's; see Higham, Accuracy and Stability of Numerical Algorithms,
    section 1.14.1. `expm1` is the same, and several times as slow in PyTorch where there is AVX-512.) Where exp(u) is
    1, `TINY`, which changes no other number, makes the quotient 1; beyond u = −40 t is −1.
    """

    TINY = 2.0**-120

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        x = _wide(input)
        u = x.abs().mul_(-2).clamp_(min=-40)
        t = u.exp()
        logarithm = t.log().sub_(_Tanh.TINY)
        t.sub_(1).sub_(_Tanh.TINY).div_(logarithm).mul_(u)
        return t.div_(torch.add(t, 2, out=u)).copysign_(x).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,), (y,) = grads, ctx.saved_tensors
        return (y * y).neg_().add_(1).mul_(grad)


class _Softmax(Function):
    """y = exp(x − m) / Σ exp(x − m), m = max x; the gradient is y · (g − Σ g · y)."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        exponentials = _shifted(input, dim).exp_()
        return (exponentials / exponentials.sum(dim, keepdim=True)).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (y,) = ctx.saved_tensors
        grad, y = _wide(grads[0]), _wide(y)
        return (y * (grad - (grad * y).sum(ctx.dim, keepdim=True))).to(grads[0].dtype), None


class _LogSoftmax(Function):
    """y = x − m − log Σ exp(x − m), m = max x; the gradient is g − exp(y) · Σ g."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        shifted = _shifted(input, dim)
        return (shifted - shifted.exp().sum(dim, keepdim=True).log_()).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (y,) = ctx.saved_tensors
        grad, y = _wide(grads[0]), _wide(y)
        return (grad - y.exp() * grad.sum(ctx.dim, keepdim=True)).to(grads[0].dtype), None


def _shifted(input: Tensor, dim: int) -> Tensor:
    """`input` minus its maximum along `dim`, a new tensor."""
    x = _wide(input)
    return x - x.amax(dim, keepdim=True) if x.numel() else x.clone()


def _wide(input: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def _result(output: Any, input: Tensor, inplace: bool) -> Tensor:
    """`output`, written into `input` if wanted."""
    return input.copy_(output) if inplace else output


def _along(name: str, input: Tensor, dim: int | None, dtype: torch.dtype | None) -> tuple[Tensor, int]:
    """The input as the wanted floating-point dtype, and the dimension."""
    _check_tensor(name, input)
    if dim is None:
        warnings.warn(f"{name}: leaving out dim is deprecated; say along which dimension", stacklevel=4)
        dim = 0 if input.dim() in (0, 1, 3) else 1
    _check_dim(name, dim)
    dims = max(1, input.dim())
    if not -dims <= dim < dims:
        raise ValueError(f"{name}: dim must be from {-dims} to {dims - 1} for input {tuple(input.shape)}, got {dim}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{name}: dtype must be a floating-point torch.dtype, got {dtype!r}")
    converted = input if dtype is None else input.to(dtype)
    _check_floating(name, converted)
    return converted, dim


def _as_floating(name: str, input: Tensor) -> Tensor:
    """`input`, integers as floats."""
    _check_tensor(name, input)
    if input.is_complex():
        raise TypeError(f"{name}: input must be real numbers, got {input.dtype}")
    return input if input.is_floating_point() else input.to(torch.get_default_dtype())


def _check_dim(name: str, dim: Any) -> int | None:
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool)):
        raise TypeError(f"{name}: dim must be an integer, got {dim!r}")
    return dim


def _check_floating(name: str, input: Tensor) -> None:
    _check_tensor(name, input)
    if not input.is_floating_point():
        raise TypeError(f"{name}: input must be floating-point, got {input.dtype}")


def _check_tensor(name: str, input: Any) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input must be a tensor, got {type(input).__name__}")
