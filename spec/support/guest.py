"""An untrusted file in a separate process: the judge sends arguments and receives results as plain data.

The judge runs the tests and never the file; changes that the file makes in its own process cannot affect the verdict.
Numbers, texts, lists, tensors, arrays and images are transferred as JSON and bytes and never as code. An object that
cannot be transferred stays in its process, and the other side holds a `Proxy`: the judge's objects can only be called,
indexed, measured by `len` and iterated.

`python -m spec.support.guest FILE READ WRITE` is the process of the file.
"""

import contextlib
import ctypes
import inspect
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType, SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SECONDS = 10.0  # for one request
RESTARTS = 3  # restarts of a process that ended or did not answer
START = 60.0  # seconds for the import of the file and of PyTorch
LARGEST = 256 * 2**20  # bytes of a message
PLAIN = (type(None), bool, int, float, str)
MODES = ("1", "L", "RGB", "RGBA", "I;16", "I", "F")
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
              torch.int8, torch.uint8, torch.bool)
}  # fmt: skip
ERRORS = {
    e.__name__: e
    for e in (ValueError, TypeError, RuntimeError, IndexError, KeyError, NotImplementedError, AttributeError,
              ZeroDivisionError, FileNotFoundError, StopIteration, AssertionError, OSError, ImportError, NameError,
              UnboundLocalError, SyntaxError, OverflowError, RecursionError, MemoryError)
}  # fmt: skip
SERVED_BY_THE_JUDGE = ("call", "item", "length", "iterate", "next")


class GuestError(RuntimeError):
    """The process of the file ended, or did not answer in time."""


