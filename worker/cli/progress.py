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
        tell = _Lines()
        yield lambda what, share: tell(f"{what}: {share:.0%}")
        return
    with _bars() as progress:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=share)

        yield on_progress


@contextmanager
def counts(what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """For work that tells how many more are done, of so many where that is known."""
    if stderr.is_terminal:
        with _bars() as progress:
            task = progress.add_task(what, total=total)
            yield lambda count: progress.advance(task, count)
        return
    tell, done, of = _Lines(), 0, f" of {total}" if total is not None else ""

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(f"{what}: {done}{of}")

    yield advance


class _Lines:
    """Plain lines. What is done within `SECONDS` is not told."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._told >= SECONDS:
            self._told = now
            stderr.print(line, markup=False, highlight=False)


def _bars() -> Progress:
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, transient=True)
