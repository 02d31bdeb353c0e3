"""What every reader of a format gives: a header first, and then the frames.

A reader walks the file's structure in Python, in time linear in its length, and hands the decoder a
file that holds nothing but the picture. Decoders and their wrappers have loops and tables of their
own for everything that a file may hold (comments, profiles, EXIF, frames): thousands of those would
make a small file cost seconds and gigabytes before the first pixel.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile

MOST_PROFILE_BYTES = 16 * 1024 * 1024
"""Of a colour profile. The picture under a larger one is not known."""

_LEAST_SECONDS, _SLOWED_SECONDS = 0.0101, 0.1
"""Browsers show a frame of at most 10 ms, give or take a rounding, for 100 ms."""

type Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


class Malformed(Exception):
    """The file is not built as its format says. The text is plain letters, none of the file's."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, on the file's whole canvas, in the file's own colours, not yet turned.

    `image` is in mode L, LA, RGB, RGBA or CMYK, 8 bits a channel. `seconds` is how long a viewer
    shows it in one round of the animation, infinite where it stays at the end, 0 for a still
    picture or a page. `truncated`: the file ends, or is damaged, before all of it is there.
    """

    image: Image.Image
    seconds: float = 0.0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its pictures.

    `width` and `height` are the canvas as it is stored, before `crop` (None: all of it) and
    `orientation` (EXIF's, 1 to 8). `frames` are those that the file says it has. `area` is the most
    pixels that the decoder holds for one frame, where that is more than the canvas.
    `bytes_per_pixel` is the most that decoding holds, where that is less than for other files of
    the format.
    `decode(target)` decodes the frames in order; with a target, the side in pixels that they will
    be resized to, it may decode at a part of the size, never below twice the target. It raises
    anything. `truncated`: the structure shows damage already.

    Of a JPEG: `scans` are passes over the picture; `coefficient_bytes` is what a pixel takes while
    they are collected, 0 where one pass gives the picture.

    `profiles` are the ICC profiles that the file may mean, at most two, the one that Chromium
    applies first; empty bytes stand for sRGB. The picture without any profile need not be listed.
    """

    width: int
    height: int
    decode: Callable[[int | None], Iterator[Frame]]
    frames: int = 1
    area: int = 0
    bytes_per_pixel: int | None = None
    orientation: int = 1
    crop: Box | None = None
    truncated: bool = False
    scans: int = 1
    coefficient_bytes: int = 0
    profiles: tuple[bytes, ...] = ()

    @property
    def pixels(self) -> int:
        """The most pixels that the decoder holds for one frame."""
        return max(self.area, self.width * self.height)


def shown_seconds(delay: float) -> float:
    """Return how long browsers show a frame with this delay, both in seconds."""
    return delay if delay > _LEAST_SECONDS else _SLOWED_SECONDS


def opened(
    reader: type[ImageFile], data: bytes, size: tuple[int, int], target: int | None = None
) -> ImageFile:
    """Open `data` with Pillow's reader. Raises Malformed unless it sees the size that was judged.

    With a target the reader may decode at a part of the size; see `Header`.
    """
    image = reader(BytesIO(data))
    if image.size != size:
        raise Malformed("of two sizes")
    if target is not None:
        image.draft(None, (2 * target, 2 * target))
    return image


def load(image: ImageFile) -> bool:
    """Decode the pixels; False where the data end early, or are damaged.

    Pixels that were not decoded are 0 then. Raises what the reader raises before the first pixel.
    """
    try:
        image.load()
    except (OSError, SyntaxError, ValueError):
        if image._im is None:  # noqa: SLF001 - whether there is anything is not to be had otherwise
            raise
        image.tile = []  # nothing more to decode: what there is stays
        return False
    return True


def plain(image: Image.Image) -> Image.Image:
    """The same pixels in one of the modes of a `Frame`: palettes applied, 8 bits a channel."""
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        if "transparency" not in image.info:
            return image
        return image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def bounded(icc: bytes) -> bytes:
    """The profile. Raises Malformed if it is too large."""
    if len(icc) > MOST_PROFILE_BYTES:
        raise Malformed("a colour profile of more than 16 MiB")
    return icc
