"""BMP, ICO and CUR files.

Of the icons in a file Chromium shows the largest. Other programs show the one that fits, so they
are frames too.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from worker.image.formats.container import Frame, Header, Malformed, bounded
from worker.image.formats.dib import Bitmap, indices, read_bitmap, unpack
from worker.image.formats.png import png
from worker.image.profiles import profile_of_gamma

MOST_ICONS = 8
"""Icons of one file that are looked at."""
LEAST_SIDE, LARGE_SIDE = 32, 128
"""Pixels. A smaller icon beside a large one shows too little of its own to be described."""
_FILE_HEADER_BYTES = 14
_PIXELS_AT = 10
_COLOR_SPACE_AT, _ENDPOINTS_AT, _PROFILE_AT = 56, 60, 112
_VERSION_4, _VERSION_5 = 108, 124
_CALIBRATED, _EMBEDDED = 0, int.from_bytes(b"MBED")
_ENDPOINT_UNIT, _GAMMA_UNIT = 1 << 30, 1 << 16
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE_AT = 16
_DIRECTORY = struct.Struct("<HHH")
_ENTRY = struct.Struct("<BBBBHHII")
_CURSORS = 2


def bmp(data: bytes, _most_frames: int) -> Header:
    """Read the header. Raises Malformed, struct.error."""
    bitmap = read_bitmap(data, _FILE_HEADER_BYTES)
    (at,) = struct.unpack_from("<I", data, _PIXELS_AT)

    def decoded(_target: int | None) -> Iterator[Frame]:
        image, whole = unpack(data, bitmap, at)
        yield Frame(image, truncated=not whole)

    return Header(bitmap.width, bitmap.height, decoded, profiles=_profiles(data, bitmap))


def _profiles(data: bytes, bitmap: Bitmap) -> tuple[bytes, ...]:
    """An embedded profile; or sRGB, and what a version 4 header says of the primaries and gamma.

    Chromium applies the first kind alone.
    """
    if bitmap.header_bytes < _VERSION_4:
        return ()
    (space,) = struct.unpack_from("<I", data, bitmap.at + _COLOR_SPACE_AT)
    if space == _EMBEDDED and bitmap.header_bytes >= _VERSION_5:
        start, length = struct.unpack_from("<II", data, bitmap.at + _PROFILE_AT)
        return (bounded(data[bitmap.at + start : bitmap.at + start + length]),)
    if space != _CALIBRATED:
        return ()
    *endpoints, _, green_gamma, _ = struct.unpack_from("<9i3I", data, bitmap.at + _ENDPOINTS_AT)
    if not green_gamma:
        return ()
    colors = np.array(endpoints, np.float64).reshape(3, 3) / _ENDPOINT_UNIT
    colors = np.vstack([colors.sum(axis=0), colors])  # white is all of them together
    sums = colors.sum(axis=1, keepdims=True)
    chromaticities = None if (sums <= 0).any() else (colors / sums)[:, :2].ravel().tolist()
    return b"", profile_of_gamma(_GAMMA_UNIT / green_gamma, chromaticities)


@dataclass(frozen=True, slots=True)
class _Icon:
    """One icon; its picture is a PNG where `bitmap` is None."""

    at: int
    width: int
    height: int
    bitmap: Bitmap | None

    def frame(self, data: bytes, target: int | None) -> Frame:
        """Decode it. Raises what the decoder raises."""
        if self.bitmap is None:
            return next(png(data[self.at :], 1).decode(target))
        image, whole = unpack(data, self.bitmap, self.bitmap.end)
        return Frame(_masked(image, data, self.bitmap), truncated=not whole)


def ico(data: bytes, _most_frames: int) -> Header:
    """Find the icons. The first frame is the one that Chromium shows, where it shows any.

    Raises Malformed, struct.error.
    """
    _, kind, count = _DIRECTORY.unpack_from(data)
    table = data[_DIRECTORY.size : _DIRECTORY.size + count * _ENTRY.size]
    if not count or len(table) < count * _ENTRY.size:
        raise Malformed("wrong number of icons")
    entries = dict[int, tuple[int, int]]()  # the size that the directory has for each place
    for wide, high, *_, at in _sorted(list(_ENTRY.iter_unpack(table)), kind):
        size = wide or 256, high or 256
        largest = min(next(iter(entries.values()), (0, 0)))
        if min(size) >= LEAST_SIDE or largest < LARGE_SIDE:
            entries.setdefault(at, size)
    found = [_icon(data, at, *size) for at, size in list(entries.items())[:MOST_ICONS]]
    icons = [one for one in found if one is not None]
    if not icons:
        raise Malformed("no icon")
    first = icons[0]

    def decoded(target: int | None) -> Iterator[Frame]:
        shown, failed = False, False
        for icon in icons:
            try:
                frame = icon.frame(data, target)
            except Exception:  # noqa: BLE001 - the readers raise nearly everything there is
                failed = True
                continue  # the others may be seen
            shown = True
            yield replace(frame, truncated=frame.truncated or failed)
        if not shown:
            raise Malformed("no icon that can be decoded")

    return Header(
        first.width,
        first.height,
        decoded,
        max(len(icons), len(entries)),
        area=max(one.width * one.height for one in icons),
        truncated=found[0] is None,
        profiles=png(data[first.at :], 1).profiles if first.bitmap is None else (),
    )


def _sorted(entries: list[tuple[int, ...]], kind: int) -> list[tuple[int, ...]]:
    """As Chromium does: the largest first, and of equal sizes the one of most bits."""

    def rank(entry: tuple[int, ...]) -> tuple[int, int]:
        wide, high, colors, _, _, bits, _, _ = entry
        if kind == _CURSORS or not bits:  # of a cursor this is where it points
            bits = (colors or 256).bit_length()
        return (wide or 256) * (high or 256), bits

    return sorted(entries, key=rank, reverse=True)


def _icon(data: bytes, at: int, width: int, height: int) -> _Icon | None:
    """The icon that begins at `at`; the directory has its size. None for a damaged one.

    Its length is not looked at, as in Chromium.
    """
    try:
        if data.startswith(_PNG, at):
            wide, high = struct.unpack_from(">II", data, at + _PNG_SIZE_AT)
            return _Icon(at, wide, high, None) if wide and high else None
        bitmap = read_bitmap(data, at, icon=(width, height))
    except (Malformed, struct.error):
        return None
    return _Icon(at, bitmap.width, bitmap.height, bitmap)


def _masked(image: Image.Image, data: bytes, bitmap: Bitmap) -> Image.Image:
    """The picture of an icon with its mask, which counts where there is no alpha at all."""
    if bitmap.is_compressed or (image.mode == "RGBA" and image.getchannel("A").getbbox()):
        return image
    opaque = np.zeros((bitmap.height, bitmap.width), np.uint8)
    opaque[: bitmap.rows_within(len(data) - bitmap.end)] = 255
    at = bitmap.end + bitmap.height * bitmap.row_bytes
    row_bytes = -(-bitmap.width // 32) * 4
    rows = min(bitmap.height, max(0, len(data) - at) // row_bytes)
    if rows:  # what is missing of it hides nothing
        lines = np.frombuffer(data, np.uint8, rows * row_bytes, at).reshape(rows, row_bytes)
        opaque[:rows][indices(lines, 1)[:, : bitmap.width] == 1] = 0
    shown = image.convert("RGB")
    shown.putalpha(Image.fromarray(opaque if bitmap.top_down else opaque[::-1]))
    return shown
