"""Whether this replica is a member of its group, still the same one, and not wedged."""

import time
from collections.abc import Callable
from typing import Any, Literal

from kafka import KafkaConsumer
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import MemberState

from worker.errors import StageDied
from worker.settings import Settings
from worker.stream import client, unpacking
from worker.telemetry import metrics

WEDGED_SECONDS = 5.0
UNSTABLE_SLACK_SECONDS = 30.0
"""Beyond the longest legal rebalance, which takes `kafka.max_poll_interval_ms`."""

FETCH_SHARE = 0.25
"""Of `limits.in_flight_bytes`, what is left to the client's own buffers. A broker has one fetch
there and one on its way, each of a sixteenth of that: enough for eight brokers."""
LEAST_RECORD_BYTES = 16 * 1024 * 1024
"""Batches expand to twice this at least: producers bound a batch by its compressed size."""
METADATA_MS = 15_000
"""New partitions are seen within two of these; the client's own default is five minutes."""

type State = Literal["stable", "joining", "wedged"]


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Claims nothing for a member that was put out of its group.

    Kafka's own client forgets what it has lost. This one would claim it, and get it, in the very
    generation in which the owner it has by now is only told to give it up: both could commit.
    """

    is_member: Callable[[], bool]
    """To be set before the first join."""

    def metadata(self, topics: Any) -> Any:
        """What a join says of this member; called for every join."""
        if not self.is_member():
            self.member_assignment = None
        return super().metadata(topics)


class Membership:
    """Looks at one consumer; of its methods only `group` is for any thread."""

    def __init__(
        self,
        consumer: KafkaConsumer,
        max_poll_interval_seconds: float,
        broker_answers: Callable[[], bool],
    ) -> None:
        self._consumer = consumer
        self._limit = max_poll_interval_seconds + UNSTABLE_SLACK_SECONDS
        self._broker_answers = broker_answers
        self._member_id = ""
        self._stable_at = self._sound_at = time.monotonic()

    def group(self) -> Any | None:
        """What fences transactions. None: not a member, or another one than epochs began with."""
        group = self._consumer.group_metadata()
        same = group.member_id and group.member_id == self._member_id
        return group if same and group.generation_id >= 0 else None

    def changed(self) -> bool:
        """Whether it is another member now: then nothing that it had is its own any more.

        A member that is put out while it joins is not told so by the listener.
        """
        return bool(self._consumer.group_metadata().member_id != self._member_id)

    def take_over(self) -> None:
        """Be the member that it is now."""
        self._member_id = self._consumer.group_metadata().member_id

    @property
    def stable(self) -> bool:
        """Whether it has joined, and what is assigned to it is so in this generation."""
        return bool(self._consumer.group_metadata().state == MemberState.STABLE)

    def look(self) -> State:
        """Raises StageDied if it does not get stable, though a broker is there.

        Wedged: not stable, with no join under way. Seen where a join outlasts a poll on a busy
        machine: kafka-python then believes that it is rebalancing, and has nothing to do. A join
        may take as long as a session that has to time out: that is not for us to end.
        """
        now = time.monotonic()
        stable = self.stable
        metrics.GROUP_STABLE.set(stable)
        if stable:
            self._stable_at = self._sound_at = now
            return "stable"
        if now - self._stable_at > self._limit:
            # Without a broker nobody can join a group: that is waited for, however long.
            if self._broker_answers():
                raise StageDied(f"consumer: not stable in its group for {self._limit:.0f} s")
            self._stable_at = time.monotonic()
        if self._consumer._coordinator.need_rejoin():  # noqa: SLF001 - nothing public tells
            self._sound_at = now
        return "wedged" if now - self._sound_at > WEDGED_SECONDS else "joining"

    def begin_anew(self) -> None:
        """It joins again: give it time."""
        self._sound_at = time.monotonic()


def connect(settings: Settings) -> KafkaConsumer:
    """The consumer of this replica's group. Raises StreamError where Kafka does not answer."""
    kafka = settings.kafka
    fetch_bytes = int(FETCH_SHARE * settings.limits.in_flight_bytes) // 16
    assignor = Assignor()
    try:
        consumer = KafkaConsumer(
            **client.connection(kafka, kafka.bootstrap_servers),
            client_id=settings.replica.name,
            group_id=kafka.group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            partition_assignment_strategy=[assignor],
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=min(3_000, kafka.session_timeout_ms // 3),
            max_poll_interval_ms=kafka.max_poll_interval_ms,
            fetch_max_bytes=fetch_bytes,
            max_partition_fetch_bytes=min(fetch_bytes, 4 * 1024 * 1024),
            fetch_max_wait_ms=100,
            metadata_max_age_ms=METADATA_MS,
        )
    except (*client.FATAL, kafka_errors.KafkaError) as error:
        client.unreachable(kafka.bootstrap_servers, error)
    largest = max(settings.limits.record_bytes, LEAST_RECORD_BYTES)
    unpacking.bound(consumer, largest, fetch_bytes)
    assignor.is_member = lambda: bool(consumer.group_metadata().member_id)
    return consumer
