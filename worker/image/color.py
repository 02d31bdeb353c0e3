"""Colours as the file means them to sRGB, as Chromium shows them.

`icc.py` parses a profile and says what it does. lcms, which is quick, never sees the file's
profile: it gets one that is built from what was parsed, of a matrix and curves of 256 points, or of
an even table. Where a table is too coarse for the picture at hand, the picture is computed exactly.
"""

import functools
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
from numpy.random import default_rng  # not by np.random: a confined process imports nothing
from PIL import Image, ImageChops, ImageCms

from worker.image.icc import Refused, parse
from worker.image.profiles import (
    SRGB_COLUMNS,
    matrix_profile,
    sampled_curve,
    srgb_level,
    table_profile,
)
from worker.image.stages import CMY, CMYK, GREY, Curves, Matrix, Profile

type Floats = npt.NDArray[np.float64]

_RGB, _CHANNELS = b"RGB ", {"L": 1, "RGB": 3, "CMYK": 4}
_COLUMN_TOLERANCE, _CURVE_TOLERANCE = 0.005, 0.01
"""Of XYZ, and of levels from 0 to 1: so near to sRGB's a profile is sRGB's."""
_SRGB_GAMMA = 2.2
"""Many profiles of sRGB have this power instead of the curve."""
_FINE = 0.1
"""Light, by which a curve may leave the straight line between two neighbouring 8-bit levels."""
_LEAST_BRIGHT, _MOST_BRIGHT = 0.25, 2.0
"""Light of a curve's brightest level, and numbers of a matrix, with which lcms is exact."""
_KEPT = 4
"""Profiles; a camera's or an editor's profile comes again and again."""
_LEVELS = np.arange(256) / 255
_GRID = {1: 256, 3: 33, 4: 17}
"""Points a side of a table, by channels."""
_TOGETHER = 65536
"""Pixels that are computed exactly at a time, for the sake of memory."""
_MOST_EXACT = 2_000_000
"""Pixels of a picture that are computed exactly."""
_SAMPLE = 4096
"""Pixels of a picture by which a table is judged."""
_MEAN_ERROR, _LARGE_ERROR, _LARGE_ERRORS = 2.0, 12.0, 0.02
"""Levels that a table may be off on average, and a large error and the share of such pixels."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def in_order(icc: bytes, channels: int, *, any_space: bool = False) -> tuple[bytes, ...]:
    """Return the `Header.profiles` of a file that holds this profile, Chromium's choice first.

    `channels` is 1 for grey, 3, or 4 for CMYK. In a PNG a profile of `any_space` colours a picture.
    A profile that Chromium ignores comes second: another viewer may apply it.
    """
    found = _parsed(icc) if icc else None
    if found is None:
        return (b"",)
    profile, is_strict = found
    if not _suits(profile, channels, any_space=any_space):
        return (b"",)
    return (icc,) if is_strict else (b"", icc)


def without_black(icc: bytes) -> bytes:
    """A CMYK profile as Chromium applies it to a JPEG.

    Chromium puts the black ink into the others, without a profile, before it applies the profile.
    """
    return icc[:16] + CMY + icc[20:] if icc[16:20] == CMYK else icc


def is_foreign(icc: bytes) -> bool:
    """Whether a profile means other colours than sRGB."""
    found = _parsed(icc) if icc else None
    return found is not None and not _is_srgb(icc)


def is_finer_than_8_bits(icc: bytes) -> bool:
    """Whether a picture of more than 8 bits looks other than its high 8 bits do.

    Chromium applies a profile to 16-bit levels. A curve that jumps up and down between two
    neighbouring levels of 8 bits shows a picture out of the low bits.
    """
    found = _parsed(icc) if icc else None
    if found is None or not isinstance(found[0].stages[0], Curves):
        return False
    levels = np.arange(65536) / 65535
    for curve in found[0].stages[0].each:
        straight = np.interp(levels, _LEVELS, curve(_LEVELS))
        if np.abs(curve(levels) - straight).max() > _FINE:
            return True
    return False


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """The image of a `Frame` in sRGB: grey and CMYK become RGB, transparency stays.

    A picture whose kind of colours the profile does not fit is returned as it is.
    """
    mode = {"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode)
    found = _parsed(icc)
    if found is None or not _suits(found[0], _CHANNELS[mode], any_space=True):
        return image
    if found[0].space == CMY and mode == "CMYK":
        return _converted(ImageChops.invert(image.convert("RGB")), icc, found[0])
    shown = _converted(image if image.mode == mode else image.convert(mode), icc, found[0])
    if image.mode in ("RGBA", "LA"):
        shown.putalpha(image.getchannel("A"))
    return shown


@functools.lru_cache(_KEPT)
def _parsed(icc: bytes) -> tuple[Profile, bool] | None:
    """A profile, and whether Chromium applies it; None for one that nobody does."""
    for strict in (True, False):
        try:
            return parse(icc, strict=strict), strict
        except Refused:
            continue
    return None


def _suits(profile: Profile, channels: int, *, any_space: bool) -> bool:
    """Whether Chromium applies a profile to a picture of so many channels."""
    if channels == _CHANNELS["CMYK"]:
        return profile.space in (CMYK, CMY)
    if profile.space == CMYK:
        return False
    if profile.space == GREY:
        return channels == _CHANNELS["L"]
    return any_space or profile.space == _RGB


def _is_srgb(icc: bytes) -> bool:
    """By its primaries and all levels of its curves; its name proves nothing."""
    found = _parsed(icc)
    if found is None:
        return False
    profile = found[0]
    if profile.space == GREY and len(profile.stages) == 2:  # noqa: PLR2004 - a curve and white
        return _is_srgb_curve(profile.srgb(_LEVELS[:, None]))
    curves, matrix = profile.stages[0], profile.stages[-1]
    if not (profile.is_matrix and isinstance(curves, Curves) and isinstance(matrix, Matrix)):
        return False
    if np.abs(matrix.rows.T - SRGB_COLUMNS).max() > _COLUMN_TOLERANCE:
        return False
    light = np.stack([curve(_LEVELS) for curve in curves.each], axis=1)
    return _is_srgb_curve(srgb_level(np.clip(light, 0, 1)))


def _is_srgb_curve(shown: Floats) -> bool:
    """Whether all 256 levels are shown as sRGB's, [256, channels] from 0 to 1."""
    power = srgb_level(_LEVELS**_SRGB_GAMMA)
    return any(
        bool(np.abs(shown - levels[:, None]).max() < _CURVE_TOLERANCE)
        for levels in (_LEVELS, power)
    )


