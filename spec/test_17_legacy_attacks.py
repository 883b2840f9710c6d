"""Chapter 17: hostile files: code in pickles, archives and tensors that contradict themselves, random damage."""

import copyreg
import os
import struct
import tracemalloc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference.untrusted.pickle_machine import Record
from spec.support.clauses import clause
from spec.support.fuzzing import fuzz
from spec.support.legacy_files import FORMATS, Read, packed, refused, save, written
from spec.support.torch_files import Call, Fresh, Global, Member, Object, Persistent, Writer, archive, pickled
from spec.support.traps import EXTENSION, tricks
from spec.support.watching import watched
from spec.support.zip_lies import LIES

# Attacks


@pytest.fixture
def extension() -> Iterator[None]:
    """Register an extension code for os.mkdir in copyreg, as another program might do."""
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)
    copyreg.clear_extension_cache()


def assert_inert(value: Any, depth: int = 0) -> None:
    """Assert that the content consists of containers, numbers, texts, tensors, and records of these."""
    if depth < 20:
        kind = type(value)
        assert kind.__module__.partition(".")[0] in ("builtins", "collections", "torch", "reference"), kind
        assert not callable(value) or isinstance(value, nn.Module)
        inside: list[Any] = [*value.keys(), *value.values()] if isinstance(value, dict) else []
        inside += value if isinstance(value, list | tuple | set) else []
        if isinstance(value, Record):
            inside += [value.arguments, value.state, value.items, value.entries]
        for part in inside:
            assert_inert(part, depth + 1)


TRICKS = list(tricks(Path("victim")))


@clause("17.legacy.nothing_runs")
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("container", ["zip", "old", "bare"])
@pytest.mark.parametrize("trick", TRICKS)
def test_no_attack_pickle_runs_code(read_legacy_checkpoint: Read, tmp_path: Path, trick: str, container: str) -> None:
    victim = tmp_path / "victim"
    path = written(tmp_path / "net.pth", packed(tricks(victim)[trick], container))
    with watched() as events:
        try:
            found = read_legacy_checkpoint(path)
        except ValueError as error:
            said = str(error)
        else:
            said = None
            assert_inert(found.content)
    assert [event for event in events if not event.startswith(f"open ({str(path)!r}")] == []
    assert os.listdir(tmp_path) == ["net.pth"]
    assert said is None or ("net.pth" in said and len(said.splitlines()) == 1 and "nothing in it was run" in said)


@clause("17.legacy.nothing_runs")
@pytest.mark.usefixtures("extension")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trick", TRICKS)
def test_attack_pickles_run_code_in_pythons_unpickler(tmp_path: Path, trick: str) -> None:
    """The test above can fail: PyTorch's own reader, told to trust the file, runs each of them."""
    path = written(tmp_path / "net.pth", packed(tricks(tmp_path / "victim")[trick], "zip"))
    with suppress(Exception):  # errors after the call
        torch.load(path, weights_only=False)
    assert (tmp_path / "victim").exists()


