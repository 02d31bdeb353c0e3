"""The offset ledger: what of each partition is in flight, what may be sent, what may be committed.

Pure bookkeeping, without Kafka and without a clock. Records finish out of order; the watermark is
the first offset that is not finished. Only offsets in flight are remembered: between the watermark
and the last record taken, everything that is not in flight is finished (or is a gap that Kafka will
never deliver). A commit is the watermark, and in its metadata the lengths of the runs above it, so
that the next owner skips what is finished there.

A record's way: `take` -> `release` (its results may be sent) -> `acknowledge` (Kafka has them all).
Every assignment of a partition has an epoch of its own, and what carries an older one is refused:
that is the only fence against an old owner, for Kafka checks member and generation, not ownership.
"""

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.records import Position

METADATA_BYTES = 3 * 1024
"""Kafka keeps 4,096 bytes of metadata with a commit; the rest is room for other people's tools."""

_VERSION = "r1:"
_NO_LEADER_EPOCH = -1


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Commit(NamedTuple):
    """What to commit for one partition: the watermark, and the runs of finished offsets above."""

    offset: int
    metadata: str
    leader_epoch: int


type Run = tuple[int, int]
"""Finished offsets `start <= offset < stop`."""


@dataclass(slots=True)
class _InFlight:
    size: int
    released: bool = False


@dataclass(slots=True)
class _Assignment:
    epoch: int
    end: int
    inherited: list[Run]
    committed: Commit
    in_flight: dict[int, _InFlight] = field(default_factory=dict)
    leader_epoch: int = _NO_LEADER_EPOCH
    revoking: bool = False
    full: bool = False

    @property
    def watermark(self) -> int:
        return next(iter(self.in_flight), self.end)

    def finished_runs(self) -> Iterator[Run]:
        """Runs of finished offsets above the watermark, ascending, none empty."""
        cursor = self.watermark
        for offset in self.in_flight:
            if offset > cursor:
                yield cursor, offset
            cursor = offset + 1
        if self.end > cursor:
            yield cursor, self.end
        for start, stop in self.inherited:
            if stop > self.end:
                yield max(start, self.end), stop


