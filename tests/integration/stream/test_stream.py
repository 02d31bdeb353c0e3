"""Consumer, ledger and publisher together on a real Apache Kafka; screening is an echo."""

import itertools
import time
from collections import Counter
from contextlib import closing

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.transaction_manager import TransactionalRequestResult

from tests.fixtures.echo import Echo, eventually, numbered, seen
from tests.fixtures.stream import make_stream, metadata_of
from worker.embedded.kafka import kafka_broker as own_broker
from worker.stream import committer as committers
from worker.stream import consumer as consumers
from worker.stream import membership as memberships
from worker.stream import publisher as publishers
from worker.stream.admin import Admin, require_topics
from worker.stream.publisher import TRANSACTION_TIMEOUT_SECONDS
from worker.telemetry import metrics

pytestmark = pytest.mark.kafka


@pytest.fixture(params=["at_least_once", "exactly_once"])
def stream(kafka_broker, request):
    return make_stream(kafka_broker, kafka={"delivery": request.param})


def test_everything_is_echoed_once_and_committed(stream):
    stream.produce(numbered(500))
    replica = Echo(stream.settings)
    eventually(lambda: sum(seen(stream).values()) >= 500)
    replica.stop()
    assert seen(stream) == Counter(range(500))
    assert sum(commit.offset for commit in stream.committed().values()) == 500


def test_one_slow_record_holds_only_the_watermark_and_the_next_owner_skips_the_rest(stream):
    stream.produce(numbered(200))
    first = Echo(stream.settings, hold=lambda value: value in {b"7", b"80"})
    eventually(lambda: sum(seen(stream).values()) == 198)
    first.stop(abandon=True)

    commits = stream.committed()
    beyond = sum(
        stop - start for commit in commits.values() for start, stop in metadata_of(commit).runs
    )
    assert sum(commit.offset for commit in commits.values()) + beyond == 198

    second = Echo(stream.replica())
    eventually(lambda: sum(seen(stream).values()) >= 200)
    second.stop()
    assert seen(stream) == Counter(range(200))


def test_a_joining_and_a_leaving_member_repeat_nothing(stream):
    first = Echo(stream.settings)
    stream.produce(numbered(300))
    eventually(first.ledger.assigned)
    second = Echo(stream.replica())
    stream.produce(numbered(300, start=300))
    eventually(second.ledger.assigned)
    stream.produce(numbered(300, start=600))
    first.stop()
    stream.produce(numbered(300, start=900))
    eventually(lambda: sum(seen(stream).values()) >= 1200)
    second.stop()
    assert seen(stream) == Counter(range(1200))


def test_what_is_in_flight_stays_below_the_limit(stream):
    settings = stream.replica(limits={"in_flight_records": 20})
    stream.produce(numbered(300))
    replica = Echo(settings, hold=lambda _value: True)
    eventually(lambda: len(replica.held) >= 20)
    time.sleep(0.5)
    assert len(replica.held) == 20
    deadline = time.monotonic() + 60
    while sum(seen(stream).values()) < 300 and time.monotonic() < deadline:
        replica.let_go()
        assert replica.load.load().records <= 20
        time.sleep(0.05)
    replica.stop()
    assert seen(stream) == Counter(range(300))


def test_a_record_of_the_largest_size_is_followed_by_others(stream):
    large = b"0" * (15 * 1024 * 1024)
    stream.produce([(b"k", b"1", ()), (b"k", large, ()), (b"k", b"2", ())])
    sizes = []

    def note(value):
        sizes.append(len(value))
        return True

    replica = Echo(stream.settings, hold=note)
    eventually(lambda: len(sizes) == 3)
    replica.stop(abandon=True)
    assert sizes == [1, len(large), 1]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_results_that_kafka_did_not_take_are_made_again(delivery):
    with own_broker() as broker:
        stream = make_stream(broker, kafka={"delivery_timeout_ms": 3_000, "delivery": delivery})
        stream.produce(numbered(50))
        replica = Echo(stream.settings, hold=lambda value: int(value) > 5)
        eventually(lambda: len(replica.held) == 44 and len(seen(stream)) == 6)
        broker.kill()
        replica.hold = lambda _value: False
        replica.let_go()
        if delivery == "at_least_once":
            eventually(lambda: not replica.publisher.working, seconds=60)
        else:  # a transaction that has begun waits, until Kafka aborts it
            time.sleep(TRANSACTION_TIMEOUT_SECONDS + 2)
        broker.restart()
        eventually(lambda: set(seen(stream)) == set(range(50)), seconds=60)
        replica.stop()
        assert sum(commit.offset for commit in stream.committed().values()) == 50
        if delivery == "exactly_once":
            assert seen(stream) == Counter(range(50))


