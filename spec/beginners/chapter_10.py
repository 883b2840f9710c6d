"""Max pooling in plain loops."""

import torch
from torch import nn


def pool2d_output_size(input_size, kernel_size, stride=None, ceil_mode=False):
    if isinstance(input_size, int):
        input_size = (input_size, input_size)
    if stride is None:
        stride = kernel_size
    sizes = []
    for size in input_size:
        steps = (size - kernel_size) // stride
        if ceil_mode and (size - kernel_size) % stride != 0:
            steps += 1
        sizes.append(steps + 1)
    return tuple(sizes)


def max_pool2d(input, kernel_size, stride=None, ceil_mode=False):
    if stride is None:
        stride = kernel_size
    n, c, h, w = input.shape
    height, width = pool2d_output_size((h, w), kernel_size, stride, ceil_mode)
    output = torch.zeros(n, c, height, width, dtype=input.dtype)
    for y in range(height):
        for x in range(width):
            window = input[:, :, y * stride : y * stride + kernel_size, x * stride : x * stride + kernel_size]
            output[:, :, y, x] = window.amax((2, 3))
    return output


class MaxPool2d(nn.Module):
    def __init__(self, kernel_size, stride=None, ceil_mode=False):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def forward(self, input):
        return max_pool2d(input, self.kernel_size, self.stride, self.ceil_mode)
