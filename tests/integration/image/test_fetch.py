"""Fetching from real servers, most of them hostile.

Where a test needs a deadline it sets a short one; nothing asserts how long something took. A server
that drips never ends by itself, so a deadline that fails would hang the test into its timeout.
"""

import contextlib
import gc
import itertools
import logging
import socket
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import worker
from tests.fixtures.http_server import Server, answer
from tests.integration.image.conftest import IMAGE_BYTES, Certificate
from worker.errors import FetchError, UnscreenedReason
from worker.image.fetch import Fetcher, Resolve
from worker.settings import Fetch
from worker.telemetry import metrics

type Build = Callable[..., Fetcher]

SHORT = 0.5


def to(*addresses: str) -> Resolve:
    """Resolves every name to these."""
    return lambda _host, _port: addresses


def refusal(fetcher: Fetcher, url: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(url)
    return caught.value


def reason(fetcher: Fetcher, url: str) -> UnscreenedReason:
    return refusal(fetcher, url).reason


def test_the_bytes_arrive_and_are_counted(server: Server, fetcher: Build) -> None:
    body = bytes(range(256)) * 500
    server.answers["/picture"] = answer(body)
    fetched, result = metrics.FETCHED_BYTES._value, metrics.FETCHES.labels("fetched")._value
    before = fetched.get(), result.get()
    assert fetcher().fetch(server.url("/picture?signature=x#fragment")) == body
    assert (fetched.get(), result.get()) == (before[0] + len(body), before[1] + 1)
    request = server.requests[0]
    assert (request.method, request.target) == ("GET", "/picture?signature=x")
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer"} & set(request.headers)


def test_the_user_agent_is_the_settings(server: Server, fetcher: Build) -> None:
    server.answers["/moved"] = answer(status="302 Found", location="/picture")
    server.answers["/picture"] = answer(b"bytes")
    fetcher(user_agent="Mozilla/5.0 (ours)").fetch(server.url("/moved"))
    fetcher().fetch(server.url("/picture"))
    told = [(request.target, request.headers["user-agent"]) for request in server.requests]
    assert told == [
        ("/moved", "Mozilla/5.0 (ours)"),
        ("/picture", "Mozilla/5.0 (ours)"),
        ("/picture", f"copysieve/{worker.__version__}"),
    ]


def test_the_environment_takes_no_part(
    server: Server, fetcher: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.answers["/picture"] = answer(b"bytes", set_cookie="a=b")
    ours = fetcher()
    for _ in range(2):
        assert ours.fetch(server.url("/picture")) == b"bytes"
    assert "cookie" not in server.requests[1].headers


def test_connections_are_reused(server: Server, fetcher: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    ours = fetcher()
    for _ in range(5):
        ours.fetch(server.url("/picture"))
    assert {request.connection for request in server.requests} == {1}


def test_many_threads_share_a_fetcher(server: Server, fetcher: Build) -> None:
    for number in range(8):
        server.answers[f"/{number}"] = answer(str(number).encode() * 30_000)
    ours = fetcher()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda n: ours.fetch(server.url(f"/{n % 8}")), range(80)))
    assert [body[:1] for body in bodies] == [str(n % 8).encode() for n in range(80)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", UnscreenedReason.FETCH_NOT_FOUND),
        ("410 Gone", UnscreenedReason.FETCH_NOT_FOUND),
        ("401 Unauthorized", UnscreenedReason.FETCH_DENIED),
        ("403 Forbidden", UnscreenedReason.FETCH_DENIED),
        ("400 Bad Request", UnscreenedReason.FETCH_FAILED),
        ("429 Too Many Requests", UnscreenedReason.FETCH_FAILED),
        ("500 Internal Server Error", UnscreenedReason.FETCH_FAILED),
        ("503 Service Unavailable", UnscreenedReason.FETCH_FAILED),
        ("206 Partial Content", UnscreenedReason.FETCH_FAILED),
        ("304 Not Modified", UnscreenedReason.FETCH_FAILED),
        ("302 Found", UnscreenedReason.FETCH_FAILED),
    ],
)
def test_statuses(server: Server, fetcher: Build, status: str, expected: UnscreenedReason) -> None:
    server.answers["/picture"] = answer(b"" if status < "4" else b"text", status)
    counter = metrics.FETCHES.labels(expected.value)._value
    before = counter.get()
    assert reason(fetcher(), server.url("/picture")) is expected
    assert counter.get() == before + 1


