"""Colours without a profile: `cICP`, `sRGB`, `gAMA`, `cHRM`, `nclx`, and odd look-up tables."""

import struct

import numpy as np
from PIL import Image

from tests.fixtures import profiles, writers
from tests.fixtures.container_bombs import icon
from tests.viewers.containers import Heif, iccp, nclx, png_chunk, png_with
from tests.viewers.corpus import colors
from tests.viewers.corpus import profile_bytes as icc
from tests.viewers.corpus.case import Case, Make, plainly

_GAMMA, _PRIMARIES, _CICP, _SRGB = b"gAMA", b"cHRM", b"cICP", b"sRGB"
_FULL_RANGE = 1


def gama(value: int) -> bytes:
    return png_chunk(_GAMMA, struct.pack(">I", value))


def chrm(*points: int) -> bytes:
    return png_chunk(_PRIMARIES, struct.pack(">8I", *points))


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = _FULL_RANGE) -> bytes:
    return png_chunk(_CICP, bytes((primaries, transfer, matrix, full)))


SRGB_CHUNK = png_chunk(_SRGB, b"\0")
BT709 = cicp(1, 13)
SWAPPED_PRIMARIES = (31270, 32900, 30000, 60000, 15000, 6000, 64000, 33000)
"""Of sRGB: what is called red is its green, green its blue, blue its red."""


def with_chunks(*chunks: bytes, before: bytes = b"IDAT", after: bytes = b"") -> Make:
    return lambda picture: png_with(
        writers.save(picture, "PNG"), *chunks, before=before, after=after
    )


def darkened(exponent: float, *chunks: bytes) -> Make:
    """Levels to a power, so that the chunks have to be applied for the picture to be seen."""

    def make(picture: Image.Image) -> bytes:
        levels = np.round(255 * (np.asarray(picture) / 255) ** exponent).astype(np.uint8)
        return png_with(writers.save(Image.fromarray(levels), "PNG"), *chunks)

    return make


def scrambled(*chunks: bytes) -> Make:
    """Scrambled levels and the profile, among chunks that may outrank it."""
    return lambda picture: png_with(
        writers.save(icc.scrambled(picture), "PNG"), *chunks, iccp(icc.unscrambling())
    )


def swapped(*chunks: bytes) -> Make:
    def make(picture: Image.Image) -> bytes:
        stored = profiles.converted(picture, profiles.SWAPPED)
        return png_with(writers.save(stored, "PNG"), *chunks)

    return make


def pq(picture: Image.Image) -> Image.Image:
    """The picture in the levels of PQ, at 203 cd/m2 for white."""
    light = icc.light(np.asarray(picture) / 255) * 203 / 10_000
    power = light**0.1593017578125
    levels = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return Image.fromarray(np.round(255 * levels).astype(np.uint8))


def linear(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.round(255 * icc.light(np.asarray(picture) / 255)).astype(np.uint8))


def avif_nclx(numbers: tuple[int, int, int], draw=plainly, *, full: bool = True) -> Make:
    def make(picture: Image.Image) -> bytes:
        data = writers.save(draw(picture), "AVIF", quality=90)
        return bytes(Heif.read(data).replace(b"colr", nclx(*numbers, full_range=full)))

    return make


def avif_both(numbers: tuple[int, int, int], profile: bytes, draw) -> Make:
    def make(picture: Image.Image) -> bytes:
        data = colors.in_avif(writers.save(draw(picture), "AVIF", quality=90), profile)
        return bytes(Heif.read(data).replace(b"colr", nclx(*numbers)))

    return make


def table_profile(name: bytes, tag: bytes = b"A2B0", connection: bytes = b"Lab ") -> bytes:
    """sRGB by its curves, one colour by its table."""
    constant = icc.table((0xFF00, 0x8080, 0x8080), name)
    return icc.profile(colors.SRGB_TAGS | {tag: constant}, connection=connection)


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Colour", kind, quirk, make, **more)


