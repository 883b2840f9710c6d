"""Chapter 02: the events of a run, read with TensorBoard's own reader and from a real server."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from reference import fonts, training
from reference.checkpoint import build_network, load_checkpoint
from reference.data.shapes import Shapes
from reference.fonts import Labels
from reference.models import Ocean
from reference.run.folder import packed, unpacked
from reference.tracking import (
    RIGHT,
    WRONG,
    Tracker,
    draw_confusion,
    draw_examples,
    draw_kernels,
    draw_mistakes,
    draw_predictions,
    forget_after,
)
from reference.training import class_accuracies, confusion_entries, confusion_matrix, most_confused
from spec.support.clauses import clause
from spec.support.command import run
from spec.support.strategies import given


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def pixels(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on a few shapes."""
    folder = tmp_path_factory.mktemp("tensorboard")
    words = ("--dataset", "shapes", "--limit-train", 80, "--limit-test", 70, "--batch-size", 16, "--epochs", 2)
    words += ("--precision", "float32")
    result = run("train_full.py", *words, "--output", "run", "--log-every", 3, "--num-threads", 1, folder=folder)
    assert result.status == 0, result.err
    return folder / "run"


@pytest.mark.slow
@clause("02.run.tags")
def test_the_scalars_have_the_tutorial_s_tags_and_steps(run_folder: Path) -> None:
    events = read(run_folder)
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    # chapter 18, lines 1518 and 1535: train_loss at every nth step of all epochs, the test's tags at 0, 1, …
    assert steps == {"train_loss": [3, 6, 9], "test_loss": [0, 1], "test_loss_mean": [0, 1], "test_accuracy": [0, 1]}


@pytest.mark.slow
@clause("02.run.parts")
def test_train_and_test_subfolders_share_one_loss_tag(run_folder: Path) -> None:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    train, test = read(run_folder / "train"), read(run_folder / "test")
    assert [event.step for event in train.Scalars("loss")] == list(range(1, 11))  # a point for each step
    assert [event.step for event in train.Scalars("learning_rate")] == list(range(1, 11))
    assert [event.value for event in train.Scalars("learning_rate")] == pytest.approx([0.01] * 10)
    for part, events in (("train", train), ("test", test)):
        expected = [(line["step"], pytest.approx(line[f"{part}_accuracy"])) for line in lines]
        assert [(event.step, event.value) for event in events.Scalars("accuracy")] == expected
    expected = [(line["step"], pytest.approx(line["test_loss"])) for line in lines]
    assert [(event.step, event.value) for event in test.Scalars("loss")] == expected


@pytest.mark.slow
@clause("02.run.hyperparameters")
def test_settings_are_logged_as_hyperparameters_with_results(run_folder: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]

    contents = read(run_folder).summary_metadata  # pyright: ignore[reportAttributeAccessIssue]
    contents = {
        tag: HParamsPluginData.FromString(metadata.plugin_data.content)
        for tag, metadata in contents.items()
        if tag.startswith("_hparams_/")
    }
    values = contents["_hparams_/session_start_info"].session_start_info.hparams
    assert values["batch_size"].number_value == 16
    assert values["optimizer"].string_value == "sgd"
    assert values["precision"].string_value == "float32"
    named = {metric.name.tag for metric in contents["_hparams_/experiment"].experiment.metric_infos}
    assert named == {"test_accuracy", "test_loss_mean"}


@pytest.mark.slow
@clause("02.add_graph.layers")
def test_the_graph_has_the_nine_layers(run_folder: Path) -> None:
    names = {part for node in read(run_folder).Graph().node for part in node.name.split("/")}
    # chapter 13, line 925
    assert names >= {
        "Conv2d[0]", "MaxPool2d[1]", "Conv2d[2]", "MaxPool2d[3]", "Conv2d[4]", "MaxPool2d[5]", "Flatten[6]",
        "Linear[7]", "Linear[8]",
    }  # fmt: skip


