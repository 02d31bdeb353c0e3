"""APNG and WebP animations that show the picture only where frames are composed as specified."""

import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import png_chunk, png_chunks, png_of
from tests.viewers.corpus.animation import apng_of, indexed, others, times
from tests.viewers.corpus.case import SIZE, Case, Make
from tests.viewers.moving import (
    BACKGROUND,
    GREY,
    PALETTE,
    PREVIOUS,
    RGB,
    RGBA,
    ApngFrame,
    WebpFrame,
    apng,
    webp,
)

_WIDTH, _HEIGHT = SIZE
_OVER, _SOURCE = 1, 0
_LONG = 60_000


def _array(image: Image.Image, mode: str = "RGBA") -> np.ndarray:
    return np.asarray(image.convert(mode))


def disposed(dispose: int, color: int, mode: str) -> Make:
    """A drawing that is disposed of, and a dot of the next frame; the picture is below it."""

    def make(picture: Image.Image) -> bytes:
        frames = [
            ApngFrame(_array(picture, mode), numerator=20),
            ApngFrame(_array(writers.other(picture), mode), numerator=20, dispose=dispose),
            ApngFrame(_array(picture, mode)[:1, :1], numerator=_LONG),
        ]
        return apng(*SIZE, frames, color)

    return make


def cleared_to_show(color: int, mode: str) -> Make:
    """BACKGROUND on the part that a drawing covers, then the picture's part, blended over."""

    def make(picture: Image.Image) -> bytes:
        cut = _HEIGHT // 3
        frames = [
            ApngFrame(_array(picture, mode), numerator=20),
            ApngFrame(_array(writers.other(picture), mode)[:cut], 0, 0, 20, dispose=BACKGROUND),
            ApngFrame(_array(picture, mode)[-1:, -1:], _WIDTH - 1, _HEIGHT - 1, _LONG),
        ]
        return apng(*SIZE, frames, color)

    return make


