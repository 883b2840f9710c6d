"""Classes that run code when a file creates them, and pickles that use them and Python's functions as an attack.

Each trap only creates a folder, the victim.
"""

import os
import struct
from pathlib import Path
from typing import Any


class New:
    """Runs code when it is created without initialization."""

    def __new__(cls, victim: str, **options: str) -> "New":
        os.mkdir(victim)
        return super().__new__(cls)


class Init:
    """Runs code when it is created."""

    def __init__(self, victim: str) -> None:
        os.mkdir(victim)


class State:
    """Runs code when its state is set."""

    def __setstate__(self, victim: str) -> None:
        os.mkdir(victim)


class Attribute:
    """Runs code when an attribute is set."""

    def __setattr__(self, name: str, value: Any) -> None:
        os.mkdir(value)


class Container:
    """Runs code when an item is added."""

    def append(self, victim: str) -> None:
        os.mkdir(victim)

    def extend(self, victims: list[str]) -> None:
        os.mkdir(victims[0])

    def add(self, victim: str) -> None:
        os.mkdir(victim)

    def __setitem__(self, key: str, victim: str) -> None:
        os.mkdir(victim)


class Key:
    """Runs code when a dictionary computes its hash."""

    victim: str

    def __hash__(self) -> int:
        os.mkdir(self.victim)
        return 0


class Patched:
    """Old files contain the source of such classes, and PyTorch then writes the difference to a file."""

    dump_patches = True


def text(value: str | Path) -> bytes:
    data = str(value).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def own(name: str) -> bytes:
    return f"c{__name__}\n{name}\n".encode()


EXTENSION = 240
"""An extension code that `copyreg` temporarily maps to `os.mkdir`."""


def tricks(victim: Path) -> dict[str, bytes]:
    """Pickles, without header and end, that create the victim when Python reads them."""
    path = text(victim)
    code = text(f"__import__('os').mkdir({str(victim)!r})")
    module = b"cbuiltins\n__import__\n" + text("os") + b"\x85R"
    attribute = b"cbuiltins\ngetattr\n"
    return {
        "REDUCE of os.mkdir": b"cos\nmkdir\n" + path + b"\x85R",
        "REDUCE of the same under its other name": b"cposix\nmkdir\n" + path + b"\x85R",
        "REDUCE of eval": b"cbuiltins\neval\n" + code + b"\x85R",
        "REDUCE of exec in Python 2's words": b"c__builtin__\nexec\n" + code + b"\x85R",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93" + path + b"\x85R",
        "a chain of getattr from __import__": attribute + module + text("mkdir") + b"\x86R" + path + b"\x85R",
        "a chain of getattr from a function that is allowed": (
            attribute + attribute + b"ctorch._utils\n_rebuild_tensor_v2\n" + text("__globals__") + b"\x86R"
            # only to show that the reader gets this far
            + text("__getitem__") + b"\x86R" + text("__builtins__") + b"\x85R0"
            + b"cos\nmkdir\n" + path + b"\x85R"
        ),
        "a name with dots": b"\x8c\x02os\x8c\x0dpath.os.mkdir\x93" + path + b"\x85R",
        "INST": b"(" + path + b"ios\nmkdir\n",
        "OBJ": b"(cos\nmkdir\n" + path + b"o",
        "INST of a class": b"(" + path + f"i{__name__}\nInit\n".encode(),
        "NEWOBJ": own("New") + path + b"\x85\x81",
        "NEWOBJ_EX": own("New") + path + b"\x85}\x92",
        "EXT1": b"\x82" + bytes([EXTENSION]) + path + b"\x85R",
        "EXT2": b"\x83" + struct.pack("<H", EXTENSION) + path + b"\x85R",
        "EXT4": b"\x84" + struct.pack("<i", EXTENSION) + path + b"\x85R",
        "BUILD: __setstate__": own("State") + b")\x81" + path + b"b",
        "BUILD: an attribute": own("Attribute") + b")\x81N}" + text("name") + path + b"s\x86b",
        "APPEND": own("Container") + b")\x81" + path + b"a",
        "APPENDS": own("Container") + b")\x81(" + path + b"e",
        "ADDITEMS": own("Container") + b")\x81(" + path + b"\x90",
        "SETITEM": own("Container") + b")\x81" + text("key") + path + b"s",
        "SETITEMS": own("Container") + b")\x81(" + text("key") + path + b"u",
        "a key with a hash of its own": b"}" + own("Key") + b")\x81}" + text("victim") + path + b"sbNs",
        "a member of a set with a hash of its own": (
            b"c__builtin__\nset\n]" + own("Key") + b")\x81}" + text("victim") + path + b"sba\x85R"
        ),
        "copyreg": (
            b"ccopy_reg\n_reconstructor\n(" + own("Init") + b"c__builtin__\nobject\nNtR0"
            + own("Init") + path + b"\x85R"
        ),
        "functools.partial, called": b"cfunctools\npartial\ncos\nmkdir\n" + path + b"\x86R)R",
        "operator.methodcaller": b"coperator\nmethodcaller\n" + text("mkdir") + path + b"\x86R" + module + b"\x85R",
        "a list of a map": b"c__builtin__\nlist\nc__builtin__\nmap\ncos\nmkdir\n]" + path + b"a\x86R\x85R",
        "PyTorch's own functions": b"ctorch.serialization\nsave\n}" + text(f"{victim}") + b"\x86R",
        "inside of a whole network": (
            b"ctorch.nn.modules.linear\nIdentity\n)\x81}(" + text("training") + b"\x88" + text("_parameters") + b"}"
            + text("_buffers") + b"}" + text("_modules") + b"}" + text("trap") + b"cos\nmkdir\n" + path + b"\x85Rub"
        ),
        "beside the value": b"cos\nmkdir\n" + path + b"\x85R0}",
        "in a memory that is never asked": b"cos\nmkdir\n" + path + b"\x85Rq\x000}",
        "as the key of a storage": (
            b"(" + text("storage") + b"ctorch\nFloatStorage\ncos\nmkdir\n" + path + b"\x85R" + text("cpu") + b"K\x00tQ"
        ),
    }  # fmt: skip
