"""Take containers apart and put them together again: PNG, JPEG, WebP, AVIF and HEIC.

Parts are the bytes of whole chunks, segments or boxes, so that a part may be wrong in any way.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_START_OF_SCAN = 0xDA
_FULL_BOX = 12
"""Length, name, version and flags."""


# -- PNG ---------------------------------------------------------------------------------------


def png_chunk(name: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    """A chunk, with the right checksum unless one is given."""
    right = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", right)


def png_chunks(data: bytes) -> list[bytes]:
    """The chunks of a well-formed PNG."""
    chunks, at = [], len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        chunks.append(data[at:end])
        at = end
    return chunks


def png_of(chunks: Sequence[bytes]) -> bytes:
    return PNG_SIGNATURE + b"".join(chunks)


def png_with(data: bytes, *added: bytes, before: bytes = b"IDAT", after: bytes = b"") -> bytes:
    """Chunks put before the first chunk of a name, or after the last chunk of another name."""
    chunks = png_chunks(data)
    names = [chunk[4:8] for chunk in chunks]
    at = len(names) - names[::-1].index(after) if after else names.index(before)
    return png_of([*chunks[:at], *added, *chunks[at:]])


def png_without(data: bytes, *names: bytes) -> bytes:
    return png_of([chunk for chunk in png_chunks(data) if chunk[4:8] not in names])


def iccp(profile: bytes, name: bytes = b"icc", method: int = 0) -> bytes:
    """A PNG's colour profile."""
    return png_chunk(b"iCCP", name + b"\0" + bytes((method,)) + zlib.compress(profile))


# -- JPEG --------------------------------------------------------------------------------------


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_segments(data: bytes) -> tuple[list[bytes], bytes]:
    """The segments of a well-formed JPEG before its first scan, and the bytes from that scan on."""
    segments, at = [], 2
    while data[at + 1] != _START_OF_SCAN:
        end = at + 2
        if data[at + 1] not in _STANDALONE:
            end += int.from_bytes(data[at + 2 : at + 4])
        segments.append(data[at:end])
        at = end
    return segments, data[at:]


def jpeg_of(segments: Sequence[bytes], rest: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + rest


def jpeg_with(data: bytes, *added: bytes, at: int = 0) -> bytes:
    """Segments put in front of the segment number `at`."""
    segments, rest = jpeg_segments(data)
    return jpeg_of([*segments[:at], *added, *segments[at:]], rest)


def jpeg_icc(profile: bytes, number: int = 1, count: int = 1) -> bytes:
    """One part of a JPEG's colour profile."""
    return jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes((number, count)) + profile)


# -- RIFF --------------------------------------------------------------------------------------


def riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def riff_chunks(data: bytes) -> list[bytes]:
    """The chunks of a well-formed WebP."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        chunks.append(data[at:end])
        at = end
    return chunks


def riff_of(chunks: Sequence[bytes]) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_extended(data: bytes, flags: int, width: int, height: int, *more: bytes) -> list[bytes]:
    """The chunks of a simple WebP behind a `VP8X`; `more` go behind the picture."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    head = riff_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + size)
    pictures = [chunk for chunk in riff_chunks(data) if chunk[:4] in (b"VP8 ", b"VP8L", b"ALPH")]
    return [head, *pictures, *more]


# -- AVIF and HEIC -----------------------------------------------------------------------------


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + name + data


