"""Objects, from a local server that speaks as much S3 as a GET needs.

The endpoint and the metadata service both are that server: nothing asks the machine's own.
Where there are credentials, objects of S3 are fetched by signed URLs, else by the stores' client.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from tests.fixtures.http_server import Server, answer
from worker.errors import FetchError, UnscreenedReason
from worker.image.fetch import Fetcher
from worker.settings import Fetch

LIMIT = 200_000
LOGIN = {"access_key_id": "key", "secret_access_key": "secret", "session_token": "token"}
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"

type Build = Callable[..., Fetcher]


def stored(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    return answer(body, status, last_modified=DATE, **headers)


@pytest.fixture
def objects(server: Server) -> Iterator[Build]:
    with contextlib.ExitStack() as stack:

        def build(*, signed: bool = False, login: bool = False, **settings: Any) -> Fetcher:
            values = {"workers": 2, "deadline_seconds": 20} | settings
            config = {
                "endpoint": server.url(""),
                "region": "us-east-1",
                "skip_signature": not (signed or login),
                "metadata_endpoint": server.url("/metadata"),
            } | (LOGIN if login else {})
            return stack.enter_context(
                contextlib.closing(Fetcher(Fetch(**values), LIMIT, stores=config))
            )

        yield build


def reason(objects: Fetcher, url: str) -> UnscreenedReason:
    with pytest.raises(FetchError) as caught:
        objects.fetch(url)
    assert "secret" not in str(caught.value)
    return caught.value.reason


BOTH = pytest.mark.parametrize("login", [False, True])


@BOTH
def test_an_object_arrives_whole(server: Server, objects: Build, *, login: bool) -> None:
    body = bytes(range(256)) * 700
    server.answers["/bucket/folder/picture.jpg"] = stored(body)
    assert objects(login=login).fetch("s3://bucket/folder/picture.jpg") == body
    assert [request.method for request in server.requests] == ["GET"]


@BOTH
def test_a_key_is_taken_by_the_letter(server: Server, objects: Build, *, login: bool) -> None:
    server.answers["/bucket/a%20b%3Fc%23d%2541.jpg"] = stored(b"bytes")
    assert objects(login=login).fetch("s3://bucket/a b?c#d%41.jpg") == b"bytes"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", UnscreenedReason.FETCH_NOT_FOUND),
        ("401 Unauthorized", UnscreenedReason.FETCH_DENIED),
        ("403 Forbidden", UnscreenedReason.FETCH_DENIED),
        ("500 Internal Server Error", UnscreenedReason.FETCH_FAILED),
    ],
)
@BOTH
def test_statuses(
    server: Server, objects: Build, status: str, expected: UnscreenedReason, *, login: bool
) -> None:
    server.answers["/bucket/secret"] = answer(b"", status)
    assert reason(objects(login=login), "s3://bucket/secret") is expected


@BOTH
def test_the_cap_holds_to_the_byte(server: Server, objects: Build, *, login: bool) -> None:
    server.answers["/bucket/exact"] = stored(b"x" * LIMIT)
    server.answers["/bucket/above"] = stored(b"x" * (LIMIT + 1))
    server.answers["/bucket/declared"] = stored(b"", content_length=LIMIT + 1)
    ours = objects(login=login)
    assert len(ours.fetch("s3://bucket/exact")) == LIMIT
    assert reason(ours, "s3://bucket/above") is UnscreenedReason.TOO_LARGE
    assert reason(ours, "s3://bucket/declared") is UnscreenedReason.TOO_LARGE


@BOTH
def test_a_short_body_fails(server: Server, objects: Build, *, login: bool) -> None:
    response = stored(b"short", content_length=100)
    server.answers["/bucket/secret"] = lambda connection: connection.sendall(response)
    assert reason(objects(login=login), "s3://bucket/secret") is UnscreenedReason.FETCH_FAILED


@pytest.mark.parametrize("head", [b"", stored(b"", content_length=100_000)])
@BOTH
def test_slow_drips_end_at_the_deadline(
    server: Server, objects: Build, head: bytes, *, login: bool
) -> None:
    server.answers["/bucket/secret"] = server.drip(head, b"x" if head else b"")
    ours = objects(deadline_seconds=0.5, login=login)
    assert reason(ours, "s3://bucket/secret") is UnscreenedReason.FETCH_TIMEOUT


def test_without_credentials_nothing_is_fetched(
    server: Server, objects: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain ends at the metadata service, here one that knows no role."""
    _no_credentials(monkeypatch)
    server.answers["/bucket/secret"] = stored(b"bytes")
    assert reason(objects(signed=True), "s3://bucket/secret") is UnscreenedReason.FETCH_FAILED
    assert {request.target.split("/")[1] for request in server.requests} == {"metadata"}


