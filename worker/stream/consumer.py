"""The consumer: one thread that polls, takes, pauses; and its rebalance listener.

Facts that shape it: the client's own thread runs the listener, and only while this thread is inside
`poll`; the listener must not block, so it waits by awaiting commits; a member that stops polling
freezes its whole group, so draining goes on polling with everything paused; `poll(0)` can wedge the
member for good, so it is never called; any call may ask a broker and raise when it is away, and is
caught where it stands, for what was polled must be taken.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from kafka import AsyncConsumerRebalanceListener, TopicPartition
from kafka import errors as kafka_errors

from worker.records import Position, Record
from worker.settings import Settings
from worker.stream import client, resume
from worker.stream.committer import Committer
from worker.stream.held import Load
from worker.stream.lag import Lag
from worker.stream.ledger import Ledger, Partition, Start
from worker.stream.membership import FETCH_SHARE, Membership, connect
from worker.stream.metadata import Log
from worker.stream.topic_watch import TopicWatch
from worker.telemetry import log, metrics

POLL_MS = 100
JOIN_POLL_MS = 1_000
ADOPT_MS = 1_000
ADOPT_SECONDS = 5.0
"""So long new partitions are begun in one turn; far below what a group waits for a poll."""
REVOKE_SECONDS = 5.0
RESUME_SHARE = 0.75
"""Taking resumes when what is in flight is below this share of its limit."""

logger = log.get(__name__)


class UploadConsumer:
    """Takes records of the input topic as there is room, and commits what is finished."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        admit: Callable[[Record], None],
        load: Callable[[], Load],
        restart: threading.Event,
        held_back: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`admit` gets every record that was taken, and must not block.

        `load` tells what the pipeline holds; `held_back` names a reason of the pipeline's to take
        nothing for now (None: there is none). `restart` is set where results could not be
        delivered: begin again at what is committed. Raises StreamError where Kafka does not answer.
        """
        self._settings = settings
        self._ledger = ledger
        self._admit = admit
        self._load = load
        self._restart = restart
        self._held_back = held_back
        self._stopping = threading.Event()
        self._abandon = threading.Event()
        self._paused_for: str | None = None
        self._unknown_at: dict[TopicPartition, float] = {}
        self._stable = False
        self._broken: Exception | None = None
        self._polled = time.monotonic()
        self._consumer = connect(settings)
        self._membership = Membership(
            self._consumer, settings.kafka.max_poll_interval_ms / 1000, self._broker_answers
        )
        self._lag = Lag(self._consumer, ledger)
        self._topic = TopicWatch(self._consumer, ledger, settings.kafka.topics.uploads)
        self._replaced = False
        self._committer = Committer(
            self._consumer,
            ledger,
            self._membership,
            transactional=settings.kafka.delivery == "exactly_once",
        )

    def membership(self) -> Any | None:
        """See `Membership.group`; from any thread."""
        return self._membership.group()

    @property
    def seconds_since_poll(self) -> float:
        """How long ago poll() last returned: for liveness."""
        return time.monotonic() - self._polled

    def stop(self) -> None:
        """Take nothing more; `run` returns when what is in flight is finished and committed."""
        self._stopping.set()

    def abandon(self) -> None:
        """Return from `run` now, with what is finished committed and the rest left for others."""
        self._stopping.set()
        self._abandon.set()

    def run(self) -> None:
        """The thread's body: until `stop`, then until drained. Fatal errors are raised."""
        self._subscribe()
        try:
            while not self._stopping.is_set() or self._draining():
                self._turn()
        finally:
            self._close()
        if self._broken is not None:  # on the way out
            raise self._broken

    def _subscribe(self) -> None:
        self._consumer.subscribe([self._settings.kafka.topics.uploads], listener=_Listener(self))

    def _turn(self) -> None:
        """Pause or resume, poll, take, commit, watch."""
        if self._restart.is_set():
            self._begin_again()
        room = self._make_room()
        polled = self._poll(room)
        if self._membership.changed():
            self._drop(self._ledger.assigned())
            self._membership.take_over()
        self._adopt(polled)
        for at, records in polled.items():
            self._take(_partition(at), records)
        self._advance()
        self._committer.turn()
        self._lag.turn()
        self._begin_a_new_topic()
        self._watch()

    def _draining(self) -> bool:
        """Whether to go on: while a join is pending Kafka takes no commits, so it is waited for."""
        if self._abandon.is_set():
            return False
        return self._ledger.in_flight > 0 or (
            not self._membership.stable and bool(self._ledger.commits())
        )

    def _make_room(self) -> int:
        """How many records may be taken now, at least 1: polling with all paused takes none."""
        limits, load = self._settings.limits, self._load()
        share = 1.0 if self._paused_for is None else RESUME_SHARE
        why = "stopping" if self._stopping.is_set() else self._held_back()
        why = why or ("topic_made_anew" if self._replaced else None)
        if why is None and load.records >= share * limits.in_flight_records:
            why = "records"
        if why is None and load.bytes >= share * (1 - FETCH_SHARE) * limits.in_flight_bytes:
            why = "bytes"
        if why != self._paused_for:
            if self._paused_for:
                metrics.PAUSED.labels(self._paused_for).set(0)
            if why:
                metrics.PAUSED.labels(why).set(1)
            self._paused_for = why
        metrics.IN_FLIGHT_RECORDS.set(load.records)
        metrics.IN_FLIGHT_BYTES.set(load.bytes)
        assigned = self._consumer.assignment()
        full = {TopicPartition(*p) for p in self._ledger.full()}
        wanted = assigned if why else assigned & full
        if pause := wanted - self._consumer.paused():
            self._consumer.pause(*pause)
        if resume := (self._consumer.paused() & assigned) - wanted:
            self._consumer.resume(*resume)
        return min(max(1, limits.in_flight_records - load.records), self._ledger.most_to_take())

    def _poll(self, room: int) -> dict[TopicPartition, list[Any]]:
        try:
            polled: dict[TopicPartition, list[Any]] = self._consumer.poll(
                timeout_ms=POLL_MS if self._stable else JOIN_POLL_MS, max_records=room
            )
        except (*client.FATAL, *client.UNREADABLE):
            raise
        except kafka_errors.KafkaError as error:
            logger.warning("poll_failed", error=type(error).__name__, detail=str(error))
            time.sleep(POLL_MS / 1000)
            polled = {}
        if self._broken is not None:
            raise self._broken
        self._polled = time.monotonic()
        metrics.LAST_POLL.set_to_current_time()
        return polled

    def _adopt(self, polled: dict[TopicPartition, list[Any]]) -> None:
        """Begin an epoch for every partition that is newly ours, from its commit's metadata.

        Not while a join is pending: a member that was put out may still hold its old assignment.
        """
        if not self._membership.stable:
            self._seek_back(polled)
            return
        assigned = self._consumer.assignment()
        metrics.ASSIGNED.set(len(assigned))
        new = [p for p in assigned if self._ledger.epoch(_partition(p)) is None]
        until = time.monotonic() + ADOPT_SECONDS
        for at in sorted(new, key=lambda p: self._unknown_at.get(p, 0.0)):
            try:
                start = resume.begin(self._consumer, at)
            except client.FATAL:
                raise
            except kafka_errors.KafkaError as error:
                # A transaction of its last owner may be open still. Its records come again, and
                # the other new ones get their turn first.
                self._unknown_at[at] = time.monotonic()
                logger.warning(
                    "offset_not_known", partition=at.partition, error=type(error).__name__
                )
                self._seek_back(polled)
                return
            self._consumer.seek(at, start.offset)
            polled.pop(at, None)
            self._unknown_at.pop(at, None)
            epoch = self._ledger.assign(_partition(at), start)
            logger.info(
                "partition_assigned", partition=at.partition, offset=start.offset, epoch=epoch
            )
            if time.monotonic() > until:  # with many, a member has to poll between
                self._seek_back(polled)
                return

    def _seek_back(self, polled: dict[TopicPartition, list[Any]]) -> None:
        """Give back what was polled of partitions that have no epoch yet."""
        for at in [p for p in polled if self._ledger.epoch(_partition(p)) is None]:
            self._consumer.seek(at, polled.pop(at)[0].offset)

    def _look_into_gap(self, partition: Partition, following: int) -> None:
        """Tell what retention took under our feet: kafka-python steps over it without a word.

        A gap of one is a control record.
        """
        expected = self._ledger.expected(partition)
        if following - expected > 1:
            at = TopicPartition(*partition)
            with client.tolerating("gap_not_known"):
                begins = self._consumer.beginning_offsets([at], timeout_ms=ADOPT_MS)[at]
                gone = min(begins, following)
                resume.tell_loss(at, self._ledger.unfinished(partition, expected, gone))

    def _take(self, partition: Partition, records: list[Any]) -> None:
        epoch = self._ledger.epoch(partition)
        if epoch is None:
            return
        now = datetime.now(UTC)
        self._look_into_gap(partition, records[0].offset)
        for raw in records:
            if raw.offset < self._ledger.expected(partition):
                # Kafka went back, after data loss or a reset of the offsets: all of it is new work.
                logger.error("offset_went_back", partition=partition.number, offset=raw.offset)
                began = self._topic.identity() or self._ledger.log(partition) or Log()
                epoch = self._ledger.assign(partition, Start(raw.offset, log=began))
            position = Position(partition.topic, partition.number, raw.offset, epoch)
            if not self._ledger.take(position, _leader_epoch(raw)):
                metrics.SKIPPED.inc()
                continue
            record = Record(
                position=position,
                key=raw.key,
                value=raw.value,
                headers=tuple(raw.headers),
                timestamp=client.moment(raw.timestamp),
                received_at=now,
            )
            metrics.RECORDS.inc()
            metrics.RECORD_BYTES.inc(record.size)
            self._admit(record)

    def _advance(self) -> None:
        """Offsets of control records are never delivered: step over them when nothing is left."""
        assigned = self._consumer.assignment()  # a new set at every call
        for partition, (watermark, end) in self._ledger.watermarks().items():
            at = TopicPartition(*partition)
            if watermark == end and at in assigned:
                with client.tolerating("position_not_known"):
                    position = self._consumer.position(at, timeout_ms=ADOPT_MS) or 0
                    self._look_into_gap(partition, position)
                    self._ledger.advance(partition, position)

    def _begin_a_new_topic(self) -> None:
        """Finish what was taken of a topic that was deleted, then begin the one in its place."""
        self._replaced = self._topic.turn()
        if self._replaced and not self._ledger.in_flight and not self._stopping.is_set():
            logger.error("topic_made_anew")
            self._committer.finish()
            self._drop(self._ledger.assigned())
            self._topic.begun_anew()

    def _begin_again(self) -> None:
        """Results were not delivered: new epochs at what is committed."""
        self._restart.clear()
        self._committer.finish()
        self._drop(self._ledger.assigned())
        logger.warning("started_again_at_committed_offsets")

    def _watch(self) -> None:
        """A member can be wedged without an error: join anew."""
        state = self._membership.look()
        self._stable = state == "stable"
        if state == "wedged":
            logger.warning("joining_anew")
            metrics.REBALANCES.labels("joined_anew").inc()
            self._drop(self._ledger.assigned())
            self._consumer.unsubscribe()
            self._subscribe()
            self._membership.begin_anew()

    def _broker_answers(self) -> bool:
        try:
            self._consumer.beginning_offsets(
                [TopicPartition(self._settings.kafka.topics.uploads, 0)], timeout_ms=ADOPT_MS
            )
        except kafka_errors.KafkaError:
            return False
        return True

    def _close(self) -> None:
        """Commit what is finished, leave the group."""
        try:
            self._committer.finish()
        finally:
            with client.tolerating("close_failed"):
                self._consumer.close(autocommit=False, timeout_ms=5_000)

    async def revoked(self, partitions: list[Partition]) -> None:
        """Another owner comes: stop sending, wait for what is sent, commit, forget."""
        if self._membership.changed():  # they went when it was put out
            self.lost(partitions)
            return
        metrics.REBALANCES.labels("revoked").inc()
        try:
            self._ledger.revoke(partitions)
            with client.tolerating("commit_on_revoke_failed"):
                await self._committer.settle(partitions, REVOKE_SECONDS)
        finally:
            dropped = self._drop(partitions)
        logger.info(
            "partitions_revoked",
            partitions=[p.number for p in partitions],
            dropped=dropped,
        )

    def lost(self, partitions: list[Partition]) -> None:
        """Another owner is there already: only forget."""
        metrics.REBALANCES.labels("lost").inc()
        dropped = self._drop(partitions)
        logger.warning(
            "partitions_lost", partitions=[p.number for p in partitions], dropped=dropped
        )

    def broken_by(self, error: Exception) -> None:
        """The listener failed: `run` ends with it."""
        self._broken = error

    def _drop(self, partitions: list[Partition]) -> int:
        """Forget partitions that are another's now, and what was told of them."""
        for partition in partitions:
            for gauge in (metrics.LAG, metrics.SPAN, metrics.WATERMARK):
                with contextlib.suppress(KeyError):
                    gauge.remove(str(partition.number))
        return self._ledger.drop(partitions)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Runs on the client's thread, while the consumer's thread is inside poll()."""

    def __init__(self, owner: UploadConsumer) -> None:
        self._owner = owner

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:  # the first join revokes nothing
            with self._telling():
                await self._owner.revoked(_partitions(revoked))

    async def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        with self._telling():
            self._owner.lost(_partitions(lost))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Offsets are read after poll() returns: here nothing may block."""
        del assigned
        metrics.REBALANCES.labels("assigned").inc()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """kafka-python makes any error an error of poll(), like those that pass by themselves."""
        try:
            yield
        except Exception as error:
            self._owner.broken_by(error)
            raise


def _partition(at: TopicPartition) -> Partition:
    return Partition(at.topic, at.partition)


def _partitions(at: set[TopicPartition]) -> list[Partition]:
    return sorted(_partition(p) for p in at)


def _leader_epoch(raw: Any) -> int:
    epoch = raw.leader_epoch
    return -1 if epoch is None else int(epoch)
