"""Files of every browser format as lists of parts, whole or not, and together again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.viewers.containers import (
    PNG_SIGNATURE,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C
_GIF_HEAD, _GIF_PLACE = 13, 10
_RIFF_HEAD = 12
_META_HEAD = 12
_BMP_HEAD = 14


@dataclass(frozen=True)
class Parts:
    """`head` is what stands before the first part; the parts follow each other without gaps."""

    format: str
    head: bytes
    parts: tuple[bytes, ...]

    def __bytes__(self) -> bytes:
        return self.head + b"".join(self.parts)


def split(name: str, data: bytes) -> Parts:
    """The parts of a well-formed file of a format."""
    return _SPLITTERS[name](name, data)


def _png(name: str, data: bytes) -> Parts:
    return Parts(name, PNG_SIGNATURE, tuple(png_chunks(data)))


def _jpeg(name: str, data: bytes) -> Parts:
    segments, rest = jpeg_segments(data)
    return Parts(name, data[:2], (*segments, rest))


def _webp(name: str, data: bytes) -> Parts:
    return Parts(name, data[:_RIFF_HEAD], tuple(riff_chunks(data)))


def _gif(name: str, data: bytes) -> Parts:
    head = _GIF_HEAD + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts, at = [], head
    while at < len(data):
        start = at
        if data[at] == _GIF_EXTENSION:
            at = _after_blocks(data, at + 2)
        elif data[at] == _GIF_IMAGE:
            flags = data[at + _GIF_PLACE - 1]
            at += _GIF_PLACE + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            at = _after_blocks(data, at + 1)
        else:
            at = len(data)
        parts.append(data[start:at])
    return Parts(name, data[:head], tuple(parts))


def _after_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _boxes(name: str, data: bytes) -> Parts:
    """Top-level boxes, and those in `meta` on their own: its header is the last of a part."""
    parts, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        end = at + size if size >= 8 else len(data)
        parts.append(data[at:end])
        at = end
    return Parts(name, b"", tuple(parts))


def _whole(name: str, data: bytes) -> Parts:
    """A header of fixed size, and the rest in slices."""
    cuts = [0, _BMP_HEAD, 54, 122, *range(1024, len(data), 4096), len(data)]
    cuts = sorted({min(cut, len(data)) for cut in cuts})
    slices = tuple(data[start:end] for start, end in pairwise(cuts))
    return Parts(name, b"", slices)


_SPLITTERS: dict[str, Callable[[str, bytes], Parts]] = {
    "PNG": _png,
    "APNG": _png,
    "JPEG": _jpeg,
    "WebP": _webp,
    "GIF": _gif,
    "AVIF": _boxes,
    "JPEG XL": _boxes,
    "BMP": _whole,
    "ICO": _whole,
}
FORMATS: Sequence[str] = tuple(_SPLITTERS)
