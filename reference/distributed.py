"""Chapter 19, several GPUs: one training by several processes, `torchrun --nproc-per-node=2 scripts/train_full.py`.

Every process has the whole data set and the same batches in the same order; it computes one part of each batch.
`DistributedDataParallel` replaces each gradient by the mean over the processes while the backward pass computes the
next one. So each process multiplies the loss of its part by (processes · its share of the batch): the mean of these
losses is the mean loss of the whole batch, and the mean of their gradients is its gradient. All processes take the step
that one process would take, up to the rounding of the sums, and their networks stay equal. The state of a training
therefore does not depend on the number of processes, and a run can be resumed with another number.

Batch normalization in training takes its statistics over the parts of all processes. In an evaluation each batch is
computed by one process, so that the results are exactly those of a single process.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reference.arguments import accumulation_dtype
from reference.errors import STOPPING, InputError, TrainingError
from reference.messages import counted
from reference.nn.normalization import BatchNorm2d, batch_norm_definition, blend
from reference.text import print_line

LossFunction = Callable[[Tensor, Tensor], Tensor]
PATIENCE = timedelta(minutes=10)
"""The time limit for waiting for the other processes: one of them may have to decode a whole data set first."""
BUCKET = 0.25
"""MiB of gradients that are exchanged at once. The tutorial's network has 0.6, which PyTorch's 25 would not divide."""


class Group:
    """The processes of one training.

    Args:
        rank: the number of this process.
        size: the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.talk: Any = None
        self.broken = False  # another process is gone
        self.standing: Callable[[], str] = str

    @classmethod
    def from_environment(cls) -> "Group":
        """The processes that `torchrun` started; without it, this process only.

        Raises:
            InputError: RANK or WORLD_SIZE is not a number.
        """
        try:
            return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        except ValueError as error:
            raise InputError(f"RANK and WORLD_SIZE must be numbers, as torchrun sets them ({error})") from error

    @property
    def leads(self) -> bool:
        """Whether this process writes the logs and checkpoints and prints to the terminal."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The name of this process's device; with several GPUs, the GPU with the local rank of the process.

        Raises:
            InputError: there are fewer GPUs than processes, or one GPU is requested by its number.
        """
        if self.size == 1:
            return name
        if name.startswith("cuda:"):
            raise InputError(f"--device {name}: several processes need a GPU each; say --device cuda")
        if not torch.cuda.is_available() or name not in ("auto", "cuda"):
            return name
        number, gpus = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        if here > gpus:
            raise InputError(
                f"{here} processes on this machine, but {counted(gpus, 'GPU')}, and each process needs one: "
                f"--nproc-per-node={gpus}, or --device cpu"
            )
        return f"cuda:{number}"

    def join(self, device: torch.device) -> None:
        """Connect to the other processes: with NCCL for gradients on GPUs, with gloo for everything else."""
        if self.size == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._heard():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            self.talk = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Let a signal end the process at once while it connects to the others, even in C++, where no Python handler
        runs.

        The wait never ends if another process is gone, and without this function torchrun's SIGTERM would have no
        effect.
        """
        hearing, speaking = socket.socketpair()
        speaking.setblocking(False)  # required by `set_wakeup_fd`

        def listen() -> None:
            while number := hearing.recv(1):
                if number[0] in STOPPING:
                    if number[0] == signal.SIGINT:
                        print_line("interrupted", error=True)
                    elif self._speaks():
                        print_line(f"error: {self._stopped(number[0])}", error=True)
                    os._exit(128 + number[0])

        handlers = {number: signal.getsignal(number) for number in STOPPING}
        handlers = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
        before = signal.set_wakeup_fd(speaking.fileno())
        for number in handlers:
            signal.signal(number, lambda *_: None)  # the thread handles the signal
        thread = Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            speaking.close()
            thread.join()  # the thread handles a signal that arrived at the end
            hearing.close()

    def leave(self) -> None:
        """Disconnect from the others, without waiting if one is gone: pending communication would never complete."""
        if self.size > 1 and dist.is_initialized() and not self.broken:
            with suppress(RuntimeError):  # the others may have disconnected first
                dist.destroy_process_group()

    def agree(self, value: Any) -> Any:
        """The value of the leading process."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.talk, device=torch.device("cpu"))
        return told[0]

    def largest(self, number: int) -> int:
        """The maximum of a number over all processes."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device="cpu")
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.talk)
        return int(shared)

    def led(self, action: Callable[[], None]) -> None:
        """Run an action that may fail in the leading process; the others continue only if it succeeded.

        Raises:
            Any exception of the action in the leading process; SystemExit in the others.
        """
        trouble = None
        if self.leads:
            try:
                action()
            except Exception as error:
                trouble = error
        if self.agree(trouble is not None):
            raise trouble or SystemExit(2)

    @contextmanager
    def accompanied(self, standing: Callable[[], str]) -> Iterator[None]:
        """Report in one line, once for all processes, that another process is gone, at any point of the training.

        Args:
            standing: Returns the progress of the training and the advice: "stopped after step 3. The last checkpoint
            …".

        Raises:
            TrainingError: A message to or from another process failed.
            SystemExit: This process was told to stop, as torchrun does to the others when one is gone; or another
                process has printed the line already.
        """
        self.standing = standing
        try:
            try:
                yield
            except RuntimeError as error:
                if not self._means_gone(error):
                    raise
                self.broken = True
                with suppress(ValueError):  # signals are handled in the main thread only
                    # torchrun's SIGTERM must not interrupt the report: this process is ending anyway
                    for number in STOPPING:
                        signal.signal(number, signal.SIG_IGN)
                if not self._speaks():
                    raise SystemExit(2) from error
                late = f" or did not answer for {PATIENCE}" if "time" in str(error).lower() else ""
                raise TrainingError(f"another process of this training is gone{late}: {standing()}") from error
        except SystemExit as leaving:
            stopped = [number for number in STOPPING if leaving.code == 128 + number]
            if self.size > 1 and stopped:
                self.broken = True  # so that this process does not wait for the others
                if self._speaks():
                    print_line(f"error: {self._stopped(stopped[0])}", error=True)
            raise

    def _means_gone(self, error: RuntimeError) -> bool:
        """Whether an error says that another process is gone. Gloo raises a bare RuntimeError."""
        words = (
            "/gloo/",
            "gloo connect",
            "connection closed",
            "connection reset",
            "broken pipe",
            "timed out",
            "remote process exited",
        )
        text = str(error).lower()
        return self.size > 1 and (isinstance(error, dist.DistError) or any(word in text for word in words))

    def _stopped(self, number: int) -> str:
        """The line for a signal, which torchrun sends for one of two reasons."""
        name = signal.Signals(number).name
        return f"another process of this training is gone, or the job was told to stop ({name}): {self.standing()}"

    def _speaks(self) -> bool:
        """Whether this process is the first to report, in torchrun's store, that another one is gone."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return True
        try:  # a separate connection: the other one is busy while this process waits in `join`
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=1))
            return store.add(f"ocean/gone/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
        except (RuntimeError, KeyError, ValueError):
            return True

    def part(self, batch: Tensor) -> Tensor:
        """This process's part of a batch: the parts are disjoint, in order, and complete."""
        return batch.tensor_split(self.size)[self.rank] if self.size > 1 else batch

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, equal in all processes, with gradients averaged over the processes; unchanged if there is only
        one.

        The leading process's parameters and buffers replace those of the others.
        """
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return nn.parallel.DistributedDataParallel(
            synchronize_batch_norm(network, device),
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # the compiler splits the network at PyTorch's default bucket sizes, and rejects smaller ones
            bucket_cap_mb=BUCKET if network._compiled_call_impl is None else None,
        )

    def weighted_loss(self, loss_function: LossFunction, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss of this process, scaled so that the mean over the processes is the mean loss of the whole batch.

        Args:
            loss_function: The mean loss of a batch.
            scores: `[part, classes]`, the scores of this process's part.
            targets: `[batch]`, the targets of the whole batch.
        """
        part = self.part(targets)
        if self.size == 1:
            return loss_function(scores, part)
        if len(part) == 0:  # the mean over no images is NaN, but their contribution to the gradient is 0
            return scores.sum() * 0
        return loss_function(scores, part) * (self.size * len(part) / len(targets))

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of the losses of all processes."""
        if self.size == 1:
            return loss
        mean = loss / self.size
        dist.all_reduce(mean)
        return mean

    def add_up(self, numbers: Tensor) -> None:
        """Replace numbers on the CPU by their sums over the processes."""
        if self.size > 1:
            dist.all_reduce(numbers, group=self.talk)


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalization in training take its statistics over the parts of all processes.

    On CUDA, PyTorch's layers become `SyncBatchNorm`, which supports no other device; for other devices and for the
    reference's layers `batch_norm_over_all` replaces `forward`. Parameters, buffers and their names stay the same.
    """
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm | BatchNorm2d) and not isinstance(layer, nn.SyncBatchNorm):
            layer.forward = MethodType(batch_norm_over_all, layer)
    return network


