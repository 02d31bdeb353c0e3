import numpy as np
import pytest
import skimage.data
from PIL import Image

from worker.image import edits, pdq

NAMES = ("astronaut", "camera", "cat", "clock", "coffee", "coins", "hubble_deep_field", "rocket")
# As Meta's own code has them.
KNOWN = {
    "astronaut": "2d6b1af3a956c529e79ca3d2526fa834d4196c81cedd04de0a26b855fc99b724",
    "camera": "dc9c9d3b746978f888f40ce6e5c3f70f7266623e8d989cb99f21f2010841e1c7",
    "coffee": "8c629e779a663698b9a33866c026726c21a679f61eb6e1f8c79ba7e23c8299e0",
    "rocket": "8792786c87937064bf1bc0e43f1fc0e03f1cc2e33da4c2537cec821b2ce4f376",
}


def photograph(name, size=None):
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return np.asarray(image.resize(size) if size else image)


def hashes(pictures):
    return np.array([np.frombuffer(pdq.hash_of(one)[0], np.uint8) for one in pictures])


@pytest.mark.parametrize("name", KNOWN)
def test_known_hashes(name):
    found, quality = pdq.hash_of(photograph(name))
    assert (found.hex(), quality) == (KNOWN[name], 100)


@pytest.mark.parametrize("size", [None, (320, 320), (64, 64), (64, 301), (37, 50), (1000, 129)])
def test_equal_to_the_compiled_library(size):
    pdqhash = pytest.importorskip("pdqhash", reason="it has to be compiled: make control")
    for name in NAMES:
        pixels = photograph(name, size)
        vector, quality = pdqhash.compute(pixels)
        found, own = pdq.hash_of(pixels)
        expected = np.packbits(np.array(vector, np.uint8))
        assert np.bitwise_count(np.frombuffer(found, np.uint8) ^ expected).sum() <= 2
        assert own == quality


def test_copies_are_near_and_other_photographs_are_not():
    squares = [photograph(name, (320, 320)) for name in NAMES]
    copies = [np.asarray(edits.reencoded(Image.fromarray(one))) for one in squares]
    apart = pdq.distances(hashes(squares), hashes(copies))
    assert (np.diag(apart) <= pdq.SAME).all()
    assert (apart[~np.eye(len(NAMES), dtype=bool)] > 2 * pdq.SAME).all()


def test_versions_are_the_hashes_of_the_turned_pixels():
    for name in NAMES:
        pixels = photograph(name, (320, 320))
        turned = [
            picture[:: 1 - 2 * down, :: 1 - 2 * across]
            for picture in (pixels, pixels.transpose(1, 0, 2))
            for down in (0, 1)
            for across in (0, 1)
        ]
        exact, own = hashes(turned), pdq.hashes_of(pixels)
        assert np.bitwise_count(exact ^ own).sum(axis=1).max() <= 4
        of_the_hash = pdq.versions(exact[:1])[0]
        assert np.array_equal(of_the_hash[0], exact[0])
        assert np.bitwise_count(of_the_hash ^ exact).sum(axis=1).max() <= 24


def test_pictures_that_show_next_to_nothing_are_of_low_quality():
    blank = np.full((320, 320, 3), 200, np.uint8)
    gradient = np.repeat(np.linspace(0, 255, 320).astype(np.uint8), 960).reshape(320, 320, 3)
    for pixels in (blank, gradient):
        assert pdq.hash_of(pixels)[1] < pdq.LEAST_QUALITY


def test_the_smallest_pictures_have_a_hash():
    assert len(pdq.hash_of(np.zeros((1, 3, 3), np.uint8))[0]) == pdq.BYTES
