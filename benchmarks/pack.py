"""Pack the files that a GPU machine without a network lacks: `python -m benchmarks.pack --images PATH`.

The folder `build/gpu`, which git ignores, then holds the wheels of every package that the project and its tests need
and that the machine does not have, for Python 3.12 on Linux x86-64, and the images as one archive. `python -m
benchmarks.gpu` installs and unpacks both. The command prints the size of everything and fails above `--limit`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from benchmarks.gpu import PACKED, ROOT

PRESENT = ("torch", "torchvision", "numpy", "pillow", "scipy", "matplotlib")
"""Packages that a machine with PyTorch already has; they are too large to pack."""
UNUSED = ("ruff", "pyright", "nbclient", "nbformat", "ipykernel", "playwright", "cosmic-ray", "nox", "vale")
"""Packages of the project's extras that no part of the GPU command uses."""
MORE = ("expecttest",)
"""A package that PyTorch's own test samples import."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
LIMIT = 64.0
"""Limit of the packed files, in MiB."""


def requirements(pyproject: Path, left_out: Iterable[str]) -> list[str]:
    """The requirements of the project and its tests, without the packages in `left_out`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"], *MORE]
    names = {canonicalize_name(name) for name in left_out}
    return [text for text in wanted if canonicalize_name(Requirement(text).name) not in names]


def download(wanted: Sequence[str], target: Path, version: str) -> None:
    """Download the wheels of `wanted` and of their dependencies."""
    words = ["-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version", version]
    words += ["--implementation", "cp", "--abi", f"cp{version.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([sys.executable, *words, "-d", str(target), *wanted], check=True)


def wheels(target: Path, present: Iterable[str], version: str) -> list[Path]:
    """Fill the folder `target` with the required wheels that are not in `present`."""
    present = [*present]
    with tempfile.TemporaryDirectory() as name:
        download(requirements(ROOT / "pyproject.toml", (*present, *UNUSED)), Path(name), version)
        names = {canonicalize_name(name) for name in present}
        target.mkdir(parents=True)
        for wheel in sorted(Path(name).glob("*.whl")):
            if parse_wheel_filename(wheel.name)[0] not in names:
                shutil.copy2(wheel, target)
    return sorted(target.glob("*.whl"))


def images(source: Path, target: Path) -> None:
    """Pack the images: an archive is copied, a folder with `train/` and `test/` is packed."""
    if source.is_file():
        with tarfile.open(source) as tar:
            first = tar.next()
        if first is None:
            raise SystemExit(f"error: --images {source}: the archive is empty")
        shutil.copy2(source, target)
        return
    if missing := [half for half in ("train", "test") if not (source / half).is_dir()]:
        raise SystemExit(f"error: --images {source}: there is no folder {missing[0]} in it")
    with tarfile.open(target, "w:gz") as tar:
        for half in ("train", "test"):
            tar.add(source / half, half)


def main() -> int:
    """Pack the files requested on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=PACKED, metavar="DIR", help=f"default: {PACKED}")
    parser.add_argument(
        "--images",
        type=Path,
        default=os.environ.get("OCEAN_DATA"),
        metavar="PATH",
        help="a .tar.gz with train/<class>/* and test/<class>/*, or a folder with both (default: OCEAN_DATA)",
    )
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of the machine (default: 3.12)")
    parser.add_argument(
        "--present", nargs="*", default=PRESENT, metavar="NAME", help=f"packages there (default: {' '.join(PRESENT)})"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="MIB", help=f"default: {LIMIT:g} MiB")
    chosen = parser.parse_args()
    if chosen.images is None:
        parser.error("--images is required, or OCEAN_DATA: the images are what is trained on")
    if not Path(chosen.images).exists():
        parser.error(f"--images {chosen.images}: there is no such file or folder")
    shutil.rmtree(chosen.output, ignore_errors=True)
    for wheel in wheels(chosen.output / "wheels", chosen.present, chosen.python):
        print(f"{wheel.stat().st_size / 2**20:8.2f} MiB  {wheel.name}")
    archive = chosen.output / "images.tar.gz"
    images(Path(chosen.images), archive)
    print(f"{archive.stat().st_size / 2**20:8.2f} MiB  {archive.name}")
    size = sum(path.stat().st_size for path in chosen.output.rglob("*") if path.is_file()) / 2**20
    print(f"{size:8.2f} MiB in {chosen.output}, at most {chosen.limit:g} MiB can travel")
    return int(size > chosen.limit)


if __name__ == "__main__":
    sys.exit(main())
