"""Chapter 17: checkpoints: saved data is restored, other files are refused, no code in a file is run."""

import io
import os
import pickle
import random
import re
import signal
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from reference import read_legacy_checkpoint
from reference.checkpoint import build_network, check_plain, load_checkpoint, save_checkpoint
from reference.data.shapes import Shapes
from reference.errors import InputError
from reference.inference import predict
from reference.models import Ocean
from reference.untrusted.archive import Archive
from spec.support.clauses import clause
from spec.support.command import Command, run
from spec.support.fuzzing import fuzz, whole
from spec.support.limits import room_for
from spec.support.strategies import given, normal
from spec.support.zip_lies import LIES, parts

NAMES = Shapes.classes


@cache
def ocean() -> Ocean:
    """The same network each time; not to be changed."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    network = Ocean()
    torch.set_rng_state(state)
    return network


@cache
def whole_file() -> bytes:
    """A checkpoint of it."""
    with TemporaryDirectory() as folder:
        return saved(Path(folder)).read_bytes()


@cache
def whole_content() -> dict[str, Any]:
    """What is in it; not to be changed."""
    return torch.load(io.BytesIO(whole_file()))


def saved(folder: Path, **options: Any) -> Path:
    save_checkpoint(folder / "net.pt", ocean(), NAMES, **options)
    return folder / "net.pt"


def written(folder: Path, content: bytes) -> Path:
    (folder / "net.pt").write_bytes(content)
    return folder / "net.pt"


def same(one: Any, other: Any) -> bool:
    """Whether plain data are equal, with the same types, and tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        bits = [x.reshape(-1).view(torch.uint8) for x in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The checkpoint with its dictionary changed in place, or replaced by the return value of `change`."""
    content = torch.load(path, weights_only=True)
    replacement = change(content)
    torch.save(content if replacement is None else replacement, path)
    return path


@clause("17.checkpoint.round_trip")
def test_saved_content_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    training = {"optimizer": {"momentum": torch.arange(3.0)}, "progress": {"step": 7}}
    content = load_checkpoint(saved(tmp_path, metrics={"test_accuracy": 0.5}, training=training))
    assert content["class_names"] == list(NAMES)
    assert content["network"] == {"name": "Ocean", "classes": 10}
    assert content["preprocessing"] == {"size": [32, 32], "mode": "RGB", "scale": 255}
    assert content["metrics"] == {"test_accuracy": 0.5}
    assert same(content["training"], training)
    assert same(dict(build_network(content).state_dict()), dict(ocean().state_dict()))


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
dtypes_of_tensors = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.uint16])
tensors = st.builds(lambda n, dtype: torch.arange(n).to(dtype), st.integers(0, 5), dtypes_of_tensors)
plain = st.recursive(
    numbers | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=10,
)


@clause("17.checkpoint.round_trip")
@pytest.mark.slow
@given(
    metrics=st.dictionaries(st.text(max_size=3), plain, max_size=2),
    training=st.dictionaries(st.text(), plain, max_size=2),
)
def test_accepted_content_is_loaded_with_the_same_types(metrics: dict[str, Any], training: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # power cuts are not simulated
        content = load_checkpoint(saved(Path(folder), metrics=metrics, training=training))
    assert same(content["metrics"], metrics)
    assert same(content["training"], training)


@clause("17.checkpoint.plain_data")
def test_torch_load_reads_a_checkpoint_with_weights_only(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path), weights_only=True)
    assert list(content) == [
        "format", "version", "network", "class_names", "preprocessing", "state_dict", "metrics", "training",
    ]  # fmt: skip


@clause("17.checkpoint.enough")
def test_a_checkpoint_alone_is_enough_to_predict(tmp_path: Path) -> None:
    Shapes(size=1)[0][0].save(tmp_path / "it.png")
    content = load_checkpoint(saved(tmp_path))
    network, names = build_network(content), content["class_names"]
    assert list(predict(network, names, tmp_path / "it.png")) == list(predict(ocean(), NAMES, tmp_path / "it.png"))


# Atomic writing


@clause("17.checkpoint.atomic")
def test_an_older_checkpoint_remains_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)  # the last step that can fail
    with pytest.raises(OSError, match=r"net\.pt could not be written: No space left on device"):
        saved(tmp_path, metrics={"test_accuracy": 1.0})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.pt"]


@clause("17.checkpoint.atomic")
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_full_disk_leaves_only_the_older_checkpoint(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with room_for(int(share * len(before))), pytest.raises(OSError, match=r"net\.pt could not be written: "):
        saved(tmp_path, metrics={"test_accuracy": 1.0})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.pt"]


SAVER = """
import sys, torch
from pathlib import Path
from reference.checkpoint import save_checkpoint
from reference.models import Ocean
from reference.untrusted.archive import Archive
network, number = Ocean(), 0
while True:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(number)
    save_checkpoint(Path("net.pt"), network, ["a"] * 10, metrics={"number": number})
    print("saved", flush=True)
    number += 1
"""


@clause("17.checkpoint.atomic")
@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "saver.py").write_text(SAVER)
    command = Command(str(tmp_path / "saver.py"), folder=tmp_path)
    command.wait_for("saved")
    moments = random.Random(0)
    for _ in range(5):  # at any time the file is complete and consistent
        time.sleep(moments.uniform(0, 0.01))
        content = load_checkpoint(tmp_path / "net.pt")
        found = {value.unique().item() for value in content["state_dict"].values()}
        assert found == {content["metrics"]["number"]}
    command.send(signal.SIGKILL)
    assert command.wait().status == -signal.SIGKILL
    load_checkpoint(tmp_path / "net.pt")


# Verification while reading


@clause("17.checkpoint.whole")
@given(length=st.integers(0, 10**6))
def test_a_checkpoint_that_is_cut_off_is_refused(length: int) -> None:
    with TemporaryDirectory() as folder:
        path = written(Path(folder), whole_file()[: length % len(whole_file())])
        with pytest.raises(InputError, match=r"net\.pt (is damaged or cut off|is not a checkpoint): "):
            load_checkpoint(path)


@clause("17.checkpoint.whole")
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), from_end=st.booleans())
def test_a_changed_bit_is_detected_at_every_position(place: int, bit: int, from_end: bool) -> None:
    """Half of the trials change the directory of the archive in the last 2000 bytes, the others mostly weights."""
    content = bytearray(whole_file())
    place = len(content) - 1 - place % 2000 if from_end else place % len(content)
    content[place] ^= 1 << bit
    with TemporaryDirectory() as folder:
        path = written(Path(folder), bytes(content))
        try:
            found = load_checkpoint(path)
        except InputError:
            return
    assert same(found, whole_content())


@clause("17.checkpoint.whole")
def test_a_changed_bit_in_the_weights_is_named(tmp_path: Path) -> None:
    content = bytearray(whole_file())
    weights = ocean().model1[7].weight.detach().numpy().tobytes()
    content[whole_file().index(weights) + 1000] ^= 1
    with pytest.raises(
        InputError, match=r"net\.pt is damaged or cut off: the checksum of member 'data/6' of its archive is wrong"
    ):
        load_checkpoint(written(tmp_path, bytes(content)))


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a state dict alone": (lambda content: content["state_dict"], "not an Ocean Spec checkpoint"),
    "a tensor": (lambda content: torch.zeros(3), "not an Ocean Spec checkpoint"),
    "a list": (lambda content: [1, 2], "not an Ocean Spec checkpoint"),
    "a format that is a tensor": (
        lambda content: content.update(format=torch.zeros(3)), "not an Ocean Spec checkpoint",
    ),
    "a version that is a tensor": (lambda content: content.update(version=torch.ones(3)), "version tensor"),
    "a network that is a list": (lambda content: content["network"].update(name=["Ocean"]), r"the network \['Ocean'\]"),
    "a number of classes that is true": (
        lambda content: content.update(class_names=["a"], network={"name": "Ocean", "classes": True}),
        "its class names are 1, its classes True",
    ),
    "a preprocessing of tensors": (
        lambda content: content["preprocessing"].update(size=torch.ones(2)), "wants the preprocessing",
    ),
    "a weight that is infinite": (
        lambda content: content["state_dict"].update({"model1.0.bias": torch.full((32,), torch.inf)}),
        r"model1\.0\.bias has numbers that are not finite",
    ),
    "a newer version": (lambda content: content.update(version=99), "version 99.*reads version 1"),
    "another network": (lambda content: content["network"].update(name="Lake"), "the network 'Lake'.*knows Ocean"),
    "fewer names than classes": (
        lambda content: content.update(class_names=list(NAMES[:9])), "its class names are 9, its classes 10",
    ),
    "another number of classes": (
        lambda content: content.update(class_names=list(NAMES[:9]), network={"name": "Ocean", "classes": 9}),
        r"model1\.8\.weight is torch.float32 \(10, 64\), but Ocean for 9 classes needs torch.float32 \(9, 64\)",
    ),
    "no classes": (lambda content: content["class_names"].clear(), "class_names"),
    "names that are numbers": (lambda content: content.update(class_names=[1] * 10), "class_names"),
    "no weights": (lambda content: content.update(state_dict={}), "'model1.0.weight' is missing"),
    "weights of nothing": (lambda content: content.update(state_dict=[]), "'state_dict' is missing or not a dict"),
    "one weight too many": (
        lambda content: content["state_dict"].update(extra=torch.zeros(1)), "'extra' does not belong there",
    ),
    "a weight that is a number": (
        lambda content: content["state_dict"].update({"model1.0.bias": 3}), r"'model1\.0\.bias' is missing",
    ),
    "a weight of another shape": (
        lambda content: content["state_dict"].update({"model1.0.bias": torch.zeros(31)}),
        r"model1\.0\.bias is torch.float32 \(31,\), but Ocean for 10 classes needs torch.float32 \(32,\)",
    ),
    "a weight of another dtype": (
        lambda content: content["state_dict"].update({"model1.0.bias": torch.zeros(32).double()}),
        r"model1\.0\.bias is torch.float64 \(32,\), but .* needs torch.float32 \(32,\)",
    ),
    "another preprocessing": (lambda content: content.update(preprocessing={}), "wants the preprocessing"),
}  # fmt: skip


@clause("17.checkpoint.sound")
@pytest.mark.parametrize("what", WRONG)
def test_an_invalid_checkpoint_is_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    change, message = WRONG[what]
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(edited(saved(tmp_path), change))
    assert "net.pt" in str(caught.value)


@clause("17.checkpoint.sound")
@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100)],
    ids=["an empty file", "the first bytes of a ZIP file", "a text", "the first bytes of a PNG file"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"net\.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "net.pt")


@clause("17.checkpoint.sound")
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)


class Trap:
    """An object that creates a file when Python's own reader unpickles it."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def hostile(kind: str, folder: Path) -> Path:
    path, trap = saved(folder), Trap(folder / "victim")
    if kind == "among the weights":
        edited(path, lambda content: content["state_dict"].update(extra=trap))
    elif kind == "as the whole file":
        torch.save(trap, path)
    elif kind == "as a whole network":
        torch.save(Ocean(), path)
    elif kind == "as a bare pickle":
        path.write_bytes(pickle.dumps(trap))
    elif kind == "in an archive with another name for its data":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", pickle.dumps(trap))
            archive.writestr("net/version", "3\n")
            archive.writestr("net/byteorder", "little")
    return path


KINDS = (
    "among the weights",
    "as the whole file",
    "as a whole network",
    "as a bare pickle",
    "in an archive with another name for its data",
)


@clause("17.checkpoint.no_code")
@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_file_is_never_run(tmp_path: Path, kind: str) -> None:
    path = hostile(kind, tmp_path)
    with pytest.raises(InputError, match=r"net\.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "victim").exists()


@clause("17.checkpoint.no_code")
@pytest.mark.parametrize(
    ("content", "asks"),
    [
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"accuracy": np.float64(1)}, "numpy._core.multiarray.scalar"),
        (
            {"room": bytearray(3)},
            "builtins.bytearray",
        ),  # PyTorch's reader would create one of any requested length
        ({"sparse": torch.eye(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
    ],
    ids=["a network", "a NumPy number", "an array of bytes", "a sparse tensor"],
)
def test_the_error_of_a_refused_file_names_the_requested_function(tmp_path: Path, content: Any, asks: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match=rf"net\.pt was refused: it holds more than plain data \(it asks for {asks}\)"):
        load_checkpoint(tmp_path / "net.pt")


@clause("17.checkpoint.no_code")
def test_the_trap_pickle_runs_code_in_pythons_unpickler(tmp_path: Path) -> None:
    """The test above can fail: Python's own reader runs it."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "victim")))
    assert (tmp_path / "victim").exists()


@clause("17.checkpoint.no_code")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predict_says_in_one_line_that_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    hostile(kind, tmp_path)
    result = run("predict.py", "image.png", "--checkpoint", "net.pt", folder=tmp_path)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: net.pt ")
    assert not (tmp_path / "victim").exists()


# Memory in proportion to the file


def repacked(
    change: Callable[[str, bytes], bytes] = lambda name, data: data, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """The checkpoint with its records rewritten."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole_file())) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


@clause("17.checkpoint.bounded")
def test_rewritten_archive_records_are_read(tmp_path: Path) -> None:
    """The rewritten checkpoint is valid, so that the tests below fail only for their own reason."""
    assert same(load_checkpoint(written(tmp_path, repacked())), whole_content())


@clause("17.checkpoint.bounded")
def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 KB of zeros that expand to 40 MB; `torch.load` would expand any number of gigabytes."""
    bomb = repacked(lambda name, data: bytes(40_000_000) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED)
    assert len(bomb) < len(whole_file()) + 100_000
    path = written(tmp_path, bomb)
    monkeypatch.delattr(torch, "load")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is packed or encrypted"):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@clause("17.checkpoint.bounded")
def test_a_tensor_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    """The pickle claims 1,073,744,224 numbers in the storage of the first weight, which has 2,400."""

    def claim(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        few, many = b"M" + (2400).to_bytes(2, "little"), b"J" + (2400 + 2**30).to_bytes(4, "little")
        assert few in data
        return data.replace(few, many, 1)

    with pytest.raises(
        InputError, match=r"net\.pt is damaged or cut off: storage '0' is to have 4,294,976,896 bytes, but has 9,600"
    ):
        load_checkpoint(written(tmp_path, repacked(claim)))


@clause("17.checkpoint.bounded")
def test_records_that_overlap_are_refused(tmp_path: Path) -> None:
    """A directory in which each record extends to the end of the file: n records have n times its size."""
    content = bytearray(whole_file())
    first = content.index(b"PK\x01\x02")
    for entry in range(first, len(content) - 4):
        if content[entry : entry + 4] == b"PK\x01\x02":
            content[entry + 20 : entry + 28] = 2 * (first // 2).to_bytes(4, "little")
    with pytest.raises(InputError, match=r"contradicts itself|overlap"):
        load_checkpoint(written(tmp_path, bytes(content)))


@clause("17.checkpoint.bounded")
def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two records with one name: one reader uses the first, another one the last."""
    file = io.BytesIO(whole_file())
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(InputError, match="is there twice"):
        load_checkpoint(written(tmp_path, file.getvalue()))


@clause("17.checkpoint.one_reader")
@pytest.mark.parametrize("lie", LIES)
def test_an_ambiguous_archive_is_refused(tmp_path: Path, lie: str) -> None:
    with pytest.raises(InputError, match=r"net\.pt (is damaged or cut off|is not a checkpoint)"):
        load_checkpoint(written(tmp_path, LIES[lie](whole_file())))


@clause("17.checkpoint.one_reader")
def test_the_unmodified_archive_of_the_zip_attacks_is_read(tmp_path: Path) -> None:
    assert parts(whole_file()).joined() == whole_file()
    assert same(load_checkpoint(written(tmp_path, parts(whole_file()).joined())), whole_content())


@clause("17.checkpoint.one_reader")
def test_torch_load_is_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verified bytes are the bytes that are used, because the file is read only once."""
    path, expected = saved(tmp_path), whole_content()
    monkeypatch.delattr(torch, "load")
    monkeypatch.delattr(torch.serialization, "load")
    monkeypatch.delattr(torch._C, "PyTorchFileReader")
    assert same(load_checkpoint(path), expected)


@clause("17.checkpoint.one_reader")
def test_everything_is_loaded_to_the_cpu_for_every_default_device(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with torch.device("meta"):
        content = load_checkpoint(path)
    assert same(content, whole_content())
    assert {tensor.device.type for tensor in content["state_dict"].values()} == {"cpu"}


@clause("17.checkpoint.one_reader")
def test_a_file_that_changes_while_it_is_read_is_refused_or_read_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksum is computed from the bytes in the tensors, not from an earlier read."""
    path = saved(tmp_path)
    weights = ocean().model1[7].weight.detach().numpy().tobytes()
    place = path.read_bytes().index(weights)
    genuine = Archive.read_into

    def read_into(archive: Archive, name: str, buffer: memoryview) -> None:
        with path.open("r+b") as file:  # before each member another process changes a weight
            file.seek(place + 1000)
            file.write(b"\x55")
        genuine(archive, name, buffer)

    monkeypatch.setattr(Archive, "read_into", read_into)
    with pytest.raises(InputError, match="the checksum of member 'data/6'"):
        load_checkpoint(path)


ADVICE = r"weights_only|add_safe_globals|safe_globals|torch\.load|trust|WeightsUnpickler|Unpickl"
"""PyTorch's advice on running the code in a file."""

FOREIGN: dict[str, Callable[[], bytes]] = {
    "a network": lambda: saved_bytes(Ocean()),
    "a function": lambda: saved_bytes({"format": print}),
    "a class": lambda: saved_bytes({"format": Path}),
    "an object": lambda: saved_bytes({"format": Path("x")}),
    "a dtype of NumPy": lambda: saved_bytes({"format": np.dtype("f4")}),
    "an array of NumPy": lambda: saved_bytes({"format": np.zeros(2)}),
    "a set": lambda: saved_bytes({"format": {1}}),
    "a sparse tensor": lambda: saved_bytes({"format": torch.eye(2).to_sparse()}),
    "a nested tensor": lambda: saved_bytes({"format": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])}),
    "a meta tensor": lambda: saved_bytes({"format": torch.ones(2, device="meta")}),
    "a storage": lambda: saved_bytes({"format": torch.ones(2).untyped_storage()}),
    "a protocol that is not known": lambda: repacked_pickle(lambda code: b"\x80\x09" + code[2:]),
    "an instruction that is not known": lambda: repacked_pickle(lambda code: code[:-1] + b"\xff."),
    "a persistent reference": lambda: repacked_pickle(lambda code: code[:-1] + b"0K\x01Q."),
    "an unknown module": lambda: repacked_pickle(lambda code: code[:-1] + b"0cthey\nsystem\n)R."),
    "no end": lambda: repacked_pickle(lambda code: code[:-1]),
    "nothing": lambda: repacked_pickle(lambda code: b""),
    "a storage of 3 GiB": lambda: repacked_pickle(
        lambda code: code[:-1] + b"0ctorch.storage\nUntypedStorage\nJ" + (3 << 29).to_bytes(4, "little") + b"\x85R."
    ),
    "a tensor of 3 GiB": lambda: repacked_pickle(
        lambda code: code[:-1] + b"0ctorch\nzeros\nJ" + (3 << 29).to_bytes(4, "little") + b"\x85R."
    ),
    "a typed storage of 3 GiB": lambda: repacked_pickle(
        lambda code: code[:-1] + b"0ctorch\nFloatStorage\nJ" + (3 << 28).to_bytes(4, "little") + b"\x85R."
    ),
    "another type of tensor": lambda: repacked_pickle(
        lambda code: code[:-1] + b"0ctorch\nFloatTensor\nJ" + (3 << 28).to_bytes(4, "little") + b"\x85R."
    ),
}


def saved_bytes(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def repacked_pickle(change: Callable[[bytes], bytes]) -> bytes:
    return repacked(lambda name, data: change(data) if name.endswith("data.pkl") else data)


@clause("17.checkpoint.own_words")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("what", FOREIGN)
def test_no_error_suggests_weights_only_false(tmp_path: Path, what: str) -> None:
    """None of these files takes memory, although the largest one requests 3 GiB."""
    resource = pytest.importorskip("resource")
    path = written(tmp_path, FOREIGN[what]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"net\.pt ") as caught:
        load_checkpoint(path)
    assert not re.search(ADVICE, str(caught.value)), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (256 << 10)  # KiB


@clause("17.checkpoint.bounded")
@pytest.mark.parametrize("entry", ["format", "version", "preprocessing", "network"])
def test_error_messages_truncate_deeply_nested_lists(tmp_path: Path, entry: str) -> None:
    """Sixty lists, each twice in the next one: the text of a short file would have 2⁶⁰ brackets."""
    lists: list[Any] = []
    for _ in range(60):
        lists = [lists, lists]
    value = {"preprocessing": {"size": lists}, "network": {"name": lists}}.get(entry, lists)
    with pytest.raises(InputError, match=r"net\.pt"):
        load_checkpoint(edited(saved(tmp_path), lambda content: content.update({entry: value})))


@clause("17.checkpoint.bounded")
def test_a_list_that_is_there_twice_is_checked_once() -> None:
    """Sixty lists, each twice in the next one: a walk through all places would not end."""
    lists: list[Any] = []
    for _ in range(60):
        lists = [lists, lists]
    check_plain(lists, "the content")


@clause("17.checkpoint.sound")
def test_an_unbound_state_dict_method_is_not_a_network(tmp_path: Path) -> None:
    """`model.state_dict` without parentheses is stored as `getattr(model, name)`; here both arguments are missing."""
    path = tmp_path / "net.pth"
    path.write_bytes(whole("zip", (b"\x80\x02cbuiltins\ngetattr\n)\x81.", {})))
    with pytest.raises(InputError, match=r"net\.pth .*it holds data, but no network"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="network"):
        read_legacy_checkpoint(path).classifier(("a", "b"), (32, 32))


@clause("17.checkpoint.whole")
@pytest.mark.slow
def test_damaged_checkpoints_are_either_refused_or_read(tmp_path: Path) -> None:
    assert fuzz(load_checkpoint, tmp_path, 300, seed=0)["refused"] > 250


@clause("17.checkpoint.bounded")
def test_data_that_is_not_plain_is_refused_in_every_place(tmp_path: Path) -> None:
    """A class as a value, which plain data need, and deeply nested lists."""
    name = b"ccollections\nOrderedDict\n"
    deep = b"]" * 50_000 + b"a" * 49_999
    for value, says in (
        (name, r"its content\['x'\] is a \S*Name"),
        (b"]" + name + b"a", r"its content\['x'\]\[0\] is a "),
        (b"]" * 12 + name + b"a" * 12, r"…(\[0\]){10} is a "),  # the innermost ten keys
    ):
        path = written(tmp_path, repacked_pickle(lambda code, value=value: code[:-1] + b"X\1\0\0\0x" + value + b"s."))
        with pytest.raises(InputError, match=rf"net\.pt cannot be used: .*{says}"):
            load_checkpoint(path)
    path = written(tmp_path, repacked_pickle(lambda code: code[:-1] + b"X\1\0\0\0x" + deep + b"s."))
    assert type(load_checkpoint(path)["x"]) is list


# Refusing to write unreadable checkpoints


class Own(nn.Module):
    """A network that is not one of the project's."""


def spoilt(change: Callable[[Ocean], Any]) -> Ocean:
    network = Ocean()
    with torch.no_grad():
        change(network)
    return network


def marked(parameter: nn.Parameter) -> nn.Parameter:
    parameter.mark = 3  # pyright: ignore[reportAttributeAccessIssue]
    return parameter


UNSAVABLE: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "a network of another class": (Own, NAMES, {}, r"the network is a \S*Own; only reference.models"),
    "another class of the same name": (
        lambda: type("Ocean", (Ocean,), {})(), NAMES, {}, r"only reference.models.ocean.Ocean can be built again",
    ),
    "no network": (lambda: None, NAMES, {}, "the network is a builtins.NoneType"),
    "fewer names than scores": (
        Ocean, NAMES[:9], {}, r"model1\.8\.weight is torch.float32 \(10, 64\), but Ocean for 9 classes needs",
    ),
    "more names than scores": (Ocean, [*NAMES, "one more"], {}, "Ocean for 11 classes needs"),
    "a name of two lines": (Ocean, [*NAMES[:9], "a\nb"], {}, "characters that cannot be printed; rename the class"),
    "no names": (Ocean, (), {}, "class_names must be a list of names"),
    "names that are numbers": (Ocean, range(10), {}, "'class_names' is missing or not a list"),
    "one word for names": (Ocean, "abcdefghij", {}, "'class_names' is missing or not a list"),
    "weights that are not numbers": (
        lambda: spoilt(lambda network: network.model1[7].bias.fill_(torch.nan)), NAMES, {},
        r"model1\.7\.bias has numbers that are not finite",
    ),
    "weights of another precision": (
        lambda: Ocean().double(), NAMES, {}, r"model1\.0\.weight is torch.float64 \(32, 3, 5, 5\), but Ocean",
    ),
    "weights without numbers": (lambda: Ocean().to("meta"), NAMES, {}, r"model1\.0\.weight has no numbers"),
    "one layer more": (
        lambda: spoilt(lambda network: network.model1.append(nn.Linear(10, 10))), NAMES, {},
        r"'model1\.9\.weight' does not belong there",
    ),
    "metrics of NumPy": (
        Ocean, NAMES, {"metrics": {"accuracy": np.float64(0.5)}}, r"metrics\['accuracy'\] is a numpy.float64,",
    ),
    "a path in the training": (
        Ocean, NAMES, {"training": {"data": [{"root": Path("x")}]}}, r"training\['data'\]\[0\]\['root'\] is a pathlib",
    ),
    "a tuple for a key": (
        Ocean, NAMES, {"training": {"of": {(1, 2): 3}}}, r"a key of training\['of'\] is a builtins.tuple",
    ),
    "a parameter with an attribute": (
        Ocean, NAMES, {"training": {"mean": marked(nn.Parameter(torch.ones(2)))}}, "it asks for torch",
    ),
    "more keys than are read": (
        Ocean, NAMES, {"training": {"of": {n / 7: 0 for n in range(20_000)}}}, "more than 10,000 keys",
    ),
    "more than is read": (Ocean, NAMES, {"training": {"of": [0.5] * 1_100_000}}, "more than 1,000,000 instructions"),
    "a number of a thousand digits": (Ocean, NAMES, {"metrics": {"n": 10**1000}}, "a whole number has 416 bytes"),
    "a conjugated tensor": (
        Ocean, NAMES, {"training": {"mean": torch.ones(2, dtype=torch.complex64).conj()}}, "conjugated",
    ),
    "a sparse tensor in the training": (
        Ocean, NAMES, {"training": {"mean": torch.eye(2).to_sparse()}}, r"training\['mean'\] is a torch.sparse_coo",
    ),
}  # fmt: skip


@clause("17.checkpoint.refuses_to_write")
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=[pytest.mark.slow] if what.startswith("more than") else [], id=what)
        for what in UNSAVABLE
    ],
)
@pytest.mark.parametrize(
    "older", [pytest.param(True, marks=pytest.mark.slow), False], ids=["over an older one", "for the first time"]
)
def test_content_that_could_not_be_loaded_is_not_written(tmp_path: Path, what: str, older: bool) -> None:
    network, names, options, message = UNSAVABLE[what]
    before = written(tmp_path, whole_file()).read_bytes() if older else None
    with pytest.raises(InputError, match=rf"net\.pt is not written: .*{message}"):
        save_checkpoint(tmp_path / "net.pt", network(), names, **options)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([before] if older else [])


