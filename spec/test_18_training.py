"""Chapter 18: the complete training: `fit`, `evaluate`, and the run folder of `scripts/train_full.py`."""

import json
import math
import random
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reference.checkpoint import load_checkpoint
from reference.data.resident import Resident, ResidentLoader
from reference.data.shapes import Shapes
from reference.data.transforms import ToTensor
from reference.errors import TrainingError
from reference.models import Ocean
from reference.training import DENSE, Observer, Progress, confusion_matrix, evaluate, fit, watched
from spec.support.cifar_archives import member, members, small_cifar10, write_archive, write_folder, write_packed
from spec.support.clauses import clause
from spec.support.command import Command, Result, run

TINY = ("--dataset", "shapes", "--limit-train", 80, "--limit-test", 24, "--batch-size", 16, "--num-threads", 1)
TINY += ("--no-plots",)  # which `test_18_images.py` tests
STEPS = 5  # an epoch of TINY: 80 / 16


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Use one thread, as the commands do, so that results can be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(folder: Path, *arguments: object, **options: Any) -> Result:
    return run("train_full.py", *arguments, folder=folder, **options)


def trained(folder: Path, *arguments: object) -> Path:
    """A finished run of TINY."""
    result = train(folder, *TINY, "--output", "run", *arguments)
    assert result.status == 0, result.err
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TINY, of one epoch; tests work on a copy."""
    return trained(tmp_path_factory.mktemp("finished"), "--epochs", 1)


def copied(run_folder: Path, folder: Path) -> Path:
    """A copy of a run in another folder under the name `run`."""
    return Path(shutil.copytree(run_folder, folder / "run"))


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def scalars(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of the event files, by TensorBoard's own reader; those of the parts as `train/loss`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for part in ("", "train/", "test/"):
        events = EventAccumulator(str(run_folder / part), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found[part + tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def assert_same_training(one: Path, other: Path) -> None:
    """Assert that two runs have the same weights, metrics and scalars, bit for bit."""
    first, second = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    assert first["training"]["progress"]["step"] == second["training"]["progress"]["step"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    assert metrics(one) == metrics(other)
    assert scalars(one) == scalars(other)
    best = [load_checkpoint(folder / "best.pt")["metrics"]["epoch"] for folder in (one, other)]
    assert best[0] == best[1]


# ------------------------------------------------------------------------------------------------ fit and evaluate


def tutorial_loop(dataset: Resident, *, epochs: int, shuffle: bool, seed: int) -> tuple[nn.Module, list[float]]:
    """The training loop of chapter 18, lines 1499 to 1518, with torchvision-like items and PyTorch's loader."""
    torch.manual_seed(seed)
    dataset.transform = ToTensor()
    loader = DataLoader(dataset, batch_size=16, shuffle=shuffle, generator=torch.Generator().manual_seed(seed))  # pyright: ignore[reportArgumentType]
    network, loss_function = Ocean(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(epochs):
        network.train()
        for images, targets in loader:
            loss = loss_function(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return network, losses


class Recorder(Observer):
    """Keeps the losses, and stops after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self.stop_after, self.asked = stop_after, 0

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        self.losses |= losses

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_after


def fit_shapes(network: nn.Module, *, epochs: int, shuffle: bool, progress: Progress, observer: Observer) -> Progress:
    order = torch.Generator().manual_seed(7)
    return fit(
        network,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.01),
        ResidentLoader(Shapes(size=40), 16, shuffle, generator=order),
        ResidentLoader(Shapes(train=False, size=24), 16),
        epochs=epochs,
        progress=progress,
        observer=observer,
    )


@clause("18.fit.steps")
@pytest.mark.parametrize("shuffle", [False, True], ids=["in file order", "shuffled"])
def test_fit_equals_the_tutorial_loop_bit_for_bit(shuffle: bool) -> None:
    expected, losses = tutorial_loop(Shapes(size=40), epochs=2, shuffle=shuffle, seed=7)
    torch.manual_seed(7)
    network, recorder = Ocean(), Recorder()
    progress = fit_shapes(network, epochs=2, shuffle=shuffle, progress=Progress(), observer=recorder)
    assert list(recorder.losses.values()) == losses
    assert list(recorder.losses) == [1, 2, 3, 4, 5, 6]  # 40 images in batches of 16: three steps an epoch
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert [line["step"] for line in progress.history] == [3, 6]
    first = (losses[0] * 16 + losses[1] * 16 + losses[2] * 8) / 40
    # six float64 operations on each side
    assert progress.history[0]["train_loss"] == pytest.approx(first, rel=12 * torch.finfo(torch.float64).eps)


@clause("18.fit.stop_anywhere")
@pytest.mark.parametrize(
    "shuffle",
    [pytest.param(False, id="in file order", marks=pytest.mark.slow), pytest.param(True, id="shuffled")],
)
@pytest.mark.parametrize(
    "stop_after", [n if n in (3, 9) else pytest.param(n, marks=pytest.mark.slow) for n in range(1, 11)]
)
@pytest.mark.slow
def test_fit_resumes_from_every_step(stop_after: int, shuffle: bool) -> None:
    """Stop at ten points in two epochs: after each of the three steps and in each of the two evaluated batches."""
    torch.manual_seed(7)
    straight = Ocean()
    expected = fit_shapes(straight, epochs=2, shuffle=shuffle, progress=Progress(), observer=Observer())
    torch.manual_seed(7)
    network, progress = Ocean(), Progress()
    fit_shapes(network, epochs=2, shuffle=shuffle, progress=progress, observer=Recorder(stop_after))
    assert progress.epoch < 2
    fit_shapes(network, epochs=2, shuffle=shuffle, progress=progress, observer=Observer())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, straight.state_dict()[name]), name
    for lines in (progress.history, expected.history):
        for line in lines:
            del line["images_per_second"]
    assert progress.history == expected.history


@clause("18.fit.images_per_second")
def test_images_per_second_uses_training_images_and_training_time() -> None:
    pause, sizes = 0.02, [16, 16, 8]
    batches = [(torch.zeros(size, 3, 32, 32), torch.zeros(size, dtype=torch.int64)) for size in sizes]

    def slow() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            time.sleep(pause)
            yield batch

    class Slow:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return slow()

    network = Ocean()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    begun = time.perf_counter()
    progress = fit(network, nn.CrossEntropyLoss(), optimizer, Slow(), batches, epochs=1)
    whole = time.perf_counter() - begun
    # at least the three pauses, at most the whole time of fit
    assert sum(sizes) / whole <= progress.history[0]["images_per_second"] <= sum(sizes) / (3 * pause)


@clause("18.fit.images_per_second")
def test_images_per_second_of_a_resumed_epoch_counts_the_images_since_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference.training.time", SimpleNamespace(perf_counter=count(0, 2).__next__))
    batches = [(torch.zeros(size, 3, 32, 32), torch.zeros(size, dtype=torch.int64)) for size in (16, 16, 8)]
    network = Ocean()
    task = network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.01), batches, batches
    stopped = fit(*task, epochs=1, observer=Recorder(1))
    assert (stopped.batch, stopped.seen) == (1, 16)
    resumed = fit(*task, epochs=1, progress=stopped)
    assert resumed.history[0]["images_per_second"] == (16 + 8) / 2


class Fixed(nn.Module):
    """A network that returns the first pixels of each image as scores."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training, "evaluate must switch to evaluation mode"
        assert not torch.is_grad_enabled(), "evaluate must not record gradients"
        return images


@clause("18.evaluate.definition", "18.loss.sum_of_batch_means")
def test_evaluate_equals_the_definitions_of_loss_and_accuracy() -> None:
    scores = [[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.0, 1.0], [0.5, 0.0]]
    targets = [1, 1, 0, 1, 0]
    batches = [(torch.tensor(scores[i : i + 2]), torch.tensor(targets[i : i + 2])) for i in (0, 2, 4)]
    result = evaluate(Fixed().train(), nn.CrossEntropyLoss(), batches)
    assert result is not None
    # cross entropy of two scores by hand: log(1 + exp(other - right))
    losses = [math.log1p(math.exp(row[1 - target] - row[target])) for row, target in zip(scores, targets, strict=True)]
    tolerance = 4 * torch.finfo(torch.float32).eps  # a handful of float32 operations of size 1 to 3
    assert result.loss == pytest.approx(sum(losses) / 5, rel=tolerance)
    batch_means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert result.loss_sum == pytest.approx(sum(batch_means), rel=tolerance)
    assert result.predictions.tolist() == [1, 0, 0, 1, 0]
    assert result.accuracy == 4 / 5
    assert result.confusion.tolist() == [[2, 0], [1, 2]]  # one image of class 1 was predicted as class 0


@clause("18.evaluate.definition")
def test_the_confusion_matrix_is_sparse_above_1000_classes() -> None:
    for classes, is_sparse in ((1000, False), (1001, True)):
        targets = torch.tensor([0, classes - 1, classes - 1])
        found = confusion_matrix(targets, targets.flip(0), classes)
        assert found.is_sparse == is_sparse == (classes > DENSE)
        dense = found.to_dense()
        assert dense.nonzero().tolist() == [[0, classes - 1], [classes - 1, 0], [classes - 1, classes - 1]]
        assert dense.sum() == 3


@clause("18.fit.steps")
def test_fit_reports_each_step_and_starts_the_counts_of_each_epoch_at_zero() -> None:
    """Two epochs of 3 batches with learning rate 0: the scores, losses and counts are known in advance."""

    class Counts(Recorder):
        def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
            assert list(losses) == [progress.step], "on the CPU each step is reported at once"
            super().on_steps(progress, losses)

        def on_epoch(self, progress: Progress, evaluation: Any) -> None:
            assert (progress.batch, progress.loss_sum, progress.seen, progress.right) == (0, 0.0, 0, 0)

    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(2))
    images = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.0, 1.0], [0.5, 0.0]])
    targets = torch.tensor([1, 1, 0, 1, 0])
    batches = list(zip(images.split(2), targets.split(2), strict=True))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    recorder, before = Counts(), []
    progress = fit(
        network, nn.CrossEntropyLoss(), optimizer, batches, batches, epochs=2, observer=recorder,
        before_step=before.append,
    )  # fmt: skip
    each = nn.functional.cross_entropy(images, targets, reduction="none").double()
    means = [float(part.mean()) for part in each.split(2)]
    tolerance = 8 * torch.finfo(torch.float32).eps  # a handful of float32 operations of size 1 to 3, and a mean
    assert recorder.losses == pytest.approx(dict(enumerate(means * 2, start=1)), rel=tolerance)
    assert before == [0, 1, 2, 3, 4, 5]
    for epoch, metrics in enumerate(progress.history, start=1):
        assert (metrics["epoch"], metrics["step"]) == (epoch, 3 * epoch)
        assert metrics["train_loss"] == pytest.approx(float(each.mean()), rel=tolerance)
        assert metrics["train_accuracy"] == metrics["test_accuracy"] == 4 / 5


