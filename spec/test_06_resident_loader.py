"""Chapter 06: `ResidentLoader` yields the same batches as `DataLoader` with `ToTensor`, from images in memory."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import strategies as st

from reference.data.loader import DataLoader as ReferenceLoader
from reference.data.resident import Resident, ResidentLoader
from spec.support.assertions import assert_equal
from spec.support.clauses import clause
from spec.support.strategies import given, seeds
from spec.test_06_dataloader import EPOCHS, Numbered, seeded

Loader = Callable[..., Any]


@clause("06.resident.same_batches")
@given(EPOCHS, st.lists(st.booleans(), min_size=1, max_size=3), seeds)
def test_resident_loader_and_dataloader_equal_pytorchs_dataloader(
    options: dict[str, Any], finished: list[bool], seed: int
) -> None:
    dataset = Numbered(min(options.pop("n"), 12))
    theirs = torch.utils.data.DataLoader(dataset, generator=seeded(seed), **options)  # pyright: ignore[reportArgumentType]
    loaders = [kind(dataset, generator=seeded(seed), **options) for kind in (ReferenceLoader, ResidentLoader)]
    for whole in finished:
        batches = None if whole else 1
        expected = list(islice(theirs, batches))
        for loader in loaders:
            found = list(islice(loader, batches))
            assert len(found) == len(expected)
            for (images, targets), (their_images, their_targets) in zip(found, expected, strict=True):
                assert_equal(images, their_images)
                assert_equal(targets, their_targets)


@clause("06.resident.same_batches")
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled with the same seed"])
@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [64, 64, 16]), (True, [64, 64])])
def test_resident_loader_yields_the_batches_of_pytorch_and_totensor(
    shuffle: bool, drop_last: bool, sizes: list[int]
) -> None:
    """Compare the fast path and PyTorch's loader bit for bit on 32×32 pixels, including the last batch of 16."""
    dataset = Numbered(144)
    dataset.images = torch.randint(256, (144, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    dataset.transform = torchvision.transforms.ToTensor()
    options: dict[str, Any] = {"batch_size": 64, "shuffle": shuffle, "drop_last": drop_last}
    ours = ResidentLoader(dataset, generator=seeded(5), **options)
    theirs = torch.utils.data.DataLoader(dataset, generator=seeded(5), **options)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        found = list(ours)
        assert [len(images) for images, _ in found] == sizes
        for (images, targets), (their_images, their_targets) in zip(found, theirs, strict=True):
            assert_equal(images, their_images)
            assert_equal(targets, their_targets)


@clause("06.resident.each_once")
@given(EPOCHS, seeds)
def test_the_resident_loader_yields_every_image_once(options: dict[str, Any], seed: int) -> None:
    n, size = options.pop("n"), options["batch_size"]
    loader = ResidentLoader(Numbered(n), generator=seeded(seed), **options)
    batches = [targets.tolist() for _, targets in loader]
    rest = [] if options["drop_last"] or n % size == 0 else [n % size]
    assert [len(batch) for batch in batches] == [size] * (n // size) + rest
    assert len(loader) == len(batches)
    assert len({target for batch in batches for target in batch}) == sum(map(len, batches))


@clause("06.resident.each_once")
@pytest.mark.parametrize(
    ("n", "drop_last", "steps", "last"),
    # chapter 18, line 1515 says 781.25; chapter 06, line 334 drops the test set's last 16
    [(50_000, False, 782, 16), (50_000, True, 781, 64), (10_000, False, 157, 16), (10_000, True, 156, 64)],
)
def test_tutorial_sizes_give_the_documented_numbers_of_steps(n: int, drop_last: bool, steps: int, last: int) -> None:
    dataset = Resident()
    dataset.images, dataset.targets = torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    loader = ResidentLoader(dataset, 64, drop_last=drop_last)
    assert len(loader) == steps
    batches = [len(targets) for _, targets in loader]
    assert (len(batches), batches[-1]) == (steps, last)


@clause("06.resident.vary")
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_resident_loader_scales_the_output_of_vary(shuffle: bool) -> None:
    dataset, generator = Numbered(7), seeded(0)
    before, given_to = dataset.images.clone(), []

    def vary(images: torch.Tensor, drawing: torch.Generator | None) -> torch.Tensor:
        assert drawing is generator
        given_to.append(images.clone())
        return 255 - images

    found = list(ResidentLoader(dataset, 3, shuffle, generator=generator, vary=vary))
    assert [len(images) for images in given_to] == [3, 3, 1]
    for (images, targets), bytes_given in zip(found, given_to, strict=True):
        assert bytes_given.dtype == torch.uint8
        assert_equal(bytes_given, before[targets])  # the labels belong to the images
        assert_equal(images, (255 - before[targets]).float() / 255)
    assert_equal(dataset.images, before, "the images of the data set")


@clause("06.resident.scale")
def test_resident_loader_divides_bytes_by_255() -> None:
    dataset = Resident()
    dataset.images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    dataset.targets = torch.zeros(1, dtype=torch.int64)
    ((images, _),) = ResidentLoader(dataset)
    # Python divides in float64; rounding that to float32 gives the correctly rounded quotient
    expected = torch.tensor([byte / 255 for byte in range(256)], dtype=torch.float64).float()
    assert_equal(images, expected.reshape(1, 1, 16, 16))


@clause("06.resident.each_once")
def test_the_resident_loader_shuffles_anew_each_epoch() -> None:
    loader = ResidentLoader(Numbered(40), 7, True, generator=seeded(0))
    first, second = ([target for _, targets in loader for target in targets.tolist()] for _ in range(2))
    assert first != second
    assert list(range(40)) not in (first, second)


@clause("06.resident.same_batches")
def test_the_images_are_copied_to_a_device_once_and_again_if_they_are_replaced() -> None:
    dataset = Numbered(4)
    loader = ResidentLoader(dataset, 2, device="meta")
    copies = [loader._resident()[0] for _ in range(2)]
    assert copies[1] is copies[0]
    dataset.images, dataset.targets = dataset.images[:2].clone(), dataset.targets[:2]
    assert len(loader._resident()[0]) == 2


@clause("06.resident.rejects")
@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None])
def test_the_resident_loader_rejects_an_impossible_batch_size(batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got"):
        ResidentLoader(Numbered(3), batch_size)


@clause("06.resident.rejects")
@pytest.mark.parametrize("index", [3, -4])
def test_an_index_outside_the_data_set_is_rejected(index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} is out of range for 3 images"):
        Numbered(3)[index]
