"""Chapter 19: devices: the claims of the chapter, and the right placement of all tensors of the reference.

No GPU is needed here: `spec/support/simulated_device.py` simulates one. Tests that need a GPU are marked `gpu` and are
in `test_19_convergence.py`.
"""

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import reference
from reference import checkpoint, scaling
from reference.checkpoint import build_network, load_checkpoint, save_checkpoint
from reference.data.resident import ResidentLoader
from reference.data.shapes import Shapes
from reference.device import (
    choose_device,
    choose_precision,
    compile_network,
    describe_device,
    out_of_memory,
    random_states,
    set_random_states,
)
from reference.errors import InputError
from reference.inference import predict
from reference.models import Ocean
from reference.run import Settings, explained, folder
from reference.scaling import ScaledOptimizer
from reference.training import evaluate, fit
from spec.support.clauses import clause
from spec.support.implementations import COMPONENTS
from spec.support.simulated_device import NAME, SimulatedTensor, on_simulated_device, unplugged, waits
from spec.support.versions import tf32_settings

TRAIN = import_module("reference.run.train")  # the package offers the function under this name
OTHER_DEVICE = "Expected all tensors to be on the same device|is on"


# The values


@clause("19.steps.method_one", "19.steps.method_two")
def test_a_pass_over_50000_images_takes_782_steps_of_64() -> None:
    # chapter 19, lines 1673 and 1850: 781.25 steps
    assert 50_000 / 64 == 781.25
    loader = DataLoader(range(50_000), batch_size=64)  # pyright: ignore[reportArgumentType]
    assert len(loader) == 782
    assert len(loader) == math.ceil(781.25)
    assert 50_000 - 781 * 64 == 16  # images in the last batch
    assert len(reference.DataLoader(range(50_000), batch_size=64)) == 782
    assert len(DataLoader(range(50_000), batch_size=64, drop_last=True)) == 781  # pyright: ignore[reportArgumentType]


@clause("19.time.minutes")
def test_148_seconds_are_the_minutes_that_are_printed() -> None:
    # chapter 19, line 1714: 2.46666666667 minutes
    assert f"{148 / 60:.11f}" == "2.46666666667"


@clause("19.device.cpu", "19.listing.indented")
def test_the_cpu_is_a_device_and_the_printed_line_is_an_indentation_error() -> None:
    line = ' device = torch.device("cpu")'  # chapter 19, line 1727
    with pytest.raises(IndentationError, match="unexpected indent"):
        compile(line, "chapter 19", "exec")
    found: dict[str, Any] = {"torch": torch}
    exec(line.strip(), found)
    assert repr(found["device"]) == "device(type='cpu')"


@clause("19.device.one_gpu", "19.device.object")
def test_cuda_is_the_current_gpu_and_cuda_0_the_first_and_they_are_unequal() -> None:
    # chapter 19, lines 1733 and 1734; a device object needs no GPU
    current, first = torch.device("cuda"), torch.device("cuda:0")
    assert (repr(current), repr(first)) == ("device(type='cuda')", "device(type='cuda', index=0)")
    assert (current.index, first.index) == (None, 0)
    assert current != first


@clause("19.device.second_gpu", "19.listing.overwritten")
def test_cuda_1_is_the_second_gpu_and_the_last_assignment_counts() -> None:
    lines = 'device = torch.device("cuda:0")\ndevice = torch.device("cuda:1")'  # chapter 19, lines 1740 and 1741
    with pytest.raises(NameError, match="torch"):
        exec(lines, {})
    found: dict[str, Any] = {"torch": torch}
    exec(lines, found)
    assert repr(found["device"]) == "device(type='cuda', index=1)"


# The claims


@clause("19.place.loss")
def test_a_loss_without_class_weights_has_nothing_to_move() -> None:
    loss = nn.CrossEntropyLoss()
    assert [*loss.parameters(), *loss.buffers()] == []
    weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert [name for name, _ in weighted.named_buffers()] == ["weight"]
    assert [name for name, _ in reference.CrossEntropyLoss(weight=torch.ones(3)).named_buffers()] == ["weight"]


@clause("19.place.module_in_place", "19.place.tensor_anew")
def test_module_to_moves_in_place_and_tensor_to_returns_a_copy() -> None:
    layer, numbers = nn.Linear(1, 1), torch.ones(1)
    weight = layer.weight
    assert layer.to("meta") is layer
    assert layer.weight.device.type == "meta"
    assert nn.Linear(1, 1).double().weight.dtype == torch.float64
    numbers.to("meta")
    assert numbers.device.type == "cpu"
    assert numbers.to("meta").device.type == "meta"
    del weight


@clause("19.place.guard", "19.listing.hard_coded")
@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
def test_without_a_gpu_only_the_guarded_listing_runs() -> None:
    layer = nn.Linear(1, 1)
    if torch.cuda.is_available():  # method 1 asks first (line 1620)
        layer = layer.cuda()
    assert layer.weight.device.type == "cpu"
    with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA"):  # method 2 does not (line 1756)
        layer.to(torch.device("cuda:0"))


