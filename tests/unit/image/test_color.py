"""Colours become sRGB; what is sRGB already is left alone, and what is no profile as well."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.fixtures import profiles
from tests.fixtures.bombs import chunk, overlapping_tags, part, riff, segment, vp8x, with_segments
from tests.fixtures.container_bombs import encode
from worker.errors import DecodeError, UnscreenedReason
from worker.image import color
from worker.image.color import apply_gamma, is_foreign, to_srgb
from worker.image.decode import decode, kind_of, needs_process
from worker.image.formats import FORMATS
from worker.settings import Limits

LIMITS = Limits()
FOREIGN = {
    "Display P3": (profiles.DISPLAY_P3, None),
    "Adobe RGB": (profiles.ADOBE_RGB, 2.2),
    "ProPhoto": (profiles.PROPHOTO, 1.8),
    "swapped": (profiles.SWAPPED, None),
    "sRGB's primaries, another curve": (profiles.SRGB, 1.0),
}


def ramp() -> Image.Image:
    y, x = np.mgrid[:64, :64]
    rgb = np.stack([x * 2 + 60, y * 2 + 60, (x + y) + 50], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def difference(one, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


def test_srgb_is_known_by_its_numbers() -> None:
    assert not is_foreign(b"")
    assert not is_foreign(profiles.rgb(profiles.SRGB))
    assert not is_foreign(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for columns, gamma in FOREIGN.values():
        assert is_foreign(profiles.rgb(columns, gamma))
    assert is_foreign(profiles.grey(1.8))


@pytest.mark.parametrize("name", FOREIGN)
def test_other_colours_become_srgb(name: str) -> None:
    columns, gamma = FOREIGN[name]
    icc, stored = profiles.rgb(columns, gamma), profiles.converted(ramp(), columns, gamma)
    assert difference(stored, ramp()) > 2
    assert difference(to_srgb(stored, icc), ramp()) < 1.5
    for kind, options in {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}.items():
        data = encode(stored, kind, icc_profile=icc, **options)
        assert difference(decode(data, LIMITS).pixels, ramp()) < 1.5, kind
    for kind in ("JPEG", "AVIF"):
        data = encode(stored, kind, icc_profile=icc, quality=95)
        assert difference(decode(data, LIMITS).pixels, ramp()) < 4, kind


def test_transparency_stays() -> None:
    columns, gamma = FOREIGN["swapped"]
    stored = profiles.converted(ramp(), columns, gamma).convert("RGBA")
    stored.putalpha(Image.new("L", (64, 64), 100))
    shown = to_srgb(stored, profiles.rgb(columns, gamma))
    assert shown.getchannel("A").getextrema() == (100, 100)
    palette = ramp().quantize(16)
    data = encode(palette, "PNG", transparency=3, icc_profile=profiles.rgb(columns, gamma))
    hidden = np.asarray(palette) == 3
    assert (decode(data, LIMITS).pixels[hidden] == 255).all()


def test_grey_by_a_profile_of_grey() -> None:
    grey = ramp().convert("L")
    levels = np.asarray(grey) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    stored = Image.fromarray(np.round(linear * 255).astype(np.uint8))
    data = encode(stored, "PNG", icc_profile=profiles.grey(1.0))
    assert difference(decode(data, LIMITS).pixels, grey.convert("RGB")) < 2


@pytest.mark.parametrize(
    "icc",
    [
        b"x",
        b"acsp" * 100,
        profiles.rgb(profiles.DISPLAY_P3)[:200],
        profiles.rgb(profiles.DISPLAY_P3)[:132] + b"\xff" * 300,
        profiles.grey(2.2),  # of another kind of colours than the picture's
    ],
)
def test_what_is_no_profile_changes_nothing(icc: bytes) -> None:
    data = encode(ramp(), "PNG", icc_profile=icc)
    assert np.array_equal(decode(data, LIMITS).pixels, np.asarray(ramp()))


def test_a_profile_too_large_is_none() -> None:
    icc = profiles.rgb(profiles.SWAPPED) + bytes(5 * 1024 * 1024)
    for kind in ("PNG", "JPEG"):
        data = encode(ramp(), kind, icc_profile=icc)
        assert difference(decode(data, LIMITS).pixels, ramp()) < 3
        assert not needs_process(data, LIMITS)


def test_only_foreign_profiles_need_a_process_of_their_own() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        assert not needs_process(encode(ramp(), kind), LIMITS)
        srgb = encode(ramp(), kind, icc_profile=profiles.rgb(profiles.SRGB))
        assert not needs_process(srgb, LIMITS)
        other = encode(ramp(), kind, icc_profile=profiles.rgb(profiles.DISPLAY_P3))
        assert needs_process(other, LIMITS)
        assert needs_process(other[:14], LIMITS)  # decoding will tell what is wrong, over there
    assert needs_process(encode(ramp(), "BMP"), LIMITS)


ICC = profiles.rgb(profiles.SWAPPED)
IN_TWO = [
    segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 2]) + ICC[200 * n :][: 200 if not n else None])
    for n in (0, 1)
]
PACKED = chunk(b"iCCP", b"p\0\0" + zlib.compress(ICC))


def still(kind: str, *parts: bytes, flags: int = 0, behind: bool = False) -> bytes:
    """A picture with these parts before or behind its pixels."""
    data = encode(ramp(), kind)
    if kind == "JPEG":
        return with_segments(data, *parts)
    if kind == "PNG":
        at = len(data) - 12 if behind else 33
        return data[:at] + b"".join(parts) + data[at:]
    return riff(vp8x(64, 64, flags), *parts, data[12:])


@pytest.mark.parametrize(
    ("data", "profile"),
    [
        (still("JPEG", *IN_TWO), "applied"),
        (still("JPEG", *IN_TWO[::-1]), "applied"),
        (still("JPEG", IN_TWO[0]), "ignored"),
        (still("JPEG", *IN_TWO, IN_TWO[1]), "ignored"),
        (still("JPEG", IN_TWO[0].replace(b"\1\2", b"\1\3"), IN_TWO[1]), "ignored"),
        (still("JPEG", *(one.replace(b"\2", b"\3", 1) for one in IN_TWO)), "ignored"),
        (still("PNG", PACKED), "applied"),
        (still("PNG", PACKED, behind=True), "ignored"),
        (still("PNG", chunk(b"PLTE", bytes(3)), PACKED), "ignored"),
        (still("PNG", PACKED[:-1] + bytes([PACKED[-1] ^ 1])), "ignored"),
        (still("WEBP", part(b"ICCP", ICC), flags=0x20), "applied"),
        (still("WEBP", part(b"ICCP", ICC)), "ignored"),
        (still("WEBP", part(b"ICCP", ICC), flags=0x22), "ignored"),
    ],
)
def test_a_profile_that_browsers_pass_over_is_none(data: bytes, profile: str) -> None:
    assert bool(FORMATS[kind_of(data)].header(data, 10, 1).icc) == (profile == "applied")
    if data[:4] != b"RIFF" or not data[20] & 2:  # no animation
        shown = decode(data, LIMITS).pixels
        assert (difference(shown, ramp()) > 20) == (profile == "applied")


def test_exif_that_browsers_pass_over_turns_nothing() -> None:
    exif = struct.pack("<4sIHHHIHH", b"II*\0", 8, 1, 0x0112, 3, 1, 6, 0)
    good = chunk(b"eXIf", exif)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    assert FORMATS["PNG"].header(still("PNG", good), 10, 1).orientation == 6
    assert FORMATS["PNG"].header(still("PNG", bad), 10, 1).orientation == 1
    for flags, orientation in ((0x08, 6), (0, 1)):
        data = still("WEBP", part(b"EXIF", exif), flags=flags)
        assert FORMATS["WEBP"].header(data, 10, 1).orientation == orientation
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    assert FORMATS["PNG"].header(still("PNG", gamma), 10, 1).gamma == 1
    assert not FORMATS["PNG"].header(still("PNG", gamma[:-1] + b"x"), 10, 1).gamma


def test_tags_that_lie_over_each_other_cost_nothing() -> None:
    icc = overlapping_tags()
    tracemalloc.start()
    try:
        assert is_foreign(icc)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_of_two_tags_of_a_name_the_first_one_counts() -> None:
    """As in lcms: what is applied is what is judged."""
    icc = profiles.rgb(profiles.SRGB)
    count = int.from_bytes(icc[128:132])
    entries = [icc[at : at + 12] for at in range(132, 132 + 12 * count, 12)]
    place = {entry[:4]: entry[4:] for entry in entries}
    twice = [b"rXYZ" + place[b"gXYZ"], *entries[:2], *entries[3:]]  # instead of the white point
    assert not is_foreign(icc)
    assert is_foreign(icc[:132] + b"".join(twice) + icc[132 + 12 * count :])


def test_a_process_is_needed_where_judging_a_profile_fails(monkeypatch) -> None:
    data = encode(ramp(), "PNG", icc_profile=profiles.rgb(profiles.DISPLAY_P3))

    def fail(_icc: bytes) -> dict[bytes, bytes]:
        raise MemoryError

    monkeypatch.setattr(color, "_tags", fail)
    assert needs_process(data, LIMITS)
    with pytest.raises(DecodeError) as caught:
        decode(data, LIMITS)
    assert caught.value.reason is UnscreenedReason.UNDECODABLE


def test_what_lcms_refuses_pushes_no_transform_out() -> None:
    good = profiles.rgb(profiles.DISPLAY_P3)
    to_srgb(ramp(), good)
    for number in range(8):
        to_srgb(ramp(), good[:200] + bytes([number]))
    before = color._transform.cache_info().hits
    to_srgb(ramp(), good)
    assert color._transform.cache_info().hits == before + 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_gamma_of_one_is_light_itself(mode: str) -> None:
    image = Image.new("L", (2, 2), 55).convert(mode)  # 55/255 of the light looks like 128/255
    red, *_, alpha = np.asarray(apply_gamma(image, 1.0).convert("RGBA"))[0, 0].tolist()
    assert abs(red - 127) <= 1
    assert alpha == 255
    assert apply_gamma(image, 1 / 2.2) is image
