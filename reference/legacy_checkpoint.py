"""Chapter 17: a network that was saved whole (`torch.save(model)`), read without its class and without running it.

What such a file holds are records: for each module the name of its class, its attributes, parameters, buffers and
children, but no `forward`, which is code of the class. So the state dict and the printed network can always be given
back. A working network can where each `forward` is known: of PyTorch's own layers; of classes that have one child and
nothing else, which is taken to be applied; and of VGG and AlexNet. Of any other it is said which one is not known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference.errors import InputError
from reference.models import Ocean, vgg16
from reference.text import printable
from reference.untrusted.calls import BOUND_METHOD
from reference.untrusted.container import NONSENSE, TorchFile, one_line, read_torch_file, refusal
from reference.untrusted.layers import Builder, CannotRunError, Printer
from reference.untrusted.modules import ENTRIES, KEY, Budget, as_module, is_module
from reference.untrusted.pickle_machine import Record

LARGEST = 1 << 25  # numbers that one operation may make for one picture: 128 MiB

STATE_DICTS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "model1.8.weight": ("Ocean", Ocean),
    "classifier.6.weight": ("VGG16", lambda classes: vgg16(num_classes=classes, init_weights=False)),
}
"""Networks that a state dict alone is enough for, by the tensor whose rows are their classes."""


@dataclass(frozen=True)
class LegacyCheckpoint:
    """What was found in a file of `torch.save`.

    Attributes:
        path: the file.
        container: "zip" (PyTorch 1.6 and later) or "old".
        content: all of it: tensors, containers, and `Record` or `Name` for objects, classes and functions.
        state_dict: parameters and buffers by their dotted names, in the order of the modules; empty if there are none.
        tree: the network as PyTorch prints it; empty if the file holds a state dict only.
        network: ready to run, on the CPU, in training mode or not as it was saved; None if that cannot be.
        notes: what was taken for granted, and why there is no network, in sentences.
        sources: the source code of classes, which files before PyTorch 1.6 hold; texts, never run.
    """

    path: Path
    container: str
    content: Any = field(repr=False)
    state_dict: dict[str, Tensor] = field(repr=False)
    tree: str = field(repr=False)
    network: nn.Module | None = field(repr=False)
    notes: tuple[str, ...]
    sources: dict[str, str] = field(repr=False)

    @property
    def what(self) -> str:
        """What it is, in a few words."""
        return "a whole network" if self.tree else "a state dict" if self.state_dict else "data, but no network"

    def describe(self) -> str:
        """All of it as text, for people."""
        formats = {"zip": "zip format, PyTorch 1.6 or later", "old": "format before PyTorch 1.6"}
        count = sum(tensor.numel() for tensor in self.state_dict.values())
        kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.state_dict.values()})
        lines = [
            f"{printable(self.path)}: {self.what} ({formats[self.container]})",
            *([self.tree] if self.tree else []),
        ]
        if not self.tree:
            lines += [f"  {key}: {tuple(tensor.shape)}" for key, tensor in self.state_dict.items()]
        lines.append(f"{len(self.state_dict)} tensors, {count:,} numbers{': ' if kinds else ''}{', '.join(kinds)}")
        lines += [f"source code of {name}: {text.count(chr(10)):,} lines" for name, text in self.sources.items()]
        return "\n".join([*lines, *self.notes])

    def classifier(self, names: Sequence[str] = (), size: tuple[int, int] = (32, 32)) -> tuple[nn.Module, list[str]]:
        """The network in float32 and a name for each of its scores.

        Args:
            names: of the classes, in the order of the scores; if there are none, they are called "class 0" and so on.
            size: height and width of the pictures it is going to see.

        Raises:
            InputError: there is no network, it gives no scores for such pictures, or not as many as there are names.
        """
        if min(size) < 1:
            raise InputError(f"size must be at least 1, got {size[0]}×{size[1]}")
        if self.network is None:
            raise InputError(f"{self.path} cannot predict: {' '.join(self.notes)}")
        if not any(True for _ in self.network.parameters()):
            raise InputError(f"{self.path} cannot predict: its network has no parameters")
        network = self.network.float()
        classes = scores(self.path, network, size)
        if names and len(names) != classes:
            raise InputError(f"{self.path} gives {classes} scores a picture, but there are {len(names)} class names")
        return network, list(names) or [f"class {number}" for number in range(classes)]


def read_legacy_checkpoint(path: Path | str, layers: Any = nn) -> LegacyCheckpoint:
    """Read a file of `torch.save`: a whole network, a state dict, or what else it holds, of any PyTorch since 1.0.

    No class is needed, nothing in the file is run, and everything arrives on the CPU. Memory is bounded as
    `reference.untrusted` says.

    Args:
        path: the file.
        layers: the namespace that working layers are taken from, used as `torch.nn` is.

    Raises:
        InputError: it is missing, damaged, or wants more than data to be made; the text says which.
    """
    path = Path(path)
    file = read_torch_file(path)
    try:
        return understood(path, file, layers)
    except NONSENSE as error:
        raise refusal(path, error) from error


def what_it_is(path: Path) -> str:
    """A few words on a file that is no checkpoint of this project: what it is, or why it is not read here either."""
    try:
        found = read_legacy_checkpoint(path)
    except InputError as error:
        return f"it {str(error).removeprefix(f'{path} ')}"
    kind = f" ({found.content.kind})" if isinstance(found.content, Record) else ""
    return f"it holds {found.what}{kind}, which predict.py --legacy reads without running anything in it"


def understood(path: Path, file: TorchFile, layers: Any) -> LegacyCheckpoint:
    """What the content of a file means; ValueError if it cannot be."""
    notes: list[str] = []
    found = interesting(file.content, notes)
    network, tree, state = None, "", {}
    if isinstance(found, Record):
        root = as_module(found, {})
        state = {name: tensor.detach() for name, tensor in root.tensors("", Budget())}
        tree = root.text(Printer(), Budget())
        try:
            network = Builder(layers, notes).network(root, tree)
        except CannotRunError as reason:
            notes.append(f"There is no working network: {one_line(str(reason))}.")
    elif found is not None:
        state = {name: tensor.detach() for name, tensor in found.items()}
        network = known_network(state, notes)
    if found is None:
        notes.append("There is neither a network nor a state dict in it.")
    return LegacyCheckpoint(path, file.container, file.content, state, tree, network, tuple(notes), file.sources)


def interesting(content: Any, notes: list[str]) -> Record | dict[str, Tensor] | None:
    """The network or state dict in the content of a file: all of it, or the only one among a dictionary's entries."""
    if isinstance(content, Record) and content.kind == BOUND_METHOD:
        notes.append("It was saved as model.state_dict without parentheses: the whole network, not its state dict.")
        content = content.arguments[0]
    if is_module(content) or is_state_dict(content):
        return content
    if isinstance(content, dict):
        inside = {key: value for key, value in content.items() if is_module(value) or is_state_dict(value)}
        if len(inside) == 1:
            ((key, value),) = inside.items()
            notes.append(f"It was found under the key {key!r:.60} of a dictionary.")
            return value
    return None