@clause("19.listing.no_timer", "19.listing.end_time")
def test_timed_training_records_start_and_end_of_every_epoch() -> None:
    shapes = Shapes(train=True, size=32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    loader = ResidentLoader(shapes, 16)
    progress = fit(network, nn.CrossEntropyLoss(), reference.SGD(network.parameters(), 0.01), loader, loader, epochs=2)
    assert all(metrics["images_per_second"] > 0 for metrics in progress.history)
    assert len(progress.history) == 2


@clause("19.device.choose")
@pytest.mark.parametrize(
    ("gpus", "mps", "expected"),
    [(2, False, "cuda:0"), (1, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")],
    ids=["two GPUs", "a GPU and MPS", "MPS", "neither"],
)
def test_auto_is_the_first_gpu_else_mps_else_the_cpu(
    gpus: int, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")
    if gpus:
        assert choose_device("cuda") == torch.device("cuda:0")
        assert choose_device(f"cuda:{gpus - 1}") == torch.device(f"cuda:{gpus - 1}")
    with pytest.raises(InputError, match=f"--device cuda:{gpus}: "):
        choose_device(f"cuda:{gpus}")


@clause("19.device.choose")
def test_a_device_is_chosen_by_name_and_a_missing_one_is_refused_with_the_available_ones() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert describe_device(torch.device("cpu")).startswith("cpu (")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match=r"--device cuda:99: there is no such device here; there is cpu"):
        choose_device("cuda:99")


# The simulated device


@on_simulated_device
def _arithmetic() -> None:
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]], device=NAME)
    assert isinstance(x, SimulatedTensor)
    assert x.device == torch.device(NAME, 0)
    assert (x @ x.t()).cpu().tolist() == [[5.0, -5.0], [-5.0, 25.0]]
    assert x.tolist() == [[1.0, -2.0], [3.0, 4.0]]
    assert x.t().stride() == (1, 2)
    assert repr(x.sum()) == f"tensor(6., device='{NAME}:0')"
    assert f"{x.sum()} {x.sum():.2f}" == "6.0 6.00"
    x[0, 0], x.t()[1] = 7.0, 0.0  # through views
    assert x.relu_() is x
    assert x.tolist() == [[7.0, 0.0], [3.0, 0.0]]
    weight = torch.ones(2, device=NAME, requires_grad=True)
    (x @ weight).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.device == x.device
    assert weight.grad.tolist() == [2 * (7 * 7 + 3 * 3), 0]


@on_simulated_device
def _modules_and_optimizers() -> None:
    for optimizer_class in (torch.optim.SGD, torch.optim.Adam, reference.SGD, reference.Adam, reference.AdamW):
        layer = nn.Linear(2, 1)
        weight = layer.weight
        optimizer = optimizer_class(layer.parameters(), lr=0.1)  # before it is moved, as a GPU allows
        layer.to(NAME)
        assert layer.weight is weight
        before = weight.detach().clone()
        layer(torch.ones(3, 2, device=NAME)).sum().backward()
        optimizer.step()
        assert weight.device.type == NAME
        assert not torch.equal(weight, before)
    layer.double()
    assert layer.weight.dtype == torch.float64
    assert layer.weight.raw.dtype == torch.float64  # pyright: ignore[reportAttributeAccessIssue]


@on_simulated_device
def _randomness() -> None:
    torch.manual_seed(3)
    first, host = torch.rand(4, device=NAME), torch.rand(4)
    torch.manual_seed(3)
    torch.rand(4)  # random numbers of the host do not affect the device
    assert torch.equal(torch.rand(4, device=NAME), first)
    assert first.tolist() != host.tolist()
    with pytest.raises(RuntimeError, match="for generator but found 'cpu'"):
        torch.rand(4, device=NAME, generator=torch.Generator())


@on_simulated_device
def _mixing() -> None:
    x, host = torch.ones(2, device=NAME), torch.ones(2)
    for mixed in (
        lambda: x + host,
        lambda: host + x,
        lambda: host.add_(x),
        lambda: torch.cat([x, host]),
        lambda: x @ host,
        lambda: torch.where(x > 0, host, x),
        lambda: torch.gather(x, 0, torch.tensor([0])),
        lambda: host[torch.tensor([0], device=NAME)],
        lambda: host + torch.tensor(1.0, device=NAME),
        lambda: torch.stack([torch.tensor(1.0), torch.tensor(1.0, device=NAME)]),
    ):
        with pytest.raises(RuntimeError, match=OTHER_DEVICE):
            mixed()
    # operations that CUDA allows
    assert (x + torch.tensor(2.0)).tolist() == [3, 3]
    assert x[torch.tensor([1])].tolist() == [1]
    assert host.copy_(x + 1).tolist() == [2, 2]
    with pytest.raises(TypeError, match="copy it to the host first"):
        x.numpy()


