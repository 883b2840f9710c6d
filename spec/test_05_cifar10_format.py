"""Chapter 05: CIFAR-10 from its official files: the images, labels and names."""

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from reference.data import cifar10
from reference.data.cifar10 import CIFAR10, OFFICIAL_FILES_MD5, OFFICIAL_MD5, OFFICIAL_URL, cifar10_pair
from spec.support.cifar_archives import (
    ARCHIVE,
    CLASSES,
    FOLDER,
    TRAIN,
    SmallCifar10,
    members,
    meta,
    python2_pickle,
    small_cifar10,
    write_archive,
    write_folder,
)
from spec.support.cifar_checks import images_of, snapshot
from spec.support.clauses import clause


@pytest.fixture(scope="module")
def small() -> SmallCifar10:
    return small_cifar10()


# The format


@clause("05.cifar10.format")
def test_test_archive_writer_reproduces_the_official_meta_file() -> None:
    # 158 bytes, and the MD5 that torchvision/datasets/cifar.py gives for batches.meta.
    content = python2_pickle(meta())
    assert len(content) == 158
    assert hashlib.md5(content).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888" == OFFICIAL_FILES_MD5["batches.meta"]


@clause("05.cifar10.checksum")
def test_official_checksums_equal_those_of_torchvision() -> None:
    official = torchvision.datasets.CIFAR10
    batches = dict(official.train_list + official.test_list)
    assert {official.meta["filename"]: official.meta["md5"], **batches} == OFFICIAL_FILES_MD5
    assert (official.tgz_md5, official.url) == (OFFICIAL_MD5, OFFICIAL_URL)
    assert (official.filename, official.base_folder) == (ARCHIVE, FOLDER)


@clause("05.cifar10.format")
@pytest.mark.parametrize("where", ["unpacked folder", "packed archive", "the folder itself", "the archive itself"])
def test_images_labels_and_names_come_in_the_order_of_the_official_files(
    where: str, small: SmallCifar10, tmp_path: Path
) -> None:
    md5 = None
    root = tmp_path
    if "folder" in where:
        folder = write_folder(tmp_path, small.files)
        root = folder if where == "the folder itself" else root
    else:
        md5 = write_archive(tmp_path, members(small.files))
        root = tmp_path / ARCHIVE if where == "the archive itself" else root
    before = snapshot(tmp_path)
    for train, names in ((True, TRAIN), (False, ("test_batch",))):
        dataset = CIFAR10(root, train=train, archive_md5=md5)
        assert dataset.images.dtype == torch.uint8
        assert dataset.images.shape == (6 * len(names), 3, 32, 32)
        assert torch.equal(dataset.images, images_of(small, *names))
        assert dataset.targets.dtype == torch.int64
        assert dataset.targets.tolist() == [label for name in names for label in small.labels[name]]
        assert dataset.classes == CLASSES
        assert len(dataset) == 6 * len(names)
    assert snapshot(tmp_path) == before, "reading writes nothing"


@clause("05.cifar10.pair")
def test_train_and_test_sets_are_read_in_one_pass(
    small: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    md5 = write_archive(tmp_path, members(small.files))
    alone = CIFAR10(tmp_path, archive_md5=md5), CIFAR10(tmp_path, train=False, archive_md5=md5)
    opened: list[str] = []
    genuine = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **keywords: opened.append("") or genuine(*args, **keywords))
    pair = cifar10_pair(tmp_path, archive_md5=md5)
    assert len(opened) == 1
    for one, other in zip(pair, alone, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.classes == other.classes
        assert one[0][1] == other[0][1]


@clause("05.cifar10.transform")
def test_items_are_transformed_image_and_transformed_class_number(small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, small.files)
    image, label = CIFAR10(tmp_path, archive_md5=None)[0]
    assert isinstance(image, Image.Image)
    assert image.size == (32, 32)
    assert image.getpixel((1, 0)) == tuple(int(small.images["data_batch_1"][0, 1024 * c + 1]) for c in range(3))
    assert label == small.labels["data_batch_1"][0]
    dataset = CIFAR10(tmp_path, False, lambda image: image.size, lambda label: CLASSES[label], archive_md5=None)
    assert dataset[-1] == ((32, 32), CLASSES[small.labels["test_batch"][-1]])


@clause("05.cifar10.format")
# NumPy 2 warns that Python 2's pickles write align=0 where it wants False, and use the old name numpy.core.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.VisibleDeprecationWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("train", [True, False])
def test_torchvision_reads_the_same_from_the_same_folder(
    train: bool, small: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, small.files)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    theirs = torchvision.datasets.CIFAR10(tmp_path, train=train)
    ours = CIFAR10(tmp_path, train=train, archive_md5=None)
    assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.targets.tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes
    assert [ours[i][1] for i in range(len(ours))] == [theirs[i][1] for i in range(len(theirs))]
    assert all(ours[i][0].tobytes() == theirs[i][0].tobytes() for i in range(len(ours)))


@clause("05.cifar10.format")
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [str, str.encode], ids=["string keys", "bytes keys"])
@pytest.mark.parametrize("memory", ["writable", "read-only"])
def test_batches_that_python_3_wrote_are_read_too(
    protocol: int, keys: Any, memory: str, small: SmallCifar10, tmp_path: Path
) -> None:
    if protocol == 2 and keys is not str:
        keys = str  # Python 3 writes bytes in protocol 2 as calls; genuine protocol 2 comes from Python 2
    images = small.images["test_batch"].copy()
    images.flags.writeable = memory == "writable"
    batch = {keys("data"): images, keys("labels"): small.labels["test_batch"]}
    names = {keys("label_names"): [keys(name) for name in CLASSES]}
    files = {"test_batch": pickle.dumps(batch, protocol), "batches.meta": pickle.dumps(names, protocol)}
    write_folder(tmp_path, files)
    dataset = CIFAR10(tmp_path, train=False, archive_md5=None)
    assert torch.equal(dataset.images, images_of(small, "test_batch"))
    assert dataset.targets.tolist() == small.labels["test_batch"]
    assert dataset.classes == CLASSES


@pytest.mark.slow
@clause("05.cifar10.format")
def test_a_batch_of_the_official_size_is_within_the_limits(tmp_path: Path) -> None:
    large = small_cifar10(n=10_000, batches=("test_batch",))
    size = len(large.files["test_batch"])
    assert 30_720_000 < size < cifar10.FILE_LIMIT
    assert 6 * (size + cifar10.HEADER_LIMIT) < cifar10.ARCHIVE_LIMIT
    write_folder(tmp_path, large.files)
    dataset = CIFAR10(tmp_path, train=False, archive_md5=None)
    assert np.array_equal(dataset.images.numpy().reshape(10_000, 3072), large.images["test_batch"])
    assert dataset.targets.tolist() == large.labels["test_batch"]
