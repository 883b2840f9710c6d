"""A training as a folder: what `scripts/train_full.py` does.

    runs/shapes-20240411-120000/
        config.json         every setting, the versions, the device, the data
        metrics.jsonl       one line an epoch
        last.pt, best.pt    checkpoints: to go on from; of the epoch with the highest test accuracy
        epoch-0010.pt …     with `--keep-every N`
        summary.json        the outcome, once the last epoch is done
        events.out.…        for TensorBoard

`last.pt` decides: it is replaced in one step, after everything else of its epoch was written, and resuming cuts the
other files back to it. Killed at whatever moment, a run goes on as though it had never stopped: on the CPU, with the
same number of threads and the same versions, to the last bit.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from filelock import FileLock, Timeout
from torch import nn
from tqdm import tqdm

import reference
from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.data.cifar10 import ARCHIVE, FOLDER, OFFICIAL_MD5, OFFICIAL_URL, cifar10_pair
from reference.data.image_tree import ImageTree
from reference.data.resident import Resident, ResidentLoader
from reference.data.shapes import TEST_SIZE, TRAIN_SIZE, Shapes
from reference.device import (
    PRECISIONS,
    choose_device,
    choose_precision,
    compile_network,
    describe_device,
    keep_freed_memory,
    out_of_memory,
    random_states,
    seed_everything,
    set_random_states,
    versions,
)
from reference.distributed import Group, follow
from reference.errors import InputError, TrainingError
from reference.files import atomic_write, remove_temporaries
from reference.models import Ocean
from reference.optim import SGD, Optimizer
from reference.recipes import RECIPES, FallingRate, Muon, Vary, patches, whiten
from reference.scaling import ScaledOptimizer
from reference.tracking import Tracker, draw_confusion, draw_predictions, forget_after
from reference.training import Evaluation, Observer, Progress, fit

SAMPLE_PICTURES = 64
LAYERS: dict[str, Any] = {"torch": nn, "reference": reference}
"""The namespace that each `--impl` takes its layers and its loss from."""


@dataclass(frozen=True)
class Settings:
    """Train the tutorial's network and keep everything that is needed to go on, to repeat it and to predict.

    Without any flag: CIFAR-10 if it lies under data/, else the embedded Shapes; 10 epochs of SGD, as in the tutorial.
    """

    dataset: Literal["auto", "shapes", "cifar10", "images"] = "auto"
    """What to learn. auto: CIFAR-10 if it is under --data-root, else Shapes. images: --data-root holds train/CLASS/*
    and test/CLASS/* trees of pictures of any size; they are read in one fixed mixed order, not class by class."""
    data_root: Path = Path("data")
    """The folder with cifar-10-python.tar.gz, with cifar-10-batches-py/, or with train/ and test/."""
    download: bool = False
    """Fetch CIFAR-10 (170 MB) into --data-root if it is not there; an interrupted download goes on where it ended."""
    mirrors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL [URL ...]")] = (OFFICIAL_URL,)
    """Where to fetch cifar-10-python.tar.gz from, tried in this order."""
    archive_md5: str = OFFICIAL_MD5
    """The MD5 checksum cifar-10-python.tar.gz must have; another one admits another archive in the same format."""
    skip_broken: bool = False
    """Leave out pictures that cannot be read, and say how many, instead of stopping."""
    limit_train: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Use only the first N training pictures."""
    limit_test: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Use only the first N test pictures."""

    recipe: Literal["tutorial", "fast"] = "tutorial"
    """How to learn: a name for settings, which other flags may change. tutorial: as the tutorial does. fast: to its
    accuracy in a hundredth of the time, and beyond it (reference/recipes.py)."""
    epochs: int = 10
    """Passes over the training pictures, in all: with --resume those already done count."""
    batch_size: int = 64
    """Pictures a step."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """sgd: along the gradient. muon: along the gradient, orthogonalized."""
    learning_rate: float = 0.01
    """How far a step goes."""
    momentum: float = 0.0
    """Share of the last step's direction that the next one keeps."""
    weight_decay: float = 0.0
    """Share of the weights that the learning rate takes away each step (sgd: as part of the gradient)."""
    schedule: Literal["constant", "falling"] = "constant"
    """The learning rate of all steps: constant, or rising over the first tenth of them and then falling to 0. For that
    --learning-rate is the highest rate of a training of 100 steps; it falls with the cube root of their number."""
    whiten: bool = False
    """Fix the first layer to the whitened principal components of the pictures' 5×5 patches instead of training it."""
    shuffle: bool = False
    """A new order every epoch. Without it: the stored order every time, as the tutorial has it."""
    mirror: bool = False
    """Show half of the training pictures, drawn anew each time, left to right."""
    shift: int = 0
    """Show each training picture moved by up to so many pixels, drawn anew each time."""
    log_every: int = 100
    """Steps from one train_loss to the next."""

    impl: Literal["torch", "reference"] = "torch"
    """Whose layers and loss are trained: PyTorch's, or the reference's from first principles; they start from the same
    weights."""
    seed: int = 0
    """Of the initial weights and of the orders."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the layers compute in; weights, loss and optimizer are float32. auto: bfloat16 where the device has it, else
    (and for --impl reference) float32. float16: for cards without bfloat16; the loss is scaled."""
    compile: Literal["off", "graphs", "full"] = "off"
    """Compile the network by torch.compile. graphs: a card replays the operations of a step as CUDA graphs. full: they
    are fused as well, which takes long at first."""
    deterministic: bool = False
    """Refuse operations that cannot be repeated exactly. The CPU repeats exactly without it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    num_threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; by default as many as PyTorch chooses."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run's folder: new or empty. By default runs/DATASET-DATE-TIME."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with the run in this folder, with its own settings; --epochs, --device, --compile, --num-threads,
    --data-root, --keep-every and --quiet may be given anew."""
    keep_every: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Keep each Nth epoch's checkpoint besides last.pt and best.pt; 0 keeps none."""
    quiet: bool = False
    """Print nothing but the outcome and errors."""

    def check(self) -> None:
        """Raise InputError for a figure that makes no sense; the text names the flag, what came and what is needed."""
        at_least = {"epochs": 1, "batch_size": 1, "log_every": 1, "limit_train": 1, "limit_test": 1, "num_threads": 1}
        at_least |= {"keep_every": 0, "momentum": 0, "weight_decay": 0, "seed": 0, "shift": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise InputError(f"{flag(name)} must be at least {least}, got {value}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"--learning-rate must be above 0 and finite, got {self.learning_rate}")
        if self.optimizer == "muon" and self.momentum >= 1:
            raise InputError(f"--momentum must be below 1 for --optimizer muon, got {self.momentum}")
        if self.seed >= 2**63:
            raise InputError(f"--seed must be below 2**63, got {self.seed}")
        if self.download and self.dataset not in ("auto", "cifar10"):
            raise InputError(f"--download fetches CIFAR-10, but --dataset is {self.dataset}")


# What may differ when a run goes on, because it changes where or how long it computes, but not what.
CHANGEABLE = {
    *("epochs", "device", "compile", "num_threads", "data_root", "keep_every", "quiet"),
    *("download", "mirrors", "resume"),
}


def flag(name: str) -> str:
    """A setting's name as it is typed."""
    return "--" + name.replace("_", "-")


S = TypeVar("S", bound=Settings)


def parse(kind: type[S]) -> S:
    """The command line as settings; what is not typed is the resumed run's, else the recipe's, else the tutorial's."""
    settings = tyro.cli(tyro.conf.FlagCreatePairsOff[kind])
    values: dict[str, Any] = {"recipe": settings.recipe} | RECIPES[settings.recipe]
    if settings.resume is not None:
        values = vars(stored_settings(settings.resume))
    return tyro.cli(tyro.conf.FlagCreatePairsOff[kind], default=kind(**values))


def stored_settings(folder: Path) -> Settings:
    """The settings of the run in `folder`, for going on with it.

    Raises:
        InputError: there is no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["settings"]
        known = {entry.name for entry in fields(Settings)}
        values = {name: value for name, value in stored.items() if name in known}
        paths = {"data_root": Path(values["data_root"]), "mirrors": tuple(values["mirrors"]), "output": None}
        return Settings(**values | paths)
    except OSError as error:
        raise InputError(f"--resume {folder}: no run is there ({path.name}: {error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--resume {folder}: {path.name} is damaged ({error})") from error


def train(settings: Settings) -> int:
    """Do the tutorial's whole job in a run folder: data, network, training, evaluation, checkpoints, logs.

    Returns:
        The exit status: 0, or 130 / 143 after a Ctrl-C / SIGTERM that was answered by saving.

    Raises:
        InputError: something given cannot be used.
        TrainingError: the loss is no finite number any more; the last good checkpoint is kept.
    """
    settings.check()
    if settings.resume is not None:
        stored = stored_settings(settings.resume)
        if settings.precision == "auto":
            settings = replace(settings, precision=stored.precision)
        refuse_changes(settings, stored)
    group = Group()
    say = (lambda *_: None) if settings.quiet or not group.leads else print
    device = choose_device(group.device(settings.device))
    if settings.precision == "auto" and settings.impl == "reference":
        settings = replace(settings, precision="float32")
    precision = choose_precision(settings.precision, device)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    keep_freed_memory()
    train_set, test_set, data = load_data(settings, say)
    folder = settings.resume or settings.output or Path("runs") / time.strftime(f"{data['dataset']}-%Y%m%d-%H%M%S")

    with ExitStack() as leaving:
        group.join(device)
        leaving.callback(group.leave)
        folder = group.agree(folder)
        group.led(lambda: leaving.enter_context(locked(folder, new=settings.resume is None)))
        group.led(lambda: remove_temporaries(folder))
        leaving.enter_context(explained(settings, device, folder / "last.pt"))
        seed_everything(settings.seed, deterministic=settings.deterministic)
        network, optimizer, train_loader, test_loader, schedule = prepare(settings, train_set, test_set, device)
        scaled = ScaledOptimizer(optimizer, device) if precision == torch.float16 else None
        progress = Progress()
        if group.agree((folder / "last.pt").exists()):
            progress = restore(folder / "last.pt", network, optimizer, scaled, data, train_set.classes)
        if progress.epoch > settings.epochs:
            raise InputError(f"--epochs {settings.epochs}: {folder} has done {progress.epoch} epochs already")
        # As it was understood, so that it can be gone on with from any folder.
        known = replace(
            settings,
            dataset=data["dataset"],
            data_root=settings.data_root.resolve(),
            resume=None,
            precision=next(name for name, dtype in PRECISIONS.items() if dtype == precision),
        )
        config = {"settings": asdict(known), "data": data, "device": str(device), "versions": versions()}
        if group.leads:
            write_json(folder / "config.json", config)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        whose = " of the reference's layers" if settings.impl == "reference" else ""
        where = f"on {describe_device(device)} in {known.precision}"
        where += "" if settings.compile == "off" else f", compiled ({settings.compile})"
        say(f"{type(network).__name__}{whose}: {parameters:,} parameters, {where}, in {folder}")
        if progress.step:
            say(f"going on after step {progress.step:,} ({progress.epoch} of {settings.epochs} epochs done)")

        how: dict[str, Any] = {"precision": precision, "before_step": schedule}
        how["loss_scale"] = scaled and scaled.factor
        parts = network, LAYERS[settings.impl].CrossEntropyLoss(), scaled or optimizer
        if not group.leads:
            compile_network(network, settings.compile, device)
            return follow(group, parts, (train_loader, test_loader), settings.epochs, progress, **how)
        with RunFolder(folder, settings, network, optimizer, scaled, train_set, test_set, data, progress, group) as run:
            # now that its graph is drawn: the tracer needs the network as it was
            compile_network(network, settings.compile, device)
            try:
                fit(
                    *group.together(*parts),
                    train_loader,
                    test_loader,
                    epochs=settings.epochs,
                    progress=progress,
                    observer=run,
                    **how,
                )
            except TrainingError as error:
                raise TrainingError(
                    f"{error}: stopped. {folder / 'last.pt'} still holds the last good state; "
                    f"try a --learning-rate below {settings.learning_rate:g}"
                ) from error
            except RuntimeError as error:
                group.complain(error, progress)
                raise
            if progress.epoch < settings.epochs:
                run.save()
                print(f"stopped after step {progress.step:,}, nothing is lost; go on with: --resume {folder}")
                return 128 + run.signal
            summary = run.finish()
    print(
        f"test accuracy {summary['test_accuracy']:.2%} after {summary['epochs']} epochs "
        f"(best {summary['best']['test_accuracy']:.2%}); ask it with: "
        f"python scripts/predict.py PICTURE --checkpoint {folder / 'best.pt'}"
    )
    return 0


@contextmanager
def explained(settings: Settings, device: torch.device, last: Path) -> Iterator[None]:
    """Raise InputError for what a machine lacks: memory, or a compiler; wherever in the training it shows."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            kept = f"; {last} is as it was" if last.exists() else ""
            raise InputError(
                f"{device} has not enough memory for this training{kept}. "
                f"Try a --batch-size below {settings.batch_size}, or another --device"
            ) from error
        if settings.compile != "off" and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).strip().split("\n\n")[0].split())  # what follows is for PyTorch's authors
            raise InputError(f"--compile {settings.compile} does not work here ({reason}); leave it out") from error
        raise


def prepare(
    settings: Settings, train_set: Resident, test_set: Resident, device: torch.device
) -> tuple[nn.Module, Optimizer, ResidentLoader, ResidentLoader, FallingRate | None]:
    """Network, optimizer, loaders of training and test pictures, and schedule, as the settings ask for them."""
    network = Ocean(classes=len(train_set.classes), layers=LAYERS[settings.impl])
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (the layout convolutions prefer)
    if settings.whiten:
        weight, bias = islice(network.parameters(), 2)
        whiten(weight, bias, patches(train_set.images[:500], weight.shape[-1]).to(device))
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: Optimizer
    if settings.optimizer == "sgd":
        optimizer = SGD(trained, settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay)
    else:
        optimizer = Muon(trained, settings.learning_rate, settings.momentum, settings.weight_decay)
    vary = Vary(settings.mirror, settings.shift) if settings.mirror or settings.shift else None
    order = torch.Generator().manual_seed(settings.seed)
    train_loader = ResidentLoader(
        train_set, settings.batch_size, settings.shuffle, generator=order, device=device, vary=vary
    )
    test_loader = ResidentLoader(test_set, settings.batch_size, device=device)
    schedule = None
    if settings.schedule == "falling":
        schedule = FallingRate(optimizer, steps=settings.epochs * len(train_loader))
    return network, optimizer, train_loader, test_loader, schedule


def train_seeds(settings: Settings, seeds: int) -> list[dict[str, Any]]:
    """The same training with the seeds 0 to `seeds - 1`, each in a run `seed-N` under `settings.output`; their
    summaries.

    What is there already is gone on with, so that an interrupted measurement continues.

    Raises:
        InputError: as `train`; also if `settings.output` is not given, or one of the trainings was stopped by a signal.
    """
    if settings.output is None:
        raise InputError("--output is needed: the folder for the runs")
    summaries = []
    for seed in range(seeds):
        folder = settings.output / f"seed-{seed}"
        place = {"resume": folder} if (folder / "config.json").exists() else {"output": folder}
        if train(replace(settings, seed=seed, **{"output": None, "resume": None} | place)) != 0:
            raise InputError(f"stopped; the same command goes on with {folder}")
        summaries.append(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    return summaries


def load_data(settings: Settings, say: Any) -> tuple[Resident, Resident, dict[str, Any]]:
    """Both halves of the data set that is asked for, cut to the limits, and its description for config.json."""
    name, root = settings.dataset, settings.data_root
    if name == "auto":
        present = settings.download or any((root / part).exists() for part in (ARCHIVE, FOLDER))
        name = "cifar10" if present else "shapes"
        if not present:
            say(f"no CIFAR-10 under {root}/: using the embedded Shapes; to get it: --dataset cifar10 --download")
    train_set: Resident
    test_set: Resident
    if name == "shapes":
        train_set = Shapes(train=True, size=min(settings.limit_train or TRAIN_SIZE, TRAIN_SIZE))
        test_set = Shapes(train=False, size=min(settings.limit_test or TEST_SIZE, TEST_SIZE))
    elif name == "cifar10":
        train_set, test_set = cifar10_pair(
            root,
            settings.download,
            mirrors=settings.mirrors,
            archive_md5=settings.archive_md5,
            progress=not settings.quiet,
        )
    else:
        train_set, test_set = trees = [
            ImageTree(root, train, skip_broken=settings.skip_broken, progress=not settings.quiet)
            for train in (True, False)
        ]
        skipped = [path for tree in trees for path in tree.skipped]
        if skipped:
            print(f"skipped {len(skipped)} broken pictures: {', '.join(skipped[:5])}{' …' * (len(skipped) > 5)}")
    fingerprint = blake2b(digest_size=16)
    for dataset, limit in ((train_set, settings.limit_train), (test_set, settings.limit_test)):
        dataset.images, dataset.targets = dataset.images[:limit], dataset.targets[:limit]
        for part in (dataset.images, dataset.targets):
            fingerprint.update(part.contiguous().numpy().data)
    say(f"{name}: {len(train_set):,} training and {len(test_set):,} test pictures of {len(train_set.classes)} classes")
    return (
        train_set,
        test_set,
        {
            "dataset": name,
            "train": len(train_set),
            "test": len(test_set),
            "classes": list(train_set.classes),
            "fingerprint": fingerprint.hexdigest(),
        },
    )


@contextmanager
def locked(folder: Path, *, new: bool) -> Iterator[None]:
    """Hold the run folder against every other run; a new one is made.

    Raises:
        InputError: another run holds it, or a new run's folder is not empty.
    """

    def check_empty() -> None:
        if new and any(entry.name != "run.lock" for entry in folder.iterdir()):
            raise InputError(
                f"--output {folder} is not empty; choose another, or go on with the run in it: --resume {folder}"
            )

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"--output {folder} is a file; name a folder") from error
    lock = FileLock(folder / "run.lock")
    if not (folder / "run.lock").exists():  # a folder that is no run's is left as it was found
        check_empty()
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another run is using this folder; choose another --output") from error
    try:
        check_empty()
        yield
    finally:
        lock.release()


def refuse_changes(settings: Settings, stored: Settings) -> None:
    """Raise InputError if going on was asked for with a setting that would make it another training."""
    if settings.output is not None:
        raise InputError(f"--output {settings.output}: a run that is resumed stays in its folder, {settings.resume}")
    if settings.epochs != stored.epochs and stored.schedule == "falling":
        raise InputError(
            f"--epochs {settings.epochs}: this run's learning rate falls to 0 at the end of epoch {stored.epochs}, and "
            "going on cannot change that"
        )
    for name, old in asdict(stored).items():
        new = getattr(settings, name)
        if name not in CHANGEABLE and new != old:
            raise InputError(f"{flag(name)} {new}: this run was begun with {old}, and going on cannot change that")


def restore(
    path: Path,
    network: nn.Module,
    optimizer: Optimizer,
    scaled: ScaledOptimizer | None,
    data: dict[str, Any],
    classes: tuple[str, ...],
) -> Progress:
    """Put the state of a checkpoint into network, optimizer and random generators; return where the training stands.

    Raises:
        InputError: the checkpoint cannot be read, is of other data, or holds no training state.
    """
    content = load_checkpoint(path)
    state = content["training"]
    if content["class_names"] != list(classes) or state.get("data", {}).get("fingerprint") != data["fingerprint"]:
        raise InputError(f"{path} was trained on other data than what is here now; going on would mix them up")
    try:
        network.load_state_dict(content["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        if scaled is not None:
            scaled.load_state_dict(state["scale"])
        set_random_states(state["rng"], next(network.parameters()).device)
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} holds no state to go on from ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, whole or not at all; paths become strings."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n").encode())


@dataclass
class RunFolder(Observer):
    """What `fit` reports, written to the run's folder and shown on the terminal; and the signals that stop it."""

    folder: Path
    settings: Settings
    network: nn.Module
    optimizer: Optimizer
    scaled: ScaledOptimizer | None
    train_set: Resident
    test_set: Resident
    data: dict[str, Any]
    progress: Progress
    group: Group = field(default_factory=Group)
    signal: int = 0
    handlers: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> "RunFolder":
        forget_after(self.folder, step=self.progress.step, epoch=self.progress.epoch)
        self.tracker = Tracker(self.folder)
        self.bar = tqdm(disable=True)
        self.write_metrics()
        if not (self.folder / "last.pt").exists():
            example = self.train_set.images[: self.settings.batch_size].to(next(self.network.parameters()).device)
            self.tracker.graph(self.network, example / 255)
            self.save()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.tracker.close()

    def on_signal(self, number: int, _: object) -> None:
        """The first signal asks for an end after this step; the second one is obeyed by the system at once."""
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        print("\nfinishing this step and saving; once more to stop at once", file=sys.stderr)

    def should_stop(self) -> bool:
        self.signal = self.group.largest(self.signal)
        return self.signal != 0

    def on_epoch_start(self, progress: Progress) -> None:
        self.bar = tqdm(
            desc=f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            total=len(self.train_set),
            initial=progress.seen,
            unit=" images",
            leave=False,
            disable=True if self.settings.quiet else None,
        )

    def on_steps(self, progress: Progress, losses: dict[int, float]) -> None:
        for step, loss in losses.items():
            if step % self.settings.log_every == 0:
                self.tracker.scalars(step, train_loss=loss)
                if not self.settings.quiet:
                    self.bar.write(f"step {step:,}: train_loss {loss:.4f}")
        self.bar.set_postfix(loss=f"{losses[max(losses)]:.4f}", refresh=False)
        self.bar.update(progress.seen - self.bar.n)

    def on_epoch(self, progress: Progress, evaluation: Evaluation) -> None:
        self.bar.close()
        metrics = progress.history[-1]
        sample = slice(0, SAMPLE_PICTURES)
        pictures = (self.test_set.images[sample], self.test_set.targets[sample], evaluation.predictions[sample])
        step = progress.epoch - 1  # the tutorial counts its tests from 0
        self.tracker.scalars(
            step,
            test_loss=metrics["test_loss_sum"],
            test_loss_mean=metrics["test_loss"],
            test_accuracy=metrics["test_accuracy"],
        )
        self.tracker.picture("predictions", draw_predictions(*pictures, self.test_set.classes), step)
        self.tracker.picture("confusion", draw_confusion(evaluation.confusion, self.test_set.classes), step)
        if best_epoch(progress) is metrics:
            self.save("best.pt")
        if self.settings.keep_every and progress.epoch % self.settings.keep_every == 0:
            self.save(f"epoch-{progress.epoch:04d}.pt")
        self.save()
        self.write_metrics()
        if not self.settings.quiet:
            print(
                f"epoch {progress.epoch}/{self.settings.epochs}: train loss {metrics['train_loss']:.4f}, test loss "
                f"{metrics['test_loss']:.4f} (sum of batch means {metrics['test_loss_sum']:.2f}), test accuracy "
                f"{metrics['test_accuracy']:.2%}, {metrics['images_per_second']:,.0f} images/s"
            )

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint that the training can go on from; everything logged so far reaches the disk before it."""
        self.tracker.flush()
        save_checkpoint(
            self.folder / name,
            self.network,
            self.train_set.classes,
            metrics=self.progress.history[-1] if self.progress.history else {},
            training={
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(self.progress),
                "scale": self.scaled and self.scaled.state_dict(),
                "rng": random_states(next(self.network.parameters()).device),
                "data": self.data,
            },
        )

    def write_metrics(self) -> None:
        """metrics.jsonl as the checkpoint has it: one line an epoch."""
        with atomic_write(self.folder / "metrics.jsonl") as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.progress.history).encode())

    def finish(self) -> dict[str, Any]:
        """Write and return the summary of a run whose last epoch is done."""
        confusion = self.progress.confusion
        assert confusion is not None, "a finished epoch leaves its confusion matrix"
        correct = confusion.diag() / confusion.sum(dim=1)
        summary = self.progress.history[-1] | {
            "epochs": self.progress.epoch,
            "best": best_epoch(self.progress),
            "class_accuracy": dict(zip(self.train_set.classes, correct.tolist(), strict=True)),
            "confusion": confusion.tolist(),
        }
        write_json(self.folder / "summary.json", summary)
        return summary


def best_epoch(progress: Progress) -> dict[str, Any]:
    """The metrics of the first epoch with the highest test accuracy."""
    return max(progress.history, key=lambda metrics: metrics["test_accuracy"])