class Peer:
    """One end of the connection.

    Args:
        reading: A descriptor to read from.
        writing: A descriptor to write to.
        judge: Whether this is the judge's end, which serves few requests and limits the time of a request.
    """

    def __init__(self, reading: int, writing: int, *, judge: bool) -> None:
        self.reading, self.writing, self.judge = reading, writing, judge
        self.objects: dict[int, Any] = {}
        self.numbers = itertools.count(1)
        self.calls: dict[int, tuple[list[Tensor], Any]] = {}
        self.tracked: dict[int, list[Tensor]] = {}
        self.end = float("inf")
        self.lost = False

    # messages

    def send(self, message: dict[str, Any], blobs: list[bytes]) -> None:
        """Write a message: its length, JSON, and the bytes of the tensors."""
        text = json.dumps(message | {"sizes": [len(blob) for blob in blobs]}).encode()
        data = b"".join([len(text).to_bytes(8, "big"), text, *blobs])
        while data:
            try:
                data = data[os.write(self.writing, data) :]
            except OSError as error:
                raise GuestError("the process of the file ended") from error

    def receive(self) -> tuple[dict[str, Any], list[bytes]]:
        """Read a message."""
        size = int.from_bytes(self._read(8), "big")
        message = json.loads(self._read(size))
        return message, [self._read(int(size)) for size in message["sizes"]]

    def _read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST:
            raise GuestError(f"a message of {size} bytes")
        parts = []
        while size:
            wait = None if self.end == float("inf") else max(0, self.end - time.monotonic())
            if not select.select([self.reading], [], [], wait)[0]:
                raise GuestError(f"a call did not return within {SECONDS:.0f} s")
            part = os.read(self.reading, min(size, 2**20))
            if not part:
                raise GuestError("the process of the file ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    # values

    def pack(self, value: Any, blobs: list[bytes]) -> Any:
        """A value as JSON; the bytes of tensors and images are appended to `blobs`."""
        if isinstance(value, Once):
            return {"once": [self.pack(one, blobs) for one in value]}
        if isinstance(value, Proxy) and value._peer is self:
            return {"yours": value._number}
        if isinstance(value, PLAIN):
            return {"plain": value}
        if isinstance(value, Tensor):
            blobs.append(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            kind = str(value.dtype).removeprefix("torch.")
            return {"tensor": kind, "shape": list(value.shape), "grad": value.requires_grad, "blob": len(blobs) - 1}
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            blobs.append(np.ascontiguousarray(value).tobytes())
            return {"array": value.dtype.str, "shape": list(value.shape), "blob": len(blobs) - 1}
        if isinstance(value, Image.Image) and value.mode in MODES:
            blobs.append(value.tobytes())
            return {"image": value.mode, "size": list(value.size), "blob": len(blobs) - 1}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, torch.Size):
            return {"tuple": [{"plain": int(size)} for size in value]}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.pack(one, blobs) for one in cast(list[Any], value)]}
        if type(value) is dict:
            return {"dict": [[self.pack(k, blobs), self.pack(v, blobs)] for k, v in value.items()]}
        number = next(self.numbers)
        self.objects[number] = value
        told: dict[str, Any] = {"mine": number, "callable": callable(value)}
        if isinstance(value, nn.Module) and not self.judge:
            told["parameters"] = [[name, self.pack(p, blobs)] for name, p in value.named_parameters()]
            told["buffers"] = [[name, self.pack(b, blobs)] for name, b in value.named_buffers()]
        return told

    def unpack(self, value: Any, blobs: list[bytes]) -> Any:
        """The value of a JSON text."""
        if "plain" in value:
            plain = value["plain"]
            return plain if isinstance(plain, PLAIN) else None
        if "tensor" in value:
            flat = torch.frombuffer(bytearray(blobs[value["blob"]]) or bytearray(1), dtype=torch.uint8)
            shape = [int(size) for size in value["shape"]]
            dtype = DTYPES[value["tensor"]]
            tensor = torch.empty(shape, dtype=dtype) if 0 in shape else flat.view(dtype).reshape(shape)
            return tensor.requires_grad_(bool(value["grad"]) and dtype.is_floating_point)
        if "array" in value:
            kind = np.dtype(str(value["array"]))
            return np.frombuffer(blobs[value["blob"]], dtype=kind).reshape([int(s) for s in value["shape"]]).copy()
        if "image" in value:
            size = tuple(int(one) for one in value["size"])
            return Image.frombytes(value["image"], size, blobs[value["blob"]])  # pyright: ignore[reportArgumentType]
        if "dtype" in value:
            return DTYPES[value["dtype"]]
        if "path" in value:
            return Path(value["path"])
        for name, kind in (("list", list), ("tuple", tuple), ("once", Once)):
            if name in value:
                return kind([self.unpack(one, blobs) for one in value[name]])  # pyright: ignore[reportCallIssue, reportArgumentType]
        if "dict" in value:
            return {self.unpack(k, blobs): self.unpack(v, blobs) for k, v in value["dict"]}
        if "yours" in value:
            return self.objects[int(value["yours"])]
        if "parameters" in value and self.judge:
            return Layer(self, value, blobs)
        return Proxy(self, int(value["mine"]))

    # requests

    def ask(self, do: str, on: int = 0, *args: Any, **more: Any) -> Any:
        """Send a request, and answer requests of the other side meanwhile.

        Raises:
            GuestError: the other side does not answer.
            Exception: its exception, as one of `ERRORS`.
        """
        if self.lost:
            raise GuestError("the process of the file has ended")
        outermost = self.judge and self.end == float("inf")
        if outermost:
            self.end = time.monotonic() + SECONDS
        try:
            return self._ask(do, on, args, more)
        except GuestError:
            self.lost = True  # a late answer would be mistaken for the answer of another request
            raise
        finally:
            if outermost:
                self.end = float("inf")

    def _ask(self, do: str, on: int, args: Any, more: dict[str, Any]) -> Any:
        blobs: list[bytes] = []
        tensors = [value for value in _leaves(args) if isinstance(value, Tensor)]
        if self.judge:
            more |= {"seed": torch.get_rng_state(), "folder": os.getcwd()}
            if on in self.tracked:
                more["state"] = [[t.detach(), t.grad] for t in self.tracked[on]]
        packed = {"do": do, "on": on, "args": self.pack(args, blobs), "more": self.pack(more, blobs)}
        self.send(packed, blobs)
        while True:
            message, blobs = self.receive()
            if "do" in message:
                self.serve(message, blobs)
                continue
            if "error" in message:
                raise ERRORS.get(str(message["error"]), RuntimeError)(str(message["text"])[:2000])
            answer = self.unpack(message["answer"], blobs)
            if self.judge:
                self._follow(on, self.unpack(message["after"], blobs), tensors)
            return answer

    def _follow(self, on: int, after: dict[str, Any], tensors: list[Tensor]) -> None:
        """Apply the changes of the call's copies to the judge's tensors and generator."""
        if isinstance(seed := after.get("seed"), Tensor) and seed.shape == torch.get_rng_state().shape:
            torch.set_rng_state(seed)
        written: dict[int, Tensor] = after.get("written") or {}
        state: list[Any] = after.get("state") or []
        with torch.no_grad():
            for place, value in written.items():
                tensors[place].copy_(value)
            for tensor, (value, grad) in zip(self.tracked.get(on, ()), state, strict=False):
                if not torch.equal(tensor, value):  # an autograd graph may need unchanged tensors
                    tensor.copy_(value)
                tensor.grad = grad if grad is None else grad.reshape(tensor.shape)

    def serve(self, message: dict[str, Any], blobs: list[bytes]) -> None:
        """Handle a request of the other side, and send the result or the error."""
        answer: list[bytes] = []
        try:
            do = str(message["do"])
            if self.judge and do not in SERVED_BY_THE_JUDGE:
                raise TypeError(f"{do} is refused")
            args, more = self.unpack(message["args"], blobs), self.unpack(message["more"], blobs)
            leaves = [value for value in _leaves(args) if isinstance(value, Tensor)]
            versions = [tensor._version for tensor in leaves]
            on = int(message["on"])
            if "seed" in more:
                torch.set_rng_state(more.pop("seed"))
                os.chdir(more.pop("folder"))
            state: list[Any] = more.pop("state", None) or []
            for tensor, (value, grad) in zip(self.tracked.get(on, ()), state, strict=False):
                tensor.data.copy_(value)
                tensor.grad = grad
            args = [iter(arg) if isinstance(arg, Once) else arg for arg in args]
            result = getattr(self, f"_{do}")(on, *args, **more)
            told = {"answer": self.pack(result, answer)}
            if do == "create" and "mine" in told["answer"]:
                self.tracked[told["answer"]["mine"]] = [tensor for tensor in leaves if tensor.requires_grad]
            if not self.judge:
                written = {i: t for i, (t, v) in enumerate(zip(leaves, versions, strict=True)) if t._version != v}
                state = [[tensor.detach(), tensor.grad] for tensor in self.tracked.get(on, ())]
                after = {"seed": torch.get_rng_state(), "written": written, "state": state}
                told["after"] = self.pack(after, answer)
            self.send(told, answer)
        except GuestError:
            raise
        except BaseException as error:
            self.send({"error": type(error).__name__, "text": str(error)}, [])

    def _call(self, on: int, *args: Any, **words: Any) -> Any:
        return self.objects[on](*args, **words)

    def _item(self, on: int, key: Any) -> Any:
        return self.objects[on][key]

    def _length(self, on: int) -> int:
        return len(self.objects[on])

    def _iterate(self, on: int) -> Any:
        return _Steps(iter(self.objects[on]))

    def _next(self, on: int) -> Any:
        return next(self.objects[on])

    # of the guest only

    def _signature(self, on: int, name: str) -> Any:
        try:
            found = inspect.signature(getattr(self.objects[0], name)).parameters.values()
        except (TypeError, ValueError):
            return None
        return [[p.name, int(p.kind), p.default is not p.empty] for p in found]

    def _create(self, on: int, name: str, *args: Any, **words: Any) -> Any:
        return getattr(self.objects[0], name)(*args, **words)

    def _attribute(self, on: int, name: str) -> Any:
        return getattr(self.objects[on], name)

    def _assign(self, on: int, name: str, value: Any) -> None:
        setattr(self.objects[on], name, value)

    def _record(self, on: int, target: Any, args: Any, words: Any, keep: bool) -> Any:
        """A call with a gradient on request."""
        tensors = [value for value in _leaves((args, words)) if isinstance(value, Tensor)]
        if isinstance(target, str):
            result = getattr(self.objects[0], target)(*args, **words)
        else:
            state, training = target[1], target[2]
            layer = self.objects[target[0]].train(training)
            tensors = [*state.values(), *tensors]
            result = torch.func.functional_call(layer, state, tuple(args), words)
        number = next(self.numbers)
        if keep and isinstance(result, Tensor) and result.requires_grad:
            self.calls[number] = (tensors, result)
        state_after = dict(target[1]) if not isinstance(target, str) else {}
        buffers = {name: value.detach() for name, value in state_after.items() if not value.requires_grad}
        return [number, result.detach() if isinstance(result, Tensor) else result, buffers]

    def _backward(self, on: int, number: int, upstream: Tensor) -> Any:
        tensors, result = self.calls[number]
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        found = torch.autograd.grad(result, wanted, upstream, allow_unused=True, retain_graph=True)
        gradients = dict(zip(map(id, wanted), found, strict=True))
        return [gradients.get(id(tensor)) for tensor in tensors]


