"""Run and record everything that needs a GPU: `python -m benchmarks.gpu --output DIR`.

The command runs parts in the order of their importance, each in separate processes with a separate time limit, and all
of them within eight minutes on one H100 with 16 cores. `DIR/gpu.json` is written anew after every part: the
environment, and for each part its status, its seconds and its figures. A part that fails or reaches its limit keeps the
figures that it has recorded. `DIR/gpu.log` contains the output of the parts. `docs/gpu.md` describes the use of both.

The machine needs no network: `python -m benchmarks.pack` puts wheels and images into a folder, and this command
installs the wheels into a temporary folder and unpacks the images there. Before that, only Python's standard library is
imported.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.strict import dump

ROOT = Path(__file__).parents[1]
PACKED = ROOT / "build/gpu"
"""The folder in which `benchmarks.pack` puts the wheels and the images."""
BUDGET = 480.0
"""Time limit of all parts together, in seconds."""
REHEARSAL = 10.0
"""The factor of a rehearsal's time limit, on any CPU."""
GRACE = 8.0
"""Seconds for a part that reached its limit to write its results, before it is killed."""
LOG_LIMIT = 2**20
"""The size of the end of a part's output that is kept in the log, in bytes."""
PYTEST = ("-p", "no:cacheprovider", "-p", "benchmarks.outcomes", "-q")


@dataclass(frozen=True)
class Part:
    """A measurement or test run that is recorded under one name.

    Attributes:
        name: its key in the JSON.
        seconds: its limit.
        command: the arguments of Python.
        rehearsal: the arguments in a rehearsal on the CPU.
        beside: whether the part may run at the same time as the previous part; parts that measure time run alone.
    """

    name: str
    seconds: float
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    beside: bool = False


def measured(name: str, seconds: float) -> Part:
    """A part of `benchmarks.gpu_parts`."""
    command = ("-m", "benchmarks.gpu_parts", name)
    return Part(name, seconds, command, (*command, "--rehearse"))


def pytest_part(
    name: str, seconds: float, words: Sequence[str], rehearsal: Sequence[str], *, beside: bool = False
) -> Part:
    """A part that is a run of pytest."""
    return Part(name, seconds, ("-m", "pytest", *words, *PYTEST), ("-m", "pytest", *rehearsal, *PYTEST), beside)


# The tests of the components on the device are a separate part here, in several processes.
_GPU_TESTS = ("spec", "-m", "gpu", "--deselect", "spec/test_19_convergence.py::test_the_specification_runs_on_the_gpu")
_COMPONENTS = ("spec", "--impl", "reference,torch", "--hypothesis-profile", "gpu")

# The training steps first, in a fixed order: if the time limit ends the part, only components are missing.
_BENCHMARKS = (
    *("-p", "no:randomly", "benchmarks/test_device.py"),
    *sorted(f"benchmarks/{path.name}" for path in ROOT.glob("benchmarks/test_*.py") if path.stem != "test_device"),
)

PARTS = (
    pytest_part(
        "tests", 160, (*_GPU_TESTS, "-n", "6", "--dist", "loadgroup"), (*_GPU_TESTS, "--gpu-rehearsal", "-n", "2")
    ),
    pytest_part(
        "components",
        160,
        (*_COMPONENTS, "--device", "cuda", "-n", "8"),
        ("spec/test_11_activation.py", "spec/test_14_loss.py", *_COMPONENTS[1:], "--device", "simulated", "-n", "2"),
        beside=True,
    ),
    measured("command", 45),
    measured("tutorial", 90),
    measured("trainings-off", 60),
    measured("trainings-graphs", 70),
    measured("fast", 75),
    measured("profile", 60),
    pytest_part(
        "benchmarks",
        90,
        (*_BENCHMARKS, "-m", "gpu", "--impl", "reference,torch", "--benchmark-json", "benchmarks.json"),
        (
            *("benchmarks/test_device.py", "benchmarks/test_pooling.py", "-m", "gpu", "--impl", "reference,torch"),
            *("--gpu-rehearsal", "--benchmark-max-time", "0.01", "--benchmark-json", "benchmarks.json"),
        ),
    ),
    measured("trainings-full", 110),
)
"""All parts, the most important ones first."""


