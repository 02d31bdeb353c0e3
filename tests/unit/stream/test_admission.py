import contextlib
import hashlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import BadEvent, DeadLetterReason, Unscreenable
from worker.events import UploadEvent
from worker.records import Position, Record, Unreadable, Upload
from worker.stream import admission

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MIB = 1024 * 1024
IMAGE = ("content-type", b"image/png")
LONG = b"A" * 8192
DIGEST = hashlib.sha256(bytes(3)).hexdigest()
"""Of the image AAAA, in base64."""


def record(value, headers=(), key=b"key"):
    return Record(Position("t", 0, 1, 1), key, value, tuple(headers), NOW, NOW)


def event(**fields):
    return json.dumps(fields).encode()


def refused(value, headers=(), key=b"key", limit=MIB):
    with pytest.raises(BadEvent) as caught:
        admission.read(record(value, headers, key), limit)
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
    assert upload.sha256 == "a" * 64


def test_a_byte_order_mark_and_capital_digits_are_no_harm():
    value = b"\xef\xbb\xbf" + event(upload_id="u", image_base64="AAAA", sha256="A" * 64)
    upload = admission.read(record(value), MIB)
    assert (upload.upload_id, upload.sha256) == ("u", "a" * 64)


def test_a_digest_that_is_none_is_named():
    error = refused(event(upload_id="u", image_base64="AAAA", sha256="a" * 63))
    assert str(error) == "sha256: expected 64 hex digits"


@pytest.mark.parametrize("told", [None, DIGEST, DIGEST.upper()])
def test_bytes_of_the_digest_that_the_event_gives_pass(told):
    upload = admission.read(record(event(upload_id="u", image_base64="AAAA", sha256=told)), MIB)
    admission.verify_digest(upload, DIGEST)


