"""What the pipeline holds of the stream: the measure for taking more."""

import threading
from typing import NamedTuple

from worker.records import Position


class Load(NamedTuple):
    """Records that have no result yet, and the bytes of them that are still needed."""

    records: int
    bytes: int


class Held:
    """Counts records from `add` to `remove`; thread-safe.

    The ledger knows what is owned; this also counts what another owner screens by now and this
    replica has not dropped yet, so that a storm of rebalances cannot fill the memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[Position, int] = {}
        self._bytes = 0

    def add(self, position: Position, nbytes: int) -> None:
        """So much is held of this record from now on."""
        with self._lock:
            self._sizes[position] = nbytes
            self._bytes += nbytes

    def shrink(self, position: Position, nbytes: int) -> None:
        """Only so much is held of it from now on. Nothing changes where it is finished already."""
        with self._lock:
            if (held := self._sizes.get(position)) is not None:
                self._sizes[position] = nbytes
                self._bytes += nbytes - held

    def remove(self, position: Position) -> None:
        """It is finished or dropped."""
        with self._lock:
            self._bytes -= self._sizes.pop(position)

    def load(self) -> Load:
        """All that is held."""
        with self._lock:
            return Load(len(self._sizes), self._bytes)
