"""Argument checks that all components share: one calling convention and one wording of the errors.

Every check has the same form: `check_…(name, value, …)`, where `name` is "function: argument". It returns the value,
converted to its normal form, or raises an error that names the argument, the requirement and the value received:

    conv2d: stride must be at least 1, got 0

`TypeError` is raised for a value of the wrong type and for a tensor of the wrong dtype, `ValueError` for a wrong
number, shape or device. Checks that relate two arguments of one component (the channels of an input and of its kernels)
are in the file of the component, with the same wording.

The module does no computation and depends only on PyTorch's types.
"""

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
"""(vertical, horizontal)"""

REDUCTIONS = ("mean", "sum", "none")
"""The reductions of a loss."""


# Tensors


def check_tensor(name: str, value: Any) -> Tensor:
    """Return `value`, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    return value


def check_floating(name: str, value: Any) -> Tensor:
    """Return `value`, which must be a tensor of a floating-point dtype."""
    if not check_tensor(name, value).is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {value.dtype}")
    return value


def check_real(name: str, value: Any, *, bool_too: bool = False) -> Tensor:
    """Return `value`, which must be a tensor of real numbers; Boolean tensors are allowed with `bool_too` only."""
    if check_tensor(name, value).is_complex() or (value.dtype == torch.bool and not bool_too):
        raise TypeError(f"{name} must be real numbers, got {value.dtype}")
    return value


def check_dtype(name: str, value: Any, *dtypes: torch.dtype, of: str = "") -> Tensor:
    """Return `value`, which must be a tensor of one of `dtypes`; the error names the origin of the dtypes, `of`."""
    if check_tensor(name, value).dtype not in dtypes:
        raise TypeError(f"{name} must have the dtype {_alternatives(dtypes)}{of and f' of {of}'}, got {value.dtype}")
    return value


def check_together(function: str, **tensors: Tensor | None) -> None:
    """Check tensors that are combined in one computation: all must have the dtype and device of the first.

    Args:
        function: the component, for the errors.
        **tensors: the tensors under their argument's name; `None` for an omitted argument.
    """
    (first, leader), *_ = tensors.items()
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        name = f"{function}: {argument}"
        dtype = check_tensor(name, tensor).dtype
        if dtype == torch.bool:
            raise TypeError(f"{name} must be numbers, got the dtype {dtype}")
        if tensor is not leader and leader is not None:
            check_dtype(name, tensor, leader.dtype, of=first)
            check_device(name, tensor, leader, of=first)


def check_device(name: str, value: Tensor, like: Tensor, *, of: str) -> Tensor:
    """Return `value`, which must be on the device of the tensor `like`; the error calls that tensor `of`."""
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of {of}, {like.device}, got {value.device}")
    return value


def check_shape(name: str, value: Any, shape: Sequence[int], *, of: str = "") -> Tensor:
    """Return `value`, which must be a tensor of exactly this shape; the error names the origin of the shape, `of`."""
    if check_tensor(name, value).shape != torch.Size(shape):
        reason = of and f" for {of}"
        raise ValueError(f"{name} must have the shape {tuple(shape)}{reason}, got {tuple(value.shape)}")
    return value


def check_layout(name: str, value: Any, *layouts: str) -> Tensor:
    """Return `value`, which must be a tensor with the dimensions of one of the layouts.

    Args:
        name: the function and the argument, for the errors.
        value: the value of the argument.
        *layouts: names of dimensions as in "[batch, channels, height, width]"; one that begins with `*` stands for any
            number of dimensions.
    """
    dims = check_tensor(name, value).dim()
    for layout in layouts:
        named = layout.strip("[]").split(", ") if layout != "[]" else []
        single = [dim for dim in named if not dim.startswith("*")]
        if dims == len(single) or (len(single) < len(named) and dims > len(single)):
            return value
    raise ValueError(f"{name} must be {_alternatives(layouts)}, got the shape {tuple(value.shape)}")


# Numbers, flags and strings


def check_integer(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return `value`, which must be an integer within the limits; a `bool` is not an integer here.

    A symbolic size of `torch.export` (`torch.SymInt`) is returned unchanged.
    """
    if isinstance(value, bool) or not (isinstance(value, int | torch.SymInt) or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = value if isinstance(value, int | torch.SymInt) else operator.index(value)
    _check_limits(name, number, at_least, at_most)
    return number  # pyright: ignore[reportReturnType]  a SymInt is used as an int


def check_number(
    name: str, value: Any, at_least: float | int | None = None, at_most: float | int | None = None
) -> float | int:
    """Return `value`, which must be a real number within the limits; NaN is never within limits."""
    if isinstance(value, str | Tensor) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    _check_limits(name, value, at_least, at_most)
    return value


def check_probability(name: str, value: Any) -> float | int:
    """Return `value`, which must be a probability, a number from 0 to 1."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability from 0 to 1, got {value}")
    return value


def check_pair(name: str, value: Any, at_least: int | None = None) -> Pair:
    """Return `value`, an integer or a sequence of one or two integers, as (vertical, horizontal)."""
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(numbers) not in (1, 2):
        raise ValueError(f"{name} must be an integer or a pair (vertical, horizontal), got {value!r}")
    if any(isinstance(number, bool) or not hasattr(number, "__index__") for number in numbers):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    checked = tuple(check_integer(name, number, at_least) for number in numbers)
    return checked[0], checked[-1]


def check_dim(name: str, value: Any, input: Tensor) -> int:
    """Return a dimension of `input`, counted from the front; a 0-dimensional tensor is treated as one-dimensional."""
    dims = max(1, input.dim())
    dim = check_integer(name, value)
    if not -dims <= dim < dims:
        shape = tuple(input.shape)
        raise ValueError(f"{name} must be from {-dims} to {dims - 1} for input of shape {shape}, got {value}")
    return dim % dims


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return `value`, which must be one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {_alternatives([repr(choice) for choice in choices])}, got {value!r}")
    return value


def check_reduction(name: str, value: Any) -> str:
    """Return `value`, which must be "mean", "sum" or "none"."""
    return check_choice(name, value, REDUCTIONS)


def check_flag(name: str, value: Any) -> bool:
    """Return `value`, which must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_result_dtype(name: str, value: Any) -> torch.dtype | None:
    """Return `value`, which must be a floating-point dtype, or `None`."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"{name} must be a floating-point torch.dtype, got {value!r}")
    return value


# Accumulation dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are accumulated: float32 for half precision, otherwise `dtype` itself.

    Half precision is computed in float32 and rounded to its own dtype once, at the end.
    """
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point or dtype.is_complex else dtype


def under_autocast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments, their tensors in the dtype that autocast sets for convolutions and matrix products.

    Without autocast they are returned unchanged; float64 and integer tensors always are.
    """
    device = next((tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)), "meta")
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        else tensor
        for tensor in tensors
    )


def _check_limits(name: str, value: Any, at_least: float | int | None, at_most: float | int | None) -> None:
    if (at_least is None or value >= at_least) and (at_most is None or value <= at_most):
        return
    if at_most is None or at_most == math.inf:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    if at_least is None or at_least == -math.inf:
        raise ValueError(f"{name} must be at most {at_most}, got {value}")
    raise ValueError(f"{name} must be from {at_least} to {at_most}, got {value}")


def _alternatives(choices: Collection[Any]) -> str:
    """ "a, b or c"."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last
