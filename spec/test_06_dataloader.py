"""Chapter 06: `DataLoader` and the resident loader: every item once, in order, in batches of the right size."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, namedtuple
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import strategies as st
from PIL import Image

from reference.data.loader import DataLoader as ReferenceLoader
from reference.data.resident import Resident, ResidentLoader
from reference.data.transforms import ToTensor as ReferenceToTensor
from spec.support.assertions import assert_equal, rejects
from spec.support.cifar_archives import small_cifar10, write_folder
from spec.support.clauses import clause
from spec.support.strategies import given, seed_all, seeds

Loader = Callable[..., Any]

with_workers = pytest.mark.filterwarnings(
    # a warning of Python 3.12 for forks of every process with threads
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",  # PyTorch's advice on a machine of one core
)


class Numbers:
    """Item `i` of `n` is `i`."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return index


class Slow(Numbers):
    """Item 0 takes longer than the others, so that the first worker does not finish first."""

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05 * (index == 0))
        return index


class Counting(Numbers):
    """Records which items are read."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.taken: list[int] = []

    def __getitem__(self, index: int) -> int:
        self.taken.append(index)
        return index


class Processes(Numbers):
    """Every item is the id of the process that loads it."""

    def __getitem__(self, index: int) -> int:
        return os.getpid()


class Broken(Numbers):
    """Loading one item raises an error."""

    def __getitem__(self, index: int) -> int:
        if index == 7:
            raise ValueError("image 7 is broken")
        return index


class Drawn(Numbers):
    """Every item consists of random numbers from each library that augmentations use."""

    def __getitem__(self, index: int) -> tuple[int, float, float]:
        return torch.initial_seed(), random.random(), float(np.random.random())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Numbered(Resident):
    """`n` images of 2×2 pixels, each with its index as its target."""

    def __init__(self, n: int) -> None:
        self.images = torch.randint(256, (n, 3, 2, 2), dtype=torch.uint8, generator=seeded(n))
        self.targets = torch.arange(n)
        self.classes = tuple(map(str, range(n)))
        self.transform = ReferenceToTensor()


def shown(loader: Iterable[Any]) -> list[Any]:
    """The batches of an epoch as Python lists."""
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in loader]


def flat(loader: Iterable[torch.Tensor]) -> list[int]:
    """The items of an epoch, independent of the batches."""
    return [item for batch in loader for item in batch.tolist()]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# The values


@clause("06.loader.batch_size")
def test_a_batch_size_of_4_takes_4_at_a_time(DataLoader: Loader) -> None:
    # chapter 06, line 319
    assert [len(batch) for batch in DataLoader(Numbers(12), batch_size=4)] == [4, 4, 4]
    assert [len(batch) for batch in DataLoader(Numbers(10), batch_size=4)] == [4, 4, 2]


@clause("06.loader.test_steps", "06.loader.drop_last")
@pytest.mark.parametrize(("drop_last", "steps", "last"), [(True, 156, 64), (False, 157, 16)])
def test_the_10000_test_images_make_156_batches_of_64_and_a_rest_of_16(
    DataLoader: Loader, drop_last: bool, steps: int, last: int
) -> None:
    # chapter 06, line 334: 10,000 = 156 · 64 + 16
    loader = DataLoader(Numbers(10_000), batch_size=64, shuffle=True, num_workers=0, drop_last=drop_last)
    sizes = [len(batch) for batch in loader]
    assert len(sizes) == steps
    assert sizes[:-1] == [64] * (steps - 1)
    assert sizes[-1] == last


@clause("06.loader.train_steps")
def test_the_50000_training_images_make_782_steps_and_not_781_and_a_quarter(DataLoader: Loader) -> None:
    # chapter 18, line 1515, divides: 50,000 / 64 = 781.25
    loader = DataLoader(Numbers(50_000), batch_size=64)
    sizes = [len(batch) for batch in loader]
    assert len(sizes) == 782 != 781.25
    assert sizes == [64] * 781 + [16]


@clause("06.loader.length", "06.loader.test_steps", "06.loader.train_steps")
@pytest.mark.parametrize(
    ("n", "drop_last", "steps"), [(50_000, False, 782), (50_000, True, 781), (10_000, False, 157), (10_000, True, 156)]
)
def test_loader_length_is_the_number_of_batches(DataLoader: Loader, n: int, drop_last: bool, steps: int) -> None:
    assert len(DataLoader(Numbers(n), batch_size=64, drop_last=drop_last)) == steps


@clause("06.loader.length")
@pytest.mark.parametrize(
    ("options", "length"),
    [({"sampler": [1, 1, 0]}, 2), ({"batch_sampler": [[1], [5, 3], [0, 9, 9]]}, 3), ({"batch_size": None}, 10)],
    ids=["a sampler", "a batch_sampler", "single items"],
)
def test_loader_length_follows_the_length_of_the_sampler(
    DataLoader: Loader, options: dict[str, Any], length: int
) -> None:
    sizes = {} if "batch_size" in options or "batch_sampler" in options else {"batch_size": 2}
    assert len(DataLoader(Numbers(10), **options, **sizes)) == length
    assert len(DataLoader(Numbers(0), batch_size=4)) == 0


@clause("06.loader.stored_parts")
def test_constructor_arguments_are_attributes_of_the_loader(DataLoader: Loader) -> None:
    dataset, generator = Numbers(7), seeded(0)
    loader = DataLoader(dataset, batch_size=3, drop_last=True, generator=generator)
    assert loader.dataset is dataset
    assert loader.generator is generator
    assert (loader.batch_size, loader.drop_last) == (3, True)
    assert DataLoader(dataset).generator is None


@clause("06.loader.first_item")
# NumPy 2 warns that Python 2's pickles write align=0 where it wants False, and use the old name numpy.core.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.VisibleDeprecationWarning", "ignore::DeprecationWarning")
def test_the_first_item_of_the_data_set_does_not_depend_on_the_loader(
    DataLoader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = small_cifar10()
    write_folder(tmp_path, small.files)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    dataset = torchvision.datasets.CIFAR10(tmp_path, train=False, transform=torchvision.transforms.ToTensor())
    list(DataLoader(dataset, batch_size=4, shuffle=True))
    image, target = dataset[0]
    # chapter 06, lines 340 to 343; the genuine first target is 3, a cat
    assert image.shape == (3, 32, 32)
    assert type(target) is int
    assert target == small.labels["test_batch"][0]
    first = torch.tensor(small.images["test_batch"][0].tolist(), dtype=torch.float64) / 255
    assert_equal(image, first.float().reshape(3, 32, 32))


@clause("06.loader.listing")
@pytest.mark.slow
def test_the_listing_writes_156_grids_for_each_of_two_epochs(DataLoader: Loader, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    # chapter 06, lines 334 and 345 to 357, with images of one pixel: number i is the shade i of 10,000
    items = [(torch.full((1, 1, 1), i / 10_000), i % 10) for i in range(10_000)]
    loader = DataLoader(dataset=items, batch_size=64, shuffle=True, num_workers=0, drop_last=True)
    with SummaryWriter(str(tmp_path)) as writer:
        for epoch in range(2):
            for step, (images, targets) in enumerate(loader):
                assert images.shape == (64, 1, 1, 1)
                assert targets.shape == (64,)
                writer.add_images(f"Epoch: {epoch}", images, step)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["Epoch: 0", "Epoch: 1"]
    grids = [events.Images(tag) for tag in ("Epoch: 0", "Epoch: 1")]
    assert [[event.step for event in grid] for grid in grids] == [list(range(156))] * 2
    # line 362's image: the two epochs show their images in different orders
    assert grids[0][0].encoded_image_string != grids[1][0].encoded_image_string


@clause("06.loader.order_of_seed_0")
def test_shuffle_of_8_items_with_global_seed_0_is_the_documented_order(DataLoader: Loader) -> None:
    # chapter 06, line 320, with eight GPUs; the numbers are those of torch.manual_seed(0) on every platform
    torch.manual_seed(0)
    loader = DataLoader(Numbers(8), batch_size=8, shuffle=True)
    assert next(iter(loader)).tolist() == [2, 0, 5, 3, 1, 4, 7, 6]
    assert next(iter(loader)).tolist() == [0, 3, 7, 1, 6, 2, 5, 4]


# The claims


@clause("06.loader.shuffle")
def test_shuffle_draws_a_new_order_each_epoch(DataLoader: Loader) -> None:
    loader = DataLoader(Numbers(40), batch_size=7, shuffle=True, generator=seeded(0))
    first, second = (flat(loader) for _ in range(2))
    assert first != second
    assert list(range(40)) not in (first, second)
    assert sorted(first) == sorted(second) == list(range(40))


@clause("06.loader.shuffle")
def test_two_epochs_have_all_items_in_different_orders(DataLoader: Loader) -> None:
    seed_all(0)  # two of 40! orders are never equal by chance
    loader = DataLoader(Numbers(40), batch_size=8, shuffle=True)
    first, second = (flat(loader) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(40))
    assert list(range(40)) not in (first, second), "an epoch is not shuffled"
    assert first != second, "both epochs have the same order"


@clause("06.loader.shuffle")
def test_without_shuffle_each_epoch_is_in_the_order_of_the_data_set(DataLoader: Loader) -> None:
    loader = DataLoader(Numbers(4), batch_size=4)
    assert [shown(loader) for _ in range(2)] == [[[0, 1, 2, 3]]] * 2


@clause("06.loader.drop_last")
def test_drop_last_leaves_out_an_incomplete_batch_and_no_complete_one(DataLoader: Loader) -> None:
    # chapter 06, line 321
    assert shown(DataLoader(Numbers(7), batch_size=3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    assert shown(DataLoader(Numbers(6), batch_size=3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    assert shown(DataLoader(Numbers(2), batch_size=3, drop_last=True)) == []
    assert shown(DataLoader(Numbers(7), batch_size=3)) == [[0, 1, 2], [3, 4, 5], [6]]


@clause("06.loader.drop_last")
def test_shuffling_drops_other_items_each_epoch(DataLoader: Loader) -> None:
    loader = DataLoader(Numbers(10), batch_size=4, shuffle=True, drop_last=True, generator=seeded(0))
    dropped = {frozenset(range(10)) - set(flat(loader)) for _ in range(5)}
    assert {len(two) for two in dropped} == {2}
    assert len(dropped) > 1


@clause("06.loader.says_64")
def test_batch_size_is_the_argument_and_not_the_4_of_the_comment(DataLoader: Loader) -> None:
    # chapter 06, line 350 says 4 beside line 334's 64
    sizes = {len(batch) for batch in DataLoader(Numbers(128), batch_size=64)}
    assert sizes == {64} != {4}


@clause("06.loader.home")
def test_dataloader_is_in_torch_utils_data_and_not_in_torchvision() -> None:
    # chapter 06, line 316 links to torchvision's data sets
    assert torch.utils.data.DataLoader.__module__ == "torch.utils.data.dataloader"
    assert not [name for name in dir(torchvision.datasets) if name.lower() == "dataloader"]


@clause("06.loader.work")
def test_two_epochs_take_19968_items_one_by_one(DataLoader: Loader) -> None:
    # chapter 06, line 361 says "slow"; what takes the time is 2 · 156 · 64 items, each taken anew in each epoch
    dataset = Counting(10_000)
    for _ in range(2):
        for _ in DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True):
            pass
    assert len(dataset.taken) == 2 * 156 * 64 == 19_968
    assert max(Counter(dataset.taken).values()) == 2


# The properties

EPOCHS = st.fixed_dictionaries(
    {"n": st.integers(1, 40), "batch_size": st.integers(1, 50), "shuffle": st.booleans(), "drop_last": st.booleans()}
)


def listed(items: list[int]) -> list[int]:
    """A custom `collate_fn`."""
    return list(items)


@clause("06.loader.each_once")
@given(EPOCHS, st.sampled_from([None, listed]), seeds)
def test_each_item_is_yielded_once_unless_drop_last_drops_it(
    DataLoader: Loader, options: dict[str, Any], collate_fn: Any, seed: int
) -> None:
    n, size, drop_last = options["n"], options["batch_size"], options["drop_last"]
    loader = DataLoader(
        Numbers(n), size, options["shuffle"], drop_last=drop_last, collate_fn=collate_fn, generator=seeded(seed)
    )
    rest = [] if drop_last or n % size == 0 else [n % size]
    for _ in range(2):
        batches = list(loader)
        assert {type(batch) for batch in batches} <= {torch.Tensor if collate_fn is None else list}
        assert [len(batch) for batch in batches] == [size] * (n // size) + rest
        seen = [item for batch in shown(batches) for item in batch]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(n))
        if not options["shuffle"]:
            assert seen == sorted(seen)


def orders(n: int, generator: torch.Generator, finished: Iterable[bool]) -> Iterator[list[int]]:
    """The order of each epoch, from the generator: a seed for the workers, then the order of all items.

    A finished epoch draws one more order, which is not used.
    """
    for whole in finished:
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        yield torch.randperm(n, generator=generator).tolist()
        if whole:
            torch.randperm(n, generator=generator)


@clause("06.loader.order_from_seed")
@given(st.integers(1, 30), st.integers(1, 9), st.booleans(), st.lists(st.booleans(), min_size=1, max_size=3), seeds)
def test_the_generator_decides_the_orders_after_an_early_break_too(
    DataLoader: Loader, n: int, batch_size: int, drop_last: bool, finished: list[bool], seed: int
) -> None:
    finished = [whole or n < batch_size for whole in finished]  # a batch that is not full is the last
    generator, own = seeded(seed), seeded(seed)
    loader = DataLoader(Numbers(n), batch_size, shuffle=True, drop_last=drop_last, generator=generator)
    for whole, order in zip(finished, orders(n, own, finished), strict=True):
        batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]
        if drop_last and n % batch_size:
            batches.pop()
        assert shown(loader if whole else islice(loader, 1)) == batches[: None if whole else 1]
    assert torch.equal(generator.get_state(), own.get_state())


@clause("06.loader.order_from_seed")
@given(st.integers(1, 30), st.integers(1, 9), seeds)
def test_the_global_generator_gives_a_seed_for_the_workers_and_one_for_the_order(
    DataLoader: Loader, n: int, batch_size: int, seed: int
) -> None:
    seed_all(seed)
    loader = DataLoader(Numbers(n), batch_size, shuffle=True)
    found = [flat(loader) for _ in range(2)]
    own = seeded(seed)
    expected = []
    for _ in range(2):
        _, order_seed = (int(torch.empty((), dtype=torch.int64).random_(generator=own)) for _ in range(2))
        expected.append(torch.randperm(n, generator=seeded(order_seed)).tolist())
    assert found == expected
    assert torch.equal(torch.get_rng_state(), own.get_state())


@clause("06.loader.order_from_seed")
def test_an_epoch_in_order_takes_one_number_from_the_generator(DataLoader: Loader) -> None:
    generator, own = seeded(3), seeded(3)
    list(DataLoader(Numbers(5), 2, generator=generator))
    torch.empty((), dtype=torch.int64).random_(generator=own)
    assert torch.equal(generator.get_state(), own.get_state())


@clause("06.loader.sampler")
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 5), st.booleans())
def test_a_sampler_decides_which_items_come_and_in_which_order(
    DataLoader: Loader, indices: list[int], batch_size: int, drop_last: bool
) -> None:
    loader = DataLoader(Numbers(10), batch_size, sampler=indices, drop_last=drop_last)
    expected = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    if drop_last and len(indices) % batch_size:
        expected.pop()
    assert [shown(loader) for _ in range(2)] == [expected] * 2


@clause("06.loader.sampler")
@given(st.integers(1, 9), seeds)
def test_a_sampler_that_shares_the_generator_draws_after_the_seed_for_the_workers(
    DataLoader: Loader, batch_size: int, seed: int
) -> None:
    generator, own = seeded(seed), seeded(seed)
    sampler = torch.utils.data.SubsetRandomSampler([3, 1, 4, 15, 9, 2, 6], generator=generator)
    loader = DataLoader(Numbers(16), batch_size, sampler=sampler, generator=generator)
    for _ in range(2):
        torch.empty((), dtype=torch.int64).random_(generator=own)
        expected = [[3, 1, 4, 15, 9, 2, 6][i] for i in torch.randperm(7, generator=own).tolist()]
        assert flat(loader) == expected


@clause("06.loader.batch_sampler")
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=5))
def test_a_batch_sampler_decides_each_batch(DataLoader: Loader, batches: list[list[int]]) -> None:
    loader = DataLoader(Numbers(10), batch_sampler=batches)
    assert [shown(loader) for _ in range(2)] == [batches] * 2


@clause("06.loader.sampler", "06.loader.batch_sampler")
@pytest.mark.parametrize("name", ["sampler", "batch_sampler"])
def test_indices_are_taken_from_a_sampler_on_demand(DataLoader: Loader, name: str) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield 5 if name == "sampler" else [5]

    batches = iter(DataLoader(Numbers(10), **{name: Endless()}))
    assert [next(batches).tolist() for _ in range(3)] == [[5]] * 3


@clause("06.loader.single_items")
def test_a_batch_size_of_none_gives_single_items(DataLoader: Loader) -> None:
    items = [(np.array([1, 2]), "a", {"b": 3}), (np.array([4, 5]), "c", {"d": [6]})]
    loader = DataLoader(items, batch_size=None, sampler=[1, 0])
    (first, *rest), _ = loader
    assert_equal(first, torch.tensor([4, 5]))
    assert rest == ["c", {"d": [6]}]
    assert shown(DataLoader(Numbers(3), batch_size=None, collate_fn=lambda item: item * 10)) == [0, 10, 20]


# Collation

Point = namedtuple("Point", ["x", "y"])


@clause("06.loader.collate")
@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param([[1, 2], [3, 4]], [[1, 3], [2, 4]], id="lists are gone into: one batch for each place"),
        pytest.param([(1, 2), (3, 4)], [[1, 3], [2, 4]], id="tuples too, and become a list"),
        pytest.param([{"x": 1}, {"x": 2}], {"x": [1, 2]}, id="dictionaries keep their keys"),
        pytest.param([Point(1, 2), Point(3, 4)], Point([1, 3], [2, 4]), id="named tuples keep their names"),
        pytest.param(["a", "b"], ["a", "b"], id="texts stay texts"),
        pytest.param([b"a", b"b"], [b"a", b"b"], id="bytes stay bytes"),
        pytest.param([(1, (2, 3)), (4, (5, 6))], [[1, 4], [[2, 5], [3, 6]]], id="containers in containers"),
    ],
)
def test_containers_are_collated_part_by_part(DataLoader: Loader, items: list[Any], expected: Any) -> None:
    def plain(batch: Any) -> Any:
        if isinstance(batch, torch.Tensor):
            return batch.tolist()
        if isinstance(batch, dict):
            return {key: plain(part) for key, part in batch.items()}
        if isinstance(batch, tuple | list):
            parts = [plain(part) for part in batch]
            return type(batch)(*parts) if hasattr(batch, "_fields") else parts
        return batch

    (batch,) = DataLoader(items, batch_size=2)
    found = plain(batch)
    assert found == expected
    assert type(found) is type(expected)


@clause("06.loader.collate")
@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param([1, 2], torch.tensor([1, 2]), id="whole numbers become int64"),
        pytest.param([0.5, 1.5], torch.tensor([0.5, 1.5], dtype=torch.float64), id="floats become float64"),
        pytest.param([True, False], torch.tensor([True, False]), id="truth values become bool"),
        pytest.param([torch.ones(2, 3)] * 2, torch.ones(2, 2, 3), id="tensors are stacked along a new first dimension"),
        pytest.param([torch.tensor(1.0)] * 2, torch.ones(2), id="tensors without dimensions too"),
        pytest.param([np.float32([1, 2])] * 2, torch.tensor([[1.0, 2.0]] * 2), id="arrays are stacked, of their dtype"),  # pyright: ignore[reportArgumentType]
        pytest.param(list(np.int32([1, 2])), torch.tensor([1, 2], dtype=torch.int32), id="NumPy's numbers too"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_numbers_and_tensors_become_one_tensor(DataLoader: Loader, items: list[Any], expected: torch.Tensor) -> None:
    (batch,) = DataLoader(items, batch_size=2)
    assert_equal(batch, expected)


@clause("06.loader.collate_fn")
def test_collate_fn_receives_the_list_of_items(DataLoader: Loader) -> None:
    given_to: list[Any] = []
    loader = DataLoader(Numbers(5), batch_size=2, collate_fn=lambda items: given_to.append(items) or sum(items))
    assert list(loader) == [1, 5, 4]
    assert given_to == [[0, 1], [2, 3], [4]]


@clause("06.loader.collate_rejects")
@pytest.mark.parametrize(
    ("items", "naming"),
    [
        pytest.param([torch.zeros(3), torch.zeros(2)], r"shapes \[\(2,\), \(3,\)\]|equal size", id="different shapes"),
        pytest.param([[1, 2], [1]], r"equal size", id="different lengths"),
        pytest.param([Image.new("L", (1, 1))] * 2, r"found.*Image", id="images that are no tensors yet"),
        pytest.param([None, None], r"found.*NoneType", id="nothing"),
    ],
)
def test_items_that_cannot_be_collated_are_rejected(DataLoader: Loader, items: list[Any], naming: str) -> None:
    with rejects(naming=naming):
        list(DataLoader(items, batch_size=2))


# The worker processes


@clause("06.workers.same_batches")
@with_workers
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_size": 3}, id="in order"),
        pytest.param({"batch_size": 3, "shuffle": True, "drop_last": True}, id="shuffled, without the rest"),
        pytest.param({"batch_sampler": [[1], [5, 3], [0, 9, 9], [2]]}, id="of a batch sampler"),
        pytest.param({"batch_size": 3, "drop_last": True}, id="without the rest", marks=pytest.mark.slow),
        pytest.param({"batch_size": 3, "shuffle": True}, id="shuffled", marks=pytest.mark.slow),
        pytest.param({"batch_size": None, "shuffle": True}, id="single items, shuffled", marks=pytest.mark.slow),
        pytest.param({"batch_size": 100}, id="one batch for two workers", marks=pytest.mark.slow),
        pytest.param(
            {"batch_size": 3, "collate_fn": listed, "sampler": [9, 1, 1, 0, 4, 6, 7]},
            id="lists of a sampler's items",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_workers_give_the_batches_of_none_in_the_same_order(DataLoader: Loader, options: dict[str, Any]) -> None:
    alone = DataLoader(Numbers(10), generator=seeded(5), **options)
    helped = DataLoader(Slow(10), generator=seeded(5), num_workers=2, **options)
    assert shown(helped) == shown(alone)


@clause("06.workers.any_count")
@with_workers
@pytest.mark.parametrize(
    ("n", "batch_size", "num_workers"),
    [(7, 2, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 2, 3), (11, 1, 4)])],
)
def test_all_batches_are_yielded_if_workers_do_not_divide_the_count(
    DataLoader: Loader, n: int, batch_size: int, num_workers: int
) -> None:
    loader = DataLoader(Numbers(n), batch_size, num_workers=num_workers)
    expected = [list(range(n))[i : i + batch_size] for i in range(0, n, batch_size)]
    assert len(expected) % num_workers != 0
    assert shown(loader) == expected


ORDERS: dict[str, Callable[[torch.Generator | None], dict[str, Any]]] = {
    "in order": lambda _: {},
    "shuffled": lambda _: {"shuffle": True},
    "a list of indices": lambda _: {"sampler": [9, 1, 1, 0, 4, 6, 7]},
    "a sampler that draws": lambda generator: {
        "sampler": torch.utils.data.RandomSampler(range(10), generator=generator)
    },
    "a list of batches": lambda _: {"batch_sampler": [[1], [5, 3], [0, 9, 9], [2]]},
    "batches of a sampler that draws": lambda generator: {
        "batch_sampler": torch.utils.data.BatchSampler(
            torch.utils.data.RandomSampler(range(10), generator=generator), 4, drop_last=False
        )
    },
}
SIZES: list[dict[str, Any]] = [
    *({"batch_size": size, "drop_last": drop_last} for size in (1, 3, 5, 100) for drop_last in (False, True)),
    {"batch_size": None},
]


def told(items: Any) -> tuple[str, Any]:
    """A `collate_fn` for batches and single items."""
    return "told", items


@clause("06.workers.same_batches", "06.loader.order_from_seed")
@with_workers
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("collate_fn", [None, told], ids=["collated", "its own way"])
@pytest.mark.parametrize("with_generator", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_combination_of_options_gives_the_batches_of_pytorch_s_loader(
    DataLoader: Loader, order: str, with_generator: bool, collate_fn: Any, num_workers: int, subtests: pytest.Subtests
) -> None:
    """Compare two epochs; PyTorch's loader loads all items in its own process."""

    def epochs(loader: Loader, workers: int, sizes: dict[str, Any]) -> tuple[Any, ...]:
        seed_all(3)
        generator = seeded(5) if with_generator else None
        options = ORDERS[order](generator) | sizes
        made = loader(Numbers(10), num_workers=workers, collate_fn=collate_fn, generator=generator, **options)
        found = [shown(made) for _ in range(2)]
        left = torch.get_rng_state() if generator is None else generator.get_state()
        return found, left.tolist()

    for sizes in [{}] if "batches" in order else SIZES:
        with subtests.test(**sizes):
            assert epochs(DataLoader, num_workers, sizes) == epochs(torch.utils.data.DataLoader, 0, sizes)


