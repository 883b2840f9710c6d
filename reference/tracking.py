"""Chapter 02: what a training writes for TensorBoard: `tensorboard --logdir RUN` shows it.

train_loss                  at every hundredth step, counted over all epochs
test_loss, test_accuracy    after each epoch, at the steps 0, 1, 2, … as in the tutorial; test_loss is its sum of
                            batch means, and test_loss_mean the mean over the pictures
graph                       the network's
predictions                 the first test pictures, with what they are and what they were taken for
confusion                   the confusion matrix
"""

import warnings
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from reference.files import atomic_write

EVENT_FILES = "events.out.tfevents.*"


class Tracker:
    """A TensorBoard event file in `folder`. Events reach the disk at `flush` and `close`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # so that `import reference` does not cost it

        self.writer = SummaryWriter(str(folder), flush_secs=3600)  # we say when

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

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """Write one RGB picture."""
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        self.writer.add_image(tag, pixels.reshape(image.height, image.width, 3), step, dataformats="HWC")

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        self.writer.flush()

    def close(self) -> None:
        """Flush and end the file."""
        self.writer.close()


def forget_after(folder: Path, *, step: int, epoch: int) -> None:
    """Make the event files of `folder` end where a checkpoint stands, so that going on from it writes nothing twice.

    A run that was killed has logged more than its last checkpoint knows. What came after is dropped: `train_loss`
    beyond `step`, everything else from epoch `epoch` on (epochs count from 0). The files are merged into one, whole or
    not at all.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)
    from tensorboard.summary.writer.record_writer import RecordWriter

    def started(file: Path) -> float:
        """When its first event was written: of files of one second the names do not tell the order."""
        first = next(iter(RawEventFileLoader(str(file)).Load()), None)
        return Event.FromString(first).wall_time if first is not None else float("inf")

    files = sorted(folder.glob(EVENT_FILES), key=started)
    if not files:
        return
    # The merged file takes the first one's name: a crash before the others are gone leaves duplicates, never a gap.
    with atomic_write(files[0]) as merged:
        writer = RecordWriter(merged)
        for file in files:
            for record in RawEventFileLoader(str(file)).Load():  # ends at a record that was cut off
                event = Event.FromString(record)
                tags = {value.tag for value in event.summary.value}
                keep = event.step <= step if tags == {"train_loss"} else not tags or event.step < epoch
                if keep and (file == files[0] or event.WhichOneof("what") == "summary"):
                    writer.write(record)
    for file in files[1:]:
        file.unlink()


def draw_predictions(
    images: UInt8[Tensor, "n 3 height width"],
    targets: Int[Tensor, "n"],
    predictions: Int[Tensor, "n"],
    classes: tuple[str, ...],
    *,
    columns: int = 8,
    scale: int = 3,
) -> Image.Image:
    """A grid of enlarged pictures; under each what it was taken for: green if that is right, else red and the truth."""
    height, width, caption = images.shape[2] * scale, images.shape[3] * scale, 24
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + caption)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, (image, target, guess) in enumerate(zip(images, targets.tolist(), predictions.tolist(), strict=True)):
        left, top = number % columns * width, number // columns * (height + caption)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left + 2, top + height), classes[guess], "green" if guess == target else "red", font)
        if guess != target:
            draw.text((left + 2, top + height + 11), f"is {classes[target]}", "black", font)
    return sheet


def draw_confusion(
    confusion: Int[Tensor, "classes classes"], classes: tuple[str, ...], *, cell: int = 44
) -> Image.Image:
    """The confusion matrix as a table: a row a true class, a column what it was taken for, darker the more pictures."""
    margin, n = 90, len(classes)
    sheet = Image.new("RGB", (margin + n * cell, margin + n * cell), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    for row, name in enumerate(classes):
        draw.text((4, margin + row * cell + cell // 3), name[:14], "black", font)
        heading = Image.new("RGB", (margin, cell), "white")
        ImageDraw.Draw(heading).text((4, cell // 3), name[:14], "black", font)
        sheet.paste(heading.rotate(90, expand=True), (margin + row * cell, 0))
        for column in range(n):
            share, left, top = float(shares[row, column]), margin + column * cell, margin + row * cell
            shade = (round(255 - 205 * share), round(255 - 150 * share), 255)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=shade)
            draw.text(
                (left + 5, top + cell // 3), str(int(confusion[row, column])), "white" if share > 0.6 else "black", font
            )
    draw.text((4, 4), "rows: is\ncolumns:\ntaken for", "gray", font)
    return sheet
