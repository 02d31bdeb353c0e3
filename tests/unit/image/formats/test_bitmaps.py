"""BMP, ICO and CUR: what Chromium 156 shows of them, which these values are from."""

import dataclasses
import struct

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import profiles, writers
from tests.fixtures.container_bombs import encode, noise
from worker.errors import DecodeError, UnscreenedReason
from worker.image.decode import kind_of
from worker.image.formats.bitmaps import MOST_ICONS, bmp, ico
from worker.image.formats.container import Frame, Malformed
from worker.image.preprocess import decode
from worker.settings import Limits

RGBA_MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
RAW, RLE8, RLE4, BIT_FIELDS, RLE24, ALPHA_BIT_FIELDS = 0, 1, 2, 3, 4, 6
GREY = b"".join(bytes((n, n, n, 0)) for n in range(256))
LEVELS = np.arange(8, dtype=np.uint8) * 30


def header(
    bits: int,
    *,
    size: int = 40,
    width: int = 8,
    height: int = 6,
    compression: int = RAW,
    used: int = 0,
    masks: tuple[int, ...] = (0, 0, 0, 0),
    rest: bytes = b"",
) -> bytes:
    if size == 12:
        return struct.pack("<IHHHH", size, width, height, 1, bits)
    fields = (size, width, height, 1, bits, compression, 0, 0, 0, used, 0)
    return (struct.pack("<IiiHHIIiiII", *fields) + struct.pack("<4I", *masks) + rest).ljust(
        size, b"\0"
    )[:size]


def file(info: bytes, body: bytes, tables: bytes = b"", at: int | None = None) -> bytes:
    behind = 14 + len(info) + len(tables)
    start = struct.pack("<2sIHHI", b"BM", behind + len(body), 0, 0, behind if at is None else at)
    return start + info + tables + body


def shown(data: bytes) -> np.ndarray:
    return np.asarray(frame(data).image)


def frame(data: bytes) -> Frame:
    return next(bmp(data, 1).decode(None))


def random(nbytes: int) -> bytes:
    return np.random.default_rng(4).bytes(nbytes)


# -- bitmaps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 16, 20, 40, 42, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("height", [6, -6])
def test_headers_of_every_size(size: int, height: int) -> None:
    if size == 12 and height < 0:
        return
    body = random(8 * 6 * 3)
    rows = np.frombuffer(body, np.uint8).reshape(6, 8, 3)[..., ::-1]
    found = shown(file(header(24, size=size, height=height), body))
    assert np.array_equal(found, rows if height < 0 else rows[::-1])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits: int) -> None:
    index = np.random.default_rng(1).integers(0, 1 << bits, (6, 8))
    each = np.array(
        [(row >> shift) & 1 for row in index.ravel() for shift in range(bits - 1, -1, -1)]
    )
    packed = np.packbits(each.reshape(6, 8 * bits), axis=1)
    rows = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    palette = random(4 << bits)
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 4)[:, 2::-1]
    found = shown(file(header(bits), rows.tobytes(), palette))
    assert np.array_equal(found, colors[index][::-1])


def test_colors_that_a_palette_does_not_have_are_black() -> None:
    body = bytes([1, 2, 3, 4] * 2) * 6
    found = shown(file(header(8, used=3), body, GREY[4:16]))
    assert found[0, :4, 0].tolist() == [2, 3, 0, 0]


