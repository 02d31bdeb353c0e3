"""One version of the hot set, changed in place: policies in memory, descriptors on the device."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby

import numpy as np

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.columns import standing
from worker.hotset.found import Numbers
from worker.hotset.matrix import Lock, Matrix
from worker.hotset.probes import Best
from worker.hotset.searching import Searching
from worker.hotset.table import (
    CANARY,
    NO_ROWS,
    Ids,
    Slots,
)
from worker.hotset.types import (
    Accepted,
    Bank,
    BankPut,
    BankRemoved,
    Calibration,
    CalibrationPut,
    Change,
    Entry,
    Head,
    Reference,
    ReferencePut,
    ReferenceRemoved,
    Snapshot,
    Stored,
    Tallies,
    Tally,
)
from worker.records import Model, Version

_NEAR_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a mirror holds: usable references, their rows in the index, unusable references.

    Unusable are those that cannot be read, have no descriptors by this model, or no bank.
    """

    references: int
    rows: int
    unusable: int


@dataclass(frozen=True, slots=True)
class Against:
    """A hot set as of one version, as far as decisions go by it.

    `best` is how similar each probe of the calibration is to each bank at best, float32 [probes];
    banks without enforced references are left out. `copies` are digests of images that passed for
    benign and are copies of references.
    """

    version: Version
    banks: Mapping[str, Bank]
    calibration: Calibration | None
    best: Mapping[str, Best]
    copies: frozenset[str]


