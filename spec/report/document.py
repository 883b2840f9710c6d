"""report.json: how a report is built, ordered, written and read.

The file is strict JSON in a stable order: clauses in the order of clauses.toml, tests by file, line and id. Each clause
is on one line. Each test takes two lines, and the second one contains only the duration, so that `diff -I '^
"duration"' A/report.json B/report.json` compares two runs. report.schema.json describes the format.
"""

import ast
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import reference
from reference.files import atomic_write
from reference.text import json_text
from spec.support.clauses import CLAUSES, Clause
from spec.support.implementations import Implementation

FORMAT = 1
"""Version of the format. It is increased when a reader of the previous version would misread a report."""

SCHEMA = Path(__file__).with_name("report.schema.json")

OUTCOMES = (
    *("passed", "failed", "error", "known failure", "not written", "not offered", "not claimed", "absent", "skipped"),
)
"""Every outcome of a test. Only "passed" is passed."""

Report = dict[str, Any]


class ReportError(Exception):
    """A report cannot be read; the message is one line."""


def clause_entry(clause: Clause) -> dict[str, Any]:
    """A clause in the format of a report."""
    return {
        "kind": clause.kind,
        "verdict": clause.verdict or None,
        "lines": list(clause.lines),
        "level": getattr(clause, "level", None),
        "aspect": getattr(clause, "aspect", None),
        "en": clause.statement,
        "zh": clause.statement_zh,
    } | ({"releases": clause.span} if clause.span else {})


def specification() -> dict[str, Any]:
    """Version of the project, and the clauses with their digest."""
    clauses = {name: clause_entry(clause) for name, clause in CLAUSES.items()}
    return {
        "version": reference.__version__,
        "digest": digest([json.dumps(clauses, sort_keys=True, ensure_ascii=True).encode()]),
        "clauses": clauses,
    }


def digest(parts: Iterable[bytes]) -> str:
    """The SHA-256 of some bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return f"sha256:{found.hexdigest()}"


def implementation_entry(implementation: Implementation) -> dict[str, Any]:
    """An implementation with the digest of its code."""
    return {
        "id": implementation.id,
        "name": implementation.name,
        "version": implementation.version or None,
        "digest": implementation_digest(implementation.name),
        "environment": 0,
    }


def implementation_digest(name: str) -> str | None:
    """The digest of the code of an implementation.

    For a file it is the SHA-256 of its bytes, for a package the SHA-256 of its Python files, and for PyTorch the commit
    that it was built from, because hashing all of PyTorch would take longer than many runs.
    """
    if name in ("torch", "torch-compile"):
        return f"git:{torch.version.git_version}"
    if name.endswith(".py"):
        return digest([Path(name).read_bytes()])
    module = importlib.import_module(name.partition(":")[0])
    if module.__name__.partition(".")[0] == "torch":
        return f"git:{torch.version.git_version}"
    if module.__name__.partition(".")[0] == "reference":  # reference.definitions uses the files of the package too
        module = reference
    if getattr(module, "__file__", None) is None:
        return None
    home = Path(str(module.__file__))
    paths = sorted(home.parent.rglob("*.py")) if home.name == "__init__.py" else [home]
    return digest(
        part for path in paths for part in (path.relative_to(home.parent).as_posix().encode(), path.read_bytes())
    )


def versions() -> dict[str, str]:
    """The installed versions of the packages on which an outcome can depend."""
    names = ("torch", "torchvision", "numpy", "pillow", "tensorboard", "pytest", "hypothesis")
    return {name: found for name in names if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def comparisons(tests: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The equations that the tests of documented values assert, from their sources, by `file::test`."""
    wanted: dict[str, set[str]] = {}
    for test in tests:
        if any(CLAUSES[name].kind == "value" for name in test["clauses"] if name in CLAUSES):
            file, _, name = function_of(test["id"]).partition("::")
            wanted.setdefault(file, set()).add(name.rpartition("::")[2])
    root = Path(__file__).parents[2]
    found = {}
    for file, names in sorted(wanted.items()):
        if not (root / file).is_file():
            continue
        lines = (root / file).read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines):
            definition = re.match(r"(?:    )*def (\w+)", line)
            if definition and definition[1] in names:  # parsing whole files would take seconds
                block = "".join(inspect.getblock(lines[number:]))
                function = ast.parse(f"if True:\n{block}" if line.startswith(" ") else block)
                checks = [ast.unparse(inner.test) for inner in ast.walk(function) if isinstance(inner, ast.Assert)]
                found[f"{file}::{definition[1]}"] = [check for check in checks if len(check) <= 200]
    return {name: checks for name, checks in found.items() if checks}


