"""Writers of animations in which every field may be anything: GIF, APNG, WebP and AVIF."""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.viewers.containers import png_chunk, png_of, riff_chunk, riff_chunks, riff_of

type Array = npt.NDArray[np.generic]

KEEP, BACKGROUND, PREVIOUS = 0, 1, 2
"""APNG's ways to dispose of a frame."""
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
BANDS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
_ANIMATION_FLAG, _ALPHA_FLAG = 0x02, 0x10


# -- GIF ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GifFrame:
    """`indices` is [height, width]. `delay` is in 1/100 s, `palette` [2**n, 3], n from 1 to 8."""

    indices: Array
    x: int = 0
    y: int = 0
    delay: int = 10
    disposal: int = 0
    transparent: int | None = None
    palette: Array | None = None
    interlaced: bool = False
    control: bool = True


def gif(
    width: int,
    height: int,
    frames: Sequence[GifFrame],
    palette: Array | None = None,
    *,
    background: int = 0,
    loops: int | None = 0,
    version: bytes = b"GIF89a",
    end: bytes = b"\x3b",
) -> bytes:
    """A GIF; `palette` is the global one, `loops` the count in the extension, None: without it."""
    flags = 0x70 if palette is None else 0xF0 | _bits(palette) - 1
    parts = [version, struct.pack("<HHBBB", width, height, flags, background, 0)]
    if palette is not None:
        parts.append(np.asarray(palette, np.uint8).tobytes())
    if loops is not None:
        parts.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loops) + b"\0")
    parts += [gif_frame(frame) for frame in frames]
    return b"".join(parts) + end


def gif_frame(frame: GifFrame) -> bytes:
    height, width = frame.indices.shape
    flags = 0x40 if frame.interlaced else 0
    local = b""
    if frame.palette is not None:
        flags |= 0x80 | _bits(frame.palette) - 1
        local = np.asarray(frame.palette, np.uint8).tobytes()
    head = b""
    if frame.control:
        clear = frame.transparent
        packed = (frame.disposal & 7) << 2 | (clear is not None)
        head = b"\x21\xf9\x04" + struct.pack("<BHBB", packed, frame.delay, clear or 0, 0)
    place = struct.pack("<BHHHHB", 0x2C, frame.x, frame.y, width, height, flags)
    indices = frame.indices
    if frame.interlaced:
        starts = ((0, 8), (4, 8), (2, 4), (1, 2))
        indices = np.concatenate([indices[start::step] for start, step in starts])
    return head + place + local + lzw(indices)


def _bits(palette: Array) -> int:
    return max(1, (len(palette) - 1).bit_length())


def lzw(indices: Array) -> bytes:
    """Coded without any word of several pixels, so that codes never grow: for speed."""
    values = np.asarray(indices, np.uint16).ravel()
    size = max(2, int(values.max(initial=0)).bit_length())
    clear, run = 1 << size, (1 << size) - 2
    padded = np.pad(values, (0, -len(values) % run), constant_values=0).reshape(-1, run)
    codes = np.hstack([np.full((len(padded), 1), clear, np.uint16), padded]).ravel()
    surplus = padded.size - len(values)
    codes = np.append(codes[: len(codes) - surplus], clear + 1)
    bits = (codes[:, None] >> np.arange(size + 1)) & 1
    body = np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()
    blocks = [body[at : at + 255] for at in range(0, len(body), 255)]
    return bytes((size,)) + b"".join(bytes((len(one),)) + one for one in blocks) + b"\0"


# -- APNG --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ApngFrame:
    """`pixels` is [height, width, bands], or [height, width] of one band."""

    pixels: Array
    x: int = 0
    y: int = 0
    numerator: int = 100
    denominator: int = 1000
    dispose: int = KEEP
    blend: int = 0


