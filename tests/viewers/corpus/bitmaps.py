"""Transparency of bitmaps: BMP with alpha masks, ICO with masks and with alpha."""

import struct

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.corpus.case import Case, Make, plainly
from tests.viewers.corpus.transparency import in_alpha, luminance, threshold

_MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
_SIDE = 256


def bmp(image: Image.Image, size: int, masks: tuple[int, ...], compression: int = 3) -> bytes:
    """32 bits from RGBA; `size` is that of the header: 40, 52, 56, 108 or 124 bytes."""
    rows = np.asarray(image.convert("RGBA"))[::-1, :, [2, 1, 0, 3]].tobytes()
    info = struct.pack("<IiiHHIIiiII", size, *image.size, 1, 32, compression, len(rows), 0, 0, 0, 0)
    mask_bytes = struct.pack(f"<{len(masks)}I", *masks)
    head = (info + mask_bytes).ljust(max(size, 40 + len(mask_bytes)), b"\0")
    at = 14 + len(head)
    return struct.pack("<2sIHHI", b"BM", at + len(rows), 0, 0, at) + head + rows


def bmp_alpha(level: int, size: int, masks: tuple[int, ...] = _MASKS, compression: int = 3) -> Make:
    return lambda picture: bmp(in_alpha(picture, level), size, masks, compression)


def bmp_faint(picture: Image.Image) -> bytes:
    """Alpha is 0 but for one pixel, so that it counts."""
    image = picture.convert("RGBA")
    image.putalpha(0)
    image.putpixel((0, 0), (0, 0, 0, 255))
    return bmp(image, 108, _MASKS)


def bmp_no_mask(picture: Image.Image) -> bytes:
    """Fourth bytes that no mask names."""
    image = picture.convert("RGBA")
    image.putalpha(Image.fromarray(luminance(writers.other(picture))))
    return bmp(image, 108, (*_MASKS[:3], 0))


def bmp_1555(picture: Image.Image) -> bytes:
    """16 bits, one of them alpha."""
    red, green, blue = (np.asarray(picture).astype(np.uint16)[::-1] >> 3).transpose(2, 0, 1)
    rows: bytes = (0x8000 | red << 10 | green << 5 | blue).astype("<u2").tobytes()
    info = struct.pack("<IiiHHIIiiII", 108, *picture.size, 1, 16, 3, len(rows), 0, 0, 0, 0)
    info = (info + struct.pack("<4I", 0x7C00, 0x3E0, 0x1F, 0x8000)).ljust(108, b"\0")
    return struct.pack("<2sIHHI", b"BM", 122 + len(rows), 0, 0, 122) + info + rows


def ico(*icons: tuple[int, bytes]) -> bytes:
    """Icons and the sides that the directory says of them."""
    at, table = 6 + 16 * len(icons), b""
    for side, one in icons:
        table += struct.pack("<BBBBHHII", side % 256, side % 256, 0, 0, 1, 32, len(one), at)
        at += len(one)
    return struct.pack("<HHH", 0, 1, len(icons)) + table + b"".join(one for _, one in icons)


def dib(image: Image.Image, mask: np.ndarray | None, bits: int = 32) -> bytes:
    """A bitmap as an icon has it, with its mask: True is transparent."""
    bands = [2, 1, 0, 3] if bits == 32 else [2, 1, 0]
    rows = np.asarray(image.convert("RGBA"))[::-1][..., bands].tobytes()
    width, height = image.size
    info = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, bits, 0, 0, 0, 0, 0, 0)
    plane = np.zeros((height, width), bool) if mask is None else mask[::-1]
    bytes_of_mask = np.packbits(plane, axis=1)
    pad = -bytes_of_mask.shape[1] % 4
    return info + rows + np.pad(bytes_of_mask, ((0, 0), (0, pad))).tobytes()


def _square(picture: Image.Image) -> Image.Image:
    return picture.resize((_SIDE, _SIDE))


