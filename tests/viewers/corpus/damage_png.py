"""PNG files that are cut, wrong or odd, and that viewers show all the same."""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    png_chunk,
    png_chunks,
    png_of,
    png_with,
    png_without,
)
from tests.viewers.corpus.case import SIZE, Case, Make
from tests.viewers.corpus.damage import UNDECODABLE, changed, cut


def pixels_of(data: bytes) -> bytes:
    return b"".join(one[8:-4] for one in png_chunks(data) if one[4:8] == b"IDAT")


def png_idat(change: Callable[[bytes], Sequence[bytes]]) -> Make:
    """Other chunks in place of the pixels."""

    def make(picture: Image.Image) -> bytes:
        data = writers.save(picture, "PNG")
        chunks = [one for one in png_chunks(data) if one[4:8] != b"IDAT"]
        return png_of([*chunks[:-1], *change(pixels_of(data)), chunks[-1]])

    return make


def _adler(stream: bytes) -> list[bytes]:
    return [png_chunk(b"IDAT", stream[:-4] + b"nope")]


def _no_adler(stream: bytes) -> list[bytes]:
    return [png_chunk(b"IDAT", stream[:-4])]


def _wrong_checksum(stream: bytes) -> list[bytes]:
    return [png_chunk(b"IDAT", stream, checksum=7)]


def _tiny(stream: bytes) -> list[bytes]:
    return [png_chunk(b"IDAT", stream[at : at + 64]) for at in range(0, len(stream), 64)]


def _empty_between(stream: bytes) -> list[bytes]:
    half = len(stream) // 2
    parts = (stream[:half], b"", stream[half:])
    return [png_chunk(b"IDAT", part) for part in parts]


def _text_between(stream: bytes) -> list[bytes]:
    half = len(stream) // 2
    first, second = png_chunk(b"IDAT", stream[:half]), png_chunk(b"IDAT", stream[half:])
    return [first, png_chunk(b"tEXt", b"a\0b"), second]


def _more_behind(stream: bytes) -> list[bytes]:
    return [png_chunk(b"IDAT", stream + bytes(500))]


def _window(stream: bytes) -> list[bytes]:
    """A window of 256 bytes is declared, and a larger one used."""
    head = bytes((0x08,)) + bytes((31 - 0x08 * 256 % 31,))
    return [png_chunk(b"IDAT", head + stream[2:])]


def _flipped(stream: bytes) -> list[bytes]:
    """A bit at three quarters is wrong."""
    changed_stream = bytearray(stream)
    changed_stream[len(stream) * 3 // 4] ^= 0x10
    return [png_chunk(b"IDAT", bytes(changed_stream))]


def filters(data: bytes, value: int) -> bytes:
    """A filter that does not exist, in the last rows."""
    rows = np.frombuffer(zlib.decompress(pixels_of(data)), np.uint8).copy()
    lines = rows.reshape(SIZE[1], -1)
    lines[-40:, 0] = value
    body = png_chunk(b"IDAT", zlib.compress(lines.tobytes()))
    return png_with(png_without(data, b"IDAT"), body, before=b"IEND")


def texts(count: int, size: int) -> Make:
    chunk = png_chunk(b"tEXt", b"comment\0" + b"x" * size)
    return changed("PNG", lambda data: png_with(data, *[chunk] * count))


def large_text(data: bytes) -> bytes:
    """Text of 64 MiB, in a few kilobytes."""
    return png_with(data, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20), 9)))


def wrong_length(data: bytes) -> bytes:
    """A text chunk whose length reaches beyond the end of the file."""
    chunk = bytearray(png_chunk(b"tEXt", b"a\0b"))
    chunk[:4] = struct.pack(">I", 1 << 30)
    return png_with(data, bytes(chunk), before=b"IEND")


def palette_index_beyond(picture: Image.Image) -> bytes:
    """Pixels beyond the end of a short palette are black."""
    data = writers.save(picture.quantize(256), "PNG")
    chunks = png_chunks(data)
    return png_of([
        png_chunk(b"PLTE", one[8:-4][: 200 * 3]) if one[4:8] == b"PLTE" else one for one in chunks
    ])  # fmt: skip


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Damage", kind, quirk, make, **more)


CASES = (
    *(
        _c("PNG", quirk, png_idat(change))
        for quirk, change in (
            ("wrong Adler-32", _adler),
            ("no Adler-32", _no_adler),
            ("pixels in chunks of 64 bytes", _tiny),
            ("an empty chunk among the pixels", _empty_between),
            ("bytes behind the compressed pixels", _more_behind),
        )
    ),
    _c("PNG", "wrong checksum of the pixels", png_idat(_wrong_checksum), known=False),
    _c("PNG", "text between the pixels", png_idat(_text_between), known=False),
    _c("PNG", "a compression window too small", png_idat(_window), known=False),
    _c(
        "PNG",
        "a wrong bit at three quarters",
        png_idat(_flipped),
        expected=UNDECODABLE,
        known=False,
    ),
    _c(
        "PNG",
        "an unknown filter in the last rows",
        changed("PNG", lambda d: filters(d, 7)),
        known=False,
    ),
    *(
        _c("PNG", f"cut at {share:.0%}", cut("PNG", share), known=share > 0.8)
        for share in (0.95, 0.6)
    ),
    _c("PNG", "without IEND", changed("PNG", lambda d: d[:-12])),
    _c("PNG", "wrong checksum of IEND", changed("PNG", lambda d: d[:-4] + b"nope")),
    _c("PNG", "bytes behind IEND", changed("PNG", lambda d: d + bytes(5000))),
    _c(
        "PNG",
        "wrong checksum of a text",
        changed("PNG", lambda d: png_with(d, png_chunk(b"tEXt", b"a\0b", checksum=7))),
    ),
    _c(
        "PNG",
        "wrong checksum of the header",
        changed("PNG", lambda d: png_of([png_chunks(d)[0][:-4] + b"nope", *png_chunks(d)[1:]])),
        known=False,
    ),
    _c("PNG", "3,000 text chunks", texts(3000, 10)),
    _c("PNG", "text of 4 MiB", texts(1, 4 << 20)),
    _c("PNG", "compressed text of 64 MiB", changed("PNG", large_text)),
    _c("PNG", "a length beyond the end, behind the pixels", changed("PNG", wrong_length)),
    _c(
        "PNG",
        "an unknown chunk that is no critical one",
        changed("PNG", lambda d: png_with(d, png_chunk(b"abCd", bytes(9)))),
    ),
    _c(
        "PNG",
        "an unknown critical chunk",
        changed("PNG", lambda d: png_with(d, png_chunk(b"ABCD", bytes(9)))),
        known=False,
    ),
    _c(
        "PNG",
        "a palette in a picture of true colour",
        changed("PNG", lambda d: png_with(d, png_chunk(b"PLTE", bytes(range(9))))),
    ),
    _c("PNG", "pixels beyond the palette", palette_index_beyond, known=False),
)
