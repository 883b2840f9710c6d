"""Whether an implementation computes a component itself or calls PyTorch, NumPy or SciPy for it.

A test runs once more while every call is traced: Python's calls by a profile function, PyTorch's operators by a
dispatch mode. Only functions in the table of the first-principles rule count, and only calls from the implementation's
file.
"""

import inspect
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from spec.support.diagnosis import Example
from spec.support.first_principles import is_component

_PACKAGES = ("torch", "torchvision", "numpy", "scipy")
_NUMPY = ("convolve", "correlate", "convolve2d", "correlate2d", "fftconvolve", "softmax", "log_softmax", "expit")
_HOMES = ("torch.nn.modules.", "torch.optim.", "torch.utils.data.dataloader", "torchvision.")
_BASES = ("torch.nn.modules.module", "torch.optim.optimizer")
_WORK = ("forward", "step", "__iter__", "__call__", "__getitem__")
WATCHED_CALLS = 100_000
"""Number of calls after which a test is no longer watched. Loops over every number make millions, all of one kind."""


class _SeenEnough(BaseException):
    """Ends the watched test. It is no `Exception`, so that the code under test does not catch it."""


def inherited(target: Any) -> set[str]:
    """The library that computes a component, if it is a component of a library or inherits from one."""
    module = str(getattr(target, "__module__", None) or "torch")
    if module.partition(".")[0] in _PACKAGES:
        return {f"{module}.{getattr(target, '__name__', target)}"}
    found = set()
    for name in _WORK if inspect.isclass(target) else ():
        owner = next((kind for kind in target.__mro__ if name in vars(kind)), None)
        if owner is not None and owner.__module__.startswith(_HOMES) and owner.__module__ not in _BASES:
            found.add(f"{owner.__module__.partition('.modules')[0]}.{owner.__name__}")
    return found


class _Operators(TorchDispatchMode):
    """Records the operators of PyTorch that the code of a file calls."""

    def __init__(self, file: str, name: str, found: set[str]) -> None:
        super().__init__()
        self._file, self._name, self._found = file, name, found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the compiler takes ten seconds to import

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func._schema.name.partition("::")[2]
        if (is_component(operator) or operator == self._name) and _within(sys._getframe(1), self._file):
            self._found.add(f"aten.{operator}")
        return func(*args, **(kwargs or {}))


def _within(frame: FrameType | None, file: str) -> bool:
    """Whether the code of a file is among the callers of a frame."""
    while frame is not None:
        if frame.f_code.co_filename == file:
            return True
        frame = frame.f_back
    return False


def handed_over(example: Example, file: str) -> set[str]:
    """The library functions that the code of a file calls to compute the component of an example.

    Args:
        example: A test of one component.
        file: The file of the implementation.

    Returns:
        The names of PyTorch's, NumPy's or SciPy's functions, empty if the file computes everything itself.
    """
    component = example.components[0]
    own = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in component.name).strip("_")
    found, operators = inherited(component.target), set()
    calls = 0

    def profile(frame: FrameType, event: str, called: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > WATCHED_CALLS:
            raise _SeenEnough
        if event == "c_call":
            name, caller = str(getattr(called, "__name__", "")), frame
            home = _home(called)
        elif event == "call":
            name, caller = frame.f_code.co_name, frame.f_back
            home = str(frame.f_globals.get("__name__", ""))
        else:
            return
        package = home.partition(".")[0]
        if package not in _PACKAGES:
            return
        works = name in _NUMPY if package in ("numpy", "scipy") else is_component(name) or name == own
        if (works or (name in _WORK and home.startswith(_HOMES) and home not in _BASES)) and _within(caller, file):
            found.add(f"{package}.{name}" if name not in _WORK else home)

    before = sys.getprofile()
    with _Operators(file, own, operators):
        sys.setprofile(profile)
        try:
            with suppress(Exception, _SeenEnough):
                example.again()
        finally:
            sys.setprofile(before)
    return found or operators


def _home(called: Any) -> str:
    """The module of a function that is written in C, or of the object that it is a method of."""
    of = getattr(called, "__self__", None)
    for home in (getattr(called, "__module__", None), getattr(of, "__module__", None), type(of).__module__):
        if isinstance(home, str) and home.partition(".")[0] in _PACKAGES:
            return home
    return ""
