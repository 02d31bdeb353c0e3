"""Lag as the brokers have it, partitions that stand still, new ones, and very many."""

import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from tests.fixtures.echo import Echo, eventually, numbered, seen
from tests.fixtures.stream import make_stream
from worker.stream import consumer as consumers
from worker.stream import lag, resume
from worker.telemetry import metrics

pytestmark = pytest.mark.kafka


def lag_of(partition):
    return metrics.LAG.labels(str(partition))._value.get()


def test_what_comes_while_taking_is_paused_is_lag(kafka_broker, monkeypatch):
    monkeypatch.setattr(lag, "TELL_SECONDS", 0.5)
    stream = make_stream(kafka_broker, partitions=2)
    replica = Echo(stream.settings)
    eventually(lambda: len(replica.ledger.assigned()) == 2)
    replica.why = "hot_set_stale"
    eventually(lambda: len(replica.consumer._consumer.paused()) == 2)
    stream.produce(numbered(50))
    eventually(lambda: lag_of(0) + lag_of(1) == 50)
    replica.why = None
    eventually(lambda: sum(seen(stream).values()) == 50)
    eventually(lambda: lag_of(0) + lag_of(1) == 0)
    replica.stop()


def test_a_partition_that_the_client_leaves_out_is_fetched_anew(kafka_broker, monkeypatch):
    monkeypatch.setattr(lag, "TELL_SECONDS", 0.2)
    monkeypatch.setattr(lag, "STUCK_SECONDS", 2.0)
    stream = make_stream(kafka_broker, partitions=2)
    replica = Echo(stream.settings)
    eventually(lambda: len(replica.ledger.assigned()) == 2)
    consumer = replica.consumer._consumer
    left_out = TopicPartition(stream.topics.uploads, 1)
    fetchable, pause = consumer._fetcher._fetchable_partitions, consumer.pause
    broken = {left_out}
    monkeypatch.setattr(
        consumer._fetcher,
        "_fetchable_partitions",
        lambda *arguments: [one for one in fetchable(*arguments) if one not in broken],
    )

    def mended_by_pause(*partitions):
        broken.difference_update(partitions)
        pause(*partitions)

    monkeypatch.setattr(consumer, "pause", mended_by_pause)
    before = metrics.FETCHED_ANEW.labels("1")._value.get()
    stream.produce(numbered(40))
    eventually(lambda: sum(seen(stream).values()) == 40)
    assert not broken
    assert metrics.FETCHED_ANEW.labels("1")._value.get() == before + 1
    replica.stop()


@pytest.mark.timeout(120)
def test_new_partitions_are_seen_within_half_a_minute(kafka_broker):
    stream = make_stream(kafka_broker, partitions=1)
    replica = Echo(stream.settings)
    eventually(lambda: len(replica.ledger.assigned()) == 1)
    admin = KafkaAdminClient(bootstrap_servers=[kafka_broker.bootstrap_servers])
    admin.create_partitions({stream.topics.uploads: 3})
    admin.close()
    eventually(lambda: len(replica.ledger.assigned()) == 3, 60)
    replica.stop()


def test_many_new_partitions_are_begun_between_polls(kafka_broker, monkeypatch):
    stream = make_stream(kafka_broker, partitions=24)
    stream.produce(numbered(100))
    monkeypatch.setattr(consumers, "ADOPT_SECONDS", 0.0)
    began, most = [], []
    begin, poll = resume.begin, consumers.UploadConsumer._poll

    def counted(*arguments):
        began.append(1)
        return begin(*arguments)

    def polled(self, room):
        most.append(len(began))
        began.clear()
        return poll(self, room)

    monkeypatch.setattr(resume, "begin", counted)
    monkeypatch.setattr(consumers.UploadConsumer, "_poll", polled)
    replica = Echo(stream.settings)
    eventually(lambda: sum(seen(stream).values()) == 100, 60)
    assert max(most) <= 2
    replica.stop()
    assert set(seen(stream).values()) == {1}
