"""The functions that genuine files of `torch.save` call, reimplemented: tensors, and standard containers."""

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reference.untrusted.bounds import DIMENSIONS, NAME, OVERLAP, PRETRAINED, VIEWS
from reference.untrusted.pickle_machine import ForeignError, Name, PickleMachine, Record

# Storages


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of a storage: the dtype of its numbers; None for plain bytes."""

    dtype: torch.dtype | None

    @property
    def width(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A part of the bytes of a storage."""

    kind: Kind
    buffer: Tensor


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": None,
}
DTYPES = {
    **{str(dtype).removeprefix("torch."): dtype for dtype in STORAGES.values() if dtype is not None},
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "complex32": torch.complex32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
DEVICES = ("cpu", "cuda", "mps", "xpu", "meta", "xla", "hpu", "mtia", "hip", "mkldnn", "privateuseone")
NUMPY_NUMBERS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b",
    "u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?",
}  # fmt: skip


class TorchMachine(PickleMachine):
    """The pickle machine with the calls that files of `torch.save` need.

    Args:
        numbers: returns the bytes of a storage, from its key, its kind and its length.
        size: of the whole file.
        foreign: whether the file's byte order differs from this machine's.

    Attributes:
        storages: the bytes and the kind of each storage, by key.
        sources: source code by the name of its class.
        allowance: bytes that the tensors may have together beyond the limit given by the storages.
    """

    allowance = 0

    def __init__(self, numbers: Callable[[str, "Kind", int], Tensor], size: int, *, foreign: bool = False) -> None:
        super().__init__()
        self.numbers, self.foreign = numbers, foreign
        self.storages: dict[str, tuple[Tensor, Kind]] = {}
        self.sources: dict[str, str] = {}
        self.letters = size  # the length of strings that encode bytes
        self.shown = 0  # bytes of all tensors, each counted as if it had separate memory

    def named(self, name: Name) -> object:
        if name.module in ("torch", "torch.cuda", "torch.storage"):
            if name.name in STORAGES:
                return Kind(STORAGES[name.name])
            if name.module == "torch" and name.name in DTYPES:
                return DTYPES[name.name]
        if name.name.endswith("Storage") and name.module.startswith("torch"):
            raise ValueError(f"it holds a {name}: quantized and other special numbers are not read")
        return name

    def call(self, function: object, arguments: tuple[Any, ...]) -> object:
        if isinstance(function, Name):
            if function in CALLS:
                return CALLS[function](self, *arguments)
            if function in NOTED:
                return Record(function, arguments)
            if function in UNREAD:
                raise ValueError(f"it holds a tensor of a kind that is not read ({function})")
        return super().call(function, arguments)

    def persistent(self, identity: object) -> object:
        """A storage, or a class with its source code."""
        match identity:
            case ("module", Name() as name, _, source):
                if isinstance(source, str):
                    self.sources[str(name)] = source
                return name
            case ("storage", Kind() as kind, str(key), str(), int(count)):
                return Storage(kind, self.bytes_of(key, kind, count))
            case ("storage", Kind() as kind, str(key), str(), int(count), None):
                return Storage(kind, self.bytes_of(key, kind, count))
            case ("storage", Kind() as kind, str(key), str(), int(count), (str(), int(first), int(size))):
                buffer = self.bytes_of(key, kind, count)  # PyTorch 0: a storage that is a part of another one
                if not 0 <= first <= first + size <= count:
                    raise ValueError(f"elements {first} to {first + size} of storage {key!r}, which has {count:,}")
                return Storage(kind, buffer[first * kind.width : (first + size) * kind.width])
        raise ValueError("it refers to something that is neither a storage nor a class")

    def bytes_of(self, key: str, kind: Kind, count: int) -> Tensor:
        if type(count) is not int or count < 0:
            raise ValueError(f"storage {key[:50]!r} is to have {count} elements")
        if key not in self.storages:
            self.storages[key] = self.numbers(key, kind, count * kind.width), kind
        buffer, first = self.storages[key]
        if len(buffer) != count * kind.width or first != kind:
            raise ValueError(f"storage {key[:50]!r} has two different descriptions")
        return buffer

    def check(self) -> None:
        """Run the checks that need all numbers.

        Raises:
            ValueError: a Boolean is neither 0 nor 1; or the tensors would take far more memory than their storages if
            each of them had separate memory.
        """
        truths = [buffer for buffer, kind in self.storages.values() if kind.dtype == torch.bool and len(buffer)]
        if any(buffer.max() > 1 for buffer in truths):
            raise ValueError("a truth value is neither true nor false")
        held = sum(len(buffer) for buffer, _ in self.storages.values())
        if self.shown > VIEWS * held + OVERLAP * 4 + self.allowance:
            raise ValueError(
                f"its tensors have {self.shown:,} bytes, but the file holds only {held:,} bytes of numbers"
            )


