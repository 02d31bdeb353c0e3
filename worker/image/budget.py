"""A bound on the memory of images, fetched or decoded, shared by all threads."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge


class ByteBudget:
    """Hands out at most `limit` bytes at a time, first come, first served.

    A request above the whole limit waits until nothing is reserved, and passes alone. Small ones do
    not overtake a large one that waits, or it might wait forever.
    """

    def __init__(self, limit: int, gauge: Gauge) -> None:
        self._limit = limit
        self._gauge = gauge
        self._reserved = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, nbytes: int) -> Iterator[None]:
        """Block until `nbytes` are free, hold them inside the `with`."""
        self._take(nbytes)
        try:
            yield
        finally:
            self._change(-nbytes)

    def _take(self, nbytes: int) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._waiting[0] is ticket and self._has_room(nbytes)
                )
                self._change(nbytes)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _has_room(self, nbytes: int) -> bool:
        return not self._reserved or self._reserved + nbytes <= self._limit

    def _change(self, nbytes: int) -> None:
        with self._changed:
            self._reserved += nbytes
            self._gauge.inc(nbytes)
            self._changed.notify_all()
