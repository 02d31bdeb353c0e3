import math

import numpy as np
import pytest

from worker.scoring.forecast import OFF_TENFOLD, Growth
from worker.scoring.null import Null, Threshold, Unsupported

IMAGES, REFERENCES, HALVES = 4000, 40, 12


def bank(hubs=0.0, factor=4, seed=0):
    """A null, scores against halves, and scores against a bank `factor` times as large."""
    random = np.random.default_rng(seed)
    lifts = hubs * random.standard_normal(REFERENCES * factor)
    cosines = (0.1 * (random.standard_normal((IMAGES, len(lifts))) + lifts)).astype(np.float32)
    own = cosines[:, :REFERENCES]
    halves = [
        own[:, random.permutation(REFERENCES)[: REFERENCES // 2]].max(axis=1) for _ in range(HALVES)
    ]
    null = Null(own.max(axis=1), np.arange(IMAGES))
    return null, np.stack(halves), cosines.max(axis=1)


def test_rates_of_references_with_images_of_their_own_grow_with_the_bank():
    null, halves, _ = bank()
    growth = Growth.measure(null, halves)
    assert growth.exponent == pytest.approx(1, abs=0.15)
    assert growth.spread < 0.1


def test_references_that_share_their_images_add_nothing():
    null, halves, _ = bank()
    growth = Growth.measure(null, np.repeat(null.scores[None], len(halves), axis=0))
    assert (growth.exponent, growth.spread) == (0, 0)
    forecast = growth.forecast(null, 0.01, 10)
    assert forecast.estimate == 1
    assert forecast.high == pytest.approx(OFF_TENFOLD**1.645, rel=1e-3)


@pytest.mark.parametrize("hubs", [0.0, 0.5])
def test_a_forecast_has_the_true_rate_of_a_larger_bank_within_its_limits(hubs):
    inside = 0
    for seed in range(20):
        null, halves, larger = bank(hubs, seed=seed)
        forecast = Growth.measure(null, halves).forecast(null, 0.02, 4)
        score = null.score_of_groups(100)
        grown = (larger >= score).mean() / (null.scores >= score).mean()
        inside += forecast.low <= grown <= forecast.high
    assert inside >= 17


def test_hubs_widen_it_and_so_does_distance():
    null, halves, _ = bank()
    plain = Growth.measure(null, halves)
    hubs = Growth.measure(*bank(hubs=1.0)[:2])
    assert hubs.spread > 3 * plain.spread
    far, near = plain.forecast(null, 0.01, 10), plain.forecast(null, 0.01, 2)
    assert far.high / far.low > near.high / near.low > 1
    same = plain.forecast(null, 0.01, 1)
    assert (same.low, same.estimate, same.high) == (1, 1, 1)
    assert same.threshold == null.threshold(0.01)


def test_the_threshold_of_a_larger_bank_is_higher_until_the_data_support_none():
    null, halves, _ = bank()
    growth = Growth.measure(null, halves)
    here, there = (growth.forecast(null, 0.01, factor).threshold for factor in (1, 3))
    assert isinstance(here, Threshold)
    assert isinstance(there, Threshold)
    assert there.score > here.score
    none = growth.forecast(null, 0.01, 1000).threshold
    assert isinstance(none, Unsupported)
    assert none.needed > IMAGES


def test_no_more_than_all_images_match():
    null, _, _ = bank()
    far = Growth(1.0, 0.1).forecast(null, 0.01, 1000)
    estimate, low, high = far.rates(0.01)
    assert estimate == pytest.approx(1 - 0.99**1000)
    assert 0 < low < estimate < high <= 1
    assert far.rates(1e-9)[0] == pytest.approx(far.estimate * 1e-9, rel=1e-3)
    assert far.rates(0) == (0, 0, 0)


def test_what_does_not_fit_is_refused():
    null, halves, _ = bank()
    with pytest.raises(ValueError, match="two halves or more of 4000 images"):
        Growth.measure(null, halves[:1])
    with pytest.raises(ValueError, match="above the whole"):
        Growth.measure(null, halves + 1)
    with pytest.raises(ValueError, match="at least one image"):
        Growth.measure(Null(null.scores[:0], null.groups[:0]), halves[:, :0])
    for factor in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="a factor of 1 or more"):
            Growth(1.0, 0.1).forecast(null, 0.01, factor)
