"""JPEG files as Chromium 156 was seen to show them."""

import struct

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import profiles
from tests.fixtures.bombs import segment, with_segments
from tests.fixtures.container_bombs import encode
from worker.errors import DecodeError
from worker.image.color import without_black
from worker.image.decode import read_header
from worker.image.formats.container import opened
from worker.image.formats.jpeg import jpeg
from worker.image.preprocess import decode
from worker.settings import Limits

LIMITS = Limits()
WIDTH, HEIGHT = 144, 96


def picture(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [100 + 90 * np.sin(x / 9 + y / (5 + 4 * n)) for n in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


PLAIN = encode(picture(), "JPEG", quality=90)
PROGRESSIVE = encode(picture(), "JPEG", quality=90, progressive=True)
RESTARTS = encode(picture(), "JPEG", quality=90, restart_marker_rows=1)
INKS = encode(picture("CMYK"), "JPEG", quality=90)


def shown(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels.astype(int)


def orientation(data: bytes) -> int:
    return jpeg(data, 1).orientation


def exif(*entries: tuple[int, int, int, int], order: str = "<", offset: int = 8) -> bytes:
    """A TIFF of these entries: tag, type, count, value."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", offset)
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        form = "HH2x" if kind in (3, 8) else "HI"
        table += struct.pack(f"{order}H", tag)
        table += struct.pack(f"{order}HI", kind, count)
        table += struct.pack(f"{order}{'H2x' if form == 'HH2x' else 'I'}", value)
    return head.ljust(offset, b"\0") + table + bytes(4)


SIX = (0x0112, 3, 1, 6)
THREE = (0x0112, 3, 1, 3)


def app1(contents: bytes, head: bytes = b"Exif\0\0") -> bytes:
    return segment(0xE1, head + contents)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([app1(exif(SIX))], 6),
        ([app1(exif(SIX, order=">"))], 6),
        ([app1(exif(SIX, offset=31))], 6),
        ([app1(exif(SIX), b"Exif\0\xff")], 6),
        ([app1(exif(SIX), b"Exif\0\1")], 6),
        ([app1(exif(SIX), b"Exif\1\1")], 1),
        ([app1(exif(SIX), b"exif\0\0")], 1),
        ([app1(exif(SIX), b"Exif\0")], 1),
        ([segment(0xE2, b"Exif\0\0" + exif(SIX))], 1),
        ([app1(b""), app1(exif(SIX))], 6),
        ([app1(b"", b"Exif"), app1(exif(SIX))], 6),
        ([app1(b"x"), app1(exif(SIX))], 1),
        ([app1(exif(THREE)), app1(exif(SIX))], 3),
        ([app1(exif((0x0110, 3, 1, 1))), app1(exif(SIX))], 1),
        ([app1(exif((0x0112, 4, 1, 6)))], 1),  # a LONG
        ([app1(exif((0x0112, 1, 1, 6)))], 1),
        ([app1(exif((0x0112, 8, 1, 6)))], 1),
        ([app1(exif((0x0112, 3, 2, 6)))], 1),
        ([app1(exif((0x0112, 3, 1, 0)))], 1),
        ([app1(exif((0x0112, 3, 1, 9)))], 1),
        ([app1(exif(THREE, SIX))], 3),
        ([app1(exif((0x0112, 3, 1, 9), SIX))], 6),
        ([app1(exif((0x0112, 4, 1, 3), SIX))], 6),
        ([app1(exif(*[(0x0200, 3, 1, 3)] * 3000, SIX))], 6),
        ([app1(exif(SIX)[:-4])], 6),
        ([app1(exif(SIX)[:-5])], 1),  # the entry is not whole
        ([app1(b"II*\0\xff\xff\xff\xff" + exif(SIX)[8:])], 1),
        ([segment(0xFE, b"a comment"), app1(exif(SIX))], 6),
    ],
)
def test_exif_in_each_form_that_browsers_honour(segments: list[bytes], expected: int) -> None:
    assert orientation(with_segments(PLAIN, *segments)) == expected


def test_exif_behind_the_frame_header_counts_and_behind_the_picture_not() -> None:
    at = PLAIN.index(b"\xff\xda")
    assert orientation(PLAIN[:at] + app1(exif(SIX)) + PLAIN[at:]) == 6
    assert orientation(PLAIN + app1(exif(SIX))) == 1
    turned = shown(with_segments(PLAIN, app1(exif(SIX))))
    assert np.array_equal(turned, np.rot90(shown(PLAIN), -1))


ICC = profiles.rgb(profiles.SWAPPED)
OTHER = profiles.rgb(profiles.SRGB, 1.0)
HALF = len(ICC) // 2


def icc(number: int, count: int, data: bytes) -> bytes:
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, count]) + data)


A, B = icc(1, 2, ICC[:HALF]), icc(2, 2, ICC[HALF:])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([icc(1, 1, ICC)], [ICC]),
        ([A, B], [ICC]),
        ([B, A], [ICC]),
        ([A, segment(0xFE, b"x"), B], [ICC]),
        ([A, B, B], [ICC]),
        ([icc(1, 1, ICC), icc(1, 1, OTHER)], [ICC]),
        ([icc(1, 1, ICC), A, B], [ICC]),
        ([icc(1, 1, ICC), icc(2, 1, b"xx")], [ICC]),
        ([icc(1, 1, b""), icc(1, 1, ICC)], [ICC]),
        ([segment(0xE2, b"ICC_PROFILE\0"), icc(1, 1, ICC)], [ICC]),
        ([A], [b""]),
        ([A, A, B], [b""]),
        ([icc(1, 1, b"x" * 300), icc(1, 1, ICC)], [b""]),
        ([icc(1, 2, ICC[:HALF]), icc(2, 3, ICC[HALF:])], [b"", ICC]),  # another viewer may
        ([icc(1, 3, ICC[:HALF]), icc(2, 3, ICC[HALF:])], [b"", ICC]),
        ([icc(1, 0, ICC)], [b"", ICC]),
        ([icc(0, 1, ICC)], [b"", ICC]),
        ([segment(0xE1, b"ICC_PROFILE\0\1\1" + ICC)], [b""]),
        ([segment(0xE2, b"icc_profile\0\1\1" + ICC)], [b""]),
        ([], [b""]),
    ],
)
def test_a_profile_in_parts(parts: list[bytes], expected: list[bytes]) -> None:
    assert list(jpeg(with_segments(PLAIN, *parts), 1).profiles) == expected


def test_a_large_profile_is_a_profile() -> None:
    large = ICC + bytes(5 << 20)
    pieces = [large[at : at + 65_000] for at in range(0, len(large), 65_000)]
    parts = [icc(number + 1, len(pieces), one) for number, one in enumerate(pieces)]
    data = with_segments(PLAIN, *parts)
    assert jpeg(data, 1).profiles == (large,)
    assert np.abs(shown(data) - shown(PLAIN)).mean() > 20


def test_a_profile_behind_the_frame_header_counts_and_behind_the_picture_not() -> None:
    at = PLAIN.index(b"\xff\xda")
    assert jpeg(PLAIN[:at] + icc(1, 1, ICC) + PLAIN[at:], 1).profiles == (ICC,)
    assert jpeg(PLAIN[:-2] + icc(1, 1, ICC) + PLAIN[-2:], 1).profiles == (b"",)


def test_a_profile_of_inks_is_applied_as_chromium_does_and_as_others_do() -> None:
    inks = profiles.cmyk()
    data = with_segments(INKS, icc(1, 1, inks))
    assert jpeg(data, 1).profiles == (without_black(inks), inks)
    assert jpeg(with_segments(INKS, icc(1, 1, ICC)), 1).profiles == (b"",)
    assert jpeg(with_segments(PLAIN, icc(1, 1, inks)), 1).profiles == (b"",)
    grey = encode(picture("L"), "JPEG")
    assert jpeg(with_segments(grey, icc(1, 1, profiles.grey(1.0))), 1).profiles[0]
    assert jpeg(with_segments(PLAIN, icc(1, 1, profiles.grey(1.0))), 1).profiles == (b"",)


def adobe(transform: int, tail: bytes = b"") -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]) + tail)


def test_adobe_says_what_the_components_are_and_the_last_one_counts() -> None:
    at = INKS.index(b"\xff\xee")
    bare = INKS[:at] + INKS[at + 16 :]
    ycck = shown(with_segments(bare, adobe(2)))
    assert np.array_equal(shown(bare), shown(INKS))
    assert np.abs(ycck - shown(INKS)).mean() > 10
    assert np.array_equal(shown(with_segments(bare, adobe(0), adobe(2))), ycck)
    assert np.array_equal(shown(with_segments(bare, adobe(2), adobe(0))), shown(INKS))
    assert np.array_equal(shown(with_segments(bare, adobe(2, b"more"))), ycck)
    assert np.array_equal(shown(with_segments(bare, segment(0xEE, b"Adobe\0\x64"))), shown(INKS))


def test_jfif_outranks_adobe_and_names_of_components() -> None:
    jfif, bare = PLAIN[2:20], PLAIN[:2] + PLAIN[20:]
    rgb = shown(with_segments(bare, adobe(0)))
    assert np.abs(rgb - shown(PLAIN)).mean() > 10
    assert np.array_equal(shown(with_segments(PLAIN, adobe(0))), shown(PLAIN))
    assert np.array_equal(shown(with_segments(bare, adobe(0), jfif)), shown(PLAIN))
    short = with_segments(bare, segment(0xE0, b"JFIF\0"))
    assert np.array_equal(shown(short), shown(PLAIN))


FRAME = PLAIN.index(b"\xff\xc0")
SCAN = PLAIN.index(b"\xff\xda")
LINES = segment(0xDC, struct.pack(">H", HEIGHT))
MIDDLE = (SCAN + len(PLAIN)) // 2


def inserted(at: int, what: bytes, data: bytes = PLAIN) -> bytes:
    return data[:at] + what + data[at:]


@pytest.mark.parametrize(
    "data",
    [
        inserted(2, segment(0xFE, b"") * 100_000),
        inserted(2, segment(0xFE, b"four") * 100_000),
        inserted(FRAME, b"\0junk\1"),
        inserted(FRAME, b"x" * 100_000),
        inserted(FRAME, b"\xff" * 50),
        inserted(FRAME, b"\xff\0\xff\0"),
        inserted(FRAME, b"\xff\xd0"),
        inserted(FRAME, b"\xff\1"),
        inserted(FRAME, segment(0xDC, b"\0\x60")),
        inserted(FRAME, b"\xff\xfe\0\0"),
        inserted(FRAME, b"\xff\xfe\0\1"),
        inserted(2, b"\xff\xe0\0\0"),
        PLAIN + b"x" * 1000,
        PLAIN + encode(picture().rotate(180), "JPEG"),
        PLAIN[:-2] + encode(picture().rotate(180), "JPEG"),
        PLAIN[:-2] + PLAIN[FRAME : FRAME + 19] + PLAIN[-2:],
        PLAIN[:-2] + PLAIN[SCAN:],
        PLAIN[:-2] + segment(0xFE, b"x") * 100_000 + PLAIN[-2:],
        PLAIN[:-2] + b"\xff\xfe\xff\xff",
        PLAIN[:2] + PLAIN[20:],
        PLAIN.replace(b"\xff\xc0", b"\xff\xc1", 1),
    ],
)
def test_what_is_not_the_picture_changes_nothing(data: bytes) -> None:
    assert np.array_equal(shown(data), shown(PLAIN))


def between_scans(what: bytes) -> bytes:
    second = PROGRESSIVE.index(b"\xff\xda", PROGRESSIVE.index(b"\xff\xda") + 2)
    return inserted(PROGRESSIVE.index(b"\xff\xc4", second), what, PROGRESSIVE)


@pytest.mark.parametrize(
    "what",
    [
        segment(0xFE, b"a comment") * 1000,
        segment(0xFE, b"") * 100_000,
        segment(0xDC, b"\0\x60"),
        b"junk" * 10,
        b"\xff\xfe\0\0",
    ],
)
def test_what_lies_between_scans_changes_nothing(what: bytes) -> None:
    assert np.array_equal(shown(between_scans(what)), shown(PROGRESSIVE))
    assert jpeg(between_scans(what), 1).scans == jpeg(PROGRESSIVE, 1).scans


@pytest.mark.parametrize(
    "what", [segment(0xC4, b"\x44"), segment(0xDA, b"\1\1\0\5\2\0"), segment(0xC4, b"\0" * 9)]
)
def test_scans_before_a_damaged_one_are_shown(what: bytes) -> None:
    """The whole picture is there, less sharp."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    data = inserted(PROGRESSIVE.rindex(b"\xff\xc4", 0, last), what, PROGRESSIVE)
    assert decode(data, LIMITS).info.truncated
    assert np.abs(shown(data) - shown(PROGRESSIVE)).mean() < 10


def test_an_end_between_scans_leaves_a_blurred_picture() -> None:
    data = between_scans(b"\xff\xd9")
    assert 0.5 < np.abs(shown(data) - shown(PROGRESSIVE)).mean() < 40
    assert jpeg(data, 1).scans < jpeg(PROGRESSIVE, 1).scans


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:FRAME] + PLAIN[FRAME + 19 :],
        inserted(SCAN, PLAIN[FRAME : FRAME + 19]),
        inserted(FRAME, b"\xff\xd9"),
        inserted(FRAME, b"\xff\xe1\xff\xff"),
        inserted(FRAME, segment(0xDD, b"\0\1\2")),
        inserted(FRAME, segment(0xC4, b"\x44")),
        PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        PLAIN.replace(b"\xff\xc0", b"\xff\xc3", 1),
        PLAIN[: FRAME + 5]
        + bytes(2)
        + PLAIN[FRAME + 7 : -2]
        + segment(0xDC, b"\0\x60")
        + b"\xff\xd9",
        PLAIN[: FRAME + 8],
        PLAIN[:SCAN],
        PLAIN[: SCAN + 14],
        PLAIN[: SCAN + 40],  # nothing is shown before the first rows are whole
    ],
)
def test_what_no_browser_shows_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, LIMITS)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_rows_that_are_not_there_are_transparent(subsampling: int, share: float) -> None:
    """The decoder holds back what it cannot smooth yet: part of a row of blocks."""
    whole = encode(picture(), "JPEG", quality=90, subsampling=subsampling)
    scan = whole.index(b"\xff\xda")
    data = whole[: scan + int(share * (len(whole) - scan))]
    frame = next(read_header(data, LIMITS).decode())
    assert frame.truncated
    assert frame.image.mode == "RGBA"
    opaque = np.asarray(frame.image)[..., 3] == 255
    rows = int(opaque[:, 0].sum())
    blocks = 16 if subsampling == 2 else 8
    assert rows % blocks in (0, blocks - 2)
    assert (share - 0.25) * HEIGHT < rows <= share * HEIGHT + blocks
    assert opaque[:rows].all()
    assert not opaque[rows:].any()
    assert np.abs(shown(data)[: rows - 2] - shown(whole)[: rows - 2]).max() <= 1
    assert (shown(data)[rows:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_cut_in_each_kind_of_colours(mode: str) -> None:
    whole = encode(picture(mode), "JPEG", quality=90)
    data = whole[: -len(whole) // 3]
    assert decode(data, LIMITS).info.truncated
    assert (shown(data)[-8:] == 255).all()
    assert np.abs(shown(data)[:30] - shown(whole)[:30]).max() <= 1


def test_a_missing_end_marker_costs_the_last_rows() -> None:
    assert decode(PLAIN[:-2], LIMITS).info.truncated
    assert (shown(PLAIN[:-2])[78:] == 255).all()
    assert np.array_equal(shown(PLAIN[:-2])[:78], shown(PLAIN)[:78])


def test_at_a_part_of_its_size_a_cut_picture_is_cut_as_well() -> None:
    large = encode(picture().resize((1440, 960)), "JPEG", quality=90)
    frame = next(read_header(large[: len(large) // 2], LIMITS).decode(120))
    assert frame.image.height == 240
    opaque = np.asarray(frame.image)[..., 3] == 255
    assert 60 < opaque[:, 0].sum() < 150


@pytest.mark.parametrize("share", [0.4, 0.7, 0.99])
def test_a_progressive_picture_that_is_cut_is_less_sharp(share: float) -> None:
    data = PROGRESSIVE[: int(share * len(PROGRESSIVE))]
    assert decode(data, LIMITS).info.truncated
    assert np.abs(shown(data) - shown(PROGRESSIVE)).mean() < 30


@pytest.mark.parametrize("number", [0, 1])
def test_damage_in_the_scan_is_shown_up_to_where_it_ends(number: int) -> None:
    """A foreign marker ends the data: the rest is grey, not transparent."""
    data = inserted(MIDDLE, (b"\xff\xc0", b"\xff\xd9")[number])
    assert np.array_equal(shown(data)[:24], shown(PLAIN)[:24])
    assert (np.ptp(shown(data)[-8:], axis=(0, 1)) < 40).all()


def test_restarts_that_are_missing_or_wrong_cost_a_row() -> None:
    for data in (
        RESTARTS.replace(b"\xff\xd2", b"\xff\xd5", 1),
        RESTARTS.replace(b"\xff\xd2", b"", 1),
        RESTARTS.replace(b"\xff\xd2", b"\xff\xd2\xff\xd2", 1),
        inserted(RESTARTS.index(b"\xff\xd2") + 2, b"\xff\2", RESTARTS),
    ):
        assert np.array_equal(shown(data)[:30], shown(RESTARTS)[:30])
        assert not (shown(data) == 255).all(axis=-1).any()


def test_the_decoder_gets_what_the_picture_needs(monkeypatch) -> None:
    secret = b"SECRET" * 20
    data = with_segments(PLAIN, segment(0xFE, secret), app1(secret), segment(0xED, secret))
    given = list[bytes]()

    def noted(reader, file: bytes, *rest):
        given.append(file)
        return opened(reader, file, *rest)

    monkeypatch.setattr("worker.image.formats.jpeg.opened", noted)
    assert np.array_equal(shown(data + secret), shown(PLAIN))
    assert len(given) == 2
    assert all(b"SECRET" not in file and len(file) <= len(PLAIN) for file in given)
