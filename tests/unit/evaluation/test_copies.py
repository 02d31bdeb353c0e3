import hashlib

import numpy as np
import skimage.data

from tests.fixtures.hot_set import reference
from worker.evaluation.copies import copies_of, with_copies
from worker.image import pdq
from worker.scoring.calibration import Benign


def rgb(pixels):
    return pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)


NAMES = ("astronaut", "coffee", "chelsea", "rocket", "coins", "brick")
PIXELS = [rgb(getattr(skimage.data, name)()) for name in NAMES]
DIGESTS = [hashlib.sha256(name.encode()).hexdigest() for name in NAMES]
BENIGN = Benign(
    np.frombuffer(bytes.fromhex("".join(DIGESTS)), np.uint8).reshape(-1, 32),
    np.frombuffer(b"".join(pdq.hash_of(one)[0] for one in PIXELS), np.uint8).reshape(-1, 32),
    np.array([True, True, True, True, True, False]),
)


def hashed(pixels):
    return pdq.hash_of(np.ascontiguousarray(pixels))[0].hex()


def test_copies_are_told_by_bytes_and_by_pdq_in_any_position():
    references = [
        reference("bytes", sha256=DIGESTS[0]),
        reference("turned", sha256="f" * 64, pdq=hashed(np.rot90(PIXELS[1]))),
        reference("mirrored", pdq=hashed(PIXELS[2][:, ::-1])),
        reference("other", pdq=hashed(rgb(skimage.data.camera()))),
        reference("hash-says-nothing", pdq=hashed(PIXELS[5])),
        reference("known", copies=("e" * 64,)),
    ]
    expected = {
        "bytes": (DIGESTS[0],),
        "turned": (DIGESTS[1],),
        "mirrored": (DIGESTS[2],),
        "known": ("e" * 64,),
    }
    assert copies_of(references, BENIGN) == expected
    noted = {one.reference_id: one.copies for one in with_copies(references, BENIGN) if one.copies}
    assert noted == expected


def test_without_digests_of_benign_images_nothing_is_told():
    references = [reference("r", sha256=DIGESTS[0]), reference("known", copies=("e" * 64,))]
    assert with_copies(references, None) == references
    assert copies_of(references, None) == {"known": ("e" * 64,)}
    assert copies_of([], BENIGN) == {}
