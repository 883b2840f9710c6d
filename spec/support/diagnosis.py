"""Diagnosis: finding the fault in `spec/faults` that gives exactly the numbers of an implementation in its failed
examples.

A fault that fails an example with the same message, numbers included, as the implementation is a candidate. An example
that the implementation passes and the fault fails rules the fault out. `lessons.diagnosis` chooses among the remaining
ones.
"""

import importlib
import inspect
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import reference
from spec.faults import Fault, all_faults
from spec.report import recording
from spec.support.implementations import Component
from spec.support.outcomes import Offer
from spec.support.run import current
from spec.support.strategies import seed_all

_NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:e[-+]?\d+)?|\binf\b|\bnan\b)")
_OBJECT = re.compile(r"<PIL\.[\w.]+ image(?= mode)|(?<=\d) at 0x[0-9A-Fa-f]+")
_CLOSE = 1e-4  # tolerance for two ways of computing the same float32
_DRAWN = ("DataLoader", "RandomCrop", "RandomHorizontalFlip", "Dropout", "dropout")
"""Components that draw random numbers: two of them with the same mistake may draw different numbers."""
_MATHEMATICS = ("values", "gradients", "randomness", "state")
_CALL_ERROR = re.compile(r"\(\) (got an unexpected|got multiple values|takes |missing )")
SEVERAL = 4  # the count of numbers that do not agree by chance
BUDGET = 6.0
"""The processor time, in seconds, for the faults of a component and failures above level tutorial."""
_LIVES_LONG = re.compile(r"tmp_path|monkeypatch|cap\w+|request|recwarn|subtests|benchmark")
"""The fixtures without which a test can run again after its end."""


