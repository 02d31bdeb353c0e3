"""What a mirror keeps of each reference in memory: some fifty bytes, and where the rest is."""

import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

NO_ROWS = -1
ENABLED, CANARY = 1, 2
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
        ("views", "u1"),  # which views the rows are of: a code
        ("bank", "<i2"),  # a code
        ("flags", "u1"),
        ("expires", "<f8"),  # Unix seconds, infinite for never
        ("row_sum", "<u4"),  # checksums of what is stored
        ("blob_sum", "<u4"),
    ]
)

type Slots = npt.NDArray[np.int64]


def hash_of(reference_id: str) -> int:
    """64 bits of an id, the same in every process; ids that share them are told apart elsewhere."""
    raw = reference_id.encode()
    return crc32c(raw) << 32 | zlib.crc32(raw)


class Ids:
    """Slots by the hash of an id, 12 bytes each: sorted, in parts small enough to insert into."""

    _PARTS = 256

    def __init__(self, table: "Table") -> None:
        slots = table.taken.astype(np.int32)
        hashes = table.rows["hash"][slots]
        order = np.argsort(hashes)
        hashes, slots = hashes[order], slots[order]
        bounds = [part << 56 for part in range(1, self._PARTS)]
        cuts = np.searchsorted(hashes, np.array(bounds, dtype=np.uint64))
        self._hashes = np.split(hashes, cuts)
        self._slots = np.split(slots, cuts)

    def find(self, hashed: int) -> Iterator[int]:
        """The slots of ids with this hash, mostly none or one."""
        part, begin, end = self._range(hashed)
        return iter(self._slots[part][begin:end].tolist())

    def insert(self, hashed: int, slot: int) -> None:
        """Add an id."""
        part, begin, _ = self._range(hashed)
        self._hashes[part] = np.insert(self._hashes[part], begin, np.uint64(hashed))
        self._slots[part] = np.insert(self._slots[part], begin, slot)

    def remove(self, hashed: int, slot: int) -> None:
        """Take an id out that is there."""
        part, begin, end = self._range(hashed)
        at = begin + self._slots[part][begin:end].tolist().index(slot)
        self._hashes[part] = np.delete(self._hashes[part], at)
        self._slots[part] = np.delete(self._slots[part], at)

    def _range(self, hashed: int) -> tuple[int, int, int]:
        part, wanted = hashed >> 56, np.uint64(hashed)
        begin, end = (
            int(np.searchsorted(self._hashes[part], wanted, side)) for side in ("left", "right")
        )
        return part, begin, end


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
