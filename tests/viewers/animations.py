"""Differential fuzzing: all frames of random animations, by the worker and by Chromium."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.viewers.animation_files import Animation, draw
from tests.viewers.browser import Browser, File, Frame, Frames, Painted, Shown
from worker.errors import DecodeError
from worker.image import decode
from worker.settings import Limits

MOST_LEVELS = 2.0
"""The largest mean difference of a frame, in grey levels."""
MOST_FRAMES = 64
_CHUNK = 256
_ANY_ASPECT_RATIO = 1e6
_SHORTEST, _SHORT_AS = 0.0101, 0.1
"""Seconds: Chromium shows frames of up to the first for as long as the second."""
_WHITE, _BLACK = 255.0, 0.0

type Decoded = Iterable[tuple[int, float, Image.Image]]
"""Number, seconds and picture of each frame."""
type Source = Callable[[bytes], Decoded]


@dataclass(frozen=True)
class Difference:
    """A file that the worker and Chromium see differently.

    `levels` is the mean difference of the worst frame, None where there is no picture to compare.
    """

    seed: int
    number: int
    format: str
    frame: int | None
    levels: float | None
    what: str


@dataclass
class Report:
    """What a run found."""

    seed: int
    compared: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    worst_levels: float = 0.0
    not_shown: int = 0
    differences: list[Difference] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        differences = [asdict(one) for one in self.differences]
        values = {name: value for name, value in vars(self).items() if name != "differences"}
        return values | {"compared": dict(self.compared), "differences": differences}


def worker_frames(data: bytes) -> Decoded:
    """All frames as the worker composes them, of any aspect ratio. Raises DecodeError."""
    limits = Limits(image_aspect_ratio=_ANY_ASPECT_RATIO)
    for number, frame in enumerate(decode.read_header(data, limits).decode()):
        yield number, frame.seconds, frame.image


def run(
    seed: int,
    count: int,
    out: Path | None = None,
    source: Source = worker_frames,
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Compare `count` animations; files that differ are kept in `out`."""
    report = Report(seed)
    with Browser() as browser:
        for animations in itertools.batched(_drawn(seed, count), _CHUNK):
            files = [File(one.data, one.content_type) for one in animations]
            shown = browser.show(files, frames=MOST_FRAMES)
            for animation, one in zip(animations, shown, strict=True):
                difference = _compare(animation, one, source, report)
                if difference is not None:
                    report.differences.append(difference)
                    _keep(out, animation, difference)
                progress()
    return report


def _drawn(seed: int, count: int) -> Iterator[Animation]:
    return (draw(seed, number) for number in range(count))


def _keep(out: Path | None, animation: Animation, difference: Difference) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    name = f"{difference.seed}-{difference.number}"
    suffix = animation.content_type.partition("/")[2]
    (out / f"{name}.{suffix}").write_bytes(animation.data)
    (out / f"{name}.json").write_text(json.dumps(asdict(difference)) + "\n")


def _compare(
    animation: Animation, shown: Shown, source: Source, report: Report
) -> Difference | None:
    frames = shown.animation
    if frames is None or not any(one.painted for one in frames.frames):
        report.not_shown += 1
        return None
    report.compared[animation.format] += 1
    found = _difference(animation.data, frames, source, report)
    if found is None:
        return None
    return Difference(report.seed, animation.number, animation.format, *found)


def _difference(
    data: bytes, shown: Frames, source: Source, report: Report
) -> tuple[int | None, float | None, str] | None:
    """Frame, levels and kind of the first difference, or of the worst one of the pictures."""
    by_number = {one.number: one for one in shown.frames}
    worst, at, seen = 0.0, 0, 0
    try:
        for number, seconds, image in source(data):
            seen += 1
            other = by_number.get(number)
            if other is None or other.painted is None:
                continue
            if image.size != other.painted.white.shape[1::-1]:
                return number, None, f"{image.size}, Chromium {other.painted.white.shape[1::-1]}"
            expected = _seconds(shown, other)
            if not math.isclose(seconds, expected, abs_tol=1e-3):
                return number, None, f"shown for {seconds} s, Chromium {expected} s"
            report.frames += 1
            worst, at = max((worst, at), (_levels(image, other.painted), number))
    except DecodeError as error:
        return None, None, f"{error.reason}, though Chromium shows it"
    if seen != shown.count:
        return None, None, f"{seen} frames, Chromium {shown.count}"
    if worst >= MOST_LEVELS:
        return at, round(worst, 2), "another picture"
    report.worst_levels = max(report.worst_levels, worst)
    return None


def _levels(image: Image.Image, painted: Painted) -> float:
    """The mean difference in grey levels: the larger one of those on white and on black."""
    pages = (_WHITE, painted.white), (_BLACK, painted.black)
    return max(_mean_difference(composed(image, page), pixels) for page, pixels in pages)


def _seconds(shown: Frames, frame: Frame) -> float:
    """How long Chromium shows a frame: the last one of an animation that ends stays."""
    if shown.count == 1:
        return 0.0
    if frame.number == shown.count - 1 and shown.repetitions >= 0:
        return math.inf
    return _SHORT_AS if frame.seconds < _SHORTEST else frame.seconds


def composed(image: Image.Image, page: float) -> npt.NDArray[np.float64]:
    """A frame on a page of one level: [height, width, 3]."""
    if image.mode == "CMYK":
        image = image.convert("RGB")
    rgba = np.asarray(image.convert("RGBA"), np.float64)
    alpha = rgba[..., 3:] / 255
    return np.asarray(rgba[..., :3] * alpha + page * (1 - alpha))


def _mean_difference(one: npt.NDArray[np.float64], other: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(one - other).mean())
