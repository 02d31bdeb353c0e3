"""One random change of a file's parts: added, doubled, moved, cut, or wrong in a field."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.fixtures import profiles
from tests.viewers.containers import (
    Heif,
    box,
    clap,
    full_box,
    iccp,
    jpeg_icc,
    jpeg_segment,
    nclx,
    png_chunk,
    prof,
    riff_chunk,
)
from tests.viewers.corpus import profile_bytes as icc
from tests.viewers.corpus.geometry import tiff_exif
from tests.viewers.parts import Parts, split

type Change = Callable[[random.Random, Parts], Parts]

_PROFILES: tuple[Callable[[], bytes], ...] = (
    icc.whitening,
    icc.whitening_short,
    icc.whitening_grey,
    icc.negating,
    icc.unscrambling,
    icc.constant_profile,
    lambda: icc.whitening(kind=b"scnr"),
    lambda: icc.negating(kind=b"xxxx"),
    lambda: icc.negating(version=0x02400000),
    lambda: profiles.rgb(profiles.SWAPPED),
    lambda: icc.sawtooth(16, 33),
    lambda: icc.whitening()[:200],
)
_MARKERS = (b"Exif\0\0", b"Exif\0\xff", b"Exif", b"exif\0\0")
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 13, 16, 127, 128, 255)
_FIELD_BYTES = 40
"""At the beginning of a part: what a format keeps its fields in."""


def _profile(chance: random.Random) -> bytes:
    return chance.choice(_PROFILES)()


def _exif(chance: random.Random) -> bytes:
    order, kind = chance.choice("<>"), chance.choice((3, 3, 4))
    orientation, directory = chance.choice((1, 2, 3, 6, 6, 8, 9)), chance.choice((0, 0, 1))
    return tiff_exif(orientation, order=order, kind=kind, directory=directory)


# -- parts that a file of the format may hold --------------------------------------------------


def png_part(chance: random.Random) -> bytes:
    """A chunk that changes what is seen, or that should not."""
    number = chance.choice((1, 10_000, 45_455, 100_000, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1))
    colors = (
        chance.choice((1, 2, 9, 12)),
        chance.choice((1, 8, 13, 16, 18)),
        chance.choice((0, 0, 1)),
    )
    frame = (0, 200, 160, 0, 0, 1, 1, chance.randrange(3), chance.randrange(2))
    chunks: tuple[Callable[[], bytes], ...] = (
        lambda: iccp(
            _profile(chance), b"n" * chance.choice((0, 1, 3, 79, 80)), chance.choice((0, 0, 0, 1))
        ),
        lambda: png_chunk(b"gAMA", struct.pack(">I", number)),
        lambda: png_chunk(b"sRGB", bytes((chance.choice((0, 1, 2, 3, 9)),))),
        lambda: png_chunk(b"cICP", bytes((*colors, chance.choice((0, 1))))),
        lambda: png_chunk(
            b"cHRM", struct.pack(">8I", 31270, 32900, 30000, 60000, 15000, 6000, 64000, 33000)
        ),
        lambda: png_chunk(b"tRNS", bytes(chance.choice((0, 1, 2, 6, 16, 255, 256, 300)))),
        lambda: png_chunk(b"tRNS", b"\0\xff" * chance.choice((1, 3))),
        lambda: png_chunk(b"eXIf", chance.choice((b"", b"Exif\0\0")) + _exif(chance)),
        lambda: png_chunk(b"PLTE", chance.randbytes(3 * chance.choice((1, 2, 255, 256)))),
        lambda: png_chunk(b"tEXt", b"a\0" + bytes(chance.choice((0, 10, 100_000)))),
        lambda: png_chunk(b"bKGD", bytes(chance.choice((1, 2, 6)))),
        lambda: png_chunk(b"sBIT", bytes((1,) * chance.choice((1, 3, 4)))),
        lambda: png_chunk(b"acTL", struct.pack(">II", chance.choice((0, 1, 2, 5)), 0)),
        lambda: png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", *frame)),
        lambda: png_chunk(
            chance.choice((b"abCd", b"ABCD", b"IEND", b"IDAT")), bytes(chance.choice((0, 9)))
        ),
    )
    return chance.choice(chunks)()


def jpeg_part(chance: random.Random) -> bytes:
    transform = chance.choice((0, 1, 2, 3))
    segments: tuple[Callable[[], bytes], ...] = (
        lambda: jpeg_icc(
            _profile(chance), chance.choice((0, 1, 1, 1, 2)), chance.choice((0, 1, 1, 1, 2))
        ),
        lambda: jpeg_segment(
            0xE1, chance.choice((b"Exif\0\0", b"Exif\0\xff", b"Exif", b"exif\0\0")) + _exif(chance)
        ),
        lambda: jpeg_segment(0xE1, b"Exif\0\0"),
        lambda: jpeg_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)),
        lambda: jpeg_segment(
            0xE0, b"JFIF\0\1\1" + bytes((chance.choice((0, 1)), 0, 1, 0, 1, 0, 0))
        ),
        lambda: jpeg_segment(0xFE, bytes(chance.choice((0, 5, 60_000)))),
        lambda: jpeg_segment(0xDD, struct.pack(">H", chance.choice((0, 1, 7, 25)))),
        lambda: jpeg_segment(chance.choice((0xE2, 0xE5, 0xEF)), chance.randbytes(20)),
    )
    return chance.choice(segments)()


def webp_part(chance: random.Random) -> bytes:
    size = (199).to_bytes(3, "little") + (159).to_bytes(3, "little")
    chunks: tuple[Callable[[], bytes], ...] = (
        lambda: riff_chunk(b"ICCP", _profile(chance)),
        lambda: riff_chunk(b"EXIF", chance.choice((b"", b"Exif\0\0")) + _exif(chance)),
        lambda: riff_chunk(b"XMP ", b"<x/>"),
        lambda: riff_chunk(b"ALPH", bytes((0,)) + bytes(200 * 160)),
        lambda: riff_chunk(b"VP8X", bytes((chance.randrange(64), 0, 0, 0)) + size),
        lambda: riff_chunk(b"ANIM", bytes(4) + struct.pack("<H", 0)),
        lambda: riff_chunk(b"JUNK", chance.randbytes(chance.choice((0, 1, 100)))),
    )
    return chance.choice(chunks)()


def gif_part(chance: random.Random) -> bytes:
    parts: tuple[Callable[[], bytes], ...] = (
        lambda: (
            b"\x21\xf9\x04"
            + struct.pack(
                "<BHBB",
                chance.randrange(32),
                chance.choice((0, 1, 2, 6000)),
                chance.choice(_NUMBERS),
                0,
            )
        ),
        lambda: b"\x21\xfe\x04text\0",
        lambda: (
            b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", chance.choice((0, 1, 9))) + b"\0"
        ),
        lambda: b"\x21\xff\x0bICCRGBG1012" + b"\x05hello\0",
        lambda: b"\x21\x01\x0c" + bytes(12) + b"\x01a\0",
        lambda: chance.randbytes(3),
        lambda: b"\0" * 4,
    )
    return chance.choice(parts)()


def heif_property(chance: random.Random) -> bytes:
    numbers = chance.choice((1, 2, 9)), chance.choice((1, 8, 13, 16, 18)), chance.choice((0, 1, 6))
    props: tuple[Callable[[], bytes], ...] = (
        lambda: clap(
            chance.choice((100, 200, 300)),
            chance.choice((80, 160, 999)),
            (chance.choice((-100, 0, 1, 60)), chance.choice((1, 2))),
            (chance.choice((-80, 0, 50)), 2),
        ),
        lambda: box(b"irot", bytes((chance.randrange(4),))),
        lambda: box(b"imir", bytes((chance.randrange(2),))),
        lambda: nclx(*numbers, full_range=chance.random() < 0.7),
        lambda: prof(_profile(chance)),
        lambda: box(b"pasp", struct.pack(">II", 2, 1)),
        lambda: full_box(b"ispe", struct.pack(">II", chance.choice((100, 200)), 160)),
        lambda: full_box(b"pixi", bytes((3, 8, 8, chance.choice((8, 10))))),
        lambda: full_box(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"),
        lambda: box(b"junk", bytes(9)),
    )
    return chance.choice(props)()


def _jxl_part(chance: random.Random) -> bytes:
    boxes: tuple[Callable[[], bytes], ...] = (
        lambda: box(b"Exif", bytes(4) + _exif(chance)),
        lambda: box(b"jxll", bytes((chance.choice((5, 10)),))),
        lambda: box(b"junk", bytes(chance.choice((0, 5000)))),
        lambda: box(b"jxlp", bytes(4)),
    )
    return chance.choice(boxes)()


_ADDED = {
    "PNG": png_part,
    "APNG": png_part,
    "JPEG": jpeg_part,
    "WebP": webp_part,
    "GIF": gif_part,
    "JPEG XL": _jxl_part,
    "AVIF": lambda chance: box(chance.choice((b"free", b"skip", b"uuid", b"junk")), bytes(16)),
    "BMP": lambda chance: chance.randbytes(4),
    "ICO": lambda chance: chance.randbytes(4),
}


def _pick(chance: random.Random, parts: Sequence[bytes]) -> int:
    """A part; seldom the first or the largest one, without which nothing is left to see."""
    most = max(range(len(parts)), key=lambda at: len(parts[at]))
    minor = [at for at in range(1, len(parts)) if at != most]
    if minor and chance.random() < 0.8:
        return chance.choice(minor)
    return chance.randrange(len(parts))


# -- changes -----------------------------------------------------------------------------------


def add(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    parts.insert(chance.randint(0, len(parts)), _ADDED[file.format](chance))
    return replace(file, parts=tuple(parts))


def double(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    at = _pick(chance, parts)
    parts.insert(chance.choice((at + 1, chance.randint(0, len(parts)))), parts[at])
    return replace(file, parts=tuple(parts))


def move(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    moved = parts.pop(_pick(chance, parts))
    parts.insert(chance.randint(0, len(parts)), moved)
    return replace(file, parts=tuple(parts))


def drop(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    del parts[_pick(chance, parts)]
    return replace(file, parts=tuple(parts))


def cut(chance: random.Random, file: Parts) -> Parts:
    """A part loses its end; its length says so or not."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    keep = chance.choice((chance.randint(0, len(parts[at])), max(0, len(parts[at]) - 4)))
    parts[at] = parts[at][:keep]
    return replace(file, parts=tuple(parts))


