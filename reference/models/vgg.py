"""Chapter 16: VGG16, the network with 16 layers of weights of Simonyan and Zisserman (2014, configuration D), and how
to give a trained one other classes."""

import math
import warnings
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference.arguments import check_probability
from reference.models.pretrained import check_state, read_weights
from reference.nn.activation import ReLU
from reference.nn.container import Sequential
from reference.nn.convolution import Conv2d
from reference.nn.dropout import Dropout
from reference.nn.initialization import fan_out, normal_
from reference.nn.linear import Linear, flatten
from reference.nn.pooling import AdaptiveAvgPool2d, MaxPool2d

Network = TypeVar("Network", bound=nn.Module)

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""The output channels of the 3×3 convolutions; each stage ends with a pooling that halves height and width."""

SMALLEST = 2 ** len(STAGES)
"""The smallest height and width, in pixels, for which the poolings leave at least one pixel."""


class VGG(nn.Module):
    """Convolutions, each followed by ReLU, in stages; then three linear layers.

    Shapes for `b` images of 224×224: [b, 3, 224, 224] → [b, 64, 112, 112] → [b, 128, 56, 56] → [b, 256, 28, 28]
    → [b, 512, 14, 14] → [b, 512, 7, 7] → [b, 25088] → [b, 4096] → [b, 4096] → [b, num_classes]. Images of another size,
    at least 32×32, fit because their last feature maps are averaged, or repeated, to 7×7.

    Args:
        features: the layers before the average, from `[b, 3, height, width]` to `[b, 512, …, …]`.
        num_classes: number of scores per image.
        init_weights: start the convolutions from N(0, 2 / (output channels · 9)), the linear layers from N(0, 0.01²)
            and all biases from 0; otherwise every layer keeps its own initialization.
        dropout: the share of the 4096 numbers after each of the first two linear layers that is dropped in training.

    Raises:
        ValueError: `num_classes` is not a positive integer, or `dropout` is outside [0, 1].
    """

    def __init__(
        self, features: nn.Module, num_classes: int = 1000, init_weights: bool = True, dropout: float | int = 0.5
    ) -> None:
        super().__init__()
        _check_classes("vgg16: num_classes", num_classes)
        check_probability("vgg16: dropout", dropout)
        self.features = features
        self.avgpool = AdaptiveAvgPool2d((7, 7))
        self.classifier = Sequential(
            Linear(512 * 7 * 7, 4096),
            ReLU(inplace=True),
            Dropout(dropout),
            Linear(4096, 4096),
            ReLU(inplace=True),
            Dropout(dropout),
            Linear(4096, num_classes),
        )
        if init_weights:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new parameters, layer by layer in the order of the network.

        A ReLU halves the second moment of its input; the variance 2 / fan_out keeps that of the gradients in the
        backward pass (He et al., 2015).
        """
        for layer in self.modules():
            if not isinstance(layer, Conv2d | Linear):
                continue
            std = math.sqrt(2 / fan_out(layer.weight)) if isinstance(layer, Conv2d) else 0.01
            normal_(layer.weight, std=std)
            if layer.bias is not None:
                layer.bias.zero_()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """The scores of `images`.

        Raises:
            ValueError: an image is smaller than 32×32 pixels.
        """
        height, width = images.shape[-2:]
        if height < SMALLEST or width < SMALLEST:
            raise ValueError(f"VGG: images must have at least {SMALLEST}×{SMALLEST} pixels, got {height}×{width}")
        maps = self.avgpool(self.features(images))
        return self.classifier(flatten(maps, 1))


