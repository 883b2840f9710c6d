"""Chapter 06: the worker processes of `DataLoader`, which load items while the consumer computes."""

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
import torch.utils.data

SMALL = 4096
"""Bytes that fit into the pipe to a worker on every system: sending them never blocks, even if the worker is busy."""

LOOK = 1.0
"""Seconds between two checks that a worker is alive, needed if another process holds its pipe and its sentinel open."""

GRACE = 2.0
"""Seconds that a worker has to end after SIGTERM; then SIGKILL ends it, even if it is suspended."""


class WorkerPool:
    """Processes that make batches in advance of the consumer.

    Batch `b` of an epoch is made by worker `b % count`, and batches arrive in order. The processes end after an epoch
    with `stop`, when the pool is no longer used, and when the program ends; a worker that ignores SIGTERM is killed. A
    process that was forked from the consumer does not touch them.

    Args:
        fetch: makes a batch from its indices.
        dataset: the value of `get_worker_info().dataset` in a worker: the data set in `fetch`.
        count: the largest number of processes.
        seed: worker `i` is seeded with `seed + i`.
        context: the start method: `"fork"`, `"spawn"`, `"forkserver"`, or None for the system's default.
        ahead: batches that each worker makes before they are requested, at least 1.
        timeout: seconds to wait for a batch; 0: no limit.
        init: called in each worker with its number before the first batch; None: nothing.
    """

    def __init__(
        self,
        fetch: Callable[[Any], Any],
        dataset: Any,
        count: int,
        seed: int,
        context: BaseContext | str | None,
        *,
        ahead: int = 2,
        timeout: float | int = 0,
        init: Callable[[int], Any] | None = None,
    ) -> None:
        self.context = context if isinstance(context, BaseContext) else multiprocessing.get_context(context)
        self.count, self.ahead, self.timeout = count, ahead, timeout
        self.life = _Life(fetch, dataset, count, seed, init)
        self.owner = os.getpid()
        self.epochs = 0
        self.workers: list[_Worker] = []  # a worker is started with the first batch that it has to make
        # also when the program ends, before multiprocessing waits for its children without a limit
        self._end = Finalize(self, _stop, args=(self.workers,), exitpriority=1)

    def epoch(self, batches: Iterator[Any], *, stop: bool) -> Iterator[Any]:
        """The results of `fetch` for each of `batches`, in order; with `stop` the processes end with the iteration.

        At the start, the indices of `ahead` batches for each worker are read, and then one more with each batch that is
        returned.

        Raises:
            TypeError: `fetch` (the data set, `collate_fn`) or `init` cannot be sent to a process.
            RuntimeError: a worker died, for instance because memory ran out; a batch took longer than `timeout`;
                another epoch has begun since; or the iteration is continued by a different process.
            Exception: raised by `fetch` in a worker; its cause is the worker's traceback.
        """
        self.epochs += 1
        for worker in self.workers:
            worker.forget()
        try:
            for number, batch in enumerate(islice(batches, self.ahead * self.count)):
                self._give(number, batch)
        except BaseException:
            self._end()
            raise
        return self._results(batches, self.epochs, stop=stop)

    def _results(self, batches: Iterator[Any], epoch: int, *, stop: bool) -> Iterator[Any]:
        try:
            for number in itertools.count():
                self._check(epoch)
                turn = number % self.count
                if turn >= len(self.workers) or not self.workers[turn].busy:
                    return
                answer = self._receive(self.workers[turn])
                for batch in islice(batches, 1):
                    self._give(number + self.ahead * self.count, batch)
                yield pickle.loads(answer).get(turn)
        finally:
            if stop:
                self._end()

    def _check(self, epoch: int) -> None:
        """Raise an error if this process must not read the next batch of an epoch.

        Raises:
            RuntimeError: the iteration belongs to another process, or a later iteration has begun.
        """
        if self.owner != os.getpid():
            raise RuntimeError(
                f"DataLoader: this iteration belongs to process {self.owner}, which this process was forked off; begin "
                "one of its own with iter(loader)"
            )
        if epoch != self.epochs:
            raise RuntimeError(
                "DataLoader: a later iteration has begun; with persistent_workers there is one at a time"
            )

    def _give(self, number: int, batch: Any) -> None:
        """Send batch `number` to its worker, which is started if necessary."""
        turn = number % self.count
        if turn == len(self.workers):
            worker = _Worker(self.context, turn, self.life)
            self.workers.append(worker)
            worker.start()
        self.workers[turn].give(batch)

    def _receive(self, worker: "_Worker") -> bytes:
        """The next answer of `worker`; the answers of other workers are received meanwhile, so that none blocks."""
        deadline = time.monotonic() + self.timeout if self.timeout else None
        while True:
            for other in self.workers:
                other.take()
            if worker.answers:
                return worker.answers.popleft()
            if worker.gone or not worker.process.is_alive():
                worker.take()  # the answers that the worker sent before it ended
                if not worker.answers:
                    error = worker.death()
                    self._end()
                    raise error
                continue
            left = LOOK if deadline is None else min(LOOK, deadline - time.monotonic())
            if left <= 0:
                raise RuntimeError(
                    f"DataLoader timed out: worker {worker.number} made no batch within {self.timeout} seconds"
                )
            pipes = [other.pipe for other in self.workers if other.sent and not other.gone]
            wait([*pipes, worker.process.sentinel], left)

    @property
    def usable(self) -> bool:
        """Whether another epoch can begin, in this process."""
        return self._end.still_active() and self.owner == os.getpid()


