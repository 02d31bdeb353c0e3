"""Progress of long work on stderr: bars on a terminal, elsewhere a plain line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from worker.cli.common import stderr

SECONDS = 10.0
"""Between two plain lines."""


@contextmanager
def shares() -> Iterator[Callable[[str, float], object]]:
    """For work that tells what it does, and the share of it that is done, 0 to 1."""
    if not stderr.is_terminal:
        yield _Lines()
        return
    with _bars() as progress:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        yield on_progress


@contextmanager
def counts(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """For work that tells how many more of so many are done."""
    done = 0
    with shares() as on_progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            on_progress(what, done / max(1, total))

        yield advance


class _Lines:
    """Plain lines. What is done within `SECONDS` is not told."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, what: str, share: float) -> None:
        now = time.monotonic()
        if now - self._told >= SECONDS:
            self._told = now
            stderr.print(f"{what}: {share:.0%}", markup=False, highlight=False)


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, transient=True)
