"""What HEVC says of its pictures: their size.

A file may say another size than the coded picture has. The decoder holds the coded one.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from worker.image.formats.bits import Bits
from worker.image.formats.container import Malformed
from worker.image.formats.items import Coded, Item

_SEQUENCE_PARAMETERS = 33
_HEADER_BYTES = 512
"""As much of the parameters is read; what is looked at comes before."""
_MOST_UNITS = 200_000
"""Units of a file."""
_FULL_COLOR = 3
_LENGTH_BYTES_AT = 21
"""In a decoder's configuration: bytes of a unit's length, less one, in the low bits."""


def measure(data: bytes, items: Iterable[Item]) -> Coded:
    """Read the sequence parameters of the coded pictures of these items. Raises Malformed."""
    area, is_full_color, left = 0, False, _MOST_UNITS
    measured = set[tuple[int, int]]()  # tiles may lie on the same bytes
    for item in items:
        configuration = item.property(b"hvcC") or b""
        if len(configuration) <= _LENGTH_BYTES_AT:
            raise Malformed("no configuration of the decoder")
        length_bytes = (configuration[_LENGTH_BYTES_AT] & 3) + 1
        payload, start, length = item.span(data)
        is_new = payload is not data or (start, length) not in measured
        measured.add((start, length))
        inline = units(payload, start, length, length_bytes) if is_new else iter(())
        for unit in chain(parameter_sets(configuration), inline):
            left -= 1
            if left < 0:
                raise Malformed("too many units")
            one = _parameters(unit)
            area = max(area, one.pixels)
            is_full_color |= one.is_full_color
    return Coded(area, is_full_color)


def parameter_sets(configuration: bytes) -> Iterator[bytes]:
    """The units in a decoder's configuration (`hvcC`)."""
    length_at = 22
    arrays = configuration[length_at] if len(configuration) > length_at else 0
    at = length_at + 1
    for _ in range(arrays):
        count = int.from_bytes(configuration[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            size = int.from_bytes(configuration[at : at + 2])
            if at + 2 + size > len(configuration):
                return
            yield configuration[at + 2 : at + 2 + size]
            at += 2 + size


def units(data: bytes, start: int, length: int, length_bytes: int) -> Iterator[bytes]:
    """Beginnings of the units of coded pictures in a span, each led by its length."""
    at, end = start, min(start + length, len(data))
    while at + length_bytes < end:
        size = int.from_bytes(data[at : at + length_bytes])
        at += length_bytes
        yield data[at : min(at + size, at + _HEADER_BYTES, end)]
        at += size


def _parameters(unit: bytes) -> Coded:
    """What sequence parameters say; no pixels if the unit is another one. Raises Malformed."""
    if not unit or unit[0] >> 1 & 63 != _SEQUENCE_PARAMETERS:
        return Coded(0, is_full_color=False)
    bits = Bits(unit[:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0"))
    bits.skip(16 + 4)
    layers = bits.take(3)
    bits.skip(1 + 88 + 8)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.skip(2 * (8 - layers))
    for profile, level in present:
        bits.skip(88 * profile + 8 * level)
    bits.exponential()
    is_full_color = bits.exponential() == _FULL_COLOR
    if is_full_color:
        bits.skip(1)
    return Coded(bits.exponential() * bits.exponential(), is_full_color)
