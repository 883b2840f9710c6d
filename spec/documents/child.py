"""One group of listings, run in this process: `python -m spec.documents.child JOB`, or forked by the keeper.

A job is a JSON object; the results go to a file, one JSON line for each listing as soon as it has ended.
"""

import ast
import asyncio
import contextlib
import inspect
import json
import linecache
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from spec.documents import isolation, stand_ins

PRINTED = 400_000
"""Characters of a listing's output that are kept."""
PASSES = 2
"""The passes of a loop that run even after the time limit of the listing."""


class Cut(BaseException):
    """The time limit of the listing is reached."""


def clock() -> tuple[float, float]:
    """The wall-clock time, and the processor time of this process."""
    return time.monotonic(), time.process_time()


def spent(start: tuple[float, float]) -> float:
    """The processor seconds since `start` plus a quarter of the waiting time, so that a busy machine cuts no loop."""
    return max((time.monotonic() - start[0]) / 4, time.process_time() - start[1])


class State:
    """The state that the functions in transformed listings use."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = clock()
        self.cuts: dict[int, list[Any]] = {}
        self.whiles: dict[int, tuple[tuple[float, float], int]] = {}
        self.out: list[tuple[int, str]] = []
        self.length = 0
        self.shown: list[tuple[int, str]] = []
        self.warnings: list[dict[str, Any]] = []
        self.place = ""
        self.pid = os.getpid()
        self.refused = 0

    def begin(self, place: str) -> None:
        self.start, self.place = clock(), place
        self.cuts, self.whiles, self.out, self.shown, self.warnings = {}, {}, [], [], []
        self.length, self.refused = 0, len(isolation.refusals)
        stand_ins.used.clear()

    def long(self, start: tuple[float, float]) -> bool:
        """Whether a loop that began at `start` takes long itself; a loop that builds a network is never cut."""
        return spent(start) > min(1.0, self.seconds / 4) or self.length > PRINTED

    @property
    def over(self) -> bool:
        return spent(self.start) > self.seconds or self.length > PRINTED


def _line(state: State, *, outermost: bool = True) -> int:
    """The current line of the running listing, at module level or in the innermost frame."""
    frame, found = sys._getframe(2), 0
    while frame is not None:
        if frame.f_code.co_filename == state.place:
            found = frame.f_lineno
            if not outermost or frame.f_code.co_name == "<module>":
                return found
        frame = frame.f_back
    return found


class Output:
    """A standard output that records the printed text with the line of the listing that prints it."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, state: State, keep: bool) -> None:
        self.state, self.keep = state, keep

    def write(self, text: str) -> int:
        state = self.state
        if self.keep and os.getpid() == state.pid:
            state.length += len(text)
            if state.length <= PRINTED:
                state.out.append((_line(state), text))
            elif state.length > 50 * PRINTED:
                raise Cut
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None: ...
    def close(self) -> None: ...

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return 1 if self.keep else 2

    @property
    def buffer(self) -> Any:
        output = self

        class Bytes:
            def write(self, data: bytes) -> int:
                return output.write(bytes(data).decode("utf-8", "replace"))

            def flush(self) -> None: ...

        return Bytes()


