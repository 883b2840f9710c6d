"""Chapter 17: shared by the tests of whole networks in files: the tutorial's network, and ways to write a file."""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spec.support.torch_files import Member, Raw, Writer, archive

Read = Callable[..., Any]
FORMATS = pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])


def save(thing: Any, path: Path, old: bool = False, protocol: int = 2) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning about missing source code
        torch.save(thing, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(says: str = "") -> Any:
    """Assert that the file is refused in one line with its name and the reason."""
    return pytest.raises(ValueError, match=rf"(?s)net\.pth.*{says}")


class Ocean(nn.Module):
    """The tutorial's network, lines 1344 to 1361."""

    def __init__(self) -> None:
        super().__init__()
        self.model1 = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, 64),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model1(x)


def old_ocean(writer: Writer, kind: Any = "__main__.Ocean") -> tuple[Any, nn.Module]:
    """The tutorial's network in the format of a version of PyTorch, and the network."""
    torch.manual_seed(0)
    ocean = Ocean()
    layers = []
    for layer in ocean.model1:
        match layer:
            case nn.Conv2d():
                layers.append(writer.conv2d(layer))
            case nn.MaxPool2d():
                layers.append(writer.max_pool2d(layer))
            case nn.Linear():
                layers.append(writer.linear(layer))
            case _:
                layers.append(writer.flatten())
    return writer.module(kind, children={"model1": writer.sequential(*layers)}), ocean


def packed(code: bytes, container: str) -> bytes:
    python_2 = b"__builtin__" in code or b"copy_reg" in code  # later protocols do not know these names
    whole = (b"\x80\x02" if python_2 else b"\x80\x04") + code + b"."
    if container == "zip":
        return archive([Member("data.pkl", whole), Member("version", b"3\n")])
    return Writer("1.5").old(Raw(code)) if container == "old" else whole


def word(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def entry(number: int) -> bytes:
    return word(number) + b"N"
