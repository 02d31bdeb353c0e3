"""The directories of a TIFF, read in time and memory that are linear in the file's length.

A directory may hold 65,535 tags, and any number of tags may share their values. So what is read is
counted over all directories together.
"""

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worker.image.formats.container import Malformed

MOST_DIRECTORIES = 16_384
"""Beside the pages."""
MOST_SHARED_BYTES = 4 * 1024 * 1024
"""Of values that tags may share, more than the file is long."""

BYTE, SHORT, LONG, UNDEFINED, DIRECTORY = 1, 3, 4, 7, 13
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_NUMBERS = {SHORT: "u2", LONG: "u4", DIRECTORY: "u4"}
_ENTRY_BYTES, _INLINE_BYTES = 12, 4

type Numbers = npt.NDArray[np.integer]


@dataclass(slots=True)
class Reader:
    """A file, its byte order (`<` or `>`), and how many bytes of it may still be read."""

    data: bytes
    order: str
    known: frozenset[int]
    """The tags that are looked at."""
    _directory_bytes: int = field(init=False)
    _value_bytes: int = field(init=False)
    _is_known: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._directory_bytes = len(self.data)  # they cannot be more unless they overlap
        self._value_bytes = len(self.data) + MOST_SHARED_BYTES
        self._is_known = np.zeros(1 << 16, bool)
        self._is_known[list(self.known)] = True

    def directory(self, at: int) -> tuple["Directory", int]:
        """The directory at `at`, and where the next one is. Raises Malformed, struct.error."""
        (count,) = struct.unpack_from(f"{self.order}H", self.data, at)
        self._directory_bytes -= count * _ENTRY_BYTES + 6
        if self._directory_bytes < 0:
            raise Malformed("directories that overlap")
        end = at + 2 + count * _ENTRY_BYTES
        table = np.frombuffer(self.data, f"V{_ENTRY_BYTES}", count, at + 2)
        tags = np.ndarray(count, f"{self.order}u2", self.data, at + 2, (_ENTRY_BYTES,))
        wanted = table[self._is_known[tags]]
        if len(wanted) > len(self.known):  # some are there twice, which is fine with the same value
            wanted = np.unique(wanted)
        entries = dict[int, tuple[int, int, bytes]]()
        for entry in dict.fromkeys(wanted.tolist()):
            tag, kind, length = struct.unpack_from(f"{self.order}HHI", entry)
            if tag in entries:
                raise Malformed("a tag that comes twice")
            entries[tag] = kind, length, entry[8:]
        (following,) = struct.unpack_from(f"{self.order}I", self.data, end)
        return Directory(self, entries), following

    def spend(self, nbytes: int) -> None:
        """Count bytes of values. Raises Malformed."""
        self._value_bytes -= nbytes
        if self._value_bytes < 0:
            raise Malformed("tags of too many values")


@dataclass(slots=True)
class Directory:
    """The tags of one directory that are looked at: type, count, and the last four bytes."""

    reader: Reader
    entries: dict[int, tuple[int, int, bytes]]
    _numbers: dict[int, Numbers] = field(default_factory=dict)

    def place(self, tag: int) -> tuple[int, int]:
        """Where the value of a tag lies outside of the directory, and its bytes; or 0, 0."""
        if tag not in self.entries:
            return 0, 0
        kind, count, inline = self.entries[tag]
        nbytes = _BYTES.get(kind, 0) * count
        if nbytes <= _INLINE_BYTES:
            return 0, 0
        (at,) = struct.unpack(f"{self.reader.order}I", inline)
        return at, nbytes

    def value(self, tag: int) -> bytes:
        """The bytes of a tag. Raises Malformed."""
        kind, count, inline = self.entries[tag]
        nbytes = _BYTES.get(kind, 0) * count
        if not nbytes:
            raise Malformed("a tag without a value")
        if nbytes <= _INLINE_BYTES:
            return inline[:nbytes]
        at, _ = self.place(tag)
        self.reader.spend(nbytes)
        value = self.reader.data[at : at + nbytes]
        if len(value) < nbytes:
            raise Malformed("a tag beyond the end")
        return value

    def numbers(self, tag: int) -> Numbers:
        """The numbers of a tag; none where it is not there. Raises Malformed."""
        if tag not in self.entries:
            return np.zeros(0, np.uint32)
        if tag not in self._numbers:
            kind = self.entries[tag][0]
            if kind not in _NUMBERS:  # programs disagree about what is not as the standard has it
                raise Malformed("a number of another type")
            form = f"{self.reader.order}{_NUMBERS[kind]}"
            self._numbers[tag] = np.frombuffer(self.value(tag), form)
        return self._numbers[tag]

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag. Raises Malformed."""
        found = self.numbers(tag)
        return int(found[0]) if len(found) else default


def written(order: str, tags: dict[int, tuple[int, bytes]], picture: bytes, places: int) -> bytes:
    """A file of one directory, whose pixels are `picture`.

    `tags` are types and values. The values of the tag `places` are offsets in `picture` (u4).
    """
    start = 8 + len(picture) + (len(picture) & 1)
    tags = dict(tags)
    kind, offsets = tags[places]
    moved = np.frombuffer(offsets, f"{order}u4") + 8
    tags[places] = kind, moved.astype(f"{order}u4").tobytes()
    at = start + 2 + _ENTRY_BYTES * len(tags) + 4
    table, outside = [struct.pack(f"{order}H", len(tags))], list[bytes]()
    for tag, (kind, value) in sorted(tags.items()):
        inline = value.ljust(_INLINE_BYTES, b"\0")
        if len(value) > _INLINE_BYTES:
            inline = struct.pack(f"{order}I", at)
            outside.append(value + b"\0" * (len(value) & 1))
            at += len(outside[-1])
        table.append(struct.pack(f"{order}HHI", tag, kind, len(value) // _BYTES[kind]) + inline)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    padding = b"\0" * (len(picture) & 1)
    return b"".join((head, picture, padding, *table, bytes(4), *outside))
