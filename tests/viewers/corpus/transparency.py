"""Pictures that are seen on one page and not on another, or only by who reads alpha differently."""

import struct

import numpy as np
from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    Heif,
    box,
    full_box,
    png_chunk,
    png_chunks,
    png_of,
    png_with,
    riff_chunk,
    riff_chunks,
    riff_of,
    webp_extended,
)
from tests.viewers.corpus.case import SIZE, Case, Make

_ALPHA_FLAG = 0x10
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6


def luminance(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"))


def in_alpha(picture: Image.Image, level: int) -> Image.Image:
    """Pixels of one level, with the picture in alpha: seen on the page of the other colour."""
    grey = luminance(picture)
    alpha = grey if level else 255 - grey
    color = np.full((*grey.shape, 3), level, np.uint8)
    return Image.fromarray(np.dstack([color, alpha]))


def alpha_in(kind: str, level: int, **options) -> Make:
    return lambda picture: writers.save(in_alpha(picture, level), kind, **options)


def avif_in_alpha(level: int) -> Make:
    """As `alpha_in`, of the levels that video has.

    Debian's Chromium, with an older decoder of AV1, takes an AVIF's alpha for 16 to 235 whatever
    the file says. Then it stretches these levels, where it would cut others off.
    """

    def make(picture: Image.Image) -> bytes:
        image = in_alpha(picture, level)
        image.putalpha(image.getchannel("A").point(lambda alpha: 16 + alpha * 219 // 255))
        return writers.save(image, "AVIF", quality=90)

    return make


def veiled(picture: Image.Image, alpha: int) -> Image.Image:
    """The picture, nearly transparent, over nothing."""
    image = picture.copy()
    image.putalpha(alpha)
    return image


def stretched(picture: Image.Image) -> Image.Image:
    """Half transparent, so that one page shows the picture and the other one washes it out."""
    levels = np.asarray(picture).astype(float)
    alpha = np.full(levels.shape[:2], 128, np.uint8)
    shown = np.clip(levels * 2 - 255, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([shown, alpha]))


# -- PNG ---------------------------------------------------------------------------------------


def packed(levels: np.ndarray, depth: int, color: int, *chunks: bytes) -> bytes:
    """A PNG of samples of 1, 2, 4, 8 or 16 bits, [height, width] or [height, width, bands]."""
    height, width = levels.shape[:2]
    if depth < 8:
        bits = (levels[..., None] >> np.arange(depth)[::-1]) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        rows = levels.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
        rows = np.frombuffer(rows.tobytes(), np.uint8).reshape(height, -1)
    placed = writers.png(rows, 8, 0)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = [chunk for chunk in png_chunks(placed) if chunk[4:8] == b"IDAT"]
    return png_of([png_chunk(b"IHDR", header), *chunks, *body, png_chunk(b"IEND", b"")])


def trns(*values: int) -> bytes:
    return png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def threshold(picture: Image.Image, levels: int) -> np.ndarray:
    """The picture in so many levels, dithered at three times its size, so that it stays plain."""
    large = picture.convert("L").resize((3 * picture.width, 3 * picture.height))
    if levels == 2:
        return np.asarray(large.convert("1")).astype(int)
    noise = np.random.default_rng(3).random((large.height, large.width))
    return np.floor(np.asarray(large) / 255 * (levels - 1) + noise).astype(int)


def grey_trns(depth: int, clear: int, *, late: bool = False) -> Make:
    """Grey of few bits with one level transparent."""

    def make(picture: Image.Image) -> bytes:
        levels = threshold(picture, 1 << depth) if depth < 8 else luminance(picture).astype(int)
        if depth == 16:
            levels = levels * 257
        data = packed(levels, depth, _GREY)
        return png_with(data, trns(clear), **({"after": b"IDAT"} if late else {}))

    return make


def one_bit_hidden(picture: Image.Image) -> bytes:
    """Dark spots are black on black, and clear where the rest is white."""
    return packed(threshold(picture, 2), 1, _GREY, trns(1))


def rgb_trns(depth: int, *chunks: bytes) -> Make:
    """White is transparent, or what a chunk says."""

    def make(picture: Image.Image) -> bytes:
        dots = threshold(picture, 2)
        levels = np.dstack([dots * (65535 if depth == 16 else 255)] * 3)
        return packed(levels, depth, _RGB, *chunks)

    return make


def sixteen_bits_near(picture: Image.Image) -> bytes:
    """16 bits: the transparent colour differs from all pixels in its low byte only."""
    levels = np.asarray(picture).astype(np.uint16) * 257
    levels[...] = np.where(levels == 0xFFFF, 0xFFFE, levels)
    return packed(levels, 16, _RGB, trns(0, 0, 1))


def palette_trns(table: bytes, *, at: str = "right", doubled: bytes = b"") -> Make:
    """A palette whose entries are made transparent."""

    def make(picture: Image.Image) -> bytes:
        data = writers.save(picture.quantize(256), "PNG")
        chunk = png_chunk(b"tRNS", table)
        if at == "wrong checksum":
            return png_with(data, chunk[:-4] + b"nope")
        if at == "late":
            return png_with(data, chunk, after=b"IDAT")
        if at == "before the palette":
            return png_with(data, chunk, before=b"PLTE")
        more = [png_chunk(b"tRNS", doubled)] if doubled else []
        return png_with(data, chunk, *more)

    return make


def palette_of_white(picture: Image.Image) -> bytes:
    """All colours are white; the picture is in the palette's transparency."""
    levels = luminance(picture)
    chunks = png_chunk(b"PLTE", b"\xff" * 768), png_chunk(b"tRNS", bytes(range(256)))
    return packed(levels, 8, _PALETTE, *chunks)


def forbidden(color: int, mode: str) -> Make:
    """`tRNS` beside an alpha channel, where the specification forbids it."""

    def make(picture: Image.Image) -> bytes:
        levels = np.asarray(picture.convert(mode))
        return packed(levels, 8, color, trns(*[255] * (1 if color == _GREY_ALPHA else 3)))

    return make


def sixteen_alpha(picture: Image.Image) -> bytes:
    grey = luminance(picture).astype(np.uint16) * 257
    white = np.full_like(grey, 65535)
    return packed(np.dstack([white, grey]), 16, _GREY_ALPHA)


def white_spots(picture: Image.Image) -> bytes:
    """Two white colours, one of them transparent."""
    image = Image.fromarray(threshold(picture, 2).astype(np.uint8))
    image.putpalette(b"\xff" * 6)
    return writers.save(image, "GIF", transparency=0, optimize=False)


# -- the others --------------------------------------------------------------------------------


def webp_undeclared(picture: Image.Image) -> bytes:
    """An `ALPH` chunk that the header does not announce."""
    chunks = riff_chunks(writers.save(in_alpha(picture, 255), "WEBP", quality=90))
    rest = [chunk for chunk in chunks if chunk[:4] != b"VP8X"]
    size = (SIZE[0] - 1).to_bytes(3, "little") + (SIZE[1] - 1).to_bytes(3, "little")
    return riff_of([riff_chunk(b"VP8X", bytes(4) + size), *rest])


def webp_lossless_undeclared(picture: Image.Image) -> bytes:
    """A lossless picture with alpha inside of a header that announces none."""
    data = writers.save(in_alpha(picture, 255), "WEBP", lossless=True)
    return riff_of(webp_extended(data, 0, *SIZE))


def avif_alpha(picture: Image.Image, change) -> bytes:
    heif = Heif.read(writers.save(in_alpha(picture, 255), "AVIF", quality=90))
    return bytes(change(heif))


def _unlinked(heif: Heif) -> Heif:
    heif.meta = [one for one in heif.meta if one[4:8] != b"iref"]
    return heif


def _premultiplied(heif: Heif) -> Heif:
    """Colours said to be multiplied with alpha already."""
    reference = box(b"prem", struct.pack(">HHH", 1, 1, 2))
    heif.meta = [
        full_box(b"iref", one[12:] + reference) if one[4:8] == b"iref" else one for one in heif.meta
    ]
    return heif


def heic_alpha(picture: Image.Image) -> bytes:
    return writers.heic("RGBA")(in_alpha(picture, 255))


def on_black(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Transparency", kind, quirk, make, **more)


CASES = (
    _c("PNG", "white pixels, the picture in alpha", alpha_in("PNG", 255)),
    _c("PNG", "black pixels, the picture in alpha", alpha_in("PNG", 0)),
    _c("PNG", "white pixels of 16 bits, the picture in alpha", sixteen_alpha),
    _c("PNG", "white palette, the picture in its transparency", palette_of_white),
    _c("PNG", "nearly transparent picture", lambda p: writers.save(veiled(p, 40), "PNG")),
    _c(
        "PNG",
        "half transparent, seen on white",
        lambda p: writers.save(stretched(p), "PNG"),
        known=False,
    ),
    _c("WebP", "white pixels, the picture in alpha", alpha_in("WEBP", 255, lossless=True)),
    _c("WebP", "black pixels, the picture in lossy alpha", alpha_in("WEBP", 0, quality=90)),
    _c("WebP", "alpha that the header does not announce", webp_undeclared, known=False),
    _c(
        "WebP",
        "lossless alpha that the header does not announce",
        webp_lossless_undeclared,
        known=False,
    ),
    _c("AVIF", "white pixels, the picture in alpha", avif_in_alpha(255)),
    _c("AVIF", "black pixels, the picture in alpha", avif_in_alpha(0)),
    _c(
        "AVIF",
        "alpha that is not linked to the picture",
        lambda p: avif_alpha(p, _unlinked),
        known=False,
    ),
    _c("AVIF", "premultiplied alpha", lambda p: avif_alpha(p, _premultiplied), known=False),
    _c("HEIC", "white pixels, the picture in alpha", heic_alpha, control=on_black),
    _c("TIFF", "white pixels, the picture in alpha", alpha_in("TIFF", 255), control=on_black),
    _c("GIF", "white spots, the picture in transparency", white_spots),
    _c(
        "APNG",
        "white pixels, the picture in alpha",
        lambda p: writers.save(
            in_alpha(p, 255), "PNG", save_all=True, append_images=[in_alpha(p, 0)]
        ),
        frame=0,
    ),
    *(
        _c(
            "PNG",
            f"grey of {depth} bits, level {clear} transparent",
            grey_trns(depth, clear),
            known=(depth, clear) not in ((2, 1), (2, 3), (4, 7)),
        )
        for depth, clear in ((1, 1), (1, 0), (2, 1), (2, 3), (4, 15), (4, 7), (8, 255), (16, 65535))
    ),
    *(
        _c(
            "PNG",
            f"grey of {depth} bits, transparent level behind the pixels",
            grey_trns(depth, clear, late=True),
        )
        for depth, clear in ((1, 1), (8, 255))
    ),
    _c("PNG", "one bit, what is white is transparent", one_bit_hidden),
    _c(
        "PNG",
        "grey of 2 bits, transparent level with high bits set",
        grey_trns(2, 0x8003),
        known=False,
    ),
    _c("PNG", "grey of 8 bits, transparent level with a high byte", grey_trns(8, 0x01FF)),
    _c("PNG", "RGB, white transparent", rgb_trns(8, trns(255, 255, 255))),
    _c("PNG", "RGB, transparent colour with high bytes", rgb_trns(8, trns(0x1FF, 0x2FF, 0x3FF))),
    _c("PNG", "RGB of 16 bits, white transparent", rgb_trns(16, trns(65535, 65535, 65535))),
    _c(
        "PNG",
        "RGB of 16 bits, transparent but for the low byte",
        rgb_trns(16, trns(65280, 65280, 65280)),
    ),
    _c("PNG", "RGB of 16 bits, no pixel transparent", sixteen_bits_near),
    _c("PNG", "RGB, transparent colour of one value", rgb_trns(8, trns(255))),
    _c("PNG", "RGB, two transparent colours", rgb_trns(8, trns(1, 2, 3), trns(255, 255, 255))),
    _c("PNG", "palette, tRNS behind the pixels", palette_trns(bytes(256), at="late")),
    _c(
        "PNG", "palette, tRNS before the palette", palette_trns(bytes(256), at="before the palette")
    ),
    _c("PNG", "palette, tRNS with a wrong checksum", palette_trns(bytes(256), at="wrong checksum")),
    _c("PNG", "palette, second tRNS clears all", palette_trns(b"\xff", doubled=bytes(256))),
    _c(
        "PNG",
        "palette, first tRNS clears all",
        palette_trns(bytes(256), doubled=b"\xff" * 256),
        known=False,
    ),
    _c("PNG", "palette, tRNS longer than the palette", palette_trns(bytes(300))),
    _c("PNG", "palette, tRNS of no bytes", palette_trns(b"")),
    _c("PNG", "palette, half of it transparent", palette_trns(bytes(128)), known=False),
    _c("PNG", "RGBA with a tRNS, which is forbidden", forbidden(_RGBA, "RGBA")),
    _c("PNG", "grey and alpha with a tRNS, which is forbidden", forbidden(_GREY_ALPHA, "LA")),
)
