"""What one atomic step of a change compares and writes: planned here, made by `commits.py`."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.commits import Step
from worker.hotset.contents import Contents
from worker.hotset.layout import Unusable, bucket_of
from worker.hotset.types import (
    MOST_BANKS,
    Bank,
    BankPut,
    Descriptors,
    KeptCalibration,
    Reference,
    ReferencePut,
    ReferenceRemoved,
)
from worker.records import Model

PART = 1 << 23
"""Bytes of one part of an artefact: Redis takes 512 MiB at most in one value."""
ANY = b"*"
"""Whatever a value is, it is written."""


class Planning(Contents):
    """The pieces that steps are planned of. They read what is there, and write nothing."""

    def _plan_adding(
        self,
        described: Mapping[str, tuple[Reference, Descriptors]],
        model: Model,
        calibration_id: str | None,
        coming: Collection[str] = (),
    ) -> Step:
        step, banks = Step("references_added", model_sha256=model.sha256), self._raw_banks()
        rows = self._fetch(described, self._keys.references)
        blobs = self._fetch(described, partial(self._keys.descriptors, model.sha256))
        for reference_id, (reference, descriptors) in described.items():
            if reference.bank not in banks and reference.bank not in coming:
                raise StoreError(f"there is no bank {reference.bank}: `copysieve banks set` it")
            blob, raw, old_blob = (
                layout.write_descriptors(descriptors),
                rows[reference_id],
                blobs.get(reference_id) or b"",
            )
            layout.read_descriptors(reference_id, blob, model.dims)
            if raw is None:
                step.new += 1
            else:
                old = layout.read_reference(reference_id, raw)
                _refuse_another_image(old, reference)
                copies = tuple(sorted({*old.copies, *reference.copies}))  # a person may have said
                reference = reference.model_copy(update={"copies": copies})  # noqa: PLW2901
                if _same(old, reference) and old_blob == blob:
                    continue
            self._put(step, reference, raw or b"", descriptors)
            key = self._keys.descriptors(model.sha256, bucket_of(reference_id))
            step.write(key, reference_id, old_blob, blob, f"descriptors:{model.sha256}")
        self._hold(step, model.sha256, calibration_id)
        for name in {reference.bank for reference, _ in described.values()} - {*coming}:
            step.write(self._keys.banks, name, banks[name], banks[name])  # they are still there
        step.write(self._keys.models, model.sha256, ANY, model.name.encode())
        step.named([one.reference.reference_id for one in _puts(step)])
        return step

    def _plan_purging(self, reference_ids: Sequence[str]) -> Step:
        step = Step("references_purged")
        for reference_id, raw in self._fetch(reference_ids, self._keys.references).items():
            stone = self._client.hget(self._keys.removed, reference_id)
            if raw is None and stone is None:
                raise StoreError(f"there is no reference {reference_id}, nor was there")
            self._remove(step, reference_id, raw or b"")
            step.write(self._keys.removed, reference_id, stone or b"", b"")
        step.named(reference_ids)
        return step

    def _hold(self, step: Step, model_sha256: str, calibration_id: str | None) -> None:
        """Let a step be only while this calibration is current. Raises StoreError if it isn't."""
        current = self._client.hget(self._keys.calibration, model_sha256) or b""
        if layout.text(current) != (calibration_id or ""):
            raise StoreError("another calibration was applied meanwhile: do it again")
        step.write(self._keys.calibration, model_sha256, current, current)

    def _hold_kept(self, step: Step, calibration_id: str) -> None:
        """Let a step be only while a calibration is kept, whole. Raises StoreError if it isn't."""
        row = self._client.hget(self._keys.calibrations, calibration_id)
        parts = self._client.hlen(self._keys.artefact(calibration_id))
        size = layout.read_row(KeptCalibration, calibration_id, row).size if row else 0
        if row is None or parts * PART < size:
            raise StoreError(f"calibration {calibration_id} is not kept in the store")
        step.write(self._keys.calibrations, calibration_id, row, row)

    def _put_copies(self, step: Step, copies: Mapping[str, Sequence[str]]) -> None:
        for reference_id, raw in self._fetch(copies, self._keys.references).items():
            if raw is None:
                raise StoreError(f"there is no reference {reference_id} any more")
            old = layout.read_reference(reference_id, raw)
            new = old.model_copy(update={"copies": tuple(copies[reference_id])})
            if new != old:
                self._put(step, new, raw)

    def _put_bank(self, step: Step, bank: Bank, old: bytes | None) -> None:
        before = None
        if old:
            with suppress(Unusable):  # a bank that cannot be read is mended by writing it
                before = layout.read_bank(bank.name, old)
        if problem := bank.refusal(before):
            raise StoreError(f"bank {bank.name}: {problem}")
        row = layout.write_bank(bank)
        if not old:
            self._require_room(step)
        if old != row or self.head() is None:  # which this makes anew
            step.write(self._keys.banks, bank.name, old or b"", row, "banks")
            step.changes.append(BankPut(bank, row))

    def _require_room(self, step: Step) -> None:
        """Let a step add a bank only while there are not too many. Raises StoreError if there are.

        Two writers at once do not both add the last one: the head counts banks.
        """
        counted = self._client.hget(self._keys.head, "count:banks") or b""
        if self._client.hlen(self._keys.banks) >= MOST_BANKS:
            raise StoreError(f"there are {MOST_BANKS:,} banks, no more can be: remove one first")
        step.write(self._keys.head, "count:banks", counted, counted)

    def _put(
        self, step: Step, new: Reference, old: bytes, descriptors: Descriptors | None = None
    ) -> None:
        row, reference_id = layout.write_reference(new), new.reference_id
        key = self._keys.references(bucket_of(reference_id))
        step.write(key, reference_id, old, row, "references")
        step.changes.append(ReferencePut(new, row, descriptors))

    def _remove(self, step: Step, reference_id: str, old: bytes) -> None:
        bucket = bucket_of(reference_id)
        step.write(self._keys.references(bucket), reference_id, old, b"", "references")
        for sha256 in self.models():
            key = self._keys.descriptors(sha256, bucket)
            blob = self._client.hget(key, reference_id) or b""
            step.write(key, reference_id, blob, b"", f"descriptors:{sha256}")
        step.changes.append(ReferenceRemoved(reference_id))

    def _fetch(
        self, reference_ids: Iterable[str], key: Callable[[int], str]
    ) -> dict[str, bytes | None]:
        ids = list(dict.fromkeys(reference_ids))
        pipeline = self._client.pipeline(transaction=False)
        for reference_id in ids:
            pipeline.hget(key(bucket_of(reference_id)), reference_id)
        return dict(zip(ids, pipeline.execute(), strict=True))

    def _raw_banks(self) -> dict[str, bytes]:
        return {layout.text(k): raw for k, raw in self._client.hgetall(self._keys.banks).items()}


def _refuse_another_image(old: Reference, new: Reference) -> None:
    if old.bank != new.bank:
        raise StoreError(f"reference {old.reference_id} is in bank {old.bank} already")
    if old.canary != new.canary:  # a known-bad image that became a canary would match no upload
        kind = "a canary" if old.canary else "no canary"
        raise StoreError(f"reference {old.reference_id} is {kind}; remove it first")
    if old.sha256 and new.sha256 and old.sha256 != new.sha256:
        raise StoreError(f"reference {old.reference_id} is another image; remove it first")


def readable_bank(name: str, raw: bytes) -> Bank | None:
    """Read a bank; None, and counted, if it breaks the rules."""
    try:
        return layout.read_bank(name, raw)
    except layout.Unusable as error:
        layout.reject(error)
        return None


def _same(old: Reference, new: Reference) -> bool:
    return old == new.model_copy(update={"added_by": old.added_by, "added_at": old.added_at})


def _puts(step: Step) -> Iterator[ReferencePut]:
    return (one for one in step.changes if isinstance(one, ReferencePut))
