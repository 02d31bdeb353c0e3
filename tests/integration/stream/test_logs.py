"""Commits that meet another log than theirs: mirrored, truncated, made anew; on a real Kafka."""

import shutil
from collections import Counter

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from tests.fixtures.echo import Echo, eventually, numbered, seen
from tests.fixtures.stream import make_stream, metadata_of
from worker.embedded.kafka import kafka_broker as own_broker
from worker.errors import StreamError
from worker.stream.admin import Admin, require_topics
from worker.telemetry import metrics

pytestmark = pytest.mark.kafka


@pytest.fixture(params=["at_least_once", "exactly_once"])
def stream(kafka_broker, request):
    return make_stream(kafka_broker, partitions=1, kafka={"delivery": request.param})


def commit(stream, offset, metadata):
    """Commit for the group from outside, as MirrorMaker does."""
    consumer = KafkaConsumer(
        bootstrap_servers=[stream.broker.bootstrap_servers],
        group_id=stream.settings.kafka.group_id,
        enable_auto_commit=False,
    )
    try:
        at = TopicPartition(stream.topics.uploads, 0)
        consumer.assign([at])
        consumer.commit({at: OffsetAndMetadata(offset, metadata, -1)})
    finally:
        consumer.close()


def finish_all_but(stream, held):
    """Run a replica that leaves these unfinished; returns the commit's offset and metadata."""
    replica = Echo(stream.settings, hold=lambda value: int(value) in held)
    eventually(lambda: len(seen(stream)) + len(replica.held) >= 20)
    replica.stop(abandon=True)
    return stream.committed()[0]


def test_metadata_beside_a_translated_offset_skips_nothing(stream):
    stream.produce(numbered(20))
    left = finish_all_but(stream, {5, 12})
    assert left.offset == 5
    commit(stream, 11, left.metadata)  # as after MirrorMaker: 12 would be taken for finished
    second = Echo(stream.replica())
    eventually(lambda: 12 in seen(stream))
    second.stop()
    assert set(seen(stream)) == set(range(20)) - {5}


def test_what_was_finished_stays_so_where_retention_took_the_watermark(stream):
    stream.produce(numbered(20))
    assert finish_all_but(stream, {3, 12}).offset == 3
    before = metrics.RECORDS_LOST._value.get()
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        admin._client.delete_records({TopicPartition(stream.topics.uploads, 0): 8})
    stream.produce(numbered(5, start=20))
    second = Echo(stream.replica())
    eventually(lambda: {12, 24} <= set(seen(stream)))
    second.stop()
    assert seen(stream) == Counter(set(range(25)) - {3})
    assert metrics.RECORDS_LOST._value.get() - before == 1


def test_metadata_of_another_cluster_skips_nothing(stream):
    stream.produce(numbered(20))
    left = finish_all_but(stream, {5})
    bound = metadata_of(left)
    commit(stream, left.offset, left.metadata.replace(bound.log.cluster, "another"))
    second = Echo(stream.replica())
    eventually(lambda: sum(seen(stream).values()) == 5 + 14 + 15)
    second.stop()


def test_offsets_that_a_broker_gave_away_again_are_screened():
    """As after an unclean election: the log's end is lost, and other records come there."""
    with own_broker() as broker:
        stream = make_stream(broker, partitions=1)
        stream.produce(numbered(10))
        broker.restart()
        (log,) = broker._data.glob(f"{stream.topics.uploads}-0")
        broker.kill()
        shutil.copytree(log, log.parent.parent / "copy")
        broker.restart()
        stream.produce(numbered(10, start=10))
        left = finish_all_but(stream, {7})
        assert (left.offset, metadata_of(left).runs) == (7, [(8, 20)])
        broker.restart()
        broker.kill()
        shutil.rmtree(log)
        shutil.copytree(log.parent.parent / "copy", log)
        (log.parent / "recovery-point-offset-checkpoint").unlink()
        (log.parent / "replication-offset-checkpoint").unlink()
        broker.restart()
        stream.produce(numbered(20, start=100))
        second = Echo(stream.replica())
        wanted = set(range(20)) | set(range(100, 120))
        eventually(lambda: set(seen(stream)) == wanted)
        second.stop()


def test_brokers_that_keep_too_little_metadata_are_refused():
    with own_broker() as broker:
        with broker._properties.open("a", encoding="utf-8") as properties:
            properties.write("\noffset.metadata.max.bytes=40\n")
        broker.restart()
        stream = make_stream(broker, partitions=1)
        with pytest.raises(StreamError, match=r"keep 40 bytes .* raise their offset\.metadata"):
            require_topics(stream.settings)
        stream.produce(numbered(5))
        replica = Echo(stream.settings)  # as where the brokers' settings may not be read
        eventually(lambda: replica.errors)
        assert "OffsetMetadataTooLarge" in type(replica.errors[0]).__name__
        replica.errors.clear()
        replica.stop(abandon=True)
