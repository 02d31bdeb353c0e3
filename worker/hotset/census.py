"""What the replicas count together: distinct images that a bank or reference matched lately.

Images are told by their sha256 and counted by a HyperLogLog (standard error 0.8%) for each slice of
ten minutes. Seven slices, the present one among them, are the last hour: 60 to 70 minutes.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import batched
from typing import Any, Literal, Self

from worker.hotset import audit, layout, samples
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys, Unusable, bucket_of
from worker.hotset.samples import Sample
from worker.hotset.types import Bank, Reference

SLICE_SECONDS = 600
SLICES = 7
_EXPIRES_SECONDS = (SLICES + 1) * SLICE_SECONDS
_SUBJECTS_AT_ONCE = 16
_IMAGES_AT_ONCE = 250

type Scope = Literal["bank", "reference"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What may be in flood: a bank, or one of its references."""

    bank: str
    reference: str | None = None

    def __str__(self) -> str:
        return self.bank if self.reference is None else f"{self.bank}:{self.reference}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `BANK` or `BANK:REFERENCE`."""
        bank, colon, reference = text.partition(":")
        return cls(bank, reference if colon else None)

    @property
    def scope(self) -> Scope:
        """Which of the two it is."""
        return "bank" if self.reference is None else "reference"


type Policy = tuple[Bank, Reference | None]
"""A subject as it stands in Redis now; of a bank, the bank alone."""


class Census:
    """One replica's part in it, for one thread. All methods raise StoreError (Redis away)."""

    def __init__(
        self, client: Client, keys: Keys, by: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._keys = keys
        self._by = by
        self._clock = clock
        package = resources.files(__package__)
        self._count = client.register_script(package.joinpath("census.lua").read_bytes())
        self._turn = client.register_script(package.joinpath("flood.lua").read_bytes())

    @as_store_errors
    def screened(self, uploads: int) -> int:
        """Add uploads to those that were screened; return how many were in the last hour."""
        pipeline = self._client.pipeline(transaction=False)
        latest, *earlier = (self._keys.screened(number) for number in self._slices())
        pipeline.incrby(latest, uploads)
        pipeline.expire(latest, _EXPIRES_SECONDS)
        for key in earlier:
            pipeline.get(key)
        total, _, *counts = pipeline.execute()
        return int(total) + sum(int(count or 0) for count in counts)

    @as_store_errors
    def matched(self, seen: Mapping[Subject, Collection[str]]) -> dict[Subject, int]:
        """Add images, by sha256, to those that each has matched; return the last hour's counts."""
        parts = [
            (subject, images)
            for subject, all_images in seen.items()
            for images in (list(batched(all_images, _IMAGES_AT_ONCE)) or [()])
        ]
        counts: dict[Subject, int] = {}
        for some in batched(parts, _SUBJECTS_AT_ONCE):
            keys = [
                self._keys.flood(str(subject), number)
                for subject, _ in some
                for number in self._slices()
            ]
            arguments: list[str | int] = [SLICES, _EXPIRES_SECONDS]
            for _, images in some:
                arguments += [len(images), *images]
            subjects = (subject for subject, _ in some)
            counts |= zip(subjects, self._count(keys=keys, args=arguments), strict=True)
        return counts

    @as_store_errors
    def keep(self, taken: Sequence[Sample]) -> None:
        """Keep samples of recent uploads; the oldest make room."""
        if not taken:
            return
        pipeline = self._client.pipeline(transaction=True)
        pipeline.lpush(self._keys.samples, *map(samples.write, taken))
        pipeline.ltrim(self._keys.samples, 0, samples.CAPACITY - 1)
        pipeline.expire(self._keys.samples, samples.EXPIRES_SECONDS)
        pipeline.execute()

    @as_store_errors
    def floods(self) -> frozenset[Subject]:
        """What is in flood, as some replica has found."""
        members = self._client.smembers(self._keys.floods)
        return frozenset(Subject.parse(layout.text(member)) for member in members)

    @as_store_errors
    def policies(self, subjects: Collection[Subject]) -> dict[Subject, Policy]:
        """The rows of each as they are now, without those that are gone or cannot be read."""
        pipeline = self._client.pipeline(transaction=False)
        for subject in subjects:
            pipeline.hget(self._keys.banks, subject.bank)
            if subject.reference is not None:
                key = self._keys.references(bucket_of(subject.reference))
                pipeline.hget(key, subject.reference)
        rows = iter(pipeline.execute() if subjects else [])
        found: dict[Subject, Policy] = {}
        for subject in subjects:
            bank, reference = next(rows), next(rows) if subject.reference is not None else None
            if policy := _policy(subject, bank, reference):
                found[subject] = policy
        return found

    @as_store_errors
    def begin(self, subject: Subject, images: int, limit: int) -> bool:
        """Say that it is in flood; False: another replica has done so."""
        return self._told("SADD", "flood_began", subject, {"images": images, "limit": limit})

    @as_store_errors
    def end(self, subject: Subject, images: int) -> bool:
        """Say that it is in flood no more; False: another replica has done so."""
        return self._told("SREM", "flood_ended", subject, {"images": images})

    def _told(self, change: str, what: str, subject: Subject, about: Mapping[str, Any]) -> bool:
        names = {"bank": subject.bank}
        if subject.reference is not None:
            names["reference"] = subject.reference
        fields = audit.write(self._by, what, {**names, **about})
        oldest = audit.oldest_kept(self._clock())
        keys = [self._keys.floods, self._keys.audit]
        return bool(self._turn(keys=keys, args=[change, str(subject), oldest, *fields]))

    def _slices(self) -> Iterable[int]:
        """Numbers of the slices of the last hour, the present one first."""
        latest = int(self._clock() // SLICE_SECONDS)
        return range(latest, latest - SLICES, -1)


def _policy(subject: Subject, bank: bytes | None, reference: bytes | None) -> Policy | None:
    """None: a row is gone, or cannot be read, which whoever mirrors it tells of."""
    if bank is None:
        return None
    try:
        row = layout.read_bank(subject.bank, bank)
        if subject.reference is None:
            return row, None
        return (row, layout.read_reference(subject.reference, reference)) if reference else None
    except Unusable:
        return None
