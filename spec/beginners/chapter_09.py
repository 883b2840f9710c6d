"""A layer of convolutions and the size of its output."""

import torch
from torch import nn


def conv2d_output_size(input_size, kernel_size, stride=1, padding=0):
    if isinstance(input_size, int):
        input_size = (input_size, input_size)
    if isinstance(kernel_size, int):
        kernel_size = (kernel_size, kernel_size)
    height = (input_size[0] + 2 * padding - kernel_size[0]) // stride + 1
    width = (input_size[1] + 2 * padding - kernel_size[1]) // stride + 1
    return height, width


class Conv2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        bound = 1 / (in_channels * kernel_size * kernel_size) ** 0.5
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            self.bias.uniform_(-bound, bound)

    def forward(self, input):
        n, c, h, w = input.shape
        p, s, k = self.padding, self.stride, self.kernel_size
        padded = torch.zeros(n, c, h + 2 * p, w + 2 * p)
        padded[:, :, p : p + h, p : p + w] = input
        height, width = conv2d_output_size((h, w), k, s, p)
        output = torch.zeros(n, self.weight.shape[0], height, width)
        for y in range(height):
            for x in range(width):
                window = padded[:, :, y * s : y * s + k, x * s : x * s + k]
                for o in range(self.weight.shape[0]):
                    output[:, o, y, x] = (window * self.weight[o]).sum((1, 2, 3)) + self.bias[o]
        return output
