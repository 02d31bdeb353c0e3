"""The uploads topic is deleted, and made anew under its name, while a replica runs."""

from collections import Counter

import pytest
from kafka.admin import KafkaAdminClient

from tests.fixtures.echo import Echo, eventually, numbered, seen
from tests.fixtures.stream import LARGE, make_stream
from worker.stream import topic_watch
from worker.stream.admin import Admin
from worker.telemetry import metrics

pytestmark = pytest.mark.kafka


@pytest.fixture(params=["at_least_once", "exactly_once"])
def stream(kafka_broker, request, monkeypatch):
    monkeypatch.setattr(topic_watch, "ASK_SECONDS", 0.5)
    return make_stream(kafka_broker, 1, kafka={"delivery": request.param})


def delete(stream):
    admin = KafkaAdminClient(bootstrap_servers=[stream.broker.bootstrap_servers])
    admin.delete_topics([stream.topics.uploads])
    admin.close()


def make(stream):
    kafka = stream.settings.kafka
    with Admin(kafka, kafka.bootstrap_servers) as admin:
        eventually(lambda: stream.topics.uploads not in admin.topics())
        admin.create([stream.topics.uploads], 1, {"max.message.bytes": str(LARGE)})


@pytest.mark.timeout(180)
def test_what_comes_while_taking_is_paused_is_screened(stream):
    stream.produce(numbered(20))
    replica = Echo(stream.settings)
    eventually(lambda: sum(seen(stream).values()) == 20)
    replica.why = "hot_set_stale"
    eventually(replica.consumer._consumer.paused)
    delete(stream)
    make(stream)
    stream.produce(numbered(50, start=100))  # 20 of them at offsets that were screened before
    eventually(lambda: [replica.ledger.expected(p) for p in replica.ledger.assigned()] == [0], 60)
    replica.why = None
    eventually(lambda: sum(seen(stream).values()) >= 70, 60)
    replica.stop()
    again = Echo(stream.settings)
    stream.produce(numbered(5, start=200))
    eventually(lambda: seen(stream)[204] == 1, 60)
    again.stop()
    assert seen(stream) == Counter([*range(20), *range(100, 150), *range(200, 205)])


@pytest.mark.timeout(180)
def test_a_topic_that_is_gone_is_an_alarm_until_it_is_back(stream):
    stream.produce(numbered(5))
    replica = Echo(stream.settings)
    eventually(lambda: sum(seen(stream).values()) == 5)
    delete(stream)
    eventually(lambda: metrics.TOPIC_MISSING._value.get() == 1)
    make(stream)
    stream.produce(numbered(20, start=100))
    eventually(lambda: metrics.TOPIC_MISSING._value.get() == 0)
    eventually(lambda: sum(seen(stream).values()) >= 25, 90)
    replica.stop()
    assert seen(stream) == Counter([*range(5), *range(100, 120)])
