"""Chapter 17: whole networks in files of any PyTorch, read without their classes and without running anything."""

import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from spec.support.assertions import assert_equal
from spec.support.clauses import clause
from spec.support.legacy_files import FORMATS, Ocean, Read, old_ocean, refused, save, written
from spec.support.torch_files import Fresh, Global, Member, Object, Persistent, Writer, archive, pickled


class Hidden(nn.Module):
    """A class with a persistent and a non-persistent buffer, and an unknown forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)
        self.act, self.squash = torch.tanh, nn.functional.relu
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("left_out", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Save an object of a class in a temporary module."""

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
def test_a_network_of_pytorch_layers_is_restored(
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
def test_the_tutorial_network_is_loaded_without_a_class_definition(
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
    assert any("their_code.Ocean" in note and "'model1'" in note for note in found.notes)  # the assumption


@clause("17.legacy.sources")
def test_legacy_format_source_code_is_kept_as_text(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
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
def test_a_state_dict_of_vgg16_is_loaded_as_a_network(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.vgg16(weights=None, num_classes=3)
    found = read_legacy_checkpoint(save(network.state_dict(), tmp_path / "net.pth"))
    assert repr(found.network) == repr(network)
    for key, tensor in network.state_dict().items():
        assert_equal(found.network.state_dict()[key], tensor, key)
    _, names = found.classifier(size=(224, 224))
    assert len(names) == 3


@clause("17.legacy.vgg")
def test_submodules_added_to_vgg_are_never_run(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
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
def test_an_unknown_class_gives_tensors_but_no_runnable_network(
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
def test_an_ambiguous_network_is_not_run(
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
def test_networks_of_reference_layers_are_recognized(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    network = reference.Sequential(reference.Conv2d(1, 2, 3), reference.Flatten(), reference.Linear(8, 2))
    found = read_legacy_checkpoint(save(network, tmp_path / "net.pth"))
    assert found.tree == repr(network)
    assert [type(layer) for layer in found.network] == [nn.Conv2d, nn.Flatten, nn.Linear]
    found.network.load_state_dict(network.state_dict())


# Files of PyTorch 1


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
def test_hand_made_files_equal_those_of_pytorch(tmp_path: Path) -> None:
    """PyTorch reads these files, and writes the same bytes today if the format has not changed since 1.13."""
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
def test_classes_with_source_and_storage_views_are_read(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer("1.5")
    ocean = Persistent(("module", Global("__main__", "Ocean"), "their/train.py", "class Ocean:\n    pass\n"))
    content, network = old_ocean(writer, ocean)
    found = read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))
    assert found.sources == {"__main__.Ocean": "class Ocean:\n    pass\n"}
    assert found.tree == repr(network)
    # PyTorch 0 saved a slice as a separate storage that is a part of another one: (key, first, size)
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
def test_layers_of_older_releases_are_converted(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """A BatchNorm2d that counts no batches (before 0.4.1), and attention with another class of Linear (before 1.9)."""
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))  # pyright: ignore[reportOptionalMemberAccess]
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
def test_big_endian_numbers_are_converted(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
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
