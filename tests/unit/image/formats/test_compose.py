"""The canvas: blending, and what it hands out."""

import numpy as np
from PIL import Image

from worker.image.formats.compose import Canvas
from worker.image.formats.container import shown_seconds

SIZE = (6, 4)
WHOLE = (0, 0, 6, 4)


def test_over_is_that_of_porter_and_duff():
    """As the specification of APNG has it, without squaring alpha."""
    rng = np.random.default_rng(3)
    lower, upper = rng.integers(0, 256, (2, 4, 6, 4), np.uint8)
    canvas = Canvas(SIZE)
    canvas.show(Image.fromarray(lower), WHOLE, over=False, disposal="keep")
    shown = canvas.show(Image.fromarray(upper), WHOLE, over=True, disposal="keep")
    below, above = lower / 255, upper / 255
    share = above[..., 3:] + below[..., 3:] * (1 - above[..., 3:])
    mixed = above[..., :3] * above[..., 3:]
    mixed += below[..., :3] * below[..., 3:] * (1 - above[..., 3:])
    expected = np.dstack([mixed / np.maximum(share, 1e-9), share]) * 255
    assert np.abs(np.asarray(shown) - expected).max() <= 1


def test_an_opaque_canvas_is_handed_out_without_alpha():
    canvas = Canvas(SIZE)
    grey = Image.new("L", SIZE, 9)
    assert canvas.show(grey, WHOLE, over=False, disposal="keep").mode == "RGB"
    half = Image.new("RGBA", (3, 4), (200, 100, 0, 128))
    blended = canvas.show(half, (0, 0, 3, 4), over=True, disposal="clear")
    assert blended.mode == "RGB"
    assert np.abs(np.asarray(blended)[0, 0] - np.array((105, 55, 4))).max() <= 1
    cleared = canvas.show(None, (0, 0, 1, 1), over=True, disposal="keep")
    assert cleared.mode == "RGBA"
    assert np.asarray(cleared)[0, (0, 5), 3].tolist() == [0, 255]
    assert blended.mode == "RGB"  # and what was handed out before is as it was


def test_a_delay_of_ten_milliseconds_is_slowed_down():
    assert [shown_seconds(one) for one in (0, 0.01, 0.011, 2)] == [0.1, 0.1, 0.011, 2]
