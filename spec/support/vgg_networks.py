"""VGG16 for tests: its printed form, networks without memory, and state dicts with small files."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor

Make = Callable[..., Any]

# chapter 16, lines 1194 to 1239: what print(vgg16_pretrained) shows after add_module("7", …)
PRINTED = """\
VGG(
  (features): Sequential(
    (0): Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU(inplace=True)
    (2): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (3): ReLU(inplace=True)
    (4): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (5): Conv2d(64, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (6): ReLU(inplace=True)
    (7): Conv2d(128, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (8): ReLU(inplace=True)
    (9): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (10): Conv2d(128, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (11): ReLU(inplace=True)
    (12): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (13): ReLU(inplace=True)
    (14): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (15): ReLU(inplace=True)
    (16): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (17): Conv2d(256, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (18): ReLU(inplace=True)
    (19): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (20): ReLU(inplace=True)
    (21): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (22): ReLU(inplace=True)
    (23): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (24): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (25): ReLU(inplace=True)
    (26): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (27): ReLU(inplace=True)
    (28): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (29): ReLU(inplace=True)
    (30): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (avgpool): AdaptiveAvgPool2d(output_size=(7, 7))
  (classifier): Sequential(
    (0): Linear(in_features=25088, out_features=4096, bias=True)
    (1): ReLU(inplace=True)
    (2): Dropout(p=0.5, inplace=False)
    (3): Linear(in_features=4096, out_features=4096, bias=True)
    (4): ReLU(inplace=True)
    (5): Dropout(p=0.5, inplace=False)
    (6): Linear(in_features=4096, out_features=1000, bias=True)
  )
  (7): Linear(in_features=1000, out_features=10, bias=True)
)"""
APPENDED = "\n  (7): Linear(in_features=1000, out_features=10, bias=True)"
# chapter 16, lines 1240 to 1283: the same without that layer and with 10 scores; the last line, ")", is missing there
PRINTED_REPLACED = PRINTED.replace(APPENDED, "").replace("out_features=1000", "out_features=10").removesuffix("\n)")


def on_meta(make: Make, *args: Any, **options: Any) -> Any:
    """A network on the meta device, with shapes but without memory for the numbers."""
    with torch.device("meta"):
        return make(*args, **options)


# Trained weights


def tiny_state(classes: int = 1000) -> dict[str, Tensor]:
    """A state dict of VGG16 with a small file: each tensor is one number, repeated, and no two tensors share it."""
    with torch.device("meta"):
        expected = torchvision.models.vgg16(num_classes=classes).state_dict()
    return OrderedDict(
        (name, torch.tensor(i / 8, device="cpu").expand(value.shape))
        for i, (name, value) in enumerate(expected.items())
    )


def firsts(state: dict[str, Tensor]) -> dict[str, float]:
    """The number of each tensor, which must be the same everywhere in it."""
    return {name: value.reshape(-1)[0].item() for name, value in state.items()}
