"""Chapter 18: `scripts/train_full.py` as a command: its flags, its stored settings, and interruptions."""

import errno
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from reference.checkpoint import load_checkpoint
from reference.errors import InputError
from reference.files import atomic_write
from reference.recipes import RECIPES
from reference.run import Settings, parse, stored_settings
from reference.run.folder import new_folder, write_json
from spec.support.clauses import clause
from spec.support.command import SCRIPTS, Command, run
from spec.test_18_training import TINY, assert_refused, one_thread, train, trained

__all__ = ["one_thread"]  # a fixture that every test here uses

HINTS = get_type_hints(Settings)
TRUTH_VALUES = [name for name, kind in HINTS.items() if kind is bool]


def parsed(monkeypatch: pytest.MonkeyPatch, *words: object) -> Settings:
    """The settings for these arguments."""
    monkeypatch.setattr(sys, "argv", ["train_full.py", *map(str, words)])
    return parse(Settings)


def stored(folder: Path, **settings: Any) -> Path:
    """A run folder that contains only a config.json."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", {"settings": vars(Settings(**settings))})
    return folder


# ------------------------------------------------------------------------------------------------ flags


@clause("18.run.flags")
@pytest.mark.parametrize("recipe", RECIPES)
def test_boolean_flags_and_negations_are_accepted_with_every_recipe(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TRUTH_VALUES == ["download", "skip_broken", "whiten", "shuffle", "mirror", "deterministic", "plots", "quiet"]
    typed = [name.replace("_", "-") for name in TRUTH_VALUES]
    on = parsed(monkeypatch, "--recipe", recipe, *(f"--{name}" for name in typed))
    off = parsed(monkeypatch, "--recipe", recipe, *(f"--no-{name}" for name in typed))
    assert [getattr(on, name) for name in TRUTH_VALUES] == [True] * 8
    assert [getattr(off, name) for name in TRUTH_VALUES] == [False] * 8
    alone = parsed(monkeypatch, "--recipe", recipe)
    assert {name: getattr(alone, name) for name in RECIPES[recipe]} == RECIPES[recipe]


@clause("18.run.flags")
@pytest.mark.parametrize("recipe", RECIPES)
def test_repeating_the_command_line_resumes_the_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = parsed(monkeypatch, "--recipe", recipe, "--shuffle", "--quiet", "--no-mirror", "--batch-size", 16)
    folder = stored(tmp_path / "run", **vars(first))
    for words in (
        ("--shuffle", "--quiet", "--no-mirror", "--batch-size", 16, "--recipe", recipe),
        ("--no-quiet",),
        (),
    ):
        again = parsed(monkeypatch, "--resume", folder, *words)
        expected = vars(first) | {"resume": folder, "quiet": words != ("--no-quiet",)}
        assert vars(again) == expected


@clause("18.run.flags")
@pytest.mark.slow
def test_resume_rejects_a_changed_boolean_by_the_given_flag(tmp_path: Path) -> None:
    words = (*TINY, "--recipe", "fast", "--epochs", 1, "--no-mirror", "--quiet", "--output", "run")
    assert train(tmp_path, *words).status == 0
    assert train(tmp_path, *words, "--resume", "run").status == 0
    said = "--mirror: this run was begun with --no-mirror"
    assert_refused(train(tmp_path, "--resume", "run", "--mirror"), said)
    said = "--no-shuffle: this run was begun with --shuffle"
    assert_refused(train(tmp_path, "--resume", "run", "--no-shuffle"), said)


@clause("18.run.help")
@pytest.mark.parametrize("recipe", RECIPES)
def test_help_shows_the_defaults_of_the_recipe(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # one line for each setting
    with pytest.raises(SystemExit) as left:
        parsed(monkeypatch, "--recipe", recipe, "--help")
    assert left.value.code == 0
    text = re.sub(r"\x1b\[[0-9;]*m|│", "", capsys.readouterr().out).replace("--[no-]", "--")
    entries = {entry.split()[0].strip(","): " ".join(entry.split()) for entry in re.split(r"(?m)^ {1,2}--", text)[1:]}
    given: dict[str, Any] = {"recipe": recipe} | RECIPES[recipe]
    defaults = vars(Settings(**given))
    for field in fields(Settings):
        entry, default = entries[field.name.replace("_", "-")], defaults[field.name]
        shown = default[0] if isinstance(default, tuple) else default
        shown = {True: "yes", False: "no"}[shown] if isinstance(shown, bool) else shown
        assert shown is None or f"(default: {shown})" in entry.replace("'", ""), entry
        assert len(entry.split()) >= 7, f"{field.name} is not explained"


# ------------------------------------------------------------------------------------------------ stored settings

EDITS = ["x", None, 1.5, [], "\x1b[31m", True, -1, 2**70, {}, [1], "a\0b"]


def may_be(kind: Any, value: Any) -> bool:
    """Whether the JSON `value` can be a setting of type `kind`, by its annotation."""
    words = str(kind)
    return (
        (value is None and "None" in words)
        or (type(value) is bool and kind is bool)
        or (type(value) is int and "int" in words and 0 <= value < 2**63)
        or (type(value) is int and kind is float and value >= 0)
        or (type(value) is float and "float" in words)
        or (type(value) is str and (kind is str or "Path" in words) and "\0" not in value)
        or (value == [] and "tuple" in words)
    )


@clause("18.run.resume_refused")
@pytest.mark.parametrize("name", HINTS)
def test_a_stored_setting_of_another_type_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    refused = 0
    for value in EDITS:
        content["settings"][name] = value
        (folder / "config.json").write_text(json.dumps(content))
        if may_be(HINTS[name], value):
            with suppress(InputError):  # the value may still be out of range
                stored_settings(folder)
            continue
        refused += 1
        with pytest.raises(InputError, match=r"config\.json is damaged") as error:
            stored_settings(folder)
        assert name in str(error.value) or name.replace("_", "-") in str(error.value)
        assert len(str(error.value)) < 400
    assert refused >= len(EDITS) - 5


@clause("18.run.resume_refused")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"settings": {"learning_rate": NaN}}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"settings": {"data_root": "data", "epochs": ' + "9" * 5000 + "}}", "config.json is damaged"),
        ('{"settings": {}}', "no entry 'data_root'"),
    ],
    ids=["NaN", "deep", "many digits", "empty"],
)
def test_a_config_that_json_or_python_cannot_read_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=said):
        stored_settings(tmp_path)


@clause("18.run.resume_refused")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_config_that_is_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="not a regular file"):
        stored_settings(tmp_path)


@clause("18.run.resume_refused")
def test_an_oversized_config_is_refused_by_size(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"damaged .it has 1,099,511,627,776 bytes, at most"):
        stored_settings(tmp_path)


# ------------------------------------------------------------------------------------------------ files


def strict(text: str) -> Any:
    """Parse strict JSON: NaN and Infinity are errors."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@clause("18.run.json")
