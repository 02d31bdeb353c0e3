"""The files that `mutations.py` changes: the known picture in each format, plain and disguised."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    box,
    iccp,
    jpeg_icc,
    jpeg_with,
    png_with,
    riff_chunk,
    riff_of,
    webp_extended,
)
from tests.viewers.corpus import profile_bytes as icc
from tests.viewers.corpus.animation import indexed
from tests.viewers.corpus.bitmaps import bmp, dib, ico
from tests.viewers.corpus.case import Case, Make
from tests.viewers.corpus.jpegxl import contained
from tests.viewers.corpus.transparency import in_alpha
from tests.viewers.moving import ApngFrame, GifFrame, WebpFrame, apng, avif, gif, webp

_LONG, _SHORT = 5000, 20
_MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@dataclass(frozen=True)
class Base:
    """A file to change. `make` writes it from the known picture."""

    format: str
    quirk: str
    make: Make

    @property
    def content_type(self) -> str:
        return Case("Damage", self.format, self.quirk, self.make).content_type


def _apng(color: str) -> Make:
    def make(picture: Image.Image) -> bytes:
        frames = [
            ApngFrame(np.asarray(writers.other(picture).convert(color)), numerator=_SHORT),
            ApngFrame(np.asarray(picture.convert(color)), numerator=_LONG, blend=1),
            ApngFrame(np.asarray(picture.convert(color))[:40, :40], 9, 9, _SHORT, dispose=2),
        ]
        return apng(*picture.size, frames, 2 if color == "RGB" else 6)

    return make


def _gif(count: int) -> Make:
    def make(picture: Image.Image) -> bytes:
        indices, palette = indexed(picture)
        drawn, drawing = indexed(writers.other(picture))
        shown = GifFrame(indices, delay=_LONG // 10, palette=palette, transparent=255)
        others = [
            GifFrame(drawn, delay=_SHORT // 10, palette=drawing, disposal=n % 4)
            for n in range(count)
        ]
        return gif(*picture.size, [*others, shown], palette if count else None)

    return make


def _webp_moving(picture: Image.Image) -> bytes:
    first = WebpFrame(writers.other(picture), milliseconds=_SHORT, dispose=True)
    return webp(*picture.size, [first, WebpFrame(picture, milliseconds=_LONG, lossless=False)])


def _webp_profile(picture: Image.Image) -> bytes:
    data = writers.save(icc.scrambled(picture), "WEBP", lossless=True)
    first, *rest = webp_extended(data, 0x20, *picture.size)
    return riff_of([first, riff_chunk(b"ICCP", icc.unscrambling()), *rest])


def _webp_extended(picture: Image.Image) -> bytes:
    data = writers.save(picture, "WEBP", quality=90)
    return riff_of(webp_extended(data, 0, *picture.size))


def _png_profile(picture: Image.Image) -> bytes:
    return png_with(writers.save(icc.scrambled(picture), "PNG"), iccp(icc.unscrambling()))


def _jpeg_profile(picture: Image.Image) -> bytes:
    data = writers.save(icc.negative(picture), "JPEG", quality=90)
    return jpeg_with(data, jpeg_icc(icc.negating()))


def _jxl_container(picture: Image.Image) -> bytes:
    return contained(box(b"jxlc", writers.save(picture, "JXL")))


def _small(picture: Image.Image) -> Image.Image:
    return picture.resize((128, 128))


def _alpha(kind: str, **options) -> Callable[[Image.Image], bytes]:
    return lambda picture: writers.save(in_alpha(picture, 255), kind, **options)


_SAVED = writers.saved
BASES = (
    Base("JPEG", "baseline", _SAVED("JPEG", quality=85)),
    Base("JPEG", "progressive", _SAVED("JPEG", quality=85, progressive=True)),
    Base("JPEG", "CMYK", _SAVED("JPEG", "CMYK", quality=90)),
    Base("JPEG", "grey", _SAVED("JPEG", "L", quality=90)),
    Base("JPEG", "negative under a profile", _jpeg_profile),
    Base("PNG", "RGB", _SAVED("PNG")),
    Base("PNG", "RGB in several chunks", lambda p: writers.png(np.asarray(p), 8, 2)),
    Base("PNG", "grey", _SAVED("PNG", "L")),
    Base("PNG", "palette", lambda p: writers.save(p.quantize(256), "PNG")),
    Base("PNG", "16 bits", writers.sixteen("RGB", 2)),
    Base("PNG", "the picture in alpha", _alpha("PNG")),
    Base("PNG", "scrambled under a profile", _png_profile),
    Base("APNG", "RGB", _apng("RGB")),
    Base("APNG", "RGBA", _apng("RGBA")),
    Base("GIF", "still", _gif(0)),
    Base("GIF", "moving", _gif(3)),
    Base("WebP", "lossy", _SAVED("WEBP", quality=90)),
    Base("WebP", "extended", _webp_extended),
    Base("WebP", "the picture in alpha", _alpha("WEBP", lossless=True)),
    Base("WebP", "scrambled under a profile", _webp_profile),
    Base("WebP", "moving", _webp_moving),
    Base("AVIF", "still", _SAVED("AVIF", quality=80)),
    Base("AVIF", "the picture in alpha", _alpha("AVIF", quality=80)),
    Base("AVIF", "moving", lambda p: avif([writers.other(p), p], [_SHORT, _LONG])),
    Base("JPEG XL", "in a container", _jxl_container),
    Base("BMP", "24 bits", _SAVED("BMP")),
    Base("BMP", "version 4", lambda p: bmp(p.convert("RGBA"), 108, _MASKS)),
    Base("BMP", "palette", lambda p: writers.save(p.quantize(256), "BMP")),
    Base("ICO", "PNG inside", lambda p: ico((128, writers.save(_small(p), "PNG")))),
    Base("ICO", "bitmap inside", lambda p: ico((128, dib(_small(p), None)))),
)
