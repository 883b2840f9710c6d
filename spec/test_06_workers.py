"""Chapter 06: options of `DataLoader`'s workers, and misbehaving workers."""

import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import reference
from reference.data.loader import DataLoader as ReferenceLoader
from reference.data.workers import WorkerPool
from spec.support.assertions import assert_equal, rejects
from spec.support.clauses import clause
from spec.support.strategies import seed_all

Loader = Callable[..., Any]

with_workers = pytest.mark.filterwarnings(
    # a warning of Python 3.12 for forks of every process with threads
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",  # PyTorch's advice on a machine of one core
)
with_signals = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP and no fork")


class Numbers:
    """Item `i` of `n` is `i`."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return index


class Processes(Numbers):
    """Every item is the id of the process that loads it."""

    def __getitem__(self, index: int) -> int:
        return os.getpid()


class AtOnce(Numbers):
    """A data set that can only load whole batches, by `__getitems__`."""

    def __getitems__(self, indices: list[int]) -> list[int]:
        if 9 in indices:
            raise ValueError("image 9 is broken")
        return [10 * index for index in indices]

    def __getitem__(self, index: int) -> int:
        raise AssertionError("an item was taken by itself")


class Draws(Numbers):
    """Every item is a random number."""

    def __getitem__(self, index: int) -> tuple[int, float, float]:
        return int(torch.randint(2**40, ())), random.random(), float(np.random.random())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lists(loader: Any) -> list[Any]:
    return [batch.tolist() for batch in loader]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# Options


@clause("06.loader.getitems")
@with_workers
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.slow
def test_getitems_is_given_the_indices_of_a_batch(DataLoader: Loader, num_workers: int) -> None:
    loader = DataLoader(AtOnce(6), batch_size=4, num_workers=num_workers)
    assert lists(loader) == [[0, 10, 20, 30], [40, 50]]
    subset = torch.utils.data.Subset(AtOnce(9), [8, 1, 1])  # PyTorch's own has it, and passes it on  # pyright: ignore[reportArgumentType]
    assert lists(DataLoader(subset, batch_size=2, num_workers=num_workers)) == [[80, 10], [10]]


@clause("06.loader.getitems")
def test_getitems_is_not_called_for_single_items(DataLoader: Loader) -> None:
    with pytest.raises(AssertionError, match="an item was taken by itself"):
        list(DataLoader(AtOnce(3), batch_size=None))


@clause("06.loader.getitems")
def test_the_reference_says_which_indices_getitems_failed_at() -> None:
    with pytest.raises(ValueError, match="image 9 is broken") as caught:
        list(ReferenceLoader(AtOnce(10), batch_size=2))
    assert caught.value.__notes__ == ["DataLoader: raised by AtOnce, indices [8, 9]"]


@clause("06.loader.pin_memory")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_pin_memory_without_an_accelerator_only_warns(DataLoader: Loader) -> None:
    with pytest.warns(UserWarning, match="pin_memory"):
        batches = list(DataLoader([(1.5, "a"), (2.5, "b")], batch_size=2, pin_memory=True))
    ((numbers, texts),) = batches
    assert_equal(numbers, torch.tensor([1.5, 2.5], dtype=torch.float64))
    assert list(texts) == ["a", "b"]


@clause("06.loader.pin_memory")
def test_the_warning_about_pin_memory_names_the_line_that_iterates() -> None:
    with pytest.warns(UserWarning, match="pin_memory") as caught:
        iter(ReferenceLoader([0], pin_memory=True))
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.gpu
@clause("06.loader.pin_memory")
@with_workers
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")  # in a rehearsal
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pin_memory_pins_the_tensors_of_every_container(
    DataLoader: Loader, gpu: torch.device, num_workers: int
) -> None:
    items = [{"x": torch.ones(2), "y": (1, "a")}, {"x": torch.zeros(2), "y": (2, "b")}]
    (batch,) = DataLoader(items, batch_size=2, pin_memory=True, num_workers=num_workers)
    pinned = gpu.type == "cuda"
    assert (batch["x"].is_pinned(), batch["y"][0].is_pinned()) == (pinned, pinned)
    assert_equal(batch["x"], torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert list(batch["y"][1]) == ["a", "b"]


@clause("06.workers.persistent")
@with_workers
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.slow
def test_persistent_workers_serve_every_epoch(DataLoader: Loader, persistent: bool) -> None:
    loader = DataLoader(Processes(4), num_workers=2, persistent_workers=persistent)
    epochs = [lists(loader) for _ in range(2)]
    assert (epochs[0] == epochs[1]) is persistent
    assert all(alive(process) for (process,) in epochs[1]) is persistent
    del loader
    gc.collect()
    deadline = time.monotonic() + 10
    while any(alive(process) for (process,) in epochs[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [process for (process,) in epochs[1] if alive(process)] == []


@clause("06.workers.persistent", "06.loader.order_from_seed")
@with_workers
@pytest.mark.parametrize("persistent", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("finished", [[True] * 3, [False, True, False, True]], ids=["whole epochs", "with breaks"])
@pytest.mark.parametrize("with_generator", [False, True], ids=["global generator", "own generator"])
@pytest.mark.slow
def test_epochs_with_workers_equal_those_of_pytorch(
    DataLoader: Loader, with_generator: bool, finished: list[bool], persistent: bool
) -> None:
    """Compare also the random numbers of the workers and the final state of the generator."""

    def epochs(loader: Loader) -> tuple[list[Any], list[int]]:
        seed_all(3)
        generator = seeded(5) if with_generator else None
        options = {"shuffle": True, "num_workers": 2, "persistent_workers": persistent, "generator": generator}
        made = loader(Numbers(11), 2, **options)
        found = [lists(made if whole else islice(made, 2)) for whole in finished]
        return found, (torch.get_rng_state() if generator is None else generator.get_state()).tolist()

    assert epochs(DataLoader) == epochs(torch.utils.data.DataLoader)


@clause("06.workers.prefetch")
@with_workers
@pytest.mark.parametrize(("options", "ahead"), [({}, 2), ({"prefetch_factor": 1}, 1), ({"prefetch_factor": 3}, 3)])
@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_each_worker_has_prefetch_factor_batches_ahead(
    DataLoader: Loader, options: dict[str, int], ahead: int, num_workers: int
) -> None:
    taken: list[int] = []

    class Order:
        def __len__(self) -> int:
            return 12

        def __iter__(self) -> Iterator[int]:
            for index in range(12):
                taken.append(index)
                yield index

    batches = iter(DataLoader(Numbers(12), sampler=Order(), num_workers=num_workers, **options))
    assert len(taken) == ahead * num_workers
    for number in range(12):
        assert next(batches).tolist() == [number]
        assert len(taken) == min(12, ahead * num_workers + number + 1)


@pytest.mark.slow
@clause("06.workers.prefetch")
@with_workers
@pytest.mark.parametrize("size", [1, 20_000], ids=["small", "larger than a pipe holds"])
def test_a_worker_makes_batches_while_the_consumer_is_busy(DataLoader: Loader, size: int, tmp_path: Path) -> None:
    """Three batches are prepared in advance without further requests, for any size of batches and index lists."""

    class Notes(Numbers):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index >= 0:
                (tmp_path / str(index)).touch()
            return torch.zeros(100)

    order = [[number, *[-1] * (size - 1)] for number in range(8)]
    batches = iter(DataLoader(Notes(8), batch_sampler=order, num_workers=1, prefetch_factor=3))
    next(batches)
    enough = 3 if size == 1 else 2
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < enough and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(tmp_path.iterdir())) >= enough
    assert sum(1 for _ in batches) == 7
    assert len(list(tmp_path.iterdir())) == 8


def note_number(number: int) -> None:
    os.environ["WORKER"] = f"{number} {torch.initial_seed()}"


def refuse(number: int) -> None:
    raise ValueError(f"worker {number} does not start")


class Environment(Numbers):
    def __getitem__(self, index: int) -> str:
        return os.environ["WORKER"]


@clause("06.workers.init")
@with_workers
def test_worker_init_fn_is_called_with_the_number_after_seeding(DataLoader: Loader) -> None:
    base = int(torch.empty((), dtype=torch.int64).random_(generator=seeded(7)))
    loader = DataLoader(Environment(4), num_workers=2, worker_init_fn=note_number, generator=seeded(7))
    assert [list(batch) for batch in loader] == [[f"0 {base}"], [f"1 {base + 1}"]] * 2
    assert "WORKER" not in os.environ


@clause("06.workers.init")
@with_workers
def test_an_error_of_worker_init_fn_reaches_the_consumer(DataLoader: Loader) -> None:
    with pytest.raises(ValueError, match="worker 0 does not start") as caught:
        list(DataLoader(Numbers(4), num_workers=2, worker_init_fn=refuse))
    # PyTorch's error has a reference cycle, which keeps the workers alive; the garbage collector would wait 10 s for
    # their end
    traceback.clear_frames(caught.tb)
    assert multiprocessing.active_children() == []


class Informed(Numbers):
    """Every item is the worker info of PyTorch."""

    note = "own"

    def __getitem__(self, index: int) -> Any:
        info = torch.utils.data.get_worker_info()
        return None if info is None else [info.id, info.num_workers, info.seed, info.dataset.n, info.dataset is self]  # pyright: ignore[reportAttributeAccessIssue]


@clause("06.workers.info")
@with_workers
def test_worker_info_describes_the_worker(DataLoader: Loader) -> None:
    base = int(torch.empty((), dtype=torch.int64).random_(generator=seeded(7)))
    loader = DataLoader(Informed(3), num_workers=2, collate_fn=list, generator=seeded(7))
    expected = [[[number % 2, 2, base + number % 2, 3, True]] for number in range(3)]
    assert list(loader) == expected
    assert list(DataLoader(Informed(1), collate_fn=list)) == [[None]]
    assert torch.utils.data.get_worker_info() is None
    assert reference.get_worker_info() is None


class Surroundings(Numbers):
    """Every item is what a worker has: two handlers of signals, its number of threads and whether it is a daemon."""

    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, which reaches all processes of a terminal
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        return *handlers, torch.get_num_threads(), multiprocessing.current_process().daemon


@clause("06.workers.surroundings")
@with_workers
@with_signals
def test_the_reference_s_worker_is_a_daemon_of_one_thread_that_ignores_ctrl_c_and_ends_by_sigterm() -> None:
    threads, handler = torch.get_num_threads(), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started without it
    try:
        torch.set_num_threads(2)
        (found,) = ReferenceLoader(Surroundings(1), num_workers=1, collate_fn=list)
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, ctrl_c)
    assert found == [(signal.SIG_IGN, signal.SIG_DFL, 1, True)]


class Sleeps(Numbers):
    """Loading the second item takes as long as the time limit of the test."""

    def __getitem__(self, index: int) -> int:
        if index == 1:
            time.sleep(200)
        return os.getpid()


@pytest.mark.slow
@clause("06.workers.timeout")
@with_workers
def test_a_batch_that_takes_longer_than_timeout_is_an_error(DataLoader: Loader) -> None:
    begun = time.monotonic()
    with rejects(naming=r"timed? ?out.*\b3\b"):
        list(DataLoader(Sleeps(2), num_workers=1, timeout=3))
    assert 3 <= time.monotonic() - begun < 60


@clause("06.workers.timeout")
def test_waiting_for_a_worker_ends_after_the_timeout() -> None:
    """Without processes: the worker is alive and sends nothing."""
    silent, alive = multiprocessing.Pipe()
    worker: Any = SimpleNamespace(
        take=lambda: None, answers=[], gone=False, sent=[1], pipe=silent, number=0,
        process=SimpleNamespace(is_alive=lambda: True, sentinel=alive),
    )  # fmt: skip
    pool = object.__new__(WorkerPool)
    pool.timeout, pool.workers = 0.05, [worker]
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"worker 0 made no batch within 0\.05 seconds"):
        pool._receive(worker)
    assert 0.05 <= time.monotonic() - begun < 5
    silent.close()
    alive.close()


@clause("06.workers.prefetch")
@pytest.mark.parametrize(
    ("options", "ahead"),
    [({}, None), ({"num_workers": 1}, 2), ({"num_workers": 2, "prefetch_factor": 1}, 1)],
    ids=["no workers", "the default", "one batch"],
)
def test_prefetch_factor_is_2_by_default_and_at_least_1(
    DataLoader: Loader, options: dict[str, int], ahead: int | None
) -> None:
    assert DataLoader([0, 1], **options).prefetch_factor == ahead


@clause("06.workers.rejects")
@pytest.mark.parametrize(
    ("options", "naming"),
    [
        ({"timeout": -1}, "timeout"),
        ({"num_workers": 1, "prefetch_factor": -1}, "prefetch_factor"),
        ({"prefetch_factor": 2}, "prefetch_factor.*num_workers"),
        ({"persistent_workers": True}, "persistent_workers.*num_workers"),
        ({"multiprocessing_context": "fork"}, "multiprocessing_context.*num_workers"),
        ({"num_workers": 1, "multiprocessing_context": "thread"}, "multiprocessing_context.*thread"),
    ],
    ids=lambda value: " and ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_impossible_options_of_workers_are_rejected(DataLoader: Loader, options: dict[str, Any], naming: str) -> None:
    with rejects(naming, *options):
        DataLoader(Numbers(3), **options)


@clause("06.loader.rejects")
def test_the_options_are_in_pytorch_s_order(DataLoader: Loader) -> None:
    made = DataLoader(Numbers(6), 2, False, None, None, 0, None, False, True, 0, None, None, seeded(1))
    assert (made.drop_last, made.timeout, made.generator.initial_seed()) == (True, 0, 1)


@pytest.mark.slow
@clause("06.workers.persistent")
@with_workers
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_loader_has_separate_workers(way: Callable[[Any], Any]) -> None:
    loader = ReferenceLoader(Processes(2), num_workers=1, persistent_workers=True)
    (first, _), (second, _) = lists(loader), lists(way(loader))
    assert first != second


@clause("06.workers.persistent")
@with_workers
def test_the_reference_says_that_a_later_iteration_took_the_persistent_workers() -> None:
    loader = ReferenceLoader(Numbers(9), num_workers=2, persistent_workers=True)
    first = iter(loader)
    assert next(first).tolist() == [0]
    second = iter(loader)
    assert next(second).tolist() == [0]
    with pytest.raises(RuntimeError, match="a later iteration has begun"):
        next(first)
    assert lists(second) == [[number] for number in range(1, 9)]


# Ends of an epoch


class Ends(Numbers):
    """Item 3 raises StopIteration."""

    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise StopIteration
        return index


def stopping(items: list[int]) -> int:
    return next(iter(items[1:]))


@clause("06.loader.stop_iteration")
@with_workers
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 2], ids=["single items", "batches"])
def test_stop_iteration_of_an_item_is_an_error_and_not_the_end(num_workers: int, batch_size: int | None) -> None:
    seen: list[Any] = []
    with pytest.raises(
        RuntimeError, match=r"StopIteration was raised while the batch of Ends with the indices (3|\[2, 3\])"
    ):
        seen.extend(
            torch.as_tensor(batch).tolist() for batch in ReferenceLoader(Ends(6), batch_size, num_workers=num_workers)
        )
    assert seen == ([0, 1, 2] if batch_size is None else [[0, 1]])


@clause("06.loader.stop_iteration")
@with_workers
@pytest.mark.parametrize("num_workers", [0, 1])
def test_stop_iteration_of_collate_fn_is_an_error_and_not_the_end(num_workers: int) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(ReferenceLoader(Numbers(3), batch_size=2, num_workers=num_workers, collate_fn=stopping))


class Exits(Numbers):
    """Item 1 ends its worker in one of several ways, some of which leave the pipe open."""

    def __init__(self, way: str) -> None:
        super().__init__(4)
        self.way = way

    def __getitem__(self, index: int) -> int:
        if index == 1:
            if "thread" in self.way:
                threading.Thread(target=time.sleep, args=(120,)).start()
            if "child" in self.way and os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            if "exec" in self.way:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the new program inherits it
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(120)"])
            if "descriptors" in self.way:
                os.closerange(3, 256)
                time.sleep(120)
            if "os._exit" in self.way:
                os._exit(3)
            if "SIGKILL" in self.way:
                os.kill(os.getpid(), signal.SIGKILL)
            if "Ctrl-C" in self.way:
                raise KeyboardInterrupt
            sys.exit(3)
        return os.getpid()


@clause("06.workers.exit")
@with_workers
@with_signals
@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("sys.exit", "SystemExit: 3"),
        ("a thread and sys.exit", "SystemExit: 3"),
        ("a thread and os._exit", "worker 1 ended with exit code 3"),
        pytest.param("a child and os._exit", "worker 1 ended with exit code 3", marks=pytest.mark.slow),
        pytest.param("a child and SIGKILL", "worker 1 ended with exit code -9", marks=pytest.mark.slow),
        ("Ctrl-C", "KeyboardInterrupt"),
        ("exec", "worker 1 closed its pipe before it handed over"),
        ("closed descriptors", "worker 1 closed its pipe before it handed over"),
    ],
)
@pytest.mark.slow
def test_an_item_that_ends_the_worker_is_an_error_within_seconds(way: str, says: str) -> None:
    begun = time.monotonic()
    seen: list[int] = []
    with pytest.raises(RuntimeError, match=says):
        seen.extend(int(batch) for batch in ReferenceLoader(Exits(way), num_workers=2))
    assert time.monotonic() - begun < 15
    assert len(seen) == 1
    assert not alive(seen[0])


class Last(Numbers):
    """The worker ends at item 1, right after it has sent item 0."""

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)  # the consumer looks into the pipe before item 0 is in it
        return os._exit(3) if index == 1 else index


@clause("06.workers.exception")
@with_workers
@with_signals
def test_a_batch_of_a_worker_that_ended_since_the_consumer_looked_is_returned() -> None:
    class Fork(ForkContext):
        class Process(ForkProcess):
            def is_alive(self) -> bool:
                self.join(30)  # the worker ends between the look into its pipe and this question
                return super().is_alive()

    batches = iter(ReferenceLoader(Last(2), num_workers=1, multiprocessing_context=Fork()))
    assert next(batches).tolist() == [0]
    with pytest.raises(RuntimeError, match="worker 0 ended with exit code 3"):
        next(batches)


class Large(Numbers):
    """Items larger than a pipe; the worker of the last one is killed while it sends the item."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            worker = os.getpid()
            threading.Thread(target=lambda: (time.sleep(0.5), os.kill(worker, signal.SIGKILL))).start()
        return torch.zeros(2_000_000)


