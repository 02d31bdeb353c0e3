"""Animations: which frames, what they show, and what of them is left when the file is cut."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.bombs import anmf, chunk, gif, part, riff, vp8x
from tests.fixtures.bombs import frame as gif_frame
from tests.fixtures.container_bombs import encode
from worker.errors import DecodeError, UnscreenedReason
from worker.image.decode import chosen, decode, frames
from worker.settings import Limits

LIMITS = Limits()
SIDE = 40
OPTIONS = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}}


def level(number: int) -> int:
    return 20 * number


def animation(kind: str, count: int, **options) -> bytes:
    """A white square of 8 that moves over greys that grow lighter."""
    pictures = []
    for number in range(count):
        picture = Image.new("RGB", (SIDE, SIDE), (level(number),) * 3)
        picture.paste("white", (number * 3, 5, number * 3 + 8, 13))
        pictures.append(picture)
    more = {"save_all": True, "append_images": pictures[1:], "duration": 50}
    return encode(pictures[0], kind, **OPTIONS[kind], **more, **options)


def shown(data: bytes, most: int, limits: Limits = LIMITS) -> dict[int, list[int]]:
    """Corner's level and the square's column for each frame."""
    found = {}
    for one in frames(data, limits, most=most):
        assert one.pixels.shape == (one.info.height, one.info.width, 3)
        [columns] = np.nonzero((one.pixels[9] == 255).all(-1))
        found[one.frame] = [int(one.pixels[-1, -1, 0]), int(columns[0])]
    return found


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (1, 1, [0]),
        (1, 9, [0]),
        (9, 1, [0]),
        (9, 2, [0, 8]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (3, 9, [0, 1, 2]),
        (1000, 5, [0, 250, 500, 749, 999]),
    ],
)
def test_which_frames(count: int, most: int, expected: list[int]) -> None:
    assert list(chosen(count, most)) == expected


@pytest.mark.parametrize("kind", OPTIONS)
def test_frames_are_what_is_shown_and_carry_their_numbers(kind: str) -> None:
    data = animation(kind, 10)
    for most in (1, 3, 4, 10, 100):
        assert shown(data, most) == {n: [level(n), 3 * n] for n in chosen(10, most)}
    assert [one.info.frames for one in frames(data, LIMITS, most=2)] == [10, 10]
    assert decode(data, LIMITS).frame == 0


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_gif_frames_are_put_onto_each_other(disposal: int) -> None:
    """A transparent frame that paints one corner: what is beneath depends on the disposal."""
    red, blue = Image.new("P", (9, 9), 1), Image.new("P", (9, 9), 0)
    for image in (red, blue):
        image.putpalette([9, 9, 9, 255, 0, 0, 0, 0, 255])
    blue.paste(2, (0, 0, 3, 3))
    more = {"save_all": True, "append_images": [blue], "transparency": 0, "optimize": False}
    data = encode(red, "GIF", disposal=disposal, duration=50, **more)
    first, last = frames(data, LIMITS, most=2)
    assert first.pixels[8, 8].tolist() == [255, 0, 0]
    assert last.pixels[0, 0].tolist() == [0, 0, 255]
    beneath = [255, 0, 0] if disposal in (0, 1) else [255, 255, 255]
    assert last.pixels[8, 8].tolist() == beneath


@pytest.mark.parametrize("blend", [0, 1])
def test_png_frames_are_put_onto_each_other(blend: int) -> None:
    red, part_blue = Image.new("RGBA", (9, 9), "red"), Image.new("RGBA", (9, 9))
    part_blue.paste("blue", (0, 0, 3, 3))
    data = encode(red, "PNG", save_all=True, append_images=[part_blue], blend=[0, blend])
    _, last = frames(data, LIMITS, most=2)
    assert last.pixels[0, 0].tolist() == [0, 0, 255]
    assert last.pixels[8, 8].tolist() == ([255, 0, 0] if blend else [255, 255, 255])


def test_a_default_image_that_is_not_in_the_animation_is_frame_0() -> None:
    data = animation("PNG", 5, default_image=True)
    found = list(frames(data, LIMITS, most=9))
    assert [one.frame for one in found] == [0, 1, 2, 3, 4]
    assert [int(one.pixels[-1, -1, 0]) for one in found] == [level(n) for n in range(5)]
    assert found[0].info.frames == 5


@pytest.mark.parametrize("kind", OPTIONS)
def test_of_a_cut_animation_the_whole_frames_are_shown(kind: str) -> None:
    data = animation(kind, 6)
    counts = list[int]()
    for end in range(len(data) // 4, len(data)):
        try:
            found = list(frames(data[:end], LIMITS, most=6))
        except DecodeError:
            assert not counts
            continue
        assert all(one.info.truncated for one in found)
        assert [one.frame for one in found] == list(range(found[0].info.frames))
        assert [int(one.pixels[-1, -1, 0]) for one in found] == [
            level(n) for n in range(len(found))
        ]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert set(counts) >= {1, 2, 3, 4, 5}
    assert not any(one.info.truncated for one in frames(data, LIMITS, most=6))


def test_work_is_bounded_by_the_frames_up_to_the_last_one() -> None:
    data = animation("GIF", 10)
    limits = Limits(animation_pixels=10 * SIDE * SIDE - 1)
    assert len(shown(data, 1, limits)) == 1
    with pytest.raises(DecodeError) as caught:
        shown(data, 2, limits)
    assert caught.value.reason is UnscreenedReason.TOO_MANY_FRAMES
    assert len(shown(data, 2, Limits(animation_pixels=10 * SIDE * SIDE))) == 2


def test_frames_beyond_the_canvas_are_cut_off_and_count_as_pixels() -> None:
    dot = gif_frame(1, 1, b"\x44\x01")
    whole = encode(Image.new("P", (3, 2)), "GIF")
    large = whole[whole.index(b"\x2c") : -1]
    for one in frames(gif(2, 2, dot, large), LIMITS, most=2):
        assert one.pixels.shape == (2, 2, 3)
    with pytest.raises(DecodeError) as caught:
        list(frames(gif(2, 2, dot, gif_frame(65535, 65535, b"\x44\x01")), LIMITS, most=2))
    assert caught.value.reason is UnscreenedReason.TOO_MANY_PIXELS


def test_a_damaged_later_frame_makes_the_picture_undecodable() -> None:
    data = bytearray(animation("PNG", 3))
    at = data.rindex(b"fdAT") + 8
    data[at : at + 6] = b"\xff" * 6
    seen = frames(bytes(data), LIMITS, most=3)
    assert [next(seen).frame, next(seen).frame] == [0, 1]
    with pytest.raises(DecodeError):
        next(seen)


def test_a_webp_of_frames_without_pictures_is_refused() -> None:
    data = riff(vp8x(64, 48, 2), part(b"ANIM", bytes(6)), anmf(64, 48, b""))
    with pytest.raises(DecodeError):
        list(frames(data, LIMITS, most=3))


def test_the_reservation_is_held_until_the_last_frame_or_the_end() -> None:
    held: list[int] = []

    @contextmanager
    def reserve(nbytes: int) -> Iterator[None]:
        held.append(nbytes)
        try:
            yield
        finally:
            held.clear()

    data = animation("WEBP", 4)
    for one in frames(data, LIMITS, reserve=reserve, most=4):
        assert held, one.frame
    assert not held
    opened = frames(data, LIMITS, reserve=reserve, most=4)
    next(opened)
    assert held
    opened.close()
    assert not held


def test_a_png_that_promises_more_frames_than_it_has_is_truncated() -> None:
    data = animation("PNG", 3)
    at = data.index(b"acTL") + 4
    more = data[: at - 8] + chunk(b"acTL", struct.pack(">II", 9, 0)) + data[at + 12 :]
    found = list(frames(more, LIMITS, most=9))
    assert [one.frame for one in found] == [0, 1, 2]
    assert found[0].info.truncated


def test_a_png_of_more_frames_than_it_says_tells_that_some_are_missing() -> None:
    data = animation("PNG", 3)
    at = data.index(b"acTL") + 4
    fewer = data[: at - 8] + chunk(b"acTL", struct.pack(">II", 2, 0)) + data[at + 12 :]
    found = list(frames(fewer, LIMITS, most=9))
    assert [one.frame for one in found] == [0, 1]
    assert found[0].info.truncated
