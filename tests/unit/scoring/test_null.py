import math

import numpy as np
import pytest
from scipy import stats

from worker.scoring.null import SUPPORTED_BY, Null, Rate, Threshold, Unsupported, images_needed


def made(scores, groups=None):
    scores = np.asarray(scores, np.float32)
    return Null(scores, np.arange(len(scores)) if groups is None else np.asarray(groups, np.int64))


def drawn(n, seed=0, each=1):
    scores = np.random.default_rng(seed).standard_normal(n // each)
    return made(np.repeat(scores, each), np.repeat(np.arange(n // each), each))


def threshold(null, rate):
    found = null.threshold(rate)
    assert isinstance(found, Threshold)
    return found


@pytest.mark.parametrize("k", [1, 2, 10, 50])
def test_of_independent_images_limits_are_clopper_and_pearsons(k):
    null = drawn(2000)
    rate = null.rate(np.sort(null.scores)[-k])
    assert rate is not None
    test = stats.binomtest(k, 2000, alternative="greater").proportion_ci(0.95, method="exact")
    assert rate.low == pytest.approx(test.low, rel=1e-9)
    fewer = stats.binomtest(k - 1, 2000, alternative="less").proportion_ci(0.95, method="exact")
    assert rate.high == pytest.approx(fewer.high, rel=1e-9)
    if k >= 10:
        assert (rate.estimate, rate.by) == (k / 2000, "count")


def test_a_threshold_is_where_the_upper_limit_of_the_rate_is_the_target():
    null = drawn(2000)
    for target in (0.0016, 0.004, 0.01, 0.1):
        found = threshold(null, target)
        here, below = null.rate(found.score), null.rate(found.score - 1e-4)
        assert here is not None
        assert below is not None
        assert here.high <= target < below.high
        assert found.low < found.estimate < found.score
        assert found.exceedances == found.groups == (null.scores >= found.score).sum()
        assert found.exceedances < 2000 * target


def test_at_the_lowest_supported_rate_the_best_group_alone_reaches_the_threshold():
    null = drawn(2000)
    assert null.supported_rate == SUPPORTED_BY / 2000
    found = threshold(null, null.supported_rate)
    assert (found.groups, found.by) == (1, "count")
    assert null.groups_reaching(found.score) == [(int(null.scores.argmax()), 1)]


def test_below_it_the_answer_is_how_many_distinct_images_it_would_take():
    null = drawn(2000, each=4)
    assert null.distinct == 500
    assert null.threshold(5e-6) == Unsupported(distinct=500, needed=600_000)
    assert images_needed(5e-6) == 600_000
    assert isinstance(null.threshold(0.99 * SUPPORTED_BY / 500), Unsupported)


def test_images_that_are_all_copies_in_their_groups_tell_no_more_than_one_of_each():
    once, fourfold = drawn(500), drawn(2000, each=4)
    for target in (0.006, 0.01, 0.1):
        one, four = threshold(once, target), threshold(fourfold, target)
        assert one.score < four.score < one.score + 0.15
    reaching = fourfold.groups_reaching(threshold(fourfold, 0.01).score)
    assert all(count == 4 for _, count in reaching)


@pytest.mark.parametrize("groups", [0, 1, 14])
def test_a_handful_of_groups_tells_nothing_however_many_images_they_have(groups):
    null = drawn(100 * groups, each=100)
    assert null.threshold(0.9) == Unsupported(distinct=groups, needed=15)
    assert isinstance(null.threshold(math.inf), Unsupported)
    assert null.supported_rate == math.inf
    assert null.rate(0.0) is None


def test_of_few_groups_no_tail_is_told():
    null = drawn(150)
    rate = null.rate(null.scores.max())
    assert rate is not None
    assert null.rate(null.scores.max() + 0.01) is None
    assert isinstance(null.threshold(0.02), Threshold)


def test_an_unlimited_budget_is_kept_by_the_lowest_score():
    null = drawn(150)
    for rate in (1.0, 7.0, math.inf):
        assert threshold(null, rate).score == null.scores.min()


def test_above_a_score_that_all_share_nothing_was_counted():
    null = made(np.full(1000, 0.25))
    found = threshold(null, 0.004)
    assert found.score == np.nextafter(np.float32(0.25), np.float32(1))
    assert (found.exceedances, found.groups) == (0, 0)
    rate = null.rate(0.25)
    assert rate is not None
    assert (rate.estimate, rate.high) == (1.0, pytest.approx(1.0, abs=1e-4))


def test_a_score_that_many_share_is_a_step():
    """A tenth at 0.5: a budget below that lies above it, one above it at most there."""
    scores = np.concatenate(
        [np.linspace(0, 0.4, 890), np.full(100, 0.5), np.linspace(0.6, 0.7, 10)]
    )
    null = made(scores)
    assert threshold(null, 0.05).score > 0.5
    assert threshold(null, 0.05).groups <= 10
    assert threshold(null, 0.15).score <= 0.5


def test_the_tail_goes_on_where_counting_ends():
    null = drawn(100_000, seed=1)
    score = float(null.scores.max()) + 0.2
    true = stats.norm.sf(score)
    rate = null.rate(score)
    assert rate is not None
    assert rate.by == "tail"
    assert true / 5 < rate.estimate < true * 5
    assert rate.low == 0 < true < rate.high < SUPPORTED_BY / 100_000


def test_a_best_group_with_more_images_than_others_moves_the_threshold_beyond_the_data():
    scores, groups = np.random.default_rng(0).standard_normal(1000), np.arange(1000)
    best = np.argsort(-scores)[:60]
    null = made(
        np.append(scores, np.repeat(scores[best], 4)), np.append(groups, np.repeat(best, 4))
    )
    found = threshold(null, null.supported_rate)
    assert found.by == "tail"
    assert found.groups == 0
    assert found.score > scores.max()
    rate = null.rate(found.score)
    assert rate is not None
    assert rate.high == pytest.approx(null.supported_rate, rel=1e-5)
    few = made(*(values[: 2 * len(values) // 13] for values in (null.scores, null.groups)))
    assert isinstance(few.threshold(0.02), Threshold)


def test_a_rate_that_no_threshold_has_and_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a rate is above 0, not 0"):
        drawn(10).threshold(0)
    with pytest.raises(ValueError, match="a rate is above 0, not nan"):
        drawn(10).threshold(math.nan)
    with pytest.raises(ValueError, match="one group for each score"):
        Null(np.zeros(3, np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="finite"):
        made([0.1, math.nan])


def test_a_million_images_are_resolved_from_whatever_group_numbers():
    random = np.random.default_rng(0)
    scores = random.standard_normal(1_000_000).astype(np.float32)
    groups = random.integers(0, 400_000, len(scores))
    _, numbered = np.unique(groups, return_inverse=True)
    found = threshold(Null(scores, groups * 12_345_678_901), 3e-5)
    assert found == threshold(Null(scores, numbered), 3e-5)
    assert stats.norm.sf(found.score) < 3e-5
    rate = Null(scores, numbered).rate(found.score)
    assert isinstance(rate, Rate)
    assert rate.low < stats.norm.sf(found.score) < rate.high


@pytest.mark.parametrize("k", [1, 5, 40])
def test_what_other_images_will_show_has_the_noise_of_both_counts(k):
    null = drawn(2000)
    score = np.sort(null.scores)[-k]
    rate = null.rate(score)
    assert rate is not None
    for images in (500, 2000, 50_000):
        mean = k * images / 2000
        expected = np.array(stats.nbinom.interval(0.95, k, k / (k + mean))) / mean * rate.estimate
        assert null.prediction(score, images) == pytest.approx(expected)
    many, few = null.prediction(score, 50_000), null.prediction(score, 500)
    assert many is not None
    assert few is not None
    assert many[1] - many[0] < few[1] - few[0]


def test_groups_make_it_wider_and_without_data_there_is_none():
    alone, grouped = drawn(2000), drawn(2000, each=4)
    spans = []
    for null, groups in ((alone, 80), (grouped, 20)):  # 80 images both
        predicted = null.prediction(null.score_of_groups(groups), 2000)
        assert predicted is not None
        spans.append(predicted[1] - predicted[0])
    assert spans[1] > 1.7 * spans[0]
    assert drawn(14).prediction(0.0, 100) is None
    assert alone.prediction(float(alone.scores.max()) + 0.1, 100) is None
