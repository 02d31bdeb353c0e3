"""How batches of records are unpacked: in bounded memory, and so that none stops a consumer.

kafka-python expands a batch whole, whatever it expands to, and returns up to `max_records` records
from one poll, whatever they weigh; a batch that it cannot unpack it never gets past. Here a batch
is expanded up to a limit, one poll ends at a number of bytes, and records that cannot be read come
as `Unreadable`, one for each offset.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, Self

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

from worker.errors import DeadLetterReason
from worker.records import Unreadable
from worker.stream.expanding import BrokenError, expand

_MAGIC_AT = 16


BATCHES = 2
"""Times the largest record, what a batch may expand to. A producer fills a batch up to a limit of
its own, which is lower, or puts one larger record into it."""


def bound(consumer: KafkaConsumer, record_bytes: int, poll_bytes: int) -> None:
    """Bound what a consumer holds of one batch, expanded, and what one poll returns.

    These are `BATCHES` times `record_bytes`, and `poll_bytes` and one record.
    """
    fetcher = consumer._fetcher  # noqa: SLF001 - there is no public way
    fetcher.__class__ = _Fetcher
    fetcher.poll_bytes = poll_bytes
    fetcher.PartitionRecords = functools.partial(_Records, BATCHES * record_bytes)


class OddName(str):
    """A header name that is not UTF-8: the odd bytes escaped; `encode` gives those that came."""

    __slots__ = ("_raw",)
    _raw: bytes

    def __new__(cls, raw: bytes) -> Self:
        """Make the name of its bytes."""
        name = super().__new__(cls, raw.decode("utf-8", "backslashreplace"))
        name._raw = raw
        return name

    def encode(self, _encoding: str = "utf-8", _errors: str = "strict") -> bytes:
        """Return the bytes that came, whatever the encoding."""
        return self._raw


class _Fetcher(Fetcher):  # type: ignore[misc]
    """Ends a poll at `poll_bytes`; what is left stays for the next one."""

    poll_bytes: int
    _held_bytes = 0

    def _append(
        self,
        drained: dict[Any, list[Any]],
        part: "_Records",
        max_records: int,
        update_offsets: bool,  # noqa: FBT001 - the library's signature
    ) -> int:
        if not drained:  # a poll begins
            self._held_bytes = 0
        part.room = self.poll_bytes - self._held_bytes
        at = part.topic_partition if part else None
        before = len(drained.get(at, ()))
        taken: int = super()._append(drained, part, max_records, update_offsets)
        self._held_bytes += _size(drained.get(at, [])[before:])
        return max_records if self._held_bytes >= self.poll_bytes else taken


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The records that one fetch brought of a partition."""

    def __init__(self, batch_bytes: int, *arguments: Any, **named: Any) -> None:
        self._batch_bytes = batch_bytes
        self.room = 1
        super().__init__(*arguments, **named)

    def take(self, n: int | None = None) -> list[Any]:
        """Return the next `n` records, or those until `room` bytes are full; one at least."""
        self._maybe_raise_next_inline_exception()
        records: list[Any] = []
        size = 0
        try:
            for record in itertools.islice(self.record_iterator, n):
                records.append(record)
                size += _size([record])
                if size >= self.room:
                    break
        except Exception as error:
            if not records:
                raise
            self._next_inline_exception = error  # the next call raises it
        return records

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        unpacked: Iterator[Any] = super()._unpack_records(
            tp, _Batches(records, self._batch_bytes), *deserializers
        )
        return unpacked


