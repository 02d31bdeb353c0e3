"""The pictures of an AVIF or HEIC file that are no sequence: HEIF's items (ISO 23008-12).

The `meta` box, which `meta.py` reads, lists items: coded pictures, and pictures derived from
others. Each has properties.
`still` writes a new file with one picture and what it is made of, and nothing else, for a decoder.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.image.formats.boxes import Cursor, box, full_box
from worker.image.formats.container import Malformed

AV1, HEVC = b"av01", b"hvc1"
_GRID, _IDENTITY, _TONE_MAP = b"grid", b"iden", b"tmap"
_OVERLAY = b"iovl"
_DERIVED = (_GRID, _IDENTITY, _TONE_MAP, _OVERLAY)
_ALPHA_TYPES = (
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0",
    b"urn:mpeg:hevc:2015:auxid:1\0",
)
_KEPT_PROPERTIES = {b"ispe", b"pixi", b"av1C", b"hvcC", b"auxC", b"a1op", b"lsel", b"a1lx"}
"""For the decoder. What crops, turns and colours the picture is applied afterwards."""
_CONFIGURATIONS = (b"av1C", b"hvcC")
_ESSENTIAL = {b"av1C", b"hvcC", b"a1op", b"lsel"}
_TRANSFORMS = {b"clap", b"irot", b"imir"}
_UNKNOWN_MATRIX, _UNSPECIFIED_MATRIX = b"\0\x12", b"\0\2"
"""From the former on no matrix is defined."""
UNSPECIFIED = 2
"""A code point of H.273."""
_MOST_ITEMS, _MOST_PROPERTIES = 0xFFFF, 0x7FFF
"""As many can be numbered."""
_MOST_DEPTH = 4
"""Derived pictures of derived pictures."""


class Property(NamedTuple):
    """A property's box: its name and contents."""

    name: bytes
    body: bytes


class Coded(NamedTuple):
    """What a codec says of coded pictures.

    `pixels` are the most of one picture, `is_full_color` is whether any has a colour for each pixel
    (4:4:4), and `colors` are the primaries and transfer of the first one, as in H.273.
    """

    pixels: int
    is_full_color: bool
    colors: tuple[int, int] = UNSPECIFIED, UNSPECIFIED


@dataclass(slots=True)
class Item:
    """A picture of the file. `extents` are where its bytes lie: offset and length, in order.

    `sources` are the items that it is derived from; `alpha_of` is the item that it is the alpha
    channel of; `premultiplied_by` is the alpha channel that its colours are multiplied by.
    """

    number: int
    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[Property] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    alpha_of: int = 0
    premultiplied_by: int = 0

    def property(self, name: bytes) -> bytes | None:
        """The contents of the first property of a name."""
        return next((one.body for one in self.properties if one.name == name), None)

    def payload(self, data: bytes) -> bytes:
        """What the file has of its bytes. Raises Malformed where they are more than the file."""
        if len(self.extents) > 1 and sum(length for _, length in self.extents) > len(data):
            raise Malformed("a picture larger than the file")
        return b"".join(data[at : at + length] for at, length in self.extents)

    def span(self, data: bytes) -> tuple[bytes, int, int]:
        """Where its bytes lie: in which bytes, from where, and how many. Raises Malformed."""
        if len(self.extents) == 1:
            return (data, *self.extents[0])
        joined = self.payload(data)
        return joined, 0, len(joined)


@dataclass(slots=True)
class Meta:
    """A `meta` box. `alternatives` are groups of items of which a viewer shows the first it can.

    `alphas` are the alpha channels by the item that they belong to.
    """

    primary: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    alternatives: list[list[int]] = field(default_factory=list)
    alphas: dict[int, Item] = field(default_factory=dict)

    def item(self, number: int) -> Item:
        """Raises Malformed where there is none."""
        if number not in self.items:
            raise Malformed("an item that is not there")
        return self.items[number]


@dataclass(frozen=True, slots=True)
class Picture:
    """An item that a viewer shows. `transforms` are the properties that crop and turn it.

    They may be another item's, which is derived from this one.
    """

    item: Item
    codec: bytes
    transforms: Sequence[Property]
    size: tuple[int, int]


