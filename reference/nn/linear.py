"""Chapter 12: the linear layer, and flattening before it."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from reference.nn.initialization import fan_in, kaiming_uniform_, uniform_


def linear(
    input: Shaped[Tensor, "..."], weight: Shaped[Tensor, "..."], bias: Shaped[Tensor, "..."] | None = None
) -> Shaped[Tensor, "..."]:
    """input · weightᵀ + bias: each output is a weighted sum of the inputs.

    Args:
        input: `[..., in_features]`.
        weight: `[out_features, in_features]`, or `[in_features]` for a single output without a dimension of its own.
        bias: `[out_features]`, or any shape that broadcasts to that of the output.

    Returns:
        `[..., out_features]`.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: tensors of different dtypes, or not of numbers.
    """
    _check_tensors(input, weight, bias)
    # not `output`: the graph that TensorBoard draws has a node output.1 of its own, which the name would hide
    products = input @ weight.T if weight.dim() == 2 else input @ weight
    if bias is None:
        return products
    try:
        fits = torch.broadcast_shapes(products.shape, bias.shape) == products.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"linear: bias {tuple(bias.shape)} does not fit the output {tuple(products.shape)}")
    return products + bias


class Linear(nn.Module):
    """A linear layer with its own weight and bias: `linear(input, self.weight, self.bias)`.

    Both start from U(-1/sqrt(in_features), 1/sqrt(in_features)).

    Args:
        in_features: the size of the input's last dimension.
        out_features: the size of the output's last dimension.
        bias: whether the layer has a bias.
        device: where the parameters are.
        dtype: their type.

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
            if not isinstance(size, int):
                raise TypeError(f"Linear: {name} must be an integer, got {size!r}")
            if size < 0:
                raise ValueError(f"Linear: {name} must not be negative, got {size}")
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
        """What stands between the parentheses of the printed layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def flatten(input: Shaped[Tensor, "..."], start_dim: int = 0, end_dim: int = -1) -> Shaped[Tensor, "..."]:
    """Make the dimensions `start_dim` to `end_dim` one, in reading order: the last of them varies fastest.

    Args:
        input: any shape; without dimensions it becomes `[1]`.
        start_dim: the first of the dimensions, negative ones count from the end.
        end_dim: the last of them, included.

    Returns:
        The same numbers, as a view where the strides allow it.

    Raises:
        ValueError: a dimension that `input` does not have, or `start_dim` after `end_dim`.
        TypeError: `input` is not a tensor, or a dimension not an integer.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"flatten: input must be a tensor, got {type(input).__name__}")
    start = _dimension("start_dim", start_dim, input)
    end = _dimension("end_dim", end_dim, input)
    if start > end:
        raise ValueError(f"flatten: start_dim={start_dim} comes after end_dim={end_dim} in {tuple(input.shape)}")
    if start == end and input.dim() > 0:
        return input
    shape = tuple(input.shape)
    return input.reshape(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


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
        """`input`, flattened."""
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """What stands between the parentheses of the printed layer."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


def _dimension(name: str, dim: int, input: Tensor) -> int:
    """`dim` counted from the front."""
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"flatten: {name} must be an integer, got {dim!r}")
    dims = max(1, input.dim())
    if not -dims <= dim < dims:
        raise ValueError(f"flatten: {name} must be from {-dims} to {dims - 1} for {tuple(input.shape)}, got {dim}")
    return dim % dims


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise if the tensors do not fit each other."""
    given = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"linear: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != input.dtype or tensor.dtype == torch.bool:
            raise TypeError(
                f"linear: {name} is {tensor.dtype} and input is {input.dtype}; all tensors need one dtype, of numbers"
            )
        if tensor.device != input.device:
            raise ValueError(f"linear: {name} is on {tensor.device}, but input is on {input.device}")
    if input.dim() == 0 or weight.dim() not in (1, 2):
        raise ValueError(
            "linear: input must be [..., in_features] and weight [out_features, in_features], "
            f"got {tuple(input.shape)} and {tuple(weight.shape)}"
        )
    if input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: input has {input.shape[-1]} features, but weight {tuple(weight.shape)} needs {weight.shape[-1]}"
        )