@clause("06.workers.same_batches")
@with_workers
@pytest.mark.slow
def test_two_workers_are_two_other_processes(DataLoader: Loader) -> None:
    found = shown(DataLoader(Processes(8), batch_size=2, num_workers=2))
    first, second = found[0][0], found[1][0]
    assert found == [[first] * 2, [second] * 2] * 2  # batch b is made by worker b mod 2
    assert len({first, second, os.getpid()}) == 3
    assert not alive(first)
    assert not alive(second)


class StopError(Exception):
    """The process of the consumer."""


@clause("06.workers.end")
@with_workers
@pytest.mark.parametrize("ending", [None, StopError, KeyboardInterrupt], ids=["a break", "an exception", "Ctrl-C"])
def test_no_worker_process_remains_after_iteration(DataLoader: Loader, ending: type[BaseException] | None) -> None:
    workers = []

    def consume() -> None:
        for batch in DataLoader(Processes(1000), num_workers=2):
            workers.append(int(batch))
            if len(workers) == 2:
                if ending is not None:
                    raise ending
                break

    if ending is None:
        consume()
    else:
        with pytest.raises(ending):
            consume()
    assert len(set(workers)) == 2
    assert [process for process in workers if alive(process)] == []


@clause("06.workers.exception")
@with_workers
def test_worker_exceptions_keep_type_message_and_cause(DataLoader: Loader) -> None:
    seen: list[list[int]] = []
    report = ""
    try:
        seen.extend(batch.tolist() for batch in DataLoader(Broken(12), batch_size=2, num_workers=2))
    except ValueError as error:
        report = "".join(traceback.format_exception(error))
        # PyTorch's error has a reference cycle, which keeps the processes alive
        traceback.clear_frames(error.__traceback__)
    assert seen == [[0, 1], [2, 3], [4, 5]]
    assert "image 7 is broken" in report
    assert "in __getitem__" in report  # where in the worker it was raised
    assert "worker" in report
    assert multiprocessing.active_children() == []


