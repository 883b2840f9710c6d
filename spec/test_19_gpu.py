"""Chapter 19, on a GPU: properties that need a GPU. `pytest -m gpu`, or `--gpu-rehearsal`.

`test_19_convergence.py` tests whole trainings. This file tests the stream and the leak check around every such test,
moving optimizer states, factory arguments, TF32, memory formats, tensors of more than 2³¹ elements, and the streams of
the loaders under PyTorch's sanitizer. Inputs are drawn on the CPU, so that both sides use the same numbers.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from spec.support.assertions import assert_close, assert_equal, rounding
from spec.support.clauses import clause
from spec.support.gpu import DrawnOnTheHost, LeakCheck, ieee

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SIDES = {"reference": reference, "torch": nn}
"""The namespaces of the layers; functions of PyTorch are in `nn.functional`, optimizers in `torch.optim`."""


def component(side: str, name: str) -> Any:
    """A component of the reference or of PyTorch."""
    if side == "reference":
        return getattr(reference, name)
    return next(getattr(home, name) for home in (nn, nn.functional, torch.optim) if hasattr(home, name))


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, drawn on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """TF32 is off before and after each test."""
    ieee()
    yield
    ieee()


# The checks around the tests


@clause("19.gpu.leak")
def test_a_tensor_that_is_kept_is_reported_as_a_leak(gpu: torch.device) -> None:
    held: list[Tensor] = []
    if gpu.type == "cuda":

        def allocated() -> int:
            return torch.cuda.memory_allocated(gpu)
    else:  # the CPU does not count its memory: the check gets the number that CUDA would count

        def allocated() -> int:
            return sum(tensor.nbytes for tensor in held)

    settled = []
    check = LeakCheck(allocated, lambda: settled.append(True))
    check.start()
    if gpu.type == "cuda":
        kept: Any = torch.zeros(1000, device=gpu)
    else:
        held.append(kept := torch.zeros(1000))
    assert check.leaked() >= kept.nbytes
    assert settled  # only memory that remains after a garbage collection counts
    if gpu.type != "cuda":
        held.clear()
    del kept
    assert check.leaked() == 0


@clause("19.training.stream")
def test_the_tests_run_on_a_stream_that_is_not_the_default_one(gpu: torch.device) -> None:
    if gpu.type != "cuda":
        pytest.skip("only CUDA has streams")
    assert torch.cuda.current_stream(gpu) != torch.cuda.default_stream(gpu)


@clause("19.gpu.drawn")
def test_numbers_without_a_device_are_drawn_on_the_host_and_are_the_same_on_every_device(gpu: torch.device) -> None:
    def numbers() -> list[Tensor]:
        torch.manual_seed(7)
        return [torch.rand(3), torch.randn(2, 2), torch.randint(0, 9, (5,)), torch.randperm(6)]

    expected = numbers()
    device = torch.device("meta") if gpu.type == "cpu" else gpu
    with device, DrawnOnTheHost():
        found = numbers()
        named = torch.rand(3, device="cpu", requires_grad=True)
        assert torch.randn(2, requires_grad=True).requires_grad
    assert (named.device.type, named.requires_grad) == ("cpu", True)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == device.type
        assert one.shape == other.shape
        if device.type != "meta":  # its state contains no tensors
            assert_equal(one.cpu(), other)
    with DrawnOnTheHost():
        for one, other in zip(numbers(), expected, strict=True):
            assert_equal(one, other)


# Optimizers


OPTIMIZERS = {
    "SGD": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "SGD, dampened": ("SGD", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    "Adam": ("Adam", {}),
    "Adam, amsgrad": ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    "AdamW": ("AdamW", {}),
}


def steps(optimizer: Any, parameters: list[nn.Parameter], count: int) -> None:
    """Steps with gradients that depend on the parameters: parameter · number."""
    for _ in range(count):
        for number, parameter in enumerate(parameters, 1):
            parameter.grad = parameter.detach() * number
        optimizer.step()


@clause("19.gpu.optimizer_state")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_state_of_the_cpu_continues_with_parameters_on_the_device(
    gpu: torch.device, side: str, kind: str
) -> None:
    name, options = OPTIMIZERS[kind]
    values = [drawn(3, 5, seed=1), drawn(7, seed=2)]
    here = [nn.Parameter(value.clone()) for value in values]
    optimizer = component(side, name)(here, lr=0.01, **options)
    steps(optimizer, here, 3)
    there = [nn.Parameter(parameter.detach().to(gpu, copy=True)) for parameter in here]
    continued = component(side, name)(there, lr=0.01, **options)
    continued.load_state_dict(deepcopy(optimizer.state_dict()))  # on one device PyTorch's would share it
    for parameter in there:
        for key, value in continued.state[parameter].items():
            if isinstance(value, Tensor):  # PyTorch keeps the step count on its device
                assert value.device == (torch.device("cpu") if key == "step" else parameter.device), key
    for parameters, one in ((here, optimizer), (there, continued)):
        steps(one, parameters, 3)
    # three steps of at most 16 roundings each, of numbers below 4; a step of Adam multiplies errors by less than 2
    for one, other in zip(here, there, strict=True):
        assert_close(other.detach().cpu(), one.detach(), rounding(torch.float32, 3 * 16 * 2**3, 4.0), "a parameter")
        assert other.device.type == gpu.type


# Factory arguments


LAYERS: dict[str, tuple[tuple[Any, ...], tuple[int, ...] | Tensor]] = {
    "Conv2d": ((3, 4, 3), (2, 3, 6, 6)),
    "Linear": ((5, 3), (4, 5)),
    "BatchNorm2d": ((3,), (2, 3, 6, 6)),
    "LayerNorm": ((5,), (4, 5)),
    "Embedding": ((7, 3), torch.arange(6)),
    "RNN": ((4, 3), (3, 2, 4)),
    "LSTM": ((4, 3), (3, 2, 4)),
    "GRU": ((4, 3), (3, 2, 4)),
    "MultiheadAttention": ((4, 2), (3, 2, 4)),
    "TransformerEncoderLayer": ((4, 2, 8), (3, 2, 4)),
}
"""All layers with parameters, and the arguments of their calls."""


def call(layer: nn.Module, given: Tensor) -> Tensor:
    """The first result of a layer."""
    output = layer(*[given] * (3 if type(layer).__name__ == "MultiheadAttention" else 1))
    return output[0] if isinstance(output, tuple) else output


@clause("19.gpu.factory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_made_on_the_device_in_the_dtype(
    gpu: torch.device, name: str, side: str, dtype: torch.dtype
) -> None:
    arguments, shape = LAYERS[name]
    layer = component(side, name)(*arguments, device=gpu, dtype=dtype)
    assert {value.device.type for value in layer.state_dict().values()} == {gpu.type}
    assert {value.dtype for value in layer.state_dict().values() if value.is_floating_point()} == {dtype}
    given = (shape if isinstance(shape, Tensor) else drawn(*shape, dtype=dtype)).to(gpu)
    output = call(layer, given)
    assert (output.device.type, output.dtype) == (gpu.type, dtype)
    output.float().square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad.device, parameter.grad.dtype) == (parameter.device, dtype), key


# TF32


def tf32(tensor: Tensor) -> Tensor:
    """The nearest numbers with 10 bits after the point, as TF32 rounds the factors of a product."""
    mantissa, exponent = torch.frexp(tensor.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


PRODUCTS: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "Conv2d": ((64, 64, 3), (4, 64, 16, 16)),
    "Linear": ((256, 256), (128, 256)),
    "RNN": ((64, 64), (4, 16, 64)),
    "LSTM": ((64, 64), (4, 16, 64)),
    "GRU": ((64, 64), (4, 16, 64)),
    "MultiheadAttention": ((64, 4), (16, 8, 64)),
    "TransformerEncoderLayer": ((64, 4, 128, 0.0), (16, 8, 64)),
}
"""Every layer that multiplies matrices."""


@clause("19.gpu.tf32")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_float32_is_exact_and_tf32_is_used_only_where_it_is_allowed(
    gpu: torch.device, name: str, side: str, record_property: Callable[[str, object], None]
) -> None:
    """Float64 gives the right result, and the error of rounding every factor to 10 bits.

    float32 rounds 2¹³ times finer; with sums of some hundred products its error is below a sixteenth of that distance.
    TF32 also rounds intermediate results, and its error is at most sixteen times as large.
    """
    arguments, shape = PRODUCTS[name]
    torch.manual_seed(0)
    layer, given = component(side, name)(*arguments), drawn(*shape)
    exact_layer = component("torch", name)(*arguments).double()
    exact_layer.load_state_dict(layer.state_dict())
    rounded_layer = component("torch", name)(*arguments).double()
    rounded_layer.load_state_dict({key: tf32(value) for key, value in layer.state_dict().items()})
    with torch.no_grad():
        exact = call(exact_layer, given.double())
        away = (call(rounded_layer, tf32(given)) - exact).abs().max()
        layer.to(gpu)
        error = {}
        for precision in ("ieee", "tf32"):
            for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):  # pyright: ignore[reportAttributeAccessIssue]
                setting.fp32_precision = precision  # pyright: ignore[reportAttributeAccessIssue]
            error[precision] = (call(layer, given.to(gpu)).cpu().double() - exact).abs().max()
    assert 0 < away < 1
    assert error["ieee"] <= away / 16, f"float32 errs by {error['ieee']:.3g}, TF32 would by {away:.3g}"
    assert error["tf32"] <= 16 * away
    record_property("error with TF32 allowed, of what TF32 may err", round(float(error["tf32"] / away), 3))
    able = gpu.type == "cuda" and torch.cuda.get_device_capability(gpu) >= (8, 0)
    if able and name == "Linear":  # a plain product of 256: here the hardware is known to use it
        assert error["tf32"] > away / 16


# Memory formats


SPATIAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "conv2d": lambda f, x: f(x, drawn(6, x.shape[1], 3, 3, seed=3).to(x), drawn(6, seed=4).to(x), padding=1),
    "max_pool2d": lambda f, x: f(x, 2),
    "avg_pool2d": lambda f, x: f(x, 2),
    "adaptive_avg_pool2d": lambda f, x: f(x, 3),
    "relu": lambda f, x: f(x),
    "leaky_relu": lambda f, x: f(x),
    "sigmoid": lambda f, x: f(x),
    "tanh": lambda f, x: f(x),
    "batch_norm": lambda f, x: f(x, None, None, training=True),
}
"""Every function of images."""


@clause("19.gpu.channels_last")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SPATIAL)
def test_channels_last_images_give_the_same_numbers_and_gradients(gpu: torch.device, name: str, side: str) -> None:
    function, images = component(side, name), drawn(3, 4, 9, 8)
    upstream = None
    results = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        given = images.to(gpu).contiguous(memory_format=layout).requires_grad_()
        output = SPATIAL[name](function, given)
        if upstream is None:
            upstream = drawn(*output.shape, seed=5).to(gpu)
        (gradient,) = torch.autograd.grad(output, given, upstream.contiguous(memory_format=layout))
        assert given.is_contiguous(memory_format=layout)
        results[layout] = output.detach().cpu(), gradient.cpu()
    # at most 9 · 6 products and sums for one number, of numbers with absolute values that add up to below 64
    for what, one, other in zip(("output", "gradient"), *results.values(), strict=True):
        assert_close(other, one, rounding(torch.float32, 54, 64.0), what)


@clause("19.gpu.channels_last")
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_elementwise_components_keep_channels_last(gpu: torch.device, name: str) -> None:
    given = drawn(3, 4, 9, 8).to(gpu).contiguous(memory_format=torch.channels_last)
    for side in SIDES:
        assert component(side, name)(given).is_contiguous(memory_format=torch.channels_last), side


# Many elements


def many(rehearsal: bool) -> int:
    """A number of elements beyond 32-bit indices; in a rehearsal, beyond 16-bit indices."""
    return 2**17 if rehearsal else 2**31 + 2**22


@pytest.fixture
def room(gpu: torch.device) -> Iterator[None]:
    """Skip if a GPU has not enough memory; rehearsals are small."""
    if gpu.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(gpu)[0] / 2**30
    if free < 60:
        pytest.skip(f"needs 60 GiB of free GPU memory, there are {free:.1f}")
    yield
    torch.cuda.empty_cache()  # other processes test on this GPU as well


def pattern(rows: int, columns: int, device: torch.device) -> Tensor:
    """Whole numbers from -3 to 3 that differ from row to row: exact in bfloat16, and so are sums of some of them."""
    down = torch.arange(rows, device=device).remainder_(7).sub_(3).to(torch.bfloat16)
    across = torch.arange(columns, device=device).remainder_(2).to(torch.bfloat16)
    return down[:, None] * (1 - 2 * across)


SPATIAL_MANY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "conv2d": lambda f, x: f(x, torch.tensor([[[[1, 0], [0, 2]]]]).to(x), stride=2),
    "max_pool2d": lambda f, x: f(x, 2),
    "avg_pool2d": lambda f, x: f(x, 2),
}


@clause("19.gpu.many_elements")
@pytest.mark.xdist_group("much memory")
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SPATIAL_MANY)
def test_images_with_more_elements_than_int32_are_computed(
    gpu: torch.device, rehearsal: bool, name: str, side: str
) -> None:
    """The last image, where an index could overflow, gives the same result as alone, bit for bit."""
    function, width = component(side, name), 2**7 if rehearsal else 2**15
    images = pattern(many(rehearsal) // width, width, gpu).view(64, 1, -1, width)
    assert images.numel() == many(rehearsal)
    output = SPATIAL_MANY[name](function, images)
    for number in (0, 63):
        alone = SPATIAL_MANY[name](function, images[number:][:1].clone())
        assert_equal(output[number:][:1].cpu(), alone.cpu(), f"image {number}")
    del output, alone
    images.requires_grad_()
    SPATIAL_MANY[name](function, images).sum().backward()
    last = images.detach()[63:].clone().requires_grad_()
    SPATIAL_MANY[name](function, last).sum().backward()
    assert images.grad is not None
    assert last.grad is not None
    assert_equal(images.grad[63:].cpu(), last.grad.cpu(), "the gradient of the last image")


@clause("19.gpu.many_elements")
@pytest.mark.xdist_group("much memory")
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("side", SIDES)
def test_scores_with_more_elements_than_int32_are_computed(gpu: torch.device, rehearsal: bool, side: str) -> None:
    """The losses and gradients of the last samples are the same as alone, up to one rounding to bfloat16."""
    classes = 2**4 if rehearsal else 2**10
    cross_entropy = component(side, "cross_entropy")
    scores = pattern(many(rehearsal) // classes, classes, gpu)
    targets = torch.arange(len(scores), device=gpu).remainder_(classes)
    losses = cross_entropy(scores, targets, reduction="none")
    assert losses.shape == targets.shape
    for rows in (slice(0, 8), slice(-8, None)):
        alone = cross_entropy(scores[rows].clone(), targets[rows], reduction="none")
        assert_close(losses[rows].cpu(), alone.cpu(), rounding(torch.bfloat16, 1, 16.0), f"the losses of {rows}")
    del losses
    scores.requires_grad_()
    cross_entropy(scores, targets, reduction="sum").backward()
    last = scores.detach()[-8:].clone().requires_grad_()
    cross_entropy(last, targets[-8:], reduction="sum").backward()
    assert scores.grad is not None
    assert last.grad is not None
    assert_close(scores.grad[-8:].cpu(), last.grad.cpu(), rounding(torch.bfloat16, 1), "the gradient of the last rows")


# The streams of the loaders


SANITIZED = """\
import sys
import torch
from reference.data.loader import DataLoader
from reference.data.resident import ResidentLoader
from reference.data.shapes import Shapes
from reference.data.transforms import ToTensor
from reference.recipes import Vary
from reference.models import Ocean