class HotSet(Searching):
    """All of it, as one model sees it. Not thread-safe."""

    def __init__(self, model: Model, matrix: Matrix) -> None:
        """`matrix` is empty."""
        super().__init__(model, matrix)
        self._head = Head(Version(0, 0), "", "")
        self._bank_rows: dict[str, bytes] = {}
        self._against: tuple[tuple[Head, int], Against] | None = None

    # -- what there is --

    @property
    def head(self) -> Head:
        """Where in the store's history it stands."""
        return self._head

    def tallies(self) -> Tallies:
        """Of all that it holds: those of the store where it has all that this model can see."""
        banks = [layout.checksum(k.encode(), row) for k, row in self._bank_rows.items()]
        return Tallies(
            {
                "banks": Tally(len(banks), sum(banks)),
                "references": Tally(len(self._table), self._row_sum),
                f"descriptors:{self.model.sha256}": Tally(self._described.total(), self._blob_sum),
                f"calibration:{self.model.sha256}": self._calibration_tally(),
            }
        )

    @property
    def calibration(self) -> Calibration | None:
        """The current one of the model."""
        return self.matrix.calibration

    def _calibration_tally(self) -> Tally:
        if self.calibration is None:
            return Tally()
        of, current = self.model.sha256.encode(), self.calibration.id.encode()
        return Tally(1, layout.checksum(of, current))

    def sizes(self) -> Sizes:
        """How much is there now."""
        usable = sum(self._described[self._columns.banks[name]] for name in self.banks)
        unreadable = sum(self._find(name) is None for name in self.unreadable)
        return Sizes(usable, len(self.matrix), len(self._table) - usable + unreadable)

    def against(self) -> Against:
        """What decisions go by; the same object while nothing changes."""
        key = self._head, self.matrix.changes
        if self._against is None or self._against[0] != key:
            made = self._made_against(self.banks, self._copies())
            self._against = (self._head, self.matrix.changes), made
        return self._against[1]

    def _made_against(self, banks: Mapping[str, Bank], copies: frozenset[str]) -> Against:
        columns: dict[int, str] = {}
        if self.calibration is not None:
            columns = {self._columns.enforced(name): name for name in banks}
        return Against(
            version=self._head.version,
            banks=dict(banks),
            calibration=self.calibration,
            best={columns[at]: best for at, best in self.matrix.best(list(columns)).items()},
            copies=copies,
        )

    def foresee(self, entry: Entry) -> Against | None:
        """What decisions will go by after an entry that changes every bank's rule; else None.

        That is another calibration, or other images that are copies of references. It is for making
        rules in advance, to be called after `prepare`.
        """
        put: CalibrationPut | None = None
        banks, gone, fresh = dict(self.banks), set[int | None](), set[str]()
        for change in entry.changes:
            match change:
                case BankPut(bank):
                    banks[bank.name] = bank
                case CalibrationPut() if self._is_another(change):
                    put = change
                case ReferencePut(Reference(reference_id=name, copies=own)):
                    gone.add(self._find(name))
                    fresh.update(own)
                case ReferenceRemoved(name):
                    gone.add(self._find(name))
        if put is None and self.calibration is None:
            return None
        copies = self._copies(without=gone) | fresh
        if put is None:
            known = all(name in self._columns.banks for name in banks)
            return self._made_against(banks, copies) if known and copies != self._copies() else None
        codes = {self._columns.enforced(name): name for name in banks if name in self.banks}
        best = self.matrix.prepared_best(list(codes))
        best_of = {codes[column]: found for column, found in best.items()}
        return Against(self._head.version, banks, put.calibration, best_of, copies)

    # -- changes --

    def fill(self, snapshot: Snapshot, now: datetime) -> None:
        """Take all of a snapshot in; it was empty before."""
        head = snapshot.head
        self._head = Head(head.version, head.mark, head.accepted)
        self.matrix.calibrate(snapshot.calibration)
        for bank in snapshot.banks:
            self._put_bank(bank)
        for stored in snapshot.buckets:
            self._extend(stored)
        self._take_stock(now)

    def apply(self, entry: Entry, now: datetime) -> None:
        """Make the changes of one entry; twice does no more."""
        slots, self._against = self._foreseen(entry), None
        if len(slots):
            self._judged_at = max(self._judged_at, now.timestamp())
            self.matrix.assign(*self._ahead(entry, slots, now))
        try:
            self._make(entry, now)
        except StoreError:  # a full disk: what was not changed is to be seen as before
            self._settle(slots, now)
            raise
        accepted = entry.mark if Accepted() in entry.changes else self._head.accepted
        self._head = Head(entry.version, entry.mark, accepted)

    def _make(self, entry: Entry, now: datetime) -> None:
        for new, changes in groupby(entry.changes, self._is_new):
            if new:
                self._add([change for change in changes if isinstance(change, ReferencePut)], now)
            else:
                for change in changes:
                    self._change(change, now)

    def expire(self, now: datetime) -> None:
        """Hide what has expired since, and show again what a clock that was ahead has hidden."""
        at = now.timestamp()
        if at >= self._next_expiry or at < self._judged_at:
            self.matrix.assign(*self._expired(max(at, self._judged_at), at))
            self._judged_at = at
            self._note_expiry(now)

    def prepare_expiry(self, now: datetime, lock: Lock) -> None:
        """Do what takes long of the next `expire`, if it is near, and nothing else expires then."""
        if self.calibration is not None and self._next_expiry <= now.timestamp() + _NEAR_SECONDS:
            at = self._next_expiry
            self.matrix.prepare_move(*self._expired(at, at), lock)

    def _expired(self, until: float, now: float) -> tuple[Numbers, Numbers]:
        """The rows of references that expire by then, and their columns now, in Unix seconds."""
        rows = self._table.rows[self._table.rows["expires"] <= until]
        return self._columns.places(rows, self.banks, now)

    def takes_long(self, entry: Entry) -> bool:
        """Whether an entry is to be prepared while the others' effects can be seen already."""
        if self.calibration is not None:
            return not all(map(self._is_new, entry.changes))
        return any(isinstance(change, CalibrationPut) for change in entry.changes)

    def prepare(self, entry: Entry, now: datetime, lock: Lock) -> None:
        """Do what takes long of applying an entry, while the set is still searched as it is.

        Nothing else may be applied in between, by the one who makes the changes. `lock` keeps
        searches out for a moment: what expires in one changes what is prepared from.
        """
        for change in entry.changes:
            if isinstance(change, CalibrationPut) and self._is_another(change):
                self.matrix.prepare(change.calibration)
                return
        slots = self._foreseen(entry)
        if len(slots):
            self.matrix.prepare_move(*self._ahead(entry, slots, now), lock)

    def _foreseen(self, entry: Entry) -> Slots:
        """The references that there are already whose rows an entry may move, if there are probes.

        For the probes' sake they are moved together and before its changes, which then move only
        what this has left. So it can be prepared.
        """
        slots = [np.empty(0, dtype=np.int64)]
        for change in entry.changes if self.calibration is not None else ():
            match change:
                case BankPut(bank) if self._is_seen_otherwise(bank):
                    slots.append(self._slots_of(bank.name))
                case ReferencePut(Reference(reference_id=name)) | ReferenceRemoved(name):
                    if (slot := self._find(name)) is not None:
                        slots.append(np.array([slot]))
        return np.unique(np.concatenate(slots))

    def _ahead(self, entry: Entry, slots: Slots, now: datetime) -> tuple[Numbers, Numbers]:
        """The rows of these references, and the columns that an entry moves them to.

        None, where they are described anew or removed.
        """
        banks, rows = dict(self.banks), self._table.rows[slots]
        stands: dict[str, tuple[int, float]] = {}
        for change in entry.changes:
            match change:
                case BankPut(bank):
                    banks[bank.name] = bank
                case ReferencePut(reference, descriptors=None):
                    stands[reference.reference_id] = standing(reference)
                case ReferencePut(Reference(reference_id=name)) | ReferenceRemoved(name):
                    stands[name] = 0, np.inf
        for name, stand in stands.items():
            if (slot := self._find(name)) is not None:
                at = np.searchsorted(slots, slot)
                rows["flags"][at], rows["expires"][at] = stand
        return self._columns.places(rows, banks, now.timestamp())

    def _is_seen_otherwise(self, bank: Bank) -> bool:
        """Whether other rows of a bank can be seen by another policy."""
        old = self.banks.get(bank.name)
        return old is None or (old.enabled, old.views) != (bank.enabled, bank.views)

    def _is_another(self, change: CalibrationPut) -> bool:
        current = self.calibration.id if self.calibration else None
        return change.model_sha256 == self.model.sha256 and change.calibration_id != current

    def _is_new(self, change: Change) -> bool:
        return (
            isinstance(change, ReferencePut) and self._find(change.reference.reference_id) is None
        )

    def _add(self, puts: Sequence[ReferencePut], now: datetime) -> None:
        """Add new references at once; of one that comes twice the last counts."""
        latest = list({put.reference.reference_id: put for put in puts}.values())
        blobs = [
            layout.write_descriptors(put.descriptors) if put.descriptors is not None else None
            for put in latest
        ]
        slots = self._extend(
            Stored([put.reference for put in latest], [put.row for put in latest], blobs)
        )
        for slot in slots.tolist():
            self._ids.insert(int(self._table.rows["hash"][slot]), slot)
            self._count(slot, 1)
        self.unreadable -= {put.reference.reference_id for put in latest}
        self._next_expiry = min(self._next_expiry, self._table.rows["expires"][slots].min())
        self._settle(slots, now)

    def _change(self, change: Change, now: datetime) -> None:
        match change:
            case ReferencePut(reference):
                if (slot := self._find(reference.reference_id)) is not None:
                    self._settle(self._replace(slot, change), now)
            case ReferenceRemoved(reference_id):
                self.unreadable.discard(reference_id)
                if (slot := self._find(reference_id)) is not None:
                    self._remove(slot)
            case BankPut():
                self._settle(self._put_bank(change), now)
            case BankRemoved(name):
                self.banks.pop(name, None)
                self._screens = None
                self._bank_rows.pop(name, None)
                self._settle(self._slots_of(name), now)
            case CalibrationPut(calibration=calibration) if self._is_another(change):
                self.matrix.calibrate(calibration)
            case CalibrationPut():
                pass
            case Accepted():
                self.unreadable.clear()

    def _put_bank(self, change: BankPut) -> Slots:
        """Put a bank, and tell of which references other rows can be seen from now on."""
        otherwise = self._is_seen_otherwise(change.bank)
        self._give_numbers([change.bank.name])
        self.banks[change.bank.name] = change.bank
        self._screens = None
        self._bank_rows[change.bank.name] = change.row
        return self._slots_of(change.bank.name) if otherwise else np.empty(0, dtype=np.int64)

    def _take_stock(self, now: datetime) -> None:
        """Find, count and show what was taken in all at once."""
        rows = self._table.rows[self._table.taken]
        self._ids = Ids(self._table)
        self._row_sum = int(rows["row_sum"].sum(dtype=np.int64))
        self._blob_sum = int(rows["blob_sum"].sum(dtype=np.int64))
        self._described = Counter(rows["bank"][rows["first"] != NO_ROWS].tolist())
        self._settle(self._table.taken, now)
        self._note_expiry(now)

    # -- columns --

    def _settle(self, slots: Slots, now: datetime) -> None:
        """Give every row of these references the column that it has now."""
        self._judged_at = max(self._judged_at, now.timestamp())
        rows = self._table.rows[slots]
        self.matrix.assign(*self._columns.places(rows, self.banks, now.timestamp()))

    def _copies(self, without: Collection[int | None] = ()) -> frozenset[str]:
        """Of references that block: what an allow bank or a canary shows is benign.

        Those in some slots are left out.
        """
        names, rows = self._columns.names, self._table.rows
        return frozenset(
            chain.from_iterable(
                own
                for slot, own in self._copies_of.items()
                if slot not in without
                and not rows["flags"][slot] & CANARY
                and (bank := self.banks.get(names[int(rows["bank"][slot])])) is not None
                and bank.kind == "block"
            )
        )

    def _slots_of(self, bank: str) -> Slots:
        rows = self._table.rows
        return np.flatnonzero(
            (rows["bank"] == self._columns.banks.get(bank, -1)) & (rows["length"] > 0)
        )

    def _note_expiry(self, now: datetime) -> None:
        times = self._table.rows["expires"]
        self._next_expiry = times[times > now.timestamp()].min(initial=np.inf)
