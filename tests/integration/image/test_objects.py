"""Objects, from a local server that speaks as much of each store as a GET needs.

The endpoint and the metadata service both are that server: nothing asks the machine's own.
Objects are fetched by their URL where that is enough, else by the stores' client.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore, S3Store

from tests.fixtures.http_server import Server, answer
from worker.errors import FetchError, UnscreenedReason
from worker.image.fetch import Fetcher
from worker.settings import Fetch

LIMIT = 200_000
LOGIN = {"access_key_id": "key", "secret_access_key": "secret", "session_token": "token"}
AZURE: dict[str, object] = {"account_name": "account"}
SAS = "sv=2023-11-03&sp=r&sig=sec%2Bret%3D"
BY_URL: dict[str, tuple[str, dict[str, object]]] = {
    "s3 in public": ("s3", {"skip_signature": True}),
    "s3": ("s3", {**LOGIN}),
    "az in public": ("az", AZURE | {"skip_signature": True}),
    "az by account key": ("az", AZURE | {"account_key": "c2VjcmV0"}),
    "az by SAS": ("az", AZURE | {"sas_key": SAS}),
}
BY_HEADER: dict[str, tuple[str, dict[str, object]]] = {
    "az by token": ("az", AZURE | {"token": "secret"}),
    "gs": ("gs", {"bearer_token": "secret"}),
    "gs in public": ("gs", {"skip_signature": True}),
}
WAYS = BY_URL | BY_HEADER
"""Scheme and login."""
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"

HOSTS = ("evil.test", "127.0.0.1", "169.254.169.254", "localhost")
NAMED = ("bucket", *HOSTS)

type Build = Callable[..., Fetcher]


def stored(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    return answer(body, status, last_modified=DATE, etag='"1"', **headers)


@pytest.fixture
def objects(server: Server) -> Iterator[Build]:
    with contextlib.ExitStack() as stack:

        def build(way: str = "s3 in public", **settings: Any) -> Fetcher:
            scheme, login = WAYS.get(way, ("s3", {}))
            values = {
                "workers": 2,
                "deadline_seconds": 20,
                "allowed_schemes": ("https", scheme),
                "allowed_buckets": tuple(f"{scheme}://{name}" for name in NAMED),
            } | settings
            endpoint = {"base_url" if scheme == "gs" else "endpoint": server.url("")}
            if scheme == "s3":
                endpoint |= {"region": "us-east-1", "metadata_endpoint": server.url("/metadata")}
            return stack.enter_context(
                contextlib.closing(Fetcher(Fetch(**values), LIMIT, stores=endpoint | login))
            )

        yield build


def reason(objects: Fetcher, url: str) -> UnscreenedReason:
    with pytest.raises(FetchError) as caught:
        objects.fetch(url)
    assert "secret" not in str(caught.value)
    return caught.value.reason


EVERY_WAY = pytest.mark.parametrize("way", sorted(WAYS))


def spelt(way: str, name: str) -> str:
    """Google's client encodes more than need be."""
    return name.replace("/", "%2F").replace(".", "%2E") if WAYS[way][0] == "gs" else name


def url(way: str, rest: str) -> str:
    return f"{WAYS[way][0]}://{rest}"


@EVERY_WAY
def test_an_object_arrives_whole(server: Server, objects: Build, way: str) -> None:
    body = bytes(range(256)) * 700
    server.answers["/bucket/" + spelt(way, "folder/picture.jpg")] = stored(body)
    assert objects(way).fetch(url(way, "bucket/folder/picture.jpg")) == body
    assert [request.method for request in server.requests] == ["GET"]


@EVERY_WAY
def test_the_user_agent_is_the_settings(server: Server, objects: Build, way: str) -> None:
    server.answers["/bucket/picture"] = stored(b"bytes")
    objects(way, user_agent="Mozilla/5.0 (ours)").fetch(url(way, "bucket/picture"))
    assert [one.headers["user-agent"] for one in server.requests] == ["Mozilla/5.0 (ours)"]


