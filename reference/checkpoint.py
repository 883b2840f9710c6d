"""Chapter 17: saving and loading, such that a checkpoint alone is enough to predict and to go on training.

A checkpoint is one plain dictionary of tensors, numbers, strings, lists and dictionaries, written by `torch.save` and
read by `torch.load(weights_only=True)`: reading it runs no code. `load_checkpoint` hands out nothing that it has not
verified, and `save_checkpoint` writes nothing that `load_checkpoint` would refuse. The entries:

    format, version     what the file is
    network             {"name": "Ocean", "classes": 10}: how to build the network again
    class_names         the name of each class, in the order of the scores
    preprocessing       {"size": [32, 32], "mode": "RGB", "scale": 255}: what a picture goes through before the network
    state_dict          the network's parameters and buffers, on the CPU, each with memory of its own size
    metrics             of the epoch after which it was saved; empty before the first
    training            what going on needs besides: optimizer, progress, random states (`reference.run`)
"""

import os
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from reprlib import repr as brief  # of a hostile file's lists in lists in lists the whole text might never end
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from reference.errors import InputError
from reference.files import atomic_write
from reference.legacy_checkpoint import what_it_is
from reference.models import Ocean
from reference.text import is_printable, printable

FORMAT = "ocean-spec checkpoint"
VERSION = 1
PREPROCESSING = {"size": [32, 32], "mode": "RGB", "scale": 255}
NETWORKS = {"Ocean": Ocean}
ENTRIES = {
    "network": dict,
    "class_names": list,
    "preprocessing": dict,
    "state_dict": dict,
    "metrics": dict,
    "training": dict,
}

PLAIN = (type(None), bool, int, float, str)
CONTAINERS = (dict, OrderedDict, list, tuple)
GLOBALS = (
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage|"
    r"torch (u?int|b?float|complex)\d+\w*"
)
"""What a checkpoint may ask the reader for by name: nothing that takes memory for numbers that are not in the file."""


