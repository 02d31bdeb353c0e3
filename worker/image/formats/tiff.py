"""TIFF, read without a decoder; see `container.py`.

Its directories may hold anything and point anywhere. The reader gets new ones, of the tags that a
picture needs, each of bounded length; the pixels stay where they are.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from worker.image.formats.container import Frame, Header, Malformed, bounded, opened, plain

MOST_PARTS = 65_536
"""Tags."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT, _ICC = 277, 322, 323, 338, 339, 34675
_STRIPS, _ROWS, _STRIP_BYTES, _PLANES, _TILES, _TILE_BYTES = 273, 278, 279, 284, 324, 325
_JUDGED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _TILE_WIDTH),
    *(_TILE_HEIGHT, _FORMAT, _STRIPS, _ROWS, _STRIP_BYTES, _PLANES, _TILES, _TILE_BYTES),
}
"""What is told by them has to be what the reader sees, so they have to be SHORT or LONG."""
# Beside those: fill order, options of fax, predictor, palette, inks, tables of JPEG, and how YCbCr
# is sampled.
_NEEDED = _JUDGED | {266, 292, 293, 317, 320, 332, _EXTRA, 347, 529, 530, 531, 532}
_UNCOMPRESSED, _APART = 1, 2
_COMPRESSIONS = {_UNCOMPRESSED, 2, 3, 4, 5, 7, 8, 32773, 32946}
"""None, fax, LZW, JPEG, Deflate, PackBits, and Deflate's older number."""
_LAB = 8
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SHORT, _LONG, _UNSIGNED = 3, 4, 1
_DEEPEST, _DEPTHS = 16, {1, 2, 4, 8, 16}
_MOST_VALUES = 1 << 20
_LARGEST_TILE = 1 << 20
"""Pixels, where the picture is smaller."""
_TURNED = range(5, 9)

type _Entry = tuple[int, int, int, bytes]
"""Tag, type, count, value."""