@clause("18.fit.reported")
@pytest.mark.parametrize("waits", [False, True], ids=["on the CPU", "on an accelerator"])
def test_each_loss_is_reported_once_at_once_or_a_hundred_together(waits: bool) -> None:
    class Reports(Observer):
        def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
            reports.append(losses)

    def steps() -> Iterator[tuple[int, Tensor, int]]:
        for number in range(1, 251):
            progress.step = number
            yield number, torch.tensor([number / 2, 1.0]), 2

    reports: list[dict[int, float]] = []
    progress = Progress()
    assert watched(steps(), progress, Reports(), waits=waits)
    assert [len(losses) for losses in reports] == ([100, 100, 50] if waits else [1] * 250)
    assert {step: loss for losses in reports for step, loss in losses.items()} == {n: n / 2 for n in range(1, 251)}
    assert (progress.seen, progress.right, progress.loss_sum) == (500, 250, sum(range(1, 251)))


@clause("18.fit.no_batches")
def test_evaluate_without_a_batch_is_rejected() -> None:
    with pytest.raises(ValueError, match="no batches"):
        evaluate(Ocean(), nn.CrossEntropyLoss(), [])


@clause("18.fit.no_batches")
def test_fit_without_a_batch_is_rejected() -> None:
    network = Ocean()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="train_loader has no batches"):
        fit(network, nn.CrossEntropyLoss(), optimizer, [], [], epochs=1)


