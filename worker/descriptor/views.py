"""Pictures derived from a reference, described as well.

They are made of pictures at the model's square size, which is the same as making them of the
picture itself and resizing then.
"""

from collections.abc import Callable, Mapping

import numpy as np

from worker.records import Pixels

REFERENCE_VIEWS: Mapping[str, Callable[[Pixels], Pixels]] = {
    "plain": lambda pixels: pixels,
    "inverted": np.bitwise_not,  # 255 - value
    "mirrored": lambda pixels: pixels[:, ::-1],
    "rotated_90": lambda pixels: np.rot90(pixels, 1),
    "rotated_180": lambda pixels: np.rot90(pixels, 2),
    "rotated_270": lambda pixels: np.rot90(pixels, 3),
}
"""What makes each view of one square picture; uint8 [size, size, 3]."""