@EVERY_WAY
def test_a_key_is_taken_by_the_letter(server: Server, objects: Build, way: str) -> None:
    server.answers["/bucket/" + spelt(way, "a%20b%3Fc%23d%2541.jpg")] = stored(b"bytes")
    assert objects(way).fetch(url(way, "bucket/a b?c#d%41.jpg")) == b"bytes"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", UnscreenedReason.FETCH_NOT_FOUND),
        ("401 Unauthorized", UnscreenedReason.FETCH_DENIED),
        ("403 Forbidden", UnscreenedReason.FETCH_DENIED),
        ("500 Internal Server Error", UnscreenedReason.FETCH_FAILED),
    ],
)
@EVERY_WAY
def test_statuses(
    server: Server, objects: Build, status: str, expected: UnscreenedReason, way: str
) -> None:
    server.answers["/bucket/secret"] = answer(b"", status)
    assert reason(objects(way), url(way, "bucket/secret")) is expected


@EVERY_WAY
def test_the_cap_holds_to_the_byte(server: Server, objects: Build, way: str) -> None:
    server.answers["/bucket/exact"] = stored(b"x" * LIMIT)
    server.answers["/bucket/above"] = stored(b"x" * (LIMIT + 1))
    server.answers["/bucket/declared"] = stored(b"", content_length=LIMIT + 1)
    ours = objects(way)
    assert len(ours.fetch(url(way, "bucket/exact"))) == LIMIT
    assert reason(ours, url(way, "bucket/above")) is UnscreenedReason.TOO_LARGE
    assert reason(ours, url(way, "bucket/declared")) is UnscreenedReason.TOO_LARGE


@EVERY_WAY
def test_a_short_body_fails(server: Server, objects: Build, way: str) -> None:
    response = stored(b"short", content_length=100)
    server.answers["/bucket/secret"] = lambda connection: connection.sendall(response)
    assert reason(objects(way), url(way, "bucket/secret")) is UnscreenedReason.FETCH_FAILED


@pytest.mark.parametrize("head", [b"", stored(b"", content_length=100_000)])
@EVERY_WAY
def test_slow_drips_end_at_the_deadline(
    server: Server, objects: Build, head: bytes, way: str
) -> None:
    server.answers["/bucket/secret"] = server.drip(head, b"x" if head else b"")
    ours = objects(way, deadline_seconds=0.5)
    assert reason(ours, url(way, "bucket/secret")) is UnscreenedReason.FETCH_TIMEOUT


