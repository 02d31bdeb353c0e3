"""JPEG: segments, then scans. Of several pictures in one file (MPO) the first one counts."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from worker.image.formats.container import (
    Frame,
    Header,
    Malformed,
    bounded,
    exif_orientation,
    opened,
    plain,
)

MOST_PARTS = 65_536
"""Segments."""
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_END, _SCAN, _APP1, _APP2, _EXIF = 0xD9, 0xDA, 0xE1, 0xE2, b"Exif\0\0"
_PROFILE, _PROFILE_DATA = b"ICC_PROFILE\0", 14
_TABLES, _NEEDED = (0xC4, 0xC8, 0xCC), (0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE)
_FRAMES_OF_JPEG = range(0xC0, 0xD0)
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_END_OF_JPEG = b"\xff\xd9"
_FILLER = (127, 128)
_LEAST_VISIBLE = 0.01


def jpeg(data: bytes, _most_frames: int) -> Header:
    """Walk the segments, and then the scans. Raises Malformed."""
    kept, size, orientation = [data[:2]], None, None
    progressive, components, profile = False, 0, list[tuple[int, int, bytes]]()
    for marker, start, body, end in _segments(data):
        if marker in _FRAMES_OF_JPEG and marker not in _TABLES:
            if size is not None:
                raise Malformed("two frame headers")
            height, width, components = struct.unpack_from(">HHB", data, body + 1)
            size = width, height
            progressive = marker in _PROGRESSIVE
            kept.append(data[start:end])
        elif marker == _SCAN:
            if size is None:
                raise Malformed("a scan without a frame header")
            several = progressive or data[body] < components
            scans = _scans(data, end) if several else 1
            kept.append(data[start:])
            file = _File(b"".join(kept), size, sum(map(len, kept[:-1])) + end - start)
            return Header(
                *size,
                file.frames,
                orientation=orientation or 1,
                scans=scans,
                coefficient_bytes=2 * components if several else 0,
                profiles=(_joined(profile),),
            )
        elif marker in _NEEDED:
            kept.append(data[start:end])
        elif marker == _APP1 and orientation is None and data.startswith(_EXIF, body):
            orientation = exif_orientation(data[body:end])
        elif marker == _APP2 and data.startswith(_PROFILE, body) and end - body >= _PROFILE_DATA:
            number, count = data[body + len(_PROFILE) : body + _PROFILE_DATA]
            profile.append((number, count, data[body + _PROFILE_DATA : end]))
    raise Malformed("no scan")


@dataclass(frozen=True, slots=True)
class _File:
    """A file without what a picture does not need; its first scan's data begin at `first_scan`."""

    data: bytes
    size: tuple[int, int]
    first_scan: int

    def frames(self, target: int | None) -> Iterator[Frame]:
        """Decode it. One that ends early is closed with an end marker and decoded once more.

        Raises Malformed where nothing but filler comes out.
        """
        image = opened(JpegImageFile, self.data, self.size, target)
        try:
            image.load()
        except OSError:
            image = opened(JpegImageFile, self.data + _END_OF_JPEG, self.size, target)
            image.load()
            if len(self.data) <= self.first_scan or _visible(image) < _LEAST_VISIBLE:
                raise Malformed("it ends before there is a picture") from None
            yield Frame(plain(image), truncated=True)
        else:
            yield Frame(plain(image))


def _visible(image: ImageFile) -> float:
    """The fraction of a JPEG that is not filler, which is mid-grey in all bands."""
    levels = np.asarray(image)[::4, ::4]  # a sample, for the sake of memory
    painted = (levels < _FILLER[0]) | (levels > _FILLER[1])
    return float(painted.reshape(*painted.shape[:2], -1).any(axis=-1).mean())


def _joined(parts: list[tuple[int, int, bytes]]) -> bytes:
    """A profile of its parts: number from 1, count, data.

    As in browsers it is none where a part is missing or there twice, or where counts differ.
    """
    parts = sorted(parts)
    if [part[:2] for part in parts] != [(n + 1, len(parts)) for n in range(len(parts))]:
        return b""
    return bounded(b"".join(data for _, _, data in parts))


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Marker, where it starts, where its contents are and end. Junk between is passed over."""
    at = 2
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        marker, start, at = found[1][0], found.start(), found.end()
        if marker == _END:
            return
        if marker in _WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2 or at + length > len(data):  # noqa: PLR2004 - it counts itself
            raise Malformed("wrong segment length")
        yield marker, start, at + 2, at + length
        at += length
    raise Malformed("too many segments")


def _scans(data: bytes, at: int) -> int:
    """Count the scans from the first one's data on, as the decoder will meet them."""
    scans = 1
    for _ in range(MOST_PARTS):
        found = _MARKER_AFTER_SCAN.search(data, at)
        if found is None or found[1][0] == _END:
            return scans
        at = found.end()
        if found[1][0] in _WITHOUT_LENGTH:
            continue
        scans += found[1][0] == _SCAN
        at += int.from_bytes(data[at : at + 2])
    raise Malformed("too many segments")
