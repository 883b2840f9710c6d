"""`torch._refs`: PyTorch's own references, written in Python for its compiler."""

from torch._refs import flatten, sigmoid, tanh
from torch._refs.nn.functional import l1_loss, layer_norm, leaky_relu, log_softmax, mse_loss, nll_loss, relu, softmax

__all__ = [
    "flatten",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]
