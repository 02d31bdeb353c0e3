"""Measures the cases of the corpus: the worker's pictures beside what Chromium shows."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tests.viewers.browser import Browser, File, Painted, Pixels, Shown
from tests.viewers.corpus.case import Case, Draw, known_picture
from tests.viewers.screening import Descriptors, Screener

LEAST = 0.97
"""The lowest cosine at which two pictures count as the same."""
NEAR = 2.0
"""Grey levels, mean difference: nearer pictures are the same. The descriptors of two nearly flat
pictures may be far apart."""
SEEN = 0.75
"""The lowest cosine at which a viewer's picture counts as the known one."""


@dataclass(frozen=True)
class Outcome:
    """A case's result. Cosines are None where there is nothing to compare.

    Attributes:
        reason: Why the worker does not screen the file; None where it does.
        cosines: The best of the worker's pictures to what is shown on white, and on black where
            that differs.
        known: The known picture to what is shown, in the same order.
        renditions: How many pictures the worker describes.
        shown: Whether Chromium shows anything; otherwise the control is compared.
    """

    case: Case
    reason: str | None
    cosines: tuple[float, ...]
    known: tuple[float, ...]
    renditions: int
    shown: bool

    @property
    def worst(self) -> float | None:
        return min(self.cosines, default=None)

    @property
    def problem(self) -> str | None:
        """What does not hold, for people; None where the case holds."""
        if self.case.known and max(self.known, default=0) < SEEN:
            return f"no viewer shows the known picture (cosine {max(self.known, default=0):.2f})"
        if not self.known:
            return None  # no viewer shows anything
        if self.reason is not None:
            wanted = self.case.expected
            return None if self.reason == wanted else f"{self.reason}, expected {wanted}"
        return (
            None if self.worst is not None and self.worst >= LEAST else f"cosine {self.worst:.3f}"
        )


def made(case: Case) -> bytes:
    """The case's file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about odd files that it writes
        return case.make(known_picture())


def measure(
    cases: Sequence[Case],
    browser: Browser,
    screener: Screener,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Outcome]:
    """The outcomes of cases, in order; `progress` is called after each."""
    files = [File(made(case), case.content_type, case.frame or 0) for case in cases]
    (known,) = screener.describe([screener.square(np.asarray(known_picture()))])
    shown = browser.show(files, frames=1)
    for case, file, one in zip(cases, files, shown, strict=True):
        yield _measured(case, file.data, one, screener, known)
        progress()


def _measured(
    case: Case, data: bytes, shown: Shown, screener: Screener, known: Descriptors
) -> Outcome:
    screened = screener.screen(data)
    painted = painting(case, shown)
    drawn = [] if case.also is None else [case.also]
    if painted is None and case.control is not None:
        drawn.insert(0, case.control)
    squares = [] if painted is None else list(screener.squares(painted))
    squares += [_drawn(draw, screener) for draw in drawn]
    wanted = screener.describe(squares) if squares else np.empty((0, len(known)))
    cosines: tuple[float, ...] = ()
    count = 0
    if screened.squares is not None:
        count = len(screened.squares)
        found = screener.describe(screened.squares)
        cosines = tuple(
            1.0 if _is_near(square, screened.squares) else float((found @ one).max())
            for one, square in zip(wanted, squares, strict=True)
        )
    likeness = tuple(float(one @ known) for one in wanted)
    return Outcome(case, screened.reason, cosines, likeness, count, painted is not None)


def _is_near(square: Pixels, squares: Pixels) -> bool:
    """Whether one of the worker's squares [n, side, side, 3] is the same picture by its levels."""
    away = np.abs(squares.astype(np.int16) - square)
    return bool((away.mean(axis=(1, 2, 3)) < NEAR).any())


def _drawn(draw: Draw, screener: Screener) -> Pixels:
    return screener.square(np.asarray(draw(known_picture()).convert("RGB")))


def painting(case: Case, shown: Shown) -> Painted | None:
    """The picture that the case is about; None where Chromium shows nothing of it."""
    painted = shown.picture
    if case.frame is not None:
        frames = shown.animation.frames if shown.animation is not None else ()
        painted = next((one.painted for one in frames if one.number == case.frame), None)
    return None if painted is None or painted.is_empty else painted
