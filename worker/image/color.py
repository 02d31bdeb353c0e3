"""Colours as the file means them to sRGB, as browsers do.

A colour profile is a program of curves and tables, from a stranger, and lcms runs it. So only what
differs from sRGB gets that far (`is_foreign`), and that is decoded in a process of its own. What
lcms does not take is no profile, and neither is one of another kind of colours than the picture's.
"""

import functools
import struct
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from worker.image.profiles import profile_of_cicp, profile_of_gamma, profile_of_nclx

__all__ = ["is_foreign", "profile_of_cicp", "profile_of_gamma", "profile_of_nclx", "to_srgb"]

_HEADER_BYTES, _TAG_BYTES, _MOST_TAGS = 128, 12, 100
_MOST_CURVE_BYTES = 12 + 2 * 4096
"""Kept of a tag: a curve's table of as many numbers as any sRGB profile has."""
_KINDS = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_COLUMNS = (b"rXYZ", b"gXYZ", b"bXYZ")
_CURVES = (b"rTRC", b"gTRC", b"bTRC")
_TABLES = (b"A2B0", b"A2B1", b"A2B2", b"D2B0")
_LOOKED_AT = {*_COLUMNS, *_CURVES, *_TABLES}
_SRGB_COLUMNS = np.array(
    [[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]]
)
"""Red, green and blue in XYZ, as a profile has them (D50)."""
_COLUMN_TOLERANCE, _CURVE_TOLERANCE = 0.005, 0.008
_SAMPLES = np.linspace(0, 1, 33)
_PARAMETRIC = 3
"""The form of curve that sRGB's is: gamma, and a straight piece at the dark end."""
_KEPT = 4
"""Transforms; a camera's or an editor's profile comes again and again."""

type _Curve = npt.NDArray[np.float64]

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def is_foreign(icc: bytes) -> bool:
    """Whether a profile means other colours than sRGB."""
    return bool(icc) and not _is_srgb(icc)


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """The same picture in sRGB: grey and CMYK become RGB, transparency stays."""
    kind = _KINDS.get(icc[16:20])
    alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if image.mode == "P" or (kind == "RGB" and image.mode in ("1", "L", "LA", "PA")):
        image = image.convert("RGBA" if alpha else "RGB")
    mode = {"RGBA": "RGB", "LA": "L", "1": "L"}.get(image.mode, image.mode)
    if kind != mode:
        return image
    try:
        transform = _transform(icc, mode)
    except (ImageCms.PyCMSError, OSError, ValueError):  # not kept, or it would push good ones out
        return image
    shown = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    assert shown is not None  # noqa: S101 - only a transform in place returns nothing
    if image.mode in ("RGBA", "LA"):
        shown.putalpha(image.getchannel("A"))
    return shown


@functools.lru_cache(_KEPT)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """From the profile, in the way it prefers.

    Raises PyCMSError, OSError or ValueError for what lcms does not take.
    """
    return ImageCms.buildTransform(ImageCms.ImageCmsProfile(BytesIO(icc)), _SRGB, mode, "RGB")


def _is_srgb(icc: bytes) -> bool:
    """By what it says of its primaries and curves; its name proves nothing."""
    try:
        tags = _tags(icc)
        if icc[16:24] != b"RGB XYZ " or any(name in tags for name in _TABLES):
            return False
        columns = np.array([_xyz(tags[name]) for name in _COLUMNS])
        curves = [_curve(tags[name]) for name in _CURVES]
    except (struct.error, KeyError, IndexError, ValueError):
        return False
    if np.abs(columns - _SRGB_COLUMNS).max() > _COLUMN_TOLERANCE:
        return False
    srgb = np.where(_SAMPLES <= 0.04045, _SAMPLES / 12.92, ((_SAMPLES + 0.055) / 1.055) ** 2.4)  # noqa: PLR2004 - of the standard
    return all(np.abs(curve - srgb).max() < _CURVE_TOLERANCE for curve in curves)


def _tags(icc: bytes) -> dict[bytes, bytes]:
    """Beginnings of the tags that are looked at. They may all lie over each other."""
    (count,) = struct.unpack_from(">I", icc, _HEADER_BYTES)
    found = dict[bytes, bytes]()
    for number in range(min(count, _MOST_TAGS)):
        at = _HEADER_BYTES + 4 + _TAG_BYTES * number
        name, start, length = struct.unpack_from(">4sII", icc, at)
        if name in _LOOKED_AT and name not in found:  # of two the first one counts, as in lcms
            found[name] = icc[start : start + min(length, _MOST_CURVE_BYTES)]
    return found


def _xyz(tag: bytes) -> list[float]:
    return [number / 65536 for number in struct.unpack_from(">iii", tag, 8)]


def _curve(tag: bytes) -> _Curve:
    """Light at `_SAMPLES`. Raises ValueError for a kind of curve that no sRGB profile has."""
    kind, (count,) = tag[:4], struct.unpack_from(">I", tag, 8)
    if kind == b"curv" and count > 1:
        table = np.frombuffer(tag, ">u2", count, 12) / 65535
        return np.interp(_SAMPLES, np.linspace(0, 1, count), table)
    if kind == b"curv":
        return _SAMPLES ** (struct.unpack_from(">H", tag, 12)[0] / 256 if count else 1)
    (form,) = struct.unpack_from(">H", tag, 8)
    if kind != b"para" or form != _PARAMETRIC:
        raise ValueError("not a curve of sRGB")
    g, a, b, c, d = (number / 65536 for number in struct.unpack_from(">5i", tag, 12))
    with np.errstate(all="ignore"):
        light: _Curve = np.where(d <= _SAMPLES, np.abs(a * _SAMPLES + b) ** g, c * _SAMPLES)
        return light
