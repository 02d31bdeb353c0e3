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


def bits(row):
    return np.unpackbits(row).tolist()


@given(ROWS, ROWS, st.integers(0, 256))
def test_distances_and_near_count_bits(a, b, most):
    expected = [
        [sum(x != y for x, y in zip(bits(one), bits(other), strict=True)) for other in b]
        for one in a
    ]
    assert pdq.distances(a, b).tolist() == expected
    near = [(i, j) for i, row in enumerate(expected) for j, d in enumerate(row) if d <= most]
    assert pdq.near(a, b, most).tolist() == [list(pair) for pair in near]


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
