"""What a file says of its picture, read without a decoder and in time linear in its length.

Decoders and their Python wrappers have loops and tables of their own for everything a file may
hold: comments, colour profiles, EXIF, frames. Thousands or millions of those make a small file cost
seconds and gigabytes before the first pixel. So the structure is walked here, in few and counted
steps, and the reader gets the file without what a picture does not need.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MOST_PARTS = 65_536
"""Segments of a JPEG, chunks of a PNG or WebP."""
MOST_BLOCKS = 500_000
"""Blocks of a GIF, which hold 255 bytes at most."""
MOST_COEFFICIENT_BYTES = 8
"""A pixel of a JPEG of four components, whose scans are collected."""
MOST_PROFILE_BYTES = 4 * 1024 * 1024
"""Of a colour profile. A larger one is none."""

_ORIENTATION, _SHORT = 0x0112, 3
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_END, _SCAN, _APP1, _APP2, _EXIF = 0xD9, 0xDA, 0xE1, 0xE2, b"Exif\0\0"
_PROFILE, _PROFILE_DATA = b"ICC_PROFILE\0", 14
_TABLES, _NEEDED = (0xC4, 0xC8, 0xCC), (0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE)
_FRAMES_OF_JPEG = range(0xC0, 0xD0)
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PNG_GAMMA_UNIT = 100_000
_WEBP_ANIMATION, _WEBP_EXIF, _WEBP_PROFILE = 0x02, 0x08, 0x20
_GIF_IMAGE, _GIF_EXTENSION, _GIF_CONTROL = 0x2C, 0x21, 0xF9
_GIF_HEADER_BYTES = 13
_GIF_TRAILER = b"\x3b"


type Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


class Malformed(Exception):
    """The file is not built as its format says. The text is plain letters, none of the file's."""


@dataclass(frozen=True, slots=True)
class Header:
    """`data` is what the reader needs of the file.

    `frames` are those that are there whole, 1 at least; where `truncated`, there were to be more,
    or the end of the file is missing. `canvas` is what the frames make of the picture, where they
    stick out. `orientation` is EXIF's, 1 to 8. Of a JPEG: `scans` are passes over the picture, of
    which the first one's data begin at `first_scan`; `coefficient_bytes` is what a pixel takes
    while they are collected, 0 where one pass gives the picture. `icc` is the colour profile as it
    is, or empty. `gamma` is a PNG's, where nothing better tells its colours; else 0.
    `painted`, of a GIF, is for each frame where any has painted until then.
    """

    width: int
    height: int
    frames: int
    data: bytes
    orientation: int = 1
    canvas: tuple[int, int] = (0, 0)
    truncated: bool = False
    scans: int = 1
    first_scan: int = 0
    coefficient_bytes: int = 0
    icc: bytes = b""
    gamma: float = 0.0
    painted: tuple[Box, ...] = ()

    @property
    def area(self) -> int:
        """Pixels of the largest canvas."""
        return max(self.width, self.canvas[0]) * max(self.height, self.canvas[1])


def jpeg(data: bytes, _frames: int, _most: int) -> Header:
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
            return Header(
                *size,
                frames=1,
                data=b"".join(kept),
                orientation=orientation or 1,
                scans=scans,
                first_scan=sum(map(len, kept[:-1])) + end - start,
                coefficient_bytes=2 * components if several else 0,
                icc=_joined(profile),
            )
        elif marker in _NEEDED:
            kept.append(data[start:end])
        elif marker == _APP1 and orientation is None and data.startswith(_EXIF, body):
            orientation = exif_orientation(data[body:end])
        elif marker == _APP2 and data.startswith(_PROFILE, body) and end - body >= _PROFILE_DATA:
            number, count = data[body + len(_PROFILE) : body + _PROFILE_DATA]
            profile.append((number, count, data[body + _PROFILE_DATA : end]))
    raise Malformed("no scan")


def _joined(parts: list[tuple[int, int, bytes]]) -> bytes:
    """A profile of its parts: number from 1, count, data.

    As in browsers it is none where a part is missing or there twice, or where counts differ.
    """
    parts = sorted(parts)
    if [part[:2] for part in parts] != [(n + 1, len(parts)) for n in range(len(parts))]:
        return b""
    return bounded(b"".join(data for _, _, data in parts))


def bounded(icc: bytes) -> bytes:
    """A profile of a bearable size, or none."""
    return icc if len(icc) <= MOST_PROFILE_BYTES else b""


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


def png(data: bytes, most_frames: int, most: int) -> Header:
    """Walk the chunks. Raises Malformed.

    As Pillow numbers frames, a default image that is no part of the animation is its frame 0.
    """
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise Malformed("no header first")
    width, height = struct.unpack_from(">II", data, 16)
    kept, promised, orientation, pixels = [data[:8]], 0, 1, False
    begun, alone, ended = 0, 0, False  # frames; default images; whether the end was seen
    for name, start, body, end in _chunks(data, 8, ">"):
        if name == b"fcTL":
            begun += 1
        elif name == b"IDAT" and not pixels:
            pixels, alone = True, int(not begun)
        elif name == b"acTL" and not pixels and end - body >= 4:  # noqa: PLR2004 - the count
            (promised,) = struct.unpack_from(">I", data, body)
        elif name == b"eXIf" and _is_sound(data, start, end):
            orientation = exif_orientation(data[body:end])
        ended = name == b"IEND" and end + 4 <= len(data)
        moving = most > 1 and promised and begun <= promised and name in _PNG_ANIMATION
        if name in _PNG_NEEDED or moving:
            kept.append(data[start : end + 4])
        if ended:
            break
    if promised > most_frames:
        return Header(width, height, promised, b"")
    whole = min(promised, begun if ended else begun - 1)
    frames = max(1, whole + alone) if promised else 1
    icc, gamma = _png_colors(data)
    return Header(
        *(width, height, frames, b"".join(kept), orientation),
        truncated=not ended or promised not in (0, begun),
        icc=icc,
        gamma=gamma,
    )


