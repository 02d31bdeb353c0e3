"""What AV1 says of its pictures: their largest size, and their colours.

A file may say another size than the coded picture has. The decoder holds the coded one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from worker.image.formats.bits import Bits
from worker.image.formats.container import Malformed
from worker.image.formats.items import UNSPECIFIED, Coded

_SEQUENCE_HEADER, _TILES, _FRAME = 1, 4, 6
_HAS_SIZE = 2
_HEADER_BYTES = 256
"""As much of a sequence header is read; none is longer."""
_MOST_UNITS = 200_000
"""Open bitstream units of a file."""
_PROFILE_MAIN, _PROFILE_HIGH, _PROFILE_PROFESSIONAL = 0, 1, 2
_HAS_TIER, _SELECT = 7, 2


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence header: the largest width and height, and colours as in H.273.

    `is_full_color`: the profile allows a colour for each pixel.
    """

    width: int
    height: int
    is_full_color: bool
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED


def measure(spans: Iterable[tuple[bytes, int, int]]) -> Coded:
    """Read the sequence headers of coded pictures.

    Each span is where coded pictures lie: in which bytes, from where, and how many. Raises
    Malformed.
    """
    area, is_full_color, colors = 0, False, (UNSPECIFIED, UNSPECIFIED)
    units = _Units()
    for span in spans:
        for one in sequences(*span, units):
            if not area:
                colors = one.primaries, one.transfer
            area = max(area, one.width * one.height)
            is_full_color |= one.is_full_color
    return Coded(area, is_full_color, colors)


@dataclass(slots=True)
class _Units:
    """How many units may still be read."""

    left: int = _MOST_UNITS


def sequences(data: bytes, start: int, length: int, units: _Units) -> Iterator[Sequence]:
    """The sequence headers of the coded pictures in a span. Raises Malformed.

    Where the units cannot be followed no decoder can follow them either.
    """
    at, end = start, min(start + length, len(data))
    while at < end:
        units.left -= 1
        if units.left < 0:
            raise Malformed("too many units")
        head = data[at]
        at += 2 if head & 4 else 1
        size = end - at
        if head & _HAS_SIZE:
            size, at = _length(data, at, end)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _sequence(Bits(data[at : min(at + size, at + _HEADER_BYTES, end)]))
        at += size


def padded(coded: bytes, count: int) -> bytes:
    """The coded picture with so many zero bytes more behind its last tile.

    Damaged tiles may ask for more bytes than there are. Newer decoders refuse those; older ones, as
    in Chromium, read zeros.
    """
    at, found = 0, (0, 0, 0)
    while at < len(coded):
        head, start = coded[at], at + (2 if coded[at] & 4 else 1)
        body, size = start, len(coded) - start
        if head & _HAS_SIZE:
            size, body = _length(coded, start, len(coded))
        at = body + size
        if head >> 3 & 15 in (_TILES, _FRAME):
            found = (start if head & _HAS_SIZE else 0), body, min(at, len(coded))
    start, body, end = found
    if not end:
        return coded
    unit = coded[body:end] + bytes(count)
    length = _as_length(len(unit)) if start else b""
    return b"".join((coded[: start or body], length, unit, coded[end:]))


def _as_length(number: int) -> bytes:
    """A number of 7 bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:  # noqa: PLR2004
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _length(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    number = 0
    for index, byte in enumerate(data[at : min(at + 8, end)]):
        number |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return number, at + index + 1
    return end - at, end


def _sequence(bits: Bits) -> Sequence:
    profile = bits.take(3)
    bits.skip(1)
    reduced = bits.take(1)
    if reduced:
        bits.skip(5)
    else:
        _skip_operating_points(bits)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(wide) + 1, bits.take(high) + 1
    if not reduced and bits.take(1):  # frame numbers
        bits.skip(7)
    bits.skip(3)
    if not reduced:
        _skip_tools(bits)
    bits.skip(3)
    return Sequence(width, height, profile != _PROFILE_MAIN, *_colors(bits, profile))


def _skip_operating_points(bits: Bits) -> None:
    delay = -1
    if bits.take(1):  # timing
        bits.skip(64)
        if bits.take(1):
            bits.exponential()
        if bits.take(1):  # a model of the decoder
            delay = bits.take(5) + 1
            bits.skip(42)
    initial_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.skip(12)
        if bits.take(5) > _HAS_TIER:
            bits.skip(1)
        if delay >= 0 and bits.take(1):
            bits.skip(2 * delay + 1)
        if initial_delay and bits.take(1):
            bits.skip(4)


def _skip_tools(bits: Bits) -> None:
    bits.skip(4)
    ordered = bits.take(1)
    bits.skip(2 if ordered else 0)
    screen_content = _SELECT if bits.take(1) else bits.take(1)
    if screen_content and not bits.take(1):
        bits.skip(1)
    bits.skip(3 if ordered else 0)


def _colors(bits: Bits, profile: int) -> tuple[int, int]:
    """Primaries and transfer."""
    deep = bits.take(1)
    if profile == _PROFILE_PROFESSIONAL and deep:
        bits.skip(1)
    if profile != _PROFILE_HIGH:
        bits.skip(1)
    if not bits.take(1):
        return UNSPECIFIED, UNSPECIFIED
    return bits.take(8), bits.take(8)