if torch.cuda.is_available():
    from torch.cuda._sanitizer import enable_cuda_sanitizer
    enable_cuda_sanitizer()
device = torch.device(sys.argv[1])
if sys.argv[2] == "race":  # written on one stream and read on another, without waiting
    aside = torch.cuda.Stream()
    numbers = torch.zeros(1000, device=device)
    with torch.cuda.stream(aside):
        numbers.add_(1)
    numbers.sum().item()
    raise SystemExit("the sanitizer noticed nothing")
total = 0.0
for vary in (None, Vary(mirror=True, shift=2)):
    for shuffle in (False, True):
        loader = ResidentLoader(Shapes(train=True, size=96), 32, shuffle, device=device, vary=vary)
        network = Ocean(10).to(device)
        for _ in range(2):
            for images, targets in loader:
                loss = torch.nn.functional.cross_entropy(network(images), targets)
                loss.backward()
            total += loss.item()
for workers in (0, 2):  # batches in pinned memory, copied while the host continues
    loader = DataLoader(Shapes(train=True, size=96, transform=ToTensor()), 32, num_workers=workers, pin_memory=True)
    for images, targets in loader:
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        total += torch.nn.functional.cross_entropy(network(images), targets).item()
if device.type == "cuda":  # a loader that is read on a separate stream
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for images, targets in ResidentLoader(Shapes(train=True, size=96), 32, True, device=device):
            total += images.sum().item()
    torch.cuda.current_stream().wait_stream(aside)
print("sanitized", total == total)
"""
"""A program that reads the loaders' batches on every path to the device."""


def sanitized(device: torch.device, what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program under PyTorch's sanitizer, in a separate process, because it cannot be disabled again."""
    (folder / "program.py").write_text(SANITIZED, encoding="utf-8")
    root = str(Path(__file__).parents[1])
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "program.py", str(device), what]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


@clause("19.gpu.sanitizer")
def test_no_path_of_the_loaders_races_between_streams(gpu: torch.device, tmp_path: Path) -> None:
    found = sanitized(gpu, "loaders", tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "sanitized True" in found.stdout


@clause("19.gpu.sanitizer")
def test_the_sanitizer_notices_a_race(gpu: torch.device, tmp_path: Path) -> None:
    if gpu.type != "cuda":
        pytest.skip("only CUDA has streams")
    found = sanitized(gpu, "race", tmp_path)
    assert found.returncode != 0
    assert "CUDASanitizerErrors" in found.stderr, found.stdout + found.stderr
