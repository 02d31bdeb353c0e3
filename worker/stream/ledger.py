"""The offset ledger: what of each partition is in flight, what may be sent, what may be committed.

Pure bookkeeping, without Kafka and without a clock. Records finish out of order; the watermark is
the first offset that is not finished. Only offsets in flight are remembered: between the watermark
and the last record taken, everything that is not in flight is finished (or is a gap that Kafka will
never deliver). A commit is the watermark, and in its metadata the lengths of the runs above it, so
that the next owner skips what is finished there.

A record's way: `take` -> `release` (its results may be sent) -> `acknowledge` (Kafka has them all;
of a transaction, when it is committed).
Every assignment of a partition has an epoch of its own, and what carries an older one is refused:
that is the only fence against an old owner, for Kafka checks member and generation, not ownership.
"""

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.records import Position
from worker.stream.metadata import (
    BITMAP_OFFSETS,
    NO_LEADER_EPOCH,
    Log,
    Metadata,
    Run,
    encode,
)

_TAKEN, _TAKEN_WIDE = 1_000, 100
_WIDE_SPAN = BITMAP_OFFSETS - 2 * _TAKEN
_FULL_RUNS = 150
"""With what an owner takes beyond it, and its heir once more, at most 350 runs: as text, those of
100,000 offsets each still fit."""


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Commit(NamedTuple):
    """What to commit for one partition: the watermark, and the runs of finished offsets above."""

    offset: int
    metadata: str
    leader_epoch: int


class Start(NamedTuple):
    """Where a partition is begun: the first offset to take, and what is finished beyond it."""

    offset: int
    runs: tuple[Run, ...] = ()
    log: Log = Log()
    leader_epoch: int = NO_LEADER_EPOCH
    committed: Commit | None = None
    """What Kafka has, where that may differ; None: nothing that has to be replaced."""


@dataclass(slots=True)
class _Assignment:
    epoch: int
    end: int
    inherited: list[Run]
    log: Log
    leader_epoch: int
    """The highest of what was taken, or was finished by an earlier owner."""
    committed: tuple[int, str] | None = None
    in_flight: dict[int, bool] = field(default_factory=dict)
    """Offsets taken and not finished, ascending, and whether each was released."""
    revoking: bool = False

    @property
    def watermark(self) -> int:
        return next(iter(self.in_flight), self.end)

    def finished_runs(self, in_flight: Collection[int]) -> Iterator[Run]:
        """Runs of finished offsets above the first in flight, ascending, none empty."""
        cursor = next(iter(in_flight), self.end)
        for offset in in_flight:
            if offset > cursor:
                yield cursor, offset
            cursor = offset + 1
        if self.end > cursor:
            yield cursor, self.end
        for start, stop in self.inherited:
            if stop > self.end:
                yield max(start, self.end), stop

    @property
    def full(self) -> bool:
        """Whether what is finished could outgrow the metadata if more were taken.

        With nothing in flight it cannot: what is taken then is the watermark, and moves it on.
        """
        runs = len(self.in_flight) + len(self.inherited)
        return bool(self.in_flight) and self.wide and runs >= _FULL_RUNS

    @property
    def wide(self) -> bool:
        """Whether bits might no longer tell what is finished: it has to be few runs."""
        last = self.inherited[-1][1] if self.inherited else self.end
        return max(last, self.end) - self.watermark >= _WIDE_SPAN

    def commit(self, finishing: Collection[int] = ()) -> Commit:
        """What to commit; `finishing`: as if these offsets were finished as well."""
        left = [offset for offset in self.in_flight if offset not in finishing]
        watermark = left[0] if left else self.end
        runs = list(self.finished_runs(left))
        metadata = encode(Metadata(self.log, watermark, self.leader_epoch, runs))
        return Commit(watermark, metadata, self.leader_epoch)


