"""Linked images: a URL in, bytes out.

A URL comes from a stranger, so nothing about it is believed. Scheme, host name and port are held to
the settings; the name is resolved once, every address it has is judged, and the connection goes to
one of those very addresses (a second look-up could answer otherwise). TLS still verifies the name.
Redirects are followed by hand, each like a new URL. Bytes are counted while they arrive, the time
is one deadline for all of it, and neither proxies, cookies nor compression take part.

This is one attempt; what comes of it, `worker.image.fetching` decides.

    fetch -> _admit (the URL) -> _addresses (where it leads) -> _get (what is there) -> _read

What an error tells names the host at most, never the path or the query: they may be signed.
"""

import contextlib
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    NewConnectionError,
)
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.util import Retry, Timeout, Url, parse_url

from worker.errors import FetchError, UnscreenedReason
from worker.image import addresses
from worker.image.deadline import Watch, Watchdog
from worker.image.objects import SCHEMES as OBJECT_SCHEMES
from worker.image.objects import ObjectFetcher
from worker.image.threads import started_pool
from worker.settings import Fetch
from worker.telemetry import metrics

# They name whole URLs, in warnings too. At their own level, for the settings' may be lower.
for _talkative in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_talkative).setLevel(logging.ERROR)

_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_FREE_PORT = 1024  # below, only the web's own: the others belong to services of the system
_HOST_CHARACTERS = 253
_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+(%[\w.-]+)?", re.ASCII | re.IGNORECASE)
_CHUNK_BYTES = 64 * 1024
_CONNECTIONS_PER_HOST = 4
_STALL_SHARE = 0.5
"""An attempt ends if nothing comes for this share of the deadline: there is time for another."""
_TRANSIENT = frozenset({408, 425, 429, *range(500, 600)})
_LONGEST_RETRY_AFTER = 86_400.0
_HEADERS = {
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/*;q=0.5, */*;q=0.1",
    "Accept-Encoding": "identity",
}

type Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, in the system's order. Raises OSError, or ValueError for a non-name.

    Takes every spelling that the system takes: `2130706433` and `0x7f.1` are 127.0.0.1.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Origin(NamedTuple):
    """What answers, or does not: a web server, or a bucket (port 0).

    With the port, for a link to a dead port of a host says nothing about the host.
    """

    scheme: str
    host: str
    port: int


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

    `resolve` and `tls` (which authorities are trusted) are the system's unless given; `stores`
    overrides the object stores' environment.
    """

    def __init__(
        self,
        settings: Fetch,
        image_bytes: int,
        *,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
        stores: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = settings
        self._image_bytes = image_bytes
        self._headers = {**_HEADERS, "User-Agent": settings.user_agent}
        self._named = {name.lower() for name in settings.allowed_hosts}
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()
        self._watchdog = Watchdog()
        self._resolvers = started_pool(settings.workers, "fetch-resolve")
        self._objects = ObjectFetcher(settings, image_bytes, self._fetch_stored, stores)
        self._pools = urllib3.PoolManager(settings.workers, maxsize=_CONNECTIONS_PER_HOST)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def origin(self, url: str) -> Origin:
        """What a URL leads to first. Raises FetchError for one that the settings do not allow."""
        with _counting_errors():
            if _is_object(url):
                scheme, bucket, _ = self._objects.admit(url)
                return Origin(scheme, bucket, 0)
            link = self._admit(url)
            return Origin(link.scheme, link.host.rstrip("."), link.port)

    def is_named(self, origin: Origin) -> bool:
        """Whether the settings name exactly this: below a `*.suffix` there may be dead names.

        They name every bucket that `origin` lets through.
        """
        if origin.scheme in OBJECT_SCHEMES:
            return True
        port = _DEFAULT_PORTS[origin.scheme]
        return origin.port == port and origin.host in self._named

    def fetch(self, url: str, seconds: float | None = None) -> bytes:
        """Fetch one image in one attempt; raises FetchError.

        Blocks for `seconds` at most, `fetch.deadline_seconds` by default.
        """
        seconds = self._settings.deadline_seconds if seconds is None else seconds
        with _counting_errors():
            data = (
                self._objects.fetch(url, seconds) if _is_object(url) else self._fetch(url, seconds)
            )
        metrics.FETCHES.labels("fetched").inc()
        metrics.FETCHED_BYTES.inc(len(data))
        return data

    def close(self) -> None:
        """Close kept connections and end the threads, except those a look-up still holds."""
        self._pools.clear()
        self._watchdog.close()
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        self._objects.close()

    def _fetch(self, url: str, seconds: float) -> bytes:
        with self._watched(seconds) as watch:
            for _ in range(self._settings.redirects + 1):
                link = self._admit(url)
                with _as_fetch_error(link.host, watch):
                    response = self._get(link, self._judged_addresses(link, watch), watch)
                    with contextlib.closing(response):
                        if not (location := response.get_redirect_location()):
                            return self._read(response, watch)
                        url = urljoin(url, location)
        raise FetchError(
            UnscreenedReason.FETCH_FAILED, f"more than {self._settings.redirects} redirects"
        )

    def _fetch_stored(self, url: str, bucket: str, seconds: float) -> bytes:
        """Fetch from the operator's own store, wherever it is; a redirect of it is not followed."""
        link = _link(parse_url(url))
        with self._watched(seconds) as watch, _as_fetch_error(bucket, watch):
            response = self._get(link, self._addresses(link, watch), watch)
            with contextlib.closing(response):
                return self._read(response, watch)

    @contextlib.contextmanager
    def _watched(self, seconds: float) -> Iterator[Watch]:
        with self._watchdog.watch(seconds) as watch:
            _current.watch = watch
            yield watch

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
        if not _HOST.fullmatch(host):  # told by nobody: a part of a query may have come here
            raise _denied("a URL whose host is no name")
        if not _host_is_allowed(host, self._settings.allowed_hosts):
            raise _denied(f"{host}: the host is not allowed")
        link = _link(parts)
        if link.port < _FIRST_FREE_PORT and link.port not in _DEFAULT_PORTS.values():
            raise _denied(f"{host}: port {link.port} is not allowed")
        return link

    def _judged_addresses(self, link: _Link, watch: Watch) -> Sequence[str]:
        """Look up the host, and judge every address: one bad one condemns the name."""
        found = self._addresses(link, watch)
        for address in found:
            addresses.check(
                address,
                allow_private=self._settings.allow_private_addresses,
                allow_loopback=self._settings.allow_loopback_addresses,
            )
        return found

    def _addresses(self, link: _Link, watch: Watch) -> Sequence[str]:
        look_up = self._resolvers.submit(self._resolve, link.host, link.port)
        try:
            return look_up.result(timeout=watch.left())
        finally:
            look_up.cancel()

    def _get(self, link: _Link, found: Sequence[str], watch: Watch) -> urllib3.BaseHTTPResponse:
        """Send the request to the first address that takes a connection; returns at the headers."""
        failure: Exception = socket.gaierror(socket.EAI_NONAME, "no address")
        stall = self._settings.deadline_seconds * _STALL_SHARE
        for address in found:
            tls = {"server_hostname": link.host, "ssl_context": self._tls}
            pool = self._pools.connection_from_host(
                address, link.port, link.scheme, tls if link.scheme == "https" else None
            )
            connect = min(self._settings.connect_timeout_seconds, watch.left())
            try:
                return pool.urlopen(
                    "GET",
                    link.target,
                    headers={**self._headers, "Host": link.host_header},
                    timeout=Timeout(connect=connect, read=min(stall, watch.left())),
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
        _refuse_status(response)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError(UnscreenedReason.FETCH_FAILED, "compressed, though asked not to be")
        if (response.length_remaining or 0) > self._image_bytes:
            raise _too_large(self._image_bytes)
        data = BytesIO()  # it hands over what it holds, without a copy
        for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
            data.write(chunk)
            if data.tell() > self._image_bytes:
                raise _too_large(self._image_bytes)
        watch.left()  # a connection cut at the deadline can look like the end of a body
        if not data.tell():
            cut = "content-length" not in response.headers  # then nobody said where it ends
            raise FetchError(UnscreenedReason.FETCH_FAILED, "an empty body", transient=cut)
        return data.getvalue()


def _is_object(url: str) -> bool:
    return url.partition("://")[0].lower() in OBJECT_SCHEMES


def _host_is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a host is named, or lies below a `*.suffix`. No names allow all."""
    host = host.rstrip(".").lower()
    names = [name.lower() for name in allowed]
    return not names or any(
        host.endswith(name[1:]) if name.startswith("*.") else host == name for name in names
    )


def _link(parts: Url) -> _Link:
    scheme = parts.scheme or ""
    port = _DEFAULT_PORTS[scheme] if parts.port is None else parts.port
    return _Link(scheme, (parts.host or "").strip("[]"), port, parts.request_uri)


def _refuse_status(response: urllib3.BaseHTTPResponse) -> None:
    status = response.status
    if status in (200, 203):
        return
    reason = {
        401: UnscreenedReason.FETCH_DENIED,
        403: UnscreenedReason.FETCH_DENIED,
        404: UnscreenedReason.FETCH_NOT_FOUND,
        410: UnscreenedReason.FETCH_NOT_FOUND,
    }.get(status, UnscreenedReason.FETCH_FAILED)
    raise FetchError(
        reason,
        f"HTTP status {status}",
        transient=status in _TRANSIENT,
        retry_after=_retry_after(response.headers.get("retry-after", "")),
    )


def _retry_after(header: str) -> float:
    """Seconds that a host wants to be left alone for; 0 where it does not say."""
    with contextlib.suppress(InvalidHeader, ValueError, OverflowError):
        return min(float(Retry().parse_retry_after(header)), _LONGEST_RETRY_AFTER)
    return 0.0


@contextlib.contextmanager
def _counting_errors() -> Iterator[None]:
    try:
        yield
    except FetchError as error:
        metrics.FETCHES.labels(error.reason.value).inc()
        raise


@contextlib.contextmanager
def _as_fetch_error(host: str, watch: Watch) -> Iterator[None]:
    """Errors on the way become one, which names the host: the libraries' texts hold the URL."""
    try:
        yield
    except FetchError as error:
        raise FetchError(
            error.reason,
            f"{host}: {error}",
            transient=error.transient,
            retry_after=error.retry_after,
        ) from None
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        slow = isinstance(error, (TimeoutError, HTTPTimeoutError))
        if watch.expired or (slow and not isinstance(error, NewConnectionError)):
            raise FetchError(
                UnscreenedReason.FETCH_TIMEOUT, f"{host}: too slow", transient=True
            ) from None
        raise FetchError(
            UnscreenedReason.FETCH_FAILED,
            f"{host}: {type(error).__name__}",
            transient=_may_pass(error),
        ) from None


def _may_pass(error: Exception) -> bool:
    """Whether it is the network's doing. What a host says wrongly, it would say again."""
    for one in (error, *error.args):
        if isinstance(one, socket.gaierror):
            return one.errno == socket.EAI_AGAIN
        if isinstance(one, ssl.SSLError):
            return isinstance(one, ssl.SSLEOFError)
    return any(
        isinstance(one, (NewConnectionError, OSError, IncompleteRead))
        for one in (error, *error.args)
    )


def _denied(detail: str) -> FetchError:
    return FetchError(UnscreenedReason.FETCH_DENIED, detail)


def _too_large(limit: int) -> FetchError:
    return FetchError(UnscreenedReason.TOO_LARGE, f"more than {limit} bytes")
