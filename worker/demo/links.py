"""The image host of the demo: pictures by name on loopback, until the block is left."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageHost:
    """`images` are served under `address` by their name, and nothing else is."""

    address: str
    images: MutableMapping[str, bytes] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    """Replicas fetch many at once: the default backlog of 5 would refuse some."""

    daemon_threads = True
    request_queue_size = 256


@contextmanager
def image_host() -> Iterator[ImageHost]:
    """Serve on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def do_GET(self) -> None:
            image = host.images.get(self.path.removeprefix("/"))
            self.send_response(404 if image is None else 200)
            self.send_header("Content-Length", str(len(image or b"")))
            self.end_headers()
            self.wfile.write(image or b"")

        def log_message(self, *_: Any) -> None:
            """The replicas tell what they fetch."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        host = ImageHost(f"http://127.0.0.1:{server.server_address[1]}")
        Thread(target=server.serve_forever, name="image host", daemon=True).start()
        try:
            yield host
        finally:
            server.shutdown()