def vgg16(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    init_weights: bool = True,
    dropout: float | int = 0.5,
    pretrained: bool | None = None,
) -> VGG:
    """A new VGG16, or a trained one: 13 convolutions and 3 linear layers, 138,357,544 parameters for 1000 classes.

    Args:
        weights: the source of its weights. `None`: drawn (see `VGG`). A member of `torchvision.models.VGG16_Weights`,
            or its name, such as "DEFAULT": downloaded once (528 MB) into the cache folder of `torch.hub`. The path of a
            file: a state dict, as written by `torch.save(network.state_dict(), path)`.
        progress: show a bar during the download.
        num_classes: number of scores per image; `None`: that of `weights`, without weights 1000.
        init_weights: see `VGG`.
        dropout: see `VGG`.
        pretrained: the name of `weights` before torchvision 0.13: `True` is `weights="DEFAULT"`, `False` is
            `weights=None`; it warns.

    Returns:
        The network, in training mode.

    Raises:
        InputError: the weights cannot be downloaded (the message names the address and the path for the file); or they
            are damaged, or not those of such a network.
        ValueError: an argument outside its range.
        TypeError: `weights` has another type, or is given together with `pretrained`.
    """
    if pretrained is not None:
        if weights is not None:
            raise TypeError("vgg16: pretrained is the old name of weights; give weights alone")
        warnings.warn(
            "vgg16: pretrained is deprecated since torchvision 0.13; use weights=None or weights='DEFAULT'",
            stacklevel=2,
        )
        weights = "DEFAULT" if pretrained else None
    if weights is None:
        return VGG(_features(), 1000 if num_classes is None else num_classes, init_weights, dropout)
    source, state = read_weights(weights, "VGG16_Weights", progress)
    if num_classes is None:
        last = state.get("classifier.6.bias")
        num_classes = len(last) if isinstance(last, Tensor) and last.dim() and len(last) else 1000
    with torch.device("meta"):  # shapes without memory for the numbers
        skeleton = VGG(_features(), num_classes, init_weights=False)
    check_state(source, state, skeleton.state_dict(), f"VGG16 for {num_classes} classes")
    network = VGG(_features(), num_classes, init_weights=False, dropout=dropout)
    network.load_state_dict(state)
    return network


def append_classifier(network: Network, classes: int, *, inside: bool = True) -> Network:
    """Append a linear layer to a network's classifier: from its 1000 scores it computes `classes`.

    The layer has the classifier's next number as its name, "7" in VGG16, and the usual initialization.

    Args:
        network: a network with a `classifier` that ends with a linear layer, such as VGG16; changed in place.
        classes: number of scores per image afterwards.
        inside: append it to the classifier, where it is run. With `False` it becomes a sibling of the classifier, as in
            the tutorial: it is printed, saved and passed to the optimizer, but `forward` never calls it, and the number
            of scores does not change.

    Returns:
        `network`.

    Raises:
        ValueError: `classes` is not a positive integer, the network has no such classifier, or the name is taken.
    """
    classifier, layers = _classifier_of("append_classifier", network)
    last = next(reversed(layers.values()))
    layer = _linear_like("append_classifier", last, last.out_features, classes)
    home, name = classifier if inside else network, str(len(layers))
    if hasattr(home, name):
        raise ValueError(f"append_classifier: network has a layer {name!r} already")
    home.add_module(name, layer)
    return network


def replace_classifier(network: Network, classes: int) -> Network:
    """Replace the last linear layer of a network's classifier by a new one with `classes` scores.

    The new layer has the usual initialization; all others keep their weights.

    Args:
        network: a network with a `classifier` that ends with a linear layer, such as VGG16; changed in place.
        classes: number of scores per image afterwards.

    Returns:
        `network`.

    Raises:
        ValueError: `classes` is not a positive integer, or the network has no such classifier.
    """
    classifier, layers = _classifier_of("replace_classifier", network)
    name, last = next(reversed(layers.items()))
    setattr(classifier, name, _linear_like("replace_classifier", last, last.in_features, classes))
    return network


def _features() -> Sequential:
    """The five stages of convolutions."""
    layers: list[nn.Module] = []
    in_channels = 3
    for stage in STAGES:
        for channels in stage:
            layers += [Conv2d(in_channels, channels, 3, padding=1), ReLU(inplace=True)]
            in_channels = channels
        layers.append(MaxPool2d(2, 2))
    return Sequential(*layers)


def _classifier_of(caller: str, network: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The classifier of a network, and its layers by name; the last one is linear."""
    classifier = getattr(network, "classifier", None)
    layers: dict[str, Any] = dict(classifier.named_children()) if isinstance(classifier, nn.Module) else {}
    last = next(reversed(layers.values()), None)
    if classifier is None or not all(hasattr(last, part) for part in ("in_features", "out_features", "weight")):
        raise ValueError(
            f"{caller}: network must have a classifier that ends with a linear layer, {type(network).__name__} has none"
        )
    return classifier, layers


def _linear_like(caller: str, like: Any, in_features: int, classes: int) -> nn.Module:
    """A new linear layer of the class, dtype, device and mode of another one."""
    _check_classes(f"{caller}: classes", classes)
    return type(like)(in_features, classes, device=like.weight.device, dtype=like.weight.dtype).train(like.training)


def _check_classes(name: str, classes: Any) -> None:
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"{name} must be a positive integer, got {classes!r}")
