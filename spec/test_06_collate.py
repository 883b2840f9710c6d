"""Chapter 06: collation by `DataLoader`: every kind of item and container, and rejected items."""

import types
from array import array
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from reference.data.loader import DataLoader as ReferenceLoader
from spec.support.assertions import assert_equal, rejects
from spec.support.clauses import clause

Loader = Callable[..., Any]

Point = namedtuple("Point", ["x", "y"])


class Pair(NamedTuple):
    """A named tuple with types."""

    image: Any
    label: str


class Tagged(dict[str, Any]):
    """A dict with an additional attribute."""

    tag = ""


class ReadOnly(Mapping[str, Any]):
    """An immutable mapping that can be constructed from a dict."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.items_ = dict(items)

    def __getitem__(self, key: str) -> Any:
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


class Fixed(ReadOnly):
    """A mapping that cannot be constructed from a dict."""

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__({"x": x, "y": y})


class Numbers(Sequence[int]):
    """A sequence that can be constructed from a list."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = list(numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.numbers[index]

    def __len__(self) -> int:
        return len(self.numbers)


def plain(batch: Any) -> Any:
    """A batch with tensors converted to lists, and the type and attributes of each container."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, Mapping):
        return type(batch), {key: plain(part) for key, part in batch.items()}
    if isinstance(batch, str | bytes):
        return batch
    if isinstance(batch, Sequence):
        return type(batch), [plain(part) for part in batch]
    return batch


def tagged(**items: Any) -> Tagged:
    made = Tagged(items)
    made.tag = "kept"
    return made


@clause("06.loader.collate")
@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param([np.str_("a"), np.str_("b")], (list, ["a", "b"]), id="np.str_ stays"),
        pytest.param([np.bytes_(b"a"), np.bytes_(b"b")], (list, [b"a", b"b"]), id="np.bytes_ stays"),
        pytest.param([("a", 1), ("b", 2)], (list, [(tuple, ["a", "b"]), [1, 2]]), id="texts in a tuple stay a tuple"),
        pytest.param([np.bool_(True), np.bool_(False)], [True, False], id="np.bool_ becomes bool"),
        pytest.param(
            [UserDict(x=1), UserDict(x=2)], (UserDict, {"x": [1, 2]}), id="a UserDict stays one"
        ),
        pytest.param(
            [OrderedDict(y=1, x=2), OrderedDict(y=3, x=4)],
            (OrderedDict, {"y": [1, 3], "x": [2, 4]}),
            id="an OrderedDict keeps its order",
        ),
        pytest.param(
            [defaultdict(int, x=1), defaultdict(int, x=2)], (defaultdict, {"x": [1, 2]}), id="a defaultdict stays one"
        ),
        pytest.param(
            [types.MappingProxyType({"x": 1}), types.MappingProxyType({"x": 2})],
            (types.MappingProxyType, {"x": [1, 2]}),
            id="a read-only view of a dict too",
        ),
        pytest.param([ReadOnly({"x": 1}), ReadOnly({"x": 2})], (ReadOnly, {"x": [1, 2]}), id="a mapping of a dict"),
        pytest.param(
            [Fixed(1, 2), Fixed(3, 4)], (dict, {"x": [1, 3], "y": [2, 4]}), id="a mapping that cannot be made of a dict"
        ),
        pytest.param([deque([1, 2]), deque([3, 4])], (deque, [[1, 3], [2, 4]]), id="a deque stays one"),
        pytest.param([UserList([1, 2]), UserList([3, 4])], (UserList, [[1, 3], [2, 4]]), id="a UserList too"),
        pytest.param([range(2), range(5, 7)], (list, [[0, 5], [1, 6]]), id="a range becomes a list"),
        pytest.param([array("i", [1, 2]), array("i", [3, 4])], (list, [[1, 3], [2, 4]]), id="so does an array.array"),
        pytest.param([Numbers([1, 2]), Numbers([3, 4])], (Numbers, [[1, 3], [2, 4]]), id="a sequence made of a list"),
        pytest.param([Point(1, 2), Point(3, 4)], (Point, [[1, 3], [2, 4]]), id="a named tuple keeps its name"),
        pytest.param(
            [Pair(torch.ones(2), "a"), Pair(torch.zeros(2), "b")],
            (Pair, [[[1.0, 1.0], [0.0, 0.0]], (tuple, ["a", "b"])]),
            id="a typed named tuple too",
        ),
        pytest.param([torch.Size([1, 2]), torch.Size([3, 4])], (list, [[1, 3], [2, 4]]), id="a Size becomes a list"),
        pytest.param(
            [{"x": UserDict(y=deque([Point(1, "a")]))}, {"x": UserDict(y=deque([Point(2, "b")]))}],
            (dict, {"x": (UserDict, {"y": (deque, [(Point, [[1, 2], (tuple, ["a", "b"])])])})}),
            id="containers in containers",
        ),
    ],
)  # fmt: skip
def test_containers_keep_the_type(DataLoader: Loader, items: list[Any], expected: Any) -> None:
    (batch,) = DataLoader(items, batch_size=2)
    assert plain(batch) == expected


@clause("06.loader.collate")
def test_containers_keep_attributes_and_items_are_unchanged(DataLoader: Loader) -> None:
    items = [tagged(x=1), tagged(x=2)]
    (batch,) = DataLoader(items, batch_size=2)
    assert (type(batch), batch.tag, batch["x"].tolist()) == (Tagged, "kept", [1, 2])
    assert [dict(item) for item in items] == [{"x": 1}, {"x": 2}]
    lists = [deque([1], maxlen=3), deque([2], maxlen=3)]
    (many,) = DataLoader(lists, batch_size=2)
    assert many.maxlen == 3
    assert lists == [deque([1]), deque([2])]


@clause("06.loader.single_items")
@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param(UserDict(x=np.array([1, 2])), (UserDict, {"x": [1, 2]}), id="a UserDict"),
        pytest.param(deque([np.int64(1)]), (deque, [1]), id="a deque"),
        pytest.param(range(2), (list, [0, 1]), id="a range"),
        pytest.param(Point(np.array([1]), "a"), (Point, [[1], "a"]), id="a named tuple"),
        pytest.param((np.array([1]), b"a"), (list, [[1], b"a"]), id="a tuple"),
        pytest.param(np.str_("a"), "a", id="a text of NumPy's"),
        pytest.param(Fixed(np.array([1]), 2), (dict, {"x": [1], "y": 2}), id="a mapping that cannot be made of a dict"),
    ],
)
def test_convert_applies_to_each_part_of_a_single_item(DataLoader: Loader, item: Any, expected: Any) -> None:
    (found,) = DataLoader([item], batch_size=None)
    assert plain(found) == expected


@clause("06.loader.collate")
@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param([1, 2.5], torch.tensor([1.0, 2.5]), id="an int and a float become float32"),
        pytest.param([0.5, 1], torch.tensor([0.5, 1.0], dtype=torch.float64), id="a float and an int become float64"),
        pytest.param([torch.tensor([1]), torch.tensor([0.5])], torch.tensor([[1.0], [0.5]]), id="dtypes are promoted"),
        pytest.param([np.float64(0.5)] * 2, torch.tensor([0.5, 0.5], dtype=torch.float64), id="np.float64"),
        pytest.param([np.float16(0.5)] * 2, torch.tensor([0.5, 0.5], dtype=torch.float16), id="np.float16"),
        pytest.param([np.uint8(255)] * 2, torch.tensor([255, 255], dtype=torch.uint8), id="np.uint8"),
        pytest.param([2**40, 1], torch.tensor([2**40, 1]), id="large whole numbers"),
    ],
)
def test_numbers_of_several_kinds_become_one_tensor(
    DataLoader: Loader, items: list[Any], expected: torch.Tensor
) -> None:
    (batch,) = DataLoader(items, batch_size=2)
    assert_equal(batch, expected)


@clause("06.loader.collate_rejects")
@pytest.mark.parametrize(
    "items",
    [
        pytest.param([torch.tensor(1.0), 0.5], id="a tensor and a float"),
        pytest.param([torch.zeros(2), None], id="a tensor and nothing"),
        pytest.param([0.5, torch.zeros(2)], id="a float and a tensor of two numbers"),
        pytest.param([1, "a"], id="a number and a text"),
        pytest.param([np.float32(1), "a"], id="a number of NumPy's and a text"),
        pytest.param([{"x": 1}, {"y": 1}], id="dicts of different keys"),
        pytest.param([{"x": 1}, 1], id="a dict and a number"),
        pytest.param([(1, 2), 3], id="a tuple and a number"),
        pytest.param([np.array(["a"])] * 2, id="arrays of texts"),
        pytest.param([np.array([object()])] * 2, id="arrays of objects"),
        pytest.param([{1, 2}] * 2, id="sets"),
    ],
)
def test_items_of_different_types_are_not_collated(DataLoader: Loader, items: list[Any]) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError, KeyError)):
        list(DataLoader(items, batch_size=2))


@clause("06.loader.collate_rejects")
@pytest.mark.parametrize(
    ("items", "naming"),
    [
        pytest.param([torch.tensor(1.0), 0.5], "different types.*Tensor, float", id="a tensor and a float"),
        pytest.param([0.5, torch.zeros(2)], "different types.*Tensor, float", id="a float and a tensor"),
        pytest.param([(torch.zeros(2), 1), (0.5, 1)], "different types.*Tensor, float", id="inside a tuple"),
        pytest.param([1, "a"], "different types.*int, str", id="a number and a text"),
        pytest.param([torch.zeros(2), torch.zeros(3)], r"shapes \[\(2,\), \(3,\)\]", id="tensors of two shapes"),
        pytest.param([(1, 2), (3,)], r"equal size.*\[1, 2\] parts", id="tuples of two lengths"),
        pytest.param([{"x": 1}, {"y": 1}], "keys x", id="dicts of different keys"),
        pytest.param([{"x": 1}, 1], "different types.*dict, int", id="a dict and a number"),
        pytest.param([(1, 2), 3], "different types.*int, tuple", id="a tuple and a number"),
        pytest.param([np.array(["a"])] * 2, "array of <U1", id="arrays of texts"),
        pytest.param([np.array([object()])] * 2, "array of object", id="arrays of objects"),
        pytest.param([torch.eye(2).to_sparse()] * 2, "sparse", id="sparse tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_collate_error_names_the_different_types(items: list[Any], naming: str) -> None:
    with rejects(naming=naming):
        list(ReferenceLoader(items, batch_size=2))
