"""All phases of a run, one after the other, within a time."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.faults import CALM, FAULTS, calm
from tests.chaos.outage import VARIANTS, outages
from tests.chaos.phase import Phase, Row, look_once_more, nothing_excused, unless_given
from tests.chaos.scene import Servers, scene, servers
from tests.chaos.traffic import plan

OUTAGE = "output_away"
NAMES = (*FAULTS, OUTAGE)
OUTAGE_RATE = 50
WARM = 100
REPLICAS = 2
PATIENCE_SECONDS = 90.0


@dataclass(frozen=True)
class Course:
    """What a run does. `uploads` in all but the outage; `seconds` of traffic in each phase."""

    seed: int
    deliveries: Sequence[str]
    faults: Sequence[str]
    uploads: int
    seconds: float
    outage_seconds: float
    limit_seconds: float

    @property
    def in_phase(self) -> int:
        """Uploads of one phase: every phase of a run has the same."""
        faults = [name for name in self.faults if name != OUTAGE]
        return -(-self.uploads // (len(self.deliveries) * (1 + len(faults))))


class Run:
    """Goes through a course and collects its `rows`."""

    def __init__(self, course: Course, console: Console, folder: Path) -> None:
        """`folder` is for the logs of the replicas."""
        self.rows: list[Row] = []
        self._course = course
        self._console = console
        self._folder = folder
        self._until = time.monotonic() + course.limit_seconds
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} answered"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def go(self) -> None:
        """Until all is done, or the time is over: what was not run is told as a failure."""
        course = self._course
        with self._progress, servers(self._folder) as shared:
            for delivery in course.deliveries:
                faults = [name for name in FAULTS if name in course.faults]
                if faults:
                    self._deliver(shared, delivery, faults)
            if OUTAGE in course.faults:
                self._outage(shared)

    @property
    def missing(self) -> list[str]:
        """Phases of the course that have no row."""
        course = self._course
        faults = [CALM, *(f for f in FAULTS if f in course.faults)]
        wanted = [(d, f) for d in course.deliveries for f in faults if len(faults) > 1]
        if OUTAGE in course.faults:
            wanted += [("at_least_once", variant) for variant in VARIANTS]
        had = {(row.delivery, row.fault) for row in self.rows}
        return [" ".join(one) for one in wanted if one not in had]

    def _deliver(self, shared: Servers, delivery: str, faults: Sequence[str]) -> None:
        course = self._course
        uploads = plan(course.seed, course.in_phase)
        expected = None
        setting = {"COPYSIEVE_KAFKA__DELIVERY": delivery}
        with scene(shared, self._tell, setting, REPLICAS) as stage:
            for name in (CALM, *faults):
                if time.monotonic() > self._until - course.seconds:
                    return
                phase = Phase(stage, name, uploads, course.seconds)
                with self._shown(f"{delivery} {name}", len(uploads)) as show:
                    stage.watch = partial(_show, show, phase)
                    phase.begin()
                    chance = random.Random(f"{course.seed} {delivery} {name}")
                    FAULTS.get(name, calm)(stage, chance, course.seconds)
                    excuse = unless_given(shared.host, name)
                    excuse = excuse if name == "image_host" else nothing_excused
                    self._add(phase.finish(delivery, expected, excuse, self._left()))
                expected = expected or self.rows[-1].judged.answers
            stage.watch = lambda: None
            stage.dismiss_all()
            look_once_more(stage, self.rows[-1])

    def _outage(self, shared: Servers) -> None:
        course = self._course
        seconds = course.outage_seconds
        if time.monotonic() > self._until - seconds:
            return
        warm, uploads = plan(course.seed + 1, WARM), plan(course.seed, int(OUTAGE_RATE * seconds))
        with self._shown(OUTAGE, len(uploads)) as show:
            for row in outages(shared, self._tell, show, warm, uploads, seconds, self._left):
                self._add(row)

    def _left(self) -> float:
        return max(5.0, min(PATIENCE_SECONDS, self._until - time.monotonic()))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        told = f"{row.judged.uploads:,} uploads, longest stall {row.judged.stall:.1f} s"
        self._console.print(f"[b]{row.delivery} {row.fault}[/]: {told}", highlight=False)
        if row.notes:
            notes = ", ".join(f"{name} {value:g}" for name, value in row.notes.items())
            self._console.print(f"  {notes}", highlight=False)
        for failure in row.failures:
            self._console.print(f"  [red]{escape(failure)}[/]", highlight=False)

    def _tell(self, text: str) -> None:
        self._console.print(f"  {time.strftime('%X')} {escape(text)}", style="dim", highlight=False)

    @contextlib.contextmanager
    def _shown(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        task = self._progress.add_task(text, total=total)
        try:
            yield lambda done: self._progress.update(task, completed=done)
        finally:
            self._progress.remove_task(task)


def _show(show: Callable[[int], None], phase: Phase) -> None:
    show(phase.answered)