def test_a_missing_topic_is_named(stream):
    missing = stream.topics.model_dump() | {"shadow": "nowhere"}
    with pytest.raises(Exception, match="no topic nowhere at"):
        require_topics(stream.replica(kafka={"topics": missing}))
    assert require_topics(stream.settings) == [
        (
            f"topic {stream.topics.uploads} takes 20971520 bytes; those above limits.record_bytes"
            " (16777216) become dead letters"
        )
    ]


class OddName(str):
    """A header name that its producer writes as a byte that is not UTF-8."""

    __slots__ = ()

    def encode(self, *_):
        return b"\xff"


def test_a_header_name_that_is_not_utf_8_stops_nobody(stream):
    stream.produce([(b"k", b"1", ()), (b"k", b"2", [(OddName("x"), b"v")]), (b"k", b"3", ())])
    replica = Echo(stream.settings)
    eventually(lambda: sum(seen(stream).values()) == 3)
    replica.stop()
    assert {r.headers for r in replica.admitted} == {(), (("\\xff", b"v"),)}


def test_a_timestamp_of_another_unit_stops_nobody(stream):
    producer = KafkaProducer(bootstrap_servers=[stream.broker.bootstrap_servers])
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        limit = {"message.timestamp.after.max.ms": str(2**63 - 1)}
        admin.create([f"{stream.topics.uploads}.odd"], 1, limit)
    topics = stream.topics.model_dump() | {"uploads": f"{stream.topics.uploads}.odd"}
    producer.send(topics["uploads"], b"1", b"k", timestamp_ms=2**61).get(10)
    producer.close()
    replica = Echo(stream.replica(kafka={"topics": topics}))
    eventually(lambda: replica.admitted)
    replica.stop()
    assert replica.admitted[0].timestamp.year == 9999


def test_records_that_retention_took_are_an_alarm(stream):
    stream.produce(numbered(100))
    first = Echo(stream.settings, hold=lambda value: int(value) > 50)
    eventually(lambda: sum(seen(stream).values()) == 51)
    first.stop(abandon=True)
    before = metrics.RECORDS_LOST._value.get()
    behind = sum(commit.offset for commit in stream.committed().values())
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        at = {TopicPartition(stream.topics.uploads, n): -1 for n in range(4)}
        admin._client.delete_records(at)
    stream.produce(numbered(10, start=100))
    second = Echo(stream.replica())
    eventually(lambda: sum(seen(stream).values()) == 61)
    second.stop()
    assert metrics.RECORDS_LOST._value.get() - before == 100 - behind


def test_records_that_retention_takes_from_under_an_owner_are_an_alarm(stream):
    replica = Echo(stream.settings, hold=lambda _value: True)
    stream.produce(numbered(40))
    eventually(lambda: len(replica.held) == 40)
    before = metrics.RECORDS_LOST._value.get()
    replica.why = "hosts_away"
    eventually(lambda: len(replica.consumer._consumer.paused()) == 4)
    stream.produce(numbered(100, start=40))
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        at = {TopicPartition(stream.topics.uploads, n): -1 for n in range(4)}
        admin._client.delete_records(at)
    stream.produce(numbered(40, start=140))
    replica.why = None
    eventually(lambda: len(replica.admitted) > 40)
    replica.hold = lambda _value: False
    replica.let_go()
    eventually(lambda: not replica.ledger.in_flight)
    lost = metrics.RECORDS_LOST._value.get() - before
    assert lost > 0
    assert len(replica.admitted) + lost == 180
    replica.stop()