def _png_colors(data: bytes) -> tuple[bytes, float]:
    """Profile and gamma, of which the better one speaks: a profile, sRGB, gamma.

    Only those with a right checksum that stand before the palette and the picture: browsers pass
    over the others.
    """
    chunks = dict[bytes, bytes]()
    for name, start, body, end in _chunks(data, 8, ">"):
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


def _chunks(data: bytes, at: int, order: str) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, where a chunk starts, where its contents are and end; the last may be cut short."""
    for _ in range(MOST_PARTS):
        if at + 8 > len(data):
            return
        if order == ">":  # PNG: length, name, contents, checksum
            (length,), name = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
            following = at + 12 + length
        else:  # RIFF: name, length, contents, and to an even length
            name, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
            following = at + 8 + length + (length & 1)
        yield name, at, at + 8, min(at + 8 + length, len(data))
        at = following
    raise Malformed("too many chunks")


def webp(data: bytes, _frames: int, _most: int) -> Header:
    """Walk the chunks. Raises Malformed.

    Profile and EXIF are only there if the first chunk says so, the profile not of an animation:
    browsers pass over the others.
    """
    size, frames, orientation, whole, icc, flags = None, 0, 1, 0, b"", 0
    cut = int.from_bytes(data[4:8], "little") + 8 > len(data)
    for name, _, body, end in _chunks(data, 12, "<"):
        if size is None:
            size = _webp_size(name, data[body : body + 10])
            flags = data[body] if name == b"VP8X" else 0
        if name == b"ANMF":
            if end - body < int.from_bytes(data[body - 4 : body], "little"):
                break
            frames, whole = frames + 1, end + (end & 1)
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
    return Header(*size, max(1, frames), data, orientation, truncated=cut, icc=icc)


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


def gif(data: bytes, most_frames: int, most: int) -> Header:
    """Walk the blocks up to one frame beyond `most_frames`. Raises Malformed."""
    width, height = canvas = struct.unpack_from("<HH", data, 6)
    head = _GIF_HEADER_BYTES + _color_table_bytes(data[10])
    kept, control, counted, truncated = [data[:head]], b"", 0, True
    painted = list[Box]()
    at, blocks = head, MOST_BLOCKS
    while at < len(data) and counted <= most_frames:
        start, what = at, data[at]
        if what == _GIF_IMAGE:  # descriptor, colour table, code size, data
            if at + 9 >= len(data):
                break
            at, blocks = _after_blocks(data, at + 11 + _color_table_bytes(data[at + 9]), blocks)
            if counted and at > len(data):
                break
            counted += 1
            if counted == 1 or most > 1:
                left, top, wide, high = struct.unpack_from("<HHHH", data, start + 1)
                right, bottom = left + wide, top + high
                canvas = max(canvas[0], right), max(canvas[1], bottom)
                painted.append(_around(painted[-1:], (left, top, right, bottom)))
                kept += [control, data[start:at]]
                control = b""
            if counted == 1:
                width, height = canvas
        elif what == _GIF_EXTENSION:  # label, data
            at, blocks = _after_blocks(data, at + 2, blocks)
            if data[start + 1 : start + 2] == bytes([_GIF_CONTROL]):
                control = data[start:at]
        else:  # the trailer, or nothing that a reader would go on from
            truncated = what != _GIF_TRAILER[0]
            break
    if not counted:
        raise Malformed("no frame")
    return Header(
        *(width, height, counted, b"".join((*kept, _GIF_TRAILER))),
        canvas=canvas,
        truncated=truncated,
        painted=tuple(painted),
    )


def _around(before: Sequence[Box], box: Box) -> Box:
    """The smallest box that holds both."""
    (least,) = before or (box,)
    corner = min(least[0], box[0]), min(least[1], box[1])
    return *corner, max(least[2], box[2]), max(least[3], box[3])


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """Each block is led by its length; a length of 0 ends them. Also how many more there may be."""
    while at < len(data) and data[at]:
        at += data[at] + 1
        most -= 1
        if most < 0:
            break
    if most <= 0:
        raise Malformed("too many blocks")
    return at + 1, most - 1


def exif_orientation(exif: bytes) -> int:
    """How to turn the picture, 1 to 8. Damaged metadata turn nothing, as in a browser.

    Only this tag is looked at: nothing that a tag points at is read.
    """
    exif = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for number in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * number)
            if tag == _ORIENTATION:
                return value if (kind, count) == (_SHORT, 1) and value in range(1, 9) else 1
    except struct.error:  # it ends early
        pass
    return 1
