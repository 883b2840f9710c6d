"""Substitutes for data, weights, images and windows that this machine lacks.

The data sets of torchvision are torchvision's own classes with files of the real format and size and random content. A
network's weights are those of its initialization. Images are drawn, and `plt.show` shows nothing.
"""

import builtins
import gzip
import os
import pickle
import re
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

used: set[str] = set()
"""The substitutes that were used: "data", "weights", "images", "folders", "input"."""

variant = 0
"""The seed of the content of data and images: an output that changes with it is not compared."""

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_ABSOLUTE = re.compile(
    r"^/(?:tmp|root|home|content|kaggle|data|datasets?|mnt|workspace|media|Users|opt|path|your)(?:/|$)"
)


def local(path: Any, folder: str) -> Any:
    """An absolute path, converted to a path in the listing's folder."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    if _ABSOLUTE.match(text) and not os.path.exists(text) and not text.startswith(folder):
        return os.path.join(folder, text.lstrip("/"))
    return path


# Data sets


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def _bytes(count: int, seed: int) -> bytes:
    import numpy as np

    some = np.random.default_rng(seed).bytes(min(count, 3072 * 1009))
    return (some * (count // len(some) + 1))[:count]


def write_cifar(store: Path, classes: int) -> Path:
    """The files of CIFAR-10 or CIFAR-100, with random images."""
    import numpy as np

    base = store / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    if (base / "complete").exists():
        return base
    if classes == 10:
        parts = {**{f"data_batch_{i}": 10_000 for i in range(1, 6)}, "test_batch": 10_000}
    else:
        parts = {"train": 50_000, "test": 10_000}
    for seed, (name, count) in enumerate(parts.items()):
        pixels = np.frombuffer(_bytes(count * 3072, seed), np.uint8).reshape(count, 3072)
        labels = np.random.default_rng(seed + 100).integers(0, classes, count).tolist()
        key = "labels" if classes == 10 else "fine_labels"
        entry = {"data": pixels, key: labels, "filenames": [], "batch_label": name}
        if classes == 100:
            entry["coarse_labels"] = [label // 5 for label in labels]
        _write(base / name, pickle.dumps(entry, protocol=2))
    names = CIFAR10 if classes == 10 else [f"class_{i}" for i in range(100)]
    key = "label_names" if classes == 10 else "fine_label_names"
    meta = {key: names, "coarse_label_names": [f"group_{i}" for i in range(20)]}
    _write(base / ("batches.meta" if classes == 10 else "meta"), pickle.dumps(meta, protocol=2))
    _write(base / "complete", b"")
    return base


def write_mnist(store: Path, name: str) -> Path:
    """The files of MNIST and of the sets in its format, with random images."""
    base = store / name / "raw"
    if (base / "complete").exists():
        return base
    for seed, (part, count) in enumerate((("train", 60_000), ("t10k", 10_000))):
        images = struct.pack(">4i", 0x803, count, 28, 28) + _bytes(count * 784, seed)
        labels = struct.pack(">2i", 0x801, count) + bytes(byte % 10 for byte in _bytes(count, seed + 100))
        _write(base / f"{part}-images-idx3-ubyte", images)
        _write(base / f"{part}-labels-idx1-ubyte", labels)
        for file in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            with gzip.open(base / f"{file}.gz", "wb", compresslevel=0) as packed:
                packed.write(b"")  # the archive that a download would leave; it is never read
    _write(base / "complete", b"")
    return base


def prepare(text: str, store: Path) -> None:
    """Write the files of the data sets in a document before the time of the listings is measured."""
    for classes in (10, 100):
        if f"CIFAR{classes}" in text:
            write_cifar(store, classes)
    for name in ("FashionMNIST", "KMNIST", "MNIST"):
        if re.search(rf"\b{name}\b", text):
            write_mnist(store, name)


def _drawn(path: Path) -> bool:
    """Whether an image is one of `draw`."""
    from PIL import Image

    with suppress(OSError, ValueError), Image.open(path) as image:
        return image.size == (1024, 768)
    return False


def _vary(data: Any) -> None:
    """Change the content of a data set for the second run."""
    if not variant or not hasattr(data, "targets"):
        return
    data.data = 255 - data.data
    targets = data.targets
    data.targets = targets[1:] + targets[:1] if isinstance(targets, list) else targets.roll(1)


def _place(source: Path, target: Path) -> None:
    """Link the files of a data set into its root folder."""
    if target.exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        with suppress(OSError):
            os.symlink(file, target / file.name)


def draw(path: Path, seed: int = 0) -> None:
    """An image of 1024×768 pixels in the format of its file extension."""
    import numpy as np
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed + 1000 * variant).integers(0, 256, (12, 16, 3), np.uint8)
    image = Image.fromarray(pixels).resize((1024 + 32 * variant, 768 + 16 * variant))
    with suppress(ValueError, OSError):
        image.save(path)


def draw_folder(path: Path, count: int = 8) -> None:
    """A folder of images, named as in the data sets that tutorials use."""
    for number in range(count + variant):
        draw(path / f"{13035 + number:07}.jpg", number)


def classes_of(text: str) -> list[str]:
    """The class names in a document, for a folder with one sub-folder per class."""
    for pair in (("ants", "bees"), ("cats", "dogs"), ("cat", "dog"), ("dog", "wolf")):
        if all(re.search(rf"\b{name}\b", text, re.IGNORECASE) for name in pair):
            return list(pair)
    return ["class_a", "class_b"]


def install_data(folder: Path, store: Path, text: str) -> None:
    """Provide the files of torchvision's data sets and the content of other paths in the document."""
    own = str(folder)
    if variant:
        used_before = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and _drawn(path)]
        for path in used_before:
            path.unlink()
    _images(own)
    _folders(own, text)
    try:
        import torchvision.datasets as sets
        from torchvision.datasets import cifar, mnist
    except ImportError:
        return

    def before(kind: Any, prepare: Callable[[Path], None]) -> None:
        original = kind.__init__

        @wraps(original)
        def made(self: Any, root: Any = None, *arguments: Any, **named: Any) -> None:
            root = local(root, own) if root is not None else root
            if isinstance(root, str | os.PathLike):
                used.add("data")
                prepare(Path(os.path.expanduser(os.fsdecode(root))))
            original(self, *(() if root is None else (root,)), *arguments, **named)
            _vary(self)

        kind.__init__ = made

    before(sets.CIFAR10, lambda root: _place(write_cifar(store, 10), root / "cifar-10-batches-py"))
    cifar.check_integrity = lambda *_, **__: True

    def hundred(root: Path) -> None:
        _place(write_cifar(store, 100), root / "cifar-100-python")

    original: Any = sets.CIFAR100.__init__

    @wraps(original)
    def made(self: Any, root: Any = None, *arguments: Any, **named: Any) -> None:
        if isinstance(root, str | os.PathLike):
            used.add("data")
            hundred(Path(os.path.expanduser(os.fsdecode(local(root, own)))))
        original(self, *(() if root is None else (root,)), *arguments, **named)

    sets.CIFAR100.__init__ = made
    original_mnist: Any = sets.MNIST.__init__  # FashionMNIST and KMNIST inherit it

    @wraps(original_mnist)
    def mnist_made(self: Any, root: Any = None, *arguments: Any, **named: Any) -> None:
        if isinstance(root, str | os.PathLike):
            used.add("data")
            root = local(root, own)
            name = type(self).__name__
            files = write_mnist(store, name if name in ("FashionMNIST", "KMNIST") else "MNIST")
            _place(files, Path(os.path.expanduser(os.fsdecode(root))) / name / "raw")
        original_mnist(self, *(() if root is None else (root,)), *arguments, **named)
        _vary(self)

    sets.MNIST.__init__ = mnist_made
    mnist.check_integrity = lambda *_, **__: True

    def image_folder(root: Path) -> None:
        if not root.exists() or not any(root.iterdir()):
            used.add("folders")
            for name in classes_of(text):
                draw_folder(root / name)

    before(sets.ImageFolder, image_folder)


