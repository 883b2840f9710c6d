"""Chapter 17: whole networks in files of any PyTorch, read without their classes and without running anything."""

import copyreg
import datetime
import gzip
import io
import math
import os
import pickle
import re
import struct
import sys
import time
import tracemalloc
import types
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import prune

import reference
from reference.checkpoint import save_checkpoint
from reference.errors import InputError
from spec.support.assertions import assert_equal
from spec.support.clauses import clause
from spec.support.command import run
from spec.support.fuzzing import fuzz
from spec.support.torch_files import Call, Fresh, Global, Member, Object, Persistent, Raw, Writer, archive, pickled
from spec.support.traps import EXTENSION, text, tricks
from spec.support.watching import Allocations, watched
from spec.support.zip_lies import LIES

Read = Callable[..., Any]
FORMATS = pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])


def save(thing: Any, path: Path, old: bool = False, protocol: int = 2) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about source code that is not found
        torch.save(thing, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(says: str = "") -> Any:
    """Refused in one line that names the file and the reason."""
    return pytest.raises(ValueError, match=rf"(?s)net\.pth.*{says}")


class Ocean(nn.Module):
    """The tutorial's network, lines 1344 to 1361."""

    def __init__(self) -> None:
        super().__init__()
        self.model1 = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, 64),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model1(x)


class Hidden(nn.Module):
    """A class with a buffer of either kind, and a forward that nobody can guess."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)
        self.act, self.squash = torch.tanh, nn.functional.relu
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("left_out", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Saves an object of a class in a module that exists only for that moment."""

    def save_and_forget(kind: type, path: Path, module: str = "their_code", old: bool = False, **made: Any) -> Any:
        home = types.ModuleType(module)
        own = type(kind.__name__, (kind,), {"__module__": module, "__qualname__": kind.__name__})
        setattr(home, kind.__name__, own)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, home)
            thing = own(**made)
            save(thing, path, old)
        return thing

    return save_and_forget


# Content of files


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU(True), nn.AvgPool2d(2),
        nn.Conv2d(4, 4, (3, 1), stride=2, dilation=(2, 1), groups=2, bias=False), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d((3, None)), nn.Flatten(), nn.LeakyReLU(0.3), nn.Linear(84, 5), nn.LogSoftmax(dim=1),
    ),
    "named parts": lambda: nn.Sequential(OrderedDict(one=nn.Linear(3072, 2), two=nn.Sequential(), three=nn.Sigmoid())),
    "an LSTM": lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True),
    "a GRU": lambda: nn.GRU(4, 3),
    "an RNN": lambda: nn.RNN(4, 3, nonlinearity="relu", bias=False),
    "attention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "an encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", norm_first=True),
    "normalizations": lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.LayerNorm(4, bias=False), nn.GELU()),
    "nothing": lambda: nn.Sequential(),
}  # fmt: skip

INPUTS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "convolutions": lambda: (torch.randn(2, 3, 32, 28),),
    "named parts": lambda: (torch.randn(2, 3072),),
    "attention": lambda: (torch.randn(3, 2, 4),) * 3,
    "normalizations": lambda: (torch.tensor([[0, 1, 4]]),),
}  # fmt: skip


@clause("17.legacy.state_dict", "17.legacy.tree", "17.legacy.network")
@FORMATS
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_pytorch_s_layers_comes_back_whole(
    read_legacy_checkpoint: Read, tmp_path: Path, name: str, old: bool
) -> None:
    network = NETWORKS[name]()
    found = read_legacy_checkpoint(save(network, tmp_path / "net.pth", old))
    assert list(found.state_dict) == list(network.state_dict())
    for key, tensor in network.state_dict().items():
        assert_equal(found.state_dict[key], tensor, key)
    assert found.tree == repr(network)
    assert repr(found.network) == repr(network)
    inputs = INPUTS.get(name, lambda: (torch.randn(3, 2, 4),))()
    with torch.no_grad():
        outputs = [n.eval()(*inputs) for n in (network, found.network)]
    expected, got = (output[0] if isinstance(output, tuple) else output for output in outputs)
    assert_equal(got, expected, "the output of the network that was read")


@clause("17.legacy.class_missing")
@FORMATS
def test_the_tutorial_s_network_needs_no_class(
    read_legacy_checkpoint: Read, tmp_path: Path, gone: Callable[..., Any], old: bool
) -> None:
    # chapter 17, lines 1364 and 1370: ocean_save_method1.pth, which torch.load cannot read without the class
    network = gone(Ocean, tmp_path / "net.pth", old=old)
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        torch.load(tmp_path / "net.pth", weights_only=False)
    found = read_legacy_checkpoint(tmp_path / "net.pth")
    assert found.tree == repr(network)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(found.network(images), network(images), "the scores")
    assert any("their_code.Ocean" in note and "'model1'" in note for note in found.notes)  # what was taken for granted


