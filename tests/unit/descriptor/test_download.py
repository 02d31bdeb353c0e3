"""Partial files: gone on with, and never spliced."""

import resource
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.http_server import Server, answer
from tests.fixtures.origin import Origin
from worker.descriptor.download import download
from worker.errors import ModelError

BODY = bytes(range(256)) * 1000
AT_ONCE = (0.0, 0.0, 0.0)


@pytest.fixture
def origin(server) -> Origin:
    server.answers["/model.pt"] = made = Origin(server, BODY)
    return made


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def fetch(server: Server, part: Path, path: str = "/model.pt", **options) -> list:
    told: list = []
    options = {"pauses": AT_ONCE} | options
    download(server.url(path), part, lambda *numbers: told.append(numbers), **options)
    return told


def refused(server: Server, part: Path, path: str = "/model.pt", **options) -> str:
    with pytest.raises(ModelError) as error:
        fetch(server, part, path, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("origin")
def test_progress_is_told(server, part):
    told = fetch(server, part)
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert part.read_bytes() == BODY


def test_a_cut_download_goes_on_where_it_was_cut(server, origin, part):
    origin.cuts = [100_000, 50_000]
    told = fetch(server, part)
    assert part.read_bytes() == BODY
    assert origin.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert (150_000, len(BODY)) in told


def test_so_does_a_later_call(server, origin, part):
    origin.cuts = [100_000]
    assert refused(server, part, pauses=()).endswith("the connection was cut (tries: 1)")
    fetch(server, part)
    assert part.read_bytes() == BODY
    assert origin.ranges() == [None, "bytes=100000-"]
    fetch(server, part)  # it was only not taken away
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("etag", "body", "splices"),
    [
        ('"two"', BODY[::-1], False),
        ('"two"', BODY[::-1], True),
        ('W/"one"', BODY[::-1], True),
        (None, BODY[::-1], True),
        ('"one"', BODY[::-1] + b"more", True),
    ],
)
def test_a_changed_file_is_had_from_its_beginning(server, origin, part, etag, body, splices):
    origin.cuts = [100_000]
    refused(server, part, pauses=())
    origin.etag, origin.body, origin.splices = etag, body, splices
    fetch(server, part)
    assert part.read_bytes() == body
    assert origin.ranges()[1] == "bytes=100000-"


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_name_for_the_version_it_begins_anew(server, origin, part, etag):
    origin.etag, origin.cuts = etag, [100_000]
    fetch(server, part)
    assert part.read_bytes() == BODY
    assert origin.ranges() == [None, None]


def test_a_partial_file_of_another_source_is_not_gone_on_with(server, origin, part):
    origin.cuts = [100_000]
    refused(server, part, pauses=())
    server.answers["/other.pt"] = Origin(server, BODY[::-1])
    fetch(server, part, "/other.pt")
    assert part.read_bytes() == BODY[::-1]


def test_damaged_notes_are_no_notes(server, origin, part):
    origin.cuts = [100_000]
    refused(server, part, pauses=())
    (part.parent / "model.pt.json").write_text("{")
    fetch(server, part)
    assert part.read_bytes() == BODY


def test_after_the_last_try_it_says_so_and_keeps_what_is_there(server, origin, part):
    origin.cuts = [1000] * 4
    assert refused(server, part).endswith("the connection was cut (tries: 4)")
    assert part.stat().st_size == 4000


def test_a_server_that_recovers(server, origin, part):
    def recovering(connection: socket.socket) -> None:
        server.answers["/model.pt"] = origin
        connection.sendall(answer(status="503 Busy"))

    server.answers["/model.pt"] = recovering
    fetch(server, part)
    assert part.read_bytes() == BODY


def test_what_another_try_would_not_mend_is_not_tried_again(server, part):
    assert "expected the file, found HTTP 404 Not Found" in refused(server, part)
    server.answers["/gzip"] = answer(BODY, content_encoding="gzip")
    assert "found it encoded" in refused(server, part, "/gzip")
    assert len(server.requests) == 2


def test_what_a_server_says_stays_one_short_line(server, part):
    server.answers["/odd"] = answer(status="404 \x1b[2J" + "x" * 200)
    assert refused(server, part, "/odd").endswith(r"HTTP 404 \x1b[2J" + "x" * 96)
    server.answers["/away"] = answer(status="302 Found", location="ftp://h/\x1b[2J" + "x" * 200)
    assert refused(server, part, "/away").endswith("x" * 88 + ", which is not https")
    server.answers["/long"] = answer(status="302 Found", location="/" + "x" * 10_000)
    assert refused(server, part, "/long").endswith("redirected to something that is no URL")


