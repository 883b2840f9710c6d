"""Errors that a user can fix, reported in one line, and how a script exits with them."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from reference.files import explained
from reference.text import Console, open_console, print_line, printable

STOPPING = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    if (number := getattr(signal, name, None)) is not None
]
"""The signals that ask a program to end: Ctrl-C, `kill`, and the end of the terminal or of the connection."""


def is_ignored(number: signal.Signals) -> bool:
    """Whether SIGHUP is ignored, so that the program continues when its terminal is closed, as with `nohup`."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN


class InputError(ValueError):
    """An input (a file, a folder, a flag) cannot be used; the message names it and the remedy.

    The message is one line without control characters, for any names that it contains: see `reference.text.printable`.
    """

    def __init__(self, text: object) -> None:
        super().__init__(printable(text))


class TrainingError(ArithmeticError):
    """The training cannot continue: the loss is not a finite number."""


def exit_with(action: Callable[[], int | None]) -> NoReturn:
    """Run `action` and exit with its status; an error that a user can fix is printed in one line, with status 2.

    `InputError`, `TrainingError`, `MemoryError` and `OSError` (a full disk, a missing permission) are such errors; any
    other exception is a defect of the program and keeps its traceback. Ctrl-C exits with 130, SIGTERM with 143 and
    SIGHUP with 129, after the clean-up of the running code. Standard output and standard error are
    `reference.text.Console`s meanwhile: a closed reader has no effect, and any other failure to write standard output
    is an error at the end.
    """
    open_console()
    for number in STOPPING:
        if number != signal.SIGINT and not is_ignored(number):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status = action() or 0
    except (InputError, TrainingError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"cannot use {printable(error.filename)}: {explained(error)}"
        print_line(f"error: {' '.join(text.split())}", error=True)
        status = 2
    except MemoryError as error:
        print_line(f"error: there is not enough memory ({' '.join(str(error).split()) or 'for this'})", error=True)
        status = 2
    except KeyboardInterrupt:
        print_line("interrupted", error=True)
        status = 128 + signal.SIGINT
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if isinstance(sys.stdout, Console) and sys.stdout.failed:
        print_line(f"error: standard output cannot be written: {sys.stdout.lost}", error=True)
        status = status or 2
    sys.exit(status)
