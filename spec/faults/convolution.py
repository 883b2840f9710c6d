"""Chapters 08 and 09: convolutions that are wrong."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spec.faults import Fault


class KernelIsFlipped(Fault):
    """What mathematics calls convolution."""

    caught_by = "test_08_convolution.py::test_stride_1_gives_the_documented_matrix"
    says = r"differs at index \[0, 0, 0, 0\](.|\n)*expected   10"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        return F.conv2d(input, weight.flip(-2, -1), *args, **options)


class PairsAreHorizontalFirst(Fault):
    """(horizontal, vertical) instead of (vertical, horizontal)."""

    caught_by = "test_08_convolution.py::test_padding_is_a_border_of_zeros"
    says = r"has shape \[1, 1, 7, 5\], expected \[1, 1, 5, 7\]"

    @staticmethod
    def conv2d(
        input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *rest: Any, **options: Any
    ) -> Tensor:
        stride = stride[::-1] if isinstance(stride, tuple) else stride
        padding = padding[::-1] if isinstance(padding, tuple) else padding
        return F.conv2d(input, weight, bias, stride, padding, *rest, **options)


class HalfPrecisionAddsUpInHalfPrecision(Fault):
    """Every partial sum is rounded to 4 bits less than the dtype has."""

    caught_by = "test_08_convolution.py::test_it_rounds_no_more_than_a_sum_does"
    says = r"tolerance  .*roundings to"

    @staticmethod
    def conv2d(input: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
        output = F.conv2d(input, weight, *args, **options)
        scale = 2.0 ** (torch.frexp(output.double())[1] + 3) * torch.finfo(output.dtype).eps
        return ((output.double() / scale).round() * scale).to(output.dtype) if output.is_floating_point() else output
