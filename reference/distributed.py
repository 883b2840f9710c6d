"""Chapter 19, several GPUs: one training by several processes, `torchrun --nproc-per-node=2 scripts/train_full.py`.

Every process has the whole data set and sees the same batches in the same order; of each batch it computes its part.
The gradient of a batch's mean loss is the sum of the parts' gradients, each times its share of the images, so all
processes take the very step that one process would take, up to the rounding of the sums, and stay equal. The state of a
training therefore does not depend on their number: it can be resumed with another number.

Layers that look at a whole batch (batch normalization in training) would see their part only and are rejected.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reference.errors import STOPPING, InputError, TrainingError
from reference.text import print_line
from reference.training import Observer, Optimizer

LossFunction = Callable[[Tensor, Tensor], Tensor]
PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others: one of them may decode a whole data set first."""


class Group:
    """The processes of one training.

    Attributes:
        rank: the number of this one.
        size: the number of processes; 1 unless `torchrun` started them.
    """

    def __init__(self) -> None:
        try:
            self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise InputError(f"RANK and WORLD_SIZE must be numbers, as torchrun sets them ({error})") from error
        self.talk: Any = None
        self.broken = False  # another process is gone
        self.standing: Callable[[], str] = str

    @property
    def leads(self) -> bool:
        """Whether this process writes the logs and checkpoints and prints to the terminal."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The name of this process's own device: of several GPUs the one with its number on this machine.

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
                f"{here} processes on this machine, but {gpus} GPUs, and each process needs one: "
                f"--nproc-per-node={gpus}, or --device cpu"
            )
        return f"cuda:{number}"

    def join(self, device: torch.device) -> None:
        """Connect to the others: over NCCL for gradients on GPUs, over gloo for everything else."""
        if self.size == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._heard():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            self.talk = dist.new_group(backend="gloo") if device.type == "cuda" else dist.group.WORLD

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Let a signal end the process at once while it meets the others, also in C++, where no handler of Python runs.

        The wait has no end if one of the others is gone: without this, torchrun's SIGTERM is not heard.
        """
        hearing, speaking = socket.socketpair()
        speaking.setblocking(False)  # `set_wakeup_fd` requires it

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
            signal.signal(number, lambda *_: None)  # the thread answers
        thread = Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            speaking.close()
            thread.join()  # it answers a signal that came last
            hearing.close()

    def leave(self) -> None:
        """Disconnect from the others; if one of them is gone, do not wait: pending communication never completes."""
        if self.size > 1 and dist.is_initialized() and not self.broken:
            with suppress(RuntimeError):  # they may have left first
                dist.destroy_process_group()

    def agree(self, value: Any) -> Any:
        """The value that the leading process has."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.talk, device=torch.device("cpu"))
        return told[0]

    def largest(self, number: int) -> int:
        """The largest of the numbers of all processes."""
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
        """Report in one line, once for all processes, that another process is gone, wherever in the training it shows.

        Args:
            standing: Says how the training stands and what to do: "stopped after step 3. The last checkpoint …".

        Raises:
            TrainingError: A message to or from another process failed.
            SystemExit: This process was told to stop, as torchrun does to the others when one is gone; or another
                process has printed the line already.
        """
        self.standing = standing
        try:
            yield
        except RuntimeError as error:
            if not self._means_gone(error):
                raise
            self.broken = True
            if not self._speaks():
                raise SystemExit(2) from error
            late = f" or did not answer for {PATIENCE}" if "time" in str(error).lower() else ""
            raise TrainingError(f"another process of this training is gone{late}: {standing()}") from error
        except SystemExit as leaving:
            stopped = [number for number in STOPPING if leaving.code == 128 + number]
            if self.size > 1 and stopped:
                self.broken = True  # so this process does not wait for the others
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
        """The line for a signal: torchrun sends it for either of two reasons."""
        name = signal.Signals(number).name
        return f"another process of this training is gone, or the job was told to stop ({name}): {self.standing()}"

    def _speaks(self) -> bool:
        """Whether this process is the first to report, in torchrun's store, that another one is gone."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return True
        try:  # a connection of its own: the other one is busy while this process waits in `join`
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=1))
            return store.add(f"ocean/gone/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
        except (RuntimeError, KeyError, ValueError):
            return True

    def part(self, batch: Tensor) -> Tensor:
        """This process's part of a batch: the parts are disjoint, in order, and complete."""
        return batch.tensor_split(self.size)[self.rank]

    def together(
        self, network: nn.Module, loss_function: LossFunction, optimizer: Optimizer
    ) -> tuple[nn.Module, LossFunction, Optimizer]:
        """Network, loss and optimizer for `fit` such that each process computes its part; unchanged for one process.

        Raises:
            InputError: the network has a layer that needs the whole batch.
        """
        if self.size == 1:
            return network, loss_function, optimizer
        for name, layer in network.named_modules():
            if "BatchNorm" in type(layer).__name__:
                raise InputError(f"several processes: {name} ({type(layer).__name__}) needs the whole batch; use one")
        for tensor in network.state_dict().values():  # whatever each has begun with
            dist.broadcast(tensor, src=0)
        shared = _Shared(self, network)
        return shared, _SharedLoss(shared, loss_function), _SharedOptimizer(network, optimizer)


class _Shared(nn.Module):
    """In training: the scores of this process's part. In evaluation: those of the whole batch, gathered."""

    def __init__(self, group: Group, network: nn.Module) -> None:
        super().__init__()
        self.group, self.network = group, network

    def forward(self, images: Tensor) -> Tensor:
        part = self.group.part(images)
        if self.training:
            return self.network(part)
        # an empty part would give no width; its process computes one image and leaves it out
        scores = self.network(part if len(part) else images[:1])
        whole = scores.new_zeros(len(images), *scores.shape[1:])
        self.group.part(whole).copy_(scores[: len(part)])
        dist.all_reduce(whole)  # the others' rows are zeros, so this sum rounds nothing
        return whole


class _SharedLoss:
    """The mean loss of the whole batch; its gradient is this process's part of the whole gradient."""

    def __init__(self, shared: _Shared, loss_function: LossFunction) -> None:
        self.shared, self.loss_function = shared, loss_function

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        if not self.shared.training:
            return self.loss_function(scores, targets)
        part = self.shared.group.part(targets)
        # the mean over no images is not a number, but the gradient that they add is 0
        own = self.loss_function(scores, part) * (len(part) / len(targets)) if len(part) else scores.sum() * 0
        whole = own.detach().clone()
        dist.all_reduce(whole)
        return own + (whole - own.detach())


class _SharedOptimizer:
    """Adds up the parts of the gradient before each step."""

    def __init__(self, network: nn.Module, optimizer: Optimizer) -> None:
        self.parameters, self.optimizer = [p for p in network.parameters() if p.requires_grad], optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> Any:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])  # one message instead of one a parameter
        dist.all_reduce(flat)
        for parameter, gradient in zip(
            self.parameters, flat.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)
        return self.optimizer.step()


class Follower(Observer):
    """The observer of a process that does not lead: it writes nothing, and stops when any process must stop."""

    def __init__(self, group: Group) -> None:
        self.group, self.signal = group, 0

    def on_signal(self, number: int, _: object) -> None:
        """Note it: all processes end after the same step."""
        self.signal = number

    def should_stop(self) -> bool:
        self.signal = self.group.largest(self.signal)
        return self.signal != 0
