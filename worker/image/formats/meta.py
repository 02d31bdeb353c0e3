"""Reads the `meta` box of an AVIF or HEIC file: which items there are, and what belongs to each."""

from collections.abc import Sequence

from worker.image.formats.boxes import Box, Cursor, Parts, boxes, find
from worker.image.formats.container import Malformed
from worker.image.formats.items import Item, Meta, Property, is_alpha, is_decodable

_FROM_FILE, _FROM_IDAT = 0, 1


def read_meta(data: bytes, meta: Box, parts: Parts) -> Meta:
    """Read a `meta` box. Of boxes that come twice the first counts. Raises Malformed."""
    inner = dict[bytes, Box]()
    for one in boxes(data, meta.at + 4, meta.end, parts):
        inner.setdefault(one.name, one)
    found = Meta()
    for name, read in (
        (b"pitm", _read_primary),
        (b"iinf", _read_infos),
        (b"iloc", _read_locations),
        (b"iprp", _read_properties),
        (b"iref", _read_references),
        (b"grpl", _read_groups),
    ):
        if name == b"iloc" and name in inner:
            _read_locations(data, inner[name], found, parts, inner.get(b"idat"))
        elif name in inner:
            read(data, inner[name], found, parts)
    for number in sorted(found.items):  # of several alpha channels the one of the lowest number
        item = found.items[number]
        if item.alpha_of and is_decodable(item) and is_alpha(item.property(b"auxC")):
            found.alphas.setdefault(item.alpha_of, item)
    return found


def _item(meta: Meta, number: int) -> Item:
    return meta.items.setdefault(number, Item(number))


def _read_primary(data: bytes, at: Box, meta: Meta, _parts: Parts) -> None:
    cursor = Cursor(data, at.at, at.end)
    version, _ = cursor.version()
    meta.primary = cursor.number(4 if version else 2)


def _read_infos(data: bytes, at: Box, meta: Meta, parts: Parts) -> None:
    cursor = Cursor(data, at.at, at.end)
    version, _ = cursor.version()
    cursor.skip(4 if version else 2)
    for one in boxes(data, cursor.at, at.end, parts):
        if one.name != b"infe":
            continue
        entry = Cursor(data, one.at, one.end)
        version, _ = entry.version()
        if version not in (2, 3):
            continue
        item = _item(meta, entry.number(2 if version == 2 else 4))  # noqa: PLR2004
        entry.skip(2)
        item.kind = item.kind or entry.bytes(4)


def _read_locations(
    data: bytes, at: Box, meta: Meta, parts: Parts, idat: Box | None = None
) -> None:
    cursor = Cursor(data, at.at, at.end)
    version, _ = cursor.version()
    sizes = cursor.number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version > 1 else 2
    for _ in range(cursor.number(wide)):
        item = _item(meta, cursor.number(wide))
        source = cursor.number(2) & 15 if version else _FROM_FILE
        cursor.skip(2)
        base = cursor.number(base_size)
        count = cursor.number(2)
        parts.take(1 + count)
        shift = 0
        if source == _FROM_IDAT and idat is not None:
            shift = idat.at
        elif source not in (_FROM_FILE, _FROM_IDAT):
            base = len(data)  # nothing is there
        known = bool(item.extents)
        for _ in range(count):
            cursor.skip(index_size)
            start = shift + base + cursor.number(offset_size)
            length = cursor.number(length_size)
            if not known:
                item.extents.append((start, length))


def _read_properties(data: bytes, at: Box, meta: Meta, parts: Parts) -> None:
    container = find(data, b"ipco", at, parts)
    known = [
        Property(one.name, data[one.at : one.end])
        for one in boxes(data, container.at, container.end, parts)
    ]
    for one in boxes(data, at.at, at.end, parts):
        if one.name == b"ipma":
            _read_associations(Cursor(data, one.at, one.end), known, meta, parts)


def _read_associations(cursor: Cursor, known: Sequence[Property], meta: Meta, parts: Parts) -> None:
    version, flags = cursor.version()
    wide = 2 if flags & 1 else 1
    for _ in range(cursor.number(4)):
        item = _item(meta, cursor.number(4 if version else 2))
        count = cursor.number(1)
        parts.take(1 + count)
        for _ in range(count):
            index = cursor.number(wide) & (0x7FFF if flags & 1 else 0x7F)
            if index > len(known):
                raise Malformed("a property that is not there")
            if index:
                item.properties.append(known[index - 1])


def _read_references(data: bytes, at: Box, meta: Meta, parts: Parts) -> None:
    cursor = Cursor(data, at.at, at.end)
    version, _ = cursor.version()
    wide = 4 if version else 2
    for one in boxes(data, cursor.at, at.end, parts):
        entry = Cursor(data, one.at, one.end)
        item = _item(meta, entry.number(wide))
        count = entry.number(2)
        parts.take(count)
        targets = [entry.number(wide) for _ in range(count)]
        if one.name == b"dimg":
            item.sources += targets
        elif one.name == b"auxl" and targets:
            item.alpha_of = targets[-1]
        elif one.name == b"prem" and targets:
            item.premultiplied_by = targets[-1]


def _read_groups(data: bytes, at: Box, meta: Meta, parts: Parts) -> None:
    for one in boxes(data, at.at, at.end, parts):
        if one.name == b"altr":
            cursor = Cursor(data, one.at, one.end)
            cursor.skip(8)
            count = cursor.number(4)
            parts.take(count)
            meta.alternatives.append([cursor.number(4) for _ in range(count)])
