"""Rebuilding layers with a known `forward` from the records in a file, which give only class and attributes."""

import re
import warnings
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from reference.nn import (
    activation,
    attention,
    container,
    convolution,
    dropout,
    embedding,
    linear,
    normalization,
    pooling,
    recurrent,
)
from reference.untrusted.bounds import WORKING_LAYERS
from reference.untrusted.modules import Budget, Memory, Module
from reference.untrusted.pickle_machine import Name, Record

# PyTorch's layers, and the attributes that are their arguments

LINEAR = {"NonDynamicallyQuantizableLinear": "Linear", "_LinearWithBias": "Linear"}
"""Names of the Linear inside MultiheadAttention, by the version of PyTorch."""

CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
NORMALIZATION = ("num_features", "eps", "momentum", "affine", "track_running_stats")
MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")

LAYERS: dict[str, tuple[str, ...]] = {
    **{f"Conv{n}d": CONVOLUTION for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": (*CONVOLUTION, "output_padding") for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": NORMALIZATION for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": NORMALIZATION for n in (1, 2, 3)},
    **{f"MaxPool{n}d": MAX_POOL for n in (1, 2, 3)},
    "AvgPool1d": AVG_POOL[:-1],
    "AvgPool2d": AVG_POOL,
    "AvgPool3d": AVG_POOL,
    **{f"AdaptiveAvgPool{n}d": ("output_size",) for n in (1, 2, 3)},
    **{f"AdaptiveMaxPool{n}d": ("output_size", "return_indices") for n in (1, 2, 3)},
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"), ("p", "inplace")),
    **dict.fromkeys(("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"), ("inplace",)),
    **dict.fromkeys(("Sigmoid", "Tanh", "Softsign", "LogSigmoid", "Softmax2d", "Identity"), ()),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Softmin"), ("dim",)),
    **dict.fromkeys(("ELU", "CELU"), ("alpha", "inplace")),
    "LeakyReLU": ("negative_slope", "inplace"),
    "Hardtanh": ("min_val", "max_val", "inplace"),
    "Softplus": ("beta", "threshold"),
    "GELU": ("approximate",),
    "PReLU": ("num_parameters",),
    **dict.fromkeys(("Linear", *LINEAR), ("in_features", "out_features")),
    "Bilinear": ("in1_features", "in2_features", "out_features"),
    "Flatten": ("start_dim", "end_dim"),
    "Unflatten": ("dim", "unflattened_size"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "LocalResponseNorm": ("size", "alpha", "beta", "k"),
    "Embedding": (
        *("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    ),
    "RNN": (*RECURRENT, "nonlinearity"),
    "LSTM": (*RECURRENT, "proj_size"),
    "GRU": RECURRENT,
    "Upsample": ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"),
    "PixelShuffle": ("upscale_factor",),
    "ZeroPad2d": ("padding",),
    "ConstantPad2d": ("padding", "value"),
    "ReflectionPad2d": ("padding",),
    "ReplicationPad2d": ("padding",),
    "MultiheadAttention": ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first"),
}
"""The layers that can be rebuilt, each with the attributes that are its arguments; a file may lack newer ones."""

BIAS = (*(f"Conv{n}d" for n in (1, 2, 3)), *(f"ConvTranspose{n}d" for n in (1, 2, 3)), "Linear", "Bilinear", *LINEAR)
"""Layers without an attribute `bias`, which may have a bias or not."""

CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")
ATTENTION = ("MultiheadAttention", "TransformerEncoderLayer")

HOMES = (
    *(torch.nn, torch.nn.modules.linear),
    *(activation, attention, container, convolution, dropout, embedding, linear, normalization, pooling, recurrent),
)
STANDARD: dict[Name, str] = {
    **{
        Name(getattr(home, name).__module__, name): name
        for home in HOMES
        for name in (*LAYERS, *CONTAINERS, *ATTENTION)
        if hasattr(home, name)
    },
    Name("torch.nn.modules.linear", "_LinearWithBias"): "_LinearWithBias",
}
"""The layers and containers of PyTorch and of the reference, by the names of their classes."""

AVERAGED = Name("torch.optim.swa_utils", "AveragedModel")
PRUNING = "torch.nn.utils.prune"
"""The module of the classes that multiply a weight by a mask before each use of a layer."""

CHAINS: dict[Name, tuple[str | None, ...]] = {
    Name("torchvision.models.vgg", "VGG"): (
        "features",
        "avgpool",
        None,
        "classifier",
    ),  # avgpool since torchvision 0.2.2
    Name("reference.models.vgg", "VGG"): ("features", "avgpool", None, "classifier"),
    Name("torchvision.models.alexnet", "AlexNet"): ("features", "avgpool", None, "classifier"),
    Name("torch.nn.parallel.data_parallel", "DataParallel"): ("module",),
    Name("torch.nn.parallel.distributed", "DistributedDataParallel"): ("module",),
    AVERAGED: ("module",),
}
"""Classes with a known `forward`, and the parts that they apply one after the other; None stands for flatten."""


WORD = re.compile(r"[A-Za-z0-9_-]{1,20}")
"""A setting of one word: "zeros", "nearest-exact". Other strings would appear in the printed network."""


class CannotRunError(Exception):
    """The reason why a network cannot be run, worded as the end of a sentence."""


def make_layer(module: Module, layers: Any) -> nn.Module:
    """A layer of PyTorch, rebuilt from its attributes on the meta device, where tensors take no memory.

    Args:
        module: a module of a class in `STANDARD` that is not a container.
        layers: the namespace of the layer's class.

    Raises:
        CannotRunError: its attributes do not fit such a layer.
    """
    name = STANDARD[module.kind]
    options = encoder_options(module) if name == "TransformerEncoderLayer" else layer_options(name, module)
    name = LINEAR.get(name, name)
    if not hasattr(layers, name):
        raise CannotRunError(f"there is no {name} among the layers given")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(layers, name)(**options)
    except Exception as error:  # a layer may raise any error for invalid arguments
        reason = str(error).partition("\n")[0][:200]
        raise CannotRunError(f"a {name} has attributes that it cannot have ({reason})") from error


def layer_options(name: str, module: Module) -> dict[str, Any]:
    """The arguments that a layer was made with, derived from its attributes and parameters."""
    attributes, parameters = module.attributes, module.parameters
    options = {word: plain(attributes[word]) for word in LAYERS[name] if word in attributes}
    if name in BIAS:
        options["bias"] = parameters.get("bias", parameters.get("bias_orig")) is not None
    elif parameters.get("weight") is not None and parameters.get("bias", 0) is None:
        options["bias"] = False  # of normalizations in recent versions
    if name == "MultiheadAttention":
        options["bias"] = parameters.get("in_proj_bias") is not None
        options["add_bias_kv"] = parameters.get("bias_k") is not None
    if name == "RNN":
        options["nonlinearity"] = "relu" if attributes.get("mode") == "RNN_RELU" else "tanh"
    if name in ("RNN", "LSTM", "GRU"):
        count = options.get("num_layers")
        if type(count) is not int or count > len(parameters):
            raise CannotRunError(f"a {name} of {count} layers has {len(parameters)} parameters")
    return options


def encoder_options(module: Module) -> dict[str, Any]:
    """The arguments that a TransformerEncoderLayer was made with: most of them are stored in its parts only."""
    attention, first, norm, drop = (module.children.get(name) for name in ("self_attn", "linear1", "norm1", "dropout"))
    activation = module.attributes.get("activation", Name("torch.nn.functional", "relu"))
    if attention is None or first is None or norm is None or drop is None:
        raise CannotRunError("a TransformerEncoderLayer lacks a part")
    if not isinstance(activation, Name) or activation.name not in ("relu", "gelu"):
        raise CannotRunError("a TransformerEncoderLayer has an activation of its own")
    return {
        "d_model": plain(attention.attributes.get("embed_dim")),
        "nhead": plain(attention.attributes.get("num_heads")),
        "dim_feedforward": plain(first.attributes.get("out_features")),
        "dropout": plain(drop.attributes.get("p")),
        "activation": activation.name,
        "layer_norm_eps": plain(norm.attributes.get("eps")),
        "batch_first": plain(attention.attributes.get("batch_first", False)),
        "norm_first": plain(module.attributes.get("norm_first", False)),
        "bias": first.parameters.get("bias") is not None,
    }


def plain(value: Any, *, inside: bool = False) -> Any:
    """A setting: a number, a short word, None, or a few of them."""
    if value is None or type(value) in (bool, float):
        return value
    if (type(value) is int and abs(value) < 1 << 62) or (type(value) is str and WORD.fullmatch(value)):
        return value
    if isinstance(value, tuple | list) and len(value) <= 8 and not inside:
        return type(value)(plain(part, inside=True) for part in value)
    raise CannotRunError("a layer has an attribute that is no setting")


class Printer:
    """Arguments shown in the `repr` of a layer; none for a class that is not known."""

    def __init__(self) -> None:
        self.budget = Budget()
        self.known: dict[int, str] = {}

    def __call__(self, module: Module) -> str:
        if id(module) not in self.known:
            self.known[id(module)] = ""
            if STANDARD.get(module.kind, "Sequential") not in (*CONTAINERS, *ATTENTION):  # these print their parts only
                self.budget.spend(1 + len(module.parameters))
                with suppress(CannotRunError):
                    self.known[id(module)] = make_layer(module, nn).extra_repr()
        return self.known[id(module)]


class Chain(nn.Module):
    """A module of a class that the file only names: its parts, and the order in which they are applied."""

    def __init__(self, title: str, parts: dict[str, nn.Module], steps: tuple[str | None, ...]) -> None:
        super().__init__()
        self._title, self._steps = title, steps
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, input: Tensor) -> Tensor:
        for step in self._steps:
            input = input.flatten(1) if step is None else self._modules[step](input)  # pyright: ignore[reportOptionalCall]
        return input

    def _get_name(self) -> str:
        return self._title


class Builder:
    """Builds working modules; a module that occurs several times becomes one module again.

    Args:
        layers: the namespace of the layers.
        notes: a list to which a sentence for each assumption is appended.
        memory: the memory limit for the network's tensors.
    """

    def __init__(self, layers: Any, notes: list[str], memory: Memory) -> None:
        self.layers, self.notes, self.memory = layers, notes, memory
        self.left = WORKING_LAYERS
        self.made: dict[int, nn.Module] = {}

    def network(self, root: Module, tree: str) -> nn.Module:
        """The network with the printed text `tree`.

        Raises:
            CannotRunError: a `forward` is not known, or the result would not be the same network.
        """
        network = self.build(root)
        if repr(network) != tree.replace("_LinearWithBias(", "NonDynamicallyQuantizableLinear("):
            raise CannotRunError("its layers have parts that such layers do not have")
        # a tensor that occurs several times has become several parameters
        Memory([*network.parameters(), *network.buffers()])
        return network

    def build(self, module: Module) -> nn.Module:
        if id(module) not in self.made:
            self.left -= 1 + len(module.parameters)
            if self.left < 0:
                raise CannotRunError(f"it has more than {WORKING_LAYERS:,} layers and tensors")
            composed = STANDARD.get(module.kind, "Sequential") in CONTAINERS
            made = self.composed(module) if composed else make_layer(module, self.layers)
            fill(made, module, self.memory)
            self.made[id(module)] = made
        return self.made[id(module)]

    def composed(self, module: Module) -> nn.Module:
        """A module composed of other modules."""
        steps = self.steps(module)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for name, child in module.children.items():
            if child is None:
                raise CannotRunError(f"the part {name!r} of {module.title} is None")
            parts[name] = self.build(child)
        try:
            return self.layers.Sequential(parts) if steps is None else Chain(module.title, parts, steps)
        except (KeyError, TypeError) as error:
            raise CannotRunError(f"a part of {module.title} has a name that no part can have") from error

    def steps(self, module: Module) -> tuple[str | None, ...] | None:
        """The parts that a module applies one after the other; None if it is a Sequential."""
        kind, children = module.kind, module.children
        if STANDARD.get(kind) == "Sequential":
            return None
        chain = CHAINS.get(kind)
        if chain is not None and {chain[0], chain[-1]} <= children.keys():
            for unused in children.keys() - {*chain}:
                self.notes.append(f"The part {unused!r} of {module.title} is never run.")
            return tuple(step for step in chain if step is None or step in children)
        own = [name for name in module.attributes if not name.startswith("_") and name != "training"]
        if kind in STANDARD or len(children) != 1 or module.parameters or module.buffers or own:
            raise CannotRunError(f"the forward of {kind} is code, and its code is not run")
        (only,) = children
        self.notes.append(f"{kind} is taken to do nothing but apply its only part, {only!r}; its code was not run.")
        return (only,)


def fill(layer: nn.Module, module: Module, memory: Memory) -> None:
    """Load the parameters and buffers of the file into a layer and into the parts that the layer has created.

    Raises:
        CannotRunError: they do not fit such a layer.
    """
    parameters, buffers = unpruned(module, memory)
    if module.kind == AVERAGED:
        buffers = {name: tensor for name, tensor in buffers.items() if name != "n_averaged"}
    left = {name for name, tensor in (parameters | buffers).items() if tensor is not None}
    for own_tensors, tensors in ((layer._parameters, parameters), (layer._buffers, buffers)):
        for name, own in [(name, own) for name, own in own_tensors.items() if own is not None]:
            found = tensors.get(name)
            if found is None and name == "num_batches_tracked":
                found = torch.zeros((), dtype=torch.int64, device="cpu")  # counted since PyTorch 0.4.1
            if found is None or found.shape != own.shape:
                raise CannotRunError(f"the {name} of a {module.title} is not what its attributes say")
            if isinstance(own, nn.Parameter) and not isinstance(found, nn.Parameter):
                found = nn.Parameter(found, requires_grad=found.requires_grad)
            setattr(layer, name, found)
            left.discard(name)
    if left:
        raise CannotRunError(f"a {module.title} has a {min(left)}, which such layers do not have")
    layer.training = module.attributes.get("training") is not False
    if STANDARD.get(module.kind) in ATTENTION:
        for name, part in layer.named_children():
            child = module.children.get(name)
            if child is None:
                raise CannotRunError(f"a {module.title} lacks its part {name!r}")
            fill(part, child, memory)


def unpruned(module: Module, memory: Memory) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Parameters and buffers of a module, pruned ones multiplied out again: `weight_orig` times `weight_mask`.

    Raises:
        CannotRunError: the module has other hooks, which are code.
    """
    parameters, buffers = dict(module.parameters), dict(module.buffers)
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        hooks = module.attributes.get(kind) or {}
        if not isinstance(hooks, dict) or len(hooks) > len(module.parameters):
            raise CannotRunError(f"a {module.title} has hooks, which are code")
        for hook in hooks.values():
            name = hook.attributes.get("_tensor_name") if isinstance(hook, Record) else None
            if not isinstance(name, str) or hook.kind.module != PRUNING:
                raise CannotRunError(f"a {module.title} has hooks, which are code")
            value, mask = parameters.pop(f"{name}_orig", None), buffers.pop(f"{name}_mask", None)
            if value is None or mask is None or value.shape != mask.shape:
                raise CannotRunError(f"a {module.title} is pruned, but its {name} has no mask")
            memory.spend(value.nbytes)
            parameters[name] = nn.Parameter(value.detach() * mask.to(value.dtype), requires_grad=value.requires_grad)
    return parameters, buffers