SECRETIVE = "https://ann:secret@h:99999/x?sig=secret"


def test_secrets_are_not_told(server, part, monkeypatch):
    with pytest.raises(ModelError, match=r"^https://h:99999/x: cannot connect: this URL, or "):
        download(SECRETIVE, part, lambda *_: None, ())
    server.answers["/away"] = answer(status="302 Found", location=SECRETIVE)
    assert "secret" not in refused(server, part, "/away")
    for proxy in (SECRETIVE, "http://ann:secret@[odd", "socks5://ann:secret@h", "http://a:€@h"):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ModelError) as error:
            download("https://models.test/x", part, lambda *_: None, ())
        assert "secret" not in str(error.value)
        assert str(error.value).endswith("the proxy's, is no URL")


def test_a_login_is_sent_to_its_host_alone(server, origin, part):
    mirror = Server()
    try:
        mirror.answers["/old"] = answer(status="302 Found", location=server.url("/model.pt"))
        source = mirror.url("/old").replace("://", "://ann:sec%72et@")
        download(source, part, lambda *_: None, ())
    finally:
        mirror.stop()
    assert mirror.requests[0].headers["authorization"] == "Basic YW5uOnNlY3JldA=="
    assert origin.ranges() == [None]
    assert "authorization" not in server.requests[0].headers


def test_nobody_listens(server, part):
    server.stop()
    assert refused(server, part).endswith("cannot connect: [Errno 111] Connection refused")


@pytest.mark.usefixtures("origin")
def test_redirects(server, part):
    server.answers["/old"] = answer(status="302 Found", location="/model.pt?signature=secret")
    fetch(server, part, "/old")
    assert part.read_bytes() == BODY
    part.unlink()
    server.answers["/old"] = answer(status="302 Found", location="/gone?signature=secret")
    assert "secret" not in refused(server, part, "/old")
    server.answers["/round"] = answer(status="302 Found", location="/round")
    assert "more than 5 redirects" in refused(server, part, "/round")
    server.answers["/file"] = answer(status="302 Found", location="file:///etc/hosts")
    assert "redirected to file:///etc/hosts" in refused(server, part, "/file")
    server.answers["/odd"] = answer(status="302 Found", location="http://[odd/")
    assert "redirected to something that is no URL" in refused(server, part, "/odd")


@pytest.mark.usefixtures("origin")
def test_never_from_https_to_http(server, part, tmp_path, monkeypatch):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*new, *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    secure = Server(tls=context)
    try:
        secure.answers["/old"] = answer(status="302 Found", location=server.url("/model.pt"))
        assert "cannot connect: self-signed certificate" in refused(secure, part, "/old")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert "which is not https" in refused(secure, part, "/old")
    finally:
        secure.stop()
    assert not server.requests


def test_a_file_without_end_is_stopped(server, part):
    server.answers["/model.pt"] = server.drip(answer(content_length=None), bytes(1 << 20))
    assert "more than the 10000 bytes allowed" in refused(server, part, most_bytes=10_000)
    assert not part.exists()
    server.answers["/model.pt"] = answer(BODY)
    assert "more than the 10000 bytes allowed" in refused(server, part, most_bytes=10_000)


@pytest.mark.usefixtures("origin")
def test_a_disk_that_takes_no_more(server, part):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            fetch(server, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("origin")
def test_proxies(server, part, monkeypatch):
    proxy = Server()
    try:
        proxy.answers["http://models.test/model.pt"] = answer(BODY)
        monkeypatch.setenv("HTTP_PROXY", proxy.url("").replace("://", "://ann:secret@"))
        monkeypatch.setenv("http_proxy", proxy.url("").replace("://", "://ann:secret@"))
        monkeypatch.setenv("HTTPS_PROXY", proxy.url("").removeprefix("http://"))
        download("http://models.test/model.pt", part, lambda *_: None, ())
        assert part.read_bytes() == BODY
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic YW5uOnNlY3JldA=="
        with pytest.raises(ModelError, match=r"cannot connect: .*404"):
            download("https://models.test/model.pt", part, lambda *_: None, ())
        assert proxy.requests[1].method == "CONNECT"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        fetch(server, part)
        assert len(proxy.requests) == 2
    finally:
        proxy.stop()
    assert len(server.requests) == 1