@on_simulated_device
def _saving() -> None:
    layer = nn.Linear(2, 2).to(NAME)
    file = io.BytesIO()
    torch.save({"state": layer.state_dict(), "turned": torch.arange(6.0, device=NAME).reshape(2, 3).t()}, file)

    def loaded(map_location: Any = None) -> Any:
        file.seek(0)
        return torch.load(file, map_location=map_location, weights_only=True)

    for place, kind in ((None, NAME), ("cpu", "cpu"), (NAME, NAME)):
        content = loaded(place)
        assert content["state"]["weight"].device.type == kind
        assert content["state"]["weight"].tolist() == layer.weight.tolist()
        assert content["turned"].stride() == (1, 3)
        assert content["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    with unplugged():
        assert loaded("cpu")["turned"].device.type == "cpu"
        with pytest.raises(RuntimeError, match="map_location"):
            loaded()


@on_simulated_device
def _waiting() -> None:
    x, host = torch.ones(3, device=NAME), torch.ones(3)
    with waits() as none:
        host.to(NAME, non_blocking=True)
        torch.add(x.sum(), x[x.long()].max())
        x.to(NAME)
    assert none == []
    with waits() as noted:
        x.sum().item()
        x.cpu()
        host.to(NAME)
        x[x > 0]
        x[torch.tensor([0])]
        x.nonzero()
        torch.tensor([1.0], device=NAME)
        if x.max() > 0:
            bool(torch.equal(x, x))
    assert [name.split(".")[1] for name in noted] == [
        *("_local_scalar_dense", "_to_copy", "copy_", "index", "index", "nonzero", "_copy_from"),
        *("_local_scalar_dense", "equal"),
    ]


@clause("19.simulated.device")
@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [_arithmetic, _modules_and_optimizers, _randomness, _mixing, _saving, _waiting],
    ids=["arithmetic", "modules and optimizers", "randomness", "mixing", "saving", "waiting"],
)
def test_the_simulated_device_computes_and_refuses_as_a_gpu_does(check: Callable[[], None]) -> None:
    check()


# Planted bugs are caught


class _Halves(nn.Module):
    """Wrong: a tensor that is not a buffer remains on its device; right: a buffer moves."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        factor = torch.full((4,), 0.5)
        if wrong:
            self.factor = factor
        else:
            self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Padded(nn.Module):
    """Wrong: a tensor created in forward is on the default device; right: on the device of the input."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(len(x), 1) if self.wrong else x.new_zeros(len(x), 1)], dim=1)


def _planted(where: str, *, wrong: bool) -> None:
    """A short training on the device; `wrong` selects a planted bug."""
    network = nn.Linear(4, 3).to(NAME)
    images, targets = torch.ones(2, 4), torch.tensor([0, 2])
    if where == "images left on the CPU":
        network(images if wrong else images.to(NAME))
    elif where == "tensors moved without taking the result":
        moved = images.to(NAME)
        network(images if wrong else moved)
    elif where == "targets left on the CPU":
        nn.functional.cross_entropy(network(images.to(NAME)), targets if wrong else targets.to(NAME))
    elif where == "class weights left on the CPU":
        loss = nn.CrossEntropyLoss(weight=torch.ones(3))
        (loss if wrong else loss.to(NAME))(network(images.to(NAME)), targets.to(NAME))
    elif where == "a constant that is no buffer":
        _Halves(wrong=wrong).to(NAME)(images.to(NAME))
    elif where == "a tensor made on the default device":
        _Padded(wrong=wrong).to(NAME)(images.to(NAME))
    elif where == "positions counted on the CPU":
        table = nn.Embedding(4, 2).to(NAME)
        table(torch.arange(4) if wrong else torch.arange(4, device=NAME))
    elif where == "an index where CUDA takes none of the CPU":
        scores = network(images.to(NAME))
        scores.gather(1, targets[:, None] if wrong else targets[:, None].to(NAME))
    elif where == "counts kept on the CPU":
        right = torch.zeros(3, device="cpu" if wrong else NAME)
        right += nn.functional.one_hot(network(images.to(NAME)).argmax(1), 3).sum(0)
    elif where == "a generator of the CPU":
        draw = {"generator": torch.Generator()} if wrong else {}
        torch.randn(4, device=NAME, **draw)  # pyright: ignore[reportArgumentType, reportCallIssue]
    elif where == "a result taken to NumPy from the device":
        scores = network(images.to(NAME)).detach()
        (scores if wrong else scores.cpu()).numpy()
    elif where == "an optimizer's state left on the CPU":
        optimizer = reference.SGD(network.parameters(), lr=0.1, momentum=0.9)
        network(images.to(NAME)).sum().backward()
        optimizer.state[network.weight]["momentum_buffer"] = torch.ones(3, 4, device="cpu" if wrong else NAME)
        optimizer.step()
    elif where == "a missing map_location":
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        with unplugged():
            torch.load(file, map_location=None if wrong else "cpu")
    else:
        raise AssertionError(where)


BUGS = (
    *("images left on the CPU", "tensors moved without taking the result", "targets left on the CPU"),
    *("class weights left on the CPU", "a constant that is no buffer", "a tensor made on the default device"),
    *("positions counted on the CPU", "an index where CUDA takes none of the CPU", "counts kept on the CPU"),
    *("a generator of the CPU", "a result taken to NumPy from the device", "an optimizer's state left on the CPU"),
    "a missing map_location",
)


