"""GIF: blocks."""

import struct
from collections.abc import Iterator, Sequence

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from worker.image.formats.container import Box, Frame, Header, Malformed, opened, plain

MOST_BLOCKS = 500_000
"""Blocks, which hold 255 bytes at most."""
_GIF_IMAGE, _GIF_EXTENSION, _GIF_CONTROL = 0x2C, 0x21, 0xF9
_GIF_HEADER_BYTES = 13
_GIF_TRAILER = b"\x3b"


def gif(data: bytes, most_frames: int) -> Header:
    """Walk the blocks up to one frame beyond `most_frames`. Raises Malformed."""
    width, height = canvas = struct.unpack_from("<HH", data, 6)
    head = _GIF_HEADER_BYTES + _color_table_bytes(data[10])
    kept, control, counted, truncated = [data[:head]], b"", 0, True
    painted = list[Box]()
    at, blocks = head, MOST_BLOCKS
    while at < len(data) and counted <= most_frames:
        start, what = at, data[at]
        if what == _GIF_IMAGE:  # descriptor, colour table, code size, data
            if at + 9 >= len(data):
                break
            at, blocks = _after_blocks(data, at + 11 + _color_table_bytes(data[at + 9]), blocks)
            if counted and at > len(data):
                break
            counted += 1
            if True:
                left, top, wide, high = struct.unpack_from("<HHHH", data, start + 1)
                right, bottom = left + wide, top + high
                canvas = max(canvas[0], right), max(canvas[1], bottom)
                painted.append(_around(painted[-1:], (left, top, right, bottom)))
                kept += [control, data[start:at]]
                control = b""
            if counted == 1:
                width, height = canvas
        elif what == _GIF_EXTENSION:  # label, data
            at, blocks = _after_blocks(data, at + 2, blocks)
            if data[start + 1 : start + 2] == bytes([_GIF_CONTROL]):
                control = data[start:at]
        else:  # the trailer, or nothing that a reader would go on from
            truncated = what != _GIF_TRAILER[0]
            break
    if not counted:
        raise Malformed("no frame")
    file = b"".join((*kept, _GIF_TRAILER))

    def decoded(target: int | None) -> Iterator[Frame]:
        image = opened(GifImageFile, file, (width, height), target)
        for number in range(counted):
            if number:
                image.seek(number)
            image.load()
            yield Frame(_as_painted(plain(image), (width, height), painted[number]), 0.1)

    return Header(
        *(width, height, decoded, counted), area=canvas[0] * canvas[1], truncated=truncated
    )


def _as_painted(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """A GIF as browsers show it: no colour where none was painted, nothing beyond the canvas."""
    canvas = (0, 0, *size)
    if image.size == size and box == canvas:
        return image.copy()
    picture = Image.new("RGBA", size)
    picture.paste(image.crop(box), box)
    return picture


def _around(before: Sequence[Box], box: Box) -> Box:
    """The smallest box that holds both."""
    (least,) = before or (box,)
    corner = min(least[0], box[0]), min(least[1], box[1])
    return *corner, max(least[2], box[2]), max(least[3], box[3])


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """Each block is led by its length; a length of 0 ends them. Also how many more there may be."""
    while at < len(data) and data[at]:
        at += data[at] + 1
        most -= 1
        if most < 0:
            break
    if most <= 0:
        raise Malformed("too many blocks")
    return at + 1, most - 1
