"""Test a random sample of mutants; print the score and the survivors; exit with 1 if a survivor is not explained."""

import argparse
import multiprocessing
import os
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from reference.messages import counted
from spec.mutation.judge import META, Coverage, Verdict, judge, project, record, warm_up
from spec.mutation.mutants import HELPERS, PROGRAM, ROOT, Mutant, mutants, sources

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")

_folder = Path()
_coverage = Coverage()


def _start(folders: Any, coverage: Coverage) -> None:
    """Give a process its own copy of the project."""
    global _folder, _coverage
    _folder, _coverage = folders.get(), coverage


def _record(files: list[str]) -> Coverage:
    return record(_folder, files)


def _judge(mutant: Mutant) -> Verdict:
    return judge(_folder, mutant, _coverage)


def groups(chosen: list[Mutant], jobs: int, wanted: list[str]) -> list[list[str]]:
    """The test files with tests that may enter the mutated code, in groups of about the same size."""
    program = any(mutant.file not in HELPERS for mutant in chosen)
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "spec").glob("test_*.py"))]
    files = [file for file in files if (program or file in META) and (not wanted or file in wanted)]
    return [files[first :: 4 * jobs] for first in range(4 * jobs)]


@contextmanager
def processes(jobs: int, recorded: Coverage) -> Iterator[ProcessPoolExecutor]:
    """Processes that each have their own copy of the project.

    They are those of `concurrent.futures`, because `multiprocessing.Pool` forbids its processes to start others.
    """
    context = multiprocessing.get_context("fork")
    folders = context.Queue()
    with ExitStack() as copies:
        for _ in range(jobs):
            folders.put(copies.enter_context(project()))
        pool = ProcessPoolExecutor(jobs, context, _start, (folders, recorded))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def covered(chosen: list[Mutant], jobs: int, wanted: list[str], kept: Path | None) -> Coverage:
    """The tests that execute each line; read from `kept` if the file exists, and otherwise written to it."""
    coverage = Coverage()
    if kept is not None and kept.is_file():
        return Coverage.loads(kept.read_text(encoding="utf-8"))
    with processes(jobs, coverage) as pool:
        for part in as_completed([pool.submit(_record, group) for group in groups(chosen, jobs, wanted) if group]):
            coverage.add(part.result())
    if kept is not None:
        kept.write_text(coverage.dumps(), encoding="utf-8")
    return coverage


def equivalents() -> dict[str, str]:
    """The equivalent mutants, which no test can detect, by id, each with the reason."""
    return tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8"))


def summary(verdicts: list[Verdict], known: dict[str, str]) -> Iterator[str]:
    """The lines of the report: a table by file, the survivors as diffs, and the score."""
    rows: dict[str, Counter[str]] = {}
    survivors = []
    for verdict in sorted(verdicts, key=lambda v: (v.mutant.file, v.mutant.start)):
        equivalent = verdict.mutant.id in known
        outcome = ("wrong" if equivalent else "killed") if verdict.by else ("equivalent" if equivalent else "survived")
        rows.setdefault(verdict.mutant.file, Counter())[outcome] += 1
        if outcome == "survived":
            survivors.append(verdict)
        if outcome == "wrong":
            yield f"listed as equivalent, but {verdict.by} notices it: {verdict.mutant.id}"
    yield f"{'':<40}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'survived':>10}"
    total: Counter[str] = Counter()
    for file, counts in (*sorted(rows.items()), ("all", None)):
        counts = total if counts is None else counts
        number, killed = counts.total(), counts["killed"] + counts["wrong"]
        yield f"{file:<40}{number:>9}{killed:>9}{counts['equivalent']:>12}{counts['survived']:>10}"
        if file != "all":
            total += counts
    for verdict in survivors:
        yield f"\nsurvived {counted(verdict.tests, 'test')}: {verdict.mutant.id}\n{verdict.mutant.diff()}"
    judged = total["killed"] + total["wrong"] + total["survived"]
    if judged:
        yield f"\nkilled: {total['killed'] + total['wrong']} of {judged} mutants that are not equivalent"


def main() -> int:
    """Test the requested mutants."""
    parser = argparse.ArgumentParser(prog="python -m spec.mutation", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"files and folders; default: {', '.join(PROGRAM)}")
    parser.add_argument("--sample", type=int, default=40, help="number of mutants; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--first", type=int, default=0, help="leave out this number of the drawn mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no mutant after this time")
    parser.add_argument("--tests", nargs="+", default=[], metavar="FILE", help="judge by these test files only")
    parser.add_argument("--least", type=float, default=1.0, help="the share that must be killed, from 0 to 1")
    parser.add_argument("--coverage", type=Path, help="file that keeps which tests execute which lines")
    asked = parser.parse_args()
    began = time.monotonic()
    if missing := [name for name in asked.files if not (ROOT / name).exists()]:
        parser.error(f"there is no {', '.join(missing)}")
    every = [mutant for path in sources(asked.files or PROGRAM) for mutant in mutants(path)]
    drawn = random.Random(asked.seed).sample(every, min(asked.sample or len(every), len(every)))[asked.first :]
    print(f"{len(every)} mutants; {len(drawn)} drawn with seed {asked.seed}", flush=True)
    warm_up()
    coverage = covered(drawn, asked.jobs, asked.tests, asked.coverage)
    for test in coverage.failing:
        print(f"left out, because it fails on the unchanged sources: {test}")
    print(f"{counted(len(coverage.tests), 'test')} in {time.monotonic() - began:.0f} s", flush=True)
    verdicts: list[Verdict] = []
    with processes(asked.jobs, coverage) as pool:
        for judged in as_completed([pool.submit(_judge, mutant) for mutant in drawn]):
            verdicts.append(verdict := judged.result())
            outcome = f"killed by {verdict.by}" if verdict.by else f"survived {counted(verdict.tests, 'test')}"
            print(f"{verdict.seconds:6.1f} s  {verdict.mutant.id}: {outcome}", flush=True)
            if time.monotonic() - began > asked.seconds:
                print(f"{len(drawn) - len(verdicts)} mutants are not judged: the time is over", flush=True)
                break
    known = equivalents()
    for line in summary(verdicts, known):
        print(line)
    killed = sum(bool(verdict.by) for verdict in verdicts)
    survived = sum(not verdict.by and verdict.mutant.id not in known for verdict in verdicts)
    wrong = sum(bool(verdict.by) and verdict.mutant.id in known for verdict in verdicts)
    return 0 if verdicts and not wrong and killed >= asked.least * (killed + survived) else 1


if __name__ == "__main__":
    sys.exit(main())
