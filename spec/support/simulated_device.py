"""A simulated second device: it computes real results, and refuses the operations that a GPU refuses.

Its tensors are wrappers around tensors of the CPU. Every operation on them calls `__torch_dispatch__`, which checks the
devices, unwraps, computes on the CPU and wraps again; above it PyTorch's autograd, modules and optimizers run as for
any device. As on a GPU:

- An operation takes tensors of one device. The exceptions are CUDA's: a CPU tensor without dimensions may take part in
  arithmetic, CPU tensors may index, and copies go anywhere.
- Random numbers come from the device's own generator; one of the CPU is refused.
- `numpy()` is refused; `torch.save` notes the device, and `torch.load` asks for the device unless there is a
  `map_location`.
- Operations for which the host waits for a GPU (reading a number, a mask as an index, a blocking copy) are recorded:
`waits`.

Not simulated: streams, events, asynchrony, its own memory, its own rounding, a second GPU, generators made by
`torch.Generator(device)`.

The autograd engine counts the devices at a process's first backward: `register` must come before it. Tests therefore
run in a separate process (`on_simulated_device`), or the whole of pytest does (`--device simulated`).
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from spec.support.command import FORKS

NAME = "simulated"

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_TAKE_A_NUMBER = {_aten.fill_.Tensor, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor}  # not tagged as arithmetic
_LENGTHS_ON_THE_HOST = {_aten._pack_padded_sequence.default, _aten._pad_packed_sequence.default}
_WAITING = {
    *(_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default),
    *(_aten.nonzero.default, _aten.masked_select.default, _aten.bincount.default, _aten.repeat_interleave.Tensor),
    *(_aten._unique2.default, _aten.unique_dim.default, _aten.unique_consecutive.default),
}
"""Operations with a result (a size or a number) that is known only after the device has computed it."""

_WAITS: list[list[str]] = []  # one list for each `waits` that is open
_state = SimpleNamespace(registered=False, plugged=True, rng=torch.Generator("cpu").get_state())


class SimulatedTensor(Tensor):
    """A tensor on the simulated device. `raw` holds its numbers on the CPU, with the same shape and strides."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "SimulatedTensor":
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        _refuse_mixing(func, args, kwargs)
        _note_waiting(func, args, kwargs)
        wrappers: dict[int, SimulatedTensor] = {}  # an argument that an operation returns remains the same object

        def unwrap(tensor: SimulatedTensor) -> Tensor:
            wrappers[id(tensor.raw)] = tensor
            return tensor.raw

        target = kwargs.get("device")
        if target is not None and target.type == NAME:
            kwargs["device"] = torch.device("cpu")
        raw_args, raw_kwargs = tree_map_only(SimulatedTensor, unwrap, (args, kwargs))
        with _random_numbers(func):
            result = _FUSED.get(func, func)(*raw_args, **raw_kwargs)
        for wrapper in wrappers.values():  # an operation in place may have changed the shape
            if wrapper.shape != wrapper.raw.shape or wrapper.stride() != wrapper.raw.stride():
                wrapper.data = SimulatedTensor(wrapper.raw)
        if func is _aten.copy_.default and not isinstance(args[0], SimulatedTensor):
            return args[0]
        if target is not None and target.type != NAME:
            return result.clone() if any(result is raw for raw in map(_raw, args)) else result
        if func in _LENGTHS_ON_THE_HOST:
            return SimulatedTensor(result[0]), result[1]
        return tree_map_only(
            Tensor, lambda raw: wrappers[id(raw)] if id(raw) in wrappers else SimulatedTensor(raw), result
        )

    def __repr__(self, **_: Any) -> str:
        history = f", grad_fn=<{type(self.grad_fn).__name__}>" if self.grad_fn else ", requires_grad=True"
        return f"{self.raw!r}"[:-1] + f", device='{NAME}:0'" + history * self.requires_grad + ")"

    def __format__(self, spec: str) -> str:
        """Format a single number as a number, as for a plain tensor."""
        return format(self.item() if self.dim() == 0 else str(self), spec)

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Tensor.data.__get__(self)  # pyright: ignore[reportAttributeAccessIssue]

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)  # pyright: ignore[reportAttributeAccessIssue]
        self.raw = _raw(other)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy: copy it to the host first, by cpu()")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.detach().clone()
        copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        copied.requires_grad_(self.requires_grad)
        if self.grad is not None:
            copied.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as PyTorch pickles a plain tensor; `_location` provides the storage location for `torch.save`."""
        storage = self.raw.untyped_storage()
        storage.on_simulated_device = True  # pyright: ignore[reportAttributeAccessIssue]
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=self.dtype, _internal=True)
        offset, size, stride = self.raw.storage_offset(), tuple(self.raw.size()), self.raw.stride()
        rebuilt = (typed, offset, size, stride, self.requires_grad, {})
        if isinstance(self, torch.nn.Parameter):
            plain = torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, {})  # pyright: ignore[reportAttributeAccessIssue]
            return torch._utils._rebuild_parameter, (_Reduced(*plain), self.requires_grad, {})  # pyright: ignore[reportAttributeAccessIssue]
        return torch._utils._rebuild_tensor_v2, rebuilt  # pyright: ignore[reportAttributeAccessIssue]


def _lstm_cell(input: Tensor, hidden: Tensor, c: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A whole LSTM step, which PyTorch's LSTM calls on a GPU and the CPU does not have; forward only."""
    gates = input + hidden
    for bias in biases:
        gates = gates if bias is None else gates + bias
    i, f, g, o = gates.chunk(4, dim=1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, torch.cat((i, f, g, o), dim=1)


def _gru_cell(
    input: Tensor, hidden: Tensor, h: Tensor, b_input: Tensor | None = None, b_hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same for the GRU."""
    if b_input is not None and b_hidden is not None:
        input, hidden = input + b_input, hidden + b_hidden
    (ir, iz, inn), (hr, hz, hn) = input.chunk(3, dim=1), hidden.chunk(3, dim=1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (inn + r * hn).tanh()
    return n + z * (h - n), torch.cat((r, z, n, h, hn), dim=1)


_FUSED = {_aten._thnn_fused_lstm_cell.default: _lstm_cell, _aten._thnn_fused_gru_cell.default: _gru_cell}


class _Reduced:
    """An object that is pickled as the call that creates a tensor."""

    def __init__(self, function: Any, arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.reduced


class _DeviceStorage(torch.UntypedStorage):
    """The storage from which `torch.load` fills a tensor of the device."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device(NAME, 0)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, SimulatedTensor) else value


def _refuse_mixing(func: Any, args: Any, kwargs: Any) -> None:
    """Raise CUDA's error if an operation mixes tensors of the CPU and of the device and this is not allowed."""
    if func in _COPIES or func in _LENGTHS_ON_THE_HOST:
        return
    generator = kwargs.get("generator")
    if generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device}'")
    flat = tree_flatten((args, kwargs))[0]
    host = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, SimulatedTensor)]
    if not host:
        return
    if func in _INDEXING and isinstance(args[0], SimulatedTensor):
        values = args[2] if len(args) > 2 else None
        if not isinstance(values, Tensor) or isinstance(values, SimulatedTensor) or values.dim() == 0:
            return
    arithmetic = torch.Tag.pointwise in func.tags or func in _TAKE_A_NUMBER
    written = {id(args[0])} if args and func._schema.is_mutable else set()
    if arithmetic and all(value.dim() == 0 and id(value) not in written for value in host):
        return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
        f"(when {func} was called; on the cpu: {', '.join(str(tuple(value.shape)) for value in host)})"
    )


