"""Chapter 05: the cache of the decoded images of a tree, and several processes that use it."""

import io
import os
import pickle
import shutil
import signal
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from reference.data import image_tree
from reference.data.image_tree import ImageTree as ReferenceTree
from spec.support.clauses import clause
from spec.support.command import Command, run
from spec.support.image_trees import CLASSES, Make, draw, same, shade_of


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary cache folder instead of the user's."""
    folder = tmp_path / "user-cache"
    monkeypatch.setattr(image_tree, "user_cache_path", lambda name: folder / name)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four training and two test images in each of three classes; their times are an hour old."""
    root, shade = tmp_path / "tree", 10
    for split, count in (("train", 4), ("test", 2)):
        for name in CLASSES:
            for i in range(count):
                draw(root / split / name / f"{i}.png", shade)
                shade += 10
    return root


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock for the age of files one hour ahead, because ctimes cannot be set back."""
    real = time.time_ns
    monkeypatch.setattr(image_tree.time, "time_ns", lambda: real() + 3600 * 10**9)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of the passes over all files of the tree, in order: "decode" or "compare"."""
    passes: list[str] = []
    real = image_tree.read_tree

    def counted(tree: Any, size: Any, progress: bool, decode: bool) -> Any:
        passes.append("decode" if decode else "compare")
        return real(tree, size, progress, decode)

    monkeypatch.setattr(image_tree, "read_tree", counted)
    return passes


def entries(folder: Path, kind: str = ".pixels") -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix == kind)


# ---------------------------------------------------------------------------------------------------------- the cache


@clause("05.cache.read_once")
def test_an_unchanged_tree_is_not_read_again(root: Path, later: None, reads: list[str]) -> None:
    first = ReferenceTree(root)
    assert reads == ["decode"]
    assert same(ReferenceTree(root), first)
    assert reads == ["decode"]
    assert [path.parent for path in entries(root)] == [root / ".ocean-cache"]


@clause("05.cache.read_once")
def test_a_tree_of_a_single_image_is_cached_too(tmp_path: Path, later: None, reads: list[str]) -> None:
    draw(tmp_path / "tree/train/ant/0.png", 10)
    assert same(ReferenceTree(tmp_path / "tree"), ReferenceTree(tmp_path / "tree"))
    assert reads == ["decode"]


@clause("05.cache.read_once")
def test_files_changed_a_moment_ago_are_compared_by_content(root: Path, reads: list[str]) -> None:
    first = ReferenceTree(root)
    assert same(ReferenceTree(root), first)
    assert reads == ["decode", "compare"]


@clause("05.cache.read_once")
def test_splits_and_sizes_have_separate_cache_entries(root: Path, later: None, reads: list[str]) -> None:
    made = [ReferenceTree(root, train, size=size) for train in (True, False) for size in ((4, 8), (8, 4))]
    again = [ReferenceTree(root, train, size=size) for train in (True, False) for size in ((4, 8), (8, 4))]
    assert all(map(same, made, again))
    assert [tuple(dataset.images.shape[2:]) for dataset in again] == [(4, 8), (8, 4)] * 2
    assert reads.count("decode") == 4


def change(root: Path) -> None:
    draw(root / "train" / "bee" / "2.png", 255)


def change_under_the_same_size_and_time(root: Path) -> None:
    path = root / "train" / "bee" / "2.bmp"
    before = path.stat()
    draw(path, 255)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def exchange_two(root: Path) -> None:
    """Two files of equal size and time change names."""
    a, b, aside = root / "train/bee/2.bmp", root / "train/cat/2.bmp", root / "aside"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def add(root: Path) -> None:
    draw(root / "train" / "bee" / "new.png", 255)


def remove(root: Path) -> None:
    (root / "train" / "bee" / "2.bmp").unlink()


def rename(root: Path) -> None:
    (root / "train" / "bee" / "2.bmp").rename(root / "train" / "bee" / "3.bmp")


def rename_class(root: Path) -> None:
    (root / "train" / "bee").rename(root / "train" / "zebra")


CHANGES = [change, change_under_the_same_size_and_time, exchange_two, add, remove, rename, rename_class]


@clause("05.tree.changes")
@pytest.mark.parametrize("settled", [False, True], ids=["at once", "when times have settled"])
@pytest.mark.parametrize("alter", CHANGES, ids=lambda alter: alter.__name__)
def test_a_stale_cache_entry_is_never_used(
    ImageTree: Make,
    alter: Callable[[Path], None],
    settled: bool,
    root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    for name, shade in (("bee", 70), ("cat", 80)):
        draw(root / "train" / name / "2.bmp", shade)
        os.utime(root / "train" / name / "2.bmp", (1e9, 1e9))
    if settled:
        request.getfixturevalue("later")
    before = ImageTree(root)
    if settled:
        time.sleep(0.02)  # more than a tick of the file system's clock, as two seconds would be
    alter(root)
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns(".ocean-cache"))
    found, expected = ImageTree(root), ImageTree(tmp_path / "copy")
    assert same(found, expected)
    assert found.classes == expected.classes
    assert not same(found, before)


@clause("05.cache.read_once")
def test_a_moved_or_touched_tree_is_compared_and_not_decoded(root: Path, later: None, reads: list[str]) -> None:
    first = ReferenceTree(root)
    moved = root.rename(root.parent / "moved")
    shutil.copytree(moved, root.parent / "copied")
    for path in (moved / "train" / "ant").iterdir():
        path.touch()
    assert same(ReferenceTree(moved), first)
    assert same(ReferenceTree(root.parent / "copied"), first)
    assert reads == ["decode", "compare", "compare"]
    assert same(ReferenceTree(moved), first)
    assert reads == ["decode", "compare", "compare"], "the new times were not remembered"


@clause("05.cache.read_once")
def test_another_pillow_version_decodes_again(
    root: Path, later: None, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ReferenceTree(root)
    monkeypatch.setattr("PIL.__version__", "0.0")
    ReferenceTree(root)
    assert reads.count("decode") == 2


def flip_last(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "one bit": flip_last,
    "shape": lambda content: content.replace(b"[[12, 3,", b"[[12, 9,"),
    "checksum": lambda content: b"0" + content,
    "longer": lambda content: content + b"\0",
    "pickle": lambda _: pickle.dumps(os.system),
}


@clause("05.cache.damage")
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("settled", [False, True], ids=["compared", "recalled"])
@pytest.mark.slow
def test_a_damaged_cache_entry_is_decoded_again(
    settled: bool, damage: str, root: Path, reads: list[str], request: pytest.FixtureRequest
) -> None:
    if settled:
        request.getfixturevalue("later")
    first = ReferenceTree(root)
    (entry,) = entries(root)
    whole = entry.read_bytes()
    entry.write_bytes(DAMAGE[damage](whole))
    assert entry.read_bytes() != whole
    assert same(ReferenceTree(root), first)
    assert reads.count("decode") == 2
    assert entry.read_bytes() == whole, "the entry was not replaced"


def planted(header: bytes, pixels: bytes) -> bytes:
    """An entry with a right checksum, which is no secret."""
    return image_tree.checksum_of(header, memoryview(pixels)) + b"\n" + header + pixels


PIXELS = bytes(12 * 3 * 32 * 32)
PLANTED: dict[str, bytes] = {
    "another shape": planted(b"[[6, 6, 32, 32], {}]\n", PIXELS),
    "another size": planted(b"[[12, 3, 64, 16], {}]\n", PIXELS),
    "a shape of texts": planted(b'[["12", 3, 32, 32], {}]\n', PIXELS),
    "a shape of truth values": planted(b"[[12, 3, 32, 32, true], {}]\n", PIXELS),
    "a negative length": planted(b"[[-1, 3, 32, 32], {}]\n", PIXELS),
    "too few images": planted(b"[[11, 3, 32, 32], {}]\n", PIXELS[: 11 * 3 * 32 * 32]),
    "an unknown broken image": planted(b'[[11, 3, 32, 32], {"ant/9.png": "x"}]\n', PIXELS[: 11 * 3 * 32 * 32]),
    "broken images in a list": planted(b"[[12, 3, 32, 32], [1]]\n", PIXELS),
    "a reason that is no text": planted(b'[[11, 3, 32, 32], {"ant/0.png": [1]}]\n', PIXELS[: 11 * 3 * 32 * 32]),
    "an object": planted(b"{}\n", PIXELS),
    "a number": planted(b"7\n", PIXELS),
    "no JSON": planted(b"[[12, 3, 32, 32]\n", PIXELS),
    "no UTF-8": planted(b'["\xff"]\n', PIXELS),
    "brackets inside each other": planted(b"[" * 200_000 + b"\n", PIXELS),
    "no line end": b"\0" * (12 * 3 * 32 * 32),
}


@clause("05.cache.planted")
@pytest.mark.parametrize("entry", PLANTED)
@pytest.mark.parametrize("settled", [False, True], ids=["compared", "recalled"])
@pytest.mark.slow
def test_a_mismatched_planted_cache_entry_is_decoded_again(
    settled: bool, entry: str, root: Path, reads: list[str], request: pytest.FixtureRequest
) -> None:
    if settled:
        request.getfixturevalue("later")
    first = ReferenceTree(root)
    (path,) = entries(root)
    whole = path.read_bytes()
    path.write_bytes(PLANTED[entry])
    assert same(ReferenceTree(root), first)
    assert reads.count("decode") == 2
    assert path.read_bytes() == whole


@clause("05.cache.planted")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".pixels", ".seen", "lock"])
@pytest.mark.parametrize("kind", ["FIFO", "link to a FIFO", "folder", "device", "sparse", "link in a circle"])
@pytest.mark.slow
def test_a_planted_special_file_in_the_cache_does_not_block(
    kind: str, suffix: str, root: Path, tmp_path: Path, later: None
) -> None:
    first = ReferenceTree(root)
    path = root / ".ocean-cache" / "lock" if suffix == "lock" else entries(root, suffix)[0]
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link to a FIFO":
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to(tmp_path / "fifo")
    elif kind == "folder":
        (path / "inside").mkdir(parents=True)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to(path)
    tracemalloc.start()
    try:
        assert same(ReferenceTree(root), first)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@clause("05.cache.planted")
def test_a_planted_lock_link_does_not_truncate_the_target(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (root / ".ocean-cache").mkdir()
    (root / ".ocean-cache" / "lock").symlink_to(tmp_path / "thesis")
    assert len(ReferenceTree(root)) == 12
    assert (tmp_path / "thesis").read_text() == "years of work"


@clause("05.tree.own_tensor")
def test_changing_the_tensor_does_not_change_the_cache(ImageTree: Make, root: Path, later: None) -> None:
    first = ImageTree(root)
    kept = first.images.clone()
    first.images.zero_()
    assert torch.equal(ImageTree(root).images, kept)


@clause("05.cache.damage")
def test_cache_checksum_depends_on_all_parts_and_their_order() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 3 * 2**22 + 5, np.uint8)
    expected = image_tree.checksum_of(b"header", pixels.data)
    assert image_tree.checksum_of(b"header", pixels.copy().data) == expected
    assert image_tree.checksum_of(b"Header", pixels.data) != expected
    for place in (0, 2**22 - 1, 2**22, 3 * 2**22 - 1, 3 * 2**22, len(pixels) - 1):
        damaged = pixels.copy()
        damaged[place] ^= 1
        assert image_tree.checksum_of(b"header", damaged.data) != expected, place
    swapped = np.concatenate([pixels[2**22 : 2**23], pixels[: 2**22], pixels[2**23 :]])
    assert image_tree.checksum_of(b"header", swapped.data) != expected


@clause("05.cache.bounded")
def test_the_cache_folder_stays_bounded_and_keeps_the_entries_in_use(root: Path, later: None, reads: list[str]) -> None:
    used = ReferenceTree(root, size=(7, 7))
    for i in range(1, 10):
        for number, path in enumerate(sorted(entries(root) + entries(root, ".seen"))):
            os.utime(path, (1e9 + number, 1e9 + number))  # old enough
        assert same(ReferenceTree(root, size=(7, 7)), used)
        assert same(ReferenceTree(root, size=(i, i + 1)), ReferenceTree(root, size=(i, i + 1)))
    assert len(entries(root)) == len(entries(root, ".seen")) == 6
    assert reads.count("decode") == 10


@clause("05.cache.folders")
def test_user_cache_is_used_if_the_root_is_not_writable(
    root: Path, user_cache: Path, later: None, reads: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (root / ".ocean-cache").write_text("in the way")
    locks: list[Path] = []
    monkeypatch.setattr(image_tree, "FileLock", lambda path: (locks.append(path), FileLock(path))[1])
    first = ReferenceTree(root)
    assert len(entries(user_cache / "ocean-spec")) == 1
    assert locks == [user_cache / "ocean-spec" / "image-trees" / "lock"]
    assert same(ReferenceTree(root), first)
    assert reads == ["decode"]
    assert capsys.readouterr().err == ""


@clause("05.cache.folders")
def test_without_any_cache_images_are_read_with_a_note(
    root: Path, user_cache: Path, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (root / ".ocean-cache").write_text("in the way")
    user_cache.write_text("in the way")
    first = ReferenceTree(root)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written: decoding again next time" in line
    assert str(root) in line
    assert same(ReferenceTree(root), first)
    assert reads == ["decode", "decode"]


@clause("05.cache.folders")
def test_a_full_disk_leaves_nothing_behind_and_the_next_folder_serves(
    root: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if ".ocean-cache" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the file being written is found in /proc")
    monkeypatch.setattr(image_tree.os, "fsync", full)
    ReferenceTree(root)
    assert [path.name for path in (root / ".ocean-cache").iterdir() if path.name != "lock"] == []
    assert len(entries(user_cache)) == 1


@pytest.mark.slow
@clause("05.cache.folders")
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_a_read_only_tree_can_be_read(root: Path, tmp_path: Path) -> None:
    """Read as another user if the current one may write everywhere."""
    with tempfile.TemporaryDirectory() as name:  # not in tmp_path, which other users cannot enter
        folder = Path(name)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        home.chmod(0o777)
        for copy in ("tree", "known"):
            shutil.copytree(root, folder / copy)
        (folder / "tree").chmod(0o555)
        result = run(read_as_another_user, folder / "tree", folder / "known", home, folder=tmp_path)
        (folder / "tree").chmod(0o755)
        assert (result.out, result.err) == ("12\n", "")
        assert not (folder / "tree" / ".ocean-cache").exists()
        assert len(entries(home)) == 1


def read_as_another_user(tree: str, known: str, home: str) -> None:
    """Print the number of images in `tree`."""
    os.environ |= {"XDG_CACHE_HOME": home, "HOME": home}
    ReferenceTree(known)  # all modules are loaded while this user can read them
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.setegid(65534)
        os.seteuid(65534)
    print(len(ReferenceTree(tree)))
    os.seteuid(user)  # to end the process
    os.setegid(group)


# ---------------------------------------------------------------------------------------------- runs side by side


def slow_run(root: str, mark: str, writing: str = "") -> None:
    """Read a tree slowly, and append an x to the file `mark` for each image; with `writing`, stop before renaming."""
    os.environ["XDG_CACHE_HOME"] = str(Path(root).parent / "user-cache")
    real = image_tree.decode_image

    def slow(*args: Any) -> Any:
        with open(mark, "a") as file:
            file.write("x")
        time.sleep(0.05)
        return real(*args)

    def stop(_: int) -> None:
        Path(writing).touch()
        time.sleep(60)

    vars(image_tree)["decode_image"] = slow  # pyright: ignore[reportIndexIssue]
    if writing:
        os.fsync = stop
    print(image_tree.digest(ReferenceTree(root).images.numpy().tobytes()))


def start(*arguments: Path) -> Command:
    return Command(slow_run, *arguments, folder=arguments[0].parent)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


@pytest.mark.slow
@clause("05.cache.side_by_side")
def test_of_two_concurrent_runs_one_decodes_and_both_get_the_images(root: Path, tmp_path: Path) -> None:
    runs = [start(root, tmp_path / "decoded") for _ in range(2)]
    results = [run.wait() for run in runs]
    assert [result.status for result in results] == [0, 0], results
    expected = image_tree.digest(ReferenceTree(root).images.numpy().tobytes())
    assert [result.out for result in results] == [expected + "\n"] * 2
    assert (tmp_path / "decoded").read_text() == "x" * 12


@pytest.mark.slow
@clause("05.cache.side_by_side")
def test_a_run_killed_while_decoding_or_writing_leaves_a_usable_cache(
    root: Path, tmp_path: Path, reads: list[str]
) -> None:
    for arguments, moment in (
        ((tmp_path / "decoding",), tmp_path / "decoding"),
        ((tmp_path / "mark", tmp_path / "writing"), tmp_path / "writing"),
    ):
        command = start(root, *arguments)
        wait_for(moment)
        command.send(signal.SIGKILL)
        command.wait()
        assert entries(root) == []
    assert len(entries(root, ".tmp")) == 1, "the run was killed too early or too late"
    dataset = ReferenceTree(root)
    assert len(dataset) == 12
    assert reads == ["decode"]
    assert entries(root, ".tmp") == []
    assert len(entries(root)) == 1


@pytest.mark.slow
@clause("05.cache.side_by_side")
def test_an_interrupt_stops_decoding_and_leaves_no_files(root: Path, tmp_path: Path) -> None:
    command = start(root, tmp_path / "decoding")
    wait_for(tmp_path / "decoding")
    command.send(signal.SIGINT)
    assert command.wait(30).err.rstrip().endswith("KeyboardInterrupt")
    assert [path.name for path in (root / ".ocean-cache").iterdir() if path.name != "lock"] == []


@clause("05.cache.side_by_side")
def test_a_file_changed_between_comparing_and_decoding_is_read_consistently(
    root: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ReferenceTree(root, train=False)  # an entry, so that contents are compared first
    real = image_tree.read_tree

    def changing(tree: Any, size: Any, progress: bool, decode: bool) -> Any:
        if decode:
            draw(root / "train" / "ant" / "0.png", 7)
        return real(tree, size, progress, decode)

    monkeypatch.setattr(image_tree, "read_tree", changing)
    first = ReferenceTree(root)
    monkeypatch.undo()
    assert 7 in shade_of(first)
    assert same(ReferenceTree(root), first)
    draw(root / "train" / "ant" / "0.png", 10)
    assert 7 not in shade_of(ReferenceTree(root))


@clause("05.cache.read_once")
def test_a_cache_entry_may_hold_images_larger_than_the_header(root: Path, reads: list[str], later: None) -> None:
    first = ReferenceTree(root, size=(160, 160))  # 12 times 76,800 bytes, and up to 65,536 of header for each
    assert same(ReferenceTree(root, size=(160, 160)), first)
    assert reads == ["decode"]


@clause("05.cache.bar")
def test_progress_bar_is_hidden_without_a_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ReferenceTree(root)
    ReferenceTree(root, train=False, progress=False)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@clause("05.cache.quiet")
@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_on_a_terminal_can_be_switched_off(
    progress: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    ReferenceTree(root, progress=progress)
    assert ("decoding train" in screen.getvalue()) is progress
