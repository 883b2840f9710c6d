"""A whole training: from settings to a finished run folder."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from reference.data.resident import Resident
from reference.device import (
    PRECISIONS,
    Precision,
    choose_device,
    choose_precision,
    compile_network,
    describe_device,
    keep_freed_memory,
    out_of_memory,
    seed_everything,
    versions,
)
from reference.distributed import Group
from reference.errors import STOPPING, InputError, TrainingError, is_ignored
from reference.files import read_json, remove_temporaries
from reference.messages import choose_language, counted
from reference.run.data import load_data
from reference.run.folder import RunFolder, locked, new_folder, restore, write_json
from reference.run.parts import Plan, prepare
from reference.run.plots import check_plots
from reference.run.precision import resolve_precision
from reference.run.screen import outcome
from reference.run.settings import Settings, refuse_changes, stored_settings
from reference.text import print_line, print_wrapped
from reference.training import Observer, Progress


def train(settings: Settings, *, advise: bool = True) -> int:
    """Run the tutorial's whole training in a run folder: data, network, training, evaluation, checkpoints, logs.

    Args:
        settings: of the run.
        advise: whether to print the commands to continue with.

    Returns:
        The exit status: 0, or 130 / 143 after a Ctrl-C / SIGTERM that stopped and saved the training.

    Raises:
        InputError: a setting or a file cannot be used.
        TrainingError: the loss is not finite, or another process is gone; the last good checkpoint is kept.
    """
    settings.check()
    choose_language(settings.lang)
    if settings.plots:
        check_plots()
    if settings.resume is not None:
        stored = stored_settings(settings.resume)
        kept = {name: getattr(stored, name) for name in ("precision", "dataset") if getattr(settings, name) == "auto"}
        settings = replace(settings, **kept)
        refuse_changes(settings, stored)
    group = Group.from_environment()
    say = (lambda *_: None) if settings.quiet or not group.leads else print_wrapped
    progress = Progress()
    held = settings.resume  # the run's folder, once it is known that no other run uses it
    with ExitStack() as leaving:
        leaving.callback(group.leave)
        leaving.enter_context(group.accompanied(lambda: standing(settings, held, progress)))
        device = choose_device(group.device(settings.device))
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        keep_freed_memory()
        train_set, test_set, data = load_data(settings, say, leads=group.leads)
        group.join(device)
        chosen: list[Path] = []
        group.led(lambda: chosen.append(choose_folder(settings, data["dataset"])))
        folder = group.agree(chosen[0] if group.leads else None)
        group.led(lambda: leaving.enter_context(locked(folder, new=settings.resume is None)))
        held = folder
        group.led(lambda: remove_temporaries(folder))
        leaving.enter_context(explained(settings, device, folder / "last.pt"))
        # before seeding, because it does not depend on the seed
        precision = agreed_precision(settings, train_set, device, group, say)
        seed_everything(settings.seed, deterministic=settings.deterministic)
        plan = prepare(settings, train_set, test_set, device, precision)
        if group.agree((folder / "last.pt").exists()):
            progress = restore(folder / "last.pt", plan, data, train_set.classes)
        if progress.epoch > settings.epochs:
            raise InputError(
                f"--epochs {settings.epochs}: {folder} has done {counted(progress.epoch, 'epoch')} already"
            )
        if group.leads:
            write_config(folder, settings, plan, data, device)
        say(introduction(settings, plan, device))
        say(f"run folder: {folder}")
        if progress.step:
            say(f"resuming after step {progress.step:,} (epochs done: {progress.epoch} of {settings.epochs})")
        if not group.leads:
            compile_network(plan.network, settings.compile, device)
            return follow(group, plan, progress)
        with RunFolder(folder, settings, plan, train_set, test_set, data, progress, group) as run:
            # after its graph is written, because the tracer needs the uncompiled network
            compile_network(plan.network, settings.compile, device)
            try:
                plan.fit(group, progress, run)
            except TrainingError as error:
                raise TrainingError(
                    f"{error}: stopped. {folder / 'last.pt'} still holds the last good state; "
                    f"try a --learning-rate below {settings.learning_rate:g}"
                ) from error
            if progress.epoch < settings.epochs:
                run.screen.bar.close()
                run.save()
                group.agree(None)
                print_wrapped(
                    f"stopped after step {progress.step:,}, nothing is lost; resume with: --resume {quote(str(folder))}"
                )
                return 128 + run.signal
            summary = run.finish()
            group.agree(None)
        assert progress.confusion is not None, "a finished training was tested"
        run.screen.learned(progress.confusion, train_set.classes)
        (print_line if settings.quiet else print_wrapped)(outcome(summary, folder))  # for programs, one line
        if advise:
            run.screen.next_commands(folder)
    return 0


def standing(settings: Settings, folder: Path | None, progress: Progress) -> str:
    """The progress of a training that another process ends, and the advice: for `Group.accompanied`."""
    if folder is not None and (folder / "last.pt").exists():
        where = f"stopped after step {progress.step:,}" if progress.step else "stopped before the first step"
        return (
            f"{where}. The last checkpoint is complete; continue with --resume {folder}, with any number of processes"
        )
    begun = folder is not None and settings.output is not None and (folder / "config.json").exists()
    again = f"delete {folder} and start again" if begun else "start the same command again"
    return f"stopped before the first checkpoint was written; {again}"


def agreed_precision(
    settings: Settings, train_set: Resident, device: torch.device, group: Group, say: Callable[..., None]
) -> torch.dtype:
    """The precision that the leading process chooses; it prints the reason if it has measured."""
    found: list[tuple[torch.dtype, str]] = []
    group.led(lambda: found.append(resolve_precision(settings, train_set, device)))
    precision, line = group.agree(found[0] if group.leads else None)
    if line:
        say(line)
    if not group.leads:  # apply the precision to this process's own device
        choose_precision(precision_name(precision), device)
    return precision


def choose_folder(settings: Settings, dataset: str) -> Path:
    """The run's folder; with a default name it is created immediately, so that no other run can choose it."""
    given = settings.resume or settings.output
    return given or new_folder(Path("runs") / time.strftime(f"{dataset}-%Y%m%d-%H%M%S"))


