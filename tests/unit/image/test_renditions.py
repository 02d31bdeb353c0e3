"""Which ways of seeing a file are described."""

import io
import math

import numpy as np
import pytest
import skimage
from PIL import Image

from tests.fixtures import profiles
from worker.image.formats.container import Frame, Header
from worker.image.renditions import (
    SIDE,
    Choice,
    difference,
    on,
    picture,
    share_of_time,
    shown,
    thumbnail,
)
from worker.records import Pixels, Rendition

SIZE = 128
NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((SIZE, SIZE))


def header(**more: object) -> Header:
    return Header(SIZE, SIZE, lambda _target: iter(()), **more)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("columns", [profiles.DISPLAY_P3, profiles.ADOBE_RGB])
@pytest.mark.parametrize("name", NAMES)
def test_an_honest_profile_is_described_once(name: str, columns: profiles.Columns) -> None:
    icc = profiles.rgb(columns, 2.2)
    one, other = shown(Frame(photograph(name)), header(profiles=(icc,)))
    assert (one.colors, other.colors) == ("tagged", "untagged")
    assert apart(one.image, other.image) < 1


def test_what_a_curve_hides_in_the_low_bits_is_noticed() -> None:
    """Levels that jump up and down keep the mean of each cell, and hide what is seen."""
    image = photograph("coffee").resize((320, 320))
    jumping = [(level + 96 * (level % 2) - 48) % 256 for level in range(256)]
    assert apart(image, image.point(jumping * 3)) > 1


def test_a_picture_without_oddities_is_shown_in_one_way() -> None:
    [one] = shown(Frame(photograph("coffee")), header())
    assert (one.colors, one.crop, one.backgrounds) == ("untagged", "applied", ("white",))
    assert one.image.mode == "RGB"


def test_transparency_is_seen_on_white_on_black_and_without() -> None:
    image = photograph("coffee").convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 64, SIZE))
    [one] = shown(Frame(image), header())
    assert one.backgrounds == ("white", "black", "none")
    corners = [on(one.image, background).getpixel((5, 5)) for background in one.backgrounds]
    assert corners == [(255, 255, 255), (0, 0, 0), (10, 20, 30)]
    assert picture(Frame(image), header()).getpixel((5, 5)) == (255, 255, 255)


def test_an_alpha_channel_that_hides_nothing_is_none() -> None:
    [one] = shown(Frame(photograph("coffee").convert("RGBA")), header())
    assert one.backgrounds == ("white",)


def test_a_crop_is_seen_applied_and_ignored_and_before_the_turn() -> None:
    image = photograph("coffee")
    cropped, whole = shown(Frame(image), header(crop=(0, 0, 64, 32), orientation=6))
    assert (cropped.crop, cropped.image.size) == ("applied", (32, 64))
    assert (whole.crop, whole.image.size) == ("ignored", (SIZE, SIZE))
    turned = image.crop((0, 0, 64, 32)).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(cropped.image), np.asarray(turned))


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
    share = share_of_time([*marks.values()], set[int]().union(*(one.frames for one in chosen)))
    assert share is not None
    assert share > 0.999


def test_a_frame_that_comes_again_and_again_is_shown_longest() -> None:
    """Shown for the shortest time each, between frames that never come again."""
    random = np.random.default_rng(1)
    choice = Choice(3)
    for number in range(400):
        looks = random.integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        choice.add(Rendition(number), square(20) if number % 4 == 3 else looks, 0.1, usual=True)
    chosen, left_out = choice.chosen()
    assert chosen[1].rendition.frame == 3
    assert len(chosen[1].frames) == 100
    assert left_out == 298


def test_the_last_frame_of_an_animation_that_ends_is_shown_longest() -> None:
    choice = Choice(2)
    for number, (mark, seconds) in enumerate([(0, 1.0), (1, 5.0), (2, 1.0), (3, math.inf)]):
        choice.add(Rendition(number), square(20, mark), seconds, usual=True)
    chosen, _ = choice.chosen()
    assert [one.rendition.frame for one in chosen] == [0, 3]
    assert share_of_time([1.0, 5.0, 1.0, math.inf], {0, 3}) == pytest.approx(8 / 14)


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


def test_a_still_picture_has_no_playing_time() -> None:
    assert share_of_time([0.0], {0}) is None
    assert share_of_time([0.0, 0.0], {0, 1}) is None
    assert share_of_time([math.inf], {0}) == 1
    assert share_of_time([1.0, 1.0, 2.0], {2}) == 0.5
