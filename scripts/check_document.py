"""Check the listings of a document on this PyTorch: `python scripts/check_document.py FILE.md`, see `--help`."""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # spec/ is not installed

from reference.errors import InputError, exit_with
from reference.text import print_line

DESCRIPTION = """
Run every Python listing of Markdown documents and notebooks, each in a process of its own without a network, and say of
each whether it runs, fails and why, warns, prints something else than the document says, or needs what is not here.
The exit status is 0 if nothing fails or differs, 1 if something does, and 2 for an error in the arguments.
"""
SECONDS = 8.0


def progress(place: str) -> None:
    """Print on a terminal which listing is running."""
    print_line(f"... {place}", error=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE|FOLDER", help="FILE.md, FILE.ipynb, or a folder")
    parser.add_argument("--fix", metavar="DIR", type=Path, help="write copies with the known fixes, and run them again")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the results as a page that works offline")
    parser.add_argument("--lang", choices=("en", "zh"), help="the language of the report; default: the environment's")
    parser.add_argument("--alone", action="store_true", help="run each listing alone, as if copied into a new file")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"time of a listing until its loops are cut; default {SECONDS:.0f}",
    )
    parser.add_argument("--memory", type=float, default=6, metavar="GIB", help="memory of a listing; default 6")
    words = parser.parse_args()
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

    language = report.chosen_language(words.lang)
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
