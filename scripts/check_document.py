"""Check the listings of a document on this PyTorch: `python scripts/check_document.py FILE.md`, see `--help`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.append(str(Path(__file__).parents[1]))  # spec/ is not installed

from reference.command_line import parse_arguments
from reference.errors import InputError, exit_with
from reference.messages import Language, is_chinese
from reference.text import print_line


@dataclass(frozen=True)
class Question:
    """Run every Python listing of Markdown documents and notebooks, each in a process of its own without a network.

    The report says of each listing whether it runs, fails and why, warns, prints something else than the document
    says, or needs something that this machine does not have. The exit status is 0 if nothing fails or differs, 1 if
    something does, and 2 for an error in the arguments.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE|FOLDER")]
    """FILE.md, FILE.ipynb, or a folder."""
    fix: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write copies with the known fixes, and run them again."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the results as JSON."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the results as a page that works offline."""
    lang: Language = "auto"
    """The language of messages: English, Chinese, or that of the system's locale."""
    alone: bool = False
    """Run each listing alone, as if copied into a new file."""
    seconds: float = 8
    """Seconds of a listing until its loops are cut."""
    memory: Annotated[float, tyro.conf.arg(metavar="GIB")] = 6
    """Memory of a listing."""


def progress(place: str) -> None:
    """Print on a terminal which listing is running."""
    print_line(f"... {place}", error=True)


def main() -> int:
    words = parse_arguments(Question)
    if not words.paths:
        raise InputError("FILE is missing: name at least one document or folder")
    if not 0 < words.seconds < 1e6:
        raise InputError(f"--seconds {words.seconds}: must be positive")
    if not 1 <= words.memory < 1e6:
        raise InputError(f"--memory {words.memory}: must be at least 1")
    try:
        import libcst  # noqa: F401
        import markdown_it  # noqa: F401
        import nbformat  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error.name} is missing: python -m pip install -e ".[documents]"') from None
    from spec.documents import report
    from spec.documents.check import Options, check, documents, keeper, write_fixed

    language = "zh" if is_chinese() else "en"
    try:
        paths = documents(words.paths)
    except FileNotFoundError as error:
        raise InputError(error) from None
    if not paths:
        raise InputError("the folder has neither Markdown documents nor notebooks")
    options = Options(words.seconds, int(words.memory * 2**30), words.alone, words.fix is not None)
    found = []
    with keeper() as processes:
        for path in paths:
            try:
                document = check(path, options, processes, progress if sys.stderr.isatty() else lambda _: None)
            except ValueError as error:
                raise InputError(f"{path}: {error}") from None
            found.append(document)
            for line in report.lines(document, language):
                print_line(line)
            if words.fix is not None:
                words.fix.mkdir(parents=True, exist_ok=True)
                write_fixed(document, words.fix / path.name)
    if words.json is not None:
        report.write_json(found, words.json)
    if words.html is not None:
        report.write_page(found, words.html, language)
    return 1 if any(document.wrong for document in found) else 0


if __name__ == "__main__":
    exit_with(main)
