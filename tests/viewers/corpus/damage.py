"""Files that are cut, wrong or odd, and that viewers show all the same."""

import struct
from collections.abc import Callable

from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    Heif,
    ipma,
    jpeg_of,
    jpeg_segment,
    jpeg_segments,
    riff_chunk,
    riff_chunks,
    riff_of,
)
from tests.viewers.corpus.animation import gif_of, indexed, others, times
from tests.viewers.corpus.case import SIZE, Case, Make, plainly
from tests.viewers.moving import GifFrame, avif, gif

UNDECODABLE = "undecodable"
_GIF_HEADER = 13
"""Bytes, without a palette of the file's own."""
type Change = Callable[[bytes], bytes]


def changed(kind: str, change: Change, **options) -> Make:
    return lambda picture: change(writers.save(picture, kind, **options))


def cut(kind: str, share: float, **options) -> Make:
    return writers.cut(writers.saved(kind, **options), share)


# -- JPEG --------------------------------------------------------------------------------------


def jpeg_scan(change: Change) -> Make:
    """Other bytes from the scan on."""

    def make(picture: Image.Image) -> bytes:
        data = writers.save(picture, "JPEG", quality=90, restart_marker_rows=1)
        segments, rest = jpeg_segments(data)
        return jpeg_of(segments, change(rest))

    return make


def comments(count: int, size: int) -> Make:
    def make(picture: Image.Image) -> bytes:
        segments, rest = jpeg_segments(writers.save(picture, "JPEG", quality=90))
        return jpeg_of(
            [*segments[:1], *[jpeg_segment(0xFE, b"x" * size)] * count, *segments[1:]], rest
        )

    return make


def _no_restart(rest: bytes) -> bytes:
    """The marker in the middle is lost."""
    at = rest.index(b"\xff\xd3")
    return rest[:at] + rest[at + 2 :]


def _swapped_restarts(rest: bytes) -> bytes:
    return rest.replace(b"\xff\xd2", b"\xff\xd5", 1)


def lines_later(data: bytes) -> bytes:
    """The height is 0 in the header and given behind the scan (DNL)."""
    at = data.index(b"\xff\xc0")
    head = data[: at + 5] + b"\0\0" + data[at + 7 : -2]
    return head + jpeg_segment(0xDC, struct.pack(">H", SIZE[1])) + data[-2:]


def filled(data: bytes) -> bytes:
    """Fill bytes in front of each marker of the header."""
    segments, rest = jpeg_segments(data)
    return b"\xff\xd8" + b"".join(b"\xff\xff\xff" + one for one in segments) + b"\xff" + rest


