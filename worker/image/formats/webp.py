"""WebP: RIFF chunks."""

import struct
from collections.abc import Iterator

from PIL.WebPImagePlugin import WebPImageFile

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
"""Chunks."""
_WEBP_ANIMATION, _WEBP_EXIF, _WEBP_PROFILE = 0x02, 0x08, 0x20


def webp(data: bytes, _most_frames: int) -> Header:
    """Walk the chunks. Raises Malformed.

    Profile and EXIF are only there if the first chunk says so, the profile not of an animation:
    browsers pass over the others.
    """
    size, frames, orientation, whole, icc, flags = None, 0, 1, 0, b"", 0
    durations = list[float]()
    cut = int.from_bytes(data[4:8], "little") + 8 > len(data)
    for name, _, body, end in _chunks(data):
        if size is None:
            size = _webp_size(name, data[body : body + 10])
            flags = data[body] if name == b"VP8X" else 0
        if name == b"ANMF":
            if end - body < int.from_bytes(data[body - 4 : body], "little"):
                break
            frames, whole = frames + 1, end + (end & 1)
            durations.append(int.from_bytes(data[body + 12 : body + 15], "little") / 1000)
        elif name == b"EXIF" and flags & _WEBP_EXIF:
            orientation = exif_orientation(data[body:end])
        elif name == b"ICCP" and flags & (_WEBP_PROFILE | _WEBP_ANIMATION) == _WEBP_PROFILE:
            icc = bounded(data[body:end])
    if size is None:
        raise Malformed("no picture")
    if cut and whole:  # the reader wants a file that says how long it is
        data = b"".join(
            (data[:4], struct.pack("<I", whole - 8), data[8:whole].ljust(whole - 8, b"\0"))
        )
    file, canvas, count = data, size, max(1, frames)

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(WebPImageFile, file, canvas, target)
        for number in range(count):
            image.seek(number)
            image.load()
            yield Frame(plain(image).copy(), durations[number] if frames else 0.0)

    return Header(*size, decoded, count, orientation=orientation, truncated=cut, profiles=(icc,))


def _webp_size(name: bytes, head: bytes) -> tuple[int, int]:
    """Of the canvas, from the first chunk."""
    if name == b"VP8X":
        canvas = int.from_bytes(head[4:7], "little"), int.from_bytes(head[7:10], "little")
        return canvas[0] + 1, canvas[1] + 1
    if name == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    if name == b"VP8L" and head[:1] == b"\x2f":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise Malformed("no picture first")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, where a chunk starts, where its contents are and end; the last may be cut short."""
    at = 12
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            return
        name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        yield name, at, at + 8, min(at + 8 + length, len(data))
        at += 8 + length + (length & 1)
    raise Malformed("too many chunks")
