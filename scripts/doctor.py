"""Is this machine ready? `python scripts/doctor.py`, see `--help`. Needs nothing but Python."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (the check of the version)
    sys.exit("!! Python        %d.%d: install Python 3.11 or newer" % sys.version_info[:2])  # noqa: UP031  (old ones)
sys.path.append(str(Path(__file__).parents[1]))  # where the project is not installed

from reference.doctor import examine
from reference.errors import exit_with
from reference.text import json_text, print_line

SIGNS = {"good": "ok", "note": "--", "wrong": "!!"}
DESCRIPTION = """
Check what a training needs on this machine: versions, devices, memory, data; and print a remedy for each problem.
The exit status is 0 if a training can run, 1 if not.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument(
        "--json", action=argparse.BooleanOptionalAction, default=False, help="print one JSON list instead of text"
    )
    words = parser.parse_args()
    findings = examine()
    if words.json:
        print(json_text([asdict(finding) for finding in findings], indent=2, encoding=sys.stdout.encoding))
    else:
        for finding in findings:
            print_line(f"{SIGNS[finding.state]} {finding.what:<13} {finding.found}")
            if finding.remedy:
                print_line(f"   {'':<13} → {finding.remedy}")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


if __name__ == "__main__":
    exit_with(main)