def test_of_a_palette_of_too_many_colors_256_count() -> None:
    found = shown(file(header(8, used=300), bytes(range(8)) * 6, GREY + bytes(4 * 44)))
    assert found[0, :, 0].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("masks", "pixel", "color"),
    [
        ((0xF800, 0x7E0, 0x1F, 0), 0x8410, [132, 130, 132]),
        ((0xF00, 0xF0, 0xF, 0), 0x1248, [34, 68, 136]),
        ((0x7C00, 0x3E0, 0x1F, 0x8000), 0xFC00, [255, 0, 0, 255]),
        ((0x7C00, 0x3E0, 0x1F, 0x8000), 0x7C00, [255, 0, 0, 0]),
        ((0x8000, 0x4000, 0, 0), 0xFFFF, [255, 255, 0]),
        ((0, 0, 0, 0), 0xFFFF, [0, 0, 0]),
        ((0xFF, 0xFF, 0xFF, 0), 0x1234, [0x34, 0x34, 0x34]),
        ((0xFFC0, 0x3F, 0, 0), 0xFFC0, [255, 0, 0]),
    ],
)
def test_masks_of_16_bits(masks: tuple[int, ...], pixel: int, color: list[int]) -> None:
    body = struct.pack("<H", pixel) * 48
    found = shown(file(header(16, size=108, compression=BIT_FIELDS, masks=masks), body))
    assert found[0, 0].tolist() == color


@pytest.mark.parametrize("mask", [0xF300, 0x1FF0000])
def test_masks_that_cannot_be_used(mask: int) -> None:
    info = header(16, size=108, compression=BIT_FIELDS, masks=(mask, 0xF0, 0xF, 0))
    with pytest.raises(Malformed):
        bmp(file(info, bytes(96)), 1)


@pytest.mark.parametrize(
    ("size", "compression", "alpha"),
    [
        (40, RAW, False),
        (52, BIT_FIELDS, False),
        (56, RAW, False),
        (56, BIT_FIELDS, True),
        (64, RAW, False),
        (108, RAW, True),
        (108, BIT_FIELDS, True),
        (124, RAW, True),
    ],
)
def test_alpha_counts_where_the_header_has_a_mask_for_it(
    size: int, compression: int, *, alpha: bool
) -> None:
    body = struct.pack("<I", 0x80112233) * 48
    info = header(32, size=size, compression=compression, masks=RGBA_MASKS)
    found = shown(file(info, body))
    assert found[0, 0].tolist() == [0x11, 0x22, 0x33, *[0x80] * alpha]


@pytest.mark.parametrize(("compression", "alpha"), [(BIT_FIELDS, []), (ALPHA_BIT_FIELDS, [0x80])])
def test_masks_behind_the_header(compression: int, alpha: list[int]) -> None:
    masks = struct.pack("<4I", *RGBA_MASKS)[: 16 if alpha else 12]
    info = header(32, compression=compression)
    found = shown(file(info, struct.pack("<I", 0x80112233) * 48, masks))
    assert found[0, 0].tolist() == [0x11, 0x22, 0x33, *alpha]


def test_alpha_that_is_0_everywhere_is_alpha() -> None:
    """And the colours behind it are kept, for viewers that ignore it."""
    body = struct.pack("<I", 0x112233) * 48
    info = header(32, size=108, compression=BIT_FIELDS, masks=RGBA_MASKS)
    assert shown(file(info, body))[0, 0].tolist() == [0x11, 0x22, 0x33, 0]


@pytest.mark.parametrize("offset", [0, 30, 100])
def test_pixels_begin_where_the_file_says(offset: int) -> None:
    """Though that be in the middle of the header, or of the palette."""
    data = file(header(8, used=64), random(48), GREY[: 4 * 64], at=offset)
    assert len(data) > offset + 48
    index = np.frombuffer(data, np.uint8, 48, offset).reshape(6, 8)[::-1]
    assert np.array_equal(shown(data)[..., 0], np.where(index < 64, index, 0))


@pytest.mark.parametrize("height", [6, -6])
def test_rows_that_are_there_are_shown(height: int) -> None:
    body = random(8 * 6 * 3)
    rows = np.frombuffer(body, np.uint8).reshape(6, 8, 3)[..., ::-1]
    found = frame(file(header(24, height=height), body)[:-30])
    upright = np.asarray(found.image) if height < 0 else np.asarray(found.image)[::-1]
    assert found.truncated
    assert np.array_equal(upright[:4, :, :3], rows[:4])
    assert upright[:4, :, 3].all()
    assert not upright[4:].any()


def test_where_no_row_is_there_it_is_refused() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(file(header(24), bytes(20)), Limits())
    assert caught.value.reason is UnscreenedReason.UNDECODABLE


