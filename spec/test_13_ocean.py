"""Chapter 13: the tutorial's network."""

import pytest
import torch
from torch import nn

from reference.models import Ocean

# chapter 13, line 918: what print(ocean) shows
PRINTED = """\
Ocean(
  (model1): Sequential(
    (0): Conv2d(3, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    (1): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (2): Conv2d(32, 32, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    (3): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (4): Conv2d(32, 64, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
    (5): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    (6): Flatten(start_dim=1, end_dim=-1)
    (7): Linear(in_features=1024, out_features=64, bias=True)
    (8): Linear(in_features=64, out_features=10, bias=True)
  )
)"""

# chapter 13, line 839: the sizes in the picture, layer by layer
SHAPES = [(32, 32, 32), (32, 16, 16), (32, 16, 16), (32, 8, 8), (64, 8, 8), (64, 4, 4), (1024,), (64,), (10,)]


def test_it_prints_as_documented() -> None:
    assert str(Ocean()) == PRINTED


def test_it_has_145578_parameters() -> None:
    # by hand: weights and biases of 3→32, 32→32 and 32→64 5×5 convolutions, 1024→64 and 64→10 linear layers
    by_hand = (3 * 25 + 1) * 32 + (32 * 25 + 1) * 32 + (32 * 25 + 1) * 64 + 1025 * 64 + 65 * 10
    assert by_hand == 145_578
    assert sum(parameter.numel() for parameter in Ocean().parameters()) == 145_578


def test_the_shape_after_each_layer_is_the_documented_one() -> None:
    values, found = torch.ones(64, 3, 32, 32), []
    for layer in Ocean().model1:
        values = layer(values)
        found.append(tuple(values.shape))
    assert found == [(64, *shape) for shape in SHAPES]


def test_another_number_of_classes_changes_the_last_layer_only() -> None:
    assert Ocean(classes=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("classes", [0, -1, 2.5, "ten"])
def test_an_impossible_number_of_classes_is_rejected(classes: object) -> None:
    with pytest.raises(ValueError, match="classes must be a positive integer, got"):
        Ocean(classes=classes)  # type: ignore[arg-type]


def test_the_layers_come_from_the_given_namespace() -> None:
    class Layers:
        """PyTorch's, but every convolution is counted."""

        Sequential, MaxPool2d, Flatten, Linear = nn.Sequential, nn.MaxPool2d, nn.Flatten, nn.Linear
        made = 0

        @classmethod
        def Conv2d(cls, *args: int, **kwargs: int) -> nn.Conv2d:  # noqa: N802
            cls.made += 1
            return nn.Conv2d(*args, **kwargs)  # type: ignore[arg-type]

    Ocean(layers=Layers)
    assert Layers.made == 3
