"""Limits of false-match rates from counted images, some of which belong together.

Of m independent images the k-th highest score is reached by a share of all that is distributed as
Beta(k, m - k + 1), whatever the scores' own distribution (David and Nagaraja, Order Statistics,
2.1; Clopper and Pearson's limits are quantiles of the same Beta). Its 5% and 95% quantiles are the
limits here, each with 95% confidence. Between the scores of groups they are interpolated as of an
exponential tail, where whole numbers would be on the safe side (Hettmansperger and Sheather 1986).

Images of one group share their fate, so k counts groups, by their best image. Two things follow
from how many images come with each:

- the share grows by their mean number;
- k shrinks by the design effect, the variance of the count against that of independent images: as
  seen in the groups that reach the score, or by Kish (Survey Sampling, 1965), 1 + r (b - 1), with
  r how alike the images of a group are and b the size of an image's group on average, whichever
  is larger. The first sees that large groups score higher, the second groups larger than those.

The best few groups tell both badly, more of them tell how it is at lower scores: hubs that attract
whole series do so only above some score, and images of a series are often less alike the higher
they score. So the mean comes from at least `NEAR` and from at least `FAR` groups, and each limit
takes the one on its safe side; the design effect comes from `FAR`. The last group reaches its own
score with one image by construction, and the next may be a large one: the upper limit counts both
as large as an image's group among them is on average.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from worker.scoring.tails import Reals

CONFIDENCE = 0.95
DEVIATE = float(special.ndtri(CONFIDENCE))
"""Standard deviations to a limit, where it comes from them: 1.64."""
NEAR, FAR = 15, 50
"""Chosen by simulation (`tests/benchmarks/bench_limits.py`). 50 alone failed for hubs far above the
rest (53%), 20 alone where groups vary much in size (90%), 100 was above 98% for loose series."""

FEWEST = NEAR
"""Groups below which nothing is told: how many images come with each would be a guess."""

_DENSE, _RATIO = 64, 1.02
"""Limits are computed for every number of groups up to the one, then for each so much larger."""

type Floats = npt.NDArray[np.float32]
type Numbers = npt.NDArray[np.int64]


class Ranked(NamedTuple):
    """Images and groups by score.

    `scores`: float64 [n] ascending. `peaks`: the best score of each group, float64 [m] ascending.
    Of the best 1, 2, ... n images, int64 [n]: `squares`, the squared numbers of them in each group,
    summed over groups; `sizes`, the full sizes of their groups, summed over images. The last of
    `sizes` is thus the sum of squared group sizes.
    """

    scores: Reals
    peaks: Reals
    squares: Numbers
    sizes: Numbers


class Limits(NamedTuple):
    """Limits of the rate at scores, each float64 [knots].

    Scores ascend, limits do not rise along them; between knots their logarithms are straight lines.
    `effective` is how many independent images that reach a score would tell as much, and `varied`
    how many would vary as much from one sample to another: fewer, for a new sample has new groups.
    """

    scores: Reals
    low: Reals
    high: Reals
    effective: Reals
    varied: Reals


def reaching(ascending: Reals, scores: npt.ArrayLike) -> Numbers:
    """How many of the ascending are at least so much."""
    return len(ascending) - np.searchsorted(ascending, scores, side="left")


def rank(scores: Floats, groups: Numbers) -> Ranked:
    """Sort images, float32 [n], and tell their groups apart, int64 [n]: the only slow step."""
    n = len(scores)
    order = np.argsort(-scores)
    numbers, sizes = _numbered(groups)
    own = numbers[order]
    if len(sizes) == n:
        turns = np.zeros(n, np.int64)
    else:  # how many of an image's group come before it, by one sort and not a stable argsort
        group, place = np.divmod(np.sort(own * n + np.arange(n)), n)
        turns = np.empty(n, np.int64)
        turns[place] = np.arange(n) - (np.cumsum(sizes) - sizes)[group]
    descending = scores[order].astype(np.float64)
    return Ranked(
        scores=descending[::-1],
        peaks=descending[turns == 0][::-1],
        squares=np.cumsum(2 * turns + 1),
        sizes=np.cumsum(sizes[own]),
    )


def limits(ranked: Ranked) -> Limits:
    """The limits, from the lowest score up; at least `FEWEST` groups."""
    peaks, n, m = ranked.peaks, len(ranked.scores), len(ranked.peaks)
    levels = peaks[m - _numbers_of_groups(m)].astype(np.float32)
    # A score that many groups share is a step: just above it none of them counts.
    steps = np.nextafter(levels, np.float32(np.inf))
    scores = np.unique(np.concatenate([levels, steps])).astype(np.float64)
    k = reaching(peaks, scores)
    k = np.where(np.isin(scores, peaks), k, np.minimum(k + 1, m))

    near, far = _company(ranked, k, NEAR), _company(ranked, k, FAR)
    effective = 1 / (1 / k + far.variance)
    least = k / n * np.minimum(near.seen, far.seen)
    most = np.minimum(k / n * np.maximum(near.allowed, far.allowed), 1)
    low = special.betaincinv(effective, effective / least - effective + 1, 1 - CONFIDENCE)
    high = special.betaincinv(effective, effective / most - effective + 1, CONFIDENCE)
    # All that was seen reaches the lowest score.
    start = [] if scores[0] == ranked.scores[0] else [0]
    scores, low, high, effective, varied = (
        np.insert(values, start, values[0])
        for values in (scores, low, high, effective, k / far.unequal)
    )
    scores[0], high[0] = ranked.scores[0], 1.0
    return Limits(scores, _falling(low), _falling(high), effective, varied)


class _Company(NamedTuple):
    """How many images come with each group that reaches a score, float64 [knots].

    `seen` and `allowed` are their mean number, as counted and as the upper limit takes it.
    `unequal` is the mean of their squared numbers against the square of the mean, and `variance`
    what that adds to the relative variance of a rate which comes from them.
    """

    seen: Reals
    allowed: Reals
    unequal: Reals
    variance: Reals


def _company(ranked: Ranked, k: Numbers, least: int) -> _Company:
    """From the best `k` groups, or the best `least` if those are more."""
    n, m = len(ranked.scores), len(ranked.peaks)
    level = ranked.peaks[m - np.minimum(np.maximum(k, least), m)]
    groups, images = reaching(ranked.peaks, level), reaching(ranked.scores, level)
    squares, sizes = ranked.squares[images - 1], ranked.sizes[images - 1]
    all_squared = ranked.sizes[-1]
    share = images / n
    others = np.maximum(1 - share, 1 / n)
    usual = squares / images
    count = images + 2 * (usual - 1)
    variance = squares + 2 * (usual**2 - 1) - 2 * share * sizes + share**2 * all_squared
    pairs = (squares - images) / np.maximum(sizes - images, 1)
    alike = np.maximum(pairs - share, 0) / others
    effect = np.maximum(variance / (count * others), 1 + alike * (all_squared / n - 1))
    unequal = groups * effect / count
    return _Company(images / groups, count / groups, unequal, (unequal - 1) / groups)


def _falling(values: Reals) -> Reals:
    """Nowhere below what comes after: for the upper limit, that is the safe side."""
    return np.maximum.accumulate(values[::-1])[::-1]


def _numbered(groups: Numbers) -> tuple[Numbers, Numbers]:
    """Groups numbered from 0 without gaps, int64 [n], and their sizes, int64 [m]."""
    if len(groups) and groups.min() >= 0 and groups.max() < len(groups):
        sizes = np.bincount(groups)
        if sizes.all():  # they are already: a fifth of the time saved
            return groups.astype(np.int64, copy=False), sizes
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return numbers, sizes


def _numbers_of_groups(m: int) -> Numbers:
    """All up to `_DENSE`, then `_RATIO` apart, and `m`."""
    count = 2 + int(np.log(max(m / _DENSE, 1)) / np.log(_RATIO))
    sparse = np.geomspace(_DENSE, max(m, _DENSE), count).round().astype(np.int64)
    both = np.concatenate([np.arange(1, _DENSE), sparse, [m]])
    return np.unique(both[both <= m])
