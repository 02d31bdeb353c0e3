"""Servers that go away, stages that die, pictures that break the model: nothing is lost."""

import io
import json
import re
import signal
import sys
import time

import pytest
from PIL import Image

from tests.fixtures.processes import Screening, picture
from tests.fixtures.stream import make_stream
from worker.embedded.kafka import kafka_broker as own_broker
from worker.embedded.redis import redis_server as own_redis
from worker.hotset.store import open_store
from worker.hotset.types import Bank
from worker.settings import Redis

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

RAW = (("content-type", b"image/jpeg"),)


def uploads(start, stop):
    return [(f"u{n}".encode(), picture(n), RAW) for n in range(start, stop)]


def eventually(check, seconds=90):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


def screened(screening):
    return {v["upload_id"]: v for v in screening.verdicts()}


def made(stream, server, folder):
    store = open_store(Redis.model_validate({"url": server.url}))
    store.set_bank(
        Bank(name="known-bad", label="bad", severity="high", action="block", threshold=0.9)
    )
    screening = Screening(stream, store, server.url, folder)
    screening.add_reference("ref-0", picture(0), "known-bad")
    return screening


@pytest.fixture
def own(kafka_broker, tmp_path):
    """Topics on the shared broker, and a Redis or Valkey that may be killed."""
    with own_redis("any", keep_data=True) as server:
        screening = made(make_stream(kafka_broker), server, tmp_path)
        yield screening, server
        for worker in screening.workers:
            if worker.process.poll() is None:
                worker.kill()
        screening.store.close()


def test_a_broker_that_crashes_and_comes_back_costs_no_verdict(valkey, tmp_path):
    with own_broker() as broker, valkey.client() as client:
        client.flushall()
        screening = made(make_stream(broker), valkey, tmp_path)
        screening.stream.produce(uploads(0, 600))
        worker = screening.start()
        eventually(lambda: len(screening.verdicts()) > 100)
        broker.kill()
        time.sleep(2)
        broker.restart()
        screening.stream.produce(uploads(600, 700))
        eventually(lambda: len(screened(screening)) == 700)
        assert worker.get("/health/live")[0] == 200
        assert worker.terminate() == 0
        ids: dict[str, str] = {}
        for verdict in screening.verdicts():
            assert (
                ids.setdefault(verdict["upload_id"], verdict["verdict_id"]) == verdict["verdict_id"]
            )
        screening.store.close()


def test_without_redis_the_mirror_goes_on_and_the_worker_stays_alive_and_ready(own):
    screening, server = own
    worker = screening.start(COPYSIEVE_HOTSET__STALE_AFTER_SECONDS="1")
    screening.stream.produce(uploads(0, 2))
    eventually(lambda: len(screened(screening)) == 2)
    server.kill()
    screening.stream.produce([(b"again", picture(0), RAW)])
    eventually(lambda: "again" in screened(screening))
    eventually(lambda: worker.metric("copysieve_hotset_stale") == 1)
    assert worker.get("/health/live")[0] == 200
    assert worker.get("/health/ready")[0] == 200
    server.restart()
    screening.add_reference("ref-1", picture(1), "known-bad")
    eventually(lambda: worker.metric("copysieve_hotset_references") == 2)
    screening.stream.produce([(b"caught", picture(1), RAW)])
    eventually(lambda: "caught" in screened(screening))
    assert worker.terminate() == 0
    found = screened(screening)
    assert found["again"]["outcome"] == found["caught"]["outcome"] == "match"
    assert found["again"]["hot_set"] == found["u0"]["hot_set"]
    assert found["u1"]["outcome"] == "no_match"


def test_a_stale_hot_set_pauses_where_settings_say_so(own):
    screening, server = own
    worker = screening.start(
        COPYSIEVE_HOTSET__STALE_AFTER_SECONDS="1", COPYSIEVE_HOTSET__ON_STALE="pause"
    )
    screening.stream.produce(uploads(0, 1))
    eventually(lambda: len(screened(screening)) == 1)
    server.kill()
    eventually(lambda: worker.metric("copysieve_hotset_stale") == 1)
    time.sleep(0.5)
    screening.stream.produce(uploads(1, 5))
    time.sleep(2)
    assert len(screened(screening)) == 1
    server.restart()
    eventually(lambda: len(screened(screening)) == 5)
    assert worker.terminate() == 0