@pytest.mark.slow
@clause("06.workers.exit")
@with_workers
@with_signals
def test_a_worker_that_is_killed_while_it_hands_over_a_batch_is_an_error() -> None:
    batches = iter(ReferenceLoader(Large(2), num_workers=1))
    assert next(batches).shape == (1, 2_000_000)
    time.sleep(1.5)  # meanwhile the worker waits in the middle of the second one
    with pytest.raises(RuntimeError, match="worker 0 ended with exit code -9"):
        next(batches)


class Stubborn(Numbers):
    """Workers that SIGTERM does not end."""

    def __init__(self, way: str) -> None:
        super().__init__(8)
        self.way = way

    def __getitem__(self, index: int) -> int:
        if self.way == "ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif index > 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return os.getpid()


@pytest.mark.slow
@clause("06.workers.forced_end")
@with_workers
@with_signals
@pytest.mark.parametrize("way", ["ignores SIGTERM", "is stopped"])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_that_sigterm_does_not_end_is_killed(way: str, persistent: bool) -> None:
    loader = ReferenceLoader(Stubborn(way), num_workers=2, persistent_workers=persistent)
    batches = iter(loader)
    workers = [int(next(batches)) for _ in range(2)]
    time.sleep(0.3)
    begun = time.monotonic()
    del batches, loader
    gc.collect()
    assert time.monotonic() - begun < 15
    assert [process for process in workers if alive(process)] == []


