"""The upper tail of a null beyond what was counted: peaks over a threshold.

Scores above a high level follow a generalised Pareto distribution, whatever they follow below it
(Pickands 1975): P(score > level + x | score > level) = (1 + shape x / scale) ** (-1 / shape).
A shape below 0 ends at `level - scale / shape`, 0 falls off exponentially, above 0 is heavy.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

type Reals = npt.NDArray[np.float64]

FEWEST = 20
"""Peaks below which no tail is fitted: the shape's standard error would be above 0.2."""
_STRAIGHT = 1e-9
"""Shapes nearer to 0 than this are exponential: the difference is below rounding."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Fall-off above `level`; `peaks` is how many scores it was fitted to."""

    level: float
    scale: float
    shape: float
    peaks: int

    @classmethod
    def fit(cls, scores: Reals, level: float) -> Self | None:
        """Fit to independent scores above `level`, float64 [n]; None: they do not tell a tail.

        Zhang and Stephens' estimator (Technometrics 51, 2009, 316): the mean of the likelihood
        over a grid of shapes. In closed form, and its end is never below the highest score.
        """
        over = np.sort(scores) - level
        over = over[over > 0]
        if len(over) < FEWEST:
            return None
        quartile = over[int(len(over) / 4 + 0.5) - 1]
        grid = 30 + int(np.sqrt(len(over)))
        steps = 1 - np.sqrt(grid / (np.arange(grid) + 0.5))
        slopes = 1 / over[-1] + steps / (3 * quartile)
        slopes = slopes[np.abs(slopes) * over[-1] > _STRAIGHT]
        shapes = np.log1p(-np.outer(slopes, over)).mean(axis=1)
        likelihoods = len(over) * (np.log(-slopes / shapes) - shapes - 1)
        weights = np.exp(likelihoods - likelihoods.max())
        slope = float(slopes @ weights / weights.sum())
        if abs(slope) * over[-1] <= _STRAIGHT:
            return cls(level, float(over.mean()), 0.0, len(over))
        shape = float(np.log1p(-slope * over).mean())
        return cls(level, -shape / slope, shape, len(over))

    def heavier(self, deviates: float) -> Self:
        """The same with a shape so many standard errors higher, and not below exponential.

        The standard error is maximum likelihood's, (1 + shape) / sqrt(peaks) (Smith 1987).
        """
        error = (1 + max(self.shape, 0.0)) / np.sqrt(self.peaks)
        return replace(self, shape=max(0.0, self.shape + deviates * float(error)))

    def beyond(self, score: npt.ArrayLike, start: float) -> Reals:
        """Share of what reaches `start` that reaches `score` as well, both at least `level`."""
        return self._survival(np.asarray(score, np.float64)) / self._survival(np.float64(start))

    def score(self, share: float, start: float) -> float:
        """The score that this share of what reaches `start` reaches: the inverse of `beyond`."""
        left = share * float(self._survival(np.float64(start)))
        if abs(self.shape) <= _STRAIGHT:
            return self.level - self.scale * math.log(left)
        return self.level + self.scale * math.expm1(-self.shape * math.log(left)) / self.shape

    def _survival(self, score: npt.NDArray[np.float64] | np.float64) -> Reals:
        far = np.maximum(score - self.level, 0) / self.scale
        if abs(self.shape) <= _STRAIGHT:
            return np.exp(-far)
        with np.errstate(divide="ignore"):  # beyond the end of a bounded tail
            return np.exp(-np.log(np.maximum(1 + self.shape * far, 0)) / self.shape)
