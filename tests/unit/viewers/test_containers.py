import io

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import writers
from tests.viewers.containers import (
    Heif,
    box,
    jpeg_of,
    jpeg_segments,
    png_chunk,
    png_chunks,
    png_of,
    png_with,
    riff_chunks,
    riff_of,
)
from tests.viewers.moving import avif
from tests.viewers.parts import FORMATS, split


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return writers.photograph("astronaut").resize((96, 64))


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_what_is_taken_apart_is_put_together_again(picture):
    png = writers.save(picture, "PNG")
    jpeg = writers.save(picture, "JPEG")
    webp = writers.save(picture, "WEBP")
    assert png_of(png_chunks(png)) == png
    assert jpeg_of(*jpeg_segments(jpeg)) == jpeg
    assert riff_of(riff_chunks(webp)) == webp


@pytest.mark.parametrize("kind", ["AVIF", "HEIC", "AVIF with alpha"])
def test_a_heif_without_changes_stays_as_it_is(picture, kind):
    data = {
        "AVIF": lambda: writers.save(picture, "AVIF"),
        "HEIC": lambda: writers.heic()(picture),
        "AVIF with alpha": lambda: writers.save(writers.in_disc(picture), "AVIF"),
    }[kind]()
    assert bytes(Heif.read(data)) == data


def test_an_added_property_leaves_the_picture_readable(picture):
    data = writers.save(picture, "AVIF")
    changed = bytes(Heif.read(data).add(box(b"junk", bytes(9))))
    assert len(changed) > len(data)
    assert np.array_equal(pixels(changed), pixels(data))


def test_an_added_property_leaves_a_sequence_readable(picture):
    data = avif([picture.rotate(90), picture], [20, 5000])
    changed = bytes(Heif.read(data).add(box(b"junk", bytes(9))))
    with Image.open(io.BytesIO(changed)) as after, Image.open(io.BytesIO(data)) as before:
        for number in range(2):
            after.seek(number)
            before.seek(number)
            assert np.array_equal(np.asarray(after), np.asarray(before))


def test_chunks_are_put_where_they_are_asked_for(picture):
    data = writers.save(picture.quantize(16), "PNG")
    text = png_chunk(b"tEXt", b"a\0b")
    late = png_chunks(png_with(data, text, after=b"IDAT"))
    early = png_chunks(png_with(data, text, before=b"PLTE"))
    assert [one[4:8] for one in late][-2:] == [b"tEXt", b"IEND"]
    assert [one[4:8] for one in early][1:3] == [b"tEXt", b"PLTE"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_split_without_loss(picture, name):
    kinds = {"APNG": "PNG", "WebP": "WEBP", "JPEG XL": "JXL"}
    image = picture.resize((64, 64))
    options = {"save_all": True, "append_images": [image.rotate(90)]} if name == "GIF" else {}
    data = writers.save(image, kinds.get(name, name), **options)
    parts = split(name, data)
    assert bytes(parts) == data
    assert parts.parts
