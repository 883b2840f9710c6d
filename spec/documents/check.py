"""The check of documents: extract, run, compare, explain."""

import ast
import difflib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reference.files import atomic_write
from spec.documents import causes, compare, fixes, stand_ins
from spec.documents.causes import Cause
from spec.documents.extract import Listing, has_ellipsis, parsed, read
from spec.documents.names import IMPLIED, Names, modules_of, names_of, sessions

VERDICTS = ("runs", "warns", "differs", "fails", "needs", "fragment", "not run")
"""The verdicts for a listing. runs: to its end, or to the error that the document announces; warns: it runs and uses
deprecated features; differs: it prints something different from the document; fails; needs: something that is not
available; fragment: Python that is not meant to run; not run: an output, a shell command, another language.
"""
WRONG = ("fails", "differs")
"""Verdicts that make the exit status 1."""
SUFFIXES = (".md", ".markdown", ".ipynb", ".txt")
PACKAGES = {
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "yaml": "pyyaml",
}
ANNOUNCES = re.compile(
    r"报错|会出错|会失败|抛出异常|引发异常|错误示范|raises? an? (?:error|exception)|"
    r"(?:will|should) (?:fail|raise|throw)|throws? an? (?:error|exception)|this fails|# *(?:error|wrong)[:!]",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"^(?:x+|y+|your_?\w*|my_?(?:module|package|file|lib)\w*|foo|bar|module_name|some_?module|某\w*)$", re.I
)


@dataclass
class Result:
    """The result for one listing.

    Attributes:
        listing: The listing.
        verdict: One of `VERDICTS`.
        error: The error that ended it: type, message, line in the document; or None.
        cause: The known cause of the error, or None.
        reason: The missing requirement, or the reason why it is a fragment or was not run: a word and its object.
        warned: Deprecations: text, line and known cause.
        differences: The differences between its output and the document.
        notes: Known causes without an effect here.
        cuts: Loops that were cut, as (line, passes, total number of passes).
        stand_ins: The substitutes for data, weights, images or a GPU.
        continues: Lines of the listings that ran before it in its process.
        alone: The first name that is undefined if the listing runs alone, with its line; or None.
        announced: Whether the document announces the error.
        seconds: The run time.
        implied: Imports that the check added, because the document does not show them.
        fixed: With `--fix`: the fixed code and its verdict; or None.
    """

    listing: Listing
    verdict: str = "not run"
    error: dict[str, Any] | None = None
    cause: Cause | None = None
    reason: tuple[str, str] = ("", "")
    warned: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    notes: list[Cause] = field(default_factory=list)
    cuts: list[dict[str, Any]] = field(default_factory=list)
    stand_ins: list[str] = field(default_factory=list)
    continues: list[int] = field(default_factory=list)
    alone: tuple[str, int] | None = None
    announced: bool = False
    seconds: float = 0.0
    implied: list[str] = field(default_factory=list)
    fixed: dict[str, Any] | None = None


@dataclass
class Document:
    """A document and the results of its listings."""

    path: Path
    results: list[Result]

    @property
    def wrong(self) -> int:
        """The number of listings that fail or print something different from the document."""
        return sum(result.verdict in WRONG for result in self.results)


@dataclass(frozen=True)
class Options:
    """The options of a check.

    Attributes:
        seconds: The time after which the loops of a listing are cut, each after two passes.
        memory: The memory limit of a group of listings in bytes.
        alone: Run every listing alone, as if it were copied into a new file.
        fix: Write a copy in which known causes are fixed, and check it.
    """

    seconds: float = 8.0
    memory: int = 6 << 30
    alone: bool = False
    fix: bool = False


