"""The null of a bank: how often benign images reach a score, and which score they seldom reach.

It is measured on the bank itself: each benign image's best score against it. `limits.py` says how
far the counts can be trusted, `tails.py` how they may go on beyond the best of them.

**Thresholds are upper limits in every range**, not only beyond ten exceedances: a budget says "at
most", and a quantile of the sample overruns it in half of all calibrations. With much data that
costs little (at 100 groups a sixth of the rate, at 30 a quarter, at 10 two fifths), and nothing
jumps where an eleventh exceedance comes in.

The supported range ends at 3/m, where the threshold is the score of the best of m groups (the rule
of three). So a threshold is read from counted images, whatever the tail's shape, except where many
images come with each group: then it may lie beyond the best score, on a tail whose shape is at its
own upper limit and never bounded. Estimates beyond ten groups are a tail's too.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from worker.scoring.limits import DEVIATE, FEWEST, Floats, Limits, Numbers, Ranked, rank, reaching
from worker.scoring.limits import limits as limits_of
from worker.scoring.tails import Reals, Tail

SUPPORTED_BY = 3.0
"""With no exceedance in m images the rate is below 3/m with 95% confidence (the rule of three)."""
FEW = 10
"""Groups beyond which an estimate comes from the tail and no longer from counting."""
PEAKS = 100
"""Groups that a tail is fitted to, but no more than one in `PEAK_SHARE` of all."""
PEAK_SHARE = 10

_LOWEST = 0.025
"""The share that a prediction leaves on either side."""

type By = Literal["count", "tail"]
"""From images that were counted, or from a tail beyond them."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of distinct benign images that score at least so much, 0 to 1.

    `low` and `high` are limits with 95% confidence each, so 90% between them.
    """

    estimate: float
    low: float
    high: float
    by: By


class Curve(NamedTuple):
    """Rates at many scores, each float64 [k]; NaN where the data do not tell."""

    estimate: Reals
    low: Reals
    high: Reals


@dataclass(frozen=True, slots=True)
class Threshold:
    """A match is a score of at least `score`: the lowest that keeps the target, 95% confident.

    The score that has the target's rate exactly is `estimate` at a guess, and not below `low` nor
    above `score` with 95% confidence each. `exceedances` null images of `groups` groups reach
    `score`; `Null.groups_reaching` names them.
    """

    score: float
    estimate: float
    low: float
    by: By
    exceedances: int
    groups: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The data do not tell a threshold: there are `distinct` images, and it takes `needed`."""

    distinct: int
    needed: int


