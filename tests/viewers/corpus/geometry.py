"""Orientation, crops, thumbnails and shapes that viewers read differently."""

import struct
from collections.abc import Callable

from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    Heif,
    box,
    clap,
    full_box,
    jpeg_of,
    jpeg_segment,
    jpeg_segments,
    jpeg_with,
    png_chunk,
    png_with,
    riff_chunk,
    riff_of,
    webp_extended,
)
from tests.viewers.corpus.case import SIZE, Case, Make, plainly

_EXIF_FLAG = 0x08
_MARKER = b"Exif\0\0"
_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""How a picture is stored so that the orientation puts it upright."""

type Edit = Callable[[bytes, bytes], bytes]


def tiff_exif(
    orientation: int, *, order: str = "<", kind: int = _SHORT, count: int = 1, before: int = 0,
    directory: int = 0,
) -> bytes:  # fmt: skip
    """EXIF with one tag, in the first or second directory, behind tags that mean nothing."""
    value = struct.pack(f"{order}H" if kind == _SHORT else f"{order}I", orientation).ljust(4, b"\0")
    tags = [struct.pack(f"{order}HHII", 0x0100 + n, _LONG, 1, n) for n in range(before)]
    tags.append(struct.pack(f"{order}HHI", _ORIENTATION, kind, count) + value)
    body = struct.pack(f"{order}H", len(tags)) + b"".join(tags) + bytes(4)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    if directory:
        empty = struct.pack(f"{order}HI", 0, 8 + 6)
        return head + empty + body
    return head + body


def stored(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_TURNS[orientation])


def jpeg(orientation: int, *segments: bytes, at: int = 0) -> Make:
    """A turned JPEG, with segments put in front."""
    return lambda picture: jpeg_with(
        writers.save(stored(picture, orientation), "JPEG", quality=90), *segments, at=at
    )


def app1(data: bytes, marker: bytes = _MARKER) -> bytes:
    return jpeg_segment(0xE1, marker + data)


def jpeg_late(picture: Image.Image) -> bytes:
    """EXIF behind the tables, in front of the scan."""
    segments, rest = jpeg_segments(writers.save(stored(picture, 6), "JPEG", quality=90))
    return jpeg_of([*segments, app1(tiff_exif(6))], rest)


def jpeg_upright(*segments: bytes) -> Make:
    """An upright JPEG whose EXIF must not turn it."""
    return lambda picture: jpeg_with(writers.save(picture, "JPEG", quality=90), *segments)


def jpeg_dots(x: int, y: int) -> Make:
    """A density in EXIF that makes the picture wider or higher as it is shown."""

    def make(picture: Image.Image) -> bytes:
        exif = Image.Exif()
        exif[0x011A], exif[0x011B], exif[0x0128] = float(x), float(y), 2
        exif[0xA002], exif[0xA003] = picture.width * 72 // x, picture.height * 72 // y
        return writers.save(picture, "JPEG", quality=90, exif=exif)

    return make


def png(orientation: int, *chunks: bytes, **where) -> Make:
    return lambda picture: png_with(
        writers.save(stored(picture, orientation), "PNG"), *chunks, **where
    )


def exif_chunk(data: bytes) -> bytes:
    return png_chunk(b"eXIf", data)


def raw_profile(data: bytes) -> bytes:
    """EXIF as text, as old programs write it."""
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
    return png_chunk(b"tEXt", b"Raw profile type exif\0" + text)


def webp(orientation: int, marker: bytes = b"", flags: int = _EXIF_FLAG) -> Make:
    def make(picture: Image.Image) -> bytes:
        image = stored(picture, orientation)
        data = writers.save(image, "WEBP", quality=90)
        exif = riff_chunk(b"EXIF", marker + tiff_exif(orientation))
        return riff_of(webp_extended(data, flags, *image.size, exif))

    return make


# -- AVIF and HEIC -----------------------------------------------------------------------------


def framed(picture: Image.Image, width: int, height: int, x: int, y: int) -> Image.Image:
    """The picture within a larger drawing."""
    whole = writers.other(picture.resize((width, height)))
    whole.paste(picture, (x, y))
    return whole


def cropped(kind: str, width: int, height: int, x: int, y: int, *, essential: bool = True) -> Make:
    """A drawing of which a crop box shows the picture alone."""

    def make(picture: Image.Image) -> bytes:
        whole = framed(picture, width, height, x, y)
        across = (2 * x + SIZE[0] - width, 2)
        down = (2 * y + SIZE[1] - height, 2)
        return _with(kind, whole, clap(*SIZE, across, down), essential=essential)

    return make


def _with(kind: str, image: Image.Image, *props: bytes, essential: bool = True) -> bytes:
    heif = Heif.read(_still(kind, image))
    for prop in props:
        heif.add(prop, essential=essential)
    return bytes(heif)


def _still(kind: str, image: Image.Image) -> bytes:
    return writers.save(image, "AVIF", quality=90) if kind == "AVIF" else writers.heic()(image)


def odd_clap(width: int, height: int, across: tuple[int, int], down: tuple[int, int]) -> Make:
    """A crop box that is wrong in some way, on the plain picture."""
    return lambda picture: _with("AVIF", picture, clap(width, height, across, down))


def turned(kind: str, *props: bytes, draw=plainly) -> Make:
    return lambda picture: _with(kind, draw(picture), *props)


def irot(quarters: int) -> bytes:
    """Turns to the left."""
    return box(b"irot", bytes((quarters,)))


def imir(axis: int) -> bytes:
    return box(b"imir", bytes((axis,)))


def avif_exif(picture: Image.Image) -> bytes:
    """EXIF that must not turn the picture: only `irot` and `imir` count."""
    exif = Image.Exif()
    exif[0x010E] = "a description that makes room"
    data = writers.save(picture, "AVIF", quality=90, exif=exif)
    at = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    return data[:at] + EXIF6 + data[at + len(EXIF6) :]


def pasp(across: int, down: int) -> bytes:
    return box(b"pasp", struct.pack(">II", across, down))


def lying_ispe(picture: Image.Image) -> bytes:
    """A size beside the right one, that the picture's codec does not have."""
    heif = Heif.read(_still("AVIF", picture))
    return bytes(heif.replace(b"ispe", full_box(b"ispe", struct.pack(">II", 200, 160))))


