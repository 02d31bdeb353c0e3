"""The hot set in Redis, as a replica with one model sees it: snapshot, history, heartbeat."""

from collections.abc import Callable, Mapping
from itertools import batched
from typing import Literal

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys, Unusable, reject
from worker.hotset.types import (
    Bank,
    Calibration,
    CalibrationPut,
    Descriptors,
    Entry,
    Head,
    Heartbeat,
    Reference,
    Snapshot,
)
from worker.records import Model, Version

HEARTBEAT_EXPIRES_SECONDS = 15
_BUCKETS_AT_ONCE = 8
_ENTRIES_AT_ONCE = 512


class BrokenHistory(StoreError):
    """The entries do not follow from where a replica stands: only a snapshot helps."""

    def __init__(self, reason: Literal["epoch", "gap", "unreadable"]) -> None:
        super().__init__(f"the change stream does not go on from here ({reason})")
        self.reason = reason


type Judge = Callable[[bytes, Model], object]
"""Raises StoreError where a calibration's artefact cannot be used with the model."""


class Reader:
    """What a replica reads, and the one key that it writes. All raise StoreError (Redis away)."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        model: Model,
        block_seconds: float,
        judge: Judge,
    ) -> None:
        self._judge = judge
        self.model = model
        self.block_seconds = block_seconds
        self._client = client
        self._keys = keys

    @as_store_errors
    def head(self) -> Head | None:
        """Where the history stands; None before the first change."""
        try:
            return layout.read_head(self._client.hgetall(self._keys.head))
        except Unusable as error:
            reject(error)
            raise

    @as_store_errors
    def snapshot(self, head: Head) -> Snapshot:
        """Read all there is. `head` was read before: what changed since may be in it or not."""
        banks: dict[str, Bank] = {}
        references: dict[str, Reference] = {}
        descriptors: dict[str, Descriptors] = {}
        unusable: set[str] = set()
        for field, raw in self._client.hgetall(self._keys.banks).items():
            name = layout.text(field)
            try:
                banks[name] = layout.read_bank(name, raw)
            except Unusable as error:
                reject(error)
        for buckets in batched(range(layout.BUCKETS), _BUCKETS_AT_ONCE):
            pipeline = self._client.pipeline(transaction=False)
            for bucket in buckets:
                pipeline.hgetall(self._keys.references(bucket))
                pipeline.hgetall(self._keys.descriptors(self.model.sha256, bucket))
            for rows, blobs in batched(pipeline.execute(), 2):
                self._read_bucket(rows, blobs, references, descriptors, unusable)
        return Snapshot(
            head, banks, references, descriptors, frozenset(unusable), self._calibration()
        )

    @as_store_errors
    def changes(self, version: Version, mark: str, *, wait: bool) -> list[Entry]:
        """Read the next entries after `version`, oldest first; none: there are no later ones.

        With `wait`, waits for the first for `block_seconds`. Raises BrokenHistory when the first
        does not follow from `version` and `mark`, or any not from the one before it.
        """
        reply = self._client.xread(
            {self._keys.changes: str(version)},
            count=_ENTRIES_AT_ONCE,
            block=int(self.block_seconds * 1000) if wait else None,
        )
        entries: list[Entry] = []
        for entry_id, fields in reply[0][1] if reply else ():
            try:
                entry = layout.read_entry(entry_id, fields, self.model)
                if isinstance(entry.change, CalibrationPut):
                    self._judged(entry.change.calibration)
            except Unusable as error:
                reject(error)
                raise BrokenHistory("unreadable") from None
            if entry.version.epoch != version.epoch:
                raise BrokenHistory("epoch")
            if entry.version.seq != version.seq + 1 or entry.previous != mark:
                raise BrokenHistory("gap")
            version, mark = entry.version, entry.mark
            entries.append(entry)
        return entries

    @as_store_errors
    def tell(self, heartbeat: Heartbeat) -> None:
        """Write the replica's heartbeat, which expires."""
        key = self._keys.replica(heartbeat.name)
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(key, heartbeat.model_dump_json(), ex=HEARTBEAT_EXPIRES_SECONDS)
        pipeline.sadd(self._keys.replicas, heartbeat.name)
        pipeline.execute()

    @as_store_errors
    def leave(self, name: str) -> None:
        """Take the replica's heartbeat away: nobody need wait for it any more."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.delete(self._keys.replica(name))
        pipeline.srem(self._keys.replicas, name)
        pipeline.execute()

    def _calibration(self) -> Calibration | None:
        try:
            return self._judged(
                layout.read_calibration(self._client.hgetall(self._keys.calibration))
            )
        except Unusable as error:
            reject(error)
            return None

    def _judged(self, calibration: Calibration | None) -> Calibration | None:
        try:
            if calibration is not None:
                self._judge(calibration.blob, self.model)
        except StoreError:
            raise Unusable("calibration", "calibration", "blob") from None
        return calibration

    def _read_bucket(
        self,
        rows: Mapping[bytes, bytes],
        blobs: Mapping[bytes, bytes],
        references: dict[str, Reference],
        descriptors: dict[str, Descriptors],
        unusable: set[str],
    ) -> None:
        for field, raw in rows.items():
            name = layout.text(field)
            try:
                reference = layout.read_reference(name, raw)
                if (blob := blobs.get(field)) is not None:
                    descriptors[name] = layout.read_descriptors(name, blob, self.model.dims)
                references[name] = reference
            except Unusable as error:
                reject(error)
                unusable.add(name)
