import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import BadEvent
from worker.records import Position, Record, Upload
from worker.stream import admission

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MIB = 1024 * 1024


def record(value, headers=(), key=b"key"):
    return Record(Position("t", 0, 1, 1), key, value, tuple(headers), NOW, NOW)


def event(**fields):
    return json.dumps(fields).encode()


def refused(value, headers=(), key=b"key", limit=MIB):
    with pytest.raises(BadEvent) as caught:
        admission.image_bytes(admission.read(record(value, headers, key), limit))
    return caught.value


def test_a_json_event_with_all_its_fields():
    upload = admission.read(
        record(
            event(
                upload_id="u",
                image_url="https://example.org/a.jpg?sig=secret",
                tenant="t",
                uploaded_at="2026-01-01T00:00:00+01:00",
                sha256="a" * 64,
                attributes={"k": "v"},
                something="of the platform's own",
            )
        ),
        MIB,
    )
    assert (upload.upload_id, upload.tenant, dict(upload.attributes)) == ("u", "t", {"k": "v"})
    assert upload.image_url == "https://example.org/a.jpg?sig=secret"


def test_a_byte_order_mark_and_capital_digits_are_no_harm():
    value = b"\xef\xbb\xbf" + event(upload_id="u", image_base64="AAAA", sha256="A" * 64)
    assert admission.read(record(value), MIB).upload_id == "u"


@pytest.mark.parametrize(
    ("headers", "key", "upload_id"),
    [
        ([("content-type", b"image/jpeg")], b"key", "key"),
        ([("Content-Type", b"IMAGE/PNG; q=1"), ("upload-id", b"id")], b"key", "id"),
        ([("content-type", b"image/png"), ("upload-id", b"id")], None, "id"),
    ],
)
def test_a_raw_image_takes_its_id_from_the_header_or_the_key(headers, key, upload_id):
    upload = admission.read(record(b"bytes", headers, key), MIB)
    assert (upload.upload_id, admission.image_bytes(upload)) == (upload_id, b"bytes")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no_value"),
        (b"", "no_value"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[]", "invalid_event"),
        (event(image_base64="AAAA"), "missing_id"),
        (event(upload_id=""), "invalid_event"),
        (event(upload_id=7, image_base64="AAAA"), "invalid_event"),
        (event(upload_id="u"), "invalid_event"),
        (event(upload_id="u", image_base64="A", image_url="https://a/b"), "invalid_event"),
        (event(upload_id="u", image_url="file:///etc/passwd"), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256="x" * 200), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", uploaded_at="2026-01-01"), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", attributes={"a": 1}), "invalid_event"),
        (
            event(upload_id="u", image_url="https://a/b", attributes={"a": "b" * 9000}),
            "invalid_event",
        ),
        (event(upload_id="u", image_base64="%%%"), "bad_base64"),
        (event(upload_id="u", image_base64="AAA"), "bad_base64"),
    ],
)
def test_what_is_no_upload_event(value, reason):
    assert refused(value).reason == reason


@pytest.mark.parametrize(
    ("headers", "key", "reason"),
    [
        ([("content-type", b"image/png")], None, "missing_id"),
        ([("content-type", b"image/png")], b"k" * 600, "missing_id"),
        ([("content-type", b"image/png")], b"\xff", "invalid_event"),
        ([("content-type", b"\xff")], b"k", "invalid_event"),
        ([("content-type", b"application/cloudevents+json")], b"k", "invalid_event"),
    ],
)
def test_what_is_no_image_record(headers, key, reason):
    assert refused(b"bytes", headers, key).reason == reason


def test_a_record_above_the_limit_is_named_by_its_size():
    assert str(refused(b"x" * 100, limit=50)) == "a record of 103 bytes, limits.record_bytes is 50"


def test_the_detail_never_holds_the_value():
    secret = "https://host/path?signature=secret"
    error = refused(event(upload_id="u", image_url=secret + " ", sha256=secret))
    assert "secret" not in str(error)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_an_upload_or_a_bad_event(value):
    with contextlib.suppress(BadEvent):
        assert isinstance(admission.read(record(value), MIB), Upload)