def codec_of(meta: Meta) -> bytes:
    """The codec of the primary item: `av01` or `hvc1`, or whatever the file calls it."""
    item = meta.items.get(meta.primary)
    for _ in range(_MOST_DEPTH):
        if item is None:
            break
        if item.kind not in _DERIVED:
            return item.kind
        item = meta.items.get(item.sources[0]) if item.sources else None
    return b""


def pictures(meta: Meta, data: bytes) -> list[Picture]:
    """The pictures that viewers show as the file's, Chromium's first. Raises Malformed.

    It is the primary item, unless that is one of several alternatives: then each viewer takes the
    first whose codec it has.
    """
    numbers = next((one for one in meta.alternatives if meta.primary in one), [])
    found = list[Picture]()
    failure: Malformed | None = None
    for number in dict.fromkeys((*numbers, meta.primary)):
        try:
            one = _picture(meta, data, meta.item(number))
        except Malformed as error:
            failure = error
        else:
            is_new = all(one.item is not other.item for other in found)
            is_first = all(one.codec != other.codec for other in found)
            if is_new and (is_first or number == meta.primary):
                found.append(one)
    if not found:
        raise failure or Malformed("no picture")
    return sorted(found, key=lambda one: one.codec != AV1)


def _picture(meta: Meta, data: bytes, item: Item) -> Picture:
    transforms = item
    for _ in range(_MOST_DEPTH):
        if item.kind not in (_IDENTITY, _TONE_MAP):
            break
        if not item.sources:
            raise Malformed("derived from nothing")
        item = meta.item(item.sources[0])
        if transforms.kind != _IDENTITY:
            transforms = item
    tiles = [item]
    if item.kind in (_GRID, _OVERLAY):
        tiles = [meta.item(number) for number in item.sources]
        if not tiles:
            raise Malformed("derived from nothing")
    codec = tiles[0].kind
    if codec not in (AV1, HEVC) or any(tile.kind != codec for tile in tiles):
        raise Malformed("another codec")
    extent = item.property(b"ispe")
    if extent is None or len(extent) < 12:  # noqa: PLR2004 - version, width, height
        raise Malformed("no size")
    size = struct.unpack_from(">II", extent, 4)
    if item.kind == _GRID:
        _check_grid(item, data, size)
    transforming = [one for one in transforms.properties if one.name in _TRANSFORMS]
    return Picture(item, codec, transforming, size)


def _check_grid(item: Item, data: bytes, size: tuple[int, int]) -> None:
    """Its own size and tiles. Raises Malformed."""
    payload = item.payload(data)
    cursor = Cursor(payload, 0, len(payload))
    _, wide, rows, columns = (cursor.number(1) for _ in range(4))
    field_bytes = 4 if wide & 1 else 2
    if (cursor.number(field_bytes), cursor.number(field_bytes)) != size:
        raise Malformed("of two sizes")
    if (rows + 1) * (columns + 1) != len(item.sources):
        raise Malformed("tiles are missing")


def is_decodable(item: Item) -> bool:
    """Whether an item can be decoded; a viewer passes over an alpha channel that cannot."""
    has_codec = any(one.name in _CONFIGURATIONS for one in item.properties)
    return bool(item.extents) and (item.kind == _GRID or (item.kind in (AV1, HEVC) and has_codec))


def is_alpha(auxiliary: bytes | None) -> bool:
    """Whether an auxiliary picture of this type (`auxC`) is an alpha channel."""
    return auxiliary is not None and auxiliary[4:].startswith(_ALPHA_TYPES)


