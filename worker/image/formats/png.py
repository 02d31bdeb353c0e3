"""PNG and APNG: chunks."""

import struct
import zlib
from collections.abc import Iterator

from PIL.PngImagePlugin import PngImageFile

from worker.image.color import profile_of_gamma
from worker.image.formats.container import (
    MOST_PROFILE_BYTES,
    Frame,
    Header,
    Malformed,
    bounded,
    exif_orientation,
    opened,
)
from worker.image.formats.container import plain as _plain

MOST_PARTS = 65_536
"""Chunks."""
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PNG_GAMMA_UNIT = 100_000


def png(data: bytes, _most_frames: int) -> Header:
    """Walk the chunks. Raises Malformed.

    As Pillow numbers frames, a default image that is no part of the animation is its frame 0.
    """
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise Malformed("no header first")
    width, height = struct.unpack_from(">II", data, 16)
    kept, promised, orientation, pixels = [data[:8]], 0, 1, False
    begun, alone, ended = 0, 0, False  # frames; default images; whether the end was seen
    for name, start, body, end in _chunks(data, 8):
        if name == b"fcTL":
            begun += 1
        elif name == b"IDAT" and not pixels:
            pixels, alone = True, int(not begun)
        elif name == b"acTL" and not pixels and end - body >= 4:  # noqa: PLR2004 - the count
            (promised,) = struct.unpack_from(">I", data, body)
        elif name == b"eXIf" and _is_sound(data, start, end):
            orientation = exif_orientation(data[body:end])
        ended = name == b"IEND" and end + 4 <= len(data)
        moving = promised and begun <= promised and name in _PNG_ANIMATION
        if name in _PNG_NEEDED or moving:
            kept.append(data[start : end + 4])
        if ended:
            break
    whole = min(promised, begun if ended else begun - 1)
    frames = max(1, whole + alone) if promised else 1
    icc, gamma = _png_colors(data)
    profile = icc or (profile_of_gamma(gamma, None) if gamma else b"")
    file = b"".join(kept)

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(PngImageFile, file, (width, height), target)
        for number in range(frames):
            if number:
                image.seek(number)
            image.load()
            yield Frame(_plain(image), 0.1 if frames > 1 else 0.0)

    return Header(
        *(width, height, decoded, frames),
        orientation=orientation,
        truncated=not ended or promised not in (0, begun),
        profiles=(profile,),
    )


def _png_colors(data: bytes) -> tuple[bytes, float]:
    """Profile and gamma, of which the better one speaks: a profile, sRGB, gamma.

    Only those with a right checksum that stand before the palette and the picture: browsers pass
    over the others.
    """
    chunks = dict[bytes, bytes]()
    for name, start, body, end in _chunks(data, 8):
        if name in (b"PLTE", b"IDAT"):
            break
        if name in (b"iCCP", b"sRGB", b"gAMA") and _is_sound(data, start, end):
            chunks.setdefault(name, data[body:end])
    packed = chunks.get(b"iCCP", b"")
    _, _, rest = packed.partition(b"\0")
    if rest[:1] == b"\0":  # the one compression
        unpacker = zlib.decompressobj()
        try:
            icc = unpacker.decompress(rest[1:], MOST_PROFILE_BYTES + 1)
        except zlib.error:
            icc = b""
        if bounded(icc):
            return icc, 0.0
    if b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:  # noqa: PLR2004 - one number
        return b"", 0.0
    return b"", int.from_bytes(chunks[b"gAMA"]) / _PNG_GAMMA_UNIT


def _is_sound(data: bytes, start: int, end: int) -> bool:
    """Whether a PNG's chunk has the checksum that is told behind it."""
    return data[end : end + 4] == zlib.crc32(data[start + 4 : end]).to_bytes(4)


def _chunks(data: bytes, at: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, where a chunk starts, where its contents are and end; the last may be cut short."""
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            return
        (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        yield name, at, at + 8, min(at + 8 + length, len(data))
        at += 12 + length
    raise Malformed("too many chunks")
