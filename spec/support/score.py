"""The score of an untrusted file for teachers, in the format of exercism's test runners, version 3.

The tests run in a process that never imports the file; see `spec.support.guest`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference.errors import InputError
from reference.messages import counted
from reference.text import print_line
from spec.support.exercises import Exercise, of_chapter, written_in

NOT_SCORED = (
    "test_init_receives_folder_and_label_on_construction",
    "test_the_10000_test_images_make_156",
    "test_the_50000_training_images_make_782",
    "test_the_listing_writes_156_grids",
    "test_two_epochs_take_19968_items",
    "test_ants_and_bees_folders_are_those_of_the_listing",
    "test_indexing_calls_getitem_and_len_calls_dunder_len",
    "test_addition_accepts_empty_data_sets",
)
"""The tests that need the class itself, to inherit from it or to add its objects up, while it stays in its own process,
and those that send tens of thousands of items from one process to the other."""
SECONDS = 300.0
"""The time limit for all tests of a file."""
HOST: Any = None
"""In the judging process: the host of the file. `--impl spec.support.score:GUEST` tests its components."""


class _Guest:
    """The components of the file of `HOST`."""

    def __getattr__(self, name: str) -> Any:
        if HOST is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(HOST.namespace, name)


GUEST = _Guest()


def host(file: Path, wanted: Sequence[Exercise]) -> Any:
    """Start the process of the file, in the judging process."""
    global HOST
    from spec.support.guest import Host

    HOST = Host(file, [exercise.name for exercise in wanted])
    return HOST


def results(file: Path, chapter: str | None, level: str) -> dict[str, Any]:
    """The results of a file, in the format of exercism's test runner, version 3."""
    from spec.support.learn import judge

    written = [exercise for exercise in written_in(file) if chapter in (None, exercise.chapter)]
    if not written:
        names = [exercise.name for exercise in of_chapter(chapter)] if chapter else ["any exercise"]
        return {"version": 3, "status": "error", "message": f"{file.name} does not define {', '.join(names)}"}
    judgement = judge(file, written, level, SECONDS, trusted=False)
    if judgement.error:
        return {"version": 3, "status": "error", "message": judgement.error}
    tests = [
        {
            "name": f"{exercise.name}: {report['title']}",
            "task_id": number,
            "status": "pass" if report["outcome"] == "passed" else "fail",
            "message": None if report["outcome"] == "passed" else str(report.get("message", report.get("because", ""))),
            "test_code": str(report.get("paste", "")),
        }
        for number, exercise in enumerate(written, 1)
        for report in judgement.of(exercise.name)
        if exercise.name == report["components"][-1]
    ]
    passed = bool(tests) and all(test["status"] == "pass" for test in tests)
    return {"version": 3, "status": "pass" if passed else "fail", "message": None, "tests": tests}


def score(file: Path, answer: Path, chapter: str | None, level: str) -> int:
    """Score a file and write the results.

    Returns:
        0 if all tests pass, 1 if one fails.

    Raises:
        InputError: this system does not support separate processes.
    """
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        raise InputError("learn.py score needs Linux, which can end all processes that a submission starts")
    found = results(file, chapter, level)
    answer.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tests = found.get("tests", [])
    print_line(
        f"{found['status']}: {sum(t['status'] == 'pass' for t in tests)} of {counted(len(tests), 'test')}, see {answer}"
    )
    return 0 if found["status"] == "pass" else 1
