"""Chapter 19, several cards: several processes train what one trains. Here two processes on the CPU, over gloo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import reference
from reference.checkpoint import load_checkpoint
from reference.distributed import Group
from reference.errors import InputError, TrainingError
from reference.models import Ocean
from reference.training import Progress, evaluate, fit
from spec.support.assertions import Tolerance, assert_close
from spec.support.clauses import clause
from spec.support.command import FORKS, run
from spec.test_18_loss_curve import LONGEST_SUM, pytorchs_losses

SIZES = (16, 16, 7, 1)  # the pictures of each batch: even, uneven, and one that leaves a process nothing to do


@clause("19.processes.shards")
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("pictures", [1, 4, 16, 17])
def test_the_parts_of_a_batch_are_disjoint_and_complete(
    size: int, pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        parts.append(Group().part(torch.arange(pictures)))
    assert torch.cat(parts).tolist() == list(range(pictures))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@clause("19.processes.alone")
def test_one_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = Group()
    group.join(torch.device("cpu"))
    parts: Any = nn.Linear(1, 1), nn.MSELoss(), object()
    assert group.together(*parts) == parts
    assert (group.leads, group.agree(3), group.largest(4), group.device("cuda")) == (True, 3, 4, "cuda")
    assert not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="RANK and WORLD_SIZE must be numbers"):
        Group()


@clause("19.processes.batch_norm")
def test_a_layer_that_needs_the_whole_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    network = nn.Sequential(nn.Conv2d(3, 3, 1), reference.BatchNorm2d(3))
    with pytest.raises(InputError, match=r"several processes: 1 \(BatchNorm2d\) needs the whole batch; use one"):
        Group().together(network, nn.MSELoss(), reference.SGD(network.parameters(), 0.1))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(n, 3, 32, 32, generator=generator, dtype=torch.float64),
            torch.randint(10, (n,), generator=generator),
        )
        for n in SIZES
    ]


def trained(rank: int, size: int, folder: Path) -> None:
    """Two epochs in float64, as process `rank` of `size`; what comes out is saved."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    group = Group()
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        group.talk = dist.group.WORLD
    torch.manual_seed(0 if group.leads else 99)  # what the others begin with does not matter
    network = Ocean(10, layers=reference).double()
    parts = group.together(
        network, reference.CrossEntropyLoss(), reference.SGD(network.parameters(), 0.05, momentum=0.9)
    )
    progress = fit(*parts, batches(), batches(), epochs=2)
    judged = evaluate(parts[0], parts[1], batches())
    assert judged is not None
    found = {"weights": network.state_dict(), "history": progress.history, "predictions": judged.predictions}
    torch.save(found, folder / f"{rank}-of-{size}.pt")
    group.leave()


@clause("19.processes.same_result")
@pytest.mark.slow
def test_several_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        (tmp_path / "meet").unlink(missing_ok=True)
        processes = [FORKS.Process(target=trained, args=(rank, size, tmp_path)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    one = torch.load(tmp_path / "0-of-1.pt")
    # Sums are added up in another order: a gradient is off by at most LONGEST_SUM · eps of what it is a sum of, which
    # is below 1 here, and 8 steps with momentum 0.9 and learning rate 0.05 add up less than 4 gradients.
    tolerance = Tolerance(4 * LONGEST_SUM * torch.finfo(torch.float64).eps, f"4 gradients of {LONGEST_SUM} roundings")
    for size in (2, 3):
        for rank in range(size):
            found = torch.load(tmp_path / f"{rank}-of-{size}.pt")
            for name, expected in one["weights"].items():
                assert_close(found["weights"][name], expected, tolerance, f"{name} of process {rank} of {size}")
            for metrics, wanted in zip(found["history"], one["history"], strict=True):
                for name in ("train_loss", "test_loss", "test_loss_sum", "test_accuracy"):
                    assert_close(
                        torch.tensor(metrics[name]).double(), torch.tensor(wanted[name]).double(), tolerance, name
                    )
            assert found["predictions"].tolist() == one["predictions"].tolist()


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


def torchrun(processes: int, *words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, str(ROOT / "scripts/train_full.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"]
    return lines


@clause("19.processes.one_writer", "19.processes.resume")
@pytest.mark.slow
def test_torchrun_writes_one_run_and_another_number_of_processes_goes_on_with_it(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    job = torchrun(2, *TINY, "--epochs", 2, "--output", two)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert out.count("epoch 1/2") == 1
    assert out.count("test accuracy") == 3  # of each epoch, and the outcome: said once
    assert len(list(two.glob("events.out.tfevents.*"))) == 1
    assert run("train_full.py", *TINY, "--epochs", 2, "--output", one, folder=tmp_path).status == 0
    assert {file.name.partition(".out")[0] for file in two.iterdir()} == {
        file.name.partition(".out")[0] for file in one.iterdir()
    }
    assert run("train_full.py", "--resume", two, "--epochs", 3, folder=tmp_path).status == 0  # alone
    job = torchrun(2, "--resume", one, "--epochs", 3)  # together
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    assert "going on after step 12 (2 of 3 epochs done)" in out
    # how far weights as wrong as rounding may make them lead a training of this network and length away (chapter 18)
    exact, wobbling = pytorchs_losses(18)
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
    """Whoever is left says that another one is gone; torchrun adds which one, and by what signal."""
    folder = tmp_path / "run"
    words = ("--dataset", "shapes", "--limit-train", 1000, "--limit-test", 25, "--batch-size", 16, "--num-threads", 1)
    job = torchrun(2, *words, "--epochs", 1000, "--output", folder)
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
    gone = r"^error: another process of this training is gone: stopped after step [\d,]+\. .* go on with --resume"
    assert len(re.findall(gone, err, re.MULTILINE)) == 1, err
    assert re.search(rf"rank *: {victim} .*\n *exitcode *: -9 ", err), err
    assert len(load_checkpoint(folder / "last.pt")["training"]["progress"]["history"]) >= 1
    assert Progress(**load_checkpoint(folder / "last.pt")["training"]["progress"]).epoch >= 1


@clause("19.processes.killed")
def test_who_is_left_does_not_wait_for_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    left: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("waited"))
    group = Group()
    group.complain(RuntimeError("a defect of ours"), Progress())
    group.leave()
    assert left == ["waited"]
    with pytest.raises(TrainingError, match="another process of this training is gone: stopped after step 1,234"):
        group.complain(RuntimeError("[gloo/tcp] Connection closed by peer"), Progress(step=1234))
    group.leave()
    assert left == ["waited"]


@clause("19.processes.cards")
def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Group().device("cuda") == "cuda"  # alone
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))  # two machines with two cards each
    assert [Group().device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(InputError, match="--device cuda:0: several processes need a card each; say --device cuda"):
        Group().device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"4 processes on this machine, but 2 cards.*--nproc-per-node=2"):
        Group().device("auto")


@clause("19.processes.errors")
@pytest.mark.slow
def test_what_cannot_work_ends_every_process(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    job = torchrun(2, *TINY, "--output", tmp_path / "full")
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert len(re.findall(r"^error: --output .* is not empty", err, re.MULTILINE)) == 1
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]
