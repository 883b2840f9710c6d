"""Chapter 20: what is on a picture: `predict`, and `scripts/predict.py`."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reference.checkpoint import save_checkpoint
from reference.data.shapes import Shapes
from reference.errors import InputError
from reference.inference import predict
from reference.models import Ocean
from spec.support.command import Result, run

NAMES = [f"class {letter}" for letter in "abcdefghij"]  # not the data set's: they must come from the checkpoint


@pytest.fixture
def network() -> Ocean:
    """A network whose answers differ from picture to picture."""
    torch.manual_seed(0)
    ocean = Ocean()
    with torch.no_grad():
        for parameter in ocean.parameters():
            parameter.mul_(3)
    return ocean


@pytest.fixture
def folder(tmp_path: Path, network: Ocean) -> Path:
    """A folder with a checkpoint and three pictures."""
    save_checkpoint(tmp_path / "net.pt", network, tuple(NAMES))
    for number, (picture, _) in enumerate(Shapes(size=3)):
        picture.save(tmp_path / f"{number}.png")
    return tmp_path


def ask(folder: Path, *words: object) -> Result:
    return run("predict.py", *words, folder=folder)


def by_the_recipe(network: Ocean, path: Path) -> dict[str, float]:
    """The tutorial's steps, lines 2066 to 2110, one picture at a time, with a softmax written out."""
    image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = torch.tensor(np.array(image).tolist(), dtype=torch.float32).permute(2, 0, 1) / 255
    network.eval()
    with torch.no_grad():
        scores = network(pixels.reshape(1, 3, 32, 32))[0].double()
    shares = scores.exp() / scores.exp().sum()
    return dict(zip(NAMES, shares.tolist(), strict=True))


def assert_close(found: list[tuple[str, float]], expected: dict[str, float], top_k: int) -> None:
    assert len(found) == top_k
    assert [name for name, _ in found] == sorted(expected, key=lambda name: -expected[name])[:top_k]
    # Scores are float32 sums of up to 1,024 products; an error e in a score is a factor exp(e) in a probability.
    tolerance = 1024 * torch.finfo(torch.float32).eps * 8
    for name, share in found:
        assert share == pytest.approx(expected[name], rel=tolerance), name


def test_the_answer_is_the_recipe_s(folder: Path, network: Ocean) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "larger.png")
    paths = [folder / name for name in ("0.png", "1.png", "2.png", "larger.png")]
    answers = list(predict(network, NAMES, paths, top_k=10))
    assert [answer.picture for answer in answers] == paths
    for path, answer in zip(paths, answers, strict=True):
        assert_close(answer.classes, by_the_recipe(network, path), 10)
        assert sum(share for _, share in answer.classes) == pytest.approx(1, abs=10 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_the_batch_size_does_not_change_the_answers(folder: Path, network: Ocean, batch_size: int) -> None:
    paths = [folder / f"{number}.png" for number in (2, 0, 1, 0)]
    answers = list(predict(network, NAMES, paths, batch_size=batch_size))
    for path, answer in zip(paths, answers, strict=True):
        assert_close(answer.classes, by_the_recipe(network, path), 3)


def test_pictures_are_read_a_batch_at_a_time(folder: Path, network: Ocean) -> None:
    taken = []

    def pictures() -> Iterator[Path]:
        for number in range(3):
            taken.append(number)
            yield folder / f"{number}.png"

    answers = predict(network, NAMES, pictures(), batch_size=1)
    next(answers)
    assert taken == [0]


def test_a_network_in_training_mode_is_put_into_evaluation_mode(folder: Path, network: Ocean) -> None:
    list(predict(network.train(), NAMES, [folder / "0.png"]))
    assert not network.training


def test_a_picture_that_cannot_be_read_does_not_end_the_others(folder: Path, network: Ocean) -> None:
    (folder / "broken.png").write_text("no picture")
    paths = [folder / name for name in ("0.png", "broken.png", "absent.png", "1.png")]
    answers = list(predict(network, NAMES, paths))
    assert [bool(answer.error) for answer in answers] == [False, True, True, False]
    assert "broken.png" in str(answers[1].error)
    assert "absent.png" in str(answers[2].error)
    assert_close(answers[3].classes, by_the_recipe(network, folder / "1.png"), 3)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"batch_size": 0}])
