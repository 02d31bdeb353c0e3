"""Which renditions of a file are described: those that look different, and are shown longest."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from worker.records import Looks, Pixels, Rendition

LEVELS = 16.0
"""Grey levels, mean of the absolute difference, from which two pictures are noticeably different.
Honest Display P3 and Adobe RGB profiles move photographs by at most 12."""
LIKENESS = 0.9
"""Or below this likeness of contrast and structure of the whole picture. Honest: 0.99."""
LOCAL_LIKENESS = 0.94
"""Or below this likeness within windows, on average. Honest profiles: 0.965. A blurred copy of a
picture, or a strong border around a weak one, is like it as a whole."""
DETAIL = 2.4
"""Or by this difference in levels, on average, of the mean deviation within a cell. Honest profiles
move it by at most 1.8. A profile that jumps up and down between neighbouring levels
changes nothing but such detail."""
NEARLY = 1 / 4
"""Share of these bounds that is enough for what is seen on black, or without transparency (few
files have any, and what lies behind fine transparent lines is small), and for a frame that is shown
longer than the one that it looks like."""
SIDE, _CHANNELS = 64, 3
"""Cells a side of a picture that are compared."""
_WINDOW, _STEP = 8, 4
"""Cells a side of a window, and between the beginnings of two windows."""
_FLAT, _LOCALLY_FLAT = 1.0, 30.0
"""Grey levels squared: pictures, or windows, of less variance are equally flat."""
_LASTING_SECONDS = 1e6
"""Stands for a frame that stays at the end of an animation."""
POOL = 3
"""How many times as many distinct renditions are kept for the choice as are described."""

type Floats = npt.NDArray[np.float32]
type Thumbnail = Floats
"""What of a picture is compared, one vector: the mean of each cell, its mean deviation, mean and
variance of each window, mean of each channel, variance of the picture."""

_BEGINNINGS = range(0, SIDE - _WINDOW + 1, _STEP)
_AVERAGE: Floats = np.array(
    [[(0 <= cell - at < _WINDOW) / _WINDOW for cell in range(SIDE)] for at in _BEGINNINGS],
    np.float32,
)
_CELLS = _CHANNELS * SIDE * SIDE
_WINDOWS = _CHANNELS * len(_BEGINNINGS) ** 2
_ENDS = np.cumsum([_CELLS, _CELLS, _WINDOWS, _WINDOWS, _CHANNELS]).tolist()
LENGTH = _ENDS[-1] + 1


def thumbnail(square: Pixels) -> Thumbnail:
    """What of a picture is compared, shape [LENGTH]; `square` is uint8 [side, side, 3]."""
    image = Image.fromarray(square)
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    coarse = small.resize(image.size, Image.Resampling.NEAREST)
    fine = ImageChops.difference(image, coarse).resize((SIDE, SIDE), Image.Resampling.BOX)
    means = np.moveaxis(np.asarray(small, np.float32), -1, 0)
    of_windows, channels = _windows(means), means.mean(axis=(1, 2))
    parts = (
        *(means, np.moveaxis(np.asarray(fine, np.float32), -1, 0)),
        *(of_windows, _windows(means**2) - of_windows**2, channels),
        (means**2).mean() - (channels**2).mean(),
    )
    return np.concatenate([np.reshape(part, -1) for part in parts], dtype=np.float32)


def _windows(cells: Floats) -> Floats:
    """The mean of each window, shape [..., windows]; `cells` is [..., SIDE, SIDE]."""
    return (_AVERAGE @ cells @ _AVERAGE.T).astype(np.float32, copy=False)


def difference(one: Thumbnail, others: Floats) -> Floats:
    """How different pictures look: below 1 is not noticeable. `others` is [n, LENGTH].

    The largest one of four measures, each over its own bound: the mean difference in levels, the
    mean difference in the detail of each cell, and what two likenesses lack to 1. A likeness is the
    contrast and structure term of SSIM (Wang et al. 2004), 2 cov(a, b) / (var(a) + var(b)), of the
    whole picture and of windows.
    """
    a_cells, a_detail, a_windows, a_spread, a_channels, (a_variance,) = np.split(one, _ENDS)
    cells, detail, windows, spread, channels, variance = np.split(others, _ENDS, axis=1)
    covariance = cells @ a_cells / _CELLS - channels @ a_channels / _CHANNELS
    likeness = (2 * covariance + _FLAT) / (a_variance + variance[:, 0] + _FLAT)
    products = _windows((cells * a_cells).reshape(-1, _CHANNELS, SIDE, SIDE))
    products = products.reshape(len(others), -1)
    local = 2 * (products - windows * a_windows) + _LOCALLY_FLAT
    local_likeness = (local / (a_spread + spread + _LOCALLY_FLAT)).mean(axis=1)
    found: Floats = np.maximum.reduce(
        [
            np.abs(cells - a_cells).mean(axis=1) / LEVELS,
            np.abs(detail - a_detail).mean(axis=1) / DETAIL,
            (1 - likeness) / (1 - LIKENESS),
            (1 - local_likeness) / (1 - LOCAL_LIKENESS),
        ]
    )
    return found


@dataclass
class Candidate:
    """A rendition, and its looks [views, size, size, 3].

    `frames` are the numbers of the frames that look like this in their usual rendition. `seconds`
    is how long all frames that look like this in any rendition are shown, `own_seconds` how long
    the frame of this rendition is shown.
    """

    rendition: Rendition
    looks: Looks
    own_seconds: float
    frames: set[int] = field(default_factory=set)
    seconds: float = 0.0
    _last_frame: int = -1

    def count(self, frame: int, seconds: float, *, usual: bool) -> None:
        """Note that a frame looks like this; each frame's time counts once."""
        if usual:
            self.frames.add(frame)
        if frame != self._last_frame:
            self._last_frame = frame
            self.seconds += seconds


