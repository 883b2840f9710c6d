"""The reference with a warning of each category in every call, from its own file and attributed to PyTorch's files."""

import inspect
import types
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import reference
from spec.support.implementations import COMPONENTS

KINDS = (DeprecationWarning, FutureWarning, UserWarning, RuntimeWarning, PendingDeprecationWarning)


def _warn() -> None:
    for kind in KINDS:
        warnings.warn("this is old", kind, stacklevel=3)
        warnings.warn_explicit("this is old", kind, "torch/functional.py", 1, module="torch.functional")


def __getattr__(name: str) -> Any:
    if name not in COMPONENTS:
        raise AttributeError(name)
    component = getattr(reference, name)
    if not inspect.isclass(component):
        return _warning(component)
    made: dict[str, Any] = {"__module__": component.__module__, "__init__": _warning(component.__init__)}
    return types.new_class(component.__name__, (component,), exec_body=lambda names: names.update(made))


def _warning(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def warning(*args: Any, **kwargs: Any) -> Any:
        _warn()
        return function(*args, **kwargs)

    return warning
