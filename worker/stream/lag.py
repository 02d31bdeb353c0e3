"""How far each partition is behind, by what the brokers say; and partitions that stand still.

The client's own high watermark is what its last fetch said: it stands still where the client does
not fetch, which is when lag matters.
"""

import time
from collections.abc import Collection

from kafka import KafkaConsumer, TopicPartition

from worker.stream import client
from worker.stream.ledger import Ledger, Partition
from worker.telemetry import log, metrics

TELL_SECONDS = 5.0
STUCK_SECONDS = 30.0
"""A partition of which so long nothing came, though there is more, is fetched anew."""
ANSWER_MS = 1_000

logger = log.get(__name__)


class Lag:
    """For the consumer's thread."""

    def __init__(self, consumer: KafkaConsumer, ledger: Ledger) -> None:
        self._consumer = consumer
        self._ledger = ledger
        self._due = 0.0
        self._standing: dict[Partition, tuple[int, float]] = {}

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
        with client.tolerating("lag_not_known"):
            ends = self._consumer.end_offsets(
                [TopicPartition(*partition) for partition in watermarks], timeout_ms=ANSWER_MS
            )
            paused = self._consumer.paused()
            for at, end in ends.items():
                partition = Partition(at.topic, at.partition)
                behind = max(0, end - watermarks[partition][0])
                metrics.LAG.labels(str(at.partition)).set(behind)
                self._look(partition, end, now, paused)
        self._standing = {p: known for p, known in self._standing.items() if p in watermarks}

    def _look(
        self, partition: Partition, end: int, now: float, paused: Collection[TopicPartition]
    ) -> None:
        """Clients are known to leave a partition out of their fetches, without an error."""
        at, expected = TopicPartition(*partition), self._ledger.expected(partition)
        before, since = self._standing.get(partition, (-1, now))
        if at in paused or expected >= end or expected != before:
            self._standing[partition] = expected, now
            return
        if now - since >= STUCK_SECONDS:
            self._standing[partition] = expected, now
            metrics.FETCHED_ANEW.labels(str(partition.number)).inc()
            logger.error("partition_fetched_anew", partition=partition.number, offset=expected)
            self._consumer.pause(at)  # drops what the client holds of it
            self._consumer.seek(at, expected)
            self._consumer.resume(at)
