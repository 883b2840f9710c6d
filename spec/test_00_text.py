"""Chapter 00: text that leaves the program: one line per answer, no control characters, any console, strict JSON."""

import errno
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.errors import InputError, exit_with
from reference.files import atomic_write
from reference.models import Ocean
from reference.text import (
    Console,
    is_printable,
    json_text,
    open_console,
    output_lost,
    print_line,
    print_wrapped,
    printable,
    styled,
    width,
)
from reference.untrusted.layers import LAYERS, STANDARD, CannotRunError, Printer, plain
from reference.untrusted.modules import Module
from spec.support.clauses import clause
from spec.support.command import run
from spec.support.strategies import given

ROOT = Path(__file__).parents[1]

# Characters that control a terminal or break a line. ECMA-48 defines C0 and C1, Unicode's UAX 9 the marks of direction,
# and UAX 14 the line breaks.
DANGEROUS = {
    "escape": "\x1b[31m",
    "bell": "\a",
    "carriage return": "\r",
    "line feed": "\n",
    "tab": "\t",
    "C1 control sequence introducer": "\x9b31m",
    "next line": "\x85",
    "delete": "\x7f",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "right-to-left override": "\u202e",
    "right-to-left isolate": "\u2067",
    "zero width space": "\u200b",
    "byte order mark": "\ufeff",
    "joiner in ASCII": "a\u200db",
    "a byte that is not UTF-8": "\udcc3",
    "half of a surrogate pair": "\ud83d",
}
HARMLESS = [
    "",
    "cat",
    "猫 狗",
    "全角\u3000空格",
    "é",
    "🐸",
    "👨\u200d👩\u200d👧",
    "می\u200cروم",
    "C:\\new",
    "naïve café",
    "\U0001fae9",
]


@clause("00.text.printable")
@pytest.mark.parametrize("text", DANGEROUS.values(), ids=DANGEROUS)
def test_printable_escapes(text: str) -> None:
    shown = printable(f"猫{text}猫" if "\u200d" not in text else text)
    assert len(shown.splitlines()) == 1
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    assert not is_printable(text)
    shown.encode()


@clause("00.text.printable")
@pytest.mark.parametrize("text", HARMLESS, ids=ascii)
def test_printable_keeps(text: str) -> None:
    assert printable(text) == text
    assert is_printable(text)