def _converted(image: Image.Image, icc: bytes, profile: Profile) -> Image.Image:
    """A picture in mode L, RGB or CMYK, in RGB."""
    if image.mode == "L":
        return _by_levels(image, profile)
    try:
        shown = ImageCms.applyTransform(image, _transform(icc, image.mode))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return _exactly(image, profile)
    assert shown is not None  # noqa: S101 - only a transform in place returns nothing
    if _as_matrix(profile) or _is_near(image, shown, profile):
        return shown
    del shown  # its memory is needed
    return _exactly(image, profile)


def _by_levels(image: Image.Image, profile: Profile) -> Image.Image:
    """A grey picture: each of the 256 levels is computed once."""
    shown = _bytes(profile.srgb(_LEVELS[:, None]))
    bands = [image.point(shown[:, channel].tolist()) for channel in range(3)]
    return Image.merge("RGB", bands)


def _is_near(image: Image.Image, shown: Image.Image, profile: Profile) -> bool:
    """Whether a table gives what the profile means, by pixels that nobody can foretell."""
    seed = 0
    for strip in _strips(image):
        seed = zlib.crc32(image.crop(strip).tobytes(), seed)
    places = default_rng(seed).integers(0, image.size, (_SAMPLE, 2)).tolist()
    stored, found = (
        np.array([one.getpixel((x, y)) for x, y in places], float) for one in (image, shown)
    )
    errors = np.abs(found - 255 * profile.srgb(stored / 255)).max(axis=1)
    return bool(errors.mean() < _MEAN_ERROR and (errors > _LARGE_ERROR).mean() < _LARGE_ERRORS)


def _exactly(image: Image.Image, profile: Profile) -> Image.Image:
    """All pixels, as the profile says; of a large picture pixels that are spread evenly.

    That takes about a second a megapixel, and no honest profile needs it.
    """
    if (share := _MOST_EXACT / (image.width * image.height)) < 1:
        size = [max(1, int(side * share**0.5)) for side in image.size]
        few = image.resize((size[0], size[1]), Image.Resampling.NEAREST)
        return _exactly(few, profile).resize(image.size, Image.Resampling.NEAREST)
    shown = Image.new("RGB", image.size)
    for strip in _strips(image):
        stored = np.asarray(image.crop(strip))
        levels = profile.srgb(stored.reshape(-1, stored.shape[2]) / 255)
        shown.paste(Image.fromarray(_bytes(levels).reshape(*stored.shape[:2], 3)), strip)
    return shown


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes over the whole picture, from the top."""
    rows = max(1, _TOGETHER // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _bytes(levels: Floats) -> npt.NDArray[np.uint8]:
    return np.round(255 * levels).astype(np.uint8)


@functools.lru_cache(_KEPT)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Of a profile that does the same as this one. Raises PyCMSError, OSError or ValueError."""
    found = _parsed(icc)
    assert found is not None  # noqa: S101 - only called for those that were parsed
    rebuilt = ImageCms.ImageCmsProfile(BytesIO(_rebuilt(found[0], _CHANNELS[mode])))
    # Any other intent moves the black point.
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.buildTransform(rebuilt, _SRGB, mode, "RGB", intent)


def _rebuilt(profile: Profile, channels: int) -> bytes:
    """A profile of the simplest form; see the top of this file."""
    if channels == 3 and (matrix := _as_matrix(profile)):  # noqa: PLR2004 - RGB
        return matrix
    side = np.linspace(0, 1, _GRID[channels])
    stored = np.stack(np.meshgrid(*[side] * channels, indexing="ij"), axis=-1)
    shown = profile.srgb(stored.reshape(-1, channels)).reshape(*stored.shape[:-1], 3)
    table = np.round(shown * 65535).astype(np.uint16)
    return table_profile(_RGB if channels == 3 else CMYK, table)  # noqa: PLR2004 - RGB


def _as_matrix(profile: Profile) -> bytes:
    """A profile of a matrix and curves of 256 points, empty where lcms would not be exact with it.

    lcms computes with 14 bits behind the point: too few for dark curves and a bright matrix.
    """
    curves, matrix = profile.stages[0], profile.stages[-1]
    if not (profile.is_matrix and isinstance(curves, Curves) and isinstance(matrix, Matrix)):
        return b""
    light = [curve(_LEVELS) for curve in curves.each]
    brightest = np.array([one.max() for one in light])
    scale = np.maximum(1, brightest)
    columns = matrix.rows.T * scale[:, None]
    is_dark = brightest.min() < _LEAST_BRIGHT or min(one.min() for one in light) < 0
    if is_dark or np.abs(columns).max() > _MOST_BRIGHT:
        return b""
    scaled = (one / most for one, most in zip(light, scale, strict=True))
    return matrix_profile(columns, *map(sampled_curve, scaled))
