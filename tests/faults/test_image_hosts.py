"""Image hosts that go away: the platform's own is waited for, dead links of users are not."""

import base64
import contextlib
import json
import signal
import threading
import time

import pytest

from tests.faults.test_faults import eventually, screened
from tests.fixtures.http_server import Server, answer
from tests.fixtures.processes import picture

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]


def linked(upload_id, url):
    event = {"upload_id": upload_id, "image_url": url}
    return upload_id.encode(), json.dumps(event).encode(), ()


def inline(upload_id, image):
    event = {"upload_id": upload_id, "image_base64": base64.b64encode(image).decode()}
    return upload_id.encode(), json.dumps(event).encode(), ()


def paused(worker):
    return worker.total('copysieve_paused{why="hosts_away"}') == 1


def refused(worker):
    return worker.total('copysieve_fetches_total{result="fetch_failed"}')


def serving(port=0):
    server = Server(port=port)
    server.answers["/known"] = answer(picture(0))
    server.answers["/other"] = answer(picture(1))
    return server


def test_while_the_platforms_host_is_away_uploads_wait_and_none_is_given_up(screening):
    host = serving()
    links = [host.url("/known"), host.url("/other")]
    worker = screening.start(COPYSIEVE_FETCH__DEADLINE_SECONDS="3")
    screening.stream.produce([linked(f"before-{n}", links[n % 2]) for n in range(40)])
    eventually(lambda: len(screened(screening)) == 40)

    host.stop()
    screening.stream.produce([linked(f"during-{n}", links[n % 2]) for n in range(200)])
    eventually(lambda: paused(worker))
    eventually(lambda: worker.metric("copysieve_fetch_outage") == 1)
    assert worker.metric("copysieve_fetch_hosts_open") == 1
    taken = worker.metric("copysieve_records_total")
    screening.stream.produce([inline(f"later-{n}", picture(0)) for n in range(20)])
    before = refused(worker)
    # Two probes later the deadline is over for all, had it gone on.
    eventually(lambda: refused(worker) >= before + 2)
    assert len(screened(screening)) == 40
    assert worker.metric("copysieve_records_total") == taken
    assert worker.get("/health/live")[0] == 200

    host = serving(host.port)
    try:
        eventually(lambda: len(screened(screening)) == 260)
        assert not paused(worker)
        assert worker.metric("copysieve_fetch_outage") == 0
        assert worker.terminate() == 0
    finally:
        host.stop()
    verdicts = screening.verdicts()
    assert len(verdicts) == 260
    assert {v["upload_id"]: v["outcome"] for v in verdicts} == {
        f"{when}-{n}": "no_match" if n % 2 and when != "later" else "match"
        for when, number in (("before", 40), ("during", 200), ("later", 20))
        for n in range(number)
    }


def test_a_worker_that_was_stopped_blames_no_host(screening):
    """Neither what it was fetching nor what waited for its second try."""
    host, asked, let_go = serving(), threading.Event(), threading.Event()

    def slow(peer):
        asked.set()
        let_go.wait(60)
        with contextlib.suppress(OSError):
            peer.sendall(answer(picture(0)))

    flaky = iter([answer(b"", "503 Service Unavailable")])
    host.answers["/slow"] = slow
    host.answers["/flaky"] = lambda peer: peer.sendall(next(flaky, answer(picture(0))))
    try:
        worker = screening.start(COPYSIEVE_FETCH__DEADLINE_SECONDS="3")
        names = ["slow", "flaky"]
        screening.stream.produce([linked(name, host.url(f"/{name}")) for name in names])
        assert asked.wait(60)
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        let_go.set()
        worker.process.send_signal(signal.SIGCONT)
        eventually(lambda: screened(screening).keys() == set(names))
        assert worker.terminate() == 0
    finally:
        host.stop()
    assert {verdict["outcome"] for verdict in screening.verdicts()} == {"match"}


def test_dead_links_of_users_do_not_stop_the_others(screening):
    """300 links to 300 hosts that take connections and never answer, before 100 live ones."""
    host, silent = serving(), Server("0.0.0.0")
    silent.answers["/dead"] = lambda _peer: silent.stopping.wait()
    try:
        worker = screening.start(COPYSIEVE_FETCH__DEADLINE_SECONDS="8")
        screening.stream.produce([linked("first", host.url("/known"))])
        eventually(lambda: "first" in screened(screening))
        dead = [f"dead-{n}" for n in range(300)]
        links = [silent.url("/dead", f"127.9.{n // 100}.{n % 100 + 1}") for n in range(300)]
        screening.stream.produce([linked(*one) for one in zip(dead, links, strict=True)])
        eventually(lambda: worker.metric("copysieve_in_flight_records") >= 200)
        live = [f"live-{n}" for n in range(100)]
        screening.stream.produce([linked(name, host.url("/known")) for name in live])
        screening.stream.produce([inline("inline", picture(0))])
        eventually(lambda: screened(screening).keys() >= {*live, "inline"})
        found = screened(screening)
        assert {found[name]["outcome"] for name in (*live, "inline")} == {"match"}
        assert len(found.keys() & set(dead)) < 300
        assert worker.metric("copysieve_fetch_outage") == 0
        assert not paused(worker)
        eventually(lambda: screened(screening).keys() >= set(dead))
        reasons = {screened(screening)[name]["reason"] for name in dead}
        assert reasons == {"fetch_timeout", "host_unavailable"}
        assert worker.terminate() == 0
    finally:
        host.stop()
        silent.stop()