@clause("00.text.printable")
@given(text=st.text(st.characters()))
def test_printable_text_is_one_line_that_utf_8_can_encode_and_is_idempotent(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cs", "Zl", "Zp"}
    shown.encode()
    assert printable(shown) == shown


@clause("00.text.printable")
def test_printable_takes_paths_bytes_and_objects() -> None:
    assert printable(Path("a\nb")) == r"a\nb"
    assert printable(b"\xff.png") == r"\udcff.png"
    assert printable(ValueError("a\x1bb")) == r"a\x1bb"


@clause("00.text.wrapped")
def test_a_quoted_argument_is_not_broken_by_wrapping(capsys: pytest.CaptureFixture[str]) -> None:
    folder = "runs/the second run of today, 第二次"
    print_wrapped(f"stopped after step 1,000, nothing is lost; resume with: --resume {shlex.quote(folder)}")
    print_wrapped("It's the user's own data that isn't broken, 'and these words' are not broken either, 其余折行")
    lines = capsys.readouterr().out.splitlines()
    assert any(f"'{folder}'" in line for line in lines)
    assert [line for line in lines if width(line) > 80] == []
    assert len(lines) == 4


@clause("00.text.errors")
@pytest.mark.parametrize("text", DANGEROUS.values(), ids=DANGEROUS)
def test_an_input_error_is_one_printable_line(text: str) -> None:
    assert is_printable(str(InputError(f"{text} cannot be read")))


def short_of_memory() -> None:
    """A program for which there is not enough memory."""

    def action() -> None:
        raise MemoryError("Unable to allocate 3 GiB\nfor an array")

    exit_with(action)


@clause("00.text.errors")
@pytest.mark.slow
def test_out_of_memory_is_reported_in_one_line(tmp_path: Path) -> None:
    result = run(short_of_memory, folder=tmp_path)
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: there is not enough memory (Unable to allocate 3 GiB for an array)\n"


@clause("00.text.errors")
@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room on that disk"), (errno.EROFS, "choose a folder that can be written")],
    ids=["full", "read-only"],
)
def test_a_file_that_cannot_be_written_is_one_line_with_the_path_and_the_remedy(
    number: int, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "new.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)

    def write_whole() -> None:
        with atomic_write(path) as file:
            file.write(b"new")

    for action, start in ((write_whole, f"{path} could not be written: "), (lambda: refused(number), "cannot use a: ")):
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as left:
            exit_with(action)
        assert left.value.code == 2
        assert capsys.readouterr().err == f"error: {start}{os.strerror(number)}; {remedy}\n"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def refused(number: int) -> None:
    """An error of the system with the name of a file."""
    raise OSError(number, os.strerror(number), "a")


# JSON


def only_json(text: str) -> Any:
    """The value, read by a parser that accepts only RFC 8259."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@clause("00.text.json")
def test_json_writes_non_finite_numbers_as_null() -> None:
    content = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan}}
    assert only_json(json_text(content)) == {"a": [1.5, None, [None, None]], "b": {"c": None}}


@clause("00.text.json")
@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "cp1252", "ascii"])
@pytest.mark.parametrize("text", [*DANGEROUS.values(), *HARMLESS], ids=ascii)
def test_json_output_decodes_to_the_same_value_in_all_encodings(text: str, encoding: str) -> None:
    written = json_text({text: [text]}, encoding=encoding)
    assert is_printable(written)
    assert only_json(written.encode(encoding).decode("utf-8")) == {text: [text]}  # RFC 8259: JSON is UTF-8


@clause("00.text.json")
def test_json_is_readable_in_utf_8_and_ascii_in_every_other_encoding() -> None:
    assert json_text(["猫é"]) == json_text(["猫é"], encoding="UTF8") == '["猫é"]'
    assert json_text(["猫é"], encoding="gbk") == '["\\u732b\\u00e9"]'
    assert json_text({"a": [1]}, indent=2) == '{\n  "a": [\n    1\n  ]\n}'
    assert json_text(Path("x"), default=str) == '"x"'


@clause("00.text.json")
def test_json_dump_rejects_unsupported_types() -> None:
    with pytest.raises(TypeError, match="object"):
        json_text({"a": object()})


# Consoles


class Failing(io.RawIOBase):
    """A file that fails in every write."""

    def __init__(self, number: int) -> None:
        self.number, self.writes = number, 0

    def writable(self) -> bool:
        return True

    def write(self, _: Any) -> int:
        self.writes += 1
        raise OSError(self.number, os.strerror(self.number))


def console(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    written = io.BytesIO()
    return Console(io.TextIOWrapper(written, encoding=encoding, newline="\n", write_through=True)), written


@clause("00.text.console")
@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "cp1252", "ascii", "latin-1"])
@given(text=st.text(st.characters()))
def test_console_prints_all_text_in_all_encodings(encoding: str, text: str) -> None:
    stream, written = console(encoding)
    stream.write(text)
    shown = written.getvalue().decode(encoding)
    assert not [char for char in shown.removeprefix("\r") if unicodedata.category(char) == "Cc" and char not in "\n\t"]


@clause("00.text.console")
def test_a_console_escapes_characters_outside_the_encoding() -> None:
    for encoding, expected in {
        "utf-8": "猫 é → 🐸\n",
        "gbk": "猫 é → \\U0001f438\n",
        "cp1252": "\\u732b é \\u2192 \\U0001f438\n",
        "ascii": "\\u732b \\xe9 \\u2192 \\U0001f438\n",
    }.items():
        stream, written = console(encoding)
        print("猫 é → 🐸", file=stream)
        assert written.getvalue().decode(encoding) == expected


@clause("00.text.console")
def test_only_a_progress_bar_prints_carriage_returns() -> None:
    stream, written = console()
    stream.write("\r10 %")
    stream.write("done\rundone\x1b[A")
    assert written.getvalue() == b"\r10 %done\\rundone\\x1b[A"


@clause("00.text.console")
def test_colours_pass_while_the_help_is_printed_and_other_escapes_never(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, written = console()
    monkeypatch.setattr(sys, "stdout", stream)
    with styled():
        print("\x1b[1mbold\x1b[0m \x1b]0;title\x07")
    print("\x1b[1mnot bold")
    assert written.getvalue() == b"\x1b[1mbold\x1b[0m \\x1b]0;title\\x07\n\\x1b[1mnot bold\n"


@clause("00.text.lost")
@pytest.mark.parametrize(("number", "failed"), [(errno.EPIPE, False), (errno.EIO, False), (errno.ENOSPC, True)])
def test_console_write_errors_are_ignored_silently(number: int, failed: bool) -> None:
    raw = Failing(number)
    stream = Console(io.TextIOWrapper(raw, encoding="utf-8", write_through=True))  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        print("text", file=stream, flush=True)
    assert raw.writes == 1
    assert isinstance(stream.lost, OSError)
    assert stream.lost.errno == number
    assert stream.failed is failed
    assert not stream.isatty()


@clause("00.text.lost")
def test_writes_to_a_closed_console_are_discarded() -> None:
    for stream in (Console(None), Console(io.StringIO())):
        stream.stream.close()
        print("text", file=stream, flush=True)
        assert not stream.failed


@clause("00.text.console")
def test_a_signal_handler_may_print_while_the_same_stream_is_written(tmp_path: Path) -> None:
    """Python's buffered files raise RuntimeError for a reentrant call."""

    class Busy(io.TextIOWrapper):
        def write(self, text: str, /) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with open(tmp_path / "out", "wb") as file:
        stream = Busy(file, encoding="ascii")
        Console(stream).write("猫")
        stream.detach()
    assert (tmp_path / "out").read_bytes() == rb"\u732b"


@clause("00.text.printable", "00.text.lost")
def test_predict_prints_one_line_per_image_with_escaped_names(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", newline="\n"))
    monkeypatch.setattr(sys, "stderr", None)
    open_console()
    open_console()  # once is enough
    print_line("a\nb")
    print_line("nobody sees it", error=True)
    assert isinstance(sys.stderr, Console)
    sys.stderr.stream.close()
    assert written.getvalue() == b"a\\nb\n"
    assert not output_lost()


# In separate processes, started as by a shell

PROGRAM = """
import sys
from reference.errors import InputError, exit_with

def main():
    for number in range(int(sys.argv[1])):
        print(f"猫 {number}")
    print("working", file=sys.stderr)
    open(sys.argv[2], "w").write("done")
    if len(sys.argv) > 3:
        raise InputError(sys.argv[3])

exit_with(main)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    return f"{sys.executable} {tmp_path / 'program.py'}"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


@clause("00.text.lost")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&-", 0, "working\n"),
        ("2>&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 2, "working\nerror: standard output cannot be written: [Errno 28] No space left on device\n"),
        ("| head -1", 0, "working\n"),
        ("2>&1 | head -1", 0, ""),
    ],
)
def test_programs_complete_when_stdout_is_closed_or_full(
    program: str, tmp_path: Path, redirection: str, status: int, said: str
) -> None:
    done = shell(f"set -o pipefail; {program} 10000 done.txt {redirection}", tmp_path, PYTHONUTF8="1")
    assert (done.returncode, done.stderr.decode()) == (status, said)
    assert (tmp_path / "done.txt").read_text() == "done"


@clause("00.text.lost", "00.text.errors")
@pytest.mark.slow
def test_an_error_sets_the_status_even_if_the_output_is_closed(program: str, tmp_path: Path) -> None:
    assert shell(f"{program} 1 done.txt wrong 2>&-", tmp_path).returncode == 2
    done = shell(f"{program} 0 done.txt $'wr\\nong \\e[31m'", tmp_path)
    assert (done.returncode, done.stderr) == (2, b"working\nerror: wr\\nong \\x1b[31m\n")


@clause("00.text.console")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LC_ALL": "C"}, "猫 0\n".encode()),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"\\u732b 0\n"),
        ({"PYTHONIOENCODING": "gbk"}, "猫 0\n".encode("gbk")),
        ({"PYTHONIOENCODING": "cp1252"}, b"\\u732b 0\n"),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"\\u732b 0\n"),
    ],
    ids=["C", "C without UTF-8 mode", "gbk", "cp1252", "ascii"],
)
def test_a_console_that_is_not_utf_8_escapes_the_other_characters(
    program: str, tmp_path: Path, environment: dict[str, str], expected: bytes
) -> None:
    done = shell(f"{program} 1 done.txt", tmp_path, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"working\n")


@clause("00.text.lost")
@pytest.mark.slow
def test_file_descriptor_2_is_not_reused_when_stderr_is_closed(tmp_path: Path) -> None:
    """The next opened file gets the lowest free descriptor, and libraries write to descriptor 2."""
    (tmp_path / "program.py").write_text(
        "import os\nfrom reference.errors import exit_with\n\ndef main():\n"
        "    file = open('data', 'w')\n    os.write(2, b'a warning of a library')\n    file.write('data')\n\n"
        "exit_with(main)\n"
    )
    assert shell(f"{sys.executable} program.py <&- >&- 2>&-", tmp_path).returncode == 0
    assert (tmp_path / "data").read_text() == "data"


@clause("00.text.console")
@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_full.py", "predict.py", "accuracy.py", "doctor.py"])
def test_the_help_can_be_read_on_an_ascii_console(script: str, tmp_path: Path) -> None:
    done = shell(f"{sys.executable} {ROOT}/scripts/{script} --help", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--help" in done.stdout


# Names in checkpoints and in the networks of others


@clause("00.text.names")
@pytest.mark.parametrize("name", DANGEROUS.values(), ids=DANGEROUS)
@pytest.mark.slow
def test_unprintable_class_names_are_rejected_on_save_and_escaped_on_load(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with pytest.raises(InputError, match=r"the class name .* cannot be printed"):
        save_checkpoint(path, Ocean(classes=2), [name, "猫"])
    assert not path.exists()
    save_checkpoint(path, Ocean(classes=2), ["dog", "猫"])
    torch.save(load_checkpoint(path) | {"class_names": [name, "猫"]}, path)
    assert load_checkpoint(path)["class_names"] == [printable(name), "猫"]


@clause("00.text.names")
@pytest.mark.parametrize(
    ("layer", "attribute"),
    [(layer, attribute) for layer, attributes in LAYERS.items() for attribute in attributes],
)
def test_printed_networks_escape_control_characters_in_layer_attributes(layer: str, attribute: str) -> None:
    kind = next(name for name, own in STANDARD.items() if own == layer)
    for value in ("\x1b[31mX", ("\x1b",), ["a\nb"]):
        with pytest.raises(CannotRunError):
            plain(value)
        weights = {f"w{number}": torch.zeros(1) for number in range(9)}
        shown = Printer()(Module(kind, {attribute: value}, weights, {}, {}))  # pyright: ignore[reportArgumentType]
        assert is_printable(shown)