def test_without_credentials_nothing_is_fetched(
    server: Server, objects: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain ends at the metadata service, here one that knows no role."""
    _no_credentials(monkeypatch)
    server.answers["/bucket/secret"] = stored(b"bytes")
    assert reason(objects("s3 by role"), "s3://bucket/secret") is UnscreenedReason.FETCH_FAILED
    assert {request.target.split("/")[1] for request in server.requests} == {"metadata"}


def test_a_metadata_service_that_hangs_ends_at_the_deadline(
    server: Server, objects: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_credentials(monkeypatch)
    server.answers["/metadata/latest/api/token"] = lambda _: server.stopping.wait()
    ours = objects("s3 by role", deadline_seconds=0.5)
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
@EVERY_WAY
def test_odd_keys_fail(server: Server, objects: Build, key: str, way: str) -> None:
    assert reason(objects(way), url(way, f"bucket/{key}")) is UnscreenedReason.FETCH_FAILED
    assert server.connections == 0


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    """Where the store sends everybody to."""
    other = Server("127.0.0.2")
    other.answers["/stolen"] = stored(b"bytes")
    yield other
    other.stop()


def redirect(server: Server, elsewhere: Server, status: str = "302 Found") -> None:
    location = f"http://127.0.0.2:{elsewhere.port}/stolen"
    server.answers["/bucket/key"] = answer(b"", status, location=location)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 T", "308 P"])
@pytest.mark.parametrize("way", sorted(BY_URL))
def test_what_is_fetched_by_its_url_follows_no_redirect(
    server: Server, elsewhere: Server, objects: Build, status: str, way: str
) -> None:
    redirect(server, elsewhere, status)
    assert reason(objects(way), url(way, "bucket/key")) is UnscreenedReason.FETCH_FAILED
    assert elsewhere.connections == 0
    told = server.requests[0].headers
    assert not told.keys() & {"authorization", "x-amz-security-token", "referer", "cookie"}


@pytest.mark.parametrize("way", sorted(BY_HEADER))
def test_a_login_by_header_stays_with_the_store(
    server: Server, elsewhere: Server, objects: Build, way: str
) -> None:
    """The client goes where it is sent; what it tells there is where it comes from."""
    redirect(server, elsewhere)
    assert objects(way).fetch(url(way, "bucket/key")) == b"bytes"
    assert ("authorization" in server.requests[0].headers) == ("public" not in way)
    (told,) = elsewhere.requests
    assert "secret" not in str(told)
    assert told.headers["referer"] == server.url("/bucket/key")
    assert not told.headers.keys() & {"authorization", "cookie"}


@pytest.mark.parametrize("way", ["s3", "az by SAS"])
def test_the_stores_own_client_takes_secrets_along(
    server: Server, elsewhere: Server, way: str
) -> None:
    """The control: why these are fetched by our own hands."""
    redirect(server, elsewhere)
    config: Any = WAYS[way][1] | {"endpoint": server.url("")}
    make = functools.partial(S3Store, region="us-east-1") if way == "s3" else AzureStore
    obstore.get(make("bucket", config=config, client_options={"allow_http": True}), "key")
    told = elsewhere.requests[0].headers
    stolen = told.get("x-amz-security-token") == "token", "sig=sec%2Bret" in told["referer"]
    assert stolen == (way == "s3", way != "s3")


def test_a_shared_access_signature_goes_to_its_store_by_the_letter(
    server: Server, objects: Build
) -> None:
    server.answers["/bucket/key"] = stored(b"bytes")
    assert objects("az by SAS").fetch("az://bucket/key") == b"bytes"
    assert [request.target for request in server.requests] == [f"/bucket/key?{SAS}"]


@pytest.mark.parametrize(
    ("variables", "query"),
    [
        ({"AZURE_STORAGE_SAS_TOKEN": f"?{SAS}", "AZURE_STORAGE_SAS_KEY": ""}, "sig=sec%2Bret%3D"),
        ({"AZURE_STORAGE_ACCESS_KEY": "c2VjcmV0", "AZURE_STORAGE_SAS_KEY": SAS}, "sr=b"),
        ({"AZURE_SKIP_SIGNATURE": "true", "AZURE_STORAGE_SAS_KEY": SAS}, ""),
    ],
)
def test_a_login_to_azure_is_that_of_the_environment(
    server: Server,
    fetcher: Callable[..., Fetcher],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    query: str,
) -> None:
    """Whichever it is, it is in the URL."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.url(""))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    server.answers["/bucket/key"] = answer(b"bytes")
    ours = fetcher(allowed_schemes=("az",), allowed_buckets=("az://bucket",))
    assert ours.fetch("az://bucket/key") == b"bytes"
    (request,) = server.requests
    assert query in request.target
    assert ("?" in request.target) == bool(query)
    assert "authorization" not in request.headers


@pytest.mark.parametrize("bucket", HOSTS)
@EVERY_WAY
def test_a_bucket_named_like_a_host_is_a_bucket(
    server: Server, objects: Build, bucket: str, way: str
) -> None:
    server.answers[f"/{spelt(way, bucket)}/key"] = stored(b"bytes")
    assert objects(way).fetch(url(way, f"{bucket}/key")) == b"bytes"


def test_buckets_are_held_to_the_list(server: Server, objects: Build) -> None:
    server.answers["/uploads/key"] = stored(b"bytes")
    server.answers["/private/key"] = stored(b"secret")
    ours = objects(allowed_buckets=("s3://uploads",), allowed_hosts=("private",))
    assert ours.fetch("s3://uploads/key") == b"bytes"
    for elsewhere in ("s3://private/key", "gs://uploads/key", "az://uploads/key"):
        assert reason(ours, elsewhere) is UnscreenedReason.FETCH_DENIED
    assert len(server.requests) == 1


def test_a_bucket_is_named_with_its_store(server: Server, objects: Build) -> None:
    """A role may read buckets of one name in two stores."""
    server.answers["/uploads/key"] = stored(b"bytes")
    ours = objects(allowed_schemes=("s3", "gs"), allowed_buckets=("s3://uploads", "gs://other"))
    assert reason(ours, "gs://uploads/key") is UnscreenedReason.FETCH_DENIED
    assert server.connections == 0


def test_the_fetcher_takes_object_urls(
    server: Server, fetcher: Callable[..., Fetcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the operator's environment, as in production."""
    monkeypatch.setenv("AWS_ENDPOINT", server.url(""))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    server.answers["/bucket/key"] = stored(b"bytes")
    ours = fetcher(allowed_schemes=("https", "s3"), allowed_buckets=("s3://bucket",))
    assert ours.fetch("S3://bucket/key") == b"bytes"
    with pytest.raises(FetchError, match="not allowed"):
        fetcher(allowed_schemes=("https",)).fetch("s3://bucket/key")
