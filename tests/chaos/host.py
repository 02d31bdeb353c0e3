"""An image host that is slow, fails, and goes away; it remembers what it gave whole."""

import http.server
import random
import threading
import time
from collections import defaultdict
from typing import Literal

from tests.chaos.traffic import body
from worker.embedded.kafka import _free_port

type Mode = Literal["well", "slow", "refusing", "cutting"]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self):
        _, phase, index, kind, number = self.path.split("/")
        whole = body(kind, int(number))
        mode = self.server.host.mode
        chance = random.Random(f"{self.path} {mode}").random()
        time.sleep(2 + 5 * chance if mode == "slow" else 1.5 if chance < 0.02 else 0.05 * chance)
        if mode == "refusing" and chance < 0.9:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        if mode == "cutting" and chance < 0.9:
            self.wfile.write(whole[: int(len(whole) * chance)])
            return
        self.wfile.write(whole)
        self.wfile.flush()
        self.server.host.given[phase, int(index)].append(time.time())

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: "Host", port: int) -> None:
        self.host = host
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, *_):
        """A worker that was killed does not say goodbye."""


class Host:
    """`given`: when each upload's picture was sent whole (Unix time), by phase and index."""

    def __init__(self) -> None:
        self.mode: Mode = "well"
        self.given: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._server: _Server | None = None
        self._port = _free_port()  # a client that retries must not come to be connected to itself
        self.back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def back(self) -> None:
        """Listen (again), on the same port."""
        self._server = _Server(self, self._port)
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.05,), name="host", daemon=True).start()

    def away(self) -> None:
        """Take no connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.away()
