"""Argument checks, once for all components: one way to call them, one set of words.

Every check has the same form: `check_…(name, value, …)`, where `name` is "function: argument". It returns the value,
brought into its normal form, or raises an error that names the argument, what it must be, and what was passed:

    conv2d: stride must be at least 1, got 0

`TypeError` is raised for a value of the wrong type and for a tensor of the wrong dtype, `ValueError` for a wrong
number, shape or device. What relates two arguments of one component (the channels of an input and of its kernels)
stays with the component, in the same words.

The module computes nothing and depends on nothing but PyTorch's types.
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
"""What a loss makes of the losses of its elements."""


# Tensors


def check_tensor(name: str, value: Any) -> Tensor:
    """`value`, which must be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    return value


def check_floating(name: str, value: Any) -> Tensor:
    """`value`, which must be a tensor of a floating-point dtype."""
    if not check_tensor(name, value).is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {value.dtype}")
    return value


def check_real(name: str, value: Any, *, bool_too: bool = False) -> Tensor:
    """`value`, which must be a tensor of real numbers; of truth values only with `bool_too`."""
    if check_tensor(name, value).is_complex() or (value.dtype == torch.bool and not bool_too):
        raise TypeError(f"{name} must be real numbers, got {value.dtype}")
    return value


def check_dtype(name: str, value: Any, *dtypes: torch.dtype, of: str = "") -> Tensor:
    """`value`, which must be a tensor of one of `dtypes`; `of` says in the error where these come from."""
    if check_tensor(name, value).dtype not in dtypes:
        raise TypeError(f"{name} must have the dtype {_alternatives(dtypes)}{of and f' of {of}'}, got {value.dtype}")
    return value


def check_together(function: str, **tensors: Tensor | None) -> None:
    """Tensors that are computed with each other: numbers of one dtype on one device, those of the first.

    Args:
        function: the component, for the errors.
        **tensors: the tensors under their argument's name; `None` for what was left out.
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
    """`value`, which must be on the device of the tensor `like`, which is called `of`."""
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of {of}, {like.device}, got {value.device}")
    return value


def check_shape(name: str, value: Any, shape: Sequence[int], *, of: str = "") -> Tensor:
    """`value`, which must be a tensor of exactly this shape; `of` says in the error what it follows from."""
    if check_tensor(name, value).shape != torch.Size(shape):
        reason = of and f" for {of}"
        raise ValueError(f"{name} must have the shape {tuple(shape)}{reason}, got {tuple(value.shape)}")
    return value


def check_layout(name: str, value: Any, *layouts: str) -> Tensor:
    """`value`, which must be a tensor with the dimensions of one of the layouts.

    Args:
        name: the function and the argument, for the errors.
        value: what was passed.
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


# Numbers, flags and words


def check_integer(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """`value`, which must be an integer between two others; a `bool` is none.

    A size that `torch.export` keeps open (`torch.SymInt`) is returned as it is.
    """
    if isinstance(value, bool) or not (isinstance(value, int | torch.SymInt) or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = value if isinstance(value, int | torch.SymInt) else operator.index(value)
    _check_limits(name, number, at_least, at_most)
    return number  # pyright: ignore[reportReturnType]  a SymInt is used as an int


def check_number(
    name: str, value: Any, at_least: float | int | None = None, at_most: float | int | None = None
) -> float | int:
    """`value`, which must be a real number between two others; NaN is not between any."""
    if isinstance(value, str | Tensor) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    _check_limits(name, value, at_least, at_most)
    return value


def check_probability(name: str, value: Any) -> float | int:
    """`value`, which must be a probability, a number from 0 to 1."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability from 0 to 1, got {value}")
    return value


def check_pair(name: str, value: Any, at_least: int | None = None) -> Pair:
    """`value`, an integer or one or two of them, as (vertical, horizontal)."""
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(numbers) not in (1, 2):
        raise ValueError(f"{name} must be an integer or a pair (vertical, horizontal), got {value!r}")
    if any(isinstance(number, bool) or not hasattr(number, "__index__") for number in numbers):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    checked = tuple(check_integer(name, number, at_least) for number in numbers)
    return checked[0], checked[-1]


def check_dim(name: str, value: Any, input: Tensor) -> int:
    """A dimension of `input`, counted from the front; a tensor without dimensions is taken to have one."""
    dims = max(1, input.dim())
    dim = check_integer(name, value)
    if not -dims <= dim < dims:
        shape = tuple(input.shape)
        raise ValueError(f"{name} must be from {-dims} to {dims - 1} for input of shape {shape}, got {value}")
    return dim % dims


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """`value`, which must be one of these words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {_alternatives([repr(choice) for choice in choices])}, got {value!r}")
    return value


def check_reduction(name: str, value: Any) -> str:
    """`value`, which must be "mean", "sum" or "none"."""
    return check_choice(name, value, REDUCTIONS)


def check_flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_result_dtype(name: str, value: Any) -> torch.dtype | None:
    """`value`, which must be a floating-point dtype, or `None`."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"{name} must be a floating-point torch.dtype, got {value!r}")
    return value


# What follows from a dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are formed: float32 for half precision, otherwise `dtype` itself.

    Half precision is computed in it, and rounded to its own dtype once, at the end.
    """
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point or dtype.is_complex else dtype


def under_autocast(*tensors: Any) -> tuple[Any, ...]:
    """The arguments, their tensors in the dtype that autocast sets for convolutions and matrix products.

    Without autocast they are returned as they are; float64 and whole numbers always are.
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
