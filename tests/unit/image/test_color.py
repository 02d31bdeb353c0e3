"""Colours become sRGB as Chromium shows them; what is sRGB already is left alone."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.fixtures import profiles
from tests.fixtures.container_bombs import encode
from worker.image import color
from worker.image.color import in_order, is_finer_than_8_bits, is_foreign, to_srgb, without_black
from worker.image.icc import parse
from worker.image.preprocess import decode
from worker.settings import Limits

LIMITS = Limits()
FOREIGN = {
    "Display P3": (profiles.DISPLAY_P3, None),
    "Adobe RGB": (profiles.ADOBE_RGB, 2.2),
    "ProPhoto": (profiles.PROPHOTO, 1.8),
    "swapped": (profiles.SWAPPED, None),
    "sRGB's primaries, another curve": (profiles.SRGB, 1.0),
}
SAWTOOTH = np.tile(np.linspace(0, 1, 16), 16)
LEVELS = np.arange(256) / 255
SRGB_LIGHT = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)


def ramp() -> Image.Image:
    y, x = np.mgrid[:64, :64]
    rgb = np.stack([x * 2 + 60, y * 2 + 60, (x + y) + 50], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def all_levels() -> Image.Image:
    """Every level of each channel, beside random levels of the others."""
    rgb = np.random.default_rng(1).integers(0, 256, (48, 256, 3), np.uint8)
    for channel in range(3):
        rgb[16 * channel : 16 * channel + 8, :, channel] = np.arange(256)
    return Image.fromarray(rgb)


def difference(one, other) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


def meant(image: Image.Image, icc: bytes) -> np.ndarray:
    """What a profile means, computed pixel by pixel."""
    stored = np.asarray(image)
    levels = parse(icc).srgb(stored.reshape(image.width * image.height, -1) / 255)
    return np.round(255 * levels).reshape(image.height, image.width, 3)


def with_curve(points: np.ndarray) -> bytes:
    return profiles.profile(b"RGB ", profiles.tags_of(profiles.SRGB, profiles.sampled(points)))


def test_srgb_is_known_by_its_numbers() -> None:
    assert not is_foreign(b"")
    assert not is_foreign(profiles.rgb(profiles.SRGB))
    assert not is_foreign(profiles.rgb(profiles.SRGB, 2.2))  # the curve of many a vendor's sRGB
    assert not is_foreign(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for columns, gamma in FOREIGN.values():
        assert is_foreign(profiles.rgb(columns, gamma))
    assert is_foreign(profiles.grey(1.8))
    assert not is_foreign(profiles.grey(2.2))


@pytest.mark.parametrize("points", [256, 1024, 4096])
def test_srgb_by_a_table(points: int) -> None:
    steps = np.interp(np.linspace(0, 1, points), LEVELS, SRGB_LIGHT)
    assert not is_foreign(with_curve(steps))


@pytest.mark.parametrize("entry", [1, 77, 254])
def test_one_wrong_entry_of_a_table_is_seen(entry: int) -> None:
    points = SRGB_LIGHT.copy()
    points[entry] = 1 - points[entry]
    assert is_foreign(with_curve(points))


def test_a_sawtooth_between_sampling_points_is_seen_and_applied() -> None:
    """It is sRGB's at 33 points; the picture lies in the low 4 bits."""
    points = SAWTOOTH.copy()
    points[::8] = SRGB_LIGHT[::8]
    icc = with_curve(points)
    assert is_foreign(icc)
    assert np.abs(np.asarray(to_srgb(all_levels(), icc)) - meant(all_levels(), icc)).max() <= 2


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


@pytest.mark.parametrize(
    "curve",
    [
        profiles.sampled(SAWTOOTH),
        profiles.sampled(LEVELS[::-1]),
        profiles.sampled(np.ones(2)),
        profiles.curve(0.5),
        profiles.parametric(2, 2.0, 0.9, -0.1, 0.1),
        profiles.parametric(4, 2.2, 0.9, 0.05, 0.5, 0.1, 0.05, 0.02),
        profiles.parametric(3, 2.0, 1.2, 0.1, 1.0, 0.1),
    ],
)
def test_curves_survive_what_lcms_optimises(curve: bytes) -> None:
    icc = profiles.profile(b"RGB ", profiles.tags_of(profiles.DISPLAY_P3, curve))
    shown = np.asarray(to_srgb(all_levels(), icc))
    assert np.abs(shown - meant(all_levels(), icc)).max() <= 2