@clause("18.fit.not_finite")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_training_and_names_the_step(value: float) -> None:
    calls = iter([1.0, 1.0, value, 1.0])

    def loss_function(scores: Tensor, targets: Tensor) -> Tensor:
        return scores.mean() * 0 + next(calls)

    network = Ocean()
    loader = ResidentLoader(Shapes(size=64), 16)
    with pytest.raises(TrainingError, match=f"the loss of step 3 is {value}"):
        fit(network, loss_function, torch.optim.SGD(network.parameters(), lr=0.01), loader, loader, epochs=1)


@clause("18.fit.not_finite")
def test_a_non_finite_test_loss_stops_training() -> None:
    network = Ocean()
    losses = iter([1.0, math.nan])
    loader = ResidentLoader(Shapes(size=16), 16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    with pytest.raises(TrainingError, match="the test loss after step 1 is nan"):
        fit(network, lambda scores, _: scores.mean() * 0 + next(losses), optimizer, loader, loader, epochs=1)


# ------------------------------------------------------------------------------------------------ the run folder


@clause("18.run.folder")
@pytest.mark.slow
def test_a_run_writes_settings_metrics_checkpoints_and_summary(tmp_path: Path) -> None:
    result = train(tmp_path, *TINY, "--output", "run", "--epochs", 3, "--keep-every", 2, "--log-every", 4, "--seed", 5)
    assert result.status == 0, result.err
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert names == {
        "config.json", "metrics.jsonl", "summary.json", "last.pt", "best.pt", "epoch-0002.pt", "run.lock",
        "README.md", "train", "test",
    }  # fmt: skip
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1

    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 5
    assert config["settings"]["learning_rate"] == 0.01
    assert config["device"] == "cpu"
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (config["data"]["train"], config["data"]["test"]) == (80, 24)

    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [STEPS, 2 * STEPS, 3 * STEPS]
    best = max(lines, key=lambda line: line["test_accuracy"])
    checkpoints = {name: load_checkpoint(folder / name) for name in ("last.pt", "best.pt", "epoch-0002.pt")}
    assert {name: content["metrics"]["epoch"] for name, content in checkpoints.items()} == {
        "last.pt": 3, "best.pt": best["epoch"], "epoch-0002.pt": 2,
    }  # fmt: skip
    assert all(content["class_names"] == list(Shapes.classes) for content in checkpoints.values())

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] == lines[-1]["test_accuracy"]
    assert summary["best"]["epoch"] == best["epoch"]
    assert sum(map(sum, summary["confusion"])) == 24
    assert sum(summary["confusion"][i][i] for i in range(10)) / 24 == pytest.approx(summary["test_accuracy"])

    assert "shapes: 80 training and 24 test images of 10 classes" in result.out
    assert "Ocean: 145,578 parameters" in result.out
    logged = scalars(folder)
    assert [step for step, _ in logged["train_loss"]] == [4, 8, 12]
    for step, value in logged["train_loss"]:
        assert f"step {step}: train_loss {value:.4f}" in result.out + result.err
    for tag, name in [
        ("test_loss", "test_loss_sum"),
        ("test_loss_mean", "test_loss"),
        ("test_accuracy", "test_accuracy"),
    ]:
        # TensorBoard keeps float32
        assert logged[tag] == [(epoch, torch.tensor(line[name]).item()) for epoch, line in enumerate(lines)], tag