@clause("17.legacy.sources")
def test_the_old_format_keeps_the_source_code_as_a_text(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    save(Hidden(), tmp_path / "net.pth", old=True)
    sources = read_legacy_checkpoint(tmp_path / "net.pth").sources
    assert [name.rpartition(".")[2] for name in sources] == ["Hidden", "Linear"]
    assert "def forward(self, x: Tensor) -> Tensor:" in next(iter(sources.values()))
    save(Hidden(), tmp_path / "net.pth")
    assert read_legacy_checkpoint(tmp_path / "net.pth").sources == {}


VGG_HEAD = """\
VGG(
  (features): Sequential(
    (0): Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU(inplace=True)
"""
VGG_TAIL = """\
  (avgpool): AdaptiveAvgPool2d(output_size=(7, 7))
  (classifier): Sequential(
    (0): Linear(in_features=25088, out_features=4096, bias=True)
    (1): ReLU(inplace=True)
    (2): Dropout(p=0.5, inplace=False)
    (3): Linear(in_features=4096, out_features=4096, bias=True)
    (4): ReLU(inplace=True)
    (5): Dropout(p=0.5, inplace=False)
    (6): Linear(in_features=4096, out_features=10, bias=True)
  )
)"""


@pytest.mark.slow
@clause("17.legacy.vgg")
@pytest.mark.parametrize("call", [False, True], ids=["method 1", "method 2 without parentheses"])
def test_the_tutorial_s_files_of_vgg16_open(read_legacy_checkpoint: Read, tmp_path: Path, call: bool) -> None:
    import torchvision

    network = torchvision.models.vgg16(weights=None, num_classes=10)
    save(network.state_dict if call else network, tmp_path / "net.pth")  # lines 1308 and 1326
    found = read_legacy_checkpoint(tmp_path / "net.pth")
    # chapter 16, lines 1240 to 1283: the network with 10 classes as it is printed, and its last bracket
    assert found.tree.startswith(VGG_HEAD)
    assert found.tree.endswith(VGG_TAIL)
    assert len(found.tree.splitlines()) == 45
    assert sum(tensor.numel() for tensor in found.state_dict.values()) == 138_357_544 - 990 * 4097
    assert len(found.state_dict) == 32
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert_equal(found.network.eval()(images), network.eval()(images), "the scores")
    assert any("without parentheses" in note for note in found.notes) is call


@pytest.mark.slow
@clause("17.legacy.state_dict_alone")
def test_a_state_dict_of_vgg16_is_enough(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.vgg16(weights=None, num_classes=3)
    found = read_legacy_checkpoint(save(network.state_dict(), tmp_path / "net.pth"))
    assert repr(found.network) == repr(network)
    for key, tensor in network.state_dict().items():
        assert_equal(found.network.state_dict()[key], tensor, key)
    _, names = found.classifier(size=(224, 224))
    assert len(names) == 3


@clause("17.legacy.vgg")
def test_parts_besides_vgg_s_own_are_never_run(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    def writer(extra: bool) -> bytes:
        torch.manual_seed(0)
        w = Writer("1.6", "cuda:0")
        parts = {
            "features": w.sequential(w.conv2d(nn.Conv2d(3, 2, 3, padding=1)), w.relu(), w.max_pool2d(nn.MaxPool2d(2))),
            "avgpool": w.module("torch.nn.modules.pooling.AdaptiveAvgPool2d", output_size=(7, 7)),
            "classifier": w.sequential(w.linear(nn.Linear(98, 4))),
        }
        if extra:
            parts["7"] = w.linear(nn.Linear(4, 10))  # what the tutorial's add_module does, line 1232
        return w.file(w.module("torchvision.models.vgg.VGG", children=parts))

    plain = read_legacy_checkpoint(written(tmp_path / "net.pth", writer(False)))
    found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer(True)))
    images = torch.rand(2, 3, 32, 32)
    assert_equal(found.network(images), plain.network(images), "the scores")
    assert found.tree.endswith("  (7): Linear(in_features=4, out_features=10, bias=True)\n)")
    assert any("'7'" in note and "never run" in note for note in found.notes)


@clause("17.legacy.unknown")
@FORMATS
def test_of_an_unknown_class_there_is_all_but_the_working_network(
    read_legacy_checkpoint: Read, tmp_path: Path, gone: Callable[..., Any], old: bool
) -> None:
    network = gone(Hidden, tmp_path / "net.pth", old=old)
    found = read_legacy_checkpoint(tmp_path / "net.pth")
    assert list(found.state_dict) == ["kept", "first.weight", "first.bias", "second.weight", "second.bias"]
    assert found.tree == repr(network)
    assert found.network is None
    assert any("their_code.Hidden" in note and "code" in note for note in found.notes)
    assert found.content.kind.name == "Hidden"
    assert [str(found.content.attributes[name]) for name in ("act", "squash")] == [
        "torch.tanh", "torch.nn.functional.relu"
    ]  # fmt: skip


@clause("17.legacy.unknown")
@pytest.mark.parametrize(
    "change",
    [
        lambda w, layer: w.module("their_code.Net", children={"one": layer, "two": w.relu()}),
        lambda w, layer: w.module("their_code.Net", children={"one": layer}, scale=3),
        lambda w, layer: w.module("their_code.Net", {"own": torch.ones(1)}, children={"one": layer}),
        lambda w, layer: w.module("their_code.Sequential", children={"0": layer, "1": w.relu()}),
        lambda w, layer: w.module("torch.nn.modules.container.ModuleList", children={"0": layer}),
        lambda w, layer: w.sequential(w.module("their_code.Linear", layer.state["_parameters"])),
        lambda w, layer: w.sequential(w.module("torch.nn.modules.linear.Linear", in_features=2, out_features=1)),
        lambda w, layer: w.sequential(Object(layer.kind, layer.state | {"in_features": 3})),
        lambda w, layer: w.sequential(Object(layer.kind, layer.state | {"in_features": -2})),
        lambda w, layer: w.sequential(Object(layer.kind, layer.state | {"in_features": 1 << 61})),
        lambda w, layer: w.sequential(Object(layer.kind, layer.state | {"in_features": {}})),
        lambda w, layer: w.sequential(Object(layer.kind, layer.state | {"_modules": {"0": w.relu()}})),
        lambda w, layer: w.sequential(
            Object(layer.kind, layer.state | {"_forward_hooks": OrderedDict({0: Global("their_code", "hook")})})
        ),
        lambda w, layer: w.sequential(layer, None),
        lambda w, layer: w.module("torch.nn.modules.container.Sequential", children={"forward": layer}),
        lambda w, layer: w.module("their_code.Net", children={"_steps": layer}),
        lambda w, layer: w.sequential(
            Object(layer.kind, layer.state | {"_buffers": OrderedDict(scale=w.tensor(torch.ones(1)))})
        ),
        lambda w, layer: w.module(
            "torch.nn.modules.container.Sequential", {"own": torch.ones(1)}, children={"0": layer}
        ),
        lambda w, layer: w.module(
            "torch.nn.modules.rnn.LSTM", {"weight": torch.ones(1)}, input_size=1, hidden_size=1, num_layers=10**9
        ),
    ],
    ids=[
        "two parts", "a setting of its own", "a parameter of its own", "a class that is called Sequential",
        "a ModuleList", "a class that is called Linear", "no weights", "weights of another shape", "a negative size",
        "an endless size", "a size that is a dictionary", "a layer with a part", "a hook", "a part that is None",
        "a part called forward", "a part called like ours", "a buffer of its own", "a Sequential with a parameter",
        "a billion layers",
    ],
)  # fmt: skip
def test_a_network_that_might_be_another_one_is_not_run(
    read_legacy_checkpoint: Read, tmp_path: Path, change: Callable[[Writer, Object], Any]
) -> None:
    writer = Writer()
    found = read_legacy_checkpoint(
        written(tmp_path / "net.pth", writer.file(change(writer, writer.linear(nn.Linear(2, 1)))))
    )
    assert found.network is None
    assert "(" in found.tree
    assert any(note.startswith("There is no working network: ") for note in found.notes)


@clause("17.legacy.as_saved")
@FORMATS
def test_modes_gradients_and_ties_are_restored(read_legacy_checkpoint: Read, tmp_path: Path, old: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    network[1].eval()
    network[0].bias.requires_grad_(False)
    found = read_legacy_checkpoint(save(network, tmp_path / "net.pth", old))
    assert [module.training for module in found.network] == [True, False, True]
    assert found.network[0].weight is found.network[2].weight
    assert [parameter.requires_grad for parameter in found.network.parameters()] == [True, False, True]
    assert not any(tensor.requires_grad for tensor in found.state_dict.values())
    state = found.state_dict
    assert state["0.weight"].data_ptr() == state["2.weight"].data_ptr()
    shared = nn.ReLU()
    found = read_legacy_checkpoint(save(nn.Sequential(shared, shared), tmp_path / "net.pth", old))
    assert found.network[0] is found.network[1]


@clause("17.legacy.as_saved")
def test_reading_leaves_the_random_numbers_alone(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    path = save(NETWORKS["convolutions"](), tmp_path / "net.pth")
    before = torch.get_rng_state()
    read_legacy_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)


@clause("17.legacy.layers")
def test_the_layers_may_come_from_another_namespace(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    path = save(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), tmp_path / "net.pth")
    found = read_legacy_checkpoint(path, layers=reference)
    assert [type(layer) for layer in found.network] == [reference.Linear, reference.ReLU]
    with torch.no_grad():
        x = torch.ones(1, 3)
        assert_equal(found.network(x), (x @ found.state_dict["0.weight"].mT + found.state_dict["0.bias"]).clamp(min=0))
    save(nn.Sequential(nn.Softplus()), path)
    found = read_legacy_checkpoint(path, layers=reference)
    assert found.network is None
    assert any("Softplus" in note for note in found.notes)


@clause("17.legacy.layers")
def test_networks_of_the_reference_s_layers_are_known_too(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    network = reference.Sequential(reference.Conv2d(1, 2, 3), reference.Flatten(), reference.Linear(8, 2))
    found = read_legacy_checkpoint(save(network, tmp_path / "net.pth"))
    assert found.tree == repr(network)
    assert [type(layer) for layer in found.network] == [nn.Conv2d, nn.Flatten, nn.Linear]
    found.network.load_state_dict(network.state_dict())


# Files of PyTorch 1


def old_ocean(writer: Writer, kind: Any = "__main__.Ocean") -> tuple[Any, nn.Module]:
    """The tutorial's network as a version of PyTorch describes it, and the network."""
    torch.manual_seed(0)
    ocean = Ocean()
    layers = []
    for layer in ocean.model1:
        match layer:
            case nn.Conv2d():
                layers.append(writer.conv2d(layer))
            case nn.MaxPool2d():
                layers.append(writer.max_pool2d(layer))
            case nn.Linear():
                layers.append(writer.linear(layer))
            case _:
                layers.append(writer.flatten())
    return writer.module(kind, children={"model1": writer.sequential(*layers)}), ocean


@clause("17.legacy.pytorch_1")
@pytest.mark.parametrize("location", ["cpu", "cuda:0"])
@pytest.mark.parametrize("version", ["1.5", "1.6", "1.13"])
@pytest.mark.slow
def test_a_file_of_pytorch_1_opens(read_legacy_checkpoint: Read, tmp_path: Path, version: str, location: str) -> None:
    writer = Writer(version, location)
    content, ocean = old_ocean(writer)
    found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))
    assert found.container == ("old" if version == "1.5" else "zip")
    assert found.tree == repr(ocean)
    for key, tensor in ocean.state_dict().items():
        assert_equal(found.state_dict[key], tensor, key)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert_equal(found.network(images), ocean(images), "the scores")


@clause("17.legacy.pytorch_1")
def test_files_put_together_by_hand_are_genuine(tmp_path: Path) -> None:
    """PyTorch reads them; and what it writes today is the same, byte for byte, where nothing has changed since 1.13."""
    for version in ("1.5", "1.6", "1.13"):
        writer = Writer(version)
        layer = nn.Linear(3, 2)
        path = written(tmp_path / "net.pth", writer.file(writer.sequential(writer.linear(layer))))
        loaded = torch.load(path, weights_only=False)
        assert_equal(loaded[0].weight, layer.weight)
    values = OrderedDict(a=torch.arange(3.0), b=torch.arange(6).reshape(2, 3), c=[1, -1, 300, 70000, 2**40, 1.5, None])
    writer = Writer("1.13")
    described = OrderedDict((k, writer.tensor(v) if isinstance(v, Tensor) else v) for k, v in values.items())
    save(values, path)
    assert b"data.pkl" in path.read_bytes()
    assert pickled(described) in path.read_bytes()
    plain = {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, [None]], "b": (True, False, "a"), "c": {"a": [1]}}
    assert pickled(plain) == pickle.dumps(plain, 2)


@clause("17.legacy.pytorch_1")
def test_classes_with_their_source_and_parts_of_storages_are_read(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer("1.5")
    ocean = Persistent(("module", Global("__main__", "Ocean"), "their/train.py", "class Ocean:\n    pass\n"))
    content, network = old_ocean(writer, ocean)
    found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))
    assert found.sources == {"__main__.Ocean": "class Ocean:\n    pass\n"}
    assert found.tree == repr(network)
    # PyTorch 0 saved a slice as a storage of its own that is a part of another one: (key, first, size)
    writer = Writer("1.5")
    kind, key, location, count = writer.storage(torch.arange(10.0)).identity[1:5]
    part = Persistent(("storage", kind, key, location, count, (Fresh("7"), 2, 5)))
    path = written(tmp_path / "net.pth", writer.file([writer.rebuild(part, 1, (2, 2), (2, 1))]))
    assert_equal(read_legacy_checkpoint(path).content[0], torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    for first, size in ((2, 9), (-1, 3), (11, 0)):
        part = Persistent(("storage", kind, key, location, count, (Fresh("7"), first, size)))
        written(path, writer.file([writer.rebuild(part, 0, (1,), (1,))]))
        with refused("elements"):
            read_legacy_checkpoint(path)


@clause("17.legacy.pytorch_1")
def test_layers_that_were_made_otherwise_then_work_now(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """A BatchNorm2d that counts no batches (before 0.4.1), and attention with another class of Linear (before 1.9)."""
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    writer = Writer("1.5")
    names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    buffers = {"running_mean": norm.running_mean, "running_var": norm.running_var}
    settings = {name: getattr(norm, name) for name in names}
    content = writer.module("torch.nn.modules.batchnorm.BatchNorm2d", norm._parameters, buffers, **settings)
    found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(writer.sequential(content))))
    assert list(found.state_dict) == ["0.weight", "0.bias", "0.running_mean", "0.running_var"]
    x = torch.rand(1, 2, 3, 3)
    with torch.no_grad():
        assert_equal(found.network.eval()(x), norm(x), "the output")
    attention = nn.MultiheadAttention(4, 2).eval()
    writer = Writer("1.5")
    names = ("embed_dim", "kdim", "vdim", "_qkv_same_embed_dim", "num_heads", "dropout", "head_dim", "add_zero_attn")
    content = writer.module(
        "torch.nn.modules.activation.MultiheadAttention",
        {"in_proj_weight": attention.in_proj_weight, "in_proj_bias": attention.in_proj_bias},
        children={"out_proj": writer.linear(attention.out_proj, "torch.nn.modules.linear._LinearWithBias")},
        **{name: getattr(attention, name) for name in names},
        bias_k=None,
        bias_v=None,
    )
    found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))
    assert "(out_proj): _LinearWithBias(in_features=4, out_features=4, bias=True)" in found.tree
    x = torch.rand(3, 1, 4)
    with torch.no_grad():
        assert_equal(found.network.eval()(x, x, x)[0], attention(x, x, x)[0], "the output")