@clause("19.place.targets", "19.simulated.planted")
@pytest.mark.slow
@on_simulated_device
def test_planted_bugs_of_placement_are_caught() -> None:
    for where in BUGS:
        _planted(where, wrong=False)
        try:
            _planted(where, wrong=True)
        except (RuntimeError, TypeError) as error:
            if "device" not in str(error):
                raise
        else:
            pytest.fail(f"{where}: was not caught")


# Lines of the reference with likely mistakes in them, none of which tests on the CPU would detect.
SLIPS = (
    ("reference.training", "targets.to(device))\n        loss.b", "targets)\n        loss.b", "whole"),
    (
        "reference.training",
        "compute(network, group.part(images).to(device), precision)",
        "compute(network, group.part(images), precision)",
        "whole",
    ),
    ("reference.training", "targets = targets.to(device)\n", "targets = targets.cpu()\n", "whole"),
    ("reference.training", "torch.cat(labels).cpu()", "torch.cat(labels)", "whole"),
    ("reference.inference", ".to(like.device).to(like.dtype)", ".to(like.dtype)", "whole"),
    ("reference.fast.pooling", "dtype=torch.int32, device=device)", "dtype=torch.int32)", "AvgPool2d"),
    ("reference.fast.pooling", "torch.arange(n, device=input.device)", "torch.arange(n)", "AdaptiveAvgPool2d"),
    ("reference.nn.attention", "dtype=torch.bool, device=query.device)", "dtype=torch.bool)", "attention, causal"),
    (
        "reference.optim",
        "torch.zeros_like(parameter, memory_format=torch.preserve_format)",
        "torch.zeros(parameter.shape, dtype=parameter.dtype)",
        "Adam",
    ),
)


@clause("19.simulated.planted")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "stands", "slip", "where"), SLIPS, ids=[f"{m}: {s.strip()}" for m, s, _, _ in SLIPS]
)
@on_simulated_device
def test_a_wrong_device_in_the_reference_is_detected(
    module: str, stands: str, slip: str, where: str, tmp_path: Path
) -> None:
    source = getsource(import_module(module))
    assert source.count(stands) == 1, "the reference says it in other words now"
    wrong = import_module(module).__dict__
    exec(compile(source.replace(stands, slip), f"{module}, wrong", "exec"), wrong)
    for names in (globals(), reference.__dict__):  # modules that imported from there would keep the wrong objects
        names |= {name: wrong[name] for name in names if getattr(wrong.get(name), "__module__", None) == module}
    trial = (lambda: _whole_training(tmp_path)) if where == "whole" else (lambda: _run_case(where, NAME))
    with pytest.raises((RuntimeError, ValueError, TypeError, InputError), match=r"device|is on|map_location"):
        trial()


# Every component


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _classes(n: int, among: int) -> Tensor:
    return torch.arange(n) % among


def _layer(name: str, *arguments: Any, **named: Any) -> Callable[..., Any]:
    def case(device: str, *inputs: Tensor) -> tuple[Any, list[Tensor]]:
        torch.manual_seed(0)
        layer = getattr(reference, name)(*arguments, **named).to(device)
        return layer(*inputs), [*layer.parameters(), *layer.buffers()]

    return case


def _function(name: str, *arguments: Any, **named: Any) -> Callable[..., Any]:
    return lambda device, *inputs: (getattr(reference, name)(*inputs, *arguments, **named), [])


def _optimizer(name: str, **named: Any) -> Callable[..., Any]:
    def case(device: str, x: Tensor) -> tuple[Any, list[Tensor]]:
        parameter = nn.Parameter(x.detach().clone())
        optimizer = getattr(reference, name)([parameter], lr=0.1, **named)
        kept = optimizer.state_dict()
        for _ in range(3):
            optimizer.zero_grad()
            (parameter * x).square().sum().backward()
            optimizer.step()
            kept = optimizer.state_dict()
            optimizer.load_state_dict(kept)
        state = [v for s in kept["state"].values() for k, v in s.items() if isinstance(v, Tensor) and k != "step"]
        return (parameter * x).sum(), [parameter.detach(), *state]

    return case