class Ledger:
    """Thread-safe; every method is short and none blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._assignments: dict[Partition, _Assignment] = {}
        self._epochs = 0

    @property
    def in_flight(self) -> int:
        """Records taken and neither finished nor dropped."""
        with self._lock:
            return sum(len(assignment.in_flight) for assignment in self._assignments.values())

    def assign(self, partition: Partition, start: Start) -> int:
        """Begin a new epoch of a partition, and return it. What was in flight of it is dropped."""
        with self._lock:
            self._forget(partition)
            self._epochs += 1
            assignment = _Assignment(
                epoch=self._epochs,
                end=start.offset,
                inherited=list(start.runs),
                log=start.log,
                leader_epoch=start.leader_epoch,
            )
            assignment.committed = (start.committed or assignment.commit())[:2]
            self._assignments[partition] = assignment
            return self._epochs

    def take(self, position: Position, leader_epoch: int = NO_LEADER_EPOCH) -> bool:
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
            assignment.leader_epoch = max(assignment.leader_epoch, leader_epoch)
            runs = assignment.inherited
            while runs and runs[0][1] <= position.offset:
                del runs[0]
            if runs and runs[0][0] <= position.offset:
                return False
            assignment.in_flight[position.offset] = False
            return True

    def release(self, position: Position) -> bool:
        """Whether the record's results may be sent now. False: it is another's, drop them."""
        with self._lock:
            assignment = self._current(position)
            if assignment is None or assignment.revoking:
                return False
            if assignment.in_flight.get(position.offset, True):
                return False
            assignment.in_flight[position.offset] = True
            return True

    def acknowledge(self, position: Position) -> bool:
        """Kafka has every result of the record: it is finished. False: of an older epoch."""
        with self._lock:
            assignment = self._current(position)
            if assignment is None:
                return False
            if not assignment.in_flight.get(position.offset, False):
                return False
            del assignment.in_flight[position.offset]
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
                sum(self._assignments[partition].in_flight.values())
                for partition in partitions
                if partition in self._assignments
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

    def unfinished(self, partition: Partition, start: int, stop: int) -> int:
        """How many offsets from `start`, not taken yet, to `stop` no earlier owner had finished.

        Raises KeyError while the partition is not assigned.
        """
        with self._lock:
            runs = self._assignments[partition].inherited
            clipped = ((max(first, start), min(last, stop)) for first, last in runs)
            return max(0, stop - start) - sum(max(0, last - first) for first, last in clipped)

    def log(self, partition: Partition) -> Log | None:
        """The log that the partition was begun in, or None while it is not assigned."""
        with self._lock:
            assignment = self._assignments.get(partition)
            return assignment.log if assignment else None

    def assigned(self) -> list[Partition]:
        """The partitions with a current epoch."""
        with self._lock:
            return list(self._assignments)

    def full(self) -> set[Partition]:
        """Partitions whose runs might not fit the metadata: take nothing more of them for now."""
        with self._lock:
            return {p for p, assignment in self._assignments.items() if assignment.full}

    def most_to_take(self) -> int:
        """How many records may be taken until `full` is looked at again."""
        with self._lock:
            wide = any(assignment.wide for assignment in self._assignments.values())
            return _TAKEN_WIDE if wide else _TAKEN

    def watermarks(self) -> dict[Partition, tuple[int, int]]:
        """Watermark and end (offset after the last one taken) of every assigned partition."""
        with self._lock:
            return {p: (a.watermark, a.end) for p, a in self._assignments.items()}

    def commits(
        self, partitions: Collection[Partition] | None = None, *, changed: bool = True
    ) -> dict[Partition, Commit]:
        """What to commit, of all or of the given partitions; `changed`: since the last commit."""
        with self._lock:
            chosen = self._assignments if partitions is None else partitions
            return self._due(chosen, {}, changed=changed)

    def commits_with(self, positions: Collection[Position]) -> dict[Partition, Commit] | None:
        """What to commit along with the results of these released records, in one transaction.

        None: one of them is another's now, and the transaction must not be committed. Of partitions
        that are revoked nothing but these: what was given up may have been committed after all.
        """
        with self._lock:
            finishing: dict[Partition, set[int]] = {}
            for position in positions:
                if self._current(position) is None:
                    return None
                at = Partition(position.topic, position.partition)
                finishing.setdefault(at, set()).add(position.offset)
            still = [p for p, a in self._assignments.items() if not a.revoking or p in finishing]
            return self._due(still, finishing, changed=True)

    def committed(self, commits: dict[Partition, Commit]) -> None:
        """Kafka has these commits. One that an assignment did not ask for only repeats later."""
        with self._lock:
            for partition, commit in commits.items():
                if partition in self._assignments:
                    self._assignments[partition].committed = commit[:2]

    def _due(
        self,
        partitions: Collection[Partition],
        finishing: dict[Partition, set[int]],
        *,
        changed: bool,
    ) -> dict[Partition, Commit]:
        due: dict[Partition, Commit] = {}
        for partition in partitions:
            if (assignment := self._assignments.get(partition)) is None:
                continue
            commit = assignment.commit(finishing.get(partition, ()))
            if not changed or commit[:2] != assignment.committed:
                due[partition] = commit
        return due

    def _current(self, position: Position) -> _Assignment | None:
        assignment = self._assignments.get(Partition(position.topic, position.partition))
        if assignment is None or assignment.epoch != position.epoch:
            return None
        return assignment

    def _forget(self, partition: Partition) -> int:
        assignment = self._assignments.pop(partition, None)
        return len(assignment.in_flight) if assignment else 0