@clause("17.legacy.pytorch_1")
def test_numbers_in_the_other_byte_order_are_turned_round(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    values = [
        torch.tensor([1.5, -2.25, math.inf]),
        torch.tensor([1, -2, 2**40]),
        torch.tensor([1 + 2j, -3j], dtype=torch.complex64),
        torch.tensor([0.5, -1.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
    ]
    writer = Writer(big=True)
    path = written(tmp_path / "net.pth", writer.file([writer.tensor(value) for value in values]))
    for got, expected in zip(read_legacy_checkpoint(path).content, values, strict=True):
        assert_equal(got, expected)


@clause("17.legacy.pytorch_1")
def test_python_2_s_pickles_are_read(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    # strings are bytes there (SHORT_BINSTRING), and an OrderedDict gets its pairs as arguments
    pairs = b"ccollections\nOrderedDict\n](](U\x01aK\x01e](U\x01bI7000000000\nee\x85R"
    path = written(tmp_path / "net.pth", archive([Member("data.pkl", b"\x80\x02" + pairs + b".")]))
    assert read_legacy_checkpoint(path).content == OrderedDict(a=1, b=7_000_000_000)


# Other content


@clause("17.legacy.content")
@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_restored(read_legacy_checkpoint: Read, tmp_path: Path, protocol: int, old: bool) -> None:
    content = {
        "numbers": [0, -1, 255, 65536, 2**31, -(2**40), 2**70, 1.5, -math.inf, True, None, 1 - 2j],
        "texts": ("", "a", "文字", "x" * 300, b"\xff\x00", bytearray(b"ab")),
        "collections": [(), (1,), [[]], {}, {1, 2}, frozenset({3}), OrderedDict(a=1), defaultdict(list, a=[1])],
        "torch": [torch.Size([2, 3]), torch.device("cuda", 1), torch.device("cpu"), torch.float16, torch.int64],
        "numpy": [np.float64(0.1), np.int64(-3), np.bool_(True), np.float32(0.5)],
    }
    found = read_legacy_checkpoint(save(content, tmp_path / "net.pth", old, protocol)).content
    assert found == content
    assert [type(n) for n in found["numpy"]] == [float, int, bool, float]
    assert type(found["collections"][6]) is OrderedDict


@clause("17.legacy.content")
@FORMATS
def test_tensors_of_every_kind_come_back(read_legacy_checkpoint: Read, tmp_path: Path, old: bool) -> None:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32]
    kinds += [torch.int64, torch.bool, torch.complex64, torch.complex128]
    if not old:  # newer than the old format
        kinds += [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn]
    tensors = [torch.arange(6).to(kind).reshape(2, 3) for kind in kinds]
    base = torch.arange(20.0)
    views = [base[3:9:2], base.reshape(4, 5).t(), base[:1].expand(7), base[5], base[:0], torch.zeros(2, 0, 3)]
    named = torch.ones(2, requires_grad=True)
    named.kind = "with an attribute"  # type: ignore[attr-defined]
    found = read_legacy_checkpoint(save([*tensors, *views, named], tmp_path / "net.pth", old)).content
    for got, expected in zip(found, [*tensors, *views, named], strict=True):
        assert got.dtype == expected.dtype
        assert got.stride() == expected.stride()
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8)) if got.dtype.itemsize == 1 else True
        if got.dtype not in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn):
            assert_equal(got, expected)
    assert found[-1].requires_grad
    assert found[len(kinds)].data_ptr() == found[len(kinds) + 1].data_ptr() + 3 * 4  # they share their storage still


@clause("17.legacy.content")
@FORMATS
def test_a_training_s_dictionary_and_an_optimizer_are_read(
    read_legacy_checkpoint: Read, tmp_path: Path, old: bool
) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "model": network.state_dict(), "optimizer": optimizer.state_dict()}
    found = read_legacy_checkpoint(save(content, tmp_path / "net.pth", old))
    assert list(found.state_dict) == ["weight", "bias"]
    assert_equal(found.state_dict["weight"], network.weight.detach())
    assert found.network is None
    assert any("'model'" in note for note in found.notes)
    assert found.content["epoch"] == 3
    assert_equal(found.content["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2, 3))
    whole = read_legacy_checkpoint(save(optimizer, tmp_path / "net.pth", old)).content
    assert str(whole.kind) == "torch.optim.sgd.SGD"
    assert whole.attributes["param_groups"][0]["lr"] == 0.1
    (momentum,) = [entry["momentum_buffer"] for p, entry in whole.attributes["state"].items() if p.dim() == 2]
    assert_equal(momentum, torch.ones(2, 3))


@clause("17.legacy.content")
def test_two_networks_in_a_file_are_not_confused(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    both = {"generator": nn.Linear(1, 2), "critic": nn.Linear(2, 1).state_dict()}
    found = read_legacy_checkpoint(save(both, tmp_path / "net.pth"))
    assert (found.state_dict, found.network, found.tree) == ({}, None, "")
    assert list(found.content) == ["generator", "critic"]
    assert found.choices == ("generator", "critic")


PREFIXES = (
    *("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "_orig_mod._orig_mod."),
    *("model.", "net.", "network.module.", "module.model.", "model._orig_mod.", "trainer.model.net.module._orig_mod."),
)
"""Prefixes of keys: from DataParallel, torch.compile, a class around the network, and several of these."""


@clause("17.legacy.state_dict_alone")
@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "none")
def test_a_state_dict_of_the_tutorial_s_network_is_enough(
    read_legacy_checkpoint: Read, tmp_path: Path, prefix: str
) -> None:
    ocean = Ocean()
    state = {prefix + key: tensor for key, tensor in ocean.state_dict().items()}
    found = read_legacy_checkpoint(save(state, tmp_path / "net.pth"))
    assert list(found.state_dict) == list(state)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert_equal(found.network(images), ocean(images), "the scores")
    for other in (torch.zeros(31), torch.zeros(32, dtype=torch.int64)):
        state[prefix + "model1.0.bias"] = other
        found = read_legacy_checkpoint(save(state, tmp_path / "net.pth"))
        assert found.network is None
        assert len(found.state_dict) == 10


def scores_of(found: Any, images: Tensor) -> Tensor:
    network, _ = found.classifier()
    with torch.no_grad():
        return network.eval()(images)


def as_a_part(ocean: Ocean) -> dict[str, Tensor]:
    """Of a class with the tutorial's Sequential as its only part, under another name (lines 1057 to 1070)."""
    return {key.replace("model1.", "model."): tensor for key, tensor in ocean.state_dict().items()}


def with_wrapped_layers(ocean: Ocean) -> dict[str, Tensor]:
    """Layers that are parallel, or compiled, each by itself."""
    state = ocean.state_dict()
    return {
        key.replace("model1.0.", "model1.0.module.").replace("model1.7.", "model1.7._orig_mod."): tensor
        for key, tensor in state.items()
    }


def averaged(ocean: Ocean) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(ocean)


def trained(ocean: nn.Module) -> dict[str, Any]:
    """The state of an optimizer that has made a step: it holds tensors of the weights' shapes."""
    optimizer = torch.optim.Adam(ocean.parameters())
    for parameter in ocean.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def prefixed(prefix: str, ocean: Ocean) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in ocean.state_dict().items()}


EVERYDAY: dict[str, Callable[[Ocean], Any]] = {
    "the Sequential alone": lambda ocean: ocean.model1.state_dict(),
    "the Sequential as a part of a class": as_a_part,
    "wrapped layers": with_wrapped_layers,
    "an averaged model": lambda ocean: averaged(ocean).state_dict(),
    "an averaged model in DataParallel": lambda ocean: nn.DataParallel(averaged(ocean)).state_dict(),
    "an averaged model, whole": averaged,
    "DataParallel, whole": nn.DataParallel,
    "an averaged model of DataParallel, whole": lambda ocean: averaged(nn.DataParallel(ocean)),
    "parameters": lambda ocean: {key: nn.Parameter(tensor) for key, tensor in ocean.state_dict().items()},
    "named parameters": lambda ocean: dict(ocean.named_parameters()),
    "arrays of NumPy": lambda ocean: {key: tensor.numpy() for key, tensor in ocean.state_dict().items()},
    "PyTorch's tutorial": lambda ocean: {
        "epoch": 5, "model_state_dict": ocean.state_dict(), "optimizer_state_dict": trained(ocean),
        "loss": torch.ones(()),
    },
    "a tutorial on CIFAR-10": lambda ocean: {"net": ocean.state_dict(), "acc": 91.5, "epoch": 7},
    "PyTorch's ImageNet example": lambda ocean: {
        "epoch": 1, "arch": "ocean", "state_dict": prefixed("module.", ocean), "best_acc1": torch.tensor(3.0),
        "optimizer": trained(ocean), "scheduler": {"last_epoch": 1, "_last_lr": [0.1]},
    },
    "timm": lambda ocean: {
        "epoch": 1, "arch": "ocean", "state_dict": ocean.state_dict(), "optimizer": trained(ocean), "version": 2,
        "args": types.SimpleNamespace(lr=0.1), "amp_scaler": {"scale": 65536.0}, "metric": 0.5,
    },
    "torchvision's references": lambda ocean: {
        "model": ocean.state_dict(), "optimizer": trained(ocean), "lr_scheduler": {"milestones": {3: 1}}, "epoch": 1,
        "args": types.SimpleNamespace(lr=0.1), "scaler": {},
    },
    "Lightning": lambda ocean: {
        "epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.5", "state_dict": prefixed("model.", ocean),
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint{}": {"best_score": torch.ones(())}},
        "optimizer_states": [trained(ocean)], "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1},
    },
    "Lightning with the weights of its loss": lambda ocean: {
        "state_dict": prefixed("net.", ocean) | {"criterion.weight": torch.ones(10), "accuracy.total": torch.tensor(3)}
    },
    "Hugging Face's Trainer": lambda ocean: {"module": ocean.state_dict(), "step": 3},
    "random states beside it": lambda ocean: {
        "model": ocean.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()},
    },
    "means and deviations beside it": lambda ocean: {
        "model": ocean.state_dict(), "normalization": {"mean": torch.ones(3), "std": torch.ones(3)},
    },
    "in dictionaries": lambda ocean: {"run": {"best": {"weights": {"net": ocean.state_dict()}}}, "epoch": 1},
    "in a list": lambda ocean: [ocean.state_dict(), trained(ocean), 7],
    "in a tuple": lambda ocean: (7, ocean.state_dict()),
    "in a list in a dictionary": lambda ocean: {"checkpoints": [{"model": ocean.state_dict()}]},
    "in an object": lambda ocean: types.SimpleNamespace(model=ocean.state_dict(), epoch=1),
    "a network in a list": lambda ocean: [ocean, 3],
    "a network and its optimizer": lambda ocean: {"model": ocean, "optimizer": torch.optim.SGD(ocean.parameters())},
    "a date and a path beside it": lambda ocean: {
        "model": ocean.state_dict(), "saved": datetime.datetime(2020, 1, 2), "path": Path("x"), "steps": range(3),
    },
}  # fmt: skip
"""What people save, with the keys of the programs that they save it with."""


@clause("17.legacy.everyday")
@FORMATS
@pytest.mark.parametrize("how", EVERYDAY)
@pytest.mark.slow
def test_a_checkpoint_of_everyday_is_recognized(
    read_legacy_checkpoint: Read, tmp_path: Path, how: str, old: bool
) -> None:
    ocean = Ocean()
    images = torch.rand(2, 3, 32, 32)
    content = EVERYDAY[how](ocean)  # some of them let an optimizer make a step
    with torch.no_grad():
        expected = ocean(images)
    assert_equal(scores_of(read_legacy_checkpoint(save(content, tmp_path / "net.pth", old)), images), expected)


SEVERAL: dict[str, tuple[Callable[[Ocean, Ocean], Any], tuple[str, str]]] = {
    "timm": (
        lambda one, other: {"state_dict": one.state_dict(), "state_dict_ema": other.state_dict(), "epoch": 1},
        ("state_dict", "state_dict_ema"),
    ),
    "torchvision's references": (
        lambda one, other: {"model": one.state_dict(), "model_ema": averaged(other).state_dict(), "epoch": 1},
        ("model", "model_ema"),
    ),
    "an average in the same state dict": (
        lambda one, other: {"state_dict": prefixed("model.", one) | prefixed("ema_model.module.", other)},
        ("state_dict.model.model1", "state_dict.ema_model.model1"),
    ),
    "an average in the same bare state dict": (
        lambda one, other: prefixed("model.", one) | prefixed("ema.", other), ("model.model1", "ema.model1"),
    ),
    "a list": (lambda one, other: [one.state_dict(), {"net": other}], ("[0]", "[1].net")),
    "a tuple of whole networks": (lambda one, other: (one, other), ("[0]", "[1]")),
    "numbers for keys": (lambda one, other: {0: one.state_dict(), 1: other.state_dict()}, ("[0]", "[1]")),
    "a network that is not known": (
        lambda one, other: {"critic": nn.Linear(2, 3).state_dict(), "net": other}, ("critic", "net"),
    ),
}  # fmt: skip


@clause("17.legacy.choices")
@FORMATS
@pytest.mark.parametrize("how", SEVERAL)
def test_of_several_networks_one_is_chosen_by_its_name(
    read_legacy_checkpoint: Read, tmp_path: Path, how: str, old: bool
) -> None:
    one, other = Ocean(), Ocean()
    made, names = SEVERAL[how]
    path = save(made(one, other), tmp_path / "net.pth", old)
    found = read_legacy_checkpoint(path)
    assert found.choices == names
    assert (found.state_dict, found.network, found.tree) == ({}, None, "")
    for said in (str(found.notes), found.describe()):
        assert all(name in said for name in names)
        assert "--choose" in said
    with refused("There are 2 networks in it"):
        found.classifier()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = other(images)
    assert_equal(scores_of(read_legacy_checkpoint(path, choose=names[1]), images), expected)
    with refused(f"holds no network 'neither': there is {re.escape(names[0])}"):
        read_legacy_checkpoint(path, choose="neither")


@clause("17.legacy.choices")
def test_where_there_is_one_network_it_may_be_chosen(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    path = save({"net": Ocean().state_dict(), "epoch": 1}, tmp_path / "net.pth")
    assert read_legacy_checkpoint(path, choose="net").network is not None
    with refused("holds no network 'model': there is net"):
        read_legacy_checkpoint(path, choose="model")
    with refused("holds no network 'model': there is none at all"):
        read_legacy_checkpoint(save({"epoch": 1}, path), choose="model")


@clause("17.legacy.everyday")
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"head.weight": torch.ones(2, 10)},
        lambda state: state | {"model1.9.weight": torch.ones(2, 10)},
        lambda state: state | {"model1.0.extra": torch.ones(3)},
        lambda state: {key: tensor for key, tensor in state.items() if key != "model1.8.bias"},
        lambda state: state | {"model1.8.weight": torch.ones(10, 63)},
        lambda state: state | {"module.model1.8.weight": torch.ones(10, 64)},
        lambda state: state | {"model1.0.weight_mask": torch.ones(32, 3, 5, 5)},
    ],
    ids=[
        "a head",
        "a layer more",
        "a part more",
        "a bias less",
        "another width",
        "a key twice",
        "half of a pruned one",
    ],
)
def test_a_state_dict_of_another_network_is_not_taken_for_a_known_one(
    read_legacy_checkpoint: Read, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    state = change(dict(Ocean().state_dict()))
    found = read_legacy_checkpoint(save(state, tmp_path / "net.pth"))
    assert found.network is None
    assert found.state_dict.keys() == state.keys()


@clause("17.legacy.pruned")
@FORMATS
@pytest.mark.parametrize("whole", [False, True], ids=["state dict", "whole network"])
def test_pruned_networks_compute_with_their_masks(
    read_legacy_checkpoint: Read, tmp_path: Path, whole: bool, old: bool
) -> None:
    ocean = Ocean()
    prune.l1_unstructured(ocean.model1[0], "weight", 0.5)
    prune.random_structured(ocean.model1[4], "weight", 0.3, dim=0)
    prune.l1_unstructured(ocean.model1[4], "weight", 0.2)  # twice: a PruningContainer
    prune.l1_unstructured(ocean.model1[8], "bias", 0.5)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = ocean(images)
    found = read_legacy_checkpoint(save(ocean if whole else ocean.state_dict(), tmp_path / "net.pth", old))
    assert list(found.state_dict) == list(ocean.state_dict())
    assert_equal(scores_of(found, images), expected)
    if whole:
        assert found.tree == repr(ocean)


@clause("17.legacy.pruned")
def test_another_hook_before_a_layer_is_code(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer()
    for kind in ("their_code.Pruning", "torch.nn.utils.prune.L1Unstructured"):
        layer = writer.linear(nn.Linear(2, 1))
        layer.state["_forward_pre_hooks"] = OrderedDict(
            {0: Object(Global(*kind.rsplit(".", 1)), {"_tensor_name": "bias"})}
        )
        found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(writer.sequential(layer))))
        assert found.network is None
        assert any("hooks" in note or "no mask" in note for note in found.notes)