def test_an_emptied_store_is_an_alarm_and_not_a_set(own):
    screening, server = own
    worker = screening.start()
    screening.stream.produce(uploads(0, 1))
    eventually(lambda: len(screened(screening)) == 1)
    with server.client() as client:
        client.flushall()
    eventually(lambda: worker.metric("copysieve_hotset_shrunk") == 1)
    screening.stream.produce([(b"again", picture(0), RAW)])
    eventually(lambda: "again" in screened(screening))
    assert screened(screening)["again"]["outcome"] == "match"

    newcomer = screening.start()
    newcomer.wait_for("started")
    time.sleep(1)
    assert newcomer.get("/health/live")[0] == 200
    assert newcomer.get("/health/ready")[0] == 503
    assert newcomer.terminate() == 0
    assert worker.terminate() == 0


def start_with(screening, sabotage, **extra):
    """A worker in which a line of ours was replaced, to see what the rest does about it."""
    program = f"{sabotage}\nfrom worker.__main__ import main\nmain()"
    arguments = [sys.executable, "-c", program, "run"]
    return screening.start_command(arguments, **extra)


@pytest.mark.parametrize(
    ("stage", "sabotage"),
    [
        ("decode", "import worker.image.decoder as d\nd.Decoder.prepare = None"),
        ("admit", "import worker.pipeline as p\np.admission = None"),
        ("fetch", "import worker.image.fetching as f\nf.FetchQueue._tick = None"),
        ("device", "import worker.pipeline as p\np.compare = None"),
        ("publisher", "import worker.results as r\nr.Verdict = None"),
        ("consumer", "import worker.stream.consumer as c\nc.Record = None"),
        ("hot set", "import worker.hotset.sync as s\ns.HotSetSync._turn = None"),
    ],
)
def test_a_dead_stage_ends_the_process_with_one_clear_line(screening, stage, sabotage):
    screening.stream.produce(uploads(0, 5))
    worker = start_with(screening, sabotage)
    assert worker.process.wait(60) == 1
    last = worker.log.read_text().splitlines()[-1]
    assert re.match(rf"copysieve: {stage} died: (Type|Attribute)Error: ", last)
    assert not any(commit and commit.offset for commit in screening.stream.committed().values())
    again = screening.start()
    eventually(lambda: len(screened(screening)) == 5)
    assert again.terminate() == 0


def test_a_picture_that_breaks_the_model_ends_alone(screening):
    sabotage = """
import worker.descriptor.embedders as e
real = e.OnnxEmbedder.describe
def describe(self, pixels):
    if (pixels.reshape(len(pixels), -1).min(axis=1) == 255).any():
        raise RuntimeError("sabotage")
    return real(self, pixels)
e.OnnxEmbedder.describe = describe
"""
    white = Image.new("RGB", (160, 160), "white")
    first = Image.open(io.BytesIO(picture(1)))
    culprits = [
        (b"white", _saved(white), RAW),
        (b"animation", _saved(first, save_all=True, append_images=[white, first]), RAW),
    ]
    screening.stream.produce([*uploads(0, 9), *culprits, *uploads(11, 20)])
    worker = start_with(screening, sabotage, COPYSIEVE_BATCH__MAX_DELAY_MS="500")
    eventually(lambda: len(screened(screening)) == 20)
    assert worker.terminate() == 0
    found = screened(screening)
    assert found["white"]["reason"] == "describe_failed"
    assert found["animation"]["reason"] == "describe_failed"
    assert found["u0"]["outcome"] == "match"
    assert all(v["outcome"] != "unscreened" for k, v in found.items() if k.startswith("u"))


def _saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_at_the_shutdown_deadline_it_says_what_is_left(screening):
    sabotage = """
import time
import worker.image.decoder as d
d.Decoder.prepare = lambda *_: time.sleep(60)
"""
    screening.stream.produce(uploads(0, 3))
    worker = start_with(
        screening,
        sabotage,
        COPYSIEVE_SHUTDOWN__DEADLINE_SECONDS="6",
        COPYSIEVE_KAFKA__SESSION_TIMEOUT_MS="1000",
        COPYSIEVE_FETCH__DEADLINE_SECONDS="1",
    )
    worker.wait_for("partition_assigned")
    eventually(lambda: worker.metric("copysieve_records_total") == 3)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 1
    last = worker.log.read_text().splitlines()[-1]
    assert last == "copysieve: shutdown.deadline_seconds passed with 3 uploads in flight"
    assert json.dumps(screening.verdicts()) == "[]"
