"""Ocean Spec's reference: every component of the tutorial, in the order of its chapters, under its PyTorch name.

A name's module is imported when the name is first used: whoever wants one component does not wait for the others.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reference.checkpoint import load_checkpoint, save_checkpoint
    from reference.data.cifar10 import CIFAR10
    from reference.data.image_tree import ImageTree
    from reference.data.labeled_folder import LabeledFolder
    from reference.data.loader import DataLoader
    from reference.data.shapes import Shapes
    from reference.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, Resize, ToTensor
    from reference.data.workers import get_worker_info
    from reference.inference import predict
    from reference.legacy_checkpoint import read_legacy_checkpoint
    from reference.models import Ocean, append_classifier, replace_classifier, vgg16
    from reference.nn.activation import (
        LeakyReLU,
        LogSoftmax,
        ReLU,
        Sigmoid,
        Softmax,
        Tanh,
        leaky_relu,
        log_softmax,
        relu,
        sigmoid,
        softmax,
        tanh,
    )
    from reference.nn.attention import MultiheadAttention, TransformerEncoderLayer, scaled_dot_product_attention
    from reference.nn.container import Sequential
    from reference.nn.convolution import Conv2d, conv2d, conv2d_output_size, same_padding
    from reference.nn.dropout import Dropout, dropout
    from reference.nn.embedding import Embedding, embedding
    from reference.nn.linear import Flatten, Linear, flatten, linear
    from reference.nn.loss import (
        CrossEntropyLoss,
        L1Loss,
        MSELoss,
        NLLLoss,
        cross_entropy,
        l1_loss,
        mse_loss,
        nll_loss,
    )
    from reference.nn.normalization import BatchNorm2d, LayerNorm, batch_norm, layer_norm
    from reference.nn.pooling import (
        AdaptiveAvgPool2d,
        AvgPool2d,
        MaxPool2d,
        adaptive_avg_pool2d,
        avg_pool2d,
        max_pool2d,
        pool2d_output_size,
    )
    from reference.nn.recurrent import GRU, LSTM, RNN
    from reference.optim import SGD, Adam, AdamW
    from reference.training import evaluate, fit
__version__ = "0.1.0"

__all__ = [
    "CIFAR10",
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Compose",
    "Conv2d",
    "CrossEntropyLoss",
    "DataLoader",
    "Dropout",
    "Embedding",
    "Flatten",
    "ImageTree",
    "L1Loss",
    "LabeledFolder",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "MultiheadAttention",
    "NLLLoss",
    "Normalize",
    "Ocean",
    "RandomCrop",
    "RandomHorizontalFlip",
    "ReLU",
    "Resize",
    "Sequential",
    "Shapes",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "ToTensor",
    "TransformerEncoderLayer",
    "adaptive_avg_pool2d",
    "append_classifier",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "conv2d_output_size",
    "cross_entropy",
    "dropout",
    "embedding",
    "evaluate",
    "fit",
    "flatten",
    "get_worker_info",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "load_checkpoint",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "pool2d_output_size",
    "predict",
    "read_legacy_checkpoint",
    "relu",
    "replace_classifier",
    "same_padding",
    "save_checkpoint",
    "scaled_dot_product_attention",
    "sigmoid",
    "softmax",
    "tanh",
    "vgg16",
]

_HOMES = {
    "reference.checkpoint": "load_checkpoint save_checkpoint",
    "reference.data.cifar10": "CIFAR10",
    "reference.data.image_tree": "ImageTree",
    "reference.data.labeled_folder": "LabeledFolder",
    "reference.data.loader": "DataLoader",
    "reference.data.shapes": "Shapes",
    "reference.data.transforms": "Compose Normalize RandomCrop RandomHorizontalFlip Resize ToTensor",
    "reference.data.workers": "get_worker_info",
    "reference.inference": "predict",
    "reference.legacy_checkpoint": "read_legacy_checkpoint",
    "reference.models": "Ocean append_classifier replace_classifier vgg16",
    "reference.nn.activation": (
        "LeakyReLU LogSoftmax ReLU Sigmoid Softmax Tanh leaky_relu log_softmax relu sigmoid softmax tanh"
    ),
    "reference.nn.attention": "MultiheadAttention TransformerEncoderLayer scaled_dot_product_attention",
    "reference.nn.container": "Sequential",
    "reference.nn.convolution": "Conv2d conv2d conv2d_output_size same_padding",
    "reference.nn.dropout": "Dropout dropout",
    "reference.nn.embedding": "Embedding embedding",
    "reference.nn.linear": "Flatten Linear flatten linear",
    "reference.nn.loss": "CrossEntropyLoss L1Loss MSELoss NLLLoss cross_entropy l1_loss mse_loss nll_loss",
    "reference.nn.normalization": "BatchNorm2d LayerNorm batch_norm layer_norm",
    "reference.nn.pooling": (
        "AdaptiveAvgPool2d AvgPool2d MaxPool2d adaptive_avg_pool2d avg_pool2d max_pool2d pool2d_output_size"
    ),
    "reference.nn.recurrent": "GRU LSTM RNN",
    "reference.optim": "SGD Adam AdamW",
    "reference.training": "evaluate fit",
}
"""Where the names come from, as for the type checker above."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name that was not used before."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names, used or not."""
    return sorted({*globals(), *__all__})
