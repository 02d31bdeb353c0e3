"""JPEG XL. What Chromium 156 shows of such files was looked at: it decodes them by itself."""

import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import writers
from tests.fixtures.container_bombs import jxl, jxl_resized
from tests.fixtures.heif_files import box
from worker.errors import DecodeError
from worker.image.color import is_foreign
from worker.image.decode import kind_of, read_header
from worker.image.formats import JXL_SAMPLE
from worker.image.formats.bits import Bits
from worker.image.formats.jxl import _size
from worker.image.preprocess import decode
from worker.settings import Limits

LIMITS = Limits()
PICTURE = writers.photograph("astronaut").resize((600, 400))
LOSSLESS = jxl(PICTURE)
LOSSY = jxl(PICTURE, lossless=False, distance=1.0)
HEAD = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ")


def frames(data: bytes):
    return list(read_header(data, LIMITS).decode(None))


def difference(pixels: np.ndarray, picture: Image.Image) -> float:
    return float(np.abs(pixels.astype(int) - np.asarray(picture)).mean())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_lossless_pixels_are_exact(mode):
    picture = PICTURE.convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    (frame,) = frames(jxl(picture))
    assert (frame.image.mode, frame.truncated, frame.seconds) == (mode, False, 0)
    assert np.array_equal(np.asarray(frame.image), np.asarray(picture))


def test_lossy_pixels_are_near():
    assert difference(decode(LOSSY, LIMITS).pixels, PICTURE) < 3


def test_the_sample_is_what_it_says():
    decoded = decode(JXL_SAMPLE, LIMITS)
    assert (decoded.info.format, decoded.pixels.shape) == ("JXL", (16, 16, 3))


@pytest.mark.parametrize("size", [(1, 16), (8, 256), (250, 250), (256, 256), (400, 300), (1000, 1)])
def test_the_size_is_read_before_the_decoder_reads_it(size):
    """A wrong one would be refused, for the decoder says another."""
    header = read_header(jxl(PICTURE.resize(size)), Limits(image_aspect_ratio=1000)).header
    assert (header.width, header.height) == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_orientation_of_a_header(orientation):
    bits = [(1, 1), (32 - 1, 5), (2, 3), (0, 1), (1, 1), (orientation - 1, 3)]
    number, at = 0, 0
    for value, count in bits:
        number |= value << at
        at += count
    assert _size(Bits(number.to_bytes(8, "little"), least_first=True)) == (307, 256, orientation)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_in_boxes_or_bare_it_is_the_same(parts):
    step = -(-len(LOSSLESS) // parts)
    pieces = [LOSSLESS[at : at + step] for at in range(0, len(LOSSLESS), step)]
    boxes = [
        box(b"jxlp", struct.pack(">I", n | (n + 1 == parts) << 31), piece)
        for n, piece in enumerate(pieces)
    ]
    exif = box(
        b"Exif", bytes(4) + b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    )
    data = HEAD + exif + b"".join(boxes)
    assert kind_of(data) == "JXL"
    assert np.array_equal(decode(data, LIMITS).pixels, np.asarray(PICTURE))  # Exif turns nothing
    whole = HEAD + box(b"jxlc", LOSSLESS) + box(b"jxlc", LOSSY)
    assert np.array_equal(decode(whole, LIMITS).pixels, np.asarray(PICTURE))


def test_an_animation():
    pictures = [PICTURE.resize((64, 48)).rotate(90 * n) for n in range(4)]
    data = jxl(np.stack([np.asarray(one) for one in pictures]), photometric="rgb")
    header = read_header(data, LIMITS).header
    found = frames(data)
    assert (header.frames, header.truncated) == (4, False)
    assert [round(one.seconds, 3) for one in found] == [0.1] * 4
    for frame, picture in zip(found, pictures, strict=True):
        assert np.array_equal(np.asarray(frame.image), np.asarray(picture))


def test_frames_beyond_the_limit_are_not_counted():
    data = jxl(np.zeros((30, 32, 32, 3), np.uint8), photometric="rgb")
    encoded = read_header(data, Limits(image_frames=5))
    assert (encoded.header.frames, len(list(encoded.decode(None)))) == (6, 5)


@pytest.mark.parametrize(
    "options", [{}, {"primaries": "p3"}, {"transfer": "linear"}, {"transfer": "pq"}]
)
def test_colours_are_named(options):
    if options == {"primaries": "p3"}:
        options = {"primaries": imagecodecs.JPEGXL.PRIMARIES.P3}
    elif options:
        name = options["transfer"].upper()
        options = {"transfer": getattr(imagecodecs.JPEGXL.TRANSFER_FUNCTION, name)}
    profiles = read_header(jxl(PICTURE, **options), LIMITS).header.profiles
    assert [is_foreign(one) for one in profiles] == [True] * bool(options)


@pytest.mark.parametrize("data", [LOSSLESS, LOSSY])
def test_a_cut_picture_is_shown_as_far_as_it_goes(data):
    large = jxl(PICTURE.resize((1200, 800)), lossless=data is LOSSLESS)
    decoded = decode(large[: len(large) * 9 // 10], LIMITS)
    whole = decode(large, LIMITS).pixels
    assert decoded.info.truncated
    same = (decoded.pixels == whole).all(axis=2).mean()
    assert 0.5 < same < 1
    for end in (len(large) // 100, 20, 3):
        with pytest.raises(DecodeError) as caught:
            decode(large[:end], LIMITS)
        assert caught.value.reason == "undecodable"


def test_a_damaged_picture_is_transparent_from_there_on():
    data = bytearray(jxl(PICTURE.resize((1200, 800)), lossless=False, distance=1.0))
    at = len(data) // 2
    data[at : at + 40] = bytes(40)
    (frame,) = frames(bytes(data))
    assert (frame.truncated, frame.image.mode) == (True, "RGBA")
    share = (np.asarray(frame.image.getchannel("A")) == 255).mean()
    assert 0.1 < share < 0.9


def test_a_cut_animation_ends_early():
    shapes = np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3), np.uint8)
    data = jxl(shapes, photometric="rgb")
    cut = data[: len(data) * 6 // 10]
    header = read_header(cut, LIMITS).header
    assert header.truncated
    found = frames(cut)
    assert 1 <= len(found) < 4
    assert np.array_equal(np.asarray(found[0].image), shapes[0])


def test_a_size_that_the_decoder_does_not_see_is_refused():
    with pytest.raises(DecodeError) as caught:
        decode(jxl_resized(jxl(PICTURE.resize((250, 250))), 500, 40_000), LIMITS)
    assert caught.value.reason == "undecodable"
    with pytest.raises(DecodeError) as caught:
        decode(jxl_resized(jxl(PICTURE.resize((250, 250))), 500, 2**30), LIMITS)
    assert caught.value.reason == "too_many_pixels"
