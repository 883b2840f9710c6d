"""Chapter 16: trained weights, downloaded once from torchvision's address, or read from a file."""

import importlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from reference.data.download import LARGEST_DOWNLOAD, download, sha256_of
from reference.errors import InputError
from reference.untrusted.archive import LOCAL
from reference.untrusted.calls import StateMachine
from reference.untrusted.container import NONSENSE, opened, read_old, read_zip
from reference.untrusted.pickle_machine import ForeignError

SUFFIXES = (".pth", ".pt")


def read_weights(weights: Any, listing: str, progress: bool) -> tuple[str, dict[str, Any]]:
    """A state dict, and its name for messages.

    Args:
        weights: a member of the listing, its name, or the path of a file.
        listing: the name of the enumeration in `torchvision.models`, such as "VGG16_Weights".
        progress: show a bar during the download.

    Raises:
        InputError: the file is missing, damaged or not a state dict; or it cannot be downloaded, or torchvision has no
            weights of that name.
        TypeError: `weights` is of another type.
    """
    if isinstance(weights, os.PathLike) or (isinstance(weights, str) and _is_path(weights)):
        path = Path(weights)
        return str(path), read_state(path)
    member = _member(weights, listing)
    name = Path(urlparse(member.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    begins = _digest_in(name)
    if not path.exists():
        _fetch(member, path, begins, progress)
    elif not sha256_of(path).startswith(begins):
        raise InputError(
            f"{path} is damaged: its SHA-256 does not begin with {begins}; remove it, and it is fetched anew"
        )
    return str(path), read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`, on the CPU; no code of the file is run.

    Raises:
        InputError: the file is missing or damaged, needs code to be run, or holds something else.
    """
    try:
        with opened(path) as (file, size, start):
            read = read_zip if start.startswith(LOCAL) else read_old
            content = read(file, size, StateMachine).content
    except InputError:
        raise
    except ForeignError as error:
        raise InputError(
            f"{path} was not read, because it holds more than tensors, or is damaged, and reading it could run code; "
            "save the weights with torch.save(network.state_dict(), path) (for a whole network, "
            "reference.read_legacy_checkpoint extracts them)"
        ) from error
    except NONSENSE as error:
        reason = str(error) if type(error) is ValueError else "its instructions make no sense"
        raise InputError(f"{path} is damaged or cut off: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def check_state(source: str, state: Mapping[str, Any], expected: Mapping[str, Tensor], network: str) -> None:
    """Check a state dict against that of a network: the same keys and shapes, and dtypes that fit without rounding.

    Args:
        source: the origin, for the message.
        state: the state dict that was read.
        expected: the network's own state dict; its values do not matter.
        network: the name of the network, for the message.

    Raises:
        InputError: they differ; the message names the first wrong entry.
    """
    problem = next((said for key in (*expected, *state) if (said := _problem(key, state, expected))), None)
    if problem is not None:
        raise InputError(f"{source} does not hold the weights of a {network}: {problem}")


def _is_path(text: str) -> bool:
    return text.endswith(SUFFIXES) or os.sep in text or "/" in text


def _member(weights: Any, listing: str) -> Any:
    """The member of torchvision's enumeration, from the member itself or its name."""
    try:
        known = getattr(importlib.import_module("torchvision.models"), listing)
    except ImportError as error:
        raise InputError(
            f"weights={weights!r} needs torchvision, which is not installed: python -m pip install torchvision; "
            "or give the path of a file"
        ) from error
    if isinstance(weights, known):
        return weights
    if not isinstance(weights, str):
        raise TypeError(f"weights must be None, a {listing}, its name or a path, got {weights!r}")
    names = list(known.__members__)
    if (name := weights.removeprefix(f"{listing}.")) not in names:
        raise InputError(
            f"weights={weights!r} is unknown; there is {', '.join(names)}, and the path of a file, which ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    return known[name]


def _digest_in(name: str) -> str:
    """The beginning of a file's SHA-256, from the last word of its name: `vgg16-397923af.pth`."""
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    return found[1] if found else ""


def _fetch(member: Any, path: Path, begins: str, progress: bool) -> None:
    """Download the file of a member to `path`; the file exists afterwards only if its SHA-256 is right."""
    size = member.meta.get("_file_size")  # MiB, rounded to three digits
    largest = LARGEST_DOWNLOAD if size is None else math.ceil((size + 0.001) * 2**20)
    try:
        download([member.url], path, None, sha256=begins or None, largest=largest, progress=progress)
    except (OSError, InputError) as error:  # a full disk; no connection, another SHA-256
        told = [f"{size:.0f} MB"] if size else []
        told += [f"its SHA-256 begins with {begins}"] if begins else []
        raise InputError(
            f"{member} could not be fetched ({error}): fetch {member.url} ({', '.join(told)}) and put it at {path}, "
            "or give the path of the file as weights="
        ) from error


def _problem(key: Any, state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """A description of the problem of one entry, or None."""
    if key not in expected:
        return f"{key!r} does not belong there"
    if key not in state:
        return f"{key!r} is missing"
    found, ours = state[key], expected[key]
    if not isinstance(found, Tensor):
        return f"{key} is no tensor but a {type(found).__name__}"
    if found.shape != ours.shape:
        return f"{key} has the shape {tuple(found.shape)}, not {tuple(ours.shape)}"
    if not found.is_floating_point() or torch.promote_types(found.dtype, ours.dtype) != ours.dtype:
        return f"{key} is {found.dtype}, which {ours.dtype} does not hold without rounding"
    return None
