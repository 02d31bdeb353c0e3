import hashlib

import numpy as np
import pytest
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


@pytest.mark.parametrize("flipped", [0, pdq.SAME, pdq.SAME + 1])
def test_a_few_references_find_what_many_find(flipped):
    """A few are looked for among the benign images, sorted once; many are sorted themselves."""
    rng = np.random.default_rng(flipped)
    sha256, hashes = rng.integers(0, 256, (2, 200, pdq.BYTES), dtype=np.uint8)
    benign = Benign(sha256, hashes, np.arange(200) % 5 != 0)
    references = []
    for number in range(0, 200, 2):
        turned = pdq.versions(hashes[number : number + 1])[0, number % pdq.VERSIONS]
        bits = np.unpackbits(turned)
        bits[rng.choice(pdq.BITS, flipped, replace=False)] ^= 1
        digest = sha256[number].tobytes().hex() if number % 6 == 0 else None
        known = {"sha256": digest, "pdq": np.packbits(bits).tobytes().hex()}
        references.append(reference(f"r{number}", **known))
    many = copies_of(references, benign)
    few: dict[str, tuple[str, ...]] = {}
    for begin in range(0, len(references), 10):
        few |= copies_of(references[begin : begin + 10], benign)
    assert few == many
    told = [n for n in range(0, 200, 2) if n % 6 == 0 or (n % 5 and flipped <= pdq.SAME)]
    assert many == {f"r{n}": (benign.names[n],) for n in told}