IMAGES, ROWS, SEQUENCE = _numbers(2, 3, 6, 6), _numbers(4, 5), _numbers(3, 2, 4)
CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "conv2d": (_function("conv2d", padding=1), (IMAGES, _numbers(4, 3, 3, 3), _numbers(4))),
    "Conv2d": (_layer("Conv2d", 3, 4, 3, padding=1, padding_mode="reflect"), (IMAGES,)),
    "max_pool2d": (_function("max_pool2d", 2, ceil_mode=True), (IMAGES,)),
    "MaxPool2d": (_layer("MaxPool2d", 2, return_indices=True), (IMAGES,)),
    "avg_pool2d": (_function("avg_pool2d", 3, padding=1, count_include_pad=False), (IMAGES,)),
    "AvgPool2d": (_layer("AvgPool2d", 3, padding=1, count_include_pad=False), (IMAGES,)),
    "adaptive_avg_pool2d": (_function("adaptive_avg_pool2d", 4), (IMAGES,)),
    "AdaptiveAvgPool2d": (_layer("AdaptiveAvgPool2d", 4), (IMAGES,)),
    **{
        name: (_function(name, *extra), (ROWS,))
        for name, *extra in (("relu",), ("leaky_relu",), ("sigmoid",), ("tanh",), ("softmax", 1), ("log_softmax", 1))
    },
    **{
        name: (_layer(name, *extra), (ROWS,))
        for name, *extra in (("ReLU",), ("LeakyReLU",), ("Sigmoid",), ("Tanh",), ("Softmax", 1), ("LogSoftmax", 1))
    },
    "linear": (_function("linear"), (ROWS, _numbers(3, 5), _numbers(3))),
    "Linear": (_layer("Linear", 5, 3), (ROWS,)),
    "flatten": (_function("flatten", 1), (IMAGES,)),
    "Flatten": (_layer("Flatten"), (IMAGES,)),
    "dropout": (_function("dropout", 0.0), (ROWS,)),
    "Dropout": (_layer("Dropout", 0.0), (ROWS,)),
    "batch_norm": (_function("batch_norm", None, None, training=True), (IMAGES,)),
    "BatchNorm2d": (_layer("BatchNorm2d", 3), (IMAGES,)),
    "BatchNorm2d, cumulative": (_layer("BatchNorm2d", 3, momentum=None), (IMAGES,)),
    "layer_norm": (_function("layer_norm", (5,)), (ROWS,)),
    "LayerNorm": (_layer("LayerNorm", 5), (ROWS,)),
    "embedding": (_function("embedding"), (_classes(4, 3), _numbers(3, 2))),
    "Embedding": (_layer("Embedding", 3, 2, padding_idx=0), (_classes(4, 3),)),
    "RNN": (_layer("RNN", 4, 3, num_layers=2, bidirectional=True), (SEQUENCE,)),
    "LSTM": (_layer("LSTM", 4, 3, proj_size=2), (SEQUENCE,)),
    "GRU": (_layer("GRU", 4, 3), (SEQUENCE,)),
    "scaled_dot_product_attention": (_function("scaled_dot_product_attention"), (SEQUENCE, SEQUENCE + 1, SEQUENCE)),
    "attention, causal": (
        _function("scaled_dot_product_attention", is_causal=True),
        (SEQUENCE, SEQUENCE + 1, SEQUENCE),
    ),
    "MultiheadAttention": (_layer("MultiheadAttention", 4, 2, add_bias_kv=True, add_zero_attn=True), (SEQUENCE,) * 3),
    "TransformerEncoderLayer": (_layer("TransformerEncoderLayer", 4, 2, 8, dropout=0.0), (SEQUENCE,)),
    "Sequential": (lambda device, x: _sequential(device, x), (ROWS,)),
    "Ocean": (_layer("Ocean", layers=reference), (_numbers(2, 3, 32, 32),)),
    "append_classifier": (lambda device, x: _edited("append_classifier")(device, x), (ROWS,)),
    "replace_classifier": (lambda device, x: _edited("replace_classifier")(device, x), (ROWS,)),
    "l1_loss": (_function("l1_loss"), (ROWS, ROWS + 1)),
    "L1Loss": (_layer("L1Loss", reduction="none"), (ROWS, ROWS + 1)),
    "mse_loss": (_function("mse_loss"), (ROWS, ROWS + 1)),
    "MSELoss": (_layer("MSELoss", reduction="sum"), (ROWS, ROWS + 1)),
    "nll_loss": (_function("nll_loss", ignore_index=2), (ROWS, _classes(4, 5))),
    "NLLLoss": (_layer("NLLLoss", torch.ones(5)), (ROWS, _classes(4, 5))),
    "cross_entropy": (_function("cross_entropy", label_smoothing=0.1), (ROWS, _classes(4, 5))),
    "CrossEntropyLoss": (_layer("CrossEntropyLoss", torch.ones(5), label_smoothing=0.1), (ROWS, _classes(4, 5))),
    "SGD": (_optimizer("SGD", momentum=0.9, nesterov=True), (ROWS,)),
    "Adam": (_optimizer("Adam", amsgrad=True), (ROWS,)),
    "AdamW": (_optimizer("AdamW"), (ROWS,)),
}
"""A use of each component, and its inputs."""

ON_THE_HOST = {
    *("LabeledFolder", "CIFAR10", "ImageTree", "Shapes", "DataLoader"),  # images and batches begin on the host
    "read_legacy_checkpoint",  # files are read to the host
    *("Compose", "ToTensor", "Normalize", "Resize", "RandomCrop", "RandomHorizontalFlip"),
    *("conv2d_output_size", "pool2d_output_size", "same_padding"),  # of numbers, not of tensors
    "vgg16",  # half a gigabyte of layers that all have their own cases
    "predict",  # the whole training below asks it
}


