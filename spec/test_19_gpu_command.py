"""Chapter 19: the command that runs and records everything that needs a GPU keeps its results after any failure.

`benchmarks/gpu.py` and its helpers are tested with small parts; the real parts are rehearsed by `python -m
benchmarks.gpu --rehearse`.
"""

import importlib
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import reference.device
from benchmarks import figures, gpu, pack
from benchmarks.gpu_parts import on_the_device, tf32
from benchmarks.strict import dump, line
from spec.support.clauses import clause
from spec.support.versions import tf32_settings

ROOT = Path(__file__).parents[1]
RECORD = "import os, json; f = open(os.environ['OCEAN_RECORD'], 'a'); "


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parts be killed soon after their time limit."""
    monkeypatch.setattr(gpu, "REHEARSAL", 1.0)
    monkeypatch.setattr(gpu, "GRACE", 1.0)


def part(name: str, seconds: float, program: str, *, beside: bool = False) -> gpu.Part:
    """A part that runs a line of Python."""
    return gpu.Part(name, seconds, ("-c", program), ("-c", program), beside)


def strictly(path: Path) -> Any:
    """A JSON file, read by a reader that knows no NaN and no infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{path.name} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@clause("19.gpu.command")
@pytest.mark.slow
def test_a_failed_or_timed_out_part_keeps_all_recorded_figures(tmp_path: Path) -> None:
    one = "f.write(json.dumps({'figure': 1}) + '\\n'); f.flush(); "
    parts = (
        part("good", 30, RECORD + one),
        part("broken", 30, RECORD + one + "raise SystemExit('this went wrong')"),
        part("endless", 1.5, RECORD + one + "f.write('{\"cut'); f.flush(); import time; time.sleep(100)"),
        part("deaf", 1.5, RECORD + one + "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(100)"),
        part("last", 30, RECORD + one),
    )
    content = gpu.run(parts, tmp_path / "out", tmp_path / "nothing packed", 60, rehearse=True, preparation=())
    assert strictly(tmp_path / "out/gpu.json") == json.loads(json.dumps(content))
    assert {name: entry["status"] for name, entry in content["parts"].items()} == {
        "good": "done",
        "broken": "failed with exit status 1",
        "endless": "reached its limit",
        "deaf": "reached its limit",
        "last": "done",
    }
    assert all(entry["figures"] == [{"figure": 1}] for entry in content["parts"].values())
    assert "this went wrong" in content["parts"]["broken"]["last output"]
    assert "this went wrong" in (tmp_path / "out/gpu.log").read_text(encoding="utf-8")
    assert content["seconds"] < 30


@clause("19.gpu.command")
@pytest.mark.slow
def test_the_record_is_whole_after_every_part_and_parts_beside_each_other_overlap(tmp_path: Path) -> None:
    """Each part reads the record when it starts; two parallel parts wait for each other."""
    seen = tmp_path / "out/gpu.json"
    look = f"{RECORD}f.write(json.dumps({{'seen': [*json.load(open({str(seen)!r}))['parts']]}}) + '\\n')"
    meet = (
        "import pathlib, time; here, there = map(pathlib.Path, ({0!r}, {1!r})); here.touch(); end = time.time() + 20\n"
        "while not there.exists(): assert time.time() < end; time.sleep(0.01)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    parts = (
        part("first", 30, "pass"),
        part("second", 30, look),
        part("one", 30, meet.format(a, b)),
        part("other", 30, meet.format(b, a), beside=True),
    )
    content = gpu.run(parts, tmp_path / "out", tmp_path / "nothing packed", 60, rehearse=True, preparation=())
    assert content["parts"]["second"]["figures"] == [{"seen": ["first"]}]
    assert [entry["status"] for entry in content["parts"].values()] == ["done"] * 4
    assert strictly(seen)["format"] == 1


@clause("19.gpu.command")
@pytest.mark.slow
def test_parts_beyond_the_time_limit_are_recorded_as_not_run(tmp_path: Path) -> None:
    parts = (part("long", 60, "import time; time.sleep(100)"), part("never", 60, "pass"))
    content = gpu.run(parts, tmp_path / "out", tmp_path / "nothing packed", 2.5, rehearse=True, preparation=())
    assert content["parts"]["long"]["status"] == "reached its limit"
    assert content["parts"]["never"] == {"status": "not run: the time was used up", "figures": []}
    assert content["seconds"] < 2.5 + gpu.GRACE + 2


