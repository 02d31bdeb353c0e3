"""AVIF and HEIC, read without a decoder; see `container.py`.

A file may hold a picture, a sequence, or both, and viewers choose: Chromium shows the sequence
where the major brand is `avis`, the picture where it is `avif`, and otherwise the sequence if there
is one. A picture may have alternatives of another codec. What other viewers may show follows as
further frames, if it is something else.

Chromium shows no HEVC. Such pictures follow HEIF's rules, as phones and desktops apply them. Of
sequences only those of AV1 are read.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pi_heif import HeifImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile

from worker.image.formats import av1, hevc
from worker.image.formats.boxes import Box, Parts, boxes
from worker.image.formats.code_points import is_grey, profiles_of
from worker.image.formats.container import Box as Crop
from worker.image.formats.container import (
    Frame,
    Header,
    Malformed,
    opened,
    plain,
    shown_seconds,
)
from worker.image.formats.file_types import file_brands
from worker.image.formats.geometry import fitted, geometry
from worker.image.formats.items import (
    AV1,
    HEVC,
    Item,
    Meta,
    Picture,
    check_parts,
    needed,
    pictures,
    still,
)
from worker.image.formats.meta import read_meta
from worker.image.formats.tracks import (
    alpha_track,
    color_track,
    durations,
    read_tracks,
    sequence,
    sequence_padded,
)

_NEEDED = ((b"avif", b"meta"), (b"avis", b"moov"))
"""Boxes that a brand asks for."""
_MOST_READ = 4
"""`meta` and `moov` boxes. Chromium shows one of them, other viewers may show another one."""
_COLOR_AND_ALPHA = 2
_MOST_PROFILES = 2
"""In a `Header`."""
_LIGHT_BYTES = 16
"""A pixel, measured for a still picture without alpha whose colours are at half the resolution."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """How pictures of a codec are decoded, and whether their properties are applied in order."""

    reader: type[ImageFile]
    brand: bytes
    in_order: bool


_CODECS = {
    AV1: _Codec(AvifImageFile, b"avif", in_order=False),
    HEVC: _Codec(HeifImageFile, b"heic", in_order=True),
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture or a sequence of the file.

    `file` writes it alone, for the decoder; `spare` does so where a frame is damaged. `seconds` has
    an entry for each frame that may be decoded, of `count`. What is equal in `coded` looks the same
    in its first frame. `is_grey`: an ICC profile of grey is applied. `is_light`: no alpha, and
    colours at half the resolution.
    """

    reader: type[ImageFile]
    file: Callable[[], bytes]
    size: tuple[int, int]
    seconds: Sequence[float]
    crop: Crop | None
    orientation: int
    profiles: tuple[bytes, ...]
    area: int
    coded: object
    is_grey: bool = False
    is_light: bool = False
    truncated: bool = False
    count: int = 1
    spare: Callable[[], bytes] | None = None


type _Reader = Callable[[], list[_Shown]]


def heif(data: bytes, most_frames: int) -> Header:
    """The picture or the sequence that Chromium shows, and what else is shown. Raises Malformed."""
    parts = Parts()
    found = _found(data, file_brands(data), most_frames, parts)
    first, *others = found
    further = [one for one in others if _is_new(one, first)]
    width, height = first.size

    def decoded(target: int | None) -> Iterator[Frame]:
        yield from _frames(first, target)
        for other in further:
            for frame in _frames(other, target):
                image = fitted(frame.image, other.crop, other.orientation, first.orientation)
                yield Frame(image.resize(first.size), frame.seconds, frame.truncated)

    return Header(
        width,
        height,
        decoded,
        first.count + sum(other.count for other in further),
        area=max(one.area for one in (first, *further)),
        bytes_per_pixel=_LIGHT_BYTES if first.is_light and not further else None,
        orientation=first.orientation,
        crop=first.crop,
        truncated=first.truncated,
        profiles=_profiles(found),
    )


def _reads(data: bytes, brands: Sequence[bytes], most_frames: int, parts: Parts) -> list[_Reader]:
    """Readers of the `meta` and `moov` boxes, those first that Chromium takes.

    It reads boxes until it has all that the brands ask for; of several the last one counts.
    """
    stills, tracks, late = list[_Reader](), list[_Reader](), list[_Reader]()
    missing = {name for brand, name in _NEEDED if brand in brands}
    for one in boxes(data, 0, len(data), parts):
        if one.name == b"meta":
            reader, found = partial(_stills, data, one, parts), stills
        elif one.name == b"moov":
            reader, found = partial(_track, data, one, parts, most_frames), tracks
        else:
            continue
        if not missing and (stills or tracks):
            late.append(reader)
        else:
            found.insert(0, reader)
            missing.discard(one.name)
    first = stills + tracks if brands[0] == b"avif" else tracks + stills
    return [*first, *late][:_MOST_READ]


def _found(data: bytes, brands: Sequence[bytes], most_frames: int, parts: Parts) -> list[_Shown]:
    """All that viewers may show, Chromium's first. Raises Malformed where there is none."""
    found = list[_Shown]()
    failure: Malformed | None = None
    for read in _reads(data, brands, most_frames, parts):
        try:
            found += read()
        except Malformed as error:
            failure = failure or error
    if not found:
        raise failure or Malformed("no picture")
    return found


