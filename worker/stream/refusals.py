"""Refusals: results that Kafka takes in no way, and the dead letters in their place.

A refused record ends its producer: an idempotent one fails all that it still holds with the same
error. Where records shared a batch nobody can tell which one was to blame, so the next producer
puts each into a batch of its own (`alone`). Then the first refusal names the upload, and a minimal
dead letter takes the place of its results. So no upload ends one replica after another.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.errors import StreamError
from worker.records import record_bytes
from worker.telemetry import log, metrics

if TYPE_CHECKING:
    from worker.stream.publisher import Delivery, Outgoing

FRAMING_BYTES = 4 * 1024
"""Of a result's bytes, what is left to Kafka's format beside key, value and headers."""

type _At = tuple[str, int, int]
"""Topic, partition and offset: the same when the upload comes again, in a new epoch."""

logger = log.get(__name__)


class Refusals:
    """Which uploads get a dead letter since Kafka refuses their results. `note`: from any thread.

    `alone`: the next producer has to put each record into a batch of its own.
    """

    def __init__(self, result_bytes: int) -> None:
        """No record above `result_bytes` is given to Kafka."""
        self._result_bytes = result_bytes
        self._noted: deque[tuple[Delivery, str, Exception]] = deque()
        self._condemned: dict[_At, str] = {}
        self.alone = False

    def records(self, delivery: "Delivery") -> "Sequence[Outgoing]":
        """Make the results of a delivery, or the dead letter in their place."""
        if (why := self._condemned.get(_at(delivery))) is not None:
            return [delivery.refused(why)]
        records = delivery.make()
        for record in records:
            size = record_bytes(record.key, record.value, record.headers) + FRAMING_BYTES
            if size > self._result_bytes:
                why = f"a {record.kind} of {size} bytes, {self._result_bytes} at most"
                self._condemn(delivery, record.kind, why)
                return [delivery.refused(why)]
        return records

    def note(self, delivery: "Delivery", kind: str, error: Exception) -> None:
        """Kafka refused a record of this delivery, or one that shared its batch or producer."""
        self._noted.append((delivery, kind, error))

    def judge(self) -> None:
        """Find out who was to blame for what was noted; call it when the producer was closed.

        Raises StreamError where Kafka refused a minimal dead letter: no upload is to blame then,
        but the topic.
        """
        if self.alone and self._noted:
            delivery, kind, error = self._noted[0]
            if _at(delivery) in self._condemned:
                raise StreamError(f"Kafka refuses even a minimal dead letter: {error}") from error
            self._condemn(delivery, kind, f"Kafka refused a {kind}: {error}")
        self.alone = bool(self._noted) and not self.alone
        self._noted.clear()

    def settled(self, delivery: "Delivery") -> None:
        """Forget an upload that Kafka has a result of."""
        self._condemned.pop(_at(delivery), None)

    def _condemn(self, delivery: "Delivery", kind: str, why: str) -> None:
        topic, partition, offset = at = _at(delivery)
        self._condemned[at] = why
        metrics.RESULTS_REFUSED.labels(kind).inc()
        logger.critical(
            "result_refused", topic=topic, partition=partition, offset=offset, kind=kind, why=why
        )


def _at(delivery: "Delivery") -> _At:
    at = delivery.position
    return at.topic, at.partition, at.offset
