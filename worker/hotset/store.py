"""The hot set in Redis, as commands see it: every change of it, and what is there."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import batched
from typing import Any

from worker import settings
from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.accepting import Recount
from worker.hotset.census import Census
from worker.hotset.commits import NAMED, Commits, Step, What
from worker.hotset.connection import Client, as_store_errors, connect
from worker.hotset.duty import Duty
from worker.hotset.layout import Keys
from worker.hotset.planning import ANY, PART, Planning, readable_bank
from worker.hotset.reader import Interpret, Reader
from worker.hotset.types import (
    Bank,
    BankRemoved,
    CalibrationPut,
    Descriptors,
    KeptCalibration,
    Reference,
    Tombstone,
)
from worker.records import Model, Version

CHUNK = 64
"""References that are added, changed or removed as one change."""
NO_CALIBRATION = b"none"
"""What is noted as the calibration before the first."""
_NAME_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a person accepted; `removed` are the values that could not be read."""

    version: Version
    references: int
    removed: Sequence[str]


@dataclass(frozen=True, slots=True)
class Added:
    """What `add_references` did; `version` is the store's after it."""

    version: Version
    added: int
    replaced: int
    unchanged: int


class Store(Planning):
    """The hot set of one namespace: what is there, and every change of it, made by `by`.

    All methods raise StoreError where Redis is away.
    """

    def __init__(self, client: Client, namespace: str, block_seconds: float, by: str) -> None:
        super().__init__(client, Keys(namespace))
        self._by = by
        self._block_seconds = block_seconds
        self._commits = Commits(client, self._keys, by)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def of_model(self, model: Model, interpret: Interpret) -> Reader:
        """What a replica reads: the hot set as a model sees it; `interpret` reads calibrations."""
        return Reader(self._client, self._keys, model, self._block_seconds, interpret)

    def duty(self) -> Duty:
        """What the replicas share about canaries."""
        return Duty(self._client, self._keys)

    def census(self) -> Census:
        """What the replicas count together, for the flood alarm."""
        return Census(self._client, self._keys, self._by)

    def version(self) -> Version:
        """Where the history stands. Raises StoreError before the first change."""
        return self._commits.version()

    # -- changes --

    def set_bank(self, bank: Bank) -> Version:
        """Add a bank, or put it in the place of the one that there is. Creates the epoch."""
        return self.change_bank(bank.name, lambda _: bank)

    def change_bank(
        self,
        name: str,
        change: Callable[[Bank | None], Bank],
        under: tuple[str, str | None] | None = None,
    ) -> Version:
        """Change the policy of a bank as it is then; None: there is none. Creates the epoch.

        `under` are the digest of a model and the id of the calibration that is current for it, as
        far as the writer knows. Raises StoreError where it is another one by now.
        """

        def plan() -> Step:
            raw = self._client.hget(self._keys.banks, name)
            bank = change(readable_bank(name, raw) if raw else None)
            step = Step("bank_set", bank.model_dump(mode="json"))
            if under is not None:
                self._hold(step, *under)
            self._put_bank(step, bank, raw)
            return step

        return self._commits.make(plan, may_begin=True)[1]

    def remove_bank(self, name: str) -> Version:
        """Remove a bank without references. Raises StoreError if it has some, or is not there."""

        def plan() -> Step:
            step = Step("bank_removed", {"bank": name})
            seq = self._client.hget(self._keys.head, "seq") or b""
            old = self._client.hget(self._keys.banks, name)
            if old is None:
                raise StoreError(f"there is no bank {name}")
            if count := len(self.references(name)):
                raise StoreError(f"bank {name} has {count} references: remove them first")
            step.write(self._keys.head, "seq", seq, seq)  # no reference came in meanwhile
            step.write(self._keys.banks, name, old, b"", "banks")
            step.changes.append(BankRemoved(name))
            return step

        return self._commits.make(plan)[1]

    def add_references(
        self,
        described: Iterable[tuple[Reference, Descriptors]],
        model: Model,
        calibration_id: str | None = None,
    ) -> Added:
        """Add references with their descriptors by `model`, or replace them. Creates the epoch.

        `calibration_id` is the one whose images were searched for copies of them.

        One that is there already with the same content (whoever added it, and when) stays as it
        is. Descriptors by other models stay too, so one id is always one image.

        Raises StoreError for a bank that is not there, an id that another bank or another image
        has, descriptors that do not fit the model, or if another calibration was applied
        meanwhile; what came before stays added.
        """
        added = replaced = unchanged = 0
        version: Version | None = None
        for chunk in batched(described, CHUNK):
            latest = {one[0].reference_id: one for one in chunk}
            plan = partial(self._plan_adding, latest, model, calibration_id)
            step, version = self._commits.make(plan, may_begin=True)
            added += step.new
            replaced += len(step.changes) - step.new
            unchanged += len(latest) - len(step.changes)
        return Added(version or self._commits.version(), added, replaced, unchanged)

    @as_store_errors
    def would_add(
        self,
        described: Iterable[tuple[Reference, Descriptors]],
        model: Model,
        banks: Collection[str] = (),
    ) -> tuple[int, int, int]:
        """How many `add_references` would add, replace, leave unchanged. Raises as it does.

        `banks` are some that will be there by then.
        """
        new = changed = count = 0
        for chunk in batched(described, CHUNK):
            latest = {one[0].reference_id: one for one in chunk}
            step = self._plan_adding(latest, model, self.calibration_of(model.sha256), banks)
            new, changed, count = new + step.new, changed + len(step.changes), count + len(latest)
        return new, changed - new, count - changed

    def set_enabled(self, reference_ids: Sequence[str], *, enabled: bool) -> Version:
        """Let references match, or not. Raises StoreError if one is not there."""
        return self._mark_references(reference_ids, {"enabled": enabled})

    def set_confirmed(self, reference_ids: Sequence[str], *, confirmed: bool) -> Version:
        """Say that a person vouches for references, or not. Raises StoreError as `set_enabled`."""
        return self._mark_references(reference_ids, {"confirmed": confirmed})

    def remove_references(self, reference_ids: Sequence[str]) -> Version:
        """Remove references with their descriptors; a tombstone stays of each.

        Raises StoreError if one is not there.
        """
        now = datetime.now(UTC)

        def change(step: Step, raw: bytes, old: Reference) -> None:
            stone = Tombstone(reference=old, removed_by=self._by, removed_at=now)
            self._remove(step, old.reference_id, raw)
            row = stone.model_dump_json().encode()
            step.write(self._keys.removed, old.reference_id, ANY, row)

        return self._change_references("references_removed", reference_ids, change)

    def purge_references(self, reference_ids: Sequence[str]) -> Version:
        """Remove references, also those removed already, and every trace of them.

        The stream loses all earlier entries, for they may hold their descriptors: replicas that
        had not read them load a snapshot. Raises StoreError if there is nothing left of one.
        """
        version = self._commits.version()
        for chunk in batched(reference_ids, CHUNK):
            plan = partial(self._plan_purging, chunk)
            _, version = self._commits.make(plan, keep_entries=False)
        return version

    def set_copies(self, copies: Mapping[str, Sequence[str]]) -> Version:
        """Note, for references by id, digests of benign images that are copies of them.

        Raises StoreError if a reference is not there.
        """

        def change(step: Step, raw: bytes, old: Reference) -> None:
            new = old.model_copy(update={"copies": tuple(copies[old.reference_id])})
            if new != old:
                self._put(step, new, raw)
                step.detail["copies"] = list(new.copies[:NAMED])

        return self._change_references("references_changed", list(copies), change)

    @as_store_errors
    def keep_calibration(self, artefact: bytes, model_sha256: str) -> str:
        """Keep an artefact in the store, so that it can be applied; returns its id."""
        calibration_id = layout.calibration_id(artefact)
        parts = {
            str(number): artefact[at : at + PART]
            for number, at in enumerate(range(0, len(artefact), PART))
        }
        for field, part in parts.items():
            self._client.hset(self._keys.artefact(calibration_id), field, part)
        row = KeptCalibration(
            calibration_id=calibration_id,
            model_sha256=model_sha256,
            size=len(artefact),
            added_by=self._by,
            added_at=datetime.now(UTC),
        )
        self._client.hsetnx(self._keys.calibrations, calibration_id, row.model_dump_json())
        return calibration_id

    def apply_calibration(
        self,
        calibration_id: str | None,
        model_sha256: str,
        copies: Mapping[str, Sequence[str]] | None = None,
        at: Version | None = None,
        banks: Sequence[Bank] = (),
    ) -> Version:
        """Make a calibration that is kept a model's current one, or none; note `copies`, set banks.

        All of it is one change. Raises StoreError where it is not kept, a reference is gone, or
        the hot set is no longer the one `at` which copies were looked for.
        """
        copies = copies or {}
        detail: dict[str, Any] = {"calibration": calibration_id, "model": model_sha256}
        if banks:
            detail["banks"] = [bank.model_dump(mode="json") for bank in banks]

        def plan() -> Step:
            step = Step("calibration_set", dict(detail))
            if at is not None:
                if self._commits.version() != at:
                    raise StoreError("the hot set was changed meanwhile: apply it again")
                seq = str(at.seq).encode()
                step.write(self._keys.head, "seq", seq, seq)  # and is still when it is written
            if calibration_id:
                self._hold_kept(step, calibration_id)
            for bank in banks:
                self._put_bank(step, bank, self._client.hget(self._keys.banks, bank.name))
            self._put_copies(step, copies)
            key, kind = self._keys.calibration, f"calibration:{model_sha256}"
            before, after = self._client.hget(key, model_sha256) or b"", calibration_id or ""
            if layout.text(before) != after:
                step.write(key, model_sha256, before, after.encode(), kind)
                step.write(key, f"previous:{model_sha256}", ANY, before or NO_CALIBRATION)
                step.changes.append(CalibrationPut(model_sha256, calibration_id))
            return step

        return self._commits.make(plan)[1]

    @as_store_errors
    def remove_calibration(self, calibration_id: str) -> None:
        """Keep a calibration no longer. Raises StoreError if it is not kept, or is applied."""
        row = self._client.hget(self._keys.calibrations, calibration_id)
        if row is None:
            raise StoreError(f"calibration {calibration_id} is not kept in the store")
        # Without its row it can no longer be applied; it may have been just before.
        self._client.hdel(self._keys.calibrations, calibration_id)
        if calibration_id in self.current_calibrations().values():
            self._client.hset(self._keys.calibrations, calibration_id, row)
            raise StoreError(f"calibration {calibration_id} is applied: apply another one first")
        self._client.unlink(self._keys.artefact(calibration_id))
        self._commits.note("calibration_removed", {"calibration": calibration_id})

    def accept(self) -> Accepted:
        """Make what can be read the set as it should be, in the name of a person.

        What cannot be read is removed, and what there is is counted anew. Raises StoreError if
        the store is empty.
        """
        counts: list[Recount] = []

        def plan() -> Step:
            step, head = Step("accepted"), self.head()
            if head is None:
                raise StoreError("there is no hot set to accept: set a bank or add references")
            counts.append(Recount(self._client, self._keys))
            counts[-1].plan(step, head)
            step.detail |= {
                "references": counts[-1].references,
                "removed": counts[-1].removed[:NAMED],
            }
            return step

        version = self._commits.make(plan)[1]
        return Accepted(version, counts[-1].references, counts[-1].removed)

    # -- how --

    def _mark_references(self, reference_ids: Sequence[str], marks: Mapping[str, bool]) -> Version:
        def change(step: Step, raw: bytes, old: Reference) -> None:
            new = old.model_copy(update=marks)
            if new != old:
                self._put(step, new, raw)
                step.detail |= marks

        return self._change_references("references_changed", reference_ids, change)

    def _change_references(
        self,
        what: What,
        reference_ids: Sequence[str],
        change: Callable[[Step, bytes, Reference], None],
    ) -> Version:
        version = self._commits.version()
        for chunk in batched(reference_ids, CHUNK):

            def plan(chunk: Sequence[str] = chunk) -> Step:
                step = Step(what)
                for reference_id, raw in self._fetch(chunk, self._keys.references).items():
                    if raw is None:
                        raise StoreError(f"there is no reference {reference_id}")
                    change(step, raw, layout.read_reference(reference_id, raw))
                step.named(chunk)
                return step

            version = self._commits.make(plan)[1]
        return version


def open_store(config: settings.Redis, by: str = "copysieve") -> Store:
    """Connect, to read or to make changes in the name of `by`.

    Raises StoreError in one line, without the password, if Redis is away.
    """
    if not 0 < len(by) <= _NAME_LENGTH:
        raise StoreError(f"who makes the changes is told in 1 to {_NAME_LENGTH} characters")
    # A blocking read must end well before the socket's timeout does.
    return Store(connect(config), config.namespace, min(0.5, config.timeout_seconds / 2), by)
