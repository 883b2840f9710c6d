"""Chapter 05: CIFAR-10 from its official files, packed or unpacked, without running anything in them.

The official archive holds five training batches and a test batch of 10,000 images each, and the class names: Python 2
pickles. A pickle is a program for a small stack machine, and Python's own reader lets it call any function.
`BatchMachine` is this machine without calls: it can only describe an array.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from reference.data.download import download as fetch
from reference.data.download import is_right, md5_digits, md5_of
from reference.data.resident import Resident
from reference.errors import InputError
from reference.untrusted.bounds import CIFAR_ARCHIVE as ARCHIVE_LIMIT
from reference.untrusted.bounds import CIFAR_FILE as FILE_LIMIT
from reference.untrusted.bounds import CIFAR_HEADER as HEADER_LIMIT
from reference.untrusted.bounds import CIFAR_INSTRUCTIONS, MIB, WORD
from reference.untrusted.pickle_machine import ForeignError, Name, PickleMachine, Record

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
OFFICIAL_MD5 = "c58f30108f718f92721af3b95e74349a"
OFFICIAL_SIZE = 170_498_071  # bytes
OFFICIAL_FILES_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
TRAIN_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
TEST_BATCHES = ("test_batch",)
META = "batches.meta"
REMEDY = "delete it and use --download"

# The errors of gzip and tarfile on damaged files; ValueError for an impossible header.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValueError)

T = TypeVar("T")


class CIFAR10(Resident):
    """The 50,000 training or 10,000 test images of CIFAR-10, in the order and with the labels of the official files.

    The source is the unpacked folder `root/cifar-10-batches-py` (or `root` itself when it is that folder), else the
    packed archive `root/cifar-10-python.tar.gz` (or `root` itself when it is a file). Nothing is unpacked to the disk.

    Args:
        root: the folder of the data; `~` stands for the home folder.
        train: the training images instead of the test images.
        transform: called with the PIL image when an item is taken.
        target_transform: called with the class number when an item is taken.
        download: fetch the archive into `root` first, unless the unpacked folder or the right archive is there.
        mirrors: addresses of the archive, in the order to try them.
        archive_md5: the MD5 that the packed archive must have, in upper or lower case; `None` accepts any. Unpacked
            files are checked one by one against the official checksums only if this is the official one: for other
            archives no checksums of their files are known.
        progress: show a bar while downloading.

    Raises:
        InputError: there is no data, it is damaged, or it is not CIFAR-10; the message names the file and the remedy.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool = True,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        download: bool = False,
        *,
        mirrors: Sequence[str] = (OFFICIAL_URL,),
        archive_md5: str | None = OFFICIAL_MD5,
        progress: bool = True,
    ) -> None:
        archive_md5 = md5_digits(archive_md5)
        source = locate(Path(root).expanduser(), download, mirrors, archive_md5, progress)
        batches = TRAIN_BATCHES if train else TEST_BATCHES
        self.images, self.targets, self.classes = decode(read_files(source, batches, archive_md5), batches, source)
        self.transform, self.target_transform = transform, target_transform


def cifar10_pair(
    root: str | Path,
    download: bool = False,
    *,
    mirrors: Sequence[str] = (OFFICIAL_URL,),
    archive_md5: str | None = OFFICIAL_MD5,
    progress: bool = True,
) -> tuple[CIFAR10, CIFAR10]:
    """Training and test set of `CIFAR10` with its arguments, read in one pass over the archive instead of two."""
    archive_md5 = md5_digits(archive_md5)
    source = locate(Path(root).expanduser(), download, mirrors, archive_md5, progress)
    files = read_files(source, TRAIN_BATCHES + TEST_BATCHES, archive_md5)
    pair = CIFAR10.__new__(CIFAR10), CIFAR10.__new__(CIFAR10)
    for dataset, batches in zip(pair, (TRAIN_BATCHES, TEST_BATCHES), strict=True):
        dataset.images, dataset.targets, dataset.classes = decode(files, batches, source)
    return pair


# Files: find, check and read them, packed or unpacked


