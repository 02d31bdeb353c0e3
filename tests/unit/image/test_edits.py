import numpy as np
import pytest
from PIL import Image

from worker.image.edits import EDITS, UNEDITED


@pytest.fixture
def picture():
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_makes_another_rgb_picture_and_leaves_the_first_alone(what, picture):
    before = picture.tobytes()
    edited = EDITS[what](picture)
    assert edited.mode == "RGB"
    assert picture.tobytes() == before
    same = edited.size == picture.size and edited.tobytes() == before
    assert same == (what == UNEDITED)


def test_edits_do_what_they_are_called(picture):
    pixels = np.asarray(picture)
    assert np.array_equal(np.asarray(EDITS["negative"](picture)), 255 - pixels)
    assert np.array_equal(np.asarray(EDITS["mirrored"](picture)), pixels[:, ::-1])
    assert EDITS["rotated by 90 degrees"](picture).size == (150, 200)
    assert EDITS["resized to half"](picture).size == (100, 75)
    assert np.ptp(np.asarray(EDITS["greyscale"](picture)), axis=2).max() == 0
    pasted = np.asarray(EDITS["pasted into a page"](picture))
    assert any(
        np.array_equal(pasted[y : y + 150, x : x + 200], pixels)
        for y in range(76)
        for x in range(101)
    )
