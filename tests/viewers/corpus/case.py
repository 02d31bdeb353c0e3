"""What a case of the corpus is, and the picture that all of them hide or show."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import skimage.data
from PIL import Image

type Kind = Literal["Colour", "Transparency", "Animation", "Geometry", "Damage"]
type Make = Callable[[Image.Image], bytes]
type Draw = Callable[[Image.Image], Image.Image]

SIZE = (400, 320)
"""Of the known picture: not square, so that a turned one is seen to be turned."""
SCREENED = "screened"
_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "APNG": "image/apng",
    "GIF": "image/gif",
    "WebP": "image/webp",
    "AVIF": "image/avif",
    "HEIC": "image/heic",
    "JPEG XL": "image/jxl",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "DNG": "image/x-adobe-dng",
    "ICO": "image/x-icon",
}


@dataclass(frozen=True)
class Case:
    """One file, and what the worker has to make of it.

    Attributes:
        make: Writes the file from the known picture.
        expected: `screened`, or the reason that it may be `unscreened` with.
        frame: The frame of an animation that Chromium's picture is taken from; None: of a still.
        control: The picture that a viewer shows where Chromium shows nothing.
        also: What another viewer is known to show, which the worker has to reach too.
        known: Whether a viewer sees the known picture, on white or on black.
        tool: A program that `make` needs; the case is left out where the program is absent.
    """

    kind: Kind
    format: str
    quirk: str
    make: Make
    expected: str = SCREENED
    frame: int | None = None
    control: Draw | None = None
    also: Draw | None = None
    known: bool = True
    tool: str | None = None

    @property
    def is_makeable(self) -> bool:
        """Whether the program that writes the file is installed, where one is needed."""
        return self.tool is None or shutil.which(self.tool) is not None

    @property
    def content_type(self) -> str:
        return _TYPES[self.format]

    @property
    def name(self) -> str:
        return f"{self.format}: {self.quirk}"


@functools.cache
def known_picture() -> Image.Image:
    """The picture that no upload may show: a portrait (NASA, public domain)."""
    portrait = Image.fromarray(skimage.data.astronaut()).convert("RGB")
    return portrait.crop((0, 0, 512, 410)).resize(SIZE, Image.Resampling.LANCZOS)


def plainly(picture: Image.Image) -> Image.Image:
    """The control of a file that shows the picture itself."""
    return picture
