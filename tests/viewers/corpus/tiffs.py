"""TIFF and DNG: directories of thumbnails, transparency, planes. Chromium shows none of them."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.fixtures import writers
from tests.viewers.corpus.case import Case, Kind, Make, plainly

_REDUCED, _PAGE = 1, 2
_DNG_VERSION = (50706, "B", 4, (1, 4, 0, 0), True)
_OLD_SUBFILE_TYPE = 255
UNSUPPORTED = "unsupported_format"
type Tags = Sequence[tuple[int | str, int | str, int | None, Any, bool]]


def thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(writers.other(picture).resize((100, 80)))


def thumbnail_first(*, subfile: int = _REDUCED, tags: Tags = ()) -> Make:
    """A drawing of 100 x 80 in the first directory, the picture in the second one."""

    def make(picture: Image.Image) -> bytes:
        stream = io.BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            writer.write(thumbnail(picture), subfiletype=subfile, metadata=None, extratags=tags)
            writer.write(np.asarray(picture), metadata=None, compression="zlib")
        return stream.getvalue()

    return make


def in_subdirectory(*, tags: Tags = ()) -> Make:
    """The picture in a directory below that of its thumbnail (`SubIFDs`)."""

    def make(picture: Image.Image) -> bytes:
        stream = io.BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            writer.write(
                thumbnail(picture), subfiletype=_REDUCED, subifds=1, metadata=None, extratags=tags
            )
            writer.write(np.asarray(picture), metadata=None, compression="zlib")
        return stream.getvalue()

    return make


def pages(at: int, count: int) -> Make:
    def make(picture: Image.Image) -> bytes:
        shown = [writers.other(picture).rotate(31 * n) for n in range(count)]
        shown[at] = picture
        options = {"save_all": True, "append_images": shown[1:], "compression": "tiff_lzw"}
        return writers.save(shown[0], "TIFF", **options)

    return make


def _c(kind: Kind, form: str, quirk: str, make: Make, **more) -> Case:
    return Case(kind, form, quirk, make, control=plainly, **more)


CASES = (
    _c("Geometry", "TIFF", "a thumbnail in the first directory", thumbnail_first()),
    _c("Geometry", "TIFF", "a thumbnail that is not said to be one", thumbnail_first(subfile=0)),
    _c("Geometry", "TIFF", "a first directory that is a page", thumbnail_first(subfile=_PAGE)),
    _c(
        "Geometry",
        "TIFF",
        "the picture below its thumbnail (SubIFDs)",
        in_subdirectory(),
        expected=UNSUPPORTED,
    ),
    _c(
        "Geometry",
        "DNG",
        "a thumbnail in the first directory",
        thumbnail_first(tags=[_DNG_VERSION]),
        expected=UNSUPPORTED,
    ),
    _c(
        "Geometry",
        "DNG",
        "the picture below its thumbnail (SubIFDs)",
        in_subdirectory(tags=[_DNG_VERSION]),
        expected=UNSUPPORTED,
    ),
    _c("Animation", "TIFF", "the third of seven pages", pages(2, 7)),
    _c("Damage", "TIFF", "uncompressed", writers.saved("TIFF")),
    _c("Damage", "TIFF", "Deflate", writers.saved("TIFF", compression="tiff_adobe_deflate")),
    _c("Geometry", "TIFF", "orientation 6", writers.turned("TIFF", 6)),
    _c("Transparency", "TIFF", "opaque, with an alpha channel", writers.saved("TIFF", "RGBA")),
)
