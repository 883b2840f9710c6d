"""What a piece of code does to the world, as Python's own audit events tell: imports, files, processes, code."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What happens whenever Python runs: looking at frames, identities and attributes.
HARMLESS = ("builtins.id", "object.__getattr__", "object.__setattr__", "sys._getframe", "sys._current_frames")

_state = threading.local()
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    events = getattr(_state, "events", None)
    if events is not None and event not in HARMLESS:
        events.append(f"{event} {arguments!r:.200}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """The audit events of this thread while the block runs, as texts; an audit hook can never be taken away again."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _state.events = events = []
    try:
        yield events
    finally:
        _state.events = None
