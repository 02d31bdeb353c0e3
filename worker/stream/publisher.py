"""The publisher: one thread that owns the producer, and the only one that tells the ledger.

Work comes in as `Delivery`s. For each one the ledger is asked whether it may still be sent; then
its records are made and sent. With `at_least_once` the ledger is told as soon as Kafka has
acknowledged all of them, and the consumer commits what the ledger says. With `exactly_once` what
was sent within `TRANSACTION_SECONDS` becomes visible together with its offsets, or not at all: when
all of it is acknowledged, offsets and transaction are committed, and then the ledger is told.

Whatever fails, the answer is one: a new producer, and new epochs at the committed offsets. A
transaction is never tried again on its producer, which keeps offsets of the aborted one, and can
lose batches to a new producer epoch without an error; so nothing is committed before every record
was acknowledged. The producer's callbacks run on its own thread and only enqueue.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from worker.errors import StreamError
from worker.records import Position
from worker.settings import Settings
from worker.stream import client
from worker.stream.ledger import Ledger
from worker.stream.refusals import Refusals
from worker.telemetry import log, metrics

RESULT_BYTES = 512 * 1024
"""No result is larger, for every field of it is bounded: what the output topics must take."""
TRANSACTION_SECONDS = 0.15
TRANSACTION_TIMEOUT_SECONDS = 10.0
"""After it Kafka aborts a transaction: until then readers wait for what a killed replica left open,
and beyond it a live one need not wait for its own."""
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

    All are called on the publisher's thread: `make`, so that the device's never waits for JSON;
    `refused`, with the reason, for the dead letter in place of results that Kafka never takes;
    `sent`, once, when what comes after it in the same topics will be behind it; `done`, once, with
    whether the record is finished (else it was dropped: it will come again).
    """

    position: Position
    make: Callable[[], Sequence[Outgoing]]
    refused: Callable[[str], Outgoing]
    sent: Callable[[], None]
    done: Callable[[bool], None]


@dataclass(slots=True, eq=False)
class _Sent:
    delivery: Delivery
    waiting: int


class _Acknowledged(NamedTuple):
    sent: _Sent
    kind: str
    error: Exception | None


class _TransactionError(Exception):
    """This transaction must not be committed."""


