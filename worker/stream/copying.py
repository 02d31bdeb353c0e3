"""Records from one topic to another: what `replay` reads, and how it sends in bounded memory."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, Self

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.serializer import Serializer

from worker.errors import StreamError
from worker.records import Headers, record_bytes
from worker.settings import Kafka
from worker.stream import client
from worker.stream.ledger import Partition

IN_FLIGHT_RECORDS = 2_000
IN_FLIGHT_BYTES = 32 * 1024 * 1024
PATIENCE_SECONDS = 60.0
_POLL_MS = 200
_CLOSE_SECONDS = 5.0
_NO_KEY = object()


class Span(NamedTuple):
    """Offsets `start <= offset < stop` of a partition."""

    partition: int
    start: int
    stop: int


class Copied(NamedTuple):
    """A record as it was, to be sent again. `timestamp` in milliseconds; None: now."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int | None = None

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return record_bytes(self.key, self.value, self.headers)


class RetentionTook(StreamError):
    """What was to be read is not in the topic any more."""


class TopicReader:
    """Reads committed records of one topic without a group. All raise StreamError."""

    def __init__(
        self,
        settings: Kafka,
        servers: tuple[str, ...],
        topic: str,
        fetch_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        """`fetch_bytes` is what is asked of a partition at once; Kafka gives a batch at least."""
        self.topic = topic
        self._servers = servers
        self._consumer = client.reader(
            settings,
            servers,
            auto_offset_reset="none",
            max_partition_fetch_bytes=fetch_bytes,
            fetch_max_wait_ms=100,
        )
        with contextlib.ExitStack() as opened:
            opened.callback(self.close)
            with self._told():
                self._partitions = sorted(self._consumer.partitions_for_topic(topic) or ())
            if not self._partitions:
                raise StreamError(f"there is no topic {topic} at {','.join(servers)}")
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)

    def spans(self) -> dict[int, Span]:
        """What the topic holds now, by partition."""
        at = [TopicPartition(self.topic, number) for number in self._partitions]
        with self._told():
            first = self._consumer.beginning_offsets(at)
            end = self._consumer.end_offsets(at)
        return {p.partition: Span(p.partition, first[p], end[p]) for p in at}

    def since(self, moment: datetime) -> dict[int, int]:
        """The first offset with this timestamp or a later one; no partition that has none."""
        milliseconds = max(0, int(moment.timestamp() * 1000))
        at = {TopicPartition(self.topic, number): milliseconds for number in self._partitions}
        with self._told():
            found = self._consumer.offsets_for_times(at)
        return {p.partition: one.offset for p, one in found.items() if one is not None}

    def read(self, span: Span) -> Iterator[Any]:
        """Read the records of a span, in order; there may be fewer than offsets."""
        at = TopicPartition(self.topic, span.partition)
        self._consumer.assign([at])
        self._consumer.seek(at, span.start)
        waited = time.monotonic()
        while True:
            try:
                with self._told():
                    if (self._consumer.position(at) or 0) >= span.stop:
                        return
                    records = self._consumer.poll(_POLL_MS).get(at, ())
            except kafka_errors.OffsetOutOfRangeError:
                raise RetentionTook(
                    f"{self.topic}/{span.partition}: retention takes records while they are read"
                ) from None
            for record in records:
                if record.offset >= span.stop:
                    return
                yield record
            if records:
                waited = time.monotonic()
            elif time.monotonic() - waited > PATIENCE_SECONDS:
                raise StreamError(
                    f"{self.topic}/{span.partition}: nothing came for {PATIENCE_SECONDS:.0f} s"
                )

    def record_at(self, span: Span, offset: int) -> Any | None:
        """Read one record of a span; None: retention or compaction has taken it."""
        if not span.start <= offset < span.stop:
            return None
        try:
            found = next(self.read(Span(span.partition, offset, span.stop)), None)
        except RetentionTook:
            return None
        return found if found is not None and found.offset == offset else None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except kafka_errors.OffsetOutOfRangeError:
            raise
        except kafka_errors.KafkaError as error:
            client.unreachable(self._servers, error)


class _Keys(Serializer):  # type: ignore[misc]
    """A record without key and value: kafka-python sends it only if the key seems to be one."""

    def serialize(self, _topic: str, _headers: Any, data: Any) -> bytes | None:
        return None if data is _NO_KEY else data


class OrderedSender:
    """Sends records in order, with little in flight; knows how far Kafka has taken them.

    Records with the same key stay in order. All raise StreamError where Kafka takes one not.
    """

    def __init__(self, settings: Kafka, topic: str) -> None:
        self._topic = topic
        self._servers = settings.bootstrap_servers
        self._sent: deque[tuple[Any, Partition, int, int]] = deque()
        self._bytes = 0
        self.taken = 0
        self.next_offsets: dict[Partition, int] = {}
        try:
            self._producer = KafkaProducer(
                **client.connection(settings, self._servers),
                client_id="copysieve-replay",
                enable_idempotence=True,
                acks="all",
                linger_ms=5,
                batch_size=256 * 1024,
                compression_type="lz4",
                max_request_size=2**31 - 1,  # the topic's limit is Kafka's to judge
                key_serializer=_Keys(),
                allow_auto_create_topics=False,
            )
        except (*client.FATAL, kafka_errors.KafkaError) as error:
            client.unreachable(self._servers, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        client.give_up(self._producer)

    def finish(self) -> None:
        """Give what is in flight a moment, where the work was interrupted; never raises."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._producer.flush(_CLOSE_SECONDS)
        with contextlib.suppress(StreamError):
            while self._sent and self._sent[0][0].is_done:
                self._settle_first()

    def send(self, record: Copied, source: Partition, offset: int) -> None:
        """Send a record that was read at `source` and `offset`, when there is room."""
        while self._sent and (
            len(self._sent) >= IN_FLIGHT_RECORDS or self._bytes + record.size > IN_FLIGHT_BYTES
        ):
            self._settle_first()
        key = _NO_KEY if record.key is None and record.value is None else record.key
        # kafka-python sends no header without a value.
        headers = [(name, value or b"") for name, value in record.headers]
        try:
            future = self._producer.send(
                self._topic, record.value, key, headers, timestamp_ms=record.timestamp
            )
        except kafka_errors.KafkaError as error:
            raise self._refused(source, offset, error) from error
        self._bytes += record.size
        self._sent.append((future, source, offset, record.size))

    def settle(self) -> None:
        """Wait until Kafka has all."""
        while self._sent:
            self._settle_first()

    def _settle_first(self) -> None:
        future, source, offset, size = self._sent[0]
        try:
            future.get()
        except kafka_errors.KafkaError as error:
            raise self._refused(source, offset, error) from error
        self._sent.popleft()
        self._bytes -= size
        self.taken += 1
        self.next_offsets[source] = offset + 1

    def _refused(self, source: Partition, offset: int, error: Exception) -> StreamError:
        reason = " ".join(str(error).split()) or type(error).__name__
        at = f"{source.topic}/{source.number}/{offset}"
        return StreamError(f"Kafka at {','.join(self._servers)} did not take {at}: {reason}")