@clause("18.run.reference_layers")
@pytest.mark.slow
def test_impl_reference_trains_and_resumes_from_first_principles(tmp_path: Path) -> None:
    result = train(tmp_path, *TINY, "--impl", "reference", "--epochs", 1, "--output", "run")
    assert result.status == 0, result.err
    assert "Ocean of the reference's layers: 145,578 parameters" in result.out
    result = train(tmp_path, "--resume", "run", "--epochs", 2)
    assert result.status == 0, result.err
    assert "Ocean of the reference's layers" in result.out
    assert [line["step"] for line in metrics(tmp_path / "run")] == [STEPS, 2 * STEPS]
    # the same training by PyTorch's layers differs in rounding only: sums of up to 1,024 products, each to 24 bits
    (tmp_path / "pytorch").mkdir()
    pytorchs = trained(tmp_path / "pytorch", "--epochs", 2, "--precision", "float32")
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(pytorchs), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1024 * 2**-24)


@clause("18.run.quiet")
@pytest.mark.slow
def test_quiet_prints_only_the_outcome(tmp_path: Path) -> None:
    result = train(tmp_path, *TINY, "--epochs", 1, "--output", "run", "--quiet")
    assert result.status == 0
    assert result.err == ""
    assert len(result.out.splitlines()) == 1
    assert result.out.startswith("test accuracy ")


@clause("18.run.without_data")
@pytest.mark.slow
def test_without_data_the_embedded_shapes_are_used_and_one_line_says_how_to_get_cifar10(tmp_path: Path) -> None:
    result = train(tmp_path, *TINY[2:], "--epochs", 1)
    assert result.status == 0, result.err
    assert len([line for line in result.out.splitlines() if "Shapes" in line]) == 1
    assert "--dataset cifar10 --download" in " ".join(result.out.split())
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("shapes-")


