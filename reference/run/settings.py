"""The settings of a training: read from the command line, checked, and read back from a run's config.json."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from reference.data.cifar10 import OFFICIAL_MD5, OFFICIAL_URL
from reference.errors import InputError
from reference.recipes import RECIPES


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