@pytest.mark.slow
@clause("02.run.images")
def test_images_are_logged_in_every_epoch(run_folder: Path) -> None:
    events = read(run_folder)
    for tag in ("predictions", "confusion", "mistakes", "kernels"):
        images = events.Images(tag)
        assert [image.step for image in images] == [0, 1]
        assert pixels(images[0]).size == (images[0].width, images[0].height)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[str]:
    """A real TensorBoard on this machine; its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    words = ["--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1", "--load_fast", "false", *options]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tensorboard.main", *words],
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,
    )
    try:
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(address: str, seconds: float = 90) -> Any:
    """The response of the server after it has read the events."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                content = answer.read()
                if content not in (b"{}", b"[]"):
                    return content
        except (URLError, ConnectionError, TimeoutError):
            pass
        assert time.monotonic() < end, f"no answer from {address}"
        time.sleep(0.2)


@pytest.mark.slow
@clause("02.server.http")
def test_a_real_tensorboard_server_shows_the_run(run_folder: Path) -> None:
    expected = {tag: read(run_folder).Scalars(tag) for tag in ("train_loss", "test_accuracy")}
    with server(run_folder.parent) as address:
        tags = json.loads(get(f"{address}/data/plugin/scalars/tags"))["run"]
        assert set(tags) == {"train_loss", "test_loss", "test_loss_mean", "test_accuracy"}
        for tag, events in expected.items():
            rows = json.loads(get(f"{address}/data/plugin/scalars/scalars?{urlencode({'run': 'run', 'tag': tag})}"))
            assert [(step, value) for _, step, value in rows] == [(event.step, event.value) for event in events]
        images = json.loads(get(f"{address}/data/plugin/images/images?run=run&tag=predictions&sample=0"))
        assert [image["step"] for image in images] == [0, 1]
        assert get(f"{address}/data/plugin/images/individualImage?{images[0]['query']}").startswith(b"\x89PNG")
        assert b"Conv2d[0]" in get(f"{address}/data/plugin/graphs/graph?run=run&conceptual=false")
        assert b"TensorBoard" in get(address)


@pytest.mark.slow
@clause("02.server.http")
def test_a_real_tensorboard_server_shows_the_chapters_line(tmp_path: Path) -> None:
    # chapter 02, lines 92, 93 and 104; line 128's image, of 2×3 pixels
    with SummaryWriter(str(tmp_path)) as writer:
        for i in range(100):
            writer.add_scalar("y=2x", 2 * i, i)
        writer.add_image("img test", torch.zeros(2, 3, 3, dtype=torch.uint8), 1, dataformats="HWC")
    with server(tmp_path) as address:
        assert json.loads(get(f"{address}/data/plugin/scalars/tags")).keys() == {"."}
        query = urlencode({"run": ".", "tag": "y=2x"})
        rows = json.loads(get(f"{address}/data/plugin/scalars/scalars?{query}"))
        assert [(step, value) for _, step, value in rows] == [(i, 2.0 * i) for i in range(100)]
        query = urlencode({"run": ".", "tag": "img test", "sample": 0})
        (image,) = json.loads(get(f"{address}/data/plugin/images/images?{query}"))
        content = get(f"{address}/data/plugin/images/individualImage?{image['query']}")
        assert (image["step"], Image.open(io.BytesIO(content)).size) == (1, (3, 2))


