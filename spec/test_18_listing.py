"""Chapter 18: the output, files and logs of the tutorial's `model.py` and `train.py`, and claims about them."""

import hashlib
import io
import math
import pickle
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader as PytorchDataLoader
from torch.utils.tensorboard import SummaryWriter

from reference.training import Evaluation, Observer, Progress, fit
from spec.support.assertions import Tolerance, assert_close, rounding
from spec.support.cifar_archives import TRAIN, accept_any_checksum, meta, python2_pickle, write_folder
from spec.support.clauses import clause

Make = Callable[..., Any]
TRAIN_SIZE, TEST_SIZE, BATCH, EPOCHS = 50_000, 10_000, 64, 10  # chapter 18, lines 1474, 1494 and 1515

MODEL = """\
import torch
from torch import nn
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, Sequential


class Ocean(nn.Module):
    def __init__(self):
        super().__init__()
        pairs = [Conv2d(3, 32, 5, padding=2), Conv2d(32, 32, 5, padding=2), Conv2d(32, 64, 5, padding=2)]
        layers = [layer for convolution in pairs for layer in (convolution, MaxPool2d(2))]
        self.model1 = Sequential(*layers, Flatten(), Linear(1024, 64), Linear(64, 10))

    def forward(self, x):
        return self.model1(x)


if __name__ == "__main__":
    print(Ocean()(torch.ones(64, 3, 32, 32)).shape)
"""
"""A `model.py` like the chapter's, lines 1415 to 1446: the network, and a self-test when the file is run."""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`import model`, as train.py does it."""
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import model  # pyright: ignore[reportMissingImports]

    yield model
    sys.modules.pop("model", None)


# model.py


@clause("18.network.output")
def test_64_images_get_ten_scores_each(Ocean: Make) -> None:
    # chapter 18, line 1446
    assert Ocean()(torch.ones(64, 3, 32, 32)).shape == (64, 10)


@clause("18.listing.model")
def test_running_model_py_prints_a_shape_and_importing_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # chapter 18, lines 1442 to 1446
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    runpy.run_path(str(tmp_path / "model.py"), run_name="model")
    assert capsys.readouterr().out == ""
    runpy.run_path(str(tmp_path / "model.py"), run_name="__main__")
    assert capsys.readouterr().out == "torch.Size([64, 10])\n"


@clause("18.listing.star_import")
def test_train_py_gets_torch_only_through_the_import_of_model_py(model: ModuleType) -> None:
    # chapter 18, lines 1455 and 1486: torch.optim.SGD in a file that does not import torch
    names: dict[str, Any] = {}
    exec("from model import *\nlearns = torch.optim.SGD", names)
    assert names["learns"] is torch.optim.SGD
    assert names["Ocean"] is model.Ocean
    with pytest.raises(NameError, match="'torch' is not defined"):
        exec("from model import Ocean\nlearns = torch.optim.SGD", {})


@clause("18.listing.star_import")
def test_train_py_fails_without_model_py() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'model'"):
        exec("from model import *", {})


@clause("18.listing.whole_module")
def test_loading_a_pickled_network_needs_weights_only_false_and_the_class(model: ModuleType, tmp_path: Path) -> None:
    # chapter 18, line 1539: torch.save(ocean, …) writes the place of the class, model.Ocean, not the class
    path = tmp_path / "ocean_0.pth"
    ocean = model.Ocean()
    torch.save(ocean, path)
    with pytest.raises(pickle.UnpicklingError, match=r"model\.Ocean"):
        torch.load(path)  # weights_only=True since PyTorch 2.6
    opened = torch.load(path, weights_only=False)
    assert type(opened) is model.Ocean
    assert str(opened) == str(ocean)
    del sys.modules["model"]
    (tmp_path / "model.py").unlink()
    sys.path_importer_cache.pop(str(tmp_path), None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'model'"):
        torch.load(path, weights_only=False)


# The data


@clause("18.data.lengths")
def test_five_files_of_10000_are_50000_images_and_one_is_the_test_set(CIFAR10: Make, tmp_path: Path) -> None:
    # chapter 18, lines 1469 and 1470. batches.meta says how many images a file has: with 10,000 the bytes have
    # the MD5 that torchvision demands of the official file, so the number is official
    demanded = torchvision.datasets.CIFAR10.meta["md5"]
    assert hashlib.md5(python2_pickle(meta())).hexdigest() == demanded
    assert hashlib.md5(python2_pickle(meta() | {"num_cases_per_batch": 9_999})).hexdigest() != demanded
    assert len(torchvision.datasets.CIFAR10.train_list) * meta()["num_cases_per_batch"] == TRAIN_SIZE  # pyright: ignore[reportOperatorIssue]
    assert len(torchvision.datasets.CIFAR10.test_list) * meta()["num_cases_per_batch"] == TEST_SIZE  # pyright: ignore[reportOperatorIssue]
    # every file is read, each once: they have different numbers of images here
    sizes = [1, 2, 4, 8, 16]
    batches = {
        name: python2_pickle({"labels": [0] * n, "data": np.zeros((n, 3072), np.uint8)})
        for name, n in zip((*TRAIN, "test_batch"), (*sizes, 32), strict=True)
    }
    write_folder(tmp_path, {"batches.meta": python2_pickle(meta())} | batches)
    with pytest.MonkeyPatch.context() as patch:
        accept_any_checksum(patch)
        assert [len(CIFAR10(tmp_path, train=train)) for train in (True, False)] == [sum(sizes), 32]


@clause("18.loader.steps")
def test_a_pass_over_50000_images_takes_782_steps(DataLoader: Make) -> None:
    # chapter 18, line 1515
    assert TRAIN_SIZE / BATCH == 781.25
    assert len(DataLoader(range(TRAIN_SIZE), batch_size=BATCH)) == 782
    assert len(DataLoader(range(TRAIN_SIZE), batch_size=BATCH, drop_last=True)) == 781
    *_, last = DataLoader(range(TRAIN_SIZE), batch_size=BATCH)
    assert len(last) == TRAIN_SIZE % BATCH == 16


@clause("18.optimizer.learning_rate")
def test_1e_2_is_one_hundredth(SGD: Make) -> None:
    # chapter 18, lines 1484 to 1486
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([weight], lr=1e-2)
    assert optimizer.param_groups[0]["lr"] == 0.01 == 1e-2
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert_close(weight.detach(), [-0.01], rounding(torch.float64, 1, 0.01))


# train.py


@dataclass
class Outcome:
    """The results of a run of the chapter's train.py."""

    out: str
    steps: int
    size: int  # the number of training images
    folder: Path