class Bounded(ast.NodeTransformer):
    """Adds a time check to every loop, prints the values of expressions, and replaces absolute paths."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._depth = 0

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        call = node.iter
        counts = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "enumerate"
        if isinstance(call, ast.Call) and counts and call.args and not isinstance(call.args[0], ast.Starred):
            call.args[0] = self._looping(call.args[0], node.lineno)
        else:
            node.iter = self._looping(call, node.lineno)
        return node

    def _looping(self, iterable: ast.expr, line: int) -> ast.expr:
        return ast.copy_location(ast.Call(_name("__ocean_loop__"), [iterable, ast.Constant(line)], []), iterable)

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        look = ast.Call(_name("__ocean_on__"), [ast.Constant(node.lineno)], [])
        both = ast.BoolOp(ast.And(), [node.test, look])
        node.test = ast.copy_location(both, node.test)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        return node

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef  # pyright: ignore[reportAssignmentType]

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        plain = isinstance(node.value, ast.Constant | ast.Await | ast.Yield | ast.YieldFrom)
        if self._depth or plain:
            return node
        node.value = ast.copy_location(
            ast.Call(_name("__ocean_show__"), [node.value, ast.Constant(node.lineno)], []), node.value
        )
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and node.value.startswith("/"):
            moved = stand_ins.local(node.value, self.folder)
            if moved != node.value:
                with contextlib.suppress(OSError):
                    os.makedirs(os.path.dirname(moved) if os.path.splitext(moved)[1] else moved, exist_ok=True)
                return ast.copy_location(ast.Constant(moved), node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node


def _name(text: str) -> ast.Name:
    return ast.Name(text, ast.Load())


def last_batch(iterable: Any) -> Iterator[Any]:
    """The last batch of a loader if it is smaller than the others, because some listings fail only there."""
    from torch.utils.data import DataLoader, IterableDataset

    loader = getattr(iterable, "iterable", iterable)  # of tqdm
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    if loader.batch_size is None or loader.drop_last or loader.batch_sampler is None:
        return
    try:
        count = len(loader.sampler)  # pyright: ignore[reportArgumentType]
        rest = count % loader.batch_size
        batch = [loader.dataset[count - 1 - number] for number in reversed(range(rest))]
    except Exception:
        return
    if rest:
        yield loader.collate_fn(batch)


def helpers(state: State) -> dict[str, Any]:
    """The functions that the transformed listings call."""

    def loop(iterable: Iterable[Any], line: int) -> Iterator[Any]:
        try:
            total = len(iterable)  # pyright: ignore[reportArgumentType]
        except Exception:
            total = None
        start = clock()
        for count, item in enumerate(iterable):
            if count >= PASSES and state.over and state.long(start):
                state.cuts[line] = ["for", count, total]
                yield from last_batch(iterable)
                break
            yield item

    def on(line: int) -> bool:
        if not state.over:
            return True
        start, passes = state.whiles.get(line, (clock(), 0))
        state.whiles[line] = start, passes + 1
        if passes >= PASSES and state.long(start):
            state.cuts[line] = ["while", None, None]
            return False
        return True

    def show(value: Any, line: int) -> Any:
        if value is not None and len(state.shown) < 200:
            with contextlib.suppress(Exception):
                state.shown.append((line, repr(value)[:5000]))
        return value

    return {"__ocean_loop__": loop, "__ocean_on__": on, "__ocean_show__": show}


class _Shell:
    """The return value of `get_ipython()`: every call is accepted and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def main(job: dict[str, Any], results: TextIO) -> None:
    """Run the listings of a job."""
    folder = Path(job["folder"])
    state = State(job["seconds"])
    _prepare(job, folder, state)
    program = types.ModuleType("__main__")
    program.__file__ = str(folder / "program.py")
    builtin = helpers(state)
    if job["notebook"]:
        builtin |= {"display": lambda *_, **__: None, "get_ipython": lambda: _Shell()}
    program.__dict__.update(builtin)
    sys.modules["__main__"] = program
    for listing in job["listings"]:
        _write_source(folder, job, listing)
        report = _run(listing, program, state, job)
        if os.getpid() != state.pid:
            os._exit(0)
        report["index"] = listing["index"]
        results.write(json.dumps(report) + "\n")
        results.flush()
    with contextlib.suppress(Exception):
        import matplotlib.pyplot as plt

        plt.close("all")


def _write_source(folder: Path, job: dict[str, Any], listing: dict[str, Any]) -> None:
    """Write the listing to a file, which a spawned worker reads again."""
    with contextlib.suppress(OSError):
        (folder / "program.py").write_text(listing["code"], encoding="utf-8")


def _prepare(job: dict[str, Any], folder: Path, state: State) -> None:
    import numpy as np
    import torch

    os.chdir(folder)
    temporary = Path(job["root"]) / "tmp"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    os.environ.update(TMPDIR=str(temporary), HOME=str(folder), TORCH_HOME=str(folder / ".torch"))
    sys.path.insert(0, str(folder))
    sys.argv = [str(folder / "program.py")]
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    seed = job["seed"]
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if seed:
        _other_seeds(seed)
        stand_ins.variant = 1
    text = job["text"]
    stand_ins.install_rest()
    stand_ins.install_weights()
    stand_ins.install_data(folder, Path(job["store"]), text)
    if job["gpu"]:
        from spec.documents import gpu

        gpu.install()
    sys.stdout, sys.stderr = Output(state, True), Output(state, False)  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("Agg")
    _collect_warnings(state)
    _alarm()
    isolation.limit(job["memory"])
    isolation.landlock(Path(job["root"]), Path(job["store"]), Path(isolation.SHARED))
    isolation.guard(Path(job["root"]), store=Path(job["store"]))