# -- what a URL may say --


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.com/x",
        "gopher://127.0.0.1:6379/_",
        "data:image/png;base64,AAAA",
        "//example.com/x",
        "example.com/x",
        "",
        "http://",
        "http:///x",
        "http://user@127.0.0.1/x",
        "http://user:password@127.0.0.1/x",
        "http://127.0.0.1:22/x",
        "http://127.0.0.1:0/x",
        "http://127.0.0.1:99999/x",
        "http://[::1/x",
        "http://exa mple.com/x",
        "http://" + "a" * 300 + ".com/x",
        "http://\ud800.com/x",
        "https://" + "\u00fc" * 70 + ".com/x",
    ],
)
def test_urls_that_are_refused_unseen(fetcher: Build, url: str) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(host, port)

    assert reason(fetcher(resolve), url) is UnscreenedReason.FETCH_DENIED


def test_plain_http_needs_the_setting(server: Server, fetcher: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    ours = fetcher(allowed_schemes=("https",))
    assert reason(ours, server.url("/picture")) is UnscreenedReason.FETCH_DENIED
    assert server.connections == 0


def test_hosts_are_held_to_the_list(server: Server, fetcher: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    ours = fetcher(to("127.0.0.1"), allowed_hosts=("one.test", "*.Two.test"))
    for host in ("one.test", "ONE.test", "one.test.", "a.two.test", "a.b.two.test"):
        assert ours.fetch(server.url("/picture", host)) == b"bytes"
    for host in ("two.test", "x.one.test", "onetwo.test", "atwo.test", "127.0.0.1", "2130706433"):
        assert reason(ours, server.url("/picture", host)) is UnscreenedReason.FETCH_DENIED


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "017700000001",
        "localhost",
        "LOCALHOST",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[::1]",
        "0",
        "[::]",
    ],
)
def test_loopback_by_any_name_needs_its_own_setting(
    server: Server, fetcher: Build, host: str
) -> None:
    server.answers["/picture"] = answer(b"bytes")
    ours = fetcher(allow_loopback_addresses=False, allow_private_addresses=True)
    assert reason(ours, server.url("/picture", host)) is UnscreenedReason.FETCH_DENIED
    assert server.connections == 0


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "localhost", "[::ffff:127.0.0.1]"])
def test_odd_spellings_work_where_their_address_is_allowed(
    server: Server, fetcher: Build, host: str
) -> None:
    server.answers["/picture"] = answer(b"bytes")
    assert fetcher().fetch(server.url("/picture", host)) == b"bytes"


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "[::ffff:169.254.169.254]", "[fd00:ec2::254]"]
)
def test_metadata_is_denied_whatever_is_set(fetcher: Build, host: str) -> None:
    assert reason(fetcher(), f"http://{host}/latest/") is UnscreenedReason.FETCH_DENIED


