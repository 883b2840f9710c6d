"""The learner's command, `python scripts/learn.py`: stubs, the next task, hints, progress, and a score.

The process at the terminal imports all packages once but never the learner's file: for each check it forks a process
that imports the file.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from reference.errors import InputError
from spec.support.exercises import SPEC, Exercise, exercises, files_of, of_chapter, written_in

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 90.0
"""Time limit for the tests of one chapter in seconds; each call has a limit of 10 s."""
LEVELS = ("tutorial", "definition", "pytorch")


@dataclass
class Judgement:
    """The results of a chapter's tests for a file.

    Attributes:
        reports: The report of each test, as its `user_properties` with `outcome` and `nodeid`.
        error: The reason if there are no reports.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def of(self, name: str) -> list[dict[str, Any]]:
        """The reports of a component, in teaching order, for tests with a result or without an implementation."""
        told = [r for r in self.reports if name in r["components"] and not r.get("absent")]
        kept = [r for r in told if r["outcome"] in ("passed", "failed", "not written")]
        return sorted(kept, key=lambda r: (LEVELS.index(r["level"]), r["order"]))


class _Collector:
    """A pytest plugin that stores the reports of the tests."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        properties = dict(report.user_properties)
        if "components" not in properties or (report.when == "teardown" and report.passed):
            return
        outcome = properties.get("outcome", report.outcome)
        if report.when == "call" or outcome != "passed":
            kept = {key: value for key, value in properties.items() if key not in ("implementation",)}
            self.reports.append(kept | {"outcome": str(outcome), "nodeid": report.nodeid})


def _run(file: Path, wanted: Sequence[Exercise], level: str, answer: Path, *, trusted: bool) -> None:
    """In a separate process: test a file and write the reports."""
    import pytest

    from spec.support import score

    name, host = str(file), None
    if not trusted:  # another process imports the file
        from spec.support.guest import GuestError

        name = "spec.support.score:GUEST"
        try:
            host = score.host(file, wanted)
        except GuestError as error:
            answer.write_text(json.dumps({"error": str(error)}), encoding="utf-8")
            return

    collector = _Collector()
    options = ["--impl", name, "--level", level, "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", "-q"]
    options += ["-c", str(SPEC.parent / "pyproject.toml"), "--rootdir", str(SPEC.parent), "--hypothesis-profile"]
    options += ["faults", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-m", "not gpu"]
    if not trusted:
        options += ["-k", " and ".join(f"not {name}" for name in score.NOT_SCORED)]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        with tempfile.TemporaryFile("w+") as errors:
            os.dup2(errors.fileno(), 2)
            status = pytest.main([*map(str, files_of(wanted)), *options], plugins=[collector])
            sys.stderr.flush()
            errors.seek(0)
            said = errors.read()
    if host is not None:
        host.close()
    error = said.removeprefix("ERROR: ").strip() if int(status) == 4 else ""
    answer.write_text(json.dumps({"reports": collector.reports, "error": error}, default=str), encoding="utf-8")


def judge(
    file: Path, wanted: Sequence[Exercise], level: str, seconds: float = PATIENCE, *, trusted: bool = True
) -> Judgement:
    """Test the exercises of a file in a forked process, which may crash or hang.

    Args:
        file: The file.
        wanted: The exercises.
        level: The highest level of the tests.
        seconds: The time limit of the process.
        trusted: Whether the testing process may import the file; otherwise it starts another process that imports it.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                _run(file, wanted, level, answer, trusted=trusted)
                status = 0
            finally:
                os._exit(status)
        _wait(child, seconds)
        try:
            return Judgement(**json.loads(answer.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return Judgement(error=_say("ended", 0, seconds=seconds))


def _wait(child: int, seconds: float) -> None:
    """Wait for a process, and end it with all its children after its time limit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        select.select([], [], [], 0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def _warm_up() -> None:
    """Import the modules for all checks once."""
    import torch

    torch.set_num_threads(1)  # a process with one thread can be forked
    for name in ("pytest", "xdist", "hypothesis", "spec.support.plugin", "spec.report.plugin", "spec.support.gpu"):
        importlib.import_module(name)
    from spec.faults import all_faults

    all_faults()
    gc.collect()
    gc.freeze()


@cache
def _sentences() -> dict[str, list[str]]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _say(text: str, language: int, **values: Any) -> str:
    return _sentences()[text][language].format(**values)


# The output


@dataclass
class Teacher:
    """Shows the next task.

    Attributes:
        console: The console for the output.
        file: The learner's file.
        language: 0 for English, 1 for Chinese.
        level: The highest level of the tests.
        hints: The number of hints to show.
    """

    console: "Console"
    file: Path
    language: int
    level: str
    hints: int = 0

    def say(self, text: str, **values: Any) -> str:
        """A sentence in the reader's language."""
        return _say(text, self.language, **values)

    def lesson(self, chapter: str | None) -> bool:
        """Test the file, chapter by chapter up to the first one with a task, and show this task.

        Returns:
            Whether all tests pass.
        """
        written = written_in(self.file)
        chapters = sorted({e.chapter for e in written}) if chapter is None else [chapter]
        for number in chapters:
            here = [exercise for exercise in written if exercise.chapter == number]
            if not here and chapter is None:
                continue
            judgement = judge(self.file, here or of_chapter(number), self.level)
            if judgement.error:
                self.console.print(self.say("import", file=self.file), style="bold red")
                self.console.print(judgement.error, markup=False, highlight=False)
                return False
            self.progress(number, here, judgement)
            first = next((e for e in here if self.is_open(judgement.of(e.name))), None)
            if first is not None:
                self.show(first, judgement)
                return False
            for exercise in here if number == chapters[-1] or chapter else ():
                self.praise(exercise, judgement)
        if not chapters or not written:
            self.console.print(self.say("nothing", file=self.file))
            return False
        later = sorted({e.chapter for e in exercises().values() if e.chapter > chapters[-1]})
        if later:
            self.console.print(self.say("done", chapter=chapters[-1], next=later[0], file=self.file), style="green")
        else:
            self.console.print(self.say("all done", file=self.file), style="green")
        return True

    @staticmethod
    def is_open(reports: Sequence[dict[str, Any]]) -> bool:
        """Whether an exercise is unfinished."""
        return any(report["outcome"] != "passed" for report in reports)

    def progress(self, chapter: str, here: Iterable[Exercise], judgement: Judgement) -> None:
        """A line per exercise of the chapter."""
        self.console.print(self.say("chapter", chapter=chapter), style="bold")
        for exercise in here:
            outcomes = Counter(report["outcome"] for report in judgement.of(exercise.name))
            passed, total = outcomes["passed"], outcomes.total()
            if outcomes["not written"]:
                words, colour = self.say("not written"), "yellow"
            elif not total:
                words, colour = self.say("no test"), "yellow"
            else:
                words = self.say("tests", passed=passed, total=total)
                colour = "green" if passed == total else "red"
            bar = "█" * round(10 * passed / max(1, total))
            self.console.print(f"  {exercise.name:<20} [{colour}]{bar:░<10}[/] {words}", highlight=False)
        self.console.print()

    def show(self, exercise: Exercise, judgement: Judgement) -> None:
        """The next task of an exercise."""
        reports = judgement.of(exercise.name)
        failed = [report for report in reports if report["outcome"] == "failed"]
        if failed:
            self.failure(failed, judgement)
        else:
            self.console.print(self.say("write", name=exercise.name), style="bold")
            self.console.print(f"  {exercise.text[self.language]}", markup=False, highlight=False)
            for line in exercise.formula.strip().splitlines():
                self.console.print(f"  {line}", markup=False, highlight=False)
        self.console.print()
        for number, hint in enumerate(exercise.hints[: self.hints], 1):
            self.console.print(f"{self.say('hint', n=number)}: {hint[self.language]}", markup=False, highlight=False)
        later = sorted({e.chapter for e in exercises().values() if e.chapter > exercise.chapter})
        ways = [self.say("more hints", n=self.hints + 1)] if self.hints < len(exercise.hints) else []
        ways += [self.say("skip", next=later[0])] if later else []
        self.console.print(" · ".join(ways), style="dim", markup=False, highlight=False)

    def failure(self, failed: Sequence[dict[str, Any]], judgement: Judgement) -> None:
        """The first failure: the call, the matrices, the diagnosis, the clause."""
        from spec.support.clauses import CLAUSES

        first = failed[0]
        components = ", ".join(first["components"])
        title = f"{components}: {first['title']}" if not self.language or not first["clauses"] else components
        self.console.print(f"✗ {title}", style="bold red", markup=False, highlight=False)
        drawn = self.draw(first.get("drawing") or {})
        for line in str(first.get("message", "")).splitlines()[: 1 if drawn else 8]:
            self.console.print(f"  {self.translated(line)}", markup=False, highlight=False)
        for words in self.diagnosis(first, failed, judgement):
            self.console.print(f"{self.say('diagnosis')}: {words}", style="bold yellow", markup=False, highlight=False)
        for name in first["clauses"][:1]:
            clause = CLAUSES[name]
            statement = clause.statement_zh if self.language else clause.statement
            self.console.print(f"{self.say('why')}: {statement} ({name})", markup=False, highlight=False)
        if not drawn and first.get("paste"):
            self.console.print(self.say("paste"))
            self.console.print(first["paste"], markup=False, highlight=False, soft_wrap=True)
        if failed[1:]:
            self.console.print(self.say("others", n=len(failed) - 1), style="dim")

    def diagnosis(self, first: dict[str, Any], failed: Sequence[dict[str, Any]], judgement: Judgement) -> Iterator[str]:
        """The known mistake that gives these numbers, in the reader's language."""
        from spec.support import lessons

        def as_report(one: dict[str, Any]) -> Any:
            return SimpleNamespace(nodeid=one["nodeid"], user_properties=list(one.items()))

        passed = [as_report(report) for report in judgement.reports if report["outcome"] == "passed"]
        found = lessons.mistakes([as_report(report) for report in failed], passed)
        if names := lessons.diagnosis(first, found):
            yield self.say("or").join(mistake.in_language(self.language) for mistake in names)

    def translated(self, line: str) -> str:
        """A line of a failure in the reader's language."""
        from spec.support import lessons

        return lessons.line_in_chinese(line) if self.language else line

    def draw(self, drawing: dict[str, Any]) -> bool:
        """The arguments, the result and the expected result as matrices side by side."""
        from rich.columns import Columns

        if drawing.get("call"):
            self.console.print(f"  {drawing['call']}", markup=False, highlight=False)
        got, expected = drawing.get("got"), drawing.get("expected")
        if got is None or expected is None:
            return False
        same_shape = len(got) == len(expected) and len(got[0]) == len(expected[0])
        wrong = {
            (y, x)
            for y, row in enumerate(got)
            for x, one in enumerate(row)
            if same_shape and not _close(one, expected[y][x])
        }
        parts = [_matrix(name, rows) for name, rows in drawing["arguments"].items()]
        parts += [_matrix(self.say("got"), got, wrong), _matrix(self.say("expected"), expected)]
        self.console.print(Columns(parts, padding=(0, 2)))
        return True

    def praise(self, exercise: Exercise, judgement: Judgement) -> None:
        """The text for a finished exercise: two sentences of explanation."""
        reports = judgement.of(exercise.name)
        if not reports:
            return
        self.console.print(
            f"✓ {self.say('right', name=exercise.name, passed=len(reports))}", style="bold green", highlight=False
        )
        by = sorted({name for r in reports for name in dict(r.get("handed_over") or {}).get(exercise.name, ())})
        if by:
            text = self.say("handed", name=exercise.name, by=", ".join(by))
            self.console.print(f"  {text}", style="yellow", highlight=False)
        self.console.print(f"  {exercise.why[self.language]}\n", markup=False, highlight=False)


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return bool(one == other or (one != one and other != other) or abs(one - other) <= 1e-4 * max(1, abs(other)))
    return bool(one == other)


def _matrix(name: str, rows: Sequence[Sequence[Any]], wrong: Iterable[tuple[int, int]] = ()) -> Any:
    """A matrix as a table; a wrong number is in brackets, and red if the terminal has colours."""
    from rich import box
    from rich.table import Table

    title = f"{name} {len(rows)}×{len(rows[0])}"
    table = Table(
        title=title, min_width=len(title) + 1, title_justify="left", show_header=False, box=box.SQUARE,
        pad_edge=False, padding=(0, 0),
    )  # fmt: skip
    wrong = set(wrong)
    for _ in rows[0]:
        table.add_column(justify="right")
    for y, row in enumerate(rows):
        cells = [f"{one:g}" if isinstance(one, float) else str(one) for one in row]
        table.add_row(*(f"[bold red]>{c}<[/]" if (y, x) in wrong else f" {c} " for x, c in enumerate(cells)))
    return table


# The commands


def main() -> int:
    """The command line.

    Raises:
        InputError: an argument that a learner can fix.
    """
    words = sys.argv[1:]
    parser = argparse.ArgumentParser(
        prog="learn.py",
        description="Write the components of the tutorial yourself, one chapter after the other.",
        epilog="commands: learn.py start CHAPTER [--file FILE]; learn.py FILE; learn.py score FILE --json RESULTS",
    )
    if words[:1] == ["start"]:
        parser.usage = "learn.py start CHAPTER [--file FILE] [--lang zh|en]"
        parser.add_argument("start")
        parser.add_argument("chapter", help="the chapter of which to write the stubs: 01, 04, 06, 08 to 12, 14, 15")
        parser.add_argument("--file", type=Path, default=Path("mine.py"), help="where to write them (mine.py)")
    elif words[:1] == ["score"]:
        parser.usage = "learn.py score FILE --json RESULTS [--chapter NN] [--level NAME] [--lang zh|en]"
        parser.add_argument("score")
        parser.add_argument("file", type=Path, help="the submission")
        parser.add_argument("--json", type=Path, required=True, help="where to write the results")
        parser.add_argument("--chapter", help="score this chapter only")
        parser.add_argument("--level", choices=LEVELS, default="tutorial", help="judge up to this level")
    else:
        parser.add_argument("file", type=Path, nargs="?", default=Path("mine.py"), help="your file (mine.py)")
        parser.add_argument("--chapter", help="judge this chapter; without it the first with something to do")
        parser.add_argument("--hint", type=int, choices=range(4), default=0, metavar="N", help="show N hints, up to 3")
        parser.add_argument("--watch", action="store_true", help="judge the file again whenever it is saved")
        parser.add_argument("--level", choices=LEVELS, default="tutorial", help="judge up to this level")
    parser.add_argument("--lang", choices=("en", "zh"), help="the language; by default that of the system")
    asked = parser.parse_args(words)
    from spec.support.lessons import chinese

    language = int(asked.lang == "zh" if asked.lang else chinese())
    if (chapter := getattr(asked, "chapter", None)) is not None:
        chapter = chapter.zfill(2)
        if not of_chapter(chapter):
            known = ", ".join(sorted({e.chapter for e in exercises().values()}))
            raise InputError(_say("no_chapter", language, chapter=chapter, known=known))
    if words[:1] == ["start"]:
        assert chapter is not None
        return _start(asked.file, chapter, language)
    if not asked.file.is_file():
        raise InputError(_say("no_file", language, file=asked.file))
    if words[:1] == ["score"]:
        from spec.support.score import score

        return score(asked.file, asked.json, chapter, asked.level)
    return _teach(asked, chapter, language)


def _start(file: Path, chapter: str, language: int) -> int:
    """Add the stubs of a chapter to a file."""
    there = {exercise.name for exercise in written_in(file)} if file.exists() else set()
    new = [exercise for exercise in of_chapter(chapter) if exercise.name not in there]
    if not new:
        print(_say("there", language, file=file, names=", ".join(e.name for e in of_chapter(chapter))))
        return 0
    text = file.read_text(encoding="utf-8") if file.exists() else "import torch\n"
    text = "\n\n".join([text.rstrip("\n") + "\n", *(exercise.stub(language) for exercise in new)])
    file.write_text(text, encoding="utf-8")
    print(_say("written", language, stubs=", ".join(e.name for e in new), file=file))
    return 0


def _teach(asked: argparse.Namespace, chapter: str | None, language: int) -> int:
    """Show the next task, once or after each change of the file."""
    for package in ("rich", *(["watchfiles"] if asked.watch else []), "pytest", "hypothesis"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(_say("missing", language, package=package)) from None
    from rich.console import Console

    console = Console(file=sys.stdout, soft_wrap=False, legacy_windows=False)
    teacher = Teacher(console, asked.file, language, asked.level, asked.hint)
    if not asked.watch:
        return 0 if teacher.lesson(chapter) else 1
    from watchfiles import watch

    _warm_up()
    changes = watch(asked.file.parent, watch_filter=lambda _, path: Path(path).name == asked.file.name, debounce=50)
    while True:
        start = time.monotonic()
        console.clear()
        teacher.lesson(chapter)
        seconds = time.monotonic() - start
        console.print(teacher.say("watching", seconds=seconds, file=asked.file), style="dim", highlight=False)
        next(changes)
