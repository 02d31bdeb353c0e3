"""Colour profiles that one viewer applies and another one does not.

A file holds the plain picture under a profile that whitens it, or the picture with its levels
scrambled under the profile that puts them in order. The first shows the picture where viewers pass
over the profile, the second where they apply it.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    Heif,
    iccp,
    jpeg_icc,
    jpeg_with,
    png_chunk,
    png_with,
    prof,
    riff_chunk,
    riff_of,
    webp_extended,
)
from tests.viewers.corpus import profile_bytes as icc
from tests.viewers.corpus.case import SIZE, Case, Make, plainly

type Wrap = Callable[[bytes, bytes], bytes]
"""A file and a profile to the file with the profile in it."""

ICC_FLAG = 0x20
PART = 500
WHITE = icc.whitening()


def hidden(kind: str, wrap: Wrap, mode: str = "RGB", profile: bytes = b"", **options) -> Make:
    """Levels scrambled, under the profile that puts them in order."""

    def make(picture: Image.Image) -> bytes:
        stored = icc.scrambled(picture.convert(mode))
        return wrap(writers.save(stored, kind, **options), profile or icc.unscrambling(mode))

    return make


def plain(kind: str, wrap: Wrap, profile: bytes = WHITE, mode: str = "RGB", **options) -> Make:
    """The plain picture, under a profile that hides it."""
    return lambda picture: wrap(writers.save(picture.convert(mode), kind, **options), profile)


def stored_as(kind: str, wrap: Wrap, draw, profile: bytes, **options) -> Make:
    """A picture drawn for its profile."""
    return lambda picture: wrap(writers.save(draw(picture), kind, **options), profile)


# -- where the containers keep a profile -------------------------------------------------------


def in_png(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile))


def in_jpeg(data: bytes, profile: bytes) -> bytes:
    return jpeg_with(data, jpeg_icc(profile))


def in_webp(data: bytes, profile: bytes, flags: int = ICC_FLAG) -> bytes:
    head, *rest = webp_extended(data, flags, *SIZE)
    return riff_of([head, riff_chunk(b"ICCP", profile), *rest])


def in_avif(data: bytes, profile: bytes) -> bytes:
    return bytes(Heif.read(data).add(prof(profile), first=True))


def jpeg_two(data: bytes, profile: bytes) -> bytes:
    return jpeg_with(data, jpeg_icc(profile), jpeg_icc(WHITE))


def _scrambled_palette(picture: Image.Image) -> Image.Image:
    """The palette alone is scrambled."""
    image = picture.quantize(256)
    colors = np.asarray(image.getpalette("RGB"), np.uint8).reshape(1, -1, 3)
    image.putpalette(np.asarray(icc.scrambled(Image.fromarray(colors))).ravel().tolist())
    return image


def png_two(data: bytes, profile: bytes) -> bytes:
    """The profile, and behind it one that whitens."""
    return png_with(data, iccp(profile), iccp(WHITE))


def png_srgb_second(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile), png_chunk(b"sRGB", b"\0"))


def png_srgb_first(data: bytes, profile: bytes) -> bytes:
    return png_with(data, png_chunk(b"sRGB", b"\0"), iccp(profile))


def png_wrong_checksum(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile)[:-4] + b"nope")


def png_late(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile), after=b"IDAT")


def png_long_name(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile, b"n" * 80))


def png_no_name(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile, b""))


def png_method(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile, method=1))


def png_after_palette(data: bytes, profile: bytes) -> bytes:
    return png_with(data, iccp(profile), after=b"PLTE")


def png_cut_stream(data: bytes, profile: bytes) -> bytes:
    """The profile's compressed stream lacks its end."""
    return png_with(data, png_chunk(b"iCCP", iccp(profile)[8:-12]))


def jpeg_parts(order: tuple[int, ...], count: int = 0, lost: tuple[int, ...] = ()) -> Wrap:
    """The profile in parts, in this order, each saying that there are `count`."""

    def wrap(data: bytes, profile: bytes) -> bytes:
        parts = [profile[at : at + PART] for at in range(0, len(profile), PART)]
        total = count or len(parts)
        segments = [
            jpeg_icc(parts[n % len(parts)], n % len(parts) + 1, total)
            for n in order or range(len(parts))
            if n not in lost
        ]
        return jpeg_with(data, *segments)

    return wrap


def jpeg_numbered(number: int, count: int) -> Wrap:
    return lambda data, profile: jpeg_with(data, jpeg_icc(profile, number, count))


def webp_after(data: bytes, profile: bytes) -> bytes:
    return riff_of(webp_extended(data, ICC_FLAG, *SIZE, riff_chunk(b"ICCP", profile)))


def webp_beyond(data: bytes, profile: bytes) -> bytes:
    """Behind the end that the file's first chunk gives."""
    return riff_of(webp_extended(data, ICC_FLAG, *SIZE)) + riff_chunk(b"ICCP", profile)