class _Worker:
    """One process, the pipe to it, and its pending batches."""

    def __init__(self, context: BaseContext, number: int, life: "_Life") -> None:
        self.number, self.owner = number, os.getpid()
        self.waiting: deque[bytes] = deque()  # batches not sent yet
        self.sent: deque[int] = deque()  # the sizes of the batches that were sent and not answered
        self.stale = 0  # the number of pending batches that are not needed any more
        self.answers: deque[bytes] = deque()
        self.gone = self.started = False
        self.pipe, self.far_end = context.Pipe()
        # daemon: the workers also end if this process ends without cleaning up
        self.process: Any = context.Process(  # pyright: ignore[reportAttributeAccessIssue]
            target=life, args=(number, self.far_end, self.pipe), daemon=True
        )

    def start(self) -> None:
        try:
            self.process.start()
            self.started = True
            # the pool ends its workers itself; with multiprocessing's own clean-up, a fork of this process would end
            # them as well
            multiprocessing.process._children.discard(self.process)  # pyright: ignore[reportAttributeAccessIssue]
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "DataLoader: the data set, collate_fn and worker_init_fn cannot be sent to a worker process, because "
                f"pickle says {str(error)!r}; define classes and functions at the top level of a module, or use "
                "num_workers=0"
            ) from error
        finally:
            self.far_end.close()  # now only the worker holds this end, so that the pipe closes when the worker ends

    @property
    def busy(self) -> bool:
        """Whether a batch is still pending."""
        return bool(self.answers or self.waiting or len(self.sent) > self.stale)

    def give(self, batch: Any) -> None:
        self.waiting.append(pickle.dumps(batch))
        self._send()

    def _send(self) -> None:
        """Send at most the pipe's capacity: a waiting worker reads it, a busy worker may block on its own pipe."""
        while self.waiting and not (self.sent and sum(self.sent) + len(self.waiting[0]) > SMALL):
            batch = self.waiting.popleft()
            self.sent.append(len(batch))
            with suppress(OSError):  # the worker has died: `take` reports this
                self.pipe.send_bytes(batch)

    def take(self) -> None:
        """Receive the answers that have arrived, without waiting for others."""
        try:
            while not self.gone and self.sent and self.pipe.poll():
                answer = self.pipe.recv_bytes()
                self.sent.popleft()
                if self.stale:
                    self.stale -= 1
                else:
                    self.answers.append(answer)
                self._send()
        except (EOFError, OSError):
            self.gone = True

    def forget(self) -> None:
        """Mark the pending answers to be discarded when they arrive."""
        self.waiting.clear()
        self.answers.clear()
        self.stale = len(self.sent)

    def death(self) -> RuntimeError:
        """The error with the reason why the worker ended."""
        _join(self.process, LOOK)  # its pipe may close a little earlier than the process ends
        if self.process.exitcode is None:
            return RuntimeError(
                f"DataLoader: worker {self.number} closed its pipe before it handed over its batch: an item closed all "
                "files or started another program in its place"
            )
        return RuntimeError(
            f"DataLoader: worker {self.number} ended with exit code {self.process.exitcode} before it handed over its "
            "batch; a negative code is the signal that ended it (-9: often too little memory)"
        )


