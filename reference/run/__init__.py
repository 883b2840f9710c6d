"""The training of `scripts/train_full.py` and its run folder.

    runs/shapes-20240411-120000/
        config.json         every setting, the versions, the device, the data
        metrics.jsonl       one line per epoch
        last.pt, best.pt    `last.pt` resumes training; `best.pt` has the best test accuracy
        epoch-0010.pt …     with `--keep-every N`
        summary.json the result, after the last epoch
        README.md           the model description
        results.png, confusion.png, mistakes.png, data.png
        events.out.…        for TensorBoard; `train/` and `test/` hold the curves that share an axis

`last.pt` is authoritative: it is replaced in one step, after everything else of its epoch was written, and resuming
truncates the other files to it. A run that was killed at any moment can be resumed with the same result as an
uninterrupted run: on the CPU, with the same number of threads and the same versions, bit for bit.
"""

from reference.run.data import load_data
from reference.run.folder import RunFolder
from reference.run.parts import Plan, prepare
from reference.run.settings import Settings, parse, stored_settings
from reference.run.train import explained, train, train_seeds

__all__ = [
    "Plan",
    "RunFolder",
    "Settings",
    "explained",
    "load_data",
    "parse",
    "prepare",
    "stored_settings",
    "train",
    "train_seeds",
]
