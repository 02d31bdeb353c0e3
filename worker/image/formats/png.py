"""PNG and APNG: chunks.

Where a file breaks the specification, this module follows Chromium, whose decoder is the Rust crate
`png`. If Chromium refuses an animation because of its control chunks, the default image is
described.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from worker.image.color import in_order, is_finer_than_8_bits
from worker.image.formats.compose import Canvas, Disposal
from worker.image.formats.container import (
    MOST_PROFILE_BYTES,
    Box,
    Frame,
    Header,
    Malformed,
    bounded,
    shown_seconds,
)
from worker.image.formats.orientation import exif_orientation
from worker.image.formats.png_pixels import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    Layout,
    decode,
    is_known,
)
from worker.image.profiles import SRGB_TRANSFER, profile_of_cicp, profile_of_gamma

_FIRST_CHUNK, _SECOND_CHUNK = 8, 33
_IHDR = struct.Struct(">IIBBBBB")
_FCTL = struct.Struct(">IIIIIHHBB")
_CHUNK = struct.Struct(">I4s")
_SHORTEST_TRNS = {GREY: 2, RGB: 6, PALETTE: 1}
_LENGTHS = {
    b"acTL": (8, 8),
    b"cHRM": (32, 32),
    b"cICP": (4, 4),
    b"eXIf": (0, 2**31),
    b"gAMA": (4, 4),
    b"iCCP": (0, 2**31),
    b"PLTE": (3, 3 * 256),
    b"sRGB": (1, 1),
    b"tRNS": (1, 256),
}
"""Of the chunks that are looked at: the least and the most bytes that one may have."""
_NUMBERS = range(1, 2**31)
_KEYWORD = range(1, 81)
"""Bytes of the name of an `iCCP`. The specification has at most 79, Chromium 80."""
_ICC_SIGNATURE = slice(36, 40)
_DEEP = 16
_INTENTS = 4
_WORTH_A_VIEW = 1024
_UNIT = 100_000
"""Of gamma and chromaticities."""
_DISPOSALS: tuple[Disposal, ...] = ("keep", "clear", "restore")
_REPLACE, _OVER = 0, 1
_DELAY_UNIT = 100


class _Control(NamedTuple):
    """An `fcTL`: where a frame goes, for how long and how."""

    box: Box
    seconds: float
    disposal: Disposal
    over: bool


type _Pixels = tuple[_Control, list[bytes]]
"""A frame of an animation: its `fcTL`, and what is in its IDAT or `fdAT`."""


@dataclass(slots=True)
class _Image:
    """What stands before the pixels, and the pixels of the one image that every PNG has.

    `chunks` are the ancillary ones that count, by name. `next` is where the chunk behind the pixels
    is. `intact`: neither cut nor of a wrong checksum. `more`: the file goes on behind the pixels.
    """

    size: tuple[int, int]
    layout: Layout
    chunks: dict[bytes, bytes]
    controls: list[bytes]
    pixels: list[bytes] = field(default_factory=list)
    next: int = 0
    intact: bool = True
    more: bool = True


@dataclass(slots=True)
class _Animation:
    """Frames with their pixels.

    `whole`: as many as promised, with nothing wrong in their order. `more`: the file goes on behind
    the pixels of the last frame.
    """

    frames: list[_Pixels]
    plays: int
    more: bool
    whole: bool = False


def png(data: bytes, most_frames: int) -> Header:
    """Walk the chunks, up to one frame beyond `most_frames`. Raises Malformed."""
    image = _before_pixels(data)
    _read_pixels(data, image)
    animation = _animation(data, image, most_frames)
    chunks = image.chunks
    exif = chunks.get(b"eXIf", b"")
    orientation = exif_orientation(exif) if exif[:2] in (b"II", b"MM") else 1
    if animation is None:
        ended = _is_ended(data, image.next)
        return Header(
            *image.size,
            lambda _target: _still(image),
            orientation=orientation,
            truncated=not (image.intact and ended) or b"acTL" in chunks,
            profiles=_profiles(chunks, image.layout),
        )
    return Header(
        *image.size,
        lambda _target: _moving(image, animation),
        len(animation.frames),
        orientation=orientation,
        truncated=not animation.whole,
        profiles=_profiles(chunks, image.layout),
    )


def _still(image: _Image) -> Iterator[Frame]:
    """The one frame. Raises Malformed where there is not one row."""
    pixels = b"".join(image.pixels)
    picture, is_whole = decode(image.layout, image.size, pixels, more=image.more)
    if picture is None:
        raise Malformed("no pixels")
    yield Frame(picture, truncated=not is_whole)


def _moving(image: _Image, animation: _Animation) -> Iterator[Frame]:
    """Yield the frames as they are seen. A damaged frame shows the pixels that were decoded."""
    canvas, count = Canvas(image.size), len(animation.frames)
    grey = image.layout.color in (GREY, GREY_ALPHA)
    for number, (control, pixels) in enumerate(animation.frames):
        left, top, right, bottom = control.box
        size = right - left, bottom - top
        more = animation.more or number < count - 1
        picture, is_whole = decode(image.layout, size, b"".join(pixels), more=more)
        if picture is None and count == 1:
            raise Malformed("no pixels")
        shown = canvas.show(
            picture,
            control.box,
            over=control.over and number > 0 and image.layout.has_alpha,
            disposal=control.disposal,
            whole=is_whole,
        )
        if grey:  # a profile of greys is for greys alone
            shown = shown.convert("LA" if shown.mode == "RGBA" else "L")
        is_last = number == count - 1 and animation.plays
        seconds = inf if is_last else control.seconds
        yield Frame(shown, seconds if count > 1 else 0.0, truncated=not is_whole)


def _before_pixels(data: bytes) -> _Image:
    """Read the chunks before the first IDAT. Raises Malformed."""
    size, color, depth, interlaced = _header(data)
    chunks, controls = dict[bytes, bytes](), list[bytes]()
    for name, body, end in _chunks(data, _SECOND_CHUNK):
        if name == b"IDAT":
            palette = chunks.get(b"PLTE", b"")
            if color == PALETTE and not palette:
                break
            layout = Layout(color, depth, interlaced, palette, chunks.get(b"tRNS"))
            return _Image(size, layout, chunks, controls, next=body - 8)
        if name == b"fcTL":
            if _is_sound(data, body, end):
                controls.append(data[body:end])
        elif name in _LENGTHS:
            if _counts(name, data[body:end], color, chunks) and _is_sound(data, body, end):
                chunks[name] = data[body:end]
            elif name == b"PLTE":
                raise Malformed("a wrong palette")
        elif not name[0] & 0x20:  # another image, the end, or what no viewer knows
            raise Malformed("a chunk that must be understood")
    raise Malformed("no pixels, or no palette for them")


def _header(data: bytes) -> tuple[tuple[int, int], int, int, bool]:
    """Width and height, colour type, depth, and whether it is interlaced. Raises Malformed."""
    body = _FIRST_CHUNK + 8
    if data[_FIRST_CHUNK:body] != b"\0\0\0\x0dIHDR":
        raise Malformed("no header first")
    if not _is_sound(data, body, body + _IHDR.size):
        raise Malformed("a header of a wrong checksum")
    width, height, depth, color, compression, filters, interlace = _IHDR.unpack_from(data, body)
    if not is_known(color, depth) or compression or filters or interlace > 1:
        raise Malformed("a kind of pixels that does not exist")
    return (width, height), color, depth, interlace == 1


def _counts(name: bytes, contents: bytes, color: int, before: dict[bytes, bytes]) -> bool:
    """Whether a chunk may stand here and says something. The first that does is the one."""
    least, most = _LENGTHS[name]
    if name in before or not least <= len(contents) <= most:
        return False
    match name:
        case b"tRNS":
            shortest = _SHORTEST_TRNS.get(color, most + 1)
            return len(contents) >= shortest and (color != PALETTE or b"PLTE" in before)
        case b"acTL":
            return int.from_bytes(contents[:4]) in _NUMBERS and contents[4] < 128  # noqa: PLR2004 - so many plays are none
        case b"cICP":
            return b"PLTE" not in before and contents[2] == 0 and contents[3] <= 1
        case b"sRGB":
            return contents[0] < _INTENTS
    return name != b"gAMA" or any(contents)


def _read_pixels(data: bytes, image: _Image) -> None:
    """Read the run of IDAT. It ends at another chunk, and behind a wrong checksum."""
    for name, body, end in _chunks(data, image.next):
        if name != b"IDAT":
            image.next = body - 8
            return
        if end > body:
            image.pixels.append(data[body:end])
        if not _is_sound(data, body, end):
            image.more = end + 4 <= len(data)
            break
    else:
        image.more = False
    image.next = len(data)
    image.intact = False


def _animation(data: bytes, image: _Image, most_frames: int) -> _Animation | None:
    """Read the frames behind the first image; None where there are none, so that it is a still."""
    if b"acTL" not in image.chunks:
        return None
    promised, plays = struct.unpack(">II", image.chunks[b"acTL"])
    sequence = 0
    control = None
    for contents in image.controls:
        control = _control(contents, sequence, image.size)
        if control is None or control.box != (0, 0, *image.size):
            return None
        sequence += 1
    animation = _Animation([], plays, image.more)
    if control is not None:
        animation.frames.append((control, image.pixels))
    if image.intact:
        most = min(promised, most_frames + 1)
        ended = _read_frames(data, image, animation, sequence, most)
        count = len(animation.frames)
        animation.whole = (ended and count == promised) or count == most < promised
    return animation if animation.frames else None


def _read_frames(
    data: bytes, image: _Image, animation: _Animation, sequence: int, most: int
) -> bool:
    """Add at most `most` frames in all; whether they end with IEND, and not with an error.

    `sequence` is the number that the next `fcTL` or `fdAT` must have. As in Chromium, the checksum
    of an `fdAT` does not matter.
    """
    control: _Control | None = None
    pixels: list[bytes] | None = None
    frames = animation.frames
    for name, body, end in _chunks(data, image.next):
        if name != b"fdAT" and pixels is not None:  # which ends a run
            control = pixels = None
        if name == b"IEND":
            return end + 4 <= len(data)
        if name == b"fdAT":
            if control is None or data[body : body + 4] != sequence.to_bytes(4):
                return False
            if pixels is None:
                pixels = []
                frames.append((control, pixels))
            pixels.append(data[body + 4 : end])
            sequence += 1
        elif name == b"fcTL" and _is_sound(data, body, end):
            control = _control(data[body:end], sequence, image.size)
            if control is None or len(frames) == most:
                return False
            sequence += 1
        elif not _may_follow(name, data, body, end, image):
            return False
    animation.more = pixels is None
    return False


def _may_follow(name: bytes, data: bytes, body: int, end: int, image: _Image) -> bool:
    """Whether a chunk of another kind may stand between frames: any ancillary, one palette."""
    if name[0] & 0x20:
        return True
    if name != b"PLTE" or not _counts(name, data[body:end], image.layout.color, image.chunks):
        return False
    image.chunks[name] = b""  # no frame uses it
    return _is_sound(data, body, end)


def _control(contents: bytes, sequence: int, size: tuple[int, int]) -> _Control | None:
    """Parse an `fcTL`; None if it is invalid or does not have this sequence number."""
    if len(contents) != _FCTL.size:
        return None
    number, width, height, left, top, delay, unit, disposal, blending = _FCTL.unpack(contents)
    right, bottom = left + width, top + height
    fits = width and height and right <= size[0] and bottom <= size[1]
    known = disposal < len(_DISPOSALS) and blending in (_REPLACE, _OVER)
    if number != sequence or not fits or not known:
        return None
    milliseconds = 1000 * delay // (unit or _DELAY_UNIT)
    return _Control(
        (left, top, right, bottom),
        shown_seconds(milliseconds / 1000),
        _DISPOSALS[disposal],
        blending == _OVER,
    )


def _profiles(chunks: dict[bytes, bytes], layout: Layout) -> tuple[bytes, ...]:
    """Return the colour profiles in order of precedence: `cICP`, `iCCP`, `sRGB`, `gAMA`.

    Chromium applies the first. A viewer that does not support it applies the next. Raises Malformed
    where 16-bit pixels look other than their high bytes, which is all that is decoded.
    """
    found = list[bytes]()
    if b"cICP" in chunks:
        primaries, transfer, _, full_range = chunks[b"cICP"]
        profile = profile_of_cicp(primaries, transfer, full_range=bool(full_range))
        if profile or (primaries, transfer, full_range) == (1, SRGB_TRANSFER, 1):
            found.append(profile)
    icc = _icc(chunks.get(b"iCCP", b""))
    channels = 1 if layout.color in (GREY, GREY_ALPHA) else 3
    applied, *ignored = in_order(icc, channels, any_space=True)
    if applied:
        found.append(applied)
    if b"sRGB" not in chunks and b"gAMA" in chunks:
        gamma = int.from_bytes(chunks[b"gAMA"]) / _UNIT
        points = struct.unpack(">8I", chunks[b"cHRM"]) if b"cHRM" in chunks else None
        found.append(profile_of_gamma(gamma, points and [number / _UNIT for number in points]))
    profiles = tuple([*(found or [b""]), *ignored][:2])
    if layout.depth == _DEEP and any(map(is_finer_than_8_bits, profiles)):
        raise Malformed("a colour profile of low bits")
    return profiles


def _icc(contents: bytes) -> bytes:
    """The profile out of an `iCCP`; empty where it is damaged."""
    keyword, _, packed = contents.partition(b"\0")
    if len(keyword) not in _KEYWORD or packed[:1] != b"\0":  # the one compression
        return b""
    stream = zlib.decompressobj()
    try:
        icc = stream.decompress(packed[1:], MOST_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    is_whole = stream.eof or len(icc) > MOST_PROFILE_BYTES
    return bounded(icc) if is_whole and icc[_ICC_SIGNATURE] == b"acsp" else b""


def _is_ended(data: bytes, at: int) -> bool:
    """Whether there is an IEND."""
    return any(name == b"IEND" and end + 4 <= len(data) for name, _, end in _chunks(data, at))


def _is_sound(data: bytes, body: int, end: int) -> bool:
    """Whether a chunk's checksum is right."""
    view = memoryview(data) if end - body > _WORTH_A_VIEW else data
    return data[end : end + 4] == zlib.crc32(view[body - 4 : end]).to_bytes(4)


def _chunks(data: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, and where a chunk's contents are and end; the last may be cut short."""
    while at + 8 <= len(data):
        length, name = _CHUNK.unpack_from(data, at)
        at += 8
        yield name, at, min(at + length, len(data))
        at += length + 4