@dataclass
class Record:
    """`gpu.json`, written anew after every change."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Replace the file in one step, so that a reader always finds a complete file."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(dump(self.content), encoding="utf-8")
        temporary.replace(self.path)


class Running:
    """A part that has been started.

    Args:
        part: the part to run.
        words: the arguments of Python.
        seconds: its limit.
        folder: an empty folder for its files; the part starts in the project's folder.
        environment: its environment variables.
    """

    def __init__(
        self, part: Part, words: Sequence[str], seconds: float, folder: Path, environment: dict[str, str]
    ) -> None:
        self.part, self.seconds, self.folder = part, seconds, folder
        folder.mkdir()
        words = [str(folder / word) if word == "benchmarks.json" else word for word in words]
        environment = environment | {"OCEAN_RECORD": str(folder / "figures.jsonl"), "TMPDIR": str(folder)}
        self.began = time.monotonic()
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> dict[str, Any]:
        """Wait until the part ends, or end it at its time limit; return its entry of the JSON."""
        status = "done"
        try:
            self.process.wait(max(0.0, self.began + self.seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = "reached its limit"
            self.signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        self.signal(signal.SIGKILL)  # also the child processes that are still running
        code = self.process.wait()
        if status == "done" and code != 0:
            status = f"failed with exit status {code}"
        entry: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - self.began, 1)}
        entry |= {"limit": round(self.seconds, 1), "figures": lines(self.folder / "figures.jsonl")}
        if (benchmarks := self.folder / "benchmarks.json").exists() and benchmarks.stat().st_size:
            entry["benchmarks"] = brief(json.loads(benchmarks.read_text(encoding="utf-8")))
        if status != "done":
            entry["last output"] = self.output()[-2000:]
        return entry

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the part's whole group of processes."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def output(self) -> str:
        """The output of the part, at most the last `LOG_LIMIT` bytes."""
        return (self.folder / "output").read_bytes()[-LOG_LIMIT:].decode("utf-8", "replace")


def lines(path: Path) -> list[dict[str, Any]]:
    """The figures that a part recorded, one per line; an incomplete last line is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def brief(benchmarks: dict[str, Any]) -> list[dict[str, Any]]:
    """An excerpt of pytest-benchmark's JSON: group, test, median and quartiles in seconds, rounds, remarks."""
    return [
        {"group": one["group"], "test": one["name"]}
        | {key: one["stats"][key] for key in ("median", "q1", "q3", "rounds")}
        | {"extra": one["extra_info"]}
        for one in benchmarks["benchmarks"]
    ]


