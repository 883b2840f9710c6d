"""Chapter 18: checks of the user's images before a training, with one line for each finding."""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from reference.data.image_tree import ImageTree
from reference.data.images import image_header
from reference.errors import InputError
from reference.text import printable

FEW = 20
"""Classes with fewer training images than this are named."""
LOOKED_AT = 300
"""The number of files of each part with a header that is read; 60,000 headers take seconds."""
NAMED = 5
"""The number of names in a line."""


def findings(train_set: ImageTree, test_set: ImageTree, root: Path) -> Iterator[str]:
    """The findings about the images in `root` before a training, one text each."""
    yield from few_images(train_set)
    yield from sizes_and_modes(train_set, test_set, root)
    yield from duplicates(train_set, test_set)
    skipped = [f"{half}/{path}" for half, tree in (("train", train_set), ("test", test_set)) for path in tree.skipped]
    if skipped:
        yield f"broken images that are skipped: {len(skipped):,}: {listed(skipped)}"


def few_images(train_set: ImageTree) -> Iterator[str]:
    """The classes with few training images."""
    counts = torch.bincount(train_set.targets, minlength=len(train_set.classes)).tolist()
    few = sorted((count, name) for count, name in zip(counts, train_set.classes, strict=True) if count < FEW)
    if few:
        named = listed([f"{name} ({count})" for count, name in few])
        yield f"classes with fewer than {FEW} training images: {len(few):,} of {len(counts):,}: {named}"


def sizes_and_modes(train_set: ImageTree, test_set: ImageTree, root: Path) -> Iterator[str]:
    """The sizes and modes of a sample of the files that is spread over both parts."""
    sizes, modes = Counter[tuple[int, int]](), Counter[str]()
    for half, tree in (("train", train_set), ("test", test_set)):
        for path in tree.paths[:: -(-len(tree.paths) // LOOKED_AT) or 1]:
            try:
                width, height, mode = image_header(root / half / path)
            except InputError:  # the file has changed since it was decoded
                continue
            sizes[width, height] += 1
            modes[mode] += 1
    if not sizes:
        return
    (usual, times), *others = sizes.most_common()
    files, often = sizes.total(), f"{usual[0]}×{usual[1]}"
    if others:
        widths, heights = zip(*sizes, strict=True)
        smallest, largest = f"{min(widths)}×{min(heights)}", f"{max(widths)}×{max(heights)}"
        yield f"sizes of {files:,} files: {smallest} to {largest} pixels, most often {often} ({times / files:.0%})"
    else:
        yield f"sizes of {files:,} files: {often} pixels"
    named = ", ".join(f"{mode} {count / modes.total():.0%}" for mode, count in modes.most_common(NAMED))
    yield f"modes: {named}; the network gets 32×32 pixels in RGB"


def duplicates(train_set: ImageTree, test_set: ImageTree) -> Iterator[str]:
    """The test images that are also training images, compared by the pixels of the network's input."""

    known = {digest: place for place, digest in enumerate(digests(train_set.images))}
    twins = ((place, known.get(digest)) for place, digest in enumerate(digests(test_set.images)))
    found = [
        f"test/{test_set.paths[place]} = train/{train_set.paths[twin]}" for place, twin in twins if twin is not None
    ]
    if found:
        share = len(found) / len(test_set)
        yield (
            f"test images that are also training images: {len(found):,} ({share:.1%}), so the test accuracy is too "
            f"high: {listed(found)}"
        )


def digests(images: UInt8[Tensor, "n channels height width"]) -> Iterator[bytes]:
    """The SHA-256 of each image; processors have instructions for it."""
    return (sha256(pixels.data).digest() for pixels in images.flatten(1).numpy())


def listed(names: list[str]) -> str:
    """The first names, followed by an ellipsis if there are more."""
    return ", ".join(map(printable, names[:NAMED])) + ", …" * (len(names) > NAMED)