def taller(data: bytes) -> bytes:
    """The header says twice the height."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">H", 2 * SIZE[1]) + data[at + 7 :]


# -- the others --------------------------------------------------------------------------------


def heif(kind: str, change: Callable[[Heif], object]) -> Make:
    def make(picture: Image.Image) -> bytes:
        data = (
            writers.save(picture, "AVIF", quality=90) if kind == "AVIF" else writers.heic()(picture)
        )
        parsed = Heif.read(data)
        change(parsed)
        return bytes(parsed)

    return make


def brands(major: bytes, *compatible: bytes) -> Callable[[Heif], object]:
    return lambda parsed: parsed.brand(major, *compatible)


def _two_ipma(parsed: Heif) -> None:
    """The properties of the picture in a box of each: half here, half there."""
    entries = parsed.associations[1]
    parsed.associations = {1: entries[:2]}
    parsed.second_ipma = ipma({1: entries[2:]})


def _ipma_twice(parsed: Heif) -> None:
    parsed.second_ipma = ipma(parsed.associations)


def _no_pixi(parsed: Heif) -> None:
    parsed.remove(b"pixi")


def _no_ispe(parsed: Heif) -> None:
    parsed.remove(b"ispe")


def cut_animation(kind: str, share: float) -> Make:
    def make(picture: Image.Image) -> bytes:
        shown = [picture, *others(picture, 2)]
        if kind == "GIF":
            data = gif_of(shown, times(3, 0))
        elif kind == "AVIF":
            data = avif(shown, times(3, 0))
        else:
            data = writers.save(shown[0], kind, save_all=True, append_images=shown[1:])
        return data[: int(len(data) * share)]

    return make


def gif_still(**options) -> Make:
    def make(picture: Image.Image) -> bytes:
        indices, palette = indexed(picture)
        return gif(*SIZE, [GifFrame(indices, palette=palette)], **options)

    return make


def gif_junk(picture: Image.Image) -> bytes:
    """Bytes between the blocks that no block begins with."""
    indices, palette = indexed(picture)
    frame = GifFrame(indices, palette=palette)
    return gif(*SIZE, [frame], end=b"\0\0\0\x01junk")


def gif_comments(picture: Image.Image) -> bytes:
    data = gif_still(loops=None)(picture)
    return data[:_GIF_HEADER] + b"\x21\xfe\x04text\0" * 5000 + data[_GIF_HEADER:]


def riff_size(value: int) -> Change:
    return lambda data: data[:4] + struct.pack("<I", len(data) - 8 + value) + data[8:]


def webp_unknown(data: bytes) -> bytes:
    """Chunks of an unknown name, around the picture."""
    size = (SIZE[0] - 1).to_bytes(3, "little") + (SIZE[1] - 1).to_bytes(3, "little")
    head = riff_chunk(b"VP8X", bytes(4) + size)
    junk = [riff_chunk(b"JUNK", bytes(500))] * 200
    return riff_of([head, *junk, *riff_chunks(data), *junk])


def bmp_size(value: int) -> Change:
    return lambda data: data[:2] + struct.pack("<I", value) + data[6:]


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Damage", kind, quirk, make, **more)


CASES = (
    *(
        _c("JPEG", f"cut at {share:.0%}", cut("JPEG", share, quality=90), known=share > 0.8)
        for share in (0.95, 0.6)
    ),
    _c("JPEG", "progressive, cut at 40%", cut("JPEG", 0.4, quality=90, progressive=True)),
    _c("JPEG", "without an end marker", changed("JPEG", lambda d: d[:-2], quality=90)),
    _c("JPEG", "bytes behind the end", changed("JPEG", lambda d: d + bytes(5000), quality=90)),
    _c("JPEG", "a lost restart marker", jpeg_scan(_no_restart)),
    _c("JPEG", "a wrong restart marker", jpeg_scan(_swapped_restarts)),
    _c(
        "JPEG",
        "a height that follows the scan",
        changed("JPEG", lines_later, quality=90),
        known=False,
    ),
    _c("JPEG", "twice the height in the header", changed("JPEG", taller, quality=90), known=False),
    _c("JPEG", "fill bytes in front of markers", changed("JPEG", filled, quality=90)),
    _c("JPEG", "2,000 comments", comments(2000, 10)),
    _c("JPEG", "4 MiB of comments", comments(64, 65_533)),
    _c(
        "JPEG",
        "zeros in front of the first marker",
        changed("JPEG", lambda d: d[:2] + bytes(3) + d[2:], quality=90),
        known=False,
    ),
    *(
        _c("GIF", f"animation cut at {share:.0%}", cut_animation("GIF", share), frame=0)
        for share in (0.9, 0.5)
    ),
    _c(
        "GIF",
        "cut at 70%",
        writers.cut(lambda p: writers.save(p.quantize(256), "GIF"), 0.7),
        known=False,
    ),
    _c("GIF", "without an end", gif_still(end=b"")),
    _c("GIF", "bytes between the blocks", gif_junk),
    _c("GIF", "5,000 comments", gif_comments),
    _c("GIF", "of 1987, with a later version's control", gif_still(version=b"GIF87a")),
    _c("GIF", "of an unknown version", gif_still(version=b"GIF90a"), known=False),
    *(
        _c("WebP", f"lossy, cut at {share:.0%}", cut("WEBP", share, quality=90), known=False)
        for share in (0.9, 0.5)
    ),
    _c("WebP", "lossless, cut at 80%", cut("WEBP", 0.8, lossless=True), known=False),
    _c("WebP", "animation cut at 60%", cut_animation("WEBP", 0.6), known=False),
    _c("WebP", "a RIFF size too large by 1000", changed("WEBP", riff_size(1000)), known=False),
    _c("WebP", "a RIFF size too small by 1000", changed("WEBP", riff_size(-1000)), known=False),
    _c("WebP", "bytes behind the end", changed("WEBP", lambda d: d + bytes(999))),
    _c("WebP", "unknown chunks around the picture", changed("WEBP", webp_unknown)),
    _c("AVIF", "major brand isom", heif("AVIF", brands(b"isom", b"isom", b"mif1", b"avif"))),
    _c("AVIF", "major brand mif1", heif("AVIF", brands(b"mif1", b"mif1", b"avif", b"miaf"))),
    _c(
        "AVIF",
        "major brand mp41, avif the last of many",
        heif("AVIF", brands(b"mp41", *[b"mp42"] * 30, b"avif")),
    ),
    _c("AVIF", "major brand heic", heif("AVIF", brands(b"heic", b"mif1", b"avif")), known=False),
    _c("AVIF", "two ipma boxes", heif("AVIF", _two_ipma), known=False),
    _c("AVIF", "the same ipma box twice", heif("AVIF", _ipma_twice), known=False),
    _c("AVIF", "no depth of samples", heif("AVIF", _no_pixi), known=False),
    _c("AVIF", "no size", heif("AVIF", _no_ispe), known=False),
    _c("AVIF", "cut at 90%", cut("AVIF", 0.9, quality=90), expected=UNDECODABLE, known=False),
    _c(
        "AVIF",
        "animation cut at 70%",
        cut_animation("AVIF", 0.7),
        frame=0,
        expected=UNDECODABLE,
        known=False,
    ),
    _c(
        "HEIC", "major brand mif1", heif("HEIC", brands(b"mif1", b"mif1", b"heic")), control=plainly
    ),
    _c(
        "HEIC",
        "major brand isom",
        heif("HEIC", brands(b"isom", b"isom", b"heic", b"mif1")),
        control=plainly,
    ),
    _c("HEIC", "two ipma boxes", heif("HEIC", _two_ipma), control=plainly, expected=UNDECODABLE),
    _c(
        "HEIC",
        "cut at 90%",
        writers.cut(writers.heic(), 0.9),
        control=plainly,
        expected=UNDECODABLE,
    ),
    _c("BMP", "cut at 80%", cut("BMP", 0.8), known=False),
    _c("BMP", "a file size of 0", changed("BMP", bmp_size(0))),
    _c("BMP", "a file size of 100 bytes", changed("BMP", bmp_size(100))),
    _c(
        "TIFF",
        "cut at 60%",
        cut("TIFF", 0.6, compression="tiff_lzw"),
        control=plainly,
        expected=UNDECODABLE,
    ),
    _c("TIFF", "bytes behind the end", changed("TIFF", lambda d: d + bytes(5000)), control=plainly),
    _c("ICO", "cut at 80%", writers.cut(writers.icons, 0.8), known=False),
)
