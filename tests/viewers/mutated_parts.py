"""Random parts that a file of each format may hold: profiles, EXIF, transparency, and junk."""

import random
import struct
from collections.abc import Callable

from tests.fixtures import profiles
from tests.viewers.containers import (
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
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 13, 16, 127, 128, 255)
_SWAPPED_PRIMARIES = (31270, 32900, 30000, 60000, 15000, 6000, 64000, 33000)


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
        lambda: png_chunk(b"cHRM", struct.pack(">8I", *_SWAPPED_PRIMARIES)),
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
                chance.choice(NUMBERS),
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


ADDED: dict[str, Callable[[random.Random], bytes]] = {
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
