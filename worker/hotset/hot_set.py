"""One version of the hot set, changed in place: policies in memory, descriptors on the device."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from itertools import chain, groupby

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.columns import Columns, standing
from worker.hotset.index import NOBODYS, Found, Numbers
from worker.hotset.layout import Unusable, reject
from worker.hotset.local_copy import LocalCopy
from worker.hotset.matrix import Lock, Matrix
from worker.hotset.probes import Best
from worker.hotset.table import (
    CANARY,
    NO_ROWS,
    Ids,
    Runs,
    Slots,
    Table,
    hash_of,
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
    Hit,
    Reference,
    ReferencePut,
    ReferenceRemoved,
    Snapshot,
    Stored,
    Tallies,
    Tally,
)
from worker.records import Model, Version

_NORMS_AT_ONCE = 512  # as many as the caches hold
_NAMED_AT_ONCE = 8192
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


class HotSet:
    """All of it, as one model sees it. Not thread-safe."""

    def __init__(self, model: Model, matrix: Matrix) -> None:
        """`matrix` is empty."""
        self.model = model
        self.matrix = matrix
        self.copy = matrix.copy
        self.banks: dict[str, Bank] = {}
        self.unreadable: set[str] = set()
        self._head = Head(Version(0, 0), "", "")
        self._bank_rows: dict[str, bytes] = {}
        self._columns = Columns()
        self._table = Table()
        self._ids = Ids(self._table)
        self._runs = Runs()
        self._described = Counter[int]()  # references that are, by the code of their bank
        self._row_sum = self._blob_sum = 0
        self._next_expiry = np.inf
        self._copies_of: dict[int, tuple[str, ...]] = {}  # of references that have some, by slot
        self._removed: list[tuple[int, int, int, int]] = []  # runs of rows and records to be erased
        # It knows the copy and not this set: a cycle would keep gigabytes after a swap.
        self._reference_at = lru_cache(_NAMED_AT_ONCE)(partial(_read_reference, self.copy))

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

    def canaries(self) -> list[Reference]:
        """The references that are canaries, by id."""
        slots = np.flatnonzero(self._table.rows["flags"] & CANARY)
        found = [self._reference(slot) for slot in slots.tolist()]
        return sorted(found, key=lambda one: one.reference_id)

    def search(
        self, queries: Tensor, tenants: Sequence[str | None], k: int, canaries: Sequence[bool]
    ) -> list[list[Hit]]:
        """Search the index and name what was found; ties go by reference, then view."""
        allowed = self._columns.allowed(self.banks, tenants, canaries)
        return [self._hits(found, k) for found in self.matrix.search(queries, allowed, k)]

    def against(self) -> Against:
        """What decisions go by."""
        columns = {self._columns.enforced(name): name for name in self.banks}
        best = self.matrix.best(list(columns))
        return Against(
            version=self._head.version,
            banks=dict(self.banks),
            calibration=self.calibration,
            best={columns[at]: found for at, found in best.items()},
            copies=self._copies(),
        )

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
        slots = self._foreseen(entry)
        if len(slots):
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
        """Hide what has expired since."""
        if now.timestamp() >= self._next_expiry:
            self.matrix.assign(*self._expired(now.timestamp()))
            self._note_expiry(now)

    def prepare_expiry(self, now: datetime, lock: Lock) -> None:
        """Do what takes long of the next `expire`, if it is near, and nothing else expires then."""
        if self.calibration is not None and self._next_expiry <= now.timestamp() + _NEAR_SECONDS:
            self.matrix.prepare_move(*self._expired(self._next_expiry), lock)

    def _expired(self, at: float) -> tuple[Numbers, Numbers]:
        """The rows of references that have expired at a time, in Unix seconds, and no column."""
        rows = self._table.rows[self._table.rows["expires"] <= at]
        return self._columns.places(rows, self.banks, at)

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
        self.banks[change.bank.name] = change.bank
        self._bank_rows[change.bank.name] = change.row
        self._columns.of_bank(change.bank.name)
        return self._slots_of(change.bank.name) if otherwise else np.empty(0, dtype=np.int64)

    def _replace(self, slot: int, change: ReferencePut) -> Slots:
        reference, descriptors = change.reference, change.descriptors
        name = reference.reference_id.encode()
        self.unreadable.discard(reference.reference_id)
        # What a full disk may refuse comes first, so that nothing is changed by halves.
        (offset,), (length,) = self.copy.records.append([name + b"\0" + change.row])
        first = NO_ROWS
        if descriptors is not None:
            first = int(self._runs.take([slot], len(descriptors.views))[0])
            self.matrix.put(first, descriptors.rows)
        self._count(slot, -1)
        self._forget(slot, rows=descriptors is not None)
        row = self._table.rows[slot]
        row["offset"], row["length"] = offset, length
        row["row_sum"] = layout.checksum(name, change.row)
        row["bank"], row["flags"], row["expires"] = self._facts(reference)
        self._note_copies({slot: reference.copies})
        if descriptors is not None:
            row["views"] = self._columns.of_views(descriptors.views)
            row["first"] = first
            row["blob_sum"] = layout.checksum(name, layout.write_descriptors(descriptors))
        self._next_expiry = min(self._next_expiry, float(row["expires"]))
        self._count(slot, 1)
        return np.array([slot])

    def _count(self, slot: int, sign: int) -> None:
        """Add a reference to the tallies, or take it off."""
        row = self._table.rows[slot]
        self._row_sum += sign * int(row["row_sum"])
        if row["first"] != NO_ROWS:
            self._blob_sum += sign * int(row["blob_sum"])
            self._described[int(row["bank"])] += sign

    def _take_stock(self, now: datetime) -> None:
        """Find, count and show what was taken in all at once."""
        rows = self._table.rows[self._table.taken]
        self._ids = Ids(self._table)
        self._row_sum = int(rows["row_sum"].sum(dtype=np.int64))
        self._blob_sum = int(rows["blob_sum"].sum(dtype=np.int64))
        self._described = Counter(rows["bank"][rows["first"] != NO_ROWS].tolist())
        self._settle(self._table.taken, now)
        self._note_expiry(now)

    def _extend(self, stored: Stored) -> Slots:
        """Take many new references in at once; they are neither found nor counted yet."""
        self.unreadable |= stored.unreadable
        names = [reference.reference_id.encode() for reference in stored.references]
        records = [name + b"\0" + row for name, row in zip(names, stored.rows, strict=True)]
        if not records:
            return np.empty(0, dtype=np.int64)
        offsets, lengths = self.copy.records.append(records)
        slots = self._table.take(len(records))
        rows = self._table.rows
        rows["hash"][slots] = [hash_of(one.reference_id) for one in stored.references]
        rows["name"][slots] = [len(name) for name in names]
        rows["offset"][slots], rows["length"][slots] = offsets, lengths
        rows["row_sum"][slots] = [crc32c(record) for record in records]
        rows["first"][slots] = NO_ROWS
        facts = np.array([self._facts(one) for one in stored.references])
        rows["bank"][slots], rows["flags"][slots], rows["expires"][slots] = facts.T
        copies = zip(slots.tolist(), stored.references, strict=True)
        self._note_copies({slot: one.copies for slot, one in copies if one.copies})
        alike: dict[tuple[int, bytes], list[int]] = {}
        for number, blob in enumerate(stored.blobs):
            if blob is not None:
                line = blob[: blob.find(b"\n") + 1]
                alike.setdefault((len(blob), line), []).append(number)
        for (_, line), numbers in alike.items():
            blobs = [blob for n in numbers if (blob := stored.blobs[n]) is not None]
            self._describe(line, [names[n] for n in numbers], blobs, slots[numbers])
        return slots

    def _describe(
        self, line: bytes, names: Sequence[bytes], blobs: Sequence[bytes], slots: Slots
    ) -> None:
        """Take descriptors of the same views in; those that break the rules are left out."""
        try:
            views = layout.read_views(layout.text(names[0]), line.rstrip(b"\n"))
            if len(blobs[0]) - len(line) != 2 * len(views) * self.model.dims:
                raise Unusable("descriptors", layout.text(names[0]), "length")
        except Unusable as error:
            for name in map(layout.text, names):
                reject(Unusable("descriptors", name, error.field))
            return
        raw = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), -1)
        stored = raw[:, len(line) :].copy().view("<f2")
        stored = stored.reshape(len(blobs), len(views), self.model.dims)
        norms = [
            torch.linalg.vector_norm(some.float(), dim=2)
            for some in torch.split(torch.from_numpy(stored), _NORMS_AT_ONCE)
        ]
        good = layout.are_unit(torch.cat(norms).numpy()).all(1)
        for name in map(layout.text, (names[n] for n in np.flatnonzero(~good).tolist())):
            reject(Unusable("descriptors", name, "norm"))
        if not good.any():
            return
        rows, owners = self._table.rows, slots[good]
        firsts = self._runs.take(owners, len(views))
        rows["first"][owners] = firsts
        rows["views"][owners] = self._columns.of_views(views)
        sums = [crc32c(b, crc32c(n + b"\0")) for n, b in zip(names, blobs, strict=True)]
        rows["blob_sum"][owners] = np.array(sums, dtype=np.uint32)[good]
        # Mostly they are one run; where rows are used again they are several.
        cuts = 1 + np.flatnonzero(np.diff(firsts) != len(views))
        runs = zip(np.split(firsts, cuts), np.split(stored[good], cuts), strict=True)
        for numbers, rows_of in runs:
            self.matrix.put(int(numbers[0]), rows_of.reshape(-1, self.model.dims))

    def _remove(self, slot: int) -> None:
        self._count(slot, -1)
        self._forget(slot, rows=True)
        self._note_copies({slot: ()})
        self._table.free(slot)

    def _forget(self, slot: int, *, rows: bool) -> None:
        """Hide the rows of a reference, if they go, and let its record be erased."""
        row, first, count = self._table.rows[slot], 0, 0
        if rows and row["first"] != NO_ROWS:
            first, count = int(row["first"]), len(self._columns.views[row["views"]])
            self.matrix.assign(np.arange(first, first + count), np.full(count, NOBODYS))
            row["first"], row["blob_sum"] = NO_ROWS, 0
        self._removed.append((first, count, int(row["offset"]), int(row["length"])))
        if self.copy.folder is None:
            self._erase()

    def _erase(self) -> None:
        """Erase what was removed; its rows can be given out again."""
        while self._removed:
            first, count, offset, length = self._removed.pop()
            self.copy.records.erase(offset, length)
            if count:
                blank = np.zeros((count, self.model.dims), dtype=np.float16)
                self.copy.write_rows(first, blank)
                self._runs.give_back(first, count)

    # -- columns --

    def _settle(self, slots: Slots, now: datetime) -> None:
        """Give every row of these references the column that it has now."""
        rows = self._table.rows[slots]
        self.matrix.assign(*self._columns.places(rows, self.banks, now.timestamp()))

    def _facts(self, reference: Reference) -> tuple[int, int, float]:
        """Number of its bank, flags, when it expires."""
        return self._columns.of_bank(reference.bank), *standing(reference)

    def _note_copies(self, copies: Mapping[int, tuple[str, ...]]) -> None:
        """Note which benign images are copies of the references in these slots."""
        if all(self._copies_of.get(slot, ()) == own for slot, own in copies.items()):
            return
        self._copies_of |= copies
        self._copies_of = {slot: own for slot, own in self._copies_of.items() if own}

    def _copies(self) -> frozenset[str]:
        """Of references that block: what an allow bank or a canary shows is benign."""
        names, rows = list(self._columns.banks), self._table.rows
        return frozenset(
            chain.from_iterable(
                own
                for slot, own in self._copies_of.items()
                if not rows["flags"][slot] & CANARY
                and (bank := self.banks.get(names[rows["bank"][slot]])) is not None
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

    # -- names --

    def _hits(self, found: Found, k: int) -> list[Hit]:
        hits = [self._hit(*one) for one in zip(*(part.tolist() for part in found), strict=True)]
        hits.sort(key=lambda hit: (-hit.similarity, hit.reference.reference_id, hit.view))
        return hits[:k]

    def _hit(self, number: int, similarity: float, cosine: float) -> Hit:
        slot = self._runs.owner(number)
        row, reference = self._table.rows[slot], self._reference(slot)
        view = self._columns.views[row["views"]][number - row["first"]]
        return Hit(reference, self.banks[reference.bank], view, cosine, similarity)

    def _find(self, reference_id: str) -> int | None:
        hashed = hash_of(reference_id)
        for slot in self._ids.find(hashed):
            is_its = self._table.rows["hash"][slot] == hashed
            if is_its and self._reference(slot).reference_id == reference_id:
                return slot
        return None

    def _reference(self, slot: int) -> Reference:
        row = self._table.rows[slot]
        return self._reference_at(int(row["offset"]), int(row["length"]))


def _read_reference(copy: LocalCopy, offset: int, length: int) -> Reference:
    name, _, row = copy.records.read(offset, length).partition(b"\0")
    return layout.read_reference(layout.text(name), row)