def _edited(name: str) -> Callable[..., Any]:
    """Add a layer to a classifier that is already on the device."""

    def case(device: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        network = nn.Module()
        network.classifier = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4)).to(device)
        torch.manual_seed(0)
        getattr(reference, name)(network, 2)
        for parameter in network.parameters():  # random numbers of the device differ from those of the CPU
            nn.init.constant_(parameter, 0.1)
        return network.classifier(x), list(network.parameters())

    return case


def _sequential(device: str, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    network = reference.Sequential(reference.Linear(5, 3), reference.ReLU()).to(device)
    return network(x), list(network.parameters())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _run_case(name: str, device: str) -> list[Tensor]:
    """All results of a component: outputs, gradients of inputs and parameters, state."""
    case, inputs = CASES[name]
    placed = [x.to(device, copy=True).requires_grad_(x.is_floating_point()) for x in inputs]
    output, state = case(device, *placed)
    outputs = list(_tensors(output))
    flowing = [value for value in outputs if value.requires_grad]
    sum((value.square().sum() for value in flowing), torch.zeros((), device=device)).backward()
    gradients = [x.grad for x in [*placed, *state] if x.requires_grad and x.grad is not None]
    return [*outputs, *gradients, *state]


@clause("19.place.every_component")
@pytest.mark.slow
@on_simulated_device
def test_every_component_computes_the_same_on_the_device_and_on_the_cpu() -> None:
    assert {*COMPONENTS} - ON_THE_HOST == {name for name in CASES if ", " not in name}
    for name in CASES:
        here, there = _run_case(name, "cpu"), _run_case(name, NAME)
        assert len(here) == len(there) >= 1, name
        assert {value.device.type for value in here} == {"cpu"}, name
        assert {value.device.type for value in there} == {NAME}, name
        for ours, theirs in zip(here, there, strict=True):  # the same kernels compute, so bit for bit
            assert torch.equal(ours, theirs.cpu()), name


class _NoFloat64(TorchDispatchMode):
    """The simulated device refuses float64, as MPS does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(value.device.type == NAME and value.dtype == torch.float64 for value in _tensors(result)):
            raise TypeError(f"{func}: the device has no float64")
        return result


@clause("19.device.no_float64")
@pytest.mark.slow
@on_simulated_device
def test_a_device_without_float64_computes_every_component_and_a_training(tmp_path: Path) -> None:
    with _NoFloat64():
        with pytest.raises(TypeError, match="no float64"):
            torch.ones(2, device=NAME).double()
        refused = {}
        for name in CASES:
            try:
                _run_case(name, NAME)
            except TypeError as error:
                refused[name] = str(error)
        assert refused == {}, refused
        _whole_training(tmp_path)


@clause("19.place.every_component")
@pytest.mark.slow
@on_simulated_device
def test_dropout_draws_on_the_device() -> None:
    x = torch.ones(1000, device=NAME, requires_grad=True)
    host = torch.get_rng_state()
    output = reference.dropout(x, 0.5)
    output.sum().backward()
    assert output.device == x.device
    assert sorted({*output.tolist()}) == [0.0, 2.0]
    assert x.grad is not None
    assert torch.equal(x.grad, output.detach())
    assert torch.equal(torch.get_rng_state(), host)


# A whole training


def _whole_training(folder: Path) -> Any:
    """Fit, evaluate, save, load without a GPU, resume, predict; on the device."""
    checkpoint.PLAIN = (*checkpoint.PLAIN, SimulatedTensor)  # a GPU's tensors have no class of their own
    train_set, test_set = Shapes(train=True, size=48), Shapes(train=False, size=20)
    network = Ocean(10, layers=reference).to(NAME, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = reference.SGD(network.parameters(), 0.01, momentum=0.9)
    loss = reference.CrossEntropyLoss()
    loaders = [ResidentLoader(part, 16, device="cpu") for part in (train_set, test_set)]  # so that fit has to move
    progress = fit(network, loss, optimizer, *loaders, epochs=1)
    assert {p.device.type for p in network.parameters()} == {NAME}
    save_checkpoint(folder / "a.pt", network, train_set.classes, training={"optimizer": optimizer.state_dict()})
    with unplugged():
        content = load_checkpoint(folder / "a.pt")
    again = build_network(content)
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    again.to(NAME)
    resumed = reference.SGD(again.parameters(), 0.01, momentum=0.9)
    resumed.load_state_dict(content["training"]["optimizer"])
    fit(again, loss, resumed, *loaders, epochs=1)
    judged = evaluate(again, loss, loaders[1])
    assert judged is not None
    assert judged.confusion.device.type == "cpu"
    Image.fromarray(test_set.images[0].permute(1, 2, 0).numpy()).save(folder / "a.png")
    (answer,) = predict(again, list(train_set.classes), [folder / "a.png"])
    assert answer.error is None
    return progress, judged, answer


@clause("19.training.whole", "19.checkpoint.travels")
@pytest.mark.slow
@on_simulated_device
def test_a_whole_training_gives_the_same_on_the_device_and_on_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    progress, _, answer = _whole_training(tmp_path)
    torch.manual_seed(0)
    network = Ocean(10, layers=reference).to(memory_format=torch.channels_last)
    loaders = [ResidentLoader(Shapes(train=train, size=size), 16) for train, size in ((True, 48), (False, 20))]
    optimizer = reference.SGD(network.parameters(), 0.01, momentum=0.9)
    here = fit(network, reference.CrossEntropyLoss(), optimizer, *loaders, epochs=1)
    for metrics in (*progress.history, *here.history):
        del metrics["images_per_second"]
    assert progress.history == here.history
    assert sum(share for _, share in answer.classes) <= 1


@clause("19.training.no_waiting")
@pytest.mark.slow
@pytest.mark.parametrize("scaled", [False, True], ids=["", "loss scaled"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in stored order", "shuffled"])
@on_simulated_device
def test_no_step_of_a_training_waits_for_the_device(shuffle: bool, scaled: bool) -> None:
    network = Ocean(10).to(NAME)
    loaders = [
        ResidentLoader(Shapes(train=train, size=size), 4, shuffle and train, device=NAME)
        for train, size in ((True, 40), (False, 8))
    ]
    for loader in loaders:
        next(iter(loader))  # all images move once
    counts = []
    for size in (5, 10):  # batches an epoch
        optimizer: Any = reference.SGD(network.parameters(), 0.01, momentum=0.9)
        how = {}
        if scaled:
            optimizer = ScaledOptimizer(optimizer, torch.device(NAME, 0))
            how = {"loss_scale": optimizer.factor}
        with waits() as noted:
            fit(network, nn.CrossEntropyLoss(), optimizer, list(loaders[0])[:size], loaders[1], epochs=1, **how)
        counts.append(noted)
    assert counts[0] == counts[1], "the longer epoch waits no more often than the short one"
    assert len(counts[0]) <= 5  # the losses of the epoch, and the four results of the evaluation, once each
    with waits() as noted:
        sum(1 for _ in loaders[0])
    assert noted == []


@clause("19.training.no_waiting")
@pytest.mark.slow
@on_simulated_device
def test_a_step_that_reads_the_loss_on_the_host_is_detected() -> None:
    network = nn.Linear(2, 2).to(NAME)
    with waits() as noted:
        for _ in range(3):
            loss = network(torch.ones(1, 2, device=NAME)).sum()
            loss.backward()
            loss.item()  # as in the tutorial's listing, if it did not read only each hundredth step
    assert noted == ["aten._local_scalar_dense.default"] * 3


@clause("19.training.whole")
@pytest.mark.slow
@on_simulated_device
def test_the_command_trains_and_resumes_on_the_device(tmp_path: Path) -> None:
    """All of `train_full.py` except its parser and the TensorBoard graph, which cannot be traced here."""
    checkpoint.PLAIN = (*checkpoint.PLAIN, SimulatedTensor)
    vars(TRAIN)["choose_device"] = lambda name: torch.device(NAME, 0)
    folder.Tracker.graph = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    size: dict[str, Any] = {"dataset": "shapes", "limit_train": 48, "limit_test": 20, "batch_size": 16}
    settings = Settings(**size, shuffle=True, momentum=0.9, precision="float32", output=tmp_path / "run", quiet=True)
    assert TRAIN.train(replace(settings, epochs=2, output=tmp_path / "whole")) == 0
    assert TRAIN.train(replace(settings, epochs=1)) == 0
    kind, _ = torch.load(tmp_path / "run/last.pt", map_location="cpu")["training"]["rng"]["device"]
    assert kind == NAME
    vars(TRAIN)["seed_everything"] = lambda *_, **__: torch.manual_seed(99)  # must not matter
    assert TRAIN.train(replace(settings, epochs=2, output=None, resume=tmp_path / "run")) == 0
    whole, resumed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "run"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    ours, theirs = (content["training"]["rng"] for content in (whole, resumed))
    assert torch.equal(ours["cpu"], theirs["cpu"])
    assert torch.equal(ours["device"][1], theirs["device"][1])


@clause("19.checkpoint.travels")
@pytest.mark.slow
@on_simulated_device
def test_device_generator_state_is_restored_on_the_same_device_only() -> None:
    device = torch.device(NAME, 0)
    states = random_states(device)
    here, there = torch.rand(4), torch.rand(4, device=device)
    set_random_states(states, device)
    assert torch.equal(torch.rand(4), here)
    assert torch.equal(torch.rand(4, device=device), there)
    set_random_states(states, torch.device("cpu"))  # without the device: the CPU's part only
    assert torch.equal(torch.rand(4), here)
    assert [*random_states(torch.device("cpu"))] == ["cpu"]
    set_random_states(random_states(torch.device("cpu")), device)  # begun on the CPU


# float16


@clause("19.training.loss_scale")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_loss_scaling_equals_gradscaler(momentum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps are not finite: the first one, one in the middle, two in a row; three good ones double the factor."""
    monkeypatch.setattr(scaling, "GROWTH_INTERVAL", 3)
    bad = {0, 4, 9, 10}
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = ScaledOptimizer(reference.SGD(ours.parameters(), 0.1, momentum), torch.device("cpu"))
    expected = torch.optim.SGD(theirs.parameters(), 0.1, momentum)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    factors = []
    for step in range(20):
        if step == 12:  # saved and resumed
            kept = optimizer.state_dict()
            optimizer = ScaledOptimizer(optimizer.optimizer, torch.device("cpu"))
            optimizer.load_state_dict(kept)
        x = torch.full((4, 3), float("inf")) if step in bad else torch.randn(4, 3)
        optimizer.zero_grad()
        ours(x).square().mean().backward(optimizer.factor)
        optimizer.step()
        expected.zero_grad()
        scaler.scale(theirs(x).square().mean()).backward()
        scaler.step(expected)
        scaler.update()
        factors.append(optimizer.factor.item())
        assert factors[-1] == scaler.get_scale(), step
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, two), step
    assert {a / b for a, b in pairwise(factors)} == {0.5, 1.0, 2.0}  # all three happened


