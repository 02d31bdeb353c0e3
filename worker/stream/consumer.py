"""The consumer: one thread that polls, takes, pauses, commits; and its rebalance listener.

Facts that shape it: the client's own thread runs the listener, and only while this thread is inside
`poll`; the listener must not block, so it waits by awaiting commits; a member that stops polling
freezes its whole group, so draining goes on polling with everything paused; `poll(0)` can wedge the
member for good, so it is never called. With `exactly_once` it is the publisher that commits, and
nothing here does: a plain commit could overtake the offsets of a transaction.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kafka import AsyncConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import MemberState

from worker.errors import StageDied
from worker.records import Position, Record
from worker.settings import Settings
from worker.stream import client
from worker.stream.held import Load
from worker.stream.ledger import TAKEN_AT_ONCE, Commit, Ledger, Partition
from worker.telemetry import log, metrics

POLL_MS = 100
JOIN_POLL_MS = 1_000
REJOIN_SECONDS = 15.0
ADOPT_MS = 1_000
COMMIT_SECONDS = 0.5
COMMIT_LOST_SECONDS = 30.0
REVOKE_SECONDS = 5.0
LISTEN_SECONDS = 0.005
UNSTABLE_SLACK_SECONDS = 30.0
FETCH_SHARE = 0.25
"""Of `limits.in_flight_bytes`, what is left to the client's own buffers. A broker has one fetch
there and one on its way, each of a sixteenth of that: enough for eight brokers."""
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
        self._transactional = settings.kafka.delivery == "exactly_once"
        self._stopping = threading.Event()
        self._abandon = threading.Event()
        self._commit_results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._commit_sent: float | None = None
        self._commit_offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        self._commit_due = 0.0
        self._paused_for: str | None = None
        self._unknown_at: dict[TopicPartition, float] = {}
        self._stable = False
        self._stable_at = self._joined_at = self._polled = time.monotonic()
        self._consumer = _connect(settings)

    def group_metadata(self) -> Any:
        """The membership, which fences transactions; from any thread."""
        return self._consumer.group_metadata()

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

    def _subscribe(self) -> None:
        self._consumer.subscribe([self._settings.kafka.topics.uploads], listener=_Listener(self))

    def _turn(self) -> None:
        """Pause or resume, poll, take, commit, watch."""
        if self._restart.is_set():
            self._begin_again()
        room = self._make_room()
        polled = self._poll(room)
        self._adopt(polled)
        for at, records in polled.items():
            self._take(_partition(at), records)
        self._advance()
        self._commit()
        self._watch()

    def _draining(self) -> bool:
        return self._ledger.in_flight > 0 and not self._abandon.is_set()

    def _make_room(self) -> int:
        """How many records may be taken now, at least 1: polling with all paused takes none."""
        limits, load = self._settings.limits, self._load()
        share = 1.0 if self._paused_for is None else RESUME_SHARE
        why = "stopping" if self._stopping.is_set() else self._held_back()
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
        return min(max(1, limits.in_flight_records - load.records), TAKEN_AT_ONCE)

    def _poll(self, room: int) -> dict[TopicPartition, list[Any]]:
        try:
            polled: dict[TopicPartition, list[Any]] = self._consumer.poll(
                timeout_ms=POLL_MS if self._stable else JOIN_POLL_MS, max_records=room
            )
        except (*client.FATAL, kafka_errors.CorruptRecordError):
            raise  # after a record that cannot be read the client would spin for ever
        except kafka_errors.KafkaError as error:
            if isinstance(error.__cause__, client.FATAL):
                raise
            logger.warning("poll_failed", error=type(error).__name__, detail=str(error))
            time.sleep(POLL_MS / 1000)
            polled = {}
        self._polled = time.monotonic()
        metrics.LAST_POLL.set_to_current_time()
        return polled

    def _adopt(self, polled: dict[TopicPartition, list[Any]]) -> None:
        """Begin an epoch for every partition that is newly ours, from its commit's metadata."""
        assigned = self._consumer.assignment()
        metrics.ASSIGNED.set(len(assigned))
        new = [p for p in assigned if self._ledger.epoch(_partition(p)) is None]
        for at in sorted(new, key=lambda p: self._unknown_at.get(p, 0.0)):
            try:
                committed = self._consumer.committed(at, metadata=True, timeout_ms=ADOPT_MS)
                begins = self._consumer.beginning_offsets([at], timeout_ms=ADOPT_MS)[at]
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
            start, metadata = begins, ""
            if committed is not None and committed.offset >= begins:
                start, metadata = committed.offset, committed.metadata or ""
            elif committed is not None:
                self._tell_loss(at, begins - committed.offset)
            self._consumer.seek(at, start)
            polled.pop(at, None)
            self._unknown_at.pop(at, None)
            epoch = self._ledger.assign(_partition(at), start, metadata)
            logger.info("partition_assigned", partition=at.partition, offset=start, epoch=epoch)

    def _seek_back(self, polled: dict[TopicPartition, list[Any]]) -> None:
        """Give back what was polled of partitions that have no epoch yet."""
        for at in [p for p in polled if self._ledger.epoch(_partition(p)) is None]:
            self._consumer.seek(at, polled.pop(at)[0].offset)

    def _tell_loss(self, at: TopicPartition, lost: int) -> None:
        """Retention takes what nobody screened in time: that is an alarm, and cannot be undone."""
        metrics.RECORDS_LOST.inc(lost)
        logger.error("records_lost_to_retention", partition=at.partition, records=lost)

    def _take(self, partition: Partition, records: list[Any]) -> None:
        epoch = self._ledger.epoch(partition)
        if epoch is None:
            return
        now = datetime.now(UTC)
        for raw in records:
            if raw.offset < self._ledger.expected(partition):
                # Kafka went back, after data loss or a reset of the offsets: all of it is new work.
                logger.error("offset_went_back", partition=partition.number, offset=raw.offset)
                epoch = self._ledger.assign(partition, raw.offset)
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
        for partition, (watermark, end) in self._ledger.watermarks().items():
            at = TopicPartition(*partition)
            if watermark == end and at in self._consumer.assignment():
                try:
                    position = self._consumer.position(at, timeout_ms=ADOPT_MS)
                except client.FATAL:
                    raise
                except kafka_errors.KafkaError:  # it may ask a broker, which may be away
                    return
                self._ledger.advance(partition, position or 0)

    def _begin_again(self) -> None:
        """Results were not delivered: new epochs at what is committed."""
        self._restart.clear()
        self._commit_finished()
        self._drop(self._ledger.assigned())
        logger.warning("started_again_at_committed_offsets")

    def _commit(self) -> None:
        """Commit twice a second, with one commit outstanding."""
        self._settle_commits()
        now = time.monotonic()
        if now < self._commit_due:
            return
        if self._commit_sent is not None:
            if now - self._commit_sent < COMMIT_LOST_SECONDS:
                return
            metrics.COMMITS.labels("lost").inc()
        self._commit_due = now + COMMIT_SECONDS
        self._commit_sent = None
        self._tell_lag()
        if self._transactional:
            return
        if commits := self._ledger.commits():
            self._commit_sent = now
            self._commit_offsets = client.offsets(commits)
            self._consumer.commit_async(self._commit_offsets, callback=self._on_commit)

    def _on_commit(self, offsets: Any, result: Any) -> None:
        """May run on the client's thread: only enqueue."""
        error = result if isinstance(result, Exception) else None
        self._commit_results.put((offsets, error))

    def _settle_commits(self) -> None:
        while not self._commit_results.empty():
            offsets, error = self._commit_results.get()
            if offsets is self._commit_offsets:  # else a late answer to one counted as lost
                self._commit_sent = None
            if error is None:
                metrics.COMMITS.labels("ok").inc()
                metrics.LAST_COMMIT.set_to_current_time()
                self._ledger.committed(_commits(offsets))
            elif isinstance(error, client.FATAL):
                raise error
            else:
                # Lost membership or a broker away: the group, or the next commit, sorts it out.
                metrics.COMMITS.labels("failed").inc()
                logger.warning("commit_failed", error=type(error).__name__)

    def _tell_lag(self) -> None:
        for partition, (watermark, end) in self._ledger.watermarks().items():
            label = str(partition.number)
            metrics.WATERMARK.labels(label).set(watermark)
            metrics.SPAN.labels(label).set(end - watermark)
            high = self._consumer.highwater(TopicPartition(*partition))
            if high is not None:
                metrics.LAG.labels(label).set(max(0, high - watermark))

    def _watch(self) -> None:
        """A member can be wedged without an error: join anew, and end the process if that fails.

        Seen where a join outlasts a poll on a busy machine: kafka-python then believes that it is
        rebalancing, and that there is nothing to do.
        """
        now = time.monotonic()
        self._stable = self._consumer.group_metadata().state == MemberState.STABLE
        metrics.GROUP_STABLE.set(self._stable)
        limit = self._settings.kafka.max_poll_interval_ms / 1000 + UNSTABLE_SLACK_SECONDS
        if self._stable:
            self._stable_at = self._joined_at = now
        elif now - self._stable_at > limit:
            # Without a broker nobody can join a group: that is waited for, however long.
            if self._broker_answers():
                raise StageDied(f"consumer: not stable in its group for {limit:.0f} s")
            self._stable_at = time.monotonic()
        elif now - self._joined_at > REJOIN_SECONDS:
            self._joined_at = now
            logger.warning("joining_anew", seconds=round(now - self._stable_at))
            metrics.REBALANCES.labels("joined_anew").inc()
            self._drop(self._ledger.assigned())
            self._consumer.unsubscribe()
            self._subscribe()

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
            self._commit_finished()
        finally:
            self._consumer.close(autocommit=False, timeout_ms=5_000)

    def _commit_finished(self) -> None:
        """Commit what is finished, and wait for it: what fails is done once more by the next."""
        if self._transactional:
            return
        try:
            if commits := self._ledger.commits():
                self._consumer.commit(client.offsets(commits), timeout_ms=5_000)
                self._ledger.committed(commits)
        except kafka_errors.KafkaError as error:
            logger.warning("last_commit_failed", error=type(error).__name__)

    async def revoked(self, partitions: list[Partition]) -> None:
        """Another owner comes: stop sending, wait for what is sent, commit, forget."""
        metrics.REBALANCES.labels("revoked").inc()
        self._ledger.revoke(partitions)
        deadline = time.monotonic() + REVOKE_SECONDS
        try:
            while self._ledger.unacknowledged(partitions) and time.monotonic() < deadline:
                # To await a commit, be it of nothing, is the only way to wait here that lets the
                # client's thread go on with its heartbeats.
                await self._consumer.commit_async({})
                time.sleep(LISTEN_SECONDS)  # noqa: ASYNC251 - this is not asyncio
            if not self._transactional:
                commits = self._ledger.commits(partitions, changed=False)
                await self._consumer.commit_async(client.offsets(commits))
        except client.FATAL:
            raise
        except kafka_errors.KafkaError as error:
            logger.warning("commit_on_revoke_failed", error=type(error).__name__)
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
            await self._owner.revoked(_partitions(revoked))

    async def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        self._owner.lost(_partitions(lost))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Offsets are read after poll() returns: here nothing may block."""
        del assigned
        metrics.REBALANCES.labels("assigned").inc()


def _connect(settings: Settings) -> KafkaConsumer:
    kafka = settings.kafka
    fetch_bytes = int(FETCH_SHARE * settings.limits.in_flight_bytes) // 16
    client.tolerate_header_names()
    try:
        return KafkaConsumer(
            **client.connection(kafka, kafka.bootstrap_servers),
            client_id=settings.replica.name,
            group_id=kafka.group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            partition_assignment_strategy=[CooperativeStickyAssignor()],
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=min(3_000, kafka.session_timeout_ms // 3),
            max_poll_interval_ms=kafka.max_poll_interval_ms,
            fetch_max_bytes=fetch_bytes,
            max_partition_fetch_bytes=min(fetch_bytes, 4 * 1024 * 1024),
            fetch_max_wait_ms=100,
        )
    except (*client.FATAL, kafka_errors.KafkaError) as error:
        client.unreachable(kafka.bootstrap_servers, error)


def _partition(at: TopicPartition) -> Partition:
    return Partition(at.topic, at.partition)


def _partitions(at: set[TopicPartition]) -> list[Partition]:
    return sorted(_partition(p) for p in at)


def _commits(offsets: dict[TopicPartition, OffsetAndMetadata]) -> dict[Partition, Commit]:
    return {
        Partition(at.topic, at.partition): Commit(o.offset, o.metadata, o.leader_epoch)
        for at, o in offsets.items()
    }


def _leader_epoch(raw: Any) -> int:
    epoch = raw.leader_epoch
    return -1 if epoch is None else int(epoch)
