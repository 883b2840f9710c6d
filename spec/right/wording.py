"""The reference with other error messages: each contains only the parameters of the call, in reverse order.

A rejection must name the argument that is wrong. No test may require PyTorch's wording, the value, or an order.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import reference
from spec.support.assertions import CALL_ERROR
from spec.support.implementations import COMPONENTS

REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)


def __getattr__(name: str) -> Any:
    if name not in COMPONENTS:
        raise AttributeError(name)
    component = getattr(reference, name)
    return _layer(component) if inspect.isclass(component) else _reworded(component, component)


def _layer(component: type) -> type:
    """A class with methods that raise errors with other messages."""

    def method(name: str) -> Callable[..., Any]:
        return _reworded(getattr(component, name), component)

    called = "forward" if hasattr(component, "forward") else "__call__"
    names = ("__init__", called, "step", "add_param_group", "load_state_dict")
    found = {name: method(name) for name in names if callable(getattr(component, name, None))}
    return type(component)(component.__name__, (component,), {"__module__": component.__module__, **found})


def _reworded(function: Callable[..., Any], component: Any) -> Callable[..., Any]:
    parameters = [*inspect.signature(component).parameters, *inspect.signature(function).parameters]
    text = f"not acceptable: {' or '.join(dict.fromkeys(reversed([p for p in parameters if p != 'self'])))}"

    @wraps(function)
    def reworded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except REFUSALS as error:
            if CALL_ERROR.search(str(error)) or type(error) not in REFUSALS:
                raise
            raise type(error)(text) from error

    return reworded
