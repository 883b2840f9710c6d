"""Manipulated archives of `torch.save` in which two readers would find different content.

A zip archive stores most facts twice, and readers use different copies. Each function of `LIES` takes the bytes of an
honest archive and changes one thing; checksums and places of everything else are right.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Parts:
    """The parts of an archive.

    Attributes:
        body: headers and members, with the bytes behind each.
        entries: the entries of the directory.
        wide: whether it has the ends of the directory in 64 bits, which `torch.save` always writes.
    """

    body: bytes
    entries: list[bytes]
    wide: bool = True

    def joined(self, start: int = 0, *, behind: bytes = b"", comment: bytes = b"", **said: int) -> bytes:
        """The archive assembled from its parts.

        Args:
            start: bytes that are put before it later, and that its offsets do not count.
            behind: bytes between the members and the directory.
            comment: of the archive.
            said: false fields of the end: count, length or place in 32 bits, or with the prefix `wide_` in 64; locator
            for the place of the latter.
        """
        body, directory = self.body + behind, b"".join(self.entries)
        count, length, place = len(self.entries), len(directory), len(body) - start
        far = b""
        if self.wide:
            numbers = (said.get("wide_count", count),) * 2
            numbers += said.get("wide_length", length), said.get("wide_place", place)
            far = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 798, 45, 0, 0, *numbers)
            far += struct.pack("<4sLQL", b"PK\x06\x07", 0, said.get("locator", place + length), 1)
        count, length, place = said.get("count", count), said.get("length", length), said.get("place", place)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", said.get("disk", 0), 0, count, count, length, place, len(comment))
        return body + directory + far + end + comment


def parts(data: bytes) -> Parts:
    """The parts of a valid archive."""
    count, length, place = struct.unpack("<H2L", data[-12:-2])
    entries, position = [], place
    for _ in range(count):
        name, extra, comment = struct.unpack("<3H", data[position + 28 : position + 34])
        entries.append(data[position : position + 46 + name + extra + comment])
        position += len(entries[-1])
    assert position == place + length
    return Parts(data[:place], entries)


def changed(data: bytes, at: int, layout: str, *values: int) -> bytes:
    new = struct.pack(layout, *values)
    return data[:at] + new + data[at + len(new) :]


def moved(entry: bytes, shift: int) -> bytes:
    """An entry of the directory, of a member at another place."""
    return changed(entry, 42, "<L", (struct.unpack("<L", entry[42:46])[0] + shift) % 2**32)


def in_first_header(at: int, layout: str, *values: int) -> Callable[[bytes], bytes]:
    """A false header of the first member."""
    return lambda data: changed(data, at, layout, *values)


def in_first_descriptor(at: int, layout: str, *values: int) -> Callable[[bytes], bytes]:
    """A false data descriptor after the first member."""
    return lambda data: changed(data, data.index(b"PK\x07\x08") + at, layout, *values)


def in_first_entry(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A different first entry of the directory."""

    def lie(data: bytes) -> bytes:
        taken = parts(data)
        return Parts(taken.body, [change(taken.entries[0]), *taken.entries[1:]]).joined()

    return lie


def with_extra(extra: bytes) -> Callable[[bytes], bytes]:
    """Add an extra field to an entry of the directory."""

    def change(entry: bytes) -> bytes:
        name, old = struct.unpack("<2H", entry[28:32])
        assert old == 0
        return changed(entry, 30, "<H", len(extra))[: 46 + name] + extra

    return change


def with_comment(entry: bytes) -> bytes:
    return changed(entry, 32, "<H", 5) + b"hello"


def end(**said: Any) -> Callable[[bytes], bytes]:
    """A false end of the directory."""
    return lambda data: parts(data).joined(**said)


def other_archive() -> bytes:
    """Another small archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return file.getvalue()


def second_directory(data: bytes) -> bytes:
    """A reader that takes the directory's position from the end finds the first one; one that takes the directory
    directly before the end, as Python's does, finds the second one."""
    taken = parts(data)
    directory = b"".join(taken.entries)
    shift = len(directory)
    moved = [
        changed(entry, 42, "<L", (struct.unpack("<L", entry[42:46])[0] - shift) % 2**32) for entry in taken.entries
    ]
    return Parts(taken.body + directory, moved, wide=False).joined(start=shift)


