"""Chapter 17: saving and loading, such that a checkpoint alone is enough to predict and to go on training.

A checkpoint is one plain dictionary of tensors, numbers, strings, lists and dictionaries, written by `torch.save` and
read by `torch.load(weights_only=True)`: reading it runs no code. Its entries:

    format, version     what the file is
    network             {"name": "Ocean", "classes": 10}: how to build the network again
    class_names         the name of each class, in the order of the scores
    preprocessing       {"size": [32, 32], "mode": "RGB", "scale": 255}: what a picture goes through before the network
    state_dict          the network's parameters and buffers
    metrics             of the epoch after which it was saved; empty before the first
    training            what going on needs besides: optimizer, progress, random states (`reference.run`)
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference.errors import InputError
from reference.files import atomic_write
from reference.models import Ocean

FORMAT = "ocean-spec checkpoint"
VERSION = 1
PREPROCESSING = {"size": [32, 32], "mode": "RGB", "scale": 255}
NETWORKS = {"Ocean": Ocean}


def save_checkpoint(
    path: Path,
    network: nn.Module,
    class_names: tuple[str, ...],
    *,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write `network` and what belongs to it to `path`: all of it, or nothing.

    Args:
        path: the file; an older one there is replaced in one step, once the new one is on the disk.
        network: one of `NETWORKS`.
        class_names: one for each of the network's scores.
        metrics: of the epoch it was saved after.
        training: plain data that going on with the training needs.

    Raises:
        OSError: it could not be written; `path` keeps its old content.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "network": {"name": type(network).__name__, "classes": len(class_names)},
        "class_names": list(class_names),
        "preprocessing": PREPROCESSING,
        "state_dict": network.state_dict(),
        "metrics": metrics or {},
        "training": training or {},
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, checked: all entries there, and the weights fit the network that it names.

    Everything arrives on the CPU, wherever it was saved from. Nothing in the file is executed.

    Raises:
        InputError: there is no such file, or it is cut off, not a checkpoint of this project, of a newer version, or
            its parts contradict each other; the text says which.
    """
    path = Path(path)
    content = read_plain_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not an Ocean Spec checkpoint: it lacks the entry format = {FORMAT!r}")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {content.get('version')!r}, this program reads version {VERSION}: update it"
        )
    expected = {
        "network": dict,
        "class_names": list,
        "preprocessing": dict,
        "state_dict": dict,
        "metrics": dict,
        "training": dict,
    }
    for name, kind in expected.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{path} is damaged: its entry {name!r} is missing or not a {kind.__name__}")
    names = content["class_names"]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} is damaged: class_names must be a list of names")
    if content["preprocessing"] != PREPROCESSING:
        raise InputError(
            f"{path} wants the preprocessing {content['preprocessing']}, this program knows {PREPROCESSING}"
        )
    check_weights(path, content)
    return content


def read_plain_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is nothing but plain data.

    Raises:
        InputError: the file is missing, not of `torch.save`, cut off, or asks for code to be run.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise InputError(f"{path} is not a checkpoint: it does not begin as a file of torch.save does")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what it is going to refuse
                return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} was refused: it holds more than plain data, and reading that could run code (a whole network "
            "saved by torch.save(network)? Only files that train_full.py wrote are read)"
        ) from error
    except Exception as error:  # whatever a damaged archive makes the reader raise
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"{path} is damaged or cut off: {''.join(reason)}") from error


def check_weights(path: Path, content: dict[str, Any]) -> None:
    """Hold the weights of a checkpoint against the network that it names: same keys, shapes and dtypes.

    Raises:
        InputError: they differ, or the network is none of ours.
    """
    name, classes = content["network"].get("name"), content["network"].get("classes")
    if name not in NETWORKS:
        raise InputError(f"{path} holds the network {name!r}; this program knows {', '.join(NETWORKS)}")
    if classes != len(content["class_names"]):
        raise InputError(f"{path} is damaged: {len(content['class_names'])} class names for {classes!r} classes")
    with torch.device("meta"):
        expected = NETWORKS[name](classes).state_dict()
    found = content["state_dict"]
    for key in [*expected, *found]:
        ours, theirs = expected.get(key), found.get(key)
        if ours is None:
            raise InputError(f"{path}: its weights are not those of {name}: {key!r} does not belong there")
        if not isinstance(theirs, torch.Tensor):
            raise InputError(f"{path}: its weights are not those of {name}: {key!r} is missing")
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise InputError(
                f"{path}: {key} is {theirs.dtype} {tuple(theirs.shape)}, but {name} for {classes} classes needs "
                f"{ours.dtype} {tuple(ours.shape)}"
            )


def build_network(content: dict[str, Any]) -> nn.Module:
    """The network of a loaded checkpoint, with its weights, on the CPU."""
    network = NETWORKS[content["network"]["name"]](content["network"]["classes"])
    network.load_state_dict(content["state_dict"])
    return network
