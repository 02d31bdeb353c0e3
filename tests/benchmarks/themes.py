"""Synthetic descriptors that are alike as a collection's are: to grow a bank beyond its images.

A descriptor is a theme's direction and one of its own, s theme + sqrt(1 - s^2) own, L2-normalised.
Two of one theme have a cosine of s s' and what their own directions add, as of a one-factor model.
Directions are drawn from a normal distribution with the collection's mean and covariance. Themes
are common as rank ** -zipf. s is the geometric mean of how tight the theme is and how close to it
the image, each of one Beta distribution: so there are a few near copies, and images that are hubs.

The four numbers (themes, zipf, and the Beta's two) are fitted to how many pairs of images of
different groups reach a few cosines, and to how many of those pairs the most reached images hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

type Floats = npt.NDArray[np.float32]
type Reals = npt.NDArray[np.float64]

LEVELS = (0.3, 0.4, 0.5)
HUBS = 0.05
"""The share of images, those in most pairs, that are looked at as hubs."""
_START = (np.log(1000), 1.0, 0.5, np.log(3))
_STEPS = (1.0, 0.4, 0.8, 0.8)
MOST = 5000
"""Themes."""
STEPS = 250
"""Of a fit."""
_RESAMPLED = 200
_EDGE = 1e-6


class Likeness(NamedTuple):
    """How alike images are at each of `LEVELS`: each float64 [levels].

    `pairs` reach it, which is a share `rates` of all; the top `HUBS` of images hold a share `hubs`
    of them (NaN where there is none).
    """

    pairs: Reals
    rates: Reals
    hubs: Reals


def likeness(descriptors: Floats) -> Likeness:
    """Of images of different groups, float32 [n, d], L2-normalised."""
    return _counted(_reached(descriptors))


def likeness_limits(descriptors: Floats, seed: int) -> tuple[Likeness, Likeness]:
    """95% between the two, by resampling images: pairs that share one are not independent."""
    random, reached = np.random.default_rng(seed), _reached(descriptors)
    found = []
    for _ in range(_RESAMPLED):
        some = random.integers(len(descriptors), size=len(descriptors))
        found.append(_counted([level[np.ix_(some, some)] for level in reached]))
    low, high = np.nanquantile(np.array(found), [0.025, 0.975], axis=0)
    return Likeness(*low), Likeness(*high)


def _reached(descriptors: Floats) -> list[npt.NDArray[np.bool_]]:
    cosines = descriptors @ descriptors.T
    np.fill_diagonal(cosines, -1)
    return [cosines >= level for level in LEVELS]


def _counted(reached: list[npt.NDArray[np.bool_]]) -> Likeness:
    held = np.sort([level.sum(axis=1) for level in reached], axis=1)[:, ::-1]
    n = held.shape[1]
    twice = held.sum(axis=1)
    top = held[:, : max(1, round(HUBS * n))].sum(axis=1)
    with np.errstate(invalid="ignore"):
        return Likeness(twice / 2, twice / (n * (n - 1)), top / twice)


class Luck(NamedTuple):
    """Uniform numbers for theme and closeness, float64 [n], and own directions, [n, d]."""

    theme: Reals
    closeness: Reals
    own: Reals


@dataclass(frozen=True, eq=False)
class Themes:
    """A distribution of descriptors. `mean` is float64 [d]; `root` [d, d] of the covariance.

    `strengths` are the Beta's two; `seed` draws the themes' strengths and directions.
    """

    mean: Reals
    root: Reals
    count: int
    zipf: float
    strengths: tuple[float, float]
    seed: int

    @classmethod
    def fit(cls, descriptors: Floats, seed: int, draws: int = 4, steps: int = STEPS) -> "Themes":
        """Fit to images of different groups, float32 [n, d], by Nelder and Mead's method.

        In each of its `steps` it compares them with as many images in each of `draws`.
        """
        values, vectors = np.linalg.eigh(np.cov(descriptors.T.astype(np.float64)))
        mean = descriptors.mean(axis=0, dtype=np.float64)
        root = np.sqrt(values.clip(min=0))[:, None] * vectors.T
        wanted = _logarithms(likeness(descriptors))

        def of(numbers: Reals) -> "Themes":
            size, spread = special.expit(numbers[2]), np.exp(numbers[3])
            return cls(
                mean=mean,
                root=root,
                count=max(1, int(np.exp(min(numbers[0], np.log(MOST))))),
                zipf=float(numbers[1]),
                strengths=(float(size * spread) + _EDGE, float((1 - size) * spread) + _EDGE),
                seed=seed,
            )

        start = of(np.array(_START))
        lucks = [start.luck([seed, draw], len(descriptors)) for draw in range(draws)]

        def off(numbers: Reals) -> float:
            found = [likeness(of(numbers).drawn(luck)) for luck in lucks]
            mean_found = Likeness(*np.nanmean(np.array(found), axis=0))
            return float(np.nansum((_logarithms(mean_found) - wanted) ** 2))

        simplex = np.array([_START] * 5) + np.vstack([np.zeros(4), np.diag(_STEPS)])
        best = optimize.minimize(
            off,
            _START,
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "maxfev": steps},
        )
        return of(best.x)

    def draw(self, seed: Sequence[int], n: int) -> Floats:
        """Draw n images, float32 [n, d], L2-normalised."""
        return self.drawn(self.luck(seed, n))

    def luck(self, seed: Sequence[int], n: int) -> Luck:
        """What n images are drawn by, whatever is fitted."""
        random = np.random.default_rng(seed)
        return Luck(random.random(n), random.random(n), self._directions(random, n))

    def drawn(self, luck: Luck) -> Floats:
        """The images that it gives: nearly the same for nearly the same themes."""
        weights = np.cumsum(np.arange(1, self.count + 1) ** -self.zipf)
        theme = np.searchsorted(weights[:-1] / weights[-1], luck.theme)
        tight = np.random.default_rng([self.seed, 0]).random(self.count)
        strength = np.sqrt(
            stats.beta.ppf(tight, *self.strengths)[theme]
            * stats.beta.ppf(luck.closeness, *self.strengths)
        )[:, None]
        directions = self._directions(np.random.default_rng([self.seed, 1]), self.count)
        drawn = strength * directions[theme] + np.sqrt(1 - strength**2) * luck.own
        return _unit(drawn).astype(np.float32)

    def _directions(self, random: np.random.Generator, n: int) -> Reals:
        return _unit(self.mean + random.standard_normal((n, len(self.mean))) @ self.root)


def _unit(rows: Reals) -> Reals:
    unit: Reals = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _logarithms(found: Likeness) -> Reals:
    """Of rates and hubs; half a pair stands for none."""
    least = found.rates.max() / max(2 * found.pairs.max(), 1)
    return np.log(np.concatenate([found.rates.clip(min=max(least, 1e-12)), found.hubs]))
