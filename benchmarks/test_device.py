"""CPU and GPU compared: the time of a training step, with and without the transfers to the GPU, and its memory.

    pytest benchmarks/test_device.py -m gpu                      # on a GPU
    pytest benchmarks/test_device.py -m gpu --gpu-rehearsal      # the same on the CPU

Each timing ends when the device has completed its work. The other files compare single components: with `-m gpu` each
is timed on the CPU and on the GPU. The tutorial's claims are ten times the speed, which is the ratio of two rows of
"training step, 64 images", and 148 seconds for ten epochs, which are 7,820 such steps and ten evaluations: `python
scripts/train_full.py --dataset cifar10 --device cuda` prints its images per second.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from reference.data.shapes import Shapes
from reference.device import compile_network
from reference.models import Ocean

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(min_rounds=7, max_time=1.0)]
BATCHES = (64, 512, 4096)
"""The tutorial's batch size, and two that keep a GPU busy."""


def training_step(
    device: torch.device,
    batch: int,
    *,
    resident: bool,
    dtype: torch.dtype | None,
    compiled: str = "off",
    wait: bool = True,
) -> Callable[[], float]:
    """One step of the tutorial's recipe, which ends when the device has completed it.

    Args:
        device: the device that computes.
        batch: images per step.
        resident: the batch is on the device already. Otherwise it comes from the host, as uint8, within the step, and
            the loss goes back to the host.
        dtype: the dtype of autocast; None for float32.
        compiled: as `--compile`.
        wait: False: a step of a resident batch ends when its operations are queued.
    """
    torch.manual_seed(0)
    network = Ocean(10).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    compile_network(network, compiled, device)
    optimizer, loss = torch.optim.SGD(network.parameters(), 0.01), nn.CrossEntropyLoss()
    shapes = Shapes(train=True, size=batch)
    images, targets = shapes.images, shapes.targets
    if device.type == "cuda":
        images, targets = images.pin_memory(), targets.pin_memory()
    if resident:
        images, targets = images.to(device), targets.to(device)

    def step() -> float:
        inputs = images.to(device, non_blocking=True).float().div_(255)
        classes = targets.to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            value = loss(network(inputs), classes)
        value.backward()
        optimizer.step()
        if resident and device.type != "cpu":
            if wait:
                torch.accelerator.synchronize()
            return 0.0
        return value.item()  # waits for the device

    return step


@pytest.fixture(params=["cpu", "gpu"])
def place(request: pytest.FixtureRequest, gpu: torch.device) -> torch.device:
    """The processor, or the GPU."""
    return torch.device("cpu") if request.param == "cpu" else gpu


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "with transfers"])
@pytest.mark.parametrize("batch", BATCHES)
def test_training_step(
    benchmark: Any, place: torch.device, rehearsal: bool, batch: int, resident: bool, dtype: torch.dtype | None
) -> None:
    if rehearsal and batch > BATCHES[0]:
        pytest.skip("rehearsed with the tutorial's batch only")
    benchmark.group = f"training step, {batch} images, {'resident' if resident else 'with transfers'}, {dtype}"
    step = training_step(place, batch, resident=resident, dtype=dtype)
    step()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    benchmark(step)
    benchmark.extra_info.update(images=batch, device=str(place), torch=torch.__version__)
    if place.type == "cuda":
        peak = torch.cuda.max_memory_allocated(place)
        benchmark.extra_info["peak_mib"] = round(peak / 2**20, 1)
        # at least the images as floats and the first layer's output are in memory at the same time
        assert peak > batch * (3 + 32) * 32 * 32 * 4


@pytest.mark.parametrize("compiled", ["graphs", "full"])
@pytest.mark.parametrize("batch", BATCHES)
def test_compiled_training_step(benchmark: Any, gpu: torch.device, rehearsal: bool, batch: int, compiled: str) -> None:
    """Show whether `train_full.py --compile` is faster on this GPU, in one table with the uncompiled steps."""
    if rehearsal and (batch > BATCHES[0] or compiled == "full"):
        pytest.skip("rehearsed with the tutorial's batch only, and without fusing")
    torch._dynamo.reset()
    benchmark.group = f"training step, {batch} images, resident, None"
    step = training_step(gpu, batch, resident=True, dtype=None, compiled=compiled)
    for _ in range(5):  # compiled, warmed up and recorded
        step()
    benchmark(step)
    benchmark.extra_info.update(images=batch, device=str(gpu), torch=torch.__version__)


@pytest.mark.parametrize("direction", ["to the GPU", "to the host"])
def test_transfer(benchmark: Any, gpu: torch.device, rehearsal: bool, direction: str) -> None:
    """The transfer of all CIFAR-10 training images, 154 MB, in one direction."""
    images = torch.zeros(500 if rehearsal else 50_000, 3, 32, 32, dtype=torch.uint8)
    start, target = (images, gpu) if direction == "to the GPU" else (images.to(gpu), torch.device("cpu"))

    def travel() -> torch.Tensor:
        arrived = start.to(target, copy=True)
        if gpu.type != "cpu":
            torch.accelerator.synchronize()
        return arrived

    benchmark.group = "transfer"
    assert benchmark(travel).device.type == target.type
    benchmark.extra_info["megabytes"] = images.numel() / 1e6
