"""Device-independent bitmaps: the pictures inside BMP, ICO and CUR files, unpacked with NumPy.

The rules are those of Chromium, found by trying files: how it takes wrong masks, short palettes and
pictures that are cut short differs from what Pillow does.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker.image.formats.container import Malformed
from worker.image.formats.rle import unpack_runs

_CORE_HEADER = 12
_INFO_HEADERS = (40, 52, 56, 108, 124)
_OS2_HEADERS = (16, 20, 24, 28, 32, 36, 42, 44, 46, 48, 60, 64)
_WITH_COMPRESSION, _WITH_COLORS = 20, 36
_WITH_MASKS, _WITH_ALPHA_MASK = 52, 56
_RAW, _RLE8, _RLE4, _MASKS, _RLE24, _ALPHA_MASKS = 0, 1, 2, 3, 4, 6
_DEPTHS = {
    _RAW: (1, 2, 4, 8, 16, 24, 32),
    _RLE8: (8,),
    _RLE4: (4,),
    _MASKS: (16, 32),
    _RLE24: (24,),
    _ALPHA_MASKS: (16, 32),
}
_INDEXED = 8
"""Bits of a pixel, up to which it is a number in the palette."""
_MOST_SIDE = 65535
_CHUNK_PIXELS = 1 << 18
"""Pixels that are unpacked at a time."""

type Bytes = npt.NDArray[np.uint8]
type Masks = tuple[int, int, int, int]
"""Which bits of a pixel are red, green, blue and alpha."""


@dataclass(frozen=True, slots=True)
class Bitmap:
    """What a bitmap's header says.

    `at` and `header_bytes` say where the header is, and how long; `end` is where its palette ends.
    `palette` is uint8 [256, 3].
    """

    at: int
    header_bytes: int
    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    masks: Masks
    palette: Bytes
    end: int

    @property
    def row_bytes(self) -> int:
        """Of one row of pixels, filled up to four."""
        return -(-self.width * self.bits // 32) * 4

    def rows_within(self, nbytes: int) -> int:
        """Rows without compression that so many bytes hold; one that is cut short is left out."""
        return min(self.height, max(0, nbytes) // self.row_bytes)

    @property
    def is_compressed(self) -> bool:
        """Whether the pixels are run lengths."""
        return self.compression in (_RLE8, _RLE4, _RLE24)


def read_bitmap(data: bytes, at: int, *, icon: tuple[int, int] | None = None) -> Bitmap:
    """Read the header at `at`. `icon`: of an icon, width and height by the icon's directory.

    An icon's header counts the rows of its mask too, and its fourth byte is alpha.
    Raises Malformed, struct.error.
    """
    (length,) = struct.unpack_from("<I", data, at)
    compression, used, os2 = _RAW, 0, length in _OS2_HEADERS
    if length == _CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, at + 4)
    elif os2 or length in _INFO_HEADERS:
        width, height, _, bits = struct.unpack_from("<iiHH", data, at + 4)
        if length >= _WITH_COMPRESSION:
            (compression,) = struct.unpack_from("<I", data, at + 16)
        if length >= _WITH_COLORS:
            (used,) = struct.unpack_from("<I", data, at + 32)
    else:
        raise Malformed("unknown header")
    top_down, height = height < 0, abs(height)
    if icon is not None and height != icon[1]:  # which some writers do not double
        height //= 2
    if not 0 < width <= _MOST_SIDE or not 0 < height <= _MOST_SIDE:
        raise Malformed("no size, or too large a one")
    old = length == _CORE_HEADER and bits in (2, 16, 32)
    if old or bits not in _DEPTHS.get(compression, ()) or (compression == _RLE24 and not os2):
        raise Malformed("a kind of pixels that is not decoded")
    end = at + length
    masks, more = _masks(data, at, length, bits, compression)
    if icon is not None and bits == 32 and compression == _RAW:  # noqa: PLR2004
        inside = length in _INFO_HEADERS and length >= _WITH_ALPHA_MASK
        (alpha,) = struct.unpack_from("<I", data, at + 52) if inside else (0xFF000000,)
        _shift_and_length(alpha, bits)
        masks = (*masks[:3], alpha)
    end += more
    palette = np.zeros((256, 3), np.uint8)
    if bits <= _INDEXED:
        entry = 3 if length == _CORE_HEADER else 4
        colors = 1 << bits if icon is not None and used > 1 << bits else used or 1 << bits
        palette, end = _palette(data, end, min(colors, 256), entry), end + colors * entry
    return Bitmap(at, length, width, height, top_down, bits, compression, masks, palette, end)


def _masks(data: bytes, at: int, length: int, bits: int, compression: int) -> tuple[Masks, int]:
    """The masks, and how many bytes of them lie behind the header. Raises Malformed."""
    if compression in (_MASKS, _ALPHA_MASKS):
        os2 = length in _OS2_HEADERS
        inside = not os2 and length >= _WITH_MASKS
        with_alpha = (
            length >= _WITH_ALPHA_MASK if inside else compression == _ALPHA_MASKS and not os2
        )
        count = 4 if with_alpha else 3
        start = at + 40 if inside else at + length
        masks = struct.unpack_from(f"<{count}I", data, start)
        for mask in masks:
            _shift_and_length(mask, bits)
        return (*masks, *[0] * (4 - count)), 0 if inside else 4 * count
    if bits == 16:  # noqa: PLR2004 - of 5 bits each
        return (0x7C00, 0x3E0, 0x1F, 0), 0
    alpha = 0
    if bits == 32 and length in _INFO_HEADERS and length > _WITH_ALPHA_MASK:  # noqa: PLR2004
        (alpha,) = struct.unpack_from("<I", data, at + 52)
    return (0xFF0000, 0xFF00, 0xFF, 0xFF000000 if alpha else 0), 0


def _shift_and_length(mask: int, bits: int) -> tuple[int, int]:
    """Where a mask's bits begin, and how many there are. Raises Malformed for one with gaps."""
    if not mask:
        return 0, 0
    shift = (mask & -mask).bit_length() - 1
    length = mask.bit_count()
    if mask >> shift != (1 << length) - 1 or shift + length > bits:
        raise Malformed("a mask that cannot be used")
    return shift, length