@pytest.mark.slow
def test_a_class_without_test_images_is_null_in_the_summary(tmp_path: Path) -> None:
    folder = trained(tmp_path, "--epochs", 1, "--limit-test", 4)
    summary = strict((folder / "summary.json").read_text())
    counted = [sum(row) for row in summary["confusion"]]
    assert sum(counted) == 4
    for count, accuracy in zip(counted, summary["class_accuracy"].values(), strict=True):
        assert (accuracy is None) == (count == 0)
    strict((folder / "config.json").read_text())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        strict(line)


@clause("18.run.json")
def test_all_json_is_written_by_one_function() -> None:
    """`reference.text.json_text` writes `null` for NaN; every direct call of `json.dumps` has allow_nan=False."""
    root = SCRIPTS.parent
    files = [path for folder in ("reference", "scripts", "benchmarks") for path in (root / folder).rglob("*.py")]
    calls = [
        (path.relative_to(root).as_posix(), call)
        for path in files
        if path.name != "text.py"
        for call in re.findall(r"json\.dumps?\((?:[^()]|\([^()]*\))*\)", path.read_text(encoding="utf-8"))
    ]
    # The headers of the caches and the sidecar of the download are read by this program only; they contain names and
    # sizes.
    internal = {"reference/data/image_tree.py", "reference/data/download.py"}
    assert [call for path, call in calls if path not in internal and "allow_nan=False" not in call] == []


UNFINISHED = ".config.json.01ab23cd.tmp"


