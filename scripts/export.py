"""Write a trained network for other programs: `python scripts/export.py RUN --to onnx`, see `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from reference.command_line import parse_arguments
from reference.errors import exit_with
from reference.export import IMAGES, SUFFIXES, Kind, export
from reference.inference import checkpoint_of, newest_checkpoint
from reference.messages import Language
from reference.text import print_wrapped

TRAP = (
    "loading this file with torch.load(FILE, weights_only=False) runs code of the file and needs reference/ with the "
    "class of the network; prefer safetensors or torch-export for files that others get"
)


@dataclass(frozen=True)
class Export:
    """Write the network of a run as one file, with class names and preprocessing inside, and verify the file.

    The file's answers on 100 images are compared with the network's.
    """

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """The folder of a run, of which best.pt is taken, or a checkpoint; by default the newest run in runs/."""
    to: Kind = "safetensors"
    """safetensors: the weights. onnx: for onnxruntime and other runtimes. torch-export: for torch.export.load.
    whole-module: chapter 17's method 1, torch.save of the whole network."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file to write; by default network.* beside the checkpoint."""
    lang: Language = "auto"
    """The language of messages: English, Chinese, or that of the system's locale."""


def main() -> None:
    wanted = parse_arguments(Export)
    checkpoint = newest_checkpoint() if wanted.run is None else checkpoint_of(wanted.run)
    if wanted.run is None:
        print_wrapped(f"using the newest run: {checkpoint}", error=True)
    output = wanted.output or checkpoint.with_name("network" + SUFFIXES[wanted.to])
    difference = export(checkpoint, wanted.to, output)
    print_wrapped(
        f"{output}: {output.stat().st_size:,} bytes; its scores of {IMAGES} images differ from the network's by at "
        f"most {difference:.1g}"
    )
    if wanted.to == "whole-module":
        print_wrapped(f"note: {TRAP}", error=True)


if __name__ == "__main__":
    exit_with(main)
