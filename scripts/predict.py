"""Say what is on a picture: `python scripts/predict.py PICTURE… --checkpoint FILE`, see `--help`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from reference.checkpoint import build_network, load_checkpoint
from reference.device import choose_device
from reference.errors import exit_with
from reference.inference import predict


@dataclass(frozen=True)
class Question:
    """Say what is on pictures, with the probability of each class."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Files of any kind that Pillow reads."""
    checkpoint: Path
    """A checkpoint that train_full.py wrote: best.pt or last.pt of a run. The class names come from it."""
    top_k: int = 3
    """How many classes to name for a picture."""
    batch_size: int = 64
    """Pictures computed together."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: bool = False
    """Print one JSON list instead of text."""


def main() -> int:
    question = tyro.cli(tyro.conf.FlagCreatePairsOff[Question])
    content = load_checkpoint(question.checkpoint)
    network = build_network(content).to(choose_device(question.device))
    answers = predict(
        network, content["class_names"], question.pictures, top_k=question.top_k, batch_size=question.batch_size
    )
    failed, listed = False, []
    for answer in answers:
        if answer.error is not None:
            failed = True
            print(f"error: {answer.error}", file=sys.stderr)
        elif not question.json:
            print(f"{answer.picture}: " + ", ".join(f"{name} {share:.1%}" for name, share in answer.classes))
        listed.append(
            {
                "picture": str(answer.picture),
                "classes": [{"name": name, "probability": share} for name, share in answer.classes],
                "error": answer.error,
            }
        )
    if question.json:
        print(json.dumps(listed, indent=2, ensure_ascii=False))
    return 2 if failed else 0


if __name__ == "__main__":
    exit_with(main)