class _Batches:
    """The batches of a fetch, as `_Batch`es; those of message formats before 2 as they are."""

    def __init__(self, records: Any, batch_bytes: int) -> None:
        self._records = records
        self._batch_bytes = batch_bytes

    def next_batch(self) -> Any:
        records = self._records
        raw = records._next_slice  # noqa: SLF001
        if raw is None or len(raw) <= _MAGIC_AT or raw[_MAGIC_AT] < 2:  # noqa: PLR2004
            return records.next_batch()
        records._cache_next()  # noqa: SLF001
        return _Batch(raw, self._batch_bytes)


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch of which what cannot be read is `Unreadable`, for every offset that it may have."""

    _buffer: bytearray
    _pos: int
    _num_records: int
    _decompressed: bool

    def __init__(self, buffer: Any, limit: int) -> None:
        super().__init__(buffer)
        self._limit = limit
        self._next_offset = self.base_offset
        self._rest: Unreadable | None = None
        self._view = memoryview(self._buffer)

    def _maybe_uncompress(self) -> None:
        if self._decompressed:
            return
        self._decompressed = True
        if self.compression_type == self.CODEC_NONE:
            return
        self._assert_has_codec(self.compression_type)
        packed = self._view[self._pos :]
        try:
            data, is_all = expand(self.compression_type, packed, self._limit)
        except BrokenError as error:
            data, is_all = bytearray(), True
            self._rest = Unreadable(DeadLetterReason.UNREADABLE, f"a broken batch: {error}")
        if not is_all:
            detail = f"in a batch that expands to more than {self._limit} bytes"
            self._rest = Unreadable(DeadLetterReason.TOO_LARGE, detail)
        self._buffer, self._view, self._pos = data, memoryview(data), 0

    def __next__(self) -> Any:
        if self.is_control_batch:
            return super().__next__()
        if self._next_record_index < self._num_records and self._next_offset <= self.last_offset:
            try:
                record = self._read_msg()
            except (ValueError, IndexError, CorruptRecordError):
                self._end_here()
            else:
                self._next_record_index += 1
                self._next_offset = record.offset + 1
                return record
        elif self._rest is None:
            raise StopIteration
        return self._next_unreadable()

    next = __next__

    def _end_here(self) -> None:
        """What follows cannot be read; where the batch was cut that is no wonder."""
        self._num_records = 0
        if self._rest is None:
            detail = "in a batch whose records break the format"
            self._rest = Unreadable(DeadLetterReason.UNREADABLE, detail)

    def _next_unreadable(self) -> Any:
        if self._next_offset > self.last_offset:
            raise StopIteration
        offset, self._next_offset = self._next_offset, self._next_offset + 1
        return DefaultRecord(
            0, offset, self.max_timestamp, self.timestamp_type, None, self._rest, []
        )

    def _read_msg(self) -> Any:
        """Read one record. Raises ValueError, IndexError or CorruptRecordError where it is none."""
        if self.is_control_batch:
            return super()._read_msg()
        view = self._view
        length, pos = decode_varint(view, self._pos)
        end = pos + length
        if length <= 0 or end > len(view):
            raise CorruptRecordError("a record beyond its batch")
        _, pos = decode_varint(view, pos)  # attributes, of which there are none
        passed, pos = decode_varint(view, pos)
        is_log_time = self.timestamp_type == self.LOG_APPEND_TIME
        timestamp = self.max_timestamp if is_log_time else self.first_timestamp + passed
        delta, pos = decode_varint(view, pos)
        key, pos = _field(view, pos)
        value, pos = _field(view, pos)
        count, pos = decode_varint(view, pos)
        if not 0 <= count <= length:
            raise CorruptRecordError(f"{count} headers")
        headers = []
        for _ in range(count):
            name, pos = _field(view, pos)
            content, pos = _field(view, pos)
            headers.append((_name(name or b""), content))
        offset = self.base_offset + delta
        if pos != end or offset < self._next_offset:
            raise CorruptRecordError("a record that is not where it should be")
        self._pos = pos
        return DefaultRecord(length, offset, timestamp, self.timestamp_type, key, value, headers)


def _field(view: memoryview, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(view, at)
    if length < 0:
        return None, at
    if at + length > len(view):
        raise CorruptRecordError("a field beyond its record")
    return bytes(view[at : at + length]), at + length


def _name(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return OddName(raw)


def _size(records: Iterator[Any] | list[Any]) -> int:
    """Bytes of keys, values and headers."""
    return sum(
        max(0, one.serialized_key_size)
        + max(0, one.serialized_value_size)
        + max(0, one.serialized_header_size)
        for one in records
    )
