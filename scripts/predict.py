"""Predict the class of images: `python scripts/predict.py IMAGE…`, see `--help`.

With `--legacy` FILE is any file of `torch.save`; without an image the script describes its content.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from reference.checkpoint import build_network, load_checkpoint
from reference.command_line import parse_arguments
from reference.device import choose_device
from reference.errors import InputError, exit_with
from reference.files import atomic_write
from reference.inference import Prediction, checkpoint_of, draw_answers, newest_checkpoint, predict
from reference.legacy_checkpoint import read_legacy_checkpoint
from reference.messages import Language, counted
from reference.text import json_text, output_lost, print_line, print_wrapped, printable

SAVED = 100
"""Images in the file of `--save`."""


@dataclass(frozen=True)
class Question:
    """Predict the class of each image, with the probability of each class.

    The probabilities are the softmax of the network's scores: they sum to one and order the classes, but they are not
    calibrated: of the answers given with 80 %, another share than 80 % may be right.
    """

    GROUPS: ClassVar = {
        "common": ("images", "checkpoint", "top_k", "verbose", "save", "json", "lang"),
        "files of other programs": ("legacy", "choose", "class_names", "size"),
        "computing": ("batch_size", "device"),
    }

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image files, and folders with images."""
    checkpoint: Path | None = None
    """A run or a checkpoint of one, which holds the names of the classes; by default the newest run in runs/."""
    legacy: bool = False
    """The checkpoint is another file of torch.save, a whole network or a state dict, of any PyTorch since 1.0; nothing
    in it is run. Without an image: describe its content."""
    choose: str | None = None
    """With --legacy, the network to use if the file holds several; without it they are listed."""
    class_names: tuple[str, ...] = ()
    """With --legacy, the name of each class in the order of the scores, which such a file lacks. Without names classes
    are numbered."""
    size: int | None = None
    """With --legacy, the height and width to resize images to: 32, as in the tutorial, if not given; VGG16 was trained
    on 224."""
    top_k: int = 3
    """Number of classes to print per image."""
    batch_size: int = 64
    """Images computed together."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print one JSON list (docs/predict.schema.json)."""
    verbose: bool = False
    """Also print the scores (logits) and the number of the class, as the tutorial does."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """Write the images with their answers into this PNG file, the first 100 of them."""
    lang: Language = "auto"
    """The language of messages: English, Chinese, or that of the system's locale."""


def main() -> int:
    question = parse_arguments(Question)
    checkpoint = question.checkpoint
    if question.legacy:
        if checkpoint is None:
            raise InputError("--legacy needs --checkpoint FILE")
        found = read_legacy_checkpoint(checkpoint, choose=question.choose)
        if not question.images:
            print(found.describe())
            return 0
        height = width = 32 if question.size is None else question.size
        network, class_names = found.classifier(question.class_names, (height, width))
        batch_size = found.batch_size(question.batch_size, (height, width))
        for note in found.notes:  # assumptions
            print_wrapped(f"note: {note}", error=True)
    else:
        if not question.images:
            raise InputError("IMAGE is missing: name at least one image or folder")
        if checkpoint is None:
            checkpoint = newest_checkpoint()
            print_wrapped(f"using the newest run: {checkpoint}", error=True)
        checkpoint = checkpoint_of(checkpoint)
        content = load_checkpoint(checkpoint)
        if question.class_names or question.size is not None or question.choose is not None:
            raise InputError("--class-names, --size and --choose need --legacy: this checkpoint needs none of them")
        height, width = content["preprocessing"]["size"]
        network, class_names = build_network(content), content["class_names"]
        batch_size = question.batch_size
    answers = predict(
        network.to(choose_device(question.device)),
        class_names,
        question.images,
        top_k=question.top_k,
        batch_size=batch_size,
        size=(height, width),
    )
    kept: list[Prediction] = []
    if question.save is not None:
        answers = keeping(answers, kept)
    failed = (show_json if question.json else show_text)(answers, question.verbose)
    if question.save is not None:
        save_answers(question.save, kept, tuple(class_names))
    return 2 if failed else 0


def keeping(answers: Iterator[Prediction], kept: list[Prediction]) -> Iterator[Prediction]:
    """Yield the answers unchanged, and keep the first `SAVED` answers without an error."""
    for answer in answers:
        if answer.error is None and len(kept) < SAVED:
            kept.append(answer)
        yield answer


def save_answers(path: Path, answers: list[Prediction], class_names: tuple[str, ...]) -> None:
    """Write the images with their answers as a PNG file."""
    if not answers:
        raise InputError(f"--save {path}: there is no answer to draw")
    sheet = draw_answers([(answer.image, *answer.classes[0]) for answer in answers], class_names)
    with atomic_write(path) as file:
        sheet.save(file, "png")
    print_wrapped(f"answers written to {path}: {counted(len(answers), 'image')}", error=True)


def show_text(answers: Iterator[Prediction], verbose: bool) -> bool:
    """Print one line per answer, errors on standard error; return whether there were any errors."""
    failed = False
    for answer in answers:
        if answer.error is not None:
            failed = True
            print_line(f"error: {answer.error}", error=True)
        else:
            named = ", ".join(f"{name} {share:.1%}" for name, share in answer.classes)
            print(printable(f"{answer.image}: {named}"), flush=True)  # no message, so it is not translated
            if verbose and answer.scores is not None:  # chapter 20, lines 2106 and 2107
                scores = answer.scores.float()[None]
                print(f"{scores}\n{scores.argmax(1)}", flush=True)
            if output_lost():
                break
    return failed


def show_json(answers: Iterator[Prediction], verbose: bool) -> bool:
    """Print one JSON list element by element, errors also on standard error; return whether there were any errors."""
    failed, before = False, "[\n"
    for answer in answers:
        if answer.error is not None:
            failed = True
            print_line(f"error: {answer.error}", error=True)
        element: dict[str, Any] = {
            "image": str(answer.image),
            "classes": [{"name": name, "probability": share} for name, share in answer.classes],
            "class": None if answer.scores is None else int(answer.scores.argmax()),
            "error": answer.error,
        }
        if verbose:
            element["scores"] = None if answer.scores is None else answer.scores.tolist()
        text = json_text(element, indent=2, encoding=sys.stdout.encoding).replace("\n", "\n  ")
        print(f"{before}  {text}", end="", flush=True)
        before = ",\n"
        if output_lost():
            break
    print("\n]")
    return failed


if __name__ == "__main__":
    exit_with(main)
