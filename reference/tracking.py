"""Chapter 02: the logs of a training for TensorBoard: `tensorboard --logdir RUN` shows them.

train_loss                  at every hundredth step, counted over all epochs
test_loss, test_accuracy    after each epoch, at the steps 0, 1, 2, … as in the tutorial; test_loss is its sum of
                            batch means, and test_loss_mean the mean over the images
graph                       the network's graph
predictions                 the first test images, with their classes and the predicted classes
confusion                   the confusion matrix
mistakes                    the wrong answers of the highest probability
kernels                     the kernels of the first convolution as images
hyperparameters             in the HParams tab, beside the results of the run

TensorBoard draws runs that have a tag in common in one chart. So two folders inside the run, `train` and `test`, hold
`loss` (mean over images) and `accuracy` by the number of the step; `train` also holds `learning_rate`. The training
loss has a point for every step at first and later for every 2, 4, … steps, so that a short run has a curve too.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor, nn

from reference.files import atomic_write
from reference.fonts import Labels, font_for, legible, shortened
from reference.training import confusion_entries, most_confused

EVENT_FILES = "events.out.tfevents.*"
COUNT = 15  # height of the letters in the confusion matrix with counts, in pixels
FIGURES = 32  # largest number of classes drawn with counts and names: at most 1,498 pixels per side
SIDE = 1024  # side length, in pixels, of the confusion matrix with more classes
LISTED = 24  # pairs of classes listed next to it
LEGEND = 32  # names listed in a legend


@contextmanager
def utf8_path(folder: Path) -> Iterator[Path]:
    """A path to `folder` in UTF-8, as TensorBoard requires: a temporary link if the path itself is not UTF-8."""
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
        self.folder, self.kind = folder, SummaryWriter
        self.parts: dict[str, Any] = {}
        self.writer = self.part("")

    def part(self, name: str) -> Any:
        """The writer of the run, or of its part `train` or `test`, a folder inside it."""
        if name not in self.parts:
            (self.folder / name).mkdir(exist_ok=True)
            path = self.leaving.enter_context(utf8_path(self.folder / name))
            self.parts[name] = self.kind(str(path), flush_secs=3600)  # flushed explicitly
        return self.parts[name]

    def scalars(self, step: int, part: str = "", **values: float) -> None:
        """Write each value under its name as the tag, into the run or into its part `train` or `test`."""
        for tag, value in values.items():
            self.part(part).add_scalar(tag, value, step)

    def hyperparameters(self, settings: Mapping[str, Any], results: Iterable[str]) -> None:
        """Write the settings for the HParams tab, which shows them beside the scalars named `results`."""
        from torch.utils.tensorboard.summary import hparams

        values = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
        for summary in hparams(values, dict.fromkeys(results, 0.0)):
            self.writer.file_writer.add_summary(summary, 0)

    def graph(self, network: nn.Module, example: Tensor) -> None:
        """Write the network's graph, traced with a batch like `example`; the network's mode does not change."""
        training = network.training
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates the tracer; TensorBoard has no other way
            # a trace is taken over as it is; add_graph's own would import a thousand modules to compare it with itself
            self.writer.add_graph(torch.jit.trace(network.eval(), example, check_trace=False), example)
        network.train(training)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Write one RGB image."""
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        self.writer.add_image(tag, pixels.reshape(image.height, image.width, 3), step, dataformats="HWC")

    def flush(self) -> None:
        """Write all events so far to the disk."""
        for writer in self.parts.values():
            writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        with self.leaving, ExitStack() as closing:
            for writer in self.parts.values():
                closing.callback(writer.close)


