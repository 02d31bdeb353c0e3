"""Cosine and distance against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from worker.scoring.similarity import cosine, euclidean, euclidean_of

_SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 64))
_VALUES = st.floats(-1, 1, width=32)


def _units(rows):
    rows[:, 0] += np.float32(2.0)  # none is the zero vector
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)


@st.composite
def descriptors(draw):
    """Unit rows a [n, d] and b [m, d], float32; some rows of b nearly are rows of a."""
    n, m, dims = draw(_SHAPES)
    a = draw(arrays.arrays(np.float32, (n, dims), elements=_VALUES))
    b = draw(arrays.arrays(np.float32, (m, dims), elements=_VALUES))
    if draw(st.booleans()):
        b[0] = a[0] + np.float32(1e-3) * b[0]
    return _units(a), _units(b)


@given(descriptors())
def test_both_equal_numpy_in_float64(pair):
    a, b = pair
    wide = [rows.astype(np.float64) for rows in pair]
    similar = cosine(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    distance = euclidean(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert similar.shape == distance.shape == (len(a), len(b))
    assert similar == pytest.approx(wide[0] @ wide[1].T, abs=2e-6)
    expected = np.linalg.norm(wide[0][:, None] - wide[1][None], axis=2)
    assert distance == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert similar.max() <= 1
    assert 0 <= distance.min() <= distance.max() <= 2


@given(descriptors())
def test_a_distance_follows_from_a_cosine(pair):
    a, b = (torch.from_numpy(rows) for rows in pair)
    told = [[euclidean_of(float(one)) for one in row] for row in cosine(a, b)]
    assert np.array(told) == pytest.approx(euclidean(a, b).numpy(), abs=2e-3)


def test_the_ends():
    a = torch.eye(3)[:1]
    assert cosine(a, torch.cat([a, -a])).tolist() == [[1.0, -1.0]]
    assert euclidean(a, torch.cat([a, -a])).tolist() == [[0.0, 2.0]]
    assert (euclidean_of(1.0), euclidean_of(-1.0)) == (0.0, 2.0)
    assert euclidean_of(1.0000001) == 0.0