def test_impossible_figures_are_rejected(folder: Path, network: Ocean, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        list(predict(network, NAMES, [folder / "0.png"], **wrong))


# ------------------------------------------------------------------------------------------------ the script


def test_the_script_names_the_checkpoint_s_classes_with_probabilities(folder: Path, network: Ocean) -> None:
    result = ask(folder, "0.png", "1.png", "--checkpoint", "net.pt", "--top-k", 2)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["0.png", "1.png"]
    expected = by_the_recipe(network, folder / "0.png")
    best = sorted(expected, key=lambda name: -expected[name])[:2]
    assert lines[0] == f"0.png: {best[0]} {expected[best[0]]:.1%}, {best[1]} {expected[best[1]]:.1%}"


def test_the_script_prints_json(folder: Path, network: Ocean) -> None:
    (folder / "broken.png").write_text("no picture")
    result = ask(folder, "0.png", "broken.png", "--checkpoint", "net.pt", "--json", "--top-k", 99)
    assert result.status == 2  # because of the broken one
    first, second = json.loads(result.out)
    assert (first["picture"], first["error"]) == ("0.png", None)
    found = [(entry["name"], entry["probability"]) for entry in first["classes"]]
    assert_close(found, by_the_recipe(network, folder / "0.png"), 10)
    assert second["classes"] == []
    assert "broken.png" in second["error"]
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode_get_an_answer(folder: Path, mode: str) -> None:
    suffix = "tiff" if mode in ("CMYK", "F") else "png"
    picture = Image.new("L", (40, 30), 90)
    (Image.new("I;16", (40, 30), 20_000) if mode == "I;16" else picture.convert(mode)).save(folder / f"it.{suffix}")
    assert ask(folder, f"it.{suffix}", "--checkpoint", "net.pt").status == 0


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (5000, 4000)], ids=lambda size: "x".join(map(str, size))
)
def test_pictures_of_every_size_get_an_answer(folder: Path, size: tuple[int, int]) -> None:
    Image.new("1", size, 1).save(folder / "it.png")  # one bit a pixel: the file and the picture stay small
    result = ask(folder, "it.png", "--checkpoint", "net.pt")
    assert result.status == 0, result.err


def test_a_checkpoint_that_is_not_there_is_said_in_one_line(folder: Path) -> None:
    result = ask(folder, "0.png", "--checkpoint", "none.pt")
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: none.pt cannot be read: No such file or directory\n"


@pytest.mark.slow
def test_the_script_answers_for_a_trained_run(tmp_path: Path) -> None:
    """From training to an answer: a network trained on ten pictures knows them by heart."""
    words = ("--dataset", "shapes", "--limit-train", 10, "--limit-test", 10, "--batch-size", 5, "--quiet")
    more = ("--epochs", 50, "--learning-rate", 0.02, "--momentum", 0.5, "--log-every", 1000, "--num-threads", 1)
    assert run("train_full.py", *words, *more, "--output", "run", folder=tmp_path).status == 0
    shapes = Shapes(size=10)
    for number, (picture, _) in enumerate(shapes):
        picture.save(tmp_path / f"{number}.png")
    pictures = [f"{number}.png" for number in range(10)]
    result = ask(tmp_path, *pictures, "--checkpoint", "run/last.pt", "--json", "--top-k", 1)
    named = [answer["classes"][0]["name"] for answer in json.loads(result.out)]
    assert named == [shapes.classes[target] for target in shapes.targets.tolist()]
