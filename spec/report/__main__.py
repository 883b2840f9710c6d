"""Commands for reports: merge runs, compare two, write a badge, draw the history."""

import argparse
import sys
from pathlib import Path

from reference.files import atomic_write
from reference.messages import counted
from reference.text import json_text, print_line
from spec.report import compare, document, page


def main(words: list[str] | None = None) -> int:
    """Run one of the commands; return the exit status: 1 if something broke, 2 for an error that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m spec.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    merge = commands.add_parser("merge", help="put runs side by side; of two runs of the same test the later one wins")
    merge.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="the folder or file of a report")
    merge.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR", help="where the new report is written"
    )
    diff = commands.add_parser("diff", help="what was fixed, broken, added, removed; exit 1 if something broke")
    diff.add_argument("before", type=Path, metavar="A")
    diff.add_argument("after", type=Path, metavar="B")
    badge = commands.add_parser("badge", help="the endpoint of a badge of shields.io, as JSON")
    badge.add_argument("report", type=Path, metavar="REPORT")
    badge.add_argument("--impl", metavar="NAME", help="count the tests of this implementation (default: all tests)")
    badge.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    history = commands.add_parser("history", help="draw the course over all reports below a folder")
    history.add_argument("folder", type=Path, metavar="DIR")
    history.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: DIR/history.html")
    chosen = parser.parse_args(words)
    try:
        return {"merge": _merge, "diff": _diff, "badge": _badge, "history": _history}[chosen.command](chosen)
    except (document.ReportError, OSError) as error:
        where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print_line(f"error: {where}", error=True)
        return 2


def _merge(chosen: argparse.Namespace) -> int:
    report = compare.merge([document.read(path) for path in chosen.reports])
    document.write(report, chosen.output)
    page.write(report, chosen.output)
    for line in compare.summary(report):
        print_line(line)
    print_line(f"report: {chosen.output / 'index.html'}")
    return 0


def _diff(chosen: argparse.Namespace) -> int:
    before, after = document.read(chosen.before), document.read(chosen.after)
    found = compare.diff(before, after)
    for name, lines in found.items():
        for line in lines:
            for text in f"{name}: {line}".split("\n"):  # the reason of a broken test is a line of its own
                print_line(text)
    if before["specification"]["digest"] != after["specification"]["digest"]:
        print_line("note: the two reports have different clauses")
    unfinished = compare.incomplete(after)
    for text in unfinished:
        print_line(f"incomplete: {chosen.after}: {text}")
    print_line(", ".join(f"{len(lines)} {name}" for name, lines in found.items()))
    return 1 if found["broken"] or unfinished else 0


def _badge(chosen: argparse.Namespace) -> int:
    text = json_text(compare.badge(document.read(chosen.report), chosen.impl))
    if chosen.output is None:
        print(text)
    else:
        with atomic_write(chosen.output) as file:
            file.write(text.encode("utf-8") + b"\n")
    return 0


def _history(chosen: argparse.Namespace) -> int:
    reports, left_out = compare.history(chosen.folder)
    for text in left_out:
        print_line(f"left out: {text}", error=True)
    output = chosen.output or chosen.folder / "history.html"
    with atomic_write(output) as file:
        file.write(page.history(compare.course(reports)).encode("utf-8"))
    print_line(f"{counted(len(reports), 'report')}: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
