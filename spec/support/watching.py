"""Observing code: its side effects by Python's audit events, and the memory of its tensors."""

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spec.support.run import current

# Events that occur in any Python code: access to frames, identities and attributes.
HARMLESS = ("builtins.id", "object.__getattr__", "object.__setattr__", "sys._getframe", "sys._current_frames")

_state = threading.local()
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    events = getattr(_state, "events", None)
    if events is not None and event not in HARMLESS:
        events.append(f"{event} {arguments!r:.200}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """The audit events of this thread in the block, as texts; an audit hook cannot be removed again."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _state.events = events = []
    try:
        yield events
    finally:
        _state.events = None


def affordable(largest: int, call: Callable[[], object], seconds: float = 0.2) -> int:
    """The number of calls that an implementation can do in a time; this project's and PyTorch's do all.

    Args:
        largest: The number for an implementation that is fast.
        call: The work of one image.
        seconds: The time for all images.
    """
    if current().file is None:
        return largest
    start = time.monotonic()
    call()
    return max(1, min(largest, int(seconds / (time.monotonic() - start + 1e-9))))


class Allocations(TorchDispatchMode):
    """The memory of the tensors that operations in the block have returned and that are not yet freed.

    Memory inside an operation is not counted, nor are the existing tensors `known`.

    Attributes:
        now: bytes at this moment.
        peak: bytes at most.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]:
            if storage._cdata not in self._sizes:  # a view shares the storage of its base
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, storage: int) -> None:
        self.now -= self._sizes.pop(storage)
