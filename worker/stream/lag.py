"""How far each partition is behind, by what the brokers say; and partitions that stand still.

The client's own high watermark is what its last fetch said: it stands still where the client does
not fetch, which is when lag matters.
"""

import time

from kafka import KafkaConsumer, TopicPartition

from worker.stream import client
from worker.stream.ledger import Ledger, Partition
from worker.telemetry import log, metrics

TELL_SECONDS = 5.0
STUCK_SECONDS = 30.0
"""A partition of which so long nothing came, though there is more, is fetched anew."""
ANSWER_MS = 1_000
_LATEST = -1

type _Standing = tuple[int, float]
"""An offset, and since when the client stands there."""

logger = log.get(__name__)


class Lag:
    """For the consumer's thread."""

    def __init__(self, consumer: KafkaConsumer, ledger: Ledger) -> None:
        self._consumer = consumer
        self._ledger = ledger
        self._due = 0.0
        self._standing: dict[Partition, _Standing] = {}

    def turn(self) -> None:
        """Ask for the ends of all partitions from time to time, of paused ones too."""
        watermarks = self._ledger.watermarks()
        for partition, (watermark, end) in watermarks.items():
            label = str(partition.number)
            metrics.WATERMARK.labels(label).set(watermark)
            metrics.SPAN.labels(label).set(end - watermark)
        now = time.monotonic()
        if now < self._due or not watermarks:
            return
        self._due = now + TELL_SECONDS
        standing, self._standing = self._standing, {}
        with client.tolerating("lag_not_known"):  # then all are looked at as if for the first time
            asked = {TopicPartition(*partition): _LATEST for partition in watermarks}
            # `end_offsets` raises KeyError where one partition of several has no leader.
            told = self._consumer._fetcher.offsets_by_times(asked, ANSWER_MS)  # noqa: SLF001
            for at, end in told.items():
                if end is not None:
                    partition = Partition(at.topic, at.partition)
                    behind = max(0, end.offset - watermarks[partition][0])
                    metrics.LAG.labels(str(at.partition)).set(behind)
                    known = self._look(at, end.offset, now, standing.get(partition))
                    if known is not None:
                        self._standing[partition] = known

    def _look(
        self, at: TopicPartition, end: int, now: float, before: _Standing | None
    ) -> _Standing | None:
        """Clients are known to leave a partition out of their fetches, without an error."""
        state = self._consumer._subscription.assignment.get(at)  # noqa: SLF001 - its own position
        if state is None or state.paused or state.position is None or state.position.offset >= end:
            return None
        position = state.position
        if before is None or before[0] != position.offset:
            return position.offset, now
        if now - before[1] < STUCK_SECONDS:
            return before
        metrics.FETCHED_ANEW.labels(str(at.partition)).inc()
        logger.error("partition_fetched_anew", partition=at.partition, offset=position.offset)
        self._consumer.pause(at)  # drops what the client holds of it
        state.seek(position)  # with its leader epoch, which `consumer.seek` would forget
        self._consumer.resume(at)
        return position.offset, now
