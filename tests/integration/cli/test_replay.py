"""`copysieve replay` on a real Kafka."""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from kafka import KafkaProducer, TopicPartition
from typer.testing import CliRunner

from tests.fixtures.stream import LARGE
from worker.cli.main import app
from worker.errors import BadEvent, DeadLetterReason, StreamError
from worker.records import Position, Record
from worker.stream.admin import Admin
from worker.stream.client import moment
from worker.stream.copying import Copied, OrderedSender, TopicReader
from worker.stream.dead_letters import VALUE_BYTES, dead_letter
from worker.stream.ledger import Partition
from worker.stream.replay import MARK
from worker.stream.unpacking import OddName

pytestmark = pytest.mark.kafka

BEGAN = int(time.time()) - 7200
"""Of uploads with timestamps of their own: recent, for retention goes by them."""
BINARY = (("trace", b"\x00\xff\xfe"), ("trace", b"again"), ("empty", b""))


@pytest.fixture
def environment(stream, monkeypatch):
    kafka = stream.settings.kafka
    mine = {
        "COPYSIEVE_KAFKA__BOOTSTRAP_SERVERS": ",".join(kafka.bootstrap_servers),
        "COPYSIEVE_KAFKA__TOPICS": kafka.topics.model_dump_json(),
    }
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("worker.telemetry.log.configure", lambda _: None)
    return os.environ | mine


@pytest.fixture
def run(environment):  # noqa: ARG001 - where the settings come from
    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, ["replay", *map(str, arguments), "--json"])
        if isinstance(result.exception, StreamError):
            raise result.exception
        assert result.exit_code == code, result.output
        return json.loads(result.stdout.splitlines()[-1]), result

    return invoke


@pytest.fixture
def other(stream):
    """A topic to copy to, with other partitions than the uploads have."""
    name = f"{stream.topics.uploads}.other"
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        admin.create([name], 3, {"max.message.bytes": str(LARGE)})
    return name


def read(stream, topic):
    """All records of a topic, also those with odd header names, in order of their partitions."""
    kafka = stream.settings.kafka
    with TopicReader(kafka, kafka.bootstrap_servers, topic) as reader:
        return [record for span in reader.spans().values() for record in reader.read(span)]


def give_up(stream, reasons):
    """What a worker does with the uploads that it cannot read; `reasons` by upload's key."""
    producer = KafkaProducer(bootstrap_servers=[stream.broker.bootstrap_servers])
    for raw in read(stream, stream.topics.uploads):
        if raw.key not in reasons:
            continue
        record = Record(
            Position(raw.topic, raw.partition, raw.offset, 1),
            raw.key,
            raw.value,
            tuple(raw.headers),
            moment(raw.timestamp),
            datetime.now(UTC),
        )
        error = BadEvent(DeadLetterReason(reasons[raw.key]), "no good")
        letter = dead_letter(record, error, stream.topics.dead_letters)
        producer.send(letter.topic, letter.value, letter.key, list(letter.headers))
    producer.close()


def forget(stream, topic):
    """What retention does with all that is there."""
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        at = {TopicPartition(topic, n): -1 for n in range(4)}
        admin._client.delete_records(at)


def body(record):
    return record.key, record.value, tuple(record.headers)


def replayed(stream):
    """Uploads with a mark: (key, value, headers but the mark) by the coordinates in it."""
    found = {}
    for record in read(stream, stream.topics.uploads):
        headers = dict(record.headers)
        if MARK in headers:
            kept = tuple(h for h in record.headers if h[0] != MARK)
            found[headers[MARK].decode()] = (record.key, record.value, kept)
    return found


def originals(stream):
    return {
        f"{r.topic}/{r.partition}/{r.offset}": body(r) for r in read(stream, stream.topics.uploads)
    }