@clause("18.run.seed")
@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert train(tmp_path, *TINY, "--epochs", 1, "--shuffle", "--output", name, "--seed", seed).status == 0
    assert_same_training(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


@clause("18.run.seed")
@pytest.mark.slow
def test_deterministic_changes_nothing_on_the_cpu(tmp_path: Path, finished: Path) -> None:
    assert train(tmp_path, *TINY, "--epochs", 1, "--output", "run", "--deterministic").status == 0
    assert_same_training(finished, tmp_path / "run")


# ------------------------------------------------------------------------------------------------ stopping and resuming


@clause("18.run.resume")
@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [pytest.param((), id="in file order"), pytest.param(("--shuffle",), id="shuffled")],
)
def test_resuming_two_epochs_for_two_more_equals_four_epochs(tmp_path: Path, order: tuple[str, ...]) -> None:
    straight = trained(tmp_path, "--epochs", 4, "--momentum", 0.5, *order)
    assert train(tmp_path, *TINY, "--epochs", 2, "--momentum", 0.5, "--output", "parts", *order).status == 0
    result = train(tmp_path, "--resume", "parts", "--epochs", 4)
    assert result.status == 0, result.err
    assert "resuming after step 10 (epochs done: 2 of 4)" in result.out
    assert_same_training(straight, tmp_path / "parts")


@clause("18.run.signals", "18.run.resume")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C exits 130"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM exits 143"),
    ],
)
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    arguments = (*TINY, "--epochs", 6, "--shuffle", "--log-every", 1)
    command = Command("train_full.py", *arguments, "--output", "run", folder=tmp_path)
    command.wait_for("step 12: ")
    command.send(number)
    stopped = command.wait()
    assert stopped.status == status, stopped.err
    assert "--resume run" in stopped.out
    progress = load_checkpoint(tmp_path / "run" / "last.pt")["training"]["progress"]
    assert progress["step"] >= 12
    assert not (tmp_path / "run" / "summary.json").exists()
    assert train(tmp_path, "--resume", "run").status == 0
    assert train(tmp_path, *arguments, "--output", "straight").status == 0
    assert_same_training(tmp_path / "run", tmp_path / "straight")


@clause("18.run.signals")
@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    command = Command("train_full.py", *TINY, "--epochs", 1000, "--output", "run", "--log-every", 1, folder=tmp_path)
    command.wait_for("step 7: ")
    assert command.process.pid is not None
    # Both arrive while the process is suspended, so that the second arrives before the step of the first has ended.
    command.send(signal.SIGSTOP)
    command.send(signal.SIGINT)
    command.send(signal.SIGCONT)
    command.wait_for("once more to stop at once")
    command.send(signal.SIGINT)
    result = command.wait()
    assert result.status in (-signal.SIGINT, 130), result.err  # 130: the step was over before the second one came
    assert load_checkpoint(tmp_path / "run" / "last.pt")["training"]["progress"]["step"] >= STEPS


@clause("18.run.signals")
@pytest.mark.slow
def test_ctrl_c_while_reading_data_exits_without_a_traceback(tmp_path: Path) -> None:
    result = train(tmp_path, *TINY, "--output", "run", prepare=interrupt_reading)
    assert result.status == 130
    assert result.err == "interrupted\n"
    assert not (tmp_path / "run").exists()


def interrupt_reading() -> None:
    """Raise Ctrl-C instead of reading the data."""
    from importlib import import_module

    def load_data(*_: object, **__: object) -> Any:
        signal.raise_signal(signal.SIGINT)

    vars(import_module("reference.run.train"))["load_data"] = load_data


@clause("18.run.killed", "18.run.resume")
@pytest.mark.slow
@pytest.mark.timeout(900)  # more than fifty trainings
def test_a_run_killed_at_fifty_random_moments_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """kill -9 at any moment: in set-up, a step, an evaluation, or while a file is written."""
    arguments = (
        *TINY,
        "--limit-train",
        48,
        "--shuffle",
        "--epochs",
        8,
        "--keep-every",
        5,
        "--momentum",
        0.9,
        "--quiet",
    )
    began = time.monotonic()
    assert train(tmp_path, *arguments, "--output", "straight").status == 0
    whole = time.monotonic() - began
    chance, kills, finished = random.Random(0), 0, 0
    while kills < 50 or finished == 0:
        words = ("--resume", "run") if (tmp_path / "run" / "config.json").exists() else (*arguments, "--output", "run")
        command = Command("train_full.py", *words, folder=tmp_path)
        if kills < 50:
            command.process.join(chance.uniform(0, 0.6 * whole))
            command.send(signal.SIGKILL)
        result = command.wait()
        if result.status == 0:  # it ended before it was killed: start another one
            finished += 1
            (tmp_path / "run").rename(tmp_path / f"finished-{finished}")
            continue
        assert result.status == -signal.SIGKILL, result.err
        kills += 1
        last = tmp_path / "run" / "last.pt"
        if last.exists():
            load_checkpoint(last)  # complete, whichever file was being written
    for folder in tmp_path.glob("finished-*"):
        assert_same_training(tmp_path / "straight", folder)
        assert not list(folder.glob(".*"))
        assert {path.name for path in folder.glob("epoch-*")} == {"epoch-0005.pt"}