def locate(root: Path, download: bool, mirrors: Sequence[str], archive_md5: str | None, progress: bool) -> Path:
    """The unpacked folder, or else the packed archive."""
    for folder in (root / FOLDER, root):
        if (folder / META).is_file():
            return folder
    if root.is_file():
        return root
    archive = root / ARCHIVE
    if download:
        largest = OFFICIAL_SIZE if archive_md5 == OFFICIAL_MD5 else ARCHIVE_LIMIT  # packed is smaller than unpacked
        fetch(mirrors, archive, archive_md5, largest=largest, progress=progress)
    elif not archive.is_file():
        sought = f"neither the folder {FOLDER} nor the archive {ARCHIVE} is there"
        raise InputError(f"no CIFAR-10 in {root}: {sought}; put one of them there or use --download")
    return archive


def read_files(source: Path, batches: Sequence[str], archive_md5: str | None) -> dict[str, bytes]:
    """The content of these batches and of the class names, by file name."""
    wanted = (*batches, META)
    if source.is_dir():
        return read_folder(source, wanted, OFFICIAL_FILES_MD5 if archive_md5 == OFFICIAL_MD5 else {})
    if source.stat().st_size > ARCHIVE_LIMIT:  # before it is read for its checksum
        raise InputError(f"{source}: larger than {ARCHIVE_LIMIT // MIB} MiB, which no archive of CIFAR-10 is")
    try:
        right = is_right(source, archive_md5)
    except OSError as error:  # of reading, which names no file
        raise InputError(f"{source} cannot be read: {error.strerror or error}") from error
    if not right:
        raise InputError(f"{source}: wrong checksum, MD5 {md5_of(source)} instead of {archive_md5}: {REMEDY}")
    try:
        files = read_archive(source, wanted)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{source}: truncated or damaged ({str(error)[:200]}): {REMEDY}") from error
    for name in wanted:
        if name not in files:
            raise InputError(f"{source}: holds no {FOLDER}/{name}: {REMEDY}")
    return files


def read_folder(folder: Path, wanted: Sequence[str], md5s: Mapping[str, str]) -> dict[str, bytes]:
    """The requested files; if MD5s are given, each file must match."""
    files = {}
    for path in (folder / name for name in wanted):
        if not path.is_file():
            raise InputError(f"{path}: no such file: unpack {ARCHIVE} again, or delete {folder} and use --download")
        if path.stat().st_size > FILE_LIMIT:
            raise InputError(f"{path}: larger than {FILE_LIMIT // MIB} MiB, which no file of CIFAR-10 is")
        if not is_right(path, md5s.get(path.name)):
            wrong = f"wrong checksum, MD5 {md5_of(path)} instead of {md5s[path.name]}"
            raise InputError(f"{path}: {wrong}: unpack {ARCHIVE} again, or delete {folder} and use --download")
        files[path.name] = path.read_bytes()
    return files


class BoundedGzip(gzip.GzipFile):
    """A gzip file that unpacks to at most `left` bytes; without a limit a small file can unpack to any size."""

    left = HEADER_LIMIT

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise InputError(f"{self.name}: unpacks to more than its members: {REMEDY}")
        return data


def read_archive(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The requested members. All others are checked too: an archive with a suspicious member is rejected as a whole."""
    files: dict[str, bytes] = {}
    total = 0
    with BoundedGzip(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                check_member(archive, member)
                stream.left = member.size + HEADER_LIMIT  # this content and the next header
                total += stream.left
                if total > ARCHIVE_LIMIT:
                    raise InputError(f"{archive}: unpacks to more than {ARCHIVE_LIMIT // MIB} MiB: {REMEDY}")
                path = PurePosixPath(member.name)
                if str(path.parent) != FOLDER or path.name not in wanted:
                    continue
                if path.name in files:
                    raise InputError(f"{archive}: holds {path} twice: {REMEDY}")
                content = tar.extractfile(member)
                files[path.name] = content.read() if content is not None else b""  # None: a folder
        while stream.read(HEADER_LIMIT):  # the padding, and gzip's own checksum behind it
            pass
    return files


def check_member(archive: Path, member: tarfile.TarInfo) -> None:
    """Raise InputError unless the member is a folder or a regular file of CIFAR-10's size, inside the target folder."""
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()) or member.issparse():
        problem = "is neither a plain file nor a folder"
    elif path.is_absolute() or ".." in path.parts:
        problem = "leads out of the folder"
    elif not 0 <= member.size <= FILE_LIMIT:
        problem = f"is larger than {FILE_LIMIT // MIB} MiB"
    else:
        return
    raise InputError(f"{archive}: member {member.name[:100]!r} {problem}: {REMEDY}")


# Content: the objects that the pickles describe


