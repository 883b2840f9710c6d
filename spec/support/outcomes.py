"""The outcomes of tests without a verdict, and their reasons."""

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import Tensor


class NotJudged(pytest.skip.Exception):
    """A test without a verdict. It counts as a separate outcome, neither passed nor failed.

    Attributes:
        outcome: Its name in the report.
    """

    outcome = "skipped"


class NotClaimed(NotJudged):
    """The user excluded the test by `--level`, `--aspect` or `--without`."""

    outcome = "not claimed"


class NotOffered(NotJudged):
    """The signature of the implementation lacks a parameter that the test needs."""

    outcome = "not offered"


class NotWritten(NotJudged):
    """The implementation's own code raised `NotImplementedError`."""

    outcome = "not written"


NOT_JUDGED = ("absent", "not offered", "not claimed", "not written")
"""The outcomes, besides skipped, of tests without a verdict."""

_UNKNOWN_PARAMETER = re.compile(r"(\S+)\(\) got an unexpected keyword argument '(\w+)'")


def comes_from(error: BaseException, file: str | None) -> bool:
    """Whether the code of a file raised an error itself."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(file and frames) and frames[-1].filename == file


def judged_nothing(error: BaseException, file: str | None, namespace: Any) -> NotJudged | None:
    """The outcome of an error that means that the implementation cannot be judged.

    Args:
        error: The error of a test.
        file: The file of the implementation.
        namespace: Its module, or the class that holds its components.
    """
    if isinstance(error, NotImplementedError) and comes_from(error, file):
        return NotWritten(str(error) or "NotImplementedError")
    if isinstance(error, TypeError) and (found := _UNKNOWN_PARAMETER.match(str(error))) and namespace is not None:
        function = namespace
        for part in found[1].split("."):
            function = getattr(function, part, None)
        if callable(function) and (parameters := _parameters(function)) and found[2] not in parameters:
            return NotOffered(f"{found[1].removesuffix('.__init__')} has no parameter {found[2]}")
    return None


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return {}


class Offer:
    """The parameters of PyTorch that the signature of a component has.

    A call names PyTorch's parameters. A parameter that the component lacks is left out of the call if it has its
    default value; otherwise the component does not offer the call.

    Args:
        name: The name of the component.
        target: The component of the implementation.
        model: The component with PyTorch's signature.
    """

    def __init__(self, name: str, target: Callable[..., Any], model: Callable[..., Any]) -> None:
        self.name = name
        own, self._model = _parameters(target), _parameters(model)
        kinds = {parameter.kind for parameter in own.values()}
        self._any_keyword = inspect.Parameter.VAR_KEYWORD in kinds
        self._own = {n for n, p in own.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        self._places = [n for n, p in own.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.lacks = [
            n
            for n, p in self._model.items()
            if own and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and not self._has(n)
        ]
        """PyTorch's parameters that the component lacks."""

    def _has(self, name: str) -> bool:
        return name in self._own or self._any_keyword or self._renamed(name) is not None

    def _renamed(self, name: str) -> str | None:
        """The component's name for a parameter: the one at the same position, if it is not a name of PyTorch."""
        place = list(self._model).index(name) if name in self._model else len(self._places)
        own = self._places[place] if place < len(self._places) else None
        return own if own is not None and own not in self._model else None

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments under the names of the component.

        Raises:
            NotOffered: a missing parameter has a value other than its default.
        """
        if not self.lacks:
            return args, dict(kwargs)
        names = list(self._model)
        places: list[Any] = []
        words: dict[str, Any] = {}
        for place, value in enumerate(args):
            name = names[place] if place < len(names) else ""
            own = self._places[place] if place < len(self._places) else None
            if own is not None and (own == name or own not in self._model) and len(places) == place:
                places.append(value)
            elif name in self._own:
                words[name] = value
            elif not self._is_default(name, value):
                raise NotOffered(f"{self.name} has no parameter {name}")
        for name, value in kwargs.items():
            if name in self._own or self._any_keyword or name not in self._model:
                words[name] = value
            elif (renamed := self._renamed(name)) is not None:
                words[renamed] = value
            elif not self._is_default(name, value):
                raise NotOffered(f"{self.name} has no parameter {name}")
        return tuple(places), words

    def _is_default(self, name: str, value: Any) -> bool:
        """Whether a value is PyTorch's default; (1, 1) is the default 1 of both sides."""
        if name not in self._model:
            return False
        default = self._model[name].default
        values = value if isinstance(value, tuple) and value else (value,)
        return all(
            one is default
            or (not isinstance(one, Tensor) and type(one) in (int, float, str, bool) and one == default)
            for one in values
        )  # fmt: skip