def apng(
    width: int,
    height: int,
    frames: Sequence[ApngFrame],
    color: int = RGBA,
    *,
    chunks: Sequence[bytes] = (),
    plays: int = 0,
    default: Array | None = None,
    count: int | None = None,
    depth: int = 8,
) -> bytes:
    """An APNG. With `default`, the default image is not in the animation."""
    number = 0
    parts = [
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)),
        png_chunk(b"acTL", struct.pack(">II", len(frames) if count is None else count, plays)),
        *chunks,
    ]
    if default is not None:
        parts.append(png_chunk(b"IDAT", _packed(default, depth)))
    for at, frame in enumerate(frames):
        parts.append(png_chunk(b"fcTL", frame_control(frame, number)))
        number += 1
        if at == 0 and default is None:
            parts.append(png_chunk(b"IDAT", _packed(frame.pixels, depth)))
        else:
            parts.append(
                png_chunk(b"fdAT", struct.pack(">I", number) + _packed(frame.pixels, depth))
            )
            number += 1
    return png_of([*parts, png_chunk(b"IEND", b"")])


def frame_control(frame: ApngFrame, number: int) -> bytes:
    height, width = frame.pixels.shape[:2]
    place = struct.pack(">IIIII", number, width, height, frame.x, frame.y)
    times = struct.pack(">HHBB", frame.numerator, frame.denominator, frame.dispose, frame.blend)
    return place + times


def _packed(pixels: Array, depth: int) -> bytes:
    """Compressed rows of samples of 1, 2, 4, 8 or 16 bits, without a filter."""
    height = len(pixels)
    if depth < 8:
        bits = (np.asarray(pixels, np.uint8)[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        samples = np.ascontiguousarray(pixels, ">u2" if depth == 16 else np.uint8)
        rows = np.frombuffer(samples.tobytes(), np.uint8).reshape(height, -1)
    return zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 1)


# -- WebP --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WebpFrame:
    """`x` and `y` are even. `blend` is False where the frame replaces what is below it."""

    image: Image.Image
    x: int = 0
    y: int = 0
    milliseconds: int = 100
    blend: bool = True
    dispose: bool = False
    lossless: bool = True


def webp(
    width: int,
    height: int,
    frames: Sequence[WebpFrame],
    *,
    background: bytes = b"\xff\xff\xff\xff",
    loops: int = 0,
    flags: int = _ANIMATION_FLAG | _ALPHA_FLAG,
) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = [
        riff_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + size),
        riff_chunk(b"ANIM", background + struct.pack("<H", loops)),
        *(riff_chunk(b"ANMF", webp_frame(frame)) for frame in frames),
    ]
    return riff_of(parts)


def webp_frame(frame: WebpFrame) -> bytes:
    stream = io.BytesIO()
    options = {"lossless": True} if frame.lossless else {"quality": 80}
    frame.image.save(stream, "WEBP", method=0, exact=True, **options)
    parts = [one for one in riff_chunks(stream.getvalue()) if one[:4] in _WEBP_PICTURE]
    numbers = (frame.x // 2, frame.y // 2, frame.image.width - 1, frame.image.height - 1)
    head = b"".join(one.to_bytes(3, "little") for one in (*numbers, frame.milliseconds))
    flags = (0 if frame.blend else 2) | frame.dispose
    return head + bytes((flags,)) + b"".join(parts)


_WEBP_PICTURE = (b"VP8 ", b"VP8L", b"ALPH")


# -- AVIF --------------------------------------------------------------------------------------


def avif(images: Sequence[Image.Image], milliseconds: Sequence[int]) -> bytes:
    """A sequence of whole frames, in video range.

    Chromium takes the frames of every sequence for video range, whatever the file says; libavif,
    and so the worker, believes the file. Both agree on files that say so.
    """
    stream = io.BytesIO()
    first, *rest = images
    options = {"speed": 10, "quality": 90, "range": "limited"}
    times = list(milliseconds)
    first.save(stream, "AVIF", save_all=True, append_images=rest, duration=times, **options)
    return without_times(stream.getvalue())


def without_times(data: bytes) -> bytes:
    """The sequence with creation and modification times of 0, so that files are equal each time."""
    changed = bytearray(data)
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.find(name)
        while at >= 0:  # a second track holds transparency
            size = 16 if data[at + 4] else 8  # two numbers, of 8 bytes in version 1
            changed[at + 8 : at + 8 + size] = bytes(size)
            at = data.find(name, at + 4)
    return bytes(changed)
