"""Which listing continues which: the names that a listing needs, and the names that it defines."""

import ast
import builtins
from dataclasses import dataclass, field
from functools import cache

from spec.documents.extract import Listing, parsed

BUILTINS = {*dir(builtins), "__name__", "__file__", "__doc__", "get_ipython", "display", "__class__"}
IMPLIED = {
    "torch": "import torch",
    "torchvision": "import torchvision",
    "nn": "from torch import nn",
    "F": "import torch.nn.functional as F",
    "optim": "from torch import optim",
    "np": "import numpy as np",
    "numpy": "import numpy",
    "plt": "import matplotlib.pyplot as plt",
    "os": "import os",
    "sys": "import sys",
    "time": "import time",
    "math": "import math",
    "random": "import random",
    "copy": "import copy",
    "transforms": "from torchvision import transforms",
    "datasets": "from torchvision import datasets",
    "models": "from torchvision import models",
    "DataLoader": "from torch.utils.data import DataLoader",
    "Dataset": "from torch.utils.data import Dataset",
    "Image": "from PIL import Image",
    "SummaryWriter": "from torch.utils.tensorboard import SummaryWriter",
    "Variable": "from torch.autograd import Variable",
    "OrderedDict": "from collections import OrderedDict",
}
"""Common names of PyTorch tutorials, with the import that a listing without imports omits."""


@dataclass
class Names:
    """The names that a program needs and defines.

    Attributes:
        needs: Names that it reads before defining them, each with the line of the first use at module level, or 0 if
            only function bodies use it.
        defines: Names that it binds.
        imports: Whether it imports anything.
        modules: Modules that it imports, each with the names that it takes from it ("*" for all, none for itself).
    """

    needs: dict[str, int] = field(default_factory=dict)
    defines: set[str] = field(default_factory=set)
    imports: bool = False
    modules: dict[str, set[str]] = field(default_factory=dict)

    @property
    def first(self) -> tuple[str, int] | None:
        """The first name that a reader misses who runs the listing alone, with its line."""
        at_once = [(line, name) for name, line in self.needs.items() if line]
        return (min(at_once)[1], min(at_once)[0]) if at_once else None


