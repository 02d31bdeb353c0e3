"""AVIF and HEIC, read without a decoder; see `container.py`.

Both are boxes within boxes (ISO 14496-12). Of the picture's item the properties are looked at:
its size, its colour profile, how it is cut and turned. Nothing of the coded picture is read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from pi_heif import HeifImageFile
from PIL.AvifImagePlugin import AvifImageFile

from worker.image.formats.container import Frame, Header, Malformed, bounded, opened, plain

MOST_PARTS = 65_536
"""Boxes."""

_SPATIAL_EXTENT, _TURN, _MIRROR, _CUT, _COLOR = b"ispe", b"irot", b"imir", b"clap", b"colr"
_PROFILES = (b"prof", b"rICC")
_LARGE, _TO_THE_END, _SHORT_HEADER = 1, 0, 8
_DEEP_PATH = (b"trak", b"mdia", b"minf", b"stbl")
_ENTRY_SIZE_AT = 32
"""Width and height of a track's sample entry, from the start of the entry."""

_EXIF = {(0, -1): 1, (1, -1): 8, (2, -1): 3, (3, -1): 6} | {
    (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7, (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5
}  # fmt: skip
"""Quarter turns counter-clockwise, then the axis of the mirror, as EXIF numbers the two."""


@dataclass(slots=True)
class _Item:
    """What the primary item's properties say, in their order."""

    size: tuple[int, int] = (0, 0)
    cut: tuple[int, int] | None = None
    turns: int = 0
    mirror: int = -1
    icc: bytes = b""


@dataclass(slots=True)
class _Steps:
    """Boxes that may still be read."""

    left: int = field(default=MOST_PARTS)


def avif(data: bytes, _most_frames: int) -> Header:
    """Size and turn of the primary item, or size and frames of the sequence. Raises Malformed.

    The reader does not turn: `orientation` is for us, from the item alone, for EXIF's is only told.
    """
    steps = _Steps()
    item = _primary(data, steps)
    frames, track_size = _sequence(data, steps) if data[8:12] == b"avis" else (1, None)
    width, height = track_size or item.size
    turn = _EXIF[item.turns, item.mirror]

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(AvifImageFile, data, (width, height), target)
        for number in range(frames):
            image.seek(number)
            image.load()
            yield Frame(plain(image).copy(), 0.1 if frames > 1 else 0.0)

    return Header(width, height, decoded, frames, orientation=turn, profiles=(item.icc,))


def heic(data: bytes, _most_frames: int) -> Header:
    """Size of the primary item, as the reader cuts and turns it. Raises Malformed."""
    item = _primary(data, _Steps())
    (width, height), canvas = item.cut or item.size, item.size  # the whole is decoded first
    if item.turns & 1:
        width, height, canvas = height, width, canvas[::-1]

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(HeifImageFile, data, (width, height), target)
        image.load()
        yield Frame(plain(image))

    return Header(width, height, decoded, area=canvas[0] * canvas[1], profiles=(item.icc,))


def _boxes(data: bytes, at: int, end: int, steps: _Steps) -> Iterator[tuple[bytes, int, int]]:
    """Name, and where the contents are and end. A box that says more than there is ends there."""
    while at + _SHORT_HEADER <= end:
        steps.left -= 1
        if steps.left < 0:
            raise Malformed("too many boxes")
        length, name = struct.unpack_from(">I4s", data, at)
        body = at + _SHORT_HEADER
        if length == _LARGE:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif length == _TO_THE_END:
            length = end - at
        if length < body - at:
            raise Malformed("a box shorter than its header")
        yield name, body, min(at + length, end)
        at += length


def _find(data: bytes, name: bytes, at: int, end: int, steps: _Steps) -> tuple[int, int]:
    for found, body, stop in _boxes(data, at, end, steps):
        if found == name:
            return body, stop
    raise Malformed("a box is missing")


def _primary(data: bytes, steps: _Steps) -> _Item:
    """The primary item's properties."""
    body, end = _find(data, b"meta", 0, len(data), steps)
    body += 4  # version and flags
    at, _ = _find(data, b"pitm", body, end, steps)
    (primary,) = struct.unpack_from(">I" if data[at] else ">H", data, at + 4)
    properties, stop = _find(data, b"iprp", body, end, steps)
    at, last = _find(data, b"ipco", properties, stop, steps)
    known = list(_boxes(data, at, last, steps))
    at, last = _find(data, b"ipma", properties, stop, steps)
    item = _Item()
    for number in _associated(data, at, last, primary, steps):
        if not 0 < number <= len(known):
            raise Malformed("a property that is not there")
        _read(data, item, *known[number - 1])
    return item


def _associated(data: bytes, at: int, end: int, wanted: int, steps: _Steps) -> list[int]:
    """Numbers of the properties of an item, from 1."""
    version, flags = data[at], data[at + 3]
    (count,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(count):
        steps.left -= 1
        if steps.left < 0 or at >= end:
            raise Malformed("too many items")
        (item,) = struct.unpack_from(">I" if version else ">H", data, at)
        at += 4 if version else 2
        wide, number = flags & 1, data[at]
        if item == wanted:
            form = f">{number}{'H' if wide else 'B'}"
            mask = 0x7FFF if wide else 0x7F
            return [one & mask for one in struct.unpack_from(form, data, at + 1)]
        at += 1 + number * (1 + wide)
    raise Malformed("a picture without properties")


def _read(data: bytes, item: _Item, name: bytes, at: int, end: int) -> None:
    """One property."""
    if name == _SPATIAL_EXTENT:
        item.size = struct.unpack_from(">II", data, at + 4)
    elif name == _TURN:
        item.turns = data[at] & 3
    elif name == _MIRROR:
        item.mirror = data[at] & 1
    elif name == _CUT:
        wide, by, high, over = struct.unpack_from(">IIII", data, at)
        if not by or not over or wide % by or high % over:
            raise Malformed("cut between pixels")
        item.cut = wide // by, high // over
    elif name == _COLOR and data[at : at + 4] in _PROFILES:
        item.icc = bounded(data[at + 4 : end])


def _sequence(data: bytes, steps: _Steps) -> tuple[int, tuple[int, int]]:
    """Frames and the size of the largest track."""
    movie, end = _find(data, b"moov", 0, len(data), steps)
    frames, sizes = 0, [(0, 0)]
    for name, body, stop in _boxes(data, movie, end, steps):
        if name != _DEEP_PATH[0]:
            continue
        for inner in _DEEP_PATH[1:]:
            body, stop = _find(data, inner, body, stop, steps)  # noqa: PLW2901 - one step deeper
        at, _ = _find(data, b"stsz", body, stop, steps)
        (samples,) = struct.unpack_from(">I", data, at + 8)
        at, _ = _find(data, b"stsd", body, stop, steps)
        sizes.append(struct.unpack_from(">HH", data, at + 8 + _ENTRY_SIZE_AT))
        frames = max(frames, samples)
    if not frames:
        raise Malformed("no frame")
    return frames, max(sizes)
