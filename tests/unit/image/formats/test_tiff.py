"""TIFF: which of its pages are screened, what is refused, and how alpha and damage are read."""

import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.fixtures import profiles, writers
from tests.fixtures.container_bombs import noise, tiff
from worker.errors import DecodeError, UnscreenedReason
from worker.image.decode import read_header
from worker.image.formats.container import Frame, Header, Malformed
from worker.image.formats.tiff import tiff as read_tiff
from worker.image.preprocess import decode
from worker.settings import Limits

LIMITS = Limits()
GREY = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 277: 1, 278: 48}
REDUCED = 1


def pixels(frame: Frame) -> np.ndarray:
    return np.asarray(frame.image)


def frames(data: bytes) -> list[Frame]:
    return list(read_tiff(data, 1000).decode(None))


def written(*pages: np.ndarray, subpages: tuple[np.ndarray, ...] = (), **options: Any) -> bytes:
    """As another program writes it; `subpages` lie below the first page."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for number, page in enumerate(pages):
            below = len(subpages) if not number else 0
            writer.write(page, metadata=None, subifds=below or None, **options)
            for subpage in subpages if not number else ():
                writer.write(subpage, metadata=None, subfiletype=REDUCED, **options)
    return stream.getvalue()


def kinds(data: bytes) -> UnscreenedReason:
    with pytest.raises(DecodeError) as caught:
        read_header(data, LIMITS)
    return caught.value.reason


# -- which pages -------------------------------------------------------------------------------


def picture(width: int = 64, height: int = 48) -> np.ndarray:
    return np.asarray(noise(width, height))


def test_pages_are_frames_in_their_order() -> None:
    pages = [Image.new("RGB", (40 + 10 * n, 30), (n * 60, 0, 0)) for n in range(4)]
    data = writers.save(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    found = frames(data)
    assert [one.image.size for one in found] == [(40, 30), (50, 30), (60, 30), (70, 30)]
    assert [int(pixels(one)[0, 0, 0]) for one in found] == [0, 60, 120, 180]


@pytest.mark.parametrize("tag", [{254: 1}, {255: 2}])
def test_a_thumbnail_first_comes_after_the_picture(tag: dict[int, int]) -> None:
    thumbnail = GREY | {256: 32, 257: 24, 278: 24} | tag
    data = tiff([thumbnail, GREY, GREY | {256: 60, 278: 48}], bytes(range(256)) * 12)
    found = frames(data)
    assert [one.image.size for one in found] == [(64, 48), (32, 24), (60, 48)]
    assert read_tiff(data, 1000).width == 64


def test_a_thumbnail_alone_is_a_picture() -> None:
    assert frames(tiff([GREY | {254: 1}], bytes(64 * 48)))[0].image.size == (64, 48)


@pytest.mark.parametrize(
    "tag", [{50706: 1}, {50740: 8}, {262: 32803}, {262: 34892}, {259: 34713}, {259: 65535}]
)
@pytest.mark.parametrize("page", [0, 1])
def test_raw_files_of_cameras_are_no_supported_format(tag: dict[int, int], page: int) -> None:
    pages = [GREY | {254: 1}, GREY]
    pages[page] = pages[page] | tag
    assert kinds(tiff(pages, bytes(64 * 48))) is UnscreenedReason.UNSUPPORTED_FORMAT


def test_a_raw_file_is_known_by_its_mark() -> None:
    data = bytearray(tiff([GREY], b"CR\2\0" + bytes(64 * 48)))
    assert kinds(bytes(data)) is UnscreenedReason.UNSUPPORTED_FORMAT


def test_smaller_copies_below_a_page_are_passed_over() -> None:
    whole = picture()
    found = frames(written(whole, subpages=(whole[::2, ::2], whole[::4, ::4])))
    assert len(found) == 1
    assert np.array_equal(pixels(found[0]), whole)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_larger_picture_below_a_page_is_no_supported_format(depth: int) -> None:
    """Also one below another one."""
    strip = bytes(64 * 48)
    small, large = GREY | {256: 32}, GREY | {257: 49}
    data = bytearray(tiff([small, *[small] * (depth - 1), large], strip))
    places = [struct.unpack_from("<I", data, 4)[0]]
    for _ in range(depth):
        (count,) = struct.unpack_from("<H", data, places[-1])
        (following,) = struct.unpack_from("<I", data, places[-1] + 2 + 12 * count)
        places.append(following)
    for at, below in itertools.pairwise(places):  # the chain becomes a tree
        (count,) = struct.unpack_from("<H", data, at)
        tags = [bytes(data[at + 2 + 12 * n : at + 14 + 12 * n]) for n in range(count)]
        replaced = struct.pack("<HHII", 330, 4, 1, below)
        tags = [replaced if tag[:2] == struct.pack("<H", 277) else tag for tag in tags]
        data[at + 2 : at + 2 + 12 * count] = b"".join(tags)
        data[at + 2 + 12 * count : at + 6 + 12 * count] = bytes(4)
    assert kinds(bytes(data)) is UnscreenedReason.UNSUPPORTED_FORMAT


def test_a_page_that_cannot_be_decoded_does_not_hide_those_behind_it() -> None:
    broken = GREY | {259: 8}  # its strip is not compressed
    data = tiff([GREY, broken, GREY | {256: 32}], bytes(range(256)) * 12)
    assert [one.image.size for one in frames(data)] == [(64, 48), (32, 48)]


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags",
    [
        {259: 6},  # old-style JPEG
        {259: 34712},  # JPEG 2000
        {339: 3, 258: 32},  # floating point
        {339: 2, 258: 16},  # signed
        {258: 32},
        {258: 12},
        {262: 8},  # Lab
        {322: 100_000, 323: 100_000},  # tiles
        {322: 64, 323: 48},  # and strips
        {277: 7},
        {262: 6, 277: 3, 284: 2},  # YCbCr in planes
    ],
)
def test_kinds_that_would_come_out_wrong_are_refused(tags: dict[int, int]) -> None:
    with pytest.raises(Malformed):
        read_tiff(tiff([GREY | tags], bytes(64 * 48 * 4)), 1000)


@pytest.mark.parametrize("tag", [256, 258, 259, 262, 274, 277, 278, 273, 284, 339])
@pytest.mark.parametrize("kind", [1, 9, 11, 5])  # BYTE, SLONG, FLOAT, RATIONAL
def test_a_tag_of_another_type_is_not_taken_for_its_default(tag: int, kind: int) -> None:
    data = tiff([GREY | {274: 1, 284: 1, 339: 1}], bytes(64 * 48))
    at = data.index(struct.pack("<HHI", tag, 4, 1))
    with pytest.raises(Malformed):
        read_tiff(data[: at + 2] + struct.pack("<H", kind) + data[at + 4 :], 1000)


def test_a_tag_that_comes_twice_is_refused_where_the_values_differ() -> None:
    data = tiff([GREY | {255: 1}], bytes(64 * 48))
    at = data.index(struct.pack("<HHII", 255, 4, 1, 1))
    same = data[:at] + struct.pack("<HHII", 256, 4, 1, 64) + data[at + 12 :]
    other = data[:at] + struct.pack("<HHII", 256, 4, 1, 63) + data[at + 12 :]
    assert read_tiff(same, 1000).width == 64
    with pytest.raises(Malformed):
        read_tiff(other, 1000)


# -- the cost of hostile directories -----------------------------------------------------------


def directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def test_values_that_many_tags_share_are_read_within_a_bound() -> None:
    """Each of twenty pages has the same megabytes of offsets."""
    shared = bytes(4 << 20)
    page = [(256, 4, 1, 16), (257, 4, 1, 1 << 20), (262, 4, 1, 1), (273, 4, 1 << 20, 8)]
    data = struct.pack("<4sI", b"II*\0", 8 + len(shared)) + shared
    for number in range(20):
        one = directory(*page)
        data += one[:-4] + struct.pack("<I", (len(data) + len(one)) * (number < 19))
    with pytest.raises(Malformed, match="too many values"):
        read_tiff(data, 1000)


def test_directories_that_overlap_are_refused() -> None:
    """Each of them holds all entries of the ones behind it."""
    count, step = 60_000, 12
    table = bytearray(struct.pack("<HHII", 700, 7, 1, 0) * count + bytes(4))
    head = struct.pack("<4sI", b"II*\0", 8)
    data = bytearray(head + struct.pack("<H", count) + table)
    for number in range(1, 900):  # the number of entries lies in an entry of the one before
        at = 8 + step * number
        struct.pack_into("<H", data, at, count - number * 2)
        end = at + 2 + step * (count - number * 2)
        struct.pack_into("<I", data, end, at + step)
    struct.pack_into("<I", data, 8 + 2 + step * count, 8 + step)
    with pytest.raises(Malformed, match="overlap"):
        read_tiff(bytes(data), 1000)


def test_pages_that_share_their_pixels_are_read_within_a_bound() -> None:
    strip = np.random.default_rng(3).bytes(5 << 20)
    large = GREY | {256: 1 << 10, 257: 5 << 10, 278: 5 << 10}
    assert len(frames(tiff([large] * 2, strip))) == 2
    with pytest.raises(Malformed, match="share"):
        read_tiff(tiff([large] * 40, strip), 1000)


def test_a_page_is_decoded_from_a_file_of_its_own() -> None:
    secret = b"SECRET" * 50
    data = writers.save(noise(), "TIFF", tiffinfo={700: secret, 33723: secret, 270: "SECRET" * 9})
    assert np.array_equal(decode(data, LIMITS).pixels, picture())


# -- samples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("predictor", [None, 2])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_bits_and_planes_and_compression(
    bits: int, planes: str, compression: str | None, predictor: int | None,
    tile: tuple[int, int] | None, order: str,
) -> None:  # fmt: skip
    array = picture(61, 45).astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    stored = array if planes == "contig" else np.moveaxis(array, -1, 0).copy()
    options: dict[str, Any] = {"planarconfig": planes, "photometric": "rgb"}
    options["compression"] = compression
    if compression is not None:
        options["predictor"] = predictor
    data = writers.tiff(array=lambda _: stored, tile=tile, form={"byteorder": order}, **options)
    assert np.array_equal(decode(data(noise()), LIMITS).pixels, picture(61, 45))


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_0(bits: int) -> None:
    levels = picture()[..., 0].astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    data = written(levels, photometric="miniswhite")
    (frame,) = frames(data)
    assert np.array_equal(pixels(frame), 255 - picture()[..., 0])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_alpha_that_is_meant_as_it_is(bits: int, planes: str) -> None:
    array = np.dstack([picture(), picture()[..., 0]])
    stored = array.astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    stored = stored if planes == "contig" else np.moveaxis(stored, -1, 0).copy()
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": planes}
    options["extrasamples"] = ["unassalpha"]
    (frame,) = frames(written(stored, **options))
    assert np.array_equal(pixels(frame), array)


def test_colors_multiplied_by_alpha_and_the_stored_ones() -> None:
    """A viewer that ignores alpha shows the colours as they are stored."""
    array = np.dstack([np.full((48, 64, 3), 50), np.full((48, 64), 100)]).astype(np.uint8)
    data = written(array, photometric="rgb", extrasamples=["assocalpha"])
    shown, ignored = frames(data)
    assert pixels(shown)[0, 0].tolist() == [127, 127, 127, 100]
    assert pixels(ignored)[0, 0].tolist() == [50, 50, 50]


def test_hidden_colors_are_seen_where_all_is_transparent() -> None:
    array = np.dstack([picture(), np.zeros((48, 64), np.uint8)])
    data = written(array, photometric="rgb", extrasamples=["assocalpha"])
    assert np.array_equal(pixels(frames(data)[1]), picture())


def test_alpha_of_no_said_meaning_is_read_both_ways() -> None:
    array = np.dstack([np.full((48, 64, 3), 50), np.full((48, 64), 100)]).astype(np.uint8)
    data = written(array, photometric="rgb", extrasamples=["unspecified"])
    straight, multiplied = frames(data)
    assert pixels(straight)[0, 0].tolist() == [50, 50, 50, 100]
    assert pixels(multiplied)[0, 0].tolist() == [127, 127, 127, 100]


# -- orientation and colours -------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pages_are_turned_each_for_itself(orientation: int) -> None:
    levels = np.zeros((48, 64), np.uint8)
    levels[:24, :32] = 255
    data = tiff([GREY | {274: orientation}, GREY], levels.tobytes())
    first, second = frames(data)
    quarter = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    down, right = quarter[orientation]
    height, width = pixels(first).shape
    assert (width > height) is (orientation < 5)
    bright = pixels(first)[down * height // 2 :, right * width // 2 :][: height // 2, : width // 2]
    assert (bright == 255).all()
    assert pixels(first).sum() == 24 * 32 * 255
    assert np.array_equal(pixels(second), levels)


def test_profiles_of_pages() -> None:
    swapped, p3 = (profiles.rgb(one) for one in (profiles.SWAPPED, profiles.DISPLAY_P3))

    def header(*icc: bytes) -> Header:
        stream = io.BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            for one in icc:
                writer.write(picture(), metadata=None, photometric="rgb", iccprofile=one or None)
        return read_tiff(stream.getvalue(), 1000)

    assert header(swapped, swapped).profiles == (swapped,)
    assert header(b"", swapped).profiles == (b"", swapped)
    assert header(p3, b"", swapped).profiles == (p3, swapped)
    with pytest.raises(Malformed):
        header(p3, swapped, profiles.rgb(profiles.ADOBE_RGB))


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_strips_that_are_there_are_screened(compression: str | None, planes: str) -> None:
    array = picture(60, 100)
    stored = array if planes == "contig" else np.moveaxis(array, -1, 0).copy()
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": planes, "rowsperstrip": 4}
    data = written(stored, compression=compression, **options)
    whole = frames(data)[0]
    assert not whole.truncated
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets = file.pages.first.dataoffsets
    end = offsets[len(offsets) - 5]  # the last five strips are not there
    assert struct.unpack_from("<I", data, 4)[0] < end  # the directory comes first
    (frame,) = frames(data[:end])
    assert frame.truncated
    rows = 80
    assert np.array_equal(pixels(frame)[:rows, :, :3], array[:rows])
    assert not pixels(frame)[rows:, :, 3].any()


def test_a_damaged_strip_does_not_hide_the_others() -> None:
    array = picture(60, 100)
    data = bytearray(written(array, photometric="rgb", compression="zlib", rowsperstrip=10))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        second = file.pages.first.dataoffsets[1]
    data[second : second + 2] = b"\xff\xff"
    (frame,) = frames(bytes(data))
    assert frame.truncated
    shown = pixels(frame)
    assert np.array_equal(shown[:10, :, :3], array[:10])
    assert np.array_equal(shown[20:, :, :3], array[20:])
    assert not shown[10:20, :, 3].any()


def test_a_strip_without_compression_is_screened_up_to_its_end() -> None:
    data = tiff([GREY | {278: 48}], bytes(range(1, 65)) * 48)
    offset = struct.unpack_from("<I", data, 4)[0]
    moved = data.replace(
        struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHII", 273, 4, 1, 8 + offset)
    )
    (frame,) = frames(moved)
    there = (len(data) - 8 - offset) // 64
    assert frame.truncated
    assert pixels(frame)[:there, :, 3].all()
    assert not pixels(frame)[there:, :, 3].any()


@pytest.mark.parametrize(
    "tags", [{273: 2**32 - 1}, {278: 16}, {259: 8, 278: 16}, {257: 49, 278: 48}]
)
def test_where_nothing_is_there_it_is_refused(tags: dict[int, int]) -> None:
    data = tiff([GREY | tags], bytes(64 * 48))
    with pytest.raises(DecodeError) as caught:
        decode(data, LIMITS)
    assert caught.value.reason is UnscreenedReason.UNDECODABLE
