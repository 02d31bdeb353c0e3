"""Decoding against the plain picture, kind by kind and mode by mode."""

import hashlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from worker.errors import DecodeError, UnscreenedReason
from worker.image.decode import Cost, read_header
from worker.image.preprocess import decode
from worker.records import Pixels
from worker.settings import Limits

LIMITS = Limits()
WIDTH, HEIGHT = 120, 80


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth picture, different in every corner."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 127 // (width + height)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def reason(data: bytes, limits: Limits = LIMITS) -> UnscreenedReason:
    with pytest.raises(DecodeError) as caught:
        decode(data, limits)
    return caught.value.reason


def difference(pixels: Pixels, image: Image.Image) -> float:
    return float(np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"), int)).mean())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 2),
        ("JPEG", {"quality": 95, "progressive": True}, 2),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 2),
        ("GIF", {}, 10),
    ],
)
def test_every_format_gives_the_picture_and_its_facts(
    kind: str, options: dict[str, Any], tolerance: int
) -> None:
    data = encode(photo(), kind, **options)
    decoded = decode(data, LIMITS)
    assert difference(decoded.pixels, photo()) <= tolerance
    assert decoded.pixels.shape == (HEIGHT, WIDTH, 3)
    assert decoded.pixels.dtype == np.uint8
    info = decoded.info
    assert (info.format, info.width, info.height, info.frames) == (kind, WIDTH, HEIGHT, 1)
    assert (info.bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert not info.truncated


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
    ],
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    image = photo().convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(image, kind, **options), LIMITS)
    assert difference(decoded.pixels, image) <= (3 if kind == "JPEG" else 0)


def test_cmyk_is_read_as_adobe_writes_it() -> None:
    """Pillow writes CMYK inverted and with Adobe's marker, as Photoshop does."""
    data = encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    red = decode(data, LIMITS).pixels[16, 16].astype(int)
    assert red[0] > 245
    assert red[1:].max() < 10


def test_sixteen_bits_of_grey_keep_their_high_byte() -> None:
    ramp = np.tile(np.arange(256) * 255 + 255, (8, 1)).astype(np.uint16)
    pixels = decode(encode(Image.fromarray(ramp), "PNG"), LIMITS).pixels
    assert np.array_equal(pixels[..., 0], ramp >> 8)


def test_sixteen_bits_of_grey_with_a_transparent_level() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (8, 1))
    pixels = decode(encode(Image.fromarray(ramp), "PNG", transparency=100 * 257), LIMITS).pixels
    assert (pixels[:, 100] == 255).all()
    assert np.array_equal(pixels[:, :100, 0], ramp[:, :100] >> 8)


def test_a_transparent_colour_of_sixteen_bits_hides_nothing() -> None:
    """Cut to 8 bits, black would equal the transparent (256, 256, 256) and vanish on the white."""
    row = b"\0" + struct.pack(">6H", 0, 0, 0, 65535, 65535, 65535)
    key = chunk(b"tRNS", struct.pack(">3H", 256, 256, 256))
    assert decode(png(2, 1, 16, 2, row, key), LIMITS).pixels[0].tolist() == [[0] * 3, [255] * 3]


def test_transparency_is_put_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 128)])
    pixels = decode(encode(image, "PNG"), LIMITS).pixels[0].tolist()
    assert pixels[0] == [200, 0, 0]
    assert pixels[1] == [255, 255, 255]
    assert pixels[2] == [127, 127, 127]


