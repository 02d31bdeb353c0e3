"""What the pixels of a picture say against it as a reference: that they show next to nothing.

A descriptor of such a picture is arbitrary, and like that of any other that shows as little.
"""

import numpy as np
from PIL import Image

from worker.errors import Objection
from worker.records import Pixels

TOLERANCE = 12
"""Levels of 256, per channel, within which a pixel has the ground's colour: what JPEG at quality 50
and the noise of a camera in the dark make of one colour. Half of a photograph may be within it."""
UNIFORM_SHARE = 0.98
"""Share of pixels in the ground's colour from which a picture is nearly uniform. Of 93 photographs
the highest was 0.91 (a moon), of drawings on white 0.94, one bare letter aside."""
COARSE = 20
"""Fields a side to which a picture is averaged, to see what is finer than that."""
LEAST_DETAIL = 2.0
"""Levels, as root mean square. Gradients had 0.5 to 1.3, photographs 3.8 and more."""


def ground_share(pixels: Pixels) -> float:
    """Share of pixels that are within `TOLERANCE` of the picture's median colour."""
    flat = pixels.reshape(-1, 3).astype(np.int16)
    away = np.abs(flat - np.median(flat, axis=0).astype(np.int16)).max(axis=1)
    return float((away <= TOLERANCE).mean())


def detail(pixels: Pixels) -> float:
    """How far the picture is from a smooth one: levels of 256, 0 and up.

    Root mean square, over pixels and channels, of the difference to the picture averaged to
    `COARSE` x `COARSE` fields and enlarged again (bicubic).
    """
    image = Image.fromarray(pixels)
    coarse = image.resize((COARSE, COARSE), Image.Resampling.BOX)
    smooth = np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC), np.float32)
    return float(np.sqrt(np.mean((pixels - smooth) ** 2)))


def objection(pixels: Pixels) -> tuple[Objection, str] | None:
    """Return the gravest objection to a picture, with its detail; `pixels` is uint8 [h, w, 3].

    BLANK: no pixel leaves the ground's colour. NEAR_UNIFORM: `UNIFORM_SHARE` of them do not.
    LOW_INFORMATION: `detail` is below `LEAST_DETAIL`, as of a gradient or a picture out of focus.
    """
    share = ground_share(pixels)
    if share == 1:
        return Objection.BLANK, "it has one colour"
    if share >= UNIFORM_SHARE:
        return Objection.NEAR_UNIFORM, f"{share:.1%} of it has one colour"
    if (found := detail(pixels)) < LEAST_DETAIL:
        return Objection.LOW_INFORMATION, f"{found:.1f} of 256 levels of detail"
    return None