@clause("19.gpu.command")
def test_parts_have_different_names_and_documented_time_limits() -> None:
    names = [one.name for one in gpu.PARTS]
    assert len(set(names)) == len(names)
    for document in figures.DOCUMENTS.values():
        text = document.read_text(encoding="utf-8")
        rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", text, re.M)
        said: dict[str, float] = {}
        for left, right in rows:
            first, *others = re.findall(r"`([^`]+)`", left)
            full = [first, *(first.rpartition("-off")[0] + other for other in others)]
            said |= dict(zip(full, map(float, re.findall(r"\d+", right)), strict=True))
        assert said == {one.name: one.seconds for one in gpu.PARTS}, document.name


@clause("19.gpu.command")
def test_numbers_that_are_not_finite_are_null_in_the_record() -> None:
    content = {"a": [float("nan"), 1.5], "b": {"c": (float("inf"), -float("inf"), 3)}}
    expected = {"a": [None, 1.5], "b": {"c": [None, None, 3]}}
    assert json.loads(dump(content)) == expected
    assert json.loads(line(content)) == expected
    assert line(content).count("\n") == 1


@clause("19.gpu.command")
@pytest.mark.slow
def test_outcomes_are_counted_and_failures_named_while_the_tests_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(250))\ndef test_good(n): pass\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "def test_left_out(): pytest.skip('there is no moon')\n"
        "def test_recorded(record_property): record_property('samples', 7)\n",
        encoding="utf-8",
    )
    one = gpu.pytest_part("tests", 60, (), (str(tmp_path / "test_it.py"), "-n", "0", "-c", "/dev/null"))
    content = gpu.run((one,), tmp_path / "out", tmp_path / "nothing packed", 90, rehearse=True, preparation=())
    found = content["parts"]["tests"]["figures"]
    counted = [(figure["outcome"], figure["count"]) for figure in found if "count" in figure]
    assert sum(count for outcome, count in counted if outcome == "passed") == 251
    assert ("passed", 100) in counted  # written before the end
    (failed,) = [figure for figure in found if figure.get("outcome") == "failed (call)"]
    assert failed["test"].endswith("test_it.py::test_bad")
    assert "one is not two" in failed["message"]
    assert [figure["reason"] for figure in found if figure.get("outcome") == "skipped"] == ["there is no moon"]
    assert [figure["recorded"] for figure in found if "recorded" in figure] == [{"samples": 7}]


@clause("19.gpu.command")
def test_overlapping_kernels_count_once_in_the_time_of_the_gpu() -> None:
    def event(category: str, start: float, length: float, name: str = "k") -> dict[str, Any]:
        return {"cat": category, "ts": start, "dur": length, "name": name}

    busy, count, longest = on_the_device(
        [
            event("kernel", 10, 4, "a"),
            event("cpu_op", 0, 100),
            event("gpu_user_annotation", 0, 100),
            event("kernel", 12, 4, "b"),  # two of its microseconds are a's as well
            event("gpu_memcpy", 30, 2, "copy"),
            event("kernel", 31, 0.5, "b"),  # within the copy
            {"cat": "kernel", "ts": 1, "name": "not ended"},
        ]
    )
    assert busy == pytest.approx(8e-6)
    assert count == 4
    assert longest[0] == {"name": "b", "share": round(4.5 / 10.5, 3)}


@clause("19.gpu.command")
def test_tf32_can_be_allowed_in_a_training_that_asks_for_float32() -> None:
    settings, name, fast, exact = tf32_settings()
    before = [getattr(setting, name) for setting in settings]
    cuda = torch.device("cuda", 0)
    train = importlib.import_module("reference.run.train")
    try:
        with tf32(True, cuda):
            assert train.choose_precision("float32", cuda) == torch.float32
            assert {getattr(setting, name) for setting in settings} == {fast}
        assert train.choose_precision is reference.device.choose_precision
        with tf32(False, cuda):
            train.choose_precision("float32", cuda)
            assert {getattr(setting, name) for setting in settings} == {exact}
    finally:
        for setting, was in zip(settings, before, strict=True):
            setattr(setting, name, was)


# The documents


