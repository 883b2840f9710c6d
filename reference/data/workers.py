"""Chapter 06: the worker processes of `DataLoader`: they take the items while the consumer computes."""

import multiprocessing
import pickle
import random
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch


def fetch_in_workers(
    fetch: Callable[[Any], Any], batches: Iterator[Any], count: int, seed: int, context: BaseContext | str | None
) -> Iterator[Any]:
    """What `fetch` makes of each of `batches`, in their order, made in `count` processes, each one batch ahead.

    Batch `b` is made by worker `b % count`. However the iteration ends (at its end, by a `break`, an exception of a
    worker or of the consumer, or Ctrl-C), the processes end with it.

    Args:
        fetch: makes a batch of its indices.
        batches: the indices of each batch; taken from one by one.
        count: at most so many processes.
        seed: the random numbers of worker `i` begin at `seed + i`.
        context: how processes start: `"fork"`, `"spawn"`, `"forkserver"`, or None for the system's way.

    Raises:
        TypeError: `fetch` (the data set, `collate_fn`) cannot be sent to a process.
        RuntimeError: a worker died, as when memory runs out.
        Exception: what `fetch` raised in a worker; its cause is the worker's traceback.
    """
    if not isinstance(context, BaseContext):
        context = multiprocessing.get_context(context)
    workers: list[_Worker] = []
    try:
        for number, batch in zip(range(count), batches, strict=False):
            workers.append(_Worker(context, number, seed + number, fetch))
            workers[-1].start()
            workers[-1].send(batch)
        turns = deque(workers)
        while turns:
            worker = turns.popleft()
            result = worker.receive()
            for batch in islice(batches, 1):  # only to a worker that waits: two full pipes would block each other
                worker.send(batch)
                turns.append(worker)
            yield result
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: BaseContext, number: int, seed: int, fetch: Callable[[Any], Any]) -> None:
        self.number = number
        self.pipe, self.far_end = context.Pipe()
        # daemon: if this process ends without a chance to clean up, so do they
        self.process: Any = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(fetch, seed, self.far_end, self.pipe), daemon=True
        )

    def start(self) -> None:
        try:
            self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "DataLoader: the data set and collate_fn cannot be sent to a worker process, because pickle says "
                f"{str(error)!r}; define classes and functions at the top level of a module, or use num_workers=0"
            ) from error
        finally:
            self.far_end.close()  # only the worker has it now: when it ends, so does the pipe

    def send(self, batch: Any) -> None:
        with suppress(ConnectionError):  # it has died: `receive` says so
            self.pipe.send_bytes(pickle.dumps(batch))

    def receive(self) -> Any:
        try:
            answer = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join()
            raise RuntimeError(
                f"DataLoader: worker {self.number} ended with exit code {self.process.exitcode} before it handed over "
                "its batch; a negative code is the signal that ended it (-9: often too little memory)"
            ) from None
        if isinstance(answer, _Failure):
            raise answer.error from RuntimeError(f"in DataLoader worker {self.number}:\n{answer.trace}")
        return answer

    def stop(self) -> None:
        self.pipe.close()
        if self.process in multiprocessing.active_children():  # it was started, by this process and not before a fork
            self.process.terminate()
            self.process.join()


@dataclass(frozen=True)
class _Failure:
    """What a worker hands over when it could not make a batch."""

    error: Exception
    trace: str


def _work(fetch: Callable[[Any], Any], seed: int, pipe: Connection, others: Connection) -> None:
    """A worker's life: batches of indices come, made batches go, until the pipe is closed."""
    others.close()  # else the pipe would stay open when the consumer's process dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the consumer's one stops this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the workers share the cores already
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])
    with suppress(EOFError, ConnectionError):
        while True:
            answer = _answer(fetch, pickle.loads(pipe.recv_bytes()))
            pipe.send_bytes(answer)


def _answer(fetch: Callable[[Any], Any], batch: Any) -> bytes:
    """The made batch, or what went wrong, as it travels: by value, so that it may outlive the worker."""
    try:
        return pickle.dumps(fetch(batch))
    except Exception as error:
        trace = traceback.format_exc()
        try:
            answer = pickle.dumps(_Failure(error, trace))
            pickle.loads(answer)  # an exception of several arguments may be sent and yet not be made again
        except Exception:
            answer = pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return answer
