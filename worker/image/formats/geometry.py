"""How an AVIF or HEIC picture is cropped and turned: `clap`, `irot` and `imir`."""

import struct
from collections.abc import Sequence
from fractions import Fraction

from PIL import Image

from worker.image.formats.container import Box
from worker.image.formats.items import Property
from worker.image.formats.orientation import INVERSE, upright

_CROP, _TURN, _MIRROR = b"clap", b"irot", b"imir"
_ORDER = (_CROP, _TURN, _MIRROR)
_HALF = Fraction(1, 2)

type _Matrix = tuple[int, int, int, int]
"""Takes stored pixels to shown ones, about the middle; x to the right and y down."""

_UPRIGHT: _Matrix = (1, 0, 0, 1)
_QUARTER_TURN: _Matrix = (0, 1, -1, 0)
_MIRRORS: tuple[_Matrix, _Matrix] = ((1, 0, 0, -1), (-1, 0, 0, 1))
"""Top and bottom change places, or left and right."""
_EXIF: dict[_Matrix, int] = {
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, -1, 1, 0): 6, (0, -1, -1, 0): 7, (0, 1, -1, 0): 8,
}  # fmt: skip


def geometry(
    properties: Sequence[Property], size: tuple[int, int], *, in_order: bool
) -> tuple[Box | None, int]:
    """The crop box in stored pixels, None where there is none, and the orientation as in EXIF.

    HEIF applies the properties in the order in which they are listed (`in_order`). AVIF viewers
    apply the first one of each kind, in a fixed order. A crop box that makes no sense is ignored.
    """
    listed = [one for one in properties if one.name in _ORDER]
    if not in_order:
        first = dict[bytes, Property]()
        for one in listed:
            first.setdefault(one.name, one)
        listed = sorted(first.values(), key=lambda one: _ORDER.index(one.name))
    matrix = _UPRIGHT
    middle = Fraction(size[0], 2), Fraction(size[1], 2)
    extent: tuple[Fraction, Fraction] | None = None
    for one in listed:
        if one.name == _TURN and one.body:
            for _ in range(one.body[0] & 3):
                matrix = _times(_QUARTER_TURN, matrix)
        elif one.name == _MIRROR and one.body:
            matrix = _times(_MIRRORS[one.body[0] & 1], matrix)
        elif one.name == _CROP and (found := _aperture(one.body)) is not None:
            width, height, right, down = found
            a, b, c, d = matrix  # its inverse is its transpose
            middle = middle[0] + a * right + c * down, middle[1] + b * right + d * down
            extent = (width, height) if a else (height, width)
    crop = None if extent is None else _box(middle, extent, size)
    return crop, _EXIF[matrix]


def _times(one: _Matrix, other: _Matrix) -> _Matrix:
    a, b, c, d = one
    e, f, g, h = other
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h


def _aperture(body: bytes) -> tuple[Fraction, Fraction, Fraction, Fraction] | None:
    """Width and height, and the offset of its middle to the right and down."""
    try:
        numbers = struct.unpack_from(">IIIIiIiI", body)
    except struct.error:
        return None
    if 0 in numbers[1::2]:
        return None
    width, height, right, down = (Fraction(*numbers[n : n + 2]) for n in (0, 2, 4, 6))
    return width, height, right, down


def _box(
    middle: tuple[Fraction, Fraction], extent: tuple[Fraction, Fraction], size: tuple[int, int]
) -> Box | None:
    """Whole pixels, inside of the picture; None where nothing is left, or nothing cut off."""
    left, top = (_rounded(at - length / 2) for at, length in zip(middle, extent, strict=True))
    width, height = (_rounded(length) for length in extent)
    box = (
        max(0, left),
        max(0, top),
        min(size[0], left + width),
        min(size[1], top + height),
    )
    if box[0] >= box[2] or box[1] >= box[3] or box == (0, 0, *size):
        return None
    return box


def _rounded(number: Fraction) -> int:
    return (number + _HALF).__floor__()


def fitted(image: Image.Image, crop: Box | None, orientation: int, canvas: int) -> Image.Image:
    """A picture cropped and turned its own way, and turned back as the canvas will be turned."""
    if crop is not None:
        image = image.crop(crop)
    return upright(upright(image, orientation), INVERSE[canvas])