class Choice:
    """Chooses which renditions of a file are described, as they come.

    Renditions that look the same are one. If there are too many to keep, drop one of the two that
    are most alike: the one that is shown for less time.
    """

    def __init__(self, most: int) -> None:
        """`most` is how many are described."""
        self._most = most
        self._kept: list[Candidate] = []
        self._left_out = 0
        # Of those that are kept, in their order. Of a file with one rendition nothing is compared.
        self._thumbnails: Floats = np.empty((0, LENGTH), np.float32)
        self._apart: Floats = np.full((POOL * most + 1,) * 2, np.inf, np.float32)

    def add(self, rendition: Rendition, looks: Looks, seconds: float, *, usual: bool) -> None:
        """Take one rendition in. `usual`: its frame's first one, which stands for the frame."""
        candidate = Candidate(rendition, looks, seconds)
        if (alike := self._find_or_keep(candidate)) is not None:
            candidate = alike
        candidate.count(rendition.frame, seconds, usual=usual)
        if len(self._kept) > POOL * self._most:
            self._drop_one()

    def _find_or_keep(self, candidate: Candidate) -> Candidate | None:
        """The one among those kept that looks the same; if there is none, keep the candidate."""
        count = len(self._kept)
        if not count:
            self._kept.append(candidate)
            return None
        if not len(self._thumbnails):
            self._thumbnails = np.empty((POOL * self._most + 1, LENGTH), np.float32)
            self._thumbnails[0] = thumbnail(self._kept[0].looks[0])
        small = thumbnail(candidate.looks[0])
        differences = difference(small, self._thumbnails[:count])
        nearest = int(differences.argmin())
        alike = self._kept[nearest]
        is_odd = candidate.rendition.background != "white"
        is_longer = candidate.own_seconds > alike.own_seconds
        if differences[nearest] < (NEARLY if is_odd or is_longer else 1):
            return alike
        self._thumbnails[count] = small
        self._apart[count, :count] = self._apart[:count, count] = differences
        self._kept.append(candidate)
        return None

    def _drop_one(self) -> None:
        """Drop one of the two candidates that are most alike; the first one of all stays."""
        count = len(self._kept)
        pair = divmod(int(self._apart[:count, :count].argmin()), count)
        dropped = min((n for n in pair if n), key=lambda n: self._kept[n].seconds)
        last = count - 1
        order = [*range(dropped), *range(dropped + 1, count)]
        self._thumbnails[dropped:last] = self._thumbnails[dropped + 1 : count]
        self._apart[:last, :last] = self._apart[np.ix_(order, order)]
        del self._kept[dropped]
        self._left_out += 1

    def chosen(self) -> tuple[list[Candidate], int]:
        """Those that are described, the usual rendition of the first frame first; how many are not.

        In turns the one that is shown longest and differs, and the one that differs most from those
        before it.
        """
        count = len(self._kept)
        chosen, rest = [0], list(range(1, count))
        by_time = any(self._kept[n].seconds for n in rest)
        while rest and len(chosen) < self._most:
            away = self._apart[np.ix_(chosen, rest)].min(axis=0)
            seconds = np.array([min(self._kept[n].seconds, _LASTING_SECONDS) for n in rest])
            index = int((seconds * away if by_time else away).argmax())
            chosen.append(rest.pop(index))
            by_time = not by_time and bool(seconds.any())
        return [self._kept[n] for n in chosen], self._left_out + len(rest)


def share_of_time(seconds: Sequence[float], frames: Iterable[int], count: int) -> float | None:
    """The share of the playing time in which these frames are shown; None of a still picture.

    `seconds` are those of the decoded frames, of `count` that the file has: the others are taken
    to last as long. A frame that stays at the end counts as long as all the others together.
    Rounded down to four digits, so that only all of it is 1.
    """
    finite = sum(one for one in seconds if one != np.inf)
    lasting = [finite or 1.0 if one == np.inf else one for one in seconds]
    total = sum(lasting) * max(1.0, count / len(seconds))
    if not total:
        return None
    share = sum(lasting[number] for number in frames) / total
    return min(1.0, math.floor(share * 1e4 + 1e-6) / 1e4)  # 1e-6: what sums of floats lose