@clause("19.training.loss_scale")
def test_loss_scaling_keeps_gradients_too_small_for_float16() -> None:
    def gradient(scale: Tensor | None) -> Tensor:
        x = torch.full((1,), 1e-4, dtype=torch.float16)
        weight = torch.ones(1, requires_grad=True)
        with torch.autocast("cpu", torch.float16):
            y = nn.functional.linear(x, weight[None])
        (y.float() * 1e-4).sum().backward(scale)  # the gradient is 1e-8, below 2**-24
        assert weight.grad is not None
        return weight.grad

    assert gradient(None).item() == 0
    scaled = gradient(torch.tensor(2.0**16)) / 2**16
    assert abs(scaled.item() / 1e-8 - 1) < 3 * torch.finfo(torch.float16).eps  # x, the gradient of y, their product


@clause("19.precision.float32")
def test_precision_float32_is_not_tf32() -> None:
    settings, name, fast, exact = tf32_settings()
    before = [getattr(setting, name) for setting in settings]
    try:
        for setting in settings:
            setattr(setting, name, fast)
        choose_precision("float32", torch.device("cpu"))
        assert {getattr(setting, name) for setting in settings} == {fast}
        assert choose_precision("float32", torch.device("cuda", 0)) == torch.float32
        assert {getattr(setting, name) for setting in settings} == {exact}
    finally:
        for setting, was in zip(settings, before, strict=True):
            setattr(setting, name, was)


