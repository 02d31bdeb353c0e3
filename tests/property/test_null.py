"""Nulls of any scores and groups: what holds whatever they are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.bench_limits import SCENARIOS, TAILS, simulate
from worker.scoring.null import Null, Threshold, Unsupported

SCORES = st.one_of(
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, 0.25, float(np.nextafter(np.float32(0.25), np.float32(1)))]),
)
IMAGES = st.lists(st.tuples(SCORES, st.integers(-3, 40)), min_size=1, max_size=150)
RATES = st.floats(1e-6, 2)


def made(images):
    scores, groups = zip(*images, strict=True)
    return Null(np.array(scores, np.float32), np.array(groups, np.int64))


@given(IMAGES, st.lists(st.floats(-1.5, 1.5), min_size=2, max_size=20))
def test_no_rate_rises_along_the_scores_and_each_is_within_its_limits(images, scores):
    null = made(images)
    curve = null.curve(sorted(scores))
    for values in curve:
        told = values[~np.isnan(values)]
        assert (np.diff(told) <= 1e-12).all()
        assert ((told >= 0) & (told <= 1)).all()
    known = ~np.isnan(curve.estimate)
    assert (curve.low[known] <= curve.estimate[known]).all()
    assert (curve.estimate[known] <= curve.high[known]).all()


@given(IMAGES, st.lists(RATES, min_size=2, max_size=10))
def test_a_lower_target_never_has_a_lower_threshold(images, rates):
    null = made(images)
    found = [null.threshold(rate) for rate in sorted(rates)]
    scores = [one.score for one in found if isinstance(one, Threshold)]
    assert scores == sorted(scores, reverse=True)
    supported = [isinstance(one, Threshold) for one in found]
    assert supported == sorted(supported)
    for one in found:
        if isinstance(one, Unsupported):
            assert one.needed > one.distinct


@given(IMAGES, RATES)
def test_a_threshold_keeps_its_target_among_the_images_it_comes_from(images, rate):
    null = made(images)
    found = null.threshold(rate)
    if isinstance(found, Threshold) and found.score > null.scores.min():
        reached = (null.scores >= found.score).mean()
        assert found.low <= found.estimate <= found.score == np.float32(found.score)
        limit = null.curve([found.score]).high[0]
        assert limit <= rate * (1 + 1e-9)
        assert reached <= rate


@given(IMAGES, st.floats(-1.2, 1.2), st.integers(1, 10_000))
def test_a_prediction_is_a_share_about_the_estimate(images, score, others):
    null = made(images)
    predicted, rate = null.prediction(score, others), null.rate(score)
    if predicted is not None:
        assert rate is not None
        assert 0 <= predicted[0] <= rate.estimate * (1 + 1e-9)
        assert predicted[0] <= predicted[1] <= 1


@given(IMAGES, RATES, st.randoms(use_true_random=False))
def test_the_order_of_the_images_and_the_names_of_the_groups_do_not_matter(images, rate, random):
    shuffled = random.sample(images, len(images))
    renamed = [(score, group * 1_000_003 - 7) for score, group in shuffled]
    at = np.linspace(-1.2, 1.2, 50)
    for one, other in zip(made(images).curve(at), made(renamed).curve(at), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert made(images).threshold(rate) == made(renamed).threshold(rate)


def test_limits_hold_in_simulation():
    """The bench in small: at 200 runs, the band is four standard errors about 92 to 98%."""
    for scenario in SCENARIOS[::3]:
        held = simulate(scenario, TAILS["heavy"], m=1000, runs=200)
        assert held.upper.min() >= 0.86, scenario
        assert held.lower.min() >= 0.83, scenario
        assert held.unused.min() >= 0.8, scenario
        assert (held.kept < 1).all()
        assert held.estimate.max() < 1.5
