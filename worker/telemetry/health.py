"""Metrics and health on one HTTP port.

`/health/live`: the stages' threads run and the poll loop moves. Never "Kafka or Redis answer": a
blip would restart every replica at once. `/health/ready`: the model is warm and the hot set is
loaded. The handlers take no lock of the pipeline's.

Whoever can connect holds little: `CONNECTIONS` at most are open, each for `REQUEST_SECONDS` at
most. Where there are more, the oldest one is ended, so that probes always get an answer.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from worker.errors import StartupError
from worker.settings import Http
from worker.telemetry import log, metrics

CONNECTIONS = 32
REQUEST_SECONDS = 5.0

logger = log.get(__name__)

type Check = Callable[[], str | None]
"""None: fine. Else one line that says what is not."""


class _Server(ThreadingHTTPServer):
    """A thread for each connection, of which there are few, for a short time."""

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._lock = threading.Lock()
        self._open: dict[Any, float] = {}
        """When each connection came, oldest first."""
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= CONNECTIONS else None
        if oldest is not None:
            self._cut(oldest, "too_many")
        with self._lock:
            self._open[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system gives no more threads
            self.shutdown_request(request)

    def service_actions(self) -> None:
        """End what takes too long. The serving thread calls this twice a second."""
        limit = time.monotonic() - REQUEST_SECONDS
        with self._lock:
            late = [request for request, came in self._open.items() if came < limit]
        for request in late:
            self._cut(request, "too_slow")

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """Log what went wrong on our side; that a client went away is no news."""
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.warning("http_request_failed", error=type(error).__name__)

    def _cut(self, request: Any, reason: str) -> None:
        """Wake the connection's thread, which closes it."""
        with self._lock:
            if self._open.pop(request, None) is None:
                return
        metrics.HTTP_CUT.labels(reason).inc()
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class HealthServer:
    """Serves until `close`. Raises StartupError where the port is taken."""

    def __init__(self, settings: Http, live: Check, ready: Check) -> None:
        checks = {"/health/live": live, "/health/ready": ready}

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(REGISTRY))
                elif self.path in checks:
                    problem = checks[self.path]()
                    text = f"{problem or 'ok'}\n".encode()
                    self._answer(503 if problem else 200, "text/plain; charset=utf-8", text)
                else:
                    self._answer(404, "text/plain; charset=utf-8", b"not found\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Probes are not news."""

        try:
            self._server = _Server((settings.host, settings.port), Handler)
        except OSError as error:
            raise StartupError(
                f"http.port {settings.port} on {settings.host}: {error.strerror}"
            ) from None
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