def program(
    network: nn.Module,
    train_loader: Iterable[Any],
    test_loader: Iterable[Any],
    test_size: int,
    folder: Path,
    epochs: int = EPOCHS,
) -> int:
    """The chapter's loop, lines 1480 to 1542, with the given network and loaders; returns the number of steps."""
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    steps = tests = 0
    with SummaryWriter(folder / "logs_train") as writer:
        for epoch in range(epochs):
            print(f"-------第 {epoch + 1} 轮训练开始-------")
            network.train()
            for images, targets in train_loader:
                loss = loss_function(network(images), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                if steps % 100 == 0:
                    print(f"训练次数：{steps}, Loss: {loss.item()}")
                    writer.add_scalar("train_loss", loss.item(), steps)
            network.eval()
            loss_sum, right = 0, 0
            with torch.no_grad():
                for images, targets in test_loader:
                    outputs = network(images)
                    loss_sum += loss_function(outputs, targets).item()
                    right += (outputs.argmax(1) == targets).sum()
            print(f"整体测试集上的Loss: {loss_sum}")
            print(f"整体测试集上的正确率: {right / test_size}")
            writer.add_scalar("test_loss", loss_sum, tests)
            writer.add_scalar("test_accuracy", right / test_size, tests)
            tests += 1
            torch.save(network, folder / f"ocean_{epoch}.pth")
            print("模型已保存")
    return steps


class Printing(Observer):
    """An observer of the reference's `fit` with the output, logs and files of the chapter's program."""

    def __init__(self, network: nn.Module, folder: Path, writer: SummaryWriter) -> None:
        self.network, self.folder, self.writer = network, folder, writer

    def on_epoch_start(self, progress: Progress) -> None:
        print(f"-------第 {progress.epoch + 1} 轮训练开始-------")

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        for step, loss in losses.items():
            if step % 100 == 0:
                print(f"训练次数：{step}, Loss: {loss}")
                self.writer.add_scalar("train_loss", loss, step)

    def on_epoch(self, progress: Progress, evaluation: Evaluation) -> None:
        print(f"整体测试集上的Loss: {evaluation.loss_sum}")
        print(f"整体测试集上的正确率: {evaluation.accuracy}")
        self.writer.add_scalar("test_loss", evaluation.loss_sum, progress.epoch - 1)
        self.writer.add_scalar("test_accuracy", evaluation.accuracy, progress.epoch - 1)
        torch.save(self.network, self.folder / f"ocean_{progress.epoch - 1}.pth")
        print("模型已保存")


def by_fit(
    network: nn.Module,
    train_loader: Iterable[Any],
    test_loader: Iterable[Any],
    test_size: int,
    folder: Path,
    epochs: int = EPOCHS,
) -> int:
    """The same as `program`, with the reference's `fit` and `evaluate`."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    with SummaryWriter(folder / "logs_train") as writer:
        observer = Printing(network, folder, writer)
        progress = fit(
            network, nn.CrossEntropyLoss(), optimizer, train_loader, test_loader, epochs=epochs, observer=observer
        )
    assert progress.confusion is not None
    assert progress.confusion.sum() == test_size
    return progress.step


PROGRAMS = {"listing": program, "fit": by_fit}


def batches(size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of a loader of `size` items; each item is one number, so that ten epochs take a second."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(size, 1, generator=generator)
    targets = torch.randint(0, 10, (size,), generator=generator)
    return list(zip(numbers.split(BATCH), targets.split(BATCH), strict=True))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((program, size), id=f"{name}, {words}", marks=marks)
        for name, program in PROGRAMS.items()
        for size, words, marks in (
            (TRAIN_SIZE // 10, "a tenth of the images", ()),
            (TRAIN_SIZE, "as many images", pytest.mark.slow),
        )
    ],
)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Ten epochs with the chapter's number of steps, or a tenth of them, with a network of twenty numbers."""
    folder, out = tmp_path_factory.mktemp("train"), io.StringIO()
    program, size = request.param
    train, test = batches(size, 1), batches(size // 5, 2)
    with redirect_stdout(out), torch.random.fork_rng():
        torch.manual_seed(0)
        steps = program(nn.Linear(1, 10), train, test, size // 5, folder)
    return Outcome(out.getvalue(), steps, size, folder)


NUMBER = r"\d+\.\d+(?:e-\d+)?"


@pytest.mark.slow
@clause("18.listing.train", "18.listing.counter", "18.training.long")
def test_step_numbers_continue_across_ten_epochs(outcome: Outcome) -> None:
    # chapter 18, lines 1411, 1490 and 1514
    assert outcome.steps == {5_000: 790, 50_000: 7820}[outcome.size] == 10 * math.ceil(outcome.size / BATCH)


@clause("18.listing.lines")
@pytest.mark.slow
def test_every_hundredth_step_prints_a_line(outcome: Outcome) -> None:
    # chapter 18, line 1517
    lines = re.findall(rf"^训练次数：(\d+), Loss: {NUMBER}$", outcome.out, re.MULTILINE)
    assert list(map(int, lines)) == list(range(100, outcome.steps + 1, 100))
    assert len(lines) == {5_000: 7, 50_000: 78}[outcome.size]


@clause("18.listing.epochs")
@pytest.mark.slow
def test_every_epoch_starts_with_the_epoch_number(outcome: Outcome) -> None:
    # chapter 18, line 1500
    lines = [line for line in outcome.out.splitlines() if "轮训练开始" in line]
    assert lines == [f"-------第 {i} 轮训练开始-------" for i in range(1, 11)]
    assert outcome.out.startswith("-------第 1 轮训练开始-------\n")


@clause("18.listing.closing_lines", "18.accuracy.whole")
@pytest.mark.slow
def test_every_epoch_ends_with_three_lines(outcome: Outcome) -> None:
    # chapter 18, lines 1533, 1534 and 1540: the accuracy is a tensor, and is printed as a plain number
    three = rf"整体测试集上的Loss: {NUMBER}\n整体测试集上的正确率: 0\.\d+\n模型已保存\n(?=-------|\Z)"
    assert len(re.findall(three, outcome.out)) == 10
    assert len(outcome.out.splitlines()) == 10 + outcome.steps // 100 + 30


@pytest.mark.slow
@clause("18.listing.checkpoints")
def test_every_epoch_leaves_a_file(outcome: Outcome) -> None:
    # chapter 18, lines 1494 and 1539
    files = {path.name for path in outcome.folder.glob("*.pth")}
    assert files == {f"ocean_{i}.pth" for i in range(10)}


@clause("18.listing.tags")
@pytest.mark.slow
def test_tensorboard_gets_train_loss_every_100_steps_and_test_values_per_epoch(outcome: Outcome) -> None:
    # chapter 18, lines 1518, 1535, 1536, 1551, 1555 and 1559
    events = EventAccumulator(str(outcome.folder / "logs_train"), size_guidance={"scalars": 0}).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps == {
        "train_loss": list(range(100, outcome.steps + 1, 100)),
        "test_loss": list(range(10)),
        "test_accuracy": list(range(10)),
    }


@clause("18.loss.sum_of_batch_means", "18.accuracy.whole")
def test_the_loss_on_the_whole_test_set_is_157_times_a_mean(CrossEntropyLoss: Make, DataLoader: Make) -> None:
    # chapter 18, lines 1529, 1533 and 1534
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(TEST_SIZE, 10, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 10, (TEST_SIZE,), generator=generator)
    loss_function = CrossEntropyLoss()
    parts = list(zip(scores.split(BATCH), targets.split(BATCH), strict=True))
    assert len(parts) == len(DataLoader(range(TEST_SIZE), batch_size=BATCH)) == 157
    printed = sum(loss_function(part, wanted).item() for part, wanted in parts)
    # by hand, image by image: the logarithm of the sum of the exponentials, less the right score
    losses = scores.exp().sum(1).log() - scores[range(TEST_SIZE), targets]
    on_the_whole = losses.mean().item()
    expected = sum(part.mean().item() for part in losses.split(BATCH))
    # about thirty roundings per image, and the sums of 64 and of 157 numbers up to the printed one
    error = (30 + 64 + 157) * torch.finfo(torch.float64).eps * printed
    assert abs(printed - expected) <= error
    assert 150 < printed / on_the_whole < 164  # about 157 times the mean that its name promises
    assert abs(printed / 157 - on_the_whole) > error  # and not exactly: the last 16 images have the weight of 64
    right = sum((part.argmax(1) == wanted).sum() for part, wanted in parts)
    accuracy = right / TEST_SIZE
    by_hand = sum(row.index(max(row)) == target for row, target in zip(scores.tolist(), targets.tolist(), strict=True))
    assert_close(accuracy, torch.tensor(by_hand / TEST_SIZE), Tolerance(0.0, "both round one quotient to float32"))
    assert f"{accuracy}" == f"{accuracy.item()}"  # a tensor of one number prints as the number  # pyright: ignore[reportAttributeAccessIssue]


@clause("18.listing.train", "18.listing.lines")
def test_fit_prints_the_losses_that_the_listing_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for name, run in PROGRAMS.items():
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        run(nn.Linear(1, 10), batches(6400, 1), batches(640, 2), 640, tmp_path / name, 2)
        printed.append(capsys.readouterr().out.splitlines())
    assert len(printed[0]) == 2 * 5
    for ours, theirs in zip(printed[1], printed[0], strict=True):
        # the same float32 losses; the sum over 10 batches is of float64, the accuracy is once a float32 number
        assert re.sub(NUMBER, "", ours) == re.sub(NUMBER, "", theirs)
        found, expected = ([float(number) for number in re.findall(NUMBER, line)] for line in (ours, theirs))
        assert found == pytest.approx(expected, rel=torch.finfo(torch.float32).eps)


@clause("18.listing.train")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_train_py_completes_with_the_tutorial_network(
    program: Callable[..., int], model: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few images, in batches of 64 with a last one of 16, as for all images."""
    generator = torch.Generator().manual_seed(4)
    data = [(torch.rand(3, 32, 32, generator=generator), i % 10) for i in range(80)]
    loader = PytorchDataLoader(data, batch_size=BATCH)  # pyright: ignore[reportArgumentType]
    assert [len(targets) for _, targets in loader] == [64, 16]
    assert program(model.Ocean(), loader, loader, len(data), tmp_path, epochs=2) == 4
    assert capsys.readouterr().out.count("模型已保存") == 2
    opened = torch.load(tmp_path / "ocean_1.pth", weights_only=False)
    assert not opened.training  # it is saved after its test, in evaluation mode
