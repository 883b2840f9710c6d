"""Finding the networks and state dicts in a foreign file, at any depth of its dictionaries, lists and objects."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.errors import InputError
from reference.untrusted.bounds import CANDIDATES, DIMENSIONS, ENTRIES, KEY_LENGTH, LEVELS, WORD
from reference.untrusted.calls import BOUND_METHOD, NUMPY_ARRAY, NUMPY_DTYPE
from reference.untrusted.container import read_torch_file
from reference.untrusted.modules import is_module
from reference.untrusted.pickle_machine import Record


@dataclass(frozen=True)
class Candidate:
    """A network or a state dict in a file.

    Attributes:
        name: its place, "state_dict" or "models[0].net" for example; empty if it is the whole content.
        found: the record of a module, or tensors by name.
        method: whether it was saved as `model.state_dict` without parentheses.
    """

    name: str
    found: Record | dict[str, Tensor] = field(repr=False)
    method: bool = False


def candidates(content: Any) -> list[Candidate]:
    """The networks and state dicts in the content of a file, the outer ones first.

    Candidates inside another candidate, states of optimizers, and dictionaries in which no tensor could be the weight
    of a layer are left out.
    """
    found: list[Candidate] = []
    seen: set[int] = set()
    arrays: dict[int, Tensor] = {}
    waiting: deque[tuple[Any, Any, int]] = deque([(None, content, 0)])
    while waiting and len(seen) < ENTRIES and len(found) < CANDIDATES:
        place, value, level = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        method = isinstance(value, Record) and value.kind == BOUND_METHOD and len(value.arguments) == 2
        if isinstance(value, Record) and method:
            value = value.arguments[0]
        tensors = None if isinstance(value, Record) else as_state_dict(value, arrays)
        if is_module(value):
            found.append(Candidate(written(place), value, method))
        elif tensors is not None:
            if place is None or any(tensor.is_floating_point() and tensor.dim() for tensor in tensors.values()):
                found.append(Candidate(written(place), tensors))
        elif not is_optimizer(value) and level < LEVELS:
            waiting.extend(((place, step), inner, level + 1) for step, inner in inside(value))
    return found


def inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """The elements of a container or an object, each with its key, its index or its name."""
    if isinstance(value, Record):
        for part in (value.attributes, value.entries, value.items):
            yield from inside(part)
    elif isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        yield from ((key, inner) for key, inner in entries if isinstance(inner, dict | list | tuple | Record))


def written(place: Any) -> str:
    """A position as a path from the outermost container: "state_dict", "models[0].net"."""
    steps: list[str] = []
    while place is not None:
        place, key = place
        named = isinstance(key, str) and 0 < len(key) <= WORD and key.isprintable()
        steps.append(f".{key}" if named else f"[{key!r:.50}]")
    return "".join(reversed(steps)).removeprefix(".")


def is_optimizer(value: Any) -> bool:
    """Whether the value is an optimizer or its state dict, which contain tensors that are not parameters."""
    if isinstance(value, Record):
        return "param_groups" in value.attributes
    return isinstance(value, dict) and "param_groups" in value


def as_state_dict(value: Any, arrays: dict[int, Tensor]) -> dict[str, Tensor] | None:
    """The same dictionary if it maps short printable names to tensors, or to arrays of NumPy; None otherwise.

    Args:
        value: any object.
        arrays: the bytes of the arrays converted so far, by the identity of their source.
    """
    if not isinstance(value, dict) or not 0 < len(value) <= ENTRIES:
        return None
    if not all(isinstance(key, str) and key.isprintable() and len(key) <= KEY_LENGTH for key in value):
        return None
    if all(isinstance(tensor, Tensor) for tensor in value.values()):
        return value
    if all(isinstance(part, Tensor) or is_array(part) for part in value.values()):
        return {key: part if isinstance(part, Tensor) else as_tensor(part, arrays) for key, part in value.items()}
    return None


def is_array(value: Any) -> bool:
    return isinstance(value, Record) and value.kind in NUMPY_ARRAY and type(value.state) is tuple


ARRAYS = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32,
    "i2": torch.int16, "i1": torch.int8, "u1": torch.uint8,
}  # fmt: skip
"""dtypes of NumPy's arrays that are read, little-endian ones only."""


def as_tensor(array: Record, arrays: dict[int, Tensor]) -> Tensor:
    """The numbers of an array of NumPy.

    Raises:
        ValueError: it is in column order, of an unknown dtype, or its shape does not match its number of bytes.
    """
    match array.state:
        case (
            int(),
            tuple(shape),
            Record(kind=kind, arguments=(str(code), *_), state=(_, "<" | "|", *_)),
            False,
            bytes() | str() as content,
        ) if kind == NUMPY_DTYPE and code in ARRAYS and len(shape) <= DIMENSIONS:
            pass
        case _:
            raise ValueError("an array of NumPy is of a kind that is not read")
    if id(content) not in arrays:
        data = content.encode("latin-1") if isinstance(content, str) else content
        arrays[id(content)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
    dtype, count = ARRAYS[code], 1
    for length in shape:
        if type(length) is not int or not 0 <= length < 1 << 40:
            raise ValueError("the shape of an array of NumPy is negative, or not made of whole numbers")
        count *= length
    if count * dtype.itemsize != len(arrays[id(content)]):
        raise ValueError(f"an array of NumPy has {len(arrays[id(content)]):,} bytes, which its shape does not need")
    return arrays[id(content)].view(dtype).reshape(shape)


def what_it_is(path: Path) -> str:
    """A short description of a file that is not a checkpoint of this project, or the reason why it cannot be read."""
    try:
        content = read_torch_file(path).content
        first = next(iter(candidates(content)), None)
    except InputError as error:
        return f"it {str(error).removeprefix(f'{path} ')}"
    except ValueError as error:
        return f"it cannot be read either ({error})"
    if first is None:
        found = "data, but no network"
    else:
        found = "a whole network" if isinstance(first.found, Record) else "a state dict"
    kind = f" ({content.kind})" if isinstance(content, Record) else ""
    return f"it holds {found}{kind}, which predict.py --legacy reads without running anything in it"
