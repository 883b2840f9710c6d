"""Sums of products by `einsum`, over windows that are views of the input."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def _two(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Every window times every kernel, as one `einsum`."""
    if input.dim() == 3:
        return conv2d(input[None], weight, bias, stride, padding, dilation, groups)[0]
    (down, right), (apart, aside), (rows, columns) = _two(stride), _two(dilation), weight.shape[2:]
    if isinstance(padding, str):  # "same" puts the odd zero at the end
        high, wide = (apart * (rows - 1), aside * (columns - 1)) if padding == "same" else (0, 0)
        border = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
    else:
        top, left = _two(padding)
        border = (left, left, top, top)
    padded = functional.pad(input, border)
    windows = padded.unfold(2, apart * (rows - 1) + 1, down).unfold(3, aside * (columns - 1) + 1, right)
    windows = windows[..., ::apart, ::aside].unflatten(1, (groups, -1))
    kernels = weight.unflatten(0, (groups, -1))
    output = torch.einsum("ngcyxij,gkcij->ngkyx", windows, kernels).flatten(1, 2)
    return output if bias is None else output + bias[:, None, None]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x·Wᵀ + b."""
    if weight.dim() == 1:
        output = torch.einsum("...i,i->...", input, weight)
        return output if bias is None else output + bias
    output = torch.einsum("...i,oi->...o", input, weight)
    return output if bias is None else output + bias


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """softmax(q·kᵀ·scale + mask)·v."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.einsum("...qe,...ke->...qk", query, key) * scale
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    if attn_mask is not None:
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return torch.einsum("...qk,...kv->...qv", weights, value)
