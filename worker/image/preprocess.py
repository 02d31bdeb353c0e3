"""Canonical RGB to a model's input size."""

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from worker.image.decode import Reserve, decode
from worker.records import ImageInfo, Pixels, Preprocessing

if TYPE_CHECKING:
    from worker.settings import Limits

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


def prepare(
    data: bytes, limits: "Limits", preprocessing: Preprocessing, reserve: Reserve = nullcontext
) -> tuple[ImageInfo, Pixels]:
    """Encoded bytes to a model's input. `reserve` and what is raised as in `decode`."""
    with ExitStack() as reserved:  # the full picture is there until it is resized
        image = decode(
            data,
            limits,
            target=preprocessing.size,
            reserve=lambda nbytes: nullcontext(reserved.enter_context(reserve(nbytes))),
        )
        return image.info, resize(image.pixels, preprocessing)
