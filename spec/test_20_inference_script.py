"""Chapter 20: `scripts/predict.py`."""

import json
import os
import signal
from pathlib import Path

import pytest

from reference import inference
from reference.checkpoint import save_checkpoint
from reference.data.shapes import Shapes
from spec.support.clauses import clause
from spec.support.command import Command, Result, run
from spec.support.prediction import EXACT_SCORES, NAMES, assert_answer, by_the_recipe, exact_ocean, noise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint and three images."""
    save_checkpoint(tmp_path / "net.pt", exact_ocean(), NAMES)
    for number in range(3):
        noise(tmp_path / f"{number}.png", seed=number)
    return tmp_path


def ask(folder: Path, *words: object) -> Result:
    return run("predict.py", *words, folder=folder)


@clause("20.script.text")
@pytest.mark.slow
def test_the_script_names_the_checkpoints_classes_with_probabilities(folder: Path) -> None:
    result = ask(folder, "0.png", "1.png", "--checkpoint", "net.pt", "--top-k", 2)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["0.png", "1.png"]
    for line in lines:
        expected, _ = by_the_recipe(exact_ocean(), folder / line.partition(": ")[0])
        best = sorted(expected, key=lambda name: -expected[name])[:2]
        assert line.partition(": ")[2] == f"{best[0]} {expected[best[0]]:.1%}, {best[1]} {expected[best[1]]:.1%}"


@clause("20.script.json")
@pytest.mark.slow
def test_the_script_prints_json(folder: Path) -> None:
    (folder / "broken.png").write_text("no image")
    result = ask(folder, "0.png", "broken.png", "--checkpoint", "net.pt", "--json", "--top-k", 99)
    assert result.status == 2  # because of the broken one
    answers = json.loads(result.out)
    assert result.out == json.dumps(answers, indent=2, ensure_ascii=False) + "\n"
    first, second = answers
    assert (first["image"], first["error"]) == ("0.png", None)
    named = [(entry["name"], entry["probability"]) for entry in first["classes"]]
    expected, _ = by_the_recipe(exact_ocean(), folder / "0.png")
    assert_answer(inference.Prediction(folder / "0.png", named), folder / "0.png", expected, 10, EXACT_SCORES)
    assert second["classes"] == []
    assert "broken.png" in second["error"]
    assert len(result.err.splitlines()) == 1


@clause("20.script.json")
@pytest.mark.slow
def test_json_output_without_readable_images_is_a_list(folder: Path) -> None:
    (folder / "empty").mkdir()
    result = ask(folder, "empty", "--checkpoint", "net.pt", "--json")
    assert result.status == 2
    [answer] = json.loads(result.out)
    said = "empty: there are no images in this folder (such as .jpg or .png)"
    assert answer == {"image": "empty", "class": None, "classes": [], "error": said}


@clause("20.script.json", "20.script.text")
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.slow
def test_undecodable_file_names_are_printed_escaped(folder: Path, words: tuple[str, ...]) -> None:
    """File names that are not valid UTF-8 are escaped; Chinese names are printed unchanged."""
    for name in (b"\xff.png", "猫.png".encode()):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write((folder / "0.png").read_bytes())
    result = ask(folder, ".", *words, "--checkpoint", "net.pt")
    assert (result.status, result.err) == (0, "")
    assert "猫.png" in result.out
    if words:
        assert [answer["image"] for answer in json.loads(result.out)][-2:] == ["猫.png", "\udcff.png"]


def program(stdout: str, *words: str) -> str:
    """A program that runs the script with another standard output."""
    script = str(Path(__file__).parents[1] / "scripts" / "predict.py")
    return (
        f"import runpy, sys\nsys.stdout = {stdout}\nsys.argv = {['predict.py', *words]!r}\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )


WAITING = """
import time
from pathlib import Path
import reference.inference as inference

def open_later(path, size, read=inference.open_image):
    while Path(path).name == "later.png" and not Path("go").exists():
        time.sleep(0.005)
    return read(path, size)