PROGRAM = """
import os, signal, sys, time
from reference import DataLoader

class Items:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        {item}
        return os.getpid()

if __name__ == "__main__":
    loader = DataLoader(Items(), num_workers=2, persistent_workers={persistent})
    batches = iter(loader)
    print(*(int(next(batches)) for _ in range(2)), flush=True)
    {then}
"""


def run(item: str, then: str, *, persistent: bool = False) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.format(
        item=item, then=textwrap.indent(textwrap.dedent(then), "    ").strip(), persistent=persistent
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True, text=True, timeout=100, cwd=Path(reference.__file__).parents[1],
    )  # fmt: skip


@pytest.mark.slow
@clause("06.workers.forced_end")
@with_signals
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "item",
    [
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="ignores SIGTERM"),
        pytest.param("index > 1 and os.kill(os.getpid(), signal.SIGSTOP)", id="is stopped"),
    ],
)
def test_a_program_exits_even_if_workers_hang(item: str, persistent: bool) -> None:
    """Start an iteration that is never finished, to which the interpreter holds a reference until its end."""
    begun = time.monotonic()
    result = run(item, "time.sleep(0.3)", persistent=persistent)
    assert (result.returncode, result.stderr) == (0, "")
    assert time.monotonic() - begun < 60
    assert [process for process in map(int, result.stdout.split()) if alive(process)] == []


