"""Whether two pictures show the same scene or artwork, by laying one on the other.

Key points are matched (RootSIFT: Arandjelovic and Zisserman, 2012; Lowe's ratio test), an affine
map is fitted (RANSAC), and then the pixels have to agree where both have texture. The last step
decides: by matched points alone landmarks, templates and letters are taken for copies. No learnt
descriptor takes part, so it can say what one that is under test cannot.

It takes milliseconds, so it is for reading collections, and never for an upload.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.errors import StartupError
from worker.records import Pixels

try:
    import cv2
except ImportError:
    raise StartupError(
        "alignment of pictures needs OpenCV: install the extra copysieve[evaluate]"
    ) from None

SIDE = 320
"""Pixels a side at which key points are found, whatever the picture's shape: the map is affine."""
COMPARED = 160
"""Pixels a side at which pictures are compared; coordinates and tolerances are in these."""
MOST_POINTS = 400
RATIO = 0.8
"""How much nearer a point's match must be than the next best."""
TOLERANCE = 2.0
"""Pixels within which a matched point must fall."""
LEAST_POINTS = 8
WINDOW = 9
"""Pixels a side of the windows whose correlation is taken."""
TEXTURE = 6.0
"""Levels of 256, as standard deviation in a window: below it there is nothing to correlate."""
LEAST_TEXTURE = 0.02
"""Share of the picture that must have texture where the two overlap."""
CORRELATED = 0.6
AGREEMENT = 0.4
"""Share of textured pixels whose windows must be correlated by more than that."""

type Points = npt.NDArray[np.float32]
type Levels = npt.NDArray[np.float32]
type Map = npt.NDArray[np.float64]
"""Affine, [2, 3]: from one picture's coordinates to the other's."""

VOTERS = 64
"""Key points of each picture, the strongest, by which candidates are found."""
NEIGHBOURS = 8
CANDIDATES = 12

_TREES = {"algorithm": 1, "trees": 4}
_SEARCH = {"checks": 32}
_LARGEST_STRETCH = 8.0
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][..., -np.arange(8) % 8].ravel()
"""Where the values of a SIFT descriptor are in that of the mirrored patch."""


@dataclass(frozen=True, eq=False)
class Features:
    """What is kept of a picture: at most 80 KB.

    `points` is float32 [n, 2], x and y in `grey`; `described` is RootSIFT, uint8 [n, 128], 255
    times too long; the strongest come first. `grey` is uint8 [COMPARED, COMPARED].
    """

    points: Points
    described: npt.NDArray[np.uint8]
    grey: npt.NDArray[np.uint8]


def features(pixels: Pixels) -> Features:
    """Find the key points of a picture, uint8 [h, w, 3]."""
    grey = _shrunk(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), SIDE)
    keypoints, sift = cv2.SIFT_create(MOST_POINTS).detectAndCompute(grey, None)
    strongest = sorted(range(len(keypoints)), key=lambda n: -keypoints[n].response)[:MOST_POINTS]
    found = np.array([keypoints[n].pt for n in strongest], np.float32).reshape(-1, 2)
    points = (found + 0.5) * (COMPARED / SIDE) - 0.5  # the middle of the first pixel is at 0
    described = np.zeros((0, 128)) if sift is None else sift[strongest]
    root = np.sqrt(described / np.maximum(described.sum(axis=1, keepdims=True), 1))
    return Features(points, np.rint(255 * root).astype(np.uint8), _shrunk(grey, COMPARED))