@clause("18.run.resume")
@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    folder = trained(tmp_path, "--epochs", 2)
    before = {name: (folder / name).read_bytes() for name in ("last.pt", "best.pt", "metrics.jsonl", "summary.json")}
    result = train(tmp_path, "--resume", "run")
    assert result.status == 0, result.err
    assert before == {name: (folder / name).read_bytes() for name in before}


# ------------------------------------------------------------------------------------------------ what is refused


def assert_refused(result: Result, *words: str) -> None:
    """Assert exit status 2 and one line on standard error with the words, without traceback."""
    assert result.status == 2, (result.out, result.err)
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: ")
    for word in words:
        assert word in result.err


@clause("18.run.refused")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch-size", 0), ("--batch-size must be at least 1", "got 0")),
        (("--epochs", 0), ("--epochs must be at least 1", "got 0")),
        (("--epochs", -3), ("--epochs must be at least 1", "got -3")),
        (("--learning-rate", 0), ("--learning-rate must be above 0", "got 0")),
        (("--learning-rate", "nan"), ("--learning-rate must be above 0", "got nan")),
        (("--learning-rate", "inf"), ("--learning-rate must be above 0", "got inf")),
        (("--momentum", -1), ("--momentum must be at least 0", "got -1")),
        (("--weight-decay", "nan"), ("--weight-decay must be at least 0", "got nan")),
        (("--log-every", 0), ("--log-every must be at least 1",)),
        (("--keep-every", -1), ("--keep-every must be at least 0",)),
        (("--limit-train", 0), ("--limit-train must be at least 1",)),
        (("--limit-test", 0), ("--limit-test must be at least 1",)),
        (("--num-threads", 0), ("--num-threads must be at least 1",)),
        (("--seed", -1), ("--seed must be at least 0",)),
        (("--device", "cuda:99"), ("--device cuda:99", "there is cpu")),
        (("--device", "gpu"), ("--device gpu", "there is cpu")),
        (("--download",), ("--download fetches CIFAR-10", "shapes")),
        (("--output", "a-file"), ("--output a-file is a file",)),
        (("--output", "full"), ("--output full is not empty", "--resume full")),
        (("--resume", "nowhere"), ("--resume nowhere: no run is there",)),
        (("--resume", "full"), ("--resume full: no run is there",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
@pytest.mark.slow
def test_invalid_settings_are_one_line_errors(tmp_path: Path, words: tuple[object, ...], said: tuple[str, ...]) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert_refused(train(tmp_path, *TINY, *words), *said)
    left = sorted(path.name for path in tmp_path.iterdir() if path.suffix not in (".out", ".err"))
    assert left == before
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


@clause("18.run.refused")
@pytest.mark.slow
def test_missing_cifar10_is_an_error_in_one_line(tmp_path: Path) -> None:
    assert_refused(train(tmp_path, "--dataset", "cifar10", "--data-root", "nothing"), "nothing", "--download")
    assert_refused(train(tmp_path, "--dataset", "images", "--data-root", "nothing"), "nothing")
    assert not (tmp_path / "runs").exists()


@clause("18.run.resume_refused")
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("--batch-size", 8), ("--seed", 1), ("--shuffle",), ("--learning-rate", 0.1), ("--limit-train", 40)],
    ids=lambda words: str(words[0]),
)
def test_resuming_with_another_recipe_is_refused(tmp_path: Path, words: tuple[object, ...], finished: Path) -> None:
    copied(finished, tmp_path)
    assert_refused(train(tmp_path, "--resume", "run", "--epochs", 2, *words), str(words[0]), "cannot change")


@clause("18.run.resume_refused")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": {}}', '{"settings": {"data_root": 3}}'])
@pytest.mark.slow
def test_a_damaged_config_is_an_error_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    assert_refused(train(tmp_path, "--resume", "run"), "config.json is damaged")


