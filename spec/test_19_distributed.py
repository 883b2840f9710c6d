"""Chapter 19, several GPUs: several processes give the result of one. Here two processes on the CPU, over gloo."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings
from torch import Tensor, nn

import reference
from reference.checkpoint import load_checkpoint
from reference.distributed import Group, batch_norm_over_all, synchronize_batch_norm
from reference.errors import STOPPING, InputError, TrainingError
from reference.models import Ocean
from reference.scaling import ScaledOptimizer
from reference.training import Progress, evaluate, fit
from spec.support.assertions import Tolerance, assert_close
from spec.support.clauses import clause
from spec.support.command import FORKS, Command, Result, run
from spec.test_18_loss_curve import LONGEST_SUM, pytorchs_losses

SIZES = (16, 16, 7, 1)  # the images of each batch: even, uneven, and too few for both processes


@clause("19.processes.shards")
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 4, 16, 17])
def test_the_parts_of_a_batch_are_disjoint_and_complete(size: int, images: int) -> None:
    parts = [Group(rank, size).part(torch.arange(images)) for rank in range(size)]
    assert torch.cat(parts).tolist() == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@clause("19.processes.alone")
def test_one_process_trains_as_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = Group.from_environment()
    group.join(torch.device("cpu"))
    network = nn.Sequential(nn.BatchNorm2d(1), reference.BatchNorm2d(1))
    assert group.parallel(network) is network
    assert not any("forward" in vars(layer) for layer in network)
    scores, targets, loss = torch.ones(2, 3), torch.tensor([0, 2]), torch.tensor(3.0)
    assert group.weighted_loss(nn.CrossEntropyLoss(), scores, targets) == nn.CrossEntropyLoss()(scores, targets)
    assert group.mean(loss) is loss
    group.add_up(targets)
    assert (group.leads, group.agree(3), group.largest(4), group.device("cuda")) == (True, 3, 4, "cuda")
    assert not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="RANK and WORLD_SIZE must be numbers"):
        Group.from_environment()


@clause("19.processes.batch_norm")
def test_on_cuda_pytorchs_batch_normalization_becomes_syncbatchnorm() -> None:
    """Test only the conversion, because SyncBatchNorm runs only on a GPU."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3), reference.BatchNorm2d(3)))
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    converted = synchronize_batch_norm(network, torch.device("cuda"))
    after = dict(converted.named_parameters()) | dict(converted.named_buffers())
    inner = converted.get_submodule("1")
    assert [type(layer) for layer in inner.children()] == [nn.SyncBatchNorm, reference.BatchNorm2d]
    assert ["forward" in vars(layer) for layer in inner.children()] == [False, True]
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(n, 3, 32, 32, generator=generator, dtype=torch.float64),
            torch.randint(10, (n,), generator=generator),
        )
        for n in SIZES
    ]


