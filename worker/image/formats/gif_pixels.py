"""The pixels of one image of a GIF, out of its compressed codes. Pillow's decoder unpacks them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops

from worker.image.formats.container import Box

MOST_CODE_BITS = 8
_LEAST_CODE_BITS = 2
_MOST_WIDTH, _MOST_CODES = 12, 4096
_ROWS_FILLED = (2, 4, 8)
"""Rows that one row of the third, second and first pass of an interlaced picture stands for."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image's part of the canvas, and what is in it.

    `palette` is 3 bytes a colour, `transparent` an index or None, `codes` the blocks of compressed
    indices. A first code has `code_bits` and one more.
    """

    box: Box
    interlaced: bool
    palette: bytes
    transparent: int | None
    code_bits: int
    codes: bytes


def decode(pixels: Pixels, *, fills_rows: bool) -> tuple[Image.Image | None, bool]:
    """The image in mode RGB or RGBA, and whether all of it is there; None where there is nothing.

    Pixels that could not be decoded are transparent. `fills_rows`: where an interlaced picture is
    not whole, the rows of its first passes are higher, as Chromium shows the first frame.
    """
    left, top, right, bottom = pixels.box
    size = right - left, bottom - top
    if not (size[0] and size[1]):
        return None, True
    if pixels.code_bits > MOST_CODE_BITS:
        return None, False
    indices, is_whole = _unpacked(pixels, size, 0)
    if is_whole:
        return _with_palette(indices, pixels), True
    del indices
    image, decoded = _damaged(replace(pixels, codes=_cut_to_size(pixels.codes)), size)
    if decoded.getbbox() is None:
        return None, False
    if decoded.getextrema()[0]:  # only the end is missing
        return image, True
    if pixels.interlaced and fills_rows:
        image = _with_rows_filled(image, decoded)
    return image, False


def _damaged(pixels: Pixels, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """The image in mode RGBA, and where pixels were decoded, in mode L.

    Such a pixel is the same, whatever was there before.
    """
    indices, _ = _unpacked(pixels, size, 0)
    again, _ = _unpacked(pixels, size, 1)
    decoded = ImageChops.difference(indices, again).point([255] + [0] * 255)
    del again
    image = _with_palette(indices, pixels)
    if image.mode == "RGBA":
        image.putalpha(ImageChops.darker(decoded, image.getchannel("A")))
    else:
        image.putalpha(decoded)
    return image, decoded


def _unpacked(pixels: Pixels, size: tuple[int, int], before: int) -> tuple[Image.Image, bool]:
    """The indices in mode L, and whether they are whole; `before` is what is there at first."""
    if pixels.code_bits < _LEAST_CODE_BITS:
        return _unpacked_slowly(pixels, size, before)
    indices = Image.new("L", size, before)
    try:
        indices.frombytes(pixels.codes, "gif", pixels.code_bits, int(pixels.interlaced), -1)
    except ValueError:
        return indices, False
    return indices, True


def _with_palette(indices: Image.Image, pixels: Pixels) -> Image.Image:
    """Colours for the indices. An index beyond the palette is black, as in Chromium."""
    colors = pixels.palette.ljust(3 * 256, b"\0")[: 3 * 256]
    index = pixels.transparent
    if index is None:
        indices.putpalette(colors, "RGB")
        return indices.convert("RGB")
    entries = np.full((256, 4), 255, np.uint8)
    entries[:, :3] = np.frombuffer(colors, np.uint8).reshape(256, 3)
    entries[index] = 0
    indices.putpalette(entries.tobytes(), "RGBA")
    return indices.convert("RGBA")


def _with_rows_filled(image: Image.Image, decoded: Image.Image) -> Image.Image:
    """Where a row is missing, the one above it that stands for it until later passes come."""
    has_pixel = np.asarray(decoded)
    is_whole = has_pixel.all(axis=1)
    source = np.arange(image.height)
    for step in _ROWS_FILLED:
        source = np.where(is_whole[source], source, source - source % step)
    for row in np.flatnonzero(~is_whole).tolist():
        above = int(source[row])
        missing = ImageChops.invert(decoded.crop((0, row, image.width, row + 1)))
        image.paste(image.crop((0, above, image.width, above + 1)), (0, row), missing)
    return image


def _cut_to_size(codes: bytes) -> bytes:
    """The same blocks, the last of which may be cut short, with a length that fits."""
    return b"".join(bytes([len(block)]) + block for block in _blocks(codes)) + b"\0"


def _blocks(codes: bytes) -> Iterator[bytes]:
    """What is in the blocks."""
    at = 0
    while at < len(codes) and codes[at]:
        yield codes[at + 1 : at + 1 + codes[at]]
        at += 1 + codes[at]


def _unpacked_slowly(
    pixels: Pixels, size: tuple[int, int], before: int
) -> tuple[Image.Image, bool]:
    """As `_unpacked`, of any length of codes.

    The specification has codes of at least 2 bits, and so has Pillow. Some files have less.
    """
    width, height = size
    indices = np.full((height, width), before, np.uint8)
    found = _indices(b"".join(_blocks(pixels.codes)), pixels.code_bits, indices.size)
    count = len(found)
    indices.reshape(-1)[:count] = np.frombuffer(found, np.uint8)
    if pixels.interlaced:
        order = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4)]
        order += range(1, height, 2)
        indices[order] = indices.copy()
    return Image.fromarray(indices), count == indices.size


def _indices(packed: bytes, bits: int, most: int) -> bytearray:
    """At most `most` indices, up to the end or the damage."""
    clear = 1 << bits
    literals = [bytes([index]) for index in range(clear)] + [b"", b""]
    table, width, before = list(literals), bits + 1, b""
    found = bytearray()
    waiting = held = clears = 0
    for byte in packed:
        waiting |= byte << held
        held += 8
        while held >= width:
            code = waiting & ((1 << width) - 1)
            waiting >>= width
            held -= width
            if code == clear:
                clears += 1
                if clears > most + 1:  # codes of no pixel would go on for long
                    return found
                table, width, before = list(literals), bits + 1, b""
                continue
            if code == clear + 1 or code > len(table) or (code == len(table) and not before):
                return found
            entry = table[code] if code < len(table) else before + before[:1]
            if before and len(table) < _MOST_CODES:
                table.append(before + entry[:1])
            if len(table) == 1 << width and width < _MOST_WIDTH:
                width += 1
            found += entry
            if len(found) >= most:
                del found[most:]
                return found
            before = entry
    return found