def _palette(data: bytes, at: int, colors: int, entry: int) -> Bytes:
    """Red, green and blue of 256 colours; those that the file does not have are black."""
    colors = min(colors, max(0, len(data) - at) // entry)
    palette = np.zeros((256, 3), np.uint8)
    stored = np.frombuffer(data, np.uint8, colors * entry, at if colors else 0)
    palette[:colors] = stored.reshape(colors, entry)[:, 2::-1]
    return palette


def unpack(data: bytes, bitmap: Bitmap, at: int) -> tuple[Image.Image, bool]:
    """The picture, mode RGB or RGBA, whose pixels begin at `at`; whether they are all there.

    Pixels that are not there are black and transparent.
    """
    size = bitmap.height, bitmap.width
    if not bitmap.is_compressed:
        return _unpack_rows(data, bitmap, at)
    stored, painted, whole = unpack_runs(data[at:], *size, bitmap.bits)
    if not painted.any():
        raise Malformed("no pixels")
    if not bitmap.top_down:
        stored, painted = stored[::-1], painted[::-1]
    picture = Image.fromarray(bitmap.palette[stored] if bitmap.bits <= _INDEXED else stored)
    if not painted.all():
        picture.putalpha(Image.fromarray(painted).convert("L"))
    return picture, whole


def _unpack_rows(data: bytes, bitmap: Bitmap, at: int) -> tuple[Image.Image, bool]:
    """A picture without compression."""
    rows = bitmap.rows_within(len(data) - at)
    if not rows:
        raise Malformed("no pixels")
    transparent = bitmap.bits > _INDEXED and bitmap.masks[3]
    bands = 4 if transparent or rows < bitmap.height else 3
    pixels = np.zeros((bitmap.height, bitmap.width, bands), np.uint8)
    upright = pixels if bitmap.top_down else pixels[::-1]
    upright[:rows, :, 3:] = 255
    step = max(1, _CHUNK_PIXELS // bitmap.width)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        start, count = at + first * bitmap.row_bytes, (last - first) * bitmap.row_bytes
        lines = np.frombuffer(data, np.uint8, count, start).reshape(last - first, -1)
        chunk = _unpack_chunk(lines, bitmap)
        upright[first:last, :, : chunk.shape[2]] = chunk
    return Image.fromarray(pixels), rows == bitmap.height


def _unpack_chunk(lines: Bytes, bitmap: Bitmap) -> Bytes:
    """Rows as they are stored to [rows, width, 3 or 4]."""
    width, bits = bitmap.width, bitmap.bits
    if bits <= _INDEXED:
        return bitmap.palette[indices(lines, bits)[:, :width]]
    if bits == 24:  # noqa: PLR2004
        return lines[:, : 3 * width].reshape(len(lines), width, 3)[..., ::-1]
    kind = "<u2" if bits == 16 else "<u4"  # noqa: PLR2004
    words = np.ascontiguousarray(lines).view(kind)[:, :width]
    masks = bitmap.masks if bitmap.masks[3] else bitmap.masks[:3]
    return np.stack([_channel(words, mask, bits) for mask in masks], axis=-1)


def indices(lines: Bytes, bits: int) -> Bytes:
    """Numbers of `bits` bits each, the first one in the highest bits: [rows, bytes * 8 / bits]."""
    if bits == 8:  # noqa: PLR2004
        return lines
    each = [(lines >> shift) & ((1 << bits) - 1) for shift in range(8 - bits, -1, -bits)]
    return np.stack(each, axis=-1).reshape(len(lines), -1)


def _channel(words: npt.NDArray[np.unsignedinteger], mask: int, bits: int) -> Bytes:
    """The bits of a mask as levels of 0 to 255; of more than eight bits the highest."""
    shift, length = _shift_and_length(mask, bits)
    if length > 8:  # noqa: PLR2004
        shift, length = shift + length - 8, 8
    top = (1 << length) - 1
    levels = np.array([round(n * 255 / top) if top else 0 for n in range(top + 1)], np.uint8)
    found: Bytes = levels[(words >> shift) & top]
    return found
