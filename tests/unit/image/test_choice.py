"""Which renditions of a file are described."""

import io
import math

import numpy as np
import pytest
import skimage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from worker.image.choice import SIDE, Choice, difference, share_of_time, thumbnail
from worker.records import Pixels, Rendition

SIZE = 320
NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((SIZE, SIZE))


def apart(one: Image.Image, other: Image.Image) -> float:
    small = thumbnail(np.asarray(other.convert("RGB")))
    return float(difference(thumbnail(np.asarray(one.convert("RGB"))), small[None])[0])


def square(level: int, mark: int = 0) -> Pixels:
    """A grey picture with a white square somewhere."""
    pixels = np.full((1, SIDE, SIDE, 3), level, np.uint8)
    pixels[0, :32, 8 * mark : 8 * mark + 32] = 255
    return pixels


@pytest.mark.parametrize("name", NAMES)
def test_reencoding_is_not_noticeable_and_another_picture_is(name: str) -> None:
    image = photograph(name)
    assert apart(image, image) < 1e-3
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    assert apart(image, Image.open(stream)) < 1
    assert apart(image, image.point(lambda level: min(255, level + 10))) < 1
    assert apart(image, Image.new("RGB", (SIZE, SIZE))) > 1
    assert apart(image, image.transpose(Image.Transpose.ROTATE_90)) > 1
    others = [photograph(other) for other in NAMES if other != name]
    assert min(apart(image, other) for other in others) > 1


def test_what_a_curve_hides_in_the_low_bits_is_noticed() -> None:
    """Levels that jump up and down keep the mean of each cell, and hide what is seen."""
    image = photograph("coffee").resize((320, 320))
    jumping = [(level + 96 * (level % 2) - 48) % 256 for level in range(256)]
    assert apart(image, image.point(jumping * 3)) > 1


def test_what_looks_the_same_is_described_once() -> None:
    choice = Choice(8)
    for number in range(50):
        choice.add(Rendition(number), square(100 + number % 3), 0.1, usual=True)
    chosen, left_out = choice.chosen()
    assert [one.rendition.frame for one in chosen] == [0]
    assert (chosen[0].frames, left_out) == (set(range(50)), 0)
    assert chosen[0].seconds == pytest.approx(5)


def test_the_first_frame_then_the_longest_then_the_most_different() -> None:
    choice = Choice(3)
    marks = {0: 0.02, 4: 0.02, 1: 60.0, 2: 0.02, 3: 0.02}
    for number, (mark, lasts) in enumerate(marks.items()):
        choice.add(Rendition(number), square(20, mark), lasts, usual=True)
    chosen, left_out = choice.chosen()
    assert [one.rendition.frame for one in chosen] == [0, 2, 1]
    assert left_out == 2
    described = set[int]().union(*(one.frames for one in chosen))
    share = share_of_time([*marks.values()], described, len(marks))
    assert share is not None
    assert share > 0.999


def test_a_frame_that_comes_again_and_again_is_shown_longest() -> None:
    """Shown for the shortest time each, between frames that never come again."""
    random = np.random.default_rng(1)
    choice = Choice(8)
    for number in range(400):
        looks = random.integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        choice.add(Rendition(number), square(20) if number % 4 == 3 else looks, 0.1, usual=True)
    chosen, left_out = choice.chosen()
    assert chosen[1].rendition.frame == 3
    assert len(chosen[1].frames) == 100
    assert left_out == 293


def test_the_last_frame_of_an_animation_that_ends_is_shown_longest() -> None:
    choice = Choice(2)
    for number, (mark, seconds) in enumerate([(0, 1.0), (1, 5.0), (2, 1.0), (3, math.inf)]):
        choice.add(Rendition(number), square(20, mark), seconds, usual=True)
    chosen, _ = choice.chosen()
    assert [one.rendition.frame for one in chosen] == [0, 3]
    assert share_of_time([1.0, 5.0, 1.0, math.inf], {0, 3}, 4) == 0.5714


