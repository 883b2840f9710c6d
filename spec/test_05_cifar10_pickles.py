"""Chapter 05: CIFAR-10 from its official files: hostile and damaged pickles in them."""

import contextlib
import gzip
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.data.cifar10 import CIFAR10
from reference.errors import InputError
from spec.support import cifar_archives
from spec.support.cifar_archives import (
    ARCHIVE,
    CLASSES,
    FOLDER,
    SmallCifar10,
    members,
    meta,
    python2_pickle,
    small_cifar10,
    write_archive,
    write_folder,
    write_packed,
)
from spec.support.cifar_checks import MIB, measured_refusal, refusal
from spec.support.clauses import clause


@pytest.fixture(scope="module")
def small() -> SmallCifar10:
    return small_cifar10()


# Pickles


def string(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


class Runs:
    """An object that is pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def programs(victim: str) -> dict[str, bytes]:
    """Pickles that make the file `victim` when Python's own reader opens them."""
    touch = f"open({victim!r}, 'w').close()"
    as_key = b"\x80\x02}" + call("builtins", "exec", string(touch)) + b"K\x01s."
    installed = b"ibuiltins\nexec\n"
    return {
        "os.system": pickle.dumps(Runs(os.system, f"touch {victim}")),
        "builtins.eval": pickle.dumps(Runs(eval, touch)),
        "builtins.exec in protocol 0": pickle.dumps(Runs(exec, touch), 0),
        "builtins.exec of Python 2": b"\x80\x02" + call("__builtin__", "execfile", string(victim)) + b".",
        "a call as a dictionary key": as_key,
        "a call in a batch": pickle.dumps({"data": Runs(exec, touch), "labels": []}),
        "getattr of a permitted module": b"\x80\x02"
        + call("builtins", "getattr", b"cnumpy\nndarray\n", string("__class__"))
        + b".",
        "a dotted name": b"\x80\x04" + string("numpy") + string("ndarray.__class__.__base__") + b"\x93.",
        "numpy's own runner": b"\x80\x02" + call("numpy.testing", "runstring", string(touch), b"}") + b".",
        "INST": b"(" + string(touch) + installed + b".",
        "OBJ": b"(cbuiltins\nexec\n" + string(touch) + b"o.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\n)}\x92.",
        "a persistent id": b"\x80\x02Pexec\n.",
        "a binary persistent id": b"\x80\x02" + string(touch) + b"Q.",
        "an extension code": b"\x80\x02\x82\x01.",
        "an out-of-band buffer": b"\x80\x05\x97.",
    }


PROGRAMS = tuple(programs("FILE"))


@clause("05.batch.no_execution")
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_in_a_pickle_is_executed(program: str, name: str, small: SmallCifar10, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    folder = write_folder(tmp_path, {**small.files, name: programs(str(victim))[program]})
    text = refusal(tmp_path)
    assert text.startswith(f"{folder / name}: not a file of CIFAR-10 (")
    assert text.endswith("); nothing in it was run")
    assert not victim.exists()


@clause("05.batch.no_execution")
@pytest.mark.parametrize("program", ["os.system", "builtins.eval", "builtins.exec in protocol 0", "INST", "OBJ"])
def test_hostile_pickles_run_code_in_pythons_unpickler(program: str, tmp_path: Path) -> None:
    with contextlib.suppress(Exception):
        pickle.loads(programs(str(tmp_path / "victim"))[program])
    assert (tmp_path / "victim").exists()


@clause("05.batch.no_execution")
def test_the_error_names_the_forbidden_function(small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, {**small.files, "test_batch": pickle.dumps(Runs(eval, "1"))})
    assert "(it asks for 'builtins.eval', which no batch of images needs)" in refusal(tmp_path)


NUMBER_OF_BYTES = struct.pack("<Q", 1 << 42)
HOSTILE = {
    "4 TiB of bytes": (b"\x80\x04\x8e" + NUMBER_OF_BYTES + b"abc.", "4,398,046,511,104 bytes are to follow"),
    "4 TiB of a bytearray": (b"\x80\x05\x96" + NUMBER_OF_BYTES + b"abc.", "4,398,046,511,104 bytes are to follow"),
    "a frame of 4 TiB": (b"\x80\x04\x95" + NUMBER_OF_BYTES + b"}.", "not a dictionary with data"),
    "a number of 2 GiB": (
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        "cut off: 2,147,483,647 bytes",
    ),
    "a memo of 4,294,967,295 places": (b"\x80\x02}r\xff\xff\xff\xff.", "the place 4,294,967,295 of its memory"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "not a dictionary with data"),
    "a call of itself": (b"\x80\x02cnumpy\nndarray\nq\x00h\x00\x85Rq\x00h\x00b.", "not a dictionary with data"),
    "state for a string": (b"\x80\x02U\x01a}b.", "it sets the state of a str"),
    "a call of a string": (b"\x80\x02U\x01a)R.", "it makes an object of something that is no class"),
    "items for a class": (b"\x80\x02cnumpy\nndarray\nNa.", "make no sense"),
    "settings for a class": (b"\x80\x02cnumpy\nndarray\nU\x01aNs.", "it sets an entry of a Name"),
    "colliding numbers as keys": (b"\x80\x02}(" + b"K\x01N" * 9 + b"u.", "key is not a short printable string"),
    "an uneven dictionary": (b"\x80\x02}(U\x01au.", "zip"),
    "a long key": (b"\x80\x02}" + b"U\xff" + b"k" * 255 + b"Ns.", "key is not a short printable string"),
    "nothing from the memo": (b"\x80\x02h\x07.", "make no sense"),
    "nothing on the stack": (b"\x80\x02.", "make no sense"),
    "no end": (b"\x80\x02}", "it has no end"),
    "no bytes": (b"", "it has no end"),
    "an unknown instruction": (b"\x80\x02\xff.", "it has the instruction b'\\xff'"),
    "a JPEG image": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "it has the instruction b'\\xff'"),
    "a list": (pickle.dumps([1, 2]), "not a dictionary with data and a list of labels"),
    "no labels": (pickle.dumps({"data": None}), "not a dictionary with data and a list of labels"),
    "CIFAR-100's labels": (
        pickle.dumps({"data": None, "fine_labels": [1]}),
        "not a dictionary with data and a list of labels",
    ),
    "text as labels": (pickle.dumps({"data": None, "labels": "12"}), "not a dictionary with data and a list of labels"),
}


@clause("05.batch.content")
@pytest.mark.parametrize("content", HOSTILE)
def test_a_file_that_is_no_batch_is_refused_in_little_memory(content: str, small: SmallCifar10, tmp_path: Path) -> None:
    program, message = HOSTILE[content]
    folder = write_folder(tmp_path, {**small.files, "test_batch": program})
    text, peak = measured_refusal(tmp_path)
    assert text.startswith(f"{folder / 'test_batch'}: not a file of CIFAR-10 (")
    assert message in text
    assert peak < 8 * MIB, "a few hundred bytes an instruction"


NESTED = {
    "lists": (b"\x80\x02" + b"]" * 99_999 + b"a" * 99_998 + b".", "not a dictionary with data"),
    "tuples": (b"\x80\x02)" + b"\x85" * 190_000 + b".", "not a dictionary with data"),
    "tuples as a key": (b"\x80\x02})" + b"\x85" * 190_000 + b"Ns.", "key is not a short printable string"),
    "calls": (b"\x80\x02cnumpy\nndarray\nq\x00" + b"h\x00" * 60_000 + b"\x85R" * 59_999 + b".", "not a dictionary"),
    "marks": (b"\x80\x02" + b"(" * 190_000 + b".", "make no sense"),
    "more than a batch has instructions": (b"\x80\x02" + b"N" * 300_000 + b".", "more than 200,000 instructions"),
}


def probed_memory() -> bytes:
    """Memo indices that would make a dictionary slow (see `probed` in test_17_legacy_bombs.py)."""
    place, code = 1, b"\x80\x02N"
    for _ in range(90_000):
        code += b"r" + struct.pack("<I", place)
        place = (5 * place + 1) % (1 << 18)
    return code + b"."


@clause("05.batch.content")
@pytest.mark.slow
def test_colliding_dictionary_keys_do_not_slow_down_the_reader(small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, {**small.files, "test_batch": probed_memory()})
    assert "its 4. instruction uses the place 6 of its memory" in refusal(tmp_path)
    numbers = b"".join(b"J" + struct.pack("<i", 1 << number) + b"N" for number in range(30))
    for code in (b"}(" + numbers + b"u", b"\x8f(" + numbers + b"\x90", b"(" + numbers + b"\x91", b"(" + numbers + b"d"):
        (tmp_path / FOLDER / "test_batch").write_bytes(b"\x80\x04" + code + b".")
        assert "key is not a short printable string" in refusal(tmp_path)


@pytest.mark.slow
@clause("05.batch.content")
@pytest.mark.parametrize("content", NESTED)
def test_deeply_nested_pickles_are_refused_without_a_crash(content: str, small: SmallCifar10, tmp_path: Path) -> None:
    program, message = NESTED[content]
    write_folder(tmp_path, {**small.files, "test_batch": program})
    assert message in refusal(tmp_path)


def array(shape: tuple[int, ...] = (2, 3072), dtype: Any = np.uint8, order: Any = "C") -> np.ndarray:
    return np.zeros(shape, dtype, order)


NO_ARRAY = "data is not a uint8 array (n, 3072) in C order"
NO_LABEL = "a label is not a whole number from 0 to 9"
CONTENTS: dict[str, tuple[Any, Any, str]] = {
    "signed bytes": (array(dtype=np.int8), [1, 2], NO_ARRAY),
    "floats": (array(dtype=np.float32), [1, 2], NO_ARRAY),
    "objects": (array(dtype=object), [1, 2], NO_ARRAY),
    "fields": (array(dtype=[("red", "u1")]), [1, 2], NO_ARRAY),
    "another width": (array((2, 3071)), [1, 2], NO_ARRAY),
    "unpacked images": (array((2, 3, 32, 32)), [1, 2], NO_ARRAY),
    "columns first": (array(order="F"), [1, 2], NO_ARRAY),
    "a list as data": ([[0] * 3072] * 2, [1, 2], NO_ARRAY),
    "bytes as data": (bytes(6144), [1, 2], NO_ARRAY),
    "no images": (array((0, 3072)), [], "data has 0 bytes"),
    "a label too few": (array(), [1], "1 labels for 2 images"),
    "a label too many": (array(), [1, 2, 3], "3 labels for 2 images"),
    "a label too large": (array(), [1, 10], NO_LABEL),
    "a negative label": (array(), [1, -1], NO_LABEL),
    "a giant label": (array(), [1, 10**5000], "a whole number has 2,077 bytes"),
    "a fraction": (array(), [1, 2.0], NO_LABEL),
    "a truth value": (array(), [1, True], NO_LABEL),
    "a string label": (array(), [1, "2"], NO_LABEL),
    "no label": (array(), [1, None], NO_LABEL),
}


@clause("05.batch.content")
@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_batch_of_other_content_is_refused(content: str, protocol: int, small: SmallCifar10, tmp_path: Path) -> None:
    data, labels, message = CONTENTS[content]
    write_folder(tmp_path, {**small.files, "test_batch": pickle.dumps({"data": data, "labels": labels}, protocol)})
    assert f"test_batch: not a file of CIFAR-10 ({message}" in refusal(tmp_path)


@clause("05.batch.content")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x06M\x00\x0c\x86", b"K\x07M\x00\x0c\x86", "data has 18,432 bytes"),
        (b"K\x06M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86", "data has 18,432 bytes"),
        (b"K\x06M\x00\x0c\x86", b"J\xff\xff\xff\xffM\x00\x0c\x86", "data has 18,432 bytes"),
        (b"K\x06M\x00\x0c\x86", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fM\x00\x0c\x86", "data has 18,432 bytes"),
        (b"U\x02u1", b"U\x02O8", NO_ARRAY),
        (b"U\x02u1", b"U\x02V1", NO_ARRAY),
        (b"\x89T", b"\x88T", NO_ARRAY),
        (b"K\x00\x85U\x01b\x87R", b"K\x00\x85U\x01b\x87", "it sets the state of a tuple"),
    ],
    ids=[
        *("more rows than bytes", "2,147,483,647 rows", "-1 rows", "2**63 - 1 rows"),
        *("object dtype", "void dtype", "Fortran order", "a tuple for an array"),
    ],
)
def test_a_genuine_batch_with_one_wrong_word_is_refused(
    old: bytes, new: bytes, message: str, small: SmallCifar10, tmp_path: Path
) -> None:
    genuine = small.files["test_batch"]
    assert genuine.count(old) == 1
    write_folder(tmp_path, {**small.files, "test_batch": genuine.replace(old, new)})
    assert message in refusal(tmp_path)


