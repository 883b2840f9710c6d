"""Set-up and checks around the tests on CUDA, marked `gpu` or under `--device cuda`.

- Each test runs on its own stream instead of the default stream: this detects work that is queued on the wrong stream,
or that relies on the synchronization of the default stream. - After each passed test, no more memory may be in use than
before it. - float32 is float32: TF32, PyTorch's default for convolutions and recurrent networks, is off unless a test
allows it. - Under `--device`, random numbers that a test draws without naming a device come from the CPU's generator,
so that a test uses the same numbers on every device. Without CUDA only the last point applies.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Generator
from functools import cache
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from spec.support import versions

_CPU = torch.device("cpu")

WARNINGS = (
    # A warning at the first matrix product of an autograd thread, which then makes the context current.
    "ignore:.*Attempting to run cuBLAS, but there was no current CUDA context:UserWarning",
    # cuDNN packs the weights of a recurrent layer in every call once they were replaced; its results are the same.
    "ignore:.*RNN module weights are not part of single contiguous chunk of memory:UserWarning",
    # A parameter that was created on the default stream gets its gradient on the stream of the test.
    "ignore:.*AccumulateGrad node's stream does not match:UserWarning",
    # PyTorch gives this warning whenever the mode is turned on.
    "ignore:.*Synchronization debug mode is a prototype feature:UserWarning",
    # TF32 is off on purpose.
    "ignore:.*TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled:UserWarning",
)
"""CUDA's warnings in correct programs."""


class LeakCheck:
    """Compares the memory in use before and after a test.

    Args:
        allocated: Returns the number of bytes in use.
        settle: Frees memory that the next garbage collection would free.
    """

    def __init__(self, allocated: Callable[[], int], settle: Callable[[], None]) -> None:
        self.allocated, self.settle = allocated, settle
        self.before = 0

    def start(self) -> None:
        """Record the memory in use."""
        if self.allocated():
            self.settle()
        self.before = self.allocated()

    def leaked(self) -> int:
        """The number of additional bytes in use since the start; at least 0."""
        for pause in (0.0, *[0.05] * 10):  # autograd's threads free their last tensors slightly later
            if self.allocated() <= self.before:
                return 0
            time.sleep(pause)
            self.settle()
        return max(0, self.allocated() - self.before)


def on_cuda(item: pytest.Item) -> bool:
    """Whether a test computes on CUDA."""
    if not torch.cuda.is_available() or item.config.getoption("--gpu-rehearsal"):
        return False
    return item.get_closest_marker("gpu") is not None or str(item.config.getoption("--device")).startswith("cuda")


def _allocated() -> int:
    """Bytes of all CUDA devices in use by tensors."""
    return sum(torch.cuda.memory_allocated(number) for number in range(torch.cuda.device_count()))


def _settle() -> None:
    """Free garbage, compiled networks and cuBLAS's workspaces, which otherwise remain allocated."""
    if "torch._dynamo" in sys.modules and torch._dynamo.utils.counters["stats"]:
        torch._dynamo.reset()
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()


_CHECK = LeakCheck(_allocated, _settle)
_FAILED = pytest.StashKey[bool]()


@cache
def _side_stream() -> torch.cuda.Stream:
    """The stream of this process's tests; permanent allocations of CUDA are made here."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        layer = torch.nn.Conv2d(1, 1, 1, device="cuda")
        layer(torch.rand(1, 1, 4, 4, device="cuda")).square().mean().backward()
        torch.matmul(torch.rand(4, 4, device="cuda"), torch.rand(4, 4, device="cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # the generator's state for graphs
        torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    return stream


def ieee() -> None:
    """Let CUDA compute float32 in float32."""
    settings, name, _, exact = versions.tf32_settings()
    for setting in settings:
        setattr(setting, name, exact)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Record the memory in use before the set-up of the test."""
    if on_cuda(item):
        _side_stream()
        ieee()
        _CHECK.start()
        item.stash[_FAILED] = False
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Run the test on its own stream."""
    if not on_cuda(item):
        return (yield)
    stream, default = _side_stream(), torch.cuda.current_stream()
    stream.wait_stream(default)
    try:
        with torch.cuda.stream(stream):
            return (yield)
    except BaseException:
        item.stash[_FAILED] = True  # the frames of the error keep references to tensors
        raise
    finally:
        default.wait_stream(stream)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that left memory in use."""
    result = yield
    if on_cuda(item) and item.stash.get(_FAILED, True) is False and (leaked := _CHECK.leaked()):
        pytest.fail(f"the test left {leaked:,} bytes of GPU memory in use", pytrace=False)
    return result


class DrawnOnTheHost(TorchFunctionMode):
    """Random numbers for which no device is named come from the CPU's generator and are moved to the default device.

    Numbers that an implementation draws on the device of its input, with `device=` or `rand_like`, are still drawn
    there.
    """

    DRAWS = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = kwargs.get("device") is not None or kwargs.get("out") is not None
        own |= getattr(kwargs.get("generator"), "device", _CPU) != _CPU
        if func not in self.DRAWS or own:
            return func(*args, **kwargs)
        wants_gradient = kwargs.pop("requires_grad", False)
        drawn = func(*args, **kwargs | {"device": "cpu"}).to(torch.get_default_device())
        return drawn.requires_grad_(wants_gradient)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw on the host where another device is the default; accept CUDA's own warnings where there is CUDA."""
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the tests of deterministic algorithms
        for text in WARNINGS:
            config.addinivalue_line("filterwarnings", text)
    compiled = "compile" in str(config.getoption("--impl") or "")  # the compiler would trace the mode as well
    if str(config.getoption("--device")) != "cpu" and not compiled:
        mode = DrawnOnTheHost()
        mode.__enter__()
        config.add_cleanup(lambda: mode.__exit__(None, None, None))
