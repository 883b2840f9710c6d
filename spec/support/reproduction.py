"""The calls of a test as Python code that can be pasted."""

import inspect
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAST = 4  # calls that are shown
LARGEST = 600  # numbers of a tensor that are shown


@dataclass(frozen=True)
class Call:
    """One call: its import, the component, and copies of its arguments before the call."""

    name: str
    import_line: str
    signature: inspect.Signature | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    layer: nn.Module | None = None


def _nothing() -> None:
    """No result."""


class Trace:
    """The last calls of the components under test. Calls inside a component are not recorded."""

    def __init__(self) -> None:
        self.on = True
        self.noted: Callable[[str], None] | None = None  # called with the text before each call, if a call may crash
        self.calls: deque[Call] = deque(maxlen=LAST)
        self.made: dict[int, Call] = {}  # the construction of each layer, by its identity
        self._result: Callable[[], Any] = _nothing
        self._depth = 0

    def clear(self) -> None:
        """Delete all recorded calls when another test or example begins."""
        self.calls.clear()
        self.made.clear()
        self._result = _nothing
        self._depth = 0

    @property
    def result(self) -> Any:
        """The result of the last call, while the test holds a reference; a trace keeps nothing alive."""
        return self._result()

    def note_result(self, result: Any) -> None:
        """Record the result of a call."""
        try:
            self._result = weakref.ref(result)
        except TypeError:  # a tuple or a number
            self._result = _nothing

    @contextmanager
    def off(self) -> Iterator[None]:
        """Pause the recording, which makes copies."""
        before, self.on = self.on, self.noted is not None
        try:
            yield
        finally:
            self.on = before

    def call(self, name: str, import_line: str, signature: inspect.Signature | None, args: Any, kwargs: Any) -> None:
        """Record a call of a component; a graph that is being traced must not contain the copies."""
        if self._depth == 0 and not torch.jit.is_tracing():
            self._append(Call(name, import_line, signature, _copied(args), _copied(kwargs)))

    def _append(self, call: Call) -> None:
        self.calls.append(call)
        if self.noted is not None:
            self.noted(self.text())

    def watch(self, layer: nn.Module) -> None:
        """Start recording the calls of a layer that the last call created."""
        if self._depth or torch.jit.is_tracing():
            return
        self.made[id(layer)] = self.calls.pop()

        def enter(layer: nn.Module, args: Any, kwargs: Any) -> None:
            if self.on and self._depth == 0 and id(layer) in self.made and not torch.jit.is_tracing():
                made = self.made[id(layer)]
                signature = inspect.signature(layer.forward)
                self._append(Call(made.name, made.import_line, signature, _copied(args), _copied(kwargs), layer))
            self._depth += 1

        def leave(_: nn.Module, __: Any, result: Any) -> None:
            self._depth = max(0, self._depth - 1)
            if self.on and self._depth == 0:
                self.note_result(result)

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(leave, always_call=True)

    def text(self, last: int = LAST) -> str:
        """The last calls as Python code, empty if there were no calls."""
        if not self.calls:
            return ""
        return "\n".join(_Writer(self).lines(last))


class _Writer:
    """Turns calls into lines: imports, then every object under a name, then the call."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.imports: dict[str, None] = {"import torch": None}
        self.body: list[str] = []
        self.names: dict[int, str] = {}
        self.taken: set[str] = set()

    def lines(self, last: int) -> Iterator[str]:
        for call in list(self.trace.calls)[-last:]:
            target = call.name if call.layer is None else self._layer(call.layer)
            self.imports[call.import_line] = None
            self.body.append(f"print({target}({self._arguments(call)}))")
        text = "\n".join(self.body)
        if "inf" in text or "nan" in text:
            self.imports["from math import inf, nan"] = None
        yield from self.imports
        yield from self.body

    def _arguments(self, call: Call) -> str:
        names = list(call.signature.parameters) if call.signature else []
        words = [self._value(value, names[i] if i < len(names) else f"input_{i}") for i, value in enumerate(call.args)]
        words += [f"{name}={self._value(value, name)}" for name, value in call.kwargs.items()]
        return ", ".join(words)

    def _value(self, value: Any, hint: str) -> str:
        if isinstance(value, Tensor):
            return self._tensor(value, hint)
        if isinstance(value, nn.Module):
            return self._layer(value)
        if isinstance(value, tuple | list) and any(isinstance(part, Tensor | nn.Module) for part in value):
            parts = ", ".join(self._value(part, f"{hint}_{i}") for i, part in enumerate(value))
            return f"({parts},)" if isinstance(value, tuple) else f"[{parts}]"
        return repr(value)

    def _layer(self, layer: nn.Module) -> str:
        if id(layer) in self.names:
            return self.names[id(layer)]
        made = self.trace.made.get(id(layer))
        if made is None:
            return repr(layer)
        self.imports[made.import_line] = None
        name = self._name(layer, "layer")
        self.body.append(f"{name} = {made.name}({self._arguments(made)})")
        state = layer.state_dict()
        if state and sum(value.numel() for value in state.values()) <= LARGEST:
            values = ", ".join(f"{key!r}: {literal(value)}" for key, value in state.items())
            self.body.append(f"{name}.load_state_dict({{{values}}})")
        if not layer.training:
            self.body.append(f"{name}.eval()")
        return name

    def _tensor(self, value: Tensor, hint: str) -> str:
        if id(value) not in self.names:
            name = self._name(value, hint)
            self.body.append(f"{name} = {literal(value)}")
        return self.names[id(value)]

    def _name(self, value: Any, hint: str) -> str:
        name, number = hint, 2
        while name in self.taken:
            name, number = f"{hint}_{number}", number + 1
        self.taken.add(name)
        self.names[id(value)] = name
        return name


def literal(value: Tensor) -> str:
    """A tensor as Python code, exactly; a large one only as its shape."""
    if value.numel() > LARGEST:
        return f"torch.randn({tuple(value.shape)}).to({value.dtype})  # other numbers: too many to print"
    text = f"torch.tensor({_nested(value.detach().cpu())}, dtype={value.dtype})"
    if 0 in value.shape:
        text = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
    if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last):
        text += ".contiguous(memory_format=torch.channels_last)"
    return text + (".requires_grad_()" if value.requires_grad else "")


def _nested(value: Tensor) -> str:
    if value.dim():
        return f"[{', '.join(_nested(part) for part in value)}]"
    if value.dtype in (torch.float32, torch.float16):  # the shortest text from which the number can be recovered
        return str(np.float32(value.item()) if value.dtype == torch.float32 else np.float16(value.item()))
    return repr(value.item())


def _copied(value: Any) -> Any:
    """Copies of the arguments, because the call may write into them."""
    if isinstance(value, Tensor) and type(value) is Tensor:
        if value.numel() > LARGEST:
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_copied(part) for part in value)
    return value