def _join(process: Any, seconds: float) -> None:
    """Wait for the end of a process, at most `seconds`.

    `process.join(seconds)` waits without a limit if the process has closed its sentinel.
    """
    deadline = time.monotonic() + seconds
    wait([process.sentinel], max(0.0, seconds))
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)


def _stop(workers: list[_Worker]) -> None:
    """End the processes that this process started, even if they ignore signals."""
    for worker in workers:
        worker.pipe.close()
    running = [worker.process for worker in workers if worker.started and worker.owner == os.getpid()]
    for end in ("terminate", "kill"):
        for process in running:
            getattr(process, end)()
        deadline = time.monotonic() + GRACE
        for process in running:
            _join(process, deadline - time.monotonic())
        running = [process for process in running if process.is_alive()]


@dataclass(frozen=True)
class _Life:
    """The main loop of a worker: receive batches of indices and send the items until the pipe is closed."""

    fetch: Callable[[Any], Any]
    dataset: Any
    count: int
    seed: int
    init: Callable[[int], Any] | None

    def __call__(self, number: int, pipe: Connection, others: Connection) -> None:
        others.close()  # otherwise the pipe would stay open when the consumer's process dies
        # Ctrl-C reaches all processes; the consumer's process stops this one
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)  # one thread per worker, because the workers already share the cores
        seed = self.seed + number
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed([seed % 2**32, seed >> 32])
        _tell_pytorch(id=number, num_workers=self.count, seed=seed, dataset=self.dataset)
        begun = _Answer.of(self.init, number) if self.init is not None else _Answer()
        consumer = os.getppid()
        try:
            # a fork of the consumer may hold the pipe of this worker open
            while pipe.poll(LOOK) or os.getppid() == consumer:
                if pipe.poll():
                    batch = pickle.loads(pipe.recv_bytes())
                    pipe.send_bytes((begun if begun.error else _Answer.of(self.fetch, batch)).packed())
        except (EOFError, ConnectionError):
            pass
        finally:
            pipe.close()  # close the pipe first: the process may have to wait for threads that an item started


@dataclass(frozen=True)
class _Answer:
    """The answer of a worker: a batch, or an error."""

    batch: Any = None
    error: Exception | None = None
    trace: str = ""

    @classmethod
    def of(cls, make: Callable[[Any], Any], argument: Any) -> "_Answer":
        try:
            return cls(make(argument))
        except Exception as error:
            return cls(error=error, trace=traceback.format_exc())
        # such as SystemExit: it must not end the worker, because its other batches may still be needed
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
            return cls(error=RuntimeError(f"DataLoader: a worker was to end by {said}"), trace=traceback.format_exc())

    def packed(self) -> bytes:
        """The answer as bytes, by value, so that it remains valid after the worker has ended."""
        try:
            packed = pickle.dumps(self)
            if self.error is not None:
                # pickling an exception with several arguments may succeed although unpickling it fails
                pickle.loads(packed)
            return packed
        except Exception as error:
            trace = self.trace or traceback.format_exc()
            cause = self.error or error
            return pickle.dumps(_Answer(error=RuntimeError(f"{type(cause).__name__}: {cause}"), trace=trace))

    def get(self, number: int) -> Any:
        """The batch; or raise the error, with the traceback in worker `number` as its cause."""
        if self.error is not None:
            raise self.error from RuntimeError(f"in DataLoader worker {number}:\n{self.trace}")
        return self.batch


def get_worker_info() -> Any:
    """The current worker: `id`, `num_workers`, `seed` and its copy of the `dataset`; None outside a worker.

    The same as `torch.utils.data.get_worker_info()`.
    """
    return torch.utils.data.get_worker_info()


def _tell_pytorch(**info: Any) -> None:
    """Set the return value of `torch.utils.data.get_worker_info()` in this process, because data sets call it.

    PyTorch has no public function for it.
    """
    from torch.utils.data._utils import worker

    worker._worker_info = worker.WorkerInfo(**info)
