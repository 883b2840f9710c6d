"""A substitute for a GPU: "cuda" becomes the simulated device of `spec/support/simulated_device.py`."""

import re
from contextlib import nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CUDA = re.compile(r"cuda(?::\d+)?$")


def _simulated(value: Any) -> Any:
    if isinstance(value, str) and _CUDA.match(value):
        return "simulated:0"
    return value


class _Device(type):
    """The metaclass of the replacement of `torch.device`: calls return real devices, which count as its instances."""

    real: Any = torch.device

    def __call__(cls, kind: Any = None, index: Any = None, **named: Any) -> Any:
        kind = named.pop("type", kind)
        if isinstance(kind, int):
            return cls.real("simulated:0")
        if kind == "cuda":
            return cls.real("simulated", 0)
        kind = _simulated(kind)
        return cls.real(kind) if index is None else cls.real(kind, index)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.real)


class device(metaclass=_Device):  # noqa: N801  (it takes PyTorch's name)
    """`torch.device`."""


class _Renaming(TorchFunctionMode):
    """Passes the simulated device to every function of PyTorch that is called with "cuda"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to("simulated:0")
        if "device" in named:
            named["device"] = 0 if named["device"] is None else named["device"]
            if isinstance(named["device"], int):
                named["device"] = "simulated:0" if kwargs and kwargs["device"] is not None else None
            named["device"] = _simulated(named["device"])
        args = tuple(_simulated(value) for value in args)
        if getattr(func, "__name__", "") == "to" and len(args) > 1 and isinstance(args[1], int):
            args = (args[0], "simulated:0", *args[2:])
        return func(*args, **named)


class _Event:
    """A replacement of `torch.cuda.Event` that measures no time."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait(self, *_: Any) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 0.1


def install() -> None:
    """Replace "cuda" by the simulated device, for the rest of this process."""
    from spec.support import simulated_device

    simulated_device.register()
    torch.device = device  # pyright: ignore[reportAttributeAccessIssue]
    _Renaming().__enter__()
    to = torch.nn.Module.to

    @wraps(to)
    def moved(self: Any, *arguments: Any, **named: Any) -> Any:
        arguments = tuple("simulated:0" if isinstance(value, int) else _simulated(value) for value in arguments)
        named = {name: _simulated(value) for name, value in named.items()}
        return to(self, *arguments, **named)

    torch.nn.Module.to = moved
    torch.nn.Module.cuda = lambda self, *_: moved(self, "simulated:0")  # pyright: ignore[reportAttributeAccessIssue]
    torch.Tensor.is_cuda = property(lambda self: self.device.type == "simulated")  # pyright: ignore[reportAttributeAccessIssue]
    load = torch.load

    @wraps(load)
    def loaded(f: Any, map_location: Any = None, *arguments: Any, **named: Any) -> Any:
        return load(f, _simulated(map_location), *arguments, **named)

    torch.load = loaded
    properties = SimpleNamespace(name="simulated GPU", total_memory=16 << 30, major=8, minor=0, multi_processor_count=1)
    for name, value in {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "simulated GPU",
        "get_device_capability": (8, 0), "get_device_properties": properties, "memory_allocated": 0,
        "memory_reserved": 0, "max_memory_allocated": 0, "max_memory_reserved": 0, "memory_cached": 0,
        "synchronize": None, "empty_cache": None, "set_device": None, "init": None, "manual_seed": None,
        "manual_seed_all": None, "reset_peak_memory_stats": None, "is_initialized": True, "memory_summary": "",
        "is_bf16_supported": True, "mem_get_info": (16 << 30, 16 << 30), "ipc_collect": None,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    torch.cuda.Event = _Event  # pyright: ignore[reportAttributeAccessIssue]
    torch.cuda.device = lambda *_: nullcontext()  # pyright: ignore[reportAttributeAccessIssue]