@pytest.mark.slow
@clause("02.writer.two_epochs", "02.server.http")
def test_a_real_tensorboard_server_has_156_grids_of_each_of_two_epochs(tmp_path: Path) -> None:
    # chapter 06, lines 352 to 357, with grids of two images of one shade each; a server keeps ten by default
    with SummaryWriter(str(tmp_path)) as writer:
        for epoch in range(2):
            for step in range(156):
                writer.add_images(f"Epoch: {epoch}", torch.full((2, 3, 2, 2), step + 100 * epoch).byte(), step)
    with server(tmp_path, "--samples_per_plugin", "images=156") as address:
        assert json.loads(get(f"{address}/data/plugin/images/tags"))["."].keys() == {"Epoch: 0", "Epoch: 1"}
        for epoch in range(2):
            query = urlencode({"run": ".", "tag": f"Epoch: {epoch}", "sample": 0})
            images = json.loads(get(f"{address}/data/plugin/images/images?{query}"))
            assert [image["step"] for image in images] == list(range(156))
            for image in (images[0], images[-1]):
                content = get(f"{address}/data/plugin/images/individualImage?{image['query']}")
                grid = Image.open(io.BytesIO(content)).convert("RGB").crop((0, 0, 4, 2))
                assert grid.getcolors() == [(8, (image["step"] + 100 * epoch,) * 3)]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def page(address: str, profile: Path) -> str:
    """The HTML of the page in a headless browser after loading."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={profile}", "--window-size=1600,1200", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([BROWSER, *options, address], capture_output=True, text=True, timeout=240, check=True)
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: `apt-get install chromium` brings one")
@clause("02.server.page")
@pytest.mark.parametrize("logged", [True, False], ids=["what was logged", "nothing where nothing was"])
def test_tensorboard_shows_in_a_browser(logged: bool, tmp_path: Path) -> None:
    # chapter 02, lines 93, 104, 128 and the images of lines 111 and 132
    if logged:
        with SummaryWriter(str(tmp_path / "logs" / "a run")) as writer:
            for i in range(100):
                writer.add_scalar("y=2x", 2 * i, i)
            writer.add_image("img test", torch.zeros(2, 3, 3, dtype=torch.uint8), 1, dataformats="HWC")
    (tmp_path / "logs").mkdir(exist_ok=True)
    with server(tmp_path / "logs") as address:
        get(f"{address}/data/plugin/scalars/tags" if logged else address)
        html = page(address, tmp_path / "profile")
    assert "<title>TensorBoard</title>" in html
    assert {text: text in html for text in ("y=2x", "img test", "a run")} == dict.fromkeys(
        ("y=2x", "img test", "a run"), logged
    )
    assert ("No dashboards are active" in html) is not logged


# ------------------------------------------------------------------------------------------------ the parts


@clause("02.add_image.formats")
def test_logged_images_are_read_back_pixel_by_pixel(tmp_path: Path) -> None:
    drawn = Image.effect_noise((7, 5), 80).convert("RGB")
    tracker = Tracker(tmp_path)
    tracker.image("it", drawn, 3)
    tracker.close()
    (image,) = read(tmp_path).Images("it")
    assert image.step == 3
    assert pixels(image).tobytes() == drawn.tobytes()


@clause("02.writer.flush")
def test_flushed_events_are_on_the_disk(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.scalars(1, a=0.5)
    tracker.flush()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("a")] == [(1, 0.5)]
    tracker.close()


@clause("02.add_graph.layers")
def test_the_graph_leaves_the_network_s_mode_alone(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for mode in (True, False):
        network = Ocean().train(mode)
        tracker.graph(network, torch.zeros(1, 3, 32, 32))
        assert network.training is mode
    tracker.close()


def logged(folder: Path, steps: range, epochs: range) -> None:
    tracker = Tracker(folder)
    for step in steps:
        tracker.scalars(step, train_loss=step / 8)
    for epoch in epochs:
        tracker.scalars(epoch, test_loss=epoch / 8)
        tracker.image("confusion", Image.new("RGB", (2, 2), (epoch, 0, 0)), epoch)
    tracker.close()
    # the name of the next event file contains the second
    (newest,) = (path for path in folder.glob("events.out.tfevents.*") if not path.name.endswith(".old"))
    newest.rename(folder / f"{newest.name}.old")


def rows(folder: Path) -> dict[str, list[int]]:
    events = read(folder)
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars | {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


@clause("02.run.forgets")
def test_truncating_events_cuts_all_tags_back_to_the_checkpoint(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 10), range(3))
    forget_after(tmp_path, step=6, epoch=2)
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5, 6], "test_loss": [0, 1], "confusion": [0, 1]}


@clause("02.run.forgets")
def test_truncating_events_cuts_subfolders_and_keeps_hyperparameters(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.hyperparameters({"seed": 3}, ("test_accuracy",))
    for step in range(1, 10):
        tracker.scalars(step, "train", loss=step / 8, learning_rate=0.1)
    for step in (3, 6, 9):
        tracker.scalars(step, "train", accuracy=0.5)
        tracker.scalars(step, "test", accuracy=0.5, loss=1.0)
    tracker.close()
    forget_after(tmp_path, step=6, epoch=1, evaluated=3)  # step 6 was trained but not yet evaluated
    assert rows(tmp_path / "train") == {"loss": [*range(1, 7)], "learning_rate": [*range(1, 7)], "accuracy": [3]}
    assert rows(tmp_path / "test") == {"accuracy": [3], "loss": [3]}
    metadata = read(tmp_path).summary_metadata  # pyright: ignore[reportAttributeAccessIssue]
    assert "_hparams_/session_start_info" in metadata


@clause("02.run.forgets")
def test_truncating_events_merges_files_of_several_starts(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 4), range(1))
    logged(tmp_path, range(4, 10), range(1, 3))
    forget_after(tmp_path, step=5, epoch=2)
    assert len(list(tmp_path.iterdir())) == 1
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5], "test_loss": [0, 1], "confusion": [0, 1]}


@clause("02.run.forgets")
def test_truncating_events_drops_duplicates_of_a_killed_merge(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 4), range(1))
    logged(tmp_path, range(4, 7), range(1, 2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    forget_after(tmp_path, step=6, epoch=2)
    (merged,) = tmp_path.iterdir()
    for name, content in before.items():  # the merged file is in place, the others are not deleted yet
        if name != merged.name:
            (tmp_path / name).write_bytes(content)
    forget_after(tmp_path, step=6, epoch=2)
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5, 6], "test_loss": [0, 1], "confusion": [0, 1]}


@clause("02.run.forgets")
def test_truncating_events_accepts_a_file_cut_off_within_a_record(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 10), range(0))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    forget_after(tmp_path, step=9, epoch=0)
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5, 6, 7, 8]}


@clause("02.run.forgets")
@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to itself", "no event", "a length of 2⁶⁰ bytes"])
def test_truncating_events_ignores_planted_event_files(kind: str, tmp_path: Path) -> None:
    logged(tmp_path, range(1, 4), range(1))
    planted = tmp_path / "events.out.tfevents.1.planted"
    if kind == "FIFO":
        os.mkfifo(planted)
    elif kind == "folder":
        planted.mkdir()
    elif kind == "link to itself":
        planted.symlink_to(planted.name)
    elif kind == "no event":
        with planted.open("wb") as file:
            RecordWriter(file).write(b"\xff" * 40)
    else:
        length = struct.pack("<Q", 2**60)
        planted.write_bytes(length + struct.pack("<I", masked_crc32c(length)) + bytes(100))
    forget_after(tmp_path, step=3, epoch=1)
    if kind == "folder":
        planted.rmdir()
    else:
        planted.unlink(missing_ok=True)
    assert rows(tmp_path) == {"train_loss": [1, 2, 3], "test_loss": [0], "confusion": [0]}


@clause("02.run.forgets")
def test_truncating_events_accepts_an_empty_folder(tmp_path: Path) -> None:
    forget_after(tmp_path, step=0, epoch=0)
    assert list(tmp_path.iterdir()) == []


@clause("02.drawing.predictions")
def test_prediction_grid_marks_right_and_wrong_images_by_colour() -> None:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[1] = 200
    grid = draw_predictions(
        images, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ("cat", "dog"), columns=2, scale=5
    )
    assert grid.size == (40, 2 * (20 + 24))
    assert grid.getpixel((10, 10)) == (0, 0, 0)
    assert grid.getpixel((30, 10)) == (200, 200, 200)
    assert bluish(grid.crop((0, 20, 40, 44)))
    assert not reddish(grid.crop((0, 20, 40, 44)))
    assert reddish(grid.crop((0, 64, 20, 88)))
    assert not bluish(grid.crop((0, 64, 20, 88)))


def bluish(image: Image.Image) -> bool:
    """Is any pixel blue, however faint the font's smoothing leaves it?"""
    return any(blue > red for _, (red, _, blue) in image.getcolors(10_000))  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]