def _shrunk(grey: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    square: npt.NDArray[np.uint8] = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
    return square


def are_aligned(a: Features, b: Features) -> bool:
    """Whether a part of one picture, perhaps mirrored, is found in the other, and agrees."""
    return any(agreement(one, b) >= AGREEMENT for one in (a, _mirrored(a)))


def agreement(a: Features, b: Features) -> float:
    """The share of textured pixels that agree once `a` is laid on `b`: 0 if it cannot be."""
    found = _map(a, b)
    if found is None:
        return 0.0
    ones = np.ones_like(a.grey)
    laid, inside = (cv2.warpAffine(one, found, (COMPARED, COMPARED)) for one in (a.grey, ones))
    return _correlated(laid.astype(np.float32), b.grey.astype(np.float32), _whole_windows(inside))


def _mirrored(features: Features) -> Features:
    """The same points, described as they would be were the picture mirrored; it is not."""
    return replace(features, described=features.described[:, _MIRRORED])


def _map(a: Features, b: Features) -> Map | None:
    """The affine map under which the most key points of `a` fall on their match in `b`."""
    if min(len(a.points), len(b.points)) < LEAST_POINTS:
        return None
    # Not NumPy's product: its threads, spinning for one this small, took five times as long on
    # cores that others use too.
    described = (one.described.astype(np.float32) for one in (a, b))
    likeness = cv2.gemm(*described, 1 / 255**2, None, 0, flags=cv2.GEMM_2_T)
    best = likeness.argmax(axis=1)
    second, first = np.partition(likeness, -2, axis=1)[:, -2:].T
    # Descriptors have length 1: the squared distance is 2 - 2 * likeness.
    chosen = 1 - first < RATIO**2 * (1 - second)
    if chosen.sum() < LEAST_POINTS:
        return None
    found: Map | None
    found, fits = cv2.estimateAffine2D(
        a.points[chosen], b.points[best[chosen]], ransacReprojThreshold=TOLERANCE
    )
    if found is None or fits.sum() < LEAST_POINTS:
        return None
    stretches = np.linalg.svd(found[:, :2], compute_uv=False)
    if stretches.max() > _LARGEST_STRETCH or stretches.min() < 1 / _LARGEST_STRETCH:
        return None
    return found


def _correlated(a: Levels, b: Levels, inside: npt.NDArray[np.bool_]) -> float:
    """The share of windows with texture in either picture whose correlation is high enough."""
    (a_mean, a_variance), (b_mean, b_variance) = _mean_and_variance(a), _mean_and_variance(b)
    textured = inside & (np.maximum(a_variance, b_variance) > TEXTURE**2)
    if textured.mean() < LEAST_TEXTURE:
        return 0.0
    covariance = _average(a * b) - a_mean * b_mean
    scale = np.sqrt(np.maximum(a_variance, 1) * np.maximum(b_variance, 1))
    return float((covariance > CORRELATED * scale)[textured].mean())


def _mean_and_variance(grey: Levels) -> tuple[Levels, Levels]:
    mean = _average(grey)
    return mean, _average(grey * grey) - mean * mean


def _average(values: Levels) -> Levels:
    averaged: Levels = cv2.blur(values, (WINDOW, WINDOW))
    return averaged


def _whole_windows(inside: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a window lies inside as a whole."""
    whole: npt.NDArray[np.bool_] = cv2.erode(inside, np.ones((WINDOW, WINDOW), np.uint8)) > 0
    return whole


def aligned_pairs(
    pictures: Sequence[Features],
    others: Sequence[Features] | None = None,
    on_progress: Callable[[float], object] = lambda _: None,
) -> npt.NDArray[np.int64]:
    """Pairs of a picture and an other that are aligned, int64 [pairs, 2], sorted.

    Without `others`: of two of the pictures, the lower number first. Only `candidates` are looked
    at, so it takes some 20 ms a picture, with 5,000 as with 500. `on_progress` is told the share
    that is done.
    """
    looked_at = candidates(pictures, others)
    laid_on = pictures if others is None else others
    found = []
    for done, (number, other) in enumerate(looked_at.tolist(), start=1):
        if are_aligned(pictures[number], laid_on[other]):
            found.append((number, other))
        on_progress(done / len(looked_at))
    return np.array(found, np.int64).reshape(-1, 2)


def candidates(
    pictures: Sequence[Features], others: Sequence[Features] | None = None
) -> npt.NDArray[np.int64]:
    """Pairs of each picture and the few others that its strongest key points are most like.

    As `aligned_pairs` has them. Each point, and its mirror image, votes for those whose points are
    its nearest neighbours (an approximate search: FLANN's random trees, from a fixed seed).
    """
    voters, owners = _strongest(pictures)
    points, whose = (voters, owners) if others is None else _strongest(others)
    if not (len(voters) and len(points)):
        return np.empty((0, 2), np.int64)
    cv2.setRNGSeed(0)
    index = cv2.flann_Index(points, _TREES)
    chosen = [whose[_nearest(index, some, len(points))] for some in _with_mirrored(voters)]
    votes = _counted(owners, np.concatenate(chosen, axis=1))
    if others is None:
        votes = votes[votes[:, 0] != votes[:, 1]]
    pairs = _elected(votes)
    return np.unique(pairs if others is not None else np.sort(pairs, axis=1), axis=0)


def _strongest(pictures: Sequence[Features]) -> tuple[Points, npt.NDArray[np.int64]]:
    """The key points that count, float32 [n, 128], and which picture each is of."""
    kept = [one.described[:VOTERS] for one in pictures]
    owners = np.repeat(np.arange(len(kept)), [len(one) for one in kept])
    return np.concatenate([np.empty((0, 128), np.float32), *kept]), owners


def _with_mirrored(points: Points) -> tuple[Points, Points]:
    return points, np.ascontiguousarray(points[:, _MIRRORED])


def _nearest(index: Any, voters: Points, points: int) -> npt.NDArray[np.int32]:
    """The numbers of the nearest points of each voter, [voters, NEIGHBOURS]."""
    found: npt.NDArray[np.int32]
    found, _ = index.knnSearch(voters, min(NEIGHBOURS, points), params=_SEARCH)
    return found


def _counted(owners: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows of a picture, one that its points chose, and how many of them did, int64 [rows, 3]."""
    base = 1 + int(chosen.max())  # pairs as single numbers, which sort much faster
    ballots = np.unique(np.arange(len(chosen))[:, None] * base + chosen)  # no point votes twice
    voters, elected = np.divmod(ballots, base)
    pairs, counts = np.unique(owners[voters] * base + elected, return_counts=True)
    return np.column_stack([*np.divmod(pairs, base), counts])


def _elected(votes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each picture the `CANDIDATES` with the most votes, [pairs, 2]."""
    ordered = votes[np.lexsort((votes[:, 1], -votes[:, 2], votes[:, 0]))]
    _, first, number = np.unique(ordered[:, 0], return_index=True, return_inverse=True)
    return ordered[np.arange(len(ordered)) - first[number] < CANDIDATES, :2]