def _images(own: str) -> None:
    """Provide images that the document opens but does not include."""
    from PIL import Image

    original = Image.open

    @wraps(original)
    def opened(fp: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(fp, str | os.PathLike):
            fp = local(fp, own)
            path = Path(os.fsdecode(fp))
            if not path.exists() and path.suffix.lower() in IMAGES:
                used.add("images")
                draw(path)
        return original(fp, *arguments, **named)

    Image.open = opened
    with suppress(ImportError):
        import torchvision.io as io
        import torchvision.io.image as image

        for home, name in ((io, "read_image"), (image, "read_image"), (io, "read_file"), (image, "read_file")):
            function = getattr(home, name)

            @wraps(function)
            def read(path: Any, *arguments: Any, _function: Any = function, **named: Any) -> Any:
                where = Path(os.fsdecode(local(path, own)))
                if not where.exists() and where.suffix.lower() in IMAGES:
                    used.add("images")
                    draw(where)
                return _function(str(where), *arguments, **named)

            setattr(home, name, read)


def _folders(own: str, text: str) -> None:
    """Provide folders that the document lists: eight images, or the folders of the classes."""

    def ensure(path: Any) -> Any:
        path = local("." if path is None else path, own)
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        last = os.path.basename(name.rstrip("/\\"))
        if name and not os.path.exists(name) and os.path.realpath(name).startswith(own) and last and last in text:
            used.add("folders")
            if last.lower() in ("train", "val", "valid", "test", "training", "data") and "ImageFolder" not in text:
                for each in classes_of(text):
                    draw_folder(Path(name) / each)
            else:
                draw_folder(Path(name))
        return path

    for name in ("listdir", "scandir"):
        function = getattr(os, name)

        @wraps(function)
        def listed(path: Any = ".", _function: Any = function) -> Any:
            if isinstance(path, int):
                return _function(path)
            found = _function(ensure(path))
            return sorted(found) if isinstance(found, list) else found

        setattr(os, name, listed)


# Weights


class _Weights(dict):
    """A substitute for downloaded weights: a network that loads it keeps its own weights."""


def install_weights() -> None:
    """Let networks with pretrained weights keep their initial weights."""
    import torch

    def given(*_: Any, **__: Any) -> Any:
        used.add("weights")
        return _Weights()

    original = torch.nn.Module.load_state_dict

    @wraps(original)
    def load(self: Any, state_dict: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(state_dict, _Weights):
            return torch.nn.modules.module._IncompatibleKeys([], [])
        return original(self, state_dict, *arguments, **named)

    torch.nn.Module.load_state_dict = load
    torch.hub.load_state_dict_from_url = given
    with suppress(ImportError):
        import torch.utils.model_zoo as zoo

        zoo.load_url = given
    with suppress(ImportError):
        import torchvision._internally_replaced_utils as replaced
        from torchvision.models import _api

        replaced.load_state_dict_from_url = given
        _api.load_state_dict_from_url = given
        _api.WeightsEnum.get_state_dict = given


# Windows, keys and time


def install_rest() -> None:
    """Replace windows by nothing, answer `input` with "1", and shorten `sleep`."""
    os.environ["MPLBACKEND"] = "Agg"

    def answer(prompt: object = "", /) -> str:
        used.add("input")
        sys.stdout.write(str(prompt))
        return "1"

    builtins.input = answer
    wait = time.sleep

    def briefly(seconds: Any, /) -> None:
        wait(min(float(seconds), 0.01))

    time.sleep = briefly
    with suppress(ImportError):
        from PIL import Image

        Image.Image.show = lambda self, *_, **__: None