def reddish(image: Image.Image) -> bool:
    return any(red > blue for _, (red, _, blue) in image.getcolors(10_000))  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]


@clause("02.drawing.mistakes")
def test_the_mistakes_are_the_wrong_answers_with_the_highest_probability_first() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 4, 4) * 40
    targets, predictions = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 0, 1, 0, 0, 0])
    confidences = torch.tensor([0.99, 0.6, 0.9, 0.7, 0.5, 0.8])
    sheet = draw_mistakes(images, targets, predictions, confidences, ("cat", "dog"), most=3)
    shown = [sheet.getpixel((128 * column + 64, 64))[0] for column in range(4)]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    assert shown == [2 * 40, 5 * 40, 3 * 40, 255]
    assert not bluish(sheet.crop((0, 128, 128, 143)))
    whole = draw_mistakes(images, targets, targets, confidences, ("cat", "dog"))
    assert bluish(whole)


@clause("02.drawing.mistakes")
def test_right_and_wrong_colours_differ_in_brightness() -> None:
    def luminance(colour: str) -> float:
        shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for colour in (RIGHT, WRONG):  # WCAG 2.2, 1.4.3: small text on white needs a contrast of 4.5
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5


@clause("02.drawing.examples")
@pytest.mark.parametrize("classes", [1, 3, 16, 17, 128, 10_000])
def test_the_examples_show_each_class_on_a_sheet_of_bounded_size(classes: int) -> None:
    targets = torch.arange(classes).repeat_interleave(2)
    images = (targets % 250).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    sheet = draw_examples(images, targets, tuple(f"class {number}" for number in range(classes)))
    assert sheet.width == 8 * 96
    assert sheet.height <= 16 * (96 + 17)
    rows = sheet.height // (96 + 17)
    seen = [sheet.getpixel((96 * column + 48, (96 + 17) * row + 48)) for row in range(rows) for column in range(8)]
    if classes <= 16:  # one row per class, with the images of a class side by side
        assert seen == [(n,) * 3 if column < 2 else (255,) * 3 for n in range(classes) for column in range(8)]
    else:
        assert seen[: min(classes, 128)] == [(n,) * 3 for n in range(min(classes, 128))]


