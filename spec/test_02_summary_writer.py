"""Chapter 02: TensorBoard's `SummaryWriter`. All implementations write with it, so no implementation is under test."""

import io
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from spec.support.clauses import clause


def read(folder: Path) -> EventAccumulator:
    """All written events, read by TensorBoard's own reader."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def pixels(folder: Path, tag: str) -> np.ndarray:
    """The pixels of the only image of a tag, `[height, width, 3]`."""
    (event,) = read(folder).Images(tag)
    return np.array(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))


def image() -> np.ndarray:
    """An array `[height, width, channels]` of bytes, of the size of the chapter's photograph."""
    return np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)


# The values


@clause("02.add_scalar.line", "02.add_scalar.axes")
def test_a_hundred_steps_draw_the_line_y_equals_2x(tmp_path: Path) -> None:
    # chapter 02, lines 92 and 93
    with SummaryWriter(tmp_path) as writer:
        for i in range(100):
            writer.add_scalar("y=2x", 2 * i, i)
    assert scalars(tmp_path, "y=2x") == [(i, 2.0 * i) for i in range(100)]


@clause("02.add_image.printed")
@pytest.mark.slow
def test_hwc_array_with_dataformats_is_written_as_image(tmp_path: Path) -> None:
    # chapter 02, line 128
    array = image()
    with SummaryWriter(tmp_path) as writer:
        writer.add_image("img test", array, 1, dataformats="HWC")
    (event,) = read(tmp_path).Images("img test")
    assert (event.step, event.height, event.width) == (1, 512, 768)
    assert np.array_equal(pixels(tmp_path, "img test"), array)


# The claims


@clause("02.add_scalar.losses")
def test_a_loss_is_read_back_in_float32(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("loss", 0.1, 3)
        writer.add_scalar("loss", torch.tensor(0.25), 4)
    assert scalars(tmp_path, "loss") == [(3, torch.tensor(0.1).item()), (4, 0.25)]


@clause("02.writer.event_file")
def test_a_writer_creates_the_folder_and_an_event_file(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    SummaryWriter(folder).close()
    (name,) = os.listdir(folder)
    assert name.startswith("events.out.tfevents.")


@clause("02.add_image.pil")
@pytest.mark.slow
def test_add_image_rejects_a_pil_image_and_accepts_the_array(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(NotImplementedError, match="numpy array or torch tensor"):
            writer.add_image("x", Image.fromarray(image()), 1, dataformats="HWC")
        writer.add_image("x", np.array(Image.fromarray(image())), 1, dataformats="HWC")


@clause("02.add_image.dataformats")
def test_hwc_array_without_dataformats_is_an_error(tmp_path: Path) -> None:
    # chapter 02, line 127, which is commented out there
    with SummaryWriter(tmp_path) as writer, pytest.raises(TypeError, match="Cannot handle this data type"):
        writer.add_image("img test", image(), 1)


@clause("02.server.port")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a warning of the library that sanitizes TensorBoard's texts
def test_tensorboard_default_port_is_6006() -> None:
    from tensorboard.plugins.core import core_plugin

    assert core_plugin.DEFAULT_PORT == 6006


@pytest.mark.slow
@clause("02.server.flags")
def test_tensorboard_takes_logdir_and_port_flags() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--helpfull"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--logdir PATH" in text
    assert "--port PORT" in text


# What the tutorial leaves out


@clause("02.add_image.formats")
@pytest.mark.parametrize(
    ("name", "axes"), [("HWC", (0, 1, 2)), ("CHW", (2, 0, 1)), ("WHC", (1, 0, 2))], ids=["HWC", "CHW", "WHC"]
)
@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_an_image_is_read_back_for_every_dimension_order(
    tmp_path: Path, name: str, axes: tuple[int, ...], kind: str
) -> None:
    array = image()[:6, :5]
    moved = np.transpose(array, axes)
    with SummaryWriter(tmp_path) as writer:
        writer.add_image("x", moved if kind == "bytes" else moved.astype(np.float64) / 255, 0, dataformats=name)
    # floats from 0 to 1 are multiplied by 255 and cut off, so that rounding may cost a step
    assert np.abs(pixels(tmp_path, "x").astype(int) - array).max() <= (0 if kind == "bytes" else 1)


@clause("02.add_image.formats")
def test_a_grey_image_has_two_axes(tmp_path: Path) -> None:
    array = image()[:6, :5, 0]
    with SummaryWriter(tmp_path) as writer:
        writer.add_image("x", array, 0, dataformats="HW")
    assert np.array_equal(pixels(tmp_path, "x"), np.repeat(array[..., None], 3, axis=2))


@clause("02.add_images.grid")
def test_images_of_a_batch_are_put_side_by_side(tmp_path: Path) -> None:
    batch = torch.from_numpy(image()[:4, :6]).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
    batch[1] = 255 - batch[1]
    with SummaryWriter(tmp_path) as writer:
        writer.add_images("x", batch, 0)
    shown = pixels(tmp_path, "x")
    height, width = 4, 6
    found = {
        shown[y : y + height, x : x + width].tobytes()
        for y in range(0, shown.shape[0], height)
        for x in range(0, shown.shape[1], width)
    }
    assert found >= {one.permute(1, 2, 0).numpy().tobytes() for one in batch}


@clause("02.writer.two_epochs")
def test_every_epoch_may_have_a_separate_tag(tmp_path: Path) -> None:
    # chapter 06: tags "Epoch: 0" and "Epoch: 1", with 156 full batches each
    with SummaryWriter(tmp_path) as writer:
        for epoch in range(2):
            for step in range(156):
                writer.add_images(f"Epoch: {epoch}", torch.zeros(1, 3, 2, 2), step)
    events = read(tmp_path)
    assert events.Tags()["images"] == ["Epoch: 0", "Epoch: 1"]
    assert all([e.step for e in events.Images(f"Epoch: {epoch}")] == list(range(156)) for epoch in range(2))


@clause("02.writer.flush")
def test_flushed_events_can_be_read_and_others_may_be_buffered(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path, flush_secs=10_000)
    writer.add_scalar("x", 1, 0)
    writer.flush()
    writer.add_scalar("x", 2, 1)
    assert scalars(tmp_path, "x")[0] == (0, 1.0)
    writer.close()
    assert scalars(tmp_path, "x") == [(0, 1.0), (1, 2.0)]


@clause("02.writer.two_writers")
def test_two_writers_in_one_folder_write_two_files_that_are_read_as_one(tmp_path: Path) -> None:
    for number in range(2):
        with SummaryWriter(tmp_path, filename_suffix=f".{number}") as writer:
            writer.add_scalar("x", number, number)
    assert len(os.listdir(tmp_path)) == 2
    # files are read in the order of their names, which contain the second and a counter: file 10 comes before file 9
    assert sorted(scalars(tmp_path, "x")) == [(0, 0.0), (1, 1.0)]


@clause("02.writer.steps_back")
def test_steps_may_decrease_and_no_event_is_lost(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step in (0, 1, 2, 1):
            writer.add_scalar("x", step, step)
    assert [step for step, _ in scalars(tmp_path, "x")] == [0, 1, 2, 1]


def write_and_die(folder: str) -> Any:
    writer = SummaryWriter(folder)
    writer.add_scalar("x", 1, 0)
    writer.flush()
    writer.add_scalar("x", 2, 1)
    os._exit(7)


@pytest.mark.slow
@clause("02.writer.crash")
def test_a_crash_before_close_keeps_flushed_events(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=write_and_die, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert scalars(tmp_path, "x")[0] == (0, 1.0)
