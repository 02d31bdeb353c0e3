"""Test patterns, drawn from a seed: pictures that show nothing, and that many others resemble.

Noise, gradients and test cards are what a descriptor network takes for each other, and for poor
pictures of all kinds. One of them among the references matches uploads that it has nothing to do
with, so each new reference is compared with them.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from worker.errors import Objection
from worker.records import Looks

type Family = Literal[
    "solid",
    "gradient",
    "noise",
    "grains",
    "colour bars",
    "test card",
    "checkerboard",
    "stripes",
    "grid",
    "dots",
    "rings",
    "star",
]

type _Plane = npt.NDArray[np.floating]
"""Luminance, 0 to 1, [size, size], or colour, [size, size, 3]."""
type _Draw = Callable[[np.random.Generator, int], _Plane]

_BARS = np.array(
    [[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
)
"""Colours of a television's colour bars, left to right."""


EACH = 8
"""Patterns of each kind: 176 in all. With fewer the ones of other seeds are found less often."""


def draw(family: Family, size: int, seed: int = 0) -> Looks:
    """Draw `EACH` patterns of each kind of a family: uint8 [n, size, size, 3].

    Each has its own colours, orientation and coarseness; they are the same for the same seed.
    """
    kinds = FAMILIES[family]
    pictures = np.empty((EACH * len(kinds), size, size, 3), np.uint8)
    for number in range(len(pictures)):
        rng = np.random.default_rng((seed, number, *family.encode()))
        plane = kinds[number % len(kinds)](rng, size)
        if plane.ndim == 2:  # noqa: PLR2004 - luminance, without colours
            plane = _coloured(rng, plane)
        pictures[number] = np.round(255 * plane.clip(0, 1))
    return pictures


def _coloured(rng: np.random.Generator, plane: _Plane) -> _Plane:
    """Luminance between two colours: as often as not black and white."""
    ends = np.array([[0.0] * 3, [1.0] * 3]) if rng.random() < 0.5 else rng.random((2, 3))  # noqa: PLR2004
    while np.abs(ends[1] - ends[0]).max() < 0.4:  # noqa: PLR2004 - they can be told apart
        ends = rng.random((2, 3))
    coloured: _Plane = ends[0] + plane[..., None] * (ends[1] - ends[0])
    return coloured


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """How fine a pattern is, coarse and fine as often."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _grid(size: int) -> tuple[_Plane, _Plane]:
    """Coordinates of all pixels, -1 to 1, right and down."""
    line = np.linspace(-1, 1, size)
    return line[None, :] * np.ones((size, 1)), line[:, None] * np.ones((1, size))


def _along(size: int, angle: float) -> _Plane:
    """A coordinate in some direction, in radians."""
    x, y = _grid(size)
    plane: _Plane = x * np.cos(angle) + y * np.sin(angle)
    return plane


def _upright(rng: np.random.Generator) -> float:
    return float(rng.integers(4)) * np.pi / 2


def _oblique(rng: np.random.Generator) -> float:
    return float(rng.random()) * 2 * np.pi


# -- grounds --


def _solid(rng: np.random.Generator, size: int) -> _Plane:
    return np.ones((size, size, 1)) * rng.random(3)


def _linear(rng: np.random.Generator, size: int) -> _Plane:
    along = _along(size, _upright(rng) if rng.integers(2) else _oblique(rng))
    return (along - along.min()) / np.ptp(along)


def _radial(rng: np.random.Generator, size: int) -> _Plane:
    x, y = _grid(size)
    centre = rng.uniform(-0.5, 0.5, 2)
    far = np.hypot(x - centre[0], y - centre[1])
    far = far / far.max()
    plane: _Plane = far if rng.integers(2) else 1 - far
    return plane


def _four_corners(rng: np.random.Generator, size: int) -> _Plane:
    x, y = _grid(size)
    x, y = (x[..., None] + 1) / 2, (y[..., None] + 1) / 2
    corner = rng.random((4, 3))
    above = corner[0] * (1 - x) + corner[1] * x
    below = corner[2] * (1 - x) + corner[3] * x
    plane: _Plane = above * (1 - y) + below * y
    return plane


# -- noise --


def _uniform(rng: np.random.Generator, size: int) -> _Plane:
    return rng.random((size, size, 3))


def _static(rng: np.random.Generator, size: int) -> _Plane:
    return rng.integers(0, 2, (size, size, 1)) * np.ones(3)


def _gaussian(rng: np.random.Generator, size: int) -> _Plane:
    deviation = rng.uniform(0.05, 0.3)
    return rng.random(3) * 0.5 + 0.25 + rng.normal(0, deviation, (size, size, 3))


def _salt_and_pepper(rng: np.random.Generator, size: int) -> _Plane:
    share, cast = rng.uniform(0.02, 0.3), rng.random((size, size, 1))
    ground = np.ones((size, size, 3)) * rng.random(3)
    return np.where(cast < share / 2, 0.0, np.where(cast > 1 - share / 2, 1.0, ground))


def _coloured_noise(rng: np.random.Generator, size: int) -> _Plane:
    """Noise whose amplitude falls with the frequency, as f^-0.5 to f^-1.5."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    channels = 3 if rng.integers(2) else 1
    white = np.fft.fft2(rng.normal(size=(channels, size, size)))
    noise = np.fft.ifft2(white * frequency ** -rng.uniform(0.5, 1.5)).real
    noise = 0.5 + 0.2 * noise / noise.std()
    return np.moveaxis(noise, 0, -1) * np.ones(3)