# Missing resources


def host_error() -> RuntimeError:
    """PyTorch's error for too large an allocation."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@clause("19.device.out_of_memory")
@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (torch.OutOfMemoryError(""), True),
        (host_error, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
    ids=["of a GPU", "of a GPU without words", "of the host", "shapes", "another error of a GPU"],
)
def test_a_lack_of_memory_is_distinguished_from_other_errors(error: Any, is_lack: bool) -> None:
    found: Any = error() if callable(error) else error
    assert out_of_memory(found) is is_lack


@clause("19.device.compile_network")
@pytest.mark.parametrize(
    ("how", "device", "asked"),
    [
        ("off", "cpu", None), ("off", "cuda", None),
        ("graphs", "cpu", {"dynamic": False, "backend": "aot_eager"}),
        ("graphs", "mps", {"dynamic": False, "backend": "aot_eager"}),
        ("graphs", "cuda", {"dynamic": False, "backend": "cudagraphs"}),
        ("full", "cpu", {"dynamic": False, "mode": "reduce-overhead"}),
        ("full", "cuda", {"dynamic": False, "mode": "reduce-overhead"}),
    ],
)  # fmt: skip
def test_a_network_is_compiled_in_place_as_the_setting_says(
    how: str, device: str, asked: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: calls.append((self, options)))
    network = nn.Linear(2, 3)
    compile_network(network, how, torch.device(device))
    assert calls == ([] if asked is None else [(network, asked)])


@clause("19.training.compiled")
@pytest.mark.slow
def test_compile_is_an_error_on_a_machine_without_a_compiler(tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("there is no compiler")

    network = nn.Linear(1, 1)
    network.compile(backend=broken)
    with (
        pytest.raises(
            InputError, match=r"^--compile full does not work here \(.*there is no compiler.*\); leave it out$"
        ),
        explained(Settings(compile="full"), torch.device("cpu"), tmp_path / "last.pt"),
    ):
        network(torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="ours"), explained(Settings(), torch.device("cpu"), tmp_path):
        raise RuntimeError("ours")


# The tests that need a GPU


@clause("19.rehearsal.skips")
@pytest.mark.slow
@pytest.mark.skipif(choose_device("auto").type != "cpu", reason="what a machine without a GPU says")
def test_without_a_gpu_each_test_that_needs_one_is_skipped_with_one_reason_and_counted() -> None:
    words = ("spec/test_19_convergence.py", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *words]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    (skipped,) = re.findall(r"^SKIPPED \[(\d+)\] \S*plugin\.py:\d+: there is no accelerator here;", found.stdout, re.M)
    assert int(skipped) >= 10
    assert f"{skipped} skipped" in found.stdout.splitlines()[-1]
    assert "passed" not in found.stdout.splitlines()[-1]
