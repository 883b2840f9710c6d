"""State dicts without a network: finding the known network that matches, for any prefix of its keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reference.models import Ocean, vgg16

WRAPPERS = ("module", "_orig_mod")
"""Parts of keys inserted by DataParallel, DistributedDataParallel and AveragedModel (module) and torch.compile."""

PREFIXES = 10
"""Prefixes of keys that are tried for one network."""


@dataclass(frozen=True)
class Known:
    """A network that can be rebuilt from a state dict alone.

    Attributes:
        name: of the network.
        made: makes it, from its number of classes.
        inner: the prefix of all its keys, which a state dict may lack or replace.
        last: the key, without `inner`, of the tensor with one row per class.
    """

    name: str
    made: Callable[[int], nn.Module]
    inner: str
    last: str


NETWORKS = (
    Known("Ocean", Ocean, "model1.", "8.weight"),
    Known("VGG16", lambda classes: vgg16(num_classes=classes, init_weights=False), "", "classifier.6.weight"),
)


@dataclass(frozen=True)
class Fit:
    """A known network that matches a state dict, or the part of it with keys that begin with `prefix`.

    Attributes:
        known: the network.
        classes: its number of classes.
        prefix: the beginning of the keys, without the parts named in `WRAPPERS`.
        parts: the entries of the state dict for each tensor of the network.
        others: the keys that do not belong to the network.
    """

    known: Known
    classes: int
    prefix: str
    parts: Mapping[str, "Part"]
    others: tuple[str, ...]

    def network(self) -> nn.Module:
        """The network with the tensors of the state dict; check `modules.Memory` before."""
        with torch.device("meta"):
            network = self.known.made(self.classes)
        own = {self.known.inner + key: part.tensor() for key, part in self.parts.items()}
        network.load_state_dict(own, assign=True)
        return network

    @property
    def pruned(self) -> bool:
        """Whether a weight is the product of two tensors."""
        return any(part.mask is not None for part in self.parts.values())


@dataclass(frozen=True)
class Part:
    """A tensor of a state dict, or one that `torch.nn.utils.prune` stores as the product of two."""

    value: Tensor
    mask: Tensor | None = None

    def tensor(self) -> Tensor:
        value = self.value.detach()
        return value if self.mask is None else value * self.mask.to(value.dtype)


def fits(state: Mapping[str, Tensor]) -> list[Fit]:
    """The known networks with the keys and shapes of a state dict; several, if it holds several networks."""
    parts = parts_of(state)
    found: list[Fit] = []
    for known in NETWORKS:
        ends = [key for key in parts if key == known.last or key.endswith(f".{known.last}")]
        for end in ends[:PREFIXES]:
            if (fit := fit_at(known, end.removesuffix(known.last), parts)) is not None:
                found.append(fit)
    explained = {fit.prefix + key for fit in found for key in fit.parts}
    # if another tensor could be the weight of a layer, the file contains a different network
    if any(part.value.dim() > 1 for key, part in parts.items() if key not in explained):
        return []
    return found


def fit_at(known: Known, prefix: str, parts: Mapping[str, Part]) -> Fit | None:
    """The network, if the keys that begin with `prefix` are exactly its own, with its shapes."""
    rows = parts[prefix + known.last].value
    if rows.dim() != 2 or rows.shape[0] < 1:
        return None
    with torch.device("meta"):
        network = known.made(rows.shape[0])
    expected = {key.removeprefix(known.inner): own.shape for key, own in network.state_dict().items()}
    here = {key.removeprefix(prefix): part for key, part in parts.items() if key.startswith(prefix)}
    if {key: part.value.shape for key, part in here.items()} != expected:
        return None
    if not all(part.value.is_floating_point() for part in here.values()):
        return None
    others = tuple(key for key in parts if not key.startswith(prefix))
    return Fit(known, rows.shape[0], prefix, here, others)


def parts_of(state: Mapping[str, Tensor]) -> dict[str, Part]:
    """The tensors under their keys without wrappers, pruned ones multiplied out again.

    The number of averaged models, which AveragedModel stores with them, is left out.
    """
    parts: dict[str, Part] = {}
    for key, value in state.items():
        words = [word for word in key.split(".") if word not in WRAPPERS]
        mask = None
        if words[-1:] == ["n_averaged"] or (key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in state):
            continue
        if key.endswith("_orig") and (mask := state.get(f"{key.removesuffix('_orig')}_mask")) is not None:
            words[-1] = words[-1].removesuffix("_orig")
            if mask.shape != value.shape or mask.is_complex():
                return {}
        name = ".".join(words)
        if name in parts:
            return {}
        parts[name] = Part(value, mask)
    return parts
