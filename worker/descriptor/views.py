"""Pictures derived from a picture, described as well."""

import numpy as np

from worker.records import Pixels


def invert(pixels: Pixels) -> Pixels:
    """The colour-inverted view of one picture or of a batch; uint8 of any shape."""
    return np.bitwise_not(pixels)  # 255 - value
