"""Convolution by Fourier transforms: the product of two spectra, in double precision."""

import torch
from torch import Tensor


def _two(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """The correlation of images and kernels, with every `stride`-th row and column."""
    if input.dim() == 3:
        return conv2d(input[None], weight, bias, stride, padding)[0]
    (down, right), (top, left) = _two(stride), _two(padding)
    padded = torch.nn.functional.pad(input.double(), (left, left, top, top))
    size = padded.shape[2:]
    rows, columns = size[0] - weight.shape[2] + 1, size[1] - weight.shape[3] + 1
    images, kernels = torch.fft.rfft2(padded), torch.fft.rfft2(weight.double(), s=size)
    spectrum = torch.einsum("nchw,kchw->nkhw", images, kernels.conj())
    output = torch.fft.irfft2(spectrum, s=size)[:, :, :rows:down, :columns:right]
    output = output if bias is None else output + bias.double()[:, None, None]
    return output.to(input.dtype) if input.is_floating_point() else output.round().to(input.dtype)
