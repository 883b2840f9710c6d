"""Chapter 02: the logs of a training for TensorBoard: `tensorboard --logdir RUN` shows them.

train_loss                  at every hundredth step, counted over all epochs
test_loss, test_accuracy    after each epoch, at the steps 0, 1, 2, … as in the tutorial; test_loss is its sum of
                            batch means, and test_loss_mean the mean over the images
graph                       the network's graph
predictions                 the first test images, with their classes and the predicted classes
confusion                   the confusion matrix
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor, nn

from reference.files import atomic_write
from reference.fonts import Labels, font_for, shortened
from reference.training import confusion_entries, most_confused

EVENT_FILES = "events.out.tfevents.*"
FIGURES = 32  # largest number of classes drawn with counts and names: at most 1,498 pixels a side
SIDE = 1024  # pixels of the confusion matrix of more classes
LISTED = 24  # pairs of classes listed next to it
LEGEND = 32  # names listed in a legend


@contextmanager
def utf8_path(folder: Path) -> Iterator[Path]:
    """A path of `folder` that UTF-8 can encode, as TensorBoard requires: a temporary link if its own path cannot be."""
    if is_utf8(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ocean-spec-") as place:
        link = Path(place, "run")
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def is_utf8(path: Path) -> bool:
    """Whether every byte of `path` is part of a UTF-8 character."""
    return os.fspath(path).encode(errors="replace") == os.fsencode(path)


class Tracker:
    """A TensorBoard event file in `folder`. Events reach the disk at `flush` and `close`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imported here to keep `import reference` fast

        self.leaving = ExitStack()
        path = self.leaving.enter_context(utf8_path(folder))
        self.writer = SummaryWriter(str(path), flush_secs=3600)  # flushed explicitly

    def scalars(self, step: int, **values: float) -> None:
        """Write each value under its name as the tag."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def graph(self, network: nn.Module, example: Tensor) -> None:
        """Write the network's graph, traced with a batch like `example`; the network keeps its mode."""
        training = network.training
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the tracer; TensorBoard has no other way
            self.writer.add_graph(network.eval(), example)
        network.train(training)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Write one RGB image."""
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        self.writer.add_image(tag, pixels.reshape(image.height, image.width, 3), step, dataformats="HWC")

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        self.writer.flush()

    def close(self) -> None:
        """Flush and end the file."""
        with self.leaving:
            self.writer.close()


def forget_after(folder: Path, *, step: int, epoch: int) -> None:
    """Truncate the event files of `folder` to a checkpoint, so that resuming from it writes nothing twice.

    A run that was killed has logged more than its last checkpoint covers. The later events are dropped: `train_loss`
    beyond `step`, everything else from epoch `epoch` on (epochs count from 0). The files are merged into one, whole or
    not at all.
    """

    def started(file: Path) -> float:
        """The time of its first event: the names of files of the same second do not give their order."""
        return next((event.wall_time for _, event in _events(file)), float("inf"))

    with utf8_path(folder) as place:
        files = [file for file in place.glob(EVENT_FILES) if file.is_file()]  # opening a FIFO would wait for its writer
        if files:
            _merge(sorted(files, key=started), step, epoch)


def _merge(files: list[Path], step: int, epoch: int) -> None:
    """Replace `files`, in the order of their events, by one file without the events after `step` and `epoch`."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    # The merged file takes the first one's name: a crash before the others are gone leaves duplicates, never a gap.
    with atomic_write(files[0]) as merged:
        writer = RecordWriter(merged)
        for file in files:
            for record, event in _events(file):
                tags = {value.tag for value in event.summary.value}
                keep = event.step <= step if tags == {"train_loss"} else not tags or event.step < epoch
                if keep and (file == files[0] or event.WhichOneof("what") == "summary"):
                    writer.write(record)
    for file in files[1:]:
        file.unlink()


