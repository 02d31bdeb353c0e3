"""JPEG: segments, then scans. Of several pictures in one file (MPO) the first one counts.

The decoder gets the tables, the frame header and the scans, and an end marker behind them unless
the file ends within a scan.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng  # not by np.random: a confined process imports nothing
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from worker.image.color import in_order, without_black
from worker.image.formats.container import (
    Frame,
    Header,
    Malformed,
    load,
    opened,
    plain,
)
from worker.image.formats.orientation import exif_orientation

MOST_PARTS = 65_536
"""Segments that may matter: tables, scans, profiles, EXIF."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MARKER_AMONG_RESTARTS = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""Decoders skip a marker that no standard knows while they look for a restart."""
_FRAMES_OF_JPEG = range(0xC0, 0xD0)
_PROGRESSIVE, _TABLES = (0xC2, 0xC6, 0xCA, 0xCE), (0xC4, 0xC8, 0xCC)
_RESTARTS, _END, _SCAN, _LINES = 0xDD, 0xD9, 0xDA, 0xDC
_NEEDED = (0xC4, 0xCC, 0xDB, _RESTARTS)
_COMMENTS = (*range(0xE0, 0xF0), 0xFE)
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_IGNORED = tuple(one for one in _COMMENTS if one not in (_APP0, _APP1, _APP2, _APP14))


def _lengths(most: int) -> bytes:
    """A pattern of the length and contents of a segment of at most so many bytes."""
    each = (b"\\x%02x.{%d}" % (length, length - 2) for length in range(3, most + 1))
    return b"\0(?:[\0-\2]|" + b"|".join(each) + b")"


_SMALL_COMMENTS = re.compile(
    b"(?:\xff(?:[\xe3-\xed\xef\xfe]" + _lengths(40) + b"|[\xe0-\xe2\xee]" + _lengths(8) + b"))++",
    re.DOTALL,
)
"""Segments that are too small for what is looked at; there may be millions."""
_PLAIN_JFIF, _JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0", b"JFIF\0"
_ADOBE, _ADOBE_BYTES = b"Adobe", 12
_EXIF, _EXIF_HEADER_BYTES = b"Exif\0", 6
_PROFILE, _PROFILE_DATA = b"ICC_PROFILE\0", 14
_CMYK = 4
_END_OF_JPEG = b"\xff\xd9"
_FILLER = (127, 128)
"""Levels of a block without data."""
_MOST_PROFILES = 2
"""In a `Header`."""
_STRIP = 64
"""Rows that are looked at together."""


