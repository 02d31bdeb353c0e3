"""The searchable matrix on the device: exact, whatever the order in which its rows arrived."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FIRST_CAPACITY = 1024
# A product of unit vectors in fp32 depends on where in the matrix a row stands, by far less than
# this at 4,096 dims. All rows this close to the k-th best are candidates; fp64 then decides.
_MARGIN = 1e-4
_CELLS_AT_ONCE = 1 << 26
_CANDIDATES_AT_ONCE = 1 << 14


class Row(NamedTuple):
    """What a row of the index is a descriptor of."""

    reference_id: str
    view: str


class Index:
    """Rows of unit vectors, dense: `[0, len(index))` of a matrix that grows by doubling.

    Each row belongs to a `column`: a small number for its bank, which a search may leave out.
    Not thread-safe.
    """

    def __init__(self, dims: int, device: torch.device | str, capacity: int = 0) -> None:
        self.dims = dims
        self.device = torch.device(device)
        self._matrix = torch.empty((capacity, dims), dtype=torch.float32, device=self.device)
        self._columns = torch.empty(capacity, dtype=torch.int64, device=self.device)
        self._rows: list[Row] = []
        self._numbers: dict[Row, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: Row) -> bool:
        return row in self._numbers

    def add(self, rows: Sequence[Row], columns: Sequence[int], descriptors: Tensor) -> None:
        """Add rows that the index does not have; `descriptors` is [rows, dims], any float type.

        Raises ValueError for another shape, or a row that is there already.
        """
        if descriptors.shape != (len(rows), self.dims) or len(columns) != len(rows):
            raise ValueError(f"{len(rows)} rows of {self.dims} dims expected")
        if len(set(rows)) < len(rows) or not self._numbers.keys().isdisjoint(rows):
            raise ValueError("a row can only be added once")
        begin, end = len(self._rows), len(self._rows) + len(rows)
        self._reserve(end)
        self._matrix[begin:end] = descriptors.to(self.device, torch.float32)
        self._columns[begin:end] = torch.tensor(columns, dtype=torch.int64, device=self.device)
        self._rows.extend(rows)
        self._numbers.update(zip(rows, range(begin, end), strict=True))

    def remove(self, rows: Sequence[Row]) -> Tensor:
        """Take rows out and return their descriptors, fp32 [rows, dims] on the CPU.

        The holes are filled with the last rows. Raises KeyError for a row that is not there.
        """
        if not rows:
            return torch.empty((0, self.dims))
        numbers = [self._numbers[row] for row in rows]
        removed = self._matrix[self._on_device(numbers)].cpu()
        end = len(self._rows) - len(rows)
        gone = set(numbers)
        holes = [number for number in numbers if number < end]
        movers = [number for number in range(end, len(self._rows)) if number not in gone]
        for row in rows:
            del self._numbers[row]
        if holes:
            to, source = self._on_device(holes), self._on_device(movers)
            self._matrix[to] = self._matrix[source]
            self._columns[to] = self._columns[source]
            for hole, mover in zip(holes, movers, strict=True):
                self._rows[hole] = self._rows[mover]
                self._numbers[self._rows[hole]] = hole
        del self._rows[end:]
        return removed

    @torch.no_grad()
    def search(
        self, queries: Tensor, allowed: Tensor | None, k: int
    ) -> list[list[tuple[Row, float]]]:
        """Return for each query its `k` best rows with their cosines, best first.

        `queries` is fp32 [n, dims] on the device, L2-normalised; `allowed` is bool [n, columns] on
        the device: rows of other columns do not exist for that query. Ties go by reference, then
        view.
        """
        found: list[list[tuple[Row, float]]] = [[] for _ in range(len(queries))]
        if not self._rows or k < 1:
            return found
        matrix, columns = self._matrix[: len(self)], self._columns[: len(self)]
        step = max(1, _CELLS_AT_ONCE // len(self))
        for begin in range(0, len(queries), step):
            block = queries[begin : begin + step]
            cosines = block @ matrix.T
            if allowed is not None:
                banned = ~allowed[begin : begin + step, columns]
                cosines.masked_fill_(banned, -torch.inf)
            kth = cosines.topk(min(k, len(self))).values[:, -1:]
            candidates = (cosines >= kth - _MARGIN) & (cosines > -torch.inf)
            query, number = candidates.nonzero(as_tuple=True)
            exact = self._exact_cosines(block, query, number)
            for q, n, cosine in zip(query.tolist(), number.tolist(), exact, strict=True):
                found[begin + q].append((self._rows[n], cosine))
        return [sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k] for hits in found]

    def _exact_cosines(self, queries: Tensor, query: Tensor, number: Tensor) -> list[float]:
        """Cosines of pairs, the same to the last bit wherever in the matrix a row stands."""
        cosines: list[float] = []
        for begin in range(0, len(query), _CANDIDATES_AT_ONCE):
            some = slice(begin, begin + _CANDIDATES_AT_ONCE)
            exact = (queries[query[some]].double() * self._matrix[number[some]].double()).sum(1)
            cosines += exact.clamp(-1, 1).float().tolist()
        return cosines

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _reserve(self, rows: int) -> None:
        capacity = len(self._matrix)
        if rows <= capacity:
            return
        capacity = max(rows, 2 * capacity, _FIRST_CAPACITY)
        matrix = self._matrix.new_empty((capacity, self.dims))
        columns = self._columns.new_empty(capacity)
        matrix[: len(self)] = self._matrix[: len(self)]
        columns[: len(self)] = self._columns[: len(self)]
        self._matrix, self._columns = matrix, columns