inference.open_image = open_later
"""
"""The start of a program in which reading `later.png` waits until a file `go` exists."""


@clause("20.script.streams")
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.slow
def test_predictions_are_printed_as_soon_as_available(folder: Path, words: tuple[str, ...]) -> None:
    """Answers are printed at once, also if output is buffered, as into a file."""
    asked = ("0.png", "later.png", "1.png", "--batch-size", "1", "--checkpoint", "net.pt", *words)
    (folder / "buffered.py").write_text(WAITING + program("open(1, 'w', 65536, closefd=False)", *asked))
    command = Command(str(folder / "buffered.py"), folder=folder)
    command.wait_for('"error": null\n  }' if words else "0.png")
    assert command.process.is_alive()
    (folder / "later.png").write_bytes(b"no image")
    (folder / "go").touch()
    result = command.wait()
    assert result.status == 2
    assert result.err.startswith("error: later.png: not a readable image")
    assert "1.png" in result.out


@clause("20.script.errors")
@pytest.mark.slow
def test_boolean_flags_have_a_negation_and_the_last_one_wins(folder: Path) -> None:
    result = ask(folder, "0.png", "--checkpoint", "net.pt", "--legacy", "--no-legacy", "--json", "--no-json")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("0.png: ")


@clause("20.script.folders")
@pytest.mark.slow
def test_the_script_takes_folders(folder: Path) -> None:
    (folder / "more" / "inner").mkdir(parents=True)
    for name in ("more/b.png", "more/a.png", "more/inner/c.png"):
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    result = ask(folder, "1.png", "more", "--checkpoint", "net.pt", "--batch-size", 3)
    assert result.status == 0, result.err
    assert [line.partition(": ")[0] for line in result.out.splitlines()] == [
        *("1.png", "more/a.png", "more/b.png", "more/inner/c.png")
    ]  # fmt: skip


@clause("20.script.streams")
@pytest.mark.slow
def test_a_folder_of_thousands_of_images_is_predicted(folder: Path) -> None:
    """The script finishes; the tests of `predict` on streams cover its memory."""
    (folder / "many").mkdir()
    for number in range(4000):
        os.link(folder / "0.png", folder / "many" / f"{number:04}.png")
    result = run("predict.py", "many", "--checkpoint", "net.pt", folder=folder)
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) == 4000


@clause("20.script.streams")
@pytest.mark.slow
def test_a_closed_stdout_pipe_ends_the_script_quietly(folder: Path) -> None:
    """`predict.py … | head -1` ends without a message."""
    os.mkfifo(folder / "pipe")
    words = (*["0.png"] * 9, "--batch-size", "1", "--checkpoint", "net.pt")
    (folder / "piped.py").write_text(program("open('pipe', 'w', buffering=1)", *words))
    command = Command(str(folder / "piped.py"), folder=folder)
    with open(folder / "pipe") as reader:
        assert reader.readline().startswith("0.png: ")
    result = command.wait()
    assert (result.status, result.err) == (0, "")


@clause("20.script.errors")
@pytest.mark.slow
def test_a_missing_checkpoint_is_an_error_in_one_line(folder: Path) -> None:
    result = ask(folder, "0.png", "--checkpoint", "none.pt")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: none.pt cannot be read: No such file or directory\n"


@clause("20.script.errors")
@pytest.mark.slow
def test_a_call_without_images_is_an_error_in_one_line(folder: Path) -> None:
    result = ask(folder, "--checkpoint", "net.pt", "--json")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: IMAGE is missing: name at least one image or folder\n"


@clause("20.script.errors")
@pytest.mark.parametrize("words", [("--top-k", 0), ("--batch-size", 0)])
@pytest.mark.slow
def test_invalid_batch_size_and_top_k_are_one_line_errors(folder: Path, words: tuple[object, ...]) -> None:
    result = ask(folder, "0.png", "--checkpoint", "net.pt", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: top_k and batch_size must be at least 1, got ")
    assert len(result.err.splitlines()) == 1


@clause("20.script.errors")
@pytest.mark.slow
def test_ctrl_c_exits_with_status_130(folder: Path) -> None:
    asked = ("0.png", "later.png", "--batch-size", "1", "--checkpoint", "net.pt")
    (folder / "later.png").touch()
    (folder / "waits.py").write_text(WAITING + program("sys.stdout", *asked))
    command = Command(str(folder / "waits.py"), folder=folder)
    command.wait_for("0.png")
    command.send(signal.SIGINT)
    result = command.wait()
    assert (result.status, result.err) == (130, "interrupted\n")


@clause("20.predict.calibration")
@pytest.mark.slow
def test_the_help_promises_no_calibrated_probabilities(folder: Path) -> None:
    result = ask(folder, "--help")
    words = " ".join(result.out.replace("│", " ").split())
    assert "but they are not calibrated: of the answers given with 80 %, another share than 80 % may be right" in words


@clause("20.script.trained")
@pytest.mark.slow
def test_the_script_predicts_with_a_trained_run(tmp_path: Path) -> None:
    """From training to prediction: a network trained on ten images classifies them correctly."""
    words = ("--dataset", "shapes", "--limit-train", 10, "--limit-test", 10, "--batch-size", 5, "--quiet")
    more = ("--epochs", 50, "--learning-rate", 0.02, "--momentum", 0.5, "--log-every", 1000, "--num-threads", 1)
    assert run("train_full.py", *words, *more, "--output", "run", folder=tmp_path).status == 0
    shapes = Shapes(size=10)
    for number, (image, _) in enumerate(shapes):  # pyright: ignore[reportArgumentType]
        image.save(tmp_path / f"{number}.png")
    images = [f"{number}.png" for number in range(10)]
    result = ask(tmp_path, *images, "--checkpoint", "run/last.pt", "--json", "--top-k", 1)
    named = [answer["classes"][0]["name"] for answer in json.loads(result.out)]
    assert named == [shapes.classes[target] for target in shapes.targets.tolist()]
