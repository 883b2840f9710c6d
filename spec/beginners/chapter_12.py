"""Linear layers and the other layers of the chapter."""

import torch
from torch import nn


def flatten(input, start_dim=0):
    return input.reshape(*input.shape[:start_dim], -1)


def linear(input, weight, bias=None):
    output = input @ weight.t()
    if bias is not None:
        output = output + bias
    return output


class Flatten(nn.Module):
    def forward(self, input):
        return flatten(input, 1)


class Linear(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        bound = 1 / in_features**0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def forward(self, input):
        return linear(input, self.weight, self.bias)
