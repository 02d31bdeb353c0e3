"""Animations through the whole of decoding: which frames are described, and what a cut one shows.

How each format's frames are put together is tested with its reader.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.bombs import anmf, chunk, gif, part, riff, vp8x
from tests.fixtures.bombs import frame as gif_frame
from worker.errors import DecodeError, UnscreenedReason
from worker.image.decode import read_header
from worker.image.preprocess import prepare
from worker.image.renditions import picture
from worker.records import Pixels, Prepared, Preprocessing
from worker.settings import Limits, Views

LIMITS = Limits()
SIDE = 64
PREPROCESSING = Preprocessing("test", SIDE, "bilinear")
OPTIONS: dict[str, dict[str, bool]] = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}}


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def level(number: int) -> int:
    return 20 * number


def animation(kind: str, count: int, **options: object) -> bytes:
    """A white square of 8 that moves over greys that grow lighter."""
    pictures = []
    for number in range(count):
        image = Image.new("RGB", (SIDE, SIDE), (level(number),) * 3)
        image.paste("white", (number * 5, 5, number * 5 + 8, 13))
        pictures.append(image)
    more: dict[str, object] = {"save_all": True, "append_images": pictures[1:], "duration": 50}
    return encode(pictures[0], kind, **(OPTIONS[kind] | more | options))


def frames(data: bytes) -> list[Pixels]:
    """All frames as a viewer shows them on white."""
    encoded = read_header(data, LIMITS)
    return [np.asarray(picture(frame, encoded.header)) for frame in encoded.decode()]


def prepared(data: bytes, most: int = 8, limits: Limits = LIMITS) -> Prepared:
    return prepare(data, limits, PREPROCESSING, Views(renditions=most))


@pytest.mark.parametrize("kind", OPTIONS)
def test_frames_are_what_is_shown_in_order(kind: str) -> None:
    shown = frames(animation(kind, 10))
    assert [int(one[-1, -1, 0]) for one in shown] == [level(n) for n in range(10)]
    for number, one in enumerate(shown):
        [columns] = np.nonzero((one[9] == 255).all(-1))
        assert columns[0] == 5 * number


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_longest_frame_is_described_wherever_it_is(kind: str) -> None:
    durations = [20] * 10
    durations[6] = 60_000
    data = animation(kind, 10, duration=durations, loop=0)
    found = prepared(data, 3)
    assert [look.rendition.frame for look in found.looks][:2] == [0, 6]
    assert (found.info.frames, found.info.frames_decoded) == (10, 10)
    assert found.info.playing_time_described is not None
    assert found.info.playing_time_described > 0.99
    assert found.info.renditions_left_out > 0
    assert int(found.pixels[1, -1, -1, 0]) == level(6)


def test_all_frames_that_differ_are_described_if_there_is_room() -> None:
    found = prepared(animation("PNG", 4, duration=[100] * 4), 8)
    assert next(look.rendition.frame for look in found.looks) == 0
    assert {look.rendition.frame for look in found.looks} == {0, 1, 2, 3}
    assert (found.info.renditions_left_out, found.info.playing_time_described) == (0, 1)


def test_frames_above_the_limit_are_not_looked_at_and_the_verdict_can_say_so() -> None:
    data = animation("GIF", 10)
    for limits in (Limits(image_frames=4), Limits(animation_pixels=4 * SIDE * SIDE)):
        found = prepared(data, limits=limits)
        assert (found.info.frames_decoded, found.info.truncated) == (4, False)
        assert found.info.frames > 4


@pytest.mark.parametrize("kind", OPTIONS)
def test_of_a_cut_animation_what_there_is_is_shown(kind: str) -> None:
    data = animation(kind, 6)
    counts = list[int]()
    for end in range(12, len(data) - 1, 7):
        try:
            found = prepared(data[:end])
        except DecodeError:
            assert not counts
            continue
        assert found.info.truncated
        counts.append(found.info.frames_decoded)
    assert counts == sorted(counts)
    # Of a WebP only whole frames are shown, of the others also what there is of the last one.
    assert set(counts) == set(range(1, 6 if kind == "WEBP" else 7))
    assert not prepared(data).info.truncated


def test_frames_beyond_the_canvas_count_as_pixels() -> None:
    dot = gif_frame(1, 1, b"\x44\x01")
    with pytest.raises(DecodeError) as caught:
        prepared(gif(32, 32, gif_frame(65535, 65535, b"\x44\x01"), dot))
    assert caught.value.reason is UnscreenedReason.TOO_MANY_PIXELS


def test_a_damaged_later_frame_ends_the_animation_there() -> None:
    data = bytearray(animation("PNG", 3))
    at = data.rindex(b"fdAT") + 8
    data[at : at + 6] = b"\xff" * 6
    found = prepared(bytes(data))
    assert found.info.truncated
    assert found.info.frames_decoded in (2, 3)
    assert {look.rendition.frame for look in found.looks} >= {0, 1}


def test_a_webp_of_frames_without_pictures_is_refused() -> None:
    data = riff(vp8x(64, 48, 2), part(b"ANIM", bytes(6)), anmf(64, 48, b""))
    with pytest.raises(DecodeError):
        prepared(data)


@pytest.mark.parametrize("promised", [2, 9])
def test_a_png_of_another_number_of_frames_than_it_says_is_flagged(promised: int) -> None:
    data = animation("PNG", 3)
    at = data.index(b"acTL") + 4
    other = data[: at - 8] + chunk(b"acTL", struct.pack(">II", promised, 0)) + data[at + 12 :]
    assert prepared(other).info.truncated