@clause("18.run.killed")
@pytest.mark.parametrize("left", [["run.lock"], ["run.lock", UNFINISHED], [UNFINISHED]], ids=" ".join)
@pytest.mark.slow
def test_a_run_killed_before_the_first_file_is_started_again(left: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("{")
    if "run.lock" in left:
        assert_refused(train(tmp_path, "--resume", "run"), "stopped before it began", "--output run")
    trained(tmp_path, "--epochs", 1)
    assert not list((tmp_path / "run").glob(".*.tmp"))


@clause("18.run.killed")
@pytest.mark.slow
def test_a_measurement_killed_before_the_first_file_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "runs" / "seed-0").mkdir(parents=True)
    for name in ("run.lock", UNFINISHED):
        (tmp_path / "runs" / "seed-0" / name).touch()
    words = (*TINY, "--epochs", 1, "--seeds", 2, "--output", "runs", "--quiet")
    result = run("accuracy.py", *words, folder=tmp_path)
    assert result.status == 0, result.err


@clause("18.run.refused")
@pytest.mark.slow
def test_a_measurement_refuses_resume_and_names_output(tmp_path: Path) -> None:
    assert run("train_full.py", *TINY, "--epochs", 1, "--output", "run", "--quiet", folder=tmp_path).status == 0
    result = run("accuracy.py", "--resume", "run", "--output", "runs", folder=tmp_path)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: --resume run: a measurement has several runs; give its --output again")
    assert not (tmp_path / "runs").exists()


@clause("18.run.refused")
@pytest.mark.slow
def test_a_folder_with_foreign_hidden_files_is_not_treated_as_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".notes.tmp").touch()
    assert_refused(train(tmp_path, *TINY, "--output", "run"), "is not empty")


