"""Chapter 00: what a fresh machine needs: the package, its README's commands, what importing it costs."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import hypothesis
import pytest

import reference
from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]


def printed(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@clause("00.package.imports")
@pytest.mark.slow
def test_importing_the_reference_leaves_out_what_only_some_runs_need() -> None:
    heavy = ("torchvision", "tensorboard", "jinja2", "tyro", "torch._dynamo")
    code = f"import sys; from reference import *; print([name for name in {heavy!r} if name in sys.modules])"
    assert printed(code) == "[]\n"


@clause("00.package.lazy")
def test_importing_the_reference_brings_nothing_but_itself() -> None:
    """Names are imported as they are used, so that `import reference` costs next to nothing beyond `import torch`."""
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
def test_a_name_brings_its_own_module_only() -> None:
    code = "import sys; from reference import conv2d; print(conv2d.__module__, 'PIL' in sys.modules)"
    assert printed(code) == "reference.nn.convolution False\n"


@clause("00.package.lazy")
def test_every_public_name_comes_from_where_the_type_checker_sees_it() -> None:
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
        _ = reference.conv4d


def readme(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@clause("00.package.readme")
def test_both_readmes_give_the_same_commands() -> None:
    blocks = [re.findall(r"```bash\n(.*?)```", readme(name), re.DOTALL) for name in ("README.md", "README.zh-CN.md")]
    commands = [[line.split("  #")[0].rstrip() for block in part for line in block.splitlines()] for part in blocks]
    assert commands[0] == commands[1]
    assert commands[0][0] == "python -m pip install -e . && python scripts/train_full.py"


@clause("00.package.readme")
def test_every_script_and_flag_in_the_readme_exists() -> None:
    text = readme("README.md")
    for script in re.findall(r"scripts/\w+\.py", text):
        assert (ROOT / script).is_file(), script
    sources = "".join(path.read_text() for path in [ROOT / "reference/run.py", *(ROOT / "scripts").glob("*.py")])
    # TensorBoard's, everybody's, those of pytest's plugins, torchrun's
    others = {"logdir", "help", "hypothesis-profile", "benchmark-autosave", "benchmark-compare", "nproc-per-node"}
    trial = set(re.findall(r'"--([a-z-]+)"', readme("spec/support/plugin.py") + readme("benchmarks/__main__.py")))
    for flag in set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", text)) - others - trial:
        assert re.search(rf"^    {flag.replace('-', '_')}: ", sources, re.MULTILINE), flag


@clause("00.package.readme")
def test_the_readme_s_profiles_exist() -> None:
    named = set(re.findall(r"`(dev|ci|thorough)`", readme("README.md")))
    assert named == {"dev", "ci", "thorough"}
    assert named <= set(re.findall(r'register_profile\("(\w+)"', readme("spec/support/plugin.py")))
    assert hypothesis.settings.get_profile("ci").max_examples == 100
    assert hypothesis.settings.get_profile("ci").derandomize
    assert hypothesis.settings.get_profile("thorough").max_examples == 2000


@clause("00.package.readme")
def test_the_readme_s_links_lead_somewhere() -> None:
    for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", readme(name)):
            assert (ROOT / target).exists(), target


@clause("00.package.readme")
def test_both_readmes_give_the_same_figures() -> None:
    def figures(name: str) -> list[str]:
        """The rows of tables of numbers, and all decimals."""
        return re.findall(r"\d\.\d{2,}", readme(name))

    assert figures("README.md") == figures("README.zh-CN.md")


@clause("00.package.imports")
def test_the_package_asks_for_what_it_imports() -> None:
    project = tomllib.loads(readme("pyproject.toml"))["project"]
    needed = {re.split(r"[>=\[]", entry)[0] for entry in project["dependencies"]} | {"pillow"}
    names, imported = {"PIL": "pillow"}, set()
    for path in [*(ROOT / "reference").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in found} - {*sys.stdlib_module_names, "reference"}
            imported |= {names.get(root, root) for root in roots}
    assert imported <= needed
    assert "torchvision" not in imported
