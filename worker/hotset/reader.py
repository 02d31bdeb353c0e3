"""The hot set in Redis, as a replica with one model sees it: snapshot and history."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from itertools import batched, chain
from typing import Literal, Protocol

from worker.errors import StoreError
from worker.hotset import entries, layout
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys, Unusable, reject
from worker.hotset.policies import Policies
from worker.hotset.replicas import Replicas
from worker.hotset.types import (
    BankPut,
    Calibration,
    CalibrationPut,
    Change,
    Entry,
    Head,
    Reference,
    Snapshot,
    Stored,
)
from worker.records import Model, Version

_BUCKETS_AT_ONCE = 4
_ENTRIES_AT_ONCE = 128


class BrokenHistory(StoreError):
    """The entries do not follow from where a replica stands: only a snapshot helps."""

    def __init__(self, reason: Literal["epoch", "gap", "unreadable"]) -> None:
        super().__init__(f"the change stream does not go on from here ({reason})")
        self.reason = reason


class Interpret(Protocol):
    """Reads the artefacts of calibrations."""

    def __call__(self, artefact: bytes, model: Model) -> Calibration:
        """Raise StoreError where it cannot be used with the model."""


class Reader:
    """What a replica reads, and its heartbeat. All methods raise StoreError (Redis away)."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        model: Model,
        block_seconds: float,
        interpret: Interpret,
    ) -> None:
        self.model = model
        self.interpret = partial(interpret, model=model)
        self._read_artefact = lru_cache(maxsize=2)(self._fetch_artefact)
        self.block_seconds = block_seconds
        self.replicas = Replicas(client, keys)
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
    def snapshot(self, head: Head, *, calibrated: bool = True, whole: bool = True) -> Snapshot:
        """Read all there is. `head` was read before: what changed since may be in it or not.

        The calibration is left out unless `calibrated`. Unless `whole`, banks that were lost are no
        error: for looking ahead while they are put back, never for serving. The references are read
        while they are asked for. Raises Unusable for a bank or calibration that cannot be read, or
        is lost: without them references would be missing, or judged, quietly. Raises StoreError
        where the hot set was emptied meanwhile.
        """
        policies = Policies.read(self._client, self._keys)
        if policies is None:
            raise StoreError("the hot set was emptied while it was read")
        if whole:
            policies.require_banks()
        banks = [
            BankPut(layout.read_bank(layout.text(name), raw), raw)
            for name, raw in policies.banks.items()
        ]
        current = None
        if calibrated:
            policies.require_calibration(self.model.sha256)
            current = self._calibration(policies)
        return Snapshot(head, banks, self._buckets(), current)

    def _buckets(self) -> Iterator[Stored]:
        """All references, with the next ones on their way while these are looked at."""
        with ThreadPoolExecutor(1, "snapshot") as ahead:
            reads = (
                ahead.submit(self._read_buckets, some)
                for some in batched(range(layout.BUCKETS), _BUCKETS_AT_ONCE)
            )
            coming = next(reads)
            for following in chain(reads, (None,)):
                replies = coming.result()
                for rows, blobs in batched(replies, 2):
                    yield _stored(rows, blobs)
                if following is not None:
                    coming = following

    @as_store_errors
    def _read_buckets(self, buckets: Sequence[int]) -> list[Mapping[bytes, bytes]]:
        pipeline = self._client.pipeline(transaction=False)
        for bucket in buckets:
            pipeline.hgetall(self._keys.references(bucket))
            pipeline.hgetall(self._keys.descriptors(self.model.sha256, bucket))
        replies: list[Mapping[bytes, bytes]] = pipeline.execute()
        return replies

    @as_store_errors
    def counts(self) -> dict[str, int]:
        """How many values there are in truth, by kind of tally.

        A current calibration counts if its artefact is there.
        """
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hlen(self._keys.banks)
        pipeline.hget(self._keys.calibration, self.model.sha256)
        for bucket in range(layout.BUCKETS):
            pipeline.hlen(self._keys.references(bucket))
            pipeline.hlen(self._keys.descriptors(self.model.sha256, bucket))
        banks, current, *replies = pipeline.execute()
        applied = current and self._client.exists(self._keys.artefact(layout.text(current)))
        return {
            "banks": banks,
            "references": sum(replies[::2]),
            f"descriptors:{self.model.sha256}": sum(replies[1::2]),
            f"calibration:{self.model.sha256}": int(bool(applied)),
        }

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
        found: list[Entry] = []
        for entry_id, fields in reply[0][1] if reply else ():
            try:
                entry = entries.read_entry(entry_id, fields, self.model)
                entry = replace(entry, changes=[self._whole(one) for one in entry.changes])
            except Unusable as error:
                reject(error)
                raise BrokenHistory("unreadable") from None
            if entry.version.epoch != version.epoch:
                raise BrokenHistory("epoch")
            if entry.version.seq != version.seq + len(entry.changes) or entry.previous != mark:
                raise BrokenHistory("gap")
            version, mark = entry.version, entry.mark
            found.append(entry)
        return found

    def _calibration(self, policies: Policies) -> Calibration | None:
        raw = policies.calibrations.get(self.model.sha256.encode())
        return self._read_artefact(layout.read_calibration_id(raw)) if raw else None

    def _whole(self, change: Change) -> Change:
        """A change of the model's calibration, with the calibration. Raises Unusable."""
        if (
            isinstance(change, CalibrationPut)
            and change.model_sha256 == self.model.sha256
            and change.calibration_id is not None
        ):
            return replace(change, calibration=self._read_artefact(change.calibration_id))
        return change

    def _fetch_artefact(self, calibration_id: str) -> Calibration:
        raw = self._client.hgetall(self._keys.artefact(calibration_id))
        try:
            return self.interpret(layout.read_artefact(calibration_id, raw))
        except Unusable:
            raise
        except StoreError as error:
            raise Unusable("calibration", calibration_id, str(error)) from None


def _stored(rows: Mapping[bytes, bytes], blobs: Mapping[bytes, bytes]) -> Stored:
    """One bucket. The descriptors are read where they are needed, all at once."""
    references: list[Reference] = []
    good: list[bytes] = []
    found: list[bytes | None] = []
    unreadable = {layout.text(field) for field in blobs.keys() - rows.keys()}
    for field, raw in rows.items():
        name = layout.text(field)
        try:
            references.append(layout.read_reference(name, raw))
        except Unusable as error:
            reject(error)
            unreadable.add(name)
            continue
        good.append(raw)
        found.append(blobs.get(field))
    return Stored(references, good, found, frozenset(unreadable))