@pytest.mark.parametrize(
    ("bits", "compression", "size"),
    [
        (2, RAW, 12),
        (16, RAW, 12),
        (32, RAW, 12),
        (24, BIT_FIELDS, 108),
        (8, RLE4, 40),
        (4, RLE8, 40),
        (24, RLE24, 40),
        (0, 4, 40),  # JPEG
        (0, 5, 40),  # PNG
        (1, 3, 64),  # fax
        (24, 7, 40),
        (24, RAW, 50),
    ],
)
def test_what_chromium_does_not_show_is_refused(bits: int, compression: int, size: int) -> None:
    with pytest.raises(Malformed):
        bmp(file(header(bits, compression=compression, size=size), bytes(4000)), 1)


# -- run lengths -------------------------------------------------------------------------------


def runs(body: bytes, bits: int = 8) -> Frame:
    compression = {4: RLE4, 8: RLE8, 24: RLE24}[bits]
    size = 64 if bits == 24 else 40
    palette = b"" if bits == 24 else GREY[: 4 << bits]
    return frame(file(header(bits, compression=compression, size=size), body, palette))


def rows_of(found: Frame) -> list[list[int]]:
    """Levels from the bottom; -1 where nothing was painted."""
    pixels = np.asarray(found.image.convert("RGBA")).astype(int)[::-1]
    levels: list[list[int]] = np.where(pixels[..., 3] > 0, pixels[..., 0], -1).tolist()
    return levels


NOTHING = [-1] * 8


@pytest.mark.parametrize(
    ("body", "lowest"),
    [
        (b"\x08\1\x08\2\5\3\0\0\1\4\0\1", [[1] * 8, [4] + [-1] * 7]),  # beyond the row's end
        (b"\x06\1\6\2\0\1", [[1] * 6 + [2] * 2]),
        (b"\0\5\1\2\3\4\5\0\3\1\0\1", [[1, 2, 3, 4, 5, 1, 1, 1]]),
        (b"\0\x09\1\2\3\4\5\6\7\x08\x09\0\0\0\1\1\0\1", [list(range(1, 9)), [1] + [-1] * 7]),
        (b"\2\1\0\2\3\2\3\7\0\1", [[1, 1] + [-1] * 6, NOTHING, [-1] * 5 + [7] * 3]),
        (b"\2\1\0\2\x09\1\3\7\0\0\5\3\0\1", [[1, 1] + [-1] * 6, NOTHING, [3] * 5 + [-1] * 3]),
        (b"\2\1\0\2\1\x09\3\7\0\1", [[1, 1] + [-1] * 6]),
        (b"\2\1\0\0\0\0\3\5\0\1", [[1, 1] + [-1] * 6, NOTHING, [5] * 3 + [-1] * 5]),
    ],
)
def test_runs_that_jump_and_end_early(body: bytes, lowest: list[list[int]]) -> None:
    found = runs(body)
    assert rows_of(found) == lowest + [NOTHING] * (6 - len(lowest))
    assert not found.truncated


@pytest.mark.parametrize("cut", [b"\4\2", b"\4\2\3", b"\0\6\1\2\3", b"\0\2\1", b"\3\4\0\2\1\0\2\5"])
def test_of_runs_that_are_cut_whole_rows_are_shown(cut: bytes) -> None:
    found = runs(b"\x08\1\0\0" + cut)
    assert found.truncated
    assert rows_of(found) == [[1] * 8] + [NOTHING] * 5


def test_runs_of_4_and_24_bits() -> None:
    found = rows_of(runs(b"\5\x12\0\0\0\5\x12\x34\x50\0\0\0\3\x12\2\x34\0\1", 4))
    assert found[0] == [1, 2, 1, 2, 1, -1, -1, -1]
    assert found[1] == [1, 2, 3, 4, 5, -1, -1, -1]
    assert found[2] == [1, 2, 1, 3, 4, -1, -1, -1]
    found = rows_of(runs(b"\5abc\0\0\0\3" + bytes(range(9)) + b"\0\1def\0\1", 24))
    assert found[0] == [99] * 5 + [-1] * 3
    assert found[1] == [2, 5, 8, 102] + [-1] * 4


