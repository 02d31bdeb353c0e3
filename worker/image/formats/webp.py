"""WebP: RIFF chunks.

The decoder gets a file of the picture's own chunks, or of the frames that are there whole. It says
that there is alpha, for browsers show an alpha channel whether or not the file announces it.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL.WebPImagePlugin import WebPImageFile

from worker.image.color import in_order
from worker.image.formats.container import Frame, Header, Malformed, opened, plain, shown_seconds

MOST_PARTS = 65_536
"""Chunks that are looked at."""
_HEADER, _ANIMATION, _FRAME, _ALPHA, _PROFILE = b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"ICCP"
_LOSSY, _LOSSLESS = b"VP8 ", b"VP8L"
_MOVES, _HAS_ALPHA, _HAS_PROFILE = 0x02, 0x10, 0x20
_HEADER_BYTES, _FRAME_HEADER_BYTES, _LOOPS_AT = 10, 16, 4
_LOSSLESS_FLAGS_AT = 4
_SMALL_UNKNOWN = re.compile(
    b"(?:(?!VP8[XL ]|ANIM|ANMF|ALPH|ICCP).{4}(?:\\0{4}|"
    + b"|".join(b"[\\x%02x\\x%02x]\\0{3}.{%d}" % (n - 1, n, n) for n in range(2, 34, 2))
    + b"))++",
    re.DOTALL,
)
"""Chunks of no known name and at most 32 bytes; there may be millions."""


def webp(data: bytes, most_frames: int) -> Header:
    """Walk the chunks, up to one frame more than `most_frames`. Raises Malformed.

    Chromium ignores EXIF's orientation in a WebP, the profile of an animation, and a profile that
    the first chunk does not announce. It shows nothing of a still picture that is not whole.
    """
    parts = _Parts(data, most_frames)
    if parts.flags & _MOVES:
        return _animation(parts)
    if parts.image is None:
        raise Malformed("no whole picture")
    file = _file(_still(parts))
    profiles = in_order(parts.profile or b"", 3) if parts.flags & _HAS_PROFILE else ()

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(WebPImageFile, file, parts.size, target)
        image.load()
        yield Frame(plain(image))

    return Header(*parts.size, decoded, truncated=parts.is_cut, profiles=profiles)


def _still(parts: "_Parts") -> bytes:
    """The chunks of a still picture."""
    assert parts.image is not None  # noqa: S101 - the caller's condition
    name, body = parts.image
    if name == _LOSSLESS:  # which has alpha of its own
        at = _LOSSLESS_FLAGS_AT
        return _chunk(name, body[:at] + bytes([body[at] | _HAS_ALPHA]) + body[at + 1 :])
    if parts.alpha is None or not parts.flags & _HAS_ALPHA:
        return _chunk(name, body)
    return parts.header + _chunk(_ALPHA, parts.alpha) + _chunk(name, body)


def _animation(parts: "_Parts") -> Header:
    """Of the frames that are there whole."""
    if not parts.frames:
        raise Malformed("no frame")
    file = _file(b"".join((parts.header, _chunk(_ANIMATION, parts.animation), *parts.frames)))
    seconds = [shown_seconds(ms / 1000) for ms in parts.milliseconds]
    (loops,) = struct.unpack_from("<H", parts.animation, _LOOPS_AT)
    if len(seconds) == 1:
        seconds = [0.0]
    elif loops and len(seconds) <= parts.most_frames:
        seconds[-1] = np.inf

    last = len(seconds) - 1

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(WebPImageFile, file, parts.size, target)
        for number, shown in enumerate(seconds):
            image.seek(number)
            image.load()
            whole = plain(image)
            yield Frame(whole if number == last else whole.copy(), shown)

    return Header(*parts.size, decoded, len(seconds), truncated=parts.is_cut)


@dataclass(slots=True)
class _Parts:
    """The chunks that count.

    `is_cut`: the file ends before it says. `header` is the first chunk, made anew for a picture
    with alpha; `milliseconds` are the frames'.
    """

    data: bytes
    most_frames: int
    size: tuple[int, int] = (0, 0)
    flags: int = 0
    header: bytes = b""
    profile: bytes | None = None
    alpha: bytes | None = None
    image: tuple[bytes, bytes] | None = None
    animation: bytes = b""
    frames: list[bytes] = field(default_factory=list)
    milliseconds: list[int] = field(default_factory=list)
    is_cut: bool = False

    def __post_init__(self) -> None:
        """Walk the file. Raises Malformed."""
        for name, body in self._chunks():
            if not self.size[0]:
                self.size = _size(name, body[:_HEADER_BYTES])
                if name == _HEADER:
                    self.flags = body[0]
                    flags = bytes([self.flags & _MOVES | _HAS_ALPHA])
                    self.header = _chunk(name, flags + body[1:_HEADER_BYTES])
            self._take(name, body)
            if len(self.frames) > self.most_frames:
                break

    def _take(self, name: bytes, body: bytes) -> None:
        """The first chunk of a name counts."""
        if name in (_LOSSY, _LOSSLESS) and self.image is None:
            self.image = name, body
        elif name == _ALPHA and self.alpha is None:
            self.alpha = body
        elif name == _PROFILE and self.profile is None:
            self.profile = body
        elif name == _ANIMATION and not self.animation:
            self.animation = body
        elif name == _FRAME and self.flags & _MOVES and len(body) > _FRAME_HEADER_BYTES:
            self.frames.append(_chunk(name, body))
            self.milliseconds.append(int.from_bytes(body[12:15], "little"))

    def _chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Names and contents of the whole chunks inside RIFF."""
        data, left = self.data, MOST_PARTS
        end = 8 + int.from_bytes(data[4:8], "little")
        self.is_cut = end > len(data)
        end, at = min(end, len(data)), 12
        while at + 8 <= end:
            if (unknown := _SMALL_UNKNOWN.match(data, at, end)) is not None:
                at = unknown.end()
                continue
            left -= 1
            if left < 0:
                raise Malformed("too many chunks")
            name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
            if at + 8 + length > end:
                return
            yield name, data[at + 8 : at + 8 + length]
            at += 8 + length + (length & 1)


def _size(name: bytes, head: bytes) -> tuple[int, int]:
    """Of the canvas, from the first chunk."""
    if name == _HEADER and len(head) == _HEADER_BYTES:
        canvas = int.from_bytes(head[4:7], "little"), int.from_bytes(head[7:10], "little")
        return canvas[0] + 1, canvas[1] + 1
    if name == _LOSSY and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    if name == _LOSSLESS and head[:1] == b"\x2f":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise Malformed("no picture first")


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def _file(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
