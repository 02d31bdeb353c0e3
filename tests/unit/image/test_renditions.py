"""In which ways a file can be seen."""

import numpy as np
import pytest
import skimage
from PIL import Image

from tests.fixtures import profiles
from worker.image.choice import difference, thumbnail
from worker.image.formats.container import Frame, Header
from worker.image.renditions import on, picture, shown

SIZE = 128
NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((SIZE, SIZE))


def header(**more: object) -> Header:
    return Header(SIZE, SIZE, lambda _target: iter(()), **more)  # type: ignore[arg-type]


def apart(one: Image.Image, other: Image.Image) -> float:
    small = thumbnail(np.asarray(other.convert("RGB")))
    return float(difference(thumbnail(np.asarray(one.convert("RGB"))), small[None])[0])


@pytest.mark.parametrize("columns", [profiles.DISPLAY_P3, profiles.ADOBE_RGB])
@pytest.mark.parametrize("name", NAMES)
def test_an_honest_profile_is_described_once(name: str, columns: profiles.Columns) -> None:
    icc = profiles.rgb(columns, 2.2)
    one, other = shown(Frame(photograph(name)), header(profiles=(icc,)))
    assert (one.colors, other.colors) == ("tagged", "untagged")
    assert apart(one.image, other.image) < 1


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
