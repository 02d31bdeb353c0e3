"""The colours of AVIF and HEIC pictures: ICC profiles and code points (`colr`)."""

import struct
from collections.abc import Sequence

from worker.image.formats.container import bounded
from worker.image.formats.items import UNSPECIFIED, Property
from worker.image.profiles import profile_of_nclx

_BT709 = 1
_ICC_TYPES = (b"prof", b"rICC")
_MONOCHROME = 0x10
_GREY = b"GRAY"


def profiles_of(properties: Sequence[Property], coded: tuple[int, int]) -> tuple[bytes, ...]:
    """The profiles that the colours may mean, as in `Header`: an ICC profile before code points.

    The file's code points come before those of the coded picture, `coded`: primaries and transfer.
    """
    colors = [one.body for one in properties if one.name == b"colr"]
    found = [one[4:] for one in colors if one[:4] in _ICC_TYPES][:1]
    points = next((one for one in colors if one[:4] == b"nclx" and len(one) >= 8), None)  # noqa: PLR2004
    primaries, transfer = coded if points is None else struct.unpack_from(">HH", points, 4)
    if (primaries, transfer) != (UNSPECIFIED, UNSPECIFIED) or not found:
        found.append(profile_of_nclx(_BT709 if primaries == UNSPECIFIED else primaries, transfer))
    return tuple(dict.fromkeys(map(bounded, found)))


def is_grey(properties: Sequence[Property]) -> bool:
    """Whether an ICC profile of grey is meant: Chromium applies it to monochrome AV1 alone."""
    codec = next((one.body for one in properties if one.name == b"av1C"), b"")
    monochrome = len(codec) > 2 and bool(codec[2] & _MONOCHROME)  # noqa: PLR2004
    icc = (one.body for one in properties if one.name == b"colr" and one.body[:4] in _ICC_TYPES)
    return monochrome and next(icc, b"")[20:24] == _GREY
