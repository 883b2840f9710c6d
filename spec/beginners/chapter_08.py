"""A convolution in plain loops."""

import torch


def conv2d(input, weight, bias=None, stride=1, padding=0):
    images, channels, height, width = input.shape
    kernels, _, rows, columns = weight.shape
    padded = torch.zeros(images, channels, height + 2 * padding, width + 2 * padding, dtype=input.dtype)
    padded[:, :, padding : padding + height, padding : padding + width] = input
    out_height = (height + 2 * padding - rows) // stride + 1
    out_width = (width + 2 * padding - columns) // stride + 1
    output = torch.zeros(images, kernels, out_height, out_width, dtype=input.dtype)
    for n in range(images):
        for k in range(kernels):
            for y in range(out_height):
                for x in range(out_width):
                    top, left = y * stride, x * stride
                    window = padded[n, :, top : top + rows, left : left + columns]
                    output[n, k, y, x] = (window * weight[k]).sum()
            if bias is not None:
                output[n, k] += bias[k]
    return output