@dataclass(frozen=True, slots=True)
class _Page:
    entries: tuple[_Entry, ...]
    numbers: dict[int, tuple[int, ...]]

    def one(self, tag: int, default: int) -> int:
        return (self.numbers.get(tag) or (default,))[0]

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as the reader shows it."""
        size = self.one(_WIDTH, 0), self.one(_HEIGHT, 0)
        return size[::-1] if self.one(_ORIENTATION, 1) in _TURNED else size


def tiff(data: bytes, most_frames: int) -> Header:
    """Walk the directories up to one beyond `most_frames`: each is a page. Raises Malformed."""
    order = "<" if data[:2] == b"II" else ">"
    pages, seen, icc, parts = list[_Page](), set[int](), b"", MOST_PARTS
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    frames = 0
    while at and at not in seen and frames <= most_frames:
        seen.add(at)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        parts -= count
        if parts < 0:
            raise Malformed("too many tags")
        frames += 1
        pages.append(_page(data, at, count, order))
        _judge(pages[-1])
        if frames == 1:
            icc = _icc(data, at, count, order)
        (at,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)
    if not pages:
        raise Malformed("no page")
    sizes = [page.upright for page in pages]
    canvas = max(width for width, _ in sizes), max(height for _, height in sizes)
    whole = all(_is_whole(page, len(data)) for page in pages)
    rewritten = _rewritten(data, pages, order) if whole else b""  # which no reader takes

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(TiffImageFile, rewritten, sizes[0], target)
        for number in range(frames):
            image.seek(number)
            image.load()
            yield Frame(_eight_bits(image))

    return Header(*sizes[0], decoded, frames, area=canvas[0] * canvas[1], profiles=(icc,))


def _page(data: bytes, at: int, count: int, order: str) -> _Page:
    """The needed tags of one directory. Of a tag that is there twice the last one counts."""
    found: dict[int, _Entry] = {}
    numbers = {}
    for number in range(count):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * number)
        if tag not in _NEEDED:
            continue
        if tag in _JUDGED and kind not in (_SHORT, _LONG):
            raise Malformed("a number of another type")
        value = _value(data, at + 10 + 12 * number, kind, length, order)
        found[tag] = tag, kind, length, value
        if kind in (_SHORT, _LONG):
            numbers[tag] = struct.unpack(f"{order}{length}{'H' if kind == _SHORT else 'I'}", value)
    return _Page(tuple(found[tag] for tag in sorted(found)), numbers)


def _value(data: bytes, at: int, kind: int, length: int, order: str) -> bytes:
    nbytes = _BYTES.get(kind, 0) * length
    if not nbytes or length > _MOST_VALUES:
        raise Malformed("a tag of no or too many values")
    if nbytes > 4:  # noqa: PLR2004 - what does not fit lies elsewhere
        (at,) = struct.unpack_from(f"{order}I", data, at)
    value = data[at : at + nbytes]
    if len(value) < nbytes:
        raise Malformed("a tag beyond the end")
    return value


def _judge(page: _Page) -> None:
    """Hold what a page says to what is decoded, and decoded right. Raises Malformed."""
    width, height = page.one(_WIDTH, 0), page.one(_HEIGHT, 0)
    if page.one(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise Malformed("a compression that is not decoded")
    bits = page.numbers.get(_BITS, (1,))
    if set(page.numbers.get(_FORMAT, ())) - {_UNSIGNED} or max(bits) > _DEEPEST:
        raise Malformed("samples that are not whole numbers of up to 16 bits")
    inverted = page.one(_PHOTOMETRIC, 0) == 0 and max(bits) == _DEEPEST
    if inverted or not set(bits) <= _DEPTHS or page.one(_PHOTOMETRIC, 0) == _LAB:
        raise Malformed("a kind of samples that is not decoded")
    plain = page.one(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    if plain and page.one(_PLANES, 1) == _APART and max(bits) == _DEEPEST:
        raise Malformed("uncompressed planes of 16 bits")  # the reader takes them for 8
    tile = page.one(_TILE_WIDTH, 0) * page.one(_TILE_HEIGHT, 0)
    if tile > max(width * height, _LARGEST_TILE):
        raise Malformed("tiles larger than the picture")


def _is_whole(page: _Page, nbytes: int) -> bool:
    """Whether there are as many strips or tiles as the picture needs, and all lie in the file.

    What is missing would stay unpainted, and what we put behind the file be read as the rest. The
    reader goes by their lengths, but where there is no compression by the picture's size.
    """
    width, height = page.one(_WIDTH, 0), page.one(_HEIGHT, 0)
    offsets, counts = page.numbers.get(_STRIPS, ()), page.numbers.get(_STRIP_BYTES, ())
    rows, last, columns = max(1, min(page.one(_ROWS, height), height)), height, 1
    if not offsets:
        offsets, counts = page.numbers.get(_TILES, ()), page.numbers.get(_TILE_BYTES, ())
        columns = -(-width // max(1, page.one(_TILE_WIDTH, 0)))
        width, rows = page.one(_TILE_WIDTH, 0), max(1, page.one(_TILE_HEIGHT, 0))
        last = rows  # tiles are filled up
    planes = page.one(_SAMPLES, 1) if page.one(_PLANES, 1) == _APART else 1
    if len(offsets) < -(-height // rows) * columns * planes:
        return False
    if page.one(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
        samples = 1 if page.one(_PLANES, 1) == _APART else page.one(_SAMPLES, 1)
        line = -(-width * samples * max(page.numbers.get(_BITS, (1,))) // 8)
        tall = range(0, last, rows) or (0,)
        counts = tuple(line * min(rows, last - tall[n % len(tall)]) for n in range(len(offsets)))
    return all(at + count <= nbytes for at, count in zip(offsets, counts, strict=False))


def _icc(data: bytes, at: int, count: int, order: str) -> bytes:
    """The first page's colour profile; one that cannot be read is none."""
    for number in range(count):
        entry = at + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        if tag == _ICC and _BYTES.get(kind) == 1 and length > 4:  # noqa: PLR2004 - see `_value`
            (start,) = struct.unpack_from(f"{order}I", data, entry + 8)
            return bounded(data[start : start + length])
    return b""


def _rewritten(data: bytes, pages: list[_Page], order: str) -> bytes:
    """The file, with directories at its end that hold nothing else."""
    at = len(data) + (len(data) & 1)
    added = [b"\0" * (len(data) & 1)]
    for number, page in enumerate(pages):
        start = at + 2 + 12 * len(page.entries) + 4  # of the values
        table, values = [struct.pack(f"{order}H", len(page.entries))], []
        for tag, kind, length, value in page.entries:
            inside = value.ljust(4, b"\0")
            if len(value) > 4:  # noqa: PLR2004 - see `_value`
                inside = struct.pack(f"{order}I", start)
                values.append(value + b"\0" * (len(value) & 1))
                start += len(values[-1])
            table.append(struct.pack(f"{order}HHI", tag, kind, length) + inside)
        last = number + 1 == len(pages)
        table.append(struct.pack(f"{order}I", 0 if last else start))
        added += [*table, *values]
        at = start
    first = len(data) + (len(data) & 1)
    return b"".join((data[:4], struct.pack(f"{order}I", first), data[8:], *added))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Keep the high byte of 16-bit grey; Pillow's own conversion clips at 255."""
    if not image.mode.startswith("I"):
        return plain(image).copy()
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