def still(data: bytes, meta: Meta, picture: Picture, brand: bytes) -> bytes:
    """Write a file of this picture alone; the coded bytes are all of `data`. Raises Malformed.

    Bytes that lie scattered are put together behind it.
    """
    parts = list(needed(meta, picture))
    spans, joined = _spans(data, parts)
    numbers = {item.number: index for index, item in enumerate(parts, 1)}
    properties = dict[Property, int]()
    associations, infos, references = list[bytes](), list[bytes](), list[bytes]()
    for item in parts:
        first = {one.name: one for one in reversed(item.properties) if _is_kept(one)}
        kept = [decodable(one) for one in first.values()]
        indexes = [properties.setdefault(one, len(properties) + 1) for one in kept]
        number = struct.pack(">H", numbers[item.number])
        associations += [number, bytes([len(kept)])]
        associations += [
            struct.pack(">H", index | (one.name in _ESSENTIAL) << 15)
            for one, index in zip(kept, indexes, strict=True)
        ]
        infos.append(full_box(b"infe", number, b"\0\0", item.kind, b"\0", version=2))
        references += _references(item, numbers)
    if len(properties) > _MOST_PROPERTIES:
        raise Malformed("too many properties")
    container = box(b"ipco", *(box(*one) for one in properties))
    associated = full_box(b"ipma", struct.pack(">I", len(parts)), *associations, flags=1)
    head = box(b"ftyp", brand, bytes(4), brand, b"mif1", b"miaf")

    def whole(base: int) -> bytes:
        return head + full_box(
            b"meta",
            full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", b"\0\1"),
            _locations(spans, base),
            full_box(b"iinf", struct.pack(">H", len(parts)), *infos),
            box(b"iprp", container, associated),
            full_box(b"iref", *references) if references else b"",
        )

    start = len(whole(0)) + 8
    return b"".join((whole(start), struct.pack(">I4s", 0, b"mdat"), data, joined))


def _is_kept(one: Property) -> bool:
    return one.name in _KEPT_PROPERTIES or (one.name == b"colr" and one.body[:4] == b"nclx")


def decodable(one: Property) -> Property:
    """Code points without a matrix that no decoder knows: Chromium takes BT.601 for it."""
    if one.name != b"colr" or len(one.body) < 11 or one.body[8:10] < _UNKNOWN_MATRIX:  # noqa: PLR2004
        return one
    return Property(one.name, one.body[:8] + _UNSPECIFIED_MATRIX + one.body[10:])


def needed(meta: Meta, picture: Picture) -> Iterator[Item]:
    """The picture's item, its tiles, and the alpha channels of both with their tiles."""
    seen = set[int]()
    alpha = meta.alphas.get(picture.item.number)
    for item in (picture.item, *filter(None, [alpha])):
        for number in (item.number, *item.sources):
            of_tile = meta.alphas.get(number) if alpha is None else None
            for one in (meta.item(number), *filter(None, [of_tile])):
                if one.number not in seen:
                    seen.add(one.number)
                    yield one


def check_parts(data: bytes, items: Sequence[Item]) -> None:
    """Raise Malformed if items in several parts are larger together than the file.

    Their parts are copied, and all items may have the same parts.
    """
    scattered = (one for one in items if len(one.extents) > 1)
    if sum(length for one in scattered for _, length in one.extents) > len(data):
        raise Malformed("pictures larger than the file")


def _spans(data: bytes, items: Sequence[Item]) -> tuple[list[tuple[int, int]], bytes]:
    """Where the bytes of each item will lie, and what comes behind `data`. Raises Malformed."""
    if len(items) > _MOST_ITEMS:
        raise Malformed("too many items")
    spans, joined, size = list[tuple[int, int]](), list[bytes](), 0
    for item in items:
        if not item.extents:
            raise Malformed("a picture that is not there")
        if len(item.extents) == 1:
            spans.append(item.extents[0])
            continue
        joined.append(item.payload(data))
        spans.append((len(data) + size, len(joined[-1])))
        size += len(joined[-1])
    return spans, b"".join(joined)


def _references(item: Item, numbers: dict[int, int]) -> Iterator[bytes]:
    for name, targets in (
        (b"dimg", item.sources),
        (b"auxl", [item.alpha_of]),
        (b"prem", [item.premultiplied_by]),
    ):
        known = [numbers[one] for one in targets if one in numbers]
        if known:
            form = f">HH{len(known)}H"
            yield box(name, struct.pack(form, numbers[item.number], len(known), *known))


def _locations(spans: Sequence[tuple[int, int]], base: int) -> bytes:
    entries = [
        struct.pack(">HHHQQ", number, 0, 1, base + at, length)
        for number, (at, length) in enumerate(spans, 1)
    ]
    return full_box(b"iloc", struct.pack(">HH", 0x8800, len(spans)), *entries)
