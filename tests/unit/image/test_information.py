import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from worker.errors import Objection
from worker.image import information, patterns


def square(pixels):
    return np.array(Image.fromarray(pixels).convert("RGB").resize((320, 320)))


def as_jpeg(pixels, quality=50):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def on_white(side):
    """A photograph in the middle of a white page."""
    page = Image.new("RGB", (320, 320), "white")
    page.paste(Image.fromarray(skimage.data.astronaut()).resize((side, side)), (160, 160))
    return np.array(page)


def dark():
    """What a camera with its cap on sees."""
    noise = np.random.default_rng(0).normal(8, 3, (320, 320, 3))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.zeros((320, 320, 3), np.uint8), Objection.BLANK),
        (as_jpeg(np.full((320, 320, 3), (200, 30, 90), np.uint8)), Objection.BLANK),
        (dark(), Objection.NEAR_UNIFORM),
        (on_white(40), Objection.NEAR_UNIFORM),
        (on_white(80), None),
        (as_jpeg(dark()), Objection.BLANK),
    ],
)
def test_what_has_one_colour_shows_nothing(pixels, expected):
    found = information.objection(pixels)
    assert (found and found[0]) == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_have_little_information(seed):
    for drawn in patterns.draw("gradient", 320, seed):
        for pixels in (drawn, as_jpeg(drawn, 75)):
            found = information.objection(pixels)
            assert found is not None
            assert found[0] == Objection.LOW_INFORMATION


@pytest.mark.parametrize(
    "name",
    ["astronaut", "camera", "cat", "cell", "clock", "coffee", "coins", "hubble_deep_field",
     "immunohistochemistry", "microaneurysms", "moon", "page", "retina", "rocket"],
)  # fmt: skip
@pytest.mark.parametrize("side", [320, 64])
def test_photographs_show_something(name, side):
    small = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((side, side))
    assert information.objection(square(np.array(small))) is None


def test_the_measures_are_what_they_say():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:30] = information.TOLERANCE + 1
    assert information.ground_share(pixels) == pytest.approx(0.7)
    checks = np.indices((320, 320)).sum(axis=0)[..., None] % 2 * np.full(3, 20)
    assert information.detail(checks.astype(np.uint8)) == pytest.approx(10, abs=0.1)
