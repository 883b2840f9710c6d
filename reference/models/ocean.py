"""Chapter 13: the network that the tutorial builds, trains (chapter 18) and asks about an image (chapter 20)."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Ocean(nn.Module):
    """Three 5×5 convolutions, each followed by 2×2 max pooling, then two linear layers; no activation in between.

    Shapes for `b` images: [b, 3, 32, 32] → [b, 32, 32, 32] → [b, 32, 16, 16] → [b, 32, 16, 16] → [b, 32, 8, 8]
    → [b, 64, 8, 8] → [b, 64, 4, 4] → [b, 1024] → [b, 64] → [b, classes]; 145,578 parameters for ten classes.

    The tutorial calls it a VGG. Its convolutions and linear layers have the sizes of Caffe's `cifar10_quick`, but that
    network has ReLUs, windows of 3 with stride 2 in all poolings, and averages in the second and the third one. Here
    every pooling takes maxima of 2×2 windows, no activation follows a layer, and the last two layers together are one
    linear map.

    Source: the tutorial's lines 897 to 915; Caffe, examples/cifar10/cifar10_quick_train_test.prototxt.

    Args:
        classes: number of scores per image.
        layers: any namespace with `Conv2d`, `MaxPool2d`, `Flatten`, `Linear` and `Sequential` that work like those of
            `torch.nn`.

    Raises:
        ValueError: `classes` is not a positive integer.
    """

    def __init__(self, classes: int = 10, layers: Any = nn) -> None:
        super().__init__()
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"Ocean: classes must be a positive integer, got {classes!r}")
        self.model1 = layers.Sequential(
            layers.Conv2d(3, 32, 5, padding=2),
            layers.MaxPool2d(2),
            layers.Conv2d(32, 32, 5, padding=2),
            layers.MaxPool2d(2),
            layers.Conv2d(32, 64, 5, padding=2),
            layers.MaxPool2d(2),
            layers.Flatten(),
            layers.Linear(1024, 64),
            layers.Linear(64, classes),
        )

    def forward(self, images: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, "batch classes"]:
        return self.model1(images)
