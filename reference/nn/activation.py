"""Chapter 11: activations, the non-linear functions between the layers, without which a network would be one linear
map.

Each definition (`relu_definition`, …) is the formula, for floating-point numbers; autograd differentiates it. The
public function of the same name checks its arguments and computes the definition: half precision in float32, rounded
once.
"""

import warnings

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from reference.arguments import (
    accumulation_dtype,
    check_dim,
    check_floating,
    check_integer,
    check_number,
    check_real,
    check_result_dtype,
    check_tensor,
)

# The definitions


def relu_definition(input: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """max(0, x), with the derivative 1 for x > 0 and 0 for x ≤ 0. NaN is not ≤ 0, so it is returned unchanged."""
    return torch.where(input <= 0, 0, input)


def leaky_relu_definition(input: Float[Tensor, "*shape"], negative_slope: float | int) -> Float[Tensor, "*shape"]:
    """x for x > 0, negative_slope · x for x ≤ 0: x times the slope of its side."""
    positive = (input > 0).to(input.dtype)  # 1 or 0
    return input * (positive + negative_slope * (1 - positive))


def sigmoid_definition(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 / (1 + exp(−x)) for x ≥ 0, and the same as exp(x) / (1 + exp(x)) for x < 0: exp(−|x|) never overflows."""
    positive = input >= 0
    exponential = torch.where(positive, -input, input).exp()
    return torch.where(positive, 1, exponential) / (1 + exponential)


def tanh_definition(input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(exp(x) − exp(−x)) / (exp(x) + exp(−x)) = (exp(2x) − 1) / (exp(2x) + 1) for x < 0, and −tanh(−x) for x ≥ 0.

    exp(−2|x|) never overflows, and `expm1` is exp − 1 without the loss of digits of a subtraction for small x.
    """
    positive = input >= 0
    less_one = torch.where(positive, -2 * input, 2 * input).expm1()
    ratio = less_one / (less_one + 2)
    return torch.where(positive, -ratio, ratio)


def softmax_definition(input: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """exp(x_i) / Σ_j exp(x_j) along `dim`.

    The largest x is subtracted from all of them first. That changes neither the result nor the derivative, so autograd
    need not follow it; and exp does not overflow.
    """
    exponentials = (input - input.detach().amax(dim, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim, keepdim=True)


def log_softmax_definition(input: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """x_i − log Σ_j exp(x_j) along `dim`, with the largest x subtracted first, as for `softmax`."""
    shifted = input - input.detach().amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


# The public functions


def relu(input: Shaped[Tensor, "..."], inplace: bool = False) -> Shaped[Tensor, "..."]:
    """max(0, x), with the derivative 1 for x > 0 and 0 for x ≤ 0.

    Args:
        input: real numbers of any shape; NaN stays NaN.
        inplace: write the result into `input` and return that.

    Returns:
        The shape and dtype of `input`.

    Raises:
        TypeError: `input` is not a tensor of real numbers.
    """
    output = relu_definition(check_real("relu: input", input))
    return input.copy_(output) if inplace else output


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
    check_floating("leaky_relu: input", input)
    check_number("leaky_relu: negative_slope", negative_slope)
    output = leaky_relu_definition(_wide(input), negative_slope).to(input.dtype)
    return input.copy_(output) if inplace else output


def sigmoid(input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """1 / (1 + exp(−x)), between 0 and 1.

    Args:
        input: real numbers of any shape; integers are converted to the default dtype.

    Returns:
        The shape of `input`.

    Raises:
        TypeError: `input` is not a tensor of real numbers.
    """
    x = _as_floating("sigmoid: input", input)
    return sigmoid_definition(_wide(x)).to(x.dtype)


def tanh(input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """(exp(x) − exp(−x)) / (exp(x) + exp(−x)), between −1 and 1.

    Args:
        input: real numbers of any shape; integers are converted to the default dtype.

    Returns:
        The shape of `input`.

    Raises:
        TypeError: `input` is not a tensor of real numbers.
    """
    x = _as_floating("tanh: input", input)
    return tanh_definition(_wide(x)).to(x.dtype)


def softmax(
    input: Shaped[Tensor, "..."], dim: int | None = None, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "..."]:
    """exp(x_i) / Σ_j exp(x_j) along `dim`: positive numbers that add up to 1.

    Args:
        input: floating-point numbers of any shape.
        dim: the dimension along which the results add up to 1. `None` is deprecated: 0 for inputs of 0, 1 or 3
            dimensions, else 1.
        dtype: the dtype that `input` is converted to first, and the result's dtype.

    Returns:
        The shape of `input`.

    Raises:
        ValueError: `input` does not have the dimension.
        TypeError: `input` or `dtype` is not floating-point, or `dim` not an integer.
    """
    x, dim = _along("softmax", input, dim, dtype)
    return softmax_definition(_wide(x), dim).to(x.dtype) if x.numel() else x.clone()


def log_softmax(
    input: Shaped[Tensor, "..."], dim: int | None = None, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "..."]:
    """x_i − log Σ_j exp(x_j) along `dim`: the logarithm of `softmax`, exact also where the softmax is 0.

    Args:
        input: floating-point numbers of any shape.
        dim: see `softmax`.
        dtype: the dtype that `input` is converted to first, and the result's dtype.

    Returns:
        The shape of `input`.

    Raises:
        ValueError: `input` does not have the dimension.
        TypeError: `input` or `dtype` is not floating-point, or `dim` not an integer.
    """
    x, dim = _along("log_softmax", input, dim, dtype)
    return log_softmax_definition(_wide(x), dim).to(x.dtype) if x.numel() else x.clone()


def _wide(input: Tensor) -> Tensor:
    """Convert half precision to float32; return any other dtype unchanged."""
    return input.to(accumulation_dtype(input.dtype))


def _as_floating(name: str, input: Tensor) -> Tensor:
    """Real numbers, with integers converted to the default dtype."""
    check_real(name, input, bool_too=True)
    return input if input.is_floating_point() else input.to(torch.get_default_dtype())


def _along(function: str, input: Tensor, dim: int | None, dtype: torch.dtype | None) -> tuple[Tensor, int]:
    """The input in the requested dtype, and the dimension counted from the front."""
    check_tensor(f"{function}: input", input)
    if dim is None:
        warnings.warn(f"{function}: leaving out dim is deprecated; say along which dimension", stacklevel=4)
        dim = 0 if input.dim() in (0, 1, 3) else 1
    dim = check_dim(f"{function}: dim", dim, input)
    check_result_dtype(f"{function}: dtype", dtype)
    return check_floating(f"{function}: input", input if dtype is None else input.to(dtype)), dim


# The layers


class ReLU(nn.Module):
    """`relu` as a layer.

    Args:
        inplace: write the result into the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return max(0, input)."""
        return relu(input, self.inplace)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
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
        """The arguments shown in `repr`."""
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
        self.dim = None if dim is None else check_integer("Softmax: dim", dim)

    def forward(self, input: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The softmax of `input` along `dim`."""
        return softmax(input, self.dim)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
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
        self.dim = None if dim is None else check_integer("LogSoftmax: dim", dim)

    def forward(self, input: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The log-softmax of `input` along `dim`."""
        return log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
        return f"dim={self.dim}"