def test_dead_letters_come_back_as_they_were(stream, run):
    large = os.urandom(VALUE_BYTES + 1)
    many = [(f"header-{n}", bytes(50)) for n in range(2000)]
    records = [
        (b"small", b"{", BINARY),
        (b"large", large, BINARY),
        (b"tombstone", None, ()),
        (b"empty", b"", ()),
        (b"many", b"[]", many),
        (b"odd", b"[]", [(OddName(b"\xff"), b"v")]),
        (b"k" * (VALUE_BYTES + 1), b"[]", ()),
        (b"fine", b"an upload that was screened", ()),
    ]
    stream.produce(records)
    before = originals(stream)
    give_up(stream, {key: "not_json" for key, _, _ in records if key != b"fine"})

    told, _ = run("dead-letters", "--dry-run")
    fates = {"whole": 3, "from_source": 4, "gone": 0, "changed": 0, "unreadable": 0}
    assert (told["dry_run"], told["sent"], told["by_reason"]) == (True, 0, {"not_json": fates})
    assert originals(stream) == before

    told, _ = run("dead-letters")
    assert (told["sent"], told["by_reason"], told["complete"]) == (7, {"not_json": fates}, True)
    assert replayed(stream) == {at: one for at, one in before.items() if one[0] != b"fine"}
    odd = [r for r in read(stream, stream.topics.uploads) if r.key == b"odd"]
    assert [record.headers[0][0].encode() for record in odd] == [b"\xff", b"\xff"]


def test_a_record_that_fails_again_can_be_replayed_again(stream, run):
    stream.produce([(b"a", b"{", ())])
    give_up(stream, {b"a": "not_json"})
    run("dead-letters")
    give_up(stream, {b"a": "not_json"})
    told, _ = run("dead-letters")
    assert (told["sent"], told["repeated"]) == (2, 1)  # the first letter was told twice
    marked = [r for r in read(stream, stream.topics.uploads) if dict(r.headers).get(MARK)]
    assert all([name for name, _ in record.headers] == [MARK] for record in marked)


def test_dead_letters_are_chosen_by_reason_time_and_count(stream, run):
    first = {b"j%d" % n: "not_json" for n in range(10)}
    first |= {b"a": "missing_id", b"b": "missing_id"}
    stream.produce([(key, b"{", ()) for key in first])
    give_up(stream, first)
    between = datetime.now(UTC).isoformat()
    second = {b"later%d" % n: "not_json" for n in range(3)}
    stream.produce([(key, b"{", ()) for key in second])
    give_up(stream, second)

    def chosen(*arguments):
        told, _ = run("dead-letters", "--dry-run", *arguments)
        return {reason: sum(fates.values()) for reason, fates in told["by_reason"].items()}

    assert chosen() == {"not_json": 13, "missing_id": 2}
    assert chosen("--reason", "missing_id") == {"missing_id": 2}
    assert chosen("--reason", "missing_id", "--reason", "not_json", "--since", between) == {
        "not_json": 3
    }
    assert chosen("--until", between) == {"not_json": 10, "missing_id": 2}
    assert chosen("--since", "1h") == {"not_json": 13, "missing_id": 2}
    assert chosen("--until", "1h") == {}
    assert chosen("--reason", "not_json", "--limit", 4) == {"not_json": 4}
    run("dead-letters", "--reason", "not_json", "--since", between)
    assert {key for key, _, _ in replayed(stream).values()} == set(second)


def test_what_retention_took_is_named_and_the_rest_is_sent(stream, run):
    large = os.urandom(VALUE_BYTES + 1)
    stream.produce([(b"small", b"{", BINARY), (b"large", large, ())])
    give_up(stream, {b"small": "not_json", b"large": "too_large"})
    ((at, _),) = ((at, one) for at, one in originals(stream).items() if one[0] == b"large")
    forget(stream, stream.topics.uploads)

    told, result = run("dead-letters", "--dry-run", code=1)
    assert told["not_sent"] == [{"source": at, "why": "gone"}]
    assert f"cannot be sent: {at}: gone" in result.stderr
    told, _ = run("dead-letters", code=1)
    assert (told["sent"], told["by_reason"]["too_large"]["gone"]) == (1, 1)
    assert list(replayed(stream).values()) == [(b"small", b"{", BINARY)]


