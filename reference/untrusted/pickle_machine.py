"""Chapter 17: a machine for pickles without the instructions that run code.

A pickle builds lists, dictionaries, strings and numbers on a stack. For objects it has three more instructions: GLOBAL
names a class or function, REDUCE calls it, and BUILD passes an object its state. Python's own reader follows these,
imports the named object and calls it. This machine stores names as text, and objects as records of their data in the
file. It imports nothing, looks up no attribute by a name from the file, and calls only the functions that a subclass
implements in `call`.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from reference.untrusted.bounds import INSTRUCTIONS, LONG, NAME, SCATTERED_KEYS

ABOVE_MARK = frozenset(("TUPLE", "LIST", "DICT", "FROZENSET", "APPENDS", "SETITEMS", "ADDITEMS", "POP_MARK"))
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
PROTOCOL = 5
EMPTY = object()
"""Marks an unset entry of a pickle's memo."""


class ForeignError(ValueError):
    """A file requests a name that this reader does not provide."""


@runtime_checkable
class Stream(Protocol):
    """The source of pickles."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function named in a file: only its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is only a name: its data in the file, without any code.

    Attributes:
        kind: its class.
        arguments: the arguments of its constructor.
        state: the state to restore it from, mostly its attributes.
        items, entries: the elements, if the object is also a list or a dictionary.
    """

    kind: Name
    arguments: tuple[Any, ...] = field(default=(), repr=False)  # a file may nest them to any depth
    state: Any = field(default=None, repr=False)
    items: list[Any] | None = field(default=None, repr=False)
    entries: dict[Any, Any] | None = field(default=None, repr=False)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes by name; empty if the state has another form."""
        return self.state if type(self.state) in (dict, OrderedDict) else {}


# Instructions: a byte, and its argument


def number(layout: str) -> Callable[[Stream], Any]:
    """Reads a number of this layout, in the notation of `struct`."""
    compiled = struct.Struct(layout)
    return lambda stream: compiled.unpack(stream.read(compiled.size))[0]


def sized(layout: str, decode: Callable[[bytes], Any]) -> Callable[[Stream], Any]:
    """Read a length of this layout, then that number of bytes; fewer bytes are an error."""
    length = number(layout)

    def read(stream: Stream) -> Any:
        wanted = length(stream)
        data = stream.read(wanted) if wanted >= 0 else b""
        if len(data) != wanted:
            raise ValueError(f"it is cut off: {wanted:,} bytes are to follow")
        return decode(data)

    return read


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def latin(data: bytes) -> str:
    return data.decode("latin-1")


def whole_number(data: bytes) -> int:
    if len(data) > LONG:
        raise ValueError(f"a whole number has {len(data):,} bytes")
    return int.from_bytes(data, "little", signed=True)


def line(stream: Stream) -> str:
    """The rest of a line of at most `NAME` bytes."""
    data = stream.readline(NAME + 1)
    if not data.endswith(b"\n"):
        raise ValueError(f"it has a line of more than {NAME} bytes")
    return text(data[:-1])


def decimal(stream: Stream) -> int:
    """An integer in decimal digits, as Python 2 wrote integers of more than 32 bits; or a Boolean."""
    digits = line(stream)
    return digits == "01" if digits in ("00", "01") else int(digits)


def constant(value: Any) -> Callable[[Stream], Any]:
    return lambda stream: value


INSTRUCTION: dict[bytes, tuple[str, Callable[[Stream], Any] | None]] = {
    b"N": ("LITERAL", constant(None)),
    b"\x88": ("LITERAL", constant(True)),
    b"\x89": ("LITERAL", constant(False)),
    b"K": ("LITERAL", number("<B")),
    b"M": ("LITERAL", number("<H")),
    b"J": ("LITERAL", number("<i")),
    b"I": ("LITERAL", decimal),
    b"\x8a": ("LITERAL", sized("<B", whole_number)),
    b"\x8b": ("LITERAL", sized("<i", whole_number)),
    b"G": ("LITERAL", number(">d")),
    b"\x8c": ("LITERAL", sized("<B", text)),
    b"X": ("LITERAL", sized("<I", text)),
    b"\x8d": ("LITERAL", sized("<Q", text)),
    b"U": ("LITERAL", sized("<B", latin)),  # Python 2
    b"T": ("LITERAL", sized("<i", latin)),
    b"C": ("LITERAL", sized("<B", bytes)),
    b"B": ("LITERAL", sized("<I", bytes)),
    b"\x8e": ("LITERAL", sized("<Q", bytes)),
    b"\x96": ("LITERAL", sized("<Q", bytearray)),
    b"q": ("PUT", number("<B")),
    b"r": ("PUT", number("<I")),
    b"h": ("GET", number("<B")),
    b"j": ("GET", number("<I")),
    b"\x94": ("MEMOIZE", None),
    b"(": ("MARK", None),
    b")": ("TUPLE0", None),
    b"\x85": ("TUPLE1", None),
    b"\x86": ("TUPLE2", None),
    b"\x87": ("TUPLE3", None),
    b"t": ("TUPLE", None),
    b"]": ("EMPTY_LIST", None),
    b"l": ("LIST", None),
    b"a": ("APPEND", None),
    b"e": ("APPENDS", None),
    b"}": ("EMPTY_DICT", None),
    b"d": ("DICT", None),
    b"s": ("SETITEM", None),
    b"u": ("SETITEMS", None),
    b"\x8f": ("EMPTY_SET", None),
    b"\x90": ("ADDITEMS", None),
    b"\x91": ("FROZENSET", None),
    b"c": ("GLOBAL", lambda stream: (line(stream), line(stream))),
    b"\x93": ("STACK_GLOBAL", None),
    b"R": ("REDUCE", None),
    b"\x81": ("NEWOBJ", None),
    b"b": ("BUILD", None),
    b"Q": ("BINPERSID", None),
    b"0": ("POP", None),  # with the next two instructions: used for a tuple that contains itself
    b"1": ("POP_MARK", None),
    b"2": ("DUP", None),
    b"\x80": ("PROTO", number("<B")),
    b"\x95": ("FRAME", number("<Q")),
    b".": ("STOP", None),
}
"""The instructions by their byte: the name, and the reader of the argument that follows."""

REFUSED = {
    b"i": "INST",
    b"o": "OBJ",
    b"\x92": "NEWOBJ_EX",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"P": "PERSID",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
}
"""Other instructions of Python's pickles; `torch.save` has never written further ones, of protocol 0."""


