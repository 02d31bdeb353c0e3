"""PDQ, the perceptual hash of 256 bits that platforms exchange, and the distance of two hashes.

After Meta's "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm" (2021). The
luminance is averaged over a window twice (nearly a triangle filter) and sampled at 64 x 64 points;
of its cosine transform 16 x 16 low frequencies stay, without the constant one; a bit says whether
one is above their median. Everything before the median is linear and the same along both sides, so
here it is one matrix from the left and one from the right.

A hash tells copies that look the same, not those that are cropped or pasted into something else.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from worker.records import Pixels

BITS = 256
BYTES = 32
SAME = 31
"""Bits of 256 up to which two pictures are taken for the same, as PDQ's authors recommend."""
LEAST_QUALITY = 50
"""Of 100: below it a picture shows too little for its hash to mean anything (same source)."""
VERSIONS = 8
"""A picture, mirrored and turned: all that a square can be laid on itself by."""

type Hashes = npt.NDArray[np.uint8]
"""One hash a row, [n, 32], the first hexadecimal digit first."""
type Order = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Rows of hashes in the order of a word, and where each of its values begins."""
type Levels = npt.NDArray[np.float32]

_LUMINANCE = (0.299, 0.587, 0.114)
_SIDE, _KEPT = 64, 16
_AT_ONCE, _VERSIONS_AT_ONCE = 1 << 18, 1 << 12
_WORDS, _WORD_BITS = 16, 16
_FLIPS = (0, *(1 << bit for bit in range(_WORD_BITS)))


def hash_of(pixels: Pixels) -> tuple[bytes, int]:
    """Return the hash of a picture, uint8 [h, w, 3], in 32 bytes, and its quality from 0 to 100."""
    small = _small(pixels)
    return _bits(_spectrum(small)).tobytes(), _quality(small)


def hashes_of(pixels: Pixels) -> Hashes:
    """Return the hashes of a picture mirrored and turned, [8, 32], itself first."""
    return _bits(_versions(_spectrum(_small(pixels))))


def versions(hashes: Hashes) -> Hashes:
    """Like `hashes_of`, of hashes [n, 32] alone: [n, 8, 32].

    The median, which moves when signs change, is taken to be 0. Of 275 pictures half were within 8
    bits of the hash of the turned pixels, 95% within 18.
    """
    found = np.empty((len(hashes), VERSIONS, BYTES), np.uint8)
    for begin in range(0, len(hashes), _VERSIONS_AT_ONCE):
        some = slice(begin, begin + _VERSIONS_AT_ONCE)
        bits = np.unpackbits(hashes[some], axis=1)[:, ::-1].reshape(-1, _KEPT, _KEPT)
        turned = _versions(bits.astype(np.int8) * 2 - 1)
        found[some] = np.packbits(_in_order(turned) > 0, axis=-1)
    return found


def distances(a: Hashes, b: Hashes) -> npt.NDArray[np.uint16]:
    """Bits in which hashes [n, 32] and [m, 32] differ, [n, m]; some 6 ns each."""
    left, right = (np.ascontiguousarray(one).view(np.uint64) for one in (a, b))
    found = np.zeros((len(a), len(b)), np.uint16)
    at_once = max(1, _AT_ONCE // max(1, len(b)))
    for begin in range(0, len(a), at_once):
        rows = slice(begin, begin + at_once)
        for word in range(left.shape[1]):
            found[rows] += np.bitwise_count(left[rows, word, None] ^ right[:, word])
    return found


def orders(hashes: Hashes) -> Iterator[Order]:
    """The order of hashes [n, 32] by each of 16 words, one after the other."""
    words = np.ascontiguousarray(hashes).view(np.uint16)
    for word in range(_WORDS):
        by_value = np.argsort(words[:, word], kind="stable")
        yield by_value, np.searchsorted(words[by_value, word], np.arange(2**_WORD_BITS + 1))


def near(
    a: Hashes,
    b: Hashes,
    on_progress: Callable[[float], object] = lambda _: None,
    b_orders: Iterable[Order] | None = None,
) -> npt.NDArray[np.int64]:
    """Return all pairs of rows of a [n, 32] and b [m, 32] that are the `SAME`, [pairs, 2], sorted.

    Of 16 words that differ in 31 bits one differs in one bit at most, so rows are compared only
    where they have a word in common but for a bit (multi-index hashing: Norouzi, Punjani and Fleet,
    2012). It took a minute with 100,000 and 800,000. `on_progress` is told the share that is done.
    `b_orders` are the `orders` of b, where it is compared more than once.
    """
    a_all, b_all = (np.ascontiguousarray(one).view(np.uint64) for one in (a, b))
    a_words = a_all.view(np.uint16)
    found = np.empty((0, 2), np.int64)
    for word, (by_value, begins) in enumerate(orders(b) if b_orders is None else b_orders):
        more = [found]
        for flip in _FLIPS:
            value = a_words[:, word].astype(np.int64) ^ flip
            for rows, places in _expanded(begins[value], begins[value + 1]):
                others = by_value[places]
                apart = np.bitwise_count(a_all[rows] ^ b_all[others]).sum(axis=1)
                more.append(np.column_stack([rows, others])[apart <= SAME])
        found = np.unique(np.concatenate(more), axis=0)
        on_progress((word + 1) / _WORDS)
    return found


def _expanded(
    begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Each row with each number from its begin to its end, some at a time."""
    lengths = ends - begins
    parts = np.diff(np.cumsum(lengths) // _AT_ONCE)
    for rows in np.split(np.arange(len(lengths)), np.flatnonzero(parts) + 1):
        some = lengths[rows]
        skipped = np.cumsum(some) - some - begins[rows]
        yield np.repeat(rows, some), np.arange(some.sum()) - np.repeat(skipped, some)


def _small(pixels: Pixels) -> Levels:
    """Luminance, averaged and sampled: [64, 64]."""
    rows, columns = (_averaging(length) for length in pixels.shape[:2])
    weighted = (np.float32(share) * pixels[..., n] for n, share in enumerate(_LUMINANCE))
    small: Levels = (columns @ (rows @ sum(weighted)).T).T
    return small


@lru_cache(maxsize=16)
def _averaging(length: int) -> sparse.csr_array:
    """What makes 64 samples of a side: float32 [64, length], two box filters and every n-th row.

    A window that reaches beyond the edge is cut there.
    """
    window = -(-length // (2 * _SIDE))
    places = np.arange(length)
    first = np.maximum(places - (window - 1) // 2, 0)
    last = np.minimum(places + window // 2, length - 1)
    counts = last - first + 1
    ends = np.append(0, np.cumsum(counts))
    within = np.arange(ends[-1]) - np.repeat(ends[:-1] - first, counts)
    box = sparse.csr_array((np.repeat(1 / counts, counts), within, ends), shape=(length, length))
    chosen = ((np.arange(_SIDE) + 0.5) * length / _SIDE).astype(int)
    return sparse.csr_array((box[chosen] @ box).astype(np.float32))


@lru_cache(maxsize=1)
def _cosines() -> npt.NDArray[np.float32]:
    """The frequencies 1 to 16 of the cosine transform, float32 [16, 64]."""
    frequency, place = np.arange(1, _KEPT + 1)[:, None], np.arange(_SIDE)
    wave = np.cos(np.pi / (2 * _SIDE) * frequency * (2 * place + 1))
    return np.asarray(np.sqrt(2 / _SIDE) * wave, np.float32)


def _spectrum(small: Levels) -> Levels:
    cosines = _cosines()
    return np.asarray(cosines @ small @ cosines.T, np.float32)


def _versions(spectra: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Spectra [..., 16, 16] of the pictures mirrored and turned, [..., 8, 16, 16].

    Mirrored, every other frequency has the other sign; transposed, it is transposed.
    """
    signs = np.tile(np.array([-1, 1], np.int8), _KEPT // 2)
    return np.stack(
        [
            spectrum * down * across
            for spectrum in (spectra, spectra.swapaxes(-1, -2))
            for down in (1, signs[:, None])
            for across in (1, signs)
        ],
        axis=-3,
    )


def _bits(spectra: Levels) -> Hashes:
    """Which of the 256 values [..., 16, 16] are above their lower median: [..., 32]."""
    values = _in_order(spectra)
    middle = BITS // 2 - 1
    return np.packbits(values > np.partition(values, middle)[..., middle, None], axis=-1)


def _in_order(spectra: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values [..., 16, 16] as a hash has their bits, [..., 256]: the last comes first."""
    return spectra.reshape(*spectra.shape[:-2], BITS)[..., ::-1]


def _quality(small: Levels) -> int:
    """The steps between neighbours, each in whole percent of 255, summed, over 90."""
    steps = (np.diff(small, axis=axis) * 100 / 255 for axis in (0, 1))
    return min(100, int(sum(np.abs(np.trunc(step)).sum() for step in steps) / 90))
