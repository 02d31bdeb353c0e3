"""The ways in which a file can be seen.

Viewers disagree about colour profiles, about what lies behind transparent pixels and about crops,
and an animation shows one frame after the other. Each combination is a *rendition* of the file.
The one that Chromium shows on a white page comes first. Others are described as well where they
look noticeably different, so that a file cannot show one picture to the worker and another one to
people. Of nearly all files there is one.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker.events import Background, Colors, Crop
from worker.image.color import is_foreign, to_srgb
from worker.image.formats.container import Frame, Header
from worker.records import Looks, Pixels, Rendition

LEVELS = 16.0
"""Grey levels, mean of the absolute difference, from which two pictures are noticeably different.
Honest Display P3 and Adobe RGB profiles move photographs by at most 11."""
LIKENESS = 0.9
"""Or below this likeness of contrast and structure."""
DETAIL = 3.0
"""Or by this difference in levels, on average, of the standard deviation within a cell. Honest
profiles move it by at most 2.5. A profile that jumps up and down between neighbouring levels
changes nothing but such detail."""
_FLAT = 1.0
"""Grey levels squared: pictures of less variance are equally flat."""
SIDE = 64
"""Cells a side of a picture that are compared."""
_LASTING_SECONDS = 1e6
"""Stands for a frame that stays at the end of an animation."""
POOL = 4
"""How many times as many distinct renditions are kept for the choice as are described."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED_SIDES = range(5, 9)
"""EXIF orientations that swap width and height."""

type Thumbnail = npt.NDArray[np.float32]
"""Mean and standard deviation of the levels in each cell, shape [2, 3 * SIDE * SIDE]."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One frame as a viewer shows it, but for what lies behind: mode RGB, or RGBA where it matters.

    All of it, upright, in sRGB.
    """

    colors: Colors
    crop: Crop
    image: Image.Image

    @property
    def backgrounds(self) -> Sequence[Background]:
        """What may lie behind it; none matters where nothing is transparent."""
        return ("white", "black", "none") if self.image.mode == "RGBA" else ("white",)


def shown(frame: Frame, header: Header) -> Iterator[Shown]:
    """All ways to show one frame, the usual one first."""
    crops: list[tuple[Crop, Image.Image]] = [("applied", frame.image)]
    if header.crop is not None:
        crops = [("applied", frame.image.crop(header.crop)), ("ignored", frame.image)]
    for crop, image in crops:
        for colors, converted in _colors(image, header):
            yield Shown(colors, crop, _upright(_rgb(converted), header.orientation))


def picture(frame: Frame, header: Header) -> Image.Image:
    """One frame as Chromium shows it on a white page, in mode RGB."""
    image = next(shown(frame, header)).image
    return image if image.mode == "RGB" else on(image, "white")


def on(image: Image.Image, background: Background) -> Image.Image:
    """An RGBA picture on a background, or without its alpha channel; an RGB picture as it is."""
    if image.mode == "RGB":
        return image
    if background == "none":
        return image.convert("RGB")
    behind = Image.new("RGB", image.size, background)
    behind.paste(image, mask=image)
    return behind


def _colors(image: Image.Image, header: Header) -> Iterator[tuple[Colors, Image.Image]]:
    """In each of the colours that the file may mean, the usual ones first, and as it is."""
    tagged: list[Colors] = ["tagged", "other"]
    for profile in dict.fromkeys((*header.profiles, b"")):
        if not is_foreign(profile):
            yield "untagged", image
        else:
            yield tagged.pop(0), to_srgb(image, profile)


def _rgb(image: Image.Image) -> Image.Image:
    """In mode RGB, or RGBA where a pixel is transparent."""
    if image.mode in ("LA", "RGBA"):
        lowest, _ = image.getchannel("A").getextrema()
        return image.convert("RGB" if lowest == 255 else "RGBA")  # noqa: PLR2004 - opaque
    return image.convert("RGB")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def thumbnail(square: Pixels) -> Thumbnail:
    """What of a picture is compared; `square` is uint8 [side, side, 3]."""
    means, deviations = [], []
    for channel in Image.fromarray(square).split():
        levels = np.asarray(channel, np.float32)
        mean = _cells(levels)
        means.append(mean)
        deviations.append(np.sqrt(np.maximum(_cells(levels**2) - mean**2, 0)))
    return np.stack([np.concatenate(means), np.concatenate(deviations)])


