"""The hot set in Redis, as commands see it: what is there, and every change of it.

A change is made by comparing and writing in one script (`commit.lua`): read, decide here, write
only if nothing has changed in between, else read again. So two writers never overwrite each other,
a repeated call changes nothing, and the stream has an entry for exactly what was written.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib import resources
from itertools import batched

from worker import settings
from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.connection import Client, as_store_errors, connect
from worker.hotset.duty import Duty
from worker.hotset.layout import Keys, Unusable, bucket_of, reject
from worker.hotset.reader import Judge, Reader
from worker.hotset.types import (
    Accepted,
    Bank,
    BankPut,
    BankRemoved,
    Calibration,
    CalibrationPut,
    Change,
    Descriptors,
    Head,
    Heartbeat,
    Reference,
    ReferencePut,
    ReferenceRemoved,
    Tombstone,
)
from worker.records import Model, Version

STREAM_LENGTH = 20_000
"""Changes that the stream keeps, roughly. Whoever is further behind loads a snapshot."""

_CHUNK = 64
_ATTEMPTS = 20
_ANY = "*"


@dataclass(frozen=True, slots=True)
class Added:
    """What `add_references` did; `version` is the store's after it."""

    version: Version
    added: int
    replaced: int
    unchanged: int


@dataclass(slots=True)
class _Step:
    """One atomic step: values compared and written, and the changes that tell of it.

    `new` counts the references among them that were not there before.
    """

    writes: list[tuple[str, str, bytes | str, bytes | str]] = field(default_factory=list)
    entries: list[tuple[str, layout.Fields]] = field(default_factory=list)
    new: int = 0

    def write(self, key: str, name: str, expected: bytes | str, value: bytes | str) -> None:
        self.writes.append((key, name, expected, value))

    def tell(self, change: Change, model_sha256: str = "") -> str:
        mark = uuid.uuid4().hex
        self.entries.append((mark, layout.write_change(change, time.time(), model_sha256)))
        return mark