def _events(file: Path) -> Iterator[tuple[bytes, Any]]:
    """The records of an event file with their events, up to the first one that is cut off, damaged or no event."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)

    with suppress(DecodeError, MemoryError, OverflowError):  # the last two: a length that no file can have
        for record in RawEventFileLoader(str(file)).Load():
            yield record, Event.FromString(record)


def draw_predictions(
    images: UInt8[Tensor, "n 3 height width"],
    targets: Int[Tensor, "n"],
    predictions: Int[Tensor, "n"],
    classes: tuple[str, ...],
    *,
    columns: int = 8,
    scale: int = 3,
) -> Image.Image:
    """A grid of enlarged images with the predicted class under each: green if it is right, else red, and the target.

    Names that no font can draw are shown as `#number`; the legend below the grid gives them in ASCII.
    """
    height, width, caption = images.shape[2] * scale, images.shape[3] * scale, 24
    pairs = list(zip(targets.tolist(), predictions.tolist(), strict=True))
    names = {number: classes[number] for number in sorted({number for pair in pairs for number in pair})}
    # the narrower of the two captions decides, so that a class has one label in the whole grid
    labels = Labels(names, 10, width - 4 - round(font_for("is ", 10).getlength("is ")))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, (target, guess)) in enumerate(zip(images, pairs, strict=True)):
        left, top = number % columns * width, number // columns * (height + caption)
        tile = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text(
            (left + 2, top + height), labels[guess].text, "green" if guess == target else "red", labels[guess].font
        )
        if guess != target:
            draw.text((left + 2, top + height + 11), f"is {labels[target].text}", "black", labels[target].font)
    return _with_legend(sheet, labels.legend)


def draw_confusion(
    confusion: Int[Tensor, "classes classes"], classes: tuple[str, ...], *, cell: int = 44
) -> Image.Image:
    """The confusion matrix: a row per true class, a column per predicted class, darker the larger the share of the row.

    Up to `FIGURES` classes, each cell has its count, and each row and column its name. More classes give an image of
    fixed size without figures, in which above `SIDE` classes neighbours share a pixel; next to it are the pairs of
    classes that were confused most often.

    Args:
        confusion: the number of images of each class (row) with each prediction (column); dense, or sparse (COO).
        classes: the names.
        cell: side of a cell with a count, in pixels.
    """
    if len(classes) <= FIGURES:
        return _confusion_with_figures(confusion.to_dense(), classes, cell)
    return _confusion_without_figures(confusion, classes)


def _confusion_with_figures(confusion: Tensor, classes: tuple[str, ...], cell: int) -> Image.Image:
    margin, n = 90, len(classes)
    sheet = Image.new("RGB", (margin + n * cell, margin + n * cell), "white")
    draw, plain = ImageDraw.Draw(sheet), font_for("0", 11)
    labels = Labels(dict(enumerate(classes)), 11, margin - 6)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    for row, label in labels.items():
        draw.text((4, margin + row * cell + cell // 3), label.text, "black", label.font)
        heading = Image.new("RGB", (margin, cell), "white")
        ImageDraw.Draw(heading).text((4, cell // 3), label.text, "black", label.font)
        sheet.paste(heading.rotate(90, expand=True), (margin + row * cell, 0))
        for column in range(n):
            share, left, top = float(shares[row, column]), margin + column * cell, margin + row * cell
            shade = (round(255 - 205 * share), round(255 - 150 * share), 255)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=shade)
            count = str(int(confusion[row, column]))
            draw.text((left + 5, top + cell // 3), count, "white" if share > 0.6 else "black", plain)
    draw.text((4, 4), "rows: is\ncolumns:\ntaken for", "gray", plain)
    return _with_legend(sheet, labels.legend)


def _confusion_without_figures(confusion: Tensor, classes: tuple[str, ...]) -> Image.Image:
    margin, panel, n = 20, 400, len(classes)
    side = min(n, SIDE)
    rows, columns, counts = confusion_entries(confusion).unbind(dim=1)
    totals = torch.zeros(side, dtype=torch.float64, device="cpu").index_add_(0, rows * side // n, counts.double())
    cells = torch.zeros(side * side, dtype=torch.float64, device="cpu")
    cells.index_add_(0, rows * side // n * side + columns * side // n, counts.double())
    shares = cells.reshape(side, side) / totals.clamp(min=1)[:, None]
    shades = torch.stack([255 - 205 * shares, 255 - 150 * shares, torch.full_like(shares, 255)], dim=2)
    matrix = Image.fromarray(shades.round().to(torch.uint8).numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (margin + SIDE + panel, margin + SIDE + margin), "white")
    sheet.paste(matrix, (margin, margin))
    draw, plain = ImageDraw.Draw(sheet), font_for("0", 11)
    draw.text((margin, 3), f"{n:,} classes; rows: is; columns: taken for", "gray", plain)
    confused = most_confused(confusion, LISTED)
    numbers = sorted({number for pair in confused for number in pair[:2]})
    labels = Labels({number: classes[number] for number in numbers}, 11, 150)
    left, top = margin + SIDE + 12, margin
    for place, word in ((0, "is"), (165, "taken for"), (330, "images")):
        draw.text((left + place, top), word, "gray", plain)
    for true, guess, count in confused:
        top += 18
        for place, number in ((0, true), (165, guess)):
            draw.text((left + place, top), labels[number].text, "black", labels[number].font)
        draw.text((left + 330, top), f"{count:,}", "black", plain)
    _write_legend(draw, labels.legend, left, top + 36, panel - 12)
    return sheet


def _with_legend(sheet: Image.Image, legend: list[str]) -> Image.Image:
    """`sheet` with the lines of `legend` below it."""
    if not legend:
        return sheet
    lines = min(len(legend), LEGEND + 1)
    longer = Image.new("RGB", (sheet.width, sheet.height + 8 + 14 * lines), "white")
    longer.paste(sheet)
    _write_legend(ImageDraw.Draw(longer), legend, 4, sheet.height + 4, sheet.width - 8)
    return longer


def _write_legend(draw: ImageDraw.ImageDraw, legend: list[str], left: int, top: int, width: int) -> None:
    if len(legend) > LEGEND:
        legend = [*legend[:LEGEND], f"... and {len(legend) - LEGEND} more: the classes in config.json, from 0"]
    font = font_for("0", 11)
    for place, line in enumerate(legend):
        draw.text((left, top + 14 * place), shortened(line, font, width), "black", font)