def forget_after(folder: Path, *, step: int, epoch: int, evaluated: int = 0) -> None:
    """Truncate the event files of `folder` to a checkpoint, so that resuming from it writes nothing twice.

    A run that was killed has logged more than its last checkpoint covers. The later events are dropped: `train_loss`
    beyond `step`, everything else from epoch `epoch` on (epochs count from 0); in the parts `train` and `test`, the
    events of steps beyond `step`, and of results beyond `evaluated`, the step of the last test. The files of a folder
    are merged into one, completely or not at all.
    """

    def in_run(tags: set[str], at: int) -> bool:
        if tags == {"train_loss"}:
            return at <= step
        return not tags or at < epoch or all(tag.startswith("_hparams_/") for tag in tags)

    def in_train(tags: set[str], at: int) -> bool:
        return not tags or at <= (evaluated if tags == {"accuracy"} else step)

    def in_test(tags: set[str], at: int) -> bool:
        return not tags or at <= evaluated

    for place, keeps in ((folder, in_run), (folder / "train", in_train), (folder / "test", in_test)):
        _truncate(place, keeps)


def _truncate(folder: Path, keeps: Callable[[set[str], int], bool]) -> None:
    """Merge the event files of `folder` into one, with the events of which `keeps(tags, step)` is true."""

    def started(file: Path) -> float:
        """The time of the file's first event, because files of the same second cannot be ordered by their names."""
        return next((event.wall_time for _, event in _events(file)), float("inf"))

    with utf8_path(folder) as place:
        files = [file for file in place.glob(EVENT_FILES) if file.is_file()]  # opening a FIFO would wait for its writer
        if files:
            _merge(sorted(files, key=started), keeps)


def _merge(files: list[Path], keeps: Callable[[set[str], int], bool]) -> None:
    """Replace `files`, in the order of their events, by one file with the events to keep."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    # The merged file gets the name of the first file: a crash before the others are deleted leaves duplicates, never a
    # gap. The next merge drops a record that was written before.
    written: set[bytes] = set()
    with atomic_write(files[0]) as merged:
        writer = RecordWriter(merged)
        for file in files:
            for record, event in _events(file):
                tags = {value.tag for value in event.summary.value}
                digest = blake2b(record, digest_size=16).digest()
                wanted = keeps(tags, event.step) and (file == files[0] or event.WhichOneof("what") == "summary")
                if wanted and digest not in written:
                    writer.write(record)
                    written.add(digest)
    for file in files[1:]:
        file.unlink()


def _events(file: Path) -> Iterator[tuple[bytes, Any]]:
    """The records of an event file with their events, up to the first truncated or damaged record."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)

    with suppress(DecodeError, MemoryError, OverflowError):  # the last two: an impossible length
        for record in RawEventFileLoader(str(file)).Load():
            yield record, Event.FromString(record)


RIGHT, WRONG = "#0072b2", "#b84a00"
"""Blue and vermilion: distinguishable with every kind of colour vision, and dark enough for small text."""
CAPTION = 10  # height of the letters below an image, in pixels


def draw_predictions(
    images: UInt8[Tensor, "n 3 height width"],
    targets: Int[Tensor, "n"],
    predictions: Int[Tensor, "n"],
    classes: tuple[str, ...],
    *,
    confidences: Float[Tensor, "n"] | None = None,
    columns: int = 8,
    scale: int = 3,
    letters: int = CAPTION,
) -> Image.Image:
    """A grid of enlarged images, each with the predicted class: blue if it is right, otherwise vermilion with the
    target.

    Names that no font can draw are shown as `#number`; the legend below the grid gives them in ASCII.

    Args:
        images: at least one image.
        targets: the class of each image.
        predictions: the predicted class of each image.
        classes: the names.
        confidences: the probability of each predicted class, shown behind it; None shows none.
        columns: images in a row.
        scale: pixels of the grid per pixel of an image.
        letters: height of the letters in pixels.
    """
    width, line = images.shape[3] * scale, letters + 1
    pairs = list(zip(targets.tolist(), predictions.tolist(), strict=True))
    names = {number: classes[number] for number in sorted({number for pair in pairs for number in pair})}
    truth = legible("is {}", letters).replace("{0}", "{}")
    shares = [""] * len(pairs) if confidences is None else [f" {share:.0%}" for share in confidences.tolist()]
    # the narrower caption determines the width, so that a class has the same label in the whole grid
    taken = max(_width(truth.replace("{}", ""), letters), *(_width(share, letters) for share in shares))
    labels = Labels(names, letters, width - 4 - taken)

    def caption(sheet: ImageDraw.ImageDraw, number: int, left: int, top: int) -> None:
        target, guess = pairs[number]
        text = f"{labels[guess].text}{shares[number]}"
        sheet.text((left + 2, top), text, RIGHT if guess == target else WRONG, labels[guess].font)
        if guess != target:
            text = truth.replace("{}", labels[target].text)
            sheet.text((left + 2, top + line), text, "black", font_for(text, letters))

    return _with_legend(_grid(images, columns, scale, 2 * line + 2, caption), labels.legend)


