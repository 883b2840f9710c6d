"""The settings of a training: read from the command line, checked, and read back from a run's config.json."""

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from reference.command_line import explained_by, parse_arguments
from reference.data.cifar10 import OFFICIAL_MD5, OFFICIAL_URL
from reference.errors import InputError
from reference.files import read_json
from reference.messages import Language, choose_language
from reference.recipes import RECIPES


@dataclass(frozen=True)
class Settings:
    """Train the tutorial's network and keep everything needed to resume the training, to repeat it and to predict.

    Without any flag: CIFAR-10 if it is under data/, else the embedded Shapes; 10 epochs of SGD, as in the tutorial.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "common": (
            *("dataset", "data_root", "download", "recipe", "epochs", "batch_size", "optimizer", "learning_rate"),
            *("output", "resume"),
        ),
        "data": ("mirrors", "archive_md5", "skip_broken", "limit_train", "limit_test"),
        "learning": ("momentum", "weight_decay", "schedule", "whiten", "shuffle", "mirror", "shift", "seed"),
        "computing": ("device", "precision", "compile", "num_threads", "deterministic", "impl"),
        "run folder and terminal": ("log_every", "keep_every", "plots", "style", "quiet", "lang"),
    }

    dataset: Literal["auto", "shapes", "cifar10", "images"] = "auto"
    """auto: CIFAR-10 if there, else Shapes; images: your own, in train/CLASS/* and test/CLASS/*."""
    data_root: Path = Path("data")
    """The folder with the data set."""
    download: bool = False
    """Download CIFAR-10 (170 MB) if missing."""
    mirrors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL [URL ...]")] = (OFFICIAL_URL,)
    """Addresses of cifar-10-python.tar.gz, tried in this order."""
    archive_md5: str = OFFICIAL_MD5
    """The MD5 checksum that cifar-10-python.tar.gz must have; another one allows another archive in the same format."""
    skip_broken: bool = False
    """Skip images that cannot be read, and print their number, instead of stopping."""
    limit_train: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Use only the first N training images."""
    limit_test: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Use only the first N test images."""

    recipe: Literal["tutorial", "fast"] = "tutorial"
    """fast: more accurate in less time."""
    epochs: int = 10
    """Epochs in total, also with --resume."""
    batch_size: int = 64
    """Images per step."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """adam and adamw: learning rate 0.001."""
    learning_rate: float = 0.01
    """Learning rate (step size)."""
    momentum: float = 0.0
    """Share of the accumulated gradient that each step keeps (sgd and muon)."""
    weight_decay: float = 0.0
    """Share of the weights that each step subtracts, times the learning rate (sgd, adam: as part of the gradient)."""
    schedule: Literal["constant", "falling"] = "constant"
    """The course of the learning rate. constant; or falling: it rises over the first tenth of the steps and then falls
    to 0. Then --learning-rate is the highest rate of a training of 100 steps; it scales with steps^(-1/3)."""
    whiten: bool = False
    """Fix the first layer to the whitened principal components of the images' 5×5 patches instead of training it."""
    shuffle: bool = False
    """Shuffle the training images every epoch. Without it: the stored order every time, as in the tutorial."""
    mirror: bool = False
    """Mirror half of the training images, drawn anew each time, left to right."""
    shift: int = 0
    """Shift each training image by up to this number of pixels, drawn anew each time."""
    log_every: int = 100
    """Steps from one train_loss to the next."""

    impl: Literal["torch", "reference"] = "torch"
    """Layers and loss to train with: PyTorch's, or the reference's from first principles; both start from the same
    weights."""
    seed: int = 0
    """Seed of the initial weights and of the orders."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the layers' arithmetic; weights, loss and optimizer are float32. auto: bfloat16 if the device has it and
    it is faster, else (and for --impl reference) float32. float16: for GPUs without bfloat16; the loss is scaled."""
    compile: Literal["off", "graphs", "full"] = "off"
    """Compile the network with torch.compile. graphs: a GPU replays the operations of a step as CUDA graphs. full:
    operations are fused as well, which takes long at first."""
    deterministic: bool = False
    """Reject operations without a reproducible implementation. The CPU is reproducible without this flag."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    num_threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; by default PyTorch chooses."""

    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run's folder; else runs/DATASET-DATE-TIME."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume the run in this folder, with its settings."""
    keep_every: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Keep each Nth epoch's checkpoint besides last.pt and best.pt; 0 keeps none."""
    plots: bool = True
    """Draw results.png, confusion.png and mistakes.png after each epoch, and data.png at the start."""
    style: Literal["plain", "tutorial"] = "plain"
    """The lines that are printed. tutorial: the tutorial's own lines, to compare with chapters 18 and 21."""
    quiet: bool = False
    """Print nothing but the outcome and errors."""
    lang: Language = "auto"
    """The language of messages and images: English, Chinese, or that of the system's locale."""

    def check(self) -> None:
        """Raise InputError for a number that cannot be used; the message names the flag, the value and the range."""
        at_least = {"epochs": 1, "batch_size": 1, "log_every": 1, "limit_train": 1, "limit_test": 1, "num_threads": 1}
        at_least |= {"keep_every": 0, "momentum": 0, "weight_decay": 0, "seed": 0, "shift": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"{flag(name)} must be at least {least}, got {shortened(value)}")
            limit = LIMITS.get(name, 1 << 63)
            if isinstance(value, int) and value >= limit:
                raise InputError(f"{flag(name)} must be below {limit}, got {shortened(value)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate must be above 0 and finite, got {self.learning_rate}")
        if self.optimizer == "muon" and self.momentum >= 1:
            raise InputError(f"--momentum must be below 1 for --optimizer muon, got {self.momentum}")
        if self.optimizer in OPTIMIZERS and self.momentum:
            raise InputError(
                f"--momentum is for --optimizer sgd and muon, but --optimizer is {self.optimizer}, and --momentum "
                f"{self.momentum}"
            )
        if self.download and self.dataset not in ("auto", "cifar10"):
            raise InputError(f"--download fetches CIFAR-10, but --dataset is {self.dataset}")


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"learning_rate": 0.001, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"learning_rate": 0.001, "momentum": 0.0, "weight_decay": 0.01},
}
"""PyTorch's defaults for optimizers with other defaults than SGD; given flags have precedence."""

LIMITS: dict[str, int] = {"num_threads": 2**12, "shift": 2**16}
"""Upper limits, exclusive, below that of a 64-bit integer. More threads than this make OpenMP end the process."""

# Settings that may differ when a run is resumed: they change where or how long it computes, but not the result.
CHANGEABLE = {
    *("epochs", "device", "compile", "num_threads", "data_root", "keep_every", "quiet", "plots", "style", "lang"),
    *("download", "mirrors", "resume", "output"),
}


def flag(name: str, value: object = None) -> str:
    """A setting's name on the command line: `--batch-size`; with the value False, `--no-shuffle`."""
    return ("--no-" if value is False else "--") + name.replace("_", "-")


def shortened(value: object) -> str:
    """The text of a value, shortened to about 40 characters."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write more than 4,300 digits
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class _Start:
    """The flags that determine the default values of the others."""

    recipe: str = "tutorial"
    optimizer: str = ""
    resume: Path | None = None


def parse(kind: type[S]) -> S:
    """Parse the command line; flags that are not given have the resumed run's, the recipe's or the tutorial's value.

    Every Boolean has two flags, `--mirror` and `--no-mirror`, for either default.
    """
    choose_language()
    with explained_by(kind, sys.argv[1:]):
        start, _ = tyro.cli(_Start, return_unknown_args=True, add_help=False)
    values: dict[str, Any] = {"recipe": start.recipe} | RECIPES[start.recipe] if start.recipe in RECIPES else {}
    values |= OPTIMIZERS.get(start.optimizer, {})
    if start.resume is not None:
        values = vars(stored_settings(start.resume))
    return parse_arguments(kind, values)


def stored_settings(folder: Path) -> Settings:
    """The settings of the run in `folder`, for resuming it.

    Raises:
        InputError: there is no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    if not path.exists() and (folder / LOCK).exists():
        raise InputError(
            f"--resume {folder}: the run was stopped before it began, and there is nothing to resume; start it again "
            f"with --output {folder}"
        )
    try:
        stored = read_json(path)["settings"]
        hints = get_type_hints(Settings)
        values = {name: _converted(name, value, hints[name]) for name, value in stored.items() if name in hints}
        settings = Settings(**values | {"data_root": values["data_root"], "output": None, "resume": None})
        settings.check()
    except OSError as error:
        raise InputError(f"--resume {folder}: no run is there ({path.name}: {error.strerror})") from error
    except KeyError as error:
        raise InputError(f"--resume {folder}: {path.name} is damaged (it has no entry {error})") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"--resume {folder}: {path.name} is damaged ({error})") from error
    return settings


LOCK = "run.lock"
"""The file in a run's folder that a running training keeps locked."""


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text"}


def _converted(name: str, value: Any, hint: Any) -> Any:
    """A value of JSON as the type `hint` of the setting `name`; ValueError if it is not of this type."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"its setting {name!r} holds the character 0")
    allowed = get_args(hint) if get_origin(hint) not in (None, tuple, Literal) else (hint,)
    for kind in allowed:
        if kind is NoneType and value is None:
            return None
        if kind is float and type(value) is int:
            return float(value)
        if kind is Path and type(value) is str:
            return Path(value)
        if get_origin(kind) is Literal and type(value) is str and value in get_args(kind):
            return value
        if get_origin(kind) is tuple and type(value) is list and all(type(one) is str for one in value):
            return tuple(value)
        if type(value) is kind:
            return value
    wanted = " or ".join(_described(kind) for kind in allowed)
    raise ValueError(f"its setting {name!r} is {shortened(value)}, which is not {wanted}")


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return "null" if kind is NoneType else KINDS.get(kind, "a list of texts")


def refuse_changes(settings: Settings, stored: Settings) -> None:
    """Raise InputError if a resumed run was given a setting that would change its result."""
    assert settings.resume is not None, "only a resumed run can be refused"
    if settings.output is not None and settings.output.resolve() != settings.resume.resolve():
        raise InputError(f"--output {settings.output}: a run that is resumed stays in its folder, {settings.resume}")
    if settings.epochs != stored.epochs and stored.schedule == "falling":
        raise InputError(
            f"--epochs {settings.epochs}: this run's learning rate falls to 0 at the end of epoch {stored.epochs}, and "
            "resuming it cannot change that"
        )
    for name, old in asdict(stored).items():
        new = getattr(settings, name)
        if name not in CHANGEABLE and new != old:
            if isinstance(new, bool):
                raise InputError(
                    f"{flag(name, new)}: this run was begun with {flag(name, old)}, and resuming it cannot change that"
                )
            raise InputError(f"{flag(name)} {new}: this run was begun with {old}, and resuming it cannot change that")
