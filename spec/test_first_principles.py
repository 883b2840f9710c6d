"""First principles: no file of `reference/nn`, `reference/fast` and `reference/models`, nor `reference/arguments.py`,
`reference/definitions.py` and `reference/optim.py`, uses an existing component of PyTorch.

Allowed are tensors (indexing, arithmetic, reductions, matrix products, `unfold`, `exp`, `log` and their like),
autograd, `torch.nn.Module`, `torch.nn.Parameter`, `torch.optim.Optimizer` (the base classes, which compute nothing),
`PackedSequence` as a container, and the reference's own components.
Forbidden, in every spelling that a syntax tree shows, are the rest of `torch.nn`, `torch.optim`, PyTorch's private
parts and operators, and the functions and methods that compute a layer, an activation or a loss.

`x.flatten()` is plain reshaping, except in the file that defines `flatten`; `torch.flatten` is always the component.
An attribute of `self` belongs to the module, for any name: `self.dropout` may be the reference's `Dropout`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import reference
from spec.support.first_principles import is_component

ROOT = Path(reference.__file__).parent
FILES = [path for folder in ("nn", "fast", "models") for path in sorted((ROOT / folder).glob("*.py"))]
FILES += [ROOT / name for name in ("arguments.py", "definitions.py", "optim.py")]
EXCUSED = {
    # built from any namespace of layers, by default PyTorch's: the file defines no layers
    "models/ocean.py": ["torch.nn under another name"],
    # reads weights, computes nothing; torchvision is imported only when it is asked for what it lists
    "models/pretrained.py": ["import of importlib"],
}
"""By file, the allowed exceptions, each with its reason."""

# The allowed names of torch.nn for layers and of torch.optim for optimizers.
MATERIAL = ("torch.nn.Module", "torch.nn.Parameter", "torch.nn.utils.rnn.PackedSequence", "torch.optim.Optimizer")
FORBIDDEN_MODULES = ("torch.nn", "torch.optim", "torch.ops", "torch.ao", "torch.jit", "torch.compile")
# Beginnings of dtype names: the only attributes of PyTorch with names that may be built at run time.
DTYPES = ("int", "uint", "float", "bfloat", "complex")
# Functions that run code from text, which a syntax tree does not show.
FORBIDDEN_CALLS = ("eval", "exec", "compile", "__import__")
ALLOWED_PACKAGES = (sys.stdlib_module_names - {"importlib", "ctypes"}) | {"torch", "jaxtyping", "reference"}


def violations(source: str) -> list[str]:
    """Every use of a forbidden component in a file, as "line N: what"."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # the dotted path into PyTorch of each name of the file
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        for name, path in _imports(node):
            package = path.split(".")[0]
            if package not in ALLOWED_PACKAGES:
                found.append((node.lineno, f"import of {path}"))  # pyright: ignore[reportAttributeAccessIssue]
            if package == "torch":
                found += [(node.lineno, problem) for problem in _path_problems(path)]  # pyright: ignore[reportAttributeAccessIssue]
                names[name] = path
    own_flatten = any(isinstance(node, ast.FunctionDef) and node.name == "flatten" for node in tree.body)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    inner |= {id(node.args[0]) for node in calls if _called(node) == "getattr"}
    for node in ast.walk(tree):
        problems = _expression_problems(node, names, own_flatten=own_flatten, whole=id(node) not in inner)
        found += [(getattr(node, "lineno", 0), problem) for problem in problems]
    return [f"line {line}: {problem}" for line, problem in sorted(set(found))]


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that an import binds, each with the dotted path that must be allowed."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname is None and "." in alias.name:
                yield "", alias.name  # binds the first part only; the whole must be allowed nevertheless
                yield alias.name.split(".")[0], alias.name.split(".")[0]
            else:
                yield alias.asname or alias.name, alias.name
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _path_problems(path: str) -> Iterator[str]:
    """The violation of a dotted path into PyTorch, or None."""
    if any(f"{material}.".startswith(f"{path}.") or f"{path}.".startswith(f"{material}.") for material in MATERIAL):
        inside = path.split(".")[-1:]  # a parent package or a part of an allowed path
    else:
        inside = path.split(".")[1:]
        if any(f"{path}.".startswith(f"{module}.") for module in FORBIDDEN_MODULES):
            yield path
            return
        if any(part.startswith("_") for part in inside):
            yield f"{path}, which is private"
            return
    if any(is_component(part) for part in inside) or path == "torch.flatten" or path.endswith(".*"):
        yield path


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The dotted path into PyTorch of an expression, or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (path := _dotted(node.value, names)):
        return f"{path}.{node.attr}"
    if isinstance(node, ast.Call) and len(node.args) >= 2 and (text := _constant(node.args[1])) is not None:
        path = _dotted(node.args[0], names) if _called(node) == "getattr" else None
        return f"{path}.{text}" if path else None
    return None


