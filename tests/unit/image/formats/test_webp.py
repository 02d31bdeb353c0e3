"""WebP files as Chromium 156 was seen to show them."""

import struct

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import profiles
from tests.fixtures.bombs import part, riff, vp8x
from tests.fixtures.container_bombs import encode
from worker.errors import DecodeError
from worker.image.decode import read_header
from worker.image.formats.container import opened
from worker.image.formats.webp import webp
from worker.image.preprocess import decode
from worker.settings import Limits

LIMITS = Limits()
WIDTH, HEIGHT = 72, 48
MOVES, ALPHA, PROFILE, EXIF = 0x02, 0x10, 0x20, 0x08


def picture(turn: int = 0) -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [100 + 90 * np.sin(x / 9 + y / (5 + 4 * n)) for n in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).rotate(turn)


def clear() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def chunks(image: Image.Image, **options) -> dict[bytes, bytes]:
    data, at, found = encode(image, "WEBP", **options), 12, dict[bytes, bytes]()
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        found[data[at : at + 4]] = data[at + 8 : at + 8 + length]
        at += 8 + length + (length & 1)
    return found


LOSSY = part(b"VP8 ", chunks(picture())[b"VP8 "])
LOSSLESS = part(b"VP8L", chunks(picture(), lossless=True)[b"VP8L"])
CLEAR_LOSSLESS = chunks(clear(), lossless=True)[b"VP8L"]
COLORS, LEVELS = chunks(clear())[b"VP8 "], chunks(clear())[b"ALPH"]
CLEAR = part(b"ALPH", LEVELS) + part(b"VP8 ", COLORS)


def head(flags: int = 0) -> bytes:
    return vp8x(WIDTH, HEIGHT, flags)


def shown(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels.astype(int)


PLAIN = shown(riff(LOSSY))
ICC = profiles.rgb(profiles.SWAPPED)
OTHER = profiles.rgb(profiles.SRGB, 1.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (riff(head(PROFILE), part(b"ICCP", ICC), LOSSY), ICC),
        (riff(head(PROFILE), LOSSY, part(b"ICCP", ICC)), ICC),
        (riff(head(PROFILE), part(b"XXXX", b"abc"), part(b"ICCP", ICC), LOSSY), ICC),
        (riff(head(PROFILE), part(b"ICCP", ICC), part(b"ICCP", OTHER), LOSSY), ICC),
        (riff(head(PROFILE), part(b"ICCP", ICC + bytes(5 << 20)), LOSSY), ICC + bytes(5 << 20)),
        (riff(head(PROFILE), part(b"ICCP", b"x" * 99), part(b"ICCP", ICC), LOSSY), b""),
        (riff(head(PROFILE), part(b"ICCP", b""), part(b"ICCP", ICC), LOSSY), b""),
        (riff(head(), part(b"ICCP", ICC), LOSSY), b""),
        (riff(LOSSY, part(b"ICCP", ICC)), b""),
        (riff(head(PROFILE), LOSSY) + part(b"ICCP", ICC), b""),
    ],
)
def test_profiles(data: bytes, expected: bytes) -> None:
    found = webp(data, 1).profiles
    assert (found[0] if found else b"") == expected
    assert (np.abs(shown(data) - PLAIN).mean() > 20) == bool(expected)


def test_exif_turns_nothing() -> None:
    exif = struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    data = riff(head(EXIF), LOSSY, part(b"EXIF", exif))
    assert np.array_equal(shown(data), PLAIN)


@pytest.mark.parametrize(
    "data",
    [
        riff(head(), LOSSY),
        riff(LOSSY) + b"x" * 500,
        riff(LOSSY) + encode(picture(180), "WEBP"),
        riff(LOSSY, LOSSLESS),
        riff(head(), part(b"XXXX", b"") * 100_000, LOSSY),
        riff(head(), part(b"XXXX", b"abc") * 100_000, LOSSY),
        riff(head(), LOSSY, part(b"XXXX", b"") * 100_000),
        riff(head(), LOSSY, part(b"EXIF", bytes(1 << 20))),
        riff(head(ALPHA), LOSSY),
        riff(head(), part(b"ANMF", bytes(40)), LOSSY),
    ],
)
def test_what_is_not_the_picture_changes_nothing(data: bytes) -> None:
    assert np.array_equal(shown(data), PLAIN)
    assert webp(data, 9).frames == 1


