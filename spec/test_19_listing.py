"""Chapters 19 and 21: the tutorial's complete programs for a GPU, on the CPU, on the simulated device and on a GPU."""

import re
import runpy
import sys
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import torchvision.datasets.cifar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spec.support.cifar_archives import TRAIN, meta, write_folder
from spec.support.cifar_archives import python2_pickle as pickled
from spec.support.clauses import clause
from spec.support.simulated_device import NAME, on_simulated_device, unplugged
from spec.test_18_listing import MODEL

TRAIN_SIZE, TEST_SIZE = 592, 80
"""Numbers of images: the last batch has 16 images, as for 50,000 and 10,000, and ten epochs take 100 steps."""

METHOD_ONE = """\
network = Ocean()
if torch.cuda.is_available():
    unused = network.cuda()
loss_function = nn.CrossEntropyLoss()
if torch.cuda.is_available():
    loss_function = loss_function.cuda()


def moved(images, targets):
    if torch.cuda.is_available():
        images = images.cuda()
        targets = targets.cuda()
    return images, targets
"""
"""Chapter 19, lines 1618 to 1632, 1661 and 1688: `.cuda()` after an if; the network's return value is unused."""

METHOD_TWO = """\
device = torch.device("cuda:0")
network = Ocean()
network.to(device)
loss_function = nn.CrossEntropyLoss()
loss_function.to(device)


def moved(images, targets):
    images = images.to(device)
    targets = targets.to(device)
    return images, targets
"""
"""Chapter 19, lines 1756, 1800, 1808, 1837 and 1866: `.to(device)`; the return values for modules are not used."""

TIMER = ("import time\nstart_time = time.time()\n", "            print(time.time() - start_time)\n")
"""Lines 1752 and 1826, and 1853: the beginning, and a time at every hundredth step. Chapter 21 adds it to method 1."""

PROGRAM = """\
import torchvision
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

<network>
<method>
data = [
    torchvision.datasets.CIFAR10("test/data", train, transform=torchvision.transforms.ToTensor(), download=True)
    for train in (True, False)
]
print(f"训练数据集的长度为：{len(data[0])}")
print(f"测试数据集的长度为：{len(data[1])}")
train_loader, test_loader = (DataLoader(part, batch_size=64) for part in data)
optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
writer = SummaryWriter("test/logs_train")
steps = 0
<start>
for epoch in range(10):
    print(f"-------第 {epoch + 1} 轮训练开始-------")
    network.train()
    for images, targets in train_loader:
        images, targets = moved(images, targets)
        loss = loss_function(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 100 == 0:
<time>
            print(f"训练次数：{steps}, Loss: {loss.item()}")
            writer.add_scalar("train_loss", loss.item(), steps)
    network.eval()
    loss_sum, right = 0, 0
    with torch.no_grad():
        for images, targets in test_loader:
            images, targets = moved(images, targets)
            outputs = network(images)
            loss_sum += loss_function(outputs, targets).item()
            right += (outputs.argmax(1) == targets).sum()
    print(f"整体测试集上的Loss: {loss_sum}")
    print(f"整体测试集上的正确率: {right / len(data[1])}")
    writer.add_scalar("test_loss", loss_sum, epoch)
    writer.add_scalar("test_accuracy", right / len(data[1]), epoch)
    torch.save(network, f"ocean_{epoch}.pth")
    print("模型已保存")
writer.close()
"""
"""The programs of chapter 19, lines 1570 to 1708 and 1745 to 1886, and of chapter 21, lines 2174 to 2314."""


def listing(method: str, timer: bool) -> str:
    start, time = TIMER if timer else ("", "")
    text = PROGRAM.replace("<network>", MODEL.partition("\n\nif __name__")[0]).replace("<method>", method)
    return text.replace("<start>\n", start).replace("<time>\n", time)


LISTINGS = {
    "ch19-1": listing(METHOD_ONE, timer=False),
    "ch19-5": listing(METHOD_TWO, timer=True),
    "ch21-4": listing(METHOD_ONE, timer=True),
}


def run(text: str, folder: Path) -> str:
    """The output of a program that runs in a separate folder with a small CIFAR-10."""
    folder.mkdir()
    numbers = torch.Generator().manual_seed(0)

    def batch(n: int) -> bytes:
        data = torch.randint(0, 256, (n, 3072), generator=numbers, dtype=torch.uint8).numpy()
        return pickled({"labels": [i % 10 for i in range(n)], "data": data})

    sizes = [119, 119, 118, 118, 118]
    files = {name: batch(n) for name, n in zip(TRAIN, sizes, strict=True)}
    write_folder(folder / "test/data", files | {"batches.meta": pickled(meta()), "test_batch": batch(TEST_SIZE)})
    (folder / "program.py").write_text(text, encoding="utf-8")
    out, accepted = StringIO(), torchvision.datasets.cifar.check_integrity
    torchvision.datasets.cifar.check_integrity = lambda *_: True  # the files are not the official ones
    try:
        with chdir(folder), redirect_stdout(out), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            runpy.run_path("program.py", run_name="__main__")
    finally:
        torchvision.datasets.cifar.check_integrity = accepted
    return out.getvalue()