class _Reader(ast.NodeVisitor):
    """Walks a program in the order in which Python evaluates it."""

    def __init__(self) -> None:
        self.found = Names()
        self._later: list[ast.AST] = []
        self._local: list[set[str]] = []

    def read(self, tree: ast.Module) -> Names:
        for statement in tree.body:
            self.visit(statement)
        while self._later:  # bodies of functions run after the module
            self._function(self._later.pop())
        return self.found

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._use(node.id, node.lineno)
        else:
            self._bind(node.id)

    def _use(self, name: str, line: int) -> None:
        if name in self.found.defines or name in BUILTINS or any(name in scope for scope in self._local):
            return
        if not self.found.needs.get(name):
            self.found.needs[name] = line

    def _bind(self, name: str) -> None:
        (self._local[-1] if self._local else self.found.defines).add(name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._use(node.target.id, node.lineno)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        for part in (*node.body, *node.orelse):
            self.visit(part)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.imports = True
        for alias in node.names:
            self.found.modules.setdefault(alias.name, set())
            self._bind(alias.asname or alias.name.split(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found.imports = True
        module = node.module or ""
        taken = self.found.modules.setdefault(module, set())
        for alias in node.names:
            taken.add(alias.name)
            if alias.name != "*":
                self._bind(alias.asname or alias.name)
                continue
            for name in exported(module):
                self._bind(name)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(part)
        self._bind(node.name)
        self._later.append(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # pyright: ignore[reportAssignmentType]

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for part in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(part)
        self._later.append(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)
        self._local.append(set())
        for part in node.body:
            self.visit(part)
        self._local.pop()
        self._bind(node.name)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self._local.append(set())
        for generator in node.generators:
            self.visit(generator.iter)
            self.visit(generator.target)
            for condition in generator.ifs:
                self.visit(condition)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(part)
        self._local.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.visit(node.type)
        if node.name:
            self._bind(node.name)
        for part in node.body:
            self.visit(part)

    def _function(self, node: ast.AST) -> None:
        """Visit the body of a function: names that it reads and that neither it nor the module defines."""
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        body = node.body if isinstance(node.body, list) else [node.body]
        own, shared = _bound_in(node, body)
        for part in body:
            for inner in ast.walk(part):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                    name = inner.id
                    if name not in own and name not in BUILTINS and name not in self.found.defines:
                        self.found.needs.setdefault(name, 0)
        self.found.defines |= shared


def _bound_in(node: ast.AST, body: list) -> tuple[set[str], set[str]]:
    """All names that a function binds anywhere in it, and those that it declares global."""
    own: set[str] = set()
    shared: set[str] = set()
    for inner in ast.walk(node):
        match inner:
            case ast.arg(arg=name):
                own.add(name)
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                own.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name) if (
                inner is not node
            ):
                own.add(name)
            case ast.ExceptHandler(name=str(name)):
                own.add(name)
            case ast.alias(name=name, asname=other):
                own.add(other or name.split(".")[0])
            case ast.Global(names=names):
                shared |= set(names)
    return own - shared, shared & own


@cache
def exported(module: str) -> frozenset[str]:
    """The names that `from module import *` defines, for modules that tutorials often import in this way."""
    if module.split(".")[0] not in ("torch", "torchvision", "math", "numpy", "PIL", "tkinter", "os", "random", "time"):
        return frozenset()
    import importlib

    try:
        found = importlib.import_module(module)
    except ImportError:
        return frozenset()
    return frozenset(getattr(found, "__all__", None) or (name for name in dir(found) if not name.startswith("_")))


def names_of(code: str) -> Names:
    """The names that a program needs and defines; empty if it is not valid Python."""
    tree = parsed(code)
    if tree is None:
        return Names()
    return _Reader().read(tree)


def sessions(listings: list[Listing], files: dict[str, int]) -> list[list[int]]:
    """Groups of listings, each of which runs in one process, in the order of the document.

    Args:
        listings: All listings of a document.
        files: The listing that is the file of a module, by module name: `from model import *` imports names from it.

    A notebook is one group. In Markdown, a listing that needs no name of an earlier one begins a group; any other
    continues the latest group that has all the names, or those groups that have them together.
    """
    if any(listing.cell for listing in listings):
        cells = [number for number, listing in enumerate(listings) if listing.kind == "python"]
        return [cells] if cells else []
    groups: list[list[int]] = []
    have: list[set[str]] = []
    for number, listing in enumerate(listings):
        if listing.kind != "python":
            continue
        names = names_of(listing.code)
        defines = set(names.defines)
        wanted = set(names.needs)
        for module, taken in names.modules.items():
            if "*" in taken and module in files:
                given = names_of(listings[files[module]].code).defines
                defines |= given
                wanted -= given
        joined = _providers(wanted, have)
        if not joined:
            groups.append([number])
            have.append(defines)
            continue
        first = min(joined)
        for other in sorted(joined - {first}, reverse=True):
            groups[first] += groups.pop(other)
            have[first] |= have.pop(other)
        groups[first] = sorted({*groups[first], number})
        have[first] |= defines
    return sorted(groups)


def _providers(wanted: set[str], have: list[set[str]]) -> set[int]:
    """The groups that a listing continues: the latest that has all its names, or several that have them together."""
    anywhere = {name for name in wanted if any(name in names for names in have)}
    if not anywhere:
        return set()
    chosen: set[int] = set()
    missing = set(anywhere)
    while missing:
        best = max(range(len(have)), key=lambda number: (len(missing & have[number]), number))
        chosen.add(best)
        missing -= have[best]
    return chosen


def modules_of(listings: list[Listing]) -> dict[str, int]:
    """The listing that is the file of a module, for each module that a listing imports.

    It is the listing that the document calls by that name, or else the latest earlier one with the imported names.
    """
    files: dict[str, int] = {}
    imported: dict[str, tuple[int, set[str]]] = {}
    for number, listing in enumerate(listings):
        if listing.kind != "python":
            continue
        for module, taken in names_of(listing.code).modules.items():
            imported.setdefault(module, (number, taken))
    for module, (number, taken) in imported.items():
        name = module.replace(".", "/") + ".py"
        for other, listing in enumerate(listings):
            named = listing.file and listing.file.rpartition("/")[2] == name.rpartition("/")[2]
            if named and listing.kind in ("python", "other") and other != number:
                files[module] = other
        if module in files or not taken or "*" in taken or _installed(module):
            continue
        for other in range(number - 1, -1, -1):
            if listings[other].kind == "python" and taken <= _written_in(listings[other].code):
                files[module] = other
                break
    return files


def _written_in(code: str) -> set[str]:
    """The functions and classes that a program defines itself."""
    tree = parsed(code)
    body = tree.body if tree else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


@cache
def _installed(module: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(module.split(".")[0]) is not None
    except (ImportError, ValueError):
        return False