def test_runs_beyond_the_picture_are_not_unpacked() -> None:
    """Four gigabytes of pixels."""
    assert rows_of(runs(b"\xff\7" * (1 << 24) + b"\0\1"))[0] == [7] * 8


# -- colours -----------------------------------------------------------------------------------


def test_an_embedded_profile_is_applied() -> None:
    icc = profiles.rgb(profiles.SWAPPED)
    place = struct.pack("<II", 124, len(icc))
    rest = b"DEBM" + bytes(36 + 12 + 4) + place
    info = header(24, size=124, rest=rest)
    assert bmp(file(info, bytes(144), icc), 1).profiles == (icc,)
    srgb = header(24, size=124, rest=b"BGRs" + rest[4:])
    assert bmp(file(srgb, bytes(144), icc), 1).profiles == ()


def test_calibrated_colors_are_described_besides() -> None:
    """Chromium ignores them."""
    ends = [round(n * (1 << 30)) for n in (0.41, 0.21, 0.02, 0.36, 0.72, 0.12, 0.18, 0.07, 0.95)]
    rest = bytes(4) + struct.pack("<9i3I", *ends, *[1 << 16] * 3)
    first, second = bmp(file(header(24, size=108, rest=rest), bytes(144)), 1).profiles
    assert first == b""
    assert second[36:40] == b"acsp"
    assert bmp(file(header(24, size=108), bytes(144)), 1).profiles == ()


# -- icons -------------------------------------------------------------------------------------


def icon_file(
    *icons: tuple[int, int, bytes], kind: int = 1, lies: dict[int, int] | None = None
) -> bytes:
    """Side, bits and picture of each; `lies` are other offsets."""
    at, table = 6 + 16 * len(icons), b""
    for number, (side, bits, picture) in enumerate(icons):
        place = (lies or {}).get(number, at)
        table += struct.pack(
            "<BBBBHHII", side & 255, side & 255, 0, 0, 1, bits, len(picture), place
        )
        at += len(picture)
    return struct.pack("<HHH", 0, kind, len(icons)) + table + b"".join(one for *_, one in icons)


