"""The rows of a hot set: as stored, as compared, and how the probes do on them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.hotset.found import Crowd, Found, Numbers
from worker.hotset.index import NOBODYS, SEGMENT_ROWS, Index
from worker.hotset.local_copy import LocalCopy
from worker.hotset.probes import Best, Probes, Rows
from worker.hotset.types import Calibration

_LEAST, _TIMES = 256, 8
"""Rows that are computed anew for a query that asks for the `k` best: 256, or 8 `k`."""

type Lock = Callable[[], AbstractContextManager[object]]


class Matrix:
    """Descriptors in a copy and an index, and the calibration that they are compared under.

    Another calibration may have another projection, and that gives another index. Not thread-safe.
    """

    def __init__(self, index: Index, copy: LocalCopy) -> None:
        """`index` is empty, and projects nothing."""
        self.copy = copy
        self.calibration: Calibration | None = None
        self._index = index
        self._probes: Probes | None = None
        self._prepared: _Prepared | None = None
        # Of rows, their columns, and what the probes have found. Each is counted when it is done:
        # what was read meanwhile, to prepare something, is known to be out of date.
        self._changes = 0

    def __len__(self) -> int:
        """How many rows a search may see."""
        return len(self._index)

    @property
    def changes(self) -> int:
        """A number that is another one when rows have moved, or other best rows were found."""
        return self._changes

    @property
    def dims(self) -> int:
        """Of a descriptor."""
        return self._index.dims

    def put(self, first: int, descriptors: npt.NDArray[np.float16]) -> None:
        """Write rows `first`, `first + 1`, ...: fp16 [rows, dims], as stored; nobody's as yet.

        Raises StoreError where the copy cannot be written; then nothing was.
        """
        self.copy.write_rows(first, descriptors)
        self._index.put(first, descriptors)
        self._changes += 1

    def restore(self, count: int) -> None:
        """Take `count` rows in that the copy has."""
        for begin in range(0, count, SEGMENT_ROWS):
            self._index.put(begin, self.copy.segment(begin // SEGMENT_ROWS))

    def assign(self, numbers: Numbers, columns: npt.NDArray[np.integer]) -> None:
        """Set the columns of rows that were put; `NOBODYS` hides them."""
        if (prepared := self._prepared) and prepared.is_move(numbers, columns, self._changes):
            self._index, self._probes, self._prepared = prepared.index, prepared.probes, None
            self._changes += 1
            return
        before = self._index.columns_of(numbers)
        self._index.assign(numbers, columns)
        if self._probes is not None:
            self._probes.move(numbers, before, columns, self._rows_of(self._index))
        self._changes += bool((before != columns).any())

    def prepare_move(self, numbers: Numbers, columns: npt.NDArray[np.integer], lock: Lock) -> None:
        """Do what takes long of `assign`, while the rows are still searched where they are.

        `lock` keeps others out while it is read where they are.
        """
        done = self._prepared
        if self._probes is None or (done and done.is_move(numbers, columns, self._changes)):
            return
        with lock():
            changes, before = self._changes, self._index.columns_of(numbers)
            index, probes = self._index.twin(), self._probes.copy()
        index.assign(numbers, columns)
        probes.move(numbers, before, columns, self._rows_of(index))
        probes.look(probes.bereft, self._rows_of(index))
        self._prepared = _Prepared(self.calibration, (numbers, columns), changes, index, probes)

    def search(self, queries: Tensor, allowed: npt.NDArray[np.bool_], k: int) -> list[Found]:
        """Find for each query its `k` best rows; `allowed` is bool [n, columns].

        Where very many are about as good as the k-th, some may be left out: see `Index.search`.
        """
        columns = torch.from_numpy(allowed)
        most = max(_LEAST, _TIMES * k)
        return self._index.search(queries, columns, k, self.copy.read_rows, most)

    def search_columns(
        self, queries: Tensor, floors: npt.NDArray[np.float32], budget: int
    ) -> Crowd:
        """See `Index.search_columns`; `floors` is float32 [n, columns]."""
        return self._index.search_columns(
            queries, torch.from_numpy(floors), budget, self.copy.read_rows
        )

    def best(self, columns: Sequence[int]) -> Mapping[int, Best]:
        """How similar each probe of the calibration is to the best row of each of these columns."""
        self.look(columns)
        return self._probes.best(columns) if self._probes is not None else {}

    def prepared_best(self, columns: Sequence[int]) -> Mapping[int, Best]:
        """`best` under the calibration that was prepared; nothing where none was."""
        if self._prepared is None or self._prepared.probes is None:
            return {}
        return self._prepared.probes.best(columns)

    def look(self, columns: Sequence[int] | None = None) -> None:
        """Look for the best rows of probes that have lost theirs, in these columns or all.

        `best` does so too, while others may wait.
        """
        if self._probes is None:
            return
        bereft = self._probes.bereft
        if which := bereft if columns is None else bereft.intersection(columns):
            self._probes.look(which, self._rows_of(self._index))
            self._changes += 1

    def _rows_of(self, index: Index) -> Rows:
        return Rows(index, self.copy.read_rows)

    # -- calibrations --

    def prepare(self, calibration: Calibration | None) -> None:
        """Do what takes long of `calibrate`, while the rows are still searched as they are."""
        self._prepared = self._made(calibration)

    def calibrate(self, calibration: Calibration | None) -> None:
        """Compare under another calibration from now on."""
        prepared = self._prepared
        if prepared is None or not prepared.is_for(calibration, self._changes):
            prepared = self._made(calibration)
        self._index, self._probes, self._prepared = prepared.index, prepared.probes, None
        self.calibration = calibration

    def _made(self, calibration: Calibration | None) -> "_Prepared":
        changes = self._changes  # before anything is read: what expires meanwhile is one
        old, projection = self._index, calibration.projection if calibration else None
        index = old if projection is old.projection else old.like(projection, self.copy.segment)
        probes = self._probes_of(calibration, index) if calibration is not None else None
        return _Prepared(calibration, None, changes, index, probes)

    def _probes_of(self, calibration: Calibration, index: Index) -> Probes:
        vectors = calibration.probes.to(index.device)
        projected = vectors if index.projection is None else index.projection(vectors)
        probes, seen = Probes(calibration.probes, projected), index.seen
        nowhere = np.full_like(seen, NOBODYS)
        probes.move(seen, nowhere, index.columns_of(seen), self._rows_of(index))
        return probes

    # -- what outlives the process --

    def kept(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """What the probes have found, as arrays."""
        return self._probes.kept() if self._probes is not None else {}

    def resume(
        self, kept: Mapping[str, npt.NDArray[np.generic]], settle: Callable[[], object]
    ) -> None:
        """Go on with what the probes had found, after `settle` has assigned the rows.

        Raises as `Probes.take_up`.
        """
        probes, self._probes = self._probes, None
        settle()
        if probes is not None:
            probes.take_up(kept, self._index)
        self._probes = probes
        self.look()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Index and probes for a calibration, or where rows have moved, after so many changes."""

    calibration: Calibration | None
    move: tuple[Numbers, npt.NDArray[np.integer]] | None
    changes: int
    index: Index
    probes: Probes | None

    def is_for(self, calibration: Calibration | None, changes: int) -> bool:
        """Whether they are still right for a calibration."""
        right = self.calibration is calibration and self.changes == changes
        return right and self.move is None

    def is_move(self, numbers: Numbers, columns: npt.NDArray[np.integer], changes: int) -> bool:
        """Whether they are still right where these rows move to these columns."""
        if self.move is None or self.changes != changes:
            return False
        return np.array_equal(self.move[0], numbers) and np.array_equal(self.move[1], columns)