def _cells(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of each cell."""
    small = Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small).reshape(-1)


def difference(one: Thumbnail, others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How different pictures look: below 1 is not noticeable. `others` is [n, 2, 3 * SIDE * SIDE].

    The largest one of three measures, each over its own bound: the mean difference in levels, the
    mean difference in the detail of each cell, and what the likeness lacks to 1. The likeness is
    the contrast and structure term of SSIM (Wang et al. 2004), of the whole picture:
    2 cov(a, b) / (var(a) + var(b)).
    """
    levels, detail = np.abs(others - one).mean(axis=2).T
    a, b = _centred(one[None, 0])[0], _centred(others[:, 0])
    covariance = b @ a / len(a)
    variance = (a @ a + np.einsum("ij,ij->i", b, b)) / len(a)
    likeness = (2 * covariance + _FLAT) / (variance + _FLAT)
    found: npt.NDArray[np.float32] = np.maximum.reduce(
        [levels / LEVELS, detail / DETAIL, (1 - likeness) / (1 - LIKENESS)]
    )
    return found


def _centred(means: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Without the mean of each channel; shape [n, 3 * SIDE * SIDE]."""
    channels = means.reshape(len(means), 3, -1)
    return (channels - channels.mean(axis=2, keepdims=True)).reshape(len(means), -1)


@dataclass
class Candidate:
    """A rendition, and its looks [views, size, size, 3].

    `frames` are the numbers of the frames that look like this in their usual rendition.
    `seconds` is how long frames are shown that look like this in any rendition.
    """

    rendition: Rendition
    looks: Looks
    frames: set[int] = field(default_factory=set)
    seconds: float = 0.0
    _last_frame: int = -1

    @functools.cached_property
    def thumbnail(self) -> Thumbnail:
        """Of the plain view. Made when it is first compared: most files have one rendition."""
        return thumbnail(self.looks[0])

    def count(self, frame: int, seconds: float, *, usual: bool) -> None:
        """Note that a frame looks like this; each frame's time counts once."""
        if usual:
            self.frames.add(frame)
        if frame != self._last_frame:
            self._last_frame = frame
            self.seconds += seconds


class Choice:
    """Chooses which renditions of a file are described, as they come.

    Renditions that look the same are one. Where there are too many to keep, of the two that are
    most alike the one goes that is shown for less time.
    """

    def __init__(self, most: int) -> None:
        """`most` is how many are described."""
        self._most = most
        self._kept: list[Candidate] = []
        self._left_out = 0

    def add(self, rendition: Rendition, looks: Looks, seconds: float, *, usual: bool) -> None:
        """Take one rendition in. `usual`: its frame's first one, which stands for the frame."""
        candidate = Candidate(rendition, looks)
        if (alike := self._alike(candidate)) is not None:
            candidate = alike
        else:
            self._kept.append(candidate)
        candidate.count(rendition.frame, seconds, usual=usual)
        if len(self._kept) > POOL * self._most:
            self._drop_one()

    def _alike(self, candidate: Candidate) -> Candidate | None:
        """The one among those kept that looks the same, if any does."""
        if not self._kept:
            return None
        kept = np.stack([one.thumbnail for one in self._kept])
        differences = difference(candidate.thumbnail, kept)
        nearest = int(differences.argmin())
        return self._kept[nearest] if differences[nearest] < 1 else None

    def _drop_one(self) -> None:
        """Drop one of the two candidates that are most alike; the first one of all stays."""
        small = np.stack([one.thumbnail for one in self._kept])
        alike = np.stack([difference(one, small) for one in small])
        np.fill_diagonal(alike, np.inf)
        pair = divmod(int(alike.argmin()), len(small))
        dropped = min((n for n in pair if n), key=lambda n: self._kept[n].seconds)
        del self._kept[dropped]
        self._left_out += 1

    def chosen(self) -> tuple[list[Candidate], int]:
        """Those that are described, the usual rendition of the first frame first; how many are not.

        In turns the one that is shown longest and differs, and the one that differs most from those
        before it.
        """
        first, *rest = self._kept
        chosen = [first]
        away = np.full(len(rest), np.inf)
        by_time = any(one.seconds for one in rest)
        while rest and len(chosen) < self._most:
            small = np.stack([one.thumbnail for one in rest])
            away = np.minimum(away, difference(chosen[-1].thumbnail, small))
            seconds = np.array([min(one.seconds, _LASTING_SECONDS) for one in rest])
            index = int((seconds * away if by_time else away).argmax())
            chosen.append(rest.pop(index))
            away = np.delete(away, index)
            by_time = not by_time and bool(seconds.any())
        return chosen, self._left_out + len(rest)


def share_of_time(seconds: Sequence[float], frames: Iterable[int]) -> float | None:
    """The share of the playing time in which these frames are shown; None of a still picture.

    A frame that stays at the end counts as long as all the others together.
    """
    finite = sum(one for one in seconds if one != np.inf)
    lasting = [finite or 1.0 if one == np.inf else one for one in seconds]
    total = sum(lasting)
    return sum(lasting[number] for number in frames) / total if total else None
