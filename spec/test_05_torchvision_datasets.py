"""Chapter 05: the data sets of torchvision, `CIFAR10` among them, as the chapter uses them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import reference.data.cifar10
from spec.support.assertions import assert_equal
from spec.support.cifar_archives import CLASSES, TRAIN, SmallCifar10, small_cifar10, write_folder
from spec.support.clauses import clause

Make = Callable[..., Any]

# NumPy 2 warns that Python 2's pickles write align=0 where it wants False, and use the old name numpy.core.
pytestmark = pytest.mark.filterwarnings(
    "ignore::numpy.exceptions.VisibleDeprecationWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module")
def small() -> SmallCifar10:
    return small_cifar10()


@pytest.fixture
def root(tmp_path: Path, small: SmallCifar10, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small CIFAR-10 in the official format; its checksums stand in for the official ones."""
    write_folder(tmp_path, small.files)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small.files.items()}
    monkeypatch.setattr(reference.data.cifar10, "OFFICIAL_FILES_MD5", sums)
    pytorchs = torchvision.datasets.CIFAR10
    monkeypatch.setattr(pytorchs, "train_list", [[name, sums[name]] for name in TRAIN])
    monkeypatch.setattr(pytorchs, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(pytorchs, "meta", pytorchs.meta | {"md5": sums["batches.meta"]})
    return tmp_path


def as_tensor(image: Image.Image) -> Tensor:
    """The transform of the chapter, written differently."""
    pixels = torch.tensor([image.getpixel((x, y)) for y in range(32) for x in range(32)], dtype=torch.float32)
    return pixels.T.reshape(3, 32, 32) / 255


# The values


@clause("05.cifar10.ten_images")
def test_the_loop_writes_ten_images_of_32_by_32(CIFAR10: Make, root: Path, tmp_path: Path) -> None:
    # chapter 05, lines 304 to 306
    train_set = CIFAR10(root=root, train=True, transform=as_tensor)
    with SummaryWriter(tmp_path / "logs") as writer:
        for i in range(10):
            img, _ = train_set[i]
            writer.add_image("test torchvison compose", img, i)
    read = event_accumulator.EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0}).Reload()
    images = read.Images("test torchvison compose")
    assert [(event.step, event.height, event.width) for event in images] == [(i, 32, 32) for i in range(10)]


@clause("05.board.samples")
def test_a_reader_keeps_fewer_than_ten_images_by_default() -> None:
    # chapter 05, line 311: the limit of ten images is a setting of the server, not of every reader
    assert event_accumulator.DEFAULT_SIZE_GUIDANCE["images"] < 10


@clause("05.cifar10.size")
@pytest.mark.parametrize("train", [True, False])
def test_images_are_32_by_32_rgb(CIFAR10: Make, root: Path, train: bool) -> None:
    # chapter 05, line 310
    image, _ = CIFAR10(root, train=train)[0]
    assert (image.size, image.mode) == ((32, 32), "RGB")


# The claims


@clause("05.cifar10.is_not_100")
def test_the_data_set_is_cifar_10_and_not_cifar_100(CIFAR10: Make, root: Path) -> None:
    assert tuple(CIFAR10(root, train=False).classes) == CLASSES
    assert len(CLASSES) == 10
    datasets = torchvision.datasets
    assert (datasets.CIFAR10.base_folder, datasets.CIFAR100.base_folder) == ("cifar-10-batches-py", "cifar-100-python")
    assert datasets.CIFAR10.url != datasets.CIFAR100.url


@clause("05.cifar10.train_twice")
def test_with_train_true_both_sets_are_the_training_set(CIFAR10: Make, root: Path) -> None:
    # chapter 05, lines 280 and 281
    train_set, test_set = CIFAR10(root=root, train=True), CIFAR10(root=root, train=True)
    assert len(train_set) == len(test_set)
    assert [label for _, label in train_set] == [label for _, label in test_set]


@clause("05.cifar10.train_twice")
def test_only_train_false_gives_the_test_set(CIFAR10: Make, root: Path, small: SmallCifar10) -> None:
    train_set, test_set = CIFAR10(root=root, train=True), CIFAR10(root=root, train=False)
    assert (len(train_set), len(test_set)) == (30, 6)
    assert [label for _, label in test_set] == small.labels["test_batch"]
    assert [label for _, label in train_set] == [label for name in TRAIN for label in small.labels[name]]


@clause("05.cifar10.transform")
def test_a_transform_is_applied_once_to_each_image_that_is_taken(CIFAR10: Make, root: Path) -> None:
    taken: list[Any] = []

    def transform(image: Image.Image) -> Tensor:
        taken.append(image)
        return as_tensor(image)

    dataset = CIFAR10(root, train=False, transform=transform)
    assert taken == []
    image, _ = dataset[2]
    assert len(taken) == 1
    assert_equal(image, as_tensor(CIFAR10(root, train=False)[2][0]))


@clause("05.cifar10.transform")
def test_without_transform_items_are_pil_images_and_target_transform_is_separate(CIFAR10: Make, root: Path) -> None:
    dataset = CIFAR10(root, train=False, target_transform=lambda label: CLASSES[label])
    image, name = dataset[1]
    assert isinstance(image, Image.Image)
    assert name == CLASSES[CIFAR10(root, train=False)[1][1]]


@clause("05.cifar10.first_image")
def test_the_listing_shows_the_training_set_with_another_first_image_than_the_test_set(
    CIFAR10: Make, root: Path, small: SmallCifar10
) -> None:
    """Line 310 shows a cat, with which the official test set begins; the listing writes the training set."""
    image, label = CIFAR10(root, train=True)[0]
    assert label == small.labels["data_batch_1"][0]
    assert image.tobytes() != CIFAR10(root, train=False)[0][0].tobytes()
    red = small.images["data_batch_1"][0, :1024].reshape(32, 32)
    assert [image.getpixel((x, 0))[0] for x in range(32)] == red[0].tolist()


@clause("05.datasets.download")
def test_the_data_sets_of_torchvision_can_be_downloaded() -> None:
    assert len(torchvision.datasets.__all__) > 50
    assert torchvision.datasets.CIFAR10.url.endswith("cifar-10-python.tar.gz")


@clause("05.cifar10.missing")
def test_without_files_and_without_download_the_error_gives_the_remedy(CIFAR10: Make, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="download"):
        CIFAR10(tmp_path / "nowhere", train=True)


@clause("05.cifar10.checksum")
def test_a_changed_file_is_not_taken_for_the_data_set(CIFAR10: Make, root: Path) -> None:
    path = root / "cifar-10-batches-py" / "test_batch"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # one bit of one pixel or label
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"corrupt|checksum"):
        CIFAR10(root, train=False)
