"""Decompression of a batch in bounded memory: gzip, snappy, LZ4 and Zstandard."""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from kafka import codec
from kafka.record.default_records import DefaultRecordBatch

_CHUNK = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_XERIAL_HEADER_BYTES = 16
_PREAMBLE_BYTES = 5
"""Of raw snappy: the size that it expands to, 7 bits in each byte."""


class BrokenError(Exception):
    """Compressed bytes that are not what their codec says."""


def expand(kind: int, packed: memoryview, limit: int) -> tuple[bytearray, bool]:
    """Expand a batch's records up to about `limit` bytes, and tell whether that is all of them.

    `kind` is Kafka's number of the codec. Raises BrokenError. At most 256 KiB more than `limit` is
    expanded.
    """
    data = bytearray()
    try:
        for part in _CODECS[kind](packed, limit):
            data += part
            if len(data) > limit:
                return data, False
    except _TooLargeError:
        return data, False
    except Exception as error:  # each codec has errors of its own
        raise BrokenError(f"{type(error).__name__} of the codec") from error
    return data, True


class _TooLargeError(Exception):
    """The next part alone is above the limit."""


def _gzip(packed: memoryview, _limit: int) -> Iterator[bytes]:
    rest: Any = packed
    while rest:
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            part = member.decompress(rest, _CHUNK)
            rest = member.unconsumed_tail
            if not part and not rest and not member.eof:
                raise EOFError
            yield part
        rest = member.unused_data


def _lz4(packed: memoryview, _limit: int) -> Iterator[bytes]:
    frame = codec.lz4.LZ4FrameDecompressor()
    rest = bytes(packed)
    while not frame.eof:
        part = frame.decompress(rest, _CHUNK)
        rest = b""
        if not part and frame.needs_input and not frame.eof:
            raise EOFError
        yield part


def _zstd(packed: memoryview, _limit: int) -> Iterator[bytes]:
    source = io.BytesIO(packed)
    with codec.zstd.ZstdDecompressor().stream_reader(source, read_across_frames=True) as reader:
        while part := reader.read(_CHUNK):
            yield part


def _snappy(packed: memoryview, limit: int) -> Iterator[bytes]:
    """Blocks in the framing of Java's library, or one raw block."""
    raw = bytes(packed)
    if not codec._detect_xerial_stream(raw):  # noqa: SLF001
        yield _snappy_block(raw, limit)
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        at += 4
        if at + size > len(raw):
            raise EOFError
        yield _snappy_block(raw[at : at + size], limit)
        at += size


def _snappy_block(block: bytes, limit: int) -> bytes:
    """Expand a block. Its preamble says how much it is, and the library holds it to that."""
    size = 0
    for number, byte in enumerate(block[:_PREAMBLE_BYTES]):
        size |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:  # noqa: PLR2004 - the last one
            break
    if size > limit:
        raise _TooLargeError
    expanded: bytes = codec.snappy.decompress(block)
    return expanded


_CODECS: dict[int, Callable[[memoryview, int], Iterator[bytes]]] = {
    DefaultRecordBatch.CODEC_GZIP: _gzip,
    DefaultRecordBatch.CODEC_SNAPPY: _snappy,
    DefaultRecordBatch.CODEC_LZ4: _lz4,
    DefaultRecordBatch.CODEC_ZSTD: _zstd,
}