def instructions(stream: Stream) -> Iterator[tuple[str, Any]]:
    """The instructions that follow, by name, each with its argument."""
    while code := stream.read(1):
        if code not in INSTRUCTION:
            raise ValueError(f"it has the instruction {REFUSED.get(code, code)}, which is not needed for data")
        name, argument = INSTRUCTION[code]
        yield name, argument and argument(stream)


class PickleMachine:
    """Reads one pickle after the other; `instructions` limits their total number of instructions.

    A subclass defines the names and calls it supports, and the keys it accepts.

    Args:
        instructions: the largest number of instructions; copies of containers count as instructions too.
    """

    def __init__(self, instructions: int = INSTRUCTIONS) -> None:
        self.instructions = self.left = instructions
        self.scattered = SCATTERED_KEYS

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """The value that REDUCE leaves on the stack. This class supports no call."""
        raise ForeignError(f"it asks for a call of {function if isinstance(function, Name) else 'what is no function'}")

    def persistent(self, identity: object) -> object:
        """The value of a reference to something outside the pickle."""
        raise ValueError("it refers to something outside of itself")

    def named(self, name: Name) -> object:
        """The value that GLOBAL leaves on the stack."""
        return name

    def make(self, kind: object, arguments: tuple[Any, ...]) -> Record:
        """The record of an object that NEWOBJ leaves on the stack; the object is not created."""
        if not isinstance(kind, Name):
            raise ValueError("it makes an object of something that is no class")
        return Record(kind, arguments)

    def key(self, value: Any, place: int) -> Any:
        """Check a key of a dictionary, or a member of a set, that is inserted after `place` others.

        Returns:
            The key, which has a type that Python hashes and compares quickly and without running code of the file.

        Raises:
            ValueError: the key has another type, or the file has more than `SCATTERED_KEYS` keys that could be chosen
            to collide.
        """
        if value is None or isinstance(value, str | bytes | Name):
            return value
        if isinstance(value, tuple | list | dict | set | frozenset | complex | bytearray):
            raise ValueError(f"a dictionary has a {type(value).__name__} for a key")
        if not (isinstance(value, int) and 0 <= value <= place):
            self.scattered -= 1
            if self.scattered < 0:
                raise ValueError(f"it has more than {SCATTERED_KEYS:,} keys that are no texts")
        return value

    def spend(self, count: int) -> None:
        """Count instructions, and elements copied during one."""
        self.left -= count
        if self.left < 0:
            raise ValueError(f"it has more than {self.instructions:,} instructions")

    def put(self, target: Any, items: list[Any]) -> Any:
        """Add key, value, key, value … to a dictionary, or to an object that is also one."""
        if isinstance(target, Record):
            target.entries = {} if target.entries is None else target.entries
            return self.put(target.entries, items)
        if type(target) not in (dict, OrderedDict):
            raise ValueError(f"it sets an entry of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key, len(target))] = value
        return target

    def add(self, target: Any, items: list[Any] | tuple[Any, ...]) -> set[Any]:
        """Add members to a set."""
        if type(target) is not set:
            raise ValueError(f"it adds a member to a {type(target).__name__}")
        for item in items:
            target.add(self.key(item, len(target)))
        return target

    def read(self, stream: Stream) -> Any:
        """The value of the pickle that begins here; afterwards the stream is at its end.

        Raises:
            ValueError: the pickle requests something unsupported, or exceeds a limit; the message names it.
            Exception: any other error of invalid instructions (an empty stack, a list as a key).
        """
        stack: list[Any] = []
        below: list[list[Any]] = []  # for each mark, the stack below it
        memory: list[Any] = []  # a list, not a dictionary: pickles number their memo without gaps
        for count, (name, argument) in enumerate(instructions(stream)):
            self.spend(1)
            items: list[Any] = []
            if name in ABOVE_MARK:
                items, stack = stack, below.pop()
            match name:
                case "LITERAL":
                    stack.append(argument)
                case "PUT":
                    if argument > count:
                        raise ValueError(f"its {count + 1:,}. instruction uses the place {argument:,} of its memory")
                    memory.extend([EMPTY] * (argument + 1 - len(memory)))
                    memory[argument] = stack[-1]
                case "GET":
                    if memory[argument] is EMPTY:
                        raise LookupError(argument)
                    stack.append(memory[argument])
                case "MEMOIZE":
                    memory.append(stack[-1])
                case "MARK":
                    below.append(stack)
                    stack = []
                case "TUPLE0" | "TUPLE":
                    stack.append(tuple(items))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    size = int(name[-1])
                    if len(stack) < size:
                        raise LookupError(size)
                    items = stack[-size:]
                    del stack[-size:]
                    stack.append(tuple(items))
                case "EMPTY_LIST" | "LIST":
                    stack.append(items)
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    stack.append(self.put({}, items))
                case "EMPTY_SET":
                    stack.append(set())
                case "FROZENSET":
                    stack.append(frozenset(self.add(set(), items)))
                case "APPEND":
                    item = stack.pop()
                    add_to(stack[-1], [item])
                case "APPENDS":
                    add_to(stack[-1], items)
                case "SETITEM":
                    items = stack[-2:]
                    del stack[-2:]
                    self.put(stack[-1], items)
                case "SETITEMS":
                    self.put(stack[-1], items)
                case "ADDITEMS":
                    self.add(stack[-1], items)
                case "GLOBAL":
                    stack.append(self.named(as_name(*argument)))
                case "STACK_GLOBAL":
                    word = stack.pop()
                    stack.append(self.named(as_name(stack.pop(), word)))
                case "REDUCE":
                    arguments = checked_tuple(stack.pop())
                    stack.append(self.call(stack.pop(), arguments))
                case "NEWOBJ":
                    arguments = checked_tuple(stack.pop())
                    stack.append(self.make(stack.pop(), arguments))
                case "BUILD":
                    state = stack.pop()
                    build(stack[-1], state)
                case "BINPERSID":
                    stack.append(self.persistent(stack.pop()))
                case "POP":
                    if stack:
                        stack.pop()
                    else:
                        stack = below.pop()
                case "DUP":
                    stack.append(stack[-1])
                case "PROTO":
                    if argument > PROTOCOL:
                        raise ValueError(f"it is a pickle of protocol {argument}; at most {PROTOCOL} is known")
                case "FRAME" | "POP_MARK":
                    pass
                case "STOP":
                    return stack.pop()
        raise ValueError("it has no end")


def checked_tuple(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise ValueError("the arguments of a call are no tuple")
    return value


def add_to(target: Any, items: list[Any]) -> None:
    """Append to a list, or to an object that is also one."""
    if isinstance(target, Record):
        target.items = target.items or []
        target.items.extend(items)
    else:
        list.extend(target, items)  # a TypeError unless it is a list


def as_name(module: object, name: object) -> Name:
    """A name under its Python 3 module; ValueError if it is not a short printable string."""
    for text in (module, name):
        if not isinstance(text, str) or not 0 < len(text) <= NAME or not text.isprintable():
            raise ValueError("the name of a class or function is not a short printable text")
    return Name(PYTHON_2.get(str(module), str(module)), str(name))


def build(target: Any, state: Any) -> None:
    """Set the state of a record, at most once; or the version metadata of a state dict."""
    if isinstance(target, Record) and target.state is None:
        target.state = state
    elif type(target) is OrderedDict and type(state) is dict and list(state) == ["_metadata"]:
        target._metadata = state["_metadata"]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raise ValueError(f"it sets the state of a {type(target).__name__}")
