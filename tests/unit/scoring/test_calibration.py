from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.hot_set import calibration, unit_rows
from worker.scoring.calibration import Benign
from worker.scoring.projection import offsets

LOOKS = ("plain", "centre_crop")


def named(count):
    """Images whose digests are their numbers."""
    digests = np.zeros((count, 32), dtype=np.uint8)
    digests[:, 0] = np.arange(count)
    return Benign(digests, np.zeros((count, 32), np.uint8), np.zeros(count, bool))


ONE = calibration(looks=LOOKS, way="centre", benign=named(50), k=3, beta=0.5)


def queries(seed, count):
    return torch.from_numpy(unit_rows(seed, count)).float()


@pytest.mark.parametrize("way", ["none", "centre", "whiten"])
def test_offsets_are_by_projected_background(way):
    one = calibration(way=way)
    expected = offsets(one.project(queries(1, 4)), one.project(one.background), one.k, one.beta)
    torch.testing.assert_close(one.without(()).offsets(queries(1, 4)), expected)


@given(st.sets(st.integers(0, 49)))
def test_what_is_masked_counts_neither_as_background_nor_as_null(numbers):
    names = named(50).names
    masked = ONE.without([names[number] for number in numbers])
    background = [n for n in range(20) if n not in numbers]
    null = [n for n in range(30) if n + 20 not in numbers]
    assert len(masked.background) == len(background)
    assert masked.groups.tolist() == ONE.groups[null].tolist()
    expected = offsets(
        ONE.project(ONE.probes), ONE.project(ONE.background[background]), ONE.k, ONE.beta
    )
    assert masked.null_offsets.ravel() == pytest.approx(expected.numpy(), abs=1e-5)


def test_an_image_without_a_digest_cannot_be_masked():
    one = replace(ONE, benign=None)
    assert len(one.without(["0" * 64]).background) == 20


def test_a_null_score_is_that_of_the_best_look():
    masked = ONE.without(())
    best = np.random.default_rng(1).uniform(size=60).astype(np.float32)
    scores = best.reshape(30, 2) - masked.null_offsets
    assert masked.null_scores(best, LOOKS) == pytest.approx(scores.max(axis=1))
    assert masked.null_scores(best, ["centre_crop"]) == pytest.approx(scores[:, 1])
    assert masked.knows(["plain"])
    assert not masked.knows(["plain", "top_left_crop"])


def test_null_images_tell_what_one_reference_matches():
    masked, rows = ONE.without(()), queries(4, 2)
    similar = (ONE.project(ONE.probes) @ ONE.project(rows).T).amax(dim=1).numpy()
    scores = masked.null_scores(similar, LOOKS)
    rate = masked.false_matches_of(rows, 0.2, LOOKS)
    assert rate == pytest.approx((scores >= 0.2).mean())
    assert 0 < rate < 1
