"""A platform's reader of the results: read_committed, all output topics, from their beginning."""

import json
import threading
import time
from dataclasses import dataclass
from datetime import datetime

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from worker.settings import Topics


@dataclass(frozen=True, slots=True)
class Result:
    """One verdict, match event or dead letter as it was read, `at` by the monotonic clock.

    `matches` are (score, threshold) by reference.
    """

    kind: str
    source: tuple[int, int]
    at: float
    upload_id: str | None
    number: str | None
    verdict_id: str | None
    outcome: str
    reason: str | None
    matches: dict[str, tuple[float, float]]
    received_at: datetime | None = None
    screened_at: datetime | None = None
    detail: str | None = None


class Reader(threading.Thread):
    """Collects `results` in the order of each partition, through every outage."""

    def __init__(self, servers: str, topics: Topics) -> None:
        super().__init__(name="reader")
        self.results: list[Result] = []
        self.answered: set[tuple[int, int]] = set()
        """Input partition and offset of what has a verdict or a dead letter."""
        self.failure: Exception | None = None
        self._kinds = {
            topics.verdicts: "verdict",
            topics.matches: "match",
            topics.dead_letters: "dead_letter",
        }
        self._stopping = threading.Event()
        self._consumer = KafkaConsumer(
            bootstrap_servers=[servers],
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
            reconnect_backoff_max_ms=500,
        )
        self._consumer.assign(
            [
                TopicPartition(topic, partition)
                for topic in self._kinds
                for partition in self._consumer.partitions_for_topic(topic)
            ]
        )

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    polled = self._consumer.poll(100)
                except kafka_errors.KafkaError:
                    time.sleep(0.1)
                    continue
                now = time.monotonic()
                for records in polled.values():
                    for record in records:
                        self._take(self._kinds[record.topic], json.loads(record.value), now)
        except Exception as error:  # noqa: BLE001 - told by the phase
            self.failure = error
        finally:
            self._consumer.close()

    def _take(self, kind: str, event: dict, now: float) -> None:
        source = (event["source"]["partition"], event["source"]["offset"])
        letter = kind == "dead_letter"
        self.results.append(
            Result(
                kind=kind,
                source=source,
                at=now,
                upload_id=event.get("upload_id"),
                number=event.get("attributes", {}).get("number"),
                verdict_id=event.get("verdict_id"),
                outcome=event.get("outcome", kind),
                reason=event.get("reason"),
                matches={
                    m["reference_id"]: (m["score"], m["threshold"])
                    for m in event.get("matches", [])
                },
                received_at=None if letter else datetime.fromisoformat(event["received_at"]),
                screened_at=None if letter else datetime.fromisoformat(event["screened_at"]),
                detail=event.get("detail"),
            )
        )
        if kind != "match":
            self.answered.add(source)
