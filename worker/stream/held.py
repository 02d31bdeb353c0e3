"""What the pipeline holds of the stream: the measure for taking more."""

import threading
from typing import NamedTuple

from worker.records import Record


class Load(NamedTuple):
    """Records that have no result yet, and their bytes."""

    records: int
    bytes: int


class Held:
    """Counts records from `add` to `remove`; thread-safe.

    The ledger knows what is owned; this also counts what another owner screens by now and this
    replica has not dropped yet, so that a storm of rebalances cannot fill the memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._load = Load(0, 0)

    def add(self, record: Record) -> None:
        """It is held from now on."""
        self._change(1, record.size)

    def remove(self, record: Record) -> None:
        """It is finished or dropped."""
        self._change(-1, -record.size)

    def load(self) -> Load:
        """All that is held."""
        return self._load

    def _change(self, records: int, nbytes: int) -> None:
        with self._lock:
            self._load = Load(self._load.records + records, self._load.bytes + nbytes)