class _Sum(torch.autograd.Function):
    """The sum over the processes; the backward pass also sums the gradients of all processes."""

    @staticmethod
    def forward(_: Any, numbers: Tensor) -> Tensor:
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.apply(gradient)


def batch_norm_over_all(layer: Any, input: Tensor) -> Tensor:
    """`batch_norm` of this process's part of a batch, in training with the mean and variance of the whole batch.

    Raises:
        ValueError: In training, a channel has a single value in the whole batch.
    """
    if not layer.training:
        return type(layer).forward(layer, input)
    x = input.to(accumulation_dtype(input.dtype))
    over = [0, *range(2, x.dim())]
    n = int(_Sum.apply(torch.tensor(x[:, :1].numel(), device=x.device)))
    if n < 2:
        raise ValueError(f"batch_norm: all processes together must have at least 2 values per channel, got {n}")
    mean = _Sum.apply(x.sum(over)) / n
    var = _Sum.apply((x - mean.view(1, -1, *[1] * (x.dim() - 2))).square().sum(over)) / n
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        momentum = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        blend(layer.running_mean, mean, momentum)
        blend(layer.running_var, var * (n / (n - 1)), momentum)
    return batch_norm_definition(
        x, mean, var, layer.weight, layer.bias, training=False, momentum=0.0, eps=layer.eps
    ).to(input.dtype)
