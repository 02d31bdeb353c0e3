"""The searchable part of a hot set: whose uploads see which rows, and what the rows are called."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from worker.hotset.columns import Screens
from worker.hotset.found import Bars, Found, Nearest
from worker.hotset.holdings import Holdings
from worker.hotset.matrix import Matrix
from worker.hotset.table import CANARY
from worker.hotset.types import Bank, Hit, Reference
from worker.records import Model

_ROUNDING = 1e-6
"""Off a bar in fp32, so that nothing is lost that reaches it in fp64."""


class Searching(Holdings):
    """References, and the banks that say who is compared with them. Not thread-safe."""

    def __init__(self, model: Model, matrix: Matrix) -> None:
        """`matrix` is empty."""
        super().__init__(model, matrix)
        self.banks: dict[str, Bank] = {}
        self._screens: Screens | None = None  # None: the banks have changed since

    def canaries(self) -> list[Reference]:
        """The references that are canaries, by id."""
        slots = np.flatnonzero(self._table.rows["flags"] & CANARY)
        found = [self._reference(slot) for slot in slots.tolist()]
        return sorted(found, key=lambda one: one.reference_id)

    def search(
        self, queries: Tensor, tenants: Sequence[str | None], k: int, canaries: Sequence[bool]
    ) -> list[Nearest]:
        """Search the index and name what was found; ties go by reference, then view."""
        allowed = self._columns.allowed(self._screening(), tenants, canaries)
        return [
            Nearest(self._hits(found)[:k], found.unseen)
            for found in self.matrix.search(queries, allowed, k)
        ]

    def search_banks(
        self, queries: Tensor, tenant: str | None, bars: Bars, budget: int, *, canary: bool
    ) -> tuple[list[list[Hit]], frozenset[str]]:
        """Name the best rows of every bank for the looks of one upload, from its bar on.

        Also the banks of which enforced rows that reach it may have been left out.
        """
        (allowed,) = self._columns.allowed(self._screening(), [tenant], [canary])
        floors = np.where(allowed, self._columns.floors(bars.banks), np.inf)
        floors = floors + np.array(bars.offsets)[:, None] - _ROUNDING
        crowd = self.matrix.search_columns(queries, floors.astype(np.float32), budget)
        own = [crowd.queries == query for query in range(len(queries))]
        cut = set(crowd.cut.tolist())
        return (
            [self._hits(Found(*(part[mask] for part in crowd[1:4]))) for mask in own],
            frozenset(name for name in self.banks if self._columns.enforced(name) in cut),
        )

    def _screening(self) -> Screens:
        if self._screens is None:
            self._screens = self._columns.screens(self.banks)
        return self._screens

    def _hits(self, found: Found) -> list[Hit]:
        rows = zip(*(part.tolist() for part in found[:3]), strict=True)
        hits = [self._hit(number, similarity, cosine) for number, similarity, cosine in rows]
        hits.sort(key=lambda hit: (-hit.similarity, hit.reference.reference_id, hit.view))
        return hits

    def _hit(self, number: int, similarity: float, cosine: float) -> Hit:
        slot = self._runs.owner(number)
        row, reference = self._table.rows[slot], self._reference(slot)
        view = self._columns.views[row["views"]][number - row["first"]]
        return Hit(reference, self.banks[reference.bank], view, cosine, similarity)