def _note_waiting(func: Any, args: Any, kwargs: Any) -> None:
    """Add to the open lists if the host would wait for a GPU here."""
    if not _WAITS:
        return
    waiting = func in _WAITING
    if func in _COPIES:
        target = kwargs.get("device")
        crosses = not all(isinstance(value, SimulatedTensor) for value in args[:2] if isinstance(value, Tensor))
        crosses |= target is not None and target.type != NAME
        waiting = crosses and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
    if func in _INDEXING:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        waiting = any(index.dtype in (torch.bool, torch.uint8) or _raw(index) is index for index in indices)
    if waiting:
        for noted in _WAITS:
            noted.append(str(func))


@contextmanager
def _random_numbers(func: Any) -> Iterator[None]:
    """During a random operation, the CPU's generator has the state of the device's generator."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    host = torch.random.default_generator.get_state()
    torch.random.default_generator.set_state(_state.rng)
    try:
        yield
    finally:
        _state.rng = torch.random.default_generator.get_state()
        torch.random.default_generator.set_state(host)


class _Module:
    """The module `torch.simulated` for PyTorch and programs."""

    @staticmethod
    def is_available() -> bool:
        return _state.plugged

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """There are never pending operations."""

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        # a different state than the CPU's: the same seed gives other numbers on another device
        _state.rng = torch.Generator("cpu").manual_seed((seed + 0x5EED) % 2**63).get_state()

    manual_seed = manual_seed_all

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return _state.rng.clone()

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        _state.rng = state.clone()


def _keeping_parameters(to: Callable[..., Any]) -> Callable[..., Any]:
    """Module.to, set up so that the parameters remain the same objects, as on a GPU."""

    @wraps(to)
    def moved(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return to(self, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return moved


def register() -> None:
    """Register `torch.device("simulated")` in this process permanently. Call it before the first backward."""
    if _state.registered:
        return
    _state.registered = True
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.nn.Module.to = _keeping_parameters(torch.nn.Module.to)

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        layout = memory_format or torch.contiguous_format
        return SimulatedTensor(torch.empty(size, dtype=dtype, device="cpu", memory_format=layout))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def zeros(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return SimulatedTensor(torch.zeros(size, dtype=dtype, device="cpu"))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        """The function that torch.tensor(…, device=…) calls without `__torch_dispatch__`."""
        _note_waiting(_aten._copy_from.default, (source, target, non_blocking), {})
        _raw(target).copy_(_raw(source))
        return target

    _state.library = torch.library.Library("aten", "IMPL")  # must live as long as the registrations
    kernels = {"empty.memory_format": empty, "empty_strided": empty_strided, "_efficientzerotensor": zeros}
    for name, function in (kernels | {"_copy_from": copy_from}).items():
        _state.library.impl(name, function, "PrivateUse1")

    def location(storage: Any) -> str | None:
        return f"{NAME}:0" if getattr(storage, "on_simulated_device", False) else None

    def restore(storage: Any, where: str) -> Any:
        if not str(where).startswith(NAME):
            return None
        if not _state.plugged:
            raise RuntimeError(
                f"Attempting to deserialize object on a {NAME} device but torch.{NAME}.is_available() is False. "
                "Use torch.load with map_location=torch.device('cpu') to map your storages to the CPU."
            )
        storage.__class__ = _DeviceStorage
        return storage

    torch.serialization.register_package(5, location, restore)  # before the CPU's, which has 10


@contextmanager
def unplugged() -> Iterator[None]:
    """Simulate a machine without the device: loading needs a `map_location`."""
    _state.plugged = False
    try:
        yield
    finally:
        _state.plugged = True


@contextmanager
def waits() -> Iterator[list[str]]:
    """A list of the operations in the block for which the host would wait for a GPU."""
    noted: list[str] = []
    _WAITS.append(noted)
    try:
        yield noted
    finally:
        _WAITS.remove(noted)


# Tests in separate processes


def on_simulated_device(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a new process with the device; an error there fails the test here with the same message."""

    @wraps(test)
    def outside(**arguments: Any) -> None:
        __tracebackhide__ = True
        ours, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_inside, args=(theirs, test.__module__, test.__qualname__, arguments))
        process.start()
        theirs.close()
        try:
            outcome = ours.recv()
        except EOFError:
            process.join()
            outcome = f"the process of the test ended with {process.exitcode} and said nothing"
        finally:
            if process.is_alive():
                process.join(10)
                process.kill()
        if outcome is not None:
            pytest.fail(outcome, pytrace=False)

    return outside


def _inside(connection: Connection, module: str, name: str, arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    register()
    torch.manual_seed(0)
    try:
        getattr(import_module(module), name).__wrapped__(**arguments)
    except BaseException as error:  # pytest.fail raises one too
        lines = traceback.format_exception(error)
        connection.send(str(error) if isinstance(error, pytest.fail.Exception) else "".join(lines))
    else:
        connection.send(None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.close()
