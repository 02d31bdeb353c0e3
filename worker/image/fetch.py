"""Linked images: a URL in, bytes out.

A URL comes from a stranger, so nothing about it is believed. Scheme, host name and port are held to
the settings; the name is resolved once, every address it has is judged, and the connection goes to
one of those very addresses (a second look-up could answer otherwise). TLS still verifies the name.
Redirects are followed by hand, each like a new URL. Bytes are counted while they arrive, the time
is one deadline for all of it, and neither proxies, cookies nor compression take part.

    fetch -> _admit (the URL) -> _addresses (where it leads) -> _get (what is there) -> _read

What an error tells names the host at most, never the path or the query: they may be signed.
"""

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
)
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.util import Timeout, parse_url

import worker
from worker.errors import FetchError, UnscreenedReason
from worker.image import addresses
from worker.image.deadline import Watch, Watchdog
from worker.image.objects import SCHEMES as OBJECT_SCHEMES
from worker.image.objects import ObjectFetcher, host_is_allowed
from worker.settings import Fetch
from worker.telemetry import metrics

# They name whole URLs, in warnings too. At their own level, for the settings' may be lower.
for _talkative in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_talkative).setLevel(logging.ERROR)

_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_FREE_PORT = 1024  # below, only the web's own: the others belong to services of the system
_HOST_CHARACTERS = 253
_CHUNK_BYTES = 64 * 1024
_CONNECTIONS_PER_HOST = 4
_HEADERS = {
    "Accept": "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": f"copysieve/{worker.__version__}",
}

type Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, in the system's order. Raises OSError, or ValueError for a non-name.

    Takes every spelling that the system takes: `2130706433` and `0x7f.1` are 127.0.0.1.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class _Link:
    """A URL that the settings allow. `host` is without brackets, `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


_current = threading.local()
"""`watch`: that of the fetch which this thread is busy with."""


class _Connection(HTTPConnection):
    """Lets the watch of the current fetch end it, from before a TLS handshake on."""

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        try:
            _current.watch.add(connection)
        except TimeoutError:
            connection.close()
            raise
        return connection

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:  # kept from an earlier fetch
            _current.watch.add(self.sock)
        super().request(*args, **kwargs)


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Fetcher:
    """Fetches images for many threads; keeps a bounded number of connections.

    `resolve` and `tls` (which authorities are trusted) are the system's unless given.
    """

    def __init__(
        self,
        settings: Fetch,
        image_bytes: int,
        *,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._image_bytes = image_bytes
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()
        self._watchdog = Watchdog()
        self._resolvers = ThreadPoolExecutor(settings.workers, "fetch-resolve")
        self._objects = ObjectFetcher(settings, image_bytes)
        self._pools = urllib3.PoolManager(settings.workers, maxsize=_CONNECTIONS_PER_HOST)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def fetch(self, url: str) -> bytes:
        """Fetch one image; blocks until `fetch.deadline_seconds` at most. Raises FetchError."""
        try:
            data = self._fetch(url)
        except FetchError as error:
            metrics.FETCHES.labels(error.reason.value).inc()
            raise
        metrics.FETCHES.labels("fetched").inc()
        metrics.FETCHED_BYTES.inc(len(data))
        return data

    def close(self) -> None:
        """Close kept connections and end the threads, except those a look-up still holds."""
        self._pools.clear()
        self._watchdog.close()
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        self._objects.close()

    def _fetch(self, url: str) -> bytes:
        if url.partition("://")[0].lower() in OBJECT_SCHEMES:
            return self._objects.fetch(url)
        with self._watchdog.watch(self._settings.deadline_seconds) as watch:
            _current.watch = watch
            for _ in range(self._settings.redirects + 1):
                link = self._admit(url)
                with _as_fetch_error(link.host, watch):
                    response = self._get(link, watch)
                    with contextlib.closing(response):
                        if not (location := response.get_redirect_location()):
                            return self._read(response, watch)
                        url = urljoin(url, location)
        raise FetchError(
            UnscreenedReason.FETCH_FAILED, f"more than {self._settings.redirects} redirects"
        )

    def _admit(self, url: str) -> _Link:
        """Hold a URL to the settings."""
        try:
            parts = parse_url(url)
        except ValueError:
            raise _denied("not a URL") from None
        if parts.scheme not in _DEFAULT_PORTS or parts.scheme not in self._settings.allowed_schemes:
            raise _denied("the scheme is not allowed")
        if parts.auth is not None:
            raise _denied("a URL with a user in it")
        host = (parts.host or "").strip("[]")
        if not 0 < len(host) <= _HOST_CHARACTERS:
            raise _denied("a URL without a host, or with one that is too long")
        if not host_is_allowed(host, self._settings.allowed_hosts):
            raise _denied(f"{host}: the host is not allowed")
        port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        if port < _FIRST_FREE_PORT and port not in _DEFAULT_PORTS.values():
            raise _denied(f"{host}: port {port} is not allowed")
        return _Link(parts.scheme, host, port, parts.request_uri)

    def _addresses(self, link: _Link, watch: Watch) -> Sequence[str]:
        """Look up the host, and judge every address: one bad one condemns the name."""
        look_up = self._resolvers.submit(self._resolve, link.host, link.port)
        try:
            found = look_up.result(timeout=watch.left())
        finally:
            look_up.cancel()
        for address in found:
            addresses.check(address, allow_private=self._settings.allow_private_addresses)
        return found

    def _get(self, link: _Link, watch: Watch) -> urllib3.BaseHTTPResponse:
        """Send the request to the first address that takes a connection; returns at the headers."""
        failure: Exception = OSError("no address")
        for address in self._addresses(link, watch):
            tls = {"server_hostname": link.host, "ssl_context": self._tls}
            pool = self._pools.connection_from_host(
                address, link.port, link.scheme, tls if link.scheme == "https" else None
            )
            connect = min(self._settings.connect_timeout_seconds, watch.left())
            try:
                return pool.urlopen(
                    "GET",
                    link.target,
                    headers={**_HEADERS, "Host": link.host_header},
                    timeout=Timeout(connect=connect, read=watch.left()),
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    preload_content=False,
                    decode_content=False,
                )
            except (NewConnectionError, ConnectTimeoutError) as error:
                failure = error
        raise failure

    def _read(self, response: urllib3.BaseHTTPResponse, watch: Watch) -> bytes:
        _refuse_status(response.status)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError(UnscreenedReason.FETCH_FAILED, "compressed, though asked not to be")
        if (response.length_remaining or 0) > self._image_bytes:
            raise _too_large(self._image_bytes)
        data = bytearray()
        for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
            data += chunk
            if len(data) > self._image_bytes:
                raise _too_large(self._image_bytes)
        watch.left()  # a connection cut at the deadline can look like the end of a body
        if not data:
            raise FetchError(UnscreenedReason.FETCH_FAILED, "an empty body")
        return bytes(data)


def _refuse_status(status: int) -> None:
    if status in (200, 203):
        return
    reason = {
        401: UnscreenedReason.FETCH_DENIED,
        403: UnscreenedReason.FETCH_DENIED,
        404: UnscreenedReason.FETCH_NOT_FOUND,
        410: UnscreenedReason.FETCH_NOT_FOUND,
    }.get(status, UnscreenedReason.FETCH_FAILED)
    raise FetchError(reason, f"HTTP status {status}")


@contextlib.contextmanager
def _as_fetch_error(host: str, watch: Watch) -> Iterator[None]:
    """Errors on the way become one, which names the host: the libraries' texts hold the URL."""
    try:
        yield
    except FetchError as error:
        raise FetchError(error.reason, f"{host}: {error}") from None
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        slow = isinstance(error, (TimeoutError, HTTPTimeoutError))
        if watch.expired or (slow and not isinstance(error, NewConnectionError)):
            raise FetchError(UnscreenedReason.FETCH_TIMEOUT, f"{host}: too slow") from None
        name = type(error).__name__
        raise FetchError(UnscreenedReason.FETCH_FAILED, f"{host}: {name}") from None


def _denied(detail: str) -> FetchError:
    return FetchError(UnscreenedReason.FETCH_DENIED, detail)


def _too_large(limit: int) -> FetchError:
    return FetchError(UnscreenedReason.TOO_LARGE, f"more than {limit} bytes")
