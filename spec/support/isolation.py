"""A user's file runs in a separate process, and its changes of the process state are detected and undone.

The process that judges never imports the file. It starts another process, a worker of pytest-xdist, which may crash,
exit or hang without affecting the verdict. This is not a sandbox: a file can deliberately deceive the tests in its
process.
"""

import builtins
import json
import math
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import _pytest.outcomes
import _pytest.reports
import _pytest.runner
import pytest
import torch

from spec.support.implementations import Implementation, ImplementationError, load

IMPORT = 10.0  # seconds


def wanted(config: pytest.Config, names: list[str]) -> bool:
    """Whether implementations that are files get a separate process, which `-n` and `--pdb` can prevent."""
    option = config.option
    return (
        any(name.endswith(".py") for name in names)
        and hasattr(os, "fork")
        and not hasattr(config, "workerinput")
        and getattr(option, "numprocesses", 0) is None
        and not option.usepdb
        and not option.collectonly
    )


def outline(name: str) -> Implementation:
    """The data of an implementation for the header, from a process that imports the file and ends.

    Raises:
        ImplementationError: it cannot be imported, ends the process, or does not return.
    """
    if not name.endswith(".py"):
        return load(name)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        answer: dict[str, Any] = {}
        try:
            found = load(name)
            answer = {"id": found.id, "left_out": found.left_out}
        except ImplementationError as error:
            answer = {"error": str(error)}
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], IMPORT)
    text = os.read(reading, 1_000_000) if ready else b""
    os.close(reading)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not ready:
        raise ImplementationError(f"--impl {name}: importing it did not end within {IMPORT:.0f} s")
    answer = json.loads(text or b"{}")
    if "id" not in answer:
        raise ImplementationError(answer.get("error", f"--impl {name}: importing it ended the process"))
    return Implementation(name, answer["id"], "", {}, {}, tuple(answer["left_out"]))


class Guard:
    """The process state that a file under test must not change: settings of PyTorch, and the names of modules.

    Each change is undone, so that it affects one test only.
    """

    _SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...] = (
        ("torch.get_default_dtype()", torch.get_default_dtype, torch.set_default_dtype),
        ("torch.is_grad_enabled()", torch.is_grad_enabled, torch.set_grad_enabled),
        ("torch.get_num_threads()", torch.get_num_threads, torch.set_num_threads),
        (
            "torch.are_deterministic_algorithms_enabled()",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
    )

    def __init__(self) -> None:
        spec = [module for name, module in sys.modules.items() if name.startswith("spec.support.") and module]
        pytests = [pytest, _pytest.outcomes, _pytest.reports, _pytest.runner]
        self._homes: list[Any] = [torch, torch.nn, torch.nn.functional, torch.Tensor, torch.autograd, torch.optim]
        self._homes += [builtins, math, random, *pytests, *spec]
        self._names = [dict(vars(home)) for home in self._homes]
        self._values = [get() for _, get, _ in self._SETTINGS]

    def changes(self) -> Iterator[str]:
        """Name every setting that the code under test changed, and restore it."""
        for (name, get, put), value in zip(self._SETTINGS, self._values, strict=True):
            if (now := get()) != value:
                put(value)
                yield f"{name} from {value} to {now}"
        for home, names in zip(self._homes, self._names, strict=True):
            now_there = vars(home)
            for name, value in list(names.items()):
                if name not in now_there or now_there[name] is value or _is_lazy(name, value):
                    continue
                if _is_wrapped(now_there[name], value):
                    names[name] = now_there[name]
                else:
                    setattr(home, name, value)
                    yield f"{home.__name__}.{name}"


def _is_wrapped(now: Any, before: Any) -> bool:
    """Whether PyTorch wrapped one of its functions, as the import of its compiler does with `torch.manual_seed`."""
    originals = (getattr(now, "__wrapped__", None), getattr(now, "_torchdynamo_orig_callable", None))
    return before is not None and any(original is before for original in originals)


def _is_lazy(name: str, value: Any) -> bool:
    """Whether a name is expected to change, such as internal state of a module."""
    return name.startswith("__") or isinstance(value, ModuleType | bool | int | float | str)