def webp_two(data: bytes, profile: bytes) -> bytes:
    head, *rest = webp_extended(data, ICC_FLAG, *SIZE)
    profiles = riff_chunk(b"ICCP", profile), riff_chunk(b"ICCP", WHITE)
    return riff_of([head, *profiles, *rest])


def avif_two(data: bytes, profile: bytes) -> bytes:
    return bytes(Heif.read(data).add(prof(profile), first=True).add(prof(WHITE)))


def heic_profile(data: bytes, profile: bytes) -> bytes:
    return bytes(Heif.read(data).add(prof(profile)))


def avif_replaced(data: bytes, profile: bytes) -> bytes:
    """The profile takes the place of the numbers for the colour space."""
    return bytes(Heif.read(data).replace(b"colr", prof(profile)))


def bmp_v5(picture: Image.Image) -> bytes:
    """A bitmap of version 5 with a profile at its end."""
    profile = icc.unscrambling()
    rows = np.asarray(icc.scrambled(picture))[::-1, :, ::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 124, *picture.size, 1, 24, 0, len(rows), 0, 0, 0, 0)
    info += (
        bytes(16) + b"DEBM" + bytes(48) + struct.pack("<IIII", 4, 124 + len(rows), len(profile), 0)
    )
    return struct.pack("<2sIHHI", b"BM", 138 + len(rows), 0, 0, 138) + info + rows + profile


def bmp_v4_gamma(picture: Image.Image) -> bytes:
    """A bitmap of version 4 with primaries and gammas of its own."""
    rows = np.asarray(picture)[::-1, :, ::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 108, *picture.size, 1, 24, 0, len(rows), 0, 0, 0, 0)
    info += bytes(16) + struct.pack("<I", 0) + bytes(36) + struct.pack("<III", *[1 << 12] * 3)
    return struct.pack("<2sIHHI", b"BM", 122 + len(rows), 0, 0, 122) + info + rows


def large() -> bytes:
    """The unscrambling profile with six megabytes of zeros in a tag of its own."""
    tags = {b"zero": bytes(6 << 20)}
    levels = icc.unscrambling()
    start = levels.index(b"curv")
    size = 12 + 2 * icc.LEVELS
    return icc.profile(icc.columns() | icc.curves(levels[start : start + size]) | tags)


def _cmyk(picture: Image.Image) -> Image.Image:
    return picture.convert("CMYK")


def _grey_jpeg(data: bytes, profile: bytes) -> bytes:
    return in_jpeg(data, profile)


SRGB_TAGS = icc.columns() | icc.curves(icc.srgb_curve())
D2B0 = icc.constant_profile()
D2B1 = icc.profile(SRGB_TAGS | {b"D2B1": icc.constant_d2b0()})
JPEG: dict[str, Any] = {"quality": 90}
_CLASSES = {b"scnr": "scanner", b"prtr": "printer", b"spac": "colour space"}


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Colour", kind, quirk, make, **more)