@dataclass(frozen=True)
class Said:
    """The result of a test in a form that can be compared.

    Attributes:
        kind: "passed", "failed" (by an assertion), "raised" (by the code under test), or "nothing" (not judged).
        text: The message.
        got: The result that the test compared last and found wrong, if there is one.
    """

    kind: str
    text: str = ""
    got: Any = None

    @classmethod
    def of(cls, error: BaseException | None) -> "Said":
        """The result of a test that raised this error."""
        if error is None:
            return cls("passed")
        if isinstance(error, pytest.skip.Exception):
            return cls("nothing")
        if isinstance(error, AssertionError):  # below the first line it prints objects, with different names
            return cls("failed", _OBJECT.sub("image", str(error).partition("\n")[0]))
        if isinstance(error, pytest.fail.Exception):
            return cls("failed", str(error), (current().difference or [None])[0])
        fits = not (isinstance(error, TypeError) and _CALL_ERROR.search(str(error)))
        return cls("raised" if fits else "nothing", f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Example:
    """A call of a test that can be repeated.

    Attributes:
        test: The function of the test.
        arguments: Its arguments.
        components: The components among them and in its fixtures, by name.
        level: The level of the test.
        aspect: Its aspect.
    """

    test: Callable[..., Any]
    arguments: Mapping[str, Any]
    components: tuple[Component, ...]
    level: str = "tutorial"
    aspect: str = "values"

    @property
    def tells(self) -> bool:
        """Whether its failure indicates a mathematical mistake and not only a missing feature."""
        return self.aspect in _MATHEMATICS

    def again(self, seed: int = 0) -> Said:
        """Run the test again."""
        seed_all(seed)
        current().difference = None
        try:
            with current().trace.off(), recording.paused():
                self.test(**self.arguments)
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
            return Said.of(error)
        return Said("passed")

    def with_fault(self, fault: type[Fault], seed: int = 0) -> Said:
        """Run the test with a fault instead of the implementation."""
        with _in_place(self.components, fault):
            return self.again(seed)

    def without(self, component: Component) -> Said:
        """Run the test with one right component."""
        with _in_place((component,), reference):
            return self.again()


@contextmanager
def _in_place(components: tuple[Component, ...], fault: Any) -> Iterator[None]:
    """Replace the implementation by a fault."""
    swapped = [component for component in components if target_of(fault, component.name) is not None]
    before = [(component.target, component.offer) for component in swapped]
    for component in swapped:
        component.target = target_of(fault, component.name)
        component.offer = Offer(component.name, component.target, getattr(reference, component.name))
    try:
        yield
    finally:
        for component, (target, offer) in zip(swapped, before, strict=True):
            component.target, component.offer = target, offer


@cache
def faults_of(name: str) -> list[type[Fault]]:
    """The faults that define a component, or the function that a layer calls; not those of vectorised kernels."""
    words = tuple(word for word in (name, _FUNCTION_OF.get(name)) if word)
    faults = [fault for fault in all_faults(words) if fault.__module__ != "spec.faults.sizes"]
    return [fault for fault in faults if target_of(fault, name) is not None]


_FUNCTION_OF = {
    "Conv2d": "conv2d", "MaxPool2d": "max_pool2d", "AvgPool2d": "avg_pool2d", "ReLU": "relu", "LeakyReLU": "leaky_relu",
    "Softmax": "softmax", "LogSoftmax": "log_softmax", "Dropout": "dropout", "Linear": "linear",
    "BatchNorm2d": "batch_norm", "LayerNorm": "layer_norm", "L1Loss": "l1_loss", "MSELoss": "mse_loss",
    "NLLLoss": "nll_loss", "CrossEntropyLoss": "cross_entropy",
}  # fmt: skip
"""The function of `torch.nn.functional` that each layer of `torch.nn` calls."""


@cache
def target_of(fault: Any, name: str) -> Any:
    """The component of a fault: its own, PyTorch's layer with its function, or None."""
    function = _FUNCTION_OF.get(name, "")
    if hasattr(fault, name) or not hasattr(fault, function):
        return getattr(fault, name, None)
    offer = Offer(function, getattr(fault, function), getattr(reference, function))
    layer, original = getattr(torch.nn, name), getattr(functional, function)

    def wrong(*args: Any, _stacklevel: int = 0, **kwargs: Any) -> Any:
        setattr(functional, function, original)  # it may be used by the fault
        try:
            args, kwargs = offer.call(args, kwargs)
            return getattr(fault, function)(*args, **kwargs)
        finally:
            setattr(functional, function, wrong)

    class Layer(layer):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            setattr(functional, function, wrong)
            try:
                return super().forward(*args, **kwargs)
            finally:
                setattr(functional, function, original)

    Layer.__signature__ = inspect.signature(layer)
    return Layer


def same(one: Said, other: Said, *, drawn: bool = False) -> bool:
    """Whether two results have the same message and the same numbers, up to rounding.

    Args:
        one: A result of a test.
        other: Another one.
        drawn: Whether the numbers are random; then they may differ.
    """
    if one.kind != other.kind or one.kind not in ("failed", "raised"):
        return False
    if _NUMBER.sub("#", one.text) != _NUMBER.sub("#", other.text):
        return False
    if isinstance(one.got, Tensor) and isinstance(other.got, Tensor) and not drawn:
        if one.got.shape != other.got.shape:
            return False
        if one.got.numel() and not torch.allclose(one.got.double(), other.got.double(), _CLOSE, 1e-6, equal_nan=True):
            return False
    pairs = zip(map(float, _NUMBER.findall(one.text)), map(float, _NUMBER.findall(other.text)), strict=True)
    return drawn or all(
        a == b or (a != a and b != b) or abs(a - b) <= _CLOSE * max(abs(a), abs(b), 1e-2) for a, b in pairs
    )


Key = tuple[str, str]
"""A component and the name of a fault of it."""


@dataclass
class Diagnosis:
    """The evidence of a run about the mistakes of one implementation.

    Attributes:
        matched: The number of failures that each fault explains.
        ruled_out: The faults that fail an example that the implementation passes.
        exact: Whether the last failure has several numbers, all of which a fault must give.
    """

    matched: Counter[Key] = field(default_factory=Counter)
    ruled_out: set[Key] = field(default_factory=set)
    exact: bool = False
    _passed: list[Example] = field(default_factory=list)
    _spent: Counter[str] = field(default_factory=Counter)

    def failed(self, example: Example, error: BaseException | None = None) -> list[Key] | None:
        """The faults that explain a failure and that no earlier example rules out.

        Args:
            example: The call that failed.
            error: Its error, if another call would raise the same; otherwise the call is repeated.

        Returns:
            The faults; empty if the failure indicates no known mistake.
        """
        components = [c for c in example.components if self._spent[c.name] < BUDGET or example.level == "tutorial"]
        if not example.tells or not components:
            return None
        own = example.again() if error is None else Said.of(error)
        self.exact = isinstance(own.got, Tensor) and own.got.numel() >= SEVERAL
        if own.kind == "raised" and example.level != "tutorial" and not own.text.startswith("RuntimeError"):
            return None  # an argument that it does not know; shapes that do not fit are a RuntimeError
        if own.kind not in ("failed", "raised"):
            return None
        found = []
        for component in components:
            start = time.process_time()
            if len(example.components) > 1 and same(own, example.without(component)):
                continue  # another component fails
            for fault in faults_of(component.name):
                key = (component.name, fault.implementation())
                if key in self.ruled_out:
                    continue
                if not same(own, example.with_fault(fault), drawn=component.name in _DRAWN):
                    continue
                if key not in self.matched and not self._survives(key, fault):
                    continue
                self.matched[key] += 1
                found.append(key)
            self._spent[component.name] += time.process_time() - start  # pyright: ignore[reportArgumentType]
        return found

    def _survives(self, key: Key, fault: type[Fault]) -> bool:
        """Whether a fault passes the examples that the implementation has passed."""
        if any(_contradicts(example, key[0], fault) for example in self._passed):
            self.ruled_out.add(key)
            return False
        return True

    def passed(self, example: Example) -> list[Key]:
        """The faults that an example rules out because the implementation passes it."""
        if not example.components or not runs_again(example) or not example.tells:
            return []
        self._passed.append(example)
        by_name = {name: {f.implementation(): f for f in faults_of(name)} for name, _ in self.matched}
        gone = [key for key in self.matched if _contradicts(example, key[0], by_name[key[0]][key[1]])]
        self.ruled_out.update(gone)
        for key in gone:
            del self.matched[key]
        return gone


def _contradicts(example: Example, name: str, fault: type[Fault]) -> bool:
    """Whether a fault fails an example."""
    if name not in [component.name for component in example.components] or example.level == "pytorch":
        return False
    seeds = range(4 if name in _DRAWN else 1)  # random numbers may pass by chance
    return all(example.with_fault(fault, seed).kind in ("failed", "raised") for seed in seeds)


def runs_again(example: Example) -> bool:
    """Whether a test can run again after its end, when its folders and its patches are gone."""
    return not any(_LIVES_LONG.match(name) for name in example.arguments)


def example_of(item: pytest.Item, *, failing: bool) -> Example | None:
    """The call of a test, or the failed example of a property; None if it cannot be repeated."""
    components = tuple(value for value in _values(item) if isinstance(value, Component))
    properties = dict(item.user_properties)
    kind = {"level": properties.get("level", "tutorial"), "aspect": properties.get("aspect", "values")}
    function, run = item.obj, current()  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(function, "hypothesis") or hasattr(getattr(function, "__wrapped__", None), "hypothesis"):
        if not failing or run.example is None:
            return None
        test, arguments = run.example
        return Example(test, arguments, components, **kind)  # pyright: ignore[reportArgumentType]
    names = item._fixtureinfo.argnames  # pyright: ignore[reportAttributeAccessIssue]
    arguments = {name: item.funcargs[name] for name in names if name in item.funcargs}  # pyright: ignore[reportAttributeAccessIssue]
    if len(arguments) < len(names):
        return None
    return Example(function, arguments, components, **kind)  # pyright: ignore[reportArgumentType]


def _values(item: pytest.Item) -> Iterator[Any]:
    """The values of all fixtures of an item, also of those that other fixtures use."""
    seen = {id(value): value for value in item.funcargs.values()}  # pyright: ignore[reportAttributeAccessIssue]
    yield from seen.values()
    for definition in item._request._fixture_defs.values():  # pyright: ignore[reportAttributeAccessIssue]
        cached = definition.cached_result
        if cached is not None and cached[2] is None and id(cached[0]) not in seen:
            yield cached[0]


def sentence(name: str) -> str:
    """The name and the docstring of a fault as text."""
    module, _, kind = name.partition(":")
    fault = getattr(importlib.import_module(module), kind)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=\d)", " ", kind).lower()
    text = " ".join((fault.__doc__ or "").split("\n\n")[0].split())
    return f"{words} ({text.rstrip('.')})" if text else words