@dataclass(frozen=True, eq=False)
class Null:
    """Best scores of benign images against one bank, in any order.

    `scores`: float32 [n]. `groups`: int64 [n], the same number for images of one scene, series or
    artwork; 0 to m - 1 without gaps is quickest. Raises ValueError where they do not fit each other
    or a score is not finite.
    """

    scores: Floats
    groups: Numbers

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.shape != self.groups.shape:
            shapes = f"{self.scores.shape} scores, {self.groups.shape} groups"
            raise ValueError(f"a null has one group for each score, not {shapes}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a null's scores are finite")

    @property
    def distinct(self) -> int:
        """How many groups there are: m, what certainty is counted in."""
        return len(self._ranked.peaks)

    @property
    def supported_rate(self) -> float:
        """The lowest rate that the data support a threshold for; infinite for next to none.

        3/m, or more where many images come with each group and too few groups for a tail.
        """
        if self.distinct < FEWEST:
            return math.inf
        least = self._least if self._heavier is None else 0.0
        return max(SUPPORTED_BY / self.distinct, least)

    def threshold(self, rate: float) -> Threshold | Unsupported:
        """The lowest score that at most a share of `rate` of distinct benign images reach.

        It is never below the lowest benign score. Raises ValueError for a rate that is not above 0.
        """
        if not rate > 0:
            raise ValueError(f"a rate is above 0, not {rate}")
        if self.distinct < FEWEST:
            return Unsupported(self.distinct, images_needed(rate))
        if rate < self.supported_rate:
            needed = math.ceil(self.distinct * self.supported_rate / rate)
            return Unsupported(self.distinct, needed)
        score, by = _read(self._limits.scores, self._limits.high, rate), _COUNT
        if rate < self._least and self._heavier is not None:
            score, by = self._heavier.score(rate / self._least, self._top), _TAIL
        score = _rounded_up(score)
        low = min(_read(self._limits.scores, self._limits.low, rate), score)
        return Threshold(
            score=score,
            estimate=min(max(self._estimated(rate), low), score),
            low=low,
            by=by,
            exceedances=int(reaching(self._ranked.scores, score)),
            groups=int(reaching(self._ranked.peaks, score)),
        )

    def rate(self, score: float) -> Rate | None:
        """How often benign images score at least so much; None: the data do not tell."""
        estimate, low, high = (float(values[0]) for values in self.curve([score]))
        if math.isnan(estimate):
            return None
        return Rate(estimate, low, high, _COUNT if score <= self._join else _TAIL)

    def curve(self, scores: npt.ArrayLike) -> Curve:
        """Rates at many scores, [k]: none of the three rises along the scores."""
        at = np.asarray(scores, np.float64)
        if self.distinct < FEWEST:
            return Curve(*np.full((3, len(at)), np.nan))
        low, high = (
            np.exp(np.interp(at, self._limits.scores, np.log(limit)))
            for limit in (self._limits.low, self._limits.high)
        )
        estimate = reaching(self._ranked.scores, at) / len(self.scores)
        beyond, few = at > self._top, at > self._join
        low[beyond] = 0.0
        if self._tail is None or self._heavier is None:
            estimate[beyond] = np.nan
        else:
            high[beyond] *= self._heavier.beyond(at[beyond], self._top)
            estimate[few] = self._joined * self._tail.beyond(at[few], self._join)
        return Curve(np.clip(estimate, low, high), low, high)

    def prediction(self, score: float, images: int) -> tuple[float, float] | None:
        """The share of so many other images that will score at least so much: 95% between the two.

        They are of other groups, of sizes like these. It has the noise of both counts, of these
        images and of the others: negative binomial, a Poisson number whose mean is known by a gamma
        distribution. None beyond the best score, and where the data do not tell.
        """
        rate = self.rate(score)
        if rate is None or score > self._top:
            return None
        limits = self._limits
        own, varied = (
            float(np.interp(score, limits.scores, values))
            for values in (limits.effective, limits.varied)
        )
        mean = varied * images / len(self.scores)
        low, high = (
            math.ceil(special.nbdtrik(at, own, own / (own + mean))) for at in (_LOWEST, 1 - _LOWEST)
        )
        return low / mean * rate.estimate, min(high / mean * rate.estimate, 1.0)

    def groups_reaching(self, score: float) -> list[tuple[int, int]]:
        """Groups with images that score at least so much, and with how many: most first."""
        numbers, counts = np.unique(self.groups[self.scores >= score], return_counts=True)
        order = np.lexsort((numbers, -counts))
        return list(zip(numbers[order].tolist(), counts[order].tolist(), strict=True))

    def score_of_groups(self, k: int) -> float:
        """The score that `k` groups reach, or all if there are fewer; at least one image."""
        return float(self._ranked.peaks[-min(k, self.distinct)])

    def _estimated(self, rate: float) -> float:
        """The score that a share of `rate` reaches, without regard to certainty."""
        if rate < self._joined and self._tail is not None:
            return self._tail.score(rate / self._joined, self._join)
        allowed = min(int(min(rate, 1) * len(self.scores)), len(self.scores) - 1)
        return float(self._ranked.scores[-allowed - 1])

    @cached_property
    def _ranked(self) -> Ranked:
        return rank(self.scores, self.groups)

    @cached_property
    def _limits(self) -> Limits:
        return limits_of(self._ranked)

    @property
    def _least(self) -> float:
        """The upper limit of the rate at the best score."""
        return float(self._limits.high[-1])

    @property
    def _top(self) -> float:
        return self.score_of_groups(1)

    @property
    def _join(self) -> float:
        """Where the tail takes over from counting."""
        return self.score_of_groups(FEW)

    @property
    def _joined(self) -> float:
        """The rate there."""
        return float(reaching(self._ranked.scores, self._join)) / len(self.scores)

    @cached_property
    def _tail(self) -> Tail | None:
        peaks = min(PEAKS, self.distinct // PEAK_SHARE)
        level = float(self._ranked.peaks[-peaks - 1])
        return Tail.fit(self._ranked.peaks[self.distinct - peaks :], level)

    @cached_property
    def _heavier(self) -> Tail | None:
        """The tail for upper limits."""
        return self._tail.heavier(DEVIATE) if self._tail else None


_COUNT: By = "count"
_TAIL: By = "tail"


def images_needed(rate: float) -> int:
    """How many distinct images support a threshold for this rate."""
    return max(FEWEST, math.ceil(SUPPORTED_BY / rate))


def _read(scores: Reals, limit: Reals, rate: float) -> float:
    """The lowest score at which a falling limit is `rate`, within the scores that there are."""
    return float(np.interp(-math.log(rate), -np.log(limit), scores))


def _rounded_up(score: float) -> float:
    """As float32, in which images are scored: rounded down, it would let more through."""
    near = np.float32(score)
    return float(near if float(near) >= score else np.nextafter(near, np.float32(np.inf)))
