"""Commits what the ledger says is finished; where results are transactions the publisher does."""

import queue
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from worker.stream import client
from worker.stream.ledger import Commit, Ledger, Partition
from worker.stream.membership import Membership
from worker.telemetry import log, metrics

COMMIT_SECONDS = 0.5
COMMIT_LOST_SECONDS = 30.0
LISTEN_SECONDS = 0.005
LAST_MS = 5_000

logger = log.get(__name__)


class Committer:
    """For the consumer's thread, but `settle`, which its listener awaits.

    With `transactional` it commits nothing: a plain commit could overtake a transaction's offsets.
    """

    def __init__(
        self,
        consumer: KafkaConsumer,
        ledger: Ledger,
        membership: Membership,
        *,
        transactional: bool,
    ) -> None:
        self._consumer = consumer
        self._ledger = ledger
        self._membership = membership
        self._transactional = transactional
        self._results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._sent: float | None = None
        self._offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        self._due = 0.0

    def turn(self) -> None:
        """Commit twice a second, with one commit outstanding. Fatal errors are raised."""
        self._take_results()
        now = time.monotonic()
        if now < self._due:
            return
        if self._sent is not None:
            if now - self._sent < COMMIT_LOST_SECONDS:
                return
            metrics.COMMITS.labels("lost").inc()
        self._due = now + COMMIT_SECONDS
        self._sent = None
        if not self._transactional and (commits := self._ledger.commits()):
            self._sent = now
            self._offsets = client.offsets(commits)
            self._consumer.commit_async(self._offsets, callback=self._on_commit)

    def finish(self) -> None:
        """Commit what is finished, and wait for it: what fails is done once more by the next."""
        if self._transactional or self._membership.changed():
            return
        with client.tolerating("last_commit_failed"):
            if commits := self._ledger.commits():
                self._consumer.commit(client.offsets(commits), timeout_ms=LAST_MS)
                self._ledger.committed(commits)

    async def settle(self, partitions: Sequence[Partition], seconds: float) -> None:
        """Wait until Kafka has what was sent of these partitions, then commit them."""
        deadline = time.monotonic() + seconds
        while self._ledger.unacknowledged(partitions) and time.monotonic() < deadline:
            # To await a commit, be it of nothing, is the only way to wait here that lets the
            # client's thread go on with its heartbeats.
            await self._consumer.commit_async({})
            time.sleep(LISTEN_SECONDS)  # noqa: ASYNC251 - this is not asyncio
        if not self._transactional:
            commits = self._ledger.commits(partitions, changed=False)
            await self._consumer.commit_async(client.offsets(commits))

    def _on_commit(self, offsets: Any, result: Any) -> None:
        """May run on the client's thread: only enqueue."""
        error = result if isinstance(result, Exception) else None
        self._results.put((offsets, error))

    def _take_results(self) -> None:
        while not self._results.empty():
            offsets, error = self._results.get()
            if offsets is self._offsets:  # else a late answer to one counted as lost
                self._sent = None
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


def _commits(offsets: dict[TopicPartition, OffsetAndMetadata]) -> dict[Partition, Commit]:
    return {
        Partition(at.topic, at.partition): Commit(o.offset, o.metadata, o.leader_epoch)
        for at, o in offsets.items()
    }
