"""A platform's side of the stream: publish uploads, read results.

For the demo, the benchmark and canaries; what the worker itself uses is `consumer` and `publisher`.
"""

import contextlib
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
        try:
            self._producer.close(timeout=5)
        except kafka_errors.KafkaError:  # Kafka is away: it would go on trying
            client.give_up(self._producer)

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
    headers: Headers = ()


class Tail:
    """Reads topics of the results' cluster without a group, from their beginning or their end.

    Its place is taken when it is made. Raises StreamError where Kafka does not answer, and for a
    topic that is not there.
    """

    def __init__(self, settings: Kafka, topics: Iterable[str], *, from_end: bool = False) -> None:
        self._consumer = client.reader(
            settings,
            client.output_servers(settings),
            auto_offset_reset="latest" if from_end else "earliest",
            fetch_max_wait_ms=_POLL_MS,
        )
        try:
            partitions = [
                TopicPartition(topic, partition)
                for topic in topics
                for partition in _partitions(self._consumer, topic)
            ]
            self._consumer.assign(partitions)
            for partition in partitions:
                self._consumer.position(partition)
        except kafka_errors.KafkaError as error:
            self.close()
            client.unreachable(client.output_servers(settings), error)
        except StreamError:
            self.close()
            raise

    def poll(self, timeout_ms: int = _POLL_MS) -> Iterator[Result]:
        """What has arrived, in that order; waits for `timeout_ms` where nothing has.

        Raises StreamError where the topics can no longer be read.
        """
        try:
            polled = self._consumer.poll(timeout_ms)
        except kafka_errors.KafkaError as error:
            raise StreamError(f"Kafka lets nobody read results: {error}") from error
        for records in polled.values():
            arrived_at = datetime.now(UTC)
            for record in records:
                timestamp = client.moment(record.timestamp)
                headers = tuple(record.headers)
                yield Result(record.topic, record.key, record.value, timestamp, arrived_at, headers)

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def tail(settings: Kafka, topics: Iterable[str], stop: Callable[[], bool]) -> Iterator[Result]:
    """Read topics from their beginning, see `Tail`, until `stop()`: asked after every poll."""
    with contextlib.closing(Tail(settings, topics)) as reader:
        while True:
            yield from reader.poll()
            if stop():
                return


def _partitions(consumer: KafkaConsumer, topic: str) -> set[int]:
    found: set[int] | None = consumer.partitions_for_topic(topic)
    if not found:
        raise StreamError(f"there is no topic {topic}")
    return found