def example(*, rehearsal: bool) -> dict[str, Any]:
    """A record with one figure of each kind; no measurement."""
    training = {"compile": "off", "precision": "TF32"}
    return {
        "date": "2001-02-03T04:05:06+00:00",
        "rehearsal": rehearsal,
        "environment": {"GPU": "Example 9000", "torch": "9.8.7", "cuda": "6.5", "cuDNN": 43, "driver": None}
        | {"python": "3.2.1", "cores": 5},
        "parts": {
            "tests": {"status": "done", "seconds": 3.0, "figures": [{"outcome": "passed", "count": 7}]},
            "tutorial": {
                "status": "done",
                "seconds": 1,
                "figures": [
                    {"device": "cuda:0", "epoch": 1, "seconds": 7.0},
                    {"device": "cuda:0", "epochs": 10, "seconds": 71.5, "milliseconds_a_step": 2.0},
                    {"device": "cpu", "milliseconds_a_step": 9.0},
                ],
            },
            "trainings-off": {
                "status": "done",
                "figures": [
                    training
                    | {"seconds": 12.25, "images_per_second": [5, 61_234, 70_000], "test_accuracy": 0.55555}
                    | {"epochs": 10},
                    training | {"peak_mib": 321.0},
                ],
            },
            "fast": {
                "status": "reached its limit",
                "figures": [
                    {"images": 6400, "epochs": 1, "seconds": seconds, "test_accuracy": accuracy}
                    for seconds, accuracy in ((0.5, 0.57), (0.6, 0.59), (0.7, 0.58))
                ],
            },
        },
    }


@clause("19.gpu.figures")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_recorded_run_is_shown_with_device_versions_and_date(language: str) -> None:
    text = figures.render({"a.json": example(rehearsal=False)}, language)
    for expected in (
        *("Example 9000", "2001-02-03", "9.8.7", "6.5", "3.2.1", "(figures/a.json)", "71.5", "4.50", "9.00", "2.00"),
        *("TF32", "61,234", "0.5555", "321 MiB", "6,400", "0.5800 ± 0.0100", "7 passed", "reached its limit"),
    ):
        assert expected in text, expected


@clause("19.gpu.figures")
@pytest.mark.parametrize(("language", "words"), [("en", "Not yet measured"), ("zh", "尚未测量")])
def test_without_a_run_on_a_gpu_the_documents_say_that_nothing_is_measured(language: str, words: str) -> None:
    assert words in figures.render({}, language)
    assert words in figures.render({"a.json": example(rehearsal=True)}, language)


@clause("19.gpu.figures")
def test_the_documents_show_the_recorded_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", "--check"])
    assert figures.main() == 0, capsys.readouterr().out


@clause("19.gpu.figures")
def test_only_the_text_between_the_markers_is_replaced() -> None:
    document = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"
    assert figures.filled(document, "new") == f"before\n{figures.BEGIN}\n\nnew\n\n{figures.END}\nafter\n"
    with pytest.raises(ValueError, match="figures: begin"):
        figures.filled("no markers", "new")


# The packed files


@clause("19.gpu.pack")
def test_the_packed_wheels_are_the_requirements_that_the_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.11", "tqdm>=4", "Pillow>=12"]\n'
        '[project.optional-dependencies]\ntest = ["pytest>=9", "torch_vision"]\n',
        encoding="utf-8",
    )
    found = pack.requirements(tmp_path / "pyproject.toml", ("torch", "pillow", "torch-vision"))
    assert found == ["tqdm>=4", "pytest>=9", *pack.MORE]


@clause("19.gpu.pack")
def test_image_folders_are_packed_and_unpacked_and_others_are_refused(tmp_path: Path) -> None:
    for half in ("train", "test"):
        (tmp_path / f"data/{half}/cat").mkdir(parents=True)
        (tmp_path / f"data/{half}/cat/0.png").write_bytes(half.encode())
    (tmp_path / "data/.ocean-cache").mkdir()
    pack.images(tmp_path / "data", tmp_path / "images.tar.gz")
    gpu.unpack(tmp_path / "images.tar.gz", tmp_path / "there")
    assert (tmp_path / "there/train/cat/0.png").read_bytes() == b"train"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["test", "train"]
    pack.images(tmp_path / "images.tar.gz", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == (tmp_path / "images.tar.gz").read_bytes()
    with pytest.raises(SystemExit, match="there is no folder train in it"):
        pack.images(tmp_path / "there/train", tmp_path / "none.tar.gz")


@clause("19.gpu.pack")
def test_archive_members_outside_the_target_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "file", "../outside")
    with pytest.raises(tarfile.OutsideDestinationError):
        gpu.unpack(tmp_path / "bad.tar.gz", tmp_path / "inside")
    assert not (tmp_path / "outside").exists()


@clause("19.gpu.pack")
def test_the_packed_folder_is_ignored_by_git() -> None:
    assert gpu.PACKED.relative_to(ROOT).parts[0] == "build"
    assert "/build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