def full_box(name: bytes, data: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(name, bytes((version,)) + flags.to_bytes(3) + data)


def boxes(data: bytes) -> list[bytes]:
    """The boxes of well-formed bytes."""
    found, at = [], 0
    while at + 8 <= len(data):
        end = at + max(8, int.from_bytes(data[at : at + 4]))
        found.append(data[at:end])
        at = end
    return found


@dataclass
class Heif:
    """An AVIF or HEIC, of which each part can be changed. `bytes(...)` puts it together.

    `associations` lists for each item its properties: whether each is essential, and its number
    in `properties`, from 1.
    """

    ftyp: bytes
    meta: list[bytes]
    properties: list[bytes]
    associations: dict[int, list[tuple[bool, int]]]
    rest: list[bytes]
    second_ipma: bytes = b""
    _size: int = field(default=0, repr=False)

    @classmethod
    def read(cls, data: bytes) -> "Heif":
        top = boxes(data)
        meta = next(one for one in top if one[4:8] == b"meta")
        children = boxes(meta[_FULL_BOX:])
        iprp = next(one for one in children if one[4:8] == b"iprp")
        ipco, ipma = boxes(iprp[8:])
        rest = [one for one in top if one[4:8] not in (b"ftyp", b"meta")]
        parsed = boxes(ipco[8:]), _associations(ipma)
        return cls(top[0], children, *parsed, rest, _size=len(top[0]) + len(meta))

    def add(self, prop: bytes, item: int = 1, *, essential: bool = False, first: bool = False):
        """Add a property to an item, as its last one or its first one."""
        self.properties.append(prop)
        entry = (essential, len(self.properties))
        known = self.associations.setdefault(item, [])
        known.insert(0 if first else len(known), entry)
        return self

    def remove(self, name: bytes, item: int = 1):
        """Take all properties of this name off an item."""
        self.associations[item] = [
            (essential, number)
            for essential, number in self.associations[item]
            if self.properties[number - 1][4:8] != name
        ]
        return self

    def replace(self, name: bytes, prop: bytes):
        """Put a property in place of the first one of this name."""
        at = next(n for n, one in enumerate(self.properties) if one[4:8] == name)
        self.properties[at] = prop
        return self

    def brand(self, major: bytes, *compatible: bytes):
        """Change the file type's major and compatible brands."""
        self.ftyp = box(b"ftyp", major + bytes(4) + b"".join(compatible))
        return self

    def __bytes__(self) -> bytes:
        ipma = _ipma(self.associations)
        iprp = box(b"iprp", box(b"ipco", b"".join(self.properties)) + ipma + self.second_ipma)
        parts = [iprp if one[4:8] == b"iprp" else one for one in self.meta]
        by = len(self.ftyp) + len(full_box(b"meta", b"".join(parts))) - self._size
        moved = [_shifted(one, by) if one[4:8] == b"iloc" else one for one in parts]
        rest = [_moved_track(one, by) if one[4:8] == b"moov" else one for one in self.rest]
        return self.ftyp + full_box(b"meta", b"".join(moved)) + b"".join(rest)


def _associations(ipma: bytes) -> dict[int, list[tuple[bool, int]]]:
    """Of version 0, with one byte a property, as libavif and libheif write them."""
    (count,) = struct.unpack_from(">I", ipma, _FULL_BOX)
    found, at = {}, _FULL_BOX + 4
    for _ in range(count):
        item, number = struct.unpack_from(">HB", ipma, at)
        at += 3
        found[item] = [(bool(one & 0x80), one & 0x7F) for one in ipma[at : at + number]]
        at += number
    return found


def _ipma(associations: dict[int, list[tuple[bool, int]]]) -> bytes:
    body = struct.pack(">I", len(associations))
    for item, entries in associations.items():
        body += struct.pack(">HB", item, len(entries))
        body += bytes(essential << 7 | number for essential, number in entries)
    return full_box(b"ipma", body)


def ipma(associations: dict[int, list[tuple[bool, int]]]) -> bytes:
    """A box of associations, beside the first one."""
    return _ipma(associations)


def _shifted(iloc: bytes, by: int) -> bytes:
    """`iloc` with all offsets into the file moved."""
    version = iloc[8]
    sizes, more = iloc[12], iloc[13]
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more >> 4
    index_size = more & 15 if version else 0
    changed = bytearray(iloc)
    at = 14
    (items,) = struct.unpack_from(">H", iloc, at)
    at += 2
    for _ in range(items):
        method = int.from_bytes(iloc[at + 2 : at + 4]) & 15 if version else 0
        at += (4 if version else 2) + 2
        at_base, at = at, at + base_size
        (extents,) = struct.unpack_from(">H", iloc, at)
        at += 2
        if method == 0 and base_size:
            _add(changed, at_base, base_size, by)
        for _ in range(extents):
            at += index_size
            if method == 0 and not base_size:
                _add(changed, at, offset_size, by)
            at += offset_size + length_size
    return bytes(changed)


def _moved_track(moov: bytes, by: int) -> bytes:
    """`moov` with the offsets of its samples moved (`stco`)."""
    changed = bytearray(moov)
    at = moov.find(b"stco")
    while at >= 0:
        (count,) = struct.unpack_from(">I", moov, at + 8)
        for number in range(count):
            _add(changed, at + 12 + 4 * number, 4, by)
        at = moov.find(b"stco", at + 4)
    return bytes(changed)


def _add(data: bytearray, at: int, size: int, by: int) -> None:
    moved = int.from_bytes(data[at : at + size]) + by
    data[at : at + size] = moved.to_bytes(size)


def clap(width: int, height: int, across: tuple[int, int], down: tuple[int, int]) -> bytes:
    """A crop box; `across` and `down` are fractions that its centre is moved by."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, *across, *down))


def nclx(primaries: int, transfer: int, matrix: int, *, full_range: bool = True) -> bytes:
    return box(
        b"colr", b"nclx" + struct.pack(">HHHB", primaries, transfer, matrix, full_range << 7)
    )


def prof(profile: bytes) -> bytes:
    return box(b"colr", b"prof" + profile)
