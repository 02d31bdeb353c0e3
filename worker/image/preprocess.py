"""Canonical RGB to a model's input size."""

import numpy as np
from PIL import Image

from worker.records import Pixels, Preprocessing

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resize(pixels: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Resize straight to a square, antialiased: uint8 [size, size, 3], contiguous and writable.

    Equal to torchvision's `Resize` on PIL images. The aspect ratio is not kept, as in training.
    """
    square = (preprocessing.size, preprocessing.size)
    return np.array(Image.fromarray(pixels).resize(square, _FILTERS[preprocessing.interpolation]))
