"""Animations that show the picture in an odd frame, or only where frames are composed right."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.corpus.case import SIZE, Case, Make
from tests.viewers.moving import (
    RGB,
    ApngFrame,
    GifFrame,
    WebpFrame,
    apng,
    avif,
    gif,
    webp,
)

_WIDTH, _HEIGHT = SIZE
_STRIPS = 8
_LONG, _SHORT = 60_000, 20
_CLEAR = 255


def others(picture: Image.Image, count: int) -> list[Image.Image]:
    return [writers.other(picture).rotate(23 * n) for n in range(count)]


def times(count: int, at: int) -> list[int]:
    """Milliseconds: all short, but for one frame."""
    return [_LONG if n == at else _SHORT for n in range(count)]


def one_long(kind: str, at: int, count: int) -> Make:
    """Only the frame `at` is shown for long, and it is the picture."""

    def make(picture: Image.Image) -> bytes:
        shown = others(picture, count)
        shown[at] = picture
        if kind == "GIF":
            return gif_of(shown, times(count, at))
        if kind == "APNG":
            return apng_of(shown, times(count, at))
        if kind == "WebP":
            frames = [WebpFrame(image, milliseconds=time, lossless=False)
                      for image, time in zip(shown, times(count, at), strict=True)]  # fmt: skip
            return webp(*SIZE, frames)
        return avif(shown, times(count, at))

    return make


def brief(kind: str, at: int, count: int, milliseconds: int) -> Make:
    """The picture is shown for a moment only, among frames that are all different."""

    def make(picture: Image.Image) -> bytes:
        shown = others(picture, count)
        shown[at] = picture
        lengths = [milliseconds if n == at else 100 for n in range(count)]
        return gif_of(shown, lengths) if kind == "GIF" else apng_of(shown, lengths)

    return make


def gif_of(images: Sequence[Image.Image], milliseconds: Sequence[int], **options) -> bytes:
    frames = []
    for image, time in zip(images, milliseconds, strict=True):
        indices, palette = indexed(image)
        frames.append(GifFrame(indices, delay=time // 10, palette=palette))
    return gif(*SIZE, frames, **options)


def apng_of(images: Sequence[Image.Image], milliseconds: Sequence[int], **options) -> bytes:
    frames = [
        ApngFrame(np.asarray(image), numerator=time)
        for image, time in zip(images, milliseconds, strict=True)
    ]
    return apng(*SIZE, frames, RGB, **options)


def indexed(image: Image.Image, colors: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Indices below `colors`, and a palette of 256."""
    small = image.convert("RGB").quantize(colors)
    palette = np.zeros((256, 3), np.uint8)
    known = np.asarray(small.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
    palette[: len(known)] = known
    return np.asarray(small), palette


# -- GIF: how frames are disposed of -----------------------------------------------------------


def strip(number: int) -> slice:
    height = _HEIGHT // _STRIPS
    return slice(number * height, (number + 1) * height)


def strips(disposals: Sequence[int], first: int) -> Make:
    """A first frame of disposal `first`, and then strips that add up to the picture."""

    def make(picture: Image.Image) -> bytes:
        indices, palette = indexed(picture)
        blank = np.full((_HEIGHT, _WIDTH), _CLEAR)
        frames = [GifFrame(blank, transparent=_CLEAR, disposal=first, palette=palette, delay=2)]
        for number in range(_STRIPS):
            part = indices[strip(number)]
            last = number == _STRIPS - 1
            frames.append(GifFrame(
                part, 0, strip(number).start, 6000 if last else 2,
                disposals[number % len(disposals)], palette=palette,
            ))  # fmt: skip
        return gif(*SIZE, frames)

    return make


def restored(disposal: int) -> Make:
    """The picture, a drawing over it that is disposed of, and a last frame of one clear pixel."""

    def make(picture: Image.Image) -> bytes:
        indices, palette = indexed(picture)
        drawn, drawing = indexed(writers.other(picture))
        pixel = np.full((1, 1), _CLEAR)
        frames = [
            GifFrame(indices, delay=2, disposal=1, palette=palette),
            GifFrame(drawn, delay=2, disposal=disposal, palette=drawing),
            GifFrame(pixel, delay=6000, transparent=_CLEAR, palette=palette),
        ]
        return gif(*SIZE, frames)

    return make


def cleared_part(disposal: int) -> Make:
    """A drawing over half of the picture, disposed of; clear where it was."""

    def make(picture: Image.Image) -> bytes:
        indices, palette = indexed(picture)
        drawn, drawing = indexed(writers.other(picture))
        half = drawn[_HEIGHT * 3 // 4 :]
        pixel = np.full((1, 1), _CLEAR)
        frames = [
            GifFrame(indices, delay=2, disposal=1, palette=palette),
            GifFrame(half, 0, _HEIGHT * 3 // 4, 2, disposal, palette=drawing),
            GifFrame(pixel, delay=6000, transparent=_CLEAR, palette=palette),
        ]
        return gif(*SIZE, frames)

    return make


def first_restored(picture: Image.Image) -> bytes:
    """The first frame is to be restored to what was before it: nothing."""
    drawn, drawing = indexed(writers.other(picture))
    indices, palette = indexed(picture)
    indices = indices.copy()
    indices[::16] = _CLEAR
    frames = [
        GifFrame(drawn, delay=2, disposal=3, palette=drawing),
        GifFrame(indices, delay=6000, transparent=_CLEAR, palette=palette),
    ]
    return gif(*SIZE, frames)


def background_color(picture: Image.Image) -> bytes:
    """A canvas whose background colour is seen by who paints it; browsers leave it clear."""
    indices, palette = indexed(picture)
    half = indices[:, : _WIDTH * 3 // 4]
    palette = palette.copy()
    palette[_CLEAR] = (255, 0, 255)
    return gif(*SIZE, [GifFrame(half, palette=None)], palette, background=_CLEAR)


def beyond_canvas(picture: Image.Image) -> bytes:
    """The first frame is larger than the canvas."""
    indices, palette = indexed(picture)
    small = (_WIDTH // 4, _HEIGHT // 4)
    return gif(*small, [GifFrame(indices, palette=palette)])


def offset_first(picture: Image.Image) -> bytes:
    """A canvas of twice the size, the picture in its corner, a second frame elsewhere."""
    indices, palette = indexed(picture)
    frames = [
        GifFrame(indices, _WIDTH // 8, _HEIGHT // 8, 6000, palette=palette),
        GifFrame(indices[:8, :8], 0, 0, 2, palette=palette),
    ]
    return gif(_WIDTH * 5 // 4, _HEIGHT * 5 // 4, frames)


def interlaced(picture: Image.Image) -> bytes:
    indices, palette = indexed(picture)
    return gif(*SIZE, [GifFrame(indices, palette=palette, interlaced=True)])


def true_color(picture: Image.Image) -> bytes:
    """More than 256 colours, in tiles of zero delay with palettes of their own."""
    frames = []
    tile = 80
    for y in range(0, _HEIGHT, tile):
        for x in range(0, _WIDTH, tile):
            part = picture.crop((x, y, x + tile, y + tile))
            indices, palette = indexed(part, 256)
            frames.append(GifFrame(indices, x, y, 0, 1, palette=palette))
    return gif(*SIZE, frames, loops=None)


def no_palette(picture: Image.Image) -> bytes:
    """A first frame without any palette, then the picture."""
    indices, palette = indexed(picture)
    frames = [
        GifFrame(np.zeros((_HEIGHT, _WIDTH), int), delay=2),
        GifFrame(indices, delay=6000, palette=palette),
    ]
    return gif(*SIZE, frames)


def many(count: int, at: int) -> Make:
    """More frames than are looked at: tiny ones, but for the picture."""

    def make(picture: Image.Image) -> bytes:
        indices, palette = indexed(picture)
        drawn, drawing = indexed(writers.other(picture))
        dot = GifFrame(np.full((1, 1), _CLEAR), delay=2, transparent=_CLEAR)
        frames = [dot] * count
        frames[0] = GifFrame(drawn, delay=2, palette=drawing)
        frames[at] = GifFrame(indices, delay=6000, palette=palette)
        return gif(*SIZE, frames, drawing)

    return make


def _c(kind: str, quirk: str, make: Make, frame: int, **more) -> Case:
    return Case("Animation", kind, quirk, make, frame=frame, **more)


CASES = (
    *(
        _c(kind, f"five frames, the {place} shown for 60 s", one_long(kind, at, 5), at)
        for kind in ("GIF", "APNG", "WebP", "AVIF")
        for at, place in ((1, "second"), (2, "third"))
    ),
    *(
        _c(kind, "forty frames, the 18th shown for 60 s", one_long(kind, 17, 40), 17)
        for kind in ("GIF", "WebP")
    ),
    _c("GIF", "nine frames of 100 ms, the picture is the fifth", brief("GIF", 4, 9, 100), 4),
    _c("APNG", "nine frames of 100 ms, the picture is the sixth", brief("APNG", 5, 9, 100), 5),
    _c("GIF", "eight strips add up, disposal 0 after 2", strips((0,), 2), 8),
    _c("GIF", "eight strips add up, disposal 0 after 3", strips((0,), 3), 8),
    _c("GIF", "eight strips add up, disposals 0 and 1", strips((0, 1), 2), 8),
    _c("GIF", "eight strips add up, disposal 4", strips((4,), 0), 8, known=False),
    _c("GIF", "eight strips add up, disposals 5 to 7", strips((5, 6, 7), 0), 8),
    _c("GIF", "a drawing over the picture, disposal 3", restored(3), 2),
    _c("GIF", "a drawing over the picture, disposal 4", restored(4), 2, known=False),
    _c("GIF", "a drawing over the picture, disposal 2", restored(2), 2, known=False),
    _c("GIF", "a drawing over a quarter, disposal 2", cleared_part(2), 2),
    _c("GIF", "the first frame has disposal 3", first_restored, 1, known=False),
    _c("GIF", "a background colour that browsers leave clear", background_color, 0),
    _c("GIF", "a first frame larger than the canvas", beyond_canvas, 0),
    _c("GIF", "a first frame at an offset", offset_first, 0),
    _c("GIF", "interlaced", interlaced, 0),
    _c("GIF", "tiles of true colour without delay", true_color, 19),
    _c("GIF", "a first frame without palette", no_palette, 1),
    _c("GIF", "1,200 frames, the picture is the third", many(1200, 2), 2),
    _c("GIF", "300 frames, the picture is the 200th", many(300, 199), 199),
)