@clause("18.run.new_folder")
def test_runs_started_in_the_same_second_get_separate_folders(tmp_path: Path) -> None:
    found: list[Path] = []
    starts = [threading.Thread(target=lambda: found.append(new_folder(tmp_path / "runs" / "shapes"))) for _ in range(8)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert {path.name for path in found} == {"shapes", *(f"shapes-{number}" for number in range(2, 9))}
    assert all(path.is_dir() for path in found)


@clause("18.run.new_folder")
@pytest.mark.slow
def test_two_runs_started_in_the_same_second_both_train(tmp_path: Path) -> None:
    commands = [Command("train_full.py", *TINY, "--epochs", 1, folder=tmp_path, prepare=stop_the_clock) for _ in "ab"]
    for command in commands:
        result = command.wait()
        assert result.status == 0, result.err
    (first, second) = sorted((tmp_path / "runs").iterdir())
    assert second.name == f"{first.name}-2"
    for folder in (first, second):
        assert (folder / "summary.json").exists()


def stop_the_clock() -> None:
    """Return a fixed time for the name of the run folder."""
    real = time.strftime
    time.strftime = lambda form, *moment: real(form, *(moment or (time.gmtime(0),)))


def limit_files(most: int) -> None:
    """Limit files to `most` bytes, so that larger writes fail as on a full disk."""
    import resource  # POSIX only

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@clause("18.run.full_disk")
@pytest.mark.slow
def test_a_disk_that_is_full_for_the_events_names_the_folder(tmp_path: Path) -> None:
    # the images of an epoch are about 60 kB of events, a checkpoint 590 kB
    words = (*TINY, "--limit-train", 16, "--epochs", 200, "--output", "run", "--quiet")
    result = train(tmp_path, *words, prepare=partial(limit_files, 800_000))
    assert_refused(result, "run: ", os.strerror(errno.EFBIG))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["training"]["progress"]["epoch"] >= 1


@clause("18.run.full_disk")
@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced"])
@pytest.mark.slow
def test_a_folder_that_disappears_during_training_is_an_error_in_one_line(how: str, tmp_path: Path) -> None:
    words = (*TINY, "--epochs", 100_000, "--output", "run", "--log-every", 1)
    command = Command("train_full.py", *words, folder=tmp_path)
    command.wait_for("step 12: ")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    if how == "deleted":
        shutil.rmtree(tmp_path / "elsewhere")
    elif how == "replaced":
        (tmp_path / "run").mkdir()
    assert_refused(command.wait(), "run was deleted or renamed while the training ran: stopped after step ")
    if how != "deleted":
        epoch = load_checkpoint(tmp_path / "elsewhere" / "last.pt")["training"]["progress"]["epoch"]
        result = train(tmp_path, "--resume", "elsewhere", "--epochs", epoch + 1)
        assert result.status == 0, result.err
    if how == "replaced":
        assert list((tmp_path / "run").iterdir()) == []


# ------------------------------------------------------------------------------------------------ signals and consoles


@clause("18.run.signals")
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
@pytest.mark.slow
def test_sighup_saves_a_checkpoint_and_nohup_ignores_sighup(tmp_path: Path) -> None:
    words = (*TINY, "--epochs", 1000, "--log-every", 1)
    command = Command("train_full.py", *words, "--output", "run", folder=tmp_path)
    command.wait_for("step 7: ")
    command.send(signal.SIGHUP)
    result = command.wait()
    assert result.status == 128 + signal.SIGHUP, result.err
    assert "--resume run" in result.out
    assert load_checkpoint(tmp_path / "run" / "last.pt")["training"]["progress"]["step"] >= 7

    command = Command("train_full.py", *words, "--output", "kept", folder=tmp_path, prepare=ignore_the_end)
    command.wait_for("step 7: ")
    command.send(signal.SIGHUP)
    command.wait_for("step 20: ")
    command.send(signal.SIGTERM)
    assert command.wait().status == 128 + signal.SIGTERM


def ignore_the_end() -> None:
    """Ignore SIGHUP, as `nohup` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command line in which $TRAIN is the command with the flags of a tiny training."""
    words = (sys.executable, SCRIPTS / "train_full.py", *TINY, "--epochs", 1, "--log-every", 1, "--output", "run")
    environment = os.environ | {"TRAIN": " ".join(map(str, words)), "PYTHONPATH": str(SCRIPTS.parent)}
    command = ["bash", "-c", f"set -o pipefail; {line}"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@clause("18.run.consoles")
@pytest.mark.parametrize(
    "line", ["$TRAIN 2>&-", "$TRAIN >&-", "$TRAIN >&- 2>&- <&-", "$TRAIN | head -1", "$TRAIN 2>&1 | head -1"]
)
@pytest.mark.slow
def test_training_continues_when_stdout_is_closed(line: str, tmp_path: Path) -> None:
    result = shell(line, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert (tmp_path / "run" / "summary.json").exists()


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after `text`: a carriage return goes back to the start of a line."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def at_a_terminal(*words: object, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command with a terminal for its output; yields the process with its growing output."""
    import fcntl  # these three: POSIX only
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # without a width there is no bar
    command = [sys.executable, str(SCRIPTS / "train_full.py"), *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    text, end = b"", time.monotonic() + 120
    try:
        while time.monotonic() < end:
            try:
                more = os.read(master, 4096) if select.select([master], [], [], 60)[0] else b""
            except OSError:  # the terminal's other end is closed
                more = b""
            if not more:
                break
            text += more
            yield process, text.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(master)
    yield process, text.decode()


@clause("18.run.signals", "18.run.consoles")
@pytest.mark.parametrize("times", [1, 2], ids=["Ctrl-C", "Ctrl-C twice"])
@pytest.mark.slow
def test_ctrl_c_leaves_no_part_of_a_progress_bar(times: int, tmp_path: Path) -> None:
    words = (*TINY, "--limit-train", 4000, "--epochs", 1000, "--log-every", 1, "--output", "run")
    sent, text = 0, ""
    for process, text in at_a_terminal(*words, folder=tmp_path):
        ready = "step 7: " in text if sent == 0 else "once more to stop at once" in text
        if ready and sent < times and "%|" in text:
            process.send_signal(signal.SIGINT)
            sent += 1
    assert sent == times
    lines = screen(text)
    assert [line for line in lines if "%|" in line] == []
    assert "finishing this step and saving; once more to stop at once" in lines
    assert "Traceback" not in text


@clause("18.run.full_disk")
def test_a_temporary_name_is_recognised(tmp_path: Path) -> None:
    from reference.files import is_temporary

    with atomic_write(tmp_path / "config.json") as file:
        (name,) = tmp_path.iterdir()
        assert is_temporary(name)
        file.write(b"{}")
    assert [is_temporary(tmp_path / other) for other in (".notes.tmp", "config.json", ".git")] == [False] * 3