class Publisher:
    """Sends deliveries in the order of `submit`; `run` is the thread's body."""

    membership: Callable[[], Any | None]
    """The consumer's, which fences transactions (None: there is none): to be set before `run`."""

    def __init__(self, settings: Settings, ledger: Ledger, restart: threading.Event) -> None:
        """`restart` is set where a delivery failed, and read by the consumer.

        Raises StreamError where Kafka does not answer.
        """
        self._settings = settings
        self._ledger = ledger
        self._restart = restart
        self._transactional = settings.kafka.delivery == "exactly_once"
        self._inbox: queue.SimpleQueue[Delivery | _Acknowledged | None] = queue.SimpleQueue()
        self._abandon = threading.Event()
        self._working = threading.Event()
        self._outstanding: set[_Sent] = set()
        self._acknowledged: list[Delivery] = []
        self._held: deque[Delivery] = deque()
        self._began: float | None = None
        self._refusals = Refusals(RESULT_BYTES)
        self._producer = _producer(settings)
        self._working.set()

    def submit(self, delivery: Delivery) -> None:
        """Hand over one delivery; from any thread, never blocks."""
        self._inbox.put(delivery)

    @property
    def working(self) -> bool:
        """False while a new producer is sought: nothing can be published."""
        return self._working.is_set()

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
            while not self._abandon.is_set():
                try:
                    item = self._inbox.get(timeout=TRANSACTION_SECONDS)
                except queue.Empty:
                    pass
                else:
                    if item is None:
                        return
                    self._handle(item)
                if self._transactional:
                    self._maybe_commit()
        finally:
            client.give_up(self._producer)

    def _handle(self, item: Delivery | _Acknowledged) -> None:
        if isinstance(item, _Acknowledged):
            self._settle(item)
        elif self._transactional and self._due:
            self._held.append(item)
        else:
            self._send(item)

    def _send(self, delivery: Delivery) -> None:
        if not self._ledger.release(delivery.position):
            metrics.DROPPED.inc()
            delivery.sent()
            delivery.done(False)
            return
        records = self._refusals.records(delivery)
        sent = _Sent(delivery, waiting=len(records))
        self._outstanding.add(sent)
        for record in records:
            self._send_one(record, sent)
        delivery.sent()
        if not records:  # settings may ask for no event on this outcome
            self._finish(sent)

    def _send_one(self, record: Outgoing, sent: _Sent) -> None:
        def acknowledged(outcome: object) -> None:
            error = outcome if isinstance(outcome, Exception) else None
            self._inbox.put(_Acknowledged(sent, record.kind, error))

        def answered(outcome: object) -> None:
            if isinstance(outcome, client.REFUSED):
                self._refusals.note(sent.delivery, record.kind, outcome)
            acknowledged(outcome)

        while not self._abandon.is_set():
            try:
                self._maybe_begin()
                future = self._producer.send(
                    record.topic, record.value, record.key, list(record.headers)
                )
            except kafka_errors.KafkaTimeoutError:
                logger.warning("kafka_away", topic=record.topic)
                continue
            except Exception as error:  # noqa: BLE001 - settled like an error of the delivery
                acknowledged(error)
                return
            future.add_both(answered)
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
            self._finish(sent)

    def _finish(self, sent: _Sent) -> None:
        """Kafka has all records of it."""
        self._outstanding.remove(sent)
        if self._transactional:
            self._acknowledged.append(sent.delivery)
        else:
            self._tell(sent.delivery)

    def _tell(self, delivery: Delivery) -> None:
        self._refusals.settled(delivery)
        delivery.done(self._ledger.acknowledge(delivery.position))

    # -- transactions --------------------------------------------------------------------------

    @property
    def _age(self) -> float:
        """Of the open transaction, in seconds; 0 where there is none."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    @property
    def _due(self) -> bool:
        """Whether the open transaction takes nothing more, and waits for acknowledgements."""
        return self._age > TRANSACTION_SECONDS

    def _maybe_begin(self) -> None:
        if self._transactional and self._began is None:
            self._producer.begin_transaction()
            self._began = time.monotonic()

    def _maybe_commit(self) -> None:
        """Commit what was sent with its offsets; with none open, what else there is to commit."""
        if self._outstanding and self._age > TRANSACTION_TIMEOUT_SECONDS:
            self._start_again(_TransactionError("Kafka did not take its results in time"))
            return
        if self._outstanding or not (self._due or self._began is None):
            return
        try:
            self._commit()
        except (_TransactionError, kafka_errors.KafkaError) as error:
            self._start_again(error)
        while self._held and not self._due:
            self._send(self._held.popleft())

    def _commit(self) -> None:
        # First the membership, then what is ours: an owner that comes later has a newer generation,
        # with which Kafka refuses these offsets.
        group = self.membership()
        commits = self._ledger.commits_with([d.position for d in self._acknowledged])
        if commits is None:
            raise _TransactionError("its uploads went to another owner")
        if not commits and self._began is None:
            return
        if group is None:  # Kafka takes offsets without a member from anyone
            if self._began is None:
                return
            raise _TransactionError("not a member of the group")
        self._maybe_begin()
        client.commit_transaction(
            self._producer, client.offsets(commits), group, TRANSACTION_TIMEOUT_SECONDS
        )
        metrics.COMMITS.labels("ok").inc()
        metrics.LAST_COMMIT.set_to_current_time()
        self._ledger.committed(commits)
        finished, self._acknowledged, self._began = self._acknowledged, [], None
        for delivery in finished:
            self._tell(delivery)

    # -- failure -------------------------------------------------------------------------------

    def _start_again(self, error: Exception) -> None:
        """A failed delivery leaves a gap that only a new producer and new epochs can close."""
        if (fatal := self._fatal(error)) is not None:
            raise StreamError(fatal) from error
        metrics.DELIVERY_FAILURES.inc()
        logger.error("delivery_failed", error=type(error).__name__, detail=str(error))
        self._working.clear()
        self._ledger.revoke(self._ledger.assigned())
        client.give_up(self._producer)
        self._refusals.judge()
        given_up = [sent.delivery for sent in self._outstanding] + self._acknowledged
        self._outstanding, self._acknowledged, self._began = set(), [], None
        for delivery in given_up:
            delivery.done(False)
        while not self._abandon.wait(AGAIN_SECONDS):
            try:
                self._producer = _producer(self._settings, alone=self._refusals.alone)
            except StreamError as failure:
                if isinstance(failure.__cause__, client.FATAL):
                    raise
                logger.warning("kafka_away", error=str(failure))
            else:
                self._restart.set()
                self._working.set()
                return

    def _fatal(self, error: Exception) -> str | None:
        """Why trying again cannot help; None where it can.

        A producer is fenced by another one with its name, which is fatal, and by Kafka itself when
        its transaction took too long: a paused process, or brokers that were away.
        """
        if self._transactional:
            error = self._producer._transaction_manager.last_error or error  # noqa: SLF001
        if isinstance(error, kafka_errors.ProducerFencedError) and self._began is not None:
            if self._age > TRANSACTION_TIMEOUT_SECONDS:
                return None
            name = self._settings.replica.name
            return f"another replica publishes as {name!r}: each needs a replica.name of its own"
        return f"Kafka refused a result: {error}" if isinstance(error, client.FATAL) else None


def _producer(settings: Settings, *, alone: bool = False) -> KafkaProducer:
    """An idempotent producer for results; `alone`: each in a batch of its own.

    Raises StreamError where Kafka does not answer. With transactions, whatever an earlier one of
    the same name left open is aborted first.
    """
    kafka = settings.kafka
    servers = client.output_servers(kafka)
    transactions: dict[str, Any] = {}
    if kafka.delivery == "exactly_once":
        transactions = {
            "transactional_id": f"{kafka.group_id}.{settings.replica.name}",
            "transaction_timeout_ms": int(TRANSACTION_TIMEOUT_SECONDS * 1000),
        }
    try:
        made = KafkaProducer(
            **client.connection(kafka, servers),
            **transactions,
            client_id="copysieve",
            enable_idempotence=True,
            acks="all",
            delivery_timeout_ms=kafka.delivery_timeout_ms,
            request_timeout_ms=min(30_000, kafka.delivery_timeout_ms // 2),
            linger_ms=5,
            batch_size=0 if alone else 256 * 1024,
            compression_type="lz4",
            max_block_ms=5_000,
            max_request_size=2 * RESULT_BYTES,
            allow_auto_create_topics=False,
        )
        if transactions:
            try:
                made.init_transactions()
            except BaseException:
                client.give_up(made)
                raise
    except (*client.FATAL, kafka_errors.KafkaError) as error:
        client.unreachable(servers, error)
    return made