def function_of(test_id: str) -> str:
    """The test function of an id: `file::name` or `file::class::name`."""
    return test_id.partition("[")[0]


def order(test: Mapping[str, Any]) -> tuple[Any, ...]:
    """The sort key of a test in a report."""
    return test["id"].partition("::")[0], test["line"] or 0, test["id"], test["environment"]


def text(report: Report) -> str:
    """The report as the text of report.json."""
    lines = ["{"]
    keys = list(report)
    for key in keys:
        value, comma = report[key], "," if key != keys[-1] else ""
        if key == "tests":
            blocks = []
            for test in value:
                facts = {name: part for name, part in test.items() if name != "duration"}
                blocks.append(f' {json_text(facts)[:-1]},\n  "duration": {json_text(test["duration"])}}}')
            lines.append('"tests": [\n' + ",\n".join(blocks) + f"\n]{comma}")
        elif key == "specification":
            clauses = ",\n".join(
                f"  {json_text(name)}: {json_text(clause)}" for name, clause in value["clauses"].items()
            )
            rest = json_text({name: part for name, part in value.items() if name != "clauses"})[:-1]
            lines.append(f'"specification": {rest}, "clauses": {{\n{clauses}\n }}}}{comma}')
        elif isinstance(value, list) and value:
            lines.append(f'"{key}": [\n' + ",\n".join(f" {json_text(part)}" for part in value) + f"\n]{comma}")
        elif isinstance(value, dict) and value:
            parts = ",\n".join(f" {json_text(name)}: {json_text(part)}" for name, part in value.items())
            lines.append(f'"{key}": {{\n{parts}\n}}{comma}')
        else:
            lines.append(f'"{key}": {json_text(value)}{comma}')
    return "\n".join([*lines, "}", ""])


def write(report: Report, folder: Path) -> None:
    """Write report.json; a reader sees either the old file or the complete new file."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "report.json") as file:
        file.write(text(report).encode("utf-8"))


def read(path: Path) -> Report:
    """The report in a folder, or in a file.

    Raises:
        ReportError: there is no report, it is damaged, or it has another format.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file}: not JSON, the file is damaged or incomplete: {error}") from None
    if not isinstance(report, dict) or "format" not in report:
        raise ReportError(f"{file}: not a report: it has no version of the format")
    if (version := report["format"]) != FORMAT:
        raise ReportError(f"{file}: format {version!r}, but this program reads format {FORMAT}")
    if problem := damage(report):
        raise ReportError(f"{file}: damaged: {problem}")
    return report


def damage(report: Report) -> str | None:
    """What is missing in a report that cannot be used; None if its parts are there.

    This checks what merge, diff, badge, history and the page rely on. Checking the whole schema takes too long.
    """
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    kinds = {"array": list, "object": dict, "string": str, "integer": int, "number": (int, float), "boolean": bool}

    def lacks(value: Any, entry: Mapping[str, Any], name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is not an object"
        for key in entry["required"]:
            if key not in value:
                return f"{name} lacks {key!r}"
            kind = entry["properties"][key].get("type")
            if isinstance(kind, str) and not isinstance(value[key], kinds[kind]):
                return f"{name}: {key!r} must be of type {kind}"
        return None

    if problem := lacks(report, schema, "the report") or lacks(
        report["specification"], schema["properties"]["specification"], "specification"
    ):
        return problem
    for part, definition in (
        *(("environments", "environment"), ("runs", "run"), ("implementations", "implementation"), ("tests", "test")),
    ):
        for number, value in enumerate(report[part]):
            name = f"{part}[{number}]"
            if problem := lacks(value, schema["$defs"][definition], name):
                return problem
            if part != "environments" and not 0 <= value["environment"] < len(report["environments"]):
                return f"{name}: there is no environment {value['environment']}"
    for name, clause in report["specification"]["clauses"].items():
        if problem := lacks(clause, schema["$defs"]["clause"], name):
            return problem
    for number, test in enumerate(report["tests"]):
        if test["outcome"] not in OUTCOMES:
            return f"tests[{number}]: the outcome {test['outcome']!r} is unknown"
    return None if report["runs"] else "it has no run"
