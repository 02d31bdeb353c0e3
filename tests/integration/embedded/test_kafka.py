"""The embedded Kafka is a real one, and leaves nothing behind."""

import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from worker.embedded.kafka import JARS, Broker, Jar, jars_folder, kafka_broker
from worker.errors import StreamError

pytestmark = pytest.mark.kafka

SMALL_JAR = next(jar for jar in JARS if ":jopt-simple:" in jar.coordinate)
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """One that may be killed."""
    with kafka_broker() as running:
        yield running


def new_topic(broker: Broker) -> str:
    name = f"test-{uuid.uuid4()}"
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    admin.close()
    return name


def produce(broker: Broker, topic: str, value: bytes) -> None:
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, acks="all", max_request_size=20 * MIB
    )
    producer.send(topic, value).get(timeout=30)
    producer.close()


def consume_one(broker: Broker, topic: str) -> bytes:
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers,
        auto_offset_reset="earliest",
        fetch_max_bytes=20 * MIB,
        max_partition_fetch_bytes=20 * MIB,
    )
    consumer.assign([TopicPartition(topic, 0)])
    record = next(consumer)
    consumer.close()
    return bytes(record.value)


def test_records_survive_a_kill_and_a_restart_at_the_same_address(broker: Broker) -> None:
    topic, address, first_pid = new_topic(broker), broker.bootstrap_servers, broker.pid
    produce(broker, topic, b"before the crash")
    broker.kill()
    with pytest.raises(StreamError, match="not running"):
        _ = broker.pid
    broker.restart()
    assert not psutil.pid_exists(first_pid)
    assert broker.bootstrap_servers == address
    assert consume_one(broker, topic) == b"before the crash"


def test_restart_ends_a_running_broker_in_order(broker: Broker) -> None:
    topic, first_pid = new_topic(broker), broker.pid
    produce(broker, topic, b"before the restart")
    broker.restart()
    assert not psutil.pid_exists(first_pid)
    assert consume_one(broker, topic) == b"before the restart"


def test_a_record_of_16_mib_is_taken(kafka_broker: Broker) -> None:
    topic, picture = new_topic(kafka_broker), b"\xff" * (16 * MIB)
    produce(kafka_broker, topic, picture)
    assert consume_one(kafka_broker, topic) == picture


def test_cpu_time_of_the_broker_is_told(kafka_broker: Broker) -> None:
    before = kafka_broker.cpu_seconds()
    produce(kafka_broker, new_topic(kafka_broker), b"work")
    assert 0 < before < kafka_broker.cpu_seconds()


def test_a_failed_start_says_why_in_one_line(broker: Broker) -> None:
    broker.kill()
    host, _, port = broker.bootstrap_servers.partition(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(StreamError, match="Address already in use") as error,
    ):
        broker.restart()
    assert "\n" not in str(error.value)
    broker.restart()


def test_an_exception_leaves_neither_process_nor_folder(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail_while_it_runs() -> None:
        with kafka_broker(tmp_path) as broker:
            pids.append(broker.pid)
            raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        fail_while_it_runs()
    assert not psutil.pid_exists(pids[0])
    assert list(tmp_path.iterdir()) == []


def test_the_broker_dies_with_a_killed_owner(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from worker.embedded.kafka import kafka_broker"
        "\nwith kafka_broker(Path(sys.argv[1])) as b: print(b.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        (sys.executable, "-c", script, str(tmp_path)), stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        broker = psutil.Process(int(owner.stdout.readline()))
        owner.send_signal(signal.SIGKILL)
    broker.wait(timeout=60)


def test_jars_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    folder = jars_folder((SMALL_JAR,), tmp_path, lambda done, total: told.append((done, total)))
    assert [jar.name for jar in folder.iterdir()] == ["jopt-simple-5.0.4.jar"]
    assert told == [(1, 1)]
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no way out from here on
    assert jars_folder((SMALL_JAR,), tmp_path) == folder


def test_a_jar_with_another_digest_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"jopt-simple:5\.0\.4: .* another SHA-256"):
        jars_folder((Jar(SMALL_JAR.coordinate, "0" * 64),), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(StreamError, match=r"cannot download .*jopt-simple.* \(ProxyError\)"):
        jars_folder((SMALL_JAR,), tmp_path)
    assert list(tmp_path.iterdir()) == []