class Ledger:
    """Thread-safe; every method is short and none blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._assignments: dict[Partition, _Assignment] = {}
        self._epochs = 0
        self._records = 0
        self._bytes = 0

    @property
    def in_flight_records(self) -> int:
        """Records taken and neither finished nor dropped."""
        return self._records

    @property
    def in_flight_bytes(self) -> int:
        """Their bytes."""
        return self._bytes

    def assign(self, partition: Partition, offset: int, metadata: str = "") -> int:
        """Begin a new epoch of a partition at a committed offset, and return it.

        What was in flight of the partition is dropped. Metadata that cannot be read is taken as
        empty: then some finished records are screened again, with the same verdict ids.
        """
        with self._lock:
            self._forget(partition)
            return self._assign(partition, offset, metadata)

    def restart(self) -> dict[Partition, int]:
        """Begin a new epoch of every partition at its watermark; returns where to seek to."""
        with self._lock:
            starts = {}
            for partition, assignment in list(self._assignments.items()):
                metadata, _ = encode_runs(assignment.watermark, assignment.finished_runs())
                starts[partition] = assignment.watermark
                self._forget(partition)
                self._assign(partition, starts[partition], metadata)
                self._assignments[partition].committed = assignment.committed
            return starts

    def take(self, position: Position, size: int, leader_epoch: int = _NO_LEADER_EPOCH) -> bool:
        """Account for a delivered record. False: finished by an earlier owner, skip it.

        Raises ValueError for a record that is not above the last one taken, or of another epoch.
        """
        with self._lock:
            assignment = self._assignments.get(Partition(position.topic, position.partition))
            if assignment is None or assignment.epoch != position.epoch:
                raise ValueError(f"{position} is not assigned")
            if position.offset < assignment.end:
                raise ValueError(f"{position} is below {assignment.end}, the next one expected")
            assignment.end = position.offset + 1
            assignment.leader_epoch = leader_epoch
            runs = assignment.inherited
            while runs and runs[0][1] <= position.offset:
                del runs[0]
            if runs and runs[0][0] <= position.offset:
                return False
            assignment.in_flight[position.offset] = _InFlight(size)
            self._count(1, size)
            return True

    def release(self, position: Position) -> bool:
        """Whether the record's results may be sent now. False: it is another's, drop them."""
        with self._lock:
            assignment = self._current(position)
            if assignment is None or assignment.revoking:
                return False
            entry = assignment.in_flight.get(position.offset)
            if entry is None or entry.released:
                return False
            entry.released = True
            return True

    def acknowledge(self, position: Position) -> bool:
        """Kafka has every result of the record: it is finished. False: of an older epoch."""
        with self._lock:
            assignment = self._current(position)
            if assignment is None:
                return False
            entry = assignment.in_flight.get(position.offset)
            if entry is None or not entry.released:
                return False
            del assignment.in_flight[position.offset]
            self._count(-1, -entry.size)
            return True

    def advance(self, partition: Partition, position: int) -> None:
        """Nothing is in flight, and the consumer stands at `position`: all below is finished.

        Kafka's control records take offsets that are never delivered.
        """
        with self._lock:
            assignment = self._assignments.get(partition)
            if assignment and not assignment.in_flight:
                assignment.end = max(assignment.end, position)

    def revoke(self, partitions: Collection[Partition]) -> None:
        """Nothing of these partitions is released any more; acknowledgements still count."""
        with self._lock:
            for partition in partitions:
                if partition in self._assignments:
                    self._assignments[partition].revoking = True

    def unacknowledged(self, partitions: Collection[Partition]) -> int:
        """How many records of these partitions were released and not acknowledged yet."""
        with self._lock:
            return sum(
                entry.released
                for partition in partitions
                if partition in self._assignments
                for entry in self._assignments[partition].in_flight.values()
            )

    def drop(self, partitions: Collection[Partition]) -> int:
        """Forget these partitions; returns how many records were in flight."""
        with self._lock:
            return sum(self._forget(partition) for partition in partitions)

    def owns(self, position: Position) -> bool:
        """Whether the position's epoch is the current one: if not, work on it is wasted."""
        with self._lock:
            return self._current(position) is not None

    def epoch(self, partition: Partition) -> int | None:
        """The current epoch of a partition, or None while it is not assigned."""
        with self._lock:
            assignment = self._assignments.get(partition)
            return assignment.epoch if assignment else None

    def expected(self, partition: Partition) -> int:
        """The offset after the last one taken. Raises KeyError while it is not assigned."""
        with self._lock:
            return self._assignments[partition].end

    def assigned(self) -> list[Partition]:
        """The partitions with a current epoch."""
        with self._lock:
            return list(self._assignments)

    def full(self) -> set[Partition]:
        """Partitions whose runs no longer fit the metadata: take nothing more of them for now."""
        with self._lock:
            return {p for p, assignment in self._assignments.items() if assignment.full}

    def watermarks(self) -> dict[Partition, tuple[int, int]]:
        """Watermark and end (offset after the last one taken) of every assigned partition."""
        with self._lock:
            return {p: (a.watermark, a.end) for p, a in self._assignments.items()}

    def commits(
        self, partitions: Collection[Partition] | None = None, *, changed: bool = True
    ) -> dict[Partition, Commit]:
        """What to commit, of all or of the given partitions; `changed`: since the last commit."""
        due: dict[Partition, Commit] = {}
        with self._lock:
            for partition, assignment in self._assignments.items():
                if partitions is not None and partition not in partitions:
                    continue
                metadata, assignment.full = encode_runs(
                    assignment.watermark, assignment.finished_runs()
                )
                commit = Commit(assignment.watermark, metadata, assignment.leader_epoch)
                if not changed or commit[:2] != assignment.committed[:2]:
                    due[partition] = commit
        return due

    def committed(self, commits: dict[Partition, Commit]) -> None:
        """Kafka has these commits. One that an assignment did not ask for only repeats later."""
        with self._lock:
            for partition, commit in commits.items():
                if partition in self._assignments:
                    self._assignments[partition].committed = commit

    def _assign(self, partition: Partition, offset: int, metadata: str) -> int:
        self._epochs += 1
        self._assignments[partition] = _Assignment(
            epoch=self._epochs,
            end=offset,
            inherited=decode_runs(offset, metadata),
            committed=Commit(offset, metadata, _NO_LEADER_EPOCH),
        )
        return self._epochs

    def _current(self, position: Position) -> _Assignment | None:
        assignment = self._assignments.get(Partition(position.topic, position.partition))
        if assignment is None or assignment.epoch != position.epoch:
            return None
        return assignment

    def _forget(self, partition: Partition) -> int:
        assignment = self._assignments.pop(partition, None)
        if assignment is None:
            return 0
        lost = assignment.in_flight.values()
        self._count(-len(lost), -sum(entry.size for entry in lost))
        return len(lost)

    def _count(self, records: int, size: int) -> None:
        self._records += records
        self._bytes += size


def encode_runs(watermark: int, runs: Iterator[Run]) -> tuple[str, bool]:
    """Runs of finished offsets as text, and whether some were left out for want of room.

    `r1:3,5,1,2`: from the watermark 3 offsets not finished, 5 finished, 1 not, 2 finished. What is
    left out counts as not finished.
    """
    text, cursor = _VERSION, watermark
    for start, stop in runs:
        more = f"{start - cursor},{stop - start},"
        if len(text) + len(more) > METADATA_BYTES:
            return text.rstrip(","), True
        text += more
        cursor = stop
    return ("" if text == _VERSION else text.rstrip(",")), False


def decode_runs(watermark: int, text: str) -> list[Run]:
    """The inverse of `encode_runs`; an empty list for anything else, of another tool's, say."""
    if not text.startswith(_VERSION):
        return []
    lengths = text.removeprefix(_VERSION).split(",")
    if len(lengths) % 2 or not all(n.isascii() and n.isdecimal() for n in lengths):
        return []
    runs, cursor = [], watermark
    for gap, length in zip(lengths[::2], lengths[1::2], strict=True):
        start = cursor + int(gap)
        cursor = start + int(length)
        runs.append((start, cursor))
    return runs
