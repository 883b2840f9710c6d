"""Right implementations that are written differently: the specification must pass each at the level that it claims.

`python -m pytest FILE --impl outside.loops` tests one of them; several names give several columns of a report.
`spec/known_failures/outside.toml` lists the tests that an implementation is known to fail, and each reason names the
fault or the deviation.
"""

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Outside:
    """A right implementation.

    Attributes:
        name: The name for `--impl`.
        about: A description of the difference from the reference.
        tests: The test files for it.
        options: What it claims, as options of pytest: a level, aspects, dtypes.
        needs: The packages that it requires besides those of the tests.
        least: The minimum number of tests that it passes.
    """

    name: str
    about: str
    tests: tuple[str, ...]
    least: int
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


DEFINITION = ("--level", "definition")
TUTORIAL = ("--level", "tutorial")
CONVOLUTION, POOLING, ACTIVATION = "test_08_convolution.py", "test_10_pooling.py", "test_11_activation.py"
LINEAR, ATTENTION, NORMALIZATION = "test_12_linear.py", "test_12_attention.py", "test_12_normalization.py"
RECURRENT, LOSS, CROSS_ENTROPY = "test_12_recurrent.py", "test_14_loss.py", "test_14_cross_entropy.py"
OPTIM = ("test_15_optim.py", "test_15_groups.py", "test_15_optim_options.py")

REGISTRY = (
    Outside(
        "outside.loops",
        "plain loops over the numbers of a result",
        (CONVOLUTION, POOLING, ACTIVATION, LINEAR, LOSS, CROSS_ENTROPY),
        30,
        TUTORIAL,
    ),
    Outside(
        "outside.with_numpy",
        "NumPy with gradients written by hand",
        (LINEAR, ACTIVATION, LOSS, CROSS_ENTROPY),
        13,
        TUTORIAL,
    ),
    Outside("outside.fourier", "convolution by Fourier transforms", (CONVOLUTION,), 13, TUTORIAL),
    Outside("outside.einsum", "sums of products by einsum", (CONVOLUTION, LINEAR), 45, DEFINITION),
    Outside(
        "outside.without_onednn",
        "PyTorch with its own kernels instead of oneDNN's",
        (CONVOLUTION, "test_09_convolution_layer.py", LINEAR, RECURRENT),
        190,
    ),
    Outside("outside.optim_foreach", "PyTorch's optimizers with foreach=True", OPTIM, 370),
    Outside("outside.optim_fused", "PyTorch's optimizers with fused=True", OPTIM, 335),
    Outside(
        "torchvision.transforms.v2",
        "torchvision's second transforms",
        ("test_03_transforms.py", "test_04_transforms_in_use.py", "test_04_torchvision.py"),
        100,
    ),
    Outside(
        "outside.web_loader",
        "webdataset's WebLoader",
        ("test_06_dataloader.py",),
        50,
        ("-k", "not two_workers"),
        ("webdataset",),
    ),
    Outside(
        "outside.refs",
        "PyTorch's own references in Python; its compiler differentiates the operators instead",
        (ACTIVATION, NORMALIZATION, LOSS),  # flatten raises an error for some memory layouts
        100,
        (*DEFINITION, "--without", "gradients,errors"),
    ),
    Outside(
        "outside.quantizable",
        "PyTorch's quantizable layers",
        (ATTENTION, RECURRENT),
        15,
        # this property fails (docs/found.md, 17) or is not offered, depending on its examples
        (*DEFINITION, "-k", "not nan_reaches_later_steps"),
    ),
    Outside("outside.timm_layers", "layers of timm", (ACTIVATION, LINEAR, NORMALIZATION), 20, needs=("timm",)),
    Outside(
        "outside.stateful_loader",
        "torchdata's StatefulDataLoader",
        ("test_06_dataloader.py", "test_06_collate.py"),
        110,
        ("--without", "observations"),
        ("torchdata",),
    ),
)
"""Every implementation that the specification must pass."""
