"""The canary thread against a real Kafka and a real Redis: what fails, and that it comes right."""

import shutil
import time
from contextlib import closing
from datetime import UTC, datetime

import pytest
import skimage.data
from PIL import Image
from prometheus_client import REGISTRY

from tests.fixtures.stream import make_stream
from worker.canary import publisher as publishing
from worker.canary.pictures import scan
from worker.canary.publisher import CanaryPublisher
from worker.embedded import redis
from worker.embedded.kafka import kafka_broker as own_broker
from worker.hotset.layout import Keys
from worker.hotset.store import open_store
from worker.hotset.types import Reference
from worker.settings import Redis
from worker.stream import admission

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
KEYS = Keys("copysieve")
PATIENCE = 30.0


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def value(name, **labels):
    return REGISTRY.get_sample_value(f"copysieve_{name}", labels) or 0.0


def failures(reason):
    return value("canary_failures_total", reason=reason)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """The waiting is not on trial."""
    monkeypatch.setattr(publishing, "TURN_SECONDS", 0.2)
    monkeypatch.setattr(publishing, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(publishing, "REST_SECONDS", 1.0)
    monkeypatch.setattr(publishing, "SCAN_SECONDS", 0.5)


@pytest.fixture
def server():
    """A Redis or Valkey that may be killed."""
    with redis.redis_server("any", keep_data=True) as started:
        yield started


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "canaries"
    made.mkdir()
    Image.fromarray(skimage.data.coffee()).save(made / "coffee.jpg")
    return made


@pytest.fixture
def references(folder):
    """As the mirror tells them: one, of the one picture."""
    (digest,) = scan(folder)
    one = Reference(
        reference_id="coffee",
        bank="canaries",
        added_by="t",
        added_at=datetime.now(UTC),
        canary=True,
        sha256=digest,
    )
    return [one]


@pytest.fixture
def canaries(stream, server, folder, references):
    store = open_store(Redis.model_validate({"url": server.url, "timeout_seconds": 1}))
    settings = stream.replica(
        canaries={"folder": folder, "per_minute": 600}, kafka={"start_timeout_seconds": 2}
    )
    made = CanaryPublisher(settings, store.duty(), lambda: references)
    yield made
    made.stop()
    made.join(10)
    store.close()


def published(stream):
    return stream.read(stream.topics.uploads)


def genuine(canaries, record):
    headers = dict(record.headers)
    signature = headers[admission.CANARY_HEADER]
    upload_id = headers["upload-id"].decode()
    return canaries.signer_of(upload_id, record.value, signature) is admission.Signer.OURS


def test_what_it_publishes_is_signed_and_never_twice_the_same(canaries, stream):
    assert canaries.start(lambda: False)
    until(lambda: len(published(stream)) >= 5)
    records = published(stream)
    assert all(genuine(canaries, record) for record in records)
    assert len({record.value for record in records}) == len({r.key for r in records})
    assert value("canary_lease_held") == 1


def test_it_waits_for_a_redis_that_is_away_before_the_first_upload(canaries, server):
    server.kill()
    before, asked = failures("redis"), []

    def should_stop():
        asked.append(1)
        return len(asked) > 2

    assert not canaries.start(should_stop)
    assert failures("redis") == before + 2


def test_a_redis_that_lost_the_key_costs_nothing_but_a_pause(canaries, stream, server):
    assert canaries.start(lambda: False)
    until(lambda: published(stream))
    old = published(stream)[0]
    with server.client() as client:
        lost = client.get(KEYS.canary_key)
        client.flushall()
        until(lambda: client.get(KEYS.canary_key) not in (None, lost))
    count = len(published(stream))
    until(lambda: len(published(stream)) > count + 3)
    assert genuine(canaries, old)
    assert all(genuine(canaries, record) for record in published(stream))


def test_without_redis_it_publishes_nothing_and_then_goes_on(canaries, stream, server):
    assert canaries.start(lambda: False)
    until(lambda: published(stream))
    before = failures("redis")
    server.kill()
    until(lambda: failures("redis") > before + 1)
    assert value("canary_lease_held") == 0
    count = len(published(stream))
    assert genuine(canaries, published(stream)[-1])
    server.restart()
    until(lambda: len(published(stream)) > count + 3)


def test_a_key_that_is_not_usable_makes_nothing_genuine(canaries, stream, server):
    with server.client() as client:
        client.set(KEYS.canary_key, "short")
        assert canaries.start(lambda: False)
        until(lambda: failures("redis") > 0)
        signer = canaries.signer_of("canary:1", b"v", b"0" * 16 + b":" + b"0" * 64)
        assert signer is admission.Signer.NOBODY
        assert not published(stream)
        client.delete(KEYS.canary_key)
    until(lambda: published(stream))


def test_a_folder_that_goes_away_lets_another_have_the_lease(canaries, stream, folder, server):
    assert canaries.start(lambda: False)
    until(lambda: published(stream))
    before = failures("folder")
    shutil.move(folder, folder.with_name("gone"))
    with closing(open_store(Redis.model_validate({"url": server.url}))) as store:
        other = store.duty()
        until(other.hold)
        assert failures("folder") > before
        other.release()
    shutil.move(folder.with_name("gone"), folder)
    count = len(published(stream))
    until(lambda: len(published(stream)) > count)


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(
    canaries, stream, folder, references
):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (broken,) = [d for d, paths in scan(folder).items() if paths[0].name == "broken.jpg"]
    fields = {"reference_id": "broken", "sha256": broken}
    references.append(references[0].model_copy(update=fields))
    before = failures("picture")
    assert canaries.start(lambda: False)
    until(lambda: failures("picture") >= before + 2 and len(published(stream)) >= 2)


def test_what_does_not_fit_together_is_told(canaries, folder, references):
    (folder / "more.jpg").write_bytes(b"something else")
    references.append(references[0].model_copy(update={"reference_id": "r2", "sha256": "0" * 64}))
    assert canaries.start(lambda: False)
    until(lambda: value("canaries_unpaired", what="picture") == 1)
    assert value("canaries_unpaired", what="reference") == 1


def test_a_topic_that_is_not_there_is_a_failure_and_gives_up_the_lease(
    stream, server, folder, monkeypatch
):
    monkeypatch.setattr(publishing, "REST_SECONDS", 600.0)
    topics = stream.topics.model_copy(update={"shadow": "nowhere"})
    settings = stream.replica(
        canaries={"folder": folder, "per_minute": 600}, kafka={"topics": topics.model_dump()}
    )
    store = open_store(Redis.model_validate({"url": server.url}))
    before = failures("kafka")
    one = CanaryPublisher(settings, store.duty(), list)
    assert one.start(lambda: False)
    until(lambda: failures("kafka") >= before + 1)
    other = store.duty()
    until(other.hold)
    assert failures("kafka") == before + 1
    one.stop()
    one.join(10)
    store.close()


def test_a_broker_that_goes_and_comes_back(server, folder, references, monkeypatch):
    monkeypatch.setattr(publishing, "_FLUSH_SECONDS", 2.0)
    with own_broker() as broker:
        stream = make_stream(broker)
        settings = stream.replica(
            canaries={"folder": folder, "per_minute": 600}, kafka={"start_timeout_seconds": 2}
        )
        store = open_store(Redis.model_validate({"url": server.url}))
        one = CanaryPublisher(settings, store.duty(), lambda: references)
        before = failures("kafka")
        assert one.start(lambda: False)
        until(lambda: published(stream))
        broker.kill()
        until(lambda: failures("kafka") > before)
        broker.restart()
        count = len(published(stream))
        until(lambda: len(published(stream)) > count + 3)
        one.stop()
        one.join(10)
        store.close()