def draw_mistakes(
    images: UInt8[Tensor, "n 3 height width"],
    targets: Int[Tensor, "n"],
    predictions: Int[Tensor, "n"],
    confidences: Float[Tensor, "n"],
    classes: tuple[str, ...],
    *,
    most: int = 24,
    columns: int = 6,
) -> Image.Image:
    """The wrong answers with the highest probability, at most `most`; a line of text if every answer is right."""
    wrong = (predictions != targets).nonzero().flatten()
    chosen = wrong[confidences[wrong].sort(descending=True, stable=True).indices[:most]]
    if len(chosen) == 0:
        text = legible("every test image is classified correctly", 16)
        font = font_for(text, 16)
        sheet = Image.new("RGB", (round(font.getlength(text)) + 32, 64), "white")
        ImageDraw.Draw(sheet).text((16, 20), text, RIGHT, font)
        return sheet
    parts = (images[chosen], targets[chosen], predictions[chosen], classes)
    scale = max(1, 128 // images.shape[3])
    return draw_predictions(*parts, confidences=confidences[chosen], columns=columns, scale=scale, letters=14)


def draw_examples(
    images: UInt8[Tensor, "n 3 height width"],
    targets: Int[Tensor, "n"],
    classes: tuple[str, ...],
    *,
    columns: int = 8,
    rows: int = 16,
) -> Image.Image:
    """The first images of each class, one row per class; above `rows` classes, one image per class."""
    present = torch.bincount(targets).nonzero().flatten().tolist()
    each = columns if len(present) <= rows else 1
    chosen: list[int] = []
    for number in present[: rows * columns // each]:
        chosen += (targets == number).nonzero().flatten()[:each].tolist()
    scale, letters = max(1, 96 // images.shape[3]), 13
    shown = [int(targets[place]) for place in chosen]
    labels = Labels({number: classes[number] for number in sorted(set(shown))}, letters, images.shape[3] * scale - 4)
    places: list[int | None] = []
    for number in dict.fromkeys(shown):
        row: list[int | None] = [place for place, other in zip(chosen, shown, strict=True) if other == number]
        places += row + [None] * (each - len(row))  # a class with fewer images has a row too

    def caption(sheet: ImageDraw.ImageDraw, number: int, left: int, top: int) -> None:
        if (place := places[number]) is not None:
            label = labels[int(targets[place])]
            sheet.text((left + 2, top), label.text, "black", label.font)

    tiles = torch.full((len(places), *images.shape[1:]), 255, dtype=torch.uint8, device="cpu")
    for number, place in enumerate(places):
        if place is not None:
            tiles[number] = images[place]
    return _with_legend(_grid(tiles, columns, scale, letters + 4, caption), labels.legend)


def draw_kernels(weight: Float[Tensor, "filters channels height width"]) -> Image.Image:
    """The kernels of a convolution over RGB images, each as an image: 0 is grey, the extreme value is black or full
    colour.

    For another number of channels, the mean over the channels is shown.
    """
    kernels = weight.detach().cpu().float()
    if kernels.shape[1] != 3:
        kernels = kernels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    largest = kernels.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    images = (127.5 + 127.5 * kernels / largest).round().to(torch.uint8)
    padded = nn.functional.pad(images, (0, 1, 0, 1), value=255)
    return _grid(padded, 8, 12, 0, lambda *_: None)


def _width(text: str, letters: int) -> int:
    return round(font_for(text, letters).getlength(text))


def _grid(
    images: UInt8[Tensor, "n 3 height width"],
    columns: int,
    scale: int,
    caption: int,
    write: Callable[[ImageDraw.ImageDraw, int, int, int], None],
) -> Image.Image:
    """Enlarged images in rows of `columns`, with `caption` pixels below each, in which `write` puts its text."""
    height, width = images.shape[2] * scale, images.shape[3] * scale
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * (height + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left, top = number % columns * width, number // columns * (height + caption)
        tile = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (left, top))
        write(draw, number, left, top + height)
    return sheet


def draw_confusion(
    confusion: Int[Tensor, "classes classes"], classes: tuple[str, ...], *, cell: int = 44, letters: int = COUNT
) -> Image.Image:
    """The confusion matrix: a row per true class, a column per predicted class, darker for a larger share of the row.

    Up to `FIGURES` classes, each cell has its count, and each row and column its name. For more classes, the image has
    a fixed size and no counts, and above `SIDE` classes neighbouring cells share a pixel; next to it are the pairs of
    classes that were confused most often.

    Args:
        confusion: the number of images of each class (row) with each prediction (column); dense, or sparse (COO).
        classes: the names.
        cell: side of a cell with a count, in pixels.
        letters: height of the letters of counts and names, in pixels.
    """
    if len(classes) <= FIGURES:
        return _confusion_with_figures(confusion.to_dense(), classes, cell, letters)
    return _confusion_without_figures(confusion, classes)


def _confusion_with_figures(confusion: Tensor, classes: tuple[str, ...], cell: int, letters: int) -> Image.Image:
    margin, n = 90, len(classes)
    sheet = Image.new("RGB", (margin + n * cell, margin + n * cell), "white")
    draw, plain = ImageDraw.Draw(sheet), font_for("0", letters)
    labels = Labels(dict(enumerate(classes)), letters, margin - 6)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    for row, label in labels.items():
        draw.text((4, margin + row * cell + cell // 4), label.text, "black", label.font)
        heading = Image.new("RGB", (margin, cell), "white")
        ImageDraw.Draw(heading).text((4, cell // 4), label.text, "black", label.font)
        sheet.paste(heading.rotate(90, expand=True), (margin + row * cell, 0))
        for column in range(n):
            share, left, top = float(shares[row, column]), margin + column * cell, margin + row * cell
            shade = (round(255 - 205 * share), round(255 - 150 * share), 255)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=shade)
            count = str(int(confusion[row, column]))
            draw.text((left + cell // 8, top + cell // 4), count, "white" if share > 0.6 else "black", plain)
    text = legible("rows: is\ncolumns:\ntaken for", letters)
    draw.text((4, 4), text, "gray", font_for(text.replace("\n", " "), letters))
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
    text = legible(f"{n:,} classes; rows: is; columns: taken for", 11)
    draw.text((margin, 3), text, "gray", font_for(text, 11))
    confused = most_confused(confusion, LISTED)
    numbers = sorted({number for pair in confused for number in pair[:2]})
    labels = Labels({number: classes[number] for number in numbers}, 11, 150)
    left, top = margin + SIDE + 12, margin
    for place, word in ((0, "is"), (165, "taken for"), (330, "images")):
        word = legible(word, 11)
        draw.text((left + place, top), word, "gray", font_for(word, 11))
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
        more = f"... and {len(legend) - LEGEND} more: the classes in config.json, from 0"
        legend = [*legend[:LEGEND], legible(more, 11)]
    for place, line in enumerate(legend):
        font = font_for(line, 11)
        draw.text((left, top + 14 * place), shortened(line, font, width), "black", font)