def normalized(layers: Any, momentum: float | None) -> nn.Module:
    """A network with two batch normalizations, of which the second one has neither weights nor running statistics."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 5, stride=4), layers.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        *(layers.BatchNorm2d(4, affine=False, track_running_stats=False), nn.Flatten(), nn.Linear(4 * 25, 10)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Ocean": lambda: Ocean(10, layers=reference),
    "torch's batch normalization": lambda: normalized(nn, 0.1),
    "the reference's batch normalization": lambda: normalized(reference, None),
    "a scaled loss": lambda: normalized(nn, None),
}
RATE = 0.05


def trained(rank: int, size: int, folder: Path) -> None:
    """Train each network for two epochs in float64, as process `rank` of `size`, and save the results."""
    torch.set_num_threads(1)
    group = Group(rank, size)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        group.talk = dist.group.WORLD
    found = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0 if group.leads else 99)  # the leading process's weights replace the others'
        network = make().double()
        loss = reference.CrossEntropyLoss()
        optimizer: Any = reference.SGD(network.parameters(), RATE, momentum=0.9)
        scale = None
        if name == "a scaled loss":
            optimizer = ScaledOptimizer(optimizer, torch.device("cpu"))
            scale = optimizer.factor = optimizer.factor.double()
        progress = fit(network, loss, optimizer, batches(), batches(), epochs=2, loss_scale=scale, group=group)
        judged = evaluate(network, loss, batches(), group=group)
        torch.manual_seed(1)
        varied = [(100 * (images - 0.5), targets) for images, targets in batches()]
        untrained = evaluate(make().double(), loss, varied, group=group)
        assert untrained is not None
        assert judged is not None
        found[name] = {
            "weights": network.state_dict(),
            "history": progress.history,
            "predictions": judged.predictions,
            "untrained": vars(untrained),
        }
    if size > 1:
        layer = reference.BatchNorm2d(1)
        layer.forward = MethodType(batch_norm_over_all, layer)  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(ValueError, match="at least 2 values per channel, got 1"):
            layer(group.part(torch.ones(1, 1, 1, 1)))
    torch.save(found, folder / f"{rank}-of-{size}.pt")
    group.leave()


@clause("19.processes.same_result", "19.processes.batch_norm", "19.processes.evaluation")
@pytest.mark.slow
def test_several_processes_take_the_steps_of_one_and_evaluate_bit_equal(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        (tmp_path / "meet").unlink(missing_ok=True)
        processes = [FORKS.Process(target=trained, args=(rank, size, tmp_path)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    results = {(rank, size): torch.load(tmp_path / f"{rank}-of-{size}.pt") for size in (2, 3) for rank in range(size)}
    for name, one in torch.load(tmp_path / "0-of-1.pt").items():
        assert one["untrained"]["predictions"].unique().numel() > 1
        for (rank, size), found in results.items():
            which = f"{name}, process {rank} of {size}"
            assert_same_steps(found[name], one, which)
            for key, expected in one["untrained"].items():  # bit for bit, because one process computes each batch
                assert torch.equal(torch.as_tensor(found[name]["untrained"][key]), torch.as_tensor(expected)), which


def assert_same_steps(found: dict[str, Any], one: dict[str, Any], which: str) -> None:
    # Sums are added up in another order: a gradient is off by at most LONGEST_SUM · eps times the sum of
    # magnitudes (below 1 here), and 8 steps with momentum 0.9 and learning rate 0.05 add up to below 4 gradients.
    tolerance = Tolerance(4 * LONGEST_SUM * torch.finfo(torch.float64).eps, f"4 gradients of {LONGEST_SUM} roundings")
    assert found["weights"].keys() == one["weights"].keys()
    for key, expected in one["weights"].items():
        assert_close(found["weights"][key], expected, tolerance, f"{key} of {which}")
    for metrics, wanted in zip(found["history"], one["history"], strict=True):
        for key in ("train_loss", "test_loss", "test_loss_sum", "test_accuracy"):
            assert_close(torch.tensor(metrics[key]).double(), torch.tensor(wanted[key]).double(), tolerance, key)
    assert found["predictions"].tolist() == one["predictions"].tolist()


@clause("19.processes.evaluation")
def test_the_processes_evaluate_the_batches_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three processes and four batches of an evaluation, the second process computes only the second batch."""
    computed: list[int] = []

    class Counting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            computed.append(int(input[0, 0]))
            return super().forward(input)

    monkeypatch.setattr(Group, "add_up", lambda *_: None)
    monkeypatch.setattr(Group, "largest", lambda _, number: number)
    loader = [(torch.full((2, 1), float(number)), torch.zeros(2, dtype=torch.int64)) for number in range(4)]
    for rank, expected in enumerate([[0, 3], [1], [2]]):
        computed.clear()
        evaluate(Counting(1, 2), nn.CrossEntropyLoss(), loader, group=Group(rank, 3))
        assert computed == expected


# The command

ROOT = Path(__file__).parents[1]
TINY = (
    "--dataset",
    "shapes",
    "--limit-train",
    90,
    "--limit-test",
    25,
    "--batch-size",
    16,
    "--num-threads",
    1,
    "--shuffle",
)


