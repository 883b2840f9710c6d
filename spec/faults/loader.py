"""Chapter 06: loaders that are wrong."""

# ruff: noqa: N802  -- a function that replaces a class has the name of the class

import math
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import data
from torch.utils.data import default_collate

from spec.faults import Fault


class ShufflesOnce(Fault):
    """The order is drawn once, when the loader is created."""

    caught_by = "test_06_dataloader.py::test_shuffle_draws_a_new_order_each_epoch"
    says = r"assert \[.*\] != \["

    @staticmethod
    def DataLoader(dataset: Any, *args: Any, shuffle: bool = False, **options: Any) -> Any:
        if shuffle:
            options["sampler"] = torch.randperm(len(dataset), generator=options.get("generator")).tolist()
        return data.DataLoader(dataset, *args, **options)


class NeverShuffles(Fault):
    """`shuffle` is stored and not used."""

    caught_by = "test_06_dataloader.py::test_shuffle_of_8_items_with_global_seed_0_is_the_documented_order"
    says = r"assert \[0, 1, 2, 3, 4, 5, .*\] == \[2, 0, 5, 3, 1, 4"

    @staticmethod
    def DataLoader(dataset: Any, batch_size: Any = 1, shuffle: Any = None, *args: Any, **options: Any) -> Any:
        return data.DataLoader(dataset, batch_size, False, *args, **options)


class DrawsWithReplacement(Fault):
    """Each index is drawn independently, with repetitions."""

    caught_by = "test_06_dataloader.py::test_each_item_is_yielded_once_unless_drop_last_drops_it"
    says = r"assert \d+ == \d+(.|\n)*An epoch contains each item exactly once"

    @staticmethod
    def DataLoader(dataset: Any, batch_size: Any = 1, shuffle: Any = None, **options: Any) -> Any:
        if shuffle:
            options["sampler"] = data.RandomSampler(dataset, replacement=True, generator=options.get("generator"))
        return data.DataLoader(dataset, batch_size, **options)


class KeepsTheRest(Fault):
    """`drop_last` is ignored."""

    caught_by = "test_06_dataloader.py::test_drop_last_leaves_out_an_incomplete_batch_and_no_complete_one"
    says = r"assert \[\[0, 1, 2\], \[3, 4, 5\], \[6\]\] == "

    @staticmethod
    def DataLoader(*args: Any, drop_last: bool = False, **options: Any) -> Any:
        return data.DataLoader(*args, **options)


class AlwaysDropsTheRest(Fault):
    """An incomplete last batch is always dropped."""

    caught_by = "test_06_dataloader.py::test_the_10000_test_images_make_156_batches_of_64_and_a_rest_of_16"
    says = r"assert 156 == 157"

    @staticmethod
    def DataLoader(*args: Any, **options: Any) -> Any:
        return data.DataLoader(*args, **options | {"drop_last": True})


class DropsTheLastBatchAlways(Fault):
    """`drop_last` always drops the last batch, even if it is complete."""

    caught_by = "test_06_dataloader.py::test_drop_last_leaves_out_an_incomplete_batch_and_no_complete_one"
    says = r"assert \[\[0, 1, 2\]\] == \[\[0, 1, 2\], \[3, 4, 5\]\]"

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            batches = list(super().__iter__())
            full = len(batches) * (self.batch_size or 1) == len(self.dataset)  # pyright: ignore[reportArgumentType]
            return iter(batches[:-1] if self.drop_last and full else batches)


class FillsUpTheLastBatch(Fault):
    """The last batch is padded with items from the beginning."""

    caught_by = "test_06_dataloader.py::test_the_10000_test_images_make_156_batches_of_64_and_a_rest_of_16"
    says = r"assert 64 == 16"

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                missing = (self.batch_size or 1) - len(batch)
                yield torch.cat([batch, torch.arange(missing)]) if missing else batch


class CountsWholeBatchesOnly(Fault):
    """`len` rounds n / batch_size down, although the incomplete batch is returned."""

    caught_by = "test_06_dataloader.py::test_loader_length_is_the_number_of_batches"
    says = r"assert 781 == 782"

    class DataLoader(data.DataLoader[Any]):
        def __len__(self) -> int:
            return math.floor(len(self.dataset) / self.batch_size)  # pyright: ignore[reportArgumentType, reportOperatorIssue]


class ShufflesWithPythonsRandomNumbers(Fault):
    """The order does not come from a generator of PyTorch."""

    caught_by = "test_06_dataloader.py::test_the_generator_decides_the_orders_after_an_early_break_too"
    says = r"The generator determines the orders"

    class Order:
        def __init__(self, n: int) -> None:
            self.n = n

        def __len__(self) -> int:
            return self.n

        def __iter__(self) -> Iterator[int]:
            return iter(random.sample(range(self.n), self.n))

    @classmethod
    def DataLoader(cls, dataset: Any, batch_size: Any = 1, shuffle: Any = None, **options: Any) -> Any:
        if shuffle:
            options["sampler"] = cls.Order(len(dataset))
        return data.DataLoader(dataset, batch_size, **options)


class SamplerIsSorted(Fault):
    """A sampler determines the items, but not their order."""

    caught_by = "test_06_dataloader.py::test_a_sampler_decides_which_items_come_and_in_which_order"
    says = r"A sampler determines which items an epoch contains, in which order"

    @staticmethod
    def DataLoader(*args: Any, sampler: Any = None, **options: Any) -> Any:
        return data.DataLoader(*args, sampler=None if sampler is None else sorted(sampler), **options)


