"""The implementations that can be tested: the reference, PyTorch, PyTorch compiled, a module, a learner's file.

An implementation is a set of components under their PyTorch names. A component behaves like that of the implementation
and also records its calls, so that a failure can show them.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import reference
from spec.support.outcomes import Offer
from spec.support.reproduction import Trace
from spec.support.run import current

NOT_ON_TRIAL = ("get_worker_info", "save_checkpoint", "load_checkpoint", "fit", "evaluate")
"""The public names of the program itself, which have no counterpart in PyTorch."""

COMPONENTS = tuple(
    name
    for modules in reference.PUBLIC.values()
    for names in modules.values()
    for name in names
    if name not in NOT_ON_TRIAL
)
"""Every name that can be under test."""

_COMPILABLE = ("torch.nn", "torch.nn.functional", "torch.optim", "torch")
_NOT_COMPILED = ("RNN", "LSTM", "GRU")
"""Components that PyTorch's compiler refuses: they are absent from `torch-compile`."""
_TORCH_HOMES = (*_COMPILABLE, "torch.utils.data")
_TORCHVISION = dict.fromkeys(
    ("Compose", "ToTensor", "Normalize", "Resize", "RandomCrop", "RandomHorizontalFlip"), "torchvision.transforms"
) | {"CIFAR10": "torchvision.datasets", "vgg16": "torchvision.models"}
"""PyTorch's components in packages that take a second to import: imported only when they are under test.

`ImageTree` is not one of them: torchvision's ImageFolder opens one folder of classes, in the order of the names, and
does not resize.
"""


@dataclass(frozen=True)
class _Deferred:
    """A component that is imported when it is needed."""

    home: str
    name: str

    def get(self) -> Any:
        return getattr(importlib.import_module(self.home), self.name)


class ImplementationError(Exception):
    """An implementation that cannot be tested; the message is one line."""


@dataclass(frozen=True)
class Implementation:
    """An implementation under test.

    Attributes:
        name: The name given with `--impl`.
        id: The text in the brackets of a test id.
        version: The version of its source, for the header.
        components: The names in `COMPONENTS` that it defines.
        imports: The line of Python that imports a component.
        left_out: The components that a file only imports from PyTorch.
        namespace: The module, or the class, that holds the components.
    """

    name: str
    id: str
    version: str
    components: Mapping[str, Any]
    imports: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    namespace: Any = None

    @property
    def known(self) -> bool:
        """Whether it belongs to this project or PyTorch; these define everything, and engineers read their failures."""
        return self.name.startswith(("reference", "spec.faults.", "spec.right.")) or self.name in (
            "torch",
            "torch-compile",
        )

    @property
    def file(self) -> str | None:
        """The file of its code, if it belongs neither to this project nor to PyTorch."""
        if self.known or self.namespace is None:
            return None
        try:
            return inspect.getfile(self.namespace)
        except TypeError:  # it is built in
            return None

    def component(self, name: str, trace: Trace) -> "Component":
        """One of its components."""
        target = self.components[name]
        target = target.get() if isinstance(target, _Deferred) else target
        offer = None if self.known else Offer(name, target, getattr(reference, name))
        return Component(name, target, self.imports[name], trace, offer)


