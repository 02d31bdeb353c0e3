import base64
import hashlib
from datetime import UTC, datetime

from worker.errors import BadEvent, DeadLetterReason
from worker.events import DeadLetter
from worker.records import Position, Record, Unreadable, record_bytes
from worker.stream.dead_letters import (
    HEADERS_BYTES,
    VALUE_BYTES,
    dead_letter,
    minimal_dead_letter,
    original_headers,
)
from worker.stream.publisher import RESULT_BYTES
from worker.stream.unpacking import OddName

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ERROR = BadEvent(DeadLetterReason.NOT_JSON, "the value is not JSON")


def letter(value, key=b"key", headers=()):
    record = Record(Position("uploads", 3, 14, 1), key, value, tuple(headers), NOW, NOW)
    outgoing = dead_letter(record, ERROR, "dlq")
    return outgoing, DeadLetter.model_validate_json(outgoing.value)


def test_a_small_value_is_kept_whole_with_its_key_and_headers():
    outgoing, told = letter(b"{", headers=[("trace", b"1"), ("none", None)])
    assert (outgoing.topic, outgoing.key) == ("dlq", b"key")
    assert base64.b64decode(told.value_base64) == b"{"
    headers = dict(outgoing.headers)
    assert headers["trace"] == b"1"
    assert headers["none"] == b""
    assert headers["__connect.errors.topic"] == b"uploads"
    assert headers["__connect.errors.partition"] == b"3"
    assert headers["__connect.errors.offset"] == b"14"
    assert headers["__connect.errors.exception.message"] == b"the value is not JSON"


def test_an_odd_header_name_is_escaped_for_other_readers():
    outgoing, _ = letter(b"{", headers=[(OddName(b"\xff"), b"v")])
    assert outgoing.headers[0][0].encode() == b"\\xff"


def test_a_large_value_is_told_by_size_and_digest():
    value = b"x" * (VALUE_BYTES + 1)
    _, told = letter(value)
    assert told.value_base64 is None
    assert told.value_bytes == len(value)
    assert told.value_sha256 == hashlib.sha256(value).hexdigest()


def test_whatever_comes_in_the_letter_fits_a_topic():
    worst = b"\x00" * VALUE_BYTES
    many = [("", b"")] * 100_000
    large = [("h", b"x" * HEADERS_BYTES)]
    for headers in (many, large):
        outgoing, _ = letter(worst, key=worst, headers=headers)
        size = len(outgoing.value) + sum(len(n) + len(v) + 8 for n, v in outgoing.headers)
        assert size < RESULT_BYTES
        assert "copysieve.headers.dropped" in dict(outgoing.headers)
    outgoing, told = letter(b"", key=worst + b"x")
    assert (outgoing.key, told.key_base64, told.key_bytes) == (None, None, VALUE_BYTES + 1)
    assert letter(b"", key=None)[1].key_bytes is None


def test_a_minimal_letter_has_coordinates_and_nothing_of_the_record():
    record = Record(Position("u" * 249, 3, 14, 1), b"key", b"x" * 10**6, (("h", b"v"),), NOW, NOW)
    outgoing = minimal_dead_letter(record.origin, "too large" * 1000, "dlq")
    told = DeadLetter.model_validate_json(outgoing.value)
    assert outgoing.key == b"u" * 249 + b"/3/14"
    assert (told.reason, told.key_base64, told.value_base64) == ("result_refused", None, None)
    assert (told.key_bytes, told.value_bytes, told.value_sha256) == (3, 10**6, None)
    assert original_headers(outgoing.headers) is None
    assert record_bytes(outgoing.key, outgoing.value, outgoing.headers) < 4096


def test_of_an_unreadable_record_the_letter_has_coordinates_and_the_reason():
    value = Unreadable(DeadLetterReason.TOO_LARGE, "in a batch that expands to more than 9 bytes")
    record = Record(Position("uploads", 3, 14, 1), None, value, (), NOW, NOW)
    outgoing = dead_letter(record, BadEvent(value.reason, value.detail), "dlq")
    told = DeadLetter.model_validate_json(outgoing.value)
    assert (told.value_bytes, told.value_sha256, told.value_base64) == (0, None, None)
    assert original_headers(outgoing.headers) is None, "so a replay asks the source"
