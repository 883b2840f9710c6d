"""The documented values that a test compares, and the values that the implementation under test gave.

`assert_close` and similar functions report each comparison with numbers that the test itself contains. They are
recorded only in a run with `--report` and in a test of a documented value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LARGEST = 64
"""The largest number of elements that are shown; a larger tensor is described by its shape."""
MOST = 4
"""The largest number of recorded comparisons per test."""

_kept: list[dict[str, str]] | None = None


def start(*, wanted: bool) -> None:
    """Start the recording of a test if `wanted`."""
    global _kept
    _kept = [] if wanted else None


def finish() -> list[dict[str, str]]:
    """Stop the recording and return the comparisons since `start`."""
    global _kept
    kept, _kept = _kept, None
    return kept or []


@contextmanager
def paused() -> Iterator[None]:
    """Pause the recording while a test runs again, perhaps with another implementation."""
    global _kept
    kept, _kept = _kept, None
    try:
        yield
    finally:
        _kept = kept


def observe(what: str, actual: Any, documented: Any) -> None:
    """Record one comparison with a literal; comparisons of two computed tensors are not documented values."""
    if _kept is None or isinstance(documented, Tensor) or len(_kept) >= MOST:
        return
    _kept.append({"name": what, "documented": shown(documented), "measured": shown(actual)})


def shown(value: Any) -> str:
    """A value as one short text."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > LARGEST:
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    value = value.detach().cpu()
    if value.is_floating_point():
        numbers = value.to(torch.float64)
        return str(_rounded(numbers.tolist()))
    return str(value.tolist())


def _rounded(value: Any) -> Any:
    """Numbers with the seven digits that float32 has."""
    return [_rounded(part) for part in value] if isinstance(value, list) else float(f"{value:.7g}")
