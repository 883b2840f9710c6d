"""Chapters 17 and 20: a trained network as a file for other programs.

    safetensors     the weights; anyone may read it, nothing in it can run
    onnx            weights and operations for onnxruntime and other runtimes; any number of images
    torch-export    weights and operations for `torch.export.load`, without the class of the network
    whole-module    chapter 17's method 1, `torch.save(network, path)`: loading it needs `weights_only=False`, which
                    runs code of the file, and this project's class of the network

Class names and preprocessing are inside each file. `export` compares the answers of the file with those of the network
on `IMAGES` images.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference.checkpoint import build_network, load_checkpoint
from reference.data.shapes import Shapes
from reference.errors import InputError
from reference.files import atomic_write
from reference.text import json_text

Kind = Literal["safetensors", "onnx", "torch-export", "whole-module"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES: dict[Kind, str] = {
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "whole-module": ".pth",
}
IMAGES = 100
"""Images on which a file is compared with the network."""
LONGEST_SUM = 1024
"""The number of terms of the longest sum in the network: the inputs of its first linear layer."""

Scores = Float[Tensor, "images classes"]


def export(checkpoint: Path, kind: Kind, output: Path) -> float:
    """Write the network of a checkpoint as `kind` into the file `output`, completely or not at all, and verify the
    file.

    Args:
        checkpoint: a checkpoint that `save_checkpoint` wrote.
        kind: one of `KINDS`.
        output: the file; an existing one is replaced.

    Returns:
        The largest difference between the scores of the file and of the network, on `IMAGES` images.

    Raises:
        InputError: the checkpoint cannot be read, a package is missing, or the file gives other answers.
    """
    if kind == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f'--to onnx needs {", ".join(missing)}: python -m pip install -e ".[export]"')
    content = load_checkpoint(checkpoint)
    network = build_network(content).eval()
    about = {name: content[name] for name in ("class_names", "preprocessing", "network")}
    images = Shapes(train=False, size=IMAGES).images / 255
    write, read = WAYS[kind]
    with TemporaryDirectory(prefix="ocean-spec-") as place:
        written = Path(place, "network" + SUFFIXES[kind])
        write(network, about, images, written)
        with torch.no_grad():
            difference = verified(read(written, about)(images), network(images), kind)
        with atomic_write(output) as file:
            file.write(written.read_bytes())
    return difference


def verified(found: Scores, expected: Scores, kind: Kind) -> float:
    """Return the largest difference of scores; raise an error if it exceeds the tolerance.

    Two orders of a float32 sum of n terms differ by at most about n · eps times the sum of the terms' sizes; the size
    of the scores is used as an estimate of this sum.

    Raises:
        InputError: a score differs by more.
    """
    if found.shape != expected.shape:
        raise InputError(f"--to {kind}: the file gives scores {list(found.shape)}, the network {list(expected.shape)}")
    difference = float((found.double() - expected.double()).abs().max())
    allowed = LONGEST_SUM * torch.finfo(torch.float32).eps * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise InputError(f"--to {kind}: scores of the file differ from the network's by {difference:.2g}; not written")
    return difference


def texts(about: dict[str, Any]) -> dict[str, str]:
    """The metadata of a network, as names and JSON texts."""
    return {name: json_text(value) for name, value in about.items()}


def write_safetensors(network: nn.Module, about: dict[str, Any], images: Tensor, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, texts(about))


def read_safetensors(path: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file

    network = build_network(about | {"state_dict": load_file(path)})
    return network.eval()


def write_onnx(network: nn.Module, about: dict[str, Any], images: Tensor, path: Path) -> None:
    import logging

    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        network,
        (images[:2],),
        dynamo=True,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: batch},),
        external_data=False,
        verbose=False,
    )
    assert program is not None, "an export with dynamo returns a program"
    model = program.model_proto
    for name, text in texts(about).items():
        model.metadata_props.add(key=name, value=text)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def read_onnx(path: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        (scores,) = session.run(["scores"], {"images": images.numpy()})
        return torch.from_numpy(np.asarray(scores))

    return answer


def write_torch_export(network: nn.Module, about: dict[str, Any], images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch},)
    program = torch.export.export(network, (images[:2].clone(),), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path, extra_files=dict(texts(about)))


def read_torch_export(path: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def write_whole_module(network: nn.Module, about: dict[str, Any], images: Tensor, path: Path) -> None:
    for name in ("class_names", "preprocessing"):
        setattr(network, name, about[name])
    torch.save(network, path)


def read_whole_module(path: Path, about: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return torch.load(path, weights_only=False)  # written a moment ago by this process


WAYS: dict[Kind, tuple[Callable[..., None], Callable[[Path, dict[str, Any]], Callable[[Tensor], Tensor]]]] = {
    "safetensors": (write_safetensors, read_safetensors),
    "onnx": (write_onnx, read_onnx),
    "torch-export": (write_torch_export, read_torch_export),
    "whole-module": (write_whole_module, read_whole_module),
}
"""For each kind, the function that writes the file, and the one that reads it as a function from images to scores."""