def check(name: str, out: str, folder: Path) -> list[str]:
    """Check the results of a program; return its output without the seconds."""
    lines = out.splitlines()
    seconds = [line for line in lines if re.fullmatch(r"\d+\.\d+", line)]
    assert len(seconds) == (name != "ch19-1")  # no timer there: the 148 seconds of line 1714 are not its own
    lines = [line for line in lines if line not in seconds]
    assert lines[:2] == [f"训练数据集的长度为：{TRAIN_SIZE}", f"测试数据集的长度为：{TEST_SIZE}"]
    assert [line for line in lines if "轮训练开始" in line] == [
        f"-------第 {i} 轮训练开始-------" for i in range(1, 11)
    ]
    assert len([line for line in lines if line.startswith("训练次数：100, Loss: ")]) == 1
    assert lines.count("模型已保存") == 10
    assert len(lines) == 2 + 10 * 4 + 1
    assert {path.name for path in folder.glob("*.pth")} == {f"ocean_{i}.pth" for i in range(10)}
    events = EventAccumulator(str(folder / "test/logs_train")).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps == {"train_loss": [100], "test_loss": [*range(10)], "test_accuracy": [*range(10)]}
    return lines


def saved_network(folder: Path) -> torch.nn.Module:
    """The network after the last epoch; loading it needs its class in the module of the program."""
    names: dict[str, type[torch.nn.Module]] = {}
    exec(MODEL.partition("\n\nif __name__")[0], names)
    main = vars(sys.modules["__main__"])
    main["Ocean"] = names["Ocean"]
    try:
        return torch.load(folder / "ocean_9.pth", weights_only=False)
    finally:
        del main["Ocean"]


@clause("19.listing.method_one", "19.listing.no_timer", "21.listing.timer", "21.epochs.files")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpy.exceptions.VisibleDeprecationWarning", "ignore::DeprecationWarning")
@on_simulated_device
def test_device_listings_print_the_same_on_cpu_and_gpu(tmp_path: Path) -> None:
    """Both methods with `simulated` instead of `cuda`, and method 1 without a GPU.

    The same kernels compute, so the losses are the same to the last digit.
    """
    here = LISTINGS["ch19-1"].replace("torch.cuda.is_available()", "False")
    printed = {"here": check("ch19-1", run(here, tmp_path / "here"), tmp_path / "here")}
    for name in ("ch19-1", "ch19-5"):
        folder = tmp_path / f"{name} there"
        text = LISTINGS[name].replace("cuda", NAME)
        printed[folder.name] = check(name, run(text, folder), folder)
        with unplugged(), pytest.raises(RuntimeError, match="map_location"):  # it was saved where it was trained
            saved_network(folder)
        assert {parameter.device.type for parameter in saved_network(folder).parameters()} == {NAME}
    assert len(set(map(tuple, printed.values()))) == 1


@clause("19.listing.hard_coded", "19.place.guard")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "stands", "slip"),
    [
        ("the targets stay", "targets = targets.to(device)", "targets.to(device)"),
        ("the images stay", "images = images.to(device)", "images.to(device)"),
        ("the network stays", "network.to(device)\n", "\n"),
    ],
)
@on_simulated_device
def test_incomplete_device_placement_is_an_error(what: str, stands: str, slip: str, tmp_path: Path) -> None:
    text = LISTINGS["ch19-5"].replace("cuda", NAME)
    assert text.count(stands) == 1, what
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        run(text.replace(stands, slip), tmp_path / "run")


@clause("19.listing.method_one")
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::numpy.exceptions.VisibleDeprecationWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", LISTINGS)
def test_a_program_runs_on_the_gpu(name: str, gpu: torch.device, rehearsal: bool, tmp_path: Path) -> None:
    text = LISTINGS[name].replace('"cuda:0"', f'"{gpu}"')
    check(name, run(text, tmp_path / name), tmp_path / name)
    where = gpu.type if gpu.type == "cuda" or name == "ch19-5" else "cpu"
    assert {parameter.device.type for parameter in saved_network(tmp_path / name).parameters()} == {where}