@clause("17.legacy.safetensors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_safetensors_file_is_read(read_legacy_checkpoint: Read, tmp_path: Path, dtype: torch.dtype) -> None:
    ocean = Ocean().to(dtype)
    safetensors.torch.save_file(prefixed("module.", ocean), tmp_path / "net.pth", metadata={"format": "pt"})
    found = read_legacy_checkpoint(tmp_path / "net.pth")
    assert found.container == "safetensors"
    assert "a state dict (safetensors)" in found.describe()
    for key, tensor in ocean.state_dict().items():
        assert_equal(found.state_dict[f"module.{key}"], tensor, key)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = ocean.float()(images)
    assert_equal(scores_of(found, images), expected)


SAFETENSORS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda data: data[:-1], "damaged"),
    "longer": (lambda data: data + b"x", "damaged"),
    "a header that is cut off": (lambda data: data[:20], "header|does not begin"),
    "a header of exabytes": (lambda data: b"\xff" * 4 + bytes(4) + data[8:], "header of a safetensors file"),
    "a header that is no JSON": (lambda data: data[:8] + b"{" * 8 + data[16:], "damaged"),
    "a shape that does not fit": (lambda data: data.replace(b"[2,3]", b"[2,9]"), "damaged"),
    "a shape of exabytes": (lambda data: data.replace(b"[2,3]", b"[9e9]"), "damaged"),
    "another dtype": (lambda data: data.replace(b'"F32"', b'"F64"'), "damaged"),
    "an unknown dtype": (lambda data: data.replace(b'"F32"', b'"XXX"'), "damaged"),
    "a place outside": (lambda data: data.replace(b"[0,24]", b"[9,33]"), "damaged"),
    "a truth value that is neither": (lambda data: data[:-1] + b"\x02", "truth value"),
}


@clause("17.legacy.safetensors")
@pytest.mark.parametrize("lie", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused(read_legacy_checkpoint: Read, tmp_path: Path, lie: str) -> None:
    change, says = SAFETENSORS[lie]
    whole = safetensors.torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True])})
    read_legacy_checkpoint(written(tmp_path / "net.pth", whole))
    assert change(whole) != whole
    with refused(says):
        read_legacy_checkpoint(written(tmp_path / "net.pth", change(whole)))


@clause("17.legacy.safetensors")
@pytest.mark.parametrize("first", [0x80, 0x3C, 0x08, 0x50], ids=["as a pickle", "as a web page", "as ONNX", "as zip"])
def test_a_safetensors_file_may_begin_with_any_byte(read_legacy_checkpoint: Read, tmp_path: Path, first: int) -> None:
    """It begins with the length of its header."""
    whole = safetensors.torch.save({"a": torch.arange(6.0)})
    length = int.from_bytes(whole[:8], "little")
    padded = length + (first - length) % 256
    header = whole[8 : 8 + length].ljust(padded)
    path = written(tmp_path / "net.pth", padded.to_bytes(8, "little") + header + whole[8 + length :])
    assert path.read_bytes()[0] == first
    assert_equal(read_legacy_checkpoint(path).state_dict["a"], torch.arange(6.0))


# What is not read