def torchrun(processes: int, *words: object, script: Path = ROOT / "scripts/train_full.py") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, str(script), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def together(
    folder: Path, *words: object, size: int = 2, started: Callable[[list[Command]], None] = lambda _: None
) -> list[Result]:
    """Train with several processes, without torchrun; `started` may disturb them."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    commands = []
    for rank in range(size):
        (place := folder / f"process-{rank}").mkdir(exist_ok=True)
        prepare = partial(as_process, rank, size, -1, "", store.port)
        commands.append(Command("train_full.py", *words, folder=place, prepare=prepare))
    started(commands)
    return [command.wait(60) for command in commands]


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"]
    return lines


@clause("19.processes.one_writer", "19.processes.resume")
@pytest.mark.slow
def test_torchrun_writes_one_run_and_another_number_of_processes_resumes_it(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    job = torchrun(2, *TINY, "--epochs", 1, "--output", two)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert out.count("epoch 1/1") == 1
    assert (out.count(", accuracy "), out.count("test accuracy")) == (1, 1)  # the lines of the epoch and of the result
    assert len(list(two.glob("events.out.tfevents.*"))) == 1
    assert run("train_full.py", *TINY, "--epochs", 1, "--output", one, folder=tmp_path).status == 0
    assert {file.name.partition(".out")[0] for file in two.iterdir()} == {
        file.name.partition(".out")[0] for file in one.iterdir()
    }
    assert run("train_full.py", "--resume", two, "--epochs", 2, folder=tmp_path).status == 0  # alone
    results = together(tmp_path, "--resume", one, "--epochs", 2)
    assert [result.status for result in results] == [0, 0], results
    assert "resuming after step 6 (epochs done: 1 of 2)" in results[0].out
    assert results[1].out == ""
    # the largest difference that rounding of the weights causes in a training of this network and length (chapter 18)
    exact, wobbling = pytorchs_losses(12, batch=16)
    allowed = float((wobbling - exact).abs().max())
    for mine, theirs in zip(metrics_of(two), metrics_of(one), strict=True):
        assert mine["step"] == theirs["step"]
        assert abs(mine["train_loss"] - theirs["train_loss"]) < allowed
        assert abs(mine["test_loss"] - theirs["test_loss"]) < allowed


@clause("19.processes.killed")
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["the one that leads", "one that follows"])
def test_a_process_that_is_killed_ends_the_job_within_seconds_and_the_checkpoint_stays(
    victim: int, tmp_path: Path
) -> None:
    """The remaining process reports that another one is gone; torchrun reports which one, and the signal."""
    folder = tmp_path / "run"
    job = torchrun(2, *FEW[:-1], 10_000, "--output", folder)
    end = time.monotonic() + 100
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < end
        assert job.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) == 2
    name = b"RANK=%d" % victim
    killed = next(pid for pid in children if name in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    os.kill(int(killed), signal.SIGKILL)
    began = time.monotonic()
    _, err = job.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert job.returncode != 0
    # torchrun's SIGTERM may arrive before the failed communication: then the line names both possible reasons
    gone = r"^error: another process of this training is gone.*: stopped after step [\d,]+\. .* continue with --resume"
    assert len(re.findall(gone, err, re.MULTILINE)) == 1, err
    assert re.search(rf"rank *: {victim} .*\n *exitcode *: -9 ", err), err
    assert len(load_checkpoint(folder / "last.pt")["training"]["progress"]["history"]) >= 1
    assert Progress(**load_checkpoint(folder / "last.pt")["training"]["progress"]).epoch >= 1


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after the test."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@clause("19.processes.killed")
@pytest.mark.usefixtures("signal_handlers")
def test_a_stop_signal_does_not_interrupt_the_report_that_a_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun detects this at the same time, and sends SIGTERM to the remaining processes."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    monkeypatch.setattr(Group, "_speaks", lambda _: os.kill(os.getpid(), signal.SIGTERM) is None)
    with pytest.raises(TrainingError, match="is gone: stopped after"), Group(0, 2).accompanied(lambda: "stopped after"):
        raise RuntimeError("[gloo/tcp] Connection closed by peer")


@clause("19.processes.killed")
@pytest.mark.usefixtures("signal_handlers")
def test_remaining_processes_do_not_wait_for_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("waited"))
    group = Group(0, 2)
    with pytest.raises(RuntimeError, match="a defect of ours"), group.accompanied(lambda: "stopped"):
        raise RuntimeError("a defect of ours")
    group.leave()
    assert left == ["waited"]
    expected = "another process of this training is gone: stopped after step 1,234"
    with pytest.raises(TrainingError, match=expected), group.accompanied(lambda: "stopped after step 1,234"):
        raise RuntimeError("[gloo/tcp] Connection closed by peer")
    group.leave()
    assert left == ["waited"]


# Points of a kill: module, function and number of the call; the killed process; whether the run is resumed.
JOIN, LOADS, PREPARES = (
    "reference.distributed:Group.join:1",
    "reference.run.train:load_data:1",
    "reference.run.train:prepare:1",
)
EARLY = ("reference.run.train:choose_device:1", LOADS, JOIN)
MEETING = ("torch.distributed.distributed_c10d:_new_process_group_helper:1",)
# The leading process alone calls those in LED.
LED = (
    "reference.run.train:choose_folder:1",
    "reference.run.train:locked:1",
    "reference.run.train:remove_temporaries:1",
    "reference.run.train:resolve_precision:1",
    "reference.run.train:write_config:1",
    "reference.run.folder:RunFolder.__enter__:1",
    "reference.run.folder:RunFolder.save:1",
    "reference.run.folder:RunFolder.keep:1",
    "reference.run.folder:RunFolder.keep:2",
    "reference.run.folder:RunFolder.finish:1",
)
LATER = (
    *(f"reference.distributed:Group.agree:{number}" for number in range(1, 9)),
    PREPARES,
    "reference.run.train:compile_network:1",
    "torch.nn.parallel:DistributedDataParallel.__init__:1",
    "reference.distributed:Group.part:1",
    "torch:Tensor.backward:1",
    "torch:Tensor.backward:2",
    "reference.distributed:Group.mean:1",
    "reference.training:evaluate:1",
    "reference.distributed:Group.add_up:2",
)
FEW = (*TINY[:2], "--limit-train", 32, "--limit-test", 8, "--batch-size", 16, "--num-threads", 1, "--epochs", 2)
RESTORES = "reference.run.train:restore:1"
RESUMED = (LOADS, RESTORES, PREPARES)
EVERY_DEATH = [
    *((point, victim, False) for point in (*EARLY, *MEETING, *LATER) for victim in (0, 1)),
    *((point, 0, False) for point in LED),
    *((point, victim, True) for point in RESUMED for victim in (0, 1)),
]
# The error depends on the operation that the others wait for, and the advice on the content of the folder: one kill of
# each kind.
DEATHS = [
    # before and during the connection of the processes: there is no folder
    (JOIN, 0, False),
    (LOADS, 1, False),
    (MEETING[0], 0, False),
    (MEETING[0], 1, False),
    # while the others wait for an action of the leading process: without a folder, with an empty one, without a
    # checkpoint
    ("reference.run.train:choose_folder:1", 0, False),
    ("reference.run.train:resolve_precision:1", 0, False),
    ("reference.run.folder:RunFolder.save:1", 0, False),
    # while the leading process waits for a message of the other
    ("reference.distributed:Group.agree:2", 1, False),
    (PREPARES, 1, False),
    # with a checkpoint: before the first step, in a step, between steps
    ("torch.nn.parallel:DistributedDataParallel.__init__:1", 0, False),
    ("torch.nn.parallel:DistributedDataParallel.__init__:1", 1, False),
    ("torch:Tensor.backward:1", 0, False),
    ("torch:Tensor.backward:2", 1, False),
    ("reference.distributed:Group.mean:1", 1, False),
    # in an evaluation, while an epoch is written, at the end
    ("reference.training:evaluate:1", 1, False),
    ("reference.distributed:Group.add_up:2", 0, False),
    ("reference.run.folder:RunFolder.keep:2", 0, False),
    ("reference.run.folder:RunFolder.finish:1", 0, False),
    # a resumed run: before and after the connection of the processes
    (LOADS, 1, True),
    (RESTORES, 0, True),
]
if settings.get_current_profile_name() == "thorough":
    DEATHS = EVERY_DEATH


def as_process(rank: int, size: int, victim: int, point: str, port: int) -> None:
    """Configure this process as number `rank` of `size`, as torchrun does; the victim is killed at `point`.

    Before a death that comes before the meeting, the victim waits until the others wait for it.
    """
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    store = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    others = [f"{number} waits" for number in range(size) if number != victim]
    if rank != victim:
        whole = dist.init_process_group

        def announced(*args: Any, **options: Any) -> None:
            store.set(f"{rank} waits", "")
            whole(*args, **options)

        dist.init_process_group = announced
        return
    module, path, calls = point.split(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    whole, left = getattr(owner, name), int(calls)

    def deadly(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            if point in EARLY:
                store.wait(others, timedelta(seconds=60))
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **options)

    setattr(owner, name, deadly)


def deaths(folder: Path, words: tuple[object, ...], size: int, victim: int, point: str) -> list[str]:
    """Train with several processes of which one is killed; as torchrun, end the others by SIGTERM.

    Returns:
        What the others printed as errors.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    commands = []
    for rank in range(size):
        (place := folder / f"process-{rank}").mkdir(exist_ok=True)
        prepare = partial(as_process, rank, size, victim, point, store.port)
        commands.append(Command("train_full.py", *words, folder=place, prepare=prepare))
    assert commands[victim].wait(60).status == -signal.SIGKILL, f"{point} was never called"
    began = time.monotonic()
    others = [command for rank, command in enumerate(commands) if rank != victim]
    time.sleep(0.1)  # torchrun looks every 0.1 s
    for command in others:
        command.send(signal.SIGTERM)
    results = [command.wait(25) for command in others]
    assert time.monotonic() - began < 20  # seconds, on a busy machine; torchrun's SIGKILL comes after 30
    assert all(result.status in (2, 128 + signal.SIGTERM) for result in results), results
    return [result.err for result in results]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    assert run("train_full.py", *FEW, "--output", folder / "run", folder=folder).status == 0
    return folder / "run"


