"""How a stored picture is turned and mirrored: the eight orientations of EXIF."""

import struct

from PIL import Image

_ORIENTATION, _SHORT = 0x0112, 3
_EXIF = b"Exif\0\0"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
_SWAPS_SIDES = range(5, 9)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is shown; as it is stored if the orientation is not known."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height as the picture is shown."""
    return size[::-1] if orientation in _SWAPS_SIDES else size


def exif_orientation(exif: bytes) -> int:
    """How to turn the picture, 1 to 8. Damaged metadata turn nothing, as in a browser.

    `exif` is a TIFF file, with or without `Exif` before it. Only the tags of the first directory
    are looked at: the first valid one counts, and nothing that a tag points at is read.
    """
    exif = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for number in range(entries):
            entry = struct.unpack_from(f"{order}HHIH2x", exif, at + 2 + 12 * number)
            if entry[:3] == (_ORIENTATION, _SHORT, 1) and entry[3] in range(1, 9):
                return int(entry[3])
    except struct.error:  # it ends early
        pass
    return 1