def save_checkpoint(
    path: Path | str,
    network: nn.Module,
    class_names: tuple[str, ...] | list[str],
    *,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write `network` and what belongs to it to `path`: all of it, or nothing.

    Args:
        path: the file; an older one there is replaced in one step, once the new one is on the disk.
        network: one of `NETWORKS`, on any device; also compiled by `torch.compile` or inside `DataParallel` or
            `DistributedDataParallel`, whose prefixes are left out.
        class_names: one for each of the network's scores.
        metrics: of the epoch it was saved after; plain data.
        training: plain data that going on with the training needs.

    Raises:
        InputError: `load_checkpoint` could not give it back: the network is none of ours, its weights are not finite,
            the class names are not one for each score or cannot be printed, or something is no plain data; nothing was
            written.
        OSError: it could not be written; `path` keeps its old content.
    """
    path, network = Path(path), unwrapped(network)
    name = type(network).__name__
    try:
        if type(network) is not NETWORKS.get(name):
            known = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in NETWORKS.values())
            raise ValueError(f"the network is a {type(network).__module__}.{name}; only {known} can be built again")
        content = {
            "format": FORMAT,
            "version": VERSION,
            "network": {"name": name, "classes": len(class_names)},
            "class_names": list(class_names) if isinstance(class_names, list | tuple) else class_names,
            "preprocessing": PREPROCESSING,
            "state_dict": {without_wrappers(key): compact(value) for key, value in network.state_dict().items()},
            "metrics": metrics or {},
            "training": training or {},
        }
        check_content(content)
        check_printable(content["class_names"])
        check_plain(content["metrics"], "metrics")
        check_plain(content["training"], "training")
    except ValueError as problem:
        raise InputError(f"{path} is not written: {problem}") from None
    with atomic_write(path) as file:
        torch.save(content, file)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, if `torch.compile`, `DataParallel` or `DistributedDataParallel` is around it."""
    while True:
        # the class of what torch.compile makes is not asked for: the compiler takes seconds to import
        inner = getattr(network, "_modules", {}).get("_orig_mod")
        if inner is None and isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if inner is None:
            return network
        network = inner


def without_wrappers(key: str) -> str:
    """The name of a weight as it is when no part of the network is compiled."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def compact(tensor: Tensor) -> Tensor:
    """The same numbers on the CPU, in memory of their own: of a view, `torch.save` writes all that it is a view of."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return tensor
    tensor = tensor.cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, checked: all entries there, and the weights fit the network that it names.

    Class names are `printable`: control characters in them are escaped.

    Everything arrives on the CPU, wherever it was saved from. Nothing in the file is executed, and the memory that
    reading takes is in proportion to the file's size.

    Raises:
        InputError: there is no such file, or it is cut off, altered, not a checkpoint of this project, of a newer
            version, or its parts contradict each other; the text says which.
    """
    path = Path(path)
    content = read_plain_file(path)
    if not isinstance(content, dict) or brief(content.get("format")) != brief(FORMAT):
        lacks = f"it lacks the entry format = {FORMAT!r}"
        raise InputError(f"{path} is not an Ocean Spec checkpoint: {lacks}; {what_it_is(path)}")
    if brief(content.get("version")) != brief(VERSION):
        version = brief(content.get("version"))
        raise InputError(f"{path} has checkpoint version {version}, this program reads version {VERSION}: update it")
    try:
        check_content(content)
    except ValueError as problem:
        raise InputError(f"{path} cannot be used: {problem}") from None
    content["class_names"] = [printable(name) for name in content["class_names"]]
    return content


def read_plain_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is nothing but plain data, and exactly what was written.

    Raises:
        InputError: the file is missing, not of `torch.save`, cut off, altered, or asks for code to be run.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise InputError(f"{path} is not a checkpoint: {what_it_is(path)}")
            check_archive(file)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what it is going to refuse
                return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ForeignDataError as error:
        raise InputError(
            f"{path} was refused: it holds more than plain data ({error}), and reading that could run code; "
            f"{what_it_is(path)}"
        ) from error
    except Exception as error:  # whatever a damaged archive makes the reader raise
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"{path} is damaged or cut off: {''.join(reason)}") from error


class ForeignDataError(Exception):
    """A file asks for something by name that no plain data need."""


def check_archive(file: BinaryIO) -> None:
    """Verify what `torch.load` takes on trust: that no bit has changed, and that nothing is larger than the file.

    Raises:
        ForeignDataError: the pickle asks for something that is not in `GLOBALS`.
        Exception: the archive is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if len({record.filename for record in records}) < len(records):
            raise ValueError("two of its records have the same name")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records are compressed, which torch.save never does")
        if sum(record.file_size for record in records) > file.seek(0, os.SEEK_END):
            raise ValueError("its records are larger than the file")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its record {broken} is wrong")
        for record in records:
            if record.filename.lower().endswith("/data.pkl"):
                for code, argument, _ in pickletools.genops(archive.read(record)):
                    if code.name == "GLOBAL" and not re.fullmatch(GLOBALS, str(argument)):
                        raise ForeignDataError(f"it asks for {'.'.join(str(argument).split())}")


def check_content(content: dict[str, Any]) -> None:
    """Hold the entries of a checkpoint against each other, and its weights against the network that it names.

    Raises:
        ValueError: an entry is missing, the names are not one for each class, or the weights are not finite or not of
            that network: same keys, shapes and dtypes.
    """
    for name, kind in ENTRIES.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"its entry {name!r} is missing or not a {kind.__name__}")
    names, described = content["class_names"], content["network"]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be a list of names")
    if (wanted := brief(content["preprocessing"])) != brief(PREPROCESSING):
        raise ValueError(f"it wants the preprocessing {wanted}, this program knows {PREPROCESSING}")
    name, classes = described.get("name"), described.get("classes")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"it holds the network {brief(name)}; this program knows {', '.join(NETWORKS)}")
    if type(classes) is not int or classes != len(names):
        raise ValueError(f"there are {len(names)} class names for {brief(classes)} classes")
    with torch.device("meta"):
        expected = NETWORKS[name](classes).state_dict()
    found = content["state_dict"]
    for key in [*expected, *found]:
        ours, theirs = expected.get(key), found.get(key)
        if ours is None:
            raise ValueError(f"its weights are not those of {name}: {brief(key)} does not belong there")
        if not isinstance(theirs, Tensor):
            raise ValueError(f"its weights are not those of {name}: {key!r} is missing")
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ValueError(
                f"{key} is {theirs.dtype} {tuple(theirs.shape)}, but {name} for {classes} classes needs "
                f"{ours.dtype} {tuple(ours.shape)}"
            )
        if theirs.is_meta:
            raise ValueError(f"{key} has no numbers, it is on the meta device")
        if not all(bound.isfinite() for bound in theirs.aminmax()):
            raise ValueError(f"{key} has numbers that are not finite")


def check_printable(names: list[str]) -> None:
    """Raise ValueError if a class name cannot be printed as it is: it would be escaped wherever it is read."""
    for name in names:
        if not is_printable(name):
            raise ValueError(f"the class name {name!r} has characters that cannot be printed; rename the class")


def check_plain(value: Any, where: str) -> None:
    """Raise ValueError unless `value` is made of tensors, numbers, strings, None, lists, tuples and dictionaries."""
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(inner, f"{where}[{key!r}]")
    elif type(value) in CONTAINERS:
        for number, inner in enumerate(value):
            check_plain(inner, f"{where}[{number}]")
    elif isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_quantized or value.is_meta):
        raise ValueError(f"{where} is a {'meta' if value.is_meta else value.layout} tensor, which is no plain data")
    elif type(value) not in (*PLAIN, Tensor, nn.Parameter):
        raise ValueError(f"{where} is a {type(value).__module__}.{type(value).__name__}, which is no plain data")


def build_network(content: dict[str, Any]) -> nn.Module:
    """The network of a loaded checkpoint, with its weights, on the CPU."""
    network = NETWORKS[content["network"]["name"]](content["network"]["classes"])
    network.load_state_dict(content["state_dict"])
    return network
