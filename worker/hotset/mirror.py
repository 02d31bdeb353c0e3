"""A replica's copy of the hot set: what the pipeline searches while changes come in."""

import heapq
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.errors import StoreError
from worker.hotset.index import Index, Row
from worker.hotset.types import (
    Accepted,
    Bank,
    BankPut,
    BankRemoved,
    CalibrationPut,
    Change,
    Descriptors,
    Entry,
    Head,
    Hit,
    Reference,
    ReferencePut,
    ReferenceRemoved,
    Snapshot,
)
from worker.records import Version

type Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a batch was compared with, and for each query its hits, best first."""

    version: Version
    hits: list[list[Hit]]
    banks: Mapping[str, Bank]
    calibration: bytes | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a mirror holds: usable references, their rows in the index, unusable references.

    Unusable are those that cannot be read, have no descriptors by this model, or no bank.
    """

    references: int
    rows: int
    unusable: int


class Mirror:
    """The hot set in memory, with its index on the device. Thread-safe.

    Empty of everything, even of a version, until the first `load`.
    """

    def __init__(self, dims: int, device: torch.device | str, clock: Clock = utc_now) -> None:
        self._dims = dims
        self._device = torch.device(device)
        self._clock = clock
        self._lock = threading.Lock()
        self._set: _HotSet | None = None

    @property
    def head(self) -> Head | None:
        """Where in the store's history the mirror stands; None before the first `load`."""
        with self._lock:
            return self._set.head if self._set else None

    @property
    def sizes(self) -> Sizes:
        """How much is there now."""
        with self._lock:
            if self._set is None:
                return Sizes(0, 0, 0)
            return self._set.sizes

    def load(self, snapshot: Snapshot, entries: Iterable[Entry] = ()) -> None:
        """Build another hot set beside the present one, apply `entries` to it, and swap."""
        fresh = _HotSet(snapshot, Index(self._dims, self._device), self._clock())
        for entry in entries:
            fresh.apply(entry, self._clock())
        with self._lock:
            self._set = fresh

    def apply(self, entry: Entry) -> None:
        """Go on by one change; applying it twice does no more. Raises StoreError before `load`."""
        with self._lock:
            self._loaded().apply(entry, self._clock())

    def expire(self) -> None:
        """Take the rows of references that have expired out of the index."""
        with self._lock:
            if self._set:
                self._set.expire(self._clock())

    @property
    def canaries(self) -> list[Reference]:
        """The references that are canaries, by id."""
        with self._lock:
            found = self._set.canaries if self._set else {}
            return [found[reference_id] for reference_id in sorted(found)]

    def search(
        self,
        queries: Tensor,
        tenants: Sequence[str | None],
        k: int,
        canaries: Sequence[bool] | None = None,
    ) -> SearchResult:
        """Return the `k` best hits of each query among the banks that its tenant is screened by.

        `queries` is fp32 [n, dims] on the device, L2-normalised; `tenants` has n entries, None
        for an upload without one: it is screened against all banks. `canaries` tells which queries
        are canaries (None: none is): references that are do not exist for the others. A reference
        comes once for each of its views. Raises StoreError before `load`.
        """
        with self._lock:
            hot_set = self._loaded()
            hot_set.expire(self._clock())
            return SearchResult(
                hot_set.head.version,
                hot_set.search(queries, tenants, k, canaries or [False] * len(tenants)),
                dict(hot_set.banks),
                hot_set.calibration.blob if hot_set.calibration else None,
            )

    def _loaded(self) -> "_HotSet":
        if self._set is None:
            raise StoreError("the hot set is not loaded")
        return self._set


