"""Chapter 17: a network that was saved whole (`torch.save(model)`), read without its class and without running it.

Such a file holds records: for each module the name of its class, its attributes, parameters, buffers and children, but
no `forward`, which is code of the class. So the state dict and the printed network can always be recovered. A working
network can be rebuilt if each `forward` is known. This holds for PyTorch's own layers; for classes with exactly one
child and no other content, where `forward` is assumed to apply the child; and for VGG and AlexNet. Otherwise the error
names the unknown class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference.errors import InputError
from reference.messages import counted
from reference.text import printable
from reference.untrusted.bounds import BATCH_ELEMENTS, ENTRIES, IMAGE_ELEMENTS
from reference.untrusted.container import NONSENSE, TorchFile, one_line, read_torch_file, refusal
from reference.untrusted.contents import Candidate, candidates
from reference.untrusted.layers import Builder, CannotRunError, Printer
from reference.untrusted.modules import Budget, Memory, as_module
from reference.untrusted.pickle_machine import Record
from reference.untrusted.state_dicts import Fit, fits

FORMATS = {"zip": "zip format, PyTorch 1.6 or later", "old": "format before PyTorch 1.6", "safetensors": "safetensors"}
LISTED = 20  # names of candidates in a message


@dataclass(frozen=True)
class LegacyCheckpoint:
    """The content of a file of `torch.save`.

    Attributes:
        path: the file.
        container: "zip" (PyTorch 1.6 and later), "old" or "safetensors".
        content: the whole content: tensors, containers, and `Record` or `Name` for objects, classes and functions.
        state_dict: parameters and buffers by their dotted names, in the order of the modules; empty if there are none.
        tree: the network as PyTorch prints it; empty if the file holds a state dict only.
        network: ready to run, on the CPU, in its saved mode (training or evaluation); None if it cannot be rebuilt.
        notes: the assumptions made, and the reason why there is no network, in sentences.
        sources: the source code of classes, which files before PyTorch 1.6 hold; texts, never run.
        choices: the names of the networks and state dicts in it; if there are several and none was chosen, `state_dict`
            and `tree` are empty.
    """

    path: Path
    container: str
    content: Any = field(repr=False)
    state_dict: dict[str, Tensor] = field(repr=False)
    tree: str = field(repr=False)
    network: nn.Module | None = field(repr=False)
    notes: tuple[str, ...]
    sources: dict[str, str] = field(repr=False)
    choices: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """A short description of the content."""
        if self.tree or self.state_dict:
            return "a whole network" if self.tree else "a state dict"
        return f"{len(self.choices)} networks" if self.choices else "data, but no network"

    def describe(self) -> str:
        """The whole content as readable text."""
        count = sum(tensor.numel() for tensor in self.state_dict.values())
        kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.state_dict.values()})
        lines = [
            f"{printable(self.path)}: {self.what} ({FORMATS[self.container]})",
            *([self.tree] if self.tree else []),
        ]
        if not self.tree:
            lines += [f"  {key}: {tuple(tensor.shape)}" for key, tensor in self.state_dict.items()]
        numbers = f"{counted(len(self.state_dict), 'tensor')}, {counted(count, 'number')}"
        lines.append(": ".join(filter(None, [numbers, ", ".join(kinds)])))
        lines += [
            f"source code of {name}: {counted(text.count(chr(10)), 'line')}" for name, text in self.sources.items()
        ]
        return "\n".join([*lines, *map(printable, self.notes)])

    def classifier(self, names: Sequence[str] = (), size: tuple[int, int] = (32, 32)) -> tuple[nn.Module, list[str]]:
        """The network in float32 and a name for each of its scores.

        Args:
            names: of the classes, in the order of the scores; if there are none, they are called "class 0" and so on.
            size: height and width of the images to predict.

        Raises:
            InputError: there is no network, it gives no scores for such images, or the number of scores differs from
            the number of names.
        """
        if min(size) < 1:
            raise InputError(f"size must be at least 1, got {size[0]}×{size[1]}")
        if self.network is None:
            raise InputError(f"{self.path} cannot predict: {' '.join(self.notes)}")
        if not any(True for _ in self.network.parameters()):
            raise InputError(f"{self.path} cannot predict: its network has no parameters")
        classes, _ = scores(self.path, self.network, size)
        if names and len(names) != classes:
            raise InputError(
                f"{self.path} gives {counted(classes, 'score')} for each image, but the number of class names is "
                f"{len(names)}"
            )
        return self.network.float(), list(names) or [f"class {number}" for number in range(classes)]

    def batch_size(self, wanted: int, size: tuple[int, int] = (32, 32)) -> int:
        """The largest batch size, at most `wanted`, for which no operation creates more than `BATCH_ELEMENTS` numbers.

        Args:
            wanted: images computed together.
            size: height and width of the images.

        Raises:
            InputError: as `classifier`.
        """
        if self.network is None:
            raise InputError(f"{self.path} cannot predict: {' '.join(self.notes)}")
        _, largest = scores(self.path, self.network, size)
        return max(1, min(wanted, BATCH_ELEMENTS // largest))


def read_legacy_checkpoint(path: Path | str, layers: Any = nn, choose: str | None = None) -> LegacyCheckpoint:
    """Read a file of `torch.save` or safetensors: a whole network, a state dict, or other data.

    No class is needed, nothing in the file is run, and all tensors are on the CPU. Files of any PyTorch since 1.0 are
    read. Memory is bounded as documented in `reference.untrusted`.

    Args:
        path: the file.
        layers: the namespace that working layers are taken from, such as `torch.nn`.
        choose: the network to read if there are several: one of `choices`.

    Raises:
        InputError: the file is missing, damaged or needs code to be run, or it has no network called `choose`; the
            message says which.
    """
    path = Path(path)
    file = read_torch_file(path)
    try:
        return understood(path, file, layers, choose)
    except NONSENSE as error:
        if isinstance(error, InputError):
            raise
        raise refusal(path, error) from error


@dataclass(frozen=True)
class Choice:
    """A network in a file, by the name under which it can be chosen.

    Attributes:
        name: its place; empty if it is the whole content.
        candidate: the record or the state dict.
        fit: the known network that matches the state dict, or a part of it.
    """

    name: str
    candidate: Candidate
    fit: Fit | None = None


def choices(found: Sequence[Candidate]) -> list[Choice]:
    """The networks to choose from; a state dict that holds several known networks is a choice for each of them."""
    listed: list[Choice] = []
    for candidate in found:
        fitting = [] if isinstance(candidate.found, Record) else fits(candidate.found)
        if len(fitting) > 1:
            prefixes = [fit.prefix.rstrip(".") for fit in fitting]
            listed += [
                Choice(".".join(filter(None, (candidate.name, prefix))), candidate, fit)
                for prefix, fit in zip(prefixes, fitting, strict=True)
            ]
        else:
            listed.append(Choice(candidate.name, candidate, *fitting))
    return listed


def chosen(path: Path, listed: list[Choice], name: str | None, notes: list[str]) -> Choice | None:
    """The network with this name; without a name, the only network, or the only one with weights.

    Raises:
        InputError: there is no network of this name.
    """
    names = ", ".join(choice.name or "''" for choice in listed[:LISTED]) + (", …" if len(listed) > LISTED else "")
    if name is not None:
        for choice in listed:
            if choice.name == name:
                return choice
        raise InputError(f"{path} holds no network {name!r}: there is {names or 'none at all'}")
    likely = [choice for choice in listed if choice.fit or holds_weights(choice.candidate.found)] or listed
    if len(likely) > 1:
        notes.append(f"There are {len(listed)} networks in it: {names}. Choose one of them (predict.py --choose NAME).")
        return None
    if not likely:
        notes.append("There is neither a network nor a state dict in it.")
        return None
    if len(listed) > 1:
        notes.append(f"There are {len(listed)} state dicts in it ({names}), but only one of them has weights.")
    return likely[0]


def holds_weights(found: Record | dict[str, Tensor]) -> bool:
    """Whether a candidate is a network, or has a tensor that could be a layer's weight, unlike means and deviations."""
    return isinstance(found, Record) or any(tensor.dim() > 1 for tensor in found.values())


