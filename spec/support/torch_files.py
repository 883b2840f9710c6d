"""Files in the format of `torch.save`, built by hand: as written by PyTorch 1.5, 1.6 and 1.13, and by an attacker.

PyTorch writes protocol 2, with the C pickler of Python 3: every object that may be referred to again is stored in the
memo (BINPUT), one item is added with APPEND or SETITEM and several with APPENDS or SETITEMS. `pickled` does the same,
byte for byte, from a description in which functions are called only by name.
"""

import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


@dataclass(frozen=True)
class Global:
    """A class or function, by name."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """A call of a function with arguments."""

    function: Any
    arguments: Any
    state: Any = None


@dataclass(eq=False)
class Object:
    """An object of a class with its restored attributes."""

    kind: Any
    state: Any
    arguments: tuple[Any, ...] = ()


@dataclass(eq=False)
class Persistent:
    """A reference to an object outside of the pickle."""

    identity: tuple[Any, ...]


class Fresh(str):
    """A string that is not shared through the memo."""

    __slots__ = ()


@dataclass(frozen=True)
class Raw:
    """Raw instructions."""

    code: bytes


def pickled(value: Any) -> bytes:
    """The pickle of a description, protocol 2."""
    return b"\x80\x02" + _Pickler().write(value) + b"."


class _Pickler:
    def __init__(self) -> None:
        self.memo: dict[Any, int] = {}
        self.alive: list[Any] = []  # objects in the memo must not be freed, because the memo uses their identity

    def remember(self, key: Any, value: Any = None) -> bytes:
        number = self.memo[key] = len(self.memo)
        self.alive.append(value)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def write(self, value: Any) -> bytes:
        key = (type(value), value) if type(value) in (str, Global) else id(value)
        if (number := self.memo.get(key)) is not None:
            return b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
        match value:
            case None | True | False:
                return {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                return integer(value)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                data = value.encode("utf-8", "surrogatepass")
                return b"X" + struct.pack("<I", len(data)) + data + self.remember(key)
            case Raw():
                return value.code
            case Global():
                return f"c{value.module}\n{value.name}\n".encode() + self.remember(key)
            case tuple():
                if not value:
                    return b")"
                items = b"".join(map(self.write, value))
                code = items + bytes([0x84 + len(value)]) if len(value) <= 3 else b"(" + items + b"t"
                return code + self.remember(key, value)
            case list():
                start = b"]" + self.remember(key, value)
                return start + self.several([self.write(item) for item in value], b"a", b"e")
            case OrderedDict():
                start = self.write(Global("collections", "OrderedDict")) + b")R" + self.remember(key, value)
                return start + self.entries(value)
            case dict():
                return b"}" + self.remember(key, value) + self.entries(value)
            case Persistent():
                return self.write(value.identity) + b"Q"
            case Call():
                code = self.write(value.function) + self.write(value.arguments) + b"R" + self.remember(key, value)
                return code if value.state is None else code + self.write(value.state) + b"b"
            case Object():
                start = self.write(value.kind) + self.write(value.arguments) + b"\x81" + self.remember(key, value)
                return start + self.write(value.state) + b"b"
        raise TypeError(type(value))

    def entries(self, value: Mapping[Any, Any]) -> bytes:
        return self.several([self.write(name) + self.write(item) for name, item in value.items()], b"s", b"u")

    def several(self, items: list[bytes], one: bytes, many: bytes) -> bytes:
        return b"" if not items else items[0] + one if len(items) == 1 else b"(" + b"".join(items) + many


def integer(value: int) -> bytes:
    """An integer in the encoding of the pickler."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


# Modules and tensors in the format of a version of PyTorch

STORAGES = {
    torch.float32: "FloatStorage",
    torch.float64: "DoubleStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.complex64: "ComplexFloatStorage",
}