def _is_new(one: _Shown, first: _Shown) -> bool:
    """Whether it shows something else. A sequence goes on with other pictures than its first."""
    return one.coded != first.coded or one.count > first.count


def _profiles(found: Sequence[_Shown]) -> tuple[bytes, ...]:
    """The first one's, and then those of the others, for they may hold the same pictures."""
    first = found[0].profiles
    others = [profile for one in found[1:] for profile in one.profiles if profile not in first]
    if not others:
        return first
    return (*(first or (b"",)), *others)[:_MOST_PROFILES]


def _stills(data: bytes, at: Box, parts: Parts) -> list[_Shown]:
    """What a `meta` box shows."""
    meta = read_meta(data, at, parts)
    return [_still(data, meta, one) for one in pictures(meta, data)]


def _still(data: bytes, meta: Meta, picture: Picture) -> _Shown:
    item = picture.item
    tiles = [meta.item(number) for number in dict.fromkeys(item.sources)] or [item]
    coded = [one for one in needed(meta, picture) if one.kind in _CODECS]
    check_parts(data, coded)
    codec = _CODECS[picture.codec]
    crop, orientation = geometry(picture.transforms, picture.size, in_order=codec.in_order)
    properties = [*item.properties, *tiles[0].properties]
    if picture.codec == AV1:
        measured = av1.measure(one.span(data) for one in coded)
    else:
        measured = hevc.measure(data, coded)
    has_alpha = any(one.number not in (item.number, *item.sources) for one in coded)
    return _Shown(
        codec.reader,
        partial(still, data, meta, picture, codec.brand),
        picture.size,
        [0.0],
        crop,
        orientation,
        profiles_of(properties, measured.colors),
        _held(picture.size, measured.pixels, is_grid=len(tiles) > 1),
        coded=(_digests(data, coded), crop, orientation),
        is_grey=is_grey(properties),
        is_light=not (has_alpha or measured.is_full_color),
        truncated=any(sum(extent) > len(data) for one in coded for extent in one.extents),
    )


def _digests(data: bytes, items: Sequence[Item]) -> tuple[object, ...]:
    """What pictures differ by: digests of the coded bytes, or where the tiles lie."""
    if any(len(one.extents) > 1 for one in items) or len(items) > _COLOR_AND_ALPHA:
        return tuple(extent for one in items for extent in one.extents)
    return tuple(hashlib.sha256(one.payload(data)).digest() for one in items)


def _track(data: bytes, at: Box, parts: Parts, most_frames: int) -> list[_Shown]:
    """The sequence of a `moov` box."""
    tracks = read_tracks(data, at, most_frames, parts)
    color = color_track(tracks)
    alpha = alpha_track(tracks, color)
    truncated = color.truncated
    if alpha is not None and alpha.count < color.count:
        truncated = True
        color = replace(color, count=alpha.count, samples=color.samples[: alpha.count])
    crop, orientation = geometry(color.properties, color.size, in_order=False)
    samples = [*color.samples, *(alpha.samples if alpha else ())]
    measured = av1.measure((data, at, length) for at, length in samples)
    seconds = [*map(shown_seconds, durations(color))]
    if color.rounds is not None and color.count > 1 and seconds:
        seconds[-1] = math.inf
    firsts = [one.samples[0] for one in (color, alpha) if one]
    digests = tuple(hashlib.sha256(data[a : a + n]).digest() for a, n in firsts)
    return [
        _Shown(
            AvifImageFile,
            partial(sequence, data, color, alpha),
            color.size,
            seconds if color.count > 1 else [0.0],
            crop,
            orientation,
            profiles_of(color.properties, measured.colors),
            _held(color.size, measured.pixels),
            coded=(digests, crop, orientation),
            is_grey=is_grey(color.properties),
            truncated=truncated,
            count=color.count,
            spare=partial(sequence_padded, data, color, alpha, measured.pixels),
        )
    ]


def _held(size: tuple[int, int], coded: int, *, is_grid: bool = False) -> int:
    """The most pixels that are held of a picture, whose coded ones or tiles have `coded`.

    A picture of another size than the file says is scaled, and both are held.
    """
    shown = size[0] * size[1]
    if coded == shown or (is_grid and coded < shown):
        return shown
    return shown + coded


def _frames(one: _Shown, target: int | None) -> Iterator[Frame]:
    image, damaged = opened(one.reader, one.file(), one.size, target), False
    for number, seconds in enumerate(one.seconds):
        try:
            _load(image, number)
        except (OSError, RuntimeError):
            if one.spare is None or damaged:
                raise
            damaged = True
            image = opened(one.reader, one.spare(), one.size, target)
            _load(image, number)
        if image.size != one.size:
            raise Malformed("of two sizes")
        picture = plain(image)
        if one.count > 1:  # the next frame is loaded into the same picture
            picture = picture.copy()
        if one.is_grey:
            picture = picture.convert("LA" if picture.mode == "RGBA" else "L")
        yield Frame(picture, seconds, truncated=damaged)


def _load(image: ImageFile, number: int) -> None:
    if number:
        image.seek(number)
    image.load()
