"""Chapter 12, "other layers": dropout, which keeps the units of a network from relying on each other.

In training every element is dropped (set to 0) with probability p, independently, and the others are divided by
1 - p, so that the expectation of the output is the input. In evaluation the input is returned unchanged.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor

from reference.arguments import check_floating, check_probability, check_tensor


def dropout_definition(input: Shaped[Tensor, "*shape"], p: float | int) -> Shaped[Tensor, "*shape"]:
    """output = input · mask / (1 - p), mask ~ Bernoulli(1 - p) for each element; at p = 1 the mask is 0 everywhere."""
    mask = torch.empty_like(input).bernoulli_(1 - p).div_(1 - p) if p < 1 else torch.zeros_like(input)
    return input * mask


def dropout(
    input: Shaped[Tensor, "*shape"], p: float | int = 0.5, training: bool = True, inplace: bool = False
) -> Shaped[Tensor, "*shape"]:
    """output = input · mask / (1 - p), mask ~ Bernoulli(1 - p) for each element.

    The mask is drawn from torch's global generator in the same way as PyTorch does on the CPU: the same seed drops the
    same elements. NaN and ±inf are multiplied by the mask like other numbers, so dropped ones become NaN.

    Args:
        input: any shape; floating point, unless no mask is drawn.
        p: the probability that an element is dropped, from 0 to 1; at 1 all are.
        training: drop elements; otherwise the output is `input` itself.
        inplace: overwrite `input` with the output.

    Returns:
        The shape and dtype of `input`; `input` itself if nothing can be dropped.

    Raises:
        ValueError: `p` is outside [0, 1].
        TypeError: `input` has a dtype that cannot hold the factor 1 / (1 - p).
    """
    check_probability("dropout: p", p)
    if check_tensor("dropout: input", input).numel() == 0 or p == 0 or not training:
        return input
    if p < 1 and not input.is_complex():
        check_floating("dropout: input", input)
    output = dropout_definition(input, p)
    return input.copy_(output) if inplace else output


class Dropout(torch.nn.Module):
    """`dropout` as a layer: active after `train()`, the identity after `eval()`.

    Args:
        p: the probability that an element is dropped, from 0 to 1.
        inplace: overwrite the input with the output.

    Raises:
        ValueError: `p` is outside [0, 1].
    """

    def __init__(self, p: float | int = 0.5, inplace: bool = False) -> None:
        super().__init__()
        check_probability("Dropout: p", p)
        self.p = p
        self.inplace = inplace

    def forward(self, input: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        return dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