def test_a_topic_that_was_made_anew_does_not_give_another_record(stream, run):
    stream.produce([(b"large", os.urandom(VALUE_BYTES + 1), ())])
    give_up(stream, {b"large": "too_large"})
    (letter,) = read(stream, stream.topics.dead_letters)
    told = json.loads(letter.value) | {"value_sha256": hashlib.sha256(b"").hexdigest()}
    producer = KafkaProducer(bootstrap_servers=[stream.broker.bootstrap_servers])
    forget(stream, stream.topics.dead_letters)
    producer.send(stream.topics.dead_letters, json.dumps(told).encode())
    foreign = told | {"source": told["source"] | {"topic": "of another group"}}
    producer.send(stream.topics.dead_letters, json.dumps(foreign).encode())
    producer.send(stream.topics.dead_letters, b"no dead letter")
    producer.close()
    told, _ = run("dead-letters", code=1)
    assert [one["why"] for one in told["not_sent"]] == ["changed"]
    assert (told["sent"], told["of_other_topics"], told["unreadable"]) == (0, 1, 1)


def fill(stream, count=60, codec=None, first=0):
    """Uploads with timestamps of their own, 1 s apart, on all partitions."""
    producer = KafkaProducer(
        bootstrap_servers=[stream.broker.bootstrap_servers], compression_type=codec, linger_ms=50
    )
    for n in range(first, first + count):
        producer.send(
            stream.topics.uploads,
            b"value %d" % n,
            b"key %d" % n,
            list(BINARY),
            timestamp_ms=(BEGAN + n) * 1000,
        )
    producer.close()


def whole(records):
    return sorted(((r.key, r.value, tuple(r.headers), r.timestamp) for r in records), key=repr)


@pytest.mark.parametrize("codec", [None, "gzip", "lz4"])
def test_uploads_are_copied_byte_for_byte(stream, other, run, codec):
    fill(stream, codec=codec)
    stream.produce(
        [
            (b"tombstone", None, BINARY),
            (None, b"no key", ()),
            (b"", b"", ()),
            (b"odd", b"1", [(OddName(b"\xff\x00x"), b"v")]),
            (b"large", os.urandom(2 * 1024 * 1024), ()),
        ]
    )
    with OrderedSender(stream.settings.kafka, stream.topics.uploads) as sender:
        sender.send(Copied(None, None, BINARY), Partition("none", 0), 0)
        sender.settle()
    told, _ = run("uploads", "--to", other, "--dry-run")
    assert (told["chosen"], told["sent"]) == (66, 0)
    assert read(stream, other) == []
    told, _ = run("uploads", "--to", other)
    assert (told["chosen"], told["sent"], told["complete"]) == (66, 66, True)
    assert all(one["next"] == one["stop"] for one in told["partitions"] if one["stop"])
    there, copied = read(stream, stream.topics.uploads), read(stream, other)
    assert whole(copied) == whole(there)
    (odd,) = (record for record in copied if record.key == b"odd")
    assert odd.headers[0][0].encode() == b"\xff\x00x"


def test_uploads_are_chosen_by_offsets_and_by_time(stream, other, run):
    fill(stream)
    there = read(stream, stream.topics.uploads)
    wanted = [r for r in there if r.partition == 2 and 3 <= r.offset < 6]
    told, _ = run(
        *("uploads", "--to", other, "--partition", 2, "--from-offset", 3, "--to-offset", 6)
    )
    assert (told["sent"], told["partitions"]) == (
        3,
        [{"partition": 2, "start": 3, "stop": 6, "next": 6}],
    )
    assert whole(read(stream, other)) == whole(wanted)

    since = datetime.fromtimestamp(BEGAN + 10, UTC).isoformat()
    until = datetime.fromtimestamp(BEGAN + 40, UTC).isoformat()
    # One that comes late: its timestamp counts, not its place.
    fill(stream, 1, first=12)
    told, _ = run("uploads", "--to", other, "--since", since, "--until", until)
    assert told["sent"] == 31
    assert len(read(stream, other)) == 3 + 31
    told, _ = run("uploads", "--to", other, "--since", "1h", "--dry-run")
    assert told["chosen"] == 0
    told, _ = run("uploads", "--to", other, "--since", "3h", "--dry-run")
    assert told["chosen"] == 61
    told, _ = run("uploads", "--to", other, "--partition", 2, "--to-offset", 999, "--dry-run")
    assert told["chosen"] == sum(r.partition == 2 for r in read(stream, stream.topics.uploads))