DEADLY = """
import os
{import_line}

class Deadly:
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return os._exit(3) if index == 5 else index

list(DataLoader(Deadly(), batch_size=2, num_workers=2))
"""


@pytest.mark.slow  # PyTorch checks every five seconds that its workers are alive
@clause("06.workers.exception")
def test_a_worker_that_dies_is_an_error(DataLoader: Loader) -> None:
    # In a process of its own: PyTorch raises from a signal handler until the worker is forgotten, in whatever line runs
    # then, and that may be a line of pytest.
    program = DEADLY.format(import_line=DataLoader._import_line)  # pyright: ignore[reportFunctionMemberAccess]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    assert re.search(r"^RuntimeError: .*worker.*(ended|exited)", result.stderr, re.MULTILINE | re.IGNORECASE)


@clause("06.workers.seeds")
@with_workers
def test_each_worker_has_a_different_seed_from_the_generator(DataLoader: Loader) -> None:
    base = int(torch.empty((), dtype=torch.int64).random_(generator=seeded(7)))
    (first, *rest), (second, *others) = DataLoader(Drawn(2), num_workers=2, generator=seeded(7))
    assert (int(first), int(second)) == (base, base + 1)
    assert all(float(one) != float(other) for one, other in zip(rest, others, strict=True))
    (_, *again), _ = DataLoader(Drawn(2), num_workers=2, generator=seeded(7))
    assert [float(number) for number in again] == [float(number) for number in rest]