def test_a_metadata_service_that_hangs_ends_at_the_deadline(
    server: Server, objects: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_credentials(monkeypatch)
    server.answers["/metadata/latest/api/token"] = lambda _: server.stopping.wait()
    ours = objects(signed=True, deadline_seconds=0.5)
    assert reason(ours, "s3://bucket/secret") is UnscreenedReason.FETCH_TIMEOUT


def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///key",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket@evil.test/key",
        "s3://evil.test#bucket/key",
        "s3://evil.test\\bucket/key",
        "s3://[::1]/key",
        "s3://b/key",
        "s3://user@bucket/key",
        "s3://bucket:80/key",
        "s3://BUCKET/key",
        "s3://bucket%2f/key",
        "s3://bucket?x=y/key",
        "gs://bucket/key",
        "http://bucket/key",
        "file://bucket/key",
    ],
)
def test_urls_that_are_refused_unseen(server: Server, objects: Build, url: str) -> None:
    ours = objects(allowed_schemes=("s3",))
    assert reason(ours, url) is UnscreenedReason.FETCH_DENIED
    assert server.connections == 0


@pytest.mark.parametrize("key", ["../other/key", "a//b", "a/../b", "\ud800"])
@BOTH
def test_odd_keys_fail(server: Server, objects: Build, key: str, *, login: bool) -> None:
    assert reason(objects(login=login), f"s3://bucket/{key}") is UnscreenedReason.FETCH_FAILED
    assert server.connections == 0


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 T", "308 P"])
def test_credentials_follow_no_redirect(server: Server, objects: Build, status: str) -> None:
    """The control, the stores' own client, takes a role's token to wherever it is sent."""
    other = Server("127.0.0.2")
    try:
        elsewhere = f"http://127.0.0.2:{other.port}/stolen"
        server.answers["/bucket/key"] = answer(b"", status, location=elsewhere)
        other.answers["/stolen"] = stored(b"bytes")
        assert reason(objects(login=True), "s3://bucket/key") is UnscreenedReason.FETCH_FAILED
        assert other.connections == 0
        assert "x-amz-security-token" not in server.requests[0].headers

        config: Any = LOGIN | {"endpoint": server.url(""), "region": "us-east-1"}
        store = S3Store("bucket", config=config, client_options={"allow_http": True})
        obstore.get(store, "key")
        assert other.requests[0].headers["x-amz-security-token"] == "token"
        assert "authorization" not in other.requests[0].headers
    finally:
        other.stop()


def test_a_login_to_azure_follows_no_redirect(server: Server) -> None:
    """The stores' client goes there, for their own client fetches from it, but without the key."""
    other = Server("127.0.0.2")
    elsewhere = f"http://127.0.0.2:{other.port}/stolen"
    server.answers["/account/bucket/key"] = answer(b"", "302 Found", location=elsewhere)
    config = {
        "account_name": "account",
        "account_key": "c2VjcmV0",
        "endpoint": server.url("/account"),
    }
    ours = Fetcher(Fetch(workers=1), LIMIT, stores=config)
    try:
        with pytest.raises(FetchError):
            ours.fetch("az://bucket/key")
        assert "authorization" in server.requests[0].headers
        told = {name for request in other.requests for name in request.headers}
        assert not told & {"authorization", "cookie"}
        assert not any("secret" in str(request) for request in other.requests)
    finally:
        ours.close()
        other.stop()


@pytest.mark.parametrize("bucket", ["evil.test", "127.0.0.1", "169.254.169.254", "localhost"])
@BOTH
def test_a_bucket_named_like_a_host_is_a_bucket(
    server: Server, objects: Build, bucket: str, *, login: bool
) -> None:
    server.answers[f"/{bucket}/key"] = stored(b"bytes")
    assert objects(login=login).fetch(f"s3://{bucket}/key") == b"bytes"


def test_buckets_are_held_to_the_list(server: Server, objects: Build) -> None:
    server.answers["/uploads/key"] = stored(b"bytes")
    ours = objects(allowed_hosts=("uploads", "*.example.com"))
    assert ours.fetch("s3://uploads/key") == b"bytes"
    assert reason(ours, "s3://private/key") is UnscreenedReason.FETCH_DENIED


def test_the_fetcher_takes_object_urls(
    server: Server, fetcher: Callable[..., Fetcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the operator's environment, as in production."""
    monkeypatch.setenv("AWS_ENDPOINT", server.url(""))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    server.answers["/bucket/key"] = stored(b"bytes")
    assert fetcher(allowed_schemes=("https", "s3")).fetch("S3://bucket/key") == b"bytes"
    with pytest.raises(FetchError, match="not allowed"):
        fetcher(allowed_schemes=("https",)).fetch("s3://bucket/key")
