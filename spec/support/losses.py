"""What the tests of the losses of chapter 14 have in common: types, and losses of many elements in half precision."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from spec.support.assertions import Tolerance, assert_close, rounding

Loss = Callable[..., Tensor]
Layer = Callable[..., nn.Module]
Shape = tuple[int, ...]
pairs_of_layouts = st.sampled_from(list(product(range(4), repeat=2)))  # for `laid_out`


# The mean of many losses in half precision

MANY = 2**16
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def check_many(mean: Tensor, each: float, dtype: torch.dtype, operations: int = 0) -> None:
    """The mean of 65,536 losses of `each`; their sum exceeds 65,504, the largest number of float16."""
    __tracebackhide__ = True
    # computed in float32 by sums of halves, and rounded once
    tolerance = rounding(torch.float32, 16 + operations, each)
    once = rounding(dtype, 0, each)
    total = Tolerance(tolerance.absolute + once.absolute, f"{tolerance.because}; {once.because} for the result")
    assert_close(mean, each, total, "the mean")
