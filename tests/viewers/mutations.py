"""Adversarial search: a known picture in changed containers, by the worker and by Chromium."""

import functools
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tests.viewers.browser import Browser, File, Painted, Pixels, Shown
from tests.viewers.corpus.case import known_picture
from tests.viewers.corpus.mutated import BASES, Base
from tests.viewers.mutators import mutate
from tests.viewers.parts import split
from tests.viewers.screening import Screener

SEEN, MISSED = 0.8, 0.5
"""A viewer shows the known picture from here on; the worker misses it below."""
_CHUNK = 256
_MOST_FRAMES = 6
_LEAST_SHARE = 0.2
"""Of the playing time: frames that are shown for less are not what a viewer sees."""
_SHORTEST, _SHORT_AS = 0.0101, 0.1
"""Seconds: Chromium shows frames of up to the first for as long as the second."""
_SAME_LEVELS = 2.0
"""Mean difference, in grey levels, below which two pictures are the same."""


@dataclass(frozen=True)
class Mutated:
    """A changed file. `changes` are the names of what was done to it."""

    number: int
    base: Base
    data: bytes
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A file that shows the known picture in Chromium, and that the worker would pass."""

    seed: int
    number: int
    format: str
    base: str
    changes: tuple[str, ...]
    browser: float
    worker: float


@dataclass
class Report:
    """What a run found; `outcomes` counts for each format.

    "same": the worker describes all that Chromium shows, pixel by pixel. "found": what it does not
    describe shows the known picture, and what it describes does as well. "another picture": what it
    does not describe shows something else.
    """

    seed: int
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    restarts: int = 0

    def count(self, name: str, outcome: str) -> None:
        self.outcomes.setdefault(name, Counter())[outcome] += 1

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        counts = {name: dict(counts) for name, counts in self.outcomes.items()}
        findings = [asdict(one) for one in self.findings]
        values = {"seed": self.seed, "restarts": self.restarts}
        return values | {"outcomes": counts, "findings": findings}


def draw(seed: int, number: int) -> Mutated:
    """The file of this number; the same for the same seed."""
    chance = random.Random(f"mutation {seed} {number}")
    base = chance.choice(BASES)
    data, changes = mutate(chance, split(base.format, file_of(base)))
    return Mutated(number, base, data, changes)


@functools.cache
def file_of(base: Base) -> bytes:
    return base.make(known_picture().resize((200, 160)))


def run(
    seed: int, count: int, out: Path | None = None, progress: Callable[[], object] = lambda: None
) -> Report:
    """Search `count` files; findings are kept in `out`."""
    report = Report(seed)
    with Browser() as browser, Screener() as screener:
        judge = _Judge(screener, report)
        drawn: Iterator[Mutated] = (draw(seed, number) for number in range(count))
        for chunk in itertools.batched(drawn, _CHUNK):
            files = [File(one.data, one.base.content_type) for one in chunk]
            shown = browser.show(files, frames=_MOST_FRAMES)
            for mutated, one in zip(chunk, shown, strict=True):
                finding = judge.judge(mutated, one)
                if finding is not None:
                    report.findings.append(finding)
                    _keep(out, mutated, finding)
                progress()
        report.restarts = browser.restarts
    return report


def _keep(out: Path | None, mutated: Mutated, finding: Finding) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    name = f"{finding.seed}-{finding.number}"
    suffix = mutated.base.content_type.partition("/")[2]
    (out / f"{name}.{suffix}").write_bytes(mutated.data)
    (out / f"{name}.json").write_text(json.dumps(asdict(finding)) + "\n")


class _Judge:
    """Compares what Chromium shows with what the worker describes."""

    def __init__(self, screener: Screener, report: Report) -> None:
        self._screener = screener
        self._report = report
        (self._known,) = screener.describe([screener.square(np.asarray(known_picture()))])

    def judge(self, mutated: Mutated, shown: Shown) -> Finding | None:
        """Count what became of a file. Where the worker has the same pixels, no model is asked."""
        name = mutated.base.format
        if shown.status in ("crashed", "timed_out"):
            self._report.count(name, f"chromium {shown.status}")
            return None
        pictures = [self._screener.square(one) for one in seen(shown)]
        if not pictures:
            self._report.count(name, "not shown")
            return None
        screened = self._screener.screen(mutated.data)
        if screened.squares is None:
            self._report.count(name, f"unscreened: {screened.reason}")
            return None
        described = list(screened.squares)
        further = [one for one in pictures if not any(is_equal(one, two) for two in described)]
        likeness = self._best(further)
        found = self._best(described) if likeness >= SEEN else -1.0
        if likeness < SEEN or found >= MISSED:
            outcome = "another picture" if likeness < SEEN else "found"
            self._report.count(name, outcome if further else "same")
            return None
        self._report.count(name, "missed")
        return Finding(
            self._report.seed,
            mutated.number,
            name,
            mutated.base.quirk,
            mutated.changes,
            round(likeness, 3),
            round(found, 3),
        )

    def _best(self, squares: list[Pixels]) -> float:
        """The highest cosine to the known picture; -1 where there is no picture."""
        if not squares:
            return -1.0
        return float((self._screener.describe(squares) @ self._known).max())


def is_equal(one: Pixels, other: Pixels) -> bool:
    """Whether two pictures are the same, pixel by pixel."""
    if one.shape != other.shape:
        return False
    difference = np.abs(one.astype(np.int16) - other)
    return float(difference.mean()) < _SAME_LEVELS


def seen(shown: Shown) -> list[Pixels]:
    """What a viewer sees on white and on black: the still, or frames that last.

    An animation's still counts where it is not the first frame, as in an AVIF that has both.
    """
    paintings = [shown.picture]
    animation = shown.animation
    if animation is not None and animation.count > 1 and animation.frames:
        first = animation.frames[0].painted
        if _is_painted_the_same(shown.picture, first):
            paintings = []
        times = [_SHORT_AS if one.seconds < _SHORTEST else one.seconds for one in animation.frames]
        whole = sum(times) * animation.count / len(times)
        paintings += [
            one.painted
            for one, time in zip(animation.frames, times, strict=True)
            if time >= _LEAST_SHARE * whole
        ]
    pixels = []
    for painted in paintings:
        if painted is not None and not painted.is_empty:
            pixels += [painted.white] if painted.is_opaque else [painted.white, painted.black]
    return pixels


def _is_painted_the_same(one: Painted | None, other: Painted | None) -> bool:
    if one is None or other is None:
        return one is other
    return is_equal(one.white, other.white) and is_equal(one.black, other.black)
