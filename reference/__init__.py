"""Ocean Spec's reference: every component of the tutorial, in the order of its chapters, under its PyTorch name.

A name's module is imported when the name is first used, so that using one component does not import the others.
Editors and type checkers read `__init__.pyi`, which a test keeps equal to `PUBLIC`.
"""

from itertools import chain

try:
    import lazy_loader
except ModuleNotFoundError:  # on a bare Python `scripts/doctor.py` must still be able to report missing packages
    lazy_loader = None

__version__ = "0.2.0"

PUBLIC: dict[str, dict[str, tuple[str, ...]]] = {
    "01": {"data.labeled_folder": ("LabeledFolder",)},
    "03": {
        "data.transforms": ("Compose", "ToTensor", "Normalize", "Resize", "RandomCrop", "RandomHorizontalFlip"),
    },
    "05": {"data.cifar10": ("CIFAR10",), "data.image_tree": ("ImageTree",), "data.shapes": ("Shapes",)},
    "06": {"data.loader": ("DataLoader",), "data.workers": ("get_worker_info",)},
    "08": {"nn.convolution": ("conv2d", "Conv2d", "conv2d_output_size", "same_padding")},
    "10": {
        "nn.pooling": (
            *("max_pool2d", "MaxPool2d", "avg_pool2d", "AvgPool2d"),
            *("adaptive_avg_pool2d", "AdaptiveAvgPool2d", "pool2d_output_size"),
        ),
    },
    "11": {
        "nn.activation": (
            *("relu", "ReLU", "leaky_relu", "LeakyReLU", "sigmoid", "Sigmoid", "tanh", "Tanh"),
            *("softmax", "Softmax", "log_softmax", "LogSoftmax"),
        ),
    },
    "12": {
        "nn.linear": ("linear", "Linear", "flatten", "Flatten"),
        "nn.dropout": ("dropout", "Dropout"),
        "nn.normalization": ("batch_norm", "BatchNorm2d", "layer_norm", "LayerNorm"),
        "nn.embedding": ("embedding", "Embedding"),
        "nn.recurrent": ("RNN", "LSTM", "GRU"),
        "nn.attention": ("scaled_dot_product_attention", "MultiheadAttention", "TransformerEncoderLayer"),
    },
    "13": {"nn.container": ("Sequential",), "models.ocean": ("Ocean",)},
    "14": {
        "nn.loss": (
            *("l1_loss", "L1Loss", "mse_loss", "MSELoss", "nll_loss", "NLLLoss"),
            *("cross_entropy", "CrossEntropyLoss"),
        ),
    },
    "15": {"optim": ("SGD", "Adam", "AdamW")},
    "16": {"models.vgg": ("vgg16", "append_classifier", "replace_classifier")},
    "17": {"checkpoint": ("save_checkpoint", "load_checkpoint"), "legacy_checkpoint": ("read_legacy_checkpoint",)},
    "18": {"training": ("fit", "evaluate")},
    "20": {"inference": ("predict",)},
}
"""The public names, by chapter and by the module that defines them."""

if lazy_loader is not None:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__, submod_attrs=dict(chain.from_iterable(modules.items() for modules in PUBLIC.values()))
    )