class Once(list[Any]):
    """The items of a generator; the other side has an iterator."""


class _Steps:
    """An iterator, which is not transferred as a list because it may be endless."""

    def __init__(self, of: Iterator[Any]) -> None:
        self._of = of

    def __next__(self) -> Any:
        return next(self._of)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    else:
        yield value


class Proxy:
    """An object on the other side."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.__dict__.update(_peer=peer, _number=number)

    def __call__(self, *args: Any, **words: Any) -> Any:
        return self._peer.ask("call", self._number, *args, **words)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self._number, key)

    def __len__(self) -> int:
        return self._peer.ask("length", self._number)

    def __iter__(self) -> Iterator[Any]:
        steps = self._peer.ask("iterate", self._number)
        while True:
            try:
                yield self._peer.ask("next", steps._number)
            except StopIteration:
                return

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self._peer.judge:
            raise AttributeError(name)
        if name in ("step", "zero_grad"):  # methods that change the tensors of the object
            return lambda *args, **words: self._method(name, *args, **words)
        return self._peer.ask("attribute", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("assign", self._number, name, value)

    def _method(self, name: str, *args: Any, **words: Any) -> Any:
        peer = self._peer
        bound = peer.ask("attribute", self._number, name)
        peer.tracked[bound._number] = peer.tracked.get(self._number, [])
        return peer.ask("method", self._number, bound, *args, **words)


def _method(self: Peer, on: int, bound: Callable[..., Any], *args: Any, **words: Any) -> Any:
    return bound(*args, **words)


Peer._method = _method  # pyright: ignore[reportAttributeAccessIssue]


class _Recorded(torch.autograd.Function):
    """A call on the other side, with its gradient."""

    @staticmethod
    def forward(ctx: Any, peer: Peer, target: Any, args: Any, words: Any, after: Any, *tensors: Tensor) -> Any:
        keep = any(tensor.requires_grad for tensor in tensors)
        ctx.peer = peer
        ctx.number, result, buffers = peer.ask("record", 0, target, args, words, keep)
        after.update(buffers)
        if not isinstance(result, Tensor):
            raise TypeError(f"the result must be a tensor, got {type(result).__name__}")
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return (None,) * 5 + tuple(ctx.peer.ask("backward", 0, ctx.number, upstream[0]))


class Layer(nn.Module):
    """A layer on the other side, with its parameters here."""

    def __init__(self, peer: Peer, told: dict[str, Any], blobs: list[bytes]) -> None:
        super().__init__()
        self.__dict__.update(_peer=peer, _number=int(told["mine"]))
        for kind in ("parameters", "buffers"):
            for name, value in told[kind]:
                *path, last = str(name).split(".")
                home: nn.Module = self
                for part in path:
                    if part not in home._modules:
                        home.add_module(part, nn.Module())
                    home = home._modules[part]  # pyright: ignore[reportAssignmentType]
                tensor = peer.unpack(value, blobs)
                if kind == "parameters":
                    home._parameters[last] = nn.Parameter(tensor.detach(), tensor.requires_grad)
                else:
                    home._buffers[last] = tensor

    def forward(self, *args: Any, **words: Any) -> Any:
        state = dict(self.named_parameters()) | dict(self.named_buffers())
        tensors = [*state.values(), *(value for value in _leaves((args, words)) if isinstance(value, Tensor))]
        after: dict[str, Tensor] = {}
        result = _Recorded.apply(self._peer, [self._number, state, self.training], list(args), words, after, *tensors)
        with torch.no_grad():
            for name, value in after.items():
                state[name].copy_(value)
        return result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return self._peer.ask("attribute", self._number, name)


class Component:
    """A component of the file with the interface for the judge."""

    def __init__(self, host: "Host", name: str) -> None:
        self._host, self._name = host, name
        self.__name__, self.__doc__ = name, None
        if (told := host.peer.ask("signature", 0, name)) is not None:
            kinds = list(type(inspect.Parameter.POSITIONAL_ONLY))
            self.__signature__ = inspect.Signature(
                [
                    inspect.Parameter(str(n), kinds[int(kind)], default=None if given else inspect.Parameter.empty)
                    for n, kind, given in told
                ]
            )

    def __call__(self, *args: Any, **words: Any) -> Any:
        if self._host.peer.lost:
            self._host.again()
        peer = self._host.peer
        args = tuple(Once(arg) if isinstance(arg, GeneratorType) else arg for arg in args)
        tensors = [value for value in _leaves((args, words)) if isinstance(value, Tensor)]
        is_class = self._name[0].isupper()
        if not is_class and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Recorded.apply(peer, self._name, list(args), words, {}, *tensors)
        made = peer.ask("create", 0, self._name, *args, **words)
        if isinstance(made, Proxy):
            peer.tracked[made._number] = [tensor for tensor in tensors if tensor.requires_grad]
        return made


class Host:
    """Starts the process of a file, and ends it with all its children.

    Args:
        file: The file.
        names: The components that it may define.
    """

    def __init__(self, file: Path, names: list[str]) -> None:
        with contextlib.suppress(OSError, AttributeError):  # orphans of the file become children of this process
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        self.file, self.starts = file.resolve(), 0
        self._start()
        self.namespace = SimpleNamespace(**{name: Component(self, name) for name in names if name in self.offered})

    def again(self) -> None:
        """Restart a lost process, a few times.

        Raises:
            GuestError: the process was lost too often.
        """
        if self.starts > RESTARTS:
            raise GuestError(f"the process of the file was lost {self.starts} times")
        self.close()
        self._start()

    def _start(self) -> None:
        self.starts += 1
        to_guest, from_guest = os.pipe(), os.pipe()
        words = [sys.executable, "-m", "spec.support.guest", str(self.file), str(to_guest[0]), str(from_guest[1])]
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "HOME", "OMP_NUM_THREADS") if key in os.environ}
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            words, pass_fds=(to_guest[0], from_guest[1]), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=kept | {"PYTHONPATH": root}, cwd=self.file.parent, start_new_session=True,
        )  # fmt: skip
        os.close(to_guest[0])
        os.close(from_guest[1])
        self.peer = Peer(from_guest[0], to_guest[1], judge=True)
        self.peer.end = time.monotonic() + START
        try:
            message, _ = self.peer.receive()
        finally:
            self.peer.end = float("inf")
        if "error" in message:
            raise GuestError(str(message["error"])[:2000])
        self.offered = list(message.get("names", ()))

    def close(self) -> None:
        """End the process, its group, and children that left the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(100):
            children = Path(f"/proc/self/task/{os.getpid()}/children")
            mine = children.read_text().split() if children.exists() else []
            if not mine:
                break
            for child in mine:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(child), signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)


def main(file: str, reading: str, writing: str) -> None:
    """The main function of the file's process: import the file, then handle the judge's requests."""
    import resource  # Windows lacks it, and has no forks either

    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, 2**26))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    peer = Peer(int(reading), int(writing), judge=False)
    from spec.support.implementations import ImplementationError, load

    try:
        implementation = load(file)
    except ImplementationError as error:
        peer.send({"error": str(error)}, [])
        return
    peer.objects[0] = SimpleNamespace(**implementation.components)
    peer.send({"names": list(implementation.components)}, [])
    while True:
        with contextlib.suppress(GuestError):
            peer.serve(*peer.receive())
            continue
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
