"""Encoded bytes to a model's input: which pictures of a file are described, and at what size."""

import hashlib
import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from worker.events import Background
from worker.image.choice import POOL, Choice, share_of_time
from worker.image.decode import Encoded, Reserve, hold_to_memory, read_header
from worker.image.formats.orientation import upright_size
from worker.image.renditions import on, picture, shown, ways_to_show
from worker.records import (
    DecodedImage,
    ImageInfo,
    Look,
    Looks,
    Pixels,
    Prepared,
    Preprocessing,
    Rendition,
)

if TYPE_CHECKING:
    from worker.settings import Limits, Views

KEPT_BYTES = 8 * 1024 * 1024
"""What comparing renditions takes."""

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
    """What of each rendition is described, by the name that a verdict gives."""
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


def decode(
    data: bytes, limits: "Limits", target: int | None = None, reserve: Reserve = nullcontext
) -> DecodedImage:
    """Decode one picture: the first frame, as Chromium shows it on a white page.

    `target`: as in `Header`; `reserve`: see `Reserve`. `pixels` is read-only. Raises DecodeError.
    """
    encoded = read_header(data, limits)
    cost = encoded.cost(target)
    hold_to_memory(cost, limits)
    with reserve(cost):
        frame = next(encoded.decode(target))
        pixels = np.asarray(picture(frame, encoded.header))
        info = _info(data, encoded, truncated=encoded.header.truncated or frame.truncated)
    return DecodedImage(info, pixels)


def prepare(
    data: bytes,
    limits: "Limits",
    preprocessing: Preprocessing,
    views: "Views",
    reserve: Reserve = nullcontext,
) -> Prepared:
    """Encoded bytes to a model's input: the chosen renditions, each in all views.

    `reserve`: see `Reserve`. Raises DecodeError, and whatever `reserve` raises.
    """
    encoded = read_header(data, limits)
    parts = boxes(views)
    # A crop is enlarged to the model's size, so there must be as much of it.
    target = math.ceil(
        preprocessing.size / min(right - left for left, _, right, _ in parts.values())
    )
    kept = min(POOL * views.renditions + 1, encoded.frames * ways_to_show(encoded.header))
    pool = kept * len(parts) * preprocessing.size**2 * 3 + KEPT_BYTES
    cost = encoded.cost(target, pool)
    hold_to_memory(cost, limits)
    with reserve(cost):
        choice, seconds, truncated = Choice(views.renditions), list[float](), False
        for number, frame in enumerate(encoded.decode(target)):
            seconds.append(frame.seconds)
            truncated |= frame.truncated
            usual = True
            for one in shown(frame, encoded.header):
                for background in one.backgrounds:
                    rendition = Rendition(number, one.colors, background, one.crop)
                    seen = _looks(one.image, background, preprocessing, parts.values())
                    choice.add(rendition, seen, frame.seconds, usual=usual)
                    usual = False
            del frame, one  # before the next one comes, as the reservation has it
        chosen, left_out = choice.chosen()
    truncated |= encoded.header.truncated or len(seconds) < encoded.frames
    info = replace(
        _info(data, encoded, truncated=truncated),
        frames_decoded=len(seconds),
        renditions_left_out=left_out,
        playing_time_described=share_of_time(
            seconds, set().union(*(c.frames for c in chosen)), encoded.header.frames
        ),
    )
    looks = tuple(Look(one.rendition, view) for one in chosen for view in parts)
    return Prepared(info, looks, np.concatenate([one.looks for one in chosen]))


def _looks(
    image: Image.Image, background: Background, preprocessing: Preprocessing, boxes: Iterable[Box]
) -> Looks:
    """A picture on a background, in all boxes. A picture that is not opaque is in mode RGBA."""
    if background == "none":  # before the resize, which drops colours that cannot be seen
        image = on(image, background)
    squares = (_resized(image, preprocessing, box) for box in boxes)
    return np.stack([np.asarray(on(square, background)) for square in squares])


def _info(data: bytes, encoded: Encoded, *, truncated: bool) -> ImageInfo:
    header = encoded.header
    width, height = header.width, header.height
    if header.crop is not None:
        left, top, right, bottom = header.crop
        width, height = right - left, bottom - top
    width, height = upright_size((width, height), header.orientation)
    digest = hashlib.sha256(data).hexdigest()
    return ImageInfo(encoded.format, width, height, header.frames, len(data), digest, truncated)


def shape_of_looks(preprocessing: Preprocessing, views: "Views") -> tuple[int, int, int, int]:
    """Of the most looks that a file has: [looks, size, size, 3]."""
    return (views.renditions * len(boxes(views)), preprocessing.size, preprocessing.size, 3)