def decode(
    files: dict[str, bytes], batches: Sequence[str], source: Path
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, "n"], tuple[str, ...]]:
    """The images, class numbers and class names of batches, which are removed from `files` to free memory."""
    classes = decode_file(files[META], source / META, as_classes)
    images, targets = [], []
    for name in batches:
        pixels, labels = decode_file(files.pop(name), source / name, lambda value: as_batch(value, len(classes)))
        images.append(torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 3, 32, 32))
        targets += labels
    return torch.cat(images), torch.tensor(targets), classes


def decode_file(data: bytes, path: Path, convert: Callable[[object], T]) -> T:
    """Apply `convert` to the value of a pickle; any error becomes an InputError that names the file."""
    try:
        return convert(BatchMachine().read(io.BytesIO(data)))
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        reason = str(error)[:200] if isinstance(error, ValueError) else "its instructions make no sense"
        raise InputError(f"{path}: not a file of CIFAR-10 ({reason}); nothing in it was run") from error


def as_classes(value: object) -> tuple[str, ...]:
    """The class names in batches.meta; ValueError if there are none."""
    match value:
        case {"label_names": [*names]} if names:
            classes = tuple(as_text(name) for name in names)
            if len(set(classes)) == len(classes):
                return classes
    raise ValueError("label_names is not a list of different names")


def as_batch(value: object, n_classes: int) -> tuple[bytes | bytearray, list[int]]:
    """The pixels, 3072 bytes per image, and labels of a batch; ValueError if the value is not a batch."""
    match value:
        case {"data": array, "labels": [*labels]}:
            n, pixels = as_array(array)
        case _:
            raise ValueError("not a dictionary with data and a list of labels")
    if n < 1 or len(pixels) != n * 3072:
        raise ValueError(f"data has {len(pixels):,} bytes, which are not the 3072 an image that its shape promises")
    if len(labels) != n:
        raise ValueError(f"{len(labels):,} labels for {n:,} images")
    if not all(type(label) is int and 0 <= label < n_classes for label in labels):
        raise ValueError(f"a label is not a whole number from 0 to {n_classes - 1}")
    return pixels, labels


def as_array(value: object) -> tuple[int, bytes | bytearray]:
    """n and the bytes of a described array, which must have shape (n, 3072), dtype uint8 and C order."""
    match value:
        case Record(
            kind=Name("numpy.core.multiarray", "_reconstruct"),
            state=(_, (int(n), 3072), Record(kind=Name("numpy", "dtype"), arguments=("u1", _, _)), False, content),
        ):
            pass
        case Record(
            kind=Name("numpy.core.numeric", "_frombuffer"),
            arguments=(content, Record(kind=Name("numpy", "dtype"), arguments=("u1", _, _)), (int(n), 3072), "C"),
        ):  # pickle protocol 5
            pass
        case _:
            raise ValueError("data is not a uint8 array (n, 3072) in C order")
    match content:
        case str(text) | Record(kind=Name("_codecs", "encode"), arguments=(str(text), "latin1")):  # Python 2; Python 3
            return n, text.encode("latin-1")
        case bytes() | bytearray():
            return n, content
    raise ValueError("data has no bytes")


class BatchMachine(PickleMachine):
    """The pickle machine for batches: it describes arrays of NumPy, and its keys are strings."""

    DESCRIBABLE = (  # all that batches of any version of Python and NumPy need
        Name("numpy.core.multiarray", "_reconstruct"),
        Name("numpy.core.numeric", "_frombuffer"),
        Name("numpy", "ndarray"),
        Name("numpy", "dtype"),
        Name("_codecs", "encode"),
    )

    def __init__(self) -> None:
        super().__init__(CIFAR_INSTRUCTIONS)

    def named(self, name: Name) -> Name:
        known = Name(name.module.replace("numpy._core.", "numpy.core."), name.name)  # its name since NumPy 2
        if known not in self.DESCRIBABLE:
            raise ForeignError(f"it asks for {str(name)[:WORD]!r}, which no batch of images needs")
        return known

    def call(self, function: object, arguments: tuple[Any, ...]) -> Record:
        return self.make(function, arguments)

    def key(self, value: Any, place: int) -> str:
        return as_text(value)


def as_text(value: object) -> str:
    """A name or dictionary key: a short printable string; Python 2 wrote it as bytes."""
    if isinstance(value, str | bytes) and len(value) <= WORD:
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if text.isprintable():
            return text
    raise ValueError("a name or dictionary key is not a short printable string")