@clause("18.run.resume_refused")
@pytest.mark.slow
def test_resuming_from_a_damaged_checkpoint_is_refused_and_leaves_it_unchanged(tmp_path: Path, finished: Path) -> None:
    folder = copied(finished, tmp_path)
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: len(content) // 2])
    assert_refused(train(tmp_path, "--resume", "run", "--epochs", 2), "last.pt", "cut off")
    assert (folder / "last.pt").read_bytes() == content[: len(content) // 2]


@clause("18.run.lock")
@pytest.mark.slow
def test_a_folder_that_another_run_is_using_is_refused(tmp_path: Path) -> None:
    command = Command("train_full.py", *TINY, "--epochs", 1000, "--output", "run", "--log-every", 1, folder=tmp_path)
    command.wait_for("step 7: ")
    assert_refused(train(tmp_path, "--resume", "run"), "run", "another run is using this folder")
    assert_refused(train(tmp_path, *TINY, "--output", "run"), "run", "another run is using this folder")
    command.send(signal.SIGKILL)
    command.wait()
    done = load_checkpoint(tmp_path / "run" / "last.pt")["training"]["progress"]["epoch"]
    assert train(tmp_path, "--resume", "run", "--epochs", done + 1).status == 0  # the lock died with its holder


@clause("18.run.resume_refused")
@pytest.mark.slow
def test_fewer_epochs_than_were_done_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, "--epochs", 2)
    assert_refused(train(tmp_path, "--resume", "run", "--epochs", 1), "--epochs 1", "2 epochs already")


@clause("18.fit.not_finite", "18.run.refused")
@pytest.mark.slow
def test_a_non_finite_loss_is_a_one_line_error_and_keeps_the_last_checkpoint(tmp_path: Path, finished: Path) -> None:
    folder = copied(finished, tmp_path)
    good = (folder / "last.pt").read_bytes()
    assert_refused(train(tmp_path, *TINY, "--output", "wild", "--learning-rate", 1e6), "the loss of step ", "last.pt")
    for name, tensor in load_checkpoint(tmp_path / "wild" / "last.pt")["state_dict"].items():
        assert tensor.isfinite().all(), name
    assert (folder / "last.pt").read_bytes() == good


def limit_file_size() -> None:
    """Limit files to 300 kB, so that larger writes fail as on a full disk."""
    import resource  # POSIX only

    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@clause("18.run.full_disk")
@pytest.mark.slow
def test_a_full_disk_is_an_error_in_one_line_and_leaves_nothing_half_written(tmp_path: Path, finished: Path) -> None:
    folder = copied(finished, tmp_path)
    good = (folder / "last.pt").read_bytes()
    assert_refused(
        train(tmp_path, "--resume", "run", "--epochs", 2, prepare=limit_file_size), ".pt could not be written"
    )
    assert (folder / "last.pt").read_bytes() == good
    assert not list(folder.glob(".*"))
    assert train(tmp_path, "--resume", "run", "--epochs", 2).status == 0


@clause("18.run.refused")
@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = train(tmp_path, *TINY, "--output", "file/run")
    assert_refused(result, f"cannot use {Path('file/run')}: ", "choose a folder that can be written")
    assert (tmp_path / "file").read_text() == ""


@clause("18.run.help")
@pytest.mark.slow
def test_help_names_every_setting(tmp_path: Path) -> None:
    result = train(tmp_path, "--help")
    assert result.status == 0
    for words in ("--dataset", "--download", "--resume", "--keep-every", "--deterministic", "--limit-train", "--quiet"):
        assert words in result.out.replace("--[no-]", "--")


# ------------------------------------------------------------------------------------------------ the data sets


QUICK = ("--batch-size", 16, "--epochs", 1, "--num-threads", 1, "--output", "run")


def tree(folder: Path, *, per_class: int = 6) -> Path:
    """A tree of images: three classes, images of different sizes."""
    for split in ("train", "test"):
        for number, name in enumerate(("one", "three", "two")):
            (folder / "mine" / split / name).mkdir(parents=True)
            for i in range(per_class):
                image = Image.new("RGB", (20 + i, 50 - i), (80 * number, 10 * i, 90))
                image.save(folder / "mine" / split / name / f"{i}.png")
    return folder / "mine"


@clause("18.data.tree")
@pytest.mark.slow
def test_training_on_user_images_uses_the_folder_classes(tmp_path: Path) -> None:
    tree(tmp_path)
    result = train(tmp_path, "--dataset", "images", "--data-root", "mine", *QUICK)
    assert result.status == 0, result.err
    assert "images: 18 training and 18 test images of 3 classes" in result.out
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    assert content["class_names"] == ["one", "three", "two"]
    assert content["state_dict"]["model1.8.weight"].shape == (3, 64)


