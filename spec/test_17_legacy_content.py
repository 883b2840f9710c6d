"""Chapter 17: state dicts, several networks and other data in foreign files; and files that are not read."""

import datetime
import gzip
import io
import math
import os
import pickle
import re
import struct
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from spec.support.assertions import assert_equal
from spec.support.clauses import clause
from spec.support.legacy_files import FORMATS, Ocean, Read, refused, save, written
from spec.support.torch_files import Global, Member, Object, Writer, archive, pickled

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
def test_tensors_of_all_dtypes_and_layouts_are_restored(
    read_legacy_checkpoint: Read, tmp_path: Path, old: bool
) -> None:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32]
    kinds += [torch.int64, torch.bool, torch.complex64, torch.complex128]
    if not old:  # newer than the old format
        kinds += [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn]
    tensors = [torch.arange(6).to(kind).reshape(2, 3) for kind in kinds]
    base = torch.arange(20.0)
    views = [base[3:9:2], base.reshape(4, 5).t(), base[:1].expand(7), base[5], base[:0], torch.zeros(2, 0, 3)]
    named = torch.ones(2, requires_grad=True)
    named.kind = "with an attribute"  # pyright: ignore[reportAttributeAccessIssue]
    found = read_legacy_checkpoint(save([*tensors, *views, named], tmp_path / "net.pth", old)).content
    for got, expected in zip(found, [*tensors, *views, named], strict=True):
        assert got.dtype == expected.dtype
        assert got.stride() == expected.stride()
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8)) if got.dtype.itemsize == 1 else True
        if got.dtype not in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn):
            assert_equal(got, expected)
    assert found[-1].requires_grad
    assert found[len(kinds)].data_ptr() == found[len(kinds) + 1].data_ptr() + 3 * 4  # they still share their storage


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
def test_a_state_dict_of_the_tutorial_network_is_loaded_as_a_network(
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
    """A class with the tutorial's Sequential as its only part, under another name (lines 1057 to 1070)."""
    return {key.replace("model1.", "model."): tensor for key, tensor in ocean.state_dict().items()}


def with_wrapped_layers(ocean: Ocean) -> dict[str, Tensor]:
    """Layers that are separately parallel or compiled."""
    state = ocean.state_dict()
    return {
        key.replace("model1.0.", "model1.0.module.").replace("model1.7.", "model1.7._orig_mod."): tensor
        for key, tensor in state.items()
    }


def averaged(ocean: Ocean) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(ocean)


def trained(ocean: nn.Module) -> dict[str, Any]:
    """The state of an optimizer after a step: it contains tensors with the shapes of the weights."""
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
    "an averaged model of DataParallel, whole": lambda ocean: averaged(nn.DataParallel(ocean)),  # pyright: ignore[reportArgumentType]
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
"""Typical files with the keys of the programs that write them."""


@clause("17.legacy.everyday")
@FORMATS
@pytest.mark.parametrize("how", EVERYDAY)
@pytest.mark.slow
def test_common_checkpoint_layouts_are_recognized(
    read_legacy_checkpoint: Read, tmp_path: Path, how: str, old: bool
) -> None:
    ocean = Ocean()
    images = torch.rand(2, 3, 32, 32)
    content = EVERYDAY[how](ocean)  # some of them run a step of an optimizer
    with torch.no_grad():
        expected = ocean(images)
    assert_equal(scores_of(read_legacy_checkpoint(save(content, tmp_path / "net.pth", old)), images), expected)


@clause("17.legacy.everyday")
@pytest.mark.slow
def test_a_path_written_by_python_3_13_is_recognized(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    ocean, images = Ocean(), torch.rand(2, 3, 32, 32)
    file = save({"model": ocean.state_dict(), "path": PurePosixPath("x")}, tmp_path / "net.pth", True)
    path = re.compile(rb"cpathlib(\._local)?\n")  # Python 3.13 defines the classes in a module of its own
    assert len(path.findall(file.read_bytes())) == 1
    file.write_bytes(path.sub(b"cpathlib._local\n", file.read_bytes()))
    assert_equal(scores_of(read_legacy_checkpoint(file), images), ocean(images).detach())


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
def test_key_option_selects_one_of_several_networks(
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
def test_key_option_accepts_the_only_network(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
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
def test_pruned_networks_apply_the_masks(read_legacy_checkpoint: Read, tmp_path: Path, whole: bool, old: bool) -> None:
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
def test_unknown_forward_hooks_are_refused_as_code(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
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
def test_a_safetensors_file_with_false_metadata_is_refused(
    read_legacy_checkpoint: Read, tmp_path: Path, lie: str
) -> None:
    change, says = SAFETENSORS[lie]
    whole = safetensors.torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True])})
    read_legacy_checkpoint(written(tmp_path / "net.pth", whole))
    assert change(whole) != whole
    with refused(says):
        read_legacy_checkpoint(written(tmp_path / "net.pth", change(whole)))


@clause("17.legacy.safetensors")
@pytest.mark.parametrize("first", [0x80, 0x3C, 0x08, 0x50], ids=["as a pickle", "as a web page", "as ONNX", "as zip"])
def test_a_safetensors_file_may_begin_with_any_byte(read_legacy_checkpoint: Read, tmp_path: Path, first: int) -> None:
    """The file begins with the length of its header."""
    whole = safetensors.torch.save({"a": torch.arange(6.0)})
    length = int.from_bytes(whole[:8], "little")
    padded = length + (first - length) % 256
    header = whole[8 : 8 + length].ljust(padded)
    path = written(tmp_path / "net.pth", padded.to_bytes(8, "little") + header + whole[8 + length :])
    assert path.read_bytes()[0] == first
    assert_equal(read_legacy_checkpoint(path).state_dict["a"], torch.arange(6.0))


# Files that are not read


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
def test_unsupported_tensor_types_are_refused_by_name(read_legacy_checkpoint: Read, tmp_path: Path, kind: str) -> None:
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
def test_other_file_types_are_refused_by_name(
    read_legacy_checkpoint: Read, tmp_path: Path, content: bytes, says: str
) -> None:
    with refused(says):
        read_legacy_checkpoint(written(tmp_path / "net.pth", content))


@clause("17.legacy.not_read")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchscript_and_exported_programs_are_refused_by_name(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
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
def test_a_changed_bit_of_a_zip_file_is_detected(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer()
    whole = writer.file([writer.tensor(torch.arange(5.0))])
    for part in (struct.pack("<5f", *range(5)), b"_rebuild_tensor_v2"):
        at = whole.index(part)
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with refused("the checksum of member"):
            read_legacy_checkpoint(written(tmp_path / "net.pth", changed))
