"""Columns of the index: which a row has, and which of them an upload is compared with.

A row has a column while it can match: its reference and bank are enabled, it has not expired, and
the bank wants its view. So switching anything on or off writes columns, and moves no descriptor.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.hotset.found import Numbers
from worker.hotset.index import NOBODYS
from worker.hotset.layout import Unusable
from worker.hotset.table import CANARY, ENABLED, NO_ROWS, SHADOW
from worker.hotset.types import MOST_BANKS, Bank, Reference, View

MOST_NUMBERS = 4 * MOST_BANKS
"""Banks that have a number at once, those too that are named in vain: the table has 16 bits."""

_KINDS = 3
_ENFORCED, _SHADOW, _CANARY = range(_KINDS)
"""Kinds of references in a bank, which have a column each: the null is of the first alone."""


@dataclass(slots=True)
class Columns:
    """Numbers of banks and of lists of views, as the table has them, and the columns they give.

    `banks` has those too that references name in vain; `names` is its inverse. A number stays while
    a bank or a reference has it.
    """

    banks: dict[str, int] = field(default_factory=dict)
    views: list[tuple[View, ...]] = field(default_factory=list)
    names: dict[int, str] = field(init=False)
    _spare: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._take_stock()

    def _take_stock(self) -> None:
        self.names = {number: name for name, number in self.banks.items()}
        every = reversed(range(MOST_NUMBERS))
        self._spare = [number for number in every if number not in self.names]

    def of_bank(self, bank: str) -> int:
        """The number of a bank, which gets one if it has none. Raises Unusable where none is left.

        A wrapped number would be another bank's, and so another tenant's.
        """
        if bank not in self.banks:
            if not self._spare:
                raise Unusable("bank", bank, f"references name more than {MOST_NUMBERS:,} banks")
            self.banks[bank] = number = self._spare.pop()
            self.names[number] = bank
        return self.banks[bank]

    def keep_only(self, banks: Collection[str], numbers: Collection[int]) -> None:
        """Take back the numbers of all other banks but these, if they are not among `numbers`."""
        self.banks = {
            name: number
            for name, number in self.banks.items()
            if name in banks or number in numbers
        }
        self._take_stock()

    def of_views(self, views: tuple[View, ...]) -> int:
        """The number of a list of views, which gets one if it has none."""
        if views not in self.views:
            self.views.append(views)
        return self.views.index(views)

    def enforced(self, bank: str) -> int:
        """The column of a bank's references that are enforced."""
        return int(_column(self.banks[bank], _ENFORCED))

    def places(
        self, rows: npt.NDArray[np.void], banks: Mapping[str, Bank], now: float
    ) -> tuple[Numbers, Numbers]:
        """The rows of these references, of the table's fields, and the column that each has.

        `now` is in Unix seconds.
        """
        live = (rows["flags"] & ENABLED > 0) & (rows["expires"] > now)
        described = (rows["first"] != NO_ROWS) & (rows["length"] > 0)
        canary, shadow = (rows["flags"] & flag > 0 for flag in (CANARY, SHADOW))
        kinds = np.select([canary, shadow], [_CANARY, _SHADOW], _ENFORCED)
        columns = _column(rows["bank"].astype(np.int32), kinds)
        places = [np.empty((2, 0), dtype=np.int64)]
        for code in np.unique(rows["bank"][described]).tolist():
            bank = banks.get(self.names[code])
            of_bank = described & (rows["bank"] == code)
            for views_code in np.unique(rows["views"][of_bank]):
                own = of_bank & (rows["views"] == views_code)
                for number, view in enumerate(self.views[views_code]):
                    wanted = bank is not None and bank.enabled and view in bank.views
                    seen = np.where(live[own] & wanted, columns[own], NOBODYS)
                    places.append(np.stack([rows["first"][own].astype(np.int64) + number, seen]))
        numbers, seen = np.concatenate(places, axis=1)
        return numbers, seen

    def floors(self, banks: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """What each column has by its bank, float64 [columns]; infinite for the other banks."""
        floors = np.full(self._count(), np.inf)
        for name, floor in banks.items():
            floors[_column(self.banks[name], 0) :][:_KINDS] = floor
        return floors

    def allowed(
        self, screens: "Screens", tenants: Sequence[str | None], canaries: Sequence[bool]
    ) -> npt.NDArray[np.bool_]:
        """Which columns each query is compared with, [n, columns]."""
        rows: dict[tuple[str | None, bool], int] = {}
        numbers = [rows.setdefault(who, len(rows)) for who in zip(tenants, canaries, strict=True)]
        allowed = np.zeros((len(rows), self._count()), dtype=bool)
        for (tenant, canary), number in rows.items():
            first = _column(screens.codes(tenant), 0)
            for kind in (_ENFORCED, _SHADOW, *([_CANARY] if canary else [])):
                allowed[number, first + kind] = True
        return allowed[numbers]

    def _count(self) -> int:
        """How many columns there are; numbers of banks may have gaps."""
        return int(_column(1 + max(self.banks.values(), default=-1), 0))

    def screens(self, banks: Mapping[str, Bank]) -> "Screens":
        """Which of these banks each tenant's uploads are compared with."""
        for_all: list[int] = []
        own: dict[str, list[int]] = {}
        enabled: list[int] = []
        for name, bank in banks.items():
            if not bank.enabled:
                continue
            code = self.banks[name]
            enabled.append(code)
            if bank.tenants is None:
                for_all.append(code)
            for tenant in bank.tenants or ():
                own.setdefault(tenant, []).append(code)
        return Screens(_codes(enabled), _codes(for_all), own)


@dataclass(frozen=True, slots=True)
class Screens:
    """Codes of the enabled banks: all of them, those for all tenants, and each tenant's own."""

    enabled: Numbers
    for_all: Numbers
    own: Mapping[str, Sequence[int]]

    def codes(self, tenant: str | None) -> Numbers:
        """The banks that a tenant's uploads are compared with, as `Bank.screens`."""
        if tenant is None:
            return self.enabled
        own = self.own.get(tenant)
        return np.concatenate([self.for_all, _codes(own)]) if own else self.for_all


def _codes(codes: Sequence[int]) -> Numbers:
    return np.array(codes, dtype=np.int64)


def standing(reference: Reference) -> tuple[int, float]:
    """Its flags in the table, and when it expires, in Unix seconds."""
    flags = ENABLED * reference.enabled | CANARY * reference.canary | SHADOW * reference.shadow
    expires = reference.expires_at.timestamp() if reference.expires_at else np.inf
    return flags, expires


def _column(code: Any, kind: Any) -> Any:
    """The column of a bank's references of one kind; 0 is nobody's."""
    return 1 + _KINDS * code + kind
