import urllib.error
import urllib.request

import pytest

from worker.errors import StartupError
from worker.settings import Http
from worker.telemetry.health import HealthServer


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
