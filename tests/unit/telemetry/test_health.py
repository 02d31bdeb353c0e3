import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from worker.errors import StartupError
from worker.settings import Http
from worker.telemetry import health
from worker.telemetry.health import CONNECTIONS, HealthServer


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_follows_its_checks_and_metrics_are_there():
    problems: dict[str, str | None] = {"live": None, "ready": "the model is not warm"}
    server = HealthServer(
        Http(host="127.0.0.1", port=0), lambda: problems["live"], lambda: problems["ready"]
    )
    try:
        assert get(server.port, "/health/live") == (200, "ok\n")
        assert get(server.port, "/health/ready") == (503, "the model is not warm\n")
        problems["ready"] = None
        assert get(server.port, "/health/ready") == (200, "ok\n")
        status, text = get(server.port, "/metrics")
        assert status == 200
        assert "copysieve_in_flight_records" in text
        assert get(server.port, "/nothing")[0] == 404
        with pytest.raises(StartupError, match=f"http.port {server.port} on 127.0.0.1"):
            HealthServer(Http(host="127.0.0.1", port=server.port), lambda: None, lambda: None)
    finally:
        server.close()


@contextlib.contextmanager
def half_sent(server, count):
    """Connections that began a request and never end it."""
    with contextlib.ExitStack() as opened:
        made = []
        for _ in range(count):
            one = opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            one.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
            made.append(one)
        yield made


@pytest.fixture
def server():
    made = HealthServer(Http(port=0), lambda: None, lambda: None)
    yield made
    made.close()


def eventually(check):
    deadline = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_ended(connection):
    connection.settimeout(30)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_sent_requests_hold_few_threads_and_keep_no_probe_out(server):
    before = threading.active_count()
    with half_sent(server, 253) as connections:
        assert get(server.port, "/health/live") == (200, "ok\n")
        eventually(lambda: threading.active_count() <= before + CONNECTIONS)
        assert all(is_ended(one) for one in connections[: 253 - CONNECTIONS])
        assert get(server.port, "/metrics")[0] == 200


def test_a_request_that_takes_too_long_is_ended(server, monkeypatch):
    monkeypatch.setattr(health, "REQUEST_SECONDS", 0.1)
    with half_sent(server, 3) as connections:
        assert all(is_ended(one) for one in connections)
    assert get(server.port, "/health/live") == (200, "ok\n")


def test_where_no_thread_can_be_had_the_next_request_is_served(server, monkeypatch, capsys):
    with monkeypatch.context() as patched:

        def refused(_thread):
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", refused)
        with half_sent(server, 1) as (connection,):
            assert is_ended(connection)
    assert get(server.port, "/health/live") == (200, "ok\n")
    assert "Traceback" not in capsys.readouterr().err
