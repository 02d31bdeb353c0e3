"""Which row of each column is most similar to each of a set of probes, kept up to date.

The probes are a calibration's null images: how they do against a bank tells what benign uploads do.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.hotset.found import Numbers
from worker.hotset.index import NOBODYS, QUERIES_AT_ONCE, Exact, Index

_NONE = -1
_ROWS_AT_ONCE = 1 << 12
_CELLS_AT_ONCE = 1 << 24
_SEARCH_COSTS = 2
"""How many products one cell of a search takes as long as, about, with all that comes after it."""

type Best = npt.NDArray[np.float32]
"""The best similarity of each probe, float32 [probes]; -inf where there is no row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows by their numbers: where they are compared, and as they are stored."""

    index: Index
    stored: Exact


@dataclass(slots=True)
class Probes:
    """Fixed vectors, and their best row in each column. Not thread-safe.

    `vectors` are fp32 [probes, dims], L2-normalised; `projected` the same on the device, where they
    are compared. What is handed out is never changed in place, so a search may keep it.
    """

    vectors: Tensor
    projected: Tensor
    bereft: frozenset[int] = frozenset()
    """Columns where the best row of some probes has left: they are to be looked for."""
    _best: dict[int, Best] = field(default_factory=dict)
    _number: dict[int, Numbers] = field(default_factory=dict)

    def copy(self) -> "Probes":
        """The same; what either does from here on is not seen by the other."""
        known = dict(self._best), dict(self._number)
        return Probes(self.vectors, self.projected, self.bereft, *known)

    def best(self, columns: Sequence[int]) -> Mapping[int, Best]:
        """The best similarities, by column, after `look`; a column without rows is left out."""
        return {column: self._best[column] for column in columns if column in self._best}

    def look(self, columns: Collection[int], rows: Rows) -> None:
        """Look for the best row of those probes whose best has left these columns."""
        for column in columns:
            self._look(column, rows)
        self.bereft = self.bereft.difference(columns)

    def kept(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """What was found, as arrays for `take_up`."""
        empty = np.empty((0, len(self.vectors)))
        return {
            "probed_columns": np.array(list(self._best), dtype=np.int64),
            "probed_best": np.array([*self._best.values()] or empty, dtype=np.float32),
            "probed_numbers": np.array([*self._number.values()] or empty, dtype=np.int64),
        }

    def take_up(self, kept: Mapping[str, npt.NDArray[np.generic]], index: Index) -> None:
        """Go on with what was found, where rows may have left their columns since.

        Raises KeyError, TypeError, ValueError or IndexError for what is not whole.
        """
        columns = kept["probed_columns"].astype(np.int64, casting="equiv").tolist()
        shape = (len(columns), len(self.vectors))
        best = kept["probed_best"].astype(np.float32, casting="equiv").reshape(shape)
        numbers = kept["probed_numbers"].astype(np.int64, casting="equiv").reshape(shape)
        self._best = dict(zip(columns, best, strict=True))
        self._number = dict(zip(columns, numbers, strict=True))
        for column, own in self._number.items():
            known = np.unique(own[own != _NONE])
            gone = known[index.columns_of(known) != column]
            self._leave(column, np.append(gone, _NONE))

    def move(
        self,
        numbers: Numbers,
        before: npt.NDArray[np.integer],
        after: npt.NDArray[np.integer],
        rows: Rows,
    ) -> None:
        """Rows have moved from columns to others.

        What comes into a column is compared with all probes. What leaves one makes those bereft
        that it was the best for: few, unless it attracts many. `look` serves them together,
        whatever leaves until then.
        """
        if not len(self.vectors):
            return
        moved = before != after
        for column in np.unique(before[moved & (before != NOBODYS)]).tolist():
            self._leave(column, numbers[moved & (before == column)])
        for column in np.unique(after[moved & (after != NOBODYS)]).tolist():
            self._enter(column, numbers[moved & (after == column)], rows)

    def _leave(self, column: int, numbers: Numbers) -> None:
        gone = np.isin(self._number[column], numbers)
        if gone.any():
            self._best[column] = np.where(gone, np.float32(-np.inf), self._best[column])
            self._number[column] = np.where(gone, _NONE, self._number[column])
            self.bereft = self.bereft | {column}

    def _enter(self, column: int, numbers: Numbers, rows: Rows) -> None:
        """Look whether rows are better than the best; of those that are bereft all is unknown."""
        count = len(self.vectors)
        best, number = self._best.get(column), self._number.get(column)
        if best is None or number is None:
            best, number = np.full(count, -np.inf, np.float32), np.full(count, _NONE)
            self._best[column], self._number[column] = best, number
        found, at = _nearest(self.projected, numbers, rows)
        better = found > best
        if column in self.bereft:
            better &= number != _NONE
        if better.any():
            self._best[column] = np.where(better, found, best)
            self._number[column] = np.where(better, at, number)

    def _look(self, column: int, rows: Rows) -> None:
        members = rows.index.members(column)
        if not len(members):
            del self._best[column], self._number[column]
            return
        bereft = np.flatnonzero(self._number[column] == _NONE)
        which = torch.from_numpy(bereft)
        # A search looks at all rows, for some probes at a time, but has them projected already.
        searched = len(rows.index) * max(len(bereft), QUERIES_AT_ONCE)
        if len(members) * (rows.index.dims + len(bereft)) < _SEARCH_COSTS * searched:
            device = self.projected.device
            found, at = _nearest(self.projected[which.to(device)], members, rows)
        else:
            queries = self.vectors[which].to(rows.index.device)
            found, at = rows.index.nearest(queries, column, rows.stored)
        best, number = self._best[column].copy(), self._number[column].copy()
        best[bereft], number[bereft] = found, at
        self._best[column], self._number[column] = best, number


def _nearest(vectors: Tensor, numbers: Numbers, rows: Rows) -> tuple[Best, Numbers]:
    """The best similarity of each vector, projected, to any of the rows, and which row has it."""
    best, number = np.full(len(vectors), -np.inf, np.float32), np.full(len(vectors), _NONE)
    for begin in range(0, len(numbers), _ROWS_AT_ONCE):
        part = numbers[begin : begin + _ROWS_AT_ONCE]
        there = rows.index.compared(rows.stored(part))
        for some, found, at in _products(vectors, there):
            better = found > best[some]
            best[some] = np.where(better, found, best[some])
            number[some] = np.where(better, part[at], number[some])
    return best, number


def _products(vectors: Tensor, rows: Tensor) -> Iterator[tuple[slice, Best, Numbers]]:
    """Some vectors at a time: which, their best similarity, and at which of the rows."""
    at_once = max(1, _CELLS_AT_ONCE // len(rows))
    for begin in range(0, len(vectors), at_once):
        some = slice(begin, begin + at_once)
        found = (vectors[some] @ rows.T).max(dim=1)
        yield some, found.values.cpu().numpy(), found.indices.cpu().numpy()