def field(chance: random.Random, file: Parts) -> Parts:
    """A byte near the beginning of a part; the checksum is put right most of the time."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    changed = bytearray(parts[at])
    if not changed:
        return file
    start = 8 if file.format in ("PNG", "APNG") and len(changed) > 12 else 0
    place = min(len(changed) - 1, start + chance.randrange(_FIELD_BYTES))
    changed[place] = chance.choice((*_NUMBERS, changed[place] ^ 1 << chance.randrange(8)))
    parts[at] = bytes(changed)
    if start and chance.random() < 0.9:
        parts[at] = parts[at][:-4] + struct.pack(">I", zlib.crc32(parts[at][4:-4]))
    return replace(file, parts=tuple(parts))


def head(chance: random.Random, file: Parts) -> Parts:
    """A byte before the first part; where there is none, of the first part."""
    if not file.head:
        return field(chance, file)
    changed = bytearray(file.head)
    changed[chance.randrange(min(len(changed), _FIELD_BYTES))] = chance.choice(_NUMBERS)
    return replace(file, head=bytes(changed))


def checksum(chance: random.Random, file: Parts) -> Parts:
    """Wrong last bytes of a part: a PNG's checksum, or the end of what is coded."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    parts[at] = parts[at][:-4] + chance.randbytes(min(4, len(parts[at])))
    return replace(file, parts=tuple(parts))