@pytest.mark.slow
@clause("06.workers.fork")
@with_signals
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "ending", ["del batches, loader", "sys.exit(0)", "os._exit(0)"], ids=["collects", "exits", "exits at once"]
)
def test_a_fork_of_the_consumer_does_not_stop_the_workers(ending: str, persistent: bool) -> None:
    then = f"""
    child = os.fork()
    if child == 0:
        {ending}
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(sum(1 for _ in batches))
    """
    result = run("time.sleep(0.02)", then, persistent=persistent)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1:] == ["6"]


@clause("06.workers.fork")
@with_workers
@with_signals
def test_a_forked_process_must_not_continue_the_iteration() -> None:
    batches = iter(ReferenceLoader(Numbers(4), num_workers=1))
    assert next(batches).tolist() == [0]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            next(batches)
        except RuntimeError as error:
            code = 0 if "belongs to process" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lists(batches) == [[1], [2], [3]]


class Fails(Numbers):
    """An order that fails after the first of four indices."""

    def __iter__(self) -> Iterator[int]:
        yield 0
        raise ZeroDivisionError


@clause("06.workers.end")
@with_workers
@with_signals
def test_workers_end_if_the_sampler_fails() -> None:
    started: list[Any] = []

    class Fork(ForkContext):
        class Process(ForkProcess):
            def start(self) -> None:
                super().start()
                started.append(self)

    loader = ReferenceLoader(Numbers(4), sampler=Fails(4), num_workers=1, multiprocessing_context=Fork())
    with pytest.raises(ZeroDivisionError) as caught:
        iter(loader)
    assert [worker.is_alive() for worker in started] == [False], "they end before the error does"
    del caught


