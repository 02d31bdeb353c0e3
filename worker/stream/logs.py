"""Questions about a topic's logs that kafka-python's consumer asks only for itself."""

import base64
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import OffsetForLeaderEpochRequest
from kafka.protocol.metadata import MetadataRequest

from worker.stream.metadata import NO_LEADER_EPOCH, Log

ANSWER_MS = 1_000


def identity(consumer: KafkaConsumer, topic: str) -> Log:
    """The log behind a topic's name as it is now; the client's own copy may be minutes old.

    Raises UnknownTopicOrPartitionError where there is no such topic, other KafkaErrors where no
    broker answers.
    """
    asked = MetadataRequest.MetadataRequestTopic(name=topic)
    answer = _ask(consumer, MetadataRequest(topics=[asked], allow_auto_topic_creation=False))
    (told,) = answer.topics
    if told.error_code:
        raise kafka_errors.for_code(told.error_code)(topic)
    topic_id = (
        base64.urlsafe_b64encode(told.topic_id.bytes).decode()
        if told.topic_id and told.topic_id.int
        else ""
    )
    return Log.of(answer.cluster_id or "", topic_id.rstrip("="))


def epoch_end(consumer: KafkaConsumer, at: TopicPartition, epoch: int) -> tuple[int, int] | None:
    """The last leader epoch up to `epoch` in the log, and the offset after its last record.

    None: all epochs of the log are lower. Raises KafkaError where the leader does not answer.
    """
    leader = consumer._cluster.leader_for_partition(at)  # noqa: SLF001 - nothing public tells
    if leader is None or leader < 0:
        raise kafka_errors.LeaderNotAvailableError(str(at))
    topic = OffsetForLeaderEpochRequest.OffsetForLeaderTopic
    partition = topic.OffsetForLeaderPartition(
        partition=at.partition, current_leader_epoch=NO_LEADER_EPOCH, leader_epoch=epoch
    )
    asked = topic(topic=at.topic, partitions=[partition])
    answer = _ask(consumer, OffsetForLeaderEpochRequest(replica_id=-1, topics=[asked]), leader)
    told = answer.topics[0].partitions[0]
    if told.error_code:
        raise kafka_errors.for_code(told.error_code)(str(at))
    if told.end_offset < 0 or told.leader_epoch < 0:
        return None
    return int(told.leader_epoch), int(told.end_offset)


def _ask(consumer: KafkaConsumer, request: Any, node: int | None = None) -> Any:
    manager = consumer._manager  # noqa: SLF001 - there is no public way to ask

    async def ask() -> Any:
        return await manager.wait_for(manager.send(request, node_id=node), ANSWER_MS)

    return manager.run(ask)
