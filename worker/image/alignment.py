"""Whether two pictures show the same scene or artwork, by laying one on the other.

Key points are matched (RootSIFT: Arandjelovic and Zisserman, 2012; Lowe's ratio test), an affine
map is fitted (RANSAC), and then the pixels have to agree where both have texture. The last step
decides: by matched points alone landmarks, templates and letters are taken for copies. No learnt
descriptor takes part, so it can say what one that is under test cannot.

It takes milliseconds, so it is for reading collections, and never for an upload.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from worker.errors import StartupError
from worker.records import Pixels

try:
    import cv2
except ImportError:
    raise StartupError(
        "alignment of pictures needs OpenCV: install the extra copysieve[evaluate]"
    ) from None

SIDE = 320
"""Pixels a side at which pictures are compared, whatever their shape: the map is affine."""
MOST_POINTS = 400
RATIO = 0.8
"""How much nearer a point's match must be than the next best."""
TOLERANCE = 4.0
"""Pixels within which a matched point must fall."""
LEAST_POINTS = 8
WINDOW = 15
"""Pixels a side of the windows whose correlation is taken."""
TEXTURE = 6.0
"""Levels of 256, as standard deviation in a window: below it there is nothing to correlate."""
LEAST_TEXTURE = 0.02
"""Share of the picture that must have texture where the two overlap."""
CORRELATED = 0.6
AGREEMENT = 0.4
"""Share of textured pixels whose windows must be correlated by more than that."""

type Points = npt.NDArray[np.float32]
type Map = npt.NDArray[np.float64]
"""Affine, [2, 3]: from one picture's coordinates to the other's."""

VOTERS = 64
"""Key points of each picture, the strongest, by which candidates are found."""
NEIGHBOURS = 8
LEAST_VOTES = 3
CANDIDATES = 8

_TREES = {"algorithm": 1, "trees": 4}
_SEARCH = {"checks": 32}
_LARGEST_STRETCH = 8.0
_SIFT = cv2.SIFT_create(MOST_POINTS)
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][..., -np.arange(8) % 8].ravel()
"""Where the values of a SIFT descriptor are in that of the mirrored patch."""


