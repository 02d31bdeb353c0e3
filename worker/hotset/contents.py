"""What is in the hot set, as commands see it."""

from collections.abc import Iterator
from datetime import datetime
from importlib import resources
from itertools import batched

from worker.errors import StoreError
from worker.hotset import audit, layout, samples
from worker.hotset.audit import AuditEntry
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys, Unusable, bucket_of, reject
from worker.hotset.policies import Policies
from worker.hotset.replicas import Replicas
from worker.hotset.samples import Sample
from worker.hotset.types import (
    Bank,
    Descriptors,
    Head,
    Heartbeat,
    KeptCalibration,
    Reference,
    Tombstone,
)


class Contents:
    """All that can be read of one namespace. All methods raise StoreError where Redis is away."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._replicas = Replicas(client, keys)
        script = resources.files(__package__).joinpath("lacking.lua").read_bytes()
        self._lacking = client.register_script(script)

    @as_store_errors
    def head(self) -> Head | None:
        """Where the history stands; None before the first change."""
        return layout.read_head(self._client.hgetall(self._keys.head))

    @as_store_errors
    def require_policies(self) -> None:
        """Raise Lost (a StoreError) where Redis lost banks or calibrations that its head counts."""
        if (policies := Policies.read(self._client, self._keys)) is not None:
            policies.require_all()

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
    def samples(self) -> list[Sample]:
        """Samples of the recent uploads that can be read, latest first."""
        raw = self._client.lrange(self._keys.samples, 0, samples.CAPACITY - 1)
        return [one for one in map(samples.read, raw) if one is not None]

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
    def current_calibrations(self) -> dict[str, str]:
        """The ids of the current calibrations, by the digests of their models."""
        found = self._client.hgetall(self._keys.calibration).items()
        return {
            layout.text(of): layout.read_calibration_id(raw)
            for of, raw in found
            if not of.startswith(b"previous:")
        }

    def calibration_of(self, model_sha256: str) -> str | None:
        """The id of a model's current calibration."""
        return self.current_calibrations().get(model_sha256)

    @as_store_errors
    def previous_calibration_of(self, model_sha256: str) -> str | None:
        """The id of the calibration before it, `none` if there was none; None: nothing is known."""
        raw = self._client.hget(self._keys.calibration, f"previous:{model_sha256}")
        return layout.read_calibration_id(raw) if raw else None

    @as_store_errors
    def calibrations(self) -> list[KeptCalibration]:
        """What is told of all calibrations that are kept, oldest first."""
        found: list[KeptCalibration] = []
        for name, raw in self._client.hgetall(self._keys.calibrations).items():
            try:
                found.append(layout.read_row(KeptCalibration, layout.text(name), raw))
            except Unusable as error:
                reject(error)
        return sorted(found, key=lambda one: (one.added_at, one.calibration_id))

    @as_store_errors
    def artefact(self, calibration_id: str) -> bytes:
        """The artefact of a calibration that is kept. Raises StoreError where it is not whole."""
        raw = self._client.hgetall(self._keys.artefact(calibration_id))
        if not raw:
            raise StoreError(f"calibration {calibration_id} is not kept in the store")
        return layout.read_artefact(calibration_id, raw)

    def heartbeats(self) -> list[Heartbeat]:
        """What the live replicas tell, by name."""
        return self._replicas.live()

    def has_left(self, identity: str) -> bool:
        """Whether a replica that is not live stopped in order, and was not killed or cut off."""
        return self._replicas.has_left(identity)

    @as_store_errors
    def audit(self, since: datetime | None, limit: int) -> list[AuditEntry]:
        """The newest entries of the audit log, newest first; none from before `since`."""
        return audit.read(self._client, self._keys.audit, since, limit)

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

    def described_references(self, model_sha256: str) -> Iterator[tuple[Reference, Descriptors]]:
        """All references with their descriptors by a model, bucket by bucket, each as it is then.

        What cannot be read, or is not described by it, is left out.
        """
        for bucket in range(layout.BUCKETS):
            rows, blobs = self._bucket(model_sha256, bucket)
            for field in sorted(rows.keys() & blobs.keys()):
                name, blob = layout.text(field), blobs[field]
                try:
                    yield layout.read_reference(name, rows[field]), layout.describe(name, blob)
                except Unusable as error:
                    reject(error)

    @as_store_errors
    def _bucket(
        self, model_sha256: str, bucket: int
    ) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        rows = self._client.hgetall(self._keys.references(bucket))
        return rows, self._client.hgetall(self._keys.descriptors(model_sha256, bucket))

    @as_store_errors
    def models(self) -> dict[str, str]:
        """The names of the models that have descriptors here, by digest."""
        found = self._client.hgetall(self._keys.models)
        return {layout.text(sha256): layout.text(name) for sha256, name in found.items()}
