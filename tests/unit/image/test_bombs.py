"""The corpus of bombs: each ends in its reason or a picture, in the memory that was reserved."""

import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.bomb_meter import PREPROCESSING
from tests.fixtures.bombs import CORPUS
from tests.fixtures.container_bombs import encode, noise
from worker.errors import DecodeError
from worker.image.formats.orientation import exif_orientation
from worker.image.preprocess import decode
from worker.image.sandbox import COPIES, Sandbox
from worker.settings import Decode, Limits, Views
from worker.telemetry import metrics

BESIDE_THE_PICTURE = 16 * 1024 * 1024


@pytest.mark.parametrize("kind", sorted(CORPUS))
def test_every_bomb_ends_as_it_should_in_the_memory_reserved(kind):
    command = [sys.executable, "-m", "tests.fixtures.bomb_meter", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) > 7
    for one in told:
        assert one["reason"] == one["expected"], one
        assert one["grown"] <= one["reserved"] + COPIES * one["bytes"] + BESIDE_THE_PICTURE, one


@pytest.mark.parametrize("kind", sorted(CORPUS))
def test_children_end_every_bomb_the_same_way_and_live_on(kind):
    sandbox = Sandbox(Decode(workers=1, deadline_seconds=60), Limits(), PREPROCESSING, Views())
    counts = [metrics.DECODERS_REPLACED.labels(why) for why in ("crashed", "timeout", "lied")]
    before = [count._value.get() for count in counts]
    try:
        for name, data, expected in CORPUS[kind]():
            reason = None
            try:
                sandbox.prepare(data, nullcontext)
            except DecodeError as error:
                reason = error.reason
            assert reason == expected, name
    finally:
        sandbox.close()
    assert [count._value.get() for count in counts] == before


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "ICO"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_cut_at_every_byte(kind, options):
    """It is refused or told, or nothing is missing of the picture."""
    data = encode(noise(32, 24), kind, **options)
    whole = decode(data, Limits()).pixels
    for end in range(3, len(data), max(1, len(data) // 700)):
        try:
            decoded = decode(data[:end], Limits())
        except DecodeError:
            continue
        assert decoded.info.truncated or np.array_equal(decoded.pixels, whole), end


def test_orientation_is_read_where_a_full_reader_would_read_it():
    """Whatever the order of bytes and tags; and junk turns nothing."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x8769] = orientation, "maker", {0x9000: b"0230"}
        assert exif_orientation(exif.tobytes()) == orientation
        big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0])
        assert exif_orientation(big) == orientation
        for end in range(len(big)):
            assert exif_orientation(big[:end]) in (1, orientation)
