"""What is refused, or read otherwise, by the header alone."""

import struct

import numpy as np
import pytest
from PIL import Image
from worker.image.headers import Malformed

from tests.fixtures import writers
from tests.fixtures.container_bombs import encode, noise
from worker.errors import DecodeError, UnscreenedReason
from worker.image import heif
from worker.image.decode import decode, kind_of
from worker.image.formats import HEIC_SAMPLE
from worker.settings import Limits

LIMITS = Limits()
GREY = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 277: 1, 278: 48}


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"avif" + bytes(4), "AVIF"),
        (b"avis" + bytes(4), "AVIF"),
        (b"heic" + bytes(4), "HEIC"),
        (b"heix" + bytes(4), "HEIC"),
        (b"mif1" + bytes(4) + b"mif1avif", "AVIF"),
        (b"mif1" + bytes(4) + b"mif1heic", "HEIC"),
        (b"mif1" + bytes(4) + b"heicavif", "HEIC"),
        (b"isom" + bytes(4) + b"mp41", None),
        (b"jp2 " + bytes(4), None),
    ],
)
def test_brands_tell_avif_from_heic(brands: bytes, kind: str | None) -> None:
    data = struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands
    if kind is not None:
        assert kind_of(data) == kind
        return
    with pytest.raises(DecodeError) as caught:
        kind_of(data)
    assert caught.value.reason is UnscreenedReason.UNSUPPORTED_FORMAT


def test_the_sample_of_heic_is_what_it_says() -> None:
    decoded = decode(HEIC_SAMPLE, LIMITS)
    assert (decoded.info.format, decoded.pixels.shape) == ("HEIC", (16, 16, 3))
    assert np.abs(decoded.pixels.astype(int) - (200, 90, 30)).max() < 12


def test_a_heic_with_a_cut_is_as_large_as_it_says() -> None:
    """An odd size is coded as an even one and cut."""
    data = encode(Image.new("RGB", (11_001, 2_001)), "HEIC", quality=10)
    assert b"clap" in data
    header = heif.heic(data, 1, 1)
    assert (header.width, header.height) == (11_001, 2_001)
    assert header.area <= 11_002 * 2_002
    assert decode(data, LIMITS).pixels.shape == (2_001, 11_001, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_by_its_properties(orientation: int) -> None:
    picture = writers.photograph("coffee").resize((120, 80))
    make = writers.turned("AVIF", orientation, quality=90) if orientation > 1 else None
    data = make(picture) if make else writers.save(picture, "AVIF", quality=90)
    decoded = decode(data, LIMITS)
    assert (decoded.info.width, decoded.info.height) == (120, 80)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(picture)).mean() < 8


def test_a_container_that_ends_before_its_properties_is_malformed() -> None:
    data = encode(noise(), "AVIF")
    header = heif.avif(data, 1000, 1)
    assert (header.width, header.height, header.frames) == (64, 48, 1)
    for end in range(0, data.index(b"ipma") + 8, 7):
        with pytest.raises((Malformed, struct.error, IndexError)):
            heif.avif(data[:end], 1000, 1)
