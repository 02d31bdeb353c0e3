"""Colour profiles (ICC) made from what a file says in another way: gamma, or code points.

Code points are those of ITU-T H.273, which PNG's `cICP`, AVIF's and HEIC's `nclx` and an ICC
profile's `cicp` tag share. What Chromium 156 makes of each was measured.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from worker.image import hdr

type Floats = npt.NDArray[np.float64]

HEADER_BYTES, TAG_BYTES = 128, 12
COLUMNS = (b"rXYZ", b"gXYZ", b"bXYZ")
CURVES = (b"rTRC", b"gTRC", b"bTRC")
SRGB_COLUMNS = np.array(
    [[0.4360747, 0.2225045, 0.0139322], [0.3850649, 0.7168786, 0.0971045],
     [0.1430804, 0.0606169, 0.7141733]]
)  # fmt: skip
"""Red, green and blue in XYZ, as a profile has them (under D50)."""
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""Parameters of the curve: power, factor, summand, slope of the straight piece, and its end."""
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_FIXED = 65536
_XYZ_AS_TABLE = 32768 / 65535
"""XYZ in a table or behind a matrix: 1 is written as 32768 of 65535."""
_SRGB_GAMMA, _GAMMA_TOLERANCE = 2.2, 0.05
"""A gamma so near to sRGB's is taken for it by Chromium, in 1/gamma times gamma."""