def test_uploads_that_retention_took_are_told(stream, other, run):
    fill(stream)
    (gone,) = (r.stop for r in _spans(stream, stream.topics.uploads) if r.partition == 1)
    forget(stream, stream.topics.uploads)
    told, _ = run("uploads", "--to", other, "--partition", 1, "--from-offset", 0, code=1)
    assert (told["sent"], told["taken_by_retention"]) == (0, gone)


def test_only_what_was_there_at_the_start_is_copied_to_the_same_topic(stream, run):
    fill(stream)
    told, _ = run("uploads", "--to", stream.topics.uploads, "--same-topic")
    assert told["sent"] == 60
    assert len(read(stream, stream.topics.uploads)) == 120


def test_uncommitted_and_aborted_uploads_are_not_copied(stream, other, run):
    def transaction(name, value):
        producer = KafkaProducer(
            bootstrap_servers=[stream.broker.bootstrap_servers], transactional_id=f"{other}-{name}"
        )
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(stream.topics.uploads, value, b"k").get(10)
        return producer

    committed, aborted = transaction("a", b"committed"), transaction("b", b"aborted")
    committed.commit_transaction()
    aborted.abort_transaction()
    still_open = transaction("c", b"open")
    told, _ = run("uploads", "--to", other)
    assert told["sent"] == 1
    assert [record.value for record in read(stream, other)] == [b"committed"]
    still_open.abort_transaction()
    for producer in (committed, aborted, still_open):
        producer.close()


def test_a_topic_that_cannot_take_them_is_refused(stream, run):
    with pytest.raises(StreamError, match="there is no topic nowhere"):
        run("uploads", "--to", "nowhere")
    small = f"{stream.topics.uploads}.small"
    with Admin(stream.settings.kafka, stream.settings.kafka.bootstrap_servers) as admin:
        admin.create([small], 1, {"max.message.bytes": "100000"})
    with pytest.raises(StreamError, match="takes records of 100000 bytes"):
        run("uploads", "--to", small)
    with pytest.raises(StreamError, match="has no partition 9"):
        run("uploads", "--to", stream.topics.uploads, "--same-topic", "--partition", 9)


@pytest.mark.processes
def test_an_interrupted_copy_says_how_to_go_on(stream, other, environment):
    count = 30_000
    stream.produce((b"%d" % n, b"%d" % n + bytes(500), ()) for n in range(count))
    command = [sys.executable, "-m", "worker", "replay"]
    process = subprocess.Popen(
        [*command, "uploads", "--to", other, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not sum(span.stop for span in _spans(stream, other)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1] == "copysieve: interrupted"
    told = json.loads(output.splitlines()[-1])
    assert not told["complete"]
    assert 0 < told["sent"] < count
    again = re.findall(r"to go on: copysieve replay (.*)", errors)
    assert len(again) == 4
    for line in again:
        subprocess.run(
            [*command, *shlex.split(line)], env=environment, check=True, capture_output=True
        )
    copied = [record.key for record in read(stream, other)]
    assert len(set(copied)) == count
    assert len(copied) - count < 4000  # in flight when it was interrupted, at most


def _spans(stream, topic):
    kafka = stream.settings.kafka
    with TopicReader(kafka, kafka.bootstrap_servers, topic) as reader:
        return list(reader.spans().values())