# The size of a checkpoint


class Around(nn.Module):
    """The wrapper of `torch.compile` around a network, without the slow import of the compiler."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network


def with_a_part_inside(network: Ocean) -> Ocean:
    network.model1[7] = Around(network.model1[7])
    return network


AROUND: dict[str, Callable[[Ocean], nn.Module]] = {
    "compiled": Around,
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda network: nn.DataParallel(Around(network)),
    "parallel and compiled": lambda network: Around(nn.DataParallel(network)),
    "partly compiled": with_a_part_inside,
}


@clause("17.checkpoint.prefixes")
@pytest.mark.parametrize("how", AROUND)
def test_a_compiled_or_parallel_network_is_saved_without_the_wrapper(tmp_path: Path, how: str) -> None:
    network = Ocean()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save_checkpoint(tmp_path / "net.pt", AROUND[how](network), NAMES)
    assert same(load_checkpoint(tmp_path / "net.pt")["state_dict"], before)


@clause("17.checkpoint.prefixes")
@pytest.mark.slow
def test_a_network_compiled_by_pytorch_is_saved_without_the_wrapper(tmp_path: Path) -> None:
    network = Ocean()
    expected = dict(network.state_dict())
    for compiled in (torch.compile(network), nn.DataParallel(torch.compile(network))):  # pyright: ignore[reportArgumentType]
        save_checkpoint(tmp_path / "net.pt", compiled, NAMES)  # pyright: ignore[reportArgumentType]
        assert same(load_checkpoint(tmp_path / "net.pt")["state_dict"], expected)
    network.model1[7] = torch.compile(network.model1[7])
    assert "model1.7._orig_mod.weight" in network.state_dict()
    save_checkpoint(tmp_path / "net.pt", network, NAMES)
    assert same(load_checkpoint(tmp_path / "net.pt")["state_dict"], expected)


@clause("17.checkpoint.prefixes")
def test_a_network_of_the_references_layers_is_loaded_into_one_of_pytorchs(tmp_path: Path) -> None:
    network = Ocean(layers=reference)
    save_checkpoint(tmp_path / "net.pt", network, NAMES)
    assert same(dict(build_network(load_checkpoint(tmp_path / "net.pt")).state_dict()), dict(network.state_dict()))


@clause("17.checkpoint.compact")
def test_weights_that_are_views_are_saved_without_the_rest_of_the_storage(tmp_path: Path) -> None:
    """Parameters that are views of one long vector."""
    network = Ocean()
    vector = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    vector = torch.cat([vector, normal(10**6, seed=0, dtype=torch.float32)])
    torch.nn.utils.vector_to_parameters(vector[:145_578], network.parameters())
    assert network.model1[0].weight.untyped_storage().nbytes() > 4_000_000
    save_checkpoint(tmp_path / "net.pt", network, NAMES)
    assert (tmp_path / "net.pt").stat().st_size < 4 * 145_578 + 10_000
    assert same(load_checkpoint(tmp_path / "net.pt")["state_dict"], dict(network.state_dict()))


@clause("17.checkpoint.compact")
def test_memory_layout_of_tensors_is_restored(tmp_path: Path) -> None:
    """Training uses the channels-last layout for images and kernels; a resumed training uses the same layout."""
    network = Ocean().to(memory_format=torch.channels_last)
    twice = torch.zeros(64, 3, 5, 5).to(memory_format=torch.channels_last)
    network.model1[0].weight.data = twice[:32]  # a view: a copy keeps its memory order too
    save_checkpoint(tmp_path / "net.pt", network, NAMES)
    found = load_checkpoint(tmp_path / "net.pt")["state_dict"]
    assert {name: value.stride() for name, value in found.items()} == {
        name: value.stride() for name, value in network.state_dict().items()
    }