_D65, _C, _DCI, _E = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351), (1 / 3, 1 / 3)
_BT709 = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_BT601 = (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)
_BT2020 = (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
PRIMARIES: Mapping[int, Sequence[float]] = {
    1: _BT709,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: _BT601,
    7: _BT601,
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: _BT2020,
    10: (*_E, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""x and y of white, red, green and blue."""
_BT1886 = (2.4, 1.0, 0.0, 0.0, 0.0)
CURVES_OF_TRANSFER: Mapping[int, Sequence[float]] = {
    **dict.fromkeys((1, 6, 11, 14, 15), _BT1886),
    4: (2.2, 1.0, 0.0, 0.0, 0.0),
    5: (2.8, 1.0, 0.0, 0.0, 0.0),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0912),
    8: (1.0, 1.0, 0.0, 0.0, 0.0),
    13: SRGB_CURVE,
    17: (2.6, (52.37 / 48) ** (1 / 2.6), 0.0, 0.0, 0.0),
}
"""Parameters as in `SRGB_CURVE`. Chromium shows a television's signal with its screen's curve."""
SRGB_TRANSFER, PQ, HLG = 13, 16, 18
_TELEVISION, _UNSPECIFIED, _EXTENDED = (1, 6, 14, 15), 2, 11
_GRID = 33
"""Points a side of the table of an HDR profile."""


def profile_of_gamma(gamma: float, chromaticities: Sequence[float] | None) -> bytes:
    """An RGB profile of a PNG's `gAMA`, and of `cHRM` if there is one; empty for sRGB.

    Its samples are light to the power of `gamma`. `chromaticities` are x and y of white, red,
    green and blue. Chromium ignores both chunks where the gamma is 0 or the chromaticities make no
    colours, and `cHRM` without `gAMA`.
    """
    if gamma <= 0:
        return b""
    columns = SRGB_COLUMNS
    if chromaticities is not None:
        found = columns_of(chromaticities)
        if found is None:
            return b""
        columns = found
    elif abs(gamma * _SRGB_GAMMA - 1) < _GAMMA_TOLERANCE:
        return b""
    return matrix_profile(columns, curve(1 / gamma, 1, 0, 0, 0))


def profile_of_cicp(primaries: int, transfer: int, *, full_range: bool = True) -> bytes:
    """An RGB profile of a PNG's `cICP`; empty for sRGB, and where Chromium ignores the chunk.

    Chromium ignores a chunk whose primaries or transfer it does not know, and one of a narrow
    range.
    """
    known = transfer in CURVES_OF_TRANSFER or transfer in (PQ, HLG)
    if primaries not in PRIMARIES or not known or not full_range:
        return b""
    if transfer in (PQ, HLG):
        return _hdr_profile(primaries, transfer)
    if (primaries, transfer) == (1, SRGB_TRANSFER):
        return b""
    columns = columns_of(PRIMARIES[primaries])
    assert columns is not None  # noqa: S101 - the tests go through all of them
    return matrix_profile(columns, curve(*CURVES_OF_TRANSFER[transfer]))


def profile_of_nclx(primaries: int, transfer: int) -> bytes:
    """An RGB profile of the code points of an AVIF; empty for sRGB.

    Unlike in a PNG, Chromium shows the signal of a television (1, 6, 14, 15) and one of unspecified
    transfer (2) with sRGB's curve. It refuses a picture whose transfer is 9, 10, 11 or 12.
    """
    if transfer in _TELEVISION or transfer == _UNSPECIFIED:
        transfer = SRGB_TRANSFER
    return profile_of_cicp(primaries, transfer)


def is_known_nclx(primaries: int, transfer: int) -> bool:
    """Whether Chromium knows these code points in an AVIF, or in a profile's `cicp` tag."""
    known = (*(one for one in CURVES_OF_TRANSFER if one != _EXTENDED), _UNSPECIFIED, PQ, HLG)
    return primaries in PRIMARIES and transfer in known


def columns_of(chromaticities: Sequence[float]) -> Floats | None:
    """Rows red, green and blue in XYZ under D50; None where these are no primaries.

    `chromaticities` are x and y of white, red, green and blue. A white of y 0 has no light at all:
    everything is black.
    """
    if not all(0 <= number <= 1 for number in chromaticities):
        return None
    white, *primaries = np.reshape(np.array(chromaticities, float), (4, 2))
    xyz = np.array([(x, y, 1 - x - y) for x, y in primaries])
    if abs(np.linalg.det(xyz)) < np.finfo(np.float32).tiny:
        return None
    if white[1] == 0:
        return np.zeros((3, 3))
    light = np.array([white[0], white[1], 1 - white.sum()]) / white[1]
    weighted = xyz * np.linalg.solve(xyz.T, light)[:, None]
    cones = _BRADFORD @ light
    if not cones.all():
        return None
    adapted = np.linalg.solve(_BRADFORD, ((_BRADFORD @ _D50) / cones)[:, None] * _BRADFORD)
    columns: Floats = weighted @ adapted.T
    return columns


def matrix_profile(columns: Floats, *curves: bytes) -> bytes:
    """An RGB profile of `columns`, rows red, green and blue in XYZ, and one curve or three."""
    red, green, blue = curves if len(curves) == len(CURVES) else curves * len(CURVES)
    tags = {name: _xyz(row) for name, row in zip(COLUMNS, columns, strict=True)}
    return profile(b"RGB ", tags | dict(zip(CURVES, (red, green, blue), strict=True)))


def table_profile(space: bytes, table: npt.NDArray[np.uint16]) -> bytes:
    """A profile whose `table` gives sRGB levels, 0 to 65535, of evenly spaced device colours.

    `space` is the profile's colour space. `table` is [grid, ..., grid, 3], its first axis the first
    channel. The sRGB curve comes behind the table, so that steps between its points look even.
    """
    identity = _padded(curve(1, 1, 0, 0, 0))
    levels = _padded(curve(*SRGB_CURVE))
    matrix = _fixed(*(SRGB_COLUMNS.T * _XYZ_AS_TABLE).reshape(-1), 0, 0, 0)
    inputs = table.ndim - 1
    points = bytes(table.shape[:-1]).ljust(16, b"\0") + bytes([2, 0, 0, 0])
    points = _padded(points + table.astype(">u2").tobytes())
    head = 32
    at_matrix = head + 3 * len(identity)
    at_levels = at_matrix + len(matrix)
    at_table = at_levels + 3 * len(levels)
    offsets = (head, at_matrix, at_levels, at_table, at_table + len(points))
    tag = struct.pack(">4s4xBB2x5I", b"mAB ", inputs, 3, *offsets)
    tag += identity * 3 + matrix + levels * 3 + points + identity * inputs
    return profile(space, {b"A2B0": tag})


def curve(power: float, factor: float, summand: float, slope: float, end: float) -> bytes:
    """A parametric curve: (factor x + summand)^power, but slope x below `end`."""
    numbers = (power, factor, summand, slope, end)
    return struct.pack(">4s4xHH", b"para", 3, 0) + _fixed(*numbers)


def sampled_curve(levels: Floats) -> bytes:
    """A curve of evenly spaced levels from 0 to 1."""
    points = np.round(levels * 65535).astype(">u2").tobytes()
    return struct.pack(">4s4xI", b"curv", len(levels)) + points


def profile(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """A display's profile of this colour space with XYZ under D50, of these tags."""
    at = HEADER_BYTES + 4 + TAG_BYTES * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(tag))
        body += _padded(tag)
    fields = (at + len(body), 0x0430_0000, b"mntr", space, b"XYZ ", b"acsp")
    head = struct.pack(">I4xI4s4s4s12x4s28x", *fields) + _fixed(*_D50)
    return head.ljust(HEADER_BYTES, b"\0") + table + body


@lru_cache(2)
def _hdr_profile(primaries: int, transfer: int) -> bytes:
    """As a table, for what a channel shows depends on the others."""
    columns, wide = columns_of(PRIMARIES[primaries]), columns_of(_BT2020)
    assert columns is not None and wide is not None  # noqa: S101, PT018 - as above
    signal = np.stack(np.meshgrid(*[np.linspace(0, 1, _GRID)] * 3, indexing="ij"), -1)
    signal = signal.reshape(-1, 3)
    light = hdr.light_of_pq(signal) if transfer == PQ else hdr.light_of_hlg(signal, columns[:, 1])
    shown = hdr.on_screen(light @ columns @ np.linalg.inv(wide))
    srgb = np.clip(shown @ wide @ np.linalg.inv(SRGB_COLUMNS), 0, 1)
    table = np.round(srgb_level(srgb) * 65535).astype(np.uint16)
    return table_profile(b"RGB ", table.reshape(_GRID, _GRID, _GRID, 3))


def srgb_level(light: Floats) -> Floats:
    """The sRGB signal, 0 to 1, of light from 0 to 1."""
    power, _, _, slope, end = SRGB_CURVE
    bright = 1.055 * np.maximum(light, 0) ** (1 / power) - 0.055
    level: Floats = np.where(light <= end * slope, light / slope, bright)
    return level


def light_of_srgb(levels: Floats) -> Floats:
    """Light from 0 to 1 of the sRGB signal, 0 to 1."""
    power, factor, summand, slope, end = SRGB_CURVE
    bright = (factor * np.maximum(levels, 0) + summand) ** power
    light: Floats = np.where(levels <= end, levels * slope, bright)
    return light


def _xyz(row: Floats) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*row)


def _fixed(*numbers: float) -> bytes:
    """Numbers as s15Fixed16."""
    fixed = (min(max(round(one * _FIXED), -(2**31)), 2**31 - 1) for one in numbers)
    return struct.pack(f">{len(numbers)}i", *fixed)


def _padded(tag: bytes) -> bytes:
    return tag.ljust(-(-len(tag) // 4) * 4, b"\0")