@clause("17.legacy.nothing_runs")
@pytest.mark.parametrize(
    ("trick", "name"),
    [
        ("REDUCE of os.mkdir", "os.mkdir"),
        ("REDUCE of eval", "builtins.eval"),
        ("a list of a map", "builtins.map"),
        ("PyTorch's own functions", "torch.serialization.save"),
    ],
)
def test_the_error_names_the_request_of_the_file(
    read_legacy_checkpoint: Read, tmp_path: Path, trick: str, name: str
) -> None:
    with refused(rf"asks for a call of {name}; nothing in it was run"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", packed(tricks(tmp_path)[trick], "zip")))


@clause("17.legacy.nothing_runs")
def test_the_source_in_a_file_is_not_written_anywhere(
    read_legacy_checkpoint: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch writes a patch file if a class says `dump_patches` and the source has changed."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kind = Persistent(("module", Global("spec.support.traps", "Patched"), "x.py", "class Patched: another\n"))
    path = written(tmp_path / "net.pth", Writer("1.5").old(Object(kind, {})))
    with watched() as events:
        assert read_legacy_checkpoint(path).sources == {"spec.support.traps.Patched": "class Patched: another\n"}
    assert [event for event in events if not event.startswith(f"open ({str(path)!r}")] == []
    assert os.listdir(".") == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it writes
        torch.load(path, weights_only=False)
    assert os.listdir(".") == ["Patched.patch"]


@clause("17.legacy.nothing_runs")
@pytest.mark.parametrize(
    ("code", "says"),
    [
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00cp037\x86R", "encoding"),  # imports encodings.cp037
        (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x01\x00\x00\x00O\x85RX\x02\x00\x00\x00N.\x86R", "type"),
        (b"ctorch\ndevice\nX\x06\x00\x00\x00nobody\x85R", "device"),
        (b"ctorch.storage\n_load_from_bytes\nX\x01\x00\x00\x00a\x85R", "_load_from_bytes"),
        (b"ctorch.jit\nload\nX\x01\x00\x00\x00a\x85R", "torch.jit.load"),
        (b"ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R", "torch.hub.load"),
        (b"ctorch\nFloatStorage\n)R", "call"),
        (b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00extra\x88sb", "state"),
        (b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00extra\x88sb", "state"),
        (b"]}X\x01\x00\x00\x00a\x88sb", "state"),
        (b"cos\nsystem\n}X\x01\x00\x00\x00a\x88sb", "state"),
        (b"cthey\nX\n)\x81}b}b", "state"),
        (b"P1\n", "PERSID"),
        (b"K\x01Q", "refers"),
        (b"(X\x06\x00\x00\x00modulecos\nsystem\nK\x01K\x01tQ)R", "os.system"),
        (b"(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ", "refers"),
        (b"\x97", "NEXT_BUFFER"),
    ],
)
def test_calls_that_resemble_harmless_ones_are_refused(
    read_legacy_checkpoint: Read, tmp_path: Path, code: bytes, says: str
) -> None:
    path = written(tmp_path / "net.pth", packed(code, "zip"))
    with watched() as events, refused(says):
        read_legacy_checkpoint(path)
    assert [event for event in events if not event.startswith(f"open ({str(path)!r}")] == []


# Manipulated archives


def zip64(**numbers: int) -> bytes:
    data = b"".join(struct.pack("<Q", number) for number in numbers.values())
    return struct.pack("<2H", 1, len(data)) + data


GOOD = pickled({"a": 1})
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a packed member": (lambda: archive([Member("data.pkl", b"x" * 10, method=8, size=10**9)]), "packed"),
    "a bomb that says it is not packed": (lambda: archive([Member("data.pkl", GOOD, size=10**9)]), "overlap"),
    "an encrypted member": (lambda: archive([Member("data.pkl", GOOD, flags=1)]), "encrypted"),
    "a member twice": (lambda: archive([Member("data.pkl", GOOD), Member("data.pkl", pickled(2))]), "twice"),
    "two members in one place": (
        lambda: archive([Member("data.pkl", GOOD), Member("data/0", GOOD, offset=0, local="archive/data/0")]),
        "overlap|not where",
    ),
    "a member inside another one": (
        lambda: archive([Member("data.pkl", GOOD + archive([Member("data/0", b"1234")])),
                         Member("data/0", b"1234", offset=64 + len(GOOD))]),
        "overlap",
    ),
    "a member beyond the end": (lambda: archive([Member("data.pkl", GOOD, offset=10**6)]), "belong to no member"),
    "a wrong checksum": (lambda: archive([Member("data.pkl", GOOD, crc=1)]), "checksum"),
    "another name in its header": (lambda: archive([Member("data.pkl", GOOD, local="archive/data/0")]), "not where"),
    "a name that leads out": (lambda: archive([Member("data.pkl", GOOD), Member("../../passwd", b"")]), "leads out"),
    "a name from the root": (lambda: archive([Member("data.pkl", GOOD), Member("//etc/passwd", b"")]), "leads out"),
    "a name of Windows": (lambda: archive([Member("data.pkl", GOOD), Member("..\\x", b"")]), "leads out"),
    "two folders": (lambda: archive([Member("data.pkl", GOOD), Member("/other/data.pkl", GOOD)]), "one folder"),
    "a comment behind it": (lambda: archive([Member("data.pkl", GOOD)], comment=b"hello"), "directory"),
    "sizes of 64 bits that lie": (
        lambda: archive([Member("data.pkl", GOOD, size=2**32 - 1, extra=zip64(size=2**60, packed=2**60))]),
        "contradicts itself",
    ),
    "sizes of 64 bits that are missing": (
        lambda: archive([Member("data.pkl", GOOD, size=2**32 - 1)]), "contradicts itself"
    ),
    "a place of 64 bits that lies": (
        lambda: archive([Member("data.pkl", GOOD, offset=2**32 - 1, extra=zip64(offset=2**63))]), ""
    ),
    "more members than are there": (
        lambda: (lambda data: data[:-12] + struct.pack("<H", 9) + data[-10:])(archive([Member("data.pkl", GOOD)])), ""
    ),
    "too many members": (
        lambda: (lambda data: data[: -76] + data[-76:].replace(struct.pack("<2Q", 1, 1), struct.pack("<2Q", 1, 10**9)))(
            archive([Member("data.pkl", GOOD)], wide=True)
        ),
        "members|directory",
    ),
    "a byte order of its own": (lambda: archive([Member("data.pkl", GOOD), Member("byteorder", b"middle")]), "order"),
    "an archive in an archive": (
        lambda: archive([Member("data.pkl", archive([Member("data.pkl", GOOD)]))]), "nothing in it was run"
    ),
}  # fmt: skip


@clause("17.legacy.archives")
@pytest.mark.parametrize("lie", ARCHIVES)
def test_an_archive_with_false_metadata_is_refused(read_legacy_checkpoint: Read, tmp_path: Path, lie: str) -> None:
    made, says = ARCHIVES[lie]
    with refused(says):
        read_legacy_checkpoint(written(tmp_path / "net.pth", made()))
    assert os.listdir(tmp_path) == ["net.pth"]


@clause("17.legacy.archives")
@pytest.mark.parametrize("lie", LIES)
def test_an_ambiguous_archive_is_refused(read_legacy_checkpoint: Read, tmp_path: Path, lie: str) -> None:
    path = save({"a": torch.ones(3), "b": torch.zeros(5)}, tmp_path / "net.pth")
    read_legacy_checkpoint(path)
    with refused():
        read_legacy_checkpoint(written(path, LIES[lie](path.read_bytes())))


@clause("17.legacy.archives")
@pytest.mark.parametrize("wide", [False, True])
def test_an_unmodified_archive_is_read(read_legacy_checkpoint: Read, tmp_path: Path, wide: bool) -> None:
    """The manipulated field is the only fault of these archives."""
    extra = zip64(size=len(GOOD), packed=len(GOOD), offset=0) if wide else b""
    size, offset = (2**32 - 1, 2**32 - 1) if wide else (None, None)
    data = archive([Member("data.pkl", GOOD, size=size, offset=offset, extra=extra)], folder="网", wide=wide)
    assert read_legacy_checkpoint(written(tmp_path / "net.pth", data)).content == {"a": 1}


# Manipulated tensors


HUGE = 2**40
TENSORS: dict[str, tuple[Callable[[Writer, Any], Any], str]] = {
    "more numbers than the storage": (lambda w, s: w.rebuild(s, 0, (5,), (1,)), "outside"),
    "terabytes": (lambda w, s: w.rebuild(s, 0, (HUGE,), (1,)), "outside"),
    "terabytes of one number": (lambda w, s: w.rebuild(s, 0, (HUGE,), (0,)), "outside"),
    "terabytes of one number in many dimensions": (lambda w, s: w.rebuild(s, 0, (9,) * 60, (0,) * 60), "outside"),
    "a product that overflows to 0": (lambda w, s: w.rebuild(s, 0, (2**32, 2**32), (0, 0)), "outside"),
    "an offset outside": (lambda w, s: w.rebuild(s, 4, (1,), (1,)), "outside"),
    "an offset outside of nothing": (lambda w, s: w.rebuild(s, HUGE, (0,), (1,)), "outside"),
    "a negative offset": (lambda w, s: w.rebuild(s, -1, (1,), (1,)), "offset of a tensor is negative"),
    "a negative stride": (lambda w, s: w.rebuild(s, 3, (4,), (-1,)), "stride of a tensor is negative"),
    "a negative size": (lambda w, s: w.rebuild(s, 0, (-1,), (1,)), "size of a tensor is negative"),
    "a stride that leads out": (lambda w, s: w.rebuild(s, 0, (2, 2), (1, 3)), "outside"),
    "a size that is none": (lambda w, s: w.rebuild(s, 0, (1.5,), (1,)), "whole numbers"),
    "a size of 2 to the power 63": (lambda w, s: w.rebuild(s, 0, (2**63,), (0,)), "whole numbers"),
    "too many dimensions": (lambda w, s: w.rebuild(s, 0, (1,) * 65, (1,) * 65), "at most 64"),
    "another number of strides": (lambda w, s: w.rebuild(s, 0, (2, 2), (1,)), "2 sizes, but 1 strides"),
    "no storage": (lambda w, s: w.rebuild("storage", 0, (1,), (1,)), ""),
    "a gradient of whole numbers": (lambda w, s: w.tensor(torch.arange(2), True), "gradient"),
    "a gradient that is a word": (lambda w, s: w.rebuild(s, 0, (1,), (1,), "yes"), "gradient"),  # pyright: ignore[reportArgumentType]
    "a parameter of nothing": (
        lambda w, s: Call(Global("torch._utils", "_rebuild_parameter"), (1, True, OrderedDict())), "no tensor"
    ),
    "a storage of two kinds": (
        lambda w, s: [s, Persistent((*s.identity[:1], Global("torch", "IntStorage"), *s.identity[2:]))], "two different"
    ),
    "a storage of two lengths": (
        lambda w, s: [s, Persistent((*s.identity[:4], 2, *s.identity[5:]))], "two different"
    ),
    "a storage of terabytes": (
        lambda w, s: Persistent((*s.identity[:2], Fresh("99"), "cpu", HUGE, *s.identity[5:])), "is not there|more bytes"
    ),
    "a storage of negative length": (
        lambda w, s: Persistent((*s.identity[:4], -4, *s.identity[5:])), "-4 elements"
    ),
    "a storage under a path": (
        lambda w, s: Persistent((*s.identity[:2], "../../etc/passwd", *s.identity[3:])), "passwd|list of storages"
    ),
}  # fmt: skip


@clause("17.legacy.tensors")
@FORMATS
@pytest.mark.parametrize("lie", TENSORS)
def test_a_tensor_with_false_metadata_is_refused(
    read_legacy_checkpoint: Read, tmp_path: Path, lie: str, old: bool
) -> None:
    made, says = TENSORS[lie]
    writer = Writer("1.5" if old else "1.6")
    path = written(tmp_path / "net.pth", writer.file([made(writer, writer.storage(torch.arange(4.0)))]))
    tracemalloc.start()
    try:
        with refused(says):
            read_legacy_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@clause("17.legacy.tensors")
def test_bool_bytes_other_than_0_and_1_are_refused(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    for version in ("1.5", "1.6"):
        writer = Writer(version)
        content = writer.tensor(torch.tensor([True, False]))
        ((key, (_, width)),) = writer.storages.items()
        writer.storages[key] = b"\x01\x02", width
        with refused("truth value"):
            read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))


@clause("17.legacy.tensors")
def test_old_files_with_storages_that_do_not_fit_are_refused(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer("1.5")
    content = [writer.tensor(torch.arange(4.0)), writer.tensor(torch.arange(3.0))]
    whole = writer.file(content)
    first, second = sorted(writer.storages)
    keys, swapped = pickled([first, second]), pickled([first, first])
    count = whole.index(struct.pack("<q4f", 4, 0, 1, 2, 3))
    for changed, says in (
        (whole.replace(keys, swapped), "list of storages"),
        (whole.replace(keys, pickled([first])), "list of storages"),
        (whole.replace(keys, pickled({first: 1})), "list of storages"),
        (whole[:count] + struct.pack("<q", 5) + whole[count + 8 :], "does not have its 16 bytes"),
        (whole[:count] + struct.pack("<q", -4) + whole[count + 8 :], "does not have its 16 bytes"),
    ):
        assert changed != whole
        with refused(says):
            read_legacy_checkpoint(written(tmp_path / "net.pth", changed))


# Fuzzing


@clause("17.legacy.fuzzed")
def test_damaged_files_are_either_refused_or_read(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    outcomes = fuzz(read_legacy_checkpoint, tmp_path, 120, seed=0)
    assert outcomes["read"] > 2
    assert outcomes["refused"] > 60


@pytest.mark.slow
@clause("17.legacy.fuzzed")
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_damaged_files_are_refused_or_read(
    read_legacy_checkpoint: Read, tmp_path: Path, seed: int
) -> None:
    assert fuzz(read_legacy_checkpoint, tmp_path, 2000, seed)["refused"] > 1000