def test_international_names_are_looked_up_in_ascii(server: Server, fetcher: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    fetcher(resolve).fetch(server.url("/picture", "bücher.test"))
    assert asked == [("xn--bcher-kva.test", server.port)]
    assert server.requests[0].headers["host"] == f"xn--bcher-kva.test:{server.port}"


# -- names and addresses --


def test_only_the_checked_address_is_connected_to(
    server: Server, fetcher: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that turns from public to private between check and use: it is asked only once."""
    opened = []

    def create_connection(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        opened.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("urllib3.util.connection.create_connection", create_connection)
    replies = itertools.chain([["203.0.114.7"]], itertools.repeat(["127.0.0.1"]))
    ours = fetcher(lambda _host, _port: next(replies), allow_loopback_addresses=False)
    url = server.url("/picture", "rebind.test")
    assert reason(ours, url) is UnscreenedReason.FETCH_FAILED
    assert reason(ours, url) is UnscreenedReason.FETCH_DENIED
    assert opened == [("203.0.114.7", server.port)]
    assert server.connections == 0


def test_the_system_resolver_is_never_asked_for_a_checked_name(
    server: Server, fetcher: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/picture"] = answer(b"bytes")
    asked = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: object, **options: object) -> object:
        asked.append(host)
        return real(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    ours = fetcher(to("127.0.0.1"))
    assert ours.fetch(server.url("/picture", "images.test")) == b"bytes"
    assert set(asked) == {"127.0.0.1"}
    assert server.requests[0].headers["host"] == f"images.test:{server.port}"


def test_one_forbidden_address_condemns_the_name(server: Server, fetcher: Build) -> None:
    ours = fetcher(to("127.0.0.1", "169.254.169.254"))
    assert reason(ours, server.url("/picture", "mixed.test")) is UnscreenedReason.FETCH_DENIED
    assert server.connections == 0


def test_the_next_address_is_tried(server: Server, fetcher: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    ours = fetcher(to("127.0.0.2", "127.0.0.1"))
    assert ours.fetch(server.url("/picture", "two.test")) == b"bytes"


def test_unknown_names_and_closed_ports_fail(fetcher: Build) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(host, port)

    failed = UnscreenedReason.FETCH_FAILED
    assert reason(fetcher(unknown), "http://nowhere.test/x") is failed
    assert reason(fetcher(to()), "http://nowhere.test/x") is failed
    assert reason(fetcher(), "http://" + "a" * 64 + ".test/x") is failed
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert reason(fetcher(), f"http://127.0.0.1:{port}/x") is failed


# -- redirects --


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 T", "308 P"])
def test_redirects_are_followed(server: Server, fetcher: Build, status: str) -> None:
    server.answers["/a/old"] = answer(b"moved", status, location="new?x=1")
    server.answers["/a/new"] = answer(b"bytes")
    assert fetcher().fetch(server.url("/a/old")) == b"bytes"
    assert [request.target for request in server.requests] == ["/a/old", "/a/new?x=1"]


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/latest/",
        "http://[fd00:ec2::254]/",
        "file:///etc/passwd",
        "s3://bucket/key",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:22/",
    ],
)
def test_redirects_are_judged_like_new_urls(server: Server, fetcher: Build, location: str) -> None:
    server.answers["/picture"] = answer(b"", "302 Found", location=location)
    ours = fetcher(allowed_schemes=("http", "https", "s3"), allowed_buckets=("s3://bucket",))
    assert reason(ours, server.url("/picture")) is UnscreenedReason.FETCH_DENIED
    assert len(server.requests) == 1


def test_a_redirect_into_the_house_is_denied(
    server: Server, fetcher: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public host, played by the server, sends the worker to loopback."""
    real = socket.create_connection
    monkeypatch.setattr(
        "urllib3.util.connection.create_connection",
        lambda address, *_, **__: real(("127.0.0.1", address[1])),
    )
    server.answers["/picture"] = answer(
        b"", "302 Found", location=f"http://localhost:{server.port}/inside"
    )
    server.answers["/inside"] = answer(b"secret")
    known = {"public.test": ["203.0.114.7"], "localhost": ["127.0.0.1"]}
    ours = fetcher(lambda host, _port: known[host], allow_loopback_addresses=False)
    assert reason(ours, server.url("/picture", "public.test")) is UnscreenedReason.FETCH_DENIED
    assert [request.target for request in server.requests] == ["/picture"]


def test_redirects_are_counted(server: Server, fetcher: Build) -> None:
    server.answers["/loop"] = answer(b"", "302 Found", location="/loop")
    assert reason(fetcher(redirects=3), server.url("/loop")) is UnscreenedReason.FETCH_FAILED
    assert len(server.requests) == 4
    assert reason(fetcher(redirects=0), server.url("/loop")) is UnscreenedReason.FETCH_FAILED
    assert len(server.requests) == 5


# -- lengths --


def test_the_cap_holds_to_the_byte(server: Server, fetcher: Build) -> None:
    server.answers["/exact"] = answer(b"x" * IMAGE_BYTES)
    server.answers["/above"] = answer(b"x" * (IMAGE_BYTES + 1))
    server.answers["/declared"] = answer(b"", content_length=IMAGE_BYTES + 1)
    ours = fetcher()
    assert len(ours.fetch(server.url("/exact"))) == IMAGE_BYTES
    assert reason(ours, server.url("/above")) is UnscreenedReason.TOO_LARGE
    assert reason(ours, server.url("/declared")) is UnscreenedReason.TOO_LARGE


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", b"x" * 10_000),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"2710\r\n" + b"x" * 10_000 + b"\r\n",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n", b"x" * 10_000),
    ],
)
def test_endless_bodies_end_at_the_cap(
    server: Server, fetcher: Build, head: bytes, piece: bytes
) -> None:
    server.answers["/endless"] = server.drip(head, piece)
    assert reason(fetcher(), server.url("/endless")) is UnscreenedReason.TOO_LARGE