CASES = (
    _c("PNG", "cICP of sRGB over an all-white profile", with_chunks(BT709, iccp(colors.WHITE))),
    _c("PNG", "all-white profile, then cICP of sRGB", with_chunks(iccp(colors.WHITE), BT709)),
    _c("PNG", "cICP of sRGB over gAMA", with_chunks(BT709, gama(1_000_000))),
    _c("PNG", "cICP of sRGB with a wrong checksum over a profile", scrambled(BT709[:-4] + b"nope")),
    _c("PNG", "cICP of three bytes over a profile", scrambled(png_chunk(_CICP, b"\1\x0d\0"))),
    _c("PNG", "cICP behind the pixels", with_chunks(cicp(1, 8), after=b"IDAT")),
    _c(
        "PNG",
        "cICP of linear light",
        lambda p: png_with(writers.save(linear(p), "PNG"), cicp(1, 8)),
    ),
    _c("PNG", "cICP of PQ", lambda p: png_with(writers.save(pq(p), "PNG"), cicp(1, 16))),
    _c("PNG", "cICP of HLG on a plain picture", with_chunks(cicp(9, 18))),
    _c("PNG", "cICP with limited range", with_chunks(cicp(1, 13, full=0))),
    _c("PNG", "cICP with a matrix of YCbCr", with_chunks(cicp(1, 13, 1)), control=plainly),
    _c("PNG", "two cICP, the second of linear light", with_chunks(BT709, cicp(1, 8))),
    _c("PNG", "profile over gAMA of 10", scrambled(gama(1_000_000))),
    _c("PNG", "profile over sRGB and gAMA", scrambled(SRGB_CHUNK, gama(20_000))),
    _c("PNG", "sRGB over gAMA of 10", with_chunks(SRGB_CHUNK, gama(1_000_000))),
    _c("PNG", "gAMA of 10, then sRGB", with_chunks(gama(1_000_000), SRGB_CHUNK)),
    _c(
        "PNG",
        "sRGB of intent 9 over gAMA",
        with_chunks(png_chunk(_SRGB, b"\x09"), gama(3_000_000)),
        known=False,
    ),
    _c("PNG", "gAMA of 0.1", darkened(0.22, gama(10_000))),
    _c("PNG", "gAMA of 3", darkened(6.6, gama(300_000))),
    _c("PNG", "gAMA of 0", with_chunks(gama(0))),
    _c("PNG", "gAMA of 2^31", with_chunks(gama(1 << 31)), known=False),
    _c("PNG", "gAMA of 2^31 - 1", with_chunks(gama((1 << 31) - 1)), known=False),
    _c("PNG", "two gAMA, the second of 10", with_chunks(gama(45_455), gama(1_000_000))),
    _c("PNG", "two gAMA, the first of 10", with_chunks(gama(1_000_000), gama(45_455)), known=False),
    _c("PNG", "gAMA of 10 with a wrong checksum", with_chunks(gama(1_000_000)[:-4] + b"nope")),
    _c("PNG", "gAMA of 10 behind the pixels", with_chunks(gama(1_000_000), after=b"IDAT")),
    _c(
        "PNG",
        "gAMA of 3 behind the palette",
        lambda p: png_with(writers.save(p.quantize(256), "PNG"), gama(1_000_000), after=b"PLTE"),
        known=False,
    ),
    _c(
        "PNG",
        "cHRM of swapped primaries, and gAMA",
        swapped(gama(45_455), chrm(*SWAPPED_PRIMARIES)),
    ),
    _c("PNG", "cHRM of swapped primaries, without gAMA", with_chunks(chrm(*SWAPPED_PRIMARIES))),
    _c(
        "PNG",
        "sRGB over cHRM of swapped primaries",
        with_chunks(SRGB_CHUNK, gama(45_455), chrm(*SWAPPED_PRIMARIES)),
    ),
    _c(
        "PNG",
        "16 bits under gAMA of 1.5",
        lambda p: writers.png(
            np.round(65535 * (np.asarray(p) / 255) ** 3.3).astype(np.uint16), 16, 2, gama(150_000)
        ),
    ),
    _c(
        "PNG",
        "profile with a constant A2B0 table",
        colors.plain("PNG", colors.in_png, table_profile(b"mft2")),
        known=False,
    ),
    _c(
        "PNG",
        "profile with a constant A2B0 table of 8 bits",
        colors.plain("PNG", colors.in_png, table_profile(b"mft1")),
        known=False,
    ),
    _c(
        "PNG",
        "profile with a constant A2B1 table",
        colors.plain("PNG", colors.in_png, table_profile(b"mft2", b"A2B1")),
        known=False,
    ),
    _c(
        "PNG",
        "profile with a constant A2B2 table",
        colors.plain("PNG", colors.in_png, table_profile(b"mft2", b"A2B2", b"XYZ ")),
    ),
    _c(
        "JPEG",
        "profile with a broken A2B0 table",
        colors.plain(
            "JPEG", colors.in_jpeg, icc.profile(colors.SRGB_TAGS | {b"A2B0": b"mft2" + bytes(60)})
        ),
        known=False,
    ),
    _c("AVIF", "nclx of linear light", avif_nclx((1, 8, 6), linear)),
    _c("AVIF", "nclx of PQ", avif_nclx((1, 16, 6), pq)),
    _c("AVIF", "nclx of HLG on a plain picture", avif_nclx((9, 18, 6))),
    _c("AVIF", "nclx of the identity matrix", avif_nclx((1, 13, 0)), known=False),
    _c("AVIF", "nclx of limited range", avif_nclx((1, 13, 6), full=False)),
    _c("AVIF", "nclx of reserved numbers", avif_nclx((3, 3, 3)), known=False),
    _c(
        "AVIF",
        "negative, profile beside nclx of linear light",
        avif_both((1, 8, 6), icc.negating(), icc.negative),
    ),
    _c(
        "JPEG",
        "CMYK, all-white CMYK profile",
        lambda p: colors.in_jpeg(
            writers.save(p.convert("CMYK"), "JPEG", quality=90),
            icc.profile({b"A2B0": b"mft2" + bytes(60)}, b"CMYK", connection=b"Lab "),
        ),
    ),
    _c(
        "ICO",
        "PNG inside, scrambled levels and their profile",
        lambda p: icon(
            png_with(
                writers.save(icc.scrambled(p.resize((256, 256))), "PNG"), iccp(icc.unscrambling())
            )
        ),
    ),
)
