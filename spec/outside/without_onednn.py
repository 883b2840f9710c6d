"""PyTorch, with its own kernels instead of those of oneDNN."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Tensor:
    """PyTorch's function."""
    with torch.backends.mkldnn.flags(enabled=False):
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def linear(input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """PyTorch's function."""
    with torch.backends.mkldnn.flags(enabled=False):
        return functional.linear(input, weight, bias)


class _Plain(nn.Module):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return super().__call__(*args, **kwargs)


class Conv2d(_Plain, nn.Conv2d):
    """PyTorch's layer."""


class Linear(_Plain, nn.Linear):
    """PyTorch's layer."""


class LSTM(_Plain, nn.LSTM):
    """PyTorch's layer."""