class Store:
    """The hot set of one namespace. All methods raise StoreError where Redis is away."""

    def __init__(self, client: Client, namespace: str, block_seconds: float) -> None:
        self._client = client
        self._keys = Keys(namespace)
        self._block_seconds = block_seconds
        scripts = resources.files(__package__)
        self._script = client.register_script(scripts.joinpath("commit.lua").read_bytes())
        self._lacking = client.register_script(scripts.joinpath("lacking.lua").read_bytes())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def of_model(self, model: Model, judge: Judge = lambda _blob, _model: None) -> Reader:
        """What a replica reads: the hot set as this model sees it; `judge` knows calibrations."""
        return Reader(self._client, self._keys, model, self._block_seconds, judge)

    def duty(self) -> Duty:
        """What the replicas share about canaries."""
        return Duty(self._client, self._keys)

    # -- what is there --

    @as_store_errors
    def head(self) -> Head | None:
        """Where the history stands; None before the first change."""
        return layout.read_head(self._client.hgetall(self._keys.head))

    @as_store_errors
    def banks(self) -> dict[str, Bank]:
        """All banks that can be read, by name."""
        found: dict[str, Bank] = {}
        for name, raw in self._client.hgetall(self._keys.banks).items():
            try:
                found[layout.text(name)] = layout.read_bank(layout.text(name), raw)
            except Unusable as error:
                reject(error)
        return dict(sorted(found.items()))

    @as_store_errors
    def references(self, bank: str | None = None) -> list[Reference]:
        """All references that can be read, of one bank or of all, sorted by id."""
        found: list[Reference] = []
        for bucket in range(layout.BUCKETS):
            for name, raw in self._client.hgetall(self._keys.references(bucket)).items():
                try:
                    found.append(layout.read_reference(layout.text(name), raw))
                except Unusable as error:
                    reject(error)
        wanted = (one for one in found if bank in (None, one.bank))
        return sorted(wanted, key=lambda one: one.reference_id)

    @as_store_errors
    def reference(self, reference_id: str) -> Reference | None:
        """One reference. Raises Unusable (a StoreError) if its row is."""
        raw = self._client.hget(self._keys.references(bucket_of(reference_id)), reference_id)
        return layout.read_reference(reference_id, raw) if raw else None

    @as_store_errors
    def tombstone(self, reference_id: str) -> Tombstone | None:
        """What is kept of a reference that was removed. Raises Unusable if its row is."""
        raw = self._client.hget(self._keys.removed, reference_id)
        return layout.read_row(Tombstone, reference_id, raw) if raw else None

    @as_store_errors
    def calibration(self) -> Calibration | None:
        """The current calibration."""
        return layout.read_calibration(self._client.hgetall(self._keys.calibration))

    @as_store_errors
    def heartbeats(self) -> list[Heartbeat]:
        """What the live replicas tell, by name; names of dead ones are forgotten here."""
        names = sorted(layout.text(name) for name in self._client.smembers(self._keys.replicas))
        found: list[Heartbeat] = []
        for name in names:
            raw = self._client.get(self._keys.replica(name))
            if raw is None:
                self._client.srem(self._keys.replicas, name)
                continue
            try:
                found.append(layout.read_row(Heartbeat, name, raw))
            except Unusable as error:
                reject(error)
        return found

    @as_store_errors
    def described(self, model_sha256: str) -> int:
        """How many references have descriptors by a model."""
        pipeline = self._client.pipeline(transaction=False)
        for bucket in range(layout.BUCKETS):
            pipeline.hlen(self._keys.descriptors(model_sha256, bucket))
        return sum(pipeline.execute())

    @as_store_errors
    def lacking_views(self) -> dict[str, dict[str, int]]:
        """How many references lack a view that their bank wants: by bank, and by model's name.

        They were added before the bank wanted it. Only banks and models that have some are told.
        """
        banks = self.banks().values()
        policies = [part for bank in banks for part in (bank.name, ",".join(bank.views))]
        found: dict[str, dict[str, int]] = {}
        for digest, name in self._client.hgetall(self._keys.models).items():
            sha256, model = layout.text(digest), layout.text(name)
            for bucket in range(layout.BUCKETS):
                keys = [self._keys.references(bucket), self._keys.descriptors(sha256, bucket)]
                for bank_name, count in batched(self._lacking(keys=keys, args=policies), 2):
                    of_bank = found.setdefault(layout.text(bank_name), {})
                    of_bank[model] = of_bank.get(model, 0) + count
        return found

    # -- changes --

    def set_bank(self, bank: Bank) -> Version:
        """Add a bank or change its policy. Creates the epoch."""

        def step() -> _Step:
            plan, row = _Step(), bank.model_dump_json()
            old = self._client.hget(self._keys.banks, bank.name) or b""
            if old != row.encode():
                plan.write(self._keys.banks, bank.name, old, row)
                plan.tell(BankPut(bank))
            return plan

        return self._commit(step, may_begin=True)

    def remove_bank(self, name: str) -> Version:
        """Remove a bank without references. Raises StoreError if it has some, or is not there."""

        def step() -> _Step:
            plan = _Step()
            seq = self._client.hget(self._keys.head, "seq") or b""
            old = self._client.hget(self._keys.banks, name)
            if old is None:
                raise StoreError(f"there is no bank {name}")
            if count := len(self.references(name)):
                raise StoreError(f"bank {name} has {count} references: remove them first")
            plan.write(self._keys.head, "seq", seq, seq)  # no reference came in meanwhile
            plan.write(self._keys.banks, name, old, "")
            plan.tell(BankRemoved(name))
            return plan

        return self._commit(step)

    def add_references(
        self, described: Iterable[tuple[Reference, Descriptors]], model: Model
    ) -> Added:
        """Add references with their descriptors by `model`, or replace them. Creates the epoch.

        One that is there already with the same content (whoever added it, and when) stays as it
        is. Descriptors by other models stay too, so one id is always one image.

        Raises StoreError for a bank that is not there, an id that another bank or another image
        has, or descriptors that do not fit the model; what came before stays added.
        """
        added = replaced = unchanged = 0
        version: Version | None = None
        for chunk in batched(described, _CHUNK):
            latest = {one[0].reference_id: one for one in chunk}
            plan, version = self._commit_plan(
                partial(self._plan_adding, latest, model), may_begin=True
            )
            added += plan.new
            replaced += len(plan.entries) - plan.new
            unchanged += len(latest) - len(plan.entries)
        return Added(version or self._version(), added, replaced, unchanged)

    def set_enabled(self, reference_ids: Sequence[str], *, enabled: bool) -> Version:
        """Let references match, or not. Raises StoreError if one is not there."""

        def change(plan: _Step, raw: bytes, old: Reference) -> None:
            new = old.model_copy(update={"enabled": enabled})
            if new != old:
                self._write_row(plan, old.reference_id, raw, new.model_dump_json())
                plan.tell(ReferencePut(new, None))

        return self._change_references(reference_ids, change)

    def remove_references(
        self, reference_ids: Sequence[str], removed_by: str, removed_at: datetime
    ) -> Version:
        """Remove references with their descriptors; a tombstone stays of each.

        Raises StoreError if one is not there.
        """
        models = self._models()

        def change(plan: _Step, raw: bytes, old: Reference) -> None:
            stone = Tombstone(reference=old, removed_by=removed_by, removed_at=removed_at)
            self._plan_removing(plan, old.reference_id, raw, models)
            plan.write(self._keys.removed, old.reference_id, _ANY, stone.model_dump_json())

        return self._change_references(reference_ids, change)

    def purge_references(self, reference_ids: Sequence[str]) -> Version:
        """Remove references, also those removed already, and every trace of them.

        The stream loses all earlier entries, for they may hold their descriptors: replicas that
        had not read them load a snapshot. Raises StoreError if there is nothing left of one.
        """
        models, version = self._models(), self._version()
        for chunk in batched(reference_ids, _CHUNK):
            step = partial(self._plan_purging, chunk, models)
            _, version = self._commit_plan(step, keep_entries=False)
        return version

    def set_calibration(self, calibration: Calibration | None) -> Version:
        """Make a calibration the current one, or none."""

        def step() -> _Step:
            plan, key = _Step(), self._keys.calibration
            old = self._client.hget(key, "id") or b""
            new = calibration.calibration_id if calibration else ""
            if layout.text(old) != new:
                plan.write(key, "id", old, new)
                plan.write(key, "blob", _ANY, calibration.blob if calibration else b"")
                plan.tell(CalibrationPut(calibration))
            return plan

        return self._commit(step)

    def accept(self) -> Version:
        """Record that a person accepts the store as it is now. Raises StoreError if it is empty."""

        def step() -> _Step:
            plan, head = _Step(), self.head()
            if head is None:
                raise StoreError("there is no hot set to accept: set a bank or add references")
            mark = plan.tell(Accepted())
            plan.write(self._keys.head, "mark", head.mark, head.mark)
            plan.write(self._keys.head, "accepted", head.accepted, mark)
            return plan

        return self._commit(step)

    # -- how --

    def _plan_adding(
        self, described: Mapping[str, tuple[Reference, Descriptors]], model: Model
    ) -> _Step:
        plan, banks = _Step(), self._client.hgetall(self._keys.banks)
        rows = self._fetch(described, self._keys.references)
        blobs = self._fetch(described, partial(self._keys.descriptors, model.sha256))
        for reference_id, (reference, descriptors) in described.items():
            if (bank := banks.get(reference.bank.encode())) is None:
                raise StoreError(f"there is no bank {reference.bank}: `copysieve banks set` it")
            blob, raw = layout.write_descriptors(descriptors), rows[reference_id]
            layout.read_descriptors(reference_id, blob, model.dims)
            if raw is None:
                plan.new += 1
            else:
                old = layout.read_reference(reference_id, raw)
                _refuse_another_image(old, reference)
                if _same(old, reference) and blobs[reference_id] == blob:
                    continue
            plan.write(self._keys.banks, reference.bank, bank, bank)
            self._write_row(plan, reference_id, raw or b"", reference.model_dump_json())
            key = self._keys.descriptors(model.sha256, bucket_of(reference_id))
            plan.write(key, reference_id, _ANY, blob)
            plan.tell(ReferencePut(reference, descriptors), model.sha256)
        if plan.entries:
            plan.write(self._keys.models, model.sha256, _ANY, model.name)
        return plan

    def _plan_removing(
        self, plan: _Step, reference_id: str, raw: bytes, models: Sequence[str]
    ) -> None:
        self._write_row(plan, reference_id, raw, "")
        for sha256 in models:
            key = self._keys.descriptors(sha256, bucket_of(reference_id))
            plan.write(key, reference_id, _ANY, "")
        plan.tell(ReferenceRemoved(reference_id))

    def _plan_purging(self, reference_ids: Sequence[str], models: Sequence[str]) -> _Step:
        plan = _Step()
        for reference_id, raw in self._fetch(reference_ids, self._keys.references).items():
            stone = self._client.hget(self._keys.removed, reference_id)
            if raw is None and stone is None:
                raise StoreError(f"there is no reference {reference_id}, nor was there")
            self._plan_removing(plan, reference_id, raw or b"", models)
            plan.write(self._keys.removed, reference_id, stone or b"", "")
        return plan

    def _change_references(
        self, reference_ids: Sequence[str], change: Callable[[_Step, bytes, Reference], None]
    ) -> Version:
        version = self._version()
        for chunk in batched(reference_ids, _CHUNK):

            def step(chunk: Sequence[str] = chunk) -> _Step:
                plan = _Step()
                for reference_id, raw in self._fetch(chunk, self._keys.references).items():
                    if raw is None:
                        raise StoreError(f"there is no reference {reference_id}")
                    change(plan, raw, layout.read_reference(reference_id, raw))
                return plan

            version = self._commit(step)
        return version

    def _commit(self, step: Callable[[], _Step], *, may_begin: bool = False) -> Version:
        return self._commit_plan(step, may_begin=may_begin)[1]

    @as_store_errors
    def _commit_plan(
        self, step: Callable[[], _Step], *, may_begin: bool = False, keep_entries: bool = True
    ) -> tuple[_Step, Version]:
        """Plan and write, again while other writers come in between."""
        trim = ("~", STREAM_LENGTH) if keep_entries else ("=", 1)
        for _ in range(_ATTEMPTS):
            plan = step()
            if not plan.entries:
                return plan, self._version()
            keys = [self._keys.head, self._keys.changes, *(write[0] for write in plan.writes)]
            arguments: list[bytes | str | int] = [
                time.time_ns() // 1_000_000,
                int(may_begin),
                *trim,
                len(plan.writes),
            ]
            for _, *write in plan.writes:
                arguments += write
            for mark, fields in plan.entries:
                arguments += [mark, len(fields), *fields]
            version = self._script(keys=keys, args=arguments)
            if version is not None:
                return plan, Version.parse(layout.text(version))
            if not may_begin and self.head() is None:
                raise StoreError("there is no hot set: set a bank first")
        raise StoreError("too many writers at once; try again")

    def _version(self) -> Version:
        head = self.head()
        if head is None:
            raise StoreError("there is no hot set: set a bank first")
        return head.version

    def _fetch(
        self, reference_ids: Iterable[str], key: Callable[[int], str]
    ) -> dict[str, bytes | None]:
        ids = list(dict.fromkeys(reference_ids))
        pipeline = self._client.pipeline(transaction=False)
        for reference_id in ids:
            pipeline.hget(key(bucket_of(reference_id)), reference_id)
        return dict(zip(ids, pipeline.execute(), strict=True))

    @as_store_errors
    def _models(self) -> list[str]:
        return sorted(layout.text(sha256) for sha256 in self._client.hkeys(self._keys.models))

    def _write_row(self, plan: _Step, reference_id: str, old: bytes, new: str) -> None:
        plan.write(self._keys.references(bucket_of(reference_id)), reference_id, old, new)


def open_store(config: settings.Redis) -> Store:
    """Connect. Raises StoreError in one line, without the password, if Redis is away."""
    # A blocking read must end well before the socket's timeout does.
    return Store(connect(config), config.namespace, min(0.5, config.timeout_seconds / 2))


def _refuse_another_image(old: Reference, new: Reference) -> None:
    if old.bank != new.bank:
        raise StoreError(f"reference {old.reference_id} is in bank {old.bank} already")
    if old.canary != new.canary:  # a known-bad image that became a canary would match no upload
        kind = "a canary" if old.canary else "no canary"
        raise StoreError(f"reference {old.reference_id} is {kind}; remove it first")
    if old.sha256 and new.sha256 and old.sha256 != new.sha256:
        raise StoreError(f"reference {old.reference_id} is another image; remove it first")


def _same(old: Reference, new: Reference) -> bool:
    return old == new.model_copy(update={"added_by": old.added_by, "added_at": old.added_at})