def quarters(color: int, mode: str) -> Make:
    """Four parts, each added by a frame of its own."""

    def make(picture: Image.Image) -> bytes:
        pixels = _array(picture, mode)
        frames = [ApngFrame(np.zeros_like(pixels), numerator=20)]
        for x in (0, _WIDTH // 2):
            for y in (0, _HEIGHT // 2):
                part = pixels[y : y + _HEIGHT // 2, x : x + _WIDTH // 2]
                frames.append(ApngFrame(part, x, y, 20, blend=_OVER))
        frames.append(ApngFrame(pixels[:1, :1], numerator=_LONG))
        return apng(*SIZE, frames, color)

    return make


def half_alpha(blend: int) -> Make:
    """The picture at half alpha over a drawing: blended, or put in its place."""

    def make(picture: Image.Image) -> bytes:
        veil = picture.convert("RGBA")
        veil.putalpha(128)
        frames = [
            ApngFrame(_array(writers.other(picture)), numerator=20),
            ApngFrame(_array(veil), numerator=_LONG, blend=blend),
        ]
        return apng(*SIZE, frames)

    return make


def squared(picture: Image.Image) -> bytes:
    """Alpha that is squared by who multiplies with it twice: faint strokes over clear black."""
    grey = np.asarray(picture.convert("L"))
    ink = np.dstack([np.full((*grey.shape, 3), 255, np.uint8), grey // 4 + 10])
    frames = [ApngFrame(np.zeros_like(ink), numerator=20)]
    frames += [ApngFrame(ink, numerator=_LONG if n == 2 else 20, blend=_OVER) for n in range(3)]
    return apng(*SIZE, frames)


def palette_frames(picture: Image.Image) -> bytes:
    """A palette with a clear entry, which shows what is below it."""
    indices, palette = indexed(picture)
    chunks = [
        png_chunk(b"PLTE", palette.tobytes()),
        png_chunk(b"tRNS", b"\xff" * 255 + b"\0"),
    ]
    clear = np.full_like(indices, 255)
    frames = [
        ApngFrame(indices, numerator=20),
        ApngFrame(clear, numerator=_LONG, blend=_OVER),
    ]
    return apng(*SIZE, frames, PALETTE, chunks=chunks)


def palette_replaced(picture: Image.Image) -> bytes:
    """A frame of clear entries that replaces a drawing, and then the picture over it."""
    indices, palette = indexed(picture)
    chunks = [
        png_chunk(b"PLTE", palette.tobytes()),
        png_chunk(b"tRNS", b"\xff" * 255 + b"\0"),
    ]
    frames = [
        ApngFrame(np.roll(indices, 150, 0), numerator=20, dispose=PREVIOUS),
        ApngFrame(indices, numerator=_LONG, blend=_OVER),
    ]
    return apng(*SIZE, frames, PALETTE, chunks=chunks)


def grey_transparent(picture: Image.Image) -> bytes:
    """Grey frames whose level 0 is clear."""
    pixels = np.maximum(_array(picture, "L"), 1)
    frames = [
        ApngFrame(pixels, numerator=20),
        ApngFrame(np.zeros_like(pixels), numerator=_LONG, blend=_OVER),
    ]
    return apng(*SIZE, frames, GREY, chunks=[png_chunk(b"tRNS", b"\0\0")])


def default_hidden(default: Callable[[Image.Image], Image.Image], *, shown: bool) -> Make:
    """A default image outside of the animation, of one frame or two."""

    def make(picture: Image.Image) -> bytes:
        frames = [ApngFrame(_array(picture), numerator=_LONG)]
        if shown:
            frames.append(ApngFrame(_array(picture)[:1, :1], numerator=20))
        return apng(*SIZE, frames, default=_array(default(picture)))

    return make


def part_over_default(picture: Image.Image) -> bytes:
    """The default image must not shine through a first frame with clear parts."""
    disc = _array(writers.in_disc(picture))
    frames = [ApngFrame(disc, numerator=_LONG, blend=_OVER), ApngFrame(disc[:1, :1])]
    return apng(*SIZE, frames, default=_array(writers.other(picture)))


def told_count(count: int) -> Make:
    """`acTL` says another number of frames."""
    return lambda picture: apng_of([*others(picture, 2), picture], times(3, 2), count=count)


def changed_chunks(change: Callable[[list[bytes]], list[bytes]]) -> Make:
    def make(picture: Image.Image) -> bytes:
        return png_of(change(png_chunks(apng_of([*others(picture, 1), picture], times(2, 1)))))

    return make


def _actl_late(chunks: list[bytes]) -> list[bytes]:
    """`acTL` behind the first frame: no animation, the default image is shown."""
    rest = [one for one in chunks if one[4:8] != b"acTL"]
    at = next(n for n, one in enumerate(rest) if one[4:8] == b"IDAT")
    return [*rest[: at + 1], chunks[1], *rest[at + 1 :]]


def _no_first_control(chunks: list[bytes]) -> list[bytes]:
    return [one for n, one in enumerate(chunks) if n != 2]


def _numbers_from_one(chunks: list[bytes]) -> list[bytes]:
    def moved(one: bytes) -> bytes:
        if one[4:8] not in (b"fcTL", b"fdAT"):
            return one
        (number,) = struct.unpack_from(">I", one, 8)
        return png_chunk(one[4:8], struct.pack(">I", number + 1) + one[12:-4])

    return [moved(one) for one in chunks]


def _wrong_frame_checksum(chunks: list[bytes]) -> list[bytes]:
    return [one[:-4] + b"nope" if one[4:8] == b"fdAT" else one for one in chunks]


# -- WebP --------------------------------------------------------------------------------------


def webp_blended(*, blend: bool, dispose: bool) -> Make:
    """A drawing, and a frame with a clear middle over it."""

    def make(picture: Image.Image) -> bytes:
        ring = picture.convert("RGBA")
        ring.putalpha(Image.fromarray(np.where(_middle(), 0, 255).astype(np.uint8)))
        frames = [
            WebpFrame(writers.other(picture), milliseconds=20, dispose=dispose),
            WebpFrame(ring, milliseconds=_LONG, blend=blend),
        ]
        return webp(*SIZE, frames)

    return make


def _middle() -> np.ndarray:
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    return np.asarray((np.abs(x - 200) < 40) & (np.abs(y - 160) < 40))


def webp_quarters(picture: Image.Image) -> bytes:
    frames = []
    for x in (0, _WIDTH // 2):
        for y in (0, _HEIGHT // 2):
            part = picture.crop((x, y, x + _WIDTH // 2, y + _HEIGHT // 2))
            frames.append(WebpFrame(part, x, y, 20))
    frames.append(WebpFrame(picture.crop((0, 0, 2, 2)), 0, 0, _LONG))
    return webp(*SIZE, frames)


def webp_background(picture: Image.Image) -> bytes:
    """A background colour that browsers do not paint, around a picture that is disposed of."""
    frames = [
        WebpFrame(writers.other(picture), milliseconds=20, dispose=True),
        WebpFrame(picture.crop((0, 0, 320, 260)), milliseconds=_LONG),
    ]
    return webp(*SIZE, frames, background=b"\xff\0\xff\xff")


def webp_still_beside(picture: Image.Image) -> bytes:
    """Frames whose flag in the header is missing."""
    frames = [WebpFrame(picture, milliseconds=_LONG), WebpFrame(writers.other(picture))]
    return webp(*SIZE, frames, flags=0x10)


def _c(kind: str, quirk: str, make: Make, frame: int, **more) -> Case:
    return Case("Animation", kind, quirk, make, frame=frame, **more)


CASES = (
    _c(
        "APNG",
        "RGB, a drawing over the picture is disposed of to PREVIOUS",
        disposed(PREVIOUS, RGB, "RGB"),
        2,
    ),
    _c(
        "APNG",
        "RGBA, a drawing over the picture is disposed of to PREVIOUS",
        disposed(PREVIOUS, RGBA, "RGBA"),
        2,
    ),
    _c(
        "APNG",
        "grey, a drawing over the picture is disposed of to PREVIOUS",
        disposed(PREVIOUS, GREY, "L"),
        2,
    ),
    _c(
        "APNG",
        "RGB, a drawing over the picture is disposed of to BACKGROUND",
        disposed(BACKGROUND, RGB, "RGB"),
        2,
        known=False,
    ),
    _c(
        "APNG",
        "RGB, a third is cleared to transparent",
        cleared_to_show(RGB, "RGB"),
        2,
        known=False,
    ),
    _c(
        "APNG",
        "grey, a third is cleared to transparent",
        cleared_to_show(GREY, "L"),
        2,
        known=False,
    ),
    _c(
        "APNG",
        "RGBA, a third is cleared to transparent",
        cleared_to_show(RGBA, "RGBA"),
        2,
        known=False,
    ),
    _c("APNG", "RGB, four quarters blended over nothing", quarters(RGB, "RGB"), 5),
    _c("APNG", "RGBA, four quarters blended over nothing", quarters(RGBA, "RGBA"), 5),
    _c("APNG", "half alpha blended over a drawing", half_alpha(_OVER), 1, known=False),
    _c("APNG", "half alpha in place of a drawing", half_alpha(_SOURCE), 1),
    _c("APNG", "faint alpha, blended three times", squared, 3),
    _c("APNG", "palette with a clear entry over the picture", palette_frames, 1),
    _c("APNG", "palette, a first frame disposed of to PREVIOUS", palette_replaced, 1),
    _c("APNG", "grey with a clear level over the picture", grey_transparent, 1),
    _c(
        "APNG",
        "a default image outside of one frame",
        default_hidden(writers.other, shown=False),
        0,
    ),
    _c(
        "APNG",
        "a default image outside of two frames",
        default_hidden(writers.other, shown=True),
        0,
    ),
    _c("APNG", "clear parts of a first frame over a default image", part_over_default, 0),
    _c("APNG", "acTL says 2 of 3 frames", told_count(2), 1, known=False),
    _c("APNG", "acTL says 9 of 3 frames", told_count(9), 2),
    _c("APNG", "acTL says one of 3 frames", told_count(1), 0, known=False),
    _c("APNG", "acTL behind the first frame", changed_chunks(_actl_late), 0, known=False),
    _c("APNG", "a first frame without fcTL", changed_chunks(_no_first_control), 0, known=False),
    _c("APNG", "sequence numbers from 1", changed_chunks(_numbers_from_one), 0, known=False),
    _c("APNG", "wrong checksum of a frame", changed_chunks(_wrong_frame_checksum), 1, known=False),
    _c("WebP", "blended over a drawing", webp_blended(blend=True, dispose=False), 1),
    _c("WebP", "in place of a drawing", webp_blended(blend=False, dispose=False), 1),
    _c("WebP", "over a drawing that is disposed of", webp_blended(blend=True, dispose=True), 1),
    _c("WebP", "four quarters", webp_quarters, 4),
    _c("WebP", "a background colour that browsers do not paint", webp_background, 1, known=False),
    _c("WebP", "an animation that the header does not announce", webp_still_beside, 0, known=False),
)
