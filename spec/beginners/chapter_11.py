"""Activations."""

import torch
from torch import nn


def relu(input, inplace=False):
    output = torch.where(input > 0, input, torch.zeros_like(input))
    if inplace:
        input.copy_(output)
        return input
    return output


def sigmoid(input):
    return 1 / (1 + torch.exp(-input))


def tanh(input):
    return 2 * sigmoid(2 * input) - 1


def leaky_relu(input, negative_slope=0.01):
    return torch.where(input > 0, input, negative_slope * input)


def softmax(input, dim):
    exponentials = torch.exp(input - input.amax(dim, keepdim=True))
    return exponentials / exponentials.sum(dim, keepdim=True)


class ReLU(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, input):
        return relu(input, self.inplace)


class Sigmoid(nn.Module):
    def forward(self, input):
        return sigmoid(input)


class Tanh(nn.Module):
    def forward(self, input):
        return tanh(input)


class Softmax(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, input):
        return softmax(input, self.dim)