@clause("18.data.broken")
@pytest.mark.slow
def test_a_broken_image_is_named_and_skipped_only_on_request(tmp_path: Path) -> None:
    (tree(tmp_path) / "train" / "two" / "3.png").write_text("no image")
    words = ("--dataset", "images", "--data-root", "mine", *QUICK)
    assert_refused(train(tmp_path, *words), "3.png", "broken images: 1 of 18", "--skip-broken")
    assert not (tmp_path / "run").exists()
    result = train(tmp_path, *words, "--skip-broken")
    assert result.status == 0, result.err
    assert "broken images that are skipped: 1: train/two/3.png" in result.out
    assert "images: 17 training and 18 test images" in result.out


@clause("18.data.tree")
@pytest.mark.slow
def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    (tree(tmp_path) / "test" / "four").mkdir()
    (tmp_path / "mine" / "train" / "four").mkdir()
    assert_refused(train(tmp_path, "--dataset", "images", "--data-root", "mine", *QUICK), "four", "no images")


@clause("18.run.resume_refused")
@pytest.mark.slow
def test_resuming_with_other_images_is_refused(tmp_path: Path) -> None:
    words = ("--dataset", "images", "--data-root", "mine", *QUICK)
    tree(tmp_path)
    assert train(tmp_path, *words).status == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "mine" / "train" / "two" / "3.png")
    assert_refused(train(tmp_path, "--resume", "run", "--epochs", 2), "last.pt was trained on other data")


@clause("18.data.cifar10")
@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_cifar10_is_found_under_the_data_root(tmp_path: Path, packed: bool) -> None:
    cifar10 = small_cifar10(4)
    root = tmp_path / "data"
    root.mkdir()
    if packed:
        md5 = write_archive(root, members(cifar10.files))
    else:
        write_folder(root, cifar10.files)
        md5 = "0" * 32  # not the official one: unpacked files are then not held against the official sums
    result = train(tmp_path, "--archive-md5", md5, *QUICK)
    assert result.status == 0, result.err
    assert "cifar10: 20 training and 4 test images of 10 classes" in result.out
    assert load_checkpoint(tmp_path / "run" / "last.pt")["class_names"][3] == "cat"


@clause("18.data.archives")
@pytest.mark.slow
def test_untrusted_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    files = small_cifar10(4).files
    md5 = write_archive(root, members(files))
    assert_refused(train(tmp_path, *QUICK), "wrong checksum", md5, "--download")

    content = (root / "cifar-10-python.tar.gz").read_bytes()
    md5 = write_packed(root, content[: len(content) // 2])
    assert_refused(train(tmp_path, "--archive-md5", md5, *QUICK), "truncated or damaged", "--download")

    for bad, said in [
        (member("../outside"), "leads out of the folder"),
        (member("cifar-10-batches-py/link", tarfile.SYMTYPE, "/etc/passwd"), "neither a plain file nor a folder"),
    ]:
        md5 = write_archive(root, [*members(files), (bad, b"")])
        assert_refused(train(tmp_path, "--archive-md5", md5, *QUICK), said)

    trap = f"cposix\nmkdir\n(V{tmp_path / 'victim'}\ntR.".encode()
    md5 = write_archive(root, members({**files, "data_batch_2": trap}))
    assert_refused(train(tmp_path, "--archive-md5", md5, *QUICK), "data_batch_2", "nothing in it was run")
    assert not (tmp_path / "victim").exists()
    assert not (tmp_path / "run").exists()


class Mirror(SimpleHTTPRequestHandler):
    """A silent server for the folder of the test."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@clause("18.data.cifar10")
@pytest.mark.slow
def test_download_fetches_from_the_mirror_and_trains(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    md5 = write_archive(tmp_path / "www", members(small_cifar10(4).files))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, directory=tmp_path / "www")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        words = ("--dataset", "cifar10", "--download", "--archive-md5", md5, *QUICK)
        result = train(tmp_path, *words, "--mirrors", f"{address}.not", address)
        server.shutdown()
    assert result.status == 0, result.err
    assert "cifar10: 20 training and 4 test images" in result.out
    assert (tmp_path / "data" / "cifar-10-python.tar.gz").is_file()
    assert not list((tmp_path / "data").glob("*.part*"))
