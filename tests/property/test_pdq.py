"""Hashes of PDQ as sets of bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worker.image import pdq

ROWS = st.integers(0, 6).flatmap(lambda n: arrays(np.uint8, (n, pdq.BYTES)))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pdq, "_AT_ONCE", 7)
    monkeypatch.setattr(pdq, "_VERSIONS_AT_ONCE", 1)


def bits(row):
    return np.unpackbits(row).tolist()


@given(ROWS, ROWS)
def test_distances_count_bits(a, b):
    expected = [
        [sum(x != y for x, y in zip(bits(one), bits(other), strict=True)) for other in b]
        for one in a
    ]
    assert pdq.distances(a, b).tolist() == expected


FLIPPED = st.lists(st.integers(0, pdq.BITS - 1), min_size=25, max_size=36, unique=True)


@given(ROWS, st.lists(st.tuples(st.integers(0, 5), FLIPPED), max_size=6))
def test_near_finds_all_within_the_bound_and_nothing_else(a, changes):
    """Of hashes that differ in bits around the bound, wherever those are."""
    b = [a[row % len(a)].copy() for row, _ in changes] if len(a) else []
    for one, (_, flipped) in zip(b, changes, strict=False):
        for bit in flipped:
            one[bit // 8] ^= 1 << bit % 8
    others = np.array(b, np.uint8).reshape(-1, pdq.BYTES)
    expected = np.argwhere(pdq.distances(a, others) <= pdq.SAME)
    assert pdq.near(a, others).tolist() == expected.tolist()


@given(arrays(np.uint8, (2, pdq.BYTES)))
def test_versions_are_a_group(hashes):
    once = pdq.versions(hashes)
    assert np.array_equal(once[:, 0], hashes)
    for own in once:
        expected = {row.tobytes() for row in own}
        for again in pdq.versions(own):
            assert {row.tobytes() for row in again} == expected
    apart = [pdq.distances(once[:1, n], once[1:, n]).item() for n in range(pdq.VERSIONS)]
    assert len(set(apart)) == 1  # turning both alike changes nothing