def short(value: object) -> str:
    if isinstance(value, bool):
        return "resumed" if value else "new"
    return str(value).rpartition(".")[2]


@clause("19.processes.killed_anywhere")
@pytest.mark.slow
@pytest.mark.parametrize(("point", "victim", "resumed"), DEATHS, ids=short)
def test_a_killed_process_is_reported_with_correct_resume_advice(
    point: str, victim: int, resumed: bool, tmp_path: Path, begun: Path
) -> None:
    folder = tmp_path / "run"
    words: tuple[object, ...] = (*FEW, "--output", folder)
    if resumed:
        shutil.copytree(begun, folder)
        words = ("--resume", folder, "--epochs", 3)
    (err,) = deaths(tmp_path, (*words, "--quiet"), 2, victim, point)
    lines = [line for line in err.splitlines() if line != "finishing this step and saving; once more to stop at once"]
    assert len(lines) == 1, err
    assert re.match(r"error: another process of this training is gone(:|, or the job was told to stop)", lines[0]), err
    # the advice matches the content of the folder, and following it completes the training
    assert ("resume" in lines[0]) == (folder / "last.pt").exists(), lines[0]
    if "resume" in lines[0]:
        words = ("--resume", re.findall(r"--resume (\S+),", lines[0])[0])
    elif "delete" in lines[0]:
        shutil.rmtree(re.findall(r"delete (\S+) and start again", lines[0])[0])
    else:
        assert "start the same command again" in lines[0]
    result = run("train_full.py", *words, "--quiet", folder=tmp_path)
    assert result.status == 0, (lines[0], result.err)


