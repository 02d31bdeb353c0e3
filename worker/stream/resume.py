"""Where a partition is begun: at its committed offset, as far as that still means the same."""

from collections.abc import Callable

from kafka import KafkaConsumer, TopicPartition

from worker.stream import logs
from worker.stream.ledger import Commit, Start
from worker.stream.metadata import NO_LEADER_EPOCH, Log, decode
from worker.telemetry import log as logging
from worker.telemetry import metrics

type EpochEnd = Callable[[int], tuple[int, int] | None]
"""See `logs.epoch_end`."""

logger = logging.get(__name__)


def begin(consumer: KafkaConsumer, at: TopicPartition) -> Start:
    """Ask Kafka where to begin; counts what retention took. Raises KafkaError as it answers."""
    log = logs.identity(consumer, at.topic)
    found = consumer.committed(at, metadata=True, timeout_ms=logs.ANSWER_MS)
    begins = consumer.beginning_offsets([at], timeout_ms=logs.ANSWER_MS)[at]
    if found is None:
        return Start(begins, log=log)
    committed = Commit(found.offset, found.metadata or "", found.leader_epoch)
    start = trusted(committed, begins, log, lambda epoch: logs.epoch_end(consumer, at, epoch))
    start, lost = clipped(start, begins)
    tell_loss(at, lost)
    return start


def trusted(committed: Commit, begins: int, log: Log, epoch_end: EpochEnd) -> Start:
    """What of a commit is true of this log, whose first offset is `begins`.

    What is doubtful counts as not finished: then uploads are screened again, and none is skipped.
    """
    bound = decode(committed.metadata)
    if bound is not None and log.replaces(bound.log):
        logger.error("topic_made_anew", offset=begins, committed=committed.offset)
        return Start(begins, log=log, committed=committed)
    if bound is None or log.differs(bound.log) or bound.watermark != committed.offset:
        if committed.metadata:
            logger.warning("commit_metadata_of_another_log", offset=committed.offset)
        return Start(committed.offset, log=log, committed=committed)
    runs, epoch = tuple(bound.runs), bound.leader_epoch
    if epoch == NO_LEADER_EPOCH:
        return Start(committed.offset, runs, log, epoch, committed)
    if (told := epoch_end(epoch)) is None:
        logger.error("log_was_truncated", committed=committed.offset, offset=begins)
        return Start(begins, log=log, committed=committed)
    last, end = told
    kept = tuple((start, min(stop, end)) for start, stop in runs if start < end)
    if last != epoch:
        kept = ()
    if kept != runs or end < committed.offset:
        # An unclean election, or a disk that lost its end: those offsets are other records' now.
        logger.error("log_was_truncated", committed=committed.offset, offset=end)
    return Start(min(committed.offset, end), kept, log, last, committed)


def clipped(start: Start, begins: int) -> tuple[Start, int]:
    """Begin no lower than the log does; and how many unfinished offsets retention took.

    What is finished above stays so, or its results would come a second time.
    """
    if start.offset >= begins:
        return start, 0
    gone = sum(min(stop, begins) - first for first, stop in start.runs if first < begins)
    runs = tuple((max(first, begins), stop) for first, stop in start.runs if stop > begins)
    return start._replace(offset=begins, runs=runs), begins - start.offset - gone


def tell_loss(at: TopicPartition, lost: int) -> None:
    """Retention takes what nobody screened in time: that is an alarm, and cannot be undone."""
    if lost <= 0:
        return
    metrics.RECORDS_LOST.inc(lost)
    logger.error("records_lost_to_retention", partition=at.partition, records=lost)