def test_records_in_every_codec_are_read(stream):
    codecs = (None, "gzip", "snappy", "lz4", "zstd")
    for number, codec in enumerate(codecs):
        with closing(
            KafkaProducer(
                bootstrap_servers=[stream.broker.bootstrap_servers], compression_type=codec
            )
        ) as producer:
            producer.send(stream.topics.uploads, str(number).encode())
            producer.flush()
    replica = Echo(stream.settings)
    eventually(lambda: sum(seen(stream).values()) >= len(codecs))
    replica.stop()
    assert seen(stream) == Counter(range(len(codecs)))


def test_an_error_in_the_listener_ends_the_consumer(stream, monkeypatch):
    first = Echo(stream.settings)
    eventually(first.ledger.assigned)

    def broken(*_):
        raise AttributeError("sabotage")

    monkeypatch.setattr(first.ledger, "revoke", broken)
    second = Echo(stream.replica())
    eventually(lambda: first.errors)
    assert [type(error) for error in first.errors] == [AttributeError]
    assert not first.ledger.assigned() or len(first.ledger.assigned()) < 4
    first.errors.clear()
    first.stop(abandon=True)
    second.stop()


def test_a_last_commit_waits_for_the_end_of_a_rebalance(kafka_broker, monkeypatch):
    stream = make_stream(kafka_broker)
    monkeypatch.setattr(committers, "COMMIT_SECONDS", 3600.0)
    replica = Echo(stream.settings)
    eventually(replica.ledger.assigned)
    stream.produce(numbered(50))
    eventually(lambda: sum(seen(stream).values()) == 50)
    monkeypatch.setattr(memberships.Membership, "stable", False)
    replica.consumer.stop()
    replica.threads[1].join(1)
    assert replica.threads[1].is_alive()
    assert not any(commit and commit.offset for commit in stream.committed().values())
    monkeypatch.undo()
    replica.stop()
    assert sum(commit.offset for commit in stream.committed().values()) == 50


def test_while_a_join_is_pending_nothing_is_begun(stream, monkeypatch):
    """What is assigned then may be what the member had before it was put out."""
    stream.produce(numbered(20))
    monkeypatch.setattr(memberships.Membership, "stable", False)
    replica = Echo(stream.settings)
    eventually(replica.consumer._consumer.assignment)
    time.sleep(1)
    assert not replica.ledger.assigned()
    monkeypatch.undo()
    eventually(lambda: sum(seen(stream).values()) == 20)
    replica.stop()
    assert seen(stream) == Counter(range(20))


def test_a_member_that_was_put_out_claims_nothing(stream):
    """Else it is given partitions that their new owner is only told to give up."""
    replica = Echo(stream.settings)
    eventually(lambda: len(replica.ledger.assigned()) == 4)
    coordinator = replica.consumer._consumer._coordinator
    [assignor] = coordinator._assignors.values()
    assert len(assignor.metadata([stream.topics.uploads]).owned_partitions[0].partitions) == 4
    epochs = {replica.ledger.epoch(p) for p in replica.ledger.assigned()}
    claims = []
    real = assignor.metadata

    def metadata(topics):
        made = real(topics)
        claims.append(list(made.owned_partitions))
        return made

    assignor.metadata = metadata
    coordinator.reset_generation()
    eventually(lambda: len(replica.ledger.assigned()) == 4 and claims)
    assert claims[0] == []
    eventually(
        lambda: epochs.isdisjoint(replica.ledger.epoch(p) for p in replica.ledger.assigned())
    )
    stream.produce(numbered(20))
    eventually(lambda: sum(seen(stream).values()) == 20)
    replica.stop()


def test_a_position_that_no_broker_tells_ends_nobody(stream, monkeypatch):
    real, refused = KafkaConsumer.position, itertools.count()

    def position(self, *args, **kwargs):
        if next(refused) < 5:
            raise kafka_errors.KafkaConnectionError("away")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(KafkaConsumer, "position", position)
    replica = Echo(stream.settings)
    stream.produce(numbered(100))
    eventually(lambda: next(refused) > 5)
    eventually(lambda: sum(seen(stream).values()) >= 100)
    replica.stop()
    assert seen(stream) == Counter(range(100))