@pytest.mark.slow
@clause("06.workers.fork")
@with_signals
@pytest.mark.parametrize("persistent", [False, True])
def test_a_fork_of_the_consumer_iterates_with_separate_workers(persistent: bool) -> None:
    then = """
    child = os.fork()
    if child == 0:
        try:
            next(batches)
        except RuntimeError as error:
            print("belongs to process" in str(error), flush=True)
        print(len({int(batch) for batch in loader}), flush=True)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(sum(1 for _ in batches))
    """
    result = run("pass", then, persistent=persistent)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1:] == ["True", "2", "6"]


@clause("06.workers.same_batches")
@with_workers
def test_a_worker_of_the_reference_waits_for_a_slow_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference.data.workers.LOOK", 0.01)  # how often a worker looks for its consumer
    found: list[int] = []
    for batch in ReferenceLoader(Numbers(4), num_workers=1, prefetch_factor=1):
        time.sleep(0.05)
        found += batch.tolist()
    assert found == [0, 1, 2, 3]


@pytest.mark.slow
@clause("06.workers.end")
@with_signals
def test_workers_exit_when_the_consumer_is_killed_even_if_a_fork_survives() -> None:
    then = """
    if os.fork() == 0:
        for stream in (0, 1, 2):
            os.close(stream)
        time.sleep(30)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    result = run("pass", then)
    workers = list(map(int, result.stdout.split()))
    deadline = time.monotonic() + 20
    while any(alive(process) for process in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2
    assert [process for process in workers if alive(process)] == []
