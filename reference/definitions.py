"""Every component by its definition: the public names of `reference`, without the fast forms.

`reference` computes convolution and pooling by `reference.fast`. Here the functions and layers are those of `reference`
with the definition in place of the fast form: the same checks, results and `state_dict`, and memory that grows with
the batch. The module that a name is imported from is the only switch:

    from reference import conv2d                # the form that training uses
    from reference.definitions import conv2d    # the formula

    Ocean(layers=reference)                     # a network with fast convolutions
    Ocean(layers=reference.definitions)         # the same network, each convolution the formula
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import reference
from reference import __version__ as __version__
from reference.nn import convolution, pooling
from reference.nn.convolution import conv2d_by, conv2d_definition
from reference.nn.pooling import (
    Size,
    adaptive_avg_pool2d_by,
    adaptive_avg_pool2d_definition,
    avg_pool2d_by,
    avg_pool2d_definition,
    max_pool2d_by,
    max_pool2d_definition,
)

__all__ = reference.__all__  # pyright: ignore[reportUnsupportedDunderAll]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`reference.conv2d` by `conv2d_definition`."""
    return conv2d_by(conv2d_definition, input, weight, bias, stride, padding, dilation, groups)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`reference.max_pool2d` by `max_pool2d_definition`."""
    return max_pool2d_by(
        max_pool2d_definition, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`reference.avg_pool2d` by `avg_pool2d_definition`."""
    return avg_pool2d_by(
        avg_pool2d_definition,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """`reference.adaptive_avg_pool2d` by `adaptive_avg_pool2d_definition`."""
    return adaptive_avg_pool2d_by(adaptive_avg_pool2d_definition, input, output_size)


class Conv2d(convolution.Conv2d):
    """`reference.Conv2d` by `conv2d_definition`."""

    _conv2d = staticmethod(conv2d)


class MaxPool2d(pooling.MaxPool2d):
    """`reference.MaxPool2d` by `max_pool2d_definition`."""

    _max_pool2d = staticmethod(max_pool2d)


class AvgPool2d(pooling.AvgPool2d):
    """`reference.AvgPool2d` by `avg_pool2d_definition`."""

    _avg_pool2d = staticmethod(avg_pool2d)


class AdaptiveAvgPool2d(pooling.AdaptiveAvgPool2d):
    """`reference.AdaptiveAvgPool2d` by `adaptive_avg_pool2d_definition`."""

    _adaptive_avg_pool2d = staticmethod(adaptive_avg_pool2d)


def __getattr__(name: str) -> Any:
    """Return the component of `reference` for every name without a fast form."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(reference, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
