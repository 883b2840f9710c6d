"""Chapter 02: what a run writes for TensorBoard, read back with TensorBoard's own reader and from a real server."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from reference.models import Ocean
from reference.tracking import Tracker, draw_confusion, draw_predictions, forget_after
from spec.support.clauses import clause
from spec.support.command import run


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def pixels(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on a few shapes."""
    folder = tmp_path_factory.mktemp("tensorboard")
    words = ("--dataset", "shapes", "--limit-train", 80, "--limit-test", 70, "--batch-size", 16, "--epochs", 2)
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
@clause("02.add_graph.layers")
def test_the_graph_has_the_nine_layers(run_folder: Path) -> None:
    names = {part for node in read(run_folder).Graph().node for part in node.name.split("/")}
    # chapter 13, line 925
    assert names >= {
        "Conv2d[0]", "MaxPool2d[1]", "Conv2d[2]", "MaxPool2d[3]", "Conv2d[4]", "MaxPool2d[5]", "Flatten[6]",
        "Linear[7]", "Linear[8]",
    }  # fmt: skip


@pytest.mark.slow
@clause("02.run.pictures")
def test_the_pictures_are_there_for_every_epoch(run_folder: Path) -> None:
    events = read(run_folder)
    for tag in ("predictions", "confusion"):
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
    """What the server answers, once it answers and has read the events."""
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
    # chapter 02, lines 92, 93 and 104; line 128's picture, of 2×3 pixels
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
    # chapter 06, lines 352 to 357, with grids of two pictures of one shade each; a server keeps ten unless it is told
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
    """The page that a browser without a window makes of the address, as HTML, when nothing more is loading."""
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
def test_a_browser_shows(logged: bool, tmp_path: Path) -> None:
    # chapter 02, lines 93, 104, 128 and the pictures of lines 111 and 132
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
def test_a_picture_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    picture = Image.effect_noise((7, 5), 80).convert("RGB")
    tracker = Tracker(tmp_path)
    tracker.picture("it", picture, 3)
    tracker.close()
    (image,) = read(tmp_path).Images("it")
    assert image.step == 3
    assert pixels(image).tobytes() == picture.tobytes()


@clause("02.writer.flush")
def test_what_was_flushed_is_on_the_disk(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.scalars(1, a=0.5)
    tracker.flush()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("a")] == [(1, 0.5)]
    tracker.close()


@clause("02.add_graph.layers")
def test_the_graph_leaves_the_network_s_mode_alone(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for training in (True, False):
        network = Ocean().train(training)
        tracker.graph(network, torch.zeros(1, 3, 32, 32))
        assert network.training is training
    tracker.close()


def logged(folder: Path, steps: range, epochs: range) -> None:
    tracker = Tracker(folder)
    for step in steps:
        tracker.scalars(step, train_loss=step / 8)
    for epoch in epochs:
        tracker.scalars(epoch, test_loss=epoch / 8)
        tracker.picture("confusion", Image.new("RGB", (2, 2), (epoch, 0, 0)), epoch)
    tracker.close()
    # the next event file's name is made of the second
    (newest,) = (path for path in folder.glob("events.out.tfevents.*") if not path.name.endswith(".old"))
    newest.rename(folder / f"{newest.name}.old")


def rows(folder: Path) -> dict[str, list[int]]:
    events = read(folder)
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars | {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


@clause("02.run.forgets")
def test_forgetting_cuts_every_tag_back_to_the_checkpoint(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 10), range(3))
    forget_after(tmp_path, step=6, epoch=2)
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5, 6], "test_loss": [0, 1], "confusion": [0, 1]}


@clause("02.run.forgets")
def test_forgetting_merges_the_files_of_several_starts_into_one(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 4), range(1))
    logged(tmp_path, range(4, 10), range(1, 3))
    forget_after(tmp_path, step=5, epoch=2)
    assert len(list(tmp_path.iterdir())) == 1
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5], "test_loss": [0, 1], "confusion": [0, 1]}


@clause("02.run.forgets")
def test_forgetting_survives_a_file_that_was_cut_off_in_the_middle_of_a_record(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 10), range(0))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    forget_after(tmp_path, step=9, epoch=0)
    assert rows(tmp_path) == {"train_loss": [1, 2, 3, 4, 5, 6, 7, 8]}


@clause("02.run.forgets")
def test_forgetting_nothing_in_an_empty_folder(tmp_path: Path) -> None:
    forget_after(tmp_path, step=0, epoch=0)
    assert list(tmp_path.iterdir()) == []


@clause("02.drawing.predictions")
def test_the_grid_shows_each_picture_and_says_in_colour_whether_it_was_right() -> None:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[1] = 200
    grid = draw_predictions(
        images, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ("cat", "dog"), columns=2, scale=5
    )
    assert grid.size == (40, 2 * (20 + 24))
    assert grid.getpixel((10, 10)) == (0, 0, 0)
    assert grid.getpixel((30, 10)) == (200, 200, 200)
    assert greenish(grid.crop((0, 20, 40, 44)))
    assert not reddish(grid.crop((0, 20, 40, 44)))
    assert reddish(grid.crop((0, 64, 20, 88)))
    assert not greenish(grid.crop((0, 64, 20, 88)))


def greenish(picture: Image.Image) -> bool:
    """Is any pixel green, however faint the font's smoothing leaves it?"""
    return any(green > red for _, (red, green, _) in picture.getcolors(10_000))


def reddish(picture: Image.Image) -> bool:
    return any(red > green for _, (red, green, _) in picture.getcolors(10_000))


@clause("02.drawing.confusion")
def test_the_confusion_matrix_is_darkest_where_the_share_is_largest() -> None:
    sheet = draw_confusion(torch.tensor([[9, 1], [0, 0]]), ("cat", "dog"), cell=44)
    brightness = [
        [sum(sheet.getpixel((90 + column * 44 + 2, 90 + row * 44 + 2))) for column in (0, 1)] for row in (0, 1)
    ]
    assert (
        brightness[0][0] < brightness[0][1] < brightness[1][0] == brightness[1][1]
    )  # a class without pictures is white


@clause("02.drawing.names")
def test_names_in_any_script_can_be_drawn() -> None:
    names = ("猫", "собака", "🐸" * 30)
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    draw_predictions(images, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), names)
    draw_confusion(torch.eye(3, dtype=torch.int64), names)
