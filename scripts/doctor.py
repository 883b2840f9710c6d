"""Is this machine ready? `python scripts/doctor.py`, see `--help`."""

import sys
from dataclasses import asdict, dataclass

import tyro

from reference.doctor import examine
from reference.errors import exit_with
from reference.text import json_text, print_line, styled

SIGNS = {"good": "ok", "note": "--", "wrong": "!!"}


@dataclass(frozen=True)
class Question:
    """Say what a training will find here: versions, devices, memory, data; and what to do about what is wrong.

    The exit status is 0 if a training can run, 1 if not.
    """

    json: bool = False
    """Print one JSON list instead of text."""


def main() -> int:
    with styled():
        question = tyro.cli(tyro.conf.FlagCreatePairsOff[Question])
    findings = examine()
    if question.json:
        print(json_text([asdict(finding) for finding in findings], indent=2, encoding=sys.stdout.encoding))
    else:
        for finding in findings:
            print_line(f"{SIGNS[finding.state]} {finding.what:<13} {finding.found}")
            if finding.remedy:
                print_line(f"   {'':<13} → {finding.remedy}")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


if __name__ == "__main__":
    exit_with(main)
