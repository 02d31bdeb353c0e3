"""BMP and ICO, read without a decoder; see `container.py`."""

import struct
from collections.abc import Iterator

from PIL.BmpImagePlugin import BmpImageFile
from PIL.IcoImagePlugin import IcoImageFile
from PIL.ImageFile import ImageFile

from worker.image.formats.container import Frame, Header, Malformed, opened, plain
from worker.image.formats.png import png

_INFO_HEADERS = (40, 52, 56, 64, 108, 124)
_CORE_HEADER = 12
_RAW, _RLE8, _RLE4, _BITFIELDS = range(4)
_DEPTHS = {
    _RAW: (1, 4, 8, 16, 24, 32),
    _RLE8: (8,),
    _RLE4: (4,),
    _BITFIELDS: (16, 24, 32),
}
_FILE_HEADER_BYTES = 14
_PNG = b"\x89PNG\r\n\x1a\n"
_ICON = struct.Struct("<HHH")
_ENTRY = struct.Struct("<BBBBHHII")


def bmp(data: bytes, _most_frames: int) -> Header:
    """Read the one header. Raises Malformed."""
    width, height, _ = _dib(data, _FILE_HEADER_BYTES)

    def decoded(target: int | None) -> Iterator[Frame]:
        yield _frame(opened(BmpImageFile, data, (width, height), target))

    return Header(width, height, decoded)


def _frame(image: ImageFile) -> Frame:
    """A bitmap whose fourth byte is 0 everywhere has no transparency, in any viewer."""
    image.load()
    shown = plain(image)
    if shown.mode == "RGBA" and not shown.getchannel("A").getbbox():
        shown = shown.convert("RGB")
    return Frame(shown)


def _dib(data: bytes, at: int) -> tuple[int, int, int]:
    """Width, height and bits a pixel."""
    (length,) = struct.unpack_from("<I", data, at)
    compression = _RAW
    if length == _CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, at + 4)
    elif length in _INFO_HEADERS:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, at + 4)
    else:
        raise Malformed("unknown header")
    if bits not in _DEPTHS.get(compression, ()):
        raise Malformed("a kind of pixels that is not decoded")
    if width <= 0:
        raise Malformed("no size")
    return width, abs(height), bits  # rows from the top have a negative height


def ico(data: bytes, most_frames: int) -> Header:
    """Find the largest icon, and make a file of it alone. Raises Malformed."""
    _, _, count = _ICON.unpack_from(data)
    if 6 + _ENTRY.size * count > len(data):
        raise Malformed("wrong number of icons")
    entries = [_ENTRY.unpack_from(data, 6 + _ENTRY.size * n) for n in range(count)]
    if not entries:
        raise Malformed("no icon")
    # A side of 0 means 256; of equal sizes the one of most bits.
    best = max(entries, key=lambda one: ((one[0] or 256) * (one[1] or 256), one[5]))
    length, offset = best[6:]
    icon = data[offset : offset + length]
    if icon.startswith(_PNG):
        header = png(icon, most_frames)
        width, height, bits = header.width, header.height, best[5]
        profiles = header.profiles
    else:
        (width, height, bits), profiles = _dib(icon, 0), ()
        height //= 2  # its mask is beneath it
    alone = _ENTRY.pack(width & 255, height & 255, 0, 0, 1, bits, len(icon), 6 + _ENTRY.size)
    file = _ICON.pack(0, 1, 1) + alone + icon

    def decoded(target: int | None) -> Iterator[Frame]:
        yield _frame(opened(IcoImageFile, file, (width, height), target))

    return Header(width, height, decoded, profiles=profiles)
