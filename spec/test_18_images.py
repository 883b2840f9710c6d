"""Chapter 18: the output of a training: images, model description, terminal, and checks of the data."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reference import messages
from reference.checkpoint import load_checkpoint
from reference.command_line import parse_arguments
from reference.data.image_tree import ImageTree
from reference.data.resident import ResidentLoader
from reference.data.shapes import Shapes
from reference.errors import InputError
from reference.fonts import font_file
from reference.messages import translated
from reference.models import Ocean
from reference.recipes import RECIPES
from reference.run import Settings, load_data, parse
from reference.run import train as run_training
from reference.run.description import description, interval, markdown
from reference.run.glance import findings
from reference.run.parts import prepare
from reference.run.plots import save_image, save_results
from reference.run.screen import Screen
from reference.text import print_wrapped, width
from reference.tracking import draw_confusion, draw_mistakes
from reference.training import Curve, Evaluation, Progress, confusion_matrix, evaluate, fit
from spec.support.clauses import clause
from spec.support.command import SCRIPTS, Command
from spec.test_18_training import TINY, assert_same_training, one_thread, train

__all__ = ["one_thread"]  # a fixture that every test here uses

SHOWN = (*TINY, "--plots", "--precision", "float32")
IMAGES = ("results.png", "confusion.png", "mistakes.png", "data.png")


def finished(classes: int, epochs: int = 2) -> tuple[Progress, dict[str, Any]]:
    """The progress of a training with made-up results, and its data."""
    targets = torch.arange(4 * classes) % classes
    predictions = torch.where(torch.arange(4 * classes) % 4 == 0, (targets + 1) % classes, targets)
    progress = Progress(epoch=epochs, step=10 * epochs)
    for epoch in range(1, epochs + 1):
        line = {"epoch": epoch, "step": 10 * epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5, "test_loss": 1.1}
        line |= {"test_loss_sum": 3.0, "test_accuracy": 0.75, "images_per_second": 100.0}
        progress.history.append(line)
    for step in range(10 * epochs):
        progress.curve.add(1 / (step + 1))
    progress.confusion = confusion_matrix(targets, predictions, classes)
    names = [f"class {number}" for number in range(classes)]
    return progress, {"dataset": "images", "train": 400, "test": 4 * classes, "classes": names}


# ------------------------------------------------------------------------------------------------ the run folder


@clause("18.run.images")
@pytest.mark.slow
def test_a_run_writes_images_and_a_description_and_no_plots_omits_the_images(tmp_path: Path) -> None:
    assert train(tmp_path, *SHOWN, "--epochs", 2, "--output", "run").status == 0
    for name in IMAGES:
        with Image.open(tmp_path / "run" / name) as image:
            assert image.format == "PNG"
            assert min(image.size) >= 64
            image.load()
    assert "## Accuracy per class" in (tmp_path / "run/README.md").read_text()
    assert train(tmp_path, *TINY, "--epochs", 1, "--output", "without").status == 0
    assert not any((tmp_path / "without" / name).exists() for name in IMAGES)
    assert (tmp_path / "without/README.md").exists()
    (tmp_path / "run/results.png").write_bytes(b"damaged")
    (tmp_path / "run/data.png").unlink()
    for name, plots in (("run", ()), ("without", ("--plots",))):
        assert train(tmp_path, "--resume", name, "--epochs", 3, *plots).status == 0
        for image in IMAGES:
            with Image.open(tmp_path / name / image) as shown:
                shown.load()


@clause("18.run.images")
@pytest.mark.slow
def test_image_files_are_replaced_atomically(tmp_path: Path) -> None:
    command = Command("train_full.py", *SHOWN, "--epochs", 6, "--output", "run", folder=tmp_path)
    looked = 0
    while command.process.is_alive():
        for name in IMAGES:
            if (path := tmp_path / "run" / name).exists():
                with Image.open(path) as image:
                    image.load()
                looked += 1
        time.sleep(0.01)
    assert command.wait().status == 0
    assert looked > 20


@clause("18.run.images")
@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_with_everything_on_resumes_to_the_bit(recipe: str, tmp_path: Path) -> None:
    words = (*SHOWN, "--recipe", recipe, "--keep-every", 1, "--style", "tutorial", "--log-every", 2)
    assert train(tmp_path, *words, "--epochs", 3, "--output", "straight").status == 0
    command = Command("train_full.py", *words, "--epochs", 3, "--output", "run", folder=tmp_path)
    command.wait_for("训练次数：6", seconds=60)
    command.process.kill()
    command.process.join()
    assert train(tmp_path, "--resume", "run").status == 0
    assert_same_training(tmp_path / "straight", tmp_path / "run")
    curves = [
        load_checkpoint(tmp_path / name / "last.pt")["training"]["progress"]["curve"] for name in ("straight", "run")
    ]
    assert curves[0] == curves[1]
    for name in IMAGES:
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


@clause("18.run.images_cost")
@pytest.mark.parametrize(("share", "epochs"), [(1e9, [1, 2, 3, 4]), (1e-9, [1, 4])], ids=["short", "long"])
def test_curves_that_take_long_are_drawn_after_the_first_epoch_and_at_the_end(
    share: float, epochs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    folder = import_module("reference.run.folder")
    monkeypatch.setattr(folder, "DRAWING", share)
    monkeypatch.setattr(folder, "save_results", lambda path, progress, rate: drawn.append(progress.epoch))
    limits = {"limit_train": 32, "limit_test": 16, "batch_size": 16}
    settings = Settings(dataset="shapes", epochs=4, quiet=True, output=tmp_path / "run", **limits)  # pyright: ignore[reportArgumentType]
    assert run_training(settings, advise=False) == 0
    assert drawn == epochs


@clause("18.run.folder")
def test_best_and_last_checkpoint_of_the_best_epoch_are_equal(tmp_path: Path) -> None:
    limits = {"limit_train": 32, "limit_test": 16, "batch_size": 16, "plots": False, "keep_every": 1}
    settings = Settings(dataset="shapes", epochs=1, quiet=True, output=tmp_path / "run", **limits)  # pyright: ignore[reportArgumentType]
    assert run_training(settings, advise=False) == 0
    last = (tmp_path / "run/last.pt").read_bytes()
    assert [(tmp_path / "run" / name).read_bytes() == last for name in ("best.pt", "epoch-0001.pt")] == [True, True]
    assert load_checkpoint(tmp_path / "run/best.pt")["metrics"]["epoch"] == 1


@clause("18.run.images_cost")
@pytest.mark.slow
@pytest.mark.parametrize("classes", [10, 10_000])
def test_drawing_takes_less_than_a_second_of_processor_time(classes: int, tmp_path: Path) -> None:
    progress, data = finished(classes, epochs=100)
    assert progress.confusion is not None
    images = torch.randint(0, 256, (data["test"], 3, 32, 32), dtype=torch.uint8)
    targets = torch.arange(data["test"]) % classes
    names = tuple(data["classes"])
    spent = []
    for _ in range(2):  # the first call imports Matplotlib
        begun = time.process_time()
        save_results(tmp_path / "results.png", progress, lambda step: 0.1 / step)
        save_image(tmp_path / "confusion.png", draw_confusion(progress.confusion, names))
        mistakes = draw_mistakes(images, targets, targets.roll(1), torch.rand(len(targets)), names)
        save_image(tmp_path / "mistakes.png", mistakes)
        description(Settings(), progress, data, tmp_path, "cpu", 1)
        spent.append(time.process_time() - begun)
    assert spent[1] < 1


@clause("18.run.images_cost")
@pytest.mark.slow
def test_the_package_and_a_training_without_plots_do_not_import_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys, reference\nfor name in reference.__all__: getattr(reference, name)\n"
        "import reference.run, reference.tracking, reference.inference\n"
        "print([name for name in ('matplotlib', 'tensorboard', 'torchvision', 'rich', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS.parent, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ the curve


@clause("18.run.curve")
@pytest.mark.parametrize("steps", [0, 1, 40, 511, 512, 513, 5_000])
def test_loss_curve_points_are_means_of_equally_many_steps(steps: int) -> None:
    curve = Curve()
    losses = [float(step * 7 % 13 + 1) for step in range(steps)]
    for loss in losses:
        curve.add(loss)
    assert len(curve.losses) < Curve.MOST
    assert curve.every == 1 if steps < 512 else curve.every == 2 ** math.floor(math.log2(steps / 512) + 1)
    whole = curve.every * len(curve.losses)
    expected = [sum(losses[at : at + curve.every]) / curve.every for at in range(0, whole, curve.every)]
    # sums of up to 16 integers and their halves are exact in float64; the mean of means rounds a few times
    assert curve.losses == pytest.approx(expected, rel=1e-12)
    assert (curve.count, curve.total) == (steps - whole, sum(losses[whole:]))


@clause("18.run.train_accuracy")
def test_train_accuracy_counts_the_predictions_of_the_training_steps() -> None:
    torch.manual_seed(0)
    network, shapes = Ocean(), Shapes(size=80)
    loader = ResidentLoader(shapes, 16)
    optimizer, loss_function = torch.optim.SGD(network.parameters(), lr=0.05), torch.nn.CrossEntropyLoss()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    history = fit(network, loss_function, optimizer, loader, loader, epochs=1).history
    network.load_state_dict(start)
    right = 0
    for images, targets in loader:  # the same steps, by hand
        scores = network(images)
        right += int((scores.argmax(1) == targets).sum())
        optimizer.zero_grad()
        loss_function(scores, targets).backward()
        optimizer.step()
    assert history[0]["train_accuracy"] == right / 80


@clause("18.run.train_accuracy")
def test_confidences_are_the_softmax_of_the_predicted_class() -> None:
    torch.manual_seed(0)
    network, shapes = Ocean(), Shapes(train=False, size=40)
    found = evaluate(network, torch.nn.CrossEntropyLoss(), ResidentLoader(shapes, 16))
    assert isinstance(found, Evaluation)
    with torch.no_grad():
        shares = network(shapes.images / 255).softmax(1)
    torch.testing.assert_close(found.confidences, shares.gather(1, found.predictions[:, None]).squeeze(1))


# ------------------------------------------------------------------------------------------------ the model description


@clause("18.run.description")
@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
    # the last one: Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3
)
def test_accuracy_interval_equals_the_wilson_interval(right: int, count: int, low: float, high: float) -> None:
    assert interval(right, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@clause("18.run.description")
@pytest.mark.parametrize("classes", [3, 60, 2_000])
def test_the_description_states_the_run_and_is_bounded(classes: int, tmp_path: Path) -> None:
    progress, data = finished(classes)
    text = description(Settings(epochs=2), progress, data, tmp_path / "a run", "cpu", 145_578)
    assert f"images: 400 training images, {4 * classes:,} test images, {classes:,} classes" in text
    assert "Test accuracy 75.00%" in text
    assert f"--resume '{tmp_path}/a run' --epochs 12" in text
    assert f"export.py '{tmp_path}/a run' --to onnx" in text
    assert "--learning-rate 0.01" in text
    assert len(re.findall(r"(?m)^\| class ", text)) - 1 == min(classes, 50)
    assert len(text) < 8_000


@clause("18.run.description")
def test_class_names_in_the_description_are_shown_literally(tmp_path: Path) -> None:
    progress, data = finished(3)
    data["classes"] = ["a|b\n# title", "<script>", "[x](y)"]
    text = description(Settings(), progress, data, tmp_path, "cpu", 1)
    assert "<script>" not in text
    assert "\n# title" not in text
    assert r"a\|b\\n\# title" in text
    assert markdown("猫 cat") == "猫 cat"


# ------------------------------------------------------------------------------------------------ the terminal


@clause("18.run.learned")
@pytest.mark.slow
def test_a_training_ends_with_results_and_three_next_commands(tmp_path: Path) -> None:
    result = train(tmp_path, *TINY, "--epochs", 1, "--output", "my run")
    assert result.status == 0, result.err
    end = result.out[result.out.index("accuracy per class") :]
    assert len(re.findall(r"(?m)^ +\d+\.\d%", end)) == 10
    assert 1 <= end.count("most confused: ") <= 3
    commands = re.findall(r"(?m)^  (\w+ .*)$", end[end.index("next:") :])
    assert commands == [
        "tensorboard --logdir 'my run'",
        "python scripts/predict.py IMAGE --checkpoint 'my run'",
        "python scripts/train_full.py --recipe fast --epochs 1 --dataset shapes",
    ]
    assert "99 %" in end
    assert [line for line in result.out.splitlines() if width(line) > 80] == []


@clause("18.run.learned")
def test_the_final_class_list_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    progress, data = finished(2_000)
    assert progress.confusion is not None
    Screen(Settings(), 100, progress, "images").learned(progress.confusion, ("\x1b[31mred\n", *data["classes"][1:]))
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 16
    assert "1,990 more classes" in shown
    assert "\x1b" not in shown
    assert r"\x1b[31mred\n" in shown


@clause("18.run.learned")
def test_progress_bar_shows_the_remaining_time_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    screen = Screen(Settings(epochs=10), 100, Progress(epoch=2), "shapes")
    # 10 s for 50 images; 50 are left in this epoch, and 750 in all
    assert screen.left(Progress(epoch=2, seen=50)) == ("00:10", "02:30")


@clause("18.run.chinese")
@pytest.mark.slow
def test_lang_zh_prints_chinese_and_draws_chinese(tmp_path: Path) -> None:
    result = train(tmp_path, *SHOWN, "--epochs", 1, "--output", "run", "--lang", "zh")
    assert result.status == 0, result.err
    assert "1 个 epoch 后测试正确率为" in result.out
    assert "各类别的正确率，从低到高：" in result.out
    assert [line for line in result.out.splitlines() if width(line) > 80] == []
    english = {line for line in result.out.splitlines() if not re.search("[\u4e00-\u9fff]", line)}
    assert all(re.match(r"  (tensorboard|python) | +\d+\.\d%", line) for line in english), english
    assert "## 各类别的正确率" in (tmp_path / "run/README.md").read_text(encoding="utf-8")
    refused = train(tmp_path, "--resume", "nowhere", "--lang", "zh")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("错误：--resume nowhere：这里没有训练")
    if font_file("训练") is not None:
        assert train(tmp_path, *SHOWN, "--epochs", 1, "--output", "english").status == 0
        for name in ("results.png", "confusion.png"):
            assert (tmp_path / "run" / name).read_bytes() != (tmp_path / "english" / name).read_bytes()


@clause("18.run.style")
@pytest.mark.slow
def test_style_tutorial_prints_the_lines_of_the_listings(tmp_path: Path) -> None:
    words = (*TINY, "--epochs", 2, "--output", "run", "--style", "tutorial", "--log-every", 5)
    result = train(tmp_path, *words)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    start = lines.index("-------第 1 轮训练开始-------")  # chapter 18, line 1500
    number = r"\d+\.\d+(e-\d+)?"
    epoch = [number, rf"训练次数：5, Loss: {number}"]  # chapter 21, lines 2281 and 2282
    tested = [rf"整体测试集上的Loss: {number}", rf"整体测试集上的正确率: {number}", "模型已保存"]  # lines 1533 to 1540
    for pattern, line in zip([*epoch, *tested], lines[start + 1 :], strict=False):
        assert re.fullmatch(pattern, line), line
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert f"整体测试集上的Loss: {metrics[1]['test_loss_sum']}" in lines
    right = torch.tensor(round(metrics[1]["test_accuracy"] * 24))
    assert f"整体测试集上的正确率: {right / 24}" in lines  # as the tutorial computes and prints it


HELP: dict[str, Any] = {
    "train_full": Settings,
    "accuracy": import_module("scripts.accuracy").Measurement,
    "predict": import_module("scripts.predict").Question,
    "export": import_module("scripts.export").Export,
    "check_document": import_module("scripts.check_document").Question,
}
"""The settings of each script."""


@clause("18.run.help_groups")
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("script", ["train_full", "accuracy", "predict", "export", "check_document"])
def test_help_is_grouped_and_the_common_options_fit_one_screen(
    script: str, language: str, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = HELP[script]
    trains = issubclass(kind, Settings)
    if recipe != "tutorial" and not trains:
        return
    monkeypatch.setenv("COLUMNS", "80")
    words = [f"{script}.py", "--lang", language, "--help", *(["--recipe", recipe] if trains else [])]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(messages, "_chinese", False)
    with pytest.raises(SystemExit):
        parse(kind) if trains else parse_arguments(kind)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if width(line) > 80 and "https://" not in line] == []
    groups = dict(getattr(kind, "GROUPS", {"options": [entry.name for entry in fields(kind)]}))
    assert sorted(name for names in groups.values() for name in names) == sorted(entry.name for entry in fields(kind))
    titles = [translated(title) + (":" if language == "en" else "：") for title in groups]
    places = [lines.index(title) for title in titles]
    assert places == sorted(places)
    common = "common" if "common" in groups else "options"
    end = [*places, len(lines) + 1][list(groups).index(common) + 1] - 1  # without the empty line
    assert end <= 24, "\n".join(lines[:end])
    assert lines[end - 1]
    assert end == len(lines) or not lines[end]


@clause("18.run.words")
@pytest.mark.parametrize(
    ("words", "english", "chinese"),
    [
        ("--epoch 3", "--epoch is not an option; similar: --epochs", "没有 --epoch 这个选项；相近的有：--epochs"),
        ("-x", "-x is not an option; see --help", "没有 -x 这个选项；请看 --help"),
        ("--epochs 3 runs", "'runs' is not expected here: options begin", "这里不能有 'runs'：选项以 -- 开头"),
        ("--epochs", "--epochs needs a value: N", "--epochs 需要一个值：N"),
        ("--recipe", "--recipe needs a value: {tutorial,fast}", "--recipe 需要一个值：{tutorial,fast}"),
        ("--epochs ten", "--epochs must be a whole number, got 'ten'", "--epochs 必须是整数，得到的是 'ten'"),
        ("--limit_test=1.5", "--limit-test must be a whole number, got", "--limit-test 必须是整数，得到的是 '1.5'"),
        ("--momentum x", "--momentum must be a number, got 'x'", "--momentum 必须是数字，得到的是 'x'"),
        ("--style new", "--style must be one of plain, tutorial, got", "--style 必须是以下之一：plain, tutorial，"),
        ("--no-plots=1", "--no-plots takes no value, got '1'", "--no-plots 不带值，得到的是 '1'"),
    ],
)
def test_invalid_options_are_one_line_errors_in_the_chosen_language(
    words: str, english: str, chinese: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messages, "_chinese", False)
    for language, expected in (("en", english), ("zh", chinese)):
        monkeypatch.setattr(sys, "argv", ["train_full.py", "--lang", language, *words.split()])
        with pytest.raises(InputError) as caught:
            parse(Settings)
        assert messages.translated(str(caught.value)).startswith(expected)
    assert capsys.readouterr() == ("", "")


START = """
import sys
from reference.run import RunFolder, Settings, train
from pathlib import Path