def write_config(folder: Path, settings: Settings, plan: Plan, data: dict[str, Any], device: torch.device) -> None:
    """Write config.json: the resolved settings, so that the run can be resumed from any working folder."""
    resolved = replace(
        settings,
        dataset=data["dataset"],
        data_root=settings.data_root.resolve(),
        resume=None,
        precision=precision_name(plan.precision),
    )
    write_json(
        folder / "config.json",
        {"settings": asdict(resolved), "data": data, "device": str(device), "versions": versions()},
    )


def introduction(settings: Settings, plan: Plan, device: torch.device) -> str:
    """The line that names the network, the device and the precision."""
    parameters = sum(parameter.numel() for parameter in plan.network.parameters())
    layers = " of the reference's layers" if settings.impl == "reference" else ""
    where = f"on {describe_device(device)} in {precision_name(plan.precision)}"
    where += "" if settings.compile == "off" else f", compiled ({settings.compile})"
    return f"{type(plan.network).__name__}{layers}: {parameters:,} parameters, {where}"


def precision_name(precision: torch.dtype) -> Precision:
    """The name of a precision, as in `--precision`."""
    return next(name for name, dtype in PRECISIONS.items() if dtype == precision)


class Follower(Observer):
    """A process other than the leading one: it writes nothing, and stops when any process receives a stop signal."""

    def __init__(self, group: Group) -> None:
        self.group, self.signal = group, 0

    def on_signal(self, number: int, _: object) -> None:
        """Record the signal: all processes end after the same step."""
        self.signal = number

    def should_stop(self) -> bool:
        self.signal = self.group.largest(self.signal)
        return self.signal != 0


def follow(group: Group, plan: Plan, progress: Progress) -> int:
    """Train along with the leading process; write nothing.

    Returns:
        The exit status: 0, or 128 plus the number of the signal that stopped the processes.

    Raises:
        TrainingError: as `fit`.
    """
    follower = Follower(group)
    handlers = {number: signal.signal(number, follower.on_signal) for number in STOPPING if not is_ignored(number)}
    try:
        plan.fit(group, progress, follower)
        group.agree(None)  # the leading process has written everything
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0 if progress.epoch >= plan.epochs else 128 + follower.signal


@contextmanager
def explained(settings: Settings, device: torch.device, last: Path) -> Iterator[None]:
    """Convert an error about missing memory or a missing compiler, anywhere in the training, into an InputError."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            kept = f"; {last} is unchanged" if last.exists() else ""
            raise InputError(
                f"{device} has not enough memory for this training{kept}. "
                f"Try a --batch-size below {settings.batch_size}, or another --device"
            ) from error
        if settings.compile != "off" and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            # the rest of the message is for PyTorch's developers
            reason = " ".join(str(error).strip().split("\n\n")[0].split())
            raise InputError(f"--compile {settings.compile} does not work here ({reason}); leave it out") from error
        raise


def train_seeds(settings: Settings, seeds: int) -> list[dict[str, Any]]:
    """Run the training with the seeds 0 to `seeds - 1`, each in a folder `settings.output/seed-N`; return the
    summaries.

    Existing trainings in the folder are resumed, so that an interrupted measurement can be continued.

    Raises:
        InputError: as `train`; also if `settings.output` is not given, or one of the trainings was stopped by a signal.
    """
    output = settings.output
    if output is None:
        raise InputError("--output is needed: the folder for the runs")
    summaries = []
    for seed in range(seeds):
        folder = output / f"seed-{seed}"
        place = {"resume": folder} if (folder / "config.json").exists() else {"output": folder}
        if train(replace(settings, seed=seed, **{"output": None, "resume": None} | place), advise=False) != 0:
            raise InputError(f"stopped; the same command resumes {folder}")
        if settings.precision == "auto":  # measured once, so that all trainings use the same precision
            settings = replace(settings, precision=stored_settings(folder).precision)
        summaries.append(read_json(folder / "summary.json"))
    return summaries
