"""The data set of a training, and its description for config.json."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

from torch import Tensor

from reference.data.cifar10 import ARCHIVE, FOLDER, cifar10_pair
from reference.data.image_tree import ImageTree
from reference.data.resident import Resident
from reference.data.shapes import TEST_SIZE, TRAIN_SIZE, Shapes
from reference.messages import counted
from reference.run.glance import findings
from reference.run.settings import Settings
from reference.text import print_wrapped


def load_data(
    settings: Settings, say: Callable[[str], Any], *, leads: bool = True
) -> tuple[Resident, Resident, dict[str, Any]]:
    """Both halves of the requested data set, cut to the limits, and its description for config.json.

    Args:
        settings: of the run.
        say: prints a line, unless the run is quiet.
        leads: whether this process looks for findings in a user's own images; one of several is enough.
    """
    name, root = settings.dataset, settings.data_root
    if name == "auto":
        present = settings.download or any((root / part).exists() for part in (ARCHIVE, FOLDER))
        name = "cifar10" if present else "shapes"
        if not present:
            say(f"no CIFAR-10 under {root}/: using Shapes; to get it: --dataset cifar10 --download")
    train_set: Resident
    test_set: Resident
    if name == "shapes":
        train_set = Shapes(train=True, size=min(settings.limit_train or TRAIN_SIZE, TRAIN_SIZE))
        test_set = Shapes(train=False, size=min(settings.limit_test or TEST_SIZE, TEST_SIZE))
    elif name == "cifar10":
        train_set, test_set = cifar10_pair(
            root,
            settings.download,
            mirrors=settings.mirrors,
            archive_md5=settings.archive_md5,
            progress=not settings.quiet,
        )
    else:
        train_set, test_set = (
            ImageTree(root, train, skip_broken=settings.skip_broken, progress=not settings.quiet)
            for train in (True, False)
        )
    halves = ((train_set, settings.limit_train), (test_set, settings.limit_test))
    parts = [part[:limit] for half, limit in halves for part in (half.images, half.targets)]
    with ThreadPoolExecutor(1) as thread:  # hashing takes as long as the search for findings
        fingerprint = thread.submit(_fingerprint, parts)
        if isinstance(train_set, ImageTree) and isinstance(test_set, ImageTree) and leads:
            for line in findings(train_set, test_set, root):
                if line.startswith("broken images"):  # also with --quiet
                    print_wrapped(line)
                else:
                    say(line)
    train_set.images, train_set.targets, test_set.images, test_set.targets = parts
    tested, classes = counted(len(test_set), "test image"), counted(len(train_set.classes), "class", "classes")
    say(f"{name}: {len(train_set):,} training and {tested} of {classes}")
    return (
        train_set,
        test_set,
        {
            "dataset": name,
            "train": len(train_set),
            "test": len(test_set),
            "classes": list(train_set.classes),
            "fingerprint": fingerprint.result(),
        },
    )


def _fingerprint(parts: Iterable[Tensor]) -> str:
    """The digest of the numbers of all parts, in order."""
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(part.contiguous().numpy().data)
    return state.hexdigest()