@clause("06.workers.pickle")
@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")
def test_a_data_set_that_cannot_be_sent_to_a_new_process_is_an_error(DataLoader: Loader) -> None:
    class Local(Numbers):
        """A class inside a function cannot be imported by another process."""

    with pytest.raises((TypeError, AttributeError), match=r"(?i)can't (pickle|get) local object '.*Local'"):
        list(DataLoader(Local(4), num_workers=2, multiprocessing_context="spawn"))


@pytest.mark.slow
@clause("06.workers.pickle")
def test_data_set_is_sent_to_spawned_workers(DataLoader: Loader) -> None:
    loader = DataLoader(range(4), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert shown(loader) == [[0, 1], [2, 3]]


CONSUMER = """
import os, signal, time
{import_line}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf to it

class Processes:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return os.getpid()

for batch in DataLoader(Processes(), num_workers=2):
    print(int(batch), flush=True)
    time.sleep(0.05)
"""


@pytest.mark.slow
@clause("06.workers.end")
def test_ctrl_c_at_the_terminal_ends_consumer_and_workers(DataLoader: Loader) -> None:
    command = [sys.executable, "-c", CONSUMER.format(import_line=DataLoader._import_line)]  # pyright: ignore[reportFunctionMemberAccess]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as consumer:
        assert consumer.stdout is not None
        workers = [int(consumer.stdout.readline()) for _ in range(2)]
        os.killpg(consumer.pid, signal.SIGINT)  # the terminal sends it to all of them
        _, errors = consumer.communicate(timeout=60)
    assert consumer.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert [process for process in workers if alive(process)] == []


# Rejected arguments


@clause("06.loader.rejects")
@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_an_impossible_batch_size_is_rejected(DataLoader: Loader, batch_size: object) -> None:
    with rejects("batch_size"):
        DataLoader(Numbers(3), batch_size)


@clause("06.loader.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        ({"num_workers": -1}, "num_workers"),
        ({"sampler": [0], "shuffle": True}, r"sampler .*shuffle|shuffle .*sampler"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "batch_sampler .*batch_size"),
        ({"batch_sampler": [[0]], "shuffle": True}, "batch_sampler .*shuffle"),
        ({"batch_sampler": [[0]], "sampler": [0]}, "batch_sampler .* sampler"),
        ({"batch_sampler": [[0]], "drop_last": True}, r"batch_sampler (.|\n)*drop_last"),
        ({"batch_size": None, "drop_last": True}, "batch_size=None .*drop_last"),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_exclude_each_other_are_rejected(DataLoader: Loader, options: dict[str, Any], naming: str) -> None:
    with rejects(naming, *options):
        DataLoader(Numbers(3), **options)


@clause("06.loader.errors_pass")
def test_an_error_of_the_data_set_reaches_the_consumer_unchanged(DataLoader: Loader) -> None:
    with pytest.raises(ValueError, match="image 7 is broken") as caught:
        list(DataLoader(Broken(12), batch_size=2))
    assert str(caught.value) == "image 7 is broken"


@clause("06.loader.empty")
@with_workers
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_empty_data_set_has_no_batches(DataLoader: Loader, drop_last: bool, num_workers: int) -> None:
    loader = DataLoader(Numbers(0), batch_size=4, drop_last=drop_last, num_workers=num_workers)
    assert list(loader) == []


# The reference alone


@clause("06.loader.empty")
@pytest.mark.parametrize("kind", [ReferenceLoader, ResidentLoader])
def test_shuffle_of_an_empty_data_set_yields_nothing(kind: Any) -> None:
    assert list(kind(Numbered(0), 4, True)) == []
    with pytest.raises(ValueError, match="num_samples=0"):
        torch.utils.data.DataLoader(Numbers(0), 4, True)  # pyright: ignore[reportArgumentType]


@clause("06.workers.exception")
@with_workers
@pytest.mark.parametrize("num_workers", [0, 2])
def test_worker_error_names_the_item_index(num_workers: int) -> None:
    with pytest.raises(ValueError, match="image 7 is broken") as caught:
        list(ReferenceLoader(Broken(12), batch_size=2, num_workers=num_workers))
    assert caught.value.__notes__ == ["DataLoader: raised by Broken, index 7"]
    if num_workers:
        assert "in DataLoader worker 1:\nTraceback" in str(caught.value.__cause__)


class DemandingError(Exception):
    """An exception that cannot be constructed from its text alone, as pickle does."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@clause("06.workers.exception")
@with_workers
@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(
            lambda: (_ for _ in ()).throw(DemandingError("a", "b")),
            "DemandingError: a and b",
            id="an error of two parts",
        ),
        pytest.param(lambda: lambda: 0, "local object", id="a batch that cannot be sent"),
    ],
)
def test_a_result_that_cannot_be_sent_from_a_worker_is_a_clear_error(make: Callable[[], Any], says: str) -> None:
    class Made(Numbers):
        def __getitem__(self, index: int) -> Any:
            return make()

    with pytest.raises((RuntimeError, AttributeError), match=says):
        list(ReferenceLoader(Made(2), num_workers=1, collate_fn=listed, multiprocessing_context="fork"))


@clause("06.workers.pickle")
def test_the_reference_gives_a_remedy_for_objects_that_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match=r"top level of a module, or use num_workers=0"):
        list(ReferenceLoader(Numbers(2), num_workers=1, collate_fn=lambda x: x, multiprocessing_context="spawn"))
