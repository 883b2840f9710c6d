"""Chapters 17 and 20: using a trained network: the newest run, its scores, images with answers, and other formats."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from reference import export as exporting
from reference.checkpoint import build_network, load_checkpoint, save_checkpoint
from reference.data.shapes import Shapes
from reference.errors import InputError
from reference.export import KINDS, SUFFIXES, export
from reference.inference import checkpoint_of, newest_checkpoint, predict
from reference.models import Ocean
from spec.support.clauses import clause
from spec.support.command import SCRIPTS, run

NAMES = ["飞机", "car", *map(str, range(8))]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """`best.pt` of a run with classes of several scripts."""
    torch.manual_seed(1)
    folder = tmp_path / "runs/a run"
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.pt", Ocean(), NAMES)
    return folder / "best.pt"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    found = []
    for number, pixels in enumerate(Shapes(train=False, size=3).images):
        found.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(found[-1])
    return found


# ------------------------------------------------------------------------------------------------ predict.py


@clause("20.script.newest")
def test_the_newest_run_has_the_latest_best_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished epoch of a run is in .*runs/"):
        newest_checkpoint(tmp_path / "runs")
    for age, name in ((1, "b"), (3, "a/seed-0"), (2, "c")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        path = tmp_path / "runs" / name / "best.pt"
        path.touch()
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert newest_checkpoint(tmp_path / "runs") == tmp_path / "runs/b/best.pt"


@clause("20.script.newest", "20.script.verbose", "20.script.save")
@pytest.mark.slow
def test_predict_uses_the_newest_run_prints_scores_and_saves_the_images(
    checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    result = run("predict.py", "0.png", "1.png", "--verbose", "--save", "answers.png", folder=tmp_path)
    assert result.status == 0, result.err
    assert f"using the newest run: {checkpoint.relative_to(tmp_path)}" in result.err
    network = build_network(load_checkpoint(checkpoint)).eval()
    with torch.no_grad():
        scores = network(Shapes(train=False, size=1).images / 255)
    blocks = result.out.split(".png: ")
    assert len(blocks) == 3
    assert f"tensor([{int(scores.argmax())}])" in blocks[1]  # chapter 20, line 2107
    shown = blocks[1][blocks[1].index("tensor([[") :].split("tensor([")[1]
    printed = torch.tensor([float(word.strip("[]) \n")) for word in shown.split(",")])
    torch.testing.assert_close(printed, scores[0], rtol=0, atol=1e-4)  # printed with 4 digits
    with Image.open(tmp_path / "answers.png") as sheet:
        assert sheet.width == 2 * 128


@clause("20.script.schema")
@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--verbose",), ("--top-k", 99)], ids=str)
def test_predict_json_follows_the_schema(
    words: tuple[Any, ...], checkpoint: Path, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_text("no image")
    result = run("predict.py", "0.png", "broken.png", "--json", *words, folder=tmp_path)
    assert result.status == 2
    schema = json.loads((SCRIPTS.parent / "docs/predict.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    answers = json.loads(result.out)
    jsonschema.validate(answers, schema)
    assert [answer["class"] is None for answer in answers] == [False, True]
    assert ("scores" in answers[0]) == ("--verbose" in words)


@clause("20.script.verbose")
def test_predictions_contain_scores_and_probabilities(images: list[Path]) -> None:
    torch.manual_seed(1)
    for answer in predict(Ocean(), NAMES, images):
        assert answer.scores is not None
        assert answer.classes[0][0] == NAMES[int(answer.scores.argmax())]
        # both are softmax in float64, over ten classes: a few roundings of 1e-16
        assert answer.classes[0][1] == pytest.approx(float(answer.scores.softmax(0).max()), rel=1e-12)


# ------------------------------------------------------------------------------------------------ export.py


def scores_of(path: Path, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The scores and the metadata of an exported file, read without the project's export code."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = Ocean(classes=10)
        network.load_state_dict(state)
        return network(images), {name: json.loads(text) for name, text in about.items()}
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        about = session.get_modelmeta().custom_metadata_map
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(np.asarray(found)), {name: json.loads(about[name]) for name in about}
    if path.suffix == ".pt2":
        extra = {"class_names": "", "preprocessing": ""}
        program = torch.export.load(path, extra_files=extra)
        return program.module()(images), {name: json.loads(text) for name, text in extra.items()}
    network = torch.load(path, weights_only=False)  # chapter 17's method 1
    return network(images), {"class_names": network.class_names, "preprocessing": network.preprocessing}


@clause("20.export.kinds")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_exported_file_gives_equal_scores_and_contains_class_names(
    kind: exporting.Kind, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"network{SUFFIXES[kind]}"
    difference = export(checkpoint, kind, output)
    images = Shapes(train=False, size=7).images / 255  # a number of images that differs from the trace
    with torch.no_grad():
        expected = build_network(load_checkpoint(checkpoint)).eval()(images)
        found, about = scores_of(output, images)
    assert about["class_names"] == NAMES
    assert about["preprocessing"] == {"size": [32, 32], "mode": "RGB", "scale": 255}
    # a sum of 1024 terms in another order: 1024 · 2⁻²³, relative to scores below 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1024 * 2**-23)
    assert difference <= 1024 * 2**-23
    assert output.stat().st_size < 700_000, "145,578 numbers of 4 bytes, and what describes them"


@clause("20.export.kinds")
@pytest.mark.slow
def test_export_script_accepts_a_run_and_reports_the_verification(checkpoint: Path, tmp_path: Path) -> None:
    result = run("export.py", "runs/a run", "--to", "whole-module", folder=tmp_path)
    assert result.status == 0, result.err
    assert result.out.startswith("runs/a run/network.pth: ")
    assert "its scores of 100 images differ from the network's by at most 0" in " ".join(result.out.split())
    assert "runs code of the file" in " ".join(result.err.split())
    result = run("export.py", folder=tmp_path)  # the newest run
    assert result.status == 0, result.err
    assert checkpoint.with_name("network.safetensors").exists()


@clause("20.export.refused")
def test_an_export_with_different_scores_is_refused_and_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = exporting.WAYS["safetensors"]

    def wrong(path: Path, about: dict[str, Any]) -> Any:
        network = read(path, about)
        return lambda images: network(images) + 0.01

    monkeypatch.setitem(exporting.WAYS, "safetensors", (write, wrong))
    with pytest.raises(InputError, match=r"scores of the file differ from the network's by 0\.01; not written"):
        export(checkpoint, "safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@clause("20.export.refused")
def test_a_missing_package_is_named_with_the_remedy(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'--to onnx needs onnx, .*: python -m pip install -e "\.\[export\]"'):
        export(checkpoint, "onnx", tmp_path / "out.onnx")


@clause("20.export.refused")
def test_export_takes_the_best_checkpoint_of_a_run_or_the_named_file(checkpoint: Path, tmp_path: Path) -> None:
    assert checkpoint_of(checkpoint) == checkpoint_of(checkpoint.parent) == checkpoint
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match=r"new holds no best\.pt: its training has not finished an epoch$"):
        checkpoint_of(tmp_path / "new")


@clause("20.export.refused")
@pytest.mark.slow
def test_a_run_without_a_finished_epoch_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    result = run("export.py", "run", folder=tmp_path)
    assert (result.status, result.out) == (2, "")
    assert result.err == "error: run holds no best.pt: its training has not finished an epoch\n"
