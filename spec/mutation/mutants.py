"""The mutants of a source file: the changed code, its position, and the text of the changed file."""

import ast
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = (
    "reference/nn",
    "reference/fast",
    "reference/optim.py",
    "reference/data",
    "reference/models",
    "reference/training.py",
    "reference/inference.py",
    "reference/recipes.py",
    "reference/checkpoint.py",
)
"""The sources of the program that are mutated, as files and folders."""

HELPERS = ("spec/support/assertions.py", "spec/support/outcomes.py", "spec/support/strategies.py")
"""The sources of the specification that are mutated: a helper that accepts too much would make all tests weaker."""

ORACLES = ("spec/support/oracles.py", "spec/support/optimizer_rules.py", "spec/support/harness.py")
"""The formulas of the specification, and their inputs: a right implementation disagrees with a wrong formula."""

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one source file.

    Attributes:
        file: The path of the file, from the root of the project.
        function: The function that contains the change, as `Class.method`; empty if the change runs at import.
        line: Where the changed code begins.
        before: The code that is replaced, on one line.
        after: The code that replaces it.
        number: The number of the change among equal changes of one function, from 1.
        start: The offset of the replaced code in the file, in bytes.
        stop: Its end.
        spans: First and last line of the statement that contains the change, without the statements inside it, and of
            the functions and classes around it, from the inside to the outside.
    """

    file: str
    function: str
    line: int
    before: str
    after: str
    number: int
    start: int
    stop: int
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def id(self) -> str:
        """The name of the mutant; it does not depend on line numbers."""
        number = f" #{self.number}" if self.number > 1 else ""
        return f"{self.file}::{self.function or 'module'}: {self.before} → {self.after}{number}"

    def source(self) -> bytes:
        """The changed file."""
        text = (ROOT / self.file).read_bytes()
        return text[: self.start] + self.after.encode() + text[self.stop :]

    def diff(self) -> str:
        """The change as a unified diff without context."""
        old, new = (ROOT / self.file).read_text(encoding="utf-8"), self.source().decode()
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), self.file, self.file, lineterm="", n=1)
        return "\n".join(lines)


def sources(names: tuple[str, ...] | list[str]) -> list[Path]:
    """The given Python files, and the Python files in the given folders."""
    found: list[Path] = []
    for name in names:
        path = ROOT / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def mutants(path: Path) -> list[Mutant]:
    """All mutants of a file, in its order."""
    text = path.read_bytes()
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    file = path.relative_to(ROOT).as_posix()
    found: list[Mutant] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for function, spans, node, after in _changes(ast.parse(text), "", ()):
        start = lines[node.lineno - 1] + node.col_offset
        stop = lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        before = " ".join(text[start:stop].decode().split())
        seen[function, before, after] += 1
        number = seen[function, before, after]
        found.append(Mutant(file, function, node.lineno, before, after, number, start, stop, spans))
    return found


def _changes(
    tree: ast.AST, function: str, around: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, tuple[tuple[int, int], ...], ast.expr | ast.stmt, str]]:
    """The node to replace and its replacement, with the name of the function and the lines around it."""
    if isinstance(tree, (ast.Assert, ast.JoinedStr, ast.AnnAssign)) and not (
        isinstance(tree, ast.AnnAssign) and tree.value
    ):
        return  # a check for the type checker, the text of a message, or the type of a field
    if isinstance(tree, ast.Assign) and ast.unparse(tree.targets[0]) == "__tracebackhide__":
        return  # it only makes the traceback of a failure shorter
    if isinstance(tree, ast.keyword) and tree.arg == "strict":
        return  # `zip(strict=True)` checks the program itself, not its arguments
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr) and isinstance(tree.right, ast.Subscript):
        return  # a union of types: an alias for annotations
    spans = around
    if isinstance(tree, ast.stmt):
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            around = ((tree.lineno, tree.end_lineno or tree.lineno), *around)
        spans = (_head(tree), *around)
    if isinstance(tree, (ast.expr, ast.stmt)):
        for after in _replacements(tree):
            yield function, spans, tree, after
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_params"):
            continue
        inside = function
        if name == "body" and isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = f"{function}.{tree.name}" if function else tree.name
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.stmt):
                yield from _changes(child, inside, around)
            elif isinstance(child, ast.AST):
                yield from _changes(child, inside, spans)


def _head(statement: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, without the statements inside it."""
    last = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    return statement.lineno, max(statement.lineno, body[0].lineno - 1) if body else last


def _replacements(node: ast.expr | ast.stmt) -> Iterator[str]:
    """The texts that may replace a node."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            for kind in _COMPARISONS[type(op)]:
                yield _text(ast.Compare(left, [kind()], [right]))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            yield _text(ast.BinOp(left, _ARITHMETIC[type(op)](), right))
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _ARITHMETIC:
            yield ast.unparse(ast.AugAssign(target, _ARITHMETIC[type(op)](), value))
            yield "pass"
        case ast.BoolOp(op=ast.And(), values=values):
            yield _text(ast.BoolOp(ast.Or(), values))
        case ast.BoolOp(op=ast.Or(), values=values):
            yield _text(ast.BoolOp(ast.And(), values))
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield _text(operand)
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
        case ast.Constant(value=float(value)):
            yield repr(2 * value if value else 1.0)
        case ast.Break():
            yield "continue"
        case ast.Continue():
            yield "break"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
            yield "pass"
        case _:
            pass
    if isinstance(node, ast.IfExp) and not isinstance(node.test, (ast.Compare, ast.UnaryOp, ast.BoolOp)):
        yield _text(ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse))


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(ast.fix_missing_locations(node))})"
