"""Dead letters: records without a verdict, kept so that a person can look and replay.

The value is a `DeadLetter`; the headers are the original ones and, in Kafka Connect's dialect
(`__connect.errors.*`, UTF-8 strings), where the record came from and what was wrong with it.
"""

import base64
import hashlib
import re
from datetime import UTC, datetime

from worker.errors import BadEvent, DeadLetterReason
from worker.events import DETAIL_LENGTH, KEPT_BYTES, DeadLetter, Source
from worker.records import Headers, Origin, Record, Unreadable
from worker.stream.publisher import Outgoing

VALUE_BYTES = KEPT_BYTES
"""A larger value is told by its size and digest: no poison pill, no pictures where nobody looks."""
HEADERS_BYTES = 64 * 1024
_HEADER_OVERHEAD = 8
_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")
_DROPPED = "copysieve.headers.dropped"
_CONTEXT = tuple(
    f"__connect.errors.{name}"
    for name in (
        "topic",
        "partition",
        "offset",
        "class.name",
        "exception.class.name",
        "exception.message",
    )
)


def dead_letter(record: Record, error: BadEvent, topic: str) -> Outgoing:
    """What is published for `record`."""
    key, value = record.key, record.value
    if isinstance(value, Unreadable):
        # A letter that has dropped headers is never taken for the whole record.
        letter, dropped = _letter(record.origin, error), ((_DROPPED, b"all"),)
        headers = dropped + _context(letter, error)
        return Outgoing("dead_letter", topic, None, letter.model_dump_json().encode(), headers)
    letter = _letter(record.origin, error).model_copy(
        update={
            "key_base64": _small_base64(key),
            "value_base64": _small_base64(value),
            "value_sha256": None if value is None else hashlib.sha256(value).hexdigest(),
        }
    )
    return Outgoing(
        kind="dead_letter",
        topic=topic,
        key=key if key is not None and len(key) <= VALUE_BYTES else None,
        value=letter.model_dump_json().encode(),
        headers=_bounded(record.headers) + _context(letter, error),
    )


def minimal_dead_letter(origin: Origin, detail: str, topic: str) -> Outgoing:
    """What is published where Kafka refused the results of a record, whatever made it refuse them.

    Nothing of the record is in it but coordinates and sizes, so it has less than 4 KiB.
    The key is the coordinates, for a compacted topic takes no record without one.
    """
    error = BadEvent(DeadLetterReason.RESULT_REFUSED, detail)
    letter, at = _letter(origin, error), origin.position
    dropped = ((_DROPPED, str(origin.headers).encode()),) if origin.headers else ()
    return Outgoing(
        kind="dead_letter",
        topic=topic,
        key=f"{at.topic}/{at.partition}/{at.offset}".encode(),
        value=letter.model_dump_json().encode(),
        headers=dropped + _context(letter, error),
    )


def _letter(origin: Origin, error: BadEvent) -> DeadLetter:
    """The letter without what was in the record."""
    at = origin.position
    return DeadLetter(
        reason=error.reason,
        detail=str(error)[:DETAIL_LENGTH],
        source=Source(topic=at.topic, partition=at.partition, offset=at.offset),
        timestamp=origin.timestamp,
        failed_at=datetime.now(UTC),
        key_base64=None,
        key_bytes=origin.key_bytes,
        value_base64=None,
        value_bytes=origin.value_bytes,
        value_sha256=None,
    )


def _context(letter: DeadLetter, error: BadEvent) -> tuple[tuple[str, bytes], ...]:
    at = letter.source
    texts = (
        at.topic,
        str(at.partition),
        str(at.offset),
        type(error).__name__,
        error.reason.value,
        letter.detail,
    )
    return tuple((name, text.encode()) for name, text in zip(_CONTEXT, texts, strict=True))


def original_headers(headers: Headers) -> Headers | None:
    """The headers that a dead letter's record had; None where the letter cannot tell them all."""
    if tuple(name for name, _ in headers[-len(_CONTEXT) :]) == _CONTEXT:
        headers = headers[: -len(_CONTEXT)]
    if headers and headers[-1][0] == _DROPPED:
        return None
    return None if any(_ESCAPED.search(name) for name, _ in headers) else headers


def _small_base64(data: bytes | None) -> str | None:
    if data is None or len(data) > VALUE_BYTES:
        return None
    return base64.b64encode(data).decode("ascii")


def _bounded(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    """The original headers; what does not fit is named in a header of ours."""
    kept: list[tuple[str, bytes]] = []
    room, dropped = HEADERS_BYTES, 0
    for name, value in headers:
        room -= len(name.encode()) + len(value or b"") + _HEADER_OVERHEAD
        if room < 0:
            dropped += 1
        else:
            kept.append((str(name), value or b""))  # an odd name stays escaped, for other readers
    if dropped:
        kept.append((_DROPPED, str(dropped).encode()))
    return tuple(kept)