class Component:
    """A component under test; every attribute access is forwarded to the component of the implementation."""

    def __init__(self, name: str, target: Any, import_line: str, trace: Trace, offer: Offer | None = None) -> None:
        self.target, self.name = target, name
        self._import_line, self._trace, self.offer = import_line, trace, offer
        self.__doc__ = target.__doc__
        known = isinstance(target, Hashable)
        self.__signature__ = _signatures(name, target) if known else _signature(target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the component and record the call."""
        current().moved = time.monotonic()
        if self.offer is not None:
            args, kwargs = self.offer.call(args, kwargs)
        if not self._trace.on:
            return self.target(*args, **kwargs)
        self._trace.call(self.name, self._import_line, self.__signature__, args, kwargs)
        result = self.target(*args, **kwargs)
        self._trace.note_result(result)
        if isinstance(result, nn.Module) and result._compiled_call_impl is None:  # a hook would break the graph
            self._trace.watch(result)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def __repr__(self) -> str:
        return f"<{self.name} under test>"


def load(name: str) -> Implementation:
    """The implementation called `name`.

    Args:
        name: `reference`, `torch`, `torch-compile`, the path of a Python file, a dotted module, or `module:namespace`.
            `outside.NAME` is the module of that name in `spec/outside`.

    Raises:
        ImplementationError: no implementation of this name can be imported.
    """
    if name in ("torch", "torch-compile"):
        return _pytorch(name)
    if name.endswith(".py"):
        path = Path(name)
        namespace = _import_file(path)
        found, left_out = _defined(namespace, path)
        folder = f"import sys; sys.path.insert(0, {str(path.resolve().parent)!r})"
        imports = {c: f"{folder}\n{_import_line(path.stem, c)}" for c in found}
        return Implementation(name, path.stem, "", found, imports, left_out, namespace)
    module, _, attribute = name.partition(":")
    module = f"spec.{module}" if module.startswith("outside.") else module
    namespace = _import_module(module)
    if attribute:
        if not hasattr(namespace, attribute):
            raise ImplementationError(f"--impl {name}: module {module} has no {attribute}")
        namespace = getattr(namespace, attribute)
    found = {component: getattr(namespace, component) for component in COMPONENTS if hasattr(namespace, component)}
    if not found and name == "reference":
        raise ImplementationError("--impl reference: it offers no component; is lazy_loader installed?")
    version = str(getattr(namespace, "__version__", ""))
    if attribute:
        imports = {c: f"from {module} import {attribute}; {c} = {attribute}.{c}" for c in found}
    else:
        imports = {component: f"from {module} import {component}" for component in found}
    return Implementation(name, name, version, found, imports, (), namespace)


def _import_line(module: str, component: str) -> str:
    if module.isidentifier():
        return f"from {module} import {component}"
    return f"import importlib; {component} = importlib.import_module({module!r}).{component}"


def _pytorch(name: str) -> Implementation:
    homes = {
        c: home for c in COMPONENTS for home in reversed(_TORCH_HOMES) if hasattr(importlib.import_module(home), c)
    }
    if importlib.util.find_spec("torchvision") is not None:  # without it, PyTorch lacks these components
        homes |= _TORCHVISION
    found: dict[str, Any] = {component: _Deferred(home, component) for component, home in homes.items()}
    if name == "torch-compile":
        # properties try many shapes, and each may need separately compiled code
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        found = {
            c: _compiled(deferred.get())
            for c, deferred in found.items()
            if deferred.home in _COMPILABLE and c not in _NOT_COMPILED
        }
    imports = {component: f"from {home} import {component}" for component, home in homes.items()}
    return Implementation(name, name, torch.__version__, found, imports)


def _compiled(target: Any) -> Any:
    """A compiled function, or a class with compiled instances; without a fallback to code that is not compiled."""
    if not inspect.isclass(target):
        return wraps(target)(torch.compile(target, fullgraph=True))

    @wraps(target, updated=())
    def make(*args: Any, **kwargs: Any) -> Any:
        made = target(*args, **kwargs)
        if isinstance(made, nn.Module):
            made.compile(fullgraph=True)
        else:
            made.step = torch.compile(made.step)  # pyright: ignore[reportAttributeAccessIssue]
        return made

    return make


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImplementationError(f"--impl {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"on_trial.{path.stem}", path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("on_trial", ModuleType("on_trial"))  # pickle imports the parent module of a name
    sys.modules[spec.name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ImplementationError(f"--impl {path}: importing it raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ImplementationError(
                f"--impl {name}: there is no such module; known are reference, torch, torch-compile, "
                "a dotted module and the path of a .py file"
            ) from error
        raise ImplementationError(f"--impl {name}: importing it raised ModuleNotFoundError: {error}") from error
    except (Exception, SystemExit) as error:
        raise ImplementationError(f"--impl {name}: importing it raised {type(error).__name__}: {error}") from error


def _defined(module: ModuleType, path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The components that a file offers, and those that it only imports from PyTorch.

    A file offers the names in `__all__`, or else all its names. After `from torch.nn import Linear`, PyTorch's `Linear`
    is not tested as the learner's component; after `conv2d = torch.conv2d` it is.
    """
    names = getattr(module, "__all__", None)
    found = {name: getattr(module, name) for name in COMPONENTS if hasattr(module, name)}
    if names is not None:
        return {name: value for name, value in found.items() if name in names}, ()
    tree = ast.parse(path.read_bytes())
    written = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = tuple(name for name, value in found.items() if _is_pytorchs(value) and name not in written)
    return {name: value for name, value in found.items() if name not in imported}, imported


def _is_pytorchs(value: Any) -> bool:
    """Whether a component belongs to PyTorch; functions written in C may not have a module name."""
    home = getattr(value, "__module__", None) or "torch"
    return home == "torch" or home.startswith("torch.")


@cache
def _signatures(name: str, target: Any) -> inspect.Signature | None:
    """The signature of a component, or that of the reference; cached, because finding it is slow."""
    return _signature(target) or _signature(getattr(reference, name, None))


def _signature(target: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (ValueError, TypeError):  # written in C
        return None
