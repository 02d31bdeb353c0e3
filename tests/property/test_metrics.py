"""The metrics against their definitions, counted one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.evaluation.metrics import Ranking, barrier, recall_at_rate

scores = st.integers(0, 8)  # few, so that there are ties
weights = st.integers(0, 3)


@given(
    copies=st.lists(scores, min_size=1, max_size=20),
    negatives=st.lists(scores, min_size=1, max_size=20),
    rate=st.sampled_from([0, 0.001, 0.1, 0.25, 0.5, 1]),
)
def test_recall_at_a_rate_is_that_of_the_best_threshold_that_keeps_it(copies, negatives, rate):
    allowed = [
        t for t in np.arange(-0.5, 10) if sum(n >= t for n in negatives) <= rate * len(negatives)
    ]
    best = max(sum(c >= t for c in copies) / len(copies) for t in allowed)
    assert recall_at_rate(np.array(copies), np.array(negatives), rate) == best


@given(
    predictions=st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=25),
    missed=st.integers(0, 3),
    precision=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_precision_and_recall_of_a_ranking(predictions, missed, precision):
    positives = sum(right for _, right in predictions) + missed
    if not positives:
        return
    ranked = sorted(predictions, key=lambda one: (-one[0], one[1]))
    found, area, best = 0, 0.0, 0.0
    for place, (_, right) in enumerate(ranked, start=1):
        found += right
        area += right * found / place / positives
        if found / place >= precision:
            best = max(best, found / positives)
    values = np.array([score for score, _ in predictions])
    right = np.array([right for _, right in predictions])
    recall, uap = Ranking(values, right).measure(positives, precision=precision)
    assert np.isclose(recall, best)
    assert np.isclose(uap, area)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), weights), min_size=1, max_size=20))
def test_a_weight_is_that_many_of_them(predictions):
    values, right, counts = (np.array(column) for column in zip(*predictions, strict=True))
    if not (right * counts).sum():
        return
    # Each a little apart, for of equal scores the order is another one.
    values = values + np.arange(len(values)) * 2.0
    repeated = [np.repeat(one, counts) for one in (values, right)]
    recall, uap = Ranking(values, right).measure(
        float((right * counts).sum()), counts.astype(float)
    )
    one_by_one = Ranking(*repeated).measure(float(repeated[1].sum()))
    assert np.isclose(recall, one_by_one[0])
    assert uap >= one_by_one[1] - 1e-9  # at the last of equal ones there is the most precision
    for rate in (0, 0.1, 0.5):
        assert barrier(values, rate, counts.astype(float)) == barrier(repeated[0], rate)
