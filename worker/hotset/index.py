"""The searchable matrix on the device: exact, though it is kept and multiplied in half precision.

A product in half precision picks the candidates, by a bound that cannot miss one; their
similarities are then computed anew from the descriptors as stored, in fp64. So what is found does
not depend on the device, the batch, or where in the matrix a row stands.

What is compared may be a projection of the descriptors; rows and queries come and go without it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.hotset.found import NOTHING, Crowd, Found, Numbers, best_of, some_of
from worker.hotset.shares import ranks, share

SEGMENT_ROWS = 1 << 14
"""The matrix grows by so many rows at a time: nothing that is there is ever moved."""
NOBODYS = 0
"""The column of rows that no search sees: free, disabled, expired, or not wanted by their bank."""

QUERIES_AT_ONCE = 64
"""A search goes over all rows once for so many queries."""

_GROUP = 64
_PAIRS_AT_ONCE = 1 << 12
_ROWS_AT_ONCE = 512

type Exact = Callable[[Numbers], npt.NDArray[np.float16]]
"""Gives rows as they are stored, [n, dims], by their numbers."""


type Projection = Callable[[Tensor], Tensor]
"""Moves descriptors, floating [n, dims], to where they are compared, L2-normalised."""


class Index:
    """Rows of unit vectors by number, each in a `column`, which a search may leave out.

    Not thread-safe.
    """

    def __init__(
        self,
        dims: int,
        device: torch.device | str,
        dtype: torch.dtype,
        projection: Projection | None = None,
    ) -> None:
        self.dims = dims
        self.projection = projection
        self.device = torch.device(device)
        self.dtype = dtype
        if self.device.type == "cuda":  # parts of a sum are not to be rounded to half precision
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self._matrices: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._column_of = np.zeros(0, dtype=np.int32)
        self._rounded = 0.0  # the furthest that a row has moved by being kept in `dtype`

    def __len__(self) -> int:
        """How many rows a search may see."""
        return int(np.count_nonzero(self._column_of))

    def columns_of(self, numbers: Numbers) -> npt.NDArray[np.int32]:
        """The columns of rows."""
        return self._column_of[numbers]

    @property
    def seen(self) -> Numbers:
        """The rows that a search may see."""
        return np.flatnonzero(self._column_of)

    def members(self, column: int) -> Numbers:
        """The rows of a column."""
        return np.flatnonzero(self._column_of == column)

    def compared(self, descriptors: npt.NDArray[np.float16]) -> Tensor:
        """Descriptors as stored to what is compared: fp32 [n, dims] on the device."""
        return self._project(torch.from_numpy(descriptors).to(self.device).float())

    def put(self, first: int, descriptors: npt.NDArray[np.float16]) -> None:
        """Write rows `first`, `first + 1`, ...: fp16 [rows, dims], as stored; nobody's as yet."""
        begin = first
        while begin < first + len(descriptors):
            segment, offset = divmod(begin, SEGMENT_ROWS)
            while segment >= len(self._matrices):
                self._grow()
            end = min(first + len(descriptors), begin - offset + SEGMENT_ROWS)
            stored = np.require(descriptors[begin - first : end - first], requirements="W")
            part = torch.from_numpy(stored).to(self.device)
            self._write(self._matrices[segment][offset : offset + len(part)], part)
            begin = end

    def assign(self, numbers: Numbers, columns: npt.NDArray[np.integer]) -> None:
        """Set the columns of rows that were put; `NOBODYS` hides them."""
        self._column_of[numbers] = columns
        segments, offsets = np.divmod(numbers, SEGMENT_ROWS)
        order = np.argsort(segments, kind="stable")
        changed, begins = np.unique(segments[order], return_index=True)
        for segment, own in zip(changed.tolist(), np.split(order, begins[1:]), strict=False):
            at = torch.from_numpy(offsets[own]).to(self.device)
            values = torch.from_numpy(columns[own].astype(np.int32)).to(self.device)
            self._columns[segment][at] = values

    def like(
        self, projection: Projection | None, segment: Callable[[int], npt.NDArray[np.float16]]
    ) -> "Index":
        """The same rows in the same columns under another projection, from the stored segments."""
        other = Index(self.dims, self.device, self.dtype, projection)
        for number, columns in enumerate(self._columns):
            other.put(number * SEGMENT_ROWS, segment(number))
            other._columns[number].copy_(columns)
        other._column_of = self._column_of.copy()
        return other

    def twin(self) -> "Index":
        """The same rows, kept once for both, in columns of its own."""
        other = Index(self.dims, self.device, self.dtype, self.projection)
        other._matrices = list(self._matrices)
        other._rounded = self._rounded
        other._columns = [one.clone() for one in self._columns]
        other._column_of = self._column_of.copy()
        return other

    def nearest(
        self, queries: Tensor, column: int, exact: Exact
    ) -> tuple[npt.NDArray[np.float32], Numbers]:
        """The best similarity of each query to a row of a column that has some, and which it is.

        `queries` is fp32 [n, dims] on the device, L2-normalised.
        """
        own = torch.arange(int(self._column_of.max()) + 1) == column
        found = self.search(queries, own.expand(len(queries), -1), 1, exact)
        return (
            np.array([one.similarities[0] for one in found], dtype=np.float32),
            np.array([one.numbers[0] for one in found], dtype=np.int64),
        )

    @torch.no_grad()
    def search(
        self, queries: Tensor, allowed: Tensor, k: int, exact: Exact, most: int | None = None
    ) -> list[Found]:
        """Find for each query its `k` best rows among the columns that it is allowed.

        `queries` is fp32 [n, dims] on the device, L2-normalised; `allowed` is bool [n, columns]
        on the CPU. `most` bounds the rows that are computed anew for a query, where so many are
        about as good as the k-th: then `unseen` says how good a row may be that was left out.
        """
        found: list[Found] = []
        for begin in range(0, len(queries), QUERIES_AT_ONCE):
            some = slice(begin, begin + QUERIES_AT_ONCE)
            found += self._search(queries[some], allowed[some], k, exact, most)
        return found

    @torch.no_grad()
    def search_columns(self, queries: Tensor, floors: Tensor, budget: int, exact: Exact) -> Crowd:
        """Find pairs of the queries and the best rows of each column, from a floor on.

        `queries` is fp32 [n, dims] on the device, L2-normalised. `floors` are similarities, fp32
        [n, columns] on the CPU; infinite where a query is not compared with a column. At most
        `budget` pairs are found for all queries together, which the columns share; every column
        that has a pair has its best one, give or take a rounding error.
        """
        parts = [
            self._pairs(
                queries[begin : begin + QUERIES_AT_ONCE],
                floors[begin : begin + QUERIES_AT_ONCE],
                budget,
            )
            for begin in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        owners = np.concatenate([n * QUERIES_AT_ONCE + one[0] for n, one in enumerate(parts)])
        numbers, margins = (np.concatenate([one[at] for one in parts]) for at in (1, 2))
        taken, left = share(self._column_of[numbers], margins, budget)
        cut = np.unique(np.concatenate([left, *(one[3] for one in parts)]))
        owners, numbers = owners[taken], numbers[taken]
        found = self._reaching(queries, floors, owners, numbers, exact)
        # All pairs that were taken of a column may be just below its floor, and one that was left
        # out above it.
        for column in np.setdiff1d(cut, self._column_of[found.numbers]).tolist():
            best = self._best_of_column(queries, floors, column, exact)
            found = Crowd(
                np.concatenate([found.queries, best.queries]),
                np.concatenate([found.numbers, best.numbers]),
                np.concatenate([found.similarities, best.similarities]),
                np.concatenate([found.cosines, best.cosines]),
                cut,
            )
        return found._replace(cut=cut)

    def _search(
        self, queries: Tensor, allowed: Tensor, k: int, exact: Exact, most: int | None = None
    ) -> list[Found]:
        if not self._matrices or k < 1:
            return [NOTHING for _ in queries]
        projected = self._project(queries)
        scores, bests = self._scores(projected, allowed)
        # The k-th best of the groups' best is at most the k-th best row; few rows share a group.
        pool = bests if len(bests) >= 4 * k else scores
        kth = pool.topk(min(k, len(pool)), dim=0).values[-1]
        bar = kth.float() - 2 * self._error_bound(projected, kth.float())
        group, query, passed = _cells(bests, bar, most)
        cells = scores.view(-1, _GROUP, len(queries))[group, :, query].float()
        hit, within = ((cells >= bar[query, None]) & (cells > -torch.inf)).nonzero(as_tuple=True)
        numbers = (group[hit] * _GROUP + within).cpu().numpy()
        owners = query[hit].cpu().numpy()
        if most is not None and len(numbers) > most * len(queries):
            values = cells[hit, within].cpu().numpy()
            rank = ranks(owners, values)
            last = rank == most
            passed[owners[last]] = np.maximum(passed[owners[last]], values[last])
            owners, numbers = owners[rank < most], numbers[rank < most]
        found = self._exactly(queries, owners, numbers, exact)
        errors = self._error_bound(projected, torch.ones_like(kth.float())).cpu().numpy()
        unseen = passed + errors
        of_each = (owners == query for query in range(len(queries)))
        return [
            best_of(some_of(found, own), k, float(beyond))
            for own, beyond in zip(of_each, unseen, strict=True)
        ]

    def _pairs(
        self, queries: Tensor, floors: Tensor, budget: int
    ) -> tuple[Numbers, Numbers, npt.NDArray[np.float32], npt.NDArray[np.integer]]:
        """Queries, rows, margins above the floor, rounded, and the columns that were cut."""
        projected = self._project(queries)
        errors = self._error_bound(projected, torch.ones(len(queries), device=self.device))
        bars = (floors.to(self.device) - errors[:, None]).T.contiguous()
        if not self._matrices:
            nothing = np.empty(0, dtype=np.int64)
            return nothing, nothing, np.empty(0, dtype=np.float32), nothing
        scores, _ = self._scores(projected, floors < torch.inf)
        best = torch.cat(
            [
                (part.float() - bars[columns]).amax(dim=1)
                for part, columns in zip(
                    torch.split(scores, SEGMENT_ROWS), self._columns, strict=True
                )
            ]
        )
        rows = (best >= 0).nonzero()[:, 0].cpu().numpy()
        # The best pairs of a column are pairs of its best rows.
        taken, left = share(self._column_of[rows], best[rows].cpu().numpy(), budget)
        at = torch.from_numpy(rows[taken]).to(self.device)
        columns = torch.from_numpy(self._column_of[rows[taken]]).to(self.device)
        margins = scores[at].float() - bars[columns]
        row, query = (margins >= 0).nonzero(as_tuple=True)
        numbers, values = at[row].cpu().numpy(), margins[row, query].cpu().numpy()
        taken, more = share(self._column_of[numbers], values, budget)
        cut = np.union1d(left, more)
        return query.cpu().numpy()[taken], numbers[taken], values[taken], cut

    def _reaching(
        self, queries: Tensor, floors: Tensor, owners: Numbers, numbers: Numbers, exact: Exact
    ) -> Crowd:
        """Those of some pairs that do reach the floor."""
        found = self._exactly(queries, owners, numbers, exact)
        reach = found.similarities >= floors.numpy()[owners, self._column_of[numbers]]
        some = some_of(found, reach)
        return Crowd(owners[reach], some.numbers, some.similarities, some.cosines, numbers[:0])

    def _best_of_column(self, queries: Tensor, floors: Tensor, column: int, exact: Exact) -> Crowd:
        """The best row of a column for each query, if it reaches the floor."""
        own = (torch.arange(floors.shape[1]) == column) & (floors < torch.inf)
        found = self.search(queries, own, 1, exact)
        best = [(at, int(one.numbers[0])) for at, one in enumerate(found) if len(one.numbers)]
        owners, numbers = np.array(best, dtype=np.int64).reshape(-1, 2).T
        return self._reaching(queries, floors, owners, numbers, exact)

    def _exactly(self, queries: Tensor, owners: Numbers, numbers: Numbers, exact: Exact) -> Found:
        """Pairs of queries and rows, the same to the last bit in whatever company.

        Only a projection may make a difference, in the last bit of fp64.
        """
        similarities, cosines = np.empty((2, len(numbers)), dtype=np.float32)
        for begin in range(0, len(numbers), _PAIRS_AT_ONCE):
            some = slice(begin, begin + _PAIRS_AT_ONCE)
            rows = torch.from_numpy(exact(numbers[some])).to(self.device).double()
            own = queries[torch.from_numpy(owners[some]).to(self.device)].double()
            cosines[some] = similarities[some] = _products(own, rows)
            if self.projection is not None:
                similarities[some] = _products(self.projection(own), self.projection(rows))
        return Found(numbers, similarities, cosines)

    def _project(self, rows: Tensor) -> Tensor:
        return rows if self.projection is None else self.projection(rows)

    def _scores(self, queries: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded cosines [rows, n], -inf where not allowed, and the best of each group of rows."""
        own, which = _distinct(allowed)
        own, which = own.to(self.device), which.to(self.device)
        # Mostly all queries are allowed the same, and one penalty a row will do.
        penalties = torch.zeros(own.shape, dtype=self.dtype, device=self.device)
        penalties = penalties.masked_fill_(~own, -torch.inf).T
        penalties = penalties[:, which] if len(own) > 1 else penalties
        rows, turned = len(self._matrices) * SEGMENT_ROWS, queries.to(self.dtype).T
        scores = torch.empty((rows, len(queries)), dtype=self.dtype, device=self.device)
        bests = torch.empty((rows // _GROUP, len(queries)), device=self.device)
        parts = zip(
            self._matrices,
            self._columns,
            torch.split(scores, SEGMENT_ROWS),
            torch.split(bests, SEGMENT_ROWS // _GROUP),
            strict=True,
        )
        for matrix, columns, part, best in parts:
            torch.mm(matrix, turned, out=part)
            part.add_(penalties[columns])
            torch.amax(part.float().view(-1, _GROUP, len(queries)), dim=1, out=best)
        return scores, bests

    def _write(self, rows: Tensor, stored: Tensor) -> None:
        """Write rows, and note how far they move by it."""
        if self.dtype == stored.dtype and self.projection is None:
            rows.copy_(stored)
            return
        # As much at a time as the caches hold: that is ten times as fast.
        for some, exact in zip(
            *(torch.split(part, _ROWS_AT_ONCE) for part in (rows, stored)), strict=True
        ):
            wide = self._project(exact.float())
            some.copy_(wide)
            moved = torch.linalg.vector_norm(wide.sub_(some), dim=1).max().item()
            self._rounded = max(self._rounded, moved)

    def _error_bound(self, queries: Tensor, cosines: Tensor) -> Tensor:
        """How far a rounded cosine may be from the exact one, at most, where it is near the k-th.

        Query and row move by what is measured, so their product by the sum (Cauchy-Schwarz; norms
        are 1.01 at most, and something is left for the product of both), and by the sum in fp32,
        whatever its order. Then it is rounded itself: by half a unit in the last place of a number
        up to the k-th and its margin. A projection is rounded as sums are, and its result is then
        lengthened to 1, with what was rounded: by eight times at most, unless a descriptor is next
        to the mean of all.
        """
        moved = torch.linalg.vector_norm(queries - queries.to(self.dtype).float(), dim=1)
        summed = self.dims * torch.finfo(torch.float32).eps
        if self.projection is not None:
            summed *= 1 + 2 * 8
        last_place = (cosines.abs() + 0.1).clamp(max=1) * torch.finfo(self.dtype).eps / 2
        bound: Tensor = 1.02 * (moved + self._rounded) + summed + last_place
        return bound

    def _grow(self) -> None:
        """Add a segment. It is zero, for what is not a number would spoil its group's best."""
        size = (SEGMENT_ROWS, self.dims)
        self._matrices.append(torch.zeros(size, dtype=self.dtype, device=self.device))
        self._columns.append(torch.zeros(SEGMENT_ROWS, dtype=torch.int32, device=self.device))
        fresh = np.full(SEGMENT_ROWS, NOBODYS, dtype=np.int32)
        self._column_of = np.concatenate([self._column_of, fresh])


def _products(own: Tensor, rows: Tensor) -> npt.NDArray[np.float32]:
    products: npt.NDArray[np.float32] = (own * rows).sum(1).clamp(-1, 1).float().cpu().numpy()
    return products


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of bool [n, k] on the CPU, and for each row which of them it is."""
    packed = np.ascontiguousarray(np.packbits(rows.numpy(), axis=1))
    keys = packed.view([("", np.void, packed.shape[1])])[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return rows[torch.from_numpy(first)], torch.from_numpy(which)


def _cells(
    bests: Tensor, bar: Tensor, most: int | None
) -> tuple[Tensor, Tensor, npt.NDArray[np.float32]]:
    """The groups and queries whose best reaches the bar, and the best that was left out, [n].

    Where they are many, `most` groups of each query: so many rows are among these.
    """
    passed = np.full(bests.shape[1], -np.inf, dtype=np.float32)
    group, query = (bests >= bar).nonzero(as_tuple=True)
    if most is None or len(group) <= most * bests.shape[1]:
        return group, query, passed
    top = bests.topk(min(most + 1, len(bests)), dim=0)
    if len(bests) > most:
        last = top.values[-1]
        passed[:] = torch.where(last >= bar, last, -torch.inf).cpu().numpy()
    rank, query = (top.values[:most] >= bar).nonzero(as_tuple=True)
    return top.indices[rank, query], query, passed