def test_a_member_that_is_wedged_joins_anew(stream, monkeypatch):
    """Polls this short wedge kafka-python's member in more than half of all joins."""
    monkeypatch.setattr(consumers, "POLL_MS", 8)
    monkeypatch.setattr(consumers, "JOIN_POLL_MS", 8)
    monkeypatch.setattr(memberships, "WEDGED_SECONDS", 3.0)
    stream.produce(numbered(20))
    for attempt in range(4):
        replica = Echo(stream.replica(kafka={"group_id": f"{stream.topics.uploads}-{attempt}"}))
        eventually(lambda: len(replica.admitted) == 20, seconds=60)  # noqa: B023 - asked at once
        replica.stop()


@pytest.fixture
def exact(kafka_broker):
    return make_stream(kafka_broker, kafka={"delivery": "exactly_once"})


def test_a_transaction_whose_uploads_went_to_another_owner_is_not_committed(exact, monkeypatch):
    monkeypatch.setattr(publishers, "TRANSACTION_SECONDS", 2.0)
    exact.produce(numbered(100))
    replica = Echo(exact.settings)
    eventually(lambda: len(exact.read(exact.topics.verdicts, "read_uncommitted")) == 100)
    assert not seen(exact)
    before = metrics.DELIVERY_FAILURES._value.get()
    replica.ledger.drop(replica.ledger.assigned())  # as when the partitions are lost
    eventually(lambda: len(seen(exact)) == 100)
    replica.stop()
    assert metrics.DELIVERY_FAILURES._value.get() == before + 1
    assert seen(exact) == Counter(range(100))
    assert len(exact.read(exact.topics.verdicts, "read_uncommitted")) > 100


def test_outside_the_group_no_transaction_is_committed(exact, monkeypatch):
    """Kafka takes offsets without a member's name from anyone."""
    exact.produce(numbered(50))
    replica = Echo(exact.settings, hold=lambda _value: True)
    eventually(lambda: len(replica.held) == 50)
    real = replica.publisher.membership
    monkeypatch.setattr(replica.publisher, "membership", lambda: None)
    replica.let_go()
    eventually(lambda: not replica.publisher.working)
    assert not seen(exact)
    monkeypatch.setattr(replica.publisher, "membership", real)
    eventually(lambda: len(replica.held) == 50)
    replica.let_go()
    eventually(lambda: len(seen(exact)) == 50)
    replica.stop()
    assert seen(exact) == Counter(range(50))


@pytest.mark.parametrize("step", ["send_offsets_to_transaction", "begin_commit"])
def test_a_transaction_that_never_ends_is_given_up(exact, monkeypatch, step):
    """So kafka-python leaves them where the coordinator was restarted."""
    monkeypatch.setattr(publishers, "TRANSACTION_TIMEOUT_SECONDS", 2.0)
    before = metrics.DELIVERY_FAILURES._value.get()
    replica = Echo(exact.settings)
    manager = replica.publisher._producer._transaction_manager
    monkeypatch.setattr(manager, step, lambda *_: TransactionalRequestResult())
    exact.produce(numbered(50))
    eventually(lambda: len(seen(exact)) == 50, seconds=60)
    replica.stop()
    assert metrics.DELIVERY_FAILURES._value.get() > before
    assert seen(exact) == Counter(range(50))


def test_of_two_replicas_with_one_name_the_first_ends_with_a_clear_line(exact):
    exact.produce(numbered(50))
    first = Echo(exact.settings)
    eventually(lambda: len(seen(exact)) == 50)
    second = Echo(exact.settings)
    eventually(second.ledger.assigned)
    exact.produce(numbered(50, start=50))
    eventually(lambda: first.errors)
    name = exact.settings.replica.name
    assert str(first.errors[0]).startswith(f"another replica publishes as '{name}'")
    first.errors.clear()
    first.stop(abandon=True)
    eventually(lambda: len(seen(exact)) == 100, seconds=60)
    second.stop()
    assert seen(exact) == Counter(range(100))