@pytest.mark.parametrize(
    "tags",
    [
        profiles.tags_of([(-32768, 0.2, 0.1), *profiles.SRGB[1:]], profiles.curve(None)),
        profiles.tags_of([(0.5, 14_000, 0.1), *profiles.SRGB[1:]], profiles.curve(None)),
        profiles.tags_of(
            (200 * np.array(profiles.DISPLAY_P3)).tolist(),
            profiles.parametric(3, 2.2, 200 ** (-1 / 2.2), 0.0, 0.0, 0.0),
        ),
    ],
)
def test_numbers_that_lcms_cannot_hold(tags: dict[bytes, bytes]) -> None:
    icc = profiles.profile(b"RGB ", tags)
    assert difference(to_srgb(all_levels(), icc), meant(all_levels(), icc)) < 1


def test_a_table_is_quick_where_that_is_near_enough_and_exact_where_not() -> None:
    light = np.where(
        profiles.grid(3, 9) <= 0.04045,
        profiles.grid(3, 9) / 12.92,
        ((profiles.grid(3, 9) + 0.055) / 1.055) ** 2.4,
    )
    smooth = profiles.table(np.clip(light @ np.array(profiles.DISPLAY_P3), 0, 1))
    saw = profiles.table(np.clip(light @ np.array(profiles.DISPLAY_P3), 0, 1), SAWTOOTH)
    for tag, most in ((smooth, 1.0), (saw, 0.6)):
        icc = profiles.profile(b"RGB ", {b"A2B0": tag})
        assert (
            np.abs(np.asarray(to_srgb(all_levels(), icc)) - meant(all_levels(), icc)).mean() < most
        )


def test_between_the_points_of_a_table_all_neighbours_count() -> None:
    """lcms looks at four of the eight, so that greys would be black here."""
    points = np.zeros((2, 2, 2, 3))
    points[1, 0, 0] = points[0, 1, 1] = np.array([0.9642, 1.0, 0.8249])
    icc = profiles.profile(b"RGB ", {b"A2B0": profiles.table(points)})
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    assert np.abs(np.asarray(to_srgb(grey, icc)) - meant(grey, icc)).max() <= 2
    assert np.asarray(to_srgb(grey, icc)).min() > 100


def test_of_a_large_picture_fewer_pixels_are_computed_exactly(monkeypatch) -> None:
    tag = profiles.table(profiles.grid(3, 2) @ np.array(profiles.SRGB), SAWTOOTH)
    icc = profiles.profile(b"RGB ", {b"A2B0": tag})
    monkeypatch.setattr(color, "_MOST_EXACT", 64 * 64)
    small = np.asarray(ramp())
    large = Image.fromarray(small.repeat(8, 0).repeat(8, 1))
    shown = np.asarray(to_srgb(large, icc))
    assert shown.shape == (512, 512, 3)
    assert np.abs(shown[4::8, 4::8] - meant(ramp(), icc)).max() <= 2


def test_transparency_stays() -> None:
    columns, gamma = FOREIGN["swapped"]
    stored = profiles.converted(ramp(), columns, gamma).convert("RGBA")
    stored.putalpha(Image.new("L", (64, 64), 100))
    shown = to_srgb(stored, profiles.rgb(columns, gamma))
    assert shown.getchannel("A").getextrema() == (100, 100)
    grey = to_srgb(stored.convert("LA"), profiles.grey(1.0))
    assert grey.getchannel("A").getextrema() == (100, 100)


def test_grey_by_a_profile_of_grey() -> None:
    grey = ramp().convert("L")
    levels = np.asarray(grey) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    stored = Image.fromarray(np.round(linear * 255).astype(np.uint8))
    data = encode(stored, "PNG", icc_profile=profiles.grey(1.0))
    assert difference(decode(data, LIMITS).pixels, grey.convert("RGB")) < 2


