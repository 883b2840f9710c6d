"""Chapter 18, beyond the tutorial: the precision of a training (`--precision`) and its recipe (`--recipe`)."""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from reference import device as device_module
from reference.data.resident import ResidentLoader
from reference.data.shapes import Shapes
from reference.device import PRECISIONS, choose_precision
from reference.distributed import Group
from reference.errors import InputError
from reference.models import Ocean
from reference.optim import SGD
from reference.recipes import ABLATION, RECIPES, FallingRate, Muon, Vary, orthogonalize, patches, whiten
from reference.run import Settings, prepare, train_seeds
from reference.run import precision as precision_module
from reference.run.precision import SECONDS, measure, resolve_precision, step_seconds
from reference.training import Observer, Progress, evaluate, fit
from scripts.accuracy import compared, measured, welch
from spec.support.clauses import clause
from spec.support.command import Command, run
from spec.test_18_training import TINY, Recorder, assert_refused, assert_same_training, one_thread, train, trained

__all__ = ["one_thread"]  # a fixture that every test here uses

CPU = torch.device("cpu")
EPS = torch.finfo(torch.float64).eps


# ------------------------------------------------------------------------------------------------ precision


@clause("18.precision.chosen")
@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
    ids=["AVX-512 BF16", "AMX", "neither", "another kind of processor"],
)
def test_auto_precision_is_bfloat16_on_processors_with_support(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(device_module, "processor_features", lambda: able)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


@clause("18.precision.chosen")
@pytest.mark.parametrize("able", [True, False], ids=["a GPU with bfloat16", "a GPU without"])
def test_auto_precision_ignores_emulated_bfloat16_on_gpus(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or able)
    assert choose_precision("auto", torch.device("cuda")) == (torch.bfloat16 if able else torch.float32)
    assert choose_precision("auto", torch.device("mps")) == torch.float32


class Watcher(nn.Module):
    """The tutorial's network, which records the dtype of its first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Ocean()
        self.seen: set[torch.dtype] = set()
        self.network.model1[0].register_forward_hook(lambda _, __, scores: self.seen.add(scores.dtype))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


@clause("18.precision.layers_only")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.slow
def test_autocast_precision_applies_to_layers_only(precision: torch.dtype) -> None:
    network, dtypes = Watcher(), set()

    def loss_function(scores: Tensor, targets: Tensor) -> Tensor:
        dtypes.add(scores.dtype)
        return nn.functional.cross_entropy(scores, targets)

    optimizer = SGD(network.parameters(), lr=0.01, momentum=0.9)
    loader = ResidentLoader(Shapes(size=32), 16)
    fit(network, loss_function, optimizer, loader, loader, epochs=1, precision=precision)
    assert network.seen == {precision}
    assert dtypes == {torch.float32}
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert optimizer.state[parameter]["momentum_buffer"].dtype == torch.float32
    network.seen.clear()
    evaluate(network, loss_function, loader, precision=precision)
    assert network.seen == {precision}


@clause("18.precision.same_course")
@pytest.mark.slow
def test_bfloat16_training_loss_follows_float32() -> None:
    courses = []
    for precision in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        network, course = Ocean(), Recorder()
        optimizer = SGD(network.parameters(), lr=0.01)
        loader = ResidentLoader(Shapes(size=256), 32)
        fit(network, nn.CrossEntropyLoss(), optimizer, loader, loader, epochs=1, observer=course, precision=precision)
        courses.append(list(course.losses.values()))
    # A score passes five layers; each rounds its input, weights and output, by half of bfloat16's eps at most. The loss
    # is a difference of scores of size below 2.
    tolerance = 5 * 3 * torch.finfo(torch.bfloat16).eps / 2 * 2
    assert courses[1] == pytest.approx(courses[0], abs=tolerance)
    assert courses[1] != courses[0]


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]


@clause("18.precision.chosen")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_precision_is_printed_recorded_and_kept(tmp_path: Path, name: str) -> None:
    result = train(tmp_path, *TINY, "--epochs", 1, "--output", "run", "--precision", name)
    assert result.status == 0, result.err
    (line,) = [line for line in result.out.splitlines() if name in line]
    assert line.startswith("Ocean: ")
    assert "on cpu" in line
    assert config(tmp_path / "run")["precision"] == name
    result = train(tmp_path, "--resume", "run", "--epochs", 2, "--precision", "auto")
    assert result.status == 0, result.err
    assert f"in {name}\n" in result.out
    other = {"float32": "bfloat16", "bfloat16": "float32"}[name]
    result = train(tmp_path, "--resume", "run", "--epochs", 3, "--precision", other)
    assert_refused(result, f"--precision {other}", f"begun with {name}")


@clause("18.precision.chosen")
@pytest.mark.slow
def test_auto_precision_records_the_choice(tmp_path: Path) -> None:
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    recorded = config(trained(tmp_path, "--epochs", 1, "--device", "cpu"))["precision"]
    assert recorded in ("float32", names[choose_precision("auto", CPU)])
    result = train(tmp_path, *TINY, "--epochs", 1, "--impl", "reference", "--output", "own")
    assert result.status == 0, result.err
    assert config(tmp_path / "own")["precision"] == "float32"


# ------------------------------------------------------------------------------------------------ precision, measured


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A simulated processor with bfloat16 and a separate cache folder; returns the file of results."""
    monkeypatch.setattr(device_module, "processor_features", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(precision_module, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "ocean-spec" / "precision.json"


def taking(times: dict[torch.dtype, list[float]], monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Let the steps of each precision take these times repeatedly; returns a list that records the steps."""
    made: list[torch.dtype] = []

    def step_seconds(_: object, images: Tensor, targets: Tensor, precision: torch.dtype) -> float:
        assert len(images) == len(targets)
        made.append(precision)
        values = times[precision]
        return values[made.count(precision) % len(values)]

    monkeypatch.setattr(precision_module, "step_seconds", step_seconds)
    monkeypatch.setattr(precision_module, "SECONDS", 0.0)  # two rounds, one of which counts
    return made


@clause("18.precision.measured")
@pytest.mark.parametrize(("float32", "bfloat16", "expected"), [(20, 33, "float32"), (33, 20, "bfloat16")])
def test_auto_precision_chooses_the_faster_one(
    float32: float, bfloat16: float, expected: str, able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = taking({torch.float32: [float32 / 1e3], torch.bfloat16: [bfloat16 / 1e3]}, monkeypatch)
    first, line = resolve_precision(Settings(), Shapes(size=80), CPU)
    assert first == PRECISIONS[expected]  # pyright: ignore[reportArgumentType]
    times = f"{float32:.1f} ms a step in float32, {bfloat16:.1f} ms a step in bfloat16"
    assert line == f"--precision auto: {expected} ({times}, measured now)"
    assert made == [torch.float32, torch.bfloat16] * 2  # in turns, so that a busy machine slows both
    again, line = resolve_precision(Settings(), Shapes(size=80), CPU)
    assert again == first
    assert "remembered from an earlier run" in line
    assert len(made) == 4
    assert json.loads(able.read_text())


@clause("18.precision.measured")
@pytest.mark.parametrize(
    "other",
    [{"batch_size": 128}, {"optimizer": "muon"}, {"whiten": True}, "threads", "torch"],
    ids=["batch", "optimizer", "whitened", "threads", "PyTorch"],
)
def test_precision_is_measured_again_for_other_batch_size_threads_or_version(
    other: Any, able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = taking({torch.float32: [0.02], torch.bfloat16: [0.01]}, monkeypatch)
    resolve_precision(Settings(), Shapes(size=40), CPU)
    if other == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    elif other == "torch":
        monkeypatch.setattr(precision_module, "installed_version", lambda _: "9.9")
    resolve_precision(Settings(**other) if isinstance(other, dict) else Settings(), Shapes(size=40), CPU)
    assert len(made) == 8
    assert len(json.loads(able.read_text())) == 2


@clause("18.precision.measured")
@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"a": 1}', '{"a": {"float32": "x"}}', pytest.param("[" * 10**5, id="100,000 brackets"), "\udcff"],
)
def test_damaged_precision_cache_is_measured_again(content: str, able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking({torch.float32: [0.02], torch.bfloat16: [0.01]}, monkeypatch)
    able.parent.mkdir()
    able.write_bytes(os.fsencode(content))
    assert resolve_precision(Settings(), Shapes(size=40), CPU)[0] == torch.bfloat16
    assert json.loads(able.read_text())


@clause("18.precision.measured")
@pytest.mark.parametrize("seconds", ["NaN", "1e999", "-1", "0", "1" * 400])
def test_invalid_cached_times_are_measured_again(seconds: str, able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = taking({torch.float32: [0.02], torch.bfloat16: [0.01]}, monkeypatch)
    resolve_precision(Settings(), Shapes(size=40), CPU)
    (key,) = json.loads(able.read_text())
    able.write_text(f'{{{json.dumps(key)}: {{"float32": 0.5, "bfloat16": {seconds}}}}}')
    before = len(made)
    assert resolve_precision(Settings(), Shapes(size=40), CPU)[0] == torch.bfloat16
    assert len(made) > before


@clause("18.precision.measured")
@pytest.mark.parametrize("kind", ["FIFO", "2⁴⁰ bytes", "folder"])
def test_planted_precision_cache_files_do_not_block(kind: str, able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking({torch.float32: [0.02], torch.bfloat16: [0.01]}, monkeypatch)
    able.parent.mkdir()
    if kind == "FIFO":
        os.mkfifo(able)
    elif kind == "folder":
        able.mkdir()
    else:
        with able.open("wb") as file:
            file.truncate(2**40)
    assert resolve_precision(Settings(), Shapes(size=40), CPU)[0] == torch.bfloat16


@clause("18.precision.measured")
def test_precision_measurement_works_without_a_cache_folder(
    able: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taking({torch.float32: [0.02], torch.bfloat16: [0.01]}, monkeypatch)
    able.parent.write_text("a file where the folder should be")
    assert resolve_precision(Settings(), Shapes(size=40), CPU)[0] == torch.bfloat16


@clause("18.precision.measured")
@pytest.mark.parametrize(
    "settings", [Settings(impl="reference"), Settings(precision="float32")], ids=["reference", "float32"]
)
def test_explicit_precision_is_not_measured(settings: Settings, able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = taking({}, monkeypatch)
    assert resolve_precision(settings, Shapes(size=40), CPU) == (torch.float32, "")
    monkeypatch.setattr(device_module, "processor_features", dict)
    assert resolve_precision(Settings(), Shapes(size=40), CPU) == (torch.float32, "")
    assert made == []
    assert not able.exists()


@clause("18.precision.measured")
@pytest.mark.slow
def test_precision_measurement_is_short_and_does_not_change_training(
    able: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_set = Shapes(size=4096)
    for batch_size in (16, 4096):
        begun = time.perf_counter()
        times = measure(Settings(batch_size=batch_size), train_set, CPU)
        taken = time.perf_counter() - begun
        # the round in progress at the time limit is finished: one step of each
        assert taken < SECONDS + 0.3 + 4 * sum(times.values())
        assert min(times.values()) > 0
    # the choice is as fast as the better of the two, by alternating steps measured here
    plan = prepare(Settings(), train_set, train_set, CPU)
    images, targets = train_set.images[:64] / 255, train_set.targets[:64]
    best = {name: min(step_seconds(plan, images, targets, PRECISIONS[name]) for _ in range(5)) for name in times}  # pyright: ignore[reportArgumentType]
    chosen, _ = resolve_precision(Settings(), train_set, CPU)
    assert best[next(name for name in best if PRECISIONS[name] == chosen)] < 1.25 * min(best.values())  # pyright: ignore[reportArgumentType]


@clause("18.precision.measured")
@pytest.mark.slow
def test_a_measured_precision_is_printed_recorded_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    prepared = partial(announce_bfloat16, tmp_path / "cache")
    words = (*TINY, "--epochs", 4, "--output", "parts", "--log-every", 1)
    command = Command("train_full.py", *words, folder=tmp_path, prepare=prepared)
    command.wait_for("step 12: ")
    command.send(signal.SIGINT)
    result = command.wait()
    assert result.status == 130, result.err
    chosen = config(tmp_path / "parts")["precision"]
    assert f"--precision auto: {chosen} (" in result.out
    assert f" in {chosen}\n" in result.out
    assert train(tmp_path, "--resume", "parts", prepare=prepared).status == 0
    result = train(tmp_path, *words[:-3], "straight", "--log-every", 1, prepare=prepared)
    assert "remembered from an earlier run" in result.out
    assert_same_training(tmp_path / "straight", tmp_path / "parts")
    # measuring draws no random number of the training's
    result = train(tmp_path, *words[:-3], "fixed", "--precision", chosen, "--log-every", 1)
    assert_same_training(tmp_path / "straight", tmp_path / "fixed")


def announce_bfloat16(cache: Path) -> None:
    """A simulated processor with bfloat16, and a separate cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    device_module.processor_features = lambda: {"avx512_bf16": True}


PAGES = """
import resource, sys, torch
from reference.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # above 32 MiB, the size from which glibc by default always returns memory
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@clause("18.precision.memory")
@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_large_tensors_reuse_memory_pages() -> None:
    def pages(how: str) -> int:
        words = [sys.executable, "-c", PAGES, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    # ten tensors of 64 MiB are 163,840 pages of 4 KiB, or 320 of 2 MiB; kept memory causes no page faults, Python
    # itself a few
    assert pages("keep") < 32
    assert pages("as it is") >= 320, "this test could not fail: the system needs no telling"


# ------------------------------------------------------------------------------------------------ the recipe's settings


@clause("18.recipe.settings")
@pytest.mark.slow
def test_a_recipe_is_a_name_for_settings_that_flags_still_change(tmp_path: Path) -> None:
    run = trained(tmp_path, "--epochs", 1, "--recipe", "fast", "--learning-rate", 0.02, "--shift", 1)
    settings = config(run)
    expected = RECIPES["fast"] | {"recipe": "fast", "learning_rate": 0.02, "shift": 1}
    assert {name: settings[name] for name in expected} == expected
    (tmp_path / "other").mkdir()
    run = trained(tmp_path / "other", "--epochs", 1)
    assert config(run)["recipe"] == "tutorial"
    # chapter 18, lines 1478 to 1518: SGD at 0.01 and nothing else
    assert (config(run)["optimizer"], config(run)["learning_rate"], config(run)["momentum"]) == ("sgd", 0.01, 0)


@clause("18.recipe.refused")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shift", -1), ("--shift must be at least 0", "got -1")),
        (("--recipe", "fast", "--momentum", 1), ("--momentum must be below 1 for --optimizer muon", "got 1")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
@pytest.mark.slow
def test_invalid_recipe_settings_are_one_line_errors(
    tmp_path: Path, words: tuple[object, ...], said: tuple[str, ...]
) -> None:
    assert_refused(train(tmp_path, *TINY, *words, "--output", "run"), *said)
    assert not (tmp_path / "run").exists()


@clause("18.recipe.refused")
@pytest.mark.parametrize("words", [("--recipe", "slow"), ("--precision", "float8"), ("--optimizer", "lion")])
@pytest.mark.slow
def test_an_unknown_recipe_error_lists_the_known_names(tmp_path: Path, words: tuple[str, str]) -> None:
    result = train(tmp_path, *TINY, *words)
    assert result.status == 2
    known = {"--recipe": ("tutorial", "fast"), "--precision": ("auto", "float32", "bfloat16"), "--optimizer": ("muon",)}
    for word in known[words[0]]:
        assert word in result.err


@clause("18.recipe.refused")
@pytest.mark.slow
def test_resuming_cannot_change_the_recipe_or_the_schedule_end(tmp_path: Path) -> None:
    trained(tmp_path, "--epochs", 1, "--recipe", "fast")
    said = "--epochs 2: this run's learning rate falls to 0 at the end of epoch 1"
    assert_refused(train(tmp_path, "--resume", "run", "--epochs", 2), said, "cannot change")
    for words in (("--recipe", "tutorial"), ("--momentum", 0.5), ("--shift", 1)):
        assert_refused(train(tmp_path, "--resume", "run", *words), words[0], "cannot change")


@clause("18.recipe.resume")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_fast_recipe_equals_an_uninterrupted_run(tmp_path: Path, precision: str) -> None:
    words = (*TINY, "--recipe", "fast", "--epochs", 6, "--log-every", 1, "--precision", precision)
    assert train(tmp_path, *words, "--output", "straight").status == 0
    command = Command("train_full.py", *words, "--output", "parts", folder=tmp_path)
    command.wait_for("step 12: ")  # in the third epoch of six
    command.send(2)  # pyright: ignore[reportArgumentType]
    assert command.wait().status == 130
    assert train(tmp_path, "--resume", "parts").status == 0
    assert_same_training(tmp_path / "straight", tmp_path / "parts")


TWO_EPOCHS = Settings(recipe="fast", batch_size=16, epochs=2, seed=7, **RECIPES["fast"])


def fit_fast(progress: Progress, observer: Observer, kept: tuple[Any, Any] | None = None) -> tuple[nn.Module, Any]:
    """Two epochs of three steps with every ingredient of the recipe, starting from the states `kept`."""
    torch.manual_seed(7)
    train_set, test_set = Shapes(size=40), Shapes(train=False, size=24)
    plan = prepare(TWO_EPOCHS, train_set, test_set, CPU)
    network, optimizer = plan.network, plan.optimizer
    if kept is not None:
        network.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
    plan.fit(Group(), progress, observer)
    return network, optimizer


@clause("18.recipe.resume")
@pytest.mark.parametrize(
    ("asked", "step"),
    [pytest.param(2, 2, id="in the first epoch", marks=pytest.mark.slow), pytest.param(7, 5, id="in the second")],
)
def test_fit_resumes_with_the_same_momentum_rate_and_varied_images(asked: int, step: int) -> None:
    straight, _ = fit_fast(Progress(), Observer())
    progress = Progress()
    network, optimizer = fit_fast(progress, Recorder(asked))  # called after each step and each evaluated batch
    assert progress.step == step
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}, optimizer.state_dict()
    network, _ = fit_fast(progress, Observer(), kept)
    assert progress.epoch == 2
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, straight.state_dict()[name]), name


@clause("18.recipe.ablation")
@pytest.mark.parametrize("ingredient", ABLATION)
def test_each_ablation_removes_one_ingredient(ingredient: str) -> None:
    fast = Settings(recipe="fast", **RECIPES["fast"])
    fast.check()
    without = replace(fast, **ABLATION[ingredient])
    without.check()
    assert without != fast
    assert not (ingredient.startswith("no ") and any(ABLATION[ingredient].values()))


@clause("18.recipe.learns")
@pytest.mark.slow
@pytest.mark.skipif("OCEAN_DATA" not in os.environ, reason="OCEAN_DATA names no folder with the real images")
def test_fast_recipe_in_one_epoch_beats_ten_epochs_of_the_tutorial(tmp_path: Path) -> None:
    words = ("--dataset", "images", "--data-root", os.environ["OCEAN_DATA"], "--quiet", "--num-threads", 1)
    result = train(tmp_path, *words, "--recipe", "fast", "--epochs", 1, "--limit-train", 6_400, "--output", "run")
    assert result.status == 0, result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    # README, measured by scripts/accuracy.py: ten epochs of the tutorial's recipe over seeds 0 to 4, and their mean
    tutorial = [0.5621, 0.5626, 0.5497, 0.5477, 0.5638]
    assert summary["test_accuracy"] > statistics.mean(tutorial) + statistics.stdev(tutorial) / len(tutorial) ** 0.5


# ------------------------------------------------------------------------------------------------ Muon


def polynomial(s: Tensor, rounds: int = 5) -> Tensor:
    """The new singular value by the formula a·s + b·s³ + c·s⁵, applied `rounds` times."""
    for _ in range(rounds):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def by_decomposition(matrix: Tensor) -> Tensor:
    """`orthogonalize`, computed by the singular value decomposition."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ torch.diag(polynomial(s / s.norm())) @ vh


# Each round multiplies an error by at most p'(0) = 3.4445; a matrix of n rows adds n roundings of that size.
GROWTH = 3.4445**5


@clause("18.recipe.muon_step")
@pytest.mark.parametrize("shape", [(32, 75), (75, 32), (10, 10), (1, 64), (64, 1)], ids=str)
def test_orthogonalizing_keeps_the_singular_vectors_and_drives_the_values_near_1(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix)
    tolerance = 16 * max(shape) * GROWTH * EPS
    torch.testing.assert_close(result, by_decomposition(matrix), rtol=0, atol=tolerance)
    values = torch.linalg.svdvals(result)
    # the range after five rounds for any s from 0.01 to 1; these matrices have no smaller one
    assert values.min() > 0.68
    assert values.max() < 1.14


@clause("18.recipe.muon_step")
def test_orthogonalizing_zeros_leaves_zeros() -> None:
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


@clause("18.recipe.muon_step")
@pytest.mark.parametrize(
    "shape", [(8, 3, 5, 5), (64, 3, 2, 2), (10, 64), (7,)], ids=["a wide kernel", "a tall one", "a matrix", "a bias"]
)
def test_muon_step_equals_the_closed_form(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
    expected, total = parameter.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        gradient = torch.randn(shape, dtype=torch.float64, generator=generator)
        total = 0.9 * total + gradient
        matrix = (gradient + 0.9 * total).reshape(shape[0] if len(shape) > 1 else 1, -1)
        scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        expected = (1 - 0.1 * 0.2) * expected - 0.1 * scale * by_decomposition(matrix).reshape(shape)
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, gradient)
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=3 * 16 * 75 * GROWTH * EPS)


@clause("18.recipe.muon_step")
def test_muon_makes_the_same_step_in_every_memory_format() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(2, 8, 3, 5, 5)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(weight.clone(memory_format=memory_format))
        parameter.grad = gradient.clone(memory_format=memory_format)
        Muon([parameter], lr=0.1).step()
        results.append(parameter.detach().contiguous())
    # the norm may be summed in another order: 600 terms, with an error that five rounds multiply
    torch.testing.assert_close(*results, rtol=0, atol=600 * GROWTH * torch.finfo(torch.float32).eps * 0.1)


@clause("18.recipe.whitening")
def test_the_outputs_of_the_whitening_layer_are_uncorrelated_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([3.0, 0.01, 1.0, 0.1, 0.3, 2.0], dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    seen = torch.randn(200, 6, dtype=torch.float64, generator=generator) * spread @ mixing + 5
    weight, bias = (nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((4, 3, 1, 2), (4,)))
    whiten(weight, bias, seen)
    filters = weight.detach().reshape(4, 6)

    # the principal components by the singular values instead of the eigenvalues
    _, s, vh = torch.linalg.svd(seen - seen.mean(dim=0), full_matrices=False)
    variances = s[:4] ** 2 / 199
    # an eigenvector is off by eps over the relative distance of the eigenvalues, which is above 1/100
    tolerance = {"rtol": 0, "atol": 200 * 100 * 10 * EPS}
    expected = torch.eye(4, 6, dtype=torch.float64) / (variances + 0.01).sqrt()[:, None]
    torch.testing.assert_close((filters @ vh.T).abs(), expected, **tolerance)  # the sign is arbitrary
    made = seen @ filters.T + bias.detach()
    torch.testing.assert_close(made.mean(dim=0), torch.zeros(4, dtype=torch.float64), **tolerance)
    torch.testing.assert_close(made.T.cov(), torch.diag(variances / (variances + 0.01)), **tolerance)


@clause("18.recipe.whitening")
def test_the_whitening_layer_is_computed_from_the_images_and_not_trained() -> None:
    network, optimizer = fit_fast(Progress(), Observer())
    first, *others = network.parameters()
    bias = others.pop(0)
    weight = torch.zeros_like(first)
    whiten(weight, torch.zeros(32), patches(Shapes(size=40).images, 5))
    assert torch.equal(first, weight)
    assert not first.requires_grad
    assert not bias.requires_grad
    assert first.grad is bias.grad is None
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert list(map(id, trained)) == list(map(id, others))
    torch.manual_seed(7)
    for parameter, initial in zip(others, list(Ocean().parameters())[2:], strict=True):
        assert not torch.equal(parameter, initial)


@clause("18.recipe.whitening")
@pytest.mark.slow
def test_several_processes_leave_the_whitening_layer_unchanged() -> None:
    torch.manual_seed(7)
    plan = prepare(TWO_EPOCHS, Shapes(size=40), Shapes(train=False, size=24), CPU)
    before = [parameter.detach().clone() for parameter in plan.network.parameters()]
    sent: list[int] = []

    def exchange(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.buffer().numel())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel = Group(0, 2).parallel(plan.network)
        assert isinstance(parallel, nn.parallel.DistributedDataParallel)
        parallel.register_comm_hook(None, exchange)
        for _ in range(2):  # the first pass determines the order of the gradients
            sent.clear()
            plan.network.zero_grad()
            parallel(torch.rand(2, 3, 32, 32)).sum().backward()
    finally:
        dist.destroy_process_group()
    plan.optimizer.step()
    unchanged = [torch.equal(old, new) for old, new in zip(before, plan.network.parameters(), strict=True)]
    assert unchanged == [True] * 2 + [False] * 8
    assert sum(sent) == 145_578 - 32 * 75 - 32
    assert len(sent) > 1  # the first part is exchanged while the backward pass computes the next one


@clause("18.recipe.whitening")
def test_patches_are_the_input_windows_of_a_convolution() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = patches(images, 5)
    assert rows.shape == (3 * 10 * 10, 75)
    weight = torch.randn(4, 3, 5, 5)
    seen = nn.functional.conv2d(images.double() / 255, weight.double(), stride=3)
    expected = seen.permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close((rows.double() @ weight.reshape(4, 75).double().T), expected, rtol=0, atol=1e-5)


@clause("18.recipe.muon_rejects")
@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -0.1), ("lr", float("nan")), ("momentum", 1.0), ("momentum", -0.1), ("weight_decay", -1.0)],
)
def test_muon_rejects_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Muon: {name} needs to be .*got {value}"):
        Muon([nn.Parameter(torch.zeros(2))], **{name: value})


# ------------------------------------------------------------------------------------------------ rate and images


@clause("18.recipe.falling_rate")
def test_learning_rate_warms_up_over_a_tenth_and_decays_to_0() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = SGD([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=1.0)
    schedule = FallingRate(optimizer, steps=20)
    rates = []
    for step in range(20):
        schedule(step)
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == rates[-1] / 2
    # a fifth of 100 steps, so 5^(1/3) times the rate; two rising steps, then 18/18, 17/18, …, 1/18: the 21st would have
    # 0
    shares = [0.5, 1.0, *(left / 18 for left in range(18, 0, -1))]
    expected = [5 ** (1 / 3) * share for share in shares]
    assert rates == pytest.approx(expected, rel=8 * EPS)


def moved(image: list[list[int]], down: int, right: int, mirror: bool) -> list[list[int]]:
    """Plain Python: mirror the image, then shift it by `down` and `right` pixels, with its border repeated."""
    rows = [row[::-1] if mirror else row for row in image]
    height, width = len(rows), len(rows[0])
    return [
        [rows[min(max(y + down, 0), height - 1)][min(max(x + right, 0), width - 1)] for x in range(width)]
        for y in range(height)
    ]


@clause("18.recipe.vary")
@pytest.mark.parametrize("mirror", [True, False], ids=["mirrored", "not mirrored"])
@pytest.mark.parametrize("shift", [0, 2])
def test_augmented_images_are_all_and_only_the_shifted_images(mirror: bool, shift: int) -> None:
    image = torch.arange(30, dtype=torch.uint8).reshape(5, 6)
    batch = torch.stack([image, image + 100, 255 - image]).expand(600, 3, 5, 6).contiguous()
    varied = Vary(mirror, shift)(batch, torch.Generator().manual_seed(0))
    assert varied.dtype == torch.uint8
    assert varied.shape == batch.shape
    shifts = range(-shift, shift + 1)
    possible = {
        str(moved(image.tolist(), down, right, flip)): flip
        for down in shifts for right in shifts for flip in ((False, True) if mirror else (False,))
    }  # fmt: skip
    seen = [str(one[0].tolist()) for one in varied]
    # the chance that one of at most 50 never comes up in 600 draws is below 50 · 0.98^600 = 3e-4; the seed is fixed
    assert set(seen) == set(possible)
    if mirror:
        share = sum(possible[one] for one in seen) / 600
        assert abs(share - 0.5) < 4 * (0.25 / 600) ** 0.5  # four standard deviations
    assert torch.equal(varied[:, 1], varied[:, 0] + 100)  # the channels move together
    assert torch.equal(varied[:, 2], 255 - varied[:, 0])


@clause("18.recipe.vary_default")
def test_augmentation_is_off_by_default() -> None:
    batch = torch.randint(0, 256, (8, 3, 5, 6), dtype=torch.uint8)
    assert torch.equal(Vary()(batch, torch.Generator().manual_seed(0)), batch)


@clause("18.recipe.vary")
def test_augmentation_draws_come_from_the_generator() -> None:
    batch = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    vary = Vary(mirror=True, shift=2)
    before = torch.get_rng_state()
    one, same, other = (vary(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@clause("18.recipe.ablation")
@pytest.mark.slow
def test_recipe_measurement_uses_the_settings_of_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast: dict[str, Any] = {"recipe": "fast"} | RECIPES["fast"]
    settings = Settings(
        dataset="shapes", limit_train=80, limit_test=24, batch_size=16, num_threads=1, epochs=1,
        output=tmp_path / "seeds", **fast,
    )  # fmt: skip
    assert len(train_seeds(settings, 2)) == 2
    printed = capsys.readouterr().out
    assert (printed.count(", accuracy "), printed.count("test accuracy")) == (2, 2)  # of the epoch and of the run
    assert "next:" not in printed
    assert config(tmp_path / "seeds" / "seed-1")["optimizer"] == "muon"


# ------------------------------------------------------------------------------------------------ measured


@clause("18.recipe.compared")
@pytest.mark.parametrize(
    ("first", "second", "t", "freedom", "p"),
    [
        # equal variances of two pairs: two degrees of freedom, where p = 1 - |t| / sqrt(2 + t²)
        ((1.0, 3.0), (4.0, 6.0), -3 / 2**0.5, 2, 1 - (4.5 / 6.5) ** 0.5),
        # one pair against a constant sample: one degree of freedom, Cauchy's distribution, where p = 1 - 2/π ·
        # atan(|t|)
        ((2.0, 4.0), (2.0, 2.0, 2.0), 1, 1, 0.5),
        ((1.0, 2.0, 3.0), (2.0, 1.0, 3.0), 0, 4, 1),
    ],
    ids=["two degrees", "one degree", "equal means"],
)
@pytest.mark.slow
def test_welch_test_equals_closed_form_cases(
    first: tuple[float, ...], second: tuple[float, ...], t: float, freedom: float, p: float
) -> None:
    # a handful of operations on numbers below 10 with differences above 1
    assert welch(first, second) == pytest.approx((t, freedom, p), rel=100 * EPS, abs=100 * EPS)


@clause("18.recipe.compared")
@pytest.mark.slow
def test_constant_samples_are_compared_by_mean() -> None:
    assert compared([0.1, 0.1], [0.25, 0.25, 0.25]) == (
        "0.2500 ± 0.0000; neither varies, so there is no test: 0.1000 here, 0.2500 there"
    )
    assert compared([0.1, 0.1], [0.1, 0.1]).endswith("0.1000 here, 0.1000 there")
    assert compared([1.0, 3.0], [4.0, 6.0]) == "5.0000 ± 1.4142; Welch's t -2.12, 2.0 degrees, p 0.17"
    assert "Welch's t 1.00, 1.0 degrees, p 0.50" in compared([2.0, 4.0], [2.0, 2.0, 2.0])


@clause("18.recipe.compared")
@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"test_accuracy": null}', '{"test_accuracy": "x"}', '{"test_accuracy": NaN}'),
        *('{"test_accuracy": 1e999}', '{"test_accuracy": -1}', '{"test_accuracy": true}', "\udcff"),
        pytest.param("[" * 10**5, id="100,000 brackets"),
        pytest.param('{"test_accuracy": ' + "1" * 400 + "}", id="a number of 400 digits"),
    ],
)
def test_an_unreadable_measurement_is_reported_before_training(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--against .*needs two finished trainings, .* has 0"):
        measured(tmp_path)
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "summary.json").write_text('{"test_accuracy": 0.5}')
    assert measured(tmp_path) == [0.5, 0.5]
    (tmp_path / "seed-1" / "summary.json").write_bytes(os.fsencode(text))
    with pytest.raises(InputError, match=r"seed-1/summary\.json is damaged"):
        measured(tmp_path)


@clause("18.recipe.compared")
@pytest.mark.parametrize("kind", ["FIFO", "2⁴⁰ bytes"])
def test_a_planted_measurement_file_is_refused_with_bounded_memory(kind: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        path = tmp_path / f"seed-{seed}" / "summary.json"
        if kind == "FIFO":
            os.mkfifo(path)
        else:
            with path.open("wb") as file:
                file.truncate(2**40)
    with pytest.raises(InputError, match=r"seed-0/summary\.json is damaged .it (is a FIFO|has 1,099,511,627,776)"):
        measured(tmp_path)


@clause("18.recipe.compared")
@pytest.mark.slow
def test_comparing_with_a_constant_measurement_is_a_one_line_error(tmp_path: Path) -> None:
    words = (*TINY, "--epochs", 1, "--quiet", "--learning-rate", 1e-9, "--limit-test", 1, "--seeds", 2)
    for name, more in (("one", ()), ("other", ("--against", "one"))):
        result = run("accuracy.py", *words, "--output", name, *more, folder=tmp_path)
        assert result.status == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("against one: ")]
    assert "Welch's t" in line or "neither varies" in line


@clause("18.recipe.compared")
def test_without_scipy_the_comparison_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InputError, match="python -m pip install scipy"):
        welch([1.0, 2.0], [3.0, 4.0])
