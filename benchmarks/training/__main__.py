"""The speed of the tutorial's training, as ratios of alternating pairs: `python -m benchmarks.training [FIGURE …]`.

The baseline is the tutorial's own loop (chapter 18, lines 1499 to 1518): a DataLoader that converts image by image,
PyTorch's layers and SGD in float32, batches of 64. The images are those of OCEAN_DATA, otherwise random ones.
"""

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks.training.data import cache, decode, input_epoch
from benchmarks.training.recipe import epochs, fast, targets
from benchmarks.training.run import besides, memory, start
from benchmarks.training.steps import choices, gemm_share, profile, steps_per_second
from reference.device import keep_freed_memory

FIGURES: dict[str, Callable[[], None]] = {
    "steps": steps_per_second,
    "choices": choices,
    "gemm": gemm_share,
    "input": input_epoch,
    "cache": cache,
    "decode": decode,
    "memory": memory,
    "fast": fast,
    "epochs": epochs,
    "targets": targets,
    "start": start,
    "besides": besides,
    "profile": profile,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"{', '.join(FIGURES)}; all if none is named")
    names = parser.parse_args().figures or list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error(f"FIGURE must be one of {', '.join(FIGURES)}, got {unknown[0]}")
    keep_freed_memory()  # as in a training; the tutorial's loop runs in a separate process
    print(f"on {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| figure | ratio (half of the pairs; pairs) or value | |\n|---|---|---|", flush=True)
    for name in names:
        FIGURES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
