"""The sequences of AVIF files: tracks of a `moov` box (ISO 14496-12).

`sequence` writes a new file with one track, and its alpha channel's, and nothing else.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from worker.image.formats.av1 import padded
from worker.image.formats.boxes import Box, Cursor, Parts, box, boxes, find, full_box
from worker.image.formats.container import Malformed
from worker.image.formats.items import Property, decodable, is_alpha

MOST_FRAMES = 100_000
"""Of a file. More are not counted."""
_CODEC = b"av01"
_HANDLERS = (b"pict", b"vide", b"auxv")
_ENTRY_BYTES = 78
"""Of a sample entry, before its boxes."""
_KEPT_PROPERTIES = (b"av1C",)
_ENDLESS_32, _ENDLESS_64 = 2**32 - 1, 2**64 - 1
_WRITTEN_SCALE = 1000
_LEAST_PADDING, _MOST_PADDING = 64, 1 << 24
"""Bytes: of a coded picture, and of all of them."""
_REPEATED = 1
_UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)

type _Durations = list[tuple[int, int]]
"""How many samples last how long."""


@dataclass(slots=True)
class Track:
    """A track. `samples` are where its frames lie: offset and length.

    `count` is how many samples it has, which may be more than are listed; `seconds` is how long
    each is shown. `rounds` is how often the sequence is played, None for ever. `alpha_of` is the
    track that it is the alpha channel of.
    """

    number: int = 0
    handler: bytes = b""
    size: tuple[int, int] = (0, 0)
    alpha_of: int = 0
    premultiplied_by: int = 0
    count: int = 0
    rounds: float | None = None
    properties: list[Property] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)
    synchronised: set[int] = field(default_factory=set)
    durations: _Durations = field(default_factory=list)
    timescale: int = 0
    truncated: bool = False

    def seconds(self) -> Iterator[float]:
        """How long each sample is shown, without end: the last duration holds for all others."""
        ticks = 1
        for many, ticks in self.durations:
            for _ in range(min(many, MOST_FRAMES)):
                yield ticks / self.timescale if self.timescale else 0.0
        while True:
            yield ticks / self.timescale if self.timescale else 0.0


def read_tracks(data: bytes, movie: Box, most_samples: int, parts: Parts) -> list[Track]:
    """The tracks of AV1 pictures. At most `most_samples` samples are listed. Raises Malformed."""
    found = list[Track]()
    for one in boxes(data, movie.at, movie.end, parts):
        if one.name == b"trak":
            track = _read_track(data, one, most_samples, parts)
            if track.handler in _HANDLERS and track.samples:
                found.append(track)
    return found


def color_track(tracks: Sequence[Track]) -> Track:
    """The one that is shown: the first that is no other's alpha channel. Raises Malformed."""
    for track in tracks:
        if not track.alpha_of:
            return track
    raise Malformed("no track")


def alpha_track(tracks: Sequence[Track], color: Track) -> Track | None:
    """Its alpha channel."""
    for track in tracks:
        kind = next((one.body for one in track.properties if one.name == b"auxi"), None)
        if track.alpha_of == color.number and (kind is None or is_alpha(kind)):
            return track
    return None


def _read_track(data: bytes, trak: Box, most_samples: int, parts: Parts) -> Track:
    track = Track()
    for one in boxes(data, trak.at, trak.end, parts):
        if one.name == b"tkhd":
            duration = _read_header(Cursor(data, one.at, one.end), track)
        elif one.name == b"tref":
            _read_references(data, one, track, parts)
        elif one.name == b"mdia":
            _read_media(data, one, track, most_samples, parts)
    for one in boxes(data, trak.at, trak.end, parts):
        if one.name == b"edts":
            track.rounds = _rounds(data, one, duration, parts)
    return track


def _read_header(cursor: Cursor, track: Track) -> int | None:
    """Also its duration, None where that is endless."""
    version, _ = cursor.version()
    wide = 8 if version else 4
    cursor.skip(2 * wide)
    track.number = cursor.number(4)
    cursor.skip(4)
    duration = cursor.number(wide)
    cursor.skip(52)
    track.size = cursor.number(4) >> 16, cursor.number(4) >> 16
    return None if duration == (_ENDLESS_64 if version else _ENDLESS_32) else duration


def _read_references(data: bytes, tref: Box, track: Track, parts: Parts) -> None:
    for one in boxes(data, tref.at, tref.end, parts):
        if one.name == b"auxl":
            track.alpha_of = Cursor(data, one.at, one.end).number(4)
        elif one.name == b"prem":
            track.premultiplied_by = Cursor(data, one.at, one.end).number(4)


