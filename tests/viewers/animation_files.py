"""Random animations that browsers accept, drawn from a seed: GIF, APNG, WebP and AVIF."""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.viewers.containers import png_chunk
from tests.viewers.moving import (
    BANDS,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    ApngFrame,
    Array,
    GifFrame,
    WebpFrame,
    apng,
    avif,
    gif,
    webp,
)

_DELAYS = (0, 0, 1, 2, 5, 10, 10, 100, 6000, 65535)
_DEPTHS = {
    GREY: (1, 2, 4, 8, 8, 16),
    RGB: (8, 8, 16),
    PALETTE: (1, 2, 4, 8, 8),
    GREY_ALPHA: (8, 8, 16),
    RGBA: (8, 8, 8, 16),
}
_SHARES = {"GIF": 40, "APNG": 35, "WebP": 20, "AVIF": 5}


@dataclass(frozen=True)
class Animation:
    """A random file."""

    number: int
    format: str
    content_type: str
    data: bytes


def draw(seed: int, number: int) -> Animation:
    """The animation of this number; the same for the same seed."""
    chance = random.Random(f"animation {seed} {number}")
    name = chance.choices(list(_SHARES), list(_SHARES.values()))[0]
    make, content_type = _WRITERS[name]
    return Animation(number, name, content_type, make(chance))


def _canvas(chance: random.Random) -> tuple[int, int]:
    return chance.choice((1, 7, 16, 40, 64, 90)), chance.choice((1, 9, 16, 33, 64))