def length(chance: random.Random, file: Parts) -> Parts:
    """A part that gives another length of itself."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    changed = bytearray(parts[at])
    by = chance.choice((-4, -1, 1, 4, 1000, 1 << 20))
    place, order = {"WebP": (4, "<I"), "JPEG": (2, ">H"), "BMP": (2, "<I"), "ICO": (8, "<I")}.get(
        file.format, (0, ">I")
    )
    size = struct.calcsize(order)
    if len(changed) >= place + size:
        (value,) = struct.unpack_from(order, changed, place)
        struct.pack_into(order, changed, place, (value + by) % (1 << 8 * size))
    parts[at] = bytes(changed)
    return replace(file, parts=tuple(parts))


def end(chance: random.Random, file: Parts) -> Parts:
    """The file is cut, or goes on behind its end."""
    data = bytes(file)
    if chance.random() < 0.5:
        return Parts(file.format, data[: int(len(data) * chance.uniform(0.5, 1))], ())
    more = chance.choice((bytes(100), chance.randbytes(100), _ADDED[file.format](chance)))
    return replace(file, parts=(*file.parts, more))


def properties(chance: random.Random, file: Parts) -> Parts:
    """Properties of an AVIF's picture: added, taken away, in another order, of other brands."""
    if file.format != "AVIF":
        return add(chance, file)
    heif = Heif.read(bytes(file))
    entries = heif.associations[1]
    match chance.randrange(6):
        case 0 | 1 | 2:
            heif.add(
                heif_property(chance), essential=chance.random() < 0.5, first=chance.random() < 0.5
            )
        case 3:
            chance.shuffle(entries)
        case 4:
            entries.pop(chance.randrange(len(entries)))
        case _:
            brands = [b"avif", b"isom", b"mif1", b"heic", b"avis", b"junk"]
            heif.brand(chance.choice(brands), *chance.sample(brands, chance.randint(0, 5)))
    return split(file.format, bytes(heif))


_OTHERS: tuple[Change, ...] = (
    double,
    move,
    drop,
    cut,
    field,
    field,
    head,
    checksum,
    length,
    end,
    properties,
)


def mutate(chance: random.Random, file: Parts) -> tuple[bytes, tuple[str, ...]]:
    """Add a few parts, change a few, and return the file with the names of the changes."""
    adding = properties if file.format == "AVIF" else add
    changes = [adding] * chance.choice((0, 1, 1, 2, 3))
    changes += [chance.choice(_OTHERS) for _ in range(chance.choice((0, 0, 1, 1, 2)))]
    names = []
    for change in changes or [chance.choice(_OTHERS)]:
        if not file.parts:
            break
        try:
            file = change(chance, file)
        except (struct.error, IndexError, KeyError, StopIteration, ValueError):
            continue  # an earlier change left nothing that this one understands
        names.append(change.__name__)
    data = bytes(file)
    if file.format == "WebP" and chance.random() < 0.85:
        data = data[:4] + struct.pack("<I", max(0, len(data) - 8)) + data[8:]
    return data, tuple(names)