def test_a_sawtooth_of_grey_is_exact() -> None:
    icc = profiles.profile(b"GRAY", {b"kTRC": profiles.sampled(SAWTOOTH)})
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(np.asarray(to_srgb(grey, icc)), meant(grey, icc))


@pytest.mark.parametrize(
    "icc",
    [
        b"x",
        b"acsp" * 100,
        profiles.rgb(profiles.DISPLAY_P3)[:200],
        profiles.rgb(profiles.DISPLAY_P3)[:132] + b"\xff" * 300,
        profiles.grey(1.0),  # of another kind of colours than the picture's
        profiles.cmyk(),
    ],
)
def test_what_is_no_profile_changes_nothing(icc: bytes) -> None:
    assert in_order(icc, 3) == (b"",)
    data = encode(ramp(), "PNG", icc_profile=icc)
    assert np.array_equal(decode(data, LIMITS).pixels, np.asarray(ramp()))


def test_a_profile_that_chromium_refuses_comes_second() -> None:
    swapped = profiles.rgb(profiles.SWAPPED)
    assert in_order(swapped, 3) == (swapped,)
    assert in_order(swapped, 1) == (swapped,)  # grey is red, green and blue at once
    assert in_order(swapped, 4) == (b"",)
    assert in_order(b"", 3) == (b"",)
    longer = struct.pack(">I", 9000) + swapped[4:]
    assert in_order(longer, 3) == (b"", longer)
    assert difference(to_srgb(ramp(), longer), ramp()) > 20


def test_a_png_takes_a_profile_of_any_colours() -> None:
    hsv = profiles.rgb(profiles.SWAPPED).replace(b"RGB ", b"HSV ", 1)
    assert in_order(hsv, 3) == (b"",)
    assert in_order(hsv, 3, any_space=True) == (hsv,)
    assert in_order(profiles.cmyk(), 3, any_space=True) == (b"",)


def test_black_ink_with_and_without_a_profile() -> None:
    """Chromium puts the black ink into the others before it applies the profile."""
    stored = Image.new("CMYK", (8, 8), (0, 50, 100, 130))
    icc = profiles.cmyk(0.5)
    assert np.abs(np.asarray(to_srgb(stored, icc)) - meant(stored, icc)).max() <= 2
    inks = 255 - np.asarray(stored.convert("RGB"), float)[0, 0]
    plain = Image.new("CMYK", (8, 8), (*(int(one) for one in inks), 0))
    shown = to_srgb(stored, without_black(icc))
    assert np.abs(np.asarray(shown) - meant(plain, icc)).max() <= 2
    assert difference(shown, to_srgb(stored, icc)) > 10


@pytest.mark.parametrize(
    ("points", "is_finer"),
    [
        (np.tile(np.linspace(0, 1, 256), 16), True),
        (np.linspace(0, 1, 4096) ** 2.2, False),
        (SAWTOOTH, False),  # jumps from level to level, which 8 bits show
    ],
)
def test_a_curve_that_shows_what_the_low_8_of_16_bits_hold(points, is_finer) -> None:
    assert is_finer_than_8_bits(with_curve(points)) == is_finer
    assert not is_finer_than_8_bits(b"")


def test_a_process_is_needed_where_judging_a_profile_fails(monkeypatch) -> None:
    icc = profiles.rgb(profiles.DISPLAY_P3)

    def fail(_icc: bytes, *, strict: bool) -> None:
        raise MemoryError(strict)

    color._parsed.cache_clear()
    monkeypatch.setattr(color, "parse", fail)
    with pytest.raises(MemoryError):
        is_foreign(icc)


def test_what_nobody_applies_pushes_no_transform_out() -> None:
    good = profiles.rgb(profiles.DISPLAY_P3)
    to_srgb(ramp(), good)
    for number in range(8):
        to_srgb(ramp(), good[:200] + bytes([number]))
    before = color._transform.cache_info().hits
    to_srgb(ramp(), good)
    assert color._transform.cache_info().hits == before + 1
