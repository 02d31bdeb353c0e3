"""What a mirror keeps of each reference in memory: some fifty bytes, and where the rest is."""

import zlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

NO_ROWS = -1
ENABLED, CANARY, SHADOW = 1, 2, 4
"""Bits of `flags`."""

FIELDS = np.dtype(
    [
        ("hash", "<u8"),
        ("offset", "<i8"),  # of its record in the local copy
        ("length", "<i4"),  # of the record; 0: the slot is free
        ("name", "u1"),  # bytes of the record that are the id
        (
            "first",
            "<i4",
        ),  # its first row of the index, NO_ROWS where the model has not described it
        ("views", "<u2"),  # which views the rows are of: a code; there are 1,956 lists of six
        ("bank", "<i2"),  # a code
        ("flags", "u1"),
        ("expires", "<f8"),  # Unix seconds, infinite for never
        ("row_sum", "<u4"),  # checksums of what is stored
        ("blob_sum", "<u4"),
    ]
)

_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")

type Slots = npt.NDArray[np.int64]


def hash_of(reference_id: str) -> int:
    """64 bits of an id, the same in every process; ids that share them are told apart elsewhere."""
    raw = reference_id.encode()
    return crc32c(raw) << 32 | zlib.crc32(raw)


class Ids:
    """Slots by the hash of an id: sorted, 12 bytes each, and those added since in a dictionary.

    What is found may be another id with the same hash, or a slot that was given to another one.
    """

    def __init__(self, table: "Table") -> None:
        slots = table.taken.astype(np.int32)
        hashes = table.rows["hash"][slots]
        order = np.argsort(hashes)
        self._hashes, self._slots = hashes[order], slots[order]
        self._fresh: dict[int, list[int]] = {}

    @property
    def fresh(self) -> int:
        """How many were added since: time for another one when they are many."""
        return len(self._fresh)

    def find(self, hashed: int) -> list[int]:
        """The slots that ids with this hash have, or had."""
        wanted = np.uint64(hashed)
        begin, end = (int(np.searchsorted(self._hashes, wanted, side)) for side in _SIDES)
        return [*self._slots[begin:end].tolist(), *self._fresh.get(hashed, [])]

    def insert(self, hashed: int, slot: int) -> None:
        """Add an id."""
        self._fresh.setdefault(hashed, []).append(slot)


class Table:
    """Slots of `FIELDS`; a slot that is free is given out again."""

    def __init__(self, rows: npt.NDArray[np.void] | None = None) -> None:
        self._rows = np.zeros(0, dtype=FIELDS) if rows is None else rows
        self._used = len(self._rows)
        self._free: list[int] = np.flatnonzero(self._rows["length"] == 0).tolist()

    def __len__(self) -> int:
        return self._used - len(self._free)

    @property
    def rows(self) -> npt.NDArray[np.void]:
        """All slots that were given out, free ones too; a view."""
        return self._rows[: self._used]

    @property
    def taken(self) -> Slots:
        """The slots that are not free."""
        return np.flatnonzero(self.rows["length"])

    def take(self, count: int = 1) -> Slots:
        """Give slots out."""
        recycled = [self._free.pop() for _ in range(min(count, len(self._free)))]
        begin, self._used = self._used, self._used + count - len(recycled)
        if self._used > len(self._rows):
            more = np.zeros(max(self._used, len(self._rows) * 9 // 8) - len(self._rows), FIELDS)
            self._rows = np.concatenate([self._rows, more])
        return np.array([*recycled, *range(begin, self._used)], dtype=np.int64)

    def free(self, slot: int) -> None:
        """Take a slot back."""
        self._rows[slot] = np.zeros((), dtype=FIELDS)
        self._free.append(slot)


class Runs:
    """Which rows of the index are whose: runs of numbers, given out and taken back."""

    def __init__(self, owners: npt.NDArray[np.int32] | None = None) -> None:
        self._owners = np.empty(0, dtype=np.int32) if owners is None else owners
        self._used = len(self._owners)
        self._free: dict[int, list[int]] = {}
        for first, length in _gaps(self._owners[: self._used]):
            self.give_back(first, length)

    def owner(self, number: int) -> int:
        """The slot whose row it is."""
        return int(self._owners[number])

    @property
    def owners(self) -> npt.NDArray[np.int32]:
        """Slots by number, -1 where a row is nobody's; a view."""
        return self._owners[: self._used]

    def take(self, owners: Sequence[int] | Slots, views: int) -> npt.NDArray[np.int32]:
        """Give each owner a run of `views` rows; returns their first ones."""
        recycled: list[int] = []
        while len(recycled) < len(owners) and (first := self._spare(views)) is not None:
            recycled.append(first)
        begin, fresh = self._used, len(owners) - len(recycled)
        self._used += fresh * views
        if self._used > len(self._owners):
            more = max(self._used, len(self._owners) * 9 // 8) - len(self._owners)
            self._owners = np.concatenate([self._owners, np.full(more, -1, dtype=np.int32)])
        firsts = np.array([*recycled, *range(begin, self._used, views)], dtype=np.int32)
        self._owners[firsts[:, None] + np.arange(views)] = np.asarray(owners)[:, None]
        return firsts

    def give_back(self, first: int, views: int) -> None:
        """Take a run back, to be given out again."""
        self._owners[first : first + views] = -1
        self._free.setdefault(views, []).append(first)

    def _spare(self, views: int) -> int | None:
        """A run that was given back, or a part of a longer one."""
        length = min((one for one, runs in self._free.items() if runs and one >= views), default=0)
        if not length:
            return None
        first = self._free[length].pop()
        if length > views:
            self._free.setdefault(length - views, []).append(first + views)
        return first


def _gaps(owners: npt.NDArray[np.int32]) -> Iterable[tuple[int, int]]:
    """Runs of rows that are nobody's: where each begins, how long it is."""
    nobodys = np.concatenate([[False], owners < 0, [False]])
    edges = np.flatnonzero(nobodys[1:] != nobodys[:-1])
    return zip(edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist(), strict=True)
