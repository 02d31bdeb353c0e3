"""A hot set that outlives its process: what its copy keeps of it, and how it is read again."""

from collections.abc import Callable
from datetime import datetime

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.columns import Columns
from worker.hotset.found import Numbers
from worker.hotset.hot_set import HotSet
from worker.hotset.index import SEGMENT_ROWS
from worker.hotset.local_copy import Records
from worker.hotset.matrix import Lock
from worker.hotset.table import FIELDS, NO_ROWS, Ids, Runs, Slots, Table
from worker.hotset.types import BankPut, Calibration, Head, Strict, Views
from worker.records import Version

_FORM = 3
"""Of what a copy keeps; another one is loaded anew."""
_AT_ONCE = 4096
_GARBAGE = 1 << 26
"""Bytes of records that nothing refers to, before they are written anew without them."""


class _Kept(Strict):
    """What a copy's state says, beside its arrays."""

    form: int
    model: str
    dims: int
    version: tuple[int, int]
    mark: str
    accepted: str
    banks: dict[str, str]
    numbers: dict[str, int]
    views: tuple[Views, ...]
    calibration: str | None
    copies: dict[int, tuple[str, ...]]


class KeptHotSet(HotSet):
    """A hot set that can be saved in its copy, and restored from one."""

    def restore(self, now: datetime, interpret: Callable[[bytes], Calibration]) -> None:
        """Take what a copy has saved; it was empty before. `interpret` reads calibrations.

        Raises StoreError where that is not whole, of another model, or of another version of this
        code.
        """
        state = self.copy.load()
        try:
            kept = _Kept.model_validate_json(state["kept"].tobytes())
            if (kept.form, kept.model, kept.dims) != (_FORM, self.model.sha256, self.model.dims):
                raise StoreError("it is of another model or form")
            self._table = Table(state["table"].astype(FIELDS, casting="equiv"))
            count = int(state["rows"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"its state is not whole: {type(error).__name__}") from None
        self._head = Head(Version(*kept.version), kept.mark, kept.accepted)
        self._columns = Columns(dict(kept.numbers), list(kept.views))
        for name, row in kept.banks.items():
            self._put_bank(BankPut(layout.read_bank(name, row.encode()), row.encode()))
        if kept.calibration is not None:
            self.matrix.calibrate(interpret(self.copy.read(_artefact(kept.calibration))))
        self._note_copies(kept.copies)
        self._runs = Runs(self._owners(count))
        self._blank()
        self._verify()
        self.matrix.restore(count)
        try:
            self.matrix.resume(state, lambda: self._take_stock(now))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StoreError(f"its state is not whole: {type(error).__name__}") from None

    def _owners(self, count: int) -> npt.NDArray[np.int32]:
        """Whose each row is, as the table has it. Raises StoreError where two have one."""
        owners = np.full(count, -1, dtype=np.int32)
        slots = self._table.taken
        slots = slots[self._table.rows["first"][slots] != NO_ROWS]
        rows = self._table.rows[slots]
        for code in np.unique(rows["views"]).tolist():
            own = rows["views"] == code
            for number in range(len(self._columns.views[code])):
                at = rows["first"][own].astype(np.int64) + number
                if (at < 0).any() or (at >= count).any() or (owners[at] >= 0).any():
                    raise StoreError("its rows do not go together")
                owners[at] = slots[own]
        return owners

    def _blank(self) -> None:
        """Erase rows that are nobody's: removed when the process was killed, or never saved."""
        owners = self._runs.owners
        for number in range(-(-len(owners) // SEGMENT_ROWS)):
            nobodys = np.ones(SEGMENT_ROWS, dtype=bool)
            own = owners[number * SEGMENT_ROWS : (number + 1) * SEGMENT_ROWS]
            nobodys[: len(own)] = own < 0
            self.copy.segment(number)[nobodys] = 0

    def _verify(self) -> None:
        """Hold every record and descriptor to its checksum. Raises StoreError."""
        rows = self._table.rows[self._table.taken]
        lines = [layout.views_line(views) for views in self._columns.views]
        count = -(-len(self._runs.owners) // SEGMENT_ROWS)
        segments = [memoryview(self.copy.segment(n)).cast("B") for n in range(count)]
        size, records = 2 * self.model.dims, memoryview(self.copy.records.mapped())
        columns = ("offset", "length", "name", "first", "views", "row_sum", "blob_sum")
        for offset, length, name, first, views, row_sum, blob_sum in zip(
            *(rows[column].tolist() for column in columns), strict=True
        ):
            whole = crc32c(records[offset : offset + length]) == row_sum
            if whole and first != NO_ROWS:
                found = crc32c(lines[views], crc32c(records[offset : offset + name + 1]))
                for number in range(first, first + len(self._columns.views[views])):
                    segment, row = divmod(number, SEGMENT_ROWS)
                    found = crc32c(segments[segment][row * size : (row + 1) * size], found)
                whole = found == blob_sum
            if not whole:
                raise StoreError("a value in it is damaged")

    def save(self, lock: Lock) -> None:
        """Save all of it in the copy, then erase what was removed. Raises OSError.

        Called by the one who makes the changes; `lock` keeps searches out where it has to be.
        """
        if self._ids.fresh > _AT_ONCE:
            self._ids = Ids(self._table)
        taken = self._table.taken
        held = int(self._table.rows["length"].sum(dtype=np.int64))
        if self.copy.records.end - held > max(held, _GARBAGE):
            records, moved = self._rewritten(taken)
            with lock():
                self._table.rows["offset"][taken] = moved
                self.copy.records, old = records, self.copy.records
                self._reference_at.cache_clear()
            old.close()
            self._removed = [(first, count, 0, 0) for first, count, _, _ in self._removed]
        kept_artefact = None
        if self.calibration is not None:
            kept_artefact = _artefact(self.calibration.id)
            self.copy.keep(kept_artefact, self.calibration.artefact)
        kept = _Kept(
            form=_FORM,
            model=self.model.sha256,
            dims=self.model.dims,
            version=(self._head.version.epoch, self._head.version.seq),
            mark=self._head.mark,
            accepted=self._head.accepted,
            banks={name: row.decode() for name, row in self._bank_rows.items()},
            numbers=self._columns.banks,
            views=tuple(self._columns.views),
            calibration=self.calibration.id if self.calibration else None,
            copies=self._copies_of,
        )
        state = {
            "kept": np.frombuffer(kept.model_dump_json().encode(), dtype=np.uint8),
            "table": self._table.rows,
            "rows": np.array(len(self._runs.owners)),
        }
        with lock():  # what expires in a search changes it
            found = self.matrix.kept()
        self.copy.save({**state, **found}, kept_artefact)
        self._erase()

    def _rewritten(self, slots: Slots) -> tuple[Records, Numbers]:
        """Their records, without what nothing refers to any more; and where they are now."""
        records, rows = self.copy.new_records(), self._table.rows
        moved = [np.empty(0, dtype=np.int64)]
        for some in np.array_split(slots, 1 + len(slots) // _AT_ONCE):
            old = zip(rows["offset"][some].tolist(), rows["length"][some].tolist(), strict=True)
            moved.append(records.append([self.copy.records.read(o, n) for o, n in old])[0])
        return records, np.concatenate(moved)


def _artefact(calibration_id: str) -> str:
    """The name of a calibration's file in a copy."""
    return f"calibration-{calibration_id}"
