"""The references of a hot set: a table of them, records in the copy, rows in a matrix."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch
from crc32c import crc32c

from worker.hotset import layout
from worker.hotset.columns import MOST_NUMBERS, Columns, standing
from worker.hotset.index import NOBODYS
from worker.hotset.layout import Unusable, reject
from worker.hotset.local_copy import LocalCopy
from worker.hotset.matrix import Matrix
from worker.hotset.table import NO_ROWS, Ids, Runs, Slots, Table, hash_of
from worker.hotset.types import Bank, Hit, Reference, ReferencePut, Stored
from worker.records import Model

_NORMS_AT_ONCE = 512  # as many as the caches hold
_NAMED_AT_ONCE = 8192


class Holdings:
    """References are taken in, replaced, counted, found by name, and erased.

    Which of them can match is not known here: rows that are new have no column. Not thread-safe.
    """

    def __init__(self, model: Model, matrix: Matrix) -> None:
        """`matrix` is empty."""
        self.model = model
        self.matrix = matrix
        self.copy = matrix.copy
        self.banks: dict[str, Bank] = {}
        self.unreadable: set[str] = set()
        self._columns = Columns()
        self._table = Table()
        self._ids = Ids(self._table)
        self._runs = Runs()
        self._described = Counter[int]()  # references that are, by the code of their bank
        self._row_sum = self._blob_sum = 0
        self._next_expiry = np.inf
        self._judged_at = -np.inf  # the latest time by which references were taken for expired
        self._copies_of: dict[int, tuple[str, ...]] = {}  # of references that have some, by slot
        self._removed: list[tuple[int, int, int, int]] = []  # runs of rows and records to be erased
        # It knows the copy and not this set: a cycle would keep gigabytes after a swap.
        self._reference_at = lru_cache(_NAMED_AT_ONCE)(partial(_read_reference, self.copy))

    def rows_of(self, hits: Sequence[Hit]) -> npt.NDArray[np.float32]:
        """Return the descriptors that were hit, as stored: [n, dims].

        A row is NaN if its reference is not the same any more.
        """
        numbers = np.array([self._number_of(hit) for hit in hits], dtype=np.int64)
        rows = np.full((len(hits), self.model.dims), np.nan, dtype=np.float32)
        there = numbers != NO_ROWS
        rows[there] = self.copy.read_rows(numbers[there])
        return rows

    def _number_of(self, hit: Hit) -> int:
        """Return the row that was hit, or NO_ROWS if its reference has changed since."""
        slot = self._find(hit.reference.reference_id)
        if slot is None or self._reference(slot) != hit.reference:
            return NO_ROWS
        row = self._table.rows[slot]
        views = self._columns.views[row["views"]] if row["first"] != NO_ROWS else ()
        for number, view in enumerate(views):
            if view == hit.view:
                return int(row["first"]) + number
        return NO_ROWS

    def _extend(self, stored: Stored) -> Slots:
        """Take many new references in at once; they are neither found nor counted yet."""
        self.unreadable |= stored.unreadable
        self._give_numbers(sorted({reference.bank for reference in stored.references}))
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

    def _replace(self, slot: int, change: ReferencePut) -> Slots:
        reference, descriptors = change.reference, change.descriptors
        name = reference.reference_id.encode()
        self._give_numbers([reference.bank])
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

    def _give_numbers(self, banks: Collection[str]) -> None:
        """Give these banks numbers; if there are too few, take back those of banks that are gone.

        Raises Unusable where there are too few all the same. Comes first, so that nothing is
        changed by halves.
        """
        if len(self._columns.banks.keys() | set(banks)) > MOST_NUMBERS:
            used = np.unique(self._table.rows["bank"][self._table.taken])
            self._columns.keep_only({*self.banks, *banks}, set(used.tolist()))
        for bank in banks:
            self._columns.of_bank(bank)

    def _facts(self, reference: Reference) -> tuple[int, int, float]:
        """Number of its bank, flags, when it expires."""
        return self._columns.of_bank(reference.bank), *standing(reference)

    def _note_copies(self, copies: Mapping[int, tuple[str, ...]]) -> None:
        """Note which benign images are copies of the references in these slots."""
        if all(self._copies_of.get(slot, ()) == own for slot, own in copies.items()):
            return
        self._copies_of |= copies
        self._copies_of = {slot: own for slot, own in self._copies_of.items() if own}

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