def ico_zero_alpha(picture: Image.Image) -> bytes:
    """32 bits whose alpha is 0 everywhere: the mask counts, and it says opaque."""
    image = _square(picture).convert("RGBA")
    image.putalpha(0)
    return ico((_SIDE, dib(image, None)))


def ico_zero_alpha_masked(picture: Image.Image) -> bytes:
    """Alpha 0 everywhere, white pixels: the picture is in the mask."""
    spots = _spots(picture)
    white = Image.new("RGBA", spots.shape[::-1], (255, 255, 255, 0))
    return ico((252, dib(white, spots == 0)))


def _spots(picture: Image.Image) -> np.ndarray:
    return threshold(picture.resize((84, 84)), 2)


def ico_24(picture: Image.Image) -> bytes:
    """24 bits, white: the picture is in the mask."""
    spots = _spots(picture)
    white = Image.new("RGBA", spots.shape[::-1], "white")
    return ico((252, dib(white, spots == 0, 24)))


def ico_alpha_and_mask(picture: Image.Image) -> bytes:
    """A mask that hides all, beside alpha that shows all: 32 bits have no use for the mask."""
    image = _square(picture).convert("RGBA")
    return ico((_SIDE, dib(image, np.ones((_SIDE, _SIDE), bool))))


def ico_in_alpha(picture: Image.Image) -> bytes:
    return ico((_SIDE, dib(in_alpha(_square(picture), 255), None)))


def ico_png_in_alpha(picture: Image.Image) -> bytes:
    return ico((_SIDE, writers.save(in_alpha(_square(picture), 255), "PNG")))


def ico_two(first: int, second: int) -> Make:
    """Two icons: the picture and a drawing, with the sides that the directory says."""

    def make(picture: Image.Image) -> bytes:
        shown = writers.save(_square(picture), "PNG")
        other = writers.save(writers.other(_square(picture)), "PNG")
        return ico((first, shown), (second, other))

    return make


def ico_lying(picture: Image.Image) -> bytes:
    """The directory says 16, the picture has 256."""
    small = writers.other(_square(picture)).resize((32, 32))
    return ico((16, writers.save(_square(picture), "PNG")), (32, writers.save(small, "PNG")))


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Transparency", kind, quirk, make, **more)


CASES = (
    _c("BMP", "version 4, white pixels, the picture in alpha", bmp_alpha(255, 108)),
    _c("BMP", "version 5, white pixels, the picture in alpha", bmp_alpha(255, 124)),
    _c("BMP", "version 3 with an alpha mask, black pixels", bmp_alpha(0, 56), known=False),
    _c("BMP", "version 1 with four masks behind it", bmp_alpha(255, 40, _MASKS, 6), known=False),
    _c("BMP", "version 1, fourth bytes are no alpha", bmp_alpha(255, 40, (), 0), known=False),
    _c("BMP", "version 4, alpha 0 but for one pixel", bmp_faint, known=False),
    _c("BMP", "version 4, fourth bytes that no mask names", bmp_no_mask),
    _c("BMP", "version 4, alpha 0 everywhere", writers.bmp_empty_alpha, control=plainly),
    _c("BMP", "16 bits, one of them alpha", bmp_1555),
    _c("ICO", "32 bits, alpha 0 everywhere, mask opaque", ico_zero_alpha),
    _c(
        "ICO",
        "32 bits, alpha 0 everywhere, the picture in the mask",
        ico_zero_alpha_masked,
        known=False,
    ),
    _c("ICO", "24 bits, the picture in the mask", ico_24, known=False),
    _c("ICO", "32 bits, opaque, mask hides all", ico_alpha_and_mask),
    _c("ICO", "white pixels, the picture in alpha", ico_in_alpha),
    _c("ICO", "PNG inside, white pixels, the picture in alpha", ico_png_in_alpha),
    _c("ICO", "two icons of one size, the first shown", ico_two(256, 256), known=False),
    _c("ICO", "two icons, the directory says the second is small", ico_two(256, 16)),
    _c("ICO", "two icons, the directory says the first is small", ico_two(16, 256), known=False),
    _c("ICO", "the directory says 16, the PNG inside has 256", ico_lying, known=False),
)
