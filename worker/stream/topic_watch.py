"""Whether the uploads topic is still the one that its partitions were begun in.

Offsets of a topic that was deleted and made anew begin at 0. A consumer that is paused meanwhile
would go on at its old offset, and what was produced below it would never be screened.
"""

import time

from kafka import KafkaConsumer
from kafka import errors as kafka_errors

from worker.stream import client, logs
from worker.stream.ledger import Ledger
from worker.stream.metadata import Log
from worker.telemetry import log, metrics

ASK_SECONDS = 5.0

logger = log.get(__name__)


class TopicWatch:
    """For the consumer's thread."""

    def __init__(self, consumer: KafkaConsumer, ledger: Ledger, topic: str) -> None:
        self._consumer = consumer
        self._ledger = ledger
        self._topic = topic
        self._due = 0.0
        self._replaced = False

    def turn(self) -> bool:
        """Ask from time to time; whether partitions belong to a topic that is no more.

        Then nothing may be taken of it until all are begun again.
        """
        if (now := time.monotonic()) >= self._due:
            self._due = now + ASK_SECONDS
            if (found := self.identity()) is not None:
                begun = (self._ledger.log(partition) for partition in self._ledger.assigned())
                self._replaced = any(one is not None and found.replaces(one) for one in begun)
        return self._replaced

    def begun_anew(self) -> None:
        """Nothing belongs to the old topic any more."""
        self._replaced = False

    def identity(self) -> Log | None:
        """The topic as it is now; None where no broker answers, or there is none."""
        try:
            found = logs.identity(self._consumer, self._topic)
        except kafka_errors.UnknownTopicOrPartitionError:
            metrics.TOPIC_MISSING.set(1)
            logger.warning("topic_is_gone", topic=self._topic)
            return None
        except client.FATAL:
            raise
        except kafka_errors.KafkaError as error:
            logger.warning("topic_not_known", error=type(error).__name__)
            return None
        metrics.TOPIC_MISSING.set(0)
        return found
