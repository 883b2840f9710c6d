"""Chapter 13: `Sequential`, layers one after the other."""

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, overload

from torch import nn


def sequential_definition(layers: Iterable[nn.Module], input: Any) -> Any:
    """f_n(… f_2(f_1(input))), `input` itself without layers."""
    for layer in layers:
        input = layer(input)
    return input


class Sequential(nn.Module):
    """The layers in turn, each applied to the output of the previous one: f_n(… f_2(f_1(input))).

    It behaves like a list of its layers: indexing, slices, `len`, iteration, `+`, `*`, `append`, `extend`, `insert`,
    `pop` and `del`. The layers are called "0", "1", … in the state dict and in the repr, or by the names of a mapping.

    Args:
        *args: the layers; or one `OrderedDict` from names to layers.

    Raises:
        TypeError: an argument is not a layer.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            for name, module in args[0].items():
                self.add_module(name, module)
        else:
            self.extend(args)

    def forward(self, input: Any) -> Any:
        """The output of the last layer; `input` itself if there are no layers."""
        return sequential_definition(self, input)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # pyright: ignore[reportReturnType]

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.isdigit()]

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...

    def __getitem__(self, index: int | slice) -> nn.Module:
        """A layer, or a new `Sequential` of some of them under the same names.

        Raises:
            IndexError: the index is out of range.
        """
        if isinstance(index, slice):
            return type(self)(OrderedDict(list(self._modules.items())[index]))
        return self._modules[self._name(index)]  # pyright: ignore[reportReturnType]

    def __setitem__(self, index: int, module: nn.Module) -> None:
        setattr(self, self._name(index), module)

    def __delitem__(self, index: int | slice) -> None:
        """Remove one layer or several; the remaining layers are renumbered "0", "1", …."""
        names = list(self._modules)[index] if isinstance(index, slice) else [self._name(index)]
        for name in names:
            delattr(self, name)
        self._modules = {str(i): module for i, module in enumerate(self._modules.values())}

    def pop(self, key: int | slice) -> nn.Module:
        """Remove one layer or several, and return `self[key]`."""
        module = self[key]
        del self[key]
        return module

    def append(self, module: nn.Module) -> "Sequential":
        """Add a layer at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, sequential: Iterable[nn.Module]) -> "Sequential":
        """Add several layers at the end."""
        for module in sequential:
            self.append(module)
        return self

    def insert(self, index: int, module: nn.Module) -> "Sequential":
        """Insert a layer before layer `index`; the later ones move up by one.

        Raises:
            IndexError: `index` is outside `[-len(self), len(self)]`.
            TypeError: `module` is not a layer.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"Sequential.insert: module must be a torch.nn.Module, got {type(module).__name__}")
        n = len(self)
        if not -n <= index <= n:
            raise IndexError(f"Sequential.insert: index must be from {-n} to {n}, got {index}")
        position = index % n if index < 0 else index
        layers = list(self._modules.items())
        moved = [module, *(layer for _, layer in layers[position:])]
        self._modules = dict(layers[:position]) | {str(i): layer for i, layer in enumerate(moved, position)}
        return self

    def __add__(self, other: "Sequential") -> "Sequential":
        """A new `Sequential` of the layers of both."""
        return Sequential(*self, *_checked(other))

    def __iadd__(self, other: "Sequential") -> "Sequential":
        return self.extend(list(_checked(other)))

    def __mul__(self, times: int) -> "Sequential":
        """The same layers several times, sharing their parameters."""
        return Sequential(*list(self) * _positive(times))

    def __rmul__(self, times: int) -> "Sequential":
        return self * times

    def __imul__(self, times: int) -> "Sequential":
        return self.extend(list(self) * (_positive(times) - 1))

    def _name(self, index: int) -> str:
        """The name of layer `index`."""
        number, n = operator.index(index), len(self)
        if not -n <= number < n:
            raise IndexError(f"Sequential: index must be from {-n} to {n - 1} for {n} layers, got {number}")
        return list(self._modules)[number]


def _checked(other: Any) -> Sequential:
    if not isinstance(other, Sequential):
        raise ValueError(f"Sequential: + needs another Sequential, got {type(other).__name__}")
    return other


def _positive(times: Any) -> int:
    if not isinstance(times, int):
        raise TypeError(f"Sequential: * needs an integer, got {times!r}")
    if times <= 0:
        raise ValueError(f"Sequential: * needs a positive integer, got {times}")
    return times