def _constant(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _called(node: ast.Call) -> str:
    """The last part of the name of a called function."""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _expression_problems(node: ast.AST, names: dict[str, str], *, own_flatten: bool, whole: bool) -> Iterator[str]:
    """The violation of one node; `whole`: the node is not the object of an attribute."""
    path = _dotted(node, names)
    if path is not None:
        yield from _path_problems(path) if whole else ()
        way = any(material.startswith(f"{path}.") for material in MATERIAL)
        if whole and way and isinstance(getattr(node, "ctx", None), ast.Load):
            yield f"{path} under another name"
    elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
        yield from _method_problems(node.attr, own_flatten=own_flatten)
    if isinstance(node, ast.Call):
        yield from _call_problems(node, names)


def _method_problems(name: str, *, own_flatten: bool) -> Iterator[str]:
    if is_component(name) or (name == "flatten" and own_flatten):
        yield f"the method {name}"


def _call_problems(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    called = _called(node)
    if isinstance(node.func, ast.Name) and called in FORBIDDEN_CALLS:
        yield called
    if called in ("attrgetter", "methodcaller") and node.args:
        text = _constant(node.args[0])
        if text is None or any(is_component(part) for part in text.split(".")):
            yield f"{called} of {text or 'a computed name'}"
    if called == "getattr" and len(node.args) >= 2 and _dotted(node, names) is None:
        text, path = _constant(node.args[1]), _dotted(node.args[0], names)
        if text is not None and is_component(text):
            yield f"the method {text}"
        if path is not None and not _begins_like_a_dtype(node.args[1]):
            yield f"a computed name in {path}"


def _begins_like_a_dtype(node: ast.AST) -> bool:
    first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else None
    return first is not None and (_constant(first) or "").startswith(DTYPES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_reference_is_made_from_first_principles(file: Path) -> None:
    found = [line.partition(": ")[2] for line in violations(file.read_text(encoding="utf-8"))]
    assert found == EXCUSED.get(file.relative_to(ROOT).as_posix(), [])


DEFINED = (
    *("convolution", "pooling", "activation", "recurrent", "attention", "container"),
    *("loss", "normalization", "linear", "dropout", "embedding"),
)
"""The files of `reference/nn` that begin with definitions."""


@pytest.mark.parametrize("file", DEFINED)
def test_the_first_code_of_a_component_is_the_definition(file: str) -> None:
    tree = ast.parse((ROOT / f"nn/{file}.py").read_text(encoding="utf-8"))
    code = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert code[0].name.endswith("_definition")
    for node in code:
        if node.name.endswith("_definition"):
            assert isinstance(node, ast.FunctionDef)
            assert ast.get_docstring(node), f"{node.name} must state the formula"
            assert (node.end_lineno or 0) - node.lineno + 1 <= 25, f"{node.name} must have at most 25 lines"
            assert not [part for part in ast.walk(node) if isinstance(part, ast.Raise | ast.Assert)], "a check"


def test_the_dependencies_of_the_fast_forms_point_one_way() -> None:
    for file in (ROOT / "fast").glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        own = {
            node.module for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module)[:9] == "reference"
        }
        assert own <= {"reference.arguments"}, file.name


HEAD = "import torch\nfrom torch import Tensor, nn\nfrom torch.nn.utils.rnn import PackedSequence\n"


@pytest.mark.parametrize(
    "source",
    [
        "class Layer(nn.Module): weight = nn.Parameter(torch.zeros(3))",
        "class Layer(torch.nn.Module): weight: torch.nn.Parameter | None",
        "class Gate(torch.autograd.Function): pass",
        "class Rule(torch.optim.Optimizer): pass",
        "import torch.nn as layers\nclass Layer(layers.Module): pass",
        "packed = PackedSequence(x, sizes)",
        "torch.nn.utils.rnn.PackedSequence(x, sizes)",
        "y = x[..., None, :] @ w.mT + torch.einsum('ij,jk', a, b)",
        "y = x.exp().sum(-1).log() / torch.exp(x).amax()",
        "y = x.unfold(2, 3, 1).as_strided((2, 3), (3, 1))",
        "y = torch.linalg.vector_norm(x) + torch.erf(x)",
        "y = x.flatten(1).unflatten(1, (2, 3))",
        "y = x.normal_().uniform_().bernoulli_(0.5)",
        "from reference.nn.activation import relu, softmax\ny = softmax(relu(x), -1)",
        "from reference.nn.linear import flatten\ny = flatten(x)",
        "def softmax(x): return x.exp()\ny = softmax(x)",
        "class Layer(nn.Module):\n  def forward(self, x): return self.dropout(x)",
        "bits = getattr(torch, f'int{size}')",
        "getattr(self, name)",
        "dtype: torch.dtype = torch.float32",
        "'''Like torch.nn.functional.relu.'''",
    ],
)
def test_first_principles_are_allowed(source: str) -> None:
    assert violations(f"{HEAD}{source}") == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.nn.functional",
        "import torch.nn.functional as F",
        "from torch.nn import functional",
        "from torch.nn.functional import pad as p",
        "from torch.nn import ReLU",
        "from torch.nn import *",
        "from torch import *",
        "from torch import softmax as own",
        "from torch import optim\noptim.SGD([w])",
        "rules = torch.optim",
        "from torch.optim.sgd import SGD",
        "from torch._C._nn import linear",
        "from torch import _VF",
        "import torch as t\nt.relu(x)",
        "from torch.nn.utils.rnn import pack_sequence",
        "from torch.nn import init",
        "import torchvision",
        "import importlib",
        "nn.functional.pad(x, (1, 1))",
        "torch.nn.functional.linear(x, w)",
        "nn.Linear(3, 4)",
        "nn.init.normal_(w)",
        "nn.utils.clip_grad_norm_(w, 1)",
        "nn.Parameter.softmax(w, 0)",
        "torch.optim.SGD([w])",
        "torch.optim.Adam.step(x)",
        "torch.optim.lr_scheduler.StepLR(x, 1)",
        "torch.ops.aten.convolution(x)",
        "torch._C._nn.gelu(x)",
        "torch._VF.lstm(x)",
        "torch.__dict__['relu'](x)",
        "torch.conv2d(x, w)",
        "torch.conv_transpose2d(x, w)",
        "torch.convolution(x, w)",
        "torch.max_pool2d(x, 2)",
        "torch.max_pool2d_with_indices(x, 2)",
        "torch.adaptive_avg_pool1d(x, 2)",
        "torch.relu_(x)",
        "torch.special.expit(x)",
        "torch.special.log_softmax(x, 0)",
        "torch.dropout(x, 0.5, True)",
        "torch.native_dropout(x, 0.5, True)",
        "torch.batch_norm(x)",
        "torch.native_layer_norm(x)",
        "torch.embedding(w, i)",
        "torch.embedding_renorm_(w, i)",
        "torch.rnn_tanh(x)",
        "torch.lstm_cell(x)",
        "torch.gru(x)",
        "torch.nll_loss(x)",
        "torch.flatten(x)",
        "f = torch.tanh",
        "Tensor.softmax(x, 0)",
        "torch.Tensor.sigmoid(x)",
        "x.relu()",
        "x.sigmoid_()",
        "x.tanh()",
        "x.softmax(-1)",
        "(x + 1).log_softmax(-1)",
        "x.logsumexp(0)",
        "self.weight.softmax(0)",
        "f = x.tanh_",
        "def flatten(x): return x.flatten(0, -1)",
        "def flatten(x): return torch.flatten(x)",
        "getattr(torch, 'softmax')(x)",
        "getattr(x, 'sigmoid')()",
        "getattr(nn, 'Linear')",
        "getattr(torch.nn, 'functional').relu(x)",
        "getattr(torch, name)(x)",
        "getattr(torch, f'{kind}_norm')(x)",
        "layers = nn",
        "layers = torch",
        "vars(torch)['relu'](x)",
        "from operator import methodcaller\nmethodcaller('relu')(x)",
        "import operator\noperator.attrgetter('nn.functional.relu')(torch)",
        "__import__('torch')",
        "eval('torch' + '.relu')",
    ],
)
def test_a_component_of_pytorch_is_caught_in_every_spelling(source: str) -> None:
    assert violations(HEAD) == []
    assert violations(f"{HEAD}{source}") != []
