"""Is this machine ready? `python scripts/doctor.py`, see `--help`."""

import json
from dataclasses import asdict, dataclass

import tyro

from reference.doctor import examine
from reference.errors import exit_with

SIGNS = {"good": "ok", "note": "--", "wrong": "!!"}


@dataclass(frozen=True)
class Question:
    """Say what a training will find here: versions, devices, memory, data; and what to do about what is wrong.

    The exit status is 0 if a training can run, 1 if not.
    """

    json: bool = False
    """Print one JSON list instead of text."""


def main() -> int:
    question = tyro.cli(tyro.conf.FlagCreatePairsOff[Question])
    findings = examine()
    if question.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{SIGNS[finding.state]} {finding.what:<13} {finding.found}")
            if finding.remedy:
                print(f"   {'':<13} → {finding.remedy}")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


if __name__ == "__main__":
    exit_with(main)