@clause("02.drawing.kernels")
def test_zero_weights_of_kernel_images_are_grey() -> None:
    weight = torch.zeros(9, 3, 2, 2)
    weight[0, 0, 0, 0], weight[1, 2, 1, 1] = 2.0, -0.5
    sheet = draw_kernels(weight)
    assert sheet.size == (8 * 36, 2 * 36)  # 2 and a border of 1 pixel, 12 times as large
    assert sheet.getpixel((6, 6)) == (255, 128, 128)
    assert sheet.getpixel((36 + 18, 18)) == (128, 128, 0)
    assert sheet.getpixel((30, 30)) == (255, 255, 255)


@clause("02.drawing.confusion")
def test_the_confusion_matrix_is_darkest_where_the_share_is_largest() -> None:
    sheet = draw_confusion(torch.tensor([[9, 1], [0, 0]]), ("cat", "dog"), cell=44)
    brightness = [
        [int(np.asarray(sheet)[90 + row * 44 + 2, 90 + column * 44 + 2].sum()) for column in (0, 1)] for row in (0, 1)
    ]
    assert brightness[0][0] < brightness[0][1] < brightness[1][0] == brightness[1][1]  # a class without images is white


NAMES = {
    "Chinese": ("猫", "狗", "鸟"),
    "accents": ("café", "cafè", "cafê"),
    "emoji": ("🐸", "🐶"),
    "equal beginnings": ("a very long name of a class 1", "a very long name of a class 2"),
    "equal beginnings and ends": ("a very long name 1 of a class", "a very long name 2 of a class"),
    "long Chinese": ("猫" * 40 + "一", "猫" * 40 + "二"),
    "names like labels": ("猫", "#0", "#1", "狗"),
    "a line break and a space": ("a\nb", "a b"),
}


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "system_fonts", tuple)


