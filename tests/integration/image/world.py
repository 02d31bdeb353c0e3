"""A small internet on loopback: public servers, an inside that must not be reached, and DNS.

Every connection that Python opens is led to a server of the test's own, whatever address it was
meant for: none leaves the machine. What was meant for a public address comes to the server that
plays it; everything else comes to `inside`, and is remembered as a leak.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fixtures.dns_server import DnsServer, look_up
from tests.fixtures.http_server import Server, answer

GOOD, EVIL = "203.0.114.7", "203.0.114.66"
"""Public as far as anybody can tell."""
PICTURE, SECRET = b"a public picture", b"the secret"


class World:
    """Names: `good.test`, `evil.test`, `images.test` (TLS as well), `internal.test`."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.dns = DnsServer()
        self.good, self.evil, self.inside = Server(), Server(), Server()
        self.tls = Server(tls=tls)
        self.servers = (self.good, self.evil, self.inside, self.tls)
        self.reached: list[tuple[str, int]] = []
        self.leaked: list[tuple[str, int]] = []
        self.good.answers["/picture"] = self.tls.answers["/picture"] = answer(PICTURE)
        self.evil.answers["/picture"] = answer(PICTURE)
        for target in ("/", "/secret", "/latest/meta-data/"):
            self.inside.answers[target] = answer(SECRET)
        self.dns.zone |= {
            "good.test": [[GOOD]],
            "evil.test": [[EVIL]],
            "images.test": [[GOOD]],
            "internal.test": [["10.0.0.5"]],
            "localhost": [["127.0.0.1", "::1"]],
        }

    def resolve(self, host: str, port: int) -> list[str]:
        """As `worker.image.fetch.resolve`, by this world's DNS."""
        found = self._getaddrinfo(host, port)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    @contextlib.contextmanager
    def entered(self) -> Iterator["World"]:
        """Let all of Python's connections and look-ups lead here."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", self._getaddrinfo)
            patch.setattr(socket.socket, "connect", self._connecting(socket.socket.connect))
            try:
                yield self
            finally:
                for server in self.servers:
                    server.stop()
                self.dns.stop()

    def _getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        stream = socket.SOCK_STREAM
        try:
            return _system(host, port, type=stream, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            addresses = look_up(self.dns, host)
        return [
            entry
            for address in addresses
            for entry in _system(address, port, type=stream, flags=socket.AI_NUMERICHOST)
        ]

    def _connecting(self, real: Callable[..., None]) -> Callable[..., None]:
        def connect(this: socket.socket, address: tuple[Any, ...]) -> None:
            host, port = address[:2]
            if host in (GOOD, EVIL):
                self.reached.append((host, port))
                server = self.evil if host == EVIL else self.tls if port == 443 else self.good
            else:
                self.leaked.append((host, port))
                server = self.inside
            loopback = "::ffff:127.0.0.1" if this.family == socket.AF_INET6 else "127.0.0.1"
            real(this, (loopback, server.port))

        return connect


_system = socket.getaddrinfo


def within(seconds: float, work: Callable[[], bytes]) -> tuple[bytes, bool]:
    """What `work` returns (nothing, if it raises), and whether it came to an end in time."""
    results = [b""]

    def run() -> None:
        # Whatever a library raises, from a look-up to a parser's assertion: nothing came back.
        with contextlib.suppress(Exception):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[-1], not thread.is_alive()
