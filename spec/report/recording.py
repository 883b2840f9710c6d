"""The documented values that a test compares, and the values that the implementation under test gave.

`assert_close` and its relatives report each comparison with numbers that the test itself writes down. Nothing is kept
unless a run with `--report` is in a test of a documented value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LARGEST = 64
"""Numbers of a tensor that are shown; a larger one is described by its shape."""
MOST = 4
"""Comparisons that are kept for each test."""

_kept: list[dict[str, str]] | None = None


def start(*, wanted: bool) -> None:
    """Begin a test; keep its comparisons if `wanted`."""
    global _kept
    _kept = [] if wanted else None


def finish() -> list[dict[str, str]]:
    """Return the comparisons since `start`, and keep no more."""
    global _kept
    kept, _kept = _kept, None
    return kept or []


@contextmanager
def paused() -> Iterator[None]:
    """Keep nothing for a while: a test is made again, perhaps with another implementation."""
    global _kept
    kept, _kept = _kept, None
    try:
        yield
    finally:
        _kept = kept


def observe(what: str, actual: Any, documented: Any) -> None:
    """Keep one comparison with a literal; comparisons of two computed tensors are not documented values."""
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
