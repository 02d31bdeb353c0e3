"""What is refused, or read otherwise, by the header alone."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.fixtures import profiles, writers
from tests.fixtures.container_bombs import bmp, encode, icon, noise, tiff
from worker.errors import DecodeError, UnscreenedReason
from worker.image import bitmaps
from worker.image.decode import decode, frames, kind_of
from worker.image.headers import Malformed
from worker.image.tiff import tiff as read_tiff
from worker.settings import Limits

LIMITS = Limits()
GREY = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 277: 1, 278: 48}


def test_a_tiff_is_rewritten_of_what_a_picture_needs() -> None:
    secret = b"SECRET" * 50
    data = writers.save(noise(), "TIFF", tiffinfo={700: secret, 33723: secret, 270: "SECRET" * 9})
    kept = read_tiff(data, 1000, 1).data
    assert kept.count(b"SECRET") == data.count(b"SECRET")  # the bytes stay, nothing points there
    with tifffile.TiffFile(io.BytesIO(kept)) as file:
        assert {700, 33723, 270}.isdisjoint(file.pages.first.tags.keys())
    assert np.array_equal(decode(data, LIMITS).pixels, np.asarray(noise()))


def test_pages_of_several_sizes_are_frames() -> None:
    pages = [Image.new("RGB", (40 + 10 * n, 30), (n * 60, 0, 0)) for n in range(4)]
    data = writers.save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    found = list(frames(data, LIMITS, most=3))
    assert [one.frame for one in found] == [0, 2, 3]
    assert [one.pixels.shape[1] for one in found] == [40, 60, 70]
    assert [int(one.pixels[0, 0, 0]) for one in found] == [0, 120, 180]
    assert found[0].info.frames == 4


@pytest.mark.parametrize(
    "tags",
    [
        {259: 6},  # old-style JPEG
        {259: 34712},  # JPEG 2000
        {339: 3, 258: 32},  # floating point
        {339: 2, 258: 16},  # signed
        {258: 32},
        {258: 12},
        {262: 0, 258: 16},  # white is 0, which the reader would not turn around
        {262: 8},  # Lab
        {322: 100_000, 323: 100_000},  # tiles
        {258: 16, 277: 3, 284: 2},  # planes apart, uncompressed
    ],
)
def test_kinds_of_tiff_that_would_come_out_wrong_are_refused(tags: dict[int, int]) -> None:
    with pytest.raises(Malformed):
        read_tiff(tiff([GREY | tags], bytes(64 * 48 * 4)), 1000, 1)


@pytest.mark.parametrize("tag", [256, 258, 259, 262, 274, 277, 278, 273, 279, 284, 339])
@pytest.mark.parametrize("kind", [1, 9, 11, 5])  # BYTE, SLONG, FLOAT, RATIONAL
def test_a_tag_of_another_type_is_not_taken_for_its_default(tag: int, kind: int) -> None:
    data = tiff([GREY | {274: 1, 284: 1, 339: 1}], bytes(64 * 48))
    at = data.index(struct.pack("<HHI", tag, 4, 1))
    with pytest.raises(Malformed):
        read_tiff(data[: at + 2] + struct.pack("<H", kind) + data[at + 4 :], 1000, 1)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_bits_and_planes_and_compression(bits, planes, compression, tile) -> None:
    array = np.asarray(noise()).astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    stored = array if planes == "contig" else np.moveaxis(array, -1, 0).copy()
    options = {"planarconfig": planes, "photometric": "rgb", "compression": compression}
    data = writers.tiff(array=lambda _: stored, tile=tile, **options)(noise())
    if (bits, planes, compression) == (16, "separate", None):
        with pytest.raises(DecodeError):
            decode(data, LIMITS)
        return
    assert np.array_equal(decode(data, LIMITS).pixels, np.asarray(noise()))


def test_what_is_appended_is_never_read_as_pixels() -> None:
    whole = tiff([GREY], bytes(64 * 48))
    assert decode(whole, LIMITS).info.width == 64
    size = 64 * 48
    for tags in (
        {273: 9 + len(whole) - size},
        {257: 200, 278: 200},
        {273: 2**32 - 1},
        {259: 8, 279: 5000},
        {278: 16},  # one strip of three
        {259: 8, 278: 16},
        {257: 49},
    ):
        assert read_tiff(tiff([GREY | tags], bytes(size)), 1000, 1).data == b"", tags
    rows = writers.save(noise(), "TIFF")  # its directory comes first
    for end in range(len(rows) - 200, len(rows)):
        with pytest.raises(DecodeError):
            decode(rows[:end], LIMITS)


def test_bitmaps_tell_their_size() -> None:
    header = bitmaps.bmp(bmp(64, -48, 24, 0, b""), 1000, 1)
    assert (header.width, header.height) == (64, 48)
    for bits, compression in ((2, 0), (8, 2), (4, 1), (24, 1), (0, 4), (32, 6)):
        with pytest.raises(Malformed):
            bitmaps.bmp(bmp(64, 48, bits, compression, b""), 1000, 1)


def test_of_icons_the_largest_is_taken_wherever_it_stands() -> None:
    sides = [(16, 16), (64, 64), (32, 32)]
    data = writers.save(noise(64, 64), "ICO", sizes=sides)
    assert decode(data, LIMITS).pixels.shape == (64, 64, 3)
    header = bitmaps.ico(data, 1000, 1)
    assert (header.width, header.height, header.data[:6]) == (64, 64, b"\0\0\x01\0\x01\0")


def test_an_icon_keeps_the_profile_and_gamma_of_its_png() -> None:
    icc = profiles.rgb(profiles.SWAPPED)
    assert bitmaps.ico(icon(encode(noise(), "PNG", icc_profile=icc)), 1000, 1).icc == icc
    assert bitmaps.ico(icon(writers.linear_light(noise())), 1000, 1).gamma == 1.0
