"""Chapter 00: the package on a fresh machine: its dependencies and the cost of importing it."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import reference
from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]


def printed(code: str) -> str:
    """The output of a new Python process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@clause("00.package.imports")
@pytest.mark.slow
def test_importing_the_reference_does_not_import_optional_packages() -> None:
    heavy = ("torchvision", "tensorboard", "jinja2", "tyro", "torch._dynamo")
    code = f"import sys; from reference import *; print([name for name in {heavy!r} if name in sys.modules])"
    assert printed(code) == "[]\n"


@clause("00.package.lazy")
def test_importing_reference_imports_no_submodule() -> None:
    """Names are imported on first use, so that `import reference` takes hardly longer than `import torch`."""
    code = """
import sys
import reference
own = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
print(sorted(name for name in sys.modules if name.partition(".")[0] == "reference"), "torch" in own, "PIL" in own)
print(set(reference.__all__) <= set(dir(reference)))
"""
    assert printed(code) == "['reference'] False False\nTrue\n"


@clause("00.package.lazy")
@pytest.mark.slow
def test_accessing_a_public_name_imports_only_the_defining_module() -> None:
    code = "import sys; from reference import conv2d; print(conv2d.__module__, 'PIL' in sys.modules)"
    assert printed(code) == "reference.nn.convolution False\n"


@clause("00.package.lazy")
def test_public_names_resolve_to_the_modules_of_the_type_stub() -> None:
    homes = {
        name: f"reference.{module}"
        for modules in reference.PUBLIC.values()
        for module, names in modules.items()
        for name in names
    }
    tree = ast.parse((ROOT / "reference/__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    stub = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    assert stub == {name: (home, name) for name, home in homes.items()}, "write reference/__init__.pyi anew"
    assert sorted(homes) == sorted(reference.__all__)
    for name, home in homes.items():
        assert getattr(reference, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="No reference attribute conv4d"):
        _ = reference.conv4d  # pyright: ignore[reportAttributeAccessIssue]


def readme(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@clause("00.package.imports")
@pytest.mark.slow
def test_package_metadata_requires_all_imported_packages() -> None:
    project = tomllib.loads(readme("pyproject.toml"))["project"]

    def names(entries: list[str]) -> set[str]:
        return {re.split(r"[>=\[]", entry)[0] for entry in entries}

    needed, optional = names(project["dependencies"]), names(project["optional-dependencies"]["test"])
    # protobuf comes with TensorBoard, which writes its events with it
    distributions = {"PIL": "pillow", "google": "tensorboard", "markdown_it": "markdown-it-py"}
    imported, late = set(), set()
    for path in [*(ROOT / "reference").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in found} - {*sys.stdlib_module_names, "reference", "spec"}
            (late if id(node) in inner else imported).update(distributions.get(root, root) for root in roots)
    assert late <= needed | optional
    assert imported <= needed
    assert "torchvision" not in imported


@clause("00.package.posix")
@pytest.mark.slow
def test_no_module_needs_a_posix_system_to_be_imported() -> None:
    """Simulate Windows: without POSIX modules and without POSIX names of `os`, `signal` and `multiprocessing`."""
    command = [sys.executable, "-W", "ignore", "-m", "spec.support.without_posix"]
    count, *failed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert int(count) > 100
    assert failed == []