def understood(path: Path, file: TorchFile, layers: Any, choose: str | None) -> LegacyCheckpoint:
    """Interpret the content of a file; ValueError if it cannot be interpreted."""
    notes: list[str] = []
    listed = choices(candidates(file.content))
    choice = chosen(path, listed, choose, notes)
    names = tuple(choice.name for choice in listed)
    network, tree, state = None, "", {}
    if choice is not None:
        if choice.candidate.method:
            notes.append("It was saved as model.state_dict without parentheses: the network, not its state dict.")
        if choice.name:
            notes.append(f"It was found under {choice.name!r:.200}.")
        try:
            if isinstance(choice.candidate.found, Record):
                root = as_module(choice.candidate.found, {})
                tensors = dict(root.tensors("", Budget()))
                state = {name: tensor.detach() for name, tensor in tensors.items()}
                tree = root.text(Printer(), Budget())
                network = Builder(layers, notes, Memory(tensors.values())).network(root, tree)
            else:
                state = {name: tensor.detach() for name, tensor in choice.candidate.found.items()}
                network = known_network(choice.fit, state, notes)
        except CannotRunError as reason:
            notes.append(f"There is no working network: {one_line(str(reason))}.")
    return LegacyCheckpoint(path, file.container, file.content, state, tree, network, tuple(notes), file.sources, names)


