"""A sample of the recent uploads' best scores by bank, so that a change of policy can be tried.

Neither pictures nor descriptors, nor ids: only how well an upload did at best in some banks.
"""

import random
import threading
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from worker.hotset.types import Slug, Strict

CAPACITY = 10_000
"""Uploads that are kept in Redis, about 3 MB."""
EXPIRES_SECONDS = 7 * 24 * 3600
PER_TURN = 2
"""Uploads that a replica adds each second, at random of those it has screened."""
BANKS = 8
"""Banks that are kept of an upload: those where it scores highest."""

Score = Annotated[float, Field(ge=-2, le=2)]
"""No score is beyond these."""


class Sample(Strict):
    """One upload, at Unix seconds. `scores` are its best ones by bank, under `calibration`.

    In a bank that is not there it scores at most `unseen`.
    """

    at: float
    calibration: str | None
    scores: Annotated[dict[Slug, Score], Field(max_length=BANKS)]
    unseen: Score


_SAMPLE: TypeAdapter[Sample] = TypeAdapter(Sample)


def write(sample: Sample) -> bytes:
    """Write a sample as it is stored."""
    return sample.model_dump_json().encode()


def read(raw: bytes) -> Sample | None:
    """Read a sample; None where it breaks the rules: it is only one of many."""
    try:
        return _SAMPLE.validate_json(raw)
    except ValidationError:
        return None


def sample_of(
    at: float, calibration: str | None, best: Mapping[str, float], seen_from: float
) -> Sample:
    """A sample of an upload with these best scores; in others it may score up to `seen_from`."""
    ranked = sorted(best.items(), key=lambda one: -one[1])
    others = max((score for _, score in ranked[BANKS : BANKS + 1]), default=seen_from)
    return Sample(
        at=at,
        calibration=calibration,
        scores={name: _bounded(score) for name, score in ranked[:BANKS]},
        unseen=_bounded(max(seen_from, others)),
    )


def _bounded(score: float) -> float:
    return round(min(max(score, -2.0), 2.0), 4)


class Sampler:
    """A random sample of the uploads since the last `take`. Thread-safe, waits for nobody."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._lock = threading.Lock()
        self._kept: list[Sample] = []
        self._seen = 0
        self._random = random.Random()  # noqa: S311 - not for secrets

    def note(
        self, at: float, calibration: str | None, best: Mapping[str, float], seen_from: float
    ) -> None:
        """Take in an upload, as in `sample_of`."""
        with self._lock:
            self._seen += 1
            place = self._random.randrange(self._seen)
            if len(self._kept) < self._per_turn:
                self._kept.append(sample_of(at, calibration, best, seen_from))
            elif place < self._per_turn:
                self._kept[place] = sample_of(at, calibration, best, seen_from)

    def take(self) -> list[Sample]:
        """Hand over what is held."""
        with self._lock:
            taken, self._kept, self._seen = self._kept, [], 0
        return taken
