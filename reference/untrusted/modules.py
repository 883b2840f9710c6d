"""Records of modules: checked, with their tensors under dotted names, and the network as `print` shows it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reference.untrusted.bounds import DEPTH, ENTRIES, KEY_LENGTH, NETWORK_VIEWS, OVERLAP, WORD
from reference.untrusted.pickle_machine import Name, Record

MODULE_LIST = Name("torch.nn.modules.container", "ModuleList")


class Budget:
    """A limit on the modules and tensors read from a file, which may contain the same module in many places."""

    def __init__(self) -> None:
        self.left = ENTRIES

    def spend(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"its network has more than {ENTRIES:,} modules and tensors")


class Memory:
    """The memory limit for the tensors of a network if each of them gets separate memory.

    A conversion of the dtype, a product with a mask and a move to a GPU allocate separate memory, even for a view with
    stride 0.

    Args:
        tensors: all tensors of the network; a tensor that occurs several times counts once.

    Raises:
        ValueError: the tensors are far larger than their storages.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        distinct = {id(tensor): tensor for tensor in tensors}
        storages = [tensor.untyped_storage() for tensor in distinct.values()]
        self.held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        self.left = NETWORK_VIEWS * self.held + OVERLAP * 4
        self.spend(sum(tensor.nbytes for tensor in distinct.values()))
        self.left = NETWORK_VIEWS * self.held + OVERLAP * 4

    def spend(self, size: int) -> None:
        """Count bytes that are about to be allocated."""
        self.left -= size
        if self.left < 0:
            raise ValueError(f"the tensors of its network share {self.held:,} bytes, and would take far more")


@dataclass(eq=False)
class Module:
    """A module described by the file.

    Attributes:
        kind: its class.
        attributes: all attributes by name.
        parameters, buffers: the tensors, or None.
        children: the modules in it, or None.
    """

    kind: Name
    attributes: dict[str, Any]
    parameters: dict[str, Tensor | None]
    buffers: dict[str, Tensor | None]
    children: "dict[str, Module | None]"

    @property
    def title(self) -> str:
        """The name of the module's class in the repr."""
        return self.kind.name.rpartition(".")[2]

    def tensors(self, prefix: str, budget: Budget) -> Iterator[tuple[str, Tensor]]:
        """The entries of the state dict: the module's own parameters and buffers, then those of its children."""
        hidden = self.attributes.get("_non_persistent_buffers_set")
        budget.spend(1 + len(self.parameters) + len(self.buffers))
        if len(prefix) > KEY_LENGTH - WORD:
            raise ValueError(f"the name of a parameter is longer than {KEY_LENGTH} characters")
        for name, tensor in self.parameters.items():
            if tensor is not None:
                yield prefix + name, tensor
        for name, tensor in self.buffers.items():
            if tensor is not None and not (isinstance(hidden, set) and name in hidden):
                yield prefix + name, tensor
        for name, child in self.children.items():
            if child is not None:
                yield from child.tensors(f"{prefix}{name}.", budget)

    def text(self, inner: "Callable[[Module], str]", budget: Budget) -> str:
        """The module as `print` shows it; `inner` gives the text between its parentheses besides its children."""
        budget.spend(1 + len(self.children))
        shown = [(name, child.text(inner, budget) if child else "None") for name, child in self.children.items()]
        if self.kind == MODULE_LIST:
            shown = repeated(shown)
        lines = [f"({name}): " + text.replace("\n", "\n  ") for name, text in shown]
        first = inner(self)
        if not lines:
            return f"{self.title}({first})"
        return "\n  ".join([f"{self.title}(", *([first] if first else []), *lines]) + "\n)"


def repeated(shown: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Merge equal neighbours in a ModuleList, as `print` does."""
    runs: list[list[Any]] = []
    for number, (_, text) in enumerate(shown):
        if runs and runs[-1][2] == text:
            runs[-1][1] = number
        else:
            runs.append([number, number, text])
    return [(f"{a}", t) if a == b else (f"{a}-{b}", f"{b - a + 1} x {t}") for a, b, t in runs]


def is_module(value: Any) -> bool:
    return isinstance(value, Record) and {"_parameters", "_buffers", "_modules"} <= value.attributes.keys()


def as_module(record: Any, done: dict[int, Module | None], depth: int = 0) -> Module:
    """The module that a record describes; a module that occurs several times becomes one object again.

    Raises:
        ValueError: it is not a module's record, or the modules contain each other.
    """
    if id(record) in done:
        known = done[id(record)]
        if known is None:
            raise ValueError("its network contains itself")
        return known
    if not is_module(record):
        raise ValueError("a module of its network is something else")
    if depth > DEPTH:
        raise ValueError(f"its network has more than {DEPTH} modules inside each other")
    done[id(record)] = None
    attributes = record.attributes
    if not all(isinstance(name, str) for name in attributes):
        raise ValueError("an attribute of a module has no name")
    parameters = named(attributes["_parameters"], Tensor)
    buffers = named(attributes["_buffers"], Tensor)
    children = {
        name: None if child is None else as_module(child, done, depth + 1)
        for name, child in named(attributes["_modules"], Record).items()
    }
    module = done[id(record)] = Module(record.kind, attributes, parameters, buffers, children)
    return module


def named(entries: Any, kind: type) -> dict[str, Any]:
    """Return `entries` if it maps short printable names to values of the kind, or None."""
    if not isinstance(entries, dict) or len(entries) > ENTRIES:
        raise ValueError("the parts of a module are no dictionary")
    for name, value in entries.items():
        if not isinstance(name, str) or len(name) > WORD or not name.isprintable():
            raise ValueError("the name of a part of its network is not a short printable text")
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"the part {name!r} of its network is a {type(value).__name__}")
    return entries