def _grains(rng: np.random.Generator, size: int) -> _Plane:
    """Squares of random colours or greys."""
    cells = int(_between(rng, 16, 97))
    grains = rng.random((cells, cells, 3 if rng.integers(2) else 1)) * np.ones(3)
    at = np.arange(size) * cells // size
    return grains[at][:, at]


# -- cards --


def _bars(rng: np.random.Generator, size: int) -> _Plane:
    """Colour bars at full or three quarters of their brightness, above other things or alone."""
    level = rng.choice([0.75, 1.0])
    count = int(rng.integers(7, 9))
    at = np.arange(size) * count // size
    card = np.ones((size, 1, 1)) * (_BARS[8 - count :] if rng.integers(2) else _BARS[:count])[at]
    card = card * level
    if rng.integers(2):  # as SMPTE's: below them the same backwards, then blacks and whites
        card[2 * size // 3 :] = card[2 * size // 3 :, ::-1]
        card[3 * size // 4 :] = rng.permutation([0.0, 1.0, 0.1, 0.05, 0.1, 0.07, 0.0])[
            np.arange(size) * 7 // size, None
        ]
    plane: _Plane = card
    return plane


def _steps(rng: np.random.Generator, size: int) -> _Plane:
    """A wedge of greys."""
    count = int(rng.integers(5, 17))
    steps = (np.arange(size) * count // size / (count - 1))[None, :] * np.ones((size, 1))
    return np.rot90(steps, rng.integers(4))


def _card(rng: np.random.Generator, size: int) -> _Plane:
    """A circle full of bars and wedges, on a grid."""
    x, y = _grid(size)
    card = _lines(rng, size)[..., None] * np.ones(3) * 0.5 + 0.25
    bars, steps = _bars(rng, size), _steps(rng, size)[..., None] * np.ones(3)
    disc = np.hypot(x, y) < rng.uniform(0.6, 0.9)
    card = np.where((disc & (y < 0))[..., None], bars, card)
    card = np.where((disc & (y >= 0))[..., None], steps, card)
    fine = _stripes(rng, size)[..., None] * np.ones(3)
    return np.where((disc & (np.abs(y) < rng.uniform(0.1, 0.25)))[..., None], fine, card)


def _colour_chart(rng: np.random.Generator, size: int) -> _Plane:
    """Fields of random colours on a black ground."""
    rows, columns = int(rng.integers(3, 6)), int(rng.integers(4, 9))
    colours = rng.random((rows, columns, 3))
    down, right = np.arange(size) * rows / size, np.arange(size) * columns / size
    inside = np.outer(_middle(down), _middle(right))
    chart: _Plane = colours[down.astype(int)][:, right.astype(int)] * inside[..., None]
    return chart


def _middle(at: _Plane) -> _Plane:
    """1 in the middle of each whole step, 0 at its ends."""
    return np.where(np.abs(at % 1 - 0.5) < 0.42, 1.0, 0.0)  # noqa: PLR2004 - a thin gap


# -- patterns that repeat --


def _checkerboard(rng: np.random.Generator, size: int) -> _Plane:
    across = int(_between(rng, 4, 33))
    cells = across, across if rng.integers(2) else int(_between(rng, 4, 33))
    x, y = (_grid(size)[0] + 1) / 2, (_grid(size)[1] + 1) / 2
    plane: _Plane = ((x * cells[0]).astype(int) + (y * cells[1]).astype(int)) % 2 * 1.0
    return plane


def _stripes(rng: np.random.Generator, size: int) -> _Plane:
    return _wave(rng, _along(size, _upright(rng)))


def _oblique_stripes(rng: np.random.Generator, size: int) -> _Plane:
    return _wave(rng, _along(size, _oblique(rng)))


def _wave(rng: np.random.Generator, along: _Plane) -> _Plane:
    """Sharp or soft, three bright stripes at least."""
    wave = np.sin(np.pi * along * _between(rng, 3, 40))
    return (wave + 1) / 2 if rng.integers(2) else (wave > 0) * 1.0


def _lines(rng: np.random.Generator, size: int) -> _Plane:
    cells, width = int(_between(rng, 4, 25)), rng.uniform(0.04, 0.2)
    x, y = ((part + 1) / 2 * cells % 1 for part in _grid(size))
    lines = ((x < width) | (y < width)) * 1.0
    return lines if rng.integers(2) else 1 - lines


def _dots(rng: np.random.Generator, size: int) -> _Plane:
    cells, radius = int(_between(rng, 4, 25)), rng.uniform(0.15, 0.45)
    x, y = ((part + 1) / 2 * cells % 1 - 0.5 for part in _grid(size))
    dots = (np.hypot(x, y) < radius) * 1.0
    return dots if rng.integers(2) else 1 - dots


def _zone_plate(rng: np.random.Generator, size: int) -> _Plane:
    """cos(c r^2), which has all frequencies and, where it is too fine, rings of its own."""
    x, y = _grid(size)
    return (1 + np.cos(_between(rng, 20, 200) * (x**2 + y**2))) / 2


def _rings(rng: np.random.Generator, size: int) -> _Plane:
    x, y = _grid(size)
    return (np.sin(_between(rng, 8, 60) * np.hypot(x, y)) > 0) * 1.0


def _star(rng: np.random.Generator, size: int) -> _Plane:
    """Siemens star: rays that narrow to the centre."""
    x, y = _grid(size)
    return (np.sin(np.arctan2(y, x) * int(_between(rng, 6, 49))) > 0) * 1.0


FAMILIES: Mapping[Family, tuple[_Draw, ...]] = {
    "solid": (_solid,),
    "gradient": (_linear, _radial, _four_corners),
    "noise": (_uniform, _static, _gaussian, _salt_and_pepper, _coloured_noise),
    "grains": (_grains,),
    "colour bars": (_bars, _steps),
    "test card": (_card, _colour_chart),
    "checkerboard": (_checkerboard,),
    "stripes": (_stripes, _oblique_stripes),
    "grid": (_lines,),
    "dots": (_dots,),
    "rings": (_zone_plate, _rings),
    "star": (_star,),
}
"""Every family by the kinds it is of."""

OBJECTIONS: Mapping[Family, Objection] = dict.fromkeys(FAMILIES, Objection.TEST_PATTERN) | {
    "solid": Objection.BLANK,
    "gradient": Objection.LOW_INFORMATION,
    "noise": Objection.NOISE,
    "grains": Objection.NOISE,
}
"""What to say against a picture that is like one of a family."""