def test_bytes_of_another_digest_are_not_screened():
    upload = admission.read(record(event(upload_id="u", image_base64="AAAA", sha256=DIGEST)), MIB)
    with pytest.raises(Unscreenable) as caught:
        admission.verify_digest(upload, "0" * 64)
    assert caught.value.reason == "digest_mismatch"
    assert str(caught.value) == f"the image's sha256 is {'0' * 64}, the event says {DIGEST}"


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
    assert (upload.upload_id, upload.image) == (upload_id, b"bytes")


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
        (event(upload_id="u", image_url="https://a/b", sha256="a" * 63), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256="a" * 65), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256="g" * 64), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256="a" * 64 + "\n"), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256="\u0661" * 64), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256=""), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", sha256=7), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", uploaded_at="2026-01-01"), "invalid_event"),
        (event(upload_id="u", image_url="https://a/b", attributes={"a": 1}), "invalid_event"),
        (
            event(upload_id="u", image_url="https://a/b", attributes={"a": "b" * 9000}),
            "invalid_event",
        ),
        (event(upload_id="u", image_base64="%%%"), "bad_base64"),
        (event(upload_id="u", image_base64="AAA"), "bad_base64"),
        # What two readers of JSON read differently.
        (b'{"upload_id":"u","upload_id":"v","image_base64":"AAAA"}', "invalid_event"),
        (b'{"upload_id":"u","upload\\u005fid":"v","image_base64":"AAAA"}', "invalid_event"),
        (b'{"upload_id":"u","image_base64":"AAAA","image_base64":"BBBB"}', "invalid_event"),
        (
            b'{"upload_id":"u","image_url":"https://a/b","image_url":"https://a/c"}',
            "invalid_event",
        ),
        (
            b'{"upload_id":"u","image_base64":"AAAA","attributes":{"a":"1","a":"2"}}',
            "invalid_event",
        ),
        (b'{"upload_id":"u","image_base64":"AAAA","own":[{"a":1,"a":2}]}', "invalid_event"),
        (
            b'{"upload_id":"u","image_base64":"' + LONG + b'","upload_id":"v","b":"' + LONG + b'"}',
            "invalid_event",
        ),
        (
            b'{"upload_id":"u","image_base64":"'
            + LONG.replace(b"A", b'\\"upload_id\\":', 1)
            + b'","upload_id":"v"}',
            "invalid_event",
        ),
        (b'{"upload_id":"u","image_base64":"AAAA","own":NaN}', "not_json"),
        (b'{"upload_id":"u","image_base64":"AAAA","own":[-Infinity]}', "not_json"),
        # What breaks readers.
        (b'{"upload_id":"u","own":' + b"[" * 5000 + b"]" * 5000 + b"}", "not_json"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not_json"),
        (b'{"upload_id":"u","own":' + b"9" * 1_000_000 + b"}", "not_json"),
        (b'{"upload_id":' + b"9" * 4000 + b',"image_base64":"AAAA"}', "invalid_event"),
        (b'{"upload_id":"\\ud800","image_base64":"AAAA"}', "not_json"),
        (b'{"upload_id":"u","own":"\\ud800","image_base64":"AAAA"}', "not_json"),
        (b'{"upload_id":"\xff","image_base64":"AAAA"}', "not_json"),
        (b'{"upload_id":"u","own":"\xff","image_base64":"AAAA"}', "not_json"),
        (event(upload_id="u", image_base64="AAAA").decode().encode("utf-16"), "not_json"),
        (event(upload_id="u", image_base64="AAAA") + b"{}", "not_json"),
        (event(upload_id="a\x00b", image_base64="AAAA"), "invalid_event"),
        (event(upload_id="a\nb", image_base64="AAAA"), "invalid_event"),
        (event(upload_id="u" * 513, image_base64="AAAA"), "invalid_event"),
        (event(upload_id="u", image_base64="AAAA", tenant="a\x00"), "invalid_event"),
        (event(upload_id="u", image_base64="\u00e9" * 4), "bad_base64"),
        # Wrong types.
        (event(upload_id=None, image_base64="AAAA"), "invalid_event"),
        (event(upload_id=["u"], image_base64="AAAA"), "invalid_event"),
        (event(upload_id="u", image_base64=7), "invalid_event"),
        (event(upload_id="u", image_base64="AAAA", uploaded_at=1_700_000_000), "invalid_event"),
        (event(upload_id="u", image_base64="AAAA", attributes=["a"]), "invalid_event"),
        (event(upload_id="u", image_base64="AAAA", attributes={"a": None}), "invalid_event"),
        (b"7", "invalid_event"),
        (b"null", "invalid_event"),
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
        ([IMAGE], b"a\x00b", "invalid_event"),
        ([IMAGE, ("upload-id", b"a\x1bb")], b"k", "invalid_event"),
        ([IMAGE, ("tenant", b"\xff")], b"k", "invalid_event"),
        ([IMAGE, ("tenant", b"t" * 513)], b"k", "invalid_event"),
        ([IMAGE, ("upload-id", b"a"), ("Upload-Id", b"b")], b"k", "invalid_event"),
        ([IMAGE, ("content-type", b"application/json")], b"k", "invalid_event"),
        ([IMAGE, ("tenant", None), ("tenant", b"t")], b"k", "invalid_event"),
        ([IMAGE, *[("h", b"")] * 2_000_000], b"k", "too_large"),
    ],
)
def test_what_is_no_image_record(headers, key, reason):
    assert refused(b"bytes", headers, key).reason == reason


def test_a_header_may_be_there_twice_if_it_says_the_same():
    twice = [IMAGE, ("Content-Type", b"image/png"), ("trace", b"1"), ("trace", b"2")]
    assert admission.read(record(b"bytes", twice), MIB).upload_id == "key"


@pytest.mark.parametrize(
    "time", ["2026-01-01T00:00:00", "2026-01-01T00:00:00-23:59:59.999999", "soon", "\x00"]
)
def test_a_time_that_is_none_does_no_harm_to_an_image(time):
    upload = admission.read(record(b"bytes", [IMAGE, ("ce_time", time.encode())]), MIB)
    assert upload.uploaded_at is None


