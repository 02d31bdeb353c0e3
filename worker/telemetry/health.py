"""Metrics and health on one HTTP port.

`/health/live`: the stages' threads run and the poll loop moves. Never "Kafka or Redis answer": a
blip would restart every replica at once. `/health/ready`: the model is warm and the hot set is
loaded. The handlers take no lock of the pipeline's.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from worker.errors import StartupError
from worker.settings import Http

type Check = Callable[[], str | None]
"""None: fine. Else one line that says what is not."""


class HealthServer:
    """Serves until `close`. Raises StartupError where the port is taken."""

    def __init__(self, settings: Http, live: Check, ready: Check) -> None:
        checks = {"/health/live": live, "/health/ready": ready}

        class Handler(BaseHTTPRequestHandler):
            """One request."""

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
            self._server = ThreadingHTTPServer((settings.host, settings.port), Handler)
        except OSError as error:
            raise StartupError(
                f"http.port {settings.port} on {settings.host}: {error.strerror}"
            ) from None
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
