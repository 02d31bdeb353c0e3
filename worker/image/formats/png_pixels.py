"""The pixels of one PNG image or APNG frame, out of its compressed rows.

Pillow's decoder unpacks the rows. If the compressed data are damaged, Pillow may lose rows before
the damage and leaves missing rows black. Damaged data are therefore decompressed here first, and
only whole rows are given to Pillow. `tRNS` is applied here, because Pillow does not support it in
all bit depths.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops

from worker.image.formats.container import Malformed

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types."""
DEEP = 16
"""Bits of a sample, of which the high 8 are kept."""
_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
_MODES = {
    (GREY, 1): ("P", "P;1"),
    (GREY, 2): ("L", "L;2"),
    (GREY, 4): ("L", "L;4"),
    (GREY, 8): ("L", "L"),
    (GREY, DEEP): ("L", "L;16B"),
    (RGB, 8): ("RGB", "RGB"),
    (RGB, DEEP): ("RGB", "RGB;16B"),
    (PALETTE, 1): ("P", "P;1"),
    (PALETTE, 2): ("P", "P;2"),
    (PALETTE, 4): ("P", "P;4"),
    (PALETTE, 8): ("P", "P"),
    (GREY_ALPHA, 8): ("LA", "LA"),
    (GREY_ALPHA, DEEP): ("RGBA", "LA;16B"),
    (RGB_ALPHA, 8): ("RGBA", "RGBA"),
    (RGB_ALPHA, DEEP): ("RGBA", "RGBA;16B"),
}
"""Pillow's mode, and how the samples are packed, of each colour type and depth."""
_BEFORE: dict[str, int | tuple[int, ...]] = {
    "L": 137,
    "P": 137,
    "RGB": (137, 201, 59),
    "LA": (137, 201),
    "RGBA": (137, 201, 59, 87),
}
"""Pixels before they are decoded, in each mode. Hardly any picture has a row of them."""
_LOW_BYTES = {"L": "L;16", "RGB": "RGB;16L"}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip
"""Of Adam7: the first column and row of each pass, and the steps between columns and rows."""
_BLOCKS = ((8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2), (1, 1))
"""Width and height that a pixel of each pass fills until later passes come."""
_FILTERS = 5
_PIECE = 32_768
_MOST_STORED = 65_535
_HELD_BACK = 32_768
"""Bytes of rows that Chromium does not show where compressed data end too early."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of a file are laid out.

    `palette` holds 3 bytes a colour. `transparency` is the contents of a `tRNS` that counts.
    """

    color: int
    depth: int
    interlaced: bool
    palette: bytes = b""
    transparency: bytes | None = None

    @property
    def has_alpha(self) -> bool:
        """Whether pixels may be transparent."""
        return self.color in (GREY_ALPHA, RGB_ALPHA) or self.transparency is not None

    def row_bytes(self, width: int) -> int:
        """Of a row, with its filter's byte."""
        return 1 + -(-width * _CHANNELS[self.color] * self.depth // 8)


def is_known(color: int, depth: int) -> bool:
    """Whether the specification has this colour type in this depth."""
    return (color, depth) in _MODES


def decode(
    layout: Layout, size: tuple[int, int], data: bytes, *, more: bool
) -> tuple[Image.Image | None, bool]:
    """The picture in mode L, LA, RGB or RGBA, and whether all of it is there.

    Pixels that could not be decoded are transparent; None where there is not one row. Where an
    interlaced picture is not whole, the pixels of its first passes are larger, as browsers show it.

    `more`: the file goes on behind these data. Where the compressed data end too early
    nevertheless, Chromium shows nothing of the last 32 KiB of rows, and other viewers do. Those
    rows are transparent, and keep their colours.
    """
    image, rows = _unpacked(layout, size, data)
    if image is None:
        return None, False
    if layout.color == PALETTE:
        image = _with_palette(image, layout)
    elif image.mode == "P":
        image.putpalette(b"\0\0\0\xff\xff\xff")
        image = image.convert("L")
    elif layout.color == GREY_ALPHA and image.mode == "RGBA":
        image = image.convert("LA")
    if layout.transparency is not None and layout.color in (GREY, RGB):
        image = _with_transparent_color(image, layout, data)
    if rows is None:
        return image, True
    is_whole = rows == [height for _, height in _passes(layout, size)]
    if not is_whole:
        image = _partial(image, layout, rows)
    if more and not layout.interlaced and _ends_early(data):
        shown = max(0, rows[0] - _HELD_BACK // layout.row_bytes(size[0]))
        return _hidden(image, (0, shown, size[0], rows[0])), False
    return image, is_whole


def _unpacked(
    layout: Layout, size: tuple[int, int], data: bytes, packing: str | None = None
) -> tuple[Image.Image | None, list[int] | None]:
    """The samples in Pillow's mode; how many rows of each pass there are.

    None instead of the rows where nothing is wrong with the data.
    """
    mode, usual = _MODES[layout.color, layout.depth]
    image = Image.new(mode, size, _BEFORE[mode])
    try:
        image.frombytes(data, "zip", packing or usual, int(layout.interlaced))
    except ValueError:  # damaged, or something is missing, which may be the checksum at the end
        return _salvaged(layout, size, data, packing or usual)
    if _may_lack_rows(image, layout):
        return _salvaged(layout, size, data, packing or usual)
    return image, None


def _may_lack_rows(image: Image.Image, layout: Layout) -> bool:
    """Whether the row that is decoded last looks as before.

    Pillow takes compressed data for whole that end in order, though they may hold too few rows.
    """
    last = image.height - 1
    if layout.interlaced and last % 2 == 0:  # the last pass has the odd rows
        last = max(0, last - 1)
    row = image.crop((0, last, image.width, last + 1))
    return row.tobytes() == Image.new(row.mode, row.size, _BEFORE[row.mode]).tobytes()


def _salvaged(
    layout: Layout, size: tuple[int, int], data: bytes, packing: str
) -> tuple[Image.Image | None, list[int]]:
    """As `_unpacked`, of the rows before the damage."""
    image = Image.new(_MODES[layout.color, layout.depth][0], size)
    passes = _passes(layout, size)
    rows = [0] * len(passes)
    decoder = Image._getdecoder(image.mode, "zip", (packing, int(layout.interlaced)))  # noqa: SLF001 - in pieces: as a whole it would take twice the memory
    decoder.setimage(image.im, (0, 0, *size))
    waiting = b"\x78\x01"  # a stream of zlib's, of blocks that are not compressed
    for number, count, filtered in _whole_rows(_inflated(data), layout, passes):
        rows[number] += count
        for at in range(0, len(filtered), _MOST_STORED):
            piece = filtered[at : at + _MOST_STORED]
            waiting += b"\0" + len(piece).to_bytes(2, "little")
            waiting += (len(piece) ^ 0xFFFF).to_bytes(2, "little") + piece
            consumed, _ = decoder.decode(waiting)
            waiting = waiting[consumed:] if consumed >= 0 else b""
    decoder.cleanup()
    return (image if any(rows) else None), rows


def _passes(layout: Layout, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Width and height of each pass; 0 rows where it has no pixel."""
    if not layout.interlaced:
        return [size]
    found = []
    for left, top, across, down in _PASSES:
        width, height = -(-(size[0] - left) // across), -(-(size[1] - top) // down)
        found.append((width, height) if width > 0 and height > 0 else (0, 0))
    return found


def _inflated(data: bytes) -> Iterator[bytes]:
    """What can be decompressed before the damage or the end, in pieces."""
    if len(data) < 2 or data[0] & 15 != zlib.DEFLATED or int.from_bytes(data[:2]) % 31:  # noqa: PLR2004 - the header of zlib's format
        return
    stream = zlib.decompressobj(-zlib.MAX_WBITS)  # without the checksum: it does not matter
    for at in range(2, len(data), _PIECE):
        before, given = stream.copy(), 0
        packed = data[at : at + _PIECE]
        try:
            while packed and not stream.eof:
                piece = stream.decompress(packed, _PIECE)
                packed = stream.unconsumed_tail
                given += len(piece)
                yield piece
        except zlib.error:  # which takes with it what this call has decompressed
            yield b"".join(_byte_by_byte(before, data[at : at + _PIECE]))[given:]
            return
        if stream.eof:
            return


def _ends_early(data: bytes) -> bool:
    """Whether compressed data are sound, and lack their end. Their checksum does not matter."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for at in range(2, len(data), _PIECE):
            packed = data[at : at + _PIECE]
            while packed and not stream.eof:
                stream.decompress(packed, _PIECE)
                packed = stream.unconsumed_tail
    except zlib.error:
        return False
    return not stream.eof


def _byte_by_byte(stream: "zlib._Decompress", packed: bytes) -> Iterator[bytes]:
    """What can be decompressed before the damage."""
    for at in range(len(packed)):
        try:
            yield stream.decompress(packed[at : at + 1])
        except zlib.error:
            return


def _whole_rows(
    pieces: Iterator[bytes], layout: Layout, passes: list[tuple[int, int]]
) -> Iterator[tuple[int, int, bytes]]:
    """Number of the pass, count of rows, and their bytes, up to a row of an unknown filter."""
    waiting = bytearray()
    number, left = 0, passes[0][1]
    for piece in pieces:
        waiting += piece
        while True:
            while not left:
                number += 1
                if number == len(passes):
                    return
                left = passes[number][1]
            stride = layout.row_bytes(passes[number][0])
            count = min(left, len(waiting) // stride)
            if not count:
                break
            filters = waiting[: count * stride : stride]
            known = count
            if max(filters) >= _FILTERS:
                known = next(row for row, kind in enumerate(filters) if kind >= _FILTERS)
            if known:
                yield number, known, bytes(waiting[: known * stride])
            if known < count:
                return
            del waiting[: count * stride]
            left -= count


def _with_palette(image: Image.Image, layout: Layout) -> Image.Image:
    """Colours for the indices. An index beyond the palette has the last colour, as in Chromium."""
    most = 1 << layout.depth
    colors = [layout.palette[at : at + 3] for at in range(0, len(layout.palette) - 2, 3)][:most]
    if not colors:
        raise Malformed("no palette")
    if layout.transparency is None:
        colors += colors[-1:] * (256 - len(colors))
        image.putpalette(b"".join(colors), "RGB")
        return image.convert("RGB")
    alpha = layout.transparency.ljust(len(colors), b"\xff")
    entries = [color + alpha[at : at + 1] for at, color in enumerate(colors)]
    entries += entries[-1:] * (256 - len(entries))
    image.putpalette(b"".join(entries), "RGBA")
    return image.convert("RGBA")


def _with_transparent_color(image: Image.Image, layout: Layout, data: bytes) -> Image.Image:
    """With an alpha channel of 0 where a pixel has the one transparent colour, in all its bits."""
    keys = layout.transparency or b""
    channels = _CHANNELS[layout.color]
    high, low = keys[0 : 2 * channels : 2], keys[1 : 2 * channels : 2]
    if layout.depth < DEEP:  # where the high byte is not looked at
        scale = 255 // ((1 << layout.depth) - 1)
        differs = _differs(image, [key * scale for key in low])
    elif len(keys) == 2 * channels:
        rest, _ = _unpacked(layout, image.size, data, _LOW_BYTES[image.mode])
        assert rest is not None  # noqa: S101 - the high bytes came out of the same data
        differs = _differs(rest, list(low))
        del rest
        differs = ImageChops.lighter(differs, _differs(image, list(high)))
    else:
        return image
    image.putalpha(differs)
    return image


def _differs(image: Image.Image, keys: list[int]) -> Image.Image:
    """In mode L: 255 where a pixel is not of the color `keys`, else 0."""
    found = Image.new("L", image.size)
    for channel, key in enumerate(keys):
        table = [255] * 256
        if key < len(table):
            table[key] = 0
        found = ImageChops.lighter(found, image.getchannel(channel).point(table))
    return found


def _with_alpha(image: Image.Image) -> Image.Image:
    return image.convert("LA" if image.mode in ("L", "LA") else "RGBA")


def _hidden(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """With a box that is transparent and keeps its colours."""
    image = _with_alpha(image)
    alpha = image.getchannel("A")
    alpha.paste(0, box)
    image.putalpha(alpha)
    return image


def _partial(image: Image.Image, layout: Layout, rows: list[int]) -> Image.Image:
    """The picture with transparent pixels where none were decoded."""
    if not layout.interlaced:
        image = _with_alpha(image)
        image.paste((0,) * len(image.getbands()), (0, rows[0], *image.size))
        return image
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    has_alpha = image.mode in ("LA", "RGBA")
    bands = pixels.shape[2]
    shown = np.zeros((*pixels.shape[:2], bands if has_alpha else bands + 1), np.uint8)
    for (left, top, across, down), (wide, high), count in zip(_PASSES, _BLOCKS, rows, strict=True):
        decoded = pixels[top::down, left::across][:count]
        for y in range(top, top + high):
            for x in range(left, left + wide):
                block = shown[y::down, x::across][:count]
                block[..., -1] = 255
                block[..., :bands] = decoded[: block.shape[0], : block.shape[1]]
    return Image.fromarray(shown)