@dataclass
class Writer:
    """Describes modules and tensors in the format of PyTorch `version`, and writes the file.

    Attributes:
        version: "1.5" (the old format by default), "1.6" or "1.13" (the zip format by default).
        location: the device of the tensors.
        big: whether the zip file's numbers are big-endian, with a matching record of the byte order.
        storages: the bytes by key.
        first: a storage that several tensors are views of.
    """

    version: str = "1.6"
    location: str = "cpu"
    big: bool = False
    storages: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    first: Any = None

    def storage(self, values: Tensor) -> Persistent:
        """The storage of all numbers of a tensor, which must be contiguous."""
        key = str(len(self.storages)) if self.version == "1.13" else str(94032000000000 + 64 * len(self.storages))
        key = Fresh(key)
        width = values.element_size()
        data = values.detach().contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b""
        if self.big:
            part = width // 2 if values.is_complex() else width
            data = b"".join(data[i : i + part][::-1] for i in range(0, len(data), part))
        self.storages[key] = data, width
        home = "torch.cuda" if self.location.startswith("cuda") else "torch"
        kind = Global(home, STORAGES[values.dtype])
        view = (None,) if self.version == "1.5" else ()
        return Persistent(("storage", kind, key, self.location, values.numel(), *view))

    def tensor(self, values: Tensor, requires_grad: bool = False) -> Call:
        return self.rebuild(self.storage(values), 0, tuple(values.shape), values.contiguous().stride(), requires_grad)

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: bool = False) -> Call:
        arguments = (storage, offset, size, stride, requires_grad, OrderedDict())
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)

    def parameter(self, values: Tensor) -> Call:
        return Call(Global("torch._utils", "_rebuild_parameter"), (self.tensor(values), True, OrderedDict()))

    def module(
        self,
        kind: Any,
        parameters: Mapping[str, Any] | None = None,
        buffers: Mapping[str, Any] | None = None,
        children: Mapping[str, Any] | None = None,
        **attributes: Any,
    ) -> Object:
        """A module of a class ("package.module.Name" or a description); tensors become parameters and buffers."""
        names = ["_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"]
        names.append("_load_state_dict_pre_hooks")
        state: dict[str, Any] = {"training": True}
        state["_parameters"] = OrderedDict(
            (name, self.parameter(p) if isinstance(p, Tensor) else p) for name, p in (parameters or {}).items()
        )
        state["_buffers"] = OrderedDict(
            (name, self.tensor(b) if isinstance(b, Tensor) else b) for name, b in (buffers or {}).items()
        )
        if self.version != "1.5":
            state["_non_persistent_buffers_set"] = Call(Global("__builtin__", "set"), ([],))
        for name in names:
            state[name] = OrderedDict()
            if self.version == "1.13" and name == "_backward_hooks":
                state["_is_full_backward_hook"] = None
        if self.version == "1.13":
            state["_load_state_dict_post_hooks"] = OrderedDict()
        state["_modules"] = OrderedDict(children or {})
        if isinstance(kind, str):
            home, _, name = kind.rpartition(".")
            kind = Global(home, name)
        return Object(kind, state | attributes)

    def conv2d(self, layer: nn.Conv2d, kind: Any = "torch.nn.modules.conv.Conv2d") -> Object:
        """A convolution with the attributes of this version."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed")
        attributes = {name: getattr(layer, name) for name in (*names, "output_padding", "groups", "padding_mode")}
        padded = {"1.5": "_padding_repeated_twice", "1.6": "_reversed_padding_repeated_twice"}
        attributes[padded.get(self.version, padded["1.6"])] = layer._reversed_padding_repeated_twice
        if self.version != "1.13":  # a tuple in this version
            attributes[list(attributes)[-1]] = tuple(layer._reversed_padding_repeated_twice)
        return self.module(kind, layer._parameters, **attributes)

    def linear(self, layer: nn.Linear, kind: Any = "torch.nn.modules.linear.Linear") -> Object:
        return self.module(
            kind, layer._parameters, in_features=layer.in_features, out_features=layer.out_features
        )  # fmt: skip

    def max_pool2d(self, layer: nn.MaxPool2d) -> Object:
        names = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
        attributes = {name: getattr(layer, name) for name in names}
        return self.module("torch.nn.modules.pooling.MaxPool2d", **attributes)

    def flatten(self) -> Object:
        return self.module("torch.nn.modules.flatten.Flatten", start_dim=1, end_dim=-1)

    def relu(self) -> Object:
        return self.module("torch.nn.modules.activation.ReLU", inplace=True)

    def sequential(self, *layers: Any) -> Object:
        children = {str(number): layer for number, layer in enumerate(layers)}
        return self.module("torch.nn.modules.container.Sequential", children=children)

    def zip(self, content: Any, folder: str = "archive") -> bytes:
        """The file since PyTorch 1.6."""
        members = [Member("data.pkl", pickled(content))]
        if self.big:
            members.append(Member("byteorder", b"big"))
        members += [Member(f"data/{key}", data) for key, (data, _) in self.storages.items()]
        return archive([*members, Member("version", b"3\n")], folder)

    def old(self, content: Any) -> bytes:
        """The file before PyTorch 1.6."""
        sizes = {"short": 2, "int": 4, "long": 4}
        info = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": sizes}
        keys = sorted(self.storages)
        parts = [pickled(part) for part in (MAGIC, PROTOCOL, info, content, keys)]
        for key in keys:
            data, width = self.storages[key]
            parts += [struct.pack("<q", len(data) // width), data]
        return b"".join(parts)

    def file(self, content: Any) -> bytes:
        """The file in the default format of this version."""
        return self.old(content) if self.version == "1.5" else self.zip(content)


# Archives, valid and manipulated


@dataclass(frozen=True)
class Member:
    """A file of a zip archive, and the fields of its headers if they are wrong.

    Attributes:
        name: below the archive's folder; a name with a leading "/" is used without the folder and the slash.
        data: its bytes.
        crc, size, packed, method, flags, offset: the fields of the directory.
        local: the name in its own header.
        extra: the extra field of the directory.
    """

    name: str
    data: bytes
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    method: int = 0
    flags: int = 0
    offset: int | None = None
    local: str | None = None
    extra: bytes = b""


def archive(members: Iterable[Member], folder: str = "archive", wide: bool = False, comment: bytes = b"") -> bytes:
    """A zip archive as PyTorch lays it out: each member's bytes begin at a multiple of 64; `wide`: with 64-bit ends."""
    body, directory, count = b"", b"", 0
    for member in members:
        name = (member.name[1:] if member.name.startswith("/") else f"{folder}/{member.name}").encode()
        local = name if member.local is None else member.local.encode()
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = len(member.data) if member.size is None else member.size
        packed = size if member.packed is None else member.packed
        offset = len(body) if member.offset is None else member.offset
        # lengths that exceed 32 bits are in an extra field here too
        far = struct.pack("<2H2Q", 1, 16, len(member.data), len(member.data)) if size == packed == 0xFFFFFFFF else b""
        padding = -(len(body) + 30 + len(local) + 4 + len(far)) % 64
        extra = far + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        header = (b"PK\x03\x04", 20, member.flags, member.method, 0, 0, crc, packed, size, len(local), len(extra))
        body += struct.pack("<4s5H3L2H", *header) + local + extra
        body += member.data
        listed = (b"PK\x01\x02", 0, 20, member.flags, member.method, 0, 0, crc, packed, size, len(name))
        directory += struct.pack("<4s6H3L5H2L", *listed, len(member.extra), 0, 0, 0, 0, offset) + name + member.extra
        count += 1
    end = len(body) + len(directory)
    far = b""
    if wide:
        far = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), len(body))
        far += struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), len(comment))
    return body + directory + far + last + comment
