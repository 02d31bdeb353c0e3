"""Which row of each column is most similar to each of a set of probes, kept up to date.

The probes are a calibration's null images: how they do against a bank tells what benign uploads do.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.hotset.index import NOBODYS, Numbers

_NONE = -1
_ROWS_AT_ONCE = 1 << 12
_CELLS_AT_ONCE = 1 << 24

type Rows = Callable[[Numbers], Tensor]
"""Gives rows as they are compared, fp32 [n, dims] on the device, by their numbers."""
type Best = npt.NDArray[np.float32]
"""The best similarity of each probe, float32 [probes]; -inf where there is no row."""


class Probes:
    """Fixed vectors, and their best row in each column. Not thread-safe.

    What is handed out is never changed in place, so a search may keep it.
    """

    def __init__(self, vectors: Tensor, rows: Rows) -> None:
        """`vectors` are fp32 [probes, dims] on the device, L2-normalised, projected."""
        self._vectors = vectors
        self._rows = rows
        self._best: dict[int, Best] = {}
        self._number: dict[int, Numbers] = {}

    def best(self, columns: Sequence[int]) -> Mapping[int, Best]:
        """The best similarities, by column; a column without rows is left out."""
        there = (column for column in columns if column in self._best)
        return {column: self._best[column] for column in there if self._has_rows(column)}

    def _has_rows(self, column: int) -> bool:
        return bool(len(self._vectors)) and bool(np.isfinite(self._best[column][0]))

    def kept(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """What was found, as arrays for `take_up`."""
        empty = np.empty((0, len(self._vectors)))
        return {
            "probed_columns": np.array(list(self._best), dtype=np.int64),
            "probed_best": np.array([*self._best.values()] or empty, dtype=np.float32),
            "probed_numbers": np.array([*self._number.values()] or empty, dtype=np.int64),
        }

    def take_up(
        self,
        kept: Mapping[str, npt.NDArray[np.generic]],
        columns_of: Callable[[Numbers], npt.NDArray[np.integer]],
        members: Callable[[int], Numbers],
    ) -> None:
        """Go on with what was found, where rows may have left their columns since.

        Raises KeyError, TypeError, ValueError or IndexError for what is not whole.
        """
        columns = kept["probed_columns"].astype(np.int64, casting="equiv").tolist()
        shape = (len(columns), len(self._vectors))
        best = kept["probed_best"].astype(np.float32, casting="equiv").reshape(shape)
        numbers = kept["probed_numbers"].astype(np.int64, casting="equiv").reshape(shape)
        self._best = dict(zip(columns, best, strict=True))
        self._number = dict(zip(columns, numbers, strict=True))
        for column, own in self._number.items():
            known = np.unique(own[own != _NONE])
            self._leave(column, known[columns_of(known) != column], members)

    def move(
        self,
        numbers: Numbers,
        before: npt.NDArray[np.integer],
        after: npt.NDArray[np.integer],
        members: Callable[[int], Numbers],
    ) -> None:
        """Rows have moved from columns to others; `members` gives the rows that a column has now.

        What leaves a column is looked for among those that are left, for the probes that it was
        best for: few, unless it attracts many.
        """
        moved = before != after
        for column in np.unique(before[moved & (before != NOBODYS)]).tolist():
            self._leave(column, numbers[moved & (before == column)], members)
        for column in np.unique(after[moved & (after != NOBODYS)]).tolist():
            self._enter(column, numbers[moved & (after == column)], slice(None))

    def _leave(self, column: int, numbers: Numbers, members: Callable[[int], Numbers]) -> None:
        if column not in self._best:
            return
        bereft = np.flatnonzero(np.isin(self._number[column], numbers))
        if not len(bereft):
            return
        self._best[column] = self._best[column].copy()
        self._number[column] = self._number[column].copy()
        self._best[column][bereft] = -np.inf
        self._number[column][bereft] = _NONE
        self._enter(column, members(column), bereft)

    def _enter(self, column: int, numbers: Numbers, some: slice | Numbers) -> None:
        """Look whether rows are better than the best, for some of the probes."""
        if column not in self._best:
            count = len(self._vectors)
            self._best[column] = np.full(count, -np.inf, dtype=np.float32)
            self._number[column] = np.full(count, _NONE, dtype=np.int64)
        if not len(numbers):
            return
        best, number, improved = self._best[column].copy(), self._number[column].copy(), False
        index = some if isinstance(some, slice) else torch.from_numpy(some)
        vectors = self._vectors[index]
        for begin in range(0, len(numbers), _ROWS_AT_ONCE):
            part = numbers[begin : begin + _ROWS_AT_ONCE]
            found, at = _nearest(vectors, self._rows(part))
            mine = best[some]
            better = found > mine
            improved |= bool(better.any())
            mine[better] = found[better]
            best[some] = mine
            theirs = number[some]
            theirs[better] = part[at[better]]
            number[some] = theirs
        if improved:
            self._best[column], self._number[column] = best, number


def _nearest(vectors: Tensor, rows: Tensor) -> tuple[Best, Numbers]:
    """The best similarity of each vector to any of the rows, and which row has it."""
    at_once = max(1, _CELLS_AT_ONCE // len(rows))
    parts = [(some @ rows.T).max(dim=1) for some in torch.split(vectors, at_once)]
    values = torch.cat([part.values for part in parts]).cpu().numpy()
    return values, torch.cat([part.indices for part in parts]).cpu().numpy()
