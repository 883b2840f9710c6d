"""Ending a call that does not return, or that prints endlessly."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from spec.support.run import current

LIMIT = 10.0  # seconds, for the first call that does not return
LATER = 3.0  # seconds, for the following calls, which are likely to hang as well
IMPORT = 60.0  # seconds, while a module is imported: PyTorch imports its compiler in the first step of an optimizer
PRINTS = 10_000_000  # bytes
TICK = 0.5


class GaveUp(BaseException):
    """A call was ended. Not an `Exception`, so that neither the code under test nor Hypothesis catches it."""


class Patience:
    """Ends calls that take too long. Without POSIX signals only pytest-timeout does so, after five minutes."""

    def __init__(self) -> None:
        self._limit = LIMIT
        self._imported = 0.0  # when a tick last met an import

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Limit the time between two calls of components in the block to `LIMIT` seconds, imports excluded."""
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            yield
            return
        current().moved = started = time.monotonic()
        handler = signal.signal(signal.SIGALRM, self._tick)
        remaining, _ = signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            if remaining:  # of pytest-timeout
                signal.setitimer(signal.ITIMER_REAL, max(0.01, remaining - (time.monotonic() - started)))

    def _tick(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if _imports(frame) and now - current().moved < IMPORT:
            self._imported = now
        elif now - max(current().moved, self._imported) > self._limit:
            said, self._limit = (IMPORT if _imports(frame) else self._limit), LATER
            raise GaveUp(f"a call did not return within {said:.0f} s")
        with suppress(OSError):
            status = os.fstat(1)
            if stat.S_ISREG(status.st_mode) and status.st_size > PRINTS:
                os.ftruncate(1, 0)
                raise GaveUp(f"a call printed more than {PRINTS // 1_000_000} MB")


def _imports(frame: FrameType | None) -> bool:
    """Whether the interrupted code imports a module. If it ended there, later tests would get an incomplete module."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