def hidden_member(data: bytes) -> bytes:
    """A member that no directory lists, before the others; offsets are counted from the beginning of the file."""
    hidden = other_archive()
    hidden = hidden[: hidden.index(b"PK\x01\x02")]
    taken = parts(data)
    return Parts(hidden + taken.body, [moved(entry, len(hidden)) for entry in taken.entries]).joined()


def twice(name: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A second copy of the first member with other content, under a name that a reader treats as the same."""

    def lie(data: bytes) -> bytes:
        taken = parts(data)
        entry = taken.entries[0]
        length = struct.unpack("<H", entry[28:30])[0]
        same, content = name(entry[46 : 46 + length]), b"\x80\x02}."
        numbers = (zlib.crc32(content), len(content), len(content), len(same))
        header = struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, 0, 0, 0, 0, *numbers, 0) + same
        listed = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0, 0, 0, 0, 0, 0, *numbers, 0, 0, 0, 0, 0, len(taken.body))
        return Parts(taken.body + header + content, [*taken.entries, listed + same]).joined()

    return lie


SIZE_64 = struct.pack("<2HQ", 1, 8, 7)

LIES: dict[str, Callable[[bytes], bytes]] = {
    "bytes before the archive": lambda data: bytes(64) + data,
    "bytes before the archive, counted in its places": lambda data: hidden_member(data),
    "an archive before the archive": lambda data: other_archive() + data,
    "a second directory": second_directory,
    "bytes between members and directory": lambda data: parts(data).joined(behind=bytes(64)),
    "a comment": lambda data: parts(data).joined(comment=b"hello"),
    "an end of the directory in the comment": lambda data: parts(data).joined(comment=other_archive()[-22:]),
    "bytes behind the archive": lambda data: data + bytes(64),
    "an archive behind the archive": lambda data: data + other_archive(),
    "another checksum in a header": in_first_header(14, "<L", 7),
    "other lengths in a header": in_first_header(18, "<2L", 7, 7),
    "another method in a header": in_first_header(8, "<H", 8),
    "other flags in a header": in_first_header(6, "<H", 0),
    "an encrypted member in a header": in_first_header(6, "<H", 0x809),
    "another name in a header": in_first_header(30, "<B", ord("b")),
    "another checksum in a descriptor": in_first_descriptor(4, "<L", 7),
    "another length in a descriptor": in_first_descriptor(12, "<L", 7),
    "no descriptor": in_first_descriptor(0, "<L", 0),
    "another number of members in 32 bits": end(count=1),
    "another length of the directory in 32 bits": end(length=46),
    "another place of the directory in 32 bits": end(place=0),
    "another number of members in 64 bits": end(wide_count=1),
    "another length of the directory in 64 bits": end(wide_length=46),
    "another place of the directory in 64 bits": end(wide_place=0),
    "another place of the 64-bit end": end(locator=0),
    "a part of several archives": end(disk=1),
    "another name in an extra field": in_first_entry(with_extra(struct.pack("<2HBL", 0x7075, 6, 1, 0) + b"x")),
    "lengths in 64 bits that are not asked for": in_first_entry(with_extra(SIZE_64)),
    "lengths in 64 bits twice": in_first_entry(with_extra(SIZE_64 + SIZE_64)),
    "an extra field that is cut off": in_first_entry(with_extra(struct.pack("<2HB", 9, 99, 0))),
    "a comment of a member": in_first_entry(with_comment),
    "a member of another archive": in_first_entry(lambda entry: changed(entry, 34, "<H", 1)),
    "two members of one name": twice(lambda name: name),
    "two members with names equal up to case": twice(lambda name: name.upper().replace(b"ARCHIVE", b"archive")),
}
"""The faults of archives, and the functions that create them."""
