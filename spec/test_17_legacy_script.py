"""Chapter 17: `predict.py` with foreign files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import reference
from reference.checkpoint import save_checkpoint
from spec.support.clauses import clause
from spec.support.command import run
from spec.support.legacy_files import Ocean, Read, old_ocean, packed, refused, save, written
from spec.support.torch_files import Writer
from spec.support.traps import tricks

# The script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, and the tutorial's network as saved on a GPU in 2020."""
    writer = Writer("1.5", "cuda:0")
    content, _ = old_ocean(writer, "model.Ocean")
    written(tmp_path / "old.pth", writer.file(content))
    for number in range(2):
        Image.new("RGB", (40, 30), (90 * number, 20, 200)).save(tmp_path / f"{number}.png")
    return tmp_path


@clause("17.legacy.script")
@pytest.mark.slow
def test_the_script_describes_a_whole_network_and_the_reader(folder: Path) -> None:
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
    assert "gives 10 scores for each image, but the number of class names is 2" in result.err


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
