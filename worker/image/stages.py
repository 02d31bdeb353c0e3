"""What a colour profile does: stages of curves, tables and matrices, as Chromium computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from worker.image.profiles import SRGB_COLUMNS, light_of_srgb, srgb_level

type Floats = npt.NDArray[np.float64]
type Curve = Callable[[Floats], Floats]
"""From levels to levels, 0 to 1, whatever the shape."""

GREY, CMYK, CMY = b"GRAY", b"CMYK", b"cmyk"
"""Colour spaces of profiles; the last one is our own, see `color.without_black`."""
_D50 = np.array([0.9642, 1.0, 0.8249])
_TO_SRGB = np.linalg.inv(SRGB_COLUMNS)
_STEP = 16384
"""Pixels that are computed together, for the sake of memory."""


@dataclass(frozen=True, slots=True)
class Table:
    """An evenly spaced table of colours, [points, ..., points, 3], the first channel first."""

    points: Floats

    def __call__(self, levels: Floats) -> Floats:
        """Interpolate between the 2^n points around each of the levels [pixels, n]."""
        shape = self.points.shape[:-1]
        flat = self.points.reshape(-1, 3)
        at = np.clip(levels, 0, 1) * (np.array(shape) - 1)
        low = np.minimum(at.astype(np.int64), np.array(shape) - 2)
        share = at - low
        strides = np.cumprod((1, *shape[:0:-1]))[::-1]
        found = np.zeros((len(levels), 3))
        for corner in product((0, 1), repeat=len(shape)):
            weight = np.prod(np.where(corner, share, 1 - share), axis=1)
            found += weight[:, None] * flat[(low + corner) @ strides]
        return found


@dataclass(frozen=True, slots=True)
class Matrix:
    """Three channels to three: rows by columns, and what is added."""

    rows: Floats
    added: Floats

    def __call__(self, levels: Floats) -> Floats:
        """[pixels, 3] to [pixels, 3]."""
        shown: Floats = levels @ self.rows.T + self.added
        return shown


@dataclass(frozen=True, slots=True)
class Curves:
    """One curve a channel."""

    each: Sequence[Curve]

    def __call__(self, levels: Floats) -> Floats:
        """[pixels, n] to [pixels, n]."""
        return np.stack([one(levels[:, n]) for n, one in enumerate(self.each)], axis=1)


@dataclass(frozen=True, slots=True)
class Gamut:
    """XYZ to XYZ, cut to the colours of `rows`' primaries and rounded to 8 bits.

    Chromium stores what a table gives in the profile's own primaries, where it names some.
    """

    rows: Floats

    def __call__(self, xyz: Floats) -> Floats:
        """[pixels, 3] to [pixels, 3]."""
        cut: Floats = stored(xyz @ np.linalg.inv(self.rows).T) @ self.rows.T
        return cut


type Stage = Curves | Table | Matrix | Gamut | Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile does to device colours, stage by stage, up to XYZ under D50.

    `space` is the colour space that it names, `inputs` the channels that the first stage takes.
    """

    space: bytes
    inputs: int
    stages: Sequence[Stage]

    @property
    def is_matrix(self) -> bool:
        """Whether it is three curves and a matrix."""
        return self.inputs == 3 and [type(stage) for stage in self.stages] == [Curves, Matrix]  # noqa: PLR2004 - RGB

    def srgb(self, levels: Floats) -> Floats:
        """Device colours [pixels, channels] to sRGB's [pixels, 3], all from 0 to 1."""
        shown = np.empty((len(levels), 3))
        for start in range(0, len(levels), _STEP):
            shown[start : start + _STEP] = self._srgb(levels[start : start + _STEP])
        return shown

    def _srgb(self, levels: Floats) -> Floats:
        levels = _fitted(levels, self.inputs, fourth=0 if self.space == CMY else 1)
        for stage in self.stages:
            levels = stage(levels)
        return srgb_level(np.clip(levels @ _TO_SRGB, 0, 1))


def _fitted(levels: Floats, inputs: int, *, fourth: int) -> Floats:
    """As many channels as a profile takes, as Chromium makes them of others.

    Grey is red, green and blue at once; a fourth channel is alpha, taken for opaque here, or black
    ink, of which there is none; of too many channels the first ones count.
    """
    if levels.shape[1] == 1 and inputs > 1:
        levels = np.repeat(levels, 3, axis=1)
    if levels.shape[1] < inputs:
        levels = np.concatenate([levels, np.full((len(levels), 1), fourth)], axis=1)
    return levels[:, :inputs]


def stored(light: Floats) -> Floats:
    """Light from 0 to 1 that went through sRGB levels of 8 bits."""
    levels = np.round(255 * srgb_level(np.clip(light, 0, 1))) / 255
    return light_of_srgb(levels)


def xyz_of_lab(levels: Floats) -> Floats:
    """XYZ under D50 of Lab as a table has it, from 0 to 1; both are [pixels, 3]."""
    lightness = levels[:, 0] * 100
    a, b = levels[:, 1] * 255 - 128, levels[:, 2] * 255 - 128
    y = (lightness + 16) / 116
    each = np.stack([y + a / 500, y, y - b / 200], axis=1)
    cubes = each**3
    light = np.where(cubes > 216 / 24389, cubes, (each - 16 / 116) / 7.787)
    xyz: Floats = light * _D50
    return xyz