def _rounds(data: bytes, edits: Box, duration: int | None, parts: Parts) -> float | None:
    """How often the edit list is played: once, unless it says that it repeats."""
    edit = find(data, b"elst", edits, parts)
    cursor = Cursor(data, edit.at, edit.end)
    version, flags = cursor.version()
    if not flags & _REPEATED:
        return 1
    cursor.skip(4)
    segment = cursor.number(8 if version else 4)
    if duration is None or not segment:
        return None
    return -(-duration // segment)


def _read_media(data: bytes, mdia: Box, track: Track, most_samples: int, parts: Parts) -> None:
    for one in boxes(data, mdia.at, mdia.end, parts):
        cursor = Cursor(data, one.at, one.end)
        if one.name == b"mdhd":
            version, _ = cursor.version()
            cursor.skip(16 if version else 8)
            track.timescale = cursor.number(4)
        elif one.name == b"hdlr":
            cursor.skip(8)
            track.handler = cursor.bytes(4)
        elif one.name == b"minf":
            table = find(data, b"stbl", one, parts)
            _read_samples(data, table, track, most_samples, parts)


def _read_samples(data: bytes, table: Box, track: Track, most_samples: int, parts: Parts) -> None:
    inner = dict[bytes, Cursor]()
    for one in boxes(data, table.at, table.end, parts):
        inner.setdefault(one.name, Cursor(data, one.at, one.end))
    needed = (b"stsd", b"stsc", b"stsz", b"stts")
    if any(name not in inner for name in needed) or not (b"stco" in inner or b"co64" in inner):
        return
    for cursor in inner.values():
        cursor.skip(4)
    track.properties = _sample_entry(data, inner[b"stsd"], parts)
    if not track.properties:
        return
    track.durations = list(_pairs(inner[b"stts"], parts))
    _list_samples(data, inner, track, most_samples, parts)
    if b"stss" in inner:
        cursor = inner[b"stss"]
        for _ in range(_entries(cursor, 4, parts)):
            track.synchronised.add(cursor.number(4))


def _entries(cursor: Cursor, size: int, parts: Parts) -> int:
    """How many entries of `size` bytes follow; no more than there is room for."""
    count = min(cursor.number(4), (cursor.end - cursor.at) // size)
    parts.take(count)
    return count


def _pairs(cursor: Cursor, parts: Parts) -> Iterator[tuple[int, int]]:
    for _ in range(_entries(cursor, 8, parts)):
        yield cursor.number(4), cursor.number(4)


def _sample_entry(data: bytes, cursor: Cursor, parts: Parts) -> list[Property]:
    """Properties of the first description of AV1 samples; none where there is no such."""
    cursor.skip(4)
    for one in boxes(data, cursor.at, cursor.end, parts):
        if one.name == _CODEC:
            inner = boxes(data, one.at + _ENTRY_BYTES, one.end, parts)
            return [Property(each.name, data[each.at : each.end]) for each in inner]
    return []


def _list_samples(
    data: bytes, inner: dict[bytes, Cursor], track: Track, most_samples: int, parts: Parts
) -> None:
    """Find the samples. Those that are not all there, and what follows them, are left out."""
    offset_bytes = 4 if b"stco" in inner else 8
    offsets = inner[b"stco"] if b"stco" in inner else inner[b"co64"]
    a_chunk = _samples_of_chunks(inner[b"stsc"], parts)
    sizes = inner[b"stsz"]
    size = sizes.number(4)
    left = sizes.number(4)
    if not size:
        left = min(left, (sizes.end - sizes.at) // 4)
    for _ in range(_entries(offsets, offset_bytes, parts)):
        at = offsets.number(offset_bytes)
        for _ in range(min(next(a_chunk), left)):
            length = size or sizes.number(4)
            left -= 1
            if not length or at + length > len(data):
                track.truncated = True
                return
            track.count += 1
            if track.count <= most_samples:
                track.samples.append((at, length))
            if track.count >= MOST_FRAMES:
                return
            at += length


def _samples_of_chunks(cursor: Cursor, parts: Parts) -> Iterator[int]:
    """How many samples each chunk has, without end."""
    chunk, many = 1, 0
    for _ in range(_entries(cursor, 12, parts)):
        first, following = cursor.number(4), cursor.number(4)
        cursor.skip(4)
        while chunk < first:
            yield many
            chunk += 1
        many = following
    while True:
        yield many


def sequence(data: bytes, color: Track, alpha: Track | None) -> bytes:
    """Write a file of this track alone; the coded bytes are all of `data`."""
    tracks = [replace(color, number=1)]
    if alpha is not None:
        multiplied = 2 if color.premultiplied_by == alpha.number else 0
        tracks = [replace(color, number=1, premultiplied_by=multiplied)]
        tracks.append(
            replace(alpha, number=2, alpha_of=1, samples=alpha.samples[: len(color.samples)])
        )

    def whole(base: int) -> bytes:
        return box(b"ftyp", b"avis", bytes(4), b"avis", b"msf1", b"miaf") + box(
            b"moov", _movie_header(), *(_written(track, base) for track in tracks)
        )

    start = len(whole(0)) + 8
    return whole(start) + struct.pack(">I4s", 0, b"mdat") + data


def sequence_padded(data: bytes, color: Track, alpha: Track | None, pixels: int) -> bytes:
    """As `sequence`, with zero bytes behind each coded picture; see `av1.padded`.

    They are at most as many as the picture has pixels.
    """
    count = len(color.samples) * (1 if alpha is None else 2)
    each = max(_LEAST_PADDING, min(pixels, _MOST_PADDING // count))
    coded, size = list[bytes](), 0
    tracks = list[Track]()
    for track in filter(None, (color, alpha)):
        samples = list[tuple[int, int]]()
        for at, length in track.samples[: len(color.samples)]:
            coded.append(padded(data[at : at + length], each))
            samples.append((size, len(coded[-1])))
            size += len(coded[-1])
        tracks.append(replace(track, samples=samples))
    return sequence(b"".join(coded), tracks[0], tracks[1] if alpha is not None else None)


def _movie_header() -> bytes:
    body = struct.pack(">QIII10x", 0, _WRITTEN_SCALE, 0, 0x10000)
    return full_box(b"mvhd", body, _UNITY, bytes(24), struct.pack(">I", 3))


def _written(track: Track, base: int) -> bytes:
    width, height = track.size
    is_alpha_track = bool(track.alpha_of)
    references = []
    if is_alpha_track:
        references.append(box(b"auxl", struct.pack(">I", track.alpha_of)))
    elif track.premultiplied_by:
        references.append(box(b"prem", struct.pack(">I", track.premultiplied_by)))
    header = struct.pack(">QIII8xhhHxx", 0, track.number, 0, len(track.samples), 0, 0, 0)
    return box(
        b"trak",
        full_box(b"tkhd", header, _UNITY, struct.pack(">II", width << 16, height << 16), flags=1),
        box(b"tref", *references) if references else b"",
        box(
            b"mdia",
            full_box(b"mdhd", struct.pack(">QIIHH", 0, 1, len(track.samples), 0x55C4, 0)),
            full_box(b"hdlr", bytes(4), b"auxv" if is_alpha_track else b"pict", bytes(13)),
            box(b"minf", full_box(b"vmhd", bytes(8), flags=1), _sample_table(track, base)),
        ),
    )


def _sample_table(track: Track, base: int) -> bytes:
    width, height = track.size
    count = len(track.samples)
    kept = [one for one in track.properties if one.name in _KEPT_PROPERTIES]
    colors = [one for one in track.properties if one.name == b"colr" and one.body[:4] == b"nclx"]
    kept += map(decodable, colors[:1])
    if track.alpha_of:
        kept.append(Property(b"auxi", bytes(4) + b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"))
    entry = struct.pack(">6xH16xHHIIIH32xHh", 1, width, height, 72 << 16, 72 << 16, 0, 1, 24, -1)
    offsets = struct.pack(f">{count}Q", *(base + at for at, _ in track.samples))
    lengths = struct.pack(f">{count}I", *(length for _, length in track.samples))
    marks = sorted(one for one in track.synchronised if 0 < one <= count)
    return box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", 1), box(_CODEC, entry, *(box(*one) for one in kept))),
        full_box(b"stts", struct.pack(">III", 1, count, 1)),
        full_box(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        full_box(b"stsz", struct.pack(">II", 0, count), lengths),
        full_box(b"co64", struct.pack(">I", count), offsets),
        full_box(b"stss", struct.pack(f">I{len(marks)}I", len(marks), *marks)) if marks else b"",
    )


def durations(track: Track) -> list[float]:
    """How long each listed sample is shown, in seconds."""
    return list(islice(track.seconds(), len(track.samples)))