def jpeg(data: bytes, _most_frames: int) -> Header:
    """Walk the segments, and then the scans. Raises Malformed."""
    walk = _Walk(data)
    scan = walk.to_first_scan()
    if walk.size is None:
        raise Malformed("a scan without a frame header")
    if scan.end >= len(data):  # the decoder would make noise of nothing
        raise Malformed("it ends before there is a picture")
    components = walk.components
    several = walk.is_progressive or data[scan.body] < components
    file = walk.scans_from(scan, several=several)
    return Header(
        *walk.size,
        file.frames,
        orientation=walk.orientation or 1,
        truncated=file.is_cut or walk.has_no_end,
        scans=walk.scans,
        coefficient_bytes=2 * components if several else 0,
        profiles=_profiles(walk.profile, components),
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """A marker, where it starts, where its contents are and end."""

    marker: int
    start: int
    body: int
    end: int


class _Walk:
    """Goes over a file once, and keeps what the picture needs."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._kept = bytearray()
        self._kinds = {_APP0: b"", _APP14: b""}
        self._left = MOST_PARTS
        self._restarts = False
        self.size: tuple[int, int] | None = None
        self.components = 0
        self.is_progressive = False
        self.orientation: int | None = None
        self.profile = list[tuple[int, int, bytes]]()
        self.scans = 1
        self.has_no_end = False

    def to_first_scan(self) -> _Segment:
        """Read everything before the first scan; return that scan's header. Raises Malformed."""
        for segment in self._segments(2):
            if segment.marker == _SCAN:
                return segment
            self._read(segment)
        raise Malformed("no scan")

    def _read(self, segment: _Segment) -> None:
        data, marker, body, end = self._data, segment.marker, segment.body, segment.end
        if marker in _FRAMES_OF_JPEG and marker not in _TABLES:
            if self.size is not None:
                raise Malformed("two frame headers")
            height, width, self.components = struct.unpack_from(">HHB", data, body + 1)
            self.size = width, height
            self.is_progressive = marker in _PROGRESSIVE
            self._kept += data[segment.start : end]
        elif marker in _NEEDED:
            self._keep(segment)
        elif marker == _APP0 and data.startswith(_JFIF, body) and end - body >= len(_PLAIN_JFIF):
            self._kinds[marker] = _segment(marker, _PLAIN_JFIF)
        elif marker == _APP14 and data.startswith(_ADOBE, body) and end - body >= _ADOBE_BYTES:
            self._kinds[marker] = _segment(marker, data[body : body + _ADOBE_BYTES])
        elif marker == _APP1 and self.orientation is None and _is_exif(data, body, end):
            self.orientation = exif_orientation(data[body + _EXIF_HEADER_BYTES : end])
        elif marker == _APP2 and data.startswith(_PROFILE, body) and end - body > _PROFILE_DATA:
            number, count = data[body + len(_PROFILE) : body + _PROFILE_DATA]
            self.profile.append((number, count, data[body + _PROFILE_DATA : end]))

    def _keep(self, segment: _Segment) -> None:
        if segment.marker == _RESTARTS:
            self._restarts = any(self._data[segment.body : segment.end])
        self._kept += self._data[segment.start : segment.end]

    def scans_from(self, scan: _Segment, *, several: bool) -> "_File":
        """Keep the scans: one, or all up to what does not belong between them."""
        following: _Segment | None = scan
        end: int | None = None
        ends = list[int]()
        while following is not None:
            end = self._end_of_scan(following.end)
            self._kept += self._data[following.start : end]
            ends.append(len(self._kept))
            following = self._next_scan(end) if several and end is not None else None
            self.scans += following is not None
        if end is not None or several:
            self._kept += _END_OF_JPEG
        first = b"".join((self._data[:2], *self._kinds.values()))
        whole = first + self._kept
        ends = [len(first) + one for one in ends]
        assert self.size is not None  # noqa: S101 - the caller's condition
        return _File(whole, self.size, tuple(ends), is_cut=end is None, several=several)

    def _next_scan(self, at: int) -> _Segment | None:
        for segment in self._segments(at):
            if segment.marker == _SCAN:
                return segment
            if segment.marker in _NEEDED:
                self._keep(segment)
            elif segment.marker not in (*_COMMENTS, _LINES):
                break
        return None

    def _end_of_scan(self, at: int) -> int | None:
        """Where the marker behind a scan's data is; None where the file ends before."""
        marker = _MARKER_AMONG_RESTARTS if self._restarts else _MARKER_IN_SCAN
        found = marker.search(self._data, at)
        return None if found is None else found.start()

    def _segments(self, at: int) -> Iterator[_Segment]:
        """Segments that may matter, up to the end marker or the last whole one.

        Junk between segments is passed over. A decoder takes a comment's length for at least 2.
        """
        data = self._data
        while (found := _MARKER.search(data, at)) is not None:
            marker, start, at = found[1][0], found.start(), found.end()
            if marker == _END:
                return
            if (comments := _SMALL_COMMENTS.match(data, start)) is not None:
                at = comments.end()
                continue
            if at + 2 > len(data):
                break
            length = data[at] << 8 | data[at + 1]
            if length < 2:  # noqa: PLR2004 - it counts itself
                if marker not in _COMMENTS:
                    raise Malformed("wrong segment length")
                length = 2
            if at + length > len(data):
                break
            if marker not in _IGNORED:
                self._left -= 1
                if self._left < 0:
                    raise Malformed("too many segments")
                yield _Segment(marker, start, at + 2, at + length)
            at += length
        self.has_no_end = True


@dataclass(frozen=True, slots=True)
class _File:
    """What the decoder gets.

    `ends` are where the scans end. `is_cut`: the data end within a scan.
    """

    data: bytes
    size: tuple[int, int]
    ends: tuple[int, ...]
    is_cut: bool
    several: bool

    def frames(self, target: int | None) -> Iterator[Frame]:
        """Decode it. Raises Malformed where nothing comes out."""
        if not self.is_cut:
            image = opened(JpegImageFile, self.data, self.size, target)
            try:
                image.load()
            except OSError:
                pass
            else:
                yield Frame(plain(image))
                return
        image, rows = self._rows(self.data, target)
        if not rows and self.several:
            image, rows = self._fewer_scans(target)
        if self.several:
            rows = _rows_with_data(image, rows)
        if not rows:
            raise Malformed("it ends before there is a picture")
        yield Frame(_cut(plain(image), rows), truncated=True)

    def _rows(self, data: bytes, target: int | None) -> tuple[ImageFile, int]:
        """Decode what there is, and count the rows that are."""
        image = opened(JpegImageFile, data, self.size, target)
        row = _sentinel(image)
        image.im = row.resize(image.size).im
        load(image)
        return image, _rows_before(image, row)

    def _fewer_scans(self, target: int | None) -> tuple[ImageFile, int]:
        """Decode the scans before the damaged one: the decoder gives nothing of all of them."""
        least, most = 1, len(self.ends)
        found = self._rows(self.data[: self.ends[0]] + _END_OF_JPEG, target)
        while least + 1 < most and found[1]:
            middle = (least + most) // 2
            tried = self._rows(self.data[: self.ends[middle - 1]] + _END_OF_JPEG, target)
            if tried[1]:
                least, found = middle, tried
            else:
                most = middle
            del tried
        return found


def _sentinel(image: Image.Image) -> Image.Image:
    """A row of noise, as no decoder gives it: it stays where nothing was decoded."""
    bands = len(image.getbands())
    noise = default_rng(0).bytes(image.width * bands)
    return Image.frombytes(image.mode, (image.width, 1), noise)


def _rows_before(image: Image.Image, row: Image.Image) -> int:
    """How many rows were decoded; all below them are `row` still."""
    expected = row.tobytes()
    low, high = 0, image.height
    while low < high:
        middle = (low + high) // 2
        if image.crop((0, middle, image.width, middle + 1)).tobytes() == expected:
            high = middle
        else:
            low = middle + 1
    return low


def _rows_with_data(image: Image.Image, rows: int) -> int:
    """How many rows are left without those at the end that show blocks without data."""
    while rows:
        strip = np.asarray(image.crop((0, max(0, rows - _STRIP), image.width, rows)))
        painted = (strip < _FILLER[0]) | (strip > _FILLER[1])
        found = np.flatnonzero(painted.reshape(len(strip), -1).any(axis=1))
        if len(found):
            return rows - len(strip) + int(found[-1]) + 1
        rows -= len(strip)
    return 0


def _cut(image: Image.Image, rows: int) -> Image.Image:
    """Rows that were not decoded are transparent, or white in CMYK, which has no alpha."""
    rest = (0, rows, image.width, image.height)
    if image.mode == "CMYK":
        image.paste((0, 0, 0, 0), rest)
    elif rows < image.height:
        image.putalpha(255)
        image.paste((0,) * len(image.getbands()), rest)
    return image


def _profiles(parts: list[tuple[int, int, bytes]], channels: int) -> tuple[bytes, ...]:
    """The profiles that a JPEG may mean, Chromium's choice first.

    `parts` are number from 1, count, data. Other viewers may read parts that Chromium refuses.
    """
    joined = _joined(parts)
    found = in_order(joined, channels)
    if not joined:
        found += in_order(b"".join(data for _, _, data in sorted(parts)), channels)
    if channels == _CMYK:
        found = tuple(one for icc in found for one in (without_black(icc), icc))
    return tuple(dict.fromkeys(found))[:_MOST_PROFILES]


def _joined(parts: list[tuple[int, int, bytes]]) -> bytes:
    """A profile of its parts as Chromium joins them; empty where it gives up.

    Parts are read until all are there. Until then each number may come once, with one count.
    """
    found, expected = dict[int, bytes](), 0
    for number, count, data in parts:
        expected = expected or count
        if count != expected or number in found or not 1 <= number <= count:
            return b""
        found[number] = data
        if len(found) == count:
            if whole := b"".join(found[one] for one in sorted(found)):
                return whole
            found, expected = {}, 0
    return b""


def _is_exif(data: bytes, body: int, end: int) -> bool:
    """Whether a segment counts as EXIF: any byte may stand behind the name's zero."""
    return data.startswith(_EXIF, body) and end - body > _EXIF_HEADER_BYTES


def _segment(marker: int, contents: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(contents) + 2) + contents
