"""Chapter 17: checkpoints: what is saved comes back, what is no checkpoint is refused, nothing in a file is run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.checkpoint import build_network, load_checkpoint, save_checkpoint
from reference.data.shapes import Shapes
from reference.errors import InputError
from reference.models import Ocean
from spec.support.command import run

NAMES = Shapes.classes


def saved(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    save_checkpoint(folder / "net.pt", Ocean(), NAMES, **options)
    return folder / "net.pt"


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The checkpoint with its dictionary changed in place (or replaced by what `change` returns)."""
    content = torch.load(path, weights_only=True)
    replacement = change(content)
    torch.save(content if replacement is None else replacement, path)
    return path


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    training = {"optimizer": {"momentum": torch.arange(3.0)}, "progress": {"step": 7}}
    content = load_checkpoint(saved(tmp_path, metrics={"test_accuracy": 0.5}, training=training))
    assert content["class_names"] == list(NAMES)
    assert content["metrics"] == {"test_accuracy": 0.5}
    assert content["training"]["progress"] == {"step": 7}
    assert content["training"]["optimizer"]["momentum"].tolist() == [0, 1, 2]
    torch.manual_seed(0)
    for name, tensor in Ocean().state_dict().items():
        assert torch.equal(build_network(content).state_dict()[name], tensor), name


def test_a_checkpoint_is_plain_data_for_pytorch_itself(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path), weights_only=True)
    assert list(content) == [
        "format", "version", "network", "class_names", "preprocessing", "state_dict", "metrics", "training",
    ]  # fmt: skip


def test_an_older_checkpoint_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)  # the last moment at which anything can go wrong
    with pytest.raises(OSError, match=r"net\.pt could not be written: No space left on device"):
        saved(tmp_path, metrics={"test_accuracy": 1.0})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"net\.pt"):
        load_checkpoint(path)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a state dict alone": (lambda content: content["state_dict"], "not an Ocean Spec checkpoint"),
    "a tensor": (lambda content: torch.zeros(3), "not an Ocean Spec checkpoint"),
    "a list": (lambda content: [1, 2], "not an Ocean Spec checkpoint"),
    "a newer version": (lambda content: content.update(version=99), "version 99.*reads version 1"),
    "another network": (lambda content: content["network"].update(name="Lake"), "the network 'Lake'.*knows Ocean"),
    "fewer names than classes": (
        lambda content: content.update(class_names=list(NAMES[:9])), "9 class names for 10 classes",
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


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_a_sound_checkpoint_is_refused_by_name(tmp_path: Path, what: str) -> None:
    change, message = WRONG[what]
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(edited(saved(tmp_path), change))
    assert "net.pt" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"net\.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "net.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)


class Trap:
    """Unpickled by Python's own reader, it makes a file."""

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


@pytest.mark.parametrize("kind", KINDS)
def test_code_in_a_file_is_never_run(tmp_path: Path, kind: str) -> None:
    path = hostile(kind, tmp_path)
    with pytest.raises(InputError, match=r"net\.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "victim").exists()


def test_the_trap_would_snap(tmp_path: Path) -> None:
    """The test above can fail: Python's own reader runs it."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "victim")))
    assert (tmp_path / "victim").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predict_says_in_one_line_that_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    hostile(kind, tmp_path)
    result = run("predict.py", "picture.png", "--checkpoint", "net.pt", folder=tmp_path)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: net.pt ")
    assert not (tmp_path / "victim").exists()
