"""The resize is torchvision's."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Resize

from worker.image.preprocess import boxes, prepare, resize
from worker.records import Preprocessing
from worker.settings import Limits, Views


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(480, 640), (1200, 90), (37, 53), (320, 320)])
def test_equals_torchvision_on_pil_images(shape: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    preprocessing = Preprocessing("test", 320, interpolation)  # type: ignore[arg-type]
    ours = resize(pixels, preprocessing)
    theirs = Resize((320, 320), InterpolationMode(interpolation))(Image.fromarray(pixels))
    assert np.array_equal(ours, np.asarray(theirs))
    assert ours.dtype == np.uint8
    assert ours.flags.writeable
    assert ours.flags.c_contiguous


def test_is_antialiased() -> None:
    """Every 8th column is white: without antialiasing, 1/8 would hit it or miss it altogether."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 255
    small = resize(stripes, Preprocessing("test", 32, "bilinear"))
    assert 20 < small.mean() < 45
    assert small.max() < 80


def test_a_box_is_cut_out_before_the_resize() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (200, 100, 3), np.uint8)
    preprocessing = Preprocessing("test", 64, "bicubic")
    cut = resize(pixels, preprocessing, (0.1, 0.2, 0.7, 0.8))
    alone = resize(pixels[40:160, 10:70].copy(), preprocessing)
    # At its edge the filter reaches beyond the box, to what is there in the picture.
    assert np.array_equal(cut[4:-4, 4:-4], alone[4:-4, 4:-4])


def test_crops_show_what_their_names_say() -> None:
    """Four quarters of a colour each."""
    pixels = np.zeros((300, 300, 3), np.uint8)
    quarters = {"top_left": 50, "top_right": 100, "bottom_left": 150, "bottom_right": 200}
    for level, (top, left) in zip(
        quarters.values(), ((0, 0), (0, 150), (150, 0), (150, 150)), strict=True
    ):
        pixels[top : top + 150, left : left + 150] = level
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    views = Views(uploads=("plain", "five_crops"))
    made = prepare(stream.getvalue(), Limits(), Preprocessing("test", 32, "bilinear"), views)
    assert [look.view for look in made.looks] == list(boxes(views))
    assert made.pixels.shape == (6, 32, 32, 3)
    corners = {"top_left": (0, 0), "top_right": (0, -1), "bottom_left": (-1, 0)}
    corners["bottom_right"] = (-1, -1)
    for look, picture in zip(made.looks, made.pixels, strict=True):
        quarter = look.view.removesuffix("_crop")
        if quarter in corners:
            # A corner shows 3 parts of its own quarter to 1 of the next, each way.
            own = (picture[..., 0] == quarters[quarter]).mean()
            assert 0.5 < own < 0.6
            assert picture[corners[quarter]][0] == quarters[quarter]
        else:
            assert {int(picture[at][0]) for at in corners.values()} == set(quarters.values())


def test_a_crop_of_a_large_jpeg_is_as_sharp_as_the_crop_alone() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1600, 1600), np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).resize((3200, 3200), Image.Resampling.NEAREST).save(stream, "JPEG")
    preprocessing, views = (
        Preprocessing("test", 320, "bilinear"),
        Views(uploads=("plain", "centre_crop")),
    )
    made = prepare(stream.getvalue(), Limits(), preprocessing, views)
    whole = np.asarray(Image.open(stream).convert("RGB"))
    expected = resize(whole, preprocessing, boxes(views)["centre_crop"])
    difference = np.abs(made.pixels[1].astype(int) - expected).mean()
    assert difference < 2  # 4.7 where the target is the model's size alone
