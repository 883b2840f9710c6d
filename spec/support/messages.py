"""The messages of the program, read from its sources, which `reference/chinese.py` must translate."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHOWN = {
    *("print_line", "print_wrapped", "show", "say", "translated", "legible", "Finding", "refusal"),
    *("InputError", "TrainingError", "OSError"),
}
"""Functions and classes with a message as an argument."""
RETURNED = {
    "_stopped",
    "standing",
    "of_start",
    "of_archive",
    "what_it_is",
    "introduction",
    "outcome",
    "fault",
    "required",
    "resolve_precision",
    "compared",
    "describe_device",
    "_walk",
}
"""Functions that return a message."""
SCRIPTS = ("train_full.py", "predict.py", "accuracy.py", "export.py", "doctor.py")
"""The scripts that print through the table; the other scripts contain their texts in both languages."""
APART = ("nn", "fast", "optim.py", "pretrained.py")
"""Folders and files under `reference/` with errors for Python callers, which no script prints."""


def sources() -> list[Path]:
    """The sources with messages for users: the scripts, and the program behind them."""
    found = [*(ROOT / "reference").rglob("*.py"), *(ROOT / "scripts" / name for name in SCRIPTS)]
    return sorted(path for path in found if not any(part in APART for part in path.relative_to(ROOT).parts))


def templates(path: Path) -> dict[str, int]:
    """The messages in a source, with `{}` for each variable part, and their lines."""
    found: dict[str, int] = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    everywhere = assigned(tree.body)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        names = everywhere | assigned(ast.walk(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and called(node) in SHOWN:
                values = [*node.args, *(word.value for word in node.keywords if word.arg in (None, "remedy", "found"))]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "notes.append":
                values = node.args
            elif (isinstance(node, ast.Yield) and path.name == "glance.py") or (
                isinstance(node, ast.Return) and function.name in RETURNED
            ):
                values = [node.value] if node.value else []
            else:
                continue
            for value in values:
                short = isinstance(node, ast.Call) and called(node) in ("translated", "legible")
                for text in texts(value, names):
                    if re.search(r"[A-Za-z]{3}", text.replace("{}", "")) and (short or " " in text.strip()):
                        found.setdefault(text, node.lineno)
    return found


def assigned(nodes: Iterable[ast.AST]) -> dict[str, ast.expr]:
    """The expression that is assigned to each name; the last one if there are several."""
    return {
        node.targets[0].id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def called(node: ast.Call) -> str:
    """The name of the function of a call."""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def texts(node: ast.AST, names: dict[str, ast.expr], depth: int = 4) -> Iterator[str]:
    """The strings in an expression and in the local variables that it uses, with `{}` for variable parts."""
    if depth == 0:
        return
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
            for part in parts:
                if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name | ast.IfExp):
                    yield from texts(part.value, names, depth - 1)
        case ast.Tuple(elts=several):
            for part in several:
                yield from texts(part, names, depth - 1)
        case ast.IfExp(body=first, orelse=second):
            yield from texts(first, names, depth - 1)
            yield from texts(second, names, depth - 1)
        case ast.Name(id=name) if name in names:
            yield from texts(names[name], names, depth - 1)
