from datetime import UTC, datetime, timedelta

import pytest

from worker.errors import BadEvent, DeadLetterReason
from worker.events import DeadLetter
from worker.records import Position, Record
from worker.stream.copying import Copied
from worker.stream.dead_letters import HEADERS_BYTES, VALUE_BYTES, dead_letter
from worker.stream.replay import MARK, Choice, Part, _marked, _whole

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


def letter(value=b"{", key: bytes | None = b"key", headers=()):
    record = Record(Position("uploads", 3, 14, 1), key, value, tuple(headers), NOW, NOW)
    error = BadEvent(DeadLetterReason.NOT_JSON, "the value is not JSON")
    outgoing = dead_letter(record, error, "dlq")
    return DeadLetter.model_validate_json(outgoing.value), outgoing.headers


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"key", b"{", ()),
        (None, b"{", (("trace", b"\xff\x00"), ("trace", b"2"))),
        (b"", b"x" * VALUE_BYTES, ()),
        (b"key", None, (("__connect.errors.topic", b"of another's dead letter"),)),
        (b"key", b"", (("copysieve.headers.other", b""),)),
    ],
)
def test_a_small_record_is_restored_from_its_letter_alone(key, value, headers):
    assert _whole(*letter(value, key, headers)) == Copied(key, value, headers)


@pytest.mark.parametrize(
    "record",
    [
        {"value": b"x" * (VALUE_BYTES + 1)},
        {"key": b"x" * (VALUE_BYTES + 1)},
        {"headers": (("h", b"x" * HEADERS_BYTES),)},
        {"headers": (("odd\\xff", b""),)},
    ],
)
def test_what_the_letter_does_not_tell_is_looked_for_elsewhere(record):
    assert _whole(*letter(**record)) is None


def test_a_letter_that_was_changed_is_not_believed():
    told, headers = letter()
    assert _whole(told.model_copy(update={"value_base64": "AAAA"}), headers) is None
    assert _whole(told.model_copy(update={"value_base64": "%"}), headers) is None


def test_a_replayed_record_has_one_mark():
    told, _ = letter()
    once = _marked(Copied(b"k", b"v", (("a", b"1"), (MARK, b"uploads/0/1"))), told.source)
    assert once.headers == (("a", b"1"), (MARK, b"uploads/3/14"))


def test_letters_are_chosen_by_reason_and_time():
    told, _ = letter()
    at = told.failed_at
    reasons = frozenset({DeadLetterReason.NOT_JSON})
    assert Choice().takes(told)
    assert Choice(reasons, since=at, until=at + HOUR).takes(told)
    assert not Choice(frozenset({DeadLetterReason.TOO_LARGE})).takes(told)
    assert not Choice(since=at + HOUR).takes(told)
    assert not Choice(until=at).takes(told)


def test_uploads_are_chosen_by_timestamp():
    at = int(NOW.timestamp() * 1000)
    part = Part(since=NOW, until=NOW + HOUR)
    assert [part.takes(at + ms) for ms in (-1, 0, 3_599_999, 3_600_000)] == [
        False,
        True,
        True,
        False,
    ]
    assert Part().takes(2**62)