CASES = (
    _c(
        "JPEG",
        "all-white profile with a wrong length",
        plain("JPEG", in_jpeg, icc.whitening_short()),
    ),
    _c("PNG", "all-white profile with a wrong length", plain("PNG", in_png, icc.whitening_short())),
    _c(
        "WebP",
        "all-white profile with a wrong length",
        plain("WEBP", in_webp, icc.whitening_short()),
    ),
    _c(
        "AVIF",
        "all-white profile with a wrong length",
        plain("AVIF", in_avif, icc.whitening_short()),
        control=plainly,
        known=True,
    ),
    _c(
        "TIFF",
        "profile of scrambled levels",
        lambda p: writers.save(icc.scrambled(p), "TIFF", icc_profile=icc.unscrambling()),
        control=plainly,
    ),
    _c(
        "HEIC",
        "negative, profile that turns it back",
        lambda p: heic_profile(writers.heic()(icc.negative(p)), icc.negating()),
        control=plainly,
    ),
    _c("PNG", "sRGB profile with a constant D2B0 table", plain("PNG", in_png, D2B0)),
    _c("JPEG", "sRGB profile with a constant D2B0 table", plain("JPEG", in_jpeg, D2B0, **JPEG)),
    _c("WebP", "sRGB profile with a constant D2B1 table", plain("WEBP", in_webp, D2B1)),
    *(
        _c(
            "PNG",
            f"sawtooth curve of {step} levels that is sRGB at {samples} points",
            stored_as(
                "PNG",
                in_png,
                lambda p, step=step: icc.in_low_bits(p, step),
                icc.sawtooth(step, samples),
            ),
        )
        for step, samples in ((16, 33), (16, 17), (16, 65), (32, 33), (64, 129))
    ),
    _c(
        "WebP",
        "sawtooth curve of 16 levels that is sRGB at 33 points",
        stored_as(
            "WEBP", in_webp, lambda p: icc.in_low_bits(p, 16), icc.sawtooth(16, 33), lossless=True
        ),
    ),
    *(
        _c(
            "PNG",
            f"scrambled levels, profile of class {name}",
            hidden("PNG", in_png, profile=icc.unscrambling(kind=of)),
        )
        for of, name in _CLASSES.items()
    ),
    _c(
        "JPEG",
        "negative, profile of an unknown class",
        stored_as("JPEG", in_jpeg, icc.negative, icc.negating(kind=b"xxxx"), **JPEG),
    ),
    _c(
        "JPEG",
        "negative, profile of a printer",
        stored_as("JPEG", in_jpeg, icc.negative, icc.negating(kind=b"prtr"), **JPEG),
    ),
    _c(
        "AVIF",
        "negative, profile of a scanner",
        stored_as("AVIF", in_avif, icc.negative, icc.negating(kind=b"scnr"), quality=90),
    ),
    _c(
        "PNG",
        "scrambled levels, profile of version 2",
        hidden("PNG", in_png, profile=icc.unscrambling(version=0x02400000)),
    ),
    _c(
        "PNG",
        "all-white profile of version 9",
        plain("PNG", in_png, icc.whitening(version=0x09000000)),
    ),
    _c("PNG", "grey profile on a picture in colour", plain("PNG", in_png, icc.whitening_grey())),
    _c("JPEG", "grey profile on a picture in colour", plain("JPEG", in_jpeg, icc.whitening_grey())),
    _c("PNG", "scrambled grey levels", hidden("PNG", in_png, "L")),
    _c(
        "JPEG",
        "grey negative",
        stored_as(
            "JPEG", in_jpeg, lambda p: icc.negative(p.convert("L")), icc.negating("L"), **JPEG
        ),
    ),
    _c("PNG", "profile larger than 4 MiB", hidden("PNG", in_png, profile=large())),
    _c(
        "WebP", "profile larger than 4 MiB", hidden("WEBP", in_webp, profile=large(), lossless=True)
    ),
    _c("PNG", "two profiles, the second all white", hidden("PNG", png_two)),
    _c("WebP", "two profiles, the second all white", hidden("WEBP", webp_two, lossless=True)),
    _c(
        "AVIF",
        "two profiles, the second all white",
        stored_as("AVIF", avif_two, icc.negative, icc.negating(), quality=90),
        known=False,
    ),
    _c("PNG", "profile, then sRGB", hidden("PNG", png_srgb_second)),
    _c("PNG", "sRGB, then a profile", hidden("PNG", png_srgb_first)),
    _c("PNG", "all-white profile of a wrong checksum", plain("PNG", png_wrong_checksum)),
    _c("PNG", "all-white profile behind the pixels", plain("PNG", png_late)),
    _c("PNG", "scrambled levels, profile with a name of 80 letters", hidden("PNG", png_long_name)),
    _c("PNG", "all-white profile without a name", plain("PNG", png_no_name)),
    _c("PNG", "all-white profile of another compression", plain("PNG", png_method)),
    _c(
        "PNG",
        "scrambled levels, profile behind the palette",
        lambda p: png_after_palette(writers.save(_scrambled_palette(p), "PNG"), icc.unscrambling()),
    ),
    _c("PNG", "all-white profile whose stream is cut", plain("PNG", png_cut_stream)),
    _c(
        "JPEG",
        "profile in parts, last part first",
        stored_as("JPEG", jpeg_parts((3, 2, 1, 0)), icc.negative, icc.negating(), **JPEG),
    ),
    _c("JPEG", "all-white profile with a part lost", plain("JPEG", jpeg_parts((), 3))),
    _c(
        "JPEG",
        "negative, two profiles, the second all white",
        stored_as("JPEG", jpeg_two, icc.negative, icc.negating(), **JPEG),
    ),
    _c("JPEG", "all-white profile, numbered 0", plain("JPEG", jpeg_numbered(0, 1))),
    _c("JPEG", "all-white profile, numbered 2 of 1", plain("JPEG", jpeg_numbered(2, 1))),
    _c(
        "WebP",
        "all-white profile that is not announced",
        plain("WEBP", lambda data, profile: in_webp(data, profile, 0)),
    ),
    _c("WebP", "profile behind the picture", hidden("WEBP", webp_after, lossless=True)),
    _c("WebP", "all-white profile beyond the end of RIFF", plain("WEBP", webp_beyond)),
    _c(
        "AVIF",
        "negative, profile instead of nclx",
        stored_as("AVIF", avif_replaced, icc.negative, icc.negating(), quality=90),
    ),
    _c("BMP", "version 5 with a profile of scrambled levels", bmp_v5),
    _c("BMP", "version 4 with gammas of 1/16", bmp_v4_gamma),
)
