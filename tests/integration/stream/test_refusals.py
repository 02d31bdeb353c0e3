"""Results that a real Apache Kafka refuses for good; screening is an echo."""

import os
from collections import Counter

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from tests.fixtures.echo import Echo, eventually, numbered, seen
from tests.fixtures.stream import make_stream
from worker.errors import DeadLetterReason, StreamError
from worker.events import DeadLetter
from worker.stream.admin import Admin, require_topics
from worker.stream.publisher import RESULT_BYTES
from worker.telemetry import metrics

pytestmark = pytest.mark.kafka


@pytest.fixture(params=["at_least_once", "exactly_once"])
def stream(kafka_broker, request):
    return make_stream(kafka_broker, kafka={"delivery": request.param})


def configure(stream, topic, **config):
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        values = {name.replace("_", "."): value for name, value in config.items()}
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, values)
        admin._client.alter_configs([resource])

        def applied():
            found = admin._client.describe_configs([resource], config_filter="all")["topic"][topic]
            return all(found[name]["value"] == value for name, value in values.items())

        eventually(applied)


def letters(stream):
    found = stream.read(stream.topics.dead_letters)
    return [DeadLetter.model_validate_json(record.value) for record in found]


def finished(stream):
    return sum(commit.offset for commit in stream.committed().values() if commit)


def refused():
    return sum(
        metrics.RESULTS_REFUSED.labels(kind)._value.get() for kind in ("verdict", "dead_letter")
    )


@pytest.mark.parametrize("output", ["verdicts", "matches", "shadow", "dead_letters"])
def test_a_compacted_output_topic_is_refused_at_start(kafka_broker, output):
    stream = make_stream(kafka_broker, partitions=1)
    topic = getattr(stream.topics, output)
    configure(stream, topic, cleanup_policy="compact,delete")
    with pytest.raises(StreamError, match=f"topic {topic} is compacted: .* cleanup.policy"):
        require_topics(stream.settings)


def test_a_compacted_uploads_topic_is_a_warning(kafka_broker):
    stream = make_stream(kafka_broker, partitions=1)
    configure(stream, stream.topics.uploads, cleanup_policy="compact", max_message_bytes="1000000")
    (warning,) = require_topics(stream.settings)
    assert warning.startswith(f"topic {stream.topics.uploads} is compacted")


def test_a_record_that_a_compacted_topic_refuses_ends_nobody(stream):
    """A topic may become compacted while replicas run: then it refuses results without a key."""
    configure(stream, stream.topics.verdicts, cleanup_policy="compact")
    configure(stream, stream.topics.dead_letters, cleanup_policy="compact")
    before = refused()
    records = numbered(20)
    stream.produce([*records[:10], (None, b"99", [("trace", b"1")]), *records[10:]])
    replica = Echo(stream.settings)
    eventually(lambda: finished(stream) >= 21)
    replica.stop()
    assert set(seen(stream)) == set(range(20))
    (letter,) = {letter.source: letter for letter in letters(stream)}.values()
    assert letter.reason == DeadLetterReason.RESULT_REFUSED
    assert "Kafka refused a verdict" in letter.detail
    assert (letter.value_bytes, letter.value_base64) == (2, None)
    assert refused() == before + 1
    if replica.settings.kafka.delivery == "exactly_once":
        assert seen(stream) == Counter(range(20))
        assert len(letters(stream)) == 1


def test_a_result_above_the_limit_of_its_topic_ends_nobody(stream):
    configure(stream, stream.topics.verdicts, max_message_bytes="2000")
    large = (b"k", os.urandom(5000), ())
    stream.produce([*numbered(10), large, *numbered(10, start=10)])
    replica = Echo(stream.settings)
    eventually(lambda: finished(stream) >= 21)
    replica.stop()
    assert set(seen(stream)) == set(range(20))
    assert {letter.value_bytes for letter in letters(stream)} == {5000}


def test_a_result_above_the_limit_of_all_results_is_never_sent(stream):
    before = metrics.DELIVERY_FAILURES._value.get()
    stream.produce([(b"k", os.urandom(RESULT_BYTES), ()), *numbered(10)])
    replica = Echo(stream.settings)
    eventually(lambda: finished(stream) >= 11)
    replica.stop()
    assert seen(stream) == Counter(range(10))
    (letter,) = letters(stream)
    assert letter.detail == f"a verdict of {RESULT_BYTES + 4097} bytes, {RESULT_BYTES} at most"
    assert metrics.DELIVERY_FAILURES._value.get() == before


def test_topics_that_take_not_even_a_dead_letter_end_the_publisher(stream):
    for topic in (stream.topics.verdicts, stream.topics.dead_letters):
        configure(stream, topic, max_message_bytes="100")
    replica = Echo(stream.settings)
    stream.produce([(b"k", os.urandom(5000), ())])
    eventually(lambda: replica.errors)
    assert "Kafka refuses even a minimal dead letter" in str(replica.errors[0])
    replica.errors.clear()
    replica.stop(abandon=True)
    assert not finished(stream)
