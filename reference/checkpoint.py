"""Chapter 17: saving and loading. A checkpoint alone is enough to predict and to resume training.

A checkpoint is one plain dictionary of tensors, numbers, strings, lists and dictionaries, written by `torch.save`.
`load_checkpoint` reads it with the strict reader of `reference.untrusted`, which builds the tensors from verified bytes
and runs no code of the file. `save_checkpoint` checks the bytes that it is about to write with the same reader. The
entries:

    format, version     the name and the version of this format
    network             {"name": "Ocean", "classes": 10}: how to build the network again
    class_names         the name of each class, in the order of the scores
    preprocessing       {"size": [32, 32], "mode": "RGB", "scale": 255}: how an image is converted before the network
    state_dict          the network's parameters and buffers, on the CPU, each with a storage of its own size
    metrics             of the epoch after which it was saved; empty before the first
    training            the other data needed to resume: optimizer, progress, random states (`reference.run`)
"""

import io
from collections import OrderedDict
from pathlib import Path
from reprlib import repr as brief  # the repr of nested lists in a hostile file might never end
from typing import Any

import torch
from torch import Tensor, nn

from reference.errors import InputError
from reference.files import atomic_write
from reference.models import Ocean
from reference.text import is_printable, printable
from reference.untrusted import what_it_is
from reference.untrusted.archive import LOCAL
from reference.untrusted.calls import PlainMachine
from reference.untrusted.container import NONSENSE, opened, read_zip
from reference.untrusted.pickle_machine import ForeignError

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


def save_checkpoint(
    path: Path | str,
    network: nn.Module,
    class_names: tuple[str, ...] | list[str],
    *,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write `network` and the data that belongs to it to `path`: all of it, or nothing.

    Args:
        path: the file; an existing one is replaced in one step, once the new one is on the disk.
        network: one of `NETWORKS`, on any device; also compiled by `torch.compile` or inside `DataParallel` or
            `DistributedDataParallel`; the prefixes that they add to the keys are left out.
        class_names: one for each of the network's scores.
        metrics: of the epoch it was saved after; plain data.
        training: plain data needed to resume the training.

    Raises:
        InputError: `load_checkpoint` could not load the file: the network is not in `NETWORKS`, its weights are not
            finite, the number of class names differs from the number of scores, a class name cannot be printed, or a
            value is not plain data. Nothing was written.
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
        data = io.BytesIO()
        torch.save(content, data)
        check_content(read_zip(data, data.tell(), PlainMachine).content)
    except NONSENSE as problem:
        raise InputError(f"{path} is not written: {problem}") from None
    with atomic_write(path) as file:
        file.write(data.getbuffer())


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without a wrapper of `torch.compile`, `DataParallel` or `DistributedDataParallel`."""
    while True:
        # the class of a compiled network is not imported: the compiler takes seconds to import
        inner = getattr(network, "_modules", {}).get("_orig_mod")
        if inner is None and isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if inner is None:
            return network
        network = inner


def without_wrappers(key: str) -> str:
    """The name of a weight in a network without compiled parts."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def compact(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU; for a view, `torch.save` would write its whole storage."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return tensor
    tensor = tensor.cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint and check it: all entries are present, and the weights fit the network that it names.

    Class names are `printable`: control characters in them are escaped.

    All tensors are on the CPU, for any device that they were saved from. Nothing in the file is executed, and the
    memory that reading takes is proportional to the file's size.

    Raises:
        InputError: the file is missing, cut off, altered, not a checkpoint of this project, of a newer version, or
            inconsistent; the message says which.
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
        check_plain(content, "its content")
    except ValueError as problem:
        raise InputError(f"{path} cannot be used: {problem}") from None
    content["class_names"] = [printable(name) for name in content["class_names"]]
    return content


def read_plain_file(path: Path) -> Any:
    """The plain data that `torch.save` wrote to `path`.

    Raises:
        InputError: the file is missing, not written by `torch.save`, cut off or altered, or it requests code to be run.
    """
    try:
        with opened(path) as (file, size, start):
            if not start.startswith(LOCAL):
                raise InputError(f"{path} is not a checkpoint: {what_it_is(path)}")
            return read_zip(file, size, PlainMachine).content
    except InputError:
        raise
    except ForeignError as error:
        raise InputError(
            f"{path} was refused: it holds more than plain data ({error}), and reading that could run code; "
            f"{what_it_is(path)}"
        ) from error
    except NONSENSE as error:
        reason = str(error) if type(error) is ValueError else "its instructions make no sense"
        raise InputError(f"{path} is damaged or cut off: {reason}") from error


def check_content(content: dict[str, Any]) -> None:
    """Check that the entries of a checkpoint are consistent, and that its weights fit the network that it names.

    Raises:
        ValueError: an entry is missing, the number of names differs from the number of classes, or the weights are not
            finite or differ from that network in keys, shapes or dtypes.
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
        raise ValueError(f"its class names are {len(names)}, its classes {brief(classes)}")
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
    """Raise ValueError if a class name cannot be printed unchanged, because readers of the file would escape it."""
    for name in names:
        if not is_printable(name):
            raise ValueError(f"the class name {name!r} has characters that cannot be printed; rename the class")


def check_plain(value: Any, where: str) -> None:
    """Raise ValueError unless `value` consists of tensors, numbers, strings, None, lists, tuples and dictionaries.

    Keys of dictionaries are numbers, strings or None. Containers may be nested to any depth.
    """
    seen: set[int] = set()
    waiting: list[tuple[Any, Any]] = [(value, (None, where))]  # a value, and its container's place and key
    while waiting:
        value, place = waiting.pop()
        kind = type(value)
        if kind in CONTAINERS:
            if id(value) in seen:
                continue
            seen.add(id(value))
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in entries:
                if type(key) not in PLAIN:
                    raise ValueError(f"a key of {written(place)} is a {kind_of(key)}, which no key of plain data is")
                waiting.append((inner, (place, key)))
        elif isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_quantized or value.is_meta):
            layout = "meta" if value.is_meta else value.layout
            raise ValueError(f"{written(place)} is a {layout} tensor, which is no plain data")
        elif kind not in (*PLAIN, Tensor, nn.Parameter):
            raise ValueError(f"{written(place)} is a {kind_of(value)}, which is no plain data")


def kind_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def written(place: Any) -> str:
    """A position in nested containers as a Python expression; if it is deeply nested, only its innermost keys."""
    keys: list[str] = []
    while place[0] is not None and len(keys) < 10:
        place, key = place
        keys.append(f"[{brief(key)}]")
    return f"{place[1] if place[0] is None else '…'}{''.join(reversed(keys))}"


def build_network(content: dict[str, Any]) -> nn.Module:
    """The network of a loaded checkpoint, with its weights, on the CPU."""
    network = NETWORKS[content["network"]["name"]](content["network"]["classes"])
    network.load_state_dict(content["state_dict"])
    return network