class BatchSamplerIsCutAnew(Fault):
    """The indices of a batch_sampler are joined and split into batches of two."""

    caught_by = "test_06_dataloader.py::test_a_batch_sampler_decides_each_batch"
    says = r"A batch_sampler determines the indices of each batch"

    @staticmethod
    def DataLoader(*args: Any, batch_sampler: Any = None, **options: Any) -> Any:
        if batch_sampler is None:
            return data.DataLoader(*args, **options)
        return data.DataLoader(*args, 2, sampler=[index for batch in batch_sampler for index in batch], **options)  # pyright: ignore[reportCallIssue]


class NoneMeansBatchesOfOne(Fault):
    """`batch_size=None` gives single items a batch dimension."""

    caught_by = "test_06_dataloader.py::test_a_batch_size_of_none_gives_single_items"
    says = r"returns single items without a batch dimension"

    @staticmethod
    def DataLoader(dataset: Any, batch_size: Any = 1, **options: Any) -> Any:
        return data.DataLoader(dataset, batch_size or 1, **options)


class FloatsAreFloat32(Fault):
    """Python floats become float32 instead of float64."""

    caught_by = "test_06_dataloader.py::test_numbers_and_tensors_become_one_tensor"
    says = r"has dtype torch.float32, expected torch.float64"

    @staticmethod
    def DataLoader(*args: Any, **options: Any) -> Any:
        def collate(items: list[Any]) -> Any:
            return torch.tensor(items) if isinstance(items[0], float) else default_collate(items)

        return data.DataLoader(*args, **{"collate_fn": collate} | options)


class AppendsAlongTheFirstDimension(Fault):
    """Tensors are concatenated instead of stacked."""

    caught_by = "test_06_dataloader.py::test_numbers_and_tensors_become_one_tensor"
    says = r"has shape \[4, 3\], expected \[2, 2, 3\]"

    @staticmethod
    def DataLoader(*args: Any, **options: Any) -> Any:
        def collate(items: list[Any]) -> Any:
            is_tensor = isinstance(items[0], torch.Tensor) and items[0].dim() > 0
            return torch.cat(items) if is_tensor else default_collate(items)

        return data.DataLoader(*args, **{"collate_fn": collate} | options)


class CollateFnGetsTheBatch(Fault):
    """`collate_fn` is called with the default batch instead of the items."""

    caught_by = "test_06_dataloader.py::test_collate_fn_receives_the_list_of_items"
    says = r"collate_fn receives the list of a batch's items"

    @staticmethod
    def DataLoader(*args: Any, collate_fn: Any = None, **options: Any) -> Any:
        if collate_fn is None:
            return data.DataLoader(*args, **options)
        return data.DataLoader(*args, collate_fn=lambda items: collate_fn(default_collate(items)), **options)


class BatchesComeAsTheyAreMade(Fault):
    """Batches are returned in the order in which the workers finish."""

    caught_by = "test_06_dataloader.py::test_two_workers_give_the_batches_of_none_in_the_same_order"
    says = r"Workers change neither the batches nor their order"

    @staticmethod
    def DataLoader(*args: Any, **options: Any) -> Any:
        return data.DataLoader(*args, in_order=False, **options)


class WorkersStay(Fault):
    """The loader keeps a reference to the iterator, so its processes do not end."""

    caught_by = "test_06_dataloader.py::test_no_worker_process_remains_after_iteration"
    says = r"assert \[\d+, \d+\] == \[\]"

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            kept.append(super().__iter__())
            return kept[-1]


kept: list[Any] = []


class ErrorsLoseTheirCause(Fault):
    """For any exception in a worker, the consumer gets a generic error."""

    caught_by = "test_06_dataloader.py::test_worker_exceptions_keep_type_message_and_cause"
    says = r"RuntimeError: a worker failed"

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            try:
                yield from super().__iter__()
            except ValueError:
                raise RuntimeError("a worker failed") from None


def _same_seed(_: int) -> None:
    torch.manual_seed(0)
    random.seed(0)


class WorkersDrawTheSame(Fault):
    """Every worker has the same seed."""

    caught_by = "test_06_dataloader.py::test_each_worker_has_a_different_seed_from_the_generator"
    says = r"assert \(0, 0\) == "

    @staticmethod
    def DataLoader(*args: Any, **options: Any) -> Any:
        return data.DataLoader(*args, worker_init_fn=_same_seed, **options)


class AnyBatchSizeIsTaken(Fault):
    """A batch size below 1 is replaced by 1."""

    caught_by = "test_06_dataloader.py::test_an_impossible_batch_size_is_rejected"
    says = r"was accepted, but must be rejected with an error that names /batch_size"

    @staticmethod
    def DataLoader(dataset: Any, batch_size: Any = 1, *args: Any, **options: Any) -> Any:
        return data.DataLoader(dataset, max(1, int(batch_size)), *args, **options)


class WorkersDropTheLastRound(Fault):
    """Batches of an incomplete last round of the workers are lost."""

    caught_by = "test_06_dataloader.py::test_all_batches_are_yielded_if_workers_do_not_divide_the_count"
    says = r"assert \[\[0, 1\], \[2, 3\], \[4, 5\]\] == \[\[0, 1\], \[2, 3\], \[4, 5\], \[6\]\]"

    class DataLoader(data.DataLoader[Any]):
        def __iter__(self) -> Any:
            batches = list(super().__iter__())
            return iter(batches[: len(batches) // self.num_workers * self.num_workers] if self.num_workers else batches)


class ForgetsItsGenerator(Fault):
    """The loader uses the generator, but has no attribute `generator`."""

    caught_by = "test_06_dataloader.py::test_constructor_arguments_are_attributes_of_the_loader"
    says = r"assert None is <torch"

    class DataLoader(data.DataLoader[Any]):
        @property
        def generator(self) -> Any:
            return None

        @generator.setter
        def generator(self, value: Any) -> None:
            pass
