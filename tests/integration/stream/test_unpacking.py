"""Batches that expand beyond all limits, or not at all, through a real Apache Kafka."""

import os
import tracemalloc
from collections import Counter
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.record import default_records

from tests.fixtures.echo import Echo, eventually, seen
from tests.fixtures.stream import LARGE, make_stream
from worker.errors import DeadLetterReason
from worker.events import DeadLetter
from worker.stream import client, membership, unpacking
from worker.stream.unpacking import OddName

pytestmark = pytest.mark.kafka

MIB = 1024 * 1024


@pytest.fixture
def stream(kafka_broker, monkeypatch):
    """One partition, so that records come in order, and limits a test can reach quickly."""
    monkeypatch.setattr(membership, "LEAST_RECORD_BYTES", 0)
    limits = {"record_bytes": MIB, "in_flight_bytes": 64 * MIB}
    return make_stream(kafka_broker, partitions=1, limits=limits)


def produce(stream, values, codec, linger_ms=0, batch_size=0):
    """Publish values; without `linger_ms` each in a batch of its own."""
    with closing(
        KafkaProducer(
            bootstrap_servers=[stream.broker.bootstrap_servers],
            compression_type=codec,
            max_request_size=512 * MIB,
            linger_ms=linger_ms,
            batch_size=batch_size,
        )
    ) as producer:
        sent = [producer.send(stream.topics.uploads, value, b"k") for value in values]
        for one in sent:
            one.get(60)


def reasons(stream):
    """Of the dead letters, by offset."""
    found = [
        DeadLetter.model_validate_json(r.value) for r in stream.read(stream.topics.dead_letters)
    ]
    assert all(one.value_sha256 is one.value_base64 is one.key_base64 is None for one in found)
    return {one.source.offset: one.reason for one in found}


def finish(replica):
    """Until all is committed that was taken."""
    eventually(lambda: not replica.ledger.in_flight)
    replica.stop()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_batch_that_expands_beyond_the_limit_is_unreadable_and_others_are_not(stream, codec):
    produce(stream, [b"0", bytes(40 * MIB), b"2"], codec)
    tracemalloc.start()
    try:
        replica = Echo(stream.settings)
        eventually(lambda: len(replica.admitted) == 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    finish(replica)
    assert peak < 20 * MIB
    assert reasons(stream) == {1: DeadLetterReason.TOO_LARGE}
    assert seen(stream) == Counter([0, 2])
    assert stream.committed()[0].offset == 3


def test_records_before_the_limit_of_their_batch_are_read(stream):
    values = [b"0", b"1", bytes(3 * MIB), b"3"]
    produce(stream, values, "gzip", linger_ms=500, batch_size=LARGE)
    replica = Echo(stream.settings)
    eventually(lambda: len(replica.admitted) == 4)
    finish(replica)
    assert [record.position.offset for record in replica.admitted] == [0, 1, 2, 3]
    assert seen(stream) == Counter([0, 1])
    assert reasons(stream) == dict.fromkeys((2, 3), DeadLetterReason.TOO_LARGE)


def test_many_batches_that_expand_are_not_held_at_once(stream):
    produce(stream, [bytes(MIB - 100)] * 40, "gzip")
    at = TopicPartition(stream.topics.uploads, 0)
    reader = client.reader(stream.settings.kafka, stream.settings.kafka.bootstrap_servers)
    unpacking.bound(reader, MIB, 4 * MIB)
    with closing(reader):
        reader.assign([at])
        reader.seek(at, 0)
        polls: list[int] = []
        while sum(polls) < 40:
            polls.append(len(reader.poll(1000).get(at, ())))
    assert max(polls) == 5, "four and the one that crosses the limit"


def test_a_broken_batch_becomes_dead_letters(stream, monkeypatch):
    """Kafka does not look at the checksum of an LZ4 frame's content, which the library does."""
    real = default_records.lz4_encode

    def broken(payload, **options):
        frame = bytearray(real(payload, content_checksum=True, **options))
        frame[-1] ^= 0xFF
        return bytes(frame)

    produce(stream, [b"0"], "lz4")
    monkeypatch.setattr(default_records, "lz4_encode", broken)
    produce(stream, [b"x" * 1000] * 3, "lz4", linger_ms=500, batch_size=LARGE)
    monkeypatch.undo()
    produce(stream, [b"4"], "lz4")
    replica = Echo(stream.settings)
    eventually(lambda: len(replica.admitted) == 5)
    finish(replica)
    assert reasons(stream) == dict.fromkeys((1, 2, 3), DeadLetterReason.UNREADABLE)
    assert seen(stream) == Counter([0, 4])


def test_odd_header_names_cost_no_copies_of_their_batch(stream):
    """Each would have cost a copy of the whole batch, so what is copied tells."""
    headers, taken = [(OddName(b"\xff"), b"v")], 200
    with closing(
        KafkaProducer(
            bootstrap_servers=[stream.broker.bootstrap_servers],
            max_request_size=LARGE,
            linger_ms=500,
            batch_size=LARGE,
        )
    ) as producer:
        sent = [producer.send(stream.topics.uploads, os.urandom(MIB // 2), b"k")]
        sent += [producer.send(stream.topics.uploads, b"1", b"k", headers) for _ in range(taken)]
        for one in sent:
            one.get(60)
    at = TopicPartition(stream.topics.uploads, 0)
    reader = client.reader(stream.settings.kafka, stream.settings.kafka.bootstrap_servers)
    with closing(reader):
        reader.assign([at])
        reader.seek(at, 0)
        found: list[Any] = []
        while not found:
            found = reader.poll(1000).get(at, [])
        tracemalloc.start()
        try:
            while len(found) <= taken:
                found += reader.poll(1000).get(at, [])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {tuple(record.headers) for record in found[1:]} == {(("\\xff", b"v"),)}
    assert peak < MIB // 2