# -- shapes ------------------------------------------------------------------------------------


def strip(kind: str, width: int, height: int, **options) -> Make:
    """The picture stretched to an extreme shape."""
    return lambda picture: writers.save(picture.resize((width, height)), kind, **options)


def banner(kind: str, width: int) -> Make:
    """The picture at the left end of a white banner."""

    def make(picture: Image.Image) -> bytes:
        small = picture.resize((100, 80))
        whole = Image.new("RGB", (width, 80), "white")
        whole.paste(small)
        return writers.save(whole, kind)

    return make


def gif_lying(picture: Image.Image) -> bytes:
    """The header gives a larger canvas than the frame fills, at its corner."""
    data = bytearray(writers.save(picture.quantize(256), "GIF"))
    data[6:10] = struct.pack("<HH", 2 * picture.width, picture.height)
    return bytes(data)


def _c(kind: str, quirk: str, make: Make, **more) -> Case:
    return Case("Geometry", kind, quirk, make, **more)


EXIF6 = tiff_exif(6)
CASES = (
    *(_c("JPEG", f"EXIF orientation {n}", jpeg(n, app1(tiff_exif(n)))) for n in (2, 3, 4, 6, 8)),
    _c("JPEG", "EXIF of the other byte order", jpeg(6, app1(tiff_exif(6, order=">")))),
    _c("JPEG", "an empty EXIF segment first", jpeg(6, app1(b""), app1(EXIF6)), known=False),
    _c(
        "JPEG",
        "a segment of Exif without pad bytes first",
        jpeg(6, jpeg_segment(0xE1, b"Exif"), app1(EXIF6)),
        known=False,
    ),
    _c("JPEG", "EXIF with other pad bytes", jpeg(6, app1(EXIF6, b"Exif\0\xff"))),
    _c(
        "JPEG",
        "EXIF with pad bytes that are no zeros",
        jpeg(6, app1(EXIF6, b"Exif\xff\xff")),
        known=False,
    ),
    _c(
        "JPEG",
        "XMP first, then EXIF",
        jpeg(6, app1(b"<x/>", b"http://ns.adobe.com/xap/1.0/\0"), app1(EXIF6)),
    ),
    _c("JPEG", "two EXIF segments, the first turns", jpeg(6, app1(EXIF6), app1(tiff_exif(1)))),
    _c(
        "JPEG",
        "two EXIF segments, the second turns",
        jpeg_upright(app1(tiff_exif(1)), app1(EXIF6)),
        known=False,
    ),
    _c(
        "JPEG", "orientation as a long number", jpeg(6, app1(tiff_exif(6, kind=_LONG))), known=False
    ),
    _c("JPEG", "orientation of two values", jpeg(6, app1(tiff_exif(6, count=2))), known=False),
    _c(
        "JPEG", "orientation in the second directory", jpeg_upright(app1(tiff_exif(6, directory=1)))
    ),
    _c("JPEG", "orientation behind 60 tags", jpeg(6, app1(tiff_exif(6, before=60)))),
    _c("JPEG", "orientation 9", jpeg_upright(app1(tiff_exif(9)))),
    _c("JPEG", "EXIF behind the tables", jpeg_late),
    _c(
        "JPEG",
        "EXIF behind a segment of 60 kB",
        jpeg(6, jpeg_segment(0xE5, bytes(60_000)), app1(EXIF6)),
    ),
    _c(
        "JPEG",
        "EXIF in a segment of another number",
        jpeg_upright(jpeg_segment(0xE2, _MARKER + EXIF6)),
    ),
    _c("JPEG", "a density that stretches the picture", jpeg_dots(36, 72)),
    _c("JPEG", "a second picture behind the first one (MPO)", writers.multi_picture),
    _c("PNG", "eXIf before the pixels", png(6, exif_chunk(EXIF6))),
    _c("PNG", "eXIf behind the pixels", png(6, exif_chunk(EXIF6), after=b"IDAT"), known=False),
    _c(
        "PNG",
        "two eXIf, the first turns",
        png(6, exif_chunk(EXIF6), exif_chunk(tiff_exif(1))),
        known=False,
    ),
    _c("PNG", "eXIf with a wrong checksum", png(6, exif_chunk(EXIF6)[:-4] + b"nope"), known=False),
    _c("PNG", "eXIf with JPEG's marker in it", png(6, exif_chunk(_MARKER + EXIF6)), known=False),
    _c("PNG", "EXIF as text", png(6, raw_profile(EXIF6)), known=False),
    _c("WebP", "EXIF orientation 6", webp(6), known=False),
    _c("WebP", "EXIF with JPEG's marker in it", webp(6, _MARKER), known=False),
    _c("WebP", "EXIF that is not announced", webp(6, flags=0), known=False),
    _c("AVIF", "a crop box at the corner", cropped("AVIF", 704, 576, 0, 0), also=plainly),
    *(
        _c("AVIF", f"a crop box at the {place}", cropped("AVIF", 704, 576, x, y), also=plainly)
        for place, x, y in (("centre", 152, 128), ("lower right", 304, 256))
    ),
    *(
        _c("HEIC", f"a crop box at the {place}", cropped("HEIC", 704, 576, x, y), control=plainly)
        for place, x, y in (("corner", 0, 0), ("centre", 152, 128), ("lower right", 304, 256))
    ),
    _c(
        "AVIF",
        "a crop box that is not essential",
        cropped("AVIF", 704, 576, 304, 256, essential=False),
        known=False,
    ),
    _c("AVIF", "a crop box beyond the picture", odd_clap(900, 900, (0, 1), (0, 1)), known=False),
    _c("AVIF", "a crop box of no width", odd_clap(0, 320, (0, 1), (0, 1)), known=False),
    _c("AVIF", "a crop box over the whole", odd_clap(400, 320, (0, 1), (0, 1))),
    _c("AVIF", "a crop box moved by a fraction", odd_clap(200, 160, (1, 3), (1, 3)), known=False),
    _c(
        "AVIF",
        "two crop boxes",
        lambda p: _with("AVIF", p, clap(400, 320, (0, 1), (0, 1)), clap(100, 80, (0, 1), (0, 1))),
        known=False,
    ),
    _c("AVIF", "turned to the left", turned("AVIF", irot(1), draw=lambda p: stored(p, 8))),
    _c(
        "AVIF",
        "turned, and mirrored",
        turned("AVIF", irot(1), imir(1), draw=lambda p: stored(stored(p, 2), 8)),
    ),
    _c(
        "AVIF",
        "mirrored first, turned after",
        turned("AVIF", imir(1), irot(1), draw=lambda p: stored(stored(p, 8), 2)),
        known=False,
    ),
    _c(
        "AVIF",
        "turned, and a crop box behind it",
        lambda p: _with(
            "AVIF",
            stored(framed(p, 700, 560, 0, 0), 8),
            irot(1),
            clap(400, 320, (-300, 2), (-240, 2)),
        ),
        known=False,
    ),
    _c("AVIF", "EXIF that must not turn it", avif_exif),
    _c("AVIF", "pixels of twice the width", turned("AVIF", pasp(2, 1))),
    _c("AVIF", "a size that is not the codec's", lying_ispe, known=False),
    _c(
        "HEIC",
        "turned to the left",
        turned("HEIC", irot(1), draw=lambda p: stored(p, 8)),
        control=plainly,
    ),
    *(
        _c(kind, f"{width} x {height}", strip(kind, width, height), known=False)
        for kind, width, height in (
            ("PNG", 5000, 50),
            ("PNG", 50, 5000),
            ("GIF", 3000, 30),
            ("BMP", 2000, 20),
        )
    ),
    _c(
        "PNG",
        "4000 x 4, below what can be described",
        strip("PNG", 4000, 4),
        expected="bad_aspect_ratio",
        known=False,
    ),
    _c("JPEG", "6000 x 60", strip("JPEG", 6000, 60, quality=95, subsampling=0), known=False),
    _c("WebP", "8000 x 80", strip("WEBP", 8000, 80, quality=95), known=False),
    _c("PNG", "a banner with the picture at its end", banner("PNG", 4200), known=False),
    _c("GIF", "a canvas of twice the width", gif_lying, known=False),
)
