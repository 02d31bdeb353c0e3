"""Differential fuzzing: all frames of random animations, by the worker and by Chromium."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.viewers.animation_files import Animation, draw
from tests.viewers.browser import Browser, File, Shown
from worker.errors import DecodeError
from worker.image import decode
from worker.settings import Limits

MOST_LEVELS = 2.0
"""The largest mean difference of a frame, in grey levels."""
MOST_FRAMES = 64
_CHUNK = 256
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
    other_durations: int = 0
    differences: list[Difference] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        differences = [asdict(one) for one in self.differences]
        values = {name: value for name, value in vars(self).items() if name != "differences"}
        return values | {"compared": dict(self.compared), "differences": differences}


class _Frame(Protocol):
    """What this comparison uses of the worker's frames."""

    image: Image.Image
    seconds: float
    number: int


def worker_frames(data: bytes) -> Decoded:
    """All frames as the worker composes them. Raises DecodeError."""
    frames = cast("Callable[[bytes, Limits], Iterable[_Frame]]", decode.frames)
    for frame in frames(data, Limits()):
        yield frame.number, frame.seconds, frame.image


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
    shown_frames = shown.animation
    pictures = (
        {one.number: one for one in shown_frames.frames if one.painted} if shown_frames else {}
    )
    if shown_frames is None or not pictures:
        report.not_shown += 1
        return None
    report.compared[animation.format] += 1

    def differs(what: str, frame: int | None = None, levels: float | None = None) -> Difference:
        return Difference(report.seed, animation.number, animation.format, frame, levels, what)

    worst, at, seen = 0.0, 0, 0
    try:
        for number, seconds, image in source(animation.data):
            seen += 1
            if number not in pictures:
                continue
            frame = pictures[number]
            painted = frame.painted
            assert painted is not None
            if image.size != painted.white.shape[1::-1]:
                return differs(f"{image.size}, Chromium {painted.white.shape[1::-1]}", number)
            report.frames += 1
            report.other_durations += abs(seconds - frame.seconds) > 1e-3
            levels = max(
                _mean_difference(composed(image, page), pixels)
                for page, pixels in ((_WHITE, painted.white), (_BLACK, painted.black))
            )
            if levels > worst:
                worst, at = levels, number
    except DecodeError as error:
        return differs(f"{error.reason}, though Chromium shows it")
    if seen != shown_frames.count:
        return differs(f"{seen} frames, Chromium {shown_frames.count}")
    report.worst_levels = max(report.worst_levels, worst)
    if worst >= MOST_LEVELS:
        return differs("another picture", at, round(worst, 2))
    return None


def composed(image: Image.Image, page: float) -> npt.NDArray[np.float64]:
    """A frame on a page of one level: [height, width, 3]."""
    if image.mode == "CMYK":
        image = image.convert("RGB")
    rgba = np.asarray(image.convert("RGBA"), np.float64)
    alpha = rgba[..., 3:] / 255
    return np.asarray(rgba[..., :3] * alpha + page * (1 - alpha))


def _mean_difference(one: npt.NDArray[np.float64], other: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(one - other).mean())