class PlainMachine(TorchMachine):
    """The pickle machine for plain data: containers, numbers, strings and tensors, and no object of any other class."""

    def named(self, name: Name) -> object:
        found = super().named(name)
        if found is name and name not in PLAIN:
            raise ForeignError(f"it asks for {name}")
        return found

    def make(self, kind: object, arguments: tuple[Any, ...]) -> Record:
        raise ForeignError(f"it makes an object of the class {kind if isinstance(kind, Name) else '?'}")


class StateMachine(PlainMachine):
    """The pickle machine for the state dict of a network of known size; the tensors are copied into the network."""

    allowance = PRETRAINED


# Calls: the functions that files may request, each reimplemented. They take the machine and the file's arguments.


def rebuild_tensor(machine: TorchMachine, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    return view(machine, storage, offset, size, stride, storage.kind.dtype)


def rebuild_tensor_v2(
    machine: TorchMachine, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, bits: Any = None
) -> Tensor:
    return with_gradient(view(machine, storage, offset, size, stride, storage.kind.dtype), grad, bits)


def rebuild_tensor_v3(
    machine: TorchMachine, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
    bits: Any = None,
) -> Tensor:  # fmt: skip
    if machine.foreign:
        raise ValueError("it holds numbers of a newer kind in another byte order, which are not read")
    return with_gradient(view(machine, storage, offset, size, stride, dtype), grad, bits)


def rebuild_parameter(machine: TorchMachine, data: Any, grad: Any = True, hooks: Any = None, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter is made of something that is no tensor")
    return nn.Parameter(data.detach(), requires_grad=checked_gradient(data, grad))


def rebuild_from_type(machine: TorchMachine, function: Any, kind: Any, arguments: Any, state: Any) -> object:
    """A tensor with additional attributes, which are dropped."""
    if function not in (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor_v3")):
        raise ValueError("it rebuilds a tensor in a way that is not known")
    return machine.call(function, arguments)


def view(machine: TorchMachine, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> Tensor:
    """A tensor on a storage; ValueError unless the tensor is entirely inside."""
    if type(storage) is not Storage or type(dtype) is not torch.dtype:
        raise ValueError("a tensor has no storage, or numbers of no known kind")
    few_numbers("the offset of a tensor", (offset,))
    few_numbers("the size of a tensor", size)
    few_numbers("the stride of a tensor", stride)
    if len(size) != len(stride):
        raise ValueError(f"a tensor has {len(size)} sizes, but {len(stride)} strides")
    machine.spend(len(size))
    held = len(storage.buffer) // dtype.itemsize
    elements, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        elements, last = elements * length, last + (length - 1) * step
    if elements > max(held, OVERLAP + machine.allowance // 4) or (elements and last >= held) or offset > held:
        raise ValueError(f"a tensor of {elements:,} elements lies outside of its storage, which has {held:,}")
    machine.shown += elements * dtype.itemsize
    start = storage.buffer.storage_offset()  # only a tensor on a part of a storage begins later
    if start % dtype.itemsize:
        raise ValueError("a tensor begins in the middle of a number")
    tensor = torch.empty(0, dtype=dtype, device="cpu")
    return tensor.set_(storage.buffer.untyped_storage(), start // dtype.itemsize + offset, tuple(size), tuple(stride))


def few_numbers(what: str, numbers: Any) -> Any:
    """Return `numbers` if it is a tuple of at most `DIMENSIONS` non-negative integers; ValueError otherwise."""
    if not isinstance(numbers, tuple | list) or len(numbers) > DIMENSIONS:
        raise ValueError(f"{what} is not a tuple of at most {DIMENSIONS} numbers")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError(f"{what} is negative, or not made of whole numbers")
    return numbers


def with_gradient(tensor: Tensor, grad: Any, bits: Any) -> Tensor:
    if bits:
        raise ValueError("it holds a tensor that is conjugated or negated on the fly, which is not read")
    return tensor.requires_grad_(checked_gradient(tensor, grad))


def checked_gradient(tensor: Tensor, grad: Any) -> bool:
    if type(grad) is not bool or (grad and not (tensor.is_floating_point() or tensor.is_complex())):
        raise ValueError("a tensor wants a gradient that it cannot have")
    return grad


def ordered(machine: TorchMachine, pairs: Any = ()) -> OrderedDict[Any, Any]:
    """`OrderedDict()`, or of the pairs that Python 2 passes."""
    if type(pairs) not in (list, tuple):
        raise ValueError("an OrderedDict is made of something else than pairs")
    machine.spend(len(pairs))
    return machine.put(OrderedDict(), [part for key, value in pairs for part in (key, value)])


def mapping(machine: TorchMachine, argument: Any = None) -> dict[Any, Any]:
    """`dict()`; `defaultdict(kind)`, followed by its entries; `Counter({…})`."""
    if argument is None or type(argument) is Name:
        return {}
    machine.spend(len(argument))
    return machine.put({}, [part for entry in dict.items(argument) for part in entry])


def collection(kind: Callable[..., Any]) -> Callable[..., Any]:
    def call(machine: TorchMachine, items: Any = ()) -> Any:
        if type(items) not in (list, tuple):
            raise ValueError(f"a {kind.__name__} is made of something else than a list")
        machine.spend(len(items))
        return kind(machine.add(set(), items) if kind in (set, frozenset) else items)

    return call


def size_of(machine: TorchMachine, sizes: Any) -> torch.Size:
    return torch.Size(few_numbers("a torch.Size", sizes))


def device(machine: TorchMachine, kind: Any, index: Any = None) -> torch.device:
    if kind not in DEVICES or not (index is None or (type(index) is int and 0 <= index < 128)):
        raise ValueError("it names a device that is not known")
    return torch.device(kind) if index is None else torch.device(kind, index)


def encoded(machine: TorchMachine, text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes in Python 3's encoding for Python 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("it holds bytes in an encoding that is not latin1")
    machine.letters -= len(text)
    if machine.letters < 0:
        raise ValueError("it holds more bytes than were read")
    return text.encode("latin-1")


def byte_array(machine: TorchMachine, content: Any = b"", encoding: Any = "latin1") -> bytearray:
    if type(content) is bytes:
        content = content.decode("latin-1")
    return bytearray(encoded(machine, content, encoding))


def complex_number(machine: TorchMachine, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise ValueError("a complex number is not made of two numbers")
    return complex(real, imaginary)


def attribute(machine: TorchMachine, owner: Any, name: Any) -> object:
    """`getattr`: a function of PyTorch that a layer stores, or a method of an object; only its name is kept."""
    if owner in TORCH_FUNCTIONS and type(name) is str and name.isidentifier():
        return Name("torch", name[:NAME])
    if type(owner) is Record and owner.attributes and name == "state_dict":
        return Record(BOUND_METHOD, (owner, name))
    raise ValueError("it asks for an attribute by its name (builtins.getattr)")


def old_object(machine: TorchMachine, kind: Any, base: Any, state: Any) -> Record:
    """An object of protocol 0 or 1, or of a class of Python 2."""
    if type(kind) is not Name or base != Name("builtins", "object") or state is not None:
        raise ValueError("it makes an object in a way that is not known")
    return Record(kind)


def numpy_number(machine: TorchMachine, kind: Any, content: Any) -> object:
    """A number of NumPy as a Python number."""
    if type(kind) is not Record or kind.kind != NUMPY_DTYPE or not kind.arguments:
        raise ValueError("a number of NumPy has no type")
    order = kind.state[1] if kind.state else "<"
    code = kind.arguments[0]
    if order not in ("<", ">", "|") or code not in NUMPY_NUMBERS:
        raise ValueError(f"a number of NumPy has a type that is not read ({code!r:.50})")
    data = content.encode("latin-1") if type(content) is str else content
    return struct.unpack(f"{order.replace('|', '<')}{NUMPY_NUMBERS[code]}", data)[0]


BOUND_METHOD = Name("builtins", "getattr")
TORCH_FUNCTIONS = [Name("torch._C", f"_VariableFunctions{suffix}") for suffix in ("", "Class")]
NUMPY_DTYPE = Name("numpy", "dtype")
NUMPY_ARRAY = {Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}

CALLS: dict[Any, Callable[..., object]] = {
    Name("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor_v2,
    Name("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_v3,
    Name("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    Name("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
    Name("torch.tensor", "_rebuild_from_type"): rebuild_from_type,
    Name("torch", "Size"): size_of,
    Name("torch", "device"): device,
    Name("collections", "OrderedDict"): ordered,
    Name("collections", "defaultdict"): mapping,
    Name("collections", "Counter"): mapping,
    Name("builtins", "dict"): mapping,
    Name("builtins", "list"): collection(list),
    Name("builtins", "tuple"): collection(tuple),
    Name("builtins", "set"): collection(set),
    Name("builtins", "frozenset"): collection(frozenset),
    Name("builtins", "bytearray"): byte_array,
    Name("builtins", "complex"): complex_number,
    BOUND_METHOD: attribute,
    Name("_codecs", "encode"): encoded,
    Name("copyreg", "_reconstructor"): old_object,
    Name("numpy.core.multiarray", "scalar"): numpy_number,
    Name("numpy._core.multiarray", "scalar"): numpy_number,
}
"""The functions that a file may request, by their exact names."""

PLAIN = {
    Name("torch._utils", "_rebuild_tensor_v2"),
    Name("torch._utils", "_rebuild_tensor_v3"),
    Name("torch._utils", "_rebuild_parameter"),
    Name("collections", "OrderedDict"),
}
"""The calls for plain data."""

NOTED = {
    NUMPY_DTYPE,
    *NUMPY_ARRAY,
    Name("functools", "partial"),
    Name("torch.serialization", "_get_layout"),
    *(
        Name(module, f"{pure}{system}Path")
        for module in ("pathlib", "pathlib._local")  # the second by Python 3.13
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
    *(Name("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(Name("builtins", name) for name in ("range", "xrange", "slice")),  # protocol 2 writes range as xrange
    *(
        Name("types", "SimpleNamespace"),
        Name("collections", "deque"),
        Name("decimal", "Decimal"),
        Name("uuid", "UUID"),
        Name("fractions", "Fraction"),
    ),
    *(Name("numpy.random._pickle", f"__{name}_ctor") for name in ("generator", "bit_generator", "randomstate")),
}
"""Functions that harmless files request besides a network; they are recorded but never called."""

UNREAD = {
    Name("torch._utils", name)
    for name in (
        "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor", "_rebuild_nested_tensor",
        "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_numpy",
        "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_xla_tensor", "_rebuild_mkldnn_tensor",
    )
}  # fmt: skip
"""Tensors of special kinds, which are rejected with their name."""
