"""Boxes within boxes, of which AVIF, HEIC and the container of JPEG XL are made (ISO 14496-12)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from worker.image.formats.container import Malformed

MOST_PARTS = 65_536
"""Boxes and table entries of a file. A phone's picture has about 500."""
_LARGE, _TO_THE_END, _SHORT_HEADER = 1, 0, 8


class Box(NamedTuple):
    """A box: its name, and where its contents begin and end."""

    name: bytes
    at: int
    end: int


@dataclass(slots=True)
class Parts:
    """How many boxes and table entries may still be read."""

    left: int = MOST_PARTS

    def take(self, count: int = 1) -> None:
        """Count some. Raises Malformed where there are too many."""
        self.left -= count
        if self.left < 0:
            raise Malformed("too many boxes")


class Cursor:
    """Reads numbers one after the other, most significant byte first."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self.at = at
        self.end = end

    def number(self, size: int) -> int:
        """Return a number of `size` bytes. Raises Malformed beyond the end."""
        self.skip(size)
        return int.from_bytes(self._data[self.at - size : self.at])

    def bytes(self, size: int) -> bytes:
        """Return `size` bytes. Raises Malformed beyond the end."""
        self.skip(size)
        return self._data[self.at - size : self.at]

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises Malformed beyond the end."""
        self.at += size
        if self.at > self.end:
            raise Malformed("a box that ends early")

    def version(self) -> tuple[int, int]:
        """Version and flags, with which many boxes begin."""
        both = self.number(4)
        return both >> 24, both & 0xFFFFFF


def boxes(data: bytes, at: int, end: int, parts: Parts) -> Iterator[Box]:
    """The boxes between `at` and `end`. The last one ends there at the latest. Raises Malformed."""
    while at + _SHORT_HEADER <= end:
        parts.take()
        length, name = struct.unpack_from(">I4s", data, at)
        body = at + _SHORT_HEADER
        if length == _LARGE:
            if body + 8 > end:
                return
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif length == _TO_THE_END:
            length = end - at
        if length < body - at:
            raise Malformed("a box shorter than its header")
        yield Box(name, body, min(at + length, end))
        at += length


def find(data: bytes, name: bytes, within: Box, parts: Parts) -> Box:
    """The first box of a name. Raises Malformed where there is none."""
    for box in boxes(data, within.at, within.end, parts):
        if box.name == name:
            return box
    raise Malformed("a box is missing")


def box(name: bytes, *contents: bytes) -> bytes:
    """Write a box."""
    return struct.pack(">I4s", _SHORT_HEADER + sum(map(len, contents)), name) + b"".join(contents)


def full_box(name: bytes, *contents: bytes, version: int = 0, flags: int = 0) -> bytes:
    """Write a box that begins with a version and flags."""
    return box(name, struct.pack(">I", version << 24 | flags), *contents)