def test_what_a_long_frame_shows_on_black_is_not_crowded_out() -> None:
    """On white it is blank; thirty other frames are shown for a moment."""
    random = np.random.default_rng(4)
    choice = Choice(8)
    for number in range(31):
        decoy = random.integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        looks = {"white": np.full_like(decoy, 255), "black": square(20)} if number == 15 else {}
        for background in ("white", "black"):
            rendition = Rendition(number, background=background)
            seconds = 60.0 if number == 15 else 0.02
            one = looks.get(background, decoy)
            choice.add(rendition, one, seconds, usual=background == "white")
    chosen, _ = choice.chosen()
    assert Rendition(15, background="black") in [one.rendition for one in chosen]


def test_the_usual_rendition_of_the_first_frame_always_comes_first() -> None:
    random = np.random.default_rng(2)
    choice = Choice(1)
    for number in range(100):
        looks = random.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
        choice.add(Rendition(number), looks, 100.0 if number else 0.0, usual=True)
    chosen, left_out = choice.chosen()
    assert [one.rendition.frame for one in chosen] == [0]
    assert left_out == 99


def test_a_frame_that_is_shown_longer_is_described_unless_it_is_nearly_the_same() -> None:
    choice = Choice(8)
    shown = [(20, 0, 0.1), (21, 0, 9.0), (200, 3, 0.1), (209, 3, 9.0), (214, 3, 0.1)]
    for number, (level, mark, seconds) in enumerate(shown):
        choice.add(Rendition(number), square(level, mark), seconds, usual=True)
    chosen, _ = choice.chosen()
    assert sorted(one.rendition.frame for one in chosen) == [0, 2, 3]


def test_a_slow_change_ends_at_what_does_not_look_the_same_any_more() -> None:
    """Each frame looks like the one before it, and is shown a little longer."""
    choice = Choice(8)
    for number in range(40):
        choice.add(Rendition(number), square(5 * number), 0.1 + 0.01 * number, usual=True)
    chosen, _ = choice.chosen()
    thumbnails = np.stack([thumbnail(one.looks[0]) for one in chosen])
    described = set[int]().union(*(one.frames for one in chosen))
    for number in described:
        assert difference(thumbnail(square(5 * number)[0]), thumbnails).min() < 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [8, 12])
def test_a_blurred_copy_does_not_stand_for_the_picture(name: str, sigma: float) -> None:
    soft = photograph(name).resize((320, 320)).filter(ImageFilter.GaussianBlur(3))
    assert apart(soft, soft.filter(ImageFilter.GaussianBlur(sigma))) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_strong_border_does_not_hide_a_weak_picture(name: str) -> None:
    levels = np.asarray(photograph(name).convert("L").resize((320, 320)), float)
    inside = 128 + (levels - levels.mean()) * 16 / levels.std()
    plain = np.full((320, 320), 128.0)
    y, x = np.mgrid[:320, :320]
    border = (np.minimum(x, 319 - x) < 16) | (np.minimum(y, 319 - y) < 16)
    checks = 255.0 * ((x + y) // 40 % 2)
    one, other = (
        Image.fromarray(np.where(border, checks, area).clip(0, 255).astype(np.uint8))
        for area in (plain, inside)
    )
    assert apart(one, other) > 1


def test_frames_that_were_not_decoded_are_not_looked_at() -> None:
    assert share_of_time([0.02, 0.02], {0, 1}, 3) == 0.6666


def test_a_still_picture_has_no_playing_time() -> None:
    assert share_of_time([0.0], {0}, 1) is None
    assert share_of_time([0.0, 0.0], {0, 1}, 2) is None
    assert share_of_time([math.inf], {0}, 1) == 1
    assert share_of_time([1.0, 1.0, 2.0], {2}, 3) == 0.5


@given(st.lists(st.floats(0.01, 655.35), min_size=2, max_size=1000), st.data())
def test_only_all_of_the_playing_time_is_1(seconds: list[float], data: st.DataObject) -> None:
    frames = data.draw(st.permutations(range(len(seconds))))
    assert share_of_time(seconds, frames, len(seconds)) == 1
    lost = max(seconds) / sum(seconds)
    share = share_of_time(seconds, set(frames) - {seconds.index(max(seconds))}, len(seconds))
    assert share is not None
    assert share <= 1 - lost + 1e-6