@pytest.mark.parametrize(
    "response",
    [
        answer(b"short", content_length=100),
        answer(b"5\r\nshort\r\n", content_length=None, transfer_encoding="chunked"),
        answer(b"5\r\nsho", content_length=None, transfer_encoding="chunked"),
        answer(b"nonsense\r\n", content_length=None, transfer_encoding="chunked"),
        b"",
        b"HTTP/1.1 200",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
def test_broken_responses_fail(server: Server, fetcher: Build, response: bytes) -> None:
    server.answers["/broken"] = lambda connection: connection.sendall(response)
    assert reason(fetcher(), server.url("/broken")) is UnscreenedReason.FETCH_FAILED


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_contradicting_lengths_fail(server: Server, fetcher: Build) -> None:
    """urllib3 leaves that connection to the garbage collector, which says so."""
    server.answers["/two"] = answer(b"two", content_length="3, 4")
    assert reason(fetcher(), server.url("/two")) is UnscreenedReason.FETCH_FAILED
    gc.collect()


def test_bytes_beyond_the_declared_length_reach_nobody(server: Server, fetcher: Build) -> None:
    """Else the rest would be read as the answer to the next request on the connection."""
    server.answers["/long"] = answer(b"bytes", content_length=5) + answer(b"smuggled")
    server.answers["/next"] = answer(b"next")
    ours = fetcher()
    assert ours.fetch(server.url("/long")) == b"bytes"
    assert ours.fetch(server.url("/next")) == b"next"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x-unknown"])
def test_compression_is_refused(server: Server, fetcher: Build, encoding: str) -> None:
    server.answers["/picture"] = answer(b"\x1f\x8b\x08", content_encoding=encoding)
    assert reason(fetcher(), server.url("/picture")) is UnscreenedReason.FETCH_FAILED


# -- time --


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x"),
    ],
)
def test_slow_drips_end_at_the_deadline(
    server: Server, fetcher: Build, head: bytes, piece: bytes
) -> None:
    server.answers["/slow"] = server.drip(head, piece)
    ours = fetcher(deadline_seconds=SHORT)
    assert reason(ours, server.url("/slow")) is UnscreenedReason.FETCH_TIMEOUT
    server.answers["/picture"] = answer(b"bytes")
    assert ours.fetch(server.url("/picture")) == b"bytes"


def test_a_slow_body_on_a_kept_connection_ends_at_the_deadline(
    server: Server, fetcher: Build
) -> None:
    server.answers["/picture"] = answer(b"bytes")
    server.answers["/slow"] = server.drip(answer(b"", content_length=100_000))
    ours = fetcher(deadline_seconds=SHORT)
    ours.fetch(server.url("/picture"))
    assert reason(ours, server.url("/slow")) is UnscreenedReason.FETCH_TIMEOUT
    assert server.connections == 1


def test_slow_redirects_share_one_deadline(server: Server, fetcher: Build) -> None:
    """Each hop is quick enough by itself; a deadline per hop would follow them all."""

    def hop(connection: socket.socket) -> None:
        server.stopping.wait(SHORT * 0.6)
        connection.sendall(answer(b"", "302 Found", location="/hop"))

    server.answers["/hop"] = hop
    ours = fetcher(deadline_seconds=SHORT, redirects=10)
    assert reason(ours, server.url("/hop")) is UnscreenedReason.FETCH_TIMEOUT


def test_a_slow_look_up_ends_at_the_deadline(server: Server, fetcher: Build) -> None:
    def resolve(host: str, port: int) -> list[str]:
        server.stopping.wait()
        raise socket.gaierror(host, port)

    ours = fetcher(resolve, deadline_seconds=SHORT)
    assert reason(ours, "http://slow.test/x") is UnscreenedReason.FETCH_TIMEOUT
    server.stopping.set()


