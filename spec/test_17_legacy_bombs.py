"""Chapter 17: small files that would take much memory or time."""

import struct
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reference.errors import InputError
from spec.support.clauses import clause
from spec.support.command import run
from spec.support.legacy_files import FORMATS, Read, entry, packed, refused, save, word, written
from spec.support.torch_files import Call, Global, Member, Object, Writer, archive, pickled
from spec.support.traps import text
from spec.support.watching import Allocations

# Files that expand


def doubled(levels: int) -> bytes:
    """Nested lists of the same element twice: 2 to the power of `levels` elements in a full traversal."""
    code = b"]"
    for level in range(levels):
        code += b"r" + struct.pack("<I", level) + b"0]" + b"(" + (b"j" + struct.pack("<I", level)) * 2 + b"e"
    return code


def tower(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1)


EMPTY = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}"


def modules(levels: int) -> bytes:
    """A network of modules, each of which holds the next one twice."""
    code = b"ctorch.nn.modules.container\nSequential\nq\x00)\x81}(" + EMPTY + b"ub"
    for level in range(levels):
        name = b"r" + struct.pack("<I", level + 1)
        again = b"j" + struct.pack("<I", level + 1)
        code += name + b"0h\x00)\x81}(" + EMPTY + b"(U\x011" + again + b"U\x012" + again + b"uub"
    return code