def documents(paths: Sequence[Path]) -> list[Path]:
    """The documents at the paths; for a folder, all documents in it and its sub-folders.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in (".md", ".ipynb") and file.is_file())
            found += [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: there is no such file or folder")
    return found


class Keeper:
    """The process that starts and ends the processes of listings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = str(Path(__file__).parents[2])
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ", "WINDIR")
        }
        environment |= {
            "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder), "TMPDIR": str(folder),
            "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(folder / "matplotlib"), "TORCHDYNAMO_DISABLE": "1",
            "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "TORCH_HOME": str(folder / "torch"),
            "PYTHONHASHSEED": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "NO_ALBUMENTATIONS_UPDATE": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "spec.documents.keeper"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=environment,
            text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self._count = 0

    def run(self, job: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Run a job; return the reports of its listings and the end of the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._count += 1
        results = self.folder / f"results-{self._count}"
        job = {**job, "results": str(results)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that runs the listings ended with {self.process.poll()}")
        reports = []
        if results.exists():
            for line in results.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(json.JSONDecodeError):
                    reports.append(json.loads(line))
        ended = json.loads(answer)
        failed = Path(f"{results}.failed")
        if failed.exists():
            ended["failed"] = failed.read_text(encoding="utf-8", errors="replace")
        return reports, ended

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def keeper() -> Iterator[Keeper]:
    """A context with a keeper and its folder, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="ocean-", ignore_cleanup_errors=True) as name:
        made = Keeper(Path(os.path.realpath(name)))
        try:
            yield made
        finally:
            made.close()


def check(path: Path, options: Options, keeper: Keeper, progress: Callable[[str], None] = lambda _: None) -> Document:
    """Check a document.

    Raises:
        ValueError, OSError: the document cannot be read.
    """
    listings = read(path)
    found = Check(listings, options, keeper, progress).results()
    if options.fix:
        _fix(found, options, keeper)
    return Document(path, found)


class Check:
    """The check of the listings of one document."""

    def __init__(
        self, listings: list[Listing], options: Options, keeper: Keeper, progress: Callable[[str], None]
    ) -> None:
        self.listings, self.options, self.keeper, self.progress = listings, options, keeper, progress
        self.names: list[Names] = [names_of(each.code) if each.kind == "python" else Names() for each in listings]
        self.modules = modules_of(listings)
        self.root = Path(tempfile.mkdtemp(prefix="s", dir=keeper.folder))
        self.folder = self.root / "project" / "src"  # `../data` is within the root
        self.folder.mkdir(parents=True)
        store = keeper.folder / "store"
        store.mkdir(exist_ok=True)
        self.store = store
        self.text = "\n".join(each.before + "\n" + each.printed for each in listings)
        self.done = [Result(each) for each in listings]
        self._raw: dict[int, list[compare.Difference]] = {}

    def results(self) -> list[Result]:
        """The result of each listing."""
        for result in self.done:
            if result.listing.kind != "python":
                verdict = "fragment" if result.listing.kind == "fragment" else "not run"
                result.verdict, result.reason = verdict, (result.listing.reason or result.listing.kind, "")
        self._write_files()
        stand_ins.prepare(self.text, self.store)
        if self.options.alone:
            groups = [[number] for number, each in enumerate(self.listings) if each.kind == "python"]
        else:
            groups = sessions(self.listings, self.modules)
        for group in groups:
            self._session(group)
        shutil.rmtree(self.root, ignore_errors=True)
        return self.done

    def _write_files(self) -> None:
        """Prepare the listings that are files for others, such as `model.py`, and the folders for outputs."""
        for module, number in self.modules.items():
            target = self.folder / (module.replace(".", "/") + ".py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.listings[number].code, encoding="utf-8")
        for each in self.listings:
            if each.reason == "file" and each.file and not Path(each.file).is_absolute() and ".." not in each.file:
                target = self.folder / each.file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(each.code.lstrip("\n"), encoding="utf-8")
        if re.search(r"\bmk(?:dir|dirs)\b|makedirs", self.text):
            return
        for name in re.findall(r"[\"']((?:\.{1,2}/)?[\w.{}-]+(?:/[\w.{}-]+)+)[\"']", self.text):
            parent = Path(name).parent
            if ".." not in parent.parts and Path(name).suffix in (
                ".pth",
                ".pt",
                ".pkl",
                ".csv",
                ".txt",
                ".png",
                ".jpg",
                ".onnx",
                ".npy",
                ".json",
                ".log",
                ".tar",
            ):
                with suppress(OSError):
                    (self.folder / parent).mkdir(parents=True, exist_ok=True)

    # Running

    def _job(self, group: list[int], *, seed: int = 0, gpu: bool = False) -> dict[str, Any]:
        notebook = any(self.listings[number].cell for number in group)
        return {
            "folder": str(self.folder),
            "root": str(self.root), "store": str(self.store), "text": self.text, "seconds": self.options.seconds,
            "deadline": (self.options.seconds * 5 + 25) * len(group) + 30, "memory": self.options.memory,
            "seed": seed, "gpu": gpu, "notebook": notebook,
            "listings": [
                {"index": number, "code": self.listings[number].code, "prelude": self.done[number].implied}
                for number in group
            ],
        }  # fmt: skip

    def _run(self, group: list[int], **options: Any) -> dict[int, dict[str, Any]]:
        """The reports of the listings of a group, by number; a listing that ends its process affects no other."""
        reports: dict[int, dict[str, Any]] = {}
        left = list(group)
        while left:
            found, ended = self.keeper.run(self._job(left, **options))
            new = {report["index"]: report for report in found}
            reports |= {number: report for number, report in new.items() if number not in reports}
            missing = [number for number in left if number not in new]
            if not missing:
                break
            reports[missing[0]] = _vanished(missing[0], ended)
            # the other listings run again in the same order; a listing that ends the process is left out
            before = [number for number in left if number in new]
            left = before + missing[1:] if missing[1:] else []
        return reports

    def _session(self, group: list[int]) -> None:
        for number in group:
            self.done[number].implied = self._implied(number)
        hard = any(_asks_for_gpu(self.listings[number].code) for number in group)
        guarded = any("is_available" in self.listings[number].code for number in group)
        gpu = hard and not guarded
        for number in group:
            self.progress(str(self.listings[number].cell or self.listings[number].line))
        reports = self._run(group, gpu=gpu)
        if not gpu and any(_lacks_gpu(report) for report in reports.values()):
            gpu = True
            reports = self._run(group, gpu=True)
        if gpu:
            self._without_simulation(group, reports)
        for number in group:
            self._judge(number, group, reports[number], gpu=gpu)
        suspects = [number for number in group if self.done[number].verdict == "differs"]
        if suspects:
            self._again(group, suspects, gpu)

    def _without_simulation(self, group: list[int], reports: dict[int, dict[str, Any]]) -> None:
        """An error that only the simulated device raises is not an error of a listing: run it again on the CPU."""
        for report in reports.values():
            error = report["error"]
            if error and not re.search("same device|device type tensor to numpy|CUDA device", error["message"]):
                text = f"{error['type']} {error['message']} {error['frames']}".lower()
                if "simulated" in text or "privateuse" in text or "notimplemented" in text or "generator" in text:
                    report["error"] = None
                    report["stand_ins"] = [*report["stand_ins"], "gpu-only"]

    def _again(self, group: list[int], suspects: list[int], gpu: bool) -> None:
        """Run again with other seeds: an output that changes depends on chance, and is not compared."""
        reports = self._run(group, seed=7919, gpu=gpu)
        for number in suspects:
            report = reports[number]
            left = compare.unstable(self._raw[number], report) if not report["error"] else []
            result = self.done[number]
            result.differences = [each for each in result.differences if any(d.said == each["said"] for d in left)]
            if not result.differences:
                result.verdict = "warns" if result.warned else "runs"

    # Judging

    def _implied(self, number: int) -> list[str]:
        """The imports that neither the listing nor the document shows, if the listing imports nothing."""
        if self.names[number].imports or self.options.alone:
            return []
        known = set().union(*(names.defines for names in self.names[: number + 1]))
        return [IMPLIED[name] for name in self.names[number].needs if name in IMPLIED and name not in known]

    def _judge(self, number: int, group: list[int], report: dict[str, Any], *, gpu: bool) -> None:
        listing, result = self.listings[number], self.done[number]
        result.continues = [self.listings[other].line for other in group if other < number and not listing.cell]
        if not listing.cell and (first := self._first_missing(number)):
            result.alone = (first[0], listing.place(first[1]))
        result.seconds = report["seconds"]
        result.stand_ins = [each for each in report["stand_ins"] if each != "gpu-only"]
        if gpu and _asks_for_gpu(listing.code):
            result.stand_ins = [*result.stand_ins, "gpu"]
        result.cuts = [
            {"line": listing.place(line) if line else listing.line, "kind": kind, "passes": passes, "of": total}
            for line, kind, passes, total in report["cuts"]
        ]
        result.notes = [
            cause for cause in causes.notes(listing.code) if not (listing.cell and cause.id == "main_guard_note")
        ]
        self._warned(number, report)
        if report["error"]:
            self._failed(number, group, report)
            return
        if report.get("exit", "0") not in ("0", "None", ""):
            result.verdict, result.reason = "needs", ("arguments", f"exit status {report['exit']}")
            return
        result.verdict = "warns" if result.warned else "runs"
        if not set(report["stand_ins"]) & {"input", "gpu-only"}:
            found = [] if self._cut_before(number, group) else compare.differences(listing, report)
            if found:
                self._raw[number] = found
                result.verdict = "differs"
                result.differences = [
                    {"line": listing.place(each.line), "said": each.said, "printed": each.printed} for each in found
                ]

    def _first_missing(self, number: int) -> tuple[str, int] | None:
        """The first name that is undefined if the listing runs alone, with its line."""
        names = self.names[number]
        given: set[str] = set()
        for module, taken in names.modules.items():
            if "*" in taken and module in self.modules:
                given |= self.names[self.modules[module]].defines
        return Names({name: line for name, line in names.needs.items() if name not in given}).first

    def _cut_before(self, number: int, group: list[int]) -> bool:
        return any(
            self.done[other].cuts or self.done[other].verdict in ("fails", "needs") for other in group if other < number
        )

    def _warned(self, number: int, report: dict[str, Any]) -> None:
        listing, result = self.listings[number], self.done[number]
        for warning in report["warnings"]:
            cause = causes.of_warning(warning["text"], listing.code)
            deprecates = warning["kind"] in ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning")
            if cause is None and not (deprecates and warning["own"]):
                continue
            if cause is None and warning["kind"] == "DeprecationWarning" and "invalid escape" in warning["text"]:
                continue
            line = listing.place(warning["line"]) if warning["line"] else listing.line
            entry = {"text": warning["text"], "line": line, "cause": cause}
            if cause is None or all(other["cause"] is not cause for other in result.warned):
                result.warned.append(entry)

    def _failed(self, number: int, group: list[int], report: dict[str, Any]) -> None:
        listing, result = self.listings[number], self.done[number]
        error = report["error"]
        source = listing if error["index"] in (None, number) else self.listings[error["index"]]
        line = source.place(error["line"]) if error["line"] else 0
        place = source.cell or 0
        message = error["message"].replace("simulated:0", "cuda:0").replace(f"{self.folder}{os.sep}", "")
        message = re.sub("\x1b\\[[0-9;]*m", "", message)
        message = re.sub(r" \(listing_\d+\.py, line \d+\)", "", message)
        result.error = {"type": error["type"], "message": message, "line": line, "cell": place}
        kind, text = error["type"].rpartition(".")[2], error["message"]
        code = "\n".join(self.listings[other].code for other in group if other <= number)
        own = listing.code
        cause = causes.of_error(error["type"], text, own if parsed(own) is None else code)
        result.verdict, result.cause = "fails", cause
        for judge in (
            self._is_announced, self._is_excerpt, self._is_name, self._is_module, self._is_file, self._is_refused,
            self._is_device, self._is_placeholder, self._is_after_cut, self._is_dependent,
        ):  # fmt: skip
            if judge(number, group, report, kind, text):
                return

    def _is_announced(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Whether the document announces the error: under the listing, or in a comment."""
        listing, result = self.listings[number], self.done[number]
        comments = "\n".join(line.partition("#")[2] for line in listing.code.splitlines())
        if kind == "SyntaxError" and not listing.error_shown:
            return False
        named = re.search(rf"\b{kind}\b", comments) or listing.error_shown == kind
        if not named and not (ANNOUNCES.search(comments) and kind not in ("NameError", "ModuleNotFoundError")):
            return False
        if kind == "NameError" and not named:
            return False
        result.announced, result.verdict = True, "warns" if result.warned else "runs"
        return True

    def _is_excerpt(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """An excerpt of a function or of a class, or a listing that leaves parts out."""
        listing, result = self.listings[number], self.done[number]
        if (
            kind == "SyntaxError"
            and re.search(
                r"'(?:return|yield|await|break|continue)' (?:outside|not properly)|outside (?:async )?function", text
            )
        ) or (kind == "RuntimeError" and "super(): no arguments" in text):
            result.verdict, result.reason = "fragment", ("excerpt", "")
        elif has_ellipsis(listing.code):
            result.verdict, result.reason = "fragment", ("pseudo-code", "")
        else:
            return False
        return True

    def _is_name(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge an undefined name: Python 2, a missing import, a misspelling, or a fragment."""
        result, error = self.done[number], report["error"]
        if kind != "NameError" or (result.cause and result.cause.id == "python2_names"):
            return False
        found = re.search(r"name '(\w+)' is not defined", text)
        name = error.get("name") or (found[1] if found else "")
        before = [other for other in group if other < number]
        for other in before:
            earlier = self.done[other]
            if earlier.verdict in ("needs", "fails") and name in self.names[other].defines:
                result.verdict, result.reason = "needs", ("listing", str(earlier.listing.cell or earlier.listing.line))
                result.cause = None
                return True
        table = causes.table()
        listing = self.listings[number]
        complete = self.names[number].imports
        defined = set().union(self.names[number].defines, *(self.names[other].defines for other in before))
        if name in IMPLIED and (complete or self.options.alone):
            result.cause = table["missing_import"]
            return True
        similar = {"true": "True", "false": "False", "none": "None", "null": "None", "NULL": "None"}.get(name, "")
        similar = similar or _similar(name, defined, complete or bool(before))
        if similar:
            result.cause = table["misspelled"]
            result.reason = ("similar", similar)
            return True
        if name == "self" or not (complete and name in _bound_later(listing, name)):
            result.verdict, result.reason, result.cause = "fragment", ("name", name), None
            return True
        result.cause = table["misspelled"]
        return True

    def _is_module(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge a missing module: a package that is not installed, or a file that the document does not show."""
        result = self.done[number]
        if result.cause is not None and result.cause.kind == "change":
            return False
        found = re.search(r"No module named '([\w.]+)'", f"{text} {report['error'].get('cause', '')}")
        needs = re.search(
            r"IProgress not found|requires? the (\w+) (?:library|package)|[Pp]lease (?:pip )?install (\w+)", text
        )
        if found and (
            kind in ("ModuleNotFoundError", "ImportError") or "not installed" in text or report["error"]["frames"]
        ):
            name = found[1].split(".")[0]
            if PLACEHOLDER.match(name):
                result.verdict, result.reason = "fragment", ("module", name)
            elif importlib.util.find_spec(name) is not None and "." in found[1] and kind == "ModuleNotFoundError":
                result.cause = causes.table()["import_name"]
            else:
                result.verdict, result.reason = "needs", ("package", PACKAGES.get(name, name))
        elif kind == "ImportError" and re.search(r"from 'd2l|from '\w*utils'", text):
            result.verdict, result.reason = "needs", ("package", re.findall(r"from '(\w+)", text)[0])
        elif needs:
            result.verdict, result.reason = "needs", ("package", next(filter(None, needs.groups()), "ipywidgets"))
        else:
            return False
        if result.verdict in ("needs", "fragment"):
            result.cause = None
        return True

    def _is_file(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge a missing file: the document saves it under another name, or does not create it."""
        result, error = self.done[number], report["error"]
        if kind not in ("FileNotFoundError", "NotADirectoryError") and not re.search(
            r"No such file|does not exist|not found or corrupted|[Dd]ataset not found|Found no valid file|"
            r"Couldn't find any class",
            text,
        ):
            return False
        name = error.get("file") or _quoted(text)
        name = name.replace(f"{self.folder}{os.sep}", "").replace(f"{self.root}{os.sep}", "")
        if saved := self._saved_as(name):
            result.cause = causes.table()["file_name_differs"]
            result.reason = ("saved", saved)
            return True
        result.verdict, result.reason, result.cause = "needs", ("file", name), None
        return True

    def _saved_as(self, name: str) -> str:
        """The similar name under which the document saves the file that it reads as `name`."""
        last, suffix = os.path.basename(name), os.path.splitext(name)[1]
        if suffix not in (
            ".pth",
            ".pt",
            ".pkl",
            ".tar",
            ".ckpt",
            ".npy",
            ".npz",
            ".onnx",
            ".params",
            ".json",
            ".model",
        ):
            return ""
        number = re.sub(r"\d+", "0", last)
        best, found = 0.85, ""
        for saved in re.findall(r"save\w*\([^\n]*?[\"']([^\"'\n]+)[\"']", self.text):
            base = os.path.basename(saved)
            if os.path.splitext(saved)[1] != suffix or os.path.normpath(saved) == os.path.normpath(name):
                continue
            plain = re.sub(r"\d+", "0", re.sub(r"\{[^}]*\}|%[ds]", "0", base))
            ratio = difflib.SequenceMatcher(None, plain, number).ratio()
            if ratio > best:
                best, found = ratio, saved
        return found

    def _is_refused(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge a refused request: network access, other programs, outside files, more time or memory."""
        result = self.done[number]
        network = (
            r"urlopen error|name resolution|Network is unreachable|Max retries|Connection|HTTPError|resolve|offline|"
            r"server socket"
        )
        if result.error and result.error["type"].startswith("spec."):
            result.error["type"] = kind
        if report["refused"] and (
            kind in ("RefusedError", "PermissionError", "OSError", "BlockingIOError") or "refused" in text
        ):
            what, value = report["refused"][-1]
            result.verdict, result.reason = "needs", (what, value)
        elif re.search(network, f"{kind} {text}") or (report["refused"] and report["refused"][-1][0] == "network"):
            result.verdict, result.reason = "needs", ("network", "")
        elif kind == "PermissionError":
            result.verdict, result.reason = "needs", ("files", text)
        elif kind == "MemoryError" or re.search(r"can't allocate memory|Cannot allocate memory|out of memory", text):
            result.verdict, result.reason = "needs", ("memory", "")
        elif kind == "Ended":
            result.verdict, result.reason = "needs", (report["error"]["reason"], text)
        elif kind in ("EOFError",) and "input" in self.listings[number].code:
            result.verdict, result.reason = "needs", ("input", "")
        else:
            return False
        result.cause = None
        return True

    def _is_device(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge an error about a device without a substitute, or about a missing back end."""
        result = self.done[number]
        if re.search(
            r"\b(?:mps|xpu|xla|MPS)\b|not compiled with|Invalid device id|NCCL|nccl|init_process_group|RANK expected|"
            r"invalid device ordinal",
            text,
        ):
            result.verdict, result.reason, result.cause = "needs", ("device", text.splitlines()[0][:120]), None
            return True
        earlier = [other for other in group if other < number and _asks_for_gpu(self.listings[other].code)]
        if (
            result.cause is not None
            and result.cause.id == "devices"
            and earlier
            and not _asks_for_gpu(self.listings[number].code)
        ):
            # an earlier listing moved the network to a GPU, which not all readers have
            result.verdict, result.cause = "needs", None
            result.reason = ("listing on a GPU", str(self.listings[earlier[0]].cell or self.listings[earlier[0]].line))
            return True
        return False

    def _is_placeholder(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge an error caused by a substitute: the input "1", or images with other content."""
        result = self.done[number]
        used = set(result.stand_ins)
        if kind == "IndexError" and "argv" in self.listings[number].code:
            result.verdict, result.reason, result.cause = "needs", ("arguments", "sys.argv"), None
            return True
        if "input" in used and kind in ("ValueError", "KeyError", "IndexError"):
            result.verdict, result.reason, result.cause = "needs", ("input", ""), None
            return True
        if (
            used & {"images", "folders"}
            and kind in ("ValueError", "KeyError", "IndexError", "UnidentifiedImageError")
            and result.cause is None
        ):
            result.verdict, result.reason = "needs", ("images", "")
            return True
        return False

    def _is_after_cut(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge an error after a loop that the check has cut: it counts only if the loop itself raises it."""
        result = self.done[number]
        cut = result.cuts or any(self.done[other].cuts for other in group if other < number)
        if not cut or self._inside_a_cut_loop(number, report):
            return False
        shapes = ("matrix_shapes", "broadcast", "dimensions", "shape_of_view", "channels")
        kinds = ("IndexError", "ValueError", "ZeroDivisionError", "KeyError", "StopIteration", "UnboundLocalError")
        if kind in kinds or (result.cause is not None and result.cause.id in shapes):
            result.verdict, result.reason, result.cause = "needs", ("time", ""), None
            return True
        return False

    def _after_the_error(self, number: int) -> set[str]:
        """The names that a failing listing would define at or after the line of its error."""
        listing, error = self.listings[number], self.done[number].error
        tree = listing.tree
        if tree is None or error is None:
            return self.names[number].defines
        line = error["line"] - listing.first + 1
        left = [node for node in tree.body if (node.end_lineno or node.lineno) >= line]
        return names_of("\n".join(ast.unparse(node) for node in left)).defines

    def _inside_a_cut_loop(self, number: int, report: dict[str, Any]) -> bool:
        tree, line = self.listings[number].tree, report["error"].get("own_line", 0)
        lines = {entry[0] for entry in report["cuts"]}
        loops = (node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)) if tree else ()
        return any(node.lineno in lines and node.lineno <= line <= (node.end_lineno or 0) for node in loops)

    def _is_dependent(self, number: int, group: list[int], report: dict[str, Any], kind: str, text: str) -> bool:
        """Judge an error that an earlier listing of the session raised too, or caused because it stopped early."""
        result = self.done[number]
        for other in group:
            earlier = self.done[other]
            if other >= number or earlier.verdict not in ("needs", "fails") or earlier.error is None:
                continue
            after = self._after_the_error(other) if earlier.verdict == "fails" else self.names[other].defines
            if set(self.names[number].needs) & after:
                result.verdict, result.cause = "needs", None
                result.reason = ("listing", str(earlier.listing.cell or earlier.listing.line))
                return True
        return False


def _vanished(number: int, ended: dict[str, Any]) -> dict[str, Any]:
    """The report of a listing that ended its process, or that ended with its process."""
    reason = ended["reason"] or "ended"
    message = f"the process ended with status {ended['status']}"
    if "failed" in ended:
        message += ": " + ended["failed"].strip().splitlines()[-1]
    error = {"type": "Ended", "message": message, "line": 0, "index": number, "frames": [], "reason": reason}
    return {
        "index": number, "error": error, "out": [], "shown": [], "warnings": [], "cuts": [],
        "stand_ins": [], "refused": [], "seconds": 0.0, "prints_on": False,
    }  # fmt: skip


def _quoted(text: str) -> str:
    """The first text in quotation marks, or the whole."""
    found = re.search(r"'([^']+)'", text)
    return found[1] if found else text


def _asks_for_gpu(code: str) -> bool:
    return re.search(r"\.cuda\s*\(|[\"']cuda(?::\d)?[\"']|device_ids", code) is not None


def _lacks_gpu(report: dict[str, Any]) -> bool:
    error = report["error"]
    return (
        error is not None
        and re.search(
            r"not compiled with CUDA|NVIDIA driver|No CUDA GPUs|no CUDA-capable|CUDA is not available|"
            r"CUDA unknown error|Attempting to deserialize object on a CUDA|\bcuda\b.*not available",
            error["message"],
            re.IGNORECASE,
        )
        is not None
    )


def _similar(name: str, defined: set[str], certain: bool) -> str:
    """The defined name that `name` misspells, or ""."""
    if not certain or len(name) < 4:
        return ""
    for other in sorted(defined):
        if len(other) < 4 or other == name:
            continue
        close = other.lower() == name.lower() or _distance(name, other) <= (1 if len(name) < 7 else 2)
        if close and (not re.search(r"\d", name + other) or re.sub(r"\d", "", name) != re.sub(r"\d", "", other)):
            return other
        if other.endswith("_" + name) or name.endswith("_" + other):
            return other
    return ""


def _distance(a: str, b: str) -> int:
    """The edit distance: letters to insert, delete, replace or exchange with a neighbour."""
    if abs(len(a) - len(b)) > 2:
        return 9
    rows = [list(range(len(b) + 1))]
    for i, left in enumerate(a, start=1):
        row = [i]
        for j, right in enumerate(b, start=1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def _bound_later(listing: Listing, name: str) -> set[str]:
    return {name} & names_of(listing.code).defines


# Fixing


def _fix(found: list[Result], options: Options, keeper: Keeper) -> None:
    """Fix known causes, and check the listings again."""
    changed = []
    listings = [result.listing for result in found]
    for number, result in enumerate(found):
        code = result.listing.code
        line = 0
        if result.error and result.error["line"]:
            line = result.error["line"] - result.listing.first + 1
        known = [result.cause] if result.cause else []
        known += [warning["cause"] for warning in result.warned if warning["cause"]]
        known += result.notes if result.verdict in ("runs", "warns") else []
        for cause in known:
            code = fixes.apply(cause, code, line)
        if code != result.listing.code:
            listings[number] = replace(result.listing, code=code)
            changed.append(number)
    if not changed:
        return
    again = Check(listings, replace(options, fix=False), keeper, lambda _: None).results()
    for number in changed:
        found[number].fixed = {
            "code": listings[number].code,
            "verdict": again[number].verdict,
            "error": again[number].error,
        }


def write_fixed(document: Document, path: Path) -> None:
    """Write a copy of a document with the fixed listings."""
    text = document.path.read_bytes().decode("utf-8-sig")
    end = "\r\n" if "\r\n" in text else "\n"
    changed = [result for result in document.results if result.fixed and result.fixed["code"] != result.listing.code]
    if document.path.suffix == ".ipynb":
        book = json.loads(text)
        for result in changed:
            assert result.fixed is not None
            book["cells"][result.listing.cell - 1]["source"] = result.fixed["code"].splitlines(keepends=True)
        with atomic_write(path) as file:
            file.write((json.dumps(book, indent=1, ensure_ascii=False) + "\n").encode())
        return
    lines = text.splitlines()
    for result in sorted(changed, key=lambda each: -each.listing.first):
        assert result.fixed is not None
        listing = result.listing
        start, count = listing.first - 1, len(listing.printed.splitlines())
        shown = lines[start] if start < len(lines) else ""
        first = listing.printed.splitlines()[0] if listing.printed else ""
        indent = shown[: len(shown) - len(first)] if shown.endswith(first) else ""
        lines[start : start + count] = [f"{indent}{line}".rstrip() for line in result.fixed["code"].splitlines()]
    with atomic_write(path) as file:
        file.write((end.join(lines) + end).encode())
