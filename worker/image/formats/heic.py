"""HEIC, read without a decoder; see `container.py`.

Chromium shows none. What is shown follows HEIF's rules, as phones and desktops apply them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pi_heif import HeifImageFile

from worker.image.formats import hevc
from worker.image.formats.boxes import Parts, boxes
from worker.image.formats.code_points import UNSPECIFIED, profiles_of
from worker.image.formats.container import Box as Crop
from worker.image.formats.container import Frame, Header, Malformed, opened, plain
from worker.image.formats.file_types import HEVC
from worker.image.formats.geometry import fitted, geometry
from worker.image.formats.items import Item, Meta, Picture, pictures, read_meta, still

_LENGTH_BYTES_AT = 21
"""In a decoder's configuration: bytes of a unit's length, less one, in the low bits."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture of the file."""

    picture: Picture
    crop: Crop | None
    orientation: int
    area: int


def heic(data: bytes, _most_frames: int) -> Header:
    """The primary picture, and what else may be shown in its place. Raises Malformed."""
    parts = Parts()
    meta = _meta(data, parts)
    first, *further = (_shown(data, meta, one) for one in pictures(meta, data, HEVC))
    width, height = first.picture.size
    item = first.picture.item
    tiles = [meta.item(number) for number in item.sources]
    properties = [*item.properties, *(tiles[0].properties if tiles else [])]

    def decoded(target: int | None) -> Iterator[Frame]:
        for one in (first, *further):
            file = still(data, meta, one.picture, b"heic")
            image = opened(HeifImageFile, file, one.picture.size, target)
            image.load()
            if image.size != one.picture.size:
                raise Malformed("of two sizes")
            picture = plain(image)
            if one is not first:
                picture = fitted(picture, one.crop, one.orientation, first.orientation)
                picture = picture.resize((width, height))
            yield Frame(picture)

    return Header(
        width,
        height,
        decoded,
        1 + len(further),
        area=max(one.area for one in (first, *further)),
        orientation=first.orientation,
        crop=first.crop,
        profiles=profiles_of(properties, (UNSPECIFIED, UNSPECIFIED)),
    )


def _meta(data: bytes, parts: Parts) -> Meta:
    for one in boxes(data, 0, len(data), parts):
        if one.name == b"meta":
            return read_meta(data, one, parts)
    raise Malformed("no picture, or only a sequence")


def _shown(data: bytes, meta: Meta, picture: Picture) -> _Shown:
    crop, orientation = geometry(picture.transforms, picture.size, in_order=True)
    width, height = picture.size
    coded = [meta.item(number) for number in picture.item.sources] or [picture.item]
    if (alpha := meta.alphas.get(picture.item.number)) is not None:
        coded.append(alpha)
    area = max(width * height, *(_pixels(data, one) for one in coded))
    return _Shown(picture, crop, orientation, area)


def _pixels(data: bytes, item: Item) -> int:
    """The most pixels of a coded picture."""
    configuration = item.property(b"hvcC") or b""
    if len(configuration) <= _LENGTH_BYTES_AT:
        raise Malformed("no configuration of the decoder")
    length_bytes = (configuration[_LENGTH_BYTES_AT] & 3) + 1
    inline = hevc.units(data, item.extents, length_bytes)
    sets = (*hevc.parameter_sets(configuration), *inline)
    return max(map(hevc.pixels, sets), default=0)