class _HotSet:
    """One version of the hot set, changed in place.

    Each descriptor is in one of two places: a row of the index while it can match (its reference
    and bank are enabled, it has not expired, and the bank wants its view), else parked in memory.
    """

    def __init__(self, snapshot: Snapshot, index: Index, now: datetime) -> None:
        self.head = snapshot.head
        self.banks = dict(snapshot.banks)
        self.references = dict(snapshot.references)
        self.canaries = {r.reference_id: r for r in self.references.values() if r.canary}
        self.calibration = snapshot.calibration
        self.unusable = set(snapshot.unusable)
        self.index = index
        self._views: dict[str, tuple[str, ...]] = {}
        self._parked: dict[Row, npt.NDArray[np.float16]] = {}
        self._columns: dict[tuple[str, bool], int] = {}  # of a bank, and of the canaries in it
        self._expiries: list[tuple[datetime, str]] = []
        for reference_id, descriptors in snapshot.descriptors.items():
            self._park(reference_id, descriptors)
        for reference in self.references.values():
            self._note_expiry(reference)
        self._settle(self.references, now)

    @property
    def sizes(self) -> Sizes:
        """How much is there now."""
        unusable = sum(name in self.references for name in self.unusable)
        usable = len(self.references) - unusable
        return Sizes(usable, len(self.index), len(self.unusable))

    def apply(self, entry: Entry, now: datetime) -> None:
        """Make one change."""
        self._change(entry.change, now)
        accepted = entry.mark if isinstance(entry.change, Accepted) else self.head.accepted
        self.head = Head(entry.version, entry.mark, accepted)

    def expire(self, now: datetime) -> None:
        """Settle what has expired."""
        due: list[str] = []
        while self._expiries and self._expiries[0][0] <= now:
            due.append(heapq.heappop(self._expiries)[1])
        if due:
            self._settle(dict.fromkeys(due), now)

    def search(
        self,
        queries: Tensor,
        tenants: Sequence[str | None],
        k: int,
        canaries: Sequence[bool],
    ) -> list[list[Hit]]:
        """Search the index and name what was found."""
        found = self.index.search(queries, self._allowed(tenants, canaries), k)
        return [[self._hit(row, cosine) for row, cosine in rows] for rows in found]

    def _change(self, change: Change, now: datetime) -> None:
        match change:
            case ReferencePut(reference, descriptors):
                if descriptors is not None:
                    self._forget(reference.reference_id)
                    self._park(reference.reference_id, descriptors)
                self.references[reference.reference_id] = reference
                if reference.canary:
                    self.canaries[reference.reference_id] = reference
                self._note_expiry(reference)
                self._settle([reference.reference_id], now)
            case ReferenceRemoved(reference_id):
                self._forget(reference_id)
                self.references.pop(reference_id, None)
                self.canaries.pop(reference_id, None)
                self.unusable.discard(reference_id)
            case BankPut(bank):
                self.banks[bank.name] = bank
                self._settle(self._of_bank(bank.name), now)
            case BankRemoved(name):
                self.banks.pop(name, None)
                self._settle(self._of_bank(name), now)
            case CalibrationPut(calibration):
                self.calibration = calibration
            case Accepted():
                pass

    def _settle(self, reference_ids: Iterable[str], now: datetime) -> None:
        """Bring every descriptor of these references to its place."""
        leaving: list[Row] = []
        coming: list[Row] = []
        for reference_id in reference_ids:
            reference = self.references.get(reference_id)
            if reference is None:
                continue
            bank, views = self.banks.get(reference.bank), self._views.get(reference_id, ())
            wanted = bank.views if bank and _is_live(reference, bank, now) else ()
            for view in views:
                row = Row(reference_id, view)
                if row in self.index and view not in wanted:
                    leaving.append(row)
                elif row in self._parked and view in wanted:
                    coming.append(row)
            if bank is None or not views:
                self.unusable.add(reference_id)
            else:
                self.unusable.discard(reference_id)
        if leaving:
            descriptors = self.index.remove(leaving).numpy().astype(np.float16)
            self._parked.update(zip(leaving, descriptors, strict=True))
        if coming:
            descriptors = np.stack([self._parked.pop(row) for row in coming])
            columns = [self._column(self.references[row.reference_id]) for row in coming]
            self.index.add(coming, columns, torch.from_numpy(descriptors))

    def _park(self, reference_id: str, descriptors: Descriptors) -> None:
        self._views[reference_id] = descriptors.views
        for view, row in zip(descriptors.views, descriptors.rows, strict=True):
            self._parked[Row(reference_id, view)] = row

    def _forget(self, reference_id: str) -> None:
        """Drop the descriptors of a reference, wherever they are."""
        rows = [Row(reference_id, view) for view in self._views.pop(reference_id, ())]
        self.index.remove([row for row in rows if row in self.index])
        for row in rows:
            self._parked.pop(row, None)

    def _of_bank(self, name: str) -> list[str]:
        return [r.reference_id for r in self.references.values() if r.bank == name]

    def _note_expiry(self, reference: Reference) -> None:
        if reference.expires_at is not None:
            heapq.heappush(self._expiries, (reference.expires_at, reference.reference_id))

    def _column(self, reference: Reference) -> int:
        own = reference.bank, reference.canary
        return self._columns.setdefault(own, len(self._columns))

    def _allowed(self, tenants: Sequence[str | None], canaries: Sequence[bool]) -> Tensor | None:
        """Which columns each query is compared with, [n, columns]; None: all with all."""
        allowed = np.ones((len(tenants), len(self._columns)), dtype=bool)
        for (name, of_canaries), column in self._columns.items():
            if of_canaries:
                allowed[:, column] = canaries
            bank = self.banks.get(name)
            if bank and bank.tenants is not None:
                own = [tenant is None or tenant in bank.tenants for tenant in tenants]
                allowed[:, column] &= own
        if allowed.all():
            return None
        return torch.from_numpy(allowed).to(self.index.device)

    def _hit(self, row: Row, cosine: float) -> Hit:
        reference = self.references[row.reference_id]
        return Hit(reference, self.banks[reference.bank], row.view, cosine)


def _is_live(reference: Reference, bank: Bank, now: datetime) -> bool:
    fresh = reference.expires_at is None or reference.expires_at > now
    return reference.enabled and bank.enabled and fresh