@clause("05.batch.content")
@pytest.mark.parametrize(
    "names",
    [None, "airplane", [], ["cat", 3], ["cat", "cat"], ["cat", None], ["c" * 101], ["cat\x1b[2J"], {"cat": 1}],
    ids=repr,
)
def test_invalid_class_names_are_refused(names: object, small: SmallCifar10, tmp_path: Path) -> None:
    write_folder(tmp_path, {**small.files, "batches.meta": pickle.dumps({"label_names": names}, 2)})
    assert "batches.meta: not a file of CIFAR-10 (" in refusal(tmp_path)


@clause("05.batch.content")
def test_labels_without_a_class_name_are_refused(small: SmallCifar10, tmp_path: Path) -> None:
    largest = max(small.labels["test_batch"])
    write_folder(tmp_path, {**small.files, "batches.meta": python2_pickle(meta(CLASSES[:largest]))})
    assert f"a label is not a whole number from 0 to {largest - 1}" in refusal(tmp_path)


@clause("05.archive.damage")
def test_an_error_inside_an_archive_names_archive_and_member(small: SmallCifar10, tmp_path: Path) -> None:
    md5 = write_archive(tmp_path, members({**small.files, "data_batch_3": pickle.dumps(Runs(eval, "1"))}))
    text = refusal(tmp_path, train=True, archive_md5=md5)
    assert text.startswith(
        f"{tmp_path / ARCHIVE / 'data_batch_3'}: not a file of CIFAR-10 (it asks for 'builtins.eval'"
    )