SPECIAL: dict[str, tuple[Callable[[], Any], str]] = {
    "a sparse tensor": (lambda: torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
    "a compressed sparse tensor": (lambda: torch.eye(2).to_sparse_csr(), "_rebuild_sparse_tensor"),
    "a quantized tensor": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized|_qtensor"),
    "a meta tensor": (lambda: torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
    "a conjugated tensor": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
}


@clause("17.legacy.not_read")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_tensors_are_refused_as_such(read_legacy_checkpoint: Read, tmp_path: Path, kind: str) -> None:
    made, says = SPECIAL[kind]
    save([made()], tmp_path / "net.pth")
    with refused(says):
        read_legacy_checkpoint(tmp_path / "net.pth")


def numpy_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


@clause("17.legacy.not_read")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a file of torch.save"),
        (b"PK", "not a file of torch.save"),
        (b"hello", "not a file of torch.save"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "not a file of torch.save"),
        (bytes(257) + b"ustar" + bytes(500), "tar archive, as PyTorch before 0.1.10"),
        (pickle.dumps({"a": 1}), "a pickle, but not one of torch.save"),
        (pickled(0x1950A86A20F9469CFC6C) + pickled(1002), "protocol 1002"),
        (archive([Member("data.pkl", pickled(1)), Member("constants.pkl", b"")]), "TorchScript"),
        (archive([Member("readme.txt", b"hello")]), "no data.pkl"),
        (archive([]), "not a file of torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
        (b"GGUF\x03\0\0\0" + bytes(600), "GGUF"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\xff" + bytes(600), "ONNX"),
        (b"\x08\x03:\xa0\x01\x0a" + bytes(600), "ONNX"),
        (b"\x1c\0\0\0TFL3" + bytes(600), "TensorFlow Lite"),
        (b"\x93NUMPY\x01\0" + bytes(600), "NumPy array"),
        (numpy_archive(), "NumPy arrays"),
        (gzip.compress(b"x" * 600), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><title>404</title>", "web page"),
    ],
    ids=["nothing", "two bytes", "a text", "an image", "a tar file", "a pickle", "another protocol", "TorchScript",
         "a zip archive", "an empty archive", "HDF5", "GGUF", "ONNX", "ONNX without a producer", "TensorFlow Lite",
         "NumPy", "NumPy's archive", "gzip", "Git LFS", "a web page"],
)  # fmt: skip
def test_other_files_are_refused_with_their_kind(
    read_legacy_checkpoint: Read, tmp_path: Path, content: bytes, says: str
) -> None:
    with refused(says):
        read_legacy_checkpoint(written(tmp_path / "net.pth", content))


@clause("17.legacy.not_read")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_programs_that_pytorch_writes_are_named(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).eval()
    torch.jit.script(network).save(str(tmp_path / "net.pth"))
    with refused("TorchScript archive, a program and not data"):
        read_legacy_checkpoint(tmp_path / "net.pth")
    torch.export.save(torch.export.export(network, (torch.ones(1, 2),)), tmp_path / "net.pth.pt2")
    with refused("archive of torch.export, a program and not data"):
        read_legacy_checkpoint(tmp_path / "net.pth.pt2")


@clause("17.legacy.not_read")
def test_a_path_that_is_no_regular_file_is_refused_without_waiting(
    read_legacy_checkpoint: Read, tmp_path: Path
) -> None:
    with refused("No such file"):
        read_legacy_checkpoint(tmp_path / "net.pth")
    (tmp_path / "net.pth").mkdir()
    with refused("directory"):
        read_legacy_checkpoint(tmp_path / "net.pth")
    os.mkfifo(tmp_path / "pipe.net.pth")
    with refused("no regular file"):
        read_legacy_checkpoint(tmp_path / "pipe.net.pth")


@clause("17.legacy.damaged")
@pytest.mark.parametrize("version", ["1.5", "1.6"])
def test_a_file_that_is_cut_off_anywhere_is_refused(read_legacy_checkpoint: Read, tmp_path: Path, version: str) -> None:
    writer = Writer(version)
    whole = writer.file([writer.tensor(torch.arange(5.0)), writer.tensor(torch.arange(3))])
    for length in {*range(0, len(whole), 7), len(whole) - 1}:
        with refused():
            read_legacy_checkpoint(written(tmp_path / "net.pth", whole[:length]))
    read_legacy_checkpoint(written(tmp_path / "net.pth", whole))


@clause("17.legacy.damaged")
def test_a_changed_bit_of_a_zip_file_is_noticed(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer()
    whole = writer.file([writer.tensor(torch.arange(5.0))])
    for part in (struct.pack("<5f", *range(5)), b"_rebuild_tensor_v2"):
        at = whole.index(part)
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with refused("the checksum of member"):
            read_legacy_checkpoint(written(tmp_path / "net.pth", changed))


# Attacks


@pytest.fixture
def extension() -> Iterator[None]:
    """copyreg knows a number for os.mkdir, as a program might have told it."""
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)
    copyreg.clear_extension_cache()


def packed(code: bytes, container: str) -> bytes:
    python_2 = b"__builtin__" in code or b"copy_reg" in code  # later protocols do not know these names
    whole = (b"\x80\x02" if python_2 else b"\x80\x04") + code + b"."
    if container == "zip":
        return archive([Member("data.pkl", whole), Member("version", b"3\n")])
    return Writer("1.5").old(Raw(code)) if container == "old" else whole


def assert_inert(value: Any, depth: int = 0) -> None:
    """Nothing but containers, numbers, texts, tensors, and records of them."""
    if depth < 20:
        kind = type(value)
        assert kind.__module__.partition(".")[0] in ("builtins", "collections", "torch", "reference"), kind
        assert not callable(value) or isinstance(value, nn.Module)
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else []
        inside += value if isinstance(value, list | tuple | set) else []
        if hasattr(value, "kind"):
            inside += [value.arguments, value.state, value.items, value.entries]
        for part in inside:
            assert_inert(part, depth + 1)


TRICKS = list(tricks(Path("victim")))


@clause("17.legacy.nothing_runs")
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("container", ["zip", "old", "bare"])
@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_runs_anything(read_legacy_checkpoint: Read, tmp_path: Path, trick: str, container: str) -> None:
    victim = tmp_path / "victim"
    path = written(tmp_path / "net.pth", packed(tricks(victim)[trick], container))
    with watched() as events:
        try:
            found = read_legacy_checkpoint(path)
        except ValueError as error:
            said = str(error)
        else:
            said = None
            assert_inert(found.content)
    assert [event for event in events if not event.startswith(f"open ({str(path)!r}")] == []
    assert os.listdir(tmp_path) == ["net.pth"]
    assert said is None or ("net.pth" in said and len(said.splitlines()) == 1 and "nothing in it was run" in said)


@clause("17.legacy.nothing_runs")
@pytest.mark.usefixtures("extension")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trick", TRICKS)
def test_the_traps_would_snap(tmp_path: Path, trick: str) -> None:
    """The test above can fail: PyTorch's own reader, told to trust the file, runs each of them."""
    path = written(tmp_path / "net.pth", packed(tricks(tmp_path / "victim")[trick], "zip"))
    with suppress(Exception):  # errors after the call has been made
        torch.load(path, weights_only=False)
    assert (tmp_path / "victim").exists()


@clause("17.legacy.nothing_runs")
@pytest.mark.parametrize(
    ("trick", "name"),
    [
        ("REDUCE of os.mkdir", "os.mkdir"),
        ("REDUCE of eval", "builtins.eval"),
        ("a list of a map", "builtins.map"),
        ("PyTorch's own functions", "torch.serialization.save"),
    ],
)
def test_the_error_names_the_request_of_the_file(
    read_legacy_checkpoint: Read, tmp_path: Path, trick: str, name: str
) -> None:
    with refused(rf"asks for a call of {name}; nothing in it was run"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", packed(tricks(tmp_path)[trick], "zip")))


@clause("17.legacy.nothing_runs")
def test_the_source_in_a_file_is_not_written_anywhere(
    read_legacy_checkpoint: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch writes a patch file if a class says `dump_patches` and the source has changed."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kind = Persistent(("module", Global("spec.support.traps", "Patched"), "x.py", "class Patched: another\n"))
    path = written(tmp_path / "net.pth", Writer("1.5").old(Object(kind, {})))
    with watched() as events:
        assert read_legacy_checkpoint(path).sources == {"spec.support.traps.Patched": "class Patched: another\n"}
    assert [event for event in events if not event.startswith(f"open ({str(path)!r}")] == []
    assert os.listdir(".") == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it writes
        torch.load(path, weights_only=False)
    assert os.listdir(".") == ["Patched.patch"]


@clause("17.legacy.nothing_runs")
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00cp037\x86R", "encoding"),  # imports encodings.cp037
        (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\x00\x00\x00O\x85RX\x02\x00\x00\x00N.\x86R", "type"),
        (b"ctorch\ndevice\nX\x06\x00\x00\x00nobody\x85R", "device"),
        (b"ctorch.storage\n_load_from_bytes\nX\x01\x00\x00\x00a\x85R", "_load_from_bytes"),
        (b"ctorch.jit\nload\nX\x01\x00\x00\x00a\x85R", "torch.jit.load"),
        (b"ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R", "torch.hub.load"),
        (b"ctorch\nFloatStorage\n)R", "call"),
        (b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00extra\x88sb", "state"),
        (b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00extra\x88sb", "state"),
        (b"]}X\x01\x00\x00\x00a\x88sb", "state"),
        (b"cos\nsystem\n}X\x01\x00\x00\x00a\x88sb", "state"),
        (b"cthey\nX\n)\x81}b}b", "state"),
        (b"P1\n", "PERSID"),
        (b"K\x01Q", "refers"),
        (b"(X\x06\x00\x00\x00modulecos\nsystem\nK\x01K\x01tQ)R", "os.system"),
        (b"(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ", "refers"),
        (b"\x97", "NEXT_BUFFER"),
    ],
)
def test_calls_that_resemble_harmless_ones_are_refused(
    read_legacy_checkpoint: Read, tmp_path: Path, code: bytes, says: str
) -> None:
    path = written(tmp_path / "net.pth", packed(code, "zip"))
    with watched() as events, refused(says):
        read_legacy_checkpoint(path)
    assert [event for event in events if not event.startswith(f"open ({str(path)!r}")] == []


# Archives that lie


def zip64(**numbers: int) -> bytes:
    data = b"".join(struct.pack("<Q", number) for number in numbers.values())
    return struct.pack("<2H", 1, len(data)) + data


GOOD = pickled({"a": 1})
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a packed member": (lambda: archive([Member("data.pkl", b"x" * 10, method=8, size=10**9)]), "packed"),
    "a bomb that says it is not packed": (lambda: archive([Member("data.pkl", GOOD, size=10**9)]), "overlap"),
    "an encrypted member": (lambda: archive([Member("data.pkl", GOOD, flags=1)]), "encrypted"),
    "a member twice": (lambda: archive([Member("data.pkl", GOOD), Member("data.pkl", pickled(2))]), "twice"),
    "two members in one place": (
        lambda: archive([Member("data.pkl", GOOD), Member("data/0", GOOD, offset=0, local="archive/data/0")]),
        "overlap|not where",
    ),
    "a member inside another one": (
        lambda: archive([Member("data.pkl", GOOD + archive([Member("data/0", b"1234")])),
                         Member("data/0", b"1234", offset=64 + len(GOOD))]),
        "overlap",
    ),
    "a member beyond the end": (lambda: archive([Member("data.pkl", GOOD, offset=10**6)]), "belong to no member"),
    "a wrong checksum": (lambda: archive([Member("data.pkl", GOOD, crc=1)]), "checksum"),
    "another name in its header": (lambda: archive([Member("data.pkl", GOOD, local="archive/data/0")]), "not where"),
    "a name that leads out": (lambda: archive([Member("data.pkl", GOOD), Member("../../passwd", b"")]), "leads out"),
    "a name from the root": (lambda: archive([Member("data.pkl", GOOD), Member("//etc/passwd", b"")]), "leads out"),
    "a name of Windows": (lambda: archive([Member("data.pkl", GOOD), Member("..\\x", b"")]), "leads out"),
    "two folders": (lambda: archive([Member("data.pkl", GOOD), Member("/other/data.pkl", GOOD)]), "one folder"),
    "a comment behind it": (lambda: archive([Member("data.pkl", GOOD)], comment=b"hello"), "directory"),
    "sizes of 64 bits that lie": (
        lambda: archive([Member("data.pkl", GOOD, size=2**32 - 1, extra=zip64(size=2**60, packed=2**60))]),
        "contradicts itself",
    ),
    "sizes of 64 bits that are missing": (
        lambda: archive([Member("data.pkl", GOOD, size=2**32 - 1)]), "contradicts itself"
    ),
    "a place of 64 bits that lies": (
        lambda: archive([Member("data.pkl", GOOD, offset=2**32 - 1, extra=zip64(offset=2**63))]), ""
    ),
    "more members than are there": (
        lambda: (lambda data: data[:-12] + struct.pack("<H", 9) + data[-10:])(archive([Member("data.pkl", GOOD)])), ""
    ),
    "too many members": (
        lambda: (lambda data: data[: -76] + data[-76:].replace(struct.pack("<2Q", 1, 1), struct.pack("<2Q", 1, 10**9)))(
            archive([Member("data.pkl", GOOD)], wide=True)
        ),
        "members|directory",
    ),
    "a byte order of its own": (lambda: archive([Member("data.pkl", GOOD), Member("byteorder", b"middle")]), "order"),
    "an archive in an archive": (
        lambda: archive([Member("data.pkl", archive([Member("data.pkl", GOOD)]))]), "nothing in it was run"
    ),
}  # fmt: skip


@clause("17.legacy.archives")
@pytest.mark.parametrize("lie", ARCHIVES)
def test_an_archive_that_lies_is_refused(read_legacy_checkpoint: Read, tmp_path: Path, lie: str) -> None:
    made, says = ARCHIVES[lie]
    with refused(says):
        read_legacy_checkpoint(written(tmp_path / "net.pth", made()))
    assert os.listdir(tmp_path) == ["net.pth"]


@clause("17.legacy.archives")
@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_two_readers_could_read_differently_is_refused(
    read_legacy_checkpoint: Read, tmp_path: Path, lie: str
) -> None:
    path = save({"a": torch.ones(3), "b": torch.zeros(5)}, tmp_path / "net.pth")
    read_legacy_checkpoint(path)
    with refused():
        read_legacy_checkpoint(written(path, LIES[lie](path.read_bytes())))


@clause("17.legacy.archives")
@pytest.mark.parametrize("wide", [False, True])
def test_an_honest_archive_is_read(read_legacy_checkpoint: Read, tmp_path: Path, wide: bool) -> None:
    """The lies above are all that is wrong with those archives."""
    extra = zip64(size=len(GOOD), packed=len(GOOD), offset=0) if wide else b""
    size, offset = (2**32 - 1, 2**32 - 1) if wide else (None, None)
    data = archive([Member("data.pkl", GOOD, size=size, offset=offset, extra=extra)], folder="网", wide=wide)
    assert read_legacy_checkpoint(written(tmp_path / "net.pth", data)).content == {"a": 1}


# Tensors that lie


HUGE = 2**40
TENSORS: dict[str, tuple[Callable[[Writer, Any], Any], str]] = {
    "more numbers than the storage": (lambda w, s: w.rebuild(s, 0, (5,), (1,)), "outside"),
    "terabytes": (lambda w, s: w.rebuild(s, 0, (HUGE,), (1,)), "outside"),
    "terabytes of one number": (lambda w, s: w.rebuild(s, 0, (HUGE,), (0,)), "outside"),
    "terabytes of one number in many dimensions": (lambda w, s: w.rebuild(s, 0, (9,) * 60, (0,) * 60), "outside"),
    "a product that overflows to 0": (lambda w, s: w.rebuild(s, 0, (2**32, 2**32), (0, 0)), "outside"),
    "an offset outside": (lambda w, s: w.rebuild(s, 4, (1,), (1,)), "outside"),
    "an offset outside of nothing": (lambda w, s: w.rebuild(s, HUGE, (0,), (1,)), "outside"),
    "a negative offset": (lambda w, s: w.rebuild(s, -1, (1,), (1,)), "offset of a tensor is negative"),
    "a negative stride": (lambda w, s: w.rebuild(s, 3, (4,), (-1,)), "stride of a tensor is negative"),
    "a negative size": (lambda w, s: w.rebuild(s, 0, (-1,), (1,)), "size of a tensor is negative"),
    "a stride that leads out": (lambda w, s: w.rebuild(s, 0, (2, 2), (1, 3)), "outside"),
    "a size that is none": (lambda w, s: w.rebuild(s, 0, (1.5,), (1,)), "whole numbers"),
    "a size of 2 to the power 63": (lambda w, s: w.rebuild(s, 0, (2**63,), (0,)), "whole numbers"),
    "too many dimensions": (lambda w, s: w.rebuild(s, 0, (1,) * 65, (1,) * 65), "at most 64"),
    "another number of strides": (lambda w, s: w.rebuild(s, 0, (2, 2), (1,)), "2 sizes, but 1 strides"),
    "no storage": (lambda w, s: w.rebuild("storage", 0, (1,), (1,)), ""),
    "a gradient of whole numbers": (lambda w, s: w.tensor(torch.arange(2), True), "gradient"),
    "a gradient that is a word": (lambda w, s: w.rebuild(s, 0, (1,), (1,), "yes"), "gradient"),
    "a parameter of nothing": (
        lambda w, s: Call(Global("torch._utils", "_rebuild_parameter"), (1, True, OrderedDict())), "no tensor"
    ),
    "a storage of two kinds": (
        lambda w, s: [s, Persistent((*s.identity[:1], Global("torch", "IntStorage"), *s.identity[2:]))], "two different"
    ),
    "a storage of two lengths": (
        lambda w, s: [s, Persistent((*s.identity[:4], 2, *s.identity[5:]))], "two different"
    ),
    "a storage of terabytes": (
        lambda w, s: Persistent((*s.identity[:2], Fresh("99"), "cpu", HUGE, *s.identity[5:])), "is not there|more bytes"
    ),
    "a storage of negative length": (
        lambda w, s: Persistent((*s.identity[:4], -4, *s.identity[5:])), "-4 elements"
    ),
    "a storage under a path": (
        lambda w, s: Persistent((*s.identity[:2], "../../etc/passwd", *s.identity[3:])), "passwd|list of storages"
    ),
}  # fmt: skip


@clause("17.legacy.tensors")
@FORMATS
@pytest.mark.parametrize("lie", TENSORS)
def test_a_tensor_that_lies_is_refused(read_legacy_checkpoint: Read, tmp_path: Path, lie: str, old: bool) -> None:
    made, says = TENSORS[lie]
    writer = Writer("1.5" if old else "1.6")
    path = written(tmp_path / "net.pth", writer.file([made(writer, writer.storage(torch.arange(4.0)))]))
    tracemalloc.start()
    try:
        with refused(says):
            read_legacy_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@clause("17.legacy.tensors")
def test_truth_values_that_are_neither_are_refused(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    for version in ("1.5", "1.6"):
        writer = Writer(version)
        content = writer.tensor(torch.tensor([True, False]))
        ((key, (_, width)),) = writer.storages.items()
        writer.storages[key] = b"\x01\x02", width
        with refused("truth value"):
            read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))


@clause("17.legacy.tensors")
def test_old_files_with_storages_that_do_not_fit_are_refused(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer("1.5")
    content = [writer.tensor(torch.arange(4.0)), writer.tensor(torch.arange(3.0))]
    whole = writer.file(content)
    first, second = sorted(writer.storages)
    keys, swapped = pickled([first, second]), pickled([first, first])
    count = whole.index(struct.pack("<q4f", 4, 0, 1, 2, 3))
    for changed, says in (
        (whole.replace(keys, swapped), "list of storages"),
        (whole.replace(keys, pickled([first])), "list of storages"),
        (whole.replace(keys, pickled({first: 1})), "list of storages"),
        (whole[:count] + struct.pack("<q", 5) + whole[count + 8 :], "does not have its 16 bytes"),
        (whole[:count] + struct.pack("<q", -4) + whole[count + 8 :], "does not have its 16 bytes"),
    ):
        assert changed != whole
        with refused(says):
            read_legacy_checkpoint(written(tmp_path / "net.pth", changed))


# Bombs


def doubled(levels: int) -> bytes:
    """Lists of two that are the same: 2 to the power of `levels` in a walk through all."""
    code = b"]"
    for level in range(levels):
        code += b"r" + struct.pack("<I", level) + b"0]" + b"(" + (b"j" + struct.pack("<I", level)) * 2 + b"e"
    return code


def tower(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1)


EMPTY = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}"


def modules(levels: int) -> bytes:
    """A network of modules, each of which holds the next one twice."""
    code = b"ctorch.nn.modules.container\nSequential\nq\x00)\x81}(" + EMPTY + b"ub"
    for level in range(levels):
        name = b"r" + struct.pack("<I", level + 1)
        again = b"j" + struct.pack("<I", level + 1)
        code += name + b"0h\x00)\x81}(" + EMPTY + b"(U\x011" + again + b"U\x012" + again + b"uub"
    return code


@cache
def probed(bits: int = 17) -> list[int]:
    """Whole numbers that make a dictionary slow: two thirds of a table of 2 to the power of `bits`.

    CPython looks for a key k at the place i = k, then at 5i + p + 1, where p is k shifted to the right by 5 bits more
    each time, modulo the table. The first half of the numbers fill an arc of that sequence (with p = 0); of the second
    half each one runs through the arc, which n insertions pay with n² steps.
    """
    mask = (1 << bits) - 1
    count = (1 << bits) // 3
    arc, place = np.empty(count, np.int64), 1
    for number in range(count):
        arc[number], place = place, (5 * place + 1) & mask
    order = np.full(1 << bits, -1, np.int64)
    order[arc] = np.arange(count)
    found: list[int] = []
    for start in range(1 << 20, 1 << 31, 1 << 22):
        key = np.arange(start, start + (1 << 22), dtype=np.int64)
        place, shifted, inside = key & mask, key, order[key & mask] >= 0
        for _ in range(7):
            key, place, shifted = key[inside], place[inside], shifted[inside] >> 5
            place = (place * 5 + shifted + 1) & mask
            inside = order[place] >= 0
        found += key[inside & (order[place] < count // 6)].tolist()
        if len(found) >= count:
            break
    return [*arc.tolist(), *found[:count]]


def word(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def entry(number: int) -> bytes:
    return word(number) + b"N"


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "lists in lists, twice each, a hundred deep": (lambda: doubled(100), None),
    "lists in lists, a hundred thousand deep": (lambda: tower(100_000), None),
    "tuples in tuples": (lambda: b")" + b"\x85" * 100_000, None),
    "dictionaries in dictionaries": (
        lambda: b"}X\x01\x00\x00\x00aq\x00" + b"}h\x00" * 50_000 + b"N" + b"s" * 50_001, None
    ),
    "objects in objects": (lambda: b"cthey\nX\nq\x00)\x81" + b"h\x00)\x81" * 20_000 + b"b" * 20_000, None),
    "a list that contains itself": (lambda: b"]q\x00h\x00a", None),
    "a tuple that contains itself": (lambda: b"]q\x00(h\x00tq\x01a0h\x01", None),
    "a dictionary that contains itself": (lambda: b"}q\x00X\x01\x00\x00\x00ah\x00s", None),
    "a frame that lies": (lambda: b"\x95" + struct.pack("<Q", 2**63) + b"}", None),
    "a network that contains itself": (
        lambda: b"cm\nN\n)\x81q\x00}(" + EMPTY + b"U\x01ah\x00sub", "contains itself"
    ),
    "modules in modules, twice each": (lambda: modules(60), "more than 100,000 modules and tensors"),
    "modules in modules, a thousand deep": (lambda: modules(1000), "more than 64 modules inside each other"),
    "a whole number of a megabyte": (
        lambda: b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20), "1,048,576 bytes"
    ),
    "a whole number of many digits": (lambda: b"I" + b"9" * 4000 + b"\n", "line of more than 200 bytes"),
    "a name without an end": (lambda: b"c" + b"a" * 1_000_000, "line of more than 200 bytes"),
    "a list as a key": (lambda: b"}]Ns", "list for a key"),
    "a tuple as a key": (lambda: b"})Ns", "tuple for a key"),
    "fractions as keys": (
        lambda: b"}(" + b"".join(b"G" + struct.pack(">d", n / 7) + b"N" for n in range(1, 10_002)) + b"u",
        "more than 10,000 keys",
    ),
    "keys that hash alike": (
        lambda: b"}("
        + b"".join(b"\x8a\x0a" + (7 + (2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(20_000))
        + b"u",
        "more than 10,000 keys",
    ),
    "keys along the probe sequence": (
        lambda: b"}(" + b"".join(map(entry, probed())) + b"u", "more than 10,000 keys"
    ),
    "as many of them as a file may have": (lambda: b"}(" + b"".join(map(entry, probed(14)[:10_000])) + b"u", None),
    "members of a set along the probe sequence": (
        lambda: b"\x8f(" + b"".join(map(word, probed())) + b"\x90", "more than 10,000 keys"
    ),
    "members of a frozen set along the probe sequence": (
        lambda: b"(" + b"".join(map(word, probed())) + b"\x91", "more than 10,000 keys"
    ),
    "members of a called set along the probe sequence": (
        lambda: b"cbuiltins\nset\n(" + b"".join(map(word, probed())) + b"l\x85R", "more than 10,000 keys"
    ),
    "pairs along the probe sequence": (
        lambda: b"ccollections\nOrderedDict\n(" + b"".join(word(key) + b"N\x86" for key in probed()) + b"t\x85R",
        "more than 10,000 keys",
    ),
    "entries of an object along the probe sequence": (
        lambda: b"cm\nN\n)\x81(" + b"".join(map(entry, probed())) + b"u", "more than 10,000 keys"
    ),
    "many dictionaries along the probe sequence": (
        lambda: b"".join(b"}(" + b"".join(map(entry, probed(12))) + b"u0" for _ in range(40)) + b"N",
        "more than 10,000 keys",
    ),
    "many copies along the probe sequence": (
        lambda: b"ccollections\nCounter\nq\x00}(" + b"".join(map(entry, probed(12))) + b"u\x85q\x01"
        + b"h\x00h\x01R0" * 300,
        "more than 10,000 keys",
    ),
    "objects as keys": (
        lambda: b"cm\nN\nq\x00}(" + b"h\x00)\x81N" * 20_000 + b"u", "more than 10,000 keys"
    ),
    "a memory along the probe sequence": (
        lambda: b"N" + b"".join(b"r" + struct.pack("<I", key) for key in probed()), "of its memory"
    ),
    "a memory with a leap": (lambda: b"Nr\xff\xff\xff\xff", "place 4,294,967,295 of its memory"),
    "a million instructions more": (lambda: b"N0" * 500_001 + b"N", "more than 1,000,000 instructions"),
    "ten thousand copies of a list": (
        lambda: b"cbuiltins\nlist\nq\x00](" + b"N" * 10_000 + b"e\x85q\x01" + b"h\x00h\x01R0" * 10_000,
        "more than 1,000,000 instructions",
    ),
    "ten thousand copies of a dictionary": (
        lambda: b"ccollections\nCounter\nq\x00}("
        + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(10_000))
        + b"u\x85q\x01"
        + b"h\x00h\x01R0" * 10_000,
        "more than 1,000,000 instructions",
    ),
    "ten thousand copies of a text": (
        lambda: b"c_codecs\nencode\nq\x00" + text("a" * 100_000) + text("latin1") + b"\x86q\x01"
        + b"h\x00h\x01R0" * 10_000,
        "more bytes than were read",
    ),
    "an empty stack": (lambda: b"a", "no sense"),
    "a mark that is not there": (lambda: b"t", "no sense"),
    "nothing to remember": (lambda: b"q\x00", "no sense"),
    "something never remembered": (lambda: b"h\x09", "no sense"),
}  # fmt: skip
"""What makes readers slow, large or endless, and why it is refused; None if it is harmless as it is read."""


@clause("17.legacy.bounded")
@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_does_not_go_off(read_legacy_checkpoint: Read, tmp_path: Path, bomb: str, old: bool) -> None:
    made, says = BOMBS[bomb]
    path = written(tmp_path / "net.pth", packed(made(), "old" if old else "zip"))
    begun = time.perf_counter()
    if says is None:
        found = read_legacy_checkpoint(path)
        assert "no network" in found.describe()
        assert len(repr(found)) < 1000
        del found
    else:
        with refused(says):
            read_legacy_checkpoint(path)
    assert time.perf_counter() - begun < 30


def numbers_from(start: int, code: bytes = b"") -> bytes:
    """10,001 whole numbers that do not begin with 0, each followed by an instruction."""
    return b"".join(word(start + number) + code for number in range(10_001))


KEYS = {
    "a dictionary": b"}(" + numbers_from(9, b"N") + b"u",
    "a dictionary from the stack": b"(" + numbers_from(9, b"N") + b"d",
    "one entry after the other": b"}" + numbers_from(9, b"Ns"),
    "a set": b"\x8f(" + numbers_from(9) + b"\x90",
    "a frozen set": b"(" + numbers_from(9) + b"\x91",
    "a set that is called": b"cbuiltins\nset\n(" + numbers_from(9) + b"l\x85R",
    "a Counter": b"ccollections\nCounter\n}(" + numbers_from(9, b"N") + b"u\x85R",
    "pairs": b"ccollections\nOrderedDict\n(" + numbers_from(9, b"N\x86") + b"t\x85R",
    "an object": b"cm\nN\n)\x81(" + numbers_from(9, b"N") + b"u",
    "negative numbers": b"}(" + numbers_from(-10_001, b"N") + b"u",
}
"""Every way to put keys that could be chosen into a container."""


@clause("17.legacy.bounded")
@FORMATS
@pytest.mark.parametrize("container", KEYS)
def test_keys_that_could_be_chosen_are_limited(
    read_legacy_checkpoint: Read, tmp_path: Path, container: str, old: bool
) -> None:
    with refused("it has more than 10,000 keys that are no texts"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", packed(KEYS[container], "old" if old else "zip")))


@clause("17.legacy.bounded")
def test_texts_and_numbers_in_their_order_are_not_limited(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    content = {"texts": {f"{n}": n for n in range(30_000)}, "numbers": {n: n for n in range(30_000)}}
    assert read_legacy_checkpoint(save(content, tmp_path / "net.pth")).content == content


CLAIMS = {
    "a text that claims gigabytes": b"X\xff\xff\xff\xffabc",
    "a text that claims exabytes": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "bytes that claim exabytes": b"\x8e" + struct.pack("<Q", 2**62) + b"abc",
    "an array of bytes that claims gigabytes": b"\x96" + struct.pack("<Q", 2**33) + b"abc",
    "a text of Python 2 that claims gigabytes": b"T\xff\xff\xff\x7fabc",
    "a whole number that claims gigabytes": b"\x8b\xff\xff\xff\x7fabc",
    "a text of less than nothing": b"T\xff\xff\xff\xffabc",
}


@clause("17.legacy.bounded")
@FORMATS
@pytest.mark.parametrize("claim", CLAIMS)
def test_no_memory_is_taken_for_a_claim(read_legacy_checkpoint: Read, tmp_path: Path, claim: str, old: bool) -> None:
    path = written(tmp_path / "net.pth", packed(CLAIMS[claim], "old" if old else "zip"))
    tracemalloc.start()
    try:
        with refused("cut off"):
            read_legacy_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


FLOODS = {
    "empty sets": (b"\x8f", 1),
    "empty dictionaries": (b"}", 1),
    "marks": (b"(", 1),
    "empty lists": (b"]", 1),
    "memories": (b"\x94", 1),
    "objects": (b"h\x00)\x81", 3),
    "tensors": (b"h\x01h\x02R", 4),
}
"""The instructions that take most memory, and how many of the million they count as: a dimension counts as one, too."""


def flood(code: bytes, count: int) -> bytes:
    """A file of a million instructions."""
    writer = Writer()
    tensor = writer.tensor(torch.ones(1))
    prepared = (
        pickled(tensor.arguments)[2:-1] + b"r\x02\x00\x00\x000ctorch._utils\n_rebuild_tensor_v2\nq\x010cthey\nX\nq\x000"
    )
    body = b"\x80\x04" + prepared + b"N" + code * (990_000 // count) + b"N."
    members = [Member("data.pkl", body), *(Member(f"data/{key}", data) for key, (data, _) in writer.storages.items())]
    return archive(members)


def limit_memory(more: int) -> None:
    """Of a new process: to what it has, and so much besides."""
    import resource  # not on Windows

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def half_a_gibibyte_more() -> None:
    limit_memory(512 << 20)


def three_sixteenths_of_a_gibibyte_more() -> None:
    limit_memory(192 << 20)


@pytest.mark.slow
@clause("17.legacy.bounded")
@pytest.mark.parametrize("what", FLOODS)
def test_a_million_instructions_take_half_a_gibibyte_at_most(tmp_path: Path, what: str) -> None:
    written(tmp_path / "net.pth", flood(*FLOODS[what]))
    result = run("predict.py", "--legacy", "--checkpoint", "net.pth", folder=tmp_path, prepare=half_a_gibibyte_more)
    assert result.status == 0, result.err
    assert "no network" in result.out


@pytest.mark.slow
@clause("17.legacy.bounded")
@FORMATS
def test_numbers_take_the_memory_that_they_take_in_the_file(tmp_path: Path, old: bool) -> None:
    """128 MiB of them are read with 192 MiB to spare; 256 MiB cannot be, and are refused in one line."""
    words = ("--legacy", "--checkpoint", "net.pth")
    save({"weight": torch.ones(32 << 20)}, tmp_path / "net.pth", old)
    result = run("predict.py", *words, folder=tmp_path, prepare=three_sixteenths_of_a_gibibyte_more)
    assert result.status == 0, result.err
    assert "33,554,432 numbers" in result.out
    save({"weight": torch.ones(64 << 20)}, tmp_path / "net.pth", old)
    result = run("predict.py", *words, folder=tmp_path, prepare=three_sixteenths_of_a_gibibyte_more)
    assert result.status == 2, result.out
    assert len(result.err.splitlines()) == 1


STATES: dict[str, Callable[[Writer, Any], Any]] = {
    "a view for each layer": lambda w, parameter: [
        (number, parameter(w.rebuild(w.first, 0, (1024, 1024), (0, 0)))) for number in range(300)
    ],
    "views with overlaps": lambda w, parameter: [
        (number, parameter(w.rebuild(w.first, 0, (1024, 1024), (1, 1)))) for number in range(300)
    ],
    "one view, a parameter for each layer": lambda w, parameter: (
        lambda view: [(number, parameter(view)) for number in range(300)]
    )(w.rebuild(w.first, 0, (1024, 1024), (0, 0))),
}
"""Ways to have 300 million numbers in a file of 100 KB; `parameter` makes one of a tensor."""


@pytest.mark.slow
@clause("17.legacy.bounded")
@FORMATS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("where", "pruned"),
    [("parameters", False), ("parameters", True), ("buffers", False), ("tensors", False), ("tensors", True)],
    ids=["parameters", "pruned parameters", "buffers", "tensors for parameters", "pruned tensors for parameters"],
)
@pytest.mark.parametrize("what", STATES)
def test_views_take_no_memory_up_to_the_prediction(
    read_legacy_checkpoint: Read, tmp_path: Path, what: str, where: str, pruned: bool, dtype: torch.dtype, old: bool
) -> None:
    """A view with stride 0 has as many numbers as one likes; a change of its dtype makes them real."""
    writer = Writer("1.5" if old else "1.6")
    writer.first = writer.storage(torch.ones(4096, dtype=dtype))
    make = Global("torch._utils", "_rebuild_parameter")
    wrap = (lambda view: view) if where != "parameters" else lambda view: Call(make, (view, True, OrderedDict()))
    layers = []
    for _, tensor in STATES[what](writer, wrap):
        if where == "buffers":
            layers.append(writer.module("torch.nn.modules.linear.Identity", buffers={"it": tensor}))
            continue
        names = ("weight_orig", "weight_mask") if pruned else ("weight", "")
        layer = writer.module(
            "torch.nn.modules.linear.Linear", {names[0]: tensor, "bias": None}, in_features=1024, out_features=1024
        )
        if pruned:
            layer.state["_buffers"] = OrderedDict({names[1]: tensor})
            hook = Object(Global("torch.nn.utils.prune", "L1Unstructured"), {"_tensor_name": "weight", "amount": 1})
            layer.state["_forward_pre_hooks"] = OrderedDict({0: hook})
        layers.append(layer)
    flat = [writer.flatten(), writer.linear(nn.Linear(3072, 1024))]
    path = written(tmp_path / "net.pth", writer.file(writer.sequential(*flat, *layers)))
    assert path.stat().st_size < 13_000_000
    with Allocations() as memory, suppress(InputError):
        network, _ = read_legacy_checkpoint(path).classifier()
        network(torch.ones(1, 3, 32, 32))
    assert memory.peak < 8 * path.stat().st_size + (64 << 20)


@pytest.mark.slow
@clause("17.legacy.bounded")
def test_dimensions_count_as_instructions(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """100,000 tensors of 64 dimensions: each is made with three instructions, and checked with 64 comparisons."""
    writer = Writer()
    view = writer.rebuild(writer.storage(torch.ones(0)), 0, (0,) * 64, (0,) * 64)
    code = b"\x80\x02" + pickled(view.arguments)[2:-1] + b"r\x28\x00\x00\x000"
    code += pickled(view.function)[2:-1] + b"r\x29\x00\x00\x000"
    code += b"h\x29h\x28R0" * 100_000 + b"N."
    storages = [Member(f"data/{key}", data) for key, (data, _) in writer.storages.items()]
    with refused("more than 1,000,000 instructions"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", archive([Member("data.pkl", code), *storages])))


@clause("17.legacy.bounded")
def test_a_small_file_of_many_views_is_refused_with_both_figures(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer()
    storage = writer.storage(torch.ones(1).half())
    content = {f"{n}": writer.rebuild(storage, 0, (1024, 1024), (0, 0)) for n in range(5)}
    with refused("its tensors have 10,485,760 bytes, but the file holds only 2 bytes"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))


@clause("17.legacy.bounded")
def test_shared_and_tied_weights_are_no_bomb(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """One layer in twelve places, and an average that begins with the weights themselves."""
    block = nn.Linear(600, 600)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 600), *[block] * 12, nn.Linear(600, 2)).half()
    found, _ = read_legacy_checkpoint(save(network, tmp_path / "net.pth")).classifier()
    assert found[2] is found[13]
    state = network.state_dict()
    save({"model": state, "ema": dict(state), "best": dict(state)}, tmp_path / "net.pth")
    assert read_legacy_checkpoint(tmp_path / "net.pth", choose="ema").state_dict.keys() == state.keys()


@clause("17.legacy.bounded")
def test_a_batch_is_no_larger_than_its_activations_allow(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """12 KB of weights that make 16 million numbers of one image: not 64 images at once."""
    network = nn.Sequential(nn.Upsample(scale_factor=70), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = read_legacy_checkpoint(save(network, tmp_path / "net.pth"))
    assert 3 * (32 * 70) ** 2 == 15_052_800
    assert found.batch_size(64) == (1 << 26) // 15_052_800 == 4
    assert found.batch_size(2) == 2
    small = read_legacy_checkpoint(save(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), tmp_path / "net.pth"))
    assert small.batch_size(64) == 64


# Fuzzing


@clause("17.legacy.fuzzed")
def test_damaged_files_are_refused_or_read_and_nothing_else(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    outcomes = fuzz(read_legacy_checkpoint, tmp_path, 120, seed=0)
    assert outcomes["read"] > 2
    assert outcomes["refused"] > 60


@pytest.mark.slow
@clause("17.legacy.fuzzed")
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_damaged_files_are_refused_or_read(
    read_legacy_checkpoint: Read, tmp_path: Path, seed: int
) -> None:
    assert fuzz(read_legacy_checkpoint, tmp_path, 2000, seed)["refused"] > 1000


# The script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, and the tutorial's network as a GPU of 2020 left it."""
    writer = Writer("1.5", "cuda:0")
    content, _ = old_ocean(writer, "model.Ocean")
    written(tmp_path / "old.pth", writer.file(content))
    for number in range(2):
        Image.new("RGB", (40, 30), (90 * number, 20, 200)).save(tmp_path / f"{number}.png")
    return tmp_path


@clause("17.legacy.script")
@pytest.mark.slow
def test_the_script_describes_a_whole_network_and_how_it_is_read(folder: Path) -> None:
    result = run("predict.py", "0.png", "--checkpoint", "old.pth", folder=folder)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    for word in ("old.pth", "a whole network (model.Ocean)", "--legacy", "without running anything in it"):
        assert word in result.err
    save(Ocean(), folder / "new.pth")
    assert "a whole network" in (err := run("predict.py", "0.png", "--checkpoint", "new.pth", folder=folder).err)
    assert "--legacy" in err
    save(Ocean().state_dict(), folder / "state.pth")
    assert "a state dict" in (err := run("predict.py", "0.png", "--checkpoint", "state.pth", folder=folder).err)
    assert "--legacy" in err
    written(folder / "trap.pth", packed(tricks(folder / "victim")["REDUCE of os.mkdir"], "zip"))
    assert "os.mkdir" in (err := run("predict.py", "0.png", "--checkpoint", "trap.pth", folder=folder).err)
    assert "--legacy" not in err


@clause("17.legacy.script")
@pytest.mark.slow
def test_the_script_describes_a_file(folder: Path) -> None:
    result = run("predict.py", "--legacy", "--checkpoint", "old.pth", folder=folder)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "old.pth: a whole network (format before PyTorch 1.6)"
    assert lines[1:14] == repr(Ocean()).splitlines()
    assert lines[14] == "10 tensors, 145,578 numbers: float32"  # chapter 18: the size of the tutorial's network
    assert "model.Ocean" in lines[15]


@clause("17.legacy.script")
@pytest.mark.slow
def test_the_script_predicts_with_numbers_or_with_names(folder: Path) -> None:
    writer = Writer("1.5", "cuda:0")
    _, ocean = old_ocean(writer)
    pixels = torch.tensor(np.array(Image.open(folder / "1.png").resize((32, 32), Image.Resampling.BILINEAR)))
    with torch.no_grad():
        shares = ocean((pixels.permute(2, 0, 1)[None] / 255).float()).softmax(1)[0]
    best = int(shares.argmax())
    words = ("1.png", "--legacy", "--checkpoint", "old.pth", "--top-k", 1)
    result = run("predict.py", *words, folder=folder)
    assert result.status == 0, result.err
    assert result.out == f"1.png: class {best} {shares[best]:.1%}\n"
    assert result.err.startswith("note: model.Ocean is taken to do nothing but apply its only part, 'model1'")
    names = [f"name{number}" for number in range(10)]
    result = run("predict.py", *words, "--class-names", *names, folder=folder)
    assert result.out == f"1.png: name{best} {shares[best]:.1%}\n"
    result = run("predict.py", *words, "--class-names", "dog", "cat", folder=folder)
    assert result.status == 2
    assert "gives 10 scores an image, but there are 2 class names" in result.err


@clause("17.legacy.script")
@pytest.mark.slow
def test_class_names_without_legacy_are_refused(folder: Path) -> None:
    save_checkpoint(folder / "ours.pt", reference.Ocean(), tuple("abcdefghij"))
    result = run("predict.py", "0.png", "--checkpoint", "ours.pt", "--class-names", "a", folder=folder)
    assert result.status == 2
    assert "--class-names, --size and --choose need --legacy" in result.err


@clause("17.legacy.classifier")
@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda: nn.Sequential(nn.Flatten()), "no parameters"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 2)), "fails on an image of 32×32"),
        (lambda: nn.Sequential(nn.Conv2d(3, 1, 1)), "row of scores"),
        (lambda: nn.Sequential(nn.Conv2d(3, 1, 1, padding=10**6), nn.Flatten()), "numbers of one image"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(10**5), nn.Conv2d(3, 1, 1)), "numbers of one image"),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=1e5), nn.Conv2d(3, 1, 1)), "numbers of one image|fails"),
        (lambda: nn.Sequential(nn.Conv2d(3, 300, 1), nn.AdaptiveAvgPool2d(20), nn.Flatten()), "row of scores"),
        (lambda: nn.LSTM(3, 2), "fails|row"),
        (lambda: nn.ModuleList([nn.Linear(1, 1)]), "cannot predict"),
    ],
    ids=["no parameters", "another size", "a map", "an endless border", "an endless average", "an endless image",
         "endless scores",
         "a sequence", "no forward"],
)  # fmt: skip
def test_a_network_that_cannot_classify_images_is_refused(
    read_legacy_checkpoint: Read, tmp_path: Path, network: Callable[[], nn.Module], says: str
) -> None:
    found = read_legacy_checkpoint(save(network(), tmp_path / "net.pth"))
    with refused(says):
        found.classifier()


@clause("17.legacy.classifier")
def test_a_network_of_half_precision_classifies_in_single(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    made = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.Linear(3072, 3)).half()
    network, names = read_legacy_checkpoint(save(made, tmp_path / "net.pth")).classifier()
    assert names == ["class 0", "class 1", "class 2"]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 3)