def picture(
    side: int, bits: int, pixel: int, mask: int | None = None, height: int | None = None
) -> bytes:
    """Of one colour; `mask` is a byte of its mask."""
    row = -(-side * bits // 32) * 4
    body = (pixel.to_bytes(4, "little")[: max(1, bits // 8)] * row)[:row] * side
    below = b"" if mask is None else bytes([mask]) * (-(-side // 32) * 4 * side)
    palette = GREY[: 4 << bits] if bits <= 8 else b""
    return header(bits, width=side, height=height or 2 * side) + palette + body + below


def icons(data: bytes) -> list[Frame]:
    return list(ico(data, 1).decode(None))


def corner(found: Frame) -> list[int]:
    return list(np.asarray(found.image.convert("RGBA"))[0, 0])


@pytest.mark.parametrize("bits", [1, 4, 8, 16, 24])
@pytest.mark.parametrize(("mask", "alpha"), [(0, 255), (255, 0), (None, 255)])
def test_the_mask_of_an_icon(bits: int, mask: int | None, alpha: int) -> None:
    found = icons(icon_file((16, bits, picture(16, bits, 0, mask))))[0]
    assert corner(found) == [0, 0, 0, alpha]
    assert not found.truncated


@pytest.mark.parametrize(
    ("pixel", "mask", "color"),
    [
        (0x80112233, 255, [0x11, 0x22, 0x33, 0x80]),
        (0xFF112233, 255, [0x11, 0x22, 0x33, 255]),
        (0x00112233, 255, [0x11, 0x22, 0x33, 0]),
        (0x00112233, 0, [0x11, 0x22, 0x33, 255]),
        (0x00112233, None, [0x11, 0x22, 0x33, 255]),
    ],
)
def test_alpha_that_is_0_everywhere_leaves_it_to_the_mask(
    pixel: int, mask: int | None, color: list[int]
) -> None:
    assert corner(icons(icon_file((16, 32, picture(16, 32, pixel, mask))))[0]) == color


def test_icons_are_frames_the_largest_first() -> None:
    pictures = [
        (16, 24, picture(16, 24, 1)),
        (48, 8, picture(48, 8, 2)),
        (48, 24, picture(48, 24, 3)),
    ]
    found = icons(
        icon_file(*pictures, (32, 24, encode(Image.new("RGB", (32, 32), (0, 0, 4)), "PNG")))
    )
    assert [corner(one)[2] for one in found] == [3, 2, 4, 1]
    assert [one.image.width for one in found] == [48, 48, 32, 16]


def test_of_many_icons_some_are_looked_at() -> None:
    found = icons(icon_file(*[(16, 24, picture(16, 24, n)) for n in range(MOST_ICONS + 5)]))
    assert [corner(one)[2] for one in found] == list(range(MOST_ICONS))
    same = icon_file(
        *[(16, 24, picture(16, 24, 7))] * 300, lies=dict.fromkeys(range(300), 6 + 16 * 300)
    )
    assert len(icons(same)) == 1


def test_the_length_of_an_icon_is_not_looked_at() -> None:
    data = bytearray(icon_file((16, 24, picture(16, 24, 5))))
    data[14:18] = struct.pack("<I", 3)
    assert corner(icons(bytes(data))[0])[2] == 5


@pytest.mark.parametrize("first", [b"\x99" * 60, b""])
def test_a_damaged_icon_does_not_hide_the_others(first: bytes) -> None:
    data = icon_file(
        (64, 24, first), (16, 24, picture(16, 24, 9)), lies={} if first else {0: 10**6}
    )
    header_ = ico(data, 1)
    assert [corner(one)[2] for one in header_.decode(None)] == [9]
    assert header_.truncated or header_.frames == 2


@pytest.mark.parametrize("side", [16, 8, 0])
def test_a_size_that_the_directory_tells_otherwise(side: int) -> None:
    """Chromium shows nothing then, others do."""
    assert icons(icon_file((side, 24, picture(16, 24, 3))))[0].image.size == (16, 16)


def test_a_height_that_is_not_doubled() -> None:
    found = icons(icon_file((16, 24, picture(16, 24, 3, height=16))))[0]
    assert (found.image.size, corner(found)[2]) == ((16, 16), 3)


def test_an_icon_that_is_cut_is_shown_by_its_rows() -> None:
    (found,) = icons(icon_file((16, 24, picture(16, 24, 3)))[: -48 * 6])
    assert found.truncated
    assert np.asarray(found.image)[:, 0, 3].tolist() == [0] * 6 + [255] * 10


def test_cursors_are_icons() -> None:
    data = icon_file((16, 30, picture(16, 24, 3)), (16, 2, picture(16, 24, 4)), kind=2)
    assert kind_of(data) == "ICO"
    assert corner(icons(data)[0])[2] == 3  # where they point does not rank them


@pytest.mark.parametrize("data", [b"\0\0\3\0\1\0", b"\0\0\1\0\0\0", b"\0\0\2\0\0\0"])
def test_what_is_no_icon(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        kind_of(data + bytes(100))
    assert caught.value.reason is UnscreenedReason.UNSUPPORTED_FORMAT


def test_256_icons() -> None:
    assert kind_of(struct.pack("<HHH", 0, 1, 256)) == "ICO"


def test_an_icon_keeps_the_profile_and_gamma_of_its_png() -> None:
    icc = profiles.rgb(profiles.SWAPPED)
    png = encode(noise(), "PNG", icc_profile=icc)
    assert ico(icon_file((64, 32, png)), 1).profiles[0] == icc
    assert any(ico(icon_file((64, 32, writers.linear_light(noise()))), 1).profiles)


def test_a_header_says_the_size() -> None:
    told = bmp(file(header(24, width=64, height=-48), b""), 1)
    assert (told.width, told.height, told.frames) == (64, 48, 1)
    assert not dataclasses.asdict(told)["truncated"]