def mutate(content: bytes, generator: random.Random) -> bytes:
    """The file with a few bytes changed, removed, duplicated or replaced by instructions, mostly outside the pixels."""
    mutant = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 5))):
        around = generator.choice((0, len(mutant), generator.randrange(len(mutant) + 1)))
        place = min(max(around + generator.randrange(-300, 300), 0), len(mutant) - 1)
        length = generator.randrange(1, 5)
        match generator.randrange(4):
            case 0:
                mutant[place] = generator.randrange(256)
            case 1:
                del mutant[place : place + length]
            case 2:
                mutant[place:place] = mutant[place : place + length]
            case 3:
                mutant[place] = generator.choice(
                    b"(.0123FGIJKLMNPQRSTUVXabcdeghijlopqrstu}])\x80\x85\x86\x87\x88\x8e\x93"
                )
    return bytes(mutant)


@pytest.mark.slow
@clause("05.batch.content")
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_damaged_batch_is_either_read_or_refused(name: str, tmp_path: Path) -> None:
    generator = random.Random(5)
    files = small_cifar10(n=1).files
    folder = write_folder(tmp_path, files)
    outcomes = {True: 0, False: 0}
    for _ in range(500):
        (folder / name).write_bytes(mutate(files[name], generator))
        try:
            dataset = CIFAR10(tmp_path, train=False, archive_md5=None)
        except InputError:
            outcomes[False] += 1
        else:
            assert dataset.images.shape == (1, 3, 32, 32)
            assert 0 <= dataset.targets[0] < len(dataset.classes)
            assert all(isinstance(text, str) for text in dataset.classes)
            outcomes[True] += 1
    assert min(outcomes.values()) > 50, "both happen: some bytes are pixels or letters, others are instructions"


@pytest.mark.slow
@clause("05.archive.damage")
def test_a_damaged_archive_is_either_read_or_refused(tmp_path: Path) -> None:
    generator = random.Random(5)
    content = cifar_archives.tar(members(small_cifar10(n=1).files))
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    refused = 0
    for _ in range(300):
        mutant = bytearray(content)
        at = generator.choice(headers)
        for _ in range(3):
            mutant[at + generator.randrange(512)] = generator.choice(b"\0/.0179x\xff\x80SKgLV")
        mutant[at + 148 : at + 156] = b" " * 8  # the checksum of the header is corrected
        mutant[at + 148 : at + 156] = b"%06o\0 " % sum(mutant[at : at + 512])
        write_packed(tmp_path, gzip.compress(bytes(mutant), compresslevel=1))
        try:
            assert len(CIFAR10(tmp_path, train=False, archive_md5=None)) == 1
        except InputError:
            refused += 1
    assert 30 < refused < 300