heavy = {"torch._dynamo", "sympy", "torchvision", "matplotlib", "scipy", "pandas", "tensorflow", "IPython"}


def stop(*_):
    print("loaded:", *sorted(heavy & set(sys.modules)))
    raise SystemExit


RunFolder.on_steps = stop
train(Settings(dataset="shapes", limit_train=100, limit_test=10, precision="float32", output=Path("run")))
"""


@clause("18.run.start")
@pytest.mark.slow
def test_first_training_step_does_not_import_unneeded_libraries(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


# ------------------------------------------------------------------------------------------------ data and optimizers


def tree(folder: Path, counts: dict[str, int]) -> Path:
    """A tree of small images with `counts` images of each class in train/, and 2 in test/."""
    for half in ("train", "test"):
        for name, count in counts.items():
            (folder / half / name).mkdir(parents=True)
            for number in range(count if half == "train" else 2):
                pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / half / name / f"{number}.png")
    return folder


@clause("18.run.glance")
def test_each_problem_of_the_user_images_is_one_line(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", {"猫": 25, "dog": 3})
    shutil.copy(root / "train/猫/7.png", root / "test/猫/again.png")
    Image.new("L", (40, 30)).save(root / "train/dog/grey.png")
    (root / "train/dog/broken.png").write_bytes(b"no image")
    halves = [ImageTree(root, half, skip_broken=True, progress=False) for half in (True, False)]
    lines = list(findings(halves[0], halves[1], root))
    assert lines == [
        "classes with fewer than 20 training images: 1 of 2: dog (4)",
        "sizes of 34 files: 8×8 to 40×30 pixels, most often 8×8 (97%)",
        "modes: RGB 97%, L 3%; the network gets 32×32 pixels in RGB",
        "test images that are also training images: 1 (20.0%), so the test accuracy is too high: "
        "test/猫/again.png = train/猫/7.png",
        "broken images that are skipped: 1: train/dog/broken.png",
    ]


@pytest.mark.slow
@clause("18.run.glance")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_line_about_a_persons_images_is_wider_than_a_terminal(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "data", {f"第 {number} 类的图像 of a long name": 1 for number in range(30)})
    for number, mode in enumerate(["L", "P", "CMYK", "RGBA", "I;16"]):
        name = f"第 {number} 类的图像 of a long name"
        Image.new(mode, (1000, 800 + number)).save(root / f"test/{name}/image.{'jpg' if mode == 'CMYK' else 'png'}")
        shutil.copy(root / f"train/{name}/0.png", root / f"test/{name}/again and again.png")
        (root / f"train/{name}/broken.png").write_bytes(b"no image")
    monkeypatch.setattr(messages, "_chinese", language == "zh")
    load_data(Settings(dataset="images", data_root=root, skip_broken=True), print_wrapped)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if not line.startswith(" ")]) == 6
    assert [line for line in lines if width(line) > 80] == []


@clause("18.run.glance")
def test_only_the_first_process_inspects_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "data", {"cat": 25, "dog": 3})
    (root / "train/dog/broken.png").write_bytes(b"no image")
    settings = Settings(dataset="images", data_root=root, skip_broken=True, quiet=True)
    said: list[str] = []
    load_data(settings, said.append)
    assert len(said) == 4
    assert "broken images that are skipped: 1" in capsys.readouterr().out
    said.clear()
    monkeypatch.setattr("reference.run.data.findings", None)
    load_data(settings, said.append, leads=False)
    assert len(said) == 1  # the sizes of the data set
    assert capsys.readouterr().out == ""


@clause("18.run.glance")
def test_sound_images_give_their_sizes_and_modes_only(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", {"cat": 20, "dog": 20})
    halves = [ImageTree(root, half, progress=False) for half in (True, False)]
    assert list(findings(halves[0], halves[1], root)) == [
        "sizes of 44 files: 8×8 pixels",
        "modes: RGB 100%; the network gets 32×32 pixels in RGB",
    ]


@pytest.mark.slow
@clause("18.run.adam")
@pytest.mark.parametrize(("name", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_and_adamw_equal_pytorch_with_pytorchs_defaults(
    name: str, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_full.py", "--optimizer", name])
    settings = parse(Settings)
    assert (settings.learning_rate, settings.momentum) == (0.001, 0.0)
    settings.check()
    shapes = Shapes(size=64)
    torch.manual_seed(3)
    plan = prepare(settings, shapes, shapes, torch.device("cpu"))
    torch.manual_seed(3)
    other = Ocean()
    optimizer = theirs(other.parameters())
    for images, targets in ResidentLoader(shapes, 16):
        for network, stepper in ((plan.network, plan.optimizer), (other, optimizer)):
            stepper.zero_grad()
            torch.nn.functional.cross_entropy(network(images), targets).backward()
            stepper.step()
    for ours, expected in zip(plan.network.parameters(), other.parameters(), strict=True):
        # 4 steps of 0.001: an update is a quotient of rounded numbers
        torch.testing.assert_close(ours, expected, rtol=0, atol=4 * 0.001 * 0.02)


@clause("18.run.adam")
def test_momentum_with_adam_is_rejected() -> None:
    with pytest.raises(ValueError, match="--momentum is for --optimizer sgd and muon, but --optimizer is adam"):
        replace(Settings(), optimizer="adam", momentum=0.9).check()