def _other_seeds(seed: int) -> None:
    """Replace the seed that a listing sets: outputs that change depend on chance."""
    import numpy as np
    import torch

    for home, name in ((torch, "manual_seed"), (np.random, "seed"), (random, "seed"), (np.random, "default_rng")):
        function = getattr(home, name)

        def seeded(value: Any = 0, *arguments: Any, _function: Any = function, **named: Any) -> Any:
            return _function(value + seed if isinstance(value, int) else seed, *arguments, **named)

        setattr(home, name, seeded)


def _collect_warnings(state: State) -> None:
    warnings.resetwarnings()
    warnings.simplefilter("default")

    def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        text = str(message)
        line = _line(state, outermost=False)
        if len(state.warnings) < 100 and not any(entry["text"] == text for entry in state.warnings):
            own = filename == state.place
            entry = {"kind": category.__name__, "text": text[:600], "line": lineno if own else line, "own": own}
            state.warnings.append(entry)

    warnings.showwarning = note


def _alarm() -> None:
    """Raise the time limit by a signal; a second time, for code that catches every exception."""

    def end(*_: Any) -> None:
        raise Cut

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, end)


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        yield


def _run(listing: dict[str, Any], program: types.ModuleType, state: State, job: dict[str, Any]) -> dict[str, Any]:
    """Run a listing in the module and report the result."""
    place = f"{job['folder']}/listing_{listing['index']}.py"
    state.begin(place)
    code: str = listing["code"]
    linecache.cache[place] = (len(code), None, code.splitlines(keepends=True), place)
    report: dict[str, Any] = {"error": None}
    for statement in listing.get("prelude", ()):
        exec(statement, program.__dict__)
    try:
        with _time(state.seconds * 5 + 20):
            tree = ast.parse(code, place)
            top = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if job["notebook"] else 0
            compile(code, place, "exec", flags=top)  # errors that only the compiler finds, with their line
            bounded = ast.fix_missing_locations(Bounded(job["folder"]).visit(tree))
            running = eval(compile(bounded, place, "exec", flags=top), program.__dict__)
            if inspect.iscoroutine(running):
                asyncio.run(running)
    except Cut:
        state.cuts[_deepest(state)] = ["time", None, None]
    except SystemExit as ended:
        report["exit"] = str(ended.code) if ended.code is not None else "0"
    except RecursionError as error:
        report["error"] = _error(error, job, state)
    except BaseException as error:
        report["error"] = _error(error, job, state)
    report |= {
        "out": _joined(state.out),
        "shown": state.shown,
        "warnings": state.warnings,
        "cuts": [[line, *entry] for line, entry in sorted(state.cuts.items())],
        "stand_ins": sorted(stand_ins.used),
        "refused": isolation.refusals[state.refused :][:5],
        "seconds": round(time.monotonic() - state.start[0], 3),
        "prints_on": state.length > PRINTED,
    }
    return report


def _deepest(state: State) -> int:
    frames = traceback.extract_tb(sys.exc_info()[2])
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == state.place), 0)


def _joined(chunks: list[tuple[int, str]]) -> list[list[Any]]:
    """The output as pairs of a line and the text that it printed consecutively."""
    made: list[list[Any]] = []
    for line, text in chunks:
        if made and made[-1][0] == line:
            made[-1][1].append(text)
        else:
            made.append([line, [text]])
    return [[line, "".join(texts)] for line, texts in made]


def _error(error: BaseException, job: dict[str, Any], state: State) -> dict[str, Any]:
    """An error as the report needs it; its line is the deepest one in a listing."""
    kind = type(error)
    name = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__name__}"
    found: dict[str, Any] = {"type": name, "message": str(error)[:3000], "line": 0, "index": None, "frames": []}
    if isinstance(error, SyntaxError) and error.filename == state.place:
        return found | {"line": error.lineno or 0, "column": error.offset or 0}
    places = []
    for frame in traceback.extract_tb(error.__traceback__):
        if match := re.fullmatch(r".*/listing_(\d+)\.py", frame.filename):
            places.append((int(match[1]), frame.lineno or 0, frame.filename))
    found["frames"] = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-4:]
    if places:
        found["index"], found["line"] = places[-1][0], places[-1][1]
        own = [line for _, line, filename in places if filename == state.place]
        found["own_line"] = own[-1] if own else 0
    if isinstance(error, NameError) and error.name:
        found["name"] = error.name
    if error.__cause__ is not None or error.__context__ is not None:
        other = error.__cause__ or error.__context__
        found["cause"] = f"{type(other).__name__}: {other}"[:1000]
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        found["file"] = os.fsdecode(error.filename) if not isinstance(error.filename, int) else ""
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        given = json.load(file)
    with open(given["results"], "a", encoding="utf-8") as stream:
        main(given, stream)
        stream.flush()
    os._exit(0)
