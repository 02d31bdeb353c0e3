"""Sending again: dead letters to the uploads topic, and uploads to another one.

Both take what is there when they begin, partition after partition, so that they end; and both send
at least once: after an interruption some records may be sent a second time.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from worker.errors import DeadLetterReason, StreamError
from worker.events import DeadLetter, Source
from worker.records import Headers, Unreadable
from worker.settings import Kafka
from worker.stream import client
from worker.stream.admin import Admin
from worker.stream.copying import Copied, OrderedSender, Span, TopicReader
from worker.stream.dead_letters import original_headers
from worker.stream.ledger import Partition

MARK = "copysieve-replayed-from"
"""Header of a dead letter's record that was sent again: the coordinates that it had before."""

type Fate = Literal["whole", "from_source", "gone", "changed", "unreadable"]
"""Of a dead letter: the letter holds the record; the source does; retention (or compaction) took
it; another record is at its coordinates now; the record cannot be unpacked."""
type OnProgress = Callable[[int], object]
"""Is told how many more offsets have been read."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters: of these reasons (none: all), failed from `since` to before `until`."""

    reasons: frozenset[DeadLetterReason] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether it is one of them; the limit aside."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
        )


class NotSent(NamedTuple):
    """A dead letter that cannot be sent again, by the coordinates of its record."""

    source: str
    why: Fate


@dataclass(slots=True)
class LettersReport:
    """What was found, and what came of it. `by_reason` counts the chosen ones."""

    by_reason: dict[str, dict[Fate, int]] = field(default_factory=dict)
    not_sent: list[NotSent] = field(default_factory=list)
    sent: int = 0
    repeated: int = 0
    of_other_topics: int = 0
    unreadable: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything that was chosen can be sent again."""
        return not self.not_sent and not self.unreadable

    def count(self, letter: DeadLetter, fate: Fate) -> None:
        """Count a chosen dead letter."""
        fates = self.by_reason.setdefault(
            letter.reason.value,
            {"whole": 0, "from_source": 0, "gone": 0, "changed": 0, "unreadable": 0},
        )
        fates[fate] += 1
        if fate in ("gone", "changed", "unreadable"):
            self.not_sent.append(NotSent(_coordinates(letter.source), fate))


class LettersReplay:
    """Sends dead letters to the uploads topic again. Raises StreamError."""

    def __init__(self, settings: Kafka, choice: Choice) -> None:
        self._settings = settings
        self._uploads = settings.topics.uploads
        self._choice = choice
        self._seen: set[tuple[int, int]] = set()
        self.report = LettersReport()
        servers, results = settings.bootstrap_servers, client.output_servers(settings)
        with ExitStack() as opened:
            self._letters = opened.enter_context(
                TopicReader(settings, results, settings.topics.dead_letters)
            )
            # One batch at a time: what is looked up lies here and there.
            self._source = opened.enter_context(
                TopicReader(settings, servers, self._uploads, fetch_bytes=1)
            )
            self._spans = list(self._letters.spans().values())
            self._source_spans = self._source.spans()
            self._opened = opened.pop_all()

    @property
    def total(self) -> int:
        """Offsets to read."""
        return _total(self._spans)

    def close(self) -> None:
        """Close the connections."""
        self._opened.close()

    def run(self, on_progress: OnProgress, *, dry_run: bool) -> None:
        """Find the chosen ones, restore their records, and send these, but in a dry run."""
        if dry_run:
            for _ in self._restored(on_progress):
                pass
            return
        with OrderedSender(self._settings, self._uploads) as sender:
            try:
                for record, at in self._restored(on_progress):
                    sender.send(record, Partition(at.topic, at.partition), at.offset)
                sender.settle()
            finally:
                sender.finish()
                self.report.sent = sender.taken

    def _restored(self, on_progress: OnProgress) -> Iterator[tuple[Copied, Source]]:
        """The records of the chosen dead letters, marked; what cannot be restored is counted."""
        for letter, headers in self._chosen(on_progress):
            fate: Fate = "whole"
            record = _whole(letter, headers)
            if record is None:
                fate, record = self._from_source(letter)
            self.report.count(letter, fate)
            if record is not None:
                yield _marked(record, letter.source), letter.source

    def _chosen(self, on_progress: OnProgress) -> Iterator[tuple[DeadLetter, Headers]]:
        count = 0
        for record in _records(self._letters, self._spans, on_progress):
            if count == self._choice.limit:
                return
            letter = self._read(record.value)
            if letter is not None and self._choice.takes(letter) and self._is_new(letter):
                count += 1
                yield letter, tuple(record.headers)

    def _read(self, value: bytes | None) -> DeadLetter | None:
        """Read a dead letter of this worker's uploads topic."""
        try:
            letter = DeadLetter.model_validate_json(value or b"")
        except ValidationError:
            self.report.unreadable += 1
            return None
        if letter.source.topic != self._uploads:
            self.report.of_other_topics += 1
            return None
        return letter

    def _is_new(self, letter: DeadLetter) -> bool:
        """A dead letter may be there twice, for results are delivered at least once."""
        at = (letter.source.partition, letter.source.offset)
        if at in self._seen:
            self.report.repeated += 1
            return False
        self._seen.add(at)
        return True

    def _from_source(self, letter: DeadLetter) -> tuple[Fate, Copied | None]:
        at = letter.source
        span = self._source_spans.get(at.partition)
        found = self._source.record_at(span, at.offset) if span else None
        if found is None:
            return "gone", None
        if isinstance(found.value, Unreadable):
            return "unreadable", None
        if not _is_of(letter, found.value):
            return "changed", None
        return "from_source", Copied(found.key, found.value, tuple(found.headers))


