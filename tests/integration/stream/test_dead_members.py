"""A replica that has to stop while its group waits for the session of a dead one."""

import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest

from tests.fixtures.echo import Echo, eventually, numbered, seen
from tests.fixtures.stream import make_stream
from worker.settings import Settings

pytestmark = pytest.mark.kafka

MEMBER = """
import sys
from kafka import KafkaConsumer
from worker.stream.membership import Assignor
servers, group, topic, session = sys.argv[1:]
assignor = Assignor()
consumer = KafkaConsumer(
    topic, bootstrap_servers=[servers], group_id=group, enable_auto_commit=False,
    partition_assignment_strategy=[assignor], session_timeout_ms=int(session),
    max_poll_interval_ms=60_000,
)
assignor.is_member = lambda: bool(consumer.group_metadata().member_id)
print("joins", flush=True)
while True:
    consumer.poll(1000)
    if consumer.assignment():
        print("member", flush=True)
"""


@contextmanager
def member(stream):
    """Another process in the group, that takes and does nothing."""
    kafka = stream.settings.kafka
    arguments = (
        *(stream.broker.bootstrap_servers, kafka.group_id, kafka.topics.uploads),
        str(kafka.session_timeout_ms),
    )
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            yield process, lines
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_what_is_finished_is_committed_before_the_deadline(kafka_broker, delivery):
    """With the timeouts that a platform gets unless it sets others."""
    defaults = Settings()
    kafka = {
        "delivery": delivery,
        "session_timeout_ms": defaults.kafka.session_timeout_ms,
        "max_poll_interval_ms": defaults.kafka.max_poll_interval_ms,
    }
    stream = make_stream(kafka_broker, kafka=kafka)
    replica = Echo(stream.settings, hold=lambda _: True)
    with member(stream) as (dies, lines):
        assert "member\n" in iter(lines.readline, "")
        dies.kill()
    eventually(lambda: len(replica.consumer._ledger.assigned()) == 2)
    stream.produce(numbered(40))
    eventually(lambda: replica.held)
    with member(stream) as (_, lines):  # its join waits for the dead one's session
        assert lines.readline() == "joins\n"
        eventually(lambda: replica.consumer._membership.look() != "stable")
        replica.let_go()
        replica.consumer.stop()
        replica.threads[1].join(defaults.shutdown.deadline_seconds)
        assert not replica.threads[1].is_alive()
        replica.publisher.close()
        replica.threads[0].join(30)
    assert not replica.errors
    echoed = seen(stream)
    assert set(echoed.values()) == {1}
    again = Echo(stream.settings.model_copy())
    eventually(lambda: len(seen(stream)) == 40, 90)
    again.stop()
    assert seen(stream) == Counter(range(40))