def test_a_handshake_that_drips_ends_at_the_deadline(fetcher: Build, server: Server) -> None:
    """The server speaks no TLS: it sends an endless record, byte by byte, at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def handshake() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")
                while not server.stopping.wait(0.02):
                    connection.sendall(b"\x00")

        serving = pool.submit(handshake)
        ours = fetcher(deadline_seconds=SHORT, connect_timeout_seconds=SHORT)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/x"
        assert reason(ours, url) is UnscreenedReason.FETCH_TIMEOUT
        serving.result()


# -- TLS --


def test_tls_verifies_the_name_though_the_address_is_connected_to(
    certificate: Certificate, fetcher: Build
) -> None:
    server = Server(tls=certificate.server)
    try:
        server.answers["/picture"] = answer(b"bytes")
        ours = fetcher(to("127.0.0.1"), certificate.client)
        assert ours.fetch(server.url("/picture", "images.test")) == b"bytes"
        assert ours.fetch(server.url("/picture", "images.test.")) == b"bytes"
        assert server.requests[0].headers["host"] == f"images.test:{server.port}"
        for host in ("other.test", "127.0.0.1"):
            assert reason(ours, server.url("/picture", host)) is UnscreenedReason.FETCH_FAILED
        untrusting = fetcher(to("127.0.0.1"))
        url = server.url("/picture", "images.test")
        assert reason(untrusting, url) is UnscreenedReason.FETCH_FAILED
        server.answers["/slow"] = server.drip(answer(b"", content_length=100_000))
        hurried = fetcher(to("127.0.0.1"), certificate.client, deadline_seconds=SHORT)
        url = server.url("/slow", "images.test")
        assert reason(hurried, url) is UnscreenedReason.FETCH_TIMEOUT
    finally:
        server.stop()


def test_ipv6_literals_are_fetched(fetcher: Build) -> None:
    try:
        server = Server("::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    try:
        server.answers["/picture"] = answer(b"bytes")
        assert fetcher().fetch(server.url("/picture", "[::1]")) == b"bytes"
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"
    finally:
        server.stop()


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_an_image_is_in_memory_once(server: Server, scheme: str) -> None:
    size = 16 * 2**20
    server.answers["/bucket/key"] = answer(
        b"x" * size, last_modified="Mon, 01 Jan 2024 00:00:00 GMT", etag='"1"'
    )
    url = server.url("/bucket/key") if scheme == "http" else f"{scheme}://bucket/key"
    settings = Fetch(
        allowed_schemes=("http", "s3", "gs"),
        allowed_buckets=("s3://bucket", "gs://bucket"),
        allow_loopback_addresses=True,
        workers=1,
    )
    store: dict[str, object] = {"skip_signature": True}
    store |= {("base_url" if scheme == "gs" else "endpoint"): server.url("")}
    with contextlib.closing(Fetcher(settings, size, stores=store)) as fetcher:
        fetcher.fetch(url)  # what is imported and kept on the way is no part of it
        tracemalloc.start()
        try:
            assert len(fetcher.fetch(url)) == size
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size < peak < 1.5 * size


# -- secrets --


def test_neither_errors_nor_logs_name_path_or_query(
    server: Server, fetcher: Build, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "/private/path?signature=abcdef"
    texts = []
    odd = b"HTTP/1.1 500 Odd\r\nbad header\r\n\r\n"
    for response in (answer(b"", "403 Forbidden"), answer(b"s", content_length=9), odd):
        server.answers["/private/path"] = lambda peer, sent=response: peer.sendall(sent)  # type: ignore[misc]
        error = refusal(fetcher(), server.url(secret))
        texts.append(str(error))
        assert error.__cause__ is None
        assert error.__suppress_context__
    texts.append(str(refusal(fetcher(), f"http://127.0.0.1:1{secret}")))
    texts.append(str(refusal(fetcher(), f"http://user:abcdef@127.0.0.1:9999{secret}")))
    texts.append(str(refusal(fetcher(), f"unknown://127.0.0.1{secret}")))
    texts.append(str(refusal(fetcher(allowed_hosts=("a",)), "http://127.re=abcdef")))
    for text in [*texts, caplog.text]:
        assert "private" not in text
        assert "abcdef" not in text