@clause("02.drawing.names")
@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_labels_of_different_names_differ_and_fit_and_can_be_drawn(names: tuple[str, ...]) -> None:
    labels = Labels(dict(enumerate(names)), 11, 80)
    assert len({label.text for label in labels.values()}) == len(names)
    for label in labels.values():
        assert label.font.getlength(label.text) <= 80
        assert fonts.has(label.font, label.text)


@clause("02.drawing.names")
@pytest.mark.usefixtures("no_system_fonts")
def test_class_names_without_a_font_become_numbers_with_a_legend() -> None:
    labels = Labels({0: "cat", 7: "猫"}, 11, 80)
    assert [label.text for label in labels.values()] == ["cat", "#7"]
    assert labels.legend == [r"#7 = \u732b"]


@clause("02.drawing.names")
def test_drawings_use_a_system_font_with_the_needed_characters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="its fonts play the system's")
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    shutil.copy(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), tmp_path)
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path, tmp_path / "absent"])
    monkeypatch.setattr(fonts, "system_fonts", fonts.system_fonts.__wrapped__)
    labels = Labels(dict(enumerate(("собака", "кошка", "猫"))), 11, 80)
    assert [label.text for label in labels.values()] == ["собака", "кошка", "#2"]


@clause("02.drawing.names")
@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.slow
def test_drawings_of_different_class_names_differ(names: tuple[str, ...]) -> None:
    """Row by row of the confusion matrix, and caption by caption below the test images."""
    n = len(names)
    sheet = draw_confusion(torch.eye(n, dtype=torch.int64), names)
    rows = [sheet.crop((0, 90 + 44 * row, 88, 90 + 44 * (row + 1))).tobytes() for row in range(n)]
    assert len(set(rows)) == n
    images, classes = torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n)
    sheet = draw_predictions(images, classes, classes, names)
    captions = [sheet.crop((96 * place, 96, 96 * (place + 1), 120)).tobytes() for place in range(n)]
    assert len(set(captions)) == n


@clause("02.drawing.many")
def test_the_confusion_matrix_of_many_classes_has_one_size() -> None:
    sizes = set()
    for classes in (33, 400, 1_500, 10_000):
        places = torch.arange(classes)
        confusion = confusion_matrix(places, places.roll(1), classes)
        assert confusion.is_sparse is (classes > 1000)
        sizes.add(draw_confusion(confusion, tuple(map(str, range(classes)))).size)
    assert len(sizes) == 1
    assert max(sizes.pop()) < 1_600


