"""The run in progress: the dtypes that it tests and the calls that it has recorded."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from spec.support.reproduction import Trace

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The floating-point types of the specification."""


@dataclass
class Run:
    """One run of the specification.

    Attributes:
        dtypes: The floating-point types to test; `--dtype` selects them.
        trace: The calls of the example in progress; every example starts with an empty trace.
        seed: The seed of the examples of each property, unless the Hypothesis profile uses fixed examples.
        level: The level up to which an implementation is judged.
        file: The file of the implementation under test, if it is not part of this project.
        namespace: Its module, or the class that holds its components.
        example: For a failed property, the test and the arguments of the simplest example.
        difference: The actual and the expected value of the last failed comparison.
        moved: The time of the last call of a component, by the monotonic clock.
    """

    dtypes: tuple[torch.dtype, ...] = DTYPES
    trace: Trace = field(default_factory=Trace)
    seed: int | str = 0
    level: str = "pytorch"
    file: str | None = None
    namespace: Any = None
    example: tuple[Callable[..., Any], dict[str, Any]] | None = None
    difference: tuple[Any, Any] | None = None
    moved: float = 0.0


RUN: ContextVar[Run] = ContextVar("run")
"""Set by the plugin (`spec/support/plugin.py`) while pytest runs."""


def current() -> Run:
    """The run in progress."""
    return RUN.get()
