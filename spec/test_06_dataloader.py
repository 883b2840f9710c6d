"""Chapter 06: `DataLoader` and the resident loader: every item once, in order, in batches of the right size."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.data.loader import DataLoader, collate
from reference.data.resident import Resident, ResidentLoader
from reference.data.transforms import ToTensor


class Numbered(Resident):
    """`n` pictures of 2×2 pixels, each with its number as its target."""

    def __init__(self, n: int) -> None:
        self.images = torch.randint(256, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        self.targets = torch.arange(n)
        self.classes = tuple(map(str, range(n)))
        self.transform = ToTensor()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ALL = st.tuples(st.integers(0, 40), st.integers(1, 50), st.booleans(), st.booleans(), st.integers(0, 2**32))


@given(ALL)
@settings(deadline=None)
def test_both_loaders_yield_what_pytorch_s_loader_yields_for_two_epochs(case: tuple[int, int, bool, bool, int]) -> None:
    n, batch_size, shuffle, drop_last, seed = case
    if n == 0 and shuffle:
        return  # PyTorch's sampler refuses an empty set; ours has no batches, tested below
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    theirs = torch.utils.data.DataLoader(Numbered(n), generator=seeded(seed), **options)
    loaders = [kind(Numbered(n), generator=seeded(seed), **options) for kind in (DataLoader, ResidentLoader)]
    for _ in range(2):
        expected = list(theirs)
        for loader in loaders:
            found = list(loader)
            assert len(found) == len(expected) == len(loader)
            for (images, targets), (their_images, their_targets) in zip(found, expected, strict=True):
                assert images.dtype == torch.float32
                assert torch.equal(images, their_images)
                assert torch.equal(targets, their_targets)


@given(ALL)
@settings(deadline=None)
def test_every_item_comes_once_except_those_an_incomplete_batch_drops(case: tuple[int, int, bool, bool, int]) -> None:
    n, batch_size, shuffle, drop_last, seed = case
    for kind in (DataLoader, ResidentLoader):
        loader = kind(Numbered(n), batch_size, shuffle, drop_last=drop_last, generator=seeded(seed))
        sizes, seen = [], []
        for _, targets in loader:
            sizes.append(len(targets))
            seen += targets.tolist()
        whole = n // batch_size
        rest = [] if drop_last or n % batch_size == 0 else [n % batch_size]
        assert sizes == [batch_size] * whole + rest
        assert len(loader) == (math.floor if drop_last else math.ceil)(n / batch_size)
        assert len(set(seen)) == len(seen) == sum(sizes)
        if not shuffle:
            assert seen == list(range(sum(sizes)))


@pytest.mark.parametrize(
    ("n", "drop_last", "steps", "last"),
    # chapter 18, line 1515 says 781.25; chapter 06, line 334 drops the test set's last 16
    [(50_000, False, 782, 16), (50_000, True, 781, 64), (10_000, False, 157, 16), (10_000, True, 156, 64)],
)
def test_the_tutorial_s_sizes_make_whole_numbers_of_steps(n: int, drop_last: bool, steps: int, last: int) -> None:
    dataset = Resident()
    dataset.images, dataset.targets = torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    loader = ResidentLoader(dataset, 64, drop_last=drop_last)
    assert len(loader) == steps
    batches = [len(targets) for _, targets in loader]
    assert (len(batches), batches[-1]) == (steps, last)


def test_a_byte_is_divided_by_255_and_nothing_else() -> None:
    dataset = Resident()
    dataset.images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    dataset.targets = torch.zeros(1, dtype=torch.int64)
    ((images, _),) = ResidentLoader(dataset)
    # Python divides in float64; rounding that to float32 gives the correctly rounded quotient
    assert (
        images.flatten().tolist()
        == torch.tensor([byte / 255 for byte in range(256)], dtype=torch.float64).float().tolist()
    )


@pytest.mark.parametrize("kind", [DataLoader, ResidentLoader])
def test_shuffling_gives_a_new_order_each_epoch(kind: Any) -> None:
    loader = kind(Numbered(40), 7, True, generator=seeded(0))
    first, second = ([target for _, targets in loader for target in targets.tolist()] for _ in range(2))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("kind", [DataLoader, ResidentLoader])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_empty_data_set_has_no_batches(kind: Any, shuffle: bool) -> None:
    assert list(kind(Numbered(0), 4, shuffle)) == []


@pytest.mark.parametrize("kind", [DataLoader, ResidentLoader])
@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None])
def test_an_impossible_batch_size_is_rejected(kind: Any, batch_size: object) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got"):
        kind(Numbered(3), batch_size)


def test_collate_stacks_tensors_makes_tensors_of_numbers_and_goes_into_containers() -> None:
    items = [
        {"x": torch.tensor([1, 2]), "y": (1, 0.5), "name": "a"},
        {"x": torch.tensor([3, 4]), "y": (2, 1.5), "name": "b"},
    ]
    found = collate(items)
    assert found["x"].tolist() == [[1, 2], [3, 4]]
    assert found["y"][0].tolist() == [1, 2]
    assert (found["y"][1].tolist(), found["y"][1].dtype) == ([0.5, 1.5], torch.float64)
    assert found["name"] == ["a", "b"]


def test_tensors_of_different_shapes_are_rejected_by_shape() -> None:
    with pytest.raises(ValueError, match=r"shapes \[\(2,\), \(3,\)\] make no batch"):
        collate([torch.zeros(3), torch.zeros(2)])


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_outside_the_data_set_is_rejected(index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} is out of range for 3 pictures"):
        Numbered(3)[index]