def test_long_images_with_equal_parts_and_odd_fields_are_taken():
    """What is cut out before the second look may be there more than once."""
    value = b'{"upload_id":"u","own":"' + LONG + b'","image_base64":"' + LONG + b'"}'
    assert admission.read(record(value), MIB).image == bytes(8192 * 3 // 4)


SOME = b'{"upload_id":"u","image_base64":"AAAA","own":'
MANY = b'{"upload_id":"u","image_base64":"' + b"A" * (4 * MIB) + b'","own":'


@pytest.mark.parametrize(
    "own",
    [
        b"[" + b"[]," * (350_000 * 4) + b"[]]",
        b"[" + b"{}," * (350_000 * 4) + b"{}]",
        b'{"a":[' + b"1," * MIB + b"1]}",
        b'"' + b"x" * MIB + b'"',
        b" " * MIB + b"1",
    ],
)
@pytest.mark.parametrize("before", [SOME, MANY])
def test_what_is_large_beside_its_image_is_refused(before, own):
    error = refused(before + own + b"}", limit=16 * MIB)
    assert error.reason == "invalid_event"
    assert str(error) == f"more than {MIB} bytes beside image_base64"


def test_structure_by_the_million_is_refused_before_anything_is_made_of_it(monkeypatch):
    monkeypatch.setattr(UploadEvent, "model_validate_json", None)
    assert refused(SOME + b"[" + b"[]," * MIB + b"1]}", limit=16 * MIB).reason == "invalid_event"


def test_what_is_large_is_the_image():
    """Slashes may be escaped, as PHP does."""
    for slash in (b"/", b"\\/"):
        image = (b"A" * 63 + slash) * (10 * MIB // 64)
        value = b'{"own":"' + b"x" * (MIB // 2) + b'","upload_id":"u","image_base64":"'
        read = admission.read(record(value + image + b'"}'), 16 * MIB)
        assert len(read.image or b"") == 10 * MIB // 4 * 3


def test_a_record_above_the_limit_is_named_by_its_size():
    assert str(refused(b"x" * 100, [("h", b"1")], limit=50)) == (
        "a record of 105 bytes, limits.record_bytes is 50"
    )


def test_a_record_that_could_not_be_unpacked_has_the_reason_why():
    error = refused(Unreadable(DeadLetterReason.UNREADABLE, "a broken batch"), [IMAGE])
    assert (error.reason, str(error)) == ("unreadable", "a broken batch")


def test_the_detail_never_holds_the_value():
    secret = "https://host/path?signature=secret"
    error = refused(event(upload_id="u", image_url=secret + " ", sha256=secret))
    assert "secret" not in str(error)


RAW = ("content-type", b"image/jpeg")


@pytest.mark.parametrize(
    ("value", "headers", "key"),
    [
        (event(upload_id="canary:1", image_base64="AAAA"), [], b"key"),
        (b'{"upload_id": "\\u0063anary:1", "image_base64": "AAAA"}', [], b"key"),
        (b"bytes", [RAW], b"canary:1"),
        (b"bytes", [RAW, ("Upload-Id", b"canary:")], b"key"),
    ],
)
def test_a_canarys_id_is_for_canaries_alone(value, headers, key):
    """The same records are uploads to a replica that takes their signature for its own."""
    asked = []

    def signer_of(upload_id, signed, signature):
        asked.append((upload_id, signed, signature))
        known = {b"ours": admission.Signer.OURS, b"theirs": admission.Signer.ANOTHER}
        return known.get(signature, admission.Signer.NOBODY)

    assert refused(value, headers, key).reason == "reserved_id"
    assert refused(value, [*headers, ("copysieve-canary", b"ours")], key).reason == "reserved_id"
    for signature, header in ((b"", []), (b"x", [("copysieve-canary", b"x")])):
        with pytest.raises(BadEvent) as caught:
            admission.read(record(value, [*headers, *header], key), MIB, signer_of)
        assert caught.value.reason == "reserved_id"
        assert asked[-1][1:] == (value, signature)
    signed = record(value, [*headers, ("Copysieve-Canary", b"ours")], key)
    upload = admission.read(signed, MIB, signer_of)
    assert upload.is_canary
    assert upload.upload_id == asked[-1][0]
    theirs = record(value, [*headers, ("copysieve-canary", b"theirs")], key)
    assert not admission.read(theirs, MIB, signer_of).is_canary


def test_other_ids_need_no_signature():
    for upload_id in ("canary", "Canary:1", " canary:1", "a canary:1"):
        value = event(upload_id=upload_id, image_base64="AAAA")
        assert not admission.read(record(value, [("copysieve-canary", b"x")]), MIB).is_canary


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_an_upload_or_a_bad_event(value):
    with contextlib.suppress(BadEvent):
        assert isinstance(admission.read(record(value), MIB), Upload)