def known_network(fit: Fit | None, state: dict[str, Tensor], notes: list[str]) -> nn.Module:
    """The known network that matches a state dict in all keys and shapes.

    Raises:
        CannotRunError: no known network matches.
    """
    if fit is None:
        raise CannotRunError("a state dict holds numbers only, and its network is none known here")
    Memory(state.values())
    place = f" under {fit.prefix!r}" if fit.others else ""
    notes.append(
        f"Its keys and shapes{place} are those of {fit.known.name} for {counted(fit.classes, 'class', 'classes')}."
    )
    if fit.pruned:
        notes.append("It was pruned: weights are the products of their two parts, weight_orig and weight_mask.")
    if fit.others:
        shown = ", ".join(fit.others[:5]) + (", …" if len(fit.others) > 5 else "")
        notes.append(f"Other tensors in it, which are left out: {len(fit.others)}: {shown}.")
    return fit.network()


class Bounded(TorchDispatchMode):
    """A limit of `IMAGE_ELEMENTS` numbers for the output of any operation; views of existing tensors do not count.

    Attributes:
        largest: the largest number of elements that an operation has created.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in given:
                self.largest = max(self.largest, made.numel())
                if made.numel() > IMAGE_ELEMENTS:
                    raise ValueError(f"one of its layers makes {made.numel():,} numbers of one image")
        return result


def scores(path: Path, network: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """The number of scores per image, and the largest number of elements that an operation creates for one image.

    The network runs on the meta device, which computes shapes only.

    Raises:
        InputError: the network gives no scores, or more than `ENTRIES`, or a layer creates more than `IMAGE_ELEMENTS`
        numbers.
    """
    parts = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {
        name: torch.empty(part.shape, dtype=torch.float32 if part.is_floating_point() else part.dtype, device="meta")
        for name, part in parts.items()
    }
    network.eval()
    bounded = Bounded()
    try:
        with torch.no_grad(), bounded:
            output = functional_call(network, empty, (torch.empty(1, 3, *size, device="meta"),))
    except NONSENSE as error:
        reason = one_line(str(error).partition("\n")[0])
        failed = f"its network fails on an image of {size[0]}×{size[1]}"
        raise InputError(f"{path} cannot predict: {failed} ({reason})") from error
    if not isinstance(output, Tensor) or output.dim() != 2 or not 0 < output.numel() <= ENTRIES:
        raise InputError(f"{path} cannot predict: its network does not give a row of scores for an image")
    return output.shape[1], bounded.largest
