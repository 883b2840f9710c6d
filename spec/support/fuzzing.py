"""Valid files of `torch.save`, damaged at random: `python -m spec.support.fuzzing --inputs 100000 --seed 0`.

Each input is one of `seeds()` with one to four changes: bytes, lengths, instructions of its pickle (with corrected
checksums and directory), or fields of the archive. A reader may refuse it with `InputError` or return a result, within
seconds, and must have no side effect except opening the file, and no output. The command tries `load_checkpoint` and
`read_legacy_checkpoint` on each of them.
"""

import argparse
import io
import pickletools
import random
import re
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.errors import InputError
from reference.models import Ocean
from spec.support.torch_files import MAGIC, PROTOCOL, Member, Writer, archive, pickled
from spec.support.watching import watched

LIMIT = 10  # seconds for one input
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)

Parts = tuple[bytes, dict[str, tuple[bytes, int]]]  # a pickle, and the storages: bytes and the width of a number


def seeds() -> Iterator[tuple[str, Parts]]:
    """Small files of every kind: "zip" or "old", and their parts."""
    for version in ("1.5", "1.6", "1.13"):
        writer = Writer(version, "cuda:0" if version == "1.6" else "cpu")
        layers = (writer.conv2d(nn.Conv2d(1, 2, 2, padding=1)), writer.relu(), writer.max_pool2d(nn.MaxPool2d(2)))
        network = writer.sequential(*layers, writer.flatten(), writer.linear(nn.Linear(4, 2)))
        content = writer.module("__main__.Ocean", children={"model1": network})
        yield "old" if version == "1.5" else "zip", (pickled(content), writer.storages)
    yield "zip", checkpoint()
    things: list[Any] = [
        nn.LSTM(2, 2, 1, bidirectional=True),
        nn.Sequential(nn.BatchNorm2d(2), nn.Embedding(2, 2), nn.LayerNorm(2)),
        nn.TransformerEncoderLayer(2, 1, 2),
        {"net": nn.Linear(2, 1).state_dict(), "epoch": 3, "size": torch.Size([1]), "set": {1}, "c": 1j, "b": b"\xff"},
        [torch.arange(6.0).reshape(2, 3).t(), torch.ones(2, dtype=torch.bool), torch.ones(3).bfloat16()],
        OrderedDict(a=torch.ones(2, dtype=torch.uint16), b=torch.device("cuda", 1), c=torch.float16),
        torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, thing in enumerate(things):
            buffer = io.BytesIO()
            torch.save(thing, buffer, pickle_protocol=(2, 4, 5)[number % 3])
            yield "zip", parts_of(buffer)


def parts_of(file: io.BytesIO) -> Parts:
    """The parts of what `torch.save` wrote."""
    with zipfile.ZipFile(file) as opened:
        parts = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    storages = {name.removeprefix("data/"): (data, 1) for name, data in parts.items() if name[:5] == "data/"}
    return parts["data.pkl"], storages


@cache
def checkpoint() -> Parts:
    """A checkpoint of this project."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder, "net.pt"), Ocean(2), ("cat", "dog"), training={"step": 3, "state": {0: [0.5]}})
        return parts_of(io.BytesIO(Path(folder, "net.pt").read_bytes()))


def whole(kind: str, parts: Parts) -> bytes:
    """The file with the given parts."""
    code, storages = parts
    if kind == "zip":
        members = [Member("data.pkl", code), *(Member(f"data/{key}", data) for key, (data, _) in storages.items())]
        return archive([*members, Member("version", b"3\n")])
    start = b"".join(map(pickled, (MAGIC, PROTOCOL, {"little_endian": True})))
    keys = sorted(storages)
    numbers = (struct.pack("<q", len(storages[key][0]) // storages[key][1]) + storages[key][0] for key in keys)
    return start + code + pickled(keys) + b"".join(numbers)


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """One change of a few bytes somewhere."""
    at = draw.randrange(len(data) + 1)
    match draw.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + draw.randbytes(draw.randint(1, 8)) + data[at:]
        case 2:
            return data[:at] + data[at + draw.randint(1, 16) :]
        case 3:
            return data[:at] + data[at : at + draw.randint(1, 64)] + data[at:]
        case 4:
            width = draw.choice((1, 2, 4, 8))
            number = draw.choice(EXTREMES) % (1 << 8 * width)
            return data[:at] + number.to_bytes(width, draw.choice(("little", "big"))) + data[at + width :]
        case _:
            changed = bytearray(data or b"\0")
            for _ in range(draw.randint(1, 4)):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            return bytes(changed)


GADGETS = (
    *(b"cos\nsystem\n(X\x04\x00\x00\x00truetR", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR", b"cos\nsystem\n"),
    *(b"(S'true'\nios\nsystem\n", b"(cos\nsystem\no", b"c__builtin__\ngetattr\n(h\x00X\x09\x00\x00\x00__class__tR"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"),
    *(b"c__builtin__\nset\n", b"cbuiltins\ngetattr\n", b")R", b")\x81", b"}b", b"(", b"t", b"\x85", b"\x86", b"\x87"),
    *(b"e", b"u", b"d", b"l", b"a", b"s", b"Q", b"P1\n", b"\x82\x01", b"\x83\x01\x00", b"\x92", b"\x93", b"\x94"),
    *(b"\x90", b"\x91", b"\x8f", b"]", b"}", b")", b"N", b"R", b"b", b"0", b"1", b"2", b"K\x00", b"K\xff", b"h\x00"),
    *(b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x95" + b"\xff" * 8, b"J\xff\xff\xff\xff"),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"h\x05", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f"),
)
"""Instructions and pieces of attacks that are put into pickles."""


def damaged_pickle(code: bytes, draw: random.Random) -> bytes:
    """One change of whole instructions; if the data can no longer be parsed as instructions, bytes are changed."""
    try:
        starts = [position for _, _, position in pickletools.genops(code)]
    except Exception:  # an earlier change
        return damaged_bytes(code, draw)
    pieces = [code[a:b] for a, b in zip(starts, [*starts[1:], len(code)], strict=True) if a is not None]
    at, other = draw.randrange(len(pieces)), draw.randrange(len(pieces))
    match draw.randrange(6):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(at, pieces[other])
        case 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        case 3:
            pieces.insert(at, draw.choice(GADGETS))
        case 4:
            pieces[at] = draw.choice(GADGETS)
        case _:
            pieces[at] = pieces[at][:1] + damaged_bytes(pieces[at][1:], draw)
    return b"".join(pieces)


def damaged(kind: str, parts: Parts, draw: random.Random) -> bytes:
    """The file with one to four changes."""
    code, storages = parts
    changes = draw.choice((1, 1, 1, 2, 4))
    if draw.random() < 0.6:  # in its content, with right checksums
        for _ in range(changes):
            code = damaged_pickle(code, draw)
        if storages and draw.random() < 0.2:
            key = draw.choice(sorted(storages))
            storages = storages | {key: (damaged_bytes(storages[key][0], draw), storages[key][1])}
        return whole(kind, (code, storages))
    data = whole(kind, parts)
    for _ in range(changes):
        if kind == "zip" and draw.random() < 0.6:  # in its headers and its directory
            signature = draw.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
            places = [match.start() for match in re.finditer(re.escape(signature), data)] or [0]
            at = draw.choice(places)
            data = data[:at] + damaged_bytes(data[at : at + 46], draw) + data[at + 46 :]
        else:
            data = damaged_bytes(data, draw)
    return data


def fuzz(read: Callable[[Path], Any], folder: Path, inputs: int, seed: int) -> Counter[str]:
    """Read `inputs` damaged files; return the number of files read and refused.

    Raises:
        AssertionError: a reader had another effect; the message contains the number of the input and the command to
        reproduce it.
    """
    kinds = list(seeds())
    path = folder / "input.pth"
    for kind, parts in kinds:  # so that PyTorch's lazy imports have happened
        path.write_bytes(whole(kind, parts))
        with suppress(InputError):
            read(path)
    outcomes: Counter[str] = Counter()
    for number in range(inputs):
        draw = random.Random(f"{seed}:{number}")
        path.write_bytes(damaged(*draw.choice(kinds), draw))
        begun = time.perf_counter()
        printed = io.StringIO()
        with watched() as events, redirect_stdout(printed), redirect_stderr(printed):
            try:
                found = read(path)
                getattr(found, "describe", str)()
                outcomes["read"] += 1
            except InputError:
                outcomes["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"input {number} of seed {seed} raised {type(error).__name__}: {error}") from error
        other = [event for event in events if not event.startswith(f"open ({str(path)!r}")]
        assert not other, f"reading input {number} of seed {seed} did {other}"
        assert not printed.getvalue(), f"reading input {number} of seed {seed} printed {printed.getvalue()!r}"
        took = time.perf_counter() - begun
        assert took < LIMIT, f"reading input {number} of seed {seed} took {took:.1f} s"
    return outcomes


def main() -> None:
    """Run the fuzzer and print the result."""
    from reference import read_legacy_checkpoint

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for read in (load_checkpoint, read_legacy_checkpoint):
            begun = time.perf_counter()
            outcomes = fuzz(read, Path(folder), options.inputs, options.seed)
            shown = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
            took = time.perf_counter() - begun
            print(f"{read.__name__}: {options.inputs:,} inputs of seed {options.seed} in {took:.0f} s: {shown}")


if __name__ == "__main__":
    main()