@cache
def probed(bits: int = 17) -> list[int]:
    """Integers that make a dictionary slow: two thirds of a table of 2 to the power of `bits`.

    CPython looks for a key k at the place i = k, then at 5i + p + 1, where p is k shifted to the right by 5 bits more
    each time, modulo the table. The first half of the numbers fill an arc of that sequence (with p = 0); of the second
    half each one runs through the arc, which n insertions pay with n² steps.
    """
    mask = (1 << bits) - 1
    count = (1 << bits) // 3
    arc, place = np.empty(count, np.int64), 1
    for number in range(count):
        arc[number], place = place, (5 * place + 1) & mask
    order = np.full(1 << bits, -1, np.int64)
    order[arc] = np.arange(count)
    found: list[int] = []
    for start in range(1 << 20, 1 << 31, 1 << 22):
        key = np.arange(start, start + (1 << 22), dtype=np.int64)
        place, shifted, inside = key & mask, key, order[key & mask] >= 0
        for _ in range(7):
            key, place, shifted = key[inside], place[inside], shifted[inside] >> 5
            place = (place * 5 + shifted + 1) & mask
            inside = order[place] >= 0
        found += key[inside & (order[place] < count // 6)].tolist()
        if len(found) >= count:
            break
    return [*arc.tolist(), *found[:count]]


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "lists in lists, twice each, a hundred deep": (lambda: doubled(100), None),
    "lists in lists, a hundred thousand deep": (lambda: tower(100_000), None),
    "tuples in tuples": (lambda: b")" + b"\x85" * 100_000, None),
    "dictionaries in dictionaries": (
        lambda: b"}X\x01\x00\x00\x00aq\x00" + b"}h\x00" * 50_000 + b"N" + b"s" * 50_001, None
    ),
    "objects in objects": (lambda: b"cthey\nX\nq\x00)\x81" + b"h\x00)\x81" * 20_000 + b"b" * 20_000, None),
    "a list that contains itself": (lambda: b"]q\x00h\x00a", None),
    "a tuple that contains itself": (lambda: b"]q\x00(h\x00tq\x01a0h\x01", None),
    "a dictionary that contains itself": (lambda: b"}q\x00X\x01\x00\x00\x00ah\x00s", None),
    "a frame that lies": (lambda: b"\x95" + struct.pack("<Q", 2**63) + b"}", None),
    "a network that contains itself": (
        lambda: b"cm\nN\n)\x81q\x00}(" + EMPTY + b"U\x01ah\x00sub", "contains itself"
    ),
    "modules in modules, twice each": (lambda: modules(60), "more than 100,000 modules and tensors"),
    "modules in modules, a thousand deep": (lambda: modules(1000), "more than 64 modules inside each other"),
    "a whole number of a megabyte": (
        lambda: b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20), "1,048,576 bytes"
    ),
    "a whole number of many digits": (lambda: b"I" + b"9" * 4000 + b"\n", "line of more than 200 bytes"),
    "a name without an end": (lambda: b"c" + b"a" * 1_000_000, "line of more than 200 bytes"),
    "a list as a key": (lambda: b"}]Ns", "list for a key"),
    "a tuple as a key": (lambda: b"})Ns", "tuple for a key"),
    "fractions as keys": (
        lambda: b"}(" + b"".join(b"G" + struct.pack(">d", n / 7) + b"N" for n in range(1, 10_002)) + b"u",
        "more than 10,000 keys",
    ),
    "keys that hash alike": (
        lambda: b"}("
        + b"".join(b"\x8a\x0a" + (7 + (2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(20_000))
        + b"u",
        "more than 10,000 keys",
    ),
    "keys along the probe sequence": (
        lambda: b"}(" + b"".join(map(entry, probed())) + b"u", "more than 10,000 keys"
    ),
    "as many of them as a file may have": (lambda: b"}(" + b"".join(map(entry, probed(14)[:10_000])) + b"u", None),
    "members of a set along the probe sequence": (
        lambda: b"\x8f(" + b"".join(map(word, probed())) + b"\x90", "more than 10,000 keys"
    ),
    "members of a frozen set along the probe sequence": (
        lambda: b"(" + b"".join(map(word, probed())) + b"\x91", "more than 10,000 keys"
    ),
    "members of a called set along the probe sequence": (
        lambda: b"cbuiltins\nset\n(" + b"".join(map(word, probed())) + b"l\x85R", "more than 10,000 keys"
    ),
    "pairs along the probe sequence": (
        lambda: b"ccollections\nOrderedDict\n(" + b"".join(word(key) + b"N\x86" for key in probed()) + b"t\x85R",
        "more than 10,000 keys",
    ),
    "entries of an object along the probe sequence": (
        lambda: b"cm\nN\n)\x81(" + b"".join(map(entry, probed())) + b"u", "more than 10,000 keys"
    ),
    "many dictionaries along the probe sequence": (
        lambda: b"".join(b"}(" + b"".join(map(entry, probed(12))) + b"u0" for _ in range(40)) + b"N",
        "more than 10,000 keys",
    ),
    "many copies along the probe sequence": (
        lambda: b"ccollections\nCounter\nq\x00}(" + b"".join(map(entry, probed(12))) + b"u\x85q\x01"
        + b"h\x00h\x01R0" * 300,
        "more than 10,000 keys",
    ),
    "objects as keys": (
        lambda: b"cm\nN\nq\x00}(" + b"h\x00)\x81N" * 20_000 + b"u", "more than 10,000 keys"
    ),
    "a memory along the probe sequence": (
        lambda: b"N" + b"".join(b"r" + struct.pack("<I", key) for key in probed()), "of its memory"
    ),
    "a memory with a leap": (lambda: b"Nr\xff\xff\xff\xff", "place 4,294,967,295 of its memory"),
    "a million instructions more": (lambda: b"N0" * 500_001 + b"N", "more than 1,000,000 instructions"),
    "ten thousand copies of a list": (
        lambda: b"cbuiltins\nlist\nq\x00](" + b"N" * 10_000 + b"e\x85q\x01" + b"h\x00h\x01R0" * 10_000,
        "more than 1,000,000 instructions",
    ),
    "ten thousand copies of a dictionary": (
        lambda: b"ccollections\nCounter\nq\x00}("
        + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(10_000))
        + b"u\x85q\x01"
        + b"h\x00h\x01R0" * 10_000,
        "more than 1,000,000 instructions",
    ),
    "ten thousand copies of a text": (
        lambda: b"c_codecs\nencode\nq\x00" + text("a" * 100_000) + text("latin1") + b"\x86q\x01"
        + b"h\x00h\x01R0" * 10_000,
        "more bytes than were read",
    ),
    "an empty stack": (lambda: b"a", "no sense"),
    "a mark that is not there": (lambda: b"t", "no sense"),
    "nothing to remember": (lambda: b"q\x00", "no sense"),
    "something never remembered": (lambda: b"h\x09", "no sense"),
}  # fmt: skip
"""Files that make readers slow, large or endless, with the reason of the refusal; None if reading is harmless."""


@clause("17.legacy.bounded")
@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_and_time_bombs_are_refused(read_legacy_checkpoint: Read, tmp_path: Path, bomb: str, old: bool) -> None:
    made, says = BOMBS[bomb]
    path = written(tmp_path / "net.pth", packed(made(), "old" if old else "zip"))
    begun = time.perf_counter()
    if says is None:
        found = read_legacy_checkpoint(path)
        assert "no network" in found.describe()
        assert len(repr(found)) < 1000
        del found
    else:
        with refused(says):
            read_legacy_checkpoint(path)
    assert time.perf_counter() - begun < 30


def numbers_from(start: int, code: bytes = b"") -> bytes:
    """10,001 integers that do not start at 0, each followed by an instruction."""
    return b"".join(word(start + number) + code for number in range(10_001))


KEYS = {
    "a dictionary": b"}(" + numbers_from(9, b"N") + b"u",
    "a dictionary from the stack": b"(" + numbers_from(9, b"N") + b"d",
    "one entry after the other": b"}" + numbers_from(9, b"Ns"),
    "a set": b"\x8f(" + numbers_from(9) + b"\x90",
    "a frozen set": b"(" + numbers_from(9) + b"\x91",
    "a set that is called": b"cbuiltins\nset\n(" + numbers_from(9) + b"l\x85R",
    "a Counter": b"ccollections\nCounter\n}(" + numbers_from(9, b"N") + b"u\x85R",
    "pairs": b"ccollections\nOrderedDict\n(" + numbers_from(9, b"N\x86") + b"t\x85R",
    "an object": b"cm\nN\n)\x81(" + numbers_from(9, b"N") + b"u",
    "negative numbers": b"}(" + numbers_from(-10_001, b"N") + b"u",
}
"""Every way to put arbitrary keys into a container."""


@clause("17.legacy.bounded")
@FORMATS
@pytest.mark.parametrize("container", KEYS)
def test_attacker_chosen_dictionary_keys_are_limited(
    read_legacy_checkpoint: Read, tmp_path: Path, container: str, old: bool
) -> None:
    with refused("it has more than 10,000 keys that are no texts"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", packed(KEYS[container], "old" if old else "zip")))


@pytest.mark.slow
@clause("17.legacy.bounded")
def test_sequential_string_and_integer_keys_are_not_limited(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    content = {"texts": {f"{n}": n for n in range(30_000)}, "numbers": {n: n for n in range(30_000)}}
    assert read_legacy_checkpoint(save(content, tmp_path / "net.pth")).content == content


CLAIMS = {
    "a text that claims gigabytes": b"X\xff\xff\xff\xffabc",
    "a text that claims exabytes": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "bytes that claim exabytes": b"\x8e" + struct.pack("<Q", 2**62) + b"abc",
    "an array of bytes that claims gigabytes": b"\x96" + struct.pack("<Q", 2**33) + b"abc",
    "a text of Python 2 that claims gigabytes": b"T\xff\xff\xff\x7fabc",
    "a whole number that claims gigabytes": b"\x8b\xff\xff\xff\x7fabc",
    "a text of less than nothing": b"T\xff\xff\xff\xffabc",
}


@clause("17.legacy.bounded")
@FORMATS
@pytest.mark.parametrize("claim", CLAIMS)
def test_no_memory_is_allocated_for_a_claimed_size(
    read_legacy_checkpoint: Read, tmp_path: Path, claim: str, old: bool
) -> None:
    path = written(tmp_path / "net.pth", packed(CLAIMS[claim], "old" if old else "zip"))
    tracemalloc.start()
    try:
        with refused("cut off"):
            read_legacy_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


FLOODS = {
    "empty sets": (b"\x8f", 1),
    "empty dictionaries": (b"}", 1),
    "marks": (b"(", 1),
    "empty lists": (b"]", 1),
    "memories": (b"\x94", 1),
    "objects": (b"h\x00)\x81", 3),
    "tensors": (b"h\x01h\x02R", 4),
}
"""The instructions that take most memory, and their counts; each dimension counts as one too."""


def flood(code: bytes, count: int) -> bytes:
    """A file of a million instructions."""
    writer = Writer()
    tensor = writer.tensor(torch.ones(1))
    prepared = (
        pickled(tensor.arguments)[2:-1] + b"r\x02\x00\x00\x000ctorch._utils\n_rebuild_tensor_v2\nq\x010cthey\nX\nq\x000"
    )
    body = b"\x80\x04" + prepared + b"N" + code * (990_000 // count) + b"N."
    members = [Member("data.pkl", body), *(Member(f"data/{key}", data) for key, (data, _) in writer.storages.items())]
    return archive(members)


def limit_memory(more: int) -> None:
    """Limit the memory of a new process to its current size plus a margin."""
    import resource  # not on Windows

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def half_a_gibibyte_more() -> None:
    limit_memory(512 << 20)


def three_sixteenths_of_a_gibibyte_more() -> None:
    limit_memory(192 << 20)


@pytest.mark.slow
@clause("17.legacy.bounded")
@pytest.mark.parametrize("what", FLOODS)
def test_a_million_instructions_take_half_a_gibibyte_at_most(tmp_path: Path, what: str) -> None:
    written(tmp_path / "net.pth", flood(*FLOODS[what]))
    result = run("predict.py", "--legacy", "--checkpoint", "net.pth", folder=tmp_path, prepare=half_a_gibibyte_more)
    assert result.status == 0, result.err
    assert "no network" in result.out


@pytest.mark.slow
@clause("17.legacy.bounded")
@FORMATS
def test_numbers_take_as_much_memory_as_in_the_file(tmp_path: Path, old: bool) -> None:
    """128 MiB of them are read with 192 MiB to spare; 256 MiB cannot be, and are refused in one line."""
    words = ("--legacy", "--checkpoint", "net.pth")
    save({"weight": torch.ones(32 << 20)}, tmp_path / "net.pth", old)
    result = run("predict.py", *words, folder=tmp_path, prepare=three_sixteenths_of_a_gibibyte_more)
    assert result.status == 0, result.err
    assert "33,554,432 numbers" in result.out
    save({"weight": torch.ones(64 << 20)}, tmp_path / "net.pth", old)
    result = run("predict.py", *words, folder=tmp_path, prepare=three_sixteenths_of_a_gibibyte_more)
    assert result.status == 2, result.out
    assert len(result.err.splitlines()) == 1


STATES: dict[str, Callable[[Writer, Any], Any]] = {
    "a view for each layer": lambda w, parameter: [
        (number, parameter(w.rebuild(w.first, 0, (1024, 1024), (0, 0)))) for number in range(300)
    ],
    "views with overlaps": lambda w, parameter: [
        (number, parameter(w.rebuild(w.first, 0, (1024, 1024), (1, 1)))) for number in range(300)
    ],
    "one view, a parameter for each layer": lambda w, parameter: (
        lambda view: [(number, parameter(view)) for number in range(300)]
    )(w.rebuild(w.first, 0, (1024, 1024), (0, 0))),
}
"""Ways to represent 300 million numbers in a file of 100 KB; `parameter` converts a tensor into a parameter."""


@pytest.mark.slow
@clause("17.legacy.bounded")
@FORMATS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("where", "pruned"),
    [("parameters", False), ("parameters", True), ("buffers", False), ("tensors", False), ("tensors", True)],
    ids=["parameters", "pruned parameters", "buffers", "tensors for parameters", "pruned tensors for parameters"],
)
@pytest.mark.parametrize("what", STATES)
def test_views_take_no_memory_up_to_the_prediction(
    read_legacy_checkpoint: Read, tmp_path: Path, what: str, where: str, pruned: bool, dtype: torch.dtype, old: bool
) -> None:
    """A view with stride 0 can have any number of elements; converting its dtype allocates all of them."""
    writer = Writer("1.5" if old else "1.6")
    writer.first = writer.storage(torch.ones(4096, dtype=dtype))
    make = Global("torch._utils", "_rebuild_parameter")
    wrap = (lambda view: view) if where != "parameters" else lambda view: Call(make, (view, True, OrderedDict()))
    layers = []
    for _, tensor in STATES[what](writer, wrap):
        if where == "buffers":
            layers.append(writer.module("torch.nn.modules.linear.Identity", buffers={"it": tensor}))
            continue
        names = ("weight_orig", "weight_mask") if pruned else ("weight", "")
        layer = writer.module(
            "torch.nn.modules.linear.Linear", {names[0]: tensor, "bias": None}, in_features=1024, out_features=1024
        )
        if pruned:
            layer.state["_buffers"] = OrderedDict({names[1]: tensor})
            hook = Object(Global("torch.nn.utils.prune", "L1Unstructured"), {"_tensor_name": "weight", "amount": 1})
            layer.state["_forward_pre_hooks"] = OrderedDict({0: hook})
        layers.append(layer)
    flat = [writer.flatten(), writer.linear(nn.Linear(3072, 1024))]
    path = written(tmp_path / "net.pth", writer.file(writer.sequential(*flat, *layers)))
    assert path.stat().st_size < 13_000_000
    with Allocations() as memory, suppress(InputError):
        network, _ = read_legacy_checkpoint(path).classifier()
        network(torch.ones(1, 3, 32, 32))
    assert memory.peak < 8 * path.stat().st_size + (64 << 20)


@pytest.mark.slow
@clause("17.legacy.bounded")
def test_dimensions_count_as_instructions(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """100,000 tensors of 64 dimensions: each is made with three instructions, and checked with 64 comparisons."""
    writer = Writer()
    view = writer.rebuild(writer.storage(torch.ones(0)), 0, (0,) * 64, (0,) * 64)
    code = b"\x80\x02" + pickled(view.arguments)[2:-1] + b"r\x28\x00\x00\x000"
    code += pickled(view.function)[2:-1] + b"r\x29\x00\x00\x000"
    code += b"h\x29h\x28R0" * 100_000 + b"N."
    storages = [Member(f"data/{key}", data) for key, (data, _) in writer.storages.items()]
    with refused("more than 1,000,000 instructions"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", archive([Member("data.pkl", code), *storages])))


@clause("17.legacy.bounded")
def test_a_small_file_of_many_views_is_refused_with_both_figures(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    writer = Writer()
    storage = writer.storage(torch.ones(1).half())
    content = {f"{n}": writer.rebuild(storage, 0, (1024, 1024), (0, 0)) for n in range(5)}
    with refused("its tensors have 10,485,760 bytes, but the file holds only 2 bytes"):
        read_legacy_checkpoint(written(tmp_path / "net.pth", writer.file(content)))


@clause("17.legacy.bounded")
def test_shared_and_tied_weights_are_accepted(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """One layer that occurs twelve times, and a moving average that starts with the weights."""
    block = nn.Linear(600, 600)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 600), *[block] * 12, nn.Linear(600, 2)).half()
    found, _ = read_legacy_checkpoint(save(network, tmp_path / "net.pth")).classifier()
    assert found[2] is found[13]
    state = network.state_dict()
    save({"model": state, "ema": dict(state), "best": dict(state)}, tmp_path / "net.pth")
    assert read_legacy_checkpoint(tmp_path / "net.pth", choose="ema").state_dict.keys() == state.keys()


@clause("17.legacy.bounded")
def test_batch_size_is_limited_by_the_memory_of_activations(read_legacy_checkpoint: Read, tmp_path: Path) -> None:
    """12 KB of weights that create 16 million numbers for one image: too many for 64 images at once."""
    network = nn.Sequential(nn.Upsample(scale_factor=70), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = read_legacy_checkpoint(save(network, tmp_path / "net.pth"))
    assert 3 * (32 * 70) ** 2 == 15_052_800
    assert found.batch_size(64) == (1 << 26) // 15_052_800 == 4
    assert found.batch_size(2) == 2
    small = read_legacy_checkpoint(save(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), tmp_path / "net.pth"))
    assert small.batch_size(64) == 64