@dataclass(frozen=True, slots=True)
class Part:
    """Which uploads: of a partition, of offsets `start` to before `stop`, of timestamps."""

    partition: int | None = None
    start: int | None = None
    stop: int | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, timestamp: int) -> bool:
        """Whether a record's timestamp, in milliseconds, is in the range."""
        return (self.since is None or timestamp >= self.since.timestamp() * 1000) and (
            self.until is None or timestamp < self.until.timestamp() * 1000
        )


class UploadsReplay:
    """Copies uploads to another topic, byte for byte. Raises StreamError."""

    def __init__(self, settings: Kafka, to: str, part: Part) -> None:
        self._settings = settings
        self._to = to
        self._part = part
        self._uploads = settings.topics.uploads
        _require_room(settings, to)
        self.chosen = 0
        self.sent = 0
        self.taken_by_retention = 0
        with ExitStack() as opened:
            self._reader = opened.enter_context(
                TopicReader(settings, settings.bootstrap_servers, self._uploads)
            )
            self.spans = self._choose(self._reader.spans())
            self._opened = opened.pop_all()
        self.next_offsets = {span.partition: span.start for span in self.spans}

    @property
    def total(self) -> int:
        """Offsets to read."""
        return _total(self.spans)

    def close(self) -> None:
        """Close the connection."""
        self._opened.close()

    def run(self, on_progress: OnProgress, *, dry_run: bool) -> None:
        """Copy the chosen ones; a dry run only counts them."""
        if dry_run:
            for _ in self._chosen(on_progress):
                pass
            return
        with OrderedSender(self._settings, self._to) as sender:
            try:
                for raw in self._chosen(on_progress):
                    record = Copied(raw.key, raw.value, tuple(raw.headers), raw.timestamp)
                    sender.send(record, Partition(raw.topic, raw.partition), raw.offset)
                sender.settle()
            finally:
                sender.finish()
                self.sent = sender.taken
                self.next_offsets |= {p.number: o for p, o in sender.next_offsets.items()}

    def _choose(self, there: dict[int, Span]) -> list[Span]:
        part = self._part
        if part.partition is not None:
            if part.partition not in there:
                raise StreamError(f"topic {self._uploads} has no partition {part.partition}")
            there = {part.partition: there[part.partition]}
        first = self._reader.since(part.since) if part.since else {}
        spans = []
        for span in there.values():
            stop = min(span.stop, span.stop if part.stop is None else part.stop)
            start = max(span.start, part.start or 0)
            if part.start is not None:
                self.taken_by_retention += max(0, min(span.start, stop) - part.start)
            if part.since is not None:
                start = max(start, first.get(span.partition, stop))
            spans.append(Span(span.partition, min(start, stop), stop))
        return spans

    def _chosen(self, on_progress: OnProgress) -> Iterator[Any]:
        for record in _records(self._reader, self.spans, on_progress):
            if isinstance(record.value, Unreadable):
                at = f"{record.topic}/{record.partition}/{record.offset}"
                raise StreamError(f"{at} cannot be read ({record.value.detail}): go on behind it")
            if self._part.takes(record.timestamp):
                self.chosen += 1
                yield record


def _require_room(settings: Kafka, to: str) -> None:
    """Raises StreamError if there is no such topic, or it takes no record as large as uploads."""
    servers, uploads = settings.bootstrap_servers, settings.topics.uploads
    with Admin(settings, servers) as admin:
        if to not in admin.topics():
            raise StreamError(f"there is no topic {to} at {','.join(servers)}")
        topics = admin.settings([uploads, to])
    if {to, uploads} <= topics.keys():
        room, needed = topics[to].record_bytes, topics[uploads].record_bytes
        if room < needed:
            raise StreamError(
                f"topic {to} takes records of {room} bytes, {uploads} of {needed}:"
                " raise its max.message.bytes"
            )


def _records(reader: TopicReader, spans: Iterable[Span], on_progress: OnProgress) -> Iterator[Any]:
    for span in spans:
        at = span.start
        for record in reader.read(span):
            yield record
            on_progress(record.offset + 1 - at)
            at = record.offset + 1
        on_progress(span.stop - at)  # offsets of control records, or compacted


def _total(spans: Iterable[Span]) -> int:
    return sum(span.stop - span.start for span in spans)


def _coordinates(at: Source) -> str:
    return f"{at.topic}/{at.partition}/{at.offset}"


def _marked(record: Copied, at: Source) -> Copied:
    """The record with its mark; a mark of an earlier replay goes."""
    kept = tuple(header for header in record.headers if header[0] != MARK)
    return record._replace(headers=(*kept, (MARK, _coordinates(at).encode())))


def _whole(letter: DeadLetter, headers: Headers) -> Copied | None:
    """The record as the letter alone tells it; None where it does not tell all, or not rightly."""
    original = original_headers(headers)
    key = _decoded(letter.key_base64)
    value = _decoded(letter.value_base64)
    if (
        original is None
        or (key is None and letter.key_bytes is not None)
        or not _is_of(letter, value)
    ):
        return None
    return Copied(key, value, original)


def _decoded(text: str | None) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _is_of(letter: DeadLetter, value: bytes | None) -> bool:
    """Whether this is the value that the letter tells of."""
    digest = None if value is None else hashlib.sha256(value).hexdigest()
    return (len(value or b""), digest) == (letter.value_bytes, letter.value_sha256)