def is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and 0 < len(value) <= ENTRIES
        and all(isinstance(k, str) and k.isprintable() and len(k) <= KEY for k in value)
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


PREFIXES = ("", "module.", "_orig_mod.")
"""What DataParallel and torch.compile put before each key of a state dict."""


def known_network(state: dict[str, Tensor], notes: list[str]) -> nn.Module | None:
    """The network that a state dict fits, key by key and shape by shape, if it is one of `STATE_DICTS`."""
    shapes = {key: tensor.shape for key, tensor in state.items() if tensor.is_floating_point()}
    for prefix in PREFIXES:
        for key, (name, made) in STATE_DICTS.items():
            last = shapes.get(prefix + key, ())
            if len(last) != 2 or last[0] < 1:
                continue
            with torch.device("meta"):
                network = made(last[0])
            if len(shapes) == len(state) and shapes == {
                prefix + name: own.shape for name, own in network.state_dict().items()
            }:
                network.load_state_dict({own.removeprefix(prefix): t for own, t in state.items()}, assign=True)
                notes.append(f"Its keys and shapes are those of {name} for {last[0]} classes.")
                return network
    notes.append("There is no working network: a state dict holds numbers only, and its network is none known here.")
    return None


class Bounded(TorchDispatchMode):
    """No operation may make more than `LARGEST` numbers; views of what is there are free."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.numel() > LARGEST and made.untyped_storage()._cdata not in given:
                raise ValueError(f"one of its layers makes {made.numel():,} numbers of one picture")
        return result


def scores(path: Path, network: nn.Module, size: tuple[int, int]) -> int:
    """How many scores a picture gets, from a run on the meta device, which computes shapes only.

    Raises:
        InputError: the network gives none, or more than `ENTRIES`, or some layer makes more than `LARGEST` numbers.
    """
    parts = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty(part.shape, dtype=part.dtype, device="meta") for name, part in parts.items()}
    network.eval()
    try:
        with torch.no_grad(), Bounded():
            output = functional_call(network, empty, (torch.empty(1, 3, *size, device="meta"),))
    except NONSENSE as error:
        reason = one_line(str(error).partition("\n")[0])
        failed = f"its network fails on a picture of {size[0]}×{size[1]}"
        raise InputError(f"{path} cannot predict: {failed} ({reason})") from error
    if not isinstance(output, Tensor) or output.dim() != 2 or not 0 < output.numel() <= ENTRIES:
        raise InputError(f"{path} cannot predict: its network does not give a row of scores for a picture")
    return output.shape[1]
