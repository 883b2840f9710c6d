"""Chapter 12: the linear layer, and flattening before it.

Each definition (`linear_definition`, `flatten_definition`) is the formula; the public function of the same name checks
its arguments and computes the definition.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from reference.arguments import check_dim, check_integer, check_layout, check_tensor, check_together, under_autocast
from reference.nn.initialization import fan_in, kaiming_uniform_, uniform_

# The definitions


def linear_definition(
    input: Shaped[Tensor, "*leading features"],
    weight: Shaped[Tensor, "..."],
    bias: Shaped[Tensor, "..."] | None,
) -> Shaped[Tensor, "..."]:
    """output[…, o] = Σ_i input[…, i] · weight[o, i] + bias[o]."""
    # not named `output`, because this name would hide the node output.1 of TensorBoard's graph
    products = input @ weight.T if weight.dim() == 2 else input @ weight
    return products if bias is None else products + bias


def flatten_definition(input: Shaped[Tensor, "..."], start_dim: int, end_dim: int) -> Shaped[Tensor, "..."]:
    """Merge the dimensions `start_dim` to `end_dim`: output[…, i · columns + j, …] = input[…, i, j, …], and so on."""
    shape = input.shape or torch.Size([1])
    start, end = start_dim % len(shape), end_dim % len(shape)
    return input.reshape(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


# The public functions and their layers


def linear(
    input: Shaped[Tensor, "..."], weight: Shaped[Tensor, "..."], bias: Shaped[Tensor, "..."] | None = None
) -> Shaped[Tensor, "..."]:
    """input · weightᵀ + bias: each output is a weighted sum of the inputs.

    Args:
        input: `[..., in_features]`.
        weight: `[out_features, in_features]`, or `[in_features]` for a single output without an output dimension.
        bias: `[out_features]`, or any shape that broadcasts to that of the output.

    Returns:
        `[..., out_features]`.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: tensors of different dtypes, or not of numbers.
    """
    input, weight, bias = under_autocast(input, weight, bias)
    check_together("linear", input=input, weight=weight, bias=bias)
    check_layout("linear: input", input, "[*leading, in_features]", "[in_features]")
    check_layout("linear: weight", weight, "[out_features, in_features]", "[in_features]")
    features, needed = input.shape[-1], weight.shape[-1]
    if features != needed:
        raise ValueError(f"linear: input has {features} features, but weight {tuple(weight.shape)} needs {needed}")
    if bias is not None:
        shape = (*input.shape[:-1], *weight.shape[:-1])
        sizes = zip(reversed(bias.shape), reversed(shape), strict=False)
        if bias.dim() > len(shape) or any(size not in (1, full) for size, full in sizes):
            raise ValueError(f"linear: bias must broadcast to the output, {shape}, got the shape {tuple(bias.shape)}")
    return linear_definition(input, weight, bias)


class Linear(nn.Module):
    """A linear layer with its own weight and bias: `linear(input, self.weight, self.bias)`.

    Both start from U(-1/sqrt(in_features), 1/sqrt(in_features)).

    Args:
        in_features: the size of the input's last dimension.
        out_features: the size of the output's last dimension.
        bias: whether the layer has a bias.
        device: the device of the parameters.
        dtype: their dtype.

    Raises:
        ValueError: a size is negative.
        TypeError: a size is not an integer.
    """

    weight: Float[Tensor, "out_features in_features"]
    bias: Float[Tensor, "out_features"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool | None = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            check_integer(f"Linear: {name}", size, at_least=0)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters, the weight first."""
        kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            inputs = fan_in(self.weight)
            uniform_(self.bias, 1 / math.sqrt(inputs) if inputs else 0.0)

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The outputs `[..., out_features]` for `input`, `[..., in_features]`."""
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def flatten(input: Shaped[Tensor, "..."], start_dim: int = 0, end_dim: int = -1) -> Shaped[Tensor, "..."]:
    """Flatten the dimensions `start_dim` to `end_dim` into one, in reading order: the last of them varies fastest.

    Args:
        input: any shape; without dimensions it becomes `[1]`.
        start_dim: the first of the dimensions, negative ones count from the end.
        end_dim: the last of them, included.

    Returns:
        The same numbers, as a view if the strides allow it.

    Raises:
        ValueError: a dimension that `input` does not have, or `start_dim` after `end_dim`.
        TypeError: `input` is not a tensor, or a dimension not an integer.
    """
    check_tensor("flatten: input", input)
    start = check_dim("flatten: start_dim", start_dim, input)
    end = check_dim("flatten: end_dim", end_dim, input)
    if start > end:
        shape = tuple(input.shape)
        raise ValueError(f"flatten: start_dim must not come after end_dim={end_dim} in {shape}, got {start_dim}")
    return input if start == end and input.dim() > 0 else flatten_definition(input, start, end)


class Flatten(nn.Module):
    """`flatten` as a layer; by default it keeps the batch dimension: `[batch, 64, 4, 4]` becomes `[batch, 1024]`.

    Args:
        start_dim: the first dimension to flatten.
        end_dim: the last one, included.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return `input`, flattened."""
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The arguments shown in `repr`."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