def install(wheels: Path, target: Path) -> None:
    """Install the packed wheels into the folder `target`, without a network."""
    words = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check")
    found = sorted(wheels.glob("*.whl"))
    command = [sys.executable, *words, "--target", str(target), *map(str, found)]
    subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the packed images into the folder `target`."""
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")


def prepare(packed: Path, scratch: Path, attempt: Callable[[str, Callable[[], None]], None]) -> dict[str, str]:
    """The environment variables of the parts: the folders of packages, images and temporary files."""
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment |= {"XDG_CACHE_HOME": str(scratch / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(ROOT)]
    if any((packed / "wheels").glob("*.whl")):
        attempt("install the wheels", lambda: install(packed / "wheels", scratch / "site"))
        paths.insert(0, str(scratch / "site"))
    if (packed / "images.tar.gz").exists() and "OCEAN_DATA" not in environment:
        attempt("unpack the images", lambda: unpack(packed / "images.tar.gz", scratch / "images"))
        environment["OCEAN_DATA"] = str(scratch / "images")
    environment["PYTHONPATH"] = os.pathsep.join(paths + [p for p in [environment.get("PYTHONPATH", "")] if p])
    return environment


PREPARATION = (measured("environment", 60), measured("images", 90))
"""Parts that run before all others and are recorded as preparation."""


def run(
    parts: Sequence[Part],
    output: Path,
    packed: Path,
    budget: float,
    *,
    rehearse: bool,
    preparation: Sequence[Part] = PREPARATION,
) -> dict[str, Any]:
    """Prepare, run `parts`, record; return the content of `gpu.json`.

    Args:
        parts: the parts to run, the most important first.
        output: the folder for `gpu.json` and `gpu.log`; made if it is missing.
        packed: the folder that `benchmarks.pack` filled; it may be missing.
        budget: seconds for everything together.
        rehearse: whether the CPU stands in for the GPU.
        preparation: the parts to run before them.
    """
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    record = Record(output / "gpu.json")
    record.content = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": rehearse,
        "budget": budget,
        "environment": None,
        "preparation": [],
        "parts": {},
    }
    log = (output / "gpu.log").open("w", encoding="utf-8")

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    def attempt(what: str, function: Callable[[], None]) -> None:
        start, step = time.monotonic(), {"step": what, "status": "done", "seconds": 0.0}
        try:
            function()
        except Exception as error:  # the parts report what is missing
            step["status"] = f"failed: {type(error).__name__}: {error}"
        step["seconds"] = round(time.monotonic() - start, 1)
        record.content["preparation"].append(step)
        record.write()
        say(f"{what}: {step['status']}")

    with log, tempfile.TemporaryDirectory(prefix="gpu-") as name:
        scratch = Path(name)
        environment = prepare(packed, scratch, attempt)

        def start(part: Part) -> Running | dict[str, Any]:
            left = budget - (time.monotonic() - began)
            words = part.rehearsal if rehearse else part.command
            seconds = max(0.0, min(part.seconds * (REHEARSAL if rehearse else 1), left))
            try:
                return Running(part, words, seconds, scratch / f"part-{part.name}", environment)
            except OSError as error:
                return {"status": f"could not be started: {error}", "figures": []}

        def finish(running: Running | dict[str, Any], part: Part) -> dict[str, Any]:
            if isinstance(running, dict):
                say(f"{part.name}: {running['status']}")
                return running
            entry = running.finish()
            log.write(f"==== {part.name}: {entry['status']}, {entry['seconds']} s\n{running.output()}\n")
            log.flush()
            say(f"{part.name}: {entry['status']}, {entry['seconds']} s; {summary(entry)}")
            return entry

        for first in preparation:
            entry = finish(start(first), first)
            if first.name == "environment":
                record.content["environment"] = (entry["figures"] or [None])[0]
            record.content["preparation"].append({"step": first.name} | entry)
            record.write()
        waiting = list(parts)
        while waiting:
            together = [waiting.pop(0)]
            while waiting and waiting[0].beside:
                together.append(waiting.pop(0))
            if time.monotonic() - began > budget - 1:
                for part in together:
                    record.content["parts"][part.name] = {"status": "not run: the time was used up", "figures": []}
                continue
            for part, running in [(part, start(part)) for part in together]:
                record.content["parts"][part.name] = finish(running, part)
                record.write()
        record.content["seconds"] = round(time.monotonic() - began, 1)
        record.write()
    return record.content


def summary(entry: dict[str, Any]) -> str:
    """A short text with the figures of a part."""
    outcomes = [figure for figure in entry["figures"] if "outcome" in figure]
    if outcomes:
        counts: dict[str, int] = {}
        for figure in outcomes:
            counts[figure["outcome"]] = counts.get(figure["outcome"], 0) + figure.get("count", 1)
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return f"{len(entry['figures'])} figures"


def main() -> int:
    """Run the parts requested on the command line."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for gpu.json and gpu.log")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"parts to run: {', '.join(names)}")
    parser.add_argument("--packed", type=Path, default=PACKED, metavar="DIR", help="folder that benchmarks.pack filled")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"limit of all parts (default: {BUDGET:.0f}, in a rehearsal {BUDGET * REHEARSAL:.0f})",
    )
    parser.add_argument("--rehearse", action="store_true", help="run every part on the CPU, at reduced size")
    chosen = parser.parse_args()
    parts = [part for part in PARTS if chosen.only is None or part.name in chosen.only]
    budget = chosen.seconds or BUDGET * (REHEARSAL if chosen.rehearse else 1)
    content = run(parts, chosen.output, chosen.packed, budget, rehearse=chosen.rehearse)
    bad = [name for name, entry in content["parts"].items() if entry["status"] != "done"]
    print(f"{chosen.output / 'gpu.json'}: {len(parts) - len(bad)} of {len(parts)} parts done")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