@dataclass(frozen=True, eq=False)
class Features:
    """What is kept of a picture: at most 160 KB.

    `points` is float32 [n, 2], x and y in the square; `described` is RootSIFT, uint8 [n, 128], 255
    times too long; the strongest come first. `grey` is uint8 [SIDE, SIDE].
    """

    points: Points
    described: npt.NDArray[np.uint8]
    grey: npt.NDArray[np.uint8]

    @cached_property
    def local(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Mean and variance of the window around each pixel, in levels and squared levels."""
        return _mean_and_variance(self.grey.astype(np.float32))


def features(pixels: Pixels) -> Features:
    """Find the key points of a picture, uint8 [h, w, 3]."""
    square = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
    keypoints, sift = _SIFT.detectAndCompute(grey, None)
    if sift is None:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8), grey)
    strongest = np.argsort([-one.response for one in keypoints], kind="stable")[:MOST_POINTS]
    points = np.array([one.pt for one in keypoints], np.float32)[strongest]
    sift = sift[strongest]
    root = np.sqrt(sift / np.maximum(sift.sum(axis=1, keepdims=True), 1e-6))
    return Features(points, np.rint(255 * root).astype(np.uint8), grey)


def are_aligned(a: Features, b: Features) -> bool:
    """Whether a part of one picture, perhaps mirrored, is found in the other, and agrees."""
    return any(agreement(one, b) >= AGREEMENT for one in (a, _mirrored(a)))


def agreement(a: Features, b: Features) -> float:
    """The share of textured pixels that agree once `a` is laid on `b`: 0 if it cannot be."""
    found = _map(a, b)
    if found is None:
        return 0.0
    laid = cv2.warpAffine(a.grey, found, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.ones_like(a.grey), found, (SIDE, SIDE), flags=cv2.INTER_NEAREST)
    return _correlated(laid.astype(np.float32), b, _whole_windows(inside))


def _mirrored(features: Features) -> Features:
    """The same points, described as they would be were the picture mirrored; it is not."""
    return replace(features, described=features.described[:, _MIRRORED])


def _map(a: Features, b: Features) -> Map | None:
    """The affine map under which the most key points of `a` fall on their match in `b`."""
    if min(len(a.points), len(b.points)) < LEAST_POINTS:
        return None
    likeness = a.described.astype(np.float32) @ b.described.T.astype(np.float32) / 255**2
    best = likeness.argmax(axis=1)
    second, first = np.partition(likeness, -2, axis=1)[:, -2:].T
    # Descriptors have length 1: the squared distance is 2 - 2 * likeness.
    chosen = 1 - first < RATIO**2 * (1 - second)
    if chosen.sum() < LEAST_POINTS:
        return None
    found, fits = cv2.estimateAffine2D(
        a.points[chosen], b.points[best[chosen]], ransacReprojThreshold=TOLERANCE
    )
    if found is None or fits.sum() < LEAST_POINTS:
        return None
    stretches = np.linalg.svd(found[:, :2], compute_uv=False)
    if stretches.max() > _LARGEST_STRETCH or stretches.min() < 1 / _LARGEST_STRETCH:
        return None
    return found


def _correlated(laid: npt.NDArray[np.float32], b: Features, inside: npt.NDArray[np.bool_]) -> float:
    """The share of windows with texture in either picture whose correlation is high enough."""
    mean, variance = _mean_and_variance(laid)
    b_mean, b_variance = b.local
    textured = inside & (np.maximum(variance, b_variance) > TEXTURE**2)
    if textured.mean() < LEAST_TEXTURE:
        return 0.0
    covariance = _average(laid * b.grey) - mean * b_mean
    scale = np.sqrt(np.maximum(variance, 1) * np.maximum(b_variance, 1))
    return float((covariance > CORRELATED * scale)[textured].mean())


def _mean_and_variance(
    grey: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    mean = _average(grey)
    return mean, _average(grey * grey) - mean * mean


def _average(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    averaged: npt.NDArray[np.float32] = cv2.blur(values, (WINDOW, WINDOW))
    return averaged


def _whole_windows(inside: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a window lies inside as a whole."""
    whole: npt.NDArray[np.bool_] = cv2.erode(inside, np.ones((WINDOW, WINDOW), np.uint8)) > 0
    return whole


def aligned_pairs(
    pictures: Sequence[Features], on_progress: Callable[[int], object] = lambda _: None
) -> npt.NDArray[np.int64]:
    """Pairs of pictures that are aligned, [pairs, 2], each once with the lower number first.

    Only `candidates` are looked at. `on_progress` is told how many more pictures are done.
    """
    found = []
    for number, others in enumerate(candidates(pictures)):
        found += [
            sorted((number, other))
            for other in others
            if are_aligned(pictures[number], pictures[other])
        ]
        on_progress(1)
    return np.unique(np.array(found, np.int64).reshape(-1, 2), axis=0)


def candidates(pictures: Sequence[Features]) -> list[list[int]]:
    """For each picture the few others that its strongest key points are most like, best first.

    Each point, and its mirror image, votes for the pictures of its nearest neighbours among the
    points of all (an approximate search: FLANN's random trees, from a fixed seed).
    """
    strongest = [one.described[:VOTERS] for one in pictures]
    owners = np.repeat(np.arange(len(pictures)), [len(one) for one in strongest])
    if not len(owners):
        return [[] for _ in pictures]
    points = np.concatenate(strongest).astype(np.float32)
    cv2.setRNGSeed(0)
    index = cv2.flann_Index(points, _TREES)
    votes = sum(
        _votes(index, searched, owners, len(pictures))
        for searched in (points, np.ascontiguousarray(points[:, _MIRRORED]))
    )
    return [_elected(votes[[number]], number) for number in range(len(pictures))]


def _votes(
    index: Any, points: npt.NDArray[np.float32], owners: npt.NDArray[np.int64], pictures: int
) -> sparse.csr_array:
    """How many points of each picture have one of each other among their nearest neighbours."""
    nearest, _ = index.knnSearch(points, min(NEIGHBOURS, len(points)), params=_SEARCH)
    for_whom = owners[nearest]
    voter = np.arange(len(points))[:, None]
    ballots = np.unique((voter * pictures + for_whom).ravel())
    voter, chosen = np.divmod(ballots, pictures)
    ones = np.ones(len(ballots), np.int64)
    return sparse.coo_array((ones, (owners[voter], chosen)), shape=(pictures, pictures)).tocsr()


def _elected(votes: sparse.csr_array, number: int) -> list[int]:
    others, counts = votes.indices, votes.data
    order = np.lexsort((others, -counts))
    return [int(others[n]) for n in order if counts[n] >= LEAST_VOTES and others[n] != number][
        :CANDIDATES
    ]
