"""Canonical RGB to a model's input: which pictures of a file are described, and at what size."""

import math
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from worker.image.decode import Reserve, frames
from worker.records import Look, Pixels, Prepared, Preprocessing

if TYPE_CHECKING:
    from worker.settings import Limits, Views

type Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the sides."""

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WHOLE: Box = (0, 0, 1, 1)
CROP = 2 / 3
"""Share of each side that a crop keeps. Of 1/2, 0.6, 2/3 and 3/4 it served copies pasted into a
page and screenshots best together (mean cosine 0.59 -> 0.83 and 0.76 -> 0.83, nine photographs)."""
_CENTRE = {"centre_crop": ((1 - CROP) / 2, (1 - CROP) / 2, (1 + CROP) / 2, (1 + CROP) / 2)}
_CORNERS = {
    "top_left_crop": (0, 0, CROP, CROP),
    "top_right_crop": (1 - CROP, 0, 1, CROP),
    "bottom_left_crop": (0, 1 - CROP, CROP, 1),
    "bottom_right_crop": (1 - CROP, 1 - CROP, 1, 1),
}
_VIEWS: dict[str, dict[str, Box]] = {
    "plain": {"plain": _WHOLE},
    "centre_crop": _CENTRE,
    "five_crops": _CENTRE | _CORNERS,
}


def boxes(views: "Views") -> dict[str, Box]:
    """What of each frame is described, by the name that a verdict tells."""
    return {name: box for view in views.uploads for name, box in _VIEWS[view].items()}


def resize(pixels: Pixels, preprocessing: Preprocessing, box: Box = _WHOLE) -> Pixels:
    """Resize `box` straight to a square, antialiased: uint8 [size, size, 3], contiguous, writable.

    Equal to torchvision's `Resize` on PIL images. The aspect ratio is not kept, as in training.
    """
    return np.array(_resized(Image.fromarray(pixels), preprocessing, box))


def _resized(image: Image.Image, preprocessing: Preprocessing, box: Box) -> Image.Image:
    left, top, right, bottom = box
    part = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    square = (preprocessing.size, preprocessing.size)
    return image.resize(square, _FILTERS[preprocessing.interpolation], part)


def prepare(
    data: bytes,
    limits: "Limits",
    preprocessing: Preprocessing,
    views: "Views",
    reserve: Reserve = nullcontext,
) -> Prepared:
    """Encoded bytes to a model's input: the chosen frames, each in all views.

    `reserve` and what is raised as in `frames`; what is reserved has room for the looks too.
    """
    parts = boxes(views)
    # A crop is enlarged to the model's size, so there must be as much of it.
    target = math.ceil(
        preprocessing.size / min(right - left for left, _, right, _ in parts.values())
    )
    looks: list[Look] = []
    pixels = np.empty(shape_of_looks(preprocessing, views), np.uint8)
    with closing(
        frames(data, limits, target, lambda need: reserve(need + 2 * pixels.nbytes), views.frames)
    ) as shown:
        for frame in shown:
            image = Image.fromarray(frame.pixels)
            for view, box in parts.items():
                pixels[len(looks)] = np.asarray(_resized(image, preprocessing, box))
                looks.append(Look(frame.frame, view))
            info = frame.info
            del frame, image  # before the next one comes, as the reservation has it
    return Prepared(info, tuple(looks), pixels[: len(looks)].copy())


def shape_of_looks(preprocessing: Preprocessing, views: "Views") -> tuple[int, int, int, int]:
    """Of the most looks that a file has: [looks, size, size, 3]."""
    return (views.frames * len(boxes(views)), preprocessing.size, preprocessing.size, 3)