def _part(chance: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a part of the canvas; often all of it."""
    if chance.random() < 0.3:
        return 0, 0, width, height
    part = chance.randint(1, width), chance.randint(1, height)
    return chance.randint(0, width - part[0]), chance.randint(0, height - part[1]), *part


def _levels(chance: random.Random, height: int, width: int, bands: int, most: int) -> Array:
    """Blocks of random levels, 0 to `most`: [height, width, bands]."""
    noise = np.random.default_rng(chance.randrange(1 << 30))
    block = chance.choice((1, 3, 8))
    coarse = noise.integers(0, most + 1, (height // block + 1, width // block + 1, bands))
    if chance.random() < 0.5:  # extremes are what transparency is made of
        coarse = np.where(noise.random(coarse.shape) < 0.5, coarse, most * (coarse > most // 2))
    whole = coarse.repeat(block, axis=0).repeat(block, axis=1)
    return np.asarray(whole[:height, :width])


def _palette(chance: random.Random, size: int) -> Array:
    return np.random.default_rng(chance.randrange(1 << 30)).integers(0, 256, (size, 3))


# -- GIF ---------------------------------------------------------------------------------------


def _gif(chance: random.Random) -> bytes:
    width, height = _canvas(chance)
    size = 1 << chance.randint(1, 8)
    palette = _palette(chance, size) if chance.random() < 0.7 else None
    count = chance.choice((1, 2, 3, 4, 6, 10))
    frames = [
        _gif_frame(chance, width, height, size, needs_palette=palette is None) for _ in range(count)
    ]
    return gif(
        width,
        height,
        frames,
        palette,
        background=chance.randrange(size),
        loops=chance.choice((None, 0, 0, 1, 7)),
        version=chance.choice((b"GIF89a", b"GIF89a", b"GIF87a")),
    )


def _gif_frame(
    chance: random.Random, width: int, height: int, size: int, *, needs_palette: bool
) -> GifFrame:
    left, top, wide, high = _part(chance, width, height)
    if chance.random() < 0.06:  # beyond the canvas
        left += chance.randint(0, width)
        top += chance.randint(0, height)
    local = None
    if needs_palette or chance.random() < 0.4:
        size = 1 << chance.randint(1, 8)
        local = _palette(chance, size)
    indices = _levels(chance, high, wide, 1, size - 1)[..., 0]
    clear = chance.choice((None, None, 0, chance.randrange(size), 255))
    if clear is not None and clear < size and chance.random() < 0.5:
        indices = np.where(_levels(chance, high, wide, 1, 1)[..., 0] != 0, clear, indices)
    return GifFrame(
        indices,
        left,
        top,
        chance.choice(_DELAYS),
        chance.choice((0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7)),
        clear,
        local,
        interlaced=chance.random() < 0.2,
        control=chance.random() < 0.9,
    )


# -- APNG --------------------------------------------------------------------------------------


def _apng(chance: random.Random) -> bytes:
    width, height = _canvas(chance)
    color = chance.choice((GREY, RGB, PALETTE, GREY_ALPHA, RGBA, RGBA))
    depth = chance.choice(_DEPTHS[color])
    most = (1 << depth) - 1
    chunks = _apng_chunks(chance, color, depth)
    default = None
    if chance.random() < 0.25:
        default = _levels(chance, height, width, BANDS[color], most)
    frames = []
    for number in range(chance.choice((1, 2, 3, 4, 6, 10))):
        whole = number == 0 and default is None
        part = (0, 0, width, height) if whole else _part(chance, width, height)
        left, top, wide, high = part
        frames.append(
            ApngFrame(
                _levels(chance, high, wide, BANDS[color], most),
                left,
                top,
                chance.choice(_DELAYS),
                chance.choice((0, 1, 100, 1000)),
                chance.choice((0, 1, 2)),
                chance.choice((0, 1)),
            )
        )
    plays = chance.choice((0, 1, 3))
    return apng(
        width, height, frames, color, chunks=chunks, plays=plays, default=default, depth=depth
    )


def _apng_chunks(chance: random.Random, color: int, depth: int) -> list[bytes]:
    """A palette where one is needed, and a transparent colour now and then."""
    most = (1 << depth) - 1
    chunks = []
    if color == PALETTE:
        table = np.asarray(_palette(chance, most + 1), np.uint8)
        chunks.append(png_chunk(b"PLTE", table.tobytes()))
    if chance.random() < 0.5:
        return chunks
    if color == PALETTE:
        levels = bytes(chance.choice((0, 0, 90, 255)) for _ in range(chance.randint(1, most + 1)))
        chunks.append(png_chunk(b"tRNS", levels))
    elif color in (GREY, RGB):
        clear = [chance.choice((0, most, chance.randint(0, most))) for _ in range(BANDS[color])]
        chunks.append(png_chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    return chunks


# -- WebP and AVIF -----------------------------------------------------------------------------


def _image(chance: random.Random, width: int, height: int, mode: str) -> Image.Image:
    levels = _levels(chance, height, width, len(mode), 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if mode == "L" else levels)


def _webp(chance: random.Random) -> bytes:
    width, height = _canvas(chance)
    frames = []
    for _ in range(chance.choice((1, 2, 3, 4, 6, 10))):
        left, top, wide, high = _part(chance, width, height)
        frames.append(
            WebpFrame(
                _image(chance, wide, high, chance.choice(("RGB", "RGBA", "RGBA"))),
                left - left % 2,
                top - top % 2,
                chance.choice((0, 1, 10, 11, 40, 100, 60_000, (1 << 24) - 1)),
                blend=chance.random() < 0.5,
                dispose=chance.random() < 0.4,
                lossless=chance.random() < 0.7,
            )
        )
    background = chance.randbytes(4)
    return webp(width, height, frames, background=background, loops=chance.choice((0, 1, 5)))


def _avif(chance: random.Random) -> bytes:
    """Smooth pictures: sharp ones differ by the way their colours are enlarged."""
    size = chance.choice((16, 40, 64, 90)), chance.choice((16, 33, 64))
    mode = chance.choice(("RGB", "RGB", "RGBA"))
    count = chance.choice((2, 3, 5))
    images = [_image(chance, 4, 3, mode).resize(size) for _ in range(count)]
    return avif(images, [chance.choice((10, 20, 100, 1000, 60_000)) for _ in range(count)])


_WRITERS: dict[str, tuple[Callable[[random.Random], bytes], str]] = {
    "GIF": (_gif, "image/gif"),
    "APNG": (_apng, "image/apng"),
    "WebP": (_webp, "image/webp"),
    "AVIF": (_avif, "image/avif"),
}