def test_a_transparent_palette_is_put_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    for data in (encode(image, "PNG", transparency=0), encode(image, "GIF", transparency=0)):
        assert decode(data, LIMITS).pixels[0].tolist() == [[255, 255, 255], [200, 100, 50]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_show_the_upright_picture(kind: str, orientation: int) -> None:
    back = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
    exif = Image.Exif()
    exif[0x0112] = back
    turned = ImageOps.exif_transpose(_with_exif(photo(), exif))
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {}
    decoded = decode(encode(turned, kind, exif=exif, **options), LIMITS)
    assert difference(decoded.pixels, photo()) <= (2 if kind == "JPEG" else 0)
    assert (decoded.info.width, decoded.info.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_webp_is_ignored_as_in_browsers(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(photo(), "WEBP", exif=exif, lossless=True), LIMITS)
    assert difference(decoded.pixels, photo()) == 0


def _with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    image.info["exif"] = exif.tobytes()
    return image


def test_damaged_exif_turns_nothing_and_warns_nobody(tmp_path: Path) -> None:
    """In a process of its own, for pytest replaces the filters that decode.py sets."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\xff\xff\xff\xff\xff\xff\xff\xff"
    path = tmp_path / "damaged.jpg"
    path.write_bytes(encode(photo(), "JPEG", quality=95, exif=exif))
    with pytest.warns(UserWarning, match="EXIF|Tag"), Image.open(path) as image:
        image.getexif()
    code = (
        "import sys; from pathlib import Path; from worker.image.preprocess import decode;"
        "from worker.settings import Limits;"
        "print(decode(Path(sys.argv[1]).read_bytes(), Limits()).pixels.shape)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"({HEIGHT}, {WIDTH}, 3)\n", "")


def test_the_first_frame_of_an_animation_is_the_picture() -> None:
    frames = [photo(), ImageOps.invert(photo()), Image.new("RGB", (WIDTH, HEIGHT))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        decoded = decode(data, LIMITS)
        assert decoded.info.frames == 3
        assert difference(decoded.pixels, photo()) <= 10


def test_a_multi_picture_jpeg_is_its_first_picture() -> None:
    data = encode(photo(), "MPO", save_all=True, append_images=[ImageOps.invert(photo())])
    decoded = decode(data, LIMITS)
    assert (decoded.info.format, decoded.info.frames) == ("JPEG", 1)
    assert difference(decoded.pixels, photo()) <= 4


def test_a_target_scales_jpeg_decoding_but_not_the_facts() -> None:
    image = photo(1600, 1200)
    decoded = decode(encode(image, "JPEG", quality=95), LIMITS, target=100)
    assert decoded.pixels.shape == (300, 400, 3)  # a quarter; an eighth would be below twice 100
    assert (decoded.info.width, decoded.info.height) == (1600, 1200)
    assert difference(decoded.pixels, image.reduce(4)) < 2
    assert decode(encode(image, "PNG"), LIMITS, target=100).pixels.shape == (1200, 1600, 3)


def test_pixels_are_reserved_after_the_header_and_before_decoding() -> None:
    entered: list[int] = []

    @contextmanager
    def reserve(cost: Cost) -> Iterator[None]:
        entered.append(cost.nbytes)
        try:
            yield
        finally:
            entered.append(-cost.nbytes)

    decode(encode(photo(), "PNG"), LIMITS, reserve=reserve)
    assert entered[0] >= WIDTH * HEIGHT * 4
    assert entered == [entered[0], -entered[0]]
    entered.clear()
    with pytest.raises(DecodeError):
        decode(bomb(), LIMITS, reserve=reserve)
    assert entered == []
    with pytest.raises(DecodeError):
        decode(png(WIDTH, HEIGHT, 8, 2, b""), LIMITS, reserve=reserve)
    assert len(entered) == 2
    assert sum(entered) == 0


@pytest.mark.parametrize("kind", ["PPM", "TGA", "EPS", "PDF", "JPEG2000", "QOI", "DDS"])
def test_other_formats_are_refused(kind: str) -> None:
    assert reason(encode(photo(), kind)) is UnscreenedReason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("data", [b"", b"\0", b"GIF", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert reason(data) is UnscreenedReason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    "data",
    [
        *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "),
        *(b"\0\0\0\x18ftypavif", b"\0\0\0\x18ftypheic", b"BM", b"II*\0", b"\0\0\x01\0\x01"),
    ],
)
def test_a_signature_alone_is_undecodable(data: bytes) -> None:
    assert reason(data) is UnscreenedReason.UNDECODABLE


def bomb() -> bytes:
    """50,000 x 50,000 zeros: 2.5 gigapixels in 2.4 MB."""
    packer = zlib.compressobj(1)
    rows = packer.compress(b"\0" * 6251 * 1000) + packer.flush()
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_at_its_header() -> None:
    assert reason(bomb()) is UnscreenedReason.TOO_MANY_PIXELS


def test_a_huge_webp_canvas_is_refused() -> None:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    size = data.index(b"VP8L") + 9
    data[size : size + 4] = struct.pack("<I", 16383 | 16383 << 14)
    assert reason(bytes(data)) is UnscreenedReason.TOO_MANY_PIXELS


def test_limits_hold_to_the_pixel() -> None:
    data = encode(photo(), "PNG")
    exact = Limits(image_pixels=WIDTH * HEIGHT)
    assert decode(data, exact).info.width == WIDTH
    fewer = Limits(image_pixels=WIDTH * HEIGHT - 1)
    assert reason(data, fewer) is UnscreenedReason.TOO_MANY_PIXELS
    smaller = Limits(image_bytes=len(data) - 1)
    assert reason(data, smaller) is UnscreenedReason.TOO_LARGE


@pytest.mark.parametrize("size", [(510, 10), (10, 510), (6_000, 15)])
def test_slivers_are_refused(size: tuple[int, int]) -> None:
    assert reason(encode(Image.new("L", size), "PNG")) is UnscreenedReason.BAD_ASPECT_RATIO


@pytest.mark.parametrize("size", [(6_000, 16), (16, 6_000), (500, 10)])
def test_long_strips_are_screened_as_they_are(size: tuple[int, int]) -> None:
    image = photo(*size)
    decoded = decode(encode(image, "PNG"), LIMITS)
    assert difference(decoded.pixels, image) == 0


def gif(frames: int) -> bytes:
    """The smallest GIF with so many frames: one pixel each, black or white."""
    frame = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0"
    extension = b"\x21\xf9\x04\0\0\0\0\0"
    head = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff"
    return head + (extension + frame) * frames + b"\x3b"


def test_frames_are_counted_and_the_first_ones_decoded() -> None:
    assert decode(gif(1000), LIMITS).info.frames == 1000
    assert decode(gif(1_000_000), LIMITS).info.frames == 1001
    few = Limits(image_frames=2)
    three = [photo(), photo().rotate(90), photo().rotate(180)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(three[0], kind, save_all=True, append_images=three[1:])
        encoded = read_header(data, few)
        assert (encoded.header.frames, encoded.frames) == (3, 2)
        assert len(list(encoded.decode())) == 2
        area = WIDTH * HEIGHT
        assert read_header(data, Limits(animation_pixels=3 * area)).frames == 3
        assert read_header(data, Limits(animation_pixels=3 * area - 1)).frames == 2
        assert read_header(data, Limits(animation_pixels=1)).frames == 1


def test_frames_of_real_animations_are_counted_as_pillow_counts_them() -> None:
    for count in (1, 2, 7):
        frames = [photo().rotate(10 * turn) for turn in range(count)]
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)
        assert decode(data, LIMITS).info.frames == count
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == count


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_in_its_data_is_screened_as_truncated(*, progressive: bool) -> None:
    data = encode(photo(400, 300), "JPEG", quality=95, progressive=progressive)
    whole = decode(data, LIMITS)
    half = decode(data[: len(data) // 2], LIMITS)
    assert not whole.info.truncated
    assert half.info.truncated
    assert half.pixels.shape == whole.pixels.shape
    assert difference(half.pixels[:40], Image.fromarray(whole.pixels[:40])) < 20
    without_end = decode(data[:-2], LIMITS)
    assert without_end.info.truncated
    # Without an end Chromium does not show the last blocks of a baseline JPEG, nor the two rows
    # before them.
    shown = 300 if progressive else 286
    assert np.array_equal(without_end.pixels[:shown], whole.pixels[:shown])
    assert (without_end.pixels[shown:] == 255).all()
    scaled = decode(data[: len(data) // 2], LIMITS, target=70)
    assert (scaled.info.width, scaled.pixels.shape) == (400, (150, 200, 3))


@pytest.mark.parametrize("progressive", [False, True])
def test_filler_is_never_taken_for_a_picture(*, progressive: bool) -> None:
    """The decoder makes grey, and noise in one corner, of what ends before its first data."""
    for image in (photo(), photo(800, 600)):
        data = encode(image, "JPEG", quality=95, progressive=progressive)
        scan = data.index(b"\xff\xda")
        first_data = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
        for cut in (*range(3, scan, 7), *range(scan, first_data + 1)):
            assert reason(data[:cut]) is UnscreenedReason.UNDECODABLE
        assert decode(data[: (first_data + len(data)) // 2], LIMITS).info.truncated


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_sliver_of_a_picture_is_no_picture(mode: str) -> None:
    image = photo(1600, 1600).convert(mode)
    data = encode(image, "JPEG", quality=95)
    first_data = data.index(b"\xff\xda") + 20
    assert reason(data[: first_data + 20]) is UnscreenedReason.UNDECODABLE
    assert decode(data[: len(data) // 10], LIMITS).info.truncated


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_rows_before_a_cut_are_screened_and_the_others_are_white(kind: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (60, 60, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind, **({"interlace": False} if kind == "GIF" else {}))
    whole = decode(data, LIMITS)
    half = decode(data[: len(data) // 2], LIMITS)
    assert (whole.info.truncated, half.info.truncated) == (False, True)
    shown = int((half.pixels == whole.pixels).all(axis=(1, 2)).sum())
    assert 15 < shown < 45
    assert np.array_equal(half.pixels[:shown], whole.pixels[:shown])
    assert (half.pixels[shown + 1 :] == 255).all()


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_a_cut_webp_is_undecodable_as_in_browsers(options: dict[str, Any]) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (60, 60, 3), np.uint8)
    data = encode(Image.fromarray(noise), "WEBP", **options)
    for end in range(12, len(data), 97):
        assert reason(data[:end]) is UnscreenedReason.UNDECODABLE


def test_errors_quote_nothing() -> None:
    secret = b"SECRETSECRET"
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"SECR", secret) + secret
    with pytest.raises(DecodeError) as caught:
        decode(data, LIMITS)
    assert "SECR" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_other_plugin_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS would start Ghostscript: nothing that is not on the list gets that far."""
    monkeypatch.setattr("PIL.Image.open", None)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "ICO"):
        decode(encode(photo(), kind), LIMITS)
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n" + b" " * 100) is UnscreenedReason.UNSUPPORTED_FORMAT


def test_whole_and_truncated_pictures_do_not_disturb_each_other() -> None:
    whole = encode(photo(640, 480), "JPEG", quality=95)
    cut_png = encode(photo(640, 480), "PNG")[:-200]
    expected, expected_of_png = decode(whole, LIMITS).pixels, decode(cut_png, LIMITS).pixels

    def work(turn: int) -> bool:
        if turn % 3 == 0:
            decoded = decode(whole, LIMITS)
            return not decoded.info.truncated and np.array_equal(decoded.pixels, expected)
        if turn % 3 == 1:
            return decode(whole[: len(whole) // 2], LIMITS).info.truncated
        cut = decode(cut_png, LIMITS)
        return cut.info.truncated and np.array_equal(cut.pixels, expected_of_png)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(240)))
    finally:
        sys.setswitchinterval(switch)
