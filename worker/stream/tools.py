"""A platform's side of the stream, for the demo and the benchmark: publish uploads, read results.

The worker itself never uses these; see `consumer` and `publisher`.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from worker.errors import StreamError
from worker.records import Headers
from worker.settings import Kafka
from worker.stream import client

_IN_FLIGHT = 128
_PATIENCE_SECONDS = 60.0
_POLL_MS = 20


class UploadProducer:
    """Publishes to the uploads topic. Raises StreamError where Kafka does not answer.

    At most `in_flight` records wait for Kafka: `send` blocks until there is room.
    """

    def __init__(self, settings: Kafka, in_flight: int = _IN_FLIGHT) -> None:
        self._topic = settings.topics.uploads
        self._room = threading.BoundedSemaphore(in_flight)
        self._error: Exception | None = None
        servers = settings.bootstrap_servers
        try:
            self._producer = KafkaProducer(
                **client.connection(settings, servers),
                client_id="copysieve-uploads",
                linger_ms=2,
                max_request_size=32 * 1024 * 1024,
            )
        except (*client.FATAL, kafka_errors.KafkaError) as error:
            client.unreachable(servers, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close(timeout=5)

    def send(self, value: bytes | None, key: bytes | None = None, headers: Headers = ()) -> None:
        """Publish one record. Raises StreamError if there is no room, or one was refused."""
        if not self._room.acquire(timeout=_PATIENCE_SECONDS):
            raise StreamError(f"Kafka took no upload for {_PATIENCE_SECONDS:.0f} s")
        self._refused()
        try:
            future = self._producer.send(self._topic, value, key, list(headers))
        except kafka_errors.KafkaError as error:
            raise StreamError(f"Kafka refused an upload: {error}") from error
        future.add_both(self._acknowledged)

    def flush(self, timeout: float = _PATIENCE_SECONDS) -> None:
        """Wait until Kafka has all. Raises StreamError if it has not."""
        try:
            self._producer.flush(timeout)
        except kafka_errors.KafkaError as error:
            raise StreamError(f"Kafka did not take all uploads: {error}") from error
        self._refused()

    def _acknowledged(self, outcome: object) -> None:
        if isinstance(outcome, Exception):
            self._error = outcome
        self._room.release()

    def _refused(self) -> None:
        if self._error is not None:
            raise StreamError(f"Kafka refused an upload: {self._error}") from self._error


@dataclass(frozen=True, slots=True)
class Result:
    """One record of an output topic. `timestamp` is Kafka's, `arrived_at` this reader's clock."""

    topic: str
    key: bytes | None
    value: bytes
    timestamp: datetime
    arrived_at: datetime


def tail(settings: Kafka, topics: Iterable[str], stop: Callable[[], bool]) -> Iterator[Result]:
    """Read topics of the results' cluster from their beginning, without a group.

    Yields in the order of arrival until `stop()`, which is asked after every poll. Raises
    StreamError for a topic that is not there.
    """
    servers = client.output_servers(settings)
    try:
        consumer = KafkaConsumer(
            **client.connection(settings, servers),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=_POLL_MS,
        )
    except (*client.FATAL, kafka_errors.KafkaError) as error:
        client.unreachable(servers, error)
    try:
        consumer.assign(
            [
                TopicPartition(topic, partition)
                for topic in topics
                for partition in _partitions(consumer, topic)
            ]
        )
        while True:
            for records in consumer.poll(_POLL_MS).values():
                arrived_at = datetime.now(UTC)
                for record in records:
                    timestamp = client.moment(record.timestamp)
                    yield Result(record.topic, record.key, record.value, timestamp, arrived_at)
            if stop():
                return
    finally:
        consumer.close()


def _partitions(consumer: KafkaConsumer, topic: str) -> set[int]:
    found: set[int] | None = consumer.partitions_for_topic(topic)
    if not found:
        raise StreamError(f"there is no topic {topic}")
    return found
