"""The strict reader of zip archives: it accepts the archives of `torch.save` and refuses every ambiguous archive.

A zip archive stores most facts twice: in the directory at its end, and in a header before each member; its end stores
some of them a third time, in 64 bits. Readers differ in the copy that they use, in the place where they search for the
directory, and in the choice between two members with the same name. Here all copies must agree, and each byte of the
file belongs to exactly one part: header, member, descriptor, directory or end. The checksum of a member is compared
with the bytes that are returned.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from reference.untrusted import kinds
from reference.untrusted.bounds import MEMBERS, PICKLE_LIMIT

LOCAL, LISTED, DESCRIBED, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08", b"PK\x05\x06"
WIDE_END, WIDE_LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # the number needs 64 bits and is stored elsewhere

STREAMED = 1 << 3  # flag: lengths and checksum are stored behind the member too, and may be 0 before it
UTF_8 = 1 << 11  # flag of the name
WIDE_FIELD = 0x0001  # tags of extra fields
OTHER_NAME = 0x7075


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: the position of its bytes (or of its header), its length, checksum and flags."""

    start: int
    size: int
    crc: int
    flags: int
    packed: bool = False


class Archive:
    """A zip archive in the form of `torch.save`: one folder, no compression, no duplicates, no gaps.

    Args:
        file: the archive.
        size: its length in bytes.

    Attributes:
        members: by their names in the folder.

    Raises:
        ValueError: the archive has another form; the message says which rule it breaks.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        start, length, count = self.directory(size)
        if count > MEMBERS or length > PICKLE_LIMIT:
            raise ValueError(f"its archive has {count:,} members; at most {MEMBERS:,} are read")
        listed = self.listed(self.at(start, length), count)
        if (kind := kinds.of_archive(listed)) is not None:
            raise ValueError(kind)
        for name, member in listed.items():
            if member.packed:
                raise ValueError(f"member {name!r} of its archive is packed or encrypted, which torch.save never does")
        if len({name.partition("/")[0] for name in listed}) != 1:
            raise ValueError("its archive is not one folder")
        end = 0
        self.members: dict[str, Member] = {}
        for name, member in sorted(listed.items(), key=lambda item: item[1].start):
            if member.start < end:
                raise ValueError("members of its archive overlap")
            if member.start > end:
                raise ValueError(f"its archive has bytes before member {name!r} that belong to no member")
            found = self.members[name.partition("/")[2]] = self.placed(name, member)
            if found.start + found.size > start:
                raise ValueError("members of its archive overlap its directory")
            end = self.described(name, found)
        if end != start:
            raise ValueError("its archive has bytes before its directory that belong to no member")

    def directory(self, size: int) -> tuple[int, int, int]:
        """The position of the directory, its length, and the number of its members."""
        end = size - 22
        signature, *disks, here, count, length, start, comment = struct.unpack("<4s4H2LH", self.at(max(0, end), 22))
        if signature != END or comment != 0:
            raise ValueError("its archive is cut off or damaged: the end of the directory is not there")
        locator = self.at(end - 20, 20) if end >= 20 else b""
        if locator.startswith(WIDE_LOCATOR):
            disk, place, total = struct.unpack("<LQL", locator[4:])
            end -= 20 + 56
            if (disk, place, total) != (0, max(0, end), 1):
                raise ValueError("its archive is damaged: the end of the directory is not where it says")
            narrow = (*disks, here, count, length, start)
            signature, rest, _, _, *wide = struct.unpack("<4sQ2H2L4Q", self.at(end, 56))
            if signature != WIDE_END or rest != 44:
                raise ValueError("its archive is damaged: the end of the directory is not there")
            full = (FULL_16,) * 4 + (FULL_32,) * 2
            if any(few not in (many, limit) for few, many, limit in zip(narrow, wide, full, strict=True)):
                raise ValueError("its archive contradicts itself: it has two different ends of the directory")
            *disks, here, count, length, start = wide
        if any(disks) or here != count:
            raise ValueError("its archive is a part of several")
        if start + length != end:
            raise ValueError("its archive is damaged: the directory does not end where it says")
        return start, length, count

    def listed(self, listing: bytes, count: int) -> dict[str, Member]:
        """The members that the directory lists, each beginning with its header."""
        members: dict[str, Member] = {}
        known: set[str] = set()
        position = 0
        for _ in range(count):
            fields = struct.unpack_from("<4s6H3L5H2L", listing, position)
            flags, method, crc = fields[3], fields[4], fields[7]
            name_end = position + 46 + fields[10]
            extra_end = name_end + fields[11]
            name = listing[position + 46 : name_end].decode()
            unpacked, packed, start = wide(listing[name_end:extra_end], fields[9], fields[8], fields[16])
            position = extra_end
            if fields[0] != LISTED or position > len(listing) or fields[12] or fields[13]:
                raise ValueError("its archive is damaged: the directory is not one")
            if "\\" in name or {"", ".", ".."} & {*name.split("/")} or not name.isprintable():
                raise ValueError(f"member {name!r} of its archive leads out of it")
            if name.casefold() in known:  # PyTorch's own reader does not distinguish upper and lower case
                raise ValueError(f"member {name!r} of its archive is there twice")
            known.add(name.casefold())
            special = method != 0 or bool(flags & ~(STREAMED | UTF_8)) or packed != unpacked
            members[name] = Member(start, unpacked, crc, flags, special)
        if position != len(listing):
            raise ValueError("its archive is damaged: the directory is longer than its members")
        return members

    def placed(self, name: str, member: Member) -> Member:
        """The member, with the position of its bytes; the header before them must agree with the directory."""
        fields = struct.unpack("<4s5H3L2H", self.at(member.start, 30))
        if fields[0] != LOCAL or self.file.read(fields[9]) != name.encode():
            raise ValueError(f"its archive is damaged: member {name!r} is not where the directory says")
        flags, method, crc, packed, unpacked = fields[2], fields[3], *fields[6:9]
        extra = self.file.read(fields[10])
        unpacked, packed = wide(extra, unpacked, packed)
        said = (crc, packed, unpacked)
        later = bool(flags & STREAMED) and said == (0, 0, 0)
        if (flags, method) != (member.flags, 0) or not (later or said == (member.crc, member.size, member.size)):
            raise ValueError(f"its archive contradicts itself: the header of member {name!r} says something else")
        return Member(member.start + 30 + fields[9] + fields[10], member.size, member.crc, flags)

    def described(self, name: str, member: Member) -> int:
        """The end of a member with its descriptor, which must agree with the directory."""
        end = member.start + member.size
        if not member.flags & STREAMED:
            return end
        self.file.seek(end)
        found = self.file.read(24)
        for width in ("L", "Q"):  # lengths of 32 bits, or of 64
            length = min(member.size, FULL_32) if width == "L" else member.size
            whole = struct.pack(f"<4sL2{width}", DESCRIBED, member.crc, length, length)
            if found.startswith(whole):
                return end + len(whole)
        raise ValueError(f"its archive contradicts itself: the descriptor of member {name!r} says something else")

    def at(self, position: int, length: int) -> bytes:
        """Read these bytes; ValueError if the file is shorter."""
        self.file.seek(position)
        found = self.file.read(length)
        if len(found) != length:
            raise ValueError("it is cut off")
        return found

    def read(self, name: str, limit: int) -> bytearray:
        """The bytes of a member."""
        size = self.members[name].size
        if size > limit:
            raise ValueError(f"member {name!r} of its archive has {size:,} bytes; at most {limit:,} are read")
        data = bytearray(size)
        self.read_into(name, memoryview(data))
        return data

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Read a member into a buffer of the same length.

        Raises:
            ValueError: the checksum of the bytes in the buffer is not the member's.
        """
        member = self.members[name]
        self.file.seek(member.start)
        read = self.file.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]
        if read != member.size or zlib.crc32(buffer) != member.crc:
            raise ValueError(f"the checksum of member {name!r} of its archive is wrong")


def wide(extra: bytes, *values: int) -> list[int]:
    """Lengths and positions; the extra field must contain exactly those that need 64 bits.

    Raises:
        ValueError: the extra field gives the member another name, or unexpected numbers.
    """
    missing = values.count(FULL_32)
    numbers: list[int] = []
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        content = extra[position + 4 : position + 4 + length]
        if tag == OTHER_NAME or len(content) != length or (tag == WIDE_FIELD and (numbers or length != 8 * missing)):
            raise ValueError("its archive contradicts itself: an extra field says something else")
        if tag == WIDE_FIELD:
            numbers = list(struct.unpack(f"<{missing}Q", content))
        position += 4 + length
    if numbers:
        return [numbers.pop(0) if value == FULL_32 else value for value in values]
    return list(values)