@clause("02.drawing.many")
def test_the_confusion_matrix_of_many_classes_is_dark_where_the_share_is_large() -> None:
    classes = 2048  # two classes per pixel
    targets = torch.arange(classes)
    sheet = draw_confusion(confusion_matrix(targets, targets // 2 * 2, classes), tuple(map(str, range(classes))))
    matrix = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).reshape(sheet.height, sheet.width, 3)
    matrix = matrix[20 : 20 + 1024, 20 : 20 + 1024, 0]
    assert matrix.diag().tolist() == [50] * 1024  # all images of each pair are predicted as one class of the same pair
    assert (matrix + 205 * torch.eye(1024, dtype=torch.uint8) == 255).all()


@clause("02.drawing.many")
@pytest.mark.parametrize("classes", [40, 3000], ids=["dense", "sparse"])
def test_the_most_confused_classes_come_first(classes: int) -> None:
    targets = torch.tensor([5, 5, 5, 7, 7, 3, 9, 9, 9, 9])
    predictions = torch.tensor([6, 6, 6, 5, 5, 8, 9, 9, 9, 9])
    confusion = confusion_matrix(targets, predictions, classes)
    assert most_confused(confusion, 2) == [(5, 6, 3), (7, 5, 2)]
    assert most_confused(confusion, 9) == [(5, 6, 3), (7, 5, 2), (3, 8, 1)]
    shares = class_accuracies(confusion)
    assert [shares[number].item() for number in (5, 9)] == [0.0, 1.0]
    assert shares[0].isnan()


@clause("02.drawing.many")
@given(classes=st.integers(1, 6), seed=st.integers(0, 99), size=st.integers(1, 30))
def test_sparse_confusion_matrix_equals_the_dense_one(classes: int, seed: int, size: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    targets, predictions = (torch.randint(0, classes, (size,), generator=generator) for _ in range(2))
    dense = confusion_matrix(targets, predictions, classes)
    pairs = list(zip(targets.tolist(), predictions.tolist(), strict=True))
    assert dense.tolist() == [[pairs.count((i, j)) for j in range(classes)] for i in range(classes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "DENSE", 0)
        sparse = confusion_matrix(targets, predictions, classes)
    assert sparse.is_sparse
    assert torch.equal(sparse.to_dense(), dense)
    assert torch.equal(confusion_entries(sparse), confusion_entries(dense))
    assert most_confused(sparse, 5) == most_confused(dense, 5)
    restored = unpacked(packed(sparse), classes)
    assert restored is not None
    assert torch.equal(restored.to_dense(), dense)
    assert packed(dense) is dense


@clause("02.run.images")
@pytest.mark.slow
def test_the_logged_drawings_show_the_predictions_of_the_network(run_folder: Path) -> None:
    """Compare with images drawn from the last checkpoint; targets instead of predictions would contain no red."""
    shapes, network = Shapes(train=False, size=70), build_network(load_checkpoint(run_folder / "last.pt")).eval()
    with torch.no_grad():
        predictions = network(shapes.images / 255).argmax(dim=1)
    assert not torch.equal(predictions[:16], shapes.targets[:16]), "two epochs leave mistakes"
    images = shapes.images[:16], shapes.targets[:16], predictions[:16]
    events = read(run_folder)
    expected = draw_predictions(*images, shapes.classes, columns=4, letters=12)
    assert pixels(events.Images("predictions")[-1]).tobytes() == expected.tobytes()
    confusion = confusion_matrix(shapes.targets, predictions, len(shapes.classes))
    shown = pixels(events.Images("confusion")[-1])
    assert shown.size == (350, 350)  # TensorBoard shows it 350 pixels wide: scaled down, names could not be read
    assert shown.tobytes() == draw_confusion(confusion, shapes.classes, cell=26, letters=12).tobytes()


@clause("02.run.names")
@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_events_are_written_and_cut_in_a_folder_with_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + "/猫".encode("gbk")))
    folder.mkdir()
    logged(folder, range(1, 10), range(3))
    forget_after(folder, step=6, epoch=2)
    (tmp_path / "copy").mkdir()
    (file,) = folder.iterdir()
    shutil.copy(file, tmp_path / "copy")
    assert rows(tmp_path / "copy") == {"train_loss": [1, 2, 3, 4, 5, 6], "test_loss": [0, 1], "confusion": [0, 1]}
