"""What becomes of the canaries that were published: each is recognised or missed, once."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.stream.tools import Result
from worker.telemetry import log, metrics

DEADLINE_SECONDS = 60.0

logger = log.get(__name__)


class Missed(StrEnum):
    """Why a canary was not recognised. Closed."""

    NOT_MATCHED = "not_matched"
    UNSCREENED = "unscreened"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class _Expected:
    reference_id: str
    published_at: datetime


class Watch:
    """The canaries that have not come back yet. For one thread; `now` is aware UTC."""

    def __init__(self) -> None:
        self._expected: dict[str, _Expected] = {}
        for reason in Missed:
            metrics.CANARIES_MISSED.labels(reason.value)  # there, at 0, before the first one

    def __len__(self) -> int:
        return len(self._expected)

    def expect(self, upload_id: str, reference_id: str, now: datetime) -> None:
        """Wait for the result of an upload that is about to be published."""
        self._expected[upload_id] = _Expected(reference_id, now)

    def forget(self, upload_id: str) -> None:
        """Wait no more for one that Kafka did not take."""
        self._expected.pop(upload_id, None)

    def take(self, result: Result) -> None:
        """Look at one record of the shadow topic; what nobody waits for is nothing to us."""
        self.expire(result.arrived_at)
        upload_id = (result.key or b"").decode(errors="replace")
        expected = self._expected.get(upload_id)
        if expected is None or _is_an_uploads(result):
            return
        found = _read(result.value)
        if found is None:
            return
        screened, reference_ids = found
        del self._expected[upload_id]
        if expected.reference_id in reference_ids:
            waited = result.arrived_at - expected.published_at
            metrics.CANARIES_RECOGNISED.inc()
            metrics.CANARY_SECONDS.observe(max(0.0, waited.total_seconds()))
            metrics.CANARY_RECOGNISED.set(result.arrived_at.timestamp())
        else:
            reason = Missed.NOT_MATCHED if screened else Missed.UNSCREENED
            _miss(upload_id, expected, reason)

    def expire(self, now: datetime) -> None:
        """Give up those for which the deadline has passed."""
        for upload_id, expected in list(self._expected.items()):
            if (now - expected.published_at).total_seconds() > DEADLINE_SECONDS:
                del self._expected[upload_id]
                _miss(upload_id, expected, Missed.LOST)


def _miss(upload_id: str, expected: _Expected, reason: Missed) -> None:
    metrics.CANARIES_MISSED.labels(reason.value).inc()
    logger.warning(
        "canary_missed",
        upload_id=upload_id,
        reference_id=expected.reference_id,
        reason=reason.value,
    )


def _is_an_uploads(result: Result) -> bool:
    """Whether it is a match of an ordinary upload: another namespace screens our canaries so."""
    return ("ce_type", b"copysieve.shadow.v1") in result.headers


def _read(value: bytes) -> tuple[bool, set[str]] | None:
    """Whether it was screened, and what it matched.

    Not a `MatchEvent`: replicas of a later version may tell more than this one knows.
    """
    try:
        event: Any = json.loads(value)
        return event["hot_set"] is not None, {one["reference_id"] for one in event["matches"]}
    except (ValueError, LookupError, TypeError):
        return None