@pytest.mark.parametrize(
    "data",
    [
        riff(head(), LOSSY)[:-40],
        riff(LOSSY)[:300],
        b"RIFF" + struct.pack("<I", 100) + riff(LOSSY)[8:],
        b"RIFF" + bytes(4) + riff(LOSSY)[8:],
        riff(part(b"ICCP", ICC), LOSSY),
        riff(b"VP8 " + struct.pack("<I", 2 * len(LOSSY)) + LOSSY[8:]),
        riff(b"VP8 " + struct.pack("<I", len(LOSSY) // 2) + LOSSY[8:]),
        riff(head()),
        riff(head(ALPHA), part(b"ALPH", b"\1junk"), part(b"VP8 ", COLORS)),
        riff(head(ALPHA), part(b"ALPH", b""), part(b"VP8 ", COLORS)),
        riff(head(MOVES), LOSSY),
        riff(vp8x(200, 200), LOSSY),
        riff(part(b"VP8X", bytes(8)), LOSSY),
    ],
)
def test_what_no_browser_shows_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, LIMITS)


def test_a_whole_picture_in_a_file_that_should_be_longer_is_shown() -> None:
    data = b"RIFF" + struct.pack("<I", 10**6) + riff(LOSSY, part(b"XXXX", b"ab"))[8:]
    assert np.array_equal(shown(data), PLAIN)
    assert decode(data, LIMITS).info.truncated


def alpha_of(data: bytes) -> np.ndarray:
    frame = next(read_header(data, LIMITS).decode())
    return np.asarray(frame.image.convert("RGBA"))[..., 3]


def test_alpha_of_a_lossy_picture_must_be_announced() -> None:
    assert alpha_of(riff(head(ALPHA), CLEAR)).min() < 10
    assert (alpha_of(riff(head(), CLEAR)) == 255).all()


def test_alpha_of_a_lossless_picture_counts_in_any_case() -> None:
    silent = CLEAR_LOSSLESS[:4] + bytes([CLEAR_LOSSLESS[4] & ~0x10]) + CLEAR_LOSSLESS[5:]
    for data in (
        riff(part(b"VP8L", CLEAR_LOSSLESS)),
        riff(head(ALPHA), part(b"VP8L", CLEAR_LOSSLESS)),
        riff(head(), part(b"VP8L", CLEAR_LOSSLESS)),
        riff(part(b"VP8L", silent)),
    ):
        assert alpha_of(data).min() < 10
    assert (alpha_of(riff(LOSSLESS)) == 255).all()


def frame(image: bytes, milliseconds: int = 100, flags: int = 0, at=(0, 0), size=None) -> bytes:
    width, height = size or (WIDTH, HEIGHT)
    numbers = (at[0] // 2, at[1] // 2, width - 1, height - 1, milliseconds)
    body = b"".join(struct.pack("<I", one)[:3] for one in numbers)
    return part(b"ANMF", body + bytes([flags]) + image)


TURNED = part(b"VP8 ", chunks(picture(180))[b"VP8 "])
SMALL = part(b"VP8L", chunks(picture().resize((20, 20)), lossless=True)[b"VP8L"])


def moving(*frames: bytes, loops: int = 0, flags: int = MOVES, before: bytes = b"") -> bytes:
    loop = part(b"ANIM", b"\xff\0\0\xff" + struct.pack("<H", loops))
    return riff(head(flags), before, loop, *frames)


def frames_of(data: bytes):
    return list(read_header(data, LIMITS).decode())


def test_frames_are_shown_as_long_as_browsers_show_them() -> None:
    times = (0, 1, 10, 11, 20, 65_535, 16_777_215)
    data = moving(*(frame(LOSSY, one) for one in times))
    seconds = [one.seconds for one in frames_of(data)]
    assert seconds == [0.1, 0.1, 0.1, 0.011, 0.02, 65.535, 16_777.215]


def test_the_last_frame_stays_where_the_loops_are_counted() -> None:
    pair = frame(LOSSY, 100), frame(TURNED, 200)
    for loops, last in ((0, 0.2), (1, np.inf), (3, np.inf)):
        assert [one.seconds for one in frames_of(moving(*pair, loops=loops))] == [0.1, last]
    twice = moving(*pair, before=part(b"ANIM", bytes(4) + b"\5\0"))
    assert frames_of(twice)[-1].seconds == np.inf


def test_an_animation_of_one_frame_has_no_playing_time() -> None:
    for loops in (0, 1):
        assert [one.seconds for one in frames_of(moving(frame(LOSSY), loops=loops))] == [0.0]


def test_what_no_frame_covers_is_transparent_whatever_the_background() -> None:
    for flags in (MOVES, MOVES | ALPHA):
        data = moving(frame(SMALL, at=(10, 20), size=(20, 20)), frame(LOSSY), flags=flags)
        first, second = frames_of(data)
        alpha = np.asarray(first.image)[..., 3]
        assert alpha.sum() == 255 * 20 * 20
        assert alpha[20:40, 10:30].all()
        assert np.asarray(second.image)[..., 3].min() == 255


def test_a_frame_disposed_to_the_background_leaves_it_transparent() -> None:
    data = moving(frame(LOSSY, flags=1), frame(SMALL, at=(0, 0), size=(20, 20)))
    assert np.asarray(frames_of(data)[1].image)[..., 3].sum() == 255 * 20 * 20


def test_frames_of_a_still_picture_and_frames_outside_count_for_nothing() -> None:
    assert len(frames_of(moving(frame(LOSSY), part(b"XXXX", b"ab"), frame(TURNED)))) == 2
    assert len(frames_of(moving(frame(LOSSY)) + frame(TURNED))) == 1
    still = riff(head(), LOSSY, part(b"ANIM", bytes(6)), frame(TURNED))
    assert [one.seconds for one in frames_of(still)] == [0.0]
    empty = moving(frame(LOSSY, 100), frame(b"", 200), frame(TURNED, 300))
    assert [one.seconds for one in frames_of(empty)] == [0.1, 0.3]


def test_of_too_many_frames_the_first_ones_are_read() -> None:
    data = moving(*[frame(LOSSY)] * 9, loops=1)
    header = webp(data, 4)
    assert header.frames == 5
    assert all(one.seconds == 0.1 for one in header.decode(None))


def test_an_animation_ignores_profiles() -> None:
    data = moving(frame(LOSSY), flags=MOVES | PROFILE, before=part(b"ICCP", ICC))
    assert webp(data, 9).profiles == ()


def test_an_animation_that_is_cut_shows_its_whole_frames() -> None:
    data = moving(frame(LOSSY), frame(TURNED), frame(LOSSY))
    header = read_header(data[:-50], LIMITS).header
    assert (header.frames, header.truncated) == (2, True)
    assert len(frames_of(data[:-50])) == 2
    with pytest.raises(DecodeError):
        read_header(data[:100], LIMITS)


def test_the_decoder_gets_what_the_picture_needs(monkeypatch) -> None:
    secret = part(b"XXXX", b"SECRET" * 20)
    given = list[bytes]()

    def noted(reader, file: bytes, *rest):
        given.append(file)
        return opened(reader, file, *rest)

    monkeypatch.setattr("worker.image.formats.webp.opened", noted)
    assert np.array_equal(shown(riff(head(), secret, LOSSY, secret)), PLAIN)
    assert given == [riff(LOSSY)]
