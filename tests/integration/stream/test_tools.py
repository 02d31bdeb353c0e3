"""Publishing and reading as a platform does, against a real Kafka."""

import pytest

from worker.errors import StreamError
from worker.stream import tools

pytestmark = pytest.mark.kafka


def test_what_was_sent_is_read_from_the_beginning(stream):
    sent = {(b"key %d" % n, b"value %d" % n) for n in range(50)}
    with tools.UploadProducer(stream.settings.kafka, in_flight=4) as producer:
        for key, value in sent:
            producer.send(value, key, (("content-type", b"image/png"),))
        producer.flush()

    found: list[tools.Result] = []
    topics = [stream.topics.uploads, stream.topics.verdicts]
    for result in tools.tail(stream.settings.kafka, topics, lambda: len(found) == len(sent)):
        found.append(result)  # noqa: PERF402 - the tail asks how many there are
    assert {(one.key, one.value) for one in found} == sent
    assert {one.topic for one in found} == {stream.topics.uploads}
    assert all(one.timestamp <= one.arrived_at for one in found)


def test_a_record_that_kafka_refuses_is_told(stream):
    with tools.UploadProducer(stream.settings.kafka, in_flight=1) as producer:
        producer.send(bytes(21 * 1024 * 1024), b"too large")
        with pytest.raises(StreamError, match="Kafka refused an upload"):
            producer.flush()


def test_a_topic_that_is_not_there_is_told(stream):
    with pytest.raises(StreamError, match="there is no topic nowhere"):
        next(tools.tail(stream.settings.kafka, ["nowhere"], lambda: True))
