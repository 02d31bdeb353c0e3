"""The publisher: one thread that owns the producer, and the only one that tells the ledger.

Work comes in as `Delivery`s. For each one the ledger is asked whether it may still be sent; then
its records are made, sent, and once Kafka has acknowledged all of them the ledger is told. The
producer's callbacks run on its own thread and only enqueue.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from worker.errors import StreamError
from worker.records import Position
from worker.settings import Kafka
from worker.stream import client
from worker.stream.ledger import Ledger
from worker.telemetry import log, metrics

RESULT_BYTES = 512 * 1024
"""No result is larger, for every field of it is bounded: what the output topics must take."""
AGAIN_SECONDS = 1.0

logger = log.get(__name__)


class Outgoing(NamedTuple):
    """One record to be published; `kind` is for the metrics."""

    kind: str
    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """The results of one record of the input topic.

    `make` runs on the publisher's thread, so that the device's never waits for JSON; `done` is
    called once, with whether the record is finished (else it was dropped: it is another's now).
    """

    position: Position
    make: Callable[[], Sequence[Outgoing]]
    done: Callable[[bool], None]


@dataclass(slots=True, eq=False)
class _Sent:
    delivery: Delivery
    waiting: int


class _Acknowledged(NamedTuple):
    sent: _Sent
    kind: str
    error: Exception | None


class Publisher:
    """Sends deliveries in the order of `submit`; `run` is the thread's body."""

    def __init__(self, settings: Kafka, ledger: Ledger, restart: threading.Event) -> None:
        """`restart` is set where a delivery failed, and read by the consumer.

        Raises StreamError where Kafka does not answer.
        """
        self._settings = settings
        self._ledger = ledger
        self._restart = restart
        self._inbox: queue.SimpleQueue[Delivery | _Acknowledged | None] = queue.SimpleQueue()
        self._abandon = threading.Event()
        self._outstanding: set[_Sent] = set()
        self._producer = producer(settings)

    def submit(self, delivery: Delivery) -> None:
        """Hand over one delivery; from any thread, never blocks."""
        self._inbox.put(delivery)

    @property
    def backlog(self) -> int:
        """Deliveries and acknowledgements not looked at yet."""
        return self._inbox.qsize()

    def close(self, *, abandon: bool = False) -> None:
        """End `run` after what is in the inbox; `abandon`: now. What is not acknowledged is lost.

        Nothing is lost that was committed; close after the ledger has drained.
        """
        if abandon:
            self._abandon.set()
        self._inbox.put(None)

    def run(self) -> None:
        """Send and settle until `close`. A fatal error of Kafka's is raised."""
        try:
            while (item := self._inbox.get()) is not None and not self._abandon.is_set():
                if isinstance(item, Delivery):
                    self._send(item)
                else:
                    self._settle(item)
        finally:
            _discard(self._producer)

    def _send(self, delivery: Delivery) -> None:
        if not self._ledger.release(delivery.position):
            metrics.DROPPED.inc()
            delivery.done(False)
            return
        records = delivery.make()
        if not records:  # settings may ask for no event on this outcome
            delivery.done(self._ledger.acknowledge(delivery.position))
            return
        sent = _Sent(delivery, waiting=len(records))
        self._outstanding.add(sent)
        for record in records:
            self._send_one(record, sent)

    def _send_one(self, record: Outgoing, sent: _Sent) -> None:
        def acknowledged(outcome: object) -> None:
            error = outcome if isinstance(outcome, Exception) else None
            self._inbox.put(_Acknowledged(sent, record.kind, error))

        if len(record.value) > RESULT_BYTES:
            # One record too large makes an idempotent producer fatal for ever, so it never gets it.
            raise StreamError(
                f"a {record.kind} of {len(record.value)} bytes: {RESULT_BYTES} at most"
            )
        while not self._abandon.is_set():
            try:
                future = self._producer.send(
                    record.topic, record.value, record.key, list(record.headers)
                )
            except kafka_errors.KafkaTimeoutError:
                logger.warning("kafka_away", topic=record.topic)
                continue
            except Exception as error:  # noqa: BLE001 - settled like an error of the delivery
                acknowledged(error)
                return
            future.add_both(acknowledged)
            return

    def _settle(self, ack: _Acknowledged) -> None:
        sent = ack.sent
        if sent not in self._outstanding:  # of a producer that was given up
            return
        if ack.error is not None:
            self._start_again(ack.error)
            return
        metrics.PUBLISHED.labels(ack.kind).inc()
        sent.waiting -= 1
        if sent.waiting == 0:
            self._outstanding.remove(sent)
            sent.delivery.done(self._ledger.acknowledge(sent.delivery.position))

    def _start_again(self, error: Exception) -> None:
        """A failed delivery leaves a gap that only a new producer and new epochs can close."""
        if isinstance(error, client.FATAL):
            raise StreamError(f"Kafka refused a result: {error}") from error
        metrics.DELIVERY_FAILURES.inc()
        logger.error("delivery_failed", error=type(error).__name__, detail=str(error))
        self._ledger.revoke(self._ledger.assigned())
        self._restart.set()
        _discard(self._producer)
        given_up, self._outstanding = self._outstanding, set()
        for sent in given_up:
            sent.delivery.done(False)
        self._abandon.wait(AGAIN_SECONDS)
        while not self._abandon.is_set():
            try:
                self._producer = producer(self._settings)
            except StreamError as failure:
                logger.warning("kafka_away", error=str(failure))
                self._abandon.wait(AGAIN_SECONDS)
            else:
                return


def _discard(given_up: KafkaProducer) -> None:
    """Close a producer without another try to deliver; what it still holds fails.

    Its own `close` begins with a flush that raises where Kafka is away, and then stops nothing.
    """
    given_up._sender.force_close()  # noqa: SLF001 - there is no public way to give up
    with contextlib.suppress(kafka_errors.KafkaError):
        given_up.close(timeout=5)


def producer(settings: Kafka) -> KafkaProducer:
    """An idempotent producer for results. Raises StreamError where Kafka does not answer."""
    servers = client.output_servers(settings)
    try:
        return KafkaProducer(
            **client.connection(settings, servers),
            client_id="copysieve",
            enable_idempotence=True,
            acks="all",
            delivery_timeout_ms=settings.delivery_timeout_ms,
            request_timeout_ms=min(30_000, settings.delivery_timeout_ms // 2),
            linger_ms=5,
            batch_size=256 * 1024,
            compression_type="lz4",
            max_block_ms=5_000,
            max_request_size=2 * RESULT_BYTES,
            allow_auto_create_topics=False,
        )
    except (*client.FATAL, kafka_errors.KafkaError) as error:
        client.unreachable(servers, error)
