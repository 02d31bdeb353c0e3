"""Every view finds the copies it is for, edited a second time, with real weights."""

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from worker.descriptor import embedders
from worker.descriptor.views import REFERENCE_VIEWS
from worker.image import edits
from worker.image.preprocess import boxes, resize
from worker.settings import ModelSettings, Views

FIRST = {
    "plain": lambda picture: picture,
    "inverted": ImageOps.invert,
    "mirrored": ImageOps.mirror,
    "rotated_90": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "rotated_180": lambda picture: picture.transpose(Image.Transpose.ROTATE_180),
    "rotated_270": lambda picture: picture.transpose(Image.Transpose.ROTATE_270),
}
"""What each view undoes, done to the whole picture by other code."""
SECOND = (edits.reencoded, edits.cropped, edits.captioned, edits.recoloured)
GAIN = {"plain": 0.0, "inverted": 0.3, "mirrored": -0.03} | dict.fromkeys(
    ("rotated_90", "rotated_180", "rotated_270"), 0.0
)
"""What a view adds to the cosine of such copies at least: the plain one hardly sees mirroring."""


@pytest.fixture(scope="module")
def int8():
    return embedders.load(ModelSettings(name="sscd_disc_mixup_int8", device="cpu", threads=2))


def photo(name):
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


@pytest.mark.parametrize("view", REFERENCE_VIEWS)
@pytest.mark.parametrize("name", ["astronaut", "coffee", "camera"])
def test_views_recognise_copies_that_were_edited_further(int8, view, name):
    picture = photo(name)
    reference = resize(np.asarray(picture), int8.preprocessing)
    plain, own = int8.describe(np.stack([reference, REFERENCE_VIEWS[view](reference)]))
    once = FIRST[view](picture)
    copies = int8.describe(
        np.stack([resize(np.asarray(edit(once)), int8.preprocessing) for edit in SECOND])
    )
    assert float((copies @ own).min()) > 0.5
    assert float((copies @ own - copies @ plain).min()) >= GAIN[view]


@pytest.mark.parametrize("view", REFERENCE_VIEWS)
def test_a_view_of_the_small_picture_is_the_view_of_the_picture(int8, view):
    """So that references need no second resize; bicubic is not quite the same from both sides."""
    picture = photo("coffee")  # not square
    small = REFERENCE_VIEWS[view](resize(np.asarray(picture), int8.preprocessing))
    large = resize(np.asarray(FIRST[view](picture)), int8.preprocessing)
    assert np.abs(small.astype(int) - large).max() <= 1


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("second", SECOND[:1] + SECOND[3:])
def test_crops_of_an_upload_show_what_was_pasted(int8, name, second):
    picture = photo(name)
    reference = resize(np.asarray(picture), int8.preprocessing)[None]
    page = np.asarray(second(edits.pasted(picture)))
    views = boxes(Views(uploads=("plain", "five_crops")))
    looks = np.stack([resize(page, int8.preprocessing, box) for box in views.values()])
    plain, *crops = (int8.describe(looks) @ int8.describe(reference)[0]).tolist()
    assert max(crops) > plain