@clause("19.processes.killed_anywhere")
@pytest.mark.slow
@pytest.mark.parametrize("point", [EARLY[1], "reference.run.train:prepare:1", "reference.distributed:Group.part:1"])
def test_only_one_remaining_process_reports_a_lost_process(point: str, tmp_path: Path) -> None:
    words = (*FEW, "--output", tmp_path / "run", "--quiet")
    errors = "".join(deaths(tmp_path, words, 3, 1, point))
    assert "Traceback" not in errors
    assert errors.count("another process of this training is gone") == 1, errors


@clause("19.processes.meeting")
@pytest.mark.slow
@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "interrupted")])
def test_a_signal_interrupts_a_process_that_waits_for_the_others(
    number: signal.Signals, said: str, tmp_path: Path
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = Command(
        "train_full.py", *FEW, "--quiet", folder=tmp_path, prepare=partial(as_process, 0, 2, 1, "", store.port)
    )
    store.wait(["0 waits"], timedelta(seconds=60))
    command.send(number)
    result = command.wait(10)
    assert result.status == 128 + number
    assert result.err.count("\n") == 1
    assert said in result.err


@clause("19.processes.one_writer")
@pytest.mark.slow
def test_several_stopped_processes_save_and_report_no_failure(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop(commands: list[Command]) -> None:
        end = time.monotonic() + 60
        while not (folder / "best.pt").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        for command in commands:
            command.send(signal.SIGTERM)

    results = together(tmp_path, *FEW[:-1], 10_000, "--quiet", "--output", folder, started=stop)
    assert [result.status for result in results] == [128 + signal.SIGTERM] * 2, results
    assert "nothing is lost" in results[0].out
    assert "gone" not in results[0].err + results[1].err
    assert Progress(**load_checkpoint(folder / "last.pt")["training"]["progress"]).step > 0


@clause("19.processes.meeting")
@pytest.mark.slow
def test_waiting_for_other_processes_times_out_with_a_message(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = Command("train_full.py", *FEW, "--quiet", folder=tmp_path, prepare=partial(impatient, store.port))
    result = command.wait(60)
    assert result.status == 2
    lines = [line for line in result.err.splitlines() if not re.match(r"\[W.*\] \[c10d\]", line)]  # PyTorch's log
    assert len(lines) == 1, result.err
    expected = "error: another process of this training is gone or did not answer for 0:00:01: .*start the same command"
    assert re.match(expected, lines[0]), result.err


def impatient(port: int) -> None:
    """Start the first of two processes; the second one never starts."""
    as_process(0, 2, 1, "", port)
    vars(import_module("reference.distributed"))["PATIENCE"] = timedelta(seconds=1)


@clause("19.processes.meeting")
@pytest.mark.slow
def test_torchrun_exits_within_seconds_if_a_process_is_killed_before_the_rendezvous(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, runpy, signal, sys, time\n"
        "from importlib import import_module\n"
        "def load_data(*_, **__):\n    time.sleep(2)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ['RANK'] == '1':\n    vars(import_module('reference.run.train'))['load_data'] = load_data\n"
        "import torch\n"
        f"runpy.run_path({str(ROOT / 'scripts/train_full.py')!r}, run_name='__main__')\n"
    )
    job = torchrun(2, *TINY, "--output", tmp_path / "run", script=script)
    began = time.monotonic()
    _, err = job.communicate(timeout=100)
    assert time.monotonic() - began < 30  # torchrun waits that long for a process that ignores SIGTERM
    assert job.returncode != 0
    assert len(re.findall(r"^error: another process of this training is gone", err, re.MULTILINE)) == 1, err
    assert "resume" not in err
    assert re.search(r"rank *: 1 .*\n *exitcode *: -9 ", err), err


@clause("19.processes.gpus")
def test_each_process_has_a_separate_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Group().device("cuda") == "cuda"  # alone
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))  # two machines with two GPUs each
    assert [Group.from_environment().device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(InputError, match="--device cuda:0: several processes need a GPU each; say --device cuda"):
        Group.from_environment().device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"4 processes on this machine, but 2 GPUs.*--nproc-per-node=2"):
        Group.from_environment().device("auto")


@clause("19.processes.errors")
@pytest.mark.slow
def test_an_impossible_setting_ends_every_process(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    results = together(tmp_path, *TINY, "--output", tmp_path / "full")
    assert [result.status for result in results] == [2, 2]
    err = "".join(result.err for result in results)
    assert len(re.findall(r"^error: --output .* is not empty", err, re.MULTILINE)) == 1, err
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]
