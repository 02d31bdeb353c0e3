"""GIF: blocks.

Where a file breaks the specification, this module follows Chromium, whose decoder is Wuffs.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from worker.image.formats.compose import Canvas, Disposal
from worker.image.formats.container import Frame, Header, Malformed, shown_seconds
from worker.image.formats.gif_pixels import MOST_CODE_BITS, Pixels, decode

_SCREEN_BYTES = 13
_DESCRIPTOR_BYTES = 10
_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_CONTROL, _APPLICATION = 0xF9, 0xFF
_CONTROL_BYTES = 8
_LOOPS = (b"\x0bNETSCAPE2.0\x03\x01", b"\x0bANIMEXTS1.0\x03\x01")
_HAS_PALETTE, _INTERLACED, _HAS_TRANSPARENT = 0x80, 0x40, 0x01
_DISPOSALS: dict[int, Disposal] = {2: "clear", 3: "restore", 4: "restore"}
"""4 is what some encoders write for 3. All others keep the frame."""
_UNIT = 100
"""Of delays, in a second."""


@dataclass(frozen=True, slots=True)
class _Control:
    """A graphic control: how the image behind it is shown. `transparent` is an index, or None."""

    disposal: Disposal = "keep"
    seconds: float = shown_seconds(0)
    transparent: int | None = None


type _Image = tuple[Pixels, _Control]
"""One image of the file."""


@dataclass(slots=True)
class _Blocks:
    """The images of a file.

    `repeats` is how often the animation is repeated: 0 is forever, None is never. `ended` is
    whether the file ends with its trailer.
    """

    images: list[_Image]
    repeats: int | None = None
    ended: bool = False


def gif(data: bytes, most_frames: int) -> Header:
    """Walk the blocks up to one frame beyond `most_frames`. Raises Malformed."""
    found = _walk(data, most_frames + 1)
    if not found.images:
        raise Malformed("no frame")
    # Chromium makes the canvas large enough for the first frame.
    _, _, right, bottom = found.images[0][0].box
    width, height = struct.unpack_from("<HH", data, 6)
    width, height = max(width, right), max(height, bottom)
    areas = (pixels.box for pixels, _ in found.images)
    return Header(
        width,
        height,
        lambda _target: _frames(found, (width, height)),
        len(found.images),
        area=max((right - left) * (bottom - top) for left, top, right, bottom in areas),
        truncated=not found.ended,
    )


def _walk(data: bytes, most: int) -> _Blocks:
    """Walk up to so many images, the trailer, or what is no block."""
    everywhere = _palette(data, 10, _SCREEN_BYTES)
    at = _SCREEN_BYTES + len(everywhere)
    found, control = _Blocks([]), _Control()
    while at < len(data) and len(found.images) < most:
        if data[at] == _IMAGE:
            local = _palette(data, at + 9, at + _DESCRIPTOR_BYTES)
            start = at + _DESCRIPTOR_BYTES + len(local)
            if start + 1 >= len(data):
                return found
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            at = _after_blocks(data, start + 1)
            pixels = Pixels(
                (left, top, left + width, top + height),
                bool(flags & _INTERLACED),
                local if flags & _HAS_PALETTE else everywhere,
                control.transparent,
                data[start],
                data[start + 1 : at],
            )
            found.images.append((pixels, control))
            control = _Control()
            if data[start] > MOST_CODE_BITS:
                return found
        elif data[at] == _EXTENSION:
            label = data[at + 1] if at + 1 < len(data) else 0
            if label == _CONTROL:
                parsed = _control(data[at : at + _CONTROL_BYTES])
                if parsed is None:
                    return found
                control = parsed
            elif label == _APPLICATION and data[at + 2 : at + 16] in _LOOPS:
                found.repeats = int.from_bytes(data[at + 16 : at + 18], "little")
            at = _after_blocks(data, at + 2)
        else:
            found.ended = data[at] == _TRAILER
            return found
    found.ended = len(found.images) == most
    return found


def _palette(data: bytes, flags_at: int, at: int) -> bytes:
    """Return the palette at `at`, empty if the flags at `flags_at` announce none."""
    flags = data[flags_at] if flags_at < len(data) else 0
    return data[at : at + (3 << ((flags & 7) + 1))] if flags & _HAS_PALETTE else b""


def _control(extension: bytes) -> _Control | None:
    """Parse a graphic control; None if it is damaged, which ends the file in Chromium."""
    if len(extension) < _CONTROL_BYTES or extension[2] != 4 or extension[7] != 0:  # noqa: PLR2004 - its one block's length
        return None
    flags, delay, index = struct.unpack_from("<BHB", extension, 3)
    return _Control(
        _DISPOSALS.get(flags >> 2 & 7, "keep"),
        shown_seconds(delay / _UNIT),
        index if flags & _HAS_TRANSPARENT else None,
    )


def _after_blocks(data: bytes, at: int) -> int:
    """Each block is led by its length; a length of 0 ends them."""
    end = len(data)
    while at < end and data[at]:
        at += data[at] + 1
    return at + 1 if at < end else end


def _frames(found: _Blocks, size: tuple[int, int]) -> Iterator[Frame]:
    """Yield the frames as they are seen. A damaged frame shows the pixels that were decoded."""
    canvas, count = Canvas(size), len(found.images)
    for number, (pixels, control) in enumerate(found.images):
        image, is_whole = decode(pixels, fills_rows=number == 0)
        if image is None and not is_whole and count == 1:
            raise Malformed("no pixels")
        shown = canvas.show(
            image,
            pixels.box,
            over=control.transparent is not None,
            disposal=control.disposal,
            whole=is_whole,
        )
        is_last = number == count - 1 and found.repeats != 0
        seconds = inf if is_last else control.seconds
        yield Frame(shown, seconds if count > 1 else 0.0, truncated=not is_whole)
